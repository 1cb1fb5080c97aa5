// What a run makes outside staging, written down in staging's state, so that it can be removed by
// exactly those names: at the end of the run, or by the next run when this one was killed.
//
// Used by btrfs.ts, zfs.ts, apfs.ts and lvm.ts. Nothing is removed on account of a name alone
// (invariant 4): a record has to be there, and the name in it has to look like ours. So a name is
// only written down when nobody has it, and the record goes when a command fails to make it: what
// has the name then is somebody else's. A command that was ended may have made it: its record
// stays. Throws SNAPSHOT_FAILED and system errors.

import { Buffer } from 'node:buffer'
import { readFileSync, readdirSync, rmSync, rmdirSync } from 'node:fs'
import { BackupError, systemCode } from '../../errors.ts'
import { type RawPath, rawPathToBytes } from '../../model/raw-path.ts'
import { writeDurably } from '../durable-file.ts'
import { exists } from './view.ts'

/** The name of a run's snapshots. */
export function snapshotName({ set, stamp }: { set: string; stamp: string }): string {
  return `backup-${set}-${stamp}`
}

/**
 * The first name of a run's snapshots that nobody has: another staging may have a set of the same
 * name, which runs at the same moment.
 * @param options.first the number to begin with; 1 is the name without one
 */
export function freeName({
  of,
  isTaken,
  first = 1,
}: {
  of: { readonly set: string; readonly stamp: string }
  isTaken: (name: string) => boolean
  first?: number
}): string {
  for (let number = first; ; number++) {
    const name = `${snapshotName(of)}${number === 1 ? '' : `-${number}`}`
    if (!isTaken(name)) return name
  }
}

/** Whether a snapshot of this set can have this name, with or without a number behind it. */
export function isOwnName({ set, name }: { set: string; name: unknown }): boolean {
  const own = new RegExp(`^backup-${set}-\\d{4}-\\d\\d-\\d\\dT\\d{6}Z(-\\d+)?$`)
  return typeof name === 'string' && own.test(name)
}

/** The records in a file, of which those that `believe` refuses are left out. */
export function readRecords<T>({
  path,
  believe,
}: {
  path: RawPath
  believe: (record: Partial<T>) => boolean
}): T[] {
  try {
    const records: unknown = JSON.parse(readFileSync(rawPathToBytes(path), 'utf8'))
    if (!Array.isArray(records)) return []
    return records.filter((record: unknown) => {
      return typeof record === 'object' && record !== null && believe(record)
    })
  } catch (error) {
    if (systemCode(error) === 'ENOENT' || error instanceof SyntaxError) return []
    throw error
  }
}

/** Durable before it returns; without records there is no file. */
export function writeRecords<T>({ path, records }: { path: RawPath; records: readonly T[] }): void {
  if (records.length === 0) return rmSync(rawPathToBytes(path), { force: true })
  const bytes = Buffer.from(`${JSON.stringify(records)}\n`)
  writeDurably({ path, bytes, mode: 0o600, replace: true })
}

/**
 * Removes what each record names; what could not be removed, or is away, keeps its record.
 * @throws BackupError SNAPSHOT_FAILED after all were tried
 */
export async function removeRecorded<T>({
  path,
  records,
  remove,
}: {
  path: RawPath
  records: readonly T[]
  remove: (record: T) => Promise<'removed' | 'away'>
}): Promise<void> {
  const kept: T[] = []
  const causes: unknown[] = []
  for (const record of records) {
    try {
      if ((await remove(record)) === 'away') kept.push(record)
    } catch (cause) {
      kept.push(record)
      causes.push(cause)
    }
  }
  writeRecords({ path, records: kept })
  if (causes.length === 0) return
  throw new BackupError('SNAPSHOT_FAILED', `a snapshot could not be removed: ${whyOf(causes[0])}`, {
    hint: 'the next run tries again',
    cause: causes[0],
  })
}

/** Takes away a private directory of empty places; nothing happens where there is none. */
export function removePlaces(directory: RawPath): void {
  if (!exists(directory)) return
  for (const place of readdirSync(rawPathToBytes(directory), { encoding: 'latin1' })) {
    rmdirSync(rawPathToBytes(`${directory}/${place}`))
  }
  rmdirSync(rawPathToBytes(directory))
}

/** The error of a provider that could take no snapshot at all. */
export function snapshotFailed(cause: unknown): BackupError {
  const hint = cause instanceof BackupError ? cause.hint : undefined
  return new BackupError('SNAPSHOT_FAILED', `no snapshot could be taken: ${whyOf(cause)}`, {
    ...(hint === undefined ? {} : { hint }),
    cause,
  })
}

/** What an error says. */
export function whyOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
