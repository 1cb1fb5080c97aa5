// `backup doctor`: is this machine fit to back up this configuration? One check after the other,
// each ok, a warning or a failure with its exact fix.
//
// Nothing is changed but a directory of the self-test in staging (self-test.ts), removed however it
// ends. Only what this configuration needs is asked for. A check that cannot be made is a failure
// of that check alone; throws only INTERRUPTED and bugs.

import { mkdirSync, readdirSync, rmSync, type Stats, statfsSync, statSync } from 'node:fs'
import { BackupError } from '../errors.ts'
import { isRunning } from '../machine/processes.ts'
import type { Configuration, SetConfiguration } from '../machine/config.ts'
import { checkRsync } from '../machine/rsync.ts'
import { findProgram } from '../machine/shell.ts'
import {
  apfsProvider,
  FULL_DISK_ACCESS_FIX,
  fullDiskAccess,
} from '../machine/source-snapshot/apfs.ts'
import { btrfsProvider } from '../machine/source-snapshot/btrfs.ts'
import { listMounts, type Mount, mountOf } from '../machine/source-snapshot/mounts.ts'
import { zfsProvider } from '../machine/source-snapshot/zfs.ts'
import { formatSize } from '../model/amount.ts'
import { isFrozen } from '../model/collection.ts'
import { displayPath, type RawPath, rawPathFromText, rawPathToBytes } from '../model/raw-path.ts'
import { asFailure, type Check, failure, ok, quoted, warning } from '../model/check.ts'
import { formatStamp } from '../model/stamp.ts'
import { readMarks } from './marks.ts'
import { LINK_DEST, selfTest } from './self-test.ts'
import { inspectSources, realPath } from './sources.ts'
import { listStamps, stateRoot, surveyCollections } from './staging.ts'

export interface DoctorOptions {
  readonly configuration: Configuration
  readonly uid: number
  /** The home directory, absolute. */
  readonly home: string
  /** Milliseconds since 1970. */
  readonly nowMs: number
  /** Names the self-test's directory. */
  readonly pid: number
  /** Leaves the self-test out, which makes files. */
  readonly dryRun: boolean
  readonly signal: AbortSignal
  /** Each check as soon as it is made. */
  readonly onCheck: (check: Check) => void
}

/** Before this program was written no clock can be right. */
const FIRST_YEAR = 2025

/** The owner alone: everything that was ever readable only for somebody lies in staging. */
const OTHERS = 0o077
const WORLD_WRITABLE = 0o002

/** Below this share of free inodes a collection of small files may not fit. */
const FEW_INODES = 0.02

/** No path is below it. */
const NOWHERE = '/\0'

/** What can be read from a snapshot, and the programs that takes. */
const SNAPSHOTS = [
  { provider: btrfsProvider, programs: ['btrfs', 'mount', 'umount'] },
  { provider: zfsProvider, programs: ['zfs', 'mount', 'umount'] },
  { provider: apfsProvider, programs: ['tmutil', 'mount_apfs', 'umount'] },
] as const

const SELF_TEST_NAME = /^doctor-(\d+)$/

const INSTALLATIONS: Readonly<Record<string, string>> = {
  bash: 'apt install bash',
  btrfs: 'apt install btrfs-progs',
  ionice: 'apt install util-linux',
  mount: 'apt install mount',
  nice: 'apt install coreutils',
  umount: 'apt install mount',
  zfs: 'apt install zfsutils-linux',
}

/** Makes every check. @throws BackupError INTERRUPTED */
export async function examineMachine(options: DoctorOptions): Promise<void> {
  const examination: Examination = { ...options, mounts: await listMounts() }
  for (const [name, check] of CHECKS) {
    if (options.signal.aborted) throw new BackupError('INTERRUPTED', 'interrupted')
    try {
      for (const found of await check(examination)) options.onCheck(found)
    } catch (error) {
      options.onCheck(asFailure(name, error))
    }
  }
}

interface Examination extends DoctorOptions {
  readonly mounts: readonly Mount[]
}

const CHECKS: readonly (readonly [
  name: string,
  check: (examination: Examination) => Check[] | Promise<Check[]>,
])[] = [
  ['configuration', checkConfiguration],
  ['rsync', examineRsync],
  ['programs', checkPrograms],
  ['staging', checkStaging],
  ['space', checkSpace],
  ['self-test', checkSelfTest],
  ['collections', checkCollections],
  ['clock', checkClock],
  ['signing key', checkKeys],
  ['hooks', checkHooks],
  ['full disk access', checkFullDiskAccess],
  ['sources', checkSources],
]

