// Drives: mounted where only we look, given back in good order, and asked whether they answer.
//
// target-access.ts mounts what block-devices.ts found; main.ts gives everything back by
// releaseDrives() at the end. Root mounts below /run/backup, where nobody else can put anything,
// with a lock beside it that says whether the run that mounted it still lives (invariant 7);
// others ask udisks, and a Mac asks diskutil. Nothing waits for a drive that hangs, and no mount
// is ever detached lazily, for then nobody could say when the drive may be pulled.
// Throws TARGET_ABSENT, TARGET_FAILED, PROGRAM_ABSENT, LOCKED, INTERRUPTED, PROGRAM_TIMEOUT.

import {
  chmodSync,
  closeSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmdirSync,
} from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { basename } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { BackupError, systemCode } from '../errors.ts'
import { displayText, rawPathFromText, rawPathToText } from '../model/raw-path.ts'
import {
  type BlockFilesystem,
  deviceMounts,
  mountsAnywhere,
  listDevices,
  mountPointsOf,
  runBounded,
} from './block-devices.ts'
import { ejectDisk, mountVolume, unmountVolume, volumeMountPoint } from './diskutil.ts'
import { atEnd } from './endings.ts'
import { acquireLock, type Lock } from './lock.ts'
import { findProgram, type ProgramResult } from './shell.ts'
import { isBelow, readMounts } from './source-snapshot/mounts.ts'

type Interruptible = { readonly signal?: AbortSignal | undefined }

export interface MountedDrive {
  /** The top of the drive's filesystem. */
  readonly path: string
  /** Whether we mounted it, and so unmount it. */
  readonly ours: boolean
  /** What the driver said although it mounted: that the drive was pulled without unmounting. */
  readonly warning: string | undefined
}

/** Root's own: nobody else can make, see or replace anything below it. */
const PRIVATE_PLACE = '/run/backup'

/** A drive may bring programs and devices; it is to bring files only. */
const OPTIONS = ['nosuid', 'nodev', 'noexec', 'noatime']

/** Those that stop at the first damage when told so. */
const STOPS_AT_ERRORS = ['ext2', 'ext3', 'ext4', 'vfat']

/** What to try, the kernel's driver or one in user space, and the package of the latter. */
const DRIVERS: Readonly<Record<string, { types: readonly string[]; packages: string }>> = {
  exfat: { types: ['exfat', 'exfat-fuse'], packages: 'exfat-fuse exfatprogs' },
  ntfs: { types: ['ntfs-3g', 'ntfs3'], packages: 'ntfs-3g' },
}

/** The programs that check and repair, by filesystem. */
const CHECKS: Readonly<Record<string, string>> = {
  ext2: 'fsck.ext2 -f',
  ext3: 'fsck.ext3 -f',
  ext4: 'fsck.ext4 -f',
  xfs: 'xfs_repair',
  btrfs: 'btrfs check',
  exfat: 'fsck.exfat',
  vfat: 'fsck.vfat',
  ntfs: 'ntfsfix',
}

/** A large journal on a slow disk is replayed first. */
const MOUNT_TIMEOUT_MS = 5 * 60_000

/** Everything that is still in memory goes to the drive, and a slow stick takes its time. */
const FLUSH_TIMEOUT_MS = 15 * 60_000

/** What is asked of a drive has an answer in moments, or after some seconds of spinning up. */
const ANSWER_TIMEOUT_MS = 5_000

const POWER_TIMEOUT_MS = 60_000

/** A desktop that indexes a new drive lets go of it soon. */
const UNMOUNT_TRIES = 4
const UNMOUNT_PAUSE_MS = 250

/** How many programs that use a drive are named. */
const MAX_USERS = 5

/** What this process mounted and has not given back, by path. */
const held = new Map<string, Lock | undefined>()

/** Whatever becomes of the command, what it mounted is given back. */
function hold(path: string, lock: Lock | undefined): void {
  held.set(path, lock)
  atEnd(releaseDrives)
}

/**
 * The drive's filesystem, mounted: where it is already, else in a place of ours.
 * @throws BackupError TARGET_ABSENT when it cannot be mounted, PROGRAM_ABSENT when a driver is
 * missing, LOCKED while another run mounts it
 */
