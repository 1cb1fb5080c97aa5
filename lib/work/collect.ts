// Collecting a set: snapshot, rsync into an empty `.partial`, seal, publish, and only then let old
// ones go.
//
// Killed at any moment, it leaves a `.partial`, snapshots it wrote down, or a sealed collection;
// the next run sweeps or uses them (design invariants 5, 6, 7, 10). A partial is never written to
// again, for its files may be links to earlier collections: the next run links from it into a
// directory of its own, which costs as little. After a restart of the machine it is not trusted,
// for nothing made it durable. Throws SOURCE_ABSENT, SNAPSHOT_FAILED, STAGING_FULL, STAGING_FAILED,
// LOCKED, PROGRAM_… and INTERRUPTED.

import {
  closeSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  rmdirSync,
  statfsSync,
  writeFileSync,
} from 'node:fs'
import { BackupError, systemCode } from '../errors.ts'
import type { Configuration, SetConfiguration } from '../machine/config.ts'
import { bootId } from '../machine/lock.ts'
import { syncFilesystem } from '../machine/posix.ts'
import type { RsyncOutcome } from '../machine/rsync.ts'
import {
  isNestedSubvolume,
  onBtrfs,
  type SourceSnapshot,
  sweepBtrfsSnapshots,
  takeBtrfsSnapshots,
} from '../machine/source-snapshot/btrfs.ts'
import { isBelow } from '../machine/source-snapshot/mounts.ts'
import { formatSize } from '../model/amount.ts'
import type { CollectionHeader, MissingPath } from '../model/collection.ts'
import type { Entry } from '../model/entry.ts'
import {
  displayPath,
  isWithin,
  type RawPath,
  rawPathFromText,
  rawPathToBytes,
} from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import { planRetention } from '../model/retention.ts'
import { formatStamp, nextStamp, type Stamp } from '../model/stamp.ts'
import { type CollectStatistics, copySources } from './copy-sources.ts'
import { readAccountNames, sealTree } from './seal.ts'
import { inspectSources, realPath, type Source, type Sources } from './sources.ts'
import {
  acquireSetLock,
  type CollectionPlace,
  listPartials,
  listStamps,
  partialDirectory,
  prepareSet,
  publishCollection,
  removeCollection,
  removePartial,
  stagingError,
  stateRoot,
  surveyCollections,
  sweepSet,
} from './staging.ts'

export interface CollectOptions {
  readonly configuration: Configuration
  readonly set: SetConfiguration
  readonly report: Report
  /** Milliseconds since 1970: the moment that names the collection. */
  readonly nowMs: number
  readonly signal?: AbortSignal
  /** Says what rsync would do, and changes nothing. */
  readonly dryRun?: boolean
}

export interface CollectOutcome extends CollectStatistics {
  readonly set: string
  readonly stamp: Stamp
  readonly complete: boolean
  readonly missing: readonly MissingPath[]
  /** Entries, files and bytes of the whole collection; zero in a dry run. */
  readonly entries: number
  readonly files: number
  readonly bytes: number
  /** Collections that retention let go. */
  readonly removed: readonly Stamp[]
}

/** A run that is killed right now ends within moments; this one waits that long for it. */
const LOCK_WAIT_MS = 3_000

/**
 * How many interrupted runs files are linked from; what the others copied was linked into these.
 */
const MAX_PARTIALS_USED = 4

/** How many paths a notice names. */
const NAMED_PATHS = 5

/**
 * Collects one set. @throws BackupError as the header says; whatever it throws, earlier collections
 * are unharmed
 */
export async function collectSet(options: CollectOptions): Promise<CollectOutcome> {
  const {
    configuration: { staging },
    set,
    nowMs,
  } = options
  const sources = inspectSources({ texts: set.sources, staging: realStaging(staging) })
  if (sources.readable.length === 0) throw noSource(set, sources)
  if (options.dryRun === true) return await preview(options, sources)
  prepareSet({ staging, set: set.name })
  const description = `collecting ${set.name} since ${formatStamp(nowMs)}`
  const lock = acquireSetLock({ staging, set: set.name, description, waitMs: LOCK_WAIT_MS })
  try {
    return await new Collect(options, { sources, lockFd: lock.fd }).run()
  } finally {
    lock.release()
  }
}

/** One run under the set's lock. */
/** A clock that was wrong once dates everything from then on: that has to be seen. */
function warnOfFuture({ set, nowMs, report }: CollectOptions, newest: Stamp | undefined): void {
  if (newest === undefined || newest <= formatStamp(nowMs)) return
  report({
    kind: 'notice',
    level: 'warning',
    code: 'FROM_THE_FUTURE',
    message: `${set.name}: ${newest} is later than this machine's clock: check both`,
  })
}

