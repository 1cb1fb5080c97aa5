import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { loadConfiguration } from '../../lib/machine/config.ts'
import { readIdentityFile } from '../../lib/machine/identity.ts'
import { takePath } from '../../lib/model/entry.ts'
import { rawPathFromText } from '../../lib/model/raw-path.ts'
import type { Receipt } from '../../lib/model/receipt.ts'
import type { ReportEvent } from '../../lib/model/report.ts'
import { findExports } from '../../lib/work/find-exports.ts'
import { noteDamage, readKnownDamage } from '../../lib/work/known-damage.ts'
import { noteProofs, readProofs } from '../../lib/work/proof-ledger.ts'
import { type ProofRequest, type ProveOptions, proveRepository } from '../../lib/work/proof.ts'
import { openSigner } from '../../lib/work/signing.ts'
import { openTarget, repositoryToRead } from '../../lib/work/target-access.ts'
import * as assert from '../helpers/assert.ts'
import { randomFrom } from '../helpers/random.ts'
import type { Outcome } from '../helpers/run-cli.ts'
import {
  configure,
  exportStamps,
  inventory,
  jsonLines,
  makeScenario,
  type Properties,
  type Scenario,
  setDirectory,
} from '../helpers/scenario.ts'

const verify = suite('commands/verify')

const random = randomFrom('verify')
const KIB = 1024

/** Eight files in three bundles or more; one of them has a name that is no UTF-8. */
async function makeExports(): Promise<Scenario> {
  const scenario = await makeScenario()
  configure(scenario, (c) => {
    c['targets'][0].bundle_size = '1 MiB'
  })
  for (let i = 0; i < 7; i++) writeFileSync(`${scenario.source}/${i}`, random.bytes(400 * KIB))
  const odd = Buffer.concat([Buffer.from(`${scenario.source}/`), Buffer.from([0x6f, 0xff])])
  writeFileSync(odd, random.bytes(400 * KIB))
  await scenario.generation()
  return scenario
}

let shared: Promise<Scenario> | undefined

/** For tests that leave the target as it is. What was proven before is forgotten. */
async function sharedExports(): Promise<Scenario> {
  const scenario = await (shared ??= makeExports())
  const { staging } = scenario
  rmSync(`${staging}/.state/receipts`, { recursive: true, force: true })
  rmSync(`${staging}/.state/repositories/${idOf(scenario)}/proofs.json`, { force: true })
  return scenario
}

function idOf({ target }: Scenario): string {
  return JSON.parse(readFileSync(`${target}/repository.json`, 'utf8'))['id'] as string
}

const placeOf = (scenario: Scenario) => ({ staging: scenario.staging, id: idOf(scenario) })

/** Paths of bundles in the repository. */
function bundlesIn(scenario: Scenario): readonly string[] {
  return [...inventory(scenario.target).keys()].filter((path) => {
    return /(data|catalog)-\d+\.tar\.zst\.age$/.test(path)
  })
}

function receiptsIn({ staging }: Scenario): readonly Receipt[] {
  const directory = `${staging}/.state/receipts`
  if (!existsSync(directory)) return []
  return readdirSync(directory)
    .filter((name) => name.endsWith('.json'))
    .sort()
    .map((name) => JSON.parse(readFileSync(`${directory}/${name}`, 'utf8')) as Receipt)
}

/** Flips one bit in the middle. */
function flip(path: string): void {
  const fd = openSync(path, 'r+')
  const byte = Buffer.alloc(1)
  const position = Math.floor(statSync(path).size / 2)
  readSync(fd, byte, 0, 1, position)
  byte[0] = (byte[0] ?? 0) ^ 0x10
  writeSync(fd, byte, 0, 1, position)
  closeSync(fd)
}

/** The result of the whole command. */
function summary(outcome: Outcome): Properties {
  const [last] = jsonLines(outcome, 'result').slice(-1)
  assert.ok(last?.['bundlesTotal'] !== undefined, outcome.stdout + outcome.stderr)
  return last!
}

