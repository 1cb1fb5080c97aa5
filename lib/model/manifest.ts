// The record that makes an export exist (docs/format.md §9). encodeManifest and parseManifest are
// inverses.
//
// Parse only what verified: the signature comes first. parseManifest throws MANIFEST_DAMAGED, or
// TARGET_FORMAT for one that a newer version wrote.

import { Buffer } from 'node:buffer'
import { BackupError } from '../errors.ts'
import { type MissingPath, parseSnapshotKind, type SourceRecord } from './collection.ts'
import {
  type FrameRange,
  count,
  list,
  parseObject,
  putPath,
  record,
  takePath,
  text,
} from './entry.ts'
import type { RawPath } from './raw-path.ts'
import { parseBundleName, parseDigest, parseFrames } from './shard.ts'

export const FORMAT = 1

/** Nobody has a million bundles; a manifest larger than this is an attack on memory. */
export const MAX_MANIFEST_BYTES = 256 * 1024 * 1024

export interface ManifestBundle {
  readonly name: string
  readonly sizeBytes: number
  readonly sha256: string
}

export interface IndexPlace {
  readonly digest: string
  readonly bundle: string
  readonly tar: readonly [offset: number, length: number]
  readonly frames: readonly FrameRange[]
  readonly shards: number
}

export interface ExportStatistics {
  readonly entries: number
  readonly files: number
  /** Bytes of the files, as `ls` shows them. */
  readonly bytes: number
  /** Bytes that were read and packed for this export. */
  readonly newBytes: number
  /** What its own bundles take on the target. */
  readonly storedBytes: number
}

export interface Manifest {
  readonly repository: string
  readonly machine: string
  readonly set: string
  readonly stamp: string
  readonly previous: { readonly stamp: string; readonly sha256: string } | null
  readonly complete: boolean
  readonly missing: readonly MissingPath[]
  readonly sources: readonly SourceRecord[]
  readonly index: IndexPlace
  readonly bundles: readonly ManifestBundle[]
  readonly statistics: ExportStatistics
}

/** `<machine>/<set>/<stamp>`: what signatures are bound to. */
export function exportName(of: Pick<Manifest, 'machine' | 'set' | 'stamp'>): string {
  return `${of.machine}/${of.set}/${of.stamp}`
}

export function encodeManifest(manifest: Manifest): Buffer {
  const { repository, machine, set, stamp, previous, complete, index, statistics } = manifest
  const missing = manifest.missing.map(encodePlace)
  const sources = manifest.sources.map(encodePlace)
  const bundles = manifest.bundles.map(({ name, sizeBytes, sha256 }) => ({
    name,
    size: sizeBytes,
    sha256,
  }))
  return Buffer.from(
    `${JSON.stringify(
      {
        format: FORMAT,
        repository,
        machine,
        set,
        stamp,
        previous,
        complete,
        missing,
        sources,
        index,
        bundles,
        statistics,
      },
      null,
      1,
    )}\n`,
  )
}

/** @throws BackupError MANIFEST_DAMAGED or TARGET_FORMAT */
export function parseManifest(bytes: Buffer): Manifest {
  try {
    return readManifest(parseObject(bytes.toString('utf8')))
  } catch (cause) {
    if (cause instanceof BackupError && cause.code !== 'CATALOG_DAMAGED') throw cause
    const message = cause instanceof Error ? cause.message : String(cause)
    throw new BackupError('MANIFEST_DAMAGED', `a manifest is malformed: ${message}`, { cause })
  }
}

function readManifest(object: Readonly<Record<string, unknown>>): Manifest {
  checkFormat(object['format'])
  const statistics = record(object['statistics'])
  const index = record(object['index'])
  const [offset, length] = list(index['tar'])
  return {
    repository: text(object['repository']),
    machine: text(object['machine']),
    set: text(object['set']),
    stamp: text(object['stamp']),
    previous: readPrevious(object['previous']),
    complete: yesOrNo(object['complete']),
    missing: list(object['missing']).map((item) => ({
      path: place(record(item)),
      why: text(record(item)['why']),
    })),
    sources: list(object['sources']).map(readSource),
    index: {
      digest: parseDigest(index['digest']),
      bundle: parseBundleName(index['bundle']),
      tar: [count(offset, 'index'), count(length, 'index')],
      frames: parseFrames(index['frames']),
      shards: count(index['shards'], 'shards'),
    },
    bundles: list(object['bundles']).map((item) => ({
      name: parseBundleName(record(item)['name']),
      sizeBytes: count(record(item)['size'], 'size'),
      sha256: parseDigest(record(item)['sha256']),
    })),
    statistics: {
      entries: count(statistics['entries'], 'entries'),
      files: count(statistics['files'], 'files'),
      bytes: count(statistics['bytes'], 'bytes'),
      newBytes: count(statistics['newBytes'], 'newBytes'),
      storedBytes: count(statistics['storedBytes'], 'storedBytes'),
    },
  }
}

/** @throws BackupError TARGET_FORMAT for a newer format, MANIFEST_DAMAGED for none */
export function checkFormat(format: unknown): void {
  if (format === FORMAT) return
  if (typeof format === 'number' && format > FORMAT) {
    throw new BackupError('TARGET_FORMAT', `this was written in format ${format}`, {
      hint: `this program reads format ${FORMAT}: install a newer one; nothing was changed`,
    })
  }
  throw new BackupError('MANIFEST_DAMAGED', 'there is no format number')
}

function readPrevious(value: unknown): Manifest['previous'] {
  if (value === null) return null
  return { stamp: text(record(value)['stamp']), sha256: parseDigest(record(value)['sha256']) }
}

function encodePlace<T extends { readonly path: string }>(item: T): Record<string, unknown> {
  const { path, ...rest } = item
  const out: Record<string, unknown> = {}
  putPath(out, { name: 'path', path })
  return { ...out, ...rest }
}

function place(object: Readonly<Record<string, unknown>>): RawPath {
  const path = takePath(object, 'path')
  if (path !== undefined) return path
  throw new BackupError('CATALOG_DAMAGED', 'a path is missing')
}

function readSource(value: unknown): SourceRecord {
  const source = record(value)
  const snapshot = parseSnapshotKind(source['snapshot'])
  return { path: place(source), snapshot, time: text(source['time']) }
}

function yesOrNo(value: unknown): boolean {
  if (typeof value === 'boolean') return value
  throw new BackupError('CATALOG_DAMAGED', 'a yes or no is missing')
}
