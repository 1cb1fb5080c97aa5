import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { createS3Calls } from '../../lib/target/s3-client.ts'
import * as assert from '../helpers/assert.ts'
import { type CloudScenario, makeCloud } from '../helpers/cloud-scenario.ts'
import { randomFrom } from '../helpers/random.ts'
import { inventory, jsonLines } from '../helpers/scenario.ts'

const s3 = suite('commands/s3')
const random = randomFrom('s3')

function fill({ source }: CloudScenario): void {
  mkdirSync(`${source}/deep`)
  for (let i = 0; i < 30; i++) writeFileSync(`${source}/${i}`, random.bytes(100_000))
  for (let i = 0; i < 200; i++) writeFileSync(`${source}/deep/${i}`, `${i}\n`)
  writeFileSync(`${source}/long`, random.bytes(21_000_000))
}

s3('exports to a bucket, verifies it, and restores from it', async () => {
  const cloud = await makeCloud({ target: { bundle_size: '16 MiB' } })
  try {
    fill(cloud)
    assert.is((await cloud.collect()).status, 0)
    const exported = await cloud.external('--json')
    assert.is(exported.status, 0, exported.stderr + exported.stdout)
    const keys = [...cloud.server.objects().keys()]
    assert.ok(keys.includes('backups/repository.json'), keys.join('\n'))
    assert.ok(keys.some((key) => /^backups\/machines\/tester\/data\/.*manifest/.test(key)))
    assert.not.ok(keys.some((key) => key.endsWith('/latest') || key.endsWith('.partial')))
    assert.equal(cloud.server.uploads(), [], 'no upload is left open')
    const again = await cloud.external('--json')
    assert.is(again.status, 0, again.stderr)
    const verified = await cloud.restore('--verify')
    assert.is(verified.status, 0, verified.stderr + verified.stdout)
    const into = `${cloud.directory}/back`
    const restored = await cloud.restore('--into', into)
    assert.is(restored.status, 0, restored.stderr)
    assert.equal(inventory(`${into}${cloud.source}`), inventory(cloud.source))
    // A day on which little changed.
    writeFileSync(`${cloud.source}/one-more`, 'new')
    cloud.server.resetRequests()
    const next = await cloud.generation()
    assert.not.ok(next.full)
    const sent = cloud.server.requests.reduce((sum, { bytesIn }) => sum + bytesIn, 0)
    assert.ok(sent < 200_000, `${sent} bytes were sent`)
  } finally {
    await cloud.server.close()
  }
})

s3('one file costs a handful of requests', async () => {
  const cloud = await makeCloud()
  try {
    fill(cloud)
    await cloud.generation()
    cloud.server.resetRequests()
    const into = `${cloud.directory}/back`
    const restored = await cloud.restore('--path', `${cloud.source}/deep/7`, '--into', into)
    assert.is(restored.status, 0, restored.stderr)
    assert.is(readFileSync(`${into}${cloud.source}/deep/7`, 'utf8'), '7\n')
    const requests = cloud.server.requests.map(({ action, key }) => `${action} ${key}`)
    assert.ok(requests.length <= 14, requests.join('\n'))
  } finally {
    await cloud.server.close()
  }
})

s3('without staging and state everything is still there to restore', async () => {
  const cloud = await makeCloud()
  try {
    fill(cloud)
    await cloud.generation()
    rmSync(cloud.staging, { recursive: true })
    const into = `${cloud.directory}/back`
    const restored = await cloud.restore('--into', into)
    assert.is(restored.status, 0, restored.stderr)
    assert.equal(inventory(`${into}${cloud.source}`), inventory(cloud.source))
    const list = await cloud.restore('--list', '--json')
    assert.ok(jsonLines(list, 'result').length > 0 || list.stdout.length > 0, list.stdout)
  } finally {
    await cloud.server.close()
  }
})

s3('what belongs to cold storage is checked before anything is opened', async () => {
  const cloud = await makeCloud()
  try {
    const into = `${cloud.directory}/back`
    for (const words of [
      ['--source', 'external', '--thaw', 'soon', '--into', into],
      ['--source', 'local', '--thaw', 'bulk', '--into', into],
      ['--source', 'external', '--verify', '--wait'],
      ['--source', 'local', '--resume', '--into', into],
    ]) {
      const { status, stderr } = await cloud.run('restore', ...words)
      assert.is(status, 2, stderr)
      assert.match(stderr, /--(thaw|wait|resume) (is bulk|goes with)/)
    }
    assert.equal(cloud.server.requests, [])
    assert.not.ok(existsSync(into))
  } finally {
    await cloud.server.close()
  }
})

s3('doctor tells of locks that end before the next export renews them', async () => {
  const cloud = await makeCloud({ bucket: { objectLock: true }, target: { lock: '30d' } })
  try {
    fill(cloud)
    await cloud.generation()
    const before = await cloud.run('doctor', '--target', 'cloud')
    assert.match(before.stdout, /ok +locks: of \d+ objects .* none ends soon/)
    const [key] = [...cloud.server.objects().keys()].filter((one) => one.includes('/data-'))
    Object.assign(process.env, cloud.server.environment())
    const calls = createS3Calls({
      ...{ bucket: 'bucket', region: 'us-east-1', endpoint: cloud.server.endpoint },
      ...{ isPathStyle: true, profile: undefined },
    })
    const untilMs = Date.now() + 86_400_000
    await calls.setLock({ key: key!, lock: { mode: 'GOVERNANCE', untilMs }, bypass: true })
    calls.close()
    const after = await cloud.run('doctor', '--target', 'cloud')
    assert.match(after.stdout, /WARN +locks: of \d+ objects .* 1 end by/)
  } finally {
    await cloud.server.close()
  }
})

s3.run()
