// What this machine knows of a repository, under $DBACKUP/.state/repositories/<id>/: a cache, never
// the truth.
//
// It saves the identity from being needed: which pieces the repository has and where, and each
// set's last exported catalog. When any of it is missing or damaged the whole of it counts as lost,
// and the next export is full. A new state is written as pending before the manifest commits the
// export, and adopted afterwards: so a kill between the two loses nothing. Throws STAGING_FULL and
// STAGING_FAILED when it cannot be written, CATALOG_DAMAGED for the catalog of a last export.

import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import assert from 'node:assert/strict'
import { BackupError } from '../errors.ts'
import { DIGEST_BYTES } from '../format/chunker.ts'
import {
  FRAME_MAX_BYTES,
  compressFrame,
  decompressFrame,
  frameLength,
} from '../format/zstd-frames.ts'
import { syncDirectory, writeDurably } from '../machine/durable-file.ts'
import { type Entry, type FrameRange, parseEntry } from '../model/entry.ts'
import type { ExportStatistics, IndexPlace } from '../model/manifest.ts'
import { rawPathFromText } from '../model/raw-path.ts'
import { type Shard, type ShardPlace, encodeIndex, parseIndex, parseShard } from '../model/shard.ts'
import type { PieceIndex, PieceLocation } from './piece-index.ts'

/** A bundle of the repository; its number is its place in State.bundles, and never changes. */
export interface StateBundle {
  readonly name: string
  readonly sizeBytes: number
  readonly sha256: string
  readonly tarBytes: number
  readonly frames: readonly FrameRange[]
}

/** What is known of the last export of a set. */
export interface StateSet {
  readonly stamp: string
  readonly manifestSha256: string
  /** Ranges name bundles by number. */
  readonly entries: readonly Entry[]
  readonly index: IndexPlace
  readonly shards: readonly ShardPlace[]
  /** How many bytes of each bundle's tar it needs, by bundle name. */
  readonly usage: Readonly<Record<string, number>>
}

export interface State {
  /** Undefined where a bundle was removed from the repository. */
  readonly bundles: readonly (StateBundle | undefined)[]
  readonly sets: ReadonlyMap<string, StateSet>
  /** Located pieces: DIGEST_BYTES id, bundle u32, length u32, offset f64, each. */
  readonly pieces: Buffer
  /** What is known of every export of this machine, by `<set>/<stamp>`. */
  readonly exports: ReadonlyMap<string, StateExport>
}

export interface StateExport {
  readonly complete: boolean
  readonly statistics: ExportStatistics
}

export const EMPTY_STATE: State = {
  bundles: [],
  sets: new Map(),
  pieces: Buffer.alloc(0),
  exports: new Map(),
}

export const PIECE_RECORD_BYTES = DIGEST_BYTES + 16

/**
 * The state file: small JSON that names the others, each with its SHA-256, so that a mixture is
 * noticed.
 */
interface StateFile {
  readonly format: 1
  /** The manifest that makes this state true, and its file on the target. */
  readonly commit: { readonly set: string; readonly stamp: string; readonly sha256: string }
  readonly bundles: FileRecord
  readonly pieces: FileRecord
  readonly sets: Readonly<Record<string, SetRecord>>
  readonly exports: Readonly<Record<string, StateExport>>
}

interface FileRecord {
  readonly file: string
  readonly sha256: string
}

type SetRecord = Omit<StateSet, 'entries' | 'shards'> & {
  /** The shards of its catalog, one after another. */
  readonly entries: FileRecord
  /** What only staging knows of each entry: encodeInodes(). */
  readonly inodes: FileRecord
  readonly shards: FileRecord
}

/** What is noted here besides the state, by repository-record.ts: an export leaves it alone. */
export const REPOSITORY_RECORDS = ['damaged.json', 'proofs.json', 'records.lock'] as const

const STATE = 'state.json'
const PENDING = 'state.pending.json'

export function stateDirectory({ staging, id }: { staging: string; id: string }): string {
  return join(staging, '.state', 'repositories', id)
}

/**
 * The state of a repository; undefined when there is none, it is damaged, or it is of a copy that
 * went another way: the target does not have the export that it was committed with.
 * @param manifestSha256 what the target has of an export; `unasked` takes the state as it is, and
 * leaves a pending one alone
 */
