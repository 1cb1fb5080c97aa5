import { existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { loadConfiguration } from '../../lib/machine/config.ts'
import { readIdentityFile } from '../../lib/machine/identity.ts'
import type { BundleUse, Compaction } from '../../lib/work/bundle-table.ts'
import { ExportReader } from '../../lib/work/export-reader.ts'
import { type ExportOutcome, exportSet } from '../../lib/work/export.ts'
import {
  type Repository,
  createRepository,
  enterMachine,
  exportsOf,
  findRepository,
  listStamps,
  readManifest,
} from '../../lib/work/repository.ts'
import { restoreSelection } from '../../lib/work/restore.ts'
import { selectEntries } from '../../lib/work/selection.ts'
import { openSigner } from '../../lib/work/signing.ts'
import { verifyExports } from '../../lib/work/verify.ts'
import * as assert from '../helpers/assert.ts'
import { type NetworkTarget, dropped, networkTarget } from '../helpers/network-target.ts'
import { randomFrom } from '../helpers/random.ts'
import { type Scenario, configure, inventory, makeScenario } from '../helpers/scenario.ts'

const network = suite('work/network')
const random = randomFrom('network')
const nowMs = Date.parse('2026-05-01T12:00:00Z')
const signal = new AbortController().signal
const report = (): void => {}

interface Remote {
  readonly scenario: Scenario
  readonly target: NetworkTarget
  readonly spool: string
}

/** Several bundles of several files, collected, and nothing exported yet. */
async function makeRemote(): Promise<Remote> {
  const scenario = await makeScenario()
  configure(scenario, (c) => {
    c['targets'][0].bundle_size = '1 MiB'
  })
  mkdirSync(`${scenario.source}/deep`)
  for (let i = 0; i < 40; i++) writeFileSync(`${scenario.source}/${i}`, random.bytes(100_000))
  for (let i = 0; i < 300; i++) writeFileSync(`${scenario.source}/deep/${i}`, `${i}\n`)
  writeFileSync(`${scenario.source}/long`, random.bytes(9_000_000))
  assert.is((await scenario.collect()).status, 0)
  const spool = `${scenario.directory}/spool`
  return { scenario, spool, target: networkTarget({ path: scenario.target, spool }) }
}

async function configurationOf({ scenario }: Remote) {
  const { configuration: path, home } = scenario
  return await loadConfiguration({ path, environment: { HOME: home }, home, hostName: 'tester' })
}

async function exportNow(
  remote: Remote,
  { set = 'data', compaction }: { readonly set?: string; readonly compaction?: Compaction } = {},
): Promise<ExportOutcome> {
  const configuration = await configurationOf(remote)
  const signer = await openSigner(configuration)
  const { target } = remote
  const repository = (await findRepository(target)) ?? (await createRepository(target, { nowMs }))
  await enterMachine(repository, { machine: 'tester', signer })
  const targetConfiguration = configuration.targets[0]!
  return await exportSet({
    ...{ configuration, targetConfiguration, repository, set, signer },
    ...{ nowMs: Date.now(), report, signal, compaction },
  })
}

async function keysOf(remote: Remote) {
  const signer = await openSigner(await configurationOf(remote))
  const askPassphrase = (): never => {
    throw new Error('it has none')
  }
  const file = await readIdentityFile({ path: remote.scenario.identity, askPassphrase })
  return { publicKeys: [signer.publicKey], identities: file.identities }
}

async function verify(remote: Remote) {
  const repository = (await findRepository(remote.target))!
  const { publicKeys, identities } = await keysOf(remote)
  return await verifyExports({
    repository,
    places: exportsOf(await listStamps(repository, 'tester')),
    publicKeys: async () => publicKeys,
    ...{ identities, cores: 2, report, signal },
  })
}

async function restore(remote: Remote, paths: readonly string[] = []) {
  const repository: Repository = (await findRepository(remote.target))!
  const keys = await keysOf(remote)
  const [place] = exportsOf(await listStamps(repository, 'tester')).slice(-1)
  const manifest = await readManifest(repository, place!, keys)
  const { identities } = keys
  const reader = new ExportReader({ repository, manifest, identities })
  const into = `${remote.scenario.directory}/back`
  rmSync(into, { recursive: true, force: true })
  mkdirSync(into)
  const selection = await selectEntries(reader, { paths })
  const outcome = await restoreSelection(selection, {
    ...{ identities, into, overwrite: 'never', deleteIn: [], dryRun: false, checksRoom: true },
    ...{ cores: 2, aside: undefined, report, signal },
  })
  return { outcome, into }
}

network('exports, verifies and restores over a network alone', async () => {
  const remote = await makeRemote()
  const exported = await exportNow(remote)
  assert.is(exported.kind, 'exported')
  assert.not.ok(existsSync(`${remote.spool}/machines/tester/data`), 'the spool is empty')
  const verified = await verify(remote)
  assert.ok(verified.deep)
  assert.equal(
    verified.exports.flatMap(({ problems }) => problems),
    [],
  )
  const { outcome, into } = await restore(remote)
  assert.equal(outcome.failures, [])
  const { source } = remote.scenario
  assert.equal(await inventory(`${into}${source}`), await inventory(source))
})

network('one file costs a handful of requests', async () => {
  const remote = await makeRemote()
  await exportNow(remote)
  remote.target.calls.length = 0
  const path = `${remote.scenario.source}/deep/7`
  const { outcome, into } = await restore(remote, [path.slice(1)])
  assert.is(outcome.written, 1)
  assert.is(readFileSync(`${into}${path}`, 'utf8'), '7\n')
  assert.ok(remote.target.calls.length <= 14, remote.target.calls.join('\n'))
  assert.not.ok(remote.target.calls.some((call) => call.startsWith('fileSize')))
})

network('goes on with what was sent and what waits, and packs only the rest', async () => {
  const remote = await makeRemote()
  let bundles = 0
  remote.target.onCall = (call) => {
    if (/^publish .*data-/.test(call) && ++bundles > 3) throw dropped()
  }
  await assertDropped(remote)
  const there = exportsOf(await listStamps((await findRepository(remote.target))!, 'tester'))
  assert.equal(there, [], 'there is no export')
  const sent = await sentBundles(remote)
  assert.ok(sent.size >= 1, 'some bundles were sent')

  remote.target.onCall = () => {}
  remote.target.calls.length = 0
  const exported = await exportNow(remote)
  assert.ok(exported.kind === 'exported')
  for (const [name, size] of sent) {
    assert.is(statSync(`${remote.scenario.target}/machines/tester/${name}`).size, size)
    const again = remote.target.calls.filter((call) => call === `publish machines/tester/${name}`)
    assert.equal(again, [], 'no bundle is sent twice')
  }
  const all = [...(await sentBundles(remote)).values()].reduce((sum, size) => sum + size, 0)
  assert.ok(all < 13_300_000, `${all} bytes: nothing is there twice`)
  const { outcome, into } = await restore(remote)
  assert.equal(outcome.failures, [])
  const { source } = remote.scenario
  assert.equal(await inventory(`${into}${source}`), await inventory(source))
  assert.equal(
    (await verify(remote)).exports.flatMap(({ problems }) => problems),
    [],
  )
  assert.not.ok(existsSync(`${remote.scenario.staging}/.state/unfinished/x`))
})

network('goes on in a newer collection with what an older one sent', async () => {
  const remote = await makeRemote()
  let bundles = 0
  remote.target.onCall = (call) => {
    if (/^publish .*data-/.test(call) && ++bundles > 4) throw dropped()
  }
  await assertDropped(remote)
  const sent = await sentBundles(remote)
  remote.target.onCall = () => {}
  writeFileSync(`${remote.scenario.source}/one-more`, 'new')
  assert.is((await remote.scenario.collect()).status, 0)
  const exported = await exportNow(remote)
  assert.ok(exported.kind === 'exported')
  for (const name of sent.keys()) {
    assert.ok(existsSync(`${remote.scenario.target}/machines/tester/${name}`), `${name} is kept`)
  }
  const { outcome, into } = await restore(remote)
  assert.equal(outcome.failures, [])
  const { source } = remote.scenario
  assert.equal(await inventory(`${into}${source}`), await inventory(source))
})

for (const what of ['write .*verification.sha256$', 'write .*minisig$', 'publish .*manifest']) {
  network(`an export that failed at ${what} is finished as it was`, async () => {
    const remote = await makeRemote()
    remote.target.onCall = (call) => {
      if (new RegExp(what).test(call) && call.includes('/data/')) throw dropped()
    }
    await assertDropped(remote)
    const before = await sentBundles(remote)
    remote.target.onCall = () => {}
    remote.target.calls.length = 0
    const outcome = await exportNow(remote)
    assert.is(outcome.kind, 'already there', 'it was finished before anything else')
    assert.equal([...(await sentBundles(remote))], [...before], 'nothing was packed again')
    assert.equal(
      (await verify(remote)).exports.flatMap(({ problems }) => problems),
      [],
    )
    // And what is known of it serves the next one.
    writeFileSync(`${remote.scenario.source}/one-more`, 'new')
    assert.is((await remote.scenario.collect()).status, 0)
    const next = await exportNow(remote)
    assert.ok(next.kind === 'exported' && !next.full && next.dataBytes < 100_000)
  })
}

network('a bundle that is gone or cut short costs its files alone', async () => {
  const remote = await makeRemote()
  await exportNow(remote)
  const [name] = [...(await sentBundles(remote)).keys()].filter((one) => one.includes('data-'))
  const path = `${remote.scenario.target}/machines/tester/${name}`
  const bytes = readFileSync(path)
  for (const change of ['cut', 'gone', 'flipped'] as const) {
    if (change === 'gone') rmSync(path)
    else {
      const changed = Buffer.from(change === 'cut' ? bytes.subarray(0, 300_000) : bytes)
      if (change === 'flipped') changed[200_000]! ^= 1
      writeFileSync(path, changed)
    }
    const verified = await verify(remote)
    const problems = verified.exports.flatMap((one) => one.problems)
    assert.ok(problems.length > 0, change)
    const { outcome } = await restore(remote)
    assert.ok(outcome.failures.length > 0, change)
    assert.ok(outcome.written > 50, `${change}: ${outcome.written} files are restored`)
    assert.ok(
      outcome.failures.every(({ code }) => code.startsWith('BUNDLE') || code === 'AGE_PAYLOAD'),
    )
  }
})

network(
  'a connection that is dropped while workers wait ends the reading with its error',
  async () => {
    const remote = await makeRemote()
    await exportNow(remote)
    remote.target.onCall = (call) => {
      if (/^readRange .*data-/.test(call)) throw dropped()
    }
    for (const reading of [async () => await verify(remote), async () => await restore(remote)]) {
      try {
        await reading()
        assert.unreachable('nothing is called damaged that could not be reached')
      } catch (error) {
        assert.ok(error instanceof BackupError && error.code === 'TARGET_ABSENT', String(error))
      }
    }
  },
)

network(
  'short bundles are joined when that is said to pay, and little needed ones may stay',
  async () => {
    const remote = await makeRemote()
    const { source } = remote.scenario
    for (const name of ['first', 'second']) {
      await exportNow(remote)
      writeFileSync(`${source}/${name}`, random.bytes(200_000))
      assert.is((await remote.scenario.collect()).status, 0)
    }
    const days = await neededBy(remote)
    assert.ok(days.some((name) => name.includes('/data-')))
    let asked: readonly BundleUse[] = []
    const isShort = ({ sizeBytes }: BundleUse): boolean => sizeBytes < 300_000
    const outcome = await exportNow(remote, {
      compaction: {
        pays: () => false,
        join: (uses) => {
          asked = uses
          return uses.filter(isShort).map(({ name }) => name)
        },
      },
    })
    assert.ok(outcome.kind === 'exported')
    const joined = asked.filter(isShort).map(({ name }) => name)
    assert.is(joined.length, 1, asked.map((use) => JSON.stringify(use)).join('\n'))
    const needed = await neededBy(remote)
    for (const name of joined)
      assert.not.ok(needed.includes(name), `${name} is not needed any more`)
    for (const { name } of asked) assert.ok(joined.includes(name) || needed.includes(name), name)
    const { outcome: restored, into } = await restore(remote)
    assert.equal(restored.failures, [])
    assert.equal(await inventory(`${into}${source}`), await inventory(source))
  },
)

/** The bundles that the newest export needs. */
async function neededBy(remote: Remote): Promise<readonly string[]> {
  const repository = (await findRepository(remote.target))!
  const [place] = exportsOf(await listStamps(repository, 'tester')).slice(-1)
  const { bundles } = await readManifest(repository, place!, await keysOf(remote))
  return bundles.map(({ name }) => name)
}

network('an export that lacks its manifest is finished whichever set comes next', async () => {
  const remote = await makeRemote()
  const mail = `${remote.scenario.home}/mail`
  mkdirSync(mail)
  writeFileSync(`${mail}/letter`, 'dear')
  configure(remote.scenario, (c) => c['backup_sets'].push({ name: 'mail', sources: [mail] }))
  assert.is((await remote.scenario.collect()).status, 0)
  remote.target.onCall = (call) => {
    if (/^publish .*\/data\/.*manifest/.test(call)) throw dropped()
  }
  await assertDropped(remote)
  remote.target.onCall = () => {}
  assert.is((await exportNow(remote, { set: 'mail' })).kind, 'exported')
  const there = exportsOf(await listStamps((await findRepository(remote.target))!, 'tester'))
  assert.equal(there.map(({ set }) => set).sort(), ['data', 'mail'])
  assert.is((await exportNow(remote)).kind, 'already there')
  assert.equal(
    (await verify(remote)).exports.flatMap(({ problems }) => problems),
    [],
  )
})

async function assertDropped(remote: Remote): Promise<void> {
  try {
    await exportNow(remote)
    assert.unreachable('the export has to fail')
  } catch (error) {
    assert.ok(error instanceof BackupError && error.code === 'TARGET_ABSENT', String(error))
  }
}

/** Sizes of the bundles on the target, by `<set>/<stamp>/<file>`. */
async function sentBundles({ target }: Remote): Promise<ReadonlyMap<string, number>> {
  const files = await target.listTree('machines/tester')
  const bundles = files.filter(({ name }) => /(data|catalog)-\d+\.tar\.zst\.age$/.test(name))
  return new Map(bundles.map(({ name, sizeBytes }) => [name, sizeBytes]))
}

network.run()
