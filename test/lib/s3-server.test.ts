// The stand-in S3 server: that it keeps to what Amazon documents, with the SDK as the referee, and
// that everything which can be made to go wrong does go wrong, each once. Says nothing about any
// real service: that is what test/s3 is for.

import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import { readFileSync, statSync } from 'node:fs'
import { connect } from 'node:net'
import { Readable } from 'node:stream'
import { crc32 } from 'node:zlib'
import {
  AbortMultipartUploadCommand,
  type ChecksumAlgorithm,
  CompleteMultipartUploadCommand,
  type CompletedPart,
  CopyObjectCommand,
  CreateMultipartUploadCommand,
  DeleteBucketLifecycleCommand,
  DeleteObjectCommand,
  GetBucketAclCommand,
  GetBucketEncryptionCommand,
  GetBucketLifecycleConfigurationCommand,
  GetBucketLocationCommand,
  GetBucketOwnershipControlsCommand,
  GetBucketPolicyCommand,
  GetBucketPolicyStatusCommand,
  GetBucketTaggingCommand,
  GetBucketVersioningCommand,
  GetObjectCommand,
  GetObjectLockConfigurationCommand,
  GetObjectRetentionCommand,
  GetPublicAccessBlockCommand,
  HeadBucketCommand,
  HeadObjectCommand,
  ListBucketsCommand,
  ListMultipartUploadsCommand,
  ListObjectsV2Command,
  ListObjectVersionsCommand,
  ListPartsCommand,
  paginateListObjectsV2,
  paginateListParts,
  PutBucketLifecycleConfigurationCommand,
  PutBucketVersioningCommand,
  PutObjectCommand,
  type PutObjectCommandInput,
  PutObjectLockConfigurationCommand,
  PutObjectRetentionCommand,
  RestoreObjectCommand,
  S3Client,
  type S3ClientConfig,
  type Tier,
  UploadPartCommand,
} from '@aws-sdk/client-s3'
import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'
import { type S3Server, type S3ServerOptions, startS3Server } from '../helpers/s3-server.ts'
import { checksumOf } from '../helpers/s3-server/checksums.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const test = suite('s3-server')

const Bucket = 'bucket'
/** What the SDK has to say about bodies that it cannot send again. */
const SILENT = { trace: ignore, debug: ignore, info: ignore, warn: ignore, error: ignore }

const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS
const NOW = Date.parse('2026-05-20T02:00:00Z')

function ignore(): void {}

/** A server and a client of it that tries everything once, for the time of `action`. */
async function withServer(
  of: S3ServerOptions & { readonly client?: S3ClientConfig },
  action: (server: S3Server, s3: S3Client) => Promise<void>,
): Promise<void> {
  const server = await startS3Server(of)
  const s3 = clientOf(server, of.client)
  try {
    await action(server, s3)
  } finally {
    s3.destroy()
    await server.close()
  }
}

function clientOf(server: S3Server, more: S3ClientConfig = {}): S3Client {
  return new S3Client({
    endpoint: server.endpoint,
    region: 'us-east-1',
    forcePathStyle: true,
    maxAttempts: 1,
    logger: SILENT,
    credentials: { accessKeyId: 'testkey', secretAccessKey: 'testsecret' },
    requestChecksumCalculation: 'WHEN_REQUIRED',
    responseChecksumValidation: 'WHEN_REQUIRED',
    ...more,
  })
}

/** `403 AccessDenied`; without a code where there was no answer. */
async function refusal(call: Promise<unknown>): Promise<string> {
  try {
    await call
  } catch (error) {
    const { name, $metadata } = error as Error & { $metadata?: { httpStatusCode?: number } }
    return `${$metadata?.httpStatusCode ?? 'none'} ${name}`
  }
  return 'done'
}

function put(key: string, body = key): PutObjectCommand {
  return new PutObjectCommand({ Bucket, Key: key, Body: Buffer.from(body) })
}

async function text(s3: S3Client, key: string, more: object = {}): Promise<string> {
  const { Body } = await s3.send(new GetObjectCommand({ Bucket, Key: key, ...more }))
  return (await Body?.transformToString()) ?? ''
}

function base64Crc32(...bytes: Buffer[]): string {
  const result = Buffer.alloc(4)
  result.writeUInt32BE(crc32(Buffer.concat(bytes)))
  return result.toString('base64')
}

function base64Md5(bytes: Buffer): string {
  return createHash('md5').update(bytes).digest('base64')
}

test('what is put comes back, under any key', async () => {
  await withServer({}, async (server, s3) => {
    for (const Key of ['a', 'a//b', "q (1)!*'+%20&=é/日本 😀", 'x/../y', 'uploads', 'acl/']) {
      const Metadata = { one: 'two' }
      await s3.send(new PutObjectCommand({ Bucket, Key, Body: Buffer.from(Key), Metadata }))
      const head = await s3.send(new HeadObjectCommand({ Bucket, Key }))
      assert.equal(await text(s3, Key), Key)
      assert.equal(head.Metadata, Metadata)
      assert.is(head.ContentLength, Buffer.byteLength(Key))
      assert.is(head.ETag, `"${createHash('md5').update(Key).digest('hex')}"`)
      assert.is(head.VersionId, undefined)
      assert.is(head.StorageClass, undefined)
      assert.equal(server.objects().get(Key)?.metadata, Metadata)
    }
    await s3.send(put('empty', ''))
    assert.is(await text(s3, 'empty'), '')
    await s3.send(new DeleteObjectCommand({ Bucket, Key: 'a' }))
    assert.is(await refusal(text(s3, 'a')), '404 NoSuchKey')
    const gone = s3.send(new HeadObjectCommand({ Bucket, Key: 'a' }))
    assert.is(await refusal(gone), '404 NotFound')
    assert.not.ok(server.objects().has('a'))
    const elsewhere = s3.send(new GetObjectCommand({ Bucket: 'other', Key: 'a' }))
    assert.is(await refusal(elsewhere), '404 NoSuchBucket')
    const long = s3.send(put('k'.repeat(1025), ''))
    assert.is(await refusal(long), '400 KeyTooLongError')
  })
})

test('a signature that is not right opens nothing', async () => {
  await withServer({}, async (server, s3) => {
    await s3.send(put('a'))
    const as = (accessKeyId: string, secretAccessKey: string, more: S3ClientConfig = {}) =>
      clientOf(server, { credentials: { accessKeyId, secretAccessKey }, ...more })
    const wrong = as('testkey', 'wrong')
    assert.is(await refusal(wrong.send(put('b'))), '403 SignatureDoesNotMatch')
    assert.is(await refusal(text(wrong, 'a')), '403 SignatureDoesNotMatch')
    const unknown = as('nobody', 'testsecret')
    assert.is(await refusal(text(unknown, 'a')), '403 InvalidAccessKeyId')
    for (const [minutes, expected] of [
      [14, 'done'],
      [16, '403 RequestTimeTooSkewed'],
      [-14, 'done'],
      [-16, '403 RequestTimeTooSkewed'],
    ] as const) {
      const off = as('testkey', 'testsecret', { systemClockOffset: minutes * 60_000 })
      assert.is(await refusal(text(off, 'a')), expected, `${minutes} minutes`)
    }
    const anonymous = await fetch(`${server.endpoint}/bucket/a`)
    assert.is(anonymous.status, 403)
    assert.match(await anonymous.text(), /<Code>AccessDenied<\/Code>/)
    assert.equal([...server.objects().keys()], ['a'])
    assert.is(server.requests.at(-1)?.accessKey, undefined)
  })
})

