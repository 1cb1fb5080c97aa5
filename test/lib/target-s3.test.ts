// A bucket as a target, against the stand-in server: the contract, resumed uploads, proofs, probes,
// and what each failure is called. What a real service does is in test/s3.

import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import type { S3TargetConfiguration } from '../../lib/machine/config-targets.ts'
import type { Capabilities } from '../../lib/target/bucket.ts'
import { openS3Target } from '../../lib/target/s3.ts'
import { createS3Calls } from '../../lib/target/s3-client.ts'
import { abandonUploads } from '../../lib/target/s3-upload.ts'
import type { Target } from '../../lib/target/target.ts'
import { createTransfers } from '../../lib/target/transfers.ts'
import * as assert from '../helpers/assert.ts'
import { type S3Server, type S3ServerOptions, startS3Server } from '../helpers/s3-server.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'
import { s3Configuration } from '../helpers/s3-configuration.ts'
import { failureOf } from '../helpers/failure.ts'

const s3 = suite('target/s3')
const MIB = 2 ** 20
const DAY_MS = 24 * 3600_000
const BUNDLE = 'machines/m/home/2025-04-01T020000Z/data-0001.tar.zst.age'
const LARGE = Buffer.alloc(20 * MIB, 'all of it is different ')
for (let at = 0; at < LARGE.length; at += 4096) LARGE.writeUInt32BE(at, at)

/** Everything that a test opened. */
const open: { close(): Promise<void> }[] = []
s3.after.each(async () => {
  for (const one of open.splice(0).reverse()) await one.close()
})

async function newServer(options: S3ServerOptions = {}): Promise<S3Server> {
  const server = await startS3Server(options)
  open.push(server)
  Object.assign(process.env, server.environment())
  return server
}

interface Place {
  readonly server: S3Server
  readonly directory: string
  readonly configuration?: Partial<S3TargetConfiguration>
}

function configurationOf({ server, configuration }: Place): S3TargetConfiguration {
  return s3Configuration({ endpoint: server.endpoint, ...configuration })
}

async function openAt(place: Place): Promise<Target> {
  const { directory } = place
  const target = await openS3Target({
    configuration: configurationOf(place),
    spool: join(directory, 'spool'),
    capabilitiesFile: join(directory, 'capabilities.json'),
    firstDelayMs: 1,
  })
  open.push(target)
  return target
}

async function newPlace(
  options: S3ServerOptions = {},
  configuration: Partial<S3TargetConfiguration> = {},
): Promise<Place & { readonly target: Target }> {
  const place = { server: await newServer(options), directory: tempDirectory(), configuration }
  return { ...place, target: await openAt(place) }
}

/** Publishes the bundle until one part is there, and no further. */
async function breakOff(server: S3Server, target: Target): Promise<BackupError> {
  await target.bucket?.capabilities()
  const end = server.fault({ kind: 'error', status: 500, code: 'InternalError', after: 1, ...PART })
  const failure = await failureOf(() => target.publish(BUNDLE))
  end()
  return failure
}

/** Puts a file into the spool; gives where. */
async function spool(target: Target, bytes: Buffer, path = BUNDLE): Promise<string> {
  const [, directory = '', name = ''] = /^(.*)\/(.*)$/.exec(path) ?? []
  const file = join(await target.workDirectory(directory), `${name}.partial`)
  writeFileSync(file, bytes, { mode: 0o600 })
  return file
}

const codeOf = async (action: () => Promise<unknown>) => (await failureOf(action)).code
const keysOf = (server: S3Server) => [...server.objects().keys()].sort()
const count = (server: S3Server, action: string) =>
  server.requests.filter((request) => request.action === action).length
const hexOf = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex')

