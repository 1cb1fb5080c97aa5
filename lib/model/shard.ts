// Shards: runs of catalog entries that exports share while they are unchanged (docs/format.md §6),
// and their index (§7).
//
// encodeShard and parseShard are inverses, encodeIndex and parseIndex too. A shard depends on
// nothing but its entries, so equal runs give equal bytes. The parsers distrust every property and
// throw CATALOG_DAMAGED.

import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import { BackupError } from '../errors.ts'
import {
  type Entry,
  type FrameRange,
  type Range,
  count,
  encodeEntry,
  list,
  parseEntry,
  parseObject,
  putPath,
  record,
  takePath,
  text,
} from './entry.ts'
import { type RawPath, comparePaths, parentOf, rawPathToBytes } from './raw-path.ts'

/** A shard may be cut at a new directory from here on … */
const MIN_ENTRIES = 128
/** … at any new directory from here on … */
const LONG_ENTRIES = 400
/** … and is cut anywhere here. */
export const MAX_SHARD_ENTRIES = 512
/**
 * A new directory begins a shard when the first byte of its path's digest is below this: 1 in 32.
 */
const CUT_BELOW = 8

/** What a shard needs to know of the bundles that its entries name by number. */
export interface BundlePlace {
  /** `<set>/<stamp>/data-0001` */
  readonly name: string
  readonly frames: readonly FrameRange[]
}

export interface Shard {
  readonly bundles: readonly BundlePlace[]
  /** Their ranges name bundles by their place in `bundles`. */
  readonly entries: readonly Entry[]
}

/** Cuts entries in catalog order into runs: `[start, end)` indexes. */
export function cutShards(entries: readonly Entry[]): (readonly [start: number, end: number])[] {
  const runs: (readonly [number, number])[] = []
  let start = 0
  for (let i = 1; i < entries.length; i++) {
    if (!isCut(entries, { start, at: i })) continue
    runs.push([start, i])
    start = i
  }
  if (entries.length > 0) runs.push([start, entries.length])
  return runs
}

function isCut(entries: readonly Entry[], { start, at }: { start: number; at: number }): boolean {
  const length = at - start
  if (length < MIN_ENTRIES) return false
  if (length >= MAX_SHARD_ENTRIES) return true
  const entry = entries[at]!
  const newDirectory =
    entry.type === 'directory' || parentOf(entry.path) !== parentOf(entries[at - 1]!.path)
  if (!newDirectory) return false
  return length >= LONG_ENTRIES || firstDigestByte(entry.path) < CUT_BELOW
}

function firstDigestByte(path: RawPath): number {
  return createHash('blake2b512').update(rawPathToBytes(path)).digest()[0]!
}

/** The bytes of a shard. Ranges of `entries` name bundles by number, which `placeOf` explains. */
export function encodeShard(
  entries: readonly Entry[],
  placeOf: (bundle: number) => BundlePlace,
): Buffer {
  const numbers = new Map<number, { readonly local: number; readonly frames: Set<FrameRange> }>()
  const localRange = ([bundle, offset, length]: Range): Range => {
    let used = numbers.get(bundle)
    if (used === undefined) numbers.set(bundle, (used = { local: numbers.size, frames: new Set() }))
    for (const frame of framesOf(placeOf(bundle).frames, { offset, length })) used.frames.add(frame)
    return [used.local, offset, length]
  }
  const lines = entries.map((entry) => encodeEntry(withRanges(entry, localRange)))
  const bundles = [...numbers].map(([bundle, { frames }]) => ({
    name: placeOf(bundle).name,
    frames: [...frames].sort((a, b) => a[0] - b[0]),
  }))
  return Buffer.from(`${[JSON.stringify({ bundles }), ...lines].join('\n')}\n`)
}

/** The entry as exports have it: with its ranges mapped, and nothing that only staging knows. */
function withRanges(entry: Entry, map: (range: Range) => Range): Entry {
  const { inode: _inode, bornNs: _bornNs, header, pieces, ...rest } = entry
  return {
    ...rest,
    ...(header === undefined ? {} : { header: map(header) }),
    ...(pieces === undefined || pieces.length === 0
      ? {}
      : {
          pieces: pieces.map(([id, bundle, offset, length]) => {
            const [local] = map([bundle, offset, length])
            return [id, local, offset, length] as const
          }),
        }),
  }
}

/** The frames, of those of one bundle in order, that hold a run of its tar. */
export function framesOf(
  frames: readonly FrameRange[],
  { offset, length }: { offset: number; length: number },
): readonly FrameRange[] {
  let low = 0
  let high = frames.length
  while (low < high) {
    const middle = (low + high) >> 1
    const [tarOffset, tarLength] = frames[middle]!
    if (tarOffset + tarLength <= offset) low = middle + 1
    else high = middle
  }
  let end = low
  while (end < frames.length && frames[end]![0] < offset + length) end++
  return frames.slice(low, end)
}

/** @throws BackupError CATALOG_DAMAGED */
export function parseShard(bytes: Buffer): Shard {
  const [first, ...lines] = splitLines(bytes)
  if (first === undefined) throw damaged('a shard is empty')
  const bundles = list(parseObject(first)['bundles']).map(parsePlace)
  if (lines.length > MAX_SHARD_ENTRIES) throw damaged('a shard has too many entries')
  const entries = lines.map(parseEntry)
  for (const [i, entry] of entries.entries()) {
    const before = entries[i - 1]
    if (before !== undefined && comparePaths(before.path, entry.path) >= 0) {
      throw damaged('a shard is not in order')
    }
    // What lies below a path comes right after it.
    if (before?.type !== 'directory' && before !== undefined && isBelow(entry, before)) {
      throw damaged('something lies below what is no directory')
    }
    for (const range of rangesOf(entry)) checkRange(range, bundles)
  }
  return { bundles, entries }
}

