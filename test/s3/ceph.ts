// The S3 target against a real service: the gateway of the Ceph that run.sh starts.
//
// Every method, an upload killed in its middle, object lock, and what failures are called. Ceph 16
// ignores x-amz-checksum-*, so here everything large is read back; where a service checks, see
// test/lib/target-s3.test.ts. Called with `publish DIRECTORY PATH` it is the program that is
// killed.

import { Buffer } from 'node:buffer'
import { spawn, spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import type { S3TargetConfiguration } from '../../lib/machine/config-targets.ts'
import { openS3Target } from '../../lib/target/s3.ts'
import { createS3Calls } from '../../lib/target/s3-client.ts'
import { abandonUploads } from '../../lib/target/s3-upload.ts'
import type { Target } from '../../lib/target/target.ts'
import * as assert from '../helpers/assert.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'
import { s3Configuration } from '../helpers/s3-configuration.ts'
import { failureOf } from '../helpers/failure.ts'

const MIB = 2 ** 20
const DAY_MS = 24 * 3600_000
const BUNDLE = 'machines/m/home/2025-04-01T020000Z/data-0001.tar.zst.age'
const KEYS = { AWS_ACCESS_KEY_ID: 'testkey', AWS_SECRET_ACCESS_KEY: 'testsecret' }
const endpoint = process.env['S3_ENDPOINT'] ?? 'http://127.0.0.1:47080'
const ceph = suite('s3/ceph')

// Nothing of whoever runs this: neither profiles nor a cloud machine's role.
Object.assign(process.env, {
  AWS_EC2_METADATA_DISABLED: 'true',
  AWS_SHARED_CREDENTIALS_FILE: '/dev/null',
  AWS_CONFIG_FILE: '/dev/null',
  ...KEYS,
})

interface Place {
  readonly directory: string
  readonly configuration?: Partial<S3TargetConfiguration>
}

function configurationOf({ directory, configuration }: Place): S3TargetConfiguration {
  // A prefix of its own for each test.
  const path = `of${directory.replaceAll('/', '-')}`
  return s3Configuration({ bucket: 'plain', path, endpoint, streams: 2, ...configuration })
}

async function openAt(place: Place): Promise<Target> {
  const spool = join(place.directory, 'spool')
  const capabilitiesFile = join(place.directory, 'capabilities.json')
  return await openS3Target({ configuration: configurationOf(place), spool, capabilitiesFile })
}

function makeBucket(name: string, ...headers: string[]): void {
  const { stdout } = spawnSync('curl', [
    ...['--silent', '--output', '/dev/null', '--write-out', '%{http_code}', '--request', 'PUT'],
    ...['--aws-sigv4', 'aws:amz:us-east-1:s3', '--user', 'testkey:testsecret'],
    ...['--header', `x-amz-content-sha256: ${hashOf(Buffer.alloc(0))}`],
    ...headers.flatMap((header) => ['--header', header]),
    `${endpoint}/${name}`,
  ])
  assert.is(String(stdout), '200', `making the bucket ${name}`)
}

function hashOf(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex')
}

async function spool(target: Target, bytes: Buffer): Promise<string> {
  const [, directory = '', name = ''] = /^(.*)\/(.*)$/.exec(BUNDLE) ?? []
  const file = join(await target.workDirectory(directory), `${name}.partial`)
  writeFileSync(file, bytes)
  return file
}

async function namesIn(target: Target): Promise<readonly string[]> {
  return (await target.listTree('')).map(({ name }) => name)
}

ceph.before(() => {
  makeBucket('plain')
  makeBucket('locked', 'x-amz-bucket-object-lock-enabled: true')
})

ceph('a target does what its contract says', async () => {
  const target = await openAt({ directory: tempDirectory() })
  try {
    assert.equal(await target.list(''), [])
    assert.is(await target.list('machines'), undefined)
    await target.write('machines/m/a.json', Buffer.from('some bytes'))
    await target.write('machines/m/a.json', Buffer.from('some bytes'))
    await target.write('machines/m/empty', Buffer.alloc(0))
    const other = await failureOf(() => target.write('machines/m/a.json', Buffer.from('other')))
    assert.is(other.code, 'TARGET_FAILED')
    assert.is(String(await target.read('machines/m/a.json', 100)), 'some bytes')
    assert.is((await failureOf(() => target.read('machines/m/a.json', 9))).code, 'TARGET_FAILED')
    assert.is(await target.read('none', 9), undefined)
    const range = await target.readRange('machines/m/a.json', { offset: 5, length: 99 })
    assert.is(String(range), 'bytes')
    const past = await target.readRange('machines/m/a.json', { offset: 50, length: 9 })
    assert.is(past?.length, 0)
    assert.is((await target.readRange('machines/m/empty', { offset: 0, length: 9 }))?.length, 0)
    assert.is(await target.readRange('none', { offset: 0, length: 9 }), undefined)
    assert.is(await target.fileSize('machines/m/a.json'), 10)
    assert.is(await target.fileSize('machines/m'), undefined)
    assert.equal(await target.list('machines'), [{ name: 'm', kind: 'directory', sizeBytes: 0 }])
    assert.equal(await target.list('machines/m'), [
      { name: 'a.json', kind: 'file', sizeBytes: 10 },
      { name: 'empty', kind: 'file', sizeBytes: 0 },
    ])
    await target.replace('machines/m/a.json', Buffer.from('mended'))
    await target.replace('machines/m/latest', Buffer.from('2025'))
    assert.is(await target.setAside('machines/m/a.json'), 'machines/m/a.json.damaged')
    assert.equal(await namesIn(target), ['machines/m/a.json.damaged', 'machines/m/empty'])
    assert.is(String(await target.read('machines/m/a.json.damaged', 100)), 'mended')
    await target.remove('machines/m/empty')
    await target.remove('machines/m/empty')
    await target.removeDirectory('machines/m')
    assert.equal(await namesIn(target), ['machines/m/a.json.damaged'])
    assert.is(await target.freeBytes(), undefined)
    assert.equal(await target.bucket?.warmthOf('machines/m/a.json.damaged'), { kind: 'hot' })
    for (const size of [MIB, 20 * MIB]) {
      const bytes = randomBytes(size)
      const file = await spool(target, bytes)
      await target.publish(BUNDLE)
      assert.not(existsSync(file))
      assert.ok((await target.readRange(BUNDLE, { offset: 0, length: size }))?.equals(bytes))
      assert.is(await target.fileSize(BUNDLE), size)
      await target.remove(BUNDLE)
    }
    assert.equal(await namesIn(target), ['machines/m/a.json.damaged'])
    const calls = target.bucket?.calls
    const all = (await calls?.list(target.bucket?.keyOf('') ?? '')) ?? []
    assert.is(all.length, 1, 'nothing of the probe is left')
    assert.equal(await calls?.listUploads(target.bucket?.keyOf('') ?? ''), [])
  } finally {
    await target.close()
  }
})

ceph('the probe finds what is known of this Ceph', async () => {
  for (const [bucket, conditionalPut] of [
    ['plain', true],
    ['locked', false],
  ] as const) {
    const target = await openAt({ directory: tempDirectory(), configuration: { bucket } })
    const { probedMs, ...found } = (await target.bucket?.capabilities()) ?? { probedMs: 0 }
    await target.close()
    assert.ok(probedMs > 0)
    assert.equal(found, {
      checksum: 'md5',
      multipartChecksum: 'none',
      conditionalPut,
      conditionalComplete: false,
    })
  }
})

/** Has another process publish, slowly, and kills it once two of five parts are there. */
async function killInTheMiddle(place: Place): Promise<void> {
  const calls = createS3Calls(configurationOf(place))
  const self = fileURLToPath(import.meta.url)
  const child = spawn(process.execPath, [self, 'publish', place.directory], { stdio: 'inherit' })
  const ended = new Promise((resolve) => child.once('exit', (_, signal) => resolve(signal)))
  try {
    const { path } = configurationOf(place)
    for (let waits = 0; ; waits += 1) {
      const [upload] = await calls.listUploads(path)
      const parts = upload === undefined ? [] : await calls.listParts(upload.key, upload.uploadId)
      if ((parts?.length ?? 0) >= 2) break
      assert.ok(waits < 300, 'two parts should be there by now')
      await sleep(50)
    }
  } finally {
    child.kill('SIGKILL')
    calls.close()
  }
  assert.is(await ended, 'SIGKILL')
}

ceph('an upload killed in its middle goes on where it was (7)', async () => {
  const place = { directory: tempDirectory() }
  const bytes = randomBytes(40 * MIB)
  const first = await openAt(place)
  await first.bucket?.capabilities()
  const file = await spool(first, bytes)
  await first.close()
  await killInTheMiddle(place)
  const target = await openAt(place)
  try {
    assert.equal(await namesIn(target), [], 'nothing is there before it is complete')
    assert.ok(existsSync(file))
    const key = target.bucket?.keyOf(BUNDLE) ?? ''
    const [upload] = (await target.bucket?.calls.listUploads(key)) ?? []
    const id = upload?.uploadId ?? ''
    const there = (await target.bucket?.calls.listParts(key, id))?.length ?? 0
    assert.ok(there >= 2 && there < 5, `${there} parts`)
    const before = target.bucket?.usage().writes ?? 0
    await target.publish(BUNDLE)
    const writes = (target.bucket?.usage().writes ?? 0) - before
    assert.is(writes, 5 - there + 1, 'the missing parts, and the completion')
    assert.ok((await target.readRange(BUNDLE, { offset: 0, length: bytes.length }))?.equals(bytes))
    assert.equal(readdirSync(join(file, '..')), [])
    assert.equal(await target.bucket?.calls.listUploads(key), [])
  } finally {
    await target.close()
  }
})

ceph('wrong bytes in the spool after a kill are noticed (2)', async () => {
  const place = { directory: tempDirectory() }
  const bytes = randomBytes(40 * MIB)
  const first = await openAt(place)
  await first.bucket?.capabilities()
  const file = await spool(first, bytes)
  await first.close()
  await killInTheMiddle(place)
  bytes[35 * MIB]! ^= 1
  writeFileSync(file, bytes, { flag: 'r+' })
  const target = await openAt(place)
  try {
    assert.is((await failureOf(() => target.publish(BUNDLE))).code, 'READ_BACK')
    assert.equal(await namesIn(target), [])
    assert.ok(readFileSync(file).equals(bytes), 'nobody touches it')
    bytes[35 * MIB]! ^= 1
    writeFileSync(file, bytes, { flag: 'r+' })
    await target.publish(BUNDLE)
    assert.equal(await namesIn(target), [BUNDLE])
  } finally {
    await target.close()
  }
})

ceph('what is locked cannot be destroyed, and is found below what hides it', async () => {
  const place = { directory: tempDirectory(), configuration: { bucket: 'locked', lockMs: DAY_MS } }
  const target = await openAt(place)
  try {
    const bytes = randomBytes(9 * MIB)
    await spool(target, bytes)
    await target.publish(BUNDLE)
    await target.write('small', Buffer.from('some bytes'))
    const { bucket } = target
    assert.ok(bucket !== undefined)
    for (const path of [BUNDLE, 'small']) {
      const key = bucket.keyOf(path)
      const lock = (await bucket.calls.head(key))?.lock
      assert.is(lock?.mode, 'GOVERNANCE')
      assert.ok(Math.abs((lock?.untilMs ?? 0) - Date.now() - DAY_MS) < 60_000)
      await target.remove(path)
      assert.is(await bucket.calls.head(key), undefined)
      assert.ok((await target.fileSize(path)) !== undefined, 'the older version can be read')
      const versions = await bucket.calls.listVersions(key)
      assert.ok(versions !== 'unsupported')
      assert.equal(
        versions.map(({ isDeleteMarker }) => isDeleteMarker),
        [true, false],
      )
      const versionId = versions[1]?.versionId ?? ''
      const refused = await failureOf(() => bucket.calls.remove(key, versionId))
      assert.is(refused.code, 'TARGET_DENIED')
      assert.match(refused.message, /locked/)
      const older = await bucket.calls.get(key, { versionId })
      assert.ok(older?.equals(path === 'small' ? Buffer.from('some bytes') : bytes) === true)
      await bucket.calls.remove(key, versions[0]?.versionId)
      assert.is(await target.fileSize(path), older.length)
    }
  } finally {
    await target.close()
  }
})

ceph('abandoned uploads end after a day', async () => {
  const place = { directory: tempDirectory() }
  const calls = createS3Calls(configurationOf(place))
  const prefix = `${configurationOf(place).path}/machines/m/`
  await calls.createUpload({ key: `${prefix}home/x` })
  await calls.createUpload({ key: prefix.replace('/m/', '/other/') })
  const spool = join(place.directory, 'spool')
  const nowMs = Date.now()
  assert.is(await abandonUploads({ calls, prefix, spool, nowMs }), 0)
  assert.is(await abandonUploads({ calls, prefix, spool, nowMs: nowMs + DAY_MS + 60_000 }), 1)
  const left = await calls.listUploads(configurationOf(place).path)
  assert.equal(
    left.map(({ key }) => key),
    [prefix.replace('/m/', '/other/')],
  )
  calls.close()
})

ceph('each failure says what to do, and tells no secret (11)', async () => {
  const directory = tempDirectory()
  const failure = async (configuration: Partial<S3TargetConfiguration> = {}) => {
    const found = await failureOf(() => openAt({ directory, configuration }))
    assert.not.match(JSON.stringify([found.message, found.hint, found.facts]), 'testsecret')
    return found
  }
  const missing = await failure({ bucket: 'nowhere' })
  assert.is(missing.code, 'TARGET_ABSENT')
  const absent = await failure({ endpoint: 'http://127.0.0.1:9' })
  assert.is(absent.code, 'TARGET_ABSENT')
  assert.is(absent.retry, 'later')
  try {
    process.env['AWS_SECRET_ACCESS_KEY'] = 'testsecret-and-more'
    assert.match((await failure()).message, 'secret of the credentials is wrong')
    process.env['AWS_ACCESS_KEY_ID'] = 'nobody'
    assert.match((await failure()).message, 'does not know the key')
    delete process.env['AWS_ACCESS_KEY_ID']
    delete process.env['AWS_SECRET_ACCESS_KEY']
    assert.match((await failure()).message, 'no credentials')
  } finally {
    Object.assign(process.env, KEYS)
  }
  assert.not(existsSync(join(directory, 'capabilities.json')))
})

const [, , verb, directory = ''] = process.argv
if (verb === 'publish') {
  const limit = { bandwidthLimitBytes: 16 * MIB }
  const target = await openAt({ directory, configuration: limit })
  await target.publish(BUNDLE)
  await target.close()
} else {
  ceph.run()
}