/** The same in this process, for what a command line cannot do. */
async function prove(
  scenario: Scenario,
  request: ProofRequest,
  change: Partial<ProveOptions> = {},
) {
  const configuration = await loadConfiguration({
    path: scenario.configuration,
    hostName: 'tester',
    home: scenario.home,
    environment: {},
  })
  const [target] = configuration.targets
  const repository = await repositoryToRead(await openTarget(target!, configuration))
  const { identities } = await readIdentityFile({
    path: scenario.identity,
    askPassphrase: () => Promise.reject(new Error('no passphrase')),
  })
  return await proveRepository({
    ...{ configuration, target: target!, repository, request, identities, cores: 1 },
    places: await findExports(repository, { machine: 'tester', set: undefined }),
    publicKeys: [(await openSigner(configuration)).publicKey],
    nowMs: Date.now(),
    report: () => {},
    signal: new AbortController().signal,
    ...change,
  })
}

const EVERYTHING: ProofRequest = {
  choice: { kind: 'all' },
  limitBytes: undefined,
  timeMs: undefined,
}

verify('without more words everything is read, and the ledger and a receipt say so', async () => {
  const scenario = await sharedExports()
  const before = inventory(scenario.target)
  const outcome = await scenario.run('verify')
  assert.is(outcome.status, 0, outcome.stderr)
  assert.match(outcome.stdout, /^data \S+: whole: 8 files, .* would be restored$/m)
  const bundles = bundlesIn(scenario)
  assert.ok(bundles.length >= 3, `${bundles.length} bundles`)
  assert.match(outcome.stdout, `${bundles.length} bundles, `)
  const proofs = readProofs(placeOf(scenario))
  assert.equal([...proofs.keys()].sort(), [...bundles].sort())
  for (const path of bundles) {
    assert.is(proofs.get(path)?.bytes, statSync(`${scenario.target}/${path}`).size)
    assert.is.not(proofs.get(path)?.restoredMs, undefined)
  }
  const [receipt, ...more] = receiptsIn(scenario)
  assert.is(receipt?.kind, 'verification')
  assert.is(receipt?.since, undefined, 'all was read now')
  assert.equal(more, [])
  assert.equal(inventory(scenario.target), before)
})

verify('a little at a time proves everything, and only then is it a verification', async () => {
  const scenario = await sharedExports()
  const bundles = bundlesIn(scenario)
  const startMs = Date.now()
  for (let done = 1; done <= bundles.length; done++) {
    const outcome = await scenario.run('verify', '--bytes', '1', '--json')
    assert.is(outcome.status, 0, outcome.stderr)
    const told = summary(outcome)
    assert.is(told['bundles'], 1, 'the first one is always read')
    assert.is(told['bundlesTotal'], bundles.length)
    assert.is(told['neverProven'], bundles.length - done)
    assert.is(readProofs(placeOf(scenario)).size, done)
    const isLast = done === bundles.length
    assert.is('provenSince' in told, isLast)
    const kinds = receiptsIn(scenario).map(({ kind }) => kind)
    assert.is(kinds.includes('verification'), isLast, kinds.join())
  }
  const receipt = receiptsIn(scenario).find(({ kind }) => kind === 'verification')
  assert.is(receipt?.bundles, bundles.length)
  assert.is(receipt?.bytes, receipt?.totalBytes)
  const sinceMs = Date.parse(receipt?.since ?? '')
  assert.ok(sinceMs >= startMs && sinceMs < Date.parse(receipt?.start ?? ''), receipt?.since)
  const partial = receiptsIn(scenario).find(({ kind }) => kind === 'partial')
  assert.is(partial?.bundles, 1)
  assert.is(partial?.files, 0)
  assert.is(partial?.result, 'good')
  assert.ok(partial!.bytes < partial!.totalBytes)
  // Oldest first: now the one that was read first has its turn again.
  const oldest = [...readProofs(placeOf(scenario))].sort(([, a], [, b]) => {
    return a.checkedMs - b.checkedMs
  })[0]![0]
  await scenario.run('verify', '--bytes', '1')
  const checkedMs = (path: string) => readProofs(placeOf(scenario)).get(path)?.checkedMs ?? 0
  assert.ok(bundles.every((path) => path === oldest || checkedMs(path) < checkedMs(oldest)))
  const text = await scenario.run('status')
  assert.match(text.stdout, /verification +.*good.*read since/)
  assert.match(text.stdout, /in part +/)
})

