import { createHash } from 'node:crypto'
import { suite } from 'uvu'
import {
  type SampleItem,
  RUN_BYTES,
  chooseSample,
  cutRuns,
  drillSeed,
  sampleShare,
} from '../../lib/model/drill.ts'
import type { Piece } from '../../lib/model/entry.ts'
import * as assert from '../helpers/assert.ts'
import { randomOfRun } from '../helpers/random.ts'

const drill = suite('model/drill')

const DAY_MS = 86_400_000
const nowMs = Date.UTC(2026, 4, 1, 23, 59)
const items: readonly SampleItem[] = Array.from({ length: 300 }, (_, i) => {
  return { key: `file ${i}`, bytes: (i * 7919) % 1000 }
})
const NO_LIMIT = { limitBytes: Infinity, minItems: 0, maxItems: Infinity }

drill('the share grows by a percent a day, from one to twenty-five', () => {
  const after = (days: number) => sampleShare({ nowMs, lastFullMs: nowMs - days * DAY_MS })
  assert.is(after(0), 0.01)
  assert.is(after(3).toFixed(6), '0.040000')
  assert.ok(after(23.9) < 0.25)
  assert.is(after(24), 0.25)
  assert.is(after(10_000), 0.25)
  assert.is(after(-5), 0.01, 'a clock that was set back')
  assert.is(sampleShare({ nowMs, lastFullMs: undefined }), 0.25)
})

drill('the seed is the same all day, and another one the next', () => {
  const repository = 'ab'.repeat(16)
  const seed = drillSeed({ repository, nowMs })
  assert.is(seed, `${repository}/2026-05-01`)
  assert.is(drillSeed({ repository, nowMs: Date.UTC(2026, 4, 1) }), seed)
  assert.is.not(drillSeed({ repository, nowMs: nowMs + 60_000 }), seed)
})

drill('a sample is the start of the order of SHA-256, however the items come', () => {
  const expected = items
    .map(({ key }) => ({ key, hex: createHash('sha256').update(`s/${key}`).digest('hex') }))
    .sort((a, b) => (a.hex < b.hex ? -1 : 1))
    .map(({ key }) => key)
  const limits = { seed: 's', ...NO_LIMIT, maxItems: 40 }
  const keys = chooseSample(items, limits).map(({ key }) => key)
  assert.equal(keys, expected.slice(0, 40))
  assert.equal(chooseSample([...items].reverse(), limits), chooseSample(items, limits))
  assert.not.equal(chooseSample(items, { ...limits, seed: 't' }), chooseSample(items, limits))
})

drill('bytes, at least and at most so many items end it', () => {
  const even = items.map(({ key }) => ({ key, bytes: 10 }))
  const count = (limits: Partial<typeof NO_LIMIT>) =>
    chooseSample(even, { seed: 's', ...NO_LIMIT, ...limits }).length
  assert.is(count({ limitBytes: 99 }), 10)
  assert.is(count({ limitBytes: 100 }), 10)
  assert.is(count({ limitBytes: 101 }), 11)
  assert.is(count({ limitBytes: 0 }), 0)
  assert.is(count({ limitBytes: 0, minItems: 10 }), 10)
  assert.is(count({ maxItems: 12 }), 12)
  assert.is(count({}), even.length)
  assert.equal(chooseSample([], { seed: 's', ...NO_LIMIT, minItems: 10 }), [])
})

drill('a sample of samples is the sample of all', () => {
  const random = randomOfRun('sample of samples')
  for (let round = 0; round < 50; round++) {
    const limits = {
      seed: `round ${round}`,
      limitBytes: random.integer(30_000),
      minItems: random.integer(20),
      maxItems: 20 + random.integer(100),
    }
    let sample: readonly SampleItem[] = []
    for (let at = 0; at < items.length;) {
      const end = at + 1 + random.integer(60)
      sample = chooseSample([...sample, ...items.slice(at, end)], limits)
      at = end
    }
    assert.equal(sample, chooseSample(items, limits))
  }
})

drill('a heavy item is no likelier than a light one', () => {
  const mixed = items.map(({ key }, i) => ({ key, bytes: i < 10 ? 1000 : 10 }))
  const drawn = new Map<string, number>()
  for (let seed = 0; seed < 2000; seed++) {
    const limits = { seed: String(seed), limitBytes: 3000, minItems: 0, maxItems: Infinity }
    for (const { key } of chooseSample(mixed, limits)) drawn.set(key, (drawn.get(key) ?? 0) + 1)
  }
  const mean = (keys: readonly SampleItem[]) =>
    keys.reduce((sum, { key }) => sum + (drawn.get(key) ?? 0), 0) / keys.length
  const ratio = mean(mixed.slice(0, 10)) / mean(mixed.slice(10))
  assert.ok(ratio > 0.9 && ratio < 1.1, `${ratio}`)
})

drill('long files are cut into runs, short ones are one', () => {
  const of = (...lengths: number[]): Piece[] => lengths.map((length) => ['id', 0, 0, length])
  const third = RUN_BYTES / 4
  assert.equal(cutRuns([]), [])
  assert.equal(cutRuns(of(1)), [[0, 1]])
  assert.equal(cutRuns(of(RUN_BYTES - 1, 1)), [[0, 2]])
  assert.equal(cutRuns(of(RUN_BYTES, 1)), [
    [0, 1],
    [1, 2],
  ])
  assert.equal(cutRuns(of(third, third, third, third, third)), [
    [0, 4],
    [4, 5],
  ])
})

drill.run()
