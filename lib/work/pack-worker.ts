// The worker thread of an export: read | hash | tar | zstd | age, a whole bundle of its own at a
// time.
//
// export.ts sends batches of items and gets back where each entry's header and pieces are. All file
// access is synchronous, buffers are reused, nothing costs a promise. A file that cannot be read,
// or is not what its catalog says, is reported as missing; a failure of the target ends the worker
// with the error. docs/format.md §3.3 and §4.

import { Buffer } from 'node:buffer'
import { parentPort, workerData } from 'node:worker_threads'
import assert from 'node:assert/strict'
import { crc32 } from 'node:zlib'
import { BackupError, type PlainError, packError } from '../errors.ts'
import { SEGMENT_BYTES, cutPieces, digestBytes } from '../format/chunker.ts'
import { encodePlainHeader, tarPadding } from '../format/tar.ts'
import { type EntryMetadata, type Range, putPath } from '../model/entry.ts'
import { type RawPath, rawPathFromText } from '../model/raw-path.ts'
import { BundleWriter, type WrittenBundle } from './bundle-writer.ts'
import { entryHeader } from './entry-header.ts'
import { PieceIndex, type PieceLocation } from './piece-index.ts'
import { encodePiece } from './state.ts'
import { StagedFile } from './staged-file.ts'

export interface PackSettings {
  readonly recipients: readonly string[]
  readonly level: number
  readonly bundleBytes: number
  /** The staged tree, as a RawPath. */
  readonly tree: RawPath
  /** Where bundles are written, under names that end in `.partial`. */
  readonly outputDirectory: RawPath
  readonly pieceIndex: SharedArrayBuffer
  /** How many bundles this export has begun, over all workers. */
  readonly bundlesBegun: SharedArrayBuffer
  /** The number, in the export's bundle table, of the first of them. */
  readonly firstBundle: number
  /** Its number in its file name. */
  readonly firstFile: number
  /** Whether each bundle comes with its pieces, so that it is of use without its export. */
  readonly withPieces: boolean
}

/**
 * What is to be packed: a header alone, a file to read, or a new header for pieces that are known.
 */
export type PackItem =
  | { readonly kind: 'member'; readonly index: number; readonly metadata: EntryMetadata }
  | {
      readonly kind: 'file'
      readonly index: number
      readonly metadata: EntryMetadata
      readonly chunk: number | undefined
    }
  | {
      readonly kind: 'header'
      readonly index: number
      readonly metadata: EntryMetadata
      readonly chunk: number | undefined
      readonly pieces: readonly PieceLength[]
    }

export type PieceLength = readonly [id: string, length: number]

/** A piece whose place is not known to this worker has the bundle NOT_HERE. */
export const NOT_HERE = -1

export interface PackedEntry {
  readonly index: number
  readonly header: Range
  /** Of a file that was read. */
  readonly pieces: readonly (readonly [
    id: string,
    bundle: number,
    offset: number,
    length: number,
  ])[]
}

export interface PackFailure {
  readonly index: number
  readonly why: string
}

/** A bundle of this worker's, written and not proven yet. */
export interface PackedBundle extends WrittenBundle {
  readonly bundle: number
  /** As the state keeps them, where they were asked for. */
  readonly pieces: Uint8Array
}

export type PackRequest =
  { readonly kind: 'batch'; readonly items: readonly PackItem[] } | { readonly kind: 'finish' }

export type PackReply =
  | {
      readonly kind: 'packed'
      readonly entries: readonly PackedEntry[]
      readonly failures: readonly PackFailure[]
      readonly bytesRead: number
    }
  | { readonly kind: 'bundle'; readonly bundle: PackedBundle }
  | { readonly kind: 'finished' }
  | { readonly kind: 'failed'; readonly error: PlainError }

/** The file name of a data bundle. */
export function dataBundleFile(number: number): string {
  return `data-${String(number).padStart(4, '0')}.tar.zst.age`
}

