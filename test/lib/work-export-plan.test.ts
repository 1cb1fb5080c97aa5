import { Buffer } from 'node:buffer'
import { suite } from 'uvu'
import type { Entry } from '../../lib/model/entry.ts'
import { type PlannedEntry, planExport, sameMetadata, usageOf } from '../../lib/work/export-plan.ts'
import * as assert from '../helpers/assert.ts'

const plan = suite('work/export-plan')
const ID = '12'.repeat(32)
const OTHER = '34'.repeat(32)
const MIB = 2 ** 20
const GIB = 2 ** 30

const base = { mode: 0o644, uid: 0, gid: 0, mtimeNs: 5n, inode: 100, bornNs: 1n } as const

/** A file as staging has it. */
const staged = (path: string, change: Partial<Entry> = {}): Entry => ({
  ...base,
  path,
  type: 'file',
  size: 10,
  ...change,
})

/** The same as an export left it. */
const exported = (entry: Entry, change: Partial<Entry> = {}): Entry => ({
  ...entry,
  header: [0, 0, 512],
  pieces: [[ID, 0, 512, entry.size ?? 0]],
  ...change,
})

const all = (): boolean => true

function planned(
  collected: readonly Entry[],
  last: readonly Entry[],
  isUsable: (bundle: number) => boolean = all,
): PlannedEntry[] {
  return planExport({ collected, sources: ['src'], last, isUsable })
}

/** What is done with each entry. */
const kinds = (entries: readonly PlannedEntry[]): string[] =>
  entries.map(({ item }) => item?.kind ?? 'kept')

plan('everything is packed the first time, and sockets never', () => {
  const collected = [
    { ...base, path: 'd', type: 'directory' },
    staged('d/empty', { size: 0 }),
    staged('d/file'),
    { ...base, path: 'd/hard', type: 'link', target: 'd/file', size: 10 },
    { ...base, path: 'd/pipe', type: 'fifo' },
    { ...base, path: 'd/socket', type: 'socket' },
    { ...base, path: 'd/to', type: 'symlink', target: 'x' },
  ] as const
  const result = planned(collected, [])
  assert.equal(kinds(result), ['member', 'member', 'file', 'member', 'member', 'kept', 'member'])
  assert.is(result[5]!.kept, collected[5])
  assert.equal(
    result.map(({ item }) => item?.index),
    [0, 1, 2, 3, 4, undefined, 6],
  )
  for (const { item } of result) {
    assert.ok(item === undefined || !('inode' in item.metadata || 'bornNs' in item.metadata))
  }
})

plan('nothing is packed of what has not changed', () => {
  const collected: Entry[] = [
    { ...base, path: 'd', type: 'directory' },
    staged('d/empty', { size: 0, inode: 1 }),
    staged('d/file', { inode: 2 }),
    { ...base, path: 'd/to', type: 'symlink', target: 'x' },
  ]
  const last = collected.map((entry) => ({
    ...entry,
    header: [0, 0, 512] as const,
    ...(entry.size === 10 ? { pieces: [[ID, 0, 512, 10] as const] } : {}),
  }))
  const result = planned(collected, last)
  assert.equal(kinds(result), ['kept', 'kept', 'kept', 'kept'])
  assert.equal(
    result.map(({ kept }) => kept),
    last,
  )
})

plan('new metadata is a new header for content that stays where it is', () => {
  const entry = staged('f')
  for (const change of [
    { mode: 0o600 },
    { uid: 7 },
    { gid: 7 },
    { user: 'u' },
    { group: 'g' },
    { acl: 'user::rw-\n' },
    { xattrs: new Map([['user.a', Buffer.from('x')]]) },
    { flags: ['nodump'] },
  ] as const) {
    const before = exported(entry)
    const [result] = planned([{ ...entry, ...change }], [before])
    assert.is(result!.item?.kind, 'header', Object.keys(change)[0])
    assert.ok(result!.item?.kind === 'header')
    assert.equal(result!.item.pieces, [[ID, 10]])
    assert.is(result!.kept, before)
  }
})

plan('a change of any sign of other content is read', () => {
  const entry = staged('f')
  for (const change of [
    { inode: 101 },
    { bornNs: 2n },
    { size: 11 },
    { mtimeNs: 6n },
    { sparse: [[0, 4]] as const },
  ]) {
    const [result] = planned([{ ...entry, ...change }], [exported(entry)])
    assert.is(result!.item?.kind, 'file', Object.keys(change)[0])
    assert.is(result!.kept, undefined)
  }
})

