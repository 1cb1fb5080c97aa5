// The version index of a set: every path that a known generation holds, and in which generations
// it was which version.
//
// lib/work/versions.ts keeps it on disk. A path has a line of runs, oldest first, joined by `|`:
// `<from>-<to>:<version>` and, where the newest generation still has it, `<from>:<version>`.
// Generations are named by the seconds of their stamps in base 36, so none has to be renumbered
// when another goes, and what did not change needs no new line. encodeTable and parseTable are
// inverses, encodeBlock and splitBlock, versionOf and parseVersion too. Pure. Throws
// CATALOG_DAMAGED.

import assert from 'node:assert/strict'
import { Buffer } from 'node:buffer'
import { BackupError } from '../errors.ts'
import type { MissingPath } from './collection.ts'
import {
  count,
  encodeTime,
  type Entry,
  type EntryMetadata,
  type EntryType,
  list,
  parseEntry,
  parseObject,
  parseTime,
  putPath,
  record,
  takePath,
  text,
  type TimeNs,
} from './entry.ts'
import { parentOf, type RawPath, rawPathFromText } from './raw-path.ts'
import { parseStamp, type Stamp } from './stamp.ts'

export interface IndexedGeneration {
  readonly stamp: Stamp
  readonly complete: boolean
  readonly isSuspect: boolean
  readonly missing: readonly MissingPath[]
  /** Without a leading slash; none where they are not known. */
  readonly sources: readonly RawPath[]
}

/** `[offset, length]` of a frame in the file. */
type Extent = readonly [offset: number, length: number]

/** Some neighbouring paths, and their lines, each as one frame. */
export interface IndexBlock {
  readonly first: RawPath
  readonly count: number
  readonly paths: Extent
  readonly lines: Extent
}

export interface IndexTable {
  readonly set: string
  /** Oldest first. */
  readonly generations: readonly IndexedGeneration[]
  readonly blocks: readonly IndexBlock[]
}

/** What an entry was, as text: equal texts are the same version. */
export type VersionText = string

/** A version, taken apart. */
export interface Version {
  readonly type: EntryType
  /** Of a file. */
  readonly sizeBytes: number | undefined
  readonly mtimeNs: TimeNs
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** Of what is no file: a digest of where it leads, or the numbers of a device. */
  readonly content: string
  /** A digest of extended attributes, ACLs, flags and time of birth; empty for none. */
  readonly attributes: string
}

/** Increased whenever a program that knows an older one would misread it. */
const FORMAT = 1

/** No path and no line has them. */
const PATH_END = '\0'
const LINE_END = '\n'

const TYPE_LETTERS: Readonly<Record<EntryType, string>> = {
  file: 'f',
  directory: 'd',
  symlink: 'l',
  link: 'h',
  fifo: 'p',
  char: 'c',
  block: 'b',
  socket: 's',
}

const TYPES = new Map(Object.entries(TYPE_LETTERS).map(([type, letter]) => [letter, type]))

/** The version of an entry; its path, its inode and where its bytes are do not count. */
export function versionOf(entry: EntryMetadata): VersionText {
  const { type, mode, uid, gid, mtimeNs } = entry
  const start = TYPE_LETTERS[type] + contentOf(entry)
  return `${start},${encodeTime(mtimeNs)},${mode.toString(8)},${uid},${gid},${attributesOf(entry)}`
}

function contentOf({ size, target, device }: EntryMetadata): string {
  if (size !== undefined) return String(size)
  if (target !== undefined) return digest(target)
  return device === undefined ? '' : device.join('.')
}

function attributesOf({ xattrs, acl, defaultAcl, flags, birthNs }: EntryMetadata): string {
  const birth = birthNs === undefined ? '' : encodeTime(birthNs)
  const isPlain = xattrs === undefined && acl === undefined && defaultAcl === undefined
  if (isPlain && flags === undefined) return birth === '' ? '' : digest(birth)
  const values = [...(xattrs ?? [])].map(([name, value]) => [name, value.toString('base64')])
  return digest(JSON.stringify([birth, values, acl ?? '', defaultAcl ?? '', flags ?? []]))
}

/** Files and directories without anything unusual, as encodeEntry writes them. */
const PLAIN_LINE = new RegExp(
  [
    '^\\{"path":"([^"\\\\]*)","type":"(file|directory)","mode":(\\d+),"uid":(\\d+),"gid":(\\d+)',
    '(?:,"user":"[^"\\\\]*")?(?:,"group":"[^"\\\\]*")?,"mtime":"(-?\\d+\\.\\d{9})"',
    '(?:,"size":(\\d+))?(?:,"birth":"(-?\\d+\\.\\d{9})")?',
    '(?:,"inode":\\d+)?(?:,"born":"[^"]*")?\\}$',
  ].join(''),
)

