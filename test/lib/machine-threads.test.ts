// Threads that are ended while they load the native package of posix.ts: it used to abort the
// whole program.

import { spawnSync } from 'node:child_process'
import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'

const threads = suite('machine/threads')

const module = (path: string): string =>
  JSON.stringify(new URL(`../../${path}`, import.meta.url).href)

threads('may be ended at any moment', () => {
  // Loading takes a few milliseconds: ended after 0, 1, 2 … of them, it is caught in the middle.
  const code = `
    import { Worker } from 'node:worker_threads'
    import { setTimeout as sleep } from 'node:timers/promises'
    import { endWorkers } from ${module('lib/machine/threads.js')}
    const script = \`
      import { parentPort } from 'node:worker_threads'
      parentPort.postMessage('begin')
      const posix = await import(\${JSON.stringify(${module('lib/machine/posix.js')})})
      posix.dropPageCache(0)
      await import(\${JSON.stringify(${module('lib/format/zstd-frames.js')})})\`
    for (let round = 0; round < 120; round++) {
      const worker = new Worker(script, { eval: true })
      worker.on('error', () => {})
      await new Promise((resolve) => worker.once('message', resolve))
      await sleep(round % 40)
      await endWorkers([worker])
    }
    console.log('alive')`
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    ['--input-type=module', '-e', code],
    { encoding: 'utf8', timeout: 60_000 },
  )
  assert.is(status, 0, stderr.slice(-2000))
  assert.is(stdout, 'alive\n')
})

threads.run()
