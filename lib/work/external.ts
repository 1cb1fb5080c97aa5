// The second phase: every target × every set, each with an outcome of its own (design §6, style
// rule 18).
//
// Calls export.ts for each pair; one failed target or set never hides another's success. Throws
// only what concerns the run as a whole: LOCKED, CONFIG_INVALID, CONFIG_ABSENT, INTERRUPTED.

import { BackupError, type ExitCode } from '../errors.ts'
import type { Configuration, TargetConfiguration } from '../machine/config.ts'
import { withHooks } from '../machine/hooks.ts'
import { isFrozen } from '../model/collection.ts'
import type { Report } from '../model/report.ts'
import { type ExportOutcome, exportSet } from './export.ts'
import { enterMachine, exportsOf, findRepository, listStamps } from './repository.ts'
import { type Signer, openSigner } from './signing.ts'
import { acquireSetLock, surveyCollections } from './staging.ts'
import { openTarget, repositoryToWrite } from './target-access.ts'

export interface ExternalOptions {
  readonly configuration: Configuration
  readonly targets: readonly TargetConfiguration[]
  readonly sets: readonly string[]
  readonly nowMs: number
  readonly report: Report
  readonly signal: AbortSignal
  /** Ours: hooks get a few variables of it. */
  readonly environment: Readonly<Record<string, string | undefined>>
}

export interface ExternalOutcome {
  readonly target: string
  /** Undefined when the target itself could not be had. */
  readonly set: string | undefined
  readonly exitCode: ExitCode
  readonly outcome: ExportOutcome | undefined
  readonly error: BackupError | undefined
}

/**
 * Exports the newest collection of every set to every target. The caller holds the run's lock: two
 * would write the same state.
 */
export async function exportAll(options: ExternalOptions): Promise<readonly ExternalOutcome[]> {
  checkRecipients(options.configuration)
  const signer = await openSigner(options.configuration)
  const outcomes: ExternalOutcome[] = []
  for (const target of options.targets) {
    outcomes.push(...(await exportToTarget(options, { targetConfiguration: target, signer })))
  }
  return outcomes
}

/** @throws BackupError CONFIG_INVALID when there is nobody to encrypt to */
export function checkRecipients({ recipients, path }: Configuration): void {
  if (recipients.length > 0) return
  throw new BackupError('CONFIG_INVALID', `no recipients are configured in ${path}`, {
    hint: 'exports are encrypted to `recipients`; `backup init` makes an identity for them',
  })
}

async function exportToTarget(
  options: ExternalOptions,
  { targetConfiguration, signer }: { targetConfiguration: TargetConfiguration; signer: Signer },
): Promise<readonly ExternalOutcome[]> {
  const { configuration, sets, nowMs, report, signal } = options
  const target = targetConfiguration.name
  return await withOutcome({ target, set: undefined }, async () => {
    const opened = await openTarget(targetConfiguration, configuration)
    const repository = await repositoryToWrite(opened, { staging: configuration.staging, nowMs })
    await enterMachine(repository, { machine: configuration.machine, signer })
    const outcomes: ExternalOutcome[] = []
    for (const set of sets) {
      outcomes.push(
        ...(await withOutcome({ target, set }, async () => {
          // So that no collection of the set comes or goes meanwhile.
          const description = `backup-external to ${target}`
          const exportLocked = async (): Promise<ExportOutcome> => {
            const { staging } = configuration
            const lock = acquireSetLock({ staging, set, description, waitMs: 0 })
            try {
              const from = { configuration, repository, set, signer, nowMs, report, signal }
              return await exportSet({ ...from, targetConfiguration })
            } finally {
              lock.release()
            }
          }
          const outcome = await withExportHooks(options, { set, target }, exportLocked)
          return [{ target, set, exitCode: exitCodeOf(outcome), outcome, error: undefined }]
        })),
      )
    }
    return outcomes
  })
}

/** The set's hooks around its export to one target. */
async function withExportHooks(
  { configuration, report, signal, environment }: ExternalOptions,
  { set, target }: { set: string; target: string },
  work: () => Promise<ExportOutcome>,
): Promise<ExportOutcome> {
  const hooks = configuration.backupSets.find(({ name }) => name === set)?.hooks.export
  if (hooks === undefined) return await work()
  const { path, staging } = configuration
  const facts = { set, target, phase: 'export' as const, configuration: path, staging }
  return await withHooks({ hooks, facts, report, signal, environment }, async () => {
    const value = await work()
    const isIncomplete =
      value.kind === 'nothing collected' || (value.kind === 'exported' && !value.complete)
    const outcome = value.kind === 'suspect' ? 'suspect' : isIncomplete ? 'incomplete' : 'good'
    return { outcome, value, ...('stamp' in value ? { stamp: value.stamp } : {}) }
  })
}

/** Turns a BackupError into an outcome, unless it ends the whole run. */
async function withOutcome(
  of: { target: string; set: string | undefined },
  action: () => Promise<readonly ExternalOutcome[]>,
): Promise<readonly ExternalOutcome[]> {
  try {
    return await action()
  } catch (error) {
    if (!(error instanceof BackupError) || error.code === 'INTERRUPTED') throw error
    return [{ ...of, exitCode: error.exitCode, outcome: undefined, error }]
  }
}

function exitCodeOf(outcome: ExportOutcome): ExitCode {
  if (outcome.kind === 'suspect') return 3
  if (outcome.kind === 'exported' && !outcome.complete) return 3
  return outcome.kind === 'nothing collected' ? 1 : 0
}

/** What a run would do, without doing it. */
export interface ExternalPreview {
  readonly target: string
  readonly set: string
  readonly stamp: string | undefined
  readonly entries: number
  /** `export`, or why not. */
  readonly action: 'export' | 'already there' | 'nothing collected' | 'suspect: waits for accept'
}

/** What exportAll() would export: reads the target, writes nothing. @throws BackupError TARGET_* */
export async function previewAll({
  configuration,
  targets,
  sets,
}: Pick<ExternalOptions, 'configuration' | 'targets' | 'sets'>): Promise<
  readonly ExternalPreview[]
> {
  const previews: ExternalPreview[] = []
  for (const targetConfiguration of targets) {
    const target = targetConfiguration.name
    const repository = await findRepository(await openTarget(targetConfiguration, configuration))
    const stamps =
      repository === undefined ? [] : exportsOf(await listStamps(repository, configuration.machine))
    for (const set of sets) {
      const newest = surveyCollections({ staging: configuration.staging, set }).collections.at(-1)
      const isThere =
        newest !== undefined
        && stamps.some((place) => place.set === set && place.stamp >= newest.stamp)
      const action =
        newest === undefined
          ? 'nothing collected'
          : isFrozen(newest)
            ? 'suspect: waits for accept'
            : isThere
              ? 'already there'
              : 'export'
      previews.push({ target, set, stamp: newest?.stamp, entries: newest?.entries ?? 0, action })
    }
  }
  return previews
}
