// kill -9 at chosen system calls of every phase; the next run needs no help (invariants 1, 3, 7).
//
// The moments are spread over all calls that change anything, one in each stretch, by SEED. CRASHES
// in the environment is how many of them each phase gets: `npm run test:crash` asks for many.

import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from './helpers/assert.ts'
import { randomOfRun } from './helpers/random.ts'
import {
  type Scenario,
  assertNoLeftovers,
  assertSameTree,
  assertWhole,
  configure,
  exportStamps,
  exportedBy,
  inventory,
  makeScenario,
  script,
  setDirectory,
} from './helpers/scenario.ts'
import { type FaultRule, planFault } from './helpers/system-faults.ts'

const crash = suite('kill -9')
const CRASHES = Number(process.env['CRASHES'] ?? 6)

/** One moment in each of CRASHES equal stretches of the calls. */
function moments(name: string, calls: number): number[] {
  const random = randomOfRun(name)
  const count = Math.min(CRASHES, calls)
  const edge = (i: number): number => Math.floor((i * calls) / count)
  return Array.from(
    { length: count },
    (_, i) => edge(i) + random.integer(edge(i + 1) - edge(i)) + 1,
  )
}

/** Runs a command under a rule. */
async function withFault(
  scenario: Scenario,
  rule: FaultRule,
  action: () => Promise<{ readonly status: number | null }>,
): Promise<{ readonly status: number | null; readonly calls: string[] }> {
  const plan = planFault(rule)
  Object.assign(scenario.environment, plan.environment)
  try {
    const { status } = await action()
    return { status, calls: plan.count() === 0 ? [] : plan.calls() }
  } finally {
    for (const name of Object.keys(plan.environment)) delete scenario.environment[name]
  }
}

function plant(source: string): void {
  mkdirSync(`${source}/a`)
  for (let i = 0; i < 20; i++) writeFileSync(`${source}/a/${i}`, randomBytes(20_000))
  writeFileSync(`${source}/large`, randomBytes(5_000_000))
  script('cd "$1"; ln a/1 one; ln -s a/2 two', source)
}

function change(source: string, n: number): void {
  writeFileSync(`${source}/a/${n % 20}`, randomBytes(20_000))
  writeFileSync(`${source}/new-${n}`, randomBytes(50_000))
}

/** Every export that there was still has the same bytes. */
function assertUntouched(
  before: ReadonlyMap<string, string>,
  scenario: Scenario,
  where: string,
): void {
  const after = inventory(scenario.target)
  for (const [path, what] of before)
    if (!path.endsWith('/latest')) assert.is(after.get(path), what, `${path}, ${where}`)
}

crash('backup-external: older exports stay as they are, and the next run succeeds', async () => {
  const scenario = await makeScenario()
  configure(scenario, (c) => {
    c['retention'] = { external: 1000, local: 3 }
  })
  plant(scenario.source)
  await scenario.generation()
  const trial = await withFault(scenario, { action: 'count' }, async () => {
    change(scenario.source, 0)
    await scenario.collect()
    return await scenario.external()
  })
  // Those of the collection are counted too: moments before the export starts are no moments of it.
  const calls = trial.calls.findLastIndex((call) => call.endsWith('/.run.lock'))
  const total = trial.calls.length - calls
  for (const at of moments('external', total)) {
    change(scenario.source, at)
    assert.is((await scenario.collect()).status, 0)
    const before = inventory(scenario.target)
    const killed = await withFault(scenario, { action: 'kill', at }, scenario.external)
    const where = `call ${at}: ${killed.calls.at(-1)}`
    assert.ok(killed.status === null || killed.calls.length < at, where)
    assertUntouched(before, scenario, where)
    const next = await scenario.external()
    assert.is(next.status, 0, `${next.stderr}, ${where}`)
    assertUntouched(before, scenario, where)
    assertNoLeftovers(scenario.target)
    const [newest = ''] = exportStamps(scenario).slice(-1)
    assert.is(
      readFileSync(`${setDirectory(scenario)}/latest`, 'utf8'),
      `${newest}\n`,
      `latest, ${where}`,
    )
  }
  await assertWhole(scenario)
  const into = `${scenario.directory}/into`
  assert.is((await scenario.restore('--into', into)).status, 0)
  assertSameTree(into + scenario.source, scenario.source)
})

crash('the very first export, which makes the repository', async () => {
  const scenario = await makeScenario()
  writeFileSync(`${scenario.source}/letter`, 'dear drive')
  assert.is((await scenario.collect()).status, 0)
  const counted = await withFault(scenario, { action: 'count' }, scenario.external)
  for (const at of moments('first', counted.calls.length)) {
    script('rm -rf "$1" "$2/.state"; mkdir "$1"', scenario.target, scenario.staging)
    const killed = await withFault(scenario, { action: 'kill', at }, scenario.external)
    const where = `call ${at}: ${killed.calls.at(-1)}`
    assert.is(killed.status, null, where)
    const next = await scenario.external()
    assert.is(next.status, 0, `${next.stderr}, ${where}`)
    assertNoLeftovers(scenario.target)
    assert.is(exportStamps(scenario).length, 1)
    assert.ok(existsSync(`${setDirectory(scenario)}/latest`), `latest, ${where}`)
    await assertWhole(scenario)
  }
})

