import { spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync } from 'node:fs'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { readAccountNames, readAccountNumbers } from '../../lib/machine/accounts.ts'
import { probePlaceNames } from '../../lib/machine/place-names.ts'
import type { Entry } from '../../lib/model/entry.ts'
import {
  type Move,
  type MovingRules,
  findCollisions,
  moveEntries,
  moveEntry,
  parseAccountMap,
  parseNameRule,
  parseOwnerRule,
  planMove,
} from '../../lib/model/moving.ts'
import { PLAIN_NAMES, type PlaceNames } from '../../lib/model/place-names.ts'
import { rawPathFromText } from '../../lib/model/raw-path.ts'
import * as assert from '../helpers/assert.ts'
import { driveImage } from '../helpers/drive-image.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const moving = suite('model/moving')

const HERE = { users: new Map([['bob', 1000]]), groups: new Map([['staff', 50]]) }
const NONE: ReadonlyMap<string | number, number> = new Map()

function rules(change: Partial<MovingRules>): MovingRules {
  return {
    owner: 'number',
    users: NONE,
    groups: NONE,
    names: 'as-is',
    accounts: HERE,
    mine: { uid: 7, gid: 8 },
    ...change,
  }
}

function entry(path: string, change: Partial<Entry> = {}): Entry {
  return {
    path: rawPathFromText(path),
    type: 'file',
    mode: 0o644,
    uid: 501,
    gid: 20,
    mtimeNs: 0n,
    ...change,
  }
}

function move(entries: readonly Entry[], change: Partial<MovingRules>): Move {
  return planMove(entries, rules(change))
}

function ownersOf(one: Entry, change: Partial<MovingRules>): readonly [number, number] {
  const { uid, gid } = moveEntry(one, move([one], change))
  return [uid, gid]
}

const USAGE = (error: Error): boolean => error instanceof BackupError && error.code === 'USAGE'

moving('numbers stay numbers, and the entry is the very same object', () => {
  const one = entry('a', { user: 'bob', group: 'staff' })
  assert.is(moveEntry(one, move([one], {})), one)
})

moving('by name where the name is here, else by number, and the unknown are named once', () => {
  const entries = [
    entry('a', { user: 'bob', group: 'staff' }),
    entry('b', { uid: 502, user: 'zoe', group: 'staff' }),
    entry('c', { uid: 502, user: 'zoe', gid: 21, group: 'admin' }),
    entry('d', { uid: 503, gid: 22 }),
  ]
  const plan = move(entries, { owner: 'name' })
  assert.equal(
    entries.map((one) => moveEntry(one, plan)).map(({ uid, gid }) => [uid, gid]),
    [
      [1000, 50],
      [502, 50],
      [502, 21],
      [503, 22],
    ],
  )
  assert.equal([plan.unknownUsers, plan.unknownGroups], [['zoe'], ['admin']])
  assert.equal(move(entries, {}).unknownUsers, [], 'nobody asked for names')
})

moving('mine is whoever restores, and a map goes before every rule', () => {
  const one = entry('a', { user: 'alice', group: 'staff' })
  assert.equal(ownersOf(one, { owner: 'mine' }), [7, 8])
  const byName = new Map([['alice', 2000]])
  const byNumber = new Map([[501, 3000]])
  for (const owner of ['number', 'name', 'mine'] as const) {
    assert.is(ownersOf(one, { owner, users: byName })[0], 2000, owner)
    assert.is(ownersOf(one, { owner, users: byNumber })[0], 3000, owner)
    assert.is(
      ownersOf(one, {
        owner,
        users: new Map<string | number, number>([...byNumber, ...byName]),
      })[0],
      2000,
      owner,
    )
  }
  assert.is(ownersOf(one, { groups: new Map([['staff', 9]]) })[1], 9)
  const plan = move([one], { owner: 'name', users: byName })
  assert.equal(plan.unknownUsers, [], 'whoever is mapped is known')
})

moving('ACLs follow: by the names that the entries give, and by the map', () => {
  const acl =
    'user::rw-\nuser:501:rwx\nuser:999:r--\ngroup::r--\ngroup:20:rw-\nmask::rwx\nother::---\n'
  const entries = [
    entry('a', { type: 'directory', uid: 0, gid: 0, acl, defaultAcl: acl }),
    entry('b', { user: 'bob', group: 'staff' }),
  ]
  const expected = acl.replace('user:501', 'user:1000').replace('group:20', 'group:50')
  const [first] = entries
  const moved = moveEntry(first!, move(entries, { owner: 'name' }))
  assert.equal([moved.acl, moved.defaultAcl], [expected, expected])
  const mapped = moveEntry(first!, move([first!], { users: new Map([[999, 4]]) }))
  assert.is(mapped.acl, acl.replace('user:999', 'user:4'))
})