export async function loadState(
  directory: string,
  manifestSha256: 'unasked' | ((of: { set: string; stamp: string }) => Promise<string | undefined>),
): Promise<State | undefined> {
  const isThere = async ({ commit }: StateFile): Promise<boolean> => {
    return manifestSha256 !== 'unasked' && (await manifestSha256(commit)) === commit.sha256
  }
  const pending = readStateFile(join(directory, PENDING))
  if (pending !== undefined && (await isThere(pending))) adoptPending(directory)
  const file = readStateFile(join(directory, STATE))
  if (file === undefined) return undefined
  if (manifestSha256 !== 'unasked' && !(await isThere(file))) return undefined
  try {
    return readState(directory, file)
  } catch {
    // A cache that cannot be read is a cache that is lost: the caller says so and exports in full.
    return undefined
  }
}

/** The repositories that something is known of, by id. */
export function knownRepositoryIds(staging: string): string[] {
  try {
    return readdirSync(join(staging, '.state', 'repositories')).sort()
  } catch {
    return []
  }
}

/**
 * The exports that a repository had when it was exported to last, by `<set>/<stamp>`, read without
 * the rest; none where nothing is known, undefined where what is known cannot be read.
 */
export function knownExports(directory: string): ReadonlyMap<string, StateExport> | undefined {
  const path = join(directory, STATE)
  if (!existsSync(path)) return new Map()
  const exports: unknown = readStateFile(path)?.exports
  if (typeof exports !== 'object' || exports === null) return undefined
  return new Map(Object.entries(exports as Readonly<Record<string, StateExport>>))
}

/** The stamp of a set's last export to a repository, as far as it is known. */
export function lastExportStamp(directory: string, set: string): string | undefined {
  return readStateFile(join(directory, STATE))?.sets[set]?.stamp
}

/**
 * The catalog of a set's last export, shard by shard; nothing where it is not known.
 * @throws BackupError CATALOG_DAMAGED where it cannot be read: a cache that is lost, or that an
 * export has just replaced
 */
export function* lastExportShards(
  directory: string,
  set: string,
): Generator<{ readonly place: ShardPlace; readonly shard: () => Shard }> {
  const record = readStateFile(join(directory, STATE))?.sets[set]
  if (record === undefined) return
  const { bytes, places } = readLastExport(directory, record)
  let start = 0
  for (const place of places) {
    const [from, end] = [start, start + place.tar[1]]
    yield { place, shard: () => parseShard(bytes.subarray(from, end)) }
    start = end
  }
}

function readLastExport(
  directory: string,
  { entries, shards }: SetRecord,
): { readonly bytes: Buffer; readonly places: readonly ShardPlace[] } {
  try {
    const bytes = readRecord(directory, entries)
    return { bytes, places: parseIndex(readRecord(directory, shards)) }
  } catch (cause) {
    const message = `the catalog of the last export in "${directory}" cannot be read`
    throw new BackupError('CATALOG_DAMAGED', message, { cause })
  }
}

function readState(directory: string, file: StateFile): State {
  const parsed = JSON.parse(
    readRecord(directory, file.bundles).toString(),
  ) as (StateBundle | null)[]
  const bundles = parsed.map((bundle) => bundle ?? undefined)
  const numbers = new Map(
    bundles.flatMap((bundle, number) => (bundle === undefined ? [] : [[bundle.name, number]])),
  )
  const sets = Object.entries(file.sets).map(([name, set]) => {
    const entries = parseShardLines(readRecord(directory, set.entries), numbers)
    const withInodes = addInodes(entries, readRecord(directory, set.inodes))
    return [
      name,
      { ...set, entries: withInodes, shards: parseIndex(readRecord(directory, set.shards)) },
    ] as const
  })
  return {
    bundles,
    sets: new Map(sets),
    pieces: readRecord(directory, file.pieces),
    exports: new Map(Object.entries(file.exports)),
  }
}

/**
 * The entries of shards that lie one after another, with bundles under the state's numbers; GONE
 * for one that left.
 */
