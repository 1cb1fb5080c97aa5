// The version index of a set, `$DBACKUP/.state/versions/<set>.index`: which generation held which
// version of which path (lib/model/version-index.ts).
//
// A cache: collect.ts adds each new collection, openVersions adds what is lacking, and what is
// damaged or lost is made anew from the catalogs that are here. It outlives the collections: what
// is on a target was in staging once. Where it cannot be written, it is answered from memory. A
// generation that is neither in staging nor in a known export any more is left out, and goes with
// the next one that comes. The file is written anew as a whole: two frames a block, the table's
// frame, its length, the SHA-256 of all that, and the magic. Throws STAGING_FAILED where staging
// cannot be read, and INTERRUPTED.

import assert from 'node:assert/strict'
import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readSync,
  rmSync,
} from 'node:fs'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { BackupError, systemCode } from '../errors.ts'
import { compressFrame, decompressFrame } from '../format/zstd-frames.ts'
import { PARTIAL_SUFFIX, publish, writeAll } from '../machine/durable-file.ts'
import { acquireLock } from '../machine/lock.ts'
import { type CollectionHeader, isFrozen } from '../model/collection.ts'
import type { Entry } from '../model/entry.ts'
import { comparePaths, type RawPath, rawPathFromText } from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import type { ShardPlace } from '../model/shard.ts'
import type { Stamp } from '../model/stamp.ts'
import {
  encodeLines,
  encodePaths,
  encodeTable,
  generationNumber,
  type IndexBlock,
  type IndexedGeneration,
  type IndexTable,
  parseTable,
  type Place,
  splitLines,
  splitPaths,
  swept,
  versionOf,
  versionOfLine,
  type VersionText,
  withGeneration,
} from '../model/version-index.ts'
import type { ExportReader } from './export-reader.ts'
import { readCatalogLines, type SetPlace, stateRoot, surveyCollections } from './staging.ts'
import {
  knownExports,
  knownRepositoryIds,
  lastExportShards,
  lastExportStamp,
  stateDirectory,
} from './state.ts'

/** Paths in a block: what one look for a single path has to read. */
const BLOCK_ENTRIES = 32_768

/** … unless they, or their lines, are long. Characters. */
const BLOCK_LENGTH = 8 * 1024 * 1024

/** No block is longer; a table names every path that could not be collected. */
const MAX_FRAME_BYTES = 256 * 1024 * 1024

/** It is rewritten after every collection. */
const LEVEL = 1

const MAGIC = Buffer.from('DBVERS01')
const DIGEST_BYTES = 32
const TAIL_BYTES = 4 + DIGEST_BYTES + MAGIC.length

/** What is read at a time to see that nothing of the file is damaged. */
const HASHED_BYTES = 4 * 1024 * 1024

/** Whoever writes it takes seconds, but may have many generations to add. */
const LOCK_WAIT_MS = 10_000

/** Where the bytes of an index are. */
interface IndexBytes {
  readonly table: IndexTable
  readonly read: (extent: readonly [offset: number, length: number]) => Buffer
  readonly close: () => void
}

/** Some neighbouring paths. */
export interface VersionBlock {
  /** Absolute, in catalog order. */
  readonly paths: readonly RawPath[]
  /** Of each path, its line (lib/model/version-index.ts). Read when it is called. */
  readonly lines: () => readonly string[]
}

/** What is known of the versions of a set's paths. */
export interface Versions {
  readonly set: string
  /** Those that are left, oldest first. */
  readonly generations: readonly IndexedGeneration[]
  /** The same, as lines name them. */
  readonly numbers: readonly number[]
  /** Collections whose catalogs are damaged, and that are not known from before. */
  readonly damaged: readonly Stamp[]
  /** Known exports that the index lacks: it was lost, and their catalogs are on targets only. */
  readonly unknown: readonly Stamp[]
  /** A few MiB in memory at a time. */
  readonly blocks: () => Generator<VersionBlock, void, undefined>
  /** The line of a path without its leading slash; empty where no generation holds it. */
  readonly lineOf: (path: RawPath) => string
  readonly close: () => void
}

/**
 * The versions of a set, brought up to date with what is in staging.
 * @throws BackupError STAGING_FAILED, INTERRUPTED
 */