/** Which rsync this is, and whether it will do; needs no configuration. */
export async function examineRsync(): Promise<Check[]> {
  try {
    const { version } = await checkRsync()
    return [ok('rsync', `rsync ${version}, ${quoted(findProgram('rsync') ?? '')}`)]
  } catch (error) {
    return [asFailure('rsync', error)]
  }
}

function checkConfiguration({ configuration, uid }: Examination): Check[] {
  const { path, backupSets, targets } = configuration
  const name = 'configuration'
  const stat = statSync(path)
  const place = quoted(path)
  if ((stat.mode & WORLD_WRITABLE) !== 0) {
    return [failure(name, `${place} can be written by everybody`, `chmod o-w ${place}`)]
  }
  if (!isTrusted(stat, uid)) {
    return [failure(name, `${place} belongs to another user`, `chown ${uid} ${place}`)]
  }
  return [ok(name, `${place}, ${backupSets.length} sets, ${targets.length} targets`)]
}

function checkPrograms({ configuration, mounts }: Examination): Check[] {
  const name = 'programs'
  const needed = neededPrograms(configuration, mounts)
  const absent = needed.filter((program) => findProgram(program) === undefined)
  if (absent.length === 0) return [ok(name, needed.join(', '))]
  return absent.map((program) => {
    const fix = INSTALLATIONS[program] ?? `install ${program}`
    return failure(name, `${program} is not installed`, fix)
  })
}

function neededPrograms(
  { backupSets, targets, notify }: Configuration,
  mounts: readonly Mount[],
): string[] {
  const needed = ['bash']
  if (backupSets.some(({ nice }) => nice > 0)) needed.push('nice')
  if (backupSets.some(({ ionice }) => ionice !== 'normal')) needed.push('ionice')
  for (const { sources } of backupSets.filter(({ snapshot }) => snapshot !== 'none')) {
    for (const { real } of inspectSources({ texts: sources, staging: NOWHERE }).readable) {
      needed.push(...(snapshotOf(real, mounts)?.programs ?? []))
    }
  }
  if (targets.some(({ parityPercent }) => parityPercent > 0)) needed.push('par2')
  if (process.platform === 'linux' && targets.some(({ kind }) => kind === 'drive')) {
    needed.push('lsblk', 'blkid')
  }
  if (notify.mail !== undefined) needed.push(notify.mail.sendmail)
  return [...new Set(needed)]
}

function checkStaging({ configuration: { staging }, uid, mounts }: Examination): Check[] {
  const name = 'staging'
  const place = quoted(staging)
  const stat = statSync(staging, { throwIfNoEntry: false })
  if (stat === undefined) {
    return [warning(name, `${place} is not there`, 'backup-collect makes it; is its disk mounted?')]
  }
  if (!stat.isDirectory()) return [failure(name, `${place} is no directory`, 'name another one')]
  const checks: Check[] = []
  if (!isTrusted(stat, uid)) {
    checks.push(failure(name, `${place} belongs to another user`, `chown ${uid} ${place}`))
  }
  if ((stat.mode & OTHERS) !== 0) {
    const mode = (stat.mode & 0o777).toString(8)
    checks.push(failure(name, `${place} is open to others (mode ${mode})`, `chmod 700 ${place}`))
  }
  if (checks.length > 0) return checks
  return [ok(name, `${place} on ${filesystemOf(realPath(rawPathFromText(staging)), mounts)}`)]
}

function checkSpace({ configuration: { staging, minFree } }: Examination): Check[] {
  if (!isThere(staging)) return []
  const { bavail, blocks, bsize, files, ffree } = statfsSync(staging)
  const freeBytes = bavail * bsize
  const wanted =
    minFree === undefined
      ? 0
      : 'bytes' in minFree
        ? minFree.bytes
        : Math.ceil(minFree.share * blocks * bsize)
  const name = 'space'
  const checks: Check[] = []
  // A filesystem without a size of its own says 0.
  if (blocks === 0) return [ok(name, 'not limited')]
  if (freeBytes === 0) {
    checks.push(failure(name, 'staging is full', 'free some space, or let `backup prune` do it'))
  } else if (freeBytes < wanted) {
    const least = formatSize(wanted)
    const message = `${formatSize(freeBytes)} free in staging, less than min_free (${least})`
    checks.push(warning(name, message, 'free some space, or keep fewer collections'))
  }
  // btrfs and others make inodes as they are needed, and say 0.
  if (files > 0 && ffree / files < FEW_INODES) {
    const message = `${ffree} of ${files} inodes free in staging`
    checks.push(warning(name, message, 'keep fewer collections, or make the filesystem with more'))
  }
  return checks.length > 0 ? checks : [ok(name, `${formatSize(freeBytes)} free in staging`)]
}

