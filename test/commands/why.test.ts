import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'
import { configure, jsonLines, makeScenario, type Scenario } from '../helpers/scenario.ts'

const why = suite('backup why')

async function scenarioWithRules(): Promise<Scenario> {
  const scenario = await makeScenario()
  const { source } = scenario
  configure(scenario, (properties) => {
    const [set] = properties['backup_sets']
    set.snapshot = 'none'
    set.exclusions = ['*.tmp', '+ *.keep']
    set.filters = { globs: ['{a,b}.iso'], ignore_files: ['.gitignore'], skip_caches: true }
  })
  mkdirSync(`${source}/code/build`, { recursive: true })
  writeFileSync(`${source}/code/.gitignore`, '# made\nbuild/\n')
  for (const name of ['file', 'x.tmp', 'x.keep', 'a.iso', 'code/build/x.o']) {
    writeFileSync(`${source}/${name}`, name)
  }
  return scenario
}

why('says the rule, what is there now, and the collections that hold it', async () => {
  const scenario = await scenarioWithRules()
  const { source, run, collect } = scenario
  const told = async (name: string): Promise<string> => {
    const { status, stdout, stderr } = await run('why', `${source}/${name}`)
    assert.is(status, 0, stderr)
    return stdout
  }
  assert.match(await told('file'), /^data: taken: it is in the source .*\n  no collection yet$/m)
  for (let count = 0; count < 3; count++) assert.is((await collect()).status, 0)
  const stdout = await told('file')
  assert.match(stdout, /data\/file: there now: file, 4 B, changed \d{4}-\d\d-\d\dT\d{6}Z\n/)
  assert.match(
    stdout,
    /^  in 3 generations:\n    same in \S+–\S+ \(3\): file, 4 B, .*; staging\n  not known to be on drive\b/m,
  )
  assert.match(await told('x.tmp'), /^data: left out: the exclusion "\*\.tmp"$/m)
  assert.match(await told('x.tmp'), /^    not in \S+–\S+ \(3\)$/m)
  assert.match(await told('x.keep'), /^data: taken by the exclusion "\+ \*\.keep", in the source /m)
  assert.match(await told('a.iso'), /^data: left out: the glob "\{a,b\}\.iso"$/m)
  const above =
    /^data: left out with \S+\/code\/build: the rule "build\/" in \S+\.gitignore, line 2$/m
  assert.match(await told('code/build/x.o'), above)
  assert.match(await told('gone/'), /gone: not there now\ndata: taken: /)
})

why('with --json gives one result with the rule and the runs', async () => {
  const scenario = await scenarioWithRules()
  const { source, run, collect } = scenario
  assert.is((await collect()).status, 0)
  const outcome = await run('why', `${source}/code/build/x.o`, '--json')
  const [result] = jsonLines(outcome, 'result')
  const [answer] = result!['sets']
  assert.equal([result!['command'], result!['exitCode'], answer.set], ['backup why', 0, 'data'])
  const file = `${source}/code/.gitignore`
  const rule = { at: `${source}/code/build`, kind: 'ignore-file', rule: 'build/', file, line: 2 }
  assert.equal([answer.taken, answer.rule], [false, rule])
  assert.is(answer.runs.length, 1)
})

why('a path that no set takes is named with the nearest source, and exits 1', async () => {
  const { home, source, run } = await makeScenario()
  const { status, stderr, stdout } = await run('why', `${home}/elsewhere`)
  assert.is(status, 1)
  assert.is(stdout, '')
  assert.match(stderr, /error: no set takes \S+\/elsewhere, and no generation holds it\n/)
  assert.ok(stderr.includes(`hint: the nearest source is ${source}, of the set data`), stderr)
})

why('a path through the link of a source is told as it is collected', async () => {
  const scenario = await makeScenario()
  const { home, source, run } = scenario
  symlinkSync(source, `${home}/link`)
  writeFileSync(`${source}/file`, '')
  configure(scenario, (properties) => {
    properties['backup_sets'][0].sources = [`${home}/link`]
  })
  const { stdout } = await run('why', `${source}/file`)
  assert.ok(stdout.includes(`, collected as ${home}/link/file\n`), stdout)
})

why('wants exactly one path, and a set that there is', async () => {
  const { run } = await makeScenario()
  assert.is((await run('why')).status, 2)
  assert.is((await run('why', '/a', '/b')).status, 2)
  assert.is((await run('why', '/a', '--set', 'none')).status, 2)
})

why.run()
