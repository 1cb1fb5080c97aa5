// The system calls that Node lacks: extended attributes, exact times, device nodes, holes, flock,
// syncfs, statx, inode flags, mounts, and what FUSE takes: poll and descriptors over sockets.
//
// The only importer of koffi, which is loaded at the first call, so that commands that need none of
// this start fast; each worker thread loads its own. Paths are RawPath and reach the kernel as the
// bytes they are. Every function works on the path itself, never on what a symbolic link points to.
// Failures are Errors with `code`, `errno` and `syscall` as Node's own have them; callers decide
// what they mean. Linux is tested; the macOS branches follow its man pages and are not verified.

import { Buffer } from 'node:buffer'
import { createRequire } from 'node:module'
import { getSystemErrorName } from 'node:util'
import type koffiModule from 'koffi'
import type { TimeNs } from '../model/entry.ts'
import { type RawPath, rawPathToBytes } from '../model/raw-path.ts'
import { undisturbed } from '../format/native.ts'

type Koffi = typeof koffiModule
type NativeFunction = (...args: readonly unknown[]) => unknown

const DARWIN = process.platform === 'darwin'

const AT_FDCWD = DARWIN ? -2 : -100
const AT_SYMLINK_NOFOLLOW = DARWIN ? 0x20 : 0x100
const UTIME_OMIT = DARWIN ? -2n : 0x3ffffffen
const SEEK_SET = 0
const SEEK_END = 2
const SEEK_DATA = DARWIN ? 4 : 3
const SEEK_HOLE = DARWIN ? 3 : 4
const LOCK_EXCLUSIVE = 2
const LOCK_NONBLOCKING = 4
const POSIX_FADV_DONTNEED = 4
const XATTR_NOFOLLOW = 1
const SYNC_FILE_RANGE_WRITE = 2
const STATX_BASIC_AND_BIRTH = 0xfff
/** FS_IOC_GETFLAGS and FS_IOC_SETFLAGS of linux/fs.h, as 64-bit x86 and ARM have them. */
const [GET_INODE_FLAGS, SET_INODE_FLAGS] = [0x80086601, 0x40086602]
const NODE_TYPES = { fifo: 0o010000, char: 0o020000, block: 0o060000, socket: 0o140000 } as const

/** How often a value that grows between asking for its size and reading it is asked again. */
const MAX_XATTR_TRIES = 10

let loaded: { koffi: Koffi; library: ReturnType<Koffi['load']> } | undefined
const functions = new Map<string, NativeFunction>()

/**
 * The names of a path's extended attributes, one character a byte, sorted; none where the
 * filesystem has none.
 */
export function listXattrs(path: RawPath): string[] {
  const name = terminated(path)
  const list = (value: Buffer | null, sizeBytes: number): number =>
    DARWIN
      ? number('ssize listxattr(path, out, size, int)', name, value, sizeBytes, XATTR_NOFOLLOW)
      : number('ssize llistxattr(path, out, size)', name, value, sizeBytes)
  const bytes = readGrowing(list, 'llistxattr', ['ENOTSUP', 'EOPNOTSUPP'])
  if (bytes === undefined) return []
  return bytes
    .toString('latin1')
    .split('\0')
    .filter((text) => text !== '')
    .sort()
}

/** The value of one extended attribute; undefined when the path has none of that name. */
export function getXattr(path: RawPath, name: string): Buffer | undefined {
  const file = terminated(path)
  const attribute = terminated(name)
  const get = (value: Buffer | null, sizeBytes: number): number =>
    DARWIN
      ? number(
          'ssize getxattr(path, path, out, size, uint32, int)',
          file,
          attribute,
          value,
          sizeBytes,
          0,
          XATTR_NOFOLLOW,
        )
      : number('ssize lgetxattr(path, path, out, size)', file, attribute, value, sizeBytes)
  return readGrowing(get, 'lgetxattr', ['ENODATA', 'ENOATTR', 'ENOTSUP', 'EOPNOTSUPP'])
}

