// The records of this machine: what is recorded, what of it stays the same, what happens where a
// program lacks or fails, and that nothing else is touched.

import {
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { suite } from 'uvu'
import { parseConfiguration } from '../../lib/machine/config.ts'
import { readBuiltinSet } from '../../lib/machine/config-system.ts'
import type { MissingPath } from '../../lib/model/collection.ts'
import type { NoticeEvent, ReportEvent } from '../../lib/model/report.ts'
import { collectSet } from '../../lib/work/collect.ts'
import { readCollection } from '../../lib/work/staging.ts'
import { PROGRAM_RECORDS } from '../../lib/work/system-programs.ts'
import { recordSystem } from '../../lib/work/system-record.ts'
import * as assert from '../helpers/assert.ts'
import { configurationOf, setConfiguration } from '../helpers/configuration.ts'
import { inventory } from '../helpers/scenario.ts'
import { withPrograms } from '../helpers/stand-in.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const system = suite('work/system-record')

interface Scene {
  readonly records: string
  readonly notices: NoticeEvent[]
  readonly record: (change?: { uid?: number }) => Promise<readonly MissingPath[]>
  readonly text: (file: string) => string
}

function scene(): Scene {
  const directory = tempDirectory()
  const records = `${directory}/records`
  const notices: NoticeEvent[] = []
  const report = (event: ReportEvent): void => void (event.kind === 'notice' && notices.push(event))
  const set = setConfiguration({ name: 'system', sources: [records], records })
  const home = setConfiguration({ name: 'home', sources: ['/home'] })
  const configuration = {
    ...configurationOf(set, { staging: `${directory}/staging`, machine: 'box' }),
    backupSets: [home, set],
  }
  return {
    records,
    notices,
    record: async (change = {}) => {
      const call = { configuration, set, records, report, signal: undefined, ...change }
      return await recordSystem(call)
    },
    text: (file) => readFileSync(`${records}/${file}`, 'utf8'),
  }
}

/** Every program that is asked, silent; so that a test says what there is. */
function programs(own: Readonly<Record<string, string>>): Record<string, string> {
  const silent = [...PROGRAM_RECORDS.map(({ program }) => program), 'sfdisk', 'btrfs']
  const lsblk = `echo '{"blockdevices":[]}'`
  return { ...Object.fromEntries(silent.map((name) => [name, 'exit 0'])), lsblk, ...own }
}

const DISKS = JSON.stringify({
  blockdevices: [
    {
      ...{ name: 'sda', path: '/dev/sda', type: 'disk', size: 1e9, pttype: 'dos', rm: false },
      children: [
        {
          ...{ name: 'sda1', path: '/dev/sda1', type: 'part', size: 1e8, fstype: 'vfat' },
          ...{ uuid: 'A1B2-C3D4', label: 'EFI', mountpoint: '/boot/efi' },
        },
        {
          ...{ name: 'sda2', path: '/dev/sda2', type: 'part', size: 9e8, fstype: 'ext4' },
          ...{ uuid: '0f3c6d4e-7f0b-4a55-8d3c-2f1a9a0f6b11', label: "it's $(id)" },
        },
      ],
    },
    { name: 'sdb', path: '/dev/sdb', type: 'disk', size: 1e9, pttype: 'dos', rm: true },
    { name: 'loop7', path: '/dev/loop7', type: 'loop', size: 1e6, rm: false },
  ],
})

system('a second run on the same machine writes nothing', async () => {
  const { records, record } = scene()
  assert.equal(await record(), [])
  const files = [...inventory(records)].filter(([, what]) => what !== 'directory')
  assert.ok(files.length > 5, 'this machine has something to say')
  for (const [file] of files) utimesSync(`${records}/${file}`, 1000, 1000)
  assert.equal(await record(), [])
  for (const [file] of files) assert.is(statSync(`${records}/${file}`).mtimeMs, 1_000_000, file)
})

system('what changes by itself is left out', async () => {
  const { record, text } = scene()
  const answers = (day: number): Record<string, string> =>
    programs({
      ip: `case "$2" in
        address) echo '[{"ifname":"eth0","address":"02:00","addr_info":[
          {"local":"10.0.0.${day}","prefixlen":24,"scope":"global","dynamic":true},
          {"local":"192.0.2.5","prefixlen":24,"scope":"global","valid_life_time":${day}}]},
          {"ifname":"veth${day}","address":"02:0${day}","addr_info":[]}]' ;;
        route) echo '[{"dst":"default","gateway":"10.0.0.${day}","dev":"eth0","protocol":"dhcp"}]' ;;
      esac`,
      findmnt: `echo '/ /dev/sda2 ext4 rw'; echo '/media/me/T${day} /dev/sdb1 ext4 rw'`,
    })
  await withPrograms(answers(1), async () => assert.equal(await record(), []))
  const first = [text('network/addresses.json'), text('network/routes.json')]
  assert.match(first[0] ?? '', '192.0.2.5/24')
  assert.is(text('disks/mounts.txt'), '/ /dev/sda2 ext4 rw\n')
  await withPrograms(answers(2), async () => assert.equal(await record(), []))
  assert.equal([text('network/addresses.json'), text('network/routes.json')], first)
  assert.is(text('disks/mounts.txt'), '/ /dev/sda2 ext4 rw\n')
})

system('the tables of disks that stay are recorded, and how to make them again', async () => {
  const { record, records, text } = scene()
  const asked = programs({ lsblk: `cat <<'END'\n${DISKS}\nEND`, sfdisk: 'echo "label: dos of $2"' })
  await withPrograms(asked, async () => assert.equal(await record({ uid: 0 }), []))
  assert.is(text('disks/sda.sfdisk'), 'label: dos of /dev/sda\n')
  assert.not.ok(existsSync(`${records}/disks/sdb.sfdisk`), 'a drive that is plugged in')
  const guide = text('RESTORE.md')
  assert.match(guide, 'mkfs.vfat -i A1B2C3D4 -n EFI /dev/sda1')
  assert.match(guide, /mkfs\.ext4 -U 0f3c6d4e\S+ -L \$'it\\x27s \\x24\\x28id\\x29' \/dev\/sda2/)
  assert.match(guide, '\nTABLE=$RECORDS/disks/sda.sfdisk\n')

  await withPrograms(asked, async () => assert.equal(await record({ uid: 1000 }), []))
  assert.not.ok(existsSync(`${records}/disks/sda.sfdisk`), 'a user cannot read it')
})

system('RESTORE.md has the steps of the page with the values of this machine', async () => {
  const { record, records, text } = scene()
  await withPrograms(programs({}), async () => assert.equal(await record(), []))
  const guide = text('RESTORE.md')
  assert.match(guide, '\nMACHINE=box\n')
  assert.match(guide, '\nSET=system\n')
  assert.match(guide, '\nDATA=home\n')
  assert.match(guide, `\nRECORDS=/restore${records}\n`)
  assert.not.match(guide, /\]\(\S+\.md\)/)
  assert.not.match(guide, '## Tried')
  // Every variable of the page's first block is one that is filled in, or the user's.
  const page = readFileSync(new URL('../../../docs/system-restore.md', import.meta.url), 'utf8')
  const names = [...page.matchAll(/^([A-Z]+)=/gm)].map(([, name]) => name)
  const known = ['DATA', 'DISK', 'IDENTITY', 'MACHINE', 'RECORDS', 'REPOSITORY', 'SET', 'TABLE']
  assert.equal(names.sort(), [...known, 'TARGET'])
})

