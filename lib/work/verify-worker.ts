// The worker thread of a verification: reads a whole bundle from the medium, in order, past the
// page cache.
//
// One pass: SHA-256 of the file, every age chunk opened, every frame decompressed, every range that
// catalogs name compared with its digest. Damage is confined: a chunk that does not open costs the
// frames it touches, and those the ranges they hold (invariant 8). Writes nothing.

import { Buffer } from 'node:buffer'
import { type Hash, createHash } from 'node:crypto'
import { parentPort, workerData } from 'node:worker_threads'
import { BackupError, type PlainError, packError } from '../errors.ts'
import { CHUNK_BYTES, TAG_BYTES } from '../format/age.ts'
import { DIGEST_BYTES, digestBytes } from '../format/chunker.ts'
import { FRAME_MAX_BYTES, decompressFrameInto } from '../format/zstd-frames.ts'
import type { FrameRange } from '../model/entry.ts'
import { BundleReader } from './bundle-reader.ts'
import type { BundleAddress } from './bundle-address.ts'
import { readWhole } from './bundle-source.ts'

/** Runs of a bundle's tar with the digests they have to have: ascending, without overlap. */
export interface ExpectedRanges {
  readonly offsets: Float64Array
  readonly lengths: Float64Array
  /** DIGEST_BYTES each. */
  readonly digests: Buffer | Uint8Array
}

export interface VerifyRequest {
  /** Comes back with the reply. */
  readonly key: string
  readonly name: string
  readonly path: BundleAddress
  readonly sizeBytes: number | undefined
  readonly sha256: string
  /** Undefined: checksums only, there is no identity. */
  readonly ranges: ExpectedRanges | undefined
}

export interface VerifyReply {
  readonly key: string
  readonly name: string
  readonly bytesRead: number
  /** What is wrong with the file; empty when it is whole. */
  readonly problems: readonly PlainError[]
  /** Which ranges could not be read or differ. */
  readonly damaged: readonly number[]
}

/** Reads one bundle whole. Damage is what it returns, never a throw. */
export function verifyBundle(request: VerifyRequest, identities: readonly string[]): VerifyReply {
  const problems: PlainError[] = []
  const checker = openChecker(request, { identities, problems })
  const hash = createHash('sha256')
  let bytesRead = 0
  try {
    readWhole(request.path, (block) => {
      hash.update(block)
      bytesRead += block.length
      checker?.update(block)
    })
    const sha256 = hash.digest('hex')
    if (sha256 !== request.sha256) {
      problems.push(
        packError(
          new BackupError('BUNDLE_DAMAGED', `${request.name} does not have its signed checksum`),
        ),
      )
    }
  } catch (error) {
    problems.push(packError(unreadable(request, error)))
  }
  const all = request.ranges?.offsets.length ?? 0
  const damaged =
    checker === undefined ? Array.from({ length: all }, (_, i) => i) : checker.finish()
  problems.push(...(checker?.problems ?? []))
  return { key: request.key, name: request.name, bytesRead, problems, damaged }
}

function unreadable({ name }: VerifyRequest, cause: unknown): BackupError {
  if (cause instanceof BackupError) return cause
  const missing = cause instanceof Error && 'code' in cause && cause.code === 'ENOENT'
  return missing
    ? new BackupError('BUNDLE_MISSING', `${name} is missing`, { cause })
    : new BackupError('BUNDLE_DAMAGED', `${name} cannot be read`, { cause })
}

function openChecker(
  { path, ranges }: VerifyRequest,
  { identities, problems }: { identities: readonly string[]; problems: PlainError[] },
): BundleChecker | undefined {
  if (ranges === undefined) return undefined
  let reader: BundleReader | undefined
  try {
    reader = new BundleReader({ path, identities })
    return new BundleChecker({ reader, frames: reader.readFrames(), ranges })
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    problems.push(packError(error))
    return undefined
  } finally {
    reader?.close()
  }
}

/** Follows a bundle's bytes from the medium through all layers. */
class BundleChecker {
  readonly problems: PlainError[] = []
  readonly #reader: BundleReader
  readonly #frames: readonly FrameRange[]
  readonly #ranges: RangeChecker
  readonly #sealed = Buffer.allocUnsafe(CHUNK_BYTES + TAG_BYTES)
  readonly #compressed = Buffer.allocUnsafe(FRAME_MAX_BYTES * 2)
  readonly #tar = Buffer.allocUnsafe(FRAME_MAX_BYTES)
  #skip: number
  #sealedBytes = 0
  #chunks = 0
  #payload = 0
  #frame = 0
  #frameIsBad = false

  constructor({
    reader,
    frames,
    ranges,
  }: {
    reader: BundleReader
    frames: readonly FrameRange[]
    ranges: ExpectedRanges
  }) {
    this.#reader = reader
    this.#frames = frames
    this.#ranges = new RangeChecker(ranges)
    this.#skip = reader.headBytes
  }

