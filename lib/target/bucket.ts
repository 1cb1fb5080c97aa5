// What a bucket can do that no other target can: storage classes, versions, object lock, money.
//
// A part of the Target that s3.ts makes. Paths are relative to the repository as in target.ts. Used
// by lib/work/{thaw,hidden,bucket-locks,doctor-bucket}.ts. Everything throws as a Target does; what
// a service does not offer is undefined, never a guess.

import type { S3Calls, S3Version } from './s3-calls.ts'

/** How an object can be read. */
export type Warmth =
  | { readonly kind: 'hot' }
  /** Has to be requested, and then waited for. */
  | { readonly kind: 'cold' }
  | { readonly kind: 'thawing' }
  /** Can be read until then. */
  | { readonly kind: 'thawed'; readonly untilMs: number }

/** What a probe of the bucket showed; docs/buckets.md tells what each is for. */
export interface Capabilities {
  /** When it was probed. */
  readonly probedMs: number
  /** A wrong checksum of a whole object is refused: by which of these. */
  readonly checksum: 'crc32' | 'md5' | 'none'
  /** A wrong full-object CRC-32 at the end of a multipart upload is refused. */
  readonly multipartChecksum: 'crc32' | 'none'
  /** If-None-Match is honoured by PutObject, and at the end of a multipart upload. */
  readonly conditionalPut: boolean
  readonly conditionalComplete: boolean
}

/** What was sent and received, for the bill. */
export interface BucketUsage {
  /** PUT, COPY, POST, and parts. */
  readonly writes: number
  readonly lists: number
  /** GET and HEAD. */
  readonly reads: number
  readonly bytesSent: number
  readonly bytesReceived: number
}

export interface Bucket {
  /** The calls of the service, with the credentials of backups. */
  readonly calls: S3Calls
  /** The same with those of whoever may delete; the same ones where no admin profile is named. */
  readonly adminCalls: S3Calls
  /** The key of a path in the repository, and the inverse (undefined for a key of others). */
  keyOf(path: string): string
  pathOf(key: string): string | undefined
  /** The class that publish() gives an object of this path and size. */
  storageClassFor(path: string, sizeBytes: number): string
  /** As found by the last probe, or by one now. */
  capabilities(): Promise<Capabilities>
  warmthOf(path: string): Promise<Warmth | undefined>
  /** From now on ranges and the size of a path are those of this version, not of the newest. */
  preferVersion(path: string, version: Pick<S3Version, 'versionId' | 'sizeBytes'>): void
  usage(): BucketUsage
  /** What was deleted or overwritten, and is read from an older version all the same: paths. */
  olderReads(): readonly string[]
}
