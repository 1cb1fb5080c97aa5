// `backup doctor`: what is wrong with this machine for this configuration, and how to put it right.
//
// Parses and tells; lib/work/doctor.ts looks, lib/work/doctor-target.ts at one target, and
// lib/work/doctor-restore.ts at a place to restore to. A configuration that cannot be read is a
// finding like any other, and the checks that need none are still made. Exits 1 when something
// fails, else 0. Throws USAGE and LOCKED.

import { existsSync } from 'node:fs'
import { resolve } from 'node:path'
import process from 'node:process'
import { BackupError, type ExitCode } from '../lib/errors.ts'
import type { Configuration } from '../lib/machine/config.ts'
import { POLICY_KINDS } from '../lib/model/bucket-policy.ts'
import { asFailure, type Check } from '../lib/model/check.ts'
import { examineMachine, examineRsync } from '../lib/work/doctor.ts'
import { bucketPolicy, examineBucket } from '../lib/work/doctor-bucket.ts'
import { examineRestorePlace } from '../lib/work/doctor-restore.ts'
import { examineTarget } from '../lib/work/doctor-target.ts'
import { targetNamed } from '../lib/work/target-access.ts'
import { type Command, type CommandContext, isGiven, textOption } from './command.ts'
import { withRunLock } from './run-lock.ts'

const LABELS = { ok: 'ok  ', warning: 'WARN', failure: 'FAIL' } as const

export const command: Command = {
  name: 'backup doctor',
  summary: 'what is wrong with this machine, with the fix',
  usage: `Usage: backup doctor [--target NAME [--no-capacity]] [--dry-run] [--json]
       backup doctor --restore-to DIR [--dry-run] [--json]
       backup doctor --target BUCKET --policy backup|admin|lifecycle|bucket

Looks whether this machine can back up what the configuration says: which rsync, the programs,
staging, its space, the clock, keys, hooks, sources and the snapshots they get. Copies a small
tree within staging by rsync, to see what survives there, and removes it again. One line a check:
ok, WARN or FAIL, and what to do. Exits 1 when something fails, 0 with warnings.

With --target it looks at that target instead: whether it can be written and read back, its
filesystem, repository and space, what SMART says of the drive, and whether the drive holds as
much as it says. For that it reserves nearly all free space for a moment, writes blocks all over
it and reads them back. See docs/drive-health.md before you try a drive that has data on it.

With --restore-to it answers what would survive being restored into a directory, as you, on this
machine: names, links, times, owners, attributes. It restores a small tree of everything there,
by way of a bundle, and removes it again.

Of a bucket it tells whether it is private, what versioning, object lock and lifecycle rules do to
backups, and what its credentials may: tried on objects of its own, never on yours.

  --target NAME   look at this target, not at the machine
  --restore-to DIR look at a directory that could be restored into
  --policy KIND   print the policy that a bucket needs, as JSON: for the credentials of backups
                  (append only), of admin, the lifecycle rules, or the bucket's own
  --no-capacity   without reserving and writing the free space
  --dry-run       without the copy in staging; nothing is written to the target or directory
`,
  options: {
    target: { type: 'string' },
    'restore-to': { type: 'string' },
    policy: { type: 'string' },
    'no-capacity': { type: 'boolean' },
  },
  run: async (context) => {
    if (textOption(context.values, 'policy') !== undefined) return await printPolicy(context)
    const checks: Check[] = []
    const onCheck = (check: Check): void => {
      checks.push(check)
      tellCheck(context, check)
    }
    await examine(context, onCheck)
    const count = (verdict: Check['verdict']) =>
      checks.filter((check) => check.verdict === verdict).length
    const [failures, warnings] = [count('failure'), count('warning')]
    const outcome = failures > 0 ? 'failure' : warnings > 0 ? 'warning' : 'ok'
    context.reporter.report({ kind: 'result', command: command.name, outcome, checks })
    context.reporter.tell(`${failures} failures, ${warnings} warnings`)
    const exitCode: ExitCode = failures > 0 ? 1 : 0
    return exitCode
  },
}

