import { suite } from 'uvu'
import type { SetConfiguration } from '../../lib/machine/config.ts'
import type { CollectionHeader } from '../../lib/model/collection.ts'
import {
  type Decision,
  judgeStanding,
  type Known,
  planCollects,
  planDue,
  planExports,
  type PlanOptions,
} from '../../lib/work/due.ts'
import type { RunRecord } from '../../lib/work/history.ts'
import * as assert from '../helpers/assert.ts'
import { setConfiguration } from '../helpers/configuration.ts'

process.env['TZ'] = 'UTC'

const NOW = '2026-05-20T020000Z'
const SECURE = { onBattery: false, metered: false }

function ms(stamp: string): number {
  return Date.parse(stamp.replace(/T(\d\d)(\d\d)(\d\d)Z/, 'T$1:$2:$3Z'))
}

function ran(change: Partial<RunRecord> & { readonly stamp: string }): RunRecord {
  return {
    phase: 'collect',
    set: 'home',
    target: undefined,
    startMs: ms(change.stamp),
    endMs: ms(change.stamp) + 60_000,
    outcome: 'good',
    exitCode: 0,
    errorCode: undefined,
    message: undefined,
    bytes: 1,
    writtenBytes: 1,
    ...change,
  }
}

function exported(stamp: string, change: { readonly target?: string } = {}): RunRecord {
  return ran({ phase: 'export', target: 'drive', stamp, ...change })
}

function collection(stamp: string, change: Partial<CollectionHeader> = {}): CollectionHeader {
  return {
    set: 'home',
    stamp,
    complete: true,
    missing: [],
    sources: [],
    suspect: [],
    entries: 1,
    files: 1,
    bytes: 1,
    ...change,
  }
}

function known(collections: readonly CollectionHeader[], history: readonly RunRecord[]): Known {
  return { history, collections: new Map([['home', collections]]) }
}

function home(schedule: Partial<SetConfiguration['schedule']> = {}): SetConfiguration {
  const set = setConfiguration()
  return setConfiguration({ schedule: { ...set.schedule, ...schedule } })
}

function options(facts: Known, change: Partial<PlanOptions> = {}): PlanOptions {
  return {
    sets: [home()],
    targets: [{ name: 'drive' }],
    known: facts,
    nowMs: ms(NOW),
    power: SECURE,
    force: false,
    ...change,
  }
}

/** The phases that are due, in order. */
function due(decisions: readonly Decision[]): string {
  return decisions
    .filter((decision) => decision.due)
    .map(({ phase }) => phase)
    .join(' ')
}

function reason(decisions: readonly Decision[], phase: string): string {
  return decisions.find((decision) => decision.phase === phase)?.reason ?? ''
}

/** Collected, compared and exported an hour ago. */
const FRESH = '2026-05-20T010000Z'
const FRESH_RUNS = [ran({ stamp: FRESH, phase: 'full' }), exported(FRESH)]
const fresh = known([collection(FRESH)], FRESH_RUNS)

const plan = suite('plan')

plan('at first everything is due, but there is nothing to compare with', () => {
  const decisions = planDue(options(known([], [])))
  assert.is(due(decisions), 'collect export')
  assert.match(reason(decisions, 'full'), 'nothing to compare with')
})

plan('what was just done is not due, and it is said when it will be', () => {
  const decisions = planDue(options(fresh))
  assert.is(due(decisions), '')
  assert.equal(
    decisions.map(({ phase, nextMs }) => [phase, nextMs]),
    [
      ['collect', ms('2026-05-20T233000Z')],
      ['full', ms('2026-05-26T233000Z')],
      ['export', ms('2026-05-26T233000Z')],
    ],
  )
})

plan('a day later collecting is due, a week later all of it', () => {
  assert.is(due(planDue(options(fresh, { nowMs: ms('2026-05-21T010000Z') }))), 'collect')
  const weekLater = planDue(options(fresh, { nowMs: ms('2026-05-27T010000Z') }))
  assert.is(due(weekLater), 'collect full export')
})

plan('comparing content is collecting, too; collecting is not comparing', () => {
  const compared = known([collection(FRESH)], [ran({ stamp: FRESH, phase: 'full' })])
  assert.is(due(planCollects(options(compared))), '')
  const collected = known([collection(FRESH)], [ran({ stamp: FRESH })])
  assert.is(due(planCollects(options(collected))), 'full')
})

plan('without a history, staging says when a set was collected last', () => {
  assert.is(due(planDue(options(known([collection(FRESH)], [])))), 'full export')
  const old = known([collection('2026-05-18T020000Z')], [])
  assert.is(due(planDue(options(old))), 'collect full export')
  const lacking = collection(FRESH, { complete: false })
  const half = known([collection('2026-05-18T020000Z'), lacking], [])
  assert.is(due(planCollects(options(half))), 'collect full', 'an incomplete one does not count')
})

plan('a good run whose collections are all gone is none', () => {
  assert.is(due(planCollects(options(known([], FRESH_RUNS)))), 'collect')
})

plan('a suspect collection is not good until it is accepted', () => {
  const stamp = '2026-05-20T010000Z'
  const doubt = { suspect: [{ path: 'data', why: 'empty' }] }
  const before = collection('2026-05-18T010000Z')
  const history = [ran({ stamp: before.stamp }), ran({ stamp, outcome: 'suspect' })]
  const sets = [home({ full: 'never' })]
  const distrusted = known([before, collection(stamp, doubt)], history)
  const decisions = planDue(options(distrusted, { sets }))
  assert.is(due(decisions), 'collect export', 'a new collection may end the doubt')
  const twice = [...history, ran({ stamp: '2026-05-20T013000Z', outcome: 'suspect' })]
  const again = known([before, collection('2026-05-20T013000Z', doubt)], twice)
  const waiting = planDue(options(again, { sets }))
  assert.is(due(waiting), '', 'no third one at once')
  assert.match(reason(waiting, 'export'), 'backup accept home')
  const accepted = known([before, collection(stamp, { ...doubt, accepted: NOW })], history)
  assert.is(due(planCollects(options(accepted, { sets }))), '')
})

