// What a set's configuration makes of a collection: comparing content, filters, hooks, limits, and
// the lock of a run.

import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { getPriority } from 'node:os'
import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'
import { MAIN } from '../helpers/run-cli.ts'
import {
  type Scenario,
  assertNoLeftovers,
  configure,
  jsonLines,
  makeScenario,
  namesIn,
} from '../helpers/scenario.ts'

const rules = suite('what a set says of its collections')

async function scene(properties: Record<string, unknown> = {}): Promise<Scenario> {
  const scenario = await makeScenario()
  configure(scenario, (c) => Object.assign(c['backup_sets'][0], properties))
  writeFileSync(`${scenario.source}/one`, 'one')
  writeFileSync(`${scenario.source}/two`, 'two')
  return scenario
}

const collected = ({ staging, source }: Scenario): string[] =>
  namesIn(`${staging}/data/latest${source}`, /./)

/** Other bytes, with the size and the time that the file had. */
function rewrite(path: string, text: string): void {
  const { atime, mtime } = statSync(path)
  writeFileSync(path, text)
  utimesSync(path, atime, mtime)
}

rules('an edit that kept size and time is found by a full run, and named', async () => {
  const scenario = await scene()
  const edited = `${scenario.source}/one`
  utimesSync(edited, 1_700_000_000, 1_700_000_000)
  await scenario.collect()
  rewrite(edited, 'eno')
  const quick = await scenario.collect()
  assert.is(quick.status, 0)
  assert.is(readFileSync(`${scenario.staging}/data/latest${edited}`, 'utf8'), 'one', 'not seen')
  const full = await scenario.collect('--full', '--json')
  assert.is(full.status, 0, full.stderr)
  assert.match(full.stderr, /other content with the same size and time: .*\/one/)
  assert.equal(jsonLines(full, 'result')[0]?.['contentDiffers'], [{ path: edited.slice(1) }])
  assert.is(readFileSync(`${scenario.staging}/data/latest${edited}`, 'utf8'), 'eno')
})

rules('a file that decayed in staging is found by a full run, and collected anew', async () => {
  const scenario = await scene()
  utimesSync(`${scenario.source}/two`, 1_700_000_000, 1_700_000_000)
  await scenario.collect()
  const staged = `${scenario.staging}/data/latest${scenario.source}/two`
  rewrite(staged, 'tvo')
  const full = await scenario.collect('--full')
  assert.match(full.stderr, /decayed in staging.*|other content/)
  assert.is(readFileSync(staged, 'utf8'), 'two')
  const again = await scenario.collect('--full')
  assert.not.match(again.stderr, /other content/)
})

rules('filters leave out what rsync has no patterns for, and why says which', async () => {
  const scenario = await scene({
    filters: {
      globs: ['**/deep/*.iso'],
      regexes: ['/secret-\\d+$'],
      ignore_files: ['.gitignore'],
      skip_caches: true,
      skip_markers: ['.nobackup'],
      max_size: '1 KiB',
    },
  })
  const { source } = scenario
  for (const name of ['deep', 'cache', 'marked']) mkdirSync(`${source}/${name}`)
  writeFileSync(`${source}/deep/x.iso`, 'x')
  writeFileSync(`${source}/secret-12`, 'x')
  writeFileSync(`${source}/.gitignore`, '*.o\n!keep.o\n')
  writeFileSync(`${source}/a.o`, 'x')
  writeFileSync(`${source}/keep.o`, 'x')
  writeFileSync(`${source}/cache/CACHEDIR.TAG`, 'Signature: 8a477f597d28d172789f06886806bc55\n')
  writeFileSync(`${source}/cache/thing`, 'x')
  writeFileSync(`${source}/marked/.nobackup`, '')
  writeFileSync(`${source}/marked/thing`, 'x')
  writeFileSync(`${source}/large`, Buffer.alloc(2000))
  assert.is((await scenario.collect()).status, 0)
  assert.equal(collected(scenario), [
    '.gitignore',
    'cache',
    'cache/CACHEDIR.TAG',
    'deep',
    'keep.o',
    'marked',
    'marked/.nobackup',
    'one',
    'two',
  ])
  const why = await scenario.run('why', `${source}/a.o`)
  assert.match(why.stdout, /\.gitignore.*\*\.o|\*\.o.*\.gitignore/s)
})

