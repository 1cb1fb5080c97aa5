// Multipart uploads: create, put parts, list, complete, abort.
//
// What Amazon documents: parts in ascending order, all but the last at least 5 MiB, a checksum of
// every part where the upload was created with one, and one of the whole where its type is
// FULL_OBJECT. A completed or aborted upload is NoSuchUpload.

import { Buffer } from 'node:buffer'
import { answer, answerXml, refuse } from './answer.ts'
import type { Answer } from './answer.ts'
import { allow, countOf, header } from './call.ts'
import type { Call } from './call.ts'
import { ALGORITHMS, badChecksum, checksumOf, givenChecksums, md5Of } from './checksums.ts'
import type { Algorithm, Checksums } from './checksums.ts'
import { lockOfHeaders, lockOfNew } from './locks.ts'
import { addVersion, bucketOf, newVersionId, nextVersionId, sortedKeys } from './store.ts'
import type { Part, Upload, Version, World } from './store.ts'
import { checkBody, describedBy, requireAbsent, writtenHeaders } from './write-object.ts'
import { xmlAll, xmlText } from './xml.ts'

const MAX_PART_NUMBER = 10_000

export function createUpload(world: World, call: Call): Answer {
  allow(call, 's3:PutObject')
  const bucket = bucketOf(world, call.bucket)
  const upload: Upload = {
    ...describedBy(world, call),
    uploadId: newVersionId(),
    key: call.key,
    begunMs: world.nowMs(),
    lock: lockOfHeaders(world, call),
    checksum: checksumOfUpload(world, call),
    parts: new Map(),
  }
  bucket.uploads.set(upload.uploadId, upload)
  return answerXml(
    'InitiateMultipartUploadResult',
    { Bucket: call.bucket, Key: call.key, UploadId: upload.uploadId },
    {
      'x-amz-checksum-algorithm': upload.checksum?.algorithm.toUpperCase(),
      'x-amz-checksum-type': upload.checksum?.type,
    },
  )
}

export function uploadPart(world: World, call: Call): Answer {
  allow(call, 's3:PutObject')
  const upload = uploadOf(world, call)
  const number = Number(call.query.get('partNumber'))
  if (!Number.isInteger(number) || number < 1 || number > MAX_PART_NUMBER) {
    const message = 'Part number must be an integer between 1 and 10000, inclusive'
    return refuse(400, 'InvalidArgument', message)
  }
  const checksums = checkBody(world, call)
  if (world.quirks.checksums !== 'ignored') requireSameChecksum(upload, checksums)
  const md5 = md5Of(call.body)
  upload.parts.set(number, { body: call.body, md5, checksums, lastModifiedMs: world.nowMs() })
  const given = Object.entries(checksums).map(
    ([algorithm, value]) => [`x-amz-checksum-${algorithm}`, value] as const,
  )
  return answer(200, { etag: `"${md5.toString('hex')}"`, ...Object.fromEntries(given) })
}

export function listParts(world: World, call: Call): Answer {
  allow(call, 's3:ListMultipartUploadParts')
  const upload = uploadOf(world, call)
  const after = Number(call.query.get('part-number-marker') ?? '0')
  const limit = countOf(call, 'max-parts', world.pageSize)
  const left = sortedParts(upload).filter(([number]) => number > after)
  const page = left.slice(0, limit)
  const isTruncated = page.length < left.length
  return answerXml('ListPartsResult', {
    Bucket: call.bucket,
    Key: call.key,
    UploadId: upload.uploadId,
    StorageClass: upload.storageClass,
    PartNumberMarker: after,
    NextPartNumberMarker: isTruncated ? page.at(-1)?.[0] : undefined,
    MaxParts: limit,
    IsTruncated: isTruncated,
    ChecksumAlgorithm: upload.checksum?.algorithm.toUpperCase(),
    ChecksumType: upload.checksum?.type,
    Part: page.map(([number, part]) => ({
      PartNumber: number,
      LastModified: new Date(part.lastModifiedMs).toISOString(),
      ETag: `"${part.md5.toString('hex')}"`,
      Size: part.body.length,
      ...checksumElements(part.checksums),
    })),
  })
}

