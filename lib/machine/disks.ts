// Which disks hold what is mounted: two filesystems on one disk are lost together.
//
// lib/work/score.ts counts media by it. Linux says it in /sys/class/block: a partition lies in the
// directory of its disk, and what is stacked (LUKS, LVM, RAID) names what it lies on. On macOS the
// name of a slice begins with that of its disk; which disk an APFS container is on stays unknown.
// Throws nothing: what cannot be found out is a disk of its own.

import { existsSync, readFileSync, readdirSync, realpathSync, statSync } from 'node:fs'
import { basename, dirname } from 'node:path'
import { displayPath, type RawPath, rawPathToBytes } from '../model/raw-path.ts'
import { deviceParts } from './posix.ts'
import type { Mount } from './source-snapshot/mounts.ts'

const BLOCK = '/sys/class/block'

/** Devices are stacked a few deep; deeper is a circle. */
const MAX_DEPTH = 8

/** Names of disks, such as `sda`; of what is no block device, what was mounted. */
export function disksOf({ device, type }: Mount): readonly string[] {
  if (type === 'zfs') return [`zfs ${displayPath(device).split('/')[0]}`]
  if (!device.startsWith('/dev/')) return [displayPath(device)]
  const name = basename(realOf(device))
  if (process.platform === 'darwin') return [name.replace(/^(disk\d+)s.*$/, '$1')]
  return [...new Set(disksBelow(name, MAX_DEPTH))]
}

/**
 * All that a mount lies on, by name: devices down to the disks, and the files that loop devices
 * show, as their paths.
 */
export function stackOf({ device }: Mount): readonly string[] {
  return device.startsWith('/dev/') ? stackBelow(basename(realOf(device)), MAX_DEPTH) : []
}

function stackBelow(name: string, depth: number): readonly string[] {
  try {
    const directory = realpathSync(`${BLOCK}/${name}`)
    const isPart = existsSync(`${directory}/partition`)
    const below = existsSync(`${directory}/slaves`) ? readdirSync(`${directory}/slaves`) : []
    const next = depth === 0 ? [] : isPart ? [basename(dirname(directory))] : below
    const file = `${directory}/loop/backing_file`
    const files = existsSync(file) ? [readFileSync(file, 'utf8').trimEnd()] : []
    return [name, ...files, ...next.flatMap((one) => stackBelow(one, depth - 1))]
  } catch {
    return [name]
  }
}

/** What the system calls a block device, whatever its path; undefined for anything else. */
export function blockName(path: string): string | undefined {
  const stat = statSync(path, { throwIfNoEntry: false, bigint: true })
  if (stat?.isBlockDevice() !== true) return undefined
  const known = `/sys/dev/block/${deviceParts(stat.rdev).join(':')}`
  return basename(realpathSync(existsSync(known) ? known : path))
}

function disksBelow(name: string, depth: number): readonly string[] {
  try {
    const directory = realpathSync(`${BLOCK}/${name}`)
    if (existsSync(`${directory}/partition`)) return disksBelow(basename(dirname(directory)), depth)
    const below = existsSync(`${directory}/slaves`) ? readdirSync(`${directory}/slaves`) : []
    if (below.length === 0 || depth === 0) return [name]
    return below.flatMap((one) => disksBelow(one, depth - 1))
  } catch {
    return [name]
  }
}

/** `/dev/mapper/data` is a link to `/dev/dm-0`, which is what /sys knows. */
function realOf(device: RawPath): string {
  try {
    return realpathSync(rawPathToBytes(device))
  } catch {
    return displayPath(device)
  }
}
