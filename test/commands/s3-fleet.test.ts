// Several machines in one bucket, each with a key of its own, and a machine that has nothing but
// the identity: `backup status --fleet` and `backup init --from s3://…`. Promises 9 and 11.

import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { parse } from 'yaml'
import { command as statusCommand } from '../../commands/status.ts'
import * as assert from '../helpers/assert.ts'
import { type S3Server, startS3Server, type User } from '../helpers/s3-server.ts'
import { runCommand } from '../helpers/run-command.ts'
import { type Outcome, runCli } from '../helpers/run-cli.ts'
import {
  configure,
  inventory,
  jsonLines,
  makeScenario,
  type Properties,
  type Scenario,
} from '../helpers/scenario.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const fleet = suite('commands/s3-fleet')

const DAY_MS = 86_400_000
const root = tempDirectory()
let made = 0

/**
 * A machine's own part, the top's small files, and the small files of others: as policies allow.
 */
function userOf(machine: string, secret: string): User {
  const own = `backups/machines/${machine}/`
  const may = (action: string, key: string): boolean => {
    if (/^s3:(Delete|Bypass)/.test(action)) return false
    if (action === 's3:GetObject') {
      return key.startsWith(own) || !/\/(data|catalog|manifest)-?[^/]*$/.test(key)
    }
    if (action === 's3:PutObject') return key.startsWith(own) || !key.includes('/machines/')
    return true
  }
  return { secret, may }
}

async function withStore(work: (server: S3Server) => Promise<void>): Promise<void> {
  const server = await startS3Server({
    users: {
      one: userOf('one', 'secret1'),
      two: userOf('two', 'secret2'),
      owner: { secret: 'secret3' },
    },
  })
  try {
    await work(server)
  } finally {
    await server.close()
  }
}

/** A machine with one export in the bucket, and a key of its own. */
async function newMachine(machine: string, server: S3Server): Promise<Scenario> {
  const scenario = await makeScenario({ machine })
  configure(scenario, (properties) => {
    properties['targets'] = [
      {
        ...{ name: 'cloud', kind: 's3', bucket: 'bucket', path: 'backups', region: 'us-east-1' },
        ...{ endpoint: server.endpoint, path_style: true },
      },
    ]
  })
  Object.assign(scenario.environment, server.environment(machine))
  writeFileSync(`${scenario.source}/a.txt`, `of ${machine}\n`)
  await scenario.generation()
  return scenario
}

function fleetOf(outcome: Outcome): Properties[] {
  const [document] = jsonLines(outcome, 'result')
  assert.ok(document, outcome.stdout + outcome.stderr)
  return document['fleet'][0]['machines'] as Properties[]
}

const codes = (machine: Properties | undefined): string[] =>
  ((machine?.['problems'] ?? []) as Properties[]).map(({ code }) => code as string)

async function trust(who: Scenario, machine: string, whom: Scenario): Promise<void> {
  const [result] = jsonLines(await whom.run('keys', 'public', '--json'), 'result')
  const key = result!['signingKey'] as string
  configure(who, (properties) => {
    properties['trusted_signing_keys'] = [{ machine, key }]
  })
}

fleet('two machines with keys of their own see each other, and read no bundle', async () => {
  await withStore(async (server) => {
    const one = await newMachine('one', server)
    const two = await newMachine('two', server)
    const accessKeys = (machine: string): Set<string | undefined> => {
      const writes = server.requests.filter(({ action, key }) => {
        return action === 'PutObject' && key.startsWith(`backups/machines/${machine}/`)
      })
      return new Set(writes.map(({ accessKey }) => accessKey))
    }
    assert.equal([...accessKeys('one')], ['one'])
    assert.equal([...accessKeys('two')], ['two'])
    await trust(one, 'two', two)
    server.resetRequests()
    const text = await one.run('status', '--fleet')
    assert.is(text.status, 0, text.stdout + text.stderr)
    assert.match(text.stdout, 's3://bucket/backups')
    assert.match(text.stdout, '2 machines')
    assert.match(text.stdout, /\n {2}one +data +\S+Z .*yes +1 .*never +fresh\n/)
    assert.match(text.stdout, /\n {2}two +data +\S+Z .*yes +1 .*never +fresh\n/)
    const [first, second] = fleetOf(await one.run('status', '--fleet', '--json'))
    assert.equal([first?.['standing'], second?.['standing']], ['fresh', 'fresh'])
    assert.equal([first?.['key'], second?.['key']], ['trusted', 'trusted'])
    const changes = server.requests.filter(({ method }) => method !== 'GET' && method !== 'HEAD')
    assert.equal(changes, [], 'looking changes nothing')
    assert.not.ok(server.requests.some(({ key }) => /\/(data|catalog|manifest)/.test(key)))
    // Neither reaches what is the other's.
    const other = await one.restore('--machine', 'two', '--into', `${root}/other-${++made}`)
    assert.is.not(other.status, 0)
    assert.not.match(other.stdout + other.stderr, 'of two')
  })
})

