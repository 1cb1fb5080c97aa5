import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import { suite } from 'uvu'
import {
  SEGMENT_BYTES,
  SINGLE_PIECE_BYTES,
  chunkParameter,
  cutPieces,
  digestBytes,
  digestOf,
} from '../../lib/format/chunker.ts'
import * as assert from '../helpers/assert.ts'
import { randomFrom, randomOfRun } from '../helpers/random.ts'

const chunker = suite('format/chunker')
const MIB = 2 ** 20
const GIB = 2 ** 30

const total = (lengths: readonly number[]): number =>
  lengths.reduce((sum, length) => sum + length, 0)

const gear = Array.from({ length: 256 }, (_, i) =>
  createHash('blake2b512')
    .update(Buffer.from(`gear-${i}`, 'ascii'))
    .digest()
    .readUInt32BE(0),
)

/**
 * docs/format.md §4 word by word: the hash of every byte of the piece, in arithmetic without
 * tricks. Bytes before
 * `minimum - 32` are shifted out by the time anything is looked at, so it may as well run from the
 * piece's start.
 */
function slowCuts(bytes: Buffer, n: number): number[] {
  const average = 2 ** n
  const minimum = average / 4
  const maximum = average * 4
  const lengths: number[] = []
  let length = 0
  let h = 0
  for (const byte of bytes) {
    h = (h * 2 + gear[byte]!) % 2 ** 32
    length += 1
    const offset = length - 1
    const zeroBits = offset < average ? n + 1 : n - 1
    const isCut = offset >= minimum && h < 2 ** (32 - zeroBits)
    if (!isCut && length < maximum) continue
    lengths.push(length)
    length = 0
    h = 0
  }
  return length === 0 ? lengths : [...lengths, length]
}

chunker('the parameter follows the size, at every limit', () => {
  const expected: readonly (readonly [number, number | undefined])[] = [
    [0, undefined],
    [1, undefined],
    [SINGLE_PIECE_BYTES - 1, undefined],
    [SINGLE_PIECE_BYTES, undefined],
    [SINGLE_PIECE_BYTES + 1, 16],
    [GIB - 1, 16],
    [GIB, 16],
    [GIB + 1, 18],
    [16 * GIB - 1, 18],
    [16 * GIB, 18],
    [16 * GIB + 1, 20],
    [2 ** 52, 20],
  ]
  for (const [size, n] of expected) assert.is(chunkParameter(size), n, `${size}`)
  assert.is(SINGLE_PIECE_BYTES, 4 * MIB)
  assert.is(SEGMENT_BYTES, 32 * MIB)
})

chunker('cuts that were made once are made for ever', () => {
  // The AES-256-CTR key stream under SHA-256('chunker vector'): see test/helpers/random.ts.
  const bytes = randomFrom('chunker vector').bytes(4 * MIB)
  assert.is(
    createHash('sha256').update(bytes).digest('hex'),
    STREAM_SHA256,
    'the stream has drifted',
  )
  for (const [n, lengths] of VECTORS) {
    assert.is(total(lengths), 4 * MIB, 'the vector adds up')
    for (const length of lengths.slice(0, -1)) {
      assert.ok(length > 2 ** (n - 2) && length <= 2 ** (n + 2), `${length}`)
    }
    assert.equal(cutPieces(bytes, n), lengths)
  }
})

chunker('every piece has at least the minimum and at most the maximum, and they add up', () => {
  const random = randomOfRun('limits')
  for (const n of [6, 8, 10, 16]) {
    const minimum = 2 ** (n - 2)
    const maximum = 2 ** (n + 2)
    for (const length of [
      0,
      1,
      minimum - 1,
      minimum,
      minimum + 1,
      2 ** n - 1,
      2 ** n,
      2 ** n + 1,
      maximum - 1,
      maximum,
      maximum + 1,
      2 * maximum - 1,
      2 * maximum,
      2 * maximum + 1,
      9 * maximum + 5,
    ]) {
      for (const bytes of [Buffer.alloc(length), Buffer.alloc(length, 255), random.bytes(length)]) {
        const lengths = cutPieces(bytes, n)
        assert.is(total(lengths), length)
        for (const [i, piece] of lengths.entries()) {
          assert.ok(piece > 0 && piece <= maximum, `${n} ${length}: ${piece}`)
          assert.ok(i === lengths.length - 1 || piece > minimum, `${n} ${length}: ${piece}`)
        }
        if (length <= minimum) assert.ok(lengths.length <= 1)
      }
    }
  }
})