rules('a before hook that fails stops its set, and no other', async () => {
  const scenario = await scene({ hooks: { collect: { before: ['false'] } } })
  configure(scenario, (c) => c['backup_sets'].push({ name: 'other', sources: [scenario.source] }))
  const run = await scenario.collect()
  assert.is(run.status, 1)
  assert.not.ok(existsSync(`${scenario.staging}/data/latest`))
  assert.ok(existsSync(`${scenario.staging}/other/latest`))
})

rules('hooks know set, phase, stamp and outcome, and run in order', async () => {
  const scenario = await makeScenario()
  const log = `${scenario.directory}/hooks.log`
  const hook = `${scenario.directory}/hook`
  const line = '$BACKUP_MOMENT $BACKUP_PHASE $BACKUP_SET ${BACKUP_TARGET:--} ${BACKUP_OUTCOME:--}'
  writeFileSync(hook, `#!/bin/sh\necho "${line}" >>"${log}"\n`)
  chmodSync(hook, 0o755)
  const hooks = { before: [hook], after: [hook], on_failure: [hook] }
  configure(scenario, (c) => (c['backup_sets'][0].hooks = { collect: hooks, export: hooks }))
  writeFileSync(`${scenario.source}/file`, 'x')
  assert.is((await scenario.run('--force')).status, 0)
  configure(scenario, (c) => c['backup_sets'][0].sources.push('/no/such/thing'))
  assert.is((await scenario.collect()).status, 3)
  assert.equal(readFileSync(log, 'utf8').trim().split('\n'), [
    'before collect data - -',
    'after collect data - good',
    'before export data drive -',
    'after export data drive good',
    'before collect data - -',
    'on_failure collect data - incomplete',
    'after collect data - incomplete',
  ])
})