verify(
  'what was proven lately is left alone, and the signed files are checked all the same',
  async () => {
    const scenario = await sharedExports()
    const gone = 'machines/tester/data/2020-01-01T000000Z/data-0000.tar.zst.age'
    const how = 'checksums' as const
    const whole = [{ path: gone, sha256: 'a'.repeat(64), bytes: 1, atMs: 1, how }]
    noteProofs(placeOf(scenario), { whole, damaged: [] })
    await scenario.run('verify', '--set', 'data')
    assert.ok(readProofs(placeOf(scenario)).has(gone))
    await scenario.run('verify')
    assert.not.ok(readProofs(placeOf(scenario)).has(gone), 'no export needs it')
    const words = ['verify', '--older-than', '30d', '--json']
    const outcome = await scenario.run(...words)
    assert.is(outcome.status, 0, outcome.stderr)
    assert.is(summary(outcome)['bundles'], 0)
    assert.ok(summary(outcome)['provenSince'] !== undefined)
    const manifest = `${setDirectory(scenario)}/${exportStamps(scenario)[0]}/manifest.tar.zst.age`
    flip(manifest)
    try {
      const damaged = await scenario.run(...words)
      assert.is(damaged.status, 13, damaged.stdout)
      assert.is(summary(damaged)['bundles'], 0)
      assert.is(receiptsIn(scenario).at(-1)?.result, 'damaged')
    } finally {
      flip(manifest)
    }
  },
)

verify('what a drill found damaged is proven no more, and read at once', async () => {
  const scenario = await sharedExports()
  await scenario.run('verify')
  const [bad] = bundlesIn(scenario)
  const words = ['verify', '--older-than', '30d', '--json']
  noteDamage(placeOf(scenario), { damaged: [bad!], whole: [] })
  const dry = summary(await scenario.run(...words, '--dry-run'))
  assert.is((dry['planned'] as Properties)['bundles'], 1)
  assert.is(dry['neverProven'], 1)
  const told = summary(await scenario.run(...words))
  assert.equal([told['bundles'], told['neverProven']], [1, 0])
  assert.not.ok(readKnownDamage(placeOf(scenario)).has(bad!), 'it was whole')
})

verify('a part proves nothing of the sets of which nothing was read', async () => {
  const scenario = await makeScenario()
  const other = `${scenario.directory}/other`
  mkdirSync(other)
  for (const directory of [scenario.source, other]) {
    writeFileSync(`${directory}/x`, random.bytes(40 * KIB))
  }
  configure(scenario, (c) => c['backup_sets'].push({ name: 'other', sources: [other] }))
  for (const run of [scenario.collect, scenario.external]) assert.is((await run()).status, 0)
  const part = await scenario.run('verify', '--bytes', '1')
  assert.is(part.status, 0)
  assert.match(part.stdout, /: not read, 0 of 2 bundles/)
  assert.not.match(part.stdout, /whole as far as it was read, 0|not read.* would be restored/)
  const [receipt, ...more] = receiptsIn(scenario)
  assert.equal(more, [])
  assert.is(receipt?.kind, 'partial')
  assert.equal([receipt?.bundles, receipt?.exports.length], [1, 1], receipt?.exports.join())
})

verify('a sample is drawn by a seed that the receipt names', async () => {
  const scenario = await sharedExports()
  const outcome = await scenario.run('verify', '--sample', '1%', '--json')
  assert.is(outcome.status, 0, outcome.stderr)
  assert.ok(summary(outcome)['bundles'] < bundlesIn(scenario).length)
  const [receipt] = receiptsIn(scenario)
  assert.is(receipt?.kind, 'partial')
  assert.match(receipt?.seed ?? '', new RegExp(`^${idOf(scenario)}/20`))
})

verify('when time is up no more bundles are begun, and what was read counts', async () => {
  const scenario = await sharedExports()
  const outcome = await prove(scenario, { ...EVERYTHING, timeMs: 0 })
  assert.is(outcome.bundles, 1, 'every worker reads one')
  assert.is(readProofs(placeOf(scenario)).size, 1)
  const [receipt] = outcome.receipts
  assert.is(receipt?.kind, 'partial')
})

verify('what was read before an interruption stays proven', async () => {
  const scenario = await sharedExports()
  const controller = new AbortController()
  let read = 0
  const report = (event: ReportEvent): void => {
    if (event.kind === 'progress') read = event.filesDone
    if (read === 2) controller.abort()
  }
  try {
    await prove(scenario, EVERYTHING, { report, signal: controller.signal })
    assert.unreachable()
  } catch (error) {
    assert.ok(error instanceof BackupError, String(error))
    assert.is(error.code, 'INTERRUPTED')
  }
  const { size } = readProofs(placeOf(scenario))
  assert.ok(size >= 2 && size < bundlesIn(scenario).length, `${size} proven`)
  assert.equal(receiptsIn(scenario), [])
})

