// The program as a user meets it: how a command is picked, what mistakes say, what goes to which
// stream, exit codes.

import { spawn } from 'node:child_process'
import { readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import { createReporter } from '../../commands/reporter.ts'
import type { ReporterOptions } from '../../commands/reporter.ts'
import { errorJson, errorLines, exitCodeOf, redact, safeText } from '../../commands/voice.ts'
import { BackupError } from '../../lib/errors.ts'
import { rawPathFromText } from '../../lib/model/raw-path.ts'
import * as assert from '../helpers/assert.ts'
import { MAIN, runCli } from '../helpers/run-cli.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const program = suite('commands/main')

/** Runs `backup …` in a home of its own. */
function backup(...words: string[]) {
  return runCli(words, { environment: { HOME: tempDirectory() } })
}

/** A home with a configuration that `backup init` made. */
async function homeWithKeys(): Promise<string> {
  const home = tempDirectory()
  const words = ['init', '--staging', '/srv', '--no-passphrase', '--machine', 'box']
  const made = await runCli(words, { environment: { HOME: home } })
  assert.is(made.status, 0, made.stderr)
  return home
}

program('help lists every command, on standard output', async () => {
  for (const words of [['help'], ['--help'], ['-h']]) {
    const { status, stdout, stderr } = await backup(...words)
    assert.is(status, 0, stderr)
    assert.is(stderr, '')
    for (const verb of ['collect', 'external', 'restore', 'init', 'keys', 'help']) {
      assert.match(stdout, new RegExp(`^  backup ${verb} `, 'm'))
    }
    assert.match(stdout, 'Exit codes:')
  }
})

program('every command has a help text of its own', async () => {
  for (const verb of ['collect', 'external', 'restore', 'init', 'keys']) {
    const asWord = await backup('help', verb)
    const asOption = await backup(verb, '--help')
    assert.is(asWord.status, 0, asWord.stderr)
    assert.match(asWord.stdout, /^Usage: backup/)
    assert.is(asOption.stdout, asWord.stdout)
  }
})

program('the version is that of package.json', async () => {
  const { version } = JSON.parse(readFileSync('package.json', 'utf8')) as { version: string }
  assert.equal(await backup('--version'), { status: 0, stdout: `backup ${version}\n`, stderr: '' })
})

/** What is typed, and what standard error says. */
const MISTAKES: readonly (readonly [readonly string[], string])[] = [
  [
    ['colect'],
    'backup: error: unknown command "colect"\nbackup: hint: did you mean `backup collect`?\n',
  ],
  [
    ['frobnicate'],
    'backup: error: unknown command "frobnicate"\nbackup: hint: see `backup help`\n',
  ],
  [
    ['constructor'],
    'backup: error: unknown command "constructor"\nbackup: hint: see `backup help`\n',
  ],
  [
    ['help', 'kees'],
    'backup: error: unknown command "kees"\nbackup: hint: did you mean `backup keys`?\n',
  ],
  [
    ['keys', '--jsn'],
    'backup keys: error: unknown option --jsn\nbackup keys: hint: did you mean --json?\n',
  ],
  [
    ['keys', '-x'],
    'backup keys: error: unknown option -x\nbackup keys: hint: see `backup keys --help`\n',
  ],
  [
    ['keys', 'show', '--passphrase=topsecret'],
    'backup keys: error: unknown option --passphrase\nbackup keys: hint: see `backup keys --help`\n',
  ],
  [
    ['init', '--staging'],
    "backup init: error: option '--staging <value>' argument missing\nbackup init: hint: see `backup init --help`\n",
  ],
  [
    ['init', '--json=yes'],
    "backup init: error: option '--json' does not take an argument\nbackup init: hint: see `backup init --help`\n",
  ],
  [
    ['init', 'now.txt'],
    "backup init: error: unexpected argument 'now.txt'\nbackup init: hint: see `backup init --help`\n",
  ],
  [
    ['keys'],
    'backup keys: error: expected `keys public` or `keys show`\nbackup keys: hint: see `backup keys --help`\n',
  ],
  [['keys', 'show'], 'backup keys: error: keys show needs --identity FILE\n'],
  [
    ['a\u001b[2J\nb'],
    'backup: error: unknown command "a\\x1b[2J\\x0ab"\nbackup: hint: see `backup help`\n',
  ],
]

for (const [words, expected] of MISTAKES) {
  program(`backup ${JSON.stringify(words.join(' '))} is a usage error`, async () => {
    assert.equal(await backup(...words), { status: 2, stdout: '', stderr: expected })
  })
}

program('the name it is started by picks the command', async () => {
  const directory = tempDirectory()
  for (const name of ['backup-collect', 'backup-external', 'backup-restore']) {
    symlinkSync(MAIN, join(directory, name))
    const { status, stderr } = await runCli(['--jsn'], {
      environment: { HOME: directory },
      program: [process.execPath, join(directory, name)],
    })
    assert.is(status, 2)
    assert.is(stderr, `${name}: error: unknown option --jsn\n${name}: hint: did you mean --json?\n`)
  }
})

program('no configuration is exit 2, and the places are named', async () => {
  const home = tempDirectory()
  const { status, stderr } = await runCli(['keys', 'public'], { environment: { HOME: home } })
  assert.is(status, 2)
  assert.is(
    stderr,
    `backup keys: error: there is no configuration: neither "${home}/.config/backup/config.yaml" `
      + 'nor "/etc/backup/config.yaml" exists\n'
      + 'backup keys: hint: make one with `backup init`, or name one with --config FILE\n',
  )
})

program(
  'a wrong configuration is told with file, line and column, in words and as JSON',
  async () => {
    const home = tempDirectory()
    const config = join(home, 'c.yaml')
    writeFileSync(config, 'backup_sets:\n  - nme: a\n    sources: [/a]\n')
    const environment = { HOME: home, BACKUP_CONFIG: config }
    const stderr =
      `backup keys: error: ${config}:2:5: backup_sets[0].nme: unknown property\n`
      + 'backup keys: hint: did you mean name?\n'
    assert.equal(await runCli(['keys', 'public'], { environment }), {
      status: 2,
      stdout: '',
      stderr,
    })

    const json = await runCli(['keys', 'public', '--json'], { environment })
    assert.is(json.status, 2)
    assert.is(json.stderr, stderr)
    assert.equal(JSON.parse(json.stdout), {
      schema: 1,
      kind: 'error',
      code: 'CONFIG_INVALID',
      message: `${config}:2:5: backup_sets[0].nme: unknown property`,
      hint: 'did you mean name?',
      facts: {
        file: config,
        line: 2,
        column: 5,
        problems: [{ path: 'backup_sets[0].nme', line: 2, column: 5, message: 'unknown property' }],
      },
      exitCode: 2,
    })
  },
)

program('a relative --config is found from the working directory', async () => {
  const home = await homeWithKeys()
  const workingDirectory = join(home, '.config')
  const words = ['keys', 'public', '--config', 'backup/config.yaml']
  const { status, stdout } = await runCli(words, {
    environment: { HOME: '/nowhere' },
    workingDirectory,
  })
  assert.is(status, 0)
  assert.match(stdout, /^recipient: age1[a-z0-9]{58}\nsigning key of box: RW[A-Za-z0-9+/]{54}\n$/)
})

program('with --json standard output has one object a line and nothing else', async () => {
  const home = await homeWithKeys()
  const { status, stdout, stderr } = await runCli(['keys', 'public', '--json'], {
    environment: { HOME: home },
  })
  assert.is(status, 0)
  assert.is(stderr, '')
  const [line = '', end] = stdout.split('\n')
  assert.is(end, '')
  const result = JSON.parse(line) as Record<string, unknown>
  assert.equal(Object.keys(result), [
    'schema',
    'kind',
    'command',
    'machine',
    'recipients',
    'signingKey',
  ])
  assert.is(result['schema'], 1)
})

program('what is no error of ours prints its stack and exits 70', async () => {
  const home = tempDirectory()
  const trap =
    'import os from "node:os"; import { syncBuiltinESMExports } from "node:module";'
    + 'os.hostname = () => { throw new TypeError("boom at https://me:pw@host/") }; syncBuiltinESMExports()'
  const { status, stdout, stderr } = await runCli(['keys', 'public', '--json'], {
    environment: { HOME: home },
    program: [
      process.execPath,
      '--import',
      `data:text/javascript,${encodeURIComponent(trap)}`,
      MAIN,
    ],
  })
  assert.is(status, 70)
  assert.match(
    stderr,
    /^backup keys: error: this is a bug: TypeError: boom at https:\/\/\*\*\*@host\/\n {4}at /,
  )
  assert.equal(JSON.parse(stdout), {
    schema: 1,
    kind: 'error',
    code: 'BUG',
    message: 'boom at https://***@host/',
    exitCode: 70,
  })
})

program('a reader that has gone away is no error', async () => {
  const script = '"$0" "$1" help keys | true; echo "${PIPESTATUS[0]}"'
  const { stdout, stderr } = await runCli([process.execPath, MAIN], {
    environment: { HOME: tempDirectory() },
    program: ['bash', '-c', script],
  })
  assert.is(stdout, '0\n')
  assert.is(stderr, '')
})

program.run()

const terminal = suite('commands/main on a terminal')

/**
 * Runs the program on a pseudo-terminal; `answer` says what to type, or to do, once `prompt` shows.
 */
async function onTerminal({
  words,
  home,
  answers,
}: {
  readonly words: readonly string[]
  readonly home: string
  readonly answers: readonly (readonly [string, string | NodeJS.Signals])[]
}): Promise<{ readonly status: number | null; readonly screen: string }> {
  const quoted = [process.execPath, MAIN, ...words].map((word) => `'${word}'`).join(' ')
  const line =
    process.platform === 'linux'
      ? ['-qec', `exec ${quoted}`, '/dev/null']
      : ['-q', '/dev/null', 'sh', '-c', quoted]
  const child = spawn('script', line, {
    env: { PATH: process.env['PATH'] ?? '', HOME: home, SHELL: '/bin/sh' },
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  let screen = ''
  let seen = 0
  let next = 0
  child.stdin.on('error', () => {})
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    screen += text
    const [prompt, answer] = answers[next] ?? []
    const at = prompt === undefined ? -1 : screen.indexOf(prompt, seen)
    if (prompt === undefined || answer === undefined || at < 0) return
    seen = at + prompt.length
    next++
    // The prompt shows a moment before the echo is off; a person is slower than that.
    setTimeout(() => child.stdin.write(answer), 50)
  })
  return await new Promise((resolve) => {
    child.once('close', (status) => resolve({ status, screen }))
  })
}

terminal(
  'a passphrase is asked for twice and not echoed, and the identity shows as text and QR code',
  async () => {
    const home = tempDirectory()
    const made = await onTerminal({
      words: ['init', '--staging', '/srv'],
      home,
      answers: [
        ['Passphrase for the identity: ', 'one\r'],
        ['The same again: ', 'two\r'],
        ['Passphrase for the identity: ', 'grüne Wolke\r'],
        ['The same again: ', 'grüne Wolke\r'],
      ],
    })
    assert.is(made.status, 0, made.screen)
    assert.not.match(made.screen, 'Wolke')
    const identity = /AGE-SECRET-KEY-1[A-Z0-9]{58}/.exec(made.screen)?.[0]
    assert.ok(identity)
    assert.match(made.screen, '▀')

    const file = join(home, '.config/backup/identity.age')
    const shown = await onTerminal({
      words: ['keys', 'show', '--identity', file],
      home,
      answers: [['Passphrase of the identity: ', 'grüne Wolke\r']],
    })
    assert.is(shown.status, 0, shown.screen)
    assert.match(shown.screen, `identity (secret): ${identity}`)

    const wrong = await onTerminal({
      words: ['keys', 'show', '--identity', file],
      home,
      answers: [['Passphrase of the identity: ', 'grüne wolke\r']],
    })
    assert.is(wrong.status, 12)
    assert.not.match(wrong.screen, 'AGE-SECRET-KEY')
  },
)

terminal('^C at a question is exit 130, and nothing is made', async () => {
  for (const key of ['\x03', '\x04']) {
    const home = tempDirectory()
    const { status, screen } = await onTerminal({
      words: ['init', '--staging', '/srv'],
      home,
      answers: [['Passphrase for the identity: ', key]],
    })
    assert.is(status, 130, screen)
    assert.match(screen, 'backup init: error: interrupted')
    assert.throws(() => readFileSync(join(home, '.config')), /ENOENT/)
  }
})

terminal('SIGTERM is exit 130', async () => {
  const home = tempDirectory()
  const trap = 'process.stdin.isTTY = true; process.stderr.isTTY = true'
  const child = spawn(
    process.execPath,
    [
      '--import',
      `data:text/javascript,${encodeURIComponent(trap)}`,
      MAIN,
      'init',
      '--staging',
      '/srv',
    ],
    { env: { HOME: home }, stdio: ['pipe', 'pipe', 'pipe'] },
  )
  let stderr = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    if (stderr === '') child.kill('SIGTERM')
    stderr += text
  })
  const status = await new Promise((resolve) => {
    child.once('close', resolve)
  })
  assert.is(status, 130)
  assert.match(stderr, /backup init: error: interrupted\n$/)
})