/**
 * A bundle is closed when its tar has grown to this many times the bundle size, however well it
 * compresses.
 */
const MAX_TAR_FACTOR = 4
const ZEROS = Buffer.alloc(512)
/** Names that bundles use for themselves (docs/format.md §3.3). */
const RESERVED = /^\.(pieces|entries)(\/|$)/

function serve(port: NonNullable<typeof parentPort>, settings: PackSettings): void {
  const packer = new Packer(settings, (bundle) => port.postMessage({ kind: 'bundle', bundle }))
  port.on('message', (request: PackRequest) => {
    try {
      if (request.kind === 'batch') port.postMessage(packer.packBatch(request.items))
      else {
        packer.endBundle()
        port.postMessage({ kind: 'finished' })
        port.close()
      }
    } catch (error) {
      packer.abort()
      port.postMessage({ kind: 'failed', error: packError(error) })
      port.close()
    }
  })
}

interface CutFile {
  readonly ids: Buffer[]
  readonly lengths: number[]
  /** Whether this worker has to pack the piece. */
  readonly mine: boolean[]
  /** No piece was there before this file. */
  readonly allNew: boolean
  /** CRC-32 of every segment, to know at the second reading that it is the same. */
  readonly segmentSums: number[]
}

class Packer {
  readonly #settings: PackSettings
  readonly #onBundle: (bundle: PackedBundle) => void
  readonly #writer: BundleWriter
  readonly #pieceIndex: PieceIndex
  readonly #begun: Int32Array
  readonly #segment = Buffer.allocUnsafeSlow(SEGMENT_BYTES)
  /** Of the open bundle, as the state keeps them. */
  readonly #located: Buffer[] = []
  #number = 0

  constructor(settings: PackSettings, onBundle: (bundle: PackedBundle) => void) {
    this.#settings = settings
    this.#onBundle = onBundle
    this.#writer = new BundleWriter({ recipients: settings.recipients, level: settings.level })
    this.#pieceIndex = new PieceIndex(settings.pieceIndex)
    this.#begun = new Int32Array(settings.bundlesBegun)
  }

  packBatch(items: readonly PackItem[]): PackReply {
    const entries: PackedEntry[] = []
    const failures: PackFailure[] = []
    let bytesRead = 0
    for (const item of items) {
      const packed = this.#pack(item)
      if ('why' in packed) failures.push(packed)
      else entries.push(packed)
      if (item.kind === 'file') bytesRead += item.metadata.size ?? 0
    }
    return { kind: 'packed', entries, failures, bytesRead }
  }

  /** Ends the bundle; the main thread has it proven and gives it its name. */
  endBundle(): void {
    if (!this.#writer.isOpen) return
    const facts = this.#writer.finish()
    const pieces = Buffer.concat(this.#located)
    this.#located.length = 0
    this.#onBundle({ ...facts, bundle: this.#bundle, pieces })
  }

  abort(): void {
    this.#writer.abort()
  }

  get #path(): string {
    const { outputDirectory, firstFile } = this.#settings
    return `${outputDirectory}/${dataBundleFile(firstFile + this.#number - 1)}`
  }

  /** The number of the open bundle in the export's bundle table. */
  get #bundle(): number {
    return this.#settings.firstBundle + this.#number - 1
  }

