// Staging: where collections lie, which there are, how one appears and goes (docs/format.md §2,
// §8).
//
// A collection exists if and only if its tree and its catalog are both there under their final
// names. publishCollection writes the catalog first and renames the tree last; removeCollection
// takes the tree's name away first; so a kill leaves a `.partial` or an orphaned catalog, which
// sweepSet puts right at the next run. Names are parsed strictly: what is not ours is never
// touched. `staging` is text, as configured. Throws CATALOG_DAMAGED, NOTHING_FOUND, LOCKED and,
// where staging cannot be read or written, STAGING_FAILED or STAGING_FULL.

import { Buffer } from 'node:buffer'
import {
  closeSync,
  existsSync,
  fstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
} from 'node:fs'
import { dirname } from 'node:path'
import { BackupError, systemCode } from '../errors.ts'
import { compressFrame, decompressFrame, frameLength } from '../format/zstd-frames.ts'
import { publish, syncDirectory, writeDurably } from '../machine/durable-file.ts'
import { acquireLock, type Lock } from '../machine/lock.ts'
import { unmountedPlace } from '../machine/mounted.ts'
import {
  type CollectionHeader,
  encodeHeader,
  encodeLines,
  isGood,
  parseHeader,
  parseLines,
} from '../model/collection.ts'
import { type Entry, MAX_ENTRY_BYTES, parseEntry } from '../model/entry.ts'
import { displayPath, type RawPath, rawPathFromText, rawPathToBytes } from '../model/raw-path.ts'
import { parseStamp, type Stamp } from '../model/stamp.ts'
import { removeGeneration } from './generation.ts'

export type CollectionInfo = CollectionHeader

export interface Collection {
  readonly header: CollectionHeader
  readonly entries: readonly Entry[]
}

export interface SetPlace {
  /** Text, as configured. */
  readonly staging: string
  readonly set: string
}

export interface CollectionPlace extends SetPlace {
  readonly stamp: Stamp
}

/** Good compression at a speed that costs less than reading the tree. */
const CATALOG_LEVEL = 3

/**
 * Lines of a catalog are compressed in frames of about this size: small in memory, large enough to
 * compress.
 */
const CATALOG_BLOCK_BYTES = 2 * 1024 * 1024

/** Enough for the header of nearly every catalog; more is read when it is not. */
const HEADER_READ_BYTES = 64 * 1024

/** What is read of a catalog at a time: some frames. */
const CATALOG_READ_BYTES = 4 * 1024 * 1024

/** A header may list a missing path for every file of a large set. */
const MAX_HEADER_BYTES = 512 * 1024 * 1024

const CATALOG_SUFFIX = '.catalog.zst'
const PARTIAL_SUFFIX = '.partial'

/** The tree of a collection, as text. */
export function collectionDirectory({ staging, set, stamp }: CollectionPlace): string {
  return `${staging}/${set}/${stamp}`
}

/** Where state that is no collection lies, as text. */
export function stateRoot(staging: string): string {
  return `${staging}/.state`
}

/** The tree of a run under way, as a RawPath. */
export function partialDirectory(place: CollectionPlace): RawPath {
  return rawPathFromText(`${collectionDirectory(place)}${PARTIAL_SUFFIX}`)
}

/**
 * Every collection of a set, oldest first; none where there is no such set.
 * @throws BackupError CATALOG_DAMAGED, naming the catalog
 */
export function listCollections({ staging, set }: SetPlace): CollectionInfo[] {
  return listStamps({ staging, set }).map((stamp) => readHeader({ staging, set, stamp }))
}

/**
 * The collections of a set whose catalogs can be read, oldest first, and the stamps of the others.
 */
export function surveyCollections(place: SetPlace): {
  readonly collections: readonly CollectionInfo[]
  readonly damaged: readonly Stamp[]
} {
  const collections: CollectionInfo[] = []
  const damaged: Stamp[] = []
  for (const stamp of listStamps(place)) {
    try {
      collections.push(readHeader({ ...place, stamp }))
    } catch (error) {
      if (!(error instanceof BackupError)) throw error
      // Retention may let one go between the list and the look.
      if (error.code === 'NOTHING_FOUND') continue
      if (error.code !== 'CATALOG_DAMAGED') throw error
      damaged.push(stamp)
    }
  }
  return { collections, damaged: [...damaged, ...listTreesWithoutCatalog(place)].sort() }
}

/** Stamps of trees whose catalog is gone, oldest first: they are no collections, and they stay. */
export function listTreesWithoutCatalog(place: SetPlace): Stamp[] {
  const names = new Set(setNames(place))
  return [...names].filter((name) => isStamp(name) && !names.has(`${name}${CATALOG_SUFFIX}`)).sort()
}

