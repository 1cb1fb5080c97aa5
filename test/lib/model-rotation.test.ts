import { suite } from 'uvu'
import { isOverdue, nextDrive, rotationPeriodMs } from '../../lib/model/rotation.ts'
import * as assert from '../helpers/assert.ts'

const DAY_MS = 86_400_000
const NOW_MS = Date.parse('2026-05-20T02:00:00Z')
const EVERY_MS = 14 * DAY_MS

function ago(days: number): number {
  return NOW_MS - days * DAY_MS
}

const rotation = suite('rotation')

rotation('the drive whose last good export is the oldest is next, due once that is too old', () => {
  const drives = [
    { name: 'red', lastGoodMs: ago(2) },
    { name: 'blue', lastGoodMs: ago(13) },
  ]
  const at = (nowMs: number) => nextDrive({ drives, everyMs: EVERY_MS, nowMs })
  assert.equal(at(NOW_MS), { name: 'blue', dueMs: NOW_MS + DAY_MS, isDue: false })
  assert.equal(at(NOW_MS + DAY_MS).isDue, false, 'as old as it may be')
  assert.equal(at(NOW_MS + DAY_MS + 1).isDue, true)
})

rotation('a drive without an export is due before all others, the first of several', () => {
  const drives = [
    { name: 'red', lastGoodMs: ago(99) },
    { name: 'blue', lastGoodMs: undefined },
    { name: 'green', lastGoodMs: undefined },
  ]
  const next = nextDrive({ drives, everyMs: EVERY_MS, nowMs: NOW_MS })
  assert.equal(next, { name: 'blue', dueMs: undefined, isDue: true })
})

rotation('without a period nothing is due by itself', () => {
  for (const lastGoodMs of [undefined, ago(999)]) {
    const drives = [{ name: 't9', lastGoodMs }]
    const next = nextDrive({ drives, everyMs: undefined, nowMs: NOW_MS })
    assert.equal(next, { name: 't9', dueMs: undefined, isDue: false })
    const overdue = { lastGoodMs, everyMs: undefined, nowMs: NOW_MS, sinceMs: ago(999) }
    assert.is(isOverdue(overdue), false)
  }
})

rotation('the period is the configured one, else two of the longest, and a day at least', () => {
  const byDefault = (...frequencies: Parameters<typeof rotationPeriodMs>[0]['frequencies']) => {
    return rotationPeriodMs({ everyMs: undefined, frequencies })
  }
  assert.is(rotationPeriodMs({ everyMs: DAY_MS, frequencies: ['monthly'] }), DAY_MS)
  assert.is(rotationPeriodMs({ everyMs: DAY_MS, frequencies: ['manual'] }), DAY_MS)
  assert.is(byDefault('daily', 'weekly'), 14 * DAY_MS)
  assert.is(byDefault('weekly', 'manual', 'never'), 14 * DAY_MS)
  assert.is(byDefault('monthly'), 62 * DAY_MS)
  assert.is(byDefault('hourly'), DAY_MS)
  assert.is(byDefault('always'), 2 * DAY_MS)
  assert.is(byDefault('manual', 'never'), undefined)
  assert.is(byDefault(), undefined)
})

rotation('what was never exported to is overdue counting from when there was something', () => {
  const at = (sinceMs: number | undefined, lastGoodMs?: number) => {
    return isOverdue({ lastGoodMs, everyMs: EVERY_MS, nowMs: NOW_MS, sinceMs })
  }
  assert.is(at(undefined), false)
  assert.is(at(ago(14)), false)
  assert.is(at(ago(14) - 1), true)
  assert.is(at(ago(99), ago(1)), false)
  assert.is(at(ago(1), ago(15)), true)
  assert.is(at(ago(99), ago(-5)), false, 'the clock was set back')
})

rotation.run()
