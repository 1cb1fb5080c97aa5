import { Buffer } from 'node:buffer'
import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { END_OF_ARCHIVE, encodePlainHeader, tarPadding } from '../../lib/format/tar.ts'
import {
  FRAME_MAX_BYTES,
  FRAME_TARGET_BYTES,
  FrameCompressor,
  type SeekEntry,
  compressFrame,
  compressedBound,
  decompressFrame,
  decompressFrameInto,
  encodeTrailer,
  frameChecksum,
  frameLength,
  padmeLength,
  parseSeekTable,
} from '../../lib/format/zstd-frames.ts'
import * as assert from '../helpers/assert.ts'
import { randomFrom, randomOfRun } from '../helpers/random.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const frames = suite('format/zstd-frames')
const directory = tempDirectory()
const PADDING_MAGIC = 0x184d2a50
const TABLE_MAGIC = 0x184d2a5e

const KINDS: Readonly<Record<string, (length: number) => Buffer>> = {
  zeros: (length) => Buffer.alloc(length),
  random: (length) => randomFrom('zstd frames').bytes(length),
  text: (length) => Buffer.alloc(length, 'the quick brown fox jumps over 13 lazy dogs; '),
  mixed: (length) => Buffer.alloc(length, randomFrom('zstd frames').bytes(3000)),
}

const SIZES = [
  0,
  1,
  2,
  255,
  256,
  257,
  511,
  512,
  513,
  65_535,
  65_536,
  65_537,
  FRAME_TARGET_BYTES - 1,
  FRAME_TARGET_BYTES,
  FRAME_TARGET_BYTES + 1,
  FRAME_MAX_BYTES - 1,
  FRAME_MAX_BYTES,
]

const refuses = (action: () => unknown, message?: RegExp): void => {
  assert.throws(
    action,
    (error: unknown) =>
      error instanceof BackupError
      && error.code === 'ZSTD_DAMAGED'
      && (message === undefined || message.test(error.message)),
  )
}

const seekEntry = (frame: Buffer, tarBytes: number): SeekEntry => ({
  compressedBytes: frame.length,
  tarBytes,
  checksum: frameChecksum(frame),
})

/** A payload as a bundle has it, and what is in it. */
function payloadOf(parts: readonly Buffer[]): {
  payload: Buffer
  seek: SeekEntry[]
  dataBytes: number
} {
  const data = parts.map((part) => compressFrame(part, 3))
  const seek = data.map((frame, i) => seekEntry(frame, parts[i]!.length))
  const payload = Buffer.concat([...data, encodeTrailer(seek)])
  return { payload, seek, dataBytes: data.reduce((sum, { length }) => sum + length, 0) }
}

function fileOf(name: string, bytes: Buffer): string {
  const path = join(directory, name)
  writeFileSync(path, bytes)
  return path
}

const run = (program: string, words: readonly string[]): Buffer =>
  execFileSync(program, words, { maxBuffer: 2 ** 27, stdio: ['ignore', 'pipe', 'pipe'] })

frames('what was compressed comes back, at every size around a limit', () => {
  for (const [kind, make] of Object.entries(KINDS)) {
    for (const size of SIZES) {
      const bytes = make(size)
      const frame = compressFrame(bytes, 3)
      assert.ok(frame.length <= compressedBound(size), `${kind} ${size}`)
      assert.ok(decompressFrame(frame, size).equals(bytes), `${kind} ${size}`)
      assert.is(frameLength(frame), frame.length)
      if (size > 0) refuses(() => decompressFrame(frame, size - 1), /declares/)
    }
  }
})

frames('a compressor that was used before gives the same bytes as a new one', () => {
  const used = new FrameCompressor(3)
  const out = Buffer.alloc(compressedBound(300_000))
  for (const kind of ['random', 'text', 'random', 'mixed', 'zeros', 'text']) {
    const bytes = KINDS[kind]!(300_000)
    const length = used.compress({ bytes, out })
    assert.ok(out.subarray(0, length).equals(compressFrame(bytes, 3)), kind)
  }
})

frames('content without any pattern costs next to nothing more than itself', () => {
  const frame = compressFrame(KINDS['random']!(FRAME_MAX_BYTES), 19)
  assert.ok(frame.length <= FRAME_MAX_BYTES + 512, `${frame.length}`)
})

