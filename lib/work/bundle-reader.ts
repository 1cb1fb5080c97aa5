// Reads runs of a bundle's tar without reading the bundle: age chunk → zstd frame → bytes
// (docs/format.md §3).
//
// The inverse of bundle-writer.ts. Synchronous, for worker loops and for the main thread's small
// reads. What comes out has been authenticated by age, but age does not say by whom: callers
// compare it with a digest from a signed manifest. Throws BUNDLE_MISSING, BUNDLE_DAMAGED,
// AGE_HEADER, AGE_PAYLOAD, ZSTD_DAMAGED, IDENTITY_WRONG.

import { Buffer } from 'node:buffer'
import { BackupError } from '../errors.ts'
import {
  CHUNK_BYTES,
  MAX_HEAD_BYTES,
  TAG_BYTES,
  ageLengths,
  openAgeHead,
  openChunk,
} from '../format/age.ts'
import { FRAME_MAX_BYTES, decompressFrameInto, parseSeekTable } from '../format/zstd-frames.ts'
import type { FrameRange } from '../model/entry.ts'
import { framesOf } from '../model/shard.ts'
import type { ByteRange } from '../target/target.ts'
import { type BundleAddress, damaged } from './bundle-address.ts'
import { type BundleSource, openSource } from './bundle-source.ts'

/** Frames kept decompressed: neighbours in a catalog mostly share one. */
const CACHED_FRAMES = 2
/** The first read of the end of a bundle: a seek table of 5,000 frames. */
const SEEK_TABLE_GUESS_BYTES = 60 * 1024

/**
 * Reused by all readers of a thread: what readPayload() returns is good until any of them is called
 * again.
 */
const scratch = { ciphertext: Buffer.alloc(0), payload: Buffer.alloc(0) }

export class BundleReader {
  readonly path: BundleAddress
  readonly payloadBytes: number
  readonly #source: BundleSource
  readonly #headBytes: number
  readonly #payloadKey: Buffer
  /** Decompressed frames by their place in the payload, the latest used last. */
  readonly #cache = new Map<number, Buffer>()

  /** @param of.source where it is read from; by default what its address says */
  constructor({ path, identities, source }: BundleOptions) {
    this.path = path
    this.#source = source ?? openSource(path)
    try {
      const { sizeBytes } = this.#source
      const { headBytes, payloadKey } = this.#openHead(sizeBytes, identities)
      this.#headBytes = headBytes
      this.#payloadKey = payloadKey
      this.payloadBytes = payloadLength({ headBytes, sizeBytes })
    } catch (error) {
      this.close()
      throw error
    }
  }

  close(): void {
    this.#source.close()
  }

  /** Which bytes of the file are read for a frame. */
  bytesOf([, , offset, length]: FrameRange): ByteRange {
    return this.#ciphertextOf(offset, Math.max(1, length))
  }

  #ciphertextOf(offset: number, length: number): ByteRange {
    if (offset + length > this.payloadBytes)
      throw damaged(this.path, 'is shorter than its catalog says')
    const first = Math.floor(offset / CHUNK_BYTES)
    const last = Math.floor((offset + length - 1) / CHUNK_BYTES)
    const plainBytes = Math.min((last + 1) * CHUNK_BYTES, this.payloadBytes) - first * CHUNK_BYTES
    return {
      offset: ageLengths.chunkOffset({ headBytes: this.#headBytes, index: first }),
      length: plainBytes + (last - first + 1) * TAG_BYTES,
    }
  }

  /** Bytes of the payload, decrypted and authenticated; good until the next call. */
  readPayload(offset: number, length: number): Buffer {
    if (offset + length > this.payloadBytes)
      throw damaged(this.path, 'is shorter than its catalog says')
    if (length === 0) return Buffer.alloc(0)
    const first = Math.floor(offset / CHUNK_BYTES)
    const last = Math.floor((offset + length - 1) / CHUNK_BYTES)
    const plainBytes = Math.min((last + 1) * CHUNK_BYTES, this.payloadBytes) - first * CHUNK_BYTES
    this.#openChunks({ first, last, plainBytes })
    const start = offset - first * CHUNK_BYTES
    return scratch.payload.subarray(start, start + length)
  }

  /** The tar bytes of one frame; good for the next few calls. */
  readFrame([, tarLength, offset, length]: FrameRange): Buffer {
    const cached = this.#cache.get(offset)
    if (cached !== undefined && cached.length === tarLength) {
      this.#cache.delete(offset)
      this.#cache.set(offset, cached)
      return cached
    }
    const frame = this.#frameBuffer().subarray(0, tarLength)
    decompressFrameInto({ frame: this.readPayload(offset, length), out: frame })
    this.#cache.set(offset, frame)
    return frame
  }

  /** Memory for one more frame: that of the one used longest ago where there are enough. */
  #frameBuffer(): Buffer {
    if (this.#cache.size < CACHED_FRAMES) return Buffer.allocUnsafeSlow(FRAME_MAX_BYTES)
    const [oldest, frame] = this.#cache.entries().next().value!
    this.#cache.delete(oldest)
    return Buffer.from(frame.buffer, 0, FRAME_MAX_BYTES)
  }

  /**
   * A run of tar bytes, by the frames (of this bundle, in order) that hold it; good until the next
   * call.
   */
  readTar(
    frames: readonly FrameRange[],
    { offset, length }: { offset: number; length: number },
  ): Buffer {
    let whole: Buffer | undefined
    let done = 0
    this.forEachPart(frames, { offset, length }, (part) => {
      // One part is used where it is; of several each is copied at once, for its memory is used
      // again.
      if (part.length === length) whole = part
      else done += part.copy((whole ??= Buffer.allocUnsafe(length)), done)
    })
    return whole ?? Buffer.alloc(0)
  }

  /** The same, part by part without a copy; a part is only good until the next call. */
  forEachPart(
    frames: readonly FrameRange[],
    { offset, length }: { offset: number; length: number },
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
   * The chunks of ciphertext of a whole bundle have to be opened in order, as they come from the
   * medium.
   * @returns how to open one; `index` counts from 0, the last one is told by the length of the
   * file.
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

  #openChunks({
    first,
    last,
    plainBytes,
  }: {
    first: number
    last: number
    plainBytes: number
  }): void {
    const sealedBytes = plainBytes + (last - first + 1) * TAG_BYTES
    if (scratch.ciphertext.length < sealedBytes)
      scratch.ciphertext = Buffer.allocUnsafeSlow(sealedBytes)
    if (scratch.payload.length < plainBytes) scratch.payload = Buffer.allocUnsafeSlow(plainBytes)
    const sealed = scratch.ciphertext.subarray(0, sealedBytes)
    this.#readInto(sealed, ageLengths.chunkOffset({ headBytes: this.#headBytes, index: first }))
    for (let index = first; index <= last; index++) {
      const at = (index - first) * (CHUNK_BYTES + TAG_BYTES)
      const plain = this.openChunkAt(index, sealed.subarray(at, at + CHUNK_BYTES + TAG_BYTES))
      plain.copy(scratch.payload, (index - first) * CHUNK_BYTES)
    }
  }

