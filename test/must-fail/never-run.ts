// A suite that is never run: uvu says nothing and exits 0, so the runner has to notice.

import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'

const test = suite('never run')

test('one is two', () => assert.equal(1, 2))
