// What one source had damaged, restored from another one that has the same generation.
//
// Called by restore-run.ts, once for each further source. Throws what sources throw, but for what
// another source may still have.

import { lstatSync, rmSync } from 'node:fs'
import { ERRORS, systemCode } from '../lib/errors.ts'
import { setTimes } from '../lib/machine/posix.ts'
import { parentOf, type RawPath, rawPathToBytes } from '../lib/model/raw-path.ts'
import type { ExportPlace } from '../lib/work/repository.ts'
import type { RestoreOutcome } from '../lib/work/restore.ts'
import type { Wanted } from '../lib/work/selection.ts'
import type { RestoreWords } from './restore-options.ts'
import type { RestoreJob } from './restore-place.ts'
import { isElsewhere, type RestoreSource } from './restore-source.ts'
import { placeOf } from './restore-into.ts'

/** Restores what is wanted of one generation. */
export type RestorePlace = (
  job: RestoreJob,
  of: { readonly source: RestoreSource; readonly place: ExportPlace; readonly wanted: Wanted },
) => Promise<Restored>

/** One generation that was restored, as far as it went. */
export interface Restored {
  readonly place: ExportPlace
  readonly outcome: RestoreOutcome
  readonly complete: boolean
}

/** What was damaged in one source, from another one that has the same generation. */
export async function restoreDamaged(
  job: RestoreJob,
  {
    source,
    restored,
    restorePlace,
  }: {
    readonly source: RestoreSource
    readonly restored: readonly Restored[]
    readonly restorePlace: RestorePlace
  },
): Promise<readonly Restored[]> {
  const again: Restored[] = []
  for (const one of restored) {
    const paths = damagedPaths(one.outcome)
    const { set, stamp } = one.place
    const place = source.places.find((other) => other.set === set && other.stamp === stamp)
    if (paths.length === 0 || place === undefined || job.words.dryRun) {
      again.push(one)
      continue
    }
    try {
      // What was to be deleted is.
      const words: RestoreWords = { ...job.words, yes: true, deletes: false }
      const wanted = { paths, patterns: words.patterns }
      const directories = paths.map((path) => `${placeOf(words.into)}/${parentOf(path)}`)
      const other = await keepingTimes(directories, async () => {
        const restored = await restorePlace({ ...job, words }, { source, place, wanted })
        removeSalvage(one.outcome, restored.outcome)
        return restored
      })
      again.push({ ...one, outcome: merge(one.outcome, other.outcome) })
    } catch (error) {
      if (!isElsewhere(error)) throw error
      again.push(one)
    }
  }
  return again
}

export function damagedPaths({ failures }: RestoreOutcome): readonly RawPath[] {
  return failures
    .filter(({ code }) => ERRORS[code][0] === 13 && code !== 'UNSAFE_PATH')
    .map(({ path }) => path)
}

/** What could be saved of files that came whole from elsewhere. */
function removeSalvage(first: RestoreOutcome, second: RestoreOutcome): void {
  const lacking = new Set([...second.kept, ...second.failures.map(({ path }) => path)])
  for (const { path, corrupt } of first.failures) {
    if (corrupt !== undefined && !lacking.has(path)) rmSync(rawPathToBytes(corrupt))
  }
}

/** Directories that were finished already, and get more files. */
async function keepingTimes<T>(
  directories: readonly RawPath[],
  action: () => Promise<T>,
): Promise<T> {
  const times = [...new Set(directories)].map((path) => {
    return { path, stat: lstatSync(rawPathToBytes(path), { throwIfNoEntry: false, bigint: true }) }
  })
  const result = await action()
  for (const { path, stat } of times) {
    if (stat?.isDirectory() === true) setTimesOfOurs(path, stat)
  }
  return result
}

/** Somebody else's directory has its time from whoever wrote there last. */
function setTimesOfOurs(path: RawPath, times: { readonly mtimeNs: bigint }): void {
  try {
    setTimes(path, times)
  } catch (error) {
    if (systemCode(error) === undefined) throw error
  }
}

/** Of two restores of one generation the second one had only what the first one failed at. */
function merge(first: RestoreOutcome, second: RestoreOutcome): RestoreOutcome {
  const damaged = new Set(damagedPaths(first))
  return {
    written: first.written + second.written,
    same: first.same + second.same,
    bytes: first.bytes + second.bytes,
    deleted: first.deleted,
    kept: [...first.kept, ...second.kept],
    failures: [...first.failures.filter(({ path }) => !damaged.has(path)), ...second.failures],
    lost: [...first.lost, ...second.lost],
    aside: [...first.aside, ...second.aside],
  }
}
