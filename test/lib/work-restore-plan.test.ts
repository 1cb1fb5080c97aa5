import { execFileSync } from 'node:child_process'
import {
  appendFileSync,
  chmodSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { setTimes } from '../../lib/machine/posix.ts'
import type { OverwritePolicy } from '../../lib/model/overwrite.ts'
import type { Stamp } from '../../lib/model/stamp.ts'
import { Aside } from '../../lib/work/aside.ts'
import { collectSet } from '../../lib/work/collect.ts'
import { selectLocal } from '../../lib/work/restore-local.ts'
import { type RestorePlan, countPlan, withAnswers } from '../../lib/work/restore-plan.ts'
import { type RestoreOutcome, restoreSelection } from '../../lib/work/restore.ts'
import type { Selection } from '../../lib/work/selection.ts'
import { undoRestore } from '../../lib/work/undo-restore.ts'
import * as assert from '../helpers/assert.ts'
import { configurationOf, setConfiguration } from '../helpers/configuration.ts'
import { driveImage } from '../helpers/drive-image.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { namesIn, script } from '../helpers/scenario.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const plan = suite('work/restore-plan')
const isRoot = canRunAsRoot('restores onto other filesystems')
const root = tempDirectory()
const signal = new AbortController().signal
const report = (): void => {}
const STAMP = '2026-05-01T120000Z' as Stamp
const HOUR_NS = 3_600_000_000_000n

interface Scene {
  readonly home: string
  readonly staging: string
  readonly selection: Selection
}

interface Change {
  readonly overwrite?: OverwritePolicy
  readonly deletes?: boolean
  readonly discards?: boolean
  readonly dryRun?: boolean
  readonly isLeftOut?: (path: string) => boolean
  readonly decide?: (plan: RestorePlan) => Promise<RestorePlan>
  readonly checksRoom?: boolean
  readonly signal?: AbortSignal
  readonly report?: () => void
}

let scenes = 0
let places = 0

/** A home that was collected once. */
async function scene(fill: (home: string) => void): Promise<Scene> {
  const directory = `${root}/scene-${++scenes}`
  const [home, staging] = [`${directory}/home`, `${directory}/staging`]
  mkdirSync(home, { recursive: true })
  fill(home)
  const set = setConfiguration({ sources: [home], snapshot: 'none' })
  const configuration = configurationOf(set, { staging })
  const { stamp } = await collectSet({
    ...{ configuration, set, report },
    nowMs: Date.UTC(2025, 3, 1, 2),
    dryRun: false,
  })
  const of = { staging, set: 'home', stamp, paths: [], report, signal }
  const { selection } = await selectLocal(of)
  return { home, staging, selection }
}

let letters: Promise<Scene> | undefined

/** The home of most tests, which nobody changes. */
async function shared(): Promise<Scene> {
  return await (letters ??= scene((home) => {
    mkdirSync(`${home}/sub/deep`, { recursive: true })
    for (const name of FILES) writeFileSync(`${home}/${name}`, `the backup's ${name}`)
    for (const name of FILES) setTimes(`${home}/${name}`, { mtimeNs: 1_700_000_000_000_000_007n })
    linkSync(`${home}/even`, `${home}/sub/even-too`)
    symlinkSync('older', `${home}/symbolic`)
  }))
}

const FILES = ['content', 'even', 'mode', 'newer', 'older', 'same', 'sub/deep/lost', 'sub/made']

/** A new place that has the home, every file of which differs in the way of its name. */
function altered({ home }: Scene): { readonly into: string; readonly restored: string } {
  const into = `${root}/into-${++places}`
  const restored = into + home
  mkdirSync(restored, { recursive: true })
  execFileSync('cp', ['-a', `${home}/.`, restored])
  const { mtimeNs } = statSync(`${home}/even`, { bigint: true })
  const change = (name: string, text: string, atNs: bigint): void => {
    writeFileSync(`${restored}/${name}`, text)
    setTimes(`${restored}/${name}`, { mtimeNs: atNs })
  }
  change('older', 'older text', mtimeNs - HOUR_NS)
  change('newer', 'newer text', mtimeNs + HOUR_NS)
  for (const name of ['even', 'sub/even-too']) rmSync(`${restored}/${name}`)
  change('even', 'a longer or shorter one', mtimeNs)
  change('content', "THE BACKUP'S CONTENT", mtimeNs)
  chmodSync(`${restored}/mode`, 0o600)
  rmSync(`${restored}/sub/made`)
  rmSync(`${restored}/sub/deep`, { recursive: true })
  mkdirSync(`${restored}/added/below`, { recursive: true })
  writeFileSync(`${restored}/added/below/mine`, 'mine')
  return { into, restored }
}

async function restore(
  { selection, home }: Scene,
  into: string,
  change: Change = {},
): Promise<RestoreOutcome> {
  const { overwrite = 'always', deletes, discards, dryRun = false, decide, isLeftOut } = change
  return await restoreSelection(selection, {
    ...{ into, overwrite, dryRun, isLeftOut, identities: [], cores: 2 },
    checksRoom: change.checksRoom ?? false,
    deleteIn: deletes === true ? [home.slice(1)] : [],
    aside:
      discards === true ? undefined : new Aside({ into, roots: [home.slice(1)], stamp: STAMP }),
    ...(decide === undefined ? {} : { decide }),
    signal: change.signal ?? signal,
    report: change.report ?? report,
  })
}

/** Everything there is to see of a tree but the times of its directories. */
function look(directory: string): string {
  return script(
    `cd "$1"; find . -type d -printf '%P d %m\\n' | sort
    find . ! -type d -printf '%P %y %m %T@ %s %l %n %U\\n' | sort
    find . -type f -print0 | sort -z | xargs -0r sha256sum`,
    directory,
  )
}

function fails(action: () => unknown, code: string): void {
  try {
    action()
  } catch (error) {
    assert.instance(error, BackupError)
    assert.is((error as BackupError).code, code)
    return
  }
  assert.unreachable(`no ${code}`)
}

/** By the last name: what is restored of what differs. */
const REPLACED: Readonly<Record<OverwritePolicy, readonly string[]>> = {
  never: [],
  ask: [],
  older: ['older'],
  newer: ['newer'],
  always: ['content', 'even', 'mode', 'newer', 'older'],
}

for (const overwrite of ['never', 'older', 'newer', 'always', 'ask'] as const) {
  plan(
    `--overwrite ${overwrite} replaces what it says, keeps the rest, and tells both`,
    async () => {
      const at = await shared()
      const { into, restored } = altered(at)
      const { kept, failures } = await restore(at, into, { overwrite })
      assert.equal(failures, [])
      const own = (name: string): string => `${at.home.slice(1)}/${name}`
      const differing = ['content', 'even', 'mode', 'newer', 'older']
      const stays = differing.filter((name) => !REPLACED[overwrite].includes(name))
      assert.equal(kept, stays.map(own))
      for (const name of differing) {
        const isRestored = !stays.includes(name)
        const same =
          readFileSync(`${restored}/${name}`, 'utf8') === `the backup's ${name}`
          && statSync(`${restored}/${name}`).mode === statSync(`${at.home}/${name}`).mode
        assert.is(same, isRestored, `${overwrite}: ${name}`)
      }
      assert.is(readFileSync(`${restored}/sub/made`, 'utf8'), "the backup's sub/made")
      assert.is(readFileSync(`${restored}/sub/even-too`, 'utf8'), "the backup's even")
      assert.is(readFileSync(`${restored}/added/below/mine`, 'utf8'), 'mine')
    },
  )
}

plan('a dry run counts what a restore then does, and changes nothing', async () => {
  const at = await shared()
  const { into, restored } = altered(at)
  // Content of one size and time is found out by reading only.
  execFileSync('cp', ['-p', `${at.home}/content`, `${restored}/content`])
  execFileSync('cp', ['-p', `${at.home}/mode`, `${restored}/mode`])
  const before = look(into)
  let counts: ReturnType<typeof countPlan> | undefined
  const decide = async (one: RestorePlan): Promise<RestorePlan> => {
    counts = countPlan(one)
    return await Promise.resolve(one)
  }
  const told = await restore(at, into, { dryRun: true, deletes: true, decide })
  assert.is(look(into), before)
  assert.equal(counts, {
    ...{ new: 3, same: 4, replacedOlder: 1, replacedNewer: 1, replacedEven: 1, kept: 0 },
    deleted: 3,
  })
  const done = await restore(at, into, { deletes: true })
  assert.equal({ ...done, aside: [] }, told)
  const absent = `${into}/not/there`
  assert.is((await restore(at, absent, { dryRun: true })).written, 10)
  assert.not.ok(existsSync(`${into}/not`))
})

plan('what is replaced lies aside as it was, and undoing brings back the tree', async () => {
  const at = await shared()
  const { into, restored } = altered(at)
  chmodSync(`${restored}/mode`, 0o644)
  linkSync(`${restored}/older`, `${into}/another name`)
  chmodSync(`${restored}/older`, 0o640)
  const before = look(into)
  const { ino } = statSync(`${restored}/older`)
  const { aside, deleted } = await restore(at, into, { deletes: true })
  assert.equal([aside, deleted], [[`${into}/.backup-replaced-${STAMP}`], 3])
  const [kept = ''] = aside
  assert.is(statSync(kept).mode & 0o7777, 0o700)
  const old = statSync(`${kept}${at.home}/older`)
  assert.equal([old.ino, old.mode & 0o777], [ino, 0o640])
  assert.is(readFileSync(`${into}/another name`, 'utf8'), 'older text')
  assert.not.ok(existsSync(`${restored}/added`))
  assert.is(readFileSync(`${kept}${at.home}/added/below/mine`, 'utf8'), 'mine')
  const list = readFileSync(`${kept}/undo.jsonl`, 'utf8')
  assert.match(list, /"did":"replaced","path":"[^"]*\/older"/)

  const counted = undoRestore(kept, { dryRun: true })
  assert.equal(counted.left, [])
  const undone = undoRestore(kept, { dryRun: false })
  assert.equal(undone, counted)
  assert.is(look(into), before)
  assert.not.ok(existsSync(kept))
  fails(() => undoRestore(kept, { dryRun: false }), 'NOTHING_FOUND')
})

plan('undoing leaves and names what somebody changed since, and does it later', async () => {
  const at = await shared()
  const { into, restored } = altered(at)
  chmodSync(`${restored}/mode`, 0o644)
  const before = look(into)
  const [kept = ''] = (await restore(at, into)).aside
  const edited = readFileSync(`${restored}/older`)
  appendFileSync(`${restored}/older`, ' edited')
  writeFileSync(`${restored}/sub/deep/mine`, 'new')
  const { left } = undoRestore(kept, { dryRun: false })
  assert.equal(left.map(({ path }) => path).sort(), [
    `${at.home.slice(1)}/older`,
    `${at.home.slice(1)}/sub/deep`,
  ])
  assert.match(readFileSync(`${restored}/older`, 'utf8'), / edited$/)
  assert.is(readFileSync(`${restored}/newer`, 'utf8'), 'newer text')
  assert.equal(undoRestore(kept, { dryRun: true }).left.length, 2)
  // As the restore left it again.
  writeFileSync(`${restored}/older`, edited)
  setTimes(`${restored}/older`, statSync(`${at.home}/older`, { bigint: true }))
  rmSync(`${restored}/sub/deep/mine`)
  assert.equal(undoRestore(kept, { dryRun: false }), { back: 1, removed: 1, left: [] })
  assert.is(look(into), before)
})

plan(
  'bug: what an interrupted restore had replaced was deleted from where it was kept',
  async () => {
    const at = await scene((home) => {
      for (let i = 0; i < 700; i++) writeFileSync(`${home}/${i}`, `backup ${i}`)
    })
    const into = `${root}/into-${++places}`
    mkdirSync(into + at.home, { recursive: true })
    for (let i = 0; i < 650; i++) writeFileSync(`${into}${at.home}/${i}`, `mine ${i}`)
    const before = look(into)
    const controller = new AbortController()
    let interrupted: unknown
    try {
      await restore(at, into, { signal: controller.signal, report: () => controller.abort() })
    } catch (error) {
      interrupted = error
    }
    assert.is((interrupted as BackupError).code, 'INTERRUPTED')
    assert.is.not(look(into), before)
    const [name = ''] = readdirSync(into).filter((one) => one.startsWith('.backup-replaced'))
    assert.equal(undoRestore(`${into}/${name}`, { dryRun: false }).left, [])
    rmSync(`${into}/.backup-replaced-${STAMP}`, { recursive: true, force: true })
    script('find "$1" -name ".backup-restore-*" -delete', into)
    assert.is(look(into), before)
  },
)

plan('a list that was cut short is undone as far as it goes', async () => {
  const at = await shared()
  const { into, restored } = altered(at)
  const [kept = ''] = (await restore(at, into)).aside
  const list = `${kept}/undo.jsonl`
  appendFileSync(list, '{"did":"replaced","pa')
  assert.equal(undoRestore(kept, { dryRun: false }).left, [])
  assert.is(readFileSync(`${restored}/older`, 'utf8'), 'older text')
})

plan('a hostile list changes nothing', async () => {
  const into = `${root}/into-${++places}`
  const kept = `${into}/.backup-replaced-${STAMP}`
  const victim = `${root}/victim`
  writeFileSync(victim, 'unharmed')
  const header = (of: string): string =>
    JSON.stringify({ format: 1, restored: STAMP, ...(of === '' ? {} : { into: of }) })
  const { mtimeNs } = statSync(victim, { bigint: true })
  const seconds = `${mtimeNs.toString().slice(0, -9)}.${mtimeNs.toString().slice(-9)}`
  const made = (path: string): string => JSON.stringify({ did: 'made', path, mtime: seconds })
  for (const [first, line, code] of [
    [header(into), made('../victim'), 'UNSAFE_PATH'],
    [header(into), made(victim), 'UNSAFE_PATH'],
    [header(into), made('a/./../../victim'), 'UNSAFE_PATH'],
    [header(root), made('victim').replace('made', 'unmade'), 'CATALOG_DAMAGED'],
    [header(`${root}/elsewhere`), made('victim'), 'CATALOG_DAMAGED'],
    ['{"format":2}', made('victim'), 'CATALOG_DAMAGED'],
    ['rubbish', made('victim'), 'CATALOG_DAMAGED'],
    [header(into), 'rubbish', 'CATALOG_DAMAGED'],
  ] as const) {
    rmSync(into, { recursive: true, force: true })
    mkdirSync(kept, { recursive: true })
    writeFileSync(`${kept}/undo.jsonl`, `${first}\n${line}\n`)
    fails(() => undoRestore(kept, { dryRun: false }), code)
    assert.is(readFileSync(victim, 'utf8'), 'unharmed')
  }
  // A link that came since.
  symlinkSync(root, `${into}/link`)
  writeFileSync(`${kept}/undo.jsonl`, `${header(into)}\n${made('link/victim')}\n`)
  assert.is(undoRestore(kept, { dryRun: false }).left.length, 1)
  assert.ok(existsSync(victim))
  const renamed = `${into}/mine`
  renameSync(kept, renamed)
  fails(() => undoRestore(renamed, { dryRun: false }), 'CATALOG_DAMAGED')
})

plan('two restores in one second keep what they replace apart', async () => {
  const at = await shared()
  const { into, restored } = altered(at)
  await restore(at, into, { overwrite: 'older' })
  const between = look(restored)
  const [second = ''] = (await restore(at, into, { overwrite: 'newer' })).aside
  assert.is(second, `${into}/.backup-replaced-${STAMP}-1`)
  undoRestore(second, { dryRun: false })
  assert.is(look(restored), between)
})

plan(
  '--discard leaves nothing behind, and neither does a restore that replaces nothing',
  async () => {
    const at = await shared()
    for (const change of [{ discards: true, deletes: true }, { overwrite: 'never' }] as const) {
      const { into } = altered(at)
      assert.equal((await restore(at, into, change)).aside, [])
      assert.equal(namesIn(into, /\.backup-/), [])
    }
    const { into, restored } = altered(at)
    for (const name of ['content', 'even', 'newer', 'older']) {
      execFileSync('cp', ['-p', `${at.home}/${name}`, `${restored}/${name}`])
    }
    assert.equal((await restore(at, into)).aside, [], 'a mode alone is set again')
    assert.equal(namesIn(into, /\.backup-/), [])
  },
)

plan('--delete spares what is left out, our own names, and what is kept below them', async () => {
  const at = await shared()
  const { into, restored } = altered(at)
  const spared = `${restored}/added/.backup-replaced-2020-01-01T000000Z`
  mkdirSync(spared)
  mkdirSync(`${restored}/cache`)
  writeFileSync(`${restored}/cache/left out`, '')
  writeFileSync(`${restored}/added/goes`, '')
  const isLeftOut = (path: string): boolean => path.endsWith('left out')
  const { deleted } = await restore(at, into, { deletes: true, discards: true, isLeftOut })
  assert.is(deleted, 3)
  assert.equal(readdirSync(`${restored}/added`), ['.backup-replaced-2020-01-01T000000Z'])
  assert.equal(readdirSync(`${restored}/cache`), ['left out'])
})

plan('bug: links to a file that was replaced stayed links to what had been there', async () => {
  const at = await scene((home) => {
    writeFileSync(`${home}/a`, 'the backup')
    for (const name of ['b', 'c', 'd']) linkSync(`${home}/a`, `${home}/${name}`)
  })
  const states = async (
    overwrite: OverwritePolicy,
    fill: (restored: string) => void,
    decide?: Change['decide'],
  ) => {
    const into = `${root}/into-${++places}`
    const restored = into + at.home
    mkdirSync(restored, { recursive: true })
    fill(restored)
    const change = { overwrite, ...(decide === undefined ? {} : { decide }) }
    const outcome = await restore(at, into, change)
    assert.equal(outcome.failures, [], overwrite)
    const names = ['a', 'b', 'c', 'd']
    const texts = names.map((name) => readFileSync(`${restored}/${name}`, 'utf8'))
    const inodes = names.map((name) => statSync(`${restored}/${name}`).ino)
    return { texts, inodes: inodes.map((one) => inodes.indexOf(one)), outcome, into }
  }
  const foreign = (restored: string): void => {
    writeFileSync(`${restored}/a`, 'foreign')
    linkSync(`${restored}/a`, `${restored}/b`)
  }
  // Of the same size and time: only reading tells.
  const alike = (restored: string): void => {
    writeFileSync(`${restored}/a`, 'THE BACKUP')
    setTimes(`${restored}/a`, statSync(`${at.home}/a`, { bigint: true }))
    linkSync(`${restored}/a`, `${restored}/b`)
  }
  for (const fill of [foreign, alike]) {
    const { texts, inodes, outcome, into } = await states('always', fill)
    assert.equal([texts, inodes], [Array(4).fill('the backup'), [0, 0, 0, 0]])
    const before = `${into}-before`
    mkdirSync(before + at.home, { recursive: true })
    fill(before + at.home)
    undoRestore(outcome.aside[0] ?? '', { dryRun: false })
    const back = ['a', 'b'].map((name) => readFileSync(into + at.home + `/${name}`, 'utf8'))
    assert.equal(back, fill === foreign ? ['foreign', 'foreign'] : ['THE BACKUP', 'THE BACKUP'])
    assert.equal(readdirSync(into + at.home), ['a', 'b'])
  }
  const kept = await states('never', foreign)
  assert.equal(kept.texts, ['foreign', 'foreign', 'the backup', 'the backup'])
  assert.equal(kept.inodes, [0, 0, 2, 2])
  assert.is(kept.outcome.kept.length, 2)
  // Decided only when somebody was asked.
  const all = await states('ask', foreign, async (one) => {
    return await Promise.resolve(withAnswers(one, () => true))
  })
  assert.equal([all.texts, all.inodes], [Array(4).fill('the backup'), [0, 0, 0, 0]])
})

plan('what is of another kind is left alone and named, and the rest is restored', async () => {
  const at = await shared()
  const into = `${root}/into-${++places}`
  const restored = into + at.home
  mkdirSync(`${restored}/older/below`, { recursive: true })
  writeFileSync(`${restored}/sub`, 'a file')
  symlinkSync('/nowhere', `${restored}/newer`)
  const { kept, failures } = await restore(at, into)
  assert.equal(kept, [`${at.home.slice(1)}/older`])
  const below = ['sub', 'sub/deep', 'sub/deep/lost', 'sub/even-too', 'sub/made']
  assert.equal(
    failures.map(({ path, code }) => [path, code]),
    below.map((name) => [`${at.home.slice(1)}/${name}`, 'UNSAFE_PATH']),
  )
  assert.is(readFileSync(`${restored}/sub`, 'utf8'), 'a file')
  assert.equal(readdirSync(`${restored}/older`), ['below'])
  assert.is(readFileSync(`${restored}/newer`, 'utf8'), "the backup's newer")
})

plan('names that a restore uses are refused by name, with all below them', async () => {
  const at = await scene((home) => {
    mkdirSync(`${home}/.backup-restore-3.partial`)
    writeFileSync(`${home}/.backup-restore-3.partial/below`, '')
    writeFileSync(`${home}/.backup-restore-0.partial`, 'mine')
    mkdirSync(`${home}/.backup-replaced-2020-01-01T000000Z`)
    writeFileSync(`${home}/.backup-replaced-2020-01-01T000000Z/kept`, 'old')
  })
  const into = `${root}/into-${++places}`
  mkdirSync(into)
  const { failures } = await restore(at, into)
  assert.equal(
    failures.map(({ path, code }) => [path.slice(at.home.length), code]),
    ['0.partial', '3.partial', '3.partial/below'].map((end) => {
      return [`.backup-restore-${end}`, 'UNSAFE_PATH']
    }),
  )
  // What an earlier restore kept aside is somebody's like all else.
  assert.equal(readdirSync(into + at.home), ['.backup-replaced-2020-01-01T000000Z'])
})

if (isRoot) {
  plan('on other filesystems: kept aside where it was, deleted from none', async () => {
    const whole = await shared()
    // No hard link leads to another filesystem.
    const entries = whole.selection.entries.filter(({ type }) => type !== 'link')
    const at = { ...whole, selection: { ...whole.selection, entries } }
    for (const type of ['tmpfs', 'exfat']) {
      const { into, restored } = altered(at)
      chmodSync(`${restored}/mode`, 0o644)
      rmSync(`${restored}/sub`, { recursive: true })
      mkdirSync(`${restored}/sub`)
      const drive = type === 'exfat' ? driveImage({ type, label: 'R1' }) : undefined
      const place = `${restored}/sub`
      if (drive === undefined) {
        execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=4m,mode=755', 'none', place])
      } else execFileSync('mount.exfat-fuse', [drive.device, place], { stdio: 'ignore' })
      try {
        writeFileSync(`${restored}/sub/made`, 'what was there')
        writeFileSync(`${restored}/sub/stays`, 'stays')
        const before = look(into)
        const { aside, failures } = await restore(at, into, { deletes: true })
        assert.equal(failures, [], type)
        assert.is(readFileSync(`${restored}/sub/made`, 'utf8'), "the backup's sub/made")
        assert.ok(existsSync(`${restored}/sub/stays`), type)
        assert.is(aside.length, 2)
        const below = `${restored}/sub/.backup-replaced-${STAMP}`
        assert.ok(aside.includes(below))
        assert.is(readFileSync(`${below}${at.home}/sub/made`, 'utf8'), 'what was there')
        for (const one of aside) {
          assert.equal(undoRestore(one, { dryRun: false }).left, [], `${type} ${one}`)
        }
        assert.is(look(into), before, type)
      } finally {
        execFileSync('umount', [`${restored}/sub`])
        drive?.detach()
      }
    }
  })

  plan('a place that is read-only, full or immutable is named path by path', async () => {
    const whole = await shared()
    const entries = whole.selection.entries.filter(({ type }) => type !== 'link')
    const at = { ...whole, selection: { ...whole.selection, entries } }
    const { into, restored } = altered(at)
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'none', `${restored}/sub`])
    try {
      writeFileSync(`${restored}/sub/made`, 'what was there')
      execFileSync('mount', ['-o', 'remount,ro', `${restored}/sub`])
      const { failures } = await restore(at, into)
      assert.ok(failures.some(({ path }) => path.endsWith('sub/made')))
      assert.ok(failures.every(({ path }) => path.includes('/sub')))
      assert.is(readFileSync(`${restored}/sub/made`, 'utf8'), 'what was there')
      assert.is(readFileSync(`${restored}/older`, 'utf8'), "the backup's older")
      execFileSync('mount', ['-o', 'remount,rw', `${restored}/sub`])
      script('cat /dev/zero >"$1/full" 2>/dev/null || true', `${restored}/sub`)
      const full = await restore(at, into)
      assert.ok(full.failures.some(({ path }) => path.endsWith('sub/made')))
      assert.is(readFileSync(`${restored}/sub/made`, 'utf8'), 'what was there')
      rmSync(`${restored}/sub/full`)
      assert.equal((await restore(at, into)).failures, [])
      assert.is(readFileSync(`${restored}/sub/made`, 'utf8'), "the backup's sub/made")
    } finally {
      execFileSync('umount', [`${restored}/sub`])
    }
    writeFileSync(`${restored}/older`, 'immutable')
    execFileSync('chattr', ['+i', `${restored}/older`])
    try {
      const { failures } = await restore(at, into)
      assert.equal(
        failures.map(({ path }) => path),
        [`${at.home.slice(1)}/older`],
      )
      assert.is(readFileSync(`${restored}/older`, 'utf8'), 'immutable')
    } finally {
      execFileSync('chattr', ['-i', `${restored}/older`])
    }
    assert.equal(namesIn(into, /\.partial$/), [])
  })

  plan('whether there is room is asked before anything is written', async () => {
    const at = await scene((home) => writeFileSync(`${home}/large`, Buffer.alloc(3_000_000, 'x')))
    const into = `${root}/into-${++places}`
    mkdirSync(into)
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'none', into])
    try {
      let code: string | undefined
      await restore(at, into, { checksRoom: true }).catch((error: BackupError) => {
        code = error.code
      })
      assert.is(code, 'RESTORE_FULL')
      assert.equal(readdirSync(into), [])
      const { failures } = await restore(at, into)
      assert.is(failures.length, 1)
      assert.equal(namesIn(into, /large|partial/), [])
    } finally {
      execFileSync('umount', [into])
    }
  })
}

plan('a directory that nobody may write gets its mode when all is in it', async () => {
  const at = await scene((home) => {
    mkdirSync(`${home}/closed`)
    writeFileSync(`${home}/closed/file`, 'x')
    chmodSync(`${home}/closed`, 0o555)
  })
  const into = `${root}/into-${++places}`
  mkdirSync(into)
  assert.equal((await restore(at, into)).failures, [])
  assert.is(lstatSync(`${into}${at.home}/closed`).mode & 0o7777, 0o555)
  assert.equal((await restore(at, into)).same, 1)
})

plan.run()
