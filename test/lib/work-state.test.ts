import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import {
  existsSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import { FRAME_MAX_BYTES } from '../../lib/format/zstd-frames.ts'
import type { Entry } from '../../lib/model/entry.ts'
import { encodeShard } from '../../lib/model/shard.ts'
import { PieceIndex } from '../../lib/work/piece-index.ts'
import {
  EMPTY_STATE,
  PIECE_RECORD_BYTES,
  type State,
  type StateSet,
  adoptPending,
  compressFrames,
  decompressFrames,
  encodePieces,
  lastExportShards,
  loadPieces,
  loadState,
  stateDirectory,
  writePending,
} from '../../lib/work/state.ts'
import * as assert from '../helpers/assert.ts'
import { failureOf } from '../helpers/failure.ts'
import { randomFrom } from '../helpers/random.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const states = suite('work/state')
const root = tempDirectory()
let directories = 0
const fresh = (): string =>
  stateDirectory({ staging: join(root, String(++directories)), id: 'ab'.repeat(16) })
const sha = (text: string): string => createHash('sha256').update(text).digest('hex')

const entry: Entry = {
  path: 'home/\xff',
  type: 'file',
  mode: 0o600,
  uid: 1,
  gid: 2,
  mtimeNs: -5n,
  size: 3,
  header: [1, 0, 512],
  pieces: [['ab'.repeat(32), 1, 512, 3]],
  inode: 2 ** 40,
  bornNs: 9n,
}
const BUNDLE = 'home/2025-03-01T020000Z/data-0001'

const setOf = (stamp: string, entries: readonly Entry[] = [entry]): StateSet => ({
  stamp,
  manifestSha256: sha(stamp),
  entries,
  index: {
    digest: sha('index'),
    bundle: `home/${stamp}/catalog-0001`,
    tar: [0, 5],
    frames: [[0, 5, 0, 4]],
    shards: 1,
  },
  shards: [
    {
      digest: sha('shard'),
      bundle: `home/${stamp}/catalog-0001`,
      tar: [512, 9],
      frames: [],
      entries: 1,
      first: 'home/\xff',
    },
  ],
  usage: { [`home/${stamp}/data-0001`]: 515 },
})

const stateOf = (
  stamp: string,
  set = 'home',
  more: readonly (readonly [string, StateSet])[] = [],
): State => ({
  bundles: [
    undefined,
    { name: BUNDLE, sizeBytes: 7, sha256: sha('b'), tarBytes: 9000, frames: [[0, 9000, 0, 7]] },
  ],
  sets: new Map([...more, [set, setOf(stamp)]]),
  pieces: Buffer.alloc(PIECE_RECORD_BYTES * 3, stamp),
  exports: new Map([
    [
      `${set}/${stamp}`,
      {
        complete: true,
        statistics: { entries: 1, files: 1, bytes: 3, newBytes: 3, storedBytes: 7 },
      },
    ],
  ]),
})

/** Writes a state as pending, with the catalog of the set that it commits. */
function writeState(directory: string, state: State, stamp: string, set = 'home'): void {
  const entries = state.sets.get(set)?.entries ?? []
  const shardBytes = [entries.slice(0, 1), entries.slice(1)]
    .filter(({ length }) => length > 0)
    .map((run) => encodeShard(run, (bundle) => state.bundles[bundle]!))
  writePending(directory, state, { commit: { set, stamp, sha256: sha(stamp) }, shardBytes })
}

const [FIRST, SECOND] = ['2025-04-01T020000Z', '2025-04-02T020000Z'] as const

/** A target that has the manifests of these stamps. */
const having =
  (...stamps: readonly string[]) =>
  async ({ stamp }: { stamp: string }): Promise<string | undefined> =>
    stamps.includes(stamp) ? sha(stamp) : undefined

/** Loads a state, with nothing in its sets but what StateSet names. */
const load = async (
  directory: string,
  manifests: Parameters<typeof loadState>[1],
): Promise<State | undefined> => {
  const state = await loadState(directory, manifests)
  const sets = [...(state?.sets ?? [])].map(([name, set]): [string, StateSet] => {
    const { stamp, manifestSha256, entries, index, shards, usage } = set
    return [name, { stamp, manifestSha256, entries, index, shards, usage }]
  })
  return state === undefined ? undefined : { ...state, sets: new Map(sets) }
}

const adopted = (directory: string, state: State, stamp: string, set = 'home'): void => {
  writeState(directory, state, stamp, set)
  adoptPending(directory)
}

states('what was adopted is loaded, all of it', async () => {
  const directory = fresh()
  adopted(directory, stateOf(FIRST), FIRST)
  assert.equal(await load(directory, having(FIRST)), stateOf(FIRST))
  assert.equal(await load(directory, 'unasked'), stateOf(FIRST))
  assert.is(await load(directory, having()), undefined, 'the target is a copy that lacks it')
  assert.is(await load(directory, async () => sha('another')), undefined, 'it went another way')
})

states('an empty state and large ones are kept too', async () => {
  const directory = fresh()
  adopted(directory, EMPTY_STATE, FIRST)
  assert.equal(await load(directory, having(FIRST)), EMPTY_STATE)
  const large = {
    ...stateOf(SECOND),
    pieces: randomFrom('state').bytes(PIECE_RECORD_BYTES * Math.ceil((2.5 * FRAME_MAX_BYTES) / 48)),
  }
  adopted(directory, large, SECOND)
  const loaded = await load(directory, having(SECOND))
  assert.ok(loaded?.pieces.equals(large.pieces))
})

states('there is none where there was none', async () => {
  assert.is(await load(fresh(), having()), undefined)
})

states('a pending state counts only when the target has its manifest', async () => {
  const directory = fresh()
  adopted(directory, stateOf(FIRST), FIRST)
  writeState(directory, stateOf(SECOND), SECOND)
  assert.equal(await load(directory, having(FIRST)), stateOf(FIRST), 'killed before the manifest')
  assert.equal(
    await load(directory, async ({ stamp }) => sha(stamp === FIRST ? FIRST : 'another')),
    stateOf(FIRST),
    'another manifest',
  )
  assert.equal(
    await load(directory, having(FIRST, SECOND)),
    stateOf(SECOND),
    'killed after the manifest',
  )
  assert.equal(await load(directory, having(SECOND)), stateOf(SECOND), 'and it stays')
})

states('a first state that is pending is none until its manifest is there', async () => {
  const directory = fresh()
  writeState(directory, stateOf(FIRST), FIRST)
  assert.is(await load(directory, having()), undefined)
  assert.equal(await load(directory, having(FIRST)), stateOf(FIRST))
})

states('the target is asked for the manifest of the pending set and stamp', async () => {
  const directory = fresh()
  writeState(directory, stateOf(FIRST, 'etc'), FIRST, 'etc')
  const asked: unknown[] = []
  await load(directory, async ({ set, stamp }) => void asked.push([set, stamp]) as undefined)
  assert.equal(asked, [['etc', FIRST]])
})

states('a run that was given up and done again replaces its own pending state', async () => {
  const directory = fresh()
  adopted(directory, stateOf(FIRST), FIRST)
  writeState(directory, { ...stateOf(SECOND), pieces: Buffer.alloc(PIECE_RECORD_BYTES) }, SECOND)
  writeState(directory, stateOf(SECOND), SECOND)
  assert.equal(await load(directory, having(FIRST, SECOND)), stateOf(SECOND))
})

states('a set that was not exported keeps its files', async () => {
  const directory = fresh()
  adopted(directory, stateOf(FIRST, 'etc'), FIRST, 'etc')
  const before = readdirSync(directory).filter((name) => name.startsWith('etc-'))
  const next = stateOf(SECOND, 'home', [['etc', setOf(FIRST)]])
  adopted(directory, next, SECOND)
  assert.equal(
    readdirSync(directory).filter((name) => name.startsWith('etc-')),
    before,
  )
  assert.equal(await load(directory, having(SECOND)), next)
})

states(
  'entries keep their places and what only staging knows, also those that have neither',
  async () => {
    const directory = fresh()
    const { pieces: _pieces, header: _header, ...bare } = entry
    const entries: Entry[] = [
      entry,
      { ...bare, path: 'home/\xff0', type: 'socket', inode: 0, bornNs: -(2n ** 62n) },
      { ...entry, path: 'z', pieces: [['cd'.repeat(32), 1, 8000, 3]] },
    ]
    const {
      inode: _inode,
      bornNs: _born,
      ...strange
    } = { ...bare, path: 'zz', type: 'fifo' as const }
    entries.push(strange)
    const state = { ...stateOf(FIRST), sets: new Map([['home', setOf(FIRST, entries)]]) }
    adopted(directory, state, FIRST)
    assert.equal((await load(directory, having(FIRST)))?.sets.get('home')?.entries, entries)
  },
)

states('what lies in a bundle that left is nowhere, and keeps its set', async () => {
  const directory = fresh()
  const state = stateOf(FIRST)
  const shardBytes = [encodeShard([entry], (bundle) => state.bundles[bundle]!)]
  const without = { ...state, bundles: [undefined, undefined] }
  writePending(directory, without, {
    commit: { set: 'home', stamp: FIRST, sha256: sha(FIRST) },
    shardBytes,
  })
  adoptPending(directory)
  const [found] = (await load(directory, having(FIRST)))!.sets.get('home')!.entries
  assert.is(found?.inode, entry.inode)
  for (const bundle of [found!.header![0], found!.pieces![0]![1]])
    assert.ok(bundle >= 2 ** 31, `${bundle}`)
})

states('files of states before are removed, and only those', async () => {
  const directory = fresh()
  adopted(directory, stateOf(FIRST), FIRST)
  const count = readdirSync(directory).length
  adopted(directory, stateOf(SECOND), SECOND)
  assert.is(readdirSync(directory).length, count)
  assert.ok(readdirSync(directory).every((name) => !name.includes(FIRST)))
})

states('nobody else may read it', () => {
  const directory = fresh()
  adopted(directory, stateOf(FIRST), FIRST)
  assert.is(statSync(directory).mode & 0o777, 0o700)
  for (const name of readdirSync(directory)) {
    assert.is(statSync(join(directory, name)).mode & 0o777, 0o600, name)
  }
})

states(
  'a file that is missing, cut short or changed in one bit means that all is lost',
  async () => {
    const names = (): string => {
      const directory = fresh()
      adopted(directory, stateOf(FIRST), FIRST)
      return directory
    }
    const damages: Readonly<Record<string, (path: string) => void>> = {
      missing: (path) => rmSync(path),
      empty: (path) => truncateSync(path, 0),
      'cut short': (path) => truncateSync(path, statSync(path).size - 1),
      'changed in one bit': (path) => {
        const bytes = readFileSync(path)
        bytes[bytes.length >> 1]! ^= 1
        writeFileSync(path, bytes)
      },
      longer: (path) => writeFileSync(path, Buffer.concat([readFileSync(path), Buffer.from('x')])),
    }
    const files = readdirSync(names()).filter((name) => name !== 'state.json')
    assert.is(files.length, 5, 'bundles, pieces, entries, inodes and shards')
    for (const [how, damage] of Object.entries(damages)) {
      for (const name of files) {
        const directory = names()
        damage(join(directory, name))
        assert.is(await load(directory, having(FIRST)), undefined, `${name} is ${how}`)
      }
    }
    for (const how of ['missing', 'empty', 'cut short', 'longer']) {
      const directory = names()
      damages[how]!(join(directory, 'state.json'))
      assert.is(await load(directory, having(FIRST)), undefined, `state.json is ${how}`)
    }
    for (const text of [
      'null',
      '[]',
      '{}',
      '1',
      '{"format":2}',
      '{"format":1}',
      '{"format":1,"bundles":null}',
    ]) {
      const directory = names()
      writeFileSync(join(directory, 'state.json'), text)
      assert.is(await load(directory, having(FIRST)), undefined, text)
    }
  },
)

states('the catalog of a last export that is gone or damaged is one that is lost', async () => {
  const names = ['entries', 'shards']
  const damages = [rmSync, (path: string) => truncateSync(path, 5)]
  for (const name of names) {
    for (const damage of damages) {
      const directory = fresh()
      adopted(directory, stateOf(FIRST), FIRST)
      const file = readdirSync(directory).find((one) => one.includes(`-${name}-`))
      damage(join(directory, file ?? ''))
      const read = async () => [...lastExportShards(directory, 'home')]
      assert.is((await failureOf(read)).code, 'CATALOG_DAMAGED', name)
    }
  }
})

states('a pending file that is no state changes nothing', async () => {
  const directory = fresh()
  adopted(directory, stateOf(FIRST), FIRST)
  for (const text of ['', '{', 'null', '[]', '{"format":2}']) {
    writeFileSync(join(directory, 'state.pending.json'), text)
    assert.equal(await load(directory, having(FIRST)), stateOf(FIRST), text)
  }
})

states('bug: a pending file without a commit is a crash instead of a loss', async () => {
  const directory = fresh()
  adopted(directory, stateOf(FIRST), FIRST)
  writeFileSync(join(directory, 'state.pending.json'), '{"format":1}')
  assert.equal(await load(directory, having(FIRST)), stateOf(FIRST))
})

states('writing a pending state leaves the adopted one whole', async () => {
  const directory = fresh()
  adopted(directory, stateOf(FIRST), FIRST)
  const before = new Map(
    readdirSync(directory).map((name) => [
      name,
      readFileSync(join(directory, name)).toString('hex'),
    ]),
  )
  writeState(directory, stateOf(SECOND), SECOND)
  for (const [name, bytes] of before)
    assert.is(readFileSync(join(directory, name)).toString('hex'), bytes, name)
  assert.ok(existsSync(join(directory, 'state.pending.json')))
})

states('frames of any size come back', () => {
  for (const size of [
    0,
    1,
    FRAME_MAX_BYTES - 1,
    FRAME_MAX_BYTES,
    FRAME_MAX_BYTES + 1,
    2 * FRAME_MAX_BYTES,
  ]) {
    const bytes = Buffer.alloc(size, 'state')
    assert.ok(decompressFrames(compressFrames(bytes)).equals(bytes), `${size}`)
  }
})

states('pieces are written and read, without those of bundles that are not usable', () => {
  const index = PieceIndex.forPieces(100)
  const ids = Array.from({ length: 100 }, (_, i) => randomFrom(`piece ${i}`).bytes(32))
  for (const [i, id] of ids.entries()) {
    index.claim(id)
    if (i > 0) index.locate(id, { bundle: i % 3, offset: i * 2 ** 40, length: 2 ** 32 - i })
  }
  const pieces = encodePieces(index)
  assert.is(pieces.length, 99 * PIECE_RECORD_BYTES)
  const loaded = PieceIndex.forPieces(100)
  loadPieces(loaded, { pieces, isUsable: (bundle) => bundle !== 1 })
  for (const [i, id] of ids.entries()) {
    assert.equal(loaded.lookup(id), i === 0 || i % 3 === 1 ? undefined : index.lookup(id))
  }
  loadPieces(loaded, { pieces: Buffer.alloc(0), isUsable: () => true })
})

states.run()