terminal.run()

const voice = suite('commands/voice')

voice('an error is one line, its hint another', () => {
  const error = new BackupError('TARGET_ABSENT', 'the target "a\nb" is not there', {
    hint: 'plug\tit in',
  })
  assert.equal(errorLines({ name: 'backup-external', error }), [
    'backup-external: error: the target "a\\x0ab" is not there',
    'backup-external: hint: plug\\x09it in',
  ])
  assert.is(exitCodeOf(error), 10)
  assert.is(exitCodeOf(new Error('x')), 70)
  assert.is(exitCodeOf('x'), 70)
})

voice('credentials of URLs and secret keys never come out', () => {
  const key = `AGE-SECRET-KEY-1${'Q'.repeat(58)}`
  const error = new BackupError('TARGET_FAILED', `sftp://me:pw@host/x and ${key}`, {
    hint: `s3://id:secret@bucket`,
    facts: { url: 'https://u:p@h/', key: key.toLowerCase() },
  })
  for (const text of [
    errorLines({ name: 'backup', error }).join(),
    errorJson(error),
    redact(key),
  ]) {
    assert.not.match(text, /pw|secret@|u:p|QQQ|qqq/)
  }
  assert.is(safeText('https://host/a@b'), 'https://host/a@b')
})

voice.run()

