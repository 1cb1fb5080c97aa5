import { Buffer } from 'node:buffer'
import { execFileSync, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import fs, {
  existsSync,
  readFileSync,
  readdirSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import { suite } from 'uvu'
import { BackupError, ERRORS } from '../../lib/errors.ts'
import { CHUNK_BYTES } from '../../lib/format/age.ts'
import { generateIdentity, recipientOf } from '../../lib/format/age-keys.ts'
import { encodePlainHeader, tarPadding } from '../../lib/format/tar.ts'
import { FRAME_MAX_BYTES, FRAME_TARGET_BYTES, padmeLength } from '../../lib/format/zstd-frames.ts'
import type { FrameRange } from '../../lib/model/entry.ts'
import { BundleReader } from '../../lib/work/bundle-reader.ts'
import { type BundleFacts, BundleWriter } from '../../lib/work/bundle-writer.ts'
import { BLOCK_BYTES, prove } from '../../lib/work/prove.ts'
import * as assert from '../helpers/assert.ts'
import { withFaults } from '../helpers/node-faults.ts'
import { randomFrom, randomOfRun } from '../helpers/random.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const bundles = suite('work/bundle')
const directory = tempDirectory()
const identity = generateIdentity()
const recipients = [recipientOf(identity)]
const MIB = 2 ** 20
let files = 0

const newPath = (): string => join(directory, `bundle-${++files}.age`)
const newWriter = (): BundleWriter => new BundleWriter({ recipients, level: 1 })
const shared = newWriter()
const noise = randomFrom('bundle').bytes(9 * MIB)

interface Bundle extends BundleFacts {
  readonly path: string
}

/** A bundle with `tar` in it, appended in parts of `partBytes`. */
function write(
  tar: Buffer,
  { partBytes = tar.length, writer = shared }: { partBytes?: number; writer?: BundleWriter } = {},
): Bundle {
  const path = newPath()
  writer.open(path)
  for (let at = 0; at < tar.length; at += partBytes) writer.append(tar.subarray(at, at + partBytes))
  return { ...finished(writer), path }
}

/** Ends a bundle and proves it. */
function finished(writer: BundleWriter): BundleFacts {
  const { file, ...facts } = writer.finish()
  prove(file)
  return facts
}

function reading<T>(path: string, use: (reader: BundleReader) => T, identities = [identity]): T {
  const reader = new BundleReader({ path, identities })
  try {
    return use(reader)
  } finally {
    reader.close()
  }
}

/** All of a bundle's tar, frame by frame. */
const tarOf = (reader: BundleReader, frames = reader.readFrames()): Buffer =>
  Buffer.concat(frames.map((frame) => Buffer.from(reader.readFrame(frame))))

const failureOf = (action: () => unknown): BackupError => {
  try {
    action()
  } catch (error) {
    if (error instanceof BackupError) return error
    throw error
  }
  throw new Error('it did not fail')
}

const END = Buffer.alloc(1024)

function checkBundle(bundle: Bundle, tar: Buffer): void {
  const stored = readFileSync(bundle.path)
  assert.is(stored.length, bundle.sizeBytes)
  assert.is(createHash('sha256').update(stored).digest('hex'), bundle.sha256)
  assert.is(bundle.tarBytes, tar.length + END.length)
  reading(bundle.path, (reader) => {
    assert.equal(reader.readFrames(), bundle.frames)
    assert.ok(tarOf(reader).equals(Buffer.concat([tar, END])), `${tar.length} bytes`)
    assert.is(padmeLength(reader.payloadBytes), reader.payloadBytes)
  })
  let at = 0
  for (const [tarOffset, tarLength] of bundle.frames) {
    assert.is(tarOffset, at)
    assert.ok(tarLength > 0 && tarLength <= FRAME_MAX_BYTES)
    at += tarLength
  }
  assert.is(at, bundle.tarBytes)
}

bundles('tar of every size around a limit comes back', () => {
  for (const limit of [
    0,
    512,
    CHUNK_BYTES,
    MIB,
    FRAME_TARGET_BYTES,
    FRAME_MAX_BYTES,
    2 * FRAME_MAX_BYTES,
  ]) {
    for (const size of [limit - 1025, limit - 1024, limit - 1023, limit - 1, limit, limit + 1]) {
      if (size < 0) continue
      checkBundle(write(noise.subarray(0, size)), noise.subarray(0, size))
      checkBundle(write(Buffer.alloc(size)), Buffer.alloc(size))
    }
  }
})

bundles('payloads that end with a chunk, before it and after it come back', () => {
  const seen = new Set<number>()
  for (let size = 0; size < 140_000; size += 700) {
    const bundle = write(noise.subarray(0, size))
    checkBundle(bundle, noise.subarray(0, size))
    seen.add(reading(bundle.path, ({ payloadBytes }) => payloadBytes))
  }
  for (const chunks of [1, 2]) {
    const full = chunks * CHUNK_BYTES
    assert.ok(seen.has(full), `no payload of ${full} bytes`)
    const sizes = [...seen].sort((a, b) => a - b)
    assert.ok(sizes.indexOf(full) > 0 && sizes.indexOf(full) < sizes.length - 1)
  }
})

bundles('it makes no difference in what parts the tar comes', () => {
  const tar = noise.subarray(0, FRAME_MAX_BYTES + 100_000)
  const whole = write(tar)
  for (const partBytes of [511, CHUNK_BYTES, 1_000_003, FRAME_MAX_BYTES]) {
    const { frames, tarBytes } = write(tar, { partBytes })
    assert.equal({ frames, tarBytes }, { frames: whole.frames, tarBytes: whole.tarBytes })
  }
})

bundles('frames are cut at the first boundary after 2 MiB, and at 4 MiB', () => {
  const writer = newWriter()
  const cutAt = (members: readonly number[]): number[] => {
    writer.open(newPath())
    for (const size of members) {
      writer.boundary()
      writer.append(noise.subarray(0, size))
    }
    return finished(writer).frames.map(([, tarLength]) => tarLength)
  }
  assert.equal(cutAt([FRAME_TARGET_BYTES - 1, 512]), [FRAME_TARGET_BYTES - 1 + 512 + 1024])
  assert.equal(cutAt([FRAME_TARGET_BYTES, 512]), [FRAME_TARGET_BYTES, 512 + 1024])
  assert.equal(cutAt([512, FRAME_MAX_BYTES - 512, 512]), [FRAME_MAX_BYTES, 512 + 1024])
  assert.equal(cutAt([512, FRAME_MAX_BYTES, 512]), [FRAME_MAX_BYTES, 512 + 512 + 1024])
  assert.equal(cutAt([FRAME_MAX_BYTES - 1024]), [FRAME_MAX_BYTES])
  assert.equal(cutAt([FRAME_MAX_BYTES - 512]), [FRAME_MAX_BYTES, 512])
})

bundles('any run of tar can be read, alone and after any other', () => {
  const random = randomOfRun('runs')
  const tar = noise.subarray(0, 9 * MIB)
  const bundle = write(tar)
  const whole = Buffer.concat([tar, END])
  reading(bundle.path, (reader) => {
    for (let round = 0; round < 150; round++) {
      const offset = random.integer(whole.length)
      const length = Math.min(
        random.integer(random.pick([2, 600, 100_000, 4 * MIB])),
        whole.length - offset,
      )
      const found = reader.readTar(bundle.frames, { offset, length })
      assert.ok(
        found.equals(whole.subarray(offset, offset + length)),
        `${length} bytes from ${offset}`,
      )
      const parts: Buffer[] = []
      reader.forEachPart(bundle.frames, { offset, length }, (part) => parts.push(Buffer.from(part)))
      assert.ok(Buffer.concat(parts).equals(found))
    }
  })
})

bundles('bug: a run of tar in more than two frames is not what was written', () => {
  const bundle = write(noise)
  assert.ok(bundle.frames.length > 2)
  const found = reading(bundle.path, (reader) =>
    Buffer.from(reader.readTar(bundle.frames, { offset: 0, length: noise.length })),
  )
  assert.ok(found.equals(noise))
})

bundles('refuses a run that its frames do not hold', () => {
  const bundle = write(noise.subarray(0, 9 * MIB))
  const [a, b, c] = bundle.frames
  assert.ok(a !== undefined && b !== undefined && c !== undefined)
  const codeOf = (frames: readonly FrameRange[], offset: number, length: number): string =>
    failureOf(() => reading(bundle.path, (reader) => reader.readTar(frames, { offset, length })))
      .code
  assert.is(codeOf([], 0, 1), 'BUNDLE_DAMAGED')
  assert.is(codeOf([b], 0, 1), 'BUNDLE_DAMAGED')
  assert.is(codeOf([a, c], 0, 9 * MIB), 'BUNDLE_DAMAGED')
  assert.is(codeOf(bundle.frames, 9 * MIB, 1025), 'BUNDLE_DAMAGED')
  assert.is(codeOf([[0, c[1] + 1, c[2], c[3]]], 0, 1), 'ZSTD_DAMAGED', 'a frame that claims more')
  assert.is(codeOf([[0, 10, a[2], a[3]]], 0, 1), 'ZSTD_DAMAGED', 'a frame that claims less')
  assert.is(codeOf([[0, a[1], a[2] + 1, a[3]]], 0, 1), 'ZSTD_DAMAGED', 'a frame elsewhere')
  assert.is(codeOf([[0, 10, 2 ** 40, 10]], 0, 1), 'BUNDLE_DAMAGED', 'a frame outside the file')
})

const run = (command: string): Buffer =>
  execFileSync('bash', ['-o', 'pipefail', '-c', command], {
    cwd: directory,
    maxBuffer: 2 ** 27,
    stdio: ['ignore', 'pipe', 'pipe'],
  })

bundles('stock age, zstd and tar read it', () => {
  writeFileSync(join(directory, 'identity'), `${identity}\n`, { mode: 0o600 })
  const writer = newWriter()
  const path = newPath()
  writer.open(path)
  const sizes = [0, 1, 511, 512, 513, 70_000, 5 * MIB]
  for (const [i, size] of sizes.entries()) {
    writer.boundary()
    writer.append(encodePlainHeader({ path: `file-${i}`, sizeBytes: size }))
    writer.append(noise.subarray(i, i + size))
    writer.append(Buffer.alloc(tarPadding(size)))
  }
  finished(writer)
  const open = `age -d -i identity ${path} | zstd -dc`
  assert.is(run(`${open} | tar -t`).toString(), sizes.map((_, i) => `file-${i}\n`).join(''))
  for (const [i, size] of sizes.entries()) {
    assert.ok(run(`${open} | tar -xO file-${i}`).equals(noise.subarray(i, i + size)))
  }
  run(`age -d -i identity ${path} | zstd -tq && ${open} | bsdtar -tf -`)
  assert.is(statSync(path).mode & 0o777, 0o600)
})

bundles('it opens for each of its recipients, and for nobody else', () => {
  const other = generateIdentity()
  const writer = new BundleWriter({ recipients: [...recipients, recipientOf(other)], level: 1 })
  const bundle = write(noise.subarray(0, 1000), { writer })
  for (const one of [identity, other]) {
    assert.ok(reading(bundle.path, tarOf, [one]).subarray(0, 1000).equals(noise.subarray(0, 1000)))
  }
  const stranger = (): unknown => reading(bundle.path, tarOf, [generateIdentity()])
  assert.is(failureOf(stranger).code, 'IDENTITY_WRONG')
})

bundles('two bundles of the same have nothing in common', () => {
  const [a, b] = [write(Buffer.alloc(5000)), write(Buffer.alloc(5000))].map(({ path }) =>
    readFileSync(path),
  )
  assert.is(a!.length, b!.length)
  assert.not.ok(a!.subarray(250, 282).equals(b!.subarray(250, 282)))
})

bundles('a byte that is turned anywhere is detected, and spoils no frame that it is not in', () => {
  const random = randomOfRun('turned')
  const writer = newWriter()
  const path = newPath()
  writer.open(path)
  for (let i = 0; i < 6; i++) {
    writer.append(noise.subarray(i * 50_000, (i + 1) * 50_000))
    writer.endFrame()
  }
  const bundle = { ...finished(writer), path }
  const good = readFileSync(path)
  const tar = Buffer.concat([noise.subarray(0, 300_000), END])
  const headBytes = reading(path, (reader) => reader.headBytes)
  const places = Array.from({ length: headBytes }, (_, i) => i)
  for (let at = headBytes; at < good.length; at += CHUNK_BYTES + 16) {
    places.push(at - 1, at, at + 1, at - 16, at - 17)
  }
  places.push(good.length - 1, good.length - 16, good.length - 17)
  for (let i = 0; i < 150; i++) places.push(random.integer(good.length))
  for (const at of places) {
    const bad = Buffer.from(good)
    bad[at]! ^= 1 << random.integer(8)
    writeFileSync(path, bad)
    const isHead = at < headBytes
    const opened = outcome(() => new BundleReader({ path, identities: [identity] }))
    if (isHead) {
      // Turning a letter of the header is noticed at once; of the nonce after it, with the first
      // chunk.
      if (!(opened instanceof BundleReader)) continue
      const all = outcome(() => opened.readPayload(0, opened.payloadBytes))
      opened.close()
      assert.ok(all instanceof BackupError, `byte ${at} of the head was turned unnoticed`)
      continue
    }
    assert.ok(opened instanceof BundleReader, `byte ${at}`)
    const whole = outcome(() => opened.readPayload(0, opened.payloadBytes))
    assert.ok(
      whole instanceof BackupError && whole.code === 'AGE_PAYLOAD',
      `byte ${at} was turned unnoticed`,
    )
    const chunk = Math.floor((at - headBytes) / (CHUNK_BYTES + 16))
    for (const frame of bundle.frames) {
      const [tarOffset, tarLength, offset, length] = frame
      const inChunk =
        Math.floor(offset / CHUNK_BYTES) <= chunk
        && chunk <= Math.floor((offset + length - 1) / CHUNK_BYTES)
      const found = outcome(() => opened.readFrame(frame))
      if (inChunk)
        assert.ok(found instanceof BackupError, `byte ${at}: a frame of its chunk was given out`)
      else
        assert.ok(
          Buffer.isBuffer(found) && found.equals(tar.subarray(tarOffset, tarOffset + tarLength)),
          `${at}`,
        )
    }
    opened.close()
  }
})

/** What an action gives, or the BackupError that it throws. */
function outcome<T>(action: () => T): T | BackupError {
  try {
    return action()
  } catch (error) {
    if (error instanceof BackupError && error.code in ERRORS) return error
    throw error
  }
}

bundles('a bundle that is cut short, or longer than it was, is detected', () => {
  const { path } = write(noise.subarray(0, 200_000))
  const good = readFileSync(path)
  const random = randomOfRun('cut')
  const lengths = [
    0,
    1,
    21,
    100,
    199,
    200,
    216,
    217,
    300,
    65_536,
    65_752,
    good.length - 1,
    good.length - 16,
    good.length - 17,
    ...Array.from({ length: 40 }, () => random.integer(good.length)),
  ]
  for (const length of lengths) {
    writeFileSync(path, good)
    truncateSync(path, length)
    failureOf(() => reading(path, (reader) => tarOf(reader)))
  }
  for (const more of [1, 16, 17, CHUNK_BYTES + 16]) {
    writeFileSync(path, Buffer.concat([good, Buffer.alloc(more)]))
    failureOf(() => reading(path, (reader) => tarOf(reader)))
  }
})

bundles('chunks that changed places are detected', () => {
  const { path } = write(noise.subarray(0, 300_000))
  const bytes = readFileSync(path)
  const at = reading(path, ({ headBytes }) => headBytes)
  const sealed = CHUNK_BYTES + 16
  const first = Buffer.from(bytes.subarray(at, at + sealed))
  bytes.copyWithin(at, at + sealed, at + 2 * sealed)
  first.copy(bytes, at + sealed)
  writeFileSync(path, bytes)
  const error = failureOf(() => reading(path, (reader) => reader.readPayload(0, 1)))
  assert.is(error.code, 'AGE_PAYLOAD')
})

bundles('a missing file is told from a damaged one, and no link is followed', () => {
  assert.is(failureOf(() => reading(join(directory, 'none'), tarOf)).code, 'BUNDLE_MISSING')
  const link = newPath()
  symlinkSync(write(Buffer.alloc(1)).path, link)
  assert.is(failureOf(() => reading(link, tarOf)).code, 'BUNDLE_DAMAGED')
  assert.is(failureOf(() => reading(directory, tarOf)).code, 'BUNDLE_DAMAGED')
  const text = newPath()
  writeFileSync(text, 'this is no age file\n'.repeat(500))
  assert.is(failureOf(() => reading(text, tarOf)).code, 'AGE_HEADER')
})

bundles('bug: a bundle for more recipients than fit in 4 KiB of header cannot be read', () => {
  const many = Array.from({ length: 60 }, () => recipientOf(generateIdentity()))
  const writer = new BundleWriter({ recipients: [...many, ...recipients], level: 1 })
  const bundle = write(noise.subarray(0, 5000), { writer })
  assert.ok(
    reading(bundle.path, (reader) => tarOf(reader))
      .subarray(0, 5000)
      .equals(noise.subarray(0, 5000)),
  )
})

bundles('a name that is taken, by a link too, is not written to', () => {
  const writer = newWriter()
  const path = newPath()
  writeFileSync(path, 'mine')
  assert.is(failureOf(() => writer.open(path)).code, 'TARGET_FAILED')
  assert.is(readFileSync(path, 'utf8'), 'mine')
  const link = newPath()
  const victim = newPath()
  symlinkSync(victim, link)
  assert.is(failureOf(() => writer.open(link)).code, 'TARGET_FAILED')
  assert.not.ok(existsSync(victim))
  assert.not.ok(writer.isOpen)
  checkBundle(write(noise.subarray(0, 700), { writer }), noise.subarray(0, 700))
})

bundles('after abort the partial file is gone and the writer can be used again', () => {
  const writer = newWriter()
  for (const size of [0, 10, 3 * MIB, 5 * MIB]) {
    const path = newPath()
    writer.open(path)
    writer.append(noise.subarray(0, size))
    assert.ok(existsSync(path) && writer.isOpen)
    writer.abort()
    assert.not.ok(existsSync(path) || writer.isOpen)
    writer.abort()
    checkBundle(write(noise.subarray(0, 3000), { writer }), noise.subarray(0, 3000))
  }
})

bundles('sizes and frames so far are told while it is written', () => {
  const writer = newWriter()
  const path = newPath()
  writer.open(path)
  writer.append(noise.subarray(0, 100_000))
  assert.is(writer.tarBytes, 100_000)
  assert.equal(writer.frames, [])
  writer.endFrame()
  writer.endFrame()
  assert.is(writer.frames.length, 1)
  assert.ok(writer.sizeBytes > CHUNK_BYTES)
  const { sizeBytes } = finished(writer)
  assert.is(sizeBytes, statSync(path).size)
})

bundles('the medium is read back: any byte that changed behind our back is found', () => {
  const writer = newWriter()
  const close = fs.closeSync
  const { sizeBytes } = write(noise.subarray(0, 3 * MIB), { writer })
  const changes: Readonly<Record<string, (path: string) => void>> = {
    'a byte shorter': (path) => truncateSync(path, sizeBytes - 1),
    'a byte longer': (path) => truncateSync(path, sizeBytes + 1),
    empty: (path) => truncateSync(path, 0),
    'a block shorter': (path) => truncateSync(path, sizeBytes - MIB),
    ...Object.fromEntries(
      [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, sizeBytes - 1].map((at) => [
        `other at ${at}`,
        (path: string) => {
          const bytes = readFileSync(path)
          bytes[at]! ^= 1
          writeFileSync(path, bytes)
        },
      ]),
    ),
  }
  for (const [how, change] of Object.entries(changes)) {
    const path = newPath()
    writer.open(path)
    writer.append(noise.subarray(0, 3 * MIB))
    const { file } = writer.finish()
    let code: string | undefined
    let changed = false
    withFaults(
      {
        // The first file that is closed is the bundle, when all of it is written and synced.
        closeSync: (fd) => {
          close(fd)
          if (changed) return
          changed = true
          change(path)
        },
      },
      () => {
        code = failureOf(() => prove(file)).code
      },
    )
    assert.ok(changed && code === 'READ_BACK', `${how}: ${code}`)
    assert.not.ok(existsSync(path), `${how}: the partial file is there`)
  }
  checkBundle(write(noise.subarray(0, 3000), { writer }), noise.subarray(0, 3000))
})

bundles('files that end with a block are proven, and not when they are longer or shorter', () => {
  for (const size of [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES]) {
    for (const more of [0, 1, BLOCK_BYTES, -1]) {
      if (size + more < 0) continue
      const path = newPath()
      writeFileSync(path, noise.subarray(0, size + more))
      const sums = Array.from({ length: Math.ceil(size / BLOCK_BYTES) }, (_, i) =>
        crc32(noise.subarray(i * BLOCK_BYTES, Math.min(size, (i + 1) * BLOCK_BYTES))),
      )
      const file = { path, fd: fs.openSync(path, 'r+'), lengthBytes: size, sums }
      if (more === 0) prove(file)
      else assert.is(failureOf(() => prove(file)).code, 'READ_BACK', `${size} ${more}`)
    }
  }
})

bundles('a bundle is synced, then closed, then read back, and nothing stays open', () => {
  const calls: string[] = []
  const original = { ...fs }
  const noting = <T extends (...words: never[]) => unknown>(name: string, real: T): T =>
    ((...words: never[]) => {
      calls.push(name)
      return real(...words)
    }) as unknown as T
  const writer = newWriter()
  withFaults(
    {
      openSync: noting('open', original.openSync),
      fsyncSync: noting('sync', original.fsyncSync),
      closeSync: noting('close', original.closeSync),
      readSync: noting('read', original.readSync),
      writeSync: noting('write', original.writeSync),
    },
    () => {
      writer.open(newPath())
      writer.append(noise.subarray(0, 2 * MIB))
      finished(writer)
    },
  )
  const lastWrite = calls.lastIndexOf('write')
  assert.equal(calls.slice(lastWrite, lastWrite + 3), ['write', 'sync', 'close'])
  assert.ok(calls.indexOf('read') > lastWrite + 2)
  const count = (name: string): number => calls.filter((call) => call === name).length
  assert.is(count('open'), count('close'))
})

bundles('short writes are continued, and a failed one says what it means', () => {
  const original = fs.writeSync as (
    fd: number,
    bytes: Buffer,
    at: number,
    length?: number,
  ) => number
  const writer = newWriter()
  withFaults(
    {
      writeSync: ((fd: number, bytes: Buffer, at: number) =>
        original(fd, bytes, at, Math.min(bytes.length - at, 77_777))) as typeof fs.writeSync,
    },
    () => checkBundle(write(noise.subarray(0, 3 * MIB), { writer }), noise.subarray(0, 3 * MIB)),
  )
  for (const [system, code] of [
    ['ENOSPC', 'TARGET_FULL'],
    ['EDQUOT', 'TARGET_FULL'],
    ['EFBIG', 'TARGET_FULL'],
    ['EROFS', 'TARGET_READ_ONLY'],
    ['EIO', 'TARGET_FAILED'],
  ] as const) {
    const path = newPath()
    writer.open(path)
    withFaults(
      {
        writeSync: () => {
          throw Object.assign(new Error(system), { code: system })
        },
      },
      () =>
        assert.is(
          failureOf(() => {
            writer.append(noise)
            finished(writer)
          }).code,
          code,
        ),
    )
    writer.abort()
    assert.not.ok(existsSync(path))
  }
})

bundles('a failed sync is a failed bundle, and is not tried again', () => {
  const writer = newWriter()
  const path = newPath()
  writer.open(path)
  const { file } = writer.finish()
  let syncs = 0
  withFaults(
    {
      fsyncSync: () => {
        syncs += 1
        throw Object.assign(new Error('EIO'), { code: 'EIO' })
      },
    },
    () => assert.is(failureOf(() => prove(file)).code, 'TARGET_FAILED'),
  )
  assert.is(syncs, 1)
  assert.not.ok(existsSync(path))
})

bundles('abort after the end of a bundle leaves it alone, and its file open', () => {
  const writer = newWriter()
  const path = newPath()
  writer.open(path)
  const { file } = writer.finish()
  writer.abort()
  prove(file)
  assert.ok(existsSync(path))
})

bundles('bug: a bundle for a bad recipient leaves an open, empty partial file', () => {
  const path = newPath()
  const writer = new BundleWriter({ recipients: ['age1nonsense'], level: 1 })
  assert.is(failureOf(() => writer.open(path)).code, 'CONFIG_INVALID')
  writer.abort()
  assert.not.ok(existsSync(path))
  const open = readdirSync('/proc/self/fd').map((fd) => outcomeOfLink(`/proc/self/fd/${fd}`))
  assert.not.ok(open.includes(path))
})

function outcomeOfLink(path: string): string {
  try {
    return fs.readlinkSync(path)
  } catch {
    return ''
  }
}

bundles('bug: a pipe in the place of a bundle holds the reader up for ever', () => {
  const path = newPath()
  execFileSync('mkfifo', [path])
  const script = `
    import(${JSON.stringify(new URL('../../lib/work/bundle-reader.js', import.meta.url).href)})
      .then((module) => {
      try { new module.BundleReader({ path: ${JSON.stringify(path)}, identities: [] }) }
      catch (error) { process.stdout.write(error.code) }
    })`
  const child = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
    timeout: 5000,
    encoding: 'utf8',
  })
  assert.is(child.signal, null, 'it was stopped after 5 s')
  assert.is(child.stdout, 'BUNDLE_DAMAGED')
})

bundles.run()
