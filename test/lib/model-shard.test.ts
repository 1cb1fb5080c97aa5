import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { digestOf } from '../../lib/format/chunker.ts'
import type { Entry, FrameRange } from '../../lib/model/entry.ts'
import { comparePaths, parentOf } from '../../lib/model/raw-path.ts'
import {
  type BundlePlace,
  MAX_SHARD_ENTRIES,
  type ShardPlace,
  cutShards,
  encodeIndex,
  encodeShard,
  framesOf,
  parseBundleName,
  parseFrames,
  parseIndex,
  parseShard,
  rangesOf,
} from '../../lib/model/shard.ts'
import * as assert from '../helpers/assert.ts'
import { type Random, randomOfRun } from '../helpers/random.ts'

const shards = suite('model/shard')
const ID = 'ef'.repeat(32)
const base = { mode: 0o644, uid: 0, gid: 0, mtimeNs: 0n } as const
const directory = (path: string): Entry => ({ ...base, path, type: 'directory' })
const file = (path: string): Entry => ({ ...base, path, type: 'file', size: 0 })

const frame = (number: number): FrameRange => [number * 1000, 1000, number * 300, 300]
const frames = Array.from({ length: 50 }, (_, i) => frame(i))
const places: readonly BundlePlace[] = [
  { name: 'home/2025-04-01T020000Z/data-0001', frames },
  { name: 'home/2025-04-02T020000Z/data-0001', frames },
  { name: 'etc/2025-04-02T020000Z/data-0001', frames },
]
const placeOf = (bundle: number): BundlePlace => places[bundle]!

const codeOf = (action: () => unknown): string | undefined => {
  try {
    action()
    return undefined
  } catch (error) {
    return error instanceof BackupError ? error.code : String(error)
  }
}

/** A tree of directories and files in catalog order. */
function treeOf(random: Random, count: number): Entry[] {
  const names = new Set<string>()
  const places = ['']
  while (names.size < count) {
    const parent = random.pick(places)
    const path = `${parent}${parent === '' ? '' : '/'}${random.bytes(4).toString('hex')}`
    if (names.has(path)) continue
    names.add(path)
    if (random.integer(8) === 0) places.push(path)
  }
  const isDirectory = new Set(places)
  return [...names]
    .map((path) => (isDirectory.has(path) ? directory(path) : file(path)))
    .sort((a, b) => comparePaths(a.path, b.path))
}

/** docs/format.md §6, word by word. */
function slowCuts(entries: readonly Entry[]): number[] {
  const starts = entries.length === 0 ? [] : [0]
  for (let i = 1; i < entries.length; i++) {
    const has = i - starts.at(-1)!
    const { path, type } = entries[i]!
    const parentDiffers = type === 'directory' || parentOf(path) !== parentOf(entries[i - 1]!.path)
    const first = createHash('blake2b512').update(Buffer.from(path, 'latin1')).digest()[0]!
    if (has >= 512 || (parentDiffers && (has >= 400 || (has >= 128 && first < 8)))) starts.push(i)
  }
  return starts
}

shards('runs cover all entries and are cut where the format says', () => {
  const random = randomOfRun('cuts')
  for (const count of [0, 1, 127, 128, 129, 399, 400, 401, 511, 512, 513, 3000]) {
    const entries = treeOf(random, count)
    const runs = cutShards(entries)
    assert.equal(
      runs.map(([start]) => start),
      slowCuts(entries),
      `${count}`,
    )
    assert.equal(
      runs.map(([, end]) => end),
      [...slowCuts(entries).slice(1), ...(count === 0 ? [] : [count])],
    )
  }
})

shards('a run has its limits at every length of one directory', () => {
  const many = (count: number): Entry[] =>
    Array.from({ length: count }, (_, i) => file(`d/${String(i).padStart(6, '0')}`))
  const lengths = (count: number): number[] =>
    cutShards(many(count)).map(([start, end]) => end - start)
  const most = MAX_SHARD_ENTRIES
  assert.is(most, 512)
  assert.equal(lengths(most - 1), [most - 1])
  assert.equal(lengths(most), [most])
  assert.equal(lengths(most + 1), [most, 1])
  assert.equal(lengths(2 * most), [most, most])
  assert.equal(lengths(2 * most + 1), [most, most, 1])
})

