import { Buffer } from 'node:buffer'
import { execFileSync, spawnSync } from 'node:child_process'
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { openDirectoryTarget } from '../../lib/target/directory.ts'
import { type Target, asideName } from '../../lib/target/target.ts'
import * as assert from '../helpers/assert.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const targets = suite('target/directory')
const root = tempDirectory()
let directories = 0

const newDirectory = (): string => {
  const path = join(root, String(++directories))
  mkdirSync(path)
  return path
}

const openAt = (path: string, mustBeMounted?: boolean): Target =>
  openDirectoryTarget({ name: 'red', path, mustBeMounted })

const failureOf = async (action: () => unknown): Promise<BackupError> => {
  try {
    await action()
  } catch (error) {
    if (error instanceof BackupError) return error
    throw error
  }
  throw new Error('it did not fail')
}

const codeOf = async (action: () => unknown): Promise<string> => (await failureOf(action)).code
const bytes = Buffer.from('some bytes')

targets('what was written is read, listed and removed', async () => {
  const path = newDirectory()
  const target = openAt(path)
  assert.equal(await target.list(''), [])
  assert.is(await target.list('machines'), undefined)
  assert.is(await target.read('repository.json', 100), undefined)
  await target.write('machines/m/home/b.json', bytes)
  await target.write('machines/m/home/a.json', Buffer.alloc(0))
  assert.ok((await target.read('machines/m/home/b.json', 100))?.equals(bytes))
  assert.equal(await target.list('machines/m/home'), [
    { name: 'a.json', kind: 'file', sizeBytes: 0 },
    { name: 'b.json', kind: 'file', sizeBytes: bytes.length },
  ])
  assert.is((await target.list('machines'))?.[0]?.kind, 'directory')
  await target.remove('machines/m/home/b.json')
  await target.remove('machines/m/home/b.json')
  assert.is(await target.read('machines/m/home/b.json', 100), undefined)
  await target.removeDirectory('machines/m/home')
  assert.ok(existsSync(join(path, 'machines/m/home')), 'it is not empty')
  await target.remove('machines/m/home/a.json')
  await target.removeDirectory('machines/m/home')
  await target.removeDirectory('machines/m/home')
  assert.not.ok(existsSync(join(path, 'machines/m/home')))
})

targets('nobody but its owner can read what is written', async () => {
  const path = newDirectory()
  const target = openAt(path)
  await target.write('machines/m/machine.json', bytes)
  assert.is(statSync(join(path, 'machines')).mode & 0o777, 0o700)
  assert.is(statSync(join(path, 'machines/m/machine.json')).mode & 0o777, 0o600)
})

targets('a small file of any size around a block comes back', async () => {
  const target = openAt(newDirectory())
  for (const size of [0, 1, 511, 512, 513, 4095, 4096, 4097, 2 ** 21 - 1, 2 ** 21, 2 ** 21 + 1]) {
    const content = Buffer.alloc(size, 'block')
    await target.write(`file-${size}`, content)
    assert.ok((await target.read(`file-${size}`, size))?.equals(content), `${size}`)
    if (size > 0)
      assert.is(await codeOf(() => target.read(`file-${size}`, size - 1)), 'TARGET_FAILED')
  }
})

targets('nothing is overwritten, and the failure leaves nothing behind', async () => {
  const path = newDirectory()
  const target = openAt(path)
  await target.write('a.json', bytes)
  await failureOf(() => target.write('a.json', Buffer.from('other')))
  writeFileSync(join(path, 'b.partial'), 'new')
  writeFileSync(join(path, 'b'), 'old')
  await failureOf(() => target.publish('b'))
  mkdirSync(join(path, 'c'))
  await failureOf(() => target.write('c', bytes))
  assert.equal(readdirSync(path).sort(), ['a.json', 'b', 'b.partial', 'c'])
  assert.is(readFileSync(join(path, 'a.json'), 'utf8'), 'some bytes')
  assert.is(readFileSync(join(path, 'b'), 'utf8'), 'old')
})

