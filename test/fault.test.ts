// Every kind of call on the target, failing in every way: a clear error, nothing lost, and the next
// run succeeds.

import { randomBytes } from 'node:crypto'
import { appendFileSync, readFileSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from './helpers/assert.ts'
import {
  type Scenario,
  assertNoLeftovers,
  assertWhole,
  exportStamps,
  exportedBy,
  inventory,
  jsonLines,
  makeScenario,
  namesIn,
  setDirectory,
} from './helpers/scenario.ts'
import { planFault } from './helpers/system-faults.ts'

const fault = suite('faults')

/** What a failing system call has to be told as. */
const FAILURES = [
  { error: 'ENOSPC', code: 'TARGET_FULL' },
  { error: 'EIO', code: 'TARGET_FAILED' },
  { error: 'EROFS', code: 'TARGET_READ_ONLY' },
] as const

/** The calls of an export that write what makes it exist. */
const CALLS = [
  'mkdirSync .*/machines/tester/data/[^/]*$',
  'openSync .*/data-0001[^/]*$',
  'writeSync .*/data-0001[^/]*$',
  'fsyncSync .*/data-0001[^/]*$',
  'renameSync .*/data-0001[^/]*$',
  'writeSync .*/catalog-0001[^/]*$',
  'renameSync .*/catalog-0001[^/]*$',
  'openSync .*/verification\\.sha256\\.partial$',
  'renameSync .*/verification\\.sha256\\.minisig$',
  'writeSync .*/manifest[^/]*$',
  'fsyncSync .*/manifest[^/]*$',
  'renameSync .*/manifest[^/]*$',
]

let shared: Promise<Scenario> | undefined

/** A scenario with an export, and a new collection that is not exported yet. */
async function ready(): Promise<Scenario> {
  shared ??= (async () => {
    const scenario = await makeScenario()
    writeFileSync(`${scenario.source}/log`, randomBytes(30_000))
    await scenario.generation()
    return scenario
  })()
  const scenario = await shared
  appendFileSync(`${scenario.source}/log`, randomBytes(100))
  writeFileSync(`${scenario.source}/new`, randomBytes(10_000))
  assert.is((await scenario.collect()).status, 0)
  return scenario
}

for (const [i, call] of CALLS.entries()) {
  const { error, code } = FAILURES[i % FAILURES.length]!
  fault(
    `${error} at ${call}: ${code}, earlier exports as they were, the next run succeeds`,
    async () => {
      const scenario = await ready()
      const before = inventory(scenario.target)
      const stamps = exportStamps(scenario)
      const plan = planFault({ match: new RegExp(`^${call}`), at: 1, action: { error } })
      Object.assign(scenario.environment, plan.environment)
      const failed = await scenario.external('--json')
      for (const name of Object.keys(plan.environment)) delete scenario.environment[name]
      assert.ok(plan.count() > 0, 'the fault came true')
      const told = jsonLines(failed, 'result').map((result) => [result['code'], result['exitCode']])
      assert.equal(told, [[code, 1]], failed.stderr + failed.stdout)
      assert.is(failed.status, 1)
      assert.equal(exportStamps(scenario), stamps, 'no manifest')
      const after = inventory(scenario.target)
      for (const [path, what] of before) assert.is(after.get(path), what, path)
      // A whole bundle whose last step failed stays for the next run to sweep; a half-written one
      // goes at once.
      if (/^(open|write|fsync)/.test(call)) {
        assert.equal(
          namesIn(scenario.target, /data-.*\.partial$/),
          [],
          'no half-written bundle keeps its room',
        )
      }
      const next = await scenario.external('--json')
      assert.is(next.status, 0, next.stderr)
      assert.not.ok(exportedBy(next).full)
      assertNoLeftovers(scenario.target, `${scenario.staging}/.state`)
      const [newest] = exportStamps(scenario).slice(-1)
      assert.is(readFileSync(`${setDirectory(scenario)}/latest`, 'utf8'), `${newest}\n`)
    },
  )
}

fault('after all that, every export is whole', async () => {
  await assertWhole(await ready())
})

fault(
  'the disk of staging is full when the state is written: told as such, and the next run succeeds',
  async () => {
    const scenario = await ready()
    const stamps = exportStamps(scenario)
    const plan = planFault({ match: /^writeSync .*\/repositories\//, action: { error: 'ENOSPC' } })
    Object.assign(scenario.environment, plan.environment)
    const failed = await scenario.external('--json')
    for (const name of Object.keys(plan.environment)) delete scenario.environment[name]
    assert.is(failed.status, 1, failed.stderr)
    assert.match(failed.stdout, '"code":"STAGING_FULL"')
    assert.equal(exportStamps(scenario), stamps)
    assert.is((await scenario.external()).status, 0)
    await assertWhole(scenario)
  },
)

fault(
  'a restore to a full disk names the files, leaves none half-made, and goes on when there is room',
  async () => {
    const scenario = await ready()
    await scenario.external()
    const into = `${scenario.directory}/into`
    const plan = planFault({ match: /^writeSync .*\.backup-restore-/, action: { error: 'ENOSPC' } })
    Object.assign(scenario.environment, plan.environment)
    const failed = await scenario.restore('--into', into)
    for (const name of Object.keys(plan.environment)) delete scenario.environment[name]
    assert.is(failed.status, 1, failed.stderr)
    assert.match(failed.stderr, /data\/log: not restored: it cannot be written: no space left \(ENOSPC\)/)
    assert.equal(namesIn(into, /log|new|backup-restore/), [])
    assert.is((await scenario.restore('--into', into)).status, 0)
  },
)

fault.run()
