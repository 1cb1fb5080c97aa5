// Every test passes, and then something that was left running throws.

import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'

const test = suite('late failure')

test('one is one', () => {
  setTimeout(() => {
    throw new Error('left running')
  }, 50)
  assert.is(1, 1)
})

test.run()
