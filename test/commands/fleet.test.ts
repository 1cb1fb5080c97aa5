// `backup status --fleet`, end to end on a directory that several machines share.

import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { Ajv } from 'ajv'
import { suite } from 'uvu'
import { command as statusCommand } from '../../commands/status.ts'
import * as assert from '../helpers/assert.ts'
import type { Outcome } from '../helpers/run-cli.ts'
import { runCommand } from '../helpers/run-command.ts'
import {
  configure,
  inventory,
  jsonLines,
  makeScenario,
  type Properties,
  type Scenario,
  setDirectory,
} from '../helpers/scenario.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const fleet = suite('commands/fleet')

const DAY_MS = 86_400_000
const root = tempDirectory()
let made = 0

const schemaFile = new URL('../../../config/fleet.schema.json', import.meta.url)
const validate = new Ajv({ strict: true, allErrors: true }).compile(
  JSON.parse(readFileSync(schemaFile, 'utf8')) as object,
)

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

/** What --json said, checked against its schema. */
function documentOf(outcome: Outcome): Properties {
  const [document] = jsonLines(outcome, 'result')
  assert.ok(document, outcome.stdout + outcome.stderr)
  assert.ok(validate(document), JSON.stringify(validate.errors))
  return document
}

const machinesOf = (outcome: Outcome): Properties[] =>
  documentOf(outcome)['fleet'][0]['machines'] as Properties[]

const codes = (machine: Properties | undefined): string[] =>
  (machine?.['problems'] as Properties[]).map(({ code }) => code as string)

async function publicKeyOf(scenario: Scenario): Promise<string> {
  const [result] = jsonLines(await scenario.run('keys', 'public', '--json'), 'result')
  return result!['signingKey'] as string
}

fleet('each machine of a store is shown, and strangers as strangers', async () => {
  const store = newStore()
  const one = await newMachine('one', store)
  const two = await newMachine('two', store)
  const text = await one.run('status', '--fleet')
  assert.is(text.status, 0, text.stderr)
  assert.match(text.stdout, /machine +set +newest export +age +complete +exports +size +verified/)
  assert.match(text.stdout, /\n {2}one +data +\S+Z +\S.*yes +1 +\S+ \S+ +never +fresh\n/)
  assert.match(text.stdout, /two: untrusted key/)
  assert.not.match(text.stdout, /one: untrusted key/)
  const before = inventory(store)
  const machines = machinesOf(await one.run('status', '--fleet', '--json', '--target', 'drive'))
  assert.equal(
    machines.map(({ machine, standing, key }) => [machine, standing, key]),
    [
      ['one', 'fresh', 'trusted'],
      ['two', 'fresh', 'untrusted'],
    ],
  )
  const key = await publicKeyOf(two)
  configure(one, (properties) => {
    properties['trusted_signing_keys'] = [{ machine: 'two', key }]
  })
  assert.is(machinesOf(await one.run('status', '--fleet', '--json'))[1]?.['key'], 'trusted')
  const words = ['--identity', one.identity]
  assert.equal(codes(machinesOf(await two.run('status', '--fleet', '--json', ...words))[0]), [])
  assert.equal(inventory(store), before, 'looking changes nothing')
})

fleet('late machines are 3, what is not as it was signed is 13', async () => {
  const store = newStore()
  const one = await newMachine('one', store)
  const at = async (nowMs: number): Promise<Outcome> =>
    await runCommand(statusCommand, { scenario: one, values: { fleet: true, json: true }, nowMs })
  const soon = await at(Date.now() + 20 * DAY_MS)
  assert.is(soon.status, 0)
  const later = await at(Date.now() + 22 * DAY_MS)
  assert.is(later.status, 3)
  const [silent] = machinesOf(later)
  assert.is(silent?.['standing'], 'silent')
  assert.equal(codes(silent), ['SILENT', 'LATE'])

  const [stamp] = stampsOf(one, 'one')
  rmSync(`${setDirectory(one, 'data', 'one')}/${stamp}/manifest.tar.zst.age`)
  const claimed = await one.run('status', '--fleet', '--json')
  assert.is(claimed.status, 13)
  assert.equal(codes(machinesOf(claimed)[0]), ['CLAIM_WRONG'])
})

function stampsOf(scenario: Scenario, machine: string): string[] {
  return readdirSync(setDirectory(scenario, 'data', machine)).filter((name) => name !== 'latest')
}

fleet('a target that is not there is told beside those that are', async () => {
  const store = newStore()
  const one = await newMachine('one', store)
  configure(one, (properties) => {
    properties['targets'].push({ name: 'away', kind: 'directory', path: `${root}/away` })
  })
  const outcome = await one.run('status', '--fleet', '--json')
  assert.is(outcome.status, 10)
  const [, away] = documentOf(outcome)['fleet'] as Properties[]
  assert.is(away?.['error'].code, 'TARGET_ABSENT')
  const text = await one.run('status', '--fleet')
  assert.match(text.stdout, /one +data/)
  assert.not.ok(existsSync(`${root}/away`))
})

fleet('words that are about this machine do not go with it, and the other way', async () => {
  const one = await makeScenario()
  for (const words of [
    ['--fleet', '--set', 'data'],
    ['--fleet', '--prometheus', '/x'],
    ['--fleet', '--target', 'none'],
    ['--target', 'drive'],
  ]) {
    assert.is((await one.run('status', ...words)).status, 2, words.join(' '))
  }
})

fleet.run()