moving('two accounts that become one are allowed only what both were', () => {
  const acl = 'user::rw-\nuser:501:rw-\nuser:1000:r-x\ngroup::r--\nmask::rwx\nother::---\n'
  const one = entry('a', { acl })
  assert.is(
    moveEntry(one, move([one], { users: new Map([[501, 1000]]) })).acl,
    'user::rw-\nuser:1000:r--\ngroup::r--\nmask::rwx\nother::---\n',
  )
})

moving('maps are pairs of names and numbers', () => {
  const option = '--map-user'
  const parse = (...texts: string[]) => [...parseAccountMap(texts, { option, here: HERE.users })]
  assert.equal(parse(), [])
  assert.equal(parse('alice=bob', '501=1000', 'x=0', '4294967294=1'), [
    ['alice', 1000],
    [501, 1000],
    ['x', 0],
    [4294967294, 1],
  ])
  assert.equal(parse('a=bob', 'a=1000'), [['a', 1000]], 'the same twice')
  for (const wrong of [
    '',
    'alice',
    '=bob',
    'alice=',
    'a=b=c',
    'alice=nobody-here',
    'a=4294967295',
  ]) {
    assert.throws(() => parse(wrong), USAGE, wrong)
  }
  assert.throws(() => parse('a=1', 'a=2'), /another account before/)
  assert.throws(
    () => parse('a=\u001b[31m'),
    (error: Error) => !error.message.includes('\u001b'),
  )
})

moving('rules that mean nothing are refused', () => {
  assert.equal([parseOwnerRule('mine'), parseNameRule('nfd')], ['mine', 'nfd'])
  assert.throws(() => parseOwnerRule('me'), USAGE)
  assert.throws(() => parseNameRule('NFC'), USAGE)
})

moving('names are spelt anew, with targets, and what is no UTF-8 stays', () => {
  const [composed, decomposed] = ['caf\u00e9', 'cafe\u0301'].map(rawPathFromText) as [
    string,
    string,
  ]
  const raw = `${composed}/\xff\xe9/${composed}`
  const link = { ...entry('l', { type: 'link' }), path: raw, target: `x/${composed}` }
  const { path, target } = moveEntry(link, move([link], { names: 'nfd' }))
  assert.is(path, `${decomposed}/\xff\xe9/${decomposed}`)
  assert.is(target, `x/${decomposed}`)
  const back = moveEntry({ ...link, path, target: target! }, move([link], { names: 'nfc' }))
  assert.equal([back.path, back.target], [raw, link.target])
})

const place = (change: Partial<PlaceNames>): PlaceNames => ({ ...PLAIN_NAMES, ...change })
const FOLDING = place({ foldsCase: true })

function collisionsOf(paths: readonly string[], at: PlaceNames, names: Move['names'] = 'as-is') {
  const entries = paths.map((path) => entry(path))
  const found = findCollisions(entries, { names, place: at })
  return [...found].map(([path, other]) =>
    [path, other].map((raw) => Buffer.from(raw, 'latin1').toString()),
  )
}

moving('the second of two that are one file is named, with the first', () => {
  assert.equal(collisionsOf(['A', 'B', 'a', 'c/a', 'd/A'], FOLDING), [['a', 'A']])
  assert.equal(collisionsOf(['A', 'a'], PLAIN_NAMES), [])
  assert.equal(collisionsOf(['\u00c9', '\u00e9', 'stra\u00dfe', 'STRASSE'], FOLDING), [
    ['\u00e9', '\u00c9'],
    ['STRASSE', 'stra\u00dfe'],
  ])
  const twins = ['caf\u00e9', 'cafe\u0301']
  assert.equal(collisionsOf(twins, FOLDING), [])
  assert.equal(collisionsOf(twins, place({ normalizes: true })), [[twins[1], twins[0]]])
  for (const names of ['nfc', 'nfd'] as const) {
    assert.equal(collisionsOf(twins, PLAIN_NAMES, names), [[twins[1], twins[0]]], names)
  }
  assert.equal(collisionsOf(['a', 'a.', 'a..', '...'], place({ dropsDots: true })), [
    ['a.', 'a'],
    ['a..', 'a'],
  ])
})

moving('below a directory that is one with another nothing is made', () => {
  assert.equal(collisionsOf(['Dir', 'Dir/x', 'dir', 'dir/x', 'dir/y'], FOLDING), [
    ['dir', 'Dir'],
    ['dir/x', 'Dir'],
    ['dir/y', 'Dir'],
  ])
})

moving('names that are no text collide by their bytes, and only with their like', () => {
  const entries = ['A\xff', 'a\xff', 'b\xff', 'b\xc3\xbf'].map((path) => ({ ...entry('x'), path }))
  assert.equal(
    [...findCollisions(entries, { names: 'as-is', place: FOLDING })],
    [['a\xff', 'A\xff']],
  )
})

