import { Buffer } from 'node:buffer'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import {
  type Manifest,
  checkFormat,
  encodeManifest,
  exportName,
  parseManifest,
} from '../../lib/model/manifest.ts'
import * as assert from '../helpers/assert.ts'

const manifests = suite('model/manifest')
const SHA = 'cd'.repeat(32)

const sample: Manifest = {
  repository: '0123456789abcdef0123456789abcdef',
  machine: 'mini',
  set: 'home',
  stamp: '2025-04-02T020000Z',
  previous: { stamp: '2025-04-01T020000Z', sha256: SHA },
  complete: false,
  missing: [
    { path: 'home/\xff/x', why: 'permission denied' },
    { path: 'home/a\nb', why: 'it "vanished"' },
  ],
  sources: [
    { path: 'home', snapshot: 'btrfs', time: '2025-04-02T015959Z' },
    { path: 'etc', snapshot: 'none', time: '2025-04-02T020000Z' },
  ],
  index: {
    digest: SHA,
    bundle: 'home/2025-04-02T020000Z/catalog-0001',
    tar: [512, 2 ** 40],
    frames: [
      [0, 4194304, 0, 70_000],
      [4194304, 100, 70_000, 99],
    ],
    shards: 2,
  },
  bundles: [
    { name: 'home/2025-04-02T020000Z/catalog-0001', sizeBytes: 1, sha256: SHA },
    { name: 'home/2025-04-02T020000Z/data-0001', sizeBytes: 2 ** 32 - 1, sha256: SHA },
  ],
  statistics: { entries: 3, files: 2, bytes: 2 ** 50, newBytes: 0, storedBytes: 17 },
}

const failureOf = (bytes: Buffer): string | undefined => {
  try {
    parseManifest(bytes)
    return undefined
  } catch (error) {
    return error instanceof BackupError ? error.code : String(error)
  }
}

/** The sample with one property, found by its path, replaced; `undefined` removes it. */
function changed(path: string, value: unknown): Buffer {
  const root = JSON.parse(encodeManifest(sample).toString()) as Record<string, unknown>
  const steps = path.split('.')
  let at = root
  for (const step of steps.slice(0, -1)) at = at[step] as Record<string, unknown>
  at[steps.at(-1)!] = value
  return Buffer.from(JSON.stringify(root))
}

manifests('what was written is read back', () => {
  assert.equal(parseManifest(encodeManifest(sample)), sample)
  const first = { ...sample, previous: null, complete: true, missing: [], sources: [], bundles: [] }
  assert.equal(parseManifest(encodeManifest(first)), first)
})

manifests('properties have the names of the format', () => {
  const object = JSON.parse(encodeManifest(sample).toString()) as Record<string, unknown>
  assert.equal(Object.keys(object), [
    'format',
    'repository',
    'machine',
    'set',
    'stamp',
    'previous',
    'complete',
    'missing',
    'sources',
    'index',
    'bundles',
    'statistics',
  ])
  assert.is(object['format'], 1)
  assert.equal((object['missing'] as unknown[])[0], {
    path64: Buffer.from('home/\xff/x', 'latin1').toString('base64'),
    why: 'permission denied',
  })
  assert.equal(Object.keys((object['bundles'] as object[])[0]!), ['name', 'size', 'sha256'])
  assert.equal(Object.keys(object['index'] as object), [
    'digest',
    'bundle',
    'tar',
    'frames',
    'shards',
  ])
})

manifests('a newer format is told apart from damage, even where nothing else is known', () => {
  for (const format of [2, 3, 99, 1.5]) {
    assert.is(failureOf(changed('format', format)), 'TARGET_FORMAT')
    assert.is(failureOf(Buffer.from(JSON.stringify({ format }))), 'TARGET_FORMAT')
  }
  for (const format of [0, -1, '2', null, undefined, [], {}]) {
    assert.is(failureOf(changed('format', format)), 'MANIFEST_DAMAGED', String(format))
  }
  checkFormat(1)
})

manifests('refuses every property that is malformed', () => {
  const texts = [undefined, null, 1, [], {}]
  const numbers = [undefined, null, '1', -1, 0.5, 2 ** 53, [], {}]
  const digests = [...texts, '', SHA.slice(1), SHA.toUpperCase(), `${SHA}\n`, `${SHA}0`]
  const lists = [undefined, null, 'x', 1, {}]
  const bundles = [
    ...texts,
    '',
    'home/2025-04-02T020000Z',
    '../home/2025-04-02T020000Z/data-0001',
    '/home/2025-04-02T020000Z/data-0001',
    'home/2025-04-02T020000Z/data-0001\n',
    'home/../data-0001',
    'home/2025-04-02T020000Z/data-0001.tar.zst.age',
    'a/home/2025-04-02T020000Z/data-0001',
  ]
  const frames = [
    ...lists,
    [[]],
    [[0, 1, 2]],
    [['0', 1, 2, 3]],
    [[0, 4194305, 0, 1]],
    [
      [0, 10, 0, 1],
      [9, 1, 1, 1],
    ],
    [
      [5, 1, 0, 1],
      [0, 1, 1, 1],
    ],
  ]
  const bad: Readonly<Record<string, readonly unknown[]>> = {
    repository: texts,
    machine: texts,
    set: texts,
    stamp: texts,
    missing: lists,
    sources: lists,
    bundles: lists,
    previous: [undefined, 1, 'x', {}],
    'previous.stamp': texts,
    'previous.sha256': digests,
    'missing.0': [null, 1, 'x'],
    'missing.0.why': texts,
    'sources.0': [null, 1, 'x'],
    'sources.0.time': texts,
    index: [undefined, null, 1, 'x', {}],
    'index.digest': digests,
    'index.bundle': bundles,
    'index.tar': [...lists, [], [1], ['1', 2], [1, -1]],
    'index.frames': frames,
    'index.shards': numbers,
    'bundles.0': [null, 1, 'x', {}],
    'bundles.0.name': bundles,
    'bundles.0.size': numbers,
    'bundles.0.sha256': digests,
    statistics: [undefined, null, 1, {}],
    ...Object.fromEntries(
      Object.keys(sample.statistics).map((name) => [`statistics.${name}`, numbers]),
    ),
  }
  for (const [path, values] of Object.entries(bad)) {
    for (const value of values) {
      assert.is(
        failureOf(changed(path, value)),
        'MANIFEST_DAMAGED',
        `${path}: ${JSON.stringify(value)}`,
      )
    }
  }
})

manifests('refuses what is no JSON, and every manifest that is cut short', () => {
  const bytes = encodeManifest(sample)
  for (let length = 0; length < bytes.length - 1; length++) {
    assert.is(failureOf(bytes.subarray(0, length)), 'MANIFEST_DAMAGED', `${length}`)
  }
  for (const text of ['', 'null', '[]', '1', '"x"'])
    assert.is(failureOf(Buffer.from(text)), 'MANIFEST_DAMAGED')
})

manifests('bug: missing paths without a path, unknown snapshots, any `complete` are taken', () => {
  for (const [path, value] of [
    ['missing.1.path', undefined],
    ['sources.0.path', undefined],
    ['sources.0.snapshot', 'ntfs'],
    ['complete', undefined],
    ['complete', 'yes'],
    ['complete', 1],
  ] as const) {
    assert.is(
      failureOf(changed(path, value)),
      'MANIFEST_DAMAGED',
      `${path}: ${JSON.stringify(value)}`,
    )
  }
})

manifests('signatures are bound to machine, set and stamp', () => {
  assert.is(exportName(sample), 'mini/home/2025-04-02T020000Z')
})

manifests.run()