export async function openVersions(
  place: SetPlace,
  { report, signal }: { readonly report: Report; readonly signal: AbortSignal },
): Promise<Versions> {
  const known = readKnown(place)
  const first = openIndex(place)
  const lacking = lackingIn(first?.table, known)
  if (first !== undefined && lacking.length === 0) return versionsIn(first, known)
  first?.close()
  if (lacking.length > 0) {
    report({ kind: 'phase', name: `reading the catalogs of ${place.set}` })
  }
  const lock = lockIfWritable(place)
  try {
    // Whoever had the lock before may have done it all.
    let index = openIndex(place) ?? emptyIndex(place.set)
    let isWritable = lock !== undefined
    const damaged: Stamp[] = []
    for (const source of lackingIn(index.table, known)) {
      await nextTurn()
      if (signal.aborted) throw new BackupError('INTERRUPTED', 'interrupted')
      let next = isWritable ? withSourceOnDisk(index, source, known) : undefined
      if (next === 'unwritable') isWritable = false
      if (!isWritable) next = withSource(index, source, { known, sink: memorySink() })
      if (next === undefined) damaged.push(source.stamp)
      else if (next !== 'unwritable') index = next
    }
    return versionsIn(index, { ...known, damaged: [...known.damaged, ...damaged].sort() })
  } finally {
    lock?.release()
  }
}

/**
 * Adds a collection that was just published, and whatever else is lacking. That it cannot be
 * written is said, and is no failure of the run.
 */
export async function recordVersions({
  staging,
  header,
  entries,
  report,
}: {
  readonly staging: string
  readonly header: CollectionHeader
  readonly entries: readonly Entry[]
  readonly report: Report
}): Promise<void> {
  const place = { staging, set: header.set }
  const { stamp } = header
  try {
    const known = readKnown(place)
    const lock = lockVersions(place)
    try {
      let index = openIndex(place) ?? emptyIndex(place.set)
      for (const source of lackingIn(index.table, known)) {
        await nextTurn()
        const versions = source.stamp === stamp ? versionsOf(entries) : undefined
        const from = versions === undefined ? source : { ...source, versions: () => versions }
        index = withSource(index, from, { known, sink: sinkAt(place) }) ?? index
      }
      index.close()
    } finally {
      lock.release()
    }
  } catch (error) {
    if (!(error instanceof BackupError) && systemCode(error) === undefined) throw error
    const why = error instanceof Error ? error.message : String(error)
    const message = `${header.set}: what \`backup find\` knows was not brought up to date: ${why}`
    report({ kind: 'notice', level: 'warning', code: 'VERSIONS_BEHIND', message })
  }
}

function* versionsOf(entries: readonly Entry[]): Generator<PathVersion, void, undefined> {
  for (const entry of entries) yield { path: entry.path, version: versionOf(entry) }
}

/** What staging and the states know of a set's generations. */
interface Known {
  readonly place: SetPlace
  readonly headers: ReadonlyMap<Stamp, CollectionHeader>
  readonly damaged: readonly Stamp[]
  /** Stamps of known exports, each with whether it is complete. */
  readonly exports: ReadonlyMap<Stamp, boolean>
  /** Undefined where a state cannot be read: then nobody knows what may go. */
  readonly left: ReadonlySet<Stamp> | undefined
}

function readKnown(place: SetPlace): Known {
  const { staging, set } = place
  const { collections, damaged } = surveyCollections(place)
  const exports = new Map<Stamp, boolean>()
  let isWhole = true
  for (const id of knownRepositoryIds(staging)) {
    const there = knownExports(stateDirectory({ staging, id }))
    if (there === undefined) isWhole = false
    for (const [name, { complete }] of there ?? []) {
      if (name.startsWith(`${set}/`)) exports.set(name.slice(set.length + 1), complete)
    }
  }
  const headers = new Map(collections.map((header) => [header.stamp, header]))
  const left = new Set([...headers.keys(), ...damaged, ...exports.keys()])
  return { place, headers, damaged, exports, left: isWhole ? left : undefined }
}

interface PathVersion {
  readonly path: RawPath
  readonly version: VersionText
}

/** A generation to be added, and where its entries come from, in catalog order. */
interface Source {
  readonly stamp: Stamp
  readonly generation: IndexedGeneration
  readonly versions: () => Iterable<PathVersion>
}

/** What can be read here and the index does not have, oldest first. */
function lackingIn(table: IndexTable | undefined, known: Known): Source[] {
  const { place, headers } = known
  const indexed = new Set(table?.generations.map(({ stamp }) => stamp))
  const collections = [...headers.values()]
    .filter(({ stamp }) => !indexed.has(stamp))
    .map((header) => ({
      stamp: header.stamp,
      generation: generationOf(header),
      versions: () => catalogVersions({ ...place, stamp: header.stamp }),
    }))
  const lastExports = exportsToRead(known).filter(({ stamp }) => !indexed.has(stamp))
  return [...collections, ...lastExports].sort((a, b) => (a.stamp < b.stamp ? -1 : 1))
}

