// `backup-external`: exports the newest collections to the configured targets.
//
// Parses and tells; lib/work/external.ts does it. Each target and set has an outcome of its own and
// the exit code is the worst of them. backup.ts exports by way of exportSets, too. Throws what
// loading the configuration throws, and USAGE.

import { BackupError, type ExitCode, worstExitCode } from '../lib/errors.ts'
import type { Configuration, SetConfiguration, TargetConfiguration } from '../lib/machine/config.ts'
import { type ExternalOutcome, exportAll, previewAll } from '../lib/work/external.ts'
import { type EndedRun, isRun, outcomeOf, type RunRecord } from '../lib/work/history.ts'
import { surveyCollections } from '../lib/work/staging.ts'
import { chosenSets, chosenTargets } from './chosen.ts'
import { type Command, type CommandContext, isGiven, textOptions } from './command.ts'
import { tellEnd, tellOutcomes } from './outcomes.ts'
import { failedRun, keepHistory, type RunLedger } from './run-history.ts'
import { withRunLock } from './run-lock.ts'
import { withTelling } from './run-telling.ts'

export const command: Command = {
  name: 'backup-external',
  summary: 'export the newest collections to drives, encrypted and read back',
  usage: `Usage: backup-external [--target NAME…] [--set NAME…] [--dry-run]

Writes what each target does not have yet of the newest collection of each set: encrypted
bundles with checksums, read back from the medium before the export counts. Then lets exports
go that retention no longer keeps. An incomplete collection is exported as incomplete.

  --target NAME   only this target (again for more; default: all)
  --set NAME      only this set (again for more; default: all)
  --dry-run       which collections would be exported
`,
  options: { target: { type: 'string', multiple: true }, set: { type: 'string', multiple: true } },
  run: async (context) => {
    const configuration = await context.loadConfiguration()
    const named = textOptions(context.values, 'target')
    const targets = chosenTargets(configuration, named)
    const sets = chosenSets(configuration, textOptions(context.values, 'set'))
    if (targets.length > 0) {
      const work = { configuration, targets, sets, startMs: context.now(), command: command.name }
      return await withTelling(context, work, async (ledger) => {
        return await withRunLock(context, work, async () => {
          return await exportSets(context, {
            ...work,
            absentCode: 10,
            ledger,
            isNamed: named.length > 0,
          })
        })
      })
    }
    throw new BackupError('CONFIG_INVALID', `no targets are configured in ${configuration.path}`, {
      hint: '`backup drives add t9 --device /dev/…` makes a drive one; docs/drives.md says more',
    })
  },
}

/**
 * Exports sets to targets, telling each outcome and adding it to the history.
 * @param options.startMs when the command began
 * @param options.absentCode what an absent target means for this command: 10 when it was asked for,
 * 75 when it can wait
 * @returns the worst exit code
 */
export async function exportSets(
  context: CommandContext,
  options: {
    readonly configuration: Configuration
    readonly targets: readonly TargetConfiguration[]
    readonly sets: readonly SetConfiguration[]
    readonly startMs: number
    readonly command: string
    readonly absentCode: 10 | 75
    readonly ledger: RunLedger
    /** Of a pool: only this drive. */
    readonly onlyDrive?: string | undefined
    readonly isPluggedIn?: boolean
    /** Whether what was proven long ago is read again afterwards. */
    readonly isVerifyDue?: boolean
    /** Whether somebody named the targets. */
    readonly isNamed?: boolean
  },
): Promise<ExitCode> {
  const { configuration, targets, command: name, absentCode, ledger } = options
  const { onlyDrive, isPluggedIn = false, isVerifyDue = false, isNamed = false } = options
  const { reporter, signal } = context
  const sets = options.sets.map((set) => set.name)
  if (!isGiven(context.values, 'dry-run')) {
    const { outcomes, ends } = await exportAll({
      configuration,
      targets,
      sets,
      onlyDrive,
      isPluggedIn,
      isVerifyDue,
      isNamed,
      nowMs: context.now(),
      report: reporter.report,
      signal,
      environment: context.environment,
    })
    const when = { startMs: options.startMs, endMs: context.now() }
    const { staging } = configuration
    const runs = outcomes.flatMap((outcome) => exportRuns(outcome, { staging, sets, when }))
    keepHistory(context, { staging, runs, ledger })
    ledger.absent.push(...outcomes.filter(({ error }) => error?.code === 'TARGET_ABSENT'))
    ledger.ends.push(...ends)
    const isQuiet = absentCode === 75 && !context.hasTerminal
    const told = tellOutcomes(outcomes, { reporter, command: name, absentCode, isQuiet })
    return worstExitCode([told, ...ends.map((end) => tellEnd(end, { reporter, command: name }))])
  }
  for (const { target, set, stamp, entries, action } of await previewAll({
    configuration,
    targets,
    sets,
  })) {
    const what = action === 'export' ? `would export ${stamp}, ${entries} entries` : action
    reporter.print(`${set} → ${target}: ${what}`)
    reporter.report({
      kind: 'result',
      command: name,
      dryRun: true,
      target,
      set,
      stamp,
      entries,
      action,
    })
  }
  return 0
}

/** What the history keeps of an outcome: one run for each set, also when the target failed. */
function exportRuns(
  { target, drive, repository, set, exitCode, outcome, error }: ExternalOutcome,
  {
    staging,
    sets,
    when,
  }: {
    readonly staging: string
    readonly sets: readonly string[]
    readonly when: { readonly startMs: number; readonly endMs: number }
  },
): readonly RunRecord[] {
  const run = (name: string, ended: EndedRun): RunRecord => {
    return { phase: 'export', set: name, target, drive, repository, ...when, ...ended }
  }
  if (error !== undefined) {
    const failed = set === undefined ? sets : [set]
    return isRun(error) ? failed.map((name) => run(name, failedRun(error))) : []
  }
  // Nothing collected, or the newest collection is suspect: nothing was done.
  const isThere = outcome?.kind === 'exported' || outcome?.kind === 'already there'
  if (set === undefined || !isThere) return []
  const { stamp } = outcome
  const none = { stamp, exitCode, errorCode: undefined, message: undefined }
  if (outcome.kind === 'exported') {
    const { complete, statistics, dataBytes, catalogBytes, manifestBytes } = outcome
    const writtenBytes = dataBytes + catalogBytes + manifestBytes
    const sizes = { bytes: statistics.bytes, writtenBytes }
    return [run(set, { ...none, outcome: outcomeOf({ complete }), ...sizes })]
  }
  // What is there already is as good as the collection that it was made of.
  const { collections } = surveyCollections({ staging, set })
  const made = collections.find((collection) => collection.stamp === stamp)
  const sizes = { bytes: made?.bytes ?? 0, writtenBytes: 0 }
  return [run(set, { ...none, outcome: outcomeOf(made ?? { complete: true }), ...sizes })]
}
