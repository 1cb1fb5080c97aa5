// Which generations stay and which go, and why (design invariants 4 and 5). Pure: no clock.
//
// Used for collections in staging and exports in a repository alike, only after a run is proven.
// Times are numbers read from the stamps; hours, days, ISO weeks, months and years are those of
// UTC, as stamps are. Rules only ever add to what the count keeps. The newest complete generation
// always stays, and so does everything that is locked; while a suspect one is newer than it,
// nothing goes at all. Nor does one go of which nobody knows whether it is complete: whoever lost
// that knowledge must not lose the generations with it. docs/retention.md is the manual. Throws
// nothing but failed assertions.

import assert from 'node:assert/strict'
import { type Stamp, parseStamp } from './stamp.ts'

export interface Generation {
  readonly stamp: Stamp
  /** Undefined where nobody knows: then it stays, and counts for no rule. */
  readonly complete: boolean | undefined
  /** A sanity check distrusts it, and nobody has accepted it: it never counts as complete. */
  readonly suspect?: boolean
}

/** How many periods of a kind keep their newest generation; `all` is for ever. */
export type KeepCount = number | 'all'

/** Which generations stay besides the newest so many. */
export interface KeepRules {
  readonly last?: KeepCount
  readonly hourly?: KeepCount
  readonly daily?: KeepCount
  readonly weekly?: KeepCount
  readonly monthly?: KeepCount
  readonly yearly?: KeepCount
  /** Counted back from the complete generation before the newest, never from the clock. */
  readonly withinMs?: number
}

export interface RetentionPlan {
  /** Oldest first, both. */
  readonly keep: readonly Stamp[]
  readonly remove: readonly Stamp[]
  /** Why each one stays or goes, for people. */
  readonly reasons: ReadonlyMap<Stamp, readonly string[]>
  /** The suspect generation because of which nothing goes. */
  readonly frozenBy: Stamp | undefined
}

export interface RetentionRequest {
  readonly items: readonly Generation[]
  /** How many of the newest complete ones stay in any case: at least 1. */
  readonly keep: number
  readonly rules: KeepRules
  readonly locked: ReadonlySet<Stamp>
  /** A suspect generation that is not among the items, because of which nothing goes. */
  readonly frozenBy?: Stamp | undefined
  /**
   * Rules and counts take those of which nobody knows for complete ones, as somebody asked for: so
   * they may go. The newest that is known to be complete stays even then.
   */
  readonly takeUnknown?: boolean
}

interface Timed extends Generation {
  readonly timeMs: number
}

type Hold = (item: Timed, reason: string) => void

const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS
/** 1970-01-01 was a Thursday: weeks begin three days before. */
const MONDAY_OFFSET_DAYS = 3

/** The period of each rule that a moment lies in, as a word of its own. */
const PERIODS: Readonly<Record<string, (timeMs: number) => string>> = {
  last: (timeMs) => isoText(timeMs).slice(0, 19),
  hourly: (timeMs) => `${isoText(timeMs).slice(0, 13)}h`,
  daily: (timeMs) => isoText(timeMs).slice(0, 10),
  weekly: isoWeek,
  monthly: (timeMs) => isoText(timeMs).slice(0, 7),
  yearly: (timeMs) => isoText(timeMs).slice(0, 4),
}

/**
 * Keeps the `keep` newest complete generations, what a rule or a lock holds, every incomplete one
 * that is not older than those `keep`, and every one of which nobody knows whether it is complete.
 */
export function planRetention(request: RetentionRequest): RetentionPlan {
  const { items, keep, rules, locked, takeUnknown = false } = request
  assert(Number.isInteger(keep) && keep >= 1, 'at least one generation is kept')
  const sorted = items.map(withTime).sort((a, b) => a.timeMs - b.timeMs)
  const isCounted = (item: Generation) => isGood(item) || (takeUnknown && isUnknown(item))
  const complete = sorted.filter(isCounted).reverse()
  const newest = sorted.findLast(isGood)
  const reasons = new Map<Stamp, string[]>(sorted.map(({ stamp }) => [stamp, []]))
  assert(reasons.size === sorted.length, 'no two generations have the same stamp')
  const hold: Hold = ({ stamp }, reason) => reasons.get(stamp)?.push(reason)

  if (newest !== undefined) hold(newest, 'the newest complete one')
  for (const item of complete.slice(0, keep)) hold(item, `one of the newest ${keep}`)
  holdByRules(complete, { rules, hold })
  const others = sorted.filter((item) => !isCounted(item))
  holdOthers(others, { oldestCounted: complete[keep - 1], keep, hold })
  for (const item of sorted) if (locked.has(item.stamp)) hold(item, 'locked')
  const frozenBy = request.frozenBy ?? suspectAfter(newest, sorted)
  for (const item of sorted) {
    if (frozenBy !== undefined) hold(item, `frozen: ${frozenBy} is suspect`)
  }

  const remove = sorted.filter(({ stamp }) => reasons.get(stamp)?.length === 0)
  for (const item of remove) {
    const why = isCounted(item) ? 'no rule keeps it' : `${keep} newer ones are complete`
    hold(item, isGood(item) ? why : `${nature(item)}, and ${why}`)
  }
  const gone = new Set(remove.map(({ stamp }) => stamp))
  const stamps = sorted.map(({ stamp }) => stamp)
  const hasNewest = newest === undefined || !gone.has(newest.stamp)
  assert(hasNewest, 'the newest complete generation stays')
  return {
    keep: stamps.filter((stamp) => !gone.has(stamp)),
    remove: stamps.filter((stamp) => gone.has(stamp)),
    reasons,
    frozenBy,
  }
}

