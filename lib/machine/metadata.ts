// Gives a restored path its owner, mode, xattrs, ACLs and time: the inverse of what
// lib/work/seal.ts reads.
//
// What this user or this file system cannot hold is not an error but an answer: the caller lists it
// (invariant 10).

import { Buffer } from 'node:buffer'
import { chmodSync, closeSync, constants, lchownSync, openSync } from 'node:fs'
import { systemCode } from '../errors.ts'
import { aclFromText } from '../format/acl.ts'
import type { EntryMetadata, InodeFlag } from '../model/entry.ts'
import { type RawPath, rawPathToBytes } from '../model/raw-path.ts'
import { addInodeFlags, setTimes, setXattr } from './posix.ts'

/** What could not be set: `owner`, `mode`, `acl`, `time`, `flags` or `xattr <name>`. */
export type LostMetadata = string

/**
 * Sets everything but the type and the inode flags; `owner` is the present one, where the caller
 * knows it. Never follows a symbolic link. @throws the system's error for broken disks
 */
export function applyMetadata(
  path: RawPath,
  metadata: EntryMetadata,
  owner?: { readonly uid: number; readonly gid: number },
): LostMetadata[] {
  const lost: LostMetadata[] = []
  const attempt = (what: LostMetadata, action: () => void) => {
    try {
      action()
    } catch (error) {
      if (!REFUSALS.has(systemCode(error) ?? '')) throw error
      lost.push(what)
    }
  }
  const bytes = rawPathToBytes(path)
  // The owner first: changing it clears set-user-id bits and capabilities.
  const isOwned = owner?.uid === metadata.uid && owner.gid === metadata.gid
  if (!isOwned) attempt('owner', () => lchownSync(bytes, metadata.uid, metadata.gid))
  if (metadata.type !== 'symlink') attempt('mode', () => chmodSync(bytes, metadata.mode))
  for (const [name, value] of metadata.xattrs ?? []) {
    attempt(`xattr ${name}`, () => setXattr(path, name, Buffer.from(value)))
  }
  const { acl, defaultAcl } = metadata
  if (acl !== undefined)
    attempt('acl', () => setXattr(path, 'system.posix_acl_access', aclFromText(acl)))
  if (defaultAcl !== undefined) {
    attempt('acl', () => setXattr(path, 'system.posix_acl_default', aclFromText(defaultAcl)))
  }
  attempt('time', () => setTimes(path, { mtimeNs: metadata.mtimeNs }))
  return lost
}

/** FS_*_FL of linux/fs.h. */
const FLAG_BITS: Readonly<Record<InodeFlag, number>> = {
  append: 0x20,
  compressed: 0x04,
  immutable: 0x10,
  nodump: 0x40,
}

/**
 * Sets the inode flags of a file or directory, besides those it has: after everything else, for an
 * immutable file can be neither renamed nor linked nor given a time.
 * @throws the system's error for broken disks
 */
export function applyFlags(path: RawPath, { flags = [] }: EntryMetadata): LostMetadata[] {
  if (flags.length === 0) return []
  if (process.platform !== 'linux') return ['flags']
  const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = constants
  try {
    const fd = openSync(rawPathToBytes(path), O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
    try {
      addInodeFlags(
        fd,
        flags.reduce((bits, flag) => bits | FLAG_BITS[flag], 0),
      )
    } finally {
      closeSync(fd)
    }
    return []
  } catch (error) {
    if (!REFUSALS.has(systemCode(error) ?? '')) throw error
    return ['flags']
  }
}

const REFUSALS: ReadonlySet<string> = new Set([
  'EPERM',
  'EACCES',
  'ENOTSUP',
  'EOPNOTSUPP',
  'EINVAL',
  'ENOSYS',
  'ENOTTY',
  'E2BIG',
  'ERANGE',
])