s3('what was written is read, listed and removed', async () => {
  const { server, target } = await newPlace()
  assert.equal(await target.list(''), [])
  assert.is(await target.list('machines'), undefined)
  assert.is(await target.read('repository.json', 100), undefined)
  await target.write('machines/m/home/b.json', Buffer.from('some bytes'))
  await target.write('machines/m/home/a.json', Buffer.alloc(0))
  await target.write('machines/m/home/deep/c', Buffer.from('c'))
  assert.is(String(await target.read('machines/m/home/b.json', 10)), 'some bytes')
  assert.is((await target.read('machines/m/home/a.json', 10))?.length, 0)
  assert.is(await codeOf(() => target.read('machines/m/home/b.json', 9)), 'TARGET_FAILED')
  assert.equal(await target.list('machines/m/home'), [
    { name: 'a.json', kind: 'file', sizeBytes: 0 },
    { name: 'b.json', kind: 'file', sizeBytes: 10 },
    { name: 'deep', kind: 'directory', sizeBytes: 0 },
  ])
  const range = (offset: number, length: number) =>
    target.readRange('machines/m/home/b.json', { offset, length })
  assert.is(String(await range(5, 3)), 'byt')
  assert.is(String(await range(5, 50)), 'bytes')
  assert.is((await range(10, 5))?.length, 0)
  assert.is((await range(3, 0))?.length, 0)
  assert.is(await target.readRange('machines/none', { offset: 0, length: 1 }), undefined)
  assert.is(await target.fileSize('machines/m/home/b.json'), 10)
  assert.is(await target.fileSize('machines/m/home'), undefined)
  server.resetRequests()
  const tree = (await target.listTree('machines/m')).map(({ name }) => name)
  assert.equal(tree, ['home/a.json', 'home/b.json', 'home/deep/c'])
  assert.is(server.requests.length, 1, 'one request for a whole tree')
  await target.remove('machines/m/home/b.json')
  await target.remove('machines/m/home/b.json')
  await target.removeDirectory('machines/m/home')
  assert.is(await target.fileSize('machines/m/home/b.json'), undefined)
  assert.equal(keysOf(server), ['backups/machines/m/home/a.json', 'backups/machines/m/home/deep/c'])
})

s3('long listings come in pages, whole and in order', async () => {
  const { server, target } = await newPlace({ pageSize: 7 })
  const names = Array.from({ length: 30 }, (_, number) => `n${String(number).padStart(2, '0')}`)
  for (const name of names) server.put({ key: `backups/x/${name}`, body: Buffer.from(name) })
  server.put({ key: 'backups/x y+ü/ö', body: Buffer.from('of others') })
  server.put({ key: 'backups2/x', body: Buffer.from('of others') })
  assert.equal(
    (await target.list('x'))?.map(({ name }) => name),
    names,
  )
  assert.equal(
    (await target.list(''))?.map(({ name }) => name),
    ['x', 'x y+ü'],
  )
  const all = (await target.listTree('')).map(({ name }) => name)
  assert.equal(all, ['x y+ü/ö', ...names.map((name) => `x/${name}`)])
})

s3('nothing is overwritten; the same bytes again are fine (3)', async () => {
  const { server, target } = await newPlace()
  await target.write('repository.json', Buffer.from('first'))
  await target.write('repository.json', Buffer.from('first'))
  const failure = await failureOf(() => target.write('repository.json', Buffer.from('other')))
  assert.is(failure.code, 'TARGET_FAILED')
  assert.match(failure.message, 'is there already')
  assert.is(String(server.objects().get('backups/repository.json')?.body), 'first')
  await target.replace('repository.json', Buffer.from('mended'))
  assert.is(String(server.objects().get('backups/repository.json')?.body), 'mended')
  await target.replace('machines/m/home/latest', Buffer.from('2025'))
  assert.equal(keysOf(server), ['backups/repository.json'])
  assert.is(await target.setAside('repository.json'), 'repository.json.damaged')
  await target.write('repository.json', Buffer.from('again'))
  assert.is(await target.setAside('repository.json'), 'repository.json.damaged-2')
  assert.equal(keysOf(server), [
    'backups/repository.json.damaged',
    'backups/repository.json.damaged-2',
  ])
})

