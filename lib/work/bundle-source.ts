// Where the bytes of a bundle come from: a file of this machine, memory, the network, or a medium
// without a filesystem.
//
// bundle-reader.ts reads synchronously from any of them. A thread that reads over the network waits
// for the main one (network-source.ts); the main thread itself fetches first what it is going to
// read (FetchedSource). Throws BUNDLE_MISSING, BUNDLE_DAMAGED, and what a target throws.

import { Buffer } from 'node:buffer'
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs'
import assert from 'node:assert/strict'
import { BackupError, systemCode } from '../errors.ts'
import { readBack } from '../machine/durable-file.ts'
import { type RawPath, displayPath, pathFacts, rawPathToBytes } from '../model/raw-path.ts'
import type { ByteRange, Target } from '../target/target.ts'
import {
  type BundleAddress,
  type Extent,
  damaged,
  missing,
  networkPath,
  rawPlace,
  shownPath,
} from './bundle-address.ts'
import { NetworkSource } from './network-source.ts'

export interface BundleSource {
  readonly sizeBytes: number
  /** Fills `out` from `position`: how many bytes there were; 0 at the end. */
  read(out: Buffer, position: number): number
  close(): void
}

/** A source that can be read in this thread. @throws BackupError BUNDLE_MISSING, BUNDLE_DAMAGED */
export function openSource(address: BundleAddress): BundleSource {
  const raw = rawPlace(address)
  if (raw !== undefined) return new ExtentSource(address, raw)
  const path = networkPath(address)
  return path === undefined ? new FileSource(address) : new NetworkSource(path)
}

/**
 * Every byte of a file, in order: past the page cache where it is a file of this machine.
 * @throws system errors, and what a target throws
 */
export function readWhole(address: BundleAddress, onBlock: (block: Uint8Array) => void): void {
  const path = networkPath(address)
  if (path === undefined) {
    readBack({ path: address, onBlock })
    return
  }
  const source = new NetworkSource(path)
  for (let position = 0; position < source.sizeBytes;) {
    const block = source.block(position)
    if (block.length === 0) throw damaged(address, 'is cut short')
    onBlock(block)
    position += block.length
  }
}

class FileSource implements BundleSource {
  readonly sizeBytes: number
  readonly #path: RawPath
  readonly #fd: number

