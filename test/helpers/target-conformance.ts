// What every target has to keep, whatever it is made of: the contract of lib/target/target.ts as
// sentences.
//
// conformance() registers one suite of them for a kind of target. Each sentence has a new target,
// made by the test, which can also look at the medium and change it behind the target's back.

import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import { closeSync, existsSync, fsyncSync, openSync, writeSync } from 'node:fs'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { asideName, type Target } from '../../lib/target/target.ts'
import * as assert from './assert.ts'
import { randomFrom } from './random.ts'

/** A target under test, and its medium from behind. */
export interface Subject {
  readonly target: Target
  /** What the medium has under a name; undefined where it has nothing. */
  readonly peek: (path: string) => Buffer | undefined
  /** Puts a file there without the target. */
  readonly plant: (path: string, bytes: Buffer) => void
  /** Puts a link there, to a directory elsewhere, whose path it gives; where there are links. */
  readonly plantLink?: (path: string) => string
  readonly close: () => Promise<void>
}

export interface Traits {
  /** An empty directory is something of its own. */
  readonly hasDirectories: boolean
  readonly knowsFreeBytes: boolean
  /** publish() goes on with what another process sent: tells how many bytes it sent after that. */
  readonly resume?: (subject: Subject, bytes: Buffer) => Promise<number>
}

export const MIB = 1024 * 1024

/** Every kind of character of docs/format.md §2, and a long name. */
const NAMES = [
  'RECOVER.txt',
  'recover.sh',
  'machines/a-b_c9/machine.json.minisig',
  'machines/m/home/2025-04-01T020000Z/data-0001.tar.zst.age.par2',
  'machines/m/home/2025-04-01T020000Z/manifest.tar.zst.age.damaged-2',
  `machines/${'m'.repeat(64)}/${'s'.repeat(64)}/latest`,
]

