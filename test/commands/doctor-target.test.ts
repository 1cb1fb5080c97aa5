import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { command } from '../../commands/doctor.ts'
import * as assert from '../helpers/assert.ts'
import { fakeDrive } from '../helpers/fake-drive.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { runCommand } from '../helpers/run-command.ts'
import { configure, jsonLines, makeScenario, type Scenario } from '../helpers/scenario.ts'
import { withPrograms } from '../helpers/stand-in.ts'
import { stock } from '../helpers/stock.ts'

const doctor = suite('backup doctor --target')
const nowMs = Date.UTC(2026, 0, 2)

interface Finding {
  readonly name: string
  readonly verdict: string
  readonly message: string
  readonly fix?: string
}

interface Findings {
  readonly status: number
  readonly all: readonly Finding[]
  readonly of: (name: string) => Finding | undefined
}

/** What is said of the target of a scenario, which is called `drive`. */
async function examine(
  scenario: Scenario,
  values: Readonly<Record<string, boolean>> = {},
): Promise<Findings> {
  const options = { target: 'drive', json: true, ...values }
  const { status, stdout, stderr } = await runCommand(command, { scenario, nowMs, values: options })
  const [result] = jsonLines({ status, stdout, stderr }, 'result')
  assert.is(result!['command'], 'backup doctor')
  const all = result!['checks'] as readonly Finding[]
  return { status, all, of: (name) => all.find((check) => check.name === name) }
}

/** Everything below a directory, with its size. */
const contentOf = (directory: string): string => stock('find', [directory, '-printf', '%P %s\n'])

doctor('a target that is not there is the only finding', async () => {
  const scenario = await makeScenario()
  configure(scenario, (properties) => {
    properties['targets'][0]['path'] = '/no/such'
  })
  const { status, all } = await examine(scenario)
  assert.is(status, 1)
  assert.equal(
    all.map(({ name, verdict }) => [name, verdict]),
    [['target', 'failure']],
  )
  assert.match(all[0]!.fix ?? '', /plug in/)
})

doctor('a directory beside staging is written, read back, and not filled', async () => {
  const scenario = await makeScenario()
  const { status, all, of } = await examine(scenario)
  assert.is(status, 0, JSON.stringify(all))
  assert.match(of('writing')!.message, /written and read back/)
  assert.is(of('filesystem')!.verdict, 'warning')
  assert.match(of('repository')!.message, /^none yet/)
  assert.match(of('capacity')!.message, /^not looked at: /)
  assert.equal(readdirSync(scenario.target), [])
})

doctor('a dry run writes nothing, and a name that is no target is a usage error', async () => {
  const scenario = await makeScenario()
  const leftover = `${scenario.target}/.backup-capacity-${spawnSync('true').pid}`
  mkdirSync(leftover)
  const { of } = await examine(scenario, { 'dry-run': true })
  assert.match(of('writing')!.message, /writes nothing/)
  assert.ok(existsSync(leftover), 'not even what a killed one left is removed')
  await examine(scenario)
  assert.not.ok(existsSync(leftover))
  const unknown = await scenario.run('doctor', '--target', 'other')
  assert.is(unknown.status, 2)
  assert.match(unknown.stderr, /no target other.*drive/s)
  assert.is((await scenario.run('doctor', '--no-capacity')).status, 2)
})

doctor('the repository is known where it was exported to, and to nobody else', async () => {
  const scenario = await makeScenario()
  writeFileSync(`${scenario.source}/a`, 'a')
  assert.is((await scenario.collect()).status, 0)
  assert.match((await examine(scenario)).of('space')!.message, /data has .* before compression/)
  assert.is((await scenario.external()).status, 0)
  const before = contentOf(scenario.target)
  const { of } = await examine(scenario)
  assert.match(of('repository')!.message, /^known here, 1 exports of tester$/)
  assert.not.match(of('space')!.message, /before compression/)
  assert.is(contentOf(scenario.target), before)

  const stranger = await makeScenario({ machine: 'stranger' })
  configure(stranger, (properties) => {
    properties['targets'][0]['path'] = scenario.target
  })
  const found = (await examine(stranger)).of('repository')!
  assert.is(found.verdict, 'warning')
  assert.match(found.message, /^it belongs to tester, and has none of stranger$/)
})

doctor('what lies there and is not ours is a failure, and stays', async () => {
  const scenario = await makeScenario()
  writeFileSync(`${scenario.target}/photo`, 'p')
  const { status, of } = await examine(scenario)
  assert.is(status, 1)
  assert.is(of('repository')!.verdict, 'failure')
  assert.equal(readdirSync(scenario.target), ['photo'])
})

if (canRunAsRoot('drives of their own')) {
  doctor('a good drive is looked at from one end to the other', async () => {
    const { path, unmount } = loopDevice({ sizeMib: 256 })
    const scenario = await makeScenario({ target: path })
    const json = JSON.stringify({ model_name: 'T9', smart_status: { passed: true } })
    await withPrograms({ smartctl: `echo '${json}'` }, async () => {
      const { status, all, of } = await examine(scenario)
      assert.is(status, 0)
      assert.equal(
        all.map(({ name, verdict }) => `${name} ${verdict}`),
        [
          'target',
          'filesystem',
          'writing',
          'repository',
          'space',
          'metadata',
          'SMART',
          'capacity',
        ].map((name) => `${name} ok`),
        JSON.stringify(all),
      )
      assert.match(of('filesystem')!.message, /^ext4 at /)
      assert.match(of('SMART')!.message, /^T9 says that it is well/)
      assert.match(of('capacity')!.message, /blocks all over/)
      const without = await examine(scenario, { 'no-capacity': true })
      assert.match(without.of('capacity')!.message, /^not looked at: --no-capacity$/)
    })
    assert.equal(readdirSync(path), ['lost+found'])
    unmount()
  })

  doctor('a fake is a failure, and what it holds should be verified', async () => {
    const sizes = { sizeMib: 512, realMib: 128 }
    const { path, release } = await fakeDrive({ ...sizes, kind: 'drops' })
    try {
      const scenario = await makeScenario({ target: path })
      const repository = { format: 1, id: '12'.repeat(16), created: '2026-01-02T030405Z' }
      writeFileSync(`${path}/repository.json`, JSON.stringify(repository))
      const { status, of } = await examine(scenario)
      assert.is(status, 1)
      const { verdict, message, fix } = of('capacity')!
      assert.is(verdict, 'failure')
      assert.match(message, /^it is a fake/)
      assert.match(fix ?? '', /return it; `backup-restore --verify`/)
    } finally {
      release()
    }
  })

  doctor('a drive that cannot be written is not filled', async () => {
    const { path, mount, unmount } = loopDevice({ sizeMib: 256 })
    const scenario = await makeScenario({ target: path })
    unmount()
    mount('ro')
    const { status, of } = await examine(scenario)
    assert.is(status, 1)
    assert.match(of('writing')!.message, /read-only/)
    assert.is(of('capacity'), undefined)
    assert.is((await examine(scenario, { 'dry-run': true })).of('writing')!.verdict, 'failure')
    unmount()
  })
}

doctor.run()
