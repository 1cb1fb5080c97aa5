// One path of a catalog: its metadata and, in an export, where its bytes are (docs/format.md §5).
//
// encodeEntry and parseEntry are inverses; parseEntry distrusts every property, for a catalog may
// come from a drive.

import { Buffer } from 'node:buffer'
import { BackupError } from '../errors.ts'
import {
  type RawPath,
  pathFacts,
  rawPathFromText,
  rawPathToBytes,
  rawPathToText,
} from './raw-path.ts'

export type EntryType =
  'file' | 'directory' | 'symlink' | 'link' | 'fifo' | 'char' | 'block' | 'socket'

const ENTRY_TYPES: ReadonlySet<string> = new Set<EntryType>([
  'file',
  'directory',
  'symlink',
  'link',
  'fifo',
  'char',
  'block',
  'socket',
])

/** Inode flags (chattr) that are kept: those that the system can give again. Sorted. */
export const INODE_FLAGS = ['append', 'compressed', 'immutable', 'nodump'] as const

export type InodeFlag = (typeof INODE_FLAGS)[number]

/** Nanoseconds since 1970, possibly negative. */
export type TimeNs = bigint

/** What is true of a path wherever it is stored. */
export interface EntryMetadata {
  readonly path: RawPath
  readonly type: EntryType
  /** Permission bits, 0–4095. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly user?: string
  readonly group?: string
  readonly mtimeNs: TimeNs
  /** Of a file: its length in bytes, holes included. */
  readonly size?: number
  /** Where a symlink points; of a link, the path of its group's first entry. */
  readonly target?: RawPath
  readonly device?: readonly [major: number, minor: number]
  /** Sorted by name; values are raw bytes. ACLs are not among them. */
  readonly xattrs?: ReadonlyMap<string, Buffer>
  readonly acl?: string
  readonly defaultAcl?: string
  /** Data segments `[offset, length]` of a sparse file. */
  readonly sparse?: readonly (readonly [offset: number, length: number])[]
  /** Of the source. No header has it: GNU tar would warn of every member (docs/format.md §3.3). */
  readonly birthNs?: TimeNs
  /** Of a file, link or directory at its source: sorted, each once, never empty. */
  readonly flags?: readonly InodeFlag[]
}

/** `[bundle, offset, length]`: bytes of the uncompressed tar of a bundle. */
export type Range = readonly [bundle: number, offset: number, length: number]

/** `[id, bundle, offset, length]`. */
export type Piece = readonly [id: string, bundle: number, offset: number, length: number]

/** Where a data frame is: in the uncompressed tar of its bundle and in the age payload. Bytes. */
export type FrameRange = readonly [
  tarOffset: number,
  tarLength: number,
  offset: number,
  length: number,
]

export interface Entry extends EntryMetadata {
  /** log2 of the average piece; only for content above 4 MiB. */
  readonly chunk?: number
  readonly header?: Range
  readonly pieces?: readonly Piece[]
  /** Staging's catalogs only: the inode there, and its time of birth. */
  readonly inode?: number
  readonly bornNs?: TimeNs
}

/** How long a path may be: Linux's PATH_MAX. */
export const MAX_PATH_BYTES = 4096

/** What a piece may be at the most: docs/format.md §4, with the largest parameter that is read. */
const MAX_PIECE_BYTES = 64 * 1024 * 1024

/** The largest parameter of the chunker that is read. */
const MAX_CHUNK = 24

/** Linux's XATTR_NAME_MAX. */
const MAX_XATTR_NAME_BYTES = 255

/**
 * All attributes of an entry: they have to fit a tar header, where a name may take thrice as much.
 */
const MAX_XATTRS_BYTES = 16 * 1024 * 1024

/** Names of accounts and ACLs: far more than any system has, far less than a header holds. */
const MAX_TEXT_CHARACTERS = 1024 * 1024

/** As many segments as a tar's map may have. */
const MAX_SPARSE_SEGMENTS = 1_000_000

const TAR_BLOCK_BYTES = 512

/** How long one line of a catalog may be: a 4 TiB file in pieces of 1 MiB, and some. */
export const MAX_ENTRY_BYTES = 512 * 1024 * 1024

