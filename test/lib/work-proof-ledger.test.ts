import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { noteDamage, readKnownDamage } from '../../lib/work/known-damage.ts'
import { noteProofs, provenMs, readProofs, type ReadWhole } from '../../lib/work/proof-ledger.ts'
import { adoptPending, REPOSITORY_RECORDS, stateDirectory } from '../../lib/work/state.ts'
import * as assert from '../helpers/assert.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const ledger = suite('work/proof-ledger')

const root = tempDirectory()
const SHA = 'a'.repeat(64)
const OTHER_SHA = 'b'.repeat(64)
const A = 'machines/m/data/2026-05-01T020000Z/data-0000.tar.zst.age'
const B = 'machines/m/data/2026-05-01T020000Z/data-0001.tar.zst.age'

let made = 0

function newPlace(): { readonly staging: string; readonly id: string } {
  const place = { staging: `${root}/${++made}`, id: '0123456789abcdef0123456789abcdef' }
  mkdirSync(stateDirectory(place), { recursive: true })
  return place
}

function read(path: string, change: Partial<ReadWhole> = {}): ReadWhole {
  return { path, sha256: SHA, bytes: 1000, atMs: 5000, how: 'checksums', ...change }
}

const file = (place: ReturnType<typeof newPlace>): string => `${stateDirectory(place)}/proofs.json`

ledger('what was read is proven since, as closely as it was read', () => {
  const place = newPlace()
  assert.is(readProofs(place).size, 0)
  noteProofs(place, { whole: [read(A), read(B, { how: 'restored', atMs: 7000 })], damaged: [] })
  const known = readProofs(place)
  const time = (path: string, how: ReadWhole['how'], sha256 = SHA) => {
    return provenMs(known, { path, sha256, how })
  }
  assert.is(time(A, 'checksums'), 5000)
  assert.is(time(A, 'restored'), undefined, 'checksums are less than content')
  assert.is(time(B, 'checksums'), 7000)
  assert.is(time(B, 'restored'), 7000)
  assert.is(time(B, 'checksums', OTHER_SHA), undefined, 'other bytes under the same path')
  assert.is(statSync(file(place)).mode & 0o777, 0o600)
})

ledger('checksums later leave what was restored before, but not for other bytes', () => {
  const place = newPlace()
  noteProofs(place, { whole: [read(A, { how: 'restored', atMs: 1000 })], damaged: [] })
  noteProofs(place, { whole: [read(A, { atMs: 2000 })], damaged: [] })
  const both = { sha256: SHA, bytes: 1000, checkedMs: 2000, restoredMs: 1000 }
  assert.equal(readProofs(place).get(A), both)
  noteProofs(place, { whole: [read(A, { atMs: 3000, sha256: OTHER_SHA })], damaged: [] })
  assert.is(readProofs(place).get(A)?.restoredMs, undefined)
})

ledger('what is damaged was never proven, and what is not kept is forgotten', () => {
  const place = newPlace()
  noteProofs(place, { whole: [read(A), read(B)], damaged: [] })
  noteProofs(place, { whole: [], damaged: [A] })
  assert.equal([...readProofs(place).keys()], [B])
  noteProofs(place, { whole: [read(A)], damaged: [], isKept: (path) => path === A })
  assert.equal([...readProofs(place).keys()], [A])
})

ledger('a damaged ledger is a lost one, and a damaged line is a lost line', () => {
  const place = newPlace()
  const lines = { [A]: [SHA, 1000, 5000], [B]: [SHA, -1, 5000], c: [SHA], d: 7, e: ['x', 1, 1] }
  writeFileSync(file(place), JSON.stringify(lines))
  assert.equal([...readProofs(place).keys()], [A])
  for (const text of ['', '{', '[]', 'null', '7']) {
    writeFileSync(file(place), text)
    assert.is(readProofs(place).size, 0, text)
    noteProofs(place, { whole: [read(B)], damaged: [] })
    assert.equal([...readProofs(place).keys()], [B], text)
  }
})

ledger('nothing is made where nothing is known of the repository', () => {
  const place = { staging: `${root}/${++made}`, id: 'f'.repeat(32) }
  noteProofs(place, { whole: [read(A)], damaged: [] })
  noteDamage(place, { damaged: [A], whole: [] })
  assert.not.ok(existsSync(place.staging))
})

ledger('bug: an export forgot which bundles are damaged', () => {
  const place = newPlace()
  noteDamage(place, { damaged: [A], whole: [] })
  noteProofs(place, { whole: [read(B)], damaged: [] })
  const directory = stateDirectory(place)
  const named = { file: 'bundles.zst', sha256: SHA }
  const commit = { set: 'data', stamp: '2026-05-01T020000Z', sha256: SHA }
  const state = { format: 1, commit, bundles: named, pieces: named, sets: {}, exports: {} }
  writeFileSync(`${directory}/state.pending.json`, JSON.stringify(state))
  writeFileSync(`${directory}/pieces-old.zst`, 'what nothing names')
  adoptPending(directory)
  assert.not.ok(existsSync(`${directory}/pieces-old.zst`))
  assert.equal([...readKnownDamage(place)], [A])
  assert.equal([...readProofs(place).keys()], [B])
  for (const name of REPOSITORY_RECORDS) assert.ok(existsSync(`${directory}/${name}`), name)
})

ledger('what is written is not written again, and what cannot be is said', () => {
  const place = newPlace()
  noteProofs(place, { whole: [read(A)], damaged: [] })
  const { ino } = statSync(file(place))
  noteProofs(place, { whole: [read(A)], damaged: [B] })
  assert.is(statSync(file(place)).ino, ino)
  rmSync(file(place))
  mkdirSync(file(place))
  try {
    noteProofs(place, { whole: [read(A)], damaged: [] })
    assert.unreachable()
  } catch (error) {
    assert.ok(error instanceof BackupError, String(error))
    assert.is(error.code, 'STAGING_FAILED')
  }
})

ledger('two that note at a time lose nothing of each other', async () => {
  const place = newPlace()
  const script = `
    const { noteProofs } = await import(process.argv[1])
    const { noteDamage } = await import(process.argv[2])
    const [place, name] = [JSON.parse(process.argv[3]), process.argv[4]]
    for (let i = 0; i < 20; i++) {
      const path = 'machines/m/' + name + i
      const whole = [{ path, sha256: '${SHA}', bytes: 1, atMs: 1, how: 'checksums' }]
      noteProofs(place, { whole, damaged: [] })
      noteDamage(place, { damaged: [path], whole: [] })
    }`
  const modules = ['proof-ledger', 'known-damage'].map((name) => {
    return new URL(`../../lib/work/${name}.js`, import.meta.url).href
  })
  const ended = ['a', 'b'].map(async (name) => {
    const words = ['--input-type=module', '-e', script, ...modules, JSON.stringify(place), name]
    const child = spawn(process.execPath, words, { stdio: ['ignore', 'ignore', 'inherit'] })
    return await new Promise<number | null>((resolve) => child.once('close', resolve))
  })
  assert.equal(await Promise.all(ended), [0, 0])
  assert.is(readProofs(place).size, 40)
  assert.is(readKnownDamage(place).size, 40)
  assert.is(readFileSync(`${stateDirectory(place)}/records.lock`, 'utf8'), '')
})

ledger.run()
