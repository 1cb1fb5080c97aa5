// Which drive of a target is wanted next, and which were away for too long.
//
// lib/work/status.ts shows it, lib/work/announcements.ts tells the person. A target with one drive
// is a pool of one. Pure: the caller brings the clock. Throws nothing but failed assertions.

import assert from 'node:assert/strict'
import type { Frequency } from './schedule.ts'

export interface RotatedDrive {
  readonly name: string
  /** When the last good export to it began; undefined where there was none. */
  readonly lastGoodMs: number | undefined
}

export interface NextDrive {
  readonly name: string
  /** From when on; undefined where it was never exported to, or where nothing is ever due. */
  readonly dueMs: number | undefined
  readonly isDue: boolean
}

const DAY_MS = 86_400_000

/** The longest of each, so that no drive is called late by the calendar's whims. */
const PERIODS_MS: Readonly<Record<Frequency, number | undefined>> = {
  hourly: DAY_MS / 24,
  daily: DAY_MS,
  weekly: 7 * DAY_MS,
  monthly: 31 * DAY_MS,
  // Whenever it is there: nobody plugs in a drive more often than daily for that.
  always: DAY_MS,
  manual: undefined,
  never: undefined,
}

/** Nobody changes drives more often, however often a set is exported. */
const SHORTEST_MS = DAY_MS

/** A drive of a pool of two is there every other time. */
const PERIODS_AWAY = 2

/**
 * How old the last good export to a drive may become: as configured, else two of the longest period
 * with which a set is exported, and a day at least. Undefined where exports are only made by hand.
 */
export function rotationPeriodMs({
  everyMs,
  frequencies,
}: {
  readonly everyMs: number | undefined
  readonly frequencies: readonly Frequency[]
}): number | undefined {
  if (everyMs !== undefined) return everyMs
  const periods = frequencies.map((frequency) => PERIODS_MS[frequency] ?? 0)
  const longest = Math.max(0, ...periods)
  return longest === 0 ? undefined : Math.max(SHORTEST_MS, PERIODS_AWAY * longest)
}

/**
 * The drive whose last good export is the oldest, one that never had any before all others, and of
 * several such the first.
 * @param options.drives at least one
 * @param options.everyMs see rotationPeriodMs; undefined: nothing is due by itself
 */
export function nextDrive({
  drives,
  everyMs,
  nowMs,
}: {
  readonly drives: readonly RotatedDrive[]
  readonly everyMs: number | undefined
  readonly nowMs: number
}): NextDrive {
  const at = ({ lastGoodMs = -Infinity }: RotatedDrive): number => lastGoodMs
  const [oldest] = drives.toSorted((one, other) => compare(at(one), at(other)))
  assert(oldest !== undefined, 'a target has a drive')
  const { name, lastGoodMs } = oldest
  if (everyMs === undefined) return { name, dueMs: undefined, isDue: false }
  if (lastGoodMs === undefined) return { name, dueMs: undefined, isDue: true }
  const dueMs = lastGoodMs + everyMs
  return { name, dueMs, isDue: nowMs > dueMs }
}

/**
 * Whether a drive was away so long that the person is told.
 * @param options.sinceMs since when there was anything to export: what was never exported to is
 * late counting from then, and never where there was nothing
 */
export function isOverdue({
  lastGoodMs,
  everyMs,
  nowMs,
  sinceMs,
}: {
  readonly lastGoodMs: number | undefined
  readonly everyMs: number | undefined
  readonly nowMs: number
  readonly sinceMs: number | undefined
}): boolean {
  const startMs = lastGoodMs ?? sinceMs
  return everyMs !== undefined && startMs !== undefined && nowMs > startMs + everyMs
}

/** Minus infinity twice is equal, and its difference is not a number. */
function compare(one: number, other: number): number {
  return one === other ? 0 : one < other ? -1 : 1
}
