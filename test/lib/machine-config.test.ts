// The configuration: what loads, what each mistake says word for word, and that schema, example and
// manual agree.

import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { Ajv } from 'ajv'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { escapeVariables, expandPattern } from '../../lib/machine/config-expand.ts'
import {
  defaultConfigurationPath,
  findConfiguration,
  loadConfiguration,
  parseConfiguration,
} from '../../lib/machine/config.ts'
import type { Configuration } from '../../lib/machine/config.ts'
import { formatDuration, formatSize, parseSize } from '../../lib/model/amount.ts'
import { cleanName, isValidName, machineName } from '../../lib/model/names.ts'
import { nearestWord } from '../../lib/model/nearest.ts'
import * as assert from '../helpers/assert.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const ROOT = new URL('../../../', import.meta.url)
const file = (name: string) => readFileSync(new URL(name, ROOT), 'utf8')

const HOME = '/home/me'
const ENVIRONMENT = { DBACKUP: '/srv/backup/', DDATA: '/data', EMPTY: '' }

type Environment = Readonly<Record<string, string | undefined>>

function parse(text: string, environment: Environment = ENVIRONMENT): Promise<Configuration> {
  return parseConfiguration({
    path: '/c/config.yaml',
    text,
    home: HOME,
    environment,
    hostName: 'Box.lan',
  })
}

/** `message | hint` of the error that reading `text` throws. */
async function mistake(text: string, environment: Environment = ENVIRONMENT): Promise<string> {
  try {
    await parse(text, environment)
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    assert.is(error.exitCode, 2)
    return error.hint === undefined ? error.message : `${error.message} | ${error.hint}`
  }
  return 'no error'
}

const load = suite('machine/config: load')

const NO_HOOKS = { before: undefined, after: undefined, onFailure: undefined, timeoutMs: 600_000 }

/** What a set is that says nothing but its name and sources. */
const DEFAULTS = {
  records: undefined,
  method: 'rsync',
  filters: {
    globs: [],
    regexes: [],
    ignoreFiles: [],
    skipCaches: false,
    skipMarkers: [],
    maxSizeBytes: undefined,
    oneFilesystem: false,
  },
  snapshot: 'auto',
  keepSnapshot: false,
  suspectLoss: 0.5,
  bandwidthBytesPerSecond: undefined,
  nice: 0,
  ionice: 'normal',
  hooks: { collect: NO_HOOKS, export: NO_HOOKS },
  schedule: {
    incremental: 'daily',
    full: 'weekly',
    external: 'weekly',
    onBattery: 'run',
    onMetered: 'run',
  },
  retention: { local: 7, external: 5, keep: {} },
}

load('a set takes what it says for itself, and what is said for all', async () => {
  const text = `
exclusions: ["*.swp"]
schedule: { external: monthly, on_metered: skip }
retention: { local: 9, keep: { monthly: all, within: 30d }, min_free: 10% }
backup_sets:
  - { name: a, sources: [/a], exclusions: ["x"] }
  - name: b
    sources: [/b]
    schedule: { incremental: hourly }
    retention: { local: 48, keep: { hourly: 24 } }
    filters: { globs: ["~/x/*"], max_size: 1 KiB }
    bandwidth_limit: 2 MiB
    hooks: { collect: { before: [a, b], timeout: 90s } }
`
  const { backupSets, minFree } = await parse(text)
  const [a, b] = backupSets
  assert.equal(minFree, { share: 0.1 })
  assert.equal(a?.exclusions, ['x', '*.swp'])
  assert.equal([a?.schedule.incremental, a?.schedule.external], ['daily', 'monthly'])
  assert.equal(a?.retention, {
    local: 9,
    external: 5,
    keep: { monthly: 'all', withinMs: 30 * 86_400_000 },
  })
  assert.equal([b?.schedule.incremental, b?.schedule.onMetered], ['hourly', 'skip'])
  assert.equal(b?.retention, { local: 48, external: 5, keep: { hourly: 24 } })
  assert.equal([b?.filters.globs, b?.filters.maxSizeBytes], [['/home/me/x/*'], 1024])
  assert.is(b?.bandwidthBytesPerSecond, 2 * 1024 * 1024)
  assert.equal(b?.hooks.collect, { ...NO_HOOKS, before: ['a', 'b'], timeoutMs: 90_000 })
})

