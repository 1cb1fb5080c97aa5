// PutObject, CopyObject and DeleteObject, and what uploads share with them: conditions, storage
// classes, metadata.
//
// `If-None-Match: *` is PreconditionFailed where an object is there; a delete marker is none.

import { Buffer } from 'node:buffer'
import { answer, answerXml, refuse } from './answer.ts'
import type { Answer } from './answer.ts'
import { allow, header } from './call.ts'
import type { Call } from './call.ts'
import { checkChecksums, checkMd5, md5Of } from './checksums.ts'
import type { Checksums } from './checksums.ts'
import { lockOfHeaders, lockOfNew, requireRemovable } from './locks.ts'
import { readableVersion, requireThawed } from './read-object.ts'
import {
  addVersion,
  bucketOf,
  currentOf,
  nextVersionId,
  newestOf,
  removeVersion,
  versionOf,
} from './store.ts'
import type { StoredBucket, Version, World } from './store.ts'

const STORAGE_CLASSES = [
  'STANDARD',
  'REDUCED_REDUNDANCY',
  'STANDARD_IA',
  'ONEZONE_IA',
  'INTELLIGENT_TIERING',
  'GLACIER',
  'DEEP_ARCHIVE',
  'GLACIER_IR',
]

const MAX_KEY_BYTES = 1024

export function putObject(world: World, call: Call): Answer {
  allow(call, 's3:PutObject')
  const bucket = bucketOf(world, call.bucket)
  const asked = lockOfHeaders(world, call)
  const given = checkBody(world, call)
  const lock = lockOfNew(world, bucket, asked)
  if (lock !== undefined && !hasDigest(call)) {
    const message =
      'Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests '
      + 'with Object Lock parameters'
    return refuse(400, 'InvalidRequest', message)
  }
  const described = describedBy(world, call)
  requireAbsent(world, call, world.quirks.conditional)
  const version: Version = {
    ...described,
    versionId: nextVersionId(bucket),
    isDeleteMarker: false,
    body: call.body,
    etag: md5Of(call.body).toString('hex'),
    lastModifiedMs: world.nowMs(),
    checksums: given,
    checksumType: 'FULL_OBJECT',
    lock,
    thawed: undefined,
  }
  addVersion(bucket, call.key, version)
  return answer(200, writtenHeaders(bucket, version))
}

export function copyObject(world: World, call: Call): Answer {
  allow(call, 's3:PutObject')
  const bucket = bucketOf(world, call.bucket)
  const source = copySource(call)
  const fromBucket = bucketOf(world, source.bucket)
  allow(call, source.query.has('versionId') ? 's3:GetObjectVersion' : 's3:GetObject', source.key)
  const from = readableVersion(fromBucket, source)
  requireThawed(world, from)
  const described = describedBy(world, call)
  const isReplaced = header(call, 'x-amz-metadata-directive') === 'REPLACE'
  const isSame =
    fromBucket === bucket
    && source.key === call.key
    && from === newestOf(bucket, call.key)
    && !isReplaced
    && described.storageClass === from.storageClass
  if (isSame) {
    const message =
      'This copy request is illegal because it is trying to copy an object to itself '
      + "without changing the object's metadata or storage class."
    return refuse(400, 'InvalidRequest', message)
  }
  requireAbsent(world, call, world.quirks.conditional)
  const lock = lockOfNew(world, bucket, lockOfHeaders(world, call))
  const version: Version = {
    ...described,
    ...(isReplaced ? {} : { metadata: from.metadata, contentType: from.contentType }),
    versionId: nextVersionId(bucket),
    isDeleteMarker: false,
    body: from.body,
    etag: md5Of(from.body).toString('hex'),
    lastModifiedMs: world.nowMs(),
    checksums: from.checksumType === 'FULL_OBJECT' ? from.checksums : {},
    checksumType: 'FULL_OBJECT',
    lock,
    thawed: undefined,
  }
  addVersion(bucket, call.key, version)
  const isVersioned = fromBucket.versioning !== 'off'
  return answerXml(
    'CopyObjectResult',
    { ETag: `"${version.etag}"`, LastModified: new Date(version.lastModifiedMs).toISOString() },
    {
      'x-amz-version-id': writtenHeaders(bucket, version)['x-amz-version-id'],
      'x-amz-copy-source-version-id': isVersioned ? from.versionId : undefined,
    },
  )
}