test('what is signed cannot be changed on its way', async () => {
  await withServer({}, async (server) => {
    const changed = async (name: string, change: (request: Sent) => void): Promise<string> => {
      const s3 = clientOf(server)
      s3.middlewareStack.add(
        (next) => async (args) => {
          change(args.request as Sent)
          return await next(args)
        },
        // After signing, right before it is sent.
        { step: 'finalizeRequest', priority: 'low', name },
      )
      return await refusal(s3.send(put('a')))
    }
    const body = (request: Sent): void => void (request.body = Buffer.from('b'))
    assert.is(await changed('body', body), '400 XAmzContentSHA256Mismatch')
    const path = (request: Sent): void => void (request.path = '/bucket/b')
    assert.is(await changed('path', path), '403 SignatureDoesNotMatch')
    const query = (request: Sent): void => void (request.query = { a: 'b' })
    assert.is(await changed('query', query), '403 SignatureDoesNotMatch')
    const digest = (request: Sent): void => {
      request.headers['x-amz-content-sha256'] = 'UNSIGNED-PAYLOAD'
    }
    assert.is(await changed('digest', digest), '403 SignatureDoesNotMatch')
    assert.is(server.objects().size, 0)
  })
})

interface Sent {
  path: string
  body: Buffer
  query: Record<string, string>
  headers: Record<string, string>
}

test('a wrong digest is refused, unless the service does not look', async () => {
  const body = Buffer.from('some bytes')
  const other = Buffer.from('other bytes')
  const wrong: Partial<PutObjectCommandInput>[] = [
    { ContentMD5: base64Md5(other) },
    { ChecksumCRC32: base64Crc32(other) },
    { ChecksumCRC32C: checksumOf('crc32c', other).toString('base64') },
    { ChecksumCRC64NVME: checksumOf('crc64nvme', other).toString('base64') },
    { ChecksumSHA1: checksumOf('sha1', other).toString('base64') },
    { ChecksumSHA256: checksumOf('sha256', other).toString('base64') },
  ]
  await withServer({}, async (server, s3) => {
    for (const digest of wrong) {
      const call = s3.send(new PutObjectCommand({ Bucket, Key: 'a', Body: body, ...digest }))
      assert.is(await refusal(call), '400 BadDigest', JSON.stringify(digest))
    }
    const none = { Bucket, Key: 'a', Body: body, ContentMD5: 'none' }
    assert.is(await refusal(s3.send(new PutObjectCommand(none))), '400 InvalidDigest')
    assert.is(server.objects().size, 0)
  })
  const ignoring = { quirks: { checksums: 'ignored', md5: 'ignored' } } as const
  await withServer(ignoring, async (server, s3) => {
    for (const digest of wrong) {
      await s3.send(new PutObjectCommand({ Bucket, Key: 'a', Body: body, ...digest }))
    }
    const ChecksumMode = 'ENABLED'
    const head = await s3.send(new HeadObjectCommand({ Bucket, Key: 'a', ChecksumMode }))
    assert.is(head.ChecksumSHA256, undefined)
    assert.ok(server.objects().get('a')?.body.equals(body))
  })
})

test('the SDK computes the same checksums, and gets them back', async () => {
  assert.is(checksumOf('crc64nvme', Buffer.from('123456789')).toString('hex'), 'ae8b14860a799888')
  assert.is(checksumOf('crc32c', Buffer.from('123456789')).toString('hex'), 'e3069283')
  const client = {
    requestChecksumCalculation: 'WHEN_SUPPORTED',
    responseChecksumValidation: 'WHEN_SUPPORTED',
  } as const
  await withServer({ client }, async (server, s3) => {
    const names: ChecksumAlgorithm[] = ['CRC32', 'CRC32C', 'CRC64NVME', 'SHA1', 'SHA256']
    for (const ChecksumAlgorithm of names) {
      const Key = ChecksumAlgorithm
      await s3.send(new PutObjectCommand({ Bucket, Key, Body: 'bytes', ChecksumAlgorithm }))
      assert.is(await text(s3, Key), 'bytes')
      const ChecksumMode = 'ENABLED'
      const head = await s3.send(new HeadObjectCommand({ Bucket, Key, ChecksumMode }))
      assert.ok(head[`Checksum${ChecksumAlgorithm}` as keyof typeof head], Key)
      assert.is(head.ChecksumType, 'FULL_OBJECT')
      const silent = await s3.send(new HeadObjectCommand({ Bucket, Key }))
      assert.is(silent[`Checksum${ChecksumAlgorithm}` as keyof typeof silent], undefined)
    }
    server.tamper(Bucket, 'CRC32', Buffer.from('bytez'))
    assert.match(await refusal(text(s3, 'CRC32')), /^200 |^none /)
    assert.is(await text(s3, 'CRC32', { Range: 'bytes=0-9' }), 'bytez')
  })
})

test('a body in chunks without its length is refused', async () => {
  const client = { requestChecksumCalculation: 'WHEN_SUPPORTED' } as const
  await withServer({ client }, async (server, s3) => {
    const stream = Readable.from([Buffer.from('bytes')])
    const call = s3.send(new PutObjectCommand({ Bucket, Key: 'a', Body: stream, ContentLength: 5 }))
    assert.is(await refusal(call), '411 MissingContentLength')
    assert.is(server.objects().size, 0)
  })
})

test('ranges are exact at the ends', async () => {
  await withServer({}, async (_, s3) => {
    await s3.send(put('a', '0123456789'))
    await s3.send(put('empty', ''))
    const cases = {
      'bytes=0-0': '0',
      'bytes=3-5': '345',
      'bytes=9-9': '9',
      'bytes=8-20': '89',
      'bytes=7-': '789',
      'bytes=-2': '89',
      'bytes=-20': '0123456789',
    }
    for (const [Range, expected] of Object.entries(cases)) {
      const answer = await s3.send(new GetObjectCommand({ Bucket, Key: 'a', Range }))
      assert.is(await answer.Body?.transformToString(), expected, Range)
      assert.is(answer.$metadata.httpStatusCode, 206)
      assert.match(answer.ContentRange ?? '', /^bytes \d+-\d+\/10$/)
    }
    assert.is(await refusal(text(s3, 'a', { Range: 'bytes=10-' })), '416 InvalidRange')
    assert.is(await refusal(text(s3, 'empty', { Range: 'bytes=0-9' })), '416 InvalidRange')
  })
})