export async function mountDrive(
  filesystem: BlockFilesystem,
  { signal }: Interruptible = {},
): Promise<MountedDrive> {
  if (process.platform === 'darwin') return await mountOnMac(filesystem, { signal })
  const { device } = filesystem
  const [place] = mountPointsOf(device)
  if (place !== undefined) return { path: place, ours: isOurs(place), warning: undefined }
  if (process.geteuid?.() === 0) return await mountPrivately(filesystem, { signal })
  return await mountByUdisks(filesystem, { signal })
}

/**
 * Writes out what is pending, unmounts, and removes the place where it is ours. The caller has
 * ended its work there: what of it is still open is closed. Nothing happens where nothing is
 * mounted.
 * @throws BackupError TARGET_FAILED while it is in use, does not answer, or could not be written;
 * with the fact `unplugged` where its device is gone
 */
export async function unmountDrive(
  path: string,
  {
    signal,
    answerTimeoutMs = ANSWER_TIMEOUT_MS,
  }: Interruptible & { readonly answerTimeoutMs?: number } = {},
): Promise<void> {
  if (process.platform === 'darwin') {
    await unmountVolume(path, { signal })
    held.delete(path)
    return
  }
  const device = deviceAt(path)
  if (device !== undefined && !existsSync(device)) {
    // Nothing can reach it any more, and what of ours still has files open there cannot be waited
    // for.
    await change('umount', ['--lazy', '--', path], { signal: undefined })
    letGo(path)
    throw unplugged(path)
  }
  if (device !== undefined) {
    const state = await probe(path, { timeoutMs: answerTimeoutMs })
    if (state === 'hangs') throw hangs(path)
    closeOwnFiles(path)
    const said = await flush(path, { signal })
    await unmount({ path, device, signal })
    letGo(path)
    if (said !== undefined) throw notWritten(path, said)
  }
  letGo(path)
}

/**
 * Makes sure that a filesystem is mounted nowhere, by whomever: only then may it be pulled. What
 * the machine has mounted, and a sandbox cannot reach, udisks unmounts.
 * @throws BackupError TARGET_FAILED where it stays mounted
 */
export async function mustBeUnmounted(
  { device, disk }: Pick<BlockFilesystem, 'device' | 'disk'>,
  { signal }: Interruptible = {},
): Promise<void> {
  if (process.platform === 'darwin' || mountsAnywhere(device).length === 0) return
  if (findProgram('udisksctl') !== undefined) await udisks('unmount', { device, signal })
  const [left] = mountsAnywhere(device)
  if (left !== undefined) throw stillMounted(disk, left.point)
}

/**
 * Gives back everything that this process mounted, without waiting for what hangs.
 * @returns what could not be given back, and why
 */
export async function releaseDrives(): Promise<readonly BackupError[]> {
  const failures: BackupError[] = []
  for (const path of [...held.keys()].reverse()) {
    try {
      await unmountDrive(path)
    } catch (error) {
      const failure = asBackupError(error, path)
      // Whoever used the drive when it was pulled has said so.
      if (failure.facts['unplugged'] !== true) failures.push(failure)
    }
  }
  return failures
}

/**
 * Takes the power off a disk that is not in use, so that it can be pulled.
 * @returns `not possible` where nothing can do that; unmounted, it may be pulled all the same
 * @throws BackupError TARGET_FAILED while something of the disk is mounted
 */
export async function powerOff(
  filesystem: Pick<BlockFilesystem, 'disk' | 'isRemovable'>,
  { signal, sysBlock = '/sys/block' }: Interruptible & { readonly sysBlock?: string } = {},
): Promise<'off' | 'not possible'> {
  const { disk, isRemovable } = filesystem
  // What is built in would be gone until the next start of the machine.
  if (!isRemovable) return 'not possible'
  if (process.platform === 'darwin') {
    await ejectDisk(disk, { signal })
    return 'off'
  }
  const parts = (await listDevices({ signal })).filter((device) => device.disk === disk)
  for (const { device } of parts) {
    const [mount] = mountsAnywhere(device)
    if (mount !== undefined) throw stillMounted(disk, mount.point)
  }
  if (await powerOffByUdisks(disk, { signal })) return 'off'
  const remove = `${sysBlock}/${basename(disk)}/device/delete`
  // An open LUKS device on it would be left without its disk.
  const isUsed = parts.some(({ kind }) => kind !== 'disk' && kind !== 'part')
  if (isUsed || process.geteuid?.() !== 0 || !existsSync(remove)) return 'not possible'
  try {
    await writeFile(remove, '1', { flag: 'r+' })
    return 'off'
  } catch {
    return 'not possible'
  }
}

