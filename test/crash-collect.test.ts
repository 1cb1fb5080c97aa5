// kill -9 of backup-collect at random moments, on real btrfs: snapshots, nested subvolumes, and
// staging as plain directories and as subvolumes (invariants 4, 6, 7).
//
// Unlike crash.test.ts this kills by the clock, because most of a collection happens in other
// programs. CRASHES in the environment is how many kills each sort of staging gets.

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from './helpers/assert.ts'
import { loopDevice } from './helpers/loop-device.ts'
import { canRunAsRoot } from './helpers/needs.ts'
import { type Random, randomOfRun } from './helpers/random.ts'
import { MAIN } from './helpers/run-cli.ts'
import {
  type Scenario,
  assertNoLeftovers,
  configure,
  inventory,
  makeScenario,
} from './helpers/scenario.ts'

const crash = suite('kill -9 of backup-collect on btrfs')
const CRASHES = Number(process.env['CRASHES'] ?? 4)

/** A collection of the small tree takes about this long. */
const LONGEST_MS = 900

const btrfs = (...words: string[]): string => {
  const run = spawnSync('btrfs', words, { encoding: 'utf8' })
  assert.is(run.status, 0, run.stderr)
  return run.stdout
}

const subvolumes = (mount: string): readonly string[] =>
  btrfs('subvolume', 'list', '-o', mount)
    .split('\n')
    .map((line) => line.replace(/.* path /, ''))
    .filter((path) => path !== '')
    .sort()

const mountsBelow = (directory: string): readonly string[] =>
  spawnSync('findmnt', ['--noheadings', '--list', '-o', 'TARGET'], { encoding: 'utf8' })
    .stdout.split('\n')
    .filter((path) => path.startsWith(`${directory}/`))

/** Digests of every generation that has its final name. */
function generations({ staging }: Staged): Map<string, ReadonlyMap<string, string>> {
  const stamps = readdirSync(`${staging}/data`).filter((name) => /^\d{4}-[\dT-]+Z$/.test(name))
  return new Map(stamps.map((stamp) => [stamp, inventory(`${staging}/data/${stamp}`)]))
}

interface Staged {
  readonly scenario: Scenario
  readonly source: string
  readonly staging: string
}

async function stage(directory: string, staging: string): Promise<Staged> {
  const scenario = await makeScenario()
  const source = `${directory}/source`
  btrfs('subvolume', 'create', source)
  btrfs('subvolume', 'create', `${source}/nested`)
  // Somebody else's, named as ours would be.
  btrfs('subvolume', 'snapshot', '-r', source, `${directory}/backup-data-2001-01-01T000000Z`)
  for (let i = 0; i < 40; i++) writeFileSync(`${source}/${i}`, `file ${i}`)
  writeFileSync(`${source}/nested/inside`, 'a nested subvolume')
  configure(scenario, (c) => {
    c['staging'] = staging
    c['retention'] = { local: 4 }
    c['backup_sets'][0].sources = [source]
    c['backup_sets'][0].snapshot = 'required'
  })
  return { scenario, source, staging }
}

/** Starts a collection and kills it, alone or with everything that it started. */
async function killAfter({ scenario }: Staged, waitMs: number, isGroup: boolean): Promise<void> {
  const environment = { PATH: process.env['PATH'] ?? '', ...scenario.environment }
  const options = { env: environment, detached: true, stdio: 'ignore' as const }
  const child = spawn(process.execPath, [MAIN, 'collect'], options)
  const ended = once(child, 'exit')
  await sleep(waitMs)
  try {
    process.kill(isGroup ? -child.pid! : child.pid!, 'SIGKILL')
  } catch {
    // It had ended before.
  }
  await ended
}

function edit({ source }: Staged, random: Random, round: number): void {
  writeFileSync(`${source}/${random.integer(40)}`, random.bytes(2000))
  writeFileSync(`${source}/new-${round}`, random.bytes(100))
  rmSync(`${source}/new-${round - 3}`, { force: true })
  writeFileSync(`${source}/nested/inside`, `round ${round}`)
}

for (const kind of ['plain directories', 'subvolumes'] as const) {
  crash(`staging as ${kind}: older generations stay, ours are swept, nobody else's`, async () => {
    if (!canRunAsRoot(`kill -9 on btrfs, ${kind}`)) return
    const device = loopDevice({ sizeMib: 512, type: 'btrfs' })
    const own = kind === 'subvolumes' ? loopDevice({ sizeMib: 512, type: 'btrfs' }) : undefined
    const plain = loopDevice({ sizeMib: 64 })
    const staging = `${(own ?? plain).path}/staging`
    mkdirSync(staging)
    const staged = await stage(device.path, staging)
    const random = randomOfRun(kind)
    const first = await staged.scenario.collect()
    assert.is(first.status, 0, first.stderr)
    const there = subvolumes(device.path)
    for (let round = 0; round < CRASHES; round++) {
      edit(staged, random, round)
      const before = generations(staged)
      const waitMs = random.integer(LONGEST_MS)
      const where = `round ${round}, after ${waitMs} ms`
      await killAfter(staged, waitMs, round % 2 === 0)
      for (const [stamp, content] of before) {
        assert.equal(generations(staged).get(stamp) ?? content, content, `${stamp}, ${where}`)
      }
      const next = await staged.scenario.collect()
      assert.is(next.status, 0, `${next.stderr}, ${where}`)
      assert.equal(subvolumes(device.path), there, `snapshots, ${where}`)
      assert.equal(mountsBelow(staging), [], `mounts, ${where}`)
      assertNoLeftovers(`${staging}/data`)
      for (const [stamp, content] of generations(staged)) {
        assert.equal(content, before.get(stamp) ?? content, `${stamp}, ${where}`)
      }
    }
    const latest = `${staging}/data/latest${staged.source}/`
    const compare = ['-aHAXSnic', '--delete', `${staged.source}/`, latest]
    assert.is(spawnSync('rsync', compare, { encoding: 'utf8' }).stdout, '', 'rsync finds nothing')
    device.unmount()
    own?.unmount()
    plain.unmount()
  })
}

crash.run()
