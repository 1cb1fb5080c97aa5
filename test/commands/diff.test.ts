import {
  chmodSync,
  linkSync,
  mkdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'
import { configure, jsonLines, makeScenario, type Scenario } from '../helpers/scenario.ts'

const diff = suite('backup diff')

/** Two collections, `first` being a tag, and a source that changed since. */
let made: Promise<Scenario> | undefined

async function scene(): Promise<Scenario> {
  return await (made ??= makeScene())
}

async function makeScene(): Promise<Scenario> {
  const scenario = await makeScenario()
  const { source, collect, run } = scenario
  configure(scenario, (properties) => {
    const [set] = properties['backup_sets']
    set.snapshot = 'none'
    set.exclusions = ['*.tmp', 'cache/']
  })
  mkdirSync(`${source}/deep`)
  mkdirSync(`${source}/was`)
  for (const name of ['deep/same', 'deep/grows', 'deep/mode', 'was/file', 'turns']) {
    writeFileSync(`${source}/${name}`, 'one\ntwo\n')
    utimesSync(`${source}/${name}`, 1_700_000_000, 1_700_000_000)
  }
  linkSync(`${source}/deep/same`, `${source}/deep/twin`)
  symlinkSync('here', `${source}/link`)
  assert.is((await collect()).status, 0)
  assert.is((await run('tag', 'first', 'data', 'latest')).status, 0)
  writeFileSync(`${source}/deep/grows`, 'one\nTWO\nthree\n')
  chmodSync(`${source}/deep/mode`, 0o600)
  rmSync(`${source}/was`, { recursive: true })
  rmSync(`${source}/turns`)
  mkdirSync(`${source}/turns`)
  rmSync(`${source}/link`)
  symlinkSync('there', `${source}/link`)
  writeFileSync(`${source}/new`, '')
  assert.is((await collect()).status, 0)
  writeFileSync(`${source}/deep/grows`, 'one\n')
  rmSync(`${source}/new`)
  mkdirSync(`${source}/cache`)
  mkdirSync(`${source}/added`)
  for (const name of ['left.tmp', 'cache/left', 'added/taken']) {
    writeFileSync(`${source}/${name}`, '')
  }
  return scenario
}

/** The lines of differences, without the source before the names and without times. */
function told(stdout: string, { source }: Scenario): string[] {
  return stdout
    .split('\n')
    .filter((line) => /^[-+~] /.test(line))
    .map((line) => line.replace(`${source}/`, '').replace(source, '.'))
    .map((line) => line.replace(/\d{4}-\d\d-\d\dT\d{6}Z/g, 'T'))
}

diff('names what differs between two generations, and counts', async () => {
  const scenario = await scene()
  const { stdout, stderr, status } = await scenario.run('diff', 'first', 'latest', scenario.source)
  assert.is(status, 0, stderr)
  assert.equal(told(stdout, scenario), [
    '~ .: time T → T',
    '~ deep/grows: size 8 B → 14 B, time T → T',
    '~ deep/mode: mode 644 → 600',
    '~ link: leads elsewhere, time T → T, attributes, ACLs, flags or time of birth',
    '+ new: file, 0 B, changed T',
    '~ turns: file → directory',
    '- was: directory, changed T',
    '- was/file: file, 8 B, changed T',
  ])
  assert.match(stdout, /^1 added, 2 removed, 5 changed, 3 the same$/m)
  const back = await scenario.run('diff', 'latest', 'first', `${scenario.source}/was`, '--list')
  assert.is(back.stdout, `${scenario.source}/was\n${scenario.source}/was/file\n`)
})

diff('live is the source by the rules of its set: what is left out is not added', async () => {
  const scenario = await scene()
  const { run, source } = scenario
  const { stdout, stderr, status } = await run('diff', 'latest')
  assert.is(status, 0, stderr)
  assert.equal(told(stdout, scenario), [
    '~ .: time T → T',
    '+ added: directory, changed T',
    '+ added/taken: file, 0 B, changed T',
    '~ deep/grows: size 14 B → 4 B, time T → T',
    '- new: file, 0 B, changed T',
  ])
  assert.match(stdout, /^2 added, 1 removed, 2 changed, 6 the same$/m)
  const turned = await run('diff', 'live', 'latest', `${source}/deep`)
  assert.equal(told(turned.stdout, scenario), ['~ deep/grows: size 4 B → 14 B, time T → T'])
  const one = await run('diff', 'latest', 'live', `${source}/new`)
  assert.equal(told(one.stdout, scenario), ['- new: file, 0 B, changed T'])
})

diff('--json tells what each side was', async () => {
  const { run, source } = await scene()
  const outcome = await run('diff', 'first', 'latest', `${source}/deep/grows`, '--json')
  const [difference, counts] = jsonLines(outcome, 'result')
  const { path, changes, before, after } = difference!
  assert.equal([path, difference!['difference']], [`${source}/deep/grows`, 'changed'])
  assert.equal([changes, before.sizeBytes, after.sizeBytes], [['size', 'time'], 8, 14])
  assert.equal([counts!['added'], counts!['changed'], counts!['same']], [0, 1, 0])
})

diff('--unified shows the text of one file, from staging and from the source', async () => {
  const { run, source } = await scene()
  const path = `${source}/deep/grows`
  const staged = await run('diff', 'first', 'latest', path, '--unified')
  assert.is(staged.status, 0, staged.stderr)
  const body = staged.stdout.split('\n').slice(2)
  assert.equal(body, ['@@ -1,2 +1,3 @@', ' one', '-two', '+TWO', '+three', ''])
  assert.ok(staged.stdout.startsWith(`--- ${path}\t2`), staged.stdout)
  const live = await run('diff', 'latest', 'live', path, '-u')
  assert.match(live.stdout, /^\+\+\+ \S+\tlive$/m)
  assert.match(live.stdout, /^-three$/m)
  const directory = await run('diff', 'first', 'latest', `${source}/deep`, '-u')
  assert.is(directory.status, 1)
  assert.match(directory.stderr, /hint: bring it back with `backup-restore .* --into DIR`/)
})

diff('a source that is not there is not called removed', async () => {
  const { run, source } = await scene()
  renameSync(source, `${source}.away`)
  try {
    const { stdout, stderr, status } = await run('diff', 'latest')
    assert.is(status, 3)
    assert.match(stdout, /^0 added, 0 removed, 0 changed, 0 the same, 9 not known of one side$/m)
    assert.ok(stderr.includes(`${source}: no such file or directory`), stderr)
  } finally {
    renameSync(`${source}.away`, source)
  }
})

diff('what a generation could not collect is not called removed', async () => {
  const scenario = await makeScenario()
  const { source, home, collect, run } = scenario
  const other = `${home}/other`
  mkdirSync(other)
  writeFileSync(`${other}/file`, '')
  writeFileSync(`${source}/file`, '')
  configure(scenario, (properties) => {
    const [set] = properties['backup_sets']
    set.snapshot = 'none'
    set.sources = [source, other]
  })
  assert.is((await collect()).status, 0)
  renameSync(other, `${other}.away`)
  const second = await collect()
  assert.is(second.status, 3, second.stderr)
  const words = await run('restore', '--list', '--source', 'local', '--json')
  const stamps = jsonLines(words, 'result').map((one): string => one['stamp'])
  const { stdout, stderr, status } = await run('diff', stamps[0]!, stamps[1]!)
  assert.is(status, 3)
  assert.not.match(stdout, /^[-+] /m)
  assert.match(stdout, /2 not known of one side$/m)
  assert.ok(stderr.includes(`${other}: no such file or directory`), stderr)
})

diff('--unified asks only the sets that hold the file', async () => {
  const scenario = await makeScenario()
  const { home, source, collect, run } = scenario
  mkdirSync(`${home}/other`)
  configure(scenario, (properties) => {
    const [set] = properties['backup_sets']
    set.snapshot = 'none'
    properties['backup_sets'].push({ ...set, name: 'other', sources: [`${home}/other`] })
  })
  for (const file of [`${source}/a`, `${home}/other/b`]) writeFileSync(file, 'one\n')
  assert.is((await collect()).status, 0)
  for (const file of [`${source}/a`, `${home}/other/b`]) {
    writeFileSync(file, 'two\n')
    const { stdout, stderr, status } = await run('diff', 'latest', 'live', file, '-u')
    assert.equal([status, stderr], [0, ''], file)
    assert.match(stdout, /^-one\n\+two$/m)
  }
  writeFileSync(`${source}/c`, '')
  const fresh = await run('diff', 'latest', 'live', `${source}/c`, '-u')
  assert.is(fresh.status, 1)
  assert.match(fresh.stderr, `error: no generation holds ${source}/c\n`)
  const nowhere = await run('diff', 'latest', `${source}/nope`)
  assert.is(nowhere.status, 1)
  assert.match(nowhere.stderr, `error: neither side holds ${source}/nope\n`)
})

diff('a second word with a slash is a path, and what it is compared with is live', async () => {
  const scenario = await scene()
  const place = `${scenario.source}/deep`
  const short = await scenario.run('diff', 'latest', place)
  assert.is(short.status, 0, short.stderr)
  assert.match(short.stdout, '/deep/grows: size')
  assert.not.match(short.stdout, '/added')
  assert.equal(short, await scenario.run('diff', 'latest', 'live', place))
})

diff('wants generations that there are', async () => {
  const { run, source } = await scene()
  const none = await run('diff', '1999', 'latest')
  assert.is(none.status, 1)
  assert.match(none.stderr, /there is nothing as old as 1999/)
  for (const words of [
    [],
    ['live', 'live'],
    ['first', 'latest', source, 'more'],
    ['first', '-u'],
  ]) {
    assert.is((await run('diff', ...words)).status, 2, words.join(' '))
  }
})

diff.run()
