// Filesystems on block devices: what is plugged in, mounted or not. lsblk lists them, and on macOS
// diskutil does.
//
// drive-mount.ts mounts one; the procedures choose it by label or UUID. What lsblk knows of a
// filesystem it has from udev; where udev does not run, blkid reads the device itself. Where one is
// mounted is asked of mountinfo by device number, which holds for drivers in user space, too. The
// free space is not asked for: that would wait for a mount that hangs. Throws PROGRAM_ABSENT,
// PROGRAM_FAILED, PROGRAM_TIMEOUT and INTERRUPTED; a single device that does not answer is left
// out.

import { existsSync, readFileSync, realpathSync, statSync } from 'node:fs'
import { BackupError, systemCode } from '../errors.ts'
import { displayText, rawPathFromText, rawPathToBytes, rawPathToText } from '../model/raw-path.ts'
import { listExternalVolumes } from './diskutil.ts'
import { deviceParts } from './posix.ts'
import { findProgram, type ProgramCall, type ProgramResult, runProgram } from './shell.ts'
import { type Mount, isBelow, parseMountInfo } from './source-snapshot/mounts.ts'

export interface BlockFilesystem {
  /** `/dev/sdb1`, or `/dev/mapper/luks-…`. */
  readonly device: string
  /** The whole disk that it lies on, `/dev/sdb`; of several the first. */
  readonly disk: string
  /** What blkid calls it: `ext4`, `exfat`, `vfat`. */
  readonly filesystem: string
  /** As it was written: for a terminal it needs displayText. */
  readonly label: string | undefined
  /** In lower case. */
  readonly uuid: string | undefined
  readonly partUuid: string | undefined
  /** Of the device. */
  readonly sizeBytes: number
  /** Whether it can be pulled out while the machine runs, as far as the kernel knows. */
  readonly isRemovable: boolean
  /** Whether the device refuses writes, as a card with its switch set. */
  readonly readOnly: boolean
  /** Of the disk: `usb`, `nvme`, `sata`. */
  readonly transport: string | undefined
  readonly model: string | undefined
  readonly serial: string | undefined
  /** Where all of it is mounted, the oldest mount first; parts of it do not count. */
  readonly mountPoints: readonly string[]
}

/** A device as lsblk lists it, before anything else is asked. */
export interface BlockDevice extends Omit<BlockFilesystem, 'filesystem' | 'mountPoints'> {
  readonly filesystem: string | undefined
  /** What it is to the kernel: `disk`, `part`, `crypt`, `loop`, `rom`. */
  readonly kind: string
  /** Whether other devices are made of it. */
  readonly hasChildren: boolean
}

/** What blkid reads off a device. */
export type BlockSignature = Pick<BlockDevice, 'filesystem' | 'label' | 'uuid' | 'partUuid'>

/** A mount of a device. */
export interface DeviceMount extends Mount {
  /** Of this mount point: `nosuid`, `noatime`. */
  readonly options: readonly string[]
  /** Of the filesystem itself, whatever this mount point allows. */
  readonly isReadOnly: boolean
}

const COLUMNS = [
  'NAME',
  'PATH',
  'TYPE',
  'FSTYPE',
  'LABEL',
  'UUID',
  'PARTUUID',
  'RM',
  'HOTPLUG',
  'TRAN',
  'RO',
  'SIZE',
  'MODEL',
  'SERIAL',
]

/** lsblk reads what the kernel keeps in memory. */
const LSBLK_TIMEOUT_MS = 30_000

/** blkid reads a few blocks; a sleeping disk takes some seconds to spin up. */
const BLKID_TIMEOUT_MS = 15_000

/** What a program gets beyond its time limit before we go on without it: it may not be killable. */
const ABANDON_MS = 6_000

/** The control socket of udev, by which others, too, tell whether it runs. */
const UDEV = '/run/udev/control'

/** What only comes and goes by plug. HOTPLUG says the same, but older lsblk know it less often. */
const PLUGGED_TRANSPORTS = ['usb', 'mmc', 'sbp', 'ieee1394', 'thunderbolt']

