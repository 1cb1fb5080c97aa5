// What has to be done before the program ends, however its command went: drives that were mounted
// are unmounted.
//
// Whoever begins something that must end registers it; commands/main.ts runs all of it, last first,
// once, and prints what could not be ended: the next run deals with that. Throws nothing.

import type { BackupError } from '../errors.ts'

/** Returns what could not be ended, and throws nothing. */
type Ending = () => Promise<readonly BackupError[]>

const endings = new Set<Ending>()

let isUninterruptible = false

/**
 * From now on the program is not to be interrupted: a drive is switched off, and the service that
 * is bound to its device is told to end because of that. Only the last words are left.
 */
export function refuseInterruption(): void {
  isUninterruptible = true
}

/** Whether a signal to end is to be passed over. */
export function refusesInterruption(): boolean {
  return isUninterruptible
}

/** Has `ending` run before the program ends, once however often it is registered. */
export function atEnd(ending: Ending): void {
  endings.add(ending)
}

/** Runs what was registered. */
export async function runEndings(): Promise<readonly BackupError[]> {
  const failures: BackupError[] = []
  for (const ending of [...endings].reverse()) {
    endings.delete(ending)
    failures.push(...(await ending()))
  }
  return failures
}
