import { writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import type { S3TargetConfiguration } from '../../lib/machine/config-targets.ts'
import type { Finding } from '../../lib/model/bucket-facts.ts'
import { bucketFindings } from '../../lib/model/bucket-findings.ts'
import { type Policy, policyDocument } from '../../lib/model/bucket-policy.ts'
import type { Check } from '../../lib/model/check.ts'
import { rawPathFromText, rawPathToBytes } from '../../lib/model/raw-path.ts'
import type { Bucket, Capabilities } from '../../lib/target/bucket.ts'
import { openS3Target } from '../../lib/target/s3.ts'
import { createS3Calls } from '../../lib/target/s3-client.ts'
import { bucketPolicy, examineBucket, gatherFacts } from '../../lib/work/doctor-bucket.ts'
import * as assert from '../helpers/assert.ts'
import { configurationOf, setConfiguration } from '../helpers/configuration.ts'
import { isAllowed } from '../helpers/iam.ts'
import { type S3Server, type S3ServerOptions, startS3Server } from '../helpers/s3-server.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'
import { s3Configuration } from '../helpers/s3-configuration.ts'

const doctor = suite('work/doctor-bucket')
const DAY_MS = 86_400_000
const servers: S3Server[] = []
const before = { ...process.env }

doctor.after.each(async () => {
  for (const server of servers.splice(0)) await server.close()
  process.env = { ...before }
})

const SCOPE = {
  bucket: 'bucket',
  path: 'home',
  machine: 'test',
  region: undefined,
  isAmazon: true,
  lockMs: 30 * DAY_MS,
}

/** As docs/buckets.md has it made. */
const GOOD_BUCKET = {
  objectLock: true,
  lifecycle: [
    {
      ID: 'abort',
      Status: 'Enabled',
      Filter: { Prefix: '' },
      AbortIncompleteMultipartUpload: { DaysAfterInitiation: '7' },
    },
  ],
}

const CAPABILITIES: Capabilities = {
  probedMs: 0,
  checksum: 'crc32',
  multipartChecksum: 'crc32',
  conditionalPut: true,
  conditionalComplete: true,
}

function targetOf(server: S3Server, change: Partial<S3TargetConfiguration> = {}) {
  const place = { path: 'home', region: 'us-east-1', endpoint: server.endpoint }
  const profiles = { profile: 'backup', adminProfile: 'admin' }
  return s3Configuration({ ...place, ...profiles, lockMs: 30 * DAY_MS, ...change })
}

/** Users `b` and `a` have the policies of backups and admins, as IAM would read them. */
async function serve(change: S3ServerOptions = {}): Promise<S3Server> {
  const may =
    (kind: 'backup' | 'admin') =>
    (action: string, key: string, conditions: Readonly<Record<string, string>>) =>
      decide([policyDocument(kind, SCOPE) as Policy], { action, key, conditions })
  const server = await startS3Server({
    buckets: { bucket: GOOD_BUCKET },
    users: { b: { secret: 'sb', may: may('backup') }, a: { secret: 'sa', may: may('admin') } },
    ...change,
  })
  servers.push(server)
  const directory = tempDirectory()
  Object.assign(process.env, server.writeProfiles(directory, { backup: 'b', admin: 'a' }))
  return server
}

function decide(
  policies: readonly Policy[],
  {
    action,
    key,
    conditions,
  }: {
    readonly action: string
    readonly key: string
    readonly conditions: Readonly<Record<string, string>>
  },
): boolean {
  const isList = /^s3:List(Bucket|BucketVersions)$/.test(action)
  const context = {
    // Of every lock here: a probe's.
    's3:object-lock-mode': 'GOVERNANCE',
    's3:object-lock-remaining-retention-days': '1',
    ...conditions,
    ...(isList ? { 's3:prefix': key } : {}),
  }
  const isOfBucket = key === '' || isList || action === 's3:ListBucketMultipartUploads'
  const resource = `arn:aws:s3:::bucket${isOfBucket ? '' : `/${key}`}`
  return isAllowed(policies, { action, resource, context })
}

/** The bucket of a target without the rest of it. */
function bucketOf(target: S3TargetConfiguration): Bucket {
  const { bucket, region, endpoint, isPathStyle, profile, adminProfile } = target
  const of = { bucket, region, endpoint, isPathStyle, firstDelayMs: 1 }
  const calls = createS3Calls({ ...of, profile })
  const adminCalls =
    adminProfile === undefined ? calls : createS3Calls({ ...of, profile: adminProfile })
  return {
    calls,
    adminCalls,
    keyOf: (path) => `home/${path}`,
    pathOf: (key) => key.slice('home/'.length),
    storageClassFor: () => 'STANDARD',
    capabilities: () => Promise.resolve(CAPABILITIES),
    warmthOf: () => Promise.resolve(undefined),
    olderReads: () => [],
    preferVersion: () => {},
    usage: () => calls.usage(),
  }
}

interface Examined {
  readonly findings: readonly Finding[]
  readonly verdict: (name: string) => string
}

async function examine(
  server: S3Server,
  {
    dryRun = false,
    now = Date.now,
    ...change
  }: Partial<S3TargetConfiguration> & {
    readonly dryRun?: boolean
    readonly now?: () => number
  } = {},
): Promise<Examined> {
  const target = targetOf(server, change)
  const configuration = configurationOf(setConfiguration(), { staging: tempDirectory() })
  const { signal } = new AbortController()
  const bucket = bucketOf(target)
  try {
    const facts = await gatherFacts(bucket, { configuration, target, dryRun, now, signal })
    const findings = bucketFindings(facts)
    const verdict = (name: string): string => {
      return findings
        .filter((finding) => finding.name === name)
        .map((finding) => finding.verdict)
        .join(' ')
    }
    return { findings, verdict }
  } finally {
    bucket.calls.close()
    bucket.adminCalls.close()
  }
}

const probesLeft = (server: S3Server): readonly string[] => [...server.objects().keys()]

doctor('with the policies that it prints a good bucket has nothing unsafe', async () => {
  const server = await serve()
  const { findings, verdict } = await examine(server)
  const bad = findings.filter((finding) => finding.verdict !== 'safe')
  // Of another service nobody knows what a credential may; see the manual.
  assert.equal(
    bad.map(({ name, verdict: is }) => `${name} ${is}`),
    ['change of rules unknown'],
  )
  assert.is(verdict('delete'), 'safe')
  assert.is(verdict('overwrite'), 'safe')
  assert.is(verdict('change of locks'), 'safe')
  assert.is(verdict('admin profile'), 'safe')
  assert.is(verdict('old versions'), 'safe')
  assert.is(verdict('clock'), 'safe')
})

doctor(
  'every call of the doctor is one that the policies allow, but for what is tried',
  async () => {
    const server = await serve()
    await examine(server)
    const refused = server.requests.filter(({ status }) => status === 403)
    const what = refused.map(({ action, accessKey }) => `${accessKey} ${action}`)
    assert.equal([...new Set(what)].sort(), [
      'a DeleteObject',
      'b DeleteObject',
      'b PutObject',
      'b PutObjectRetention',
    ])
  },
)

doctor('what cannot be deleted yet is locked for minutes, and goes the next time', async () => {
  const server = await serve()
  await examine(server)
  const left = probesLeft(server)
  assert.is(left.length, 1)
  assert.match(left[0] ?? '', /^home\/\.probe\/doctor-lock-/)
  server.advance(15 * 60_000)
  await examine(server, { now: server.nowMs })
  assert.not(probesLeft(server).includes(left[0] ?? ''))
  assert.is(probesLeft(server).length, 1)
})

doctor('only probes of ours are touched', async () => {
  const server = await serve()
  const keys = ['home/machines/test/docs/x', 'home/.probe/other', 'other', 'home/.probe/doctor']
  for (const key of keys) server.put({ key, body: Buffer.from('mine') })
  await examine(server, { lockMs: undefined })
  for (const key of keys) {
    assert.is(server.objects().get(key)?.body.toString(), 'mine')
    assert.is(server.versions('bucket', key).length, 1)
  }
  const changing = server.requests.filter(({ method }) => method !== 'GET' && method !== 'HEAD')
  assert.ok(changing.length > 5)
  for (const { key } of changing) assert.match(key, /^home\/\.probe\/doctor-/)
})

doctor('a credential that may everything is found out, one by one', async () => {
  const all = { b: { secret: 'sb' }, a: { secret: 'sa' } }
  const server = await serve({ users: all })
  const { verdict } = await examine(server)
  assert.is(verdict('overwrite'), 'warning')
  assert.is(verdict('delete'), 'unsafe')
  assert.is(verdict('change of locks'), 'unsafe')
  const bare = await serve({ users: all, buckets: { bucket: {} } })
  const careless = await examine(bare, { adminProfile: undefined, lockMs: undefined })
  assert.is(careless.verdict('overwrite'), 'warning')
  assert.is(careless.verdict('delete'), 'warning')
  assert.is(careless.verdict('versioning'), 'warning')
  assert.is(careless.verdict('abandoned uploads'), 'warning')
  assert.equal(probesLeft(bare), [])
  const careful = await examine(bare, { lockMs: undefined })
  assert.is(careful.verdict('delete'), 'unsafe')
})

doctor('a plain deletion that only hides is told from one that destroys', async () => {
  const policy = policyDocument('backup', SCOPE) as Policy
  const hiding: Policy = {
    Version: '2012-10-17',
    Statement: [{ Sid: 'Hide', Effect: 'Allow', Action: ['s3:DeleteObject'], Resource: ['*'] }],
  }
  const may = (action: string, key: string, conditions: Readonly<Record<string, string>>) =>
    decide([policy, hiding], { action, key, conditions })
  const users = { b: { secret: 'sb', may }, a: { secret: 'sa' } }
  const { findings } = await examine(await serve({ users }))
  const found = findings.find(({ name }) => name === 'delete')
  assert.is(found?.verdict, 'warning')
  assert.match(found?.message ?? '', /can hide exports, not destroy/)
})

doctor('nothing is safe that the service did not answer', async () => {
  const actions = [
    ...['GetPublicAccessBlock', 'GetBucketPolicyStatus', 'GetBucketAcl', 'GetBucketVersioning'],
    ...['GetBucketOwnershipControls', 'GetObjectLockConfiguration', 'GetBucketPolicy'],
    ...['GetBucketLifecycleConfiguration', 'GetBucketEncryption', 'GetBucketLocation'],
    'ListObjectVersions',
  ]
  const names = [
    ...['public access block', 'policy status', 'grants', 'ownership', 'versioning'],
    ...['object lock', 'lifecycle', 'change of rules'],
  ]
  const server = await serve({ quirks: { unsupported: actions } })
  const { verdict } = await examine(server)
  for (const name of names) assert.is(verdict(name), 'unknown', name)
  const denied = (action: string) => !/^s3:Get(Bucket|Lifecycle|Encryption)/.test(action)
  const users = { b: { secret: 'sb', may: denied }, a: { secret: 'sa', may: denied } }
  const second = await examine(await serve({ users }))
  for (const name of names) assert.is(second.verdict(name), 'unknown', name)
  assert.match(
    second.findings.find(({ name }) => name === 'grants')?.fix ?? '',
    /s3:GetBucketAcl.*aws s3api get-bucket-acl --bucket 'bucket' --endpoint-url 'http:/,
  )
})

doctor('what backups may not ask, the admin profile is asked for', async () => {
  const may = (action: string) => !/^s3:Get(Bucket|Lifecycle)/.test(action)
  const users = { b: { secret: 'sb', may }, a: { secret: 'sa' } }
  const { verdict } = await examine(await serve({ users }))
  assert.is(verdict('versioning'), 'safe')
  assert.is(verdict('lifecycle'), 'safe')
})

doctor('a bucket that is open, moves and expires is unsafe', async () => {
  const expiring = { ID: 'x', Status: 'Enabled', Filter: { Prefix: 'home/' } }
  const server = await serve({
    buckets: {
      bucket: {
        publicAccessBlock: false,
        policyIsPublic: true,
        policy: '{"Statement":[]}',
        grants: [{ to: 'AllUsers', permission: 'READ' }],
        ownership: 'ObjectWriter',
        lifecycle: [{ ...expiring, Expiration: { Days: '30' } }],
      },
    },
  })
  const { verdict } = await examine(server)
  for (const name of [
    ...['public access block', 'policy status', 'grants', 'versioning', 'object lock'],
    'lifecycle',
  ]) {
    assert.is(verdict(name), 'unsafe', name)
  }
  assert.is(verdict('ownership'), 'warning')
})

doctor('a dry run writes nothing', async () => {
  const server = await serve()
  const { verdict } = await examine(server, { dryRun: true })
  assert.is(verdict('permissions'), 'safe')
  assert.is(verdict('versioning'), 'safe')
  const changing = server.requests.filter(({ method }) => method !== 'GET' && method !== 'HEAD')
  assert.equal(changing, [])
})

doctor('a credential that cannot create is told at once, and nothing else is tried', async () => {
  const may = (action: string) => action !== 's3:PutObject'
  const users = { b: { secret: 'sb', may }, a: { secret: 'sa' } }
  const server = await serve({ users })
  const { verdict } = await examine(server)
  assert.is(verdict('create'), 'unsafe')
  assert.is(verdict('delete'), '')
  assert.equal(probesLeft(server), [])
})

doctor('a storage class that is not there, and clocks that are apart, are found', async () => {
  const server = await serve({ quirks: { storageClasses: ['STANDARD'] } })
  const found = await examine(server, { storageClass: 'DEEP_ARCHIVE' })
  assert.is(found.verdict('storage class'), 'unsafe')
  const other = await serve()
  const late = await examine(other, { now: () => Date.now() - 120_000, storageClass: 'GLACIER' })
  assert.is(late.verdict('storage class'), 'safe')
  assert.is(late.verdict('clock'), 'warning')
  const early = await examine(other, { now: () => Date.now() + 400_000 })
  assert.is(early.verdict('clock'), 'unsafe')
})

doctor('an ended signal ends it', async () => {
  const server = await serve()
  const target = targetOf(server)
  const configuration = configurationOf(setConfiguration(), { staging: tempDirectory() })
  const options = { configuration, target, dryRun: false, now: Date.now }
  const bucket = bucketOf(target)
  try {
    await gatherFacts(bucket, { ...options, signal: AbortSignal.abort() })
    assert.unreachable()
  } catch (error) {
    assert.match(String(error), /interrupted/)
  } finally {
    bucket.calls.close()
    bucket.adminCalls.close()
  }
  assert.equal(server.requests, [])
})

doctor(
  'a whole examination, capabilities too, keeps to the policies and leaves little',
  async () => {
    const server = await serve()
    const checks: Check[] = []
    const configuration = configurationOf(setConfiguration(), { staging: tempDirectory() })
    const { signal } = new AbortController()
    const target = targetOf(server)
    const onCheck = (check: Check): void => void checks.push(check)
    await examineBucket({ configuration, target, dryRun: false, now: Date.now, signal, onCheck })
    const bad = checks.filter(({ verdict }) => verdict !== 'ok')
    assert.equal(
      bad.map(({ name, verdict }) => `${name} ${verdict}`),
      ['change of rules warning'],
    )
    assert.ok(
      checks.some(({ name, message }) => name === 'proof of uploads' && /CRC-32/.test(message)),
    )
    for (const key of probesLeft(server)) assert.match(key, /^home\/\.probe\//)
  },
)

doctor('a bucket that is not there is one failed check', async () => {
  const server = await serve()
  const checks: Check[] = []
  const configuration = configurationOf(setConfiguration(), { staging: tempDirectory() })
  const target = targetOf(server, { bucket: 'nowhere' })
  const { signal } = new AbortController()
  const onCheck = (check: Check): void => void checks.push(check)
  await examineBucket({ configuration, target, dryRun: true, now: Date.now, signal, onCheck })
  assert.equal(
    checks.map(({ name, verdict }) => `${name} ${verdict}`),
    ['target failure'],
  )
})

doctor(
  'with the policy of backups a target can be written, and nothing on it destroyed',
  async () => {
    const server = await serve()
    const directory = tempDirectory()
    const configuration = targetOf(server)
    const target = await openS3Target({
      configuration,
      spool: rawPathFromText(`${directory}/spool`),
      capabilitiesFile: rawPathFromText(`${directory}/capabilities.json`),
      firstDelayMs: 1,
    })
    const stamp = 'machines/test/docs/2026-01-02T030405Z'
    try {
      assert.is(await target.read('repository.json', 100), undefined)
      assert.equal(await target.list(''), [])
      await target.write('repository.json', Buffer.from('{}'))
      await target.write('machines/test/machine.json', Buffer.from('{}'))
      assert.equal(await target.list(`${stamp}`), undefined)
      const spool = rawPathToBytes(await target.workDirectory(stamp))
      for (const [name, sizeBytes] of Object.entries({ 'data-0001': 2 ** 24, 'catalog-0001': 9 })) {
        writeFileSync(
          `${spool.toString()}/${name}.tar.zst.age.partial`,
          Buffer.alloc(sizeBytes, name),
        )
        await target.publish(`${stamp}/${name}.tar.zst.age`)
      }
      await target.write(`${stamp}/manifest.tar.zst.age`, Buffer.from('manifest'))
      assert.is((await target.list(stamp))?.length, 3)
      const refused = async (work: Promise<unknown>): Promise<void> => {
        const error: unknown = await work.then(
          () => undefined,
          (reason: unknown) => reason,
        )
        assert.is(error instanceof BackupError && error.code, 'TARGET_DENIED')
      }
      await refused(target.remove(`${stamp}/manifest.tar.zst.age`))
      await refused(target.replace(`${stamp}/manifest.tar.zst.age`, Buffer.from('other')))
      await refused(target.write('machines/other/machine.json', Buffer.from('{}')))
      await refused(target.listTree('machines/other'))
    } finally {
      await target.close()
    }
    const manifest = `home/${stamp}/manifest.tar.zst.age`
    assert.is(server.objects().get(manifest)?.body.toString(), 'manifest')
    assert.is(server.versions('bucket', manifest).length, 1)
    assert.equal(server.uploads(), [])
  },
)

doctor('the policy that is printed is of this machine and this prefix', async () => {
  const server = await serve()
  const configuration = configurationOf(setConfiguration(), { staging: tempDirectory() })
  const target = targetOf(server, { endpoint: undefined })
  const { document, commands } = bucketPolicy('backup', { configuration, target })
  assert.match(JSON.stringify(document), /arn:aws:s3:::bucket\/home\/machines\/test\/\*/)
  assert.match(commands.join('\n'), /file:\/\/backup\.json/)
})

doctor.run()
