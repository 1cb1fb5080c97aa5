// A test that ends its process with status 0 before the suite is through.

import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'

const test = suite('early exit')

test('the process ends here', () => {
  process.exit(0)
})

test('one is two', () => assert.equal(1, 2))

test.run()
