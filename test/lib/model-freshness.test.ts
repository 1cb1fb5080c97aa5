import { Buffer } from 'node:buffer'
import { suite } from 'uvu'
import type { BackupError } from '../../lib/errors.ts'
import {
  encodeFreshness,
  fleetExitCode,
  type FleetMachine,
  type Freshness,
  judgeMachine,
  type ListedSet,
  type MachineFacts,
  nextExportMs,
  parseFreshness,
  type SetFreshness,
} from '../../lib/model/freshness.ts'
import { formatStamp } from '../../lib/model/stamp.ts'
import * as assert from '../helpers/assert.ts'

process.env['TZ'] = 'UTC'

const records = suite('model/freshness: records')
const verdicts = suite('model/freshness: verdicts')

const NOW_MS = Date.parse('2026-05-20T02:00:00Z')
const DAY_MS = 86_400_000
const ID = '0123456789abcdef0123456789abcdef'
const at = (daysAgo: number): string => formatStamp(NOW_MS - daysAgo * DAY_MS)

function setOf(change: Partial<SetFreshness> = {}): SetFreshness {
  return {
    stamp: at(1),
    complete: true,
    exports: 2,
    bytes: 1000,
    nextExpected: at(0),
    verified: { stamp: at(3), how: 'checksums', result: 'good' },
    ...change,
  }
}

function recordOf(change: Partial<Freshness> = {}): Freshness {
  return {
    machine: 'laptop',
    repository: ID,
    written: at(1),
    nextExpected: at(0),
    sets: new Map([['home', setOf()]]),
    ...change,
  }
}

function judged(change: Partial<MachineFacts> = {}): FleetMachine {
  const listed = new Map<string, ListedSet>([['home', { stamps: [at(2), at(1)], bytes: 1000 }]])
  return judgeMachine({
    machine: 'laptop',
    record: recordOf(),
    key: 'trusted',
    listed,
    problems: [],
    nowMs: NOW_MS,
    ...change,
  })
}

const codes = ({ problems }: FleetMachine): string[] => problems.map(({ code }) => code)

function refusal(text: string): BackupError {
  try {
    parseFreshness(Buffer.from(text))
  } catch (error) {
    return error as BackupError
  }
  throw new Error(`it was taken: ${text}`)
}

records('what was encoded is parsed as it was, whatever is not known', () => {
  const bare = { complete: undefined, nextExpected: undefined, verified: undefined }
  for (const record of [
    recordOf(),
    recordOf({ sets: new Map() }),
    recordOf({ nextExpected: undefined, sets: new Map([['a', setOf(bare)]]) }),
    recordOf({ sets: new Map([['a', setOf({ complete: false })]]) }),
  ]) {
    assert.equal(parseFreshness(encodeFreshness(record)), record)
  }
})

records('a property that a later version added is passed over', () => {
  const text = encodeFreshness(recordOf()).toString().replace('"format":1', '"format":1,"more":[]')
  assert.equal(parseFreshness(Buffer.from(text)), recordOf())
})

records('a newer format is told as such', () => {
  const text = encodeFreshness(recordOf()).toString().replace('"format":1', '"format":2')
  assert.is(refusal(text).code, 'TARGET_FORMAT')
})

records('whatever is no record is refused', () => {
  const text = encodeFreshness(recordOf()).toString()
  for (const [from, to] of [
    [/.*/s, 'null'],
    [/.*/s, ''],
    [/.*/s, '[]'],
    ['"format":1', '"format":0'],
    ['"laptop"', '"../laptop"'],
    ['"laptop"', '7'],
    [ID, 'short'],
    ['"home"', '"con"'],
    ['"exports":2', '"exports":-1'],
    ['"bytes":1000', '"bytes":"1000"'],
    ['"bytes":1000', '"bytes":1e30'],
    ['"checksums"', '"hearsay"'],
    ['"good"', '"fine"'],
    [at(3), 'yesterday'],
    [at(0), '2026-02-31T000000Z'],
  ] as const) {
    assert.is(refusal(text.replace(from, to)).code, 'SIGNATURE_WRONG', `${from} → ${to}`)
  }
})

records('the slower of two frequencies counts, and none where no clock decides', () => {
  const next = (
    incremental: 'daily' | 'always' | 'monthly',
    external: 'weekly' | 'manual' | 'always',
  ) => nextExportMs({ schedule: { incremental, external }, startMs: NOW_MS })
  assert.is(next('daily', 'weekly'), NOW_MS + 7 * DAY_MS)
  assert.is(next('monthly', 'weekly'), NOW_MS + 31 * DAY_MS)
  assert.is(next('always', 'weekly'), NOW_MS + 7 * DAY_MS)
  assert.is(next('always', 'always'), undefined)
  assert.is(next('daily', 'manual'), undefined)
})

