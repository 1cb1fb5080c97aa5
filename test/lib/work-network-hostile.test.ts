// What another machine, a thief of credentials, a proxy, a bad disk or a bad service can do to what
// is sent and read over a network. work-network.test.ts has what goes wrong by itself.

import { spawn } from 'node:child_process'
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { dirname } from 'node:path'
import { suite } from 'uvu'
import { loadConfiguration } from '../../lib/machine/config.ts'
import { readIdentityFile } from '../../lib/machine/identity.ts'
import { createS3Calls } from '../../lib/target/s3-client.ts'
import type { S3Calls } from '../../lib/target/s3-calls.ts'
import { type ExportOutcome, exportSet } from '../../lib/work/export.ts'
import {
  createRepository,
  enterMachine,
  exportsOf,
  findRepository,
  listStamps,
} from '../../lib/work/repository.ts'
import { openSigner } from '../../lib/work/signing.ts'
import { verifyExports } from '../../lib/work/verify.ts'
import * as assert from '../helpers/assert.ts'
import { type CloudScenario, makeCloud } from '../helpers/cloud-scenario.ts'
import { type NetworkTarget, dropped, networkTarget } from '../helpers/network-target.ts'
import { randomFrom } from '../helpers/random.ts'
import { MAIN } from '../helpers/run-cli.ts'
import { type Scenario, configure, exportStamps, makeScenario } from '../helpers/scenario.ts'
import { assertWhole, inventory, setDirectory } from '../helpers/scenario.ts'
import { failureOf } from '../helpers/failure.ts'

const hostile = suite('work/network-hostile')
const random = randomFrom('network-hostile')
const signal = new AbortController().signal

interface Remote {
  readonly scenario: Scenario
  readonly target: NetworkTarget
  readonly spool: string
  /** Codes of what was told. */
  readonly told: string[]
}

/** Several bundles, collected, and nothing exported yet. */
async function makeRemote(): Promise<Remote> {
  const scenario = await makeScenario()
  configure(scenario, (c) => {
    c['targets'][0].bundle_size = '1 MiB'
  })
  for (let i = 0; i < 40; i++) writeFileSync(`${scenario.source}/${i}`, random.bytes(100_000))
  assert.is((await scenario.collect()).status, 0)
  const spool = `${scenario.directory}/spool`
  return { scenario, spool, told: [], target: networkTarget({ path: scenario.target, spool }) }
}

async function configurationOf({ scenario }: Remote) {
  const { configuration: path, home } = scenario
  return await loadConfiguration({ path, environment: { HOME: home }, home, hostName: 'tester' })
}

async function exportNow(remote: Remote): Promise<ExportOutcome> {
  const configuration = await configurationOf(remote)
  const signer = await openSigner(configuration)
  const { target, told } = remote
  const nowMs = Date.now()
  const repository = (await findRepository(target)) ?? (await createRepository(target, { nowMs }))
  await enterMachine(repository, { machine: 'tester', signer })
  return await exportSet({
    ...{ configuration, targetConfiguration: configuration.targets[0]!, repository, signer },
    ...{ set: 'data', nowMs, signal },
    report: (event) => {
      if (event.kind === 'notice') told.push(event.code)
    },
  })
}

/** Newly collected, with one file more. */
async function collectAgain({ scenario }: Remote): Promise<void> {
  writeFileSync(`${scenario.source}/one-more`, random.bytes(1000))
  assert.is((await scenario.collect()).status, 0)
}

async function problemsOf(remote: Remote): Promise<readonly unknown[]> {
  const repository = (await findRepository(remote.target))!
  const signer = await openSigner(await configurationOf(remote))
  const askPassphrase = (): never => {
    throw new Error('it has none')
  }
  const path = remote.scenario.identity
  const { identities } = await readIdentityFile({ path, askPassphrase })
  const places = exportsOf(await listStamps(repository, 'tester'))
  assert.ok(places.length > 0, 'there is an export')
  const verified = await verifyExports({
    ...{ repository, places, identities, cores: 2, report: () => {}, signal },
    publicKeys: async () => [signer.publicKey],
  })
  assert.ok(verified.deep)
  return verified.exports.flatMap(({ problems }) => problems)
}

/** An export that ends at the first call that matches; `after` of them go well. */
async function exportCut(remote: Remote, at: RegExp, after = 0): Promise<string> {
  let seen = 0
  let cut: string | undefined
  remote.target.onCall = (call) => {
    if (!at.test(call) || seen++ < after) return
    cut ??= call.slice(call.indexOf(' ') + 1)
    throw dropped()
  }
  const error = await failureOf(() => exportNow(remote))
  assert.is(error.code, 'TARGET_ABSENT', error.message)
  remote.target.onCall = () => {}
  remote.target.calls.length = 0
  assert.ok(cut !== undefined)
  return cut
}

