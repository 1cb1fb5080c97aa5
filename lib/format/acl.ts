// POSIX ACLs: the kernel's binary extended attribute and the numeric text of docs/format.md §3.3.
//
// aclToText and aclFromText are inverses: `system.posix_acl_access` or `_default`, version 2,
// little-endian entries {tag u16, permissions u16, id u32}, and lines such as `user:12345:rwx` in
// the kernel's order, each ended by a newline. Both throw CATALOG_DAMAGED for what the kernel would
// refuse. numericAclText brings what other tar programs write into that form, as far as it can
// without names.

import { Buffer } from 'node:buffer'
import { BackupError } from '../errors.ts'

const VERSION = 2
const HEAD_BYTES = 4
const ENTRY_BYTES = 8
const NO_ID = 0xffffffff

/** How many entries an ACL may have: an extended attribute has at most 65,536 bytes. */
const MAX_ACL_ENTRIES = 8191

/** The kernel's tags; in an ACL they stand in ascending order. */
const USER_OBJECT = 0x01
const USER = 0x02
const GROUP_OBJECT = 0x04
const GROUP = 0x08
const MASK = 0x10
const OTHER = 0x20
const TAGS: ReadonlySet<number> = new Set([USER_OBJECT, USER, GROUP_OBJECT, GROUP, MASK, OTHER])

interface AclEntry {
  readonly tag: number
  readonly permissions: number
  readonly id: number
}

/** Text of an ACL attribute's bytes. @throws BackupError CATALOG_DAMAGED */
export function aclToText(xattr: Uint8Array): string {
  const bytes = Buffer.from(xattr.buffer, xattr.byteOffset, xattr.byteLength)
  const version = bytes.length < HEAD_BYTES ? undefined : bytes.readUInt32LE(0)
  if (version !== VERSION) throw damaged('its version is not 2')
  if ((bytes.length - HEAD_BYTES) % ENTRY_BYTES !== 0) throw damaged('its length is odd')
  const entries: AclEntry[] = []
  for (let i = HEAD_BYTES; i < bytes.length; i += ENTRY_BYTES) {
    const tag = bytes.readUInt16LE(i)
    const id = isNamed(tag) ? bytes.readUInt32LE(i + 4) : NO_ID
    entries.push({ tag, permissions: bytes.readUInt16LE(i + 2), id })
  }
  return checked(entries).map(entryText).join('')
}

/** The attribute's bytes; the lines may be in any order. @throws BackupError CATALOG_DAMAGED */
export function aclFromText(text: string): Buffer {
  if (!text.endsWith('\n')) throw damaged('its last line has no end')
  const lines = text.slice(0, -1).split('\n')
  const entries = checked(lines.map(parseLine).sort((a, b) => a.tag - b.tag))
  const bytes = Buffer.alloc(HEAD_BYTES + entries.length * ENTRY_BYTES)
  bytes.writeUInt32LE(VERSION, 0)
  let position = HEAD_BYTES
  for (const { tag, permissions, id } of entries) {
    bytes.writeUInt16LE(tag, position)
    bytes.writeUInt16LE(permissions, position + 2)
    bytes.writeUInt32LE(id, position + 4)
    position += ENTRY_BYTES
  }
  return bytes
}

/**
 * ACL text of GNU tar or bsdtar in the form of §3.3: one entry a line in the kernel's order, the
 * number instead of the name where there are both (`user:joe:rwx:1000`). A name alone stays, for
 * aclFromText to refuse.
 */
export function numericAclText(text: string): string {
  const lines = text.split(/[,\n]/).map((line) => line.replace(/#.*/, '').trim())
  const numeric = lines.filter((line) => line !== '').map(numericLine)
  return numeric.sort((a, b) => rankOf(a) - rankOf(b)).join('')
}

function numericLine(line: string): string {
  const [tag = '', name = '', permissions = '', id] = line.split(':')
  return id === undefined ? `${line}\n` : `${tag}:${id === '' ? name : id}:${permissions}\n`
}

function rankOf(line: string): number {
  const tag = line.slice(0, line.indexOf(':'))
  return ['user', 'group', 'mask', 'other'].indexOf(tag) * 2 + (line.includes('::') ? 0 : 1)
}

function parseLine(line: string): AclEntry {
  const match = /^(user|group|mask|other):(\d{0,10}):([r-])([w-])([x-])$/.exec(line)
  if (match === null) throw damaged('a line is malformed')
  const [, word = '', id = '', read, write, execute] = match
  const permissions = (read === 'r' ? 4 : 0) + (write === 'w' ? 2 : 0) + (execute === 'x' ? 1 : 0)
  const tag = tagOf(word, id !== '')
  return { tag, permissions, id: id === '' ? NO_ID : Number(id) }
}

function tagOf(word: string, named: boolean): number {
  if (word === 'user') return named ? USER : USER_OBJECT
  if (word === 'group') return named ? GROUP : GROUP_OBJECT
  if (named) throw damaged(`${word} has an id`)
  return word === 'mask' ? MASK : OTHER
}

function entryText({ tag, permissions, id }: AclEntry): string {
  const word = tag <= USER ? 'user' : tag <= GROUP ? 'group' : tag === MASK ? 'mask' : 'other'
  const [read, write] = [permissions & 4 ? 'r' : '-', permissions & 2 ? 'w' : '-']
  return `${word}:${isNamed(tag) ? id : ''}:${read}${write}${permissions & 1 ? 'x' : '-'}\n`
}

/** What the kernel's posix_acl_valid asks for. */
function checked(entries: readonly AclEntry[]): readonly AclEntry[] {
  if (entries.length > MAX_ACL_ENTRIES) throw damaged('it has too many entries')
  const counts = new Map<number, number>()
  let last = 0
  for (const { tag, permissions, id } of entries) {
    if (tag < last) throw damaged('its entries are out of order')
    if (!TAGS.has(tag)) throw damaged('it has an unknown tag')
    if (permissions > 7) throw damaged('it has unknown permissions')
    if (isNamed(tag) && id >= NO_ID) throw damaged('an id is out of range')
    counts.set(tag, (counts.get(tag) ?? 0) + 1)
    last = tag
  }
  for (const tag of [USER_OBJECT, GROUP_OBJECT, OTHER]) {
    if (counts.get(tag) !== 1) throw damaged('user, group and other have to be there once')
  }
  const masks = counts.get(MASK) ?? 0
  if (masks > 1) throw damaged('it has more than one mask')
  if (masks === 0 && (counts.has(USER) || counts.has(GROUP))) throw damaged('it has no mask')
  return entries
}

function isNamed(tag: number): boolean {
  return tag === USER || tag === GROUP
}

function damaged(why: string): BackupError {
  return new BackupError('CATALOG_DAMAGED', `an ACL is malformed: ${why}`)
}