/** What retention and restores rely on: catalogs, and the file of locks. */
function checkCollections({ configuration: { staging, backupSets } }: Examination): Check[] {
  const name = 'collections'
  if (!isThere(staging)) return []
  const checks: Check[] = []
  for (const { name: set } of backupSets) {
    const { damaged, collections } = surveyCollections({ staging, set })
    if (damaged.length > 0) {
      const message = `the catalogs of ${set} ${damaged.join(', ')} cannot be read`
      const fix = 'copy what you need out of these trees, then remove them'
      checks.push(failure(name, message, fix))
    }
    const newest = collections.at(-1)
    if (newest !== undefined && isFrozen(newest)) {
      const message = `${set} ${newest.stamp} is suspect: nothing of the set is exported or let go`
      checks.push(warning(name, message, `backup accept ${set}`))
    }
  }
  try {
    readMarks(staging)
  } catch (error) {
    checks.push(asFailure(name, error))
  }
  return checks.length > 0 ? checks : [ok(name, 'catalogs and locks can be read')]
}

async function checkSelfTest(options: Examination): Promise<Check[]> {
  const { configuration, uid, pid, dryRun, signal } = options
  const { staging } = configuration
  const name = 'self-test'
  if (!isThere(staging)) return []
  if (dryRun) return [ok(name, 'left out in a dry run, for it makes files in staging')]
  const state = stateRoot(staging)
  mkdirSync(state, { recursive: true, mode: 0o700 })
  sweepSelfTests(state, pid)
  const directory = rawPathFromText(`${state}/doctor-${pid}`)
  const isRoot = uid === 0
  const results = await selfTest({ directory, isRoot, signal })
  const kept = results.filter(({ why }) => why === undefined).map(({ feature }) => feature)
  const fix = 'put staging on ext4, XFS, btrfs or ZFS'
  const checks = results
    .filter(({ why }) => why !== undefined)
    .map(({ feature, why = '', isContent }): Check => {
      const verdict = isContent ? 'failure' : 'warning'
      const what = feature === LINK_DEST ? feature : `${feature} are lost`
      return { name, verdict, message: `${what}: ${why}`, fix }
    })
  if (!isRoot) {
    const message = 'without root, owners, devices and system attributes are not kept'
    checks.push(warning(name, message, 'run as root, where others than you own what is collected'))
  }
  return kept.length === 0 ? checks : [ok(name, `survive here: ${kept.join(', ')}`), ...checks]
}

/** What a killed doctor left; one that still runs keeps its own. */
function sweepSelfTests(state: string, ownPid: number): void {
  for (const name of readdirSync(state)) {
    const pid = SELF_TEST_NAME.exec(name)?.[1]
    if (pid === undefined || (Number(pid) !== ownPid && isRunning(Number(pid)))) continue
    rmSync(rawPathToBytes(rawPathFromText(`${state}/${name}`)), { recursive: true, force: true })
  }
}

function checkClock({ configuration: { staging, backupSets }, nowMs }: Examination): Check[] {
  const name = 'clock'
  const now = formatStamp(nowMs)
  const fix = 'set the clock: timedatectl set-ntp true'
  if (Number(now.slice(0, 4)) < FIRST_YEAR) return [failure(name, `it says ${now}`, fix)]
  const collected = isThere(staging) ? backupSets : []
  const late = collected.flatMap((set) => {
    const newest = listStamps({ staging, set: set.name }).at(-1)
    return newest !== undefined && newest > now ? [`${set.name} ${newest}`] : []
  })
  if (late.length === 0) return [ok(name, now)]
  return [failure(name, `it says ${now}, and there is ${late.join(', ')}`, fix)]
}

