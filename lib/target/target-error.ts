// What a system error on a target means to its user.
//
// One place, for targets are written by several threads: directory.ts in the main one,
// lib/work/bundle-writer.ts and prove.ts in workers. Returns the error to throw, throws nothing.

import { BackupError, type ErrorCode, systemCode } from '../errors.ts'
import { type RawPath, displayPath, pathFacts } from '../model/raw-path.ts'

const UNHARMED = 'earlier exports are unharmed, the next run starts this one again'

const MEANINGS: Readonly<Record<string, readonly [ErrorCode, string, string]>> = {
  ENOSPC: [
    'TARGET_FULL',
    'the target is full',
    `free some space or lower retention.external; ${UNHARMED}`,
  ],
  EDQUOT: ['TARGET_FULL', 'the quota on the target is used up', `raise the quota; ${UNHARMED}`],
  EFBIG: ['TARGET_FULL', 'the target takes no larger file', `lower bundle_size; ${UNHARMED}`],
  EROFS: [
    'TARGET_READ_ONLY',
    'the target is mounted read-only',
    `mount it for writing; ${UNHARMED}`,
  ],
  EACCES: [
    'TARGET_READ_ONLY',
    'the target may not be read or written',
    `check its permissions; ${UNHARMED}`,
  ],
  EPERM: [
    'TARGET_READ_ONLY',
    'the target may not be read or written',
    `check its permissions; ${UNHARMED}`,
  ],
}

/**
 * A BackupError for a failed call on a target; one that is a BackupError already comes back as it
 * is.
 */
export function targetError({ error, path }: { error: unknown; path: RawPath }): Error {
  if (error instanceof BackupError) return error
  const code = systemCode(error)
  if (code === undefined) return error instanceof Error ? error : new Error(String(error))
  const [ours, message, hint] = MEANINGS[code] ?? [
    'TARGET_FAILED',
    `the target failed (${code})`,
    `check the drive and its cable; ${UNHARMED}`,
  ]
  return new BackupError(ours, `${message}: ${displayPath(path)}`, {
    hint,
    facts: { ...pathFacts(path), system: code },
    cause: error,
  })
}
