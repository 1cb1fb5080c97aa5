// Append-only for real: credentials that may what `doctor --policy` prints and nothing else, in a
// bucket that keeps versions, judged by test/helpers/iam.ts. A refused request that nobody noticed
// would be a right that the document lacks, so those are listed too.

import { mkdirSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import type { Policy } from '../../lib/model/bucket-policy.ts'
import { createS3Calls } from '../../lib/target/s3-client.ts'
import type { S3Calls } from '../../lib/target/s3-calls.ts'
import * as assert from '../helpers/assert.ts'
import { isAllowed } from '../helpers/iam.ts'
import { randomFrom } from '../helpers/random.ts'
import {
  configure,
  inventory,
  jsonLines,
  makeScenario,
  type Properties,
  type Scenario,
} from '../helpers/scenario.ts'
import { type Quirks, type S3Server, startS3Server } from '../helpers/s3-server.ts'

const appendOnly = suite('commands/s3-append-only')
const random = randomFrom('append-only')
const DAY_MS = 86_400_000

interface Guarded extends Scenario {
  readonly server: S3Server
  /** What each of the two may; a test may change it. */
  readonly policies: Record<'backup' | 'admin', Policy[]>
  readonly callsAs: (profile: 'backup' | 'admin') => S3Calls
}

interface Options {
  readonly target?: Properties
  readonly quirks?: Quirks
  readonly objectLock?: boolean
}

/** The server has to be closed. */
async function makeGuarded(options: Options = {}): Promise<Guarded> {
  const scenario = await makeScenario()
  const policies: Guarded['policies'] = { backup: [], admin: [] }
  // The path is what the bucket's policy knows backups by.
  const arns = { backup: 'user/backup/backup-tester', admin: 'user/backup-admin' }
  const mayAs = (who: 'backup' | 'admin') => {
    const user = {
      'aws:PrincipalArn': `arn:aws:iam::123456789012:${arns[who]}`,
      'aws:SecureTransport': 'true',
    }
    return (action: string, key: string, conditions: Readonly<Record<string, string>>) => {
      const isOfBucket = /^s3:(List(?!MultipartUploadParts)|(Get|Put)(Bucket|Lifecycle|Encryp))/
      const isBucket = key === '' || isOfBucket.test(action)
      const resource = `arn:aws:s3:::bucket${isBucket ? '' : `/${key}`}`
      return isAllowed(policies[who], { action, resource, context: { ...user, ...conditions } })
    }
  }
  const server = await startS3Server({
    buckets: { bucket: { versioning: true, objectLock: options.objectLock ?? false } },
    users: { b: { secret: 'sb', may: mayAs('backup') }, a: { secret: 'sa', may: mayAs('admin') } },
    ...(options.quirks === undefined ? {} : { quirks: options.quirks }),
  })
  const cloud = {
    ...{ name: 'cloud', kind: 's3', bucket: 'bucket', path: 'backups', region: 'us-east-1' },
    ...{ path_style: true, bundle_size: '1 MiB', profile: 'backup', admin_profile: 'admin' },
    ...options.target,
  }
  // As for Amazon, of whom the stand-in is one; with an endpoint it would be somebody else's.
  configure(scenario, (c) => {
    c['targets'] = [cloud]
    c['backup_sets'][0].retention = { external: 1 }
  })
  for (const kind of ['backup', 'admin', 'bucket'] as const) {
    const printed = await scenario.run('doctor', '--target', 'cloud', '--policy', kind)
    assert.is(printed.status, 0, printed.stderr)
    const policy = JSON.parse(printed.stdout) as Policy
    for (const who of kind === 'bucket' ? (['backup', 'admin'] as const) : [kind]) {
      policies[who].push(policy)
    }
  }
  configure(scenario, (c) => {
    c['targets'][0].endpoint = server.endpoint
  })
  const environment = server.writeProfiles(scenario.home, { backup: 'b', admin: 'a' })
  Object.assign(scenario.environment, environment)
  const callsAs = (profile: 'backup' | 'admin'): S3Calls => {
    Object.assign(process.env, environment)
    return createS3Calls({
      ...{ bucket: 'bucket', region: 'us-east-1', endpoint: server.endpoint, isPathStyle: true },
      ...{ profile, firstDelayMs: 1 },
    })
  }
  return { ...scenario, server, policies, callsAs }
}

function fill({ source }: Scenario): void {
  mkdirSync(`${source}/deep`)
  for (let i = 0; i < 8; i += 1) writeFileSync(`${source}/${i}`, random.bytes(200_000))
  for (let i = 0; i < 50; i += 1) writeFileSync(`${source}/deep/${i}`, `${i}\n`)
  writeFileSync(`${source}/long`, random.bytes(9_000_000))
}

/** Each request that was refused, and what it was about. */
function refusals({ server }: Guarded): string[] {
  return server.requests
    .filter(({ status }) => status === 403)
    .map(({ action, key, query }) => `${action} ${key || (query['prefix'] ?? '')}`)
}

/** By the credentials of backups. */
function deletions({ server }: Guarded): string[] {
  return server.requests
    .filter((one) => one.action === 'DeleteObject' && one.accessKey === 'b')
    .filter(({ status }) => status < 300)
    .map(({ key }) => key)
}

/** Everything in the bucket but probes. */
function keysOf({ server }: Guarded): string[] {
  return [...server.objects().keys()].filter((key) => !key.includes('/.probe/'))
}

function assertNothingOverwritten(guarded: Guarded, where: string): void {
  for (const key of keysOf(guarded)) {
    assert.is(guarded.server.versions('bucket', key).length, 1, `${key}, ${where}`)
  }
}

async function exportNow(guarded: Guarded): Promise<string> {
  assert.is((await guarded.collect()).status, 0)
  const exported = await guarded.external('--json')
  assert.is(exported.status, 0, exported.stderr + exported.stdout)
  return jsonLines(exported, 'result')[0]!['stamp'] as string
}

async function assertRestores(guarded: Guarded, name: string): Promise<void> {
  const into = `${guarded.directory}/${name}`
  const restored = await guarded.restore('--into', into)
  assert.is(restored.status, 0, restored.stderr)
  assert.equal(inventory(`${into}${guarded.source}`), inventory(guarded.source))
}

/** A stamp has seconds. */
async function nextSecond(): Promise<void> {
  await sleep(1001 - (Date.now() % 1000))
}

/** What the service says to it, or what came of it. */
async function attempt(action: () => Promise<unknown>): Promise<unknown> {
  return await action().catch((error: unknown) =>
    error instanceof BackupError ? (error.facts['s3'] ?? error.code) : error,
  )
}

appendOnly(
  'the printed rights are enough to export, day after day, and change nothing',
  async () => {
    const guarded = await makeGuarded({ objectLock: true, target: { lock: '30d' } })
    try {
      fill(guarded)
      await exportNow(guarded)
      // What was not there yet is refused like what must not be read; a list then tells.
      const isMinor =
        /^ListObjectsV2 $|\/\.probe\/|(repository\.json|RECOVER\.txt|recover\.sh|machine\.json\S*)$/
      assert.equal(
        refusals(guarded).filter((refusal) => !isMinor.test(refusal)),
        [],
      )
      assert.equal(deletions(guarded), [])
      assertNothingOverwritten(guarded, 'the first export')
      assert.ok(guarded.server.objects().get('backups/repository.json')!.lock, 'it is locked')
      const first = new Map(guarded.server.objects())
      await nextSecond()
      writeFileSync(`${guarded.source}/one-more`, 'new')
      guarded.server.resetRequests()
      await exportNow(guarded)
      // Whether the bucket is there; who may not list all of it may go on.
      assert.equal(
        refusals(guarded).filter((refusal) => refusal !== 'ListObjectsV2 '),
        [],
      )
      assert.equal(deletions(guarded), [])
      assertNothingOverwritten(guarded, 'the second day')
      for (const [key, { body }] of first) {
        if (key.includes('/.probe/')) continue
        assert.ok(guarded.server.objects().get(key)?.body.equals(body), key)
      }
      assert.equal(guarded.server.uploads(), [])
      guarded.server.resetRequests()
      const verified = await guarded.restore('--verify')
      assert.is(verified.status, 0, verified.stderr + verified.stdout)
      assert.match(verified.stdout, /(whole.*){2}/s)
      await assertRestores(guarded, 'back')
      assert.equal(refusals(guarded), [])
      const fleet = await guarded.run('status', '--fleet')
      assert.is(fleet.status, 0, fleet.stdout + fleet.stderr)
      assert.match(fleet.stdout, /tester +data .* fresh/)
      // Without what makes it append-only, the document would not be worth much.
      const doctor = await guarded.run('doctor', '--target', 'cloud')
      assert.is(doctor.status, 0, doctor.stdout)
      assert.match(doctor.stdout, /ok +overwrite: refused/)
      assert.match(doctor.stdout, /ok +delete: refused/)
      assert.match(doctor.stdout, /ok +change of locks: /)
    } finally {
      await guarded.server.close()
    }
  },
)

appendOnly(
  'prune deletes nothing without the admin profile, and all versions with it',
  async () => {
    const guarded = await makeGuarded()
    try {
      fill(guarded)
      const old = await exportNow(guarded)
      await nextSecond()
      writeFileSync(`${guarded.source}/one-more`, 'new')
      const newest = await exportNow(guarded)
      const isOld = (key: string): boolean => key.includes(`/data/${old}/manifest`)
      configure(guarded, (c) => {
        delete c['targets'][0].admin_profile
      })
      const before = keysOf(guarded)
      const refused = await guarded.run('prune', '--target', 'cloud', '--yes')
      assert.is.not(refused.status, 0)
      assert.match(refused.stderr, /profile backup may not do s3:(PutObject|DeleteObject)/)
      assert.equal(keysOf(guarded), before)
      assertNothingOverwritten(guarded, 'no marker either')
      configure(guarded, (c) => {
        c['targets'][0].admin_profile = 'admin'
      })
      const pruned = await guarded.run('prune', '--target', 'cloud', '--yes')
      assert.is(pruned.status, 0, pruned.stderr + pruned.stdout)
      assert.equal(keysOf(guarded).filter(isOld), [])
      for (const key of before.filter(isOld)) {
        assert.equal(guarded.server.versions('bucket', key), [], 'no version of it is left')
      }
      assert.ok(keysOf(guarded).some((key) => key.includes(`/data/${newest}/manifest`)))
      await assertRestores(guarded, 'back')
      const verified = await guarded.restore('--verify')
      assert.is(verified.status, 0, verified.stderr + verified.stdout)
      // What was pruned is no alarm, and the next day goes on from what is left.
      await nextSecond()
      writeFileSync(`${guarded.source}/another`, 'new')
      await exportNow(guarded)
      await assertRestores(guarded, 'later')
    } finally {
      await guarded.server.close()
    }
  },
)

appendOnly('a stolen credential of backups can neither read, nor delete, nor unlock', async () => {
  const guarded = await makeGuarded({ objectLock: true, target: { lock: '30d' } })
  const calls = guarded.callsAs('backup')
  try {
    fill(guarded)
    await exportNow(guarded)
    const keys = keysOf(guarded)
    const data = keys.find((key) => /\/data-0001/.test(key))!
    const manifest = keys.find((key) => /\/manifest/.test(key))!
    const { versionId, lock } = guarded.server.versions('bucket', data)[0]!
    const bytes = new Map([...guarded.server.objects()].map(([key, { body }]) => [key, body]))
    const untilMs = guarded.server.nowMs() + 1000
    const rubbish = { body: random.bytes(100), md5: undefined }
    const put = (key: string, ifAbsent: boolean) => async () =>
      await calls.put({ key, body: rubbish.body, ifAbsent })
    const denied = 'AccessDenied'
    assert.is(await attempt(() => calls.remove(data)), denied)
    assert.is(await attempt(() => calls.remove(data, versionId)), denied)
    assert.is(await attempt(() => calls.remove(manifest)), denied)
    assert.is(await attempt(() => calls.get(data)), denied)
    assert.is(await attempt(() => calls.get(data, { versionId })), denied)
    assert.is(await attempt(put(data, false)), denied)
    assert.is(await attempt(put(data, true)), 'taken')
    assert.is(await attempt(put('backups/machines/other/machine.json', true)), denied)
    assert.is(await attempt(() => calls.copy({ from: manifest, to: data })), denied)
    const shorter = { mode: 'GOVERNANCE', untilMs } as const
    assert.is(await attempt(() => calls.setLock({ key: data, lock: shorter })), denied)
    assert.is(
      await attempt(() => calls.setLock({ key: data, lock: shorter, bypass: true })),
      denied,
    )
    const longer = { mode: 'GOVERNANCE', untilMs: untilMs + 900 * DAY_MS } as const
    assert.is(await attempt(() => calls.setLock({ key: data, lock: longer })), denied)
    const forever = { ...longer, mode: 'COMPLIANCE' } as const
    assert.is(await attempt(() => calls.setLock({ key: data, lock: forever })), denied)
    assert.is(await attempt(() => calls.list('')), denied)
    assert.equal(guarded.server.versions('bucket', data)[0]!.lock, lock)
    // Rubbish of his own is all that is left to him.
    const own = data.replace('data-0001', 'data-0999')
    assert.is(await attempt(put(own, true)), 'written')
    for (const [key, body] of bytes) {
      if (key.includes('/.probe/')) continue
      assert.ok(guarded.server.objects().get(key)?.body.equals(body), key)
    }
    const verified = await guarded.restore('--verify')
    assert.is(verified.status, 0, verified.stderr + verified.stdout)
    await assertRestores(guarded, 'back')
  } finally {
    calls.close()
    await guarded.server.close()
  }
})

appendOnly(
  'what a credential that is too wide hides is found, read, and brought back',
  async () => {
    const guarded = await makeGuarded()
    guarded.policies.backup.splice(0, 2, wide())
    const calls = guarded.callsAs('backup')
    try {
      fill(guarded)
      await exportNow(guarded)
      const keys = keysOf(guarded)
      const find = (pattern: RegExp): string => keys.find((key) => pattern.test(key))!
      const [data, other] = [find(/\/data-0001/), find(/\/data-0002/)]
      const manifest = find(/\/manifest/)
      const before = new Map(guarded.server.objects())
      await calls.remove(data)
      await calls.remove(manifest)
      await calls.put({ key: other, body: random.bytes(1000) })
      const { versionId } = guarded.server.versions('bucket', other).at(-1)!
      assert.is(await attempt(() => calls.remove(other, versionId)), 'AccessDenied')
      const found = await guarded.restore('--verify')
      assert.is(found.status, 13, found.stderr + found.stdout)
      for (const key of [data, other, manifest]) {
        assert.ok((found.stdout + found.stderr).includes(key.replace('backups/', '')), key)
      }
      const repaired = await guarded.run('repair', '--target', 'cloud', '--yes')
      assert.is(repaired.status, 0, repaired.stderr + repaired.stdout)
      for (const [key, { body }] of before) {
        if (key.includes('/.probe/')) continue
        assert.ok(guarded.server.objects().get(key)?.body.equals(body), key)
      }
      const versions = guarded.server.versions('bucket', other)
      assert.ok(
        versions.some(({ body }) => body.length === 1000),
        'the evidence stays',
      )
      const verified = await guarded.restore('--verify')
      assert.is(verified.status, 0, verified.stderr + verified.stdout)
      await assertRestores(guarded, 'back')
    } finally {
      calls.close()
      await guarded.server.close()
    }
  },
)

appendOnly('nothing is exported where uploads can be neither compared nor read back', async () => {
  const guarded = await makeGuarded({ quirks: { checksums: 'ignored', md5: 'ignored' } })
  try {
    fill(guarded)
    assert.is((await guarded.collect()).status, 0)
    for (const time of ['first', 'second']) {
      const refused = await guarded.external('--json')
      assert.is.not(refused.status, 0, time)
      assert.match(refused.stderr, /proven|s3:GetObject/, time)
    }
    const made = keysOf(guarded).filter((key) => /\/(manifest|data-|verification)/.test(key))
    assert.equal(
      made.filter((key) => key.includes('manifest')),
      [],
    )
    const list = await guarded.restore('--list')
    assert.not.match(list.stdout, /data +\d{4}-/)
  } finally {
    await guarded.server.close()
  }
})

appendOnly('an answer that is lost costs one run at most', async () => {
  const guarded = await makeGuarded({ target: { bundle_size: '16 MiB' } })
  try {
    fill(guarded)
    assert.is((await guarded.collect()).status, 0)
    const faults = [
      { kind: 'reset-after', action: 'PutObject', key: /catalog-/, times: 1 },
      { kind: 'reset-after', action: 'CompleteMultipartUpload', times: 1 },
    ] as const
    const ends = faults.map((fault) => guarded.server.fault(fault))
    for (let runs = 0; runs < 3; runs += 1) {
      if ((await guarded.external('--json')).status === 0) break
    }
    for (const end of ends) end()
    assert.equal(guarded.server.uploads(), [])
    assert.equal(deletions(guarded), [])
    assertNothingOverwritten(guarded, 'sent again')
    await assertRestores(guarded, 'back')
    const verified = await guarded.restore('--verify')
    assert.is(verified.status, 0, verified.stderr + verified.stdout)
  } finally {
    await guarded.server.close()
  }
})

/** As somebody writes it who reads no documents: everything but versions and settings. */
function wide(): Policy {
  const Action = ['s3:*Object', 's3:List*', 's3:Get*']
  const statement = { Sid: 'All', Effect: 'Allow', Action, Resource: ['*'] } as const
  return { Version: '2012-10-17', Statement: [statement] }
}

appendOnly.run()