test('If-None-Match is honoured, ignored or refused', async () => {
  const call = { Bucket, Key: 'a', Body: 'new', IfNoneMatch: '*' }
  await withServer({ buckets: { bucket: { versioning: true } } }, async (server, s3) => {
    await s3.send(new PutObjectCommand(call))
    const again = s3.send(new PutObjectCommand({ ...call, Body: 'newer' }))
    assert.is(await refusal(again), '412 PreconditionFailed')
    assert.is(server.versions(Bucket, 'a').length, 1)
    const etag = s3.send(new PutObjectCommand({ ...call, IfNoneMatch: '"abc"' }))
    assert.is(await refusal(etag), '501 NotImplemented')
    await s3.send(new DeleteObjectCommand({ Bucket, Key: 'a' }))
    await s3.send(new PutObjectCommand(call))
    assert.is(server.versions(Bucket, 'a').length, 3)
  })
  await withServer({ quirks: { conditional: 'ignored' } }, async (_, s3) => {
    await s3.send(put('a', 'old'))
    await s3.send(new PutObjectCommand(call))
    assert.is(await text(s3, 'a'), 'new')
  })
  await withServer({ quirks: { conditional: 'refused' } }, async (server, s3) => {
    assert.is(await refusal(s3.send(new PutObjectCommand(call))), '501 NotImplemented')
    assert.is(server.objects().size, 0)
  })
})

test('lists come in pages, in the order of bytes, folders counted once', async () => {
  await withServer({ pageSize: 2 }, async (server, s3) => {
    const keys = ['a', 'b/1', 'b/2', 'b/3', 'c', 'd/1', 'é', '\uff5e', '😀', 'z<&>"\'']
    for (const key of keys) await s3.send(put(key))
    const seen: string[] = []
    for await (const { Contents = [] } of paginateListObjectsV2({ client: s3 }, { Bucket })) {
      assert.ok(Contents.length <= 2)
      seen.push(...Contents.map(({ Key = '' }) => Key))
    }
    const inBytes = (one: string, other: string): number =>
      Buffer.compare(Buffer.from(one), Buffer.from(other))
    assert.equal(seen, [...keys].sort(inBytes))
    const rows: string[] = []
    const of = { Bucket, Delimiter: '/' }
    for await (const page of paginateListObjectsV2({ client: s3 }, of)) {
      rows.push(...(page.Contents ?? []).map(({ Key = '' }) => Key))
      rows.push(...(page.CommonPrefixes ?? []).map(({ Prefix = '' }) => Prefix))
      assert.is(page.KeyCount, (page.Contents?.length ?? 0) + (page.CommonPrefixes?.length ?? 0))
    }
    assert.equal(rows.sort(), ['a', 'b/', 'c', 'd/', 'é', '\uff5e', '😀', 'z<&>"\''].sort())
    const below = new ListObjectsV2Command({ Bucket, Prefix: 'b/', StartAfter: 'b/1', MaxKeys: 1 })
    const page = await s3.send(below)
    assert.equal(
      page.Contents?.map(({ Key, Size }) => [Key, Size]),
      [['b/2', 3]],
    )
    assert.is(page.IsTruncated, true)
    const nothing = await s3.send(new ListObjectsV2Command({ Bucket, Prefix: 'nothing' }))
    assert.is(nothing.KeyCount, 0)
    assert.is(server.requests.at(-1)?.query['prefix'], 'nothing')
    const wrong = new ListObjectsV2Command({ Bucket, ContinuationToken: '?' })
    assert.is(await refusal(s3.send(wrong)), '400 InvalidArgument')
  })
})

test('versions hide each other and do not go', async () => {
  await withServer({ pageSize: 2 }, async (server, s3) => {
    await s3.send(put('k', 'before versions'))
    const on = { Bucket, VersioningConfiguration: { Status: 'Enabled' } } as const
    await s3.send(new PutBucketVersioningCommand(on))
    const { VersionId: second = '' } = await s3.send(put('k', 'second'))
    const deleted = await s3.send(new DeleteObjectCommand({ Bucket, Key: 'k' }))
    assert.is(deleted.DeleteMarker, true)
    assert.is(await refusal(text(s3, 'k')), '404 NoSuchKey')
    assert.is(await text(s3, 'k', { VersionId: second }), 'second')
    assert.is(await text(s3, 'k', { VersionId: 'null' }), 'before versions')
    const marker = { VersionId: deleted.VersionId ?? '' }
    assert.is(await refusal(text(s3, 'k', marker)), '405 MethodNotAllowed')
    assert.is(await refusal(text(s3, 'k', { VersionId: 'other' })), '404 NoSuchVersion')
    assert.is((await s3.send(new ListObjectsV2Command({ Bucket }))).KeyCount, 0)
    await s3.send(put('l'))
    const first = await s3.send(new ListObjectVersionsCommand({ Bucket }))
    assert.equal(
      first.DeleteMarkers?.map(({ IsLatest }) => IsLatest),
      [true],
    )
    assert.equal(
      first.Versions?.map(({ VersionId, IsLatest, Size }) => [VersionId, IsLatest, Size]),
      [[second, false, 6]],
    )
    const rest = await s3.send(
      new ListObjectVersionsCommand({
        Bucket,
        KeyMarker: first.NextKeyMarker,
        VersionIdMarker: first.NextVersionIdMarker,
      }),
    )
    assert.equal(
      rest.Versions?.map(({ Key, IsLatest }) => [Key, IsLatest]),
      [
        ['k', false],
        ['l', true],
      ],
    )
    assert.is(rest.IsTruncated, false)
    await s3.send(new DeleteObjectCommand({ Bucket, Key: 'k', ...marker }))
    assert.is(await text(s3, 'k'), 'second')
    await s3.send(new DeleteObjectCommand({ Bucket, Key: 'k', VersionId: 'not there' }))
    const off = { Bucket, VersioningConfiguration: { Status: 'Suspended' } } as const
    await s3.send(new PutBucketVersioningCommand(off))
    await s3.send(put('k', 'third'))
    await s3.send(put('k', 'fourth'))
    assert.equal(
      server.versions(Bucket, 'k').map(({ versionId, body }) => [versionId, String(body)]),
      [
        ['null', 'fourth'],
        [second, 'second'],
      ],
    )
  })
})