s3('a file of the spool arrives whole, and leaves the spool', async () => {
  const { server, target } = await newPlace()
  for (const size of [0, 1, 8 * MIB, 8 * MIB + 1, 20 * MIB]) {
    const path = BUNDLE.replace('0001', String(size))
    const bytes = LARGE.subarray(0, size)
    const file = await spool(target, bytes, path)
    assert.is(statSync(join(file, '..')).mode & 0o777, 0o700)
    await target.publish(path)
    const object = server.objects().get(`backups/${path}`)
    assert.ok(object?.body.equals(bytes), `${size} bytes`)
    assert.is(object?.metadata['sha256'], hexOf(bytes))
    assert.equal(readdirSync(join(file, '..')), [])
  }
  assert.equal(server.uploads(), [])
  assert.not(keysOf(server).some((key) => key.includes('.probe')))
})

s3('an upload that broke off goes on with the parts that are missing (7)', async () => {
  const place = await newPlace()
  const { server, target } = place
  const file = await spool(target, LARGE)
  const failure = await breakOff(server, target)
  assert.is(failure.code, 'TARGET_FAILED')
  assert.is(failure.retry, 'later')
  assert.ok(existsSync(file))
  assert.equal(keysOf(server), [])
  assert.equal(
    server.uploads().map(({ parts }) => parts),
    [1],
  )
  server.resetRequests()
  const next = await openAt(place)
  await next.publish(BUNDLE)
  assert.is(count(server, 'UploadPart'), 2)
  assert.is(count(server, 'CreateMultipartUpload'), 0)
  assert.ok(server.objects().get(`backups/${BUNDLE}`)?.body.equals(LARGE))
  assert.not(existsSync(file))
  assert.equal(server.uploads(), [])
})

s3('an upload whose last answer was lost is not sent again (7)', async () => {
  const place = await newPlace()
  const { server, target } = place
  await spool(target, LARGE)
  const lost = { kind: 'reset-after', action: 'CompleteMultipartUpload', times: 1 } as const
  await target.bucket?.capabilities()
  const end = server.fault(lost)
  await target.publish(BUNDLE)
  end()
  assert.ok(server.objects().get(`backups/${BUNDLE}`)?.body.equals(LARGE))
  assert.equal(server.uploads(), [])
  // And killed between that and the spool: the file is there once more.
  const file = await spool(target, LARGE)
  server.resetRequests()
  await target.publish(BUNDLE)
  assert.not(existsSync(file))
  assert.is(count(server, 'PutObject'), 0)
})

s3('a part that is wrong there is sent again', async () => {
  const place = await newPlace()
  const { server, target } = place
  const file = await spool(target, LARGE)
  await breakOff(server, target)
  const { key = '', uploadId = '' } = server.uploads()[0] ?? {}
  const calls = callsOf(place)
  const [there] = (await calls.listParts(key, uploadId)) ?? []
  const number = there?.number ?? 0
  const body = Buffer.alloc(8 * MIB)
  const checksum = Buffer.alloc(4)
  checksum.writeUInt32BE(crc32(body))
  await calls.putPart({ key, uploadId, number, body, crc32: checksum.toString('base64') })
  await (await openAt(place)).publish(BUNDLE)
  assert.ok(server.objects().get(key)?.body.equals(LARGE))
  assert.not(existsSync(file))
})

s3('a spooled file that changed after its upload began is not sent (2)', async () => {
  const place = await newPlace()
  const { server, target } = place
  const file = await spool(target, LARGE)
  await breakOff(server, target)
  const bytes = Buffer.from(LARGE)
  bytes[5]! ^= 1
  // In its place: the same file, other bytes.
  writeFileSync(file, bytes, { flag: 'r+' })
  server.resetRequests()
  const next = await openAt(place)
  assert.is(await codeOf(() => next.publish(BUNDLE)), 'READ_BACK')
  assert.equal(keysOf(server), [])
  assert.ok(existsSync(file))
  assert.is(count(server, 'UploadPart'), 0)
  assert.is(count(server, 'CompleteMultipartUpload'), 0)
})

