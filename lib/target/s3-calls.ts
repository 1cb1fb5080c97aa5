// The calls of an S3 service that this program makes, as plain functions over plain data.
//
// s3-client.ts implements them with the SDK: signing, retries with jitter, the meaning of errors
// (s3-errors.ts). Everything else sees no SDK. "Not there" is undefined; a call that the service
// does not know is 'unsupported' where that is in the type; a refusal throws TARGET_DENIED with
// facts.s3 = the service's own code. Times are milliseconds since 1970.

import type { Buffer } from 'node:buffer'
import type { LifecycleRule, ObjectLock, PublicAccessBlock } from '../model/bucket-facts.ts'

export interface S3Object {
  readonly key: string
  readonly sizeBytes: number
  readonly etag: string
  readonly lastModifiedMs: number
  /** STANDARD where the service says nothing. */
  readonly storageClass: string
}

/** What a HEAD tells besides. */
export interface S3Head extends S3Object {
  readonly versionId: string | undefined
  /** Our own metadata, `x-amz-meta-…`, names in lower case. */
  readonly metadata: Readonly<Record<string, string>>
  /** Full-object checksum in base64, where the service keeps one. */
  readonly crc32: string | undefined
  readonly restore:
    { readonly isOngoing: boolean; readonly expiryMs: number | undefined } | undefined
  readonly lock: S3Lock | undefined
}

export interface S3Lock {
  readonly mode: 'GOVERNANCE' | 'COMPLIANCE'
  readonly untilMs: number
}

export interface S3Version extends S3Object {
  readonly versionId: string
  readonly isLatest: boolean
  /** A deletion that hides the versions before it. */
  readonly isDeleteMarker: boolean
}

export interface S3PutOptions {
  readonly key: string
  readonly body: Buffer
  /** If-None-Match: *; the call gives 'taken' where the service says that the key is there. */
  readonly ifAbsent?: boolean
  readonly storageClass?: string
  readonly metadata?: Readonly<Record<string, string>>
  /** Base64; sent as Content-MD5. */
  readonly md5?: string
  /** Base64 of the big-endian CRC-32; sent as x-amz-checksum-crc32. */
  readonly crc32?: string
  readonly lock?: S3Lock
}

export interface S3UploadOptions {
  readonly key: string
  readonly storageClass?: string
  readonly metadata?: Readonly<Record<string, string>>
  /** Whether a full-object CRC-32 will be given at the end. */
  readonly withCrc32?: boolean
  readonly lock?: S3Lock
}

export interface S3Part {
  readonly number: number
  readonly sizeBytes: number
  readonly etag: string
  /** Base64, where the service keeps one. */
  readonly crc32: string | undefined
}

export type Unsupported = 'unsupported'

export interface S3Calls {
  readonly bucket: string

  head(key: string, versionId?: string): Promise<S3Head | undefined>
  /** Fewer bytes where the object ends; without a range the whole of it. */
  get(
    key: string,
    of?: { readonly offset?: number; readonly length?: number; readonly versionId?: string },
  ): Promise<Buffer | undefined>
  /** All objects below a prefix, in order of their keys. */
  list(prefix: string): Promise<readonly S3Object[]>
  /**
   * What is directly below a prefix that ends in a slash: objects, and `folders` by their names.
   */
  listFolder(
    prefix: string,
  ): Promise<{ readonly objects: readonly S3Object[]; readonly folders: readonly string[] }>
  /** All versions and delete markers, newest first within each key. */
  listVersions(prefix: string): Promise<readonly S3Version[] | Unsupported>
  put(options: S3PutOptions): Promise<'written' | 'taken'>
  copy(of: {
    readonly from: string
    readonly versionId?: string
    readonly to: string
    readonly storageClass?: string
    readonly metadata?: Readonly<Record<string, string>>
  }): Promise<void>
  /** With a version: that version or marker, for good. Nothing happens where it is not there. */
  remove(key: string, versionId?: string): Promise<void>

  createUpload(options: S3UploadOptions): Promise<string>
  putPart(of: {
    readonly key: string
    readonly uploadId: string
    readonly number: number
    readonly body: Buffer
    readonly md5?: string
    readonly crc32?: string
  }): Promise<S3Part>
  /** Undefined where the upload is not known any more. */
  listParts(key: string, uploadId: string): Promise<readonly S3Part[] | undefined>
  completeUpload(of: {
    readonly key: string
    readonly uploadId: string
    readonly parts: readonly S3Part[]
    /** Of the whole object, base64. */
    readonly crc32?: string
    readonly ifAbsent?: boolean
  }): Promise<'written' | 'taken'>
  abortUpload(key: string, uploadId: string): Promise<void>
  listUploads(
    prefix: string,
  ): Promise<
    readonly { readonly key: string; readonly uploadId: string; readonly begunMs: number }[]
  >

  /** Asks for a copy of a cold object that can be read for some days. */
  thaw(of: {
    readonly key: string
    readonly versionId?: string
    readonly days: number
    readonly tier: 'Bulk' | 'Standard' | 'Expedited'
  }): Promise<'requested' | 'ongoing' | 'extended' | Unsupported>

  getLock(key: string, versionId?: string): Promise<S3Lock | undefined | Unsupported>
  setLock(of: {
    readonly key: string
    readonly versionId?: string
    readonly lock: S3Lock
    /** To shorten one of mode GOVERNANCE. */
    readonly bypass?: boolean
  }): Promise<void>

  bucketExists(): Promise<boolean>
  getLocation(): Promise<string | undefined | Unsupported>
  getVersioning(): Promise<'on' | 'suspended' | 'off' | Unsupported>
  /** `off`, or the default retention where there is one. */
  getObjectLock(): Promise<ObjectLock | Unsupported>
  getLifecycle(): Promise<readonly LifecycleRule[] | Unsupported>
  getEncryption(): Promise<string | undefined | Unsupported>
  /** Undefined: none is set. */
  getPublicAccessBlock(): Promise<PublicAccessBlock | undefined | Unsupported>
  /** Of the whole account; only Amazon has one. */
  getAccountPublicAccessBlock(): Promise<PublicAccessBlock | undefined | Unsupported>
  /** Undefined: there is no policy. */
  isPolicyPublic(): Promise<boolean | undefined | Unsupported>
  getPolicy(): Promise<string | undefined | Unsupported>
  /** Grants to everybody or to everybody who is logged in. */
  publicGrants(): Promise<readonly string[] | Unsupported>
  getOwnership(): Promise<string | undefined | Unsupported>

  /** What was sent and received so far with these credentials. */
  usage(): {
    readonly writes: number
    readonly lists: number
    readonly reads: number
    readonly bytesSent: number
    readonly bytesReceived: number
  }
  close(): void
}
