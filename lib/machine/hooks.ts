// Hooks: programs of the user's that run before and after a phase of a set, and when it failed.
//
// The procedures of lib/work call withHooks around a phase. A hook gets its facts through a small
// environment of its own, which holds nothing of ours that is secret (design invariant 11), and no
// standard input; what it prints goes to the report. A hook before the work that fails stops the
// work; one after it never changes what became of it. Every hook has a time limit, after which it
// is ended with all that it started. Throws PROGRAM_ABSENT, PROGRAM_FAILED, PROGRAM_TIMEOUT and
// INTERRUPTED, for `before` only. docs/hooks.md is for the user.

import type { Buffer } from 'node:buffer'
import { BackupError, ERRORS } from '../errors.ts'
import { displayText } from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import type { HookConfiguration } from './config-meaning.ts'
import { findProgram, runProgram } from './shell.ts'

export type HookMoment = 'before' | 'after' | 'on_failure'

export type HookOutcome = 'good' | 'incomplete' | 'suspect' | 'failed'

export interface HookFacts {
  readonly set: string
  readonly phase: 'collect' | 'export'
  /** Where it is known already. */
  readonly stamp?: string | undefined
  /** The target's name, for an export. */
  readonly target?: string | undefined
  /** Known only after the work, as is the exit code. */
  readonly outcome?: HookOutcome
  readonly exitCode?: number
  /** Paths, as text. */
  readonly configuration: string
  readonly staging: string
}

export interface HooksCall {
  readonly hooks: HookConfiguration
  readonly facts: HookFacts
  /** Gets what hooks print, a notice HOOK_OUTPUT a line, and a warning HOOK_FAILED. */
  readonly report: Report
  readonly signal?: AbortSignal | undefined
  /** Ours: a few variables of it are passed on. */
  readonly environment: Readonly<Record<string, string | undefined>>
}

export interface HookedWork<Value> {
  readonly outcome: Exclude<HookOutcome, 'failed'>
  readonly value: Value
  /** Where the work gave it. */
  readonly stamp?: string
}

/** What a program needs to find its user, language and time; PATH and HOME are shell.ts's. */
const PASSED_ON = ['USER', 'LOGNAME', 'SHELL', 'LANG', 'LC_ALL', 'LC_CTYPE', 'TZ', 'TMPDIR']

/** Enough to see what a hook does; the rest of what a talkative one prints helps nobody. */
const MAX_REPORTED_LINES = 200

/** A message should fit on a screen. */
const MAX_LINE_CHARACTERS = 300
const LINES_IN_MESSAGE = 3

/**
 * Runs `before`, the work, `on_failure` unless the work was good, and `after`. A `before` that
 * fails counts as failed work. `after` runs whenever `before` was started, so that what was frozen
 * is thawed, and neither it nor `on_failure` is ended by an interruption.
 * @returns what the work made
 * @throws what `before` or the work throws
 */
export async function withHooks<Value>(
  call: HooksCall,
  work: () => Promise<HookedWork<Value>>,
): Promise<Value> {
  const { hooks, facts, report, signal, environment } = call
  if (signal?.aborted === true) throw new BackupError('INTERRUPTED', 'interrupted')
  const [program] = hooks.before ?? []
  const started = program === undefined || isThere(program)
  let end: HookFacts = { ...facts, outcome: 'failed', exitCode: 70 }
  const runAtEnd = async (moment: HookMoment): Promise<void> => {
    const warning = await runHook({ hook: hooks, moment, facts: end, report, environment })
    if (warning === undefined) return
    report({ kind: 'notice', level: 'warning', code: 'HOOK_FAILED', message: warning })
  }
  try {
    await runHook({ hook: hooks, moment: 'before', facts, report, signal, environment })
    const { outcome, value, stamp = facts.stamp } = await work()
    const exitCode = outcome === 'good' ? 0 : ERRORS.INCOMPLETE[0]
    end = { ...facts, stamp, outcome, exitCode }
    return value
  } catch (error) {
    if (error instanceof BackupError) end = { ...end, exitCode: error.exitCode }
    throw error
  } finally {
    if (end.outcome !== 'good') await runAtEnd('on_failure')
    if (started) await runAtEnd('after')
  }
}

/**
 * Runs one hook to its end; nothing happens where none is configured.
 * @returns for `after` and `on_failure` what went wrong, as a warning
 * @throws BackupError for `before`: PROGRAM_ABSENT, PROGRAM_FAILED, PROGRAM_TIMEOUT, INTERRUPTED
 */
