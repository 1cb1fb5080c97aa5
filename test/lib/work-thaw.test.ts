import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import type { NoticeEvent, ReportEvent } from '../../lib/model/report.ts'
import { openDirectoryTarget } from '../../lib/target/directory.ts'
import {
  coldBundles,
  planThaw,
  thawOrSay,
  type ThawOptions,
  waitForThaw,
} from '../../lib/work/thaw.ts'
import * as assert from '../helpers/assert.ts'
import { bucketTarget } from '../helpers/bucket-target.ts'
import { startS3Server } from '../helpers/s3-server.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'
import { failureOf } from '../helpers/failure.ts'

const thaw = suite('work/thaw')
const HOUR_MS = 3_600_000
const root = tempDirectory()
const asker = (action: string): boolean => action !== 's3:RestoreObject'
const server = await startS3Server({
  buckets: { bucket: { versioning: true } },
  users: { restorer: { secret: 'one' }, reader: { secret: 'two', may: asker } },
})
Object.assign(process.env, server.writeProfiles(root, { restorer: 'restorer', reader: 'reader' }))
const target = bucketTarget({ server, profile: 'restorer' })

let scenes = 0

/** Bundles of a stamp of their own, by their classes. */
function scene(...classes: readonly string[]) {
  const directory = `machines/den/home/2025-04-${String(++scenes).padStart(2, '0')}T020000Z`
  const bundles = classes.map((storageClass, index) => {
    const path = `${directory}/data-000${index + 1}.tar.zst.age`
    server.put({ key: `backups/${path}`, body: Buffer.alloc(1000, index), storageClass })
    return { path, sizeBytes: 1000 }
  })
  const notices: NoticeEvent[] = []
  const report = (event: ReportEvent): void => void (event.kind === 'notice' && notices.push(event))
  const options: ThawOptions = {
    ...{ bundles, tier: undefined, isWaiting: false, now: server.nowMs, report, pollMs: 1 },
  }
  server.resetRequests()
  return { directory, bundles, notices, options }
}

const asked = (action: string) => server.requests.filter((one) => one.action === action)
const keysOf = (action: string) => asked(action).map(({ key }) => key.replace('backups/', ''))

thaw('a plan of hot bundles is one listing, and no HEAD', async () => {
  const { bundles } = scene('STANDARD', 'GLACIER_IR', 'STANDARD_IA')
  const plan = await planThaw(target, { bundles })
  assert.is(plan.hot.count, 3)
  assert.equal(
    server.requests.map(({ action }) => action),
    ['ListObjectsV2'],
  )
})

thaw('a directory has nothing cold', async () => {
  const files = openDirectoryTarget({ name: 'drive', path: root, mustBeMounted: false })
  const plan = await planThaw(files, { bundles: [{ path: 'machines/x', sizeBytes: 3 }] })
  assert.equal(plan.hot, { count: 1, bytes: 3 })
})

thaw('without --thaw nothing is asked for, and the plan says what it takes', async () => {
  const { options, bundles } = scene('STANDARD', 'GLACIER', 'DEEP_ARCHIVE')
  const answer = await thawOrSay(target, options)
  assert.is(answer.kind, 'cold')
  if (answer.kind !== 'cold') return
  assert.is(answer.error.code, 'COLD_STORAGE')
  assert.match(answer.error.hint ?? '', /--thaw bulk\|standard .*nothing was asked for/)
  assert.match(answer.lines[2] ?? '', /--thaw standard +3 to 12 hours/)
  assert.is(asked('RestoreObject').length, 0)
  const cold = await coldBundles(
    target,
    bundles.map(({ path }) => path),
  )
  assert.equal([...cold].sort(), [bundles[1]!.path, bundles[2]!.path])
  assert.is(asked('RestoreObject').length, 0, 'verify thaws nothing')
})

thaw('--thaw asks for what is cold and nothing else, then tells when to come back', async () => {
  const { options, bundles } = scene('STANDARD', 'GLACIER', 'GLACIER')
  const first = await thawOrSay(target, { ...options, tier: 'Standard' })
  assert.is(first.kind, 'requested')
  if (first.kind !== 'requested') return
  assert.is(first.error.code, 'THAWING')
  assert.match(first.error.hint ?? '', /ready by \d{4}-.* UTC; come back .*--resume/)
  assert.is(Math.round((first.readyByMs - server.nowMs()) / HOUR_MS), 5)
  assert.equal(keysOf('RestoreObject').sort(), [bundles[1]!.path, bundles[2]!.path])
  const second = await thawOrSay(target, { ...options, tier: 'Standard' })
  assert.is(second.kind, 'requested', 'it is still being thawed')
  assert.is(asked('RestoreObject').length, 2, 'nobody is asked twice')
  server.advance(5 * HOUR_MS)
  const third = await thawOrSay(target, options)
  assert.is(third.kind, 'ready')
  assert.is(third.plan.thawed.count, 2)
  assert.is((await coldBundles(target, [bundles[1]!.path])).size, 0)
})

thaw('a limit of costs stops before anything is asked for', async () => {
  const { options } = scene('GLACIER')
  const approve = (): never => {
    throw new BackupError('COST_LIMIT', 'too dear')
  }
  const error = await failureOf(() => thawOrSay(target, { ...options, tier: 'Bulk', approve }))
  assert.is(error.code, 'COST_LIMIT')
  assert.is(asked('RestoreObject').length, 0)
})

thaw('a tier that the class does not have is refused, and the ones it has are named', async () => {
  const { options } = scene('DEEP_ARCHIVE')
  const error = await failureOf(() => thawOrSay(target, { ...options, tier: 'Expedited' }))
  assert.is(error.code, 'USAGE')
  assert.match(error.hint ?? '', /--thaw bulk or standard/)
  assert.is(asked('RestoreObject').length, 0)
})