shards('an entry that comes or goes changes few runs', () => {
  const random = randomOfRun('inserted')
  for (let round = 0; round < 8; round++) {
    const entries = treeOf(random, 6000)
    const at = random.integer(entries.length)
    const near = entries[at]!.path
    const inserted = [
      ...entries,
      file(`${parentOf(near)}${parentOf(near) === '' ? '' : '/'}zzz-${round}`),
    ].sort((a, b) => comparePaths(a.path, b.path))
    const edited = round % 2 === 0 ? inserted : entries.filter((_, i) => i !== at)
    const before = new Set(digests(entries))
    const after = digests(edited)
    const fresh = after.filter((digest) => !before.has(digest)).length
    assert.ok(fresh <= 6, `${fresh} of ${after.length} shards changed`)
  }
})

const digests = (entries: readonly Entry[]): string[] =>
  cutShards(entries).map(([start, end]) =>
    digestOf(encodeShard(entries.slice(start, end), placeOf)),
  )

const run: readonly Entry[] = [
  directory('a'),
  { ...file('a/b'), size: 1500, header: [2, 1500, 512], pieces: [[ID, 2, 2012, 1500]] },
  {
    ...file('a/c'),
    size: 10,
    header: [0, 999, 1],
    pieces: [
      [ID, 2, 2012, 4],
      ['0'.repeat(64), 0, 49_990, 10],
    ],
  },
  { ...base, path: 'a/s', type: 'socket' },
  { ...base, path: 'a/\xff', type: 'symlink', target: '\xfe', header: [0, 0, 512] },
]

shards('a shard has its entries, and of their bundles only what they touch', () => {
  const bytes = encodeShard(run, placeOf)
  const shard = parseShard(bytes)
  assert.equal(shard.bundles, [
    { name: places[2]!.name, frames: [frame(1), frame(2), frame(3)] },
    { name: places[0]!.name, frames: [frame(0), frame(49)] },
  ])
  assert.equal(shard.entries[1], {
    ...run[1],
    header: [0, 1500, 512],
    pieces: [[ID, 0, 2012, 1500]],
  })
  assert.equal(shard.entries[2]!.pieces, [
    [ID, 0, 2012, 4],
    ['0'.repeat(64), 1, 49_990, 10],
  ])
  assert.equal(
    shard.entries.map(({ path }) => path),
    run.map(({ path }) => path),
  )
  assert.is(bytes.at(-1), 10)
  const again = encodeShard(shard.entries, (bundle) => shard.bundles[bundle]!)
  assert.ok(again.equals(bytes), 'what was read is written as it was')
})

shards('equal runs give equal bytes, whatever numbers their bundles have', () => {
  const renumbered = run.map((entry) => ({
    ...entry,
    inode: 77,
    bornNs: 88n,
    ...(entry.header === undefined
      ? {}
      : { header: [entry.header[0] + 100, entry.header[1], entry.header[2]] }),
    ...(entry.pieces === undefined
      ? {}
      : {
          pieces: entry.pieces.map(
            ([id, bundle, offset, length]) => [id, bundle + 100, offset, length] as const,
          ),
        }),
  })) as readonly Entry[]
  const other = (bundle: number): BundlePlace => placeOf(bundle - 100)
  assert.ok(encodeShard(renumbered, other).equals(encodeShard(run, placeOf)))
})

shards('a shard of entries without content names no bundle', () => {
  const bytes = encodeShard([directory('a')], placeOf)
  assert.is(bytes.toString().split('\n')[0], '{"bundles":[]}')
  assert.equal(parseShard(bytes), { bundles: [], entries: [directory('a')] })
})

/** A shard as text with one bundle and one file. */
function shardText({
  header = [0, 0, 512],
  pieces = [[ID, 0, 512, 10]],
  bundles,
  size = 10,
}: {
  header?: unknown
  pieces?: unknown
  bundles?: unknown
  size?: number
}): Buffer {
  const first = {
    bundles: bundles ?? [
      {
        name: places[0]!.name,
        frames: [
          [0, 1000, 0, 300],
          [2000, 500, 300, 100],
        ],
      },
    ],
  }
  const entry = {
    path: 'f',
    type: 'file',
    mode: 0,
    uid: 0,
    gid: 0,
    mtime: '0.000000000',
    size,
    header,
    pieces,
  }
  return Buffer.from(`${JSON.stringify(first)}\n${JSON.stringify(entry)}\n`)
}

