import { Buffer } from 'node:buffer'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import {
  type Entry,
  INODE_FLAGS,
  MAX_PATH_BYTES,
  dataBytes,
  encodeEntry,
  encodeTime,
  parseEntry,
  parseTime,
} from '../../lib/model/entry.ts'
import { rawPathFromText } from '../../lib/model/raw-path.ts'
import * as assert from '../helpers/assert.ts'
import { randomOfRun } from '../helpers/random.ts'

const entries = suite('model/entry')
const ID = 'ab'.repeat(32)
const base = { mode: 0o644, uid: 0, gid: 0, mtimeNs: 0n } as const

const NASTY: Readonly<Record<string, Entry>> = {
  'the least there is': { ...base, path: 'a', type: 'directory' },
  'a socket': { ...base, path: 'a/socket', type: 'socket' },
  'largest numbers': {
    ...base,
    path: 'f',
    type: 'file',
    mode: 0o7777,
    uid: 0xffffffff,
    gid: 0xffffffff,
    size: Number.MAX_SAFE_INTEGER,
    mtimeNs: 999_999_999_999_999_999_999n,
  },
  'before 1970': {
    ...base,
    path: 'f',
    type: 'file',
    size: 0,
    mtimeNs: -4_999_999_877n,
    birthNs: -1n,
  },
  'a name that is no text': { ...base, path: 'caf\xe9/\xff\xfe', type: 'directory' },
  'a name with quotes, newlines and escapes': {
    ...base,
    path: 'a"b\\c\nd\x1b[0m\t\x7f',
    type: 'directory',
  },
  'a name in UTF-8': { ...base, path: rawPathFromText('ä/日本/🙂/\u202e'), type: 'directory' },
  'a name like a property': { ...base, path: '__proto__', type: 'directory' },
  'the longest path': { ...base, path: 'x/'.repeat(2047) + 'xx', type: 'directory' },
  'a link to something that is no text': { ...base, path: 'l', type: 'symlink', target: '../\xff' },
  'a further hard link': { ...base, path: 'z', type: 'link', target: 'a/first', size: 5 },
  'names of accounts': { ...base, path: 'f', type: 'fifo', user: 'josé', group: 'domain users\\x' },
  'a device': { ...base, path: 'd', type: 'char', device: [4095, 1048575] },
  'a block device': { ...base, path: 'd', type: 'block', device: [0, 0] },
  'attributes and ACLs': {
    ...base,
    path: 'f',
    type: 'file',
    size: 1,
    xattrs: new Map([
      ['security.capability', Buffer.from('0100000200200000000000000000000000000000', 'hex')],
      ['user.', Buffer.alloc(0)],
      ['user.%=\n', Buffer.from([0, 255, 10])],
    ]),
    acl: 'user::rw-\nuser:1000:r--\ngroup::r--\nmask::r--\nother::---\n',
    defaultAcl: 'user::rwx\n',
  },
  'a sparse file': {
    ...base,
    path: 's',
    type: 'file',
    size: 2 ** 40,
    sparse: [
      [0, 4096],
      [2 ** 39, 512],
      [2 ** 40 - 512, 512],
    ],
    header: [0, 0, 1536],
    pieces: [[ID, 0, 1536, 5120]],
  },
  'a file that is a hole': {
    ...base,
    path: 's',
    type: 'file',
    size: 2 ** 40,
    sparse: [],
    header: [3, 512, 1024],
  },
  'pieces in several bundles': {
    ...base,
    path: 'f',
    type: 'file',
    size: 5_000_000,
    chunk: 16,
    header: [0, 2 ** 52, 512],
    pieces: [
      [ID, 1, 0, 4_000_000],
      ['0'.repeat(64), 99_999, 2 ** 53 - 1, 1_000_000],
    ],
  },
  'inode flags': { ...base, path: 'f', type: 'file', size: 0, flags: ['append', 'nodump'] },
  'every inode flag': { ...base, path: 'd', type: 'directory', flags: INODE_FLAGS },
  'what only staging knows': {
    ...base,
    path: 'f',
    type: 'file',
    size: 1,
    inode: 2 ** 52,
    bornNs: 1n,
  },
}

for (const [name, entry] of Object.entries(NASTY)) {
  entries(`round trip: ${name}`, () => {
    const line = encodeEntry(entry)
    assert.not.match(line, /[\x00-\x1f]/, 'it is one line')
    assert.equal(parseEntry(line), entry)
    assert.is(encodeEntry(parseEntry(line)), line)
  })
}

