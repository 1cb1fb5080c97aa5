// Lets old exports go, and sweeps what killed runs left: the only code that deletes on a target.
//
// Upholds invariants 1, 4, 5 and 7: the manifest goes first; bundles go only when every remaining
// export's signed verification file was read and none needs them; a damaged one stops all deleting.
// Nothing whose name is not ours is touched.

import { BackupError } from '../errors.ts'
import { exportName } from '../model/manifest.ts'
import type { Report } from '../model/report.ts'
import { planRetention } from '../model/retention.ts'
import { MANIFEST, VERIFICATION, VERIFICATION_SIGNATURE } from '../model/verification.ts'
import {
  type Repository,
  type StampDirectory,
  directoryOf,
  exportsOf,
  listStamps,
  readVerification,
} from './repository.ts'

export interface PruneOutcome {
  /** `<machine>/<set>/<stamp>` */
  readonly removedExports: readonly string[]
  readonly removedBundles: number
  readonly freedBytes: number
}

export interface PruneOptions {
  readonly machine: string
  readonly set: string
  /** How many complete exports stay. */
  readonly keep: number
  readonly publicKeys: readonly string[]
  /** Undefined where nobody knows: then it counts as incomplete, and stays longer. */
  readonly isComplete: (stamp: string) => boolean | undefined
  readonly report: Report
}

/**
 * Removes the exports of a set that retention does not keep, then every bundle that no export of
 * the machine needs.
 * @throws BackupError TARGET_FAILED, TARGET_READ_ONLY; what is half deleted is finished by the next
 * run
 */
export async function pruneExports(
  repository: Repository,
  options: PruneOptions,
): Promise<PruneOutcome> {
  const { machine, set, keep, isComplete } = options
  const stamps = await listStamps(repository, machine)
  const exports = exportsOf(stamps)
  const items = exports
    .filter((place) => place.set === set)
    .map(({ stamp }) => ({ stamp, complete: isComplete(stamp) === true }))
  const remove = new Set(planRetention({ items, keep }).remove)
  const goes = (place: StampDirectory) => place.set === set && remove.has(place.stamp)
  const needed = await neededBundles(repository, {
    exports: exports.filter((place) => !goes(place)),
    options,
  })
  if (needed === undefined) return { removedExports: [], removedBundles: 0, freedBytes: 0 }
  for (const place of exports.filter(goes))
    await repository.target.remove(`${directoryOf(place)}/${MANIFEST}`)
  const freed = await sweepUnneeded(repository, { stamps, needed, goes })
  return { removedExports: exports.filter(goes).map(exportName), ...freed }
}

/** Bundle names that the exports need; undefined, with a warning, when one of them cannot tell. */
async function neededBundles(
  repository: Repository,
  { exports, options }: { exports: readonly StampDirectory[]; options: PruneOptions },
): Promise<ReadonlySet<string> | undefined> {
  const needed = new Set<string>()
  for (const place of exports) {
    try {
      const { bundles } = await readVerification(repository, place, options.publicKeys)
      for (const name of bundles.keys()) needed.add(name)
    } catch (error) {
      if (!(error instanceof BackupError)) throw error
      options.report({
        kind: 'notice',
        level: 'warning',
        code: 'RETENTION_FROZEN',
        message:
          `nothing is removed from ${repository.target.name}: `
          + `${exportName(place)} cannot be checked (${error.message})`,
      })
      return undefined
    }
  }
  return needed
}

async function sweepUnneeded(
  repository: Repository,
  {
    stamps,
    needed,
    goes,
  }: {
    stamps: readonly StampDirectory[]
    needed: ReadonlySet<string>
    goes: (place: StampDirectory) => boolean
  },
): Promise<{ removedBundles: number; freedBytes: number }> {
  let removedBundles = 0
  let freedBytes = 0
  for (const place of stamps) {
    const isGone = goes(place) || !place.exists
    for (const [name, sizeBytes] of place.files) {
      const bundle = `${place.set}/${place.stamp}/${name.replace(/\.tar\.zst\.age$/, '')}`
      if (needed.has(bundle) || (!isGone && !isBundle(name)) || name === MANIFEST) continue
      await repository.target.remove(`${directoryOf(place)}/${name}`)
      freedBytes += sizeBytes
      if (isBundle(name)) removedBundles += 1
    }
    if (isGone) await repository.target.removeDirectory(directoryOf(place))
  }
  return { removedBundles, freedBytes }
}

function isBundle(name: string): boolean {
  return /^(data|catalog)-\d+\.tar\.zst\.age$/.test(name)
}

/**
 * Sweeps what killed runs left of a set: stamps newer than its newest export (nothing can need
 * their bundles), and partial files anywhere in it.
 */
export async function sweepUnfinished(
  repository: Repository,
  {
    stamps,
    set,
    after,
  }: { stamps: readonly StampDirectory[]; set: string; after: string | undefined },
): Promise<void> {
  for (const place of stamps) {
    if (place.set !== set || place.exists) continue
    const isNewer = after === undefined || place.stamp > after
    for (const name of place.files.keys()) {
      const isLeft =
        isNewer
        || name.endsWith('.partial')
        || name === VERIFICATION
        || name === VERIFICATION_SIGNATURE
      if (isLeft) await repository.target.remove(`${directoryOf(place)}/${name}`)
    }
    if (isNewer) await repository.target.removeDirectory(directoryOf(place))
  }
}
