// What the stand-in S3 server keeps: buckets, the versions of their objects, uploads that are not
// complete. And the rules of versioning: which version is current, what a new one or a deletion
// does to the others.
//
// Versions of a key are in order, newest first. Bodies are kept as they arrived, never copied.

import type { Buffer } from 'node:buffer'
import { randomBytes } from 'node:crypto'
import type { BucketOptions, Quirks } from '../s3-server.ts'
import { refuse } from './answer.ts'
import type { Algorithm, Checksums } from './checksums.ts'

export interface Lock {
  readonly mode: 'GOVERNANCE' | 'COMPLIANCE'
  readonly untilMs: number
}

/** A copy of an archived object: asked for, there from `readyMs`, gone at `expiryMs`. */
export interface ThawedCopy {
  readonly tier: string
  readonly days: number
  readonly readyMs: number
  readonly expiryMs: number
}

export interface Version {
  readonly versionId: string
  readonly isDeleteMarker: boolean
  body: Buffer
  /** Without quotes. */
  readonly etag: string
  readonly lastModifiedMs: number
  readonly storageClass: string
  readonly metadata: Readonly<Record<string, string>>
  readonly contentType: string
  readonly checksums: Checksums
  readonly checksumType: 'FULL_OBJECT' | 'COMPOSITE'
  lock: Lock | undefined
  thawed: ThawedCopy | undefined
}

export interface Part {
  readonly body: Buffer
  readonly md5: Buffer
  readonly checksums: Checksums
  readonly lastModifiedMs: number
}

export interface Upload {
  readonly uploadId: string
  readonly key: string
  readonly begunMs: number
  readonly storageClass: string
  readonly metadata: Readonly<Record<string, string>>
  readonly contentType: string
  readonly lock: Lock | undefined
  readonly checksum:
    { readonly algorithm: Algorithm; readonly type: 'FULL_OBJECT' | 'COMPOSITE' } | undefined
  readonly parts: Map<number, Part>
}

export interface StoredBucket {
  readonly name: string
  settings: BucketOptions
  versioning: 'on' | 'suspended' | 'off'
  /** The document that was put, or made from the settings. */
  lifecycleXml: string | undefined
  readonly objects: Map<string, Version[]>
  readonly uploads: Map<string, Upload>
}

/** All that operations see of the server. */
export interface World {
  readonly buckets: Map<string, StoredBucket>
  readonly quirks: Quirks
  readonly pageSize: number
  readonly minPartBytes: number
  nowMs(): number
}

export function newVersionId(): string {
  return randomBytes(24).toString('base64url')
}

/** The newest version, a delete marker or not. */
export function newestOf(bucket: StoredBucket, key: string): Version | undefined {
  return bucket.objects.get(key)?.[0]
}

/** The object as one sees it without naming a version. */
export function currentOf(bucket: StoredBucket, key: string): Version | undefined {
  const newest = newestOf(bucket, key)
  return newest?.isDeleteMarker === true ? undefined : newest
}

export function versionOf(
  bucket: StoredBucket,
  key: string,
  versionId: string,
): Version | undefined {
  return bucket.objects.get(key)?.find((version) => version.versionId === versionId)
}

/** The id that a new version gets: `null` unless versions are kept. */
export function nextVersionId(bucket: StoredBucket): string {
  return bucket.versioning === 'on' ? newVersionId() : 'null'
}

/** Makes a version the newest; one with the same id, which can only be `null`, goes. */
export function addVersion(bucket: StoredBucket, key: string, version: Version): void {
  const older = (bucket.objects.get(key) ?? []).filter(
    (other) => other.versionId !== version.versionId,
  )
  bucket.objects.set(key, [version, ...older])
}

export function removeVersion(bucket: StoredBucket, key: string, versionId: string): void {
  const left = (bucket.objects.get(key) ?? []).filter((other) => other.versionId !== versionId)
  if (left.length === 0) bucket.objects.delete(key)
  else bucket.objects.set(key, left)
}

export function bucketOf(world: World, name: string): StoredBucket {
  const bucket = world.buckets.get(name)
  return bucket ?? refuse(404, 'NoSuchBucket', 'The specified bucket does not exist')
}

/** Keys below a prefix, in the order of their UTF-8 bytes. */
export function sortedKeys(keys: Iterable<string>, prefix: string): string[] {
  return [...keys].filter((key) => key.startsWith(prefix)).sort(compareKeys)
}

/** Order of UTF-8 bytes; code units differ from it only where there are surrogates. */
export function compareKeys(one: string, other: string): number {
  const length = Math.min(one.length, other.length)
  for (let index = 0; index < length; index++) {
    const a = one.charCodeAt(index)
    const b = other.charCodeAt(index)
    if (a !== b) return rank(a) - rank(b)
  }
  return one.length - other.length
}

function rank(unit: number): number {
  return unit >= 0xd800 && unit < 0xe000 ? unit + 0x10000 : unit
}
