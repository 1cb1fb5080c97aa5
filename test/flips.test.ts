// Every byte of a small repository, changed in one bit and in all, and every length that a file of
// it can be cut to, one at a time: it is found, nothing wrong is read, and what no signature covers
// is known by name (promises 8, 9, 10).
//
// Each case runs in this process through the functions that the workers call; some also through the
// command as people start it. FLIPS=all takes every case (`npm run test:flips`), else a sample.

import { Buffer } from 'node:buffer'
import { randomBytes } from 'node:crypto'
import {
  cpSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { suite } from 'uvu'
import { command as restoreCommand } from '../commands/backup-restore.ts'
import { exitCodeOf } from '../commands/voice.ts'
import { BackupError } from '../lib/errors.ts'
import { digestBytes, digestOf } from '../lib/format/chunker.ts'
import { readIdentityFile } from '../lib/machine/identity.ts'
import { type FrameRange, encodeEntry } from '../lib/model/entry.ts'
import { type Manifest, encodeManifest } from '../lib/model/manifest.ts'
import type { Shard } from '../lib/model/shard.ts'
import { openDirectoryTarget } from '../lib/target/directory.ts'
import { BundleReader } from '../lib/work/bundle-reader.ts'
import { MemorySource } from '../lib/work/bundle-source.ts'
import { entryHeader } from '../lib/work/entry-header.ts'
import { ExportReader } from '../lib/work/export-reader.ts'
import { readFreshness } from '../lib/work/freshness.ts'
import {
  type ExportPlace,
  type Repository,
  exportsOf,
  findRepository,
  isSignedBy,
  listStamps,
  readManifest,
} from '../lib/work/repository.ts'
import { type ExpectedRanges, verifyBundle } from '../lib/work/verify-worker.ts'
import * as assert from './helpers/assert.ts'
import { forgeOf } from './helpers/forged-repository.ts'
import { randomOfRun } from './helpers/random.ts'
import { runCommand } from './helpers/run-command.ts'
import { type Scenario, assertNoLeftovers, makeScenario } from './helpers/scenario.ts'

const flips = suite('flips')
const isAll = process.env['FLIPS'] === 'all'
/** Cases of a sample, and how many go through the command. */
const SAMPLE = 500
const SAMPLE_COMMANDS = 6
/** With all of them every so manieth. */
const COMMAND_EVERY = 997
const MACHINE = 'tester'

/** What a file is turned into. */
interface Case {
  readonly file: string
  readonly how: 'one bit' | 'all bits' | 'cut'
  readonly at: number
}

/** A bundle as it was: what everything in it has to be. */
interface BundleTruth {
  readonly name: string
  readonly sha256: string
  readonly ranges: ExpectedRanges
  readonly frames: readonly FrameRange[]
  readonly pieces: readonly {
    readonly id: string
    readonly offset: number
    readonly length: number
  }[]
}

interface Truth {
  readonly scenario: Scenario
  readonly target: string
  readonly repository: Repository
  readonly identities: readonly string[]
  readonly publicKeys: readonly string[]
  /** Contents by path in the repository. */
  readonly files: ReadonlyMap<string, Buffer>
  readonly exports: readonly {
    readonly place: ExportPlace
    readonly manifest: Manifest
    readonly lines: readonly string[]
  }[]
  readonly bundles: ReadonlyMap<string, BundleTruth>
}

/** Where nothing is written to a disk: there are a hundred thousand cases. */
function memoryDirectory(): string {
  const base = existsSync('/dev/shm') ? '/dev/shm' : tmpdir()
  const directory = mkdtempSync(`${base}/backup-flips-`)
  process.once('exit', () => rmSync(directory, { recursive: true, force: true }))
  return directory
}

/** Two generations, of which the second refers to the first. */
async function makeTruth(): Promise<Truth> {
  const target = `${memoryDirectory()}/drive`
  const scenario = await makeScenario({ target })
  const { source } = scenario
  writeFileSync(`${source}/text`, 'some text\n'.repeat(40))
  writeFileSync(`${source}/noise`, randomBytes(900))
  writeFileSync(
    `${source}/large`,
    Buffer.alloc(4.5 * 2 ** 20, 'a large file that is all the same\n'),
  )
  writeFileSync(`${source}/empty`, '')
  mkdirSync(`${source}/below/deeper`, { recursive: true })
  writeFileSync(`${source}/below/deeper/file`, 'deep')
  linkSync(`${source}/noise`, `${source}/below/noise too`)
  symlinkSync('../text', `${source}/below/link`)
  await scenario.generation()
  writeFileSync(`${source}/text`, 'another text\n'.repeat(40))
  writeFileSync(`${source}/new`, randomBytes(300))
  await scenario.generation()
  const opened = openDirectoryTarget({ name: 'drive', path: target, mustBeMounted: false })
  const repository = (await findRepository(opened))!
  const { identities } = await readIdentityFile({
    path: scenario.identity,
    askPassphrase: async () => await Promise.reject(new Error('it has none')),
  })
  const publicKeys = [(await forgeOf(scenario)).signer.publicKey]
  const exports = []
  const shards: Shard[] = []
  for (const place of exportsOf(await listStamps(repository, MACHINE))) {
    const manifest = await readManifest(repository, place, { publicKeys, identities })
    const own = await shardsOf({ repository, manifest, identities })
    shards.push(...own)
    exports.push({ place, manifest, lines: linesOf(own) })
  }
  const bundles = new Map<string, BundleTruth>()
  for (const { name, sha256 } of exports.flatMap(({ manifest }) => manifest.bundles)) {
    const path = `machines/${MACHINE}/${name}.tar.zst.age`
    const reader = new BundleReader({ path: `${target}/${path}`, identities })
    bundles.set(path, truthOf({ name, sha256, frames: reader.readFrames() }, shards))
    reader.close()
  }
  const files = new Map<string, Buffer>()
  for (const path of readdirSync(target, { recursive: true, encoding: 'utf8' })) {
    if (lstatSync(`${target}/${path}`).isFile()) files.set(path, readFileSync(`${target}/${path}`))
  }
  return { scenario, target, repository, identities, publicKeys, files, exports, bundles }
}

async function shardsOf(of: {
  readonly repository: Repository
  readonly manifest: Manifest
  readonly identities: readonly string[]
}): Promise<readonly Shard[]> {
  const reader = new ExportReader(of)
  try {
    const shards: Shard[] = []
    for (const place of await reader.index()) shards.push(await reader.shard(place))
    return shards
  } finally {
    reader.close()
  }
}

/** Entries as text, bundles by name. */
function linesOf(shards: readonly Shard[]): readonly string[] {
  return shards.flatMap(({ bundles, entries }) => [
    JSON.stringify(bundles),
    ...entries.map(encodeEntry),
  ])
}

function truthOf(
  { name, sha256, frames }: Pick<BundleTruth, 'name' | 'sha256' | 'frames'>,
  shards: readonly Shard[],
): BundleTruth {
  const expected = new Map<number, { readonly length: number; readonly digest: Buffer }>()
  const pieces: BundleTruth['pieces'][number][] = []
  for (const { bundles, entries } of shards) {
    const isHere = (number: number): boolean => bundles[number]!.name === name
    for (const entry of entries) {
      if (entry.header !== undefined && isHere(entry.header[0])) {
        const header = entryHeader({ metadata: entry, chunk: entry.chunk })
        expected.set(entry.header[1], { length: entry.header[2], digest: digestBytes(header) })
      }
      for (const [id, bundle, offset, length] of entry.pieces ?? []) {
        if (!isHere(bundle)) continue
        expected.set(offset, { length, digest: Buffer.from(id, 'hex') })
        pieces.push({ id, offset, length })
      }
    }
  }
  const sorted = [...expected].sort(([a], [b]) => a - b)
  const ranges = {
    offsets: Float64Array.from(sorted, ([offset]) => offset),
    lengths: Float64Array.from(sorted, ([, { length }]) => length),
    digests: Buffer.concat(sorted.map(([, { digest }]) => digest)),
  }
  return { name, sha256, ranges, frames, pieces }
}

let made: Promise<Truth> | undefined
const truth = async (): Promise<Truth> => await (made ??= makeTruth())

function changed(bytes: Buffer, { how, at }: Case): Buffer {
  if (how === 'cut') return bytes.subarray(0, at)
  const copy = Buffer.from(bytes)
  copy[at]! ^= how === 'one bit' ? 1 << (at % 8) : 0xff
  return copy
}

/** What it gives, or the exit code of the error it ends with. A bug is thrown on. */
async function outcomeOf<T>(action: () => Promise<T>): Promise<T | number> {
  try {
    return await action()
  } catch (error) {
    if (error instanceof BackupError) return exitCodeOf(error)
    throw error
  }
}

/** Every export as it can be read now: its lines, or the exit code of its error. */
async function readExports(at: Truth, repository = at.repository): Promise<unknown[]> {
  const { publicKeys, identities } = at
  return await Promise.all(
    at.exports.map(({ place }) =>
      outcomeOf(async () => {
        const manifest = await readManifest(repository, place, { publicKeys, identities })
        return encodeManifest(manifest).toString()
      }),
    ),
  )
}

function wholeExports(at: Truth): string[] {
  return at.exports.map(({ manifest }) => encodeManifest(manifest).toString())
}

/** Signed files, and those that sign: what was signed, or nothing. */
async function checkSigned(at: Truth, one: Case, bytes: Buffer): Promise<void> {
  const found = await readExports(at)
  const whole = wholeExports(at)
  const own = at.exports.findIndex(({ place: { set, stamp } }) =>
    one.file.includes(`/${set}/${stamp}/`),
  )
  for (const [i, what] of found.entries()) {
    if (i !== own) assert.is(what, whole[i], 'the other export is as it was')
    else if (isUnsigned(one, bytes)) assert.is(what, whole[i], 'nobody signs this')
    else assert.is(what, 13)
  }
}

/** Of a signature of minisign's: the text of its first line, and the newline it ends in. */
function isUnsigned({ file, how, at }: Case, bytes: Buffer): boolean {
  if (!file.endsWith('.minisig')) return false
  const comment = 'untrusted comment: '.length
  if (how === 'cut') return at === bytes.length - 1
  const isComment = at >= comment && at < bytes.indexOf('\n')
  // A bit more may make a newline of it.
  return isComment && changed(bytes, { file, how, at })[at] !== 0x0a
}

async function checkBundle(at: Truth, one: Case, bytes: Buffer): Promise<void> {
  const { name, sha256, ranges, frames, pieces } = at.bundles.get(one.file)!
  const path = `${at.target}/${one.file}`
  const request = { key: name, name, path, sizeBytes: bytes.length, sha256, ranges }
  const verified = verifyBundle(request, at.identities)
  assert.ok(verified.problems.length > 0, 'it is found')
  assert.is(
    verified.problems.find(({ code }) => code === undefined),
    undefined,
    'as damage',
  )
  if (name.includes('/catalog-')) {
    for (const { manifest, lines } of at.exports) {
      const { repository, identities } = at
      const found = await outcomeOf(async () =>
        linesOf(await shardsOf({ repository, manifest, identities })),
      )
      assert.ok(found === 13 || JSON.stringify(found) === JSON.stringify(lines), `${found}`)
    }
    return
  }
  const damaged = new Set(verified.damaged.map((i) => ranges.offsets[i]))
  const source = new MemorySource(changed(bytes, one))
  const reader = await outcomeOf(async () => {
    return new BundleReader({ path: one.file, identities: at.identities, source })
  })
  for (const { id, offset, length } of pieces) {
    const found = await outcomeOf(async () => {
      // One that no identity opens is a damaged bundle: openBundle says so.
      if (typeof reader === 'number') return 13
      return digestOf(reader.readTar(frames, { offset, length }))
    })
    assert.ok(found === 13 || found === id, 'a piece is whole, or is not there')
    if (found === 13) assert.ok(damaged.has(offset), 'verifying names it')
  }
}

/** No signature covers it, but its id is in every one; when it was made nobody asks. */
async function checkRepository(at: Truth): Promise<void> {
  const repository = await outcomeOf(async () => await findRepository(at.repository.target))
  if (typeof repository === 'number') return assert.ok([1, 13].includes(repository))
  assert.ok(repository !== undefined)
  const found = await readExports(at, repository)
  if (repository.id === at.repository.id) assert.equal(found, wholeExports(at))
  else assert.ok(found.every((what) => what === 13))
}

/** The machine's entry: what exports are added under, not what they are read by. */
async function checkMachine(at: Truth, one: Case, bytes: Buffer): Promise<void> {
  const [publicKey = ''] = at.publicKeys
  const isSigned = await isSignedBy(at.repository, { machine: MACHINE, publicKey })
  assert.is(isSigned, isUnsigned(one, bytes))
}

/** No signature covers these, and nothing that our program restores depends on them. */
const NOT_READ: readonly string[] = ['RECOVER.txt', 'recover.sh', `machines/${MACHINE}/data/latest`]

/** How fresh exports are: a record that is believed is the one that was signed. */
async function checkFreshness(at: Truth, one: Case, bytes: Buffer): Promise<void> {
  const { publicKeys } = at
  const of = { machine: MACHINE, publicKeys, nowMs: Date.now() + 3_600_000 }
  const { record } = await readFreshness(at.repository, of)
  const stamp = /\/([^/]+)\.json/.exec(one.file)![1]
  if (record?.written === stamp) assert.ok(isUnsigned(one, bytes), 'a changed record is believed')
}

async function check(at: Truth, one: Case): Promise<void> {
  const bytes = at.files.get(one.file)!
  const path = `${at.target}/${one.file}`
  writeFileSync(path, changed(bytes, one))
  try {
    if (one.file === 'repository.json') await checkRepository(at)
    else if (at.bundles.has(one.file)) await checkBundle(at, one, bytes)
    else if (/\/machine\.json(\.minisig)?$/.test(one.file)) await checkMachine(at, one, bytes)
    else if (one.file.includes('/freshness/')) await checkFreshness(at, one, bytes)
    else await checkSigned(at, one, bytes)
  } catch (error) {
    if (error instanceof Error) error.message = `${JSON.stringify(one)}: ${error.message}`
    throw error
  } finally {
    writeFileSync(path, bytes)
  }
}

/** Every case there is, file by file: of those that anything is read from. */
function allCases({ files }: Truth): Case[] {
  return [...files].flatMap(([file, { length }]) =>
    NOT_READ.includes(file)
      ? []
      : Array.from({ length }, (_, at): Case[] => [
          { file, how: 'one bit', at },
          { file, how: 'all bits', at },
          { file, how: 'cut', at },
        ]).flat(),
  )
}

flips('every file of a repository is one that the cases know', async () => {
  const at = await truth()
  const known =
    /^(RECOVER\.txt|recover\.sh|repository\.json|machines\/tester\/(machine\.json(\.minisig)?|freshness\/[^/]+\.json(\.minisig)?|data\/latest|data\/[^/]+\/(manifest\.tar\.zst\.age|verification\.sha256(\.minisig)?|(data|catalog)-0001\.tar\.zst\.age)))$/
  for (const file of at.files.keys()) assert.ok(known.test(file), file)
  assert.is(at.bundles.size, 4, 'two generations')
  const bytes = [...at.files.values()].reduce((sum, { length }) => sum + length, 0)
  assert.ok(bytes < 80_000, `${bytes} bytes`)
  assert.equal(await readExports(at), wholeExports(at), 'as it is it is whole')
})

flips(
  'a byte that is changed or missing anywhere is found, and nothing wrong is read',
  async () => {
    const at = await truth()
    const all = allCases(at)
    const random = randomOfRun('flips')
    const cases = isAll ? all : Array.from({ length: SAMPLE }, () => random.pick(all))
    const startMs = performance.now()
    for (const one of cases) await check(at, one)
    const seconds = ((performance.now() - startMs) / 1000).toFixed(1)
    process.stdout.write(`${cases.length} of ${all.length} cases in ${seconds} s\n`)
  },
)

flips('whatever is in what no signature covers, exports are read as they were', async () => {
  const at = await truth()
  for (const file of NOT_READ) {
    const kept = `${at.target}/${file}.kept`
    cpSync(`${at.target}/${file}`, kept)
    for (const what of ['', 'nonsense\n', '../../../..', '2999-01-01T000000Z\n']) {
      rmSync(`${at.target}/${file}`)
      writeFileSync(`${at.target}/${file}`, what)
      assert.is(exportsOf(await listStamps(at.repository, MACHINE)).length, 2)
      assert.equal(await readExports(at), wholeExports(at))
    }
    rmSync(`${at.target}/${file}`)
    cpSync(kept, `${at.target}/${file}`)
    rmSync(kept)
  }
})

flips('the command ends with 13, and restores what is whole and nothing else', async () => {
  const at = await truth()
  const all = allCases(at).filter(({ file }) => !/repository|machine\.json|freshness/.test(file))
  const random = randomOfRun('commands')
  const cases = isAll
    ? all.filter((_, i) => i % COMMAND_EVERY === 0)
    : Array.from({ length: SAMPLE_COMMANDS }, () => random.pick(all))
  for (const [i, one] of cases.entries()) await checkCommand(at, { one, i })
})

async function checkCommand(at: Truth, { one, i }: { one: Case; i: number }): Promise<void> {
  const { scenario, files, exports } = at
  const bytes = files.get(one.file)!
  const isHarmless = isUnsigned(one, bytes)
  const into = `${scenario.directory}/into-${i}`
  const { stamp } = exports.at(-1)!.place
  const run = async (values: Readonly<Record<string, string | boolean>>): Promise<number> => {
    const all = { source: 'external', identity: scenario.identity, ...values }
    const given = { scenario, values: all, nowMs: Date.now() }
    const outcome = await outcomeOf(async () => (await runCommand(restoreCommand, given)).status)
    return outcome
  }
  writeFileSync(`${at.target}/${one.file}`, changed(bytes, one))
  try {
    const what = JSON.stringify(one)
    assert.is(await run({ verify: true }), isHarmless ? 0 : 13, what)
    const restored = await run({ into, date: stamp })
    const concerns = one.file.includes(stamp) || at.bundles.has(one.file)
    assert.ok(restored === 13 || restored === 0, `${what}: ${restored}`)
    if (isHarmless || !concerns) assert.is(restored, 0, what)
    assertNoLeftovers(into)
    const found = existsSync(into) ? readdirSync(into, { recursive: true, encoding: 'utf8' }) : []
    const source = scenario.source.slice(1)
    const inside = found.filter((path) => path.startsWith(`${source}/`))
    for (const path of inside) {
      const there = lstatSync(`${into}/${path}`)
      assert.is(there.mode, lstatSync(`/${path}`).mode, what)
      if (there.isFile()) {
        assert.ok(
          readFileSync(`${into}/${path}`).equals(readFileSync(`/${path}`)),
          `${what}: ${path}`,
        )
      }
    }
    if (restored === 0) assert.is(inside.length, WHOLE, what)
    else assert.ok(inside.length < WHOLE || one.file.includes('/catalog-'), what)
  } finally {
    writeFileSync(`${at.target}/${one.file}`, bytes)
    rmSync(into, { recursive: true, force: true })
  }
}

/** How many paths the newest generation has below its source. */
const WHOLE = 10

flips.run()
