import { suite } from 'uvu'
import {
  type Generation,
  type KeepCount,
  type KeepRules,
  planRetention,
  type RetentionPlan,
} from '../../lib/model/retention.ts'
import { formatStamp, parseStamp, type Stamp } from '../../lib/model/stamp.ts'
import * as assert from '../helpers/assert.ts'
import { type Random, randomOfRun } from '../helpers/random.ts'

const retention = suite('model/retention')

const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS
const START_MS = Date.UTC(2025, 0, 1, 2)
const HISTORIES = 2000
const NONE: ReadonlySet<Stamp> = new Set()

/**
 * `c` is complete, `i` is not, `u` nobody knows, `s` is suspect, `l` is complete and locked; a day
 * apart.
 */
function planned(
  generations: string,
  keep: number,
  { takeUnknown = false, ...rules }: KeepRules & { takeUnknown?: boolean } = {},
): string {
  const items = [...generations].map((letter, index) => ({
    stamp: formatStamp(START_MS + index * DAY_MS),
    complete: letter === 'u' ? undefined : letter !== 'i',
    suspect: letter === 's',
  }))
  const locked = new Set(items.filter((_, i) => generations[i] === 'l').map(({ stamp }) => stamp))
  const plan = planRetention({ items: [...items].reverse(), keep, rules, locked, takeUnknown })
  const stamps = items.map(({ stamp }) => stamp)
  assert.equal([...plan.keep, ...plan.remove].sort(), stamps)
  assert.equal([...plan.reasons.keys()].sort(), stamps)
  return stamps
    .map((stamp, index) => {
      assert.ok(plan.reasons.get(stamp)!.length > 0, `${stamp} has no reason`)
      const letter = generations[index]!
      return plan.keep.includes(stamp) ? letter.toUpperCase() : letter
    })
    .join('')
}

for (const [generations, keep, plan] of [
  ['', 1, ''],
  ['c', 1, 'C'],
  ['cc', 1, 'cC'],
  ['ccc', 2, 'cCC'],
  ['cc', 3, 'CC'],
  ['i', 1, 'I'],
  ['iii', 1, 'III'],
  ['ci', 1, 'CI'],
  ['ciii', 1, 'CIII'],
  ['ic', 1, 'iC'],
  ['ic', 2, 'IC'],
  ['cicic', 2, 'ciCIC'],
  ['iciic', 2, 'iCIIC'],
  ['ccii', 1, 'cCII'],
  ['lcc', 1, 'LcC'],
  ['cs', 1, 'CS'],
  ['ccccs', 1, 'CCCCS'],
  ['ccccsi', 1, 'CCCCSI'],
  ['ccccsc', 1, 'ccccsC'],
  ['ccccsc', 2, 'cccCSC'],
  ['scsc', 2, 'sCSC'],
  ['s', 1, 'S'],
  ['ss', 1, 'SS'],
  ['u', 1, 'U'],
  ['ucc', 1, 'UcC'],
  ['uuuccc', 1, 'UUUccC'],
  ['cu', 1, 'CU'],
  ['ccuu', 1, 'cCUU'],
  ['icucu', 2, 'iCUCU'],
  ['ccusu', 1, 'CCUSU'],
] as const) {
  retention(`of "${generations}" it keeps "${plan}" when ${keep} are to be kept`, () => {
    assert.is(planned(generations, keep), plan)
  })
}

retention('who lost the knowledge of nine months loses none of them', () => {
  const items = [...Array(14).keys()].map((month) => {
    const stamp = formatStamp(Date.UTC(2024, month, 1, 2))
    return { stamp, complete: month < 9 ? undefined : true }
  })
  const plan = planRetention({ items, keep: 5, rules: { monthly: 'all' }, locked: NONE })
  assert.equal(plan.remove, [])
  const taken = { items, keep: 5, locked: NONE, takeUnknown: true }
  assert.equal(planRetention({ ...taken, rules: { monthly: 'all' } }).remove, [])
  const { remove, reasons } = planRetention({ ...taken, rules: { monthly: 6 } })
  assert.equal(
    remove,
    items.slice(0, 8).map(({ stamp }) => stamp),
  )
  assert.equal(reasons.get(remove[0]!), ['not known to be complete, and no rule keeps it'])
})