chunker('content that never gives a cut is cut at the maximum', () => {
  const lengths = cutPieces(Buffer.alloc(3 * 2 ** 18 + 1), 16)
  assert.equal(lengths, [2 ** 18, 2 ** 18, 2 ** 18, 1])
})

chunker('cuts where a slow reading of the format says, on any content', () => {
  const random = randomOfRun('referee')
  for (let round = 0; round < 60; round++) {
    const n = random.pick([7, 8, 9, 10, 11, 12])
    const length = random.integer(40 * 2 ** n)
    const bytes = random.bytes(length)
    if (round % 3 === 1) bytes.fill(random.integer(256), random.integer(length + 1))
    if (round % 3 === 2) for (let i = 0; i < length; i++) bytes[i]! &= 3
    assert.equal(cutPieces(bytes, n), slowCuts(bytes, n), `n = ${n}, ${length} bytes`)
  }
  for (const n of [16, 18, 20]) {
    const bytes = random.bytes(9 * MIB + random.integer(MIB))
    assert.equal(cutPieces(bytes, n), slowCuts(bytes, n), `n = ${n}`)
  }
})

chunker('pieces have the average size, about', () => {
  const lengths = cutPieces(randomFrom('average').bytes(32 * MIB), 16)
  const average = (32 * MIB) / lengths.length
  assert.ok(average > 0.7 * 2 ** 16 && average < 1.5 * 2 ** 16, `${average}`)
})

chunker('an insertion, a removal and a change spoil their neighbours only', () => {
  const random = randomOfRun('insertion')
  for (let round = 0; round < 12; round++) {
    const n = 12
    const bytes = random.bytes(MIB)
    const at = random.integer(bytes.length)
    const extra = random.bytes(1 + random.integer(300))
    const gone = random.pick([0, 0, 1, 200])
    const inserted = random.pick([extra, extra, Buffer.alloc(0)])
    const edited = Buffer.concat([bytes.subarray(0, at), inserted, bytes.subarray(at + gone)])
    const before = idsOf(bytes, n)
    const after = idsOf(edited, n)
    const known = new Set(before)
    const fresh = after.filter((id) => !known.has(id)).length
    assert.ok(before.length > 150, `${before.length} pieces`)
    assert.ok(fresh <= 12, `${fresh} of ${after.length} pieces are new after an edit at ${at}`)
    const untouched = countBefore(cutPieces(bytes, n), at)
    assert.equal(after.slice(0, untouched), before.slice(0, untouched), 'pieces before the edit')
    if (at < bytes.length * 0.8) assert.is(after.at(-1), before.at(-1), 'the last piece')
  }
})

/** How many pieces end at or before a place. */
function countBefore(lengths: readonly number[], at: number): number {
  let end = 0
  return lengths.filter((length) => (end += length) <= at).length
}

function idsOf(bytes: Buffer, n: number): string[] {
  let start = 0
  return cutPieces(bytes, n).map((length) => digestOf(bytes.subarray(start, (start += length))))
}

chunker('a digest is the first half of BLAKE2b-512', () => {
  // RFC 7693, appendix A.
  assert.is(
    digestOf(Buffer.from('abc')),
    'ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d1',
  )
  assert.is(
    digestOf(Buffer.alloc(0)),
    '786a02f742015903c6c6fd852552d272912f4740e15847618a86e217f71f5419',
  )
  assert.is(digestBytes(Buffer.from('abc')).length, 32)
  const part = Buffer.from('xabcx').subarray(1, 4)
  assert.is(digestOf(part), digestOf(Buffer.from('abc')), 'a view of a larger buffer')
})

const STREAM_SHA256 = 'f365f4e455bb8109feb7d6edcc4f39c010439e45a93e9a636e43bd91df158d8f'

const VECTORS: readonly (readonly [n: number, lengths: readonly number[]])[] = [
  [
    16,
    [
      24104, 42235, 69956, 89201, 71831, 28017, 63424, 17312, 158601, 73032, 19008, 46868, 92804,
      79673, 127406, 74841, 69057, 68629, 127397, 65664, 85043, 17621, 164052, 124735, 88327, 36548,
      64738, 61917, 60566, 35838, 115131, 92698, 105412, 66404, 74272, 66630, 179422, 85153, 105112,
      22190, 109756, 28525, 97813, 23494, 115879, 95260, 44397, 105544, 18814, 62846, 51576, 111279,
      16389, 39854, 32239, 129801, 49969,
    ],
  ],
  [
    18,
    [
      66339, 322429, 267953, 139672, 419606, 278104, 396753, 161185, 96404, 313241, 479447, 97546,
      281778, 255536, 350059, 268252,
    ],
  ],
  [20, [796393, 715331, 1526955, 1155625]],
]

chunker.run()
