// Which pieces a repository has of this machine, and where: one open-addressing hash table in
// shared memory.
//
// The main thread fills it from the state; worker threads claim what is new, so that each piece is
// packed once (docs/format.md §4), and say where they put it. A slot goes empty → taken → claimed →
// located and never back. When it is full, claim() says so by 'untracked': the piece is packed
// again, which costs space and harms nothing.

import { Buffer } from 'node:buffer'
import assert from 'node:assert/strict'

const ID_WORDS = 8
/** Id, state, bundle, length, one spare word to keep the offset aligned, offset (float64). */
const SLOT_WORDS = ID_WORDS + 6
const STATE = ID_WORDS
const BUNDLE = ID_WORDS + 1
const LENGTH = ID_WORDS + 2
const OFFSET = ID_WORDS + 4
const EMPTY = 0
const TAKEN = 1
const CLAIMED = 2
const LOCATED = 3
/** Fuller than this, open addressing gets slow. */
const MAX_LOAD = 0.7
/** Room for surprises: a handful of pieces more than planned must not matter. */
const SPARE_SLOTS = 4096
/** How far to probe before a full table is admitted. */
const MAX_PROBES = 512

/** Where a piece is: bundle number (of the export's bundle table), bytes of uncompressed tar. */
export interface PieceLocation {
  readonly bundle: number
  readonly offset: number
  readonly length: number
}

export type Claim = 'mine' | 'known' | 'untracked'

export class PieceIndex {
  /** To be handed to a worker, which makes its own PieceIndex over the same memory. */
  readonly memory: SharedArrayBuffer
  readonly #words: Int32Array
  readonly #offsets: Float64Array
  readonly #slots: number

  constructor(memory: SharedArrayBuffer) {
    this.memory = memory
    this.#words = new Int32Array(memory)
    this.#offsets = new Float64Array(memory)
    this.#slots = Math.floor(this.#words.length / SLOT_WORDS)
  }

  /** An empty index with room for `pieces`. */
  static forPieces(pieces: number): PieceIndex {
    const slots = Math.ceil(pieces / MAX_LOAD) + SPARE_SLOTS
    return new PieceIndex(new SharedArrayBuffer(slots * SLOT_WORDS * 4))
  }

  /** Claims a piece: 'mine' means that the caller has to pack it and then call locate(). */
  claim(id: Buffer): Claim {
    const words = this.#words
    for (let probe = 0, slot = this.#first(id); probe < MAX_PROBES; probe++) {
      const at = slot * SLOT_WORDS
      if (Atomics.compareExchange(words, at + STATE, EMPTY, TAKEN) === EMPTY) {
        for (let i = 0; i < ID_WORDS; i++) words[at + i] = id.readInt32LE(i * 4)
        Atomics.store(words, at + STATE, CLAIMED)
        return 'mine'
      }
      this.#awaitId(at)
      if (this.#holds(at, id)) return 'known'
      slot = slot + 1 === this.#slots ? 0 : slot + 1
    }
    return 'untracked'
  }

  /**
   * Says where a claimed piece is. Nothing happens for one that is untracked, or located already.
   */
  locate(id: Buffer, { bundle, offset, length }: PieceLocation): void {
    const at = this.#find(id)
    if (at === undefined || Atomics.load(this.#words, at + STATE) === LOCATED) return
    this.#words[at + BUNDLE] = bundle
    this.#words[at + LENGTH] = length
    this.#offsets[(at + OFFSET) / 2] = offset
    Atomics.store(this.#words, at + STATE, LOCATED)
  }

  /** Where a piece is; undefined when it is not here, or claimed and not yet packed. */
  lookup(id: Buffer): PieceLocation | undefined {
    const at = this.#find(id)
    if (at === undefined || Atomics.load(this.#words, at + STATE) !== LOCATED) return undefined
    return {
      bundle: this.#words[at + BUNDLE]!,
      length: this.#words[at + LENGTH]! >>> 0,
      offset: this.#offsets[(at + OFFSET) / 2]!,
    }
  }

  /** Calls `visit` for every located piece. */
  forEach(visit: (id: Buffer, location: PieceLocation) => void): void {
    for (let slot = 0; slot < this.#slots; slot++) {
      const at = slot * SLOT_WORDS
      if (this.#words[at + STATE] !== LOCATED) continue
      const id = Buffer.from(new Uint8Array(this.memory, at * 4, ID_WORDS * 4).slice().buffer)
      visit(id, {
        bundle: this.#words[at + BUNDLE]!,
        length: this.#words[at + LENGTH]! >>> 0,
        offset: this.#offsets[(at + OFFSET) / 2]!,
      })
    }
  }

  #find(id: Buffer): number | undefined {
    for (let probe = 0, slot = this.#first(id); probe < MAX_PROBES; probe++) {
      const at = slot * SLOT_WORDS
      if (Atomics.load(this.#words, at + STATE) === EMPTY) return undefined
      this.#awaitId(at)
      if (this.#holds(at, id)) return at
      slot = slot + 1 === this.#slots ? 0 : slot + 1
    }
    return undefined
  }

  #first(id: Buffer): number {
    assert.equal(id.length, ID_WORDS * 4)
    return (id.readUInt32LE(0) + (id.readUInt32LE(4) & 0xfffff) * 2 ** 32) % this.#slots
  }

  /** Another thread is writing the id of this slot: a matter of nanoseconds. */
  #awaitId(at: number): void {
    while (Atomics.load(this.#words, at + STATE) === TAKEN) continue
  }

  #holds(at: number, id: Buffer): boolean {
    for (let i = 0; i < ID_WORDS; i++) {
      if (this.#words[at + i] !== id.readInt32LE(i * 4)) return false
    }
    return true
  }
}
