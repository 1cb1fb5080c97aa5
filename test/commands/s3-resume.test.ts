// Exports to a bucket that are killed, at chosen and at random moments, or whose spool goes wrong:
// the next run needs no help (invariant 7), sends nothing twice and publishes nothing wrong.
//
// SEED says which random moments. Byte counts are those that the stand-in server saw.

import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync, rmSync, statfsSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'
import { type CloudScenario, makeCloud } from '../helpers/cloud-scenario.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { randomFrom, randomOfRun } from '../helpers/random.ts'
import { MAIN } from '../helpers/run-cli.ts'
import type { S3Request } from '../helpers/s3-server.ts'
import { configure, inventory, namesIn, type Properties } from '../helpers/scenario.ts'

const resume = suite('commands/s3-resume')
const random = randomFrom('s3-resume')
const MIB = 2 ** 20
/** What is waited for comes sooner, or never. */
const PATIENCE_MS = 20_000
const DATA = /\/data-\d+/
/** Entries without content of their own are packed again, in a bundle of a few kilobytes. */
const SMALL = 20_000
/** 12 MB of content, and less than one more bundle of 1 MiB for what each bundle has besides. */
const STORED = 12_600_000

/** 12 MB in one set; collected, and nothing exported. The server has to be closed. */
async function makeCollected(target: Properties): Promise<CloudScenario> {
  const cloud = await makeCloud({ target })
  mkdirSync(`${cloud.source}/deep`)
  for (let i = 0; i < 10; i += 1) writeFileSync(`${cloud.source}/${i}`, random.bytes(200_000))
  for (let i = 0; i < 40; i += 1) writeFileSync(`${cloud.source}/deep/${i}`, `${i}\n`)
  writeFileSync(`${cloud.source}/long`, random.bytes(10_000_000))
  assert.is((await cloud.collect()).status, 0)
  return cloud
}

/** Runs an export and kills it once `isTime` says so. */
async function killedWhen(cloud: CloudScenario, isTime: () => boolean): Promise<boolean> {
  const child = spawn(process.execPath, [MAIN, 'external'], {
    env: { PATH: process.env['PATH'], ...cloud.environment },
    stdio: 'ignore',
  })
  let isEnded = false
  const ended = new Promise<void>((resolve) =>
    child.once('close', () => {
      isEnded = true
      resolve()
    }),
  )
  const untilMs = Date.now() + PATIENCE_MS
  while (!isEnded && !isTime() && Date.now() < untilMs) await sleep(5)
  const isKilled = !isEnded
  if (isKilled) process.kill(child.pid!, 'SIGKILL')
  await ended
  return isKilled
}

/** Of data bundles: probes make such requests, too. */
function requestsOf(cloud: CloudScenario, action: string): S3Request[] {
  return cloud.server.requests.filter((one) => one.action === action && DATA.test(one.key))
}

function manifests({ server }: CloudScenario): string[] {
  return [...server.objects().keys()].filter((key) => key.includes('/manifest.'))
}

/** The next run makes the export, and leaves nothing behind. */
async function assertFinishes(cloud: CloudScenario, where: string): Promise<void> {
  const finished = await cloud.external('--json')
  assert.is(finished.status, 0, `${where}: ${finished.stderr}`)
  assert.is(manifests(cloud).length, 1, where)
  const state = `${cloud.staging}/.state`
  assert.equal(namesIn(`${state}/spool`, /\.age|\.partial|\.upload|\.sha256/), [], where)
  assert.equal(namesIn(`${state}/unfinished`, /\.(json|pieces)$/), [], where)
  // A probe that was killed leaves its own; a lifecycle rule ends it.
  const open = cloud.server.uploads().filter(({ key }) => !key.includes('/.probe/'))
  assert.equal(open, [], where)
  // Ciphertexts differ each time, so it is the sum that tells: all content is random.
  const bundles = [...cloud.server.objects()].filter(([key]) => DATA.test(key))
  const stored = bundles.reduce((sum, [, { body }]) => sum + body.length, 0)
  assert.ok(stored < STORED, `${where}: ${stored} bytes: nothing is there twice`)
}