function moved(entries: readonly Entry[], change: Partial<MovingRules>, at: PlaceNames) {
  const done = moveEntries(entries, { move: move(entries, change), place: at })
  return { ...done, entries: done.moved.map((one) => one.entry) }
}

moving('what cannot be made is a failure with its reason, and the rest is made', () => {
  const entries = ['A', 'a', 'colon:', 'd?', 'd?/in', 'z\u0001'].map((path) => entry(path))
  const { entries: made, failures } = moved(
    entries,
    {},
    place({ foldsCase: true, refused: ':?\u0001' }),
  )
  assert.equal(
    made.map(({ path }) => path),
    ['A'],
  )
  assert.equal(
    failures.map(({ path, why }) => [path, why]),
    [
      ['a', 'it would be one with A here; restore one of them elsewhere with --path and --into'],
      ['colon:', 'the filesystem here takes no ":" in names'],
      ['d?', 'the filesystem here takes no "?" in names'],
      ['d?/in', 'its directory cannot be made here'],
      ['z\u0001', 'the filesystem here takes no "\\x01" in names'],
    ],
  )
  const long = entry('\u00e9'.repeat(127))
  assert.is(moved([long], {}, PLAIN_NAMES).failures.length, 0)
  assert.match(moved([long], { names: 'nfd' }, PLAIN_NAMES).failures[0]!.why, 'longer than 255')
})

moving('a hard link whose file cannot be made becomes the file, and others its links', () => {
  const pieces = [['f'.repeat(64), 0, 0, 3]] as const
  const entries = [
    entry('A', { size: 1 }),
    entry('a', { size: 3, pieces }),
    entry('b', { type: 'link', target: 'a', uid: 3 }),
    entry('c', { type: 'link', target: 'a' }),
    entry('d', { type: 'link', target: 'A' }),
  ]
  const { entries: made } = moved(entries, {}, FOLDING)
  assert.equal(made, [
    entries[0],
    entry('b', { size: 3, pieces, uid: 3 }),
    entry('c', { type: 'link', target: 'b' }),
    entries[4],
  ])
})

moving(
  'names that are spelt anew are in catalog order again, and tell where they come from',
  () => {
    const entries = ['e\u0301', 'z'].map((path) => entry(path))
    const { moved: made } = moved(entries, { names: 'nfc' }, PLAIN_NAMES)
    assert.equal(
      made.map(({ entry: { path }, from }) => [path, from]),
      [
        ['z', 'z'],
        [rawPathFromText('\u00e9'), entries[0]!.path],
      ],
    )
  },
)

moving('of twins that become equal, links of the second are its own file', () => {
  const twins = ['\u00e9', 'e\u0301'].map((path, size) => entry(path, { size })).reverse()
  const [first, second] = twins as [Entry, Entry]
  const link = entry('\u00ff', { type: 'link', target: second.path })
  const { moved: made, failures } = moved([first, second, link], { names: 'nfc' }, PLAIN_NAMES)
  assert.equal(
    failures.map(({ path }) => path),
    [second.path],
  )
  assert.equal(
    made.map(({ entry: { type, size }, from }) => [from, type, size]),
    [
      [first.path, 'file', first.size],
      [link.path, 'file', second.size],
    ],
  )
})

moving("the system's accounts are known in both directions", () => {
  const [names, numbers] = [readAccountNames(), readAccountNumbers()]
  assert.is(names.users.get(0), 'root')
  assert.is(numbers.users.get('root'), 0)
  const [id] = spawnSync('id', ['-g', 'daemon'], { encoding: 'utf8' }).stdout.split('\n')
  if (process.platform === 'linux') assert.is(numbers.groups.get('daemon'), Number(id))
})

moving('a place is tried, and nothing is left there', () => {
  const directory = tempDirectory()
  const found = probePlaceNames(directory)
  if (process.platform === 'linux') assert.equal(found, PLAIN_NAMES)
  assert.equal(readdirSync(directory), [])
})

if (canRunAsRoot('names on exFAT')) {
  moving('exFAT takes A for a and refuses what it refuses', () => {
    const { device } = driveImage({ type: 'exfat', label: 'NAMES' })
    const at = `${tempDirectory()}/drive`
    mkdirSync(at)
    const mounted = spawnSync('mount.exfat-fuse', [device, at], { encoding: 'utf8' })
    assert.is(mounted.status, 0, mounted.stderr)
    try {
      const found = probePlaceNames(at)
      assert.equal([found.foldsCase, found.refused], [true, '"*:<>?\\|\u0001\u001f'])
      assert.equal(readdirSync(at), [])
    } finally {
      spawnSync('umount', [at])
    }
  })
}

moving.run()