/**
 * Whether what is mounted there answers within the time. Another process asks, so that a mount that
 * hangs never holds us up.
 */
export async function isAnswering(
  path: string,
  { timeoutMs = ANSWER_TIMEOUT_MS }: { readonly timeoutMs?: number } = {},
): Promise<boolean> {
  return (await probe(path, { timeoutMs })) === 'answers'
}

/** What to do when a drive was pulled without being unmounted: the line that checks it. */
export function dirtyHint({
  device,
  filesystem,
}: Pick<BlockFilesystem, 'device' | 'filesystem'>): string {
  const check = CHECKS[filesystem] ?? 'fsck'
  return `it may have been pulled without unmounting; check it: sudo ${check} ${device}`
}

async function mountPrivately(
  filesystem: BlockFilesystem,
  { signal }: Interruptible,
): Promise<MountedDrive> {
  const path = `${PRIVATE_PLACE}/${placeName(filesystem)}`
  mkdirSync(PRIVATE_PLACE, { recursive: true })
  // A drive without owners shows its files to everybody who gets there.
  chmodSync(PRIVATE_PLACE, 0o700)
  const lock = lockOf(path)
  try {
    // Of a run that was killed: the drive was pulled since, and is another device now.
    while (deviceAt(path) !== undefined) await unmountOnce(path, { signal })
    mkdirSync(path, { recursive: true, mode: 0o700 })
    const warning = await mountAt(path, { filesystem, signal })
    hold(path, lock)
    return { path, ours: true, warning }
  } catch (error) {
    // An interrupted mount may have come about.
    if (deviceAt(path) !== undefined) await unmountOnce(path, {}).catch(() => {})
    removePlace(path)
    lock.release()
    throw error
  }
}

/** The filesystem says its own name; what is no UUID is not made a path of. */
function placeName({ device, uuid }: BlockFilesystem): string {
  const isPlain = uuid !== undefined && /^[0-9a-z][0-9a-z-]{0,63}$/.test(uuid)
  return isPlain ? uuid : basename(device).replace(/[^\w-]/g, '_')
}

function lockOf(path: string): Lock {
  return acquireLock({
    path: rawPathFromText(`${path}.lock`),
    description: 'a drive is mounted for a backup',
  })
}

/** Whether it is mounted in our place and no living run but this one uses it. */
function isOurs(path: string): boolean {
  if (held.has(path)) return true
  if (!isPrivate(path) || process.geteuid?.() !== 0) return false
  try {
    hold(path, lockOf(path))
    return true
  } catch (error) {
    if (error instanceof BackupError && error.code === 'LOCKED') return false
    throw error
  }
}

function isPrivate(path: string): boolean {
  return path.startsWith(`${PRIVATE_PLACE}/`)
}

/** Mounts, and makes sure that it is this device, with these options. Returns the warning. */
async function mountAt(
  path: string,
  { filesystem, signal }: { readonly filesystem: BlockFilesystem } & Interruptible,
): Promise<string | undefined> {
  const { device } = filesystem
  const said = await tryDrivers(path, { filesystem, signal })
  const found = deviceMounts(device).find(({ point }) => point === rawPathFromText(path))
  if (found === undefined) throw notMounted(filesystem, 'nothing is mounted afterwards')
  // A driver in user space may pass over what the kernel can do without it.
  if (!OPTIONS.every((option) => found.options.includes(option))) {
    const args = ['-o', ['remount', 'bind', ...OPTIONS].join(','), '--', path]
    const result = await change('mount', args, { signal })
    if (result.exitCode !== 0) throw notMounted(filesystem, whatItSaid(result.stderr))
  }
  return /not (properly |cleanly )?unmounted|unclean|hibernat|dirty/i.exec(said)?.input
}