  /** Most heads are a few hundred bytes; one with very many recipients is read again, whole. */
  #openHead(sizeBytes: number, identities: readonly string[]): ReturnType<typeof openAgeHead> {
    const start = Buffer.allocUnsafe(Math.min(MAX_HEAD_BYTES, sizeBytes))
    const guess = start.subarray(0, HEAD_GUESS_BYTES)
    this.#readInto(guess, 0)
    try {
      return openAgeHead(guess, identities)
    } catch (error) {
      if (guess.length === start.length) throw error
      this.#readInto(start, 0)
      return openAgeHead(start, identities)
    }
  }

  #readInto(out: Buffer, position: number): void {
    let done = 0
    while (done < out.length) {
      const read = this.#source.read(out.subarray(done), position + done)
      if (read === 0) throw damaged(this.path, 'is cut short')
      done += read
    }
  }
}

export interface BundleOptions {
  readonly path: BundleAddress
  readonly identities: readonly string[]
  readonly source?: BundleSource | undefined
}

/**
 * A bundle of an export whose manifest these identities have opened: one that they do not open is
 * damaged.
 * @throws BackupError BUNDLE_DAMAGED, and what the constructor throws
 */
export function openBundle(of: BundleOptions): BundleReader {
  try {
    return new BundleReader(of)
  } catch (error) {
    if (!(error instanceof BackupError) || error.code !== 'IDENTITY_WRONG') throw error
    throw damaged(of.path, 'has a damaged header')
  }
}

/** Of a frame: what does not compress grows a little. */
const MAX_COMPRESSED_BYTES = 2 * FRAME_MAX_BYTES

/**
 * A file that was cut off may have a length that no age file has: then nothing of its last chunk is
 * there, and what comes before can be read. @throws BackupError AGE_PAYLOAD
 */
function payloadLength({
  headBytes,
  sizeBytes,
}: {
  readonly headBytes: number
  readonly sizeBytes: number
}): number {
  const rest = (sizeBytes - headBytes) % (CHUNK_BYTES + TAG_BYTES)
  const isLost = rest <= TAG_BYTES && sizeBytes - headBytes > rest
  const ciphertextBytes = isLost ? sizeBytes - rest : sizeBytes
  return ageLengths.plaintextBytes({ headBytes, ciphertextBytes })
}

/** A head with ten recipients fits. */
const HEAD_GUESS_BYTES = 4096

function frameRanges(
  table: Exclude<ReturnType<typeof parseSeekTable>, 'short'>,
  reader: BundleReader,
): FrameRange[] {
  const frames: FrameRange[] = []
  let tarOffset = 0
  let offset = 0
  for (const { compressedBytes, tarBytes } of table.entries) {
    // Buffers are as long as frames may be.
    if (tarBytes > FRAME_MAX_BYTES || (tarBytes > 0 && compressedBytes > MAX_COMPRESSED_BYTES))
      throw damaged(reader.path, 'has a frame that is larger than frames may be')
    if (tarBytes > 0) frames.push([tarOffset, tarBytes, offset, compressedBytes])
    tarOffset += tarBytes
    offset += compressedBytes
  }
  if (offset + table.tableBytes !== reader.payloadBytes) {
    throw damaged(reader.path, 'has a seek table that does not fit it')
  }
  return frames
}
