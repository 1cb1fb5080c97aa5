import { Buffer } from 'node:buffer'
import { suite } from 'uvu'
import {
  baseOf,
  comparePaths,
  displayPath,
  displayText,
  isWithin,
  parentOf,
  rawPathFromBytes,
  rawPathFromText,
  rawPathToBytes,
  rawPathToText,
} from '../../lib/model/raw-path.ts'
import * as assert from '../helpers/assert.ts'
import { randomOfRun } from '../helpers/random.ts'

const paths = suite('model/raw-path')

paths('every byte goes through a path and back', () => {
  const bytes = Buffer.from(Array.from({ length: 256 }, (_, i) => i))
  const path = rawPathFromBytes(bytes)
  assert.is(path.length, 256)
  assert.ok(rawPathToBytes(path).equals(bytes))
  assert.is(rawPathFromBytes(new Uint8Array(Buffer.from('xabc')).subarray(1)), 'abc', 'a view')
})

paths('text goes through a path and back, and what is no text says so', () => {
  for (const text of [
    '',
    'a',
    'ä',
    'a/ü/日本',
    '🙂',
    '\u{feff}mark',
    'a\nb',
    '\u0000',
    'e\u0301',
    'é',
  ]) {
    assert.is(rawPathToText(rawPathFromText(text)), text)
  }
  for (const hex of ['ff', 'c3', '61c3', 'c080', 'eda080', 'f4908080', '80', '61ff62']) {
    assert.is(rawPathToText(rawPathFromBytes(Buffer.from(hex, 'hex'))), undefined, hex)
  }
})

paths('a directory comes immediately before everything in it', () => {
  const ordered = [
    'b',
    'can',
    'can/a',
    'can/x',
    'can/x/y',
    'can/x!',
    'can/\xff',
    'can\x01',
    'can!',
    'can-do',
    'can.h',
    'can0',
    'canal',
    'can\xe4',
    'd',
  ]
  for (const [i, a] of ordered.entries()) {
    for (const [j, b] of ordered.entries()) {
      assert.is(
        Math.sign(comparePaths(a, b)),
        Math.sign(i - j),
        `${displayPath(a)} and ${displayPath(b)}`,
      )
    }
  }
  assert.equal([...ordered].reverse().sort(comparePaths), ordered)
})

paths('the order is that of the lists of components, byte by byte', () => {
  const slow = (a: string, b: string): number => {
    const [left, right] = [a.split('/'), b.split('/')]
    for (let i = 0; i < Math.min(left.length, right.length); i++) {
      const order = Buffer.compare(
        Buffer.from(left[i]!, 'latin1'),
        Buffer.from(right[i]!, 'latin1'),
      )
      if (order !== 0) return order
    }
    return Math.sign(left.length - right.length)
  }
  const random = randomOfRun('order')
  const path = (): string =>
    Array.from({ length: 1 + random.integer(4) }, () =>
      Array.from({ length: 1 + random.integer(2) }, () =>
        random.pick(['a', '.', '!', '\x01', 'é', '0']),
      ).join(''),
    ).join('/')
  for (let round = 0; round < 5000; round++) {
    const [a, b] = [path(), path()]
    assert.is(Math.sign(comparePaths(a, b)), slow(a, b), JSON.stringify([a, b]))
  }
})

paths('what is below a directory is told by components', () => {
  assert.ok(isWithin({ path: 'data/projects', directory: 'data/projects' }))
  assert.ok(isWithin({ path: 'data/projects/x', directory: 'data/projects' }))
  assert.not.ok(isWithin({ path: 'data/projects', directory: 'data/pro' }))
  assert.not.ok(isWithin({ path: 'data', directory: 'data/projects' }))
  assert.ok(isWithin({ path: 'anything', directory: '' }))
})

paths('a path is its parent and its base', () => {
  for (const [path, parent, base] of [
    ['a', '', 'a'],
    ['a/b', 'a', 'b'],
    ['a/b/c', 'a/b', 'c'],
    ['', '', ''],
  ]) {
    assert.is(parentOf(path!), parent)
    assert.is(baseOf(path!), base)
  }
})

paths('what is shown of a path cannot move a cursor, change a colour or turn the direction', () => {
  const shown: readonly (readonly [string, string])[] = [
    ['plain/name with space', 'plain/name with space'],
    ['ä/日本/🙂', 'ä/日本/🙂'],
    ['\x1b[2J', '\\x1b[2J'],
    ['\x1b]0;title\x07', '\\x1b]0;title\\x07'],
    ['a\nb\tc\rd', 'a\\x0ab\\x09c\\x0dd'],
    ['\x7f', '\\x7f'],
    ['\u0085\u009b31m', '\\x85\\x9b31m'],
    ['a\u202etxt.exe', 'a\\u{202e}txt.exe'],
    ['\u2066\u2067\u2069\u200f', '\\u{2066}\\u{2067}\\u{2069}\\u{200f}'],
  ]
  for (const [text, expected] of shown) {
    assert.is(displayPath(rawPathFromText(text)), expected)
    assert.is(displayText(text), expected)
  }
})

paths('what is no text is shown byte by byte', () => {
  assert.is(displayPath('caf\xe9/\x1b[0m'), 'caf\\xe9/\\x1b[0m')
  const everyByte = Array.from({ length: 256 }, (_, i) => String.fromCharCode(i)).join('')
  assert.match(displayPath(everyByte), /^[\x20-\x7e]*$/)
})

paths.run()
