import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import type { SetConfiguration } from '../../lib/machine/config.ts'
import type { MissingPath } from '../../lib/model/collection.ts'
import type { Entry } from '../../lib/model/entry.ts'
import { rawPathToBytes } from '../../lib/model/raw-path.ts'
import { formatStamp, type Stamp } from '../../lib/model/stamp.ts'
import { parseVersion } from '../../lib/model/version-index.ts'
import { partialDirectory, prepareSet, publishCollection } from '../../lib/work/staging.ts'
import { openVersions } from '../../lib/work/versions.ts'
import { explainInSet, nearestSource, type WhyAnswer } from '../../lib/work/why.ts'
import * as assert from '../helpers/assert.ts'
import { configurationOf, setConfiguration } from '../helpers/configuration.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const why = suite('why')
const root = tempDirectory()
let scenes = 0

interface Scene {
  readonly top: string
  readonly collect: (content: Collected) => Stamp
  readonly ask: (path: string) => Promise<WhyAnswer>
}

/** What a collection holds besides the source itself: a path below the scene, and its time. */
interface Collected {
  readonly files?: Readonly<Record<string, number>>
  readonly missing?: readonly MissingPath[]
}

/** A set `home` whose sources and places lie in a directory of their own. */
function makeScene(change: (top: string) => Partial<SetConfiguration>): Scene {
  const top = `${root}/${++scenes}`
  mkdirSync(`${top}/data/deep`, { recursive: true })
  writeFileSync(`${top}/data/file`, 'content')
  writeFileSync(`${top}/data/deep/x.iso`, '')
  const staging = `${top}/staging`
  const set = setConfiguration({ sources: [`${top}/data`], ...change(top) })
  const configuration = configurationOf(set, { staging })
  prepareSet({ staging, set: 'home' })
  let made = 0
  return {
    top,
    collect: ({ files = {}, missing = [] }) => {
      const stamp = formatStamp(1_700_000_000_000 + made++ * 86_400_000)
      const metadata = { type: 'file' as const, mode: 0o644, uid: 0, gid: 0, size: 7 }
      const own = { inode: made, bornNs: BigInt(made) }
      const entries: Entry[] = Object.entries(files).map(([name, seconds]) => {
        const path = `${top}/${name}`.slice(1)
        const mtimeNs = BigInt(seconds) * 1_000_000_000n
        return { path, ...metadata, mtimeNs, ...own }
      })
      const sources = [{ path: `${top}/data`.slice(1), snapshot: 'none' as const, time: stamp }]
      const counts = { entries: entries.length, files: entries.length, bytes: 7 * entries.length }
      const state = { complete: missing.length === 0, missing, suspect: [] }
      mkdirSync(rawPathToBytes(partialDirectory({ staging, set: 'home', stamp })))
      const header = { set: 'home', stamp, ...state, sources, ...counts }
      publishCollection({ staging, header, entries })
      return stamp
    },
    ask: async (path) => {
      const signal = new AbortController().signal
      const versions = await openVersions({ staging, set: 'home' }, { report: () => {}, signal })
      try {
        return explainInSet({ configuration, set, path, isDirectory: false, versions })
      } finally {
        versions.close()
      }
    },
  }
}

why('a path is taken, or left out by the rule of a directory above it', async () => {
  const { top, ask } = makeScene(() => ({ exclusions: ['deep'] }))
  const taken = await ask(`${top}/data/file`)
  assert.equal([taken.rule?.taken, taken.rule?.reason.kind], [true, 'source'])
  assert.is(taken.now?.sizeBytes, 7)
  const left = await ask(`${top}/data/deep/x.iso`)
  const reason = { kind: 'exclusion', rule: 'deep' }
  assert.equal(left.rule, { taken: false, at: `${top}/data/deep`, reason })
})

why('a path behind the link of a source is known by the path it is collected as', async () => {
  const { top, ask } = makeScene((directory) => ({ sources: [`${directory}/link`] }))
  symlinkSync(`${top}/data`, `${top}/link`)
  for (const path of [`${top}/data/file`, `${top}/link/file`]) {
    const { source, collectedAs, rule } = await ask(path)
    assert.equal([source, collectedAs, rule?.taken], [`${top}/link`, `${top}/link/file`, true])
  }
  assert.is((await ask(`${top}/link/gone/file`)).collectedAs, `${top}/link/gone/file`)
})