/**
 * The same of a line of a catalog in staging: parsing all of it takes ten times as long, and most
 * lines have nothing unusual.
 * @throws BackupError CATALOG_DAMAGED
 */
export function versionOfLine(line: string): {
  readonly path: RawPath
  readonly version: VersionText
} {
  const plain = PLAIN_LINE.exec(line)
  if (plain === null) {
    const entry: Entry = parseEntry(line)
    return { path: entry.path, version: versionOf(entry) }
  }
  const [, path = '', type, mode, uid, gid, mtime, size = '', birth] = plain
  const letter = type === 'file' ? 'f' : 'd'
  const attributes = birth === undefined ? '' : digest(birth)
  const permissions = Number(mode).toString(8)
  const version = `${letter}${size},${mtime},${permissions},${uid},${gid},${attributes}`
  return { path: rawPathFromText(path), version }
}

/**
 * 53 bits: enough to tell versions of one path from each other. Nobody need be kept from forging.
 */
function digest(content: string): string {
  let low = 0xdeadbeef
  let high = 0x41c6ce57
  for (let i = 0; i < content.length; i++) {
    const code = content.charCodeAt(i)
    low = Math.imul(low ^ code, 2654435761)
    high = Math.imul(high ^ code, 1597334677)
  }
  low = Math.imul(low ^ (low >>> 16), 2246822507) ^ Math.imul(high ^ (high >>> 13), 3266489909)
  high = Math.imul(high ^ (high >>> 16), 2246822507) ^ Math.imul(low ^ (low >>> 13), 3266489909)
  return (4294967296 * (2097151 & high) + (low >>> 0)).toString(36)
}

/** @throws BackupError CATALOG_DAMAGED for what versionOf would not have written */
export function parseVersion(version: VersionText): Version {
  const [start = '', mtime, mode, uid, gid, attributes = ''] = version.split(',')
  const type = TYPES.get(start.slice(0, 1)) as EntryType | undefined
  if (type === undefined) throw damaged('a version has an unknown type')
  const content = start.slice(1)
  return {
    type,
    sizeBytes: type === 'file' ? count(Number(content), 'size') : undefined,
    mtimeNs: parseTime(mtime),
    mode: count(parseInt(mode ?? '', 8), 'mode'),
    uid: count(Number(uid), 'uid'),
    gid: count(Number(gid), 'gid'),
    content: type === 'file' ? '' : content,
    attributes,
  }
}

/** What differs between two versions of a path. */
export type Change = 'type' | 'size' | 'time' | 'target' | 'mode' | 'owner' | 'attributes'

/** `attributes` can be left out where one side does not know them. */
export function changesBetween(before: Version, after: Version): Change[] {
  if (before.type !== after.type) return ['type']
  const changes: Change[] = []
  if (before.sizeBytes !== after.sizeBytes) changes.push('size')
  if (before.content !== after.content) changes.push('target')
  if (before.mtimeNs !== after.mtimeNs) changes.push('time')
  if (before.mode !== after.mode) changes.push('mode')
  if (before.uid !== after.uid || before.gid !== after.gid) changes.push('owner')
  if (before.attributes !== after.attributes) changes.push('attributes')
  return changes
}

/** A generation as lines name it: the seconds of its stamp. */
export function generationNumber(stamp: Stamp): number {
  const epochMs = parseStamp(stamp)
  assert(epochMs !== undefined, 'a generation has a stamp')
  return epochMs / 1000
}

/** One run of a line. An open one has no end: `to` is Infinity. */
interface Run {
  readonly from: number
  readonly to: number
  readonly version: VersionText
}

function encodeRun({ from, to, version }: Run): string {
  const end = to === Infinity ? '' : `-${to.toString(36)}`
  return `${from.toString(36)}${end}:${version}`
}

function parseRun(text: string): Run {
  const colon = text.indexOf(':')
  const dash = text.indexOf('-')
  const isOpen = dash < 0 || dash > colon
  const from = parseInt(text.slice(0, isOpen ? colon : dash), 36)
  const to = isOpen ? Infinity : parseInt(text.slice(dash + 1, colon), 36)
  if (colon < 1 || Number.isNaN(from) || Number.isNaN(to)) throw damaged('a run is malformed')
  return { from, to, version: text.slice(colon + 1) }
}

function parseRuns(line: string): Run[] {
  return line === '' ? [] : line.split('|').map(parseRun)
}

