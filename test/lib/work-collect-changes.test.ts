// Collecting only what changed (`keep_snapshot`, source and staging on btrfs): whatever the edits,
// tree and catalog are those of a collection that looked at everything.

import { spawnSync } from 'node:child_process'
import {
  appendFileSync,
  chmodSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { suite } from 'uvu'
import { readAccountNames } from '../../lib/machine/accounts.ts'
import type { SetConfiguration } from '../../lib/machine/config.ts'
import { setXattr } from '../../lib/machine/posix.ts'
import { type Entry, encodeEntry } from '../../lib/model/entry.ts'
import { rawPathToBytes } from '../../lib/model/raw-path.ts'
import { type CollectOutcome, collectSet } from '../../lib/work/collect.ts'
import { sealTree } from '../../lib/work/seal.ts'
import { readSourceMetadata } from '../../lib/work/source-metadata.ts'
import { readCollection } from '../../lib/work/staging.ts'
import * as assert from '../helpers/assert.ts'
import { configurationOf, setConfiguration } from '../helpers/configuration.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { type Random, randomOfRun } from '../helpers/random.ts'

const changes = suite('work/collect: only what changed')
const ROUNDS = Number(process.env['ROUNDS'] ?? 12)

const run = (program: string, ...words: (string | Buffer)[]): string => {
  const { status, stdout, stderr } = spawnSync(program, words as string[], { encoding: 'latin1' })
  assert.is(status, 0, `${program}: ${stderr}`)
  return stdout
}

interface Scene {
  readonly source: string
  readonly staging: string
  readonly top: string
  readonly collect: (change?: Partial<SetConfiguration>) => Promise<CollectOutcome>
  readonly done: () => void
}

function scene(): Scene {
  const device = loopDevice({ sizeMib: 512, type: 'btrfs' })
  const top = device.path
  const [source, staging] = [`${top}/home/me/docs`, `${top}/staging`]
  run('btrfs', 'subvolume', 'create', `${top}/home`)
  mkdirSync(source, { recursive: true })
  mkdirSync(staging)
  let day = 0
  const collect = async (change: Partial<SetConfiguration> & { full?: boolean } = {}) => {
    const { full, ...rest } = change
    const set = setConfiguration({
      sources: [source],
      snapshot: 'required',
      keepSnapshot: true,
      suspectLoss: 1,
      retention: { local: 3, external: 1, keep: {} },
      ...rest,
    })
    day += 1
    return await collectSet({
      configuration: configurationOf(set, { staging }),
      set,
      report: () => {},
      nowMs: Date.UTC(2025, 3, 1) + day * 86_400_000,
      ...(full === undefined ? {} : { full }),
    })
  }
  return { source, staging, top, collect, done: device.unmount }
}

/** Tree and catalog of the newest collection, against the source and against sealing all of it. */
function assertExact({ source, staging }: Scene, { stamp }: CollectOutcome, where: string): void {
  const tree = `${staging}/home/${stamp}`
  const compare = ['-aHAXSnic', '--delete', `${source}/`, `${tree}${source}/`]
  assert.is(run('rsync', ...compare), '', where)
  const sealed = sealTree({ directory: tree, names: readAccountNames() })
  const whole = readSourceMetadata({ entries: sealed, rootOf: () => '' })
  const lines = (entries: readonly Entry[]): string[] => entries.map(encodeEntry)
  const found = readCollection({ staging, set: 'home', stamp }).entries
  assert.equal(lines(found), lines(whole), where)
}

const ownSnapshots = (top: string): number =>
  readdirSync(top).filter((name) => name.startsWith('backup-home-')).length

/** Every path below a directory, directories too. */
function pathsIn(directory: string): string[] {
  return readdirSync(rawPathToBytes(directory), { encoding: 'latin1' }).flatMap((name) => {
    const path = `${directory}/${name}`
    return lstatSync(rawPathToBytes(path)).isDirectory() ? [path, ...pathsIn(path)] : [path]
  })
}

const NAMES = ['a', 'b c', 'new\nline', 'back\\slash', 'caf\xe9', '-dash', '*star', 'é']

let ticks = 1_700_000_000

/**
 * Two files of one size that change in one tick of the clock look alike to rsync, here as in any
 * collection that does not compare content: so every change of content has a time of its own.
 */
function touch(path: string): void {
  if (lstatSync(rawPathToBytes(path)).isFile()) utimesSync(rawPathToBytes(path), ++ticks, ticks)
}

/** One random edit; one that makes no sense at this moment does nothing. */
function edit(source: string, random: Random): void {
  const all = pathsIn(source)
  const directories = [
    source,
    ...all.filter((path) => lstatSync(rawPathToBytes(path)).isDirectory()),
  ]
  const files = all.filter((path) => lstatSync(rawPathToBytes(path)).isFile())
  const fresh = `${random.pick(directories)}/${random.pick(NAMES)}${random.integer(5)}`
  const [one, file] = [all.length > 0 ? random.pick(all) : fresh, random.pick([...files, fresh])]
  const at = rawPathToBytes
  const edits: (() => void)[] = [
    () => (writeFileSync(at(fresh), random.bytes(random.integer(3000))), touch(fresh)),
    () => mkdirSync(at(fresh)),
    () => symlinkSync('nowhere', at(fresh)),
    () => renameSync(at(one), at(fresh)),
    () => renameSync(at(one), at(random.pick([...all, fresh]))),
    () => rmSync(at(one), { recursive: true }),
    () => (appendFileSync(at(file), 'more'), touch(file)),
    () => (truncateSync(at(file), 3), touch(file)),
    () => chmodSync(at(one), 0o700 + random.integer(0o100)),
    () => setXattr(file, 'user.note', random.bytes(4)),
    () => linkSync(at(file), at(fresh)),
  ]
  try {
    random.pick(edits)()
  } catch (error) {
    if (!(error instanceof Error) || !('code' in error)) throw error
  }
}

if (canRunAsRoot('source and staging on a btrfs loop mount')) {
  changes(
    'after random edits, tree and catalog are as if everything had been looked at',
    async () => {
      const one = scene()
      const random = randomOfRun('changes')
      writeFileSync(`${one.source}/always`, 'there')
      for (let i = 0; i < 30; i++) edit(one.source, random)
      assert.not.ok((await one.collect()).onlyChanges, 'the first looks at everything')
      for (let round = 0; round < ROUNDS; round++) {
        for (let i = random.integer(25); i >= 0; i--) edit(one.source, random)
        writeFileSync(`${one.source}/always`, `round ${round}`)
        touch(`${one.source}/always`)
        const outcome = await one.collect()
        assertExact(one, outcome, `round ${round}`)
        assert.is(ownSnapshots(one.top), 1, 'one snapshot is kept')
      }
      // Where a hard link's name has a newline in it, btrfs cannot tell: everything is looked at.
      rmSync(one.source, { recursive: true })
      mkdirSync(one.source)
      writeFileSync(`${one.source}/always`, 'there')
      await one.collect()
      const last = await one.collect()
      assert.ok(last.onlyChanges, 'with no change it is told so')
      assert.is(last.copiedFiles, 0)
      one.done()
    },
  )

  changes('everything is looked at when the rules changed, and in a full run', async () => {
    const one = scene()
    for (const name of ['keep', 'drop.log']) writeFileSync(`${one.source}/${name}`, name)
    await one.collect()
    assert.ok((await one.collect()).onlyChanges)
    const fewer = await one.collect({ exclusions: ['*.log'] })
    assert.not.ok(fewer.onlyChanges)
    assert.not.ok(existsSync(`${one.staging}/home/${fewer.stamp}${one.source}/drop.log`))
    const more = await one.collect()
    assert.not.ok(more.onlyChanges)
    assertExact(one, more, 'the exclusion is gone')
    assert.ok((await one.collect()).onlyChanges)
    assert.not.ok((await one.collect({ full: true } as object)).onlyChanges)
    one.done()
  })

  changes('without keep_snapshot the one that was kept goes with the next run', async () => {
    const one = scene()
    writeFileSync(`${one.source}/file`, 'x')
    await one.collect()
    assert.is(ownSnapshots(one.top), 1)
    assert.not.ok((await one.collect({ keepSnapshot: false })).onlyChanges)
    assert.is(ownSnapshots(one.top), 0)
    one.done()
  })

  changes('a nested subvolume has everything looked at, and is collected', async () => {
    const one = scene()
    run('btrfs', 'subvolume', 'create', `${one.source}/nested`)
    writeFileSync(`${one.source}/nested/file`, 'x')
    await one.collect()
    const second = await one.collect()
    assert.not.ok(second.onlyChanges)
    assert.ok(existsSync(`${one.staging}/home/${second.stamp}${one.source}/nested/file`))
    assert.is(ownSnapshots(one.top), 0)
    one.done()
  })

  changes('a kept snapshot that somebody removed has everything looked at', async () => {
    const one = scene()
    writeFileSync(`${one.source}/file`, 'x')
    const { stamp } = await one.collect()
    run('btrfs', 'subvolume', 'delete', `${one.top}/backup-home-${stamp}`)
    writeFileSync(`${one.source}/file`, 'y')
    const second = await one.collect()
    assert.not.ok(second.onlyChanges)
    assertExact(one, second, 'compared')
    assert.ok((await one.collect()).onlyChanges)
    one.done()
  })
}

changes.run()
