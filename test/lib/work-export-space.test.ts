import { Buffer } from 'node:buffer'
import { lstatSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { chunkParameter, cutPieces, digestBytes, SEGMENT_BYTES } from '../../lib/format/chunker.ts'
import type { Entry } from '../../lib/model/entry.ts'
import { rawPathFromText } from '../../lib/model/raw-path.ts'
import type { NoticeEvent } from '../../lib/model/report.ts'
import { planExport } from '../../lib/work/export-plan.ts'
import { checkSpace } from '../../lib/work/export-space.ts'
import { PieceIndex } from '../../lib/work/piece-index.ts'
import * as assert from '../helpers/assert.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { randomFrom } from '../helpers/random.ts'
import { jsonLines, makeScenario } from '../helpers/scenario.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const space = suite('work/export-space')
const MIB = 2 ** 20
const random = randomFrom('export-space')

interface Question {
  /** The new files, by name. */
  readonly files: Readonly<Record<string, Buffer>>
  readonly freeBytes: number | undefined
  readonly known?: readonly Buffer[]
  readonly parityPercent?: number
  /** The catalog names them, and they are not there. */
  readonly isGone?: boolean
  /** Nothing may be compared with what the repository has. */
  readonly isFree?: boolean
}

interface Answer {
  readonly error: BackupError | undefined
  readonly notices: readonly NoticeEvent[]
}

/** What is said of a first export of these files. */
async function ask(question: Question): Promise<Answer> {
  const { files, freeBytes, known = [], parityPercent = 0 } = question
  const { isGone = false, isFree = false } = question
  const tree = tempDirectory()
  const base = { mode: 0o600, uid: 0, gid: 0 } as const
  const collected = Object.entries(files).map(([name, bytes]): Entry => {
    writeFileSync(`${tree}/${name}`, bytes)
    const { mtimeNs } = lstatSync(`${tree}/${name}`, { bigint: true })
    return { ...base, path: name, type: 'file', size: bytes.length, mtimeNs }
  })
  const index = PieceIndex.forPieces(known.length)
  for (const piece of known) {
    const id = digestBytes(piece)
    index.claim(id)
    index.locate(id, { bundle: 0, offset: 0, length: piece.length })
  }
  if (isFree) {
    index.lookup = () => {
      throw new Error('a sample was taken')
    }
  }
  const notices: NoticeEvent[] = []
  const call = {
    target: { name: 't9', freeBytes: async () => await Promise.resolve(freeBytes) },
    set: 'home',
    stamp: '2026-01-02T030405Z',
    plan: planExport({ collected, sources: [], last: [], isUsable: () => true }),
    tree: isGone ? '/no/such' : rawPathFromText(tree),
    level: 3,
    parityPercent,
    index,
    knowsPieces: known.length > 0,
    report: (event: { kind: string }) => void notices.push(event as NoticeEvent),
  }
  try {
    await checkSpace(call)
    return { error: undefined, notices }
  } catch (error) {
    if (error instanceof BackupError) return { error, notices }
    throw error
  }
}

async function refused(question: Question): Promise<BackupError> {
  const { error } = await ask(question)
  assert.ok(error !== undefined, 'it is refused')
  assert.is(error.code, 'TARGET_FULL')
  return error
}

async function accepted(question: Question): Promise<void> {
  const { error, notices } = await ask(question)
  assert.is(error?.message, undefined)
  assert.equal(notices, [])
}

const number = (error: BackupError, fact: string): number => error.facts[fact] as number

/** Compresses to a little more than half. */
const digits = (length: number): Buffer => Buffer.from(random.bytes(length / 2).toString('hex'))

/** Compresses to a fraction, where there is much of it: every line has a number of its own. */
const text = (length: number): Buffer =>
  Buffer.from(
    Array.from({ length: length / 32 }, (_, i) => `this is line number ${i}`.padEnd(31)).join('\n'),
  )

space('what is missing is said in numbers, with what to do and what is unharmed', async () => {
  const error = await refused({ files: { a: random.bytes(8 * MIB) }, freeBytes: 4 * MIB })
  const needed = /^target t9: 8\.[3-9] MiB are needed for home 2026-01-02T030405Z, 4 MiB are free: /
  assert.match(error.message, needed)
  assert.match(error.message, /: 4\.\d MiB are missing$/)
  assert.match(error.hint ?? '', /`backup prune --target t9`.*nothing was written.*unharmed/)
  assert.is(number(error, 'freeBytes'), 4 * MIB)
  const missing = number(error, 'neededBytes') - 4 * MIB
  assert.is(number(error, 'missingBytes'), missing)
})

space('what compresses is not refused for its size', async () => {
  await accepted({ files: { a: digits(8 * MIB) }, freeBytes: 5.5 * MIB })
  await refused({ files: { a: digits(8 * MIB) }, freeBytes: 3.5 * MIB })
})

space('many small files count as they compress together', async () => {
  const lines = text(4 * MIB)
  const files = Object.fromEntries(
    Array.from({ length: 2048 }, (_, i) => [`f${i}`, lines.subarray(i * 2048, (i + 1) * 2048)]),
  )
  await accepted({ files, freeBytes: 0.45 * MIB })
})

space('a little too little is tried, with a warning; clearly too little is not', async () => {
  const files = { a: random.bytes(8 * MIB) }
  const neededBytes = number(await refused({ files, freeBytes: 0 }), 'neededBytes')
  await accepted({ files, freeBytes: neededBytes })
  for (const freeBytes of [neededBytes - 1, Math.ceil(neededBytes * 0.9)]) {
    const { error, notices } = await ask({ files, freeBytes })
    assert.is(error, undefined)
    assert.equal(
      notices.map(({ level, code }) => [level, code]),
      [['warning', 'SPACE_MAY_NOT_DO']],
    )
  }
  await refused({ files, freeBytes: Math.floor(neededBytes * 0.9) - 1 })
})

space('the estimate is the same every time', async () => {
  const files = { a: random.bytes(5 * MIB), b: digits(20 * MIB) }
  const [first, second] = [
    await refused({ files, freeBytes: 0 }),
    await refused({ files, freeBytes: 0 }),
  ]
  assert.is(number(first, 'neededBytes'), number(second, 'neededBytes'))
})

space('where everything fits as it is, and where nobody knows, no file is opened', async () => {
  const files = { a: random.bytes(MIB) }
  const known = [Buffer.from('other')]
  await accepted({ files, freeBytes: Math.ceil(1.2 * MIB), known, isFree: true })
  await accepted({ files, freeBytes: undefined, known, isFree: true })
})

space('files that cannot be read are left to packing, which names them', async () => {
  const { error, notices } = await ask({
    files: { a: random.bytes(MIB) },
    freeBytes: MIB / 4,
    isGone: true,
  })
  assert.is(error, undefined)
  assert.is(notices.length, 1)
})

space('what the repository has already, under another name, is not counted', async () => {
  const moved = random.bytes(3 * MIB)
  await accepted({ files: { moved }, freeBytes: MIB, known: [moved] })
  await refused({ files: { moved }, freeBytes: MIB, known: [Buffer.from('other')] })
})

space('of a large file that changed a little only the change is counted', async () => {
  const old = random.bytes(2 * SEGMENT_BYTES)
  const chunk = chunkParameter(old.length)!
  const pieces: Buffer[] = []
  for (let segment = 0; segment < old.length; segment += SEGMENT_BYTES) {
    let start = segment
    for (const length of cutPieces(old.subarray(segment, segment + SEGMENT_BYTES), chunk)) {
      pieces.push(old.subarray(start, start + length))
      start += length
    }
  }
  const disk = Buffer.from(old)
  disk.fill(7, SEGMENT_BYTES / 2, SEGMENT_BYTES / 2 + 4096)
  await accepted({ files: { disk }, freeBytes: MIB, known: pieces })
})

space('copies within the export are counted once', async () => {
  const file = random.bytes(3 * MIB)
  await accepted({ files: { a: file, b: file, c: file }, freeBytes: 3.6 * MIB })
  const others = { a: file, b: random.bytes(3 * MIB), c: random.bytes(3 * MIB) }
  await refused({ files: others, freeBytes: 3.6 * MIB })
})

space('parity is counted, and is no reason to refuse what fits without it', async () => {
  const files = { a: random.bytes(8 * MIB) }
  const plain = number(await refused({ files, freeBytes: 0 }), 'neededBytes')
  const parityPercent = 100
  const both = number(await refused({ files, freeBytes: 0, parityPercent }), 'neededBytes')
  assert.ok(Math.abs(both - 2 * plain) <= 2)
  const { error, notices } = await ask({ files, freeBytes: plain, parityPercent })
  assert.is(error, undefined)
  assert.is(notices.length, 1)
})

if (canRunAsRoot('exports to drives that are too small')) {
  space('an export that does not fit writes nothing, and the one before stays', async () => {
    const { path, unmount } = loopDevice({ sizeMib: 24 })
    mkdirSync(`${path}/backups`)
    const scenario = await makeScenario({ target: `${path}/backups` })
    writeFileSync(`${scenario.source}/small`, random.bytes(MIB))
    assert.is((await scenario.collect()).status, 0)
    assert.is((await scenario.external()).status, 0)
    const before = exportsIn(scenario.target)
    writeFileSync(`${scenario.source}/large`, random.bytes(40 * MIB))
    assert.is((await scenario.collect()).status, 0)
    const outcome = await scenario.external('--json')
    assert.is(outcome.status, 1, outcome.stdout)
    assert.match(outcome.stdout, /MiB are needed for data .* are missing/)
    assert.is(before.length, 1)
    assert.equal(exportsIn(scenario.target), before)
    unmount()
  })

  space('an export that only fits because it compresses is made', async () => {
    const { path, unmount } = loopDevice({ sizeMib: 24 })
    mkdirSync(`${path}/backups`)
    const scenario = await makeScenario({ target: `${path}/backups` })
    writeFileSync(`${scenario.source}/large`, digits(28 * MIB))
    assert.is((await scenario.collect()).status, 0)
    const outcome = await scenario.external('--json')
    assert.is(outcome.status, 0, outcome.stdout)
    const codes = jsonLines(outcome, 'notice').map(({ code }) => code as string)
    assert.not.ok(codes.includes('SPACE_MAY_NOT_DO'))
    assert.is(exportsIn(scenario.target).length, 1)
    unmount()
  })
}

/** The stamps that anything lies under. */
function exportsIn(target: string): string[] {
  const set = `${target}/machines/tester/data`
  return readdirSync(set).filter((name) => name !== 'latest')
}

space.run()
