// Why a path is in the collections of a set, or not: the rule, whether it is there now, and which
// collections hold it.
//
// The rule is filter-walk.ts's, asked for one path; sources.ts says what the sources are,
// staging.ts what was collected. Exports are not looked at. Nothing is changed. Throws
// STAGING_FAILED where staging cannot be read; a catalog that is damaged is an answer.

import { lstatSync, type BigIntStats } from 'node:fs'
import { BackupError, systemCode } from '../errors.ts'
import type { Configuration, SetConfiguration } from '../machine/config.ts'
import { isBelow } from '../machine/source-snapshot/mounts.ts'
import { type Entry, encodeEntry } from '../model/entry.ts'
import {
  baseOf,
  isWithin,
  parentOf,
  type RawPath,
  rawPathFromText,
  rawPathToBytes,
} from '../model/raw-path.ts'
import type { Stamp } from '../model/stamp.ts'
import { explainPath, type Explanation } from './filter-walk.ts'
import {
  inspectSources,
  ownPlaces,
  placesWithin,
  realPath,
  type Source,
  type Sources,
} from './sources.ts'
import { type Collection, listStamps, readCollection, surveyCollections } from './staging.ts'

export interface WhyRequest {
  readonly configuration: Configuration
  readonly set: SetConfiguration
  /** Absolute, without `.`, `..` and a trailing slash. */
  readonly path: RawPath
  /** What a path that is not there is taken for. */
  readonly isDirectory: boolean
  /** Of how many collections the catalogs are read, newest first; undefined: of all. */
  readonly collections: number | undefined
}

export interface WhyAnswer {
  readonly set: string
  /** The innermost source that holds the path, as given; undefined where none does. */
  readonly source: RawPath | undefined
  /** Why that source cannot be read now. */
  readonly unreadable: string | undefined
  /** Absolute: as the set collects it, which behind a link is another path. */
  readonly collectedAs: RawPath
  readonly rule: Explanation | undefined
  readonly now: PathFacts | undefined
  /** Newest first. */
  readonly runs: readonly CollectionRun[]
  readonly collectionsRead: number
  readonly collectionsThere: number
}

export interface PathFacts {
  readonly type: string
  /** Of files only. */
  readonly sizeBytes: number | undefined
  readonly mtimeMs: number
}

/** Neighbouring collections of which the same is true: of one path all metadata but its inode. */
export interface CollectionRun {
  readonly state: 'held' | 'absent' | 'missing' | 'damaged'
  readonly newest: Stamp
  readonly oldest: Stamp
  readonly count: number
  /** What it is in them, where it is held. */
  readonly facts: PathFacts | undefined
  /** Why it could not be collected, where it is missing. */
  readonly why: string | undefined
}

/** Asks one set. */
export function explainInSet(request: WhyRequest): WhyAnswer {
  const { configuration, set, path } = request
  const places = ownPlaces(configuration)
  const sources = inspectSources({ texts: set.sources, staging: places[0] ?? '' })
  const found = findSource(path, sources)
  const isReadable = found?.source !== undefined
  const rule = isReadable ? explain(request, { sources, places, found }) : undefined
  const collectedAs = found?.path ?? path
  const stamps = stampsOf(request, found === undefined ? path : undefined)
  const read = stamps.slice(0, request.collections)
  return {
    set: set.name,
    source: found?.given,
    unreadable: found?.unreadable,
    collectedAs,
    rule,
    now: factsNow(path),
    runs: runsOf(request, { path: collectedAs.slice(1), stamps: read }),
    collectionsRead: read.length,
    collectionsThere: stamps.length,
  }
}

/** The source nearest to a path that none holds: that shares the most names with it. */
export function nearestSource(
  sets: readonly SetConfiguration[],
  path: RawPath,
): { readonly set: string; readonly source: RawPath } | undefined {
  const shared = (source: RawPath): number => {
    const [names, others] = [source.split('/'), path.split('/')]
    const first = names.findIndex((name, index) => name !== others[index])
    return first < 0 ? names.length : first
  }
  const all = sets.flatMap(({ name, sources }) =>
    sources.map((source) => ({ set: name, source: rawPathFromText(source).replace(/\/+$/, '') })),
  )
  return all.reduce<(typeof all)[number] | undefined>((best, item) => {
    return best !== undefined && shared(best.source) >= shared(item.source) ? best : item
  }, undefined)
}

/** The source that holds a path, and the path as it is collected. */
interface Found {
  readonly given: RawPath
  readonly path: RawPath
  /** Undefined, and a reason instead, for a source that cannot be read now. */
  readonly source: Source | undefined
  readonly unreadable: string | undefined
}