/** Nothing but the document, so that it can go into a file. */
async function printPolicy(context: CommandContext): Promise<ExitCode> {
  const { values, reporter } = context
  const name = textOption(values, 'target')
  const kind = POLICY_KINDS.find((one) => one === textOption(values, 'policy'))
  if (kind === undefined || name === undefined) {
    throw new BackupError('USAGE', `--policy is one of ${POLICY_KINDS.join(', ')}`, {
      hint: 'it goes with --target NAME',
    })
  }
  const configuration = await context.loadConfiguration()
  const target = targetNamed(configuration, name)
  if (target.kind !== 's3') {
    throw new BackupError('USAGE', `target ${name} is of kind ${target.kind}, not a bucket`)
  }
  const { document, commands } = bucketPolicy(kind, { configuration, target })
  const result = { kind: 'result', command: command.name, outcome: 'ok' } as const
  reporter.report({ ...result, document, commands })
  reporter.print(JSON.stringify(document, null, 2))
  return 0
}

async function examine(context: CommandContext, onCheck: (check: Check) => void): Promise<void> {
  const target = textOption(context.values, 'target')
  if (target === undefined && isGiven(context.values, 'no-capacity')) {
    throw new BackupError('USAGE', '--no-capacity belongs to --target')
  }
  const restoreTo = textOption(context.values, 'restore-to')
  if (restoreTo !== undefined && target !== undefined) {
    throw new BackupError('USAGE', '--restore-to and --target do not go together', {
      hint: 'ask one after the other',
    })
  }
  const configuration = await readConfiguration(context, onCheck)
  if (restoreTo !== undefined) {
    await examineRestorePlace({
      into: resolve(restoreTo),
      // A machine that is being recovered may have none yet.
      staging: configuration?.staging,
      uid: process.getuid?.() ?? 0,
      dryRun: isGiven(context.values, 'dry-run'),
      signal: context.signal,
      onCheck,
    })
    return
  }
  if (configuration !== undefined && target !== undefined) {
    await examineOne(context, { configuration, name: target, onCheck })
    return
  }
  if (configuration === undefined) {
    for (const check of await examineRsync()) onCheck(check)
    return
  }
  await examineMachine({
    configuration,
    uid: process.getuid?.() ?? 0,
    home: context.home,
    nowMs: context.now(),
    pid: process.pid,
    dryRun: isGiven(context.values, 'dry-run'),
    signal: context.signal,
    onCheck,
  })
}

/** Under the lock of every run: an export meanwhile would find the drive full. */
async function examineOne(
  context: CommandContext,
  {
    configuration,
    name,
    onCheck,
  }: {
    readonly configuration: Configuration
    readonly name: string
    readonly onCheck: (check: Check) => void
  },
): Promise<void> {
  const { values, reporter, signal } = context
  const target = targetNamed(configuration, name)
  const dryRun = isGiven(values, 'dry-run')
  const withCapacity = !isGiven(values, 'no-capacity')
  const work = async (): Promise<void> => {
    const { report } = reporter
    if (target.kind === 's3') {
      const { now } = context
      await examineBucket({ configuration, target, dryRun, now, signal, onCheck })
      return
    }
    const options = { configuration, target, dryRun, withCapacity, report, signal, onCheck }
    await examineTarget(options)
  }
  // Before the first run there is no staging, and nothing that could be under way.
  if (!existsSync(configuration.staging)) await work()
  else await withRunLock(context, { configuration, command: command.name }, work)
}

async function readConfiguration(
  { loadConfiguration }: CommandContext,
  onCheck: (check: Check) => void,
): Promise<Configuration | undefined> {
  try {
    return await loadConfiguration()
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    onCheck(asFailure('configuration', error))
    return undefined
  }
}

/** What is well is not said with -q. */
function tellCheck({ reporter }: CommandContext, { name, verdict, message, fix }: Check): void {
  const line = `${LABELS[verdict]}  ${name}: ${message}${fix === undefined ? '' : `; fix: ${fix}`}`
  if (verdict === 'ok') reporter.tell(line)
  else reporter.print(line)
}