test('a lock holds until its time, against everybody or against those who may not pass', async () => {
  const users = {
    testkey: { secret: 'testsecret' },
    plain: { secret: 'secret', may: (action: string) => !action.includes('Bypass') },
  }
  const buckets = { bucket: { objectLock: { mode: 'GOVERNANCE', days: 2 } }, free: {} } as const
  await withServer({ buckets, users, nowMs: () => NOW }, async (server, s3) => {
    const plain = clientOf(server, {
      credentials: { accessKeyId: 'plain', secretAccessKey: 'secret' },
    })
    assert.is(await refusal(s3.send(put('a'))), '400 InvalidRequest')
    const ContentMD5 = base64Md5(Buffer.from('a'))
    const of = { Bucket, Key: 'a' }
    const { VersionId } = await s3.send(new PutObjectCommand({ ...of, Body: 'a', ContentMD5 }))
    const head = await s3.send(new HeadObjectCommand(of))
    assert.is(head.ObjectLockMode, 'GOVERNANCE')
    assert.is(head.ObjectLockRetainUntilDate?.getTime(), NOW + 2 * DAY_MS)
    const version = { ...of, VersionId }
    const bypass = { ...version, BypassGovernanceRetention: true }
    const denied = '403 AccessDenied'
    assert.is(await refusal(s3.send(new DeleteObjectCommand(version))), denied)
    assert.is(await refusal(plain.send(new DeleteObjectCommand(bypass))), denied)
    await s3.send(new DeleteObjectCommand(of))
    assert.is(server.versions(Bucket, 'a').length, 2)

    const retain = (
      client: S3Client,
      Mode: 'GOVERNANCE' | 'COMPLIANCE',
      days: number,
      more: { BypassGovernanceRetention?: boolean } = {},
    ): Promise<string> => {
      const Retention = { Mode, RetainUntilDate: new Date(NOW + days * DAY_MS) }
      const input = { ...version, Retention, ...more }
      return refusal(client.send(new PutObjectRetentionCommand(input)))
    }
    const pass = { BypassGovernanceRetention: true }
    assert.is(await retain(plain, 'GOVERNANCE', 1), denied)
    assert.is(await retain(plain, 'GOVERNANCE', 1, pass), denied)
    assert.is(await retain(s3, 'GOVERNANCE', 1, pass), 'done')
    assert.is(await retain(plain, 'GOVERNANCE', 3), 'done')
    assert.is(await retain(s3, 'COMPLIANCE', 4, pass), 'done')
    assert.is(await retain(s3, 'COMPLIANCE', 3, pass), denied)
    assert.is(await retain(s3, 'COMPLIANCE', 5), 'done')
    assert.is(await retain(s3, 'COMPLIANCE', -1), '400 InvalidArgument')
    assert.is(await refusal(s3.send(new DeleteObjectCommand(bypass))), denied)
    const { Retention } = await s3.send(new GetObjectRetentionCommand(version))
    assert.is(Retention?.RetainUntilDate?.getTime(), NOW + 5 * DAY_MS)
    server.advance(5 * DAY_MS - 1)
    assert.is(await refusal(s3.send(new DeleteObjectCommand(version))), denied)
    server.advance(1)
    await s3.send(new DeleteObjectCommand(version))
    assert.equal(
      server.versions(Bucket, 'a').map(({ isDeleteMarker }) => isDeleteMarker),
      [true],
    )

    const locked = {
      ContentMD5,
      ObjectLockMode: 'GOVERNANCE',
      ObjectLockRetainUntilDate: new Date(NOW + 9 * DAY_MS),
    } as const
    const free = { Bucket: 'free', Key: 'a', Body: 'a', ...locked }
    assert.is(await refusal(s3.send(new PutObjectCommand(free))), '400 InvalidRequest')
    await s3.send(new PutObjectCommand({ ...of, Body: 'a', ...locked }))
    assert.is(server.objects().get('a')?.lock?.untilMs, NOW + 9 * DAY_MS)
    const off = { Bucket, VersioningConfiguration: { Status: 'Suspended' } } as const
    const suspended = s3.send(new PutBucketVersioningCommand(off))
    assert.is(await refusal(suspended), '409 InvalidBucketState')
    plain.destroy()
  })
})

/** An upload of two parts, and the parts as they are named at its end. */
async function begin(
  s3: S3Client,
  bodies: readonly Buffer[],
  more: { ChecksumAlgorithm?: 'CRC32'; ChecksumType?: 'FULL_OBJECT' | 'COMPOSITE' } = {},
): Promise<{ UploadId: string; Parts: CompletedPart[] }> {
  const created = await s3.send(
    new CreateMultipartUploadCommand({ Bucket, Key: 'm', Metadata: { a: 'b' }, ...more }),
  )
  const UploadId = created.UploadId ?? ''
  const Parts: CompletedPart[] = []
  for (const [index, Body] of bodies.entries()) {
    const checksum = more.ChecksumAlgorithm ? { ChecksumCRC32: base64Crc32(Body) } : {}
    const PartNumber = index + 1
    const { ETag } = await s3.send(
      new UploadPartCommand({ Bucket, Key: 'm', UploadId, PartNumber, Body, ...checksum }),
    )
    Parts.push({ PartNumber, ETag, ...checksum })
  }
  return { UploadId, Parts }
}

function complete(
  of: { readonly UploadId: string; readonly Parts: CompletedPart[] },
  more: object = {},
): CompleteMultipartUploadCommand {
  const { UploadId, Parts } = of
  const input = { Bucket, Key: 'm', UploadId, MultipartUpload: { Parts }, ...more }
  return new CompleteMultipartUploadCommand(input)
}

test('an upload in parts is one object, or nothing', async () => {
  const bodies = [Buffer.alloc(10, 1), Buffer.alloc(9, 2), Buffer.alloc(3, 3)]
  await withServer({ minPartBytes: 10, pageSize: 2 }, async (server, s3) => {
    const small = await begin(s3, bodies)
    assert.is(await refusal(s3.send(complete(small))), '400 EntityTooSmall')
    const backwards = { ...small, Parts: [...small.Parts].reverse() }
    assert.is(await refusal(s3.send(complete(backwards))), '400 InvalidPartOrder')
    const [one, two] = small.Parts as [CompletedPart, CompletedPart]
    const strange = { ...small, Parts: [one, { ...two, ETag: one.ETag }] }
    assert.is(await refusal(s3.send(complete(strange))), '400 InvalidPart')
    const missing = { ...small, Parts: [one, { ...two, PartNumber: 9 }] }
    assert.is(await refusal(s3.send(complete(missing))), '400 InvalidPart')
    assert.is(server.objects().size, 0)

    const of = { Bucket, Key: 'm', UploadId: small.UploadId }
    const numbers: (number | undefined)[] = []
    for await (const page of paginateListParts({ client: s3 }, of)) {
      numbers.push(...(page.Parts ?? []).map(({ PartNumber }) => PartNumber))
    }
    assert.equal(numbers, [1, 2, 3])
    await begin(s3, [])
    await begin(s3, [])
    const uploads = await s3.send(new ListMultipartUploadsCommand({ Bucket, Prefix: 'm' }))
    assert.is(uploads.Uploads?.length, 2)
    assert.is(uploads.IsTruncated, true)
    const rest = await s3.send(
      new ListMultipartUploadsCommand({
        Bucket,
        KeyMarker: uploads.NextKeyMarker,
        UploadIdMarker: uploads.NextUploadIdMarker,
      }),
    )
    assert.is(rest.Uploads?.length, 1)

    const Body = Buffer.alloc(10, 4)
    const again = await s3.send(new UploadPartCommand({ ...of, PartNumber: 2, Body }))
    const parts = [one, { ...two, ETag: again.ETag }]
    await s3.send(complete({ ...small, Parts: parts }))
    const stored = server.objects().get('m')
    assert.ok(stored?.body.equals(Buffer.concat([bodies[0]!, Body])), 'what is not named goes')
    assert.equal(stored?.metadata, { a: 'b' })
    const head = await s3.send(new HeadObjectCommand({ Bucket, Key: 'm' }))
    assert.match(head.ETag ?? '', /^"[0-9a-f]{32}-2"$/)
    const over = '404 NoSuchUpload'
    assert.is(await refusal(s3.send(complete(small))), over)
    assert.is(await refusal(s3.send(new ListPartsCommand(of))), over)

    for (const { uploadId } of server.uploads()) {
      const other = { Bucket, Key: 'm', UploadId: uploadId }
      await s3.send(new AbortMultipartUploadCommand(other))
      assert.is(await refusal(s3.send(new AbortMultipartUploadCommand(other))), over)
    }
    assert.equal(server.uploads(), [])
    const late = s3.send(new UploadPartCommand({ ...of, PartNumber: 1, Body }))
    assert.is(await refusal(late), over)
  })
})

