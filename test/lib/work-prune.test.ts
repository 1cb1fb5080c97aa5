import { spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, rmdirSync, statfsSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import type { BackupError } from '../../lib/errors.ts'
import { createSubvolume } from '../../lib/machine/subvolume.ts'
import type { NoticeEvent, ReportEvent } from '../../lib/model/report.ts'
import type { KeepRules } from '../../lib/model/retention.ts'
import type { RunOutcome } from '../../lib/model/schedule.ts'
import { formatStamp, type Stamp } from '../../lib/model/stamp.ts'
import { type Phase, recordRuns } from '../../lib/work/history.ts'
import {
  changeMarks,
  lockedStamps,
  readMarks,
  withLock,
  withoutLock,
  withoutTag,
  withTag,
} from '../../lib/work/marks.ts'
import {
  frozenBy,
  planLocalPruning,
  pruneForSpace,
  pruneLocal,
  type RetainedSet,
  type Space,
} from '../../lib/work/prune-local.ts'
import {
  acquireSetLock,
  listStamps,
  prepareSet,
  publishCollection,
} from '../../lib/work/staging.ts'
import * as assert from '../helpers/assert.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const prune = suite('work/prune')
const root = tempDirectory()
const MIB = 1024 * 1024
const DAY_MS = 86_400_000
let scenes = 0

interface Scene {
  readonly staging: string
  readonly notices: NoticeEvent[]
  readonly report: (event: ReportEvent) => void
}

function scene(staging = `${root}/${++scenes}`): Scene {
  const notices: NoticeEvent[] = []
  const report = (event: ReportEvent): void => void (event.kind === 'notice' && notices.push(event))
  return { staging, notices, report }
}

const stampOf = (day: number): Stamp => formatStamp(Date.UTC(2025, 3, 1, 2) + day * DAY_MS)

/** One collection for each letter, a day apart: `c`omplete, `i`ncomplete, `s`uspect, `a`ccepted. */
function collections(
  { staging }: Scene,
  letters: string,
  {
    set = 'home',
    firstDay = 0,
    sizeBytes = 1,
    makeTree = mkdirSync as (path: string) => void,
  } = {},
): Stamp[] {
  prepareSet({ staging, set })
  return [...letters].map((letter, index) => {
    const stamp = stampOf(firstDay + index)
    makeTree(`${staging}/${set}/${stamp}.partial`)
    writeFileSync(`${staging}/${set}/${stamp}.partial/file`, randomBytes(sizeBytes))
    const doubt = { path: 'home', why: 'nothing is left of it' }
    const header = {
      set,
      stamp,
      complete: letter !== 'i',
      missing: [],
      suspect: letter === 's' || letter === 'a' ? [doubt] : [],
      ...(letter === 'a' ? { accepted: stamp } : {}),
      sources: [],
      entries: 0,
      files: 0,
      bytes: 0,
    }
    publishCollection({ staging, header, entries: [] })
    return stamp
  })
}

function retained(local: number, keep: KeepRules = {}, name = 'home'): RetainedSet {
  return { name, retention: { local, external: 1, keep } }
}

const lock = (staging: string, stamp: Stamp, set = 'home') =>
  changeMarks(staging, (marks) => withLock(marks, { set, stamp, reason: undefined }))

/** Writes down how the last run of a set ended. */
function ran(
  { staging }: Scene,
  set: string,
  {
    outcome = 'good',
    stamp,
    phase = 'collect',
  }: { outcome?: RunOutcome; stamp?: Stamp | undefined; phase?: Phase } = {},
): void {
  const target = phase === 'export' ? 'drive' : undefined
  const ended = { startMs: 0, endMs: 0, exitCode: 0, errorCode: undefined, message: undefined }
  const run = { phase, set, target, stamp, outcome, bytes: 0, writtenBytes: 0, ...ended }
  recordRuns({ staging, runs: [run] })
}

function codeOf(run: () => unknown): string {
  try {
    run()
  } catch (error) {
    return (error as BackupError).code
  }
  return 'no error'
}

prune('removes what no rule keeps, with its catalog, and says which', () => {
  const here = scene()
  const stamps = collections(here, 'cccccccccc')
  const set = retained(2, { weekly: 2 })
  const removed = pruneLocal({ ...here, set })
  // 2025-04-06 is a Sunday: it is the newest of the week before.
  const stay = [stamps[5], stamps[8], stamps[9]]
  assert.equal(listStamps({ staging: here.staging, set: 'home' }), stay)
  assert.equal(
    removed,
    stamps.filter((stamp) => !stay.includes(stamp)),
  )
  const names = readdirSync(`${here.staging}/home`).filter((name) => name !== 'latest')
  assert.equal(names.sort(), stay.flatMap((stamp) => [stamp, `${stamp}.catalog.zst`]).sort())
  assert.equal(pruneLocal({ ...here, set }), [])
})

prune('removes only what was shown, where something was shown', () => {
  const here = scene()
  const stamps = collections(here, 'ccccc')
  const only = new Set([stamps[0]!, stamps[4]!])
  assert.equal(pruneLocal({ ...here, set: retained(1), only }), [stamps[0]])
  assert.equal(listStamps({ staging: here.staging, set: 'home' }), stamps.slice(1))
})

prune('leaves a collection whose catalog is damaged', () => {
  const here = scene()
  const stamps = collections(here, 'cccc')
  writeFileSync(`${here.staging}/home/${stamps[0]}.catalog.zst`, 'nonsense')
  assert.equal(pruneLocal({ ...here, set: retained(1) }), stamps.slice(1, 3))
  assert.ok(existsSync(`${here.staging}/home/${stamps[0]}/file`))
  assert.equal(planLocalPruning({ ...here, set: retained(1) }).damaged, [stamps[0]])
})

prune('removes nothing while the newest is suspect, and goes on once it was accepted', () => {
  const here = scene()
  const stamps = collections(here, 'ccccs')
  assert.equal(pruneLocal({ ...here, set: retained(1) }), [])
  assert.is(frozenBy({ staging: here.staging, set: 'home' }), stamps[4])
  const other = scene()
  const accepted = collections(other, 'cccca')
  assert.equal(pruneLocal({ ...other, set: retained(1) }), accepted.slice(0, 4))
  assert.is(frozenBy({ staging: other.staging, set: 'home' }), undefined)
})

prune('a locked collection stays until the lock is off; a lock of another set is another', () => {
  const here = scene()
  const stamps = collections(here, 'cccc')
  lock(here.staging, stamps[1]!)
  lock(here.staging, stamps[0]!, 'other')
  assert.equal(pruneLocal({ ...here, set: retained(1) }), [stamps[0], stamps[2]])
  changeMarks(here.staging, (marks) => withoutLock(marks, { set: 'home', stamp: stamps[1]! }))
  assert.equal(pruneLocal({ ...here, set: retained(1) }), [stamps[1]])
})

prune('a tag protects nothing', () => {
  const here = scene()
  const stamps = collections(here, 'ccc')
  const tag = { name: 'x', set: 'home', stamp: stamps[0]! }
  changeMarks(here.staging, (marks) => withTag(marks, tag))
  assert.equal(pruneLocal({ ...here, set: retained(1) }), stamps.slice(0, 2))
})

prune('marks survive being written; a tag names one generation, and moves', () => {
  const { staging } = scene()
  assert.equal(readMarks(staging), { locks: [], tags: [] })
  const [a, b] = [stampOf(0), stampOf(1)]
  changeMarks(staging, (marks) => withLock(marks, { set: 'home', stamp: b, reason: 'why "not"' }))
  lock(staging, a)
  lock(staging, a)
  changeMarks(staging, (marks) => withTag(marks, { name: 'new', set: 'home', stamp: a }))
  changeMarks(staging, (marks) => withTag(marks, { name: 'before', set: 'home', stamp: a }))
  changeMarks(staging, (marks) => withTag(marks, { name: 'new', set: 'other', stamp: b }))
  assert.equal(readMarks(staging), {
    locks: [
      { set: 'home', stamp: a, reason: undefined },
      { set: 'home', stamp: b, reason: 'why "not"' },
    ],
    tags: [
      { name: 'before', set: 'home', stamp: a },
      { name: 'new', set: 'other', stamp: b },
    ],
  })
  assert.equal([...lockedStamps({ staging, set: 'home' })], [a, b])
  changeMarks(staging, (marks) => withoutTag(marks, 'new'))
  assert.is(readMarks(staging).tags.length, 1)
  assert.equal(readdirSync(`${staging}/.state`).sort(), ['marks.json', 'marks.json.lock'])
})

prune('a change of marks waits for no set, not even one that is named marks', () => {
  const here = scene()
  collections(here, 'c', { set: 'marks' })
  const place = { staging: here.staging, set: 'marks' }
  const held = acquireSetLock({ ...place, description: 'test', waitMs: 0 })
  lock(here.staging, stampOf(0), 'marks')
  held.release()
  assert.is(lockedStamps(place).size, 1)
})

for (const [what, text] of [
  ['empty', ''],
  ['cut short', '{"format":1,"locks":[{"set":"home","stamp":"2025-04-01T020000Z"'],
  ['no object', '[]'],
  ['null', 'null'],
  ['of another format', '{"format":2,"locks":[],"tags":[]}'],
  ['without locks', '{"format":1,"tags":[]}'],
  ['with a lock of no stamp', '{"format":1,"locks":[{"set":"home","stamp":"2025"}],"tags":[]}'],
  ['with a lock of no set', '{"format":1,"locks":[{"stamp":"2025-04-01T020000Z"}],"tags":[]}'],
  ['with a lock that is null', '{"format":1,"locks":[null],"tags":[]}'],
] as const) {
  prune(`a file of marks that is ${what} is never taken for no locks`, async () => {
    const here = scene()
    const { staging, notices } = here
    const stamps = collections(here, 'cccc')
    writeFileSync(`${staging}/.state/marks.json`, text)
    assert.is(
      codeOf(() => readMarks(staging)),
      'MARKS_DAMAGED',
    )
    assert.is(
      codeOf(() => lock(staging, stamps[0]!)),
      'MARKS_DAMAGED',
    )
    assert.equal(pruneLocal({ ...here, set: retained(1) }), [])
    ran(here, 'home')
    const sets = [retained(1)]
    const minFree = { bytes: 1 }
    const readSpace = () => ({ freeBytes: 0, totalBytes: 10 })
    const space = { ...here, sets, minFree, mayRemove: true, heldSet: undefined, readSpace }
    assert.equal((await pruneForSpace(space)).removed, [])
    assert.equal(listStamps({ staging, set: 'home' }), stamps)
    assert.equal(
      notices.map(({ code }) => code),
      ['RETENTION_FROZEN', 'LOW_SPACE', 'RETENTION_FROZEN'],
    )
    assert.equal(readdirSync(`${staging}/.state`).includes('marks.json.partial'), false)
  })
}

/** Space that grows by one with each collection that is gone, as files of equal size do. */
function countedSpace({ staging }: Scene, sets: readonly string[], freeBytes: number) {
  const count = (): number => sets.flatMap((set) => listStamps({ staging, set })).length
  const before = count()
  return (): Space => ({ freeBytes: freeBytes + before - count(), totalBytes: 100 })
}

prune('with enough space nothing goes, and nothing is said', async () => {
  const here = scene()
  collections(here, 'cccc')
  const options = { ...here, sets: [retained(4)], mayRemove: true, heldSet: undefined }
  for (const minFree of [undefined, { bytes: 10 }, { share: 0.1 }]) {
    const readSpace = () => ({ freeBytes: 10, totalBytes: 100 })
    const outcome = await pruneForSpace({ ...options, minFree, readSpace })
    assert.equal(outcome, { removed: [], enough: true, freeBytes: 10 })
  }
  assert.equal(here.notices, [])
})

prune('short of space warns, then removes the oldest across sets until it is enough', async () => {
  const here = scene()
  const home = collections(here, 'ccccc')
  const work = collections(here, 'ccc', { set: 'work', firstDay: 1 })
  ran(here, 'home')
  ran(here, 'work')
  const outcome = await pruneForSpace({
    ...here,
    sets: [retained(7, { last: 2 }), retained(7, {}, 'work')],
    minFree: { share: 0.04 },
    mayRemove: true,
    heldSet: undefined,
    readSpace: countedSpace(here, ['home', 'work'], 1),
  })
  assert.equal(outcome, {
    removed: [
      { set: 'home', stamp: home[0] },
      { set: 'home', stamp: home[1] },
      { set: 'work', stamp: work[0] },
    ],
    enough: true,
    freeBytes: 4,
  })
  assert.equal(
    here.notices.map(({ code }) => code),
    Array.from({ length: 4 }, () => 'LOW_SPACE'),
  )
  assert.match(here.notices[0]!.message, 'min_free asks for 4 B')
})

prune('short of space spares the newest complete, rules, locks, and what is newer', async () => {
  const here = scene()
  const home = collections(here, 'icccii')
  const work = collections(here, 'cccs', { set: 'work' })
  ran(here, 'work')
  lock(here.staging, home[1]!)
  const outcome = await pruneForSpace({
    ...here,
    sets: [retained(7), retained(7, {}, 'work')],
    minFree: { bytes: 50 },
    mayRemove: true,
    heldSet: 'home',
    readSpace: countedSpace(here, ['home', 'work'], 0),
  })
  assert.equal(
    outcome.removed.map(({ stamp }) => stamp),
    [home[0], home[2]],
  )
  assert.is(outcome.enough, false)
  assert.is(outcome.freeBytes, 2)
  assert.equal(listStamps({ staging: here.staging, set: 'work' }), work)
  const ruled = scene()
  collections(ruled, 'ccccc')
  ran(ruled, 'home')
  const rules = { withinMs: 90 * DAY_MS }
  const readSpace = countedSpace(ruled, ['home'], 0)
  const sets = [retained(2, rules)]
  const options = { ...ruled, sets, minFree: { bytes: 9 }, heldSet: undefined, readSpace }
  assert.equal((await pruneForSpace({ ...options, mayRemove: true })).removed, [])
})

prune('short of space leaves a set that another run has, and one locked just now', async () => {
  const here = scene()
  const home = collections(here, 'cccc')
  collections(here, 'ccc', { set: 'work' })
  ran(here, 'home')
  ran(here, 'work')
  const held = acquireSetLock({
    staging: here.staging,
    set: 'work',
    description: 'another run',
    waitMs: 0,
  })
  let looks = 0
  const outcome = await pruneForSpace({
    ...here,
    sets: [retained(7), retained(7, {}, 'work')],
    minFree: { bytes: 50 },
    mayRemove: true,
    heldSet: undefined,
    readSpace: () => {
      looks += 1
      if (looks === 2) lock(here.staging, home[1]!)
      return { freeBytes: 0, totalBytes: 100 }
    },
  })
  held.release()
  assert.equal(
    outcome.removed.map(({ stamp }) => stamp),
    [home[0], home[2]],
  )
  assert.is(listStamps({ staging: here.staging, set: 'work' }).length, 3)
})

/** What goes when there is no space at all. */
async function removedForSpace(
  here: Scene,
  { mayRemove = true, heldSet }: { mayRemove?: boolean; heldSet?: string } = {},
): Promise<readonly Stamp[]> {
  const minFree = { bytes: 50 }
  const sets = [retained(7)]
  const readSpace = () => ({ freeBytes: 0, totalBytes: 100 })
  const options = { ...here, sets, minFree, mayRemove, heldSet, readSpace }
  return (await pruneForSpace(options)).removed.map(({ stamp }) => stamp)
}

prune('short of space it only warns where no good collection was published', async () => {
  const here = scene()
  const stamps = collections(here, 'cccc')
  ran(here, 'home')
  assert.equal(await removedForSpace(here, { mayRemove: false, heldSet: 'home' }), [])
  assert.equal(listStamps({ staging: here.staging, set: 'home' }), stamps)
  assert.equal(
    here.notices.map(({ code, message }) => [code, message.split(': ').at(-1)]),
    [['LOW_SPACE', 'collections go early only once a good one is published']],
  )
})

for (const outcome of ['failed', 'incomplete', 'suspect'] as const) {
  prune(`short of space leaves a set whose last run was ${outcome}`, async () => {
    const here = scene()
    const stamps = collections(here, 'cccc')
    ran(here, 'home')
    ran(here, 'home', { outcome })
    ran(here, 'home', { phase: 'export' })
    ran(here, 'work')
    assert.equal(await removedForSpace(here), [])
    // It has run now, and well, though that is not written down yet.
    assert.equal(await removedForSpace(here, { heldSet: 'home' }), stamps.slice(0, 3))
  })
}

prune('short of space leaves a set that nobody knows to have run, or that was killed', async () => {
  const here = scene()
  const stamps = collections(here, 'cccc')
  assert.equal(await removedForSpace(here), [])
  ran(here, 'home', { phase: 'full' })
  mkdirSync(`${here.staging}/home/${stampOf(9)}.partial`)
  assert.equal(await removedForSpace(here), [])
  rmdirSync(`${here.staging}/home/${stampOf(9)}.partial`)
  assert.equal(await removedForSpace(here), stamps.slice(0, 3))
})

prune('short of space takes from a set whose suspect collection was accepted', async () => {
  const here = scene()
  const stamps = collections(here, 'ccca')
  ran(here, 'home', { outcome: 'suspect', stamp: stamps[3] })
  assert.equal(await removedForSpace(here), stamps.slice(0, 3))
})

if (canRunAsRoot('space that is really freed')) {
  for (const { type, what, makeTree } of [
    { type: 'ext4', what: 'ext4', makeTree: mkdirSync },
    { type: 'btrfs', what: 'btrfs', makeTree: mkdirSync },
    { type: 'btrfs', what: 'btrfs with a subvolume each', makeTree: createSubvolume },
  ]) {
    prune(`on ${what} it stops as soon as the space is there`, async () => {
      const device = loopDevice({ sizeMib: 256, type })
      // The cleaner of btrfs wakes up with each commit: every 30 seconds otherwise.
      device.unmount()
      device.mount('commit=1')
      const here = scene(`${device.path}/staging`)
      const stamps = collections(here, 'ccccc', { sizeBytes: 20 * MIB, makeTree })
      ran(here, 'home')
      spawnSync('sync', ['-f', device.path])
      const { bavail, bsize } = statfsSync(device.path)
      const minFree = { bytes: bavail * bsize + 30 * MIB }
      const sets = [retained(7)]
      const options = { ...here, sets, minFree, heldSet: undefined }
      const outcome = await pruneForSpace({ ...options, mayRemove: true })
      assert.equal(
        outcome.removed.map(({ stamp }) => stamp),
        stamps.slice(0, 2),
      )
      assert.is(outcome.enough, true)
      device.unmount()
    })
  }
}

prune.run()