targets('bug: a name that is taken is not TARGET_FAILED as target.ts says', async () => {
  const target = openAt(newDirectory())
  await target.write('a', bytes)
  assert.is(await codeOf(() => target.write('a', bytes)), 'TARGET_FAILED')
})

targets('only replace overwrites, whole or not at all', async () => {
  const path = newDirectory()
  const target = openAt(path)
  await target.replace('latest', Buffer.from('one\n'))
  await target.replace('latest', Buffer.from('two\n'))
  assert.is(readFileSync(join(path, 'latest'), 'utf8'), 'two\n')
  writeFileSync(join(path, 'latest.partial'), 'left by a run that was killed')
  await target.replace('latest', Buffer.from('three\n'))
  assert.equal(readdirSync(path), ['latest'])
  assert.is(readFileSync(join(path, 'latest'), 'utf8'), 'three\n')
})

targets('a partial file of a run that was killed does not stop the next', async () => {
  const path = newDirectory()
  writeFileSync(join(path, 'a.partial'), 'half')
  await openAt(path).write('a', bytes)
  assert.equal(readdirSync(path), ['a'])
})

targets('a bundle gets its name from publish, and not before', async () => {
  const path = newDirectory()
  const target = openAt(path)
  const directory = await target.workDirectory('machines/m/home/2025-04-01T020000Z')
  assert.is(directory, join(path, 'machines/m/home/2025-04-01T020000Z'))
  assert.is(await target.workDirectory('machines/m/home/2025-04-01T020000Z'), directory)
  writeFileSync(`${directory}/data-0001.tar.zst.age.partial`, 'bundle')
  await target.publish('machines/m/home/2025-04-01T020000Z/data-0001.tar.zst.age')
  assert.equal(readdirSync(directory), ['data-0001.tar.zst.age'])
  const none = () => target.publish('machines/m/home/2025-04-01T020000Z/data-0002.tar.zst.age')
  assert.is(await codeOf(none), 'TARGET_FAILED')
})

targets('what is set aside gets a free name beside it, and overwrites nothing', async () => {
  const path = newDirectory()
  const target = openAt(path)
  for (const content of ['one', 'two', 'three']) {
    await target.write('machines/a', Buffer.from(content))
    await target.setAside('machines/a')
  }
  await target.write('machines/a', bytes)
  symlinkSync('/nowhere', join(path, 'machines/a.damaged-4'))
  assert.is(await target.setAside('machines/a'), 'machines/a.damaged-5')
  assert.equal(readdirSync(join(path, 'machines')).sort(), [
    'a.damaged',
    'a.damaged-2',
    'a.damaged-3',
    'a.damaged-4',
    'a.damaged-5',
  ])
  assert.is(readFileSync(join(path, 'machines/a.damaged'), 'utf8'), 'one')
  assert.is(readFileSync(join(path, 'machines/a.damaged-3'), 'utf8'), 'three')
  assert.is(await codeOf(() => target.setAside('machines/a')), 'TARGET_FAILED')
  assert.is(asideName('x', 1), 'x.damaged')
})

targets('free space is what the file system says', async () => {
  const free = await openAt(newDirectory()).freeBytes()
  assert.ok(free !== undefined && free > 0 && Number.isSafeInteger(free))
})

targets('a directory that is not there, or none, is an absent target', async () => {
  const path = newDirectory()
  writeFileSync(join(path, 'file'), '')
  for (const place of [join(path, 'none'), join(path, 'none/below'), join(path, 'file')]) {
    const error = await failureOf(() => openAt(place))
    assert.is(error.code, 'TARGET_ABSENT', place)
    assert.is(error.retry, 'later')
  }
  assert.not.ok(existsSync(join(path, 'none')), 'it is not made')
})

targets('bug: a path that leads through a file, or round in a circle, is a crash', async () => {
  const path = newDirectory()
  writeFileSync(join(path, 'file'), '')
  symlinkSync('circle', join(path, 'circle'))
  for (const place of [join(path, 'file/below'), join(path, 'circle')]) {
    assert.is(await codeOf(() => openAt(place)), 'TARGET_ABSENT', place)
  }
})