frames('content with a pattern is not taken for incompressible', () => {
  assert.ok(compressFrame(KINDS['text']!(FRAME_MAX_BYTES), 3).length < FRAME_MAX_BYTES / 100)
  const half = Buffer.concat([KINDS['random']!(1 << 20), KINDS['text']!(1 << 20)])
  assert.ok(compressFrame(half, 3).length < (1 << 20) + 4096)
})

frames('every frame says its size and ends in the checksum of its content', () => {
  // Frame_Header_Descriptor: the top two bits or the single-segment bit mean a size, bit 2 a
  // checksum.
  for (const size of SIZES) {
    const frame = compressFrame(KINDS['text']!(size), 3)
    const descriptor = frame[4]!
    assert.ok((descriptor & 0b1110_0000) !== 0, `${size} has no size`)
    assert.is(descriptor & 0b100, 0b100, `${size} has no checksum`)
  }
  assert.is(frameChecksum(compressFrame(Buffer.alloc(0), 3)), 0x51d8e999)
})

frames('a byte that is turned in a frame is noticed', () => {
  const random = randomOfRun('turned')
  const bytes = KINDS['mixed']!(20_000)
  const frame = compressFrame(bytes, 3)
  for (let round = 0; round < 400; round++) {
    const bad = Buffer.from(frame)
    const at = round < 12 ? round : random.integer(frame.length)
    bad[at]! ^= 1 << random.integer(8)
    let out: Buffer
    try {
      out = decompressFrame(bad, FRAME_MAX_BYTES)
    } catch (error) {
      assert.ok(error instanceof BackupError && error.code === 'ZSTD_DAMAGED', String(error))
      continue
    }
    // Some bits of a header mean nothing; then the content has to be right.
    assert.ok(out.equals(bytes), `a turned bit in byte ${at} went by`)
  }
})

frames('refuses a frame that is cut short anywhere', () => {
  const frame = compressFrame(KINDS['mixed']!(5000), 3)
  for (let length = 0; length < frame.length; length++) {
    refuses(() => decompressFrame(frame.subarray(0, length), 5000))
    refuses(() => frameLength(frame.subarray(0, length)))
  }
})

frames('refuses a frame that lies about its size', () => {
  const frame = compressFrame(Buffer.alloc(1000, 'x'), 3)
  assert.is(frame.readUInt16LE(5), 1000 - 256, 'the size of a small frame is where we think')
  for (const claimed of [256, 999, 1001, 2000, 65_535 + 256]) {
    const lie = Buffer.from(frame)
    lie.writeUInt16LE(claimed - 256, 5)
    refuses(() => decompressFrame(lie, FRAME_MAX_BYTES))
    refuses(() => decompressFrameInto({ frame: lie, out: Buffer.alloc(claimed) }))
  }
  for (const out of [0, 1, 999, 1001, 5000]) {
    refuses(() => decompressFrameInto({ frame, out: Buffer.alloc(out) }))
  }
})

frames('refuses a frame that claims more than is allowed before it makes room for it', () => {
  // Single segment, eight bytes of size, one empty last block.
  for (const size of [2n ** 23n, 2n ** 40n, 2n ** 62n, 2n ** 64n - 1n, 2n ** 64n - 2n]) {
    const lie = Buffer.alloc(16)
    lie.writeUInt32LE(0xfd2fb528, 0)
    lie[4] = 0b1110_0000
    lie.writeBigUInt64LE(size, 5)
    lie[13] = 1
    refuses(() => decompressFrame(lie, FRAME_MAX_BYTES))
  }
})

frames('refuses a frame that does not say its size', () => {
  const streamed = execFileSync('sh', ['-c', 'printf hello | zstd -qc'])
  refuses(() => decompressFrame(streamed, FRAME_MAX_BYTES), /does not declare/)
})

frames('refuses more than one frame, and garbage behind one', () => {
  const frame = compressFrame(Buffer.from('hello'), 3)
  refuses(() => decompressFrame(Buffer.concat([frame, frame]), FRAME_MAX_BYTES))
  refuses(() => decompressFrame(Buffer.concat([frame, Buffer.from('garbage')]), FRAME_MAX_BYTES))
  refuses(() => decompressFrame(Buffer.from('no frame at all'), FRAME_MAX_BYTES))
  refuses(() => decompressFrame(Buffer.alloc(0), FRAME_MAX_BYTES))
})

