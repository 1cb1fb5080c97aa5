// What a file of unknown name holds, by its bytes alone: a manifest, a catalog, or data
// (docs/format.md §3, §7, §9).
//
// lookAtFile reads as little as that takes, readContents everything; both run in
// recover-worker.ts. A file that is cut short, or has lost its seek table, is read from its start
// as far as it goes. After damage a tar is only taken up again where the format says that a member
// begins, never where something looks like one. Damage is what they return, never a throw.

import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import { BackupError, type PlainError, packError } from '../errors.ts'
import { CHUNK_BYTES, MAX_HEAD_BYTES, TAG_BYTES, openAgeHead, openChunk } from '../format/age.ts'
import {
  DIGEST_BYTES,
  SEGMENT_BYTES,
  SINGLE_PIECE_BYTES,
  cutPieces,
  digestOf,
} from '../format/chunker.ts'
import { type ParsedHeader, parseHeader, tarPadding } from '../format/tar.ts'
import {
  FRAME_MAX_BYTES,
  compressedBound,
  decompressFrame,
  frameLength,
} from '../format/zstd-frames.ts'
import {
  type EntryMetadata,
  type FrameRange,
  MAX_ENTRY_BYTES,
  count,
  dataBytes,
  list,
  parseObject,
  takePath,
} from '../model/entry.ts'
import { MAX_MANIFEST_BYTES } from '../model/manifest.ts'
import type { RawPath } from '../model/raw-path.ts'
import { framesOf, parseDigest } from '../model/shard.ts'
import { BundleReader } from './bundle-reader.ts'
import { openSource } from './bundle-source.ts'

/** A bundle or a manifest, under whatever name. */
export interface FoundFile {
  readonly path: RawPath
  readonly sizeBytes: number
  /** Digest of its age head, which no two bundles share: copies of one bundle have the same. */
  readonly head: string
  readonly frames: readonly FrameRange[]
  /** It ends early, or its seek table is gone: there were more frames, perhaps. */
  readonly isCut: boolean
  readonly kind: 'manifest' | 'catalog' | 'data'
  /** Of a catalog: its shards and indexes, which have the digest that their name says. */
  readonly parts: readonly FoundPart[]
  /** Of a manifest: its members. */
  readonly manifest: { readonly json: Uint8Array; readonly signature: Uint8Array } | undefined
}

/** A shard or an index in a catalog bundle. */
export interface FoundPart {
  readonly kind: 'shard' | 'index'
  readonly digest: string
  readonly tar: readonly [offset: number, length: number]
}

/** What begins as an age file does, and could not be made use of. */
export interface UnreadFile {
  readonly path: RawPath
  readonly sizeBytes: number
  readonly error: PlainError
}

export type Look = FoundFile | UnreadFile

/** A path of a bundle itself, without any catalog. */
export interface FoundMember {
  readonly metadata: EntryMetadata
  readonly chunk: number | undefined
  /** Those of a member in place lie in this bundle; of others only ids and lengths are known. */
  readonly pieces: readonly (readonly [id: string, length: number])[]
  /** Some of its bytes could not be read, and nothing says what their ids were. */
  readonly isDamaged: boolean
}

/** Everything that a data bundle holds. */
export interface FoundContents {
  readonly path: RawPath
  /** Where in the tar the frames begin that cannot be read. */
  readonly bad: readonly number[]
  readonly pieces: readonly (readonly [id: string, offset: number, length: number])[]
  /** Empty where they were not asked for. */
  readonly members: readonly FoundMember[]
  /** What is wrong with it, once. */
  readonly error: PlainError | undefined
}

export function isFound(look: Look): look is FoundFile {
  return 'head' in look
}

/** Bundles are closed at four times their size, which is below 4 GiB; and one more file. */
const MAX_TAR_BYTES = 32 * 1024 ** 3
/** More paths than any machine keeps in one bundle; they are held in memory. */
const MAX_MEMBERS = 8_000_000
/** Pieces are 4 MiB at most (docs/format.md §4); what says more is not ours. */
const MAX_PIECE_BYTES = SINGLE_PIECE_BYTES
const PART_NAME = /^(shards|index)\/([0-9a-f]{64})\.jsonl$/
const MANIFEST_JSON = 'manifest.json'
const MANIFEST_SIGNATURE = 'manifest.json.minisig'