retention('asked to, it takes the unknown for complete, but never for the newest complete', () => {
  assert.is(planned('uuuccc', 2, { takeUnknown: true }), 'uuucCC')
  assert.is(planned('uuuu', 2, { takeUnknown: true }), 'uuUU')
  assert.is(planned('ccuu', 1, { takeUnknown: true }), 'cCuU')
  assert.is(planned('uicuu', 1, { takeUnknown: true }), 'uiCuU')
  assert.is(planned('cusu', 1, { takeUnknown: true }), 'CUSU')
  assert.is(planned('ccus', 1, { takeUnknown: true }), 'CCUS')
})

retention('a rule keeps complete ones only, and never an old incomplete one with them', () => {
  assert.is(planned('cicccc', 1, { last: 3 }), 'cicCCC')
  assert.is(planned('icicccc', 1, { monthly: 'all' }), 'icicccC')
  assert.is(planned('ccccc', 2, { last: 'all' }), 'CCCCC')
  assert.is(planned('ccccc', 2, { last: 0, daily: 0 }), 'cccCC')
})

/** What stays of complete generations at these moments. */
function kept(moments: readonly string[], rules: KeepRules): readonly string[] {
  const items = moments.map((stamp) => ({ stamp, complete: true }))
  return planRetention({ items, keep: 1, rules, locked: NONE }).keep
}

for (const [rule, older, newer, next] of [
  ['hourly', '2025-03-31T235901Z', '2025-03-31T235959Z', '2025-04-01T000000Z'],
  ['daily', '2025-03-30T000000Z', '2025-03-30T235959Z', '2025-03-31T000000Z'],
  // 2025-03-31 is a Monday.
  ['weekly', '2025-03-24T000000Z', '2025-03-30T235959Z', '2025-03-31T000000Z'],
  ['monthly', '2025-03-01T000000Z', '2025-03-31T235959Z', '2025-04-01T000000Z'],
  ['yearly', '2024-01-01T000000Z', '2024-12-31T235959Z', '2025-01-01T000000Z'],
] as const) {
  retention(`${rule} keeps the newest of each, and a period ends where UTC says`, () => {
    assert.equal(kept([older, newer, next], { [rule]: 2 }), [newer, next])
    assert.equal(kept([older, newer, next], { [rule]: 1 }), [next])
    assert.equal(kept([older, newer, next], { [rule]: 'all' }), [newer, next])
  })
}

retention('weeks are those of ISO 8601, across the turn of a year', () => {
  const weekOf = (stamp: Stamp): string => {
    const items = [{ stamp, complete: true }]
    const plan = planRetention({ items, keep: 1, rules: { weekly: 1 }, locked: NONE })
    return plan.reasons.get(stamp)!.at(-1)!
  }
  // From the standard and from `date +%G-W%V`.
  for (const [day, week] of [
    ['2020-12-31', '2020-W53'],
    ['2021-01-03', '2020-W53'],
    ['2021-01-04', '2021-W01'],
    ['2018-12-31', '2019-W01'],
    ['2024-12-29', '2024-W52'],
    ['2024-12-30', '2025-W01'],
    ['2027-01-03', '2026-W53'],
    ['1970-01-01', '1970-W01'],
    ['1969-12-28', '1969-W52'],
  ]) {
    assert.is(weekOf(`${day}T120000Z`), `weekly ${week}`)
  }
})

retention('a period without a generation is not counted', () => {
  const far = ['2019-05-05T000000Z', '2022-06-06T000000Z', '2025-04-01T000000Z']
  assert.equal(kept(far, { daily: 3 }), far)
  assert.equal(kept(far, { yearly: 2 }), far.slice(1))
})