test('parts and wholes are compared with their checksums', async () => {
  const bodies = [Buffer.alloc(10, 1), Buffer.alloc(3, 2)]
  const full = { ChecksumAlgorithm: 'CRC32', ChecksumType: 'FULL_OBJECT' } as const
  const right = { ChecksumCRC32: base64Crc32(...bodies), ChecksumType: 'FULL_OBJECT' }
  const wrong = { ...right, ChecksumCRC32: base64Crc32(bodies[0]!) }
  await withServer({ minPartBytes: 10 }, async (server, s3) => {
    const upload = await begin(s3, bodies, full)
    const part = { Bucket, Key: 'm', UploadId: upload.UploadId, PartNumber: 2, Body: bodies[1]! }
    const parts: [object, string][] = [
      [{ ChecksumCRC32: base64Crc32(bodies[0]!) }, '400 BadDigest'],
      [{ ContentMD5: base64Md5(bodies[0]!) }, '400 BadDigest'],
      [{}, '400 InvalidRequest'],
    ]
    for (const [digest, expected] of parts) {
      const call = s3.send(new UploadPartCommand({ ...part, ...digest }))
      assert.is(await refusal(call), expected, JSON.stringify(digest))
    }
    assert.is(await refusal(s3.send(complete(upload, wrong))), '400 BadDigest')
    const size = complete(upload, { ...right, MpuObjectSize: 12 })
    assert.is(await refusal(s3.send(size)), '400 InvalidRequest')
    assert.is(server.objects().size, 0)
    await s3.send(complete(upload, { ...right, MpuObjectSize: 13 }))
    const ChecksumMode = 'ENABLED'
    const head = await s3.send(new HeadObjectCommand({ Bucket, Key: 'm', ChecksumMode }))
    assert.is(head.ChecksumCRC32, right.ChecksumCRC32)
    assert.is(head.ChecksumType, 'FULL_OBJECT')

    const composite = await begin(s3, bodies, { ChecksumAlgorithm: 'CRC32' })
    const bare = composite.Parts.map(({ PartNumber, ETag }) => ({ PartNumber, ETag }))
    const without = s3.send(complete({ ...composite, Parts: bare }))
    assert.is(await refusal(without), '400 InvalidRequest')
    const done = await s3.send(complete(composite))
    assert.match(done.ChecksumCRC32 ?? '', /-2$/)
  })
  await withServer(
    { minPartBytes: 10, quirks: { fullObjectMultipart: false } },
    async (server, s3) => {
      await s3.send(complete(await begin(s3, bodies, full), wrong))
      assert.is(server.objects().size, 1)
    },
  )
})

test('If-None-Match holds at the end of an upload, where it does', async () => {
  const run = async (quirks: S3ServerOptions['quirks']): Promise<string> => {
    let result = ''
    await withServer({ ...(quirks && { quirks }) }, async (server, s3) => {
      const upload = await begin(s3, [Buffer.alloc(3)])
      await s3.send(put('m', 'other'))
      result = await refusal(s3.send(complete(upload, { IfNoneMatch: '*' })))
      assert.is((await text(s3, 'm')) === 'other', result !== 'done')
      assert.is(server.uploads().length, result === 'done' ? 0 : 1)
    })
    return result
  }
  assert.is(await run(undefined), '412 PreconditionFailed')
  assert.is(await run({ conditional: 'ignored' }), 'done')
  assert.is(await run({ conditionalComplete: 'ignored' }), 'done')
  assert.is(await run({ conditionalComplete: 'refused' }), '501 NotImplemented')
})

test('what is archived is read only after it was restored, for some days', async () => {
  const nowMs = (): number => NOW
  await withServer({ nowMs }, async (server, s3) => {
    const restore = (Key: string, tier: Tier, Days = 2): Promise<string> =>
      statusOf(
        s3.send(
          new RestoreObjectCommand({
            Bucket,
            Key,
            RestoreRequest: { Days, GlacierJobParameters: { Tier: tier } },
          }),
        ),
      )
    const head = (Key: string) => s3.send(new HeadObjectCommand({ Bucket, Key }))
    const durations = [
      ['GLACIER', 'Expedited', HOUR_MS / 12],
      ['GLACIER', 'Standard', 5 * HOUR_MS],
      ['GLACIER', 'Bulk', 12 * HOUR_MS],
      ['DEEP_ARCHIVE', 'Standard', 12 * HOUR_MS],
      ['DEEP_ARCHIVE', 'Bulk', 48 * HOUR_MS],
    ] as const
    for (const [StorageClass, tier, durationMs] of durations) {
      const key = `${StorageClass}/${tier}`
      await s3.send(new PutObjectCommand({ Bucket, Key: key, Body: key, StorageClass }))
      assert.is(await refusal(text(s3, key)), '403 InvalidObjectState')
      assert.is((await head(key)).StorageClass, StorageClass)
      assert.is((await head(key)).Restore, undefined)
      assert.is(await restore(key, tier), '202')
      assert.is((await head(key)).Restore, 'ongoing-request="true"')
      assert.is(await restore(key, tier), '409 RestoreAlreadyInProgress')
      server.advance(durationMs - 1)
      assert.is(await refusal(text(s3, key)), '403 InvalidObjectState')
      server.advance(1)
      assert.is(await text(s3, key), key)
    }
    const key = 'DEEP_ARCHIVE/Bulk'
    const expiry = /^ongoing-request="false", expiry-date="(.* 00:00:00 GMT)"$/
    const untilMs = Date.parse(expiry.exec((await head(key)).Restore ?? '')?.[1] ?? '')
    assert.ok(untilMs - server.nowMs() >= 2 * DAY_MS && untilMs - server.nowMs() < 3 * DAY_MS)
    assert.is(await restore(key, 'Bulk', 5), '200')
    server.advance(untilMs - server.nowMs() + 1)
    assert.is(await text(s3, key), key, 'five days from then')
    server.advance(5 * DAY_MS)
    assert.is(await refusal(text(s3, key)), '403 InvalidObjectState')
    assert.is((await head(key)).Restore, undefined)
    const copy = { Bucket, Key: 'copy', CopySource: `bucket/${key}` }
    assert.is(await refusal(s3.send(new CopyObjectCommand(copy))), '403 InvalidObjectState')
    assert.is(await restore(key, 'Expedited'), '400 InvalidArgument')
    assert.is(await restore(key, 'Bulk'), '202')
    assert.is(await restore(key, 'Standard'), '202', 'a faster tier is how one makes haste')
    server.advance(12 * HOUR_MS)
    assert.is(await text(s3, key), key)
    await s3.send(put('hot'))
    assert.is(await restore('hot', 'Standard'), '403 InvalidObjectState')
    const instant = { Bucket, Key: 'ir', Body: 'ir', StorageClass: 'GLACIER_IR' } as const
    await s3.send(new PutObjectCommand(instant))
    assert.is(await text(s3, 'ir'), 'ir')
    const unknown = { ...instant, StorageClass: 'COLD' as 'GLACIER' }
    assert.is(await refusal(s3.send(new PutObjectCommand(unknown))), '400 InvalidStorageClass')
  })
})