function generationOf(header: CollectionHeader): IndexedGeneration {
  const { stamp, complete, missing, sources } = header
  const isSuspect = isFrozen(header)
  return { stamp, complete, isSuspect, missing, sources: sources.map(({ path }) => path) }
}

/** Exports whose collections are gone, but whose catalogs the states still have. */
function exportsToRead({ place: { staging, set }, headers, exports }: Known): Source[] {
  const sources = new Map<Stamp, Source>()
  for (const id of knownRepositoryIds(staging)) {
    const directory = stateDirectory({ staging, id })
    const stamp = lastExportStamp(directory, set)
    if (stamp === undefined || headers.has(stamp) || !exports.has(stamp)) continue
    const complete = exports.get(stamp) === true
    const generation = { stamp, complete, isSuspect: false, missing: [], sources: [] }
    sources.set(stamp, { stamp, generation, versions: () => stateVersions(directory, set) })
  }
  return [...sources.values()]
}

function* catalogVersions(
  place: Parameters<typeof readCatalogLines>[0],
): Generator<PathVersion, void, undefined> {
  for (const line of readCatalogLines(place).lines) yield versionOfLine(line)
}

function* stateVersions(directory: string, set: string): Generator<PathVersion, void, undefined> {
  for (const { shard } of lastExportShards(directory, set)) yield* versionsOf(shard().entries)
}

/** The same as withSource, into the file; a full or read-only staging is no reason to fail. */
function withSourceOnDisk(
  index: IndexBytes,
  source: Source,
  known: Known,
): IndexBytes | undefined | 'unwritable' {
  try {
    return withSource(index, source, { known, sink: sinkAt(known.place) })
  } catch (error) {
    if (error instanceof BackupError || !UNWRITABLE.includes(systemCode(error) ?? '')) throw error
    return 'unwritable'
  }
}

const UNWRITABLE = ['ENOSPC', 'EDQUOT', 'EROFS', 'EACCES', 'EPERM']

/**
 * The index with one more generation, in place of the one before; undefined, and the index as it
 * was, where the generation cannot be read.
 */
function withSource(
  index: IndexBytes,
  source: Source,
  { known, sink }: { readonly known: Known; readonly sink: Sink },
): IndexBytes | undefined {
  try {
    const rewriting = new Rewriting(index, { generation: source.generation, known, sink })
    for (const { path, version } of source.versions()) rewriting.add(path, version)
    rewriting.finish()
    const next = sink.finish()
    index.close()
    return next
  } catch (error) {
    sink.abandon()
    // A cache that is lost, or a collection that was let go just now.
    const isLost = source.generation.sources.length === 0 && systemCode(error) === undefined
    const code = error instanceof BackupError ? error.code : undefined
    if (isLost || code === 'CATALOG_DAMAGED' || code === 'NOTHING_FOUND') return undefined
    throw error
  }
}

/** Where a new index goes. */
interface Sink {
  readonly write: (bytes: Buffer) => void
  readonly finish: () => IndexBytes
  /** Leaves nothing. */
  readonly abandon: () => void
}

function memorySink(): Sink {
  const parts: Buffer[] = []
  return {
    write: (bytes) => void parts.push(bytes),
    finish: () => {
      const bytes = Buffer.concat(parts)
      const read = ([offset, length]: readonly [number, number]): Buffer => {
        return bytes.subarray(offset, offset + length)
      }
      const table = readTable({ sizeBytes: bytes.length, read })
      assert(table !== undefined, 'an index that was written now can be read')
      return { table, read, close: () => {} }
    },
    abandon: () => {},
  }
}

/** The new index takes the place of the old one when it is on the medium. */
function sinkAt(place: SetPlace): Sink {
  const path = indexPath(place)
  const partial = `${path}${PARTIAL_SUFFIX}`
  rmSync(partial, { force: true })
  const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = constants
  const fd = openSync(partial, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600)
  return {
    write: (bytes) => writeAll(fd, bytes),
    finish: () => {
      fsyncSync(fd)
      closeSync(fd)
      publish({ partial: rawPathFromText(partial), path: rawPathFromText(path), replace: true })
      const index = openIndex(place)
      assert(index !== undefined, 'an index that was written now can be read')
      return index
    },
    abandon: () => {
      closeSync(fd)
      rmSync(partial, { force: true })
    },
  }
}

