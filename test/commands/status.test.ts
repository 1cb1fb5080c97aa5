import { chmodSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { Ajv } from 'ajv'
import { suite } from 'uvu'
import { command as backup } from '../../commands/backup.ts'
import type { Value } from '../../commands/command.ts'
import { command } from '../../commands/status.ts'
import { loadConfiguration } from '../../lib/machine/config.ts'
import type { Receipt } from '../../lib/model/receipt.ts'
import { receiptName, writeReceipt } from '../../lib/work/receipts.ts'
import { openSigner } from '../../lib/work/signing.ts'
import * as assert from '../helpers/assert.ts'
import { type CommandOutcome, runCommand } from '../helpers/run-command.ts'
import {
  configure,
  exportStamps,
  inventory,
  makeScenario,
  type Properties,
  type Scenario,
} from '../helpers/scenario.ts'

process.env['TZ'] = 'UTC'

const START_MS = Date.parse('2026-05-01T02:00:00Z')
const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS

const schemaFile = new URL('../../../config/status.schema.json', import.meta.url)
const validate = new Ajv({ strict: true, allErrors: true }).compile(
  JSON.parse(readFileSync(schemaFile, 'utf8')) as object,
)

/** What is free on the machine that runs the test is none of the test's. */
async function scenarioWithSpace(): Promise<Scenario> {
  const scenario = await makeScenario()
  configure(scenario, (c) => {
    c['notify'] = { desktop: false, low_space: '0%' }
  })
  return scenario
}

async function backedUp(): Promise<Scenario> {
  const scenario = await scenarioWithSpace()
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

/** What --json prints, which is one object as the schema has it. */
async function documentAt(scenario: Scenario, afterMs: number): Promise<Properties> {
  const { stdout, stderr } = await statusAt(scenario, afterMs, { json: true })
  assert.is(stderr, '')
  assert.match(stdout, /^[^\n]+\n$/, 'one line')
  const document = JSON.parse(stdout) as Properties
  assert.ok(validate(document), JSON.stringify(validate.errors, undefined, 1))
  return document
}

/** Signs a receipt of the scenario's target as a drill would, and gives its name. */
async function prove(scenario: Scenario, change: Partial<Receipt>): Promise<string> {
  const { staging, configuration: path, home } = scenario
  const environment = { HOME: home }
  const configuration = await loadConfiguration({ path, environment, home, hostName: 'tester' })
  const receipt = await writeReceipt({
    staging,
    signer: await openSigner(configuration),
    receipt: {
      format: 1,
      kind: 'drill',
      machine: 'tester',
      target: 'drive',
      drive: undefined,
      repository: '0'.repeat(32),
      exports: exportStamps(scenario).map((stamp) => `tester/data/${stamp}`),
      start: new Date(START_MS + 60_000).toISOString(),
      end: new Date(START_MS + 120_000).toISOString(),
      how: 'restored',
      bundles: 1,
      files: 1,
      bytes: 7,
      totalBytes: 7,
      seed: 'seed',
      result: 'good',
      damaged: [],
      ...change,
    },
  })
  return receiptName(receipt)
}

const status = suite('status')

status('after a good run it is 0, and says what there is and what is next', async () => {
  const scenario = await backedUp()
  const before = inventory(scenario.directory)
  const { status: code, stdout, stderr } = await statusAt(scenario, 3 * HOUR_MS)
  assert.is(code, 0, stdout)
  assert.is(stderr, '')
  assert.match(stdout, /^all is well\n/)
  for (const line of [
    'set data',
    /^ {2}newest +2026-05-01T0200\d\dZ complete, \d+ entries, 7 B; .*snapshot/m,
    '  collect  last good 2026-05-01 02:00 (3 hours ago)  due 2026-05-02 00:30',
    '  full     last good 2026-05-01 02:00 (3 hours ago)  due 2026-05-08 00:30',
    '  keeps    7 collections (1 is there), 5 exports',
    `target drive: directory ${scenario.target}`,
    /^ {2}data +last good 2026-05-01 02:00 \(3 hours ago\) +due 2026-05-08 00:30 +7 B, wrote /m,
    '  proven  never',
    /^staging \/.*: .* free of /m,
    'last runs',
    '  2026-05-01 02:00  data → drive: export good',
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
  assert.match(late.stdout, /^ {2}collect +last good .*, LATE +due now$/m)
  assert.match(late.stdout, /^1 thing needs you\n {2}! .*\n {6}→ `backup-collect --set data`/)
})

status('a last run that failed is 3, with its error', async () => {
  const scenario = await backedUp()
  configure(scenario, (c) => {
    c['backup_sets'][0].sources = ['/no/such/thing']
  })
  await runCommand(backup, { scenario, nowMs: START_MS + DAY_MS })
  const { status: code, stdout } = await statusAt(scenario, DAY_MS)
  assert.is(code, 3)
  assert.match(stdout, /^ {2}collect +last good 2026-05-01 02:00 .*, then failed +due now$/m)
  assert.match(stdout, /not good\n {2}2026-05-02 02:00 {2}data: collect failed: SOURCE_ABSENT: no/)
})

status('a failed export is of its target, and 3', async () => {
  const scenario = await backedUp()
  writeFileSync(`${scenario.target}/repository.json`, 'damaged')
  await runCommand(backup, { scenario, nowMs: START_MS + DAY_MS, values: { force: true } })
  const { status: code, stdout } = await statusAt(scenario, DAY_MS)
  assert.is(code, 3)
  assert.match(stdout, /^target drive: .*\n {2}data +last good 2026-05-01 .*, then failed +/m)
})

status('a set that was never collected is 3, one that is only collected by hand 0', async () => {
  const scenario = await scenarioWithSpace()
  const never = await statusAt(scenario, 0)
  assert.is(never.status, 3)
  assert.match(never.stdout, /^ {2}newest +none yet\n {2}collect +never good yet +due now$/m)
  configure(scenario, (c) => {
    c['schedule'] = { incremental: 'manual', external: 'manual', full: 'never' }
  })
  assert.is((await statusAt(scenario, 0)).status, 0)
})

status('--json says the same as one object that its schema describes', async () => {
  const scenario = await backedUp()
  const document = await documentAt(scenario, HOUR_MS)
  const [set] = document['sets']
  assert.is(set.newest.outcome, 'good')
  assert.equal(
    set.phases.map((item: Properties) => [item['phase'], item['next']]),
    [
      ['collect', '2026-05-02T00:30:00.000Z'],
      ['full', '2026-05-08T00:30:00.000Z'],
    ],
  )
  assert.is(document['targets'][0].exports[0].lastGood.time, '2026-05-01T02:00:00.000Z')
  assert.ok(document['staging'].freeBytes > 0)
  assert.is(document['lastRuns'].length, 2)
  assert.equal(document['lastFailures'], [])
  assert.is(document['verdict'], 'good')
  assert.is(document['exitCode'], 0)
})

status('a good receipt is named, a damaged one is 13 until a verification is good', async () => {
  const scenario = await backedUp()
  const good = await prove(scenario, {})
  assert.match((await statusAt(scenario, HOUR_MS)).stdout, `receipt ${good}\n`)
  const end = new Date(START_MS + 2 * HOUR_MS).toISOString()
  const bad = await prove(scenario, { end, result: 'damaged', damaged: ['a bundle'] })
  const damaged = await statusAt(scenario, 3 * HOUR_MS)
  assert.is(damaged.status, 13)
  assert.match(damaged.stdout, /^1 thing needs you\n {2}BAD drive: the drill of 2026-05-01 04:00/)
  const document = await documentAt(scenario, 3 * HOUR_MS)
  assert.is(document['problems'][0].receipt, bad)
  assert.is(document['exitCode'], 13)
  await prove(scenario, {
    end: new Date(START_MS + 4 * HOUR_MS).toISOString(),
    kind: 'verification',
  })
  assert.is((await statusAt(scenario, 5 * HOUR_MS)).status, 0)
})

status('a receipt that was changed proves nothing, and is said', async () => {
  const scenario = await backedUp()
  const name = await prove(scenario, { result: 'damaged', damaged: ['a bundle'] })
  const path = `${scenario.staging}/.state/receipts/${name}.json`
  writeFileSync(path, readFileSync(path, 'utf8').replace('damaged":["a bundle"]', 'damaged":[]'))
  const { status: code, stdout } = await statusAt(scenario, HOUR_MS)
  assert.is(code, 3)
  assert.match(stdout, '1 receipt not signed by this machine')
  assert.match(stdout, `receipt ${name}`)
  assert.match(stdout, '  proven  never')
})

status('a collection without its catalog is said', async () => {
  const scenario = await backedUp()
  const [stamp = ''] = exportStamps(scenario)
  writeFileSync(`${scenario.staging}/data/${stamp}.catalog.zst`, 'damaged')
  const { stdout } = await statusAt(scenario, HOUR_MS)
  assert.match(stdout, `the catalog of ${stamp} is damaged or gone`)
})

status('-q says nothing when all is well, and what is wrong when it is not', async () => {
  const scenario = await backedUp()
  const well = await statusAt(scenario, HOUR_MS, { quiet: true })
  assert.is(well.stdout + well.stderr, '')
  const late = await statusAt(scenario, 4 * DAY_MS, { quiet: true })
  assert.is(late.status, 3)
  assert.match(late.stdout, /^1 thing needs you\n/)
  assert.not.match(late.stdout, 'last runs')
})

status(
  '--prometheus writes the numbers, except with --dry-run, and never of some sets only',
  async () => {
    const scenario = await backedUp()
    const path = `${scenario.directory}/backup.prom`
    const dry = await statusAt(scenario, HOUR_MS, { prometheus: path, 'dry-run': true })
    assert.is(dry.status, 0)
    assert.not.ok(existsSync(path))
    const { status: code } = await statusAt(scenario, HOUR_MS, { prometheus: path })
    assert.is(code, 0)
    const text = readFileSync(path, 'utf8')
    assert.match(
      text,
      /^backup_last_success_timestamp_seconds\{set="data",target="drive",.* 1777600800$/m,
    )
    assert.match(text, 'backup_problems{severity="bad"} 0\n')
    assert.equal(
      readdirSync(scenario.directory).filter((name) => name.endsWith('.partial')),
      [],
    )
    try {
      await statusAt(scenario, HOUR_MS, { prometheus: path, set: ['data'] })
      assert.unreachable()
    } catch (error) {
      assert.match(String(error), '--prometheus and --set do not go together')
    }
  },
)

status('--score counts what is proven, and is 3 when it drops', async () => {
  const scenario = await backedUp()
  const scoreAt = async (afterMs: number, values: Record<string, Value> = {}) => {
    return await statusAt(scenario, afterMs, { score: true, ...values })
  }
  const unproven = await scoreAt(HOUR_MS)
  assert.is(unproven.status, 0, 'what never was cannot drop')
  assert.match(unproven.stdout, /^3-2-1: 1 copy, 1 medium, 0 off-site; 3 copies, /)
  assert.match(
    unproven.stdout,
    'drive  does not count, on the medium of the sources: data was never',
  )
  assert.match(unproven.stdout, '→ `backup drill --target drive`')
  assert.not.match(unproven.stdout, 'staging')

  await prove(scenario, {})
  const memory = `${scenario.staging}/.state/score.json`
  assert.is((await scoreAt(HOUR_MS)).stdout.split(',')[0], '3-2-1: 2 copies')
  // Looking remembers nothing; the next run does.
  assert.not.ok(existsSync(memory))
  assert.is((await runCommand(backup, { scenario, nowMs: START_MS + 2 * HOUR_MS })).status, 0)
  assert.equal(JSON.parse(readFileSync(memory, 'utf8')), { format: 1, counted: ['drive'] })

  const dropped = await scoreAt(40 * DAY_MS, { quiet: true })
  assert.is(dropped.status, 3)
  assert.match(
    dropped.stdout,
    'drive  does not count, on the medium of the sources: the last good export',
  )
  const { stdout: json, status: code } = await scoreAt(40 * DAY_MS, { json: true })
  const { exitCode, score } = JSON.parse(json) as Properties
  assert.equal([code, exitCode, score.copies, score.places[0].isLost], [3, 3, 1, true])
  assert.equal(
    (await documentAt(scenario, 40 * DAY_MS))['problems'].map(({ code: one }: Properties) => one),
    ['LATE', 'LATE', 'SCORE_DROPPED'],
  )

  configure(scenario, (c) => {
    c['score'] = {}
  })
  const low = await scoreAt(HOUR_MS, { quiet: true })
  assert.is(low.status, 3, 'two of three copies that are asked for')
  configure(scenario, (c) => {
    c['score'] = { copies: 2, media: 1, off_site: 0 }
  })
  const enough = await scoreAt(HOUR_MS, { quiet: true })
  assert.equal([enough.status, enough.stdout], [0, ''])
  try {
    await scoreAt(HOUR_MS, { set: ['data'] })
    assert.unreachable()
  } catch (error) {
    assert.match(String(error), '--score goes with neither --set nor --prometheus')
  }
})

status('a damaged history is shown as far as it can be read', async () => {
  const scenario = await backedUp()
  writeFileSync(`${scenario.staging}/.state/history.jsonl`, '\0\0{"phase":')
  chmodSync(`${scenario.staging}/.state/history.jsonl`, 0o600)
  const { status: code, stdout } = await statusAt(scenario, HOUR_MS)
  assert.is(code, 0, stdout)
  assert.match(stdout, /^ {2}collect +last good 2026-05-01 02:00/m)
  assert.match(stdout, /^ {2}data +never good yet +due now$/m)
})

status.run()
