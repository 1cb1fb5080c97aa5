// Drives on macOS: `diskutil list`, `info`, `mount`, `unmount` and `eject`.
//
// UNVERIFIED on a Mac: written from diskutil(8), and tested against stand-ins that print property
// lists of that form. block-devices.ts and drive-mount.ts call it on macOS only.
// macOS makes a volume UUID of its own for FAT and exFAT: it is not the one that Linux shows, so a
// drive that goes between the two is known by its label. Throws PROGRAM_FAILED, and what runProgram
// throws.

import { BackupError } from '../errors.ts'
import { displayText } from '../model/raw-path.ts'
import type { BlockFilesystem } from './block-devices.ts'
import { runProgram } from './shell.ts'

type Interruptible = { readonly signal?: AbortSignal | undefined }

/** What a property list can hold of what diskutil prints. */
export type PlistValue =
  string | number | boolean | readonly PlistValue[] | { readonly [key: string]: PlistValue }

/** diskutil waits for the disk arbitration of the system, which may wait for a disk. */
const DISKUTIL_TIMEOUT_MS = 60_000

/** Unmounting writes out what is pending. */
const UNMOUNT_TIMEOUT_MS = 10 * 60_000

/** Deeper than diskutil nests; a list that is deeper is none of its. */
const MAX_DEPTH = 20

/** Every volume with a filesystem on an external disk. */
export async function listExternalVolumes({
  signal,
}: Interruptible): Promise<readonly BlockFilesystem[]> {
  const listed = readPlist(await diskutil(['list', '-plist', 'external'], { signal }))
  const names = recordOf(listed)['AllDisks']
  const volumes: BlockFilesystem[] = []
  for (const name of Array.isArray(names) ? names : []) {
    if (typeof name !== 'string') continue
    const info = readPlist(await diskutil(['info', '-plist', name], { signal }))
    const volume = readVolume(recordOf(info))
    if (volume !== undefined) volumes.push(volume)
  }
  return volumes
}

/** Where a device is mounted now; undefined where it is not. */
export async function volumeMountPoint(
  device: string,
  { signal }: Interruptible,
): Promise<string | undefined> {
  const info = recordOf(readPlist(await diskutil(['info', '-plist', device], { signal })))
  return textOf(info['MountPoint'])
}

/** Mounts a volume where macOS wants it. @throws BackupError PROGRAM_FAILED */
export async function mountVolume(device: string, { signal }: Interruptible): Promise<void> {
  await diskutil(['mount', device], { signal, changes: true })
}

/** Writes out what is pending and unmounts. @throws BackupError PROGRAM_FAILED */
export async function unmountVolume(path: string, { signal }: Interruptible): Promise<void> {
  await diskutil(['unmount', path], { signal, changes: true, timeoutMs: UNMOUNT_TIMEOUT_MS })
}

/** Lets go of a whole disk; it refuses while a volume is in use. */
export async function ejectDisk(disk: string, { signal }: Interruptible): Promise<void> {
  await diskutil(['eject', disk], { signal, changes: true })
}

/** The value of an XML property list; what a device says of itself in it is only text. */
export function readPlist(text: string): PlistValue {
  const tokens = text.matchAll(/<(\/?)([a-z]+)[^<>]*?(\/?)>([^<]*)/g)
  const open: { readonly kind: string; readonly items: PlistValue[] }[] = []
  let top: PlistValue | undefined
  const add = (value: PlistValue): void => {
    if (open.length === 0) top ??= value
    open.at(-1)?.items.push(value)
  }
  for (const [, end, kind = '', empty, content = ''] of tokens) {
    if (kind === 'dict' || kind === 'array') {
      if (end === '') open.push({ kind, items: [] })
      if (open.length > MAX_DEPTH) throw notUnderstood()
      if (end === '' && empty === '') continue
      const closed = open.pop()
      if (closed?.kind !== kind) throw notUnderstood()
      add(kind === 'array' ? closed.items : pairsOf(closed.items))
    } else if (end === '') {
      const value = scalarOf(kind, empty === '' ? content : '')
      if (value !== undefined) add(value)
    }
  }
  if (top === undefined || open.length > 0) throw notUnderstood()
  return top
}

