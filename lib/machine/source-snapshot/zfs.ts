// Snapshots of ZFS datasets: one atomic command for each pool, so that all datasets that sources
// lie on, children too, are of one moment (zfs-snapshot(8)).
//
// A snapshot is read in `.zfs/snapshot` where that answers, else through a read-only clone below
// its own dataset (so that it inherits the same properties), else through a mount of the snapshot.
// A child dataset is a part of its own, with a mount of its own. Names are written down before
// anything is made (leftovers.ts) and removed one by one, never with -r or -R (invariants 4 and 7).
// Real ZFS is type `zfs`, zfs-fuse `fuse.zfs`, which has neither `.zfs` nor several names in one
// command. A snapshot that somebody makes of a clone keeps it there until that one goes; the record
// stays. Throws SNAPSHOT_FAILED.

import { setTimeout as sleep } from 'node:timers/promises'
import { mkdirSync, readdirSync, statSync } from 'node:fs'
import { type RawPath, rawPathToBytes } from '../../model/raw-path.ts'
import { type ProgramResult, runProgram } from '../shell.ts'
import {
  freeName,
  isOwnName,
  readRecords,
  removePlaces,
  removeRecorded,
  snapshotFailed,
  whyOf,
  writeRecords,
} from './leftovers.ts'
import { type Mount, readMounts } from './mounts.ts'
import type {
  Part,
  ProviderRequest,
  ShownSnapshot,
  SnapshotOwner,
  SnapshotProvider,
  TakenSnapshots,
} from './source-snapshot.ts'
import { exists, MOUNT_TIMEOUT_MS, succeeded, unmountBelow } from './view.ts'

export const zfsProvider: SnapshotProvider = { kind: 'zfs', takes, take, sweep }

/** A snapshot waits for the pool to write what is pending; a busy one may take a while. */
const ZFS_TIMEOUT_MS = 10 * 60_000

/** What zfs(8) exits with when it does not know such arguments. */
const EXIT_USAGE = 2

/** Names in one command: each may have 255 bytes, and a command must stay below 120 KiB. */
const MAX_NAMES = 400

/** Five seconds in all: more is no moment, and the next run tries again. */
const DESTROY_TRIES = 11
const DESTROY_PAUSE_MS = 500

/** Keeps other programs from destroying a snapshot while it is read. */
const HOLD = 'two-phase-backup'

const CLONE_OPTIONS = [
  'readonly=on',
  'exec=off',
  'setuid=off',
  'devices=off',
  'snapdir=hidden',
  // Not mounted again by a boot after a crash.
  'canmount=noauto',
  // Programs that make snapshots on a schedule leave out what has this.
  'com.sun:auto-snapshot=false',
].flatMap((option) => ['-o', option])

interface ZfsRecord {
  readonly dataset: string
  readonly name: string
}

/** A mounted dataset; a snapshot that is mounted itself (`dataset@name`) cannot have another. */
function takes({ type, device }: Mount): boolean {
  return (type === 'zfs' || type === 'fuse.zfs') && !device.includes('@')
}

async function take(request: ProviderRequest): Promise<TakenSnapshots> {
  try {
    return await takePools(request)
  } catch (cause) {
    // What cannot be removed now stays written down, and the next run says so.
    await sweep(request).catch(() => {})
    throw snapshotFailed(cause)
  }
}

async function takePools(request: ProviderRequest): Promise<TakenSnapshots> {
  const pools = new Map<string, Set<string>>()
  for (const { mount } of request.parts) {
    const pool = poolOf(mount.device)
    pools.set(pool, (pools.get(pool) ?? new Set()).add(mount.device))
  }
  const taken = new Map<string, { readonly name: string; readonly timeMs: number }>()
  const failures = new Map<string, unknown>()
  const names: string[] = []
  for (const [pool, datasets] of pools) {
    try {
      const timeMs = request.now()
      const name = await takePool(request, [...datasets])
      taken.set(pool, { name, timeMs })
      names.push(...[...datasets].map((dataset) => `${dataset}@${name}`))
    } catch (error) {
      failures.set(pool, error)
    }
  }
  if (taken.size === 0) throw [...failures.values()][0] ?? new Error('nothing lies on ZFS')
  const contents = new Contents(request)
  const shown: ShownSnapshot[] = []
  const refused: { given: RawPath; why: string }[] = []
  for (const part of request.parts) {
    const { given, mount } = part
    try {
      const ofPool = taken.get(poolOf(mount.device))
      if (ofPool === undefined) throw failures.get(poolOf(mount.device))
      const { name, timeMs } = ofPool
      shown.push({ given, what: await contents.pathOf(part, name), timeMs })
    } catch (error) {
      refused.push({ given, why: whyOf(error) })
    }
  }
  const release = (): Promise<void> => sweep(request)
  const timeMs = Math.min(...[...taken.values()].map((one) => one.timeMs))
  return { shown, refused, names, timeMs, release }
}

