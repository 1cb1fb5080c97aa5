// Stamps: when a collection was made, as a name that sorts by time and is legal everywhere
// (docs/format.md §1).
//
// formatStamp and parseStamp are inverses at the second. nextStamp never gives a stamp that is not
// newer than all before, so a clock that was set back cannot put a new collection behind an old
// one. Pure; no clock; throws nothing but failed assertions.

import assert from 'node:assert/strict'

export type Stamp = string

/** `2025-04-01T020000Z`, of milliseconds since 1970; fractions of a second are dropped. */
export function formatStamp(epochMs: number): Stamp {
  const text = new Date(epochMs).toISOString().replace(/\.\d+Z$/, 'Z')
  assert(/^\d{4}-/.test(text), 'a stamp is of the years 0 to 9999')
  return text.replaceAll(':', '')
}

/** Milliseconds since 1970; undefined for anything that formatStamp would not have written. */
export function parseStamp(text: string): number | undefined {
  const match = /^(\d{4}-\d\d-\d\d)T(\d\d)(\d\d)(\d\d)Z$/.exec(text)
  if (match === null) return undefined
  const [, day, hour, minute, second] = match
  const epochMs = Date.parse(`${day}T${hour}:${minute}:${second}Z`)
  return Number.isNaN(epochMs) || formatStamp(epochMs) !== text ? undefined : epochMs
}

/** Runs less than a second apart are dated a second each, so a little ahead is no wrong clock. */
const AHEAD_SLACK_MS = 60_000

/**
 * Whether a stamp is later than the clock. Then nothing may be let go: generations that are dated
 * ahead all fall into one day, month and year, and would push each other out.
 */
export function isAhead(stamp: Stamp, nowMs: number): boolean {
  return stamp > formatStamp(nowMs + AHEAD_SLACK_MS)
}

/** The stamp of now, or a second after `newest` where the clock is not past that yet. */
export function nextStamp({ nowMs, newest }: { nowMs: number; newest?: Stamp | undefined }): Stamp {
  const newestMs = newest === undefined ? undefined : parseStamp(newest)
  assert(newest === undefined || newestMs !== undefined, 'the newest stamp is no stamp')
  const next = formatStamp(nowMs)
  return newestMs === undefined || newest === undefined || next > newest
    ? next
    : formatStamp(newestMs + 1000)
}

/**
 * The stamps that begin as the user wrote: `2025-04-01`, `2025-04`, or a whole stamp. `latest` is
 * the caller's.
 */
export function matchStamps({
  prefix,
  stamps,
}: {
  prefix: string
  stamps: readonly Stamp[]
}): Stamp[] {
  const plain = prefix.replaceAll(':', '')
  return plain === '' ? [] : stamps.filter((stamp) => stamp.startsWith(plain))
}
