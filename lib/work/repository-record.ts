// What this machine notes of a repository besides the state: one small JSON file for each kind of
// note, `.state/repositories/<id>/<file>`, changed under a lock of its own.
//
// known-damage.ts and proof-ledger.ts keep such records. The lock is held for the change alone, not
// for the hours of a verification, so a backup need not wait. Nothing is made where nothing is
// known of the repository. A file that cannot be read counts as lost. Throws STAGING_FULL,
// STAGING_FAILED, LOCKED.

import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { writeDurably } from '../machine/durable-file.ts'
import { acquireLock } from '../machine/lock.ts'
import { rawPathFromText } from '../model/raw-path.ts'
import { stagingError } from './staging.ts'
import { type REPOSITORY_RECORDS, stateDirectory } from './state.ts'

export interface RecordPlace {
  readonly staging: string
  /** The repository's. */
  readonly id: string
}

type RecordFile = Exclude<(typeof REPOSITORY_RECORDS)[number], typeof LOCK_FILE>

const LOCK_FILE = 'records.lock'

/** Whoever holds the lock writes a file of some megabytes at most. */
const LOCK_WAIT_MS = 10_000

/** The value in the file; undefined where it is not there or is no JSON. */
export function readRecord(place: RecordPlace, file: RecordFile): unknown {
  try {
    return JSON.parse(readFileSync(join(stateDirectory(place), file), 'utf8'))
  } catch {
    return undefined
  }
}

/**
 * Gives the file the text that `change` makes, one line of JSON; the same text as before is not
 * written. `change` reads what it changes, for the lock is held by then.
 * @throws BackupError STAGING_FULL, STAGING_FAILED, LOCKED
 */
export function changeRecord(
  place: RecordPlace,
  file: RecordFile,
  change: () => { readonly before: string; readonly after: string },
): void {
  const directory = stateDirectory(place)
  if (!existsSync(directory)) return
  try {
    const path = rawPathFromText(join(directory, LOCK_FILE))
    const lock = acquireLock({ path, description: `writing ${file}`, waitMs: LOCK_WAIT_MS })
    try {
      const { before, after } = change()
      if (before === after) return
      const bytes = Buffer.from(`${after}\n`)
      const to = rawPathFromText(join(directory, file))
      writeDurably({ path: to, bytes, mode: 0o600, replace: true })
    } finally {
      lock.release()
    }
  } catch (error) {
    throw stagingError({ error, staging: place.staging, doing: 'written' })
  }
}