s3('another file of the same name begins its own upload', async () => {
  const place = await newPlace()
  const { server, target } = place
  const file = await spool(target, LARGE)
  await breakOff(server, target)
  const record = `${file}.upload`
  const old = JSON.parse(readFileSync(record, 'utf8')) as { born: string }
  writeFileSync(record, JSON.stringify({ ...old, born: 'another' }))
  const other = Buffer.from(LARGE)
  other[5]! ^= 1
  writeFileSync(file, other)
  await target.publish(BUNDLE)
  assert.ok(server.objects().get(`backups/${BUNDLE}`)?.body.equals(other))
  assert.equal(server.uploads(), [])
})

s3('an upload that the service forgot begins anew', async () => {
  const place = await newPlace()
  const { server, target } = place
  await spool(target, LARGE)
  await breakOff(server, target)
  const calls = callsOf(place)
  for (const { key, uploadId } of server.uploads()) await calls.abortUpload(key, uploadId)
  await target.publish(BUNDLE)
  assert.ok(server.objects().get(`backups/${BUNDLE}`)?.body.equals(LARGE))
})

s3('a name that others took meanwhile keeps their bytes (3)', async () => {
  for (const conditional of ['honoured', 'ignored'] as const) {
    const { server, target } = await newPlace({ quirks: { conditional } })
    server.put({ key: `backups/${BUNDLE}`, body: Buffer.from('of others') })
    const file = await spool(target, LARGE)
    assert.is(await codeOf(() => target.publish(BUNDLE)), 'TARGET_FAILED')
    assert.is(String(server.objects().get(`backups/${BUNDLE}`)?.body), 'of others')
    assert.equal(server.uploads(), [])
    assert.ok(existsSync(file))
  }
})

s3('the probe says what the service does, not what it takes', async () => {
  const expected: readonly (readonly [
    S3ServerOptions['quirks'],
    Omit<Capabilities, 'probedMs'>,
  ])[] = [
    [{}, capable('crc32', 'crc32', true, true)],
    [{ checksums: 'ignored' }, capable('md5', 'none', true, true)],
    [{ checksums: 'ignored', md5: 'ignored' }, capable('none', 'none', true, true)],
    [{ fullObjectMultipart: false }, capable('crc32', 'none', true, true)],
    [{ conditional: 'ignored' }, capable('crc32', 'crc32', false, false)],
    [{ conditional: 'refused' }, capable('crc32', 'crc32', false, false)],
    [{ conditionalComplete: 'ignored' }, capable('crc32', 'crc32', true, false)],
  ]
  for (const [quirks, capabilities] of expected) {
    const { server, target } = await newPlace({ quirks: quirks ?? {} })
    const { probedMs, ...found } = (await target.bucket?.capabilities()) ?? { probedMs: 0 }
    assert.equal(found, capabilities, JSON.stringify(quirks))
    assert.ok(Math.abs(Date.now() - probedMs) < 60_000)
    assert.equal(keysOf(server), [])
    assert.equal(server.uploads(), [])
  }
})

s3('a checksum that is refused even where it is right does not count', async () => {
  const { server, target } = await newPlace()
  const refused = { kind: 'error', status: 400, code: 'InvalidArgument' } as const
  server.fault({ ...refused, action: 'PutObject', key: /-2$/ })
  server.fault({ ...refused, action: 'CreateMultipartUpload', key: /-4$/ })
  const found = await target.bucket?.capabilities()
  assert.is(found?.checksum, 'md5')
  assert.is(found?.multipartChecksum, 'none')
  assert.equal(keysOf(server), [])
})