async function statusOf(
  call: Promise<{ readonly $metadata: { readonly httpStatusCode?: number | undefined } }>,
): Promise<string> {
  try {
    return String((await call).$metadata.httpStatusCode)
  } catch {
    return await refusal(call)
  }
}

test('a copy has the bytes, and the metadata unless they are replaced', async () => {
  await withServer({ buckets: { bucket: { versioning: true } } }, async (server, s3) => {
    const Key = 'a b/é'
    const first = { Bucket, Key, Body: 'one', Metadata: { x: '1' } }
    const { VersionId } = await s3.send(new PutObjectCommand(first))
    await s3.send(put(Key, 'two'))
    const CopySource = `bucket/${encodeURIComponent(Key)}?versionId=${VersionId}`
    await s3.send(new CopyObjectCommand({ Bucket, Key, CopySource }))
    assert.is(await text(s3, Key), 'one')
    assert.equal(server.objects().get(Key)?.metadata, { x: '1' })
    await s3.send(
      new CopyObjectCommand({
        Bucket,
        Key: 'c',
        CopySource,
        MetadataDirective: 'REPLACE',
        Metadata: { y: '2' },
        StorageClass: 'GLACIER_IR',
      }),
    )
    assert.equal(server.objects().get('c')?.metadata, { y: '2' })
    assert.is(server.objects().get('c')?.storageClass, 'GLACIER_IR')
    const itself = { Bucket, Key: 'c', CopySource: 'bucket/c', StorageClass: 'GLACIER_IR' } as const
    assert.is(await refusal(s3.send(new CopyObjectCommand(itself))), '400 InvalidRequest')
  })
})

test('a bucket is set as it was said, or as a new one at Amazon', async () => {
  const lifecycle = [
    { ID: 'a', Status: 'Enabled', Filter: { Prefix: 'x/' }, Expiration: { Days: 3 } },
  ]
  const open = {
    lifecycle,
    versioning: true,
    objectLock: { mode: 'COMPLIANCE', days: 7 },
    publicAccessBlock: false,
    policy: '{"Version":"2012-10-17"}',
    policyIsPublic: true,
    grants: [{ to: 'AllUsers', permission: 'READ' }],
    ownership: 'none',
    encryption: 'none',
  } as const
  await withServer({ buckets: { bucket: {}, open } }, async (server, s3) => {
    const inNew = { Bucket }
    const inOpen = { Bucket: 'open' }
    await s3.send(new HeadBucketCommand(inNew))
    const missing = s3.send(new HeadBucketCommand({ Bucket: 'missing' }))
    assert.is(await refusal(missing), '404 NotFound')
    assert.is((await s3.send(new ListBucketsCommand({}))).Buckets?.length, 2)
    const location = await s3.send(new GetBucketLocationCommand(inNew))
    assert.is(location.LocationConstraint || undefined, undefined)
    assert.is((await s3.send(new GetBucketVersioningCommand(inNew))).Status, undefined)
    assert.is((await s3.send(new GetBucketVersioningCommand(inOpen))).Status, 'Enabled')
    const noLock = s3.send(new GetObjectLockConfigurationCommand(inNew))
    assert.is(await refusal(noLock), '404 ObjectLockConfigurationNotFoundError')
    const lock = await s3.send(new GetObjectLockConfigurationCommand(inOpen))
    const rule = lock.ObjectLockConfiguration?.Rule?.DefaultRetention
    assert.equal([rule?.Mode, rule?.Days], ['COMPLIANCE', 7])
    const rules = s3.send(new GetBucketLifecycleConfigurationCommand(inNew))
    assert.is(await refusal(rules), '404 NoSuchLifecycleConfiguration')
    const { Rules } = await s3.send(new GetBucketLifecycleConfigurationCommand(inOpen))
    assert.equal(
      Rules?.map(({ Expiration, Filter }) => [Expiration?.Days, Filter?.Prefix]),
      [[3, 'x/']],
    )
    await s3.send(
      new PutBucketLifecycleConfigurationCommand({
        ...inNew,
        LifecycleConfiguration: {
          Rules: [
            {
              ID: 'b',
              Status: 'Enabled',
              Filter: { Prefix: '' },
              AbortIncompleteMultipartUpload: { DaysAfterInitiation: 7 },
            },
          ],
        },
      }),
    )
    const after = await s3.send(new GetBucketLifecycleConfigurationCommand(inNew))
    assert.is(after.Rules?.[0]?.AbortIncompleteMultipartUpload?.DaysAfterInitiation, 7)
    await s3.send(new DeleteBucketLifecycleCommand(inNew))
    const gone = s3.send(new GetBucketLifecycleConfigurationCommand(inNew))
    assert.is(await refusal(gone), '404 NoSuchLifecycleConfiguration')
    const kept = await s3.send(new GetBucketEncryptionCommand(inNew))
    const [encryption] = kept.ServerSideEncryptionConfiguration?.Rules ?? []
    assert.is(encryption?.ApplyServerSideEncryptionByDefault?.SSEAlgorithm, 'AES256')
    assert.is(
      await refusal(s3.send(new GetBucketEncryptionCommand(inOpen))),
      '404 ServerSideEncryptionConfigurationNotFoundError',
    )
    const { PublicAccessBlockConfiguration: block } = await s3.send(
      new GetPublicAccessBlockCommand(inNew),
    )
    assert.equal(block, {
      BlockPublicAcls: true,
      IgnorePublicAcls: true,
      BlockPublicPolicy: true,
      RestrictPublicBuckets: true,
    })
    assert.is(
      await refusal(s3.send(new GetPublicAccessBlockCommand(inOpen))),
      '404 NoSuchPublicAccessBlockConfiguration',
    )
    const noPolicy = '404 NoSuchBucketPolicy'
    assert.is(await refusal(s3.send(new GetBucketPolicyCommand(inNew))), noPolicy)
    assert.is(await refusal(s3.send(new GetBucketPolicyStatusCommand(inNew))), noPolicy)
    assert.is((await s3.send(new GetBucketPolicyCommand(inOpen))).Policy, open.policy)
    const { PolicyStatus } = await s3.send(new GetBucketPolicyStatusCommand(inOpen))
    assert.is(PolicyStatus?.IsPublic, true)
    assert.is((await s3.send(new GetBucketAclCommand(inNew))).Grants?.length, 1)
    const { Grants } = await s3.send(new GetBucketAclCommand(inOpen))
    assert.is(Grants?.[0]?.Grantee?.ID, 'owner')
    assert.equal(Grants?.[1], {
      Grantee: { Type: 'Group', URI: 'http://acs.amazonaws.com/groups/global/AllUsers' },
      Permission: 'READ',
    })
    const { OwnershipControls } = await s3.send(new GetBucketOwnershipControlsCommand(inNew))
    assert.is(OwnershipControls?.Rules?.[0]?.ObjectOwnership, 'BucketOwnerEnforced')
    assert.is(
      await refusal(s3.send(new GetBucketOwnershipControlsCommand(inOpen))),
      '404 OwnershipControlsNotFoundError',
    )
    const tags = s3.send(new GetBucketTaggingCommand(inNew))
    assert.is(await refusal(tags), '501 NotImplemented', 'not mistaken for a list')

    const lockable = {
      ...inNew,
      ObjectLockConfiguration: { ObjectLockEnabled: 'Enabled' },
    } as const
    const tooEarly = s3.send(new PutObjectLockConfigurationCommand(lockable))
    assert.is(await refusal(tooEarly), '409 InvalidBucketState')
    server.configure(Bucket, { versioning: true, publicAccessBlock: false })
    await s3.send(new PutObjectLockConfigurationCommand(lockable))
    const set = await s3.send(new GetObjectLockConfigurationCommand(inNew))
    assert.is(set.ObjectLockConfiguration?.ObjectLockEnabled, 'Enabled')
    assert.is(
      await refusal(s3.send(new GetPublicAccessBlockCommand(inNew))),
      '404 NoSuchPublicAccessBlockConfiguration',
    )
  })
})

