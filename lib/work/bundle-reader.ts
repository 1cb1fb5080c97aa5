// Reads runs of a bundle's tar without reading the bundle: age chunk → zstd frame → bytes (docs/format.md §3).
//
// The inverse of bundle-writer.ts. Synchronous, for worker loops and for the main thread's small reads. What comes out has
// been authenticated by age, but age does not say by whom: callers compare it with a digest from a signed manifest.
// Throws BUNDLE_MISSING, BUNDLE_DAMAGED, AGE_HEADER, AGE_PAYLOAD, ZSTD_DAMAGED, IDENTITY_WRONG.

import { Buffer } from 'node:buffer'
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs'
import { BackupError, systemCode } from '../errors.ts'
import {
  CHUNK_BYTES, MAX_HEAD_BYTES, TAG_BYTES, ageLengths, openAgeHead, openChunk,
} from '../format/age.ts'
import { decompressFrame, parseSeekTable } from '../format/zstd-frames.ts'
import type { FrameRange } from '../model/entry.ts'
import { type RawPath, displayPath, rawPathToBytes } from '../model/raw-path.ts'
import { framesOf } from '../model/shard.ts'

/** Frames kept decompressed: neighbours in a catalog mostly share one. */
const CACHED_FRAMES = 4
/** The first read of the end of a bundle: a seek table of 5,000 frames. */
const SEEK_TABLE_GUESS_BYTES = 60 * 1024

export class BundleReader {
  readonly path: RawPath
  readonly payloadBytes: number
  readonly #fd: number
  readonly #headBytes: number
  readonly #payloadKey: Buffer
  readonly #cache = new Map<number, Buffer>()
  #chunk: { readonly index: number; readonly bytes: Buffer } | undefined

