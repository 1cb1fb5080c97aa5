// `backup accept`: ends the doubt about a suspect or incomplete collection, after showing what is
// gone.
//
// Parses and tells; lib/work/accept.ts does it. On a terminal it asks; without one it needs the
// collection's stamp, so that no script accepts what nobody has seen. Throws USAGE, NOT_CONFIRMED,
// and what accepting throws.

import { BackupError } from '../lib/errors.ts'
import { formatSize } from '../lib/model/amount.ts'
import { displayPath, pathFacts } from '../lib/model/raw-path.ts'
import { formatStamp, parseStamp } from '../lib/model/stamp.ts'
import { type Doubtful, acceptDoubtful, inspectDoubtful } from '../lib/work/accept.ts'
import { chosenSets } from './chosen.ts'
import { type Command, type CommandContext, isGiven } from './command.ts'

/** Paths named on a terminal; --json names all. */
const PATHS_SHOWN = 20

export const command: Command = {
  name: 'backup accept',
  summary: 'take a suspect or incomplete collection as it is',
  usage: `Usage: backup accept SET [STAMP] [--dry-run]

A collection is suspect when a source was empty, lost much, or is another filesystem; it is
incomplete when something could not be read. Until a good one follows, or this one is accepted,
nothing of the set is let go, and a suspect one is not exported. Shows what is gone since the
last good collection, and asks. Without a terminal the stamp has to be given.

  STAMP           that collection (default: the newest)
  --dry-run       only shows
`,
  options: {},
  positionals: true,
  run: async (context) => {
    const configuration = await context.loadConfiguration()
    const [set, stamp, ...more] = context.positionals
    if (set === undefined || more.length > 0) {
      throw new BackupError('USAGE', 'name the set, and at most one stamp', {
        hint: 'backup accept SET [STAMP]',
      })
    }
    chosenSets(configuration, [set])
    if (stamp !== undefined && parseStamp(stamp) === undefined) {
      throw new BackupError('USAGE', `"${stamp}" is no stamp`, {
        hint: 'such as 2025-04-01T020000Z',
      })
    }
    const { staging } = configuration
    const doubtful = inspectDoubtful({ staging, set, stamp })
    show(context, { set, doubtful })
    if (isGiven(context.values, 'dry-run')) return 0
    if (stamp === undefined) await ask(context, { set, doubtful })
    const accepted = formatStamp(context.now())
    acceptDoubtful({ staging, set, stamp: doubtful.header.stamp, accepted })
    context.reporter.tell(`${set}: ${doubtful.header.stamp} accepted; exports and retention go on`)
    return 0
  },
}

function show(
  { reporter }: CommandContext,
  { set, doubtful }: { set: string; doubtful: Doubtful },
): void {
  const { header, reference, gone } = doubtful
  const word = header.suspect.length > 0 ? 'SUSPECT' : 'INCOMPLETE'
  reporter.print(
    `${set} ${header.stamp} is ${word}: ${header.entries} entries, ${formatSize(header.bytes)}`,
  )
  for (const { path, why } of header.suspect)
    reporter.print(`  suspect: /${displayPath(path)}: ${why}`)
  for (const { path, why } of header.missing.slice(0, PATHS_SHOWN)) {
    reporter.print(`  missing: /${displayPath(path)}: ${why}`)
  }
  if (reference === undefined) reporter.print('  no good collection before it to compare with')
  else {
    reporter.print(`  gone since ${reference}: ${gone.files} files, ${formatSize(gone.bytes)}`)
    for (const path of gone.paths.slice(0, PATHS_SHOWN)) reporter.print(`    /${displayPath(path)}`)
    if (gone.paths.length > PATHS_SHOWN) {
      reporter.print(`    and ${gone.paths.length - PATHS_SHOWN} more (--json names all)`)
    }
  }
  const named = (items: Doubtful['header']['missing']) =>
    items.map(({ path, why }) => ({ ...pathFacts(path), why }))
  reporter.report({
    kind: 'result',
    command: command.name,
    set,
    stamp: header.stamp,
    outcome: word.toLowerCase(),
    suspect: named(header.suspect),
    missing: named(header.missing),
    reference: reference ?? null,
    gone: { ...gone, paths: gone.paths.map((path) => pathFacts(path)) },
  })
}

/** @throws BackupError NOT_CONFIRMED */
async function ask(
  context: CommandContext,
  { set, doubtful }: { set: string; doubtful: Doubtful },
): Promise<void> {
  if (await context.confirm('Take it as it is?')) return
  throw new BackupError('NOT_CONFIRMED', 'nothing was accepted', {
    hint: `without a terminal: backup accept ${set} ${doubtful.header.stamp}`,
  })
}