/** Returns what the driver said. */
async function tryDrivers(
  path: string,
  { filesystem, signal }: { readonly filesystem: BlockFilesystem } & Interruptible,
): Promise<string> {
  const { device, filesystem: type } = filesystem
  const options = [...OPTIONS, ...(STOPS_AT_ERRORS.includes(type) ? ['errors=remount-ro'] : [])]
  const driver = Object.hasOwn(DRIVERS, type) ? DRIVERS[type] : undefined
  let said = ''
  // The type is named: no other of the kernel's drivers is to make what it can of a device.
  for (const name of driver?.types ?? [type]) {
    const args = ['-t', name, '-o', options.join(','), '--', device, path]
    const { exitCode, stderr } = await change('mount', args, { signal })
    if (exitCode === 0) return whatItSaid(stderr)
    said = whatItSaid(stderr)
    if (!said.includes('unknown filesystem type')) throw notMounted(filesystem, said)
  }
  if (driver === undefined) throw notMounted(filesystem, said)
  throw new BackupError('PROGRAM_ABSENT', `nothing here can mount ${type}: ${device}`, {
    hint: `install it: apt install ${driver.packages}`,
    facts: { device, filesystem: type },
  })
}

async function mountByUdisks(
  filesystem: BlockFilesystem,
  { signal }: Interruptible,
): Promise<MountedDrive> {
  const { device } = filesystem
  if (findProgram('udisksctl') === undefined) {
    throw new BackupError('PROGRAM_ABSENT', 'udisksctl is not installed', {
      hint: `mount the drive yourself, or install it: apt install udisks2; ${device} is unharmed`,
      facts: { program: 'udisksctl' },
    })
  }
  const { exitCode, stderr } = await udisks('mount', { device, signal })
  // Asked of the kernel: a label may hold anything, and the desktop may have been faster.
  const [path] = mountPointsOf(device)
  if (path === undefined) throw notMounted(filesystem, whatItSaid(stderr))
  const ours = exitCode === 0
  if (ours) hold(path, undefined)
  return { path, ours, warning: undefined }
}

async function mountOnMac(
  filesystem: BlockFilesystem,
  { signal }: Interruptible,
): Promise<MountedDrive> {
  const { device } = filesystem
  const there = await volumeMountPoint(device, { signal })
  if (there !== undefined) return { path: there, ours: held.has(there), warning: undefined }
  try {
    await mountVolume(device, { signal })
  } catch (error) {
    if (!(error instanceof BackupError) || error.code !== 'PROGRAM_FAILED') throw error
    throw notMounted(filesystem, error.message)
  }
  const path = await volumeMountPoint(device, { signal })
  if (path === undefined) throw notMounted(filesystem, 'nothing is mounted afterwards')
  hold(path, undefined)
  return { path, ours: true, warning: undefined }
}

type Probed = 'answers' | 'fails' | 'hangs'

/** Asks the filesystem itself, and for its top directory. */
async function probe(path: string, { timeoutMs }: { readonly timeoutMs: number }): Promise<Probed> {
  const asked = Promise.all([
    ask('stat', ['-f', '--', path], timeoutMs),
    ask('ls', ['-U', '--', path], timeoutMs),
  ])
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<readonly Probed[]>((resolve) => {
    timer = setTimeout(() => resolve(['hangs']), timeoutMs)
  })
  try {
    const answers = await Promise.race([asked, late])
    if (answers.includes('hangs')) return 'hangs'
    return answers.includes('fails') ? 'fails' : 'answers'
  } finally {
    clearTimeout(timer)
  }
}

async function ask(program: string, args: readonly string[], timeoutMs: number): Promise<Probed> {
  try {
    const { exitCode } = await runBounded({ program, args, changes: false, timeoutMs })
    return exitCode === 0 ? 'answers' : 'fails'
  } catch (error) {
    const isLate = error instanceof BackupError && error.code === 'PROGRAM_TIMEOUT'
    return isLate ? 'hangs' : 'fails'
  }
}

/** Returns why not all of it was written; undefined when it was. */
async function flush(path: string, { signal }: Interruptible): Promise<string | undefined> {
  const args = ['-f', '--', path]
  const call = { program: 'sync', args, changes: true, timeoutMs: FLUSH_TIMEOUT_MS, signal }
  const { exitCode, stderr } = await runBounded(call)
  return exitCode === 0 ? undefined : whatItSaid(stderr)
}