s3('a probe that meets trouble is not believed', async () => {
  const { server, target, directory } = await newPlace()
  const end = server.fault({ kind: 'slowdown', action: 'CompleteMultipartUpload' })
  assert.is(await codeOf(async () => await target.bucket?.capabilities()), 'TARGET_FAILED')
  end()
  assert.not(existsSync(join(directory, 'capabilities.json')))
  assert.equal(keysOf(server), [])
  assert.equal(server.uploads(), [])
  assert.is((await target.bucket?.capabilities())?.multipartChecksum, 'crc32')
})

s3('what a probe showed is believed for a month, of that bucket only', async () => {
  const place = await newPlace({ buckets: { bucket: {}, other: {} } })
  const { server, target, directory } = place
  await target.bucket?.capabilities()
  const probed = async (of: Partial<S3TargetConfiguration> = {}): Promise<boolean> => {
    server.resetRequests()
    await (await openAt({ ...place, configuration: of })).bucket?.capabilities()
    return count(server, 'PutObject') > 0
  }
  assert.not(await probed())
  assert.ok(await probed({ bucket: 'other' }))
  assert.ok(await probed())
  const file = join(directory, 'capabilities.json')
  const known = JSON.parse(readFileSync(file, 'utf8')) as Capabilities
  const rewrite = (probedMs: number) => writeFileSync(file, JSON.stringify({ ...known, probedMs }))
  rewrite(Date.now() - 29 * DAY_MS)
  assert.not(await probed())
  rewrite(Date.now() - 31 * DAY_MS)
  assert.ok(await probed())
  rewrite(Date.now() + DAY_MS)
  assert.ok(await probed(), 'of a clock that was wrong')
})

s3('where the service checks nothing, everything is read back (2)', async () => {
  const quirks = { checksums: 'ignored', md5: 'ignored' } as const
  const { server, target } = await newPlace({ quirks })
  const file = await spool(target, LARGE)
  await target.bucket?.capabilities()
  for (const [path, send] of [
    [BUNDLE, () => target.publish(BUNDLE)],
    ['small', () => target.write('small', Buffer.from('some bytes'))],
  ] as const) {
    const end = server.fault({ kind: 'corrupt', action: 'GetObject', key: new RegExp(path) })
    assert.is(await codeOf(send), 'READ_BACK')
    end()
    assert.equal(keysOf(server), [], 'what is not what was sent does not stay')
  }
  assert.ok(existsSync(file))
  await target.publish(BUNDLE)
  await target.write('small', Buffer.from('some bytes'))
  assert.ok(server.objects().get(`backups/${BUNDLE}`)?.body.equals(LARGE))
  assert.not(existsSync(file))
})

s3('bytes that change on their way do not become an object (2)', async () => {
  const { server, target } = await newPlace()
  await target.bucket?.capabilities()
  const file = await spool(target, LARGE)
  const end = server.fault({ kind: 'corrupt', ...PART })
  assert.is(await codeOf(() => target.publish(BUNDLE)), 'TARGET_FAILED')
  end()
  const other = server.fault({ kind: 'corrupt', action: 'PutObject' })
  assert.is(await codeOf(() => target.write('small', Buffer.from('bytes'))), 'TARGET_FAILED')
  other()
  assert.equal(keysOf(server), [])
  assert.ok(existsSync(file))
})

s3(
  'a credential that may only create exports, where the service checks what comes (2)',
  async () => {
    const users = {
      testkey: { secret: 'testsecret', may: (action: string) => action === 's3:PutObject' },
    }
    const { server, target } = await newPlace({ users })
    const file = await spool(target, LARGE)
    await target.publish(BUNDLE)
    await target.write('small', Buffer.from('bytes'))
    assert.ok(server.objects().get(`backups/${BUNDLE}`)?.body.equals(LARGE))
    assert.not(existsSync(file))
    const denied = await failureOf(() => target.read('small', 100))
    assert.is(denied.code, 'TARGET_DENIED')
    assert.match(String(denied.hint), 's3:GetObject')
  },
)

