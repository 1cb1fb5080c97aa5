import { AssertionError } from 'node:assert'
import { Buffer } from 'node:buffer'
import { execFileSync, spawnSync } from 'node:child_process'
import {
  closeSync,
  existsSync,
  ftruncateSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  readlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { extract } from 'tar-stream'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { aclToText } from '../../lib/format/acl.ts'
import {
  BLOCK_BYTES,
  END_OF_ARCHIVE,
  type ParsedHeader,
  encodeHeader,
  encodePlainHeader,
  parseHeader,
  tarPadding,
} from '../../lib/format/tar.ts'
import { deviceParts, getXattr, listXattrs } from '../../lib/machine/posix.ts'
import { type EntryMetadata, dataBytes } from '../../lib/model/entry.ts'
import {
  type RawPath,
  comparePaths,
  rawPathFromBytes,
  rawPathFromText,
  rawPathToBytes,
} from '../../lib/model/raw-path.ts'
import * as assert from '../helpers/assert.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const test = suite('tar')

const ACL = 'user::rw-\nuser:12345:r--\ngroup::rwx\nmask::rwx\nother::r--\n'
const ACL_OF_BIG_ID = 'user::rw-\nuser:4294967294:rwx\ngroup::r--\nmask::rwx\nother::r--\n'
const DIRECTORY_ACL = 'user::rwx\nuser:12345:rwx\ngroup::r-x\nmask::r-x\nother::---\n'
const DEFAULT_ACL =
  'user::rwx\nuser:12346:r-x\ngroup::r--\ngroup:54321:--x\nmask::rwx\nother::---\n'
const CAPABILITY = Buffer.from('0100000200200000000000000000000000000000', 'hex')
const NANOSECONDS = 1_700_000_000_123_456_789n
const MIB = 1024 * 1024
const BILLION = 1_000_000_000n

const NOT_A_FILE = { mode: 0o644, uid: 1000, gid: 1000, mtimeNs: NANOSECONDS } as const
const ORDINARY = { ...NOT_A_FILE, type: 'file', size: 5 } as const

/**
 * What one filesystem can hold: also the tree that GNU tar and bsdtar extract and create. bsdtar
 * writes the owning group's permissions of an ACL into the mode, so here they are the mask's.
 */
const TREE: readonly EntryMetadata[] = [
  {
    ...NOT_A_FILE,
    path: 'd',
    type: 'directory',
    mode: 0o2750,
    acl: DIRECTORY_ACL,
    defaultAcl: DEFAULT_ACL,
  },
  { ...NOT_A_FILE, path: 'sticky', type: 'directory', mode: 0o1777 },
  { ...ORDINARY, path: 'plain', mtimeNs: 1_700_000_000_000_000_000n },
  { ...ORDINARY, path: 'names', user: 'backup-user', group: 'ünïcode' },
  { ...ORDINARY, path: 'long-names', user: 'u'.repeat(40), group: 'ü'.repeat(16) },
  { ...ORDINARY, path: 'empty', size: 0 },
  { ...ORDINARY, path: 'one-block', size: 512 },
  { ...ORDINARY, path: rawPathFromBytes(Buffer.from('raw-\xff\xfe\x80', 'latin1')) },
  { ...ORDINARY, path: rawPathFromText('ünï-日本') },
  { ...ORDINARY, path: 'new\nline\\x and "quotes" =%' },
  { ...ORDINARY, path: 'n'.repeat(255) },
  { ...ORDINARY, path: 'm'.repeat(100) },
  { ...NOT_A_FILE, path: 'c'.repeat(99), type: 'directory' },
  { ...NOT_A_FILE, path: 'b'.repeat(100), type: 'directory', mode: 0o755 },
  { ...ORDINARY, path: `d/${'p'.repeat(200)}` },
  { ...ORDINARY, path: 'year-2040', mtimeNs: 2_208_988_800_000_000_000n },
  { ...ORDINARY, path: 'year-2040-and-a-bit', mtimeNs: 2_208_988_800_000_000_001n },
  { ...ORDINARY, path: 'epoch', mtimeNs: 0n },
  { ...ORDINARY, path: 'big-ids', uid: 300000, gid: 2097152 },
  { ...ORDINARY, path: 'biggest-ids', uid: 4294967294, gid: 4294967294 },
  { ...ORDINARY, path: 'setuid', mode: 0o4755 },
  { ...ORDINARY, path: 'no-mode', mode: 0 },
  {
    ...ORDINARY,
    path: 'xattrs',
    xattrs: new Map([
      ['trusted.nothing', Buffer.alloc(0)],
      ['user.binary', Buffer.from([0, 255, 10, 0x3d, 0x25, 0, 10])],
      ['user.long', Buffer.alloc(1000, 'x')],
    ]),
  },
  {
    ...ORDINARY,
    path: 'capability',
    mode: 0o755,
    xattrs: new Map([['security.capability', CAPABILITY]]),
  },
  { ...ORDINARY, path: 'acl', mode: 0o674, acl: ACL },
  { ...ORDINARY, path: 'hole-before', size: MIB + 5, sparse: [[MIB, 5]] },
  { ...ORDINARY, path: 'hole-behind', size: MIB, sparse: [[0, 4096]] },
  {
    ...ORDINARY,
    path: 'holes',
    size: 3 * MIB + 1,
    sparse: [
      [65536, 4096],
      [MIB, 8192],
      [3 * MIB - 4096, 4097],
    ],
  },
  { ...ORDINARY, path: 'all-hole', size: MIB + 1, sparse: [] },
  { ...ORDINARY, path: 'hole-of-9-GB', size: 9_000_000_000, sparse: [[8192, 4096]] },
  { ...ORDINARY, path: `d/sparse-${'s'.repeat(150)}`, size: MIB, sparse: [[0, 4096]] },
  { ...ORDINARY, path: 'raw-sparse-\xff', size: MIB, sparse: [[4096, 4096]] },
  { ...NOT_A_FILE, path: 'fifo', type: 'fifo' },
  { ...NOT_A_FILE, path: 'char', type: 'char', device: [1, 3] },
  { ...NOT_A_FILE, path: 'block', type: 'block', device: [259, 1048575] },
  { ...ORDINARY, path: 'group-first' },
  { ...NOT_A_FILE, path: 'group-second', type: 'link', target: 'group-first' },
  { ...NOT_A_FILE, mode: 0o777, path: 'symlink', type: 'symlink', target: 'd/../nowhere' },
  { ...NOT_A_FILE, mode: 0o777, path: 'long-symlink', type: 'symlink', target: 't'.repeat(300) },
  { ...NOT_A_FILE, mode: 0o777, path: 'raw-symlink', type: 'symlink', target: 'to-\xff' },
]

/** GNU tar alone gets these right: negative times, `=` in attributes' names, big ids in ACLs. */
const GNU_ONLY: readonly EntryMetadata[] = [
  { ...ORDINARY, path: 'before-1970', mtimeNs: -4_999_999_877n },
  { ...ORDINARY, path: 'acl-of-big-id', mode: 0o674, acl: ACL_OF_BIG_ID },
  { ...ORDINARY, path: 'long-before-1970', mtimeNs: -1_000_000_000_000_000_000n },
  {
    ...ORDINARY,
    path: 'odd-names',
    xattrs: new Map([
      ['user.a=b%3D%25', Buffer.from('1')],
      ['user.new\nline', Buffer.from('2')],
      ['user.\xc3\xbc', Buffer.from('3')],
    ]),
  },
]

/** What no filesystem here can hold. */
const HEADERS_ONLY: readonly EntryMetadata[] = [
  { ...ORDINARY, path: 'just-fits', size: 0o77777777777 },
  { ...ORDINARY, path: 'just-does-not-fit', size: 0o100000000000 },
  { ...ORDINARY, path: 'nine-gigabytes', size: 9_000_000_000 },
  { ...ORDINARY, path: 'largest', size: Number.MAX_SAFE_INTEGER },
  { ...ORDINARY, path: 'far-future', mtimeNs: 8_589_934_592_000_000_000n },
  { ...ORDINARY, path: 'far-future-just-fits', mtimeNs: 8_589_934_591_000_000_000n },
  { ...ORDINARY, path: 'ids-just-fit', uid: 2097151, gid: 2097151 },
  { ...ORDINARY, path: 'flags', flags: ['append', 'compressed', 'immutable', 'nodump'] },
  { ...ORDINARY, path: 'nothing-sparse', size: 0, sparse: [] },
  {
    ...ORDINARY,
    path: 'huge-sparse',
    size: 2 ** 52,
    sparse: [
      [0, 8_589_934_592],
      [2 ** 51, 512],
    ],
  },
  {
    ...ORDINARY,
    path: 'many-holes',
    size: 4096 * 9000,
    sparse: Array.from({ length: 4500 }, (_, i) => [i * 8192, 4096] as const),
  },
  { ...ORDINARY, path: Array.from({ length: 16 }, () => 'q'.repeat(255)).join('/') },
  { ...NOT_A_FILE, path: 'mac', type: 'char', device: [4194303, 16777215] },
  { ...NOT_A_FILE, path: 'link-\xff', type: 'link', target: `\xe9/${'r'.repeat(200)}` },
  {
    ...ORDINARY,
    path: 'big-attribute',
    xattrs: new Map([['user.big', Buffer.alloc(65536, '\n9 a=b\n')]]),
  },
]
// Lengths whose record grows by a digit when its length is counted in.
const LENGTHS: readonly EntryMetadata[] = Array.from({ length: 2000 }, (_, length) => ({
  ...ORDINARY,
  path: 'p',
  xattrs: new Map([['user.x', Buffer.alloc(length, '1')]]),
}))

function contentOf(entry: EntryMetadata): Buffer {
  return Buffer.alloc(dataBytes(entry), `<${entry.path}>`)
}

/** Catalog order: a directory comes right before what is in it, so that its times stay. */
function inOrder(entries: readonly EntryMetadata[]): EntryMetadata[] {
  return [...entries].sort((a, b) => comparePaths(a.path, b.path))
}

function archive(entries: readonly EntryMetadata[]): Buffer {
  return Buffer.concat([
    ...inOrder(entries).flatMap((entry) => {
      const content = contentOf(entry)
      return [encodeHeader(entry), content, Buffer.alloc(tarPadding(content.length))]
    }),
    END_OF_ARCHIVE,
  ])
}

function parsed(bytes: Buffer, offset = 0): ParsedHeader {
  const header = parseHeader(bytes, offset)
  if (typeof header === 'string') throw new Error(`no header but ${header}`)
  return header
}

interface Member {
  readonly header: ParsedHeader
  readonly data: Buffer
}

function parseArchive(bytes: Buffer): Map<RawPath, Member> {
  const members = new Map<RawPath, Member>()
  for (let offset = 0; parseHeader(bytes, offset) !== 'end';) {
    const header = parsed(bytes, offset)
    const start = offset + header.headerBytes
    const data = bytes.subarray(start, start + header.dataBytes)
    members.set(header.metadata.path, { header, data })
    offset = start + header.dataBytes + tarPadding(header.dataBytes)
  }
  return members
}

function isDamaged(error: unknown): boolean {
  return error instanceof BackupError && error.code === 'TAR_DAMAGED'
}

/** A block with a checksum that is right. */
function sealed(block: Buffer): Buffer {
  block.fill(' ', 148, 156)
  const sum = block.reduce((total, byte) => total + byte, 0)
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
  return block
}

const OF_EPOCH: EntryMetadata = { ...ORDINARY, path: 'p', mtimeNs: 0n }

function withPax(records: string, entry = OF_EPOCH): Buffer {
  const data = Buffer.from(records, 'latin1')
  const block = withField(156, 'x', encodePlainHeader({ path: 'pax', sizeBytes: data.length }))
  return Buffer.concat([block, data, Buffer.alloc(tarPadding(data.length)), encodeHeader(entry)])
}

function record(keyword: string, value: string): string {
  const rest = keyword.length + value.length + 3
  const sums = [1, 2, 3, 4].map((digits) => rest + digits)
  const length = sums.find((sum) => String(sum).length === sum - rest)
  return `${length} ${keyword}=${value}\n`
}

function plain(sizeBytes: number): Buffer {
  return encodePlainHeader({ path: 'p', sizeBytes })
}

function withField(offset: number, value: string | Buffer, block = plain(5)): Buffer {
  if (typeof value === 'string') block.write(value, offset, 'latin1')
  else value.copy(block, offset)
  return sealed(block)
}

test('every entry comes back from its header', () => {
  for (const entry of [...TREE, ...GNU_ONLY, ...HEADERS_ONLY, ...LENGTHS]) {
    const bytes = encodeHeader(entry)
    const expected = { metadata: entry, headerBytes: bytes.length, dataBytes: dataBytes(entry) }
    assert.equal(parsed(bytes), expected, entry.path)
    assert.is(bytes.length % BLOCK_BYTES, 0)
  }
})

test('a header is read wherever it lies, and a comment with it', () => {
  for (const entry of [...TREE, ...GNU_ONLY, ...HEADERS_ONLY]) {
    const bytes = encodeHeader(entry, { comment: 'chunk=18 ü' })
    const around = Buffer.concat([Buffer.alloc(1031, 1), bytes, bytes])
    const { metadata, headerBytes, comment } = parsed(around, 1031)
    assert.equal([metadata, headerBytes, comment], [entry, bytes.length, 'chunk=18 ü'])
  }
})

test('values do not change when the bytes they were read from do', () => {
  const [entry] = TREE.filter(({ path }) => path === 'xattrs')
  const bytes = encodeHeader(entry!)
  const { metadata } = parsed(bytes)
  bytes.fill(0xee)
  assert.equal(metadata, entry)
})

test('a plain header is one block', () => {
  const path = `.pieces/${'0'.repeat(64)}`
  const bytes = encodePlainHeader({ path, sizeBytes: 4096 })
  assert.is(bytes.length, BLOCK_BYTES)
  const metadata = { path, type: 'file', mode: 0o600, uid: 0, gid: 0, mtimeNs: 0n, size: 4096 }
  assert.equal(parsed(bytes), { metadata, headerBytes: BLOCK_BYTES, dataBytes: 4096 })
})

test('records stand in the order of the format', () => {
  const entry: EntryMetadata = {
    path: `\xff${'x'.repeat(200)}`,
    type: 'file',
    mode: 0o644,
    uid: 2 ** 22,
    gid: 2 ** 23,
    user: 'u'.repeat(32),
    group: 'g'.repeat(32),
    size: 2 ** 35,
    mtimeNs: -4_999_999_870n,
    xattrs: new Map([['user.=%', Buffer.from('v')]]),
    acl: ACL,
    defaultAcl: DEFAULT_ACL,
    sparse: [[0, 2 ** 34]],
    birthNs: 1_500_000_000n,
    flags: ['append', 'immutable'],
  }
  const link: EntryMetadata = {
    ...NOT_A_FILE,
    path: '\xe9\xe9',
    type: 'symlink',
    target: 'y'.repeat(101),
    mtimeNs: 1n,
  }
  assert.equal(keywords(encodeHeader(entry, { comment: 'chunk=20' })), [
    'hdrcharset=BINARY',
    'uid=4194304',
    'gid=8388608',
    `uname=${'u'.repeat(32)}`,
    `gname=${'g'.repeat(32)}`,
    `size=${2 ** 34 + 512}`,
    'mtime=-4.99999987',
    'SCHILY.xattr.user.%3D%25=v',
    `SCHILY.acl.access=${ACL}`,
    `SCHILY.acl.default=${DEFAULT_ACL}`,
    'SCHILY.fflags=sappnd,schg',
    'GNU.sparse.major=1',
    'GNU.sparse.minor=0',
    `GNU.sparse.name=${entry.path}`,
    `GNU.sparse.realsize=${2 ** 35}`,
    'comment=chunk=20',
  ])
  assert.equal(keywords(encodeHeader(link)), [
    'path=\xe9\xe9',
    `linkpath=${'y'.repeat(101)}`,
    'hdrcharset=BINARY',
    'mtime=0.000000001',
  ])
  const toText: EntryMetadata = { ...link, path: 'a', target: '\xc3\xbc', mtimeNs: 0n }
  assert.equal(keywords(encodeHeader(toText)), ['linkpath=\xc3\xbc'])
})

function keywords(bytes: Buffer): string[] {
  let text = bytes.toString('latin1', 512)
  const found: string[] = []
  for (let match; (match = /^(\d+) /.exec(text)) !== null; text = text.slice(Number(match[1]))) {
    found.push(text.slice(match[0].length, Number(match[1]) - 1))
  }
  return found
}

test('a time of birth is read where others wrote it, and is in no header of ours', () => {
  assert.equal(encodeHeader({ ...OF_EPOCH, birthNs: 5n }), encodeHeader(OF_EPOCH))
  const whole = withPax(record('LIBARCHIVE.creationtime', '1.5'))
  assert.is(parsed(whole).metadata.birthNs, 1_500_000_000n)
})

test('what fits a ustar block has no PAX header', () => {
  const entry: EntryMetadata = {
    path: 'a'.repeat(100),
    type: 'symlink',
    mode: 0o7777,
    uid: 2097151,
    gid: 2097151,
    user: 'u'.repeat(31),
    group: 'g'.repeat(31),
    mtimeNs: 8_589_934_591_000_000_000n,
    target: 'b'.repeat(100),
  }
  assert.is(encodeHeader(entry).length, BLOCK_BYTES)
  assert.equal(parsed(encodeHeader(entry)).metadata, entry)
})

test("an id that does not fit is nobody's for who ignores PAX", () => {
  const bytes = encodeHeader({ ...OF_EPOCH, uid: 2097152, gid: 4294967294 })
  assert.is(bytes.toString('latin1', 1024 + 108, 1024 + 124), '0177776\x000177776\0')
})

test("a name in two parts is put together, but not in GNU's format", () => {
  assert.is(parsed(withField(345, 'a/b')).metadata.path, 'a/b/p')
  assert.is(parsed(withField(345, 'a/b', withField(257, 'ustar  \0'))).metadata.path, 'p')
})

test('the name of a directory ends in a slash, in the ustar block as in PAX', () => {
  const directory: EntryMetadata = { ...NOT_A_FILE, path: 'a/b', type: 'directory', mtimeNs: 0n }
  assert.is(encodeHeader(directory).toString('latin1', 0, 5), 'a/b/\0')
  assert.equal(keywords(encodeHeader({ ...directory, path: '\xc3\xbc' })), ['path=\xc3\xbc/'])
  assert.is(encodeHeader({ ...directory, path: 'c'.repeat(99) }).length, BLOCK_BYTES)
})

test('a socket, a link without target and odd segments are failed assertions', () => {
  const entries: EntryMetadata[] = [
    { ...NOT_A_FILE, path: 'socket', type: 'socket' },
    { ...NOT_A_FILE, path: '', type: 'directory' },
    { ...NOT_A_FILE, path: 'link', type: 'link' },
    { ...NOT_A_FILE, path: 'char', type: 'char' },
    {
      ...ORDINARY,
      path: 'unordered',
      size: 4096,
      sparse: [
        [1024, 512],
        [0, 512],
      ],
    },
    {
      ...ORDINARY,
      path: 'odd',
      size: 4096,
      sparse: [
        [0, 511],
        [1024, 512],
      ],
    },
    { ...ORDINARY, path: 'behind', size: 4096, sparse: [[4096, 512]] },
  ]
  const isAssertion = (error: unknown): boolean => error instanceof AssertionError
  for (const entry of entries) assert.throws(() => encodeHeader(entry), isAssertion, entry.path)
})

test('zeros pad to whole blocks', () => {
  const cases = [
    [0, 0],
    [1, 511],
    [511, 1],
    [512, 0],
    [513, 511],
    [2 ** 33 + 1, 511],
  ] as const
  for (const [length, padding] of cases) assert.is(tarPadding(length), padding, String(length))
})

test('ends at a zero block, and wants more of everything that is cut', () => {
  assert.is(parseHeader(END_OF_ARCHIVE, 0), 'end')
  assert.is(parseHeader(END_OF_ARCHIVE, 512), 'end')
  assert.is(parseHeader(END_OF_ARCHIVE, 1000), 'short')
  assert.is(parseHeader(END_OF_ARCHIVE, 1024), 'short')
  for (const path of ['d', 'xattrs', 'holes', 'plain', 'all-hole']) {
    const bytes = encodeHeader(TREE.find((entry) => entry.path === path)!)
    for (let length = 0; length < bytes.length; length++) {
      assert.is(parseHeader(bytes.subarray(0, length), 0), 'short')
    }
  }
  const long = encodeHeader(HEADERS_ONLY.find((entry) => entry.path === 'many-holes')!)
  for (let length = 0; length < long.length; length += 97) {
    assert.is(parseHeader(long.subarray(0, length), 0), 'short')
  }
})

test('any changed byte of a block is noticed, and any other does no harm', () => {
  for (const path of ['xattrs', 'holes', 'd']) {
    const bytes = encodeHeader(TREE.find((entry) => entry.path === path)!)
    for (let i = 0; i < bytes.length; i++) {
      for (const mask of [0x01, 0x80, 0xff]) {
        const changed = Buffer.from(bytes)
        changed[i]! ^= mask
        const inBlock = i < 512 && (i < 148 || i >= 156)
        if (inBlock) assert.throws(() => parseHeader(changed, 0), isDamaged, `${path} ${i}`)
        try {
          parseHeader(changed, 0)
        } catch (error) {
          assert.ok(isDamaged(error), `${path} ${i}: ${error}`)
        }
      }
    }
  }
})

test('refuses what lies in a block whose checksum is right', () => {
  const negative = Buffer.alloc(12, 0xff)
  const huge = Buffer.from('80ffffffffffffffffffffff', 'hex')
  const cases: Record<string, Buffer> = {
    'negative size': withField(124, negative),
    'giant size': withField(124, huge),
    'digit 8': withField(124, '00000000008\0'),
    'minus sign': withField(124, '-0000000005\0'),
    'something after the digits': withField(124, '00000005 5 \0'),
    'negative uid': withField(108, Buffer.alloc(8, 0xff)),
    'giant uid': withField(108, huge.subarray(0, 8)),
    'no magic': withField(257, '\0\0\0\0\0\0\0\0'),
    'unknown type': withField(156, 'S'),
    'volume label': withField(156, 'V'),
    'no name': withField(0, '\0'),
    'directory with data': withField(156, '5'),
    'symlink with data': withField(156, '2'),
    'hard link with data': withField(156, '1'),
    'hard link without target': withField(156, '1', plain(0)),
    'giant PAX header': withField(156, 'x', plain(64 * MIB + 1)),
    'giant long name': withField(156, 'L', plain(64 * MIB + 1)),
    'end after a PAX header': withPax(record('mtime', '1')).fill(0, 1024),
  }
  for (const [name, bytes] of Object.entries(cases)) {
    assert.throws(() => parseHeader(bytes, 0), isDamaged, name)
  }
})

function sparseRecords(realSize: string, major = '1'): string {
  const version = record('GNU.sparse.major', major) + record('GNU.sparse.minor', '0')
  return version + record('GNU.sparse.realsize', realSize)
}

test('refuses records that lie', () => {
  const cases = [
    '5\n',
    '0 a=b\n',
    '1 a=b\n',
    '2 a=b\n',
    '5 a=b\n',
    '7 a=b\n',
    '99 a=b\n',
    '-6 a=b\n',
    ' 6 a=b\n',
    '0x6 a=b\n',
    '999999999999999999999 a=b\n',
    '6 a=bX',
    '6 abcd\n',
    '5 =b\n',
    '6 a=b\n\0\0',
    '6 a=b\nx',
    `6 a=b\n${'9'.repeat(500)}`,
    ...['-5', '9007199254740992', '99999999999999999999', '5.0', '1e3', ' 5'].map((size) =>
      record('size', size),
    ),
    record('uid', '4294967296'),
    record('uid', '-2'),
    record('gid', 'root'),
    ...['now', '1e9', '1234567890123', '--1', '.5', '1,5'].map((time) => record('mtime', time)),
    record('path', 'a\0b'),
    record('path', 'a'.repeat(5000)),
    record('GNU.sparse.major', '1'),
    record('GNU.sparse.map', '0,1'),
    sparseRecords('5', '2'),
    sparseRecords('-5'),
  ]
  for (const records of cases) {
    assert.throws(() => parseHeader(withPax(records), 0), isDamaged, JSON.stringify(records))
  }
})

test('refuses sparse maps that lie', () => {
  const maps = [
    '',
    '1\n',
    'x\n',
    '-1\n0\n0\n',
    '1\n0\n513\n',
    '1\n0\n511\n',
    '1\n99999\n512\n',
    '2\n512\n256\n0\n256\n',
    '2\n0\n256\n128\n256\n',
    '1\n9007199254740992\n0\n',
    '9999999999999999\n0\n',
    '1'.repeat(600),
    '\n\n\n',
    '1\n0\n512',
    '1\n0\n99999999999999999999\n',
    `3${'\n1'.repeat(600)}`,
  ]
  const head = withPax(sparseRecords('65536'), { ...OF_EPOCH, size: 1024 })
  const good = Buffer.concat([head, Buffer.from('1\n0\n512\n'.padEnd(2048, '\0'))])
  assert.equal(parsed(good).metadata.sparse, [[0, 512]])
  for (const map of maps) {
    const bytes = Buffer.concat([head, Buffer.from(map.padEnd(2048, '\0'))])
    assert.throws(() => parseHeader(bytes, 0), isDamaged, JSON.stringify(map))
  }
})

test('a sparse map of more segments than memory should hold is refused', () => {
  const records = sparseRecords('0')
  for (const [count, isRefused] of [
    [1_000_001, false],
    [1_000_002, true],
  ] as const) {
    const size = 7813 * BLOCK_BYTES
    const map = Buffer.from(`${count}\n${'0\n0\n'.repeat(count)}`.padEnd(size, '\0'))
    const bytes = Buffer.concat([withPax(records, { ...OF_EPOCH, size }), map])
    if (isRefused) assert.throws(() => parseHeader(bytes, 0), isDamaged)
    else assert.equal(parsed(bytes).metadata.sparse, [])
  }
})

test('endless extended headers are refused, not read for ever', () => {
  const block = withField(156, 'x', plain(0))
  const bytes = Buffer.alloc(129 * MIB)
  for (let i = 0; i < bytes.length; i += BLOCK_BYTES) block.copy(bytes, i)
  assert.throws(() => parseHeader(bytes, 0), isDamaged)
})

test('an empty value takes back what was said, the last of two counts, a global one not', () => {
  const path = 'p'
  assert.is(parsed(withPax(record('path', 'q') + record('path', ''))).metadata.path, path)
  assert.is(parsed(withPax(record('path', 'q') + record('path', 'r'))).metadata.path, 'r')
  assert.is(parsed(withPax(record('mtime', '') + record('size', ''))).metadata.mtimeNs, 0n)
  const global = withPax(record('path', 'global') + record('comment', 'of all'))
  withField(156, 'g', global.subarray(0, 512))
  const { metadata, comment, headerBytes } = parsed(global)
  assert.equal([metadata.path, comment, headerBytes], [path, undefined, global.length])
  assert.is(parsed(withPax(record('mtime', '-1.0000000019'))).metadata.mtimeNs, -1_000_000_001n)
})

test('tar-stream reads names, sizes and content', async () => {
  const ordinary = TREE.filter(
    ({ path, sparse, type }) =>
      sparse === undefined && type === 'file' && !/[\x80-\xff]/.test(path),
  )
  const entries = inOrder(ordinary)
  const found: [string, number | undefined, Buffer][] = []
  const reader = extract()
  const done = pipeline(Readable.from([archive(entries)]), reader)
  for await (const member of reader) {
    const chunks: Buffer[] = []
    for await (const chunk of member) chunks.push(chunk as Buffer)
    found.push([member.header.name, member.header.size, Buffer.concat(chunks)])
  }
  await done
  assert.equal(
    found,
    entries.map((entry) => [entry.path, entry.size, contentOf(entry)]),
  )
})

test('both tars list a file of 9 GB and what follows it', () => {
  const file = join(tempDirectory(), 'large.tar')
  const entry: EntryMetadata = { ...ORDINARY, path: 'large', size: 9_000_000_000 }
  const header = encodeHeader(entry)
  const next = header.length + 9_000_000_000 + tarPadding(9_000_000_000)
  const fd = openSync(file, 'w')
  writeSync(fd, header, 0, header.length, 0)
  writeSync(fd, encodePlainHeader({ path: 'after', sizeBytes: 0 }), 0, 512, next)
  ftruncateSync(fd, next + 512 + 1024)
  closeSync(fd)
  for (const program of ['tar', 'bsdtar']) {
    const lines = execFileSync(program, ['-tvf', file], { encoding: 'utf8' }).trim().split('\n')
    assert.match(lines[0]!, /9000000000.*large$/, program)
    assert.match(lines[1]!, /after$/, program)
  }
})

const GNU_ATTRIBUTES = ['--xattrs', '--xattrs-include=*', '--acls']
const GNU_EXTRACT = ['--numeric-owner', '--same-owner', ...GNU_ATTRIBUTES, '-xpf']
const ENVIRONMENT = { ...process.env, LC_ALL: 'C.UTF-8' }
const IGNORED = /^$|implausibly old|in the future|unknown extended header/

if (canRunAsRoot('extraction by GNU tar and bsdtar')) {
  test('GNU tar extracts everything as it is', () => {
    const directory = extracted('tar', GNU_EXTRACT, [...TREE, ...GNU_ONLY])
    for (const entry of [...TREE, ...GNU_ONLY]) assertOnDisk(directory, entry)
  })

  test('bsdtar extracts everything as it is', () => {
    const directory = extracted('bsdtar', ['--numeric-owner', '-xpf'], TREE)
    for (const entry of TREE) assertOnDisk(directory, entry)
  })

  test('reads what GNU tar writes, in PAX format', () => {
    const entries = [...TREE, ...GNU_ONLY]
    const members = created('tar', ['--format=pax', '-S', ...GNU_ATTRIBUTES], entries)
    for (const entry of entries) assertMember(members, entry)
  })

  test('reads what GNU tar writes, in its own format', () => {
    const entries = [...TREE, ...GNU_ONLY].filter(
      ({ sparse, xattrs, acl }) => (sparse ?? xattrs ?? acl) === undefined,
    )
    const members = created('tar', ['--format=gnu'], entries)
    for (const entry of entries) {
      const nanoseconds = ((entry.mtimeNs % BILLION) + BILLION) % BILLION
      assertMember(members, { ...entry, mtimeNs: entry.mtimeNs - nanoseconds })
    }
  })

  test('bsdtar sets the inode flags, and those that it writes are read', () => {
    const flagged: EntryMetadata = { ...ORDINARY, path: 'flagged', flags: ['nodump'] }
    const directory = extracted('bsdtar', ['-xpf'], [flagged])
    const file = join(directory, 'flagged')
    assert.match(spawnSync('lsattr', [file], { encoding: 'utf8' }).stdout, /^\S*d\S* /)
    spawnSync('chattr', ['+ac', file])
    const archive = join(directory, '..', 'flags.tar')
    spawnSync('bsdtar', ['--format=pax', '-C', directory, '-cf', archive, 'flagged'])
    spawnSync('chattr', ['-a', file])
    const { flags } = parseArchive(readFileSync(archive)).get('flagged')!.header.metadata
    assert.equal(flags, ['append', 'compressed', 'nodump'])
  })

  test('reads what bsdtar writes', () => {
    const members = created('bsdtar', ['--format=pax', '--acls', '--xattrs'], TREE)
    for (const entry of TREE) assertMember(members, entry)
  })
}

function extracted(
  program: string,
  options: readonly string[],
  entries: readonly EntryMetadata[],
): string {
  const directory = tempDirectory()
  const tree = join(directory, 'tree')
  mkdirSync(tree)
  const file = join(directory, 'archive.tar')
  writeFileSync(file, archive(entries))
  const args = [...options, file, '-C', tree]
  const run = spawnSync(program, args, { encoding: 'utf8', env: ENVIRONMENT })
  const complaints = run.stderr.split('\n').filter((line) => !IGNORED.test(line))
  assert.equal([run.status, complaints], [0, []], program)
  return tree
}

function assertOnDisk(directory: string, entry: EntryMetadata): void {
  const raw = `${rawPathFromText(directory)}/${entry.path}`
  const status = lstatSync(rawPathToBytes(raw), { bigint: true })
  const what = `${entry.path.slice(0, 40)}: `
  const owner = entry.type === 'link' ? ORDINARY : entry
  assert.equal([Number(status.uid), Number(status.gid)], [owner.uid, owner.gid], `${what}owner`)
  if (entry.type !== 'symlink') assert.is(Number(status.mode) & 0o7777, entry.mode, `${what}mode`)
  assert.is(status.mtimeNs, entry.mtimeNs, `${what}mtime`)
  assert.is(typeOnDisk(status), entry.type === 'link' ? 'file' : entry.type, `${what}type`)
  if (entry.type === 'symlink') {
    const target = readlinkSync(rawPathToBytes(raw), { encoding: 'buffer' })
    assert.equal(rawPathFromBytes(target), entry.target, `${what}target`)
  }
  if (entry.path.startsWith('group-')) assert.is(status.nlink, 2n, `${what}links`)
  const device = entry.device && deviceParts(status.rdev)
  assert.equal(device, entry.device, `${what}device`)
  if (entry.type === 'file') assertContent(raw, entry, status.blocks, what)
  if (entry.type !== 'symlink') assertAttributes(raw, entry, what)
}

function typeOnDisk(status: ReturnType<typeof lstatSync> & {}): string {
  if (status.isDirectory()) return 'directory'
  if (status.isSymbolicLink()) return 'symlink'
  if (status.isFIFO()) return 'fifo'
  if (status.isCharacterDevice()) return 'char'
  return status.isBlockDevice() ? 'block' : 'file'
}

function assertContent(raw: string, entry: EntryMetadata, blocks: bigint, what: string): void {
  assert.is(Number(lstatSync(rawPathToBytes(raw)).size), entry.size, `${what}size`)
  const used = dataBytes(entry)
  assert.ok(Number(blocks) * 512 <= used + 4 * 4096, `${what}${blocks} blocks for ${used} bytes`)
  if ((entry.size ?? 0) > 2 ** 30) return
  const content = contentOf(entry)
  const expected = entry.sparse === undefined ? content : Buffer.alloc(entry.size ?? 0)
  let position = 0
  for (const [offset, length] of entry.sparse ?? []) {
    content.copy(expected, offset, position, position + length)
    position += length
  }
  assert.ok(readFileSync(rawPathToBytes(raw)).equals(expected), `${what}content`)
}

function assertAttributes(raw: string, entry: EntryMetadata, what: string): void {
  const names = listXattrs(raw).filter((name) => !name.startsWith('system.'))
  const found = new Map(names.map((name) => [name, getXattr(raw, name)]))
  const wanted = entry.xattrs ?? new Map<string, Buffer>()
  assert.equal(found, new Map([...wanted].sort(([a], [b]) => (a < b ? -1 : 1))), `${what}xattrs`)
  const acl = getXattr(raw, 'system.posix_acl_access')
  const defaultAcl = getXattr(raw, 'system.posix_acl_default')
  assert.is(acl && aclToText(acl), entry.acl, `${what}ACL`)
  assert.is(defaultAcl && aclToText(defaultAcl), entry.defaultAcl, `${what}default ACL`)
}

/** What a program makes of the tree that GNU tar extracted from ours. */
function created(
  program: string,
  options: readonly string[],
  entries: readonly EntryMetadata[],
): Map<RawPath, Member> {
  const directory = extracted('tar', GNU_EXTRACT, entries)
  const file = join(directory, '..', 'created.tar')
  const list = join(directory, '..', 'list')
  writeFileSync(list, Buffer.concat(entries.map(({ path }) => rawPathToBytes(`${path}\0`))))
  const selection = ['--null', '--no-recursion', '-C', directory, '-T', list]
  const args = [...options, '--numeric-owner', '-cf', file, ...selection]
  if (program === 'tar') args.unshift('--verbatim-files-from')
  const run = spawnSync(program, args, { encoding: 'utf8', env: ENVIRONMENT })
  assert.ok(existsSync(file), run.stderr)
  assert.is(run.status, 0, run.stderr)
  return parseArchive(readFileSync(file))
}

function assertMember(members: ReadonlyMap<RawPath, Member>, entry: EntryMetadata): void {
  const member = members.get(entry.path)
  if (member === undefined) throw new Error(`${entry.path} is not there`)
  const { user: _user, group: _group, birthNs: _birth, ...metadata } = member.header.metadata
  const { user: _noUser, group: _noGroup, ...wanted } = entry
  const isSymlink = entry.type === 'symlink'
  assert.equal({ ...metadata, ...(isSymlink ? { mode: wanted.mode } : {}) }, wanted, entry.path)
  assert.ok(member.data.equals(contentOf(entry)), `content of ${entry.path}`)
}

test.run()
