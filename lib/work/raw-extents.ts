// Where on a medium without a filesystem the parts of one age file lie.
//
// Every chunk of an age file authenticates under its file's key and its own number
// (docs/format.md §3), so a chunk says by itself whose it is and which one: contiguous runs are
// found by trying few of their chunks, and where a run ends, what follows is looked for in what
// nothing else explains. Runs in worker threads (recover-worker.ts). Throws what openAgeHead does.

import { Buffer } from 'node:buffer'
import { BackupError } from '../errors.ts'
import {
  CHUNK_BYTES,
  MAX_HEAD_BYTES,
  TAG_BYTES,
  openAgeHead,
  openChunk,
  peekChunk,
} from '../format/age.ts'
import { padmeLength, seekTableEnds } from '../format/zstd-frames.ts'
import type { Extent } from './bundle-address.ts'
import type { Medium } from './raw-medium.ts'

const SEALED_BYTES = CHUNK_BYTES + TAG_BYTES
/** Filesystems lay files out in blocks of the first size or a multiple of it; small ones do not. */
const BLOCK_SIZES = [4096, 2048, 1024] as const
const SECTOR_BYTES = 512
/** So many chunks behind one that does not open each is tried, further on one in ever more. */
const DAMAGED_CHUNKS = 16
/** Behind so many chunks that do not open a run is taken to have ended: no bundle is larger. */
const MAX_DAMAGED_CHUNKS = (4 * 1024 ** 3) / CHUNK_BYTES
/** Runs shorter than two chunks cannot be recognised: so many chunks are given up for them. */
const LOST_CHUNKS = 3
/** How much is looked through for them, and of what was taken for parts of other files. */
const LOST_SEARCH_BYTES = 64 * 1024 * 1024
const WINDOW_BYTES = 4 * 1024 * 1024

/** What is known of where a file lies. */
export interface RawFile {
  /** Where on the medium it begins. */
  readonly offset: number
  /** In the file's order; in place of what was not found its own beginning, which opens nothing. */
  readonly extents: readonly Extent[]
  /** Runs within them, in order, that do not open: they may be of another file. */
  readonly holes: readonly Extent[]
  /** The first chunk that was not found; undefined where the file is whole. */
  readonly next: number | undefined
}

/** What is looked for, and where. */
export interface RawSearch {
  /** One that breaks off. */
  readonly file: RawFile
  /** Runs of the medium in which no part of any file was found, in order. */
  readonly gaps: readonly Extent[]
  /** How much of them is looked through. */
  readonly searchBytes: number
  /** Where files begin and go on is a whole number of these from each other. */
  readonly blockBytes: number
}

/** The run that begins a file. @throws BackupError AGE_HEADER, IDENTITY_WRONG */
export function mapRawFile(
  medium: Medium,
  { offset, identities }: { readonly offset: number; readonly identities: readonly string[] },
): RawFile {
  const chunks = openChunks(medium, { offset, identities })
  const run = { offset, fileOffset: 0 }
  return extend(chunks, { offset, closed: [], holes: [], run, chunk: 0 })
}

/**
 * Looks for what follows where a file breaks off, in the nearest of what nothing explains.
 * @returns the file as far as it is known then, or undefined where nothing was found
 */
