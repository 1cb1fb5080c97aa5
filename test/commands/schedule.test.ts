// `backup schedule` as a user meets it: below `--root`, and for a user with a systemctl that stands
// in for the real one.

import {
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readlinkSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'
import { type Outcome, runCli } from '../helpers/run-cli.ts'
import {
  configure,
  inventory,
  jsonLines,
  makeScenario,
  namesIn,
  type Scenario,
} from '../helpers/scenario.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const test = suite('schedule')

const UNITS = 'etc/systemd/system'
const INSTANCE = 'dev-disk-by\\x2dlabel-My\\x5cx20Disk'
const WANTS = `${INSTANCE}.device.wants`
const LINK = `${WANTS}/backup-drive@${INSTANCE}.service`

async function withDrive(): Promise<Scenario> {
  const scenario = await makeScenario()
  configure(scenario, ({ targets }) => {
    targets.push({ name: 'blue', kind: 'drive', label: 'My Disk' })
  })
  return scenario
}

interface Image {
  readonly root: string
  readonly units: string
  readonly schedule: (...words: string[]) => Promise<Outcome>
}

function image({ run }: Scenario): Image {
  const root = tempDirectory()
  const schedule = async (verb = '', ...words: string[]): Promise<Outcome> => {
    return await run('schedule', verb, '--system', '--root', root, ...words)
  }
  return { root, units: join(root, UNITS), schedule }
}

function succeeded(outcome: Outcome): Outcome {
  assert.is(outcome.status, 0, outcome.stderr + outcome.stdout)
  return outcome
}

test('installs everything once, and finds nothing to do the second time', async () => {
  const scenario = await withDrive()
  const { root, units, schedule } = image(scenario)
  const absent = await schedule('status')
  assert.is(absent.status, 3)
  assert.match(absent.stdout, /not installed/)
  assert.equal([...inventory(root)], [], 'status writes nothing')

  const first = succeeded(await schedule('install'))
  assert.match(first.stdout, /^installed$/m)
  assert.ok(readFileSync(`${units}/backup.service`, 'utf8').includes(scenario.configuration))
  assert.is(readlinkSync(`${units}/${LINK}`), `/${UNITS}/backup-drive@.service`)
  assert.is(readlinkSync(`${units}/timers.target.wants/backup.timer`), `/${UNITS}/backup.timer`)
  assert.not.ok(existsSync(`${root}/etc/udev`))
  assert.not.ok(existsSync(scenario.staging), 'an image has no staging')

  const before = inventory(root)
  const second = succeeded(await schedule('install', '--json'))
  assert.equal(inventory(root), before)
  const [result] = jsonLines(second, 'result')
  assert.is(result?.['outcome'], 'already installed')
  assert.equal(result?.['changed'], [])
  assert.match(succeeded(await schedule('status')).stdout, /as the configuration wants it/)
})

test('a drive that is not configured any more starts nothing', async () => {
  const scenario = await withDrive()
  const { root, units, schedule } = image(scenario)
  succeeded(await schedule('install', '--udev'))
  assert.match(
    readFileSync(`${root}/etc/udev/rules.d/90-backup-drive.rules`, 'utf8'),
    /My\\x20Disk/,
  )
  configure(scenario, ({ targets }) => (targets[1].label = 'Other'))
  const status = await schedule('status')
  assert.is(status.status, 3)
  assert.match(status.stdout, /not wanted any more[^]*brings it up to date/)
  succeeded(await schedule('install'))
  assert.not.ok(existsSync(`${units}/${WANTS}`))
  assert.ok(existsSync(`${units}/dev-disk-by\\x2dlabel-Other.device.wants`))
  const rules = readFileSync(`${root}/etc/udev/rules.d/90-backup-drive.rules`, 'utf8')
  assert.match(rules, /"Other"/, 'a rule that was asked for once is kept up to date')

  configure(scenario, ({ targets }) => targets.pop())
  succeeded(await schedule('install'))
  assert.equal(namesIn(root, /drive/), [])
  assert.is((await schedule('status')).status, 0)
})

test('a file of somebody else is refused, and nothing is written', async () => {
  const scenario = await withDrive()
  for (const make of [
    (units: string) => writeFileSync(`${units}/backup.timer`, '# mine\n[Timer]\n'),
    (units: string) => symlinkSync('/dev/null', `${units}/backup-drive@.service`),
    (units: string) => {
      mkdirSync(`${units}/timers.target.wants`)
      symlinkSync('/lib/systemd/system/backup.timer', `${units}/timers.target.wants/backup.timer`)
    },
  ]) {
    const { root, units, schedule } = image(scenario)
    mkdirSync(units, { recursive: true })
    make(units)
    const before = inventory(root)
    const refused = await schedule('install')
    assert.is(refused.status, 2)
    assert.match(refused.stderr, /was not written by backup schedule install/)
    assert.match(refused.stderr, /nothing was changed/)
    assert.equal(inventory(root), before)
    assert.match((await schedule('status')).stdout, /not ours/)
    succeeded(await schedule('remove'))
    assert.equal(inventory(root), before, 'and not removed either')
  }
})

test('what was installed for another configuration is not replaced', async () => {
  const first = await withDrive()
  const { root, schedule } = image(first)
  succeeded(await schedule('install'))
  const before = inventory(root)
  const second = await makeScenario()
  const refused = await second.run('schedule', 'install', '--system', '--root', root)
  assert.is(refused.status, 2)
  assert.match(refused.stderr, /another configuration/)
  assert.equal(inventory(root), before)
})

test('remove takes away what install wrote, and needs no configuration', async () => {
  const scenario = await withDrive()
  const { root, units, schedule } = image(scenario)
  mkdirSync(`${units}/timers.target.wants`, { recursive: true })
  writeFileSync(`${units}/backup-other.service`, 'mine\n')
  writeFileSync(`${units}/timers.target.wants/other.timer`, 'mine\n')
  mkdirSync(`${units}/backup.service.d`)
  writeFileSync(`${units}/backup.service.d/mine.conf`, '[Service]\nNice=1\n')
  const before = inventory(root)
  succeeded(await schedule('install'))
  const installed = inventory(root)
  const dry = succeeded(await schedule('remove', '--dry-run'))
  assert.match(dry.stdout, /would remove \S+backup\.timer/)
  assert.equal(inventory(root), installed)
  writeFileSync(scenario.configuration, '{')
  succeeded(await schedule('remove'))
  assert.equal(inventory(root), before)
  assert.match(succeeded(await schedule('remove')).stdout, /nothing of ours is installed/)
})

test('a dry run prints every file and the line for cron, and writes nothing', async () => {
  const scenario = await withDrive()
  const { root, schedule } = image(scenario)
  const { stdout } = succeeded(await schedule('install', '--dry-run'))
  assert.match(stdout, /^ExecStart=:.*--plugged-in %f/m)
  assert.match(stdout, /^or with cron: 17 \* \* \* \* {2}HOME=/m)
  assert.match(stdout, /backup\.timer: absent$/m)
  assert.equal([...inventory(root)], [])
  assert.not.ok(existsSync(scenario.staging))
})

test('says what is wrong with the words, and with labels', async () => {
  const scenario = await withDrive()
  for (const words of [[], ['installed'], ['install', 'x'], ['install', '--system', '--user']]) {
    assert.is((await scenario.run('schedule', ...words)).status, 2, words.join(' '))
  }
  const udev = await scenario.run('schedule', 'install', '--user', '--udev')
  assert.match(udev.stderr, /--udev goes with --system/)
  const { root, schedule } = image(scenario)
  configure(scenario, ({ targets }) => (targets[1].label = 'ü'.repeat(50)))
  const long = await schedule('install')
  assert.is(long.status, 2)
  assert.match(long.stderr, /too long[^]*uuid/)
  assert.equal([...inventory(root)], [])
})

/** A systemctl that says of itself what the test wants, and writes down what it was told. */
function standIn(
  scenario: Scenario,
  state: string,
): { calls: () => string[]; run: Scenario['run'] } {
  const directory = tempDirectory()
  const log = join(directory, 'calls')
  const script = `#!/bin/sh
echo "$*" >>'${log}'
case "$*" in
  *is-system-running*) echo ${state};;
  *show*backup.timer*) echo ActiveState=active; echo 'NextElapseUSecRealtime=Tue 2025-04-01 03:00:00 UTC';;
  *show*backup.service*) echo Result=exit-code; echo ExecMainStatus=3; echo ExecMainExitTimestamp=Tue;;
esac
`
  writeFileSync(join(directory, 'systemctl'), script)
  chmodSync(join(directory, 'systemctl'), 0o755)
  const environment = {
    ...scenario.environment,
    PATH: `${directory}:${process.env['PATH']}`,
    XDG_RUNTIME_DIR: directory,
  }
  return {
    calls: () => {
      const lines = existsSync(log) ? readFileSync(log, 'utf8').trimEnd().split('\n') : []
      return lines.map((line) => line.replace('--user --no-pager ', ''))
    },
    run: async (...words) => await runCli(words, { environment }),
  }
}

test('a running systemd reads what changed, and only then', async () => {
  const scenario = await withDrive()
  const { calls, run } = standIn(scenario, 'running')
  const first = succeeded(await run('schedule', 'install', '--user'))
  assert.match(first.stdout, /enable-linger/)
  assert.ok(existsSync(`${scenario.home}/.config/systemd/user/${LINK}`))
  assert.ok(existsSync(scenario.staging), 'a unit could not make it')
  const told = (line: string): boolean => line === 'daemon-reload' || line.startsWith('restart')
  assert.equal(calls().filter(told), ['daemon-reload', 'restart -- backup.timer'])
  succeeded(await run('schedule', 'install', '--user'))
  assert.is(calls().filter(told).length, 2)

  const status = succeeded(await run('schedule', 'status', '--user'))
  assert.match(status.stdout, /next: Tue 2025-04-01 03:00:00 UTC/)
  assert.match(status.stdout, /last run: exit-code \(exit code 3\)/)
  succeeded(await run('schedule', 'remove', '--user'))
  assert.ok(calls().includes('stop -- backup.timer'))
  assert.equal(namesIn(`${scenario.home}/.config/systemd`, /backup/), [])
})

test('where systemd does not run, the files are written and count later', async () => {
  const scenario = await withDrive()
  const { calls, run } = standIn(scenario, 'offline')
  assert.match(succeeded(await run('schedule', 'install', '--user')).stdout, /at its next start/)
  assert.ok(existsSync(`${scenario.home}/.config/systemd/user/backup.timer`))
  assert.not.ok(calls().some((line) => /reload|restart/.test(line)))
})

test.run()