for (const [moment, match] of [
  [
    'after the state is pending and before the manifest',
    /^renameSync .*\/manifest\.tar\.zst\.age$/,
  ],
  ['after the manifest and before the state is adopted', /^renameSync .*\/state\.json$/],
  ['after the state is adopted and before latest moves', /^renameSync .*\/data\/latest$/],
] as const) {
  crash(
    `backup-external ${moment}: the state is known, and latest is right after the next run`,
    async () => {
      const scenario = await makeScenario()
      plant(scenario.source)
      await scenario.generation()
      change(scenario.source, 1)
      await scenario.collect()
      const killed = await withFault(scenario, { action: 'kill', match, at: 1 }, scenario.external)
      assert.is(killed.status, null)
      const next = await scenario.external('--json')
      assert.is(next.status, 0, next.stderr)
      assert.not.match(next.stderr, 'is lost')
      assertNoLeftovers(scenario.target)
      const stamps = exportStamps(scenario)
      assert.is(stamps.length, 2)
      assert.is(readFileSync(`${setDirectory(scenario)}/latest`, 'utf8'), `${stamps[1]}\n`)
      change(scenario.source, 2)
      const { full, dataBytes } = await scenario.generation()
      assert.not.ok(full)
      assert.ok(dataBytes < 200_000, `${dataBytes} bytes`)
      await assertWhole(scenario)
    },
  )
}

crash('backup-external while retention deletes: the next export finishes it', async () => {
  const scenario = await makeScenario()
  configure(scenario, (c) => {
    c['retention'] = { external: 1 }
  })
  plant(scenario.source)
  await scenario.generation()
  for (const at of [1, 2, 3]) {
    change(scenario.source, at)
    await scenario.collect()
    const match = /^(unlinkSync|rmdirSync) .*\/\d{4}-[^/]*Z(\/[^/]*\.(age|sha256|minisig))?$/
    const killed = await withFault(scenario, { action: 'kill', match, at }, scenario.external)
    assert.is(killed.status, null)
    await assertWhole(scenario)
  }
  const { stamp } = await scenario.generation()
  assert.equal(exportStamps(scenario), [stamp])
  const left = readdirSync(setDirectory(scenario)).filter((name) => name !== 'latest')
  for (const name of left) {
    const files = readdirSync(`${setDirectory(scenario)}/${name}`)
    assert.ok(
      name === stamp || files.every((file) => /^(data|catalog)-/.test(file)),
      `${name}: ${files.join(' ')}`,
    )
  }
  await assertWhole(scenario)
})

crash('backup-collect: the next run succeeds and leaves nothing behind', async () => {
  const scenario = await makeScenario()
  plant(scenario.source)
  const counted = await withFault(scenario, { action: 'count' }, scenario.collect)
  for (const at of moments('collect', counted.calls.length)) {
    change(scenario.source, at)
    const killed = await withFault(scenario, { action: 'kill', at }, scenario.collect)
    const where = `call ${at}: ${killed.calls.at(-1)}`
    assert.ok(killed.status === null || killed.calls.length < at, where)
    const next = await scenario.collect()
    assert.is(next.status, 0, `${next.stderr}, ${where}`)
    assertNoLeftovers(scenario.staging)
    // In staging a file has a link for every generation.
    const tree = `${scenario.staging}/data/latest${scenario.source}`
    assert.is(script('rsync -aHAXSnic --delete "$1/" "$2/"', scenario.source, tree), '', where)
  }
  assert.is(exportedBy(await scenario.external('--json')).complete, true)
  await assertWhole(scenario)
})

crash('backup-restore: files are whole or not there, and the same command goes on', async () => {
  const scenario = await makeScenario()
  plant(scenario.source)
  await scenario.generation()
  let places = 0
  const place = (): string => `${scenario.directory}/into-${++places}`
  const counted = await withFault(
    scenario,
    { action: 'count' },
    async () => await scenario.restore('--into', place()),
  )
  for (const at of moments('restore', counted.calls.length)) {
    const into = place()
    const killed = await withFault(
      scenario,
      { action: 'kill', at },
      async () => await scenario.restore('--into', into),
    )
    const where = `call ${at}: ${killed.calls.at(-1)}`
    assert.ok(killed.status === null || killed.calls.length < at, where)
    for (const [path, what] of inventory(into)) {
      if (what.length !== 64 || /\.backup-(restore|names)/.test(path)) continue
      const original = inventory(scenario.source).get(path.slice(scenario.source.length))
      assert.is(what, original, `${path}, ${where}`)
    }
    const next = await scenario.restore('--into', into)
    assert.is(next.status, 0, `${next.stderr}, ${where}`)
    assertNoLeftovers(into)
    assertSameTree(into + scenario.source, scenario.source)
  }
})

crash.run()
