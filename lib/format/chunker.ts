// Content-defined chunking of large files and the ids of pieces (docs/format.md §4).
//
// cutPieces depends on nothing but the bytes and the parameter, so the same content gives the same
// pieces on every machine and in every version: changing anything here is a new format.

import { createHash, hash as hashOnce } from 'node:crypto'
import type { Buffer } from 'node:buffer'

/** Content up to this size is one piece. */
export const SINGLE_PIECE_BYTES = 4 * 1024 * 1024
/**
 * Cutting starts anew at every multiple of this, so that segments can be cut apart from each other.
 */
export const SEGMENT_BYTES = 32 * 1024 * 1024
/** How many bytes the gear hash remembers. */
const GEAR_WINDOW_BYTES = 32
const GIB = 2 ** 30

const GEAR = Uint32Array.from({ length: 256 }, (_, i) =>
  createHash('blake2b512').update(`gear-${i}`).digest().readUInt32BE(0),
)

/** How many bytes a piece's id, or any digest, has. */
export const DIGEST_BYTES = 32

/** The id of a piece, and the digest of anything else: docs/format.md §1. */
export function digestBytes(bytes: Uint8Array): Buffer {
  return hashOnce('blake2b512', bytes, 'buffer').subarray(0, DIGEST_BYTES)
}

/** The same in hex, as catalogs write it. */
export function digestOf(bytes: Uint8Array): string {
  return digestBytes(bytes).toString('hex')
}

/** log2 of the average piece for content of this size; undefined where it is a single piece. */
export function chunkParameter(dataBytes: number): number | undefined {
  if (dataBytes <= SINGLE_PIECE_BYTES) return undefined
  if (dataBytes <= GIB) return 16
  return dataBytes <= 16 * GIB ? 18 : 20
}

/** The lengths of the pieces of one segment (of at most SEGMENT_BYTES), in order. */
export function cutPieces(segment: Uint8Array, chunk: number): number[] {
  const lengths: number[] = []
  let start = 0
  while (start < segment.length) {
    const length = nextCut(segment, { start, chunk })
    lengths.push(length)
    start += length
  }
  return lengths
}

function nextCut(bytes: Uint8Array, { start, chunk }: { start: number; chunk: number }): number {
  const average = 2 ** chunk
  const end = Math.min(bytes.length, start + average * 4)
  let position = start + average / 4
  if (position >= end) return end - start
  let hash = 0
  for (let i = position - GEAR_WINDOW_BYTES; i < position; i++) {
    hash = ((hash << 1) + GEAR[bytes[i]!]!) | 0
  }
  const middle = Math.min(end, start + average)
  const strict = -1 << (31 - chunk)
  for (; position < middle; position++) {
    hash = ((hash << 1) + GEAR[bytes[position]!]!) | 0
    if ((hash & strict) === 0) return position + 1 - start
  }
  const loose = -1 << (33 - chunk)
  for (; position < end; position++) {
    hash = ((hash << 1) + GEAR[bytes[position]!]!) | 0
    if ((hash & loose) === 0) return position + 1 - start
  }
  return end - start
}
