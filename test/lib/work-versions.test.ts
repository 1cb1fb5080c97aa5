import {
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
  closeSync,
  existsSync,
  readdirSync,
} from 'node:fs'
import { createHash } from 'node:crypto'
import { suite } from 'uvu'
import type { CollectionHeader, MissingPath } from '../../lib/model/collection.ts'
import { encodeEntry, type Entry, parseEntry } from '../../lib/model/entry.ts'
import { comparePaths, rawPathToBytes } from '../../lib/model/raw-path.ts'
import { cutShards } from '../../lib/model/shard.ts'
import { formatStamp, type Stamp } from '../../lib/model/stamp.ts'
import {
  changesBetween,
  parseVersion,
  spansOf,
  swept,
  versionAt,
  versionOf,
  versionOfLine,
  withGeneration,
} from '../../lib/model/version-index.ts'
import { findPaths, narrowed, parseDateRange, type Search } from '../../lib/work/find.ts'
import {
  partialDirectory,
  prepareSet,
  publishCollection,
  removeCollection,
} from '../../lib/work/staging.ts'
import { runReader } from '../../lib/work/version-runs.ts'
import type { ExportReader } from '../../lib/work/export-reader.ts'
import {
  openVersions,
  recordVersions,
  type Versions,
  versionsOfExports,
} from '../../lib/work/versions.ts'
import * as assert from '../helpers/assert.ts'
import { failureOf } from '../helpers/failure.ts'
import { randomOfRun } from '../helpers/random.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const versions = suite('versions')
const root = tempDirectory()
let scenes = 0

interface Scene {
  readonly staging: string
  readonly index: string
  /** Publishes a collection of these paths, with a size each, and gives its stamp. */
  readonly collect: (files: Readonly<Record<string, number>>, missing?: MissingPath[]) => Stamp
  readonly header: (stamp: Stamp) => { header: CollectionHeader; entries: Entry[] }
  /** What the index says, and closes it. */
  readonly ask: <T>(question: (versions: Versions) => T) => Promise<T>
}

function makeScene(): Scene {
  const staging = `${root}/${++scenes}`
  mkdirSync(staging)
  prepareSet({ staging, set: 'home' })
  const made = new Map<Stamp, { header: CollectionHeader; entries: Entry[] }>()
  return {
    staging,
    index: `${staging}/.state/versions/home.index`,
    header: (stamp) => made.get(stamp)!,
    collect: (files, missing = []) => {
      const stamp = formatStamp(1_700_000_000_000 + made.size * 86_400_000)
      const entries = Object.entries(files)
        .map(([path, size]) => fileEntry({ path, size }))
        .sort((a, b) => comparePaths(a.path, b.path))
      const counts = { entries: entries.length, files: entries.length, bytes: 0 }
      const state = { complete: missing.length === 0, missing, suspect: [] }
      const sources = [{ path: 'data', snapshot: 'none' as const, time: stamp }]
      const header = { set: 'home', stamp, ...state, sources, ...counts }
      mkdirSync(rawPathToBytes(partialDirectory({ staging, set: 'home', stamp })))
      publishCollection({ staging, header, entries })
      made.set(stamp, { header, entries })
      return stamp
    },
    ask: async (question) => {
      const signal = new AbortController().signal
      const opened = await openVersions({ staging, set: 'home' }, { report: () => {}, signal })
      try {
        return question(opened)
      } finally {
        opened.close()
      }
    },
  }
}

function fileEntry(change: Partial<Entry> & Pick<Entry, 'path'>): Entry {
  const owner = { mode: 0o644, uid: 1000, gid: 1000, user: 'me', group: 'me' }
  return { type: 'file', size: 1, mtimeNs: 1_700_000_000_000_000_001n, ...owner, ...change }
}

/** `held 7 0–2`: state, size, and which collections, newest run first. */
function told(opened: Versions, path: string): string[] {
  const runs = runReader(opened)(path, opened.lineOf(path))
  const all = [...opened.generations.map(({ stamp }) => stamp), ...opened.damaged].sort()
  return runs.map(({ state, version, oldest, newest }) => {
    const size = version === undefined ? '' : `${parseVersion(version).sizeBytes} `
    return `${state} ${size}${all.indexOf(oldest)}–${all.indexOf(newest)}`
  })
}

const SEARCH: Search = {
  patterns: ['*'],
  ignoreCase: false,
  type: undefined,
  largerBytes: undefined,
  smallerBytes: undefined,
  deleted: false,
}

function found(opened: Versions, search: Partial<Search>): string[] {
  return [...findPaths(opened, { ...SEARCH, ...search })].map(({ path }) => path)
}

