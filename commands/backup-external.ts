// `backup-external`: exports the newest collections to the configured targets.
//
// Parses and tells; lib/work/external.ts does it. Each target and set has an outcome of its own, the exit code is the worst.

import { BackupError, type ExitCode } from '../lib/errors.ts'
import type { Configuration, TargetConfiguration } from '../lib/machine/config.ts'
import { exportAll, previewAll } from '../lib/work/external.ts'
import { targetNamed } from '../lib/work/target-access.ts'
import { type Command, type CommandContext, isGiven, textOptions } from './command.ts'
import { tellOutcomes } from './outcomes.ts'

export const command: Command = {
  name: 'backup-external',
  summary: 'export the newest collections to drives, encrypted and read back',
  usage: `Usage: backup-external [--target NAME…] [--set NAME…] [--dry-run]

Writes what each target does not have yet of the newest collection of each set: encrypted
bundles with checksums, read back from the medium before the export counts. Then lets exports
go that retention no longer keeps. An incomplete collection is exported as incomplete.

  --target NAME   only this target (again for more; default: all)
  --set NAME      only this set (again for more; default: all)
`,
  options: {
    target: { type: 'string', multiple: true },
    set: { type: 'string', multiple: true },
  },
  run,
}

async function run(context: CommandContext): Promise<ExitCode> {
  const configuration = await context.loadConfiguration()
  const targets = chosenTargets(configuration, textOptions(context.values, 'target'))
  const sets = chosenSets(configuration, textOptions(context.values, 'set'))
  if (isGiven(context.values, 'dry-run')) return await preview(context, { configuration, targets, sets })
  const { reporter, signal } = context
  const outcomes = await exportAll({
    configuration, targets, sets, nowMs: context.now(), report: reporter.report, signal,
  })
  return tellOutcomes(outcomes, { reporter, command: command.name })
}

/** @throws BackupError CONFIG_INVALID without any target, USAGE for an unknown one */
function chosenTargets(
  configuration: Configuration, names: readonly string[],
): readonly TargetConfiguration[] {
  if (names.length > 0) return names.map((name) => targetNamed(configuration, name))
  if (configuration.targets.length > 0) return configuration.targets
  throw new BackupError('CONFIG_INVALID', `no targets are configured in ${configuration.path}`, {
    hint: 'add `targets: [{name: t9, kind: directory, path: /media/you/T9/backups}]`',
  })
}

/** @throws BackupError USAGE for an unknown set */
export function chosenSets(configuration: Configuration, names: readonly string[]): readonly string[] {
  const known = configuration.backupSets.map(({ name }) => name)
  const unknown = names.find((name) => !known.includes(name))
  if (unknown === undefined) return names.length > 0 ? names : known
  throw new BackupError('USAGE', `there is no set ${unknown}`, { hint: `configured are: ${known.join(', ')}` })
}

async function preview(
  { reporter }: CommandContext,
  of: {
    configuration: Configuration; targets: readonly TargetConfiguration[]; sets: readonly string[]
  },
): Promise<ExitCode> {
  for (const { target, set, stamp, entries, action } of await previewAll(of)) {
    reporter.print(`${set} → ${target}: ${action === 'export' ? `would export ${stamp}, ${entries} entries` : action}`)
    reporter.report({ kind: 'result', command: command.name, target, set, stamp, entries, action })
  }
  return 0
}
