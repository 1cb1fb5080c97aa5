// Local snapshots of APFS volumes on macOS: `tmutil localsnapshot` makes one of every volume at
// once, `mount_apfs -s` mounts it.
//
// UNVERIFIED on a Mac: written from public sources and tested against stand-ins that print what
// those show. tmutil chooses the name, so it is written down right after, not before: one that a
// kill leaves in that instant goes with Time Machine's own, within a day (invariants 4 and 7).
// What `/` shows lies on the Data volume (firmlinks), so that one is mounted. Without bind mounts
// the mounted snapshot is itself the root that rsync reads from. macOS may delete a snapshot while
// it is read: `check` asks after it. Throws SNAPSHOT_FAILED.

import { mkdirSync, readdirSync, statSync } from 'node:fs'
import { systemCode } from '../../errors.ts'
import { displayPath, type RawPath, rawPathToBytes } from '../../model/raw-path.ts'
import { type ProgramResult, runProgram } from '../shell.ts'
import {
  readRecords,
  removePlaces,
  removeRecorded,
  snapshotFailed,
  whyOf,
  writeRecords,
} from './leftovers.ts'
import { isBelow, listMounts, type Mount } from './mounts.ts'
import type {
  Part,
  ProviderRequest,
  ShownSnapshot,
  SnapshotOwner,
  SnapshotProvider,
  TakenSnapshots,
} from './source-snapshot.ts'
import { exists, MOUNT_TIMEOUT_MS, succeeded } from './view.ts'

/** What a Mac asks for before a program may read private directories or mount a snapshot. */
export const FULL_DISK_ACCESS_FIX =
  'open System Settings, Privacy & Security, Full Disk Access, and add the program that runs the '
  + 'backup: the terminal, or for a launchd job the node program itself; then start it again'

/** Where everything lies that is not the sealed system, since macOS 10.15. */
const DATA_VOLUME: RawPath = '/System/Volumes/Data'

/** Time Machine may be making a snapshot of its own at the same moment. */
const TMUTIL_TIMEOUT_MS = 5 * 60_000

const DATE = /^\d{4}-\d\d-\d\d-\d{6}$/

interface ApfsRecord {
  readonly date: string
}

export interface ApfsSnapshots extends TakenSnapshots {
  /** Asked after reading: why it may not all be of that snapshot; undefined when it is. */
  readonly check: () => Promise<string | undefined>
}

export interface ApfsProvider extends SnapshotProvider {
  readonly take: (request: ProviderRequest) => Promise<ApfsSnapshots>
}

/** What is at another place, or asked in another way, in tests. */
interface Mac {
  readonly dataVolume: RawPath
  readonly listMounts: () => Promise<Mount[]>
}

export const apfsProvider: ApfsProvider = apfsProviderOn({ dataVolume: DATA_VOLUME, listMounts })

/** The provider for a Mac, or for what stands in for one. */
export function apfsProviderOn(mac: Mac): ApfsProvider {
  return {
    kind: 'apfs',
    takes: ({ type, device }) => type === 'apfs' && !device.includes('@'),
    take: async (request) => {
      try {
        return await takeVolumes(request, mac)
      } catch (cause) {
        // What cannot be removed now stays written down, and the next run says so.
        await sweep(request, mac).catch(() => {})
        throw snapshotFailed(cause)
      }
    },
    sweep: (of) => sweep(of, mac),
  }
}

/**
 * Whether this process may read what macOS protects. The system answers EPERM, even to root, where
 * it may not; `unknown` where there is nothing to try, as on other systems.
 */
export function fullDiskAccess(
  home: RawPath,
  list: (directory: RawPath) => unknown = listDirectory,
): 'granted' | 'denied' | 'unknown' {
  const protectedDirectories = [
    `${home}/Library/Safari`,
    `${home}/Library/Mail`,
    '/Library/Application Support/com.apple.TCC',
  ]
  for (const directory of protectedDirectories) {
    try {
      list(directory)
      return 'granted'
    } catch (error) {
      if (systemCode(error) === 'EPERM') return 'denied'
    }
  }
  return 'unknown'
}

function listDirectory(directory: RawPath): unknown {
  return readdirSync(rawPathToBytes(directory))
}

async function takeVolumes(request: ProviderRequest, mac: Mac): Promise<ApfsSnapshots> {
  const timeMs = request.now()
  const date = await takeSnapshot(request)
  const name = `com.apple.TimeMachine.${date}.local`
  const places = new Map<RawPath, RawPath>()
  const shown: ShownSnapshot[] = []
  const refused: { given: RawPath; why: string }[] = []
  const causes: unknown[] = []
  for (const part of request.parts) {
    const { given } = part
    try {
      const { volume, path } = placeOf(part, mac)
      const place = places.get(volume) ?? `${placesOf(request)}/${places.size}`
      if (!places.has(volume)) await mountSnapshot({ name, volume, place })
      places.set(volume, place)
      const what = `${place}${path}`
      if (!exists(what)) throw new Error('it is not in the snapshot')
      shown.push({ given, what })
    } catch (error) {
      causes.push(error)
      refused.push({ given, why: whyOf(error) })
    }
  }
  if (shown.length === 0) throw causes[0]
  const check = (): Promise<string | undefined> => whyGone({ date, name, places, mac })
  const release = (): Promise<void> => sweep(request, mac)
  return { shown, refused, names: [name], timeMs, check, release }
}

