// Mail, handed to this machine's sendmail program (of postfix, exim, msmtp, …).
//
// lib/work/announce.ts calls it. The message is plain text by RFC 5322: every line ASCII and short,
// a header cannot be added from within a value, and `Auto-Submitted` keeps answering machines from
// answering. Whether it arrives is the mail system's matter: what is known is that it was taken.
// Throws PROGRAM_ABSENT, PROGRAM_FAILED, PROGRAM_TIMEOUT, INTERRUPTED.

import { Buffer } from 'node:buffer'
import { randomUUID } from 'node:crypto'
import { hostname, userInfo } from 'node:os'
import { BackupError } from '../../errors.ts'
import type { Announcement } from '../../model/announcement.ts'
import { displayText } from '../../model/raw-path.ts'
import type { MailConfiguration } from '../config.ts'
import { runProgram } from '../shell.ts'

export interface MailCall {
  readonly announcement: Announcement
  readonly mail: MailConfiguration
  /** What the machine is called in the subject. */
  readonly machine: string
  readonly nowMs: number
  readonly timeoutMs: number
  readonly signal?: AbortSignal | undefined
}

/** A subject is read in a list. */
const MAX_SUBJECT_CHARACTERS = 150

/** A line with an encoded word has at most 76 characters: `Subject: `, these in base64, and 12. */
const ENCODED_WORD_BYTES = 39

/** RFC 2045: encoded lines have at most 76 characters. */
const MAX_LINE = 76

/** Hands the mail over. @throws BackupError as the header says */
export async function sendMail(call: MailCall): Promise<void> {
  const { mail, timeoutMs, signal } = call
  // The configuration's schema refuses these; here it would be an option of sendmail's.
  const isOption = [...mail.to, mail.from ?? ''].some((address) => address.startsWith('-'))
  if (isOption) throw new BackupError('PROGRAM_FAILED', 'an address of mail begins with "-"')
  const sender = mail.from === undefined ? [] : ['-f', mail.from]
  const { exitCode, stderr } = await runProgram({
    program: mail.sendmail,
    // A line with a single dot is text, not the end.
    args: ['-oi', ...sender, '--', ...mail.to],
    changes: true,
    timeoutMs,
    signal,
    input: Buffer.from(composeMail(call)),
  })
  if (exitCode === 0) return
  const said = displayText(stderr.trim().split('\n').at(-1) ?? '').slice(0, 200)
  throw new BackupError('PROGRAM_FAILED', `sendmail ended with exit code ${exitCode}: ${said}`, {
    hint: `see whether this machine can send mail: echo test | ${mail.sendmail} ${mail.to[0]}`,
  })
}

/** Lines end as they do on this machine; the mail system makes them CRLF. */
function composeMail({ announcement, mail, machine, nowMs }: MailCall): string {
  const { kind, subject, title, body, facts } = announcement
  const host = hostname().replace(/[^A-Za-z0-9.-]/g, '-') || 'localhost'
  const urgent = kind === 'failed' ? ['Importance: high'] : []
  const header = [
    `From: ${mail.from === undefined ? `${ownName()}@${host}` : displayText(mail.from)}`,
    `To: ${mail.to.map(displayText).join(',\n ')}`,
    `Subject: ${encodeHeader(`[${machine}] ${title}`)}`,
    `Date: ${new Date(nowMs).toUTCString().replace('GMT', '+0000')}`,
    `Message-ID: <${randomUUID()}@${host}>`,
    ...urgent,
    'Auto-Submitted: auto-generated',
    'MIME-Version: 1.0',
    'Content-Type: text/plain; charset=utf-8',
    'Content-Transfer-Encoding: quoted-printable',
  ]
  const about = { machine, kind, about: subject, time: new Date(nowMs).toISOString(), ...facts }
  const lines = Object.entries(about).flatMap(([name, value]) => {
    return value === undefined ? [] : [displayText(`${name}: ${value}`)]
  })
  const text = [...body.split('\n').map(displayText), '', ...lines]
  return `${header.join('\n')}\n\n${text.map(quotePrintable).join('\n')}\n`
}

function ownName(): string {
  try {
    const { username } = userInfo()
    return /^[\w.][\w.-]*$/.test(username) ? username : 'backup'
  } catch {
    // A user that no database knows.
    return 'backup'
  }
}

/** One line of ASCII as it is; anything else as encoded words of RFC 2047, each whole text. */
function encodeHeader(text: string): string {
  const line = displayText(text).slice(0, MAX_SUBJECT_CHARACTERS)
  if (/^[\x20-\x7e]*$/.test(line) && !line.includes('=?')) return line
  const words = ['']
  for (const character of line) {
    const longer = `${words.at(-1)}${character}`
    if (Buffer.byteLength(longer) > ENCODED_WORD_BYTES) words.push(character)
    else words[words.length - 1] = longer
  }
  return words.map((word) => `=?UTF-8?B?${Buffer.from(word).toString('base64')}?=`).join('\n ')
}

/** One line of the body; RFC 2045 §6.7. */
function quotePrintable(line: string): string {
  const bytes = Buffer.from(line)
  let encoded = ''
  let width = 0
  bytes.forEach((byte, index) => {
    const isPlain = byte >= 32 && byte <= 126 && byte !== 61
    const isAtEnd = byte === 32 && index === bytes.length - 1
    const code = byte.toString(16).toUpperCase().padStart(2, '0')
    const piece = isPlain && !isAtEnd ? String.fromCharCode(byte) : `=${code}`
    if (width + piece.length > MAX_LINE - 1) {
      encoded += '=\n'
      width = 0
    }
    encoded += piece
    width += piece.length
  })
  return encoded
}
