// One walk over the sources, before rsync: everything that a set's filters leave out.
//
// Only what rsync cannot express is named here (lib/model/filter.ts, ignore-file.ts); its own
// patterns and the globs it understands are looked at so that the walk does not descend into what
// they leave out. It names the topmost paths only, so its memory grows with what is left out, not
// with the tree. explainPath goes the same way down to one path, and asks the same Decider: so
// `backup why` says what a collection does. What cannot be read is no failure: rsync reports a
// directory, `unreadable` the rest. Throws nothing but system errors that are none of a path's own.

import { Buffer } from 'node:buffer'
import {
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  openSync,
  readdirSync,
  readSync,
  type Stats,
} from 'node:fs'
import { systemCode } from '../errors.ts'
import type { FilterConfiguration } from '../machine/config.ts'
import type { RsyncSource } from '../machine/rsync.ts'
import { type Mount, mountOf, readMounts } from '../machine/source-snapshot/mounts.ts'
import { formatSize } from '../model/amount.ts'
import type { MissingPath } from '../model/collection.ts'
import {
  CACHE_SIGNATURE,
  CACHE_TAG,
  compilePathFilters,
  type FilterReason,
  filterText,
  hasCacheSignature,
  isForRsync,
  type PathFilter,
} from '../model/filter.ts'
import { decidingIgnoreRule, type IgnoreFile, parseIgnoreFile } from '../model/ignore-file.ts'
import {
  baseOf,
  displayPath,
  type RawPath,
  rawPathFromText,
  rawPathToBytes,
} from '../model/raw-path.ts'
import {
  decidingRule,
  type LeftOutRule,
  parseRsyncRule,
  type RsyncRule,
} from '../model/rsync-pattern.ts'
import { realPath } from './sources.ts'

export interface FilterRequest {
  readonly sources: readonly RsyncSource[]
  readonly filters: FilterConfiguration
  /** rsync patterns as the user wrote them, text. */
  readonly exclusions: readonly string[]
  /** Our own places, absolute, as a collection would have them. */
  readonly leftOut: readonly RawPath[]
}

export interface LeftOutPath extends LeftOutRule {
  readonly reason: FilterReason
}

export interface FilterOutcome {
  /** The topmost paths only, absolute; leftOutRules makes rsync's rules of them. */
  readonly leftOut: readonly LeftOutPath[]
  /** Ignore files and cache tags that were not read, and so leave nothing out. */
  readonly unreadable: readonly MissingPath[]
  /** How many entries the walk looked at. */
  readonly entries: number
}

/** Why a path is in its set's collections, or not. */
export interface Explanation {
  readonly taken: boolean
  /** The path itself, or the directory above it that is left out. */
  readonly at: RawPath
  readonly reason: FilterReason
}

/** gitignore(5) files have some lines; a larger one is something else by that name. */
const MAX_IGNORE_FILE_BYTES = 4 * 1024 * 1024

/** Whether anything is set that rsync cannot express: only then there is something to walk for. */
export function hasFilters(filters: FilterConfiguration): boolean {
  const { regexes, ignoreFiles, skipMarkers } = filters
  const globs = filters.globs.filter((glob) => !isForRsync(glob))
  return (
    [globs, regexes, ignoreFiles, skipMarkers].some((list) => list.length > 0)
    || filters.skipCaches
    || filters.maxSizeBytes !== undefined
    || filters.oneFilesystem
  )
}

/** Looks at everything that rsync is going to read. */
export function walkFilters(request: FilterRequest): FilterOutcome {
  const decider = new Decider(request)
  const leftOut = new Map<RawPath, LeftOutPath>()
  let entries = 0
  const walk = (where: Place, above: Directory | undefined): void => {
    const items = readItems(where)
    if (items === undefined) return
    entries += items.length
    const directory = decider.open(where, { above, items })
    if (directory.skipped !== undefined) {
      const path = directory.path || '/'
      leftOut.set(path, { path, isDirectory: true, ...directory.skipped })
      return
    }
    for (const item of items) {
      const { isTaken, reason, isOurs } = decider.decide(directory, item)
      const path = `${directory.path}/${item.name}`
      const { isDirectory } = item
      if (isOurs && reason !== undefined) leftOut.set(path, { path, isDirectory, reason })
      // A source within a source is walked as one of its own.
      if (isTaken && isDirectory && reason?.kind !== 'source') {
        walk({ root: directory.root, path }, directory)
      }
    }
  }
  for (const source of request.sources) if (source.isDirectory) walk(topOf(source), undefined)
  return { leftOut: [...leftOut.values()], unreadable: decider.unreadable, entries }
}