/** Creates or replaces one extended attribute. */
export function setXattr(path: RawPath, name: string, value: Buffer): void {
  const [file, attribute] = [terminated(path), terminated(name)]
  const result = DARWIN
    ? number(
        'int setxattr(path, path, path, size, uint32, int)',
        file,
        attribute,
        value,
        value.length,
        0,
        XATTR_NOFOLLOW,
      )
    : number('int lsetxattr(path, path, path, size, int)', file, attribute, value, value.length, 0)
  if (result !== 0) throw failure('lsetxattr')
}

/** Removes one extended attribute; nothing happens when it is not there. */
export function removeXattr(path: RawPath, name: string): void {
  const [file, attribute] = [terminated(path), terminated(name)]
  const result = DARWIN
    ? number('int removexattr(path, path, int)', file, attribute, XATTR_NOFOLLOW)
    : number('int lremovexattr(path, path)', file, attribute)
  if (result === 0) return
  const error = failure('lremovexattr')
  if (error.code !== 'ENODATA' && error.code !== 'ENOATTR') throw error
}

/** Sets the time of modification to the nanosecond; the time of access stays as it is. */
export function setTimes(path: RawPath, { mtimeNs }: { mtimeNs: TimeNs }): void {
  const nanoseconds = ((mtimeNs % 1_000_000_000n) + 1_000_000_000n) % 1_000_000_000n
  const times = Buffer.alloc(32)
  times.writeBigInt64LE(UTIME_OMIT, 8)
  times.writeBigInt64LE((mtimeNs - nanoseconds) / 1_000_000_000n, 16)
  times.writeBigInt64LE(nanoseconds, 24)
  const file = terminated(path)
  const result = number(
    'int utimensat(int, path, path, int)',
    AT_FDCWD,
    file,
    times,
    AT_SYMLINK_NOFOLLOW,
  )
  if (result !== 0) throw failure('utimensat')
}

export interface NodeKind {
  readonly type: keyof typeof NODE_TYPES
  readonly mode: number
  readonly device?: readonly [major: number, minor: number]
}

/** Makes a FIFO, device or socket; the umask applies to its mode. */
export function makeNode(path: RawPath, { type, mode, device }: NodeKind): void {
  const rdev = device === undefined ? 0n : deviceNumber(device)
  const signature = DARWIN ? 'int mknod(path, uint16, int)' : 'int mknod(path, uint32, uint64)'
  const result = number(
    signature,
    terminated(path),
    NODE_TYPES[type] | mode,
    DARWIN ? Number(rdev) : rdev,
  )
  if (result !== 0) throw failure('mknod')
}

/** What `lstat` calls `rdev`, taken apart; the inverse of what makeNode does with `device`. */
export function deviceParts(rdev: bigint): readonly [major: number, minor: number] {
  if (DARWIN) return [Number((rdev >> 24n) & 0xffn), Number(rdev & 0xffffffn)]
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & 0xfffff000n)
  const minor = (rdev & 0xffn) | ((rdev >> 12n) & 0xffffff00n)
  return [Number(major), Number(minor)]
}

function deviceNumber([majorNumber, minorNumber]: readonly [number, number]): bigint {
  const [major, minor] = [BigInt(majorNumber), BigInt(minorNumber)]
  if (DARWIN) return (major << 24n) | minor
  return (
    ((major & 0xfffn) << 8n)
    | ((major & ~0xfffn) << 32n)
    | (minor & 0xffn)
    | ((minor & ~0xffn) << 12n)
  )
}

/**
 * The runs of an open file that hold data; the rest are holes. One run over everything where the
 * filesystem cannot tell. Leaves the file's position at its beginning.
 */
