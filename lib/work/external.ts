// The second phase: every target × every set, each with an outcome of its own (design §6, style
// rule 18).
//
// Calls export.ts for each pair; one failed target or set never hides another's success. Throws
// only what concerns the run as a whole: LOCKED, CONFIG_INVALID, CONFIG_ABSENT, INTERRUPTED.

import { BackupError, type ExitCode } from '../errors.ts'
import type { Configuration, TargetConfiguration } from '../machine/config.ts'
import { dirtyHint } from '../machine/drive-mount.ts'
import { withHooks } from '../machine/hooks.ts'
import { isFrozen } from '../model/collection.ts'
import type { Report } from '../model/report.ts'
import type { Check } from '../model/check.ts'
import { examineBucket } from './doctor-bucket.ts'
import { olderReadsError } from './hidden-objects.ts'
import { BucketMoney } from './bucket-money.ts'
import { type ExportOutcome, exportSet } from './export.ts'
import {
  type ExportPlace,
  type Repository,
  enterMachine,
  exportsOf,
  findRepository,
  listStamps,
} from './repository.ts'
import { type Signer, openSigner } from './signing.ts'
import { acquireSetLock, surveyCollections } from './staging.ts'
import { openTarget, repositoryToWrite, type WritableRepository } from './target-access.ts'
import { driveError, endTarget, isGone, type TargetEnd } from './target-end.ts'

export interface ExternalOptions {
  readonly configuration: Configuration
  readonly targets: readonly TargetConfiguration[]
  readonly sets: readonly string[]
  /** Whether somebody named the targets: then each of them gets the exports. */
  readonly isNamed?: boolean
  /** Of pools: only this drive of the target. */
  readonly onlyDrive?: string | undefined
  /** Whether a drive was just plugged in, so that a drill is due in any case. */
  readonly isPluggedIn?: boolean
  /** Whether what was proven long ago is read again afterwards. */
  readonly isVerifyDue?: boolean
  readonly nowMs: number
  readonly report: Report
  readonly signal: AbortSignal
  /** Ours: hooks get a few variables of it. */
  readonly environment: Readonly<Record<string, string | undefined>>
}

export interface ExternalOutcome {
  readonly target: string
  /** Where the target is of kind `drive`, and one was there. */
  readonly drive: string | undefined
  /** Of a drive: its repository's id. */
  readonly repository: string | undefined
  /** Undefined when the target itself could not be had. */
  readonly set: string | undefined
  readonly exitCode: ExitCode
  readonly outcome: ExportOutcome | undefined
  readonly error: BackupError | undefined
}

export interface ExternalReport {
  readonly outcomes: readonly ExternalOutcome[]
  /** One for each target that was there to the end. */
  readonly ends: readonly TargetEnd[]
}

/**
 * Exports the newest collection of every set to every target. The caller holds the run's lock: two
 * would write the same state.
 */
export async function exportAll(options: ExternalOptions): Promise<ExternalReport> {
  checkRecipients(options.configuration)
  const signer = await openSigner(options.configuration)
  const beganMs = performance.now()
  let outcomes: ExternalOutcome[] = []
  const ends: TargetEnd[] = []
  const isFirst = options.configuration.exportTo === 'first' && options.isNamed !== true
  for (const target of isFirst ? byPriority(options.targets) : options.targets) {
    const done = await exportToTarget(options, { target, signer, beganMs })
    const isThere = done.outcomes.every(({ set }) => set !== undefined)
    // That those before it are not there is as it should be.
    if (isFirst && isThere)
      outcomes = outcomes.filter(({ error }) => error?.code !== 'TARGET_ABSENT')
    outcomes.push(...done.outcomes)
    ends.push(...done.ends)
    if (isFirst && isThere) break
  }
  return { outcomes, ends }
}

function byPriority(targets: readonly TargetConfiguration[]): readonly TargetConfiguration[] {
  return [...targets].sort((one, other) => one.priority - other.priority)
}

