import { chmodSync, rmSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { command as backup } from '../../commands/backup.ts'
import type { Value } from '../../commands/command.ts'
import { command } from '../../commands/status.ts'
import { type CommandOutcome, runCommand } from '../helpers/run-command.ts'
import {
  configure,
  inventory,
  jsonLines,
  makeScenario,
  type Scenario,
} from '../helpers/scenario.ts'

process.env['TZ'] = 'UTC'

const START_MS = Date.parse('2026-05-01T02:00:00Z')
const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS

async function backedUp(): Promise<Scenario> {
  const scenario = await makeScenario()
  writeFileSync(`${scenario.source}/photo`, 'a photo')
  const { status, stderr } = await runCommand(backup, { scenario, nowMs: START_MS })
  assert.is(status, 0, stderr)
  return scenario
}

async function statusAt(
  scenario: Scenario,
  afterMs: number,
  values: Record<string, Value> = {},
): Promise<CommandOutcome> {
  return await runCommand(command, { scenario, nowMs: START_MS + afterMs, values })
}

const status = suite('status')

status('after a good run it is 0, and says what there is and what is next', async () => {
  const scenario = await backedUp()
  const before = inventory(scenario.directory)
  const { status: code, stdout, stderr } = await statusAt(scenario, 3 * HOUR_MS)
  assert.is(code, 0, stdout)
  assert.is(stderr, '')
  for (const line of [
    'set data',
    /^ {2}newest: 2026-05-01T0200\d\dZ complete, \d+ entries, 7 B; .*snapshot/m,
    '  collect: last good 2026-05-01 02:00 (3 hours ago); due 2026-05-02 00:30',
    '  full: last good 2026-05-01 02:00 (3 hours ago); due 2026-05-08 00:30',
    '  keeps: 7 collections (1 are there), 5 exports',
    'target drive',
    '  data: last good 2026-05-01 02:00 (3 hours ago); due 2026-05-08 00:30',
    /^staging \/.*: .* free of /m,
    'last runs',
    '  2026-05-01 02:00 data → drive: export good',
  ]) {
    assert.match(stdout, line)
  }
  assert.not.match(stdout, 'not good')
  assert.equal(inventory(scenario.directory), before, 'it changes nothing')
})

status('it needs no target, and not atomic is said only to who did not choose it', async () => {
  const scenario = await backedUp()
  rmSync(scenario.target, { recursive: true })
  configure(scenario, (c) => {
    c['backup_sets'][0].snapshot = 'none'
  })
  const { status: code, stdout } = await statusAt(scenario, HOUR_MS)
  assert.is(code, 0)
  assert.not.match(stdout, 'not atomic')
})

status('a good run that is late by more than two periods is 3', async () => {
  const scenario = await backedUp()
  assert.is((await statusAt(scenario, 2 * DAY_MS)).status, 0)
  assert.is((await statusAt(scenario, 3 * DAY_MS)).status, 0)
  const late = await statusAt(scenario, 3 * DAY_MS + HOUR_MS)
  assert.is(late.status, 3)
  assert.match(late.stdout, /^ {2}collect: last good .*, LATE; due now$/m)
})

status('a last run that failed is 3, with its error', async () => {
  const scenario = await backedUp()
  configure(scenario, (c) => {
    c['backup_sets'][0].sources = ['/no/such/thing']
  })
  await runCommand(backup, { scenario, nowMs: START_MS + DAY_MS })
  const { status: code, stdout } = await statusAt(scenario, DAY_MS)
  assert.is(code, 3)
  assert.match(stdout, /^ {2}collect: last good 2026-05-01 02:00 .*, then failed; due now$/m)
  assert.match(stdout, /not good\n {2}2026-05-02 02:00 data: collect failed: SOURCE_ABSENT: no/)
})

status('a failed export is of its target, and 3', async () => {
  const scenario = await backedUp()
  writeFileSync(`${scenario.target}/repository.json`, 'damaged')
  await runCommand(backup, { scenario, nowMs: START_MS + DAY_MS, values: { force: true } })
  const { status: code, stdout } = await statusAt(scenario, DAY_MS)
  assert.is(code, 3)
  assert.match(stdout, /^target drive\n {2}data: last good 2026-05-01 .*, then failed; /m)
})

status('a set that was never collected is 3, one that is only collected by hand 0', async () => {
  const scenario = await makeScenario()
  const never = await statusAt(scenario, 0)
  assert.is(never.status, 3)
  assert.match(never.stdout, '  newest: none yet\n  collect: never good yet; due now')
  configure(scenario, (c) => {
    c['schedule'] = { incremental: 'manual', external: 'manual', full: 'never' }
  })
  assert.is((await statusAt(scenario, 0)).status, 0)
})

status('--json says the same as data', async () => {
  const scenario = await backedUp()
  const { stdout, status: code } = await statusAt(scenario, HOUR_MS, { json: true })
  const results = jsonLines({ stdout, stderr: '', status: code }, 'result')
  assert.is(results.length, 3)
  const [set, target, whole] = results
  assert.is(set?.['newest'].outcome, 'good')
  assert.equal(
    set?.['phases'].map((item: Record<string, unknown>) => [item['phase'], item['next']]),
    [
      ['collect', '2026-05-02T00:30:00.000Z'],
      ['full', '2026-05-08T00:30:00.000Z'],
    ],
  )
  assert.is(target?.['exports'][0].lastGood, '2026-05-01T02:00:00.000Z')
  assert.ok(whole?.['staging'].freeBytes > 0)
  assert.is(whole?.['lastRuns'].length, 2)
  assert.equal(whole?.['lastFailures'], [])
  assert.is(whole?.['exitCode'], 0)
})

status('a damaged history is shown as far as it can be read', async () => {
  const scenario = await backedUp()
  writeFileSync(`${scenario.staging}/.state/history.jsonl`, '\0\0{"phase":')
  chmodSync(`${scenario.staging}/.state/history.jsonl`, 0o600)
  const { status: code, stdout } = await statusAt(scenario, HOUR_MS)
  assert.is(code, 0, stdout)
  assert.match(stdout, '  collect: last good 2026-05-01 02:00')
  assert.match(stdout, '  data: never good yet; due now')
})

status.run()
