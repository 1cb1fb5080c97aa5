import { suite } from 'uvu'
import { formatStamp, isAhead, matchStamps, nextStamp, parseStamp } from '../../lib/model/stamp.ts'
import * as assert from '../helpers/assert.ts'

const stamp = suite('model/stamp')

stamp('formats and parses back, dropping fractions of a second', () => {
  for (const epochMs of [0, 951_782_400_000, Date.UTC(2025, 3, 1, 2), 253_402_300_799_000]) {
    assert.is(parseStamp(formatStamp(epochMs + 999)), epochMs)
  }
  assert.is(formatStamp(Date.UTC(2025, 3, 1, 2)), '2025-04-01T020000Z')
})

stamp('refuses everything that it would not have written', () => {
  for (const text of [
    '',
    'latest',
    '2025-04-01',
    '2025-04-01T020000',
    '2025-04-01T020000Z ',
    '2025-04-01T02:00:00Z',
    '2025-02-30T000000Z',
    '2025-13-01T000000Z',
    '2025-04-01T240000Z',
    '2025-04-01T006000Z',
    '2025-04-01T000060Z',
    '2025-04-01T020000Z.partial',
    '2025-04-01T020000Z\n',
    '+002025-04-01T020000Z',
    '٢٠٢٥-04-01T020000Z',
  ])
    assert.is(parseStamp(text), undefined, text)
})

stamp('the next one is always newer than the newest', () => {
  const nowMs = Date.UTC(2025, 3, 1, 2)
  assert.is(nextStamp({ nowMs }), '2025-04-01T020000Z')
  assert.is(nextStamp({ nowMs, newest: '2025-04-01T015959Z' }), '2025-04-01T020000Z')
  assert.is(nextStamp({ nowMs, newest: '2025-04-01T020000Z' }), '2025-04-01T020001Z')
  assert.is(nextStamp({ nowMs, newest: '2031-12-31T235959Z' }), '2032-01-01T000000Z')
})

stamp('matches by any beginning, and an empty one matches nothing', () => {
  const stamps = ['2025-04-01T020000Z', '2025-04-01T140000Z', '2025-05-01T020000Z']
  assert.equal(matchStamps({ prefix: '2025-05', stamps }), ['2025-05-01T020000Z'])
  assert.equal(matchStamps({ prefix: '2025-04-01', stamps }).length, 2)
  assert.equal(matchStamps({ prefix: '2025-04-01T14:00:00Z', stamps }), ['2025-04-01T140000Z'])
  assert.equal(matchStamps({ prefix: '', stamps }), [])
  assert.equal(matchStamps({ prefix: '04-01', stamps }), [])
})

stamp('is ahead of the clock only by more than a minute', () => {
  const nowMs = Date.UTC(2025, 3, 1, 2)
  for (const aheadMs of [-1000, 0, 60_000])
    assert.not.ok(isAhead(formatStamp(nowMs + aheadMs), nowMs))
  assert.ok(isAhead(formatStamp(nowMs + 61_000), nowMs))
})

stamp.run()