/**
 * What the walk says of one path, which need not be there. `source` holds it, and no source within
 * that one does; `isDirectory` counts only for a path that is not there.
 */
export function explainPath(
  request: FilterRequest,
  {
    source,
    path,
    isDirectory,
  }: { readonly source: RsyncSource; readonly path: RawPath; readonly isDirectory: boolean },
): Explanation {
  const decider = new Decider(request)
  const top = topOf(source)
  let reason: FilterReason = { kind: 'source', rule: displayPath(source.path) }
  let above: Directory | undefined
  let at = top.path
  const names = path === source.path ? [] : path.slice(top.path.length + 1).split('/')
  for (const [index, name] of names.entries()) {
    const where = { root: top.root, path: at }
    above = decider.open(where, { above, items: decider.telling(where) })
    at = `${at}/${name}`
    const isLast = index === names.length - 1
    const absent = { name, isDirectory: !isLast || isDirectory, isFile: isLast && !isDirectory }
    const decision = decider.decide(above, itemAt({ root: top.root, path: at }) ?? absent)
    if (!decision.isTaken) return { taken: false, at, reason: decision.reason }
    reason = decision.reason ?? reason
  }
  return { taken: true, at: at || '/', reason }
}

/** A path of a collection, and where it is read. */
interface Place {
  readonly root: RawPath
  /** Absolute; empty for the root of everything. */
  readonly path: RawPath
}

interface Item {
  readonly name: RawPath
  readonly isDirectory: boolean
  readonly isFile: boolean
}

interface Directory extends Place {
  /** As filterText makes it. */
  readonly text: string
  /** Its own and those above, outermost first. */
  readonly ignoreFiles: readonly IgnoreFile[]
  /** Known only where a filter asks for it. */
  readonly device: number | undefined
  /** It stays, and what is kept in it; all else goes. */
  readonly skipped: { readonly kept: readonly RawPath[]; readonly reason: FilterReason } | undefined
}

type Decision =
  | { readonly isTaken: true; readonly reason: FilterReason | undefined; readonly isOurs: false }
  /** `isOurs`: a filter did it, and rsync has to be told. */
  | { readonly isTaken: false; readonly reason: FilterReason; readonly isOurs: boolean }

function topOf({ root, path }: RsyncSource): Place {
  return { root, path: path === '/' ? '' : path }
}

function onDisk({ root, path }: Place): Buffer {
  return rawPathToBytes(`${root}${path || '/'}`)
}

/** Undefined for what cannot be listed: rsync says so. */
function readItems(where: Place): Item[] | undefined {
  try {
    return readdirSync(onDisk(where), { encoding: 'buffer', withFileTypes: true }).map((entry) => ({
      name: entry.name.toString('latin1'),
      isDirectory: entry.isDirectory(),
      isFile: entry.isFile(),
    }))
  } catch (error) {
    if (systemCode(error) === undefined) throw error
    return undefined
  }
}

function itemAt(where: Place): Item | undefined {
  const stat = statOf(where)
  if (stat === undefined) return undefined
  return { name: baseOf(where.path), isDirectory: stat.isDirectory(), isFile: stat.isFile() }
}

function statOf(where: Place): Stats | undefined {
  try {
    return lstatSync(onDisk(where))
  } catch (error) {
    if (systemCode(error) === undefined) throw error
    return undefined
  }
}

/** The rules of a set, and what they say of one item of one directory. */
class Decider {
  readonly unreadable: MissingPath[] = []
  readonly #filters: FilterConfiguration
  readonly #pathFilter: PathFilter | undefined
  readonly #rsyncRules: readonly RsyncRule[]
  readonly #ownPlaces: ReadonlySet<RawPath>
  readonly #sources: ReadonlyMap<RawPath, RsyncSource>
  readonly #ignoreNames: readonly RawPath[]
  readonly #markerNames: readonly RawPath[]
  /** The names of files that tell something about their directory. */
  readonly #tellingNames: ReadonlySet<RawPath>
  #mounts: readonly Mount[] | undefined