verify('a dry run says how much, reads no bundle and notes nothing', async () => {
  const scenario = await sharedExports()
  const state = `${scenario.staging}/.state`
  const before = inventory(state)
  const outcome = await scenario.run('verify', '--dry-run')
  assert.is(outcome.status, 0, outcome.stderr)
  const count = bundlesIn(scenario).length
  assert.match(outcome.stdout, `${count} of ${count} bundles`)
  assert.match(outcome.stdout, 'would be read from')
  assert.equal(inventory(state), before)
})

verify('each damaged bundle is told with its exports and their files', async () => {
  const scenario = await makeExports()
  const [first] = exportStamps(scenario)
  writeFileSync(`${scenario.source}/later`, 'later')
  await scenario.generation()
  assert.is((await scenario.run('verify')).status, 0)
  const bundles = bundlesIn(scenario).filter((path) => path.includes(`${first}/data-`))
  const bad = bundles[1]!
  flip(`${scenario.target}/${bad}`)
  const outcome = await scenario.run('verify', '--json')
  assert.is(outcome.status, 13, outcome.stderr)
  const [damage, ...more] = jsonLines(outcome, 'damage')
  assert.equal(more, [], 'the others are whole')
  assert.is(damage?.['bundle'], bad)
  const stamps = exportStamps(scenario)
  const exports = damage?.['exports'] as Properties[]
  assert.equal(
    exports.map(({ set, stamp }) => `${set} ${stamp}`),
    stamps.map((stamp) => `data ${stamp}`),
    'both need it',
  )
  const files = exports.map((one) => one['files'] as Properties[])
  assert.ok(files[0]!.length >= 1 && files[0]!.length <= 4, JSON.stringify(files[0]))
  assert.equal(files[1], files[0])
  const isOfSource = (one: Properties) => {
    return `/${takePath(one, 'path')}`.startsWith(rawPathFromText(scenario.source))
  }
  assert.ok(files[0]!.every(isOfSource))
  assert.not.ok(readProofs(placeOf(scenario)).has(bad), 'it is proven no more')
  assert.equal([...readKnownDamage(placeOf(scenario))], [bad])
  // What is damaged takes part in no proof, whatever else is read.
  const partial = () => receiptsIn(scenario).filter(({ kind }) => kind === 'partial').length
  const before = partial()
  const part = await scenario.run('verify', '--older-than', '30d', '--json')
  assert.is(part.status, 13)
  assert.equal(jsonLines(part, 'damage').length, 1)
  // Receipts of one second are in no order.
  assert.is(partial(), before + 1)
  const text = await scenario.run('verify')
  assert.match(text.stdout, `${bad}: DAMAGED; needed by 2 exports`)
  assert.match(text.stdout, new RegExp(`^  data ${stamps[1]}: \\d files?$`, 'm'))
  // Without the identity only the exports are known.
  renameSync(scenario.identity, `${scenario.directory}/kept elsewhere`)
  const closed = await scenario.run('verify', '--json')
  assert.is(closed.status, 13)
  const [unnamed] = jsonLines(closed, 'damage')
  assert.is(unnamed?.['bundle'], bad)
  assert.equal(
    (unnamed?.['exports'] as Properties[]).map((one) => [one['stamp'], 'files' in one]),
    stamps.map((stamp) => [stamp, false]),
  )
})

let spoiled: Promise<Scenario> | undefined

verify('names that are no UTF-8 are told whole', async () => {
  const scenario = await (spoiled ??= makeExports())
  for (const path of bundlesIn(scenario).filter((one) => one.includes('data-'))) {
    rmSync(`${scenario.target}/${path}`)
  }
  const outcome = await scenario.run('verify', '--json')
  assert.is(outcome.status, 13)
  const files = jsonLines(outcome, 'damage').flatMap((one) => {
    return (one['exports'] as Properties[]).flatMap(({ files: some }) => some as Properties[])
  })
  const odd = files.find(({ path64 }) => path64 !== undefined)
  const bytes = Buffer.from((odd?.['path64'] as string) ?? '', 'base64')
  assert.equal(bytes.subarray(-3), Buffer.from([0x2f, 0x6f, 0xff]))
  assert.is(odd?.['path'], undefined, 'nothing that is not the name itself')
})

