// The records of this machine, made anew before each collection of the built-in set: packages,
// disks, users, services, network, and RESTORE.md, which says how to set it up again.
//
// collect.ts calls recordSystem; system-programs.ts says what is asked, system-guide.ts writes
// RESTORE.md. A record is only written when its bytes changed, so that a quiet day collects
// nothing. A program that is absent is skipped, one that fails leaves its record of an earlier run;
// records.json names both, and neither is a failure. Records that cannot be written are: they come
// back as missing. Throws INTERRUPTED.

import { Buffer } from 'node:buffer'
import {
  chmodSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import { BackupError, systemCode } from '../errors.ts'
import {
  type BlockDevice,
  listDevices,
  mountPointsOf,
  runBounded,
} from '../machine/block-devices.ts'
import type { Configuration, SetConfiguration } from '../machine/config.ts'
import { writeDurably } from '../machine/durable-file.ts'
import { findProgram } from '../machine/shell.ts'
import { readMounts } from '../machine/source-snapshot/mounts.ts'
import type { MissingPath } from '../model/collection.ts'
import { rawPathFromText, rawPathToBytes, rawPathToText } from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import { inParallel } from './in-parallel.ts'
import { machineGuide } from './system-guide.ts'
import { COPIED, PASSING_PLACE, PROGRAM_RECORDS, type ProgramRecord } from './system-programs.ts'

/** What became of one record, as records.json says it. */
export interface RecordNote {
  /** Relative to the directory of records. */
  readonly file: string
  /** What it was asked or copied from. */
  readonly from: string
  /**
   * `absent`: the program is not installed, or has nothing to say here; `failed`: what is there of
   * the record is of an earlier run.
   */
  readonly state: 'recorded' | 'absent' | 'failed'
  readonly why?: string
}

export interface RecordCall {
  readonly configuration: Configuration
  readonly set: SetConfiguration
  /** The directory, absolute. */
  readonly records: string
  readonly report: Report
  readonly signal: AbortSignal | undefined
  readonly uid?: number
}

const INDEX = 'records.json'
const GUIDE = 'RESTORE.md'

/** The package manager may wait for another one; disks may have to spin up. */
const PROGRAM_TIMEOUT_MS = 60_000

/** A list of packages takes a tenth of it; what is larger is not one of these files. */
const MAX_COPIED_BYTES = 2 * 2 ** 20
const MAX_COPIED_FILES = 500

/** Where a disk that can be pulled out is part of the machine all the same. */
const SYSTEM_PLACES = ['/', '/boot', '/boot/efi', '/boot/firmware', '/home', '/usr', '/var']

const DISK_COLUMNS =
  'NAME,PATH,TYPE,SIZE,PTTYPE,PTUUID,PARTTYPE,PARTUUID,PARTLABEL,FSTYPE,LABEL,UUID,MOUNTPOINT,MODEL'

/**
 * Makes the records.
 * @returns nothing, or the directory where they could not all be written, for a collection without
 * them is incomplete
 * @throws BackupError INTERRUPTED
 */
export async function recordSystem(call: RecordCall): Promise<readonly MissingPath[]> {
  const { records, set, report } = call
  report({ kind: 'phase', name: `describing this machine for ${set.name}` })
  try {
    prepareDirectory(records)
    const made = new Map<string, Uint8Array>()
    const notes = [...copyFiles(made), ...(await askPrograms(call, made))]
    notes.push(...(await recordDisks(call, made)))
    notes.sort((a, b) => (a.file < b.file ? -1 : 1))
    made.set(GUIDE, Buffer.from(machineGuide({ ...call, made })))
    made.set(INDEX, Buffer.from(`${JSON.stringify({ format: 1, records: notes }, undefined, 2)}\n`))
    writeRecords({ records, made, notes })
    tellFailed(call, notes)
    return []
  } catch (error) {
    const code = systemCode(error)
    if (code === undefined) throw error
    const path = rawPathFromText(records).replace(/^\/+/, '')
    return [{ path, why: `the records of this machine could not be written (${code})` }]
  }
}

/** Ours alone: what is recorded is nobody else's business. */
function prepareDirectory(records: string): void {
  const bytes = rawPathToBytes(rawPathFromText(records))
  mkdirSync(bytes, { recursive: true, mode: 0o700 })
  const { mode } = lstatSync(bytes)
  if ((mode & 0o77) !== 0) chmodSync(bytes, mode & 0o700)
}

function copyFiles(made: Map<string, Uint8Array>): RecordNote[] {
  const notes: RecordNote[] = []
  const paths = COPIED.flatMap((path) => (isDirectory(path) ? filesOf(path) : [path]))
  for (const path of paths.slice(0, MAX_COPIED_FILES)) {
    const file = `files${path}`
    try {
      if (!path.startsWith('/proc/') && statSync(path).size > MAX_COPIED_BYTES) continue
      made.set(file, readFileSync(path))
      notes.push({ file, from: path, state: 'recorded' })
    } catch (error) {
      const code = systemCode(error)
      if (code === undefined) throw error
      if (code !== 'ENOENT') notes.push({ file, from: path, state: 'failed', why: code })
    }
  }
  return notes
}

function filesOf(directory: string): string[] {
  return readdirSync(directory)
    .sort()
    .map((name) => join(directory, name))
    .filter((path) => statSync(path, { throwIfNoEntry: false })?.isFile() === true)
}

function isDirectory(path: string): boolean {
  try {
    return statSync(path).isDirectory()
  } catch {
    return false
  }
}

async function askPrograms(
  call: RecordCall,
  made: Map<string, Uint8Array>,
): Promise<readonly RecordNote[]> {
  const { uid = process.getuid?.() ?? 0 } = call
  const asked = PROGRAM_RECORDS.filter(({ who }) => {
    return who === undefined || (who === 'root') === (uid === 0)
  })
  if (uid === 0) asked.push(...mountedBtrfs().map(subvolumesOf))
  return await inParallel(asked, async (one) => await ask(one, { call, made }), call)
}

/** The first mount of each btrfs, which lists all of its subvolumes to root. */
function mountedBtrfs(): readonly string[] {
  const found = new Map<string, string>()
  for (const { type, device, point } of readMounts()) {
    const text = rawPathToText(point)
    if (type !== 'btrfs' || text === undefined || PASSING_PLACE.test(`${text}/`)) continue
    if (!found.has(device)) found.set(device, text)
  }
  return [...found.values()]
}

function subvolumesOf(point: string): ProgramRecord {
  const name = point === '/' ? 'root' : point.slice(1).replaceAll('/', '-')
  return {
    file: `disks/btrfs-${name}.txt`,
    program: 'btrfs',
    args: ['subvolume', 'list', point],
    // The number of the generation grows with every write.
    keep: (text) => text.replace(/ gen \d+/g, ''),
  }
}

interface Asking {
  readonly call: RecordCall
  readonly made: Map<string, Uint8Array>
}

async function ask(asked: ProgramRecord, { call, made }: Asking): Promise<RecordNote> {
  const { file, program, args, where, none = [], keep = (text: string) => text } = asked
  const from = [program, ...args].join(' ')
  if (findProgram(program) === undefined || (where !== undefined && !isThere(where))) {
    return { file, from, state: 'absent' }
  }
  try {
    const { exitCode, stdout } = await runBounded({
      program,
      args,
      changes: false,
      timeoutMs: PROGRAM_TIMEOUT_MS,
      signal: call.signal,
    })
    if (none.includes(exitCode)) return { file, from, state: 'absent' }
    if (exitCode !== 0) return { file, from, state: 'failed', why: `exit code ${exitCode}` }
    const text = keep(stdout)
    if (text.trim() === '') return { file, from, state: 'absent' }
    made.set(file, Buffer.from(text))
    return { file, from, state: 'recorded' }
  } catch (error) {
    return { file, from, state: 'failed', why: whyFailed(error) }
  }
}

/** What its program or its text could not give; anything else is for the caller. */
function whyFailed(error: unknown): string {
  if (error instanceof SyntaxError) return 'its answer cannot be read'
  if (!(error instanceof BackupError) || error.code === 'INTERRUPTED') throw error
  return error.message
}

/** The disks that are part of the machine: their tables, and what is on them. */
async function recordDisks(
  call: RecordCall,
  made: Map<string, Uint8Array>,
): Promise<readonly RecordNote[]> {
  const { uid = process.getuid?.() ?? 0 } = call
  const asking = { call, made }
  const file = 'disks/disks.json'
  if (findProgram('lsblk') === undefined) return [{ file, from: 'lsblk', state: 'absent' }]
  let disks: readonly string[]
  try {
    disks = ownDisks(await listDevices({ signal: call.signal }))
  } catch (error) {
    return [{ file, from: 'lsblk', state: 'failed', why: whyFailed(error) }]
  }
  if (disks.length === 0) return [{ file, from: 'lsblk', state: 'absent' }]
  const args = ['--json', '--bytes', '--output', DISK_COLUMNS, ...disks]
  const notes = [await ask({ file, program: 'lsblk', args }, asking)]
  if (uid !== 0) return notes
  for (const disk of withTable(made.get(file)).filter((one) => disks.includes(one))) {
    const name = disk.replace(/^\/dev\//, '').replaceAll('/', '-')
    const table = { file: `disks/${name}.sfdisk`, program: 'sfdisk', args: ['--dump', disk] }
    notes.push(await ask(table, asking))
  }
  return notes
}

/** Of other disks a filesystem, or a pool, has all. */
function withTable(listed: Uint8Array | undefined): readonly string[] {
  if (listed === undefined) return []
  const { blockdevices } = JSON.parse(Buffer.from(listed).toString('utf8')) as {
    readonly blockdevices: readonly { readonly path?: string; readonly pttype?: string | null }[]
  }
  return blockdevices.flatMap(({ path, pttype }) => (pttype && path !== undefined ? [path] : []))
}

/** Not loops, memory and discs, and not what is plugged in unless the system runs from it. */
function ownDisks(devices: readonly BlockDevice[]): readonly string[] {
  const isOwn = ({ device, isRemovable }: BlockDevice): boolean =>
    !isRemovable
    || devices
      .filter(({ disk }) => disk === device)
      .some((part) => mountPointsOf(part.device).some((place) => SYSTEM_PLACES.includes(place)))
  return devices
    .filter((one) => one.kind === 'disk' && !/\/(zram|ram|nbd)\d+$/.test(one.device) && isOwn(one))
    .map(({ device }) => device)
    .sort()
}

function isThere(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false }) !== undefined
}

