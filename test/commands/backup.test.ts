import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { command } from '../../commands/backup.ts'
import { type RunRecord, readHistory } from '../../lib/work/history.ts'
import * as assert from '../helpers/assert.ts'
import { type CommandOutcome, runCommand } from '../helpers/run-command.ts'
import {
  assertNoLeftovers,
  assertSameTree,
  configure,
  exportStamps,
  inventory,
  jsonLines,
  makeScenario,
  type Scenario,
} from '../helpers/scenario.ts'

/** An empty source would be suspect. */
async function makeSource(): Promise<Scenario> {
  const scenario = await makeScenario()
  writeFileSync(`${scenario.source}/photo`, 'a photo')
  return scenario
}

const backup = suite('backup')

backup('collects and exports in one go, and what comes out restores exactly', async () => {
  const scenario = await makeSource()
  writeFileSync(`${scenario.source}/letter`, 'dear drive')
  const { status, stdout, stderr } = await scenario.run()
  assert.is(status, 0, stderr)
  assert.match(stdout, /^data: \S+ collected: [^]*^data → drive: \S+ exported: /m)
  const into = `${scenario.directory}/into`
  assert.is((await scenario.restore('--into', into)).status, 0)
  assertSameTree(into + scenario.source, scenario.source)
  assertNoLeftovers(scenario.staging, scenario.target)
})

backup('a target that is absent is said, is 75, and the collection is there', async () => {
  const scenario = await makeSource()
  writeFileSync(`${scenario.source}/letter`, 'x')
  rmSync(scenario.target, { recursive: true })
  const { status, stderr, stdout } = await scenario.run()
  assert.is(status, 75)
  assert.match(stderr, `target drive: ${scenario.target} is not there`)
  assert.match(stdout, /^data: \S+ collected/m)
  assert.not.ok(existsSync(scenario.target))
  const latest = `${scenario.staging}/data/latest${scenario.source}/letter`
  assert.is(readFileSync(latest, 'utf8'), 'x')
  assert.is((await scenario.external()).status, 10, 'asked for by itself, it is a failure')
  mkdirSync(scenario.target)
  assert.is((await scenario.run()).status, 0)
  assert.is(exportStamps(scenario).length, 1)
})

backup(
  'a set that cannot be collected does not keep another from being exported; the worst exit code counts',
  async () => {
    const scenario = await makeSource()
    configure(scenario, (c) => {
      c['backup_sets'].unshift({ name: 'gone', sources: ['/no/such/thing'] })
      c['backup_sets'].push({ name: 'half', sources: [scenario.source, '/no/such/thing'] })
    })
    const run = await scenario.run('--json')
    assert.is(run.status, 1)
    const results = jsonLines(run, 'result').map(({ set, outcome, exitCode }) => [
      set,
      outcome,
      exitCode,
    ])
    assert.equal(results, [
      ['gone', 'failed', 1],
      ['data', 'collected', 0],
      ['half', 'collected', 3],
      ['data', 'exported', 0],
      ['half', 'exported', 3],
    ])
    assert.is(exportStamps(scenario, 'data').length, 1)
    assert.is(exportStamps(scenario, 'half').length, 1)
  },
)

backup('without targets it collects, and warns that staging is the only copy', async () => {
  const scenario = await makeSource()
  configure(scenario, (c) => {
    c['targets'] = []
  })
  const { status, stderr } = await scenario.run()
  assert.is(status, 0)
  assert.match(stderr, 'nothing was exported, staging is the only copy')
})

backup('a dry run changes nothing at all', async () => {
  const scenario = await makeSource()
  writeFileSync(`${scenario.source}/letter`, 'x')
  const before = inventory(scenario.directory)
  const { status, stderr } = await scenario.run('--dry-run')
  assert.is(status, 0, stderr)
  assert.equal(inventory(scenario.directory), before)
})

backup('with --json there is nothing but JSON on standard output', async () => {
  const scenario = await makeSource()
  const run = await scenario.run('--json')
  const kinds = new Set(
    run.stdout
      .trim()
      .split('\n')
      .map((line) => (JSON.parse(line) as { kind: string }).kind),
  )
  assert.ok(kinds.has('result') && kinds.has('phase'))
  assert.equal(readdirSync(scenario.target).includes('machines'), true)
})

