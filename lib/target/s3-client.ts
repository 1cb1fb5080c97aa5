// The calls of an S3 service, done with the SDK: the only file that knows client-s3.
//
// Implements s3-calls.ts. No default of the SDK is trusted: checksums are ours, nothing is followed
// to another region, every wait has a limit, and retries are done here, so that a body that breaks
// off is tried again like a reset connection. Credentials come by the SDK's own chain and are seen
// by nobody else. Throws what s3-errors.ts makes of the SDK's errors.

import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  CopyObjectCommand,
  CreateMultipartUploadCommand,
  DeleteObjectCommand,
  GetBucketAclCommand,
  GetBucketEncryptionCommand,
  GetBucketLifecycleConfigurationCommand,
  GetBucketLocationCommand,
  GetBucketOwnershipControlsCommand,
  GetBucketPolicyCommand,
  GetBucketPolicyStatusCommand,
  GetBucketVersioningCommand,
  GetObjectCommand,
  type GetObjectCommandOutput,
  GetObjectLockConfigurationCommand,
  GetObjectRetentionCommand,
  GetPublicAccessBlockCommand,
  HeadObjectCommand,
  type HeadObjectCommandOutput,
  type LifecycleRule,
  ListMultipartUploadsCommand,
  ListObjectVersionsCommand,
  ListObjectsV2Command,
  type ListObjectsV2CommandOutput,
  ListPartsCommand,
  PutObjectCommand,
  PutObjectRetentionCommand,
  RestoreObjectCommand,
  S3Client,
  type StorageClass,
  UploadPartCommand,
} from '@aws-sdk/client-s3'
import type { LifecycleRule as BucketRule } from '../model/bucket-facts.ts'
import { BackupError } from '../errors.ts'
import type {
  S3Calls,
  S3Head,
  S3Lock,
  S3Object,
  S3Part,
  S3Version,
  Unsupported,
} from './s3-calls.ts'
import { isConnectionTrouble, isWorthRetrying, s3Error, TruncatedBody } from './s3-errors.ts'

export interface S3ClientOptions {
  readonly bucket: string
  /** Undefined: the profile's; with an endpoint of one's own the name that all of them take. */
  readonly region: string | undefined
  /** Undefined for Amazon's own. */
  readonly endpoint: string | undefined
  readonly isPathStyle: boolean
  /** Of ~/.aws; undefined for whatever the environment offers. */
  readonly profile: string | undefined
  /** Where no more than so much is sent in a second. */
  readonly pacing?: Pacing | undefined
  /** The first wait before a call is tried again is up to that. */
  readonly firstDelayMs?: number
}

export interface Pacing {
  /** Bodies are sent in slices of that size. */
  readonly sliceBytes: number
  /** Returns when that many bytes may be sent. */
  readonly pace: (bytes: number) => Promise<void>
}

/** What compatible services accept where no region is named. */
const ANY_REGION = 'us-east-1'

const CONNECT_TIMEOUT_MS = 10_000
/** Without a byte in either direction. Ceph and B2 may think for half a minute. */
const IDLE_TIMEOUT_MS = 60_000
/** For one call, whatever happens: the largest part over a slow line takes its time. */
const CALL_TIMEOUT_MS = 2 * 3600_000
/** More than the streams of any sensible configuration. */
const MAX_SOCKETS = 64

const ATTEMPTS = 8
/** Of a service that answered before: a line that is down for a minute is waited for. */
const AWAY_ATTEMPTS = 12
/** A service that never answered yet is not waited for as long as one that went away. */
const FIRST_ATTEMPTS = 3
const FIRST_DELAY_MS = 200
const MAX_DELAY_MS = 20_000
/** After that no call is begun again. */
const MAX_RETRY_MS = 5 * 60_000

const SILENT = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} }

/** A listing of more pages than that goes in circles. */
const MAX_PAGES = 1_000_000
/** A service that never stops naming objects must not fill the memory. */
const MAX_OBJECTS = 10_000_000

/** What services say to calls that they do not have. */
const UNSUPPORTED_CODES = [
  ...['NotImplemented', 'MethodNotAllowed', 'UnsupportedOperation', 'NotSupported'],
  ...['XNotImplemented', 'UnsupportedArgument', 'NotFound'],
]

/** A delete marker is answered with "method not allowed" where it is asked for by its version. */
const MISSING_CODES = ['NotFound', 'NoSuchKey', 'NoSuchVersion', 'MethodNotAllowed']

const TAKEN_CODES = ['PreconditionFailed']

/** For whom a grant is one to everybody. */
const EVERYBODY = [
  'http://acs.amazonaws.com/groups/global/AllUsers',
  'http://acs.amazonaws.com/groups/global/AuthenticatedUsers',
]

/** One call, for its bill and its error. */
interface Call {
  /** The right that it needs. */
  readonly action: string
  readonly key?: string | undefined
  readonly bill: 'write' | 'list' | 'read' | 'free'
  readonly sends?: number
}