function parseShardLines(bytes: Buffer, numbers: ReadonlyMap<string, number>): Entry[] {
  const entries: Entry[] = []
  let map: readonly number[] = []
  for (const line of bytes.toString('utf8').split('\n')) {
    if (line === '') continue
    if (line.startsWith('{"bundles":')) {
      const { bundles } = JSON.parse(line) as { bundles: readonly { name: string }[] }
      map = bundles.map(({ name }) => numbers.get(name) ?? GONE)
      continue
    }
    const { header, pieces, ...entry } = parseEntry(line)
    entries.push({
      ...entry,
      ...(header === undefined ? {} : { header: [map[header[0]]!, header[1], header[2]] }),
      ...(pieces === undefined
        ? {}
        : {
            pieces: pieces.map(
              ([id, bundle, offset, length]) => [id, map[bundle]!, offset, length] as const,
            ),
          }),
    })
  }
  return entries
}

/** No bundle has this number: what lies there has to be packed again. */
const GONE = 0xffffffff

/**
 * Inode and birth of each entry, 16 bytes: the inode as float64, the birth as nanoseconds or
 * NOT_BORN.
 */
function encodeInodes(entries: readonly Entry[]): Buffer {
  const out = Buffer.allocUnsafe(entries.length * INODE_RECORD_BYTES)
  entries.forEach(({ inode, bornNs }, i) => {
    out.writeDoubleLE(inode ?? -1, i * INODE_RECORD_BYTES)
    out.writeBigInt64LE(bornNs ?? NOT_BORN, i * INODE_RECORD_BYTES + 8)
  })
  return out
}

/** The inverse of encodeInodes. */
function addInodes(entries: readonly Entry[], bytes: Buffer): Entry[] {
  if (bytes.length !== entries.length * INODE_RECORD_BYTES)
    throw new Error('the inodes are of another catalog')
  return entries.map((entry, i) => {
    const inode = bytes.readDoubleLE(i * INODE_RECORD_BYTES)
    const bornNs = bytes.readBigInt64LE(i * INODE_RECORD_BYTES + 8)
    return { ...entry, ...(inode < 0 ? {} : { inode }), ...(bornNs === NOT_BORN ? {} : { bornNs }) }
  })
}

const INODE_RECORD_BYTES = 16
const NOT_BORN = -(2n ** 63n)

/**
 * Writes a state that becomes true with the manifest `commit`; adoptPending() makes it the state.
 * The committed set's catalog comes as the shards that were just encoded (so it is not encoded
 * twice), the other sets' files stay.
 */
export function writePending(
  directory: string,
  state: State,
  {
    commit,
    shardBytes,
  }: {
    readonly commit: { readonly set: string; readonly stamp: string; readonly sha256: string }
    readonly shardBytes: readonly Buffer[]
  },
): void {
  mkdirSync(directory, { recursive: true, mode: 0o700 })
  const previous = readStateFile(join(directory, STATE))
  const write = (file: string, parts: readonly Buffer[]): FileRecord => {
    const name = `${file}-${commit.stamp}-${commit.set}.zst`
    const compressed = Buffer.concat(parts.map(compressFrames))
    rmSync(join(directory, name), { force: true })
    writeDurably({ path: rawPathFromText(join(directory, name)), bytes: compressed, mode: 0o600 })
    return { file: name, sha256: sha256(compressed) }
  }
  const sets = [...state.sets].map(([name, { entries, shards, ...set }]) => {
    const kept = name === commit.set ? undefined : previous?.sets[name]
    assert(
      name === commit.set || kept !== undefined,
      'a set that was not exported now has a state already',
    )
    const record: SetRecord = kept ?? {
      ...set,
      entries: write(`${name}-entries`, shardBytes),
      inodes: write(`${name}-inodes`, [encodeInodes(entries)]),
      shards: write(`${name}-shards`, [encodeIndex(shards)]),
    }
    return [name, record] as const
  })
  const file: StateFile = {
    format: 1,
    commit,
    bundles: write('bundles', [
      Buffer.from(JSON.stringify(state.bundles.map((bundle) => bundle ?? null))),
    ]),
    pieces: write('pieces', [state.pieces]),
    sets: Object.fromEntries(sets),
    exports: Object.fromEntries(state.exports),
  }
  const bytes = Buffer.from(JSON.stringify(file))
  writeDurably({
    path: rawPathFromText(join(directory, PENDING)),
    bytes,
    mode: 0o600,
    replace: true,
  })
}

