import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  assertNoLeftovers,
  assertSameTree,
  configure,
  exportStamps,
  inventory,
  jsonLines,
  makeScenario,
} from '../helpers/scenario.ts'

const backup = suite('backup')

backup('collects and exports in one go, and what comes out restores exactly', async () => {
  const scenario = await makeScenario()
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
  const scenario = await makeScenario()
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
    const scenario = await makeScenario()
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
      ['gone', 'nothing collected', 1],
      ['data', 'exported', 0],
      ['half', 'exported', 3],
    ])
    assert.is(exportStamps(scenario, 'data').length, 1)
    assert.is(exportStamps(scenario, 'half').length, 1)
  },
)

backup('without targets it collects, and warns that staging is the only copy', async () => {
  const scenario = await makeScenario()
  configure(scenario, (c) => {
    c['targets'] = []
  })
  const { status, stderr } = await scenario.run()
  assert.is(status, 0)
  assert.match(stderr, 'nothing was exported, staging is the only copy')
})

backup('a dry run changes nothing at all', async () => {
  const scenario = await makeScenario()
  writeFileSync(`${scenario.source}/letter`, 'x')
  const before = inventory(scenario.directory)
  const { status, stderr } = await scenario.run('--dry-run')
  assert.is(status, 0, stderr)
  assert.equal(inventory(scenario.directory), before)
})

backup('with --json there is nothing but JSON on standard output', async () => {
  const scenario = await makeScenario()
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
  const scenario = await makeScenario()
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

backup.run()
