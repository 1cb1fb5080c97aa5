// The tree of one export, as something to walk about in: its catalog is searched, never read whole.
//
// A directory's children come from the index and the shards by binary search that skips what lies
// below each (docs/format.md §6, §7). Hard links are shown as the file they are links to. Opened by
// whoever shows the view (commands/mount.ts); bytes come through browse-pieces.ts. Throws
// CATALOG_DAMAGED and what reading a catalog throws.

import { Buffer } from 'node:buffer'
import { BackupError } from '../errors.ts'
import { aclFromText } from '../format/acl.ts'
import { type Entry, dataBytes } from '../model/entry.ts'
import { type RawPath, comparePaths, displayPath, isWithin } from '../model/raw-path.ts'
import { checkSafePath } from '../model/safe-path.ts'
import type { Shard } from '../model/shard.ts'
import { parseStamp } from '../model/stamp.ts'
import type { PieceReader, PlacedPiece } from './browse-pieces.ts'
import type { ExportReader } from './export-reader.ts'
import { Turns } from './turns.ts'
import {
  type ListPart,
  type ViewFile,
  type ViewNode,
  type ViewTree,
  impliedDirectory,
} from './view-node.ts'

/** Shards that are kept parsed: about three hundred. */
const KEPT_SHARD_BYTES = 32 * 1024 * 1024
/** Over a network, when one shard after another is wanted. */
const SHARDS_AHEAD = 16
/** Over a network a file that is read on is fetched so far ahead. */
const AHEAD_BYTES = 8 * 1024 * 1024

/** Where an entry is: in a parsed shard. */
interface Found {
  readonly shard: Shard
  readonly at: number
  readonly entry: Entry
}

export class ExportTree implements ViewTree {
  readonly #reader: ExportReader
  readonly #pieces: PieceReader
  /** The reader of a catalog does one thing at a time. */
  readonly #turns = new Turns()
  /** By their place in the index, the one used last at the end. */
  readonly #shards = new Map<number, { readonly shard: Shard; readonly bytes: number }>()
  #keptBytes = 0
  #lastRead = -1

  constructor({ reader, pieces }: { reader: ExportReader; pieces: PieceReader }) {
    this.#reader = reader
    this.#pieces = pieces
  }