/** Where a generation comes among those that the lines know, oldest first. */
export interface Place {
  readonly number: number
  /** Undefined at either end. */
  readonly previous: number | undefined
  readonly next: number | undefined
}

/**
 * A line once another generation is known. `line` is empty for a path that was not known, and
 * `version` undefined where the generation lacks the path.
 */
export function withGeneration(
  line: string,
  place: Place,
  version: VersionText | undefined,
): string {
  return place.next === undefined ? continued(line, place, version) : inserted(line, place, version)
}

/** Nearly every line: the generation is the newest, and what did not change stays as it is. */
function continued(line: string, place: Place, version: VersionText | undefined): string {
  const { number, previous } = place
  if (line === '')
    return version === undefined ? '' : encodeRun({ from: number, to: Infinity, version })
  const start = line.lastIndexOf('|') + 1
  const isSame = version !== undefined && line.endsWith(version)
  if (isSame && isOpenAt(line, { start, version })) return line
  const last = parseRun(line.slice(start))
  const isCurrent = previous !== undefined && last.to >= previous
  if (version === undefined) {
    if (!isCurrent || last.to !== Infinity) return line
    return line.slice(0, start) + encodeRun({ ...last, to: previous })
  }
  if (isCurrent && last.version === version) {
    return last.to === Infinity ? line : line.slice(0, start) + encodeRun({ ...last, to: Infinity })
  }
  const ended = last.to === Infinity && previous !== undefined ? { ...last, to: previous } : last
  const fresh = encodeRun({ from: number, to: Infinity, version })
  return `${line.slice(0, start)}${encodeRun(ended)}|${fresh}`
}

/** Whether the last run, which begins at `start`, is open and has this version. */
function isOpenAt(
  line: string,
  { start, version }: { readonly start: number; readonly version: VersionText },
): boolean {
  const colon = line.length - version.length - 1
  return line.indexOf(':', start) === colon && line.lastIndexOf('-', colon) < start
}

function inserted(
  line: string,
  { number, previous, next }: Place,
  version: VersionText | undefined,
): string {
  const runs = parseRuns(line)
  const around = runs.find(({ from, to }) => from <= number && number <= to)
  if (around?.version === version) return line
  const others = runs.filter((run) => run !== around)
  if (around !== undefined && previous !== undefined && around.from <= previous) {
    others.push({ ...around, to: previous })
  }
  if (around !== undefined && next !== undefined && next <= around.to) {
    others.push({ ...around, from: next })
  }
  if (version !== undefined) others.push({ from: number, to: number, version })
  return others
    .sort((one, other) => one.from - other.from)
    .map(encodeRun)
    .join('|')
}

/**
 * A line without the runs that no generation is left of; empty where nothing is left.
 * @param numbers of the generations that are left, oldest first
 */
export function swept(line: string, numbers: readonly number[]): string {
  if (line !== '' && !line.includes('|')) {
    const { from, to } = parseRun(line)
    if (to === Infinity && from <= (numbers.at(-1) ?? -1)) return line
  }
  return parseRuns(line)
    .filter(({ from, to }) => atLeast(numbers, from) < above(numbers, to))
    .map(encodeRun)
    .join('|')
}

/** The index of the first number that is not below. */
function atLeast(numbers: readonly number[], wanted: number): number {
  let low = 0
  let high = numbers.length
  while (low < high) {
    const middle = (low + high) >> 1
    if (numbers[middle]! < wanted) low = middle + 1
    else high = middle
  }
  return low
}

/** The index of the first number above. */
function above(numbers: readonly number[], wanted: number): number {
  return wanted === Infinity ? numbers.length : atLeast(numbers, wanted + 1)
}

/** What is true of neighbouring generations: the indexes of the first and the last. */
export interface Span {
  readonly first: number
  readonly last: number
  /** Undefined where the path is not in them. */
  readonly version: VersionText | undefined
}

/**
 * What a line says of some generations, all of them, oldest first. Neighbours of which the same is
 * true are one span.
 */
export function spansOf(line: string, numbers: readonly number[]): Span[] {
  const spans: Span[] = []
  const add = (span: Span): void => {
    if (span.first > span.last) return
    const before = spans.at(-1)
    if (before === undefined || before.version !== span.version) spans.push(span)
    else spans[spans.length - 1] = { ...before, last: span.last }
  }
  let next = 0
  for (const { from, to, version } of parseRuns(line)) {
    const first = Math.max(next, atLeast(numbers, from))
    const end = above(numbers, to)
    if (end <= first) continue
    add({ first: next, last: first - 1, version: undefined })
    add({ first, last: end - 1, version })
    next = end
  }
  add({ first: next, last: numbers.length - 1, version: undefined })
  return spans
}