frames('the length of a frame is that of the first one', () => {
  const { payload, seek } = payloadOf([KINDS['text']!(700), KINDS['random']!(1), Buffer.alloc(0)])
  let at = 0
  for (const { compressedBytes } of seek) {
    assert.is(frameLength(payload.subarray(at)), compressedBytes)
    at += compressedBytes
  }
  const paddingBytes = frameLength(payload.subarray(at))
  assert.is(payload.readUInt32LE(at), PADDING_MAGIC)
  assert.is(payload.readUInt32LE(at + paddingBytes), TABLE_MAGIC)
  assert.is(at + paddingBytes + frameLength(payload.subarray(at + paddingBytes)), payload.length)
})

frames('a Padmé length is what the paper says', () => {
  // E = 3, S = 2: multiples of 2; E = 9, S = 4: of 32; E = 20, S = 5: of 32 KiB.
  const known: readonly (readonly [number, number])[] = [
    [0, 0],
    [1, 1],
    [2, 2],
    [3, 3],
    [4, 4],
    [5, 5],
    [7, 7],
    [8, 8],
    [9, 10],
    [10, 10],
    [11, 12],
    [15, 16],
    [16, 16],
    [17, 18],
    [31, 32],
    [33, 36],
    [512, 512],
    [513, 544],
    [1023, 1024],
    [2 ** 20 + 1, 2 ** 20 + 2 ** 15],
    [2 ** 32 - 1, 2 ** 32],
  ]
  for (const [length, padded] of known) assert.is(padmeLength(length), padded, `${length}`)
})

frames('Padmé lengths agree with whole-number arithmetic, and cost at most 12 %', () => {
  const bits = (value: bigint): number => value.toString(2).length
  const slow = (length: number): number => {
    if (length < 2) return length
    const exponent = bits(BigInt(length)) - 1
    const cleared = BigInt(Math.max(0, exponent - bits(BigInt(exponent))))
    const mask = (1n << cleared) - 1n
    return Number((BigInt(length) + mask) & ~mask)
  }
  const random = randomOfRun('padme')
  const lengths = Array.from({ length: 5000 }, (_, i) => i)
  for (let k = 12; k <= 33; k++) lengths.push(2 ** k - 1, 2 ** k, 2 ** k + 1)
  for (let i = 0; i < 5000; i++) lengths.push(random.integer(2 ** (4 + random.integer(29))))
  for (const length of lengths) {
    const padded = padmeLength(length)
    assert.is(padded, slow(length), `${length}`)
    assert.is(padmeLength(padded), padded, `${length}: padded twice`)
    assert.ok(padded >= length && padded <= length * 1.12, `${length} became ${padded}`)
  }
})

frames('a payload has a Padmé length whatever is in it, and at most 12 % of it is padding', () => {
  const random = randomOfRun('payload')
  for (let round = 0; round < 500; round++) {
    const count = random.pick([0, 1, 2, 3, 10, 100, 1000])
    const seek = Array.from({ length: count }, () => ({
      compressedBytes: 9 + random.integer(2 ** (4 + random.integer(19))),
      tarBytes: 1,
      checksum: 7,
    }))
    const dataBytes = seek.reduce((sum, { compressedBytes }) => sum + compressedBytes, 0)
    const total = dataBytes + encodeTrailer(seek).length
    const least = dataBytes + 8 + 8 + 12 * (count + 1) + 9
    assert.is(padmeLength(total), total, `${count} frames of ${dataBytes} bytes`)
    assert.ok(total >= least && total <= least * 1.12, `${least} became ${total}`)
  }
})

frames('the trailer is zeros in a skippable frame, then the table, byte by byte', () => {
  const seek = [{ compressedBytes: 70_000, tarBytes: 100_000, checksum: 0x01020304 }]
  const trailer = encodeTrailer(seek)
  // 70,000 + 8 + 8 + 24 + 9 = 70,049: E = 16, S = 5, a multiple of 2,048: 71,680.
  assert.is(trailer.length, 71_680 - 70_000)
  const padding = trailer.length - 41
  assert.is(trailer.subarray(0, 8).toString('hex'), '502a4d18' + hex32(padding - 8))
  assert.ok(trailer.subarray(8, padding).equals(Buffer.alloc(padding - 8)))
  assert.is(
    trailer.subarray(padding).toString('hex'),
    [
      '5e2a4d18',
      hex32(33),
      hex32(70_000),
      hex32(100_000),
      hex32(0x01020304),
      hex32(padding),
      hex32(0),
      hex32(0x51d8e999),
      hex32(2),
      '80',
      'b1ea928f',
    ].join(''),
  )
})