shards('refuses an entry that lies outside the frames of its shard', () => {
  const place = (offset: number, length: number): Buffer =>
    shardText({ pieces: [[ID, 0, offset, length]] })
  for (const [offset, length] of [
    [0, 1000],
    [999, 1],
    [512, 0],
    [2000, 500],
    [2499, 1],
    [0, 1],
  ] as const) {
    assert.is(
      codeOf(() => parseShard(place(offset, length))),
      undefined,
      `${offset} ${length}`,
    )
  }
  for (const [offset, length] of [
    [0, 1001],
    [999, 2],
    [1000, 1],
    [1999, 1],
    [1999, 2],
    [999, 1500],
    [0, 2500],
    [2000, 501],
    [2500, 1],
    [2 ** 53 - 1, 1],
    [0, 2 ** 53 - 1],
  ] as const) {
    assert.is(
      codeOf(() => parseShard(place(offset, length))),
      'CATALOG_DAMAGED',
      `${offset} ${length}`,
    )
  }
  assert.is(
    codeOf(() => parseShard(shardText({ header: [0, 900, 512] }))),
    'CATALOG_DAMAGED',
    'a header',
  )
  assert.is(
    codeOf(() => parseShard(shardText({ header: [1, 0, 512] }))),
    'CATALOG_DAMAGED',
    'a bundle',
  )
  assert.is(
    codeOf(() => parseShard(shardText({ bundles: [] }))),
    'CATALOG_DAMAGED',
    'no bundle',
  )
})

shards('refuses a shard that is out of order, has a path twice or too many entries', () => {
  const good = encodeShard(run, placeOf)
  const [head, ...lines] = good.toString('latin1').split('\n').slice(0, -1)
  const text = (all: readonly string[]): Buffer =>
    Buffer.from(`${[head, ...all].join('\n')}\n`, 'latin1')
  assert.is(
    codeOf(() => parseShard(text(lines))),
    undefined,
  )
  assert.is(
    codeOf(() => parseShard(text([...lines].reverse()))),
    'CATALOG_DAMAGED',
  )
  assert.is(
    codeOf(() => parseShard(text([lines[0]!, lines[0]!]))),
    'CATALOG_DAMAGED',
  )
  const many = (count: number): Buffer =>
    encodeShard(
      Array.from({ length: count }, (_, i) => directory(String(i).padStart(5, '0'))),
      placeOf,
    )
  assert.is(parseShard(many(MAX_SHARD_ENTRIES)).entries.length, MAX_SHARD_ENTRIES)
  assert.is(
    codeOf(() => parseShard(many(MAX_SHARD_ENTRIES + 1))),
    'CATALOG_DAMAGED',
  )
})

shards('refuses a shard that is cut short anywhere but between lines', () => {
  const good = encodeShard(run, placeOf)
  for (let length = 0; length < good.length; length++) {
    if (length > 0 && good[length - 1] === 10) continue
    assert.is(
      codeOf(() => parseShard(good.subarray(0, length))),
      'CATALOG_DAMAGED',
      `${length}`,
    )
  }
})

shards('refuses bundles and frames that are malformed', () => {
  const name = places[0]!.name
  const list = [[0, 1000, 0, 300]]
  for (const bundles of [
    null,
    'x',
    {},
    [1],
    ['x'],
    [[]],
    [{}],
    [{ name }],
    [{ frames: list }],
    [{ name: '../x', frames: list }],
    [{ name: `${name}\n`, frames: list }],
    [{ name, frames: null }],
    [{ name, frames: [[0, 1000, 0]] }],
    [{ name, frames: [[0, 1000, 0, -1]] }],
    [{ name, frames: [[0, 4194305, 0, 1]] }],
    [{ name, frames: [[0, 1000, 0, 8388609]] }],
    [
      {
        name,
        frames: [
          [0, 600, 0, 1],
          [599, 401, 1, 1],
        ],
      },
    ],
    [
      {
        name,
        frames: [
          [500, 500, 0, 1],
          [0, 500, 1, 1],
        ],
      },
    ],
  ]) {
    assert.is(
      codeOf(() => parseShard(shardText({ bundles: bundles ?? [] }))),
      'CATALOG_DAMAGED',
      JSON.stringify(bundles),
    )
  }
})

shards('bug: a bundle that is null in a shard is not CATALOG_DAMAGED', () => {
  assert.is(
    codeOf(() => parseShard(shardText({ bundles: [null] }))),
    'CATALOG_DAMAGED',
  )
})

