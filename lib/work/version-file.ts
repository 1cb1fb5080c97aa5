// The file of a version index: blocks of paths and their lines, and the table that leads to them.
//
// Two frames a block, the table's frame, its length, the SHA-256 of all that, and the magic. It is
// written anew as a whole, by version-rewriting.ts, to the disk or into memory. versions.ts opens
// it. What is damaged counts as lost; a block that is found damaged later is CATALOG_DAMAGED.

import assert from 'node:assert/strict'
import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readSync,
  rmSync,
} from 'node:fs'
import { BackupError, systemCode } from '../errors.ts'
import { decompressFrame } from '../format/zstd-frames.ts'
import { PARTIAL_SUFFIX, publish, writeAll } from '../machine/durable-file.ts'
import { acquireLock } from '../machine/lock.ts'
import { type RawPath, rawPathFromText } from '../model/raw-path.ts'
import {
  type IndexBlock,
  type IndexTable,
  parseTable,
  splitLines,
  splitPaths,
} from '../model/version-index.ts'
import { type SetPlace, stateRoot } from './staging.ts'

/** No block is longer; a table names every path that could not be collected. */
const MAX_FRAME_BYTES = 256 * 1024 * 1024

export const MAGIC = Buffer.from('DBVERS01')
const DIGEST_BYTES = 32
const TAIL_BYTES = 4 + DIGEST_BYTES + MAGIC.length

/** What is read at a time to see that nothing of the file is damaged. */
const HASHED_BYTES = 4 * 1024 * 1024

/** Whoever writes it takes seconds, but may have many generations to add. */
const LOCK_WAIT_MS = 10_000

/** Where the bytes of an index are. */
export interface IndexBytes {
  readonly table: IndexTable
  readonly read: (extent: readonly [offset: number, length: number]) => Buffer
  readonly close: () => void
}

/** Some neighbouring paths. */
export interface VersionBlock {
  /** Absolute, in catalog order. */
  readonly paths: readonly RawPath[]
  /** Of each path, its line (lib/model/version-index.ts). Read when it is called. */
  readonly lines: () => readonly string[]
}

/** Where a new index goes. */
export interface Sink {
  readonly write: (bytes: Buffer) => void
  readonly finish: () => IndexBytes
  /** Leaves nothing. */
  readonly abandon: () => void
}

export function memorySink(): Sink {
  const parts: Buffer[] = []
  return {
    write: (bytes) => void parts.push(bytes),
    finish: () => {
      const bytes = Buffer.concat(parts)
      const read = ([offset, length]: readonly [number, number]): Buffer => {
        return bytes.subarray(offset, offset + length)
      }
      const table = readTable({ sizeBytes: bytes.length, read })
      assert(table !== undefined, 'an index that was written now can be read')
      return { table, read, close: () => {} }
    },
    abandon: () => {},
  }
}

/** The new index takes the place of the old one when it is on the medium. */
export function sinkAt(place: SetPlace): Sink {
  const path = indexPath(place)
  const partial = `${path}${PARTIAL_SUFFIX}`
  rmSync(partial, { force: true })
  const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = constants
  const fd = openSync(partial, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600)
  return {
    write: (bytes) => writeAll(fd, bytes),
    finish: () => {
      fsyncSync(fd)
      publish({ partial: rawPathFromText(partial), path: rawPathFromText(path), replace: true })
      closeSync(fd)
      const index = openIndex(place)
      assert(index !== undefined, 'an index that was written now can be read')
      return index
    },
    abandon: () => {
      closeSync(fd)
      rmSync(partial, { force: true })
    },
  }
}

export function* pairsOf(
  index: IndexBytes,
): Generator<readonly [path: RawPath, line: string], void, undefined> {
  for (const { paths, lines: read } of blocksOf(index)) {
    const lines = read()
    for (const [i, path] of paths.entries()) yield [path.slice(1), lines[i]!]
  }
}

export function* blocksOf(index: IndexBytes): Generator<VersionBlock, void, undefined> {
  for (const block of index.table.blocks) {
    yield { paths: splitPaths(frameAt(index, block.paths)), lines: () => linesOf(index, block) }
  }
}

