// A request as the operations see it: which action, on what, by whom, and what that one may do.
//
// s3-server.ts makes it of what arrived. `allow` refuses as IAM words it.

import type { Buffer } from 'node:buffer'
import type { IncomingHttpHeaders } from 'node:http'
import { refuse } from './answer.ts'
import { xmlText } from './xml.ts'

export interface Call {
  readonly method: string
  readonly bucket: string
  readonly key: string
  readonly query: ReadonlyMap<string, string>
  readonly headers: IncomingHttpHeaders
  readonly body: Buffer
  readonly accessKey: string
  may(action: string, key: string, conditions: Readonly<Record<string, string>>): boolean
}

/**
 * Refuses unless this user may; `key` is the prefix for lists and empty for a bucket's settings.
 */
export function allow(call: Call, action: string, key: string = call.key): void {
  if (call.may(action, key, conditionsOf(call))) return
  const isOfBucket = key === '' || /^s3:List(?!MultipartUploadParts)/.test(action)
  const resource = `arn:aws:s3:::${call.bucket}${isOfBucket ? '' : `/${key}`}`
  refuse(
    403,
    'AccessDenied',
    `User: arn:aws:iam::123456789012:user/${call.accessKey} is not authorized to perform: `
      + `${action} on resource: "${resource}" because no identity-based policy allows the `
      + `${action} action`,
  )
}

const DAY_MS = 86_400_000

/** The condition keys of IAM that the request has, as far as policies of ours use them. */
function conditionsOf(call: Call): Record<string, string> {
  const { method, query } = call
  const body = query.has('retention') && method === 'PUT' ? call.body.toString() : ''
  const until = header(call, 'x-amz-object-lock-retain-until-date')
  const untilMs = Date.parse(until ?? xmlText(body, 'RetainUntilDate') ?? '')
  const days = Number.isNaN(untilMs) ? undefined : Math.ceil((untilMs - Date.now()) / DAY_MS)
  const isWhole = method === 'PUT' && !query.has('uploadId') && !query.has('retention')
  const isCompletion = method === 'POST' && query.has('uploadId')
  const found = {
    's3:prefix': query.get('prefix'),
    's3:delimiter': query.get('delimiter'),
    's3:if-none-match': header(call, 'if-none-match'),
    's3:ObjectCreationOperation': String(isWhole || isCompletion),
    's3:object-lock-mode': header(call, 'x-amz-object-lock-mode') ?? xmlText(body, 'Mode'),
    's3:object-lock-remaining-retention-days': days === undefined ? undefined : String(days),
  }
  const given = Object.entries(found).filter(([, value]) => value !== undefined)
  return Object.fromEntries(given) as Record<string, string>
}

export function header(call: Call, name: string): string | undefined {
  const value = call.headers[name]
  return value === undefined ? undefined : String(value)
}

/** A whole number of the query, at most `limit`. */
export function countOf(call: Call, name: string, limit: number): number {
  const text = call.query.get(name)
  if (text === undefined) return limit
  if (!/^\d+$/.test(text)) refuse(400, 'InvalidArgument', `Provided ${name} not an integer`)
  return Math.min(Number(text), limit)
}

/** Requests that name what they want in the query, not by method and path alone. */
const SUBRESOURCES: readonly (readonly [string, Readonly<Record<string, string>>])[] = [
  ['versioning', { GET: 'GetBucketVersioning', PUT: 'PutBucketVersioning' }],
  ['object-lock', { GET: 'GetObjectLockConfiguration', PUT: 'PutObjectLockConfiguration' }],
  [
    'lifecycle',
    {
      GET: 'GetBucketLifecycleConfiguration',
      PUT: 'PutBucketLifecycleConfiguration',
      DELETE: 'DeleteBucketLifecycle',
    },
  ],
  ['encryption', { GET: 'GetBucketEncryption' }],
  ['publicAccessBlock', { GET: 'GetPublicAccessBlock' }],
  ['policyStatus', { GET: 'GetBucketPolicyStatus' }],
  ['policy', { GET: 'GetBucketPolicy' }],
  ['acl', { GET: 'GetBucketAcl' }],
  ['ownershipControls', { GET: 'GetBucketOwnershipControls' }],
  ['location', { GET: 'GetBucketLocation' }],
  ['versions', { GET: 'ListObjectVersions' }],
  ['uploads', { GET: 'ListMultipartUploads' }],
]

const OBJECT_SUBRESOURCES: typeof SUBRESOURCES = [
  ['uploads', { POST: 'CreateMultipartUpload' }],
  [
    'uploadId',
    {
      GET: 'ListParts',
      PUT: 'UploadPart',
      POST: 'CompleteMultipartUpload',
      DELETE: 'AbortMultipartUpload',
    },
  ],
  ['restore', { POST: 'RestoreObject' }],
  ['retention', { GET: 'GetObjectRetention', PUT: 'PutObjectRetention' }],
]

/** The documented subresources that the server does not know; refused, never mistaken. */
const UNKNOWN = [
  'accelerate',
  'acl',
  'analytics',
  'attributes',
  'cors',
  'delete',
  'intelligent-tiering',
  'inventory',
  'legal-hold',
  'logging',
  'metrics',
  'notification',
  'partNumber',
  'replication',
  'requestPayment',
  'select',
  'tagging',
  'torrent',
  'website',
]

/** The API's name of what is asked; `Unknown` for what the server cannot do. */
export function actionOf(of: {
  readonly method: string
  readonly bucket: string
  readonly key: string
  readonly query: ReadonlyMap<string, string>
  readonly isCopy: boolean
}): string {
  const { method, bucket, key, query, isCopy } = of
  if (bucket === '') return method === 'GET' ? 'ListBuckets' : 'Unknown'
  for (const [name, actions] of key === '' ? SUBRESOURCES : OBJECT_SUBRESOURCES) {
    if (!query.has(name)) continue
    const action = actions[method] ?? 'Unknown'
    return action === 'UploadPart' && isCopy ? 'UploadPartCopy' : action
  }
  if (UNKNOWN.some((name) => query.has(name))) return 'Unknown'
  if (key === '') {
    if (method === 'HEAD') return 'HeadBucket'
    return method === 'GET' && query.get('list-type') === '2' ? 'ListObjectsV2' : 'Unknown'
  }
  if (method === 'PUT') return isCopy ? 'CopyObject' : 'PutObject'
  const plain: Readonly<Record<string, string>> = {
    GET: 'GetObject',
    HEAD: 'HeadObject',
    DELETE: 'DeleteObject',
  }
  return plain[method] ?? 'Unknown'
}
