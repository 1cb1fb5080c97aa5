// A hook that throws: uvu runs none of the tests, counts none as failed, and exits 0.

import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'

const test = suite('before hook')

test.before(() => {
  throw new Error('the hook failed')
})

test('one is one', () => assert.is(1, 1))

test.run()