/** @throws BackupError CONFIG_INVALID when there is nobody to encrypt to */
export function checkRecipients({ recipients, path }: Configuration): void {
  if (recipients.length > 0) return
  throw new BackupError('CONFIG_INVALID', `no recipients are configured in ${path}`, {
    hint: 'exports are encrypted to `recipients`; `backup init` makes an identity for them',
  })
}

interface Work {
  readonly target: TargetConfiguration
  readonly signer: Signer
  /** When exportAll was called, as performance.now() has it. */
  readonly beganMs: number
}

async function exportToTarget(options: ExternalOptions, work: Work): Promise<ExternalReport> {
  const { configuration, nowMs, signal, onlyDrive } = options
  const { target, signer } = work
  const { publicKey } = signer
  const of = { target: target.name, set: undefined, drive: undefined, repository: undefined }
  const opened = await attempt(async () => {
    const write = { configuration, publicKey, nowMs, onlyDrive, signal }
    const writable = await repositoryToWrite(target, write)
    await enterMachine(writable.repository, { machine: configuration.machine, signer })
    return writable
  })
  if (opened instanceof BackupError) return { outcomes: [failed(of, opened)], ends: [] }
  const { drive } = opened
  if (drive?.warning !== undefined) {
    const message = `${target.name}: ${drive.warning}; ${dirtyHint(drive.plugged.filesystem)}`
    options.report({ kind: 'notice', level: 'warning', code: 'DRIVE_DIRTY', message })
  }
  const older = olderReadsError(opened.repository.target)
  if (older !== undefined) {
    const { code, message, hint } = older
    const text = `${message} (${hint})`
    options.report({ kind: 'notice', level: 'warning', code, message: text })
  }
  const outcomes: ExternalOutcome[] = []
  try {
    const money = await openMoney(target, opened.repository)
    if (opened.isNew) await lookAtBucket(options, target)
    await exportSets(options, { ...work, ...opened, outcomes, money })
    if (isGone(drive)) return { outcomes, ends: [] }
    const isDrillDue =
      options.isPluggedIn === true || outcomes.some(({ outcome }) => outcome?.kind === 'exported')
    const { report } = options
    const endMs = nowMs + Math.round(performance.now() - work.beganMs)
    const { isPluggedIn = false } = options
    const due = { isDrillDue, isPluggedIn, isVerifyDue: options.isVerifyDue === true }
    const exported = exportedOf(outcomes, configuration.machine)
    const bucket = { money, exported, newest: newestOf(outcomes, configuration.machine) }
    const all = { configuration, target, signer, ...due, ...bucket, nowMs: endMs, report, signal }
    return { outcomes, ends: [await endTarget({ ...all, ...opened })] }
  } catch (error) {
    // Unplugging it ends the service, and so this run: that is the drive's failure.
    if (!(error instanceof BackupError) || !isGone(drive)) throw error
    const open = options.sets.filter((set) => !outcomes.some((outcome) => outcome.set === set))
    const reason = driveError(error, { target, drive })
    const rest = open.map((set) => failed({ ...of, set, ...ofDrive(opened) }, reason))
    return { outcomes: [...outcomes, ...rest], ends: [] }
  } finally {
    await opened.repository.target.close()
  }
}

/** A bucket is looked at before it is trusted with anything; what is not well is told. */
async function lookAtBucket(
  { configuration, nowMs, report, signal }: ExternalOptions,
  target: TargetConfiguration,
): Promise<void> {
  if (target.kind !== 's3') return
  const bad: Check[] = []
  await examineBucket({
    ...{ configuration, target, dryRun: false, now: () => nowMs, signal },
    onCheck: (check) => {
      if (check.verdict === 'failure') bad.push(check)
    },
  })
  for (const { name, message, fix } of bad) {
    const mend = fix === undefined ? '' : ` (${fix})`
    const text = `${target.name}: ${name}: ${message}${mend}`
    report({ kind: 'notice', level: 'warning', code: 'BUCKET_UNSAFE', message: text })
  }
  const { name } = target
  const message = `${name}: \`backup doctor --target ${name}\` tells all of the bucket`
  report({ kind: 'notice', level: 'info', code: 'BUCKET_EXAMINED', message })
}

