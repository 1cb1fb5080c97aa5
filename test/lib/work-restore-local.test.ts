import { execFileSync, spawnSync } from 'node:child_process'
import {
  chmodSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs'
import { randomBytes } from 'node:crypto'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { digestOf } from '../../lib/format/chunker.ts'
import { setTimes, setXattr } from '../../lib/machine/posix.ts'
import { type Entry, dataBytes } from '../../lib/model/entry.ts'
import { comparePaths } from '../../lib/model/raw-path.ts'
import { encodeShard } from '../../lib/model/shard.ts'
import { collectSet } from '../../lib/work/collect.ts'
import type { OverwritePolicy } from '../../lib/model/overwrite.ts'
import {
  type SelectLocalOptions,
  refuseStaging,
  selectLocal,
} from '../../lib/work/restore-local.ts'
import { type RestoreOutcome, restoreSelection } from '../../lib/work/restore.ts'
import { acquireSetLock, readCollection } from '../../lib/work/staging.ts'
import { EMPTY_STATE, adoptPending, stateDirectory, writePending } from '../../lib/work/state.ts'
import {
  type CollectionVerification,
  digestsFor,
  verifyCollection,
} from '../../lib/work/verify-local.ts'
import * as assert from '../helpers/assert.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { configurationOf, setConfiguration } from '../helpers/configuration.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const local = suite('work/restore-local')
const root = tempDirectory()
const isRoot = canRunAsRoot('local restores of owners and devices')
let scenes = 0
const signal = new AbortController().signal
const report = (): void => {}

interface RestoreLocalOptions extends SelectLocalOptions {
  readonly into: string
  readonly overwrite: OverwritePolicy
  readonly dryRun: boolean
}

type RestoreLocalOutcome = RestoreOutcome & {
  readonly incomplete: boolean
  readonly contentChecked: boolean
}

type Change = Partial<Pick<RestoreLocalOptions, 'paths' | 'into' | 'overwrite' | 'dryRun'>>

/** As the command does it. */
async function restoreLocal(options: RestoreLocalOptions): Promise<RestoreLocalOutcome> {
  refuseStaging(options)
  const { selection, damaged, header, contentChecked } = await selectLocal(options)
  const outcome = await restoreSelection(selection, {
    ...options,
    identities: [],
    deleteIn: [],
    checksRoom: false,
    cores: 2,
    aside: undefined,
  })
  const failures = [...damaged, ...outcome.failures].sort((a, b) => comparePaths(a.path, b.path))
  return { ...outcome, failures, incomplete: !header.complete, contentChecked }
}

interface Scene {
  readonly home: string
  readonly staging: string
  readonly stamp: string
  /** The staged home. */
  readonly tree: string
  readonly into: string
  /** The restored home. */
  readonly restored: string
  readonly restore: (change?: Change) => Promise<RestoreLocalOutcome>
  readonly verify: (paths?: readonly string[]) => Promise<CollectionVerification>
  /** As after an export: a state that knows the digests. */
  readonly learnDigests: () => void
  readonly own: (path: string) => string
}

async function scene(fill: (home: string) => void): Promise<Scene> {
  const directory = `${root}/${++scenes}`
  const [home, staging, into] = [`${directory}/home`, `${directory}/staging`, `${directory}/into`]
  mkdirSync(home, { recursive: true })
  mkdirSync(into)
  fill(home)
  const set = setConfiguration({ sources: [home], snapshot: 'none' })
  const configuration = configurationOf(set, { staging })
  const { stamp } = await collectSet({
    configuration,
    set,
    report,
    nowMs: Date.UTC(2025, 3, 1, 2),
    dryRun: false,
  })
  const place = { staging, set: 'home', stamp }
  return {
    home,
    staging,
    stamp,
    into,
    tree: `${staging}/home/${stamp}${home}`,
    restored: `${into}${home}`,
    restore: async (change = {}) =>
      await restoreLocal({
        ...place,
        paths: [],
        into,
        overwrite: 'never',
        dryRun: false,
        report,
        signal,
        ...change,
      }),
    verify: async (paths = []) =>
      await verifyCollection({ ...place, paths, digests: await digestsFor(place), report, signal }),
    learnDigests: () => learnDigests(place),
    own: (path) => `${home.slice(1)}/${path}`,
  }
}

/** Every piece has 1 MiB: the lengths are the digests' own. */
function learnDigests(place: { staging: string; set: string; stamp: string }): void {
  const { entries } = readCollection(place)
  const tree = `${place.staging}/${place.set}/${place.stamp}`
  const withPieces = entries.map((entry): Entry => {
    if (entry.type !== 'file' || dataBytes(entry) === 0) return entry
    const bytes = readFileSync(Buffer.from(`${tree}/${entry.path}`, 'latin1'))
    const segments = entry.sparse ?? [[0, bytes.length] as const]
    const data = Buffer.concat(
      segments.map(([start, length]) => bytes.subarray(start, start + length)),
    )
    const offsets = Array.from({ length: Math.ceil(data.length / 1048576) }, (_, i) => i * 1048576)
    const cuts = offsets.map((offset) => data.subarray(offset, offset + 1048576))
    return {
      ...entry,
      pieces: cuts.map((cut, i) => [digestOf(cut), 0, offsets[i]!, cut.length] as const),
    }
  })
  const index = {
    digest: '0'.repeat(64),
    bundle: 'home/x/catalog-0001',
    tar: [0, 0] as const,
    frames: [],
    shards: 0,
  }
  const last = {
    stamp: place.stamp,
    manifestSha256: '0'.repeat(64),
    entries: withPieces,
    index,
    shards: [],
    usage: {},
  }
  const directory = stateDirectory({ staging: place.staging, id: 'f'.repeat(32) })
  const bundle = { name: `home/${place.stamp}/data-0001`, frames: [] }
  const shard = encodeShard(withPieces, () => bundle)
  writePending(
    directory,
    { ...EMPTY_STATE, sets: new Map([['home', last]]) },
    { commit: { set: 'home', stamp: place.stamp, sha256: '0' }, shardBytes: [shard] },
  )
  adoptPending(directory)
}

const differences = (a: string, b: string): string =>
  execFileSync('rsync', ['-aHAXSnic', '--numeric-ids', '--delete', `${a}/`, `${b}/`], {
    encoding: 'utf8',
  })

const nanoseconds = (path: Buffer | string): bigint => lstatSync(path, { bigint: true }).mtimeNs

/** Changes bytes without a trace in size, time or inode. */
function flip(path: string): void {
  const { mtimeNs } = lstatSync(path, { bigint: true })
  const bytes = readFileSync(path)
  bytes[bytes.length >> 1]! ^= 1
  writeFileSync(path, bytes)
  setTimes(path, { mtimeNs })
}

async function failureOf(promise: Promise<unknown>): Promise<BackupError> {
  try {
    await promise
  } catch (error) {
    if (error instanceof BackupError) return error
    throw error
  }
  throw new Error('it did not fail')
}

const WEIRD = [
  'new\nline',
  'quo\'te"s',
  '-dash',
  '--delete',
  '$(id)',
  '*?[x]',
  '\\#012',
  'x'.repeat(255),
  ' ',
  '#hash',
  ';semi',
  'caf\xc3\xa9',
  '\xff\xfe\x80',
  '.f.Ab12Cd',
  'end ',
]

function fillNasty(home: string): void {
  mkdirSync(`${home}/a/b`, { recursive: true })
  for (const name of WEIRD) writeFileSync(Buffer.from(`${home}/a/${name}`, 'latin1'), name)
  mkdirSync(Buffer.from(`${home}/\xfd dir\n/-sub`, 'latin1'), { recursive: true })
  writeFileSync(Buffer.from(`${home}/\xfd dir\n/-sub/file`, 'latin1'), 'deep')
  mkdirSync(`${home}/empty`, { mode: 0o700 })
  writeFileSync(`${home}/zero`, '')
  linkSync(`${home}/a/-dash`, `${home}/a/b/second`)
  linkSync(`${home}/a/-dash`, `${home}/third`)
  symlinkSync('/nowhere/\n', `${home}/link`)
  execFileSync('mkfifo', [`${home}/fifo`])
  execFileSync(
    'bash',
    [
      '-c',
      'truncate -s 20M sparse;'
        + 'printf head | dd of=sparse conv=notrunc status=none;'
        + 'printf tail | dd of=sparse bs=1M seek=9 conv=notrunc status=none',
    ],
    { cwd: home },
  )
  writeFileSync(`${home}/large`, randomBytes(5_000_000))
  setXattr(`${home}/a/--delete`, 'user.x', Buffer.from([0, 255]))
  setXattr(`${home}/empty`, 'user.on-directory', Buffer.from('y'))
  spawnSync('setfacl', ['-m', 'u:12345:rw', `${home}/a/--delete`])
  spawnSync('setfacl', ['-d', '-m', 'g:12346:rx', `${home}/a`])
  execFileSync('touch', ['-d', '1969-12-31T23:59:55.000000123Z', `${home}/a/ `])
  execFileSync('touch', ['-h', '-d', '2001-02-03T04:05:06.123456789Z', `${home}/link`])
  chmodSync(`${home}/a/#hash`, 0o4711)
  chmodSync(`${home}/a/b`, 0o500)
  if (isRoot) {
    execFileSync('chown', ['-h', '4711:4712', `${home}/a/;semi`, `${home}/link`, `${home}/empty`])
    execFileSync('mknod', [`${home}/null`, 'c', '1', '3'])
  }
  execFileSync('touch', [
    '-d',
    '2003-02-01T00:00:00.987654321Z',
    `${home}/a/b`,
    `${home}/a`,
    `${home}/empty`,
  ])
}

local('gives back a nasty tree with all that it had', async () => {
  const { home, restore, restored, verify, learnDigests, into, staging } = await scene(fillNasty)
  learnDigests()
  chmodSync(into, 0o701)
  const preview = await restore({ dryRun: true })
  assert.equal(readdirSync(into), [])
  const outcome = await restore()

  assert.is(differences(home, restored), '')
  assert.equal(preview, outcome)
  assert.equal([outcome.failures, outcome.lost, outcome.kept, outcome.same], [[], [], [], 0])
  assert.ok(outcome.contentChecked)
  assert.not(outcome.incomplete)
  assert.is(outcome.written, WEIRD.length + 8 + (isRoot ? 1 : 0))
  for (const name of ['a/ ', 'a', 'a/b', 'link', 'empty', 'zero']) {
    assert.is(nanoseconds(`${restored}/${name}`), nanoseconds(`${home}/${name}`), name)
  }
  assert.is(statSync(`${restored}/third`).nlink, 3)
  assert.is(lstatSync(`${restored}/large`).nlink, 1, 'linked into staging')
  assert.ok(statSync(`${restored}/sparse`).blocks * 512 < 5_000_000)
  assert.is(statSync(into).mode & 0o777, 0o701)
  assert.equal((await verify()).problems, [])

  const again = await restore({ overwrite: 'always' })
  assert.equal([again.written, again.bytes, again.same], [0, 0, outcome.written])
  assert.is(differences(home, restored), '')
  const inStaging = await failureOf(restore({ into: `${staging}/home` }))
  assert.is(inStaging.code, 'USAGE')
})

local('restores a path and nothing whose name only begins like it', async () => {
  const { restore, restored, own, home } = await scene((at) => {
    for (const name of ['pro', 'projects']) {
      mkdirSync(`${at}/data/${name}`, { recursive: true, mode: 0o750 })
      writeFileSync(`${at}/data/${name}/f`, name)
    }
    writeFileSync(`${at}/data/pro.txt`, 'x')
    linkSync(`${at}/data/pro/f`, `${at}/data/zlink`)
    execFileSync('touch', ['-d', '2003-02-01T00:00:00.987654321Z', `${at}/data`])
  })
  const outcome = await restore({ paths: [own('data/pro')] })
  assert.equal(readdirSync(`${restored}/data`), ['pro'])
  assert.is(nanoseconds(`${restored}/data`), nanoseconds(`${home}/data`))
  assert.equal([outcome.written, outcome.bytes], [1, 3])

  const first = await restore({ paths: [own('data/zlink')] })
  assert.equal([first.written, first.bytes], [1, 3])
  assert.is(readFileSync(`${restored}/data/zlink`, 'utf8'), 'pro')
  const none = await failureOf(restore({ paths: [own('data/pro'), own('data/p')] }))
  assert.is(none.code, 'NOTHING_FOUND')
  assert.match(none.message, 'data/p')
})

local('changes no directory above the paths that is there', async () => {
  const { restore, restored, own } = await scene((at) => {
    mkdirSync(`${at}/data/x`, { recursive: true, mode: 0o755 })
    writeFileSync(`${at}/data/x/f`, '1')
  })
  mkdirSync(`${restored}/data`, { recursive: true })
  chmodSync(`${restored}/data`, 0o711)
  setXattr(`${restored}/data`, 'user.mine', Buffer.from('1'))
  const outcome = await restore({ paths: [own('data/x')], overwrite: 'always' })
  assert.is(outcome.written, 1)
  assert.is(statSync(`${restored}/data`).mode & 0o777, 0o711)
  assert.is(statSync(`${restored}/data/x`).mode & 0o777, 0o755)
  assert.equal(readdirSync(`${restored}/data/x`), ['f'])
})

local('keeps files that differ unless it is told to overwrite, and writes into none', async () => {
  const { restore, restored, own, home, tree } = await scene((at) => {
    for (const name of ['same', 'content', 'quiet', 'mode', 'absent', 'type', 'directory']) {
      writeFileSync(`${at}/${name}`, name)
    }
    symlinkSync('there', `${at}/link`)
    writeFileSync(`${at}/a1`, 'linked')
    linkSync(`${at}/a1`, `${at}/a2`)
  })
  await restore()
  for (const name of ['absent', 'type', 'directory', 'link', 'a2']) {
    unlinkSync(`${restored}/${name}`)
  }
  writeFileSync(`${restored}/content`, 'mine, and longer')
  flip(`${restored}/quiet`)
  chmodSync(`${restored}/mode`, 0o600)
  symlinkSync('same', `${restored}/type`)
  mkdirSync(`${restored}/directory/mine`, { recursive: true })
  symlinkSync('elsewhere', `${restored}/link`)
  writeFileSync(`${restored}/mine`, 'mine')
  const linked = `${restored}-linked`
  linkSync(`${restored}/content`, linked)

  const preview = await restore({ dryRun: true })
  assert.not(existsSync(`${restored}/absent`))
  const outcome = await restore()
  assert.equal(outcome.kept, ['content', 'directory', 'link', 'mode', 'quiet', 'type'].map(own))
  // Content is compared when it is really restored.
  const kept = outcome.kept.filter((path) => path !== own('quiet'))
  assert.equal(preview, { ...outcome, same: 3, kept })
  assert.equal([outcome.written, outcome.same, outcome.bytes], [2, 2, 6])
  assert.is(readFileSync(`${restored}/content`, 'utf8'), 'mine, and longer')
  assert.is(statSync(`${restored}/a2`).ino, statSync(`${restored}/a1`).ino)

  const over = await restore({ overwrite: 'always' })
  assert.equal(over.kept, [own('directory')])
  assert.equal([over.written, over.same, over.failures, over.lost], [4, 5, [], []])
  assert.is(statSync(`${restored}/mode`).mode, statSync(`${home}/mode`).mode)
  assert.is(readFileSync(`${restored}/mine`, 'utf8'), 'mine')
  assert.is(readFileSync(linked, 'utf8'), 'mine, and longer')
  rmSync(`${restored}/directory`, { recursive: true })
  rmSync(`${restored}/mine`)
  await restore({ overwrite: 'always' })
  assert.is(differences(home, restored), '')
  assert.is(differences(home, tree), '')
})

local('restores nothing through a link, but in the original place', async () => {
  const { restore, restored, into, own, home } = await scene((at) => {
    mkdirSync(`${at}/data/deep`, { recursive: true })
    writeFileSync(`${at}/data/deep/f`, '1')
    writeFileSync(`${at}/data/#no-comment`, '3')
    writeFileSync(`${at}/g`, '2')
  })
  const elsewhere = `${into}-elsewhere`
  mkdirSync(elsewhere)
  mkdirSync(restored, { recursive: true })
  symlinkSync(elsewhere, `${restored}/data`)
  const outcome = await restore()
  assert.equal(
    outcome.failures.map(({ path, code }) => [path, code]),
    ['data', 'data/#no-comment', 'data/deep', 'data/deep/f'].map((path) => [
      own(path),
      'UNSAFE_PATH',
    ]),
  )
  assert.is(outcome.written, 1)
  assert.equal(readdirSync(elsewhere), [])

  rmSync(`${home}/data`, { recursive: true })
  symlinkSync(elsewhere, `${home}/data`)
  const inPlace = await restore({ into: '', paths: [own('data/deep/f')] })
  assert.equal([inPlace.written, inPlace.failures], [1, []])
  assert.is(readFileSync(`${elsewhere}/deep/f`, 'utf8'), '1')
  assert.ok(lstatSync(`${home}/data`).isSymbolicLink())
  const all = await restore({ into: '', overwrite: 'always', paths: [own('data')] })
  assert.equal([all.written, all.same, all.failures], [1, 1, []])
  assert.is(readFileSync(`${elsewhere}/#no-comment`, 'utf8'), '3')
  assert.ok(lstatSync(`${home}/data`).isSymbolicLink())
})

local('names what was altered, removed or added in staging, and restores the rest', async () => {
  const { restore, verify, restored, tree, own, home } = await scene((at) => {
    mkdirSync(`${at}/d/sub`, { recursive: true, mode: 0o750 })
    for (const name of ['a', 'b', 'c', 'e', 'f', 'good']) writeFileSync(`${at}/d/${name}`, name)
    writeFileSync(`${at}/d/sub/x`, 'x')
    writeFileSync(`${at}/l1`, 'linked')
    linkSync(`${at}/l1`, `${at}/l2`)
  })
  assert.equal((await verify()).problems, [])
  writeFileSync(`${tree}/d/a`, 'longer')
  unlinkSync(`${tree}/d/b`)
  chmodSync(`${tree}/d/c`, 0o640)
  unlinkSync(`${tree}/d/e`)
  mkdirSync(`${tree}/d/e`)
  writeFileSync(`${tree}/d/added`, '!')
  execFileSync('bash', ['-c', 'cp -p f g && mv g f'], { cwd: `${tree}/d` })
  chmodSync(`${tree}/d/sub`, 0o755)
  unlinkSync(`${tree}/l1`)

  const { problems, contentChecked } = await verify()
  assert.not(contentChecked)
  assert.equal(
    problems.map(({ path, kind }) => [path, kind]),
    [
      ['', 'changed'],
      ['d', 'changed'],
      ['d/a', 'changed'],
      ['d/added', 'extra'],
      ['d/b', 'missing'],
      ['d/c', 'changed'],
      ['d/e', 'changed'],
      ['d/f', 'changed'],
      ['d/sub', 'changed'],
      ['l1', 'missing'],
    ].map(([path, kind]) => [own(path!).replace(/\/$/, ''), kind]),
  )
  const why = (path: string): string | undefined =>
    problems.find((problem) => problem.path === own(path))?.why
  assert.match(why('d/a') ?? '', 'size, time')
  assert.match(why('d/c') ?? '', /: mode$/)
  assert.match(why('d/f') ?? '', /: inode$/)
  assert.match(why('d/e') ?? '', 'it was a file and is a directory')
  assert.equal((await verify([own('d/sub/x')])).problems, [])

  const preview = await restore({ dryRun: true })
  const outcome = await restore()
  assert.equal(preview, outcome)
  assert.equal(
    outcome.failures.map(({ path }) => path),
    ['d/a', 'd/b', 'd/c', 'd/e', 'd/f', 'l1'].map(own),
  )
  assert.ok(outcome.failures.every(({ code }) => code === 'STAGING_DAMAGED'))
  assert.equal(readdirSync(`${restored}/d`), ['good', 'sub'])
  assert.is(readFileSync(`${restored}/l2`, 'utf8'), 'linked')
  for (const directory of ['d', 'd/sub']) {
    assert.is(statSync(`${restored}/${directory}`).mode, statSync(`${home}/${directory}`).mode)
    assert.is(nanoseconds(`${restored}/${directory}`), nanoseconds(`${home}/${directory}`))
  }
})

local('finds a flipped bit that left no trace where an export tells the digests', async () => {
  const { restore, verify, learnDigests, restored, tree, own, staging } = await scene((at) => {
    for (const name of ['bad', 'good']) writeFileSync(`${at}/${name}`, randomBytes(3_000_000))
    linkSync(`${at}/bad`, `${at}/bad2`)
    execFileSync(
      'bash',
      [
        '-c',
        'truncate -s 8M holes; printf tail | dd of=holes bs=1M seek=3 conv=notrunc status=none',
      ],
      { cwd: at },
    )
  })
  flip(`${tree}/bad`)
  const before = await verify()
  assert.equal([before.problems, before.contentChecked], [[], false])
  flip(`${tree}/bad`)
  learnDigests()
  const whole = await verify()
  assert.equal([whole.problems, whole.contentChecked, whole.files], [[], true, 3])

  flip(`${tree}/bad`)
  const holed = lstatSync(`${tree}/holes`, { bigint: true })
  execFileSync('bash', ['-c', 'printf x | dd of=holes bs=1M seek=6 conv=notrunc status=none'], {
    cwd: tree,
  })
  setTimes(`${tree}/holes`, { mtimeNs: holed.mtimeNs })
  const { problems } = await verify()
  assert.equal(
    problems.map(({ path }) => path),
    ['bad', 'bad2', 'holes'].map(own),
  )
  assert.match(problems[0]?.why ?? '', 'content')
  assert.match(problems[2]?.why ?? '', 'hole')
  const outcome = await restore()
  assert.equal(
    outcome.failures.map(({ path }) => path),
    ['bad', 'bad2', 'holes'].map(own),
  )
  assert.equal(readdirSync(restored), ['good'])

  const directory = stateDirectory({ staging, id: 'f'.repeat(32) })
  const entries = readdirSync(directory).find((name) => name.startsWith('home-entries'))
  flip(`${directory}/${entries}`)
  assert.is((await verify()).contentChecked, false)
})

local('takes holes that moved for what they are: zeros', async () => {
  const { verify, learnDigests, tree } = await scene((at) => {
    execFileSync(
      'bash',
      [
        '-c',
        'truncate -s 4M holes;'
          + 'printf tail | dd of=holes bs=1M seek=3 count=1 conv=notrunc status=none',
      ],
      { cwd: at },
    )
  })
  learnDigests()
  const { mtimeNs } = lstatSync(`${tree}/holes`, { bigint: true })
  execFileSync('dd', [
    'if=/dev/zero',
    `of=${tree}/holes`,
    'bs=1M',
    'count=1',
    'conv=notrunc',
    'status=none',
  ])
  setTimes(`${tree}/holes`, { mtimeNs })
  assert.ok(lstatSync(`${tree}/holes`).blocks * 512 > 1048576)
  assert.equal((await verify()).problems, [])
})

local('restores from a staging that was copied to another disk', async () => {
  const { staging, stamp, into, restored, home } = await scene((at) =>
    writeFileSync(`${at}/f`, 'x'),
  )
  const copy = `${staging}-copy`
  execFileSync('cp', ['-a', staging, copy])
  const outcome = await restoreLocal({
    staging: copy,
    set: 'home',
    stamp,
    paths: [],
    into,
    overwrite: 'never',
    dryRun: false,
    report,
    signal,
  })
  assert.equal([outcome.written, outcome.failures], [1, []])
  assert.is(differences(home, restored), '')
})

local('restores while another run has the set', async () => {
  const { staging, restore } = await scene((at) => writeFileSync(`${at}/f`, 'x'))
  const lock = acquireSetLock({ staging, set: 'home', description: 'collecting', waitMs: 0 })
  const outcome = await restore()
  lock.release()
  assert.is(outcome.written, 1)
})

local('names every path that could not be written when the disk is full', async () => {
  if (!canRunAsRoot('a full disk under a local restore')) return
  const { restore, own, into, restored } = await scene((at) => {
    writeFileSync(`${at}/a-small`, 'x')
    writeFileSync(`${at}/large1`, randomBytes(3_000_000))
    writeFileSync(`${at}/large2`, randomBytes(3_000_000))
  })
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'none', into])
  try {
    mkdirSync(restored, { recursive: true })
    writeFileSync(`${restored}/large1`, '')
    truncateSync(`${restored}/large1`, 3_000_000)
    const outcome = await restore({ overwrite: 'always' })
    assert.equal(
      outcome.failures.map(({ path }) => path),
      ['large1', 'large2'].map(own),
    )
    assert.match(outcome.failures[0]?.why ?? '', 'no space')
    assert.is(outcome.written, 1)
    assert.equal(readdirSync(restored), ['a-small', 'large1'])
  } finally {
    execFileSync('umount', [into])
  }
})

