import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { dirname } from 'node:path'
import { suite } from 'uvu'
import { setTimes } from '../../lib/machine/posix.ts'
import { createSubvolume, isReadOnly, isSubvolume } from '../../lib/machine/subvolume.ts'
import {
  clearNames,
  dropStale,
  type PreparedGeneration,
  prepareGeneration,
  removeGeneration,
  removeOutside,
  sealGeneration,
  wronglyLinked,
} from '../../lib/work/generation.ts'
import { sealTree } from '../../lib/work/seal.ts'
import * as assert from '../helpers/assert.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const generation = suite('work/generation')

/** Not root, and in no group of anybody's. */
const NOBODY = 65534

/** rsync as a collection runs it into what prepareGeneration made; gives what it said. */
function copy(source: string, prepared: PreparedGeneration, target: string): string {
  const kind =
    prepared.kind === 'links'
      ? prepared.linkDestinations.map((path) => `--link-dest=${path}`)
      : ['--delete', '--delete-excluded', '--ignore-errors', '--force']
  const args = ['-aHAXSii', '--numeric-ids', '--modify-window=-1', ...kind]
  const { status, stdout, stderr } = spawnSync('rsync', [...args, `${source}/`, `${target}/`])
  assert.is(status, 0, stderr.toString())
  return stdout.toString()
}

const differences = (source: string, target: string): string =>
  spawnSync('rsync', ['-aHAXSnic', '--delete', `${source}/`, `${target}/`]).stdout.toString()

/** What an export knows a content by. */
function identity(path: string): string {
  const { ino, birthtimeNs } = lstatSync(path, { bigint: true })
  return `${ino} ${birthtimeNs}`
}

generation('is a plain directory with links where staging is not on btrfs', async () => {
  const set = tempDirectory()
  const target = `${set}/2.partial`
  const prepared = await prepareGeneration({ target, collections: ['/a'], partials: ['/b'] })
  assert.equal(prepared, { kind: 'links', linkDestinations: ['/a', '/b'] })
  assert.is(lstatSync(target).mode & 0o777, 0o700)
  sealGeneration(target)
  removeGeneration(target)
  assert.not(existsSync(target))
})

generation('removes what cannot be written to, and follows no link on the way', () => {
  const place = tempDirectory()
  mkdirSync(`${place}/g/closed`, { recursive: true })
  writeFileSync(`${place}/g/closed/file`, '')
  symlinkSync('/', `${place}/g/link`)
  chmodSync(`${place}/g/closed`, 0)
  removeGeneration(`${place}/g`)
  removeGeneration(`${place}/absent`)
  assert.equal(readdirSync(place), [])
})

