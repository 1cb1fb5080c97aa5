// Damage of every kind on a target, mended by `backup repair`, and what cannot be mended: by the
// real par2 and the built program.

import { Buffer } from 'node:buffer'
import { createHash, randomBytes } from 'node:crypto'
import {
  closeSync,
  cpSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'
import { runCli } from '../helpers/run-cli.ts'
import {
  type Scenario,
  assertNoLeftovers,
  assertSameTree,
  assertWhole,
  configure,
  inventory,
  jsonLines,
  makeScenario,
  namesIn,
} from '../helpers/scenario.ts'
import { planFault } from '../helpers/system-faults.ts'

const repair = suite('backup repair')
const MIB = 1024 * 1024
const NAMES = ['a', 'b', 'c']

interface Protected {
  readonly scenario: Scenario
  /** The path of the first file whose name begins like that. */
  readonly path: (name: string) => string
  /** What lay on the target when all was whole. */
  readonly whole: ReadonlyMap<string, string>
}

const made = new Map<string, Promise<{ readonly scenario: Scenario; readonly copy: string }>>()

/** An export with parity, freshly put back. */
async function protectedExport(parity = '10%'): Promise<Protected> {
  const making =
    made.get(parity)
    ?? (async () => {
      const scenario = await makeScenario()
      configure(scenario, (c) => {
        c['targets'][0].bundle_size = '1 MiB'
        c['targets'][0].parity = parity
      })
      const bytes = parity === '10%' ? MIB : MIB / 8
      for (const name of NAMES) writeFileSync(`${scenario.source}/${name}`, randomBytes(bytes))
      await scenario.generation()
      // Makes what an export did not.
      const repaired = await scenario.run('repair', '--target', 'drive', '--yes')
      assert.is(repaired.status, 0, repaired.stderr)
      const copy = `${scenario.directory}/copy`
      cpSync(scenario.target, copy, { recursive: true, preserveTimestamps: true })
      return { scenario, copy }
    })()
  made.set(parity, making)
  const { scenario, copy } = await making
  rmSync(scenario.target, { recursive: true })
  cpSync(copy, scenario.target, { recursive: true, preserveTimestamps: true })
  const path = (name: string): string => {
    const found = namesIn(scenario.target, /\.age(\.par2)?$/)
    return `${scenario.target}/${found.find((one) => one.includes(`/${name}`))}`
  }
  return { scenario, path, whole: inventory(scenario.target) }
}

/** Overwrites a share of the file from a place on. */
function overwrite(file: string, { at, share }: { at: number; share: number }): void {
  const { size } = statSync(file)
  const fd = openSync(file, 'r+')
  const bytes = randomBytes(Math.floor(size * share))
  writeSync(fd, bytes, 0, bytes.length, Math.floor(size * at))
  closeSync(fd)
}

/** Flips a bit every so many bytes. */
function scatter(file: string, everyBytes: number): void {
  const bytes = readFileSync(file)
  for (let at = 100; at < bytes.length; at += everyBytes) bytes[at] = bytes[at]! ^ 4
  writeFileSync(file, bytes)
}

/** All is as it was before the damage, but for the damaged ones, which are kept. */
function assertMended({ scenario, whole }: Protected, asides: readonly string[]): void {
  const after = inventory(scenario.target)
  const kept = [...after.keys()].filter((name) => /\.damaged(-\d+)?$/.test(name))
  for (const name of kept) after.delete(name)
  assert.equal(after, whole)
  assert.equal(kept.map((name) => name.split('/').at(-1)).sort(), [...asides].sort())
  assertNoLeftovers(scenario.target)
  assert.equal(namesIn(scenario.staging, /parity-/), [])
}

repair('5 % of a bundle overwritten: verified as damaged, mended, whole, restored', async () => {
  const fixture = await protectedExport()
  const { scenario, path } = fixture
  overwrite(path('data-0001'), { at: 0.4, share: 0.05 })
  const damaged = readFileSync(path('data-0001'))
  assert.is((await scenario.restore('--verify')).status, 13)
  const { status, stdout, stderr } = await scenario.run('repair', '--target', 'drive', '--yes')
  assert.is(status, 0, stderr)
  assert.match(stdout, 'looked at, 1 damaged')
  assert.match(
    stdout,
    /damaged {5}machines\/tester\/data\/.*data-0001.tar.zst.age: it can be mended:/,
  )
  assert.match(stdout, /needed by tester\/data\/\d{4}-/)
  assert.match(stdout, /mended: .*data-0001\.tar\.zst\.age; the damaged one is kept as .*\.damaged/)
  assertMended(fixture, ['data-0001.tar.zst.age.damaged'])
  assert.ok(readFileSync(`${path('data-0001')}.damaged`).equals(damaged))
  await assertWhole(scenario)
  const into = `${scenario.directory}/into`
  const restored = await scenario.restore('--into', into)
  assert.is(restored.status, 0, restored.stderr)
  assertSameTree(`${into}${scenario.source}`, scenario.source)
  const again = await scenario.run('repair', '--target', 'drive')
  assert.is(again.status, 0, again.stderr)
  assert.match(again.stdout, 'looked at, all whole')
})

repair('scattered damage, a cut bundle and a damaged manifest are mended at once', async () => {
  const fixture = await protectedExport()
  const { scenario, path } = fixture
  const bundle = path('data-0001')
  const cut = path('catalog-0001')
  scatter(bundle, Math.ceil(statSync(bundle).size / 20))
  truncateSync(cut, statSync(cut).size - 700)
  scatter(path('manifest'), 400)
  const outcome = await scenario.run('repair', '--target', 'drive', '--yes', '--json')
  assert.is(outcome.status, 0, outcome.stderr)
  const [result] = jsonLines(outcome, 'result')
  assert.equal(
    [result?.['damaged'].length, result?.['repaired'].length, result?.['left']],
    [3, 3, []],
  )
  assertMended(fixture, [
    'catalog-0001.tar.zst.age.damaged',
    'data-0001.tar.zst.age.damaged',
    'manifest.tar.zst.age.damaged',
  ])
  await assertWhole(scenario)
  // Damaged once more: what is kept of the first time is not overwritten.
  const kept = readFileSync(`${bundle}.damaged`)
  overwrite(bundle, { at: 0, share: 0.01 })
  assert.is((await scenario.run('repair', '--target', 'drive', '-y')).status, 0)
  assert.ok(readFileSync(`${bundle}.damaged`).equals(kept))
  assert.ok(statSync(`${bundle}.damaged-2`).isFile())
})

repair('too much damage is named with what is missing, and nothing is changed', async () => {
  const { scenario, path } = await protectedExport()
  overwrite(path('data-0001'), { at: 0.2, share: 0.5 })
  const before = inventory(scenario.target)
  const { status, stdout, stderr } = await scenario.run('repair', '--target', 'drive', '--yes')
  assert.is(status, 13)
  assert.match(stdout, /\d+ of \d+ blocks are lost: [1-9]\d* more spare ones are needed/)
  assert.match(stderr, '1 file on drive is still damaged')
  assert.equal(inventory(scenario.target), before)
})

repair('one that cannot be mended does not hold up the others', async () => {
  const { scenario, path } = await protectedExport()
  overwrite(path('data-0001'), { at: 0, share: 0.9 })
  overwrite(path('catalog'), { at: 0.3, share: 0.03 })
  const sha256 = createHash('sha256')
    .update(readFileSync(path('data-0001')))
    .digest('hex')
  const { status, stdout } = await scenario.run('repair', '--target', 'drive', '--yes')
  assert.is(status, 13)
  assert.match(stdout, /mended: .*catalog-0001/)
  assert.is(
    createHash('sha256')
      .update(readFileSync(path('data-0001')))
      .digest('hex'),
    sha256,
  )
  const again = await scenario.run('repair', '--target', 'drive', '--dry-run')
  assert.match(again.stdout, 'looked at, 1 damaged')
})

repair('a missing bundle needs redundancy of its whole size', async () => {
  const little = await protectedExport()
  rmSync(little.path('data-0001'))
  const refused = await little.scenario.run('repair', '--target', 'drive', '--yes')
  assert.is(refused.status, 13)
  assert.match(refused.stdout, /missing {5}.*data-0001.*more spare ones are needed/)
  const enough = await protectedExport('100%')
  rmSync(enough.path('data-0001'))
  const { status, stderr } = await enough.scenario.run('repair', '--target', 'drive', '--yes')
  assert.is(status, 0, stderr)
  assertMended(enough, [])
})

repair('without parity damage is told, and only that', async () => {
  const { scenario, path } = await protectedExport()
  overwrite(path('data-0001'), { at: 0.4, share: 0.01 })
  rmSync(`${path('data-0001')}.par2`)
  const before = inventory(scenario.target)
  const { status, stdout } = await scenario.run('repair', '--target', 'drive', '--yes')
  assert.is(status, 13)
  assert.match(stdout, /data-0001\.tar\.zst\.age: there is no parity to mend it by/)
  assert.equal(inventory(scenario.target), before)
})

repair('a dry run and nobody to ask change nothing', async () => {
  const { scenario, path } = await protectedExport()
  overwrite(path('data-0001'), { at: 0.4, share: 0.05 })
  const before = [inventory(scenario.target), inventory(scenario.staging)]
  const shown = await scenario.run('repair', '--target', 'drive', '--dry-run')
  assert.is(shown.status, 13, 'it is damaged still')
  assert.match(shown.stdout, 'it can be mended')
  assert.equal([inventory(scenario.target), inventory(scenario.staging)], before)
  const asked = await scenario.run('repair', '--target', 'drive')
  assert.is(asked.status, 4)
  assert.match(asked.stderr, 'changing drive has to be confirmed')
  assert.equal(inventory(scenario.target), before[0])
})

repair('parity that is damaged or missing is made anew beside what is whole', async () => {
  const fixture = await protectedExport()
  const { scenario, path } = fixture
  const [bad, gone] = [`${path('data-0001')}.par2`, `${path('manifest')}.par2`]
  scatter(bad, 5000)
  rmSync(gone)
  const { status, stdout, stderr } = await scenario.run('repair', '--target', 'drive', '--yes')
  assert.is(status, 0, stderr)
  assert.match(stdout, /data-0001\.tar\.zst\.age\.par2: damaged itself; is made anew/)
  assert.match(stdout, '1 file without any: it is made')
  assert.match(stdout, 'parity made for 2 files')
  assertMended(fixture, [])
})

repair('parity that belongs to another file is made anew', async () => {
  const fixture = await protectedExport()
  const { scenario, path } = fixture
  writeFileSync(`${path('data-0001')}.par2`, readFileSync(`${path('catalog')}.par2`))
  assert.is((await scenario.run('repair', '--target', 'drive', '--yes')).status, 0)
  assertMended(fixture, [])
})

repair('an export whose signature is wrong is told, and nothing is done on its word', async () => {
  const { scenario, path } = await protectedExport()
  overwrite(path('data-0001'), { at: 0.4, share: 0.05 })
  const name = path('manifest').replace(/[^/]*$/, 'verification.sha256')
  const fd = openSync(name, 'r+')
  writeSync(fd, Buffer.from('0'.repeat(64)), 0, 64, 0)
  closeSync(fd)
  const before = inventory(scenario.target)
  const { status, stderr } = await scenario.run('repair', '--target', 'drive', '--yes')
  assert.is(status, 13)
  assert.match(stderr, /signature/)
  assert.equal(inventory(scenario.target), before)
})

repair('killed at any moment: no export is lost, and the next one mends', async () => {
  const fixture = await protectedExport('100%')
  const { scenario, path } = fixture
  const { target, environment } = scenario
  const copy = `${scenario.directory}/damaged`
  overwrite(path('data-0001'), { at: 0.4, share: 0.5 })
  scatter(path('manifest'), 1000)
  cpSync(target, copy, { recursive: true, preserveTimestamps: true })
  const words = ['repair', '--target', 'drive', '--yes']
  const match = new RegExp(`^(writeSync|renameSync) ${target}/`)
  const counting = planFault({ match, action: 'count' })
  const counted = { environment: { ...environment, ...counting.environment } }
  assert.is((await runCli(words, counted)).status, 0)
  assertMended(fixture, ['data-0001.tar.zst.age.damaged', 'manifest.tar.zst.age.damaged'])
  const steps = counting.count()
  assert.ok(steps >= 7, `${steps} steps`)
  let missing = 0
  for (let at = 1; at <= steps; at++) {
    rmSync(target, { recursive: true })
    cpSync(copy, target, { recursive: true, preserveTimestamps: true })
    const plan = planFault({ match, at, action: 'kill' })
    const killed = await runCli(words, { environment: { ...environment, ...plan.environment } })
    assert.is(killed.status, null, `step ${at}`)
    const there = namesIn(target, /(data-0001|manifest)\.tar\.zst\.age$/)
    assert.ok(
      there.some((name) => name.includes('manifest')),
      `step ${at}: the export is gone`,
    )
    if (there.length === 1) missing += 1
    const { status, stderr } = await scenario.run(...words)
    assert.is(status, 0, `step ${at}: ${stderr}`)
    const after = inventory(target)
    for (const [name, what] of fixture.whole) assert.is(after.get(name), what, `${at}: ${name}`)
    const others = [...after.keys()].filter((name) => !fixture.whole.has(name))
    assert.ok(
      others.every((name) => /\.damaged(-2)?$/.test(name)),
      `${at}: ${others.join()}`,
    )
  }
  assert.ok(missing > 0, 'one of them was between the two names')
  assert.equal(namesIn(scenario.staging, /parity-/), [])
})

repair(
  'killed between the two names, with little parity, what was moved aside is taken',
  async () => {
    const fixture = await protectedExport()
    const { scenario, path } = fixture
    const bundle = path('data-0001')
    overwrite(bundle, { at: 0.4, share: 0.05 })
    const plan = planFault({
      match: /^renameSync .*data-0001\.tar\.zst\.age$/,
      at: 1,
      action: 'kill',
    })
    const environment = { ...scenario.environment, ...plan.environment }
    const killed = await runCli(['repair', '--target', 'drive', '--yes'], { environment })
    assert.is(killed.status, null)
    assert.equal(namesIn(scenario.target, /data-0001\.tar\.zst\.age$/), [])
    const { status, stdout, stderr } = await scenario.run('repair', '--target', 'drive', '--yes')
    assert.is(status, 0, stderr)
    assert.match(stdout, /missing {5}.*data-0001.*it can be mended/)
    assertMended(fixture, ['data-0001.tar.zst.age.damaged'])
  },
)

repair('the target has to be named, and known', async () => {
  const { scenario } = await protectedExport()
  const none = await scenario.run('repair')
  assert.is(none.status, 2)
  assert.match(none.stderr, 'name the target: --target NAME')
  assert.is((await scenario.run('repair', '--target', 'other')).status, 2)
  assert.is((await scenario.run('repair', '--target', 'drive', '--set', 'other')).status, 2)
})

repair.run()
