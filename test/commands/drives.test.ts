// Drives from plugging in to unplugging, on loop devices with real filesystems, by the built
// program.

import { spawn, spawnSync } from 'node:child_process'
import {
  appendFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'
import {
  attachDrive,
  cloneDrive,
  detachAll,
  type DriveImage,
  driveImage,
  type DriveType,
} from '../helpers/drive-image.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { randomFrom } from '../helpers/random.ts'
import { MAIN, type Outcome, runCli } from '../helpers/run-cli.ts'
import {
  assertSameTree,
  configure,
  jsonLines,
  makeScenario,
  type Properties,
  type Scenario,
} from '../helpers/scenario.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const drives = suite('commands/drives')

let labels = 0
/** No other test that runs now has a drive of that label. */
const newLabel = (): string =>
  `D${process.pid.toString(36)}${(labels++).toString(36)}`.toUpperCase()

const MOUNTS = '/proc/self/mountinfo'

/** A scenario whose only target is the drive, not prepared yet. */
async function scenarioWith(
  drive: Pick<DriveImage, 'label'>,
  change: Properties = {},
): Promise<Scenario> {
  const scenario = await makeScenario()
  writeFileSync(`${scenario.source}/letter`, 'dear reader')
  configure(scenario, (properties) => {
    properties['targets'] = [{ name: 't9', kind: 'drive', label: drive.label, ...change }]
    properties['notify'] = { desktop: false }
  })
  return scenario
}

async function succeed(run: Promise<Outcome>): Promise<Outcome> {
  const outcome = await run
  assert.is(outcome.status, 0, outcome.stderr + outcome.stdout)
  return outcome
}

const add = async (scenario: Scenario, name = 't9', ...words: string[]): Promise<Outcome> =>
  await succeed(scenario.run('drives', 'add', name, '--yes', ...words))

/** Mounts the drive for as long as `look` takes. */
function onDrive<Value>({ device }: DriveImage, look: (path: string) => Value): Value {
  const path = tempDirectory()
  const mount = spawnSync('mount', [device, path], { encoding: 'utf8' })
  assert.is(mount.status, 0, mount.stderr)
  try {
    return look(path)
  } finally {
    assert.is(spawnSync('umount', [path]).status, 0)
  }
}

const namesOn = (path: string): string[] =>
  readdirSync(path, { recursive: true, encoding: 'utf8' }).sort()

const isMounted = ({ device }: DriveImage): boolean =>
  readFileSync(MOUNTS, 'utf8').includes(` ${device} `)

const exportsOn = (path: string): string[] =>
  existsSync(`${path}/backup/machines/tester/data`)
    ? readdirSync(`${path}/backup/machines/tester/data`).filter((stamp) =>
        existsSync(`${path}/backup/machines/tester/data/${stamp}/manifest.tar.zst.age`),
      )
    : []

const restored = async (scenario: Scenario): Promise<string> => {
  const into = `${scenario.directory}/restored-${labels++}`
  await succeed(scenario.restore('--into', into))
  return `${into}${scenario.source}`
}

drives.after.each(detachAll)

if (canRunAsRoot('drives on loop devices')) {
  drives('a drive is shown, prepared, exported to, read, and left as it was found', async () => {
    const drive = driveImage({ label: newLabel(), sizeMib: 48 })
    onDrive(drive, (path) => writeFileSync(`${path}/holiday.jpg`, 'a picture'))
    const scenario = await makeScenario()
    const text = `# a comment\n${readFileSync(scenario.configuration, 'utf8')}`
    writeFileSync(scenario.configuration, text)
    writeFileSync(`${scenario.source}/letter`, 'dear reader')
    const words = ['add', 't9', '--device', drive.device]

    const shown = await succeed(scenario.run('drives', ...words, '--dry-run'))
    assert.match(shown.stdout, /on it: holiday\.jpg, lost\+found/)
    assert.match(shown.stdout, /would make a repository in the directory backup/)
    const unasked = await scenario.run('drives', ...words)
    assert.is(unasked.status, 4)
    assert.not.ok(onDrive(drive, (path) => existsSync(`${path}/backup`)))
    assert.is(readFileSync(scenario.configuration, 'utf8'), text)

    await succeed(scenario.run('drives', ...words, '--yes'))
    const changed = readFileSync(scenario.configuration, 'utf8')
    assert.match(changed, /^# a comment/)
    assert.match(changed, new RegExp(`uuid: ${drive.uuid}`))
    assert.not.ok(isMounted(drive))

    await succeed(scenario.collect())
    const exported = await succeed(scenario.external('--target', 't9', '--json'))
    const [result, end] = jsonLines(exported, 'result')
    assert.is(result?.['outcome'], 'exported')
    assert.is(result?.['drive'], 't9')
    assert.is(end?.['unplug'], 'safe')
    assert.is(end?.['drill'].result, 'good')
    assert.not.ok(isMounted(drive))
    assertSameTree(await restored(scenario), scenario.source)
    assert.not.ok(isMounted(drive))
    onDrive(drive, (path) => {
      assert.is(exportsOn(path).length, 1)
      assert.is(readFileSync(`${path}/holiday.jpg`, 'utf8'), 'a picture')
      const latest = readFileSync(`${path}/backup/machines/tester/data/latest`, 'utf8')
      assert.is(latest, `${exportsOn(path)[0]}\n`)
    })
    const listed = await succeed(scenario.run('drives'))
    assert.match(listed.stdout, /target t9: last export/)
    drive.detach()
    const absent = await succeed(scenario.run('drives'))
    assert.match(absent.stdout, /not plugged in: target t9: last seen .*, last export/)
    const missing = await scenario.external('--target', 't9')
    assert.is(missing.status, 10)
    assert.match(missing.stderr, /no drive is plugged in .*last seen/)
  })

  drives('nothing is written to a stranger, a copy, or a drive that was not prepared', async () => {
    const label = newLabel()
    const drive = driveImage({ label })
    const scenario = await scenarioWith(drive)
    await succeed(scenario.collect())
    const unprepared = await scenario.external()
    assert.is(unprepared.status, 1)
    assert.match(unprepared.stderr, /backup drives add t9/)
    assert.equal(
      onDrive(drive, (path) => readdirSync(path)),
      ['lost+found'],
    )
    await add(scenario)
    await succeed(scenario.external())

    const stranger = driveImage({ label })
    const two = await scenario.external()
    assert.is(two.status, 0, 'the one that is known is taken')
    drive.detach()
    const other = await scenario.external()
    assert.is(other.status, 1)
    assert.match(other.stderr, /has no repository/)

    // Somebody else's repository, on a drive of the same label.
    const theirs = await scenarioWith(stranger)
    await add(theirs)
    const before = onDrive(stranger, namesOn)
    const foreign = await scenario.external()
    assert.is(foreign.status, 1)
    assert.match(foreign.stderr, /another repository/)
    const examined = await scenario.run('doctor', '--target', 't9')
    assert.is(examined.status, 1)
    assert.match(examined.stdout, /^FAIL {2}target: .*another repository/m)
    assert.match((await scenario.run('drives')).stdout, /is not that drive/)
    const asked = await scenario.run('drives', 'add', 't9', '--yes', '--again')
    assert.is(asked.status, 1, asked.stderr)
    assert.match(asked.stderr, /machine named tester, with another key|stranger's repository/)
    assert.equal(onDrive(stranger, namesOn), before)
    stranger.detach()
  })

  drives(
    'a copy of the repository on another drive is refused, and one of the device too',
    async () => {
      const label = newLabel()
      const drive = driveImage({ label })
      const scenario = await scenarioWith(drive)
      await add(scenario)
      await succeed(scenario.collect())
      await succeed(scenario.external())
      const files = tempDirectory()
      onDrive(drive, (path) => cpSync(`${path}/backup`, `${files}/backup`, { recursive: true }))
      const byte = cloneDrive(drive)
      const both = await scenario.external()
      assert.is(both.status, 1)
      assert.match(both.stderr, /several filesystems have the label/)
      byte.detach()
      drive.detach()
      const copy = driveImage({ label })
      onDrive(copy, (path) => cpSync(`${files}/backup`, `${path}/backup`, { recursive: true }))
      writeFileSync(`${scenario.source}/more`, 'more')
      await succeed(scenario.collect())
      const refused = await scenario.external()
      assert.is(refused.status, 1)
      assert.match(refused.stderr, /copy of the repository: its UUID/)
      assert.is(onDrive(copy, exportsOn).length, 1)
      // The person knows better: the drive was put into another filesystem.
      await add(scenario, 't9', '--again')
      await succeed(scenario.external())
      assert.is(onDrive(copy, exportsOn).length, 2)
    },
  )

  drives('a link on the drive leads nowhere', async () => {
    const drive = driveImage({ label: newLabel() })
    const elsewhere = tempDirectory()
    onDrive(drive, (path) => symlinkSync(elsewhere, `${path}/backup`))
    const scenario = await scenarioWith(drive)
    const refused = await scenario.run('drives', 'add', 't9', '--yes')
    assert.is(refused.status, 1)
    assert.match(refused.stderr, /is no directory of the drive itself/)
    assert.equal(readdirSync(elsewhere), [])
    assert.not.ok(isMounted(drive))
  })

  drives('a full drive is said before anything is written, a read-only one as well', async () => {
    const drive = driveImage({ label: newLabel(), sizeMib: 24 })
    const scenario = await scenarioWith(drive)
    await add(scenario)
    await succeed(scenario.collect())
    await succeed(scenario.external())
    writeFileSync(`${scenario.source}/large`, randomFrom('large').bytes(40 * 2 ** 20))
    await succeed(scenario.collect())
    const full = await scenario.external()
    assert.is(full.status, 1)
    assert.match(full.stderr, /are missing/)
    assert.is(onDrive(drive, exportsOn).length, 1)
    assert.not.ok(isMounted(drive))

    rmSync(`${scenario.source}/large`)
    configure(scenario, (properties) => {
      properties['backup_sets'][0].suspect_loss = 1
    })
    await succeed(scenario.collect())
    const path = tempDirectory()
    assert.is(spawnSync('mount', ['-o', 'ro', drive.device, path]).status, 0)
    const readOnly = await scenario.external()
    assert.is(readOnly.status, 1)
    assert.match(readOnly.stderr, /read-only/i)
    assert.ok(isMounted(drive), 'what was mounted before stays mounted')
    assert.is(spawnSync('umount', [path]).status, 0)
    await succeed(scenario.external())
  })

  for (const type of ['ext4', 'xfs'] satisfies DriveType[]) {
    drives(`a ${type} drive that dies in the middle costs nothing but the run`, async () => {
      const drive = driveImage({ label: newLabel(), type, sizeMib: 400 })
      const scenario = await scenarioWith(drive, { bundle_size: '1 MiB' })
      await add(scenario)
      await succeed(scenario.collect())
      await succeed(scenario.external())
      mkdirSync(`${scenario.source}/many`)
      for (let i = 0; i < 60; i++) {
        writeFileSync(`${scenario.source}/many/${i}`, randomFrom(`${i}`).bytes(2 * 2 ** 20))
      }
      await succeed(scenario.collect())
      const path = tempDirectory()
      assert.is(spawnSync('mount', [drive.device, path]).status, 0)
      const run = scenario.external()
      const begun = (): boolean =>
        spawnSync('find', [path, '-name', 'data-0003*']).stdout.length > 0
      for (let wait = 0; wait < 500 && !begun(); wait++) await sleep(20)
      assert.is(spawnSync('xfs_io', ['-x', '-c', 'shutdown', path]).status, 0)
      const died = await run
      assert.is(died.status, 1, died.stderr + died.stdout)
      assert.match(died.stderr, /earlier exports are unharmed/)
      assert.match(died.stderr, type === 'ext4' ? /fsck\.ext4/ : /xfs_repair/)
      assert.not.match(died.stdout, /safe to unplug/)
      spawnSync('umount', ['--lazy', path])
      await succeed(scenario.external())
      assert.is(onDrive(drive, exportsOn).length, 2)
      assertSameTree(await restored(scenario), scenario.source)
    })
  }

  // exFAT as it comes from the factory, and NTFS, are mounted through FUSE here.
  for (const type of ['exfat', 'ntfs', 'btrfs'] satisfies DriveType[]) {
    drives(`a drive with ${type}, as it is`, async () => {
      const drive = driveImage({ label: newLabel(), type, sizeMib: 64 })
      const scenario = await scenarioWith(drive, { afterwards: 'unmount' })
      await add(scenario)
      configure(scenario, (properties) => {
        properties['retention'] = { external: 1 }
      })
      symlinkSync('letter', `${scenario.source}/a link: with "odd" <characters>?`)
      await succeed(scenario.collect())
      await succeed(scenario.external())
      appendFileSync(`${scenario.source}/letter`, ', again')
      await succeed(scenario.collect())
      const second = await succeed(scenario.external('--json'))
      assert.is(jsonLines(second, 'result')[0]?.['pruned'].removedExports.length, 1)
      await succeed(scenario.restore('--verify'))
      assertSameTree(await restored(scenario), scenario.source)
      assert.not.ok(isMounted(drive))
    })
  }

  drives(
    'of a pool the drive that waits longest is taken, and each has its own history',
    async () => {
      const [blue, red] = [driveImage({ label: newLabel() }), driveImage({ label: newLabel() })]
      const scenario = await scenarioWith(blue)
      configure(scenario, (properties) => {
        const pool = [
          { name: 'blue', label: blue.label },
          { name: 'red', label: red.label },
        ]
        properties['targets'] = [{ name: 'vault', kind: 'drive', pool }]
      })
      const which = await scenario.run('drives', 'add', 'vault', '--yes')
      assert.is(which.status, 2)
      assert.match(which.stderr, /vault\/blue, vault\/red/)
      await add(scenario, 'vault/blue')
      await add(scenario, 'vault/red')
      const driveOf = (outcome: Outcome): unknown => jsonLines(outcome, 'result').at(-1)?.['drive']
      await succeed(scenario.collect())
      const first = driveOf(await succeed(scenario.external('--json')))
      assert.is(first, 'blue')
      assert.is(driveOf(await succeed(scenario.external('--json'))), 'red')
      for (const drive of [blue, red]) assert.is(onDrive(drive, exportsOn).length, 1)
      red.detach()
      assert.is(driveOf(await succeed(scenario.external('--json'))), 'blue')
      // What one drive has says nothing of the other that is plugged in.
      writeFileSync(`${scenario.source}/new`, 'new')
      await succeed(scenario.collect())
      await succeed(scenario.external())
      const back = attachDrive(red)
      await succeed(scenario.run('--plugged-in', back.device))
      assert.is(onDrive(back, exportsOn).length, 2)
      await succeed(scenario.run('--plugged-in', back.device))
      const status = await scenario.run('status')
      assert.match(status.stdout, /blue/)
    },
  )

  drives('plugging it in exports whatever the schedule says, and waits its turn', async () => {
    const drive = driveImage({ label: newLabel(), sizeMib: 64 })
    const scenario = await scenarioWith(drive)
    await add(scenario)
    await succeed(scenario.run())
    writeFileSync(`${scenario.source}/new`, 'new')
    await succeed(scenario.collect())
    const scheduled = await succeed(scenario.run('--json'))
    assert.is(jsonLines(scheduled, 'result').at(-1)?.['outcome'], 'nothing due')

    const stranger = driveImage({ label: newLabel() })
    const ignored = await scenario.run('--plugged-in', stranger.device)
    assert.is(ignored.status, 75)
    stranger.detach()

    const held = await holdLock(scenario)
    let said = ''
    const waiting = runCli(['--plugged-in', drive.device], {
      environment: scenario.environment,
      heard: (text) => {
        said += text
      },
    })
    for (let wait = 0; wait < 1000 && !said.includes('waiting: '); wait++) await sleep(20)
    assert.is(onDrive(drive, exportsOn).length, 1)
    held.kill()
    const plugged = await waiting
    assert.is(plugged.status, 0, plugged.stderr)
    assert.match(plugged.stderr + plugged.stdout, /waiting: /)
    assert.is(onDrive(drive, exportsOn).length, 2)
    await succeed(scenario.run('--plugged-in', 'any'))
    assert.is(onDrive(drive, exportsOn).length, 2)
  })

  drives('only the first target that is there gets the exports', async () => {
    const drive = driveImage({ label: newLabel() })
    const scenario = await scenarioWith(drive)
    configure(scenario, (properties) => {
      properties['export_to'] = 'first'
      properties['targets'][0].priority = 1
      properties['targets'].push({ name: 'disk', kind: 'directory', path: scenario.target })
    })
    await add(scenario)
    drive.detach()
    await succeed(scenario.run())
    assert.ok(existsSync(`${scenario.target}/repository.json`))
    const again = await succeed(scenario.run('--json'))
    assert.is(jsonLines(again, 'result').at(-1)?.['outcome'], 'nothing due')
  })

  drives('a drive in place of another has none of its exports', async () => {
    const label = newLabel()
    const drive = driveImage({ label })
    const scenario = await scenarioWith(drive)
    await add(scenario)
    await succeed(scenario.run())
    drive.detach()
    const other = driveImage({ label })
    await succeed(scenario.run('drives', 'forget', 't9'))
    await add(scenario)
    const status = await scenario.run('status')
    assert.match(status.stdout, /target t9: drive\n +data +never/)
    await succeed(scenario.run('--plugged-in', other.device))
    assert.is(onDrive(other, exportsOn).length, 1)
  })

  drives('two copies of one drive do not share what is known of one', async () => {
    const drive = driveImage({ label: newLabel(), sizeMib: 48 })
    const scenario = await scenarioWith(drive)
    await add(scenario)
    const generation = async (text: string): Promise<void> => {
      writeFileSync(`${scenario.source}/file`, randomFrom(text).bytes(100_000))
      await succeed(scenario.collect())
    }
    await generation('first')
    await succeed(scenario.external())
    const copy = cloneDrive(drive)
    drive.detach()
    await generation('second')
    await succeed(scenario.external())
    copy.detach()
    const back = attachDrive(drive)
    await succeed(scenario.external())
    back.detach()
    const again = attachDrive(copy)
    await generation('third')
    await succeed(scenario.external())
    const drill = await scenario.run('drill', '--share', '100%')
    assert.is(drill.status, 0, drill.stdout + drill.stderr)
    await succeed(scenario.restore('--verify'))
    assert.is(onDrive(again, exportsOn).length, 3)
  })

  drives('safe to unplug is said only of what is mounted nowhere', async () => {
    const drive = driveImage({ label: newLabel() })
    const scenario = await scenarioWith(drive, { afterwards: 'unmount' })
    await add(scenario)
    await succeed(scenario.collect())
    const path = tempDirectory()
    assert.is(spawnSync('mount', [drive.device, path]).status, 0)
    // As a sandboxed service runs: what it unmounts stays mounted for everybody else.
    const sandbox = ['unshare', '--mount', '--propagation', 'slave', process.execPath, MAIN]
    const environment = { ...scenario.environment }
    const inside = await runCli(['external', '--json'], { environment, program: sandbox })
    assert.is(inside.status, 3, inside.stderr)
    assert.match(inside.stderr, /is still mounted at/)
    assert.is(jsonLines(inside, 'result').at(-1)?.['unplug'], 'still mounted')
    assert.is(exportsOn(path).length, 1, 'the export is there all the same')
    // A sandbox has what was mounted before it read-only.
    const lines = 'mount -o remount,bind,ro "$1" && shift && exec "$@"'
    const readOnly = ['unshare', '--mount', '--propagation', 'slave', 'sh', '-c', lines, 'sh', path]
    appendFileSync(`${scenario.source}/letter`, ', once more')
    await succeed(scenario.collect())
    const program = [...readOnly, process.execPath, MAIN]
    await runCli(['external'], { environment, program })
    assert.is(exportsOn(path).length, 2)
    assert.is(spawnSync('umount', [path]).status, 0)
  })

  drives('with only the first target, what is no drive of ours is passed over', async () => {
    const drive = driveImage({ label: newLabel() })
    const scenario = await scenarioWith(drive, { priority: 1 })
    configure(scenario, (properties) => {
      properties['export_to'] = 'first'
      properties['targets'].push({ name: 'disk', kind: 'directory', path: scenario.target })
    })
    const run = await scenario.run()
    assert.is(run.status, 1, 'the stranger is said')
    assert.ok(existsSync(`${scenario.target}/repository.json`))
    assert.equal(onDrive(drive, namesOn), ['lost+found'])
  })

  drives('what cannot be told apart when it is plugged in is told to the person', async () => {
    const label = newLabel()
    const [one, other] = [driveImage({ label }), driveImage({ label })]
    const scenario = await scenarioWith(one)
    const log = `${scenario.directory}/log`
    configure(scenario, (properties) => {
      properties['notify'] = { desktop: false, log }
    })
    const run = await scenario.run('--plugged-in', other.device)
    assert.is(run.status, 1)
    assert.match(readFileSync(log, 'utf8'), /several filesystems have the label/i)
  })

  drives('prepares only the drive that is configured under the name', async () => {
    const [drive, other] = [driveImage({ label: newLabel() }), driveImage({ label: newLabel() })]
    const scenario = await scenarioWith(drive)
    const refused = await scenario.run('drives', 'add', 't9', '--device', other.device, '--yes')
    assert.is(refused.status, 1)
    assert.match(refused.stderr, /is not the drive that is configured as t9/)
    assert.equal(onDrive(other, namesOn), ['lost+found'])
  })

  drives('interrupted, it unmounts the drive, and the next run needs no help', async () => {
    const drive = driveImage({ label: newLabel(), sizeMib: 300 })
    const scenario = await scenarioWith(drive)
    await add(scenario)
    for (let i = 0; i < 40; i++) {
      writeFileSync(`${scenario.source}/${i}`, randomFrom(`${i}`).bytes(3 * 2 ** 20))
    }
    await succeed(scenario.collect())
    for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
      const environment = { PATH: process.env['PATH'] ?? '', ...scenario.environment }
      const child = spawn(process.execPath, [MAIN, 'external'], { env: environment })
      let stderr = ''
      child.stderr.on('data', (text: Buffer) => (stderr += text.toString()))
      const place = `/run/backup/${drive.uuid}`
      const isPacking = (): boolean =>
        spawnSync('find', [place, '-name', 'data-*.partial']).stdout.length > 0
      for (let wait = 0; wait < 500 && !isPacking(); wait++) await sleep(10)
      child.kill(signal)
      const status = await new Promise((resolve) => child.once('close', resolve))
      if (signal === 'SIGKILL') continue
      assert.is(status, 130, stderr)
      assert.match(stderr, /earlier exports are unharmed/)
      assert.not.match(stderr, /still in use/)
      assert.not.ok(isMounted(drive))
      assert.equal(onDrive(drive, exportsOn), [])
    }
    await succeed(scenario.external())
    assert.not.ok(isMounted(drive), 'what the killed run mounted as well')
    assert.is(onDrive(drive, exportsOn).length, 1)
    const dry = await succeed(scenario.run('drives', 'forget', 't9', '--dry-run'))
    assert.match(dry.stdout, /would forget t9/)
    await succeed(scenario.external())
  })

  drives('no export is built upon a bundle that is known to be damaged', async () => {
    const drive = driveImage({ label: newLabel(), sizeMib: 48 })
    const scenario = await scenarioWith(drive)
    await add(scenario)
    writeFileSync(`${scenario.source}/photo`, randomFrom('photo').bytes(300_000))
    await succeed(scenario.collect())
    await succeed(scenario.external())
    onDrive(drive, (path) => {
      const [stamp] = exportsOn(path)
      const bundle = `${path}/backup/machines/tester/data/${stamp}/data-0001.tar.zst.age`
      const bytes = readFileSync(bundle)
      bytes.fill(0, 100_000, 150_000)
      writeFileSync(bundle, bytes)
    })
    assert.is((await scenario.run('drill', '--share', '100%')).status, 13)
    assert.is((await scenario.restore('--verify')).status, 13)
    const idle = await succeed(scenario.external())
    assert.match(idle.stderr, /a bundle there is known to be damaged/)
    appendFileSync(`${scenario.source}/letter`, ', more')
    await succeed(scenario.collect())
    const run = await scenario.external()
    assert.match(run.stderr + run.stdout, /exported/)
    await succeed(scenario.restore('--verify', '--date', 'latest'))
    assertSameTree(await restored(scenario), scenario.source)
  })

  drives('ejects a drive, and forgets one', async () => {
    const drive = driveImage({ label: newLabel() })
    const scenario = await scenarioWith(drive)
    await add(scenario)
    const path = tempDirectory()
    assert.is(spawnSync('mount', [drive.device, path]).status, 0)
    const busy = spawn('sleep', ['60'], { cwd: path })
    await sleep(100)
    const refused = await scenario.run('drives', 'eject', 't9')
    assert.is(refused.status, 1, refused.stdout)
    assert.ok(isMounted(drive))
    busy.kill('SIGKILL')
    await sleep(100)
    const ejected = await succeed(scenario.run('drives', 'eject', 't9'))
    assert.match(ejected.stderr + ejected.stdout, /safe to unplug/)
    assert.not.ok(isMounted(drive))
    await succeed(scenario.run('drives', 'forget', 't9'))
    assert.is((await scenario.run('drives', 'forget', 't9')).status, 1)
  })
}

/** Another run that goes on until it is killed. */
async function holdLock({ staging }: Scenario) {
  const module = new URL('../../lib/work/staging.js', import.meta.url).href
  const text = `
    import { acquireRunLock } from ${JSON.stringify(module)}
    acquireRunLock({ staging: ${JSON.stringify(staging)}, description: 'a test', waitMs: 0 })
    console.log('held')
    setTimeout(() => {}, 60_000)`
  const child = spawn(process.execPath, ['--input-type=module', '-e', text])
  await new Promise((resolve) => child.stdout.once('data', resolve))
  return child
}

drives('says what is wrong with its words', async () => {
  const scenario = await makeScenario()
  for (const words of [
    ['add'],
    ['bogus', 't9'],
    ['add', 't9', 'x'],
    ['add', 'T 9'],
    ['add', 'nope'],
  ]) {
    const { status, stderr } = await scenario.run('drives', ...words)
    assert.is(status, 2, words.join(' '))
    assert.match(stderr, /hint/)
  }
  const directory = await scenario.run('drives', 'add', 'drive')
  assert.is(directory.status, 2)
  assert.match(directory.stderr, /is of kind directory, not a drive/)
  assert.ok(existsSync(MAIN))
})

drives.run()
