// One finding of the doctor: what was looked at, how it is, and what to do.
//
// lib/work/doctor.ts looks at the machine and doctor-target.ts at a target; commands/doctor.ts
// tells. Pure; asFailure throws on what is no failure of the world.

import { BackupError, systemCode } from '../errors.ts'
import { displayPath, rawPathFromText } from './raw-path.ts'

export interface Check {
  /** What was looked at: `rsync`, `staging`. */
  readonly name: string
  readonly verdict: 'ok' | 'warning' | 'failure'
  /** Lower-case start, no final period, paths already through displayPath. */
  readonly message: string
  /** What to do about it, a command where there is one. */
  readonly fix?: string
}

/** A path as messages show it. */
export function quoted(path: string): string {
  return `"${displayPath(rawPathFromText(path))}"`
}

export function ok(name: string, message: string): Check {
  return { name, verdict: 'ok', message }
}

export function warning(name: string, message: string, fix: string): Check {
  return { name, verdict: 'warning', message, fix }
}

export function failure(name: string, message: string, fix: string): Check {
  return { name, verdict: 'failure', message, fix }
}

/** A check that cannot be made: the machine's fault, not ours. */
export function asFailure(name: string, error: unknown): Check {
  if (error instanceof BackupError && error.code !== 'INTERRUPTED') {
    const { message, hint } = error
    return { name, verdict: 'failure', message, ...(hint === undefined ? {} : { fix: hint }) }
  }
  if (error instanceof BackupError || systemCode(error) === undefined) throw error
  return failure(name, `it cannot be examined (${systemCode(error)})`, 'let this user read it')
}