function hex32(value: number): string {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(value)
  return bytes.toString('hex')
}

frames('a seek table is found at the end of whatever stands before it', () => {
  const { payload, seek, dataBytes } = payloadOf([KINDS['text']!(5000), KINDS['random']!(5000)])
  const tableBytes = 8 + 12 * 3 + 9
  for (const extra of [0, 1, 100, payload.length - tableBytes]) {
    const table = parseSeekTable(payload.subarray(payload.length - tableBytes - extra))
    assert.ok(table !== 'short')
    assert.is(table.tableBytes, tableBytes)
    assert.equal(table.entries.slice(0, 2), seek)
    const padding = payload.length - tableBytes - dataBytes
    assert.equal(table.entries[2], { compressedBytes: padding, tarBytes: 0, checksum: 0x51d8e999 })
  }
  for (let length = 0; length < tableBytes; length++) {
    assert.is(parseSeekTable(payload.subarray(payload.length - length)), 'short', `${length}`)
  }
})

frames('refuses a seek table whose frame, flags or magic is damaged', () => {
  const { payload } = payloadOf([KINDS['text']!(5000), KINDS['random']!(5000)])
  const table = payload.subarray(payload.length - (8 + 12 * 3 + 9))
  const entriesEnd = 8 + 12 * 3
  for (let at = 0; at < table.length; at++) {
    for (const bit of [1, 128]) {
      const bad = Buffer.from(table)
      bad[at]! ^= bit
      if (at >= 8 && at < entriesEnd) {
        const parsed = parseSeekTable(bad)
        assert.ok(parsed !== 'short' && parsed.entries.length === 3)
      } else if (at >= entriesEnd && at < entriesEnd + 4) {
        // Another number of entries: more than there are, or a table that begins elsewhere.
        let parsed: unknown
        try {
          parsed = parseSeekTable(bad)
        } catch (error) {
          parsed = error instanceof BackupError && error.code === 'ZSTD_DAMAGED' ? 'short' : error
        }
        assert.is(parsed, 'short', `byte ${at}`)
      } else {
        refuses(() => parseSeekTable(bad))
      }
    }
  }
  refuses(() => parseSeekTable(Buffer.alloc(100)), /no seek table/)
})

frames(
  'a seek table that claims four billion frames asks for more bytes and allocates none',
  () => {
    const { payload } = payloadOf([KINDS['text']!(5000)])
    payload.writeUInt32LE(0xffffffff, payload.length - 9)
    assert.is(parseSeekTable(payload), 'short')
  },
)

frames('stock zstd lists, tests and decompresses a payload', () => {
  const parts = [
    KINDS['random']!(100_000),
    KINDS['text']!(FRAME_MAX_BYTES),
    Buffer.from('x'),
    KINDS['zeros']!(70_000),
  ]
  const { payload } = payloadOf(parts)
  const path = fileOf('payload.zst', payload)
  run('zstd', ['-q', '-t', path])
  assert.ok(run('zstd', ['-dc', path]).equals(Buffer.concat(parts)))
  const [, line = ''] = run('zstd', ['-l', path]).toString().trim().split('\n')
  // Frames, of these to be skipped.
  assert.match(line, /^ *6 +2 /)
})

frames('stock zstd needs no option for the highest level', () => {
  const bytes = KINDS['mixed']!(FRAME_MAX_BYTES)
  const path = fileOf('level19.zst', compressFrame(bytes, 19))
  assert.ok(run('zstd', ['-dc', '-M5MiB', path]).equals(bytes))
})

frames('bsdtar and tar read a payload as it is', () => {
  const content = KINDS['text']!(300_001)
  const tar = [
    encodePlainHeader({ path: 'a/file', sizeBytes: content.length }),
    content,
    Buffer.alloc(tarPadding(content.length)),
    encodePlainHeader({ path: 'b', sizeBytes: 0 }),
    END_OF_ARCHIVE,
  ]
  const { payload } = payloadOf(tar.filter(({ length }) => length > 0))
  const path = fileOf('payload.tar.zst', payload)
  for (const program of ['bsdtar', 'tar']) {
    assert.is(run(program, ['-tf', path]).toString(), 'a/file\nb\n', program)
    assert.ok(run(program, ['-xOf', path, 'a/file']).equals(content), program)
  }
})

frames.run()
