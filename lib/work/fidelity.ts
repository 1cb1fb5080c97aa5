// What staging cannot keep for this user on this filesystem, said before it is lost.
//
// probeStaging tries one file of our own and takes a moment; self-test.ts tries everything by way
// of rsync, for doctor.ts. rsync's --fake-super is no way out: it makes a regular file of every
// symbolic link and device, and staging has to stay a plain tree. Throws system errors when not
// even a file can be made.

import { Buffer } from 'node:buffer'
import { chownSync, lstatSync, rmSync, writeFileSync } from 'node:fs'
import { systemCode } from '../errors.ts'
import { aclFromText } from '../format/acl.ts'
import { makeNode, setTimes, setXattr } from '../machine/posix.ts'
import { type RawPath, rawPathToBytes } from '../model/raw-path.ts'

/** What a filesystem lets this user set. */
export interface StagingProbe {
  readonly owners: boolean
  readonly devices: boolean
  readonly userXattrs: boolean
  /** `security.*` and `trusted.*`: capabilities, SELinux labels. */
  readonly systemXattrs: boolean
  readonly acls: boolean
  /** Times to the nanosecond. */
  readonly exactTimes: boolean
}

/** Any other than root's. */
const FOREIGN_ID = 12_345

/** An ACL that is more than a mode. */
export const SAMPLE_ACL = 'user::rw-\nuser:12345:r--\ngroup::r--\nmask::r--\nother::---\n'

/** A time that only a filesystem with nanoseconds gives back. */
export const SAMPLE_TIME_NS = 1_000_000_000_123_456_789n

/** Tries it with a file at `path`, where nothing is, and which is removed again. */
export function probeStaging({ path }: { readonly path: RawPath }): StagingProbe {
  const bytes = rawPathToBytes(path)
  const node = `${path}.device`
  // A killed run of this number may have left one.
  rmSync(bytes, { force: true })
  writeFileSync(bytes, 'x', { flag: 'wx', mode: 0o600 })
  try {
    const value = Buffer.from('x')
    return {
      userXattrs: works(() => setXattr(path, 'user.backup_probe', value)),
      systemXattrs: works(() => setXattr(path, 'trusted.backup_probe', value)),
      acls: works(() => setXattr(path, 'system.posix_acl_access', aclFromText(SAMPLE_ACL))),
      devices: works(() => makeNode(node, { type: 'char', mode: 0o600, device: [1, 3] })),
      exactTimes: works(() => setTimes(path, { mtimeNs: SAMPLE_TIME_NS })) && isExact(bytes),
      owners: works(() => chownSync(bytes, FOREIGN_ID, FOREIGN_ID)) && isForeign(bytes),
    }
  } finally {
    rmSync(rawPathToBytes(node), { force: true })
    rmSync(bytes, { force: true })
  }
}

/**
 * Plain sentences, lower-case start, no final period, each with what to do; none where everything
 * is kept.
 */
export function fidelityLosses({
  uid,
  probe,
}: {
  readonly uid: number
  readonly probe: StagingProbe
}): string[] {
  const losses: string[] = []
  const way = uid === 0 ? 'put staging on ext4, XFS, btrfs or ZFS' : 'run as root'
  if (!probe.owners) losses.push(`owners and groups are not kept, all is yours: ${way}`)
  if (!probe.devices) losses.push(`device nodes are left out: ${way}`)
  if (!probe.systemXattrs) {
    losses.push(`security.* and trusted.* attributes (capabilities, labels) are lost: ${way}`)
  }
  const other = 'put staging on ext4, XFS, btrfs or ZFS'
  if (!probe.userXattrs) losses.push(`extended attributes are lost: ${other}`)
  if (!probe.acls) losses.push(`ACLs are lost: ${other}`)
  if (!probe.exactTimes) losses.push(`times are kept to the second or so only: ${other}`)
  return losses
}

function works(action: () => void): boolean {
  try {
    action()
    return true
  } catch (error) {
    if (systemCode(error) === undefined) throw error
    return false
  }
}

function isExact(path: Buffer): boolean {
  return lstatSync(path, { bigint: true }).mtimeNs === SAMPLE_TIME_NS
}

/** A filesystem may let us, and forget it. */
function isForeign(path: Buffer): boolean {
  return lstatSync(path).uid === FOREIGN_ID
}