/** The calls of one bucket with one profile's credentials. Nothing is sent before the first. */
export function createS3Calls(of: S3ClientOptions): S3Calls {
  const { bucket, endpoint, profile, pacing, firstDelayMs = FIRST_DELAY_MS } = of
  const region = of.region ?? (endpoint === undefined ? undefined : ANY_REGION)
  const client = newClient({ ...of, region })
  signPaced(client)
  const used = { writes: 0, lists: 0, reads: 0, bytesSent: 0, bytesReceived: 0 }
  let hasAnswered = false

  /** Does one call, again and again where that is worth it. */
  async function attempt<T>(call: Call, send: () => Promise<T>): Promise<T> {
    const begunMs = performance.now()
    for (let number = 1; ; number += 1) {
      count(call)
      try {
        const answer = await send()
        hasAnswered = true
        return answer
      } catch (error) {
        const away = hasAnswered ? AWAY_ATTEMPTS : FIRST_ATTEMPTS
        const attempts = isConnectionTrouble(error) ? away : ATTEMPTS
        const isOver = number >= attempts || performance.now() - begunMs > MAX_RETRY_MS
        if (isOver || !isWorthRetrying(error)) {
          const { action, key } = call
          const nowMs = Date.now()
          throw s3Error(error, { action, bucket, key, endpoint, region, profile, nowMs })
        }
        // Full jitter: whoever was refused together does not come back together.
        const capMs = (MAX_DELAY_MS * firstDelayMs) / FIRST_DELAY_MS
        const mostMs = Math.min(capMs, firstDelayMs * 2 ** (number - 1))
        await sleep(Math.random() * mostMs)
      }
    }
  }

  /**
   * How a bucket is set; undefined where nothing is, which the service says by the code `unset`.
   */
  async function setting<T>(
    action: string,
    { ask, unset }: { readonly ask: () => Promise<T>; readonly unset: string },
  ): Promise<T | undefined | Unsupported> {
    const asked = attempt(read(action), ask)
    return await unlessUnsupported(orElse({ codes: [unset], give: undefined, from: asked }))
  }

  function count({ bill, sends = 0 }: Call): void {
    if (bill === 'write') used.writes += 1
    if (bill === 'list') used.lists += 1
    if (bill === 'read') used.reads += 1
    used.bytesSent += sends
  }

  async function head(key: string, versionId?: string): Promise<S3Head | undefined> {
    const named = { Bucket: bucket, Key: key, ...given({ VersionId: versionId }) }
    const command = new HeadObjectCommand({ ...named, ChecksumMode: 'ENABLED' })
    const call = { action: 's3:GetObject', key, bill: 'read' } as const
    const ask = () =>
      orElse({
        codes: MISSING_CODES,
        give: undefined,
        from: attempt(call, () => client.send(command)),
      })
    const answer = await ask().catch(async (error: unknown) => {
      if (!(error instanceof BackupError) || error.facts['s3'] !== 'BadRequest') throw error
      // An answer to a HEAD has no body to say what is wrong; that to a GET has.
      await receive({ key, offset: 0, length: 1, versionId })
      return await ask()
    })
    return answer === undefined ? undefined : headOf(key, answer)
  }

  async function receive(of: {
    readonly key: string
    readonly offset: number
    readonly length: number | undefined
    readonly versionId: string | undefined
  }): Promise<Buffer> {
    const { key, offset, length, versionId: VersionId } = of
    const last = length === undefined ? '' : offset + length - 1
    const isWhole = offset === 0 && length === undefined
    const Range = isWhole ? undefined : `bytes=${offset}-${last}`
    return await attempt({ action: 's3:GetObject', key, bill: 'read' }, async () => {
      const input = { Bucket: bucket, Key: key, ...given({ Range, VersionId }) }
      const answer = await client.send(new GetObjectCommand(input))
      // A service may give more than it was asked for, and then does not say which range it is.
      const isRange = isWhole || answer.ContentRange !== undefined
      const begin = isRange ? 0 : offset
      const end = length === undefined ? Infinity : begin + length
      const body = await bodyOf(answer, end)
      used.bytesReceived += body.length
      return body.subarray(begin)
    })
  }

  async function* pages(
    prefix: string,
    delimiter?: string,
  ): AsyncGenerator<ListObjectsV2CommandOutput> {
    let ContinuationToken: string | undefined
    for (let page = 0; page < MAX_PAGES; page += 1) {
      const command = new ListObjectsV2Command({
        Bucket: bucket,
        Prefix: prefix,
        // Names of others may hold what XML cannot.
        EncodingType: 'url',
        ...given({ Delimiter: delimiter, ContinuationToken }),
      })
      const call = { action: 's3:ListBucket', bill: 'list' } as const
      const answer = await attempt(call, () => client.send(command))
      refuseNoListing(answer.Name ?? answer.KeyCount)
      yield answer
      if (answer.IsTruncated !== true) return
      refuseCircle(ContinuationToken, answer.NextContinuationToken)
      ContinuationToken = answer.NextContinuationToken
    }
    throw tooLong()
  }

  const read = (action: string) => ({ action, bill: 'read' }) as const

  return {
    bucket,

    head,

    async get(key, { offset = 0, length, versionId } = {}) {
      // No range is empty: whether there is something has to be asked otherwise.
      if (length === 0) return (await head(key, versionId)) && Buffer.alloc(0)
      return await orElse({
        codes: MISSING_CODES,
        give: undefined,
        from: orElse({
          codes: ['InvalidRange', 'RequestedRangeNotSatisfiable'],
          give: Buffer.alloc(0),
          from: receive({ key, offset, length, versionId }),
        }),
      })
    },

    async list(prefix) {
      const found: S3Object[] = []
      for await (const page of pages(prefix)) {
        for (const object of objectsOf(page)) found.push(object)
        if (found.length > MAX_OBJECTS) throw tooLong()
      }
      return found.sort(byKey)
    },

    async listFolder(prefix) {
      const objects: S3Object[] = []
      const folders: string[] = []
      for await (const page of pages(prefix, '/')) {
        // A console makes empty objects of the folder's own name.
        for (const object of objectsOf(page)) if (object.key !== prefix) objects.push(object)
        for (const { Prefix } of page.CommonPrefixes ?? []) {
          const folder = decoded(Prefix ?? '', page.EncodingType)
          folders.push(folder.slice(prefix.length, -1))
        }
        if (objects.length + folders.length > MAX_OBJECTS) throw tooLong()
      }
      return { objects: objects.sort(byKey), folders: folders.sort() }
    },

    async listVersions(prefix) {
      const found: S3Version[] = []
      let KeyMarker: string | undefined
      let VersionIdMarker: string | undefined
      for (let page = 0; page < MAX_PAGES; page += 1) {
        const markers = given({ KeyMarker, VersionIdMarker })
        const input = { Bucket: bucket, Prefix: prefix, EncodingType: 'url', ...markers } as const
        const command = new ListObjectVersionsCommand(input)
        const call = { action: 's3:ListBucketVersions', bill: 'list' } as const
        const answer = await unlessUnsupported(attempt(call, () => client.send(command)))
        if (answer === 'unsupported') return answer
        refuseNoListing(answer.Name)
        const { EncodingType: encoding } = answer
        for (const version of answer.Versions ?? []) {
          found.push({ ...versionOf(version, encoding), isDeleteMarker: false })
        }
        for (const marker of answer.DeleteMarkers ?? []) {
          found.push({ ...versionOf(marker, encoding), isDeleteMarker: true })
        }
        if (found.length > MAX_OBJECTS) throw tooLong()
        if (answer.IsTruncated !== true) break
        const next = decoded(answer.NextKeyMarker ?? '', encoding)
        refuseCircle(`${KeyMarker} ${VersionIdMarker}`, `${next} ${answer.NextVersionIdMarker}`)
        KeyMarker = next
        VersionIdMarker = answer.NextVersionIdMarker
      }
      return found.sort((one, other) => byKey(one, other) || newestFirst(one, other))
    },

    async put({ key, body, ifAbsent = false, md5, crc32, lock, ...rest }) {
      // A lock wants a digest.
      const isBare = md5 === undefined && crc32 === undefined
      const ContentMD5 = isBare && lock !== undefined ? md5Of(body) : md5
      const input = {
        Bucket: bucket,
        Key: key,
        ContentLength: body.length,
        ...given({ ContentMD5, ChecksumCRC32: crc32 }),
        ...(ifAbsent ? { IfNoneMatch: '*' } : {}),
        ...described(rest),
        ...locked(lock),
      }
      const call = { action: 's3:PutObject', key, bill: 'write', sends: body.length } as const
      const sent = attempt(call, async () => {
        const command = new PutObjectCommand({ ...input, Body: sendable(body, pacing) })
        return await client.send(command)
      })
      return await orElse({
        codes: TAKEN_CODES,
        give: 'taken' as const,
        // A page of some proxy comes with a good status, too.
        from: sent.then(({ ETag }) => {
          if (ETag === undefined) throw noAnswer(bucket, 'ETag')
          return 'written' as const
        }),
      })
    },

    async copy({ from, versionId, to, storageClass, metadata }) {
      const version = versionId === undefined ? '' : `?versionId=${encodeURIComponent(versionId)}`
      const source = [bucket, ...from.split('/')].map(encodeURIComponent).join('/')
      const command = new CopyObjectCommand({
        Bucket: bucket,
        Key: to,
        CopySource: `${source}${version}`,
        MetadataDirective: metadata === undefined ? 'COPY' : 'REPLACE',
        ...described({ ...given({ storageClass, metadata }) }),
      })
      const call = { action: 's3:PutObject', key: to, bill: 'write' } as const
      await attempt(call, () => client.send(command))
    },

    async remove(key, versionId) {
      const VersionId = versionId
      const action = versionId === undefined ? 's3:DeleteObject' : 's3:DeleteObjectVersion'
      const command = new DeleteObjectCommand({ Bucket: bucket, Key: key, ...given({ VersionId }) })
      const call = { action, key, bill: 'free' } as const
      const codes = ['NoSuchKey', 'NoSuchVersion', 'NotFound']
      await orElse({ codes, give: undefined, from: attempt(call, () => client.send(command)) })
    },

    async createUpload({ key, withCrc32 = false, lock, ...rest }) {
      const checksum = { ChecksumAlgorithm: 'CRC32', ChecksumType: 'FULL_OBJECT' } as const
      const command = new CreateMultipartUploadCommand({
        Bucket: bucket,
        Key: key,
        ...(withCrc32 ? checksum : {}),
        ...described(rest),
        ...locked(lock),
      })
      const call = { action: 's3:PutObject', key, bill: 'write' } as const
      const { UploadId: id } = await attempt(call, () => client.send(command))
      if (id === undefined) throw noAnswer(bucket, 'UploadId')
      return id
    },

    async putPart({ key, uploadId, number, body, md5, crc32 }) {
      const input = {
        Bucket: bucket,
        Key: key,
        UploadId: uploadId,
        PartNumber: number,
        ContentLength: body.length,
        ...given({ ContentMD5: md5, ChecksumCRC32: crc32 }),
      }
      const call = { action: 's3:PutObject', key, bill: 'write', sends: body.length } as const
      const { ETag: etag } = await attempt(call, async () => {
        const command = new UploadPartCommand({ ...input, Body: sendable(body, pacing) })
        return await client.send(command)
      })
      if (etag === undefined) throw noAnswer(bucket, 'ETag')
      return { number, sizeBytes: body.length, etag: unquoted(etag), crc32 }
    },

    async listParts(key, uploadId) {
      const parts: S3Part[] = []
      let PartNumberMarker: string | undefined
      for (let page = 0; page < MAX_PAGES; page += 1) {
        const named = { Bucket: bucket, Key: key, UploadId: uploadId }
        const command = new ListPartsCommand({ ...named, ...given({ PartNumberMarker }) })
        const call = { action: 's3:ListMultipartUploadParts', key, bill: 'list' } as const
        const answer = await orElse({
          codes: ['NoSuchUpload', 'NotFound', 'NoSuchKey'],
          give: undefined,
          from: attempt(call, () => client.send(command)),
        })
        if (answer === undefined) return undefined
        for (const { PartNumber, Size, ETag, ChecksumCRC32: crc32 } of answer.Parts ?? []) {
          const sizeBytes = Size ?? 0
          parts.push({ number: PartNumber ?? 0, sizeBytes, etag: unquoted(ETag), crc32 })
        }
        if (answer.IsTruncated !== true) break
        refuseCircle(PartNumberMarker, answer.NextPartNumberMarker)
        PartNumberMarker = answer.NextPartNumberMarker
      }
      return parts
    },

    async completeUpload({ key, uploadId, parts, crc32, ifAbsent = false }) {
      const command = new CompleteMultipartUploadCommand({
        Bucket: bucket,
        Key: key,
        UploadId: uploadId,
        MultipartUpload: {
          Parts: parts.map(({ number, etag, ...part }) => {
            const checksum = crc32 === undefined ? undefined : part.crc32
            return { PartNumber: number, ETag: `"${etag}"`, ...given({ ChecksumCRC32: checksum }) }
          }),
        },
        ...(crc32 === undefined ? {} : { ChecksumCRC32: crc32, ChecksumType: 'FULL_OBJECT' }),
        ...(ifAbsent ? { IfNoneMatch: '*' } : {}),
      })
      const call = { action: 's3:PutObject', key, bill: 'write' } as const
      const sent = attempt(call, () => client.send(command))
      return await orElse({
        codes: TAKEN_CODES,
        give: 'taken' as const,
        from: sent.then(({ ETag }) => {
          if (ETag === undefined) throw noAnswer(bucket, 'ETag')
          return 'written' as const
        }),
      })
    },

    async abortUpload(key, uploadId) {
      const named = { Bucket: bucket, Key: key, UploadId: uploadId }
      const command = new AbortMultipartUploadCommand(named)
      const call = { action: 's3:AbortMultipartUpload', key, bill: 'free' } as const
      const codes = ['NoSuchUpload', 'NotFound', 'NoSuchKey']
      await orElse({ codes, give: undefined, from: attempt(call, () => client.send(command)) })
    },

    async listUploads(prefix) {
      const found: { key: string; uploadId: string; begunMs: number }[] = []
      let KeyMarker: string | undefined
      let UploadIdMarker: string | undefined
      for (let page = 0; page < MAX_PAGES; page += 1) {
        const markers = given({ KeyMarker, UploadIdMarker })
        // Not encoded as other listings are: Ceph would do it and not say so.
        const input = { Bucket: bucket, Prefix: prefix, ...markers }
        const command = new ListMultipartUploadsCommand(input)
        const call = { action: 's3:ListBucketMultipartUploads', bill: 'list' } as const
        const answer = await attempt(call, () => client.send(command))
        for (const { Key, UploadId, Initiated } of answer.Uploads ?? []) {
          found.push({
            key: Key ?? '',
            uploadId: UploadId ?? '',
            begunMs: Initiated?.getTime() ?? 0,
          })
        }
        if (answer.IsTruncated !== true) break
        const { NextKeyMarker: next } = answer
        refuseCircle(`${KeyMarker} ${UploadIdMarker}`, `${next} ${answer.NextUploadIdMarker}`)
        KeyMarker = next
        UploadIdMarker = answer.NextUploadIdMarker
      }
      return found
    },

    async thaw({ key, versionId: VersionId, days, tier }) {
      const command = new RestoreObjectCommand({
        Bucket: bucket,
        Key: key,
        ...given({ VersionId }),
        RestoreRequest: { Days: days, GlacierJobParameters: { Tier: tier } },
      })
      const call = { action: 's3:RestoreObject', key, bill: 'write' } as const
      const asked = attempt(call, async () => {
        const { $metadata: metadata } = await client.send(command)
        return metadata.httpStatusCode === 200 ? ('extended' as const) : ('requested' as const)
      })
      const codes = ['RestoreAlreadyInProgress']
      return await unlessUnsupported(orElse({ codes, give: 'ongoing' as const, from: asked }), key)
    },

    async getLock(key, versionId) {
      const call = { action: 's3:GetObjectRetention', key, bill: 'read' } as const
      const VersionId = versionId
      const named = { Bucket: bucket, Key: key, ...given({ VersionId }) }
      const command = new GetObjectRetentionCommand(named)
      const answer = await unlessUnsupported(
        orElse({
          // The second is what a bucket without object lock says.
          codes: ['NoSuchObjectLockConfiguration', 'InvalidRequest', 'NoSuchKey'],
          give: undefined,
          from: attempt(call, () => client.send(command)),
        }),
        key,
      )
      if (answer === undefined || answer === 'unsupported') return answer
      const { Mode: mode, RetainUntilDate: until } = answer.Retention ?? {}
      return lockOf(mode, until)
    },

    async setLock({ key, versionId: VersionId, lock, bypass = false }) {
      const command = new PutObjectRetentionCommand({
        Bucket: bucket,
        Key: key,
        ...given({ VersionId }),
        Retention: { Mode: lock.mode, RetainUntilDate: new Date(lock.untilMs) },
        ...(bypass ? { BypassGovernanceRetention: true } : {}),
      })
      const action = bypass ? 's3:BypassGovernanceRetention' : 's3:PutObjectRetention'
      await attempt({ action, key, bill: 'write' }, () => client.send(command))
    },

    async bucketExists() {
      // Not a HEAD: the answer to that does not say what is wrong.
      const command = new ListObjectsV2Command({ Bucket: bucket, MaxKeys: 1 })
      const asked = attempt({ action: 's3:ListBucket', bill: 'list' }, async () => {
        await client.send(command)
        return true
      })
      return await orElse({ codes: ['NoSuchBucket', 'NotFound'], give: false, from: asked })
    },

    async getLocation() {
      const command = new GetBucketLocationCommand({ Bucket: bucket })
      const asked = attempt(read('s3:GetBucketLocation'), () => client.send(command))
      const answer = await unlessUnsupported(asked)
      if (answer === 'unsupported') return answer
      const { LocationConstraint: location } = answer
      // Amazon's first regions have names from before there were regions.
      if (location === 'EU') return 'eu-west-1'
      if (location !== undefined && location.length > 0) return location
      return endpoint === undefined ? 'us-east-1' : undefined
    },

    async getVersioning() {
      const command = new GetBucketVersioningCommand({ Bucket: bucket })
      const asked = attempt(read('s3:GetBucketVersioning'), () => client.send(command))
      const answer = await unlessUnsupported(asked)
      if (answer === 'unsupported') return answer
      if (answer.Status === 'Enabled') return 'on'
      return answer.Status === 'Suspended' ? 'suspended' : 'off'
    },

    async getObjectLock() {
      const command = new GetObjectLockConfigurationCommand({ Bucket: bucket })
      const call = read('s3:GetBucketObjectLockConfiguration')
      const asked = orElse({
        codes: ['ObjectLockConfigurationNotFoundError', 'InvalidRequest'],
        give: 'off' as const,
        from: attempt(call, () => client.send(command)),
      })
      const answer = await unlessUnsupported(asked)
      if (answer === 'off' || answer === 'unsupported') return answer
      const { ObjectLockEnabled: enabled, Rule: rule } = answer.ObjectLockConfiguration ?? {}
      if (enabled !== 'Enabled') return 'off'
      const { Mode: mode, Days, Years } = rule?.DefaultRetention ?? {}
      const days = Days ?? (Years === undefined ? undefined : Years * 365)
      return { mode, days: days === 0 ? undefined : days }
    },

    async getLifecycle() {
      const command = new GetBucketLifecycleConfigurationCommand({ Bucket: bucket })
      const answer = await setting('s3:GetLifecycleConfiguration', {
        ask: () => client.send(command),
        unset: 'NoSuchLifecycleConfiguration',
      })
      return answer === 'unsupported' ? answer : (answer?.Rules ?? []).map(ruleOf)
    },

    async getEncryption() {
      const command = new GetBucketEncryptionCommand({ Bucket: bucket })
      const answer = await setting('s3:GetEncryptionConfiguration', {
        ask: () => client.send(command),
        unset: 'ServerSideEncryptionConfigurationNotFoundError',
      })
      if (answer === 'unsupported') return answer
      const [rule] = answer?.ServerSideEncryptionConfiguration?.Rules ?? []
      return rule?.ApplyServerSideEncryptionByDefault?.SSEAlgorithm
    },

    async getPublicAccessBlock() {
      const command = new GetPublicAccessBlockCommand({ Bucket: bucket })
      const answer = await setting('s3:GetBucketPublicAccessBlock', {
        ask: () => client.send(command),
        unset: 'NoSuchPublicAccessBlockConfiguration',
      })
      if (answer === undefined || answer === 'unsupported') return answer
      const block = answer.PublicAccessBlockConfiguration
      return {
        blocksAcls: block?.BlockPublicAcls === true,
        ignoresAcls: block?.IgnorePublicAcls === true,
        blocksPolicy: block?.BlockPublicPolicy === true,
        restrictsBuckets: block?.RestrictPublicBuckets === true,
      }
    },

    async getAccountPublicAccessBlock() {
      if (endpoint !== undefined) return 'unsupported'
      const { accountPublicAccessBlock } = await import('./s3-account.ts')
      const timeouts = { connectTimeoutMs: CONNECT_TIMEOUT_MS, idleTimeoutMs: IDLE_TIMEOUT_MS }
      return await setting('s3:GetAccountPublicAccessBlock', {
        ask: async () => {
          const where = { region: await client.config.region(), profile }
          return await accountPublicAccessBlock({ ...where, ...timeouts })
        },
        unset: 'NoSuchPublicAccessBlockConfiguration',
      })
    },

    async isPolicyPublic() {
      const command = new GetBucketPolicyStatusCommand({ Bucket: bucket })
      const answer = await setting('s3:GetBucketPolicyStatus', {
        ask: () => client.send(command),
        unset: 'NoSuchBucketPolicy',
      })
      if (answer === undefined || answer === 'unsupported') return answer
      return answer.PolicyStatus?.IsPublic === true
    },

    async getPolicy() {
      const command = new GetBucketPolicyCommand({ Bucket: bucket })
      const answer = await setting('s3:GetBucketPolicy', {
        ask: () => client.send(command),
        unset: 'NoSuchBucketPolicy',
      })
      return answer === 'unsupported' ? answer : answer?.Policy
    },

    async publicGrants() {
      const command = new GetBucketAclCommand({ Bucket: bucket })
      const asked = attempt(read('s3:GetBucketAcl'), () => client.send(command))
      const answer = await unlessUnsupported(asked)
      if (answer === 'unsupported') return answer
      return (answer.Grants ?? [])
        .filter(({ Grantee: to }) => to?.URI !== undefined && EVERYBODY.includes(to.URI))
        .map(({ Grantee: to, Permission: what }) => `${what} to ${to?.URI?.split('/').at(-1)}`)
    },

    async getOwnership() {
      const command = new GetBucketOwnershipControlsCommand({ Bucket: bucket })
      const answer = await setting('s3:GetBucketOwnershipControls', {
        ask: () => client.send(command),
        unset: 'OwnershipControlsNotFoundError',
      })
      return answer === 'unsupported'
        ? answer
        : answer?.OwnershipControls?.Rules?.[0]?.ObjectOwnership
    },

    usage: () => ({ ...used }),
    close: () => client.destroy(),
  }
}

