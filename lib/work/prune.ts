// Lets old exports go, and sweeps what killed runs left: the only code that deletes on a target.
//
// Upholds invariants 1, 4, 5 and 7: the manifest goes first; bundles go only when every remaining
// export's signed verification file was read and none needs them; a damaged one stops all deleting,
// and so does a damaged file of locks (marks.ts). What goes is planned as data, and carried out
// once; locks are asked for again before each manifest. prune-local.ts does the same for staging.
// Nothing whose name is not ours is touched.

import { BackupError } from '../errors.ts'
import { PARTIAL_SUFFIX } from '../machine/durable-file.ts'
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
  /** Undefined where nobody knows: then it stays. */
  readonly isComplete: (stamp: string) => boolean | undefined
  /** Those of which nobody knows may go as well: see planRetention. */
  readonly takeUnknown?: boolean
  readonly report: Report
  /** Called with the exports that go before the first of them does; throws to prevent it. */
  readonly beforeRemoving?: ((exports: readonly StampDirectory[]) => Promise<void>) | undefined
  /**
   * Directories without a manifest that are no older may belong to an export that somebody else
   * makes just now, and are left alone.
   */
  readonly spareSince?: Stamp | undefined
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
  readonly bytes: number
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
  const { staging, machine, set, keep, rules, publicKeys, isComplete, takeUnknown, only } = options
  const { spareSince } = options
  const stamps = await listStamps(repository, machine)
  const exports = exportsOf(stamps)
  const items = exports
    .filter((place) => place.set === set)
    .map(({ stamp }) => ({ stamp, complete: isComplete(stamp) }))
  const inStaging = { staging, set }
  const locked = lockedStamps(inStaging)
  const suspect = frozenBy(inStaging)
  const request = { items, keep, rules, locked, frozenBy: suspect }
  const plan = planRetention({ ...request, takeUnknown: takeUnknown === true })
  const remove = new Set(plan.remove.filter((stamp) => only?.has(stamp) ?? true))
  const goes = (place: StampDirectory) => place.set === set && remove.has(place.stamp)
  const staying = exports.filter((place) => !goes(place))
  const needed = await neededBy(repository, { exports: staying, publicKeys })
  const isFrozen = plan.frozenBy !== undefined
  const settled = stamps.filter(({ exists, stamp }) => {
    return exists || spareSince === undefined || stamp < spareSince
  })
  const leftovers = (isFrozen ? [] : settled).map((place) => {
    return leftoverOf(place, { needed, goes: goes(place) })
  })
  const going = exports.filter(goes)
  const freesBytes = freedBytes(going, leftovers)
  return { items, plan, exports: going, leftovers, freesBytes }
}

/** What the manifests of exports and what is left then take. */
function freedBytes(exports: readonly StampDirectory[], leftovers: readonly Leftover[]): number {
  const manifests = exports.map(({ files }) => files.get(MANIFEST) ?? 0)
  return sum([...manifests, ...leftovers.map(({ bytes }) => bytes)])
}

function leftoverOf(
  place: StampDirectory,
  { needed, goes }: { readonly needed: ReadonlySet<string>; readonly goes: boolean },
): Leftover {
  const isWhole = goes || !place.exists
  const names = [...place.files.keys()].filter((name) => {
    if (name === MANIFEST) return false
    // Parity stays and goes with what it belongs to.
    const file = name.replace(/\.par2$/, '')
    const bundle = `${place.set}/${place.stamp}/${bundleOf(file)}`
    return !needed.has(bundle) && (isWhole || isBundle(file) || name.endsWith(PARTIAL_SUFFIX))
  })
  const bytes = sum(names.map((name) => place.files.get(name) ?? 0))
  return { directory: directoryOf(place), names, bytes, isWhole }
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
  const nothing = { report, what: `nothing is removed from ${target.name}` }
  const noMore = { report, what: `nothing more is removed from ${target.name}` }
  const planned = await unlessUnknown(nothing, () => planPruning(repository, options))
  const removed: StampDirectory[] = []
  if (planned !== undefined) await options.beforeRemoving?.(planned.exports)
  for (const place of planned?.exports ?? []) {
    // Reading and removing take a while: whatever was locked meanwhile stays, with what it needs.
    const locked = await unlessUnknown(noMore, () => lockedStamps({ staging, set }))
    if (locked === undefined) break
    if (locked.has(place.stamp)) {
      const message = `${exportName(place)} stays on ${target.name}: it was locked just now`
      report({ kind: 'notice', level: 'info', code: 'LOCKED_MEANWHILE', message })
      continue
    }
    await target.remove(`${directoryOf(place)}/${MANIFEST}`)
    removed.push(place)
  }
  const isAsPlanned = removed.length === planned?.exports.length
  // What was removed has no manifest any more, so now it counts with what nothing needs.
  const replanned = { ...options, only: new Set<Stamp>() }
  const left = isAsPlanned
    ? planned
    : planned && (await unlessUnknown(noMore, () => planPruning(repository, replanned)))
  const leftovers = left?.leftovers ?? []
  for (const { directory, names, isWhole } of leftovers) {
    for (const name of names) await target.remove(`${directory}/${name}`)
    if (isWhole) await target.removeDirectory(directory)
  }
  return {
    removedExports: removed.map(exportName),
    removedBundles: leftovers.flatMap(({ names }) => names.filter(isBundle)).length,
    freedBytes: freedBytes(removed, leftovers),
  }
}

