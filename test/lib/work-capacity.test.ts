import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statfsSync,
  writeFileSync,
} from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import {
  type Capacity,
  type CapacityOptions,
  probeCapacity,
  withProbeDirectory,
} from '../../lib/work/capacity.ts'
import * as assert from '../helpers/assert.ts'
import { fakeDrive } from '../helpers/fake-drive.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { randomFrom } from '../helpers/random.ts'
import { withPrograms } from '../helpers/stand-in.ts'
import { stock } from '../helpers/stock.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const capacity = suite('work/capacity')
const MIB = 2 ** 20
/** A quarter of what it says. */
const SIZES = { sizeMib: 512, realMib: 128 }

async function probe(directory: string, change: Partial<CapacityOptions> = {}): Promise<Capacity> {
  const { bavail, bsize, blocks } = statfsSync(directory)
  return await probeCapacity({
    directory,
    freeBytes: bavail * bsize,
    totalBytes: blocks * bsize,
    report: () => {},
    signal: new AbortController().signal,
    ...change,
  })
}

const probesIn = (directory: string): string[] =>
  readdirSync(directory).filter((name) => name.startsWith('.backup-capacity-'))

capacity('where little is free nothing is written', async () => {
  const directory = tempDirectory()
  assert.is((await probe(directory, { freeBytes: 128 * MIB - 1 })).verdict, 'not enough room')
  assert.is((await probe(directory, { maxBytes: 64 * MIB - 1 })).verdict, 'not enough room')
  assert.equal(readdirSync(directory), [])
})

capacity('what a killed probe left is removed, what a living one has is not', async () => {
  const directory = tempDirectory()
  const gone = spawnSync('true').pid
  for (const name of [`.backup-capacity-${gone}`, '.backup-capacity-1', '.backup-capacity-x']) {
    mkdirSync(`${directory}/${name}`)
    writeFileSync(`${directory}/${name}/reserved`, '')
  }
  const seen = await withProbeDirectory(directory, async (own) => {
    assert.ok(existsSync(own))
    return await Promise.resolve(probesIn(directory).length)
  })
  assert.is(seen, 3)
  assert.equal(probesIn(directory), ['.backup-capacity-1', '.backup-capacity-x'])
})

if (canRunAsRoot('capacity of real and fake drives')) {
  for (const type of ['ext4', 'xfs', 'btrfs']) {
    capacity(`an honest drive with ${type} is good, and its data is as it was`, async () => {
      const { path, unmount } = loopDevice({ sizeMib: 512, type })
      const data = randomFrom(type).bytes(20 * MIB)
      writeFileSync(`${path}/data`, data)
      const before = readdirSync(path)
      const { verdict, message } = await probe(path)
      assert.is(verdict, 'good', message)
      assert.match(message, /^[3-6]\d blocks all over [34]\d\d MiB of free space read back/)
      assert.equal(readdirSync(path), before)
      assert.ok(readFileSync(`${path}/data`).equals(data))
      unmount()
    })
  }

  capacity('a drive that drops what is beyond its end is a fake', async () => {
    const { path, realBytes, release } = await fakeDrive({ ...SIZES, kind: 'drops' })
    try {
      const { verdict, goodBytes = 0, message } = await probe(path)
      assert.is(verdict, 'fake', message)
      assert.ok(goodBytes > 0 && goodBytes <= realBytes, String(goodBytes))
      assert.match(message, /^it is a fake: it says 5\d\d MiB, what is written below .* is lost$/)
      assert.equal(probesIn(path), [])
    } finally {
      release()
    }
  })

  capacity('a drive that wraps around is a fake, and told how far it goes', async () => {
    const { path, realBytes, release } = await fakeDrive({ ...SIZES, kind: 'wraps' })
    try {
      const { verdict, goodBytes, message } = await probe(path)
      assert.is(verdict, 'fake', message)
      assert.is(goodBytes, realBytes)
      assert.match(message, /beyond about 128 MiB overwrites what is there$/)
    } finally {
      release()
    }
  })

  capacity('a drive that fails when it is written has failed, whatever it says', async () => {
    const place = tempDirectory()
    stock('mount', ['-t', 'tmpfs', '-o', 'size=24m', 'small', place])
    try {
      // 512 MiB on a medium that refuses what is beyond 24.
      const path = `${place}/mount`
      mkdirSync(path)
      stock('truncate', ['-s', '512M', `${place}/image`])
      stock('mkfs.ext4', ['-q', '-F', '-m', '0', '-O', '^has_journal', `${place}/image`])
      stock('mount', ['-o', 'loop', `${place}/image`, path])
      try {
        const { verdict, message } = await probe(path)
        assert.is(verdict, 'failed')
        assert.match(message, /^the drive failed .*(EIO|ENOSPC)/, message)
        assert.equal(probesIn(path), [])
      } finally {
        spawnSync('umount', [path])
      }
    } finally {
      stock('umount', ['--lazy', place])
    }
  })

  capacity('where one large file cannot be had many smaller ones do', async () => {
    const { path, unmount } = loopDevice({ sizeMib: 512 })
    const real = stock('sh', ['-c', 'command -v fallocate']).trim()
    // As FAT does above 4 GiB.
    const script = `[ "$3" -le ${8 * MIB} ] && exec ${real} "$@"; echo File too large >&2; exit 1`
    await withPrograms({ fallocate: script }, async () => {
      const { verdict, message } = await probe(path)
      assert.is(verdict, 'good', message)
      assert.match(message, /^\d\d+ blocks all over [34]\d\d MiB/)
    })
    unmount()
  })

  capacity('where nothing is set aside nothing is claimed', async () => {
    const { path, unmount } = loopDevice({ sizeMib: 512 })
    await withPrograms({ fallocate: 'echo Operation not supported >&2; exit 1' }, async () => {
      // Files with holes would be written anywhere: all next to each other, most likely.
      assert.is((await probe(path)).verdict, 'unknown')
      assert.equal(probesIn(path), [])
    })
    unmount()
  })

  capacity('an interruption leaves nothing, and a kill nothing that takes room', async () => {
    const { path, unmount } = loopDevice({ sizeMib: 512 })
    const aborter = new AbortController()
    const report = ({ kind }: { kind: string }): void => {
      if (kind === 'progress') aborter.abort()
    }
    try {
      await probe(path, { signal: aborter.signal, report })
      assert.unreachable()
    } catch (error) {
      assert.ok(error instanceof BackupError)
      assert.is(error.code, 'INTERRUPTED')
    }
    assert.equal(probesIn(path), [])

    const free = (): number => statfsSync(path).bavail
    const before = free()
    const module = new URL('../../lib/work/capacity.js', import.meta.url).href
    const code = `import { probeCapacity } from ${JSON.stringify(module)}
      await probeCapacity({ directory: '${path}', freeBytes: 300 * ${MIB}, totalBytes: 1,
        signal: new AbortController().signal,
        report: ({ kind }) => { if (kind === 'progress') process.kill(process.pid, 'SIGKILL') } })`
    const child = spawn(process.execPath, ['--input-type=module', '-e', code], { stdio: 'ignore' })
    await once(child, 'exit')
    for (let moment = 0; moment < 100 && before - free() > 256; moment++) await sleep(10)
    assert.ok(before - free() <= 256, 'the space is free again')
    assert.is(probesIn(path).length, 1)
    await withProbeDirectory(path, async () => await Promise.resolve())
    assert.equal(probesIn(path), [])
    unmount()
  })
}

capacity.run()
