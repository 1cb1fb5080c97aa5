// What happens around a run besides its work: pings, and when it has ended, telling the person and
// writing the metrics.
//
// Wraps `backup`, `backup-collect` and `backup-external`. A dry run tells nobody; nor does a run
// that found another one under way, or that somebody interrupted. Nothing here changes the outcome
// of the run. Throws what the action throws.

import { BackupError, type ExitCode } from '../lib/errors.ts'
import type { Configuration } from '../lib/machine/config.ts'
import { announce, ping } from '../lib/work/announce.ts'
import { announcementsOf } from '../lib/work/announcements.ts'
import { currentHistory } from '../lib/work/drive-history.ts'
import { rememberScore } from '../lib/work/score.ts'
import { readRunStatus, writeMetrics } from '../lib/work/status.ts'
import { type CommandContext, isGiven } from './command.ts'
import { emptyLedger, type RunLedger } from './run-history.ts'

/** Failures that are nobody's news: the other run tells, or somebody pressed a key. */
const NO_NEWS = ['LOCKED', 'INTERRUPTED', 'USAGE', 'NOT_CONFIRMED']

/** Runs `action`, then tells what came of it. */
export async function withTelling(
  context: CommandContext,
  {
    configuration,
    command,
    ledger = emptyLedger(),
  }: {
    readonly configuration: Configuration
    readonly command: string
    readonly ledger?: RunLedger
  },
  action: (ledger: RunLedger) => Promise<ExitCode>,
): Promise<ExitCode> {
  if (isGiven(context.values, 'dry-run')) return await action(ledger)
  const work = { configuration, command, ledger }
  await callPing(context, work, { phase: 'start', text: '' })
  try {
    const exitCode = await action(ledger)
    await tell(context, work, { exitCode, error: undefined })
    return exitCode
  } catch (error) {
    if (error instanceof BackupError && !NO_NEWS.includes(error.code)) {
      await tell(context, work, { exitCode: error.exitCode, error })
    }
    throw error
  }
}

interface Ended {
  readonly configuration: Configuration
  readonly command: string
  readonly ledger: RunLedger
}

async function tell(
  context: CommandContext,
  work: Ended,
  { exitCode, error }: { readonly exitCode: ExitCode; readonly error: BackupError | undefined },
): Promise<void> {
  const { configuration, command, ledger } = work
  const { staging, notify, machine } = configuration
  const { report } = context.reporter
  const nowMs = context.now()
  const document = await readRunStatus({ configuration, nowMs, report })
  const announcements = announcementsOf({
    configuration,
    ...ledger,
    score: document?.score,
    error,
    isGood: exitCode === 0 || exitCode === 75,
    history: currentHistory(staging),
    nowMs,
  })
  const { environment } = context
  await announce({ staging, notify, announcements, nowMs, machine, report, environment })
  const isGood = exitCode === 0 || exitCode === 75
  const lines = announcements.map(({ title, body }) => `${title}: ${body}`)
  const text = [`${command} on ${machine}: exit ${exitCode}`, ...lines].join('\n')
  await callPing(context, work, { phase: isGood ? 'success' : 'fail', text })
  if (document === undefined) return
  writeMetrics({ configuration, document, report })
  if (document.score !== undefined) rememberScore(staging, document.score)
}

async function callPing(
  context: CommandContext,
  { configuration: { notify, staging } }: Ended,
  { phase, text }: { phase: 'start' | 'success' | 'fail'; text: string },
): Promise<void> {
  const { report } = context.reporter
  await ping({ notify, phase, text, report, staging, nowMs: context.now() })
}