s3('a credential that can prove nothing is refused before anything is exported (2)', async () => {
  const users = {
    testkey: { secret: 'testsecret', may: (action: string) => action === 's3:PutObject' },
  }
  const { server, target } = await newPlace({ users, quirks: { fullObjectMultipart: false } })
  const file = await spool(target, LARGE)
  const failure = await failureOf(() => target.publish(BUNDLE))
  assert.is(failure.code, 'TARGET_DENIED')
  assert.match(String(failure.hint), 'allow s3:GetObject')
  assert.ok(existsSync(file))
  assert.ok(keysOf(server).every((key) => key.startsWith('backups/.probe/')))
  assert.equal(await codeOf(() => target.write('x', Buffer.from('x'))), 'TARGET_DENIED')
})

s3('only large data bundles go to a cold class; none that cannot be proven', async () => {
  const cold = { storageClass: 'DEEP_ARCHIVE', hotBelowBytes: 10 * MIB }
  const { server, target } = await newPlace({}, cold)
  const sizes = { data: 20 * MIB, catalog: 20 * MIB, small: MIB }
  const paths = {
    data: BUNDLE,
    catalog: BUNDLE.replace('data', 'catalog'),
    small: BUNDLE.replace('0001', '0002'),
  }
  for (const name of ['data', 'catalog', 'small'] as const) {
    await spool(target, LARGE.subarray(0, sizes[name]), paths[name])
    await target.publish(paths[name])
  }
  const classOf = (path: string) => server.objects().get(`backups/${path}`)?.storageClass
  assert.is(classOf(paths.data), 'DEEP_ARCHIVE')
  assert.is(classOf(paths.catalog), 'STANDARD')
  assert.is(classOf(paths.small), 'STANDARD')
  assert.equal(await target.bucket?.warmthOf(paths.data), { kind: 'cold' })
  assert.equal(await target.bucket?.warmthOf(paths.catalog), { kind: 'hot' })
  assert.is(await target.bucket?.warmthOf('none'), undefined)
  const range = { offset: 0, length: 10 }
  assert.is(await codeOf(() => target.readRange(paths.data, range)), 'COLD_STORAGE')
  const blind = await newPlace({ quirks: { fullObjectMultipart: false } }, cold)
  const file = await spool(blind.target, LARGE)
  const failure = await failureOf(() => blind.target.publish(BUNDLE))
  assert.match(String(failure.hint), 'storage_class')
  assert.equal(keysOf(blind.server), [])
  assert.equal(blind.server.uploads(), [])
  assert.ok(existsSync(file))
})

s3('what is sent is locked where the bucket has object lock', async () => {
  const lockMs = 10 * DAY_MS
  const locked = await newPlace({ buckets: { bucket: { objectLock: true } } }, { lockMs })
  await spool(locked.target, LARGE)
  await locked.target.publish(BUNDLE)
  await locked.target.write('small', Buffer.from('bytes'))
  for (const path of [BUNDLE, 'small']) {
    const [version] = locked.server.versions('bucket', `backups/${path}`)
    assert.is(version?.lock?.mode, 'GOVERNANCE')
    assert.ok(Math.abs((version?.lock?.untilMs ?? 0) - Date.now() - lockMs) < 60_000)
  }
  const plain = await newPlace({}, { lockMs })
  await plain.target.write('small', Buffer.from('bytes'))
  assert.is(plain.server.objects().get('backups/small')?.lock, undefined)
})

