// What tells one filesystem from another, whatever its device is called today: its UUID, else what
// was mounted.
//
// On btrfs the kernel says it, for each of several devices; else /dev/disk/by-uuid is read where
// udev keeps it, else blkid is asked (as root). On btrfs the subvolume's path belongs to it: where
// a subvolume is not mounted, its parent shows an empty directory of the same filesystem. Used by
// the source-sanity gate (model/sanity.ts), which knows that the UUID may be lacking. Throws
// nothing: what cannot be found out has the name that the mount has.

import { existsSync, readdirSync, realpathSync } from 'node:fs'
import { displayPath, type RawPath, rawPathToBytes } from '../model/raw-path.ts'
import { runProgram } from './shell.ts'
import { type Mount, mountOf } from './source-snapshot/mounts.ts'

const BY_UUID = '/dev/disk/by-uuid'
const BTRFS = '/sys/fs/btrfs'

/** blkid reads a few blocks; a device that does not answer must not hold the run up. */
const BLKID_TIMEOUT_MS = 10_000

/**
 * `ext4 1b4e28ba-…`, `btrfs 1b4e28ba-… /@home`, `zfs tank/home`, `tmpfs`; `unknown` without a
 * mount.
 */
export async function filesystemId(real: RawPath, mounts: readonly Mount[]): Promise<string> {
  const mount = mountOf(real, mounts)
  if (mount === undefined) return 'unknown'
  const name = (await uuidOf(mount)) ?? (mount.device.startsWith('/dev/') ? '' : mount.device)
  const subvolume = mount.type === 'btrfs' ? mount.root : ''
  return [mount.type, displayPath(name), displayPath(subvolume)]
    .filter((word) => word !== '')
    .join(' ')
}

async function uuidOf({ type, device }: Mount): Promise<string | undefined> {
  if (!device.startsWith('/dev/')) return undefined
  const known = type === 'btrfs' ? uuidByKernel(device) : undefined
  return known ?? uuidByLink(device) ?? (await uuidByBlkid(device))
}

/** `/sys/fs/btrfs/UUID/devices` has all devices of a mounted filesystem, `!` for a slash. */
function uuidByKernel(device: RawPath): string | undefined {
  try {
    const real = realpathSync(rawPathToBytes(device), 'latin1')
    const name = real.slice('/dev/'.length).replaceAll('/', '!')
    return readdirSync(BTRFS).find((uuid) => {
      return existsSync(rawPathToBytes(`${BTRFS}/${uuid}/devices/${name}`))
    })
  } catch {
    // No /sys here, or a device that is gone.
    return undefined
  }
}

function uuidByLink(device: RawPath): string | undefined {
  try {
    const real = realpathSync(rawPathToBytes(device), 'latin1')
    return readdirSync(BY_UUID).find((uuid) => realpathSync(`${BY_UUID}/${uuid}`) === real)
  } catch {
    // No udev here, or a device that is gone.
    return undefined
  }
}

async function uuidByBlkid(device: RawPath): Promise<string | undefined> {
  try {
    // -p: what is on the device, not what blkid remembers of another one of that name.
    const args = ['-p', '-o', 'value', '-s', 'UUID', '--', rawPathToBytes(device)]
    const call = { program: 'blkid', args, changes: false, timeoutMs: BLKID_TIMEOUT_MS }
    const { exitCode, stdout } = await runProgram(call)
    const uuid = stdout.trim()
    return exitCode === 0 && uuid !== '' ? uuid : undefined
  } catch {
    return undefined
  }
}
