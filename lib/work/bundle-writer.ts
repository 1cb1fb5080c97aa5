// Writes one bundle: tar in, age( zstd frames ) out, to a partial name (docs/format.md §3, §12).
//
// Its inverse is bundle-reader.ts. Synchronous, over buffers that are kept from bundle to bundle:
// one BundleWriter a worker thread. What finish() returns counts for nothing until prove() has read
// it back from the medium (prove.ts, invariant 2). Throws TARGET_FULL, TARGET_READ_ONLY,
// TARGET_FAILED; after abort() the partial file is gone if it can be.

import { Buffer } from 'node:buffer'
import { createHash, type Hash } from 'node:crypto'
import { closeSync, constants, openSync, unlinkSync, writeSync } from 'node:fs'
import assert from 'node:assert/strict'
import { crc32 } from 'node:zlib'
import { CHUNK_BYTES, TAG_BYTES, createAgeHead, sealChunk } from '../format/age.ts'
import { END_OF_ARCHIVE } from '../format/tar.ts'
import {
  FRAME_MAX_BYTES,
  FRAME_TARGET_BYTES,
  FrameCompressor,
  type SeekEntry,
  compressedBound,
  encodeTrailer,
  frameChecksum,
} from '../format/zstd-frames.ts'
import { beginWriteback } from '../machine/posix.ts'
import type { FrameRange } from '../model/entry.ts'
import { type RawPath, rawPathToBytes } from '../model/raw-path.ts'
import { targetError } from '../target/target-error.ts'
import { BLOCK_BYTES, type WrittenFile } from './prove.ts'

/**
 * The kernel is told to begin writing to the medium after this much, so that the fsync at the end
 * is short.
 */
const WRITEBACK_BYTES = 8 * BLOCK_BYTES

/** What is known of a bundle. */
export interface BundleFacts {
  readonly sizeBytes: number
  readonly sha256: string
  readonly tarBytes: number
  readonly frames: readonly FrameRange[]
}

/** A bundle that is written and not proven yet. */
export interface WrittenBundle extends BundleFacts {
  readonly file: WrittenFile
}

export class BundleWriter {
  readonly #compressor: FrameCompressor
  readonly #recipients: readonly string[]
  readonly #frame = Buffer.allocUnsafe(FRAME_MAX_BYTES)
  readonly #compressed = Buffer.allocUnsafe(compressedBound(FRAME_MAX_BYTES))
  readonly #plain = Buffer.allocUnsafe(CHUNK_BYTES)
  readonly #block = Buffer.allocUnsafe(BLOCK_BYTES + CHUNK_BYTES + TAG_BYTES)
  #open: OpenBundle | undefined
  #frameBytes = 0
  #plainBytes = 0
  #blockBytes = 0

  constructor({ recipients, level }: { recipients: readonly string[]; level: number }) {
    this.#recipients = recipients
    this.#compressor = new FrameCompressor(level)
  }

  get isOpen(): boolean {
    return this.#open !== undefined
  }

  /** Bytes of tar so far. */
  get tarBytes(): number {
    return this.#bundle.tarBytes
  }

  /** Bytes of ciphertext so far, the unfinished frame not counted. */
  get sizeBytes(): number {
    return this.#bundle.writtenBytes + this.#blockBytes
  }

  /** The frames that are ended. */
  get frames(): readonly FrameRange[] {
    return this.#bundle.frames
  }

  /** Begins a bundle. @throws BackupError when the file cannot be made. */
  open(path: RawPath): void {
    assert(!this.isOpen)
    const { O_CREAT, O_EXCL, O_NOFOLLOW, O_WRONLY } = constants
    const { head, payloadKey } = createAgeHead(this.#recipients)
    const fd = guarded(path, () =>
      openSync(rawPathToBytes(path), O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW, 0o600),
    )
    this.#open = {
      path,
      fd,
      payloadKey,
      chunks: 0,
      tarBytes: 0,
      payloadBytes: 0,
      writtenBytes: 0,
      hash: createHash('sha256'),
      sums: [],
      frames: [],
      seek: [],
    }
    this.#frameBytes = 0
    this.#plainBytes = 0
    this.#blockBytes = head.copy(this.#block)
  }

