import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import type { NoticeEvent, ReportEvent } from '../../lib/model/report.ts'
import {
  extendLocks,
  type LockOptions,
  locksThatEndSoon,
  pathsToLock,
  rememberedLocks,
} from '../../lib/work/bucket-locks.ts'
import * as assert from '../helpers/assert.ts'
import { bucketTarget } from '../helpers/bucket-target.ts'
import { startS3Server } from '../helpers/s3-server.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const locks = suite('work/bucket-locks')
const DAY_MS = 86_400_000
const root = tempDirectory()
const server = await startS3Server({
  buckets: { bucket: { objectLock: true }, plain: {} },
  users: {
    locker: { secret: 'one' },
    writer: { secret: 'two', may: (action) => !action.includes('Retention') },
  },
})
Object.assign(process.env, server.writeProfiles(root, { locker: 'locker', writer: 'writer' }))
const target = bucketTarget({ server, profile: 'locker' })
const { bucket } = target
let scenes = 0

/** Objects of a directory of their own; a number of days locks one. */
async function scene(...lockedDays: readonly (number | undefined)[]) {
  const name = `machines/den/home/2025-04-${String(++scenes).padStart(2, '0')}T020000Z`
  const nowMs = server.nowMs()
  const paths: string[] = []
  for (const [index, days] of lockedDays.entries()) {
    const path = `${name}/data-000${index + 1}.tar.zst.age`
    paths.push(path)
    const lock = days === undefined ? {} : { lock: lockOf(nowMs, days) }
    await bucket.calls.put({ key: bucket.keyOf(path), body: Buffer.from('x'), ...lock })
  }
  const notices: NoticeEvent[] = []
  const report = (event: ReportEvent): void => void (event.kind === 'notice' && notices.push(event))
  const cacheFile = `${root}/locks/${scenes}.json`
  const untilMs = nowMs + 90 * DAY_MS
  server.resetRequests()
  return { paths, notices, options: { paths, nowMs, untilMs, cacheFile, report } }
}

function lockOf(nowMs: number, days: number) {
  return { mode: 'GOVERNANCE', untilMs: nowMs + days * DAY_MS } as const
}

const count = (action: string): number => {
  return server.requests.filter((one) => one.action === action).length
}

async function daysLeft({ nowMs }: LockOptions, path: string): Promise<number | undefined> {
  const lock = await bucket.calls.getLock(bucket.keyOf(path))
  if (lock === undefined || lock === 'unsupported') return undefined
  return Math.round((lock.untilMs - nowMs) / DAY_MS)
}

locks('what is locked for less, or not at all, is locked; nothing is shortened', async () => {
  const { paths, options, notices } = await scene(undefined, 10, 91, 300)
  const outcome = await extendLocks(bucket, options)
  assert.equal(outcome, { extended: 2, kept: 2, failed: [] })
  const days = []
  for (const path of paths) days.push(await daysLeft(options, path))
  assert.equal(days, [120, 120, 91, 300])
  assert.is(server.objects().get(bucket.keyOf(paths[0]!))?.lock?.mode, 'GOVERNANCE')
  assert.equal(notices, [])
})

locks('what was extended is not asked about again for a month', async () => {
  const { options, paths } = await scene(10, 10)
  await extendLocks(bucket, options)
  const daysLater = (days: number) => {
    const later = { nowMs: options.nowMs + days * DAY_MS, untilMs: options.untilMs + days * DAY_MS }
    return { ...options, ...later }
  }
  server.resetRequests()
  assert.equal(await extendLocks(bucket, daysLater(29)), { extended: 0, kept: 2, failed: [] })
  assert.is(server.requests.length, 0)
  assert.equal(await extendLocks(bucket, daysLater(31)), { extended: 2, kept: 0, failed: [] })
  assert.is(await daysLeft(daysLater(31), paths[0]!), 120)
  writeFileSync(options.cacheFile, '{"damaged')
  server.resetRequests()
  assert.equal(await extendLocks(bucket, daysLater(31)), { extended: 0, kept: 2, failed: [] })
  assert.is(count('PutObjectRetention'), 0)
})