/** Lays one generation, path after path, beside an index, and writes the index anew. */
class Rewriting {
  readonly #sink: Sink
  readonly #generations: readonly IndexedGeneration[]
  readonly #numbers: readonly number[]
  readonly #areAllLeft: boolean
  readonly #place: Place
  readonly #set: string
  readonly #old: Iterator<readonly [path: RawPath, line: string], void, undefined>
  /** The next of the old index; undefined at its end. */
  #next: readonly [path: RawPath, line: string] | undefined
  #last: RawPath | undefined
  #paths: RawPath[] = []
  #lines: string[] = []
  #length = 0
  #offset = 0
  readonly #blocks: IndexBlock[] = []
  /** Of everything before the tail. */
  readonly #hash = createHash('sha256')

  constructor(
    old: IndexBytes,
    {
      generation,
      known,
      sink,
    }: {
      readonly generation: IndexedGeneration
      /** Undefined: every generation of the index is left. */
      readonly known: Known | undefined
      readonly sink: Sink
    },
  ) {
    const { table } = old
    const refreshed = table.generations.map((one) => refresh(one, known))
    const all = [...refreshed, generation].sort((a, b) => (a.stamp < b.stamp ? -1 : 1))
    const at = all.indexOf(generation)
    const numberAt = (index: number): number | undefined => {
      const one = all[index]
      return one === undefined ? undefined : generationNumber(one.stamp)
    }
    const number = generationNumber(generation.stamp)
    this.#place = { number, previous: numberAt(at - 1), next: numberAt(at + 1) }
    this.#generations = all.filter(({ stamp }) => {
      return known?.left === undefined || stamp === generation.stamp || known.left.has(stamp)
    })
    this.#areAllLeft = this.#generations.length === all.length
    this.#numbers = this.#generations.map(({ stamp }) => generationNumber(stamp))
    this.#set = table.set
    this.#sink = sink
    this.#old = pairsOf(old)
    this.#advance()
  }

  /** @throws BackupError CATALOG_DAMAGED where paths are not in catalog order */
  add(path: RawPath, version: VersionText): void {
    if (this.#last !== undefined && comparePaths(this.#last, path) >= 0) {
      throw new BackupError('CATALOG_DAMAGED', 'a catalog is not in order')
    }
    this.#last = path
    this.#passTo(path, undefined)
    const [known, line] = this.#next ?? []
    if (known !== path) {
      this.#put(path, withGeneration('', this.#place, version))
      return
    }
    this.#put(path, withGeneration(line ?? '', this.#place, version))
    this.#advance()
  }

  /**
   * The same as adding, from `first` up to `end`, every path with the version that the generation
   * before has. Only for the newest generation.
   */
  keep(first: RawPath, end: RawPath | undefined): void {
    assert(this.#place.next === undefined, 'only the newest generation is like the one before')
    this.#passTo(first, undefined)
    this.#passTo(end, 'kept')
  }

  /** Writes what is left, and the table. */
  finish(): void {
    this.#passTo(undefined, undefined)
    this.#endBlock()
    const table = { set: this.#set, generations: this.#generations, blocks: this.#blocks }
    const frame = compressFrame(encodeTable(table), LEVEL)
    const length = Buffer.alloc(4)
    length.writeUInt32LE(frame.length)
    const digest = this.#hash.update(frame).digest()
    this.#sink.write(Buffer.concat([frame, length, digest, MAGIC]))
  }

  /** What comes before a path is not in the generation, or is as it was. */
  #passTo(end: RawPath | undefined, how: 'kept' | undefined): void {
    while (this.#next !== undefined) {
      const [path, line] = this.#next
      if (path === end || (end !== undefined && comparePaths(path, end) >= 0)) return
      this.#put(path, how === 'kept' ? line : withGeneration(line, this.#place, undefined))
      this.#advance()
    }
  }

  #advance(): void {
    this.#next = this.#old.next().value ?? undefined
  }

  #put(path: RawPath, line: string): void {
    const left = this.#areAllLeft ? line : swept(line, this.#numbers)
    if (left === '') return
    this.#paths.push(path)
    this.#lines.push(left)
    this.#length += path.length + left.length
    if (this.#paths.length >= BLOCK_ENTRIES || this.#length >= BLOCK_LENGTH) this.#endBlock()
  }

  #endBlock(): void {
    const [first] = this.#paths
    if (first === undefined) return
    const paths = this.#write(encodePaths(this.#paths))
    const lines = this.#write(encodeLines(this.#lines))
    this.#blocks.push({ first, count: this.#paths.length, paths, lines })
    this.#paths = []
    this.#lines = []
    this.#length = 0
  }

  #write(bytes: Buffer): readonly [offset: number, length: number] {
    const frame = compressFrame(bytes, LEVEL)
    this.#sink.write(frame)
    this.#hash.update(frame)
    const offset = this.#offset
    this.#offset += frame.length
    return [offset, frame.length]
  }
}

