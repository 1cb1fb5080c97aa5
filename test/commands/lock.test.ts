import { rmSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { lockedStamps } from '../../lib/work/marks.ts'
import * as assert from '../helpers/assert.ts'
import { jsonLines, makeScenario, type Scenario } from '../helpers/scenario.ts'

const lock = suite('backup lock')

async function withTwo(): Promise<{ scenario: Scenario; stamps: string[] }> {
  const scenario = await makeScenario()
  writeFileSync(`${scenario.source}/file`, 'x')
  const stamps = [(await scenario.generation()).stamp, (await scenario.generation()).stamp]
  return { scenario, stamps }
}

const locked = ({ staging }: Scenario): string[] => [...lockedStamps({ staging, set: 'data' })]

lock('locks, lists with the reason, and unlocks', async () => {
  const { scenario, stamps } = await withTwo()
  assert.match((await scenario.run('lock')).stdout, 'nothing is locked')
  const done = await scenario.run('lock', 'data', 'latest', '--reason', 'before the move')
  assert.is(done.status, 0, done.stderr)
  assert.match(done.stdout, `data ${stamps[1]} is locked`)
  assert.match(done.stdout, 'now in: staging, drive')
  assert.equal(locked(scenario), [stamps[1]])
  assert.match((await scenario.run('lock')).stdout, `data  ${stamps[1]}  before the move`)
  const [listed] = jsonLines(await scenario.run('lock', '--json'), 'result')
  assert.equal(listed!['locks'], [{ set: 'data', stamp: stamps[1], reason: 'before the move' }])
  // Only one is locked, so a year is enough to mean it.
  const off = await scenario.run('lock', 'data', stamps[1]!.slice(0, 4), '--off')
  assert.is(off.status, 0, off.stderr)
  assert.equal(locked(scenario), [])
  assert.is((await scenario.run('lock', 'data', stamps[1]!, '--off')).status, 1)
})

lock('a part of a stamp has to fit one generation', async () => {
  const { scenario, stamps } = await withTwo()
  const vague = await scenario.run('lock', 'data', stamps[0]!.slice(0, 4))
  assert.is(vague.status, 2)
  assert.match(vague.stderr, `${stamps[0]}, ${stamps[1]}`)
  assert.is((await scenario.run('lock', 'data', '1999')).status, 1)
  assert.is((await scenario.run('lock', 'other', 'latest')).status, 2)
  assert.is((await scenario.run('lock', '../data', 'latest')).status, 2)
  assert.is((await scenario.run('lock', 'data')).status, 2)
  assert.is((await scenario.run('lock', 'data', 'latest', '--reason', 'two\nlines')).status, 2)
  assert.equal(locked(scenario), [])
})

lock('a whole stamp is taken though its drive is away, and that is said', async () => {
  const { scenario } = await withTwo()
  rmSync(scenario.target, { recursive: true })
  const away = await scenario.run('lock', 'data', '2020-01-01T00:00:00Z')
  assert.is(away.status, 0, away.stderr)
  assert.match(away.stderr, 'neither in staging nor on a target that is here now')
  assert.equal(locked(scenario), ['2020-01-01T000000Z'])
})

lock('a dry run locks nothing', async () => {
  const { scenario } = await withTwo()
  const { status, stdout } = await scenario.run('lock', 'data', 'latest', '--dry-run')
  assert.is(status, 0)
  assert.match(stdout, 'would be locked')
  assert.equal(locked(scenario), [])
})

lock.run()