verdicts('a machine that reports in time is fresh, and nothing is wrong', () => {
  const machine = judged()
  assert.is(machine.standing, 'fresh')
  assert.equal(codes(machine), [])
  assert.is(fleetExitCode([machine]), 0)
  assert.is(machine.sets[0]?.ageSeconds, 86_400)
})

verdicts('it is silent once its report is late by more than two periods, not before', () => {
  // Written a day before it was due again, so the limit is two days after that.
  const limitMs = NOW_MS + 2 * DAY_MS
  assert.is(judged({ nowMs: limitMs - 1000 }).standing, 'fresh')
  assert.is(judged({ nowMs: limitMs }).standing, 'fresh')
  const silent = judged({ nowMs: limitMs + 1000 })
  assert.is(silent.standing, 'silent')
  assert.equal(codes(silent), ['SILENT', 'LATE'])
  assert.is(fleetExitCode([judged(), silent]), 3)
})

verdicts('it is late where it reports but a set is behind', () => {
  const behind = setOf({ stamp: at(4), nextExpected: at(3) })
  const listed = new Map([['home', { stamps: [at(5), at(4)], bytes: 1 }]])
  const late = judged({ record: recordOf({ sets: new Map([['home', behind]]) }), listed })
  assert.is(late.standing, 'late')
  assert.equal(codes(late), ['LATE'])
  const inTime = setOf({ stamp: at(4), nextExpected: undefined })
  const manual = judged({ record: recordOf({ sets: new Map([['home', inTime]]) }), listed })
  assert.is(manual.standing, 'fresh', 'without a schedule nothing is late')
})

verdicts('an export that is claimed and not there is an alarm', () => {
  for (const listed of [
    new Map<string, ListedSet>(),
    new Map([['home', { stamps: [at(2)], bytes: 1 }]]),
    new Map([['home', { stamps: [at(0)], bytes: 1 }]]),
    new Map([['other', { stamps: [at(1)], bytes: 1 }]]),
  ]) {
    const machine = judged({ listed })
    assert.is(codes(machine)[0], 'CLAIM_WRONG')
    assert.is(fleetExitCode([machine]), 13)
  }
})

verdicts('what is listed makes nothing fresh: the age is the signed one', () => {
  const listed = new Map([
    ['home', { stamps: [at(2), at(1), at(0)], bytes: 1 }],
    ['new', { stamps: [at(0)], bytes: 1 }],
  ])
  const machine = judged({ listed })
  assert.equal(codes(machine), ['NEWER_EXPORT', 'NEWER_EXPORT'])
  assert.is(fleetExitCode([machine]), 0)
  assert.is(machine.sets[0]?.newest, at(1))
  assert.is(judged({ listed, nowMs: NOW_MS + 3 * DAY_MS }).standing, 'silent')
})

verdicts('fewer exports than were claimed are told, newer ones do not make up for them', () => {
  const listed = new Map([['home', { stamps: [at(1), at(0)], bytes: 1 }]])
  const machine = judged({ listed })
  assert.equal(codes(machine).sort(), ['FEWER_EXPORTS', 'NEWER_EXPORT'])
  assert.is(fleetExitCode([machine]), 0)
})

verdicts('incomplete needs somebody, damaged is bad', () => {
  const incomplete = judged({
    record: recordOf({ sets: new Map([['home', setOf({ complete: false })]]) }),
  })
  assert.equal(codes(incomplete), ['INCOMPLETE'])
  assert.is(fleetExitCode([incomplete]), 3)
  const verified = { stamp: at(3), how: 'restored', result: 'damaged' } as const
  const damaged = judged({ record: recordOf({ sets: new Map([['home', setOf({ verified })]]) }) })
  assert.equal(codes(damaged), ['PROOF_DAMAGED'])
  assert.is(fleetExitCode([incomplete, damaged]), 13)
})

verdicts('a record from the future is no proof of freshness', () => {
  const machine = judged({ record: recordOf({ written: at(-1) }) })
  assert.is(machine.standing, 'unknown')
  assert.ok(codes(machine).includes('RECORD_AHEAD'))
  assert.is(fleetExitCode([machine]), 3)
})

verdicts('without a record there is only what is listed, and that is said', () => {
  const machine = judged({ record: undefined, key: undefined })
  assert.is(machine.standing, 'unknown')
  assert.equal(codes(machine), ['RECORD_MISSING'])
  assert.is(machine.sets[0]?.newest, at(1))
  assert.is(machine.sets[0]?.complete, undefined)
  assert.is(fleetExitCode([machine]), 3)
})

verdicts('a key that only the repository vouches for is told, and no alarm', () => {
  const machine = judged({ key: 'untrusted' })
  assert.equal(codes(machine), ['KEY_UNTRUSTED'])
  assert.is(fleetExitCode([machine]), 0)
})

records.run()
verdicts.run()