test('a user does what IAM allows, and each action asks for its own right', async () => {
  const asked: string[] = []
  let denied = ''
  const may = (action: string, key: string): boolean => {
    asked.push(`${action} ${key}`)
    return action !== denied
  }
  const users = { testkey: { secret: 'testsecret', may } }
  const buckets = { bucket: { versioning: true, objectLock: true } }
  await withServer({ users, buckets }, async (server, s3) => {
    await s3.send(put('k'))
    const [{ versionId: VersionId } = { versionId: '' }] = server.versions(Bucket, 'k')
    const of = { Bucket, Key: 'k' }
    const { UploadId } = await s3.send(new CreateMultipartUploadCommand(of))
    const upload = { ...of, UploadId }
    const Retention = {
      Mode: 'GOVERNANCE',
      RetainUntilDate: new Date(Date.now() + DAY_MS),
    } as const
    await s3.send(new PutObjectRetentionCommand({ ...of, VersionId, Retention }))
    const pass = { VersionId, BypassGovernanceRetention: true }
    const copy = { Bucket, Key: 'c', CopySource: 'bucket/k' }
    const calls: [string, () => Promise<unknown>][] = [
      ['s3:PutObject k', () => s3.send(put('k'))],
      ['s3:GetObject k', () => s3.send(new GetObjectCommand(of))],
      ['s3:GetObject k', () => s3.send(new HeadObjectCommand(of))],
      ['s3:GetObjectVersion k', () => s3.send(new GetObjectCommand({ ...of, VersionId }))],
      ['s3:PutObject c', () => s3.send(new CopyObjectCommand(copy))],
      ['s3:GetObject k', () => s3.send(new CopyObjectCommand(copy))],
      ['s3:ListBucket p', () => s3.send(new ListObjectsV2Command({ Bucket, Prefix: 'p' }))],
      ['s3:ListBucketVersions ', () => s3.send(new ListObjectVersionsCommand({ Bucket }))],
      [
        's3:ListBucketMultipartUploads ',
        () => s3.send(new ListMultipartUploadsCommand({ Bucket })),
      ],
      ['s3:ListMultipartUploadParts k', () => s3.send(new ListPartsCommand(upload))],
      ['s3:AbortMultipartUpload k', () => s3.send(new AbortMultipartUploadCommand(upload))],
      [
        's3:PutObjectRetention k',
        () => s3.send(new PutObjectRetentionCommand({ ...of, VersionId, Retention })),
      ],
      [
        's3:GetObjectRetention k',
        () => s3.send(new GetObjectRetentionCommand({ ...of, VersionId })),
      ],
      [
        's3:BypassGovernanceRetention k',
        () => s3.send(new DeleteObjectCommand({ ...of, ...pass })),
      ],
      ['s3:DeleteObjectVersion k', () => s3.send(new DeleteObjectCommand({ ...of, ...pass }))],
      ['s3:DeleteObject k', () => s3.send(new DeleteObjectCommand(of))],
      [
        's3:RestoreObject k',
        () => s3.send(new RestoreObjectCommand({ ...of, RestoreRequest: { Days: 1 } })),
      ],
      ['s3:GetBucketVersioning ', () => s3.send(new GetBucketVersioningCommand({ Bucket }))],
      [
        's3:GetLifecycleConfiguration ',
        () => s3.send(new GetBucketLifecycleConfigurationCommand({ Bucket })),
      ],
      ['s3:GetEncryptionConfiguration ', () => s3.send(new GetBucketEncryptionCommand({ Bucket }))],
      [
        's3:GetBucketPublicAccessBlock ',
        () => s3.send(new GetPublicAccessBlockCommand({ Bucket })),
      ],
      [
        's3:GetBucketObjectLockConfiguration ',
        () => s3.send(new GetObjectLockConfigurationCommand({ Bucket })),
      ],
    ]
    for (const [right, call] of calls) {
      asked.splice(0)
      denied = right.split(' ')[0]!
      // A HEAD is answered without a body, so without a code.
      assert.match(await refusal(call()), /^403 (AccessDenied|Unknown)$/, right)
      assert.ok(asked.includes(right), `${right}: ${asked.join(', ')}`)
    }
    denied = 's3:DeleteObject'
    const message = await s3.send(new DeleteObjectCommand(of)).then(
      () => '',
      (error: Error) => error.message,
    )
    assert.match(message, /not authorized to perform: s3:DeleteObject on .*bucket\/k/)
    assert.is(server.versions(Bucket, 'k').length, 1, 'nothing was done')
    denied = 's3:ListBucket'
    assert.is(await refusal(text(s3, 'missing')), '403 AccessDenied', 'nor told what is there')
  })
})

test('a service can be told to know less', async () => {
  const unsupported = ['GetPublicAccessBlock', 'RestoreObject']
  const quirks = { unsupported, storageClasses: ['STANDARD'], region: 'eu-west-1' }
  await withServer({ quirks, client: { region: 'eu-west-1' } }, async (server, s3) => {
    const block = s3.send(new GetPublicAccessBlockCommand({ Bucket }))
    assert.is(await refusal(block), '501 NotImplemented')
    const cold = { Bucket, Key: 'a', Body: 'a', StorageClass: 'GLACIER' } as const
    assert.is(await refusal(s3.send(new PutObjectCommand(cold))), '400 InvalidStorageClass')
    const elsewhere = clientOf(server)
    assert.is(await refusal(text(elsewhere, 'a')), '400 AuthorizationHeaderMalformed')
    const { LocationConstraint } = await s3.send(new GetBucketLocationCommand({ Bucket }))
    assert.is(LocationConstraint, 'eu-west-1')
    elsewhere.destroy()
  })
})

test('errors on purpose are answered, and nothing is done', async () => {
  await withServer({}, async (server, s3) => {
    const kinds = [
      [
        { kind: 'error', status: 409, code: 'ConditionalRequestConflict' },
        '409 ConditionalRequestConflict',
      ],
      [{ kind: 'slowdown' }, '503 SlowDown'],
      [{ kind: 'skew' }, '403 RequestTimeTooSkewed'],
      [{ kind: 'expired' }, '400 ExpiredToken'],
      [{ kind: 'wrong-region' }, '301 PermanentRedirect'],
      [{ kind: 'reset' }, 'none'],
    ] as const
    for (const [kind, expected] of kinds) {
      const end = server.fault({ ...kind, action: 'PutObject' })
      const result = await refusal(s3.send(put('a')))
      assert.ok(result.startsWith(expected), `${kind.kind}: ${result}`)
      end()
    }
    assert.is(server.objects().size, 0)
    assert.is(await refusal(s3.send(put('a'))), 'done')
  })
})

