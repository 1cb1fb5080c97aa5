import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { checkSafePath } from '../../lib/model/safe-path.ts'
import * as assert from '../helpers/assert.ts'

const safe = suite('model/safe-path')

const isRefused = (path: string): boolean => {
  try {
    checkSafePath(path)
    return false
  } catch (error) {
    if (error instanceof BackupError && error.code === 'UNSAFE_PATH') return true
    throw error
  }
}

safe('a path that stays where it is put is let through', () => {
  for (const path of [
    'a',
    'a/b',
    '.hidden',
    '..a',
    'a..',
    '...',
    'a/...',
    'a b',
    '-rf',
    '~',
    'a\\..\\b',
    '\xff',
    'a\nb',
    'C:',
    '.pieces/x',
  ]) {
    assert.not.ok(isRefused(path), path)
  }
})

safe('refuses whatever could lead elsewhere', () => {
  for (const path of [
    '',
    '/',
    '/etc/passwd',
    '//a',
    '.',
    './a',
    'a/.',
    'a/./b',
    '..',
    '../a',
    'a/..',
    'a/../b',
    'a/../../b',
    'a//b',
    'a/',
    'a\0b',
    '\0',
    'a/\0',
  ]) {
    assert.ok(isRefused(path), JSON.stringify(path))
  }
})

safe('a name has at most 255 bytes and a path 4096', () => {
  assert.not.ok(isRefused('x'.repeat(255)))
  assert.ok(isRefused('x'.repeat(256)))
  assert.ok(isRefused(`a/${'x'.repeat(256)}/b`))
  const long = `${'abcdefg/'.repeat(511)}abcdefgh`
  assert.is(long.length, 4096)
  assert.not.ok(isRefused(long))
  assert.ok(isRefused(`${long}x`))
})

safe('the message about a hostile path is safe for a terminal and short', () => {
  try {
    checkSafePath(`../\x1b[2J${'x'.repeat(10_000)}`)
  } catch (error) {
    assert.ok(
      error instanceof Error && !/[\x00-\x1f]/.test(error.message) && error.message.length < 400,
    )
    return
  }
  assert.unreachable()
})

safe.run()