system('a program that fails leaves its earlier record, and is named', async () => {
  const { record, records, text, notices } = scene()
  await withPrograms(programs({ pacman: 'echo "$1"' }), async () => void (await record()))
  assert.is(text('packages/pacman-manual.txt'), '-Qqe\n')
  assert.equal(notices, [])
  await withPrograms(programs({ pacman: 'echo half; exit 3' }), async () => {
    assert.equal(await record(), [], 'no failure of the run')
  })
  assert.is(text('packages/pacman-manual.txt'), '-Qqe\n')
  assert.match(text('records.json'), /"pacman -Qqe",\s+"state": "failed",\s+"why": "exit code 3"/)
  assert.equal(
    notices.map(({ code }) => code),
    ['NOT_RECORDED'],
  )

  await withPrograms(programs({}), async () => void (await record()))
  assert.not.ok(existsSync(`${records}/packages/pacman-manual.txt`), 'what is no more, goes')
})

system('records are for their owner alone, and what is not ours stays', async () => {
  const { record, records } = scene()
  mkdirSync(records, { mode: 0o755 })
  chmodSync(records, 0o755)
  writeFileSync(`${records}/mine`, 'mine')
  await withPrograms(programs({}), async () => void (await record()))
  assert.is(statSync(records).mode & 0o777, 0o700)
  assert.is(statSync(`${records}/RESTORE.md`).mode & 0o777, 0o600)
  assert.is(readFileSync(`${records}/mine`, 'utf8'), 'mine')
})