const reporter = suite('commands/reporter')

/** A reporter on a clock and streams of its own. */
function observe(options: Partial<ReporterOptions>) {
  let nowMs = 0
  const out: string[] = []
  const error: string[] = []
  const { report, print, finish } = createReporter({
    name: 'backup-collect',
    json: false,
    quiet: false,
    verbose: false,
    now: () => nowMs,
    writeOut: (text) => void out.push(text),
    writeError: (text) => void error.push(text),
    columns: undefined,
    ...options,
  })
  return {
    report,
    print,
    finish,
    out,
    error,
    pass: (durationMs: number) => {
      nowMs += durationMs
    },
  }
}

const progress = (filesDone: number) => ({
  kind: 'progress' as const,
  phase: 'packing',
  filesDone,
  filesTotal: 1000,
  bytesDone: filesDone * 1024 * 1024,
  bytesTotal: 1000 * 1024 * 1024,
  bytesSkipped: 5 * 1024 * 1024,
  bytesWritten: 1024,
  current: rawPathFromText(`data/ä${filesDone}\n`),
})

const warning = {
  kind: 'notice',
  level: 'warning',
  code: 'VANISHED',
  message: 'gone: a\u001bb',
} as const
const info = { kind: 'notice', level: 'info', code: 'NOT_ATOMIC', message: 'no snapshot' } as const