  constructor(path: RawPath) {
    this.#path = path
    // Not blocking: what lies there may be a pipe.
    const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK
    this.#fd = guarded(path, () => openSync(rawPathToBytes(path), flags))
    try {
      const stat = guarded(path, () => fstatSync(this.#fd))
      if (!stat.isFile()) throw damaged(path, 'is no file')
      this.sizeBytes = stat.size
    } catch (error) {
      this.close()
      throw error
    }
  }

  read(out: Buffer, position: number): number {
    return guarded(this.#path, () => readSync(this.#fd, out, 0, out.length, position))
  }

  close(): void {
    closeSync(this.#fd)
  }
}

/** What lies in some runs of a medium. */
class ExtentSource implements BundleSource {
  readonly sizeBytes: number
  readonly #address: BundleAddress
  readonly #extents: readonly Extent[]
  readonly #fd: number

  constructor(
    address: BundleAddress,
    { medium, extents }: NonNullable<ReturnType<typeof rawPlace>>,
  ) {
    this.#address = address
    this.#extents = extents
    this.sizeBytes = extents.reduce((sum, { length }) => sum + length, 0)
    this.#fd = guarded(address, () => openSync(rawPathToBytes(medium), constants.O_RDONLY))
  }

  read(out: Buffer, position: number): number {
    let start = position
    for (const { offset, length } of this.#extents) {
      if (start < length) {
        const bytes = Math.min(out.length, length - start)
        return guarded(this.#address, () => readSync(this.#fd, out, 0, bytes, offset + start))
      }
      start -= length
    }
    return 0
  }

  close(): void {
    closeSync(this.#fd)
  }
}

/** A small file that was read whole. */
export class MemorySource implements BundleSource {
  readonly sizeBytes: number
  readonly #bytes: Buffer

  constructor(bytes: Buffer) {
    this.#bytes = bytes
    this.sizeBytes = bytes.length
  }

  read(out: Buffer, position: number): number {
    return this.#bytes.copy(out, 0, position, position + out.length)
  }

  close(): void {}
}

/** What one fetch brings at most: larger runs are fetched in pieces, side by side. */
const MAX_FETCH_BYTES = 8 * 1024 * 1024
/** One request costs as much as the time in which so many bytes come. */
const GAP_BYTES = 128 * 1024
/** The age head, and in a small bundle everything. */
const FIRST_FETCH_BYTES = 64 * 1024

/** For the main thread: reads only what fetch() has brought before. */
export class FetchedSource implements BundleSource {
  readonly sizeBytes: number
  readonly #target: Target
  readonly #path: string
  /** The head, which stays, and what was fetched last. */
  #head: Fetched | undefined
  #fetched: readonly Fetched[] = []

  private constructor(target: Target, { path, sizeBytes }: { path: string; sizeBytes: number }) {
    this.#target = target
    this.#path = path
    this.sizeBytes = sizeBytes
  }

  /**
   * With its head fetched.
   * @param of.sizeBytes where it is known; else it is asked for
   */
  static async open(
    target: Target,
    of: { readonly path: string; readonly sizeBytes: number | undefined },
  ): Promise<FetchedSource> {
    const sizeBytes = of.sizeBytes ?? (await target.fileSize(of.path))
    if (sizeBytes === undefined) throw missing(of.path)
    const source = new FetchedSource(target, { path: of.path, sizeBytes })
    const length = Math.min(FIRST_FETCH_BYTES, sizeBytes)
    source.#head = await source.#fetch({ offset: 0, length })
    return source
  }

  /** Brings some runs of bytes, in place of those from before that are not asked for again. */
  async fetch(ranges: readonly ByteRange[]): Promise<void> {
    const wanted = ranges.filter((range) => !this.has(range))
    if (wanted.length === 0) return
    const kept = this.#fetched.filter((part) => ranges.some((range) => holds(part, range)))
    const brought = await Promise.all(joined(wanted).map(async (range) => await this.#fetch(range)))
    this.#fetched = [...kept, ...brought]
  }

  read(out: Buffer, position: number): number {
    const range = { offset: position, length: out.length }
    const found = this.#parts().find((part) => holds(part, range))
    assert(found !== undefined, 'bytes are read that were not fetched')
    const start = position - found.offset
    return found.bytes.copy(out, 0, start, start + out.length)
  }

  close(): void {
    this.#fetched = []
  }

  #parts(): readonly Fetched[] {
    return this.#head === undefined ? this.#fetched : [this.#head, ...this.#fetched]
  }

  /** Whether a run can be read without another fetch. */
  has(range: ByteRange): boolean {
    return this.#parts().some((part) => holds(part, range))
  }

  /** A run of any length, as several requests side by side. */
  async #fetch({ offset, length }: ByteRange): Promise<Fetched> {
    const starts = Array.from(
      { length: Math.ceil(length / MAX_FETCH_BYTES) },
      (_, i) => offset + i * MAX_FETCH_BYTES,
    )
    const parts = await Promise.all(
      starts.map(async (start) => {
        const part = Math.min(MAX_FETCH_BYTES, offset + length - start)
        const bytes = await this.#target.readRange(this.#path, { offset: start, length: part })
        if (bytes === undefined) throw missing(this.#path)
        if (bytes.length !== part) throw damaged(this.#path, 'is cut short')
        return bytes
      }),
    )
    return { offset, bytes: parts.length === 1 ? parts[0]! : Buffer.concat(parts) }
  }
}

interface Fetched {
  readonly offset: number
  readonly bytes: Buffer
}

function holds({ offset, bytes }: Fetched, range: ByteRange): boolean {
  return range.offset >= offset && range.offset + range.length <= offset + bytes.length
}

/** In order, neighbours as one. */
function joined(ranges: readonly ByteRange[]): readonly ByteRange[] {
  const out: { offset: number; length: number }[] = []
  for (const { offset, length } of [...ranges].sort((a, b) => a.offset - b.offset)) {
    const last = out.at(-1)
    if (last === undefined || offset > last.offset + last.length + GAP_BYTES) {
      out.push({ offset, length })
    } else {
      last.length = Math.max(last.length, offset + length - last.offset)
    }
  }
  return out
}

function guarded<T>(address: BundleAddress, action: () => T): T {
  const path = shownPath(address)
  try {
    return action()
  } catch (cause) {
    if (cause instanceof BackupError) throw cause
    if (systemCode(cause) === 'ENOENT') throw missing(path, cause)
    throw new BackupError('BUNDLE_DAMAGED', `a bundle cannot be read: ${displayPath(path)}`, {
      hint: 'check the drive; everything outside this bundle is unaffected',
      cause,
      facts: pathFacts(path),
    })
  }
}