/**
 * What an earlier run recorded and is no more, goes. The index last: until then the earlier one
 * says what is ours.
 */
function writeRecords({
  records,
  made,
  notes,
}: {
  readonly records: string
  readonly made: ReadonlyMap<string, Uint8Array>
  readonly notes: readonly RecordNote[]
}): void {
  const before = earlierRecords(records)
  const failed = new Set(notes.filter(({ state }) => state === 'failed').map(({ file }) => file))
  for (const file of before) {
    if (!made.has(file) && !failed.has(file)) rmSync(join(records, file), { force: true })
  }
  for (const [file, bytes] of made) writeRecord(join(records, file), bytes)
}

/** The records that the run before named: nothing else is ever removed. */
function earlierRecords(records: string): readonly string[] {
  try {
    const text = readFileSync(join(records, INDEX), 'utf8')
    const { records: notes } = JSON.parse(text) as { readonly records: readonly RecordNote[] }
    return notes.map(({ file }) => file).filter((file) => !file.split('/').includes('..'))
  } catch {
    return []
  }
}

function writeRecord(path: string, bytes: Uint8Array): void {
  const raw = rawPathFromText(path)
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
  const stat = lstatSync(path, { throwIfNoEntry: false })
  if (stat?.isFile() === true && readFileSync(path).equals(bytes)) return
  writeDurably({ path: raw, bytes, mode: 0o600, replace: true })
}

function tellFailed({ set, report }: RecordCall, notes: readonly RecordNote[]): void {
  const failed = notes.filter(({ state }) => state === 'failed')
  if (failed.length === 0) return
  const list = failed.map(({ from, why }) => `${from.split(' ')[0]} (${why})`).join(', ')
  report({
    kind: 'notice',
    level: 'info',
    code: 'NOT_RECORDED',
    message: `${set.name}: not recorded of this machine: ${list}`,
    facts: { set: set.name, failed },
  })
}
