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
import * as assert from 'uvu/assert'
import { BackupError } from '../../lib/errors.ts'
import type { SetConfiguration } from '../../lib/machine/config.ts'
import { setTimes } from '../../lib/machine/posix.ts'
import { parseMountInfo, mountOf, mountsBelow } from '../../lib/machine/source-snapshot/mounts.ts'
import type { NoticeEvent } from '../../lib/model/report.ts'
import { type CollectOutcome, collectSet } from '../../lib/work/collect.ts'
import { readCollection } from '../../lib/work/staging.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { configurationOf, setConfiguration } from '../helpers/configuration.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const btrfs = suite('machine/source-snapshot/btrfs')
const root = tempDirectory()
const top = `${root}/top`
const home = `${root}/home`
const staging = `${root}/staging`
const mounted: string[] = []
const notices: NoticeEvent[] = []

const run = (program: string, ...args: string[]): string =>
  execFileSync(program, args, { encoding: 'utf8' })

function mount(...args: string[]): void {
  const point = args.at(-1) ?? ''
  mkdirSync(point, { recursive: true })
  run('mount', ...args)
  mounted.unshift(point)
}

/**
 * A btrfs image with the subvolumes @home (mounted at `home`) and, in it, `nested`; its top is
 * mounted at `top`.
 */
