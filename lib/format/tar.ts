// The tar layer of a bundle: header ranges of PAX members (docs/format.md §3.3).
//
// encodeHeader and parseHeader are inverses for everything that a catalog entry's metadata can say
// but the time of birth, which is read where other programs wrote it and never written (§3.3).
// A header range, the member's data and tarPadding zeros are a valid member wherever they lie;
// END_OF_ARCHIVE ends a tar. parseHeader also reads what GNU tar and bsdtar write (PAX and GNU
// formats). Its parts: ustar-block.ts, pax.ts, sparse-map.ts, acl.ts. Throws TAR_DAMAGED for bytes
// that are no such tar; an entry that no tar can hold is a failed assertion.

import { Buffer } from 'node:buffer'
import assert from 'node:assert/strict'
import { BackupError } from '../errors.ts'
import {
  type EntryMetadata,
  type EntryType,
  INODE_FLAGS,
  type InodeFlag,
  MAX_PATH_BYTES,
  dataBytes,
} from '../model/entry.ts'
import { type RawPath, baseOf, rawPathFromText, rawPathToText } from '../model/raw-path.ts'
import { numericAclText } from './acl.ts'
import {
  type PaxRecord,
  parsePaxNumber,
  parsePaxRecords,
  parsePaxTime,
  paxRecordsBytes,
  paxTime,
  writePaxRecords,
  xattrKeyword,
  xattrName,
} from './pax.ts'
import { type ParsedSparseMap, encodeSparseMap, parseSparseMap } from './sparse-map.ts'
import {
  BLOCK_BYTES,
  type UstarBlock,
  fitsId,
  fitsName,
  fitsSize,
  fitsUserName,
  parseUstarBlock,
  writeUstarBlock,
} from './ustar-block.ts'

export { BLOCK_BYTES } from './ustar-block.ts'

export const END_OF_ARCHIVE = Buffer.alloc(2 * BLOCK_BYTES)

/** The most that one PAX header may hold: Linux lets a path have many attributes of 64 KiB. */
const MAX_PAX_BYTES = 64 * 1024 * 1024

/** The most that all headers of a member may be: a PAX header, GNU's long names, global headers. */
const MAX_HEADER_BYTES = 2 * MAX_PAX_BYTES

const MAX_ID = 0xffffffff
const MAX_DEVICE = 0xffffffff
const BILLION = 1_000_000_000n
const NO_XATTRS: ReadonlyMap<string, Buffer> = new Map()

const FLAGS: Readonly<Record<Exclude<EntryType, 'socket'>, string>> = {
  file: '0',
  link: '1',
  symlink: '2',
  char: '3',
  block: '4',
  directory: '5',
  fifo: '6',
}
const TYPES: ReadonlyMap<string, EntryType> = new Map([
  ['0', 'file'],
  ['\0', 'file'],
  ['7', 'file'],
  ['1', 'link'],
  ['2', 'symlink'],
  ['3', 'char'],
  ['4', 'block'],
  ['5', 'directory'],
  ['6', 'fifo'],
])
/** As libarchive writes them (archive_entry.c); it reads more spellings, we read these. */
const FLAG_WORDS: Readonly<Record<InodeFlag, string>> = {
  append: 'sappnd',
  compressed: 'compress',
  immutable: 'schg',
  nodump: 'nodump',
}
const [PAX_FLAG, GLOBAL_FLAG, GNU_LONG_NAME, GNU_LONG_LINK] = ['x', 'g', 'L', 'K'] as const
const EXTENSION_FLAGS: ReadonlySet<string> = new Set([
  PAX_FLAG,
  GLOBAL_FLAG,
  GNU_LONG_NAME,
  GNU_LONG_LINK,
])

/** The block before PAX records is the same for all but its size. */
const PAX_BLOCK: UstarBlock = {
  name: 'PaxHeaders.0/entry',
  mode: 0o600,
  uid: 0,
  gid: 0,
  sizeBytes: 0,
  mtimeSeconds: 0,
  flag: PAX_FLAG,
  linkName: '',
  user: '',
  group: '',
  device: [0, 0],
}

/**
 * The header range of an entry, to be followed by dataBytes(entry) bytes of data and their padding.
 * Segments of a sparse file have to be whole blocks but for the last. `socket` is a failed
 * assertion.
 */