export function completeUpload(world: World, call: Call): Answer {
  allow(call, 's3:PutObject')
  const bucket = bucketOf(world, call.bucket)
  const upload = uploadOf(world, call)
  const parts = namedParts(world, upload, call.body.toString())
  const { conditional, conditionalComplete } = world.quirks
  requireAbsent(world, call, conditionalComplete ?? conditional)
  const body = Buffer.concat(parts.map((part) => part.body))
  const size = header(call, 'x-amz-mp-object-size')
  if (size !== undefined && size !== String(body.length)) {
    const message = "The provided 'x-amz-mp-object-size' header does not match what was computed."
    return refuse(400, 'InvalidRequest', message)
  }
  const md5s = md5Of(Buffer.concat(parts.map((part) => part.md5))).toString('hex')
  const version: Version = {
    storageClass: upload.storageClass,
    metadata: upload.metadata,
    contentType: upload.contentType,
    versionId: nextVersionId(bucket),
    isDeleteMarker: false,
    body,
    etag: `${md5s}-${parts.length}`,
    lastModifiedMs: world.nowMs(),
    checksums: checkedWhole({ upload, parts, body, call }),
    checksumType: upload.checksum?.type ?? 'FULL_OBJECT',
    lock: lockOfNew(world, bucket, upload.lock),
    thawed: undefined,
  }
  bucket.uploads.delete(upload.uploadId)
  addVersion(bucket, call.key, version)
  const headers = writtenHeaders(bucket, version)
  return answerXml(
    'CompleteMultipartUploadResult',
    {
      Location: `/${call.bucket}/${call.key}`,
      Bucket: call.bucket,
      Key: call.key,
      ETag: `"${version.etag}"`,
      ...checksumElements(version.checksums),
      ChecksumType: headers['x-amz-checksum-type'],
    },
    { 'x-amz-version-id': headers['x-amz-version-id'] },
  )
}

export function abortUpload(world: World, call: Call): Answer {
  allow(call, 's3:AbortMultipartUpload')
  const { uploadId } = uploadOf(world, call)
  bucketOf(world, call.bucket).uploads.delete(uploadId)
  return answer(204)
}

/** In order of key, then of time. */
export function listUploads(world: World, call: Call): Answer {
  const prefix = call.query.get('prefix') ?? ''
  allow(call, 's3:ListBucketMultipartUploads', prefix)
  const uploads = [...bucketOf(world, call.bucket).uploads.values()]
  const keyMarker = call.query.get('key-marker') ?? ''
  const idMarker = call.query.get('upload-id-marker') ?? ''
  const limit = countOf(call, 'max-uploads', world.pageSize)
  const sorted = sortedKeys(new Set(uploads.map(({ key }) => key)), prefix).flatMap((key) =>
    uploads.filter((upload) => upload.key === key),
  )
  const marked = sorted.findIndex(
    (upload) => upload.key === keyMarker && (upload.uploadId === idMarker || idMarker === ''),
  )
  const left = sorted.slice(marked + 1)
  const page = left.slice(0, limit)
  const isTruncated = page.length < left.length
  return answerXml('ListMultipartUploadsResult', {
    Bucket: call.bucket,
    KeyMarker: keyMarker,
    UploadIdMarker: idMarker,
    NextKeyMarker: isTruncated ? page.at(-1)?.key : undefined,
    NextUploadIdMarker: isTruncated ? page.at(-1)?.uploadId : undefined,
    Prefix: prefix,
    MaxUploads: limit,
    IsTruncated: isTruncated,
    Upload: page.map((upload) => ({
      Key: upload.key,
      UploadId: upload.uploadId,
      StorageClass: upload.storageClass,
      Initiated: new Date(upload.begunMs).toISOString(),
    })),
  })
}

function uploadOf(world: World, call: Call): Upload {
  const upload = bucketOf(world, call.bucket).uploads.get(call.query.get('uploadId') ?? '')
  if (upload !== undefined && upload.key === call.key) return upload
  const message =
    'The specified upload does not exist. The upload ID may be invalid, or the upload may have '
    + 'been aborted or completed.'
  return refuse(404, 'NoSuchUpload', message)
}

function checksumOfUpload(world: World, call: Call): Upload['checksum'] {
  const name = header(call, 'x-amz-checksum-algorithm')?.toLowerCase()
  if (name === undefined || world.quirks.checksums === 'ignored') return undefined
  const algorithm = ALGORITHMS.find((known) => known === name)
  if (algorithm === undefined) {
    return refuse(400, 'InvalidRequest', 'Checksum algorithm provided is unsupported.')
  }
  const isSha = algorithm === 'sha1' || algorithm === 'sha256'
  const usual = algorithm === 'crc64nvme' ? 'FULL_OBJECT' : 'COMPOSITE'
  const type = header(call, 'x-amz-checksum-type') ?? usual
  const isFull = type === 'FULL_OBJECT'
  if ((!isFull && type !== 'COMPOSITE') || (isFull ? isSha : usual !== type)) {
    const message = `The ${type} checksum type cannot be used with the ${name} checksum algorithm.`
    return refuse(400, 'InvalidRequest', message)
  }
  // A service without full-object checksums knows one kind only, and does not say so.
  const knowsFull = world.quirks.fullObjectMultipart !== false
  return { algorithm, type: isFull && knowsFull ? 'FULL_OBJECT' : 'COMPOSITE' }
}