versions('lines say of every generation what was put in, in whatever order they come', () => {
  const { integer: next } = randomOfRun('lines of versions')
  for (let round = 0; round < 300; round++) {
    const numbers = [...new Set(Array.from({ length: 8 }, () => 1000 + next(40)))]
    const truth = new Map<number, string | undefined>()
    let line = ''
    for (const number of numbers) {
      const version = next(3) === 0 ? undefined : `f${next(2)},1.000000000,644,0,0,`
      const known = [...truth.keys()].sort((a, b) => a - b)
      const previous = known.findLast((one) => one < number)
      const place = { number, previous, next: known.find((one) => one > number) }
      line = withGeneration(line, place, version)
      truth.set(number, version)
      const left = [...truth.keys()].sort((a, b) => a - b)
      for (const one of left) assert.is(versionAt(line, one), truth.get(one), line)
      const spans = spansOf(line, left)
      for (const [i, one] of left.entries()) {
        const span = spans.find(({ first, last }) => first <= i && i <= last)
        assert.is(span?.version, truth.get(one), line)
      }
      assert.ok(spans.every((span, i) => span.version !== spans[i - 1]?.version || i === 0))
      if (next(4) === 0 && truth.size > 1) {
        truth.delete(left[next(left.length)]!)
        line = swept(
          line,
          [...truth.keys()].sort((a, b) => a - b),
        )
        const isEmpty = [...truth.values()].every((one) => one === undefined)
        assert.is(line === '', isEmpty, line)
      }
    }
  }
})

versions('a line of a catalog gives the version that its entry has', () => {
  const plain = fileEntry({ path: 'a b/ü', birthNs: -5n, inode: 7, bornNs: 9n })
  const entries: Entry[] = [
    plain,
    fileEntry({ path: 'quote"s' }),
    fileEntry({ path: '\xff\xfe' }),
    fileEntry({ path: 'before 1970', mtimeNs: -1n }),
    fileEntry({ path: 'x', xattrs: new Map([['user.a', Buffer.from('b')]]), flags: ['nodump'] }),
    { ...fileEntry({ path: 'dir', mode: 0o1777 }), type: 'directory', size: undefined as never },
    { ...fileEntry({ path: 'link', target: 'to' }), type: 'symlink', size: undefined as never },
    { ...fileEntry({ path: 'dev', device: [8, 1] }), type: 'block', size: undefined as never },
  ]
  for (const entry of entries) {
    const line = encodeEntry(entry)
    assert.equal(versionOfLine(line), { path: entry.path, version: versionOf(parseEntry(line)) })
  }
  assert.not.equal(versionOf(plain), versionOf({ ...plain, birthNs: -6n }))
  assert.is(versionOf(plain), versionOf({ ...plain, inode: 8, user: 'you' } as Entry))
})

versions('what differs between two versions is named', () => {
  const changesOf = (change: Partial<Entry>): string[] => {
    const [one, other] = [{}, change].map((of) => fileEntry({ path: 'x', ...of }))
    return changesBetween(parseVersion(versionOf(one!)), parseVersion(versionOf(other!)))
  }
  assert.equal(changesOf({}), [])
  assert.equal(changesOf({ size: 2, mtimeNs: 5n }), ['size', 'time'])
  assert.equal(changesOf({ mode: 0o600, gid: 5 }), ['mode', 'owner'])
  assert.equal(changesOf({ acl: 'user::rwx' }), ['attributes'])
  assert.equal(changesOf({ type: 'fifo', mtimeNs: 5n }), ['type'])
})

versions('each path has its runs over all collections, deletions and misses too', async () => {
  const { collect, ask } = makeScene()
  collect({ 'data/a': 1, 'data/b': 1 })
  collect({ 'data/a': 1, 'data/b': 2, 'data/c': 1 })
  collect({ 'data/a': 1 })
  collect({ 'data/a': 1 }, [{ path: 'data/b', why: 'permission denied' }])
  collect({ 'data/a': 1, 'data/b': 2 })
  const answers = await ask((opened) => ['a', 'b', 'c', 'd'].map((n) => told(opened, `data/${n}`)))
  assert.equal(answers, [
    ['held 1 0–4'],
    ['held 2 4–4', 'missing 3–3', 'absent 2–2', 'held 2 1–1', 'held 1 0–0'],
    ['absent 2–4', 'held 1 1–1', 'absent 0–0'],
    ['absent 0–4'],
  ])
})