  #pack(item: PackItem): PackedEntry | PackFailure {
    const { index, metadata } = item
    if (item.kind === 'file') return this.#packFile(item)
    if (item.kind === 'header') {
      return { index, header: this.#appendEntry(item, item.pieces), pieces: [] }
    }
    if (RESERVED.test(metadata.path)) {
      return { index, header: this.#appendEntry({ ...item, chunk: undefined }, []), pieces: [] }
    }
    return { index, header: this.#appendMember(entryHeader({ metadata })), pieces: [] }
  }

  #packFile(item: PackItem & { kind: 'file' }): PackedEntry | PackFailure {
    const { index, metadata } = item
    let file: StagedFile
    let cut: CutFile
    try {
      file = new StagedFile({ path: `${this.#settings.tree}/${metadata.path}`, metadata })
    } catch (error) {
      return { index, why: reason(error) }
    }
    try {
      try {
        cut = this.#cut(file, item.chunk)
      } catch (error) {
        return { index, why: reason(error) }
      }
      const inPlace =
        cut.allNew && file.dataBytes <= this.#settings.bundleBytes && !RESERVED.test(metadata.path)
      return inPlace
        ? this.#packInPlace(item, { file, cut })
        : this.#packPieces(item, { file, cut })
    } finally {
      file.close()
    }
  }

  /**
   * Reads a file once, cuts it, and claims what is new. Nothing is claimed of a file that cannot be
   * read.
   */
  #cut(file: StagedFile, chunk: number | undefined): CutFile {
    const ids: Buffer[] = []
    const lengths: number[] = []
    const segmentSums: number[] = []
    for (let offset = 0; offset < file.dataBytes; offset += SEGMENT_BYTES) {
      const segment = this.#readSegment(file, offset)
      const cuts = chunk === undefined ? [segment.length] : cutPieces(segment, chunk)
      let start = 0
      for (const length of cuts) {
        ids.push(digestBytes(segment.subarray(start, start + length)))
        lengths.push(length)
        start += length
      }
      if (file.dataBytes > SEGMENT_BYTES) segmentSums.push(crc32(segment))
    }
    file.check()
    return { ids, lengths, segmentSums, ...this.#claim(ids) }
  }

  #claim(ids: readonly Buffer[]): { mine: boolean[]; allNew: boolean } {
    const mine: boolean[] = []
    const own = new Set<string>()
    let allNew = true
    for (const id of ids) {
      const claim = this.#pieceIndex.claim(id)
      mine.push(claim !== 'known')
      if (ids.length === 1) allNew = claim !== 'known'
      else if (claim !== 'known') own.add(id.toString('latin1'))
      else if (!own.has(id.toString('latin1'))) allNew = false
    }
    return { mine, allNew }
  }