async function assertRestores(cloud: CloudScenario, where: string): Promise<void> {
  const verified = await cloud.restore('--verify')
  assert.is(verified.status, 0, `${where}: ${verified.stderr}${verified.stdout}`)
  const into = `${cloud.directory}/back`
  rmSync(into, { recursive: true, force: true })
  const restored = await cloud.restore('--into', into)
  assert.is(restored.status, 0, `${where}: ${restored.stderr}`)
  assert.equal(inventory(`${into}${cloud.source}`), inventory(cloud.source), where)
}

/** What was put into the bucket under names that match, in bytes. */
function sentBytes(cloud: CloudScenario, pattern: RegExp): number {
  return cloud.server.requests
    .filter(({ method, key }) => method === 'PUT' && pattern.test(key))
    .reduce((sum, { bytesIn }) => sum + bytesIn, 0)
}

resume(
  'killed within a large upload, the next run sends only the parts that are missing',
  async () => {
    const cloud = await makeCollected({ bundle_size: '64 MiB', streams: 1 })
    try {
      const end = cloud.server.fault({ kind: 'stall', action: 'UploadPart', key: DATA, after: 1 })
      const isStuck = (): boolean => requestsOf(cloud, 'UploadPart').length >= 2
      assert.ok(await killedWhen(cloud, isStuck))
      end()
      assert.equal(manifests(cloud), [])
      const [upload] = cloud.server.uploads()
      assert.is(upload?.parts, 1)
      cloud.server.resetRequests()
      await assertFinishes(cloud, 'within an upload')
      assert.is(requestsOf(cloud, 'CreateMultipartUpload').length, 0, 'the same upload')
      assert.is(requestsOf(cloud, 'UploadPart').length, 1)
      const [, { body }] = [...cloud.server.objects()].find(([key]) => DATA.test(key))!
      const sent = sentBytes(cloud, DATA)
      assert.ok(sent < body.length - 8 * MIB + SMALL, `${sent} of ${body.length} bytes`)
      await assertRestores(cloud, 'within an upload')
    } finally {
      await cloud.server.close()
    }
  },
)

resume('killed when a large upload had been completed, nothing of it is sent again', async () => {
  const cloud = await makeCollected({ bundle_size: '64 MiB' })
  try {
    const end = cloud.server.fault({
      ...{ kind: 'reset-after', action: 'CompleteMultipartUpload', key: DATA },
    })
    const isDone = (): boolean => requestsOf(cloud, 'CompleteMultipartUpload').length > 0
    assert.ok(await killedWhen(cloud, isDone))
    end()
    assert.equal(manifests(cloud), [])
    cloud.server.resetRequests()
    await assertFinishes(cloud, 'after Complete')
    assert.ok(sentBytes(cloud, DATA) < SMALL)
    await assertRestores(cloud, 'after Complete')
  } finally {
    await cloud.server.close()
  }
})

resume('killed before the catalog, and before the manifest, no bundle is sent again', async () => {
  for (const key of [/\/catalog-/, /\/verification\.sha256\.minisig$/, /\/manifest\./]) {
    const cloud = await makeCollected({ bundle_size: '1 MiB' })
    try {
      const end = cloud.server.fault({ kind: 'stall', action: 'PutObject', key })
      const isThere = (): boolean => cloud.server.requests.some((one) => key.test(one.key))
      assert.ok(await killedWhen(cloud, isThere), String(key))
      end()
      assert.equal(manifests(cloud), [], String(key))
      cloud.server.resetRequests()
      await assertFinishes(cloud, String(key))
      assert.ok(sentBytes(cloud, DATA) < SMALL, String(key))
      await assertRestores(cloud, String(key))
    } finally {
      await cloud.server.close()
    }
  }
})

