// `backup doctor`: what is wrong with this machine for this configuration, and how to put it right.
//
// Parses and tells; lib/work/doctor.ts looks, and lib/work/doctor-target.ts at one target. A
// configuration that cannot be read is a finding like any other, and the checks that need none are
// still made. Exits 1 when something fails, else 0. Throws USAGE and LOCKED.

import { existsSync } from 'node:fs'
import process from 'node:process'
import { BackupError, type ExitCode } from '../lib/errors.ts'
import type { Configuration } from '../lib/machine/config.ts'
import { asFailure, type Check } from '../lib/model/check.ts'
import { examineMachine, examineRsync } from '../lib/work/doctor.ts'
import { examineTarget } from '../lib/work/doctor-target.ts'
import { targetNamed } from '../lib/work/target-access.ts'
import { type Command, type CommandContext, isGiven, textOption } from './command.ts'
import { withRunLock } from './run-lock.ts'

const LABELS = { ok: 'ok  ', warning: 'WARN', failure: 'FAIL' } as const

export const command: Command = {
  name: 'backup doctor',
  summary: 'what is wrong with this machine, with the fix',
  usage: `Usage: backup doctor [--target NAME [--no-capacity]] [--dry-run] [--json]

Looks whether this machine can back up what the configuration says: which rsync, the programs,
staging, its space, the clock, keys, hooks, sources and the snapshots they get. Copies a small
tree within staging by rsync, to see what survives there, and removes it again. One line a check:
ok, WARN or FAIL, and what to do. Exits 1 when something fails, 0 with warnings.

With --target it looks at that target instead: whether it can be written and read back, its
filesystem, repository and space, what SMART says of the drive, and whether the drive holds as
much as it says. For that it reserves nearly all free space for a moment, writes blocks all over
it and reads them back. See docs/drive-health.md before you try a drive that has data on it.

  --target NAME   look at this target, not at the machine
  --no-capacity   without reserving and writing the free space
  --dry-run       without the copy in staging; nothing is written to the target
`,
  options: { target: { type: 'string' }, 'no-capacity': { type: 'boolean' } },
  run: async (context) => {
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

async function examine(context: CommandContext, onCheck: (check: Check) => void): Promise<void> {
  const target = textOption(context.values, 'target')
  if (target === undefined && isGiven(context.values, 'no-capacity')) {
    throw new BackupError('USAGE', '--no-capacity belongs to --target')
  }
  const configuration = await readConfiguration(context, onCheck)
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
