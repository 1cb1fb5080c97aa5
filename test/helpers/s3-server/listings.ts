// ListObjectsV2, ListObjectVersions and ListBuckets, in pages.
//
// A page counts keys and common prefixes together. Its continuation token is the last of them, so
// that the next page begins right after it, whatever was written or removed meanwhile.

import { Buffer } from 'node:buffer'
import { answerXml, refuse } from './answer.ts'
import type { Answer } from './answer.ts'
import { allow, countOf } from './call.ts'
import type { Call } from './call.ts'
import { bucketOf, compareKeys, currentOf, sortedKeys } from './store.ts'
import type { Version, World } from './store.ts'
import type { Xml } from './xml.ts'

export function listObjects(world: World, call: Call): Answer {
  const { query } = call
  const prefix = query.get('prefix') ?? ''
  allow(call, 's3:ListBucket', prefix)
  const bucket = bucketOf(world, call.bucket)
  const token = query.get('continuation-token')
  const after = token === undefined ? (query.get('start-after') ?? '') : afterToken(token)
  const limit = countOf(call, 'max-keys', world.pageSize)
  const keys = sortedKeys(bucket.objects.keys(), prefix).filter(
    (key) => currentOf(bucket, key) !== undefined,
  )
  const { page, isTruncated } = pageOf({ keys, prefix, after, limit, query })
  const encode = encoder(query)
  return answerXml('ListBucketResult', {
    Name: call.bucket,
    Prefix: encode(prefix),
    Delimiter: query.get('delimiter'),
    MaxKeys: limit,
    KeyCount: page.length,
    IsTruncated: isTruncated,
    ContinuationToken: token,
    NextContinuationToken: isTruncated ? tokenOf(page.at(-1)!.name) : undefined,
    EncodingType: query.get('encoding-type'),
    Contents: page
      .filter(({ isPrefix }) => !isPrefix)
      .map(({ name }) => ({ Key: encode(name), ...describe(currentOf(bucket, name)!) })),
    CommonPrefixes: page
      .filter(({ isPrefix }) => isPrefix)
      .map(({ name }) => ({ Prefix: encode(name) })),
  })
}

export function listVersions(world: World, call: Call): Answer {
  const { query } = call
  const prefix = query.get('prefix') ?? ''
  allow(call, 's3:ListBucketVersions', prefix)
  const bucket = bucketOf(world, call.bucket)
  const keyMarker = query.get('key-marker') ?? ''
  const idMarker = query.get('version-id-marker') ?? ''
  const limit = countOf(call, 'max-keys', world.pageSize)
  const all = sortedKeys(bucket.objects.keys(), prefix).flatMap((key) =>
    bucket.objects.get(key)!.map((version, index) => ({ key, version, isLatest: index === 0 })),
  )
  const marked = all.findIndex(
    ({ key, version }) => key === keyMarker && version.versionId === idMarker,
  )
  const left =
    marked === -1 ? all.filter(({ key }) => compareKeys(key, keyMarker) > 0) : all.slice(marked + 1)
  const page = left.slice(0, limit)
  const isTruncated = page.length < left.length
  const encode = encoder(query)
  const rows = page.map(({ key, version, isLatest }): Xml => {
    const row = { Key: encode(key), VersionId: version.versionId, IsLatest: isLatest }
    return version.isDeleteMarker
      ? { DeleteMarker: { ...row, LastModified: timeOf(version) } }
      : { Version: { ...row, ...describe(version) } }
  })
  return answerXml('ListVersionsResult', [
    {
      Name: call.bucket,
      Prefix: encode(prefix),
      KeyMarker: keyMarker,
      VersionIdMarker: idMarker,
      MaxKeys: limit,
      IsTruncated: isTruncated,
      EncodingType: query.get('encoding-type'),
      NextKeyMarker: isTruncated ? encode(page.at(-1)!.key) : undefined,
      NextVersionIdMarker: isTruncated ? page.at(-1)!.version.versionId : undefined,
    },
    ...rows,
  ])
}

export function listBuckets(world: World, call: Call): Answer {
  allow(call, 's3:ListAllMyBuckets', '')
  const names = [...world.buckets.keys()].sort()
  return answerXml('ListAllMyBucketsResult', {
    Owner: { ID: 'owner' },
    Buckets: { Bucket: names.map((Name) => ({ Name, CreationDate: '2026-01-01T00:00:00.000Z' })) },
  })
}

interface Row {
  readonly name: string
  readonly isPrefix: boolean
}

/** Keys, and prefixes up to the delimiter instead of the keys that they stand for. */
function pageOf(of: {
  readonly keys: readonly string[]
  readonly prefix: string
  readonly after: string
  readonly limit: number
  readonly query: ReadonlyMap<string, string>
}): { page: Row[]; isTruncated: boolean } {
  const delimiter = of.query.get('delimiter') ?? ''
  const rows = new Map<string, Row>()
  for (const key of of.keys) {
    const at = delimiter === '' ? -1 : key.indexOf(delimiter, of.prefix.length)
    const name = at === -1 ? key : key.slice(0, at + delimiter.length)
    if (compareKeys(name, of.after) > 0) rows.set(name, { name, isPrefix: at !== -1 })
  }
  const all = [...rows.values()]
  return { page: all.slice(0, of.limit), isTruncated: all.length > of.limit && of.limit > 0 }
}

function tokenOf(name: string): string {
  return Buffer.from(name).toString('base64url')
}

function afterToken(token: string): string {
  const name = Buffer.from(token, 'base64url').toString()
  if (tokenOf(name) === token) return name
  return refuse(400, 'InvalidArgument', 'The continuation token provided is incorrect')
}

function describe(version: Version): Record<string, Xml> {
  return {
    LastModified: timeOf(version),
    ETag: `"${version.etag}"`,
    Size: version.body.length,
    StorageClass: version.storageClass,
    ChecksumAlgorithm: Object.keys(version.checksums).map((name) => name.toUpperCase()),
    ChecksumType: Object.keys(version.checksums).length > 0 ? version.checksumType : undefined,
  }
}

function timeOf(version: Version): string {
  return new Date(version.lastModifiedMs).toISOString()
}

function encoder(query: ReadonlyMap<string, string>): (text: string) => string {
  if (query.get('encoding-type') !== 'url') return (text) => text
  return (text) => encodeURIComponent(text).replaceAll('%2F', '/')
}
