// Real pools on files, of zfs-fuse, started where none runs. What it lacks (several names in one
// command, `.zfs`, `mount -t zfs`) is put before it by small programs that come first in PATH.

import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { type Mount, mountOf, readMounts } from '../../lib/machine/source-snapshot/mounts.ts'
import type { ProviderRequest } from '../../lib/machine/source-snapshot/source-snapshot.ts'
import { zfsProvider } from '../../lib/machine/source-snapshot/zfs.ts'
import { collectSet } from '../../lib/work/collect.ts'
import { readCollection } from '../../lib/work/staging.ts'
import * as assert from '../helpers/assert.ts'
import { configurationOf, setConfiguration } from '../helpers/configuration.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { withPrograms } from '../helpers/stand-in.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const zfs = suite('machine/source-snapshot/zfs')
const root = tempDirectory()
const state = `${root}/state`
const home = `${root}/home`
const stamp = '2025-04-01T020000Z'
const own = `backup-home-${stamp}`
const pool = `backup-test-${process.pid}`
const second = `${pool}-second`

const run = (program: string, ...args: string[]): string =>
  execFileSync(program, args, { encoding: 'utf8', stdio: 'pipe' })

const real = (name: string): string => run('sh', '-c', `command -v ${name}`).trim()

/** Everything that both pools hold. */
const everything = (): string[] =>
  run('zfs', 'list', '-H', '-o', 'name', '-t', 'all', '-r', pool, second).trim().split('\n')

function request(...sources: string[]): ProviderRequest {
  const mounts = readMounts()
  const parts = sources.map((given) => {
    const mount = mountOf(given, mounts) as Mount
    assert.ok(zfsProvider.takes(mount), given)
    return { given, real: given, mount }
  })
  return { state, set: 'home', stamp, parts, now: () => Date.UTC(2025, 3, 1, 2) }
}

async function failure(action: Promise<unknown>): Promise<BackupError> {
  const error = await action.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  assert.ok(error instanceof BackupError, String(error))
  return error
}

zfs('takes mounted datasets of ZFS and zfs-fuse, and no mounted snapshot', () => {
  const mount = { root: '/', point: '/x' }
  assert.ok(zfsProvider.takes({ ...mount, type: 'zfs', device: 'tank/home' }))
  assert.ok(zfsProvider.takes({ ...mount, type: 'fuse.zfs', device: 'tank' }))
  assert.not(zfsProvider.takes({ ...mount, type: 'zfs', device: 'tank/home@yesterday' }))
  assert.not(zfsProvider.takes({ ...mount, type: 'btrfs', device: '/dev/sda1' }))
})

