// PAX extended header records, `<length> <keyword>=<value>\n`, and how values are spelt there.
//
// writePaxRecords and parsePaxRecords are inverses, so are paxTime and parsePaxTime, xattrKeyword
// and xattrName. lib/format/tar.ts decides which records an entry has (docs/format.md §3.3).
// Keywords and textual values are strings of one character a byte, as RawPath is, for names need
// not be UTF-8. Parsing throws TAR_DAMAGED for anything malformed and never reads past what it was
// given.

import { Buffer } from 'node:buffer'
import { BackupError } from '../errors.ts'
import type { TimeNs } from '../model/entry.ts'

const XATTR_PREFIX = 'SCHILY.xattr.'
const BILLION = 1_000_000_000n
const [SPACE, EQUALS, NEWLINE, DIGIT_0, DIGIT_9] = [0x20, 0x3d, 0x0a, 0x30, 0x39]

/** Digits of a record's length: more than any header we accept can hold. */
const MAX_LENGTH_DIGITS = 9

export type PaxRecord = readonly [keyword: string, value: string | Buffer]

/** The bytes that writePaxRecords will need. */
export function paxRecordsBytes(records: readonly PaxRecord[]): number {
  let sum = 0
  for (const record of records) sum += recordBytes(record)
  return sum
}

/** Writes records into `out`; returns the position after them. */
export function writePaxRecords(out: Buffer, records: readonly PaxRecord[], start: number): number {
  let position = start
  for (const record of records) {
    const [keyword, value] = record
    position += out.write(`${recordBytes(record)} ${keyword}=`, position, 'latin1')
    if (typeof value === 'string') position += out.write(value, position, 'latin1')
    else {
      // Buffers come out of a message to a worker thread as Uint8Array.
      out.set(value, position)
      position += value.length
    }
    out[position++] = NEWLINE
  }
  return position
}

/** Adds records to `into`, where the last of a keyword stays. @throws BackupError TAR_DAMAGED */
export function parsePaxRecords(bytes: Buffer, into: Map<string, Buffer>): void {
  for (let position = 0; position < bytes.length;) {
    let lengthBytes = 0
    let cursor = position
    for (; isDigit(bytes[cursor]) && cursor - position < MAX_LENGTH_DIGITS; cursor++) {
      lengthBytes = lengthBytes * 10 + (bytes[cursor] ?? 0) - DIGIT_0
    }
    const end = position + lengthBytes
    if (cursor === position || bytes[cursor] !== SPACE) throw damaged('a record has no length')
    if (end <= cursor + 1 || end > bytes.length) throw damaged('a record lies about its length')
    const equals = bytes.indexOf(EQUALS, cursor)
    const hasKeyword = equals > cursor + 1 && equals < end - 1
    if (!hasKeyword) throw damaged('a record has no keyword')
    if (bytes[end - 1] !== NEWLINE) throw damaged('a record has no end')
    // A copy: the caller may use its buffer again.
    const keyword = bytes.toString('latin1', cursor + 1, equals)
    into.set(keyword, Buffer.from(bytes.subarray(equals + 1, end - 1)))
    position = end
  }
}

/** Seconds, a true decimal when negative, without trailing zeros: `-4.999999877`. */
export function paxTime(timeNs: TimeNs): string {
  const absolute = timeNs < 0n ? -timeNs : timeNs
  const nanoseconds = Number(absolute % BILLION)
  const seconds = `${timeNs < 0n ? '-' : ''}${absolute / BILLION}`
  if (nanoseconds === 0) return seconds
  return `${seconds}.${String(nanoseconds).padStart(9, '0').replace(/0+$/, '')}`
}

/** Digits after the ninth are dropped. @throws BackupError TAR_DAMAGED */
export function parsePaxTime(value: Buffer): TimeNs {
  const match = /^(-?)(\d{1,12})(?:\.(\d{0,100}))?$/.exec(value.toString('latin1', 0, 200))
  if (match === null) throw damaged('a time is malformed')
  const [, sign, seconds = '', fraction = ''] = match
  const absolute = BigInt(seconds) * BILLION + BigInt(fraction.slice(0, 9).padEnd(9, '0'))
  return sign === '-' ? -absolute : absolute
}

/** A decimal number from 0 to `most`. @throws BackupError TAR_DAMAGED */
export function parsePaxNumber(value: Buffer, most: number): number {
  const text = value.toString('latin1', 0, 20)
  if (!/^\d{1,16}$/.test(text) || Number(text) > most) throw damaged('a number is out of range')
  return Number(text)
}

/** The keyword of an extended attribute; `=` would end it, so it is escaped as GNU tar does. */
export function xattrKeyword(name: string): string {
  return XATTR_PREFIX + name.replaceAll('%', '%25').replaceAll('=', '%3D')
}

/** The attribute's name; undefined for any other keyword. */
export function xattrName(keyword: string): string | undefined {
  if (!keyword.startsWith(XATTR_PREFIX) || keyword.length === XATTR_PREFIX.length) return undefined
  return keyword.slice(XATTR_PREFIX.length).replaceAll('%3D', '=').replaceAll('%25', '%')
}

/** A record's length counts the digits that tell it. */
function recordBytes([keyword, value]: PaxRecord): number {
  const rest = keyword.length + value.length + 3
  const digits = decimalDigits(rest)
  return rest + digits + (decimalDigits(rest + digits) > digits ? 1 : 0)
}

function decimalDigits(number: number): number {
  let digits = 1
  for (let power = 10; power <= number; power *= 10) digits++
  return digits
}

function isDigit(byte: number | undefined): boolean {
  return byte !== undefined && byte >= DIGIT_0 && byte <= DIGIT_9
}

function damaged(why: string): BackupError {
  return new BackupError('TAR_DAMAGED', `a PAX header is malformed: ${why}`)
}
