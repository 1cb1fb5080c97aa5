// A test that never ends, nor does the child process that it started: the time limit stops both.

import { spawn } from 'node:child_process'
import { suite } from 'uvu'

const test = suite('hang')

test('the child ends', () => {
  const child = spawn('sleep', ['600'], { stdio: 'inherit' })
  return new Promise((resolve) => child.once('exit', resolve))
})

test.run()
