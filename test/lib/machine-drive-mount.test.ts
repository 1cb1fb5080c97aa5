// Drives are loop devices; exFAT comes through a driver in user space, as on machines whose kernel
// has none. udisks and the power are stand-ins.

import { spawn, spawnSync } from 'node:child_process'
import {
  chmodSync,
  existsSync,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import {
  type BlockFilesystem,
  deviceMounts,
  listBlockFilesystems,
  matchesDrive,
} from '../../lib/machine/block-devices.ts'
import {
  dirtyHint,
  isAnswering,
  mountDrive,
  powerOff,
  releaseDrives,
  unmountDrive,
} from '../../lib/machine/drive-mount.ts'
import { deviceParts } from '../../lib/machine/posix.ts'
import { acquireLock } from '../../lib/machine/lock.ts'
import * as assert from '../helpers/assert.ts'
import { cloneDrive, type DriveImage, driveImage, type DriveType } from '../helpers/drive-image.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { withPrograms } from '../helpers/stand-in.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const mounting = suite('machine/drive-mount')

const placeOf = ({ uuid }: DriveImage): string => `/run/backup/${uuid}`

async function found(drive: DriveImage): Promise<BlockFilesystem> {
  const all = await listBlockFilesystems()
  const one = all.find(({ device }) => device === drive.device)
  assert.ok(one, `${drive.device} is not listed`)
  return one
}

async function failure(action: Promise<unknown>): Promise<BackupError> {
  const error = await action.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  assert.ok(error instanceof BackupError, String(error))
  return error
}

function run(program: string, ...words: string[]): void {
  const { status, stderr } = spawnSync(program, words, { encoding: 'utf8' })
  assert.is(status, 0, `${program}: ${stderr}`)
}

/** The driver in user space that serves a device. */
function driverOf(device: string): number {
  const pid = readdirSync('/proc').find((name) => {
    if (!/^\d+$/.test(name)) return false
    try {
      const words = readFileSync(`/proc/${name}/cmdline`, 'utf8').split('\0')
      return words[0]?.endsWith('mount.exfat-fuse') === true && words.includes(device)
    } catch {
      return false
    }
  })
  assert.ok(pid, `no driver serves ${device}`)
  return Number(pid)
}

/** Runs as somebody who is not root, as far as the code under test can tell. */
async function asUser(action: () => Promise<void>): Promise<void> {
  const [programs = ''] = process.env['PATH']?.split(':') ?? []
  if (programs.includes('backup-test-')) chmodSync(programs, 0o755)
  process.seteuid?.(65534)
  try {
    await action()
  } finally {
    process.seteuid?.(0)
  }
}

/** A test that leaves no drive mounted, and nothing in our private place but locks. */
const test = (title: string, action: () => Promise<void>) =>
  mounting(title, async () => {
    try {
      await action()
    } finally {
      assert.equal(await releaseDrives(), [])
    }
    const left = existsSync('/run/backup') ? readdirSync('/run/backup') : []
    for (const { uuid } of made) {
      assert.not(left.includes(uuid), `/run/backup/${uuid} is left`)
    }
  })

const made: DriveImage[] = []
process.once('exit', () => {
  for (const one of made) rmSync(`${placeOf(one)}.lock`, { force: true })
})

function drive(options: Parameters<typeof driveImage>[0]): DriveImage {
  const one = driveImage(options)
  made.push(one)
  return one
}

mounting('names the program that checks each filesystem', () => {
  const hint = (filesystem: string): string => dirtyHint({ device: '/dev/sdb1', filesystem })
  assert.match(hint('ext4'), 'sudo fsck.ext4 -f /dev/sdb1')
  assert.match(hint('xfs'), 'sudo xfs_repair /dev/sdb1')
  assert.match(hint('exfat'), 'sudo fsck.exfat /dev/sdb1')
  assert.match(hint('ntfs'), 'sudo ntfsfix /dev/sdb1')
  assert.match(hint('hfsplus'), 'sudo fsck /dev/sdb1')
})

mounting('a directory answers, and one that is not there does not', async () => {
  assert.is(await isAnswering(tempDirectory()), true)
  assert.is(await isAnswering(`${tempDirectory()}/absent`), false)
})

if (canRunAsRoot('drives that are mounted')) {
  const types: readonly DriveType[] = ['ext4', 'xfs', 'btrfs', 'exfat', 'ntfs']
  for (const type of types) {
    test(`mounts ${type} where only root looks, without its programs and devices`, async () => {
      const one = drive({ type, label: `drive ${type}` })
      mkdirSync('/run/backup', { recursive: true })
      chmodSync('/run/backup', 0o755)
      const { path, ours, warning } = await mountDrive(await found(one))
      assert.is(path, placeOf(one))
      assert.is(ours, true)
      assert.is(warning, undefined)
      assert.is(statSync('/run/backup').mode & 0o777, 0o700)
      assert.is.not(statSync(path).dev, statSync('/run/backup').dev)
      const [mount, ...others] = deviceMounts(one.device)
      assert.equal(others, [])
      for (const option of ['rw', 'nosuid', 'nodev', 'noexec', 'noatime']) {
        assert.ok(mount?.options.includes(option), `${option} in ${String(mount?.options)}`)
      }
      assert.equal((await found(one)).mountPoints, [path])
      writeFileSync(`${path}/file`, 'kept')
      assert.is(await isAnswering(path), true)
      await unmountDrive(path)
      assert.not(existsSync(path))
      assert.equal(deviceMounts(one.device), [])
      assert.equal((await found(one)).mountPoints, [])
      const again = await mountDrive(await found(one))
      assert.is(readFileSync(`${again.path}/file`, 'utf8'), 'kept')
      await unmountDrive(again.path)
      await unmountDrive(again.path)
      one.detach()
    })
  }

  test('uses a mount that is there, and leaves it there', async () => {
    const one = drive({ label: 'there' })
    const place = `${tempDirectory()}/Überfluß "100%" \\x`
    mkdirSync(place)
    run('mount', one.device, place)
    const mounted = await mountDrive(await found(one))
    assert.equal(mounted, { path: place, ours: false, warning: undefined })
    assert.not(existsSync(placeOf(one)))
    assert.equal(await releaseDrives(), [])
    assert.is(deviceMounts(one.device).length, 1)
    await unmountDrive(place)
    assert.equal(deviceMounts(one.device), [])
    assert.ok(existsSync(place))
    one.detach()
  })

  test('knows a device that was mounted under another name', async () => {
    const one = drive({ label: 'renamed' })
    const [node, place] = [`${tempDirectory()}/node`, tempDirectory()]
    const [major, minor] = deviceParts(statSync(one.device, { bigint: true }).rdev)
    run('mknod', node, 'b', String(major), String(minor))
    run('mount', node, place)
    assert.equal((await found(one)).mountPoints, [place])
    run('umount', place)
    one.detach()
  })

  test('takes no mount of a directory on the drive for the drive', async () => {
    const one = drive({ label: 'bound' })
    const [place, part] = [tempDirectory(), tempDirectory()]
    run('mount', one.device, place)
    mkdirSync(`${place}/part`)
    run('mount', '--bind', `${place}/part`, part)
    run('umount', place)
    assert.equal((await found(one)).mountPoints, [])
    const { path } = await mountDrive(await found(one))
    assert.is(path, placeOf(one))
    await unmountDrive(path)
    const disk = { disk: one.device, isRemovable: true }
    assert.match((await failure(powerOff(disk))).message, `still mounted at ${part}`)
    run('umount', part)
    one.detach()
  })

  test('takes over what a killed run left, and gives it back', async () => {
    const one = drive({ label: 'left' })
    mkdirSync(placeOf(one), { recursive: true, mode: 0o700 })
    run('mount', one.device, placeOf(one))
    const { path, ours } = await mountDrive(await found(one))
    assert.is(path, placeOf(one))
    assert.is(ours, true)
    assert.equal(await releaseDrives(), [])
    assert.equal(deviceMounts(one.device), [])
    assert.not(existsSync(path))
    one.detach()
  })

  test('leaves a drive alone that another run mounted and still uses', async () => {
    const one = drive({ label: 'shared' })
    mkdirSync(placeOf(one), { recursive: true, mode: 0o700 })
    const lock = acquireLock({ path: `${placeOf(one)}.lock`, description: 'the other run' })
    const { code } = await failure(mountDrive(await found(one)))
    assert.is(code, 'LOCKED')
    assert.equal(deviceMounts(one.device), [])
    run('mount', one.device, placeOf(one))
    const mounted = await mountDrive(await found(one))
    assert.equal(mounted, { path: placeOf(one), ours: false, warning: undefined })
    assert.equal(await releaseDrives(), [])
    assert.is(deviceMounts(one.device).length, 1)
    lock.release()
    await unmountDrive(placeOf(one))
    one.detach()
  })

  test('mounts a drive that was pulled and is another device now', async () => {
    for (const type of ['ext4', 'xfs'] as const) {
      const old = drive({ type, label: 'replugged' })
      const fresh = cloneDrive(old)
      mkdirSync(placeOf(old), { recursive: true, mode: 0o700 })
      run('mount', old.device, placeOf(old))
      const { path, ours } = await mountDrive(await found(fresh))
      assert.is(path, placeOf(old))
      assert.is(ours, true)
      assert.equal(deviceMounts(old.device), [])
      assert.is(deviceMounts(fresh.device).length, 1)
      await unmountDrive(path)
      for (const one of [old, fresh]) one.detach()
    }
  })

  test('the same drive asked for twice is one mount, and still ours', async () => {
    const one = drive({ label: 'twice' })
    const first = await mountDrive(await found(one))
    assert.equal(await mountDrive(await found(one)), first)
    assert.is(deviceMounts(one.device).length, 1)
    await unmountDrive(first.path)
    one.detach()
  })

  test('does not unmount what is in use, names who uses it, and does so later', async () => {
    const one = drive({ label: 'busy' })
    const { path } = await mountDrive(await found(one))
    const user = spawn('sleep', ['60'], { cwd: path, stdio: 'ignore' })
    const error = await failure(unmountDrive(path))
    assert.is(error.code, 'TARGET_FAILED')
    assert.match(error.message, `${path} is still in use by `)
    assert.match(error.message, `(${user.pid})`)
    assert.is(deviceMounts(one.device).length, 1)
    const [failed, ...others] = await releaseDrives()
    assert.is(failed?.code, 'TARGET_FAILED')
    assert.equal(others, [])
    const ended = new Promise((resolve) => user.once('close', resolve))
    user.kill('SIGKILL')
    await ended
    assert.equal(await releaseDrives(), [])
    assert.equal(deviceMounts(one.device), [])
    assert.not(existsSync(path))
    one.detach()
  })

  test('what a worker that was ended left open does not keep it mounted', async () => {
    const one = drive({ label: 'left open' })
    const { path } = await mountDrive(await found(one))
    const fd = openSync(`${path}/open`, 'w')
    await unmountDrive(path)
    assert.equal(deviceMounts(one.device), [])
    assert.throws(() => fstatSync(fd), /EBADF/)
    one.detach()
  })

  test('waits a moment for a program that looks at a new drive', async () => {
    const one = drive({ label: 'indexed' })
    const { path } = await mountDrive(await found(one))
    const indexer = spawn('sleep', ['0.4'], { cwd: path, stdio: 'ignore' })
    await unmountDrive(path)
    assert.not(existsSync(path))
    indexer.kill()
    one.detach()
  })

  test('a driver that hangs does not answer, and holds nothing up', async () => {
    const one = drive({ type: 'exfat', label: 'hung' })
    const { path } = await mountDrive(await found(one))
    writeFileSync(`${path}/file`, 'x')
    assert.is(await isAnswering(path), true)
    const driver = driverOf(one.device)
    process.kill(driver, 'SIGSTOP')
    try {
      const startMs = Date.now()
      assert.is(await isAnswering(path, { timeoutMs: 400 }), false)
      const error = await failure(unmountDrive(path, { answerTimeoutMs: 400 }))
      assert.is(error.code, 'TARGET_FAILED')
      assert.match(error.message, 'does not answer')
      assert.ok(Date.now() - startMs < 3000)
      assert.equal((await found(one)).mountPoints, [path])
    } finally {
      process.kill(driver, 'SIGCONT')
    }
    assert.is(await isAnswering(path), true)
    await unmountDrive(path)
    assert.not(existsSync(path))
    one.detach()
  })

  test('says that an exFAT drive was pulled without unmounting', async () => {
    const one = drive({ type: 'exfat', label: 'pulled' })
    const { path } = await mountDrive(await found(one))
    process.kill(driverOf(one.device), 'SIGKILL')
    assert.is(await isAnswering(path), false)
    // Nothing can be written out any more, and that is said; the place is free all the same.
    assert.is((await failure(unmountDrive(path))).code, 'TARGET_FAILED')
    assert.not(existsSync(path))
    const { path: again, warning } = await mountDrive(await found(one))
    assert.match(warning ?? '', 'not unmounted cleanly')
    await unmountDrive(again)
    one.detach()
  })

  test('says what checks a drive that cannot be mounted, and leaves no place', async () => {
    const one = drive({ label: 'broken' })
    const filesystem = await found(one)
    run('dd', 'if=/dev/zero', `of=${one.device}`, 'bs=4096', 'count=64', 'conv=fsync')
    const error = await failure(mountDrive(filesystem))
    assert.is(error.code, 'TARGET_ABSENT')
    assert.match(error.message, `the drive broken (${one.device}) cannot be mounted: `)
    assert.match(error.hint ?? '', `sudo fsck.ext4 -f ${one.device}`)
    assert.not(existsSync(placeOf(one)))
    one.detach()
    const gone = await failure(mountDrive({ ...filesystem, device: '/dev/absent' }))
    assert.is(gone.code, 'TARGET_ABSENT')
    assert.match(gone.hint ?? '', 'plug it in again')
    assert.not(existsSync(placeOf(one)))
  })

  test('names the package of a driver that is missing', async () => {
    const one = drive({ type: 'exfat', label: 'no driver' })
    const mount = `
      echo "mount: /x: unknown filesystem type '$2'." >&2; exit 32`
    await withPrograms({ mount }, async () => {
      const error = await failure(mountDrive(await found(one)))
      assert.is(error.code, 'PROGRAM_ABSENT')
      assert.match(error.hint ?? '', 'apt install exfat-fuse exfatprogs')
    })
    assert.not(existsSync(placeOf(one)))
    one.detach()
  })

  test('undoes a mount that it cannot make safe', async () => {
    const one = drive({ type: 'exfat', label: 'unsafe' })
    const mount = `
      case "$*" in *remount*) echo 'mount: /x: permission denied.' >&2; exit 32 ;; esac
      exec /bin/mount "$@"`
    await withPrograms({ mount }, async () => {
      const error = await failure(mountDrive(await found(one)))
      assert.is(error.code, 'TARGET_ABSENT')
      assert.match(error.message, 'permission denied')
    })
    assert.equal(deviceMounts(one.device), [])
    assert.not(existsSync(placeOf(one)))
    one.detach()
  })

  test('undoes a mount that was interrupted', async () => {
    const one = drive({ label: 'interrupted' })
    const mount = '/bin/mount "$@" && exec sleep 20'
    await withPrograms({ mount }, async () => {
      const filesystem = await found(one)
      const error = await failure(mountDrive(filesystem, { signal: AbortSignal.timeout(400) }))
      assert.is(error.code, 'INTERRUPTED')
    })
    assert.equal(deviceMounts(one.device), [])
    assert.not(existsSync(placeOf(one)))
    one.detach()
  })

  test('without root, udisks mounts and unmounts', async () => {
    const one = drive({ label: 'desktop' })
    const filesystem = await found(one)
    const media = tempDirectory()
    const calls = `${media}.calls`
    const udisksctl = `
      echo "$@" >> ${calls}
      case $1 in
        mount) mkdir ${media}/desktop; /bin/mount "$4" ${media}/desktop
          echo "Mounted $4 at ${media}/desktop" ;;
        unmount) /bin/umount "$4" && rmdir ${media}/desktop && echo "Unmounted $4." ;;
      esac`
    await withPrograms({ udisksctl }, async () => {
      await asUser(async () => {
        const mounted = await mountDrive(filesystem)
        assert.equal(mounted, { path: `${media}/desktop`, ours: true, warning: undefined })
        assert.equal(await releaseDrives(), [])
      })
    })
    assert.equal(deviceMounts(one.device), [])
    assert.equal(readFileSync(calls, 'utf8').split('\n'), [
      `mount --no-user-interaction -b ${one.device}`,
      `unmount --no-user-interaction -b ${one.device}`,
      '',
    ])
    rmSync(calls)
    one.detach()
  })

  test('without root, a refusal of udisks is said, and its absence, too', async () => {
    const one = drive({ label: 'refused' })
    const filesystem = await found(one)
    const said = `Error mounting ${one.device}: GDBus.Error:…NotAuthorized: Not authorized`
    await withPrograms({ udisksctl: `echo '${said}' >&2; exit 1` }, async () => {
      await asUser(async () => {
        const error = await failure(mountDrive(filesystem))
        assert.is(error.code, 'TARGET_ABSENT')
        assert.match(error.message, 'Not authorized')
      })
    })
    if (spawnSync('which', ['udisksctl']).status !== 0) {
      await asUser(async () => {
        assert.is((await failure(mountDrive(filesystem))).code, 'PROGRAM_ABSENT')
      })
    }
    assert.equal(deviceMounts(one.device), [])
    one.detach()
  })

  /** One USB disk, whose partition is the given device. */
  function lsblkOf(device: string): string {
    const child = { path: device, type: 'part', fstype: 'ext4', size: 1 }
    const disk = { path: '/dev/sdz', type: 'disk', tran: 'usb', size: 2, children: [child] }
    return `echo '${JSON.stringify({ blockdevices: [disk] })}'`
  }

  test('keeps the power on while something of the disk is mounted', async () => {
    const one = drive({ label: 'powered' })
    const { path } = await mountDrive(await found(one))
    const called = `${tempDirectory()}/called`
    const programs = { lsblk: lsblkOf(one.device), udisksctl: `touch ${called}` }
    const disk = { disk: '/dev/sdz', isRemovable: true }
    await withPrograms(programs, async () => {
      const error = await failure(powerOff(disk))
      assert.is(error.code, 'TARGET_FAILED')
      assert.match(error.message, `/dev/sdz is still mounted at ${path}`)
      assert.not(existsSync(called))
      await unmountDrive(path)
      assert.is(await powerOff({ ...disk, isRemovable: false }), 'not possible')
      assert.not(existsSync(called))
      assert.is(await powerOff(disk), 'off')
      assert.ok(existsSync(called))
    })
    one.detach()
  })

  test('lets the kernel take a disk off where udisks does not run', async () => {
    const one = drive({ label: 'sys' })
    const sysBlock = tempDirectory()
    const remove = `${sysBlock}/sdz/device/delete`
    const udisksctl = 'echo "Error connecting to the udisks daemon" >&2; exit 1'
    const disk = { disk: '/dev/sdz', isRemovable: true }
    await withPrograms({ lsblk: lsblkOf(one.device), udisksctl }, async () => {
      assert.is(await powerOff(disk, { sysBlock }), 'not possible')
      assert.not(existsSync(remove))
      mkdirSync(`${sysBlock}/sdz/device`, { recursive: true })
      writeFileSync(remove, '')
      assert.is(await powerOff(disk, { sysBlock }), 'off')
      assert.is(readFileSync(remove, 'utf8'), '1')
    })
    const opened = lsblkOf(one.device).replace('"part"', '"crypt"')
    writeFileSync(remove, '')
    await withPrograms({ lsblk: opened, udisksctl }, async () => {
      assert.is(await powerOff(disk, { sysBlock }), 'not possible')
      assert.is(readFileSync(remove, 'utf8'), '')
    })
    one.detach()
  })

  test('leaves out a mount that nobody answers for when it looks for drives', async () => {
    const one = drive({ type: 'exfat', label: 'stuck' })
    const { path } = await mountDrive(await found(one))
    const driver = driverOf(one.device)
    process.kill(driver, 'SIGSTOP')
    const startMs = Date.now()
    try {
      const listed = await listBlockFilesystems()
      assert.ok(listed.some((filesystem) => matchesDrive(filesystem, { label: 'stuck' })))
      assert.ok(Date.now() - startMs < 3000)
    } finally {
      process.kill(driver, 'SIGCONT')
    }
    await sleep(50)
    await unmountDrive(path)
    one.detach()
  })
}

mounting.run()