if (canRunAsRoot('zfs pools on files')) {
  await startZfs()
  for (const [name, file] of [
    [pool, 'first'],
    [second, 'second'],
  ] as const) {
    run('truncate', '-s', '96M', `${root}/${file}.image`)
    const options = ['-f', '-o', 'cachefile=none', '-m', `${root}/${file}`]
    run('zpool', 'create', ...options, name, `${root}/${file}.image`)
  }
  mkdirSync(state)
  run('zfs', 'create', '-o', `mountpoint=${home}`, `${pool}/home`)
  run('zfs', 'create', `${pool}/home/child`)
  run('zfs', 'create', '-o', `mountpoint=${root}/elsewhere`, `${pool}/home/elsewhere`)
  // Nobody's but the user's, however they are called.
  run('zfs', 'snapshot', `${pool}/home@mine`)
  run('zfs', 'snapshot', '-r', `${pool}/home@backup-home-2024-01-01T000000Z`)
  run('zfs', 'snapshot', `${pool}/home/child@backup-other-${stamp}`)
  run('zfs', 'clone', `${pool}/home@mine`, `${pool}/home/backup-home-2024-01-01T000000Z`)
  mkdirSync(`${home}/me`)
  const before = everything()

  const setFiles = (content: string): void => {
    for (const file of [`${home}/me/file`, `${home}/child/file`, `${root}/second/file`])
      writeFileSync(file, content)
  }
  const assertTidy = (): void => {
    assert.equal(everything(), before)
    assert.equal(readdirSync(state), [])
    assert.equal(
      readMounts().filter(({ point }) => point.startsWith(state)),
      [],
    )
  }

  const test = (name: string, action: () => Promise<void>): void => {
    zfs(name, async () => {
      setFiles('at that moment')
      await action()
      assertTidy()
    })
  }

  test('a collection is of the moment of the snapshot, children and a second pool too', async () => {
    const staging = `${root}/staging`
    mkdirSync(staging)
    const set = setConfiguration({ sources: [home, `${root}/second`], snapshot: 'required' })
    const { stamp: collected, complete } = await collectSet({
      configuration: configurationOf(set, { staging }),
      set,
      nowMs: Date.UTC(2025, 3, 1, 2),
      report: (event) => {
        // By now the snapshots are there, and rsync has not begun.
        if (event.kind === 'phase' && event.name === 'collecting home') setFiles('later')
      },
    })
    assert.ok(complete)
    for (const file of [`${home}/me/file`, `${home}/child/file`, `${root}/second/file`]) {
      assert.is(readFileSync(`${staging}/home/${collected}${file}`, 'utf8'), 'at that moment')
    }
    const { header } = readCollection({ staging, set: 'home', stamp: collected })
    assert.equal(
      header.sources.map(({ snapshot }) => snapshot),
      ['zfs', 'zfs'],
    )
    rmSync(staging, { recursive: true })
  })

  test('shows datasets, children and paths in them as they were, read-only', async () => {
    const taken = await zfsProvider.take(request(`${home}/me`, `${home}/child`, `${root}/second`))
    setFiles('later')
    assert.equal(taken.refused, [])
    assert.is(taken.timeMs, Date.UTC(2025, 3, 1, 2))
    const what = new Map(taken.shown.map((one) => [one.given, one.what]))
    assert.equal([...what.keys()], [`${home}/me`, `${home}/child`, `${root}/second`])
    for (const directory of what.values()) {
      assert.is(readFileSync(`${directory}/file`, 'utf8'), 'at that moment')
      assert.throws(() => writeFileSync(`${directory}/new`, ''), /EROFS/)
    }
    const names = [`${pool}/home@${own}`, `${pool}/home/child@${own}`, `${second}@${own}`]
    assert.equal(taken.names, names)
    for (const name of names) {
      assert.throws(() => run('zfs', 'destroy', name), /busy|held|clones/)
    }
    await taken.release()
  })

  test('gives what is bound below a mount point, and a single file, from the snapshot', async () => {
    mkdirSync(`${root}/bound`)
    // zfs-fuse shows the root of a bind mount as it is in the dataset.
    run('mount', '--bind', `${home}/me`, `${root}/bound`)
    try {
      const taken = await zfsProvider.take(request(`${root}/bound`, `${home}/me/file`))
      setFiles('later')
      const [bound = '', file = ''] = taken.shown.map((one) => one.what)
      assert.is(readFileSync(`${bound}/file`, 'utf8'), 'at that moment')
      assert.is(readFileSync(file, 'utf8'), 'at that moment')
      await taken.release()
    } finally {
      run('umount', `${root}/bound`)
    }
  })

  test('refuses what is not in the snapshot, and says so', async () => {
    const asked = request(`${home}/me`, `${home}/gone`)
    const { refused, shown, release } = await zfsProvider.take(asked)
    assert.equal(refused, [{ given: `${home}/gone`, why: 'it is not in the snapshot' }])
    assert.is(shown.length, 1)
    await release()
  })

  test('names only the datasets of the sources where one command can take several', async () => {
    const script = `
      [ "$1" = snapshot ] || exec ${real('zfs')} "$@"
      echo "$@" >> ${root}/asked; shift
      for name; do ${real('zfs')} snapshot "$name" || exit 1; done`
    await withPrograms({ zfs: script }, async () => {
      const taken = await zfsProvider.take(request(home, `${home}/child`))
      const added = everything().filter((name) => !before.includes(name) && name.includes('@'))
      assert.equal(added, [`${pool}/home@${own}`, `${pool}/home/child@${own}`])
      assert.is(
        readFileSync(`${root}/asked`, 'utf8'),
        `snapshot ${pool}/home@${own} ${pool}/home/child@${own}\n`,
      )
      await taken.release()
    })
  })

  test('reads through .zfs where it answers, and not where it is an empty directory', async () => {
    const hidden = `${home}/.zfs/snapshot/${own}`
    mkdirSync(hidden, { recursive: true })
    const empty = await zfsProvider.take(request(home))
    assert.is(empty.shown[0]?.what, `${state}/zfs-home/0`)
    await empty.release()
    // Another filesystem with the same root inode, as the kernel mounts a snapshot there.
    run('mount', '-t', 'tmpfs', 'none', hidden)
    try {
      const answers = await zfsProvider.take(request(home, `${home}/me`))
      assert.equal(
        answers.shown.map(({ what }) => what),
        [hidden],
      )
      assert.is(everything().filter((name) => name.endsWith(`/${own}`)).length, 0)
      await answers.release()
    } finally {
      run('umount', hidden)
      rmSync(`${home}/.zfs`, { recursive: true })
    }
  })

  test('mounts the snapshot itself where no clone can be had', async () => {
    const noClone = `[ "$1" = clone ] && exit 1\nexec ${real('zfs')} "$@"`
    const mount = `
      [ "$2" = zfs ] || exec ${real('mount')} "$@"
      echo "$@" > ${root}/mounted; exec ${real('mount')} -t tmpfs none "$7"`
    await withPrograms({ zfs: noClone, mount }, async () => {
      const taken = await zfsProvider.take(request(home))
      assert.is(taken.shown[0]?.what, `${state}/zfs-home/0`)
      const options = 'ro,nosuid,nodev,noexec'
      assert.is(
        readFileSync(`${root}/mounted`, 'utf8'),
        `-t zfs -o ${options} -- ${pool}/home@${own} ${state}/zfs-home/0\n`,
      )
      await taken.release()
    })
  })

  test('refuses one pool that cannot, and fails where none can, with nothing left', async () => {
    const script = `
      case "$*" in "snapshot "*${second}@*) echo "cannot create: out of space" >&2; exit 1;; esac
      exec ${real('zfs')} "$@"`
    await withPrograms({ zfs: script }, async () => {
      const taken = await zfsProvider.take(request(`${root}/second`, home))
      assert.equal(
        taken.shown.map(({ given }) => given),
        [home],
      )
      assert.match(taken.refused[0]?.why ?? '', 'out of space')
      await taken.release()
      const error = await failure(zfsProvider.take(request(`${root}/second`)))
      assert.is(error.code, 'SNAPSHOT_FAILED')
      assert.match(error.message, 'out of space')
    })
  })

  test('takes the next name where a dataset has its name, and removes its own only', async () => {
    // The one is asked for; the other lies below, and zfs-fuse takes all below at once.
    for (const dataset of [`${pool}/home`, `${pool}/home/elsewhere`]) {
      run('zfs', 'snapshot', `${dataset}@${own}`)
      const there = everything()
      const taken = await zfsProvider.take(request(home, `${home}/child`))
      assert.equal(taken.refused, [])
      assert.equal(taken.names, [`${pool}/home@${own}-2`, `${pool}/home/child@${own}-2`])
      assert.is(readFileSync(`${taken.shown[0]?.what}/me/file`, 'utf8'), 'at that moment')
      await taken.release()
      assert.equal(everything(), there)
      run('zfs', 'destroy', `${dataset}@${own}`)
    }
  })

  test('removes no snapshot that somebody makes before it does, under its name', async () => {
    const script = `
      [ "$1" = snapshot ] && ${real('zfs')} snapshot ${pool}/home@${own} 2> ${root}/said
      exec ${real('zfs')} "$@"`
    for (const sources of [[home], [home, `${home}/child`]]) {
      await withPrograms({ zfs: script }, async () => {
        const error = await failure(zfsProvider.take(request(...sources)))
        assert.match(error.message, /exist|no snapshots were created/)
      })
      assert.equal(readdirSync(state), [])
      // Not even its hold would have kept it.
      assert.ok(everything().includes(`${pool}/home@${own}`))
      run('zfs', 'destroy', `${pool}/home@${own}`)
    }
  })

  test('removes a snapshot whose command was killed when it had made it', async () => {
    const script = `
      ${real('zfs')} "$@" || exit
      [ "$1" = snapshot ] && kill -9 $$
      exit 0`
    await withPrograms({ zfs: script }, async () => {
      assert.match((await failure(zfsProvider.take(request(home)))).message, 'killed')
    })
  })

  test('keeps the record of a snapshot while zfs fails to list it', async () => {
    await zfsProvider.take(request(home))
    const script = `
      case "$*" in "list "*" snapshot "*@*) echo "cannot open: pool I/O is suspended" >&2; exit 1;;
      esac
      exec ${real('zfs')} "$@"`
    await withPrograms({ zfs: script }, async () => {
      const error = await failure(zfsProvider.sweep({ state, set: 'home' }))
      assert.match(error.message, 'suspended')
    })
    assert.match(readFileSync(`${state}/zfs-home.json`, 'utf8'), own)
    await zfsProvider.sweep({ state, set: 'home' })
  })

  test('leaves a foreign snapshot of its clone alone, and goes on when that is gone', async () => {
    const taken = await zfsProvider.take(request(home))
    const foreign = `${pool}/home/${own}@hourly`
    run('zfs', 'snapshot', foreign)
    const error = await failure(taken.release())
    assert.is(error.code, 'SNAPSHOT_FAILED')
    assert.ok(everything().includes(foreign))
    run('zfs', 'destroy', foreign)
    await zfsProvider.sweep({ state, set: 'home' })
  })

  test('keeps the record of a pool that is away until it is back', async () => {
    await zfsProvider.take(request(`${root}/second`))
    run('umount', `${state}/zfs-home/0`)
    run('zpool', 'export', second)
    await zfsProvider.sweep({ state, set: 'home' })
    assert.match(readFileSync(`${state}/zfs-home.json`, 'utf8'), second)
    run('zpool', 'import', '-d', root, second)
    await zfsProvider.sweep({ state, set: 'home' })
  })

  test('believes no record that does not look like its own', async () => {
    const records = [
      { dataset: `${pool}/home`, name: 'mine' },
      { dataset: `${pool}/home`, name: 'backup-other-2024-01-01T000000Z' },
      { dataset: `${pool}/home@mine,${own}`, name: own },
      null,
      'x',
    ]
    writeFileSync(`${state}/zfs-home.json`, JSON.stringify(records))
    await zfsProvider.sweep({ state, set: 'home' })
    assert.equal(everything(), before)
    rmSync(`${state}/zfs-home.json`)
  })

  test('sweeps what a run leaves that is killed after any change', async () => {
    const module = new URL('../../lib/machine/source-snapshot/zfs.js', import.meta.url).href
    const asked = JSON.stringify(request(home, `${home}/child`))
    const script = `
      import { zfsProvider } from ${JSON.stringify(module)}
      const taken = await zfsProvider.take({ ...${asked}, now: () => 0 })
      await taken.release()`
    // Counts the commands that change something, and kills who asked at the one that is set.
    const killer = `
      case $1 in list|get) exec ${real('zfs')} "$@";; esac
      ${real('zfs')} "$@"; code=$?
      echo >> ${root}/count
      [ $(wc -l < ${root}/count) = "$(cat ${root}/kill-after)" ] && kill -9 $PPID
      exit $code`
    const directory = tempDirectory()
    writeFileSync(`${directory}/zfs`, `#!/bin/sh\n${killer}\n`, { mode: 0o755 })
    const runKilled = (after: number): NodeJS.Signals | null => {
      writeFileSync(`${root}/count`, '')
      writeFileSync(`${root}/kill-after`, `${after}`)
      const env = { ...process.env, PATH: `${directory}:${process.env['PATH']}` }
      const args = ['--input-type=module', '-e', script]
      return spawnSync(process.execPath, args, { env, stdio: 'ignore' }).signal
    }
    let kills = 0
    for (; runKilled(kills + 1) === 'SIGKILL'; kills++) {
      await zfsProvider.sweep({ state, set: 'home' })
      assertTidy()
    }
    assert.ok(kills > 12, `${kills}`)
  })
}

/** Ends its pools and, where it started one, the daemon, however the process ends. */
async function startZfs(): Promise<void> {
  const answers = (): boolean => spawnSync('zfs', ['list']).status === 0
  const args = ['--no-daemon', '--no-kstat-mount', '--pidfile', `${root}/pid`]
  const daemon = answers() ? undefined : spawn('zfs-fuse', args, { stdio: 'ignore' })
  process.prependListener('exit', () => {
    for (const name of [pool, second]) spawnSync('zpool', ['destroy', '-f', name])
    // Its pools are gone, and by itself it would take seconds.
    daemon?.kill('SIGKILL')
    if (existsSync(home)) spawnSync('rmdir', [home])
  })
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => process.exit(1))
  daemon?.unref()
  for (let tries = 0; !answers(); tries++) {
    assert.ok(tries < 100, 'ZFS does not answer')
    await sleep(100)
  }
}

zfs.run()