load('the shared example loads as it stands, with DBACKUP set', async () => {
  assert.equal(await parse(file('config/backup-config.json')), {
    path: '/c/config.yaml',
    machine: 'box',
    staging: '/srv/backup',
    backupSets: [
      { ...DEFAULTS, name: 'data', sources: ['/data'], exclusions: ['tmp/*', '*.tmp', '*.log'] },
      {
        ...DEFAULTS,
        name: 'config',
        sources: ['/home/me/.config', '/home/me/env.sh'],
        exclusions: ['/home/me/.config/Code/Cache/*'],
      },
    ],
    targets: [],
    recipients: [],
    identity: undefined,
    signingKey: '/c/signing.key',
    trustedSigningKeys: [],
    minFree: undefined,
    exportTo: 'all',
    notify: {
      desktop: true,
      onSuccess: false,
      onMissing: true,
      repeatMs: 86_400_000,
      lowSpace: { share: 0.05 },
      log: undefined,
      syslog: false,
      mail: undefined,
      webhook: undefined,
      ping: undefined,
    },
    metrics: undefined,
    score: {
      wanted: { copies: 3, media: 2, offSite: 1 },
      isConfigured: false,
      provenWithinMs: 90 * 86_400_000,
    },
  })
})

load('the example of everything loads', async () => {
  const configuration = await parse(file('config/example.yaml'))
  assert.is(configuration.machine, 'laptop')
  assert.is(configuration.signingKey, '/home/me/.config/backup/signing.key')
  const any = {
    bundleSizeBytes: 256 * 1024 * 1024,
    compressionLevel: 3,
    priority: 100,
    parityPercent: 0,
    drill: 'auto',
  }
  const remote = { ...any, streams: 4, spoolLimitBytes: 2 ** 31 }
  const drive = { ...any, kind: 'drive', path: 'backup', isPool: false, everyMs: undefined }
  assert.equal(configuration.targets, [
    {
      ...drive,
      name: 't9',
      drives: [{ name: 't9', label: 'T9', uuid: undefined }],
      everyMs: 14 * 86_400_000,
      afterwards: 'power_off',
      priority: 1,
      parityPercent: 10,
      verify: { olderThanMs: 30 * 86_400_000, timeMs: 600_000, limitBytes: 20 * 2 ** 30 },
    },
    {
      ...drive,
      name: 'vault',
      isPool: true,
      drives: [
        { name: 'blue', label: 'VAULT-BLUE', uuid: undefined },
        { name: 'red', label: undefined, uuid: 'a1b2-c3d4', offSite: true },
      ],
      afterwards: 'as_found',
    },
    { ...any, name: 'disk', kind: 'directory', path: '/media/me/DISK/backup', mustBeMounted: true },
    {
      ...remote,
      ...{ name: 'cloud', kind: 's3', bucket: 'my-backups', path: 'home', region: 'eu-central-1' },
      ...{ endpoint: undefined, isPathStyle: false },
      ...{ profile: 'backup', adminProfile: 'backup-admin' },
      ...{ storageClass: 'GLACIER_IR', hotBelowBytes: 64 * 2 ** 20, lockMs: 90 * 86_400_000 },
      ...{ costLimit: 5, pricesPath: undefined, bandwidthLimitBytes: 2 * 2 ** 20 },
    },
    {
      ...remote,
      ...{ name: 'nas', kind: 'sftp', host: 'nas.home', port: 22, user: 'backup', path: 'backups' },
      offSite: false,
      hostKey: 'SHA256:uNiVztksCsDhcc0u9e8BrrJXVGDaMzuSPf4eBlRDvsU',
      ...{ keyPath: '/home/me/.ssh/backup_ed25519', bandwidthLimitBytes: undefined },
    },
  ])
  assert.equal(configuration.score, {
    wanted: { copies: 3, media: 2, offSite: 1 },
    isConfigured: true,
    provenWithinMs: 90 * 86_400_000,
  })
  const { notify } = configuration
  assert.equal(notify.log, {
    path: '/home/me/.local/state/backup/backup.log',
    maxBytes: 10 * 1024 * 1024,
    keep: 5,
  })
  assert.equal(notify.ping, { urlFile: '/home/me/.config/backup/ping.url' })
  assert.equal(notify.webhook, { url: 'https://example.org/hook' })
  assert.equal(notify.mail?.to, ['me@example.org'])
  assert.is(configuration.trustedSigningKeys[0]?.machine, 'desktop')
  assert.match(file('config/example.yaml'), /# snapshot: required/)
})

load('sources stay as they were written, all other paths are normalized', async () => {
  const configuration = await parse(
    `
staging: /srv//x/../backup/
identity: ${'${DBACKUP}'}keys/id
backup_sets: [{ name: a, sources: [/data/, /x//y/../z, "$$/a", "~"], exclusions: ["~", "*.$", "a~", "$DDATA/x"] }]
`.replace('"$$/a"', '"/$$$$/a"'),
  )
  assert.is(configuration.staging, '/srv/backup')
  assert.is(configuration.identity, '/srv/backup/keys/id')
  assert.equal(configuration.backupSets[0]?.sources, ['/data/', '/x//y/../z', '/$/a', '/home/me'])
  assert.equal(configuration.backupSets[0]?.exclusions, ['/home/me', '*.$', 'a~', '/data/x'])
})

load('BACKUP_RETENTION goes before retention.external', async () => {
  const text = 'backup_sets: [{ name: a, sources: [/a] }]\nretention: { external: 9 }'
  const external = async (value: string) => {
    const { backupSets } = await parse(text, { ...ENVIRONMENT, BACKUP_RETENTION: value })
    return backupSets[0]?.retention.external
  }
  assert.is(await external(''), 9)
  assert.is(await external('12'), 12)
})

load('the size of a bundle may be text or bytes, from 1 MiB to 1 GiB', async () => {
  for (const [size, bytes] of [
    ['1 MiB', 2 ** 20],
    ['1GiB', 2 ** 30],
    ['1.5 MiB', 1572864],
    ['2097152', 2097152],
  ]) {
    const { targets } = await parse(withTarget(`bundle_size: ${size}`))
    assert.is(targets[0]?.bundleSizeBytes, bytes)
  }
})

load.run()

const find = suite('machine/config: find')

find(
  'the option goes before the variable, that before the home, that before the system',
  async () => {
    const home = tempDirectory()
    const system = join(home, 'etc.yaml')
    const own = defaultConfigurationPath(home)
    const look = (option: string | undefined, environment: Environment) => {
      return findConfiguration({ option, environment, home, system })
    }
    writeFileSync(system, '')
    assert.is(await look(undefined, {}), system)
    mkdirSync(dirname(own), { recursive: true })
    copyFileSync(system, own)
    assert.is(await look(undefined, {}), own)
    assert.is(await look(undefined, { BACKUP_CONFIG: '/not/there' }), '/not/there')
    assert.is(await look('/nor/this', { BACKUP_CONFIG: '/not/there' }), '/nor/this')
  },
)

find('none anywhere is an error that says where it looked', async () => {
  const options = {
    option: undefined,
    environment: {},
    home: '/nowhere',
    system: '/nowhere/etc.yaml',
  }
  const error = await thrown(findConfiguration(options))
  assert.is(error.code, 'CONFIG_ABSENT')
  assert.is(
    error.message,
    'there is no configuration: neither "/nowhere/.config/backup/config.yaml" '
      + 'nor "/nowhere/etc.yaml" exists',
  )
  assert.is(error.hint, 'make one with `backup init`, or name one with --config FILE')
})

find('a named file that is absent, a directory, too large or no text is an error', async () => {
  const directory = tempDirectory()
  const write = (name: string, content: string | Buffer) =>
    writeFileSync(join(directory, name), content)
  write('large', '#'.repeat(1024 * 1024 + 1))
  write('latin1', Buffer.from('# caf\xe9', 'latin1'))
  const read = async (name: string) => {
    const path = join(directory, name)
    const error = await thrown(
      loadConfiguration({ path, environment: {}, home: HOME, hostName: 'a' }),
    )
    return `${error.code} ${error.message.replace(directory, '').replace('""', '"/"')}`
  }
  assert.is(await read('none'), 'CONFIG_ABSENT there is no configuration at "/none"')
  assert.is(await read(''), 'CONFIG_INVALID the configuration "/" cannot be read (EISDIR)')
  assert.is(await read('large'), 'CONFIG_INVALID the configuration "/large" is larger than 1 MiB')
  assert.is(await read('latin1'), 'CONFIG_INVALID the configuration "/latin1" is not UTF-8 text')
})

find.run()

const mistakes = suite('machine/config: mistakes')

const SET = 'backup_sets: [{ name: a, sources: [/a] }]\n'

function withTarget(property: string): string {
  return `${SET}targets: [{ name: t, kind: directory, path: /t, ${property} }]`
}

/** What is written, and the error after `/c/config.yaml:`. */
const GOLDEN: readonly (readonly [string, string])[] = [
  ['', '1:1: expected a mapping of properties, found nothing'],
  ['- 1', '1:1: expected a mapping of properties, found a list'],
  ['a: [', '1:5: flow sequence in block collection must be sufficiently indented and end with a ]'],
  ['a: 1\na: 2', '2:1: map keys must be unique'],
  ['a: !foo 1', '1:4: unresolved tag: !foo'],
  ['a: *foo', '1:1: unresolved alias (the anchor must be set before the alias): foo'],
  ['--- {}\n--- {}', '2:1: expected one document, found several'],
  ['machine: a', '1:1: expected a mapping of properties, but backup_sets is missing'],
  ['backup_sts: []', '1:1: backup_sts: unknown property | did you mean backup_sets?'],
  [
    'backup_sets:\n  - name: a\n    sources: [/a]\n  - name: b\n    sorces: [/b]\n',
    '5:5: backup_sets[1].sorces: unknown property | did you mean sources?',
  ],
  [
    'backup_sets:\n  - name: a\n    sources: [/a]\n  - name: b\n    sources: /b\n',
    '5:5: backup_sets[1].sources: expected a list of paths, found text',
  ],
  [
    `${SET}retention: { forever: 1 }`,
    '2:14: retention.forever: unknown property | properties here are local, external, keep, min_free',
  ],
  ['backup_sets: []', '1:1: backup_sets: expected a list of sets, found an empty list'],
  [
    'backup_sets: [{ name: a }]',
    '1:15: backup_sets[0]: expected a set with a name and sources, but sources is missing',
  ],
  [
    'backup_sets:\n  - name: a\n    sources:\n',
    '3:5: backup_sets[0].sources: expected a list of paths, found nothing',
  ],
  [
    'backup_sets: [{ name: a, sources: [""] }]',
    '1:36: backup_sets[0].sources[0]: expected a path, found empty text',
  ],
  [
    'backup_sets: [{ name: a, sources: [3] }]',
    '1:36: backup_sets[0].sources[0]: expected a path, found 3',
  ],
  [
    'backup_sets: [{ name: a, sources: [data] }]',
    '1:36: backup_sets[0].sources[0]: expected an absolute path | begin it with /, ~/ or a variable that does',
  ],
  [
    'backup_sets: [{ name: a, sources: ["/a\\0b"] }]',
    '1:36: backup_sets[0].sources[0]: expected text without a NUL character',
  ],
  [
    'backup_sets: [{ name: a, sources: [$NONE/x] }]',
    '1:36: backup_sets[0].sources[0]: the variable NONE is not set | set NONE, or write $$ for a dollar sign',
  ],
  [
    'backup_sets: [{ name: a, sources: ["${EMPTY}/x"] }]',
    '1:36: backup_sets[0].sources[0]: the variable EMPTY is not set | set EMPTY, or write $$ for a dollar sign',
  ],
  [
    'backup_sets: [{ name: a, sources: [/a], exclusions: [$RECYCLE.BIN] }]',
    '1:54: backup_sets[0].exclusions[0]: the variable RECYCLE is not set | set RECYCLE, or write $$ for a dollar sign',
  ],
  [
    'backup_sets: [{ name: My Data, sources: [/a] }]',
    '1:17: backup_sets[0].name: expected a name of a-z, 0-9, _ and -, at most 64 characters, found other text'
      + ' | did you mean my-data?',
  ],
  [
    'backup_sets: [{ name: nul, sources: [/a] }]',
    '1:17: backup_sets[0].name: the name nul cannot be used: it is a device on Windows',
  ],
  [
    'backup_sets:\n  - { name: a, sources: [/a] }\n  - { name: a, sources: [/b] }\n',
    '3:7: backup_sets[1].name: the name a is already that of backup_sets[0]',
  ],
  [
    `${SET}targets:\n  - { name: t, kind: directory, path: /t }\n  - { name: t, kind: directory, path: /u }\n`,
    '4:7: targets[1].name: the name t is already that of targets[0]',
  ],
  [
    'backup_sets: [{ name: a, sources: [/a], method: tar }]',
    '1:41: backup_sets[0].method: expected rsync, found "tar"',
  ],
  [
    'backup_sets: [{ name: a, sources: [/a], snapshot: requred }]',
    '1:41: backup_sets[0].snapshot: expected one of auto, required, none, found "requred" | did you mean required?',
  ],
  [
    `${SET}machine: 3`,
    '2:1: machine: expected a name of a-z, 0-9, _ and -, at most 64 characters, found 3',
  ],
  [`${SET}machine: con`, '2:1: machine: the name con cannot be used: it is a device on Windows'],
  [
    `${SET}staging: here`,
    '2:1: staging: expected an absolute path | begin it with /, ~/ or a variable that does',
  ],
  [withTarget('kind: x'), '2:49: map keys must be unique'],
  [
    `${SET}targets: [{ name: t, kind: tape, path: /t }]`,
    '2:22: targets[0].kind: expected one of directory, drive, s3, sftp, found "tape"',
  ],
  [
    `${SET}targets: [{ name: t, kind: directory }]`,
    '2:11: targets[0]: path is missing | name the directory for exports',
  ],
  [
    withTarget('label: T9'),
    '2:49: targets[0].label: a target of kind directory has no label | it belongs to kind drive',
  ],
  [
    `${SET}targets: [{ name: t, kind: drive }]`,
    '2:11: targets[0]: a drive has a label, a uuid, or a pool | `backup drives` shows what is plugged in',
  ],
  [
    `${SET}targets: [{ name: t, kind: drive, label: T9, pool: [{ name: a, label: A }] }]`,
    '2:11: targets[0]: a drive has a label, a uuid, or a pool | `backup drives` shows what is plugged in',
  ],
  [
    `${SET}targets: [{ name: t, kind: drive, pool: [{ name: a }] }]`,
    '2:42: targets[0].pool[0]: a drive has a label or a uuid | `backup drives` shows them',
  ],
  [
    `${SET}targets: [{ name: t, kind: drive, pool: [{ name: a, label: A }, { name: a, label: B }] }]`,
    '2:67: targets[0].pool[1].name: another drive of the pool has the name a',
  ],
  [
    `${SET}targets: [{ name: t, kind: drive, label: A, path: /media/me/T9 }]`,
    '2:45: targets[0].path: the path of a drive is relative to its top | write `path: backup`, say',
  ],
  [
    `${SET}notify: { ping: { url: "https://example.org/secret", url_file: x } }`,
    '2:11: notify.ping: expected one of url and url_file',
  ],
  [
    withTarget('bundle_size: 256 MB/s'),
    '2:49: targets[0].bundle_size: expected a size from 1 MiB to 1 GiB, such as "256 MiB", found other text',
  ],
  [
    withTarget('bundle_size: 1048575'),
    '2:49: targets[0].bundle_size: expected a size from 1 MiB to 1 GiB, such as "256 MiB", found 1048575',
  ],
  [
    withTarget('bundle_size: 1025 MiB'),
    '2:49: targets[0].bundle_size: expected a size from 1 MiB to 1 GiB, such as "256 MiB", found 1025 MiB',
  ],
  [
    withTarget('compression_level: 20'),
    '2:49: targets[0].compression_level: expected a whole number from 1 to 19, found 20',
  ],
  [
    withTarget('compression_level: 2.5'),
    '2:49: targets[0].compression_level: expected a whole number from 1 to 19, found 2.5',
  ],
  [
    withTarget('must_be_mounted: yes'),
    '2:49: targets[0].must_be_mounted: expected true or false, found text',
  ],
  [
    `${SET}recipients: [age1abc]`,
    '2:14: recipients[0]: expected an age public key (age1 and 58 more characters), found other text',
  ],
  [
    `${SET}recipients: [AGE-SECRET-KEY-1QQQ]`,
    '2:14: recipients[0]: expected an age public key (age1 and 58 more characters), found other text'
      + ' | that is the secret identity: take it out of this file, and put its public key (age1…) here',
  ],
  [
    `${SET}trusted_signing_keys: [{ machine: a, key: RWx }]`,
    '2:38: trusted_signing_keys[0].key: expected a signing public key (RW and 54 more characters), found other text',
  ],
  [
    `${SET}schedule: { incremental: dayly }`,
    '2:13: schedule.incremental: expected one of hourly, daily, weekly, monthly, always, manual, never, found "dayly"'
      + ' | did you mean daily?',
  ],
  [
    `${SET}schedule: { full: sometimes }`,
    '2:13: schedule.full: expected one of hourly, daily, weekly, monthly, always, manual, never, found "sometimes"',
  ],
  [
    `${SET}schedule: { external: 1 }`,
    '2:13: schedule.external: expected one of hourly, daily, weekly, monthly, always, manual, never, found 1',
  ],
  [
    `${SET}retention: { local: 0 }`,
    '2:14: retention.local: expected a whole number from 1 to 100000, found 0',
  ],
  [
    `${SET}retention: { external: -1 }`,
    '2:14: retention.external: expected a whole number from 1 to 100000, found -1',
  ],
  [
    '{ "backup_sets": [\n { "name": "a", "sources": [1] } ] }',
    '2:29: backup_sets[0].sources[0]: expected a path, found 1',
  ],
]

for (const [text, expected] of GOLDEN) {
  mistakes(`says what is wrong with ${JSON.stringify(text)}`, async () => {
    assert.is(await mistake(text), `/c/config.yaml:${expected}`)
  })
}

mistakes('no staging and no DBACKUP is an error with a hint', async () => {
  assert.is(
    await mistake(SET, {}),
    '/c/config.yaml:1:1: there is no staging directory: staging is missing, '
      + 'and DBACKUP is not set | set staging to a directory, or the variable DBACKUP',
  )
})

mistakes('BACKUP_RETENTION must be a positive whole number', async () => {
  for (const wrong of ['0', '-1', 'five', '1.5', '1e3', '100001', ' 5']) {
    assert.is(
      await mistake(SET, { ...ENVIRONMENT, BACKUP_RETENTION: wrong }),
      'BACKUP_RETENTION: expected a whole number from 1 to 100000 | '
        + 'it says how many exports to keep on each target, and goes before retention.external',
    )
  }
})

mistakes('the first mistake in the file is told, and the facts have all of them', async () => {
  const error = await thrown(
    parse(`retention: { local: 0 }\nbackup_sets: [{ nam: a, sources: [] }]`),
  )
  assert.equal(error.facts['problems'], [
    {
      path: 'retention.local',
      line: 1,
      column: 14,
      message: 'expected a whole number from 1 to 100000, found 0',
    },
    { path: 'backup_sets[0].nam', line: 2, column: 17, message: 'unknown property' },
    {
      path: 'backup_sets[0].sources',
      line: 2,
      column: 25,
      message: 'expected a list of paths, found an empty list',
    },
  ])
  assert.is(error.facts['line'], 1)
})

mistakes('a bomb of aliases is refused', async () => {
  let text = 'a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n'
  for (let i = 1; i < 9; i++)
    text += `a${i}: &a${i} [${Array(10)
      .fill(`*a${i - 1}`)
      .join(', ')}]\n`
  assert.is(
    await mistake(text),
    '/c/config.yaml:1:1: excessive alias count indicates a resource exhaustion attack',
  )
})

mistakes.run()

const manual = suite('machine/config: manual')

interface Schema {
  readonly type?: string | readonly string[]
  readonly properties?: Readonly<Record<string, Schema>>
  readonly items?: Schema
  readonly description?: string
  readonly examples?: readonly unknown[]
  readonly default?: unknown
}

/** Every property of the schema by its path. */
function properties(schema: Schema, path = ''): [string, Schema][] {
  const own = Object.entries(schema.properties ?? {})
  const found = own.flatMap(([name, property]): [string, Schema][] => {
    const at = path === '' ? name : `${path}.${name}`
    return [[at, property], ...properties(property, at)]
  })
  return schema.items === undefined ? found : [...found, ...properties(schema.items, `${path}[]`)]
}

const SCHEMA = JSON.parse(file('config/schema.json')) as Schema

manual('every property has a description and examples that the schema accepts', () => {
  const ajv = new Ajv({ strict: true, allowUnionTypes: true, validateSchema: false })
  for (const [path, property] of properties(SCHEMA)) {
    assert.ok((property.description ?? '').endsWith('.'), `${path} has a description`)
    assert.ok((property.examples ?? []).length > 0, `${path} has examples`)
    const check = ajv.compile(property)
    for (const example of property.examples ?? [])
      assert.ok(check(example), `${path}: ${JSON.stringify(example)}`)
  }
})

manual(
  'every property has a row in docs/configuration.md, with its default, and no row is left over',
  () => {
    const rows = new Map<string, string>()
    for (const [line, name = ''] of file('docs/configuration.md').matchAll(
      /^\| `([^`]+)` \|.*$/gm,
    )) {
      rows.set(name, line)
    }
    for (const [path, property] of properties(SCHEMA)) {
      const row = rows.get(path)
      assert.ok(row !== undefined, `${path} has a row`)
      const plain = ['string', 'number'].includes(typeof property.default)
      if (plain)
        assert.ok(
          row?.endsWith(`| \`${property.default}\` |`),
          `${path}: default ${property.default}`,
        )
      rows.delete(path)
    }
    assert.equal([...rows.keys()], [])
  },
)