entries('round trip: any path of bytes', () => {
  const random = randomOfRun('paths')
  for (let round = 0; round < 2000; round++) {
    const bytes = random.bytes(1 + random.integer(30)).map((byte) => byte || 1)
    if (round % 2 === 0)
      bytes.forEach((byte, i) => {
        bytes[i] = byte & 0x7f || 1
      })
    const path = Buffer.from(bytes).toString('latin1')
    const entry: Entry = { ...base, path, type: 'symlink', target: path }
    assert.equal(parseEntry(encodeEntry(entry)), entry)
  }
})

entries('properties come in the order of the format, and text stays text', () => {
  const everything: Entry = {
    ...NASTY['attributes and ACLs']!,
    path: 'ü\xff',
    user: 'u',
    group: 'g',
    target: 't',
    device: [1, 2],
    sparse: [[0, 1]],
    birthNs: 1n,
    flags: ['immutable'],
    chunk: 16,
    header: [0, 1, 2],
    pieces: [[ID, 0, 1, 2]],
    inode: 1,
    bornNs: 2n,
  }
  assert.equal(Object.keys(JSON.parse(encodeEntry(everything)) as object), [
    'path64',
    'type',
    'mode',
    'uid',
    'gid',
    'user',
    'group',
    'mtime',
    'size',
    'target',
    'device',
    'xattrs',
    'acl',
    'default_acl',
    'sparse',
    'birth',
    'flags',
    'chunk',
    'header',
    'pieces',
    'inode',
    'born',
  ])
  assert.is(
    encodeEntry({ ...base, path: rawPathFromText('ä'), type: 'fifo', mtimeNs: 1_500_000_000n }),
    '{"path":"ä","type":"fifo","mode":420,"uid":0,"gid":0,"mtime":"1.500000000"}',
  )
})

entries('times are true decimals with nine digits', () => {
  const known: readonly (readonly [bigint, string])[] = [
    [0n, '0.000000000'],
    [1n, '0.000000001'],
    [-1n, '-0.000000001'],
    [999_999_999n, '0.999999999'],
    [1_000_000_000n, '1.000000000'],
    [-1_000_000_000n, '-1.000000000'],
    [-4_999_999_877n, '-4.999999877'],
    [1_743_465_600_123_456_789n, '1743465600.123456789'],
  ]
  for (const [ns, text] of known) {
    assert.is(encodeTime(ns), text)
    assert.is(parseTime(text), ns)
  }
})

const good = {
  path: 'a',
  type: 'file',
  mode: 420,
  uid: 0,
  gid: 0,
  mtime: '0.000000000',
  size: 1,
  header: [0, 0, 512],
  pieces: [[ID, 0, 512, 1]],
}

const isDamaged = (line: string): boolean => {
  try {
    parseEntry(line)
    return false
  } catch (error) {
    if (error instanceof BackupError && error.code === 'CATALOG_DAMAGED') return true
    throw error
  }
}