retention('says why each one stays or goes', () => {
  const items = [
    { stamp: '2025-03-30T020000Z', complete: undefined },
    { stamp: '2025-03-31T010000Z', complete: true },
    { stamp: '2025-03-31T020000Z', complete: true },
    { stamp: '2025-04-01T020000Z', complete: true },
    { stamp: '2025-04-01T030000Z', complete: false },
  ]
  const rules = { monthly: 'all', last: 1 } as const
  const locked = new Set(['2025-03-31T020000Z'])
  const { reasons } = planRetention({ items, keep: 1, rules, locked })
  assert.equal(
    [...reasons],
    [
      ['2025-03-30T020000Z', ['not known to be complete']],
      ['2025-03-31T010000Z', ['no rule keeps it']],
      ['2025-03-31T020000Z', ['monthly 2025-03', 'locked']],
      [
        '2025-04-01T020000Z',
        ['the newest complete one', 'one of the newest 1', 'monthly 2025-04', 'last 1'],
      ],
      ['2025-04-01T030000Z', ['incomplete, and fewer than 1 newer ones are complete']],
    ],
  )
})

retention('within counts numbers, from the complete one before the newest', () => {
  const items = [...Array(40).keys()].map((day) => {
    return { stamp: formatStamp(START_MS + day * DAY_MS), complete: true }
  })
  const stays = (days: number): number => {
    const rules = { withinMs: days * DAY_MS }
    return planRetention({ items, keep: 1, rules, locked: NONE }).keep.length
  }
  // R1.19: with times compared as text, 1, 10 and 30 days matched everything, and 15 nothing.
  for (const days of [0, 1, 9, 10, 15, 30]) assert.is(stays(days), days + 2)
  assert.is(stays(1000), 40)
})

retention('a machine that was off for a year loses nothing on its first run', () => {
  const days = [...Array(60).keys()].map((day) => formatStamp(START_MS + day * DAY_MS))
  const rules = { withinMs: 30 * DAY_MS, daily: 7, weekly: 4 }
  const before = kept(days, rules)
  assert.ok(before.length > 30)
  const back = formatStamp(START_MS + (60 + 365) * DAY_MS)
  const after = kept([...before, back], rules)
  const lost = before.filter((stamp) => !after.includes(stamp))
  // The 31st day before moves out by the day that a daily run moves it, and no more.
  assert.ok(lost.length <= 1, lost.join())
})

/** Every history of complete, incomplete, suspect and locked ones, hours to years apart. */
function randomHistory(random: Random): {
  items: Generation[]
  locked: Set<Stamp>
  keep: number
  rules: KeepRules
} {
  const gap = random.pick([HOUR_MS / 2, HOUR_MS * 5, DAY_MS, 9 * DAY_MS, 50 * DAY_MS])
  let timeMs = START_MS + random.integer(365) * DAY_MS
  const items: Generation[] = []
  const locked = new Set<Stamp>()
  for (let i = random.integer(40); i > 0; i--) {
    timeMs += 1000 + random.integer(2 * gap) + (random.integer(30) === 0 ? 500 * DAY_MS : 0)
    const stamp = formatStamp(timeMs)
    const complete = random.pick([true, true, true, true, false, undefined])
    items.push({ stamp, complete, suspect: random.integer(8) === 0 })
    if (random.integer(10) === 0) locked.add(stamp)
  }
  return { items, locked, keep: 1 + random.integer(5), rules: randomRules(random) }
}

function randomRules(random: Random): KeepRules {
  const rules: Record<string, KeepCount> = {}
  for (const rule of ['last', 'hourly', 'daily', 'weekly', 'monthly', 'yearly']) {
    if (random.integer(3) === 0) rules[rule] = random.pick([0, 1, 2, 3, 7, 'all'])
  }
  const withinMs = random.pick([0, 3 * HOUR_MS, DAY_MS, 30 * DAY_MS, 400 * DAY_MS])
  return random.integer(3) === 0 ? { ...rules, withinMs } : rules
}

const isGood = ({ complete, suspect }: Generation): boolean => complete === true && !suspect

type Check = (
  history: ReturnType<typeof randomHistory>,
  plan: RetentionPlan,
  random: Random,
) => void

