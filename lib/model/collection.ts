// The catalog of a collection in staging: a header line, then its entries (docs/format.md §8).
//
// encodeHeader and parseHeader are inverses, and encodeLines and parseLines; zstd is
// lib/work/staging.ts's affair. parse… throws BackupError CATALOG_DAMAGED for what no encoder
// wrote.

import { Buffer } from 'node:buffer'
import { BackupError } from '../errors.ts'
import {
  count,
  type Entry,
  encodeEntry,
  list,
  parseObject,
  putPath,
  takePath,
  text,
} from './entry.ts'
import type { RawPath } from './raw-path.ts'
import type { Doubt, SourceFacts } from './sanity.ts'
import type { Stamp } from './stamp.ts'

export const COLLECTION_FORMAT = 1

/** Something that was named or found, and is not in the collection. */
export interface MissingPath {
  readonly path: RawPath
  /** For people: `permission denied`. */
  readonly why: string
}

/** What makes source snapshots. */
export const SNAPSHOT_KINDS = ['btrfs', 'zfs', 'apfs', 'lvm'] as const

export type SnapshotKind = (typeof SNAPSHOT_KINDS)[number]

export interface SourceRecord {
  readonly path: RawPath
  readonly snapshot: SnapshotKind | 'none'
  /** The moment the content is of: of the snapshot, or when reading began. */
  readonly time: Stamp
  /** What the next collection is compared with (model/sanity.ts); absent in older catalogs. */
  readonly facts?: Omit<SourceFacts, 'path'>
}

export interface CollectionHeader {
  readonly set: string
  readonly stamp: Stamp
  readonly complete: boolean
  readonly missing: readonly MissingPath[]
  /** Why the collection is distrusted; nothing where it is not. */
  readonly suspect: readonly Doubt[]
  /** When somebody accepted it as it is, missing paths and doubts and all. */
  readonly accepted?: Stamp
  readonly sources: readonly SourceRecord[]
  readonly entries: number
  readonly files: number
  /** Bytes of the files, holes included, as `ls` shows them. */
  readonly bytes: number
}

/** Whether retention may count on it and `latest` may name it: whole and trusted, or accepted. */
export function isGood({
  complete,
  suspect,
  accepted,
}: Pick<CollectionHeader, 'complete' | 'suspect' | 'accepted'>): boolean {
  return accepted !== undefined || (complete && suspect.length === 0)
}

/** Whether exports and retention of the set wait for somebody to look at it. */
export function isFrozen({
  suspect,
  accepted,
}: Pick<CollectionHeader, 'suspect' | 'accepted'>): boolean {
  return suspect.length > 0 && accepted === undefined
}

/** What the sources of a collection were, as far as its catalog says. */
export function sourceFacts({ sources }: Pick<CollectionHeader, 'sources'>): SourceFacts[] {
  return sources.flatMap(({ path, facts }) => (facts === undefined ? [] : [{ path, ...facts }]))
}

/** One line of JSON, without the newline. */
export function encodeHeader(header: CollectionHeader): string {
  const { set, stamp, complete, accepted, entries, files, bytes } = header
  const missing = header.missing.map(({ path, why }) => ({ ...encodedPath(path), why }))
  const suspect = header.suspect.map(({ path, why }) => ({ ...encodedPath(path), why }))
  const sources = header.sources.map(({ path, snapshot, time, facts }) => ({
    ...encodedPath(path),
    snapshot,
    time,
    ...(facts === undefined ? {} : encodeFacts(facts)),
  }))
  return JSON.stringify({
    format: COLLECTION_FORMAT,
    set,
    stamp,
    complete,
    missing,
    ...(suspect.length === 0 ? {} : { suspect }),
    ...(accepted === undefined ? {} : { accepted }),
    sources,
    entries,
    files,
    bytes,
  })
}