  constructor({ path, identities }: { path: RawPath; identities: readonly string[] }) {
    this.path = path
    this.#fd = guarded(path, () => openSync(rawPathToBytes(path), constants.O_RDONLY | constants.O_NOFOLLOW))
    try {
      const sizeBytes = guarded(path, () => fstatSync(this.#fd).size)
      const start = this.#read(0, Math.min(MAX_HEAD_BYTES, sizeBytes, HEAD_GUESS_BYTES))
      const { headBytes, payloadKey } = openAgeHead(start, identities)
      this.#headBytes = headBytes
      this.#payloadKey = payloadKey
      this.payloadBytes = ageLengths.plaintextBytes({ headBytes, ciphertextBytes: sizeBytes })
    } catch (error) {
      this.close()
      throw error
    }
  }

  close(): void {
    closeSync(this.#fd)
  }

  /** Bytes of the payload, decrypted and authenticated. */
  readPayload(offset: number, length: number): Buffer {
    if (offset + length > this.payloadBytes) throw damaged(this.path, 'is shorter than its catalog says')
    if (length === 0) return Buffer.alloc(0)
    const first = Math.floor(offset / CHUNK_BYTES)
    const last = Math.floor((offset + length - 1) / CHUNK_BYTES)
    const parts = this.#readChunks(first, last)
    const joined = parts.length === 1 ? parts[0]! : Buffer.concat(parts)
    const start = offset - first * CHUNK_BYTES
    return joined.subarray(start, start + length)
  }

  /** The tar bytes of one frame. */
  readFrame([, tarLength, offset, length]: FrameRange): Buffer {
    const cached = this.#cache.get(offset)
    if (cached !== undefined && cached.length === tarLength) return cached
    const frame = decompressFrame(this.readPayload(offset, length), tarLength)
    if (frame.length !== tarLength) throw damaged(this.path, 'has a frame of another length')
    this.#cache.set(offset, frame)
    if (this.#cache.size > CACHED_FRAMES) this.#cache.delete(this.#cache.keys().next().value!)
    return frame
  }

  /** A run of tar bytes, by the frames (of this bundle, in order) that hold it. */
  readTar(frames: readonly FrameRange[], { offset, length }: { offset: number; length: number }): Buffer {
    const parts: Buffer[] = []
    this.forEachPart(frames, { offset, length }, (part) => parts.push(part))
    return parts.length === 1 ? parts[0]! : Buffer.concat(parts)
  }

  /** The same, part by part without a copy; a part is only good until the next call. */
  forEachPart(
    frames: readonly FrameRange[], { offset, length }: { offset: number; length: number },
    visit: (part: Buffer) => void,
  ): void {
    let position = offset
    for (const frame of framesOf(frames, { offset, length })) {
      const [tarOffset, tarLength] = frame
      if (tarOffset > position) break
      const end = Math.min(tarOffset + tarLength, offset + length)
      visit(this.readFrame(frame).subarray(position - tarOffset, end - tarOffset))
      position = end
    }
    if (position !== offset + length) throw damaged(this.path, 'lacks a frame that a catalog names')
  }

  /** All data frames, from the seek table at the end; and where the first byte after them is. */
  readFrames(): readonly FrameRange[] {
    let length = Math.min(SEEK_TABLE_GUESS_BYTES, this.payloadBytes)
    for (;;) {
      const table = parseSeekTable(this.readPayload(this.payloadBytes - length, length))
      if (table !== 'short') return frameRanges(table, this)
      if (length === this.payloadBytes) throw damaged(this.path, 'is too short for its seek table')
      length = Math.min(length * 16, this.payloadBytes)
    }
  }

  /**
   * The chunks of ciphertext of a whole bundle have to be opened in order, as they come from the medium.
   * @returns how to open one; `index` counts from 0, the last one is told by the length of the file.
   */
  openChunkAt(index: number, ciphertext: Uint8Array): Buffer {
    const last = index === this.#lastChunk
    return openChunk({ payloadKey: this.#payloadKey, index, last, ciphertext })
  }

  get headBytes(): number {
    return this.#headBytes
  }

  get #lastChunk(): number {
    return Math.max(0, Math.ceil(this.payloadBytes / CHUNK_BYTES) - 1)
  }

  #readChunks(first: number, last: number): Buffer[] {
    const cached = this.#chunk?.index === first ? this.#chunk.bytes : undefined
    const from = cached === undefined ? first : first + 1
    const parts = cached === undefined ? [] : [cached]
    if (from > last) return parts
    const start = ageLengths.chunkOffset({ headBytes: this.#headBytes, index: from })
    const plain = Math.min((last + 1) * CHUNK_BYTES, this.payloadBytes) - from * CHUNK_BYTES
    const ciphertext = this.#read(start, plain + (last - from + 1) * TAG_BYTES)
    for (let index = from, at = 0; index <= last; index++, at += CHUNK_BYTES + TAG_BYTES) {
      parts.push(this.openChunkAt(index, ciphertext.subarray(at, at + CHUNK_BYTES + TAG_BYTES)))
    }
    this.#chunk = { index: last, bytes: parts[parts.length - 1]! }
    return parts
  }

  #read(position: number, length: number): Buffer {
    const out = Buffer.allocUnsafe(length)
    let done = 0
    while (done < length) {
      const read = guarded(this.path, () =>
        readSync(this.#fd, out, done, length - done, position + done))
      if (read === 0) throw damaged(this.path, 'is cut short')
      done += read
    }
    return out
  }
}

/** A head with ten recipients fits. */
const HEAD_GUESS_BYTES = 4096

function frameRanges(
  table: Exclude<ReturnType<typeof parseSeekTable>, 'short'>, reader: BundleReader,
): FrameRange[] {
  const frames: FrameRange[] = []
  let tarOffset = 0
  let offset = 0
  for (const { compressedBytes, tarBytes } of table.entries) {
    if (tarBytes > 0) frames.push([tarOffset, tarBytes, offset, compressedBytes])
    tarOffset += tarBytes
    offset += compressedBytes
  }
  if (offset + table.tableBytes !== reader.payloadBytes) {
    throw damaged(reader.path, 'has a seek table that does not fit it')
  }
  return frames
}

function guarded<T>(path: RawPath, action: () => T): T {
  try {
    return action()
  } catch (cause) {
    if (cause instanceof BackupError) throw cause
    if (systemCode(cause) === 'ENOENT') {
      throw new BackupError('BUNDLE_MISSING', `a bundle is missing: ${displayPath(path)}`, {
        hint: 'files with content in it cannot be read from this target; use another target', cause,
      })
    }
    throw new BackupError('BUNDLE_DAMAGED', `a bundle cannot be read: ${displayPath(path)}`, {
      hint: 'check the drive; everything outside this bundle is unaffected', cause, facts: { path: displayPath(path) },
    })
  }
}

function damaged(path: RawPath, what: string): BackupError {
  return new BackupError('BUNDLE_DAMAGED', `a bundle ${what}: ${displayPath(path)}`, { facts: { path: displayPath(path) } })
}
