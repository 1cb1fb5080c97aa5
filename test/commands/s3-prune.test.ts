// `backup prune` in a bucket: what it saves and costs is shown, limits and locks hold, and what
// goes is gone in every version. Promises 4 and 5.

import { rmSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import { command as collectCommand } from '../../commands/backup-collect.ts'
import { command as externalCommand } from '../../commands/backup-external.ts'
import * as assert from '../helpers/assert.ts'
import { type CloudOptions, type CloudScenario, makeCloud } from '../helpers/cloud-scenario.ts'
import { writePriceList } from '../helpers/price-list.ts'
import { randomFrom } from '../helpers/random.ts'
import { runCommand } from '../helpers/run-command.ts'
import { assertWhole, configure, jsonLines } from '../helpers/scenario.ts'

const prune = suite('commands/s3-prune')
const random = randomFrom('s3-prune')

const DAY_MS = 86_400_000
const BUNDLE = /\/data-\d+\.tar\.zst\.age$/
const MANIFEST = /\/manifest\.tar\.zst\.age$/

/** A bucket where the newest export stays, with so many exports that share nothing. */
async function withExports(
  count: number,
  options: CloudOptions,
  work: (cloud: CloudScenario) => Promise<void>,
): Promise<void> {
  const cloud = await makeCloud(options)
  try {
    configure(cloud, (properties) => {
      properties['backup_sets'][0].retention = { local: 1, external: 1 }
      properties['targets'][0].prices = writePriceList(cloud.directory)
    })
    for (let i = 0; i < count; i++) await another(cloud)
    await work(cloud)
  } finally {
    await cloud.server.close()
  }
}

let written = 0

/** One file instead of the one before. */
async function another(cloud: CloudScenario): Promise<void> {
  rmSync(`${cloud.source}/${written}`, { force: true })
  writeFileSync(`${cloud.source}/${++written}`, random.bytes(300_000))
  await sleep(1000)
  const exported = await cloud.generation()
  assert.equal(exported.pruned.removedExports, [])
}

function keysLike({ server }: CloudScenario, pattern: RegExp): string[] {
  return [...server.objects().keys()].filter((key) => pattern.test(key)).sort()
}

const stampOf = (key: string): string => /data\/([^/]+)\//.exec(key)?.[1] ?? ''

function removals({ server }: CloudScenario): string[] {
  return server.requests.filter(({ action }) => /^Delete/.test(action)).map(({ key }) => key)
}

prune('runs never delete in a bucket, and prune removes every version of what goes', async () => {
  await withExports(3, { bucket: { versioning: true } }, async (cloud) => {
    const manifests = keysLike(cloud, MANIFEST)
    assert.is(manifests.length, 3, 'retention of runs let nothing go')
    const removed = removals(cloud).filter((key) => !/\/(\.probe|freshness)\//.test(key))
    assert.equal(removed, [])
    // A deletion by somebody, and older versions below it.
    const [oldest = ''] = manifests
    const all = keysLike(cloud, /./)
    const going = all.filter(
      (key) => /\/data\//.test(key) && stampOf(key) !== stampOf(manifests[2]!),
    )
    assert.ok(going.some((key) => BUNDLE.test(key)))

    const planned = await cloud.run('prune', '--target', 'cloud', '--dry-run')
    assert.is(planned.status, 0, planned.stderr)
    assert.match(planned.stdout, /1 stay, 2 go, which frees \d+.*; it saves €0\.\d+ a month/)
    assert.match(planned.stdout, /prices of 2026-10/)
    assert.equal(keysLike(cloud, /./), all, 'a dry run removes nothing')

    const unasked = await cloud.run('prune', '--target', 'cloud')
    assert.is.not(unasked.status, 0)
    assert.equal(keysLike(cloud, /./), all)

    const done = await cloud.run('prune', '--target', 'cloud', '--yes')
    assert.is(done.status, 0, done.stdout + done.stderr)
    for (const key of going) assert.equal(cloud.server.versions('bucket', key), [], key)
    assert.equal(keysLike(cloud, MANIFEST), [manifests[2]!])
    assert.not.ok(keysLike(cloud, /./).includes(oldest))
    await assertWhole(cloud)
  })
})

prune('the manifest goes first, and its record is there before', async () => {
  await withExports(2, {}, async (cloud) => {
    cloud.server.resetRequests()
    assert.is((await cloud.run('prune', '--target', 'cloud', '--yes')).status, 0)
    const steps = cloud.server.requests.filter(({ action, key }) => {
      return /^(Delete|PutObject$)/.test(action) && !/\/\.probe\//.test(key)
    })
    const first = steps.findIndex(({ action }) => /^Delete/.test(action))
    assert.match(steps[first]!.key, MANIFEST)
    const record = steps.findIndex(({ key }) => /\/pruned\/[^/]+\.json$/.test(key))
    assert.ok(record >= 0 && record < first)
    assert.is(steps[first]!.status, 204)
  })
})

prune('deleting early costs, and a limit stops it before anything is removed', async () => {
  const target = { storage_class: 'DEEP_ARCHIVE', hot_below: '100 KiB' }
  // The first one's bundle is needed: the directories above the source are in it.
  await withExports(3, { target }, async (cloud) => {
    const planned = await cloud.run('prune', '--target', 'cloud', '--dry-run')
    assert.match(planned.stdout, /deleting \d objects? early costs €0\.\d+, in 180 days nothing/)
    configure(cloud, (properties) => {
      properties['targets'][0].cost_limit = 0
    })
    const before = keysLike(cloud, /./)
    cloud.server.resetRequests()
    const stopped = await cloud.run('prune', '--target', 'cloud', '--yes')
    assert.is(stopped.status, 4, stopped.stdout + stopped.stderr)
    assert.match(stopped.stderr, 'the limit is €0')
    assert.equal(removals(cloud), [])
    assert.equal(keysLike(cloud, /./), before, 'no record either')
    configure(cloud, (properties) => {
      properties['targets'][0].cost_limit = 1
    })
    const done = await cloud.run('prune', '--target', 'cloud', '--yes')
    assert.is(done.status, 0, done.stdout + done.stderr)
    assert.is(keysLike(cloud, MANIFEST).length, 1)
  })
})

prune('what is locked stays, and that is told', async () => {
  const options = { bucket: { objectLock: true }, target: { lock: '30d' } }
  await withExports(2, options, async (cloud) => {
    const manifests = keysLike(cloud, MANIFEST)
    const locked = new Map(
      [...cloud.server.objects()]
        .filter(([key]) => /\/data\//.test(key))
        .map(([key, object]) => {
          assert.is(object.lock?.mode, 'GOVERNANCE', key)
          return [key, object.body] as const
        }),
    )
    const held = await cloud.run('prune', '--target', 'cloud', '--yes')
    assert.is.not(held.status, 0, held.stdout + held.stderr)
    assert.match(held.stderr, /lock/i)
    for (const [key, body] of locked) {
      assert.ok(cloud.server.objects().get(key)?.body.equals(body), `${key} is as it was`)
    }
    assert.equal(keysLike(cloud, MANIFEST), manifests)
    await assertWhole(cloud)
    // Once the lock is over it goes.
    cloud.server.advance(50 * DAY_MS)
    configure(cloud, (properties) => {
      delete properties['targets'][0].lock
    })
    const done = await cloud.run('prune', '--target', 'cloud', '--yes')
    assert.is(done.status, 0, done.stdout + done.stderr)
    assert.equal(keysLike(cloud, MANIFEST), [manifests[1]!])
    assert.equal(cloud.server.versions('bucket', manifests[0]!), [])
  })
})

prune('bundles that newer exports need have their locks extended, never shortened', async () => {
  const options = { bucket: { objectLock: true }, target: { lock: '30d' } }
  await withExports(1, options, async (cloud) => {
    const locks = (): Map<string, number> => {
      return new Map(
        [...cloud.server.objects()].map(([key, { lock }]) => [key, lock?.untilMs ?? 0]),
      )
    }
    const first = locks()
    const old = keysLike(cloud, BUNDLE)
    const nowMs = Date.now() + 20 * DAY_MS
    cloud.server.advance(20 * DAY_MS)
    const environment = { ...process.env }
    Object.assign(process.env, cloud.environment)
    try {
      writeFileSync(`${cloud.source}/new`, 'new\n')
      const collected = await runCommand(collectCommand, { scenario: cloud, nowMs })
      assert.is(collected.status, 0, collected.stderr)
      const at = nowMs + 60_000
      const exported = await runCommand(externalCommand, { scenario: cloud, nowMs: at })
      assert.is(exported.status, 0, exported.stdout + exported.stderr)
    } finally {
      for (const name of Object.keys(cloud.environment)) {
        if (environment[name] === undefined) delete process.env[name]
        else process.env[name] = environment[name]
      }
    }
    const now = locks()
    for (const key of old) {
      assert.ok(now.get(key)! >= nowMs + 30 * DAY_MS, `${key} is locked for 30 days from now`)
      assert.ok(now.get(key)! <= nowMs + 41 * DAY_MS, 'and not for ever')
    }
    for (const [key, untilMs] of first) assert.ok(now.get(key)! >= untilMs, `${key} is no shorter`)
    // What only the old export has keeps the lock that it had.
    const manifest = [...first.keys()].find((key) => MANIFEST.test(key))!
    assert.is(now.get(manifest), first.get(manifest))
    const fresh = keysLike(cloud, MANIFEST).find((key) => key !== manifest)!
    assert.ok(now.get(fresh)! >= nowMs + 30 * DAY_MS, `${fresh} is locked`)
  })
})

prune('unfinished directories younger than 30 days stay, older ones go', async () => {
  await withExports(2, {}, async (cloud) => {
    const [bundle = ''] = keysLike(cloud, BUNDLE)
    const at = (ms: number): string => {
      const stamp = new Date(ms).toISOString().replace(/:(\d\d):(\d\d)\..*/, '$1$2Z')
      return bundle.replace(stampOf(bundle), stamp)
    }
    const young = at(Date.now() - 29 * DAY_MS)
    const old = at(Date.now() - 31 * DAY_MS)
    const body = Buffer.from('half')
    for (const key of [young, old]) cloud.server.put({ key, body })
    const strange = bundle.replace(/data-\d+\.tar\.zst\.age$/, 'notes.txt')
    const elsewhere = 'other/keep'
    for (const key of [elsewhere]) cloud.server.put({ key, body })
    const done = await cloud.run('prune', '--target', 'cloud', '--yes')
    assert.is(done.status, 0, done.stdout + done.stderr)
    const left = keysLike(cloud, /./)
    assert.ok(left.includes(young), 'somebody may be making it')
    assert.not.ok(left.includes(old))
    assert.ok(left.includes(elsewhere))
    assert.not.ok(left.includes(strange))
  })
})

prune(
  'with an admin profile backups delete nothing, and prune trims freshness records',
  async () => {
    const may = (action: string): boolean => !/Delete/.test(action)
    const users = { backup: { secret: 's1', may }, admin: { secret: 's2' } }
    const options = {
      ...{ bucket: { versioning: true }, users },
      target: { profile: 'backup', admin_profile: 'admin' },
    }
    const cloud = await makeCloud(options)
    try {
      for (const name of Object.keys(cloud.environment)) {
        if (name.startsWith('AWS_')) delete cloud.environment[name]
      }
      const profiles = { backup: 'backup', admin: 'admin' }
      Object.assign(cloud.environment, cloud.server.writeProfiles(cloud.directory, profiles))
      configure(cloud, (properties) => {
        properties['backup_sets'][0].retention = { local: 1, external: 4 }
      })
      for (let i = 0; i < 5; i++) await another(cloud)
      const RECORD = /\/freshness\/[^/]+\.json$/
      const records = keysLike(cloud, RECORD)
      assert.is(records.length, 5, 'backups may not delete any')
      const byBackup = cloud.server.requests.filter(({ accessKey, action, status }) => {
        return accessKey === 'backup' && /^Delete/.test(action) && status < 300
      })
      assert.equal(byBackup, [])
      const done = await cloud.run('prune', '--target', 'cloud', '--yes')
      assert.is(done.status, 0, done.stdout + done.stderr)
      assert.equal(keysLike(cloud, RECORD), records.slice(-3))
      for (const key of records.slice(0, 2)) assert.equal(cloud.server.versions('bucket', key), [])
      const fleet = await cloud.run('status', '--fleet', '--json')
      assert.is(fleet.status, 0, fleet.stdout + fleet.stderr)
      assert.ok(jsonLines(fleet, 'result').length > 0)
    } finally {
      await cloud.server.close()
    }
  },
)

prune.run()
