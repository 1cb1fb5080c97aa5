// The whole product against a real service: the gateway of the Ceph that run.sh starts.
//
// An export killed in the middle of a multipart upload and gone on with, verification, a file of its
// own with its count of requests, object lock against our own admin's mistake, and what was deleted
// found and brought back. Requests are counted by a proxy between the two.

import { spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, request, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { suite } from 'uvu'
import { createS3Calls } from '../../lib/target/s3-client.ts'
import * as assert from '../helpers/assert.ts'
import { randomFrom } from '../helpers/random.ts'
import { MAIN } from '../helpers/run-cli.ts'
import { configure, inventory, makeScenario, type Scenario } from '../helpers/scenario.ts'

const whole = suite('s3/whole')
const random = randomFrom('s3-whole')
const endpoint = process.env['S3_ENDPOINT'] ?? 'http://127.0.0.1:47080'
const KEYS = {
  ...{ AWS_ACCESS_KEY_ID: 'testkey', AWS_SECRET_ACCESS_KEY: 'testsecret', AWS_REGION: 'us-east-1' },
  ...{ AWS_EC2_METADATA_DISABLED: 'true', AWS_CONFIG_FILE: '/dev/null' },
  AWS_SHARED_CREDENTIALS_FILE: '/dev/null',
}
Object.assign(process.env, KEYS)

interface Seen {
  readonly method: string
  readonly url: string
  bytes: number
}

/** Hands everything on, and keeps what was asked. */
async function startProxy(): Promise<{
  readonly endpoint: string
  readonly seen: Seen[]
  onRequest: (seen: Seen) => void
  close(): Promise<void>
}> {
  const seen: Seen[] = []
  const { hostname, port } = new URL(endpoint)
  const server: Server = createServer((incoming, answer) => {
    const one: Seen = { method: incoming.method!, url: incoming.url!, bytes: 0 }
    seen.push(one)
    proxy.onRequest(one)
    const { method, url: path, headers } = incoming
    const outgoing = request({ hostname, port, method, path, headers }, (back) => {
      answer.writeHead(back.statusCode!, back.rawHeaders)
      back.pipe(answer)
    })
    incoming.on('data', (bytes: Buffer) => {
      one.bytes += bytes.length
    })
    incoming.pipe(outgoing)
    for (const end of [incoming, outgoing, answer]) end.on('error', () => answer.destroy())
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const proxy = {
    endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    seen,
    onRequest: (_: Seen): void => {},
    close: async () => {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
  return proxy
}

function makeBucket(name: string, ...headers: string[]): void {
  const empty = createHash('sha256').update('').digest('hex')
  const { stdout } = spawnSync('curl', [
    ...['--silent', '--output', '/dev/null', '--write-out', '%{http_code}', '--request', 'PUT'],
    ...['--aws-sigv4', 'aws:amz:us-east-1:s3', '--user', 'testkey:testsecret'],
    ...['--header', `x-amz-content-sha256: ${empty}`],
    ...headers.flatMap((header) => ['--header', header]),
    `${endpoint}/${name}`,
  ])
  assert.is(String(stdout), '200', `making the bucket ${name}`)
}

/** A scenario whose target is that bucket, seen through `at`. */
async function makeCloud(of: {
  readonly bucket: string
  readonly at: string
  readonly more?: Record<string, unknown>
}): Promise<Scenario> {
  const scenario = await makeScenario()
  configure(scenario, (c) => {
    c['targets'] = [
      {
        ...{ name: 'cloud', kind: 's3', bucket: of.bucket, path: 'backups', region: 'us-east-1' },
        ...{ endpoint: of.at, path_style: true, bundle_size: '32 MiB', ...of.more },
      },
    ]
  })
  Object.assign(scenario.environment, KEYS)
  mkdirSync(`${scenario.source}/deep`)
  for (let i = 0; i < 200; i++) writeFileSync(`${scenario.source}/deep/${i}`, `${i}\n`)
  for (let i = 0; i < 60; i++) writeFileSync(`${scenario.source}/${i}`, random.bytes(1_000_000))
  writeFileSync(`${scenario.source}/long`, random.bytes(25_000_000))
  assert.is((await scenario.collect()).status, 0)
  return scenario
}

whole('an export killed in a multipart upload is gone on with, verified, restored', async () => {
  makeBucket('whole')
  const proxy = await startProxy()
  try {
    const scenario = await makeCloud({ bucket: 'whole', at: proxy.endpoint })
    const child = spawn(process.execPath, [MAIN, 'external'], {
      env: { PATH: process.env['PATH'] ?? '', ...scenario.environment },
      stdio: 'ignore',
    })
    const ended = new Promise((resolve) => child.once('close', resolve))
    let parts = 0
    proxy.onRequest = ({ url }) => {
      if (/data-\d+.*partNumber=/.test(url) && ++parts === 7) child.kill('SIGKILL')
    }
    await ended
    assert.ok(parts >= 7, 'it was killed in the middle')
    proxy.onRequest = () => {}
    proxy.seen.length = 0
    const again = await scenario.external('--json')
    assert.is(again.status, 0, again.stderr)
    const sent = proxy.seen.filter(({ url }) => /data-\d+.*partNumber=/.test(url))
    const bytes = sent.reduce((sum, one) => sum + one.bytes, 0)
    console.log(`\n  gone on with: ${sent.length} parts, ${bytes} bytes sent`)
    assert.ok(bytes < 85_500_000, `${bytes} bytes were sent, some of them again`)

    const verified = await scenario.restore('--verify')
    assert.is(verified.status, 0, verified.stderr + verified.stdout)

    proxy.seen.length = 0
    const one = `${scenario.directory}/one`
    const path = `${scenario.source}/deep/7`
    const restored = await scenario.restore('--path', path, '--into', one)
    assert.is(restored.status, 0, restored.stderr)
    assert.is(readFileSync(`${one}${path}`, 'utf8'), '7\n')
    console.log(`  one file: ${proxy.seen.length} requests`)
    assert.ok(proxy.seen.length <= 14, proxy.seen.map(({ method, url }) => method + url).join('\n'))

    const into = `${scenario.directory}/back`
    const all = await scenario.restore('--into', into)
    assert.is(all.status, 0, all.stderr)
    assert.equal(inventory(`${into}${scenario.source}`), inventory(scenario.source))
    rmSync(into, { recursive: true })
    const doctor = await scenario.run('doctor', '--target', 'cloud')
    assert.ok([0, 1].includes(doctor.status!), doctor.stderr)
    assert.match(doctor.stdout, /versioning/i)
  } finally {
    await proxy.close()
  }
})

whole('object lock holds against our own admin, and what was deleted comes back', async () => {
  makeBucket('locked-whole', 'x-amz-bucket-object-lock-enabled: true')
  const bucket = 'locked-whole'
  const more = { lock: '30d' }
  const scenario = await makeCloud({ bucket, at: endpoint, more })
  const first = await scenario.external('--json')
  assert.is(first.status, 0, first.stderr)
  const calls = createS3Calls({
    ...{ bucket, region: 'us-east-1', endpoint, isPathStyle: true, profile: undefined },
  })
  const data = (await calls.list('backups/')).filter(({ key }) => /data-\d+/.test(key))
  assert.ok(data.length >= 2)
  const versions = await calls.listVersions('backups/')
  assert.ok(versions !== 'unsupported')
  const [victim] = data
  const { versionId } = versions.find(({ key }) => key === victim!.key)!
  try {
    await calls.remove(victim!.key, versionId)
    assert.unreachable('a locked version can not be deleted')
  } catch (error) {
    assert.match(String(error), /locked/i)
  }
  // Hiding is all that is left to do.
  await calls.remove(victim!.key)
  const verified = await scenario.restore('--verify')
  assert.is(verified.status, 13, verified.stdout)
  assert.match(verified.stdout + verified.stderr, new RegExp(victim!.key.split('/').at(-1)!))
  const into = `${scenario.directory}/back`
  const restored = await scenario.restore('--into', into)
  assert.is(restored.status, 0, restored.stderr)
  assert.equal(inventory(`${into}${scenario.source}`), inventory(scenario.source))
  const repaired = await scenario.run('repair', '--target', 'cloud', '--yes')
  assert.is(repaired.status, 0, repaired.stdout + repaired.stderr)
  assert.is((await scenario.restore('--verify')).status, 0)
  calls.close()
})

whole.run()
