// Units as systemd's own programs see them: names as systemd-escape writes them, labels as udev
// does, every unit verified. Whether they do what they say on a booted system is not tested here.

import { spawnSync } from 'node:child_process'
import { chmodSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import type {
  Configuration,
  DriveConfiguration,
  HookConfiguration,
} from '../../lib/machine/config.ts'
import {
  driveInstances,
  encodeUdevName,
  escapeUnitPath,
  quoteUnitWord,
  udevUuids,
} from '../../lib/model/unit-escape.ts'
import { writeSchedule } from '../../lib/work/schedule-files.ts'
import {
  cronLine,
  launchdSchedule,
  type Schedule,
  type ScheduleRequest,
  systemdSchedule,
  UDEV_RULES,
} from '../../lib/work/schedule-units.ts'
import * as assert from '../helpers/assert.ts'
import { configurationOf, NOTIFY_NOBODY, setConfiguration } from '../helpers/configuration.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const test = suite('schedule units')

/** Whether the program is here; in CI it has to be. */
function has(program: string): boolean {
  const isThere = spawnSync('sh', ['-c', `command -v ${program}`]).status === 0
  if (isThere) return true
  if (process.env['CI'] === 'true') throw new Error(`${program}: in CI nothing is skipped`)
  process.stdout.write(`SKIP: needs ${program}\n`)
  return false
}

function drive(change: Partial<DriveConfiguration>): Configuration['targets'][number] {
  return {
    kind: 'drive',
    name: 'blue',
    bundleSizeBytes: 1,
    compressionLevel: 3,
    priority: 0,
    parityPercent: 0,
    drill: 'auto',
    path: 'backup',
    drives: [{ name: 'blue', label: undefined, uuid: undefined, ...change }],
    isPool: false,
    everyMs: undefined,
    afterwards: 'as_found',
  }
}

const UUID = '1b4e28ba-2fa1-11d2-883f-0016d3cca427'

function request(
  change: Partial<ScheduleRequest> & { readonly with?: Partial<Configuration> } = {},
): ScheduleRequest {
  const set = setConfiguration({ sources: ['/home/me'] })
  return {
    configuration: configurationOf(set, {
      staging: '/srv/backup',
      path: '/etc/backup/config.yaml',
      targets: [drive({ uuid: UUID })],
      ...change.with,
    }),
    text: 'staging: /srv/backup\n',
    scope: 'system',
    program: { node: process.execPath, main: '/opt/backup/main.js' },
    environment: {},
    home: '/root',
    withUdev: false,
    ...change,
  }
}

function text(schedule: Schedule, name: string): string {
  const file = schedule.files.find(({ path }) => path.endsWith(`/${name}`))
  assert.ok(file, `${name} is there`)
  return file.text
}

function line(unit: string, name: string): string | undefined {
  return unit.split('\n').find((one) => one.startsWith(`${name}=`))
}

/** Numbers that are the same in every run. */
function* numbers(): Generator<number, never> {
  for (let state = 12345; ;) {
    state = (state * 1103515245 + 12345) % 2 ** 31
    yield state
  }
}

const LETTERS = [...'abcXYZ019 -_.:\\/\'"%$@#+=~()[]{}!&*?;,<>|`^', 'ü', 'ß', '漢', '😀']

function labels(count: number): string[] {
  const random = numbers()
  const pick = (below: number): number => Math.floor((random.next().value / 2 ** 31) * below)
  return Array.from({ length: count }, () => {
    return Array.from({ length: 1 + pick(8) }, () => LETTERS[pick(LETTERS.length)]).join('')
  })
}

test('names of device units are those of systemd-escape', () => {
  if (!has('systemd-escape')) return
  const paths = [
    ...labels(400).map((label) => `/dev/disk/by-label/${encodeUdevName(label)}`),
    ...labels(400)
      .map((label) => `/${label}`)
      .filter((path) => !/(^|\/)\.\.?(\/|$)/.test(path)),
    '/dev/disk/by-uuid/A1B2-C3D4',
    '/.hidden/x',
    '/',
  ]
  const { stdout } = spawnSync('systemd-escape', ['--path', '--', ...paths], { encoding: 'utf8' })
  assert.equal(paths.map(escapeUnitPath), stdout.trimEnd().split(' '))
  assert.is(escapeUnitPath('/dev/disk/by-label/T9'), 'dev-disk-by\\x2dlabel-T9')
  assert.equal(driveInstances({ label: 'My Disk', uuid: undefined }), [
    'dev-disk-by\\x2dlabel-My\\x5cx20Disk',
  ])
})

if (canRunAsRoot('labels as blkid reads them')) {
  test('labels are encoded as udev encodes them', () => {
    const image = join(tempDirectory(), 'image')
    const tried = [...labels(300), 'My Disk', '50% $x "a"', "it's", 'Größe'].filter((label) => {
      return Buffer.byteLength(label) <= 16 && label.trim() === label && !label.includes('/')
    })
    assert.ok(tried.length > 40)
    for (const label of tried.slice(-40)) {
      rmSync(image, { force: true })
      const made = spawnSync('mkfs.ext4', ['-q', '-F', '-L', label, image, '256'])
      assert.is(made.status, 0, String(made.stderr))
      const { stdout } = spawnSync('blkid', ['-p', '-o', 'udev', image], { encoding: 'utf8' })
      const found = /^ID_FS_LABEL_ENC=(.*)$/m.exec(stdout)?.[1]
      assert.is(encodeUdevName(label), found, label)
    }
  })
}

test('a UUID is looked for in the spelling that udev gives it', () => {
  assert.equal(udevUuids('a1b2-c3d4'), ['A1B2-C3D4'])
  assert.equal(udevUuids(UUID.toUpperCase()), [UUID])
  assert.equal(udevUuids('01d9a2b3c4d5e6f7'), ['01D9A2B3C4D5E6F7', '01d9a2b3c4d5e6f7'])
  assert.equal(udevUuids('0123456789012345'), ['0123456789012345'])
})

test('a label that is too long for a unit asks for the UUID, which is not', () => {
  const label = 'ü'.repeat(40)
  assert.is(driveInstances({ label, uuid: undefined }), undefined)
  assert.is(driveInstances({ label, uuid: UUID })?.length, 1)
  assert.throws(
    () => systemdSchedule(request({ with: { targets: [drive({ label })] } })),
    (error: unknown) => error instanceof BackupError && /uuid/.test(error.hint ?? ''),
  )
})

test('each drive has a link from its device unit, and a name that fits the template', () => {
  const { links } = systemdSchedule(
    request({ with: { targets: [drive({ uuid: 'a1b2-c3d4', label: 'x' })] } }),
  )
  const instance = 'dev-disk-by\\x2duuid-A1B2\\x2dC3D4'
  assert.equal(links[1], {
    path: `/etc/systemd/system/${instance}.device.wants/backup-drive@${instance}.service`,
    target: '/etc/systemd/system/backup-drive@.service',
  })
  assert.is(links.length, 2)
  const none = systemdSchedule(request({ with: { targets: [] } }))
  assert.is(none.links.length, 1)
  assert.not.ok(none.files.some(({ path }) => path.includes('backup-drive')))
})

/** Writes the units and asks systemd what is wrong with them; empty for nothing. */
function verify(schedule: Schedule): string {
  const root = tempDirectory()
  writeSchedule(schedule, root)
  const directory = join(root, schedule.directory)
  const instance = schedule.links[1]?.path.replace(/^.*\//, '') ?? 'backup.timer'
  const units = ['backup.service', 'backup.timer', 'backup-failed@backup.service.service', instance]
  const run = spawnSync('systemd-analyze', ['verify', '--man=no', ...units], {
    encoding: 'utf8',
    env: { ...process.env, SYSTEMD_UNIT_PATH: `${directory}:`, LC_ALL: 'C' },
  })
  return run.status === 0 ? run.stderr : `failed: ${run.stderr}`
}

const ODD = '/srv/o "q\' \\n %h $HOME é ;#@NODE@/--x'

function oddRequest(scope: 'system' | 'user'): ScheduleRequest {
  return request({
    scope,
    withUdev: true,
    program: { node: process.execPath, main: `${ODD}/main.js` },
    environment: { ODD },
    text: 'staging: $ODD/staging',
    with: {
      path: `${ODD}/config.yaml`,
      staging: `${ODD}/staging`,
      targets: [drive({ label: '50% "My\\Disk" $x' })],
      notify: {
        ...NOTIFY_NOBODY,
        log: { path: `${ODD}/log/x`, maxBytes: 1, keep: 1 },
        mail: { to: [], from: undefined, sendmail: 'sendmail' },
      },
    },
  })
}

test('systemd finds nothing wrong with any unit, with odd paths either', () => {
  if (!has('systemd-analyze')) return
  for (const scope of ['system', 'user'] as const) {
    assert.is(verify(systemdSchedule(request({ scope }))), '', scope)
    assert.is(verify(systemdSchedule(oddRequest(scope))), '', `odd ${scope}`)
  }
  // That it would have found something.
  const schedule = systemdSchedule(request())
  const files = schedule.files.map((file) => {
    return { ...file, text: file.text.replace('Type=oneshot', 'Type=oneshot\nRestart=always') }
  })
  assert.match(verify({ ...schedule, files }), /^failed: [^]*Restart/)
})

test('each word of a unit is written so that systemd reads what was meant', () => {
  const unit = text(systemdSchedule(oddRequest('system')), 'backup.service')
  const quoted = '"-/srv/o \\"q\' \\\\n %%h $HOME é ;#@NODE@/--x/staging"'
  assert.ok(line(unit, 'ReadWritePaths')?.includes(quoted), line(unit, 'ReadWritePaths'))
  assert.ok(unit.includes('\nEnvironment="ODD=/srv/o \\"q\' \\\\n %%h $HOME é ;#@NODE@/--x"\n'))
  assert.is(quoteUnitWord('a\nb'), undefined)
  const broken = request({ with: { path: '/etc/a\nExecStart=/bin/evil' } })
  assert.throws(() => systemdSchedule(broken), /cannot be named in a unit/)
  const program = { node: '/opt/a"b/node', main: '/x' }
  assert.throws(() => systemdSchedule(request({ program })), /cannot be named in a unit/)
})

test('the sandbox is as tight as docs/plug-in.md says', () => {
  if (!has('systemd-analyze')) return
  const docs = readFileSync(new URL('../../../docs/plug-in.md', import.meta.url), 'utf8')
  const root = tempDirectory()
  const schedule = systemdSchedule(request())
  writeSchedule(schedule, root)
  for (const name of ['backup.service', 'backup-drive@.service', 'backup-failed@.service']) {
    const args = ['security', '--offline=true', '--no-pager', join(root, schedule.directory, name)]
    const run = spawnSync('systemd-analyze', args, {
      encoding: 'utf8',
      env: { ...process.env, LC_ALL: 'C' },
    })
    const score = /exposure level for \S+: ([0-9.]+)/.exec(run.stdout)?.[1] ?? run.stderr
    const said = new RegExp(`\\| \`${name}\` \\| ([0-9.]+) \\|`).exec(docs)?.[1]
    // Versions of systemd count differently, by a little.
    assert.ok(Math.abs(Number(score) - Number(said)) <= 0.3, `${name}: ${score}, not ${said}`)
  }
})

test('every protection that is off has its reason above it', () => {
  for (const scope of ['system', 'user'] as const) {
    for (const { path, text: unit } of systemdSchedule(request({ scope })).files) {
      if (!path.endsWith('.service')) continue
      const lines = unit.split('\n')
      const off = lines.flatMap((one, at) => (/^[A-Z]\w+=(no|all)$/.test(one) ? [at] : []))
      for (const at of off) {
        let above = at - 1
        while (/=(no|all)$/.test(lines[above] ?? '')) above -= 1
        assert.match(lines[above] ?? '', /^# /, `${path}: ${lines[at]}`)
      }
      if (path.includes('/backup.service')) assert.ok(off.length > 4)
    }
  }
})

const NO_HOOK: HookConfiguration = setConfiguration().hooks.collect
const HOOK: HookConfiguration = { ...NO_HOOK, before: ['/bin/true'] }

test('the sandbox leaves what this configuration needs, and no more', () => {
  const unit = (change: Parameters<typeof request>[0]): string => {
    return text(systemdSchedule(request(change)), 'backup.service')
  }
  const set = (sources: readonly string[], hooks = { collect: NO_HOOK, export: NO_HOOK }) => {
    return { backupSets: [setConfiguration({ sources, hooks })] }
  }
  const plain = unit({})
  assert.is(line(plain, 'ProtectSystem'), 'ProtectSystem=strict')
  assert.is(line(plain, 'ProtectHome'), 'ProtectHome=read-only')
  assert.is(line(plain, 'PrivateTmp'), 'PrivateTmp=yes')
  assert.is(line(plain, 'ProtectKernelTunables'), 'ProtectKernelTunables=yes')
  const paths = 'ReadWritePaths="-/srv/backup" "-/etc/backup" "-/etc/lvm" "-/run/lock" "-/run/lvm"'
  assert.is(line(plain, 'ReadWritePaths'), paths)

  const hooked = unit({ with: set(['/home'], { collect: NO_HOOK, export: HOOK }) })
  assert.is(line(hooked, 'ProtectSystem'), 'ProtectSystem=yes')
  assert.is(line(hooked, 'ProtectHome'), 'ProtectHome=no')
  assert.is(line(unit({ with: set(['/etc/backup/']) }), 'ProtectSystem'), 'ProtectSystem=yes')
  assert.is(line(unit({ with: set(['/etc/backups']) }), 'ProtectSystem'), 'ProtectSystem=strict')
  for (const source of ['/', '/tmp', '/var', '/var/tmp/x']) {
    assert.is(line(unit({ with: set([source]) }), 'PrivateTmp'), 'PrivateTmp=no', source)
  }
  const target = {
    ...drive({ uuid: UUID }),
    afterwards: 'power_off',
  } as Configuration['targets'][number]
  const off = unit({ with: { targets: [target] } })
  assert.is(line(off, 'ProtectKernelTunables'), 'ProtectKernelTunables=no')
  const mail = { to: [], from: undefined, sendmail: 'sendmail' }
  const mailed = { with: { notify: { ...NOTIFY_NOBODY, mail } } }
  assert.match(line(unit(mailed), 'ReadWritePaths') ?? '', /"-\/var\/spool"/)

  const mine = unit({ scope: 'user' })
  assert.is(line(mine, 'NoNewPrivileges'), 'NoNewPrivileges=yes')
  assert.is(line(mine, 'SystemCallFilter'), 'SystemCallFilter=@system-service')
  // Each of these forbids set-user-id programs, too.
  const mayMail = unit({ scope: 'user', ...mailed })
  for (const name of [
    'NoNewPrivileges',
    'LockPersonality',
    'RestrictRealtime',
    'RestrictNamespaces',
  ]) {
    assert.is(line(mayMail, name), `${name}=no`)
  }
  assert.is(line(mayMail, 'SystemCallFilter'), 'SystemCallFilter=')
})

test('the timer comes often enough for the schedule, and seldom otherwise', () => {
  const daily = text(systemdSchedule(request()), 'backup.timer')
  assert.is(line(daily, 'OnCalendar'), 'OnCalendar=hourly')
  const schedule = { ...setConfiguration().schedule, external: 'hourly' as const }
  const backupSets = [setConfiguration({ sources: ['/home'], schedule })]
  const hourly = text(systemdSchedule(request({ with: { backupSets } })), 'backup.timer')
  assert.is(line(hourly, 'OnCalendar'), 'OnCalendar=*:0/15')
  assert.is(line(hourly, 'RandomizedDelaySec'), 'RandomizedDelaySec=1min')
  assert.match(cronLine(request({ with: { backupSets } })), /^\*\/15 \* \* \* \* {2}/)
})

test('units get the variables that the configuration refers to, and no secret', () => {
  const schedule = systemdSchedule(
    request({
      text: '# $COMMENT\nstaging: $DBACKUP/x\nsources: [${DATA}, $$PRICE, $TOKEN_FILE]\n',
      environment: {
        DBACKUP: '/srv',
        DATA: '/d 1',
        PRICE: '5',
        COMMENT: 'c',
        TOKEN_FILE: 'secret',
        BACKUP_PASSPHRASE: 'secret',
        BACKUP_RETENTION: '9',
        PATH: '/bin',
      },
    }),
  )
  const lines = text(schedule, 'backup.service').match(/^Environment=.*$/gm)
  assert.equal(lines, [
    'Environment="HOME=/root"',
    'Environment="BACKUP_RETENTION=9"',
    'Environment="DATA=/d 1"',
    'Environment="DBACKUP=/srv"',
  ])
  assert.equal(schedule.withheld, ['TOKEN_FILE'])
  assert.not.ok(schedule.files.some((file) => file.text.includes('secret')))
  const implied = request({
    environment: { DBACKUP: '/srv/backup/' },
    with: { staging: '/srv/backup/' },
  })
  assert.match(text(systemdSchedule(implied), 'backup.service'), /^Environment="DBACKUP=/m)
})

test('udev is told to keep the desktop off, only where that is asked for', () => {
  assert.not.ok(systemdSchedule(request()).files.some(({ path }) => path === UDEV_RULES))
  const targets = [drive({ label: 'My "Disk"' }), drive({ uuid: '01d9a2b3c4d5e6f7' })]
  const rules = text(
    systemdSchedule(request({ withUdev: true, with: { targets } })),
    '90-backup-drive.rules',
  )
  const block = 'ACTION=="add|change", SUBSYSTEM=="block"'
  const keepOff = 'ENV{UDISKS_AUTO}="0"'
  assert.equal(rules.match(/^ACTION.*$/gm), [
    `${block}, ENV{ID_FS_LABEL_ENC}=="My\\x20\\x22Disk\\x22", ${keepOff}`,
    `${block}, ENV{ID_FS_UUID_ENC}=="01D9A2B3C4D5E6F7|01d9a2b3c4d5e6f7", ${keepOff}`,
  ])
  const mine = systemdSchedule(request({ scope: 'user', withUdev: true }))
  assert.not.ok(mine.files.some(({ path }) => path === UDEV_RULES))
})

test('the line for cron runs exactly this program with exactly this configuration', () => {
  const directory = tempDirectory()
  const node = join(directory, "no%de '$x")
  writeFileSync(node, '#!/bin/sh\nprintf "%s\\n" "$DATA" "$@"\n')
  chmodSync(node, 0o755)
  const path = "/srv/50%/it's/$HOME/`x`.yaml"
  const program = { node, main: '/opt/m a.js' }
  const environment = { DATA: '%d "x"' }
  const odd = request({ program, environment, text: 'a: $DATA', with: { path } })
  const command = cronLine(odd).replace(/^(\S+ ){5} */, '')
  assert.not.match(command, /(^|[^\\])%/, 'a bare % would end the command')
  // cron takes the backslashes away and hands the rest to sh.
  const run = spawnSync('sh', ['-c', command.replaceAll('\\%', '%')], { encoding: 'utf8' })
  assert.is(run.stdout, `${environment.DATA}\n${program.main}\n--config\n${path}\n`, run.stderr)
  assert.throws(() => cronLine(request({ with: { path: '/a\nb' } })), /crontab/)
})

test('property lists hold any path, and their comment does not end early', () => {
  const { files } = launchdSchedule(oddRequest('user'))
  assert.equal(
    files.map(({ path }) => path),
    [
      '/root/Library/LaunchAgents/local.backup.run.plist',
      '/root/Library/LaunchAgents/local.backup.drive.plist',
    ],
  )
  for (const { text: list } of files) {
    const comments = [...list.matchAll(/<!--([^]*?)-->/g)].map((match) => match[1] ?? '')
    assert.ok(comments.length >= 2)
    for (const comment of comments) assert.not.match(comment, /--/)
    assert.not.match(list.replaceAll('#@NODE@/', ''), /@[A-Z_]+@/)
    assert.ok(list.includes(`<string>${ODD}/config.yaml</string>`))
  }
  const [run] = launchdSchedule(request({ with: { path: '/a&<b>/c.yaml' } })).files
  assert.ok(run?.text.includes('<string>/a&amp;&lt;b&gt;/c.yaml</string>'))
})

interface Told {
  readonly told: string
  readonly logged: string
}

/** Runs the script of backup-failed@.service among programs that stand in for systemd's. */
function tellFailure(facts: {
  readonly result: string
  readonly status: string
  readonly runtime: string
  readonly sessions?: string
}): Told {
  const directory = tempDirectory()
  const told = join(directory, 'told')
  const programs = {
    systemctl: `case "$*" in *Result*) echo ${facts.result};; *) echo ${facts.status};; esac`,
    loginctl: `case $1 in
  list-sessions) printf '${facts.sessions ?? '3 x\\n'}';;
  *) printf '%s\\n' Name=-anna User=1000 Type=wayland State=active Remote=no;;
esac`,
    runuser: `printf '%s\\n' "$@" >>'${told}'`,
    'notify-send': `printf '%s\\n' "$@" >>'${told}'`,
  }
  for (const [name, script] of Object.entries(programs)) {
    writeFileSync(join(directory, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 })
  }
  const script = join(directory, 'backup-failed.sh')
  writeFileSync(script, text(systemdSchedule(request()), 'backup-failed.sh'))
  const unit = 'backup-drive@dev-disk-by\\x2dlabel-T9.service'
  const run = spawnSync('sh', [script, unit], {
    encoding: 'utf8',
    env: { PATH: `${directory}:${process.env['PATH']}`, RUNTIME_DIRECTORY: facts.runtime },
  })
  assert.is(run.status, 0, run.stderr)
  return { told: existsSync(told) ? readFileSync(told, 'utf8') : '', logged: run.stderr }
}

test('only a run that ended without a word is told of, and once a day', () => {
  const silent: Told = { told: '', logged: '' }
  for (const status of ['1', '3', '4', '10', '11', '12', '13', '75', '130']) {
    const runtime = tempDirectory()
    assert.equal(tellFailure({ result: 'exit-code', status, runtime }), silent, status)
  }
  assert.equal(tellFailure({ result: 'success', status: '0', runtime: tempDirectory() }), silent)
  for (const [result, status] of [
    ['signal', '9'],
    ['oom-kill', '9'],
    ['timeout', '0'],
    ['exit-code', '203'],
    ['exit-code', '2'],
    ['exit-code', '70'],
    ['exit-code', '0'],
  ] as const) {
    const runtime = tempDirectory()
    const first = tellFailure({ result, status, runtime })
    assert.match(first.logged, /^<3>The backup ended without a word: backup-drive@\S+ /)
    assert.ok(first.told.includes('backup-drive@dev-disk-by\\x2dlabel-T9.service: '), first.told)
    if (process.getuid?.() === 0)
      assert.match(first.told, /^-u\n-anna\n--\nenv\nXDG_RUNTIME_DIR=\/run\/user\/1000\n/)
    const second = tellFailure({ result, status, runtime })
    assert.is(second.told, '')
    assert.is(second.logged, first.logged, 'the journal gets it each time')
  }
})

if (canRunAsRoot('telling the users of every session')) {
  test('where nobody was there to be told, the next one is told', () => {
    const facts = { result: 'oom-kill', status: '9', runtime: tempDirectory() }
    assert.is(tellFailure({ ...facts, sessions: '' }).told, '')
    assert.match(tellFailure(facts).told, /oom-kill/)
  })
}

test.run()
