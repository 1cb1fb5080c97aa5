// Which paths of a set's version index fit a search: by name, kind, size, and when they were there.
//
// `backup find` asks and tells. Globs are those of a set's filters (lib/model/filter.ts). Names are
// matched first, a block of paths at a time; lines are read only where a name fits. Throws USAGE
// for a search that means nothing, and what reading the index throws.

import { BackupError } from '../errors.ts'
import type { EntryType } from '../model/entry.ts'
import { compileGlob, filterText } from '../model/filter.ts'
import type { RawPath } from '../model/raw-path.ts'
import { matchStamps, parseStamp, type Stamp } from '../model/stamp.ts'
import { generationNumber, parseVersion, type Version } from '../model/version-index.ts'
import { runReader, type VersionRun } from './version-runs.ts'
import type { Versions } from './versions.ts'

export interface Search {
  /** Globs; one is enough. */
  readonly patterns: readonly string[]
  readonly ignoreCase: boolean
  readonly type: 'f' | 'd' | 'l' | undefined
  /** Of files: at least one version is. */
  readonly largerBytes: number | undefined
  readonly smallerBytes: number | undefined
  /** Only what the newest generation lacks. */
  readonly deleted: boolean
}

export interface FoundPath {
  /** Absolute. */
  readonly path: RawPath
  /** Newest first, of the generations that were searched. */
  readonly runs: readonly VersionRun[]
}

/** Which generations are searched: `2025-03..2025-04-15`, where either end may be left out. */
export interface DateRange {
  readonly from: Stamp | undefined
  /** Everything that begins so is within. */
  readonly to: Stamp | undefined
}

/** @throws BackupError USAGE */
export function parseDateRange(text: string): DateRange {
  const [from = '', to = '', ...others] = text.replaceAll(':', '').split('..')
  const isWhole = others.length === 0 && text.includes('..') && `${from}${to}` !== ''
  const isRange = isWhole && [from, to].every((date) => date === '' || beginsStamp(date))
  if (!isRange || (to !== '' && from > to && !from.startsWith(to))) {
    const what = isRange ? 'ends before it begins' : 'is no range of dates'
    throw new BackupError('USAGE', `"${text}" ${what}`, {
      hint: 'give two dates, or one and nothing: 2025-03-01..2025-04-15, 2025-03.., ..2025-04',
    })
  }
  return { from: from === '' ? undefined : from, to: to === '' ? undefined : to }
}

/** Whether a stamp can begin so, with whole numbers. */
function beginsStamp(date: string): boolean {
  const isWhole = /^\d{4}(-\d\d(-\d\d(T(\d\d(\d\d(\d\dZ?)?)?)?)?)?)?$/.test(date)
  return isWhole && parseStamp(`${date}${'0000-01-01T000000Z'.slice(date.length)}`) !== undefined
}

/** The same index with some generations only. */
export function narrowed(versions: Versions, { from, to }: DateRange): Versions {
  const isWithin = (stamp: Stamp): boolean => {
    const isAfter = from === undefined || stamp >= from
    const isBefore = to === undefined || stamp <= to
    return isAfter && (isBefore || matchStamps({ prefix: to ?? '', stamps: [stamp] }).length > 0)
  }
  const generations = versions.generations.filter(({ stamp }) => isWithin(stamp))
  const damaged = versions.damaged.filter(isWithin)
  const numbers = generations.map(({ stamp }) => generationNumber(stamp))
  return { ...versions, generations, numbers, damaged }
}

/** What fits, in catalog order, as it is found. */
export function* findPaths(
  versions: Versions,
  search: Search,
): Generator<FoundPath, void, undefined> {
  const readRuns = runReader(versions)
  const fits = compilePatterns(search)
  const isWanted = versionTest(search)
  for (const { paths, lines: read } of versions.blocks()) {
    let lines: readonly string[] | undefined
    for (const [i, path] of paths.entries()) {
      if (!fits(path)) continue
      lines ??= read()
      const runs = readRuns(path.slice(1), lines[i]!)
      if (search.deleted && runs[0]?.state !== 'absent') continue
      const isFound = runs.some(({ version }) => {
        if (version === undefined || isWanted === undefined) return version !== undefined
        const parsed = parseVersion(version)
        return isWanted(parsed) && fits(path, parsed.type)
      })
      if (isFound) yield { path, runs }
    }
  }
}

/** A glob may want a directory; without a type, whether some type fits. */
type PatternTest = (path: RawPath, type?: EntryType) => boolean

function compilePatterns({ patterns, ignoreCase }: Search): PatternTest {
  const cased = (text: string): string => (ignoreCase ? text.toLowerCase() : text)
  const globs = patterns.map((pattern) => compileGlob(cased(pattern)))
  const notAscii = /[\x80-\xff]/
  return (path, type = 'directory') => {
    const text = cased(notAscii.test(path) ? filterText(path) : path)
    return globs.some((glob) => glob(text, type === 'directory'))
  }
}

const TYPES: Readonly<Record<'f' | 'd' | 'l', readonly EntryType[]>> = {
  f: ['file', 'link'],
  d: ['directory'],
  l: ['symlink'],
}

/** Undefined where any version will do: then none need be taken apart. */
function versionTest({
  patterns,
  type,
  largerBytes,
  smallerBytes,
}: Search): ((version: Version) => boolean) | undefined {
  const types = type === undefined ? undefined : TYPES[type]
  const isSized = largerBytes !== undefined || smallerBytes !== undefined
  const isForDirectories = patterns.some((pattern) => pattern.endsWith('/'))
  if (types === undefined && !isSized && !isForDirectories) return undefined
  return (version) => {
    if (types?.includes(version.type) === false) return false
    if (!isSized) return true
    const { sizeBytes } = version
    if (sizeBytes === undefined) return false
    return sizeBytes > (largerBytes ?? -1) && sizeBytes < (smallerBytes ?? Infinity)
  }
}
