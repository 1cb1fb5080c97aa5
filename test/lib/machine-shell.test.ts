import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { getPriority } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { findProgram, runProgram } from '../../lib/machine/shell.ts'
import * as assert from '../helpers/assert.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const shell = suite('machine/shell')
const directory = tempDirectory()
const quick = { changes: false, timeoutMs: 20_000 } as const

async function failureOf(promise: Promise<unknown>): Promise<BackupError> {
  try {
    await promise
  } catch (error) {
    if (error instanceof BackupError) return error
    throw error
  }
  throw new Error('it did not fail')
}

shell('carries every byte but zero in an argument', async () => {
  const all = Buffer.from(Array.from({ length: 255 }, (_, i) => i + 1))
  const args = [
    '',
    '--',
    '-n',
    '~',
    '$HOME',
    '`id`',
    "it's",
    '"q"',
    'a\nb',
    'a b',
    '*',
    '\\',
    'é',
    '!',
    '{a,b}',
    '\\x41',
  ]
  const program = 'printf'
  const { stdout } = await runProgram({ ...quick, program, args: ['[%s]', ...args] })
  assert.is(stdout, args.map((arg) => `[${arg}]`).join(''))
  const lines: Buffer[] = []
  await runProgram({
    ...quick,
    program,
    args: ['%s', all],
    onLine: (line) => lines.push(Buffer.from(line)),
  })
  const [before, after] = [all.subarray(0, 9), all.subarray(10)]
  assert.equal(lines, [before, after])
  await runProgram({ ...quick, program: 'printf', args: ['a\0b'] }).then(
    () => assert.unreachable(),
    () => {},
  )
})

shell('returns exit codes and both outputs without judging them', async () => {
  const result = await runProgram({
    ...quick,
    program: 'sh',
    args: ['-c', 'echo out; echo err >&2; exit 23'],
  })
  assert.equal(result, { exitCode: 23, stdout: 'out\n', stderr: 'err\n' })
})

shell('hands on lines as they come, the last one without a newline too', async () => {
  const lines: string[] = []
  const onLine = (line: Buffer, stream: string): number =>
    lines.push(`${stream}:${line.toString('latin1')}`)
  await runProgram({
    ...quick,
    program: 'sh',
    args: ['-c', 'printf "a\\n\\377\\nb"; sleep 0.1; echo e >&2'],
    onLine,
  })
  assert.equal(lines.sort(), ['stderr:e', 'stdout:a', 'stdout:b', 'stdout:\xff'])
})

shell('passes nothing of our environment but PATH and HOME', async () => {
  process.env['ZX_PREFIX'] = 'touch /nowhere;'
  process.env['BACKUP_PASSPHRASE'] = 'secret'
  const { stdout } = await runProgram({ ...quick, program: 'env', args: [] })
  delete process.env['ZX_PREFIX']
  const names = stdout
    .split('\n')
    .map((line) => line.split('=')[0] ?? '')
    .filter((name) => name !== '')
  assert.equal(names.filter((name) => !['_', 'PWD', 'SHLVL'].includes(name)).sort(), [
    'HOME',
    'LANG',
    'LC_ALL',
    'PATH',
  ])
})

shell('feeds standard input, which is otherwise empty', async () => {
  const input = Buffer.from([1, 255, 10])
  const { stdout } = await runProgram({ ...quick, program: 'od', args: ['-An', '-tu1'], input })
  assert.is(stdout.trim().replace(/ +/g, ' '), '1 255 10')
  assert.is((await runProgram({ ...quick, program: 'cat', args: [] })).stdout, '')
})

shell('names a program that is not installed', async () => {
  const error = await failureOf(runProgram({ ...quick, program: 'no-such-program', args: [] }))
  assert.is(error.code, 'PROGRAM_ABSENT')
  assert.match(error.hint ?? '', /install/)
  assert.is(findProgram('no-such-program'), undefined)
})