/** The version of a path in one generation; undefined where it is not there. */
export function versionAt(line: string, number: number): VersionText | undefined {
  for (let end = line.length; end > 0;) {
    const start = line.lastIndexOf('|', end - 1) + 1
    const { from, to, version } = parseRun(line.slice(start, end))
    if (number > to) return undefined
    if (number >= from) return version
    end = start - 1
  }
  return undefined
}

/** Whether two generations have the same of a path; `absent` where neither has it. */
export function isSameIn(
  line: string,
  { one, other }: { readonly one: number; readonly other: number },
): 'same' | 'absent' | 'different' {
  if (!line.includes('|')) {
    // Nearly every line.
    const { from, to } = parseRun(line)
    const has = [one, other].filter((number) => from <= number && number <= to)
    return has.length === 2 ? 'same' : has.length === 0 ? 'absent' : 'different'
  }
  const [first, second] = [versionAt(line, one), versionAt(line, other)]
  if (first !== second) return 'different'
  return first === undefined ? 'absent' : 'same'
}

/** Why a path was not collected: itself, or a directory above it. */
export function reasonMissing(
  missing: ReadonlyMap<RawPath, string>,
  path: RawPath,
): string | undefined {
  if (missing.size === 0) return undefined
  for (let above = path; above !== ''; above = parentOf(above)) {
    const why = missing.get(above)
    if (why !== undefined) return why
  }
  return undefined
}

/** The paths of a block as its frame has them, absolute. */
export function encodePaths(paths: readonly RawPath[]): Buffer {
  return Buffer.from(`/${paths.join(`${PATH_END}/`)}`, 'latin1')
}

/** Its inverse, with a slash before each path. */
export function splitPaths(bytes: Buffer): RawPath[] {
  return bytes.toString('latin1').split(PATH_END)
}

export function encodeLines(lines: readonly string[]): Buffer {
  return Buffer.from(lines.join(LINE_END), 'latin1')
}

export function splitLines(bytes: Buffer): string[] {
  return bytes.toString('latin1').split(LINE_END)
}

export function encodeTable({ set, generations, blocks }: IndexTable): Buffer {
  const table = {
    format: FORMAT,
    set,
    generations: generations.map(({ stamp, complete, isSuspect, missing, sources }) => {
      const lacking = missing.map(({ path, why }) => ({ ...encodedPath(path), why }))
      return { stamp, complete, isSuspect, missing: lacking, sources: sources.map(encodedPath) }
    }),
    blocks: blocks.map(({ first, ...block }) => ({ ...encodedPath(first), ...block })),
  }
  return Buffer.from(JSON.stringify(table))
}

/** @throws BackupError CATALOG_DAMAGED, also for another format: the index is made anew then */
export function parseTable(bytes: Buffer): IndexTable {
  const object = parseObject(bytes.toString('utf8'))
  if (object['format'] !== FORMAT) throw damaged('it has another format')
  return {
    set: text(object['set']),
    generations: list(object['generations']).map(parseGeneration),
    blocks: list(object['blocks']).map(parseBlock),
  }
}

function parseGeneration(value: unknown): IndexedGeneration {
  const object = record(value)
  const { stamp, complete, isSuspect } = object
  if (parseStamp(text(stamp)) === undefined) throw damaged('a generation has no stamp')
  return {
    stamp: text(stamp),
    complete: complete === true,
    isSuspect: isSuspect === true,
    missing: list(object['missing']).map((item) => {
      return { path: requiredPath(item), why: text(record(item)['why']) }
    }),
    sources: list(object['sources']).map(requiredPath),
  }
}

function parseBlock(value: unknown): IndexBlock {
  const object = record(value)
  return {
    first: requiredPath(value),
    count: count(object['count'], 'count'),
    paths: parseExtent(object['paths']),
    lines: parseExtent(object['lines']),
  }
}

function parseExtent(value: unknown): Extent {
  const [offset, length] = list(value)
  return [count(offset, 'offset'), count(length, 'length')]
}

function encodedPath(path: RawPath): Record<string, unknown> {
  const out: Record<string, unknown> = {}
  putPath(out, { name: 'path', path })
  return out
}

function requiredPath(value: unknown): RawPath {
  const path = takePath(record(value), 'path')
  if (path === undefined) throw damaged('a path is missing')
  return path
}

function damaged(what: string): BackupError {
  return new BackupError('CATALOG_DAMAGED', `a version index is malformed: ${what}`)
}