plan('an export waits for a collection that the target does not have', () => {
  const weekAgo = exported('2026-05-10T020000Z')
  const same = known([collection('2026-05-10T020000Z')], [weekAgo])
  const collecting = new Set<string>()
  const none = planExports({ ...options(same), collecting })
  assert.is(due(none), '')
  assert.match(reason(none, 'export'), 'nothing newer is collected')
  assert.is(due(planExports({ ...options(same), collecting: new Set(['home']) })), 'export')
  const newer = known([collection('2026-05-10T020000Z'), collection(FRESH)], [weekAgo])
  assert.is(due(planExports({ ...options(newer), collecting })), 'export')
  const empty = planExports({ ...options(known([], [])), collecting })
  assert.match(reason(empty, 'export'), 'nothing is collected yet')
})

plan('external: always is after every collection, and at no other time', () => {
  const sets = [home({ external: 'always' })]
  const collecting = new Set<string>()
  const there = known([collection(FRESH)], [exported(FRESH)])
  assert.is(due(planExports({ ...options(there, { sets }), collecting })), '')
  const older = known([collection(FRESH)], [exported('2026-05-20T000000Z')])
  assert.is(due(planExports({ ...options(older, { sets }), collecting })), 'export')
})

plan('each set and target has a time of its own', () => {
  const targets = [{ name: 'drive' }, { name: 'nas' }]
  const nas = exported('2026-05-01T020000Z', { target: 'nas' })
  const decisions = planExports({
    ...options(known([collection(FRESH)], [...FRESH_RUNS, nas]), { targets }),
    collecting: new Set(),
  })
  assert.equal(
    decisions.map(({ target, due: isDue }) => [target, isDue]),
    [
      ['drive', false],
      ['nas', true],
    ],
  )
})

plan('manual and never wait for an explicit command or --force', () => {
  const sets = [home({ incremental: 'manual', full: 'never', external: 'manual' })]
  const old = known([collection('2020-05-10T020000Z')], [])
  assert.is(due(planDue(options(old, { sets }))), '')
  assert.is(due(planDue(options(old, { sets, force: true }))), 'collect export')
})

plan('--force does what is not due, and compares content only when that is', () => {
  assert.is(due(planDue(options(fresh, { force: true }))), 'collect export')
  const later = { force: true, nowMs: ms('2026-05-28T010000Z') }
  assert.is(due(planDue(options(fresh, later))), 'collect full export')
})

plan('on battery or metered it waits where the set says so, but not for --force', () => {
  const sets = [home({ onBattery: 'skip', onMetered: 'skip' })]
  const empty = known([collection('2026-05-10T020000Z')], [])
  const battery = { onBattery: true, metered: false }
  const metered = { onBattery: false, metered: true }
  const onBattery = planDue(options(empty, { sets, power: battery }))
  assert.is(due(onBattery), '')
  assert.match(reason(onBattery, 'collect'), 'on battery')
  assert.is(due(planDue(options(empty, { sets, power: metered }))), 'collect full')
  assert.is(due(planDue(options(empty, { power: battery }))), 'collect full export')
  assert.is(due(planDue(options(empty, { power: metered }))), 'collect full export')
  const force = { sets, force: true, power: { onBattery: true, metered: true } }
  assert.is(due(planDue(options(empty, force))), 'collect full export')
})

const standing = suite('standing')

function isHealthy(facts: Known, phase: RunRecord['phase'], now: string, set = home()): boolean {
  const target = phase === 'export' ? 'drive' : undefined
  return judgeStanding({ set, phase, target, known: facts, nowMs: ms(now) }).healthy
}

standing('a good run is late after two periods more than its own', () => {
  assert.ok(isHealthy(fresh, 'collect', '2026-05-23T010000Z'))
  assert.not.ok(isHealthy(fresh, 'collect', '2026-05-23T010001Z'))
  assert.ok(isHealthy(fresh, 'export', '2026-06-10T010000Z'))
  assert.not.ok(isHealthy(fresh, 'export', '2026-06-10T010001Z'))
})

standing('what is never done by itself is never late', () => {
  const set = home({ incremental: 'manual', full: 'never', external: 'manual' })
  for (const phase of ['collect', 'full', 'export'] as const) {
    assert.ok(isHealthy(fresh, phase, '2036-05-20T020000Z', set), phase)
    assert.ok(isHealthy(known([], []), phase, NOW, set), phase)
  }
})

standing('a set without a good collection is not healthy', () => {
  assert.not.ok(isHealthy(known([], []), 'collect', NOW))
})

standing('an export that was never made is late since the oldest collection', () => {
  const facts = known([collection('2026-04-29T020000Z'), collection(FRESH)], [])
  assert.ok(isHealthy(facts, 'export', NOW))
  assert.not.ok(isHealthy(facts, 'export', '2026-05-20T020001Z'))
})

standing('a last run that was not good is not healthy, however good the one before', () => {
  for (const outcome of ['failed', 'incomplete', 'suspect'] as const) {
    const last = ran({ stamp: '2026-05-20T013000Z', outcome })
    assert.not.ok(isHealthy(known([collection(FRESH)], [...FRESH_RUNS, last]), 'collect', NOW))
  }
})

plan.run()
standing.run()