  /** Says that a tar member begins here: frames are cut at such places where possible. */
  boundary(): void {
    if (this.#frameBytes >= FRAME_TARGET_BYTES) this.endFrame()
  }

  append(bytes: Uint8Array): void {
    const bundle = this.#bundle
    let done = 0
    while (done < bytes.length) {
      const room = Math.min(FRAME_MAX_BYTES - this.#frameBytes, bytes.length - done)
      this.#frame.set(bytes.subarray(done, done + room), this.#frameBytes)
      this.#frameBytes += room
      bundle.tarBytes += room
      done += room
      if (this.#frameBytes === FRAME_MAX_BYTES) this.endFrame()
    }
  }

  /** Ends the frame, if one is begun. */
  endFrame(): void {
    if (this.#frameBytes === 0) return
    const bundle = this.#bundle
    const tar = this.#frame.subarray(0, this.#frameBytes)
    const length = this.#compressor.compress({ bytes: tar, out: this.#compressed })
    const frame = this.#compressed.subarray(0, length)
    bundle.frames.push([bundle.tarBytes - tar.length, tar.length, bundle.payloadBytes, length])
    bundle.seek.push({
      compressedBytes: length,
      tarBytes: tar.length,
      checksum: frameChecksum(frame),
    })
    this.#frameBytes = 0
    this.#encrypt(frame)
  }

  /** Ends the tar and the file, which still has its partial name, is open, and has to be proven. */
  finish(): WrittenBundle {
    const bundle = this.#bundle
    this.append(END_OF_ARCHIVE)
    this.endFrame()
    this.#encrypt(encodeTrailer(bundle.seek))
    this.#seal(this.#plain.subarray(0, this.#plainBytes), true)
    this.#flush(this.#blockBytes)
    this.#open = undefined
    const { path, fd, sums, writtenBytes } = bundle
    return {
      sizeBytes: writtenBytes,
      sha256: bundle.hash.digest('hex'),
      tarBytes: bundle.tarBytes,
      frames: bundle.frames,
      file: { path, fd, sums, lengthBytes: writtenBytes },
    }
  }

  /** Gives up on a bundle and removes what there is of it. */
  abort(): void {
    const bundle = this.#open
    if (bundle === undefined) return
    this.#open = undefined
    for (const release of [
      () => closeSync(bundle.fd),
      () => unlinkSync(rawPathToBytes(bundle.path)),
    ]) {
      try {
        release()
      } catch {
        // The failure that led here is the one to report; a partial name is swept by the next run.
      }
    }
  }

  get #bundle(): OpenBundle {
    assert(this.#open !== undefined)
    return this.#open
  }

  #encrypt(payload: Uint8Array): void {
    this.#bundle.payloadBytes += payload.length
    let done = 0
    while (done < payload.length) {
      // A full chunk waits for the next byte, for the last one has to be sealed as such.
      if (this.#plainBytes === CHUNK_BYTES) {
        this.#seal(this.#plain, false)
        this.#plainBytes = 0
      }
      if (this.#plainBytes === 0 && payload.length - done > CHUNK_BYTES) {
        this.#seal(payload.subarray(done, done + CHUNK_BYTES), false)
        done += CHUNK_BYTES
        continue
      }
      const room = Math.min(CHUNK_BYTES - this.#plainBytes, payload.length - done)
      this.#plain.set(payload.subarray(done, done + room), this.#plainBytes)
      this.#plainBytes += room
      done += room
    }
  }

  #seal(plaintext: Uint8Array, last: boolean): void {
    const bundle = this.#bundle
    this.#blockBytes += sealChunk({
      payloadKey: bundle.payloadKey,
      index: bundle.chunks++,
      last,
      plaintext,
      out: this.#block,
      outOffset: this.#blockBytes,
    })
    if (this.#blockBytes >= BLOCK_BYTES) this.#flush(BLOCK_BYTES)
  }

  #flush(length: number): void {
    if (length === 0) return
    const bundle = this.#bundle
    const block = this.#block.subarray(0, length)
    bundle.hash.update(block)
    bundle.sums.push(crc32(block))
    let done = 0
    while (done < length) done += guarded(bundle.path, () => writeSync(bundle.fd, block, done))
    bundle.writtenBytes += length
    if (bundle.writtenBytes % WRITEBACK_BYTES === 0) {
      beginWriteback(bundle.fd, {
        offset: bundle.writtenBytes - WRITEBACK_BYTES,
        length: WRITEBACK_BYTES,
      })
    }
    this.#block.copyWithin(0, length, this.#blockBytes)
    this.#blockBytes -= length
  }
}

interface OpenBundle {
  readonly path: RawPath
  readonly fd: number
  readonly payloadKey: Buffer
  readonly hash: Hash
  /** CRC-32 of every block: what the read-back is compared with. */
  readonly sums: number[]
  readonly frames: FrameRange[]
  readonly seek: SeekEntry[]
  chunks: number
  tarBytes: number
  payloadBytes: number
  writtenBytes: number
}

function guarded<T>(path: RawPath, action: () => T): T {
  try {
    return action()
  } catch (error) {
    throw targetError({ error, path })
  }
}