/** The innermost one: by the path as it was given, or by where it lies behind symbolic links. */
function findSource(path: RawPath, { readable, missing }: Sources): Found | undefined {
  const real = behindLinks(path)
  const found: Found[] = []
  for (const source of readable) {
    const { given } = source
    if (path === given) found.push({ given, path, source, unreadable: undefined })
    else if (isBelow({ path: real, directory: source.real })) {
      const below = real.slice(source.real === '/' ? 0 : source.real.length)
      const collected = `${given === '/' ? '' : given}${below}` || '/'
      found.push({ given, path: collected, source, unreadable: undefined })
    }
  }
  for (const { path: without, why } of missing) {
    const given = `/${without}`
    if (isBelow({ path, directory: given })) {
      found.push({ given, path, source: undefined, unreadable: why })
    }
  }
  return found.reduce<Found | undefined>((best, item) => {
    return best !== undefined && best.given.length >= item.given.length ? best : item
  }, undefined)
}

/** Without symbolic links, but for the last name, which may itself be one, or not be there. */
function behindLinks(path: RawPath): RawPath {
  if (path === '/') return path
  const parent = parentOf(path) || '/'
  const name = baseOf(path)
  const below = (directory: RawPath): RawPath => `${directory === '/' ? '' : directory}/${name}`
  try {
    return below(realPath(parent))
  } catch (error) {
    if (systemCode(error) === undefined) throw error
    return below(behindLinks(parent))
  }
}

function explain(
  { set, isDirectory }: WhyRequest,
  {
    sources,
    places,
    found,
  }: { readonly sources: Sources; readonly places: readonly RawPath[]; readonly found: Found },
): Explanation {
  const { readable } = sources
  const asRsync = (source: Source) => ({
    root: '',
    path: source.given,
    isDirectory: source.isDirectory,
  })
  const request = {
    sources: readable.map(asRsync),
    filters: set.filters,
    exclusions: set.exclusions,
    leftOut: placesWithin({ sources: readable, places }),
  }
  const source = { root: '', path: found.given, isDirectory: found.source?.isDirectory === true }
  return explainPath(request, { source, path: found.path, isDirectory })
}

function factsNow(path: RawPath): PathFacts | undefined {
  try {
    const stat = lstatSync(rawPathToBytes(path), { bigint: true })
    const sizeBytes = stat.isFile() ? Number(stat.size) : undefined
    return { type: typeOf(stat), sizeBytes, mtimeMs: milliseconds(stat.mtimeNs) }
  } catch (error) {
    if (systemCode(error) === undefined) throw error
    return undefined
  }
}

function typeOf(stat: BigIntStats): string {
  if (stat.isFile()) return 'file'
  if (stat.isDirectory()) return 'directory'
  return stat.isSymbolicLink() ? 'symlink' : 'special file'
}

function milliseconds(timeNs: bigint): number {
  return Number(timeNs / 1_000_000n)
}

/**
 * Newest first. Where no source holds the path any more, only the collections whose own sources
 * did: their headers say so, and the others need not be read.
 */
function stampsOf({ configuration, set }: WhyRequest, path: RawPath | undefined): Stamp[] {
  const place = { staging: configuration.staging, set: set.name }
  if (path === undefined) return listStamps(place).reverse()
  const holds = (source: RawPath): boolean => isWithin({ path: path.slice(1), directory: source })
  return surveyCollections(place)
    .collections.filter(({ sources }) => sources.some((source) => holds(source.path)))
    .map(({ stamp }) => stamp)
    .reverse()
}

type Finding = Pick<CollectionRun, 'state' | 'facts' | 'why'> & { readonly sameness: string }

function runsOf(
  { configuration, set }: WhyRequest,
  { path, stamps }: { readonly path: RawPath; readonly stamps: readonly Stamp[] },
): CollectionRun[] {
  const runs: CollectionRun[] = []
  let sameness: string | undefined
  for (const stamp of stamps) {
    const finding = findIn({ staging: configuration.staging, set: set.name, stamp }, path)
    if (finding === undefined) continue
    const last = runs.at(-1)
    if (last !== undefined && finding.sameness === sameness) {
      runs[runs.length - 1] = { ...last, oldest: stamp, count: last.count + 1 }
    } else {
      const { state, facts, why } = finding
      runs.push({ state, newest: stamp, oldest: stamp, count: 1, facts, why })
    }
    sameness = finding.sameness
  }
  return runs
}

/** Undefined for a collection that has gone since it was listed. */
function findIn(place: Parameters<typeof readCollection>[0], path: RawPath): Finding | undefined {
  let collection: Collection
  try {
    collection = readCollection(place)
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    if (error.code === 'NOTHING_FOUND') return undefined
    if (error.code !== 'CATALOG_DAMAGED') throw error
    return { state: 'damaged', facts: undefined, why: undefined, sameness: 'damaged' }
  }
  const entry = collection.entries.find((item) => item.path === path)
  if (entry !== undefined) {
    const { inode, bornNs, ...metadata } = entry
    const facts = factsOf(entry)
    return { state: 'held', facts, why: undefined, sameness: encodeEntry(metadata) }
  }
  const { missing } = collection.header
  const why = missing.find((item) => isWithin({ path, directory: item.path }))?.why
  const state = why === undefined ? 'absent' : 'missing'
  return { state, facts: undefined, why, sameness: `${state} ${why}` }
}

function factsOf({ type, size, mtimeNs }: Entry): PathFacts {
  return { type, sizeBytes: size, mtimeMs: milliseconds(mtimeNs) }
}
