// Moments as people say them: `3 days ago`, `last tuesday`, `2025-04-01 14:30`.
//
// lib/work/find-exports.ts asks for a date that begins no stamp; the generation meant is the newest
// that is not after the moment. All is local time unless it names a zone, and whatever is named
// means its end: a day its last millisecond, a minute that is shown as `14:30` its last one too. So
// what somebody reads off a list finds the generation listed. Pure; throws nothing.

export interface Moment {
  /** Milliseconds since 1970: the generation meant is the newest not after this. */
  readonly latestMs: number
}

const [SECOND_MS, MINUTE_MS, HOUR_MS] = [1000, 60_000, 3_600_000]

const NUMBERS = ['', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten']
const WEEKDAYS = ['sun', 'mon', 'tues', 'wednes', 'thurs', 'fri', 'satur'].map((day) => `${day}day`)
const MONTHS =
  'january february march april may june july august september october november december'.split(' ')

/** Stamps are of this century; a year of two digits would be another one to `Date`. */
const FIRST_YEAR = 1970

/**
 * What a date means; undefined for what is none, for what begins after `nowMs`, and for what could
 * be read in two ways: `01/04/2025`, and `2025-04-01T14:30` without a zone, which looks like a
 * stamp and would be another time of day. A whole stamp is no moment either: who names one
 * generation does not want another.
 *
 * - `now`; `20 minutes ago`, `an hour ago`: to the millisecond.
 * - `today`, `yesterday`, `3 days ago`, `2 weeks ago`, `a month ago`, `1 april`: the end of that
 *   day. A month before the 31st is the last day of a shorter one.
 * - `tuesday` is the newest one, today included; `last tuesday` is before today.
 * - `last week` ends with its Sunday, `last month` and `last year` with their last day; `2025`,
 *   `2025-04`, `april 2025` likewise. `april` is the newest one that has begun.
 * - A day may have a time: `yesterday 14:30`, `last tuesday at 14:30`, `2025-04-01 14:30:20`. A
 *   time that a clock set back shows twice is the later one; one that a clock skipped when it was
 *   set forward is as much later as was skipped.
 */
export function parseMoment(text: string, { nowMs }: { nowMs: number }): Moment | undefined {
  const words = text.trim().toLowerCase().replaceAll(/\s+/g, ' ')
  if (words === 'now') return { latestMs: nowMs }
  const latestMs = agoMs(words, nowMs) ?? zonedMs(words, nowMs) ?? localMs(words, nowMs)
  return latestMs === undefined || Number.isNaN(latestMs) ? undefined : { latestMs }
}

/** `2 hours ago`: units shorter than a day, by the clock that never stops. */
function agoMs(words: string, nowMs: number): number | undefined {
  const [, count = '', unit] = /^(\w+) (second|minute|hour)s? ago$/.exec(words) ?? []
  const number = numberOf(count)
  if (number === undefined) return undefined
  const unitMs = unit === 'hour' ? HOUR_MS : unit === 'minute' ? MINUTE_MS : SECOND_MS
  return nowMs - number * unitMs
}

/** `2025-04-01T14:30+02:00`: ISO 8601 with a zone. */
function zonedMs(words: string, nowMs: number): number | undefined {
  const pattern = /^(\d{4}-\d\d-\d\d)[t ](\d\d:\d\d)(:\d\d)?(\.\d{1,9})? ?(z|[+-]\d\d:?\d\d)$/
  const [, day, time, second, fraction = '', zone = ''] = pattern.exec(words) ?? []
  const { year, month, date } = dayOfIso(day) ?? {}
  if (year === undefined || month === undefined || date === undefined) return undefined
  if (second === undefined && fraction !== '') return undefined
  const offset = zone.replace(/^([+-]\d\d)(\d\d)$/, '$1:$2').toUpperCase()
  const startMs = Date.parse(`${day}T${time}${second ?? ':00'}${fraction.slice(0, 4)}${offset}`)
  if (startMs > nowMs) return undefined
  const spanMs = second === undefined ? MINUTE_MS : fraction === '' ? SECOND_MS : 1
  return startMs + spanMs - 1
}

/** A day of the calendar, of no zone. */
interface Day {
  readonly year: number
  /** 0 to 11. */
  readonly month: number
  readonly date: number
}

interface Span {
  readonly first: Day
  readonly last: Day
}

function localMs(words: string, nowMs: number): number | undefined {
  const [, name = '', hour, minute, second] =
    /^(.+?)(?: (?:at )?(\d\d?):(\d\d)(?::(\d\d))?)?$/.exec(words) ?? []
  const span = spanOf(name, dayOfMs(nowMs))
  if (span === undefined || span.first.year < FIRST_YEAR) return undefined
  const { first, last } = span
  if (hour === undefined) {
    if (startOf(first) > nowMs) return undefined
    return startOf(addDays(last, 1)) - 1
  }
  const time = [hour, minute, second ?? 0].map(Number) as [number, number, number]
  if (!isSameDay(first, last) || time[0] > 23 || time[1] > 59 || time[2] > 59) return undefined
  const startMs = lastShown(first, time)
  if (startMs > nowMs) return undefined
  return startMs + (second === undefined ? MINUTE_MS : SECOND_MS) - 1
}

/** The days that are named. */
function spanOf(name: string, today: Day): Span | undefined {
  const back = ['today', 'yesterday', 'the day before yesterday'].indexOf(name)
  const day =
    back === -1
      ? (dayAgo(name, today) ?? weekday(name, today) ?? dayOfIso(name) ?? dayOfMonth(name, today))
      : addDays(today, -back)
  if (day !== undefined) return { first: day, last: day }
  return lastPeriod(name, today) ?? wholeMonthOrYear(name, today)
}

/** `3 days ago`, `a month ago`. */
function dayAgo(name: string, today: Day): Day | undefined {
  const [, count = '', unit] = /^(\w+) (day|week|month|year)s? ago$/.exec(name) ?? []
  const number = numberOf(count)
  if (number === undefined) return undefined
  if (unit === 'day') return addDays(today, -number)
  if (unit === 'week') return addDays(today, -7 * number)
  return addMonths(today, unit === 'month' ? -number : -12 * number)
}

function weekday(name: string, today: Day): Day | undefined {
  const [, last, short = ''] = /^(last )?([a-z]{3,})$/.exec(name) ?? []
  const index = WEEKDAYS.findIndex((day) => day.startsWith(short))
  if (index === -1 || short === '') return undefined
  const back = (weekdayOf(today) - index + 7) % 7
  return addDays(today, -(back === 0 && last !== undefined ? 7 : back))
}

/** `1 april`, `april 1, 2025`: without a year, the newest that is not after today. */
function dayOfMonth(name: string, today: Day): Day | undefined {
  const [, date, after, monthName, before, year] =
    /^(?:(\d\d?) ([a-z]+)|([a-z]+) (\d\d?)),?(?: (\d{4}))?$/.exec(name) ?? []
  const month = monthOf(after ?? monthName ?? '')
  if (month === undefined) return undefined
  const day = (of: number) => validDay({ year: of, month, date: Number(date ?? before) })
  if (year !== undefined) return day(Number(year))
  // 29 February is at most eight years ago.
  return Array.from({ length: 9 }, (_, back) => day(today.year - back)).find((found) => {
    return found !== undefined && startOf(found) <= startOf(today)
  })
}

function lastPeriod(name: string, today: Day): Span | undefined {
  switch (name) {
    case 'last week': {
      // Weeks begin on Monday.
      const sunday = addDays(today, -((weekdayOf(today) + 6) % 7) - 1)
      return { first: addDays(sunday, -6), last: sunday }
    }
    case 'last month':
      return monthSpan(addMonths({ ...today, date: 1 }, -1))
    case 'last year':
      return yearSpan(today.year - 1)
    default:
      return undefined
  }
}

/** `2025`, `2025-04`, `april 2025`, `april`. */
function wholeMonthOrYear(name: string, today: Day): Span | undefined {
  if (/^\d{4}$/.test(name)) return yearSpan(Number(name))
  const iso = dayOfIso(/^\d{4}-\d\d$/.test(name) ? `${name}-01` : undefined)
  if (iso !== undefined) return monthSpan(iso)
  const [, word = '', year] = /^([a-z]+)(?: (\d{4}))?$/.exec(name) ?? []
  const month = monthOf(word)
  if (month === undefined) return undefined
  const newest = month > today.month ? today.year - 1 : today.year
  return monthSpan({ year: year === undefined ? newest : Number(year), month, date: 1 })
}

function yearSpan(year: number): Span {
  return { first: { year, month: 0, date: 1 }, last: { year, month: 11, date: 31 } }
}

function monthSpan({ year, month }: Day): Span {
  const first = { year, month, date: 1 }
  return { first, last: addDays(addMonths(first, 1), -1) }
}

function numberOf(word: string): number | undefined {
  if (/^\d{1,6}$/.test(word)) return Number(word)
  if (word === 'a' || word === 'an') return 1
  const index = NUMBERS.indexOf(word)
  return index > 0 ? index : undefined
}

function monthOf(word: string): number | undefined {
  const index = MONTHS.findIndex((month) => month.startsWith(word))
  return index === -1 || word.length < 3 ? undefined : index
}

function dayOfIso(text: string | undefined): Day | undefined {
  const match = /^(\d{4})-(\d\d)-(\d\d)$/.exec(text ?? '')
  if (match === null) return undefined
  const [year, month, date] = match.slice(1).map(Number) as [number, number, number]
  return validDay({ year, month: month - 1, date })
}

/** Undefined for 30 February. */
function validDay(day: Day): Day | undefined {
  return isSameDay(addDays(day, 0), day) ? day : undefined
}

function isSameDay(one: Day, other: Day): boolean {
  return one.year === other.year && one.month === other.month && one.date === other.date
}

/** Days are counted by the calendar, whatever clocks do: as dates of UTC. */
function addDays({ year, month, date }: Day, count: number): Day {
  const then = new Date(Date.UTC(year, month, date + count))
  return { year: then.getUTCFullYear(), month: then.getUTCMonth(), date: then.getUTCDate() }
}

function addMonths({ year, month, date }: Day, count: number): Day {
  const first = addDays({ year, month: month + count, date: 1 }, 0)
  const lastDate = new Date(Date.UTC(first.year, first.month + 1, 0)).getUTCDate()
  return { ...first, date: Math.min(date, lastDate) }
}

function weekdayOf({ year, month, date }: Day): number {
  return new Date(Date.UTC(year, month, date)).getUTCDay()
}

function dayOfMs(epochMs: number): Day {
  const local = new Date(epochMs)
  return { year: local.getFullYear(), month: local.getMonth(), date: local.getDate() }
}

/** Where clocks skip midnight the day begins with what they show first. */
function startOf({ year, month, date }: Day): number {
  return new Date(year, month, date).getTime()
}

/** When clocks showed this time, the later of two where they were set back. */
function lastShown({ year, month, date }: Day, time: [number, number, number]): number {
  const first = new Date(year, month, date, ...time)
  const soon = new Date(first.getTime() + 3 * HOUR_MS)
  const setBackMs = (soon.getTimezoneOffset() - first.getTimezoneOffset()) * MINUTE_MS
  const again = new Date(first.getTime() + Math.max(0, setBackMs))
  const isSame = again.getHours() === first.getHours() && again.getMinutes() === first.getMinutes()
  return (isSame ? again : first).getTime()
}