targets('a bare mount point is refused where a file system has to be mounted', async () => {
  const path = newDirectory()
  const isOnOwn = statSync(root).dev !== statSync('/').dev
  if (!isOnOwn) assert.is(await codeOf(() => openAt(path, true)), 'TARGET_ABSENT')
  openAt(path, false)
  assert.equal(readdirSync(path), [])
})

targets('links in the way are not followed, and what they lead to is not touched', async () => {
  const path = newDirectory()
  const victim = newDirectory()
  writeFileSync(join(victim, 'file'), 'mine')
  const target = openAt(path)
  symlinkSync(victim, join(path, 'machines'))
  symlinkSync(join(victim, 'file'), join(path, 'repository.json'))
  assert.is(await codeOf(() => target.workDirectory('machines')), 'TARGET_FOREIGN')
  assert.is(await codeOf(() => target.workDirectory('machines/m')), 'TARGET_FOREIGN')
  assert.is(await codeOf(() => target.write('machines/m/machine.json', bytes)), 'TARGET_FOREIGN')
  assert.is(await codeOf(() => target.list('machines')), 'TARGET_FOREIGN')
  await failureOf(() => target.read('repository.json', 100))
  await failureOf(() => target.write('repository.json', bytes))
  await target.replace('repository.json', bytes)
  assert.ok(
    lstatSync(join(path, 'repository.json')).isFile(),
    'the link was replaced, not followed',
  )
  assert.equal(readdirSync(victim), ['file'])
  assert.is(readFileSync(join(victim, 'file'), 'utf8'), 'mine')
})

targets('a link at the partial name is not followed', async () => {
  const path = newDirectory()
  const victim = join(newDirectory(), 'victim')
  writeFileSync(victim, 'mine')
  symlinkSync(victim, join(path, 'a.partial'))
  await openAt(path).write('a', bytes)
  assert.is(readFileSync(victim, 'utf8'), 'mine')
  assert.ok(lstatSync(join(path, 'a')).isFile())
})

targets('a file where a directory belongs is in the way', async () => {
  const path = newDirectory()
  const target = openAt(path)
  writeFileSync(join(path, 'machines'), 'mine')
  assert.is(await codeOf(() => target.write('machines/machine.json', bytes)), 'TARGET_FOREIGN')
  assert.is(await codeOf(() => target.workDirectory('machines')), 'TARGET_FOREIGN')
  assert.is(await codeOf(() => target.list('machines')), 'TARGET_FOREIGN')
  assert.is(await target.read('machines/m/machine.json', 10), undefined)
})

targets('bug: a file further up where a directory belongs is a failed drive', async () => {
  const path = newDirectory()
  const target = openAt(path)
  writeFileSync(join(path, 'machines'), 'mine')
  assert.is(await codeOf(() => target.write('machines/m/machine.json', bytes)), 'TARGET_FOREIGN')
  assert.is(await codeOf(() => target.workDirectory('machines/m/home')), 'TARGET_FOREIGN')
})

targets('bug: a link that leads nowhere is overwritten by a new file', async () => {
  const path = newDirectory()
  symlinkSync('/nowhere/at/all', join(path, 'a'))
  await failureOf(() => openAt(path).write('a', bytes))
  assert.is(readlinkSync(join(path, 'a')), '/nowhere/at/all')
})

targets('bug: a link above a directory that is there already is followed', async () => {
  const path = newDirectory()
  const victim = newDirectory()
  mkdirSync(join(victim, 'm'))
  symlinkSync(victim, join(path, 'machines'))
  const target = openAt(path)
  assert.is(await codeOf(() => target.workDirectory('machines/m')), 'TARGET_FOREIGN')
  assert.is(await codeOf(() => target.write('machines/m/machine.json', bytes)), 'TARGET_FOREIGN')
  assert.is(await codeOf(() => target.list('machines/m')), 'TARGET_FOREIGN')
  assert.equal(readdirSync(join(victim, 'm')), [])
})