  async lookup(path: RawPath): Promise<ViewNode | undefined> {
    return await this.#turns.take(async () => {
      if (path === '') return this.#implied('')
      const found = await this.#seek((other) => comparePaths(other, path) >= 0)
      if (found === undefined || !isWithin({ path: found.entry.path, directory: path })) {
        return undefined
      }
      return await this.#node(found.entry, path)
    })
  }

  async list(directory: RawPath, { after, limit }: ListPart): Promise<readonly ViewNode[]> {
    return await this.#turns.take(async () => {
      const nodes: ViewNode[] = []
      const prefix = directory === '' ? '' : `${directory}/`
      let last = after === undefined ? undefined : `${prefix}${after}`
      let found = await this.#seek(last === undefined ? behind(directory) : afterAll(last))
      while (found !== undefined && nodes.length < limit) {
        const { path } = found.entry
        if (!isWithin({ path, directory })) break
        const [name = ''] = path.slice(prefix.length).split('/', 1)
        const child = `${prefix}${name}`
        // Whatever a catalog says, this comes to an end.
        if (last !== undefined && comparePaths(child, last) <= 0) throw damaged('is not in order')
        if (isSafe(child)) nodes.push(await this.#node(found.entry, child))
        last = child
        found = await this.#after(found, child)
      }
      return nodes
    })
  }

  async open(path: RawPath): Promise<ViewFile | undefined> {
    return await this.#turns.take(async () => {
      const found = await this.#find(path)
      if (found === undefined) return undefined
      const { entry, shard } = found.entry.type === 'link' ? await this.#linked(found) : found
      if (entry.type !== 'file') return undefined
      const pieces = (entry.pieces ?? []).map(([id, number, offset, length]): PlacedPiece => {
        const { name, frames } = shard.bundles[number]!
        return { id, address: this.#reader.bundleAddress(name), offset, length, frames }
      })
      const isNetwork = this.#reader.target.access === 'network'
      return new ExportedFile({ entry, pieces, reader: this.#pieces, isNetwork })
    })
  }

  close(): void {
    this.#shards.clear()
    this.#keptBytes = 0
    this.#reader.close()
  }

  /** What is at `path`, where `entry` is the first that is there or below. */
  async #node(entry: Entry, path: RawPath): Promise<ViewNode> {
    if (entry.path !== path) return this.#implied(path)
    const xattrs = () => attributesOf(entry)
    if (entry.type !== 'link') return { path, file: path, metadata: entry, xattrs }
    const { target: _target, ...own } = entry
    const file = entry.target ?? path
    try {
      const { size, sparse } = (await this.#linked({ entry })).entry
      const metadata = { ...own, type: 'file' as const, size: size ?? 0, ...(sparse && { sparse }) }
      return { path, file, metadata, xattrs }
    } catch (error) {
      if (!(error instanceof BackupError) || error.code !== 'CATALOG_DAMAGED') throw error
      // It is seen, and opening it says what is wrong.
      return { path, file: path, metadata: { ...own, type: 'file', size: 0 }, xattrs }
    }
  }

  #implied(path: RawPath): ViewNode {
    const mtimeNs = BigInt(parseStamp(this.#reader.manifest.stamp) ?? 0) * 1_000_000n
    return impliedDirectory({ path, mtimeNs })
  }

  async #find(path: RawPath): Promise<Found | undefined> {
    const found = await this.#seek((other) => comparePaths(other, path) >= 0)
    return found?.entry.path === path ? found : undefined
  }

  /** The file that a hard link is a link to. */
  async #linked({ entry }: Pick<Found, 'entry'>): Promise<Found> {
    const found = entry.target === undefined ? undefined : await this.#find(entry.target)
    if (found?.entry.type === 'file') return found
    throw damaged(`has a link to a file that is not there: ${displayPath(entry.path)}`)
  }

  /** The first entry behind a child and all below it. */
  async #after({ shard, at }: Found, child: RawPath): Promise<Found | undefined> {
    const entry = shard.entries[at + 1]
    if (entry !== undefined && !isWithin({ path: entry.path, directory: child })) {
      return { shard, at: at + 1, entry }
    }
    return await this.#seek(afterAll(child))
  }

  /** The first entry whose path a condition holds for; it holds for all that follow, too. */
  async #seek(holds: (path: RawPath) => boolean): Promise<Found | undefined> {
    const index = await this.#reader.index()
    const next = firstWhere(index, ({ first }) => holds(first))
    for (const number of [next - 1, next]) {
      if (number < 0 || number >= index.length) continue
      const shard = await this.#shard(number)
      const at = firstWhere(shard.entries, ({ path }) => holds(path))
      const entry = shard.entries[at]
      if (entry !== undefined) return { shard, at, entry }
    }
    return undefined
  }

  async #shard(number: number): Promise<Shard> {
    const kept = this.#shards.get(number)
    if (kept !== undefined) {
      this.#shards.delete(number)
      this.#shards.set(number, kept)
      return kept.shard
    }
    const index = await this.#reader.index()
    const readsOn = number === this.#lastRead + 1 && this.#reader.target.access === 'network'
    const places = index.slice(number, number + (readsOn ? SHARDS_AHEAD : 1))
    let wanted: Shard | undefined
    let at = number
    for await (const { place, shard } of this.#reader.shards(places)) {
      wanted ??= shard
      this.#keep(at++, { shard, bytes: place.tar[1] })
    }
    this.#lastRead = at - 1
    return wanted!
  }

  #keep(number: number, kept: { readonly shard: Shard; readonly bytes: number }): void {
    if (this.#shards.has(number)) return
    this.#shards.set(number, kept)
    this.#keptBytes += kept.bytes
    for (const [oldest, { bytes }] of this.#shards) {
      if (this.#keptBytes <= KEPT_SHARD_BYTES || this.#shards.size === 1) return
      this.#shards.delete(oldest)
      this.#keptBytes -= bytes
    }
  }
}