local('says what somebody else than root could not set', async () => {
  if (!canRunAsRoot('a local restore as nobody')) return
  chmodSync(root, 0o755)
  const { staging, stamp, into, own, restored } = await scene((at) => {
    for (const name of ['f', 'secret']) writeFileSync(`${at}/${name}`, 'x')
    execFileSync('chown', ['4711:4712', `${at}/f`])
    chmodSync(`${at}/secret`, 0o600)
  })
  for (const directory of [staging, `${staging}/home`, `${staging}/home/${stamp}`]) {
    chmodSync(directory, 0o755)
  }
  execFileSync('chown', ['65534:65534', into])
  const url = (name: string): string =>
    JSON.stringify(new URL(`../../lib/work/${name}.js`, import.meta.url).href)
  const options = { staging, set: 'home', stamp, paths: [], into, overwrite: 'never' }
  // The catalog is root's alone.
  chmodSync(`${staging}/home/${stamp}.catalog.zst`, 0o644)
  const script = `import { selectLocal } from ${url('restore-local')}
    import { restoreSelection } from ${url('restore')}
    const options = {
      ...${JSON.stringify(options)}, identities: [], deleteIn: [], dryRun: false, cores: 1,
      report() {}, signal: new AbortController().signal,
    }
    const run = async () =>
      await restoreSelection((await selectLocal(options)).selection, options)
    console.log(JSON.stringify([await run(), await run()]))`
  const program = `${into}.mjs`
  writeFileSync(program, script)
  const child = spawnSync(process.execPath, [program], {
    uid: 65534,
    gid: 65534,
    cwd: '/',
    encoding: 'utf8',
  })
  assert.is(child.status, 0, child.stderr)
  const [first, again] = JSON.parse(child.stdout) as RestoreLocalOutcome[]
  assert.equal(
    first?.failures.map(({ path, why }) => [path, why]),
    [[own('secret'), 'it cannot be written: permission denied (EACCES)']],
  )
  assert.equal(first?.lost.find(({ path }) => path === own('f'))?.what, ['owner', 'group'])
  assert.equal([again?.same, again?.kept], [1, []])
  assert.is(readFileSync(`${restored}/f`, 'utf8'), 'x')
})

local.run()