const DATA = /^publish .*\/data\/.*data-/

hostile('what changed in the spool is not sent as what it was, but packed again', async () => {
  const remote = await makeRemote()
  const cut = await exportCut(remote, DATA, 1)
  const spooled = `${remote.spool}/${cut}.partial`
  const bytes = readFileSync(spooled)
  bytes[bytes.length >> 1]! ^= 1
  writeFileSync(spooled, bytes)
  const exported = await exportNow(remote)
  assert.is(exported.kind, 'exported')
  assert.ok(remote.told.includes('PACKED_AGAIN'))
  assert.equal(await problemsOf(remote), [])
})

hostile('a bundle that came, but was not proven when the run was killed, is proven', async () => {
  for (const isDamaged of [false, true]) {
    const remote = await makeRemote()
    const cut = await exportCut(remote, DATA, 1)
    const arrived = `${remote.scenario.target}/${cut}`
    mkdirSync(dirname(arrived), { recursive: true })
    copyFileSync(`${remote.spool}/${cut}.partial`, arrived)
    const bytes = readFileSync(arrived)
    if (isDamaged) bytes[bytes.length >> 1]! ^= 1
    writeFileSync(arrived, bytes)
    assert.is((await exportNow(remote)).kind, 'exported')
    assert.ok(remote.target.calls.includes(`publish ${cut}`), 'it is looked at')
    assert.is(remote.told.includes('PACKED_AGAIN'), isDamaged)
    assert.equal(await problemsOf(remote), [])
  }
})

hostile('something else under the name of a bundle that waits does not end exporting', async () => {
  const remote = await makeRemote()
  const cut = await exportCut(remote, DATA, 1)
  const path = `${remote.scenario.target}/${cut}`
  mkdirSync(dirname(path), { recursive: true })
  writeFileSync(path, 'rubbish')
  await exportNow(remote)
  assert.ok(remote.told.includes('PACKED_AGAIN'))
  assert.equal(await problemsOf(remote), [])
  assert.not.ok(existsSync(`${remote.spool}/machines/tester/data`), 'nothing waits any more')
})

hostile('another signed list beside a manifest that waits does not end exporting', async () => {
  const remote = await makeRemote()
  const cut = await exportCut(remote, /^write .*\/data\/.*verification.sha256$/)
  const path = `${remote.scenario.target}/${cut}`
  writeFileSync(path, 'rubbish')
  await collectAgain(remote)
  assert.is((await exportNow(remote)).kind, 'exported')
  assert.ok(remote.told.includes('NOT_FINISHED'))
  assert.equal(await problemsOf(remote), [])
  assert.not.ok(existsSync(`${dirname(path)}/manifest.tar.zst.age`))
})

hostile('a collection whose signed list is taken in a bucket costs no upload', async () => {
  const cloud = await makeCloud()
  try {
    for (let i = 0; i < 20; i++) writeFileSync(`${cloud.source}/${i}`, random.bytes(100_000))
    await cloud.generation()
    const planted = await cloud.collect('--json')
    assert.is(planted.status, 0)
    const stamp = newestCollection(cloud)
    const key = `backups/machines/tester/data/${stamp}/verification.sha256`
    cloud.server.put({ key, body: Buffer.from('rubbish') })
    cloud.server.resetRequests()
    const failed = await cloud.external('--json')
    assert.is.not(failed.status, 0)
    const sent = cloud.server.requests.filter(({ action, key: of }) => {
      return /Put|Upload/.test(action) && of.includes(`/${stamp}/`)
    })
    assert.equal(sent, [], 'nothing was sent for it')
    writeFileSync(`${cloud.source}/one-more`, 'new')
    await cloud.generation()
    assert.is((await cloud.restore('--verify')).status, 0)
    assert.not.ok(cloud.server.objects().has(key.replace('verification.sha256', 'manifest')))
  } finally {
    await cloud.server.close()
  }
})

function newestCollection({ staging }: Scenario): string {
  const stamps = readdirSync(`${staging}/data`).filter((name) => /^\d{4}-.*Z$/.test(name))
  return stamps.sort().at(-1)!
}

