// Read-only btrfs snapshots of the subvolumes that sources lie on, and of those nested below.
//
// A provider of source-snapshot.ts. A snapshot is made at the top of its filesystem, which is
// mounted privately (subvolid=5), so no subvolume of the user's is touched; it is gone again after
// the run, or kept for the next one where the set wants that, which asks what changed since. Its
// name is written down in staging's state, with the filesystem's uuid, before it is made, so that
// the next run can sweep what a killed one left: exactly those names, nobody else's (design
// invariants 4 and 7). Nested subvolumes come out of a snapshot as empty directories with
// inode 2, so each gets a snapshot of its own: outermost first, not at one moment together.
// Throws SNAPSHOT_FAILED.

import type { Buffer } from 'node:buffer'
import { lstatSync, mkdirSync, readdirSync } from 'node:fs'
import {
  displayPath,
  isWithin,
  parentOf,
  type RawPath,
  rawPathToBytes,
} from '../../model/raw-path.ts'
import { setTimes } from '../posix.ts'
import { type ProgramResult, runProgram } from '../shell.ts'
import { filesystemUuid, isSubvolume } from '../subvolume.ts'
import { type ChangeList, changedPaths } from './btrfs-changes.ts'
import {
  freeName,
  isOwnName,
  readRecords,
  removePlaces,
  removeRecorded,
  snapshotFailed,
  snapshotName,
  whyOf,
  writeRecords,
} from './leftovers.ts'
import { isBelow, mountOf, readMounts } from './mounts.ts'
import type {
  Part,
  ProviderRequest,
  SnapshotOwner,
  SnapshotProvider,
  TakenSnapshots,
} from './source-snapshot.ts'
import { exists, MOUNT_TIMEOUT_MS, sameInode, succeeded, unmountBelow } from './view.ts'

/** The inode of the empty directory that stands for a nested subvolume in a snapshot. */
const ABSENT_SUBVOLUME_INODE = 2

/** Making a snapshot flushes the filesystem first, which may take a while on a slow disk. */
const SNAPSHOT_TIMEOUT_MS = 10 * 60_000

/**
 * Each costs a snapshot and a mount, some 50 ms. A home has a few; what has more is a tool's own
 * store (containers, old snapshots), which nobody wants in a backup.
 */
const MAX_NESTED = 500

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

/** How many snapshots one command deletes: paths of any length fit. */
const DELETED_AT_ONCE = 20

export const btrfsProvider: SnapshotProvider = {
  kind: 'btrfs',
  takes: ({ type }) => type === 'btrfs',
  take,
  sweep,
}

/**
 * Whether a directory of a view is where a nested subvolume should be, and not the root of some
 * other filesystem. Where the live one is the same empty directory (in an old snapshot, which is
 * part of a source) nothing is lost.
 */
export function isNestedSubvolume({ shown, live }: { shown: RawPath; live: RawPath }): boolean {
  const isPlaceholder = (path: RawPath): boolean => {
    const stat = lstatSync(rawPathToBytes(path), { throwIfNoEntry: false })
    return stat?.ino === ABSENT_SUBVOLUME_INODE && !readMounts().some(({ point }) => point === path)
  }
  return isPlaceholder(shown) && !isPlaceholder(live)
}

async function take(request: ProviderRequest): Promise<TakenSnapshots> {
  const snapshots = new Snapshots(request)
  try {
    return await snapshots.take()
  } catch (cause) {
    // What cannot be removed now is written down, and the next run sweeps it.
    await snapshots.release().catch(() => {})
    throw snapshotFailed(cause)
  }
}

/** A filesystem that is away keeps its records until it is mounted again. */
async function sweep(of: SnapshotOwner): Promise<void> {
  await unmountBelow(topPath(of))
  removePlaces(topPath(of))
  const tops = new Map<string, RawPath>()
  const remove = async (record: SnapshotRecord): Promise<'removed' | 'away'> => {
    const { uuid, name } = record
    if (isKept(record, of)) return 'away'
    const device = mountedDevice(uuid)
    if (device === undefined) return 'away'
    const top = tops.get(uuid) ?? (await mountTop({ of, device, number: tops.size }))
    tops.set(uuid, top)
    await deleteSnapshots([`${top}/${name}`])
    return 'removed'
  }
  try {
    await removeRecorded({ path: recordPath(of), records: recordsOf(of), remove })
  } finally {
    await unmountBelow(topPath(of))
    removePlaces(topPath(of))
  }
}