export function encodeHeader(
  entry: EntryMetadata,
  options: { readonly comment?: string } = {},
): Buffer {
  const { type, path, target, device, sparse, user = '', group = '', mtimeNs } = entry
  assert(type !== 'socket' && path !== '', 'no tar can hold this entry')
  assert(isLink(type) === (target !== undefined), 'links alone have targets')
  assert(isDevice(type) === (device !== undefined), 'devices alone have numbers')
  assert(sparse === undefined || type === 'file', 'files alone are sparse')
  const map = sparse && encodeSparseMap(sparse, { sizeBytes: entry.size ?? 0 })
  const mapBytes = map?.length ?? 0
  const name = type === 'directory' ? `${path}/` : path
  const fields: UstarBlock = {
    name: sparse === undefined ? name : `GNUSparseFile.0/${baseOf(path)}`,
    mode: entry.mode,
    uid: entry.uid,
    gid: entry.gid,
    sizeBytes: dataBytes(entry) + mapBytes,
    mtimeSeconds: Number(mtimeNs / BILLION),
    flag: FLAGS[type],
    linkName: target ?? '',
    user: rawPathFromText(user),
    group: rawPathFromText(group),
    device: device ?? [0, 0],
  }
  const records = recordsOf(entry, fields, options.comment)
  const recordsBytes = paxRecordsBytes(records)
  assert(recordsBytes <= MAX_PAX_BYTES, 'an entry has more metadata than can be read again')
  const paxBytes = records.length === 0 ? 0 : BLOCK_BYTES + recordsBytes + tarPadding(recordsBytes)
  const out = Buffer.alloc(paxBytes + BLOCK_BYTES + mapBytes)
  if (paxBytes > 0) {
    writeUstarBlock(out, { ...PAX_BLOCK, sizeBytes: recordsBytes }, 0)
    writePaxRecords(out, records, BLOCK_BYTES)
  }
  writeUstarBlock(out, fields, paxBytes)
  map?.copy(out, paxBytes + BLOCK_BYTES)
  return out
}

/** The header of a member of ours: a piece, an entry, a shard, an index, a manifest. */
export function encodePlainHeader({
  path,
  sizeBytes,
}: {
  readonly path: RawPath
  readonly sizeBytes: number
}): Buffer {
  const ours = { type: 'file', mode: 0o600, uid: 0, gid: 0, mtimeNs: 0n } as const
  return encodeHeader({ ...ours, path, size: sizeBytes })
}

/** How many zeros follow data of a length. */
export function tarPadding(lengthBytes: number): number {
  const rest = lengthBytes % BLOCK_BYTES
  return rest === 0 ? 0 : BLOCK_BYTES - rest
}

export interface ParsedHeader {
  /** Path and target stand as they are there, perhaps unsafe; a directory's last slash is gone. */
  readonly metadata: EntryMetadata
  /** The header range, with a sparse file's map. */
  readonly headerBytes: number
  /** Data after the header range, without padding. */
  readonly dataBytes: number
  readonly comment?: string
}

/**
 * The member that begins at `offset`: `end` at a zero block, `short` when its header range goes on
 * past the bytes given. Global headers are skipped. @throws BackupError TAR_DAMAGED
 */
export function parseHeader(bytes: Buffer, offset: number): ParsedHeader | 'end' | 'short' {
  const pax = new Map<string, Buffer>()
  for (let position = offset; ;) {
    if (position - offset > MAX_HEADER_BYTES) throw damaged('its headers are too long')
    if (bytes.length - position < BLOCK_BYTES) return 'short'
    const block = parseUstarBlock(bytes.subarray(position, position + BLOCK_BYTES))
    if (block === undefined && position === offset) return 'end'
    if (block === undefined) throw damaged('the tar ends after an extended header')
    position += BLOCK_BYTES
    const { flag, sizeBytes } = block
    if (!EXTENSION_FLAGS.has(flag)) {
      const rest = bytes.subarray(position)
      return parseMember(block, { pax, rest, blocksBytes: position - offset })
    }
    if (sizeBytes > MAX_PAX_BYTES) throw damaged('an extended header is too long')
    if (bytes.length - position < sizeBytes + tarPadding(sizeBytes)) return 'short'
    const data = bytes.subarray(position, position + sizeBytes)
    if (flag === PAX_FLAG) parsePaxRecords(data, pax)
    if (flag === GNU_LONG_NAME) pax.set('path', untilZero(data))
    if (flag === GNU_LONG_LINK) pax.set('linkpath', untilZero(data))
    position += sizeBytes + tarPadding(sizeBytes)
  }
}

