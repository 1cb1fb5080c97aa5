// How the directory of a new generation comes to be, is sealed, and goes: a subvolume where staging
// lies on btrfs and lets us, a plain directory elsewhere.
//
// On btrfs a new generation begins as a writable snapshot of the newest one, and rsync changes only
// what changed; elsewhere it begins empty, and rsync links. Neither writes through into an earlier
// generation (design invariant 6). What rsync would wrongly keep in the snapshot,
// removeOutside, clearNames and dropStale take out. Killed at any step, a
// subvolume is a `.partial` like any other: the base of the next run, or removed. Throws system
// errors, which callers wrap by stagingError, PROGRAM_… and INTERRUPTED.

import { type BigIntStats, chmodSync, lstatSync, mkdirSync, readdirSync, rmSync } from 'node:fs'
import { BackupError, systemCode } from '../errors.ts'
import { setTimes } from '../machine/posix.ts'
import { runProgram } from '../machine/shell.ts'
import {
  createSubvolume,
  deleteSubvolume,
  isOnBtrfs,
  isSubvolume,
  setReadOnly,
  snapshotSubvolume,
} from '../machine/subvolume.ts'
import type { Entry } from '../model/entry.ts'
import {
  comparePaths,
  isWithin,
  parentOf,
  type RawPath,
  rawPathToBytes,
} from '../model/raw-path.ts'

export interface GenerationRequest {
  /** The `.partial` to be made; it is not there, and its parent is. */
  readonly target: RawPath
  /** Collections to start from, and interrupted runs of this boot: absolute, best first. */
  readonly collections: readonly RawPath[]
  readonly partials: readonly RawPath[]
  readonly signal?: AbortSignal | undefined
}

export type PreparedGeneration =
  /** An empty directory, for rsync with --link-dest. */
  | {
      readonly kind: 'links'
      readonly linkDestinations: readonly RawPath[]
      /** Why there is no subvolume, where staging is on btrfs. */
      readonly reason?: string
    }
  /** A subvolume that may hold something, for rsync with --delete and without --link-dest. */
  | {
      readonly kind: 'snapshot'
      readonly directory: RawPath
      readonly base: RawPath | undefined
      /** The base was a plain directory: its extents are shared, its inodes are new. */
      readonly isCopied: boolean
    }

/** What a path of a collection (without a leading slash) was read from, absolute. */
export type SourceOf = (path: RawPath) => RawPath

/** What the kernel says where it cannot, or will not, make subvolumes for us. */
const REFUSALS = ['EPERM', 'EACCES', 'ENOTTY', 'EINVAL', 'EOPNOTSUPP', 'ENOSYS', 'EXDEV']

/** Sharing the extents of a large tree is metadata only, but there may be millions of files. */
const COPY_TIMEOUT_MS = 24 * 60 * 60_000

/** Makes the directory of a new generation. @throws system errors; BackupError INTERRUPTED */
export async function prepareGeneration(request: GenerationRequest): Promise<PreparedGeneration> {
  const { target, collections, partials } = request
  const plain = { kind: 'links' as const, linkDestinations: [...collections, ...partials] }
  if (!isOnBtrfs(parentOf(target))) {
    mkdirSync(rawPathToBytes(target), { mode: 0o700 })
    return plain
  }
  const base = [...partials, ...collections].find(isSubvolume)
  const refusal = await makeSubvolume({ ...request, base })
  if (refusal !== undefined) {
    mkdirSync(rawPathToBytes(target), { mode: 0o700 })
    return { ...plain, reason: `no subvolume can be made there (${refusal})` }
  }
  const copied = base === undefined ? (collections[0] ?? partials[0]) : undefined
  if (copied !== undefined) await shareContent({ ...request, source: copied })
  chmodSync(rawPathToBytes(target), 0o700)
  return {
    kind: 'snapshot',
    directory: target,
    base: base ?? copied,
    isCopied: copied !== undefined,
  }
}