  update(block: Uint8Array): void {
    let at = Math.min(this.#skip, block.length)
    this.#skip -= at
    while (at < block.length) {
      const room = Math.min(this.#sealed.length - this.#sealedBytes, block.length - at)
      this.#sealed.set(block.subarray(at, at + room), this.#sealedBytes)
      this.#sealedBytes += room
      at += room
      if (this.#sealedBytes === this.#sealed.length) this.#openSealed()
    }
  }

  /** @returns the indexes of ranges that are damaged. */
  finish(): readonly number[] {
    if (this.#sealedBytes > 0) this.#openSealed()
    return this.#ranges.finish()
  }

  #openSealed(): void {
    const sealed = this.#sealed.subarray(0, this.#sealedBytes)
    this.#sealedBytes = 0
    let plain: Buffer | undefined
    try {
      plain = this.#reader.openChunkAt(this.#chunks, sealed)
    } catch (error) {
      this.#note(error)
    }
    this.#chunks += 1
    this.#takePayload(plain, sealed.length - TAG_BYTES)
  }

  /**
   * `plain` is undefined for a chunk that did not open: its place is passed over, its frames are
   * bad.
   */
  #takePayload(plain: Buffer | undefined, lengthBytes: number): void {
    let at = 0
    while (at < lengthBytes && this.#frame < this.#frames.length) {
      const [, , offset, length] = this.#frames[this.#frame]!
      if (this.#payload < offset) {
        // Padding may also lie between frames.
        const passed = Math.min(offset - this.#payload, lengthBytes - at)
        at += passed
        this.#payload += passed
        continue
      }
      const filled = this.#payload - offset
      const room = Math.min(length - filled, lengthBytes - at)
      if (plain === undefined) this.#frameIsBad = true
      else this.#compressed.set(plain.subarray(at, at + room), filled)
      at += room
      this.#payload += room
      if (filled + room === length) this.#endFrame()
    }
  }

  #endFrame(): void {
    const [tarOffset, tarLength, , length] = this.#frames[this.#frame++]!
    const tar = this.#tar.subarray(0, tarLength)
    const isBad = this.#frameIsBad
    this.#frameIsBad = false
    try {
      if (isBad) throw new BackupError('AGE_PAYLOAD', 'a frame lies in a chunk that does not open')
      decompressFrameInto({ frame: this.#compressed.subarray(0, length), out: tar })
      this.#ranges.update(tar, tarOffset)
    } catch (error) {
      if (!isBad) this.#note(error)
      this.#ranges.skip({ offset: tarOffset, length: tarLength })
    }
  }

  #note(error: unknown): void {
    if (!(error instanceof BackupError)) throw error
    if (this.problems.length === 0) this.problems.push(packError(error))
  }
}

/** Compares ranges of a tar, which arrives in order, with their digests. */
class RangeChecker {
  readonly #ranges: ExpectedRanges
  readonly #damaged: number[] = []
  #next = 0
  #hash: Hash | undefined
  #isBad = false

  constructor(ranges: ExpectedRanges) {
    this.#ranges = ranges
  }

  update(tar: Buffer, tarOffset: number): void {
    const end = tarOffset + tar.length
    for (;;) {
      const range = this.#range()
      if (range === undefined || range.start >= end) return
      const part = tar.subarray(
        Math.max(range.start, tarOffset) - tarOffset,
        Math.min(range.end, end) - tarOffset,
      )
      const isWhole = part.length === range.end - range.start
      if (isWhole) this.#judge(digestBytes(part))
      else {
        this.#hash ??= createHash('blake2b512')
        this.#hash.update(part)
        if (range.end > end) return
        this.#judge(this.#hash.digest().subarray(0, DIGEST_BYTES))
      }
    }
  }

  /** A run of tar that could not be had. */
  skip({ offset, length }: { offset: number; length: number }): void {
    for (;;) {
      const range = this.#range()
      if (range === undefined || range.start >= offset + length) return
      this.#isBad = true
      if (range.end > offset + length) {
        this.#hash ??= createHash('blake2b512')
        return
      }
      this.#judge(undefined)
    }
  }

  finish(): readonly number[] {
    while (this.#range() !== undefined) this.#judge(undefined)
    return this.#damaged
  }

  #judge(digest: Buffer | undefined): void {
    const { digests } = this.#ranges
    const at = this.#next * DIGEST_BYTES
    const expected = digests.subarray(at, at + DIGEST_BYTES)
    if (this.#isBad || digest === undefined || !digest.equals(expected))
      this.#damaged.push(this.#next)
    this.#next += 1
    this.#hash = undefined
    this.#isBad = false
  }

  #range(): { readonly start: number; readonly end: number } | undefined {
    const start = this.#ranges.offsets[this.#next]
    return start === undefined
      ? undefined
      : { start, end: start + this.#ranges.lengths[this.#next]! }
  }
}

// Last, for classes are not hoisted. Imported for its types alone, this file starts nothing.
if (parentPort !== null) {
  const port = parentPort
  const { identities } = workerData as { identities: readonly string[] }
  port.on('message', (request: VerifyRequest) =>
    port.postMessage(verifyBundle(request, identities)),
  )
}
