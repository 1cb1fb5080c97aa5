// What the kernel's FUSE says over /dev/fuse, as bytes (linux/fuse.h, protocol 7): requests taken
// apart, replies put together.
//
// fuse.ts reads and writes them; lib/work/fuse-view.ts answers. Only what a read-only filesystem
// needs. Numbers are little-endian, as on every machine that Node runs on. Throws nothing: what
// comes from the kernel is believed.

import { Buffer } from 'node:buffer'
import { type EntryMetadata, type EntryType, dataBytes } from '../model/entry.ts'
import { type RawPath, rawPathFromBytes, rawPathToBytes } from '../model/raw-path.ts'

/** What is asked for. */
export const OP = {
  lookup: 1,
  forget: 2,
  getattr: 3,
  setattr: 4,
  readlink: 5,
  symlink: 6,
  mknod: 8,
  mkdir: 9,
  unlink: 10,
  rmdir: 11,
  rename: 12,
  link: 13,
  open: 14,
  read: 15,
  write: 16,
  statfs: 17,
  release: 18,
  setxattr: 21,
  getxattr: 22,
  listxattr: 23,
  removexattr: 24,
  flush: 25,
  init: 26,
  opendir: 27,
  readdir: 28,
  releasedir: 29,
  create: 35,
  interrupt: 36,
  destroy: 38,
  batchForget: 42,
  fallocate: 43,
  readdirplus: 44,
  rename2: 45,
  copyFileRange: 47,
  tmpfile: 51,
} as const

/** Everything that would change something. */
export const CHANGES: ReadonlySet<number> = new Set([
  ...[OP.setattr, OP.symlink, OP.mknod, OP.mkdir, OP.unlink, OP.rmdir, OP.rename, OP.link],
  ...[OP.write, OP.setxattr, OP.removexattr, OP.create, OP.fallocate, OP.rename2],
  ...[OP.copyFileRange, OP.tmpfile],
])

const REQUEST_HEAD_BYTES = 40
const REPLY_HEAD_BYTES = 16
const ATTRIBUTE_BYTES = 88
const ENTRY_BYTES = 128
const DIRENT_BYTES = 24

/** What was opened does not change: the page cache, and that of directories, may be kept. */
const KEEP_CACHE = 1 << 1
const CACHE_DIRECTORY = 1 << 3

/** How long the kernel may believe what it was told: nothing here ever changes. */
const VALID_SECONDS = 3600n

export interface FuseRequest {
  readonly opcode: number
  readonly unique: bigint
  /** The number of the node that is asked about. */
  readonly node: number
  readonly body: Buffer
}

/** A request as it was read; its memory is its own. */
export function parseRequest(bytes: Buffer): FuseRequest {
  return {
    opcode: bytes.readUInt32LE(4),
    unique: bytes.readBigUInt64LE(8),
    node: Number(bytes.readBigUInt64LE(16)),
    body: Buffer.from(bytes.subarray(REQUEST_HEAD_BYTES)),
  }
}

/** @param error a number of errno, or 0 */
export function encodeReply(
  { unique }: FuseRequest,
  { error, body }: { readonly error: number; readonly body: Buffer },
): Buffer {
  const reply = Buffer.allocUnsafe(REPLY_HEAD_BYTES + body.length)
  reply.writeUInt32LE(reply.length, 0)
  reply.writeInt32LE(-error, 4)
  reply.writeBigUInt64LE(unique, 8)
  body.copy(reply, REPLY_HEAD_BYTES)
  return reply
}

/** The name at the end of a request's body, from `offset` to its zero byte. */
export function nameIn({ body }: FuseRequest, offset = 0): RawPath {
  const end = body.indexOf(0, offset)
  return rawPathFromBytes(body.subarray(offset, end < 0 ? body.length : end))
}

/** How much was forgotten of which node. */
export function forgottenIn({ opcode, node, body }: FuseRequest): [node: number, count: number][] {
  if (opcode === OP.forget) return [[node, Number(body.readBigUInt64LE(0))]]
  return Array.from({ length: body.readUInt32LE(0) }, (_, i) => {
    const at = 8 + i * 16
    return [Number(body.readBigUInt64LE(at)), Number(body.readBigUInt64LE(at + 8))]
  })
}

/** What a read, of a file or a directory, is about. */
export function readIn({ body }: FuseRequest): {
  readonly handle: number
  readonly offset: number
  readonly sizeBytes: number
} {
  return {
    handle: Number(body.readBigUInt64LE(0)),
    offset: Number(body.readBigUInt64LE(8)),
    sizeBytes: body.readUInt32LE(16),
  }
}

/** The handle that a release is about. */
export function handleIn({ body }: FuseRequest): number {
  return Number(body.readBigUInt64LE(0))
}

/** How many bytes of a value are wanted; 0: only how long it is. */
export function valueSizeIn({ body }: FuseRequest): number {
  return body.readUInt32LE(0)
}

/** A value or list of extended attributes, or only its length. */
export function encodeValue(value: Buffer, sizeBytes: number): Buffer {
  if (sizeBytes > 0) return value
  const out = Buffer.alloc(8)
  out.writeUInt32LE(value.length, 0)
  return out
}

export function encodeOpen(handle: number): Buffer {
  const out = Buffer.alloc(16)
  out.writeBigUInt64LE(BigInt(handle), 0)
  out.writeUInt32LE(KEEP_CACHE | CACHE_DIRECTORY, 8)
  return out
}