export function followRawFile(
  medium: Medium,
  of: RawSearch & { readonly identities: readonly string[] },
): RawFile | undefined {
  const { offset, extents, holes, next: chunk } = of.file
  const last = extents.at(-1)
  if (chunk === undefined || last === undefined || offset % SECTOR_BYTES !== 0) {
    return undefined
  }
  const chunks = openChunks(medium, { offset, identities: of.identities })
  const end = last.offset + last.length
  const fileOffset = chunks.fileOffset(chunk)
  // What was taken for parts of others was tried here and there only.
  const taken = gapsOf(medium.sizeBytes, [{ offset: -1, extents: of.gaps, holes: [], next: 0 }])
  for (let further = 1; further <= LOST_CHUNKS; further++) {
    const nearBytes = Math.min(of.searchBytes, LOST_SEARCH_BYTES)
    const searchBytes = further === 1 ? of.searchBytes : nearBytes
    const search = { ...of, chunk: chunk + further, from: end, searchBytes }
    const inTaken = { ...search, gaps: taken, searchBytes: nearBytes }
    const found =
      findChunk(chunks, search) ?? (further === 1 ? findChunk(chunks, inTaken) : undefined)
    if (found === undefined) continue
    const { blockBytes } = of
    const cut =
      further === 1
        ? cutBetween(chunks, { chunk, before: end, after: found, blockBytes })
        : undefined
    const known = cut === undefined ? 0 : SEALED_BYTES - cut
    const lost = cut === undefined ? [{ offset, length: further * SEALED_BYTES }] : []
    const kept = { offset: last.offset, length: last.length + (cut ?? 0) }
    const run = { offset: found - known, fileOffset: fileOffset + further * SEALED_BYTES - known }
    const closed = [...extents.slice(0, -1), kept, ...lost]
    return extend(chunks, { offset, closed, holes, run, chunk: chunk + further })
  }
  return undefined
}

/** Runs of the medium that no file explains, in order. */
export function gapsOf(sizeBytes: number, files: readonly RawFile[]): readonly Extent[] {
  const taken = files.flatMap(explained).sort((a, b) => a.offset - b.offset)
  const gaps: Extent[] = []
  let end = 0
  for (const { offset, length } of taken) {
    if (offset > end) gaps.push({ offset: end, length: offset - end })
    end = Math.max(end, offset + length)
  }
  if (end < sizeBytes) gaps.push({ offset: end, length: sizeBytes - end })
  return gaps
}

/** What stands for a part that was not found explains nothing, and no more does a hole. */
function explained({ offset, extents, holes }: RawFile): readonly Extent[] {
  const found = extents.filter((extent, i) => i === 0 || extent.offset !== offset)
  return found.flatMap((extent) => {
    const end = extent.offset + extent.length
    const within = holes.filter((hole) => hole.offset >= extent.offset && hole.offset < end)
    const starts = [extent.offset, ...within.map((hole) => hole.offset + hole.length)]
    return starts.map((start, i) => {
      return { offset: start, length: (within[i]?.offset ?? end) - start }
    })
  })
}

/** How large the blocks are in which a filesystem laid out files that begin there, at least. */
export function blockBytesOf(beginnings: readonly number[]): number {
  const aligned = beginnings.filter((offset) => offset % SECTOR_BYTES === 0)
  const isBlock = (bytes: number): boolean => new Set(aligned.map((at) => at % bytes)).size <= 1
  return BLOCK_SIZES.find(isBlock) ?? SECTOR_BYTES
}

/** A run of a file: where it begins on the medium, and in the file. */
interface Run {
  readonly offset: number
  readonly fileOffset: number
}

/** The chunks of one file, wherever they are tried. */
class Chunks {
  readonly medium: Medium
  readonly #headBytes: number
  readonly #payloadKey: Buffer
  readonly #sealed = Buffer.allocUnsafeSlow(SEALED_BYTES)

  constructor(medium: Medium, head: { readonly headBytes: number; readonly payloadKey: Buffer }) {
    this.medium = medium
    this.#headBytes = head.headBytes
    this.#payloadKey = head.payloadKey
  }

  fileOffset(chunk: number): number {
    return this.#headBytes + chunk * SEALED_BYTES
  }