function newClient({ region, endpoint, isPathStyle, profile }: S3ClientOptions): S3Client {
  // The SDK would print that this Node is old; package.json pins a version that runs on it.
  process.env['AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED'] = 'true'
  const agent = { keepAlive: true, maxSockets: MAX_SOCKETS }
  return new S3Client({
    ...given({ region, endpoint, profile }),
    forcePathStyle: isPathStyle,
    maxAttempts: 1,
    // Or it would warn on the console, even where nothing logs.
    logger: SILENT,
    requestChecksumCalculation: 'WHEN_REQUIRED',
    responseChecksumValidation: 'WHEN_REQUIRED',
    followRegionRedirects: false,
    disableS3ExpressSessionAuth: true,
    useArnRegion: false,
    useAccelerateEndpoint: false,
    // It would cost a connection for each part.
    expectContinueHeader: false,
    requestHandler: {
      connectionTimeout: CONNECT_TIMEOUT_MS,
      socketTimeout: IDLE_TIMEOUT_MS,
      requestTimeout: CALL_TIMEOUT_MS,
      throwOnRequestTimeout: true,
      socketAcquisitionWarningTimeout: CALL_TIMEOUT_MS,
      ...{ httpAgent: agent, httpsAgent: agent },
    },
  })
}

/** What paced bodies hash to: the SDK cannot read a stream twice, and would leave it unsigned. */
const digests = new WeakMap<object, string>()

