// Why a path is in the collections of a set, or not: the rule, whether it is there now, and which
// generations hold it.
//
// The rule is filter-walk.ts's, asked for one path; sources.ts says what the sources are, the
// version index what was collected. `backup diff` asks ruleReader for the paths that are new.
// Nothing is changed. Throws STAGING_FAILED where staging cannot be read; a catalog that is damaged
// is an answer.

import { lstatSync, type BigIntStats } from 'node:fs'
import { systemCode } from '../errors.ts'
import type { Configuration, SetConfiguration } from '../machine/config.ts'
import type { RsyncSource } from '../machine/rsync.ts'
import { isBelow } from '../machine/source-snapshot/mounts.ts'
import {
  baseOf,
  isWithin,
  parentOf,
  type RawPath,
  rawPathFromText,
  rawPathToBytes,
} from '../model/raw-path.ts'
import { generationNumber } from '../model/version-index.ts'
import { explainPath, type Explanation, type FilterRequest } from './filter-walk.ts'
import {
  inspectSources,
  ownPlaces,
  placesWithin,
  realPath,
  type Source,
  type Sources,
} from './sources.ts'
import { runReader, type VersionRun } from './version-runs.ts'
import type { Versions } from './versions.ts'

export interface WhyRequest {
  readonly configuration: Configuration
  readonly set: SetConfiguration
  /** Absolute, without `.`, `..` and a trailing slash. */
  readonly path: RawPath
  /** What a path that is not there is taken for. */
  readonly isDirectory: boolean
  /** Of this set. */
  readonly versions: Versions
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
  readonly runs: readonly VersionRun[]
  /** How many they are of. */
  readonly generations: number
  /** Exports that are known to be on targets, but not what is in them. */
  readonly unknown: number
}

export interface PathFacts {
  readonly type: string
  /** Of files only. */
  readonly sizeBytes: number | undefined
  readonly mtimeMs: number
}

/** Asks one set. */
export function explainInSet(request: WhyRequest): WhyAnswer {
  const { configuration, set, path, versions } = request
  const places = ownPlaces(configuration)
  const sources = inspectSources({ texts: set.sources, staging: places[0] ?? '' })
  const found = findSource(path, sources)
  const isReadable = found?.source !== undefined
  const rule = isReadable ? explain(request, { sources, places, found }) : undefined
  const collectedAs = found?.path ?? path
  const asked = found === undefined ? holding(versions, path.slice(1)) : versions
  const line = versions.lineOf(collectedAs.slice(1))
  return {
    set: set.name,
    source: found?.given,
    unreadable: found?.unreadable,
    collectedAs,
    rule,
    now: factsNow(path),
    runs: runReader(asked)(collectedAs.slice(1), line),
    generations: asked.generations.length,
    unknown: asked.unknown.length,
  }
}

/**
 * Where no source holds a path any more, only the generations whose own sources did, or that do not
 * tell their sources.
 */
function holding(versions: Versions, path: RawPath): Versions {
  const generations = versions.generations.filter(({ sources }) => {
    return sources.length === 0 || sources.some((source) => isWithin({ path, directory: source }))
  })
  const numbers = generations.map(({ stamp }) => generationNumber(stamp))
  return { ...versions, generations, numbers, damaged: [] }
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
  { sources, places, found }: Looked & { readonly found: Found },
): Explanation {
  const source = { root: '', path: found.given, isDirectory: found.source?.isDirectory === true }
  const request = filterRequest(set, { sources, places })
  return explainPath(request, { source, path: found.path, isDirectory })
}

/** The sources of a set as they are now, and our own places. */
interface Looked {
  readonly sources: Sources
  readonly places: readonly RawPath[]
}

function filterRequest(set: SetConfiguration, { sources, places }: Looked): FilterRequest {
  const { readable } = sources
  return {
    sources: readable.map(asRsync),
    filters: set.filters,
    exclusions: set.exclusions,
    leftOut: placesWithin({ sources: readable, places }),
  }
}

function asRsync({ given, isDirectory }: Source): RsyncSource {
  return { root: '', path: given, isDirectory }
}

/** What says of one absolute path after another whether a set takes it, by its rules. */
export function ruleReader(
  set: SetConfiguration,
  looked: Looked,
): (path: RawPath, isDirectory: boolean) => boolean {
  const request = filterRequest(set, looked)
  const innermostFirst = looked.sources.readable.toSorted((a, b) => b.given.length - a.given.length)
  return (path, isDirectory) => {
    const source = innermostFirst.find(({ given }) => isBelow({ path, directory: given }))
    if (source === undefined) return false
    return explainPath(request, { source: asRsync(source), path, isDirectory }).taken
  }
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
