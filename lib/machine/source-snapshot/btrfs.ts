// Read-only btrfs snapshots of the subvolumes that sources lie on, shown to rsync in a view
// (view.ts).
//
// A snapshot is made at the top of its filesystem, which is mounted privately (subvolid=5), so no
// subvolume of the user's is touched; it is gone again after the run. Its name is written down in
// staging's state before it is made, so that the next run can sweep what a killed one left: exactly
// those names, nobody else's (design invariants 4 and 7). Nested subvolumes come out of a snapshot
// as empty directories with inode 2: isNestedSubvolume finds them. Throws SNAPSHOT_FAILED.

import { Buffer } from 'node:buffer'
import { lstatSync, mkdirSync, readFileSync, readdirSync, rmSync, rmdirSync } from 'node:fs'
import { BackupError, systemCode } from '../../errors.ts'
import { displayPath, parentOf, type RawPath, rawPathToBytes } from '../../model/raw-path.ts'
import { writeDurably } from '../durable-file.ts'
import { setTimes } from '../posix.ts'
import { runProgram } from '../shell.ts'
import { isBelow, type Mount, mountOf, mountsBelow, readMounts } from './mounts.ts'
import {
  bindReadOnly,
  copyParents,
  exists,
  makePlace,
  MOUNT_TIMEOUT_MS,
  removeView,
  succeeded,
  unmountBelow,
} from './view.ts'

/** A source as it was given, and the real path behind its symbolic links; both absolute. */
export interface SnapshotSource {
  readonly given: RawPath
  readonly real: RawPath
}

export interface SnapshotRequest {
  /** Staging's `.state`, a real path: views, private mounts and records live here. */
  readonly state: RawPath
  readonly set: string
  readonly stamp: string
  readonly sources: readonly SnapshotSource[]
}

export interface SourceSnapshot {
  /** Read `<view>/./home/me/data`. */
  readonly view: RawPath
  /** The given paths that are in the view. */
  readonly covered: ReadonlySet<RawPath>
  /** Mounts of other filesystems below sources that could not be shown in the view. */
  readonly unseen: readonly { readonly path: RawPath; readonly why: string }[]
  /**
   * Unmounts and deletes everything. @throws BackupError SNAPSHOT_FAILED; the next run tries again
   */
  readonly release: () => Promise<void>
}

/**
 * The inode of a subvolume's root, and of the empty directory that stands for one in a snapshot.
 */
const SUBVOLUME_INODE = 256
const ABSENT_SUBVOLUME_INODE = 2

/** Making a snapshot flushes the filesystem first, which may take a while on a slow disk. */
const SNAPSHOT_TIMEOUT_MS = 10 * 60_000

/**
 * Whether snapshots can be made of any of these paths at all, as far as one can tell without
 * trying.
 */
export function onBtrfs(real: RawPath, mounts: readonly Mount[] = readMounts()): boolean {
  return mountOf(real, mounts)?.type === 'btrfs'
}

/**
 * Whether a directory of a view is where a nested subvolume should be, and not the root of some
 * other filesystem.
 */
export function isNestedSubvolume(path: RawPath): boolean {
  const stat = lstatSync(rawPathToBytes(path), { throwIfNoEntry: false })
  return stat?.ino === ABSENT_SUBVOLUME_INODE && !readMounts().some(({ point }) => point === path)
}

/**
 * Makes snapshots of every source that lies on btrfs, and of btrfs filesystems mounted below one,
 * and shows them in a view.
 * @throws BackupError SNAPSHOT_FAILED, with nothing left behind
 */
export async function takeBtrfsSnapshots(request: SnapshotRequest): Promise<SourceSnapshot> {
  const mounts = readMounts().filter(
    ({ point }) => !isBelow({ path: point, directory: request.state }),
  )
  const parts = partsOf(request.sources, mounts)
  const snapshots = new Snapshots(request)
  const view = viewPath(request)
  try {
    await snapshots.take(parts.btrfs)
    mkdirSync(rawPathToBytes(view), { mode: 0o700 })
    for (const part of parts.btrfs)
      await show({ view, given: part.given, what: snapshots.pathOf(part) })
    const unseen = await showOthers(view, parts.others)
    for (const { given } of request.sources) copyParents({ view, path: given })
    const covered = new Set(request.sources.map(({ given }) => given))
    return { view, covered, unseen, release: () => release(request, snapshots) }
  } catch (cause) {
    await release(request, snapshots)
    if (cause instanceof BackupError && cause.code === 'INTERRUPTED') throw cause
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new BackupError('SNAPSHOT_FAILED', `no snapshot could be taken: ${why}`, { cause })
  }
}

