import { suite } from 'uvu'
import {
  addPeriods,
  type Frequency,
  formatLocalTime,
  judgeDue,
  nextDueMs,
  type PastRun,
  type RunOutcome,
} from '../../lib/model/schedule.ts'
import * as assert from '../helpers/assert.ts'

// Clocks go forward on 2026-03-29 and back on 2026-10-25 there.
process.env['TZ'] = 'Europe/Berlin'

const MINUTE_MS = 60_000
const HOUR_MS = 60 * MINUTE_MS
const DAY_MS = 24 * HOUR_MS

function at(text: string): number {
  return Date.parse(text.replace(' ', 'T'))
}

function run(text: string, outcome: RunOutcome = 'good'): PastRun {
  return { startMs: at(text), outcome }
}

function isDue(frequency: Frequency, runs: readonly PastRun[], now: string): boolean {
  return judgeDue({ frequency, runs, nowMs: at(now) }).due
}

const schedule = suite('schedule')

for (const [frequency, last, notYet, due] of [
  ['hourly', '2026-05-01 10:00', '2026-05-01 10:53', '2026-05-01 10:54'],
  ['daily', '2026-05-01 10:00', '2026-05-02 08:29', '2026-05-02 08:30'],
  ['weekly', '2026-05-01 10:00', '2026-05-08 08:29', '2026-05-08 08:30'],
  ['monthly', '2026-05-01 10:00', '2026-06-01 08:29', '2026-06-01 08:30'],
  ['monthly', '2026-01-31 10:00', '2026-02-28 08:29', '2026-02-28 08:30'],
  ['monthly', '2026-12-31 10:00', '2027-01-31 08:29', '2027-01-31 08:30'],
] as const) {
  schedule(`${frequency} after ${last} is due at ${due} and not a minute before`, () => {
    assert.not.ok(isDue(frequency, [run(last)], notYet))
    assert.ok(isDue(frequency, [run(last)], due))
    assert.is(formatLocalTime(nextDueMs({ frequency, startMs: at(last) })!), due)
  })
}

schedule('a call each day at 02:00, some minutes early or late, is due on every day', () => {
  let runs: readonly PastRun[] = []
  for (let day = 0; day < 365; day++) {
    const minutes = (day * 7919) % 30
    const startMs = new Date(2026, 0, 1 + day, 2, minutes).getTime()
    const { due } = judgeDue({ frequency: 'daily', runs, nowMs: startMs })
    assert.ok(due, `day ${day}: ${formatLocalTime(startMs)}`)
    runs = [...runs, { startMs, outcome: 'good' }]
  }
})

schedule('a call every five minutes is due about once a day', () => {
  let runs: readonly PastRun[] = []
  const beginMs = at('2026-03-01 00:00')
  for (let nowMs = beginMs; nowMs < beginMs + 60 * DAY_MS; nowMs += 5 * MINUTE_MS) {
    if (judgeDue({ frequency: 'daily', runs, nowMs }).due) {
      runs = [...runs, { startMs: nowMs, outcome: 'good' }]
    }
  }
  assert.ok(runs.length >= 60 && runs.length <= 65, String(runs.length))
})

schedule('what was missed in a week of sleep is due once', () => {
  const before = run('2026-05-01 02:00')
  assert.ok(isDue('daily', [before], '2026-05-08 11:00'))
  assert.not.ok(isDue('daily', [before, run('2026-05-08 11:00')], '2026-05-08 11:05'))
  assert.not.ok(isDue('hourly', [before, run('2026-05-08 11:00')], '2026-05-08 11:05'))
})

schedule('always is due at once again, manual and never are not due at all', () => {
  const runs = [run('2026-05-01 02:00')]
  assert.ok(isDue('always', runs, '2026-05-01 02:01'))
  for (const frequency of ['manual', 'never'] as const) {
    assert.not.ok(isDue(frequency, runs, '2036-05-01 02:00'))
    assert.not.ok(isDue(frequency, [], '2036-05-01 02:00'))
    assert.is(addPeriods({ frequency, startMs: 0, count: 1 }), undefined)
  }
})

schedule('what was never done is due', () => {
  const verdict = judgeDue({ frequency: 'monthly', runs: [], nowMs: 0 })
  assert.is(verdict.due, true)
  assert.is(verdict.reason, 'never done yet')
})

schedule('a failed run is due again at the next call, however often it failed', () => {
  const runs = [run('2026-05-01 02:00'), run('2026-05-02 02:00', 'failed')]
  assert.ok(isDue('daily', runs, '2026-05-02 02:05'))
  assert.ok(isDue('daily', [...runs, run('2026-05-02 02:05', 'failed')], '2026-05-02 02:10'))
})

schedule('a failure within the period of a good run does not make it due', () => {
  const runs = [run('2026-05-01 02:00'), run('2026-05-01 12:00', 'failed')]
  assert.not.ok(isDue('daily', runs, '2026-05-01 12:05'))
  assert.ok(isDue('daily', runs, '2026-05-02 00:30'))
})

for (const outcome of ['incomplete', 'suspect'] as const) {
  schedule(`after a run that was ${outcome} it is due once more, then with its period`, () => {
    const runs = [run('2026-05-01 02:00'), run('2026-05-02 02:00', outcome)]
    assert.ok(isDue('daily', runs, '2026-05-02 02:05'))
    const twice = [...runs, run('2026-05-02 02:05', outcome)]
    assert.not.ok(isDue('daily', twice, '2026-05-02 02:10'))
    assert.not.ok(isDue('daily', twice.slice(1), '2026-05-02 02:10'), 'nor when never good')
    assert.ok(isDue('daily', twice, '2026-05-03 02:00'))
    const thrice = [...twice, run('2026-05-03 02:00', outcome)]
    assert.not.ok(isDue('daily', thrice, '2026-05-03 02:05'))
    assert.ok(isDue('daily', [...thrice, run('2026-05-04 02:00', 'failed')], '2026-05-04 02:05'))
  })
}

schedule('a clock that was set back makes it due, says so, and does so once', () => {
  const future = run('2027-05-01 02:00')
  const verdict = judgeDue({ frequency: 'daily', runs: [future], nowMs: at('2026-05-01 02:00') })
  assert.is(verdict.due, true)
  assert.is(verdict.clockSetBack, true)
  assert.match(verdict.reason, 'the clock was set back')
  assert.not.ok(isDue('daily', [future, run('2026-05-01 02:00')], '2026-05-01 02:05'))
  const tried = [run('2026-05-01 02:00', 'suspect'), run('2026-05-01 02:05', 'suspect')]
  assert.not.ok(isDue('daily', [future, ...tried], '2026-05-01 02:10'))
})

schedule('a period of days keeps the time of day when the clocks change', () => {
  for (const [from, to] of [
    ['2026-03-28 02:30', '2026-03-29 03:30'],
    ['2026-10-24 02:30', '2026-10-25 02:30'],
  ] as const) {
    const endMs = addPeriods({ frequency: 'daily', startMs: at(from), count: 1 })
    assert.is(formatLocalTime(endMs!), to)
  }
})

schedule.run()
