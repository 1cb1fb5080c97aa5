// Files that are compared with what they are to become: with the pieces of an entry, or with a file
// in staging; and files read from staging.
//
// For restore-worker.ts. A file in staging has to be what its catalog says; what is at a place may
// be anything. Synchronous. Throws STAGING_DAMAGED, and the system's errors.

import { Buffer } from 'node:buffer'
import { BackupError } from '../errors.ts'
import { digestBytes } from '../format/chunker.ts'
import type { Entry } from '../model/entry.ts'
import type { RawPath } from '../model/raw-path.ts'
import { StagedFile, StagedFileChanged } from './staged-file.ts'

/** Read at a time. */
const PART_BYTES = 1024 * 1024

/** Reused by all calls: they are synchronous. */
const part = Buffer.allocUnsafeSlow(PART_BYTES)
const other = Buffer.allocUnsafeSlow(PART_BYTES)

/** The data bytes of a file in staging, part by part; a part is only good until the next one. */
export function readStaged(
  path: RawPath,
  { entry, visit }: { readonly entry: Entry; readonly visit: (part: Buffer) => void },
): void {
  try {
    withFile({ path, entry }, (file) => {
      for (let offset = 0; offset < file.dataBytes; offset += PART_BYTES) {
        const bytes = part.subarray(0, Math.min(PART_BYTES, file.dataBytes - offset))
        file.read(bytes, offset)
        visit(bytes)
      }
      file.check()
    })
  } catch (error) {
    throw asStagingDamage(error)
  }
}

/**
 * Whether the file there has the very content, holes and time of the entry: content is read, not
 * believed.
 */
export function hasContentOf(path: RawPath, entry: Entry): boolean {
  return isUnchanged(() =>
    withFile({ path, entry }, (file) => {
      if (!file.hasHolesOf(entry)) return false
      let offset = 0
      for (const [id, , , length] of entry.pieces ?? []) {
        const bytes = Buffer.allocUnsafe(length)
        file.read(bytes, offset)
        if (digestBytes(bytes).toString('hex') !== id) return false
        offset += length
      }
      return true
    }),
  )
}

/** Whether the file at `path` has the bytes, holes and time of one in staging. */
export function isCopyOf(
  path: RawPath,
  { entry, staged }: { readonly entry: Entry; readonly staged: RawPath },
): boolean {
  return isUnchanged(() =>
    withFile({ path, entry }, (copy) => {
      if (!copy.hasHolesOf(entry)) return false
      return withFile({ path: staged, entry }, (original) => {
        for (let offset = 0; offset < copy.dataBytes; offset += PART_BYTES) {
          const length = Math.min(PART_BYTES, copy.dataBytes - offset)
          original.read(part.subarray(0, length), offset)
          copy.read(other.subarray(0, length), offset)
          if (!other.subarray(0, length).equals(part.subarray(0, length))) return false
        }
        return true
      })
    }),
  )
}

function withFile<T>(
  { path, entry }: { readonly path: RawPath; readonly entry: Entry },
  action: (file: StagedFile) => T,
): T {
  const file = new StagedFile({ path, metadata: entry })
  try {
    return action(file)
  } finally {
    file.close()
  }
}

function isUnchanged(compare: () => boolean): boolean {
  try {
    return compare()
  } catch (error) {
    if (error instanceof StagedFileChanged) return false
    throw error
  }
}

function asStagingDamage(error: unknown): unknown {
  if (!(error instanceof StagedFileChanged)) return error
  return new BackupError('STAGING_DAMAGED', error.message, { cause: error })
}
