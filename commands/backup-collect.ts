// `backup-collect`: a new collection of each set in staging.
//
// Parses and tells; lib/work/collect.ts does it. Each set has an outcome of its own and the exit
// code is the worst of them. backup.ts collects by way of collectSets, too. Throws what loading the
// configuration throws, and USAGE.

import { BackupError, type ExitCode, systemCode, worstExitCode } from '../lib/errors.ts'
import type { Configuration, SetConfiguration } from '../lib/machine/config.ts'
import { withHooks } from '../lib/machine/hooks.ts'
import { checkRsync } from '../lib/machine/rsync.ts'
import { formatSize } from '../lib/model/amount.ts'
import { displayPath, pathFacts, rawPathFromText } from '../lib/model/raw-path.ts'
import { type CollectOptions, type CollectOutcome, collectSet } from '../lib/work/collect.ts'
import { fidelityLosses, probeStaging } from '../lib/work/fidelity.ts'
import { type EndedRun, isRun, outcomeOf } from '../lib/work/history.ts'
import { listStamps, prepareStaging, stateRoot } from '../lib/work/staging.ts'
import { chosenSets } from './chosen.ts'
import { type Command, type CommandContext, isGiven, textOptions } from './command.ts'
import { tellDoubts } from './outcomes.ts'
import { failedRun, keepHistory, type RunLedger } from './run-history.ts'
import { withRunLock } from './run-lock.ts'
import { withTelling } from './run-telling.ts'

/** How many missing paths are named on a terminal; `--json` and the catalog name all. */
const MISSING_SHOWN = 20

export const command: Command = {
  name: 'backup-collect',
  summary: 'collect the sources of each set into staging',
  usage: `Usage: backup-collect [--set NAME…] [--full] [--dry-run]

Copies the sources of each set into a new dated directory in staging; files that did not change
are links to the collection before. From btrfs it reads a read-only snapshot. Then lets old
collections go, as retention.local says. What cannot be read is named, and makes the collection
incomplete: it is kept, but is never "latest".

  --set NAME      only this set (again for more; default: all)
  --full          compare every file's content, not only size and time
  --dry-run       what rsync would copy
`,
  options: { set: { type: 'string', multiple: true }, full: { type: 'boolean' } },
  run: async (context) => {
    const configuration = await context.loadConfiguration()
    const sets = chosenSets(configuration, textOptions(context.values, 'set'))
    const isFull = isGiven(context.values, 'full')
    const work = {
      configuration,
      sets,
      fullSets: isFull ? sets.map(({ name }) => name) : [],
      startMs: context.now(),
      command: command.name,
    }
    return await withTelling(context, work, async (ledger) => {
      return await withRunLock(context, work, async () => {
        return await collectSets(context, { ...work, ledger })
      })
    })
  },
}

/**
 * Collects set after set, telling each outcome and adding it to the history; one that fails does
 * not stop the others.
 * @param options.fullSets the sets whose content is compared
 * @param options.startMs when the command began
 * @returns the worst exit code
 */
export async function collectSets(
  context: CommandContext,
  {
    configuration,
    sets,
    fullSets,
    startMs,
    command: name,
    ledger,
  }: {
    readonly configuration: Configuration
    readonly sets: readonly SetConfiguration[]
    readonly fullSets: readonly string[]
    readonly startMs: number
    readonly command: string
    readonly ledger: RunLedger
  },
): Promise<ExitCode> {
  const codes: ExitCode[] = []
  const dryRun = isGiven(context.values, 'dry-run')
  const { staging } = configuration
  if (!dryRun) tellFidelity(context, configuration)
  for (const set of sets) {
    const { signal } = context
    if (signal.aborted) throw new BackupError('INTERRUPTED', 'interrupted')
    const full = fullSets.includes(set.name)
    // The first one copies every file, so no content is left to be compared.
    const isFirst = !dryRun && listStamps({ staging, set: set.name }).length === 0
    const phase = full || isFirst ? ('full' as const) : ('collect' as const)
    const keep = (run: EndedRun): void => {
      if (dryRun) return
      const when = { startMs, endMs: context.now() }
      const record = { phase, set: set.name, target: undefined, ...when, ...run }
      keepHistory(context, { staging, runs: [record], ledger })
    }
    try {
      const options = {
        configuration,
        set,
        full,
        report: context.reporter.report,
        nowMs: context.now(),
        signal,
        dryRun,
      }
      await checkRsync()
      const outcome = dryRun ? await collectSet(options) : await withCollectHooks(context, options)
      const exitCode = tellOutcome(context, { outcome, command: name, dryRun })
      keep({
        stamp: outcome.stamp,
        outcome: outcomeOf(outcome),
        exitCode,
        errorCode: undefined,
        message: undefined,
        bytes: outcome.bytes,
        writtenBytes: outcome.copiedBytes,
      })
      codes.push(exitCode)
    } catch (error) {
      if (!(error instanceof BackupError) || error.code === 'INTERRUPTED') throw error
      const exitCode = tellFailure(context, { set: set.name, error, command: name })
      if (isRun(error)) keep(failedRun(error))
      codes.push(exitCode)
    }
  }
  return worstExitCode(codes)
}