/** A collection may have been accepted since. */
function refresh(generation: IndexedGeneration, known: Known | undefined): IndexedGeneration {
  const header = known?.headers.get(generation.stamp)
  return header === undefined ? generation : generationOf(header)
}

function* pairsOf(
  index: IndexBytes,
): Generator<readonly [path: RawPath, line: string], void, undefined> {
  for (const { paths, lines: read } of blocksOf(index)) {
    const lines = read()
    for (const [i, path] of paths.entries()) yield [path.slice(1), lines[i]!]
  }
}

function* blocksOf(index: IndexBytes): Generator<VersionBlock, void, undefined> {
  for (const block of index.table.blocks) {
    yield { paths: splitPaths(frameAt(index, block.paths)), lines: () => linesOf(index, block) }
  }
}

function linesOf(index: IndexBytes, block: IndexBlock): readonly string[] {
  const lines = splitLines(frameAt(index, block.lines))
  if (lines.length === block.count) return lines
  throw damagedIndex('a block has lost lines')
}

function frameAt(index: IndexBytes, extent: readonly [offset: number, length: number]): Buffer {
  return decompressFrame(index.read(extent), MAX_FRAME_BYTES)
}

function versionsIn(index: IndexBytes, known: Known): Versions {
  const { set, blocks, generations: all } = index.table
  const generations = all
    .filter(({ stamp }) => known.left === undefined || known.left.has(stamp))
    .map((one) => refresh(one, known))
  const indexed = new Set(generations.map(({ stamp }) => stamp))
  return {
    set,
    generations,
    numbers: generations.map(({ stamp }) => generationNumber(stamp)),
    damaged: known.damaged.filter((stamp) => !indexed.has(stamp)),
    unknown: [...known.exports.keys()].filter((stamp) => !indexed.has(stamp)).sort(),
    blocks: () => blocksOf(index),
    lineOf: (path) => {
      const block = blocks.findLast(({ first }) => comparePaths(first, path) <= 0)
      if (block === undefined) return ''
      const at = splitPaths(frameAt(index, block.paths)).indexOf(`/${path}`)
      return at < 0 ? '' : linesOf(index, block)[at]!
    },
    close: index.close,
  }
}

/**
 * The versions in exports of one set, oldest first, read from their target into memory. What an
 * export shares with the one before is not read again.
 */
export async function versionsOfExports(
  set: string,
  readers: AsyncIterable<ExportReader>,
): Promise<Versions> {
  let index = emptyIndex(set)
  let before: ShardNeighbours = new Map()
  for await (const reader of readers) {
    const { stamp, complete, missing, sources } = reader.manifest
    const generation: IndexedGeneration = {
      stamp,
      complete,
      isSuspect: false,
      missing,
      sources: sources.map(({ path }) => path),
    }
    const sink = memorySink()
    const rewriting = new Rewriting(index, { generation, known: undefined, sink })
    const places = await reader.index()
    await addShards(rewriting, { reader, places, before })
    rewriting.finish()
    index = sink.finish()
    before = new Map(places.map(({ digest }, i) => [digest, places[i + 1]?.first]))
  }
  const { generations } = index.table
  const left = undefined
  const [headers, exports] = [new Map<Stamp, CollectionHeader>(), new Map<Stamp, boolean>()]
  const place = { staging: '', set }
  assert(generations.length > 0, 'there is an export to read')
  return versionsIn(index, { place, headers, exports, left, damaged: [] })
}

/** Of each shard of an export, by its digest: the first path of the shard that follows. */
type ShardNeighbours = ReadonlyMap<string, RawPath | undefined>