verify('an export that retention lets go of meanwhile is no damage', async () => {
  const scenario = await (spoiled ??= makeExports())
  const [first = ''] = exportStamps(scenario)
  const before = inventory(`${scenario.staging}/.state`)
  const report = (event: ReportEvent): void => {
    if (event.kind === 'phase') rmSync(`${setDirectory(scenario)}/${first}`, { recursive: true })
  }
  const outcome = await prove(scenario, EVERYTHING, { report })
  assert.equal(outcome.exports, [])
  assert.equal(outcome.damagedFiles, [])
  assert.equal(inventory(`${scenario.staging}/.state`), before, 'no receipt, no note')
})

verify('the schedule reads what is old after an export, within its budget', async () => {
  const scenario = await makeScenario()
  configure(scenario, (c) => {
    Object.assign(c['targets'][0], { bundle_size: '1 MiB', drill: 'never' })
    c['targets'][0].verify = { older_than: '1h', bytes: 1 }
    c['notify'] = { desktop: false, log: `${scenario.directory}/log` }
  })
  for (let i = 0; i < 4; i++) writeFileSync(`${scenario.source}/${i}`, random.bytes(600 * KIB))
  const ended = async (status: number): Promise<Properties> => {
    const outcome = await scenario.run('--force', '--json')
    assert.is(outcome.status, status, outcome.stderr + outcome.stdout)
    const results = jsonLines(outcome, 'result')
    return results.find((result) => result['outcome'] === 'ended') ?? {}
  }
  const first = (await ended(0))['verification']
  assert.is(first['bundles'], 1)
  assert.is(first['how'], 'checksums', 'no identity is configured')
  assert.ok(first['neverProven'] > 0)
  // By hand nothing more is asked for than the budget either.
  assert.is(summary(await scenario.run('verify', '--json'))['bundles'], 1)
  assert.is((await scenario.run('verify', '--all')).status, 0)
  configure(scenario, (c) => {
    c['targets'][0].verify = { older_than: '1h' }
  })
  const count = bundlesIn(scenario).length
  writeFileSync(`${scenario.source}/new`, random.bytes(KIB))
  const second = (await ended(0))['verification']
  assert.is(second['bundles'], bundlesIn(scenario).length - count, 'only what is new')
  assert.is(second['neverProven'], 0)
  const third = await scenario.run('external', '--json')
  assert.is(third.status, 0)
  assert.not.match(third.stdout, 'verification', 'by hand nobody waits for it')
  // Damage is found as soon as it is looked for, and told.
  rmSync(`${scenario.staging}/.state/repositories/${idOf(scenario)}/proofs.json`)
  const bad = bundlesIn(scenario).find((path) => path.includes('data-'))!
  flip(`${scenario.target}/${bad}`)
  writeFileSync(`${scenario.source}/newer`, random.bytes(KIB))
  const last = (await ended(13))['verification']
  assert.equal(last['damaged'], [bad])
  assert.match(readFileSync(`${scenario.directory}/log`, 'utf8'), 'found damage')
  assert.is((await scenario.run('status')).status, 13)
})

verify('words that do not go together are refused before anything is read', async () => {
  const scenario = await sharedExports()
  for (const [words, message] of [
    [['--older-than', '30d', '--sample', '5%'], 'do not go together'],
    [['--sample', '0%'], '--sample is like 5%'],
    [['--older-than', 'soon'], '--older-than is like 30d'],
    [['--time', '20'], '--time is like 20min'],
    [['--bytes', 'much'], '--bytes is like 20GiB'],
    [['--source', 'local', '--bytes', '1'], 'goes with a target'],
    [['--target', 'nowhere'], 'there is no target nowhere'],
  ] as const) {
    const { status, stderr } = await scenario.run('verify', ...words)
    assert.is(status, 2, words.join(' ') + stderr)
    assert.match(stderr, message)
  }
  assert.equal(receiptsIn(scenario), [])
})

verify('--source local verifies collections', async () => {
  const scenario = await sharedExports()
  const outcome = await scenario.run('verify', '--source', 'local')
  assert.is(outcome.status, 0, outcome.stderr)
  assert.match(outcome.stdout, /^data \S+: whole \(content and metadata\)/m)
  assert.equal(receiptsIn(scenario), [])
})

verify.run()
