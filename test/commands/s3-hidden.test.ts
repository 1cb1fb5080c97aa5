// What somebody deleted or overwrote in a bucket that keeps versions: found, read around, brought
// back. And what cannot be known is said. Promise 10.

import { readFileSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import type { S3Calls } from '../../lib/target/s3-calls.ts'
import { createS3Calls } from '../../lib/target/s3-client.ts'
import * as assert from '../helpers/assert.ts'
import { type CloudOptions, type CloudScenario, makeCloud } from '../helpers/cloud-scenario.ts'
import { randomFrom } from '../helpers/random.ts'
import { assertWhole, configure, inventory, jsonLines } from '../helpers/scenario.ts'

const hidden = suite('commands/s3-hidden')
const random = randomFrom('s3-hidden')

/** A bucket that keeps versions, with one export; closed afterwards. */
async function withCloud(
  work: (cloud: CloudScenario) => Promise<void>,
  options: CloudOptions = { bucket: { versioning: true } },
): Promise<void> {
  const cloud = await makeCloud(options)
  try {
    writeFileSync(`${cloud.source}/large`, random.bytes(200_000))
    writeFileSync(`${cloud.source}/small`, 'small\n')
    await cloud.generation()
    await work(cloud)
  } finally {
    await cloud.server.close()
  }
}

/** The service as somebody sees it who has a key and is not us. */
async function asSomebody(
  { server }: CloudScenario,
  work: (calls: S3Calls) => Promise<void>,
): Promise<void> {
  const before = { ...process.env }
  Object.assign(process.env, server.environment())
  const calls = createS3Calls({
    ...{ bucket: 'bucket', region: 'us-east-1', endpoint: server.endpoint, isPathStyle: true },
    profile: undefined,
  })
  try {
    await work(calls)
  } finally {
    calls.close()
    for (const name of Object.keys(server.environment())) {
      if (before[name] === undefined) delete process.env[name]
      else process.env[name] = before[name]
    }
  }
}

function keysLike({ server }: CloudScenario, pattern: RegExp): string[] {
  return [...server.objects().keys()].filter((key) => pattern.test(key)).sort()
}

const BUNDLE = /\/data-\d+\.tar\.zst\.age$/
const MANIFEST = /\/manifest\.tar\.zst\.age$/

function pathOf(key: string): string {
  return key.replace(/^backups\//, '')
}

/** Every key with the ids of its versions: what changes when anything is written or removed. */
function history({ server }: CloudScenario, keys: readonly string[]): string {
  return JSON.stringify(keys.map((key) => server.versions('bucket', key).map((v) => v.versionId)))
}

async function assertHidden(cloud: CloudScenario, keys: readonly string[], how: string) {
  const verified = await cloud.restore('--verify')
  assert.is(verified.status, 13, verified.stdout + verified.stderr)
  for (const key of keys) {
    const when = new RegExp(
      `${pathOf(key).replaceAll('.', '\\.')} was ${how} at \\d{4}-\\d\\d-\\d\\d`,
    )
    assert.match(verified.stdout, when)
  }
  assert.match(verified.stderr, 'backup repair --target cloud')
}

/** Dry run changes nothing, --yes brings it back, verify is 0, and the next export goes on. */
async function assertRepairable(cloud: CloudScenario, keys: readonly string[]): Promise<void> {
  const before = history(cloud, keys)
  const dry = await cloud.run('repair', '--target', 'cloud', '--dry-run')
  assert.is(dry.status, 13, dry.stdout + dry.stderr)
  for (const key of keys) assert.match(dry.stdout, pathOf(key))
  assert.match(dry.stdout, `${keys.length} would be brought back`)
  assert.is(history(cloud, keys), before, 'a dry run changes nothing')
  const repaired = await cloud.run('repair', '--target', 'cloud', '--yes')
  assert.is(repaired.status, 0, repaired.stdout + repaired.stderr)
  assert.match(repaired.stdout, `${keys.length} brought back, 0 not`)
  await assertWhole(cloud)
}

async function assertRestores(cloud: CloudScenario): Promise<void> {
  const into = `${cloud.directory}/back-${random.integer(1e9)}`
  const restored = await cloud.restore('--into', into)
  assert.is(restored.status, 0, restored.stdout + restored.stderr)
  assert.equal(inventory(`${into}${cloud.source}`), inventory(cloud.source))
}

hidden('a deleted bundle is named with its time, read all the same, and brought back', async () => {
  await withCloud(async (cloud) => {
    const keys = keysLike(cloud, BUNDLE)
    await asSomebody(cloud, async (calls) => {
      for (const key of keys) await calls.remove(key)
    })
    await assertHidden(cloud, keys, 'deleted')
    await assertRestores(cloud)
    const before = history(cloud, keys)
    const unasked = await cloud.run('repair', '--target', 'cloud')
    assert.is.not(unasked.status, 0, 'nobody confirmed')
    assert.is(history(cloud, keys), before)
    await assertRepairable(cloud, keys)
    const idle = await cloud.run('repair', '--target', 'cloud', '--yes')
    assert.is(idle.status, 0)
    assert.match(idle.stdout, 'nothing is hidden')
    for (const key of keys) assert.is(cloud.server.versions('bucket', key).length, 1)
    writeFileSync(`${cloud.source}/more`, 'more\n')
    await sleep(1000)
    assert.not.ok((await cloud.generation()).full)
    await assertWhole(cloud)
  })
})

hidden(
  'a bundle overwritten with as many bytes is found, read around, and brought back',
  async () => {
    await withCloud(async (cloud) => {
      const [key = ''] = keysLike(cloud, BUNDLE)
      const { body, metadata } = cloud.server.objects().get(key)!
      const wrong = Buffer.from(body)
      wrong[wrong.length >> 1]! ^= 1
      await asSomebody(cloud, async (calls) => {
        // With our own metadata: what an object says of itself is not believed.
        await calls.put({ key, body: wrong, storageClass: 'STANDARD', metadata })
      })
      await assertHidden(cloud, [key], 'overwritten')
      await assertRestores(cloud)
      await assertRepairable(cloud, [key])
      assert.ok(cloud.server.objects().get(key)!.body.equals(body))
      const bodies = cloud.server.versions('bucket', key).map((version) => version.body)
      assert.ok(
        bodies.some((bytes) => bytes.equals(wrong)),
        'the wrong version stays as evidence',
      )
    })
  },
)

hidden('a bundle overwritten with fewer bytes is found and read around', async () => {
  await withCloud(async (cloud) => {
    const [key = ''] = keysLike(cloud, BUNDLE)
    await asSomebody(cloud, async (calls) => {
      const body = Buffer.from('gone')
      await calls.put({ key, body, storageClass: 'STANDARD', metadata: {} })
    })
    await assertHidden(cloud, [key], 'overwritten')
    await assertRestores(cloud)
    await assertRepairable(cloud, [key])
  })
})

hidden('a deleted manifest is found, of the only export too, and brought back', async () => {
  await withCloud(async (cloud) => {
    writeFileSync(`${cloud.source}/more`, 'more\n')
    await sleep(1000)
    await cloud.generation()
    const manifests = keysLike(cloud, MANIFEST)
    assert.is(manifests.length, 2)
    await asSomebody(cloud, async (calls) => await calls.remove(manifests[1]!))
    await assertHidden(cloud, [manifests[1]!], 'deleted')
    await asSomebody(cloud, async (calls) => await calls.remove(manifests[0]!))
    await assertHidden(cloud, manifests, 'deleted')
    await assertRepairable(cloud, manifests)
  })
})

hidden('whoever deletes everything has hidden everything, and all of it comes back', async () => {
  await withCloud(async (cloud) => {
    const ours = keysLike(cloud, /^backups\/(?!\.probe\/)/)
    await asSomebody(cloud, async (calls) => {
      for (const key of ours) await calls.remove(key)
    })
    const needed = ours.filter((key) => !/\/freshness\//.test(key))
    await assertHidden(cloud, needed, 'deleted')
    await assertRepairable(cloud, needed)
    await assertRestores(cloud)
    writeFileSync(`${cloud.source}/more`, 'more\n')
    await sleep(1000)
    assert.not.ok((await cloud.generation()).full)
  })
})

hidden('a prune of our own raises no alarm, and one without its record does', async () => {
  await withCloud(async (cloud) => {
    configure(cloud, (properties) => {
      properties['backup_sets'][0].retention = { local: 1, external: 1 }
    })
    writeFileSync(`${cloud.source}/large`, random.bytes(200_000))
    await sleep(1000)
    await cloud.generation()
    const [old = ''] = keysLike(cloud, MANIFEST)
    const pruned = await cloud.run('prune', '--target', 'cloud', '--yes')
    assert.is(pruned.status, 0, pruned.stdout + pruned.stderr)
    assert.equal(cloud.server.versions('bucket', old), [])
    await assertWhole(cloud)

    // An attacker who only hides cannot excuse it with a record that he cannot sign.
    const [left = ''] = keysLike(cloud, MANIFEST)
    const stamp = /data\/([^/]+)\//.exec(left)![1]!
    const records = keysLike(cloud, /\/pruned\//)
    assert.is(records.length, 2, 'a record and its signature')
    const record = records.find((key) => key.endsWith('.json'))!
    const text = cloud.server.objects().get(record)!.body.toString()
    await asSomebody(cloud, async (calls) => {
      await calls.remove(left)
      const forged = Buffer.from(text.replace(/data\/[^"]+/, `data/${stamp}`))
      await calls.put({ key: record, body: forged, storageClass: 'STANDARD', metadata: {} })
    })
    await assertHidden(cloud, [left], 'deleted')
    const repaired = await cloud.run('repair', '--target', 'cloud', '--yes')
    assert.is(repaired.status, 0, repaired.stdout + repaired.stderr)
    await assertWhole(cloud)
    assert.is(cloud.server.objects().get(record)!.body.toString(), text)

    // The record of the prune itself, deleted: it is brought back, too.
    await asSomebody(cloud, async (calls) => await calls.remove(record))
    const again = await cloud.restore('--verify')
    assert.is(again.status, 13, again.stdout + again.stderr)
    assert.match(again.stdout, pathOf(record))
  })
})

hidden(
  'a bundle that is gone in all versions is missing, and nothing pretends to mend it',
  async () => {
    await withCloud(async (cloud) => {
      const [key = ''] = keysLike(cloud, BUNDLE)
      await asSomebody(cloud, async (calls) => {
        for (const { versionId } of cloud.server.versions('bucket', key)) {
          await calls.remove(key, versionId)
        }
      })
      const verified = await cloud.restore('--verify')
      assert.is(verified.status, 13, verified.stdout + verified.stderr)
      assert.match(verified.stdout, /DAMAGED/)
      assert.match(verified.stdout, key.split('/').at(-1)!.replace('.tar.zst.age', ''))
      const repaired = await cloud.run('repair', '--target', 'cloud', '--yes')
      assert.equal(cloud.server.versions('bucket', key), [])
      assert.not.match(repaired.stdout, '1 brought back')
      // The next export has it anew.
      writeFileSync(`${cloud.source}/more`, 'more\n')
      await sleep(1000)
      await cloud.generation()
      await assertRestores(cloud)
    })
  },
)

hidden('without versions it says that it cannot know, and what is missing is missing', async () => {
  await withCloud(async (cloud) => {
    const verified = await cloud.restore('--verify')
    assert.is(verified.status, 0, verified.stdout + verified.stderr)
    assert.match(verified.stderr + verified.stdout, 'cannot be known')
    const [key = ''] = keysLike(cloud, BUNDLE)
    await asSomebody(cloud, async (calls) => await calls.remove(key))
    const missing = await cloud.restore('--verify')
    assert.is(missing.status, 13, missing.stdout + missing.stderr)
    const repair = await cloud.run('repair', '--target', 'cloud', '--yes')
    assert.is.not(repair.status, 0, repair.stdout)
    assert.match(repair.stderr, 'version')
    const into = `${cloud.directory}/back`
    const restored = await cloud.restore('--into', into)
    assert.is.not(restored.status, 0)
    assert.not.match(restored.stdout, '0 not')
  }, {})
})

hidden('credentials that may not list versions are told, and hide nothing else', async () => {
  const may = (action: string): boolean => action !== 's3:ListBucketVersions'
  await withCloud(
    async (cloud) => {
      const verified = await cloud.restore('--verify', '--json')
      assert.is(verified.status, 0, verified.stdout + verified.stderr)
      const notices = jsonLines(verified, 'notice').filter(
        ({ code }) => code === 'VERSIONS_UNKNOWN',
      )
      assert.is(notices.length, 1)
      assert.match(notices[0]!['message'] as string, 's3:ListBucketVersions')
      assert.is(readFileSync(`${cloud.source}/small`, 'utf8'), 'small\n')
    },
    { bucket: { versioning: true }, users: { testkey: { secret: 'testsecret', may } } },
  )
})

hidden.run()