s3('abandoned uploads end after a day, those of others and known ones go on', async () => {
  const place = await newPlace()
  const { server, target, directory } = place
  await spool(target, LARGE)
  await breakOff(server, target)
  const calls = callsOf(place)
  await calls.createUpload({ key: 'backups/machines/m/home/forgotten' })
  await calls.createUpload({ key: 'backups/machines/other/home/of-others' })
  const prefix = 'backups/machines/m/'
  const abandon = (nowMs: number) =>
    abandonUploads({ calls, prefix, spool: join(directory, 'spool'), nowMs })
  assert.is(await abandon(Date.now() + DAY_MS - 60_000), 0)
  assert.is(server.uploads().length, 3)
  assert.is(await abandon(Date.now() + DAY_MS + 60_000), 1)
  const left = server.uploads().map(({ key }) => key)
  assert.equal(left.sort(), [`backups/${BUNDLE}`, 'backups/machines/other/home/of-others'].sort())
  await target.publish(BUNDLE)
  assert.ok(server.objects().get(`backups/${BUNDLE}`)?.body.equals(LARGE))
})

s3('what passes is tried again: every call, every kind of trouble', async () => {
  const faults = [
    { kind: 'slowdown', times: 2 },
    { kind: 'reset', times: 2 },
    { kind: 'reset-after', times: 1 },
    { kind: 'truncate', times: 1 },
    { kind: 'error', status: 500, code: 'InternalError', times: 3 },
    { kind: 'error', status: 400, code: 'RequestTimeout', times: 1 },
  ] as const
  const place = await newPlace()
  const { server, target } = place
  await target.bucket?.capabilities()
  for (const [index, fault] of faults.entries()) {
    const path = `machines/m/${index}/data-0001.tar.zst.age`
    const actions = [
      ...['PutObject', 'CreateMultipartUpload', 'UploadPart', 'CompleteMultipartUpload'],
      ...['GetObject', 'HeadObject', 'ListObjectsV2', 'DeleteObject', 'ListParts'],
    ]
    const ends = actions.map((action) => server.fault({ ...fault, action }))
    await spool(target, LARGE, path)
    await target.publish(path)
    await target.write(`small-${index}`, Buffer.from('bytes'))
    assert.is(String(await target.read(`small-${index}`, 100)), 'bytes')
    assert.is(await target.fileSize(path), LARGE.length)
    const range = await target.readRange(path, { offset: 10, length: 3 * MIB })
    assert.ok(range?.equals(LARGE.subarray(10, 10 + 3 * MIB)))
    assert.is((await target.list(''))?.length, 2)
    await target.remove(`small-${index}`)
    for (const end of ends) end()
    assert.ok(server.objects().get(`backups/${path}`)?.body.equals(LARGE), fault.kind)
  }
  assert.equal(keysOf(server).length, faults.length)
})

s3('each failure says what to do, and tells no secret (11)', async () => {
  const place = await newPlace()
  const { server } = place
  const failure = async (of: Place = place): Promise<BackupError> => {
    const found = await failureOf(async () => await openAt(of))
    const told = JSON.stringify([found.message, found.hint, found.facts])
    assert.not.match(told, 'testsecret')
    assert.not.match(told, 'wrongsecret')
    return found
  }
  const faulty = async (fault: Parameters<S3Server['fault']>[0]): Promise<BackupError> => {
    const end = server.fault(fault)
    const found = await failure()
    end()
    return found
  }
  const skew = await faulty({ kind: 'skew' })
  assert.is(skew.code, 'TARGET_DENIED')
  assert.match(skew.message, 'clock')
  const region = await faulty({ kind: 'wrong-region', region: 'eu-west-3' })
  assert.match(String(region.hint), 'region: eu-west-3')
  const expired = await faulty({ kind: 'expired' })
  assert.is(expired.code, 'TARGET_DENIED')
  assert.match(expired.message, 'expired')
  const slow = await faulty({ kind: 'slowdown' })
  assert.match(slow.message, 'slowing')
  assert.is(slow.retry, 'later')
  const reset = await faulty({ kind: 'reset' })
  assert.is(reset.code, 'TARGET_ABSENT')
  assert.is(reset.exitCode, 10)
  const full = await faulty({ kind: 'error', status: 403, code: 'QuotaExceeded' })
  assert.is(full.code, 'TARGET_FULL')
  const missing = await failure({ ...place, configuration: { bucket: 'nowhere' } })
  assert.is(missing.code, 'TARGET_ABSENT')
  assert.match(missing.message, 'no bucket nowhere')
  const endpoint = 'http://127.0.0.1:9'
  const absent = await failure({ ...place, configuration: { endpoint } })
  assert.is(absent.code, 'TARGET_ABSENT')
  assert.is(absent.retry, 'later')
  process.env['AWS_SECRET_ACCESS_KEY'] = 'wrongsecret'
  assert.match((await failure()).message, 'secret of the credentials is wrong')
  process.env['AWS_ACCESS_KEY_ID'] = 'unknown'
  assert.match((await failure()).message, 'does not know the key')
  delete process.env['AWS_ACCESS_KEY_ID']
  delete process.env['AWS_SECRET_ACCESS_KEY']
  assert.match((await failure()).message, 'no credentials')
  const profile = await failure({ ...place, configuration: { profile: 'away' } })
  assert.match(String(profile.hint), '[away]')
  assert.equal(keysOf(server), [])
})

