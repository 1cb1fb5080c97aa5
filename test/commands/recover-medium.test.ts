// `backup recover` from a drive whose filesystem is gone: bundles come back from the bytes of the
// medium, in pieces and out of order, and damage costs what it has to.

import { randomBytes } from 'node:crypto'
import {
  closeSync,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { spawnSync } from 'node:child_process'
import { suite } from 'uvu'
import { systemCode } from '../../lib/errors.ts'
import { encryptAge } from '../../lib/format/age.ts'
import { generateIdentity, recipientOf } from '../../lib/format/age-keys.ts'
import * as assert from '../helpers/assert.ts'
import { type DriveType, driveImage } from '../helpers/drive-image.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { randomFrom } from '../helpers/random.ts'
import type { Outcome } from '../helpers/run-cli.ts'
import {
  type Scenario,
  assertNoLeftovers,
  assertSameTree,
  configure,
  jsonLines,
  makeScenario,
  namesIn,
} from '../helpers/scenario.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const recover = suite('commands/recover-medium')
const asRoot = canRunAsRoot('recovery from real filesystems') ? recover : recover.skip
const [KIB, MIB] = [1024, 1024 * 1024]
const BLOCK = 4 * KIB

/** Two exports in bundles of about 4 MiB. */
const made = (async () => {
  const scenario = await makeScenario()
  await exported(scenario, '4 MiB')
  return scenario
})()

async function exported(scenario: Scenario, bundleSize: string): Promise<void> {
  const { source } = scenario
  configure(scenario, (c) => {
    c['targets'][0].bundle_size = bundleSize
  })
  writeFileSync(`${source}/big`, randomBytes(9 * MIB))
  for (const name of ['one', 'two', 'three']) writeFileSync(`${source}/${name}`, randomBytes(MIB))
  linkSync(`${source}/one`, `${source}/one-too`)
  mkdirSync(`${source}/letters`)
  for (let i = 0; i < 40; i++) writeFileSync(`${source}/letters/${i}`, `dear ${i}`)
  await scenario.generation()
  writeFileSync(`${source}/letters/0`, 'dearest')
  await scenario.generation()
}

interface Piece {
  readonly bytes: Buffer
  /** Of several of one file: in the order of the image. */
  readonly name: string
}

/** The files of a drive, as blocks on an image of which nothing else makes sense. */
function imageOf(target: string, cut: (piece: Piece) => readonly Piece[]): string {
  const random = randomFrom('image')
  const files = namesIn(target, /./).filter((name) => statSync(`${target}/${name}`).isFile())
  const pieces = files.flatMap((name) => {
    const bytes = readFileSync(`${target}/${name}`)
    const blocks = Buffer.concat([bytes, Buffer.alloc((BLOCK - (bytes.length % BLOCK)) % BLOCK)])
    return cut({ bytes: blocks, name })
  })
  const order = pieces
    .map((piece) => ({ piece, at: random.bytes(4).readUInt32LE() }))
    .sort((a, b) => a.at - b.at)
  const path = `${tempDirectory()}/image`
  const fd = openSync(path, 'wx')
  writeSync(fd, random.bytes(3 * BLOCK))
  for (const { piece } of order) {
    writeSync(fd, piece.bytes)
    writeSync(fd, random.bytes(BLOCK))
  }
  closeSync(fd)
  return path
}

const whole = (piece: Piece): readonly Piece[] => [piece]

async function from(
  image: string,
  { run, identity, source }: Scenario,
  ...words: readonly string[]
): Promise<Outcome & { readonly out: string; readonly tree: string }> {
  const out = `${tempDirectory()}/out`
  const more = ['--into', out, ...words]
  const outcome = await run('recover', '--from', image, '--identity', identity, ...more)
  return { ...outcome, out, tree: `${out}${source}` }
}

recover('of an image whose files nobody knows everything comes back, as signed', async () => {
  const scenario = await made
  const image = imageOf(scenario.target, whole)
  const before = readFileSync(image)
  const { run, identity } = scenario
  const listed = await run('recover', '--from', image, '--identity', identity, '--list')
  assert.is(listed.status, 0, listed.stderr)
  assert.is(listed.stdout.match(/^tester\/data\/\S+ .* signed$/gm)?.length, 2)
  const { status, stderr, out, tree } = await from(image, scenario)
  assert.is(status, 0, stderr)
  assertSameTree(tree, scenario.source)
  assertNoLeftovers(out)
  assert.ok(readFileSync(image).equals(before))
})

recover('bundles in pieces and out of order are put together', async () => {
  const scenario = await made
  // Where a piece ends has nothing to do with where a chunk does.
  const cut = ({ bytes, name }: Piece): readonly Piece[] => {
    if (!/data-.*\.age$/.test(name) || bytes.length < 4 * MIB) return [{ bytes, name }]
    const cuts = [0, 633 * BLOCK, 693 * BLOCK, 900 * BLOCK, bytes.length]
    return cuts.slice(1).map((end, i) => ({ bytes: bytes.subarray(cuts[i], end), name }))
  }
  const image = imageOf(scenario.target, cut)
  const { status, stderr, tree } = await from(image, scenario)
  assert.is(status, 0, stderr)
  assertSameTree(tree, scenario.source)
  const near = await from(image, scenario, '--search', '0')
  assert.is(near.status, 13, 'nothing was looked for')
  assert.match(near.stderr, /the bundle is cut short/)
  const letter = readFileSync(`${near.tree}/letters/0`, 'utf8')
  assert.is(letter, 'dearest')
})

recover('what is overwritten costs the files that lay there', async () => {
  const scenario = await made
  const image = imageOf(scenario.target, whole)
  const bytes = readFileSync(image)
  const bundle = readFileSync(`${scenario.target}/${largest(scenario.target)}`)
  const at = bytes.indexOf(bundle.subarray(0, 300)) + 2 * MIB
  bytes.fill(0, at, at + 5 * BLOCK)
  writeFileSync(image, bytes)
  const { status, stdout, stderr, tree } = await from(image, scenario, '--json')
  assert.is(status, 13, stderr)
  const [told] = jsonLines({ status, stdout, stderr }, 'result').filter(
    ({ what }) => what === 'restored',
  )
  assert.is(told?.['lost'].length, 1, stdout)
  assert.match(told?.['lost'][0].bundle, /image@\d+$/)
  assert.ok(readdirSync(`${tree}/letters`).length === 40)
})

recover('of an image that ends too early comes back what lies before', async () => {
  const scenario = await made
  const image = imageOf(scenario.target, whole)
  truncateSync(image, statSync(image).size - 3 * MIB)
  const { status, tree, stderr } = await from(image, scenario)
  assert.is(status, 13, stderr)
  assert.ok(namesIn(tree, /./).length > 0)
})

recover('what is of somebody else is named, and an image of nothing is refused', async () => {
  const scenario = await made
  const { run, identity } = scenario
  const foreign = encryptAge(randomBytes(1000), [recipientOf(generateIdentity())])
  const path = `${tempDirectory()}/image`
  writeFileSync(path, Buffer.concat([randomBytes(700), foreign, randomBytes(5000)]))
  const other = await run('recover', '--from', path, '--identity', identity, '--list')
  assert.is(other.status, 12, other.stderr)
  assert.match(other.stderr, 'the identity opens none of 1 files')
  writeFileSync(
    path,
    Buffer.concat([randomBytes(7000), Buffer.from('age-encryption.org/v1\n-> X')]),
  )
  const none = await run('recover', '--from', path, '--identity', identity, '--list')
  assert.is(none.status, 1, none.stderr)
  assert.match(none.stderr, /no bundle lies/)
  const wrong = await run(
    ...['recover', '--from', path, '--identity', identity, '--list', '--search', 'far'],
  )
  assert.is(wrong.status, 2)
})

for (const type of ['ext4', 'exfat', 'btrfs'] as const satisfies readonly DriveType[]) {
  asRoot(`a drive with ${type} whose filesystem is overwritten gives everything back`, async () => {
    const drive = driveImage({ label: `RAW${type}`, type, sizeMib: type === 'ext4' ? 600 : 256 })
    const target = tempDirectory()
    const program = type === 'exfat' ? 'mount.exfat-fuse' : 'mount'
    assert.is(spawnSync(program, [drive.device, target]).status, 0)
    if (type === 'ext4') leaveHoles(target)
    const scenario = await makeScenario({ target: `${target}/backup` })
    try {
      await exported(scenario, '4 MiB')
      const there = ['--into', `${target}/out`]
      const { run, identity } = scenario
      const words = ['recover', '--from', drive.device, '--identity', identity, ...there]
      const onItself = await run(...words)
      assert.is(onItself.status, 2, onItself.stderr)
      assert.match(onItself.stderr, /itself/)
      const onImage = await run(...words.with(2, drive.image))
      assert.is(onImage.status, 2, 'what is mounted is a loop device over it')
      assert.is(spawnSync('sync', ['-f', target]).status, 0)
    } finally {
      assert.is(spawnSync('umount', [target]).status, 0)
    }
    wipe(drive.device)
    assert.is.not(spawnSync(program, [drive.device, target]).status, 0)
    const { status, stderr, tree } = await from(drive.device, scenario)
    assert.is(status, 0, stderr)
    assertSameTree(tree, scenario.source)
    if (type === 'ext4') {
      const near = await from(drive.device, scenario, '--search', '0')
      assert.is(near.status, 13, 'it lay in pieces')
    }
    drive.detach()
  })
}

/** What is written now goes into the holes between files of 512 KiB. */
function leaveHoles(target: string): void {
  assert.is(spawnSync('fallocate', ['-l', '480M', `${target}/most`]).status, 0)
  mkdirSync(`${target}/filler`)
  const filler = randomBytes(512 * KIB)
  const written: string[] = []
  try {
    for (;;) {
      const name = `${target}/filler/${written.length}`
      writeFileSync(name, filler, { flush: true })
      written.push(name)
    }
  } catch (error) {
    assert.is(systemCode(error), 'ENOSPC')
  }
  for (const [i, name] of written.entries()) if (i % 2 === 0) rmSync(name)
}

/** The beginning, where each of them says what it is, and the copies of that. */
function wipe(device: string): void {
  const wiped = spawnSync('wipefs', ['--all', '--force', device])
  assert.is(wiped.status, 0, wiped.stderr.toString())
  const zeros = ['if=/dev/zero', `of=${device}`, 'bs=64K', 'conv=fsync,notrunc']
  assert.is(spawnSync('dd', [...zeros, 'count=1']).status, 0)
}

function largest(target: string): string {
  const sizes = namesIn(target, /data-.*\.age$/).map((name) => {
    return [name, statSync(`${target}/${name}`).size] as const
  })
  return sizes.sort((a, b) => b[1] - a[1])[0]![0]
}

recover.run()