/** What a file that begins as an age file does holds. */
export function lookAtFile(path: RawPath, identities: readonly string[]): Look {
  let sizeBytes = 0
  try {
    const head = readHead(path, identities)
    sizeBytes = head.sizeBytes
    const { frames, isCut } = findFrames(path, { identities, head })
    const kind = withTar({ path, identities, frames }, classify)
    return { path, sizeBytes, head: head.digest, frames, isCut, ...kind }
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    return { path, sizeBytes, error: packError(error) }
  }
}

/**
 * Reads a data bundle from its first frame to its last.
 * @param options.withMembers whether its own paths are wanted, not just its pieces
 */
export function readContents(
  file: FoundFile,
  { identities, withMembers }: { identities: readonly string[]; withMembers: boolean },
): FoundContents {
  const { path, frames } = file
  const pieces: (readonly [string, number, number])[] = []
  const members: FoundMember[] = []
  try {
    return withTar({ path, identities, frames }, (tar) => {
      let counted = 0
      for (const member of tar.members()) {
        counted += 1
        if (counted > MAX_MEMBERS) {
          tar.note(beyond(`more than ${MAX_MEMBERS} members`))
          break
        }
        const found = readMember(tar, member)
        pieces.push(...found.pieces)
        if (withMembers && found.member !== undefined) members.push(found.member)
      }
      tar.readRest()
      return { path, bad: tar.bad(), pieces, members, error: tar.error }
    })
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    const bad = frames.map(([tarOffset]) => tarOffset)
    return { path, bad, pieces: [], members: [], error: packError(error) }
  }
}

interface Head {
  readonly sizeBytes: number
  readonly headBytes: number
  readonly payloadKey: Buffer
  readonly digest: string
}

function readHead(path: RawPath, identities: readonly string[]): Head {
  const source = openSource(path)
  try {
    const { sizeBytes } = source
    const start = Buffer.allocUnsafe(Math.min(MAX_HEAD_BYTES, sizeBytes))
    const length = readUpTo(source, { out: start, position: 0 })
    const { headBytes, payloadKey } = openAgeHead(start.subarray(0, length), identities)
    return { sizeBytes, headBytes, payloadKey, digest: digestOf(start.subarray(0, headBytes)) }
  } finally {
    source.close()
  }
}

/** Where the medium fails, what came before it counts; nothing before it is a failure. */
function readUpTo(
  source: ReturnType<typeof openSource>,
  { out, position }: { out: Buffer; position: number },
): number {
  let done = 0
  try {
    while (done < out.length) {
      const read = source.read(out.subarray(done), position + done)
      if (read === 0) break
      done += read
    }
  } catch (error) {
    if (!(error instanceof BackupError) || done === 0) throw error
  }
  return done
}

interface FoundFrames {
  readonly frames: readonly FrameRange[]
  readonly isCut: boolean
}

/** By the seek table; where that is gone, one after another. */
function findFrames(
  path: RawPath,
  { identities, head }: { identities: readonly string[]; head: Head },
): FoundFrames {
  let reader: BundleReader | undefined
  try {
    reader = new BundleReader({ path, identities })
    const frames = reader.readFrames()
    checkFrames(frames)
    return { frames, isCut: false }
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    const frames = framesInOrder(path, head)
    if (frames.length === 0) throw error
    return { frames, isCut: true }
  } finally {
    reader?.close()
  }
}

/**
 * How large each frame may be is the reader's affair; small ones can claim to be very many.
 * @throws BackupError BUNDLE_DAMAGED
 */
function checkFrames(frames: readonly FrameRange[]): void {
  const [tarOffset, tarLength] = frames.at(-1) ?? [0, 0]
  const bytes = tarOffset + tarLength
  if (bytes > MAX_TAR_BYTES) throw beyond(`${bytes} bytes, where ${MAX_TAR_BYTES} are the limit`)
}

function beyond(what: string): BackupError {
  return new BackupError('BUNDLE_DAMAGED', `a bundle claims to hold ${what}`, {
    hint: 'it is none of ours, and was left out',
  })
}

/**
 * The frames from the start on, for as long as every chunk opens: each chunk authenticates on its
 * own.
 */
