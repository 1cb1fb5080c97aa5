import { appendFileSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { randomBytes } from 'node:crypto'
import { suite } from 'uvu'
import { command } from '../../commands/prune.ts'
import { loadConfiguration } from '../../lib/machine/config.ts'
import type { ReportEvent } from '../../lib/model/report.ts'
import { changeMarks, withLock } from '../../lib/work/marks.ts'
import { pruneExports } from '../../lib/work/prune.ts'
import { openSigner } from '../../lib/work/signing.ts'
import { acquireSetLock, listStamps } from '../../lib/work/staging.ts'
import { openTarget, repositoryToRead } from '../../lib/work/target-access.ts'
import * as assert from '../helpers/assert.ts'
import { runCommand } from '../helpers/run-command.ts'
import {
  assertWhole,
  configure,
  exportStamps,
  inventory,
  jsonLines,
  makeScenario,
  namesIn,
  type Scenario,
  setDirectory,
} from '../helpers/scenario.ts'

const prune = suite('backup prune')

/** Collections and exports that all stay, and then a rule that keeps one. */
async function withHistory(count: number): Promise<{ scenario: Scenario; stamps: string[] }> {
  const scenario = await makeScenario()
  writeFileSync(`${scenario.source}/base`, randomBytes(100_000))
  const stamps: string[] = []
  for (let i = 0; i < count; i++) {
    writeFileSync(`${scenario.source}/day`, randomBytes(50_000))
    stamps.push((await scenario.generation()).stamp)
  }
  configure(scenario, (c) => {
    c['retention'] = { local: 1, external: 1 }
  })
  return { scenario, stamps }
}

const collected = ({ staging }: Scenario): string[] => listStamps({ staging, set: 'data' })

prune('lists why each one stays or goes, and in a dry run removes nothing', async () => {
  const { scenario, stamps } = await withHistory(3)
  await scenario.run('lock', 'data', stamps[0]!)
  await scenario.run('tag', 'first', 'data', stamps[0]!)
  const before = [inventory(scenario.staging), inventory(scenario.target)]
  const { status, stdout, stderr } = await scenario.run('prune', '--dry-run')
  assert.is(status, 0, stderr)
  assert.match(stdout, /data in staging: 2 stay, 1 go/)
  assert.match(stdout, /data in drive: 2 stay, 1 go, which frees \d+/)
  assert.match(stdout, new RegExp(`${stamps[0]} .* stays  locked  \\[first\\]`))
  assert.match(stdout, new RegExp(`${stamps[1]} .* goes   no rule keeps it`))
  assert.match(stdout, new RegExp(`${stamps[2]} .* stays  the newest complete one, one of`))
  assert.equal([inventory(scenario.staging), inventory(scenario.target)], before)
})

prune('removes nothing, even with --yes, as long as a generation is dated ahead', async () => {
  const { scenario, stamps } = await withHistory(3)
  const yesterdayMs = Date.now() - 86_400_000
  const values = { yes: true }
  const held = await runCommand(command, { scenario, values, nowMs: yesterdayMs })
  assert.is(held.status, 3)
  assert.match(held.stderr, /nothing goes, for one is dated later than this machine's clock/)
  assert.equal(collected(scenario), stamps)
  assert.equal(exportStamps(scenario), stamps)
})

prune('without a terminal removes only with --yes, and exits 4 without', async () => {
  const { scenario, stamps } = await withHistory(3)
  const refused = await scenario.run('prune')
  assert.is(refused.status, 4)
  assert.match(refused.stderr, 'removing 4 generations has to be confirmed')
  assert.match(refused.stdout, 'data in staging: 1 stay, 2 go')
  assert.equal(collected(scenario), stamps)
  assert.equal(exportStamps(scenario), stamps)

  const done = await scenario.run('prune', '--yes', '--json')
  assert.is(done.status, 0, done.stderr)
  assert.equal(collected(scenario), stamps.slice(2))
  assert.equal(exportStamps(scenario), stamps.slice(2))
  const results = jsonLines(done, 'result')
  assert.equal(
    results.map(({ place, outcome, removed }) => [place, outcome, removed]),
    [
      ['staging', 'pruned', stamps.slice(0, 2)],
      ['drive', 'pruned', stamps.slice(0, 2)],
    ],
  )
  const [first] = results[1]!['generations']
  assert.equal(
    [first.stamp, first.stays, first.reasons, first.tags],
    [stamps[0], false, ['no rule keeps it'], []],
  )
  assert.is(results[1]!['freedBytes'], results[1]!['freesBytes'])
  assert.ok(results[1]!['freedBytes'] > 50_000)
  // What the export that stays needs of the others is still there.
  assert.ok(existsSync(`${setDirectory(scenario)}/${stamps[0]}/data-0001.tar.zst.age`))
  assert.not.ok(existsSync(`${setDirectory(scenario)}/${stamps[1]}`))
  await assertWhole(scenario)
  const again = await scenario.run('prune')
  assert.is(again.status, 0, again.stderr)
  assert.match(again.stdout, 'there is nothing to remove')
})

prune('--local and --target say where', async () => {
  const { scenario, stamps } = await withHistory(2)
  assert.is((await scenario.run('prune', '--local', '--yes')).status, 0)
  assert.equal([collected(scenario), exportStamps(scenario)], [stamps.slice(1), stamps])
  assert.is((await scenario.run('prune', '--target', 'drive', '--yes')).status, 0)
  assert.equal(exportStamps(scenario), stamps.slice(1))
  const both = await scenario.run('prune', '--local', '--target', 'drive')
  assert.is(both.status, 2)
})

prune('rules of the configuration keep exports and collections alike', async () => {
  const { scenario, stamps } = await withHistory(3)
  configure(scenario, (c) => {
    c['retention'] = { local: 1, external: 1, keep: { last: 2 } }
  })
  assert.is((await scenario.run('prune', '--yes')).status, 0)
  assert.equal([collected(scenario), exportStamps(scenario)], [stamps.slice(1), stamps.slice(1)])
})

prune('a locked export stays after a good run too, and restores', async () => {
  const { scenario, stamps } = await withHistory(2)
  assert.is((await scenario.run('lock', 'data', stamps[0]!)).status, 0)
  writeFileSync(`${scenario.source}/day`, randomBytes(50_000))
  const { stamp } = await scenario.generation()
  assert.equal(exportStamps(scenario), [stamps[0], stamp])
  assert.equal(collected(scenario), [stamps[0], stamp])
  await assertWhole(scenario)
})

prune('damaged locks freeze every removal, after a good run too', async () => {
  const { scenario, stamps } = await withHistory(2)
  writeFileSync(`${scenario.staging}/.state/marks.json`, '{"format":1,"loc')
  const asked = await scenario.run('prune', '--yes')
  assert.is(asked.status, 13)
  assert.match(asked.stderr, 'the file of locks and tags is damaged')
  const { stamp } = await scenario.generation()
  assert.equal(exportStamps(scenario), [...stamps, stamp])
  assert.equal(collected(scenario), [...stamps, stamp])
})

prune('an export that cannot be checked stops removal on its target only', async () => {
  const { scenario, stamps } = await withHistory(3)
  const path = `${setDirectory(scenario)}/${stamps[2]}/verification.sha256`
  const bytes = readFileSync(path)
  appendFileSync(path, 'x')
  const { status } = await scenario.run('prune', '--yes')
  assert.is(status, 13)
  assert.equal(exportStamps(scenario), stamps)
  assert.equal(collected(scenario), stamps.slice(2))
  writeFileSync(path, bytes)
  assert.is((await scenario.run('prune', '--yes')).status, 0)
  assert.equal(exportStamps(scenario), stamps.slice(2))
})

prune('exports that nobody knows to be complete all stay', async () => {
  const { scenario, stamps } = await withHistory(3)
  rmSync(`${scenario.staging}/.state/repositories`, { recursive: true })
  const { status, stdout } = await scenario.run('prune', '--target', 'drive', '--yes')
  assert.is(status, 0)
  assert.match(stdout, 'stays  not known to be complete')
  assert.match(stdout, 'Nobody knows whether 3 of them are complete: see --unknown.')
  assert.equal(exportStamps(scenario), stamps)
})

prune('a lost state lets no export go by later good runs, only by --unknown', async () => {
  const { scenario, stamps } = await withHistory(3)
  rmSync(`${scenario.staging}/.state`, { recursive: true })
  const after: string[] = []
  for (let i = 0; i < 2; i++) {
    writeFileSync(`${scenario.source}/day`, randomBytes(50_000))
    after.push((await scenario.generation()).stamp)
  }
  assert.equal(exportStamps(scenario), [...stamps, after[1]])
  const shown = await scenario.run('prune', '--target', 'drive', '--unknown', '--dry-run')
  assert.is(shown.status, 0, shown.stderr)
  assert.match(shown.stdout, 'data in drive: 1 stay, 3 go')
  assert.match(shown.stdout, 'goes   not known to be complete, and no rule keeps it')
  assert.not.match(shown.stdout, 'see --unknown')
  const refused = await scenario.run('prune', '--target', 'drive', '--unknown')
  assert.is(refused.status, 4)
  assert.equal(exportStamps(scenario), [...stamps, after[1]])
  const done = await scenario.run('prune', '--target', 'drive', '--unknown', '--yes')
  assert.is(done.status, 0, done.stderr)
  assert.equal(exportStamps(scenario), after.slice(1))
  await assertWhole(scenario)
})

prune('parity goes with its bundle, and stays with it; what is set aside stays', async () => {
  const { scenario, stamps } = await withHistory(3)
  const [first, second, third] = stamps as [string, string, string]
  const directory = setDirectory(scenario)
  const protectedFiles = namesIn(directory, /\.age$/)
  for (const name of protectedFiles) writeFileSync(`${directory}/${name}.par2`, name)
  writeFileSync(`${directory}/${first}/data-0001.tar.zst.age.damaged`, 'kept')
  writeFileSync(`${directory}/${second}/data-0001.tar.zst.age.par2.partial`, 'half')
  writeFileSync(`${directory}/${third}/data-0001.tar.zst.age.par2.partial`, 'half')
  // Its bundle is missing, and needed: by what is left of it something may be mended.
  const needed = `${first}/data-0001.tar.zst.age`
  rmSync(`${directory}/${needed}`)
  const { status, stderr } = await scenario.run('prune', '--target', 'drive', '--yes')
  assert.is(status, 0, stderr)
  const left = namesIn(directory, /\.age(\.|$)/)
  const isLeft = (name: string): boolean => name.startsWith(third) || name === needed
  assert.equal(left, [
    `${needed}.damaged`,
    `${needed}.par2`,
    ...protectedFiles
      .filter(isLeft)
      .flatMap((name) => (name === needed ? [] : [name, `${name}.par2`])),
  ])
  assert.not.ok(existsSync(`${directory}/${second}`))
})

/** Removes as after a good run; `beforeRemoval` sees each path before it goes. */
async function pruneDrive(scenario: Scenario, beforeRemoval: (path: string) => void) {
  const { configuration: path, home, staging } = scenario
  const environment = { HOME: home }
  const configuration = await loadConfiguration({ path, environment, home, hostName: 'tester' })
  const { publicKey } = await openSigner(configuration)
  const target = await openTarget(configuration.targets[0]!, configuration)
  const remove = target.remove.bind(target)
  target.remove = async (path) => {
    beforeRemoval(path)
    await remove(path)
  }
  const notices: [string, string][] = []
  const report = (event: ReportEvent): void => {
    if (event.kind === 'notice') notices.push([event.code, event.message])
  }
  const { machine } = configuration
  const of = { staging, machine, set: 'data', keep: 1, rules: {}, publicKeys: [publicKey], report }
  const repository = await repositoryToRead(target)
  const outcome = await pruneExports(repository, { ...of, isComplete: () => true })
  return { outcome, notices }
}

prune('an export locked while others go stays, with what it needs, and that is told', async () => {
  const { scenario, stamps } = await withHistory(4)
  const [first, second, third, last] = stamps as [string, string, string, string]
  const seen: string[] = []
  const { outcome, notices } = await pruneDrive(scenario, (path) => {
    seen.push(path)
    if (seen.length > 1) return
    const lock = { set: 'data', stamp: second, reason: undefined }
    changeMarks(scenario.staging, (marks) => withLock(marks, lock))
  })
  assert.equal(outcome.removedExports, [`tester/data/${first}`, `tester/data/${third}`])
  assert.equal(exportStamps(scenario), [second, last])
  assert.ok(existsSync(`${setDirectory(scenario)}/${second}/data-0001.tar.zst.age`))
  assert.not.ok(existsSync(`${setDirectory(scenario)}/${third}`))
  assert.ok(outcome.freedBytes > 50_000)
  assert.equal(notices, [
    ['LOCKED_MEANWHILE', `tester/data/${second} stays on drive: it was locked just now`],
  ])
  await assertWhole(scenario)
})

prune('locks that are damaged while exports go stop the rest', async () => {
  const { scenario, stamps } = await withHistory(3)
  const { outcome, notices } = await pruneDrive(scenario, () => {
    writeFileSync(`${scenario.staging}/.state/marks.json`, 'nonsense')
  })
  assert.equal(outcome.removedExports, [`tester/data/${stamps[0]}`])
  assert.is(outcome.removedBundles, 0)
  assert.equal(exportStamps(scenario), stamps.slice(1))
  assert.is(new Set(notices.map(([code]) => code)).size, 1)
  assert.match(notices[0]!.join(' '), 'RETENTION_FROZEN nothing more is removed from drive: ')
  await assertWhole(scenario)
})

prune('a run that is short of space takes nothing early unless it was good', async () => {
  const { scenario, stamps } = await withHistory(3)
  configure(scenario, (c) => {
    c['retention'] = { local: 7, external: 5, min_free: '99%' }
  })
  for (const name of ['base', 'day']) rmSync(`${scenario.source}/${name}`)
  const suspect = await scenario.collect()
  assert.is(suspect.status, 3, suspect.stderr)
  assert.match(suspect.stderr, 'collections go early only once a good one is published')
  assert.equal(collected(scenario).slice(0, 3), stamps)
  writeFileSync(`${scenario.source}/base`, randomBytes(100_000))
  writeFileSync(`${scenario.source}/day`, randomBytes(50_000))
  const good = await scenario.collect()
  assert.is(good.status, 0, good.stderr)
  assert.match(good.stderr, `${stamps[0]} removed early, for space`)
  assert.is(collected(scenario).length, 1)
})

prune('a set that another run has exits 11 and keeps its collections', async () => {
  const { scenario, stamps } = await withHistory(2)
  const { staging } = scenario
  const held = acquireSetLock({ staging, set: 'data', description: 'a run', waitMs: 0 })
  const { status } = await scenario.run('prune', '--local', '--yes')
  held.release()
  assert.is(status, 11)
  assert.equal(collected(scenario), stamps)
})

prune('a target that is not there matters only where it was named', async () => {
  const { scenario, stamps } = await withHistory(2)
  rmSync(scenario.target, { recursive: true })
  const named = await scenario.run('prune', '--target', 'drive', '--yes')
  assert.is(named.status, 10)
  const all = await scenario.run('prune', '--yes')
  assert.is(all.status, 0, all.stderr)
  assert.match(all.stderr, 'drive: ')
  assert.equal(collected(scenario), stamps.slice(1))
})

prune.run()