/** The manifest is there: what was pending is the state. Files that nothing names are removed. */
export function adoptPending(directory: string): void {
  renameSync(join(directory, PENDING), join(directory, STATE))
  syncDirectory(rawPathFromText(directory))
  const file = readStateFile(join(directory, STATE))
  if (file === undefined) return
  const named = new Set<string>([...REPOSITORY_RECORDS, STATE])
  named.add(file.bundles.file).add(file.pieces.file)
  for (const { entries, inodes, shards } of Object.values(file.sets)) {
    named.add(entries.file).add(inodes.file).add(shards.file)
  }
  for (const name of readdirSync(directory)) {
    if (!named.has(name)) rmSync(join(directory, name), { force: true })
  }
}

function readStateFile(path: string): StateFile | undefined {
  try {
    const file = JSON.parse(readFileSync(path, 'utf8')) as StateFile
    const { format, commit } = file
    const isOurs =
      format === 1
      && [commit.set, commit.stamp, commit.sha256].every((text) => typeof text === 'string')
    return isOurs ? file : undefined
  } catch {
    return undefined
  }
}

function readRecord(directory: string, { file, sha256: expected }: FileRecord): Buffer {
  const compressed = readFileSync(join(directory, file))
  if (sha256(compressed) !== expected) throw new Error(`${file} is damaged`)
  return decompressFrames(compressed)
}

/** One zstd file of as many frames as it needs; the inverse of decompressFrames. */
export function compressFrames(bytes: Buffer): Buffer {
  const frames: Buffer[] = []
  for (let at = 0; at < bytes.length || at === 0; at += FRAME_MAX_BYTES) {
    frames.push(compressFrame(bytes.subarray(at, at + FRAME_MAX_BYTES), STATE_LEVEL))
  }
  return Buffer.concat(frames)
}

/** @throws BackupError ZSTD_DAMAGED */
export function decompressFrames(compressed: Buffer): Buffer {
  const parts: Buffer[] = []
  for (let at = 0; at < compressed.length;) {
    const length = frameLength(compressed.subarray(at))
    parts.push(decompressFrame(compressed.subarray(at, at + length), FRAME_MAX_BYTES))
    at += length
  }
  return Buffer.concat(parts)
}

/** Fast: it is rewritten at every export. */
const STATE_LEVEL = 1

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

/** The located pieces of an index as the state keeps them; loadPieces is the inverse. */
export function encodePieces(index: PieceIndex): Buffer {
  let count = 0
  index.forEach(() => {
    count += 1
  })
  const records = Buffer.allocUnsafe(count * PIECE_RECORD_BYTES)
  let at = 0
  index.forEach((id, location) => {
    putPiece(records, { at, id, ...location })
    at += PIECE_RECORD_BYTES
  })
  return records
}

/** One located piece as the state keeps it. */
export function encodePiece(id: Buffer, { bundle, offset, length }: PieceLocation): Buffer {
  const record = Buffer.allocUnsafe(PIECE_RECORD_BYTES)
  putPiece(record, { at: 0, id, bundle, offset, length })
  return record
}

function putPiece(
  records: Buffer,
  { at, id, bundle, offset, length }: PieceLocation & { readonly at: number; readonly id: Buffer },
): void {
  id.copy(records, at)
  records.writeUInt32LE(bundle, at + DIGEST_BYTES)
  records.writeUInt32LE(length, at + DIGEST_BYTES + 4)
  records.writeDoubleLE(offset, at + DIGEST_BYTES + 8)
}

/** What is pending, if the manifest that it waits for may still come. */
export function pendingCommit(directory: string): StateFile['commit'] | undefined {
  return readStateFile(join(directory, PENDING))?.commit
}

/** Puts the pieces of usable bundles into an index. */
export function loadPieces(
  index: PieceIndex,
  { pieces, isUsable }: { pieces: Buffer; isUsable: (bundle: number) => boolean },
): void {
  for (let at = 0; at < pieces.length; at += PIECE_RECORD_BYTES) {
    const bundle = pieces.readUInt32LE(at + DIGEST_BYTES)
    if (!isUsable(bundle)) continue
    const id = pieces.subarray(at, at + DIGEST_BYTES)
    index.claim(id)
    index.locate(id, {
      bundle,
      length: pieces.readUInt32LE(at + DIGEST_BYTES + 4),
      offset: pieces.readDoubleLE(at + DIGEST_BYTES + 8),
    })
  }
}
