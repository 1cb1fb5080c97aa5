// Lets old collections go from staging: after a good run by the rules, and earlier when space runs
// low.
//
// Upholds invariants 4 and 5: lib/model/retention.ts decides, locks are asked for right before each
// removal, and a set whose newest collection is suspect loses nothing, nor for space one whose last
// run was not good. Only complete knowledge
// deletes, so a collection whose catalog is damaged stays. Whoever calls holds the set's lock.
// prune.ts does the same for exports. Throws STAGING_FAILED, and MARKS_DAMAGED where the locks
// cannot be read and the caller has to know.

import { closeSync, openSync, statfsSync } from 'node:fs'
import { BackupError } from '../errors.ts'
import type { AmountFree, SetConfiguration } from '../machine/config.ts'
import { syncFilesystem } from '../machine/posix.ts'
import { runProgram } from '../machine/shell.ts'
import { isSubvolume } from '../machine/subvolume.ts'
import { formatSize } from '../model/amount.ts'
import { isFrozen } from '../model/collection.ts'
import { rawPathFromText } from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import { type Generation, type RetentionPlan, planRetention } from '../model/retention.ts'
import type { Stamp } from '../model/stamp.ts'
import { outcomeOf, readHistory, type RunRecord } from './history.ts'
import { lockedStamps, type Marked } from './marks.ts'
import {
  acquireSetLock,
  collectionDirectory,
  type CollectionInfo,
  listPartials,
  removeCollection,
  type SetPlace,
  stagingError,
  surveyCollections,
} from './staging.ts'

/** The parts of a set's configuration that say what stays. */
export type RetainedSet = Pick<SetConfiguration, 'name' | 'retention'>

export interface LocalPlan {
  readonly collections: readonly CollectionInfo[]
  /** Their catalogs cannot be read: they stay. */
  readonly damaged: readonly Stamp[]
  readonly items: readonly Generation[]
  readonly plan: RetentionPlan
}

/** Which collections of a set would go. @throws BackupError MARKS_DAMAGED, STAGING_FAILED */
export function planLocalPruning({
  staging,
  set: { name, retention },
}: {
  readonly staging: string
  readonly set: RetainedSet
}): LocalPlan {
  const place = { staging, set: name }
  const { collections, damaged } = surveyCollections(place)
  const items = collections.map(generationOf)
  const locked = lockedStamps(place)
  const plan = planRetention({ items, keep: retention.local, rules: retention.keep, locked })
  return { collections, damaged, items, plan }
}

/**
 * Removes the collections that a set does not keep; none, with a warning, where the locks cannot be
 * read. `only` narrows it to what somebody was shown. @returns what it removed, oldest first
 */
export function pruneLocal({
  staging,
  set,
  report,
  only,
}: {
  readonly staging: string
  readonly set: RetainedSet
  readonly report: Report
  readonly only?: ReadonlySet<Stamp>
}): readonly Stamp[] {
  return unlessFrozen(set.name, report, () => {
    const { remove } = planLocalPruning({ staging, set }).plan
    const place = { staging, set: set.name }
    return remove.filter((stamp) => (only?.has(stamp) ?? true) && removeUnlocked(place, stamp))
  })
}

/** The suspect collection because of which nothing of the set may go anywhere. */
export function frozenBy(place: SetPlace): Stamp | undefined {
  const items = surveyCollections(place).collections.map(generationOf)
  return planRetention({ items, keep: 1, rules: {}, locked: new Set() }).frozenBy
}

export interface Space {
  readonly freeBytes: number
  readonly totalBytes: number
}

export interface SpaceOutcome {
  readonly removed: readonly Marked[]
  /** Whether as much is free as is wanted. */
  readonly enough: boolean
  readonly freeBytes: number
}

/**
 * Warns when staging's filesystem has less free space than `minFree`. Where it `mayRemove`, which
 * is after a good collection only, it then removes, oldest first across the sets, collections that
 * only the count holds, until there is enough. `heldSet` is the one whose lock the caller has and
 * that was collected just now; one that another run has is left alone, and so is every other whose
 * last run was not good: what that left may be what fills the disk. `readSpace` is for tests.
 * @throws BackupError STAGING_FAILED
 */
export async function pruneForSpace({
  staging,
  sets,
  minFree,
  report,
  mayRemove,
  heldSet,
  readSpace = spaceOf,
}: {
  readonly staging: string
  readonly sets: readonly RetainedSet[]
  readonly minFree: AmountFree | undefined
  readonly report: Report
  readonly mayRemove: boolean
  readonly heldSet: string | undefined
  readonly readSpace?: (staging: string) => Space
}): Promise<SpaceOutcome> {
  const isEnough = ({ freeBytes, totalBytes }: Space) => {
    return freeBytes >= wantedBytes(minFree, totalBytes)
  }
  let space = readSpace(staging)
  if (isEnough(space)) return { removed: [], enough: true, freeBytes: space.freeBytes }
  tellLow(space, { minFree, report, staging, mayRemove })
  if (!mayRemove) return { removed: [], enough: false, freeBytes: space.freeBytes }
  const removed: Marked[] = []
  const history = readHistory(staging)
  const candidates = sets
    .filter(({ name }) => name === heldSet || ranWell({ staging, set: name }, history))
    .flatMap((set) => earlyRemovals({ staging, set, report }))
    .sort((a, b) => (a.stamp < b.stamp ? -1 : 1))
  for (const { set, stamp } of candidates) {
    const tree = rawPathFromText(collectionDirectory({ staging, set, stamp }))
    const wasSubvolume = isSubvolume(tree)
    const remove = () => removeUnlocked({ staging, set }, stamp)
    if (!holdingSet({ staging, set, heldSet }, remove)) continue
    removed.push({ set, stamp })
    report({
      kind: 'notice',
      level: 'warning',
      code: 'LOW_SPACE',
      message: `${set}: ${stamp} removed early, for space`,
      facts: { set, stamp },
    })
    // Whoever cannot see what a removal freed must not go on removing.
    if (wasSubvolume && !(await subvolumesGone(staging))) break
    space = readSpace(staging)
    if (isEnough(space)) break
  }
  return { removed, enough: isEnough(space), freeBytes: space.freeBytes }
}

