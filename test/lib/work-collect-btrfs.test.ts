import { execFileSync, spawn, spawnSync } from 'node:child_process'
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import type { SetConfiguration } from '../../lib/machine/config.ts'
import { setTimes } from '../../lib/machine/posix.ts'
import {
  mountOf,
  mountsBelow,
  parseMountInfo,
  parseMountLines,
} from '../../lib/machine/source-snapshot/mounts.ts'
import type { NoticeEvent } from '../../lib/model/report.ts'
import { type CollectOutcome, collectSet } from '../../lib/work/collect.ts'
import { readCollection } from '../../lib/work/staging.ts'
import * as assert from '../helpers/assert.ts'
import { configurationOf, setConfiguration } from '../helpers/configuration.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const btrfs = suite('machine/source-snapshot/btrfs')
const root = tempDirectory()
const home = `${root}/home`
const staging = `${root}/staging`
let top = ''
const notices: NoticeEvent[] = []
let nextDay = 0
let killed = 0

const run = (program: string, ...args: string[]): string =>
  execFileSync(program, args, { encoding: 'utf8' })

function mount(...args: string[]): void {
  mkdirSync(args.at(-1) ?? '', { recursive: true })
  run('mount', ...args)
}

const subvolume = (path: string): void => {
  run('btrfs', '-q', 'subvolume', 'create', path)
}

/** Ours at the end, ours in a view that a failed test left. */
function unmountAll(): void {
  const points = readFileSync('/proc/self/mountinfo', 'latin1')
    .split('\n')
    .map((line) => line.split(' ')[4] ?? '')
    .filter((point) => point.startsWith(`${root}/`))
  for (const point of points.reverse()) spawnSync('umount', ['--lazy', point])
}

/**
 * A btrfs image with the subvolumes @home (mounted at `home`) and, in it, `nested`; its top is
 * mounted at `top`.
 */
function setUp(): void {
  top = loopDevice({ sizeMib: 256, type: 'btrfs' }).path
  process.prependListener('exit', unmountAll)
  const device = run('findmnt', '-no', 'SOURCE', top).trim()
  subvolume(`${top}/@home`)
  mount('-o', 'subvol=@home', device, home)
  mkdirSync(`${home}/me/docs`, { recursive: true })
  writeFileSync(`${home}/me/docs/file`, 'content')
  writeFileSync(`${home}/me/env.sh`, 'single')
  chmodSync(`${home}/me`, 0o710)
  setTimes(`${home}/me`, { mtimeNs: 1_700_000_000_123_456_789n })
  mkdirSync(`${root}/me`)
  symlinkSync(`${home}/me/docs`, `${root}/me/docs-link`)
}

const collect = async (
  change: Partial<SetConfiguration> & { day?: number } = {},
): Promise<CollectOutcome> => {
  const { day = nextDay++, ...rest } = change
  const retention = { local: 20, external: 5, keep: {} }
  const set = setConfiguration({
    sources: [`${home}/me`],
    snapshot: 'required',
    retention,
    ...rest,
  })
  const configuration = configurationOf(set, { staging })
  notices.length = 0
  return await collectSet({
    configuration,
    set,
    nowMs: Date.UTC(2025, 3, 1 + day),
    report: (event) => void (event.kind === 'notice' && notices.push(event)),
  })
}

const oneFilesystem = { ...setConfiguration().filters, oneFilesystem: true }

const failureOf = async (work: Promise<unknown>): Promise<BackupError> => {
  const error = await work.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  assert.ok(error instanceof BackupError, String(error))
  return error
}

/** Runs `work` with a shell script before a program of this name on PATH. */
async function withStandIn<T>(
  { name, script }: { name: string; script: string },
  work: () => Promise<T>,
): Promise<T> {
  const path = process.env['PATH']
  const directory = tempDirectory()
  writeFileSync(`${directory}/${name}`, `#!/bin/sh\n${script}\n`, { mode: 0o755 })
  process.env['PATH'] = `${directory}:${path}`
  try {
    return await work()
  } finally {
    process.env['PATH'] = path
  }
}

