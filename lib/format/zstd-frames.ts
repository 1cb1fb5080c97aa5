// The zstd layer of a bundle: independent frames, padding, seek table (docs/format.md §3.2).
//
// FrameCompressor and decompressFrame are inverses; encodeTrailer and parseSeekTable too. All
// synchronous, for worker loops. A frame is never trusted about its own size: callers say how much
// they expect. Throws ZSTD_DAMAGED for anything that is not what was expected.

import { Buffer } from 'node:buffer'
import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import { BackupError } from '../errors.ts'
import { undisturbed } from './native.ts'

// CommonJS without named exports that an import could see.
const zstd = undisturbed(() => {
  return createRequire(import.meta.url)('zstd-napi/binding.js') as Zstd
})
type Zstd = typeof import('zstd-napi/binding.js')
type CCtx = import('zstd-napi/binding.js').CCtx
type DCtx = import('zstd-napi/binding.js').DCtx
const { CParameter, DParameter, compressBound } = zstd

/** A frame is closed at the first entry boundary after this much tar … */
export const FRAME_TARGET_BYTES = 2 * 1024 * 1024
/** … and at this much in any case: what one ranged read has to decompress at the most. */
export const FRAME_MAX_BYTES = 4 * 1024 * 1024

const SKIPPABLE_MAGIC = 0x184d2a50
const SEEK_TABLE_MAGIC = 0x184d2a5e
const SEEKABLE_MAGIC = 0x8f92eab1
const SKIPPABLE_HEAD_BYTES = 8
const SEEK_ENTRY_BYTES = 12
const SEEK_FOOTER_BYTES = 9
const CHECKSUM_FLAG = 0x80
/** Low half of XXH64 of nothing: the checksum of the padding's entry. */
const EMPTY_CHECKSUM = 0x51d8e999
/** Windows above this need `zstd --long` to open. */
const MAX_WINDOW_LOG = 27
/** Level for content that the probe finds incompressible: as good as a copy. */
const STORE_LEVEL = -5
/** The probe compresses this many samples of this size, spread over a frame. */
const PROBE_SAMPLES = 4
const PROBE_SAMPLE_BYTES = 8 * 1024
/** Saving less than 3 % of the samples is not worth the time. */
const PROBE_MIN_SAVING = 0.03

/** The version of the zstd library in use. */
export function zstdVersion(): string {
  return zstd.versionString()
}

/** One frame with content size and checksum. */
export function compressFrame(bytes: Uint8Array, level: number): Buffer {
  const out = Buffer.allocUnsafe(compressBound(bytes.length))
  return Buffer.from(out.subarray(0, new FrameCompressor(level).compress({ bytes, out })))
}

/** How large the output of FrameCompressor.compress has to be for `lengthBytes` of input. */
export function compressedBound(lengthBytes: number): number {
  return compressBound(lengthBytes)
}

/** Compresses frame after frame with one context; owns native memory until it is collected. */
export class FrameCompressor {
  readonly #context = contextAt(0)
  readonly #probe = contextAt(1)
  readonly #level: number
  readonly #sample = Buffer.allocUnsafe(compressBound(PROBE_SAMPLE_BYTES))

  constructor(level: number) {
    this.#level = level
  }

  /** @returns how many bytes of `out` the frame takes. */
  compress({ bytes, out }: { bytes: Uint8Array; out: Uint8Array }): number {
    const level = this.#isIncompressible(bytes) ? STORE_LEVEL : this.#level
    this.#context.setParameter(CParameter.compressionLevel, level)
    return this.#context.compress2(out, bytes)
  }

  #isIncompressible(bytes: Uint8Array): boolean {
    if (bytes.length < PROBE_SAMPLES * PROBE_SAMPLE_BYTES * 2) return false
    const stride = Math.floor((bytes.length - PROBE_SAMPLE_BYTES) / (PROBE_SAMPLES - 1))
    let compressed = 0
    for (let i = 0; i < PROBE_SAMPLES; i++) {
      const sample = bytes.subarray(i * stride, i * stride + PROBE_SAMPLE_BYTES)
      compressed += this.#probe.compress2(this.#sample, sample)
    }
    return compressed > PROBE_SAMPLES * PROBE_SAMPLE_BYTES * (1 - PROBE_MIN_SAVING)
  }
}

