// Whose files are whose on this machine, and how names are spelt here: what `--owner`,
// `--map-user`, `--map-group` and `--names` mean for a selection (docs/fidelity.md).
//
// Called by restore-run.ts. Warns once of accounts that are not known here. Throws nothing.

import { existsSync } from 'node:fs'
import { systemCode } from '../lib/errors.ts'
import { readAccountNumbers } from '../lib/machine/accounts.ts'
import { probePlaceNames } from '../lib/machine/place-names.ts'
import { type Move, planMove } from '../lib/model/moving.ts'
import { PLAIN_NAMES, type PlaceNames } from '../lib/model/place-names.ts'
import { type RawPath, displayText, rawPathToBytes } from '../lib/model/raw-path.ts'
import type { Selection } from '../lib/work/selection.ts'
import type { RestoreJob } from './restore-place.ts'

export function movingOf(
  { context, words, configuration }: RestoreJob,
  { selection, into }: { readonly selection: Selection; readonly into: RawPath },
): { readonly move: Move; readonly place: PlaceNames } {
  const accounts = readAccountNumbers()
  const isForeign = words.machine !== undefined && words.machine !== configuration.machine
  const move = planMove([...selection.entries, ...selection.parents], {
    owner: words.owner ?? (isForeign ? 'name' : 'number'),
    users: words.users,
    groups: words.groups,
    names: words.names,
    accounts,
    mine: { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 },
  })
  const unknown = [...move.unknownUsers, ...move.unknownGroups]
  if (unknown.length > 0) {
    const names = unknown.map(displayText).join(', ')
    const message = `nobody here is called ${names}: their numbers stay (--map-user, --map-group)`
    context.reporter.report({ kind: 'notice', level: 'warning', code: 'OWNER_UNKNOWN', message })
  }
  // A dry run writes nothing, not even a file to try names with.
  // In the original place the machine's own names are as they were.
  const isKnown = words.dryRun || (into === '' && !isForeign)
  return { move, place: isKnown ? PLAIN_NAMES : namesAt(into) }
}

function namesAt(into: RawPath): PlaceNames {
  const place = into === '' ? '/' : into
  if (!existsSync(rawPathToBytes(place))) return PLAIN_NAMES
  try {
    return probePlaceNames(place)
  } catch (error) {
    if (systemCode(error) === undefined) throw error
    return PLAIN_NAMES
  }
}
