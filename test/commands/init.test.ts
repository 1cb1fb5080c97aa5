// `backup init` and `backup keys` as a user meets them: what is made, with which modes, what stock
// programs make of it, and that nothing is ever overwritten or left half-made.

import { execFileSync } from 'node:child_process'
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import { configurationText } from '../../commands/init-text.ts'
import { qrLines } from '../../commands/qr.ts'
import { parseConfiguration } from '../../lib/machine/config.ts'
import * as assert from '../helpers/assert.ts'
import { runCli } from '../helpers/run-cli.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const test = suite('commands/init')

function init(home: string, ...words: string[]) {
  return runCli(['init', ...words], { environment: { HOME: home }, workingDirectory: home })
}

function modes(directory: string): Record<string, string> {
  const names = readdirSync(directory).sort()
  return Object.fromEntries(
    names.map((name) => {
      return [name, (statSync(join(directory, name)).mode & 0o7777).toString(8)]
    }),
  )
}

test('makes a configuration, an identity and a signing key that fit together', async () => {
  const home = tempDirectory()
  const directory = join(home, '.config/backup')
  writeFileSync(join(home, 'passphrase'), 'correct horse\nsecond line\n')
  const { status, stdout, stderr } = await init(
    home,
    '--staging',
    'staging',
    '--target',
    '~/drive',
    '--source',
    '/data',
    '--source',
    'it\'s "$HOME"',
    '--machine',
    'box',
    '--passphrase-file',
    'passphrase',
  )
  assert.is(status, 0, stderr)
  assert.is(stderr, '')
  assert.equal(modes(directory), {
    'config.yaml': '600',
    'identity.age': '600',
    'identity.age.salt': '600',
    'signing.key': '600',
    'signing.pub': '644',
  })
  assert.is(statSync(directory).mode & 0o777, 0o700)

  const path = join(directory, 'config.yaml')
  const text = readFileSync(path, 'utf8')
  const configuration = await parseConfiguration({
    path,
    text,
    home,
    environment: {},
    hostName: 'other',
  })
  assert.is(configuration.machine, 'box')
  assert.is(configuration.staging, join(home, 'staging'))
  assert.equal(configuration.backupSets[0]?.sources, ['/data', join(home, 'it\'s "$HOME"')])
  assert.is(configuration.targets[0]?.path, join(home, 'drive'))
  assert.is(configuration.signingKey, join(directory, 'signing.key'))
  assert.match(text, /# snapshot: required/)

  const shown = await runCli(
    [
      'keys',
      'show',
      '--identity',
      join(directory, 'identity.age'),
      '--passphrase-file',
      join(home, 'passphrase'),
    ],
    { environment: { HOME: home } },
  )
  assert.is(shown.status, 0, shown.stderr)
  const publicKey = readFileSync(join(directory, 'signing.pub'), 'utf8').split('\n')[1]
  assert.match(shown.stdout, `recipient: ${configuration.recipients[0]}\n`)
  assert.match(shown.stdout, `signing key of box: ${publicKey}\n`)
  assert.match(stdout, `     ${publicKey}\n`)
  const known = await runCli(['keys', 'public'], { environment: { HOME: home } })
  assert.is(
    known.stdout,
    `recipient: ${configuration.recipients[0]}\nsigning key of box: ${publicKey}\n`,
  )
})

test('no secret is printed where nobody sits at a terminal, but for a passphrase made here', async () => {
  const home = tempDirectory()
  const { status, stdout, stderr } = await init(home, '--staging', '/srv')
  assert.is(status, 0, stderr)
  assert.not.match(stdout + stderr, /AGE-SECRET-KEY/)
  assert.is(stdout.match(/([a-z2-9]{5}-){4}[a-z2-9]{5}/g)?.length, 1)
  const passphrase = /^ {5}(([a-z2-9]{5}-){4}[a-z2-9]{5})$/m.exec(stdout)?.[1] ?? ''
  writeFileSync(join(home, 'passphrase'), passphrase)
  const identity = join(home, '.config/backup/identity.age')
  const words = [
    'keys',
    'show',
    '--identity',
    identity,
    '--passphrase-file',
    join(home, 'passphrase'),
  ]
  const shown = await runCli(words, { environment: { HOME: home } })
  assert.is(shown.status, 0, shown.stderr)
  assert.match(shown.stdout, /^identity \(secret\): AGE-SECRET-KEY-1/)
})

test('stock age and minisign take the keys', async () => {
  const home = tempDirectory()
  const made = await init(home, '--staging', '/srv', '--no-passphrase')
  assert.is(made.status, 0, made.stderr)
  const directory = join(home, '.config/backup')
  const [recipient = ''] =
    /age1[a-z0-9]{58}/.exec(readFileSync(join(directory, 'config.yaml'), 'utf8')) ?? []
  const sealed = execFileSync('age', ['-r', recipient], { input: 'hello' })
  const opened = execFileSync('age', ['-d', '-i', join(directory, 'identity.txt')], {
    input: sealed,
  })
  assert.is(opened.toString(), 'hello')

  const file = join(home, 'file')
  writeFileSync(file, 'hello')
  const quiet = { stdio: 'pipe' } as const
  execFileSync('minisign', ['-S', '-W', '-s', join(directory, 'signing.key'), '-m', file], quiet)
  execFileSync('minisign', ['-V', '-p', join(directory, 'signing.pub'), '-m', file], quiet)
})

test('any file that is there already is told, and nothing is made or changed', async () => {
  for (const name of [
    'config.yaml',
    'signing.key',
    'signing.pub',
    'identity.age',
    'identity.age.salt',
  ]) {
    const home = tempDirectory()
    const directory = join(home, '.config/backup')
    mkdirSync(directory, { recursive: true })
    writeFileSync(join(directory, name), 'mine')
    const { status, stdout, stderr } = await init(home, '--staging', '/srv')
    assert.is(status, 2)
    assert.is(stdout, '')
    assert.is(
      stderr,
      `backup init: error: already there: "${join(directory, name)}"\n`
        + 'backup init: hint: nothing was changed; name other files with --config and --identity, or move these away\n',
    )
    assert.equal(readdirSync(directory), [name])
    assert.is(readFileSync(join(directory, name), 'utf8'), 'mine')
  }
})

test('a dangling link counts as there', async () => {
  const home = tempDirectory()
  mkdirSync(join(home, '.config/backup'), { recursive: true })
  symlinkSync('/nowhere', join(home, '.config/backup/signing.key'))
  const { status, stderr } = await init(home, '--staging', '/srv')
  assert.is(status, 2)
  assert.match(stderr, 'already there')
})

test('a second run changes nothing', async () => {
  const home = tempDirectory()
  assert.is((await init(home, '--staging', '/srv')).status, 0)
  const directory = join(home, '.config/backup')
  const read = () =>
    readdirSync(directory).map((name) => readFileSync(join(directory, name), 'utf8'))
  const before = read()
  assert.is((await init(home, '--staging', '/srv')).status, 2)
  assert.equal(read(), before)
})

/** What is typed, what standard error begins with; nothing may be made. */
const MISTAKES: readonly (readonly [readonly string[], string])[] = [
  [
    [],
    'backup init: error: there is no staging directory: neither --staging nor $DBACKUP is given\n',
  ],
  [['--staging', ''], 'backup init: error: --staging needs a value\n'],
  [
    ['--staging', '/srv', '--machine', 'My Box'],
    'backup init: error: "My Box" cannot be a machine\'s name\n'
      + 'backup init: hint: a name has only a-z, 0-9, _ and -: did you mean --machine my-box?\n',
  ],
  [
    ['--staging', '/srv', '--no-passphrase', '--passphrase-file', 'x'],
    'backup init: error: --passphrase-file and --no-passphrase exclude each other\n',
  ],
  [
    ['--staging', '/srv', '--passphrase-file', 'x'],
    'backup init: error: the passphrase file "x" cannot be read (ENOENT)\n',
  ],
  [
    ['--staging', '/srv', '--passphrase-file', '/dev/null'],
    'backup init: error: the passphrase file "/dev/null" begins with an empty line\n',
  ],
  [['--staging', '/srv', '--json'], '{"schema":1,"kind":"error","code":"USAGE"'],
  [
    ['--staging', '/srv', '--passphrase-file', '../long'],
    'backup init: error: this passphrase cannot be used\n',
  ],
  [
    ['--staging', '/srv', '--config', '/dev/null/c.yaml'],
    'backup init: error: "/dev/null" cannot be made (E',
  ],
  [
    ['--staging', '/srv', '--identity', '/dev/null/id'],
    'backup init: error: "/dev/null" cannot be made (E',
  ],
]

for (const [words, expected] of MISTAKES) {
  test(`init ${words.join(' ')} makes nothing`, async () => {
    const directory = tempDirectory()
    const home = join(directory, 'home')
    mkdirSync(home)
    writeFileSync(join(directory, 'long'), 'x'.repeat(200))
    const { status, stdout, stderr } = await init(home, ...words)
    assert.is(status, expected.includes('cannot be made') ? 1 : 2)
    assert.is((stdout + stderr).slice(0, expected.length), expected)
    assert.equal(readdirSync(home), [])
  })
}

test('a failure at the very end takes back all that was made, and only that', async () => {
  const home = tempDirectory()
  mkdirSync(join(home, 'c'))
  // The name fits, but not with what a file is called while it is written.
  const config = join(home, 'c', 'x'.repeat(250))
  const { status, stderr } = await init(
    home,
    '--staging',
    '/srv',
    '--no-passphrase',
    '--config',
    config,
    '--identity',
    join(home, 'new/deep/identity'),
  )
  assert.is(status, 1)
  assert.match(stderr, 'cannot be made (ENAMETOOLONG)')
  assert.equal(readdirSync(join(home, 'c')), [])
  assert.not.ok(existsSync(join(home, 'new')))
})

test('--dry-run says what would be made and makes nothing', async () => {
  const home = tempDirectory()
  const { status, stdout } = await init(home, '--staging', '/srv', '--dry-run')
  assert.is(status, 0)
  assert.is(stdout.split('\n').length, 6)
  assert.match(stdout, `would make ${home}/.config/backup/config.yaml: the configuration\n`)
  assert.equal(readdirSync(home), [])
})

test('with --json the result names files and public keys, and no secret', async () => {
  const home = tempDirectory()
  const { status, stdout } = await init(
    home,
    '--staging',
    '/srv',
    '--machine',
    'box',
    '--no-passphrase',
    '--json',
  )
  assert.is(status, 0)
  const result = JSON.parse(stdout) as Record<string, unknown>
  assert.equal(Object.keys(result), [
    'schema',
    'kind',
    'command',
    'files',
    'machine',
    'recipient',
    'signingKey',
  ])
  assert.not.match(stdout, 'SECRET')
})

test('the written configuration reads back whatever the paths are', async () => {
  const paths = [
    '/a',
    '/a b',
    '/"\'',
    '/$HOME',
    '/$$',
    '/ü\u00a0',
    '/#x: y',
    '/a\nb\tc',
    '/~',
    '/\\n',
  ]
  const initial = { machine: 'box', recipient: `age1${'q'.repeat(58)}`, signingKey: '/k' }
  for (const path of paths) {
    const text = configurationText({
      withSystem: false,
      ...initial,
      staging: path,
      target: path,
      sources: [path, path],
    })
    const options = { path: '/c', text, home: '/h', environment: {}, hostName: 'h' }
    const configuration = await parseConfiguration(options)
    assert.is(configuration.staging, path)
    assert.equal(configuration.backupSets[0]?.sources, [path, path])
    assert.is(configuration.targets[0]?.path, path)
  }
})

test('the QR code is a square of blocks inside a white border', () => {
  const identity = `AGE-SECRET-KEY-1${'Q'.repeat(58)}`
  const lines = qrLines(identity, { colors: false })
  const width = Math.max(...lines.map((line) => line.length))
  assert.is(lines[0], '')
  assert.is(lines[1], '')
  assert.ok(lines.every((line) => /^( {4}[ ▀▄█]*)?$/.test(line)))
  assert.is(Math.ceil((width + 4) / 2), lines.length)
  // The finder pattern at the upper left: seven modules, three rows of text and a half.
  assert.equal(
    lines.slice(2, 6).map((line) => line.slice(4, 11)),
    ['█▀▀▀▀▀█', '█ ███ █', '█ ▀▀▀ █', '▀▀▀▀▀▀▀'],
  )
})

test.run()
