// One ustar block: 512 bytes of fixed fields with a checksum, the core of every tar header.
//
// writeUstarBlock and parseUstarBlock are inverses for what the fields can hold; the fits…
// functions say what that is, and lib/format/tar.ts puts the rest into PAX records (docs/format.md
// §3.3). Strings have one character a byte. Parsing also takes GNU's magic and base-256 numbers; it
// throws TAR_DAMAGED.

import { Buffer } from 'node:buffer'
import assert from 'node:assert/strict'
import { BackupError } from '../errors.ts'
import type { RawPath } from '../model/raw-path.ts'

export const BLOCK_BYTES = 512

/** What 7 and 11 octal digits hold. */
const MAX_OCTAL_7 = 0o7777777
const MAX_OCTAL_11 = 0o77777777777
/** The ids of a 32-bit kernel, the last of which stands for none. */
const MAX_ID = 0xffffffff
/** Device numbers have 12 + 20 bits on Linux, 8 + 24 on macOS. */
const MAX_DEVICE = 0xffffffff
/** Written for an id that does not fit: who ignores PAX shall not make files of root. */
const NOBODY = 65534
const MAX_NAME_BYTES = 100
const MAX_USER_NAME_BYTES = 31

type Field = readonly [offset: number, lengthBytes: number]

const NAME: Field = [0, 100]
const MODE: Field = [100, 8]
const UID: Field = [108, 8]
const GID: Field = [116, 8]
const SIZE: Field = [124, 12]
const MTIME: Field = [136, 12]
const CHECKSUM: Field = [148, 8]
const FLAG: Field = [156, 1]
const LINK_NAME: Field = [157, 100]
const MAGIC: Field = [257, 8]
const USER: Field = [265, 32]
const GROUP: Field = [297, 32]
const DEVICE_MAJOR: Field = [329, 8]
const DEVICE_MINOR: Field = [337, 8]
const PREFIX: Field = [345, 155]

const USTAR_MAGIC = 'ustar\x0000'
const GNU_MAGIC = 'ustar  \0'
const NEGATIVE_BASE_256 = 0xff

export interface UstarBlock {
  readonly name: RawPath
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly sizeBytes: number
  readonly mtimeSeconds: number
  /** The type of the member, one character. */
  readonly flag: string
  readonly linkName: RawPath
  readonly user: string
  readonly group: string
  readonly device: readonly [major: number, minor: number]
}

export function fitsName(name: RawPath): boolean {
  return name.length <= MAX_NAME_BYTES
}

export function fitsUserName(name: string): boolean {
  return name.length <= MAX_USER_NAME_BYTES
}

/** For ids and device numbers. */
export function fitsId(id: number): boolean {
  return id <= MAX_OCTAL_7
}

/** For sizes and seconds. */
export function fitsSize(size: number): boolean {
  return size >= 0 && size <= MAX_OCTAL_11
}

/**
 * Writes a block at `start` of zeroed bytes. What does not fit is left out: names are cut, users
 * and groups empty, numbers 0 and ids those of nobody.
 */
export function writeUstarBlock(out: Buffer, fields: UstarBlock, start: number): void {
  const {
    mode,
    uid,
    gid,
    sizeBytes,
    mtimeSeconds,
    user,
    group,
    device: [major, minor],
  } = fields
  out.write(fields.name, start, MAX_NAME_BYTES, 'latin1')
  writeOctal(out, MODE, { start, value: mode })
  writeOctal(out, UID, { start, value: fitsId(uid) ? uid : NOBODY })
  writeOctal(out, GID, { start, value: fitsId(gid) ? gid : NOBODY })
  writeOctal(out, SIZE, { start, value: fitsSize(sizeBytes) ? sizeBytes : 0 })
  writeOctal(out, MTIME, { start, value: fitsSize(mtimeSeconds) ? mtimeSeconds : 0 })
  out.write(fields.flag, start + FLAG[0], 'latin1')
  out.write(fields.linkName, start + LINK_NAME[0], MAX_NAME_BYTES, 'latin1')
  out.write(USTAR_MAGIC, start + MAGIC[0], 'latin1')
  if (fitsUserName(user)) out.write(user, start + USER[0], 'latin1')
  if (fitsUserName(group)) out.write(group, start + GROUP[0], 'latin1')
  writeOctal(out, DEVICE_MAJOR, { start, value: fitsId(major) ? major : 0 })
  writeOctal(out, DEVICE_MINOR, { start, value: fitsId(minor) ? minor : 0 })
  // The checksum alone has six digits, a zero and a space.
  writeOctal(out, [CHECKSUM[0], CHECKSUM[1] - 1], { start, value: checksumOf(out, start) })
  out[start + CHECKSUM[0] + CHECKSUM[1] - 1] = 0x20
}