/**
 * Whether the last run of a set is known to have been good, or was accepted since. One that was
 * killed is not in the history, and leaves a partial.
 */
function ranWell(place: SetPlace, history: readonly RunRecord[]): boolean {
  const last = history.findLast(({ phase, set }) => set === place.set && phase !== 'export')
  if (last === undefined || listPartials(place).length > 0) return false
  const made = surveyCollections(place).collections.find(({ stamp }) => stamp === last.stamp)
  return (made === undefined ? last.outcome : outcomeOf(made)) === 'good'
}

/** What the rules and locks do not hold when the count holds only the newest complete one. */
function earlyRemovals({
  staging,
  set: { name, retention },
  report,
}: {
  readonly staging: string
  readonly set: RetainedSet
  readonly report: Report
}): readonly Marked[] {
  return unlessFrozen(name, report, () => {
    const set = { name, retention: { ...retention, local: 1 } }
    return planLocalPruning({ staging, set }).plan.remove
  }).map((stamp) => ({ set: name, stamp }))
}

/** A file of locks that cannot be read may name any collection, so all stay. */
function unlessFrozen(set: string, report: Report, plan: () => readonly Stamp[]): readonly Stamp[] {
  try {
    return plan()
  } catch (error) {
    if (!(error instanceof BackupError) || error.code !== 'MARKS_DAMAGED') throw error
    const message = `${set}: no collection is removed: ${error.message}`
    report({ kind: 'notice', level: 'warning', code: 'RETENTION_FROZEN', message })
    return []
  }
}

/** Whether it removed it; what was locked since it was planned stays. */
function removeUnlocked(place: SetPlace, stamp: Stamp): boolean {
  if (lockedStamps(place).has(stamp)) return false
  removeCollection({ ...place, stamp })
  return true
}

/** False where another run holds the set. */
function holdingSet(
  { staging, set, heldSet }: SetPlace & { readonly heldSet: string | undefined },
  remove: () => boolean,
): boolean {
  if (set === heldSet) return remove()
  try {
    const lock = acquireSetLock({ staging, set, description: 'freeing space', waitMs: 0 })
    try {
      return remove()
    } finally {
      lock.release()
    }
  } catch (error) {
    if (error instanceof BackupError && error.code === 'LOCKED') return false
    throw error
  }
}

/** What retention has to know; a collection that was accepted as it is counts as complete. */
function generationOf(header: CollectionInfo): Generation {
  const { stamp, complete, accepted } = header
  return { stamp, complete: complete || accepted !== undefined, suspect: isFrozen(header) }
}

function wantedBytes(minFree: AmountFree | undefined, totalBytes: number): number {
  if (minFree === undefined) return 0
  return 'bytes' in minFree ? minFree.bytes : minFree.share * totalBytes
}

function tellLow(
  { freeBytes, totalBytes }: Space,
  {
    minFree,
    report,
    staging,
    mayRemove,
  }: {
    readonly minFree: AmountFree | undefined
    readonly report: Report
    readonly staging: string
    readonly mayRemove: boolean
  },
): void {
  const wanted = wantedBytes(minFree, totalBytes)
  const what = mayRemove
    ? 'collections that only the count holds go early, oldest first'
    : 'collections go early only once a good one is published'
  report({
    kind: 'notice',
    level: 'warning',
    code: 'LOW_SPACE',
    message:
      `staging has ${formatSize(freeBytes)} free, and min_free asks for ${formatSize(wanted)}: `
      + what,
    facts: { staging, freeBytes, wantedBytes: wanted },
  })
}

/** The kernel's cleaner wakes up every 30 seconds, and a large subvolume takes it a while. */
const CLEANER_TIMEOUT_MS = 5 * 60_000

/** Waits until btrfs has given the space of deleted subvolumes back; false where nobody knows. */
async function subvolumesGone(staging: string): Promise<boolean> {
  try {
    const args = ['subvolume', 'sync', '--', staging]
    const call = { program: 'btrfs', args, changes: false, timeoutMs: CLEANER_TIMEOUT_MS }
    return (await runProgram(call)).exitCode === 0
  } catch (error) {
    if (error instanceof BackupError && error.code.startsWith('PROGRAM_')) return false
    throw error
  }
}

/** Written out first: before that some filesystems still count what was removed. */
function spaceOf(staging: string): Space {
  try {
    const fd = openSync(staging, 'r')
    try {
      syncFilesystem(fd)
    } finally {
      closeSync(fd)
    }
    const { bavail, blocks, bsize } = statfsSync(staging)
    return { freeBytes: bavail * bsize, totalBytes: blocks * bsize }
  } catch (error) {
    throw stagingError({ error, staging, doing: 'read' })
  }
}
