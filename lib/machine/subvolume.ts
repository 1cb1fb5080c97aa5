// btrfs subvolumes by ioctl: make one, snapshot one, make it read-only, delete it, tell whether a
// directory is one.
//
// No program is needed and every call is synchronous, so that staging can use them where it renames
// and removes (lib/work/generation.ts); source snapshots, which are asynchronous anyway, use the
// btrfs program (source-snapshot/btrfs.ts). Structures and numbers are those of <linux/btrfs.h>, as
// x86 and ARM count them. Throws system errors with `code`; what they mean is the caller's.

import { Buffer } from 'node:buffer'
import { closeSync, constants, lstatSync, openSync, statfsSync } from 'node:fs'
import { baseOf, parentOf, type RawPath, rawPathToBytes } from '../model/raw-path.ts'
import { ioctl } from './posix.ts'

/** What statfs(2) calls btrfs. */
const BTRFS_TYPE = 0x9123683e

/** The inode of every subvolume's root. */
const SUBVOLUME_INODE = 256

/** BTRFS_IOC_…: direction, size of the structure, 0x94, number. */
const SUBVOL_CREATE = 0x5000940e
const SNAP_DESTROY = 0x5000940f
const SNAP_CREATE_V2 = 0x50009417
const SUBVOL_GETFLAGS = 0x80089419
const SUBVOL_SETFLAGS = 0x4008941a
const FS_INFO = 0x8400941f

const READ_ONLY = 2n

/** `struct btrfs_ioctl_vol_args` and its second version: as long as each other. */
const ARGUMENT_BYTES = 4096

/** `struct btrfs_ioctl_fs_info_args`, and where the filesystem's id stands in it. */
const FS_INFO_BYTES = 1024
const FS_ID_AT = 16
const FS_ID_BYTES = 16

/** Where the name stands in each. */
const NAME_AT = 8
const NAME_AT_V2 = 56

/** Whether a directory lies on btrfs. */
export function isOnBtrfs(directory: RawPath): boolean {
  return statfsSync(rawPathToBytes(directory)).type === BTRFS_TYPE
}

/** The UUID of the btrfs filesystem that a directory lies on. @throws ENOTTY where it is none */
export function filesystemUuid(directory: RawPath): string {
  const info = Buffer.alloc(FS_INFO_BYTES)
  withDirectory(directory, (fd) => ioctl(fd, FS_INFO, info))
  const id = info.toString('hex', FS_ID_AT, FS_ID_AT + FS_ID_BYTES)
  return id.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
}

/** Whether a path is the root of a subvolume; false when it is not there. */
export function isSubvolume(path: RawPath): boolean {
  const stat = lstatSync(rawPathToBytes(path), { throwIfNoEntry: false })
  return stat?.isDirectory() === true && stat.ino === SUBVOLUME_INODE && isOnBtrfs(path)
}

/** Makes an empty subvolume. @throws EEXIST, EPERM, ENOTTY where this is not btrfs */
export function createSubvolume(path: RawPath): void {
  withDirectory(parentOf(path), (fd) => {
    ioctl(fd, SUBVOL_CREATE, nameArgument({ path, at: NAME_AT }))
  })
}

/** Makes a writable snapshot of a subvolume, which may be read-only. */
export function snapshotSubvolume({ source, target }: { source: RawPath; target: RawPath }): void {
  withDirectory(source, (from) => {
    withDirectory(parentOf(target), (fd) => {
      const argument = nameArgument({ path: target, at: NAME_AT_V2 })
      argument.writeBigInt64LE(BigInt(from), 0)
      ioctl(fd, SNAP_CREATE_V2, argument)
    })
  })
}

export function isReadOnly(subvolume: RawPath): boolean {
  return withDirectory(subvolume, (fd) => (flagsOf(fd).readBigUInt64LE() & READ_ONLY) !== 0n)
}

/** Durable when it returns: the kernel commits. The name in its directory may still change. */
export function setReadOnly(subvolume: RawPath, readOnly: boolean): void {
  withDirectory(subvolume, (fd) => {
    const flags = flagsOf(fd)
    const others = flags.readBigUInt64LE() & ~READ_ONLY
    flags.writeBigUInt64LE(readOnly ? others | READ_ONLY : others)
    ioctl(fd, SUBVOL_SETFLAGS, flags)
  })
}

/**
 * Deletes a subvolume, read-only or not, with all that is in it, at once; its space comes back a
 * little later.
 * @throws EPERM where only root may, ENOTEMPTY where another subvolume is in it
 */
export function deleteSubvolume(path: RawPath): void {
  withDirectory(parentOf(path), (fd) => {
    ioctl(fd, SNAP_DESTROY, nameArgument({ path, at: NAME_AT }))
  })
}

function flagsOf(fd: number): Buffer {
  const flags = Buffer.alloc(8)
  ioctl(fd, SUBVOL_GETFLAGS, flags)
  return flags
}

function nameArgument({ path, at }: { path: RawPath; at: number }): Buffer {
  const argument = Buffer.alloc(ARGUMENT_BYTES)
  const name = rawPathToBytes(baseOf(path))
  // The kernel wants a terminated name; names longer than this no filesystem has.
  if (name.copy(argument, at, 0, argument.length - at - 1) < name.length)
    throw new Error('a name is longer than btrfs takes')
  return argument
}

function withDirectory<T>(directory: RawPath, work: (fd: number) => T): T {
  const flags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW
  const fd = openSync(rawPathToBytes(directory), flags)
  try {
    return work(fd)
  } finally {
    closeSync(fd)
  }
}