async function release(request: SnapshotRequest, snapshots: Snapshots): Promise<void> {
  try {
    await removeView(viewPath(request))
    await snapshots.remove()
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    const hint = 'the next run tries again'
    throw new BackupError('SNAPSHOT_FAILED', `a snapshot could not be removed: ${why}`, {
      hint,
      cause,
    })
  }
}

/**
 * Removes what a killed run of this set left: its view, its private mounts, the snapshots it wrote
 * down.
 */
export async function sweepBtrfsSnapshots({
  state,
  set,
}: Pick<SnapshotRequest, 'state' | 'set'>): Promise<void> {
  await removeView(viewPath({ state, set }))
  await unmountBelow(topPath({ state, set }))
  const records = readRecords({ state, set })
  for (const device of new Set(records.map((record) => record.device))) {
    // A drive that is away keeps its record until it is back.
    if (!device.startsWith('/') || !exists(device)) continue
    const top = await mountTop({ state, set, device, number: 0 })
    for (const { name } of records.filter((record) => record.device === device))
      await deleteSnapshot({ top, name })
    await unmountTop(top)
  }
  writeRecords(
    { state, set },
    records.filter(({ device }) => !exists(device)),
  )
  removeTopDirectory({ state, set })
}

interface Part extends SnapshotSource {
  readonly mount: Mount
}

/**
 * Sources on btrfs and btrfs mounts below them, outermost first, and mounts of other filesystems
 * below them.
 */
function partsOf(
  sources: readonly SnapshotSource[],
  mounts: readonly Mount[],
): { readonly btrfs: readonly Part[]; readonly others: readonly SnapshotSource[] } {
  const btrfs = new Map<RawPath, Part>()
  const others = new Map<RawPath, SnapshotSource>()
  for (const { given, real } of sources) {
    const own = mountOf(real, mounts)
    if (own !== undefined) btrfs.set(given, { given, real, mount: own })
    for (const mount of mountsBelow(real, mounts)) {
      const below = { given: given + mount.point.slice(real.length), real: mount.point }
      if (mount.type === 'btrfs') btrfs.set(below.given, { ...below, mount })
      else others.set(below.given, below)
    }
  }
  return { btrfs: outermostFirst(btrfs), others: outermostFirst(others) }
}

function outermostFirst<T extends SnapshotSource>(parts: ReadonlyMap<RawPath, T>): T[] {
  return [...parts.values()].sort((a, b) => a.given.length - b.given.length)
}

async function show({
  view,
  given,
  what,
}: {
  view: RawPath
  given: RawPath
  what: RawPath
}): Promise<void> {
  const place = `${view}${given}`
  if (exists(place) && sameInode(place, what)) return
  makePlace({ view, path: given, like: what })
  await bindReadOnly({ what, at: place })
}

/**
 * Other filesystems are read as they are: without a snapshot rsync would have crossed into them,
 * too.
 */
async function showOthers(
  view: RawPath,
  others: readonly SnapshotSource[],
): Promise<SourceSnapshot['unseen']> {
  const unseen: { path: RawPath; why: string }[] = []
  for (const { given, real } of others) {
    try {
      if (exists(`${view}${given}`)) await bindReadOnly({ what: real, at: `${view}${given}` })
    } catch (error) {
      if (error instanceof BackupError && error.code === 'INTERRUPTED') throw error
      unseen.push({
        path: given,
        why: `the filesystem there cannot be shown: ${(error as Error).message}`,
      })
    }
  }
  return unseen
}

interface SnapshotRecord {
  readonly device: RawPath
  readonly name: string
}