interface SnapshotRecord {
  /** Of the filesystem: device names change. */
  readonly uuid: string
  readonly name: string
  /** Of a snapshot that was kept for the next run: with which rules it was read. */
  readonly rules?: string
}

/** The top of a filesystem, mounted privately. */
interface Top {
  readonly path: RawPath
  readonly uuid: string
  /** Every subvolume of the filesystem, as a path below `path`. */
  readonly subvolumes: readonly RawPath[]
}

/** A part, found in the private mount of its filesystem. */
interface Located {
  readonly part: Part
  readonly top: Top
  readonly path: RawPath
  readonly subvolume: RawPath
}

/** Whether a record is of the snapshot that the caller wants kept. */
function isKept({ name, rules }: SnapshotRecord, { set, since }: SnapshotOwner): boolean {
  if (since === undefined || rules !== since.rules) return false
  return name === snapshotName({ set, stamp: since.stamp })
}

/** The snapshots of one run: made together, removed together. */
class Snapshots {
  readonly #request: ProviderRequest
  /** By device; what went wrong where it could not be mounted. */
  readonly #tops = new Map<RawPath, Top | Error>()
  readonly #mounted: RawPath[] = []
  /** By subvolume, its path in the top; what went wrong where there is no snapshot. */
  readonly #taken = new Map<RawPath, { readonly path: RawPath; readonly timeMs: number } | Error>()
  /** Of snapshots that were made, or may have been: where the command for one was ended. */
  readonly #paths: RawPath[] = []
  /** Of this run, as they are written down. */
  #records: readonly SnapshotRecord[] = []
  /** The times of the directories that snapshots were made in, before and after. */
  readonly #times = new Map<RawPath, { readonly before: bigint; readonly after: bigint }>()
  /** Of earlier runs: on filesystems that are away, and the one that was kept. */
  readonly #away: readonly SnapshotRecord[]
  #located: readonly Located[] = []
  /** Set once this run's own is to be kept. */
  #rules: string | undefined

  constructor(request: ProviderRequest) {
    this.#request = request
    this.#away = recordsOf(request)
  }

  async take(): Promise<TakenSnapshots> {
    const refused: { given: RawPath; why: string }[] = []
    const located: Located[] = []
    for (const part of this.#request.parts) {
      try {
        located.push(await this.#locate(part))
      } catch (error) {
        refused.push({ given: part.given, why: whyOf(error) })
      }
    }
    this.#located = located
    const nested = located.map((one) => this.#nestedIn(one))
    await this.#takeAll({ located, nested: nested.flatMap((one) => one.wanted) })
    const shown: { given: RawPath; what: RawPath; timeMs: number }[] = []
    const places = [
      ...located.map(({ part: { given }, path, subvolume }) => ({ given, path, subvolume })),
      ...nested.flatMap((one) => one.wanted),
    ]
    for (const { given, path, subvolume } of places) {
      const taken = this.#taken.get(subvolume) ?? new Error(`more than ${MAX_NESTED} subvolumes`)
      if (taken instanceof Error) refused.push({ given, why: taken.message })
      else {
        const { timeMs } = taken
        shown.push({ given, what: `${taken.path}${path.slice(subvolume.length)}`, timeMs })
      }
    }
    return {
      shown,
      refused,
      names: [...this.#taken.values()].flatMap((taken) => {
        return taken instanceof Error ? [] : [taken.path.slice(taken.path.lastIndexOf('/') + 1)]
      }),
      timeMs: this.#request.now(),
      ownPlaces: nested.flatMap(({ ours }) => ours),
      changes: (signal) => this.#changes(signal),
      keep: (rules) => {
        if (this.#paths.length === 1) this.#rules = rules
      },
      release: () => this.release(),
    }
  }

  /** Only where all sources lie in one subvolume, of which an earlier snapshot was kept. */
  async #changes(signal: AbortSignal | undefined): Promise<ChangeList | undefined> {
    const [first] = this.#located
    const newer = first === undefined ? undefined : this.#taken.get(first.subvolume)
    const kept = this.#away.find((record) => isKept(record, this.#request))
    if (first === undefined || newer === undefined || newer instanceof Error) return undefined
    if (kept === undefined || this.#paths.length !== 1 || kept.uuid !== first.top.uuid)
      return undefined
    const older = `${first.top.path}/${kept.name}`
    if (!isSubvolume(older)) return undefined
    const list = await changedPaths({ older, newer: newer.path, ...(signal && { signal }) })
    if (list === undefined) return undefined
    return { present: this.#asCollected(list.present), gone: this.#asCollected(list.gone) }
  }

  /** Paths from the top of a snapshot as a collection has them: those below sources. */
  #asCollected(paths: readonly RawPath[]): RawPath[] {
    const sources = this.#located.map(({ part, path, subvolume }) => {
      return { given: part.given.slice(1), below: path.slice(subvolume.length + 1) }
    })
    return paths.flatMap((path) =>
      sources
        .filter(({ below }) => isWithin({ path, directory: below }))
        .map(({ given, below }) => {
          const rest = below === '' ? path : path.slice(below.length + 1)
          return [given, rest].filter((part) => part !== '').join('/')
        }),
    )
  }

