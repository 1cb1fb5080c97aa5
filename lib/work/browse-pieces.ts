// Reads pieces of exported files here and there: only the frames that hold them, and none of their
// bytes before the whole piece has its digest (promise 9).
//
// Used by browse-export.ts in the main thread, for one repository. On files it reads at once; over
// a network it fetches first, a little ahead where a file is read on (bundle-source.ts). Keeps what
// it read last. Throws BUNDLE_MISSING, BUNDLE_DAMAGED, CATALOG_DAMAGED, AGE_*, ZSTD_DAMAGED and
// what a target throws.

import { Buffer } from 'node:buffer'
import { BackupError } from '../errors.ts'
import { SEGMENT_BYTES, digestOf } from '../format/chunker.ts'
import type { FrameRange } from '../model/entry.ts'
import { framesOf } from '../model/shard.ts'
import type { Target } from '../target/target.ts'
import { type BundleAddress, networkPath } from './bundle-address.ts'
import { type BundleReader, openBundle } from './bundle-reader.ts'
import { FetchedSource } from './bundle-source.ts'
import { unlessAborted } from './interruption.ts'
import { OpenBundles } from './open-bundles.ts'
import { Turns } from './turns.ts'

/** What is kept of pieces: a file that is read a little at a time is not decrypted each time. */
const CACHE_BYTES = 32 * 1024 * 1024
/** No piece is longer than what the chunker sees at once; what claims to be is no piece of ours. */
const MAX_PIECE_BYTES = SEGMENT_BYTES
/** Each keeps what was fetched last and two frames. */
const FETCHED_BUNDLES = 4

/** A run of a file's bytes, and where it is. */
export interface PlacedPiece {
  /** The digest of the bytes. */
  readonly id: string
  readonly address: BundleAddress
  /** In the tar of the bundle. */
  readonly offset: number
  readonly length: number
  /** Frames of the bundle in order, those that hold it among them. */
  readonly frames: readonly FrameRange[]
}

interface FetchedBundle {
  readonly source: FetchedSource
  readonly reader: BundleReader
}

export class PieceReader {
  readonly #target: Target
  readonly #identities: readonly string[]
  readonly #signal: AbortSignal | undefined
  readonly #beforeFetch: ((bytes: number) => void) | undefined
  readonly #bundles: OpenBundles
  readonly #fetched = new Map<BundleAddress, FetchedBundle>()
  readonly #turns = new Turns()
  readonly #cache = new Map<string, Buffer>()
  #cachedBytes = 0

  constructor(of: {
    readonly target: Target
    readonly identities: readonly string[]
    readonly signal?: AbortSignal | undefined
    /** Told how much is going to be fetched over the network; what it throws prevents it. */
    readonly beforeFetch?: ((bytes: number) => void) | undefined
  }) {
    this.#target = of.target
    this.#identities = of.identities
    this.#signal = of.signal
    this.#beforeFetch = of.beforeFetch
    this.#bundles = new OpenBundles(of.identities)
  }

  /**
   * The bytes of a piece, which have its digest. Nobody may change them.
   * @param ahead what will probably be asked for next
   */
  async read(piece: PlacedPiece, ahead: readonly PlacedPiece[] = []): Promise<Buffer> {
    const { id, length, address } = piece
    const cached = this.#cached(id, length)
    if (cached !== undefined) return cached
    if (length > MAX_PIECE_BYTES) throw notOurs()
    if (networkPath(address) === undefined) {
      return this.#keep(piece, this.#bundles.reader(address))
    }
    return await this.#turns.take(async () => {
      // Somebody before may have asked for the same.
      const there = this.#cached(id, length)
      if (there !== undefined) return there
      return this.#keep(piece, await unlessAborted(this.#signal, this.#fetch(piece, ahead)))
    })
  }

  close(): void {
    this.#bundles.close()
    this.#fetched.clear()
    this.#cache.clear()
  }

  #cached(id: string, length: number): Buffer | undefined {
    const bytes = this.#cache.get(id)
    if (bytes?.length !== length) return undefined
    this.#cache.delete(id)
    this.#cache.set(id, bytes)
    return bytes
  }

  #keep({ id, frames, offset, length }: PlacedPiece, reader: BundleReader): Buffer {
    // A copy: what the reader gives is only good until its next call.
    const bytes = Buffer.from(reader.readTar(frames, { offset, length }))
    if (digestOf(bytes) !== id) {
      throw new BackupError('BUNDLE_DAMAGED', 'its content is not what the signed catalog says')
    }
    this.#cachedBytes += length - (this.#cache.get(id)?.length ?? 0)
    this.#cache.set(id, bytes)
    for (const [oldest, { length: oldestBytes }] of this.#cache) {
      if (this.#cachedBytes <= CACHE_BYTES || this.#cache.size === 1) break
      this.#cache.delete(oldest)
      this.#cachedBytes -= oldestBytes
    }
    return bytes
  }

  /** After this the piece can be read. */
  async #fetch(piece: PlacedPiece, ahead: readonly PlacedPiece[]): Promise<BundleReader> {
    const { source, reader } = await this.#fetchedBundle(piece.address)
    const rangesOf = (one: PlacedPiece) => framesOf(one.frames, one).map((f) => reader.bytesOf(f))
    const needed = rangesOf(piece)
    if (needed.every((range) => source.has(range))) return reader
    const further = ahead.filter(({ address }) => address === piece.address)
    const wanted = [...needed, ...further.flatMap(rangesOf)]
    // Neighbours share frames.
    const byOffset = new Map(wanted.map(({ offset, length }) => [offset, length]))
    this.#beforeFetch?.([...byOffset.values()].reduce((sum, length) => sum + length, 0))
    try {
      await source.fetch(wanted)
    } catch (error) {
      if (further.length === 0 || !(error instanceof BackupError)) throw error
      // What comes later may be damaged, and is none of this piece's business.
      await source.fetch(needed)
    }
    return reader
  }

  async #fetchedBundle(address: BundleAddress): Promise<FetchedBundle> {
    const there = this.#fetched.get(address)
    if (there !== undefined) return there
    const path = networkPath(address)!
    const source = await FetchedSource.open(this.#target, { path, sizeBytes: undefined })
    const reader = openBundle({ path: address, identities: this.#identities, source })
    const [oldest] = this.#fetched.keys()
    if (this.#fetched.size >= FETCHED_BUNDLES) this.#fetched.delete(oldest!)
    this.#fetched.set(address, { source, reader })
    return { source, reader }
  }
}

function notOurs(): BackupError {
  return new BackupError('CATALOG_DAMAGED', 'it has a piece that is longer than any of ours')
}