/** The attempt is the probe. Gives the code of a refusal, with nothing made. */
async function makeSubvolume({
  target,
  base,
}: GenerationRequest & { base: RawPath | undefined }): Promise<string | undefined> {
  try {
    if (base === undefined) createSubvolume(target)
    else snapshotSubvolume({ source: base, target })
    return undefined
  } catch (error) {
    const code = systemCode(error)
    if (code === undefined || !REFUSALS.includes(code)) throw error
    return code
  }
}

/**
 * Fills a new subvolume from a plain generation without taking its space again. What does not
 * succeed, rsync copies.
 */
async function shareContent({
  source,
  target,
  signal,
}: GenerationRequest & { source: RawPath }): Promise<void> {
  const args = ['-a', '--reflink=always', '--', `${source}/.`, `${target}/`]
  try {
    await runProgram({
      program: 'cp',
      args: args.map(rawPathToBytes),
      changes: true,
      timeoutMs: COPY_TIMEOUT_MS,
      signal,
    })
  } catch (error) {
    if (!(error instanceof BackupError) || error.code === 'INTERRUPTED') throw error
  }
}

/** Takes out of a snapshot what belongs to no source of today: rsync looks below these only. */
export function removeOutside({
  directory,
  sources,
}: {
  directory: RawPath
  /** Without a leading slash. */
  sources: readonly RawPath[]
}): void {
  const visit = (path: RawPath): void => {
    for (const name of namesIn(below(directory, path))) {
      const child = below(path, name)
      if (sources.some((source) => isWithin({ path: child, directory: source }))) continue
      const isAbove = sources.some((source) => isWithin({ path: source, directory: child }))
      if (isAbove && statAt(directory, child)?.isDirectory() === true) visit(child)
      else takeAway(below(directory, child))
    }
  }
  visit('')
}

/**
 * Takes away names that rsync does not bring right where something is already, so that it makes
 * them anew: hard links of one inode that are none in the source (rsync would give both the
 * attributes of one), and directories that are something else there (it may exit with 23). `paths`
 * is what changed with all names of each inode, or what wronglyLinked gave.
 */
export function clearNames({
  directory,
  sourceOf,
  paths,
}: {
  directory: RawPath
  sourceOf: SourceOf
  paths: Iterable<RawPath>
}): void {
  const groups = new Map<bigint, LinkGroup>()
  for (const path of paths) {
    const stat = statAt(directory, path)
    if (stat?.isDirectory() === true) {
      if (statAt(sourceOf(path), '')?.isDirectory() === false) takeAway(below(directory, path))
    } else if (stat !== undefined && stat.nlink > 1n) {
      const group = groups.get(stat.ino) ?? { paths: [], linkCount: Number(stat.nlink) }
      group.paths.push(path)
      groups.set(stat.ino, group)
    }
  }
  separateLinks({ directory, sourceOf, groups })
}

/** The names that are one inode here, as far as they are looked at. */
interface LinkGroup {
  readonly paths: RawPath[]
  readonly linkCount: number
}

function separateLinks({
  directory,
  sourceOf,
  groups,
}: {
  directory: RawPath
  sourceOf: SourceOf
  groups: ReadonlyMap<bigint, LinkGroup>
}): void {
  for (const group of groups.values()) {
    group.paths.sort(comparePaths)
    const inodes = group.paths.map((path) => inodeOf(sourceOf(path)))
    // A name that is not in the list did not change, so these are linked to it no more.
    const isWhole = group.paths.length === group.linkCount
    const kept = isWhole ? inodes.find((inode) => inode !== undefined) : undefined
    for (const [index, path] of group.paths.entries()) {
      if (kept === undefined || inodes[index] !== kept) takeAway(below(directory, path))
    }
  }
}

/** Removes what has a name, and leaves its directory with the mode and time that it had. */
function takeAway(path: RawPath): void {
  const parent = parentOf(path)
  const { mode, mtimeNs } = lstatSync(rawPathToBytes(parent), { bigint: true })
  const modeBits = Number(mode & 0o7777n)
  const isOpen = (modeBits & 0o300) === 0o300
  if (!isOpen) chmodSync(rawPathToBytes(parent), modeBits | 0o700)
  removeTree(path)
  if (!isOpen) chmodSync(rawPathToBytes(parent), modeBits)
  setTimes(parent, { mtimeNs })
}

