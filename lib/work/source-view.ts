// Through what a collection reads its sources: a source snapshot where there is one, as the set's
// policy wants, else the live filesystem.
//
// collect.ts opens a view before rsync, asks what was read without a snapshot after sealing, and
// closes it. `required` fails before anything is copied, `auto` says at every run what is not
// atomic, `none` is silent. A snapshot that stays a while longer is no reason to fail: the next run
// sweeps it. Throws SNAPSHOT_FAILED and INTERRUPTED.

import { BackupError } from '../errors.ts'
import type { SetConfiguration } from '../machine/config.ts'
import { isNestedSubvolume } from '../machine/source-snapshot/btrfs.ts'
import { isBelow } from '../machine/source-snapshot/mounts.ts'
import {
  type KeptSnapshot,
  type SourceSnapshot,
  sweepSourceSnapshots,
  takeSourceSnapshots,
} from '../machine/source-snapshot/source-snapshot.ts'
import type { MissingPath } from '../model/collection.ts'
import type { Entry } from '../model/entry.ts'
import { isWithin, listedPaths, type RawPath } from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import type { Stamp } from '../model/stamp.ts'
import type { Source } from './sources.ts'

export interface ViewRequest {
  /** Staging's `.state`, a real path. */
  readonly state: RawPath
  readonly set: SetConfiguration
  readonly stamp: Stamp
  readonly sources: readonly Source[]
  readonly report: Report
  readonly now: () => number
  /** The snapshot of an earlier run that may have been kept. */
  readonly since: KeptSnapshot | undefined
}

/** Removes what a killed run of the set left, and takes the snapshots of this one. */
export async function openSourceView(request: ViewRequest): Promise<SourceSnapshot | undefined> {
  const { state, set, stamp, sources, now, since } = request
  await orWarn(request, () => sweepSourceSnapshots({ state, set: set.name, since }))
  if (set.snapshot === 'none') return undefined
  const { oneFilesystem } = set.filters
  const of = { state, set: set.name, stamp, sources }
  const snapshot = await takeSourceSnapshots({ ...of, now, oneFilesystem, since })
  const lacking = snapshot.notCovered.filter(({ path }) => {
    return sources.some(({ given }) => given === path)
  })
  if (set.snapshot === 'required' && lacking.length > 0) {
    await closeSourceView(request, snapshot)
    throw noSnapshot(set, lacking)
  }
  tellNotAtomic(request, lacking)
  return snapshot
}

export async function closeSourceView(
  request: Pick<ViewRequest, 'set' | 'report'>,
  snapshot: SourceSnapshot | undefined,
): Promise<void> {
  if (snapshot !== undefined) await orWarn(request, snapshot.release)
}

async function orWarn(
  { set, report }: Pick<ViewRequest, 'set' | 'report'>,
  work: () => Promise<void>,
): Promise<void> {
  try {
    await work()
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    const message = `${set.name}: ${error.message}`
    report({ kind: 'notice', level: 'warning', code: error.code, message })
  }
}

/** Says which paths were read without a snapshot: one notice for each reason. */
export function tellNotAtomic(
  { set, report }: Pick<ViewRequest, 'set' | 'report'>,
  lacking: readonly MissingPath[],
): void {
  for (const reason of new Set(lacking.map(({ why }) => why))) {
    const paths = lacking.filter(({ why }) => why === reason).map(({ path }) => path)
    report({
      kind: 'notice',
      level: 'warning',
      code: 'NOT_ATOMIC',
      facts: { set: set.name, reason },
      message: `${set.name}: ${listedPaths(paths)}: read without a snapshot (${reason})`,
    })
  }
}

/** Directories that came out of a snapshot empty because a subvolume of its own is there. */
export function nestedSubvolumes(
  entries: readonly Entry[],
  snapshot: SourceSnapshot | undefined,
): MissingPath[] {
  const covered = [...(snapshot?.covered ?? [])]
  const missing: MissingPath[] = []
  for (const [index, { path, type }] of entries.entries()) {
    const next = entries[index + 1]
    const hasChildren = next !== undefined && isWithin({ path: next.path, directory: path })
    if (type !== 'directory' || hasChildren) continue
    const holder = covered.find(([source]) => isBelow({ path: `/${path}`, directory: source }))
    if (holder === undefined) continue
    if (!isNestedSubvolume({ shown: `${holder[1].root}/${path}`, live: `/${path}` })) continue
    const reason = snapshot?.notCovered.find((one) => one.path === `/${path}`)?.why
    const why = reason ?? 'add it as a source, or exclude it'
    const what = 'a btrfs subvolume of its own, which is not in the snapshot'
    missing.push({ path, why: `${what}: ${why}` })
  }
  return missing
}

/** Nothing vanishes from a snapshot: what does was lost with it. */
export function vanishedFromSnapshot(
  vanished: readonly RawPath[],
  snapshot: SourceSnapshot | undefined,
): MissingPath[] {
  const isIn = (path: RawPath, directories: Iterable<RawPath>): boolean => {
    return [...directories].some((directory) => isBelow({ path: `/${path}`, directory }))
  }
  const live = [...(snapshot?.notCovered ?? []), ...(snapshot?.unseen ?? [])].map((one) => one.path)
  return vanished
    .filter((path) => isIn(path, snapshot?.covered.keys() ?? []) && !isIn(path, live))
    .map((path) => ({ path, why: 'it vanished from the source snapshot' }))
}

/** What lies below sources with a snapshot, and was read without one: mounts that hold anything. */
export function liveBelow(
  entries: readonly Entry[],
  snapshot: SourceSnapshot,
): readonly MissingPath[] {
  const isBelowSource = (path: RawPath): boolean => {
    return [...snapshot.covered.keys()].some((source) => isBelow({ path, directory: source }))
  }
  return snapshot.notCovered.filter((live) => {
    if (snapshot.covered.has(live.path) || !isBelowSource(live.path)) return false
    const directory = live.path.replace(/^\/+/, '')
    return entries.some(({ path }) => path !== directory && isWithin({ path, directory }))
  })
}

function noSnapshot(set: SetConfiguration, lacking: readonly MissingPath[]): BackupError {
  const reasons = new Set(lacking.map(({ why }) => why))
  const paths = listedPaths(lacking.map(({ path }) => path))
  return new BackupError(
    'SNAPSHOT_FAILED',
    `${set.name} requires a snapshot, and there is none of ${paths}: ${[...reasons].join('; ')}`,
    { hint: 'set snapshot to auto or none for this set', facts: { set: set.name } },
  )
}
