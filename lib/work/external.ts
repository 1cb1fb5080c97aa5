// The second phase: every target × every set, each with an outcome of its own (design §6, style
// rule 18).
//
// Calls export.ts for each pair; one failed target or set never hides another's success. Throws
// only what concerns the run as a whole: LOCKED, CONFIG_INVALID, CONFIG_ABSENT, INTERRUPTED.

import { mkdirSync } from 'node:fs'
import { BackupError, type ExitCode } from '../errors.ts'
import type { Configuration, TargetConfiguration } from '../machine/config.ts'
import { type Lock, acquireLock } from '../machine/lock.ts'
import { rawPathFromText } from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import { type ExportOutcome, exportSet } from './export.ts'
import { enterMachine, exportsOf, findRepository, listStamps } from './repository.ts'
import { type Signer, openSigner } from './signing.ts'
import { acquireSetLock, stateRoot, surveyCollections } from './staging.ts'
import { openTarget, repositoryToWrite } from './target-access.ts'

export interface ExternalOptions {
  readonly configuration: Configuration
  readonly targets: readonly TargetConfiguration[]
  readonly sets: readonly string[]
  readonly nowMs: number
  readonly report: Report
  readonly signal: AbortSignal
}

export interface ExternalOutcome {
  readonly target: string
  /** Undefined when the target itself could not be had. */
  readonly set: string | undefined
  readonly exitCode: ExitCode
  readonly outcome: ExportOutcome | undefined
  readonly error: BackupError | undefined
}

/** Exports the newest collection of every set to every target. */
export async function exportAll(options: ExternalOptions): Promise<readonly ExternalOutcome[]> {
  checkRecipients(options.configuration)
  const signer = await openSigner(options.configuration)
  const lock = lockExternal(options.configuration.staging)
  try {
    const outcomes: ExternalOutcome[] = []
    for (const target of options.targets) {
      outcomes.push(...(await exportToTarget(options, { targetConfiguration: target, signer })))
    }
    return outcomes
  } finally {
    lock.release()
  }
}

/**
 * One export phase per staging directory: two would write the same state. @throws BackupError
 * LOCKED
 */
function lockExternal(staging: string): Lock {
  mkdirSync(stateRoot(staging), { recursive: true, mode: 0o700 })
  const path = rawPathFromText(`${stateRoot(staging)}/external.lock`)
  return acquireLock({ path, description: 'backup-external' })
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
    const opened = openTarget(targetConfiguration, configuration)
    const repository = await repositoryToWrite(opened, { staging: configuration.staging, nowMs })
    await enterMachine(repository, { machine: configuration.machine, signer })
    const outcomes: ExternalOutcome[] = []
    for (const set of sets) {
      outcomes.push(
        ...(await withOutcome({ target, set }, async () => {
          // So that no collection of the set comes or goes meanwhile.
          const { staging } = configuration
          const lock = acquireSetLock({
            staging,
            set,
            description: `backup-external to ${target}`,
            waitMs: 0,
          })
          try {
            const outcome = await exportSet({
              configuration,
              targetConfiguration,
              repository,
              set,
              signer,
              report,
              signal,
            })
            return [{ target, set, exitCode: exitCodeOf(outcome), outcome, error: undefined }]
          } finally {
            lock.release()
          }
        })),
      )
    }
    return outcomes
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
  readonly action: 'export' | 'already there' | 'nothing collected'
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
  for (const { name: target, ...rest } of targets) {
    const repository = await findRepository(openTarget({ name: target, ...rest }, configuration))
    const stamps =
      repository === undefined ? [] : exportsOf(await listStamps(repository, configuration.machine))
    for (const set of sets) {
      const newest = surveyCollections({ staging: configuration.staging, set }).collections.at(-1)
      const isThere =
        newest !== undefined
        && stamps.some((place) => place.set === set && place.stamp >= newest.stamp)
      const action =
        newest === undefined ? 'nothing collected' : isThere ? 'already there' : 'export'
      previews.push({ target, set, stamp: newest?.stamp, entries: newest?.entries ?? 0, action })
    }
  }
  return previews
}
