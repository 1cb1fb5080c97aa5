import {
  mkdirSync,
  readdirSync,
  renameSync,
  rmSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'
import { MAIN, type Outcome, runCli } from '../helpers/run-cli.ts'
import {
  configure,
  exportStamps,
  jsonLines,
  makeScenario,
  type Properties,
  type Scenario,
} from '../helpers/scenario.ts'

const find = suite('backup find')

/** Three generations; the first two are exported, and staging keeps the last two. */
interface Scene extends Scenario {
  readonly stamps: readonly string[]
}

let made: Promise<Scene> | undefined

/** One for all tests that change nothing, or put back what they changed. */
async function scene(): Promise<Scene> {
  return await (made ??= makeScene())
}

async function makeScene(): Promise<Scene> {
  const scenario = await makeScenario()
  const { source, collect } = scenario
  configure(scenario, (properties) => {
    const [set] = properties['backup_sets']
    set.snapshot = 'none'
    set.retention = { local: 2, external: 5 }
  })
  mkdirSync(`${source}/mail/old`, { recursive: true })
  writeFileSync(`${source}/mail/same.txt`, 'same')
  writeFileSync(`${source}/mail/old/gone.txt`, 'gone')
  writeFileSync(`${source}/changed.TXT`, 'one')
  writeFileSync(Buffer.from(`${source}/\xff.bin`, 'latin1'), 'x'.repeat(5000))
  await scenario.generation()
  rmSync(`${source}/mail/old`, { recursive: true })
  writeFileSync(`${source}/changed.TXT`, 'other')
  await scenario.generation()
  writeFileSync(`${source}/new.txt`, '')
  assert.is((await collect()).status, 0)
  const stamps = [...exportStamps(scenario)]
  const listed = await scenario.run('restore', '--list', '--source', 'local', '--json')
  const local = jsonLines(listed, 'result').map((one): string => one['stamp'])
  assert.equal(local.length, 2, 'the first is on the target only')
  return { ...scenario, stamps: [...stamps, local.at(-1)!] }
}

function paths(stdout: string): string[] {
  return stdout.split('\n').filter((line) => line.startsWith('/'))
}

/** The runs of a path as `find --json` gives them: state, size, and which generations. */
function runsOf(lines: readonly Properties[], { stamps }: Scene, path: string): unknown[] {
  const found = lines.find((line) => line['path'] === path)
  return (
    (found?.['runs'] as Properties[] | undefined)?.map((run) => [
      run['state'],
      run['sizeBytes'],
      stamps.indexOf(run['oldest']),
      stamps.indexOf(run['newest']),
      (run['at'] as Properties[] | undefined)?.map(({ name }) => name),
    ]) ?? []
  )
}

find('tells each version of a path, and where it can be had', async () => {
  const of = await scene()
  const { source, run, stamps } = of
  const outcome = await run('find', '*.txt', '-i', '--json')
  assert.is(outcome.status, 0, outcome.stderr)
  const lines = jsonLines(outcome, 'result')
  const [first, second] = ['drive', 'staging']
  assert.equal(runsOf(lines, of, `${source}/changed.TXT`), [
    ['held', 5, 1, 2, [second, first]],
    ['held', 3, 0, 0, [first]],
  ])
  assert.equal(runsOf(lines, of, `${source}/mail/old/gone.txt`), [
    ['absent', undefined, 1, 2, undefined],
    ['held', 4, 0, 0, [first]],
  ])
  assert.equal(runsOf(lines, of, `${source}/mail/same.txt`), [['held', 4, 0, 2, [second, first]]])
  assert.equal(lines.at(-1), {
    schema: 1,
    kind: 'result',
    command: 'backup find',
    found: 4,
    exitCode: 0,
  })
  const { stdout } = await run('find', 'gone.txt')
  const [path, absent, held] = stdout.split('\n')
  assert.is(path, `${source}/mail/old/gone.txt`)
  assert.is(absent, `    not in ${stamps[1]}–${stamps[2]} (2)`)
  assert.ok(held?.startsWith(`    in ${stamps[0]}: file, 4 B, changed `), held)
  assert.ok(held?.endsWith('; drive'), held)
})

find('a target that is not there is known all the same, and marked', async () => {
  const { target, run } = await scene()
  renameSync(target, `${target}.away`)
  try {
    const { stdout, status } = await run('find', 'gone.txt')
    assert.is(status, 0)
    assert.match(stdout, /; drive \(not there now\)$/m)
  } finally {
    renameSync(`${target}.away`, target)
  }
})

find('what it is narrowed by counts', async () => {
  const { source, run, stamps } = await scene()
  const found = async (...words: string[]): Promise<string[]> =>
    paths((await run('find', ...words)).stdout).map((path) => path.slice(source.length + 1))
  assert.equal(await found('*.txt'), ['mail/old/gone.txt', 'mail/same.txt', 'new.txt'])
  assert.equal(await found('*.txt', '--deleted'), ['mail/old/gone.txt'])
  assert.equal(await found('mail/*', '--type', 'd'), ['mail/old'])
  assert.equal(await found('*', '--type', 'f', '--larger', '4KiB'), ['\\xff.bin'])
  assert.equal(await found('*.txt', '--date-range', `${stamps[2]}..`), ['mail/same.txt', 'new.txt'])
  assert.equal(await found('*.txt', '--date-range', `..${stamps[0]}`), [
    'mail/old/gone.txt',
    'mail/same.txt',
  ])
})

find('names are lossless: --print0 gives their bytes, --json path64', async () => {
  const { run } = await scene()
  const { stdout } = await run('find', '*.bin', '--print0')
  assert.match(stdout, /\/data\/\ufffd\.bin\0$/, 'one byte that is no text')
  const [line] = jsonLines(await run('find', '*.bin', '--json'), 'result')
  assert.is(line!['path'], undefined)
  assert.ok(Buffer.from(line!['path64'], 'base64').toString('latin1').endsWith('/data/\xff.bin'))
})

find('a pattern is the bytes that were typed, also where they are no text', async () => {
  const { home } = await scene()
  const typed = async (pattern: string): Promise<Outcome> => {
    const line = `exec "$0" "$1" find ${pattern}`
    const program = ['bash', '-c', line, process.execPath, MAIN]
    return await runCli([], { environment: { HOME: home }, program })
  }
  const found = await typed("$'\\xff.bin'")
  assert.is(found.status, 0, found.stderr)
  assert.match(found.stdout, /^\/.*\/data\/\\xff\.bin$/m)
  const other = await typed("$'\\xfe.bin'")
  assert.is(other.status, 1)
  assert.match(other.stderr, 'nothing fits \\xfe.bin\n')
})

find('--target reads the same from the exports, without anything in staging', async () => {
  const of = await scene()
  const { source, run, identity, staging } = of
  renameSync(staging, `${staging}.away`)
  try {
    const outcome = await run('find', '*', '--target', 'drive', '--identity', identity, '--json')
    assert.is(outcome.status, 0, outcome.stderr)
    const lines = jsonLines(outcome, 'result')
    assert.equal(runsOf(lines, of, `${source}/changed.TXT`), [
      ['held', 5, 1, 1, ['drive']],
      ['held', 3, 0, 0, ['drive']],
    ])
    assert.equal(runsOf(lines, of, `${source}/mail/old/gone.txt`), [
      ['absent', undefined, 1, 1, undefined],
      ['held', 4, 0, 0, ['drive']],
    ])
    assert.equal(runsOf(lines, of, `${source}/mail/same.txt`), [['held', 4, 0, 1, ['drive']]])
    assert.equal(runsOf(lines, of, `${source}/new.txt`), [])
  } finally {
    rmSync(staging, { recursive: true, force: true })
    renameSync(`${staging}.away`, staging)
  }
})

find('the index that is lost is made anew, and what it cannot know is said', async () => {
  const { run, staging, stamps } = await scene()
  rmSync(`${staging}/.state/versions`, { recursive: true })
  const { stdout, stderr, status } = await run('find', '*.txt')
  assert.is(status, 0)
  assert.is(paths(stdout).length, 2, 'the first generation is on the target only')
  assert.ok(stderr.includes(`what is in ${stamps[0]} is known on its target only`), stderr)
})

find('why says of each target which version it has, and when that was proven', async () => {
  const scenario = await makeScenario()
  const { source, staging, run, collect, generation, restore } = scenario
  writeFileSync(`${source}/a`, 'one')
  await generation()
  const why = async (...words: string[]): Promise<string> => {
    const { stdout, stderr, status } = await run('why', `${source}/a`, ...words)
    assert.is(status, 0, stderr)
    return stdout
  }
  const [stamp] = exportStamps(scenario)
  assert.match(await why('-v'), /^  on drive: this version, exported just now; never proven$/m)
  assert.match(await why('-v'), new RegExp(`^    in data/${stamp}/data-0001$`, 'm'))
  assert.not.match(await why(), /data-0001/)
  const repositories = `${staging}/.state/repositories`
  const state = `${repositories}/${readdirSync(repositories)[0]}`
  const catalog = readdirSync(state).find((name) => name.includes('-entries-'))
  truncateSync(`${state}/${catalog}`, 5)
  assert.not.match(await why('-v'), /data-0001/, 'what is damaged here is not known')
  assert.is((await restore('--verify')).status, 0)
  const proven =
    /^  on drive: this version, .*; last proven just now \(receipt \S+-drive-verification\)$/m
  assert.match(await why(), proven)
  writeFileSync(`${source}/a`, 'other')
  utimesSync(`${source}/a`, 1, 1)
  assert.is((await collect()).status, 0)
  assert.match(await why(), new RegExp(`^  on drive: an older version, of ${stamp}, `, 'm'))
  const [result] = jsonLines(await run('why', `${source}/a`, '--json'), 'result')
  const [target] = result!['sets'][0].targets
  assert.equal([target.name, target.state, target.stamp], ['drive', 'older', stamp])
  assert.ok(target.proven.receipt.endsWith('-drive-verification'))
})

find('wants a pattern that fits, and words that mean something', async () => {
  const { run } = await scene()
  const nothing = await run('find', 'nothing.at.all')
  assert.equal([nothing.status, nothing.stdout], [1, ''])
  assert.match(nothing.stderr, /error: nothing fits nothing\.at\.all\n/)
  for (const words of [
    [],
    ['*', '--type', 'x'],
    ['*', '--larger', 'big'],
    ['*', '--set', 'none'],
    ['*', '--machine', 'other'],
    ['*', '--date-range', '2025'],
    ['*', '--print0', '--json'],
  ]) {
    assert.is((await run('find', ...words)).status, 2, words.join(' '))
  }
})

find.run()
