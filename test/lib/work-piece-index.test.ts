import { Buffer } from 'node:buffer'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads'
import { suite } from 'uvu'
import { PieceIndex } from '../../lib/work/piece-index.ts'
import * as assert from '../helpers/assert.ts'
import { randomFrom, randomOfRun } from '../helpers/random.ts'

const pieces = suite('work/piece-index')
const ID_BYTES = 32
const SLOT_BYTES = 14 * 4

const idsOf = (seed: string, count: number): Buffer[] => {
  const bytes = randomFrom(seed).bytes(count * ID_BYTES)
  return Array.from({ length: count }, (_, i) => bytes.subarray(i * ID_BYTES, (i + 1) * ID_BYTES))
}

const locationOf = (id: Buffer): { bundle: number; offset: number; length: number } => ({
  bundle: id.readUInt16LE(8),
  offset: id.readUIntLE(10, 6),
  length: id.readUInt32LE(16),
})

pieces("a piece is the first one's who claims it, and known from then on", () => {
  const index = PieceIndex.forPieces(10)
  const [a, b] = idsOf('two', 2)
  assert.is(index.claim(a!), 'mine')
  assert.is(index.claim(a!), 'known')
  assert.is(index.lookup(a!), undefined, 'claimed, and not packed yet')
  assert.is(index.lookup(b!), undefined)
  index.locate(a!, { bundle: 3, offset: 2 ** 50, length: 2 ** 32 - 1 })
  assert.equal(index.lookup(a!), { bundle: 3, offset: 2 ** 50, length: 2 ** 32 - 1 })
  assert.is(index.claim(a!), 'known')
  assert.is(index.claim(b!), 'mine')
})

pieces('the place of a piece never changes, and one that nobody claimed has none', () => {
  const index = PieceIndex.forPieces(10)
  const [a, b] = idsOf('place', 2)
  index.claim(a!)
  index.locate(a!, { bundle: 1, offset: 2, length: 3 })
  index.locate(a!, { bundle: 9, offset: 9, length: 9 })
  assert.equal(index.lookup(a!), { bundle: 1, offset: 2, length: 3 })
  index.locate(b!, { bundle: 1, offset: 2, length: 3 })
  assert.is(index.lookup(b!), undefined)
  assert.is(index.claim(b!), 'mine')
})

pieces('ids that differ in one bit anywhere are different pieces', () => {
  const index = PieceIndex.forPieces(300)
  const id = idsOf('bits', 1)[0]!
  assert.is(index.claim(id), 'mine')
  for (let bit = 0; bit < ID_BYTES * 8; bit++) {
    const other = Buffer.from(id)
    other[bit >> 3]! ^= 1 << (bit & 7)
    assert.is(index.claim(other), 'mine', `bit ${bit}`)
  }
})

pieces('an index has room for what it was made for, and tells of each located piece once', () => {
  for (const count of [0, 1, 2, 1000, 30_000]) {
    const index = PieceIndex.forPieces(count)
    const ids = idsOf(`room ${count}`, count)
    for (const id of ids) assert.is(index.claim(id), 'mine')
    const located = ids.filter((_, i) => i % 3 !== 0)
    for (const id of located) index.locate(id, locationOf(id))
    const seen = new Map<string, unknown>()
    index.forEach((id, location) => {
      assert.not.ok(seen.has(id.toString('hex')), 'told twice')
      seen.set(id.toString('hex'), location)
    })
    assert.is(seen.size, located.length)
    for (const id of located) assert.equal(seen.get(id.toString('hex')), locationOf(id))
    for (const [i, id] of ids.entries()) {
      assert.equal(index.lookup(id), i % 3 === 0 ? undefined : locationOf(id))
    }
  }
})

pieces('an id that forEach gave stays as it was', () => {
  const index = PieceIndex.forPieces(2)
  const kept: Buffer[] = []
  const ids = idsOf('kept', 2)
  for (const id of ids) {
    index.claim(id)
    index.locate(id, locationOf(id))
  }
  index.forEach((id) => kept.push(id))
  assert.equal(
    kept.map((id) => id.toString('hex')).sort(),
    ids.map((id) => id.toString('hex')).sort(),
  )
})