/** Signatures of parts of something else, of swap, and of locked devices. */
const NO_FILESYSTEM =
  /_member$|^(swap|swsuspend|crypto_.*|BitLocker|LVM.*|DM_.*|VMFS|bcache|drbd|stratis|ubi|vdo)$/

/** Images that nobody can ever write to: of a desktop's programs there may be dozens. */
const SEALED = ['squashfs', 'erofs', 'cramfs', 'romfs', 'iso9660']

/** Where programs show what is mounted elsewhere to their guests. */
const GUEST_PLACES = [
  '/proc',
  '/run/schroot',
  '/snap',
  '/var/lib/containers',
  '/var/lib/docker',
  '/var/lib/lxc',
  '/var/lib/machines',
  '/var/lib/schroot',
  '/var/lib/snapd',
]

/**
 * Every filesystem on a block device that this machine could mount; several may have one label.
 * Without root, and where udev does not run, what is not mounted stays unknown.
 */
export async function listBlockFilesystems({
  signal,
}: { readonly signal?: AbortSignal | undefined } = {}): Promise<readonly BlockFilesystem[]> {
  if (process.platform === 'darwin') return await listExternalVolumes({ signal })
  const devices = await listDevices({ signal })
  const known = await Promise.all(devices.map((device) => withSignature(device, { signal })))
  return known.flatMap(({ kind: _kind, hasChildren: _hasChildren, ...device }) => {
    const { filesystem } = device
    if (filesystem === undefined || NO_FILESYSTEM.test(filesystem)) return []
    if (SEALED.includes(filesystem)) return []
    return [{ ...device, filesystem, mountPoints: mountPointsOf(device.device) }]
  })
}

/** Whether it is the drive of that label, of that UUID, or of both where both are given. */
export function matchesDrive(
  filesystem: Pick<BlockFilesystem, 'label' | 'uuid'>,
  { label, uuid }: { readonly label?: string | undefined; readonly uuid?: string | undefined },
): boolean {
  if (label === undefined && uuid === undefined) return false
  if (uuid !== undefined && filesystem.uuid?.toLowerCase() !== uuid.toLowerCase()) return false
  return label === undefined || filesystem.label === label
}

/** Every block device, those without a filesystem too. */
export async function listDevices({
  signal,
}: {
  readonly signal?: AbortSignal | undefined
}): Promise<BlockDevice[]> {
  const args = ['--json', '--bytes', '--output', COLUMNS.join(',')]
  const call = { program: 'lsblk', args, changes: false, timeoutMs: LSBLK_TIMEOUT_MS, signal }
  const { exitCode, stdout, stderr } = await runBounded(call)
  // It says 32 or 64 where some of the devices went away meanwhile.
  if (exitCode !== 0 && stdout === '') throw lsblkFailed(stderr)
  return parseLsblk(stdout)
}

/** What `lsblk --json --bytes` prints, children after parents, each device once. */
export function parseLsblk(text: string): BlockDevice[] {
  const found = new Map<string, BlockDevice>()
  const add = (node: LsblkNode, parent: BlockDevice | undefined): void => {
    const device = readNode(node, parent)
    // A device made of several stands below each of them.
    if (device === undefined || found.has(device.device)) return
    found.set(device.device, device)
    for (const child of node.children ?? []) add(child, device)
  }
  for (const node of readTree(text)) add(node, undefined)
  return [...found.values()]
}

/** What `blkid -p -o udev` prints of one device. Its encoded values give back every byte. */
export function parseBlkid(text: string): BlockSignature {
  const values = new Map<string, string>()
  for (const line of text.split('\n')) {
    const at = line.indexOf('=')
    if (at > 0) values.set(line.slice(0, at), line.slice(at + 1))
  }
  const isFilesystem = values.get('ID_FS_USAGE') === 'filesystem'
  const decoded = (key: string): string | undefined => decode(values.get(key))
  return {
    filesystem: isFilesystem ? values.get('ID_FS_TYPE') : undefined,
    label: isFilesystem ? decoded('ID_FS_LABEL_ENC') : undefined,
    uuid: isFilesystem ? decoded('ID_FS_UUID_ENC')?.toLowerCase() : undefined,
    partUuid: values.get('ID_PART_ENTRY_UUID')?.toLowerCase(),
  }
}