/** The snapshots of one run: made together, removed together. */
class Snapshots {
  readonly #request: SnapshotRequest
  readonly #tops = new Map<RawPath, RawPath>()
  /** Subvolumes, by `top` and path below it, and the snapshots of them. */
  readonly #taken = new Map<RawPath, { readonly top: RawPath; readonly name: string }>()
  /** The times of the directories that snapshots were made in, before and after. */
  readonly #times = new Map<RawPath, { readonly before: bigint; readonly after: bigint }>()

  constructor(request: SnapshotRequest) {
    this.#request = request
  }

  async take(parts: readonly Part[]): Promise<void> {
    const subvolumes = new Map<RawPath, { readonly top: RawPath; readonly device: RawPath }>()
    for (const part of parts) {
      const top = await this.#top(part.mount.device)
      subvolumes.set(subvolumeOf(this.#inTop(part), top), { top, device: part.mount.device })
    }
    // The top itself goes first, so that it does not show the others' snapshots.
    const sorted = [...subvolumes].sort(([a], [b]) => a.length - b.length)
    const named = sorted.map(([subvolume, place], index) => ({
      subvolume,
      ...place,
      name: this.#name(index),
    }))
    writeRecords(this.#request, named)
    for (const { subvolume, top, name } of named) await this.#takeOne({ subvolume, top, name })
  }

  /** Where the content of a part is in its snapshot. */
  pathOf(part: Part): RawPath {
    const path = this.#inTop(part)
    const subvolume = subvolumeOf(path, this.#topOf(part.mount.device))
    const snapshot = this.#taken.get(subvolume)
    if (snapshot === undefined) throw new Error('a part has no snapshot')
    return `${snapshot.top}/${snapshot.name}${path.slice(subvolume.length)}`
  }

  async remove(): Promise<void> {
    // A time is put back only where nobody else changed the directory meanwhile.
    const untouched = [...this.#times].filter(([top, { after }]) => mtimeOf(top) === after)
    for (const snapshot of this.#taken.values()) await deleteSnapshot(snapshot)
    for (const [top, { before }] of untouched) setTimes(top, { mtimeNs: before })
    for (const top of this.#tops.values()) await unmountTop(top)
    writeRecords(this.#request, [])
    removeTopDirectory(this.#request)
  }

  async #takeOne({
    subvolume,
    top,
    name,
  }: {
    subvolume: RawPath
    top: RawPath
    name: string
  }): Promise<void> {
    const before = this.#times.get(top)?.before ?? mtimeOf(top)
    const args = [
      'subvolume',
      'snapshot',
      '-r',
      '--',
      rawPathToBytes(subvolume),
      rawPathToBytes(`${top}/${name}`),
    ]
    this.#taken.set(subvolume, { top, name })
    succeeded(
      'btrfs',
      await runProgram({ program: 'btrfs', args, changes: true, timeoutMs: SNAPSHOT_TIMEOUT_MS }),
    )
    this.#times.set(top, { before, after: mtimeOf(top) })
  }

  #name(index: number): string {
    const { set, stamp } = this.#request
    return `backup-${set}-${stamp}${index === 0 ? '' : `-${index + 1}`}`
  }

  /** A part's own path below the private mount of its filesystem. */
  #inTop({ mount, real }: Part): RawPath {
    const top = this.#topOf(mount.device)
    const root = mount.root === '/' ? '' : mount.root
    const path = `${top}${root}${real.slice(mount.point === '/' ? 0 : mount.point.length)}`.replace(
      /\/$/,
      '',
    )
    if (exists(path) && sameInode(path, real)) return path
    throw new Error(`${displayPath(real)} is not what its filesystem has at that path`)
  }

  #topOf(device: RawPath): RawPath {
    const top = this.#tops.get(device)
    if (top === undefined) throw new Error('a filesystem is not mounted')
    return top
  }

  async #top(device: RawPath): Promise<RawPath> {
    const known = this.#tops.get(device)
    const top = known ?? (await mountTop({ ...this.#request, device, number: this.#tops.size }))
    this.#tops.set(device, top)
    return top
  }
}

/** The root of the subvolume that holds a path. */
function subvolumeOf(path: RawPath, top: RawPath): RawPath {
  for (
    let candidate = path;
    isBelow({ path: candidate, directory: top });
    candidate = parentOf(candidate)
  ) {
    const stat = lstatSync(rawPathToBytes(candidate))
    if (stat.isDirectory() && stat.ino === SUBVOLUME_INODE) return candidate
  }
  throw new Error(`${displayPath(path)} is in no subvolume`)
}

async function mountTop({
  state,
  set,
  device,
  number,
}: {
  state: RawPath
  set: string
  device: RawPath
  number: number
}): Promise<RawPath> {
  const top = `${topPath({ state, set })}/${number}`
  mkdirSync(rawPathToBytes(top), { recursive: true, mode: 0o700 })
  const args = ['-t', 'btrfs', '-o', 'subvolid=5,noatime,nosuid,nodev,noexec', '--']
  const call = { program: 'mount', changes: true, timeoutMs: MOUNT_TIMEOUT_MS }
  succeeded(
    'mount',
    await runProgram({ ...call, args: [...args, rawPathToBytes(device), rawPathToBytes(top)] }),
  )
  return top
}

async function unmountTop(top: RawPath): Promise<void> {
  await unmountBelow(top)
  rmdirSync(rawPathToBytes(top))
}

/** Only a subvolume of exactly this name; nothing happens when it is gone. */
async function deleteSnapshot({ top, name }: { top: RawPath; name: string }): Promise<void> {
  const path = `${top}/${name}`
  if (!exists(path) || lstatSync(rawPathToBytes(path)).ino !== SUBVOLUME_INODE) return
  const args = ['subvolume', 'delete', '--', rawPathToBytes(path)]
  succeeded(
    'btrfs',
    await runProgram({ program: 'btrfs', args, changes: true, timeoutMs: SNAPSHOT_TIMEOUT_MS }),
  )
}

function viewPath({ state, set }: Pick<SnapshotRequest, 'state' | 'set'>): RawPath {
  return `${state}/view-${set}`
}

function topPath({ state, set }: Pick<SnapshotRequest, 'state' | 'set'>): RawPath {
  return `${state}/btrfs-${set}`
}

function recordPath({ state, set }: Pick<SnapshotRequest, 'state' | 'set'>): RawPath {
  return `${state}/snapshots-${set}.json`
}

function removeTopDirectory(request: Pick<SnapshotRequest, 'state' | 'set'>): void {
  const directory = topPath(request)
  if (!exists(directory)) return
  for (const number of readdirSync(rawPathToBytes(directory), { encoding: 'latin1' })) {
    rmdirSync(rawPathToBytes(`${directory}/${number}`))
  }
  rmdirSync(rawPathToBytes(directory))
}

/** Names that a run wrote down; those that do not look like ours are not believed. */
function readRecords(request: Pick<SnapshotRequest, 'state' | 'set'>): SnapshotRecord[] {
  const ours = new RegExp(`^backup-${request.set}-\\d{4}-\\d\\d-\\d\\dT\\d{6}Z(-\\d+)?$`)
  try {
    const records = JSON.parse(
      readFileSync(rawPathToBytes(recordPath(request)), 'utf8'),
    ) as SnapshotRecord[]
    return records.filter(({ name, device }) => ours.test(name) && typeof device === 'string')
  } catch (error) {
    if (systemCode(error) === 'ENOENT' || error instanceof SyntaxError) return []
    throw error
  }
}

function writeRecords(
  request: Pick<SnapshotRequest, 'state' | 'set'>,
  records: readonly SnapshotRecord[],
): void {
  const path = recordPath(request)
  if (records.length === 0) return rmSync(rawPathToBytes(path), { force: true })
  const bytes = Buffer.from(
    `${JSON.stringify(records.map(({ device, name }) => ({ device, name })))}\n`,
  )
  writeDurably({ path, bytes, mode: 0o600, replace: true })
}

function mtimeOf(path: RawPath): bigint {
  return lstatSync(rawPathToBytes(path), { bigint: true }).mtimeNs
}

function sameInode(a: RawPath, b: RawPath): boolean {
  const [left, right] = [a, b].map((path) => lstatSync(rawPathToBytes(path), { bigint: true }))
  return (
    left !== undefined && right !== undefined && left.ino === right.ino && left.dev === right.dev
  )
}
