// Gives a restored path its owner, mode, xattrs, ACLs and time: the inverse of what
// lib/work/seal.ts reads.
//
// What this user or this file system cannot hold is not an error but an answer: the caller lists it
// (invariant 10).

import { Buffer } from 'node:buffer'
import { chmodSync, lchownSync } from 'node:fs'
import { systemCode } from '../errors.ts'
import { aclFromText } from '../format/acl.ts'
import type { EntryMetadata } from '../model/entry.ts'
import { type RawPath, rawPathToBytes } from '../model/raw-path.ts'
import { setTimes, setXattr } from './posix.ts'

/** What could not be set: `owner`, `mode`, `acl`, `time` or `xattr <name>`. */
export type LostMetadata = string

/**
 * Sets everything but the type; `owner` is the present one, where the caller knows it. Never
 * follows a symbolic link. @throws the system's error for broken disks
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

const REFUSALS: ReadonlySet<string> = new Set([
  'EPERM',
  'EACCES',
  'ENOTSUP',
  'EOPNOTSUPP',
  'EINVAL',
  'ENOSYS',
  'E2BIG',
  'ERANGE',
])