/** The stamps of the collections of a set, oldest first. */
export function listStamps(place: SetPlace): Stamp[] {
  const names = new Set(setNames(place))
  return [...names].filter((name) => isStamp(name) && names.has(`${name}${CATALOG_SUFFIX}`)).sort()
}

/** The stamps of runs that did not end, oldest first. */
export function listPartials(place: SetPlace): Stamp[] {
  return setNames(place)
    .map((name) => stampBefore(name, PARTIAL_SUFFIX))
    .filter(isDefined)
    .sort()
}

/** The names of the sets that staging holds something of. */
export function listStagedSets(staging: string): string[] {
  try {
    const names = readdirSync(staging, { withFileTypes: true })
    return names
      .filter((item) => item.isDirectory() && !item.name.startsWith('.'))
      .map(({ name }) => name)
      .sort()
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return []
    throw stagingError({ error, staging, doing: 'read' })
  }
}

function setNames({ staging, set }: SetPlace): string[] {
  try {
    return readdirSync(`${staging}/${set}`)
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return []
    throw stagingError({ error, staging, doing: 'read' })
  }
}

/** @throws BackupError NOTHING_FOUND or CATALOG_DAMAGED */
export function readCollection(place: CollectionPlace): Collection {
  const path = catalogPath(place)
  const { header, lines } = readCatalogLines(place)
  const entries: Entry[] = []
  try {
    for (const line of lines) entries.push(parseEntry(line))
  } catch (error) {
    throw damagedCatalog(path, error)
  }
  return { header, entries }
}

/**
 * The header of a catalog, and the lines of its entries one after another: a few MiB are in memory
 * at a time. Both throw, the lines also at their end.
 * @throws BackupError NOTHING_FOUND or CATALOG_DAMAGED
 */
export function readCatalogLines(place: CollectionPlace): {
  readonly header: CollectionHeader
  readonly lines: Generator<string, void, undefined>
} {
  const header = readHeader(place)
  return { header, lines: entryLines(place, header) }
}

function* entryLines(
  place: CollectionPlace,
  { entries }: CollectionHeader,
): Generator<string, void, undefined> {
  const path = catalogPath(place)
  let found = 0
  let isHeader = true
  try {
    for (const frame of catalogFrames(path, CATALOG_READ_BYTES)) {
      const lines = parseLines(decompressFrame(frame, MAX_ENTRY_BYTES))
      if (isHeader) lines.shift()
      isHeader = false
      found += lines.length
      yield* lines
    }
  } catch (error) {
    throw damagedCatalog(path, error)
  }
  if (found !== entries) throw damagedCatalog(path, `it has ${found} of ${entries} entries`)
}

function readHeader(place: CollectionPlace): CollectionHeader {
  const path = catalogPath(place)
  try {
    const header = parseHeader(
      parseLines(decompressFrame(readFirstFrame(path), MAX_HEADER_BYTES))[0] ?? '',
    )
    checkPlace({ header, place, path })
    return header
  } catch (error) {
    throw damagedCatalog(path, error)
  }
}

/** The header is a frame of its own, so listing reads a few KiB of each catalog. */
function readFirstFrame(path: RawPath): Buffer {
  for (const frame of catalogFrames(path, HEADER_READ_BYTES)) return frame
  throw damagedCatalog(path, 'it is empty')
}

/**
 * One frame after another, each good until the next is asked for.
 * @throws BackupError NOTHING_FOUND, ZSTD_DAMAGED, and system errors
 */
function* catalogFrames(path: RawPath, firstReadBytes: number): Generator<Buffer, void, undefined> {
  const fd = openCatalog(path)
  try {
    const { size } = fstatSync(fd)
    let [read, readBytes]: [Buffer, number] = [Buffer.alloc(0), firstReadBytes]
    for (let position = 0; read.length > 0 || position < size;) {
      const length = wholeFrameLength(read, { isAll: position === size })
      if (length > 0) {
        yield read.subarray(0, length)
        read = read.subarray(length)
        continue
      }
      const more = Buffer.allocUnsafe(Math.min(readBytes, size - position))
      const count = readSync(fd, more, 0, more.length, position)
      if (count === 0) throw damagedCatalog(path, 'it became shorter')
      position += count
      // Twice as much each time, so that a very large frame does not take quadratic time.
      readBytes = Math.max(CATALOG_READ_BYTES, readBytes * 2)
      read = Buffer.concat([read, more.subarray(0, count)])
    }
  } finally {
    closeSync(fd)
  }
}

/** 0 where more has to be read first. @throws BackupError ZSTD_DAMAGED where there is no more */
function wholeFrameLength(bytes: Buffer, { isAll }: { readonly isAll: boolean }): number {
  try {
    return bytes.length === 0 ? 0 : frameLength(bytes)
  } catch (error) {
    if (isAll) throw error
    return 0
  }
}