/** The fields of a block; undefined for one of zeros. @throws BackupError TAR_DAMAGED */
export function parseUstarBlock(block: Buffer): UstarBlock | undefined {
  if (block[0] === 0 && block.equals(ZEROS)) return undefined
  const magic = textOf(block, MAGIC)
  if (magic !== USTAR_MAGIC && magic !== GNU_MAGIC) throw damaged('it has no magic')
  if (parseCount(block, CHECKSUM, MAX_OCTAL_11) !== checksumOf(block, 0)) {
    throw damaged('its checksum is wrong')
  }
  const name = untilZero(textOf(block, NAME))
  // GNU's own format has times and more where ustar has the first part of a long name.
  const prefix = magic === USTAR_MAGIC ? untilZero(textOf(block, PREFIX)) : ''
  return {
    name: prefix === '' ? name : `${prefix}/${name}`,
    // Old programs put the file's type above the permissions.
    mode: parseCount(block, MODE, MAX_OCTAL_11) % 0o10000,
    uid: parseCount(block, UID, MAX_ID),
    gid: parseCount(block, GID, MAX_ID),
    sizeBytes: parseCount(block, SIZE, Number.MAX_SAFE_INTEGER),
    mtimeSeconds: parseNumber(block, MTIME),
    flag: textOf(block, FLAG),
    linkName: untilZero(textOf(block, LINK_NAME)),
    user: untilZero(textOf(block, USER)),
    group: untilZero(textOf(block, GROUP)),
    device: [
      parseCount(block, DEVICE_MAJOR, MAX_DEVICE),
      parseCount(block, DEVICE_MINOR, MAX_DEVICE),
    ],
  }
}

const ZEROS = Buffer.alloc(BLOCK_BYTES)

/** Digits in all of the field but its last byte, which stays zero. */
function writeOctal(
  out: Buffer,
  [offset, lengthBytes]: Field,
  { start, value }: { start: number; value: number },
): void {
  let rest = value
  for (let i = start + offset + lengthBytes - 2; i >= start + offset; i--) {
    const next = Math.floor(rest / 8)
    out[i] = 0x30 + rest - next * 8
    rest = next
  }
  assert(rest === 0, 'a number does not fit its field')
}

/** The sum of a block's bytes, those of the checksum itself taken as spaces. */
function checksumOf(bytes: Buffer, start: number): number {
  const field = start + CHECKSUM[0]
  let sum = CHECKSUM[1] * 0x20
  for (let i = start; i < field; i++) sum += bytes[i] ?? 0
  for (let i = field + CHECKSUM[1]; i < start + BLOCK_BYTES; i++) sum += bytes[i] ?? 0
  return sum
}

function parseCount(block: Buffer, field: Field, most: number): number {
  const number = parseNumber(block, field)
  if (number < 0 || number > most) throw damaged('a number is out of range')
  return number
}

/** Octal digits among spaces and zeros, or GNU's base 256: the top bit set, two's complement. */
function parseNumber(block: Buffer, field: Field): number {
  const [offset, lengthBytes] = field
  const first = block[offset] ?? 0
  if (first < 0x80) {
    const digits = /^ *([0-7]*)[ \0]*$/.exec(textOf(block, field))?.[1]
    if (digits === undefined) throw damaged('a number is malformed')
    return digits === '' ? 0 : Number.parseInt(digits, 8)
  }
  let number = first === NEGATIVE_BASE_256 ? -1 : first & 0x7f
  for (let i = offset + 1; i < offset + lengthBytes; i++) number = number * 256 + (block[i] ?? 0)
  if (!Number.isSafeInteger(number)) throw damaged('a number is out of range')
  return number
}

function textOf(block: Buffer, [offset, lengthBytes]: Field): string {
  return block.toString('latin1', offset, offset + lengthBytes)
}

function untilZero(text: string): string {
  const end = text.indexOf('\0')
  return end === -1 ? text : text.slice(0, end)
}

function damaged(why: string): BackupError {
  return new BackupError('TAR_DAMAGED', `a tar header is malformed: ${why}`)
}