versions('the index is written once, and what it lacks is added', async () => {
  const { collect, ask, index, header, staging } = makeScene()
  collect({ 'data/a': 1 })
  assert.equal(await ask((opened) => told(opened, 'data/a')), ['held 1 0–0'])
  const written = readFileSync(index)
  await ask((opened) => told(opened, 'data/a'))
  assert.ok(readFileSync(index).equals(written))
  const stamp = collect({ 'data/a': 2 })
  await recordVersions({ staging, ...header(stamp), report: () => {} })
  const recorded = readFileSync(index)
  assert.not.ok(recorded.equals(written))
  assert.equal(await ask((opened) => told(opened, 'data/a')), ['held 2 1–1', 'held 1 0–0'])
  assert.ok(readFileSync(index).equals(recorded), 'nothing was lacking any more')
  assert.equal(readdirSync(`${staging}/.state/versions`).sort(), ['home.index', 'home.lock'])
})

versions('a generation that is nowhere any more goes, and what only it had', async () => {
  const { collect, ask, staging } = makeScene()
  const first = collect({ 'data/a': 1, 'data/b': 1 })
  const second = collect({ 'data/a': 1, 'data/c': 1 })
  await ask(() => {})
  const repository = `${staging}/.state/repositories/${'0'.repeat(32)}`
  mkdirSync(repository, { recursive: true })
  const state = (exports: object): void => {
    const commit = { set: 'home', stamp: first, sha256: '' }
    writeFileSync(
      `${repository}/state.json`,
      JSON.stringify({ format: 1, commit, exports, sets: {} }),
    )
  }
  state({ [`home/${second}`]: { complete: true } })
  for (const stamp of [first, second]) removeCollection({ staging, set: 'home', stamp })
  const all = async () => await ask((opened) => found(opened, {}))
  assert.equal(await all(), ['/data/a', '/data/c'], 'the second is in an export')
  collect({ 'data/d': 1 })
  assert.equal(await all(), ['/data/a', '/data/c', '/data/d'])
  assert.equal(await ask((opened) => opened.lineOf('data/b')), '', 'the line itself is gone')
  writeFileSync(`${repository}/state.json`, 'damaged')
  removeCollection({ staging, set: 'home', stamp: collect({ 'data/e': 1 }) })
  assert.equal(await all(), ['/data/a', '/data/c', '/data/d'], 'nobody knows what may go')
  state({})
  assert.equal(await all(), ['/data/d'])
})

versions('an export that no catalog here tells of is named as unknown', async () => {
  const { collect, ask, staging } = makeScene()
  collect({ 'data/a': 1 })
  const repository = `${staging}/.state/repositories/${'0'.repeat(32)}`
  mkdirSync(repository, { recursive: true })
  const stamp = '2020-01-01T000000Z'
  const commit = { set: 'home', stamp, sha256: '' }
  const exports = { [`home/${stamp}`]: { complete: true }, [`other/${stamp}`]: {} }
  writeFileSync(
    `${repository}/state.json`,
    JSON.stringify({ format: 1, commit, exports, sets: {} }),
  )
  assert.equal(await ask(({ unknown }) => unknown), [stamp])
})

versions('an export whose catalog is lost here is unknown, and no damaged collection', async () => {
  const { collect, ask, staging } = makeScene()
  collect({ 'data/a': 1 })
  const repository = `${staging}/.state/repositories/${'0'.repeat(32)}`
  mkdirSync(repository, { recursive: true })
  const stamp = '2020-01-01T000000Z'
  const commit = { set: 'home', stamp, sha256: '' }
  const lost = { file: 'lost.zst', sha256: '' }
  const sets = { home: { stamp, entries: lost, inodes: lost, shards: lost } }
  const exports = { [`home/${stamp}`]: { complete: true } }
  writeFileSync(`${repository}/state.json`, JSON.stringify({ format: 1, commit, exports, sets }))
  const known = async () => await ask(({ unknown, damaged }) => ({ unknown, damaged }))
  assert.equal(await known(), { unknown: [stamp], damaged: [] })
  writeFileSync(`${repository}/lost.zst`, 'damaged')
  assert.equal(await known(), { unknown: [stamp], damaged: [] })
})

versions('an index with any damage is made anew', async () => {
  const { collect, ask, index } = makeScene()
  collect({ 'data/a': 1, 'data/b': 5 })
  collect({ 'data/a': 2 })
  const expected = ['held 2 1–1', 'held 1 0–0']
  assert.equal(await ask((opened) => told(opened, 'data/a')), expected)
  const whole = readFileSync(index)
  for (let at = 0; at < whole.length; at += 41) {
    const fd = openSync(index, 'r+')
    writeSync(fd, Buffer.from([whole[at]! ^ 0x40]), 0, 1, at)
    closeSync(fd)
    assert.equal(await ask((opened) => told(opened, 'data/a')), expected, `byte ${at}`)
    assert.ok(readFileSync(index).equals(whole), 'it is written again')
  }
  writeFileSync(index, whole.subarray(0, 30))
  assert.equal(await ask((opened) => told(opened, 'data/a')), expected)
})