  constructor({ sources, filters, exclusions, leftOut }: FilterRequest) {
    this.#filters = filters
    const { globs, regexes } = filters
    if (globs.length + regexes.length > 0) this.#pathFilter = compilePathFilters({ globs, regexes })
    this.#rsyncRules = exclusions.map((text) => parseRsyncRule(rawPathFromText(text)))
    this.#ownPlaces = new Set(leftOut)
    this.#sources = new Map(sources.map((source) => [source.path, source]))
    this.#ignoreNames = filters.ignoreFiles.map(rawPathFromText)
    this.#markerNames = filters.skipMarkers.map(rawPathFromText)
    const tags = filters.skipCaches ? [CACHE_TAG] : []
    this.#tellingNames = new Set([...this.#ignoreNames, ...this.#markerNames, ...tags])
  }

  /** The items of a directory that tell something about it, where the others do not matter. */
  telling(where: Place): Item[] {
    const found = [...this.#tellingNames].map((name) => {
      return itemAt({ root: where.root, path: `${where.path}/${name}` })
    })
    return found.filter((item) => item !== undefined)
  }

  /** `above`: undefined for the top of a source. */
  open(
    where: Place,
    { above, items }: { readonly above: Directory | undefined; readonly items: readonly Item[] },
  ): Directory {
    const telling =
      this.#tellingNames.size === 0 ? [] : items.filter(({ name }) => this.#tellingNames.has(name))
    const device = this.#filters.oneFilesystem ? statOf(where)?.dev : undefined
    const isForeign = above !== undefined && device !== above.device
    const mount = isForeign ? this.#foreignMount(where, above) : undefined
    return {
      ...where,
      text: this.#pathFilter === undefined ? '' : filterText(where.path),
      ignoreFiles: [...(above?.ignoreFiles ?? []), ...this.#ignoreFilesOf(where, telling)],
      device,
      skipped: mount ?? this.#skippedBy(where, telling),
    }
  }

  decide(directory: Directory, item: Item): Decision {
    const { name, isDirectory } = item
    const path = `${directory.path}/${name}`
    if (isDirectory && name === 'lost+found') return ownPlace('lost+found is never collected')
    if (isDirectory && this.#ownPlaces.has(path)) {
      return ownPlace('staging and targets are never collected')
    }
    const source = this.#sources.get(path)
    if (source !== undefined && (isDirectory || !source.isDirectory)) {
      const reason: FilterReason = { kind: 'source', rule: displayPath(path) }
      return { isTaken: true, isOurs: false, reason }
    }
    if (directory.skipped !== undefined) {
      const { kept, reason } = directory.skipped
      if (isDirectory || !kept.includes(name)) return { isTaken: false, isOurs: true, reason }
      return { isTaken: true, isOurs: false, reason: undefined }
    }
    const rule = decidingRule(this.#rsyncRules, path, isDirectory)
    if (rule?.takes === false) return { isTaken: false, isOurs: false, reason: exclusion(rule) }
    const reason = rule === undefined ? undefined : exclusion(rule)
    return this.#decideByFilters(directory, item) ?? { isTaken: true, isOurs: false, reason }
  }

  #decideByFilters(directory: Directory, item: Item): Decision | undefined {
    const { name, isDirectory, isFile } = item
    const path = `${directory.path}/${name}`
    const byPath = this.#pathFilter?.(`${directory.text}/${filterText(name)}`, isDirectory)
    if (byPath !== undefined) {
      const isOurs = byPath.kind !== 'glob' || !isForRsync(byPath.rule)
      return { isTaken: false, isOurs, reason: byPath }
    }
    const { maxSizeBytes } = this.#filters
    if (isFile && maxSizeBytes !== undefined) {
      const size = statOf({ root: directory.root, path })?.size ?? 0
      const reason: FilterReason = { kind: 'size', rule: formatSize(maxSizeBytes) }
      if (size > maxSizeBytes) return { isTaken: false, isOurs: true, reason }
    }
    const found = decidingIgnoreRule(directory.ignoreFiles, path, isDirectory)
    if (found === undefined) return undefined
    const { file, rule } = found
    const place = { path: file.path, line: rule.line }
    const reason: FilterReason = { kind: 'ignore-file', rule: filterText(rule.text), file: place }
    if (rule.takes) return { isTaken: true, isOurs: false, reason }
    return { isTaken: false, isOurs: true, reason }
  }

  #skippedBy(where: Place, telling: readonly Item[]): Directory['skipped'] {
    const isTag = (item: Item): boolean => item.name === CACHE_TAG && this.#isCache(where, item)
    const tags = telling.filter(isTag).map(({ name }) => name)
    const markers = this.#markerNames.filter((name) => {
      return telling.some((item) => item.name === name && !item.isDirectory)
    })
    const kept = [...new Set([...tags, ...markers])]
    const [rule] = kept
    if (rule === undefined) return undefined
    const kind = tags.length > 0 ? 'cache' : 'marker'
    return { kept, reason: { kind, rule: filterText(rule) } }
  }

  #isCache(where: Place, { name, isFile }: Item): boolean {
    if (!this.#filters.skipCaches || !isFile) return false
    const tag = { root: where.root, path: `${where.path}/${name}` }
    const content = this.#readStart(tag, CACHE_SIGNATURE.length)
    return content !== undefined && hasCacheSignature(content)
  }

  #ignoreFilesOf(where: Place, telling: readonly Item[]): IgnoreFile[] {
    return this.#ignoreNames.flatMap((name) => {
      if (!telling.some((item) => item.name === name && item.isFile)) return []
      const path = `${where.path}/${name}`
      const content = this.#readStart({ root: where.root, path }, MAX_IGNORE_FILE_BYTES + 1)
      if (content === undefined) return []
      if (content.length <= MAX_IGNORE_FILE_BYTES) {
        return [{ path, directory: where.path, rules: parseIgnoreFile(content) }]
      }
      this.#tellUnreadable(path, `larger than ${formatSize(MAX_IGNORE_FILE_BYTES)}`)
      return []
    })
  }

  /** One character a byte; undefined where it cannot be read, which is remembered. */
  #readStart(where: Place, maxBytes: number): string | undefined {
    let fd: number | undefined
    try {
      // A file that became a link or a pipe since it was listed must not lead away or hang.
      fd = openSync(onDisk(where), constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
      const bytes = Buffer.alloc(Math.min(maxBytes, fstatSync(fd).size))
      return bytes.toString('latin1', 0, readSync(fd, bytes, 0, bytes.length, 0))
    } catch (error) {
      const code = systemCode(error)
      if (code === undefined) throw error
      if (code !== 'ENOENT') this.#tellUnreadable(where.path, `cannot be read (${code})`)
      return undefined
    } finally {
      if (fd !== undefined) closeSync(fd)
    }
  }

  #tellUnreadable(path: RawPath, why: string): void {
    this.unreadable.push({ path: path.slice(1), why })
  }

  /**
   * A directory on another device is another filesystem, but for btrfs, where each subvolume has a
   * device number of its own.
   */
  #foreignMount(where: Place, above: Directory): Directory['skipped'] {
    const [here, there] = [this.#mountAt(where), this.#mountAt(above)]
    if (here?.type === 'btrfs' && here.device === there?.device) return undefined
    const rule = here === undefined ? 'something' : filterText(here.device)
    return { kept: [], reason: { kind: 'filesystem', rule } }
  }

  #mountAt({ root, path }: Place): Mount | undefined {
    this.#mounts ??= readMounts()
    try {
      return mountOf(realPath(`${root}${path || '/'}`), this.#mounts)
    } catch (error) {
      if (systemCode(error) === undefined) throw error
      return undefined
    }
  }
}

function exclusion({ text }: RsyncRule): FilterReason {
  return { kind: 'exclusion', rule: filterText(text) }
}

function ownPlace(rule: string): Decision {
  return { isTaken: false, isOurs: false, reason: { kind: 'own-place', rule } }
}