export function deleteObject(world: World, call: Call): Answer {
  const versionId = call.query.get('versionId')
  allow(call, versionId === undefined ? 's3:DeleteObject' : 's3:DeleteObjectVersion')
  const bucket = bucketOf(world, call.bucket)
  if (versionId !== undefined) {
    const version = versionOf(bucket, call.key, versionId)
    if (version === undefined) return answer(204, { 'x-amz-version-id': versionId })
    requireRemovable(world, call, version)
    removeVersion(bucket, call.key, versionId)
    const marker = version.isDeleteMarker ? 'true' : undefined
    return answer(204, { 'x-amz-version-id': versionId, 'x-amz-delete-marker': marker })
  }
  if (bucket.versioning === 'off') {
    removeVersion(bucket, call.key, 'null')
    return answer(204)
  }
  const marker: Version = {
    versionId: nextVersionId(bucket),
    isDeleteMarker: true,
    body: call.body.subarray(0, 0),
    etag: '',
    lastModifiedMs: world.nowMs(),
    storageClass: 'STANDARD',
    metadata: {},
    contentType: '',
    checksums: {},
    checksumType: 'FULL_OBJECT',
    lock: undefined,
    thawed: undefined,
  }
  addVersion(bucket, call.key, marker)
  const headers = { 'x-amz-delete-marker': 'true', 'x-amz-version-id': marker.versionId }
  return answer(204, headers)
}

/** Storage class, metadata and type that the headers of a request give. */
export function describedBy(
  world: World,
  call: Call,
): Pick<Version, 'storageClass' | 'metadata' | 'contentType'> {
  if (Buffer.byteLength(call.key) > MAX_KEY_BYTES) {
    refuse(400, 'KeyTooLongError', 'Your key is too long')
  }
  const storageClass = header(call, 'x-amz-storage-class') ?? 'STANDARD'
  if (!(world.quirks.storageClasses ?? STORAGE_CLASSES).includes(storageClass)) {
    const message = 'The storage class you specified is not valid'
    refuse(400, 'InvalidStorageClass', message)
  }
  const metadata = Object.entries(call.headers)
    .filter(([name]) => name.startsWith('x-amz-meta-'))
    .map(([name, value]) => [name, String(value)] as const)
  return {
    storageClass,
    metadata: Object.fromEntries(metadata),
    contentType: header(call, 'content-type') ?? 'binary/octet-stream',
  }
}

/** Compares the body with the digests that came with it; gives those that are kept. */
export function checkBody(world: World, call: Call): Checksums {
  if (world.quirks.md5 !== 'ignored') checkMd5(call.headers, call.body)
  return world.quirks.checksums === 'ignored' ? {} : checkChecksums(call.headers, call.body)
}

/** If-None-Match, as far as this service knows it. */
export function requireAbsent(
  world: World,
  call: Call,
  conditional: 'honoured' | 'ignored' | 'refused' = 'honoured',
): void {
  const condition = header(call, 'if-none-match')
  if (condition === undefined || conditional === 'ignored') return
  if (conditional === 'refused' || condition !== '*') {
    const message = 'A header you provided implies functionality that is not implemented'
    refuse(501, 'NotImplemented', message)
  }
  if (currentOf(bucketOf(world, call.bucket), call.key) === undefined) return
  const message = 'At least one of the pre-conditions you specified did not hold'
  refuse(412, 'PreconditionFailed', message)
}

/** Headers of the answer to a write. */
export function writtenHeaders(
  bucket: StoredBucket,
  version: Version,
): Record<string, string | undefined> {
  const checksums = Object.entries(version.checksums).map(
    ([algorithm, value]) => [`x-amz-checksum-${algorithm}`, value] as const,
  )
  return {
    etag: `"${version.etag}"`,
    'x-amz-version-id': bucket.versioning === 'off' ? undefined : version.versionId,
    'x-amz-checksum-type': checksums.length > 0 ? version.checksumType : undefined,
    ...Object.fromEntries(checksums),
  }
}

function hasDigest(call: Call): boolean {
  return Object.keys(call.headers).some(
    (name) => name === 'content-md5' || name.startsWith('x-amz-checksum-'),
  )
}

function copySource(call: Call): Pick<Call, 'bucket' | 'key' | 'query' | 'may'> {
  const text = header(call, 'x-amz-copy-source') ?? ''
  const match = /^\/?([^/?]+)\/([^?]+)(?:\?versionId=(.+))?$/.exec(text)
  if (match === null) {
    return refuse(400, 'InvalidArgument', 'Copy Source must mention the source bucket and key')
  }
  const [, bucket, key, versionId] = match
  return {
    bucket: bucket!,
    key: decodeURIComponent(key!),
    query: new Map(versionId === undefined ? [] : [['versionId', versionId]]),
    may: (action, of, conditions) => call.may(action, of, conditions),
  }
}