versions('where nothing can be written the answer comes from memory', async () => {
  const { collect, ask, staging, index } = makeScene()
  collect({ 'data/a': 1 })
  collect({ 'data/a': 2 })
  writeFileSync(`${staging}/.state/versions`, 'in the way')
  assert.equal(await ask((opened) => told(opened, 'data/a')), ['held 2 1–1', 'held 1 0–0'])
  assert.not.ok(existsSync(index))
  const notices: string[] = []
  const report = (event: { kind: string; code?: string }): void =>
    void notices.push(event.code ?? '')
  const { header, entries } = {
    header: { set: 'home', stamp: 'x' } as CollectionHeader,
    entries: [],
  }
  await recordVersions({ staging, header, entries, report })
  assert.equal(notices, ['VERSIONS_BEHIND'], 'a collection does not fail for it')
})

versions('what is in the way of the index is no failure, and said as what it is', async () => {
  const { collect, ask, staging, index, header } = makeScene()
  const stamp = collect({ 'data/a': 1 })
  mkdirSync(`${index}/in the way`, { recursive: true })
  assert.equal(await ask((opened) => told(opened, 'data/a')), ['held 1 0–0'])
  const messages: string[] = []
  const report = (event: object): void => {
    if ('message' in event) messages.push(String(event.message))
  }
  await recordVersions({ staging, ...header(stamp), report })
  assert.match(messages.join(), /^home: .* was not brought up to date: .*(EISDIR|ENOTEMPTY|EEXIST)/)
  assert.equal(readdirSync(`${staging}/.state/versions`).sort(), ['home.index', 'home.lock'])
})

versions('a damaged catalog is said to be one, and the others are known', async () => {
  const { collect, ask, staging } = makeScene()
  collect({ 'data/a': 1 })
  const second = collect({ 'data/a': 2 })
  collect({ 'data/a': 2 })
  const catalog = `${staging}/home/${second}.catalog.zst`
  const bytes = readFileSync(catalog)
  // The header is whole, so only reading all of it tells.
  writeFileSync(catalog, bytes.subarray(0, bytes.length - 5))
  const expected = ['held 2 2–2', 'damaged 1–1', 'held 1 0–0']
  assert.equal(await ask((opened) => told(opened, 'data/a')), expected)
  writeFileSync(catalog, 'damaged')
  assert.equal(await ask((opened) => told(opened, 'data/a')), expected)
  writeFileSync(catalog, bytes)
  assert.equal(await ask((opened) => told(opened, 'data/a')), ['held 2 1–2', 'held 1 0–0'])
})

versions('what exports share is read once, and they tell the same as collections', async () => {
  const { integer: next } = randomOfRun('shared shards')
  const { collect, ask, header } = makeScene()
  const files = new Map<string, number>()
  for (let i = 0; i < 2500; i++) files.set(`data/${i % 7}/${String(i).padStart(5, '0')}`, 1)
  const readers: ExportReader[] = []
  const read: string[] = []
  for (let generation = 0; generation < 5; generation++) {
    for (let change = 0; change < 4; change++) {
      const path = `data/${next(7)}/${String(next(2600)).padStart(5, '0')}`
      if (files.has(path) && next(2) === 0) files.delete(path)
      else files.set(path, 2 + next(3))
    }
    readers.push(fakeReader(header(collect(Object.fromEntries(files))), read))
    // What a shard began with is gone in the next: the shard before it must not keep that.
    for (const { first } of (await readers.at(-1)!.index()).slice(1)) {
      if (next(2) === 0) files.delete(first)
    }
  }
  const exported = await versionsOfExports(
    'home',
    (async function* () {
      yield* readers
    })(),
  )
  const lines = (opened: Versions): string[] =>
    [...opened.blocks()].flatMap((block) =>
      block.paths.map((path, i) => `${path} ${block.lines()[i]}`),
    )
  const [expected, actual] = [await ask(lines), lines(exported)]
  assert.ok(expected.length >= 2500)
  assert.equal(actual, expected)
  const digests: string[][] = []
  for (const reader of readers) digests.push((await reader.index()).map(({ digest }) => digest))
  const fresh = digests.flatMap((its, i) =>
    its.filter((one) => digests[i - 1]?.includes(one) !== true),
  )
  assert.equal(read, fresh, 'what the export before has is not read again')
  assert.ok(fresh.length < digests.flat().length)
})