thaw('--wait returns once everything can be read', async () => {
  const { options, notices } = scene('GLACIER', 'STANDARD', 'DEEP_ARCHIVE', 'GLACIER')
  const clock = setInterval(() => server.advance(HOUR_MS), 10)
  try {
    const answer = await thawOrSay(target, { ...options, tier: 'Bulk', isWaiting: true })
    assert.is(answer.kind, 'ready')
    assert.is(answer.plan.thawed.count, 3)
    assert.is(answer.plan.cold.count + answer.plan.thawing.count, 0)
  } finally {
    clearInterval(clock)
  }
  assert.is(asked('RestoreObject').length, 3)
  assert.equal(notices, [])
})

thaw('while it waits it looks at a few objects only', async () => {
  const { options, bundles } = scene(...Array.from({ length: 9 }, () => 'GLACIER'))
  await thawOrSay(target, { ...options, tier: 'Standard' })
  const plan = await planThaw(target, { bundles })
  server.resetRequests()
  const controller = new AbortController()
  const { report, now } = options
  const wait = { tier: 'Standard', days: 7, report, now, fetchMs: 0, pollMs: 60_000 } as const
  const waiting = failureOf(() => waitForThaw(target, plan, { ...wait, signal: controller.signal }))
  while (asked('HeadObject').length < 4) await new Promise((resolve) => setTimeout(resolve, 5))
  controller.abort()
  const error = await waiting
  assert.is(error.code, 'INTERRUPTED')
  assert.match(error.hint ?? '', /goes on being thawed; come back .*--resume/)
  assert.is(asked('HeadObject').length, 4)
})

thaw('a copy that went while others were waited for is asked for again, and named', async () => {
  const { options, bundles, notices } = scene('GLACIER', 'DEEP_ARCHIVE')
  await thawOrSay(target, { ...options, bundles: [bundles[0]!], tier: 'Expedited', days: 1 })
  server.advance(HOUR_MS)
  const plan = await planThaw(target, { bundles })
  assert.is(plan.thawed.count, 1)
  // Two days and a bit: the copy is gone by then.
  server.advance(50 * HOUR_MS)
  const { now, report } = options
  const clock = setInterval(() => server.advance(HOUR_MS), 5)
  try {
    const wait = { tier: 'Standard', days: 7, now, report, fetchMs: 0, pollMs: 1 } as const
    const thawed = await waitForThaw(target, plan, wait)
    assert.is(thawed.thawed.count, 2)
  } finally {
    clearInterval(clock)
  }
  const again = notices.filter(({ code }) => code === 'THAWED_AGAIN')
  assert.ok(again.some(({ message }) => message.includes(bundles[0]!.path)))
})

thaw('a copy that would go before it is fetched is kept longer', async () => {
  const { options, bundles } = scene('GLACIER')
  await thawOrSay(target, { ...options, tier: 'Expedited', days: 1 })
  server.advance(HOUR_MS)
  const before = (await planThaw(target, { bundles })).firstUntilMs!
  server.advance(before - HOUR_MS / 2 - server.nowMs())
  const slow = { ...options, bytesPerSecond: 1000 / (48 * 3600) }
  const answer = await thawOrSay(target, { ...slow, tier: 'Standard' })
  assert.is(answer.kind, 'ready')
  const after = (await planThaw(target, { bundles })).firstUntilMs!
  assert.ok(after >= server.nowMs() + 7 * 24 * HOUR_MS - HOUR_MS)
})

thaw('of a hidden bundle the older version is thawed', async () => {
  const { options, bundles } = scene('GLACIER', 'STANDARD')
  const { path } = bundles[0]!
  await target.remove(path)
  server.resetRequests()
  const answer = await thawOrSay(target, { ...options, tier: 'Expedited' })
  assert.is(answer.kind, 'requested')
  const old = server.versions('bucket', `backups/${path}`)[1]
  assert.is(asked('RestoreObject')[0]?.query['versionId'], old?.versionId)
  server.advance(HOUR_MS)
  const later = await planThaw(target, { bundles })
  assert.equal([later.thawed.count, later.missing], [1, []])
})

thaw('a bundle that is in no version is missing, not cold', async () => {
  const { bundles, directory } = scene('STANDARD')
  const gone = { path: `${directory}/data-0009.tar.zst.age`, sizeBytes: 5 }
  assert.equal((await planThaw(target, { bundles: [...bundles, gone] })).missing, [gone.path])
})

thaw('a refusal names the right that is needed; one failure keeps nobody back', async () => {
  const { options, bundles, notices } = scene('GLACIER', 'GLACIER')
  const reader = bucketTarget({ server, profile: 'reader' })
  const error = await failureOf(() => thawOrSay(reader, { ...options, tier: 'Bulk' }))
  assert.is(error.code, 'TARGET_DENIED')
  assert.match(error.hint ?? '', /s3:RestoreObject/)
  notices.splice(0)
  const end = server.fault({
    ...{ action: 'RestoreObject', key: /data-0001/ },
    ...{ kind: 'error', status: 400, code: 'InvalidArgument' },
  })
  const answer = await thawOrSay(target, { ...options, tier: 'Bulk' })
  end()
  assert.is(answer.kind, 'requested')
  if (answer.kind !== 'requested') return
  assert.is(answer.outcome.requested, 1)
  assert.equal(
    answer.outcome.failed.map(({ path }) => path),
    [bundles[0]!.path],
  )
  assert.match(notices[0]?.message ?? '', /data-0001.* is not being thawed/)
  assert.match(answer.error.message, /1 could not be asked for/)
  await reader.close()
})

thaw.after(async () => {
  await target.close()
  await server.close()
})

thaw.run()