/** Amazon wants the parts' algorithm to be the upload's, or none with none. */
function requireSameChecksum(upload: Upload, checksums: Checksums): void {
  const expected = upload.checksum?.algorithm
  const [actual] = Object.keys(checksums)
  if (expected === actual) return
  const message =
    `Checksum Type mismatch occurred, expected checksum Type: ${expected ?? 'null'}, `
    + `actual checksum Type: ${actual ?? 'null'}`
  refuse(400, 'InvalidRequest', message)
}

/** The parts that the client names, which must be there as it says. */
function namedParts(world: World, upload: Upload, xml: string): Part[] {
  const named = xmlAll(xml, 'Part')
  if (named.length === 0) {
    return refuse(400, 'MalformedXML', 'You must specify at least one part')
  }
  let last = 0
  const parts = named.map((element) => {
    const number = Number(xmlText(element, 'PartNumber'))
    if (number <= last) {
      const message =
        'The list of parts was not in ascending order. Parts must be ordered by part number.'
      return refuse(400, 'InvalidPartOrder', message)
    }
    last = number
    const part = upload.parts.get(number)
    const etag = xmlText(element, 'ETag')?.replaceAll('"', '')
    if (part === undefined || part.md5.toString('hex') !== etag) invalidPart()
    requirePartChecksums(upload, part, { element, number })
    return part
  })
  if (parts.slice(0, -1).some((part) => part.body.length < world.minPartBytes)) {
    const message = 'Your proposed upload is smaller than the minimum allowed size'
    return refuse(400, 'EntityTooSmall', message)
  }
  return parts
}

function requirePartChecksums(
  upload: Upload,
  part: Part,
  of: { readonly element: string; readonly number: number },
): void {
  if (upload.checksum === undefined) return
  const { algorithm, type } = upload.checksum
  const given = xmlText(of.element, `Checksum${algorithm.toUpperCase()}`)
  if (given === undefined && type === 'COMPOSITE') {
    const message =
      `The upload was created using a ${algorithm} checksum. The complete request must include `
      + `the checksum for each part. It was missing for part ${of.number} in the request.`
    refuse(400, 'InvalidRequest', message)
  }
  if (given !== undefined && given !== part.checksums[algorithm]) invalidPart()
}

function invalidPart(): never {
  const message =
    'One or more of the specified parts could not be found. The part may not have been '
    + "uploaded, or the specified entity tag may not match the part's entity tag."
  return refuse(400, 'InvalidPart', message)
}

/** The checksum of the whole object, compared with the one that the client gives. */
function checkedWhole(of: {
  readonly upload: Upload
  readonly parts: readonly Part[]
  readonly body: Buffer
  readonly call: Call
}): Checksums {
  const { checksum } = of.upload
  if (checksum === undefined) return {}
  const { algorithm, type } = checksum
  const whole =
    type === 'FULL_OBJECT'
      ? checksumOf(algorithm, of.body).toString('base64')
      : composite(algorithm, of.parts)
  const given = givenChecksums(of.call.headers)[algorithm]
  const givenType = header(of.call, 'x-amz-checksum-type') ?? type
  if (given !== undefined && givenType === type && given !== whole) badChecksum(algorithm)
  return { [algorithm]: whole }
}

function composite(algorithm: Algorithm, parts: readonly Part[]): string {
  const all = parts.map((part) => Buffer.from(part.checksums[algorithm] ?? '', 'base64'))
  return `${checksumOf(algorithm, Buffer.concat(all)).toString('base64')}-${parts.length}`
}

function checksumElements(checksums: Checksums): Record<string, string> {
  return Object.fromEntries(
    Object.entries(checksums).map(([name, value]) => [`Checksum${name.toUpperCase()}`, value]),
  )
}

function sortedParts(upload: Upload): [number, Part][] {
  return [...upload.parts].sort(([one], [other]) => one - other)
}