function contextAt(level: number): CCtx {
  const context = new zstd.CCtx()
  context.setParameter(CParameter.compressionLevel, level)
  context.setParameter(CParameter.checksumFlag, 1)
  context.setParameter(CParameter.contentSizeFlag, 1)
  return context
}

/**
 * The bytes of exactly one frame.
 * @throws BackupError ZSTD_DAMAGED when it is not whole, not one frame, or larger than `maxBytes`.
 */
export function decompressFrame(frame: Uint8Array, maxBytes: number): Buffer {
  const size = frameContentBytes(frame)
  if (size > maxBytes) {
    throw damaged(`a frame declares ${size} bytes where at most ${maxBytes} are allowed`)
  }
  const out = Buffer.allocUnsafe(size)
  decompressFrameInto({ frame, out })
  return out
}

/**
 * Decompresses one frame that has to hold exactly `out.length` bytes.
 * @throws BackupError ZSTD_DAMAGED
 */
export function decompressFrameInto({ frame, out }: { frame: Uint8Array; out: Uint8Array }): void {
  const context = (decompressor ??= newDecompressor())
  let written: number
  try {
    written = context.decompress(out, frame)
  } catch (cause) {
    throw new BackupError('ZSTD_DAMAGED', 'a frame does not decompress', { cause })
  }
  if (written !== out.length) {
    throw damaged(`a frame holds ${written} bytes instead of ${out.length}`)
  }
}

let decompressor: DCtx | undefined

function newDecompressor(): DCtx {
  const context = new zstd.DCtx()
  context.setParameter(DParameter.windowLogMax, MAX_WINDOW_LOG)
  return context
}

function frameContentBytes(frame: Uint8Array): number {
  let size: number | null
  try {
    size = zstd.getFrameContentSize(frame)
  } catch (cause) {
    throw new BackupError('ZSTD_DAMAGED', 'a frame has no zstd header', { cause })
  }
  if (size === null) throw damaged('a frame does not declare its size')
  return size
}

/**
 * The length of the frame (data or skippable) that `bytes` begins with.
 * @throws BackupError ZSTD_DAMAGED when it is not whole
 */
export function frameLength(bytes: Uint8Array): number {
  try {
    return zstd.findFrameCompressedSize(bytes)
  } catch (cause) {
    throw new BackupError('ZSTD_DAMAGED', 'a frame is cut short', { cause })
  }
}

/** The content checksum that a frame written here ends in. */
export function frameChecksum(frame: Uint8Array): number {
  assert(frame.length > 4)
  return Buffer.from(frame.buffer, frame.byteOffset + frame.length - 4, 4).readUInt32LE()
}

/** What the seek table says of one frame. */
export interface SeekEntry {
  readonly compressedBytes: number
  readonly tarBytes: number
  readonly checksum: number
}

/**
 * What follows the data frames: the padding frame and the seek table. With them the payload has a
 * Padmé length.
 */
export function encodeTrailer(frames: readonly SeekEntry[]): Buffer {
  const dataBytes = frames.reduce((sum, frame) => sum + frame.compressedBytes, 0)
  const tableBytes =
    SKIPPABLE_HEAD_BYTES + SEEK_ENTRY_BYTES * (frames.length + 1) + SEEK_FOOTER_BYTES
  const paddingBytes =
    padmeLength(dataBytes + tableBytes + SKIPPABLE_HEAD_BYTES) - dataBytes - tableBytes
  const padding = Buffer.alloc(paddingBytes)
  padding.writeUInt32LE(SKIPPABLE_MAGIC, 0)
  padding.writeUInt32LE(paddingBytes - SKIPPABLE_HEAD_BYTES, 4)
  const paddingEntry = { compressedBytes: paddingBytes, tarBytes: 0, checksum: EMPTY_CHECKSUM }
  return Buffer.concat([padding, encodeSeekTable([...frames, paddingEntry])])
}