rules(
  'a second run ends with 11 and names the first; a dead one is taken over with a word',
  async () => {
    const scenario = await scene({ hooks: { collect: { before: ['sleep', '30'] } } })
    const environment = { PATH: process.env['PATH'] ?? '', ...scenario.environment }
    const first = spawn(process.execPath, [MAIN, 'collect'], { env: environment, stdio: 'ignore' })
    const lock = `${scenario.staging}/.state/.run.lock`
    while (!existsSync(lock) || readFileSync(lock, 'utf8') === '') {
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
    const second = await scenario.collect()
    assert.is(second.status, 11)
    assert.match(second.stderr, new RegExp(`backup-collect since \\S+ \\(process ${first.pid} on `))
    first.kill('SIGKILL')
    await once(first, 'exit')
    configure(scenario, (c) => delete c['backup_sets'][0].hooks)
    const third = await scenario.collect()
    assert.is(third.status, 0, third.stderr)
    assert.match(third.stderr, new RegExp(`an earlier run ended without a word: .*${first.pid}`))
    const fourth = await scenario.collect()
    assert.not.match(fourth.stderr, /without a word/)
    assertNoLeftovers(scenario.staging)
  },
)

rules('a set may have any name, also that of a lock', async () => {
  const scenario = await scene({ name: 'run' })
  const { status, stderr } = await scenario.collect()
  assert.is(status, 0, stderr)
  assert.ok(existsSync(`${scenario.staging}/run/latest`))
})

rules('staging is not made below a directory that is not there', async () => {
  const scenario = await scene()
  const away = `${scenario.directory}/disk`
  configure(scenario, (c) => (c['staging'] = `${away}/staging`))
  const { status, stderr } = await scenario.collect()
  assert.is(status, 1)
  assert.match(stderr, /there is no directory ".*\/disk" to make staging in/)
  assert.not.ok(existsSync(away))
})

rules('a source that shrank is suspect, though another one was never there', async () => {
  const scenario = await scene()
  for (let i = 0; i < 20; i++) writeFileSync(`${scenario.source}/${i}`, 'x')
  configure(scenario, (c) => c['backup_sets'][0].sources.push('/no/such/thing'))
  assert.not.match((await scenario.collect()).stdout, /SUSPECT/)
  for (let i = 0; i < 20; i++) rmSync(`${scenario.source}/${i}`)
  const shrunk = await scenario.collect()
  assert.is(shrunk.status, 3)
  assert.match(shrunk.stdout, /SUSPECT INCOMPLETE|SUSPECT as INCOMPLETE/)
})

rules('a tree that lost its catalog is named at every run, and stays', async () => {
  const scenario = await scene()
  assert.is((await scenario.collect()).status, 0)
  const [stamp = ''] = namesIn(`${scenario.staging}/data`, /^[^/]*Z$/)
  rmSync(`${scenario.staging}/data/${stamp}.catalog.zst`)
  const next = await scenario.collect()
  assert.match(next.stderr, `${stamp}: its catalog cannot be read; the tree stays`)
  assert.ok(existsSync(`${scenario.staging}/data/${stamp}${scenario.source}/one`))
})

rules('staging that was replaced by an empty directory is not begun anew', async () => {
  const scenario = await scene()
  assert.is((await scenario.collect()).status, 0)
  renameSync(scenario.staging, `${scenario.directory}/unmounted`)
  mkdirSync(scenario.staging)
  const { status, stderr } = await scenario.collect()
  assert.is(status, 1)
  assert.match(stderr, /is not the one that was used before: it is empty/)
  assert.equal(namesIn(scenario.staging, /./), [])
  const known = /remove "(.*)"/.exec(stderr)?.[1] ?? ''
  rmSync(known)
  assert.is((await scenario.collect()).status, 0, 'begun anew when it was said')
})

rules('a suspect collection is said by backup, though nothing is due', async () => {
  const scenario = await scene()
  for (let i = 0; i < 9; i++) writeFileSync(`${scenario.source}/${i}`, 'x')
  assert.is((await scenario.run()).status, 0)
  for (let i = 0; i < 9; i++) rmSync(`${scenario.source}/${i}`)
  assert.is((await scenario.collect()).status, 3)
  await scenario.run()
  const again = await scenario.run()
  assert.is(again.status, 3)
  assert.match(again.stderr, /suspect: .* backup accept data/)
})

rules('a generation dated ahead lets nothing go, and says so', async () => {
  const scenario = await scene({ retention: { local: 1, keep: { monthly: 'all' } } })
  assert.is((await scenario.collect()).status, 0)
  assert.is((await scenario.collect()).status, 0)
  const stamps = () => namesIn(`${scenario.staging}/data`, /^[^/]*Z$/)
  const [only = ''] = stamps()
  const ahead = only.replace(/^\d{4}/, '2098')
  mkdirSync(`${scenario.staging}/data/${ahead}`)
  const next = await scenario.collect()
  assert.match(next.stderr, /is later than this machine's clock, so no old generation is let go/)
  const count = stamps().length
  await scenario.collect()
  assert.is(stamps().length, count + 1, 'nothing goes as long as new ones are dated ahead')
})

rules(
  'a full disk under standard output does not stop a collection, but its exit code tells',
  async () => {
    const scenario = await scene()
    const words = ['-c', '"$0" "$1" collect --json >/dev/full', process.execPath, MAIN]
    const env = { PATH: process.env['PATH'] ?? '', ...scenario.environment }
    const run = spawnSync('sh', words, { env, encoding: 'utf8' })
    assert.is(run.status, 1)
    assert.not.match(run.stderr, /    at /)
    assert.ok(existsSync(`${scenario.staging}/data/latest`))
  },
)

rules('nice, ionice and a bandwidth limit reach rsync', async () => {
  const scenario = await scene({ nice: 7, ionice: 'idle', bandwidth_limit: '3 MiB' })
  const seen = `${scenario.directory}/seen`
  mkdirSync(`${scenario.directory}/bin`)
  const real = spawnSync('sh', ['-c', 'command -v rsync'], { encoding: 'utf8' }).stdout.trim()
  const script = `#!/bin/sh\necho "$(nice) $(ionice) $*" >>"${seen}"\nexec ${real} "$@"\n`
  writeFileSync(`${scenario.directory}/bin/rsync`, script)
  chmodSync(`${scenario.directory}/bin/rsync`, 0o755)
  scenario.environment['PATH'] = `${scenario.directory}/bin:${process.env['PATH']}`
  assert.is((await scenario.collect()).status, 0)
  // Niceness is added to ours.
  const nice = Math.min(19, getPriority() + 7)
  assert.match(readFileSync(seen, 'utf8'), new RegExp(`^${nice} idle .*--bwlimit=3072`, 'm'))
})

rules.run()