/** Where all of a device is mounted, as text, the oldest mount first. Linux only. */
export function mountPointsOf(device: string): string[] {
  return deviceMounts(device).flatMap(({ point, root, type, options, isReadOnly }) => {
    // A sandbox makes what was mounted before read-only: the drive is mounted once more then.
    if (options.includes('ro') && !isReadOnly) return []
    // On btrfs the mounted subvolume is all that the user knows as the drive.
    if (root !== '/' && type !== 'btrfs') return []
    if (GUEST_PLACES.some((place) => isBelow({ path: point, directory: place }))) return []
    return rawPathToText(point) ?? []
  })
}

/**
 * Every mount of a device, or of a part of what is on it, in the order of mounting. By the device's
 * number, or by its name where a filesystem has a number of its own, as btrfs. Linux only.
 */
export function deviceMounts(
  device: string,
  { of = 'self' }: { readonly of?: 'self' | 1 } = {},
): DeviceMount[] {
  const number = numberOf(device)
  const names = namesOf(device)
  return mountLines(of).flatMap((line) => {
    const [, , at] = line.split(' ')
    const isSame = (mount: Mount): boolean => at === number || names.includes(mount.device)
    return parseMountInfo(line)
      .filter(isSame)
      .map((mount) => {
        const options = line.split(' ')[5]?.split(',') ?? []
        const isReadOnly = line.split(' - ')[1]?.split(' ')[2]?.split(',').includes('ro') === true
        return { ...mount, options, isReadOnly }
      })
  })
}

/**
 * Like runProgram, but comes back soon after the time limit even where the program cannot be killed
 * because the kernel waits for a device.
 * @throws BackupError what runProgram throws
 */
export async function runBounded(call: ProgramCall): Promise<ProgramResult> {
  const { program, timeoutMs } = call
  let timer: NodeJS.Timeout | undefined
  const abandoned = new Promise<never>((_resolve, reject) => {
    const give = (): void => {
      const message = `${program} hangs: it could not be ended`
      reject(new BackupError('PROGRAM_TIMEOUT', message, { facts: { program }, retry: 'later' }))
    }
    timer = setTimeout(give, timeoutMs + ABANDON_MS)
  })
  try {
    return await Promise.race([runProgram(call), abandoned])
  } finally {
    clearTimeout(timer)
  }
}

interface LsblkNode {
  readonly [column: string]: unknown
  readonly children?: readonly LsblkNode[]
}

function readTree(text: string): readonly LsblkNode[] {
  try {
    const { blockdevices } = JSON.parse(text) as { readonly blockdevices?: unknown }
    if (Array.isArray(blockdevices)) return blockdevices as LsblkNode[]
  } catch {
    // Said below.
  }
  throw lsblkFailed('it printed no list')
}

/** A node of lsblk's tree; what only the disk knows comes from its parent. */
function readNode(node: LsblkNode, parent: BlockDevice | undefined): BlockDevice | undefined {
  const device = textOf(node['path'])
  if (device === undefined) return undefined
  const transport = textOf(node['tran']) ?? parent?.transport
  const isPlugged = transport !== undefined && PLUGGED_TRANSPORTS.includes(transport)
  const comesAndGoes = isSet(node['rm']) || isSet(node['hotplug']) || isPlugged
  return {
    device,
    disk: parent?.disk ?? device,
    kind: textOf(node['type']) ?? '',
    filesystem: textOf(node['fstype']),
    label: textOf(node['label']),
    uuid: textOf(node['uuid'])?.toLowerCase(),
    partUuid: textOf(node['partuuid'])?.toLowerCase(),
    sizeBytes: Number(node['size'] ?? 0),
    isRemovable: comesAndGoes || parent?.isRemovable === true,
    readOnly: isSet(node['ro']),
    transport,
    model: textOf(node['model'])?.trim() ?? parent?.model,
    serial: textOf(node['serial'])?.trim() ?? parent?.serial,
    hasChildren: (node.children ?? []).length > 0,
  }
}