/** A body as it is sent: at once, or slice by slice at its pace. */
function sendable(body: Buffer, pacing: Pacing | undefined): Buffer | Readable {
  if (pacing === undefined) return body
  const { sliceBytes, pace } = pacing
  async function* slices(): AsyncGenerator<Buffer> {
    for (let offset = 0; offset < body.length; offset += sliceBytes) {
      const slice = body.subarray(offset, offset + sliceBytes)
      await pace(slice.length)
      yield slice
    }
  }
  const stream = Readable.from(slices(), { objectMode: false, highWaterMark: 1 })
  digests.set(stream, createHash('sha256').update(body).digest('hex'))
  return stream
}

function signPaced(client: S3Client): void {
  client.middlewareStack.add(
    (next) => async (of) => {
      const request = of.request as { readonly headers: Record<string, string>; body?: unknown }
      const digest = request.body instanceof Readable ? digests.get(request.body) : undefined
      if (digest !== undefined) request.headers['x-amz-content-sha256'] = digest
      return await next(of)
    },
    { step: 'build', name: 'signPaced' },
  )
}

/** The body of an answer, at most so much of it, and else as announced. @throws TruncatedBody */
async function bodyOf(answer: GetObjectCommandOutput, mostBytes: number): Promise<Buffer> {
  const { Body: body, ContentLength: expected } = answer
  const chunks: Buffer[] = []
  let received = 0
  // Leaving the loop ends the connection: whatever else comes is not waited for.
  for await (const chunk of (body ?? []) as AsyncIterable<Buffer>) {
    chunks.push(chunk)
    received += chunk.length
    if (received > mostBytes) break
  }
  if (expected !== undefined && received < Math.min(expected, mostBytes)) {
    throw new TruncatedBody({ expected, received })
  }
  return Buffer.concat(chunks, Math.min(received, mostBytes))
}