/** A file of an export: holes are zeros, everything else comes from proven pieces. */
class ExportedFile implements ViewFile {
  readonly sizeBytes: number
  readonly #segments: readonly (readonly [offset: number, length: number])[]
  readonly #pieces: readonly PlacedPiece[]
  /** Where each piece ends in the data. */
  readonly #ends: Float64Array
  readonly #reader: PieceReader
  readonly #isNetwork: boolean

  constructor(of: {
    readonly entry: Entry
    readonly pieces: readonly PlacedPiece[]
    readonly reader: PieceReader
    readonly isNetwork: boolean
  }) {
    const { entry, pieces } = of
    this.sizeBytes = entry.size ?? 0
    this.#segments = entry.sparse ?? [[0, this.sizeBytes]]
    this.#pieces = pieces
    this.#reader = of.reader
    this.#isNetwork = of.isNetwork
    this.#ends = new Float64Array(pieces.length)
    let end = 0
    for (const [i, { length }] of pieces.entries()) this.#ends[i] = end += length
    if (end !== dataBytes(entry)) throw damaged('has pieces that do not add up to their file')
    let position = 0
    for (const [offset, length] of this.#segments) {
      if (offset < position) throw damaged('has data segments that are not in order')
      position = offset + length
    }
    if (position > this.sizeBytes) throw damaged('has data segments outside their file')
  }

  async read(offset: number, length: number): Promise<Buffer> {
    const end = Math.min(offset + length, this.sizeBytes)
    const out = Buffer.alloc(Math.max(0, end - offset))
    let dataBefore = 0
    for (const [start, bytes] of this.#segments) {
      if (start >= end) break
      const from = Math.max(offset, start)
      const to = Math.min(end, start + bytes)
      if (from < to) {
        await this.#readData(out.subarray(from - offset, to - offset), dataBefore + from - start)
      }
      dataBefore += bytes
    }
    return out
  }

  close(): void {}

  /** Fills `out` with the data from `position` on. */
  async #readData(out: Buffer, position: number): Promise<void> {
    let done = 0
    for (let i = firstWhere(this.#ends, (end) => end > position); done < out.length; i++) {
      const piece = this.#pieces[i]!
      const within = position + done - (this.#ends[i]! - piece.length)
      const bytes = await this.#reader.read(piece, this.#isNetwork ? this.#aheadOf(i) : [])
      done += bytes.copy(out, done, within)
    }
  }

  #aheadOf(index: number): readonly PlacedPiece[] {
    const until = this.#ends[index]! + AHEAD_BYTES
    return this.#pieces.slice(
      index + 1,
      firstWhere(this.#ends, (end) => end > until),
    )
  }
}

/** Extended attributes as the kernel gives them. */
function attributesOf({ xattrs, acl, defaultAcl }: Entry): ReadonlyMap<string, Buffer> {
  const out = new Map(xattrs)
  if (acl !== undefined) out.set('system.posix_acl_access', aclFromText(acl))
  if (defaultAcl !== undefined) out.set('system.posix_acl_default', aclFromText(defaultAcl))
  return out
}

/** Everything that comes after a path and all below it. */
function afterAll(path: RawPath): (other: RawPath) => boolean {
  return (other) => comparePaths(other, path) > 0 && !isWithin({ path: other, directory: path })
}

/** Everything that comes after a directory itself. */
function behind(directory: RawPath): (other: RawPath) => boolean {
  return (other) => comparePaths(other, directory) > 0
}

/** The first index from which on a condition holds; the length where it never does. */
function firstWhere<Item>(
  items: { readonly length: number; readonly [index: number]: Item },
  holds: (item: Item) => boolean,
): number {
  let low = 0
  let high = items.length
  while (low < high) {
    const middle = (low + high) >> 1
    if (holds(items[middle]!)) high = middle
    else low = middle + 1
  }
  return low
}

function isSafe(path: RawPath): boolean {
  try {
    checkSafePath(path)
    return true
  } catch {
    return false
  }
}

function damaged(what: string): BackupError {
  return new BackupError('CATALOG_DAMAGED', `the catalog ${what}`, {
    hint: 'another export, or another target, may still have what you need',
  })
}