export function dataSegments(fd: number, sizeBytes: number): [offset: number, length: number][] {
  const segments: [number, number][] = []
  for (let offset = 0; offset < sizeBytes;) {
    const start = seek(fd, offset, SEEK_DATA)
    if (start === 'none' || (typeof start === 'number' && start >= sizeBytes)) break
    if (start === 'unsupported') return [[0, sizeBytes]]
    const end = seek(fd, start, SEEK_HOLE)
    const stop = typeof end === 'number' ? Math.min(end, sizeBytes) : sizeBytes
    segments.push([start, stop - start])
    offset = stop
  }
  seek(fd, 0, SEEK_SET)
  return segments
}

/** Where an open file or block device ends. Leaves the file's position at its beginning. */
export function endOffset(fd: number): number {
  const end = number('int64 lseek(int, int64, int)', fd, 0, SEEK_END)
  if (end < 0) throw failure('lseek')
  seek(fd, 0, SEEK_SET)
  return end
}

function seek(fd: number, offset: number, whence: number): number | 'none' | 'unsupported' {
  const position = number('int64 lseek(int, int64, int)', fd, offset, whence)
  if (position >= 0) return position
  const error = failure('lseek')
  if (error.code === 'ENXIO') return 'none'
  if (error.code === 'EINVAL' || error.code === 'ENOTSUP' || error.code === 'EOPNOTSUPP')
    return 'unsupported'
  throw error
}

/** How long struct statx(2) is. */
export const STATX_BYTES = 256

/** Fills `out` with the struct statx of a path, which is not opened. Linux only. */
export function readStatx(path: RawPath, out: Buffer): void {
  const signature = 'int statx(int, path, int, uint32, out)'
  const file = terminated(path)
  if (number(signature, AT_FDCWD, file, AT_SYMLINK_NOFOLLOW, STATX_BASIC_AND_BIRTH, out) !== 0)
    throw failure('statx')
}

/** Sets bits of an open file's inode flags (chattr(1)) besides those that are set. Linux only. */
export function addInodeFlags(fd: number, bits: number): void {
  const flags = Buffer.alloc(8)
  ioctl(fd, GET_INODE_FLAGS, flags)
  flags.writeUInt32LE((flags.readUInt32LE() | bits) >>> 0)
  ioctl(fd, SET_INODE_FLAGS, flags)
}

/** Writes everything of the filesystem that holds `fd` to the medium. */
export function syncFilesystem(fd: number): void {
  if (DARWIN) number('int sync()')
  else if (number('int syncfs(int)', fd) !== 0) throw failure('syncfs')
}

/**
 * Asks the kernel to begin writing a run of a file to the medium, so that a later fsync has little
 * left to wait for. Only a hint: failures, and systems without it, do not matter.
 */
export function beginWriteback(
  fd: number,
  { offset, length }: { offset: number; length: number },
): void {
  if (process.platform !== 'linux') return
  number(
    'int sync_file_range(int, int64, int64, unsigned int)',
    fd,
    offset,
    length,
    SYNC_FILE_RANGE_WRITE,
  )
}

/**
 * Asks the kernel to forget the clean pages of a file, so that the next read comes from the medium.
 */
export function dropPageCache(fd: number): void {
  if (DARWIN) return
  const code = number('int posix_fadvise(int, int64, int64, int)', fd, 0, 0, POSIX_FADV_DONTNEED)
  if (code !== 0) throw systemError(code, 'posix_fadvise')
}

/** Takes the exclusive lock of an open file; false when another open file description holds it. */
export function tryLock(fd: number): boolean {
  if (number('int flock(int, int)', fd, LOCK_EXCLUSIVE | LOCK_NONBLOCKING) === 0) return true
  const error = failure('flock')
  if (error.code === 'EWOULDBLOCK' || error.code === 'EAGAIN') return false
  throw error
}

/** One ioctl whose argument is a structure: `buffer` is read, and written, by the kernel. */
export function ioctl(fd: number, request: number, buffer: Buffer): void {
  if (number('int ioctl(int, unsigned long, out)', fd, request, buffer) !== 0)
    throw failure('ioctl')
}