/** What a promise gives, or something else where the service answered with one of these codes. */
async function orElse<T, U>(of: {
  readonly codes: readonly string[]
  readonly give: U
  readonly from: Promise<T>
}): Promise<T | U> {
  try {
    return await of.from
  } catch (error) {
    if (error instanceof BackupError && of.codes.includes(String(error.facts['s3']))) return of.give
    throw error
  }
}

/** With a key, "not found" may mean the object. */
async function unlessUnsupported<T>(from: Promise<T>, key?: string): Promise<T | Unsupported> {
  const isObject = key !== undefined
  const codes = UNSUPPORTED_CODES.filter((code) => !isObject || code !== 'NotFound')
  return await orElse({ codes, give: 'unsupported' as const, from })
}

/** An object without what is undefined: the SDK tells the two apart. */
function given<T extends object>(of: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  const entries = Object.entries(of).filter(([, value]) => value !== undefined)
  return Object.fromEntries(entries) as { [K in keyof T]?: Exclude<T[K], undefined> }
}

function described(of: {
  readonly storageClass?: string
  readonly metadata?: Readonly<Record<string, string>>
}): { StorageClass?: StorageClass; Metadata?: Record<string, string> } {
  const { storageClass, metadata } = of
  const isUsual = storageClass === undefined || storageClass === 'STANDARD'
  return {
    ...(isUsual ? {} : { StorageClass: storageClass as StorageClass }),
    ...(metadata === undefined ? {} : { Metadata: { ...metadata } }),
  }
}

