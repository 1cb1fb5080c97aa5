// An S3 server in the test's own process: a stand-in, written from what Amazon documents, for what
// cannot be had here otherwise - archive classes, conditional writes, locks, IAM - and for
// everything that goes wrong. What real servers do shows Ceph's gateway (test/s3), not this.
//
// It verifies signatures, keeps everything in memory, and knows path style only. Its own clock goes
// on by advance(); signatures are compared with the wall clock. Not there: tags, ACLs of objects,
// legal holds, encryption by the client's keys, bodies in aws-chunked (411, as Ceph answers), the
// CRC-64 that Amazon makes of objects without a checksum. Operations are in s3-server/.

import { Buffer } from 'node:buffer'
import { writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { S3Failure, failureAnswer, refuse } from './s3-server/answer.ts'
import type { Answer } from './s3-server/answer.ts'
import { actionOf } from './s3-server/call.ts'
import type { Call } from './s3-server/call.ts'
import { md5Of } from './s3-server/checksums.ts'
import { failureOf, faultFor, flipped, flippedAnswer } from './s3-server/faults.ts'
import type { ActiveFault, FaultRule } from './s3-server/faults.ts'
import { OPERATIONS } from './s3-server/operations.ts'
import { checkPayload, verifySignature } from './s3-server/signature.ts'
import { addVersion, bucketOf, currentOf, nextVersionId } from './s3-server/store.ts'
import type { Lock, StoredBucket, World } from './s3-server/store.ts'
import { xmlDocument } from './s3-server/xml.ts'
import type { Xml } from './s3-server/xml.ts'

/** How a bucket is set; what is not said is as in a new bucket at Amazon. */
export interface BucketOptions {
  readonly versioning?: boolean
  /** Turns versioning on. With mode and days: the default retention. */
  readonly objectLock?: boolean | { readonly mode: Lock['mode']; readonly days: number }
  /** Rules as in the XML: `{ ID: 'a', Status: 'Enabled', Filter: { Prefix: '' }, … }`. */
  readonly lifecycle?: readonly Xml[]
  /** False: none is set. What is left out is true. */
  readonly publicAccessBlock?:
    | false
    | {
        readonly blockPublicAcls?: boolean
        readonly ignorePublicAcls?: boolean
        readonly blockPublicPolicy?: boolean
        readonly restrictPublicBuckets?: boolean
      }
  /** JSON. */
  readonly policy?: string
  readonly policyIsPublic?: boolean
  /** Beside the owner's: `AllUsers`, `AuthenticatedUsers`, or the id of another account. */
  readonly grants?: readonly { readonly to: string; readonly permission: string }[]
  /** `BucketOwnerEnforced` where nothing is said; `none`. */
  readonly ownership?: string
  /** `AES256` where nothing is said; `aws:kms`, `none`. */
  readonly encryption?: string
  /** Where it is; signatures for another region are refused. */
  readonly region?: string
}

export interface User {
  readonly secret: string
  /**
   * Whether IAM allows `s3:PutObject` and so on. The key is the prefix for lists, and empty for
   * what concerns the bucket. With the request's condition keys, such as `s3:prefix`.
   */
  readonly may?: (
    action: string,
    key: string,
    conditions: Readonly<Record<string, string>>,
  ) => boolean
}

/** In what a service differs from Amazon. */
export interface Quirks {
  readonly checksums?: 'enforced' | 'ignored'
  readonly md5?: 'enforced' | 'ignored'
  /** If-None-Match; refused is 501. */
  readonly conditional?: 'honoured' | 'ignored' | 'refused'
  /** The same at the end of a multipart upload, where it differs. */
  readonly conditionalComplete?: 'honoured' | 'ignored' | 'refused'
  /** False: a checksum of a whole multipart object is not compared. */
  readonly fullObjectMultipart?: boolean
  /** Actions that are answered 501 NotImplemented, such as `GetPublicAccessBlock`. */
  readonly unsupported?: readonly string[]
  /** The only ones there are. */
  readonly storageClasses?: readonly string[]
  /** Signatures for another region are refused; where nothing is said, none is. */
  readonly region?: string
}

export interface S3Request {
  readonly method: string
  /** `PutObject` and so on, `Unknown` for what the server cannot do. */
  readonly action: string
  readonly bucket: string
  readonly key: string
  readonly query: Readonly<Record<string, string>>
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  /** Undefined where there was no valid signature. */
  accessKey: string | undefined
  /** 0 until it is answered, and for ever where the connection went. */
  status: number
  bytesIn: number
  bytesOut: number
}

export interface StoredObject {
  readonly body: Buffer
  readonly storageClass: string
  /** Without `x-amz-meta-`. */
  readonly metadata: Readonly<Record<string, string>>
  readonly lock: Lock | undefined
}

export interface S3Server {
  readonly endpoint: string
  /** In the order of their arrival. */
  readonly requests: readonly S3Request[]
  resetRequests(): void
  /** What one sees without naming versions. */
  objects(bucket?: string): Map<string, StoredObject>
  /** Newest first. */
  versions(
    bucket: string,
    key: string,
  ): readonly (StoredObject & { readonly versionId: string; readonly isDeleteMarker: boolean })[]
  /** Uploads that are neither complete nor aborted. */
  uploads(
    bucket?: string,
  ): readonly { readonly key: string; readonly uploadId: string; readonly parts: number }[]
  /** Changes the bytes of the current version; its etag, checksums and time stay. */
  tamper(bucket: string, key: string, bytes: Buffer): void
  /** Stores an object without a request. */
  put(of: {
    readonly bucket?: string
    readonly key: string
    readonly body: Buffer
    readonly storageClass?: string
  }): void
  /** Loses an object with all its versions. */
  lose(bucket: string, key: string): void
  /** Changes how a bucket is set. */
  configure(bucket: string, options: BucketOptions): void
  /** From now on; gives the function that ends it. */
  fault(rule: FaultRule): () => void
  /** Moves the server's clock: restores finish, copies expire, locks end. */
  advance(ms: number): void
  nowMs(): number
  /** Variables with which the SDK finds this user and nothing else. */
  environment(accessKey?: string): Record<string, string>
  /** Writes files with a profile for each user; the variables with which the SDK finds them. */
  writeProfiles(
    directory: string,
    profiles: Readonly<Record<string, string>>,
  ): Record<string, string>
  close(): Promise<void>
}

export interface S3ServerOptions {
  /** `{ bucket: {} }` where nothing is said. */
  readonly buckets?: Readonly<Record<string, BucketOptions>>
  /** By access key; `testkey` with `testsecret` who may everything where nothing is said. */
  readonly users?: Readonly<Record<string, User>>
  readonly quirks?: Quirks
  /** Of lists: 1000, as at Amazon, where nothing is said. */
  readonly pageSize?: number
  /** Of parts that are not the last: 5 MiB, as at Amazon, where nothing is said. */
  readonly minPartBytes?: number
  /** The clock that advance() moves on. */
  readonly nowMs?: () => number
}

const DEFAULT_REGION = 'us-east-1'
const MAX_BODY_BYTES = 1024 ** 3

/** Starts a server on a free port of 127.0.0.1. */
export async function startS3Server(of: S3ServerOptions = {}): Promise<S3Server> {
  const users = of.users ?? { testkey: { secret: 'testsecret' } }
  const quirks = of.quirks ?? {}
  const clock = of.nowMs ?? Date.now
  const requests: S3Request[] = []
  const faults = new Set<ActiveFault>()
  const closing = new AbortController()
  let advancedMs = 0
  const world: World = {
    buckets: new Map(
      Object.entries(of.buckets ?? { bucket: {} }).map(([name, options]) => [
        name,
        newBucket(name, options),
      ]),
    ),
    quirks,
    pageSize: of.pageSize ?? 1000,
    minPartBytes: of.minPartBytes ?? 5 * 1024 ** 2,
    nowMs: () => clock() + advancedMs,
  }
  const serve: Service = { world, users, requests, faults, closing: closing.signal }
  const server = createServer((request, response) => {
    handle(serve, request, response).catch((error: unknown) => {
      // Our own mistake: loud, and the client sees that it was no answer of S3.
      if (!request.destroyed && !closing.signal.aborted) console.error(error)
      response.destroy()
    })
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  const region = quirks.region ?? DEFAULT_REGION
  return {
    endpoint: `http://127.0.0.1:${port}`,
    requests,
    resetRequests: () => void requests.splice(0),
    objects: (bucket = 'bucket') => {
      const { objects } = bucketOf(world, bucket)
      const seen = [...objects].filter(([, versions]) => !versions[0]!.isDeleteMarker)
      return new Map(seen.map(([key, versions]) => [key, stored(versions[0]!)]))
    },
    versions: (bucket, key) =>
      (bucketOf(world, bucket).objects.get(key) ?? []).map((version) => ({
        ...stored(version),
        versionId: version.versionId,
        isDeleteMarker: version.isDeleteMarker,
      })),
    uploads: (bucket = 'bucket') =>
      [...bucketOf(world, bucket).uploads.values()].map(({ key, uploadId, parts }) => ({
        key,
        uploadId,
        parts: parts.size,
      })),
    tamper: (bucket, key, bytes) => {
      const version = currentOf(bucketOf(world, bucket), key)
      if (version === undefined) throw new Error(`there is no ${key} to tamper with`)
      version.body = bytes
    },
    put: ({ bucket: name = 'bucket', key, body, storageClass = 'STANDARD' }) => {
      const bucket = bucketOf(world, name)
      addVersion(bucket, key, {
        versionId: nextVersionId(bucket),
        isDeleteMarker: false,
        body,
        etag: md5Of(body).toString('hex'),
        lastModifiedMs: world.nowMs(),
        storageClass,
        metadata: {},
        contentType: 'binary/octet-stream',
        checksums: {},
        checksumType: 'FULL_OBJECT',
        lock: undefined,
        thawed: undefined,
      })
    },
    lose: (bucket, key) => void bucketOf(world, bucket).objects.delete(key),
    configure: (name, options) => {
      const bucket = bucketOf(world, name)
      const fresh = newBucket(name, { ...bucket.settings, ...options })
      bucket.settings = fresh.settings
      if ('lifecycle' in options) bucket.lifecycleXml = fresh.lifecycleXml
      if ('versioning' in options || 'objectLock' in options) {
        const wasOn = bucket.versioning !== 'off'
        bucket.versioning = fresh.versioning === 'off' && wasOn ? 'suspended' : fresh.versioning
      }
    },
    fault: (rule) => {
      const fault = { rule, seen: 0 }
      faults.add(fault)
      return () => void faults.delete(fault)
    },
    advance: (ms) => void (advancedMs += ms),
    nowMs: world.nowMs,
    environment: (accessKey = Object.keys(users)[0]!) => ({
      AWS_ACCESS_KEY_ID: accessKey,
      AWS_SECRET_ACCESS_KEY: users[accessKey]!.secret,
      AWS_SHARED_CREDENTIALS_FILE: '/dev/null',
      AWS_CONFIG_FILE: '/dev/null',
      ...commonEnvironment(region),
    }),
    writeProfiles: (directory, profiles) => {
      const credentials = join(directory, 'credentials')
      const config = join(directory, 'config')
      const sections = Object.entries(profiles).map(
        ([name, accessKey]) =>
          `[${name}]\naws_access_key_id = ${accessKey}\n`
          + `aws_secret_access_key = ${users[accessKey]!.secret}\n`,
      )
      writeFileSync(credentials, sections.join('\n'), { mode: 0o600 })
      writeFileSync(config, '', { mode: 0o600 })
      return {
        AWS_SHARED_CREDENTIALS_FILE: credentials,
        AWS_CONFIG_FILE: config,
        ...commonEnvironment(region),
      }
    },
    close: async () => {
      closing.abort()
      const closed = new Promise((resolve) => server.close(resolve))
      server.closeAllConnections()
      await closed
    },
  }
}

interface Service {
  readonly world: World
  readonly users: Readonly<Record<string, User>>
  readonly requests: S3Request[]
  readonly faults: Set<ActiveFault>
  readonly closing: AbortSignal
}

async function handle(
  service: Service,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const target = targetOf(request)
  const logged: S3Request = {
    method: target.method,
    action: target.action,
    bucket: target.bucket,
    key: target.key,
    query: Object.fromEntries(target.query),
    headers: request.headers,
    accessKey: undefined,
    status: 0,
    bytesIn: 0,
    bytesOut: 0,
  }
  service.requests.push(logged)
  const fault = faultFor(service.faults, target)
  if (fault?.kind === 'reset') return void request.socket.destroy()
  const received = await bodyOf(request)
  // A client that went away in the middle has sent nothing.
  if (received === undefined) return
  logged.bytesIn = received.length
  if (fault?.kind === 'stall') return
  if (fault?.kind === 'slow') await sleep(fault.ms, undefined, { signal: service.closing })
  const isUpload = target.action === 'PutObject' || target.action === 'UploadPart'
  const isFlippedOnTheWay = fault?.kind === 'corrupt' && isUpload
  const body = isFlippedOnTheWay ? flipped(received) : received
  let answer: Answer
  try {
    const failure = fault === undefined ? undefined : failureOf(fault)
    if (failure !== undefined) throw failure
    answer = perform(service, { ...target, request, body, logged })
  } catch (error) {
    if (!(error instanceof S3Failure)) throw error
    answer = failureAnswer(error, `/${target.bucket}/${target.key}`)
  }
  if (fault?.kind === 'reset-after') return void request.socket.destroy()
  if (fault?.kind === 'corrupt' && !isFlippedOnTheWay) answer = flippedAnswer(answer)
  send({ request, response, answer, logged, isTruncated: fault?.kind === 'truncate' })
}

/** Who it is, whether they may, and then the work itself. */
function perform(
  { world, users }: Service,
  of: Target & {
    readonly request: IncomingMessage
    readonly body: Buffer
    readonly logged: S3Request
  },
): Answer {
  const { request, body, logged, action } = of
  const { headers, method = '', url = '' } = request
  const { accessKey, region } = verifySignature(
    { headers, method, url },
    (name) => users[name]?.secret,
  )
  logged.accessKey = accessKey
  requireRegion(world, of.bucket, region)
  const isChunked = String(headers['x-amz-content-sha256']).startsWith('STREAMING-')
  const hasLength = headers['content-length'] !== undefined
  if (isChunked || (!hasLength && (method === 'PUT' || headers['transfer-encoding']))) {
    refuse(411, 'MissingContentLength', 'You must provide the Content-Length HTTP header.')
  }
  checkPayload(headers, body)
  const operation = OPERATIONS[action]
  if (operation === undefined || world.quirks.unsupported?.includes(action)) {
    const message = 'A header you provided implies functionality that is not implemented'
    return refuse(501, 'NotImplemented', message)
  }
  const { may = () => true } = users[accessKey]!
  const { bucket, key, query } = of
  const call: Call = { method, bucket, key, query, headers, body, accessKey, may }
  return operation(world, call)
}

function requireRegion(world: World, name: string, signed: string): void {
  const expected = world.buckets.get(name)?.settings.region ?? world.quirks.region
  if (expected === undefined || expected === signed) return
  throw new S3Failure({
    status: 400,
    code: 'AuthorizationHeaderMalformed',
    message:
      `The authorization header is malformed; the region '${signed}' is wrong; `
      + `expecting '${expected}'`,
    headers: { 'x-amz-bucket-region': expected },
    elements: { Region: expected },
  })
}

function send(of: {
  readonly request: IncomingMessage
  readonly response: ServerResponse
  readonly answer: Answer
  readonly logged: S3Request
  readonly isTruncated: boolean
}): void {
  const { request, response, answer, logged } = of
  const isHead = request.method === 'HEAD'
  const isBodyless = isHead || answer.status === 204
  // The length of an error is not the object's: HEAD answers it without.
  const length = isHead && answer.status >= 300 ? 0 : answer.body.length
  logged.status = answer.status
  logged.bytesOut = isBodyless ? 0 : answer.body.length
  response.writeHead(answer.status, {
    ...answer.headers,
    ...(answer.status === 204 ? {} : { 'content-length': length }),
    'x-amz-request-id': 'stand-in',
  })
  if (of.isTruncated) {
    const half = isBodyless ? answer.body.subarray(0, 0) : answer.body
    response.flushHeaders()
    response.write(half.subarray(0, half.length >> 1), () => request.socket.destroy())
    return
  }
  response.end(isBodyless ? undefined : answer.body)
}

interface Target {
  readonly method: string
  readonly action: string
  readonly bucket: string
  readonly key: string
  readonly query: ReadonlyMap<string, string>
}

function targetOf(request: IncomingMessage): Target {
  const { method = '', url = '/' } = request
  const at = url.indexOf('?')
  const path = decodeURIComponent((at === -1 ? url : url.slice(0, at)).slice(1))
  const query = new Map(
    (at === -1 ? '' : url.slice(at + 1))
      .split('&')
      .filter((pair) => pair !== '')
      .map((pair) => {
        const [name = '', ...value] = pair.split('=')
        return [decodeURIComponent(name), decodeURIComponent(value.join('='))] as const
      }),
  )
  const slash = path.indexOf('/')
  const bucket = slash === -1 ? path : path.slice(0, slash)
  const key = slash === -1 ? '' : path.slice(slash + 1)
  const isCopy = request.headers['x-amz-copy-source'] !== undefined
  return { method, bucket, key, query, action: actionOf({ method, bucket, key, query, isCopy }) }
}

/** The whole body, or undefined where the client went away before its end. */
async function bodyOf(request: IncomingMessage): Promise<Buffer | undefined> {
  const declared = Number(request.headers['content-length'] ?? '0')
  if (declared > MAX_BODY_BYTES) throw new Error(`a body of ${declared} bytes is too much here`)
  const chunks: Buffer[] = []
  try {
    for await (const chunk of request) chunks.push(chunk as Buffer)
  } catch {
    return undefined
  }
  return chunks.length === 1 ? chunks[0] : Buffer.concat(chunks)
}

function newBucket(name: string, options: BucketOptions): StoredBucket {
  const { lifecycle, versioning, objectLock } = options
  return {
    name,
    settings: options,
    versioning: versioning || objectLock ? 'on' : 'off',
    lifecycleXml:
      lifecycle === undefined
        ? undefined
        : xmlDocument('LifecycleConfiguration', { Rule: lifecycle }),
    objects: new Map(),
    uploads: new Map(),
  }
}

function stored(version: {
  readonly body: Buffer
  readonly storageClass: string
  readonly metadata: Readonly<Record<string, string>>
  readonly lock: Lock | undefined
}): StoredObject {
  const { body, storageClass, lock } = version
  const metadata = Object.entries(version.metadata).map(
    ([name, value]) => [name.slice('x-amz-meta-'.length), value] as const,
  )
  return { body, storageClass, lock, metadata: Object.fromEntries(metadata) }
}

function commonEnvironment(region: string): Record<string, string> {
  return { AWS_REGION: region, AWS_EC2_METADATA_DISABLED: 'true' }
}