  async release(): Promise<void> {
    // A time is put back only where nobody else changed the directory meanwhile.
    const untouched = [...this.#times].filter(([top, { after }]) => mtimeOf(top) === after)
    const kept = this.#keepOwn()
    const top = kept?.top
    const replaced = this.#away.filter(
      (record) => record.rules !== undefined && kept?.uuid === record.uuid,
    )
    const paths = kept === undefined ? this.#paths : replaced.map(({ name }) => `${top}/${name}`)
    await deleteSnapshots(paths)
    for (const [path, { before }] of untouched) setTimes(path, { mtimeNs: before })
    const others = this.#away.filter((record) => !replaced.includes(record))
    await this.#close(kept === undefined ? this.#away : [...others, kept.record])
  }

  /** The one snapshot of this run, where it is to be kept. */
  #keepOwn():
    { readonly top: RawPath; readonly uuid: string; readonly record: SnapshotRecord } | undefined {
    const [first] = this.#located
    const name = this.#paths[0]?.split('/').at(-1)
    if (first === undefined || name === undefined || this.#rules === undefined) return undefined
    const { path: top, uuid } = first.top
    return { top, uuid, record: { uuid, name, rules: this.#rules } }
  }

  async #close(records: readonly SnapshotRecord[]): Promise<void> {
    await unmountBelow(topPath(this.#request))
    removePlaces(topPath(this.#request))
    writeRecords({ path: recordPath(this.#request), records })
  }

  async #locate(part: Part): Promise<Located> {
    const { mount, real } = part
    const top = await this.#top(mount.device)
    const root = mount.root === '/' ? '' : mount.root
    const below = real.slice(mount.point === '/' ? 0 : mount.point.length)
    const path = `${top.path}${root}${below}`.replace(/\/$/, '')
    if (!exists(path) || !sameInode(path, real))
      throw new Error(`${displayPath(real)} is not what its filesystem has at that path`)
    return { part, top, path, subvolume: subvolumeOf(path, top.path) }
  }

  async #top(device: RawPath): Promise<Top> {
    if (!this.#tops.has(device)) {
      const opened = await this.#open(device).catch((error: unknown) => new Error(whyOf(error)))
      this.#tops.set(device, opened)
    }
    const top = this.#tops.get(device)
    if (top === undefined || top instanceof Error) throw top ?? new Error('no such filesystem')
    return top
  }

  async #open(device: RawPath): Promise<Top> {
    const number = this.#mounted.length
    const path = await mountTop({ of: this.#request, device, number })
    this.#mounted.push(path)
    return { path, uuid: filesystemUuid(path), subvolumes: await listSubvolumes(path) }
  }

  /** The subvolumes below a part: the user's, and snapshots of ours, of whatever set. */
  #nestedIn({ part, top, path }: Located): {
    readonly wanted: readonly { given: RawPath; path: RawPath; subvolume: RawPath; top: Top }[]
    readonly ours: readonly RawPath[]
  } {
    const { state } = this.#request
    const known = new Set(
      recordsOfAllSets(state)
        .filter(({ uuid }) => uuid === top.uuid)
        .map(({ name }) => `${top.path}/${name}`),
    )
    const real = (subvolume: RawPath): RawPath => join(part.real, subvolume.slice(path.length))
    const below = top.subvolumes.filter((subvolume) => {
      return subvolume !== path && isBelow({ path: subvolume, directory: path })
    })
    const mounts = readMounts()
    const wanted = below.filter((subvolume) => {
      const inStaging = isBelow({ path: real(subvolume), directory: parentOf(state) })
      // With something mounted over it, it is not what the path leads to.
      const isSeen = mountOf(real(subvolume), mounts)?.point === part.mount.point
      const isOurs = [...known].some((ours) => isBelow({ path: subvolume, directory: ours }))
      return !inStaging && isSeen && !isOurs
    })
    return {
      wanted: wanted.map((subvolume) => {
        const given = join(part.given, subvolume.slice(path.length))
        return { given, path: subvolume, subvolume, top }
      }),
      ours: below.filter((subvolume) => known.has(subvolume)).map(real),
    }
  }

  /** All names are written down first. The top itself goes first, so that it shows no others. */
  async #takeAll({
    located,
    nested,
  }: {
    located: readonly Located[]
    nested: readonly { readonly subvolume: RawPath; readonly top: Top }[]
  }): Promise<void> {
    const own = new Map(located.map(({ subvolume, top }) => [subvolume, top]))
    const further = new Map(nested.map(({ subvolume, top }) => [subvolume, top]))
    const chosen = new Map([...own, ...[...further].sort(outermostFirst).slice(0, MAX_NESTED)])
    const records: SnapshotRecord[] = []
    const plan = [...chosen].sort(outermostFirst).map(([subvolume, top]) => {
      const name = this.#freeName(top, records)
      records.push({ uuid: top.uuid, name })
      return { subvolume, top, name }
    })
    this.#writeDown(records)
    for (const { subvolume, top, name } of plan) {
      const made = await this.#takeOne({ subvolume, top, name }).catch(
        (error: unknown) => new Error(whyOf(error)),
      )
      this.#taken.set(subvolume, made)
    }
  }

  async #takeOne({
    subvolume,
    top,
    name,
  }: {
    subvolume: RawPath
    top: Top
    name: string
  }): Promise<{ readonly path: RawPath; readonly timeMs: number }> {
    const path = `${top.path}/${name}`
    const before = this.#times.get(top.path)?.before ?? mtimeOf(top.path)
    // Below a directory that has the name by now, btrfs would make it with the subvolume's name.
    const result = exists(path) ? undefined : await this.#make({ subvolume, path })
    if (result?.exitCode !== 0) {
      this.#writeDown(this.#records.filter((one) => one.uuid !== top.uuid || one.name !== name))
      if (result === undefined) throw new Error(`somebody else has made ${name}`)
      succeeded('btrfs', result)
    }
    this.#times.set(top.path, { before, after: mtimeOf(top.path) })
    return { path, timeMs: this.#request.now() }
  }

  async #make({ subvolume, path }: { subvolume: RawPath; path: RawPath }): Promise<ProgramResult> {
    const places = [subvolume, path].map(rawPathToBytes)
    const making = runBtrfs(['subvolume', 'snapshot', '-r', '--', ...places])
    const result = await making.catch((error: unknown) => {
      // It was ended, and may have made it.
      this.#paths.push(path)
      throw error
    })
    if (result.exitCode === 0) this.#paths.push(path)
    return result
  }

  #writeDown(records: readonly SnapshotRecord[]): void {
    this.#records = records
    writeRecords({ path: recordPath(this.#request), records: [...this.#away, ...records] })
  }

  /** A name that nobody has: whatever has one of ours without being written down is not ours. */
  #freeName(top: Top, taken: readonly SnapshotRecord[]): string {
    const isTaken = (name: string): boolean => {
      return taken.some((record) => record.name === name) || exists(`${top.path}/${name}`)
    }
    return freeName({ of: this.#request, isTaken, first: taken.length + 1 })
  }
}

/** The root of the subvolume that holds a path. */
function subvolumeOf(path: RawPath, top: RawPath): RawPath {
  for (
    let candidate = path;
    isBelow({ path: candidate, directory: top });
    candidate = parentOf(candidate)
  ) {
    if (isSubvolume(candidate)) return candidate
  }
  throw new Error(`${displayPath(path)} is in no subvolume`)
}

/**
 * All subvolumes of the filesystem mounted at `top`. A name may hold a newline, and look like a
 * line of the list; so only what is a subvolume counts.
 */
async function listSubvolumes(top: RawPath): Promise<RawPath[]> {
  const lines: string[] = []
  await btrfs(['subvolume', 'list', '--', rawPathToBytes(top)], lines)
  return lines
    .join('\n')
    .split(/^ID \d+ gen \d+ top level \d+ path /m)
    .slice(1)
    .map((path) => `${top}/${path.replace(/\n$/, '')}`)
    .filter((path) => !path.split('/').includes('..') && isSubvolume(path))
}

/** A device of a btrfs filesystem that is mounted somewhere, from what the kernel says. */
function mountedDevice(uuid: string): RawPath | undefined {
  const directory = `/sys/fs/btrfs/${uuid}/devices`
  if (!exists(directory)) return undefined
  const [name] = readdirSync(directory, { encoding: 'latin1' })
  return name === undefined ? undefined : `/dev/${name.replaceAll('!', '/')}`
}

async function mountTop({
  of,
  device,
  number,
}: {
  of: SnapshotOwner
  device: RawPath
  number: number
}): Promise<RawPath> {
  const top = `${topPath(of)}/${number}`
  mkdirSync(rawPathToBytes(top), { recursive: true, mode: 0o700 })
  const args = ['-t', 'btrfs', '-o', 'subvolid=5,noatime,nosuid,nodev,noexec', '--']
  const call = { program: 'mount', changes: true, timeoutMs: MOUNT_TIMEOUT_MS }
  succeeded(
    'mount',
    await runProgram({ ...call, args: [...args, rawPathToBytes(device), rawPathToBytes(top)] }),
  )
  return top
}

/** Only what is a subvolume; nothing happens to what is gone. */
async function deleteSnapshots(paths: readonly RawPath[]): Promise<void> {
  const there = paths.filter(isSubvolume).map(rawPathToBytes)
  for (let first = 0; first < there.length; first += DELETED_AT_ONCE)
    await btrfs(['subvolume', 'delete', '--', ...there.slice(first, first + DELETED_AT_ONCE)])
}

async function btrfs(args: readonly (string | Buffer)[], lines: string[] = []): Promise<void> {
  succeeded('btrfs', await runBtrfs(args, lines))
}

function runBtrfs(
  args: readonly (string | Buffer)[],
  lines: string[] = [],
): Promise<ProgramResult> {
  return runProgram({
    program: 'btrfs',
    args,
    changes: true,
    timeoutMs: SNAPSHOT_TIMEOUT_MS,
    onLine: (line, stream) => void (stream === 'stdout' && lines.push(line.toString('latin1'))),
  })
}

function topPath({ state, set }: SnapshotOwner): RawPath {
  return `${state}/btrfs-${set}`
}

function recordPath({ state, set }: SnapshotOwner): RawPath {
  return `${state}/snapshots-${set}.json`
}

function recordsOfAllSets(state: RawPath): SnapshotRecord[] {
  return readdirSync(rawPathToBytes(state), { encoding: 'latin1' }).flatMap((name) => {
    const set = /^snapshots-(.+)\.json$/.exec(name)?.[1]
    return set === undefined ? [] : recordsOf({ state, set })
  })
}

function recordsOf(of: SnapshotOwner): SnapshotRecord[] {
  const believe = ({ name, uuid }: Partial<SnapshotRecord>): boolean => {
    return isOwnName({ set: of.set, name }) && UUID.test(uuid ?? '')
  }
  return readRecords({ path: recordPath(of), believe })
}

/** A path that may be `/`, and what follows it, which begins with a slash. */
function join(path: RawPath, below: RawPath): RawPath {
  return path === '/' ? below : `${path}${below}`
}

function outermostFirst([a]: readonly [RawPath, Top], [b]: readonly [RawPath, Top]): number {
  return a.length - b.length
}

function mtimeOf(path: RawPath): bigint {
  return lstatSync(rawPathToBytes(path), { bigint: true }).mtimeNs
}