/** `"<seconds>.<nine digits>"`; true decimal when negative. */
export function encodeTime(timeNs: TimeNs): string {
  const absolute = timeNs < 0n ? -timeNs : timeNs
  const text = absolute.toString().padStart(10, '0')
  return `${timeNs < 0n ? '-' : ''}${text.slice(0, -9)}.${text.slice(-9)}`
}

export function parseTime(text: unknown): TimeNs {
  if (typeof text !== 'string' || !/^-?\d{1,12}\.\d{9}$/.test(text))
    throw damaged('a time is malformed')
  const negative = text.startsWith('-')
  const absolute = BigInt(text.replace('-', '').replace('.', ''))
  return negative ? -absolute : absolute
}

/**
 * One line of JSON, without the newline. Written by hand: it is the hottest line of every export.
 */
export function encodeEntry(entry: Entry): string {
  let out =
    `{${pathProperty('path', entry.path)},"type":"${entry.type}","mode":${entry.mode}`
    + `,"uid":${entry.uid},"gid":${entry.gid}`
  if (entry.user !== undefined) out += `,"user":${JSON.stringify(entry.user)}`
  if (entry.group !== undefined) out += `,"group":${JSON.stringify(entry.group)}`
  out += `,"mtime":"${encodeTime(entry.mtimeNs)}"`
  if (entry.size !== undefined) out += `,"size":${entry.size}`
  if (entry.target !== undefined) out += `,${pathProperty('target', entry.target)}`
  if (entry.device !== undefined) out += `,"device":${JSON.stringify(entry.device)}`
  if (entry.xattrs !== undefined) out += `,"xattrs":${JSON.stringify(encodeXattrs(entry.xattrs))}`
  if (entry.acl !== undefined) out += `,"acl":${JSON.stringify(entry.acl)}`
  if (entry.defaultAcl !== undefined) out += `,"default_acl":${JSON.stringify(entry.defaultAcl)}`
  if (entry.sparse !== undefined) out += `,"sparse":${JSON.stringify(entry.sparse)}`
  if (entry.birthNs !== undefined) out += `,"birth":"${encodeTime(entry.birthNs)}"`
  if (entry.flags !== undefined) out += `,"flags":${JSON.stringify(entry.flags)}`
  if (entry.chunk !== undefined) out += `,"chunk":${entry.chunk}`
  if (entry.header !== undefined) out += `,"header":[${entry.header.join(',')}]`
  if (entry.pieces !== undefined) out += `,"pieces":[${entry.pieces.map(encodePiece).join(',')}]`
  if (entry.inode !== undefined) out += `,"inode":${entry.inode}`
  if (entry.bornNs !== undefined) out += `,"born":"${encodeTime(entry.bornNs)}"`
  return `${out}}`
}

function pathProperty(name: string, path: RawPath): string {
  const text = rawPathToText(path)
  return text === undefined
    ? `"${name}64":"${rawPathToBytes(path).toString('base64')}"`
    : `"${name}":${JSON.stringify(text)}`
}

function encodePiece([id, bundle, offset, length]: Piece): string {
  return `["${id}",${bundle},${offset},${length}]`
}

/** Puts `name`, or `name64` where the path is not UTF-8, into a JSON object. */
export function putPath(
  out: Record<string, unknown>,
  { name, path }: { name: string; path: RawPath },
): void {
  Object.assign(out, pathFacts(path, name))
}

/** @throws BackupError CATALOG_DAMAGED when the property is there but malformed. */
export function takePath(
  object: Readonly<Record<string, unknown>>,
  name: string,
): RawPath | undefined {
  const text = object[name]
  const base64 = object[`${name}64`]
  const path =
    typeof text === 'string'
      ? rawPathFromText(text)
      : typeof base64 === 'string'
        ? fromBase64(base64).toString('latin1')
        : undefined
  if (path === undefined && (text !== undefined || base64 !== undefined))
    throw damaged(`${name} is no path`)
  if (text !== undefined && base64 !== undefined) throw damaged(`${name} is there twice`)
  if (path !== undefined && (path === '' || path.length > MAX_PATH_BYTES || path.includes('\0')))
    throw damaged(`${name} is no path`)
  return path
}

