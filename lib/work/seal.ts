// Sealing: the tree that rsync left in staging becomes the entries of its catalog (docs/format.md
// §5, §8).
//
// One synchronous walk in catalog order: metadata, extended attributes, ACLs, data segments,
// hard-link groups. What is read is our own copy, so nothing changes under the walk. The directory
// itself is no entry. Throws STAGING_FAILED where the tree cannot be read, and system errors by way
// of staging.ts's stagingError.

import type { Buffer } from 'node:buffer'
import {
  type BigIntStats,
  closeSync,
  constants,
  lstatSync,
  openSync,
  readdirSync,
  readlinkSync,
} from 'node:fs'
import { systemCode } from '../errors.ts'
import { aclToText } from '../format/acl.ts'
import type { AccountNames } from '../machine/accounts.ts'
import { dataSegments, deviceParts, getXattr, listXattrs } from '../machine/posix.ts'
import type { Entry, EntryType } from '../model/entry.ts'
import { comparePaths, parentOf, type RawPath, rawPathToBytes } from '../model/raw-path.ts'

const ACCESS_ACL = 'system.posix_acl_access'
const DEFAULT_ACL = 'system.posix_acl_default'

/** What `st_blocks` counts in. */
const STAT_BLOCK_BYTES = 512

/** Every path below `directory`, in catalog order. */
export function sealTree({
  directory,
  names,
}: {
  directory: RawPath
  names: AccountNames
}): Entry[] {
  const walk: Walk = { directory, names, entries: [], firstPaths: new Map() }
  walkDirectory(walk, '')
  return walk.entries
}

/**
 * The same entries as sealTree's, read only where something changed: `before` are those of the
 * generation that this one began as, `present` and `gone` what differs (btrfs-changes.ts).
 */
export function sealChanges({
  directory,
  names,
  before,
  present,
  gone,
}: {
  directory: RawPath
  names: AccountNames
  before: readonly Entry[]
  present: readonly RawPath[]
  gone: readonly RawPath[]
}): { readonly entries: Entry[]; readonly changed: ReadonlySet<RawPath> } {
  const named = new Set([...present, ...gone])
  const changed = new Set([...named].flatMap(withParents))
  const walk: Walk = { directory, names, entries: [], firstPaths: new Map() }
  for (const path of [...changed].sort(comparePaths)) {
    if (isThere(`${directory}/${path}`)) walk.entries.push(readEntry(walk, path))
  }
  // What was in a directory that is none any more goes with it.
  const removed = new Set(gone)
  for (const path of present) if (!isDirectoryAt(`${directory}/${path}`)) removed.add(path)
  const stays = before.filter(({ path }) => !changed.has(path) && !isBelowAny(path, removed))
  const entries = merge(stays, walk.entries)
  return { entries, changed }
}

function withParents(path: RawPath): RawPath[] {
  const paths: RawPath[] = []
  for (let above = path; above !== ''; above = parentOf(above)) paths.push(above)
  return paths
}

function isBelowAny(path: RawPath, directories: ReadonlySet<RawPath>): boolean {
  if (directories.size === 0) return false
  for (let above = parentOf(path); above !== ''; above = parentOf(above)) {
    if (directories.has(above)) return true
  }
  return false
}

function isThere(path: RawPath): boolean {
  return lstatSync(rawPathToBytes(path), { throwIfNoEntry: false }) !== undefined
}

function isDirectoryAt(path: RawPath): boolean {
  return lstatSync(rawPathToBytes(path), { throwIfNoEntry: false })?.isDirectory() === true
}

/** Two lists in catalog order as one. */
function merge(a: readonly Entry[], b: readonly Entry[]): Entry[] {
  const merged: Entry[] = []
  let next = 0
  for (const entry of a) {
    for (; next < b.length && comparePaths(b[next]!.path, entry.path) < 0; next++)
      merged.push(b[next]!)
    merged.push(entry)
  }
  return [...merged, ...b.slice(next)]
}

interface Walk {
  readonly directory: RawPath
  readonly names: AccountNames
  readonly entries: Entry[]
  /**
   * The first path of each inode. In staging most files have several links: one in each collection.
   */
  readonly firstPaths: Map<bigint, RawPath>
}

