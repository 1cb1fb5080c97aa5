// Gives a restored path its owner, mode, xattrs, ACLs, time and inode flags: the inverse of what
// lib/work/seal.ts and lib/machine/statx.ts read.
//
// What this user or this filesystem cannot hold is not an error but an answer: the caller lists it
// (invariant 10). Some filesystems say yes and do something else, so what is there in the end is
// looked at. What the backup does not have is taken away: an ACL inherited from the directory, an
// attribute of the file that was there. Throws the system's error for broken disks, and
// CATALOG_DAMAGED for an ACL that is none.

import { Buffer } from 'node:buffer'
import { chmodSync, closeSync, constants, lchownSync, lstatSync, openSync } from 'node:fs'
import { systemCode } from '../errors.ts'
import { aclFromText } from '../format/acl.ts'
import type { EntryMetadata, EntryType, InodeFlag } from '../model/entry.ts'
import { type RawPath, rawPathToBytes } from '../model/raw-path.ts'
import { addInodeFlags, listXattrs, removeXattr, setTimes, setXattr } from './posix.ts'
import { statSource } from './statx.ts'

/**
 * What could not be set: `owner`, `group`, `mode`, `acl`, `time`, `xattr <name>` or `flag <name>`.
 */
export type LostMetadata = string

const [SET_USER_ID, SET_GROUP_ID] = [0o4000, 0o2000]
const PERMISSIONS = 0o7777
const OWNER_MAY_WRITE = 0o200
/** For lchown: this one stays as it is. */
const AS_IT_IS = -1

const ACCESS_ACL = 'system.posix_acl_access'
const DEFAULT_ACL = 'system.posix_acl_default'

/**
 * Sets everything but the type and the inode flags; `owner` is the present one, where the caller
 * knows it. Never follows a symbolic link.
 * @throws the system's error for broken disks; BackupError CATALOG_DAMAGED for a malformed ACL
 */
export function applyMetadata(
  path: RawPath,
  metadata: EntryMetadata,
  owner?: { readonly uid: number; readonly gid: number },
): LostMetadata[] {
  const bytes = rawPathToBytes(path)
  const { type, uid, gid, mtimeNs } = metadata
  // The owner first: changing it clears set-user-id bits and capabilities.
  if (owner?.uid !== uid || owner.gid !== gid) setOwner(bytes, { uid, gid })
  // The mode after the attributes: who is not root may set those of writable files only.
  const lost = setXattrs(path, metadata)
  // What cannot be done here differs in the end.
  if (type !== 'symlink') isDone(() => chmodSync(bytes, safeMode(bytes, metadata)))
  // The ACL after the mode, which would change its mask.
  if (!setAcls(path, metadata)) lost.push('acl')
  isDone(() => setTimes(path, { mtimeNs }))
  return [...differences(bytes, metadata), ...lost]
}

/** Who may not give a file away may still choose among the own groups. */
function setOwner(path: Buffer, { uid, gid }: { uid: number; gid: number }): void {
  if (!isDone(() => lchownSync(path, uid, gid))) isDone(() => lchownSync(path, AS_IT_IS, gid))
}

/**
 * The mode without the bits that would let everybody act as a user or group whose file it never
 * was.
 */
function safeMode(path: Buffer, { uid, gid, mode }: EntryMetadata): number {
  if ((mode & (SET_USER_ID | SET_GROUP_ID)) === 0) return mode
  const there = lstatSync(path)
  const userBit = there.uid === uid ? 0 : SET_USER_ID
  const groupBit = there.gid === gid ? 0 : SET_GROUP_ID
  return mode & ~userBit & ~groupBit
}

/** Takes away what the backup does not have, and sets the rest; returns what is lost. */
function setXattrs(path: RawPath, { type, xattrs, ...metadata }: EntryMetadata): LostMetadata[] {
  const lost: LostMetadata[] = []
  const attempt = (what: LostMetadata, action: () => void): void => {
    if (!isDone(() => writing({ path, type, action }), FULL)) lost.push(what)
  }
  for (const name of listXattrs(path)) {
    const isExtraAcl =
      (name === ACCESS_ACL && metadata.acl === undefined)
      || (name === DEFAULT_ACL && metadata.defaultAcl === undefined)
    if (isExtraAcl) attempt('acl', () => removeXattr(path, name))
    else if (isRemovable(name) && xattrs?.has(name) !== true) {
      attempt(`xattr ${name}`, () => removeXattr(path, name))
    }
  }
  for (const [name, value] of xattrs ?? []) {
    attempt(`xattr ${name}`, () => setXattr(path, name, Buffer.from(value)))
  }
  return lost
}