/** @throws BackupError CATALOG_DAMAGED, naming what is wrong. */
export function parseEntry(line: string): Entry {
  const object = parseObject(line)
  const path = takePath(object, 'path')
  const type = object['type']
  if (path === undefined) throw damaged('an entry has no path')
  if (typeof type !== 'string' || !ENTRY_TYPES.has(type))
    throw damaged('an entry has an unknown type')
  const entry: Mutable<Entry> = {
    path,
    type: type as EntryType,
    mode: count(object['mode'], 'mode', 0o7777),
    uid: count(object['uid'], 'uid', 0xffffffff),
    gid: count(object['gid'], 'gid', 0xffffffff),
    mtimeNs: parseTime(object['mtime']),
  }
  const target = takePath(object, 'target')
  const {
    user,
    group,
    size,
    device,
    xattrs,
    acl,
    default_acl: defaultAcl,
    sparse,
    birth,
    flags,
    chunk,
    header,
    pieces,
    inode,
    born,
  } = object
  if (user !== undefined) entry.user = text(user)
  if (group !== undefined) entry.group = text(group)
  if (size !== undefined) entry.size = count(size, 'size')
  if (target !== undefined) entry.target = target
  if (device !== undefined) entry.device = parseDevice(device)
  if (xattrs !== undefined) entry.xattrs = parseXattrs(xattrs)
  if (acl !== undefined) entry.acl = text(acl)
  if (defaultAcl !== undefined) entry.defaultAcl = text(defaultAcl)
  if (sparse !== undefined) entry.sparse = list(sparse).map(pair)
  if (birth !== undefined) entry.birthNs = parseTime(birth)
  if (flags !== undefined) entry.flags = parseFlags(flags)
  if (chunk !== undefined) entry.chunk = count(chunk, 'chunk', MAX_CHUNK)
  if (header !== undefined) entry.header = parseRange(header)
  if (pieces !== undefined) entry.pieces = list(pieces).map(parsePiece)
  if (inode !== undefined) entry.inode = count(inode, 'inode')
  if (born !== undefined) entry.bornNs = parseTime(born)
  checkEntry(entry)
  return entry
}

/**
 * Whether its type has what it needs and nothing else: whoever restores or packs it relies on it.
 */
function checkEntry({ type, target, device, sparse, size = 0, header, ...rest }: Entry): void {
  const isLink = type === 'symlink' || type === 'link'
  if (isLink !== (target !== undefined)) throw damaged(`a ${type} has a wrong target`)
  const isDevice = type === 'char' || type === 'block'
  if (isDevice !== (device !== undefined)) throw damaged(`a ${type} has wrong device numbers`)
  if (type === 'socket' && header !== undefined) throw damaged('a socket has a header')
  if (sparse !== undefined) {
    if (type !== 'file') throw damaged(`a ${type} has segments`)
    checkSegments(sparse, size)
  }
  for (const words of [rest.user, rest.group, rest.acl, rest.defaultAcl]) {
    if (words !== undefined && words.length > MAX_TEXT_CHARACTERS)
      throw damaged('a text is too long')
  }
}

/** Ascending, inside the file, whole blocks but for the last one: as a tar's map has them. */
function checkSegments(segments: NonNullable<EntryMetadata['sparse']>, sizeBytes: number): void {
  if (segments.length > MAX_SPARSE_SEGMENTS) throw damaged('a file has too many segments')
  let end = 0
  let isWhole = true
  for (const [offset, length] of segments) {
    if (!isWhole || offset < end || length === 0) throw damaged('segments are out of order')
    if (length > sizeBytes - offset) throw damaged('a segment lies behind the end of its file')
    end = offset + length
    isWhole = length % TAR_BLOCK_BYTES === 0
  }
}

type Mutable<T> = { -readonly [key in keyof T]: T[key] }

/** The bytes of an entry that its pieces have to add up to. */
export function dataBytes(entry: EntryMetadata): number {
  if (entry.type !== 'file') return 0
  if (entry.sparse === undefined) return entry.size ?? 0
  return entry.sparse.reduce((sum, [, length]) => sum + length, 0)
}