function locked(lock: S3Lock | undefined) {
  if (lock === undefined) return {}
  return { ObjectLockMode: lock.mode, ObjectLockRetainUntilDate: new Date(lock.untilMs) }
}

function lockOf(mode: string | undefined, until: Date | undefined): S3Lock | undefined {
  if (until === undefined || (mode !== 'GOVERNANCE' && mode !== 'COMPLIANCE')) return undefined
  return { mode, untilMs: until.getTime() }
}

function headOf(key: string, head: HeadObjectCommandOutput): S3Head {
  const crc32 = head.ChecksumCRC32
  // That of a multipart upload may be one of its parts' checksums, with their number.
  const isWhole = head.ChecksumType !== 'COMPOSITE' && crc32?.includes('-') === false
  const metadata: Record<string, string> = {}
  for (const [name, value] of Object.entries(head.Metadata ?? {})) {
    metadata[name.toLowerCase()] = value
  }
  return {
    key,
    sizeBytes: head.ContentLength ?? 0,
    etag: unquoted(head.ETag),
    lastModifiedMs: head.LastModified?.getTime() ?? 0,
    storageClass: head.StorageClass ?? 'STANDARD',
    versionId: head.VersionId,
    metadata,
    crc32: isWhole ? crc32 : undefined,
    restore: restoreOf(head.Restore),
    lock: lockOf(head.ObjectLockMode, head.ObjectLockRetainUntilDate),
  }
}

