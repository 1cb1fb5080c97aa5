// The map that precedes a sparse file's data in GNU.sparse 1.0 (docs/format.md §3.3).
//
// encodeSparseMap and parseSparseMap are inverses: how many segments, then offset and length of
// each, a decimal line a number, padded to whole blocks. A segment without bytes at the end tells
// how long a file is that ends in a hole. Parsing throws TAR_DAMAGED for a map that is malformed or
// out of order.

import { Buffer } from 'node:buffer'
import assert from 'node:assert/strict'
import { BackupError } from '../errors.ts'
import { parsePaxNumber } from './pax.ts'
import { BLOCK_BYTES } from './ustar-block.ts'

/** How many segments a file may have: 34 bytes each, and the map is read into memory. */
export const MAX_SPARSE_SEGMENTS = 1_000_000

/** The longest line: 16 digits and a newline. */
const MAX_LINE_BYTES = 17

export type Segments = readonly (readonly [offset: number, length: number])[]

/** Segments have to ascend, to have bytes and to be whole blocks but for the last one. */
export function encodeSparseMap(
  segments: Segments,
  { sizeBytes }: { readonly sizeBytes: number },
): Buffer {
  assert(segments.length <= MAX_SPARSE_SEGMENTS, 'a sparse file has too many segments')
  const lines: number[] = []
  let end = 0
  let isWhole = true
  for (const [offset, length] of segments) {
    // GNU tar looks for a segment's data at the next block, bsdtar where the one before ends.
    assert(isWhole && offset >= end && length > 0, 'segments have to be whole blocks, ascending')
    lines.push(offset, length)
    end = offset + length
    isWhole = length % BLOCK_BYTES === 0
  }
  assert(end <= sizeBytes, 'a segment lies behind the end of its file')
  if (end < sizeBytes || segments.length === 0) lines.push(sizeBytes, 0)
  const text = `${lines.length / 2}\n${lines.join('\n')}\n`
  const map = Buffer.alloc(Math.ceil(text.length / BLOCK_BYTES) * BLOCK_BYTES)
  map.write(text, 'latin1')
  return map
}

export interface ParsedSparseMap {
  readonly segments: Segments
  /** With its padding. */
  readonly mapBytes: number
}

/**
 * The map at the start of `bytes`, which may end early: then `short`. `limitBytes` is what the
 * member has after its header, `sizeBytes` how long the file is. @throws BackupError TAR_DAMAGED
 */
export function parseSparseMap(
  bytes: Buffer,
  { limitBytes, sizeBytes }: { readonly limitBytes: number; readonly sizeBytes: number },
): ParsedSparseMap | 'short' {
  const numbers: number[] = []
  let expected = 1
  let position = 0
  while (numbers.length < expected) {
    const line = bytes.subarray(position, Math.min(position + MAX_LINE_BYTES, limitBytes))
    const newline = line.indexOf(0x0a)
    const isCut = position + MAX_LINE_BYTES > bytes.length && bytes.length < limitBytes
    if (newline === -1 && isCut) return 'short'
    if (newline === -1) throw damaged('a line has no end')
    numbers.push(parsePaxNumber(line.subarray(0, newline), Number.MAX_SAFE_INTEGER))
    position += newline + 1
    if (numbers.length === 1) expected = 1 + 2 * countOf(numbers)
  }
  const mapBytes = Math.ceil(position / BLOCK_BYTES) * BLOCK_BYTES
  return bytes.length < mapBytes ? 'short' : { segments: segmentsOf(numbers, sizeBytes), mapBytes }
}

function countOf([count = 0]: readonly number[]): number {
  if (count > MAX_SPARSE_SEGMENTS + 1) throw damaged('it has too many segments')
  return count
}

/** The first number is the count; segments without bytes hold nothing. */
function segmentsOf(numbers: readonly number[], sizeBytes: number): Segments {
  const segments: [number, number][] = []
  let end = 0
  for (let i = 1; i < numbers.length; i += 2) {
    const offset = numbers[i] ?? 0
    const length = numbers[i + 1] ?? 0
    if (offset < end || length > sizeBytes - offset) throw damaged('its segments are out of order')
    end = offset + length
    if (length > 0) segments.push([offset, length])
  }
  return segments
}

function damaged(why: string): BackupError {
  return new BackupError('TAR_DAMAGED', `a sparse map is malformed: ${why}`)
}
