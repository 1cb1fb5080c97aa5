// Snapshots of LVM thin volumes: `lvcreate -s`, mounted read-only without replaying the journal
// (lvmthin(7)). The kernel freezes the filesystem for the moment of the snapshot.
//
// UNVERIFIED on real volumes: tested against stand-ins. Whether a device is a thin volume is asked
// of lvs when a snapshot is taken; `takes` sees only that it can be one. Each volume has a moment
// of its own. Names are written down before anything is made (leftovers.ts), and only a snapshot of
// the recorded volume is ever removed (invariants 4 and 7). Throws SNAPSHOT_FAILED.

import { mkdirSync } from 'node:fs'
import { displayPath, type RawPath, rawPathToBytes } from '../../model/raw-path.ts'
import { findProgram, type ProgramResult, runProgram } from '../shell.ts'
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
import type { Mount } from './mounts.ts'
import type {
  ProviderRequest,
  ShownSnapshot,
  SnapshotOwner,
  SnapshotProvider,
  TakenSnapshots,
} from './source-snapshot.ts'
import { exists, MOUNT_TIMEOUT_MS, succeeded, unmountBelow } from './view.ts'

export const lvmProvider: SnapshotProvider = { kind: 'lvm', takes, take, sweep }

/** Freezing writes out what is pending, which may take a while on a slow disk. */
const LVM_TIMEOUT_MS = 10 * 60_000

/**
 * What each type needs to be mounted beside its origin (the same UUID) and without writing to it.
 */
const MOUNT_OPTIONS: Readonly<Record<string, string>> = {
  ext3: 'ro,noload,nosuid,nodev,noexec',
  ext4: 'ro,noload,nosuid,nodev,noexec',
  xfs: 'ro,nouuid,norecovery,nosuid,nodev,noexec',
}

interface Volume {
  readonly group: string
  readonly volume: string
}

interface LvmRecord extends Volume {
  /** Of the snapshot, in the same group. */
  readonly name: string
}

/** Whether it can be a logical volume: `/dev/mapper/GROUP-VOLUME` or `/dev/GROUP/VOLUME`. */
function takes({ type, device }: Mount): boolean {
  return Object.hasOwn(MOUNT_OPTIONS, type) && /^\/dev\/[^/]+\/[^/]+$/.test(device)
}

async function take(request: ProviderRequest): Promise<TakenSnapshots> {
  try {
    return await takeVolumes(request)
  } catch (cause) {
    // What cannot be removed now stays written down, and the next run says so.
    await sweep(request).catch(() => {})
    throw snapshotFailed(cause)
  }
}

async function takeVolumes(request: ProviderRequest): Promise<TakenSnapshots> {
  const names: string[] = []
  const shown: (ShownSnapshot & { readonly timeMs: number })[] = []
  const refused: { given: RawPath; why: string }[] = []
  const causes: unknown[] = []
  const devices = new Map<RawPath, Mount>()
  for (const { mount } of request.parts) devices.set(mount.device, mount)
  for (const [device, mount] of devices) {
    const parts = request.parts.filter((part) => part.mount.device === device)
    try {
      const timeMs = request.now()
      const record = await takeVolume(request, device)
      const place = `${placesOf(request)}/${names.length}`
      names.push(`${record.group}/${record.name}`)
      await mountSnapshot({ record, type: mount.type, place })
      for (const { given, real, mount: seen } of parts) {
        const inMount = real.slice(seen.point === '/' ? 0 : seen.point.length)
        const what = `${place}${seen.root === '/' ? '' : seen.root}${inMount}`.replace(/\/$/, '')
        if (exists(what)) shown.push({ given, what, timeMs })
        else refused.push({ given, why: 'it is not in the snapshot' })
      }
    } catch (error) {
      causes.push(error)
      refused.push(...parts.map(({ given }) => ({ given, why: whyOf(error) })))
    }
  }
  if (shown.length === 0) throw causes[0] ?? new Error('nothing asked for is in the snapshot')
  const release = (): Promise<void> => sweep(request)
  return { shown, refused, names, timeMs: Math.min(...shown.map((one) => one.timeMs)), release }
}