/** Of `ongoing-request="false", expiry-date="Fri, 21 Dec 2012 00:00:00 GMT"`. */
function restoreOf(text: string | undefined): S3Head['restore'] {
  if (text === undefined) return undefined
  const expiryMs = Date.parse(/expiry-date="([^"]*)"/.exec(text)?.[1] ?? '')
  return {
    isOngoing: /ongoing-request="true"/.test(text),
    expiryMs: Number.isNaN(expiryMs) ? undefined : expiryMs,
  }
}

function objectsOf({ Contents: contents, EncodingType }: ListObjectsV2CommandOutput): S3Object[] {
  return (contents ?? []).map((object) => ({
    key: decoded(object.Key ?? '', EncodingType),
    sizeBytes: object.Size ?? 0,
    etag: unquoted(object.ETag),
    lastModifiedMs: object.LastModified?.getTime() ?? 0,
    storageClass: object.StorageClass ?? 'STANDARD',
  }))
}

/** Of a version or a delete marker, which has less. */
function versionOf(
  version: {
    readonly Key?: string | undefined
    readonly VersionId?: string | undefined
    readonly IsLatest?: boolean | undefined
    readonly LastModified?: Date | undefined
    readonly Size?: number | undefined
    readonly ETag?: string | undefined
    readonly StorageClass?: string | undefined
  },
  encoding: string | undefined,
): Omit<S3Version, 'isDeleteMarker'> {
  return {
    key: decoded(version.Key ?? '', encoding),
    versionId: version.VersionId ?? 'null',
    isLatest: version.IsLatest === true,
    sizeBytes: version.Size ?? 0,
    etag: unquoted(version.ETag),
    lastModifiedMs: version.LastModified?.getTime() ?? 0,
    storageClass: version.StorageClass ?? 'STANDARD',
  }
}

