// `backup init --from TARGET`, end to end: on a machine that has nothing but the identity.

import {
  cpSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { suite } from 'uvu'
import { parse } from 'yaml'
import * as assert from '../helpers/assert.ts'
import { type Outcome, runCli } from '../helpers/run-cli.ts'
import {
  assertNoLeftovers,
  jsonLines,
  makeScenario,
  type Properties,
  type Scenario,
  setDirectory,
} from '../helpers/scenario.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const from = suite('commands/init-from')

const root = tempDirectory()
let made = 0

/** A machine with one export on the shared directory. */
async function newMachine(machine: string, target: string): Promise<Scenario> {
  const scenario = await makeScenario({ machine, target })
  writeFileSync(`${scenario.source}/a.txt`, `of ${machine}\n`)
  await scenario.generation()
  return scenario
}

function newStore(): string {
  const store = `${root}/${++made}`
  mkdirSync(store)
  return store
}

function stampsOf(scenario: Scenario, machine: string): string[] {
  return readdirSync(setDirectory(scenario, 'data', machine)).filter((name) => name !== 'latest')
}

async function publicKeyOf(scenario: Scenario): Promise<string> {
  const [result] = jsonLines(await scenario.run('keys', 'public', '--json'), 'result')
  return result!['signingKey'] as string
}

/** A machine with nothing but an empty home. */
interface Empty {
  readonly home: string
  readonly configuration: string
  readonly init: (...words: string[]) => Promise<Outcome>
  readonly run: (...words: string[]) => Promise<Outcome>
}

function emptyMachine(): Empty {
  const home = `${root}/home-${++made}`
  mkdirSync(home)
  const run = async (...words: string[]): Promise<Outcome> =>
    await runCli(words, { environment: { HOME: home } })
  const configuration = `${home}/.config/backup/config.yaml`
  return { home, configuration, run, init: async (...words) => await run('init', ...words) }
}

const temporary = (): string[] =>
  readdirSync(tmpdir()).filter((name) => name.startsWith('backup-init-'))

from('the configuration comes back without secrets, and restoring works at once', async () => {
  const store = newStore()
  const lost = await makeScenario({ machine: 'lost', target: store })
  writeFileSync(`${lost.source}/a.txt`, 'mine\n')
  const text = readFileSync(lost.configuration, 'utf8')
  const address = 'http://127.0.0.1:1/SECRET'
  writeFileSync(
    lost.configuration,
    text.replace('desktop: false', `desktop: false, webhook: { url: "${address}" }`),
  )
  await lost.generation()
  const identity = `${root}/identity-${++made}`
  cpSync(lost.identity, identity)
  const moved = `${root}/moved-${made}`
  cpSync(store, moved, { recursive: true })
  rmSync(store, { recursive: true })
  rmSync(lost.directory, { recursive: true })

  const before = temporary()
  const fresh = emptyMachine()
  const words = ['--from', moved, '--identity', identity]
  const planned = await fresh.init(...words, '--dry-run')
  assert.is(planned.status, 0, planned.stderr)
  assert.match(planned.stdout, 'machine: lost')
  assert.equal(readdirSync(fresh.home), [], 'a dry run writes nothing')

  const outcome = await fresh.init(...words)
  assert.is(outcome.status, 0, outcome.stderr)
  assert.match(outcome.stdout, /Restoring works now/)
  assert.match(outcome.stdout, /Addresses of webhooks and pings are not in exports/)
  assert.match(outcome.stdout, /takes its signing key/)
  assert.equal(temporary(), before, 'nothing is left behind')
  const back = readFileSync(fresh.configuration, 'utf8')
  assert.not.match(back, 'SECRET')
  assert.match(back, "# This machine's secret signing key.")
  const { targets } = parse(back) as Properties
  assert.equal(targets, [{ name: 'drive', kind: 'directory', path: moved }])
  assert.is(statSync(fresh.configuration).mode & 0o777, 0o600)

  const into = `${fresh.home}/into`
  const restore = ['restore', '--source', 'external', '--target', 'drive', '--identity', identity]
  const restored = await fresh.run(...restore, '--into', into)
  assert.is(restored.status, 0, restored.stderr)
  assert.is(readFileSync(`${into}${lost.source}/a.txt`, 'utf8'), 'mine\n')

  const again = await fresh.init(...words)
  assert.is(again.status, 2)
  assert.match(again.stderr, 'already there')
  assert.is(readFileSync(fresh.configuration, 'utf8'), back, 'nothing is overwritten')
})

from('under another name it goes on with a key of its own', async () => {
  const store = newStore()
  const lost = await newMachine('lost', store)
  const fresh = emptyMachine()
  const words = ['--from', store, '--identity', lost.identity, '--as']
  assert.is((await fresh.init(...words, 'lost')).status, 2)
  assert.equal(readdirSync(fresh.home), [])
  const outcome = await fresh.init(...words, 'found')
  assert.is(outcome.status, 0, outcome.stderr)
  const collected = await fresh.run('collect')
  assert.is(collected.status, 0, collected.stderr)
  const exported = await fresh.run('external')
  assert.is(exported.status, 0, exported.stderr)
  const [document] = jsonLines(await fresh.run('status', '--fleet', '--json'), 'result')
  const machines = document!['fleet'][0].machines as Properties[]
  assert.equal(
    machines.map(({ machine, standing, key }) => [machine, standing, key]),
    [
      ['found', 'fresh', 'trusted'],
      ['lost', 'fresh', 'trusted'],
    ],
  )
  assertNoLeftovers(store)
})

from('what is not signed by a key that was brought along is not looked at', async () => {
  const store = newStore()
  const lost = await newMachine('lost', store)
  const other = await makeScenario({ machine: 'other' })
  // The right identity, but of another machine's signing key, and of none.
  const line = /# signing key of lost: .*\n/
  const text = readFileSync(lost.identity, 'utf8')
  const key = await publicKeyOf(other)
  const wrong = `${root}/wrong-${++made}`
  const bare = `${root}/bare-${made}`
  writeFileSync(wrong, text.replace(line, `# signing key of lost: ${key}\n`))
  writeFileSync(bare, text.replace(line, ''))
  const fresh = emptyMachine()
  for (const identity of [wrong, bare]) {
    const outcome = await fresh.init('--from', store, '--identity', identity)
    assert.is(outcome.status, 13, outcome.stderr)
    assert.equal(readdirSync(fresh.home), [])
  }
  const given = ['--signing-key', await publicKeyOf(lost)]
  const outcome = await fresh.init('--from', store, '--identity', bare, ...given)
  assert.is(outcome.status, 0, outcome.stderr)
  const { trusted_signing_keys: trusted } = parse(
    readFileSync(fresh.configuration, 'utf8'),
  ) as Properties
  assert.equal(trusted, [{ machine: 'lost', key: given[1] }])
})

from('a damaged export is passed over, and the one before it is told', async () => {
  const store = newStore()
  const lost = await newMachine('lost', store)
  writeFileSync(`${lost.source}/b.txt`, 'more\n')
  await new Promise((resolve) => setTimeout(resolve, 1000))
  await lost.generation()
  const [first, second] = stampsOf(lost, 'lost').sort()
  const manifest = `${setDirectory(lost, 'data', 'lost')}/${second}/manifest.tar.zst.age`
  const bytes = readFileSync(manifest)
  bytes[bytes.length - 1]! ^= 1
  writeFileSync(manifest, bytes)
  const fresh = emptyMachine()
  const words = ['--from', store, '--identity', lost.identity]
  const outcome = await fresh.init(...words)
  assert.is(outcome.status, 0, outcome.stderr)
  assert.match(outcome.stderr, `lost/data/${second} is passed over`)
  assert.match(outcome.stdout, `lost/data/${first}`)
  rmSync(`${setDirectory(lost, 'data', 'lost')}/${first}`, { recursive: true })
  const none = emptyMachine()
  const failed = await none.init(...words)
  assert.is(failed.status, 13)
  assert.equal(readdirSync(none.home), [])
})

from('words that do not go together are refused, and nothing is written', async () => {
  const fresh = emptyMachine()
  const identity = `${root}/none.txt`
  for (const [words, status] of [
    [['--region', 'r', '--staging', '/x'], 2],
    [['--from', '/x'], 12],
    [['--from', '/x', '--identity', identity], 12],
    [['--from', '/x', '--identity', identity, '--staging', '/y'], 2],
    [['--from', '/x', '--identity', identity, '--source', '/y'], 2],
    [['--from', 'ftp://h/x', '--identity', identity], 2],
    [['--from', '/x', '--identity', identity, '--as', 'A B'], 2],
  ] as const) {
    const outcome = await fresh.init(...words)
    assert.is(outcome.status, status, words.join(' ') + outcome.stderr)
  }
  assert.equal(readdirSync(fresh.home), [])
})

from.run()