async function takeVolume(request: ProviderRequest, device: RawPath): Promise<LvmRecord> {
  const found = await findVolume(device)
  if (found?.attributes.startsWith('V') !== true || found.pool === '') {
    throw new Error(`${displayPath(device)} is no LVM thin volume`)
  }
  const { group, volume } = found
  const there = await listVolumes(group)
  const isTaken = (name: string): boolean => there.some((one) => one.volume === name)
  const name = freeName({ of: request, isTaken })
  const record = { group, volume, name }
  const earlier = readAll(request)
  writeRecords({ path: recordPath(request), records: [...earlier, record] })
  const result = await lvm('lvcreate', ['-s', `${group}/${volume}`, '-n', name, '-kn', '-ay'])
  // It takes back what it cannot finish. One that had to be ended does not come here.
  if (result.exitCode !== 0) writeRecords({ path: recordPath(request), records: earlier })
  succeeded('lvcreate', result)
  return record
}

async function mountSnapshot({
  record: { group, name },
  type,
  place,
}: {
  record: LvmRecord
  type: string
  place: RawPath
}): Promise<void> {
  mkdirSync(rawPathToBytes(place), { recursive: true, mode: 0o700 })
  const options = MOUNT_OPTIONS[type] ?? 'ro'
  const args = ['-t', type, '-o', options, '--', `/dev/${group}/${name}`, rawPathToBytes(place)]
  const call = { program: 'mount', args, changes: true, timeoutMs: MOUNT_TIMEOUT_MS }
  succeeded('mount', await runProgram(call))
}

/** Also what `release` does: removes whatever is written down. */
async function sweep(of: SnapshotOwner): Promise<void> {
  const records = readAll(of)
  if (records.length === 0) return
  await unmountBelow(placesOf(of))
  await removeRecorded({ path: recordPath(of), records, remove })
  removePlaces(placesOf(of))
}

async function remove({ group, volume, name }: LvmRecord): Promise<'removed' | 'away'> {
  const call = { changes: false, timeoutMs: MOUNT_TIMEOUT_MS }
  const { exitCode } = await runProgram({ ...call, program: 'vgs', args: [group] })
  if (exitCode !== 0) return 'away'
  // Of the whole group: a failure to find one says nothing for sure, and its record has to stay.
  const found = (await listVolumes(group)).find((one) => one.volume === name)
  if (found?.origin === volume)
    succeeded('lvremove', await lvm('lvremove', ['-f', `${group}/${name}`]))
  return 'removed'
}

interface FoundVolume extends Volume {
  readonly attributes: string
  readonly pool: string
  readonly origin: string
}

/** What lvs says of a device, or undefined where that is no logical volume. */
async function findVolume(device: RawPath): Promise<FoundVolume | undefined> {
  // Without the programs there are no logical volumes: `/dev/mapper` has other devices, too.
  if (findProgram('lvs') === undefined) return undefined
  const result = await lvs(device)
  return result.exitCode === 0 ? volumesIn(result)[0] : undefined
}

/** All volumes of a group. */
async function listVolumes(group: string): Promise<readonly FoundVolume[]> {
  const result = await lvs(group)
  succeeded('lvs', result)
  return volumesIn(result)
}

function lvs(what: RawPath): Promise<ProgramResult> {
  const columns = 'vg_name,lv_name,lv_attr,pool_lv,origin'
  const args = ['--reportformat', 'json', '-o', columns, rawPathToBytes(what)]
  return runProgram({ program: 'lvs', args, changes: false, timeoutMs: MOUNT_TIMEOUT_MS })
}

function volumesIn({ stdout }: ProgramResult): FoundVolume[] {
  const { report } = JSON.parse(stdout) as { report: { lv: Record<string, string>[] }[] }
  const rows = report.flatMap(({ lv }) => lv)
  return rows.map((row) => ({
    group: row['vg_name'] ?? '',
    volume: row['lv_name'] ?? '',
    attributes: row['lv_attr'] ?? '',
    pool: row['pool_lv'] ?? '',
    origin: row['origin'] ?? '',
  }))
}

function lvm(program: string, args: readonly string[]): Promise<ProgramResult> {
  return runProgram({ program, args, changes: true, timeoutMs: LVM_TIMEOUT_MS })
}

function placesOf({ state, set }: SnapshotOwner): RawPath {
  return `${state}/lvm-${set}`
}

function recordPath({ state, set }: SnapshotOwner): RawPath {
  return `${state}/lvm-${set}.json`
}

function readAll(of: SnapshotOwner): LvmRecord[] {
  // What lvm(8) lets a name have; not one that begins like an option.
  const isName = (name: unknown): boolean =>
    typeof name === 'string' && /^[\w+.][\w+.-]*$/.test(name)
  return readRecords<LvmRecord>({
    path: recordPath(of),
    believe: ({ group, volume, name }) =>
      isName(group) && isName(volume) && isOwnName({ set: of.set, name }),
  })
}