function encodeSeekTable(entries: readonly SeekEntry[]): Buffer {
  const contentBytes = entries.length * SEEK_ENTRY_BYTES + SEEK_FOOTER_BYTES
  const table = Buffer.alloc(SKIPPABLE_HEAD_BYTES + contentBytes)
  table.writeUInt32LE(SEEK_TABLE_MAGIC, 0)
  table.writeUInt32LE(contentBytes, 4)
  let offset = SKIPPABLE_HEAD_BYTES
  for (const entry of entries) {
    table.writeUInt32LE(entry.compressedBytes, offset)
    table.writeUInt32LE(entry.tarBytes, offset + 4)
    table.writeUInt32LE(entry.checksum, offset + 8)
    offset += SEEK_ENTRY_BYTES
  }
  table.writeUInt32LE(entries.length, offset)
  table.writeUInt8(CHECKSUM_FLAG, offset + 4)
  table.writeUInt32LE(SEEKABLE_MAGIC, offset + 5)
  return table
}

/**
 * The seek table that a payload ends with. Give it as many of the last bytes as there are, or are
 * handy.
 * @returns the entries and the table's own length; 'short' when more of the end is needed.
 * @throws BackupError ZSTD_DAMAGED
 */
export function parseSeekTable(
  end: Buffer,
): { readonly entries: readonly SeekEntry[]; readonly tableBytes: number } | 'short' {
  if (end.length < SKIPPABLE_HEAD_BYTES + SEEK_FOOTER_BYTES) return 'short'
  if (end.readUInt32LE(end.length - 4) !== SEEKABLE_MAGIC) throw damaged('there is no seek table')
  const frames = end.readUInt32LE(end.length - SEEK_FOOTER_BYTES)
  if (end.readUInt8(end.length - 5) !== CHECKSUM_FLAG) throw damaged('the seek table is unknown')
  const contentBytes = frames * SEEK_ENTRY_BYTES + SEEK_FOOTER_BYTES
  const tableBytes = SKIPPABLE_HEAD_BYTES + contentBytes
  if (end.length < tableBytes) return 'short'
  const start = end.length - tableBytes
  if (
    end.readUInt32LE(start) !== SEEK_TABLE_MAGIC
    || end.readUInt32LE(start + 4) !== contentBytes
  ) {
    throw damaged('the seek table is malformed')
  }
  const entries: SeekEntry[] = []
  for (let i = 0; i < frames; i++) {
    const at = start + SKIPPABLE_HEAD_BYTES + i * SEEK_ENTRY_BYTES
    entries.push({
      compressedBytes: end.readUInt32LE(at),
      tarBytes: end.readUInt32LE(at + 4),
      checksum: end.readUInt32LE(at + 8),
    })
  }
  return { entries, tableBytes }
}

/** How long a payload would be, for each place where a seek table may end. */
export function seekTableEnds(bytes: Buffer): readonly number[] {
  const ends: number[] = []
  const magic = Buffer.alloc(4)
  magic.writeUInt32LE(SEEKABLE_MAGIC)
  for (let at = bytes.indexOf(magic); at !== -1; at = bytes.indexOf(magic, at + 1))
    ends.push(at + 4)
  return ends
}

/**
 * Padmé: rounds a length up so that it tells little (at most 12 % more; PURBs, Nikitin et al.
 * 2019).
 */
export function padmeLength(lengthBytes: number): number {
  assert(lengthBytes >= 0 && lengthBytes < 2 ** 52)
  if (lengthBytes < 2) return lengthBytes
  const exponent = Math.floor(Math.log2(lengthBytes))
  const kept = Math.floor(Math.log2(exponent)) + 1
  const unit = 2 ** Math.max(0, exponent - kept)
  return Math.ceil(lengthBytes / unit) * unit
}

function damaged(message: string): BackupError {
  return new BackupError('ZSTD_DAMAGED', message)
}
