// Outside programs, run through one door: arguments as arrays, a time limit, a clean environment,
// one dry-run gate.
//
// The only importer of zx. zx runs a shell and takes defaults from ZX_* variables, so every option
// is set here, and arguments are quoted by our own rule, which carries any byte but zero (names
// need not be UTF-8). `exec` replaces the shell, so signals reach the program itself; it is told to
// end when we are killed (setpriv --pdeathsig, where there is one). Exit codes are returned, not
// judged: what they mean is the caller's knowledge. Throws BackupError PROGRAM_ABSENT,
// PROGRAM_TIMEOUT, PROGRAM_FAILED (too much output, killed by a signal) and INTERRUPTED.

import assert from 'node:assert/strict'
import { Buffer } from 'node:buffer'
import { accessSync, constants, statSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { $, ProcessPromise } from 'zx/core'
import { BackupError } from '../errors.ts'

export interface ProgramCall {
  readonly program: string
  /** Strings are text and reach the program as UTF-8; bytes reach it as they are. */
  readonly args: readonly (string | Uint8Array)[]
  /** Whether the program changes anything outside its own memory: refused in a dry run. */
  readonly changes: boolean
  readonly dryRun?: boolean
  readonly timeoutMs: number
  /**
   * Called for each line, without its newline. With it, standard output is not kept and standard
   * error only its end.
   */
  readonly onLine?: (line: Buffer, stream: 'stdout' | 'stderr') => void
  readonly signal?: AbortSignal | undefined
  /** What the program reads on standard input; nothing by default. */
  readonly input?: Uint8Array
  /**
   * An open file that the program inherits, so that a lock on it holds until the program, too, has
   * ended.
   */
  readonly inherit?: number
  /** Words before it, of a program that runs it: `nice -n 10`. */
  readonly runBy?: readonly string[]
  /** What it finds in its environment besides PATH and HOME, instead of plain English. */
  readonly environment?: Readonly<Record<string, string>>
}

export interface ProgramResult {
  readonly exitCode: number
  readonly stdout: string
  readonly stderr: string
}

/**
 * Where programs are looked for after PATH: a user's PATH on Debian lacks sbin, where btrfs lives.
 */
const FURTHER_DIRECTORIES = [
  '/usr/local/sbin',
  '/usr/local/bin',
  '/usr/sbin',
  '/usr/bin',
  '/sbin',
  '/bin',
]

/** More than any program we ask for its output prints; a runaway must not fill our memory. */
const MAX_OUTPUT_BYTES = 64 * 1024 * 1024

/** What is kept of standard error when lines are handed on as they come: enough for a message. */
const KEPT_ERROR_BYTES = 64 * 1024

/** How long a program may take to end in good order before it is killed. */
const GRACE_MS = 5_000

/** What a program leaves behind when it was told to end gets this many moments to end, too. */
const LEFTOVER_MOMENTS = 25
const MOMENT_MS = 20

/** Linux refuses a single argument above 128 KiB, and the shell takes the whole command as one. */
const MAX_COMMAND_BYTES = 120 * 1024

const INSTALL_HINTS: Readonly<Record<string, string>> = {
  rsync: 'install it: apt install rsync, or brew install rsync',
  btrfs: 'install it: apt install btrfs-progs',
  zfs: 'install it: apt install zfsutils-linux',
  mount: 'install it: apt install mount',
  umount: 'install it: apt install mount',
  lsblk: 'install it: apt install util-linux',
  blkid: 'install it: apt install util-linux',
  udisksctl: 'install it: apt install udisks2',
  smartctl: 'install it: apt install smartmontools',
  par2: 'install it: apt install par2, or brew install par2',
}

/** Runs a program to its end. @throws BackupError as the header says */
export async function runProgram(call: ProgramCall): Promise<ProgramResult> {
  assert(
    !(call.changes && call.dryRun === true),
    `${call.program} would change something in a dry run`,
  )
  // Loaded at the first call, so that commands that run no program start fast.
  const shell = (await import('zx/core')).$
  if (call.signal?.aborted === true) throw new BackupError('INTERRUPTED', 'interrupted')
  const file = findProgram(call.program)
  if (file === undefined) throw absent(call.program)
  const output = outputKeeper(call)
  const running = start(call, { shell, file, store: output.store })
  const ending = watch(call, running.pid)
  // A program that ends before it has read everything says by its exit code what that means.
  running.child?.stdin?.on('error', () => {})
  running.child?.stdout?.on('data', (bytes: Buffer) => output.take(bytes, 'stdout', ending))
  running.child?.stderr?.on('data', (bytes: Buffer) => output.take(bytes, 'stderr', ending))
  const result = await running.finally(ending.clear)
  output.finish()
  if (ending.reason !== undefined) {
    await endLeftovers(running.pid)
    throw ending.reason
  }
  if (result.exitCode === null) throw killed(call.program, result.signal)
  return { exitCode: result.exitCode, stdout: output.text('stdout'), stderr: output.text('stderr') }
}

/** Where a program lies, or undefined. A name with a slash is a path already. */
export function findProgram(program: string): string | undefined {
  if (program.includes('/')) return isProgram(program) ? program : undefined
  const path = (process.env['PATH'] ?? '')
    .split(':')
    .filter((directory) => directory.startsWith('/'))
  for (const directory of [...path, ...FURTHER_DIRECTORIES]) {
    const file = join(directory, program)
    if (isProgram(file)) return file
  }
  return undefined
}

function isProgram(file: string): boolean {
  try {
    accessSync(file, constants.X_OK)
    return statSync(file).isFile()
  } catch {
    return false
  }
}

/** An argument for bash; `raw` has one character a byte. */
export function quoteArgument(raw: string): string {
  assert(!raw.includes('\0'), 'an argument cannot hold a zero byte')
  if (/^[\w/.\-@:=+,]+$/.test(raw)) return raw
  const escape = (character: string): string =>
    `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`
  return `$'${raw.replace(/[^\w/.\-@:=+, ]/g, escape)}'`
}

type Store = NonNullable<typeof $.store>

function start(
  call: ProgramCall,
  {
    shell,
    file,
    store,
  }: { readonly shell: typeof $; readonly file: string; readonly store: Store },
): ProcessPromise {
  const words = [...guard(), ...(call.runBy ?? []), file, ...call.args].map(rawText)
  const bytes = words.reduce((sum, word) => sum + quoteArgument(word).length + 1, 0)
  assert(bytes < MAX_COMMAND_BYTES, `${call.program}: the command is too long`)
  const run = shell({
    ...(call.input === undefined ? {} : { input: Buffer.from(call.input) }),
    ac: new AbortController(),
    cwd: '/',
    detached: true,
    env: environment(call),
    killSignal: 'SIGTERM',
    log: () => {},
    nothrow: true,
    postfix: '',
    prefix: 'exec ',
    preferLocal: false,
    quiet: true,
    quote: quoteArgument,
    shell: findProgram('bash') ?? '/bin/bash',
    stdio: [call.input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe', ...inherited(call)],
    store,
    sync: false,
    timeout: 0,
    timeoutSignal: 'SIGTERM',
    verbose: false,
  })
  return run`${words}`
}

function inherited(call: ProgramCall): number[] {
  return call.inherit === undefined ? [] : [call.inherit]
}

/** On Linux the kernel ends the program when we die; elsewhere it ends at its next write to us. */
function guard(): string[] {
  const setpriv = process.platform === 'linux' ? findProgram('setpriv') : undefined
  return setpriv === undefined ? [] : [setpriv, '--pdeathsig', 'TERM', '--']
}

function rawText(argument: string | Uint8Array): string {
  return Buffer.from(argument as Uint8Array).toString('latin1')
}

/**
 * Nothing of ours but where programs and the home are: no secret, no ZX_*, messages in plain
 * English.
 */
function environment(call: ProgramCall): Record<string, string> {
  const { PATH = '', HOME = '/' } = process.env
  return {
    ...(call.environment ?? { LC_ALL: 'C', LANG: 'C' }),
    PATH: [PATH, ...FURTHER_DIRECTORIES].filter((part) => part !== '').join(':'),
    HOME,
  }
}

interface Ending {
  reason: BackupError | undefined
  readonly end: (reason: BackupError) => void
  readonly clear: () => void
}

/** Ends the program (its whole process group) on a timeout, an abort, or when asked. */
function watch(call: ProgramCall, pid: number | undefined): Ending {
  const timers: NodeJS.Timeout[] = []
  const end = (reason: BackupError): void => {
    ending.reason ??= reason
    signalGroup(pid, 'SIGTERM')
    timers.push(setTimeout(() => signalGroup(pid, 'SIGKILL'), GRACE_MS))
  }
  const onAbort = (): void => end(new BackupError('INTERRUPTED', 'interrupted'))
  const clear = (): void => {
    for (const timer of timers) clearTimeout(timer)
    call.signal?.removeEventListener('abort', onAbort)
  }
  const ending: Ending = { reason: undefined, end, clear }
  timers.push(setTimeout(() => end(tookTooLong(call)), call.timeoutMs))
  call.signal?.addEventListener('abort', onAbort)
  return ending
}

/** A child that does not heed SIGTERM would outlive the program that was ended. */
async function endLeftovers(pid: number | undefined): Promise<void> {
  for (let moment = 0; moment < LEFTOVER_MOMENTS; moment++) {
    if (!signalGroup(pid, 0)) return
    await sleep(MOMENT_MS)
  }
  signalGroup(pid, 'SIGKILL')
}

/** Whether anything of the group is left; signal 0 only asks. */
function signalGroup(pid: number | undefined, signal: NodeJS.Signals | 0): boolean {
  if (pid === undefined) return false
  try {
    return process.kill(-pid, signal)
  } catch {
    return false
  }
}

interface OutputKeeper {
  readonly store: Store
  readonly take: (bytes: Buffer, stream: 'stdout' | 'stderr', ending: Ending) => void
  readonly finish: () => void
  readonly text: (stream: 'stdout' | 'stderr') => string
}

/**
 * Keeps or hands on what a program prints. zx's own store stays empty: it would keep everything,
 * three times.
 */
function outputKeeper({ program, onLine }: ProgramCall): OutputKeeper {
  const kept = { stdout: [] as Buffer[], stderr: [] as Buffer[] }
  const keptBytes = { stdout: 0, stderr: 0 }
  const rest: Record<'stdout' | 'stderr', Buffer> = {
    stdout: Buffer.alloc(0),
    stderr: Buffer.alloc(0),
  }
  const keep = (bytes: Buffer, stream: 'stdout' | 'stderr', ending: Ending): void => {
    if (onLine !== undefined && stream === 'stdout') return
    kept[stream].push(bytes)
    keptBytes[stream] += bytes.length
    while (
      onLine !== undefined
      && keptBytes[stream] - (kept[stream][0]?.length ?? 0) > KEPT_ERROR_BYTES
    ) {
      keptBytes[stream] -= kept[stream].shift()?.length ?? 0
    }
    if (keptBytes[stream] > MAX_OUTPUT_BYTES) ending.end(tooMuch(program))
  }
  const split = (bytes: Buffer, stream: 'stdout' | 'stderr', ending: Ending): void => {
    if (onLine === undefined) return
    let pending = rest[stream].length === 0 ? bytes : Buffer.concat([rest[stream], bytes])
    for (let end = pending.indexOf(10); end >= 0; end = pending.indexOf(10)) {
      onLine(pending.subarray(0, end), stream)
      pending = pending.subarray(end + 1)
    }
    rest[stream] = pending
    if (pending.length > MAX_OUTPUT_BYTES) ending.end(tooMuch(program))
  }
  const none = { push: () => 0, length: 0, join: () => '' } as unknown as Buffer[]
  return {
    store: { stdout: none, stderr: none, stdall: none } as unknown as Store,
    take: (bytes, stream, ending) => {
      keep(bytes, stream, ending)
      split(bytes, stream, ending)
    },
    finish: () => {
      for (const stream of ['stdout', 'stderr'] as const) {
        if (rest[stream].length > 0) onLine?.(rest[stream], stream)
      }
    },
    text: (stream) => Buffer.concat(kept[stream]).toString('utf8'),
  }
}

function absent(program: string): BackupError {
  const hint = INSTALL_HINTS[program] ?? `install ${program}, or put it on PATH`
  return new BackupError('PROGRAM_ABSENT', `${program} is not installed`, {
    hint,
    facts: { program },
  })
}

function tookTooLong({ program, timeoutMs }: ProgramCall): BackupError {
  const message = `${program} was ended after ${Math.round(timeoutMs / 1000)} seconds`
  return new BackupError('PROGRAM_TIMEOUT', message, {
    facts: { program, timeoutMs },
    retry: 'later',
  })
}

function tooMuch(program: string): BackupError {
  return new BackupError('PROGRAM_FAILED', `${program} printed more than ${MAX_OUTPUT_BYTES} bytes`)
}

function killed(program: string, signal: string | null): BackupError {
  return new BackupError('PROGRAM_FAILED', `${program} was killed by ${signal ?? 'a signal'}`, {
    facts: { program },
  })
}