/** Makes a snapshot of every volume, and writes its date down. */
async function takeSnapshot(request: ProviderRequest): Promise<string> {
  const result = await tmutil(['localsnapshot'])
  succeeded('tmutil', result)
  const said = /^Created local snapshot with date: (\S+)$/m.exec(result.stdout)?.[1] ?? ''
  if (!DATE.test(said)) throw new Error('tmutil did not say which snapshot it made')
  const records = [...readAll(request), { date: said }]
  writeRecords<ApfsRecord>({ path: recordPath(request), records })
  return said
}

/** The volume that holds a part, and the path in it. What `/` shows is mostly the Data volume's. */
function placeOf(
  { real, mount }: Part,
  { dataVolume }: Mac,
): { readonly volume: RawPath; readonly path: RawPath } {
  if (mount.point !== '/') {
    return { volume: mount.point, path: real.slice(mount.point.length) }
  }
  const [own, there] = [real, `${dataVolume}${real}`].map((path) => {
    return statSync(rawPathToBytes(path), { throwIfNoEntry: false })
  })
  if (own !== undefined && own.ino === there?.ino && own.dev === there.dev) {
    return { volume: dataVolume, path: real === '/' ? '' : real }
  }
  throw new Error(`${displayPath(real)} is on the system volume, which macOS keeps sealed`)
}

async function mountSnapshot({
  name,
  volume,
  place,
}: {
  name: string
  volume: RawPath
  place: RawPath
}): Promise<void> {
  mkdirSync(rawPathToBytes(place), { recursive: true, mode: 0o700 })
  const result = await runProgram({
    program: 'mount_apfs',
    args: ['-s', name, '-o', 'ro,nobrowse', rawPathToBytes(volume), rawPathToBytes(place)],
    changes: true,
    timeoutMs: MOUNT_TIMEOUT_MS,
  })
  if (/operation not permitted/i.test(result.stderr)) {
    throw new Error(`macOS does not let us mount a snapshot: ${FULL_DISK_ACCESS_FIX}`)
  }
  succeeded('mount_apfs', result)
}

/** Why what was read since may not be of that snapshot; undefined when all is well. */
async function whyGone({
  date,
  name,
  places,
  mac,
}: {
  date: string
  name: string
  places: ReadonlyMap<RawPath, RawPath>
  mac: Mac
}): Promise<string | undefined> {
  if (!(await listDates()).includes(date)) return `macOS deleted the snapshot ${name}`
  const mounts = await mac.listMounts()
  for (const place of places.values()) {
    const isMounted = mounts.some(({ point, device }) => {
      return point === place && device.startsWith(`${name}@`)
    })
    if (!isMounted) return `the snapshot ${name} is not mounted any more`
  }
  return undefined
}

/** Also what `release` does: removes whatever is written down. */
async function sweep(of: SnapshotOwner, mac: Mac): Promise<void> {
  const records = readAll(of)
  if (records.length === 0) return
  const mounts = await mac.listMounts()
  const ours = mounts.filter(({ point }) => isBelow({ path: point, directory: placesOf(of) }))
  for (const { point } of ours.reverse()) await unmount(point)
  const dates = await listDates()
  await removeRecorded({
    path: recordPath(of),
    records,
    remove: async ({ date }) => {
      if (dates.includes(date)) succeeded('tmutil', await tmutil(['deletelocalsnapshots', date]))
      return 'removed'
    },
  })
  removePlaces(placesOf(of))
}

/** At once where possible, else by force: it is read-only, so nothing can be lost. */
async function unmount(point: RawPath): Promise<void> {
  const call = { program: 'umount', changes: true, timeoutMs: MOUNT_TIMEOUT_MS }
  const result = await runProgram({ ...call, args: [rawPathToBytes(point)] })
  if (result.exitCode === 0) return
  succeeded('umount', await runProgram({ ...call, args: ['-f', rawPathToBytes(point)] }))
}

async function listDates(): Promise<string[]> {
  const args = ['listlocalsnapshotdates']
  const call = { program: 'tmutil', args, changes: false, timeoutMs: TMUTIL_TIMEOUT_MS }
  const result = await runProgram(call)
  succeeded('tmutil', result)
  return result.stdout.split('\n').filter((line) => DATE.test(line))
}

function tmutil(args: readonly string[]): Promise<ProgramResult> {
  return runProgram({ program: 'tmutil', args, changes: true, timeoutMs: TMUTIL_TIMEOUT_MS })
}

function placesOf({ state, set }: SnapshotOwner): RawPath {
  return `${state}/apfs-${set}`
}

function recordPath({ state, set }: SnapshotOwner): RawPath {
  return `${state}/apfs-${set}.json`
}

function readAll(of: SnapshotOwner): ApfsRecord[] {
  return readRecords<ApfsRecord>({
    path: recordPath(of),
    believe: ({ date }) => typeof date === 'string' && DATE.test(date),
  })
}
