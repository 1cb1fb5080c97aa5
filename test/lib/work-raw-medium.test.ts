// What is read of a medium that fails here and there, and what a chunk says of where it lies.

import { Buffer } from 'node:buffer'
import fs, { readFileSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { encryptAge, peekChunk } from '../../lib/format/age.ts'
import { generateIdentity, recipientOf } from '../../lib/format/age-keys.ts'
import { compressFrame, encodeTrailer, frameChecksum } from '../../lib/format/zstd-frames.ts'
import { rawAddress, rawPlace, shownPath } from '../../lib/work/bundle-address.ts'
import { openSource } from '../../lib/work/bundle-source.ts'
import { blockBytesOf, followRawFile, gapsOf, mapRawFile } from '../../lib/work/raw-extents.ts'
import { isFound, lookAtFile } from '../../lib/work/recover-scan.ts'
import { Medium, findBeginnings } from '../../lib/work/raw-medium.ts'
import * as assert from '../helpers/assert.ts'
import { failureOf } from '../helpers/failure.ts'
import { withFaults, withFaultsUntil } from '../helpers/node-faults.ts'
import { randomFrom } from '../helpers/random.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const raw = suite('work/raw-medium')
const random = randomFrom('raw medium')
const identity = generateIdentity()
const identities = [identity]
const MIB = 1024 * 1024
const BLOCK = 4096
let made = 0

function mediumOf(...parts: readonly Buffer[]): Medium {
  made += 1
  const path = `${tempDirectory()}/${made}`
  writeFileSync(path, Buffer.concat(parts))
  return new Medium(path)
}

/** An age file as all of ours are: frames, padding, seek table. */
function fileOf(bytes: number): Buffer {
  const frames: Buffer[] = []
  const table = []
  for (let left = bytes; left > 0; left -= MIB) {
    const tar = random.bytes(Math.min(left, MIB))
    const frame = compressFrame(tar, 1)
    frames.push(frame)
    const checksum = frameChecksum(frame)
    table.push({ compressedBytes: frame.length, tarBytes: tar.length, checksum })
  }
  const payload = Buffer.concat([...frames, encodeTrailer(table)])
  return encryptAge(payload, [recipientOf(identity)])
}

const blocks = (bytes: Buffer): Buffer => {
  return Buffer.concat([bytes, Buffer.alloc((BLOCK - (bytes.length % BLOCK)) % BLOCK)])
}

raw('a file ends where its last chunk does, whatever lies behind it', () => {
  for (const bytes of [1, 700, 65_000, 65_500, 131_000, 300_000, 2 * MIB, 5 * MIB + 1]) {
    const file = fileOf(bytes)
    const medium = mediumOf(random.bytes(3 * BLOCK), file, random.bytes(100_000))
    const { extents, next } = mapRawFile(medium, { offset: 3 * BLOCK, identities })
    assert.is(next, undefined, `${bytes}`)
    assert.equal(extents, [{ offset: 3 * BLOCK, length: file.length }])
    medium.close()
  }
})

raw('runs that end anywhere are joined, and read as the file that they were', () => {
  const file = blocks(fileOf(6 * MIB))
  const cuts = [0, 40 * BLOCK, 75 * BLOCK, 1000 * BLOCK, file.length]
  const [one, two, three, four] = cuts.slice(1).map((end, i) => file.subarray(cuts[i], end))
  const hole = random.bytes(17 * BLOCK)
  const medium = mediumOf(hole, three!, hole, one!, hole, four!, hole, two!, hole)
  const offset = hole.length * 2 + three!.length
  let known = mapRawFile(medium, { offset, identities })
  const lengths = [known.extents.length]
  while (known.next !== undefined) {
    const gaps = gapsOf(medium.sizeBytes, [known])
    const search = { file: known, gaps, searchBytes: 100 * MIB, blockBytes: BLOCK, identities }
    const further = followRawFile(medium, search)
    assert.ok(further, `${known.next}`)
    known = further!
    lengths.push(known.extents.length)
  }
  assert.equal(lengths, [1, 2, 3, 4])
  const address = rawAddress(medium.path, known.extents)
  const source = openSource(address)
  const read = Buffer.alloc(source.sizeBytes)
  for (let done = 0; done < read.length;) done += source.read(read.subarray(done), done)
  source.close()
  assert.ok(read.equals(file.subarray(0, read.length)))
  assert.ok(file.length - read.length < BLOCK)
  const [first] = known.extents
  assert.is(shownPath(address), `${medium.path}@${first?.offset}`)
  assert.equal(rawPlace(address), { medium: medium.path, extents: known.extents })
  const none = { file: mapRawFile(medium, { offset, identities }), gaps: [], identities }
  const nothing = followRawFile(medium, { ...none, searchBytes: 1, blockBytes: BLOCK })
  assert.is(nothing, undefined)
  medium.close()
})

raw('damage in a run does not end it', () => {
  const file = fileOf(3 * MIB)
  file.fill(0, 20 * 65_552, 22 * 65_552)
  const medium = mediumOf(file)
  const { extents, next } = mapRawFile(medium, { offset: 0, identities })
  assert.equal([extents, next], [[{ offset: 0, length: file.length }], undefined])
  medium.close()
})

raw('what cannot be read is zeros, is named, and costs nothing around it', async () => {
  const file = fileOf(MIB)
  const medium = mediumOf(random.bytes(10 * BLOCK), file, random.bytes(20 * BLOCK))
  const bad = [
    [3 * BLOCK, BLOCK],
    [10 * BLOCK + 300_000, 10],
  ] as const
  const readSync = fs.readSync as (...words: unknown[]) => number
  const failing = (...words: unknown[]): number => {
    const [start, length] = [words[4] as number, words[3] as number]
    const isBad = bad.some(([at, bytes]) => start < at + bytes && at < start + length)
    if (!isBad) return readSync(...words)
    throw Object.assign(new Error('EIO'), { code: 'EIO' })
  }
  const out = Buffer.alloc(medium.sizeBytes)
  withFaults({ readSync: failing as typeof fs.readSync }, () => medium.read(out, 0))
  const expected = readFileSync(medium.path)
  const page = Math.floor((10 * BLOCK + 300_000) / BLOCK) * BLOCK
  for (const at of [3 * BLOCK, page]) expected.fill(0, at, at + BLOCK)
  assert.ok(out.equals(expected))
  assert.equal(medium.unreadable, [
    { offset: 3 * BLOCK, length: BLOCK },
    { offset: page, length: BLOCK },
  ])
  const { signal } = new AbortController()
  assert.equal(await findBeginnings(medium, { signal, onWindow: () => {} }), [10 * BLOCK])
  medium.close()
})

/** As the kernel reads where pages of a drive fail: up to there, and from there on nothing. */
function failingAt(pages: readonly number[], onFailure = (): void => {}): typeof fs.readSync {
  const readSync = fs.readSync as (...words: unknown[]) => number
  const failing = (...words: unknown[]): number => {
    const [fd, out, at, length, start] = words as [number, Buffer, number, number, number]
    const bad = pages.find((page) => start < page + BLOCK && page < start + length)
    if (bad === undefined) return readSync(...words)
    if (start < bad) return readSync(fd, out, at, bad - start, start)
    onFailure()
    throw Object.assign(new Error('EIO'), { code: 'EIO' })
  }
  return failing as typeof fs.readSync
}

raw(
  'a page that cannot be read costs nothing in the next one, wherever windows begin',
  async () => {
    const at = 8 * MIB + 5 * BLOCK
    const medium = mediumOf(Buffer.alloc(at), fileOf(700), Buffer.alloc(9 * MIB))
    const { signal } = new AbortController()
    const pages = [at - BLOCK, 8 * MIB - BLOCK]
    const found = await withFaultsUntil({ readSync: failingAt(pages) }, async () => {
      return await findBeginnings(medium, { signal, onWindow: () => {} })
    })
    assert.equal(found, [at])
    const bad = pages.sort((a, b) => a - b).map((offset) => ({ offset, length: BLOCK }))
    assert.equal(medium.unreadable, bad)
    medium.close()
  },
)

raw('a drive that fails again and again can be left at once', async () => {
  const medium = mediumOf(Buffer.alloc(4 * MIB))
  const interruption = new AbortController()
  const { signal } = interruption
  let failures = 0
  const pages = Array.from({ length: 1024 }, (_, i) => i * BLOCK)
  const readSync = failingAt(pages, () => {
    failures += 1
    interruption.abort()
  })
  const find = async () => await findBeginnings(medium, { signal, onWindow: () => {} })
  const { code } = await withFaultsUntil({ readSync }, async () => await failureOf(find))
  assert.equal([code, failures], ['INTERRUPTED', 1])
  medium.close()
})

raw('of an image that was cut off meanwhile the rest is zeros', () => {
  const medium = mediumOf(random.bytes(20_000))
  fs.truncateSync(medium.path, 9000)
  const read = medium.read(Buffer.alloc(30_000, 1), 0)
  assert.is(read.length, 20_000)
  assert.ok(read.subarray(9000).equals(Buffer.alloc(11_000)))
  medium.close()
})

raw('what has no end is refused', async () => {
  const open = async () => await Promise.resolve(new Medium('/proc/self/mem'))
  assert.is((await failureOf(open)).code, 'NOTHING_FOUND')
})

raw('a page of a bundle that cannot be read costs no frame but its own', async () => {
  const medium = mediumOf(random.bytes(10 * BLOCK), fileOf(6 * MIB))
  const file = mapRawFile(medium, { offset: 10 * BLOCK, identities })
  const address = rawAddress(medium.path, file.extents)
  const look = await withFaultsUntil({ readSync: failingAt([14 * BLOCK]) }, async () => {
    return await Promise.resolve(lookAtFile(address, identities))
  })
  assert.is(isFound(look) && look.frames.length, 6)
  medium.close()
})

raw('beginnings are found across windows, and only those of our files', async () => {
  const beginning = Buffer.from('age-encryption.org/v1\n-> X25519 ')
  const medium = mediumOf(Buffer.alloc(20 * MIB))
  const places = [0, 1000, 8 * MIB - 10, 16 * MIB - 60, 20 * MIB - beginning.length]
  const fd = fs.openSync(medium.path, 'r+')
  for (const at of places) fs.writeSync(fd, beginning, 0, beginning.length, at)
  fs.writeSync(fd, Buffer.from('age-encryption.org/v1\n-> scrypt '), 0, 32, 5 * MIB)
  fs.closeSync(fd)
  const { signal } = new AbortController()
  assert.equal(await findBeginnings(medium, { signal, onWindow: () => {} }), places)
  const stopped = AbortSignal.abort()
  const find = async () => await findBeginnings(medium, { signal: stopped, onWindow: () => {} })
  assert.is((await failureOf(find)).code, 'INTERRUPTED')
  medium.close()
})

raw('the size of blocks is that which all beginnings have in common', () => {
  assert.is(blockBytesOf([8192, 40960, 77]), 4096)
  assert.is(blockBytesOf([63 * 512, 63 * 512 + 8192]), 4096)
  assert.is(blockBytesOf([1024, 5120 + 2048]), 2048)
  assert.is(blockBytesOf([1024, 4096 + 512]), 512)
  assert.is(blockBytesOf([]), 4096)
})

raw('gaps are what no file explains', () => {
  const file = (...extents: readonly (readonly [number, number])[]) => {
    const runs = extents.map(([offset, length]) => ({ offset, length }))
    return { offset: runs[0]!.offset, next: 1, extents: runs, holes: [] }
  }
  assert.equal(gapsOf(100, []), [{ offset: 0, length: 100 }])
  assert.equal(gapsOf(100, [file([10, 20], [50, 10]), file([20, 20], [90, 10])]), [
    { offset: 0, length: 10 },
    { offset: 40, length: 10 },
    { offset: 60, length: 30 },
  ])
  const holes = [{ offset: 12, length: 3 }]
  // The second run stands for what was not found.
  const lost = [...file([10, 20]).extents, { offset: 10, length: 70 }]
  assert.equal(gapsOf(40, [{ offset: 10, next: 1, extents: lost, holes }]), [
    { offset: 0, length: 10 },
    { offset: 12, length: 3 },
    { offset: 30, length: 10 },
  ])
})

raw('a hole of many chunks does not end a run, and is searched for parts of others', () => {
  const [old, young] = [fileOf(6 * MIB), blocks(fileOf(2 * MIB))]
  const cut = 10 * BLOCK
  const start = 30 * 65_552 - ((30 * 65_552) % BLOCK)
  young.copy(old, start, cut)
  const head = young.subarray(0, cut)
  const medium = mediumOf(blocks(old), head, random.bytes(9 * BLOCK))
  const over = mapRawFile(medium, { offset: 0, identities })
  assert.equal([over.extents, over.next], [[{ offset: 0, length: old.length }], undefined])
  assert.is(over.holes.length, 1)
  const file = mapRawFile(medium, { offset: blocks(old).length, identities })
  const gaps = gapsOf(medium.sizeBytes, [over, file])
  const search = { file, gaps, searchBytes: MIB * 100, blockBytes: BLOCK, identities }
  const whole = followRawFile(medium, search)
  assert.equal([whole?.extents[1]?.offset, whole?.next], [start, undefined])
  // As if that file had been tried elsewhere only.
  const hidden = { ...search, gaps: gapsOf(medium.sizeBytes, [{ ...over, holes: [] }, file]) }
  assert.equal(followRawFile(medium, hidden), whole)
  medium.close()
})

raw('of what lies before a file the nearest is looked through', () => {
  const file = blocks(fileOf(MIB))
  const cut = 50 * BLOCK
  const end = file.subarray(cut)
  const medium = mediumOf(random.bytes(4 * MIB), end, file.subarray(0, cut))
  const offset = 4 * MIB + end.length
  const known = mapRawFile(medium, { offset, identities })
  const gaps = gapsOf(medium.sizeBytes, [known])
  const search = { file: known, gaps, searchBytes: 2 * MIB, blockBytes: BLOCK, identities }
  assert.is(followRawFile(medium, search)?.extents[1]?.offset, 4 * MIB)
  medium.close()
})

raw('what a chunk is guessed to be is what it is', () => {
  const key = Buffer.alloc(32, 7)
  const zeros = peekChunk({ payloadKey: key, index: 0, last: false, ciphertext: Buffer.alloc(99) })
  const again = peekChunk({ payloadKey: key, index: 0, last: false, ciphertext: zeros })
  assert.ok(again.equals(Buffer.alloc(99)))
})

raw.run()