/** Snapshots of all these datasets, which lie in one pool; returns the name that all have. */
async function takePool(request: ProviderRequest, datasets: readonly string[]): Promise<string> {
  const [first = ''] = datasets
  // In a container there may be ZFS below, but nothing to ask: then nothing is written down.
  if (!(await isImported(poolOf(first)))) throw new Error(`pool ${poolOf(first)} does not answer`)
  const top = commonParent(datasets)
  const there = await list('snapshot', top)
  const isTaken = (name: string): boolean => there.some((one) => one.endsWith(`@${name}`))
  const name = freeName({ of: request, isTaken })
  writeDown({ request, name, datasets })
  const taken =
    datasets.length > MAX_NAMES
      ? undefined
      : await zfs(['snapshot', ...datasets.map((dataset) => `${dataset}@${name}`)])
  if (taken === undefined || taken.exitCode === EXIT_USAGE) {
    await takeBelow({ request, name, top })
  } else {
    made({ request, name, pool: poolOf(top) }, taken)
  }
  for (const dataset of datasets) {
    // Old pools have no holds, and a user may lack the right: then it goes without.
    await zfs(['hold', HOLD, `${dataset}@${name}`])
  }
  return name
}

/** All datasets below one, for zfs-fuse, which takes one name only, and for very many. */
async function takeBelow({
  request,
  name,
  top,
}: {
  request: ProviderRequest
  name: string
  top: string
}): Promise<void> {
  writeDown({ request, name, datasets: await list('filesystem,volume', top) })
  made({ request, name, pool: poolOf(top) }, await zfs(['snapshot', '-r', `${top}@${name}`]))
  // A dataset may have been made in between. All of this name are ours: had there been one before,
  // the command would have made none.
  const snapshots = await list('snapshot', top)
  const ours = snapshots.filter((snapshot) => snapshot.endsWith(`@${name}`))
  const datasets = ours.map((snapshot) => snapshot.slice(0, -name.length - 1))
  writeDown({ request, name, datasets })
}

/**
 * Judges the command for the snapshots of one name. It makes all or none: where it failed, the
 * records go. One that had to be ended does not come here.
 */
function made(
  { request, name, pool }: { request: ProviderRequest; name: string; pool: string },
  result: ProgramResult,
): void {
  if (result.exitCode !== 0) {
    const others = readAll(request).filter((record) => {
      return record.name !== name || poolOf(record.dataset) !== pool
    })
    writeRecords({ path: recordPath(request), records: others })
  }
  succeeded('zfs', result)
}

/** Where the content of each dataset's snapshot can be read. */
class Contents {
  readonly #request: ProviderRequest
  readonly #roots = new Map<string, RawPath>()

  constructor(request: ProviderRequest) {
    this.#request = request
  }

  async pathOf({ real, mount }: Part, name: string): Promise<RawPath> {
    const inMount = real.slice(mount.point === '/' ? 0 : mount.point.length)
    const inDataset = `${mount.root === '/' ? '' : mount.root}${inMount}`.replace(/\/$/, '')
    const known = this.#roots.get(mount.device)
    const root = known ?? (await this.#open({ dataset: mount.device, name }))
    this.#roots.set(mount.device, root)
    if (!exists(`${root}${inDataset}`)) throw new Error('it is not in the snapshot')
    return `${root}${inDataset}`
  }

  async #open({ dataset, name }: ZfsRecord): Promise<RawPath> {
    const snapshot = `${dataset}@${name}`
    const hidden = hiddenDirectory({ dataset, name })
    if (hidden !== undefined) return hidden
    const place = `${placesOf(this.#request)}/${this.#roots.size}`
    mkdirSync(rawPathToBytes(place), { recursive: true, mode: 0o700 })
    const clone = `${dataset}/${name}`
    await zfs(['clone', ...CLONE_OPTIONS, '-o', `mountpoint=${place}`, snapshot, clone])
    await zfs(['mount', clone])
    if (readMounts().some(({ point, device }) => point === place && device === clone)) return place
    const args = ['-t', 'zfs', '-o', 'ro,nosuid,nodev,noexec', '--', snapshot, place]
    succeeded(
      'mount',
      await runProgram({
        program: 'mount',
        args: args.map(rawPathToBytes),
        changes: true,
        timeoutMs: MOUNT_TIMEOUT_MS,
      }),
    )
    return place
  }
}

/**
 * `.zfs/snapshot/NAME` of a mounted dataset, or undefined where there is none, or where it is only
 * an empty directory because the kernel could not mount the snapshot there (in containers, and
 * where one dataset is mounted twice).
 */