pieces('a full index tells that it is, at once, and keeps what it has', () => {
  for (const slots of [1, 2, 7, 16, 600]) {
    const index = new PieceIndex(new SharedArrayBuffer(slots * SLOT_BYTES))
    const ids = idsOf(`full ${slots}`, slots + 20)
    const claims = ids.map((id) => index.claim(id))
    const mine = ids.filter((_, i) => claims[i] === 'mine')
    if (slots <= 512) assert.is(mine.length, slots)
    else assert.ok(mine.length > 512 && mine.length <= slots)
    assert.ok(claims.every((claim) => claim === 'mine' || claim === 'untracked'))
    for (const [i, id] of ids.entries()) {
      index.locate(id, locationOf(id))
      assert.equal(index.lookup(id), claims[i] === 'mine' ? locationOf(id) : undefined)
      assert.is(index.claim(id), claims[i] === 'mine' ? 'known' : 'untracked')
    }
  }
})

pieces('pieces that all want the same slot are tracked as far as probing goes', () => {
  const index = PieceIndex.forPieces(2000)
  const ids = idsOf('same slot', 520).map((id) => Buffer.concat([Buffer.alloc(8), id.subarray(8)]))
  const claims = ids.map((id) => index.claim(id))
  assert.equal(new Set(claims.slice(0, 512)), new Set(['mine']))
  assert.equal(new Set(claims.slice(512)), new Set(['untracked']))
})

pieces('an index over the same memory is the same index', () => {
  const index = PieceIndex.forPieces(5)
  const id = idsOf('memory', 1)[0]!
  index.claim(id)
  index.locate(id, locationOf(id))
  const other = new PieceIndex(index.memory)
  assert.is(other.claim(id), 'known')
  assert.equal(other.lookup(id), locationOf(id))
})

interface Race {
  readonly memory: SharedArrayBuffer
  readonly gate: SharedArrayBuffer
  readonly ids: Uint8Array
  readonly threads: number
  readonly order: 1 | -1
}

pieces(
  "of several threads that claim the same pieces at once each is one thread's alone",
  async () => {
    const count = 100_000
    const threads = 3
    for (let round = 0; round < 3; round++) {
      const ids = new Uint8Array(randomOfRun(`race ${round}`).bytes(count * ID_BYTES))
      const index = PieceIndex.forPieces(count)
      const gate = new SharedArrayBuffer(4)
      const mine = await Promise.all(
        Array.from({ length: threads }, async (_, i) => {
          const race: Race = { memory: index.memory, gate, ids, threads, order: i === 1 ? -1 : 1 }
          const worker = new Worker(fileURLToPath(import.meta.url), { workerData: race })
          const [[flags]] = await Promise.all([once(worker, 'message'), once(worker, 'exit')])
          return flags as Uint8Array
        }),
      )
      const claimed = mine.map((flags) => flags.reduce((sum, flag) => sum + flag, 0))
      for (let i = 0; i < count; i++) {
        const winners = mine.reduce((sum, flags) => sum + flags[i]!, 0)
        if (winners !== 1) assert.unreachable(`piece ${i} was claimed ${winners} times`)
      }
      assert.is(
        claimed.reduce((a, b) => a + b),
        count,
      )
      assert.ok(
        claimed.filter((part) => part > 0).length > 1,
        `no race took place: ${claimed.join(' ')}`,
      )
      let located = 0
      index.forEach((id, location) => {
        located += 1
        assert.equal(location, locationOf(id))
      })
      assert.is(located, count, 'what each of them located is there for all')
    }
  },
)

/** Claims every id when all threads are ready; sends a flag for each. */
function claimAll({ memory, gate, ids, threads, order }: Race): Uint8Array {
  const index = new PieceIndex(memory)
  const count = ids.length / ID_BYTES
  const flags = new Uint8Array(count)
  const ready = new Int32Array(gate)
  Atomics.add(ready, 0, 1)
  while (Atomics.load(ready, 0) < threads) continue
  for (let i = 0; i < count; i++) {
    const at = order === 1 ? i : count - 1 - i
    const id = Buffer.from(ids.buffer, ids.byteOffset + at * ID_BYTES, ID_BYTES)
    if (index.claim(id) !== 'mine') continue
    flags[at] = 1
    index.locate(id, locationOf(id))
  }
  return flags
}

if (isMainThread) pieces.run()
else parentPort!.postMessage(claimAll(workerData as Race))
