import { suite } from 'uvu'
import {
  planProof,
  type ProofChoice,
  type ProvenBundle,
  provenSince,
} from '../../lib/model/proof-plan.ts'
import * as assert from '../helpers/assert.ts'

const proof = suite('model/proof-plan')

const DAY_MS = 86_400_000
const nowMs = Date.parse('2026-05-01T12:00:00Z')
const ALL: ProofChoice = { kind: 'all' }

function bundle(path: string, change: Partial<ProvenBundle> = {}): ProvenBundle {
  return { path, bytes: 100, provenMs: undefined, isSuspect: false, ...change }
}

const daysAgo = (days: number): number => nowMs - days * DAY_MS

function names(
  bundles: readonly ProvenBundle[],
  choice: ProofChoice,
  limitBytes?: number,
): readonly string[] {
  return planProof(bundles, { choice, limitBytes, nowMs }).map(({ path }) => path)
}

const three = [
  bundle('new', { provenMs: daysAgo(1) }),
  bundle('never'),
  bundle('old', { provenMs: daysAgo(40) }),
]

proof('what was never proven comes first, then the oldest proof', () => {
  assert.equal(names(three, ALL), ['never', 'old', 'new'])
  assert.equal(names([bundle('b'), bundle('a')], ALL), ['a', 'b'], 'always the same order')
  assert.equal(names([], ALL), [])
})

proof('a proof that is dated ahead counts as none', () => {
  const ahead = bundle('ahead', { provenMs: nowMs + 1 })
  assert.equal(names([...three, ahead], ALL), ['ahead', 'never', 'old', 'new'])
  assert.is(provenSince([ahead.provenMs], nowMs), undefined)
})

proof('only what is older is read, to the millisecond', () => {
  const choice: ProofChoice = { kind: 'older', olderThanMs: 30 * DAY_MS }
  assert.equal(names(three, choice), ['never', 'old'])
  const around = [-1, 0, 1].map((ms) => bundle(`${ms}`, { provenMs: daysAgo(30) + ms }))
  assert.equal(names(around, choice), ['-1'])
})

proof('the limit is kept to the byte, but the first bundle is always read', () => {
  assert.equal(names(three, ALL, 199), ['never'])
  assert.equal(names(three, ALL, 200), ['never', 'old'])
  assert.equal(names(three, ALL, 201), ['never', 'old'])
  assert.equal(names(three, ALL, 0), ['never'])
  const large = [bundle('a', { bytes: 1000 }), bundle('b', { bytes: 1, provenMs: daysAgo(1) })]
  assert.equal(names(large, ALL, 10), ['a'], 'what is large has its turn, too')
  const behind = [bundle('a'), bundle('b', { bytes: 1000 }), bundle('c', { bytes: 1 })]
  assert.equal(names(behind, ALL, 200), ['a'], 'nothing overtakes it')
})

proof('what has another length than was signed is read first, whatever the choice', () => {
  const suspect = bundle('suspect', { isSuspect: true, provenMs: daysAgo(0) })
  const choice: ProofChoice = { kind: 'older', olderThanMs: 30 * DAY_MS }
  assert.equal(names([...three, suspect], choice), ['suspect', 'never', 'old'])
})

proof('a sample has its share of the bytes, and another seed draws others', () => {
  const many = Array.from({ length: 200 }, (_, i) => bundle(`${i}`))
  const drawn = (seed: string) => names(many, { kind: 'sample', share: 0.05, seed })
  assert.is(drawn('a').length, 10)
  assert.equal(drawn('a'), drawn('a'))
  assert.not.equal([...drawn('a')].sort(), [...drawn('b')].sort())
  assert.is(names(three, { kind: 'sample', share: 0.001, seed: 'a' }).length, 1, 'one at least')
  assert.is(names(three, { kind: 'sample', share: 1, seed: 'a' }).length, 3)
})

proof('everything was proven since the oldest proof, or never', () => {
  assert.is(provenSince([daysAgo(1), daysAgo(40), daysAgo(3)], nowMs), daysAgo(40))
  assert.is(provenSince([daysAgo(1), undefined], nowMs), undefined)
  assert.is(provenSince([], nowMs), nowMs)
})

proof('budgets in a row prove everything once before anything is read twice', () => {
  const proven = new Map<string, number>()
  const paths = ['a', 'b', 'c', 'd', 'e']
  const read: string[] = []
  for (let run = 0; run < 5; run++) {
    const bundles = paths.map((path) => bundle(path, { provenMs: proven.get(path) }))
    for (const path of names(bundles, ALL, 200)) {
      read.push(path)
      proven.set(path, nowMs - 1000 + read.length)
    }
  }
  assert.equal(read.slice(0, 5), paths)
  assert.equal(read.slice(5), ['a', 'b', 'c', 'd', 'e'])
})

proof.run()