entries('refuses every property that is malformed', () => {
  assert.not.ok(isDamaged(JSON.stringify(good)))
  const numbers = [-1, 0.5, '1', null, 2 ** 53, [], {}, true]
  const texts = [1, null, [], {}, true]
  const times = [
    0,
    '0',
    '1.5',
    '',
    '1.0000000000',
    '1e3.000000000',
    ' 1.000000000',
    '1.000000000\n',
    '+1.000000000',
    '--1.000000000',
    '0x1.000000000',
    `${'9'.repeat(13)}.000000000`,
    null,
  ]
  const lists = [null, 'x', {}, 1, true]
  const ranges = [
    ...lists,
    [],
    [0],
    [0, 0],
    ['0', 0, 0],
    [-1, 0, 0],
    [0, -1, 0],
    [0, 0, -1],
    [0, 0, 0.5],
    [0, 2 ** 53, 0],
    [null, 0, 0],
  ]
  const pairs = [...lists, [], [1], ['1', 2], [1, -2], [1.5, 2]]
  const bad: Readonly<Record<string, readonly unknown[]>> = {
    path: [
      undefined,
      1,
      null,
      [],
      {},
      'a\0b',
      'x'.repeat(MAX_PATH_BYTES + 1),
      'ä'.repeat(MAX_PATH_BYTES / 2 + 1),
    ],
    path64: [1, null, [], {}],
    target: [1, null, [], {}, '', 'a\0b', 'x'.repeat(MAX_PATH_BYTES + 1)],
    target64: [1, null, [], Buffer.from('a\0b').toString('base64')],
    type: [undefined, 'door', '', 'File', ...texts],
    mode: [undefined, 4096, ...numbers],
    uid: [undefined, 2 ** 32, ...numbers],
    gid: [undefined, 2 ** 32, ...numbers],
    user: texts,
    group: texts,
    acl: texts,
    default_acl: texts,
    mtime: [undefined, ...times],
    birth: times,
    flags: [
      ...lists,
      [],
      [1],
      [null],
      ['nocow'],
      ['Append'],
      ['nodump', 'append'],
      ['append', 'append'],
      ['append', 'nodump', 'x'],
    ],
    born: times,
    size: numbers,
    inode: numbers,
    chunk: [25, ...numbers],
    device: pairs,
    sparse: [...lists, ...pairs.map((pair) => [pair])],
    xattrs: [null, 1, 'x', { 'user.a': 1 }, { 'user.a': null }, { 'user.a': [] }],
    header: ranges,
    pieces: [
      ...lists,
      [[]],
      [[ID]],
      [['AB'.repeat(32), 0, 0, 1]],
      [[ID.slice(1), 0, 0, 1]],
      [[`${ID}0`, 0, 0, 1]],
      [[`${ID}\n`, 0, 0, 1]],
      [[1, 0, 0, 1]],
      ...ranges.map((range) => [[ID, ...(Array.isArray(range) ? range : [range])]]),
    ],
  }
  for (const [name, values] of Object.entries(bad)) {
    for (const value of values) {
      const { path, ...rest } = good
      const object = { ...(name === 'path64' ? rest : { path, ...rest }), [name]: value }
      assert.ok(
        isDamaged(JSON.stringify(object)),
        `${name}: ${JSON.stringify(value)?.slice(0, 80)}`,
      )
    }
  }
})

entries('refuses a line that is no object', () => {
  for (const line of [
    '',
    '{',
    '[]',
    'null',
    '1',
    '"x"',
    JSON.stringify(good).slice(0, -1),
    `${JSON.stringify(good)}x`,
  ]) {
    assert.ok(isDamaged(line), line)
  }
})

entries('bug: base64 that is none is taken for a path or an attribute', () => {
  const { path: _path, ...rest } = good
  for (const path64 of ['', '!!!', '@@@@', 'YQ', 'YQ==YQ==', 'Y Q = =']) {
    assert.ok(isDamaged(JSON.stringify({ path64, ...rest })), `path64 ${path64}`)
  }
  assert.ok(isDamaged(JSON.stringify({ ...good, xattrs: { 'user.a': '!!!' } })), 'a value')
})

entries('bug: a path that is empty, or there twice, is taken', () => {
  assert.ok(isDamaged(JSON.stringify({ ...good, path: '' })), 'empty')
  assert.ok(isDamaged(JSON.stringify({ ...good, path64: 'Yg==' })), 'path and path64')
})

entries(
  'bug: lists that are longer than they can be, and xattrs that are a list, are taken',
  () => {
    for (const change of [
      { header: [0, 0, 512, 7] },
      { device: [1, 2, 3] },
      { sparse: [[0, 1, 2]] },
      { pieces: [[ID, 0, 512, 1, 9]] },
      { xattrs: ['eA=='] },
    ]) {
      assert.ok(isDamaged(JSON.stringify({ ...good, ...change })), JSON.stringify(change))
    }
  },
)

entries('the bytes that pieces add up to are those of the segments', () => {
  assert.is(dataBytes({ ...base, path: 'f', type: 'file', size: 7 }), 7)
  assert.is(dataBytes({ ...base, path: 'f', type: 'file', size: 0 }), 0)
  assert.is(
    dataBytes({
      ...base,
      path: 'f',
      type: 'file',
      size: 9999,
      sparse: [
        [0, 5],
        [100, 6],
      ],
    }),
    11,
  )
  assert.is(dataBytes({ ...base, path: 'f', type: 'file', size: 9999, sparse: [] }), 0)
  for (const type of ['directory', 'symlink', 'link', 'fifo', 'socket'] as const) {
    assert.is(dataBytes({ ...base, path: 'f', type, size: 7 }), 0, type)
  }
})

entries.run()
