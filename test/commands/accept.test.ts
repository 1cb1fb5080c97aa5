import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readlinkSync, rmSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import {
  type Scenario,
  configure,
  exportStamps,
  inventory,
  jsonLines,
  makeScenario,
} from '../helpers/scenario.ts'

const accept = suite('backup accept')

/** How long a drive stays away: longer than any count of generations. */
const DAYS = 30

const collections = async (scenario: Scenario) =>
  jsonLines(await scenario.run('restore', '--list', '--source', 'local', '--json'), 'result')

async function filled(): Promise<Scenario> {
  const scenario = await makeScenario()
  configure(scenario, (c) => (c['retention'] = { local: 2, external: 2 }))
  for (let i = 0; i < 20; i++)
    writeFileSync(`${scenario.source}/photo-${i}`, `photo ${i}`.repeat(99))
  await scenario.generation()
  return scenario
}

function empty({ source }: Scenario): void {
  rmSync(source, { recursive: true })
  mkdirSync(source)
}

if (canRunAsRoot('a mount point gone empty')) {
  accept(
    'a mount point that stays empty for 30 days loses nothing, and every day says so',
    async () => {
      const scenario = await makeScenario()
      configure(scenario, (c) => (c['retention'] = { local: 2, external: 2 }))
      const { source, staging, target } = scenario
      spawnSync('mount', ['-t', 'tmpfs', 'photos', source])
      try {
        writeFileSync(`${source}/photo`, 'the only copy')
        await scenario.generation()
        writeFileSync(`${source}/photo-2`, 'another')
        await scenario.generation()
      } finally {
        spawnSync('umount', [source])
      }
      const latest = readlinkSync(`${staging}/data/latest`)
      const exported = inventory(target)
      const before = await collections(scenario)
      for (let day = 0; day < DAYS; day++) {
        const collected = await scenario.collect()
        assert.is(collected.status, 3, `day ${day}: ${collected.stderr}`)
        assert.match(
          collected.stderr,
          /suspect: \/.*: empty; it had 3 entries .*on another filesystem/,
        )
        assert.match(collected.stdout, /collected as SUSPECT/)
        const external = await scenario.external()
        assert.is(external.status, 3)
        assert.match(external.stdout, /is SUSPECT: not exported/)
        assert.match(external.stderr, /backup accept data 20\S+Z/)
      }
      assert.is(readlinkSync(`${staging}/data/latest`), latest, 'latest stays on the good one')
      assert.equal(inventory(target), exported, 'the target is as it was')
      const after = await collections(scenario)
      assert.is(after.length, before.length + DAYS, 'no collection went')
      assert.ok(existsSync(`${staging}/data/${latest}${source}/photo-2`))
    },
  )
}

if (canRunAsRoot('a mount below a source')) {
  accept(
    'a mount below a source that is gone makes it suspect, however little it held',
    async () => {
      const scenario = await filled()
      const photos = `${scenario.source}/photos`
      mkdirSync(photos)
      spawnSync('mount', ['-t', 'tmpfs', 'photos', photos])
      try {
        writeFileSync(`${photos}/one`, 'x')
        const first = await scenario.collect()
        assert.is(first.status, 0, first.stderr)
      } finally {
        spawnSync('umount', [photos])
      }
      const second = await scenario.collect()
      assert.is(second.status, 3)
      assert.match(second.stderr, /nothing is mounted there any more, or it is empty: .*\/photos/)
    },
  )
}

accept('a source that comes back ends the doubt by itself', async () => {
  const scenario = await filled()
  const kept = `${scenario.directory}/kept`
  spawnSync('cp', ['-a', scenario.source, kept])
  empty(scenario)
  assert.is((await scenario.collect()).status, 3)
  rmSync(scenario.source, { recursive: true })
  spawnSync('mv', [kept, scenario.source])
  const collected = await scenario.collect()
  assert.is(collected.status, 0, collected.stderr)
  assert.is((await scenario.external()).status, 0)
  assert.is(exportStamps(scenario).length, 2)
})

accept('latest restores the last trusted collection, the list names the suspect one', async () => {
  const scenario = await filled()
  empty(scenario)
  await scenario.collect()
  const list = await scenario.run('restore', '--list', '--source', 'local')
  assert.match(list.stdout, /complete, SUSPECT$/m)
  const into = `${scenario.directory}/into`
  const restored = await scenario.run('restore', '--source', 'local', '--into', into)
  assert.is(restored.status, 0, restored.stderr)
  assert.ok(existsSync(`${into}${scenario.source}/photo-19`))
})

accept('shows what is gone, and without a terminal accepts only by the stamp', async () => {
  const scenario = await filled()
  for (let i = 0; i < 15; i++) rmSync(`${scenario.source}/photo-${i}`)
  const collected = await scenario.collect()
  assert.is(collected.status, 3)
  assert.match(collected.stderr, /it shrank from 21 entries .* to 6 entries/)
  const asked = await scenario.run('accept', 'data')
  assert.is(asked.status, 4)
  assert.match(asked.stdout, /gone since \S+: 15 files/)
  assert.match(asked.stdout, /\/photo-14$/m)
  const stamp = /accept data (\S+)/.exec(asked.stderr)?.[1] ?? ''
  assert.is((await scenario.external()).status, 3, 'still frozen')

  const dry = await scenario.run('accept', 'data', stamp, '--dry-run')
  assert.is(dry.status, 0)
  assert.is((await scenario.external()).status, 3, 'a dry run accepts nothing')

  const accepted = await scenario.run('accept', 'data', stamp)
  assert.is(accepted.status, 0, accepted.stderr)
  assert.is(readlinkSync(`${scenario.staging}/data/latest`), stamp)
  assert.is((await scenario.external()).status, 0)
  const next = await scenario.collect()
  assert.is(next.status, 0, 'the next one is compared with what was accepted')
})

accept(
  'an incomplete collection that is accepted is latest, and still names what is missing',
  async () => {
    const scenario = await filled()
    configure(scenario, (c) => c['backup_sets'][0].sources.push('/no/such/thing'))
    assert.is((await scenario.collect()).status, 3)
    const [newest] = (await collections(scenario)).slice(-1)
    const stamp = newest?.['stamp'] as string
    const accepted = await scenario.run('accept', 'data', stamp)
    assert.is(accepted.status, 0, accepted.stderr)
    assert.match(accepted.stdout, /INCOMPLETE[^]*missing: \/no\/such\/thing/)
    assert.is(readlinkSync(`${scenario.staging}/data/latest`), stamp)
  },
)

accept(
  'a good collection has nothing to accept; an unknown set or stamp is a usage error',
  async () => {
    const scenario = await filled()
    const good = await scenario.run('accept', 'data')
    assert.is(good.status, 1)
    assert.match(good.stderr, /is good: nothing to accept/)
    assert.is((await scenario.run('accept', 'nosuch')).status, 2)
    assert.is((await scenario.run('accept', 'data', 'yesterday')).status, 2)
    assert.is((await scenario.run('accept')).status, 2)
    assert.is((await scenario.run('accept', 'data', '2001-01-01T000000Z')).status, 1)
  },
)

accept.run()