plan('a file that was sparse elsewhere is read', () => {
  const entry = staged('f', { size: 5000, sparse: [[0, 512]] })
  const [same] = planned([entry], [exported(entry)])
  assert.is(same!.item, undefined)
  const [moved] = planned([{ ...entry, sparse: [[512, 512]] }], [exported(entry)])
  assert.is(moved!.item?.kind, 'file')
})

plan('a file that was renamed is a new header', () => {
  const before = exported(staged('old/name'))
  const [result] = planned([staged('new/name')], [before])
  assert.is(result!.item?.kind, 'header')
  assert.is(result!.kept, before)
  assert.is(result!.item?.metadata.path, 'new/name')
})

plan('two files that changed their names with each other keep their content each', () => {
  const [a, b] = [staged('a', { inode: 1 }), staged('b', { inode: 2 })]
  const last = [exported(a), exported(b, { pieces: [[OTHER, 0, 2000, 10]] })]
  const result = planned(
    [
      { ...a, inode: 2 },
      { ...b, inode: 1 },
    ],
    last,
  )
  assert.equal(kinds(result), ['header', 'header'])
  assert.is(result[0]!.kept, last[1])
  assert.is(result[1]!.kept, last[0])
})

plan('a file that another one took the place of is read, though all else is the same', () => {
  const [result] = planned([staged('f', { inode: 999 })], [exported(staged('f'))])
  assert.is(result!.item?.kind, 'file')
})

plan('an inode that was used again for another file is not believed', () => {
  const last = exported(staged('gone', { inode: 5, bornNs: 1n }))
  for (const change of [{ bornNs: 2n }, { size: 11 }, { mtimeNs: 9n }]) {
    const [result] = planned([staged('new', { inode: 5, ...change })], [last])
    assert.is(result!.item?.kind, 'file')
  }
})

plan('a hard link whose first path was removed becomes the file with the content it had', () => {
  const first = exported(staged('a'))
  const further: Entry = {
    ...base,
    path: 'b',
    type: 'link',
    target: 'a',
    size: 10,
    header: [0, 1024, 512],
  }
  const [result] = planned([staged('b')], [first, further])
  assert.is(result!.item?.kind, 'header')
  assert.is(result!.kept, first)
})

plan('a hard link that points to another first path is a new member', () => {
  const link: Entry = { ...base, path: 'c', type: 'link', target: 'b', size: 10 }
  const before: Entry = { ...link, target: 'a', header: [0, 1024, 512] }
  assert.equal(kinds(planned([link], [before])), ['member'])
  assert.equal(kinds(planned([link], [{ ...before, target: 'b' }])), ['kept'])
})

plan(
  'a file in a bundle that is gone is read, one whose header alone is gone gets a header',
  () => {
    const entry = staged('f')
    const before = exported(entry, {
      header: [1, 0, 512],
      pieces: [
        [ID, 2, 512, 5],
        [OTHER, 3, 0, 5],
      ],
    })
    const without = (gone: number): PlannedEntry =>
      planned([entry], [before], (bundle) => bundle !== gone)[0]!
    assert.is(without(0).item, undefined)
    assert.is(without(1).item?.kind, 'header')
    assert.is(without(2).item?.kind, 'file')
    assert.is(without(3).item?.kind, 'file')
    const empty = staged('e', { size: 0 })
    const header = { ...empty, header: [1, 0, 512] as const }
    assert.equal(kinds(planned([empty], [header], () => false)), ['member'])
  },
)

plan('a path keeps its parameter as long as its content is cut at all', () => {
  const chunkOf = (size: number, last: readonly Entry[]): number | undefined =>
    planned([staged('f', { size, inode: 2 })], last)[0]!.chunk
  const had = (size: number, chunk: number): Entry[] => [exported(staged('f', { size, chunk }))]
  assert.is(chunkOf(4 * MIB, []), undefined)
  assert.is(chunkOf(4 * MIB + 1, []), 16)
  assert.is(chunkOf(2 * GIB, []), 18)
  assert.is(chunkOf(2 * GIB, had(GIB, 16)), 16, 'it grew')
  assert.is(chunkOf(5 * MIB, had(20 * GIB, 20)), 20, 'it shrank')
  assert.is(chunkOf(4 * MIB, had(20 * GIB, 20)), undefined, 'it is one piece now')
  assert.is(chunkOf(5 * MIB, [exported(staged('f'))]), 16, 'it was one piece before')
})