function isBelow({ path }: Entry, { path: above }: Entry): boolean {
  return path.charCodeAt(above.length) === SLASH && path.startsWith(above)
}

const SLASH = 47

/**
 * Whether a shard is what the index says of it, and ends before the one that follows: so no path is
 * there twice.
 * @throws BackupError CATALOG_DAMAGED
 */
export function checkShardPlace(
  { entries }: Shard,
  of: { readonly place: ShardPlace; readonly next: ShardPlace | undefined },
): void {
  const { place, next } = of
  if (entries.length !== place.entries || entries[0]?.path !== place.first)
    throw damaged('a shard is not what the index says of it')
  if (next !== undefined && comparePaths(entries.at(-1)!.path, next.first) >= 0)
    throw damaged('a shard goes on past the next one')
}

/** Every range of an entry in tar order: its header, then its pieces. */
export function rangesOf(entry: Entry): Range[] {
  const ranges: Range[] = entry.header === undefined ? [] : [entry.header]
  for (const [, bundle, offset, length] of entry.pieces ?? []) ranges.push([bundle, offset, length])
  return ranges
}

function checkRange([bundle, offset, length]: Range, bundles: readonly BundlePlace[]): void {
  const place = bundles[bundle]
  if (place === undefined) throw damaged('an entry names a bundle that its shard does not')
  let end = offset
  for (const [tarOffset, tarLength] of framesOf(place.frames, { offset, length })) {
    if (tarOffset > end) break
    end = tarOffset + tarLength
  }
  if (end < offset + length) throw damaged('an entry lies outside the frames of its shard')
}

function parsePlace(value: unknown): BundlePlace {
  const object = record(value)
  return { name: parseBundleName(object['name']), frames: parseFrames(object['frames']) }
}

/** @throws BackupError CATALOG_DAMAGED when it is no bundle name: no path may hide in it. */
export function parseBundleName(value: unknown): string {
  const name = text(value)
  if (!BUNDLE_NAME.test(name)) throw damaged('a bundle name is malformed')
  return name
}

const BUNDLE_NAME = /^[a-z0-9][a-z0-9_-]{0,63}\/\d{4}-\d\d-\d\dT\d{6}Z\/(data|catalog)-\d{4,9}$/

/** Frames in ascending order that do not overlap. @throws BackupError CATALOG_DAMAGED */
export function parseFrames(value: unknown): FrameRange[] {
  const frames = list(value).map((item) => {
    const [tarOffset, tarLength, offset, length] = list(item)
    return [
      count(tarOffset, 'frame'),
      count(tarLength, 'frame', MAX_FRAME_BYTES),
      count(offset, 'frame'),
      count(length, 'frame', MAX_FRAME_BYTES * 2),
    ] as const
  })
  for (let i = 1; i < frames.length; i++) {
    if (frames[i]![0] < frames[i - 1]![0] + frames[i - 1]![1]) throw damaged('frames overlap')
  }
  return frames
}

/** docs/format.md §3.2; an index of a very large catalog may have the largest frames there are. */
const MAX_FRAME_BYTES = 4 * 1024 * 1024

/** One line of an index: where a shard is. */
export interface ShardPlace {
  readonly digest: string
  readonly bundle: string
  readonly tar: readonly [offset: number, length: number]
  readonly frames: readonly FrameRange[]
  readonly entries: number
  readonly first: RawPath
}

export function encodeIndex(shards: readonly ShardPlace[]): Buffer {
  const lines = shards.map((shard) => {
    const { digest, bundle, tar, frames, entries } = shard
    const out: Record<string, unknown> = { shard: digest, bundle, tar, frames, entries }
    putPath(out, { name: 'first', path: shard.first })
    return `${JSON.stringify(out)}\n`
  })
  return Buffer.from(lines.join(''))
}

/** @throws BackupError CATALOG_DAMAGED */
export function parseIndex(bytes: Buffer): ShardPlace[] {
  let before: RawPath | undefined
  return splitLines(bytes).map((line) => {
    const object = parseObject(line)
    const [offset, length] = list(object['tar'])
    const first = takePath(object, 'first')
    if (first === undefined) throw damaged('a shard has no first path')
    if (before !== undefined && comparePaths(before, first) >= 0)
      throw damaged('the index is not in order')
    before = first
    return {
      digest: parseDigest(object['shard']),
      bundle: parseBundleName(object['bundle']),
      tar: [count(offset, 'tar'), count(length, 'tar', MAX_SHARD_BYTES)],
      frames: parseFrames(object['frames']),
      entries: count(object['entries'], 'entries'),
      first,
    }
  })
}

/** A shard of 512 entries, some of them files of a million pieces. */
const MAX_SHARD_BYTES = 2 ** 30

/** @throws BackupError CATALOG_DAMAGED */
export function parseDigest(value: unknown): string {
  const digest = text(value)
  if (!/^[0-9a-f]{64}$/.test(digest)) throw damaged('a digest is malformed')
  return digest
}

function splitLines(bytes: Buffer): string[] {
  if (bytes.length > 0 && bytes[bytes.length - 1] !== 10) throw damaged('a last line is cut short')
  return bytes.toString('utf8').split('\n').slice(0, -1)
}

function damaged(message: string): BackupError {
  return new BackupError('CATALOG_DAMAGED', message)
}