backup('no secret is in what it writes or prints', async () => {
  const scenario = await makeSource()
  writeFileSync(`${scenario.source}/letter`, 'x')
  const run = await scenario.run('--json', '--verbose')
  const secret =
    /AGE-SECRET-KEY-1[A-Z0-9]{20,}/.exec(readFileSync(scenario.identity, 'utf8'))?.[0] ?? 'none'
  const signing =
    readFileSync(`${scenario.home}/.config/backup/signing.key`, 'utf8').trim().split('\n').at(-1)
    ?? 'none'
  for (const text of [secret, signing]) {
    assert.ok(text.length > 30)
    assert.not.ok((run.stdout + run.stderr).includes(text))
    for (const directory of [scenario.target, scenario.staging]) {
      for (const [path, what] of inventory(directory)) {
        if (what.length !== 64) continue
        assert.not.ok(readFileSync(`${directory}/${path}`, 'latin1').includes(text), path)
      }
    }
  }
})

/** What the history says happened, newest last: `full data good`. */
function happened({ staging }: Scenario): string[] {
  return readHistory(staging).map(({ phase, set, target, outcome }: RunRecord) => {
    return [phase, set, ...(target === undefined ? [] : [target]), outcome].join(' ')
  })
}

async function backupAt(
  scenario: Scenario,
  nowMs: number,
  values: Record<string, boolean> = {},
): Promise<CommandOutcome> {
  return await runCommand(command, { scenario, nowMs, values })
}

const START_MS = Date.parse('2026-05-01T02:00:00Z')
const MINUTE_MS = 60_000
const DAY_MS = 24 * 60 * MINUTE_MS

const schedule = suite('backup by schedule')

schedule('a second call does nothing and says nothing; --force does it all again', async () => {
  const scenario = await makeSource()
  writeFileSync(`${scenario.source}/letter`, 'x')
  assert.is((await scenario.run()).status, 0)
  assert.equal(happened(scenario), ['full data good', 'export data drive good'])
  const before = inventory(scenario.directory)
  assert.equal(await scenario.run(), { status: 0, stdout: '', stderr: '' })
  const verbose = await scenario.run('--verbose')
  assert.equal([verbose.status, verbose.stdout, verbose.stderr], [0, 'nothing is due\n', ''])
  const json = await scenario.run('--json')
  assert.equal(
    jsonLines(json, 'result').map(({ outcome, exitCode }) => [outcome, exitCode]),
    [['nothing due', 0]],
  )
  assert.equal(inventory(scenario.directory), before)
  const forced = await scenario.run('--force')
  assert.is(forced.status, 0, forced.stderr)
  assert.match(forced.stdout, /^data: \S+ collected: [^]*^data → drive: \S+ exported: /m)
  assert.is(exportStamps(scenario).length, 2)
})

schedule('called every six hours for 15 days: a collection a day, the rest each week', async () => {
  const scenario = await makeSource()
  configure(scenario, (c) => {
    c['retention'] = { local: 100 }
  })
  for (let hours = 0; hours < 15 * 24; hours += 6) {
    const { status, stderr } = await backupAt(scenario, START_MS + hours * 60 * MINUTE_MS)
    assert.is(status, 0, stderr)
  }
  const count = (what: string) => happened(scenario).filter((text) => text === what).length
  assert.is(happened(scenario).length, 15 + 3)
  assert.is(count('full data good'), 3)
  assert.is(count('collect data good'), 12)
  assert.is(count('export data drive good'), 3)
})

schedule('after ten days of sleep everything is caught up once', async () => {
  const scenario = await makeSource()
  await backupAt(scenario, START_MS)
  await backupAt(scenario, START_MS + 10 * DAY_MS)
  await backupAt(scenario, START_MS + 10 * DAY_MS + 5 * MINUTE_MS)
  assert.equal(happened(scenario).slice(2), ['full data good', 'export data drive good'])
})

schedule('a run that failed is tried again at the next call', async () => {
  const scenario = await makeSource()
  await backupAt(scenario, START_MS)
  const sources = [scenario.source]
  configure(scenario, (c) => {
    c['backup_sets'][0].sources = ['/no/such/thing']
  })
  assert.is((await backupAt(scenario, START_MS + DAY_MS)).status, 1)
  assert.is((await backupAt(scenario, START_MS + DAY_MS + 5 * MINUTE_MS)).status, 1)
  configure(scenario, (c) => {
    c['backup_sets'][0].sources = sources
  })
  assert.is((await backupAt(scenario, START_MS + DAY_MS + 10 * MINUTE_MS)).status, 0)
  await backupAt(scenario, START_MS + DAY_MS + 15 * MINUTE_MS)
  const [failed, ...rest] = happened(scenario).slice(2)
  assert.equal([failed, ...rest], ['collect data failed', failed, 'collect data good'])
  assert.is(readHistory(scenario.staging)[2]?.errorCode, 'SOURCE_ABSENT')
})

