// Real filesystems in images, and a blkid that knows nothing, as a user has it who is not root.

import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync } from 'node:fs'
import { suite } from 'uvu'
import { filesystemId } from '../../lib/machine/filesystem-id.ts'
import { readMounts } from '../../lib/machine/source-snapshot/mounts.ts'
import * as assert from '../helpers/assert.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { withPrograms } from '../helpers/stand-in.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const id = suite('machine/filesystem-id')
const noBlkid = { blkid: 'exit 2' }

const run = (program: string, ...args: string[]): string =>
  execFileSync(program, args, { encoding: 'utf8', stdio: 'pipe' }).trim()

const uuidIn = (image: string): string => run('blkid', '-p', '-o', 'value', '-s', 'UUID', image)

const now = (path: string): Promise<string> => filesystemId(path, readMounts())

id('what has no device has the name of its mount, and without a mount it is unknown', async () => {
  const mount = { root: '/', point: '/home', type: 'zfs', device: 'tank/home' }
  assert.is(await filesystemId('/home/me', [mount]), 'zfs tank/home')
  assert.is(await filesystemId('/srv', [mount]), 'unknown')
})

id('a device that is gone leaves the type, and on btrfs the subvolume', async () => {
  const mount = { root: '/@', point: '/', device: '/dev/no-such-device' }
  assert.is(await filesystemId('/home', [{ ...mount, type: 'ext4' }]), 'ext4')
  assert.is(await filesystemId('/home', [{ ...mount, type: 'btrfs' }]), 'btrfs /@')
})

if (canRunAsRoot('loop mounts of ext4 and btrfs')) {
  id('ext4 has its UUID', async () => {
    const { image, path } = loopDevice({ sizeMib: 16 })
    assert.is(await now(`${path}/lost+found`), `ext4 ${uuidIn(image)}`)
  })

  id('btrfs has the UUID that the kernel says, and the subvolume', async () => {
    const { image, path, mount, unmount } = loopDevice({ sizeMib: 128, type: 'btrfs' })
    const expected = `btrfs ${uuidIn(image)}`
    run('btrfs', '-q', 'subvolume', 'create', `${path}/@home`)
    await withPrograms(noBlkid, async () => {
      assert.is(await now(`${path}/@home`), `${expected} /`)
      unmount()
      mount('subvol=@home')
      assert.is(await now(path), `${expected} /@home`)
    })
  })

  id('btrfs of several devices has one UUID, whichever is mounted', async () => {
    const directory = tempDirectory()
    const point = `${directory}/mount`
    mkdirSync(point)
    const images = ['first', 'second'].map((name) => `${directory}/${name}`)
    const devices: string[] = []
    const release = (): void => {
      if (existsSync(point)) spawnSync('umount', ['--quiet', point])
      for (const device of devices.splice(0)) spawnSync('losetup', ['--detach', device])
    }
    process.prependListener('exit', release)
    try {
      for (const image of images) {
        run('truncate', '-s', '128M', image)
        devices.push(run('losetup', '--find', '--show', image))
      }
      run('mkfs.btrfs', '-q', ...devices)
      const expected = `btrfs ${uuidIn(devices[0] ?? '')} /`
      run('btrfs', 'device', 'scan', ...devices)
      run('mount', '-t', 'btrfs', devices[1] ?? '', point)
      const mounts = readMounts().filter((mount) => mount.point === point)
      await withPrograms(noBlkid, async () => {
        for (const device of devices) {
          const ids = mounts.map((mount) => filesystemId(point, [{ ...mount, device }]))
          assert.equal(await Promise.all(ids), [expected])
        }
      })
    } finally {
      release()
    }
  })
}

id.run()
