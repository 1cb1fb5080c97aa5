// The copying of a collection: rsync over all sources at once, with its items counted and reported.
//
// collect.ts decides from where (the filesystem or a view of snapshots) and into what; this turns
// sources into rsync's arguments and rsync's items into progress. Staging itself is always left
// out. Throws what runRsync throws.

import { lstatSync } from 'node:fs'
import type { SetConfiguration } from '../machine/config.ts'
import { setTimes } from '../machine/posix.ts'
import { type RsyncItem, type RsyncOutcome, type RsyncSource, runRsync } from '../machine/rsync.ts'
import type { SourceSnapshot } from '../machine/source-snapshot/source-snapshot.ts'
import { rsyncExclusions } from '../model/filter.ts'
import { displayPath, type RawPath, rawPathToBytes } from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import type { LeftOutRule } from '../model/rsync-pattern.ts'
import { hasFilters, walkFilters } from './filter-walk.ts'
import { type Source, placesWithin } from './sources.ts'

export interface CollectStatistics {
  readonly copiedFiles: number
  readonly copiedBytes: number
  /** Unchanged since an earlier collection, which costs nothing but a link. */
  readonly linkedFiles: number
  readonly linkedBytes: number
}

export interface Copied {
  readonly outcome: RsyncOutcome
  readonly statistics: CollectStatistics
  /** Files of the same size and time whose bytes differ; known with `compareContent` only. */
  readonly contentDiffers: readonly RawPath[]
}

export interface CopyOptions {
  readonly set: SetConfiguration
  readonly sources: readonly Source[]
  readonly view: SourceSnapshot | undefined
  /** Empty, or not there in a dry run. */
  readonly target: RawPath
  /** Our own places, real paths: they are left out. */
  readonly places: readonly RawPath[]
  readonly linkDestinations: readonly RawPath[]
  /** The target is a writable snapshot of an earlier collection. */
  readonly intoExisting: boolean
  /** With `intoExisting`: only these, where it is known what changed. */
  readonly filesFrom?: readonly RawPath[] | undefined
  /** Reads every file on both sides. */
  readonly compareContent: boolean
  /** The open file that carries the lock; rsync holds it as long as it runs. */
  readonly lockFd: number | undefined
  readonly dryRun: boolean
  readonly report: Report
  readonly signal: AbortSignal | undefined
}

/**
 * Runs rsync: once for everything, and once more for sources that are links to files, which only
 * then are followed.
 */
export async function copySources(options: CopyOptions): Promise<Copied> {
  const { set, sources, view, target, places, linkDestinations, lockFd, dryRun, signal } = options
  const { report } = options
  const counter = itemCounter(options)
  const leftOut = placesWithin({ sources, places })
  const walked = walkSources(options, leftOut)
  const outcomes: RsyncOutcome[] = []
  for (const followLinks of [false, true]) {
    const these = sources.filter(({ isLinkToFile }) => isLinkToFile === followLinks)
    if (these.length === 0) continue
    const call = {
      sources: these.map((source) => rsyncSource(source, view)),
      exclusions: [...rsyncExclusions(set.filters.globs), ...set.exclusions],
      leftOut,
      leftOutPaths: walked,
      exactTimes: dryRun || keepsNanoseconds(target),
      compareContent: options.compareContent,
      intoExisting: options.intoExisting,
      ...(options.filesFrom && { filesFrom: options.filesFrom }),
      bandwidthBytesPerSecond: set.bandwidthBytesPerSecond,
      nice: set.nice,
      ionice: set.ionice,
      onItem: counter.take,
      onNote: (message: string) => report({ kind: 'notice', level: 'info', code: 'NOTE', message }),
      ...(lockFd === undefined ? {} : { inherit: lockFd }),
    }
    outcomes.push(
      await runRsync({ ...call, linkDestinations, target, followLinks, dryRun, signal }),
    )
  }
  const outcome = {
    missing: outcomes.flatMap(({ missing }) => missing),
    vanished: outcomes.flatMap(({ vanished }) => vanished),
    targetFull: outcomes.some(({ targetFull }) => targetFull),
  }
  return { outcome, statistics: counter.statistics(), contentDiffers: counter.contentDiffers }
}

/** What the filters leave out that rsync has no patterns for. */
function walkSources(
  { set, sources, view, report }: CopyOptions,
  leftOut: readonly RawPath[],
): readonly LeftOutRule[] {
  if (!hasFilters(set.filters)) return []
  const walked = walkFilters({
    sources: sources.map((source) => rsyncSource(source, view)),
    filters: set.filters,
    exclusions: set.exclusions,
    leftOut,
  })
  for (const { path, why } of walked.unreadable) {
    const message = `${set.name}: ${displayPath(path)}: ${why}: filters were not looked at there`
    report({ kind: 'notice', level: 'warning', code: 'FILTER_UNREAD', message })
  }
  return walked.leftOut
}

function rsyncSource(
  { given, isDirectory }: Source,
  view: SourceSnapshot | undefined,
): RsyncSource {
  const root = view?.covered.get(given)?.root ?? ''
  return { root, path: given, isDirectory }
}

/**
 * Whether a time of our own choice comes back from the filesystem whole: on ext4 with small inodes
 * it does not.
 */
function keepsNanoseconds(directory: RawPath): boolean {
  const mtimeNs = 1_000_000_000_123_456_789n
  setTimes(directory, { mtimeNs })
  return lstatSync(rawPathToBytes(directory), { bigint: true }).mtimeNs === mtimeNs
}

function itemCounter({ report, set, dryRun }: CopyOptions): {
  readonly take: (item: RsyncItem) => void
  readonly statistics: () => CollectStatistics
  readonly contentDiffers: readonly RawPath[]
} {
  const contentDiffers: RawPath[] = []
  const phase = `${dryRun ? 'looking at' : 'collecting'} ${set.name}`
  const copied = { files: 0, bytes: 0 }
  const linked = { files: 0, bytes: 0 }
  const take = (item: RsyncItem): void => {
    if (!item.isFile) return
    if (item.contentDiffers) contentDiffers.push(item.path)
    const count = item.copied ? copied : linked
    count.files += 1
    count.bytes += item.sizeBytes
    report({
      kind: 'progress',
      phase,
      filesDone: copied.files + linked.files,
      bytesDone: copied.bytes + linked.bytes,
      bytesSkipped: linked.bytes,
      bytesWritten: copied.bytes,
      current: item.path,
    })
  }
  const statistics = (): CollectStatistics => ({
    copiedFiles: copied.files,
    copiedBytes: copied.bytes,
    linkedFiles: linked.files,
    linkedBytes: linked.bytes,
  })
  return { take, statistics, contentDiffers }
}
