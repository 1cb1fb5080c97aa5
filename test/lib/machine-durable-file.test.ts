import { execFileSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import {
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { suite } from 'uvu'
import { readBack, syncDirectory, writeDurably } from '../../lib/machine/durable-file.ts'
import * as assert from '../helpers/assert.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const durable = suite('machine/durable-file')
const directory = tempDirectory()

durable('writes a file with its mode, and leaves no partial name', () => {
  const path = `${directory}/a\xff`
  writeDurably({ path, bytes: Buffer.from('hello'), mode: 0o640 })
  const name = Buffer.from(path, 'latin1')
  assert.is(readFileSync(name, 'utf8'), 'hello')
  assert.is(statSync(name).mode & 0o7777, 0o640)
  assert.is(readdirSync(directory).length, 1)
})

durable('refuses a name that is taken, and leaves what is there', () => {
  writeFileSync(`${directory}/taken`, 'old')
  const write = (replace: boolean): void =>
    writeDurably({ path: `${directory}/taken`, bytes: Buffer.from('new'), mode: 0o600, replace })
  assert.throws(
    () => write(false),
    (error: { code: string }) => error.code === 'ALREADY_THERE',
  )
  assert.is(readFileSync(`${directory}/taken`, 'utf8'), 'old')
  write(true)
  assert.is(readFileSync(`${directory}/taken`, 'utf8'), 'new')
})

durable('sweeps the partial name of a dead writer, without following a link there', () => {
  writeFileSync(`${directory}/victim`, 'unharmed')
  symlinkSync('victim', `${directory}/new.partial`)
  writeDurably({ path: `${directory}/new`, bytes: Buffer.from('x'), mode: 0o600 })
  assert.is(readFileSync(`${directory}/victim`, 'utf8'), 'unharmed')
  assert.not.ok(existsSync(`${directory}/new.partial`))
  syncDirectory(directory)
})

const block = 2 * 1024 * 1024
for (const size of [
  0,
  1,
  511,
  512,
  513,
  4095,
  4096,
  4097,
  block - 1,
  block,
  block + 1,
  2 * block,
  2 * block + 1000,
]) {
  durable(`reads back a file of ${size} bytes`, () => {
    const bytes = randomBytes(size)
    writeDurably({ path: `${directory}/back-${size}`, bytes, mode: 0o600 })
    const hash = createHash('sha256')
    const how = readBack({
      path: `${directory}/back-${size}`,
      onBlock: (part) => void hash.update(part),
    })
    assert.is(hash.digest('hex'), createHash('sha256').update(bytes).digest('hex'))
    assert.is(how, process.platform === 'linux' ? 'direct' : 'advised')
  })
}

durable('says that it was only advised where there are no direct reads', () => {
  if (!existsSync('/dev/shm')) return
  const path = `/dev/shm/backup-test-${process.pid}`
  writeDurably({ path, bytes: Buffer.alloc(5000, 7), mode: 0o600 })
  let read = 0
  const how = readBack({ path, onBlock: (part) => void (read += part.length) })
  execFileSync('rm', [path])
  assert.is(read, 5000)
  assert.ok(['advised', 'direct'].includes(how))
})

durable('reads what is on the medium, not what is in memory', () => {
  if (!canRunAsRoot('a loop device')) return
  const image = `${directory}/image`
  const mount = `${directory}/mount`
  mkdirSync(mount)
  execFileSync('truncate', ['-s', '32M', image])
  execFileSync('mkfs.ext4', ['-q', image])
  execFileSync('mount', ['-o', 'loop', image, mount])
  try {
    const marker = Buffer.alloc(100_000, 'the bytes on the medium ')
    writeDurably({ path: `${mount}/file`, bytes: marker, mode: 0o600 })
    readFileSync(`${mount}/file`)
    const device = execFileSync('findmnt', ['-no', 'SOURCE', mount]).toString().trim()
    const block = execFileSync('debugfs', ['-R', 'blocks /file', device], {
      stdio: ['ignore', 'pipe', 'ignore'],
    })
    const first = block.toString().trim().split(/\s+/)[0] ?? ''
    const bs = execFileSync('stat', ['-fc', '%S', mount]).toString().trim()
    execFileSync('dd', [
      'if=/dev/zero',
      `of=${device}`,
      `bs=${bs}`,
      `seek=${first}`,
      'count=1',
      'conv=notrunc',
      'oflag=direct',
      'status=none',
    ])
    assert.equal(readFileSync(`${mount}/file`), marker, 'the page cache still has the old bytes')
    const parts: Buffer[] = []
    const how = readBack({
      path: `${mount}/file`,
      onBlock: (part) => void parts.push(Buffer.from(part)),
    })
    assert.is(how, 'direct')
    assert.is(Buffer.concat(parts)[0], 0)
  } finally {
    execFileSync('umount', [mount])
  }
  assert.ok(openSync(image, 'r') > 0)
})

durable.run()