export async function runHook(
  call: Omit<HooksCall, 'hooks'> & {
    readonly hook: HookConfiguration
    readonly moment: HookMoment
  },
): Promise<string | undefined> {
  const { hook, moment, facts } = call
  const words = { before: hook.before, after: hook.after, on_failure: hook.onFailure }[moment]
  const [program, ...args] = words ?? []
  if (program === undefined) return undefined
  const said = new Said(call)
  let failure: BackupError
  try {
    if (!isThere(program)) throw notThere(program)
    const { exitCode } = await runProgram({
      program,
      args,
      changes: true,
      timeoutMs: hook.timeoutMs,
      environment: hookEnvironment(call),
      onLine: said.take,
      signal: call.signal,
    })
    if (exitCode === 0) return undefined
    const message = `${displayText(program)} ended with exit code ${exitCode}`
    failure = new BackupError('PROGRAM_FAILED', message, { facts: { exitCode } })
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    failure = error
  }
  if (failure.code === 'INTERRUPTED' && moment === 'before') throw failure
  const message = `${nameOf(call)}: ${failure.message}${said.end()}`
  if (moment !== 'before') return `${facts.set}: ${message}`
  throw new BackupError(failure.code, message, {
    hint: failure.hint ?? 'this set was left alone; what was backed up before is unharmed',
    facts: { ...failure.facts, program, set: facts.set, phase: facts.phase, moment },
    retry: failure.retry,
    cause: failure.cause,
  })
}

/** As the configuration calls it. */
function nameOf({ moment, facts }: { moment: HookMoment; facts: HookFacts }): string {
  return `hooks.${facts.phase}.${moment}`
}

/** A path must be absolute: hooks run in `/`, wherever we were called. */
function isThere(program: string): boolean {
  if (program.includes('/') && !program.startsWith('/')) return false
  return findProgram(program) !== undefined
}

function notThere(program: string): BackupError {
  const message = `"${displayText(program)}" is not there, or is not a program`
  const hint = program.startsWith('~')
    ? 'write the whole path: ~ means nothing in a hook'
    : 'write an absolute path or the name of a program on PATH, and make it executable'
  return new BackupError('PROGRAM_ABSENT', message, { hint })
}

function hookEnvironment({
  moment,
  facts,
  environment,
}: {
  readonly moment: HookMoment
  readonly facts: HookFacts
  readonly environment: HooksCall['environment']
}): Record<string, string> {
  const variables = {
    ...Object.fromEntries(PASSED_ON.map((name) => [name, environment[name]])),
    BACKUP_SET: facts.set,
    BACKUP_PHASE: facts.phase,
    BACKUP_MOMENT: moment,
    BACKUP_STAMP: facts.stamp,
    BACKUP_TARGET: facts.target,
    BACKUP_OUTCOME: facts.outcome,
    BACKUP_EXIT_CODE: facts.exitCode?.toString(),
    BACKUP_CONFIG: facts.configuration,
    DBACKUP: facts.staging,
  }
  const given = Object.entries(variables).filter((pair): pair is [string, string] => {
    return pair[1] !== undefined
  })
  return Object.fromEntries(given)
}

/** What a hook prints: passed on, and its end kept for a message. */
class Said {
  readonly #name: string
  readonly #report: Report
  readonly #last: string[] = []
  #count = 0

  constructor(call: { moment: HookMoment; facts: HookFacts; report: Report }) {
    this.#name = `${call.facts.set}: ${nameOf(call)}`
    this.#report = call.report
  }

  readonly take = (bytes: Buffer): void => {
    const line = displayText(bytes.toString('utf8').trimEnd()).slice(0, MAX_LINE_CHARACTERS)
    if (line === '') return
    this.#last.push(line)
    if (this.#last.length > LINES_IN_MESSAGE) this.#last.shift()
    this.#count += 1
    if (this.#count > MAX_REPORTED_LINES) return
    const isLast = this.#count === MAX_REPORTED_LINES
    const text = isLast ? 'prints more than is shown here' : line
    const message = `${this.#name}: ${text}`
    this.#report({ kind: 'notice', level: 'info', code: 'HOOK_OUTPUT', message })
  }

  end(): string {
    return this.#last.length === 0 ? '' : `: ${this.#last.join(' / ')}`
  }
}