export interface MountRequest {
  readonly source: string
  readonly path: RawPath
  readonly type: string
  /** MS_* of linux/mount.h. */
  readonly flags: number
  readonly options: string
}

/** Mounts a filesystem; for root. Linux only. */
export function mountFilesystem({ source, path, type, flags, options }: MountRequest): void {
  const words = [source, path, type].map(terminated)
  const signature = 'int mount(path, path, path, unsigned long, path)'
  if (number(signature, ...words, flags, terminated(options)) !== 0) throw failure('mount')
}

/** Unmounts what is mounted at a path; `flags` are MNT_* and UMOUNT_*. Linux only. */
export function unmountFilesystem(path: RawPath, flags: number): void {
  if (number('int umount2(path, int)', terminated(path), flags) !== 0) throw failure('umount2')
}

const POLL_IN = 1

/** Whether a descriptor has something to read, or failed, before the time is over. */
export async function waitReadable(fd: number, timeoutMs: number): Promise<boolean> {
  const request = Buffer.alloc(8)
  request.writeInt32LE(fd, 0)
  request.writeInt16LE(POLL_IN, 4)
  const poll = asynchronous('int poll(out, unsigned long, int)')
  return Number(await poll(request, 1, timeoutMs)) > 0
}

/** FIONBIO of asm-generic/ioctls.h. */
const SET_NONBLOCKING = 0x5421

/** From now on reading what is not there yet fails with EAGAIN. Linux only. */
export function setNonblocking(fd: number): void {
  const on = Buffer.alloc(8)
  on.writeInt32LE(1)
  ioctl(fd, SET_NONBLOCKING, on)
}

const [AF_UNIX, SOCK_STREAM, SOCK_CLOEXEC] = [1, 1, 0o2000000]

/** Two connected sockets; programs do not inherit them. Linux only. */
export function socketPair(): readonly [number, number] {
  const pair = Buffer.alloc(8)
  const type = SOCK_STREAM | SOCK_CLOEXEC
  if (number('int socketpair(int, int, int, out)', AF_UNIX, type, 0, pair) !== 0)
    throw failure('socketpair')
  return [pair.readInt32LE(0), pair.readInt32LE(4)]
}

const [MSG_DONTWAIT, MSG_CMSG_CLOEXEC] = [0x40, 0x40000000]
/** A struct cmsghdr of 64-bit systems, and one descriptor. */
const [CONTROL_HEAD_BYTES, CONTROL_BYTES] = [16, 24]

/**
 * A descriptor that another program has sent over a socket; undefined where none was sent. Linux
 * only.
 */
export function receiveDescriptor(socket: number): number | undefined {
  library()
  const { koffi } = loaded!
  const types = (messageTypes ??= declareMessage(koffi))
  const control = Buffer.alloc(CONTROL_BYTES)
  const message = {
    ...{ name: null, nameLength: 0, parts: [{ base: Buffer.alloc(1), length: 1 }], partCount: 1 },
    ...{ control, controlLength: CONTROL_BYTES, flags: 0 },
  }
  const flags = MSG_DONTWAIT | MSG_CMSG_CLOEXEC
  if (Number(undisturbed(() => types(socket, message, flags))) < 0) throw failure('recvmsg')
  const hasOne = control.readUInt32LE(0) > CONTROL_HEAD_BYTES
  return hasOne ? control.readInt32LE(CONTROL_HEAD_BYTES) : undefined
}

let messageTypes: NativeFunction | undefined

/** recvmsg(2), whose structures hold pointers. */
function declareMessage(koffi: Koffi): NativeFunction {
  return undisturbed(() => {
    const part = koffi.struct('iovec', { base: 'void *', length: 'size_t' })
    const message = koffi.struct('msghdr', {
      ...{ name: 'void *', nameLength: 'uint32_t' },
      ...{ parts: koffi.pointer(part), partCount: 'size_t' },
      ...{ control: 'void *', controlLength: 'size_t', flags: 'int' },
    })
    const parameters = ['int', koffi.inout(koffi.pointer(message)), 'int']
    return library().func('recvmsg', 'intptr_t', parameters) as NativeFunction
  })
}