function setUp(): void {
  run('truncate', '-s', '256M', `${root}/image`)
  run('mkfs.btrfs', '-q', `${root}/image`)
  mount('-o', 'loop', `${root}/image`, top)
  const device = run('findmnt', '-no', 'SOURCE', top).trim()
  run('btrfs', '-q', 'subvolume', 'create', `${top}/@home`)
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
  const { day = 0, ...rest } = change
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
    readdirSync(`${staging}/.state`).filter((name) => !/^home\.(lock|boot)$/.test(name)),
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
    assert.equal(header.sources, [{ path: `${home}/me`.slice(1), snapshot: 'btrfs', time: stamp }])
    for (const path of [root, home, `${home}/me`]) {
      const entry = entries.find((one) => `/${one.path}` === path)
      const { mtimeNs, mode } = statSync(path, { bigint: true })
      if (path !== root) assert.is(entry?.mtimeNs, mtimeNs, path)
      assert.is(entry?.mode, Number(mode & 0o7777n), path)
    }
    assert.is(statSync(top, { bigint: true }).mtimeNs, 1_600_000_000_000_000_001n)
    assertTidy()
  })

  btrfs('what is written while it collects is of one moment', async () => {
    // A writer that keeps two files equal: never may one be ahead of the other by more than one
    // step.
    const script =
      'i=0; while :; do i=$((i+1)); echo $i > a.new; mv a.new a; echo $i > z.new; mv z.new z; done'
    mkdirSync(`${home}/me/pair`)
    for (let i = 0; i < 800; i++) writeFileSync(`${home}/me/pair/filler-${i}`, `${i}`)
    const writer = spawn('sh', ['-c', script], { cwd: `${home}/me/pair`, stdio: 'ignore' })
    await sleep(100)
    const { stamp, complete } = await collect({ day: 1 })
    writer.kill('SIGKILL')
    assert.ok(complete)
    const tree = `${staging}/home/${stamp}${home}/me/pair`
    const [a, z] = ['a', 'z'].map((name) => Number(readFileSync(`${tree}/${name}`, 'utf8')))
    assert.ok(a === z || a === (z ?? 0) + 1, `${a} and ${z}`)
    rmSync(`${home}/me/pair`, { recursive: true })
    assertTidy()
  })

  btrfs('links unchanged files, although every snapshot is a device of its own', async () => {
    const first = await collect({ day: 2 })
    const second = await collect({ day: 3 })
    const file = (stamp: string): number =>
      lstatSync(`${staging}/home/${stamp}${home}/me/docs/file`).ino
    assert.is(file(first.stamp), file(second.stamp))
    assert.is(second.copiedFiles, 0)
  })

  btrfs('collects a single file and a link to a directory from a snapshot', async () => {
    const { stamp, complete } = await collect({
      day: 4,
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
      const { stamp, missing } = await collect({ day: 5, sources: [top, home] })
      assert.equal(
        missing.map(({ path }) => `/${path}`),
        [`${top}/@home`],
      )
      const tree = `${staging}/home/${stamp}`
      assert.is(readFileSync(`${tree}${top}/plain/file`, 'utf8'), 'at the top')
      assert.is(readFileSync(`${tree}${home}/me/env.sh`, 'utf8'), 'single')
      assert.equal(readdirSync(`${tree}${top}`).sort(), ['@home', 'plain'])
      assertTidy()
    },
  )

  btrfs(
    'names a nested subvolume instead of letting it come out empty, unless it is excluded',
    async () => {
      run('btrfs', '-q', 'subvolume', 'create', `${home}/me/nested\n2`)
      writeFileSync(`${home}/me/nested\n2/file`, 'x')
      mkdirSync(`${home}/me/really-empty`)
      const named = await collect({ day: 6 })
      assert.equal(
        named.missing.map(({ path }) => `/${path}`),
        [`${home}/me/nested\n2`],
      )
      assert.match(named.missing[0]?.why ?? '', 'subvolume')
      const excluded = await collect({ day: 7, exclusions: ['nested*'] })
      assert.equal(excluded.missing, [])
      run('btrfs', '-q', 'subvolume', 'delete', `${home}/me/nested\n2`)
      assertTidy()
    },
  )

  btrfs('goes into other filesystems below a source as rsync does, an empty one, too', async () => {
    run('truncate', '-s', '16M', `${root}/ext4`)
    run('mkfs.ext4', '-q', `${root}/ext4`)
    mount('-o', 'loop', `${root}/ext4`, `${home}/me/other`)
    const empty = await collect({ day: 8 })
    assert.equal(empty.missing, [])
    writeFileSync(`${home}/me/other/file`, 'on ext4')
    const { stamp } = await collect({ day: 9 })
    assert.is(readFileSync(`${staging}/home/${stamp}${home}/me/other/file`, 'utf8'), 'on ext4')
    run('umount', mounted.shift() ?? '')
    assertTidy()
  })

  btrfs(
    'says so when no snapshot can be taken, and reads the files as they are unless one is required',
    async () => {
      const away = process.env['PATH']
      mkdirSync(`${root}/bin`)
      writeFileSync(`${root}/bin/btrfs`, '#!/bin/sh\necho "ERROR: quota" >&2; exit 1\n', {
        mode: 0o755,
      })
      process.env['PATH'] = `${root}/bin:${away}`
      try {
        const error = await collect({ day: 10 }).then(
          () => undefined,
          (reason: unknown) => reason,
        )
        assert.ok(error instanceof BackupError && error.code === 'SNAPSHOT_FAILED')
        assert.match(error.message, 'ERROR: quota')
        assertTidy()
        const { complete } = await collect({ day: 11, snapshot: 'auto' })
        assert.ok(complete)
        assert.match(notices.find(({ code }) => code === 'NOT_ATOMIC')?.message ?? '', 'quota')
      } finally {
        process.env['PATH'] = away
      }
      assertTidy()
    },
  )

  btrfs('sweeps what a killed run left, and no snapshot of anybody else', async () => {
    run(
      'btrfs',
      '-q',
      'subvolume',
      'snapshot',
      '-r',
      `${top}/@home`,
      `${top}/backup-home-2024-01-01T000000Z`,
    )
    writeFileSync(`${home}/me/large`, Buffer.alloc(60_000_000, 'x'))
    const module = new URL('../../lib/work/collect.js', import.meta.url).href
    const script = `
      import { collectSet } from ${JSON.stringify(module)}
      const set = {
        name: 'home', sources: ['${home}/me'], exclusions: [], snapshot: 'required',
      }
      const configuration = { staging: '${staging}', targets: [], retention: { local: 20, external: 5 } }
      await collectSet({ configuration, set, report: () => {}, nowMs: ${Date.UTC(2025, 4, 20)} })`
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
      stdio: 'ignore',
    })
    while (readdirSync(`${staging}/home`).every((name) => !name.endsWith('.partial')))
      await sleep(1)
    child.kill('SIGKILL')
    await sleep(200)
    assert.is(
      readdirSync(top).filter((name) => name.startsWith('backup-home-2025-05-20')).length,
      1,
    )
    const { missing } = await collect({ day: 60 })
    assert.equal(missing, [])
    assert.ok(existsSync(`${top}/backup-home-2024-01-01T000000Z`))
    run('btrfs', '-q', 'subvolume', 'delete', `${top}/backup-home-2024-01-01T000000Z`)
    assertTidy()
    assert.equal(
      readdirSync(`${staging}/home`).filter((name) => name.includes('partial')),
      [],
    )
  })

  btrfs.after(() => {
    for (const point of mounted) spawnSync('umount', [point])
  })
}

btrfs.run()
