// One run at a time on a staging directory: what changes something there, or on a target, holds
// this lock from beginning to end.
//
// Two triggers at once make one run, the other ends with LOCKED (exit 11), which names the first. A
// run that finds that the one before died without letting go says so and goes on; what that one
// left, the work itself puts right (design invariant 7). A drive that is plugged in while another
// run is under way waits its turn, or nobody would export to it. Throws LOCKED, STAGING_FAILED and
// what the action throws.

import { setTimeout as sleep } from 'node:timers/promises'
import { BackupError } from '../lib/errors.ts'
import type { Configuration } from '../lib/machine/config.ts'
import type { Lock } from '../lib/machine/lock.ts'
import { formatStamp } from '../lib/model/stamp.ts'
import { claimStaging } from '../lib/work/staging-identity.ts'
import { acquireRunLock } from '../lib/work/staging.ts'
import { type CommandContext, isGiven } from './command.ts'

/** A run that is killed right now ends within moments; this one waits that long for it. */
const WAIT_MS = 3_000

/** A first full export to a drive takes hours. */
const PATIENCE_MS = 12 * 3_600_000

const LOOK_AGAIN_MS = 2_000

/**
 * Runs `action` under the lock; a dry run takes none, for it changes nothing.
 * @param options.isPatient waits for hours until the other run has ended
 */
export async function withRunLock<Value>(
  context: CommandContext,
  {
    configuration,
    command,
    isPatient = false,
  }: { configuration: Configuration; command: string; isPatient?: boolean },
  action: () => Promise<Value>,
): Promise<Value> {
  if (isGiven(context.values, 'dry-run')) return await action()
  const description = `${command} since ${formatStamp(context.now())}`
  const { staging, path } = configuration
  claimStaging({ configuration: path, staging })
  const lock = await acquire(context, { staging, description, isPatient })
  try {
    if (lock.takenOverFrom !== undefined) {
      const message = `an earlier run ended without a word: ${lock.takenOverFrom}`
      context.reporter.report({ kind: 'notice', level: 'info', code: 'TAKEN_OVER', message })
    }
    return await action()
  } finally {
    lock.release()
  }
}

async function acquire(
  { reporter, signal }: CommandContext,
  options: { staging: string; description: string; isPatient: boolean },
): Promise<Lock> {
  const { isPatient, ...of } = options
  let isSaid = false
  for (let waitedMs = 0; ; waitedMs += LOOK_AGAIN_MS) {
    try {
      return acquireRunLock({ ...of, waitMs: isPatient ? 0 : WAIT_MS })
    } catch (error) {
      if (!(error instanceof BackupError) || error.code !== 'LOCKED') throw error
      if (!isPatient || waitedMs >= PATIENCE_MS) throw error
      if (!isSaid) reporter.tell(`waiting: ${error.message}`)
      isSaid = true
    }
    await sleep(LOOK_AGAIN_MS)
    if (signal.aborted) throw new BackupError('INTERRUPTED', 'interrupted while waiting')
  }
}
