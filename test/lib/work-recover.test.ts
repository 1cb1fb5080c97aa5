// What is read from bundles of unknown names, behind damage and out of hostile ones, and how
// versions of paths are laid out.

import { Buffer } from 'node:buffer'
import fs, { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { CHUNK_BYTES, TAG_BYTES, encryptAge } from '../../lib/format/age.ts'
import { generateIdentity, recipientOf } from '../../lib/format/age-keys.ts'
import { digestOf } from '../../lib/format/chunker.ts'
import { encodeHeader, encodePlainHeader, tarPadding } from '../../lib/format/tar.ts'
import { compressFrame, encodeTrailer, frameChecksum } from '../../lib/format/zstd-frames.ts'
import type { Entry } from '../../lib/model/entry.ts'
import { BundleWriter } from '../../lib/work/bundle-writer.ts'
import { prove } from '../../lib/work/prove.ts'
import { chooseExports } from '../../lib/work/recover-choice.ts'
import type { LostPath, SurveyedExport } from '../../lib/work/recover-exports.ts'
import { layOut, newestFirst, takeLaid } from '../../lib/work/recover-layers.ts'
import {
  type FoundContents,
  type FoundFile,
  isFound,
  lookAtFile,
  readContents,
} from '../../lib/work/recover-scan.ts'
import * as assert from '../helpers/assert.ts'
import { withFaults } from '../helpers/node-faults.ts'
import { randomFrom } from '../helpers/random.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const recover = suite('work/recover')
const directory = tempDirectory()
const identity = generateIdentity()
const identities = [identity]
const recipients = [recipientOf(identity)]
const MIB = 2 ** 20
const random = randomFrom('recover')
const common = { mode: 0o644, uid: 0, gid: 0, mtimeNs: 5n } as const
let files = 0

const newPath = (): string => `${directory}/${++files}`

function member(path: string, content: Buffer): Buffer {
  const header = encodeHeader({ ...common, path, type: 'file', size: content.length })
  return Buffer.concat([header, content, Buffer.alloc(tarPadding(content.length))])
}

/** A bundle as an export writes it: members begin at boundaries. */
function bundleOf(members: readonly Buffer[]): string {
  const path = newPath()
  const writer = new BundleWriter({ recipients, level: 1 })
  writer.open(path)
  for (const one of members) {
    writer.boundary()
    writer.append(one)
  }
  prove(writer.finish().file)
  return path
}

function look(path: string): FoundFile {
  const found = lookAtFile(path, identities)
  if (isFound(found)) return found
  throw new Error(found.error.message)
}

function contentsOf(path: string): FoundContents {
  return readContents(look(path), { identities, withMembers: true })
}

const pathsOf = ({ members }: FoundContents): string[] =>
  members.filter(({ isDamaged }) => !isDamaged).map(({ metadata }) => metadata.path)

function flipInFrame(path: string, frame: number): void {
  const [, , offset, length] = look(path).frames[frame]!
  const bytes = readFileSync(path)
  const payload = offset + Math.floor(length / 2)
  // The head is short; where in it the payload begins does not matter here.
  const at = 200 + payload + Math.floor(payload / CHUNK_BYTES) * TAG_BYTES
  bytes[at]! ^= 1
  writeFileSync(path, bytes)
}

recover(
  'behind a damaged frame members are taken up where one begins, and not inside of files',
  () => {
    const first = member('a', random.bytes(100))
    const headerBytes = encodeHeader({ ...common, path: 'large', type: 'file', size: 1 }).length
    const inner = member('etc/passwd', Buffer.from('evil'))
    // Frames end in the middle of the large file: each begins with what looks like a member.
    const large = Buffer.concat([
      random.bytes(4 * MIB - first.length - headerBytes),
      ...[inner, random.bytes(4 * MIB - inner.length)],
      ...[inner, random.bytes(2 * MIB)],
    ])
    const path = bundleOf([
      first,
      member('large', large),
      member('b', random.bytes(2 * MIB)),
      member('c', random.bytes(100)),
    ])
    const whole = contentsOf(path)
    assert.equal(pathsOf(whole), ['a', 'large', 'b', 'c'])
    assert.equal(whole.bad, [])
    for (let frame = 0; frame < look(path).frames.length; frame++) {
      const before = readFileSync(path)
      flipInFrame(path, frame)
      const damaged = contentsOf(path)
      assert.ok(
        damaged.bad.length >= 1 && damaged.bad.length <= 2,
        `${damaged.bad.length} bad frames`,
      )
      for (const name of pathsOf(damaged)) assert.ok(['a', 'large', 'b', 'c'].includes(name), name)
      if (frame === 0) assert.not.ok(pathsOf(damaged).includes('large'))
      if (frame === 1) assert.ok(pathsOf(damaged).includes('c'), 'it goes on behind')
      writeFileSync(path, before)
    }
  },
)

recover('of a bundle of any length what is whole is read, and nothing else', () => {
  const contents = Array.from({ length: 5 }, () => random.bytes(1.5 * MIB))
  const path = bundleOf(contents.map((content, i) => member(`f${i}`, content)))
  const ids = new Map(contents.map((content, i) => [`f${i}`, digestOf(content)]))
  const { length } = readFileSync(path)
  const cut = newPath()
  const sealed = CHUNK_BYTES + TAG_BYTES
  const ends = [0, 100, 300, 1000, 40 * sealed, 64 * sealed + 210, length - 20, length - 1]
  // Lengths that no age file has, and those beside them.
  const head = readFileSync(path).indexOf('\n--- ') + 5 + 43 + 1 + 16
  const impossible = Array.from({ length: 18 }, (_, rest) => head + 60 * sealed + rest)
  ends.push(...impossible)
  let most = 0
  for (const end of ends) {
    writeFileSync(cut, readFileSync(path))
    truncateSync(cut, end)
    const found = lookAtFile(cut, identities)
    assert.is(isFound(found), end > CHUNK_BYTES * 49, `${end} bytes`)
    if (!isFound(found)) continue
    assert.ok(found.isCut, `cut at ${end}`)
    const read = readContents(found, { identities, withMembers: true })
    const isWhole = read.members.some(({ isDamaged }) => !isDamaged)
    assert.ok(isWhole || !impossible.includes(end), `${end} bytes hold a file`)
    for (const { metadata, pieces, isDamaged } of read.members) {
      if (isDamaged) continue
      assert.equal(
        pieces.map(([id]) => id),
        [ids.get(metadata.path)],
      )
      most = Math.max(most, Number(metadata.path.slice(1)) + 1)
    }
  }
  assert.ok(most >= 4, `${most} files before the cut`)
})

recover('of a bundle whose end the medium does not give what comes before it is read', () => {
  const path = bundleOf([
    member('a', random.bytes(5 * MIB)),
    member('b', random.bytes(5 * MIB)),
    member('c', random.bytes(100)),
  ])
  const { sizeBytes } = look(path)
  const readSync = fs.readSync as (...words: unknown[]) => number
  const failing = (...words: unknown[]): number => {
    if ((words[4] as number) + (words[3] as number) <= sizeBytes - CHUNK_BYTES) {
      return readSync(...words)
    }
    throw Object.assign(new Error('EIO'), { code: 'EIO' })
  }
  withFaults({ readSync: failing as typeof fs.readSync }, () => {
    const found = look(path)
    assert.ok(found.isCut)
    const paths = pathsOf(readContents(found, { identities, withMembers: true }))
    assert.ok(paths.includes('a'), paths.join())
  })
})

recover('pieces and entries count only with the ids and sums that they say', () => {
  const content = random.bytes(1000)
  const id = digestOf(content)
  const ours = (path: string, bytes: Buffer): Buffer =>
    Buffer.concat([
      encodePlainHeader({ path, sizeBytes: bytes.length }),
      bytes,
      Buffer.alloc(tarPadding(bytes.length)),
    ])
  const header = encodeHeader({ ...common, path: 'far', type: 'file', size: 1000 })
  const entry = (line: object): Buffer =>
    Buffer.concat([header, Buffer.from(`${JSON.stringify(line)}\n`)])
  const good = { path: 'far', size: 1000, pieces: [[id, 1000]] }
  const path = bundleOf([
    ours(`.pieces/${id}`, content),
    ours(`.pieces/${digestOf(Buffer.from('x'))}`, content),
    ours('.entries/1', entry(good)),
    ours('.entries/2', entry({ ...good, path: 'another' })),
    ours('.entries/3', entry({ ...good, pieces: [[id, 999]] })),
    ours('.entries/4', Buffer.from('no header at all')),
  ])
  const { pieces, members } = contentsOf(path)
  assert.equal(
    pieces.map(([one]) => one),
    [id],
  )
  assert.equal(
    members.map(({ metadata }) => metadata.path),
    ['far'],
  )
})

recover('frames beyond the limit are not decompressed, and the limit is named', () => {
  const tar = Buffer.alloc(8 * MIB)
  const frame = compressFrame(tar, 1)
  const checksum = frameChecksum(frame)
  const path = newPath()
  const seek = { compressedBytes: frame.length, tarBytes: tar.length, checksum }
  writeFileSync(path, encryptAge(Buffer.concat([frame, encodeTrailer([seek])]), recipients))
  const found = lookAtFile(path, identities)
  assert.not.ok(isFound(found))
  if (!isFound(found)) assert.match(found.error.message, /larger than frames may be/)
  // Many small ones that claim much.
  const small = { compressedBytes: 1, tarBytes: 4 * MIB, checksum: 0 }
  const many = Array.from({ length: 9000 }, () => small)
  writeFileSync(
    path,
    encryptAge(Buffer.concat([Buffer.alloc(9000), encodeTrailer(many)]), recipients),
  )
  const bomb = lookAtFile(path, identities)
  assert.not.ok(isFound(bomb))
  if (!isFound(bomb)) assert.match(bomb.error.message, /34359738368 are the limit/)
})

recover('a header that claims any length costs nothing', () => {
  const header = encodeHeader({ ...common, path: 'huge', type: 'file', size: 2 ** 50 })
  const path = bundleOf([member('a', Buffer.from('a')), header, Buffer.alloc(1024)])
  assert.ok(statSync(path).size < 4096)
  const { members } = contentsOf(path)
  assert.equal(
    members.map(({ isDamaged }) => isDamaged),
    [false, true],
  )
})

const file = (path: string, id: string, mtimeNs = 0n): Entry => ({
  ...common,
  ...{ path, type: 'file', size: 1, mtimeNs, pieces: [[id.padEnd(64, '0'), 0, 0, 1]] },
})
const other = (path: string, type: 'directory' | 'symlink' | 'link', target?: string): Entry => ({
  ...common,
  ...{ path, type, ...(target === undefined ? {} : { target }) },
})
const laidOut = (entries: readonly Entry[]): string[] =>
  layOut(entries.map((entry) => ({ entry, stamp: undefined }))).map(({ entry }) => entry.path)

recover('the first of each path gets its name, others their places below .versions', () => {
  assert.equal(laidOut([file('a/x', '1'), file('a/x', '2'), file('a/x', '1'), file('a/x', '3')]), [
    ...['.versions/1/a/x', '.versions/2/a/x', 'a/x'],
  ])
  // Nothing lies below what is no directory, whichever came first.
  assert.equal(laidOut([other('a', 'symlink', '/etc'), file('a/b/c', '1')]), [
    ...['.versions/1/a/b/c', 'a'],
  ])
  assert.equal(laidOut([file('a/b', '1'), file('a', '2')]), ['.versions/1/a', 'a/b'])
  assert.equal(laidOut([file('a/b', '1'), other('a', 'directory'), other('a', 'directory')]), [
    ...['a', 'a/b'],
  ])
  assert.equal(laidOut([file('.versions/1/a', '1'), file('a', '2'), file('a', '3')]), [
    ...['.versions/1/.versions/1/a', '.versions/1/a', 'a'],
  ])
})

recover('newest is by stamp where all have one, and else by the files own times', () => {
  const one = { entry: file('a', '1', 9n), stamp: '2025-01-01T000000Z' }
  const two = { entry: file('a', '2', 1n), stamp: '2026-01-01T000000Z' }
  assert.equal(newestFirst([one, two]), [two, one])
  assert.equal(newestFirst([{ ...two, stamp: undefined }, one])[0], one)
})

recover(
  'a link that is taken without its first path is the file; one to nowhere is not made',
  () => {
    const laid = layOut(
      [
        file('a', '1'),
        other('b', 'link', 'a'),
        other('c', 'link', 'a'),
        other('d', 'link', 'gone'),
        other('e', 'link', 'd'),
      ].map((entry) => ({ entry, stamp: undefined })),
    )
    const { taken, astray } = takeLaid(laid, ({ from }) => from !== 'a')
    assert.equal(
      taken.map(({ entry }) => [entry.path, entry.type, entry.target]),
      [
        ['b', 'file', undefined],
        ['c', 'link', 'b'],
      ],
    )
    assert.equal(astray, ['d', 'e'])
  },
)

recover('of one export that is here twice the one that lacks less is meant', () => {
  const lostPath: LostPath = { path: 'a', why: 'damaged', bundle: undefined }
  const shard = { digest: '', entries: 1000, first: undefined, stamp: undefined }
  const whole: SurveyedExport = {
    ...{ name: 'tester/data/x', evidence: 'signed', machine: 'tester', set: 'data' },
    ...{ stamp: '2026-01-01T000000Z', complete: true, shards: [], members: [] },
    ...{ entries: 1000, files: 900, bytes: 5, lost: [], lostShards: [] },
  }
  const oneLost = { ...whole, name: 'tester/data/x#2', lost: [lostPath] }
  const catalogLost = { ...whole, name: 'tester/data/x#3', lostShards: [shard] }
  const all = [catalogLost, oneLost, whole]
  for (const [there, best] of [
    [all, whole],
    [all.toReversed(), whole],
    [[catalogLost, oneLost], oneLost],
    [[oneLost, catalogLost], oneLost],
  ] as const) {
    assert.equal(chooseExports(there, []), [best])
  }
})

recover.run()