shards('a bundle name is a set, a stamp and a file, and nothing else', () => {
  for (const name of [
    'home/2025-04-01T020000Z/data-0001',
    'a/2025-04-01T020000Z/catalog-123456789',
    `${'a'.repeat(64)}/2025-04-01T020000Z/data-0001`,
  ]) {
    assert.is(parseBundleName(name), name)
  }
  for (const name of [
    '',
    'data-0001',
    '/home/2025-04-01T020000Z/data-0001',
    'home/2025-04-01T020000Z/data-001',
    'home/2025-04-01T020000Z/data-1234567890',
    'home/2025-04-01T020000Z/manifest',
    'home/2025-04-01/data-0001',
    '../2025-04-01T020000Z/data-0001',
    '_a/2025-04-01T020000Z/data-0001',
    'home/2025-04-01T020000Z/data-0001/',
    'home//2025-04-01T020000Z/data-0001',
    'Home/2025-04-01T020000Z/data-0001',
    'home/2025-04-01T020000Z/data-0001 ',
    `${'a'.repeat(65)}/2025-04-01T020000Z/data-0001`,
    7,
    null,
    undefined,
  ]) {
    assert.is(
      codeOf(() => parseBundleName(name)),
      'CATALOG_DAMAGED',
      String(name),
    )
  }
})

shards('the frames of a range are those that it touches', () => {
  assert.equal(framesOf(frames, { offset: 0, length: 1 }), [frame(0)])
  assert.equal(framesOf(frames, { offset: 999, length: 1 }), [frame(0)])
  assert.equal(framesOf(frames, { offset: 999, length: 2 }), [frame(0), frame(1)])
  assert.equal(framesOf(frames, { offset: 1000, length: 1000 }), [frame(1)])
  assert.equal(framesOf(frames, { offset: 49_999, length: 100 }), [frame(49)])
  assert.equal(framesOf(frames, { offset: 50_000, length: 1 }), [])
  assert.equal(framesOf([], { offset: 0, length: 1 }), [])
  assert.equal(parseFrames(JSON.parse(JSON.stringify(frames))), frames)
})

shards('the ranges of an entry are its header, then its pieces', () => {
  assert.equal(rangesOf(run[2]!), [
    [0, 999, 1],
    [2, 2012, 4],
    [0, 49_990, 10],
  ])
  assert.equal(rangesOf(run[0]!), [])
})

const index: readonly ShardPlace[] = [
  {
    digest: ID,
    bundle: 'home/2025-04-02T020000Z/catalog-0001',
    tar: [512, 99],
    frames: [frame(0)],
    entries: 1,
    first: 'a',
  },
  {
    digest: '0'.repeat(64),
    bundle: 'home/2025-04-01T020000Z/catalog-0001',
    tar: [2 ** 40, 1],
    frames: [],
    entries: 512,
    first: 'b/\xff',
  },
]

shards('an index is read as it was written', () => {
  const bytes = encodeIndex(index)
  assert.equal(parseIndex(bytes), index)
  assert.equal(parseIndex(encodeIndex([])), [])
  assert.equal(
    bytes
      .toString()
      .split('\n')
      .slice(0, 2)
      .map((line) => Object.keys(JSON.parse(line) as object)),
    [
      ['shard', 'bundle', 'tar', 'frames', 'entries', 'first'],
      ['shard', 'bundle', 'tar', 'frames', 'entries', 'first64'],
    ],
  )
})

shards('refuses an index with any property that is malformed', () => {
  const line = JSON.parse(encodeIndex(index).toString().split('\n')[0]!) as Record<string, unknown>
  const bad: Readonly<Record<string, readonly unknown[]>> = {
    shard: [undefined, 1, '', ID.slice(1), ID.toUpperCase()],
    bundle: [undefined, 1, 'x', `../${places[0]!.name}`],
    tar: [undefined, null, [], [1], [1, 2 ** 30 + 1], [-1, 1], ['1', 1]],
    frames: [undefined, null, [[]], [null]],
    entries: [undefined, -1, 0.5, '1'],
    first: [undefined, 1, null, 'a\0'],
  }
  for (const [name, values] of Object.entries(bad)) {
    for (const value of values) {
      const bytes = Buffer.from(`${JSON.stringify({ ...line, [name]: value })}\n`)
      assert.is(
        codeOf(() => parseIndex(bytes)),
        'CATALOG_DAMAGED',
        `${name}: ${JSON.stringify(value)}`,
      )
    }
  }
  const bytes = encodeIndex(index)
  assert.is(
    codeOf(() => parseIndex(bytes.subarray(0, -1))),
    'CATALOG_DAMAGED',
    'cut short',
  )
})

shards.run()