/** The set's hooks around its collection. */
async function withCollectHooks(
  { environment, signal }: CommandContext,
  options: CollectOptions,
): Promise<CollectOutcome> {
  const { configuration, set, report } = options
  const { path, staging } = configuration
  const facts = { set: set.name, phase: 'collect' as const, configuration: path, staging }
  const call = { hooks: set.hooks.collect, facts, report, signal, environment }
  return await withHooks(call, async () => {
    const value = await collectSet(options)
    const { complete, suspect, stamp } = value
    const outcome = suspect.length > 0 ? 'suspect' : complete ? 'good' : 'incomplete'
    return { outcome, value, stamp }
  })
}

/** What staging cannot keep of the sources is said once a run. */
function tellFidelity({ reporter }: CommandContext, { staging }: Configuration): void {
  prepareStaging(staging)
  const path = rawPathFromText(`${stateRoot(staging)}/probe-${process.pid}`)
  try {
    const losses = fidelityLosses({ uid: process.getuid?.() ?? 0, probe: probeStaging({ path }) })
    if (losses.length === 0) return
    const message = `staging: ${losses.join('; ')}`
    reporter.report({ kind: 'notice', level: 'warning', code: 'FIDELITY', message })
  } catch (error) {
    // Where not even a probe can be written, collecting says why.
    if (systemCode(error) === undefined) throw error
  }
}

function tellOutcome(
  { reporter }: CommandContext,
  { outcome, command: name, dryRun }: { outcome: CollectOutcome; command: string; dryRun: boolean },
): ExitCode {
  const { set, stamp, missing, complete, suspect } = outcome
  const exitCode = complete && suspect.length === 0 ? 0 : 3
  for (const { path, why } of missing.slice(0, MISSING_SHOWN)) {
    const message = `${set}: missing: /${displayPath(path)}: ${why}`
    reporter.report({ kind: 'notice', level: 'warning', code: 'MISSING', message })
  }
  if (missing.length > MISSING_SHOWN) {
    const message = `${set}: and ${missing.length - MISSING_SHOWN} more paths (--json names all)`
    reporter.report({ kind: 'notice', level: 'warning', code: 'MISSING', message })
  }
  tellDoubts({ stamp, doubts: suspect }, { where: set, set, reporter })
  reporter.tell(`${set}: ${dryRun ? previewSentence(outcome) : sentence(outcome)}`)
  const facts = {
    ...outcome,
    missing: missing.map(({ path, why }) => ({ ...pathFacts(path), why })),
    suspect: suspect.map(({ path, why }) => ({ ...pathFacts(path), why })),
    contentDiffers: outcome.contentDiffers.map((path) => pathFacts(path)),
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
  const { stamp, complete, missing, suspect, entries, bytes, removed } = outcome
  const lacking = complete ? '' : ` as INCOMPLETE, ${missing.length} missing`
  const word = `collected${suspect.length > 0 ? ' as SUSPECT' : ''}${lacking}`
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
  const { hint } = error
  reporter.report({ kind: 'result', command: name, set, outcome: 'failed', code, hint, exitCode })
  return exitCode
}
