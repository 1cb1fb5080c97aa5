// The view of backups: what it shows is what was collected, from staging, a directory and a network
// alike; it reads little, and never gives out a wrong byte.

import { mkdirSync, readFileSync, readdirSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { linkSync, truncateSync, writeSync, openSync, closeSync, lstatSync } from 'node:fs'
import { suite } from 'uvu'
import { OP } from '../../lib/machine/fuse-protocol.ts'
import { readIdentityFile } from '../../lib/machine/identity.ts'
import { loadConfiguration } from '../../lib/machine/config.ts'
import type { Entry } from '../../lib/model/entry.ts'
import { rawPathToBytes } from '../../lib/model/raw-path.ts'
import type { Shard } from '../../lib/model/shard.ts'
import { openDirectoryTarget } from '../../lib/target/directory.ts'
import type { Target } from '../../lib/target/target.ts'
import { View } from '../../lib/work/browse.ts'
import { ExportTree } from '../../lib/work/browse-export.ts'
import { PieceReader } from '../../lib/work/browse-pieces.ts'
import { StagedTree } from '../../lib/work/browse-staging.ts'
import { ExportReader } from '../../lib/work/export-reader.ts'
import { FuseView } from '../../lib/work/fuse-view.ts'
import { exportsOf, findRepository, listStamps, readManifest } from '../../lib/work/repository.ts'
import { openSigner } from '../../lib/work/signing.ts'
import {
  type ViewNode,
  type ViewTree,
  impliedDirectory,
  listAll,
} from '../../lib/work/view-node.ts'
import * as assert from '../helpers/assert.ts'
import { failureOf } from '../helpers/failure.ts'
import { networkTarget } from '../helpers/network-target.ts'
import { randomFrom } from '../helpers/random.ts'
import { type Scenario, exportStamps, makeScenario, setDirectory } from '../helpers/scenario.ts'

const browse = suite('work/browse')
const random = randomFrom('browse')
const MIB = 1024 * 1024

let scenario: Scenario
let stamp: string

browse.before(async () => {
  scenario = await makeScenario()
  const { source } = scenario
  for (const directory of ['a/deep/er', 'ab', 'many', 'odd']) {
    mkdirSync(`${source}/${directory}`, { recursive: true })
  }
  for (let i = 0; i < 900; i++) writeFileSync(`${source}/many/${i}`, `${i}`)
  for (let i = 0; i < 40; i++) {
    mkdirSync(`${source}/trees/${i}`, { recursive: true })
    for (let j = 0; j < 30; j++) writeFileSync(`${source}/trees/${i}/${j}`, '')
  }
  writeFileSync(`${source}/a/deep/er/file`, 'deep')
  linkSync(`${source}/a/deep/er/file`, `${source}/ab/link`)
  symlinkSync('deep/er/file', `${source}/a/symlink`)
  writeFileSync(rawPathToBytes(`${source}/odd/\xff\xfe`), 'no text')
  writeFileSync(`${source}/odd/new\nline`, 'two lines')
  writeFileSync(`${source}/big`, random.bytes(12 * MIB))
  writeFileSync(`${source}/sparse`, 'begin')
  truncateSync(`${source}/sparse`, 3 * MIB)
  const fd = openSync(`${source}/sparse`, 'r+')
  writeSync(fd, 'end', 2 * MIB + 17)
  closeSync(fd)
  const exported = await scenario.generation()
  stamp = exported.stamp
})

/** Where the source is in a tree. */
const inTree = (): string => scenario.source.slice(1)

async function exportTree(
  target: Target = openDirectoryTarget({
    ...{ name: 'drive', path: scenario.target, mustBeMounted: false },
  }),
): Promise<ExportTree> {
  const repository = (await findRepository(target))!
  const { configuration: path, home } = scenario
  const environment = { HOME: home }
  const of = { path, environment, home, hostName: 'tester' }
  const { publicKey } = await openSigner(await loadConfiguration(of))
  const askPassphrase = (): never => {
    throw new Error('it has none')
  }
  const { identities } = await readIdentityFile({ path: scenario.identity, askPassphrase })
  const [place] = exportsOf(await listStamps(repository, 'tester'))
  const manifest = await readManifest(repository, place!, { publicKeys: [publicKey], identities })
  const reader = new ExportReader({ repository, manifest, identities })
  return new ExportTree({ reader, pieces: new PieceReader({ target, identities }) })
}

function remote() {
  return networkTarget({ path: scenario.target, spool: `${scenario.directory}/spool` })
}

async function contentOf(tree: ViewTree, path: string): Promise<Buffer> {
  const file = (await tree.open(path))!
  try {
    return await file.read(0, file.sizeBytes)
  } finally {
    file.close()
  }
}

/** Everything below a directory: type, mode, time, size or target. */
async function walk(tree: ViewTree, directory: string): Promise<string[]> {
  const lines: string[] = []
  for await (const node of listAll(tree, directory)) {
    lines.push(lineOf(node))
    const again = await tree.lookup(node.path)
    assert.is(lineOf(again!), lineOf(node), 'a lookup finds what the list has')
    if (node.metadata.type === 'directory') lines.push(...(await walk(tree, node.path)))
  }
  return lines
}

function lineOf({ path, metadata }: ViewNode): string {
  const { type, mode, mtimeNs, size, target } = metadata
  return [path, type, mode.toString(8), mtimeNs, size ?? '', target ?? ''].join(' ')
}

/** The same as the system tells it. */
function walkSource(directory: string, below: string): string[] {
  return readdirSync(Buffer.from(directory, 'latin1'), { encoding: 'latin1' })
    .sort()
    .flatMap((name) => {
      const path = `${directory}/${name}`
      const stat = lstatSync(rawPathToBytes(path), { bigint: true })
      const kind = stat.isDirectory() ? 'directory' : stat.isSymbolicLink() ? 'symlink' : 'file'
      const words = [`${below}/${name}`, kind, (stat.mode & 0o7777n).toString(8), stat.mtimeNs]
      const size = kind === 'file' ? stat.size : ''
      const line = [...words, size, kind === 'symlink' ? 'deep/er/file' : ''].join(' ')
      return kind === 'directory' ? [line, ...walkSource(path, `${below}/${name}`)] : [line]
    })
}

browse('shows what was collected, from staging, a directory and a network alike', async () => {
  const expected = walkSource(scenario.source, inTree())
  assert.ok(expected.length > 2000, 'several shards')
  const staged = new StagedTree(`${scenario.staging}/data/${stamp}`)
  for (const tree of [staged, await exportTree(), await exportTree(remote())]) {
    assert.equal(await walk(tree, inTree()), expected)
    for (const name of ['a/deep/er/file', 'ab/link', 'odd/\xff\xfe', 'odd/new\nline', 'sparse']) {
      const there = readFileSync(rawPathToBytes(`${scenario.source}/${name}`))
      assert.ok((await contentOf(tree, `${inTree()}/${name}`)).equals(there), name)
    }
    const one = await tree.lookup(`${inTree()}/a/deep/er/file`)
    const other = await tree.lookup(`${inTree()}/ab/link`)
    assert.is(one!.file, other!.file, 'two names of one file')
    assert.is(await tree.lookup(`${inTree()}/a/dee`), undefined)
    assert.is(await tree.lookup(`${inTree()}/a/deep/er/file/x`), undefined)
    assert.is(await tree.open(`${inTree()}/a`), undefined, 'a directory is no file')
    tree.close()
  }
})

browse('any run of bytes is what the file has there, also when many are read at once', async () => {
  for (const target of [undefined, remote()]) {
    const tree = await exportTree(target)
    const names = ['big', 'sparse', 'many/7', 'a/deep/er/file']
    await Promise.all(
      Array.from({ length: 60 }, async (_, i) => {
        const name = names[i % names.length]!
        const whole = readFileSync(`${scenario.source}/${name}`)
        const offset = random.integer(whole.length + 10)
        const length = random.integer(MIB)
        const file = (await tree.open(`${inTree()}/${name}`))!
        const bytes = await file.read(offset, length)
        assert.ok(bytes.equals(whole.subarray(offset, offset + length)), `${name} from ${offset}`)
      }),
    )
    tree.close()
  }
})

browse('over a network one small file costs a few requests, and no whole bundle', async () => {
  const target = remote()
  const tree = await exportTree(target)
  target.calls.length = 0
  assert.is(String(await contentOf(tree, `${inTree()}/many/500`)), '500')
  const ranges = target.calls.filter((call) => call.startsWith('readRange'))
  // The catalog bundle's head, index and shard; the data bundle's head and the frame.
  assert.ok(ranges.length <= 6, target.calls.join('\n'))
  await contentOf(tree, `${inTree()}/many/501`)
  assert.is(target.calls.filter((call) => call.startsWith('readRange')).length, ranges.length)
  const file = (await tree.open(`${inTree()}/big`))!
  target.calls.length = 0
  for (let at = 0; at < 12 * MIB; at += 128 * 1024) await file.read(at, 128 * 1024)
  const asked = target.calls.filter((call) => call.startsWith('readRange')).length
  assert.ok(asked <= 8, `${asked} requests for a file that is read on`)
  tree.close()
})

/** The one with the large file. */
function largestBundle(directory: string): string {
  const names = readdirSync(directory).filter((name) => name.startsWith('data-'))
  const size = (name: string): number => statSync(`${directory}/${name}`).size
  return `${directory}/${names.sort((a, b) => size(b) - size(a))[0]}`
}

browse('a flipped bit costs the pieces it is in, and no wrong byte is given out', async () => {
  const bundle = largestBundle(`${setDirectory(scenario)}/${exportStamps(scenario)[0]}`)
  const bytes = readFileSync(bundle)
  const middle = Math.floor(bytes.length / 2)
  const write = (byte: number): void => {
    const fd = openSync(bundle, 'r+')
    writeSync(fd, Buffer.from([byte]), 0, 1, middle)
    closeSync(fd)
  }
  write(bytes[middle]! ^ 1)
  try {
    for (const target of [undefined, remote()]) {
      const tree = await exportTree(target)
      const error = await failureOf(async () => await contentOf(tree, `${inTree()}/big`))
      assert.is(error.exitCode, 13, error.message)
      const whole = readFileSync(`${scenario.source}/big`)
      const file = (await tree.open(`${inTree()}/big`))!
      assert.ok((await file.read(0, 1000)).equals(whole.subarray(0, 1000)), 'another piece')
      assert.is(String(await contentOf(tree, `${inTree()}/a/deep/er/file`)), 'deep')
      let good = 0
      for (let at = 0; at < whole.length; at += MIB) {
        const part = await file.read(at, MIB).catch(() => undefined)
        if (part === undefined) continue
        assert.ok(part.equals(whole.subarray(at, at + MIB)))
        good += 1
      }
      assert.ok(good > 4 && good < 12, `${good} of 12 MiB can be read`)
      tree.close()
    }
  } finally {
    write(bytes[middle]!)
  }
})

browse(
  'sets, stamps and `latest` lead to the trees; each is opened when it is looked into',
  async () => {
    const opened: string[] = []
    const generations = ['a', 'b'].flatMap((set) =>
      ['2025-01-01T000000Z', '2025-01-02T000000Z', '2025-01-03T000000Z'].map((one) => {
        return { machine: 'tester', set, stamp: one, isSuspect: one.startsWith('2025-01-03') }
      }),
    )
    const view = new View({
      generations,
      openTree: async (generation) => {
        opened.push(`${generation.set}/${generation.stamp}`)
        return await Promise.resolve(new StagedTree(`${scenario.staging}/data/${stamp}`))
      },
    })
    const names = async (path: string): Promise<string[]> => {
      const found: string[] = []
      for await (const node of listAll(view, path)) found.push(node.path)
      return found
    }
    assert.equal(await names(''), ['a', 'b'])
    assert.equal((await names('a')).slice(-2), ['a/2025-01-03T000000Z', 'a/latest'])
    const latest = await view.lookup('a/latest')
    assert.is(latest!.metadata.target, '2025-01-02T000000Z', 'a suspect one is passed by')
    const root = await view.lookup('a/2025-01-02T000000Z')
    assert.is(root!.metadata.mtimeNs, BigInt(Date.parse('2025-01-02T00:00:00Z')) * 1_000_000n)
    assert.is(String(root!.xattrs().get('user.backup.set')), 'a')
    assert.equal(opened, [])
    assert.is(await view.lookup('c'), undefined)
    assert.is(await view.lookup('a/2025'), undefined)
    const path = `b/2025-01-01T000000Z/${inTree()}/many/3`
    assert.is((await view.lookup(path))!.path, path)
    assert.equal(opened, ['b/2025-01-01T000000Z'])
    view.close()
  },
)

browse('staging is not left through a link in it', async () => {
  const tree = new StagedTree(`${scenario.staging}/data/${stamp}`)
  const link = `${scenario.staging}/data/${stamp}/${inTree()}/a/out`
  symlinkSync('/etc', link)
  assert.is((await tree.lookup(`${inTree()}/a/out`))!.metadata.type, 'symlink')
  assert.is(await tree.lookup(`${inTree()}/a/out/passwd`), undefined)
  assert.is(await tree.open(`${inTree()}/a/out/passwd`), undefined)
  assert.equal(await tree.list(`${inTree()}/a/out`, { after: undefined, limit: 9 }), [])
  assert.ok(statSync(link).isDirectory())
})

/** A tree over shards that nobody wrote, and how many of them were read. */
function madeTree(shards: readonly (readonly Partial<Entry>[])[]) {
  const reads: number[] = []
  const whole = shards.map((entries): Shard => {
    const common = { type: 'file', mode: 0o644, uid: 0, gid: 0, mtimeNs: 0n, size: 0 }
    return { bundles: [], entries: entries.map((entry) => ({ ...common, ...entry }) as Entry) }
  })
  const index = whole.map(({ entries }, i) => ({ first: entries[0]!.path, tar: [i, 1000] }))
  const reader = {
    target: { access: 'files' },
    manifest: { stamp: '2025-01-01T000000Z' },
    index: async () => await Promise.resolve(index),
    shards: async function* (places: typeof index) {
      for (const place of places) {
        reads.push(place.tar[0] as number)
        yield { place, shard: whole[place.tar[0] as number]! }
      }
    },
    bundleAddress: () => '',
    close: () => undefined,
  } as unknown as ExportReader
  const pieces = undefined as unknown as PieceReader
  return { tree: new ExportTree({ reader, pieces }), reads }
}

const files = (...paths: string[]) => paths.map((path) => ({ path }))

browse('a list skips the shards of what lies below its directories', async () => {
  const { tree, reads } = madeTree([
    files('a/1', 'a/2'),
    files('a/3', 'a/4'),
    files('a/5', 'a/6'),
    files('a/7', 'a/8/x'),
    files('a0', 'b/c/d'),
  ])
  const nodes = await tree.list('', { after: undefined, limit: 100 })
  assert.equal(
    nodes.map(({ path, metadata }) => [path, metadata.type]),
    [
      ['a', 'directory'],
      ['a0', 'file'],
      ['b', 'directory'],
    ],
    'directories that no entry names are implied',
  )
  assert.equal(reads, [0, 3, 4])
  assert.is((await tree.lookup('a/8'))!.metadata.type, 'directory')
  assert.is(await tree.lookup('a/9'), undefined)
})

browse('unsafe names are not shown, and a list of a catalog out of order ends', async () => {
  const { tree } = madeTree([files('a', 'b/../../etc/passwd', 'b/x', `c${'c'.repeat(300)}`)])
  const names = async (of: ExportTree, path: string) => {
    return (await of.list(path, { after: undefined, limit: 9 })).map((node) => node.path)
  }
  assert.equal(await names(tree, ''), ['a', 'b'])
  assert.equal(await names(tree, 'b'), ['b/x'])
  const broken = madeTree([files('a', 'c', 'b', 'c')]).tree
  const error = await failureOf(async () => await names(broken, ''))
  assert.is(error.code, 'CATALOG_DAMAGED')
})

browse('a link to a file that is not there is seen, and cannot be opened', async () => {
  const { tree } = madeTree([[{ path: 'a', type: 'link', target: 'gone' }, { path: 'b' }]])
  const nodes = await tree.list('', { after: undefined, limit: 9 })
  assert.equal(
    nodes.map(({ metadata }) => metadata.type),
    ['file', 'file'],
  )
  assert.is((await failureOf(async () => await tree.open('a'))).code, 'CATALOG_DAMAGED')
})

browse('a directory that fails to be listed never ends as if that were all of it', async () => {
  const damaged = Object.assign(new Error('EIO'), { code: 'EIO' })
  const view: ViewTree = {
    lookup: async (path) => await Promise.resolve(impliedDirectory({ path, mtimeNs: 0n })),
    list: async (_, { after }) => {
      if (after !== undefined) throw damaged
      return await Promise.resolve([impliedDirectory({ path: 'a', mtimeNs: 0n })])
    },
    open: async () => await Promise.resolve(undefined),
    close: () => undefined,
  }
  const shown = new FuseView({ view, tell: () => undefined })
  const ask = async (opcode: number, body: Buffer) =>
    await shown.answer({ opcode, unique: 1n, node: 1, body })
  const handle = ((await ask(OP.opendir, Buffer.alloc(8))) as Buffer).readBigUInt64LE(0)
  const readFrom = async (offset: number) => {
    const body = Buffer.alloc(40)
    body.writeBigUInt64LE(handle, 0)
    body.writeBigUInt64LE(BigInt(offset), 8)
    body.writeUInt32LE(4096, 16)
    return await ask(OP.readdir, body)
  }
  const first = await readFrom(0)
  assert.ok(Buffer.isBuffer(first) && first.length === 3 * 32, '., .. and a')
  for (let tries = 0; tries < 3; tries++) assert.is(await readFrom(3), 5, 'EIO')
  shown.close()
})

browse.run()
