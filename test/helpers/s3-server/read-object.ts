// GetObject and HeadObject: which version is meant, whether it can be read, its headers, a range.
//
// An object in an archive class is not readable until a copy was restored (archive.ts). Without
// s3:ListBucket what is not there is AccessDenied, as Amazon documents it.

import type { Buffer } from 'node:buffer'
import { S3Failure, answer, refuse } from './answer.ts'
import type { Answer } from './answer.ts'
import { allow, header } from './call.ts'
import type { Call } from './call.ts'
import type { Algorithm } from './checksums.ts'
import { bucketOf, newestOf, versionOf } from './store.ts'
import type { StoredBucket, Version, World } from './store.ts'

const ARCHIVE_CLASSES = ['GLACIER', 'DEEP_ARCHIVE']

export function getObject(world: World, call: Call): Answer {
  const version = permittedVersion(world, call)
  requireThawed(world, version)
  const headers = versionHeaders(world, call, version)
  const range = header(call, 'range')
  if (range === undefined) return answer(200, headers, version.body)
  const { from, to } = rangeOf(range, version.body)
  const contentRange = `bytes ${from}-${to - 1}/${version.body.length}`
  const kept = Object.entries(headers).filter(([name]) => !name.startsWith('x-amz-checksum-'))
  return answer(
    206,
    { ...Object.fromEntries(kept), 'content-range': contentRange },
    version.body.subarray(from, to),
  )
}

/** The body is there for its length; s3-server.ts sends none to a HEAD. */
export function headObject(world: World, call: Call): Answer {
  const version = permittedVersion(world, call)
  return answer(200, versionHeaders(world, call, version), version.body)
}

/** The version that a request means; refuses where there is none, or a delete marker. */
export function readableVersion(
  bucket: StoredBucket,
  of: Pick<Call, 'key' | 'may'> & Partial<Pick<Call, 'query'>>,
): Version {
  const versionId = of.query?.get('versionId')
  const version =
    versionId === undefined ? newestOf(bucket, of.key) : versionOf(bucket, of.key, versionId)
  const isMarker = version?.isDeleteMarker === true
  if (version !== undefined && !isMarker) return version
  const headers: Record<string, string> = isMarker
    ? { 'x-amz-delete-marker': 'true', 'x-amz-version-id': version.versionId }
    : {}
  // No list was asked for, so there is no prefix that a condition could look at.
  if (!of.may('s3:ListBucket', of.key, {})) {
    throw new S3Failure({ status: 403, code: 'AccessDenied', message: 'Access Denied' })
  }
  if (isMarker && versionId !== undefined) {
    const message = 'The specified method is not allowed against this resource.'
    throw new S3Failure({ status: 405, code: 'MethodNotAllowed', message, headers })
  }
  throw versionId === undefined
    ? new S3Failure({
        status: 404,
        code: 'NoSuchKey',
        message: 'The specified key does not exist.',
        headers,
        elements: { Key: of.key },
      })
    : new S3Failure({
        status: 404,
        code: 'NoSuchVersion',
        message: 'The specified version does not exist.',
        elements: { Key: of.key, VersionId: versionId },
      })
}

/** Refuses an archived object of which there is no copy that can be read now. */
export function requireThawed(world: World, version: Version): void {
  if (!isArchived(version)) return
  const { thawed } = version
  const nowMs = world.nowMs()
  if (thawed !== undefined && thawed.readyMs <= nowMs && nowMs < thawed.expiryMs) return
  throw new S3Failure({
    status: 403,
    code: 'InvalidObjectState',
    message: "The operation is not valid for the object's storage class",
    elements: { StorageClass: version.storageClass },
  })
}

export function isArchived(version: Version): boolean {
  return ARCHIVE_CLASSES.includes(version.storageClass)
}

function permittedVersion(world: World, call: Call): Version {
  allow(call, call.query.has('versionId') ? 's3:GetObjectVersion' : 's3:GetObject')
  return readableVersion(bucketOf(world, call.bucket), call)
}

function versionHeaders(
  world: World,
  call: Call,
  version: Version,
): Record<string, string | undefined> {
  const bucket = bucketOf(world, call.bucket)
  const headers: Record<string, string | undefined> = {
    'accept-ranges': 'bytes',
    'content-type': version.contentType,
    etag: `"${version.etag}"`,
    'last-modified': new Date(version.lastModifiedMs).toUTCString(),
    'x-amz-version-id': bucket.versioning === 'off' ? undefined : version.versionId,
    'x-amz-storage-class': version.storageClass === 'STANDARD' ? undefined : version.storageClass,
    'x-amz-restore': restoreHeader(world, version),
    ...version.metadata,
  }
  if (version.lock !== undefined && call.may('s3:GetObjectRetention', call.key, {})) {
    headers['x-amz-object-lock-mode'] = version.lock.mode
    headers['x-amz-object-lock-retain-until-date'] = new Date(version.lock.untilMs).toISOString()
  }
  const checksums = Object.entries(version.checksums) as [Algorithm, string][]
  if (header(call, 'x-amz-checksum-mode')?.toUpperCase() === 'ENABLED' && checksums.length > 0) {
    for (const [algorithm, value] of checksums) headers[`x-amz-checksum-${algorithm}`] = value
    headers['x-amz-checksum-type'] = version.checksumType
  }
  return headers
}

function restoreHeader(world: World, version: Version): string | undefined {
  const { thawed } = version
  if (thawed === undefined || world.nowMs() >= thawed.expiryMs) return undefined
  if (world.nowMs() < thawed.readyMs) return 'ongoing-request="true"'
  return `ongoing-request="false", expiry-date="${new Date(thawed.expiryMs).toUTCString()}"`
}

/** `to` is the byte after the last. */
function rangeOf(range: string, body: Buffer): { from: number; to: number } {
  const match = /^bytes=(\d*)-(\d*)$/.exec(range)
  const [first, last] = [match?.[1] ?? '', match?.[2] ?? '']
  if (first === '' && last === '') return { from: 0, to: body.length }
  const from = first === '' ? Math.max(0, body.length - Number(last)) : Number(first)
  const to = first === '' || last === '' ? body.length : Math.min(body.length, Number(last) + 1)
  if (from < to) return { from, to }
  return refuse(416, 'InvalidRange', 'The requested range is not satisfiable')
}
