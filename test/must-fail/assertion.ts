// A test that fails. test/tidy.test.ts runs it through test/run.ts and expects a failure.

import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'

const test = suite('must fail')

test('one is two', () => assert.equal(1, 2))

test('one is one', () => assert.is(1, 1))

test.run()