function checkKeys({ configuration: { signingKey, targets } }: Examination): Check[] {
  if (targets.length === 0) return []
  const name = 'signing key'
  const place = quoted(signingKey)
  const stat = statSync(signingKey, { throwIfNoEntry: false })
  if (stat === undefined) return [failure(name, `${place} is not there`, '`backup init` makes one')]
  if ((stat.mode & OTHERS) === 0) return [ok(name, place)]
  return [failure(name, `${place} is open to others`, `chmod 600 ${place}`)]
}

function checkHooks({ configuration: { backupSets }, uid }: Examination): Check[] {
  const name = 'hooks'
  const programs = new Set(backupSets.flatMap(hooksOf))
  const checks = [...programs].flatMap((program): Check[] => {
    const file = findProgram(program)
    if (file === undefined) {
      const message = `${quoted(program)} is no program`
      return [failure(name, message, 'correct it, or make it executable')]
    }
    const stat = statSync(file)
    const place = quoted(file)
    if ((stat.mode & WORLD_WRITABLE) !== 0) {
      return [failure(name, `everybody can write ${place}`, `chmod o-w ${place}`)]
    }
    if (isTrusted(stat, uid)) return []
    const message = `${place} belongs to another user, who can change it`
    return [failure(name, message, `chown ${uid} ${place}`)]
  })
  return checks.length > 0 || programs.size === 0 ? checks : [ok(name, `${programs.size} programs`)]
}

function hooksOf({ hooks: { collect, export: exported } }: SetConfiguration): string[] {
  return [collect, exported]
    .flatMap(({ before, after, onFailure }) => [before, after, onFailure])
    .flatMap((words) => words?.[0] ?? [])
}

function checkSources({ configuration, uid, mounts }: Examination): Check[] {
  const { staging, backupSets } = configuration
  const text = rawPathFromText(staging)
  const real = isThere(staging) ? realPath(text) : text
  return backupSets.flatMap((set) => {
    const name = `sources of ${set.name}`
    // The records of this machine are made by the first collection.
    const texts = set.sources.filter((source) => source !== set.records || isThere(source))
    const sources = inspectSources({ texts, staging: real })
    const absent = sources.missing.map(({ path, why }) => {
      const fix = 'is its disk mounted? correct the path, or let this user read it'
      return failure(name, `"/${displayPath(path)}": ${why}`, fix)
    })
    const present = sources.readable.map((source) => {
      const path = `"${displayPath(source.given)}"`
      return checkSnapshot({ name, set, uid, mounts, path, real: source.real })
    })
    return [...absent, ...present]
  })
}

/** Whether a source is read from a snapshot. */
function checkSnapshot({
  name,
  set,
  uid,
  mounts,
  path,
  real,
}: {
  readonly name: string
  readonly set: SetConfiguration
  readonly uid: number
  readonly mounts: readonly Mount[]
  /** For people. */
  readonly path: string
  readonly real: RawPath
}): Check {
  const type = filesystemOf(real, mounts)
  if (set.snapshot === 'none') return ok(name, `${path} on ${type}, read as it is, as configured`)
  const kind = snapshotOf(real, mounts)?.provider.kind
  if (kind !== undefined && uid === 0) return ok(name, `${path}, read from a ${kind} snapshot`)
  const why = kind === undefined ? `${type} has no snapshots` : 'snapshots need root'
  const message = `${path} has to be read while it changes: ${why}`
  const other = kind === undefined ? 'move it to btrfs or ZFS' : 'run as root'
  if (set.snapshot === 'required') {
    return failure(name, message, `${other}, or set snapshot to auto`)
  }
  return warning(name, message, `${other}, or set snapshot to none`)
}

function snapshotOf(path: RawPath, mounts: readonly Mount[]) {
  const mount = mountOf(path, mounts)
  return SNAPSHOTS.find(({ provider }) => mount !== undefined && provider.takes(mount))
}

/** Of macOS: without it private directories come out empty. */
function checkFullDiskAccess({ home }: Examination): Check[] {
  const name = 'full disk access'
  const access = fullDiskAccess(rawPathFromText(home))
  if (access === 'unknown') return []
  if (access === 'granted') return [ok(name, 'granted')]
  return [failure(name, 'macOS keeps private directories from this program', FULL_DISK_ACCESS_FIX)]
}

function filesystemOf(path: RawPath, mounts: readonly Mount[]): string {
  return mountOf(path, mounts)?.type ?? 'an unknown filesystem'
}

/** Root's or ours: anybody else could change it under us. */
function isTrusted(stat: Stats, uid: number): boolean {
  return stat.uid === 0 || stat.uid === uid
}

function isThere(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() === true
}