function walkDirectory(walk: Walk, path: RawPath): void {
  for (const name of namesIn(path === '' ? walk.directory : `${walk.directory}/${path}`)) {
    const child = path === '' ? name : `${path}/${name}`
    const entry = readEntry(walk, child)
    walk.entries.push(entry)
    if (entry.type === 'directory') walkDirectory(walk, child)
  }
}

/**
 * Sorted as bytes. A directory that even its owner may not read was not read at its source either.
 */
function namesIn(directory: RawPath): RawPath[] {
  try {
    return readdirSync(rawPathToBytes(directory), { encoding: 'latin1' }).sort()
  } catch (error) {
    if (systemCode(error) === 'EACCES') return []
    throw error
  }
}

function readEntry(walk: Walk, path: RawPath): Entry {
  const file = `${walk.directory}/${path}`
  const stat = lstatSync(rawPathToBytes(file), { bigint: true })
  const type = typeOf(stat)
  const first =
    type === 'file' && stat.nlink > 1n ? firstPath(walk, { inode: stat.ino, path }) : path
  const user = walk.names.users.get(Number(stat.uid))
  const group = walk.names.groups.get(Number(stat.gid))
  return {
    path,
    type: first === path ? type : 'link',
    mode: Number(stat.mode & 0o7777n),
    uid: Number(stat.uid),
    gid: Number(stat.gid),
    ...(user === undefined ? {} : { user }),
    ...(group === undefined ? {} : { group }),
    mtimeNs: stat.mtimeNs,
    ...(first === path ? contentOf({ file, type, stat }) : { target: first }),
    ...attributesOf(file),
    ...(stat.ino <= BigInt(Number.MAX_SAFE_INTEGER) ? { inode: Number(stat.ino) } : {}),
    bornNs: stat.birthtimeNs,
  }
}

function firstPath(walk: Walk, { inode, path }: { inode: bigint; path: RawPath }): RawPath {
  const known = walk.firstPaths.get(inode)
  if (known === undefined) walk.firstPaths.set(inode, path)
  return known ?? path
}

/** What a path is, without regard to other names of the same file. */
export function typeOf(stat: BigIntStats): EntryType {
  if (stat.isFile()) return 'file'
  if (stat.isDirectory()) return 'directory'
  if (stat.isSymbolicLink()) return 'symlink'
  if (stat.isFIFO()) return 'fifo'
  if (stat.isCharacterDevice()) return 'char'
  return stat.isBlockDevice() ? 'block' : 'socket'
}

function contentOf({
  file,
  type,
  stat,
}: {
  file: RawPath
  type: EntryType
  stat: BigIntStats
}): Partial<Entry> {
  switch (type) {
    case 'file': {
      const size = Number(stat.size)
      const sparse =
        stat.blocks * BigInt(STAT_BLOCK_BYTES) < stat.size ? segmentsOf(file, size) : undefined
      return { size, ...(sparse === undefined ? {} : { sparse }) }
    }
    case 'symlink':
      return { target: readlinkSync(rawPathToBytes(file), { encoding: 'latin1' }) }
    case 'char':
    case 'block':
      return { device: deviceParts(stat.rdev) }
    default:
      return {}
  }
}

/** Undefined when there is no hole after all: few blocks may also be compression. */
function segmentsOf(file: RawPath, size: number): [number, number][] | undefined {
  const fd = openSync(rawPathToBytes(file), constants.O_RDONLY | constants.O_NOFOLLOW)
  try {
    const segments = dataSegments(fd, size)
    return segments.length === 1 && segments[0]?.[1] === size ? undefined : segments
  } finally {
    closeSync(fd)
  }
}

function attributesOf(file: RawPath): Partial<Entry> {
  const xattrs = new Map<string, Buffer>()
  let attributes: Partial<Entry> = {}
  for (const name of listXattrs(file)) {
    const value = getXattr(file, name)
    if (value === undefined) continue
    if (name === ACCESS_ACL) attributes = { ...attributes, acl: aclToText(value) }
    else if (name === DEFAULT_ACL) attributes = { ...attributes, defaultAcl: aclToText(value) }
    else if (!name.startsWith('system.')) xattrs.set(name, value)
  }
  return xattrs.size === 0 ? attributes : { ...attributes, xattrs }
}