/** Of a bucket: what it costs. */
async function openMoney(
  target: TargetConfiguration,
  { target: { bucket } }: Repository,
): Promise<BucketMoney | undefined> {
  if (target.kind !== 's3' || bucket === undefined) return undefined
  return await BucketMoney.open(target, bucket)
}

/** The exports that were made. */
function exportedOf(
  outcomes: readonly ExternalOutcome[],
  machine: string,
): readonly (ExportPlace & { readonly complete: boolean })[] {
  return outcomes.flatMap(({ set, outcome }) => {
    if (set === undefined || outcome?.kind !== 'exported') return []
    const { stamp, complete } = outcome
    return [{ machine, set, stamp, complete }]
  })
}

/** The newest exports that are there, made now or before. */
function newestOf(outcomes: readonly ExternalOutcome[], machine: string): readonly ExportPlace[] {
  return outcomes.flatMap(({ set, outcome }) => {
    const isThere = outcome?.kind === 'exported' || outcome?.kind === 'already there'
    return set !== undefined && isThere ? [{ machine, set, stamp: outcome.stamp }] : []
  })
}

function ofDrive({
  drive,
  repository,
}: Pick<WritableRepository, 'drive' | 'repository'>): Pick<
  ExternalOutcome,
  'drive' | 'repository'
> {
  if (drive === undefined) return { drive: undefined, repository: undefined }
  return { drive: drive.plugged.drive.name, repository: repository.id }
}

/** Each set, until the drive is gone; adds to `outcomes`. */
async function exportSets(
  options: ExternalOptions,
  {
    target,
    signer,
    repository,
    drive,
    outcomes,
    money,
  }: Work
    & WritableRepository & {
      readonly outcomes: ExternalOutcome[]
      readonly money: BucketMoney | undefined
    },
): Promise<void> {
  const { configuration, nowMs, report, signal } = options
  for (const set of options.sets) {
    const of = { target: target.name, set, ...ofDrive({ drive, repository }) }
    // So that no collection of the set comes or goes meanwhile.
    const description = `backup-external to ${target.name}`
    const exportLocked = async (): Promise<ExportOutcome> => {
      const { staging } = configuration
      const lock = acquireSetLock({ staging, set, description, waitMs: 0 })
      try {
        const from = { configuration, repository, set, signer, nowMs, report, signal }
        const approve =
          money === undefined
            ? undefined
            : async (estimate: { set: string; bytes: number }) => {
                await money.approveUpload(estimate, report)
              }
        const compaction = money?.compaction(nowMs)
        return await exportSet({ ...from, targetConfiguration: target, approve, compaction })
      } finally {
        lock.release()
      }
    }
    const outcome = await attempt(async () => {
      return await withExportHooks(options, { set, target: target.name }, exportLocked)
    })
    if (outcome instanceof BackupError) {
      outcomes.push(failed(of, driveError(outcome, { target, drive })))
      if (isGone(drive)) break
    } else outcomes.push({ ...of, exitCode: exitCodeOf(outcome), outcome, error: undefined })
  }
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

/** What went wrong, as a value, unless it ends the whole run. */
async function attempt<Value>(action: () => Promise<Value>): Promise<Value | BackupError> {
  try {
    return await action()
  } catch (error) {
    if (!(error instanceof BackupError) || error.code === 'INTERRUPTED') throw error
    return error
  }
}

function failed(
  of: Pick<ExternalOutcome, 'target' | 'set' | 'drive' | 'repository'>,
  error: BackupError,
): ExternalOutcome {
  return { ...of, exitCode: error.exitCode, outcome: undefined, error }
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