/** Of the shards of a collection, as an export would have them. */
function fakeReader(
  { header, entries }: { header: CollectionHeader; entries: Entry[] },
  read: string[],
): ExportReader {
  const places = cutShards(entries).map(([start, end]) => {
    const its = entries.slice(start, end)
    const digest = createHash('sha256').update(its.map(encodeEntry).join()).digest('hex')
    return { digest, first: its[0]!.path, its }
  })
  const reader = {
    manifest: header,
    index: async () => await Promise.resolve(places),
    shards: async function* (wanted: typeof places) {
      for (const place of wanted) {
        read.push(place.digest)
        yield await Promise.resolve({ place, shard: { bundles: [], entries: place.its } })
      }
    },
  }
  return reader as unknown as ExportReader
}

versions('globs fit names, or paths where they have a slash', async () => {
  const { collect, ask } = makeScene()
  collect({
    'data/x.iso': 1,
    'data/deep/X.ISO': 5,
    'data/deep/\xc3\xa9t\xc3\xa9': 1,
    'data/\xff': 1,
  })
  collect({ 'data/deep/X.ISO': 9, 'data/new': 1 })
  const search = async (of: Partial<Search>) => await ask((opened) => found(opened, of))
  assert.equal(await search({ patterns: ['*.iso'] }), ['/data/x.iso'])
  assert.equal(await search({ patterns: ['*.iso'], ignoreCase: true }), [
    '/data/deep/X.ISO',
    '/data/x.iso',
  ])
  assert.equal(await search({ patterns: ['iso'] }), [], 'a whole name, as find -name')
  assert.equal(await search({ patterns: ['deep/*'] }), [
    '/data/deep/X.ISO',
    '/data/deep/\xc3\xa9t\xc3\xa9',
  ])
  assert.equal(await search({ patterns: ['/data/*'] }), ['/data/new', '/data/x.iso', '/data/\xff'])
  assert.equal(
    await search({ patterns: ['/**/?t?'] }),
    ['/data/deep/\xc3\xa9t\xc3\xa9'],
    'characters',
  )
  assert.equal(await search({ deleted: true }), [
    '/data/deep/\xc3\xa9t\xc3\xa9',
    '/data/x.iso',
    '/data/\xff',
  ])
  assert.equal(await search({ largerBytes: 5 }), ['/data/deep/X.ISO'])
  assert.equal(await search({ largerBytes: 4, smallerBytes: 6 }), ['/data/deep/X.ISO'])
  assert.equal(await search({ largerBytes: 9 }), [])
  assert.equal(await search({ type: 'd' }), [])
})

versions('a range of dates holds what begins with its ends', async () => {
  const { collect, ask } = makeScene()
  const stamps = ['a', 'b', 'c'].map((name) => collect({ [`data/${name}`]: 1 }))
  const within = async (text: string): Promise<string[]> =>
    await ask((opened) => found(narrowed(opened, parseDateRange(text)), {}))
  const [first, second] = stamps.map((stamp) => stamp.slice(0, 10))
  assert.equal(await within(`${first}..${second}`), ['/data/a', '/data/b'])
  assert.equal(await within(`${second}..`), ['/data/b', '/data/c'])
  assert.equal(await within(`..${first}`), ['/data/a'])
  assert.equal(await within('2023-11..2023-11'), ['/data/a', '/data/b', '/data/c'])
  assert.equal(await within('2023-11-30..2023-11'), [])
  const none = ['2023', '..', 'a..b', '2023..2024..2025', '2023-13..', '2023-02-29..', '..2023-1']
  for (const wrong of [...none, '2024..2023', '2023-12..2023-11-30', '2023-11-14T25..']) {
    const failure = await failureOf(async () => parseDateRange(wrong))
    assert.is(failure.code, 'USAGE', wrong)
  }
})

versions('twenty thousand paths in many blocks are found in a moment', async () => {
  const { collect, ask } = makeScene()
  const long = 'x'.repeat(600)
  const files = Object.fromEntries(
    Array.from({ length: 20_000 }, (_, i) => [`data/${i % 40}/${long}-${i}`, i]),
  )
  collect(files)
  await ask((opened) => {
    assert.ok([...opened.blocks()].length > 1)
    const startMs = performance.now()
    assert.is(found(opened, { patterns: ['*-12345'] }).length, 1)
    assert.equal(told(opened, `data/${12345 % 40}/${long}-12345`), ['held 12345 0–0'])
    assert.ok(performance.now() - startMs < 2000)
  })
})

versions.after(() => rmSync(root, { recursive: true }))

versions.run()
