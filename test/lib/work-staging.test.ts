import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import type { BackupError } from '../../lib/errors.ts'
import type { CollectionHeader } from '../../lib/model/collection.ts'
import type { Entry } from '../../lib/model/entry.ts'
import {
  listCollections,
  publishCollection,
  readCollection,
  surveyCollections,
} from '../../lib/work/staging.ts'
import * as assert from '../helpers/assert.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const staging = suite('work/staging')
const directory = tempDirectory()
const place = { staging: directory, set: 'home' }

const header: CollectionHeader = {
  set: 'home',
  stamp: '2025-04-01T020000Z',
  complete: false,
  entries: 40_000,
  files: 40_000,
  bytes: 1,
  missing: Array.from({ length: 3000 }, (_, i) => ({
    path: `gone/\xff${i}`,
    why: 'permission denied',
  })),
  suspect: [{ path: 'home/caf\xc3\xa9', why: 'empty' }],
  sources: [
    {
      path: 'home/caf\xc3\xa9',
      snapshot: 'none',
      time: '2025-04-01T020000Z',
      facts: {
        isDirectory: true,
        filesystem: 'ext4 1',
        entries: 1,
        bytes: 0,
        mounts: ['home/caf\xc3\xa9/m'],
      },
    },
  ],
}

const entries: Entry[] = Array.from({ length: 40_000 }, (_, i) => ({
  path: `home/a directory with a long name/file-\xfe-${i}`,
  type: 'file',
  mode: 0o644,
  uid: 0,
  gid: 0,
  user: 'root',
  mtimeNs: -1n - BigInt(i),
  size: i,
  xattrs: new Map([['user.x', Buffer.from([i % 256])]]),
  inode: i,
  bornNs: 5n,
}))

function codeOf(run: () => unknown): string {
  try {
    run()
  } catch (error) {
    return (error as BackupError).code
  }
  return 'no error'
}

staging('gives back what was published, in many frames that zstd opens', () => {
  mkdirSync(`${directory}/home/${header.stamp}.partial`, { recursive: true })
  publishCollection({ staging: directory, header, entries })
  assert.equal(listCollections(place), [header])
  const read = readCollection({ ...place, stamp: header.stamp })
  assert.equal(read.header, header)
  assert.equal(read.entries, entries)
  const text = execFileSync('zstd', ['-dc', `${directory}/home/${header.stamp}.catalog.zst`], {
    maxBuffer: 2 ** 28,
  }).toString()
  assert.is(text.split('\n').length, entries.length + 2)
  assert.is((JSON.parse(text.slice(0, text.indexOf('\n'))) as { format: number }).format, 1)
})

staging("notices damage anywhere in a catalog, and a catalog that is another one's", () => {
  const file = `${directory}/home/${header.stamp}.catalog.zst`
  const good = readFileSync(file)
  for (const position of [0, 100, good.length >> 1, good.length - 1]) {
    const bad = Buffer.from(good)
    bad[position] = (bad[position] ?? 0) ^ 1
    writeFileSync(file, bad)
    assert.is(
      codeOf(() => readCollection({ ...place, stamp: header.stamp })),
      'CATALOG_DAMAGED',
      `${position}`,
    )
  }
  for (const length of [0, 10, good.length - 1]) {
    writeFileSync(file, good.subarray(0, length))
    assert.is(
      codeOf(() => readCollection({ ...place, stamp: header.stamp })),
      'CATALOG_DAMAGED',
      `${length}`,
    )
  }
  writeFileSync(file, '')
  assert.is(
    codeOf(() => listCollections(place)),
    'CATALOG_DAMAGED',
  )
  assert.equal(surveyCollections(place), { collections: [], damaged: [header.stamp] })
  mkdirSync(`${directory}/home/2025-04-02T020000Z`)
  writeFileSync(`${directory}/home/2025-04-02T020000Z.catalog.zst`, good)
  assert.is(
    codeOf(() => readCollection({ ...place, stamp: '2025-04-02T020000Z' })),
    'CATALOG_DAMAGED',
  )
  assert.is(
    codeOf(() => readCollection({ ...place, stamp: '2025-04-03T020000Z' })),
    'NOTHING_FOUND',
  )
})

staging('a set that was never collected has no collections', () => {
  assert.equal(listCollections({ staging: `${directory}/none`, set: 'home' }), [])
})

staging.run()