function eachHistory(check: Check): void {
  const random = randomOfRun('retention')
  for (let i = 0; i < HISTORIES; i++) {
    const history = randomHistory(random)
    check(history, planRetention(history), random)
  }
}

retention('never lets the newest complete one go, nor a locked one, nor an unknown one', () => {
  let removals = 0
  eachHistory((history, plan) => {
    const { items, locked, keep } = history
    removals += plan.remove.length
    const good = items.filter(isGood).map(({ stamp }) => stamp)
    for (const stamp of good.slice(-keep)) assert.ok(plan.keep.includes(stamp), stamp)
    const unknown = items.filter(({ complete, suspect }) => complete === undefined && !suspect)
    for (const { stamp } of unknown) assert.ok(plan.keep.includes(stamp), stamp)
    const taken = planRetention({ ...history, takeUnknown: true })
    for (const stamp of good.slice(-1)) assert.ok(taken.keep.includes(stamp), stamp)
    for (const stamp of [...plan.remove, ...taken.remove]) {
      assert.not.ok(locked.has(stamp), stamp)
    }
  })
  assert.ok(removals > HISTORIES, `only ${removals} removals`)
})

retention('never removes one that is newer than all that stay, or than the newest complete', () => {
  eachHistory(({ items }, { remove, keep }) => {
    const newest = items.filter(isGood).at(-1)
    for (const stamp of remove) {
      assert.ok(newest !== undefined && parseStamp(stamp)! < parseStamp(newest.stamp)!, stamp)
      assert.ok(keep.at(-1)! > stamp)
    }
  })
})

retention('removes nothing while a suspect one is newer than the newest complete one', () => {
  let frozen = 0
  eachHistory(({ items }, plan) => {
    const last = items.findLastIndex((item) => isGood(item) || item.suspect === true)
    const isFrozen = items[last]?.suspect === true
    assert.is(plan.frozenBy, isFrozen ? items[last]?.stamp : undefined)
    if (isFrozen) assert.equal(plan.remove, [])
    frozen += isFrozen ? 1 : 0
  })
  assert.ok(frozen > 100, `only ${frozen} were frozen`)
})

retention('one more rule, a larger count or one more lock never removes more', () => {
  eachHistory(({ items, locked, keep, rules }, plan, random) => {
    const grown: Record<string, KeepCount> = {}
    for (const [rule, count] of Object.entries(rules)) {
      if (rule !== 'withinMs') grown[rule] = count === 'all' ? 'all' : count + random.integer(3)
    }
    const withinMs = (rules.withinMs ?? 0) + random.integer(60) * DAY_MS
    const more = { ...randomRules(random), ...grown, withinMs }
    const also = new Set([...locked, ...items.slice(0, 1).map(({ stamp }) => stamp)])
    const larger = planRetention({
      items,
      keep: keep + random.integer(3),
      rules: more,
      locked: also,
    })
    const gone = larger.remove.filter((stamp) => !plan.remove.includes(stamp))
    assert.equal(gone, [])
  })
})

retention('has nothing more to remove from what it left', () => {
  eachHistory((history, plan) => {
    const items = history.items.filter(({ stamp }) => plan.keep.includes(stamp))
    assert.equal(planRetention({ ...history, items }).remove, [])
  })
})

retention('does not care in which order it hears of them', () => {
  eachHistory((history, plan) => {
    const { keep, remove } = planRetention({ ...history, items: [...history.items].reverse() })
    assert.equal([keep, remove], [plan.keep, plan.remove])
  })
})

retention('a suspect generation elsewhere freezes it, too', () => {
  const items = [...Array(5).keys()].map((day) => {
    return { stamp: formatStamp(START_MS + day * DAY_MS), complete: true }
  })
  const frozenBy = formatStamp(START_MS + 9 * DAY_MS)
  const plan = planRetention({ items, keep: 1, rules: {}, locked: NONE, frozenBy })
  assert.equal(plan.remove, [])
  assert.is(plan.frozenBy, frozenBy)
})