for (const access of ['files', 'network'] as const) {
  hostile(`a lost manifest costs no export of another set its content (${access})`, async () => {
    const scenario = await makeScenario()
    const other = `${scenario.home}/other`
    mkdirSync(other)
    const photo = random.bytes(500_000)
    writeFileSync(`${scenario.source}/photo`, photo)
    writeFileSync(`${other}/the-same-photo`, photo)
    configure(scenario, (c) => {
      c['backup_sets'].push({ name: 'other', sources: [other] })
    })
    assert.is((await scenario.collect()).status, 0)
    assert.is((await scenario.external()).status, 0)
    const [stamp] = exportStamps(scenario)
    const lost = `${setDirectory(scenario)}/${stamp}`
    rmSync(`${lost}/manifest.tar.zst.age`)
    if (access === 'files') assert.is((await scenario.external('--set', 'data')).status, 0)
    else {
      const spool = `${scenario.directory}/spool`
      const target = networkTarget({ path: scenario.target, spool })
      await exportNow({ scenario, spool, target, told: [] })
    }
    assert.ok(existsSync(`${lost}/data-0001.tar.zst.age`), 'what the other set needs')
    await assertWhole(scenario)
    const into = `${scenario.directory}/into`
    assert.is((await scenario.restore('--set', 'other', '--into', into)).status, 0)
    assert.equal(readFileSync(`${into}${other}/the-same-photo`), photo)
  })
}

hostile('two machines that make a repository at once have one', async () => {
  for (const isRefused of [true, false]) {
    const { target, scenario } = await makeRemote()
    const theirs = `{"format":1,"id":"${'ab'.repeat(16)}","created":"2026-01-01T000000Z"}\n`
    const write = target.write
    target.write = async (path, bytes) => {
      const isIt = path === 'repository.json'
      // The other one is a moment earlier; or later, where the service takes a name twice.
      if (isIt && isRefused) writeFileSync(`${scenario.target}/${path}`, theirs)
      await write(path, bytes)
      if (isIt && !isRefused) writeFileSync(`${scenario.target}/${path}`, theirs)
    }
    const made = await createRepository(target, { nowMs: Date.now() })
    assert.is(made.id, 'ab'.repeat(16))
    assert.is(readFileSync(`${scenario.target}/repository.json`, 'utf8'), theirs)
  }
})