/** Kills a run of the set with SIGKILL as soon as it copies; returns its stamp. */
async function killedWhileCopying(): Promise<string> {
  const module = new URL('../../lib/work/collect.js', import.meta.url).href
  const set = setConfiguration({ sources: [`${home}/me`], snapshot: 'required' })
  const options = {
    set,
    configuration: configurationOf(set, { staging }),
    nowMs: Date.UTC(2025, 4, 20) + killed++ * 30 * 86_400_000,
  }
  const script = `
    import { collectSet } from ${JSON.stringify(module)}
    await collectSet({ ...${JSON.stringify(options)}, report: () => {} })`
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  const partial = (): string | undefined =>
    readdirSync(`${staging}/home`).find((name) => name.endsWith('.partial'))
  while (partial() === undefined && child.exitCode === null) await sleep(1)
  const stamp = partial()?.replace('.partial', '') ?? ''
  child.kill('SIGKILL')
  assert.is.not(stamp, '', 'the run ended before it could be killed')
  await sleep(200)
  return stamp
}

/** Nothing of ours is mounted, no snapshot is left, and no state but what belongs there. */
function assertTidy(): void {
  const ours = readFileSync('/proc/self/mountinfo', 'latin1')
    .split('\n')
    .filter((line) => line.includes(`${staging}/`))
  assert.equal(ours, [])
  assert.equal(
    readdirSync(top).filter((name) => name.startsWith('backup-')),
    [],
  )
  assert.equal(
    readdirSync(`${staging}/.state`).filter(
      (name) => name !== 'versions' && !/^home\.(lock|boot)$/.test(name),
    ),
    [],
  )
}

btrfs('parses mount points of any name', () => {
  const text =
    '1 0 0:1 / / rw - ext4 /dev/sda rw\n'
    + '2 1 0:2 /@ /mnt/a\\040b\\012c rw,x shared:1 - btrfs /dev/sdb rw\n'
    + '3 2 0:3 / /mnt/a\\040b\\012c/d rw - tmpfs none rw\n'
  const mounts = parseMountInfo(text)
  assert.equal(mounts[1], { root: '/@', point: '/mnt/a b\nc', type: 'btrfs', device: '/dev/sdb' })
  assert.is(mountOf('/mnt/a b\nc/x', mounts)?.type, 'btrfs')
  assert.is(mountOf('/mnt/a b\ncx', mounts)?.type, 'ext4')
  assert.equal(
    mountsBelow('/mnt', mounts).map(({ type }) => type),
    ['btrfs', 'tmpfs'],
  )
})

btrfs('reads the table of mounts as macOS prints it', () => {
  const lines = [
    '/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)',
    'map auto_home on /System/Volumes/Data/home (autofs, automounted, nobrowse)',
    '/dev/disk5s2 on /Volumes/My Disk (2) (hfs, local)',
    'no mount',
  ]
  assert.equal(parseMountLines(lines), [
    { root: '/', point: '/', type: 'apfs', device: '/dev/disk3s1s1' },
    { root: '/', point: '/System/Volumes/Data/home', type: 'autofs', device: 'map auto_home' },
    { root: '/', point: '/Volumes/My Disk (2)', type: 'hfs', device: '/dev/disk5s2' },
  ])
})

