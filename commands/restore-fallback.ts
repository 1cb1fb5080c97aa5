// What one source had damaged, restored from another one that has the same generation.
//
// Called by restore-run.ts, once for each further source. Throws what sources throw, but for what
// another source may still have.

import { ERRORS } from '../lib/errors.ts'
import type { RawPath } from '../lib/model/raw-path.ts'
import type { ExportPlace } from '../lib/work/repository.ts'
import { restoreAgain } from '../lib/work/restore-again.ts'
import type { RestoreFailure } from '../lib/work/restore-plan.ts'
import type { RestoreOutcome } from '../lib/work/restore.ts'
import type { Wanted } from '../lib/work/selection.ts'
import { placeOf } from './restore-into.ts'
import type { RestoreWords } from './restore-options.ts'
import type { RestoreJob } from './restore-place.ts'
import { isElsewhere, type RestoreSource } from './restore-source.ts'

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
  /** Of the paths that were wanted those that it has. */
  readonly met: readonly RawPath[]
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
    const damaged = damagedFiles(one.outcome)
    const { set, stamp } = one.place
    const place = source.places.find((other) => other.set === set && other.stamp === stamp)
    if (damaged.length === 0 || place === undefined || job.words.dryRun) {
      again.push(one)
      continue
    }
    try {
      // What was to be deleted is.
      const words: RestoreWords = { ...job.words, yes: true, deletes: false }
      const paths = damaged.map(({ path, from = path }) => from)
      const wanted = { paths, patterns: words.patterns }
      const outcome = await restoreAgain(one.outcome, {
        into: placeOf(words.into),
        paths: damaged.map(({ path }) => path),
        restore: async () =>
          (await restorePlace({ ...job, words }, { source, place, wanted })).outcome,
      })
      again.push({ ...one, outcome })
    } catch (error) {
      if (!isElsewhere(error)) throw error
      again.push(one)
    }
  }
  return again
}

/** What another source may have whole. */
export function damagedFiles({ failures }: RestoreOutcome): readonly RestoreFailure[] {
  return failures.filter(({ code }) => ERRORS[code][0] === 13 && code !== 'UNSAFE_PATH')
}