  #readSegment(file: StagedFile, offset: number): Buffer {
    const length = Math.min(SEGMENT_BYTES, file.dataBytes - offset)
    const segment = this.#segment.subarray(0, length)
    file.read(segment, offset)
    return segment
  }

  /** An ordinary tar member: header, content, padding. */
  #packInPlace(item: PackItem & { kind: 'file' }, { file, cut }: OpenFile): PackedEntry {
    const header = this.#appendMember(entryHeader(item))
    const pieces: (readonly [string, number, number, number])[] = []
    this.#forEachPiece({ file, cut }, (bytes, i) => {
      const location = { bundle: this.#bundle, offset: this.#writer.tarBytes, length: bytes.length }
      this.#writer.append(bytes)
      this.#locate(cut.ids[i]!, location)
      pieces.push([cut.ids[i]!.toString('hex'), location.bundle, location.offset, location.length])
    })
    this.#pad(file.dataBytes)
    return { index: item.index, header, pieces }
  }

  /** New pieces as members of their own, and the header beside them. */
  #packPieces(item: PackItem & { kind: 'file' }, { file, cut }: OpenFile): PackedEntry {
    const pieces = cut.ids.map(
      (id, i) =>
        [id.toString('hex'), NOT_HERE, 0, cut.lengths[i]!] as readonly [
          string,
          number,
          number,
          number,
        ],
    )
    this.#forEachPiece({ file, cut }, (bytes, i) => {
      if (!cut.mine[i]!) return
      const id = pieces[i]![0]
      const path = rawPathFromText(`.pieces/${id}`)
      this.#appendMember(encodePlainHeader({ path, sizeBytes: bytes.length }))
      const location = { bundle: this.#bundle, offset: this.#writer.tarBytes, length: bytes.length }
      this.#writer.append(bytes)
      this.#pad(bytes.length)
      this.#locate(cut.ids[i]!, location)
      pieces[i] = [id, location.bundle, location.offset, location.length]
    })
    const list = pieces.map(([id, , , length]) => [id, length] as const)
    return { index: item.index, header: this.#appendEntry(item, list), pieces }
  }

  #locate(id: Buffer, location: PieceLocation): void {
    this.#pieceIndex.locate(id, location)
    if (this.#settings.withPieces) this.#located.push(encodePiece(id, location))
  }

  #forEachPiece({ file, cut }: OpenFile, visit: (bytes: Buffer, index: number) => void): void {
    let piece = 0
    for (let offset = 0; offset < file.dataBytes; offset += SEGMENT_BYTES) {
      // A file of one segment still is in the buffer from the first reading.
      const whole = file.dataBytes <= SEGMENT_BYTES
      const segment = whole
        ? this.#segment.subarray(0, file.dataBytes)
        : this.#readAgain(file, offset, cut.segmentSums[offset / SEGMENT_BYTES]!)
      for (let start = 0; start < segment.length; piece++) {
        const length = cut.lengths[piece]!
        visit(segment.subarray(start, start + length), piece)
        start += length
      }
    }
    assert.equal(piece, cut.lengths.length)
  }

  #readAgain(file: StagedFile, offset: number, sum: number): Buffer {
    const segment = this.#readSegment(file, offset)
    if (crc32(segment) === sum) return segment
    throw new BackupError('STAGING_FAILED', 'a staged file reads differently the second time', {
      hint: 'check the disk that holds staging; nothing was exported, earlier exports are unharmed',
    })
  }

  /** A header range that stands apart from its pieces, with the list that tells which they are. */
  #appendEntry(item: EntryItem, pieces: readonly PieceLength[]): Range {
    const header = entryHeader(item)
    const list: Record<string, unknown> = {}
    putPath(list, { name: 'path', path: item.metadata.path })
    if (item.metadata.size !== undefined) list['size'] = item.metadata.size
    if (item.chunk !== undefined) list['chunk'] = item.chunk
    list['pieces'] = pieces
    const json = Buffer.from(`${JSON.stringify(list)}\n`)
    const sizeBytes = header.length + json.length
    const path = rawPathFromText(`.entries/${item.index}`)
    this.#appendMember(encodePlainHeader({ path, sizeBytes }))
    const range = [this.#bundle, this.#writer.tarBytes, header.length] as const
    this.#writer.append(header)
    this.#writer.append(json)
    this.#pad(sizeBytes)
    return range
  }

  /** Begins a member, in a new bundle where the open one is full. */
  #appendMember(header: Buffer): Range {
    if (this.#isFull()) this.endBundle()
    if (!this.#writer.isOpen) {
      this.#number = Atomics.add(this.#begun, 0, 1) + 1
      this.#writer.open(`${this.#path}.partial`)
    }
    this.#writer.boundary()
    const range = [this.#bundle, this.#writer.tarBytes, header.length] as const
    this.#writer.append(header)
    return range
  }

  #isFull(): boolean {
    if (!this.#writer.isOpen) return false
    const { bundleBytes } = this.#settings
    return (
      this.#writer.sizeBytes >= bundleBytes || this.#writer.tarBytes >= bundleBytes * MAX_TAR_FACTOR
    )
  }

  #pad(lengthBytes: number): void {
    this.#writer.append(ZEROS.subarray(0, tarPadding(lengthBytes)))
  }
}

interface OpenFile {
  readonly file: StagedFile
  readonly cut: CutFile
}

interface EntryItem {
  readonly index: number
  readonly metadata: EntryMetadata
  readonly chunk: number | undefined
}

function reason(error: unknown): string {
  return error instanceof Error
    ? error.message.replace(/,? *(open|read|lstat) '.*'$/, '')
    : String(error)
}

// Last, for classes are not hoisted. Imported for its types alone, this file starts nothing.
if (parentPort !== null) serve(parentPort, workerData as PackSettings)