if (canRunAsRoot('btrfs loop mount')) {
  setUp()

  btrfs('collects from a snapshot under the same paths, and leaves nothing behind', async () => {
    setTimes(top, { mtimeNs: 1_600_000_000_000_000_001n })
    const { stamp, complete, missing } = await collect()
    assert.equal(missing, [])
    assert.ok(complete)
    assert.equal(notices, [])
    const tree = `${staging}/home/${stamp}${home}`
    assert.is(readFileSync(`${tree}/me/docs/file`, 'utf8'), 'content')
    assert.is(run('rsync', '-aHAXSnic', '--delete', `${home}/me/`, `${tree}/me/`), '')
    const { header, entries } = readCollection({ staging, set: 'home', stamp })
    const [source] = header.sources
    assert.is(header.sources.length, 1)
    assert.is(source?.path, `${home}/me`.slice(1))
    assert.is(source?.snapshot, 'btrfs')
    assert.ok(stamp <= (source?.time ?? ''), `${source?.time}`)
    for (const path of [root, home, `${home}/me`]) {
      const entry = entries.find((one) => `/${one.path}` === path)
      const { mtimeNs, mode } = statSync(path, { bigint: true })
      if (path !== root) assert.is(entry?.mtimeNs, mtimeNs, path)
      assert.is(entry?.mode, Number(mode & 0o7777n), path)
    }
    assert.is(statSync(top, { bigint: true }).mtimeNs, 1_600_000_000_000_000_001n)
    assertTidy()
  })

  btrfs('what is written while it collects is of the instant of the snapshot', async () => {
    // Two files that are always renamed together, a log, and files that come and go: at every
    // instant there are those of a run of consecutive numbers, at most 21. Only names tell of the
    // instant: how much of a file being written is in a snapshot is the kernel's affair.
    const script = `i=0; : > a-0; : > z-0; while :; do i=$((i+1))
      mv a-$((i-1)) a-$i; mv z-$((i-1)) z-$i
      echo $i >> log; : > come-$i; rm -f come-$((i-20)); echo $i > now.new; mv now.new now; done`
    mkdirSync(`${home}/me/busy`)
    subvolume(`${home}/me/busy/nested`)
    writeFileSync(`${home}/me/busy/nested/file`, 'nested')
    for (let i = 0; i < 800; i++) writeFileSync(`${home}/me/busy/filler-${i}`, `${i}`)
    // rsync is held up while the writer goes on, and keeps a copy of the snapshot that it reads.
    const rsync = run('sh', '-c', 'command -v rsync').trim()
    const keep = `for each in ${top}/backup-home-*; do
        btrfs -q subvolume snapshot -r "$each" "${top}/kept-\${each##*/}" || exit 99
      done
      until=$(($(cat ${home}/me/busy/now) + 30))
      while [ $(cat ${home}/me/busy/now) -lt $until ]; do sleep 0.05; done
      exec ${rsync} "$@"`
    const writer = spawn('sh', ['-c', script], { cwd: `${home}/me/busy`, stdio: 'ignore' })
    while (!existsSync(`${home}/me/busy/come-30`)) await sleep(10)
    const outcome = await withStandIn({ name: 'rsync', script: keep }, () => collect()).finally(
      () => writer.kill('SIGKILL'),
    )
    const reached = Number(readFileSync(`${home}/me/busy/now`, 'utf8'))
    assert.equal(outcome.missing, [])
    assert.equal(notices, [])
    const tree = `${staging}/home/${outcome.stamp}${home}/me/busy`
    const numbersOf = (kind: string): number[] =>
      readdirSync(tree)
        .flatMap((name) => new RegExp(`^${kind}-(\\d+)$`).exec(name)?.[1] ?? [])
        .map(Number)
        .sort((one, other) => one - other)
    const [a, ...moreA] = numbersOf('a')
    const [z, ...moreZ] = numbersOf('z')
    assert.equal([...moreA, ...moreZ], [])
    assert.ok(a !== undefined && reached > a + 20, `the writer went from ${a} to ${reached} only`)
    assert.ok(a === z || a === (z ?? 0) + 1, `${a} and ${z}`)
    const numbers = numbersOf('come')
    assert.ok(numbers.length >= 20 && numbers.length <= 21, `${numbers}`)
    assert.is((numbers.at(-1) ?? 0) - (numbers[0] ?? 0), numbers.length - 1)
    assert.ok([a, a - 1].includes(numbers.at(-1) ?? 0))
    const kept = readdirSync(top)
      .filter((name) => name.startsWith('kept-'))
      .sort()
    assert.is(kept.length, 2)
    const compare = ['-aHAXSnic', '--delete', '--exclude=/nested/']
    assert.is(run('rsync', ...compare, `${top}/${kept[0]}/me/busy/`, `${tree}/`), '')
    assert.is(run('rsync', '-aHAXSnic', '--delete', `${top}/${kept[1]}/`, `${tree}/nested/`), '')
    run('btrfs', '-q', 'subvolume', 'delete', ...kept.map((name) => `${top}/${name}`))
    run('btrfs', '-q', 'subvolume', 'delete', `${home}/me/busy/nested`)
    rmSync(`${home}/me/busy`, { recursive: true })
    assertTidy()
  })

  btrfs('links unchanged files, although every snapshot is a device of its own', async () => {
    const first = await collect()
    const second = await collect()
    const file = (stamp: string): number =>
      lstatSync(`${staging}/home/${stamp}${home}/me/docs/file`).ino
    assert.is(file(first.stamp), file(second.stamp))
    assert.is(second.copiedFiles, 0)
  })

  btrfs('collects a single file and a link to a directory from a snapshot', async () => {
    const { stamp, complete } = await collect({
      sources: [`${home}/me/env.sh`, `${root}/me/docs-link`],
    })
    assert.ok(complete)
    assert.is(readFileSync(`${staging}/home/${stamp}${home}/me/env.sh`, 'utf8'), 'single')
    assert.is(readFileSync(`${staging}/home/${stamp}${root}/me/docs-link/file`, 'utf8'), 'content')
    assert.not.ok(existsSync(`${staging}/home/${stamp}${home}/me/docs`))
    assertTidy()
  })

  btrfs(
    'collects the whole filesystem with its top mounted, and a subvolume mounted below',
    async () => {
      mkdirSync(`${top}/plain`)
      writeFileSync(`${top}/plain/file`, 'at the top')
      const { stamp, missing } = await collect({ sources: [top, home] })
      assert.equal(missing, [])
      const tree = `${staging}/home/${stamp}`
      assert.is(readFileSync(`${tree}${top}/plain/file`, 'utf8'), 'at the top')
      assert.is(readFileSync(`${tree}${home}/me/env.sh`, 'utf8'), 'single')
      assert.equal(readdirSync(`${tree}${top}`).sort(), ['@home', 'plain'])
      assert.is(readFileSync(`${tree}${top}/@home/me/env.sh`, 'utf8'), 'single')
      assertTidy()
    },
  )

  btrfs('mounts nested subvolumes back into their places, those in them, too', async () => {
    const odd = `${home}/me/nested\n2`
    subvolume(odd)
    mkdirSync(`${odd}/plain`)
    subvolume(`${odd}/plain/in\xe9ner`)
    writeFileSync(`${odd}/file`, 'outer')
    writeFileSync(`${odd}/plain/in\xe9ner/file`, 'inner')
    mkdirSync(`${home}/me/excluded/deep`, { recursive: true })
    subvolume(`${home}/me/excluded/deep/big`)
    writeFileSync(`${home}/me/excluded/deep/big/file`, 'not wanted')
    mkdirSync(`${home}/me/really-empty`)
    const exclusions = ['excluded/']
    for (const filters of [setConfiguration().filters, oneFilesystem]) {
      const { stamp, missing } = await collect({ exclusions, filters })
      assert.equal(missing, [])
      const tree = `${staging}/home/${stamp}`
      assert.is(readFileSync(`${tree}${odd}/file`, 'utf8'), 'outer')
      const compare = ['-aHAXSnic', '--delete', '--exclude=excluded/']
      assert.is(run('rsync', ...compare, `${home}/me/`, `${tree}${home}/me/`), '')
      assert.not.ok(existsSync(`${tree}${home}/me/excluded`))
      assertTidy()
    }
    const inner = `${odd}/plain/in\xe9ner`
    const { stamp, missing } = await collect({ sources: [inner, `${odd}/file`] })
    assert.equal(missing, [])
    assert.is(readFileSync(`${staging}/home/${stamp}${inner}/file`, 'utf8'), 'inner')
    assert.is(readFileSync(`${staging}/home/${stamp}${odd}/file`, 'utf8'), 'outer')
    assertTidy()
    for (const path of [inner, odd, `${home}/me/excluded/deep/big`])
      run('btrfs', '-q', 'subvolume', 'delete', path)
    rmSync(`${home}/me/excluded`, { recursive: true })
  })

  btrfs('shows no nested subvolume where something else is mounted over it', async () => {
    mkdirSync(`${home}/me/over`)
    subvolume(`${home}/me/over/nested`)
    writeFileSync(`${home}/me/over/nested/hidden`, 'x')
    mount('-t', 'tmpfs', 'none', `${home}/me/over`)
    mkdirSync(`${home}/me/over/nested`)
    writeFileSync(`${home}/me/over/nested/seen`, 'x')
    const { stamp, missing } = await collect()
    assert.equal(missing, [])
    assert.equal(readdirSync(`${staging}/home/${stamp}${home}/me/over/nested`), ['seen'])
    run('umount', `${home}/me/over`)
    run('btrfs', '-q', 'subvolume', 'delete', `${home}/me/over/nested`)
    assertTidy()
  })

  btrfs('names a nested subvolume it cannot snapshot, unless it is excluded', async () => {
    // A name may look like a line of the list of subvolumes: then it is not found.
    const odd = `${home}/me/nested\nID 9 gen 9 top level 5 path @home`
    for (const path of [`${home}/me/nested\n2`, odd]) {
      subvolume(path)
      writeFileSync(`${path}/file`, 'x')
    }
    const program = run('sh', '-c', 'command -v btrfs').trim()
    const script = `case "$*" in *snapshot*nested*) echo "ERROR: Text file busy" >&2; exit 1;; esac
      exec ${program} "$@"`
    await withStandIn({ name: 'btrfs', script }, async () => {
      const named = await collect()
      assert.equal(
        named.missing.map(({ path }) => `/${path}`),
        [`${home}/me/nested\n2`, odd],
      )
      assert.match(named.missing[0]?.why ?? '', /subvolume.*Text file busy/)
      const excluded = await collect({ exclusions: ['nested*'] })
      assert.equal(excluded.missing, [])
    })
    run('btrfs', '-q', 'subvolume', 'delete', `${home}/me/nested\n2`, odd)
    assertTidy()
  })

  btrfs('takes a snapshot of each filesystem, and records what each source had', async () => {
    const second = loopDevice({ sizeMib: 128, type: 'btrfs' }).path
    const plain = loopDevice({ sizeMib: 16 }).path
    writeFileSync(`${second}/file`, 'second')
    writeFileSync(`${plain}/file`, 'plain')
    const sources = [`${home}/me`, second, plain]
    const { stamp, missing } = await collect({ sources, snapshot: 'auto' })
    assert.equal(missing, [])
    assert.is(readFileSync(`${staging}/home/${stamp}${second}/file`, 'utf8'), 'second')
    assert.is(readFileSync(`${staging}/home/${stamp}${plain}/file`, 'utf8'), 'plain')
    const { header } = readCollection({ staging, set: 'home', stamp })
    assert.equal(
      header.sources.map(({ path, snapshot }) => [`/${path}`, snapshot]),
      [
        [`${home}/me`, 'btrfs'],
        [second, 'btrfs'],
        [plain, 'none'],
      ],
    )
    assert.equal(
      notices.map(({ code, message }) => [code, /on ext4/.test(message), message.includes(plain)]),
      [['NOT_ATOMIC', true, true]],
    )
    assert.equal(readdirSync(second), ['file'])
    assertTidy()
    await collect({ sources, snapshot: 'none' })
    assert.equal(notices, [])
    const before = readdirSync(`${staging}/home`)
    const error = await failureOf(collect({ sources }))
    assert.is(error.code, 'SNAPSHOT_FAILED')
    assert.match(error.message, plain)
    assert.not.match(error.message, second)
    assert.equal(readdirSync(`${staging}/home`), before)
    assertTidy()
  })

  btrfs('goes into other filesystems below a source as rsync does, an empty one, too', async () => {
    run('truncate', '-s', '16M', `${root}/ext4`)
    run('mkfs.ext4', '-q', `${root}/ext4`)
    mount('-o', 'loop', `${root}/ext4`, `${home}/me/other`)
    const empty = await collect()
    assert.equal(empty.missing, [])
    writeFileSync(`${home}/me/other/file`, 'on ext4')
    const { stamp } = await collect()
    assert.is(readFileSync(`${staging}/home/${stamp}${home}/me/other/file`, 'utf8'), 'on ext4')
    assert.equal(
      notices.map(({ code, message }) => [code, message.includes(`${home}/me/other`)]),
      [['NOT_ATOMIC', true]],
    )
    const { stamp: alone } = await collect({ filters: oneFilesystem })
    assert.equal(readdirSync(`${staging}/home/${alone}${home}/me/other`), [])
    assert.equal(notices, [])
    run('umount', `${home}/me/other`)
    assertTidy()
  })

  btrfs(
    'says so when no snapshot can be taken, and reads the files as they are unless one is required',
    async () => {
      const script = 'echo "ERROR: quota" >&2; exit 1'
      await withStandIn({ name: 'btrfs', script }, async () => {
        const error = await failureOf(collect())
        assert.is(error.code, 'SNAPSHOT_FAILED')
        assert.match(error.message, 'ERROR: quota')
        assertTidy()
        const { complete } = await collect({ snapshot: 'auto' })
        assert.ok(complete)
        assert.match(notices.find(({ code }) => code === 'NOT_ATOMIC')?.message ?? '', 'quota')
      })
      assertTidy()
    },
  )

  btrfs('sweeps what a killed run left, and no snapshot of anybody else', async () => {
    // Named like ours and not written down: one of another day, and the very name of the next run.
    const foreign = ['backup-home-2024-01-01T000000Z', 'backup-home-2025-05-31T000000Z']
    for (const name of foreign)
      run('btrfs', '-q', 'subvolume', 'snapshot', '-r', `${top}/@home`, `${top}/${name}`)
    subvolume(`${home}/me/nested`)
    const identities = (): string[] =>
      foreign.map((name) => run('btrfs', 'subvolume', 'show', `${top}/${name}`))
    const before = identities()
    writeFileSync(`${home}/me/large`, Buffer.alloc(60_000_000, 'x'))
    await killedWhileCopying()
    const left = readdirSync(top).filter((name) => name.startsWith('backup-home-2025-05-20'))
    assert.is(left.length, 2)
    const { missing, stamp } = await collect({ day: 60 })
    assert.equal(missing, [])
    assert.is(stamp, '2025-05-31T000000Z')
    assert.equal(identities(), before)
    run('btrfs', '-q', 'subvolume', 'delete', ...foreign.map((name) => `${top}/${name}`))
    assertTidy()
    assert.equal(
      readdirSync(`${staging}/home`).filter((name) => name.includes('partial')),
      [],
    )
    run('btrfs', '-q', 'subvolume', 'delete', `${home}/me/nested`)
  })

  btrfs('removes nothing that somebody makes before it does, under its names', async () => {
    subvolume(`${home}/me/nested`)
    const program = run('sh', '-c', 'command -v btrfs').trim()
    const ours = (): string[] => readdirSync(top).filter((name) => name.startsWith('backup-'))
    const records = (): string[] =>
      readdirSync(`${staging}/.state`).filter((name) => name.startsWith('snapshots-'))
    // The first name while the command for it begins, the second one before its command begins.
    const script = `case "$*" in *snapshot*-r*)
        for dest; do :; done; mkdir "$dest-2"; ${program} "$@" || exit 99;; esac
      exec ${program} "$@"`
    await withStandIn({ name: 'btrfs', script }, async () => {
      const error = await failureOf(collect({ day: 80 }))
      assert.match(error.message, /Read-only|exists/)
    })
    const name = 'backup-home-2025-06-20T000000Z'
    assert.equal(ours(), [name, `${name}-2`])
    assert.equal(records(), [])
    run('btrfs', '-q', 'subvolume', 'delete', `${top}/${name}`)
    assert.equal(readdirSync(`${top}/${name}-2`), [])
    rmSync(`${top}/${name}-2`, { recursive: true })
    const killing = `case "$*" in *snapshot*-r*) ${program} "$@"; kill -9 $$;; esac
      exec ${program} "$@"`
    await withStandIn({ name: 'btrfs', script: killing }, async () => {
      assert.match((await failureOf(collect({ day: 81 }))).message, 'killed')
    })
    run('btrfs', '-q', 'subvolume', 'delete', `${home}/me/nested`)
    assertTidy()
  })

  btrfs('leaves out what a killed run of another set left in a source', async () => {
    writeFileSync(`${home}/me/large`, Buffer.alloc(60_000_001, 'x'))
    const stamp = await killedWhileCopying()
    assert.ok(existsSync(`${top}/backup-home-${stamp}`))
    const other = await collect({ day: 70, name: 'other', sources: [top] })
    assert.equal(other.missing, [])
    const tree = `${staging}/other/${other.stamp}${top}`
    assert.equal(
      readdirSync(tree).filter((name) => name.startsWith('backup-')),
      [],
    )
    assert.ok(existsSync(`${tree}/@home/me/large`))
    assert.ok(existsSync(`${top}/backup-home-${stamp}`))
    await collect({ day: 71 })
    assert.not.ok(existsSync(`${top}/backup-home-${stamp}`))
    rmSync(`${staging}/other`, { recursive: true })
    for (const name of ['lock', 'boot']) rmSync(`${staging}/.state/other.${name}`, { force: true })
    assertTidy()
  })
}

btrfs.run()