function textOf(value: unknown): string | undefined {
  return typeof value === 'string' && value !== '' ? value : undefined
}

/** Older versions print "1" for true. */
function isSet(value: unknown): boolean {
  return value === true || value === '1'
}

/** Where udev runs, its silence means that there is nothing; asking again would wake disks up. */
async function withSignature(
  device: BlockDevice,
  { signal }: { readonly signal?: AbortSignal | undefined },
): Promise<BlockDevice> {
  if (device.filesystem !== undefined || !isWorthAsking(device)) return device
  if (existsSync(UDEV) || process.geteuid?.() !== 0) return device
  if (findProgram('blkid') === undefined) return device
  // -p: what is on the device, not what blkid remembers of another one of that name.
  const args = ['-p', '-o', 'udev', '--', device.device]
  const call = { program: 'blkid', args, changes: false, timeoutMs: BLKID_TIMEOUT_MS, signal }
  try {
    const { exitCode, stdout } = await runBounded(call)
    return exitCode === 0 ? { ...device, ...known(parseBlkid(stdout)) } : device
  } catch (error) {
    if (error instanceof BackupError && error.code === 'INTERRUPTED') throw error
    return device
  }
}

function known(signature: BlockSignature): Partial<BlockSignature> {
  return Object.fromEntries(Object.entries(signature).filter(([, value]) => value !== undefined))
}

/** No empty loop device, no disk of partitions, nothing that takes long to say no. */
function isWorthAsking({ device, kind, sizeBytes, hasChildren }: BlockDevice): boolean {
  return sizeBytes > 0 && !hasChildren && kind !== 'rom' && !/^\/dev\/(fd|zram|ram)\d/.test(device)
}

/** `\x20` for a space, and so on for every byte that a shell might take for something else. */
function decode(value: string | undefined): string | undefined {
  if (value === undefined || value === '') return undefined
  const raw = rawPathFromText(value).replace(/\\x([0-9a-fA-F]{2})/g, (_all, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 16)),
  )
  return rawPathToBytes(raw).toString('utf8')
}

/** `8:17`, as mountinfo writes it; undefined for a device that is gone. */
function numberOf(device: string): string | undefined {
  const stat = statSync(device, { throwIfNoEntry: false, bigint: true })
  return stat?.isBlockDevice() === true ? deviceParts(stat.rdev).join(':') : undefined
}

/** The names that mountinfo may know a device by. */
function namesOf(device: string): string[] {
  try {
    return [rawPathFromText(device), realpathSync(device, 'latin1')]
  } catch {
    return [rawPathFromText(device)]
  }
}

function mountLines(of: 'self' | 1): string[] {
  try {
    return readFileSync(`/proc/${of}/mountinfo`, 'latin1').split('\n')
  } catch (error) {
    // Only root may look at another process.
    if (['ENOENT', 'EACCES', 'EPERM'].includes(systemCode(error) ?? '')) return []
    throw error
  }
}

/**
 * Where a device is mounted, for this process or for the machine: a sandboxed service has its own
 * view, and unmounts for itself alone.
 */
export function mountsAnywhere(device: string): DeviceMount[] {
  return [...deviceMounts(device), ...deviceMounts(device, { of: 1 })]
}

function lsblkFailed(said: string): BackupError {
  const why = displayText(said.trim().split('\n').at(-1) ?? '')
  return new BackupError('PROGRAM_FAILED', `lsblk did not list the drives: ${why}`, {
    hint: 'run `lsblk` to see what it says; nothing was changed',
    facts: { program: 'lsblk' },
  })
}