const module = JSON.stringify(new URL('../../lib/target/directory.js', import.meta.url).href)

targets('bug: a pipe in the place of a file holds the reader up for ever', () => {
  const path = newDirectory()
  execFileSync('mkfifo', [join(path, 'repository.json')])
  const script = `
    const { openDirectoryTarget } = await import(${module})
    const target = openDirectoryTarget(
      { name: 'red', path: ${JSON.stringify(path)}, mustBeMounted: false })
    try { await target.read('repository.json', 100) } catch (
      error) { process.stdout.write(error.code) }`
  const child = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
    timeout: 5000,
    encoding: 'utf8',
  })
  assert.is(child.signal, null, 'it was stopped after 5 s')
  assert.is(child.stdout, 'TARGET_FAILED')
})

if (canRunAsRoot('targets on file systems of their own')) {
  /** A tmpfs, while `use` runs. */
  const withTmpfs = async (options: string, use: (path: string) => unknown): Promise<void> => {
    const path = newDirectory()
    execFileSync('mount', ['-t', 'tmpfs', '-o', options, 'tmpfs', path])
    try {
      await use(path)
    } finally {
      execFileSync('umount', [path])
    }
  }

  targets(
    'a file system that is mounted is a target, and its mount point alone is none',
    async () => {
      let mounted = ''
      await withTmpfs('size=4m', async (path) => {
        mounted = path
        openAt(path, true)
        mkdirSync(join(path, 'below/deep'), { recursive: true })
        openAt(join(path, 'below/deep'), true)
      })
      if (statSync(root).dev === statSync('/').dev) {
        assert.is(await codeOf(() => openAt(mounted, true)), 'TARGET_ABSENT')
      }
    },
  )

  targets(
    'a file system that is mounted read-only is TARGET_READ_ONLY, for every change',
    async () => {
      await withTmpfs('size=4m', async (path) => {
        writeFileSync(join(path, 'latest'), 'one\n')
        writeFileSync(join(path, 'b.partial'), 'bundle')
        mkdirSync(join(path, 'machines'))
        execFileSync('mount', ['-o', 'remount,ro', path])
        const target = openAt(path, true)
        for (const change of [
          () => target.write('a', bytes),
          () => target.write('new/a', bytes),
          () => target.replace('latest', bytes),
          () => target.workDirectory('machines/m'),
          () => target.publish('b'),
          () => target.setAside('latest'),
          () => target.remove('latest'),
          () => target.removeDirectory('machines'),
        ]) {
          assert.is(await codeOf(change), 'TARGET_READ_ONLY', change.toString())
        }
        assert.is(
          await target.workDirectory('machines'),
          join(path, 'machines'),
          'it is there already',
        )
        assert.ok((await target.read('latest', 10))?.equals(Buffer.from('one\n')))
      })
    },
  )

  targets('a full file system is TARGET_FULL, and no partial file stays', async () => {
    await withTmpfs('size=1m', async (path) => {
      const target = openAt(path, true)
      const before = await target.freeBytes()
      assert.ok(before !== undefined && before <= 2 ** 20 && before > 2 ** 18)
      assert.is(await codeOf(() => target.write('big', Buffer.alloc(2 ** 21))), 'TARGET_FULL')
      assert.is(await codeOf(() => target.replace('latest', Buffer.alloc(2 ** 21))), 'TARGET_FULL')
      assert.equal(readdirSync(path), [])
      assert.is(await target.freeBytes(), before)
      await target.write('small', bytes)
    })
    await withTmpfs('size=1m,nr_inodes=3', async (path) => {
      const target = openAt(path, true)
      assert.is(
        await codeOf(() => target.workDirectory('a/b/c/d')),
        'TARGET_FULL',
        'no inode is left',
      )
    })
  })

  targets('a directory that may not be written is TARGET_READ_ONLY', () => {
    const path = newDirectory()
    chmodSync(path, 0o555)
    for (let at = root; at !== '/tmp' && at !== '/'; at = join(at, '..')) chmodSync(at, 0o755)
    const script = `
      const { openDirectoryTarget } = await import(${module})
      process.setgroups([]); process.setgid(65534); process.setuid(65534)
      const target = openDirectoryTarget(
        { name: 'red', path: ${JSON.stringify(path)}, mustBeMounted: false })
      try { await target.write('a', Buffer.from('x')) } catch (
        error) { process.stdout.write(error.code) }`
    const child = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
      encoding: 'utf8',
    })
    assert.is(child.stdout, 'TARGET_READ_ONLY', child.stderr)
  })

  /** Opens a target in a mount namespace of its own, which `setup` prepares; the code,
  or `open`. */
  const openIn = (setup: string, path: string): string => {
    const script = `
      const { openDirectoryTarget } = await import(${module})
      try {
        openDirectoryTarget({ name: 'red', path: process.argv[1], mustBeMounted: undefined })
        process.stdout.write('open')
      } catch (error) { process.stdout.write(error.code) }`
    const words = [
      '-m',
      'bash',
      '-euc',
      `${setup}\nexec "$0" --input-type=module -e "$1" "$2"`,
      process.execPath,
      script,
      path,
    ]
    const { stdout, stderr, status } = spawnSync('unshare', words, { encoding: 'utf8' })
    assert.is(status, 0, stderr)
    return stdout
  }

  targets(
    'below the places where drives are mounted, a bare mount point is refused by itself',
    () => {
      for (const place of ['/mnt', '/media']) {
        const path = `${place}/backup-test/red`
        const mount = `mount -t tmpfs t /${place}; mkdir -p ${path}; mount -t tmpfs t ${path}`
        assert.is(openIn(`${mount}; mkdir ${path}/below`, `${path}/below`), 'open', place)
      }
      const scratch = '/mnt/backup-test-bare'
      try {
        mkdirSync(scratch)
        if (statSync(scratch).dev === statSync('/').dev)
          assert.is(openIn(':', scratch), 'TARGET_ABSENT')
      } finally {
        rmSync(scratch, { recursive: true })
      }
    },
  )

  targets('what fstab mounts has to be mounted', () => {
    const directory = newDirectory()
    writeFileSync(
      join(root, 'fstab'),
      `# ${directory}/commented\n/dev/none ${directory}/red\\040drive ext4 noauto 0 0\n`,
    )
    const red = join(directory, 'red drive')
    const setup = `mount --bind ${root}/fstab /etc/fstab
      mkdir -p '${red}/below' ${directory}/commented`
    if (statSync(root).dev === statSync('/').dev) {
      assert.is(openIn(setup, red), 'TARGET_ABSENT')
      assert.is(openIn(setup, `${red}/below`), 'TARGET_ABSENT')
    }
    assert.is(openIn(setup, join(directory, 'commented')), 'open')
    assert.is(openIn(`${setup}; mount -t tmpfs t '${red}'`, red), 'open')
  })

  targets('bug: below a mounted /run, a bare mount point in /run/media is written to', () => {
    const path = '/run/media/joe/red'
    assert.is(openIn(`mount -t tmpfs t /run; mkdir -p ${path}`, path), 'TARGET_ABSENT')
    assert.is(
      openIn(`mount -t tmpfs t /run; mkdir -p ${path}; mount -t tmpfs t ${path}`, path),
      'open',
    )
  })

  targets(
    'bug: below a file system of its own, a bare mount point that fstab names is written to',
    () => {
      const home = newDirectory()
      writeFileSync(
        join(root, 'fstab'),
        `/dev/a ${home} ext4 defaults 0 0\n/dev/b ${home}/red ext4 noauto 0 0\n`,
      )
      const setup = `mount --bind ${root}/fstab /etc/fstab
      mount -t tmpfs t ${home}; mkdir ${home}/red ${home}/plain`
      assert.is(openIn(setup, `${home}/plain`), 'open')
      assert.is(openIn(setup, `${home}/red`), 'TARGET_ABSENT')
    },
  )
}

targets.run()