function hiddenDirectory({ dataset, name }: ZfsRecord): RawPath | undefined {
  const live = readMounts().find(({ device, root }) => device === dataset && root === '/')
  if (live === undefined) return undefined
  const path = `${live.point === '/' ? '' : live.point}/.zfs/snapshot/${name}`
  try {
    // Looking inside is what mounts it.
    readdirSync(rawPathToBytes(path))
    const own = statSync(rawPathToBytes(live.point))
    const there = statSync(rawPathToBytes(`${path}/.`))
    return there.ino === own.ino && there.dev !== own.dev ? path : undefined
  } catch {
    return undefined
  }
}

/** Also what `release` does: removes whatever is written down. */
async function sweep(of: SnapshotOwner): Promise<void> {
  const records = readAll(of)
  if (records.length === 0) return
  await unmountBelow(placesOf(of))
  await removeRecorded({ path: recordPath(of), records, remove })
  removePlaces(placesOf(of))
}

async function remove({ dataset, name }: ZfsRecord): Promise<'removed' | 'away'> {
  if (!(await isImported(poolOf(dataset)))) return 'away'
  const snapshot = `${dataset}@${name}`
  const clone = `${dataset}/${name}`
  const origin = await ask(['get', '-H', '-o', 'value', 'origin', clone])
  if (origin.stdout.trim() === snapshot) await destroy(clone)
  const there = await ask(['list', '-H', '-o', 'name', '-t', 'snapshot', snapshot])
  // Any other failure says nothing about it: without its record it would stay for ever.
  if (there.exitCode !== 0 && /dataset does not exist/.test(there.stderr)) return 'removed'
  succeeded('zfs', there)
  // Not every snapshot is held.
  await zfs(['release', HOLD, snapshot])
  await destroy(snapshot)
  return 'removed'
}

/** What was unmounted a moment ago may be busy a moment longer. */
async function destroy(name: string): Promise<void> {
  for (let tries = 1; ; tries++) {
    const result = await zfs(['destroy', name])
    if (tries === DESTROY_TRIES || !/dataset is busy/.test(result.stderr))
      return succeeded('zfs', result)
    await sleep(DESTROY_PAUSE_MS)
  }
}

async function isImported(pool: string): Promise<boolean> {
  return (await ask(['list', '-H', '-o', 'name', pool])).exitCode === 0
}

async function list(types: string, top: string): Promise<string[]> {
  const args = ['list', '-H', '-o', 'name', '-t', types, '-r', top]
  // A pool may have a hundred thousand snapshots.
  const result = await ask(args, ZFS_TIMEOUT_MS)
  succeeded('zfs', result)
  return result.stdout.split('\n').filter((name) => name !== '')
}

function zfs(args: readonly string[]): Promise<ProgramResult> {
  return runProgram({
    program: 'zfs',
    args: args.map(rawPathToBytes),
    changes: true,
    timeoutMs: ZFS_TIMEOUT_MS,
  })
}

function ask(
  args: readonly string[],
  timeoutMs: number = MOUNT_TIMEOUT_MS,
): Promise<ProgramResult> {
  return runProgram({ program: 'zfs', args, changes: false, timeoutMs })
}

function poolOf(dataset: string): string {
  return dataset.split('/')[0] ?? dataset
}

/** The innermost dataset that all of these are, or lie below. */
function commonParent(datasets: readonly string[]): string {
  const [first = [], ...others] = datasets.map((dataset) => dataset.split('/'))
  const differs = first.findIndex((word, at) => others.some((words) => words[at] !== word))
  return (differs < 0 ? first : first.slice(0, differs)).join('/')
}

function placesOf({ state, set }: SnapshotOwner): RawPath {
  return `${state}/zfs-${set}`
}

function recordPath({ state, set }: SnapshotOwner): RawPath {
  return `${state}/zfs-${set}.json`
}

function readAll(of: SnapshotOwner): ZfsRecord[] {
  return readRecords<ZfsRecord>({
    path: recordPath(of),
    // What a dataset's name can hold: nothing that means several, such as `%`, `,` and `@`.
    believe: ({ dataset, name }) => {
      return isOwnName({ set: of.set, name }) && /^[\w.: -]+(\/[\w.: -]+)*$/.test(dataset ?? '')
    },
  })
}

function writeDown({
  request,
  name,
  datasets,
}: {
  request: ProviderRequest
  name: string
  datasets: readonly string[]
}): void {
  const earlier = readAll(request)
  const records = datasets
    .filter((dataset) => !earlier.some((one) => one.dataset === dataset && one.name === name))
    .map((dataset) => ({ dataset, name }))
  writeRecords({ path: recordPath(request), records: [...earlier, ...records] })
}
