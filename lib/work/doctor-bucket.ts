// `backup doctor --target` for a bucket: is it private, does it keep what it gets, and what could
// whoever stole a credential do? One check after the other, as in doctor.ts.
//
// Asks the bucket how it is set up, and tries each permission on a probe of its own below
// `.probe/`, never on data; lib/model/bucket-findings.ts judges. What may not be deleted stays, a
// few bytes, and the next doctor tries again. Nothing of the bucket's settings is changed. Throws
// only INTERRUPTED and bugs.

import { Buffer } from 'node:buffer'
import { randomBytes } from 'node:crypto'
import { BackupError } from '../errors.ts'
import type { Configuration } from '../machine/config.ts'
import type { S3TargetConfiguration } from '../machine/config-targets.ts'
import type { BucketFacts, Fact, Trial, Trials } from '../model/bucket-facts.ts'
import { bucketFindings, findingCheck } from '../model/bucket-findings.ts'
import {
  keyPrefix,
  policyCommands,
  policyDocument,
  type PolicyKind,
  type PolicyScope,
} from '../model/bucket-policy.ts'
import { asFailure, type Check, ok, quoted, warning } from '../model/check.ts'
import { counted } from '../model/period.ts'
import { rotationPeriodMs } from '../model/rotation.ts'
import { formatStamp } from '../model/stamp.ts'
import type { Bucket } from '../target/bucket.ts'
import type { S3Calls, S3Version, Unsupported } from '../target/s3-calls.ts'
import type { Target } from '../target/target.ts'
import { locksThatEndSoon, pathsToLock } from './bucket-locks.ts'
import { exportsOf, findRepository, listStamps, readVerification } from './repository.ts'
import { openSigner } from './signing.ts'
import { openTarget } from './target-access.ts'

export interface BucketDoctorOptions {
  readonly configuration: Configuration
  readonly target: S3TargetConfiguration
  /** Writes nothing: permissions and capabilities are left out. */
  readonly dryRun: boolean
  /** Milliseconds since 1970, asked for several times. */
  readonly now: () => number
  readonly signal: AbortSignal
  /** Each check as soon as it is made. */
  readonly onCheck: (check: Check) => void
}

/** Below it lie our probes; what is older is swept. */
const PROBES = '.probe/doctor-'

/** A probe's lock, and what it is shortened to: soon over, however the trial ends. */
const PROBE_LOCK_MS = 10 * 60_000
const SHORTER_LOCK_MS = 5 * 60_000
/** Locks may be lengthened by that. */
const LONGER_LOCK_MS = 11 * 60_000

/** A sweep removes so many versions at most: it is no prune. */
const MAX_SWEPT = 100

/** What a service says to a storage class that it does not have. */
const NO_CLASS = ['InvalidStorageClass', 'InvalidArgument', 'InvalidRequest', 'NotImplemented']

/** Makes every check. @throws BackupError INTERRUPTED */
export async function examineBucket(options: BucketDoctorOptions): Promise<void> {
  const { target: configured, configuration, onCheck } = options
  let target
  try {
    target = await openTarget(configured, configuration)
  } catch (error) {
    onCheck(asFailure('target', error))
    return
  }
  try {
    const { bucket } = target
    if (bucket === undefined) throw new Error(`target ${target.name} is no bucket`)
    await refuseAbsent(bucket, configured)
    onCheck(ok('target', `${configured.name} is at ${quoted(target.place)}`))
    const facts = await gatherFacts(bucket, options)
    for (const finding of bucketFindings(facts)) onCheck(findingCheck(finding))
    try {
      for (const check of await checkLocks(target, options)) onCheck(check)
    } catch (error) {
      onCheck(asFailure('locks', error))
    }
  } catch (error) {
    onCheck(asFailure('target', error))
  } finally {
    await target.close()
  }
}

