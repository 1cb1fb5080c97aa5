// The names that a restore makes for itself: temporary files, and the directory for what it
// replaced.
//
// A later restore knows by them what is its own. Pure; throws nothing.

import { probeOwner } from '../model/place-names.ts'
import type { RawPath } from '../model/raw-path.ts'
import type { Stamp } from '../model/stamp.ts'

const PARTIAL_PREFIX = '.backup-restore-'

const REPLACED_PREFIX = '.backup-replaced-'

/**
 * The temporary name in a directory, of this process alone; a later restore finds and removes what
 * a killed one left.
 */
export function partialName(of: { readonly process: number; readonly worker: number }): string {
  return `${PARTIAL_PREFIX}${of.process}-${of.worker}.partial`
}

export function isPartialName(name: RawPath): boolean {
  return /^\.backup-restore-\d+(-\d+)?\.partial$/.test(name)
}

/** Whether a path goes through a name that a restore takes for a leftover of its own. */
export function hasLeftoverName(path: RawPath): boolean {
  if (!path.includes('.backup-restore')) return false
  return path.split('/').some((name) => isPartialName(name) || name === JOURNAL)
}

/** The directory for what a restore replaced or deleted. */
export function replacedName(stamp: Stamp, attempt: number): string {
  return `${REPLACED_PREFIX}${stamp}${attempt === 0 ? '' : `-${attempt}`}`
}

export function isReplacedName(name: RawPath): boolean {
  return /^\.backup-replaced-\d{4}-\d\d-\d\dT\d{6}Z(-\d+)?$/.test(name)
}

/** Lists the directories that a restore made, until it ends. */
export const JOURNAL = '.backup-restore.journal'

/** What no restore deletes: it made it. */
export function isOurName(name: RawPath): boolean {
  const isProbe = probeOwner(name) !== undefined
  return isPartialName(name) || isReplacedName(name) || name === JOURNAL || isProbe
}

/** What could be saved of a damaged file lies beside its place, never in it. */
export function corruptName(path: RawPath, attempt: number): RawPath {
  return `${path}.corrupt${attempt === 0 ? '' : `-${attempt}`}`
}