s3('no more than the limit is sent in a second, and it is signed all the same', async () => {
  const place = await newPlace({}, { bandwidthLimitBytes: 20 * MIB })
  const { server, target } = place
  await target.bucket?.capabilities()
  const bytes = LARGE.subarray(0, 9 * MIB)
  await spool(target, bytes)
  const end = server.fault({ kind: 'reset', times: 1, ...PART })
  const begun = performance.now()
  await target.publish(BUNDLE)
  const passed = performance.now() - begun
  end()
  assert.ok(passed > 400 && passed < 5000, `${passed} ms`)
  assert.ok(server.objects().get(`backups/${BUNDLE}`)?.body.equals(bytes))
  for (const { action, headers } of server.requests) {
    if (!/^(PutObject|UploadPart)$/.test(action)) continue
    assert.match(String(headers['x-amz-content-sha256']), /^[0-9a-f]{64}$/)
    assert.is(headers['transfer-encoding'], undefined)
  }
})

s3('so many transfers run at a time, and bytes wait for their turn', async () => {
  const transfers = createTransfers({ streams: 2, bandwidthLimitBytes: 1000 })
  let now = 0
  let most = 0
  const work = async (): Promise<void> => {
    most = Math.max(most, ++now)
    await new Promise(setImmediate)
    now -= 1
  }
  const failing = transfers.run(async () => await Promise.reject(new Error('it failed')))
  const all = Array.from({ length: 20 }, () => transfers.run(work))
  await failing.catch(() => undefined)
  await Promise.all(all)
  assert.is(most, 2)
  const begun = performance.now()
  for (let number = 0; number < 5; number += 1) await transfers.pace(50)
  const passed = performance.now() - begun
  assert.ok(passed > 190 && passed < 900, `${passed} ms`)
  const ended = new AbortController()
  ended.abort(new Error('enough'))
  const reason = await transfers.pace(1, ended.signal).catch((error: unknown) => String(error))
  assert.is(reason, 'Error: enough')
})

const PART = { action: 'UploadPart' } as const

function capable(
  ...[checksum, multipartChecksum, conditionalPut, conditionalComplete]: [
    Capabilities['checksum'],
    Capabilities['multipartChecksum'],
    boolean,
    boolean,
  ]
): Omit<Capabilities, 'probedMs'> {
  return { checksum, multipartChecksum, conditionalPut, conditionalComplete }
}

function callsOf(place: Place) {
  const calls = createS3Calls({ ...configurationOf(place), firstDelayMs: 1 })
  open.push({ close: async () => calls.close() })
  return calls
}

s3.run()