function framesInOrder(path: RawPath, { headBytes, payloadKey }: Head): FrameRange[] {
  const frames: FrameRange[] = []
  const limit = compressedBound(FRAME_MAX_BYTES) + CHUNK_BYTES
  const source = openSource(path)
  let payload = Buffer.alloc(0)
  let tarOffset = 0
  let offset = 0
  try {
    for (let index = 0; payload.length <= limit; index++) {
      const sealed = Buffer.allocUnsafe(CHUNK_BYTES + TAG_BYTES)
      const position = headBytes + index * sealed.length
      const length = readAsFar(source, { out: sealed, position })
      const plain = openAny({ payloadKey, index, ciphertext: sealed.subarray(0, length) })
      if (plain === undefined) return frames
      payload = Buffer.concat([payload, plain])
      for (;;) {
        const frame = nextFrame(payload)
        if (frame === 'end') return frames
        if (frame === 'short') break
        frames.push([tarOffset, frame.tarLength, offset, frame.length])
        tarOffset += frame.tarLength
        offset += frame.length
        payload = payload.subarray(frame.length)
      }
    }
    return frames
  } finally {
    source.close()
  }
}

/** Where the medium fails, nothing: what came before it counts. */
function readAsFar(...of: Parameters<typeof readUpTo>): number {
  try {
    return readUpTo(...of)
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    return 0
  }
}

/** A chunk that may or may not be the last one; undefined for one that does not open. */
function openAny(chunk: {
  readonly payloadKey: Buffer
  readonly index: number
  readonly ciphertext: Buffer
}): Buffer | undefined {
  for (const last of [false, true]) {
    try {
      return openChunk({ ...chunk, last })
    } catch (error) {
      if (!(error instanceof BackupError)) throw error
    }
  }
  return undefined
}

/** As the format's padding and seek table begin, which follow the data. */
const SKIPPABLE_MAGIC = 0x184d2a50
const SKIPPABLE_MASK = 0xfffffff0

function nextFrame(
  payload: Buffer,
): { readonly length: number; readonly tarLength: number } | 'short' | 'end' {
  if (payload.length < 4) return 'short'
  const magic = payload.readUInt32LE(0)
  if ((magic & SKIPPABLE_MASK) >>> 0 === SKIPPABLE_MAGIC) return 'end'
  let length: number
  try {
    length = frameLength(payload)
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    return payload.length > compressedBound(FRAME_MAX_BYTES) ? 'end' : 'short'
  }
  try {
    const tarLength = decompressFrame(payload.subarray(0, length), FRAME_MAX_BYTES).length
    return { length, tarLength }
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    return 'end'
  }
}

/** A member of a tar, with what is known of it before its data is read. */
interface Member {
  readonly header: ParsedHeader
  readonly dataOffset: number
}

interface OpenTar {
  readonly path: RawPath
  readonly identities: readonly string[]
  readonly frames: readonly FrameRange[]
}

function withTar<Result>(
  { path, identities, frames }: OpenTar,
  action: (tar: FoundTar) => Result,
): Result {
  const reader = new BundleReader({ path, identities })
  try {
    return action(new FoundTar(reader, frames))
  } finally {
    reader.close()
  }
}

/** The tar of a bundle, some frames of which may be unreadable. */
class FoundTar {
  readonly #reader: BundleReader
  readonly #frames: readonly FrameRange[]
  readonly #states = new Map<number, 'good' | 'bad'>()
  readonly #end: number
  /** What is wrong with it, first. */
  error: PlainError | undefined

  constructor(reader: BundleReader, frames: readonly FrameRange[]) {
    this.#reader = reader
    this.#frames = frames
    const [tarOffset, tarLength] = frames.at(-1) ?? [0, 0]
    this.#end = tarOffset + tarLength
  }

  /**
   * All members whose headers can be read. Behind damage it goes on where a frame ended early, for
   * there a member begins.
   */
  *members(): Generator<Member> {
    let position: number | undefined = 0
    while (position !== undefined && position < this.#end) {
      const header = this.#headerAt(position)
      if (header === 'end') return
      if (header === undefined) {
        position = this.#nextStart(position)
        continue
      }
      const dataOffset: number = position + header.headerBytes
      yield { header, dataOffset }
      position = dataOffset + header.dataBytes + tarPadding(header.dataBytes)
    }
  }

