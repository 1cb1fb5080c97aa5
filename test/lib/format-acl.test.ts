import { Buffer } from 'node:buffer'
import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { aclFromText, aclToText, numericAclText } from '../../lib/format/acl.ts'
import * as assert from '../helpers/assert.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const test = suite('acl')

const MINIMAL = 'user::rw-\ngroup::r--\nother::---\n'
const FULL =
  'user::rwx\nuser:0:r--\nuser:4294967294:-w-\n'
  + 'group::r-x\ngroup:100:---\nmask::rwx\nother::--x\n'

const NONE = 0xffffffff
const MASK = [0x10, 7, NONE]
const OWNERS = [
  [1, 6, NONE],
  [4, 4, NONE],
  [0x20, 0, NONE],
]

function binary(entries: readonly (readonly number[])[], version = 2): Buffer {
  const bytes = Buffer.alloc(4 + entries.length * 8)
  bytes.writeUInt32LE(version, 0)
  entries.forEach(([tag = 0, permissions = 0, id = 0], i) => {
    bytes.writeUInt16LE(tag, 4 + i * 8)
    bytes.writeUInt16LE(permissions, 6 + i * 8)
    bytes.writeUInt32LE(id, 8 + i * 8)
  })
  return bytes
}

function isDamaged(error: unknown): boolean {
  return error instanceof BackupError && error.code === 'CATALOG_DAMAGED'
}

test('text and bytes are inverses', () => {
  assert.equal(aclToText(binary(OWNERS)), MINIMAL)
  assert.equal(aclFromText(MINIMAL), binary(OWNERS))
  assert.is(aclToText(aclFromText(FULL)), FULL)
})

test('an id on an entry that has no name is ignored', () => {
  assert.is(
    aclToText(
      binary([
        [1, 6, 0],
        [4, 4, 7],
        [0x20, 0, 9],
      ]),
    ),
    MINIMAL,
  )
})

test("lines in another order give the bytes in the kernel's order", () => {
  const shuffled = FULL.trim().split('\n').reverse().join('\n') + '\n'
  const tags = (text: string): unknown => text.split('\n').map((line) => line.split(':')[0])
  assert.equal(tags(aclToText(aclFromText(shuffled))), tags(FULL))
})

test('refuses malformed bytes', () => {
  const cases: Record<string, Buffer> = {
    nothing: Buffer.alloc(0),
    'no entries': binary([]),
    'version 1': binary(OWNERS, 1),
    'half an entry': binary(OWNERS).subarray(0, 24),
    'unknown tag': binary([...OWNERS, [0x40, 0, NONE]]),
    'tag of two bits': binary([[1, 6, NONE], [3, 6, 1], [4, 4, NONE], MASK, [0x20, 0, NONE]]),
    'unknown permission': binary([
      [1, 8, NONE],
      [4, 4, NONE],
      [0x20, 0, NONE],
    ]),
    'out of order': binary([
      [4, 4, NONE],
      [1, 6, NONE],
      [0x20, 0, NONE],
    ]),
    'owner twice': binary([[1, 6, NONE], ...OWNERS]),
    'no other': binary(OWNERS.slice(0, 2)),
    'named without mask': binary([
      [1, 6, NONE],
      [2, 6, 5],
      [4, 4, NONE],
      [0x20, 0, NONE],
    ]),
    'named without id': binary([[1, 6, NONE], [2, 6, NONE], [4, 4, NONE], MASK, [0x20, 0, NONE]]),
    'two masks': binary([[1, 6, NONE], [4, 4, NONE], MASK, MASK, [0x20, 0, NONE]]),
  }
  for (const [name, bytes] of Object.entries(cases)) {
    assert.throws(() => aclToText(bytes), isDamaged, name)
  }
})

test('refuses malformed text', () => {
  const cases = [
    '',
    '\n',
    MINIMAL.trim(),
    MINIMAL + '\n',
    MINIMAL.replaceAll('\n', '\r\n'),
    MINIMAL.replace('rw-', 'rwz'),
    MINIMAL.replace('rw-', 'wr-'),
    MINIMAL.replace('other::', 'other:5:'),
    MINIMAL.replace('user::rw-\n', ''),
    MINIMAL + 'user:joe:rwx\n',
    MINIMAL + 'user:5:rwx\n',
    'user::rw-:0\n' + MINIMAL,
    `${MINIMAL}mask::rwx\nuser:4294967295:rwx\n`,
    `${MINIMAL}mask::rwx\nuser:99999999999:rwx\n`,
    `${MINIMAL}mask::rwx\nmask::rwx\n`,
  ]
  for (const text of cases) assert.throws(() => aclFromText(text), isDamaged, JSON.stringify(text))
})

test('what libarchive and getfacl write becomes numeric lines', () => {
  const libarchive =
    'user::rwx,group::r-x,other::--x,' + 'user:joe:r--:1000,group:users:---:100,mask::rwx'
  assert.is(
    numericAclText(libarchive),
    'user::rwx\nuser:1000:r--\ngroup::r-x\ngroup:100:---\nmask::rwx\nother::--x\n',
  )
  const getfacl = '# owner: root\nuser::rw-\nuser:5:rwx\t#effective:r--\n'
  assert.is(numericAclText(getfacl), 'user::rw-\nuser:5:rwx\n')
  assert.is(numericAclText(FULL), FULL)
})

if (canRunAsRoot('ACL as the kernel has it')) {
  test('getfattr and setfattr agree with our bytes, setfacl with our text', () => {
    const file = join(tempDirectory(), 'file')
    writeFileSync(file, '')
    execFileSync('setfacl', ['-m', 'u:4294967294:w,u:12345:rwx,g:100:r', file])
    const name = 'system.posix_acl_access'
    const bytes = execFileSync('getfattr', ['--absolute-names', '--only-values', '-n', name, file])
    assert.is(aclToText(bytes), getfacl(file))
    execFileSync('setfattr', ['-n', name, '-v', `0x${aclFromText(FULL).toString('hex')}`, file])
    assert.is(getfacl(file), FULL)
  })
}

/** With numbers, without comments and effective rights; the last line of its output is empty. */
function getfacl(file: string): string {
  const args = ['--numeric', '--omit-header', '--no-effective', '--absolute-names', file]
  return execFileSync('getfacl', args, { encoding: 'latin1' }).replace(/\n\n$/, '\n')
}

test.run()