schedule('an incomplete run is tried again once, and does not fill staging', async () => {
  const scenario = await makeSource()
  configure(scenario, (c) => {
    c['backup_sets'][0].sources.push('/no/such/thing')
  })
  const codes = []
  for (let call = 0; call < 5; call++) {
    codes.push((await backupAt(scenario, START_MS + call * 5 * MINUTE_MS)).status)
  }
  assert.equal(codes, [3, 3, 0, 0, 0])
  const collected = happened(scenario).filter((text) => !text.startsWith('export'))
  assert.is(collected.length, 2)
  assert.is((await backupAt(scenario, START_MS + DAY_MS)).status, 3)
})

schedule('a source that went empty is 3 on each day, and nothing of it is exported', async () => {
  const scenario = await makeSource()
  configure(scenario, (c) => {
    c['schedule'] = { full: 'never', external: 'always' }
  })
  await backupAt(scenario, START_MS)
  rmSync(`${scenario.source}/photo`)
  for (const day of [1, 2, 3, 4]) {
    const { status, stderr } = await backupAt(scenario, START_MS + day * DAY_MS)
    assert.is(status, 3, `day ${day}`)
    assert.match(stderr, 'suspect')
  }
  assert.is(exportStamps(scenario).length, 1)
  assert.equal(new Set(happened(scenario).slice(2)), new Set(['collect data suspect']))
  assert.is(readHistory(scenario.staging).length, 6)
})

schedule('an export that is due and has no target is 75 at each call, and no run', async () => {
  const scenario = await makeSource()
  rmSync(scenario.target, { recursive: true })
  for (const minutes of [0, 5, 10]) {
    const { status, stderr } = await backupAt(scenario, START_MS + minutes * MINUTE_MS)
    assert.is(status, 75)
    assert.match(stderr, 'is not there')
  }
  assert.equal(happened(scenario), ['full data good'])
})

schedule('a history that is lost costs one more export and no more collections', async () => {
  const scenario = await makeSource()
  await backupAt(scenario, START_MS)
  configure(scenario, (c) => {
    c['schedule'] = { full: 'never' }
  })
  rmSync(`${scenario.staging}/.state/history.jsonl`)
  for (const minutes of [5, 10]) {
    const { status, stdout } = await backupAt(scenario, START_MS + minutes * MINUTE_MS)
    assert.is(status, 0)
    assert.match(stdout, minutes === 5 ? 'is there already' : /^$/)
  }
  assert.equal(happened(scenario), ['export data drive good'])
})

schedule('a clock that was set back makes it due, with a warning', async () => {
  const scenario = await makeSource()
  await backupAt(scenario, START_MS + 400 * DAY_MS)
  const { status, stderr } = await backupAt(scenario, START_MS)
  assert.is(status, 0)
  assert.match(stderr, 'data: collect: due: the last run is of 2027-')
  assert.match(stderr, 'the clock was set back')
  assert.is((await backupAt(scenario, START_MS + 5 * MINUTE_MS)).stderr, '')
})

schedule('a dry run says of everything what it would do, why, and when', async () => {
  const scenario = await makeSource()
  const first = await scenario.run('--dry-run')
  assert.match(first.stdout, /^data: collect: would run: never done yet$/m)
  assert.match(first.stdout, /^data: full: not due: /m)
  assert.match(first.stdout, /^data → drive: export: would run: never done yet$/m)
  assert.match(first.stdout, /^data: would collect /m)
  await scenario.run()
  const before = inventory(scenario.directory)
  const { status, stdout, stderr } = await scenario.run('--dry-run')
  assert.is(status, 0, stderr)
  const due = '\\d{4}-\\d\\d-\\d\\d \\d\\d:\\d\\d'
  for (const line of [
    `data: collect: not due: daily: the last good run is of ${due}; due from ${due}`,
    `data: full: not due: weekly: the last good run is of ${due}; due from ${due}`,
    `data → drive: export: not due: weekly: the last good run is of ${due}; due from ${due}`,
  ]) {
    assert.match(stdout, new RegExp(`^${line}$`, 'm'))
  }
  assert.not.match(stdout, 'would collect')
  assert.equal(inventory(scenario.directory), before)
  const results = jsonLines(await scenario.run('--dry-run', '--json'), 'result')
  assert.equal(
    results.map(({ phase, due: isDue }) => [phase, isDue]),
    [
      ['collect', false],
      ['full', false],
      ['export', false],
    ],
  )
  assert.ok(results.every(({ next }) => !Number.isNaN(Date.parse(next as string))))
})

schedule('the explicit commands always run, and what they did is not done again', async () => {
  const scenario = await makeSource()
  await scenario.generation()
  await scenario.generation()
  assert.equal(happened(scenario), [
    'full data good',
    'export data drive good',
    'collect data good',
    'export data drive good',
  ])
  assert.equal((await scenario.run()).stdout, '')
  assert.is((await scenario.collect('--full', '--quiet')).status, 0)
  assert.is(happened(scenario).at(-1), 'full data good')
})

backup.run()
schedule.run()