manual('the schema is open nowhere: an unknown property is always an error', () => {
  const text = file('config/schema.json')
  const objects = text.match(/"type": "object"/g)?.length
  assert.is(text.match(/"additionalProperties": false/g)?.length, objects)
})

manual('every property appears in the example, at least in a comment', () => {
  const example = file('config/example.yaml')
  for (const [path] of properties(SCHEMA)) {
    const name = path.split('.').at(-1) ?? ''
    if (name === 'method') continue
    assert.match(example, new RegExp(`\\b${name}:`))
  }
})

manual.run()

const words = suite('names and amounts')

words('names are those of docs/format.md', () => {
  for (const name of ['a', '0', 'a-b_c', 'con1', 'com', 'lpt', 'a'.repeat(64)])
    assert.ok(isValidName(name), name)
  for (const name of [
    '',
    '-a',
    '_a',
    'A',
    'a b',
    'a.b',
    'ä',
    'con',
    'aux',
    'com0',
    'lpt9',
    'a\n',
    'a'.repeat(65),
  ]) {
    assert.not.ok(isValidName(name), name)
  }
})

words('the clean name of any text is valid or undefined', () => {
  const cases: readonly (readonly [string, string | undefined])[] = [
    ['My Laptop', 'my-laptop'],
    ['--x', 'x'],
    ['Ünï', 'n'],
    ['', undefined],
    ['...', undefined],
    ['NUL', 'nul-1'],
    ['x'.repeat(80), 'x'.repeat(64)],
    ['a--', 'a'],
  ]
  for (const [text, name] of cases) {
    assert.is(cleanName(text), name)
    if (name !== undefined) assert.ok(isValidName(name))
  }
  assert.is(machineName('Payne-Box.fritz.lan'), 'payne-box')
})