/**
 * The older product's classes, R1.07 to R1.14: a run takes the first unused of Monthly, Weekly (of
 * Sundays, %U) and Daily, then lets go what is of its class or a lower one and older than the class
 * keeps, counted from the run before.
 */
function survivorsOfClasses(times: readonly number[]): Set<number> {
  const taken = new Set<string>()
  let sets: { timeMs: number; priority: number }[] = []
  for (const [index, timeMs] of times.entries()) {
    const day = new Date(timeMs).toISOString().slice(0, 10)
    const yearStartMs = Date.parse(`${day.slice(0, 4)}-01-01T00:00:00Z`)
    const dayOfYear = Math.floor((timeMs - yearStartMs) / DAY_MS)
    const sundays = Math.floor((dayOfYear + 7 - new Date(timeMs).getUTCDay()) / 7)
    const names = [
      { name: `Monthly-${day.slice(0, 7)}`, priority: 40, keepDays: 0 },
      { name: `Weekly-${day.slice(0, 4)}-${sundays}`, priority: 30, keepDays: 180 },
      { name: `Daily-${day}`, priority: 20, keepDays: 30 },
    ]
    const { name, priority, keepDays } = names.find((one) => !taken.has(one.name))!
    taken.add(name)
    const cutoffMs = times[index - 1]! - keepDays * DAY_MS
    if (keepDays > 0) {
      sets = sets.filter((set) => set.priority > priority || set.timeMs > cutoffMs)
    }
    sets.push({ timeMs, priority })
  }
  return new Set(sets.map((set) => set.timeMs))
}

retention('three years of daily runs end with what Monthly, Weekly and Daily classes leave', () => {
  const times = [...Array(3 * 365).keys()].map((day) => START_MS + day * DAY_MS)
  const rules = { withinMs: 30 * DAY_MS, weekly: 26, monthly: 'all' } as const
  let ours: string[] = []
  for (const timeMs of times) {
    ours.push(formatStamp(timeMs))
    const items = ours.map((stamp) => ({ stamp, complete: true }))
    ours = [...planRetention({ items, keep: 1, rules, locked: NONE }).keep]
  }
  const mine = ours.map((stamp) => parseStamp(stamp)!)
  const theirs = [...survivorsOfClasses(times)].sort((a, b) => a - b)
  const newestMs = times.at(-1)!
  const aged = (from: number, to: number) => (timeMs: number) => {
    const days = (newestMs - timeMs) / DAY_MS
    return days >= from && days < to
  }
  const day = (timeMs: number): string => new Date(timeMs).toISOString().slice(0, 10)
  const month = (timeMs: number): string => day(timeMs).slice(0, 7)
  // ISO weeks: of theirs, that begin on Sunday, the first day is the last one of ours.
  const week = (timeMs: number): number => Math.floor((timeMs / DAY_MS + 3) / 7)
  const unique = <T>(values: readonly T[]): T[] => [...new Set(values)]

  assert.equal(mine.filter(aged(0, 31)).map(day), theirs.filter(aged(0, 31)).map(day))
  assert.is(mine.filter(aged(0, 31)).length, 31)
  const weeks = (all: readonly number[]) => unique(all.filter(aged(38, 173)).map(week))
  assert.equal(weeks(mine), weeks(theirs))
  assert.ok(weeks(mine).length >= 19)
  assert.equal(unique(mine.map(month)), unique(theirs.map(month)))
  assert.is(unique(mine.map(month)).length, 36)
  for (const all of [mine, theirs]) {
    const old = all.filter(aged(220, 2000))
    assert.is(unique(old.map(month)).length, old.length, 'one of each month')
  }
  assert.ok(Math.abs(mine.length - theirs.length) <= 3, `${mine.length}, ${theirs.length}`)
})

retention('refuses to keep nothing, and a generation without a stamp', () => {
  assert.throws(() => planRetention({ items: [], keep: 0, rules: {}, locked: NONE }))
  const items = [{ stamp: 'yesterday', complete: true }]
  assert.throws(() => planRetention({ items, keep: 1, rules: {}, locked: NONE }))
})

retention.run()
