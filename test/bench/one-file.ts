// How long one file takes out of a repository of a terabyte, and how much memory: by hand.
//
// usage: node dist/test/bench/one-file.js [ENTRIES…]   (5000000 and 1000000 where nothing is said)
//
// The catalog is a real one, signed and encrypted, of so many entries of 200 kB; of the bundles that
// it names only the one with the wanted file is real, the others are holes of the right length. Each
// size takes a minute or two to make, and about 80 MB of disk for a million entries. Wall time and
// peak memory are those of the whole process, as /usr/bin/time and the kernel count them; what the
// network path would ask for is counted by the calls of a target that is read by ranges alone.

import { spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { digestOf } from '../../lib/format/chunker.ts'
import { readIdentityFile } from '../../lib/machine/identity.ts'
import type { Entry, FrameRange, Range } from '../../lib/model/entry.ts'
import type { ManifestBundle } from '../../lib/model/manifest.ts'
import { type BundlePlace, encodeShard } from '../../lib/model/shard.ts'
import { bundlePath } from '../../lib/model/verification.ts'
import { ExportReader } from '../../lib/work/export-reader.ts'
import { findRepository, readManifest } from '../../lib/work/repository.ts'
import {
  type Forge,
  ForgedBundle,
  ForgedCatalog,
  forgeOf,
  publishForged,
} from '../helpers/forged-repository.ts'
import { networkTarget } from '../helpers/network-target.ts'
import { MAIN } from '../helpers/run-cli.ts'
import { type Scenario, makeScenario } from '../helpers/scenario.ts'

const MIB = 2 ** 20
const SET = 'large'
const STAMP = '2030-01-01T000000Z'
/** Of a shard: a directory of so many files. */
const FILES = 249
const FILE_BYTES = 200_000
/** So many shards' files lie in one bundle: 250 MB. */
const SHARDS_A_BUNDLE = 5
/** An export a day for some weeks: each left a catalog bundle. */
const CATALOG_BUNDLES = 40
const CONTENT = randomBytes(FILE_BYTES)

await main()

async function main(): Promise<void> {
  const sizes = process.argv.slice(2).map(Number)
  const scenario = await makeScenario()
  writeFileSync(`${scenario.source}/small`, 'small')
  await scenario.generation()
  const forge = await forgeOf(scenario)
  const small = measure(scenario, { set: 'data', path: `${scenario.source}/small` })
  for (const entries of sizes.length > 0 ? sizes : [5_000_000, 1_000_000]) {
    const startMs = performance.now()
    const path = await make(forge, entries)
    const seconds = Math.round((performance.now() - startMs) / 1000)
    console.log(`\n${entries} entries, made in ${seconds} s`)
    const list = measure(scenario, { set: SET, path: undefined })
    console.log(`--list     ${figures(list)}`)
    for (const round of ['first', 'again']) {
      const one = measure(scenario, { set: SET, path: `/${path}` })
      const growth = ((one.peakMb - small.peakMb) / entries) * 1e6
      console.log(
        `one file   ${figures(one)}   `
          + `${growth.toFixed(1)} MB for a million entries   (${round})`,
      )
    }
    console.log(`over a network: ${await countRequests(scenario, path)}`)
    rmSync(`${scenario.target}/machines/tester/${SET}`, { recursive: true })
  }
}

function figures({ seconds, cpuSeconds, peakMb }: Measured): string {
  const [wall, cpu] = [seconds.toFixed(2), cpuSeconds.toFixed(2)]
  return `${wall} s   ${cpu} s of processor   ${Math.round(peakMb)} MB`
}

/** Makes the export. @returns the path of the file that is really there */
async function make(forge: Forge, entries: number): Promise<string> {
  const shards = Math.round(entries / (FILES + 1))
  const real = new ForgedBundle(forge, `${SET}/${STAMP}/data-9999`)
  const id = digestOf(CONTENT)
  const [offset] = real.member(`.pieces/${id}`, CONTENT)
  const realPlace: BundlePlace = { name: real.name, frames: real.frames }
  const bundles: ManifestBundle[] = [real.finish()]
  const catalog = { bundle: catalogBundle(forge, 1), number: 1 }
  const forged = new ForgedCatalog(catalog.bundle)
  const wanted = Math.floor(shards / 2)
  let path = ''
  for (let number = 0; number < shards; number++) {
    const dataBundle = 1 + Math.floor(number / SHARDS_A_BUNDLE)
    const base = (number % SHARDS_A_BUNDLE) * 52 * MIB
    const name = `${SET}/${STAMP}/data-${String(dataBundle).padStart(4, '0')}`
    if (number % SHARDS_A_BUNDLE === 0) bundles.push(hole(forge, name))
    const run = shardEntries(number, base)
    if (number === wanted) {
      const entry = run[100]!
      path = entry.path
      run[100] = { ...entry, pieces: [[id, 1, offset, FILE_BYTES]] }
    }
    const places: readonly BundlePlace[] = [{ name, frames: framesFrom(base) }, realPlace]
    const bytes = encodeShard(run, (bundle) => places[bundle]!)
    forged.add(bytes, { entries: run.length, first: run[0]!.path })
    if (number === Math.floor((shards * catalog.number) / CATALOG_BUNDLES)) {
      bundles.push(catalog.bundle.finish())
      catalog.number += 1
      catalog.bundle = catalogBundle(forge, catalog.number)
      forged.goOnIn(catalog.bundle)
    }
  }
  const index = forged.finish()
  bundles.push(catalog.bundle.finish())
  const files = shards * FILES
  await publishForged(forge, {
    place: { set: SET, stamp: STAMP },
    index,
    bundles,
    statistics: { entries: shards * (FILES + 1), files, bytes: files * FILE_BYTES },
  })
  return path
}

function catalogBundle(forge: Forge, number: number): ForgedBundle {
  const name = `${SET}/${STAMP}/catalog-${String(number).padStart(4, '0')}`
  return new ForgedBundle(forge, name)
}

/** A bundle of the right length, of which there is nothing. */
function hole(forge: Forge, name: string): ManifestBundle {
  const sizeBytes = SHARDS_A_BUNDLE * FILES * FILE_BYTES
  const path = `${forge.directory}/${bundlePath(forge.machine, name)}`
  mkdirSync(dirname(path), { recursive: true })
  writeFileSync(path, '')
  truncateSync(path, sizeBytes)
  return { name, sizeBytes, sha256: randomBytes(32).toString('hex') }
}

/** A directory and its files, whose content lies one after another from `base` on. */
function shardEntries(number: number, base: number): Entry[] {
  const directory = `home/somebody/documents/${String(number).padStart(6, '0')} and so on`
  const metadata = { mode: 0o644, uid: 1000, gid: 1000, user: 'somebody', group: 'somebody' }
  const mtimeNs = 1_700_000_000_000_000_000n + BigInt(number) * 1_234_567_891n
  const header: Range = [0, base, 1024]
  const ids = randomBytes(32 * FILES).toString('hex')
  const files = Array.from({ length: FILES }, (_, i): Entry => {
    const offset = base + 1024 + i * (FILE_BYTES + 1024)
    return {
      ...metadata,
      path: `${directory}/a file of somebody's, ${String(i).padStart(4, '0')}.text`,
      type: 'file',
      mtimeNs: mtimeNs + BigInt(i) * 987_654_321n,
      size: FILE_BYTES,
      header: [0, offset - 1024, 1024],
      pieces: [[ids.slice(64 * i, 64 * (i + 1)), 0, offset, FILE_BYTES]],
    }
  })
  return [
    { ...metadata, path: directory, type: 'directory', mode: 0o755, mtimeNs, header },
    ...files,
  ]
}

/** Frames of 4 MiB that compress to the half. */
function framesFrom(base: number): readonly FrameRange[] {
  return Array.from({ length: 13 }, (_, i): FrameRange => {
    const tarOffset = base + i * 4 * MIB
    return [tarOffset, 4 * MIB, tarOffset / 2, 2 * MIB]
  })
}

interface Measured {
  readonly seconds: number
  /** Of all threads: what does not depend on who else is at work. */
  readonly cpuSeconds: number
  readonly peakMb: number
}

/** The program as people start it; without a path the list. */
function measure(
  scenario: Scenario,
  { set, path }: { readonly set: string; readonly path: string | undefined },
): Measured {
  const into = `${scenario.directory}/into`
  rmSync(into, { recursive: true, force: true })
  const what = path === undefined ? ['--list'] : ['--path', path, '--into', into]
  const words = ['restore', '--source', 'external', '--set', set, '--identity', scenario.identity]
  const startMs = performance.now()
  const run = spawnSync(
    '/usr/bin/time',
    ['-f', '%M %U %S', process.execPath, MAIN, ...words, ...what],
    { env: { PATH: process.env['PATH'], ...scenario.environment }, encoding: 'utf8' },
  )
  const seconds = (performance.now() - startMs) / 1000
  if (run.status !== 0) throw new Error(run.stdout + run.stderr)
  if (set === SET && path !== undefined && !readFileSync(into + path).equals(CONTENT)) {
    throw new Error(`${path} is not what it was`)
  }
  const [peakKib = 0, user = 0, system = 0] = run.stderr
    .trim()
    .split('\n')
    .at(-1)!
    .split(' ')
    .map(Number)
  return { seconds, cpuSeconds: user + system, peakMb: peakKib / 1024 }
}

/** From the manifest to the entry, where everything is read by ranges. */
async function countRequests(scenario: Scenario, path: string): Promise<string> {
  const target = networkTarget({ path: scenario.target, spool: `${scenario.directory}/spool` })
  const repository = (await findRepository(target))!
  const { identities, signingKeys } = await readIdentityFile({
    path: scenario.identity,
    askPassphrase: async () => await Promise.reject(new Error('it has none')),
  })
  const publicKeys = signingKeys.map(({ publicKey }) => publicKey)
  const place = { machine: 'tester', set: SET, stamp: STAMP }
  let bytes = 0
  const readRange = target.readRange.bind(target)
  const read = target.read.bind(target)
  const counted = Object.assign(target, {
    readRange: async (name: string, range: { offset: number; length: number }) => {
      bytes += range.length
      return await readRange(name, range)
    },
    read: async (name: string, maxBytes: number) => {
      const found = await read(name, maxBytes)
      bytes += found?.length ?? 0
      return found
    },
  })
  counted.calls.length = 0
  const manifest = await readManifest(repository, place, { publicKeys, identities })
  const reader = new ExportReader({ repository, manifest, identities })
  const shards = await reader.shardsOf(path)
  for (const shard of shards) await reader.shard(shard)
  reader.close()
  const requests = counted.calls.length
  return `${requests} requests, ${(bytes / 1e6).toFixed(1)} MB, to the place of every byte of it`
}
