import { execFileSync } from 'node:child_process'
import {
  appendFileSync,
  linkSync,
  lstatSync,
  mkdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { suite } from 'uvu'
import { makeNode } from '../../lib/machine/posix.ts'
import { type Entry, encodeEntry } from '../../lib/model/entry.ts'
import type { RawPath } from '../../lib/model/raw-path.ts'
import { sealTree } from '../../lib/work/seal.ts'
import { readSourceMetadata, snapshotRoots } from '../../lib/work/source-metadata.ts'
import * as assert from '../helpers/assert.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const source = suite('work/source-metadata')

interface Scene {
  /** Without a leading slash, as in a catalog. */
  readonly home: string
  readonly read: (rootOf?: (path: RawPath) => RawPath) => Map<string, Entry>
  readonly lines: () => string
  readonly birth: (name: string) => bigint
}

/** A home of one of everything, and what rsync makes of it a moment later. */
function scene(prepare: (home: string) => void = () => {}): Scene {
  const directory = tempDirectory()
  const home = `${directory}/home`
  mkdirSync(`${home}/d`, { recursive: true })
  writeFileSync(`${home}/d/f`, 'content')
  linkSync(`${home}/d/f`, `${home}/d/g`)
  writeFileSync(`${home}/empty`, '')
  symlinkSync('d/f', `${home}/link`)
  makeNode(`${home}/fifo`, { type: 'fifo', mode: 0o600 })
  prepare(home)
  const copy = `${directory}/copy`
  const args = ['-aHAXS', '--relative', '--modify-window=-1', `/./${home}`, `${copy}/`]
  execFileSync('rsync', args)
  const sealed = (): Entry[] =>
    sealTree({ directory: copy, names: { users: new Map(), groups: new Map() } })
  const entries = (rootOf: (path: RawPath) => RawPath = () => ''): Entry[] =>
    readSourceMetadata({ entries: sealed(), rootOf })
  return {
    home: home.slice(1),
    read: (rootOf) => new Map(entries(rootOf).map((entry) => [entry.path, entry])),
    lines: () => entries().map(encodeEntry).join('\n'),
    birth: (name) => lstatSync(`${home}/${name}`, { bigint: true }).birthtimeNs,
  }
}

source("every entry has its source's birth, not its copy's", () => {
  const { home, read, birth } = scene()
  const entries = read()
  for (const name of ['d', 'd/f', 'd/g', 'empty', 'link', 'fifo']) {
    const entry = entries.get(`${home}/${name}`)!
    assert.is(entry.birthNs, birth(name), name)
    assert.is.not(entry.birthNs, entry.bornNs, name)
  }
  assert.is(entries.get('tmp')?.birthNs, lstatSync('/tmp', { bigint: true }).birthtimeNs)
})

source('what did not change has the same line every time', () => {
  const { lines } = scene()
  assert.is(lines(), lines())
})

source('a source that changed, went, or became something else is not believed', () => {
  const { home, read } = scene()
  appendFileSync(`/${home}/d/f`, 'more')
  utimesSync(`/${home}/empty`, 1, 1)
  rmSync(`/${home}/fifo`)
  rmSync(`/${home}/link`)
  mkdirSync(`/${home}/link`)
  const entries = read()
  for (const name of ['d/f', 'd/g', 'empty', 'fifo', 'link']) {
    assert.is(entries.get(`${home}/${name}`)!.birthNs, undefined, name)
  }
  assert.ok(entries.get(`${home}/d`)!.birthNs)
})

source('a source that is a link was followed by rsync, and is here', () => {
  const { home, read } = scene()
  renameSync(`/${home}/d`, `/${home}/moved`)
  symlinkSync('moved', `/${home}/d`)
  const entries = read()
  const of = (name: string) => lstatSync(`/${home}/${name}`, { bigint: true }).birthtimeNs
  assert.is(entries.get(`${home}/d`)!.birthNs, of('moved'))
  assert.is(entries.get(`${home}/d/f`)!.birthNs, of('moved/f'))
})

source('whole seconds of staging are taken for the time they stand for', () => {
  const { home, read, birth } = scene((at) => utimesSync(`${at}/d/f`, 1.25, 1.25))
  const path = `${home}/d/f`
  const withTime = (mtimeNs: bigint) => {
    const entries = [{ ...read().get(path)!, mtimeNs, birthNs: 0n }]
    return readSourceMetadata({ entries, rootOf: () => '' })[0]!.birthNs
  }
  assert.is(withTime(1_000_000_000n), birth('d/f'))
  assert.is(withTime(1_250_000_000n), birth('d/f'))
  assert.is(withTime(1_000_000_001n), 0n)
  assert.is(withTime(2_000_000_000n), 0n)
})

source('a snapshot is asked about what lies in it, and the live tree about what lies above', () => {
  const rootOf = snapshotRoots(
    new Map([
      ['/data/home', { root: '/view' }],
      ['/data/home/deep/file', { root: '/other' }],
      ['/etc/one', { root: '/view' }],
    ]),
  )
  const roots = {
    data: '',
    'data/home': '/view',
    'data/home/a': '/view',
    'data/home/a/b/c': '/view',
    'data/home/deep/file': '/other',
    'data/home/deep/next': '/view',
    'data/homes': '',
    etc: '',
    'etc/one': '/view',
    'etc/two': '',
  }
  for (const [path, root] of Object.entries(roots)) assert.is(rootOf(path), root, path)
  assert.is(snapshotRoots(new Map([['/', { root: '/v' }]]))('data/x'), '/v')
  assert.is(snapshotRoots(new Map())('data'), '')
})

if (canRunAsRoot('chattr')) {
  source('files, their links and directories have flags, and nothing else has', () => {
    const words = (what: string, at: string) =>
      execFileSync('chattr', [what, `${at}/d`, `${at}/d/f`, `${at}/empty`])
    const { home, read } = scene((at) => words('+id', at))
    const entries = read()
    words('-id', `/${home}`)
    for (const name of ['d', 'd/f', 'd/g', 'empty']) {
      assert.equal(entries.get(`${home}/${name}`)!.flags, ['immutable', 'nodump'], name)
    }
    for (const name of ['link', 'fifo']) {
      assert.is(entries.get(`${home}/${name}`)!.flags, undefined, name)
    }
  })
}

source.run()
