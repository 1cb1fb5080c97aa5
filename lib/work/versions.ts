// The version index of a set, `$DBACKUP/.state/versions/<set>.index`: which generation held which
// version of which path (lib/model/version-index.ts).
//
// A cache: collect.ts adds each new collection, openVersions adds what is lacking, and what is
// damaged or lost is made anew from the catalogs that are here. It outlives the collections: what
// is on a target was in staging once. Where it cannot be written, it is answered from memory. A
// generation that is neither in staging nor in a known export any more is left out, and goes with
// the next one that comes. version-file.ts knows the file. Throws STAGING_FAILED where staging
// cannot be read, and INTERRUPTED.

import assert from 'node:assert/strict'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { BackupError, systemCode } from '../errors.ts'
import { type CollectionHeader, isFrozen } from '../model/collection.ts'
import type { Entry } from '../model/entry.ts'
import { comparePaths, type RawPath } from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import type { ShardPlace } from '../model/shard.ts'
import type { Stamp } from '../model/stamp.ts'
import {
  generationNumber,
  type IndexedGeneration,
  type IndexTable,
  splitPaths,
  versionOf,
  versionOfLine,
  type VersionText,
} from '../model/version-index.ts'
import type { ExportReader } from './export-reader.ts'
import { readCatalogLines, type SetPlace, surveyCollections } from './staging.ts'
import {
  knownExports,
  knownRepositoryIds,
  lastExportShards,
  lastExportStamp,
  stateDirectory,
} from './state.ts'
import {
  blocksOf,
  emptyIndex,
  frameAt,
  type IndexBytes,
  linesOf,
  lockIfWritable,
  lockVersions,
  memorySink,
  openIndex,
  type Sink,
  sinkAt,
  type VersionBlock,
} from './version-file.ts'
import { Rewriting } from './version-rewriting.ts'

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
      if (next !== undefined && next !== 'unwritable') index = next
      // An export whose catalog cannot be read here is unknown: its target still has it.
      else if (known.headers.has(source.stamp)) damaged.push(source.stamp)
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

/** The same as withSource, into the file; that it cannot be written is no reason to fail. */
function withSourceOnDisk(
  index: IndexBytes,
  source: Source,
  known: Known,
): IndexBytes | undefined | 'unwritable' {
  try {
    return withSource(index, source, { known, sink: sinkAt(known.place) })
  } catch (error) {
    if (error instanceof BackupError || systemCode(error) === undefined) throw error
    return 'unwritable'
  }
}

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
    const rewriting = new Rewriting(index, {
      generation: source.generation,
      refresh: (one) => refresh(one, known),
      left: known.left,
      sink,
    })
    for (const { path, version } of source.versions()) rewriting.add(path, version)
    rewriting.finish()
    const next = sink.finish()
    index.close()
    return next
  } catch (error) {
    sink.abandon()
    // Damaged, a cache that is lost, or a collection that was let go just now.
    const code = error instanceof BackupError ? error.code : undefined
    if (code === 'CATALOG_DAMAGED' || code === 'NOTHING_FOUND') return undefined
    throw error
  }
}

/** A collection may have been accepted since. */
function refresh(generation: IndexedGeneration, known: Known): IndexedGeneration {
  const header = known.headers.get(generation.stamp)
  return header === undefined ? generation : generationOf(header)
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
    const rewriting = new Rewriting(index, { generation, left: undefined, sink })
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
