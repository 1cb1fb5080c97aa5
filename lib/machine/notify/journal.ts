// The journal of systemd, or the syslog where there is none, through `logger`.
//
// lib/work/announce.ts calls it. The journal gets fields that programs can ask for
// (`journalctl BACKUP_KIND=failed`); the syslog gets one line. Values are one line each: control
// characters are escaped, so no value can begin a field of its own. Throws PROGRAM_ABSENT,
// PROGRAM_FAILED, PROGRAM_TIMEOUT, INTERRUPTED.

import { Buffer } from 'node:buffer'
import { existsSync } from 'node:fs'
import { BackupError } from '../../errors.ts'
import type { Announcement } from '../../model/announcement.ts'
import { displayText } from '../../model/raw-path.ts'
import { runProgram } from '../shell.ts'

export interface JournalCall {
  readonly announcement: Announcement
  readonly timeoutMs: number
  readonly signal?: AbortSignal | undefined
  /** Where they listen, when not where they always do. */
  readonly journalSocket?: string
  readonly syslogSocket?: string
}

/** Priorities of syslog: their number for the journal, their name for logger. */
const PRIORITIES = { error: [3, 'err'], warning: [4, 'warning'], info: [6, 'info'] } as const

/** The journal takes names of at most 64 characters. */
const MAX_FIELD_NAME = 64

/** logger cuts at 1 KiB, in the middle of a character if need be. */
const MAX_SYSLOG_BYTES = 900

/** Says it to the journal or the syslog. @throws BackupError as the header says */
export async function sendToJournal(call: JournalCall): Promise<void> {
  const { announcement, timeoutMs, signal } = call
  const run = { program: 'logger', changes: true, timeoutMs, signal }
  if (existsSync(call.journalSocket ?? '/run/systemd/journal/socket')) {
    const input = Buffer.from(journalEntry(announcement))
    return judge(await runProgram({ ...run, args: ['--journald'], input }))
  }
  // Without this, logger says nothing to nobody, and ends well.
  const isLinux = process.platform === 'linux'
  if (isLinux && !existsSync(call.syslogSocket ?? '/dev/log')) {
    throw new BackupError('PROGRAM_FAILED', 'neither a journal nor a syslog runs here', {
      hint: 'set notify.syslog to false, or install a syslog',
    })
  }
  const [, level] = priorityOf(announcement)
  const text = cut(displayText(`${announcement.title}: ${announcement.body}`))
  judge(await runProgram({ ...run, args: ['-t', 'backup', '-p', `user.${level}`, '--', text] }))
}

function journalEntry(announcement: Announcement): string {
  const { kind, subject, title, body, facts } = announcement
  const fields: (readonly [string, unknown])[] = [
    ['MESSAGE', `${title}: ${body}`],
    ['PRIORITY', priorityOf(announcement)[0]],
    ['SYSLOG_IDENTIFIER', 'backup'],
    ['BACKUP_KIND', kind],
    ['BACKUP_SUBJECT', subject],
  ]
  const own = new Set(fields.map(([name]) => name))
  for (const [name, value] of Object.entries(facts)) {
    const field = fieldName(name)
    if (value !== undefined && !own.has(field)) fields.push([field, value])
  }
  return fields.map(([name, value]) => `${name}=${displayText(String(value))}\n`).join('')
}

/** `exitCode` is BACKUP_EXIT_CODE. */
function fieldName(fact: string): string {
  const words = fact.replace(/([a-z0-9])([A-Z])/g, '$1_$2').replace(/[^A-Za-z0-9]+/g, '_')
  return `BACKUP_${words.toUpperCase()}`.slice(0, MAX_FIELD_NAME)
}

function priorityOf({ kind }: Announcement): readonly [number, string] {
  if (kind === 'failed') return PRIORITIES.error
  return kind === 'succeeded' || kind === 'safe to unplug' ? PRIORITIES.info : PRIORITIES.warning
}

/** At most so many bytes, and whole characters. */
function cut(text: string): string {
  const bytes = Buffer.from(text)
  if (bytes.length <= MAX_SYSLOG_BYTES) return text
  return `${bytes.toString('utf8', 0, MAX_SYSLOG_BYTES).replace(/\ufffd+$/, '')}…`
}

function judge({ exitCode, stderr }: { exitCode: number; stderr: string }): void {
  if (exitCode === 0) return
  const said = displayText(stderr.trim().split('\n').at(-1) ?? '').slice(0, 200)
  throw new BackupError('PROGRAM_FAILED', `logger ended with exit code ${exitCode}: ${said}`, {
    hint: 'see whether the journal or the syslog of this machine runs',
  })
}