/** Undefined, with a warning, where it cannot be known what may go. */
async function unlessUnknown<T>(
  { report, what }: { readonly report: Report; readonly what: string },
  find: () => T | Promise<T>,
): Promise<T | undefined> {
  try {
    return await find()
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    const message = `${what}: ${error.message}`
    report({ kind: 'notice', level: 'warning', code: 'RETENTION_FROZEN', message })
    return undefined
  }
}

function sum(amounts: readonly number[]): number {
  return amounts.reduce((total, amount) => total + amount, 0)
}

function isBundle(name: string): boolean {
  return /^(data|catalog)-\d+\.tar\.zst\.age$/.test(name)
}

/**
 * Sweeps what killed runs left of a set: stamps newer than its newest export, and partial files
 * anywhere in it. What an export of another set needs stays: content is shared, and a manifest may
 * have been lost.
 * @returns the stamps with what they have then
 */
export async function sweepUnfinished(
  repository: Repository,
  {
    stamps,
    set,
    after,
    publicKeys,
    report,
    spare = new Set(),
  }: {
    stamps: readonly StampDirectory[]
    set: string
    after: string | undefined
    publicKeys: readonly string[]
    report: Report
    /** Bundles that are still of use: their paths. */
    spare?: ReadonlySet<string>
  },
): Promise<readonly StampDirectory[]> {
  // In a bucket nothing is deleted but by `backup prune`, which finds these too.
  if (repository.target.bucket !== undefined) return stamps
  const left = stamps.filter((place) => place.set === set && !place.exists)
  const isNewer = ({ stamp }: StampDirectory): boolean => after === undefined || stamp > after
  const hasBundles = left.some((place) => {
    return isNewer(place) && [...place.files.keys()].some(isBundle)
  })
  const message = `what killed runs left on ${repository.target.name} stays`
  const needed = hasBundles
    ? await unlessUnknown({ report, what: message }, async () => {
        return await neededBy(repository, { exports: exportsOf(stamps), publicKeys })
      })
    : new Set<string>()
  const isSwept = (place: StampDirectory, name: string): boolean => {
    const file = name.replace(/\.par2$/, '')
    const isSigned = name === VERIFICATION || name === VERIFICATION_SIGNATURE
    if (spare.has(`${directoryOf(place)}/${name}`)) return false
    if (name.endsWith(PARTIAL_SUFFIX) || isSigned) return true
    if (!isNewer(place)) return false
    const isUsed = needed?.has(`${place.set}/${place.stamp}/${bundleOf(file)}`) !== false
    return !isBundle(file) || !isUsed
  }
  const swept = new Map<StampDirectory, StampDirectory>()
  for (const place of left) {
    const going = [...place.files.keys()].filter((name) => isSwept(place, name))
    for (const name of going) await repository.target.remove(`${directoryOf(place)}/${name}`)
    if (isNewer(place)) await repository.target.removeDirectory(directoryOf(place))
    const files = [...place.files].filter(([name]) => !going.includes(name))
    swept.set(place, { ...place, files: new Map(files) })
  }
  return stamps.map((place) => swept.get(place) ?? place)
}

/** The bundles that some exports need, by their signed lists. */
async function neededBy(
  repository: Repository,
  of: { readonly exports: readonly StampDirectory[]; readonly publicKeys: readonly string[] },
): Promise<ReadonlySet<string>> {
  const needed = new Set<string>()
  for (const place of of.exports) {
    const { bundles } = await readVerification(repository, place, of.publicKeys)
    for (const name of bundles.keys()) needed.add(name)
  }
  return needed
}

function bundleOf(file: string): string {
  return file.replace(/\.tar\.zst\.age$/, '')
}