async function unmount({
  path,
  device,
  signal,
}: { readonly path: string; readonly device: string } & Interruptible): Promise<void> {
  for (let tries = 1; ; tries++) {
    const { exitCode, stderr } =
      process.geteuid?.() === 0
        ? await umount(path, { signal })
        : await udisks('unmount', { device, signal })
    // It may have been unmounted by somebody else just now.
    if (exitCode === 0 || deviceAt(path) === undefined) return
    const isBusy = /busy/i.test(stderr)
    if (!isBusy || tries === UNMOUNT_TRIES) throw notUnmounted(path, { isBusy, stderr })
    await sleep(UNMOUNT_PAUSE_MS)
  }
}

async function unmountOnce(path: string, { signal }: Interruptible): Promise<void> {
  const { exitCode, stderr } = await umount(path, { signal })
  if (exitCode !== 0) throw notUnmounted(path, { isBusy: /busy/i.test(stderr), stderr })
}

function umount(path: string, { signal }: Interruptible): Promise<ProgramResult> {
  return change('umount', ['--', path], { signal, timeoutMs: FLUSH_TIMEOUT_MS })
}

function udisks(
  verb: 'mount' | 'unmount' | 'power-off',
  { device, signal }: { readonly device: string } & Interruptible,
): Promise<ProgramResult> {
  const args = [verb, '--no-user-interaction', '-b', device]
  return change('udisksctl', args, { signal, timeoutMs: FLUSH_TIMEOUT_MS })
}

/** False where there is no udisks, it does not run, or it cannot. */
async function powerOffByUdisks(device: string, { signal }: Interruptible): Promise<boolean> {
  if (findProgram('udisksctl') === undefined) return false
  try {
    const args = ['power-off', '--no-user-interaction', '-b', device]
    const timeoutMs = POWER_TIMEOUT_MS
    return (await change('udisksctl', args, { signal, timeoutMs })).exitCode === 0
  } catch (error) {
    if (error instanceof BackupError && error.code === 'PROGRAM_TIMEOUT') return false
    throw error
  }
}

async function change(
  program: string,
  args: readonly string[],
  { signal, timeoutMs = MOUNT_TIMEOUT_MS }: Interruptible & { readonly timeoutMs?: number },
): Promise<ProgramResult> {
  return await runBounded({ program, args, changes: true, timeoutMs, signal })
}

/** What is mounted exactly there, the last of several; undefined for nothing. */
function deviceAt(path: string): string | undefined {
  const point = rawPathFromText(path)
  const mount = readMounts().findLast((one) => one.point === point)
  return mount === undefined ? undefined : rawPathToText(mount.device)
}

/**
 * Closes what this program still has open below a mount: a worker thread that was ended in the
 * middle leaves its files open, and nobody else knows of them. Where the system does not say what
 * is open, nothing.
 */
function closeOwnFiles(path: string): void {
  if (!existsSync('/proc/self/fd')) return
  for (const fd of readdirSync('/proc/self/fd')) {
    try {
      if (readlinkSync(`/proc/self/fd/${fd}`).startsWith(`${path}/`)) closeSync(Number(fd))
    } catch (error) {
      // The one that the list itself was read by is closed already.
      if (!['ENOENT', 'EBADF'].includes(systemCode(error) ?? '')) throw error
    }
  }
}

function unplugged(path: string): BackupError {
  return new BackupError('TARGET_FAILED', `the drive at ${path} was pulled while it was mounted`, {
    hint: 'exports that were made are whole; plug it in again, and verify what is on it',
    facts: { unplugged: true },
  })
}

function letGo(path: string): void {
  if (isPrivate(path) && process.geteuid?.() === 0) removePlace(path)
  held.get(path)?.release()
  held.delete(path)
}

/** Only an empty directory goes; the lock's file stays, as lock.ts says. */
function removePlace(path: string): void {
  try {
    rmdirSync(path)
  } catch (error) {
    // Something is still mounted there, or somebody put something in: neither is ours to remove.
    if (!['ENOENT', 'EBUSY', 'ENOTEMPTY'].includes(systemCode(error) ?? '')) throw error
  }
}