function scalarOf(kind: string, content: string): PlistValue | undefined {
  if (kind === 'true' || kind === 'false') return kind === 'true'
  if (kind === 'integer' || kind === 'real') return Number(content)
  if (['key', 'string', 'date', 'data'].includes(kind)) return unescape(content)
  return undefined
}

function pairsOf(items: readonly PlistValue[]): { readonly [key: string]: PlistValue } {
  const pairs: [string, PlistValue][] = []
  for (let at = 0; at + 1 < items.length; at += 2) {
    pairs.push([String(items[at]), items[at + 1] as PlistValue])
  }
  return Object.fromEntries(pairs)
}

const ENTITIES: Readonly<Record<string, string>> = {
  amp: '&',
  lt: '<',
  gt: '>',
  quot: '"',
  apos: "'",
}

function unescape(text: string): string {
  return text.replace(/&(?:#(\d+)|#x([0-9a-fA-F]+)|([a-z]+));/g, (all, decimal, hex, name) => {
    if (name !== undefined) return ENTITIES[String(name)] ?? all
    const code = decimal === undefined ? Number.parseInt(String(hex), 16) : Number(decimal)
    return code <= 0x10ffff ? String.fromCodePoint(code) : all
  })
}

/** A volume that could be mounted; a whole disk, a container and the like are none. */
function readVolume(info: Readonly<Record<string, PlistValue>>): BlockFilesystem | undefined {
  const device = textOf(info['DeviceNode'])
  const filesystem = textOf(info['FilesystemType'])
  if (device === undefined || filesystem === undefined) return undefined
  const disk = textOf(info['ParentWholeDisk'])
  const mountPoint = textOf(info['MountPoint'])
  return {
    device,
    disk: disk === undefined ? device : `/dev/${disk}`,
    // As Linux calls them, because the configuration and the messages do.
    filesystem: filesystem === 'msdos' ? 'vfat' : filesystem,
    label: textOf(info['VolumeName']),
    uuid: textOf(info['VolumeUUID'])?.toLowerCase(),
    partUuid: textOf(info['DiskUUID'])?.toLowerCase(),
    sizeBytes: Number(info['TotalSize'] ?? info['Size'] ?? 0),
    isRemovable: info['RemovableMediaOrExternalDevice'] !== false,
    readOnly: info['WritableMedia'] === false,
    transport: textOf(info['BusProtocol'])?.toLowerCase(),
    model: textOf(info['MediaName'])?.trim(),
    serial: undefined,
    mountPoints: mountPoint === undefined ? [] : [mountPoint],
  }
}

function recordOf(value: PlistValue): Readonly<Record<string, PlistValue>> {
  if (typeof value !== 'object' || Array.isArray(value)) throw notUnderstood()
  return value as Readonly<Record<string, PlistValue>>
}

function textOf(value: PlistValue | undefined): string | undefined {
  return typeof value === 'string' && value !== '' ? value : undefined
}

async function diskutil(
  args: readonly string[],
  {
    signal,
    changes = false,
    timeoutMs = DISKUTIL_TIMEOUT_MS,
  }: Interruptible & { readonly changes?: boolean; readonly timeoutMs?: number },
): Promise<string> {
  const call = { program: 'diskutil', args, changes, timeoutMs, signal }
  const { exitCode, stdout, stderr } = await runProgram(call)
  if (exitCode === 0) return stdout
  // It prints some of its failures as results.
  const said = displayText((stderr.trim() || stdout.trim()).split('\n').at(-1) ?? '')
  throw new BackupError('PROGRAM_FAILED', `diskutil ${args[0]} failed: ${said}`, {
    hint: 'look at the drive in Disk Utility; collections are unharmed',
    facts: { program: 'diskutil' },
  })
}

function notUnderstood(): BackupError {
  return new BackupError('PROGRAM_FAILED', 'diskutil printed something that is not understood', {
    hint: 'run `diskutil list -plist external` to see it; nothing was changed',
    facts: { program: 'diskutil' },
  })
}