plan('a large file that has not changed keeps its pieces and its parameter', () => {
  const entry = staged('f', { size: 2 * GIB })
  const before = exported(entry, { chunk: 16 })
  const [result] = planned([entry], [before])
  assert.is(result!.item, undefined)
  assert.is(result!.chunk, 16)
  const [changed] = planned([{ ...entry, mtimeNs: 77n }], [before])
  assert.ok(changed!.item?.kind === 'file' && changed!.item.chunk === 16)
})

plan('what was something else before is packed anew', () => {
  const symlink: Entry = { ...base, path: 'f', type: 'symlink', target: 'x', size: 10 }
  assert.equal(kinds(planned([staged('f')], [{ ...symlink, header: [0, 0, 512] }])), ['file'])
  assert.equal(kinds(planned([symlink], [exported(staged('f'))])), ['member'])
})

plan('entries find their like though others came and went around them', () => {
  const names = ['a', 'can', 'can/x', 'can.h', 'm', 'z']
  const last = names.map((path, i) => exported(staged(path, { inode: i })))
  const collected = ['A', 'can', 'can/w', 'can/x', 'can.h', 'z', 'zz'].map((path) =>
    staged(path, { inode: names.includes(path) ? names.indexOf(path) : 999 }),
  )
  assert.equal(kinds(planned(collected, last)), [
    'file',
    'kept',
    'file',
    'kept',
    'kept',
    'kept',
    'file',
  ])
})

plan('bug: a file with content is kept though the last export has no pieces of it', () => {
  const { pieces: _pieces, ...before } = exported(staged('f'))
  assert.equal(kinds(planned([staged('f')], [before])), ['file'])
})

plan('metadata is the same only where all of it is', () => {
  const entry: Entry = {
    ...base,
    path: 'f',
    type: 'file',
    size: 1,
    user: 'u',
    group: 'g',
    target: 't',
    device: [1, 2],
    acl: 'a',
    defaultAcl: 'd',
    flags: ['append', 'nodump'],
    sparse: [[0, 1]],
    xattrs: new Map([['user.a', Buffer.from('x')]]),
  }
  assert.ok(
    sameMetadata(entry, {
      ...entry,
      xattrs: new Map([['user.a', Buffer.from('x')]]),
      sparse: [[0, 1]],
    }),
  )
  const changes: readonly Partial<Entry>[] = [
    { path: 'g' },
    { type: 'fifo' },
    { mode: 1 },
    { uid: 1 },
    { gid: 1 },
    { user: 'v' },
    { group: 'h' },
    { mtimeNs: 6n },
    { size: 2 },
    { target: 's' },
    { device: [1, 3] },
    { device: [2, 2] },
    { acl: 'b' },
    { defaultAcl: 'e' },
    { flags: ['append'] },
    { sparse: [[0, 2]] },
    { sparse: [[1, 1]] },
    { sparse: [] },
    { xattrs: new Map() },
    { xattrs: new Map([['user.a', Buffer.from('y')]]) },
    { xattrs: new Map([['user.b', Buffer.from('x')]]) },
  ]
  for (const change of changes)
    assert.not.ok(sameMetadata(entry, { ...entry, ...change }), Object.keys(change)[0])
  for (const name of [
    'user',
    'group',
    'target',
    'device',
    'acl',
    'defaultAcl',
    'flags',
    'sparse',
    'xattrs',
  ] as const) {
    const { [name]: _gone, ...rest } = entry
    assert.not.ok(sameMetadata(entry, rest), `without ${name}`)
    assert.not.ok(sameMetadata(rest, entry), `without ${name}`)
  }
})

plan('a birth that becomes known is no new header, for no header has it', () => {
  const entry = staged('f')
  const [result] = planned([{ ...entry, birthNs: 9n }], [exported(entry)])
  assert.is(result!.item, undefined)
  assert.is(result!.entry.birthNs, 9n)
})

plan('usage counts what several entries share once', () => {
  const usage = usageOf([
    exported(staged('a'), {
      header: [0, 0, 512],
      pieces: [
        [ID, 0, 512, 10],
        [OTHER, 1, 0, 99],
      ],
    }),
    exported(staged('b'), { header: [0, 1024, 512], pieces: [[ID, 0, 512, 10]] }),
    { ...base, path: 's', type: 'socket' },
  ])
  assert.equal(
    usage,
    new Map([
      [0, 512 + 10 + 512],
      [1, 99],
    ]),
  )
})

plan.run()