  /** A run of the tar; undefined where some of it cannot be read. */
  read(offset: number, length: number): Buffer | undefined {
    // A header may claim any length.
    if (offset + length > this.#end) return undefined
    const out = Buffer.allocUnsafe(length)
    return this.readInto(out, offset) ? out : undefined
  }

  readInto(out: Buffer, offset: number): boolean {
    if (offset + out.length > this.#end) return false
    let done = 0
    for (const frame of framesOf(this.#frames, { offset, length: out.length })) {
      const tar = this.#frame(frame)
      const start = offset + done - frame[0]
      if (tar === undefined || start < 0) return false
      done += tar.copy(out, done, start)
    }
    return done === out.length
  }

  /** Frames that no member led to count too. */
  readRest(): void {
    for (const frame of this.#frames) if (!this.#states.has(frame[0])) this.#frame(frame)
  }

  get endOffset(): number {
    return this.#end
  }

  bad(): readonly number[] {
    return [...this.#states].flatMap(([at, state]) => (state === 'bad' ? [at] : []))
  }

  #frame(frame: FrameRange): Buffer | undefined {
    const [at] = frame
    if (this.#states.get(at) === 'bad') return undefined
    try {
      const tar = this.#reader.readFrame(frame)
      this.#states.set(at, 'good')
      return tar
    } catch (error) {
      this.note(error)
      this.#states.set(at, 'bad')
      return undefined
    }
  }

  /** A header mostly lies in one frame; a long one goes on into the next. */
  #headerAt(position: number): ParsedHeader | 'end' | undefined {
    const [first] = framesOf(this.#frames, { offset: position, length: 1 })
    if (first === undefined || first[0] > position) return undefined
    let length = first[0] + first[1] - position
    for (;;) {
      const bytes = this.read(position, length)
      if (bytes === undefined) return undefined
      try {
        const header = parseHeader(bytes, 0)
        if (header !== 'short') return header
      } catch (error) {
        this.note(error)
        return undefined
      }
      const next = framesOf(this.#frames, { offset: position + length, length: 1 })[0]
      if (next === undefined) return undefined
      length += next[1]
    }
  }

  /**
   * Where a member begins for certain: behind a frame that was ended early (docs/format.md §3.2).
   * Inside a large file anything may look like a header.
   */
  #nextStart(position: number): number | undefined {
    for (let i = 1; i < this.#frames.length; i++) {
      const [tarOffset] = this.#frames[i]!
      if (tarOffset > position && this.#frames[i - 1]![1] < FRAME_MAX_BYTES) return tarOffset
    }
    return undefined
  }

  note(error: unknown): void {
    if (!(error instanceof BackupError)) throw error
    this.error ??= packError(error)
  }
}

/** What kind of bundle it is, by its first members; of all but data bundles everything. */
function classify(tar: FoundTar): Pick<FoundFile, 'kind' | 'parts' | 'manifest'> {
  const parts: FoundPart[] = []
  const members = new Map<string, Buffer>()
  for (const { header, dataOffset } of tar.members()) {
    const { path } = header.metadata
    const [, directory, digest] = PART_NAME.exec(path) ?? []
    const isManifest = path === MANIFEST_JSON || members.has(MANIFEST_JSON)
    if (!isOurs(header) || (digest === undefined && !isManifest)) break
    if (digest !== undefined) {
      const part = { tar: [dataOffset, header.dataBytes], digest } as const
      if (hasDigest(tar, part)) {
        parts.push({ kind: directory === 'shards' ? 'shard' : 'index', ...part })
      }
      continue
    }
    if (header.dataBytes > MAX_MANIFEST_BYTES) break
    const bytes = tar.read(dataOffset, header.dataBytes)
    if (bytes !== undefined) members.set(path, bytes)
  }
  const json = members.get(MANIFEST_JSON)
  const signature = members.get(MANIFEST_SIGNATURE)
  if (json !== undefined && signature !== undefined) {
    return { kind: 'manifest', parts: [], manifest: { json, signature } }
  }
  return { kind: parts.length > 0 ? 'catalog' : 'data', parts, manifest: undefined }
}

/** Whether a member is one of ours, as pack-worker.ts and export-catalog.ts write them. */
function isOurs({ metadata }: ParsedHeader): boolean {
  const { type, mode, uid, gid, mtimeNs, sparse } = metadata
  const isPlain = mode === 0o600 && uid === 0 && gid === 0 && mtimeNs === 0n
  return type === 'file' && isPlain && sparse === undefined
}

function hasDigest(
  tar: FoundTar,
  { tar: [offset, length], digest }: Pick<FoundPart, 'tar' | 'digest'>,
): boolean {
  const hash = createHash('blake2b512')
  for (let done = 0; done < length;) {
    const part = tar.read(offset + done, Math.min(FRAME_MAX_BYTES, length - done))
    if (part === undefined) return false
    hash.update(part)
    done += part.length
  }
  return hash.digest().subarray(0, DIGEST_BYTES).toString('hex') === digest
}

interface ReadMember {
  readonly pieces: readonly (readonly [id: string, offset: number, length: number])[]
  readonly member: FoundMember | undefined
}

const PIECE_NAME = /^\.pieces\/([0-9a-f]{64})$/
const ENTRY_NAME = /^\.entries\/\d+$/

function readMember(tar: FoundTar, { header, dataOffset }: Member): ReadMember {
  const { metadata, dataBytes: length } = header
  if (isOurs(header)) {
    const [, id] = PIECE_NAME.exec(metadata.path) ?? []
    if (id !== undefined) return readPiece(tar, { id, offset: dataOffset, length })
    if (ENTRY_NAME.test(metadata.path)) {
      return { pieces: [], member: readEntry(tar, { offset: dataOffset, length }) }
    }
  }
  return readInPlace(tar, { header, dataOffset })
}

function readPiece(
  tar: FoundTar,
  { id, offset, length }: { id: string; offset: number; length: number },
): ReadMember {
  const bytes = length <= MAX_PIECE_BYTES ? tar.read(offset, length) : undefined
  const isPiece = bytes !== undefined && digestOf(bytes) === id
  return { pieces: isPiece ? [[id, offset, length]] : [], member: undefined }
}

/** A header range and the line that says which pieces belong to it. */
function readEntry(
  tar: FoundTar,
  { offset, length }: { offset: number; length: number },
): FoundMember | undefined {
  const bytes = length <= MAX_ENTRY_BYTES ? tar.read(offset, length) : undefined
  if (bytes === undefined) return undefined
  try {
    const header = parseHeader(bytes, 0)
    if (header === 'end' || header === 'short') return undefined
    const { metadata } = header
    const line = parseObject(bytes.toString('utf8', header.headerBytes))
    const pieces = list(line['pieces']).map((item) => {
      const [id, pieceLength] = list(item)
      return [parseDigest(id), count(pieceLength, 'length', MAX_PIECE_BYTES)] as const
    })
    const sum = pieces.reduce((total, [, pieceLength]) => total + pieceLength, 0)
    if (takePath(line, 'path') !== metadata.path || sum !== dataBytes(metadata)) return undefined
    const chunk = line['chunk'] === undefined ? undefined : count(line['chunk'], 'chunk', 24)
    return { metadata, chunk, pieces, isDamaged: false }
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    return undefined
  }
}

/** A member with its data behind it: cut as it was when it was packed. */
function readInPlace(tar: FoundTar, { header, dataOffset }: Member): ReadMember {
  const { metadata, dataBytes: length, comment } = header
  const pieces: (readonly [string, number, number])[] = []
  const [, text] = /^chunk=(\d{1,2})$/.exec(comment ?? '') ?? []
  // Without its parameter a long one is cut anyhow: then its ids are of use to itself alone.
  const chunk =
    length > SINGLE_PIECE_BYTES ? Math.min(Math.max(Number(text ?? 16), 16), 20) : undefined
  let isDamaged = false
  const segment = (segmentBuffer ??= Buffer.allocUnsafeSlow(SEGMENT_BYTES))
  const there = Math.min(length, tar.endOffset - dataOffset)
  if (there < length) isDamaged = true
  for (let start = 0; start < there; start += SEGMENT_BYTES) {
    const bytes = segment.subarray(0, Math.min(SEGMENT_BYTES, length - start))
    if (!tar.readInto(bytes, dataOffset + start)) {
      isDamaged = true
      continue
    }
    let at = 0
    for (const cut of chunk === undefined ? [bytes.length] : cutPieces(bytes, chunk)) {
      pieces.push([digestOf(bytes.subarray(at, at + cut)), dataOffset + start + at, cut])
      at += cut
    }
  }
  const ids = pieces.map(([id, , pieceLength]) => [id, pieceLength] as const)
  return { pieces, member: { metadata, chunk, pieces: ids, isDamaged } }
}

/** One for all members of a thread. */
let segmentBuffer: Buffer | undefined