function openCatalog(path: RawPath): number {
  try {
    return openSync(rawPathToBytes(path), 'r')
  } catch (cause) {
    throw unreadableCatalog(path, cause)
  }
}

function readCatalog(path: RawPath): Buffer {
  try {
    return readFileSync(rawPathToBytes(path))
  } catch (cause) {
    throw unreadableCatalog(path, cause)
  }
}

function unreadableCatalog(path: RawPath, cause: unknown): BackupError {
  if (systemCode(cause) !== 'ENOENT') return damagedCatalog(path, cause)
  return new BackupError('NOTHING_FOUND', `there is no collection ${displayPath(path)}`, { cause })
}

function checkPlace({
  header,
  place,
  path,
}: {
  header: CollectionHeader
  place: CollectionPlace
  path: RawPath
}): void {
  if (header.set === place.set && header.stamp === place.stamp) return
  throw damagedCatalog(path, `it is of ${header.set}/${header.stamp}`)
}

/**
 * Makes a collection of a tree that is whole and on the medium under its `.partial` name. `latest`
 * follows a good one.
 */
export function publishCollection({
  staging,
  header,
  entries,
}: {
  staging: string
  header: CollectionHeader
  entries: readonly Entry[]
}): void {
  const place = { staging, set: header.set, stamp: header.stamp }
  const blocks = [Buffer.from(`${encodeHeader(header)}\n`), ...encodeBlocks(entries)]
  try {
    const bytes = Buffer.concat(
      blocks.map((block, index) => (index === 0 ? compressFrame(block, CATALOG_LEVEL) : block)),
    )
    writeDurably({ path: catalogPath(place), bytes, mode: 0o600, replace: true })
    publish({ partial: partialDirectory(place), path: rawPathFromText(collectionDirectory(place)) })
    if (isGood(header)) moveLatest(place)
  } catch (error) {
    throw stagingError({ error, staging, doing: 'written' })
  }
}

/**
 * Takes a collection as it is: from now on it counts as good, and `latest` may name it. Its entries
 * are not touched. @throws BackupError NOTHING_FOUND, CATALOG_DAMAGED, STAGING_FAILED
 */
export function acceptCollection(
  place: CollectionPlace,
  { accepted, isNewest }: { accepted: Stamp; isNewest: boolean },
): void {
  const path = catalogPath(place)
  const bytes = readCatalog(path)
  const header = readHeader(place)
  const line = Buffer.from(`${encodeHeader({ ...header, accepted })}\n`)
  const rest = bytes.subarray(frameLength(bytes))
  try {
    const changed = Buffer.concat([compressFrame(line, CATALOG_LEVEL), rest])
    writeDurably({ path, bytes: changed, mode: 0o600, replace: true })
    if (isNewest) moveLatest(place)
  } catch (error) {
    throw stagingError({ error, staging: place.staging, doing: 'written' })
  }
}

/** Compresses block by block, so that the text of all entries is never in memory at once. */
function* encodeBlocks(entries: readonly Entry[]): Generator<Buffer> {
  for (const block of encodeLines(entries, CATALOG_BLOCK_BYTES))
    yield compressFrame(block, CATALOG_LEVEL)
}

function moveLatest({ staging, set, stamp }: CollectionPlace): void {
  const directory = `${staging}/${set}`
  rmSync(`${directory}/latest${PARTIAL_SUFFIX}`, { force: true })
  symlinkSync(stamp, `${directory}/latest${PARTIAL_SUFFIX}`)
  renameSync(`${directory}/latest${PARTIAL_SUFFIX}`, `${directory}/latest`)
  syncDirectory(rawPathFromText(directory))
}

/** Removes one collection: from its first step on it is none. */
export function removeCollection(place: CollectionPlace): void {
  try {
    renameSync(
      rawPathToBytes(rawPathFromText(collectionDirectory(place))),
      rawPathToBytes(partialDirectory(place)),
    )
    rmSync(rawPathToBytes(catalogPath(place)), { force: true })
    removePartial(place)
  } catch (error) {
    throw stagingError({ error, staging: place.staging, doing: 'written' })
  }
}

export function removePartial(place: CollectionPlace): void {
  removeGeneration(partialDirectory(place))
}

/**
 * Puts right what a killed run left: catalogs without a tree, and halves of files. A tree without a
 * catalog is nothing that we leave: somebody lost the catalog, and the tree stays.
 */