resume('killed at random moments again and again, it ends in a whole export', async () => {
  const cloud = await makeCollected({ bundle_size: '1 MiB' })
  const moments = randomOfRun('s3-resume')
  try {
    // As a line is: else most of it happens in one moment.
    const end = cloud.server.fault({ kind: 'slow', ms: 60, action: /^(Put|Upload|Complete)/ })
    let kills = 0
    for (let run = 0; run < 8; run += 1) {
      const puts = cloud.server.requests.length + 4 + moments.integer(16)
      const untilMs = Date.now() + 10_000
      const isTime = (): boolean => cloud.server.requests.length >= puts || Date.now() > untilMs
      if (!(await killedWhen(cloud, isTime))) break
      kills += 1
    }
    end()
    assert.ok(kills > 0)
    await assertFinishes(cloud, `after ${kills} kills`)
    await assertRestores(cloud, `after ${kills} kills`)
  } finally {
    await cloud.server.close()
  }
})

resume('what changed in the spool is packed again, and never published', async () => {
  for (const size of ['1 MiB', '64 MiB']) {
    const cloud = await makeCollected({ bundle_size: size })
    try {
      const key = DATA
      const action = /^(PutObject|UploadPart|CreateMultipartUpload)$/
      const end = cloud.server.fault({ kind: 'stall', action, key })
      const isSent = (): boolean => cloud.server.requests.some((one) => key.test(one.key))
      assert.ok(await killedWhen(cloud, isSent), size)
      end()
      const spool = `${cloud.staging}/.state/spool`
      const [name] = namesIn(spool, /\/data-0001\.tar\.zst\.age\.partial$/)
      assert.type(name, 'string', `${size}: it waits to be sent`)
      const bytes = readFileSync(`${spool}/${name}`)
      bytes[bytes.length >> 1]! ^= 1
      const wrong = createHash('sha256').update(bytes).digest('hex')
      writeFileSync(`${spool}/${name}`, bytes)
      const finished = await cloud.external('--json')
      assert.is(finished.status, 0, `${size}: ${finished.stderr}`)
      for (const [there, { body }] of cloud.server.objects()) {
        assert.is.not(createHash('sha256').update(body).digest('hex'), wrong, there)
      }
      await assertRestores(cloud, size)
    } finally {
      await cloud.server.close()
    }
  }
})

resume('a signature that changed in the spool is not published', async () => {
  const cloud = await makeCollected({ bundle_size: '64 MiB' })
  try {
    const key = /\/verification\.sha256$/
    const end = cloud.server.fault({ kind: 'stall', action: 'PutObject', key })
    const isThere = (): boolean => cloud.server.requests.some((one) => key.test(one.key))
    assert.ok(await killedWhen(cloud, isThere))
    end()
    const spool = `${cloud.staging}/.state/spool`
    for (const name of namesIn(spool, /\/verification\.sha256$/)) {
      const bytes = readFileSync(`${spool}/${name}`)
      bytes[3]! ^= 1
      writeFileSync(`${spool}/${name}`, bytes)
    }
    await assertFinishes(cloud, 'a changed list')
    await assertRestores(cloud, 'a changed list')
  } finally {
    await cloud.server.close()
  }
})

const test = canRunAsRoot('a full disk under staging') ? resume : resume.skip

test('a full disk under staging is told as that, and not as a full target', async () => {
  const cloud = await makeCloud()
  const disk = loopDevice({ sizeMib: 32 })
  try {
    configure(cloud, (c) => {
      c['staging'] = `${disk.path}/staging`
    })
    mkdirSync(`${disk.path}/staging`)
    writeFileSync(`${cloud.source}/long`, random.bytes(8_000_000))
    assert.is((await cloud.collect()).status, 0)
    const { bavail, bsize } = statfsSync(disk.path)
    // Room for some of it, and for what is written down.
    writeFileSync(`${disk.path}/filler`, random.bytes(bavail * bsize - 3 * MIB))
    const full = await cloud.external()
    assert.is.not(full.status, 0)
    // Full is either what it sends or what it remembers of that: both lie there.
    assert.match(full.stderr, /what waits to be sent cannot be written \(ENOSPC\)|staging is full: /)
    assert.not.match(full.stderr, /target cloud.* is full|TARGET_FULL/)
    assert.equal(manifests(cloud), [])
    rmSync(`${disk.path}/filler`)
    const finished = await cloud.external()
    assert.is(finished.status, 0, finished.stderr)
    assert.is(manifests(cloud).length, 1)
  } finally {
    await cloud.server.close()
    disk.unmount()
  }
})

resume.run()
