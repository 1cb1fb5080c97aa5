import {
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { dirname } from 'node:path'
import { suite } from 'uvu'
import type { Values } from '../../commands/command.ts'
import { command } from '../../commands/drill.ts'
import type { BackupError } from '../../lib/errors.ts'
import type { Receipt } from '../../lib/model/receipt.ts'
import { acquireRunLock } from '../../lib/work/staging.ts'
import * as assert from '../helpers/assert.ts'
import { randomFrom } from '../helpers/random.ts'
import { type CommandOutcome, runCommand } from '../helpers/run-command.ts'
import {
  type Scenario,
  configure,
  exportStamps,
  inventory,
  jsonLines,
  makeScenario,
  setDirectory,
} from '../helpers/scenario.ts'
import { runStock } from '../helpers/stock.ts'
import { type FaultPlan, planFault } from '../helpers/system-faults.ts'

const drill = suite('backup drill')
const random = randomFrom('backup drill')

/** One export of a few files. */
async function makeExport(options: { readonly passphrase?: string } = {}): Promise<Scenario> {
  const scenario = await makeScenario(options)
  for (let i = 0; i < 12; i++) writeFileSync(`${scenario.source}/${i}`, random.bytes(20_000))
  for (const run of [await scenario.collect(), await scenario.external()]) {
    assert.is(run.status, 0, run.stderr)
  }
  return scenario
}

let shared: Promise<{ readonly scenario: Scenario; readonly copy: string }> | undefined

/** The same export for every test, freshly put back, without receipts. */
async function freshExport(): Promise<Scenario> {
  shared ??= (async () => {
    const scenario = await makeExport()
    const copy = `${scenario.directory}/copy`
    for (const name of ['target', 'configuration'] as const) {
      cpSync(scenario[name], `${copy}/${name}`, { recursive: true })
    }
    return { scenario, copy }
  })()
  const { scenario, copy } = await shared
  rmSync(scenario.target, { recursive: true })
  cpSync(`${copy}/target`, scenario.target, { recursive: true })
  cpSync(`${copy}/configuration`, scenario.configuration)
  rmSync(`${scenario.staging}/.state/receipts`, { recursive: true, force: true })
  return scenario
}

/** The same as scenario.run('drill'), in this process, which is faster. */
async function runHere(scenario: Scenario, values: Values = {}): Promise<CommandOutcome> {
  return await runCommand(command, { scenario, values, nowMs: Date.now() })
}

/** The receipts there are, after stock minisign took every signature. */
function signedReceipts({ staging, configuration }: Scenario): Receipt[] {
  const directory = `${staging}/.state/receipts`
  const key = `${dirname(configuration)}/signing.pub`
  return readdirSync(directory)
    .filter((name) => name.endsWith('.json'))
    .map((name) => {
      const checked = runStock('minisign', ['-V', '-p', key, '-m', `${directory}/${name}`])
      assert.is(checked.status, 0, checked.stderr)
      return JSON.parse(readFileSync(`${directory}/${name}`, 'utf8')) as Receipt
    })
}

function assertNoReceipt({ staging }: Scenario): void {
  assert.not.ok(existsSync(`${staging}/.state/receipts`))
}

function assertNoScratch({ staging }: Scenario): void {
  assert.not.match(readdirSync(`${staging}/.state`).join(), 'drill-')
}

/** Flips one bit in the middle of a file of the newest export. */
function flip(scenario: Scenario, file: string, set = 'data'): void {
  const path = `${setDirectory(scenario, set)}/${exportStamps(scenario, set).at(-1)}/${file}`
  const bytes = readFileSync(path)
  const middle = Math.floor(bytes.length / 2)
  bytes[middle] = bytes[middle]! ^ 0x10
  writeFileSync(path, bytes)
}

drill('restores a sample, says so in a line, and leaves a signed receipt', async () => {
  const scenario = await freshExport()
  const before = inventory(scenario.target)
  const { status, stdout, stderr } = await scenario.run('drill')
  assert.is(status, 0, stderr)
  assert.match(
    stdout,
    /^drive: good: 1\d files restored and compared, \d+ KiB of \d+ KiB; receipt \d/,
  )
  const [receipt, ...more] = signedReceipts(scenario)
  assert.equal(more, [])
  assert.is(receipt?.result, 'good')
  assert.is(receipt?.how, 'restored')
  const name = /receipt (\S+)\n/.exec(stdout)?.[1]
  assert.ok(existsSync(`${scenario.staging}/.state/receipts/${name}.json`))
  assert.equal(inventory(scenario.target), before)
  assertNoScratch(scenario)
})

drill('damage is exit 13, is named, and is in the signed receipt', async () => {
  const scenario = await freshExport()
  flip(scenario, 'data-0001.tar.zst.age')
  const { status, stdout, stderr } = await scenario.run('drill', '--json')
  assert.is(status, 13, stderr)
  const [result] = jsonLines({ status, stdout, stderr }, 'result')
  const [receipt] = signedReceipts(scenario)
  assert.is(receipt?.result, 'damaged')
  assert.ok(receipt!.damaged.length > 0)
  const stamp = exportStamps(scenario)[0]
  for (const name of receipt!.damaged) {
    assert.ok(name.startsWith(`tester/data/${stamp}: ${scenario.source.slice(1)}/`), name)
    assert.match(stderr, name)
  }
  assert.is(result?.['outcome'], 'damaged')
  assert.is(result?.['exitCode'], 13)
  assert.equal(result?.['receipt'], receipt)
  assertNoScratch(scenario)
})

drill('what differs when it is read again is damage, whatever the restorer says', async () => {
  const scenario = await freshExport()
  const match = /^renameSync .*\/\.state\/drill-\d+\/\d+$/
  const overwrite = 'printf XYZ | dd of="$1" bs=1 seek=100 conv=notrunc status=none'
  for (const change of [overwrite, 'printf X >>"$1"', 'truncate -s -1 "$1"']) {
    const plan = planFault({ match, action: { command: change } })
    Object.assign(scenario.environment, plan.environment)
    try {
      const { status, stderr } = await scenario.run('drill')
      assert.is(status, 13, stderr)
      assert.match(stderr, 'what was restored differs from the signed catalog')
      assert.ok(plan.count() >= 10)
    } finally {
      for (const name of Object.keys(plan.environment)) delete scenario.environment[name]
    }
    assert.is(signedReceipts(scenario).at(-1)?.damaged.length, plan.count())
    assertNoScratch(scenario)
  }
})

drill(
  'killed at any moment, it leaves a signed receipt or none, and the next needs no help',
  async () => {
    const scenario = await freshExport()
    const receipts = `${scenario.staging}/.state/receipts`
    const match = /\/\.state\/(drill-|receipts)/
    const runWith = async (plan: FaultPlan): Promise<number | null> => {
      Object.assign(scenario.environment, plan.environment)
      const { status } = await scenario.run('drill')
      for (const name of Object.keys(plan.environment)) delete scenario.environment[name]
      return status
    }
    const counted = planFault({ match, action: 'count' })
    assert.is(await runWith(counted), 0)
    rmSync(receipts, { recursive: true })
    const calls = counted.calls()
    const appears = calls.findLastIndex((call) => /^renameSync .*\.json$/.test(call)) + 1
    for (const at of [2, 20, appears, appears + 1]) {
      assert.is.not(await runWith(planFault({ match, at, action: 'kill' })), 0)
      const there = existsSync(receipts) ? signedReceipts(scenario) : []
      assert.is(there.length, at > appears ? 1 : 0, `killed at ${at} of ${calls.length}`)
    }
    const { status, stderr } = await scenario.run('drill')
    assert.is(status, 0, stderr)
    assert.is(signedReceipts(scenario).length, 2)
    assertNoScratch(scenario)
  },
)

drill('a set whose manifest is damaged is named, and the others are drilled', async () => {
  const scenario = await makeScenario()
  const mail = `${scenario.home}/mail`
  mkdirSync(mail)
  configure(scenario, (c) => void c['backup_sets'].push({ name: 'mail', sources: [mail] }))
  writeFileSync(`${scenario.source}/a`, random.bytes(1000))
  writeFileSync(`${mail}/b`, random.bytes(1000))
  for (const run of [await scenario.collect(), await scenario.external()]) {
    assert.is(run.status, 0, run.stderr)
  }
  flip(scenario, 'manifest.tar.zst.age')
  const { status, stderr } = await scenario.run('drill')
  assert.is(status, 13)
  const manifest = `machines/tester/data/${exportStamps(scenario)[0]}/manifest.tar.zst.age`
  assert.match(stderr, manifest)
  const [receipt] = signedReceipts(scenario)
  assert.equal(receipt?.damaged, [manifest])
  assert.is(receipt?.files, 1)
  const other = await runHere(scenario, { set: ['mail'] })
  assert.is(other.status, 0, other.stderr)
})

drill('an identity that nobody can open counts as none, unless it is named', async () => {
  const scenario = await makeExport({ passphrase: 'twelve words' })
  const { status, stdout, stderr } = await scenario.run('drill')
  assert.is(status, 0, stderr)
  assert.match(stderr, 'without an identity only checksums are compared')
  assert.match(stdout, /^drive: good: \d+ bundles read and compared/)
  assert.is(signedReceipts(scenario)[0]?.how, 'checksums')

  configure(scenario, (c) => void (c['identity'] = scenario.identity))
  const configured = await scenario.run('drill', '--json')
  assert.is(configured.status, 0, configured.stderr)
  assert.is(signedReceipts(scenario).at(-1)?.how, 'checksums')
  configure(scenario, (c) => void (c['identity'] = `${scenario.directory}/stick/identity.age`))
  assert.is((await scenario.run('drill')).status, 0, 'it is on a stick that is not there')

  const before = signedReceipts(scenario).length
  const named = await scenario.run('drill', '--identity', scenario.identity)
  assert.is(named.status, 2)
  assert.match(named.stderr, 'a passphrase is needed')
  assert.is(signedReceipts(scenario).length, before)
  const file = `${scenario.directory}/passphrase`
  const words = ['--identity', scenario.identity, '--passphrase-file', file]
  const opened = await scenario.run('drill', ...words)
  assert.is(opened.status, 0, opened.stderr)
  assert.is(signedReceipts(scenario).at(-1)?.how, 'restored')
})

drill('damage is found without an identity, too', async () => {
  const scenario = await freshExport()
  configure(scenario, (c) => void (c['identity'] = '/nowhere/identity.txt'))
  flip(scenario, 'catalog-0001.tar.zst.age')
  const { status, stderr } = await runHere(scenario, { share: '100%' })
  assert.is(status, 13)
  const name = `machines/tester/data/${exportStamps(scenario)[0]}/catalog-0001.tar.zst.age`
  assert.match(stderr, `${name}: ${name} does not have its signed checksum`)
  assert.equal(signedReceipts(scenario)[0]?.damaged, [name])
})

drill('--share decides how much is read', async () => {
  const scenario = await freshExport()
  const whole = await runHere(scenario, { share: '100%' })
  assert.is(whole.status, 0, whole.stderr)
  const [receipt] = signedReceipts(scenario)
  assert.is(receipt?.files, 12)
  assert.is(receipt?.bytes, receipt?.totalBytes)
  const wrong = ['0%', '101%', '100.001%', '5', 'x%', '-1%'].map((share) => ({ share }))
  for (const values of [...wrong, { set: ['none'] }, { target: ['none'] }]) {
    const error = await runHere(scenario, values).catch((thrown: unknown) => thrown)
    assert.is((error as BackupError).code, 'USAGE', JSON.stringify(values))
  }
  assert.is(signedReceipts(scenario).length, 1)
})

drill('a dry run says what would be read, and writes nothing', async () => {
  const scenario = await freshExport()
  const { staging, target } = scenario
  const before = [inventory(staging), inventory(target)]
  const { status, stdout, stderr } = await scenario.run('drill', '--dry-run', '--json')
  assert.is(status, 0, stderr)
  const [plan] = jsonLines({ status, stdout, stderr }, 'result')
  assert.is(plan?.['outcome'], 'planned')
  const named = plan?.['names'] as { export: string; path: string }[]
  const names = named.map((one) => `${one.export}: ${one.path}`)
  assert.ok(names.length >= 10)
  const values = { 'dry-run': true }
  const text = await runHere(scenario, values)
  assert.match(text.stdout, /^drive: 1\d files would be restored and compared/)
  for (const name of names) assert.match(text.stdout, `  ${name}\n`)
  assert.equal([inventory(staging), inventory(target)], before)
  assertNoReceipt(scenario)
  flip(scenario, 'manifest.tar.zst.age')
  const { status: found } = await runHere(scenario, values)
  assert.is(found, 13)
})

drill('targets that are not there are said: exit 75 for none, 10 for a named one', async () => {
  const scenario = await freshExport()
  const absent = { name: 'absent', kind: 'directory', path: `${scenario.directory}/no` }
  configure(scenario, (c) => void c['targets'].push(absent))
  const some = await runHere(scenario)
  assert.is(some.status, 0, some.stderr)
  assert.match(some.stderr, /absent: target absent: .* is not there/)
  assert.match(some.stdout, 'drive: good')
  const named = await runHere(scenario, { target: ['absent', 'drive'] })
  assert.is(named.status, 10)
  assert.match(named.stdout, 'drive: good')
  assert.is(signedReceipts(scenario).length, 2)
  configure(scenario, (c) => void c['targets'].shift())
  const none = await runHere(scenario)
  assert.is(none.status, 75)
  assert.is(none.stdout, '')
  assert.is(signedReceipts(scenario).length, 2)
})

drill('another run has to end first', async () => {
  const scenario = await freshExport()
  const { staging } = scenario
  const lock = acquireRunLock({ staging, description: 'another run', waitMs: 0 })
  try {
    const { status, stderr } = await scenario.run('drill')
    assert.is(status, 11)
    assert.match(stderr, 'another run')
  } finally {
    lock.release()
  }
  assertNoReceipt(scenario)
})

drill.run()
