// The history of runs: `$DBACKUP/.state/history.jsonl`, one line of JSON for each run of a phase.
//
// recordRuns and readHistory are inverses. lib/work/due.ts counts from it, `backup status` shows
// it. It is a cache: a line that is damaged is skipped, and without the file the schedule goes by
// what staging holds. It is appended to, and rewritten durably where it grows past its limit. A run
// that did nothing (locked, target not there, interrupted) is no run. Throws STAGING_FULL and
// STAGING_FAILED where it cannot be written, LOCKED where another run holds it for long.

import { Buffer } from 'node:buffer'
import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
} from 'node:fs'
import type { BackupError } from '../errors.ts'
import { writeAll, writeDurably } from '../machine/durable-file.ts'
import { acquireLock } from '../machine/lock.ts'
import { rawPathFromText } from '../model/raw-path.ts'
import { RUN_OUTCOMES, type PastRun, type RunOutcome } from '../model/schedule.ts'
import type { Stamp } from '../model/stamp.ts'
import { stagingError, stateRoot } from './staging.ts'

/** `full` is a collection that compared content. */
export const PHASES = ['collect', 'full', 'export'] as const

export type Phase = (typeof PHASES)[number]

export interface RunRecord extends PastRun {
  readonly phase: Phase
  readonly set: string
  /** Of an export. */
  readonly target: string | undefined
  /** Of an export to a target of kind `drive`: which of its drives it was. */
  readonly drive?: string | undefined
  /** Of an export to a drive: the id of its repository. Another drive may get the name later. */
  readonly repository?: string | undefined
  /**
   * When the command began, not this phase of this set: the sets before it take longer on one day
   * than on another, and a call once a day must find every set due.
   */
  readonly startMs: number
  readonly endMs: number
  /** Undefined where it failed. */
  readonly stamp: Stamp | undefined
  readonly exitCode: number
  /** Of the error, where it failed. */
  readonly errorCode: string | undefined
  readonly message: string | undefined
  /** What to do, for whoever is told at once; not kept. */
  readonly hint?: string | undefined
  /** Of the whole collection or export; what of it had to be copied or written. */
  readonly bytes: number
  readonly writtenBytes: number
}

/** What is known of a run only once it has ended. */
export type EndedRun = Omit<
  RunRecord,
  'phase' | 'set' | 'target' | 'drive' | 'repository' | 'startMs' | 'endMs'
>

/** Enough for years of daily runs, and read in a moment at every call of `backup`. */
const MAX_FILE_BYTES = 2 ** 20

/** What stays when it is rewritten: about a quarter of the limit, so that it is done seldom. */
const KEPT_RUNS = 1000

/** No line of ours is as long; messages are cut. */
const MAX_MESSAGE_CHARACTERS = 500

/** Whoever holds the lock writes one line. */
const LOCK_WAIT_MS = 3_000

/** Errors of a run that touched nothing. */
const NO_RUN = ['LOCKED', 'TARGET_ABSENT', 'INTERRUPTED']

/** Whether a failure is worth a line: see the header. */
export function isRun({ code }: BackupError): boolean {
  return !NO_RUN.includes(code)
}

/** The outcome of a collection or an export that was made. What was accepted is good. */
export function outcomeOf({
  complete,
  suspect = [],
  accepted,
}: {
  readonly complete: boolean
  readonly suspect?: readonly unknown[] | undefined
  readonly accepted?: Stamp | undefined
}): Exclude<RunOutcome, 'failed'> {
  if (accepted !== undefined) return 'good'
  if (suspect.length > 0) return 'suspect'
  return complete ? 'good' : 'incomplete'
}

/** Every run that the history knows, in the order in which they ended. Reads only. */
export function readHistory(staging: string): readonly RunRecord[] {
  let text = ''
  try {
    text = readFileSync(historyPath(staging), 'utf8')
  } catch {
    // A cache that is not there or cannot be read is empty.
  }
  return text.split('\n').flatMap((line) => parseRun(line) ?? [])
}

/**
 * Adds runs at the end. Where there is no staging directory nothing is made.
 * @throws BackupError as the header says
 */