/** A filesystem that is full: there is nothing to be had. */
export function encodeStatfs(): Buffer {
  const out = Buffer.alloc(80)
  out.writeUInt32LE(4096, 40)
  out.writeUInt32LE(255, 44)
  out.writeUInt32LE(4096, 48)
  return out
}

export function encodeAttributes(node: number, metadata: EntryMetadata): Buffer {
  const out = Buffer.alloc(16 + ATTRIBUTE_BYTES)
  out.writeBigUInt64LE(VALID_SECONDS, 0)
  writeAttributes(out.subarray(16), { node, metadata })
  return out
}

/** What a lookup found; without metadata that there is no such name. */
export function encodeEntry(node: number, metadata: EntryMetadata | undefined): Buffer {
  const out = Buffer.alloc(ENTRY_BYTES)
  out.writeBigUInt64LE(VALID_SECONDS, 16)
  if (metadata === undefined) return out
  out.writeBigUInt64LE(BigInt(node), 0)
  out.writeBigUInt64LE(VALID_SECONDS, 24)
  writeAttributes(out.subarray(40), { node, metadata })
  return out
}

export interface DirectoryItem {
  readonly name: RawPath
  readonly node: number
  readonly type: EntryType
  /** Where the directory is read on behind it. */
  readonly next: number
}

/** One name of a directory, with what a lookup would say in front where that is given. */
export function encodeDirent({ name, node, type, next }: DirectoryItem, entry?: Buffer): Buffer {
  const start = entry?.length ?? 0
  const bytes = rawPathToBytes(name)
  const out = Buffer.alloc(start + Math.ceil((DIRENT_BYTES + bytes.length) / 8) * 8)
  entry?.copy(out)
  out.writeBigUInt64LE(BigInt(node), start)
  out.writeBigUInt64LE(BigInt(next), start + 8)
  out.writeUInt32LE(bytes.length, start + 16)
  out.writeUInt32LE(TYPE_BITS[type] >> 12, start + 20)
  bytes.copy(out, start + DIRENT_BYTES)
  return out
}

/** In front of `.` and `..`, of which nothing is to be remembered. */
export const NO_ENTRY = Buffer.alloc(ENTRY_BYTES)

/** S_IF* of sys/stat.h. */
const TYPE_BITS: Readonly<Record<EntryType, number>> = {
  file: 0o100000,
  link: 0o100000,
  directory: 0o040000,
  symlink: 0o120000,
  fifo: 0o010000,
  char: 0o020000,
  block: 0o060000,
  socket: 0o140000,
}

function writeAttributes(
  out: Buffer,
  { node, metadata }: { readonly node: number; readonly metadata: EntryMetadata },
): void {
  const { type, mode, uid, gid, mtimeNs, target } = metadata
  const sizeBytes = type === 'symlink' ? (target?.length ?? 0) : (metadata.size ?? 0)
  const nanoseconds = ((mtimeNs % 1_000_000_000n) + 1_000_000_000n) % 1_000_000_000n
  out.writeBigUInt64LE(BigInt(node), 0)
  out.writeBigUInt64LE(BigInt(sizeBytes), 8)
  out.writeBigUInt64LE(BigInt(Math.ceil(dataBytes(metadata) / 512)), 16)
  for (const at of [0, 1, 2]) {
    out.writeBigInt64LE((mtimeNs - nanoseconds) / 1_000_000_000n, 24 + at * 8)
    out.writeUInt32LE(Number(nanoseconds), 48 + at * 4)
  }
  out.writeUInt32LE(TYPE_BITS[type] | mode, 60)
  out.writeUInt32LE(1, 64)
  out.writeUInt32LE(uid, 68)
  out.writeUInt32LE(gid, 72)
  out.writeUInt32LE(deviceNumber(metadata.device), 76)
  out.writeUInt32LE(4096, 80)
}

/** As the kernel packs it into 32 bits. */
function deviceNumber(device: EntryMetadata['device']): number {
  if (device === undefined) return 0
  const [major, minor] = device
  return ((minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xfff00) << 12)) >>> 0
}

const MAJOR_VERSION = 7
/** What was new up to here is all that is used. */
const MINOR_VERSION = 31
const MAX_READ_BYTES = 1024 * 1024
/** Not that anything could be written: a page. */
const MAX_WRITE_BYTES = 4096

const FLAGS = {
  asyncRead: 1 << 0,
  readdirplus: 1 << 13,
  readdirplusAuto: 1 << 14,
  parallelDirectories: 1 << 18,
  posixAcl: 1 << 20,
  maxPages: 1 << 22,
  cacheSymlinks: 1 << 23,
}

/** The kernel asks first what the other side can do. @param checksAcl whether ACLs count */
export function encodeInit({ body }: FuseRequest, { checksAcl }: { checksAcl: boolean }): Buffer {
  const { posixAcl, ...plain } = FLAGS
  const can = Object.values(plain).reduce((all, flag) => all | flag, checksAcl ? posixAcl : 0)
  const out = Buffer.alloc(64)
  out.writeUInt32LE(MAJOR_VERSION, 0)
  out.writeUInt32LE(MINOR_VERSION, 4)
  out.writeUInt32LE(Math.min(body.readUInt32LE(8), MAX_READ_BYTES), 8)
  out.writeUInt32LE((body.readUInt32LE(12) & can) >>> 0, 12)
  out.writeUInt16LE(16, 16)
  out.writeUInt16LE(12, 18)
  out.writeUInt32LE(MAX_WRITE_BYTES, 20)
  out.writeUInt32LE(1, 24)
  out.writeUInt16LE(MAX_READ_BYTES / 4096, 28)
  return out
}
