// A repository that somebody wrote who has the signing key and the recipient: every checksum and
// signature is right, and what it says is meant to harm. Nothing outside the directory changes, the
// terminal gets nothing but text, and what is refused is named (promises 9 and 10).

import {
  chmodSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { suite } from 'uvu'
import { command as restoreCommand } from '../commands/backup-restore.ts'
import { errorLines, exitCodeOf } from '../commands/voice.ts'
import { compressFrame, encodeTrailer, frameChecksum } from '../lib/format/zstd-frames.ts'
import { digestOf } from '../lib/format/chunker.ts'
import type { Entry, EntryType } from '../lib/model/entry.ts'
import { MAX_SHARD_ENTRIES, encodeShard } from '../lib/model/shard.ts'
import { comparePaths, rawPathFromText } from '../lib/model/raw-path.ts'
import * as assert from './helpers/assert.ts'
import {
  ForgedBundle,
  ForgedCatalog,
  type Forge,
  type ForgedEntry,
  type ForgedExport,
  forgeExport,
  forgeOf,
  publishForged,
} from './helpers/forged-repository.ts'
import { canRunAsRoot } from './helpers/needs.ts'
import { runCommand } from './helpers/run-command.ts'
import { type Scenario, assertNoLeftovers, makeScenario, script } from './helpers/scenario.ts'

const hostile = suite('hostile')
const MIB = 1024 * 1024
const STAMP = '2030-01-01T000000Z'
const NOW_MS = Date.parse('2030-01-02T00:00:00Z')
/** Where the harmless file of every attack lies: what is sound comes back all the same. */
const GOOD = 'good/file'

let made: Promise<{ readonly scenario: Scenario; readonly forge: Forge }> | undefined
let attacks = 0

/** One repository for all tests; every attack is a set of its own in it. */
async function stolen(): Promise<{ readonly scenario: Scenario; readonly forge: Forge }> {
  made ??= (async () => {
    const scenario = await makeScenario()
    writeFileSync(`${scenario.source}/mine`, 'mine')
    await scenario.generation()
    return { scenario, forge: await forgeOf(scenario) }
  })()
  return await made
}

function entry(type: EntryType, path: string, more: Partial<Entry> = {}): ForgedEntry {
  const mode = type === 'directory' ? 0o755 : 0o644
  const { uid, gid } = { uid: process.getuid!(), gid: process.getgid!() }
  return { entry: { path, type, mode, uid, gid, mtimeNs: 1_000_000_000n, ...more } }
}

function file(path: string, more: Partial<Entry> = {}): ForgedEntry {
  const content = Buffer.from(`evil ${path}`)
  return { ...entry('file', path, { size: content.length, ...more }), content }
}

const directory = (path: string): ForgedEntry => entry('directory', path)
const symlink = (path: string, target: string): ForgedEntry => entry('symlink', path, { target })
const link = (path: string, target: string): ForgedEntry => entry('link', path, { target })
const good = [directory('good'), file(GOOD)]

/** Entries as a catalog has them: in order. */
function sorted(...entries: readonly ForgedEntry[]): readonly ForgedEntry[] {
  return [...entries].sort((a, b) => comparePaths(a.entry.path, b.entry.path))
}

/** What one command did. */
interface Outcome {
  readonly status: number
  readonly stdout: string
  readonly stderr: string
}

interface Attack {
  readonly set: string
  /** What nothing may change. */
  readonly victim: string
  readonly into: string
  readonly run: (values: Readonly<Record<string, string | boolean | string[]>>) => Promise<Outcome>
}

/** Forges an export in a set of its own; `into` and `victim` lie side by side. */
async function attack(what: Omit<ForgedExport, 'set' | 'stamp'>): Promise<Attack> {
  const { scenario, forge } = await stolen()
  const set = `evil-${++attacks}`
  await forgeExport(forge, { set, stamp: STAMP, ...what })
  const area = `${scenario.directory}/${set}`
  const victim = `${area}/victim`
  mkdirSync(`${victim}/dir`, { recursive: true })
  writeFileSync(`${victim}/file`, 'untouched', { mode: 0o640 })
  chmodSync(`${victim}/dir`, 0o750)
  return {
    set,
    victim,
    into: `${area}/into`,
    run: async (values) =>
      await inProcess(scenario, {
        source: 'external',
        identity: scenario.identity,
        set,
        ...values,
      }),
  }
}

/** As main.ts would end it. What is no error of ours is a bug: the test fails with it. */
async function inProcess(
  scenario: Scenario,
  values: Readonly<Record<string, string | boolean | string[]>>,
): Promise<Outcome> {
  try {
    return await runCommand(restoreCommand, { scenario, values, nowMs: NOW_MS })
  } catch (error) {
    if (exitCodeOf(error) === 70) throw error
    const stderr = errorLines({ name: 'backup', error }).join('\n')
    return { status: exitCodeOf(error), stdout: '', stderr: `${stderr}\n` }
  }
}

/** Everything that stat(2) tells of a tree, contents too. */
function stateOf(path: string): string {
  return script(
    'cd "$1"; find . -printf "%P %y %i %n %m %U:%G %s %T@ %C@\\0" | sort -z; cat file',
    path,
  )
}

/** Nothing but text, newlines, and characters that do nothing to a terminal. */
function assertHarmless(outcome: Outcome): void {
  for (const text of [outcome.stdout, outcome.stderr]) {
    const found = /.{0,40}([^\n\P{Cc}]|[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff])/u.exec(
      text,
    )
    assert.is(found, null, `harmful: ${JSON.stringify(found?.[0])}`)
  }
}

/** What a restore made in its directory, which it may not even have made. */
function madeIn(into: string): string[] {
  return existsSync(into) ? readdirSync(into) : []
}

interface Expectations {
  /** Exit code of the restore, or the ones that it may have. */
  readonly status: number | readonly number[]
  /** Said by the restore. */
  readonly says?: RegExp
  /** Below `into`, sorted; what else is there is a failure. */
  readonly there: readonly string[]
  /** Exit code of --verify, where it is not that of the restore. */
  readonly verify?: number | readonly number[]
  readonly prepare?: (into: string) => void
}

/** Lists, verifies, previews, restores, restores again; the victim is as before. */
async function assertRepelled(
  what: Omit<ForgedExport, 'set' | 'stamp'>,
  expected: Expectations,
): Promise<Attack> {
  const at = await attack(what)
  mkdirSync(at.into)
  expected.prepare?.(at.into)
  const before = stateOf(at.victim)
  const listed = await at.run({ list: true })
  const verified = await at.run({ verify: true })
  const previewed = await at.run({ into: at.into, 'dry-run': true })
  if (expected.prepare === undefined) assert.equal(madeIn(at.into), [], 'a dry run makes nothing')
  const restored = await at.run({ into: at.into })
  const again = await at.run({ into: at.into, json: true })
  for (const one of [listed, verified, previewed, restored, again]) assertHarmless(one)
  assert.is(stateOf(at.victim), before, 'the victim is as it was')
  assert.equal(readdirSync(`${at.into}/..`).sort(), ['into', 'victim'], 'nothing beside it')
  assert.is(listed.status, 0, listed.stderr)
  const { status, verify = status } = expected
  const said = (one: Outcome): string => `${one.status}: ${one.stdout}${one.stderr}`
  assert.ok([status].flat().includes(restored.status), `restore ${said(restored)}`)
  assert.ok([verify].flat().includes(verified.status), `verify ${said(verified)}`)
  if (expected.says !== undefined) assert.ok(expected.says.test(restored.stderr), said(restored))
  assertNoLeftovers(at.into)
  const found = script('cd "$1"; find . -mindepth 1 -printf "%P\\0" | sort -z', at.into)
  assert.equal(found.split('\0').slice(0, -1), [...expected.there].sort())
  return at
}

const GOOD_THERE = ['good', GOOD]

const UNSAFE: Readonly<Record<string, string>> = {
  'an absolute path': '/victim/new',
  'a path that goes up': '../victim/file',
  'a path that goes up in its middle': 'good/../../victim/file',
  'a path that goes up at its end': 'a/..',
  'an empty component': 'good//file2',
  'a component that is a dot': './x',
  'a path that ends in a slash': 'x/',
  'a name of 256 bytes': 'x'.repeat(256),
}

hostile('every unsafe path is refused by name, and the rest comes back', async () => {
  const unsafe = Object.values(UNSAFE).map((path) => file(path))
  const at = await assertRepelled(
    { shards: [sorted(...good, ...unsafe)] },
    { status: 13, verify: 0, says: /unsafe path/, there: GOOD_THERE },
  )
  assert.is(readFileSync(`${at.into}/${GOOD}`, 'utf8'), `evil ${GOOD}`)
  const { stderr } = await at.run({ into: at.into })
  for (const [name, path] of Object.entries(UNSAFE)) {
    assert.ok(
      stderr.includes(`${path.slice(0, 200)}: `) || stderr.includes(`: ${path.slice(0, 200)}`),
      name,
    )
  }
})

hostile('what lies below a link of the backup is refused', async () => {
  await assertRepelled(
    { shards: [sorted(symlink('x', '../victim'), file('x/file'), ...good)] },
    { status: 13, says: /below what is no directory/, there: [] },
  )
})

hostile('nothing is written through a link of the backup in another shard', async () => {
  await assertRepelled(
    {
      shards: [
        [...good, symlink('x', '../victim')],
        [file('x/file'), file('x/new')],
      ],
    },
    { status: [3, 13], verify: [0, 13], there: [...GOOD_THERE, 'x', 'x/file', 'x/new'] },
  )
})

hostile('a link that an earlier restore made is not followed by the next one', async () => {
  await assertRepelled(
    { shards: [sorted(...good, file('x/dir/new'), file('x/file'))] },
    {
      status: 13,
      verify: 0,
      says: /x.* is no directory/,
      there: [...GOOD_THERE, 'x'],
      prepare: (into) => symlinkSync('../victim', `${into}/x`),
    },
  )
})

hostile('a hard link to a path outside is a file of its own, or is not made', async () => {
  const at = await assertRepelled(
    { shards: [sorted(file('../victim/file'), ...good, link('grabbed', '../victim/file'))] },
    {
      status: 13,
      verify: 0,
      says: /unsafe path: \.\.\/victim\/file/,
      there: [...GOOD_THERE, 'grabbed'],
    },
  )
  assert.is(readFileSync(`${at.into}/grabbed`, 'utf8'), 'evil ../victim/file')
})

hostile('a hard link is not made through a link that lies there', async () => {
  const at = await assertRepelled(
    { shards: [sorted(...good, file('x/file'), link('y', 'x/file'))] },
    {
      status: 13,
      verify: 0,
      says: /x\/file: /,
      there: [...GOOD_THERE, 'x', 'y'],
      prepare: (into) => symlinkSync('../victim', `${into}/x`),
    },
  )
  assert.is(readFileSync(`${at.into}/y`, 'utf8'), 'evil x/file')
})

hostile('hard links in a circle end, and are named', async () => {
  await assertRepelled(
    {
      shards: [
        sorted(link('a', 'b'), link('b', 'c'), link('c', 'a'), link('self', 'self'), ...good),
      ],
    },
    { status: 13, verify: 0, says: /a: /, there: GOOD_THERE },
  )
})

hostile('a hard link to a directory or a link is no hard link', async () => {
  await assertRepelled(
    {
      shards: [sorted(...good, symlink('k', '../victim/file'), link('l', 'k'), link('m', 'good'))],
    },
    { status: 13, verify: 0, says: /m: /, there: [...GOOD_THERE, 'k'] },
  )
})

hostile('names that restoring itself uses are refused', async () => {
  await assertRepelled(
    {
      shards: [
        sorted(
          directory('.backup-restore-0.partial'),
          file('.backup-restore-1.partial'),
          ...good,
          file('good/.backup-restore-7.partial'),
        ),
      ],
    },
    { status: 13, verify: 0, says: /\.backup-restore-7\.partial/, there: GOOD_THERE },
  )
})

hostile('a path that is there twice is refused, in one shard and in two', async () => {
  const twice: ForgedEntry = { ...file('twice'), content: Buffer.from('evil again') }
  await assertRepelled(
    { shards: [[file('twice'), twice]] },
    { status: 13, says: /shard is not in order/, there: [] },
  )
  await assertRepelled(
    { shards: [[file('twice')], [twice]] },
    { status: 13, says: /index is not in order/, there: [] },
  )
  await assertRepelled(
    {
      shards: [
        [file('a'), file('twice')],
        [file('b'), twice],
      ],
    },
    { status: 13, says: /goes on past the next/, there: [] },
  )
})

hostile('a shard that is not in order is refused', async () => {
  await assertRepelled(
    { shards: [[file('b'), file('a')]] },
    { status: 13, says: /not in order/, there: [] },
  )
})

if (canRunAsRoot('devices and set-user-id files of a backup')) {
  hostile(
    'devices and set-user-id files are what they were, below the directory only',
    async () => {
      const at = await attack({
        shards: [
          [
            entry('char', 'null', { device: [1, 3], mode: 0o666 }),
            entry('block', 'sda', { device: [8, 0], mode: 0o600 }),
            file('suid', { mode: 0o4755, uid: 0, gid: 0 }),
          ],
        ],
      })
      const before = stateOf(at.victim)
      assert.is((await at.run({ into: at.into })).status, 0)
      assert.ok(lstatSync(`${at.into}/null`).isCharacterDevice())
      assert.is(lstatSync(`${at.into}/suid`).mode & 0o7777, 0o4755)
      assert.is(stateOf(at.victim), before)
      // Nobody else gets at them through the directory itself.
      rmSync(at.into, { recursive: true })
    },
  )
}

const LIES: Readonly<Record<string, readonly [RegExp, ForgedEntry]>> = {
  'a symbolic link without a target': [
    /symlink has a wrong target/,
    { ...symlink('s', 'x'), lies: { target: undefined } },
  ],
  'a file with a target': [/file has a wrong target/, { ...file('f'), lies: { target: 'x' } }],
  'a device without numbers': [
    /wrong device/,
    { ...entry('char', 'c', { device: [1, 3] }), lies: { device: undefined } },
  ],
  'device numbers above 2^32': [
    /device is out of range/,
    { ...entry('char', 'c', { device: [1, 3] }), lies: { device: [2 ** 40, 1] } },
  ],
  'a directory with holes': [/directory has segments/, { ...directory('d'), lies: { sparse: [] } }],
  'segments that overlap': [
    /segments are out of order/,
    {
      ...file('f'),
      lies: {
        size: 4096,
        sparse: [
          [0, 1024],
          [512, 1024],
        ],
      },
    },
  ],
  'segments behind the end': [
    /behind the end/,
    { ...file('f'), lies: { size: 4096, sparse: [[2 ** 53 - 1, 512]] } },
  ],
  'a size above 2^53': [/size is out of range/, { ...file('f'), lies: { size: 2 ** 60 } }],
  'a negative size': [/size is out of range/, { ...file('f'), lies: { size: -1 } }],
  'a mode with more than permissions': [/mode is out/, { ...file('f'), lies: { mode: 0o170777 } }],
  'an attribute whose name has a zero byte': [
    /xattr has a malformed name/,
    { ...file('f'), lies: { xattrs: { 'user.\0x': 'eA==' } } },
  ],
  'a name with a zero byte': [/path is no path/, { ...file('f'), lies: { path: 'f\0g' } }],
  'an empty name': [/path is no path/, { ...file('f'), lies: { path: '' } }],
  'a piece of a gibibyte': [
    /length of a piece is out of range/,
    { ...file('f'), lies: { size: 2 ** 30, pieces: [['ab'.repeat(32), 0, 0, 2 ** 30]] } },
  ],
  'a piece in a bundle that is not named': [
    /bundle that its shard does not/,
    { ...file('f'), lies: { pieces: [['ab'.repeat(32), 7, 0, 6]] } },
  ],
  'a piece beyond the frames': [
    /outside the frames/,
    { ...file('f'), lies: { pieces: [['ab'.repeat(32), 0, 2 ** 50, 6]] } },
  ],
  'a time that is none': [/time is malformed/, { ...file('f'), lies: { mtime: '1e99' } }],
}

for (const [name, [says, lie]] of Object.entries(LIES)) {
  hostile(`${name} is refused with its shard`, async () => {
    const at = await attack({ shards: [[lie]] })
    const verified = await at.run({ verify: true })
    assert.is(verified.status, 13)
    assert.match(verified.stdout, says)
    const restored = await at.run({ into: at.into })
    assert.is(restored.status, 13)
    assert.match(restored.stderr, says)
    assert.equal(madeIn(at.into), [])
  })
}

const FALSE: Readonly<Record<string, ForgedEntry>> = {
  'more content than its size': { ...file('f'), lies: { size: 1 } },
  'less content than its size': { ...file('f'), lies: { size: 2 ** 20 } },
  'a size of 2^53 - 1 and nothing in it': {
    ...file('f'),
    lies: { size: 2 ** 53 - 1, sparse: [[0, 512]] },
  },
  'an ACL that is none': {
    ...file('f'),
    lies: { acl: `user::rw-\n${'user:1:rwx\n'.repeat(9000)}` },
  },
}

for (const [name, lie] of Object.entries(FALSE)) {
  hostile(`a file with ${name} does not come back, everything else does`, async () => {
    await assertRepelled(
      { shards: [sorted(...good, lie)] },
      { status: 13, says: /f: /, there: GOOD_THERE },
    )
  })
}

hostile('a hole of eight exbibytes is not made', async () => {
  const hole = entry('file', 'hole', { size: 2 ** 53 - 1, sparse: [] })
  const at = await attack({ shards: [sorted(...good, hole)] })
  const restored = await at.run({ into: at.into })
  assertHarmless(restored)
  const there = readdirSync(at.into)
  // A filesystem that takes such a hole takes no room for it.
  if (there.includes('hole')) assert.is(statSync(`${at.into}/hole`).blocks, 0)
  else assert.match(restored.stderr, /hole/)
})

/** A payload of these frames, with the seek table that says so. */
function payloadOf(frames: readonly Buffer[], tarBytes: number): Buffer {
  return Buffer.concat([
    ...frames,
    encodeTrailer(
      frames.map((frame) => ({
        compressedBytes: frame.length,
        tarBytes,
        checksum: frameChecksum(frame),
      })),
    ),
  ])
}

hostile('a frame that holds more than it says is refused before it is unpacked', async () => {
  const bomb = compressFrame(Buffer.alloc(256 * MIB), 19)
  assert.ok(bomb.length < 64 * 1024, `${bomb.length}`)
  const content = Buffer.alloc(MIB)
  const lie: ForgedEntry = {
    ...entry('file', 'bomb', { size: MIB, header: [0, 0, 512] }),
    lies: { pieces: [[digestOf(content), 0, 0, MIB]] },
  }
  const bombs = { payload: payloadOf([bomb], 4 * MIB), shards: [[lie]] }
  const peak = process.memoryUsage().rss
  await assertRepelled(
    { ...bombs, frames: () => [[0, 4 * MIB, 0, bomb.length]] },
    { status: 13, says: /bomb: .*frame/, there: [] },
  )
  assert.ok(process.memoryUsage().rss - peak < 200 * MIB, 'it was never unpacked')
})

hostile('a seek table of frames larger than frames may be is refused', async () => {
  const bomb = compressFrame(Buffer.alloc(256 * MIB), 19)
  const lie: ForgedEntry = {
    ...entry('file', 'bomb', { size: MIB, header: [0, 0, 512] }),
    lies: { pieces: [[digestOf(Buffer.alloc(MIB)), 0, 0, MIB]] },
  }
  const at = await attack({
    payload: payloadOf([bomb], 256 * MIB),
    shards: [[lie]],
    frames: () => [[0, 4 * MIB, 0, bomb.length]],
  })
  const verified = await at.run({ verify: true })
  assert.is(verified.status, 13)
  assert.match(verified.stdout, /a frame that is larger than frames may be/)
})

hostile('padding between frames is passed over', async () => {
  const tar = compressFrame(Buffer.alloc(MIB), 3)
  const padding = Buffer.from('502a4d1808000000' + '00'.repeat(8), 'hex')
  const entries = [
    { compressedBytes: tar.length, tarBytes: MIB, checksum: frameChecksum(tar) },
    { compressedBytes: padding.length, tarBytes: 0, checksum: 0x51d8e999 },
    { compressedBytes: tar.length, tarBytes: MIB, checksum: frameChecksum(tar) },
  ]
  const payload = Buffer.concat([tar, padding, tar, encodeTrailer(entries)])
  const content = Buffer.alloc(MIB)
  const pieces = [[digestOf(content), 0, MIB, MIB] as const]
  const lie: ForgedEntry = {
    ...entry('file', 'f', { size: MIB, header: [0, 0, 512], pieces }),
    lies: { header: undefined },
  }
  await assertRepelled(
    {
      payload,
      shards: [[lie]],
      frames: () => [
        [0, MIB, 0, tar.length],
        [MIB, MIB, tar.length + padding.length, tar.length],
      ],
    },
    { status: 0, there: ['f'] },
  )
})

if (canRunAsRoot('a file that expands beyond the room there is')) {
  hostile('a few bytes that become a tebibyte fill no disk, and leave nothing', async () => {
    // The same 4 MiB, a quarter of a million times.
    const content = Buffer.alloc(4 * MIB)
    const piece = [digestOf(content), 0, 0, content.length]
    const many = Array.from({ length: 2 ** 18 }, () => piece)
    const frame = compressFrame(content, 3)
    const at = await attack({
      payload: payloadOf([frame], content.length),
      frames: () => [[0, content.length, 0, frame.length]],
      shards: [
        [
          {
            ...entry('file', 'bomb', { size: 2 ** 40, chunk: 20, header: [0, 0, 512] }),
            lies: { pieces: many },
          },
        ],
      ],
    })
    mkdirSync(at.into)
    script('mount -t tmpfs -o size=24m none "$1"', at.into)
    try {
      const restored = await at.run({ into: at.into })
      assert.ok([1, 13].includes(restored.status), restored.stderr)
      assert.match(restored.stderr, /bomb|room/)
      assert.equal(madeIn(at.into), [])
    } finally {
      script('umount "$1"', at.into)
    }
  })
}

const ESCAPES = [
  '\x1b]0;owned\x07',
  '\x1b[2J\x1b[31m',
  'line\rovertyped',
  'line\nbackup: all is well',
  '\x9b31m',
  '\x08\x08\x7f',
  rawPathFromText('\u202egnp.exe'),
  rawPathFromText('\u2066\u200f\ufeff'),
  '\xff\xfe not text \x1b[1m',
]

hostile('names, owners and reasons reach the terminal as text only', async () => {
  const named = ESCAPES.flatMap((name): ForgedEntry[] => [
    file(`good/${name}`, { user: name, group: name }),
    { ...file(`good/l${name}`), lies: { size: 2 ** 20 } },
  ])
  const missing = ESCAPES.map((why) => ({ path: why, why }))
  const sources = ESCAPES.map((path) => ({ path, snapshot: 'none', time: path }))
  const claims = { complete: false, missing, sources }
  const shards = [sorted(directory('good'), ...named)]
  const at = await attack({ shards, claims })
  mkdirSync(at.into)
  for (const values of [
    { list: true },
    { verify: true },
    { verify: true, json: true },
    { into: at.into },
    { into: at.into, json: true },
    { into: at.into, 'dry-run': true, verbose: true },
    { into: at.into, path: `/${ESCAPES[0]}` },
  ]) {
    assertHarmless(await at.run(values as Readonly<Record<string, string | boolean>>))
  }
  // The files themselves have their names.
  assert.is(readFileSync(`${at.into}/good/${ESCAPES[0]}`, 'utf8'), `evil good/${ESCAPES[0]}`)
  // The program as people start it, too: what main.ts and its workers say.
  const { scenario } = await stolen()
  const { status, stdout, stderr } = await scenario.restore('--set', at.set, '--into', at.into)
  assert.is(status, 13, stderr)
  assertHarmless({ status: 13, stdout, stderr })
})

hostile('a set or machine with a name that is none is not seen', async () => {
  const { scenario, forge } = await stolen()
  const name = '\x1b[2J'
  mkdirSync(`${scenario.target}/machines/${name}/${name}/${STAMP}`, { recursive: true })
  mkdirSync(`${scenario.target}/machines/tester/${name}/${STAMP}`, { recursive: true })
  writeFileSync(`${scenario.target}/machines/tester/${name}/${STAMP}/manifest.tar.zst.age`, 'x')
  try {
    for (const values of [{ list: true }, { machine: 'nobody', into: '/nowhere' }]) {
      const { identity } = scenario
      assertHarmless(await inProcess(scenario, { source: 'external', identity, ...values }))
    }
  } finally {
    rmSync(`${forge.directory}/machines/${name}`, { recursive: true })
    rmSync(`${forge.directory}/machines/tester/${name}`, { recursive: true })
  }
})

const CLAIMS: Readonly<Record<string, readonly [RegExp, ForgedExport['claims']]>> = {
  'another machine': [/belongs to another export/, { machine: 'other' }],
  'another set': [/belongs to another export/, { set: 'other' }],
  'another stamp': [/belongs to another export/, { stamp: '2029-01-01T000000Z' }],
  'another repository': [/belongs to another export/, { repository: '0'.repeat(32) }],
  'a newer format': [/format 2/, { format: 2 }],
  'no format': [/no format number/, { format: undefined }],
  'a bundle that lies elsewhere': [
    /bundle name is malformed/,
    { bundles: [{ name: '../../../../etc/passwd', size: 1, sha256: '0'.repeat(64) }] },
  ],
  'an index in a bundle elsewhere': [
    /bundle name is malformed/,
    {
      index: { digest: '0'.repeat(64), bundle: '/etc/passwd', tar: [0, 1], frames: [], shards: 1 },
    },
  ],
  'statistics that are no numbers': [/out of range/, { statistics: { entries: '1' } }],
}

for (const [name, [says, claims]] of Object.entries(CLAIMS)) {
  hostile(`a manifest that claims ${name} is refused`, async () => {
    const at = await attack({ shards: [good], claims: claims! })
    const verified = await at.run({ verify: true })
    assert.is(verified.status, 13)
    assert.match(verified.stdout, says)
    const restored = await at.run({ into: at.into })
    assert.is(restored.status, name === 'a newer format' ? 1 : 13)
    assert.match(restored.stderr, says)
    assert.equal(madeIn(at.into), [])
  })
}

hostile('a manifest of more than 256 MiB is refused before it is unpacked', async () => {
  const at = await attack({
    shards: [good],
    members: (members) => new Map([...members, ['padding', Buffer.alloc(260 * MIB)]]),
  })
  const restored = await at.run({ into: at.into })
  assert.is(restored.status, 13)
  assert.match(restored.stderr, /manifest is too large/)
})

hostile('an older export in the place of a newer one is refused', async () => {
  const { scenario, forge } = await stolen()
  const set = `evil-${++attacks}`
  const [older, newer] = ['2030-01-01T000000Z', '2030-01-02T000000Z']
  await forgeExport(forge, { set, stamp: older, shards: [[file('old')]] })
  await forgeExport(forge, { set, stamp: newer, shards: [[file('new')]] })
  const directories = `${scenario.target}/machines/tester/${set}`
  rmSync(`${directories}/${newer}`, { recursive: true })
  cpSync(`${directories}/${older}`, `${directories}/${newer}`, { recursive: true })
  const into = `${scenario.directory}/${set}`
  const values = { source: 'external', identity: scenario.identity, set, into }
  const restored = await inProcess(scenario, values)
  assert.is(restored.status, 13, restored.stderr)
  assert.match(restored.stderr, /made for another file/)
  assert.equal(madeIn(into), [])
})

hostile(
  'bundles of two exports that are swapped cost their files, and nothing is mixed',
  async () => {
    const { scenario, forge } = await stolen()
    const set = `evil-${++attacks}`
    const stamps = ['2030-01-01T000000Z', '2030-01-02T000000Z']
    for (const stamp of stamps) await forgeExport(forge, { set, stamp, shards: [[file(stamp)]] })
    const [a = '', b = ''] = stamps.map(
      (stamp) => `${scenario.target}/machines/tester/${set}/${stamp}/data-0001.tar.zst.age`,
    )
    renameSync(a, `${a}.away`)
    renameSync(b, a)
    renameSync(`${a}.away`, b)
    const into = `${scenario.directory}/${set}`
    const values = { source: 'external', identity: scenario.identity, set }
    assert.is((await inProcess(scenario, { ...values, verify: true })).status, 13)
    const restored = await inProcess(scenario, { ...values, into })
    assert.is(restored.status, 13, restored.stderr)
    assert.match(restored.stderr, new RegExp(stamps[1]!))
    assert.equal(madeIn(into), [])
  },
)

/** A million by hand: HOSTILE_ENTRIES=1000000. */
const MANY = Number(process.env['HOSTILE_ENTRIES'] ?? '20000')

hostile('a directory of very many files is listed and read file by file', async () => {
  const { scenario, forge } = await stolen()
  const set = `evil-${++attacks}`
  const content = Buffer.from('all the same')
  const data = new ForgedBundle(forge, `${set}/${STAMP}/data-0001`)
  const [offset, length] = data.member('many', content)
  const place = { name: data.name, frames: data.frames }
  const catalog = new ForgedBundle(forge, `${set}/${STAMP}/catalog-0001`)
  const shards = new ForgedCatalog(catalog)
  const pieces = [[digestOf(content), 0, offset, length] as const]
  for (let first = 0; first < MANY; first += MAX_SHARD_ENTRIES) {
    const run = Array.from({ length: Math.min(MAX_SHARD_ENTRIES, MANY - first) }, (_, i) => {
      const path = `many/${String(first + i).padStart(7, '0')}`
      return entry('file', path, { size: length, header: [0, 0, 512], pieces }).entry
    })
    const bytes = encodeShard(run, () => place)
    shards.add(bytes, { entries: run.length, first: run[0]!.path })
  }
  const bundles = [data.finish()]
  const index = shards.finish()
  bundles.push(catalog.finish())
  const statistics = { entries: MANY, files: MANY, bytes: MANY * length }
  await publishForged(forge, { place: { set, stamp: STAMP }, index, bundles, statistics })
  const into = `${scenario.directory}/${set}`
  const values = { source: 'external', identity: scenario.identity, set, into }
  const path = `many/${String(MANY - 1).padStart(7, '0')}`
  const one = await inProcess(scenario, { ...values, path: [`/${path}`] })
  assert.is(one.status, 0, one.stderr)
  assert.equal(readFileSync(`${into}/${path}`), content)
  const all = await inProcess(scenario, { ...values, 'dry-run': true })
  assert.is(all.status, 0, all.stderr)
  assert.match(all.stdout, String(MANY - 1))
})

hostile.run()