/** `nautilus (1234)` for each process that has something open there, as far as we may see. */
function usersOf(path: string): string[] {
  const directory = rawPathFromText(path)
  const users: string[] = []
  for (const pid of listNames('/proc').filter((name) => /^\d+$/.test(name))) {
    const open = listNames(`/proc/${pid}/fd`).map((fd) => `fd/${fd}`)
    const isUser = ['cwd', 'root', 'exe', ...open].some((link) => {
      const to = linkOf(`/proc/${pid}/${link}`)
      return to !== undefined && isBelow({ path: to, directory })
    })
    if (isUser) users.push(`${nameOf(pid)} (${pid})`)
  }
  return users
}

function listNames(directory: string): string[] {
  try {
    return readdirSync(directory)
  } catch {
    // It has ended, or is somebody else's.
    return []
  }
}

function linkOf(path: string): string | undefined {
  try {
    return readlinkSync(path, 'latin1')
  } catch {
    return undefined
  }
}

function nameOf(pid: string): string {
  try {
    return displayText(readFileSync(`/proc/${pid}/comm`, 'utf8').trim())
  } catch {
    return 'a program'
  }
}

/** The first line that means something, without the program's own name. */
function whatItSaid(stderr: string): string {
  const lines = stderr.split('\n').map((line) => line.trim())
  const line = lines.find((one) => /^(u?mount|WARN|ERROR|Error)\b/.test(one)) ?? lines[0] ?? ''
  return displayText(line.replace(/^u?mount: /, '').replace(/\.$/, ''))
}

function nameFor({ device, label }: BlockFilesystem): string {
  return label === undefined ? device : `${displayText(label)} (${device})`
}

function notMounted(filesystem: BlockFilesystem, said: string): BackupError {
  const { device, filesystem: type } = filesystem
  const why = said === '' ? '' : `: ${said}`
  let hint = dirtyHint(filesystem)
  if (said.includes('does not exist')) hint = 'plug it in again'
  if (said.includes('unknown filesystem type')) hint = `this system has no driver for ${type}`
  return new BackupError(
    'TARGET_ABSENT',
    `the drive ${nameFor(filesystem)} cannot be mounted${why}`,
    {
      hint: `${hint}; nothing on it was changed`,
      facts: { device, filesystem: type },
      retry: 'later',
    },
  )
}

function notUnmounted(
  path: string,
  { isBusy, stderr }: { readonly isBusy: boolean; readonly stderr: string },
): BackupError {
  const facts = { path }
  if (!isBusy) {
    const message = `the drive at ${displayText(path)} cannot be unmounted: ${whatItSaid(stderr)}`
    const hint = `do not pull it yet; try: sudo umount "${displayText(path)}"`
    return new BackupError('TARGET_FAILED', message, { hint, facts })
  }
  const users = usersOf(path)
  const named = users.slice(0, MAX_USERS).join(', ')
  const more = users.length > MAX_USERS ? ` and ${users.length - MAX_USERS} more` : ''
  const by = users.length === 0 ? '' : ` by ${named}${more}`
  const message = `the drive at ${displayText(path)} is still in use${by}`
  return new BackupError('TARGET_FAILED', message, {
    hint: 'what was written is safe; end what uses it and unmount it before you pull it',
    facts: { ...facts, users },
    retry: 'later',
  })
}

function hangs(path: string): BackupError {
  return new BackupError('TARGET_FAILED', `the drive at ${displayText(path)} does not answer`, {
    hint: 'it stays mounted; check its cable, then pull it and plug it in again',
    facts: { path },
    retry: 'later',
  })
}

function notWritten(path: string, said: string): BackupError {
  const message = `not everything could be written to the drive at ${displayText(path)}: ${said}`
  return new BackupError('TARGET_FAILED', message, {
    hint: 'the drive is unmounted; plug it in again and verify what is on it',
    facts: { path },
  })
}

function stillMounted(disk: string, point: string): BackupError {
  const where = displayText(rawPathToText(point) ?? point)
  return new BackupError('TARGET_FAILED', `${disk} is still mounted at ${where}`, {
    hint: 'eject it before you unplug it; what was written is safe',
    facts: { disk },
    retry: 'later',
  })
}

function asBackupError(error: unknown, path: string): BackupError {
  if (error instanceof BackupError) return error
  const why = error instanceof Error ? error.message : String(error)
  return new BackupError('TARGET_FAILED', `the drive at ${displayText(path)}: ${why}`, {
    hint: `do not pull it yet; try: sudo umount "${displayText(path)}"`,
    facts: { path },
    cause: error,
  })
}
