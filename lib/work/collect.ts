// Collecting a set: snapshot, rsync into an empty `.partial`, seal, publish, and only then let old
// ones go.
//
// Killed at any moment, it leaves a `.partial`, snapshots it wrote down, or a sealed collection;
// the next run sweeps or uses them (design invariants 5, 6, 7, 10). A partial is never written to
// again, for its files may be links to earlier collections: the next run links from it into a
// directory of its own, which costs as little. After a restart of the machine it is not trusted,
// for nothing made it durable. Throws SOURCE_ABSENT, SNAPSHOT_FAILED, STAGING_FULL, STAGING_FAILED,
// LOCKED, PROGRAM_… and INTERRUPTED.

import { closeSync, openSync, readFileSync, readdirSync, statfsSync, writeFileSync } from 'node:fs'
import { BackupError } from '../errors.ts'
import { readAccountNames } from '../machine/accounts.ts'
import type { Configuration, SetConfiguration } from '../machine/config.ts'
import { bootId } from '../machine/lock.ts'
import { syncFilesystem } from '../machine/posix.ts'
import type { RsyncOutcome } from '../machine/rsync.ts'
import type { ChangeList } from '../machine/source-snapshot/btrfs-changes.ts'
import type { KeptSnapshot, SourceSnapshot } from '../machine/source-snapshot/source-snapshot.ts'
import { formatSize } from '../model/amount.ts'
import { type CollectionHeader, isFrozen, isGood, type MissingPath } from '../model/collection.ts'
import type { Entry } from '../model/entry.ts'
import {
  displayPath,
  listedPaths,
  type RawPath,
  rawPathFromText,
  rawPathToBytes,
} from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import { type Doubt, doubtsAbout } from '../model/sanity.ts'
import { formatStamp, isAhead, nextStamp, type Stamp } from '../model/stamp.ts'
import { type CollectStatistics, type Copied, copySources } from './copy-sources.ts'
import {
  clearNames,
  dropStale,
  prepareGeneration,
  type PreparedGeneration,
  removeGeneration,
  removeOutside,
  sealGeneration,
  type SourceOf,
  wronglyLinked,
} from './generation.ts'
import { hasFilters } from './filter-walk.ts'
import { pruneForSpace, pruneLocal } from './prune-local.ts'
import { sealChanges, sealTree } from './seal.ts'
import { readSourceFacts, trustedFacts } from './source-facts.ts'
import { readSourceMetadata, snapshotRoots } from './source-metadata.ts'
import {
  closeSourceView,
  liveBelow,
  nestedSubvolumes,
  openSourceView,
  tellNotAtomic,
  vanishedFromSnapshot,
} from './source-view.ts'
import { inspectSources, ownPlaces, realStaging, type Sources } from './sources.ts'
import { recordSystem } from './system-record.ts'
import {
  acquireSetLock,
  type CollectionPlace,
  listPartials,
  listStamps,
  listTreesWithoutCatalog,
  partialDirectory,
  prepareSet,
  publishCollection,
  readCollection,
  removePartial,
  stagingError,
  stateRoot,
  surveyCollections,
  sweepSet,
} from './staging.ts'
import { recordVersions } from './versions.ts'

export interface CollectOptions {
  readonly configuration: Configuration
  readonly set: SetConfiguration
  readonly report: Report
  /** Milliseconds since 1970: the moment that names the collection. */
  readonly nowMs: number
  readonly signal?: AbortSignal
  /** Says what rsync would do, and changes nothing. */
  readonly dryRun?: boolean
  /** Compares content, not only size and time. */
  readonly full?: boolean
}