export function linesOf(index: IndexBytes, block: IndexBlock): readonly string[] {
  const lines = splitLines(frameAt(index, block.lines))
  if (lines.length === block.count) return lines
  throw damagedIndex('a block has lost lines')
}

export function frameAt(
  index: IndexBytes,
  extent: readonly [offset: number, length: number],
): Buffer {
  return decompressFrame(index.read(extent), MAX_FRAME_BYTES)
}

export function emptyIndex(set: string): IndexBytes {
  const table = { set, generations: [], blocks: [] }
  return { table, read: () => Buffer.alloc(0), close: () => {} }
}

/** The index on disk; undefined where there is none, or it is lost. */
export function openIndex(place: SetPlace): IndexBytes | undefined {
  let fd: number
  try {
    fd = openSync(indexPath(place), constants.O_RDONLY | constants.O_NOFOLLOW)
  } catch (error) {
    if (systemCode(error) === undefined) throw error
    return undefined
  }
  const read = ([offset, length]: readonly [number, number]): Buffer => {
    const bytes = Buffer.allocUnsafe(length)
    if (readSync(fd, bytes, 0, length, offset) === length) return bytes
    throw damagedIndex('it is cut short')
  }
  const table = tableOrNothing(() => readTable({ sizeBytes: fstatSync(fd).size, read }))
  if (table !== undefined && table.set === place.set) {
    return { table, read, close: () => closeSync(fd) }
  }
  closeSync(fd)
  return undefined
}

/** Whatever is wrong with it, it is made anew. */
function tableOrNothing(read: () => IndexTable | undefined): IndexTable | undefined {
  try {
    return read()
  } catch (error) {
    if (error instanceof BackupError || systemCode(error) !== undefined) return undefined
    throw error
  }
}

function readTable({
  sizeBytes,
  read,
}: Pick<IndexBytes, 'read'> & { readonly sizeBytes: number }): IndexTable | undefined {
  if (sizeBytes < TAIL_BYTES) return undefined
  const tail = read([sizeBytes - TAIL_BYTES, TAIL_BYTES])
  const length = tail.readUInt32LE()
  const digest = tail.subarray(4, 4 + DIGEST_BYTES)
  const isOurs = tail.subarray(4 + DIGEST_BYTES).equals(MAGIC)
  if (!isOurs || length > sizeBytes - TAIL_BYTES) return undefined
  const hash = createHash('sha256')
  for (let at = 0; at < sizeBytes - TAIL_BYTES; at += HASHED_BYTES) {
    hash.update(read([at, Math.min(HASHED_BYTES, sizeBytes - TAIL_BYTES - at)]))
  }
  if (!hash.digest().equals(digest)) return undefined
  const frame = read([sizeBytes - TAIL_BYTES - length, length])
  return parseTable(decompressFrame(frame, MAX_FRAME_BYTES))
}

function versionsDirectory({ staging }: SetPlace): string {
  return `${stateRoot(staging)}/versions`
}

function indexPath(place: SetPlace): string {
  return `${versionsDirectory(place)}/${place.set}.index`
}

export function lockVersions(place: SetPlace): ReturnType<typeof acquireLock> {
  mkdirSync(versionsDirectory(place), { recursive: true, mode: 0o700 })
  const path = rawPathFromText(`${versionsDirectory(place)}/${place.set}.lock`)
  const description = `reading the catalogs of ${place.set}`
  return acquireLock({ path, description, waitMs: LOCK_WAIT_MS })
}

/** Undefined where nothing can be written, or another run writes for long. */
export function lockIfWritable(place: SetPlace): ReturnType<typeof acquireLock> | undefined {
  if (!existsSync(stateRoot(place.staging))) return undefined
  try {
    return lockVersions(place)
  } catch (error) {
    const isLocked = error instanceof BackupError && error.code === 'LOCKED'
    if (isLocked || systemCode(error) !== undefined) return undefined
    throw error
  }
}

function damagedIndex(what: string): BackupError {
  return new BackupError('CATALOG_DAMAGED', `a version index is damaged: ${what}`)
}