function ruleOf(rule: LifecycleRule): BucketRule {
  const { Filter: filter } = rule
  const within = filter?.And ?? filter
  const isTagged = filter?.Tag !== undefined || filter?.And?.Tags !== undefined
  const isSized =
    within?.ObjectSizeGreaterThan !== undefined || within?.ObjectSizeLessThan !== undefined
  return {
    id: rule.ID,
    isEnabled: rule.Status === 'Enabled',
    prefix: filter?.And?.Prefix ?? filter?.Prefix ?? rule.Prefix ?? '',
    isFiltered: isTagged || isSized,
    // A fixed date is as good as now: it will come, or it came.
    expiresAfterDays:
      rule.Expiration?.Days ?? (rule.Expiration?.Date === undefined ? undefined : 0),
    expiresOldVersionsAfterDays: rule.NoncurrentVersionExpiration?.NoncurrentDays,
    abortsUploadsAfterDays: rule.AbortIncompleteMultipartUpload?.DaysAfterInitiation,
    transitions: (rule.Transitions ?? []).map(({ Days: days, StorageClass: storageClass }) => {
      return { afterDays: days ?? 0, storageClass: storageClass ?? 'unknown' }
    }),
  }
}

function byKey(one: { readonly key: string }, other: { readonly key: string }): number {
  if (one.key === other.key) return 0
  return one.key < other.key ? -1 : 1
}

function newestFirst(one: S3Version, other: S3Version): number {
  if (one.isLatest !== other.isLatest) return one.isLatest ? -1 : 1
  return other.lastModifiedMs - one.lastModifiedMs
}

function decoded(key: string, encoding: string | undefined): string {
  if (encoding !== 'url') return key
  try {
    return decodeURIComponent(key.replaceAll('+', ' '))
  } catch (cause) {
    throw new BackupError('TARGET_FAILED', `a listing has a name that is not encoded: ${key}`, {
      hint: 'it is no good S3 service, or a proxy answers for it; nothing was changed',
      cause,
    })
  }
}

function unquoted(etag: string | undefined): string {
  return (etag ?? '').replace(/^"|"$/g, '')
}

function md5Of(bytes: Buffer): string {
  return createHash('md5').update(bytes).digest('base64')
}

/** @throws BackupError where a listing would be asked for the same page for ever */
function refuseCircle(asked: string | undefined, next: string | undefined): void {
  if (next !== undefined && next !== asked) return
  throw new BackupError('TARGET_FAILED', 'the service gives the same page of a listing again', {
    hint: 'it is no good S3 service, or a proxy answers for it; nothing was changed',
  })
}

/** @throws BackupError where an answer without any objects is no listing at all */
function refuseNoListing(said: string | number | undefined): void {
  if (said !== undefined) return
  throw new BackupError('TARGET_FAILED', 'the answer to a listing is none', {
    hint: 'check that endpoint is that of an S3 service, and that no proxy answers for it',
    retry: 'later',
  })
}

function tooLong(): BackupError {
  return new BackupError('TARGET_FAILED', 'a listing of the bucket does not end', {
    hint: 'a repository has far fewer files; nothing was changed',
  })
}

function noAnswer(bucket: string, what: string): BackupError {
  return new BackupError('TARGET_FAILED', `bucket ${bucket}: an answer has no ${what}`, {
    hint: 'check that endpoint is that of an S3 service, and that no proxy answers for it',
    retry: 'later',
  })
}