function inodeOf(path: RawPath): string | undefined {
  const stat = statAt(path, '')
  return stat === undefined ? undefined : `${stat.dev}:${stat.ino}`
}

/**
 * After sealing: the names that are hard links of one inode in the generation and not in the
 * source. Mostly none; where there are some, clearNames with these, copying and sealing again put
 * them right.
 */
export function wronglyLinked({
  entries,
  sourceOf,
}: {
  entries: readonly Entry[]
  sourceOf: SourceOf
}): RawPath[] {
  const groups = new Map<RawPath, RawPath[]>()
  for (const { type, path, target } of entries) {
    if (type !== 'link' || target === undefined) continue
    const group = groups.get(target) ?? [target]
    group.push(path)
    groups.set(target, group)
  }
  return [...groups.values()].filter((paths) => !areLinked(paths.map(sourceOf))).flat()
}

/** Names that are not there any more say nothing. */
function areLinked(paths: readonly RawPath[]): boolean {
  return new Set(paths.map(inodeOf).filter((inode) => inode !== undefined)).size <= 1
}

/**
 * After rsync: a file that could not be read is in a snapshot still as it was before, and would be
 * taken for the one of today. `paths` are those that rsync named as missing or vanished.
 */
export function dropStale({
  directory,
  paths,
  sourceOf,
}: {
  directory: RawPath
  paths: readonly RawPath[]
  sourceOf: SourceOf
}): void {
  for (const path of paths) {
    const staged = statAt(directory, path)
    if (staged === undefined || staged.isDirectory()) continue
    const source = statAt(sourceOf(path), '')
    const isSame = source?.size === staged.size && source.mtimeNs === staged.mtimeNs
    if (!isSame) takeAway(below(directory, path))
  }
}

/** Makes a subvolume read-only; it can still be renamed within its directory, and removed. */
export function sealGeneration(directory: RawPath): void {
  if (isSubvolume(directory)) setReadOnly(directory, true)
}

/**
 * Removes a generation, subvolume or not, under whatever name. Nothing happens where there is none.
 */
export function removeGeneration(directory: RawPath): void {
  if (!isSubvolume(directory)) return removeTree(directory)
  try {
    deleteSubvolume(directory)
  } catch (error) {
    // Without root and user_subvol_rm_allowed only an empty one can be removed, as a directory.
    if (!['EPERM', 'EACCES', 'EROFS'].includes(systemCode(error) ?? '')) throw error
    setReadOnly(directory, false)
    removeTree(directory)
  }
}

/** Removes a tree of ours; directories without write permission are no obstacle. */
function removeTree(path: RawPath): void {
  try {
    rmSync(rawPathToBytes(path), { recursive: true, force: true })
  } catch (error) {
    const mayHelp = ['EACCES', 'EPERM', 'ENOTEMPTY'].includes(systemCode(error) ?? '')
    if (!mayHelp || statAt(path, '')?.isDirectory() !== true) throw error
    openDirectories(path)
    rmSync(rawPathToBytes(path), { recursive: true, force: true })
  }
}

function openDirectories(path: RawPath): void {
  chmodSync(rawPathToBytes(path), 0o700)
  for (const name of namesIn(path)) {
    if (statAt(path, name)?.isDirectory() === true) openDirectories(`${path}/${name}`)
  }
}

function namesIn(directory: RawPath): RawPath[] {
  return readdirSync(rawPathToBytes(directory), { encoding: 'latin1' })
}

function statAt(directory: RawPath, path: RawPath): BigIntStats | undefined {
  try {
    return lstatSync(rawPathToBytes(below(directory, path)), { bigint: true })
  } catch (error) {
    if (['ENOENT', 'ENOTDIR', 'EACCES'].includes(systemCode(error) ?? '')) return undefined
    throw error
  }
}

function below(directory: RawPath, name: RawPath): RawPath {
  return directory === '' || name === '' ? directory + name : `${directory}/${name}`
}
