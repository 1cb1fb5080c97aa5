// Which drives this machine knows: what each looked like when it was last seen, in
// `.state/drives.json`.
//
// target-access.ts compares a drive that is plugged in with what is known of it, and remembers it;
// `drives` and `status` show it. A cache: lost, a drive is known again by its repository, whose
// machine.json our key signed. Throws STAGING_FAILED; a damaged file counts as lost.

import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { writeDurably } from '../machine/durable-file.ts'
import { rawPathFromText } from '../model/raw-path.ts'
import { stagingError } from './staging.ts'

export interface KnownDrive {
  readonly target: string
  /** The target's own name where it is no pool. */
  readonly drive: string
  /** The repository's id. */
  readonly repository: string
  /** Of the filesystem; undefined where it has none. */
  readonly uuid: string | undefined
  readonly label: string | undefined
  readonly filesystem: string | undefined
  /** Of the device, as far as it tells. */
  readonly model: string | undefined
  readonly serial: string | undefined
  readonly sizeBytes: number
  /** When it was last seen, and what was free then. */
  readonly lastSeenMs: number
  readonly freeBytes: number | undefined
}

/** Every drive that is known; none where nothing is. */
export function readDrives(staging: string): readonly KnownDrive[] {
  try {
    const value: unknown = JSON.parse(readFileSync(registerFile(staging), 'utf8'))
    return Array.isArray(value) ? value.filter(isKnownDrive) : []
  } catch {
    return []
  }
}

/** Remembers a drive in place of what was known of it. @throws BackupError STAGING_FAILED */
export function rememberDrive(staging: string, drive: KnownDrive): void {
  const others = readDrives(staging).filter((one) => !isSame(one, drive))
  writeRegister(staging, [...others, drive])
}

/** Forgets a drive. @throws BackupError STAGING_FAILED */
export function forgetDrive(staging: string, drive: Pick<KnownDrive, 'target' | 'drive'>): void {
  writeRegister(
    staging,
    readDrives(staging).filter((one) => !isSame(one, drive)),
  )
}

function writeRegister(staging: string, drives: readonly KnownDrive[]): void {
  const path = registerFile(staging)
  try {
    mkdirSync(join(staging, '.state'), { recursive: true, mode: 0o700 })
    const bytes = Buffer.from(`${JSON.stringify(drives)}\n`)
    writeDurably({ path: rawPathFromText(path), bytes, mode: 0o600, replace: true })
  } catch (error) {
    throw stagingError({ error, staging, doing: 'written' })
  }
}

function registerFile(staging: string): string {
  return join(staging, '.state', 'drives.json')
}

function isSame(
  one: Pick<KnownDrive, 'target' | 'drive'>,
  other: Pick<KnownDrive, 'target' | 'drive'>,
): boolean {
  return one.target === other.target && one.drive === other.drive
}

function isKnownDrive(value: unknown): value is KnownDrive {
  if (typeof value !== 'object' || value === null) return false
  const { target, drive, repository, lastSeenMs } = value as Readonly<Record<string, unknown>>
  const texts = [target, drive, repository]
  return texts.every((text) => typeof text === 'string') && typeof lastSeenMs === 'number'
}
