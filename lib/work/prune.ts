// Lets old exports go, and sweeps what killed runs left: the only code that deletes on a target.
//
// Upholds invariants 1, 4, 5 and 7: the manifest goes first; bundles go only when every remaining
// export's signed verification file was read and none needs them; a damaged one stops all deleting,
// and so does a damaged file of locks (marks.ts). What goes is planned as data, and carried out
// once. prune-local.ts does the same for staging. Nothing whose name is not ours is touched.

import { BackupError } from '../errors.ts'
import { exportName } from '../model/manifest.ts'
import type { Report } from '../model/report.ts'
import {
  type Generation,
  type KeepRules,
  type RetentionPlan,
  planRetention,
} from '../model/retention.ts'
import type { Stamp } from '../model/stamp.ts'
import { MANIFEST, VERIFICATION, VERIFICATION_SIGNATURE } from '../model/verification.ts'
import { lockedStamps } from './marks.ts'
import { frozenBy } from './prune-local.ts'
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
  /** Where the locks are kept. */
  readonly staging: string
  readonly machine: string
  readonly set: string
  /** How many complete exports stay. */
  readonly keep: number
  /** What stays besides. */
  readonly rules: KeepRules
  readonly publicKeys: readonly string[]
  /** Undefined where nobody knows: then it counts as incomplete, and stays longer. */
  readonly isComplete: (stamp: string) => boolean | undefined
  readonly report: Report
  /** Of what would go, only these: what somebody was shown and confirmed. */
  readonly only?: ReadonlySet<Stamp>
}

/** What would go from a repository, and why everything else stays. */
export interface PrunePlan {
  readonly items: readonly Generation[]
  readonly plan: RetentionPlan
  /** The exports that go: their manifests are removed first. */
  readonly exports: readonly StampDirectory[]
  /** Then what no remaining export of the machine needs, directory by directory. */
  readonly leftovers: readonly Leftover[]
  readonly freesBytes: number
}

interface Leftover {
  readonly directory: string
  readonly names: readonly string[]
  /** Whether nothing of the directory stays. */
  readonly isWhole: boolean
}

/**
 * The exports of a set that retention lets go, and the files that go with them. Removes nothing.
 * @throws BackupError where an export that stays cannot be checked, or the locks cannot be read
 */
export async function planPruning(
  repository: Repository,
  options: Omit<PruneOptions, 'report'>,
): Promise<PrunePlan> {
  const { staging, machine, set, keep, rules, publicKeys, isComplete, only } = options
  const stamps = await listStamps(repository, machine)
  const exports = exportsOf(stamps)
  const items = exports
    .filter((place) => place.set === set)
    .map(({ stamp }) => ({ stamp, complete: isComplete(stamp) }))
  const inStaging = { staging, set }
  const locked = lockedStamps(inStaging)
  const plan = planRetention({ items, keep, rules, locked, frozenBy: frozenBy(inStaging) })
  const remove = new Set(plan.remove.filter((stamp) => only?.has(stamp) ?? true))
  const goes = (place: StampDirectory) => place.set === set && remove.has(place.stamp)
  const needed = new Set<string>()
  for (const place of exports.filter((staying) => !goes(staying))) {
    const { bundles } = await readVerification(repository, place, publicKeys)
    for (const name of bundles.keys()) needed.add(name)
  }
  const isFrozen = plan.frozenBy !== undefined
  const leftovers = (isFrozen ? [] : stamps).map((place) => {
    return leftoverOf(place, { needed, goes: goes(place) })
  })
  const going = exports.filter(goes)
  const sizes = new Map(stamps.map((place) => [directoryOf(place), place.files]))
  const freesBytes = [
    ...going.map((place) => place.files.get(MANIFEST) ?? 0),
    ...leftovers.flatMap(({ directory, names }) =>
      names.map((name) => sizes.get(directory)?.get(name) ?? 0),
    ),
  ].reduce((sum, sizeBytes) => sum + sizeBytes, 0)
  return { items, plan, exports: going, leftovers, freesBytes }
}

function leftoverOf(
  place: StampDirectory,
  { needed, goes }: { readonly needed: ReadonlySet<string>; readonly goes: boolean },
): Leftover {
  const isWhole = goes || !place.exists
  const names = [...place.files.keys()].filter((name) => {
    const bundle = `${place.set}/${place.stamp}/${name.replace(/\.tar\.zst\.age$/, '')}`
    return !needed.has(bundle) && (isWhole || isBundle(name)) && name !== MANIFEST
  })
  return { directory: directoryOf(place), names, isWhole }
}

/**
 * Removes the exports of a set that retention does not keep, then every bundle that no export of
 * the machine needs. Removes nothing, with a warning, where it cannot be sure.
 * @throws BackupError TARGET_FAILED, TARGET_READ_ONLY; what is half deleted is finished by the next
 * run
 */
export async function pruneExports(
  repository: Repository,
  options: PruneOptions,
): Promise<PruneOutcome> {
  const { staging, set, report } = options
  const { target } = repository
  let plan: PrunePlan
  try {
    plan = await planPruning(repository, options)
    // Reading takes a while: whatever was locked meanwhile stays, with what it needs.
    const locked = lockedStamps({ staging, set })
    if (plan.exports.some(({ stamp }) => locked.has(stamp))) {
      plan = await planPruning(repository, options)
    }
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    const message = `nothing is removed from ${target.name}: ${error.message}`
    report({ kind: 'notice', level: 'warning', code: 'RETENTION_FROZEN', message })
    return { removedExports: [], removedBundles: 0, freedBytes: 0 }
  }
  for (const place of plan.exports) await target.remove(`${directoryOf(place)}/${MANIFEST}`)
  for (const { directory, names, isWhole } of plan.leftovers) {
    for (const name of names) await target.remove(`${directory}/${name}`)
    if (isWhole) await target.removeDirectory(directory)
  }
  return {
    removedExports: plan.exports.map(exportName),
    removedBundles: plan.leftovers.flatMap(({ names }) => names.filter(isBundle)).length,
    freedBytes: plan.freesBytes,
  }
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