  /** Whether a chunk that is not the last one lies there. */
  isAt(chunk: number, offset: number): boolean {
    return this.isChunk(chunk, this.medium.read(this.#sealed, offset))
  }

  isChunk(index: number, ciphertext: Buffer): boolean {
    return ciphertext.length === SEALED_BYTES && this.#opens({ index, last: false, ciphertext })
  }

  /** How long the last chunk is, if it begins there. */
  endAt(chunk: number, offset: number): number | undefined {
    return this.endIn(chunk, this.medium.read(this.#sealed, offset))
  }

  /** Payloads have few lengths, and all end with a seek table: where one may, the tag is tried. */
  endIn(index: number, bytes: Buffer): number | undefined {
    if (bytes.length <= TAG_BYTES) return undefined
    for (const plainBytes of lastLengths(index) ?? this.#tableEnds(index, bytes)) {
      const length = plainBytes + TAG_BYTES
      if (length > bytes.length) continue
      if (this.#opens({ index, last: true, ciphertext: bytes.subarray(0, length) })) return length
    }
    return undefined
  }

  /** The same, but for small files, where it would cost as much again as all the rest. */
  mayEndIn(index: number, bytes: Buffer): boolean {
    return lastLengths(index) !== undefined && this.endIn(index, bytes) !== undefined
  }

  #tableEnds(index: number, bytes: Buffer): readonly number[] {
    const of = { payloadKey: this.#payloadKey, index, last: true }
    const plain = peekChunk({ ...of, ciphertext: bytes })
    // Its end may have begun in the chunk before.
    return [1, 2, 3, ...seekTableEnds(plain).filter((end) => end <= CHUNK_BYTES)]
  }

  #opens(chunk: { index: number; last: boolean; ciphertext: Buffer }): boolean {
    try {
      openChunk({ payloadKey: this.#payloadKey, ...chunk })
      return true
    } catch (error) {
      if (!(error instanceof BackupError)) throw error
      return false
    }
  }
}

/** More than so many are not tried one by one. */
const FEW_LENGTHS = 4

/** How long chunk `index` may be where it is the last; undefined for all too many lengths. */
function lastLengths(index: number): readonly number[] | undefined {
  const start = index * CHUNK_BYTES
  const lengths: number[] = []
  for (let end = padmeLength(start + 1); end <= start + CHUNK_BYTES; end = padmeLength(end + 1)) {
    if (lengths.length === FEW_LENGTHS) return undefined
    lengths.push(end - start)
  }
  return lengths
}

function openChunks(
  medium: Medium,
  { offset, identities }: { readonly offset: number; readonly identities: readonly string[] },
): Chunks {
  const start = medium.read(Buffer.allocUnsafe(MAX_HEAD_BYTES), offset)
  return new Chunks(medium, openAgeHead(start, identities))
}

/** Follows a run to its end. */
function extend(
  chunks: Chunks,
  {
    offset,
    closed,
    holes: known,
    run,
    chunk,
  }: {
    readonly offset: number
    readonly closed: readonly Extent[]
    readonly holes: readonly Extent[]
    readonly run: Run
    readonly chunk: number
  },
): RawFile {
  const placeOf = (index: number): number => run.offset + chunks.fileOffset(index) - run.fileOffset
  const isThere = (index: number): boolean => chunks.isAt(index, placeOf(index))
  const until = (end: number, next: number | undefined): RawFile => {
    const extents = [...closed, { offset: run.offset, length: end - run.offset }]
    return { offset, extents, holes, next }
  }
  const holes = [...known]
  let next = chunk
  for (;;) {
    next = endOfRow(isThere, next)
    const length = chunks.endAt(next, placeOf(next))
    if (length !== undefined) return until(placeOf(next) + length, undefined)
    const later = behindDamage(next, (index) => {
      return isThere(index) || chunks.endAt(index, placeOf(index)) !== undefined
    })
    if (later === undefined) return until(placeOf(next), next)
    holes.push({ offset: placeOf(next), length: placeOf(later) - placeOf(next) })
    next = later
  }
}

/**
 * The first chunk from `start` on that is not there, by trying few: what lies between two that are
 * there is taken to be there too.
 */
function endOfRow(isThere: (chunk: number) => boolean, start: number): number {
  if (!isThere(start)) return start
  let good = start
  let step = 1
  while (isThere(good + step)) {
    good += step
    step *= 2
  }
  let bad = good + step
  while (bad - good > 1) {
    const middle = good + Math.floor((bad - good) / 2)
    if (isThere(middle)) good = middle
    else bad = middle
  }
  return bad
}

/**
 * The first chunk behind damage, by trying few: the further away, the fewer. So what is left behind
 * it counts where it is not very much less than the damage.
 */
function behindDamage(bad: number, isThere: (chunk: number) => boolean): number | undefined {
  let before = bad
  while (before < bad + MAX_DAMAGED_CHUNKS) {
    const index = before + Math.max(1, Math.floor((before - bad) / DAMAGED_CHUNKS))
    if (isThere(index)) return firstBetween(before, index, isThere)
    before = index
  }
  return undefined
}

/** The first of a row that is there at `good`, and is not at `bad`. */
function firstBetween(bad: number, good: number, isThere: (chunk: number) => boolean): number {
  let [before, first] = [bad, good]
  while (first - before > 1) {
    const middle = before + Math.floor((first - before) / 2)
    if (isThere(middle)) first = middle
    else before = middle
  }
  return first
}

/** Where a chunk begins, or the last one, at the nearest place where a block of its file may. */
function findChunk(
  chunks: Chunks,
  {
    file,
    chunk,
    from,
    gaps,
    searchBytes,
    blockBytes,
  }: RawSearch & { readonly chunk: number; readonly from: number },
): number | undefined {
  const rest = (file.offset + chunks.fileOffset(chunk)) % blockBytes
  const window = Buffer.allocUnsafeSlow(WINDOW_BYTES + SEALED_BYTES)
  for (const { offset, length } of nearest(gaps, { from, searchBytes })) {
    for (let start = offset; start < offset + length; start += WINDOW_BYTES) {
      const bytes = chunks.medium.read(window, start)
      const stop = Math.min(WINDOW_BYTES, offset + length - start, bytes.length)
      const first = (blockBytes + rest - (start % blockBytes)) % blockBytes
      for (let at = first; at < stop; at += blockBytes) {
        const sealed = bytes.subarray(at, at + SEALED_BYTES)
        if (isBlank(sealed)) continue
        if (chunks.isChunk(chunk, sealed) || chunks.mayEndIn(chunk, sealed)) {
          return start + at
        }
      }
    }
  }
  return undefined
}

/** Gaps behind the place first, then those before it, nearest first: of these the last part. */
function* nearest(
  gaps: readonly Extent[],
  { from, searchBytes }: { readonly from: number; readonly searchBytes: number },
): Generator<Extent> {
  let left = searchBytes
  const isBehind = (gap: Extent): boolean => gap.offset + gap.length > from
  const ordered = [...gaps.filter(isBehind), ...gaps.filter((gap) => !isBehind(gap)).reverse()]
  for (const { offset, length } of ordered) {
    if (left <= 0) return
    const part = Math.min(length, left)
    left -= part
    yield { offset: offset + length > from ? offset : offset + length - part, length: part }
  }
}

/** Nothing encrypted repeats itself. */
function isBlank(bytes: Buffer): boolean {
  if (bytes.length < 32) return false
  const first = bytes.readBigUInt64LE(0)
  return [8, 16, 24].every((at) => bytes.readBigUInt64LE(at) === first)
}

/** How much of a chunk lies before a break, where the rest of it lies before `after`. */
function cutBetween(
  chunks: Chunks,
  {
    chunk,
    before,
    after,
    blockBytes,
  }: {
    readonly chunk: number
    readonly before: number
    readonly after: number
    readonly blockBytes: number
  },
): number | undefined {
  const old = chunks.medium.read(Buffer.allocUnsafe(SEALED_BYTES), before)
  const place = Math.max(0, after - SEALED_BYTES)
  const fresh = chunks.medium.read(Buffer.allocUnsafe(after - place), place)
  const first = chunks.fileOffset(chunk) % blockBytes
  for (let cut = (blockBytes - first) % blockBytes; cut < SEALED_BYTES; cut += blockBytes) {
    const rest = SEALED_BYTES - cut
    if (cut > old.length || rest > fresh.length) continue
    const sealed = Buffer.concat([old.subarray(0, cut), fresh.subarray(fresh.length - rest)])
    if (chunks.isChunk(chunk, sealed)) return cut
  }
  return undefined
}