fleet('who is late, tampered with, or claims what is not there is told', async () => {
  await withStore(async (server) => {
    const one = await newMachine('one', server)
    const two = await newMachine('two', server)
    await trust(one, 'two', two)
    const keys = [...server.objects().keys()]
    const record = keys.find((key) => /machines\/two\/freshness\/[^/]+\.json$/.test(key))!
    const { body } = server.objects().get(record)!
    // The name of a file or a path is nowhere in it.
    assert.not.match(body.toString(), 'a.txt')
    assert.not.match(body.toString(), two.source)

    const later = await atTime(one, server, Date.now() + 22 * DAY_MS)
    assert.is(later.status, 3, later.stdout + later.stderr)
    assert.equal(
      fleetOf(later).map(({ standing }) => standing),
      ['silent', 'silent'],
    )

    const text = body.toString().replace(/"exports":1\b/, '"exports":2')
    assert.is.not(text, body.toString())
    server.tamper('bucket', record, Buffer.from(text))
    const tampered = await one.run('status', '--fleet', '--json')
    assert.is(tampered.status, 13, tampered.stdout)
    assert.ok(codes(fleetOf(tampered)[1]).includes('SIGNATURE_WRONG'))
    assert.equal(codes(fleetOf(tampered)[0]), [], 'the other is as well as before')
    assert.match((await one.run('status', '--fleet')).stdout, /BAD two: /)
    server.tamper('bucket', record, body)

    const manifest = keys.find((key) => /machines\/two\/data\/.*\/manifest/.test(key))!
    server.lose('bucket', manifest)
    const claimed = await one.run('status', '--fleet', '--json')
    assert.is(claimed.status, 13, claimed.stdout)
    assert.equal(codes(fleetOf(claimed)[1]), ['CLAIM_WRONG'])
    assert.equal(codes(fleetOf(claimed)[0]), [])
  })
})

async function atTime(scenario: Scenario, server: S3Server, nowMs: number): Promise<Outcome> {
  const before = { ...process.env }
  const environment = server.environment('one')
  Object.assign(process.env, environment)
  try {
    return await runCommand(statusCommand, { scenario, values: { fleet: true, json: true }, nowMs })
  } finally {
    for (const name of Object.keys(environment)) {
      if (before[name] === undefined) delete process.env[name]
      else process.env[name] = before[name]
    }
  }
}

fleet('a machine that was only begun, and one that somebody made up, have no record', async () => {
  await withStore(async (server) => {
    const one = await newMachine('one', server)
    const stamp = '2026-01-01T000000Z'
    const key = `backups/machines/ghost/data/${stamp}/manifest.tar.zst.age`
    server.put({ key, body: Buffer.from('no manifest') })
    const outcome = await one.run('status', '--fleet', '--json')
    assert.is(outcome.status, 3, outcome.stdout + outcome.stderr)
    const ghost = fleetOf(outcome).find(({ machine }) => machine === 'ghost')
    assert.ok(codes(ghost).includes('RECORD_MISSING'), JSON.stringify(ghost))
    assert.is.not(ghost?.['standing'], 'fresh')
  })
})

fleet(
  'an empty home comes back from the bucket with the identity alone, without secrets',
  async () => {
    await withStore(async (server) => {
      const lost = await makeScenario({ machine: 'one' })
      const target = JSON.stringify({
        ...{ name: 'cloud', kind: 's3', bucket: 'bucket', path: 'backups', region: 'us-east-1' },
        ...{ endpoint: server.endpoint, path_style: true },
      })
      const text = readFileSync(lost.configuration, 'utf8')
      const before = parse(text) as Properties
      const changed = text
        .replace(/^targets:(\n[ -].*)*/m, `targets:\n  - ${target}`)
        .replace(
          'desktop: false',
          'desktop: false, webhook: { url: "http://127.0.0.1:1/hook-OF-MY-OWN" }',
        )
      writeFileSync(lost.configuration, `# the password: hook-OF-MY-OWN\n${changed}`)
      assert.is.not((parse(changed) as Properties)['targets'][0].name, before['targets'][0].name)
      Object.assign(lost.environment, server.environment('one'))
      writeFileSync(`${lost.source}/a.txt`, 'mine\n')
      await lost.generation()
      for (const [key, { body }] of server.objects()) {
        assert.not.ok(body.includes('OF-MY-OWN'), `${key} has no secret`)
      }
      const home = `${root}/home-${++made}`
      mkdirSync(home)
      const identity = `${root}/identity-${made}`
      cpSync(lost.identity, identity)
      const environment = { HOME: home, ...server.environment('owner') }
      const run = async (...words: string[]): Promise<Outcome> =>
        await runCli(words, { environment })
      const from = [
        ...['init', '--from', 's3://bucket/backups', '--endpoint', server.endpoint, '--path-style'],
        ...['--region', 'us-east-1', '--identity', identity],
      ]
      const planned = await run(...from, '--dry-run')
      assert.is(planned.status, 0, planned.stderr)
      assert.not.match(planned.stdout, 'OF-MY-OWN')
      assert.equal(readdirSync(home), [], 'a dry run writes nothing')
      const stored = inventoryOf(server)
      const outcome = await run(...from)
      assert.is(outcome.status, 0, outcome.stdout + outcome.stderr)
      assert.equal(inventoryOf(server), stored, 'nothing is written there')
      const back = readFileSync(`${home}/.config/backup/config.yaml`, 'utf8')
      assert.not.match(back, 'OF-MY-OWN')
      const { machine, targets } = parse(back) as Properties
      assert.is(machine, 'one')
      assert.is(targets[0].kind, 's3')
      const into = `${home}/into`
      const words = ['--source', 'external', '--target', targets[0].name, '--identity', identity]
      const restored = await run('restore', ...words, '--into', into)
      assert.is(restored.status, 0, restored.stdout + restored.stderr)
      assert.equal(inventory(`${into}${lost.source}`), inventory(lost.source))
      const again = await run(...from)
      assert.is(again.status, 2, 'nothing is overwritten')
      assert.is(readFileSync(`${home}/.config/backup/config.yaml`, 'utf8'), back)
    })
  },
)

function inventoryOf(server: S3Server): string[] {
  return [...server.objects()].map(([key, { body }]) => `${key} ${body.length}`)
}

fleet.run()