test('a fault meets the requests that it names, after some and for some', async () => {
  await withServer({}, async (server, s3) => {
    server.fault({ kind: 'slowdown', action: /^Put/, key: /^x/, after: 1, times: 2 })
    const results: string[] = []
    for (const key of ['x1', 'y', 'x2', 'x3', 'x4']) results.push(await refusal(s3.send(put(key))))
    const slow = '503 SlowDown'
    assert.equal(results, ['done', 'done', slow, slow, 'done'])
    assert.is(await text(s3, 'x1'), 'x1')
  })
})

test('connections break before, within and after', async () => {
  await withServer({}, async (server, s3) => {
    await s3.send(put('a', '0123456789'))
    server.fault({ kind: 'truncate', action: 'GetObject', times: 1 })
    const answer = await s3.send(new GetObjectCommand({ Bucket, Key: 'a' }))
    assert.is(answer.ContentLength, 10)
    assert.is.not(await refusal(answer.Body!.transformToString()), 'done')
    server.fault({ kind: 'reset-after', action: 'PutObject', times: 1 })
    assert.match(await refusal(s3.send(put('b'))), /^none/)
    assert.is(String(server.objects().get('b')?.body), 'b', 'it was done all the same')
    server.fault({ kind: 'reset', action: 'GetObject', times: 1 })
    assert.match(await refusal(text(s3, 'a')), /^none/)
    assert.is(server.requests.at(-1)?.status, 0)
    assert.is(await text(s3, 'a'), '0123456789')
  })
})

test('bytes change on their way there and back', async () => {
  await withServer({}, async (server, s3) => {
    await s3.send(put('a', '0123456789'))
    server.fault({ kind: 'corrupt', action: 'GetObject', times: 1 })
    assert.is(await text(s3, 'a'), '0123446789')
    assert.is(await text(s3, 'a'), '0123456789')
    server.fault({ kind: 'corrupt', action: 'PutObject', times: 1 })
    assert.match(await refusal(s3.send(put('b', 'bytes'))), /^400 (BadDigest|XAmz)/)
    assert.not.ok(server.objects().has('b'))
  })
})

test('answers come late, or not at all until the server is closed', async () => {
  const server = await startS3Server()
  const s3 = clientOf(server)
  server.fault({ kind: 'slow', ms: 120, times: 1 })
  const begunMs = performance.now()
  await s3.send(put('a'))
  assert.ok(performance.now() - begunMs > 100)
  server.fault({ kind: 'stall', action: 'GetObject' })
  let isOver = false
  const stalled = refusal(text(s3, 'a')).finally(() => (isOver = true))
  await s3.send(put('b'))
  assert.not.ok(isOver)
  await server.close()
  assert.match(await stalled, /^none/)
  s3.destroy()
})

test('a client that dies in the middle of a body has sent nothing', async () => {
  await withServer({}, async (server) => {
    const socket = connect(Number(new URL(server.endpoint).port), '127.0.0.1')
    socket.write('PUT /bucket/a HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf', () =>
      socket.destroy(),
    )
    await new Promise((resolve) => socket.once('close', resolve))
    const s3 = clientOf(server)
    await s3.send(put('b'))
    s3.destroy()
    assert.equal([...server.objects().keys()], ['b'])
    assert.equal(
      server.requests.map(({ key, status }) => [key, status]),
      [
        ['a', 0],
        ['b', 200],
      ],
    )
  })
})

test('every request is on record, with what went over the line', async () => {
  await withServer({}, async (server, s3) => {
    await s3.send(put('a', 'abcdef'))
    await text(s3, 'a', { Range: 'bytes=0-2' })
    await s3.send(new HeadObjectCommand({ Bucket, Key: 'a' }))
    await s3.send(new ListObjectsV2Command({ Bucket }))
    const seen = server.requests.map((one) => [one.action, one.status, one.bytesIn, one.accessKey])
    assert.equal(seen, [
      ['PutObject', 200, 6, 'testkey'],
      ['GetObject', 206, 0, 'testkey'],
      ['HeadObject', 200, 0, 'testkey'],
      ['ListObjectsV2', 200, 0, 'testkey'],
    ])
    assert.equal(
      server.requests.slice(0, 3).map(({ bytesOut }) => bytesOut),
      [0, 3, 0],
    )
    server.resetRequests()
    assert.is(server.requests.length, 0)
  })
})

test('a test reaches in without a request', async () => {
  await withServer({ buckets: { bucket: { versioning: true } } }, async (server, s3) => {
    server.put({ key: 'a', body: Buffer.from('one'), storageClass: 'GLACIER_IR' })
    const before = await s3.send(new HeadObjectCommand({ Bucket, Key: 'a' }))
    server.tamper(Bucket, 'a', Buffer.from('two'))
    const after = await s3.send(new HeadObjectCommand({ Bucket, Key: 'a' }))
    assert.is(await text(s3, 'a'), 'two')
    assert.equal([after.ETag, after.VersionId], [before.ETag, before.VersionId])
    assert.is(server.versions(Bucket, 'a').length, 1)
    server.lose(Bucket, 'a')
    assert.equal(server.versions(Bucket, 'a'), [])
    assert.is(await refusal(text(s3, 'a')), '404 NoSuchKey')
  })
})

test('the SDK finds users in the environment and in profiles, and nothing else', async () => {
  const users = { one: { secret: 'first' }, two: { secret: 'second' } }
  const server = await startS3Server({ users })
  const saved = { ...process.env }
  const withEnvironment = async (
    variables: Record<string, string>,
    more: S3ClientConfig = {},
  ): Promise<void> => {
    for (const name of Object.keys(process.env)) {
      if (name.startsWith('AWS_')) delete process.env[name]
    }
    Object.assign(process.env, variables)
    const { endpoint } = server
    const s3 = new S3Client({ endpoint, forcePathStyle: true, maxAttempts: 1, ...more })
    await s3.send(put('a'))
    s3.destroy()
  }
  try {
    await withEnvironment(server.environment())
    await withEnvironment(server.environment('two'))
    const directory = tempDirectory()
    const profiles = server.writeProfiles(directory, { backup: 'one', admin: 'two' })
    await withEnvironment(profiles, { profile: 'backup' })
    await withEnvironment(profiles, { profile: 'admin' })
    assert.is(statSync(`${directory}/credentials`).mode & 0o777, 0o600)
    assert.match(readFileSync(`${directory}/credentials`, 'utf8'), /^\[backup\]/)
    assert.is(profiles['AWS_ACCESS_KEY_ID'], undefined)
  } finally {
    process.env = saved
    await server.close()
  }
  const seen = server.requests.map(({ accessKey, status }) => [accessKey, status])
  assert.equal(seen, [
    ['one', 200],
    ['two', 200],
    ['one', 200],
    ['two', 200],
  ])
})

test.run()