system('what an earlier run recorded goes, also where the run that meant to was stopped', async () => {
  const { record, records, text } = scene()
  await withPrograms(programs({ uname: 'echo box' }), async () => void (await record()))
  assert.is(text('system/kernel.txt'), 'box\n')
  await withPrograms(programs({}), async () => {
    renameSync(`${records}/system`, `${records}/aside`)
    writeFileSync(`${records}/system`, 'in the way')
    assert.is((await record()).length, 1)
    rmSync(`${records}/system`)
    renameSync(`${records}/aside`, `${records}/system`)
    assert.equal(await record(), [])
  })
  assert.not.ok(existsSync(`${records}/system/kernel.txt`))
})

system('records that cannot be written make the collection incomplete', async () => {
  const directory = tempDirectory()
  mkdirSync(`${directory}/data`)
  writeFileSync(`${directory}/data/x`, 'x')
  const records = `${directory}/records`
  // No file can take this name.
  mkdirSync(`${records}/RESTORE.md/in-the-way`, { recursive: true })
  const set = setConfiguration({ name: 'system', sources: [`${directory}/data`, records], records })
  const configuration = configurationOf(set, { staging: `${directory}/staging` })
  const nowMs = Date.UTC(2026, 0, 2)
  await withPrograms(programs({}), async () => {
    const outcome = await collectSet({ configuration, set, report: () => {}, nowMs })
    assert.not.ok(outcome.complete)
    assert.equal(
      outcome.missing.map(({ path, why }) => [`/${path}`, /could not be written/.test(why)]),
      [[records, true]],
    )
    const { entries } = readCollection({ ...configuration, set: 'system', stamp: outcome.stamp })
    assert.ok(
      entries.some(({ path }) => path.endsWith('data/x')),
      'the rest is collected',
    )
  })
})

system('a dry run makes no records, and misses none', async () => {
  const directory = tempDirectory()
  mkdirSync(`${directory}/data`)
  writeFileSync(`${directory}/data/x`, 'x')
  const records = `${directory}/records`
  const set = setConfiguration({ name: 'system', sources: [`${directory}/data`, records], records })
  const configuration = configurationOf(set, { staging: `${directory}/staging` })
  const call = { configuration, set, report: () => {}, nowMs: Date.UTC(2026, 0, 2) }
  const preview = await collectSet({ ...call, dryRun: true })
  assert.ok(preview.complete)
  assert.equal(readdirSync(directory), ['data'])
  await withPrograms(programs({}), async () => {
    const first = await collectSet(call)
    assert.ok(first.complete)
    const second = await collectSet({ ...call, nowMs: call.nowMs + 86_400_000 })
    assert.is(second.copiedFiles, 0, 'a quiet day copies nothing')
    const { entries } = readCollection({ ...configuration, set: 'system', stamp: second.stamp })
    assert.ok(entries.some(({ path }) => `/${path}` === `${records}/RESTORE.md`))
  })
})

const surroundings = { environment: {}, home: '/home/me' }
const fail = (): never => {
  throw new Error('it was refused')
}

system('the built-in set is root’s whole system, and a user’s records', () => {
  const here = () => fail
  const of = { options: surroundings, staging: '/srv/staging', here }
  const all = readBuiltinSet(undefined, { ...of, uid: 0, isThere: () => true })
  assert.equal(all.sources.slice(-1), ['/var/lib/backup-system'])
  assert.ok(all.sources.includes('/etc'))
  const few = readBuiltinSet(undefined, { ...of, uid: 0, isThere: () => false })
  assert.equal(few.sources, ['/etc', '/var/lib/backup-system'])
  const user = readBuiltinSet(undefined, { ...of, uid: 1000 })
  assert.equal(user.sources, ['/home/me/.local/state/backup-system'])
  const within = { ...of, staging: '/var/lib' }
  assert.throws(() => readBuiltinSet(undefined, { ...within, uid: 0 }), 'it was refused')
})

system('a set without sources has to be a built-in one', async () => {
  const parse = async (set: string): Promise<unknown> => {
    const text = `staging: /s\nbackup_sets: [${set}]\n`
    return await parseConfiguration({ path: '/c', text, hostName: 'box', ...surroundings })
  }
  const messageOf = async (set: string): Promise<string> => {
    return await parse(set).then(
      () => '',
      (error: Error) => error.message,
    )
  }
  assert.is(await messageOf('{ name: system, builtin: system }'), '')
  assert.match(await messageOf('{ name: a }'), 'but sources is missing')
  assert.match(await messageOf('{ name: a, sources: [/a], records: /r }'), 'only a set with')
  assert.match(
    await messageOf('{ name: a, builtin: system, records: /s/r }'),
    'would lie in staging',
  )
})

system.run()
