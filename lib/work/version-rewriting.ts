// Lays one generation beside a version index, path after path, and writes the index anew.
//
// versions.ts adds collections and exports by it, one at a time; never all of it is in memory.
// Throws CATALOG_DAMAGED for a generation whose paths are not in order.

import assert from 'node:assert/strict'
import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import { BackupError } from '../errors.ts'
import { compressFrame } from '../format/zstd-frames.ts'
import { comparePaths, type RawPath } from '../model/raw-path.ts'
import type { Stamp } from '../model/stamp.ts'
import {
  encodeLines,
  encodePaths,
  encodeTable,
  generationNumber,
  type IndexBlock,
  type IndexedGeneration,
  type Place,
  swept,
  type VersionText,
  withGeneration,
} from '../model/version-index.ts'
import { type IndexBytes, MAGIC, type Sink, pairsOf } from './version-file.ts'

/** Paths in a block: what one look for a single path has to read. */
const BLOCK_ENTRIES = 32_768

/** … unless they, or their lines, are long. Characters. */
const BLOCK_LENGTH = 8 * 1024 * 1024

/** It is rewritten after every collection. */
const LEVEL = 1

/** Lays one generation, path after path, beside an index, and writes the index anew. */
export class Rewriting {
  readonly #sink: Sink
  readonly #generations: readonly IndexedGeneration[]
  readonly #numbers: readonly number[]
  readonly #areAllLeft: boolean
  readonly #place: Place
  readonly #set: string
  readonly #old: Iterator<readonly [path: RawPath, line: string], void, undefined>
  /** The next of the old index; undefined at its end. */
  #next: readonly [path: RawPath, line: string] | undefined
  #last: RawPath | undefined
  #paths: RawPath[] = []
  #lines: string[] = []
  #length = 0
  #offset = 0
  readonly #blocks: IndexBlock[] = []
  /** Of everything before the tail. */
  readonly #hash = createHash('sha256')

  constructor(
    old: IndexBytes,
    {
      generation,
      refresh = (one) => one,
      left,
      sink,
    }: {
      readonly generation: IndexedGeneration
      /** What is known of a generation by now. */
      readonly refresh?: (generation: IndexedGeneration) => IndexedGeneration
      /** The stamps that stay; undefined: all. */
      readonly left: ReadonlySet<Stamp> | undefined
      readonly sink: Sink
    },
  ) {
    const { table } = old
    const refreshed = table.generations.map(refresh)
    const all = [...refreshed, generation].sort((a, b) => (a.stamp < b.stamp ? -1 : 1))
    const at = all.indexOf(generation)
    const numberAt = (index: number): number | undefined => {
      const one = all[index]
      return one === undefined ? undefined : generationNumber(one.stamp)
    }
    const number = generationNumber(generation.stamp)
    this.#place = { number, previous: numberAt(at - 1), next: numberAt(at + 1) }
    this.#generations = all.filter(({ stamp }) => {
      return left === undefined || stamp === generation.stamp || left.has(stamp)
    })
    this.#areAllLeft = this.#generations.length === all.length
    this.#numbers = this.#generations.map(({ stamp }) => generationNumber(stamp))
    this.#set = table.set
    this.#sink = sink
    this.#old = pairsOf(old)
    this.#advance()
  }

  /** @throws BackupError CATALOG_DAMAGED where paths are not in catalog order */
  add(path: RawPath, version: VersionText): void {
    if (this.#last !== undefined && comparePaths(this.#last, path) >= 0) {
      throw new BackupError('CATALOG_DAMAGED', 'a catalog is not in order')
    }
    this.#last = path
    this.#passTo(path, undefined)
    const [known, line] = this.#next ?? []
    if (known !== path) {
      this.#put(path, withGeneration('', this.#place, version))
      return
    }
    this.#put(path, withGeneration(line ?? '', this.#place, version))
    this.#advance()
  }

  /**
   * The same as adding, from `first` up to `end`, every path with the version that the generation
   * before has. Only for the newest generation.
   */
  keep(first: RawPath, end: RawPath | undefined): void {
    assert(this.#place.next === undefined, 'only the newest generation is like the one before')
    this.#passTo(first, undefined)
    this.#passTo(end, 'kept')
  }

  /** Writes what is left, and the table. */
  finish(): void {
    this.#passTo(undefined, undefined)
    this.#endBlock()
    const table = { set: this.#set, generations: this.#generations, blocks: this.#blocks }
    const frame = compressFrame(encodeTable(table), LEVEL)
    const length = Buffer.alloc(4)
    length.writeUInt32LE(frame.length)
    const digest = this.#hash.update(frame).digest()
    this.#sink.write(Buffer.concat([frame, length, digest, MAGIC]))
  }

  /** What comes before a path is not in the generation, or is as it was. */
  #passTo(end: RawPath | undefined, how: 'kept' | undefined): void {
    while (this.#next !== undefined) {
      const [path, line] = this.#next
      if (path === end || (end !== undefined && comparePaths(path, end) >= 0)) return
      this.#put(path, how === 'kept' ? line : withGeneration(line, this.#place, undefined))
      this.#advance()
    }
  }

  #advance(): void {
    this.#next = this.#old.next().value ?? undefined
  }

  #put(path: RawPath, line: string): void {
    const left = this.#areAllLeft ? line : swept(line, this.#numbers)
    if (left === '') return
    this.#paths.push(path)
    this.#lines.push(left)
    this.#length += path.length + left.length
    if (this.#paths.length >= BLOCK_ENTRIES || this.#length >= BLOCK_LENGTH) this.#endBlock()
  }

  #endBlock(): void {
    const [first] = this.#paths
    if (first === undefined) return
    const paths = this.#write(encodePaths(this.#paths))
    const lines = this.#write(encodeLines(this.#lines))
    this.#blocks.push({ first, count: this.#paths.length, paths, lines })
    this.#paths = []
    this.#lines = []
    this.#length = 0
  }

  #write(bytes: Buffer): readonly [offset: number, length: number] {
    const frame = compressFrame(bytes, LEVEL)
    this.#sink.write(frame)
    this.#hash.update(frame)
    const offset = this.#offset
    this.#offset += frame.length
    return [offset, frame.length]
  }
}