/** Whether what the newest exports need stays locked until the next ones lock it again. */
async function checkLocks(
  target: Target,
  { configuration, target: { name: targetName, lockMs }, now, signal }: BucketDoctorOptions,
): Promise<readonly Check[]> {
  const name = 'locks'
  const repository = lockMs === undefined ? undefined : await findRepository(target)
  if (lockMs === undefined || repository === undefined || target.bucket === undefined) return []
  const { publicKey } = await openSigner(configuration)
  const exports = exportsOf(await listStamps(repository, configuration.machine))
  const newest = new Map(exports.map((place) => [place.set, place]))
  const paths = new Set<string>()
  for (const place of newest.values()) {
    const verification = await readVerification(repository, place, [publicKey])
    for (const path of pathsToLock(place, verification)) paths.add(path)
  }
  if (paths.size === 0) return []
  const within = { nowMs: now(), withinMs: Math.min(SOON_MS, lockMs / 2), signal }
  const ending = await locksThatEndSoon(target.bucket, { paths: [...paths], ...within })
  if (ending === undefined) {
    return [
      warning(name, 'unknown: these credentials may not see them', 'allow s3:GetObjectRetention'),
    ]
  }
  const what = `of ${counted(paths.size, 'object')} that the newest exports need`
  const [first] = ending
  if (first === undefined) return [ok(name, `${what} none ends soon`)]
  const when =
    first.untilMs === undefined
      ? 'are not locked'
      : `end by ${formatStamp(first.untilMs)} or soon after`
  const fix = `\`backup-external --target ${targetName}\` locks them again`
  return [warning(name, `${what} ${ending.length} ${when}`, fix)]
}

/** An export that is due weekly comes before that. */
const SOON_MS = 8 * 86_400_000

/** One failed check is enough where nothing answers. Who may not list may still do the rest. */
async function refuseAbsent({ calls }: Bucket, { path }: S3TargetConfiguration): Promise<void> {
  try {
    await calls.listFolder(keyPrefix(path))
  } catch (error) {
    if (!(error instanceof BackupError) || error.facts['s3'] !== 'AccessDenied') throw error
  }
}

/** What `--policy` prints: the document, and how it is put in place. */
export function bucketPolicy(
  kind: PolicyKind,
  { configuration: { machine }, target }: Pick<BucketDoctorOptions, 'configuration' | 'target'>,
): { readonly document: unknown; readonly commands: readonly string[] } {
  const { bucket, path, region, endpoint, lockMs } = target
  const isAmazon = endpoint === undefined
  const scope: PolicyScope = { bucket, path, machine, region, isAmazon, lockMs }
  return { document: policyDocument(kind, scope), commands: policyCommands(kind, scope) }
}

/** Everything that can be known of a bucket. @throws BackupError INTERRUPTED */
export async function gatherFacts(
  bucket: Bucket,
  options: Omit<BucketDoctorOptions, 'onCheck'>,
): Promise<BucketFacts> {
  const { target, configuration, dryRun, signal } = options
  const ask = async <T>(call: (calls: S3Calls) => Promise<T>): Promise<Fact<Known<T>>> => {
    if (signal.aborted) throw new BackupError('INTERRUPTED', 'interrupted')
    return await asked(bucket, call)
  }
  const settings = {
    location: await ask((calls) => calls.getLocation()),
    publicAccessBlock: await ask((calls) => calls.getPublicAccessBlock()),
    accountPublicAccessBlock: await ask((calls) => calls.getAccountPublicAccessBlock()),
    isPolicyPublic: await ask((calls) => calls.isPolicyPublic()),
    publicGrants: await ask((calls) => calls.publicGrants()),
    ownership: await ask((calls) => calls.getOwnership()),
    versioning: await ask((calls) => calls.getVersioning()),
    objectLock: await ask((calls) => calls.getObjectLock()),
    lifecycle: await ask((calls) => calls.getLifecycle()),
    encryption: await ask((calls) => calls.getEncryption()),
    policy: await ask((calls) => calls.getPolicy()),
  }
  const capabilities = dryRun ? undefined : await asFact(() => bucket.capabilities())
  const { objectLock } = settings
  const hasLock = objectLock.kind === 'known' && objectLock.value !== 'off'
  const trials = dryRun ? undefined : await tryPermissions(bucket, { ...options, hasLock })
  const { name, path, endpoint, region, storageClass, lockMs } = target
  return {
    ...{ target: name, bucket: target.bucket, path, endpoint, region, storageClass, lockMs },
    hasAdminProfile: target.adminProfile !== undefined,
    ...retentionOf(configuration),
    ...settings,
    capabilities,
    trials,
  }
}

type Known<T> = Exclude<T, Unsupported>

/** Asked with the credentials of backups, and where those may not, with the admin's. */
async function asked<T>(
  { calls, adminCalls }: Bucket,
  call: (calls: S3Calls) => Promise<T>,
): Promise<Fact<Known<T>>> {
  const fact = await asFact(() => call(calls))
  return fact.kind === 'denied' && adminCalls !== calls
    ? await asFact(() => call(adminCalls))
    : fact
}

async function asFact<T>(call: () => Promise<T>): Promise<Fact<Known<T>>> {
  try {
    const value = await call()
    if (value === 'unsupported') return { kind: 'unsupported' }
    return { kind: 'known', value: value as Known<T> }
  } catch (error) {
    if (!isOfTheWorld(error)) throw error
    return isRefusal(error) ? { kind: 'denied' } : { kind: 'failed', message: error.message }
  }
}