/** Not the labels that the system's policy gives to every new file. */
function isRemovable(name: string): boolean {
  return name.startsWith('user.') || name.startsWith('trusted.') || name === 'security.capability'
}

/** Tries again as one who may write the file; its mode is set afterwards. */
function writing({
  path,
  type,
  action,
}: {
  readonly path: RawPath
  readonly type: EntryType
  readonly action: () => void
}): void {
  try {
    action()
  } catch (error) {
    if (type === 'symlink' || systemCode(error) !== 'EACCES') throw error
    const bytes = rawPathToBytes(path)
    chmodSync(bytes, (lstatSync(bytes).mode & PERMISSIONS) | OWNER_MAY_WRITE)
    action()
  }
}

function setAcls(path: RawPath, { acl, defaultAcl }: EntryMetadata): boolean {
  const attributes = [
    [ACCESS_ACL, acl],
    [DEFAULT_ACL, defaultAcl],
  ] as const
  return attributes
    .map(([name, text]) => {
      if (text === undefined) return true
      const value = aclFromText(text)
      // macOS would take it for an attribute like any other.
      return process.platform === 'linux' && isDone(() => setXattr(path, name, value), FULL)
    })
    .every(Boolean)
}

/** What is there, against what was asked for: some filesystems round, or forget. */
function differences(path: Buffer, metadata: EntryMetadata): LostMetadata[] {
  const { type, uid, gid, mode, mtimeNs } = metadata
  const there = lstatSync(path, { bigint: true })
  const what: LostMetadata[] = []
  if (Number(there.uid) !== uid) what.push('owner')
  if (Number(there.gid) !== gid) what.push('group')
  if (type !== 'symlink' && (Number(there.mode) & PERMISSIONS) !== mode) what.push('mode')
  if (there.mtimeNs !== mtimeNs) what.push('time')
  return what
}

/** FS_*_FL of linux/fs.h. The last two forbid to change the others. */
const FLAG_BITS: readonly (readonly [flag: InodeFlag, bit: number])[] = [
  ['compressed', 0x04],
  ['nodump', 0x40],
  ['append', 0x20],
  ['immutable', 0x10],
]

/**
 * Sets the inode flags of a file or directory, besides those it has: after everything else, for an
 * immutable file can be neither renamed nor linked nor given a time.
 * @throws the system's error for broken disks
 */
export function applyFlags(path: RawPath, { flags = [] }: EntryMetadata): LostMetadata[] {
  if (flags.length === 0) return []
  const all = flags.map((flag) => `flag ${flag}`)
  if (process.platform !== 'linux') return all
  const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = constants
  const open = (): number => openSync(rawPathToBytes(path), O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
  const isOpened = isDone(() => {
    const fd = open()
    try {
      // One by one: this user may set some, this filesystem may know others.
      for (const [flag, bit] of FLAG_BITS) {
        if (flags.includes(flag)) isDone(() => addInodeFlags(fd, bit))
      }
    } finally {
      closeSync(fd)
    }
  })
  if (!isOpened) return all
  const there = statSource(path).flags
  return all.filter((_, index) => !there.includes(flags[index]!))
}

/** What says that it cannot be done here, or by this user. */
const REFUSALS: readonly string[] = [
  'EPERM',
  'EACCES',
  'ENOTSUP',
  'EOPNOTSUPP',
  'EINVAL',
  'ENOSYS',
  'ENOTTY',
  'E2BIG',
  'ERANGE',
]

/** What ext4 says of an attribute that is larger than its block, however empty the disk is. */
const FULL: readonly string[] = ['ENOSPC', 'EDQUOT']

/** False where it was refused. @throws whatever else went wrong */
function isDone(action: () => void, refusals: readonly string[] = []): boolean {
  try {
    action()
    return true
  } catch (error) {
    const code = systemCode(error) ?? ''
    if (!REFUSALS.includes(code) && !refusals.includes(code)) throw error
    return false
  }
}
