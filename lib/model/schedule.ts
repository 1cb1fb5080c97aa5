// How often something is due, and whether it is now. Pure: the caller brings the clock and what was
// run (lib/work/history.ts); lib/work/due.ts applies it to sets and targets.
//
// A period is one of the calendar in local time, less a slack, counted from the start of the last
// good run. So `daily` at 02:00 is due each day, with some minutes of jitter and when the clocks
// change, and what was missed in sleep is caught up once. Throws nothing.

/** As the configuration says it. */
export type Frequency = 'hourly' | 'daily' | 'weekly' | 'monthly' | 'always' | 'manual' | 'never'

/** How a run ended. `incomplete` and `suspect` left a collection or an export, `failed` nothing. */
export const RUN_OUTCOMES = ['good', 'incomplete', 'suspect', 'failed'] as const

export type RunOutcome = (typeof RUN_OUTCOMES)[number]

export interface PastRun {
  /** When the command began, milliseconds since 1970. */
  readonly startMs: number
  readonly outcome: RunOutcome
}

export interface Verdict {
  readonly due: boolean
  /** For people: why, or why not. */
  readonly reason: string
  /** When it is due, in the past where it is already; undefined where no clock decides. */
  readonly nextMs: number | undefined
  /** The last run is later than now: it is due, and somebody should look at the clock. */
  readonly clockSetBack: boolean
}

const HOUR_MS = 3_600_000

/**
 * How much earlier than a whole period something is due. Without it a run at 02:03 would not be due
 * the next day at 02:01, and a daily call would skip every other day. Half an hour is what timers
 * wait at random; an hour more, because 02:30 is 03:30 on the day the clocks go forward. An hourly
 * run has a tenth of its period.
 */
const SLACK_MS = 1.5 * HOUR_MS
const HOURLY_SLACK_MS = HOUR_MS / 10

/**
 * Each incomplete or suspect run leaves a collection. It is tried again at once so many times in a
 * row, for what was in the way may be gone; then only as often as a good one.
 */
const TRIES_AT_ONCE = 2

/** Whether something is due by its frequency. `runs` are in the order in which they ended. */
export function judgeDue({
  frequency,
  runs,
  nowMs,
}: {
  readonly frequency: Frequency
  readonly runs: readonly PastRun[]
  readonly nowMs: number
}): Verdict {
  const verdict = { nextMs: undefined, clockSetBack: false }
  if (frequency === 'manual' || frequency === 'never') {
    return { ...verdict, due: false, reason: `${frequency}: only when it is asked for` }
  }
  if (frequency === 'always') return { ...verdict, due: true, reason: 'always: at every run' }
  const good = runs.findLast(({ outcome }) => outcome === 'good')
  const tries = good === undefined ? runs : runs.slice(runs.lastIndexOf(good) + 1)
  const last = tries.at(-1)
  const kept = tries.filter(({ outcome }) => outcome !== 'failed')
  const waits = last !== undefined && last.outcome !== 'failed' && kept.length >= TRIES_AT_ONCE
  const byGood = good === undefined ? undefined : since({ frequency, run: good, nowMs })
  if (byGood?.due === false) return byGood
  if (waits) return since({ frequency, run: last, nowMs })
  if (last !== undefined) {
    const reason = `the run of ${formatLocalTime(last.startMs)} was ${words(last)}`
    return { ...verdict, due: true, reason, nextMs: nowMs }
  }
  return byGood ?? { ...verdict, due: true, reason: 'never done yet', nextMs: nowMs }
}

function since({
  frequency,
  run,
  nowMs,
}: {
  readonly frequency: Frequency
  readonly run: PastRun
  readonly nowMs: number
}): Verdict {
  const { startMs } = run
  const time = formatLocalTime(startMs)
  if (startMs > nowMs) {
    const reason = `the last run is of ${time}, which is later than now: the clock was set back`
    return { due: true, reason, nextMs: nowMs, clockSetBack: true }
  }
  const nextMs = nextDueMs({ frequency, startMs })
  const reason = `${frequency}: the last ${words(run)} run is of ${time}`
  return { due: nextMs === undefined || nowMs >= nextMs, reason, nextMs, clockSetBack: false }
}

function words({ outcome }: PastRun): string {
  return outcome === 'failed' ? 'a failure' : outcome
}

/** When the next run is due after one that began at `startMs`; undefined without a period. */
export function nextDueMs({
  frequency,
  startMs,
}: {
  readonly frequency: Frequency
  readonly startMs: number
}): number | undefined {
  const endMs = addPeriods({ frequency, startMs, count: 1 })
  if (endMs === undefined) return undefined
  return endMs - (frequency === 'hourly' ? HOURLY_SLACK_MS : SLACK_MS)
}

/**
 * So many periods later: hours by the clock that never stops, all others at the same local time of
 * day. A month after the 31st is the last day of a shorter one. Undefined without a period.
 */
export function addPeriods({
  frequency,
  startMs,
  count,
}: {
  readonly frequency: Frequency
  readonly startMs: number
  readonly count: number
}): number | undefined {
  const date = new Date(startMs)
  switch (frequency) {
    case 'hourly':
      return startMs + count * HOUR_MS
    case 'daily':
      return date.setDate(date.getDate() + count)
    case 'weekly':
      return date.setDate(date.getDate() + 7 * count)
    case 'monthly': {
      const day = date.getDate()
      const month = date.getMonth() + count
      const lastDay = new Date(date.getFullYear(), month + 1, 0).getDate()
      return date.setMonth(month, Math.min(day, lastDay))
    }
    case 'always':
    case 'manual':
    case 'never':
      return undefined
  }
}

/** `2025-04-01 02:00`, in local time. */
export function formatLocalTime(epochMs: number): string {
  const date = new Date(epochMs)
  const two = (part: number) => String(part).padStart(2, '0')
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}`
}