function isOfTheWorld(error: unknown): error is BackupError {
  return error instanceof BackupError && error.code !== 'INTERRUPTED'
}

function isRefusal(error: unknown): boolean {
  return error instanceof BackupError && error.code === 'TARGET_DENIED'
}

function retentionOf({ backupSets }: Configuration): Pick<BucketFacts, 'twoPeriodsMs' | 'keptMs'> {
  const frequencies = backupSets.map(({ schedule }) => schedule.external)
  const twoPeriodsMs = rotationPeriodMs({ everyMs: undefined, frequencies })
  const hasRules = backupSets.some(({ retention }) => Object.keys(retention.keep).length > 0)
  if (twoPeriodsMs === undefined || hasRules) return { twoPeriodsMs, keptMs: undefined }
  const most = Math.max(...backupSets.map(({ retention }) => retention.external))
  return { twoPeriodsMs, keptMs: (most * twoPeriodsMs) / 2 }
}

interface TrialOptions extends Omit<BucketDoctorOptions, 'onCheck'> {
  /** Of the bucket: without it nothing can be locked. */
  readonly hasLock: boolean
}

const UNTRIED: Trials = {
  create: 'unknown',
  overwrite: 'unknown',
  remove: 'unknown',
  destroy: 'unknown',
  listVersions: 'unknown',
  readOldVersion: 'unknown',
  lengthenLock: 'unknown',
  shortenLock: 'unknown',
  adminDestroy: 'unknown',
  storageClass: undefined,
  clockAheadMs: undefined,
}

/**
 * Each permission, really tried. Without conditions: whoever stole the credential would not ask
 * whether a name is taken either.
 */
async function tryPermissions(bucket: Bucket, options: TrialOptions): Promise<Trials> {
  const { calls, adminCalls } = bucket
  const { now, hasLock } = options
  await sweep(bucket)
  const key = bucket.keyOf(`${PROBES}${randomBytes(8).toString('hex')}`)
  try {
    const beforeMs = now()
    const create = await tried(() => calls.put({ key, ...body('first'), ifAbsent: true }))
    if (create !== 'allowed') return { ...UNTRIED, create }
    const clockAheadMs = await clockAhead(calls, { key, beforeMs, afterMs: now() })
    const overwrite = await tried(() => calls.put({ key, ...body('second') }))
    const versions = await versionsOf(bucket, key)
    const old = versions.found.find(({ isLatest }) => !isLatest) ?? versions.found[0]
    const versionId = old?.versionId
    const readOldVersion = await readOld(bucket, { key, versionId })
    const destroy =
      versionId === undefined || versionId === 'null'
        ? 'unknown'
        : await tried(() => calls.remove(key, versionId))
    const remove = await tried(() => calls.remove(key))
    const locks = hasLock ? await tryLocks(bucket, options) : {}
    const storageClass = await tryStorageClass(bucket, options)
    const adminDestroy = await tryAdmin(bucket, options)
    return {
      ...UNTRIED,
      ...{ create, overwrite, remove, destroy, readOldVersion, adminDestroy, storageClass },
      ...{ listVersions: versions.trial, clockAheadMs, ...locks },
    }
  } finally {
    await discard(adminCalls, key)
  }
}

function body(text: string): { readonly body: Buffer } {
  return { body: Buffer.from(`backup doctor: ${text}\n`) }
}

async function tried(call: () => Promise<unknown>): Promise<Trial> {
  try {
    await call()
    return 'allowed'
  } catch (error) {
    if (!isOfTheWorld(error)) throw error
    return isRefusal(error) ? 'refused' : 'unknown'
  }
}

/** The object's time is the service's, in whole seconds, from while it was written. */
async function clockAhead(
  calls: S3Calls,
  { key, beforeMs, afterMs }: { key: string; beforeMs: number; afterMs: number },
): Promise<number | undefined> {
  const head = await asFact(() => calls.head(key))
  if (head.kind !== 'known' || head.value === undefined) return undefined
  const thereMs = head.value.lastModifiedMs
  if (beforeMs - thereMs > 0) return Math.max(0, beforeMs - thereMs - 1000)
  return Math.min(0, afterMs - thereMs)
}

/** By whichever credentials may: the admin's are there for that. */
async function versionsOf(
  bucket: Bucket,
  key: string,
): Promise<{ readonly trial: Trial; readonly found: readonly S3Version[] }> {
  const fact = await asked(bucket, (calls) => calls.listVersions(key))
  if (fact.kind === 'known') return { trial: 'allowed', found: fact.value }
  return { trial: fact.kind === 'denied' ? 'refused' : 'unknown', found: [] }
}