shell('ends a program that takes too long, its children too', async () => {
  const mark = `${directory}/mark`
  const started = Date.now()
  const args = ['-c', `(sleep 2; touch ${mark}) & wait`]
  const error = await failureOf(runProgram({ program: 'sh', args, changes: true, timeoutMs: 200 }))
  assert.is(error.code, 'PROGRAM_TIMEOUT')
  assert.ok(Date.now() - started < 1900)
  await sleep(2200)
  assert.not.ok(existsSync(mark))
})

shell('kills what an ended program leaves behind, even what ignores SIGTERM', async () => {
  const stubborn = `trap '' TERM; echo $$ > ${directory}/stubborn; while :; do sleep 0.1; done`
  const args = ['-c', `sh -c "$1" >/dev/null 2>&1 & sleep 30`, 'sh', stubborn]
  const error = await failureOf(runProgram({ program: 'sh', args, changes: true, timeoutMs: 300 }))
  assert.is(error.code, 'PROGRAM_TIMEOUT')
  await sleep(100)
  const pid = readFileSync(`${directory}/stubborn`, 'utf8').trim()
  const stat = `/proc/${pid}/stat`
  if (existsSync(stat)) assert.match(readFileSync(stat, 'utf8'), /\) Z /)
})

shell('runs a program by another, and with an environment of its own', async () => {
  const { stdout } = await runProgram({
    ...quick,
    program: 'sh',
    args: ['-c', 'nice; echo "$LANG.$LC_ALL.$MINE.${HOME:+home}"'],
    runBy: ['nice', '-n', '7'],
    environment: { LANG: 'xx', MINE: 'a b' },
  })
  assert.is(stdout, `${Math.min(19, getPriority() + 7)}\nxx..a b.home\n`)
})

shell('ends a program when the run is interrupted', async () => {
  const controller = new AbortController()
  setTimeout(() => controller.abort(), 100)
  const error = await failureOf(
    runProgram({ ...quick, program: 'sleep', args: ['30'], signal: controller.signal }),
  )
  assert.is(error.code, 'INTERRUPTED')
  const again = await failureOf(
    runProgram({ ...quick, program: 'sleep', args: ['30'], signal: controller.signal }),
  )
  assert.is(again.code, 'INTERRUPTED')
})

shell('says when a program was killed', async () => {
  const error = await failureOf(runProgram({ ...quick, program: 'sh', args: ['-c', 'kill -9 $$'] }))
  assert.is(error.code, 'PROGRAM_FAILED')
  assert.match(error.message, /SIGKILL/)
})

shell('refuses a changing program in a dry run', async () => {
  const mark = `${directory}/dry`
  const call = { program: 'touch', args: [mark], changes: true, dryRun: true, timeoutMs: 1000 }
  await runProgram(call).then(
    () => assert.unreachable(),
    (error: Error) => assert.match(error.message, /dry run/),
  )
  assert.not.ok(existsSync(mark))
})

shell('a program ends when the one that started it is killed', async () => {
  if (process.platform !== 'linux') return
  mkdirSync(`${directory}/orphan`)
  const module = new URL('../../lib/machine/shell.js', import.meta.url)
  writeFileSync(
    `${directory}/start.mjs`,
    `
    import { runProgram } from ${JSON.stringify(module.href)}
    await runProgram({ program: 'sh',
      args: ['-c', 'echo $$ > ${directory}/orphan/pid; exec sleep 60'],
      changes: true, timeoutMs: 60000 })`,
  )
  const starter = spawn(process.execPath, [`${directory}/start.mjs`], { stdio: 'ignore' })
  const pid = `${directory}/orphan/pid`
  while (!existsSync(pid) || readFileSync(pid, 'utf8') === '') await sleep(20)
  starter.kill('SIGKILL')
  await sleep(300)
  // Where nobody reaps orphans it stays as a zombie, state Z.
  const stat = `/proc/${readFileSync(pid, 'utf8').trim()}/stat`
  if (existsSync(stat)) assert.match(readFileSync(stat, 'utf8'), /\) Z /)
})

shell.run()