export function sweepSet({ staging, set }: SetPlace): void {
  const directory = `${staging}/${set}`
  const names = new Set(setNames({ staging, set }))
  try {
    for (const name of names) {
      const catalogOf = stampBefore(name, CATALOG_SUFFIX)
      const halfOf = stampBefore(name, `${CATALOG_SUFFIX}${PARTIAL_SUFFIX}`)
      const orphaned = catalogOf !== undefined && !names.has(catalogOf)
      if (halfOf !== undefined || orphaned) rmSync(`${directory}/${name}`, { force: true })
    }
    rmSync(`${directory}/latest${PARTIAL_SUFFIX}`, { force: true })
  } catch (error) {
    throw stagingError({ error, staging, doing: 'written' })
  }
}

/** The path, or the directory above it that is there. */
function existingPart(path: string): string {
  return existsSync(path) || dirname(path) === path ? path : existingPart(dirname(path))
}

/** Makes staging and its state. */
export function prepareStaging(staging: string): void {
  makeDirectories(staging, [staging, stateRoot(staging)])
}

/** Makes the directories that a set needs. */
export function prepareSet({ staging, set }: SetPlace): void {
  makeDirectories(staging, [staging, stateRoot(staging), `${staging}/${set}`])
}

function makeDirectories(staging: string, directories: readonly string[]): void {
  const unmounted = unmountedPlace(existingPart(staging))
  const isParentThere = existsSync(dirname(staging))
  if (unmounted !== undefined || !isParentThere) {
    const why =
      unmounted === undefined
        ? `there is no directory "${dirname(staging)}" to make staging in`
        : `nothing is mounted at "${unmounted}", where staging lies`
    throw new BackupError('STAGING_FAILED', why, {
      hint: 'mount the disk that holds it, or make the directory; nothing was written',
      retry: 'later',
    })
  }
  try {
    for (const directory of directories) mkdirSync(directory, { recursive: true, mode: 0o700 })
  } catch (error) {
    throw stagingError({ error, staging, doing: 'written' })
  }
}

/**
 * Whoever changes a set's collections, or reads one for long, holds its lock. @throws BackupError
 * LOCKED
 */
export function acquireSetLock({
  staging,
  set,
  description,
  waitMs,
}: SetPlace & { description: string; waitMs: number }): Lock {
  return acquireLock({
    path: rawPathFromText(`${stateRoot(staging)}/${set}.lock`),
    description,
    waitMs,
  })
}

/**
 * Whoever writes to staging or to a target holds this lock: one run for each staging directory.
 * @throws BackupError LOCKED
 */
export function acquireRunLock({
  staging,
  description,
  waitMs,
}: {
  staging: string
  description: string
  waitMs: number
}): Lock {
  prepareStaging(staging)
  const path = rawPathFromText(`${stateRoot(staging)}/.run.lock`)
  try {
    return acquireLock({ path, description, waitMs })
  } catch (error) {
    throw stagingError({ error, staging, doing: 'written' })
  }
}

/** A failure of staging itself, worded once; BackupErrors pass through. */
export function stagingError({
  error,
  staging,
  doing,
}: {
  error: unknown
  staging: string
  doing: 'read' | 'written'
}): Error {
  if (error instanceof BackupError) return error
  const code = systemCode(error)
  if (code === undefined && error instanceof Error) return error
  if (code === 'ENOSPC' || code === 'EDQUOT') {
    const hint = 'free some space there; the collections in it are unharmed'
    return new BackupError('STAGING_FULL', `staging is full: "${staging}"`, {
      hint,
      cause: error,
      retry: 'later',
    })
  }
  const message = `staging "${staging}" cannot be ${doing} (${code ?? String(error)})`
  return new BackupError('STAGING_FAILED', message, {
    hint: 'check that it is there and yours',
    cause: error,
  })
}

function damagedCatalog(path: RawPath, error: unknown): BackupError {
  if (
    error instanceof BackupError
    && (['TARGET_FORMAT', 'NOTHING_FOUND'].includes(error.code)
      || error.message.startsWith('the catalog'))
  ) {
    return error
  }
  const why = error instanceof Error ? error.message : String(error)
  const hint = 'the tree beside it is not touched; remove both once a newer collection is complete'
  return new BackupError('CATALOG_DAMAGED', `the catalog ${displayPath(path)} is damaged: ${why}`, {
    hint,
    cause: error,
  })
}

function catalogPath(place: CollectionPlace): RawPath {
  return rawPathFromText(`${collectionDirectory(place)}${CATALOG_SUFFIX}`)
}

function isStamp(name: string): boolean {
  return parseStamp(name) !== undefined
}

function stampBefore(name: string, suffix: string): Stamp | undefined {
  const stamp = name.slice(0, -suffix.length)
  return name.endsWith(suffix) && isStamp(stamp) ? stamp : undefined
}

function isDefined<T>(value: T | undefined): value is T {
  return value !== undefined
}