export interface CollectOutcome extends CollectStatistics {
  readonly set: string
  readonly stamp: Stamp
  readonly complete: boolean
  readonly missing: readonly MissingPath[]
  /** Why a source is distrusted: then nothing of the set is exported or let go. */
  readonly suspect: readonly Doubt[]
  /**
   * Files whose bytes differ though size and time are the same: edited with the time put back, or
   * decayed in staging. Known of a full run only.
   */
  readonly contentDiffers: readonly RawPath[]
  /** Whether the source told what changed, so that nothing else was looked at. */
  readonly onlyChanges: boolean
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
  const sources = await findSources(options)
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

/** What there is of the sources; a built-in set's records of this machine are made before. */
async function findSources(options: CollectOptions): Promise<Sources> {
  const { configuration, set, report, signal, dryRun } = options
  const { records } = set
  const lacking =
    records === undefined || dryRun === true
      ? []
      : await recordSystem({ configuration, set, records, report, signal })
  const staging = realStaging(configuration.staging)
  const { readable, missing } = inspectSources({ texts: set.sources, staging })
  if (dryRun !== true || records === undefined) {
    return { readable, missing: [...missing, ...lacking] }
  }
  // A run that is no dry run makes them.
  const path = rawPathFromText(records).replace(/^\/+/, '')
  const others = missing.filter((one) => one.path !== path)
  if (readable.length > 0) return { readable, missing: others }
  return { readable, missing: [...others, { path, why: 'the first collection makes it' }] }
}

/** A clock that was wrong once dates everything from then on: that has to be seen. */
function warnOfFuture({ set, nowMs, report }: CollectOptions, newest: Stamp | undefined): void {
  if (newest === undefined || !isAhead(newest, nowMs)) return
  report({
    kind: 'notice',
    level: 'warning',
    code: 'FROM_THE_FUTURE',
    message:
      `${set.name}: ${newest} is later than this machine's clock, so no old generation is let go: `
      + 'check the clock, and remove that generation if it was wrong',
  })
}

/** From what a run reads: what interrupted ones have copied, and the sources. */
interface Reading {
  readonly partials: readonly Stamp[]
  readonly view: SourceSnapshot | undefined
}

interface Filled {
  readonly copied: Copied
  readonly entries: readonly Entry[]
  /** The generation began as a snapshot of an earlier one. */
  readonly isSnapshot: boolean
  readonly onlyChanges: boolean
}

/** One run under the set's lock. */
class Collect {
  readonly #startedMs = performance.now()
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
      ...listTreesWithoutCatalog({ staging, set: set.name }),
      ...listPartials({ staging, set: set.name }),
    ].sort()
    this.#place = { staging, set: set.name, stamp: nextStamp({ nowMs, newest: taken.at(-1) }) }
    warnOfFuture(options, taken.at(-1))
  }

  async run(): Promise<CollectOutcome> {
    const { set, report, nowMs } = this.#options
    this.#tellDamaged()
    const partials = this.#usablePartials()
    const request = {
      state: `${this.#staging}/.state`,
      set,
      stamp: this.#place.stamp,
      sources: this.#sources.readable,
      report,
      now: () => nowMs + performance.now() - this.#startedMs,
      since: this.#since(),
    }
    const view = await openSourceView(request)
    try {
      await this.#makeSpace({ mayRemove: false })
      const collected = await this.#copyAndPublish({ partials, view })
      await this.#makeSpace({ mayRemove: this.#mayPrune(collected) })
      return collected
    } finally {
      await closeSourceView(request, view)
    }
  }

  async #copyAndPublish({ partials, view }: Reading): Promise<CollectOutcome> {
    const { report, set } = this.#options
    const { staging, stamp } = this.#place
    report({ kind: 'phase', name: `collecting ${set.name}` })
    const { copied, entries, isSnapshot, onlyChanges } = await this.#fill({ partials, view })
    const { outcome, statistics, contentDiffers } = copied
    const header = await this.#judge({ entries, outcome, view })
    this.#orStagingError('written', () => sealGeneration(partialDirectory(this.#place)))
    publishCollection({ staging, header, entries })
    if (set.keepSnapshot && isSnapshot && header.complete && header.suspect.length === 0)
      view?.keep(this.#rules())
    this.#removePartials()
    const removed = this.#mayPrune(header) ? pruneLocal({ staging, set, report }) : []
    await recordVersions({ staging, header, entries, report })
    this.#tellVanished(outcome.vanished)
    this.#tellContentDiffers(contentDiffers)
    if (view !== undefined) tellNotAtomic(this.#options, liveBelow(entries, view))
    const { complete, missing, suspect, files, bytes } = header
    return {
      set: set.name,
      stamp,
      complete,
      missing,
      suspect,
      entries: header.entries,
      files,
      bytes,
      contentDiffers,
      onlyChanges,
      removed,
      ...statistics,
      // Into a snapshot rsync names only what it changes.
      linkedFiles: Math.max(statistics.linkedFiles, files - statistics.copiedFiles),
      linkedBytes: Math.max(statistics.linkedBytes, bytes - statistics.copiedBytes),
    }
  }

  #mayPrune(collected: Pick<CollectionHeader, 'complete' | 'suspect' | 'accepted'>): boolean {
    return isGood(collected) && !isAhead(this.#place.stamp, this.#options.nowMs)
  }

  /** What was collected, what is missing of it, and whether its sources can be believed. */
  async #judge({
    entries,
    outcome,
    view,
  }: {
    entries: readonly Entry[]
    outcome: RsyncOutcome
    view: SourceSnapshot | undefined
  }): Promise<CollectionHeader> {
    const { set, nowMs } = this.#options
    const { readable, missing: absent } = this.#sources
    const missing = allMissing([
      ...absent,
      ...outcome.missing,
      ...vanishedFromSnapshot(outcome.vanished, view),
      ...withoutSlash(view?.unseen ?? []),
      ...nestedSubvolumes(entries, view),
    ])
    const facts = await readSourceFacts({ sources: readable, entries })
    const before = trustedFacts(this.#place)
    const files = entries.filter(({ type }) => type === 'file')
    return {
      set: set.name,
      stamp: this.#place.stamp,
      complete: missing.length === 0,
      missing,
      suspect: doubtsAbout({ now: facts, before, maxLoss: set.suspectLoss }),
      sources: readable.map(({ given }, index) => {
        const { path, ...rest } = facts[index]!
        const snapshot = view?.covered.get(given)
        const time = formatStamp(snapshot?.timeMs ?? nowMs)
        return { path, snapshot: snapshot?.kind ?? 'none', time, facts: rest }
      }),
      entries: entries.length,
      files: files.length,
      bytes: files.reduce((sum, { size = 0 }) => sum + size, 0),
    }
  }

  /**
   * Staging keeps some space free, if it was told to. Older collections go earlier for it, but only
   * after a good one: a run that fails for want of space would otherwise take them all, in vain.
   */
  async #makeSpace({ mayRemove }: { readonly mayRemove: boolean }): Promise<void> {
    const { configuration, report, set } = this.#options
    const { staging, minFree, backupSets } = configuration
    const of = { staging, sets: backupSets, minFree, report, mayRemove, heldSet: set.name }
    const { enough } = await pruneForSpace(of)
    if (enough || !mayRemove) return
    const message = `staging has less free space than retention.min_free, and nothing more may go`
    report({ kind: 'notice', level: 'warning', code: 'LOW_SPACE', message })
  }

  /** Makes the tree of the new collection and reads it back as entries. */
  async #fill({ partials, view }: Reading): Promise<Filled> {
    const directory = partialDirectory(this.#place)
    const sourceOf = this.#sourceOf(view)
    const prepared = await this.#prepare({ directory, partials })
    const isSnapshot = prepared.kind === 'snapshot'
    const sources = this.#sources.readable.map(({ given }) => given.replace(/^\/+/, ''))
    const changes = await this.#changes({ view, prepared })
    this.#orStagingError('written', () => {
      if (changes !== undefined) clearNames({ directory, sourceOf, paths: changes.present })
      else if (isSnapshot) removeOutside({ directory, sources })
    })
    const copy = async (of: ChangeList | undefined): Promise<Filled> => {
      const copied = await this.#copy({ view, prepared, changes: of })
      const { missing, vanished } = copied.outcome
      const paths = [...missing.map(({ path }) => path), ...vanished]
      this.#orStagingError('written', () => {
        if (isSnapshot) dropStale({ directory, paths, sourceOf })
        syncTree(directory)
      })
      await view?.check()
      this.#options.report({ kind: 'phase', name: `sealing ${this.#place.set}` })
      const entries = this.#seal({ view, changes: of })
      return { copied, entries, isSnapshot, onlyChanges: of !== undefined }
    }
    const filled = await copy(changes)
    const wrong = isSnapshot ? wronglyLinked({ ...filled, sourceOf }) : []
    if (wrong.length === 0) return filled
    this.#orStagingError('written', () => clearNames({ directory, sourceOf, paths: wrong }))
    return await copy(undefined)
  }

  /** What changed since the collection that this one begins as, where the source can tell. */
  async #changes({
    view,
    prepared,
  }: {
    view: SourceSnapshot | undefined
    prepared: PreparedGeneration
  }): Promise<ChangeList | undefined> {
    const { set, signal, full } = this.#options
    const since = this.#since()
    const { readable, missing } = this.#sources
    const isBase =
      since !== undefined
      && prepared.kind === 'snapshot'
      && prepared.base?.endsWith(`/${since.stamp}`) === true
    const isPlain =
      missing.length === 0
      && !readable.some(({ isLinkToFile }) => isLinkToFile)
      && !hasFilters(set.filters)
    return isBase && isPlain && full !== true ? await view?.changes(signal) : undefined
  }

  /** The collection to begin with, where its source snapshot may have been kept. */
  #since(): KeptSnapshot | undefined {
    if (!this.#options.set.keepSnapshot) return undefined
    const newest = surveyCollections(this.#place).collections.findLast((one) => !isFrozen(one))
    if (newest === undefined || !newest.complete || newest.suspect.length > 0) return undefined
    return { stamp: newest.stamp, rules: this.#rules() }
  }

  /** Everything that decides what of the sources is in a collection. */
  #rules(): string {
    const { set, configuration } = this.#options
    const places = ownPlaces(configuration)
    return JSON.stringify([set.sources, set.exclusions, set.filters, places])
  }

  /** Where a path of the collection is read: through a source's own link, and its snapshot. */
  #sourceOf(view: SourceSnapshot | undefined): SourceOf {
    const rootOf = snapshotRoots(view?.covered ?? new Map())
    const links = new Map(
      this.#sources.readable
        .filter(({ given, real }) => given !== real)
        .map(({ given, real }) => [given.replace(/^\/+/, ''), real]),
    )
    return (path) => {
      const root = rootOf(path)
      return root === '' ? (links.get(path) ?? `/${path}`) : `${root}/${path}`
    }
  }

  async #prepare({
    directory,
    partials,
  }: {
    directory: RawPath
    partials: readonly Stamp[]
  }): Promise<PreparedGeneration> {
    const { set, report, signal } = this.#options
    const used = partials
      .slice(-MAX_PARTIALS_USED)
      .reverse()
      .map((stamp) => partialDirectory({ ...this.#place, stamp }))
    try {
      const collections = linkBases(this.#place, this.#sources)
      const prepared = await prepareGeneration({
        target: directory,
        collections,
        partials: used,
        signal,
      })
      if (prepared.kind === 'links' && prepared.reason !== undefined) {
        const message = `${set.name}: staging is on btrfs, but ${prepared.reason}`
        report({ kind: 'notice', level: 'info', code: 'NO_SUBVOLUME', message })
      }
      return prepared
    } catch (error) {
      throw stagingError({ error, staging: this.#place.staging, doing: 'written' })
    }
  }

  async #copy({
    view,
    prepared,
    changes,
  }: {
    view: SourceSnapshot | undefined
    prepared: PreparedGeneration
    changes: ChangeList | undefined
  }): Promise<Copied> {
    const { configuration, set, report, signal, full = false } = this.#options
    const target = partialDirectory(this.#place)
    const links = prepared.kind === 'links' ? prepared.linkDestinations : []
    try {
      const copied = await copySources({
        set,
        report,
        signal,
        dryRun: false,
        sources: this.#sources.readable,
        view,
        target,
        places: [...ownPlaces(configuration), ...(view?.ownPlaces ?? [])],
        // Rot in the newest would go unseen where an older one has the right content.
        linkDestinations: full ? links.slice(0, 1) : links,
        intoExisting: prepared.kind === 'snapshot',
        filesFrom: changes && [...changes.present, ...changes.gone],
        compareContent: full,
        lockFd: this.#lockFd,
      })
      if (copied.outcome.targetFull) throw this.#full()
      return copied
    } catch (error) {
      removeIfEmpty(target)
      throw error
    }
  }

  #orStagingError(doing: 'read' | 'written', work: () => void): void {
    try {
      work()
    } catch (error) {
      throw stagingError({ error, staging: this.#place.staging, doing })
    }
  }

  /** The entries of the tree, with what rsync could not carry, read from the sources. */
  #seal({
    view,
    changes,
  }: {
    view: SourceSnapshot | undefined
    changes: ChangeList | undefined
  }): Entry[] {
    const directory = partialDirectory(this.#place)
    const names = readAccountNames()
    const rootOf = snapshotRoots(view?.covered ?? new Map())
    const since = this.#since()
    try {
      if (changes === undefined || since === undefined)
        return readSourceMetadata({ entries: sealTree({ directory, names }), rootOf })
      const before = readCollection({ ...this.#place, stamp: since.stamp }).entries
      const { entries, changed } = sealChanges({ directory, names, before, ...changes })
      return readSourceMetadata({ entries, rootOf, only: changed })
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

  /** A collection whose catalog is lost is none, and nobody but its owner removes it. */
  #tellDamaged(): void {
    for (const stamp of surveyCollections(this.#place).damaged) {
      const message = `${this.#place.set}: ${stamp}: its catalog cannot be read; the tree stays`
      this.#options.report({ kind: 'notice', level: 'warning', code: 'CATALOG_DAMAGED', message })
    }
  }

  #tellVanished(vanished: readonly RawPath[]): void {
    if (vanished.length === 0) return
    this.#options.report({
      kind: 'notice',
      level: 'warning',
      code: 'VANISHED',
      facts: { set: this.#place.set, count: vanished.length },
      message: `${this.#place.set}: vanished while collecting: ${listedPaths(vanished)}`,
    })
  }

  #tellContentDiffers(paths: readonly RawPath[]): void {
    if (paths.length === 0) return
    this.#options.report({
      kind: 'notice',
      level: 'warning',
      code: 'CONTENT_DIFFERS',
      facts: { set: this.#place.set, count: paths.length },
      message:
        `${this.#place.set}: other content with the same size and time: ${listedPaths(paths)} `
        + '(edited with the time put back, or decayed in staging; the source was collected)',
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
    linkDestinations: linkBases(place, sources),
    intoExisting: false,
    compareContent: options.full === true,
    lockFd: undefined,
  })
  const missing = allMissing([...sources.missing, ...outcome.missing])
  const none = { entries: 0, files: 0, bytes: 0, removed: [] }
  return {
    set: set.name,
    stamp: place.stamp,
    complete: missing.length === 0,
    missing,
    suspect: [],
    contentDiffers: [],
    onlyChanges: false,
    ...none,
    ...statistics,
  }
}

/**
 * What a new collection starts from, best first: the newest that is trusted and lacks no whole
 * source, or everything would have to be copied anew; the newest, and the newest good one.
 */
function linkBases(
  place: Omit<CollectionPlace, 'stamp'>,
  { readable }: Pick<Sources, 'readable'>,
): RawPath[] {
  const { collections } = surveyCollections(place)
  const given = new Set(readable.map((source) => source.given.replace(/^\/+/, '')))
  const isWhole = ({ missing }: CollectionHeader): boolean => {
    return !missing.some(({ path }) => given.has(path))
  }
  const stamps = new Set([
    collections.findLast((header) => !isFrozen(header) && isWhole(header))?.stamp,
    listStamps(place).at(-1),
    collections.findLast(isGood)?.stamp,
  ])
  const directory = `${realStaging(place.staging)}/${place.set}`
  return [...stamps].flatMap((stamp) => (stamp === undefined ? [] : [`${directory}/${stamp}`]))
}

function allMissing(missing: readonly MissingPath[]): MissingPath[] {
  const unique = new Map<RawPath, MissingPath>()
  for (const item of missing) if (!unique.has(item.path)) unique.set(item.path, item)
  return [...unique.values()]
}

function withoutSlash(missing: readonly MissingPath[]): MissingPath[] {
  return missing.map(({ path, why }) => ({ path: path.replace(/^\/+/, ''), why }))
}

function readBootMarker(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return undefined
  }
}

function removeIfEmpty(directory: RawPath): void {
  if (readdirSync(rawPathToBytes(directory)).length === 0) removeGeneration(directory)
}

/** Everything that is in the tree is on the medium before a catalog says that it is there. */
function syncTree(directory: RawPath): void {
  const fd = openSync(rawPathToBytes(directory), 'r')
  try {
    syncFilesystem(fd)
  } finally {
    closeSync(fd)
  }
}

function noSource(set: SetConfiguration, { missing }: Sources): BackupError {
  const list = missing.map(({ path, why }) => `/${displayPath(path)} (${why})`).join(', ')
  const hint = 'check the sources in the configuration; earlier collections are unharmed'
  return new BackupError('SOURCE_ABSENT', `no source of ${set.name} can be read: ${list}`, {
    hint,
    facts: { set: set.name },
  })
}