export function conformance(name: string, make: () => Promise<Subject>, traits: Traits): void {
  const sentences = suite(name)
  const check = (sentence: string, body: (subject: Subject) => Promise<void>): void => {
    sentences(sentence, async () => {
      const subject = await make()
      try {
        await body(subject)
      } finally {
        await subject.target.close()
        await subject.close()
      }
    })
  }
  const some = Buffer.from('some bytes')
  const other = Buffer.from('other byte')

  check('what is not there is undefined, and a list of it is empty', async ({ target }) => {
    assert.equal((await target.list('')) ?? [], [])
    assert.is(await target.list('machines/m'), undefined)
    assert.equal(await target.listTree('machines'), [])
    assert.is(await target.read('repository.json', 10), undefined)
    assert.is(await target.read('machines/m/latest', 10), undefined)
    assert.is(await target.readRange('machines/m/a', { offset: 0, length: 5 }), undefined)
    assert.is(await target.fileSize('machines/m/a'), undefined)
    assert.is(await target.fileSize('machines'), undefined)
  })

  check('every name of the format is written, read and listed', async ({ target, peek }) => {
    for (const path of NAMES) {
      await target.write(path, Buffer.from(path))
      assert.equal(peek(path), Buffer.from(path), path)
      assert.equal(await target.read(path, 200), Buffer.from(path))
    }
    const tree = await target.listTree('')
    assert.equal(
      tree.map((file) => file.name),
      [...NAMES].sort(),
    )
    assert.ok(tree.every((file) => file.kind === 'file'))
    assert.equal(
      tree.map((file) => file.sizeBytes),
      [...NAMES].sort().map((one) => one.length),
    )
  })

  check('a list is sorted and has files and directories', async ({ target }) => {
    for (const path of ['d/b', 'd/a', 'd/c/x', 'd/b.z', 'd/B']) await target.write(path, some)
    assert.equal(
      (await target.list('d'))?.map(({ name: file, kind }) => `${kind} ${file}`),
      ['file B', 'file a', 'file b', 'file b.z', 'directory c'],
    )
    assert.equal(
      (await target.listTree('d')).map(({ name: file }) => file),
      ['B', 'a', 'b', 'b.z', 'c/x'],
    )
    assert.equal(
      (await target.list(''))?.map((file) => file.name),
      ['d'],
    )
  })

  check('many files are listed, all of them, once', async ({ target, plant }) => {
    const names = Array.from({ length: 1200 }, (_, i) => `d/${String(i % 7)}/f${i}`)
    for (const path of names) plant(path, some)
    const found = (await target.listTree('d')).map((file) => `d/${file.name}`)
    assert.equal(found, [...names].sort())
    assert.is((await target.list('d'))?.length, 7)
  })

  check('write() overwrites nothing', async ({ target, peek }) => {
    await target.write('m/a', some)
    assert.is(await codeOf(async () => await target.write('m/a', other)), 'TARGET_FAILED')
    assert.equal(peek('m/a'), some)
    assert.is(peek('m/a.partial'), undefined)
    // The same bytes: over a network somebody may only have missed the answer.
    const again = await codeOf(async () => await target.write('m/a', some))
    assert.is(again, target.access === 'network' ? undefined : 'TARGET_FAILED')
  })

  check(
    'write() takes nothing at all, one byte, and more than a block',
    async ({ target, peek }) => {
      for (const sizeBytes of [0, 1, MIB - 1, MIB + 1]) {
        const bytes = randomFrom(`write ${sizeBytes}`).bytes(sizeBytes)
        await target.write(`m/${sizeBytes}`, bytes)
        assert.ok(peek(`m/${sizeBytes}`)?.equals(bytes), String(sizeBytes))
        assert.is(peek(`m/${sizeBytes}.partial`), undefined)
        assert.is(await target.fileSize(`m/${sizeBytes}`), sizeBytes)
      }
    },
  )

  check('what a killed write() left is in nobody’s way', async ({ target, peek, plant }) => {
    plant('m/a.partial', Buffer.from('half of something else'))
    await target.write('m/a', some)
    assert.equal(peek('m/a'), some)
  })

  check('read() stops at its limit', async ({ target }) => {
    await target.write('m/a', some)
    assert.equal(await target.read('m/a', some.length), some)
    const failed = await codeOf(async () => await target.read('m/a', some.length - 1))
    assert.is(failed, 'TARGET_FAILED')
  })

  check('readRange() gives what there is of a range', async ({ target, plant }) => {
    const bytes = randomFrom('range').bytes(3 * MIB)
    plant('m/a', bytes)
    plant('m/empty', Buffer.alloc(0))
    const range = async (offset: number, length: number): Promise<Buffer> => {
      const read = await target.readRange('m/a', { offset, length })
      assert.ok(read !== undefined)
      return read
    }
    const size = bytes.length
    for (const [offset, length] of [
      ...([
        [0, 1],
        [0, size],
        [MIB - 1, 2],
        [size - 1, 1],
        [1, size - 2],
      ] as const),
      // Past the end.
      ...([
        [size - 1, 2],
        [size, 1],
        [size + 5, 10],
        [0, size + MIB],
        [MIB, 3 * MIB],
      ] as const),
      ...([
        [5, 0],
        [size, 0],
      ] as const),
    ]) {
      const wanted = bytes.subarray(offset, offset + length)
      assert.ok((await range(offset, length)).equals(wanted), `${offset}+${length}`)
    }
    assert.is((await target.readRange('m/empty', { offset: 0, length: 9 }))?.length, 0)
  })

  check('ranges are read side by side', async ({ target, plant }) => {
    const bytes = randomFrom('side by side').bytes(2 * MIB)
    plant('m/a', bytes)
    const offsets = Array.from({ length: 24 }, (_, i) => i * 70_001)
    const parts = await Promise.all(
      offsets.map(async (offset) => await target.readRange('m/a', { offset, length: 5000 })),
    )
    for (const [i, offset] of offsets.entries()) {
      assert.ok(parts[i]?.equals(bytes.subarray(offset, offset + 5000)), String(offset))
    }
  })

  check('replace() overwrites', async ({ target, peek, plant }) => {
    plant('m/a', other)
    await target.replace('m/manifest', some)
    assert.equal(peek('m/manifest'), some)
    await target.replace('m/manifest', Buffer.from('less'))
    assert.equal(peek('m/manifest'), Buffer.from('less'))
    assert.equal(await target.read('m/manifest', 100), Buffer.from('less'))
    assert.equal(
      (await target.list('m'))?.map((file) => file.name),
      ['a', 'manifest'],
    )
  })

  for (const sizeBytes of [0, 1, MIB - 1, MIB, MIB + 1, 20 * MIB]) {
    check(`publish() gives ${sizeBytes} bytes their name`, async ({ target, peek }) => {
      const bytes = randomFrom(`publish ${sizeBytes}`).bytes(sizeBytes)
      const spooled = await spool(target, 'm/s/data-0001', bytes)
      assert.is(peek('m/s/data-0001'), undefined)
      await target.publish('m/s/data-0001')
      assert.ok(peek('m/s/data-0001')?.equals(bytes))
      assert.is(peek('m/s/data-0001.partial'), undefined)
      assert.not(existsSync(spooled))
      assert.is(await target.fileSize('m/s/data-0001'), sizeBytes)
      assert.equal(
        (await target.list('m/s'))?.map((file) => file.name),
        ['data-0001'],
      )
    })
  }

  check('several are published at once', async ({ target, peek }) => {
    const all = Array.from({ length: 9 }, (_, i) => randomFrom(`at once ${i}`).bytes(400_000 + i))
    for (const [i, bytes] of all.entries()) await spool(target, `m/s/data-${i}`, bytes)
    await Promise.all(all.map(async (_, i) => await target.publish(`m/s/data-${i}`)))
    for (const [i, bytes] of all.entries()) assert.ok(peek(`m/s/data-${i}`)?.equals(bytes))
  })

  check('publish() refuses a name that is taken', async ({ target, peek, plant }) => {
    plant('m/s/data-0001', other)
    const spooled = await spool(target, 'm/s/data-0001', some)
    assert.is(await codeOf(async () => await target.publish('m/s/data-0001')), 'TARGET_FAILED')
    assert.equal(peek('m/s/data-0001'), other)
    assert.ok(existsSync(spooled), 'what was to be sent is lost')
  })

  check('publish() over a network sends nothing that changed while it waited', async (subject) => {
    const { target, peek } = subject
    if (target.access === 'files') return
    for (const length of [9, 9 * MIB]) {
      const path = `m/s/data-${length}`
      const bytes = randomFrom(path).bytes(length)
      await spool(target, path, bytes)
      const sha256 = createHash('sha256').update(bytes).update('x').digest('hex')
      assert.is(await codeOf(async () => await target.publish(path, sha256)), 'READ_BACK')
      assert.is(peek(path), undefined)
      await target.publish(path, createHash('sha256').update(bytes).digest('hex'))
      assert.ok(peek(path)?.equals(bytes))
    }
  })

  check('publish() needs something to publish', async ({ target, peek }) => {
    await target.workDirectory('m/s')
    const failure = await failureOf(async () => await target.publish('m/s/data-0001'))
    assert.instance(failure, BackupError)
    assert.is(peek('m/s/data-0001'), undefined)
  })

  const { resume } = traits
  if (resume !== undefined) {
    check('publish() goes on where another process stopped', async (subject) => {
      const bytes = randomFrom('resume').bytes(24 * MIB)
      const sentBytes = await resume(subject, bytes)
      assert.ok(subject.peek('m/s/data-0001')?.equals(bytes))
      assert.ok(sentBytes < bytes.length, `${sentBytes} bytes were sent once more`)
    })
  }

  check('what lies aside has a name of its own', async ({ target, peek, plant }) => {
    for (const [number, bytes] of [some, other, Buffer.from('third')].entries()) {
      plant('m/manifest', bytes)
      const aside = await target.setAside('m/manifest')
      assert.is(aside, asideName('m/manifest', number + 1))
      assert.equal(peek(aside), bytes)
      assert.is(peek('m/manifest'), undefined)
    }
    assert.equal(peek('m/manifest.damaged'), some)
    assert.equal(peek('m/manifest.damaged-2'), other)
  })

  check('remove() removes one file, and minds none that is not there', async ({ target, peek }) => {
    await target.write('m/a', some)
    await target.write('m/a.b', some)
    await target.remove('m/a')
    await target.remove('m/a')
    await target.remove('nowhere/a')
    assert.is(peek('m/a'), undefined)
    assert.equal(peek('m/a.b'), some)
    // The name is free again.
    await target.write('m/a', other)
    assert.equal(await target.read('m/a', 100), other)
  })

  check('removeDirectory() keeps what has something in it', async ({ target, peek }) => {
    await target.write('m/s/a', some)
    await target.removeDirectory('m/s')
    await target.removeDirectory('m')
    assert.equal(peek('m/s/a'), some)
    await target.remove('m/s/a')
    await target.removeDirectory('m/s')
    await target.removeDirectory('m/s')
    assert.is(await target.list('m/s'), undefined)
    // What was remembered of it is forgotten.
    await target.write('m/s/b', other)
    assert.equal(peek('m/s/b'), other)
  })

  if (traits.hasDirectories) {
    check('an empty directory is listed', async ({ target, plant }) => {
      plant('d/e/f', some)
      await target.remove('d/e/f')
      assert.equal(await target.list('d/e'), [])
      const tree = await target.listTree('d')
      assert.equal(
        tree.map(({ name: file, kind }) => `${kind} ${file}`),
        ['directory e'],
      )
    })
  }

  check('free bytes are known, or nobody knows them', async ({ target }) => {
    const freeBytes = await target.freeBytes()
    if (traits.knowsFreeBytes) assert.ok((freeBytes ?? 0) > 0)
    else assert.is(freeBytes, undefined)
  })

  check('no link is followed', async ({ target, plantLink, plant, peek }) => {
    if (plantLink === undefined) return
    plant('m/real/a', some)
    const elsewhere = plantLink('m/linked')
    const isNothingThere = (): void => {
      for (const name of ['a', 'a.partial', 'n/a', 'b', 'n']) {
        assert.not(existsSync(`${elsewhere}/${name}`), name)
      }
      assert.ok(existsSync(`${elsewhere}/precious`))
    }
    const refused = ['TARGET_FOREIGN', 'TARGET_FAILED', 'TARGET_READ_ONLY']
    for (const action of [
      async () => await target.write('m/linked/a', some),
      async () => await target.write('m/linked/n/a', some),
      async () => await target.replace('m/linked/a', some),
      async () => await target.read('m/linked/precious', 100),
      async () => await target.readRange('m/linked/precious', { offset: 0, length: 1 }),
      async () => await target.list('m/linked'),
      async () => await target.remove('m/linked/precious'),
      async () => await target.setAside('m/linked/precious'),
    ]) {
      const code = await codeOf(action)
      assert.ok(refused.includes(code ?? ''), `${code}: ${action}`)
      isNothingThere()
    }
    const found = await target.list('m')
    assert.equal(
      found?.map(({ name: file, kind }) => `${kind} ${file}`),
      ['other linked', 'directory real'],
    )
    const tree = await target.listTree('m')
    assert.equal(
      tree.map(({ name: file }) => file),
      ['linked', 'real/a'],
    )
    // A link as the name itself, and as the temporary one.
    plantLink('m/real/b')
    assert.is(await target.fileSize('m/real/b'), undefined)
    assert.ok((await codeOf(async () => await target.write('m/real/b', some))) !== undefined)
    if (target.access === 'network') {
      plantLink('m/real/c.partial')
      await spool(target, 'm/real/c', some)
      assert.is(await codeOf(async () => await target.publish('m/real/c')), 'TARGET_FOREIGN')
      assert.is(peek('m/real/c'), undefined)
    }
    isNothingThere()
  })

  sentences.run()
}

/** Writes what is to be published, as a worker does; gives where. */
export async function spool(target: Target, path: string, bytes: Buffer): Promise<string> {
  const at = path.lastIndexOf('/')
  const directory = await target.workDirectory(path.slice(0, at))
  const spooled = `${directory}/${path.slice(at + 1)}.partial`
  const fd = openSync(spooled, 'w')
  for (let done = 0; done < bytes.length;) done += writeSync(fd, bytes, done)
  fsyncSync(fd)
  closeSync(fd)
  return spooled
}

export async function failureOf(action: () => Promise<unknown>): Promise<unknown> {
  try {
    await action()
    return undefined
  } catch (error) {
    return error
  }
}

/** The code of the BackupError that it throws; undefined where it throws nothing. */
export async function codeOf(action: () => Promise<unknown>): Promise<string | undefined> {
  const failure = await failureOf(action)
  if (failure === undefined) return undefined
  if (failure instanceof BackupError) return failure.code
  throw failure
}