reporter('off a terminal there is one line every 30 seconds', () => {
  const { report, error, out, pass } = observe({})
  report({ kind: 'phase', name: 'packing' })
  for (let second = 1; second <= 65; second++) {
    pass(1000)
    report(progress(second))
  }
  assert.equal(error, [
    'backup-collect: packing\n',
    'backup-collect: packing 30/1000 files, 30 MiB of 1.0 GiB, 5 MiB already there, 1 KiB written, 1 MiB/s, 16:10 left\n',
    'backup-collect: packing 60/1000 files, 60 MiB of 1.0 GiB, 5 MiB already there, 1 KiB written, 1 MiB/s, 15:40 left\n',
  ])
  assert.equal(out, [])
})

reporter(
  'on a terminal one line is repainted, at most ten times a second, and never too long',
  () => {
    for (const columns of [20, 80, 100, 200]) {
      const { report, finish, error, pass } = observe({ columns: () => columns })
      for (let step = 1; step <= 1000; step++) {
        pass(10)
        report(progress(step))
      }
      assert.ok(error.length > 90 && error.length <= 102, String(error.length))
      for (const text of error) {
        assert.match(text, /^\r\x1b\[K/)
        assert.ok(text.length - 4 < columns, text)
        assert.not.match(text, '\n')
      }
      finish()
      assert.is(error.at(-1), '\r\x1b[K')
    }
    const { report, error } = observe({ columns: () => 200 })
    report(progress(1))
    assert.match(error.at(-1) ?? '', /  data\/ä1\\x0a$/)
  },
)

reporter('a notice clears the painted line first', () => {
  const { report, print, error, out } = observe({ columns: () => 80 })
  report(progress(1))
  report(warning)
  assert.equal(error.slice(-2), ['\r\x1b[K', 'backup-collect: warning: gone: a\\x1bb\n'])
  report(info)
  assert.is(error.at(-1), 'backup-collect: no snapshot\n')
  print('line')
  assert.equal(out, ['line\n'])
})

reporter('-q leaves only warnings, and what was asked for', () => {
  const { report, print, error, out, pass } = observe({ quiet: true, columns: () => 80 })
  report({ kind: 'phase', name: 'packing' })
  pass(60_000)
  report(progress(1))
  report(info)
  report(warning)
  print('line')
  assert.equal(error, ['backup-collect: warning: gone: a\\x1bb\n'])
  assert.equal(out, ['line\n'])
})

reporter(
  '--json is one object a line on standard output; warnings are on standard error too',
  () => {
    const { report, print, error, out, pass } = observe({
      json: true,
      quiet: true,
      columns: () => 80,
    })
    report({ kind: 'phase', name: 'packing' })
    report(progress(1))
    pass(500)
    report(progress(2))
    pass(500)
    report(progress(3))
    report(warning)
    print('line')
    report({ kind: 'result', command: 'backup-collect', sets: [{ name: 'a' }] })
    const objects = out.map((line) => JSON.parse(line) as Record<string, unknown>)
    assert.ok(out.every((line) => line.endsWith('}\n')))
    assert.ok(objects.every(({ schema }) => schema === 1))
    assert.equal(
      objects.map(({ kind }) => kind),
      ['phase', 'progress', 'progress', 'notice', 'result'],
    )
    assert.is(objects[2]?.['current'], 'data/ä3\n')
    assert.is(objects[2]?.['bytesPerSecond'], 2 * 1024 * 1024)
    assert.equal(objects[4]?.['sets'], [{ name: 'a' }])
    assert.equal(error, ['backup-collect: warning: gone: a\\x1bb\n'])
  },
)

reporter.run()
