// How long `find`, `why` and `diff` take in a set of a million paths and several generations.
//
// Run by hand: node dist/test/bench/find.js [ENTRIES] [GENERATIONS]. Staging is made of catalogs
// alone, with empty trees; the commands are whole processes, and memory is their peak.

import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { CollectionHeader } from '../../lib/model/collection.ts'
import { comparePaths, rawPathToBytes } from '../../lib/model/raw-path.ts'
import type { Entry } from '../../lib/model/entry.ts'
import { formatStamp } from '../../lib/model/stamp.ts'
import { partialDirectory, prepareSet, publishCollection } from '../../lib/work/staging.ts'
import { recordVersions } from '../../lib/work/versions.ts'
import { MAIN } from '../helpers/run-cli.ts'

const [entriesWanted = 1_000_000, generations = 6] = process.argv.slice(2).map(Number)

const DAY_MS = 86_400_000
const FIRST_MS = Date.parse('2026-01-01T02:00:00Z')

/** In each generation one path in a thousand is new, one changed and one gone. */
const STEP = 1000

const directory = mkdtempSync(join(tmpdir(), 'bench-find-'))
try {
  await main()
} finally {
  rmSync(directory, { recursive: true })
}

async function main(): Promise<void> {
  const staging = `${directory}/staging`
  const source = `${directory}/data`
  mkdirSync(source)
  const configuration = `${directory}/config.yaml`
  const set = { name: 'data', sources: [source], snapshot: 'none' }
  const text = { machine: 'bench', staging, backup_sets: [set], targets: [] }
  writeFileSync(configuration, JSON.stringify(text))
  prepareSet({ staging, set: 'data' })
  for (let generation = 0; generation < generations; generation++) {
    const stamp = formatStamp(FIRST_MS + generation * DAY_MS)
    const entries = makeEntries(source.slice(1), generation)
    const header: CollectionHeader = {
      set: 'data',
      stamp,
      complete: true,
      missing: [],
      suspect: [],
      sources: [{ path: source.slice(1), snapshot: 'none', time: stamp }],
      entries: entries.length,
      files: entries.length,
      bytes: 0,
    }
    mkdirSync(rawPathToBytes(partialDirectory({ staging, set: 'data', stamp })))
    publishCollection({ staging, header, entries })
    const [startMs, before] = [performance.now(), process.cpuUsage()]
    await recordVersions({ staging, header, entries, report: () => {} })
    const seconds = ((performance.now() - startMs) / 1000).toFixed(2)
    const { user, system } = process.cpuUsage(before)
    const busy = ((user + system) / 1e6).toFixed(2)
    process.stdout.write(`update ${generation + 1}: ${seconds} s, ${busy} s of a processor\n`)
  }
  const size = statSync(`${staging}/.state/versions/data.index`).size
  process.stdout.write(`${entriesWanted} paths, ${generations} generations: ${size} bytes\n`)
  const [newest, oldest] = [generations - 1, 0].map((n) => formatStamp(FIRST_MS + n * DAY_MS))
  const path = `${source}/d00123/e04/file-000456.txt`
  measure('find, one hit', configuration, ['find', 'file-012345.txt'])
  measure('find, one hit, -i', configuration, ['find', '-i', 'FILE-012345.*'])
  measure('find, 1 in 100', configuration, ['find', '*00.txt'])
  measure('find, deleted', configuration, ['find', '--deleted', '*'])
  measure('find, everything', configuration, ['find', '*', '--print0'])
  measure('why', configuration, ['why', path])
  measure('diff', configuration, ['diff', oldest!, newest!])
  rmSync(`${staging}/.state/versions`, { recursive: true })
  measure('find, index made anew', configuration, ['find', 'file-012345.txt'])
}

function makeEntries(top: string, generation: number): Entry[] {
  const metadata = { mode: 0o644, uid: 1000, gid: 1000, user: 'me', group: 'me' }
  const entries: Entry[] = []
  for (let n = 0; n < entriesWanted; n++) {
    const isGone = (n + 1) % STEP < generation
    if (isGone) continue
    const changed = n % STEP === generation ? generation : 0
    const [upper, lower] = [String(n % 1000).padStart(5, '0'), String(n % 37).padStart(2, '0')]
    const name = `file-${String(n).padStart(6, '0')}.txt`
    const mtimeNs = 1_700_000_000_123_456_789n + BigInt(n + changed) * 1_000_003n
    const times = { mtimeNs, birthNs: mtimeNs - 5n, bornNs: mtimeNs }
    const path = `${top}/d${upper}/e${lower}/${name}`
    entries.push({ path, type: 'file', ...metadata, ...times, size: n + changed, inode: n })
  }
  return entries.sort((a, b) => comparePaths(a.path, b.path))
}

function measure(what: string, configuration: string, words: readonly string[]): void {
  const [verb = '', ...rest] = words
  const program = [process.execPath, MAIN, verb, '--config', configuration, ...rest]
  const args = ['-f', '%e %U %S %M', ...program]
  const { stdout, stderr, status } = spawnSync('/usr/bin/time', args, { maxBuffer: 2 ** 30 })
  const [elapsed, user, system, kibibytes] = stderr.toString().trim().split(/\s+/).slice(-4)
  const busy = (Number(user) + Number(system)).toFixed(2)
  const peak = Math.round(Number(kibibytes) / 1024)
  const times = `${elapsed} s, ${busy} s of a processor, ${peak} MiB at most`
  process.stdout.write(`${what}: ${times}, ${stdout.length} bytes, exit ${status}\n`)
  if (status !== 0) process.stdout.write(stderr.toString().slice(0, 2000))
}
