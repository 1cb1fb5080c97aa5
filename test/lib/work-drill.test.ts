import {
  closeSync,
  cpSync,
  existsSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { dirname } from 'node:path'
import { suite } from 'uvu'
import { BackupError, type ErrorCode } from '../../lib/errors.ts'
import { loadConfiguration } from '../../lib/machine/config.ts'
import { readIdentityFile } from '../../lib/machine/identity.ts'
import { RUN_BYTES } from '../../lib/model/drill.ts'
import type { Receipt } from '../../lib/model/receipt.ts'
import type { ReportEvent } from '../../lib/model/report.ts'
import { type DrillOptions, drillTarget, planDrill } from '../../lib/work/drill.ts'
import { writeReceipt } from '../../lib/work/receipts.ts'
import { type Signer, openSigner } from '../../lib/work/signing.ts'
import { openTarget, repositoryToRead } from '../../lib/work/target-access.ts'
import * as assert from '../helpers/assert.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { randomFrom } from '../helpers/random.ts'
import {
  type Scenario,
  configure,
  exportStamps,
  inventory,
  makeScenario,
  setDirectory,
} from '../helpers/scenario.ts'

const drill = suite('work/drill')

const MIB = 1024 * 1024
const DAY_MS = 86_400_000
const nowMs = Date.parse('2026-05-01T12:00:00Z')
const random = randomFrom('drill')

/** Two sets, `data` with a long, a sparse and many small files in several bundles, and `mail`. */
async function makeExports(options: { readonly target?: string } = {}): Promise<Scenario> {
  const scenario = await makeScenario(options)
  const mail = `${scenario.home}/mail`
  mkdirSync(mail)
  configure(scenario, (c) => {
    c['targets'][0].bundle_size = '1 MiB'
    c['backup_sets'].push({ name: 'mail', sources: [mail] })
  })
  for (let i = 0; i < 30; i++) writeFileSync(`${scenario.source}/${i}`, random.bytes(100_000))
  writeFileSync(`${scenario.source}/long`, random.bytes(RUN_BYTES + 3 * MIB))
  writeFileSync(`${scenario.source}/empty`, '')
  const sparse = openSync(`${scenario.source}/sparse`, 'wx')
  writeSync(sparse, random.bytes(MIB), 0, MIB, 4 * MIB)
  ftruncateSync(sparse, 8 * MIB)
  closeSync(sparse)
  for (let i = 0; i < 12; i++) writeFileSync(`${mail}/${i}`, random.bytes(5000))
  await exportAll(scenario)
  return scenario
}

async function exportAll(scenario: Scenario): Promise<void> {
  for (const run of [await scenario.collect(), await scenario.external()]) {
    assert.is(run.status, 0, run.stderr)
  }
}

let shared: Promise<{ readonly scenario: Scenario; readonly copy: string }> | undefined

/** The same exports for every test, freshly put back. */
async function freshExports(): Promise<Scenario> {
  shared ??= (async () => {
    const scenario = await makeExports()
    const copy = `${scenario.directory}/copy`
    cpSync(scenario.target, copy, { recursive: true })
    return { scenario, copy }
  })()
  const { scenario, copy } = await shared
  rmSync(scenario.target, { recursive: true })
  rmSync(`${scenario.staging}/.state/receipts`, { recursive: true, force: true })
  cpSync(copy, scenario.target, { recursive: true })
  return scenario
}

/** Of the drill, and what it said. */
async function optionsOf(
  scenario: Scenario,
  change: Partial<DrillOptions> = {},
): Promise<DrillOptions & { readonly signer: Signer; readonly events: ReportEvent[] }> {
  const { home, configuration: path, identity } = scenario
  const environment = { HOME: home }
  const configuration = await loadConfiguration({ path, environment, home, hostName: 'tester' })
  const [target] = configuration.targets
  const repository = await repositoryToRead(await openTarget(target!, configuration))
  const { identities } = await readIdentityFile({ path: identity, askPassphrase: () => '' })
  const events: ReportEvent[] = []
  return {
    configuration,
    repository,
    targetName: 'drive',
    drive: undefined,
    identities,
    nowMs,
    report: (event) => void events.push(event),
    signal: new AbortController().signal,
    ...change,
    signer: await openSigner(configuration),
    events,
  }
}

function assertNoScratch({ staging }: Scenario): void {
  assert.equal(
    readdirSync(`${staging}/.state`).filter((name) => name.startsWith('drill-')),
    [],
  )
}

async function rejectsWith(code: ErrorCode, promise: Promise<unknown>): Promise<BackupError> {
  try {
    await promise
  } catch (error) {
    assert.instance(error, BackupError)
    assert.is((error as BackupError).code, code)
    return error as BackupError
  }
  throw new Error(`no ${code}`)
}

/** Flips one bit in the middle. */
function flip(path: string): void {
  const fd = openSync(path, 'r+')
  const position = Math.floor(readFileSync(path).length / 2)
  const byte = Buffer.alloc(1)
  readSync(fd, byte, 0, 1, position)
  byte[0] = byte[0]! ^ 0x10
  writeSync(fd, byte, 0, 1, position)
  closeSync(fd)
}

function bundlesOf(scenario: Scenario, set = 'data'): string[] {
  const directory = `${setDirectory(scenario, set)}/${exportStamps(scenario, set).at(-1)}`
  return readdirSync(directory)
    .filter((name) => name.startsWith('data-'))
    .map((name) => `${directory}/${name}`)
}

drill('restores a sample of every set and compares it, without staging', async () => {
  const scenario = await freshExports()
  const { staging, target } = scenario
  const options = await optionsOf(scenario)
  const collections = `${scenario.directory}/away`
  mkdirSync(collections)
  for (const set of ['data', 'mail']) renameSync(`${staging}/${set}`, `${collections}/${set}`)
  const before = inventory(target)
  try {
    const receipt = await drillTarget(options)
    const { files, bundles, bytes, totalBytes, end, exports, ...rest } = receipt
    assert.equal(rest, {
      format: 1,
      kind: 'drill',
      machine: 'tester',
      target: 'drive',
      drive: undefined,
      repository: options.repository.id,
      start: '2026-05-01T12:00:00.000Z',
      how: 'restored',
      seed: `${options.repository.id}/2026-05-01`,
      result: 'good',
      damaged: [],
    })
    assert.equal(
      exports.map((name) => name.split('/')[1]),
      ['data', 'mail'],
    )
    // Ten of each at least, and of everything about a quarter, which one long run may exceed.
    assert.ok(files >= 19 && files <= 42, `${files} files`)
    assert.ok(bytes > 100_000 && bytes < totalBytes / 4 + RUN_BYTES, `${bytes} bytes`)
    assert.ok(bundles >= 2)
    assert.ok(Date.parse(end) > nowMs && Date.parse(end) < nowMs + 60_000)
    assertNoScratch(scenario)
    assert.equal(inventory(target), before, 'the target is only read')
  } finally {
    for (const set of ['data', 'mail']) renameSync(`${collections}/${set}`, `${staging}/${set}`)
  }
})

drill('draws the same all day, and something else the next', async () => {
  const scenario = await freshExports()
  const keys = async (change: Partial<DrillOptions> = {}) => {
    return (await planDrill(await optionsOf(scenario, change))).runs.map(({ key }) => key)
  }
  const today = await keys()
  assert.equal(await keys({ nowMs: nowMs + DAY_MS / 4 }), today)
  assert.not.equal(await keys({ nowMs: nowMs + DAY_MS }), today)
  const bundles = async (atMs: number) => {
    const options = await optionsOf(scenario, { nowMs: atMs, identities: [], sets: ['data'] })
    return (await planDrill(options)).bundles.map(({ key }) => key)
  }
  assert.equal(await bundles(nowMs), await bundles(nowMs + 1))
  assert.not.equal(await bundles(nowMs), await bundles(nowMs + DAY_MS))
})

drill('with all of it every byte of every file is restored, long and sparse ones too', async () => {
  const scenario = await freshExports()
  const options = await optionsOf(scenario, { share: 1 })
  const plan = await planDrill(options)
  const long = plan.runs.filter(({ name }) => name.endsWith('/long'))
  assert.is(long.length, 2, 'a long file is drawn in runs')
  const { files, bytes, result } = await drillTarget(options)
  assert.is(result, 'good')
  assert.is(files, 30 + 1 + 1 + 12, 'an empty one proves nothing')
  assert.is(bytes, 30 * 100_000 + RUN_BYTES + 3 * MIB + MIB + 12 * 5000)
})

drill('a flipped bit in a bundle is damage, named by path, and scratch is gone', async () => {
  const scenario = await freshExports()
  const [bundle] = bundlesOf(scenario, 'mail')
  flip(bundle!)
  const options = await optionsOf(scenario)
  const receipt = await drillTarget(options)
  assert.is(receipt.result, 'damaged')
  const stamp = exportStamps(scenario, 'mail').at(-1)
  const prefix = `tester/mail/${stamp}: ${scenario.home.slice(1)}/mail/`
  assert.ok(receipt.damaged.length > 0)
  for (const name of receipt.damaged) assert.ok(name.startsWith(prefix), name)
  const told = options.events.flatMap((event) =>
    event.kind === 'notice' && event.level === 'warning' ? [event.message] : [],
  )
  assert.is(told.length, receipt.damaged.length)
  assert.match(told[0]!, receipt.damaged[0]!)
  assertNoScratch(scenario)
})

drill('only the sets that are asked for are looked at', async () => {
  const scenario = await freshExports()
  for (const bundle of bundlesOf(scenario, 'mail')) flip(bundle)
  const { result, exports } = await drillTarget(await optionsOf(scenario, { sets: ['data'] }))
  assert.is(result, 'good')
  assert.is(exports.length, 1)
  await rejectsWith('NOTHING_FOUND', drillTarget(await optionsOf(scenario, { sets: ['none'] })))
})

drill('without an identity whole bundles are compared with their checksums', async () => {
  const scenario = await freshExports()
  const options = await optionsOf(scenario, { identities: [] })
  const good = await drillTarget(options)
  assert.is(good.how, 'checksums')
  assert.is(good.result, 'good')
  assert.is(good.files, 0)
  assert.ok(good.bundles >= 1)
  assert.ok(good.bytes > 0 && good.bytes < good.totalBytes)
  assertNoScratch(scenario)

  const bundle = bundlesOf(scenario)[1]!
  flip(bundle)
  const found = await drillTarget({ ...options, share: 1 })
  assert.is(found.result, 'damaged')
  assert.equal(found.damaged, [bundle.slice(scenario.target.length + 1)])
  const sizes = [...inventory(scenario.target).keys()].filter((name) => name.endsWith('.age'))
  assert.is(found.bundles, sizes.length - 2, 'all but the manifests, which count as none')
})

drill('a bundle that is missing is damage, whether it is in the sample or not', async () => {
  const scenario = await freshExports()
  const bundle = bundlesOf(scenario)[1]!
  rmSync(bundle)
  const name = bundle.slice(scenario.target.length + 1)
  for (const identities of [undefined, []]) {
    const change = identities === undefined ? {} : { identities }
    const { result, damaged } = await drillTarget(await optionsOf(scenario, change))
    assert.is(result, 'damaged')
    assert.ok(damaged.includes(name), damaged.join())
  }
})

drill('a damaged manifest or signature is damage, and the other set is drilled', async () => {
  for (const [file, isDeep] of [
    ['manifest.tar.zst.age', true],
    ['manifest.tar.zst.age', false],
    ['verification.sha256', true],
    ['verification.sha256.minisig', false],
  ] as const) {
    const scenario = await freshExports()
    const path = `${setDirectory(scenario, 'mail')}/${exportStamps(scenario, 'mail')[0]}`
    flip(`${path}/${file}`)
    const options = await optionsOf(scenario, isDeep ? {} : { identities: [] })
    const { result, damaged, files, bundles, exports } = await drillTarget(options)
    assert.is(result, 'damaged', file)
    const named = file.startsWith('verification') ? 'verification.sha256' : file
    assert.equal(damaged, [`${path}/${named}`.slice(scenario.target.length + 1)])
    assert.is(exports.length, 2)
    assert.ok(isDeep ? files >= 9 : bundles >= 1)
  }
})

drill('a damaged catalog is damage', async () => {
  const scenario = await freshExports()
  const directory = dirname(bundlesOf(scenario, 'mail')[0]!)
  const [catalog] = readdirSync(directory).filter((name) => name.startsWith('catalog-'))
  flip(`${directory}/${catalog}`)
  const { result, damaged } = await drillTarget(await optionsOf(scenario))
  assert.is(result, 'damaged')
  assert.equal(damaged, [`${directory}/${catalog}`.slice(scenario.target.length + 1)])
})

drill('an identity that does not fit is an error, not damage', async () => {
  const scenario = await freshExports()
  const other = await optionsOf(await makeScenarioWithIdentity())
  const options = await optionsOf(scenario, { identities: other.identities! })
  await rejectsWith('IDENTITY_WRONG', drillTarget(options))
  assertNoScratch(scenario)
})

/** With a repository, for optionsOf opens it. */
async function makeScenarioWithIdentity(): Promise<Scenario> {
  const scenario = await makeScenario()
  writeFileSync(`${scenario.source}/a`, 'a')
  await exportAll(scenario)
  return scenario
}

drill('a drive that is pulled out is no damage', async () => {
  const scenario = await freshExports()
  const away = `${scenario.directory}/pulled-out`
  const options = await optionsOf(scenario)
  const report = (event: ReportEvent): void => {
    if (event.kind === 'phase') renameSync(scenario.target, away)
  }
  try {
    await rejectsWith('TARGET_ABSENT', drillTarget({ ...options, report }))
  } finally {
    renameSync(away, scenario.target)
  }
  assertNoScratch(scenario)
})

drill('interrupted, it leaves nothing, and the next sweeps what a killed one left', async () => {
  const scenario = await freshExports()
  const killed = `${scenario.staging}/.state/drill-99999999`
  mkdirSync(killed)
  writeFileSync(`${killed}/0`, 'left')
  const stop = new AbortController()
  let scratches = 0
  const report = (event: ReportEvent): void => {
    if (event.kind !== 'progress') return
    scratches += Number(existsSync(`${scenario.staging}/.state/drill-${process.pid}`))
    stop.abort()
  }
  const options = await optionsOf(scenario, { report, signal: stop.signal })
  await rejectsWith('INTERRUPTED', drillTarget(options))
  assert.ok(scratches > 0, 'it was there')
  assertNoScratch(scenario)
})

drill('the share grows with the age of the last full verification of every set', async () => {
  const scenario = await freshExports()
  const options = await optionsOf(scenario)
  const { share, exports, seed } = await planDrill(options)
  assert.is(share, 0.25, 'never verified')
  const verified = async (change: Partial<Receipt>, days: number): Promise<number> => {
    const time = new Date(nowMs - days * DAY_MS).toISOString()
    const receipt: Receipt = {
      format: 1,
      kind: 'verification',
      machine: 'tester',
      target: 'drive',
      drive: undefined,
      repository: options.repository.id,
      exports,
      start: time,
      end: time,
      how: 'restored',
      bundles: 1,
      files: 1,
      bytes: 1,
      totalBytes: 1,
      seed: undefined,
      result: 'good',
      damaged: [],
      ...change,
    }
    const { staging } = options.configuration
    await writeReceipt({ staging, receipt, signer: options.signer })
    return Math.round((await planDrill(options)).share * 1000) / 1000
  }
  assert.is(await verified({}, 9), 0.1)
  assert.is(await verified({ exports: exports.slice(0, 1) }, 1), 0.1, 'the other set is older')
  assert.is(await verified({ kind: 'drill', seed }, 1), 0.1, 'a drill is no full verification')
  assert.is(await verified({ result: 'damaged', damaged: ['x'] }, 1), 0.1)
  assert.is(await verified({ repository: 'ff'.repeat(16) }, 1), 0.1, 'another repository')
  assert.is(await verified({}, 2), 0.03)
})

if (canRunAsRoot('work/drill on loop devices')) {
  drill('reads the medium, and not what the page cache remembers of it', async () => {
    const device = loopDevice({ sizeMib: 96 })
    const target = `${device.path}/backup`
    mkdirSync(target)
    const scenario = await makeExports({ target })
    for (const identities of [undefined, []]) {
      const change = identities === undefined ? { share: 1 } : { share: 1, identities }
      const good = await drillTarget(await optionsOf(scenario, change))
      assert.is(good.result, 'good')
    }
    const bundle = bundlesOf(scenario, 'mail')[0]!
    const cached = readFileSync(bundle)
    const fd = openSync(device.image, 'r+')
    const place = readFileSync(device.image).indexOf(cached.subarray(4096, 4096 + 512))
    assert.ok(place > 0)
    writeSync(fd, Buffer.alloc(64), 0, 64, place)
    closeSync(fd)
    // Unless memory is very short, the cache still has what was there before.
    readFileSync(bundle)
    const { damaged } = await drillTarget(await optionsOf(scenario, { share: 1 }))
    assert.ok(damaged.length > 0 && damaged.every((name) => name.startsWith('tester/mail/')))
  })

  drill('a scratch place that is full is a failure of staging, not of the target', async () => {
    const scenario = await freshExports()
    const device = loopDevice({ sizeMib: 8 })
    mkdirSync(`${device.path}/.state`)
    const options = await optionsOf(scenario, { share: 1, sets: ['data'] })
    const configuration = { ...options.configuration, staging: device.path }
    const error = await rejectsWith('STAGING_FULL', drillTarget({ ...options, configuration }))
    assert.match(error.message, device.path)
    assert.equal(readdirSync(`${device.path}/.state`), [])
  })
}

drill.run()