export function recordRuns({
  staging,
  runs,
}: {
  readonly staging: string
  readonly runs: readonly RunRecord[]
}): void {
  if (runs.length === 0 || !existsSync(staging)) return
  try {
    mkdirSync(stateRoot(staging), { recursive: true, mode: 0o700 })
    // No set has this name, so this is never the lock of one.
    const path = rawPathFromText(`${stateRoot(staging)}/.history.lock`)
    const lock = acquireLock({ path, description: 'writing the history', waitMs: LOCK_WAIT_MS })
    try {
      if (append(historyPath(staging), runs) > MAX_FILE_BYTES) compact(staging)
    } finally {
      lock.release()
    }
  } catch (error) {
    throw stagingError({ error, staging, doing: 'written' })
  }
}

/** @returns the size of the file */
function append(path: string, runs: readonly RunRecord[]): number {
  const { O_RDWR, O_APPEND, O_CREAT, O_NOFOLLOW } = constants
  const fd = openSync(path, O_RDWR | O_APPEND | O_CREAT | O_NOFOLLOW, 0o600)
  try {
    const { size } = fstatSync(fd)
    const last = Buffer.alloc(1)
    // A line that a power cut tore must not swallow the next.
    const isTorn = size > 0 && readSync(fd, last, 0, 1, size - 1) === 1 && last[0] !== 10
    const text = runs.map((run) => `${encodeRun(run)}\n`).join('')
    writeAll(fd, Buffer.from(isTorn ? `\n${text}` : text))
    fsyncSync(fd)
    return fstatSync(fd).size
  } finally {
    closeSync(fd)
  }
}

/** The newest runs stay, and the last of each outcome of each phase, set and target. */
function compact(staging: string): void {
  const runs = readHistory(staging)
  const last = new Map(
    runs.map((run) => [
      [run.phase, run.set, run.target ?? '', run.drive ?? '', run.outcome].join('/'),
      run,
    ]),
  )
  const kept = new Set([...last.values(), ...runs.slice(-KEPT_RUNS)])
  const text = runs.filter((run) => kept.has(run)).map((run) => `${encodeRun(run)}\n`)
  const path = rawPathFromText(historyPath(staging))
  writeDurably({ path, bytes: Buffer.from(text.join('')), mode: 0o600, replace: true })
}

function historyPath(staging: string): string {
  return `${stateRoot(staging)}/history.jsonl`
}

function encodeRun(run: RunRecord): string {
  const { phase, set, target, drive, startMs, endMs, stamp, outcome, exitCode, errorCode } = run
  const start = new Date(startMs).toISOString()
  const end = new Date(endMs).toISOString()
  const message = run.message?.slice(0, MAX_MESSAGE_CHARACTERS)
  const { repository, bytes, writtenBytes } = run
  const what = { phase, set, target, drive, repository, start, end, stamp, outcome, exitCode }
  return JSON.stringify({ ...what, error: errorCode, message, bytes, writtenBytes })
}

/** Undefined for anything that encodeRun would not have written. */
function parseRun(line: string): RunRecord | undefined {
  const object = parseLine(line)
  const text = (name: string): string | undefined => {
    const value = object[name]
    return typeof value === 'string' ? value : undefined
  }
  const number = (name: string): number => {
    const value = object[name]
    return typeof value === 'number' && Number.isFinite(value) ? value : 0
  }
  const phase = PHASES.find((name) => name === object['phase'])
  const outcome = RUN_OUTCOMES.find((name) => name === object['outcome'])
  const set = text('set')
  const drive = text('drive')
  const repository = text('repository')
  const startMs = Date.parse(text('start') ?? '')
  const endMs = Date.parse(text('end') ?? '')
  const isWhole = Number.isFinite(startMs) && Number.isFinite(endMs)
  if (phase === undefined || outcome === undefined || set === undefined || !isWhole) return
  return {
    phase,
    set,
    target: text('target'),
    ...(drive === undefined ? {} : { drive }),
    ...(repository === undefined ? {} : { repository }),
    startMs,
    endMs,
    stamp: text('stamp'),
    outcome,
    exitCode: number('exitCode'),
    errorCode: text('error'),
    message: text('message'),
    bytes: number('bytes'),
    writtenBytes: number('writtenBytes'),
  }
}

function parseLine(line: string): Readonly<Record<string, unknown>> {
  try {
    const value = JSON.parse(line) as unknown
    return typeof value === 'object' && value !== null ? { ...value } : {}
  } catch {
    return {}
  }
}
