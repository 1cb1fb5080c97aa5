// What is done with a target after its exports: parity, a drill, a verification of what was proven
// long ago, and for a drive the way out, so that "safe to unplug" is only said when it is.
//
// external.ts calls endTarget once for each target that was there. Nothing of it takes an export
// back: what fails here is a problem that is told beside the exports. Throws INTERRUPTED only.

import { existsSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { BackupError } from '../errors.ts'
import type { Configuration, TargetConfiguration } from '../machine/config.ts'
import { refuseInterruption } from '../machine/endings.ts'
import { readIdentityFile } from '../machine/identity.ts'
import { dirtyHint, mustBeUnmounted, powerOff, unmountDrive } from '../machine/drive-mount.ts'
import { rawPathFromText } from '../model/raw-path.ts'
import type { Receipt } from '../model/receipt.ts'
import type { Report } from '../model/report.ts'
import { bundlesIn, drillTarget } from './drill.ts'
import { readDrives, rememberDrive } from './drive-register.ts'
import { describeDrive, type DriveTarget } from './drive-target.ts'
import { noteDamage } from './known-damage.ts'
import { extendLocks, pathsToLock } from './bucket-locks.ts'
import type { BucketBill, BucketMoney } from './bucket-money.ts'
import { addParity } from './parity.ts'
import { type ProofOutcome, proveScheduled } from './proof.ts'
import { writeReceipt } from './receipts.ts'
import { isFreshnessCurrent, recordFreshness } from './freshness.ts'
import { type ExportPlace, type Repository, directoryOf, readVerification } from './repository.ts'
import type { Signer } from './signing.ts'

export interface TargetEnd {
  readonly target: string
  /** Where the target is of kind `drive`: which one. */
  readonly drive: string | undefined
  /** `t9`, `t9/blue`. */
  readonly name: string
  readonly place: string
  readonly freeBytes: number | undefined
  /** Of a drive. */
  readonly totalBytes: number | undefined
  readonly drill: Receipt | undefined
  /** What `verify` of the target asked for. */
  readonly proof?: ProofOutcome | undefined
  /** Only of a drive: whether it is unmounted, and switched off where that was asked; or pulled. */
  readonly unplug: 'safe' | 'off' | 'still mounted' | 'gone' | undefined
  readonly problems: readonly BackupError[]
  /** Of a bucket. */
  readonly bill: BucketBill | undefined
}

export interface EndOptions {
  readonly configuration: Configuration
  readonly target: TargetConfiguration
  readonly repository: Repository
  readonly drive: DriveTarget | undefined
  readonly signer: Signer
  /** Of a bucket: what was spent. */
  readonly money: BucketMoney | undefined
  /** The exports that were made. */
  readonly exported: readonly (ExportPlace & { readonly complete: boolean })[]
  /** The newest export of each set that this run dealt with. */
  readonly newest: readonly ExportPlace[]
  /** Whether something new came on it, or it was just plugged in. */
  readonly isDrillDue: boolean
  /** Whether the run was made by the schedule, and so reads again what was proven long ago. */
  readonly isVerifyDue: boolean
  /** Whether the run was begun by plugging the drive in, and so is ended by switching it off. */
  readonly isPluggedIn: boolean
  readonly nowMs: number
  readonly report: Report
  readonly signal: AbortSignal
}

/** Ends the work on a target. */
export async function endTarget(options: EndOptions): Promise<TargetEnd> {
  const { configuration, target, repository, drive, report, signal } = options
  const { machine, staging } = configuration
  const problems: BackupError[] = []
  const attempt = async <Value>(work: () => Promise<Value>): Promise<Value | undefined> => {
    try {
      return await work()
    } catch (error) {
      if (!(error instanceof BackupError) || error.code === 'INTERRUPTED') throw error
      problems.push(error)
      return undefined
    }
  }
  if (target.parityPercent > 0) {
    const percent = target.parityPercent
    const publicKeys = [options.signer.publicKey]
    await attempt(async () => {
      const parity = { machine, publicKeys, percent, staging, report, signal }
      const { damaged } = await addParity(repository, parity)
      noteDamage({ staging, id: repository.id }, { damaged, whole: [] })
      if (damaged.length > 0) throw damagedOnTarget(damaged)
    })
  }
  const drill = wantsDrill(options) ? await attempt(async () => await runDrill(options)) : undefined
  const proof = await attempt(async () => await readAgain(options))
  const freeBytes = await attempt(async () => await repository.target.freeBytes())
  await attempt(async () => rememberSpace(options, freeBytes))
  if (target.kind !== 'drive') await attempt(async () => await sayFreshness(options))
  await attempt(async () => await extendBucketLocks(options))
  const bill = await attempt(
    async () => await options.money?.bill(options.exported.map(directoryOf)),
  )
  const unplug = drive === undefined ? undefined : await attempt(async () => await leave(options))
  return {
    target: target.name,
    drive: drive?.plugged.drive.name,
    name: nameOf(options),
    place: repository.target.place,
    freeBytes,
    totalBytes: drive?.plugged.filesystem.sizeBytes,
    drill,
    proof,
    unplug:
      drive === undefined
        ? undefined
        : isGone(drive) && unplug !== 'off'
          ? 'gone'
          : (unplug ?? 'still mounted'),
    problems,
    bill,
  }
}

/** A run that found everything there already mostly has nothing new to say. */
async function sayFreshness(options: EndOptions): Promise<void> {
  const { configuration, target, repository, signer, exported, newest, nowMs } = options
  const { machine } = configuration
  const of = { machine, publicKeys: [signer.publicKey], newest, nowMs }
  if (exported.length === 0 && (await isFreshnessCurrent(repository, of))) return
  await recordFreshness({ configuration, target, repository, signer, exported, nowMs })
}

/** Older bundles that the newest exports need are locked for as long as these. */
async function extendBucketLocks({
  configuration: { staging },
  target,
  repository,
  signer,
  newest,
  nowMs,
  report,
  signal,
}: EndOptions): Promise<void> {
  const { bucket } = repository.target
  if (bucket === undefined || target.kind !== 's3' || target.lockMs === undefined) return
  const paths = new Set<string>()
  for (const place of newest) {
    const verification = await readVerification(repository, place, [signer.publicKey])
    for (const path of pathsToLock(place, verification)) paths.add(path)
  }
  // To the day: what was sent a moment ago is locked long enough.
  const untilMs = nowMs + target.lockMs - DAY_MS
  const cacheFile = rawPathFromText(join(staging, '.state', 'locks', `${target.name}.json`))
  await extendLocks(bucket, { paths: [...paths], nowMs, untilMs, cacheFile, report, signal })
}

const DAY_MS = 86_400_000

/** What is free now that the exports are there. */
function rememberSpace(
  { configuration: { staging }, target, drive, nowMs }: EndOptions,
  freeBytes: number | undefined,
): void {
  const name = drive?.plugged.drive.name
  const known = readDrives(staging).find((one) => one.target === target.name && one.drive === name)
  if (known !== undefined) rememberDrive(staging, { ...known, lastSeenMs: nowMs, freeBytes })
}

function damagedOnTarget(damaged: readonly string[]): BackupError {
  const shown = damaged.slice(0, 3).join(', ')
  return new BackupError('BUNDLE_DAMAGED', `${damaged.length} files are damaged: ${shown}`, {
    hint: '`backup repair` mends what has parity; `backup-restore --verify` tells what is lost',
    facts: { damaged },
  })
}

function nameOf({ target, drive }: Pick<EndOptions, 'target' | 'drive'>): string {
  if (target.kind !== 'drive' || drive === undefined) return target.name
  return describeDrive(target, drive.plugged.drive.name)
}

function wantsDrill({ target, drive, isDrillDue }: EndOptions): boolean {
  const isWanted = target.drill === 'always' || (target.drill === 'auto' && drive !== undefined)
  return isWanted && isDrillDue
}

/** Undefined where there is no export yet to draw from. */
async function runDrill(options: EndOptions): Promise<Receipt | undefined> {
  try {
    return await drillNow(options)
  } catch (error) {
    if (error instanceof BackupError && error.code === 'NOTHING_FOUND') return undefined
    throw error
  }
}

async function drillNow(options: EndOptions): Promise<Receipt> {
  const { configuration, target, repository, drive, signer, nowMs, report, signal } = options
  const receipt = await drillTarget({
    configuration,
    repository,
    targetName: target.name,
    drive: drive?.plugged.drive.name,
    identities: await unattendedIdentities(configuration),
    signer,
    nowMs,
    report,
    signal,
  })
  const { staging } = configuration
  noteDamage({ staging, id: repository.id }, { damaged: bundlesIn(receipt), whole: [] })
  return await writeReceipt({ staging, receipt, signer })
}

async function readAgain(options: EndOptions): Promise<ProofOutcome | undefined> {
  const { configuration, target, repository, nowMs, report, signal, isVerifyDue } = options
  if (!isVerifyDue || target.verify === undefined) return undefined
  const identities = await unattendedIdentities(configuration)
  const cores = availableParallelism()
  const of = { configuration, target, repository, identities, cores }
  return await proveScheduled({ ...of, nowMs, report, signal })
}

/** What whoever configured an identity without a passphrase left here for this; else none. */
async function unattendedIdentities({ identity }: Configuration): Promise<readonly string[]> {
  if (identity === undefined) return []
  const askPassphrase = (): never => {
    throw new BackupError('IDENTITY_ABSENT', 'nobody is there to give the passphrase')
  }
  try {
    return (await readIdentityFile({ path: rawPathFromText(identity), askPassphrase })).identities
  } catch (error) {
    if (error instanceof BackupError) return []
    throw error
  }
}

/** Unmounts a drive, as the target's `afterwards` wants. */
async function leave({
  target,
  drive,
  signal,
  isPluggedIn,
}: EndOptions): Promise<TargetEnd['unplug']> {
  if (drive === undefined || target.kind !== 'drive') return undefined
  const { mountPoint, isOurs, plugged } = drive
  if (target.afterwards === 'as_found' && !isOurs) return 'still mounted'
  await unmountDrive(mountPoint, { signal })
  await mustBeUnmounted(plugged.filesystem, { signal })
  if (target.afterwards !== 'power_off') return 'safe'
  if (isPluggedIn) refuseInterruption()
  return (await powerOff(plugged.filesystem)) === 'off' ? 'off' : 'safe'
}

/** Whether the device of a drive is gone: it was unplugged. */
export function isGone(drive: DriveTarget | undefined): boolean {
  return drive !== undefined && !existsSync(drive.plugged.filesystem.device)
}

/** What to tell of a failure on a drive: what is safe, and how to mend its filesystem. */
export function driveError(
  error: BackupError,
  { target, drive }: Pick<EndOptions, 'target' | 'drive'>,
): BackupError {
  if (drive === undefined) return error
  const { filesystem } = drive.plugged
  const safe =
    'collections and earlier exports are unharmed, and the next run goes on from the last whole '
    + 'bundle'
  const mend = `if the drive complains: ${dirtyHint(filesystem)}`
  if (isGone(drive)) {
    const name = nameOf({ target, drive })
    return new BackupError('TARGET_FAILED', `${name} was unplugged before the run ended`, {
      hint: `plug it in again; ${safe}; ${mend}`,
      facts: { target: target.name, unplugged: true },
      retry: 'later',
      cause: error,
    })
  }
  if (error.code !== 'TARGET_FAILED' && error.code !== 'TARGET_READ_ONLY') return error
  const hint = [...(error.hint === undefined ? [] : [error.hint]), safe, mend].join('; ')
  return new BackupError(error.code, error.message, { hint, facts: error.facts, cause: error })
}
