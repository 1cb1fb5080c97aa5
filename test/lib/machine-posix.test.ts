import { execFileSync } from 'node:child_process'
import {
  closeSync,
  fstatSync,
  ftruncateSync,
  lstatSync,
  mkdirSync,
  openSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { Worker } from 'node:worker_threads'
import { suite } from 'uvu'
import {
  dataSegments,
  deviceParts,
  getXattr,
  listXattrs,
  makeNode,
  removeXattr,
  setTimes,
  setXattr,
  syncFilesystem,
  tryLock,
} from '../../lib/machine/posix.ts'
import * as assert from '../helpers/assert.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const posix = suite('machine/posix')
const directory = tempDirectory()
const raw = `${directory}/n\xff\xfe\n'"`
const bytes = Buffer.from(raw, 'latin1')
writeFileSync(bytes, 'x')

posix('keeps binary extended attributes on a name that is not UTF-8', () => {
  assert.equal(listXattrs(raw), [])
  const value = Buffer.from([0, 255, 61, 10, 128])
  setXattr(raw, 'user.b', value)
  setXattr(raw, 'user.a', Buffer.alloc(0))
  setXattr(raw, 'user.caf\xc3\xa9', Buffer.from('1'))
  assert.equal(listXattrs(raw), ['user.a', 'user.b', 'user.caf\xc3\xa9'])
  assert.equal(getXattr(raw, 'user.b'), value)
  assert.equal(getXattr(raw, 'user.a'), Buffer.alloc(0))
  assert.is(getXattr(raw, 'user.none'), undefined)
  removeXattr(raw, 'user.a')
  removeXattr(raw, 'user.a')
  assert.equal(listXattrs(raw), ['user.b', 'user.caf\xc3\xa9'])
})

posix(
  'sets times to the nanosecond, before 1970 and after 2038, and leaves the time of access alone',
  () => {
    for (const mtimeNs of [
      0n,
      -1n,
      -4_999_999_877n,
      1_700_000_000_123_456_789n,
      4_000_000_000_000_000_001n,
    ]) {
      const before = lstatSync(bytes, { bigint: true }).atimeNs
      setTimes(raw, { mtimeNs })
      const after = lstatSync(bytes, { bigint: true })
      assert.is(after.mtimeNs, mtimeNs)
      assert.is(after.atimeNs, before)
    }
  },
)

posix('works on a symbolic link itself', () => {
  symlinkSync('nowhere', `${directory}/link`)
  setTimes(`${directory}/link`, { mtimeNs: 7n })
  assert.is(lstatSync(`${directory}/link`, { bigint: true }).mtimeNs, 7n)
  assert.equal(listXattrs(`${directory}/link`), [])
})

posix('makes FIFOs and, as root, devices whose numbers come back', () => {
  makeNode(`${directory}/fifo`, { type: 'fifo', mode: 0o600 })
  assert.ok(lstatSync(`${directory}/fifo`).isFIFO())
  if (!canRunAsRoot('device nodes')) return
  for (const device of [
    [1, 3],
    [259, 70000],
    [0xfff, 0xfffff],
  ] as const) {
    const path = `${directory}/device-${device.join('-')}`
    makeNode(path, { type: 'char', mode: 0o600, device })
    assert.equal(deviceParts(lstatSync(path, { bigint: true }).rdev), device)
    assert.is(
      execFileSync('stat', ['-c', '%t,%T', path]).toString().trim(),
      device.map((n) => n.toString(16)).join(),
    )
  }
})

posix('finds the data segments of a sparse file of 5 GB', () => {
  const fd = openSync(`${directory}/sparse`, 'w+')
  const size = 5 * 1024 ** 3
  ftruncateSync(fd, size)
  assert.equal(dataSegments(fd, size), [])
  writeSync(fd, 'data', 4 * 1024 ** 3)
  const [segment, ...others] = dataSegments(fd, size)
  assert.equal(others, [])
  assert.is(segment?.[0], 4 * 1024 ** 3)
  assert.ok((segment?.[1] ?? 0) <= 65536)
  assert.ok(fstatSync(fd).blocks * 512 < 1024 * 1024)
  writeSync(fd, 'end', size - 3)
  assert.is(dataSegments(fd, size).length, 2)
  assert.is(
    dataSegments(fd, size)
      .at(-1)
      ?.reduce((a, b) => a + b),
    size,
  )
  closeSync(fd)
  const whole = openSync(bytes, 'r')
  assert.equal(dataSegments(whole, 1), [[0, 1]])
  assert.equal(dataSegments(whole, 0), [])
  syncFilesystem(whole)
  closeSync(whole)
})

posix('a second open file cannot take the lock until the first is closed', () => {
  const [first, second] = [openSync(`${directory}/lock`, 'w'), openSync(`${directory}/lock`, 'w')]
  assert.ok(tryLock(first))
  assert.not.ok(tryLock(second))
  closeSync(first)
  assert.ok(tryLock(second))
  closeSync(second)
})

posix('throws errors with the code that Node would give', () => {
  const code = (run: () => unknown): unknown => {
    try {
      run()
    } catch (error) {
      return (error as { code: unknown }).code
    }
    return 'no error'
  }
  assert.is(
    code(() => listXattrs(`${directory}/none`)),
    'ENOENT',
  )
  assert.is(
    code(() => setTimes(`${directory}/none`, { mtimeNs: 0n })),
    'ENOENT',
  )
  assert.is(
    code(() => makeNode(raw, { type: 'fifo', mode: 0o600 })),
    'EEXIST',
  )
  assert.is(
    code(() => dataSegments(-1, 1)),
    'EBADF',
  )
  assert.throws(() => listXattrs('a\0b'), /zero byte/)
  mkdirSync(`${directory}/empty`)
})

posix('works in a worker thread', async () => {
  const module = new URL('../../lib/machine/posix.js', import.meta.url)
  const code = `import(${JSON.stringify(module.href)}).then((posix) =>
    require('node:worker_threads').parentPort.postMessage(
      posix.listXattrs(${JSON.stringify(raw)})))`
  const names = await new Promise((resolve, reject) => {
    const worker = new Worker(code, { eval: true })
    worker.once('message', resolve)
    worker.once('error', reject)
  })
  assert.equal(names, ['user.b', 'user.caf\xc3\xa9'])
})

posix.run()