why('a path that leads through a link within a source is not in that source', async () => {
  const { top, ask } = makeScene(() => ({}))
  mkdirSync(`${top}/other`)
  symlinkSync(`${top}/other`, `${top}/data/away`)
  assert.is((await ask(`${top}/data/away`)).rule?.taken, true, 'the link itself is')
  assert.is((await ask(`${top}/data/away/file`)).source, undefined)
})

why('staging and targets are named as what leaves a path out', async () => {
  const { top, ask } = makeScene((directory) => ({ sources: [directory] }))
  const { rule } = await ask(`${top}/staging/home`)
  assert.equal([rule?.taken, rule?.at, rule?.reason.kind], [false, `${top}/staging`, 'own-place'])
})

why('a source that cannot be read is said to be one', async () => {
  const { top, ask } = makeScene((directory) => ({ sources: [`${directory}/gone`] }))
  const { source, unreadable, rule } = await ask(`${top}/gone/file`)
  assert.equal([source, unreadable, rule], [`${top}/gone`, 'no such file or directory', undefined])
})

why('neighbouring collections that hold the same are one run', async () => {
  const { top, collect, ask } = makeScene(() => ({}))
  const stamps = [
    collect({}),
    collect({ files: { 'data/file': 1 } }),
    collect({ files: { 'data/file': 1 } }),
    collect({ missing: [{ path: `${top}/data`.slice(1), why: 'permission denied' }] }),
    collect({ files: { 'data/file': 2 } }),
    collect({ files: { 'data/file': 2 } }),
    collect({ files: { 'data/file': 2 } }),
  ]
  const told = (answer: WhyAnswer): unknown[] =>
    answer.runs.map(({ state, newest, oldest, count }) => {
      return [state, stamps.indexOf(newest), stamps.indexOf(oldest), count]
    })
  const answer = await ask(`${top}/data/file`)
  assert.equal(told(answer), [
    ['held', 6, 4, 3],
    ['missing', 3, 3, 1],
    ['held', 2, 1, 2],
    ['absent', 0, 0, 1],
  ])
  const { type, sizeBytes, mtimeNs } = parseVersion(answer.runs[0]?.version ?? '')
  assert.equal([type, sizeBytes, mtimeNs], ['file', 7, 2_000_000_000n])
  assert.is(answer.runs[1]?.why, 'permission denied')
  assert.is(answer.generations, 7)
})

why('a damaged catalog is an answer, not an end', async () => {
  const { top, collect, ask } = makeScene(() => ({}))
  const first = collect({ files: { 'data/file': 1 } })
  const second = collect({ files: { 'data/file': 1 } })
  writeFileSync(`${top}/staging/home/${second}.catalog.zst`, 'damaged')
  const states = (await ask(`${top}/data/file`)).runs.map(({ state, newest }) => [state, newest])
  assert.equal(states, [
    ['damaged', second],
    ['held', first],
  ])
})

why('a path that was in a source once is found in the collections of that time', async () => {
  const { top, collect, ask } = makeScene((directory) => ({ sources: [`${directory}/staging`] }))
  collect({ files: { 'data/file': 1 } })
  const { source, runs } = await ask(`${top}/data/file`)
  assert.equal([source, runs.map(({ state }) => state)], [undefined, ['held']])
  assert.equal((await ask(`${top}/other`)).runs, [])
})

why('the nearest source shares the most names', () => {
  const sets = [
    setConfiguration({ name: 'a', sources: ['/home/me/data', '/etc'] }),
    setConfiguration({ name: 'b', sources: ['/home/me/pictures/'] }),
  ]
  assert.equal(nearestSource(sets, '/home/me/pictures2'), { set: 'a', source: '/home/me/data' })
  assert.equal(nearestSource(sets, '/etc2'), { set: 'a', source: '/home/me/data' })
  assert.equal(nearestSource(sets, '/home/me/pictures/x'), {
    set: 'b',
    source: '/home/me/pictures',
  })
  assert.is(nearestSource([], '/x'), undefined)
})

why.run()
