// Files that survive a power cut once we say they are there, and reading them back from the medium
// itself.
//
// Writing: a `.partial` name in the same directory, fsync, rename, fsync of the directory
// (docs/format.md §12, design invariants 2 and 3: nothing is overwritten unless the caller says
// so). Reading back: past the page cache, or what was read would only be what was written to
// memory. Paths are RawPath. Synchronous: workers call it too. Throws BackupError ALREADY_THERE and
// READ_BACK, and Node's system errors, which callers wrap by where the file lies.

import { Buffer } from 'node:buffer'
import {
  closeSync,
  constants,
  fstatSync,
  fsyncSync,
  lstatSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { BackupError, systemCode } from '../errors.ts'
import { displayPath, parentOf, type RawPath, rawPathToBytes } from '../model/raw-path.ts'
import { dropPageCache } from './posix.ts'

/** What a file is called while it is written; garbage once its writer is gone. */
export const PARTIAL_SUFFIX = '.partial'

/**
 * A multiple of every sector and page size; large enough that the medium, not the system call, sets
 * the pace.
 */
const BLOCK_BYTES = 2 * 1024 * 1024

/**
 * WebAssembly counts its memory in pages of this size, and the memory begins at such a boundary.
 */
const WASM_PAGE_BYTES = 64 * 1024

/** Following no link, and waiting for no writer where somebody put a pipe. */
const READ_FLAGS = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK

/** The largest sector a direct read may have to be a multiple of. */
const SECTOR_BYTES = 512

/**
 * Writes a new file so that after this call it is there as a whole, and before it not at all.
 * @throws BackupError ALREADY_THERE when the name is taken and `replace` is not set
 */
export function writeDurably({
  path,
  bytes,
  mode,
  replace = false,
}: {
  path: RawPath
  bytes: Uint8Array
  mode: number
  replace?: boolean
}): void {
  const partial = `${path}${PARTIAL_SUFFIX}`
  if (!replace) refuseTaken(path)
  rmSync(rawPathToBytes(partial), { force: true })
  const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = constants
  const fd = openSync(rawPathToBytes(partial), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, mode)
  try {
    writeAll(fd, bytes)
    fsyncSync(fd)
  } catch (error) {
    closeSync(fd)
    rmSync(rawPathToBytes(partial), { force: true })
    throw error
  }
  closeSync(fd)
  publish({ partial, path, replace })
}

/** Gives a file or directory that is on the medium already its final name, durably. */
export function publish({
  partial,
  path,
  replace = false,
}: {
  partial: RawPath
  path: RawPath
  replace?: boolean
}): void {
  if (!replace) refuseTaken(path)
  renameSync(rawPathToBytes(partial), rawPathToBytes(path))
  syncDirectory(parentOf(path) || '/')
}

/**
 * Makes the names in a directory durable. Some filesystems cannot; theirs are durable already or
 * never.
 */
export function syncDirectory(path: RawPath): void {
  const fd = openSync(rawPathToBytes(path), constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    fsyncSync(fd)
  } catch (error) {
    if (!['EINVAL', 'ENOTSUP', 'EOPNOTSUPP'].includes(systemCode(error) ?? '')) throw error
  } finally {
    closeSync(fd)
  }
}

/** Writes all of `bytes` at the file's position, however many calls that takes. */
export function writeAll(fd: number, bytes: Uint8Array): void {
  for (let offset = 0; offset < bytes.length;) {
    offset += writeSync(fd, bytes, offset, bytes.length - offset)
  }
}

/** Node has it, though the type libraries for servers do not say so. */
declare const WebAssembly: {
  readonly Memory: new (pages: { readonly initial: number }) => { readonly buffer: ArrayBuffer }
}

let pageAligned: Buffer | undefined

/**
 * One buffer a thread, at a page boundary, as direct reads demand and plain Buffers do not give.
 */
function alignedBuffer(): Buffer {
  pageAligned ??= Buffer.from(
    new WebAssembly.Memory({ initial: BLOCK_BYTES / WASM_PAGE_BYTES }).buffer,
  )
  return pageAligned
}

/**
 * Reads a file from the medium, handing on its bytes in order; a block is only valid during the
 * call. Says how: `direct` never touched the page cache; `advised` means that the kernel was asked
 * to drop its pages first, where the filesystem refuses direct reads.
 * @throws BackupError READ_BACK when the file is shorter than its size
 */
export function readBack({
  path,
  onBlock,
}: {
  path: RawPath
  onBlock: (bytes: Uint8Array) => void
}): 'direct' | 'advised' {
  dropPages(path)
  const direct = openDirect(path)
  if (direct !== undefined) {
    try {
      if (readBlocks({ fd: direct, path, onBlock }) === 'done') return 'direct'
    } finally {
      closeSync(direct)
    }
  }
  const fd = openSync(rawPathToBytes(path), READ_FLAGS)
  try {
    readBlocks({ fd, path, onBlock, mustRead: true })
    return 'advised'
  } finally {
    closeSync(fd)
  }
}

/**
 * A direct read of compressed data on btrfs is served from the cache all the same, so it is dropped
 * in any case.
 */
function dropPages(path: RawPath): void {
  const fd = openSync(rawPathToBytes(path), READ_FLAGS)
  try {
    fsyncSync(fd)
    dropPageCache(fd)
  } finally {
    closeSync(fd)
  }
}

function openDirect(path: RawPath): number | undefined {
  if (constants.O_DIRECT === undefined) return undefined
  try {
    return openSync(
      rawPathToBytes(path),
      constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_DIRECT,
    )
  } catch (error) {
    if (isRefusal(error)) return undefined
    throw error
  }
}

/** Reads to the end; `refused` when the very first read is not to the filesystem's liking. */
function readBlocks({
  fd,
  path,
  onBlock,
  mustRead = false,
}: {
  fd: number
  path: RawPath
  onBlock: (bytes: Uint8Array) => void
  mustRead?: boolean
}): 'done' | 'refused' {
  const { size } = fstatSync(fd)
  const block = alignedBuffer()
  for (let offset = 0; offset < size;) {
    const count = readOrRefuse({ fd, block, offset, mustRead })
    if (count === 'refused') return 'refused'
    const atEnd = offset + count === size
    if (count === 0 || (!mustRead && !atEnd && count % SECTOR_BYTES !== 0)) {
      throw new BackupError(
        'READ_BACK',
        `${displayPath(path)} ended at ${offset + count} of ${size} bytes`,
      )
    }
    onBlock(block.subarray(0, count))
    offset += count
  }
  return 'done'
}

function readOrRefuse({
  fd,
  block,
  offset,
  mustRead,
}: {
  fd: number
  block: Buffer
  offset: number
  mustRead: boolean
}): number | 'refused' {
  try {
    return readSync(fd, block, 0, BLOCK_BYTES, offset)
  } catch (error) {
    if (!mustRead && offset === 0 && isRefusal(error)) return 'refused'
    throw error
  }
}

function isRefusal(error: unknown): boolean {
  return ['EINVAL', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS'].includes(systemCode(error) ?? '')
}

function refuseTaken(path: RawPath): void {
  if (lstatSync(rawPathToBytes(path), { throwIfNoEntry: false }) === undefined) return
  throw new BackupError('ALREADY_THERE', `${displayPath(path)} is already there`)
}