/** `complete` is newest first. */
function holdByRules(
  complete: readonly Timed[],
  { rules, hold }: { readonly rules: KeepRules; readonly hold: Hold },
): void {
  const { withinMs, ...counts } = rules
  for (const [rule, count] of Object.entries(counts)) {
    const periodOf = PERIODS[rule]
    assert(periodOf !== undefined, `there is no rule ${rule}`)
    const limit = count === 'all' ? Infinity : count
    const seen = new Set<string>()
    for (const item of complete) {
      const period = periodOf(item.timeMs)
      if (seen.has(period)) continue
      if (seen.size >= limit) break
      seen.add(period)
      hold(item, rule === 'last' ? `last ${count}` : `${rule} ${period}`)
    }
  }
  // Counted from the one before the newest: the first run after a year off takes nothing away.
  const from = complete[1]
  if (withinMs === undefined || from === undefined) return
  for (const item of complete) {
    if (from.timeMs - item.timeMs <= withinMs) hold(item, `within ${ageText(withinMs)}`)
  }
}

/**
 * Incomplete and suspect ones go with the count: a rule that keeps one of each month for ever would
 * keep them, too. One of which nobody knows stays, however many newer ones are complete.
 */
function holdOthers(
  others: readonly Timed[],
  {
    oldestCounted,
    keep,
    hold,
  }: { readonly oldestCounted: Timed | undefined; readonly keep: number; readonly hold: Hold },
): void {
  for (const item of others) {
    if (isUnknown(item)) {
      hold(item, nature(item))
      continue
    }
    if (oldestCounted !== undefined && item.timeMs < oldestCounted.timeMs) continue
    hold(item, `${nature(item)}, and fewer than ${keep} newer ones are complete`)
  }
}

/** A source that vanished or shrank makes suspect ones: until one is good again, all stay. */
function suspectAfter(newest: Timed | undefined, sorted: readonly Timed[]): Stamp | undefined {
  const suspect = sorted.filter((item) => item.suspect === true).at(-1)
  if (suspect === undefined || newest === undefined) return suspect?.stamp
  return suspect.timeMs > newest.timeMs ? suspect.stamp : undefined
}

function withTime(item: Generation): Timed {
  const timeMs = parseStamp(item.stamp)
  assert(timeMs !== undefined, 'a generation is named by its stamp')
  return { ...item, timeMs }
}

function isGood({ complete, suspect }: Generation): boolean {
  return complete === true && suspect !== true
}

function isUnknown({ complete, suspect }: Generation): boolean {
  return complete === undefined && suspect !== true
}

function nature({ complete, suspect }: Generation): string {
  if (suspect === true) return 'suspect'
  return complete === undefined ? 'not known to be complete' : 'incomplete'
}

function isoText(timeMs: number): string {
  return new Date(timeMs).toISOString()
}

/** `2025-W01`: a week is that of its Thursday (ISO 8601). */
function isoWeek(timeMs: number): string {
  const week = Math.floor((Math.floor(timeMs / DAY_MS) + MONDAY_OFFSET_DAYS) / 7)
  const thursdayMs = week * 7 * DAY_MS
  const year = isoText(thursdayMs).slice(0, 4)
  const dayOfYear = Math.floor((thursdayMs - Date.parse(`${year}-01-01T00:00:00Z`)) / DAY_MS)
  return `${year}-W${String(1 + Math.floor(dayOfYear / 7)).padStart(2, '0')}`
}

function ageText(ageMs: number): string {
  return ageMs % DAY_MS === 0 ? `${ageMs / DAY_MS} days` : `${ageMs / HOUR_MS} hours`
}