class Collect {
  readonly #options: CollectOptions
  readonly #sources: Sources
  readonly #lockFd: number
  readonly #place: CollectionPlace
  /** Staging's real path. */
  readonly #staging: RawPath

  constructor(options: CollectOptions, { sources, lockFd }: { sources: Sources; lockFd: number }) {
    const {
      configuration: { staging },
      set,
      nowMs,
    } = options
    this.#options = options
    this.#sources = sources
    this.#lockFd = lockFd
    this.#staging = realStaging(staging)
    sweepSet({ staging, set: set.name })
    const taken = [
      ...listStamps({ staging, set: set.name }),
      ...listPartials({ staging, set: set.name }),
    ].sort()
    this.#place = { staging, set: set.name, stamp: nextStamp({ nowMs, newest: taken.at(-1) }) }
    warnOfFuture(options, taken.at(-1))
  }

  async run(): Promise<CollectOutcome> {
    await this.#sweepSnapshots()
    const partials = this.#usablePartials()
    const snapshot = await this.#takeSnapshot()
    try {
      return await this.#copyAndPublish({ partials, snapshot })
    } finally {
      await this.#release(snapshot)
    }
  }

  async #copyAndPublish({
    partials,
    snapshot,
  }: {
    partials: readonly Stamp[]
    snapshot: SourceSnapshot | undefined
  }): Promise<CollectOutcome> {
    const { report, set } = this.#options
    const { staging, stamp } = this.#place
    report({ kind: 'phase', name: `collecting ${set.name}` })
    const { outcome, statistics } = await this.#copy({ partials, view: snapshot })
    report({ kind: 'phase', name: `sealing ${set.name}` })
    const entries = this.#seal()
    const missing = allMissing([
      ...this.#sources.missing,
      ...outcome.missing,
      ...withoutSlash(snapshot?.unseen ?? []),
      ...nestedSubvolumes(entries, snapshot),
    ])
    const complete = missing.length === 0
    const files = entries.filter(({ type }) => type === 'file')
    const bytes = files.reduce((sum, { size = 0 }) => sum + size, 0)
    const sources = this.#sources.readable.map(({ given }) => ({
      path: given.replace(/^\/+/, ''),
      snapshot: snapshot?.covered.has(given) === true ? ('btrfs' as const) : ('none' as const),
      time: formatStamp(this.#options.nowMs),
    }))
    const header: CollectionHeader = {
      set: set.name,
      stamp,
      complete,
      missing,
      sources,
      entries: entries.length,
      files: files.length,
      bytes,
    }
    publishCollection({ staging, header, entries })
    this.#removePartials()
    const removed = complete
      ? applyRetention({ staging, set: set.name, keep: set.retention.local })
      : []
    this.#tellVanished(outcome.vanished)
    return {
      set: set.name,
      stamp,
      complete,
      missing,
      entries: entries.length,
      files: files.length,
      bytes,
      removed,
      ...statistics,
    }
  }

  async #copy({
    partials,
    view,
  }: {
    partials: readonly Stamp[]
    view: SourceSnapshot | undefined
  }): Promise<{ outcome: RsyncOutcome; statistics: CollectStatistics }> {
    const target = partialDirectory(this.#place)
    const bases = linkBases(this.#place)
    const used = partials
      .slice(-MAX_PARTIALS_USED)
      .reverse()
      .map((stamp) => partialDirectory({ ...this.#place, stamp }))
    try {
      mkdirSync(rawPathToBytes(target), { mode: 0o700 })
    } catch (error) {
      throw stagingError({ error, staging: this.#place.staging, doing: 'written' })
    }
    try {
      const copied = await copySources({
        set: this.#options.set,
        report: this.#options.report,
        signal: this.#options.signal,
        dryRun: false,
        sources: this.#sources.readable,
        view,
        target,
        places: ownPlaces(this.#options.configuration),
        linkDestinations: [...bases, ...used],
        lockFd: this.#lockFd,
      })
      if (copied.outcome.targetFull) throw this.#full()
      this.#sync()
      return copied
    } catch (error) {
      removeIfEmpty(target)
      throw error
    }
  }

  /** Everything that is in the tree is on the medium before a catalog says that it is there. */
  #sync(): void {
    try {
      const fd = openSync(rawPathToBytes(partialDirectory(this.#place)), 'r')
      try {
        syncFilesystem(fd)
      } finally {
        closeSync(fd)
      }
    } catch (error) {
      throw stagingError({ error, staging: this.#place.staging, doing: 'written' })
    }
  }

  #seal(): Entry[] {
    try {
      return sealTree({ directory: partialDirectory(this.#place), names: readAccountNames() })
    } catch (error) {
      throw stagingError({ error, staging: this.#place.staging, doing: 'read' })
    }
  }

  /**
   * Interrupted runs of this boot: what they copied need not be copied again. Others were never
   * made durable.
   */
  #usablePartials(): readonly Stamp[] {
    const { staging, set } = this.#place
    const marker = `${stateRoot(staging)}/${set}.boot`
    const known = readBootMarker(marker)
    const current = bootId()
    if (known !== current || current === 'unknown') this.#removePartials()
    try {
      writeFileSync(marker, current, { mode: 0o600 })
    } catch (error) {
      throw stagingError({ error, staging, doing: 'written' })
    }
    return listPartials({ staging, set })
  }

  #removePartials(): void {
    const { staging, set } = this.#place
    try {
      for (const stamp of listPartials({ staging, set })) removePartial({ staging, set, stamp })
    } catch (error) {
      throw stagingError({ error, staging, doing: 'written' })
    }
  }

  async #takeSnapshot(): Promise<SourceSnapshot | undefined> {
    const { set } = this.#options
    if (set.snapshot === 'none') return undefined
    const sources = this.#sources.readable.filter(({ real }) => onBtrfs(real))
    const others = this.#sources.readable.filter((source) => !sources.includes(source))
    const required = set.snapshot === 'required'
    if (required && others.length > 0) throw noSnapshot(set, others)
    let reason = 'not on btrfs'
    try {
      const { stamp } = this.#place
      const state = `${this.#staging}/.state`
      const snapshot =
        sources.length === 0
          ? undefined
          : await takeBtrfsSnapshots({ state, set: set.name, stamp, sources })
      if (others.length > 0) this.#tellNotAtomic(others, reason)
      return snapshot
    } catch (error) {
      if (required || !(error instanceof BackupError) || error.code !== 'SNAPSHOT_FAILED')
        throw error
      reason = error.message
    }
    this.#tellNotAtomic(this.#sources.readable, reason)
    return undefined
  }

  async #sweepSnapshots(): Promise<void> {
    await this.#orWarn(() =>
      sweepBtrfsSnapshots({ state: `${this.#staging}/.state`, set: this.#place.set }),
    )
  }

  async #release(snapshot: SourceSnapshot | undefined): Promise<void> {
    if (snapshot !== undefined) await this.#orWarn(snapshot.release)
  }

  /** A snapshot that stays a while longer is no reason to fail: the next run sweeps it. */
  async #orWarn(work: () => Promise<void>): Promise<void> {
    try {
      await work()
    } catch (error) {
      if (!(error instanceof BackupError)) throw error
      const message = `${this.#place.set}: ${error.message}`
      this.#options.report({ kind: 'notice', level: 'warning', code: error.code, message })
    }
  }

  #tellNotAtomic(sources: readonly Source[], reason: string): void {
    const paths = sources.map(({ given }) => given)
    this.#options.report({
      kind: 'notice',
      level: 'warning',
      code: 'NOT_ATOMIC',
      facts: { set: this.#place.set, reason },
      message: `${this.#place.set}: ${named(paths)}: read without a snapshot (${reason})`,
    })
  }

  #tellVanished(vanished: readonly RawPath[]): void {
    if (vanished.length === 0) return
    this.#options.report({
      kind: 'notice',
      level: 'warning',
      code: 'VANISHED',
      facts: { set: this.#place.set, count: vanished.length },
      message: `${this.#place.set}: vanished while collecting: ${named(vanished)}`,
    })
  }

  #full(): BackupError {
    const { staging, set } = this.#place
    const { bavail, bsize } = statfsSync(staging)
    const collections = listStamps({ staging, set }).length
    const message =
      `staging is full: ${formatSize(bavail * bsize)} free in "${staging}"; `
      + `the ${collections} collections of ${set} there are unharmed`
    return new BackupError('STAGING_FULL', message, {
      hint: 'free some space; the next run goes on from what was copied',
      retry: 'later',
      facts: { freeBytes: bavail * bsize, collections },
    })
  }
}

/** What rsync would do, by its own dry run. Nothing is made, locked or mounted. */
async function preview(options: CollectOptions, sources: Sources): Promise<CollectOutcome> {
  const {
    configuration: { staging },
    set,
    nowMs,
  } = options
  const place = {
    staging,
    set: set.name,
    stamp: nextStamp({ nowMs, newest: listStamps({ staging, set: set.name }).at(-1) }),
  }
  options.report({ kind: 'phase', name: `looking at ${set.name}` })
  const { outcome, statistics } = await copySources({
    set,
    report: options.report,
    signal: options.signal,
    dryRun: true,
    sources: sources.readable,
    view: undefined,
    target: partialDirectory(place),
    places: ownPlaces(options.configuration),
    linkDestinations: linkBases(place),
    lockFd: undefined,
  })
  const missing = allMissing([...sources.missing, ...outcome.missing])
  const none = { entries: 0, files: 0, bytes: 0, removed: [] }
  return {
    set: set.name,
    stamp: place.stamp,
    complete: missing.length === 0,
    missing,
    ...none,
    ...statistics,
  }
}

/** The newest collection, and the newest complete one where that is another, as RawPaths. */
function linkBases({ staging, set }: Omit<CollectionPlace, 'stamp'>): RawPath[] {
  const newest = listStamps({ staging, set }).at(-1)
  const complete = surveyCollections({ staging, set })
    .collections.filter((item) => item.complete)
    .at(-1)?.stamp
  const stamps = new Set([newest, complete].filter((stamp) => stamp !== undefined))
  const real = realStaging(staging)
  return [...stamps].map((stamp) => `${real}/${set}/${stamp}`)
}

/**
 * Lets collections go that the set does not keep: only complete knowledge deletes, so a damaged
 * catalog stays.
 */
function applyRetention({
  staging,
  set,
  keep,
}: {
  staging: string
  set: string
  keep: number
}): readonly Stamp[] {
  const { collections } = surveyCollections({ staging, set })
  const { remove } = planRetention({ items: collections, keep })
  for (const stamp of remove) removeCollection({ staging, set, stamp })
  return remove
}

/** Directories that came out of a snapshot empty because a subvolume of its own is there. */
function nestedSubvolumes(
  entries: readonly Entry[],
  snapshot: SourceSnapshot | undefined,
): MissingPath[] {
  if (snapshot === undefined) return []
  const covered = [...snapshot.covered]
  const isEmpty = (entry: Entry, next: Entry | undefined): boolean => {
    return (
      entry.type === 'directory'
      && (next === undefined || !isWithin({ path: next.path, directory: entry.path }))
    )
  }
  const candidates = entries.filter((entry, index) => {
    return (
      isEmpty(entry, entries[index + 1])
      && covered.some((path) => isBelow({ path: `/${entry.path}`, directory: path }))
    )
  })
  const why =
    'a btrfs subvolume of its own, which is not in the snapshot: add it as a source, or exclude it'
  return candidates
    .filter(({ path }) => isNestedSubvolume(`${snapshot.view}/${path}`))
    .map(({ path }) => ({ path, why }))
}

function allMissing(missing: readonly MissingPath[]): MissingPath[] {
  const unique = new Map<RawPath, MissingPath>()
  for (const item of missing) if (!unique.has(item.path)) unique.set(item.path, item)
  return [...unique.values()]
}

function withoutSlash(missing: readonly MissingPath[]): MissingPath[] {
  return missing.map(({ path, why }) => ({ path: path.replace(/^\/+/, ''), why }))
}

/** Staging and targets: what this program writes is never collected, wherever a source holds it. */
function ownPlaces({ staging, targets }: Configuration): readonly RawPath[] {
  return [realStaging(staging), ...targets.map(({ path }) => realOrGiven(path))]
}

function realOrGiven(path: string): RawPath {
  try {
    return realPath(rawPathFromText(path))
  } catch {
    // Not there, so there is nothing of it to leave out.
    return rawPathFromText(path)
  }
}

/** Staging's real path, or the configured one as long as it is not there. */
function realStaging(staging: string): RawPath {
  try {
    return realPath(rawPathFromText(staging))
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return rawPathFromText(staging)
    throw stagingError({ error, staging, doing: 'read' })
  }
}

function readBootMarker(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return undefined
  }
}

function removeIfEmpty(directory: RawPath): void {
  if (readdirSync(rawPathToBytes(directory)).length === 0) rmdirSync(rawPathToBytes(directory))
}

function named(paths: readonly RawPath[]): string {
  const shown = paths.slice(0, NAMED_PATHS).map(displayPath).join(', ')
  const more = paths.length - NAMED_PATHS
  return more > 0 ? `${shown} and ${more} more` : shown
}

function noSource(set: SetConfiguration, { missing }: Sources): BackupError {
  const list = missing.map(({ path, why }) => `/${displayPath(path)} (${why})`).join(', ')
  const hint = 'check the sources in the configuration; earlier collections are unharmed'
  return new BackupError('SOURCE_ABSENT', `no source of ${set.name} can be read: ${list}`, {
    hint,
    facts: { set: set.name },
  })
}

function noSnapshot(set: SetConfiguration, others: readonly Source[]): BackupError {
  const paths = others.map(({ given }) => given)
  return new BackupError(
    'SNAPSHOT_FAILED',
    `${set.name} requires a snapshot, and ${named(paths)}: not on btrfs`,
    { hint: 'set snapshot to auto or none for this set', facts: { set: set.name } },
  )
}
