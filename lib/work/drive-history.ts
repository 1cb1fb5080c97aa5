// What the history says of drives: which of its exports are on the drives that are there now, and
// when each drive got its last.
//
// due.ts, status.ts, announcements.ts and drive-target.ts count by it. A drive may be replaced by
// another under the same name: exports to the one before are no exports to it. Throws nothing.

import type { DriveTargetConfiguration, SetConfiguration } from '../machine/config.ts'
import { type RotatedDrive, rotationPeriodMs } from '../model/rotation.ts'
import { readDrives } from './drive-register.ts'
import { readHistory, type RunRecord } from './history.ts'

/** Every run that the history knows, but for exports to drives that others have replaced. */
export function currentHistory(staging: string): readonly RunRecord[] {
  const ids = new Map(
    readDrives(staging).map(({ target, drive, repository }) => [`${target}/${drive}`, repository]),
  )
  return readHistory(staging).filter(({ target, drive, repository }) => {
    const id = ids.get(`${target}/${drive}`)
    return repository === undefined || id === undefined || repository === id
  })
}

/** When each drive of a target got its last good export: the oldest of its sets counts. */
export function lastGoodExports(
  history: readonly RunRecord[],
  target: string,
): ReadonlyMap<string, number> {
  const bySet = new Map<string, Map<string, number>>()
  for (const { phase, target: to, drive, set, outcome, startMs } of history) {
    if (phase !== 'export' || to !== target || drive === undefined || outcome !== 'good') continue
    bySet.set(drive, (bySet.get(drive) ?? new Map<string, number>()).set(set, startMs))
  }
  return new Map([...bySet].map(([drive, sets]) => [drive, Math.min(...sets.values())]))
}

/** How old the last good export to a drive may become; undefined where none is due by itself. */
export function everyMsOf(
  { everyMs }: Pick<DriveTargetConfiguration, 'everyMs'>,
  sets: readonly Pick<SetConfiguration, 'schedule'>[],
): number | undefined {
  return rotationPeriodMs({ everyMs, frequencies: sets.map(({ schedule }) => schedule.external) })
}

/**
 * When each drive of a target was last exported to, as its rotation counts it: by the set that
 * waits longest, of those that are configured and exported without being asked for, if any are.
 */
export function rotatedDrives(
  { name: target, drives }: Pick<DriveTargetConfiguration, 'name' | 'drives'>,
  {
    sets,
    history,
  }: { readonly sets: readonly SetConfiguration[]; readonly history: readonly RunRecord[] },
): readonly RotatedDrive[] {
  const scheduled = sets.filter(({ schedule: { external } }) => {
    return external !== 'manual' && external !== 'never'
  })
  const counting = new Set((scheduled.length > 0 ? scheduled : sets).map(({ name }) => name))
  const runs = history.filter(({ set }) => counting.has(set))
  const last = lastGoodExports(runs, target)
  return drives.map(({ name }) => ({ name, lastGoodMs: last.get(name) }))
}