/**
 * Asks for the size, then for the value, again when it grew in between; undefined for an absence
 * named in `absent`.
 */
function readGrowing(
  read: (value: Buffer | null, sizeBytes: number) => number,
  syscall: string,
  absent: readonly string[],
): Buffer | undefined {
  for (let tries = 0; tries < MAX_XATTR_TRIES; tries++) {
    const sizeBytes = read(null, 0)
    if (sizeBytes === 0) return Buffer.alloc(0)
    const value = sizeBytes > 0 ? Buffer.alloc(sizeBytes) : undefined
    const length = value === undefined ? -1 : read(value, sizeBytes)
    if (value !== undefined && length >= 0) return value.subarray(0, length)
    const error = failure(syscall)
    if (absent.includes(error.code)) return undefined
    if (error.code !== 'ERANGE') throw error
  }
  throw new Error(`${syscall}: the value grew ${MAX_XATTR_TRIES} times while it was read`)
}

/**
 * Calls `<result> <name>(<arguments>)`, declared at its first use, and gives its result as a
 * number.
 */
function number(signature: string, ...args: readonly unknown[]): number {
  return Number(functions.get(signature)?.(...args) ?? declare(signature)(...args))
}

const NATIVE_TYPES: Readonly<Record<string, string>> = {
  int: 'int',
  uint16: 'uint16_t',
  uint32: 'uint32_t',
  int64: 'int64_t',
  uint64: 'uint64_t',
  size: 'size_t',
  ssize: 'intptr_t',
  path: 'const uint8_t *',
  out: 'void *',
}

/** The same on a thread of its own, for what may wait. */
function asynchronous(signature: string): (...args: readonly unknown[]) => Promise<unknown> {
  const known = waiting.get(signature) ?? native(signature)
  waiting.set(signature, known)
  type Callback = (error: unknown, result: unknown) => void
  const { async: begin } = known as unknown as {
    async: (...args: [...unknown[], Callback]) => void
  }
  return async (...args) =>
    await new Promise((resolve, reject) => {
      begin(...args, (error, result) => (error === null ? resolve(result) : reject(error)))
    })
}

const waiting = new Map<string, NativeFunction>()

function native(signature: string): NativeFunction {
  const [, result = '', name = '', types = ''] = /^(\w+) (\w+)\((.*)\)$/.exec(signature) ?? []
  const typeOf = (type: string): string => NATIVE_TYPES[type] ?? type
  const parameters = types === '' ? [] : types.split(', ').map(typeOf)
  return undisturbed(() => library().func(name, typeOf(result), parameters) as NativeFunction)
}

function declare(signature: string): NativeFunction {
  const bare = native(signature)
  const declared: NativeFunction = (...given) => undisturbed(() => bare(...given))
  functions.set(signature, declared)
  return declared
}

function library(): ReturnType<Koffi['load']> {
  if (loaded === undefined) {
    const koffi = createRequire(import.meta.url)('koffi') as Koffi
    loaded = { koffi, library: koffi.load(null) }
  }
  return loaded.library
}

function terminated(path: RawPath): Buffer {
  if (path.includes('\0')) throw new Error('a path cannot hold a zero byte')
  return Buffer.concat([rawPathToBytes(path), Buffer.alloc(1)])
}

interface SystemError extends Error {
  code: string
  errno: number
  syscall: string
}

function failure(syscall: string): SystemError {
  return systemError(undisturbed(() => loaded?.koffi.errno()) ?? 0, syscall)
}

function systemError(errno: number, syscall: string): SystemError {
  const code = getSystemErrorName(-errno)
  return Object.assign(new Error(`${code}: ${syscall}`), { code, errno: -errno, syscall })
}