/** A server that is no S3 service. */
async function withServer(
  answer: (url: string, response: ServerResponse) => void,
  test: (calls: S3Calls) => Promise<void>,
): Promise<void> {
  const server = createServer((request, response) => {
    request.resume()
    request.on('end', () => answer(request.url ?? '', response))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  const before = { ...process.env }
  const keys = { AWS_ACCESS_KEY_ID: 'key', AWS_SECRET_ACCESS_KEY: 'secret' }
  Object.assign(process.env, keys, { AWS_EC2_METADATA_DISABLED: 'true' })
  const place = { bucket: 'bucket', region: 'us-east-1', isPathStyle: true, profile: undefined }
  const endpoint = `http://127.0.0.1:${port}`
  const calls = createS3Calls({ ...place, endpoint, firstDelayMs: 1 })
  try {
    await test(calls)
  } finally {
    calls.close()
    process.env = before
    server.closeAllConnections()
    await new Promise((resolve) => server.close(resolve))
  }
}

const PAGE = '<html><head><title>Welcome</title></head><body><p>Please log in</p></body></html>'

hostile("a proxy's page is neither an empty listing nor a sent object", async () => {
  const answer = (_: string, response: ServerResponse): void => {
    response.writeHead(200, { 'content-type': 'text/html', 'content-length': PAGE.length })
    response.end(PAGE)
  }
  await withServer(answer, async (calls) => {
    const body = Buffer.from('a bundle')
    const part = { number: 1, sizeBytes: 8, etag: 'a', crc32: undefined }
    const all: (() => Promise<unknown>)[] = [
      () => calls.list('machines/'),
      () => calls.listFolder(''),
      () => calls.listVersions('machines/'),
      () => calls.put({ key: 'a', body }),
      () => calls.put({ key: 'a', body, ifAbsent: true }),
      () => calls.createUpload({ key: 'a' }),
      () => calls.putPart({ key: 'a', uploadId: '1', number: 1, body }),
      () => calls.completeUpload({ key: 'a', uploadId: '1', parts: [part] }),
    ]
    for (const call of all) {
      const error = await failureOf(call)
      assert.is(error.code, 'TARGET_FAILED', String(call))
      assert.match(String(error.hint), 'proxy', String(call))
    }
  })
})

hostile('a redirection is not followed with the credentials', async () => {
  const asked: string[] = []
  const answer = (url: string, response: ServerResponse): void => {
    asked.push(url)
    const location = `http://${response.req.headers.host}/elsewhere`
    response.writeHead(307, { location, 'content-length': 0 })
    response.end()
  }
  await withServer(answer, async (calls) => {
    assert.is((await failureOf(() => calls.get('a'))).code, 'TARGET_FAILED')
    assert.is((await failureOf(() => calls.list('a'))).code, 'TARGET_FAILED')
  })
  assert.not.ok(
    asked.some((url) => url.includes('elsewhere')),
    asked.join(),
  )
})

hostile('no more is taken of an answer than was asked for', async () => {
  let sent = 0
  const answer = (url: string, response: ServerResponse): void => {
    const block = Buffer.alloc(2 ** 20, 'x')
    const isRange = url.includes('range')
    const header = { 'content-range': 'bytes 0-999/2000' }
    response.writeHead(isRange ? 206 : 200, isRange ? header : {})
    const more = (): void => {
      if (response.destroyed || sent > 300 * 2 ** 20) return void response.end()
      sent += block.length
      if (response.write(block)) setImmediate(more)
      else response.once('drain', more)
    }
    more()
  }
  await withServer(answer, async (calls) => {
    for (const key of ['range', 'whole']) {
      sent = 0
      const bytes = await calls.get(key, { offset: 0, length: 1000 })
      assert.is(bytes?.length, 1000, key)
      assert.ok(sent < 100 * 2 ** 20, `${key}: ${sent} bytes were sent`)
    }
    sent = 0
    const middle = await calls.get('whole', { offset: 3000, length: 1000 })
    assert.is(middle?.length, 1000)
  })
})

hostile('a listing that cannot be is told and does not crash', async () => {
  const listing = (keys: readonly string[]): string => {
    const objects = keys.map((key) => `<Contents><Key>${key}</Key><Size>1</Size></Contents>`)
    const head = '<Name>bucket</Name><EncodingType>url</EncodingType>'
    const end = '<IsTruncated>false</IsTruncated></ListBucketResult>'
    return `<?xml version="1.0"?><ListBucketResult>${head}${objects.join('')}${end}`
  }
  let body = listing(['a%ZZ'])
  await withServer(
    (_, response) => void response.writeHead(200).end(body),
    async (calls) => {
      assert.is((await failureOf(() => calls.list(''))).code, 'TARGET_FAILED')
      body = listing(Array.from({ length: 200_000 }, (__, i) => `k${i}`))
      assert.is((await calls.list('')).length, 200_000)
      assert.is((await calls.listFolder('')).objects.length, 200_000)
    },
  )
})

hostile('Ctrl-C ends a restore while the service says nothing', async () => {
  const cloud = await makeCloud()
  try {
    for (let i = 0; i < 20; i++) writeFileSync(`${cloud.source}/${i}`, random.bytes(100_000))
    await cloud.generation()
    for (const key of [/data-\d+/]) {
      const end = cloud.server.fault({ kind: 'stall', action: 'GetObject', key })
      cloud.server.resetRequests()
      const into = `${cloud.directory}/into`
      rmSync(into, { recursive: true, force: true })
      const outcome = await interrupted(cloud, key, into)
      end()
      assert.is(outcome.status, 130, `${key}: ${outcome.stderr}`)
      assert.ok(outcome.ms < 5000, `${key}: it took ${outcome.ms} ms`)
      const there = [...inventory(into)].filter(([, what]) => what !== 'directory')
      const named = there.filter(([path]) => !path.includes('.backup-restore'))
      assert.equal(named, [], `${key}: nothing has its name that is not whole`)
      assert.is((await cloud.restore('--into', into)).status, 0)
      assert.equal(inventory(`${into}${cloud.source}`), inventory(cloud.source))
    }
  } finally {
    await cloud.server.close()
  }
})

/** Restores, and gets SIGINT once the request that is not answered came. */
async function interrupted(cloud: CloudScenario, key: RegExp, into: string) {
  const words = ['restore', '--source', 'external', '--identity', cloud.identity, '--into', into]
  const env = { PATH: process.env['PATH'] ?? '', ...cloud.environment }
  const child = spawn(process.execPath, [MAIN, ...words], {
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let stderr = ''
  child.stdout.resume()
  child.stderr.on('data', (text: Buffer) => (stderr += text.toString()))
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve))
  const isAsked = (): boolean => cloud.server.requests.some((one) => key.test(one.key))
  const patienceMs = performance.now() + 20_000
  while (!isAsked() && performance.now() < patienceMs) await pause(20)
  await pause(100)
  const beganMs = performance.now()
  child.kill('SIGINT')
  const timer = setTimeout(() => child.kill('SIGKILL'), 15_000)
  const status = await ended
  clearTimeout(timer)
  return { status, stderr, ms: Math.round(performance.now() - beganMs) }
}

async function pause(ms: number): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, ms))
}

hostile.run()