/** What the ustar block cannot hold, in the order of the table in docs/format.md §3.3. */
function recordsOf(
  entry: EntryMetadata,
  fields: UstarBlock,
  comment: string | undefined,
): PaxRecord[] {
  const { path, target = '', uid, gid, mtimeNs, xattrs, acl, defaultAcl, flags, sparse } = entry
  const {
    name,
    sizeBytes,
    mtimeSeconds,
    user,
    group,
    device: [major, minor],
  } = fields
  const records: PaxRecord[] = []
  if (sparse === undefined && !(fitsName(name) && isAscii(name))) records.push(['path', name])
  if (!(fitsName(target) && isAscii(target))) records.push(['linkpath', target])
  if (!isText(path) || !isText(target)) records.push(['hdrcharset', 'BINARY'])
  if (!fitsId(uid)) records.push(['uid', String(uid)])
  if (!fitsId(gid)) records.push(['gid', String(gid)])
  if (!fitsUserName(user)) records.push(['uname', user])
  if (!fitsUserName(group)) records.push(['gname', group])
  if (!fitsSize(sizeBytes)) records.push(['size', String(sizeBytes)])
  const isWhole = mtimeNs % BILLION === 0n
  if (!isWhole || !fitsSize(mtimeSeconds)) records.push(['mtime', paxTime(mtimeNs)])
  for (const [key, value] of xattrs ?? NO_XATTRS) records.push([xattrKeyword(key), value])
  if (acl !== undefined) records.push(['SCHILY.acl.access', acl])
  if (defaultAcl !== undefined) records.push(['SCHILY.acl.default', defaultAcl])
  if (flags !== undefined)
    records.push(['SCHILY.fflags', flags.map((flag) => FLAG_WORDS[flag]).join(',')])
  if (sparse !== undefined) {
    records.push(['GNU.sparse.major', '1'], ['GNU.sparse.minor', '0'])
    records.push(['GNU.sparse.name', path], ['GNU.sparse.realsize', String(entry.size ?? 0)])
  }
  if (!fitsId(major)) records.push(['SCHILY.devmajor', String(major)])
  if (!fitsId(minor)) records.push(['SCHILY.devminor', String(minor)])
  if (comment !== undefined) records.push(['comment', rawPathFromText(comment)])
  return records
}

function isLink(type: EntryType): boolean {
  return type === 'symlink' || type === 'link'
}

function isDevice(type: EntryType): boolean {
  return type === 'char' || type === 'block'
}

function isText(path: RawPath): boolean {
  return rawPathToText(path) !== undefined
}

function isAscii(path: RawPath): boolean {
  for (let i = 0; i < path.length; i++) if (path.charCodeAt(i) > 127) return false
  return true
}

interface MemberContext {
  readonly pax: ReadonlyMap<string, Buffer>
  /** What follows the ustar block. */
  readonly rest: Buffer
  readonly blocksBytes: number
}

function parseMember(
  block: UstarBlock,
  { pax, rest, blocksBytes }: MemberContext,
): ParsedHeader | 'short' {
  const type = TYPES.get(block.flag)
  if (type === undefined) throw damaged('its type is unknown')
  const declaredBytes = numberOf(pax, 'size', Number.MAX_SAFE_INTEGER) ?? block.sizeBytes
  // Programs disagree whether data follows a link or directory that declares a size.
  if (type !== 'file' && declaredBytes !== 0) throw damaged(`it is a ${type} with data`)
  const realSize = sparseSize(pax)
  const sizeBytes = realSize ?? declaredBytes
  const isSparse = realSize !== undefined
  const map = isSparse ? parseSparseMap(rest, { limitBytes: declaredBytes, sizeBytes }) : undefined
  if (map === 'short') return 'short'
  const mapBytes = map?.mapBytes ?? 0
  const metadata = parseMetadata(block, { type, pax, map, sizeBytes })
  if (dataBytes(metadata) !== declaredBytes - mapBytes) throw damaged('its map does not add up')
  const comment = valueOf(pax, 'comment')
  return {
    metadata,
    headerBytes: blocksBytes + mapBytes,
    dataBytes: declaredBytes - mapBytes,
    ...(comment === undefined ? {} : { comment: comment.toString('utf8') }),
  }
}

interface MetadataContext {
  readonly type: EntryType
  readonly pax: ReadonlyMap<string, Buffer>
  readonly map: ParsedSparseMap | undefined
  readonly sizeBytes: number
}