if (canRunAsRoot('btrfs loop mount')) {
  const device = loopDevice({ sizeMib: 512, type: 'btrfs' })
  const place = device.path
  let count = 0

  /** An empty set and a source with some files, in new directories. */
  const scene = (): { readonly set: string; readonly source: string } => {
    count += 1
    const [set, source] = [`${place}/set${count}`, `${place}/source${count}`]
    mkdirSync(set)
    mkdirSync(`${source}/d`, { recursive: true })
    for (const name of ['same', 'edited', 'd/removed']) writeFileSync(`${source}/${name}`, name)
    return { set, source }
  }

  /** One whole run; the collection is called `name`. */
  const collect = async (
    { set, source }: { set: string; source: string },
    { name, collections = [], partials = [] }: Collected,
  ): Promise<PreparedGeneration> => {
    const target = `${set}/${name}.partial`
    const prepared = await prepareGeneration({ target, collections, partials })
    const sourceOf = (path: string): string => `${source}/${path}`
    const sources = readdirSync(source)
    if (prepared.kind === 'snapshot') removeOutside({ directory: target, sources })
    copy(source, prepared, target)
    const entries = sealTree({ directory: target, names: { users: new Map(), groups: new Map() } })
    const paths = wronglyLinked({ entries, sourceOf })
    if (prepared.kind === 'snapshot' && paths.length > 0) {
      clearNames({ directory: target, paths, sourceOf })
      copy(source, prepared, target)
    }
    sealGeneration(target)
    renameSync(target, `${set}/${name}`)
    return prepared
  }
  interface Collected {
    readonly name: string
    readonly collections?: readonly string[]
    readonly partials?: readonly string[]
  }

  generation('begins as an empty subvolume, then as a snapshot of the newest', async () => {
    const here = scene()
    const { set, source } = here
    const first = await collect(here, { name: '1' })
    assert.equal(first, {
      kind: 'snapshot',
      directory: `${set}/1.partial`,
      base: undefined,
      isCopied: false,
    })
    assert.ok(isSubvolume(`${set}/1`) && isReadOnly(`${set}/1`))
    assert.is(differences(source, `${set}/1`), '')
    const second = await collect(here, { name: '2', collections: [`${set}/1`] })
    assert.is(second.kind === 'snapshot' && second.base, `${set}/1`)
    assert.is(differences(source, `${set}/2`), '')
  })

  generation('keeps inode and birth of what is the same, and of nothing that is not', async () => {
    const here = scene()
    const { set, source } = here
    await collect(here, { name: '1' })
    writeFileSync(`${source}/edited`, 'edited again')
    chmodSync(`${source}/same`, 0o600)
    rmSync(`${source}/d/removed`)
    await collect(here, { name: '2', collections: [`${set}/1`] })
    assert.is(identity(`${set}/1/same`), identity(`${set}/2/same`))
    assert.is.not(identity(`${set}/1/edited`), identity(`${set}/2/edited`))
    assert.is(differences(source, `${set}/2`), '')
    // Design invariant 6: nothing was written through.
    assert.is(readFileSync(`${set}/1/edited`, 'utf8'), 'edited')
    assert.is(lstatSync(`${set}/1/same`).mode & 0o777, 0o644)
    assert.ok(existsSync(`${set}/1/d/removed`))
  })

  generation('tells two files apart that have one number, by their birth', async () => {
    const here = scene()
    const { set, source } = here
    await collect(here, { name: '1' })
    writeFileSync(`${source}/z`, 'the newest inode')
    await collect(here, { name: '2', collections: [`${set}/1`] })
    rmSync(`${source}/z`)
    await collect(here, { name: '3', collections: [`${set}/2`] })
    writeFileSync(`${source}/z`, 'another content.')
    await collect(here, { name: '4', collections: [`${set}/3`] })
    // btrfs goes on from the highest number in the tree, so a snapshot gives the same one again.
    assert.is(lstatSync(`${set}/2/z`).ino, lstatSync(`${set}/4/z`).ino)
    assert.is.not(identity(`${set}/2/z`), identity(`${set}/4/z`))
  })

  generation('makes a subvolume of a plain collection without taking its space again', async () => {
    const here = scene()
    const { set, source } = here
    writeFileSync(`${source}/large`, Buffer.alloc(64 * 1024 * 1024, 'x'))
    linkSync(`${source}/same`, `${source}/linked`)
    mkdirSync(`${set}/1`)
    copy(source, { kind: 'links', linkDestinations: [] }, `${set}/1`)
    spawnSync('sync', ['-f', place])
    const prepared = await collect(here, { name: '2', collections: [`${set}/1`] })
    assert.ok(prepared.kind === 'snapshot' && prepared.isCopied)
    assert.ok(isSubvolume(`${set}/2`))
    assert.is(differences(source, `${set}/2`), '')
    spawnSync('sync', ['-f', place])
    const used = spawnSync('btrfs', ['filesystem', 'du', '-s', '--raw', `${set}/2`])
    const exclusiveBytes = Number(used.stdout.toString().split('\n')[1]?.trim().split(/\s+/)[1])
    assert.ok(exclusiveBytes < 1024 * 1024, `${exclusiveBytes} bytes of its own`)
  })

  generation('links to nothing, but copies, when the newest is a subvolume', async () => {
    const here = scene()
    const { set, source } = here
    await collect(here, { name: '1' })
    mkdirSync(`${set}/2`)
    copy(source, { kind: 'links', linkDestinations: [`${set}/1`] }, `${set}/2`)
    assert.is(differences(source, `${set}/2`), '')
    await collect(here, { name: '3', collections: [`${set}/2`, `${set}/1`] })
    assert.is(differences(source, `${set}/3`), '')
  })

  generation('starts from an interrupted run, however far it came', async () => {
    const here = scene()
    const { set, source } = here
    await collect(here, { name: '1' })
    const target = `${set}/2.partial`
    const steps = [
      () => {},
      () => void copy(source, { kind: 'links', linkDestinations: [] }, target),
      () => sealGeneration(target),
    ]
    for (const [step] of steps.entries()) {
      await prepareGeneration({ target, collections: [`${set}/1`], partials: [] })
      for (const work of steps.slice(0, step + 1)) work()
      const name = `after-${step}`
      const next = await collect(here, { name, collections: [`${set}/1`], partials: [target] })
      assert.is(next.kind === 'snapshot' && next.base, target)
      assert.is(differences(source, `${set}/${name}`), '')
      removeGeneration(target)
      assert.not(existsSync(target))
    }
  })

  generation('gives two files that were one their own attributes each', async () => {
    const here = scene()
    const { set, source } = here
    linkSync(`${source}/same`, `${source}/twin`)
    await collect(here, { name: '1' })
    const { mtimeNs } = lstatSync(`${source}/same`, { bigint: true })
    copyFileSync(`${source}/same`, `${source}/aside`)
    renameSync(`${source}/aside`, `${source}/twin`)
    chmodSync(`${source}/twin`, 0o640)
    setTimes(`${source}/twin`, { mtimeNs })
    await collect(here, { name: '2', collections: [`${set}/1`] })
    assert.is(differences(source, `${set}/2`), '')
    assert.is(lstatSync(`${set}/2/twin`).nlink, 1)
    assert.is(lstatSync(`${set}/2/same`).mode & 0o777, 0o644)
    assert.is(identity(`${set}/1/same`), identity(`${set}/2/same`))
  })

  generation('holds nothing of a source that is no source any more', async () => {
    const here = scene()
    const { set } = here
    const target = `${set}/1.partial`
    await prepareGeneration({ target, collections: [], partials: [] })
    for (const name of ['home/me/a', 'home/me-too/b', 'home/you/c', 'etc/d']) {
      mkdirSync(`${target}/${name}`, { recursive: true })
      writeFileSync(`${target}/${name}/file`, '')
    }
    chmodSync(`${target}/home`, 0o500)
    removeOutside({ directory: target, sources: ['home/me', 'etc/d/file'] })
    assert.equal(readdirSync(target).sort(), ['etc', 'home'])
    assert.equal(readdirSync(`${target}/home`), ['me'])
    assert.equal(readdirSync(`${target}/etc/d`), ['file'])
  })

  generation('drops what could not be read and is another file in the source', async () => {
    const here = scene()
    const { set, source } = here
    await collect(here, { name: '1' })
    const target = `${set}/2.partial`
    await prepareGeneration({ target, collections: [`${set}/1`], partials: [] })
    writeFileSync(`${source}/edited`, 'cannot be read now')
    rmSync(`${source}/d/removed`)
    const { mtimeNs } = lstatSync(`${target}/d`, { bigint: true })
    const sourceOf = (path: string): string => `${source}/${path}`
    const paths = ['edited', 'd/removed', 'same', 'd', 'absent']
    dropStale({ directory: target, paths, sourceOf })
    assert.equal(readdirSync(target).sort(), ['d', 'same'])
    assert.equal(readdirSync(`${target}/d`), [])
    assert.is(lstatSync(`${target}/d`, { bigint: true }).mtimeNs, mtimeNs)
  })

  generation('makes and removes subvolumes without root, too', async () => {
    const { set } = scene()
    chownSync(set, NOBODY, NOBODY)
    for (const path of [place, dirname(place)]) chmodSync(path, 0o755)
    process.seteuid?.(NOBODY)
    try {
      const target = `${set}/1.partial`
      await prepareGeneration({ target, collections: [], partials: [] })
      assert.ok(isSubvolume(target))
      mkdirSync(`${target}/closed`)
      writeFileSync(`${target}/closed/file`, '')
      chmodSync(`${target}/closed`, 0o500)
      sealGeneration(target)
      await prepareGeneration({ target: `${set}/2.partial`, collections: [target], partials: [] })
      assert.ok(existsSync(`${set}/2.partial/closed/file`))
      removeGeneration(target)
      removeGeneration(`${set}/2.partial`)
    } finally {
      process.seteuid?.(0)
    }
    assert.equal(readdirSync(set), [])
  })

  generation('says why it is a plain directory on btrfs that refuses', async () => {
    const { set } = scene()
    const foreign = `${set}/1`
    createSubvolume(foreign)
    chownSync(set, NOBODY, NOBODY)
    process.seteuid?.(NOBODY)
    try {
      // Only the owner of a subvolume may make a snapshot of it.
      const target = `${set}/2.partial`
      const prepared = await prepareGeneration({ target, collections: [foreign], partials: [] })
      const reason = 'no subvolume can be made there (EPERM)'
      assert.equal(prepared, { kind: 'links', linkDestinations: [foreign], reason })
    } finally {
      process.seteuid?.(0)
    }
  })
}

generation.run()
