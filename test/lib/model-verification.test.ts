import { execFileSync, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import {
  MANIFEST,
  type Verification,
  bundleFile,
  encodeVerification,
  parseVerification,
} from '../../lib/model/verification.ts'
import * as assert from '../helpers/assert.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const verification = suite('model/verification')
const place = { set: 'home', stamp: '2025-04-02T020000Z' }
const sha = (text: string): string => createHash('sha256').update(text).digest('hex')
const names = [
  'home/2025-04-02T020000Z/data-0001',
  'home/2025-04-02T020000Z/data-0002',
  'home/2025-04-02T020000Z/catalog-0001',
  'home/2025-04-01T020000Z/data-0001',
  'etc/2025-04-01T020000Z/data-0007',
  'home/2025-04-01T020000Z/data-12345',
]
const sample: Verification = {
  bundles: new Map(names.map((name) => [name, sha(name)])),
  manifestSha256: sha('manifest'),
}

const isDamaged = (text: string): boolean => {
  try {
    parseVerification(text, place)
    return false
  } catch (error) {
    if (error instanceof BackupError && error.code === 'BUNDLE_DAMAGED') return true
    throw error
  }
}

verification('lists bundles relative to its own directory, the manifest last', () => {
  const lines = encodeVerification(sample, place).split('\n')
  assert.equal(
    lines.map((line) => line.slice(66)),
    [
      '../../etc/2025-04-01T020000Z/data-0007.tar.zst.age',
      '../2025-04-01T020000Z/data-0001.tar.zst.age',
      '../2025-04-01T020000Z/data-12345.tar.zst.age',
      'catalog-0001.tar.zst.age',
      'data-0001.tar.zst.age',
      'data-0002.tar.zst.age',
      'manifest.tar.zst.age',
      '',
    ],
  )
})

verification('what was written is read back, from any place', () => {
  for (const at of [place, { ...place, stamp: '2025-04-01T020000Z' }, { ...place, set: 'etc' }]) {
    const parsed = parseVerification(encodeVerification(sample, at), at)
    assert.equal(new Map([...parsed.bundles].sort()), new Map([...sample.bundles].sort()))
    assert.is(parsed.manifestSha256, sample.manifestSha256)
  }
  const none = { bundles: new Map<string, string>(), manifestSha256: sha('m') }
  assert.equal(parseVerification(encodeVerification(none, place), place), none)
})

verification('sha256sum -c checks all of it, and tells what is damaged or gone', () => {
  const machine = join(tempDirectory(), 'machines/m')
  const here = join(machine, place.set, place.stamp)
  const write = (path: string, content: string): void => {
    mkdirSync(dirname(path), { recursive: true })
    writeFileSync(path, content)
  }
  for (const name of names) write(join(machine, bundleFile(name)), name)
  write(join(here, MANIFEST), 'manifest')
  write(join(here, 'verification.sha256'), encodeVerification(sample, place))
  const words = ['-c', '--strict', 'verification.sha256']
  const good = execFileSync('sha256sum', words, { cwd: here, encoding: 'utf8' })
  assert.is(good.match(/: OK$/gm)?.length, names.length + 1)
  write(join(machine, bundleFile(names[4]!)), 'something else')
  const bad = spawnSync('sha256sum', words, { cwd: here, encoding: 'utf8' })
  assert.is(bad.status, 1)
  assert.match(bad.stdout, /^\.\.\/\.\.\/etc\/.*: FAILED$/m)
})

const line = (path: string): string => `${sha('x')}  ${path}\n`
const end = line(MANIFEST)

verification('refuses a line that leads anywhere but to a bundle of this machine', () => {
  assert.not.ok(isDamaged(line('data-0001.tar.zst.age') + end))
  for (const path of [
    '/etc/passwd',
    '/data-0001.tar.zst.age',
    '../../../other/home/2025-04-01T020000Z/data-0001.tar.zst.age',
    '../../../data-0001.tar.zst.age',
    '../../2025-04-01T020000Z/data-0001.tar.zst.age',
    '../data-0001.tar.zst.age',
    './data-0001.tar.zst.age',
    'data-0001.tar.zst.age/',
    '../home/2025-04-01T020000Z/data-0001.tar.zst.age',
    '../../home/../etc/2025-04-01T020000Z/data-0001.tar.zst.age',
    '../2025-04-01T020000Z/../x/data-0001.tar.zst.age',
    '../2025-04-01T020000Z//data-0001.tar.zst.age',
    '../../Home/2025-04-01T020000Z/data-0001.tar.zst.age',
    '../latest/data-0001.tar.zst.age',
    '../../-x/2025-04-01T020000Z/data-0001.tar.zst.age',
    'data-001.tar.zst.age',
    'data-.tar.zst.age',
    'data-0001.tar.zst',
    'data-0001',
    'other-0001.tar.zst.age',
    'verification.sha256',
    `../2025-04-01T020000Z/${MANIFEST}`,
    'x'.repeat(100_000),
    '.tar.zst.age',
    '\\data-0001.tar.zst.age',
  ]) {
    assert.ok(isDamaged(line(path) + end), path.slice(0, 100))
  }
})

verification('refuses what sha256sum would not have written', () => {
  const bundle = 'data-0001.tar.zst.age'
  for (const text of [
    '',
    '\n',
    end.slice(0, -1),
    `${end}\n`,
    `\n${end}`,
    end.replace('  ', ' '),
    end.replace('  ', ' *'),
    end.replace('  ', '\t'),
    end.replaceAll('\n', '\r\n'),
    end.toUpperCase(),
    `${end} `,
    `# note\n${end}`,
    `${sha('x').toUpperCase()}  ${bundle}\n${end}`,
    `${sha('x').slice(1)}  ${bundle}\n${end}`,
    `0${sha('x')}  ${bundle}\n${end}`,
    ` ${line(bundle)}${end}`,
    `${sha('x')}  \n${end}`,
    `${end}${end}`,
  ]) {
    assert.ok(isDamaged(text), JSON.stringify(text.slice(0, 100)))
  }
})

verification('refuses a list that names no manifest', () => {
  assert.ok(isDamaged(line('data-0001.tar.zst.age')))
})

verification('refuses a list that is cut short anywhere', () => {
  const text = encodeVerification(sample, place)
  for (let length = 0; length < text.length; length++)
    assert.ok(isDamaged(text.slice(0, length)), `${length}`)
})

verification('bug: a bundle that is named twice, out of order or by a way round is taken', () => {
  const bundle = line('data-0001.tar.zst.age')
  const other = `${sha('y')}  data-0001.tar.zst.age\n`
  assert.ok(isDamaged(bundle + other + end), 'two sums for one bundle: the last one would win')
  assert.ok(isDamaged(end + bundle), 'the manifest is not last')
  assert.ok(
    isDamaged(line(`../${place.stamp}/data-0001.tar.zst.age`) + end),
    'its own stamp, the long way',
  )
  assert.ok(
    isDamaged(line('../../home/2025-04-01T020000Z/data-0001.tar.zst.age') + end),
    'its own set',
  )
})

verification.run()
