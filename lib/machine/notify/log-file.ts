// The log file: a line for each thing that is told, and for each run.
//
// lib/work/announce.ts and the commands call logLine. A line is whole or not there: it is one
// append under the file's own lock, so that two runs at once lose nothing, not even while one of
// them puts a full log aside (`.1`, `.2`, … up to `keep`, by renaming). Links are not followed.
// Control characters are escaped: one event, one line. Throws WRITE_FAILED.

import { Buffer } from 'node:buffer'
import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
} from 'node:fs'
import { dirname } from 'node:path'
import { BackupError, systemCode } from '../../errors.ts'
import type { Announcement } from '../../model/announcement.ts'
import { displayText } from '../../model/raw-path.ts'
import type { LogConfiguration } from '../config.ts'
import { writeAll } from '../durable-file.ts'
import { tryLock } from '../posix.ts'

export type LogLevel = 'ERROR' | 'WARN' | 'INFO'

export interface LogEvent {
  readonly nowMs: number
  readonly level: LogLevel
  /** One word or a few: the kind of an announcement, or `run`. */
  readonly kind: string
  readonly subject: string
  readonly text: string
}

/** A paragraph, not a dump: whoever writes more says it elsewhere. */
const MAX_LINE_CHARACTERS = 4000

/** Whoever holds the lock writes a line or renames a few files. */
const LOCK_TRIES = 200
const PAUSE_MS = 10

/** How often the file may be put aside by somebody else while we wait for it. */
const MAX_REOPENINGS = 20

/** Appends an announcement. @throws BackupError WRITE_FAILED */
export function logAnnouncement({
  log,
  announcement,
  nowMs,
}: {
  readonly log: LogConfiguration
  readonly announcement: Announcement
  readonly nowMs: number
}): void {
  const { kind, subject, title, body } = announcement
  logLine(log, { nowMs, level: levelOf(kind), kind, subject, text: `${title}: ${body}` })
}

/**
 * Appends `<time> <level> <kind> <subject>: <text>`, the time in UTC. Makes the file (0600) and its
 * directory (0700) where they are not there.
 * @throws BackupError WRITE_FAILED
 */
export function logLine(log: LogConfiguration, event: LogEvent): void {
  const { nowMs, level, kind, subject, text } = event
  const said = displayText(`${kind} ${subject}: ${text}`).slice(0, MAX_LINE_CHARACTERS)
  const line = Buffer.from(`${new Date(nowMs).toISOString()} ${level} ${said}\n`)
  try {
    mkdirSync(dirname(log.path), { recursive: true, mode: 0o700 })
    append(log, line)
  } catch (error) {
    throw logError(error, log.path)
  }
}

function levelOf(kind: Announcement['kind']): LogLevel {
  if (kind === 'failed') return 'ERROR'
  return kind === 'succeeded' || kind === 'safe to unplug' ? 'INFO' : 'WARN'
}

function append(log: LogConfiguration, line: Buffer): void {
  for (let reopenings = 0; reopenings < MAX_REOPENINGS; reopenings++) {
    const fd = openLog(log.path)
    try {
      waitForLock(fd, log.path)
      // Somebody put it aside while we waited: what has the name now is another file.
      if (!isStillNamed(fd, log.path)) continue
      const { size } = fstatSync(fd)
      if (size === 0 || size + line.length <= log.maxBytes) {
        // A line that a power cut tore must not swallow this one.
        writeAll(fd, endsTorn(fd, size) ? Buffer.concat([Buffer.from('\n'), line]) : line)
        return
      }
      putAside(log)
    } finally {
      closeSync(fd)
    }
  }
  throw refused(log.path, 'is put aside again and again')
}

/** A pipe that nobody reads would hold us for ever: O_NONBLOCK makes it an error. */
function openLog(path: string): number {
  const { O_RDWR, O_APPEND, O_CREAT, O_NOFOLLOW, O_NONBLOCK } = constants
  const fd = openSync(path, O_RDWR | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0o600)
  if (fstatSync(fd).isFile()) return fd
  closeSync(fd)
  throw refused(path, 'is no file')
}

function waitForLock(fd: number, path: string): void {
  for (let tries = 0; !tryLock(fd); tries++) {
    if (tries >= LOCK_TRIES) throw refused(path, 'is held by another program')
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, PAUSE_MS)
  }
}

function isStillNamed(fd: number, path: string): boolean {
  const named = lstatSync(path, { throwIfNoEntry: false, bigint: true })
  const open = fstatSync(fd, { bigint: true })
  return named !== undefined && named.ino === open.ino && named.dev === open.dev
}

function endsTorn(fd: number, size: number): boolean {
  const last = Buffer.alloc(1)
  return size > 0 && readSync(fd, last, 0, 1, size - 1) === 1 && last[0] !== 10
}

/** From the oldest on, so that a kill in between leaves a gap and no line is lost. */
function putAside({ path, keep }: LogConfiguration): void {
  if (keep === 0) return rmSync(path)
  for (let number = keep; number > 1; number--) {
    const from = `${path}.${number - 1}`
    if (existsSync(from)) renameSync(from, `${path}.${number}`)
  }
  renameSync(path, `${path}.1`)
}

function refused(path: string, why: string): BackupError {
  const message = `the log "${displayText(path)}" ${why}`
  return new BackupError('WRITE_FAILED', message, { hint: HINT })
}

const HINT = 'set notify.log to a file of your own; the backup itself is unharmed'

function logError(error: unknown, path: string): unknown {
  if (error instanceof BackupError) return error
  const code = systemCode(error)
  if (code === undefined) return error
  const why = code === 'ELOOP' ? 'is a symbolic link' : `cannot be written (${code})`
  const message = `the log "${displayText(path)}" ${why}`
  return new BackupError('WRITE_FAILED', message, { hint: HINT, cause: error })
}
