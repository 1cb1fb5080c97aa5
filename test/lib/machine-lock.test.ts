import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { acquireLock } from '../../lib/machine/lock.ts'
import * as assert from '../helpers/assert.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const lock = suite('machine/lock')
const path = `${tempDirectory()}/lock`

function refusal(): BackupError {
  try {
    acquireLock({ path, description: 'second' }).release()
  } catch (error) {
    if (error instanceof BackupError) return error
    throw error
  }
  throw new Error('it was not refused')
}

lock('refuses a second holder and names the first', () => {
  const first = acquireLock({ path, description: 'backup-collect, since \u001b[31m2025-04-01' })
  const error = refusal()
  assert.is(error.code, 'LOCKED')
  assert.is(error.exitCode, 11)
  assert.match(error.message, 'backup-collect, since \\x1b[31m2025-04-01')
  assert.match(error.message, `process ${process.pid} on`)
  first.release()
  first.release()
  acquireLock({ path, description: 'third' }).release()
})

lock('waits as long as it was told', async () => {
  const first = acquireLock({ path, description: 'first' })
  const started = Date.now()
  assert.throws(() => acquireLock({ path, description: 'second', waitMs: 200 }))
  assert.ok(Date.now() - started >= 200)
  first.release()
})

lock('is dropped by the kernel when its holder is killed', async () => {
  const module = new URL('../../lib/machine/lock.js', import.meta.url)
  const script = `${path}.mjs`
  writeFileSync(
    script,
    `import { acquireLock } from ${JSON.stringify(module.href)}
    acquireLock({ path: ${JSON.stringify(path)}, description: 'child' }); console.log('held')
    setInterval(() => {}, 1000)`,
  )
  const child = spawn(process.execPath, [script], { stdio: ['ignore', 'pipe', 'inherit'] })
  await once(child.stdout, 'data')
  assert.match(refusal().message, `process ${child.pid} on`)
  child.kill('SIGKILL')
  await once(child, 'exit')
  const after = acquireLock({ path, description: 'after' })
  assert.match(after.takenOverFrom ?? '', new RegExp(`^child \\(process ${child.pid} on `))
  after.release()
  const orderly = acquireLock({ path, description: 'last' })
  assert.is(orderly.takenOverFrom, undefined, 'the one before ended in good order')
  orderly.release()
})

lock.run()
