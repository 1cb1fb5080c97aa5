// `backup-collect`: a new collection of each set in staging.
//
// Parses and tells; lib/work/collect.ts does it. Each set has an outcome of its own and the exit
// code is the worst of them. backup.ts collects by way of collectSets, too. Throws what loading the
// configuration throws, and USAGE.

import { BackupError, type ExitCode, worstExitCode } from '../lib/errors.ts'
import type { Configuration, SetConfiguration } from '../lib/machine/config.ts'
import { formatSize } from '../lib/model/amount.ts'
import { displayPath } from '../lib/model/raw-path.ts'
import { type CollectOutcome, collectSet } from '../lib/work/collect.ts'
import { chosenSets } from './chosen.ts'
import { type Command, type CommandContext, isGiven, textOptions } from './command.ts'

/** How many missing paths are named on a terminal; `--json` and the catalog name all. */
const MISSING_SHOWN = 20

export const command: Command = {
  name: 'backup-collect',
  summary: 'collect the sources of each set into staging',
  usage: `Usage: backup-collect [--set NAME…] [--dry-run]

Copies the sources of each set into a new dated directory in staging; files that did not change
are links to the collection before. From btrfs it reads a read-only snapshot. Then lets old
collections go, as retention.local says. What cannot be read is named, and makes the collection
incomplete: it is kept, but is never "latest".

  --set NAME      only this set (again for more; default: all)
  --dry-run       what rsync would copy
`,
  options: { set: { type: 'string', multiple: true } },
  run: async (context) => {
    const configuration = await context.loadConfiguration()
    const sets = chosenSets(configuration, textOptions(context.values, 'set'))
    return await collectSets(context, { configuration, sets, command: command.name })
  },
}

/**
 * Collects set after set, telling each outcome; one that fails does not stop the others. @returns
 * the worst exit code
 */
export async function collectSets(
  context: CommandContext,
  {
    configuration,
    sets,
    command: name,
  }: {
    readonly configuration: Configuration
    readonly sets: readonly SetConfiguration[]
    readonly command: string
  },
): Promise<ExitCode> {
  const codes: ExitCode[] = []
  const dryRun = isGiven(context.values, 'dry-run')
  for (const set of sets) {
    const { signal } = context
    if (signal.aborted) throw new BackupError('INTERRUPTED', 'interrupted')
    try {
      const options = {
        configuration,
        set,
        report: context.reporter.report,
        nowMs: context.now(),
        signal,
        dryRun,
      }
      codes.push(
        tellOutcome(context, { outcome: await collectSet(options), command: name, dryRun }),
      )
    } catch (error) {
      if (!(error instanceof BackupError) || error.code === 'INTERRUPTED') throw error
      codes.push(tellFailure(context, { set: set.name, error, command: name }))
    }
  }
  return worstExitCode(codes)
}

function tellOutcome(
  { reporter }: CommandContext,
  { outcome, command: name, dryRun }: { outcome: CollectOutcome; command: string; dryRun: boolean },
): ExitCode {
  const { set, missing, complete } = outcome
  const exitCode = complete ? 0 : 3
  for (const { path, why } of missing.slice(0, MISSING_SHOWN)) {
    const message = `${set}: missing: /${displayPath(path)}: ${why}`
    reporter.report({ kind: 'notice', level: 'warning', code: 'MISSING', message })
  }
  if (missing.length > MISSING_SHOWN) {
    const message = `${set}: and ${missing.length - MISSING_SHOWN} more paths (--json names all)`
    reporter.report({ kind: 'notice', level: 'warning', code: 'MISSING', message })
  }
  reporter.tell(`${set}: ${dryRun ? previewSentence(outcome) : sentence(outcome)}`)
  const facts = {
    ...outcome,
    missing: missing.map(({ path, why }) => ({ path: displayPath(path), why })),
  }
  reporter.report({
    kind: 'result',
    command: name,
    outcome: 'collected',
    dryRun,
    ...facts,
    exitCode,
  })
  return exitCode
}

function sentence(outcome: CollectOutcome): string {
  const { stamp, complete, missing, entries, bytes, removed } = outcome
  const word = complete ? 'collected' : `collected as INCOMPLETE, ${missing.length} missing`
  const gone = removed.length === 0 ? '' : `; ${removed.length} old removed`
  return `${stamp} ${word}: ${entries} entries, ${formatSize(bytes)}; ${changes(outcome)}${gone}`
}

function previewSentence(outcome: CollectOutcome): string {
  const lacking = outcome.complete ? '' : `, ${outcome.missing.length} missing`
  return `would collect ${outcome.stamp}${lacking}: ${changes(outcome)}`
}

function changes({ copiedFiles, copiedBytes, linkedFiles, linkedBytes }: CollectOutcome): string {
  const copied = `${copiedFiles} files copied (${formatSize(copiedBytes)})`
  return `${copied}, ${linkedFiles} linked (${formatSize(linkedBytes)})`
}

function tellFailure(
  { reporter }: CommandContext,
  { set, error, command: name }: { set: string; error: BackupError; command: string },
): ExitCode {
  const { code, exitCode, facts } = error
  const message = `${set}: ${error.message}${error.hint === undefined ? '' : ` (${error.hint})`}`
  reporter.report({ kind: 'notice', level: 'warning', code, message, facts })
  reporter.report({ kind: 'result', command: name, set, outcome: 'failed', code, exitCode })
  return exitCode
}