/** A hard link as the file itself, with the content that its group's first path has. */
export function asFile(link: Entry, { size, sparse, chunk, pieces }: Entry): Entry {
  const { target: _target, ...rest } = link
  return {
    ...rest,
    type: 'file',
    ...(size === undefined ? {} : { size }),
    ...(sparse === undefined ? {} : { sparse }),
    ...(chunk === undefined ? {} : { chunk }),
    ...(pieces === undefined ? {} : { pieces }),
  }
}

function encodeXattrs(xattrs: ReadonlyMap<string, Buffer>): Record<string, string> {
  return Object.fromEntries([...xattrs].map(([name, value]) => [name, value.toString('base64')]))
}

function parseXattrs(value: unknown): ReadonlyMap<string, Buffer> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw damaged('xattrs are malformed')
  }
  let bytes = 0
  const xattrs = new Map<string, Buffer>()
  for (const [name, base64] of Object.entries(value)) {
    const nameBytes = Buffer.byteLength(name)
    if (nameBytes === 0 || nameBytes > MAX_XATTR_NAME_BYTES || name.includes('\0'))
      throw damaged('an xattr has a malformed name')
    const content = fromBase64(text(base64))
    bytes += nameBytes + content.length
    if (bytes > MAX_XATTRS_BYTES) throw damaged('an entry has too many xattrs')
    xattrs.set(name, content)
  }
  return xattrs
}

/** Canonical base64 only: what else Buffer would take is not ours. */
function fromBase64(base64: string): Buffer {
  const bytes = Buffer.from(base64, 'base64')
  if (bytes.toString('base64') !== base64) throw damaged('base64 is malformed')
  return bytes
}

/** Known ones only: restore sets them. */
function parseFlags(value: unknown): readonly InodeFlag[] {
  const words = list(value)
  const flags = INODE_FLAGS.filter((flag) => words.includes(flag))
  if (words.length === 0 || words.some((word, index) => word !== flags[index]))
    throw damaged('flags are malformed')
  return flags
}

function parseRange(value: unknown): Range {
  const [bundle, offset, length] = listOf(value, 3)
  return [count(bundle, 'bundle'), count(offset, 'offset'), count(length, 'length')]
}

function parsePiece(value: unknown): Piece {
  const [id, bundle, offset, length] = listOf(value, 4)
  if (typeof id !== 'string' || !/^[0-9a-f]{64}$/.test(id)) throw damaged('a piece has no id')
  const lengthBytes = count(length, 'the length of a piece', MAX_PIECE_BYTES)
  return [id, count(bundle, 'bundle'), count(offset, 'offset'), lengthBytes]
}

function parseDevice(value: unknown): readonly [number, number] {
  const [major, minor] = listOf(value, 2)
  return [count(major, 'device', 0xffffffff), count(minor, 'device', 0xffffffff)]
}

function pair(value: unknown): readonly [number, number] {
  const [first, second] = listOf(value, 2)
  return [count(first, 'first'), count(second, 'second')]
}

/** A JSON object from a line of a catalog. @throws BackupError CATALOG_DAMAGED */
export function parseObject(line: string): Readonly<Record<string, unknown>> {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch (cause) {
    throw new BackupError('CATALOG_DAMAGED', 'a catalog line is not JSON', { cause })
  }
  return record(value)
}

/** @throws BackupError CATALOG_DAMAGED when it is no object */
export function record(value: unknown): Readonly<Record<string, unknown>> {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
    return value as Readonly<Record<string, unknown>>
  }
  throw damaged('an object is missing')
}

/** A whole number from 0 to `most`. @throws BackupError CATALOG_DAMAGED */
export function count(value: unknown, name: string, most = Number.MAX_SAFE_INTEGER): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0 || value > most) {
    throw damaged(`${name} is out of range`)
  }
  return value
}

export function list(value: unknown): readonly unknown[] {
  if (!Array.isArray(value)) throw damaged('a list is missing')
  return value
}

function listOf(value: unknown, length: number): readonly unknown[] {
  const items = list(value)
  if (items.length !== length) throw damaged('a list has another length')
  return items
}

export function text(value: unknown): string {
  if (typeof value !== 'string') throw damaged('a text is missing')
  return value
}

function damaged(message: string): BackupError {
  return new BackupError('CATALOG_DAMAGED', message)
}