async function readOld(
  { calls, adminCalls }: Bucket,
  { key, versionId }: { readonly key: string; readonly versionId: string | undefined },
): Promise<Trial> {
  if (versionId === undefined) return 'unknown'
  const trial = await tried(() => calls.get(key, { versionId }))
  return trial === 'refused' && adminCalls !== calls
    ? await tried(() => adminCalls.get(key, { versionId }))
    : trial
}

/** On a probe that is locked for minutes. */
async function tryLocks(
  bucket: Bucket,
  { now }: TrialOptions,
): Promise<Pick<Trials, 'lengthenLock' | 'shortenLock'>> {
  const { calls, adminCalls } = bucket
  const key = bucket.keyOf(`${PROBES}lock-${randomBytes(8).toString('hex')}`)
  const lock = (durationMs: number) => {
    return { mode: 'GOVERNANCE' as const, untilMs: now() + durationMs }
  }
  try {
    const made = await tried(() => {
      return calls.put({ key, ...body('lock'), ifAbsent: true, lock: lock(PROBE_LOCK_MS) })
    })
    // Whoever may not lock may not change a lock either: Amazon asks for one right for both.
    if (made !== 'allowed') return { lengthenLock: made, shortenLock: made }
    const lengthenLock = await tried(() => calls.setLock({ key, lock: lock(LONGER_LOCK_MS) }))
    const shortenLock = await tried(() => {
      return calls.setLock({ key, lock: lock(SHORTER_LOCK_MS), bypass: true })
    })
    return { lengthenLock, shortenLock }
  } finally {
    await discard(adminCalls, key)
  }
}

/** Undefined where there is nothing to try. */
async function tryStorageClass(
  bucket: Bucket,
  { target: { storageClass } }: TrialOptions,
): Promise<Trials['storageClass']> {
  if (storageClass === 'STANDARD') return undefined
  const { calls, adminCalls } = bucket
  const key = bucket.keyOf(`${PROBES}class-${randomBytes(8).toString('hex')}`)
  try {
    await calls.put({ key, ...body('class'), ifAbsent: true, storageClass })
    const head = await calls.head(key)
    return head === undefined ? undefined : { kind: 'known', value: head.storageClass }
  } catch (error) {
    if (!isOfTheWorld(error)) throw error
    if (isRefusal(error)) return { kind: 'denied' }
    const code = error.facts['s3']
    return typeof code === 'string' && NO_CLASS.includes(code)
      ? { kind: 'unsupported' }
      : { kind: 'failed', message: error.message }
  } finally {
    await discard(adminCalls, key)
  }
}

/** The admin's own probe: what was tried before may be gone, or locked by the bucket. */
async function tryAdmin(bucket: Bucket, { target }: TrialOptions): Promise<Trial> {
  const { calls, adminCalls } = bucket
  if (target.adminProfile === undefined || adminCalls === calls) return 'unknown'
  const key = bucket.keyOf(`${PROBES}admin-${randomBytes(8).toString('hex')}`)
  const made = await tried(() => calls.put({ key, ...body('admin'), ifAbsent: true }))
  if (made !== 'allowed') return 'unknown'
  const listed = await asFact(() => adminCalls.listVersions(key))
  const versionId = listed.kind === 'known' ? listed.value[0]?.versionId : undefined
  const destroyed = await tried(() => adminCalls.remove(key, versionId))
  return listed.kind === 'denied' ? 'refused' : destroyed
}

/** Takes every version of a probe away, as far as that is allowed. Never throws for a refusal. */
async function discard(calls: S3Calls, key: string): Promise<void> {
  const listed = await asFact(() => calls.listVersions(key))
  if (listed.kind !== 'known' || listed.value.length === 0) {
    await tried(() => calls.remove(key))
    return
  }
  for (const { key: found, versionId } of listed.value) {
    if (found === key) await tried(() => calls.remove(key, versionId))
  }
}

/** What an earlier doctor had to leave: locked then, or not allowed to go. */
async function sweep(bucket: Bucket): Promise<void> {
  const { adminCalls } = bucket
  const listed = await asFact(() => adminCalls.listVersions(bucket.keyOf(PROBES)))
  if (listed.kind !== 'known') return
  for (const { key, versionId } of listed.value.slice(0, MAX_SWEPT)) {
    if ((await tried(() => adminCalls.remove(key, versionId))) === 'refused') return
  }
}