function parseMetadata(
  block: UstarBlock,
  { type, pax, map, sizeBytes }: MetadataContext,
): EntryMetadata {
  const path = checkedPath(bytesOf(pax, 'GNU.sparse.name') ?? bytesOf(pax, 'path') ?? block.name)
  const target = isLink(type) ? (bytesOf(pax, 'linkpath') ?? block.linkName) : undefined
  const user = bytesOf(pax, 'uname') ?? block.user
  const group = bytesOf(pax, 'gname') ?? block.group
  const mtime = valueOf(pax, 'mtime')
  const birth = valueOf(pax, 'LIBARCHIVE.creationtime')
  const acl = bytesOf(pax, 'SCHILY.acl.access')
  const defaultAcl = bytesOf(pax, 'SCHILY.acl.default')
  const xattrs = xattrsOf(pax)
  const flags = flagsOf(pax)
  return {
    path: type === 'directory' ? withoutLastSlashes(path) : path,
    type,
    mode: block.mode,
    uid: numberOf(pax, 'uid', MAX_ID) ?? block.uid,
    gid: numberOf(pax, 'gid', MAX_ID) ?? block.gid,
    ...(user === '' ? {} : { user: rawPathToText(user) ?? user }),
    ...(group === '' ? {} : { group: rawPathToText(group) ?? group }),
    mtimeNs: mtime === undefined ? BigInt(block.mtimeSeconds) * BILLION : parsePaxTime(mtime),
    ...(type === 'file' ? { size: sizeBytes } : {}),
    ...(target === undefined ? {} : { target: checkedPath(target) }),
    ...(isDevice(type) ? { device: deviceOf(block, pax) } : {}),
    ...(xattrs.size === 0 ? {} : { xattrs }),
    ...(acl === undefined ? {} : { acl: numericAclText(acl) }),
    ...(defaultAcl === undefined ? {} : { defaultAcl: numericAclText(defaultAcl) }),
    ...(map === undefined ? {} : { sparse: map.segments }),
    ...(birth === undefined ? {} : { birthNs: parsePaxTime(birth) }),
    ...(flags.length === 0 ? {} : { flags }),
  }
}

/** As long as a catalog takes it, and the slash of a directory. */
function checkedPath(path: RawPath): RawPath {
  if (path === '' || path.length > MAX_PATH_BYTES + 1) throw damaged('a path is empty or too long')
  if (path.includes('\0')) throw damaged('a path has a zero byte')
  return path
}

function withoutLastSlashes(path: RawPath): RawPath {
  let end = path.length
  while (end > 1 && path[end - 1] === '/') end--
  return path.slice(0, end)
}

function deviceOf(
  { device }: UstarBlock,
  pax: ReadonlyMap<string, Buffer>,
): readonly [number, number] {
  const major = numberOf(pax, 'SCHILY.devmajor', MAX_DEVICE) ?? device[0]
  const minor = numberOf(pax, 'SCHILY.devminor', MAX_DEVICE) ?? device[1]
  return [major, minor]
}

function xattrsOf(pax: ReadonlyMap<string, Buffer>): ReadonlyMap<string, Buffer> {
  const found: [string, Buffer][] = []
  for (const [keyword, value] of pax) {
    const name = xattrName(keyword)
    // GNU tar may write ACLs twice; the text counts.
    if (name !== undefined && !name.startsWith('system.posix_acl_')) found.push([name, value])
  }
  return new Map(found.sort(([a], [b]) => (a < b ? -1 : 1)))
}

/** Those that a catalog can say; others are other systems' affair. */
function flagsOf(pax: ReadonlyMap<string, Buffer>): readonly InodeFlag[] {
  const words = bytesOf(pax, 'SCHILY.fflags')?.split(',') ?? []
  return INODE_FLAGS.filter((flag) => words.includes(FLAG_WORDS[flag]))
}

/** The real size of a sparse file; undefined for any other. */
function sparseSize(pax: ReadonlyMap<string, Buffer>): number | undefined {
  const version = [bytesOf(pax, 'GNU.sparse.major'), bytesOf(pax, 'GNU.sparse.minor')].join('.')
  const isOld = pax.has('GNU.sparse.map') || pax.has('GNU.sparse.size')
  if (version === '.' && !isOld) return undefined
  const size = numberOf(pax, 'GNU.sparse.realsize', Number.MAX_SAFE_INTEGER)
  if (version !== '1.0' || size === undefined) throw damaged('its kind of sparse file is unknown')
  return size
}

function bytesOf(pax: ReadonlyMap<string, Buffer>, keyword: string): RawPath | undefined {
  return valueOf(pax, keyword)?.toString('latin1')
}

function numberOf(
  pax: ReadonlyMap<string, Buffer>,
  keyword: string,
  most: number,
): number | undefined {
  const value = valueOf(pax, keyword)
  return value === undefined ? undefined : parsePaxNumber(value, most)
}

/** An empty value takes back what the keyword said. */
function valueOf(pax: ReadonlyMap<string, Buffer>, keyword: string): Buffer | undefined {
  const value = pax.get(keyword)
  return value === undefined || value.length === 0 ? undefined : value
}

function untilZero(bytes: Buffer): Buffer {
  const end = bytes.indexOf(0)
  return end === -1 ? bytes : bytes.subarray(0, end)
}

function damaged(why: string): BackupError {
  return new BackupError('TAR_DAMAGED', `a tar member cannot be read: ${why}`)
}