locks('a lock of a week becomes one of nine days, not of five weeks', async () => {
  const { options, paths } = await scene(undefined)
  await extendLocks(bucket, { ...options, untilMs: options.nowMs + 7 * DAY_MS })
  assert.is(await daysLeft(options, paths[0]!), 9)
})

locks('an object that is locked as COMPLIANCE stays so', async () => {
  const { options, paths } = await scene(undefined)
  const key = bucket.keyOf(paths[0]!)
  const untilMs = options.nowMs + DAY_MS
  await bucket.calls.setLock({ key, lock: { mode: 'COMPLIANCE', untilMs } })
  assert.is((await extendLocks(bucket, options)).extended, 1)
  assert.is(server.objects().get(key)?.lock?.mode, 'COMPLIANCE')
})

locks('a refusal is one warning that names the right, and asks no further', async () => {
  const { options, paths, notices } = await scene(...Array.from({ length: 30 }, () => 10))
  const weak = bucketTarget({ server, profile: 'writer' })
  const outcome = await extendLocks(weak.bucket, options)
  assert.is(outcome.failed.length, 30)
  assert.is(notices.length, 1)
  assert.match(notices[0]?.message ?? '', /30 objects .*s3:PutObjectRetention/)
  assert.ok(server.requests.length < 30)
  assert.is(await daysLeft(options, paths[0]!), 10)
  assert.equal([...rememberedLocks(options.cacheFile)], [], 'what failed is not remembered')
  const of = { paths, nowMs: options.nowMs, withinMs: DAY_MS }
  assert.is(await locksThatEndSoon(weak.bucket, of), undefined, 'unknown is not safe')
  await weak.close()
})

locks('a bucket without object lock is a warning', async () => {
  server.configure('bucket', { objectLock: false })
  const { options, notices } = await scene(undefined, undefined)
  const outcome = await extendLocks(bucket, options)
  server.configure('bucket', { objectLock: true })
  assert.is(outcome.failed.length, 2)
  assert.match(notices[0]?.message ?? '', /backup doctor --target/)
})

locks('locks that end soon are told, the first to end first', async () => {
  const { paths, options } = await scene(20, 100, undefined, 5)
  const { nowMs } = options
  const ending = await locksThatEndSoon(bucket, { paths, nowMs, withinMs: 30 * DAY_MS })
  assert.equal(
    ending?.map(({ path }) => path),
    [paths[2], paths[3], paths[0]],
  )
  assert.is(ending?.[0]?.untilMs, undefined)
})

locks('an export needs its bundles, those of older stamps, and its signed files', () => {
  const place = { machine: 'den', set: 'home', stamp: '2025-04-02T020000Z' }
  const bundles = new Map([['photos/2025-04-01T020000Z/data-0001', 'a'.repeat(64)]])
  assert.equal(pathsToLock(place, { bundles, manifestSha256: 'b' }), [
    'machines/den/photos/2025-04-01T020000Z/data-0001.tar.zst.age',
    'machines/den/home/2025-04-02T020000Z/verification.sha256',
    'machines/den/home/2025-04-02T020000Z/verification.sha256.minisig',
    'machines/den/home/2025-04-02T020000Z/manifest.tar.zst.age',
  ])
})

locks('status reads what is remembered without asking anybody', async () => {
  const { options, paths } = await scene(undefined)
  assert.not(existsSync(options.cacheFile))
  await extendLocks(bucket, options)
  server.resetRequests()
  assert.ok((rememberedLocks(options.cacheFile).get(paths[0]!) ?? 0) >= options.untilMs)
  assert.is(server.requests.length, 0)
  assert.not(/bucket|secret/.test(readFileSync(options.cacheFile, 'utf8')))
})

locks.after(async () => {
  await target.close()
  await server.close()
})

locks.run()