words('the nearest word is the one with the fewest edits, or none', () => {
  const known = ['collect', 'external', 'restore', 'keys']
  assert.is(nearestWord({ word: 'colect', known }), 'collect')
  assert.is(nearestWord({ word: 'ekys', known }), 'keys')
  assert.is(nearestWord({ word: 'xyz', known }), undefined)
  assert.is(nearestWord({ word: 'r'.repeat(1000), known }), undefined)
})

words('sizes are read and written', () => {
  const sizes: readonly (readonly [string, number | undefined])[] = [
    ['0', 0],
    ['1 KB', 1000],
    ['1KiB', 1024],
    ['1.5 GiB', 1610612736],
    ['-1', undefined],
    ['1 kb', undefined],
    ['1  MiB', undefined],
    ['MiB', undefined],
    ['1e3', undefined],
    ['99999999999 GiB', undefined],
  ]
  for (const [text, sizeBytes] of sizes) assert.is(parseSize(text), sizeBytes)
  const texts: readonly (readonly [number, string])[] = [
    [0, '0 B'],
    [1023, '1023 B'],
    [1024, '1 KiB'],
    [1536, '1.5 KiB'],
    [268435456, '256 MiB'],
    [1023 * 1024, '1.0 MiB'],
    [5e9, '4.7 GiB'],
  ]
  for (const [sizeBytes, text] of texts) assert.is(formatSize(sizeBytes), text)
  assert.is(formatDuration(7400), '0:07')
  assert.is(formatDuration(3_723_000), '1:02:03')
})

words('what is escaped expands to itself', () => {
  const fail = (message: string): never => {
    throw new Error(message)
  }
  for (const text of ['/a', '/$', '/$$', '/$HOME', '/${x}', '/a$$b$']) {
    assert.is(expandPattern(escapeVariables(text), { environment: {}, home: HOME }, fail), text)
  }
  assert.is(expandPattern('~/x', { environment: {}, home: '/ho$me' }, fail), '/ho$me/x')
  assert.is(expandPattern('~', { environment: {}, home: '/' }, fail), '/')
})

words.run()

async function thrown(promise: Promise<unknown>): Promise<BackupError> {
  try {
    await promise
  } catch (error) {
    if (error instanceof BackupError) return error
    throw error
  }
  throw new Error('expected a BackupError')
}
