// One run at a time on a staging directory: what changes something there, or on a target, holds
// this lock from beginning to end.
//
// Two triggers at once make one run, the other ends with LOCKED (exit 11), which names the first. A
// run that finds that the one before died without letting go says so and goes on; what that one
// left, the work itself puts right (design invariant 7). Throws LOCKED, STAGING_FAILED and what the
// action throws.

import type { Configuration } from '../lib/machine/config.ts'
import { formatStamp } from '../lib/model/stamp.ts'
import { claimStaging } from '../lib/work/staging-identity.ts'
import { acquireRunLock } from '../lib/work/staging.ts'
import { type CommandContext, isGiven } from './command.ts'

/** A run that is killed right now ends within moments; this one waits that long for it. */
const WAIT_MS = 3_000

/** Runs `action` under the lock; a dry run takes none, for it changes nothing. */
export async function withRunLock<Value>(
  context: CommandContext,
  { configuration, command }: { configuration: Configuration; command: string },
  action: () => Promise<Value>,
): Promise<Value> {
  if (isGiven(context.values, 'dry-run')) return await action()
  const description = `${command} since ${formatStamp(context.now())}`
  const { staging, path } = configuration
  claimStaging({ configuration: path, staging })
  const lock = acquireRunLock({ staging, description, waitMs: WAIT_MS })
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