async function addShards(
  rewriting: Rewriting,
  {
    reader,
    places,
    before,
  }: {
    readonly reader: ExportReader
    readonly places: readonly ShardPlace[]
    /** Of the export before. */
    readonly before: ShardNeighbours
  },
): Promise<void> {
  const fresh = reader.shards(places.filter(({ digest }) => !before.has(digest)))
  for (const [i, { digest, first }] of places.entries()) {
    if (before.has(digest)) {
      // Between its last path and what follows here or there, there is nothing to keep.
      rewriting.keep(first, earlier(places[i + 1]?.first, before.get(digest)))
      continue
    }
    const next = await fresh.next()
    assert(next.done !== true, 'a shard that was asked for comes')
    for (const entry of next.value.shard.entries) rewriting.add(entry.path, versionOf(entry))
  }
}

/** Undefined is the end. */
function earlier(one: RawPath | undefined, other: RawPath | undefined): RawPath | undefined {
  if (one === undefined || other === undefined) return one ?? other
  return comparePaths(one, other) < 0 ? one : other
}

function emptyIndex(set: string): IndexBytes {
  const table = { set, generations: [], blocks: [] }
  return { table, read: () => Buffer.alloc(0), close: () => {} }
}

/** The index on disk; undefined where there is none, or it is lost. */
function openIndex(place: SetPlace): IndexBytes | undefined {
  let fd: number
  try {
    fd = openSync(indexPath(place), constants.O_RDONLY | constants.O_NOFOLLOW)
  } catch (error) {
    if (systemCode(error) === undefined) throw error
    return undefined
  }
  const read = ([offset, length]: readonly [number, number]): Buffer => {
    const bytes = Buffer.allocUnsafe(length)
    if (readSync(fd, bytes, 0, length, offset) === length) return bytes
    throw damagedIndex('it is cut short')
  }
  const table = tableOrNothing(() => readTable({ sizeBytes: fstatSync(fd).size, read }))
  if (table !== undefined && table.set === place.set) {
    return { table, read, close: () => closeSync(fd) }
  }
  closeSync(fd)
  return undefined
}

/** Whatever is wrong with it, it is made anew. */
function tableOrNothing(read: () => IndexTable | undefined): IndexTable | undefined {
  try {
    return read()
  } catch (error) {
    if (error instanceof BackupError || systemCode(error) !== undefined) return undefined
    throw error
  }
}

function readTable({
  sizeBytes,
  read,
}: Pick<IndexBytes, 'read'> & { readonly sizeBytes: number }): IndexTable | undefined {
  if (sizeBytes < TAIL_BYTES) return undefined
  const tail = read([sizeBytes - TAIL_BYTES, TAIL_BYTES])
  const length = tail.readUInt32LE()
  const digest = tail.subarray(4, 4 + DIGEST_BYTES)
  const isOurs = tail.subarray(4 + DIGEST_BYTES).equals(MAGIC)
  if (!isOurs || length > sizeBytes - TAIL_BYTES) return undefined
  const hash = createHash('sha256')
  for (let at = 0; at < sizeBytes - TAIL_BYTES; at += HASHED_BYTES) {
    hash.update(read([at, Math.min(HASHED_BYTES, sizeBytes - TAIL_BYTES - at)]))
  }
  if (!hash.digest().equals(digest)) return undefined
  const frame = read([sizeBytes - TAIL_BYTES - length, length])
  return parseTable(decompressFrame(frame, MAX_FRAME_BYTES))
}

function versionsDirectory({ staging }: SetPlace): string {
  return `${stateRoot(staging)}/versions`
}

function indexPath(place: SetPlace): string {
  return `${versionsDirectory(place)}/${place.set}.index`
}

function lockVersions(place: SetPlace): ReturnType<typeof acquireLock> {
  mkdirSync(versionsDirectory(place), { recursive: true, mode: 0o700 })
  const path = rawPathFromText(`${versionsDirectory(place)}/${place.set}.lock`)
  const description = `reading the catalogs of ${place.set}`
  return acquireLock({ path, description, waitMs: LOCK_WAIT_MS })
}

/** Undefined where nothing can be written, or another run writes for long. */
function lockIfWritable(place: SetPlace): ReturnType<typeof acquireLock> | undefined {
  if (!existsSync(stateRoot(place.staging))) return undefined
  try {
    return lockVersions(place)
  } catch (error) {
    const isLocked = error instanceof BackupError && error.code === 'LOCKED'
    if (isLocked || systemCode(error) !== undefined) return undefined
    throw error
  }
}

function damagedIndex(what: string): BackupError {
  return new BackupError('CATALOG_DAMAGED', `a version index is damaged: ${what}`)
}
