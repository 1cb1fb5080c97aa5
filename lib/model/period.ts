// How long something took or is ago, in one whole unit, as people say it.
//
// commands/status-text.ts and lib/work/status-problems.ts show ages; exact durations are
// lib/model/amount.ts's. Pure; throws nothing.

/** `1 minute`, `119 minutes`, `47 hours`, `12 days`. */
export function formatPeriod(durationMs: number): string {
  const minutes = Math.floor(Math.max(0, durationMs) / 60_000)
  if (minutes < 120) return counted(minutes, 'minute')
  const hours = Math.floor(minutes / 60)
  return hours < 48 ? counted(hours, 'hour') : counted(Math.floor(hours / 24), 'day')
}

/** `just now`, `3 hours ago`; `in the future` where the clock was set back. */
export function formatAge(durationMs: number): string {
  if (durationMs < 0) return 'in the future'
  return durationMs < 60_000 ? 'just now' : `${formatPeriod(durationMs)} ago`
}

/** `1 drive`, `2 drives`. */
export function counted(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? '' : 's'}`
}