/** @throws BackupError CATALOG_DAMAGED, TARGET_FORMAT for a newer format */
export function parseHeader(line: string): CollectionHeader {
  const object = parseObject(line)
  const format = count(object['format'], 'format')
  if (format > COLLECTION_FORMAT) {
    throw new BackupError('TARGET_FORMAT', `a collection in staging has format ${format}`, {
      hint: 'install a newer version of this program; nothing was changed',
    })
  }
  const { complete, accepted } = object
  if (typeof complete !== 'boolean') throw damaged('complete is missing')
  return {
    set: text(object['set']),
    stamp: text(object['stamp']),
    complete,
    missing: list(object['missing']).map(parseMissing),
    suspect: list(object['suspect'] ?? []).map(parseMissing),
    ...(accepted === undefined ? {} : { accepted: text(accepted) }),
    sources: list(object['sources']).map(parseSource),
    entries: count(object['entries'], 'entries'),
    files: count(object['files'], 'files'),
    bytes: count(object['bytes'], 'bytes'),
  }
}

/**
 * Entries as lines, each ended by a newline, in buffers of about `blockBytes` cut between lines.
 */
export function* encodeLines(entries: readonly Entry[], blockBytes: number): Generator<Buffer> {
  let lines: string[] = []
  let length = 0
  for (const entry of entries) {
    const line = encodeEntry(entry)
    lines.push(line)
    length += line.length
    if (length < blockBytes) continue
    yield Buffer.from(`${lines.join('\n')}\n`)
    lines = []
    length = 0
  }
  if (lines.length > 0) yield Buffer.from(`${lines.join('\n')}\n`)
}

/**
 * The lines of a block that was cut between lines. @throws BackupError CATALOG_DAMAGED when it was
 * not
 */
export function parseLines(block: Buffer): string[] {
  if (block.at(-1) !== 10) throw damaged('a block does not end with a line')
  return block.toString('utf8', 0, block.length - 1).split('\n')
}

function encodeFacts({
  isDirectory,
  filesystem,
  entries,
  bytes,
  mounts,
}: Omit<SourceFacts, 'path'>): Record<string, unknown> {
  const kind = isDirectory ? 'directory' : 'file'
  const known = { kind, filesystem, entries, bytes }
  return mounts.length === 0 ? known : { ...known, mounts: mounts.map(encodedPath) }
}

function parseFacts(object: Readonly<Record<string, unknown>>): Pick<SourceRecord, 'facts'> {
  if (object['filesystem'] === undefined) return {}
  const facts = {
    isDirectory: object['kind'] === 'directory',
    filesystem: text(object['filesystem']),
    entries: count(object['entries'], 'entries'),
    bytes: count(object['bytes'], 'bytes'),
    mounts: list(object['mounts'] ?? []).map((value) => requiredPath(asObject(value))),
  }
  return { facts }
}

function encodedPath(path: RawPath): Record<string, unknown> {
  const out: Record<string, unknown> = {}
  putPath(out, { name: 'path', path })
  return out
}

function parseMissing(value: unknown): MissingPath {
  const object = asObject(value)
  return { path: requiredPath(object), why: text(object['why']) }
}

function parseSource(value: unknown): SourceRecord {
  const object = asObject(value)
  const snapshot = parseSnapshotKind(object['snapshot'])
  return { path: requiredPath(object), snapshot, time: text(object['time']), ...parseFacts(object) }
}

/** Also for the manifest, which repeats it. @throws BackupError CATALOG_DAMAGED */
export function parseSnapshotKind(value: unknown): SourceRecord['snapshot'] {
  const kind = [...SNAPSHOT_KINDS, 'none' as const].find((one) => one === value)
  if (kind === undefined) throw damaged('a source has an unknown snapshot')
  return kind
}

function requiredPath(object: Readonly<Record<string, unknown>>): RawPath {
  const path = takePath(object, 'path')
  if (path === undefined) throw damaged('a path is missing')
  return path
}

function asObject(value: unknown): Readonly<Record<string, unknown>> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw damaged('an object is missing')
  return value as Readonly<Record<string, unknown>>
}

function damaged(message: string): BackupError {
  return new BackupError('CATALOG_DAMAGED', `a collection's catalog is malformed: ${message}`)
}
