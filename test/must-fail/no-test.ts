// A suite without a test: `Total: 0` is no success.

import { suite } from 'uvu'

const test = suite('no test')

test.run()
