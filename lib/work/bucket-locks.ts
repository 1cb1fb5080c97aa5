// Object locks on what the newest export needs, so that they do not end before it is not needed any
// more.
//
// A lock is set when an object is written; bundles of older stamps that newer exports still need
// would lose theirs. extendLocks is called after each export; locksThatEndSoon by `doctor`. A lock
// is never shortened. What was extended is remembered in a local file, a cache. Throws what a
// Target throws, but a refusal: that is a warning.

import { Buffer } from 'node:buffer'
import { mkdirSync, readFileSync } from 'node:fs'
import { BackupError } from '../errors.ts'
import { writeDurably } from '../machine/durable-file.ts'
import { parentOf, type RawPath, rawPathToBytes } from '../model/raw-path.ts'
import { lockSlackMs } from '../model/bucket-policy.ts'
import type { Report } from '../model/report.ts'
import {
  bundlePath,
  MANIFEST,
  type Verification,
  VERIFICATION,
  VERIFICATION_SIGNATURE,
} from '../model/verification.ts'
import type { Bucket } from '../target/bucket.ts'
import type { S3Lock } from '../target/s3-calls.ts'
import { inParallel } from './in-parallel.ts'
import { directoryOf, type ExportPlace } from './repository.ts'

/** Everything of a repository that an export cannot do without. */
export function pathsToLock(place: ExportPlace, { bundles }: Verification): readonly string[] {
  const own = [VERIFICATION, VERIFICATION_SIGNATURE, MANIFEST].map((name) => {
    return `${directoryOf(place)}/${name}`
  })
  const needed = [...bundles.keys()].map((name) => bundlePath(place.machine, name))
  return [...needed, ...own]
}

export interface LockOptions {
  readonly paths: readonly string[]
  readonly nowMs: number
  /** At least until then everything is to be locked. */
  readonly untilMs: number
  /** Of new locks; what is locked as COMPLIANCE stays so. */
  readonly mode?: S3Lock['mode']
  /** A local file of this target's own: what was extended, and until when. */
  readonly cacheFile: RawPath
  readonly report: Report
  readonly signal?: AbortSignal | undefined
}

export interface LockOutcome {
  readonly extended: number
  /** Were long enough, or are remembered to be. */
  readonly kept: number
  /** Are not locked for as long as they should be. */
  readonly failed: readonly string[]
}

/**
 * Locks what is locked for less, or not at all. Where the credentials do not allow it, or the
 * service has no locks, a warning says so, and nothing else fails.
 */
export async function extendLocks(bucket: Bucket, options: LockOptions): Promise<LockOutcome> {
  const { paths, nowMs, untilMs, cacheFile, report, signal } = options
  const remembered = new Map(rememberedLocks(cacheFile))
  const unsure = paths.filter((path) => (remembered.get(path) ?? 0) < untilMs)
  const slackMs = lockSlackMs(untilMs - nowMs)
  const failures: Failure[] = []
  let extended = 0
  try {
    await inParallel(
      unsure,
      async (path) => {
        // Whoever may not lock one may not lock the others.
        if (failures.some(({ isForAll }) => isForAll)) return
        const lock = await extend(bucket, path, { ...options, newUntilMs: untilMs + slackMs })
        if ('error' in lock) failures.push({ path, ...lock })
        else {
          remembered.set(path, lock.untilMs)
          if (lock.isNew) extended += 1
        }
      },
      { signal },
    )
  } finally {
    remember(cacheFile, { remembered, nowMs })
  }
  const failed = unsure.filter((path) => (remembered.get(path) ?? 0) < untilMs)
  const [first] = failures
  if (first !== undefined) warn(report, { first, failed, untilMs })
  return { extended, kept: paths.length - failed.length - extended, failed }
}

interface Failure {
  readonly path: string
  readonly error: string
  readonly hint: string
  /** Whether it is the same for every object. */
  readonly isForAll: boolean
}

async function extend(
  bucket: Bucket,
  path: string,
  { untilMs, newUntilMs, mode = 'GOVERNANCE' }: LockOptions & { readonly newUntilMs: number },
): Promise<{ readonly untilMs: number; readonly isNew: boolean } | Omit<Failure, 'path'>> {
  const key = bucket.keyOf(path)
  try {
    const lock = await bucket.calls.getLock(key)
    if (lock === 'unsupported') {
      const hint = 'take `lock` out of the target, or make a bucket that has object lock'
      return { error: 'the service has no object lock', hint, isForAll: true }
    }
    if (lock !== undefined && lock.untilMs >= untilMs) {
      return { untilMs: lock.untilMs, isNew: false }
    }
    // A service keeps whole seconds: not one less than was asked for.
    const until = Math.ceil(newUntilMs / 1000) * 1000
    await bucket.calls.setLock({ key, lock: { mode: lock?.mode ?? mode, untilMs: until } })
    return { untilMs: until, isNew: true }
  } catch (error) {
    if (!(error instanceof BackupError) || error.code === 'INTERRUPTED') throw error
    const isDenied = error.code === 'TARGET_DENIED'
    // What a bucket without object lock says.
    const isLockless = error.facts['s3'] === 'InvalidRequest'
    const hint = isDenied
      ? 'allow s3:GetObjectRetention and s3:PutObjectRetention'
      : isLockless
        ? 'the bucket may have no object lock: `backup doctor --target` tells'
        : (error.hint ?? 'the next export tries again')
    return { error: error.message, hint, isForAll: isDenied || isLockless }
  }
}

function warn(
  report: Report,
  {
    first,
    failed,
    untilMs,
  }: { readonly first: Failure; readonly failed: readonly string[]; readonly untilMs: number },
): void {
  const until = new Date(untilMs).toISOString().slice(0, 10)
  report({
    kind: 'notice',
    level: 'warning',
    code: 'LOCK_NOT_EXTENDED',
    message:
      `${failed.length} objects are not locked until ${until}: ${first.error}; `
      + `${first.hint}; what is locked stays so`,
    facts: { paths: failed },
  })
}

/**
 * Until when what lies in a bucket is locked, by path, as far as extendLocks remembers. A damaged
 * or absent file is an empty one: it is a cache.
 */
export function rememberedLocks(cacheFile: RawPath): ReadonlyMap<string, number> {
  try {
    const value: unknown = JSON.parse(readFileSync(rawPathToBytes(cacheFile), 'utf8'))
    const entries = typeof value === 'object' && value !== null ? Object.entries(value) : []
    return new Map(entries.filter((entry): entry is [string, number] => Number.isFinite(entry[1])))
  } catch {
    return new Map()
  }
}

/** What has ended is of no use to anybody. */
function remember(
  cacheFile: RawPath,
  { remembered, nowMs }: { readonly remembered: Map<string, number>; readonly nowMs: number },
): void {
  const current = [...remembered].filter(([, untilMs]) => untilMs > nowMs).sort()
  const bytes = Buffer.from(`${JSON.stringify(Object.fromEntries(current))}\n`)
  mkdirSync(rawPathToBytes(parentOf(cacheFile)), { recursive: true, mode: 0o700 })
  writeDurably({ path: cacheFile, bytes, mode: 0o600, replace: true })
}

export interface EndingLock {
  readonly path: string
  /** Undefined: it is not locked at all. */
  readonly untilMs: number | undefined
}

/**
 * Which of these objects are locked for less than `withinMs` from now, the first to end first, as
 * the bucket says; undefined where the service or the credentials do not tell.
 */
export async function locksThatEndSoon(
  bucket: Bucket,
  {
    paths,
    nowMs,
    withinMs,
    signal,
  }: {
    readonly paths: readonly string[]
    readonly nowMs: number
    readonly withinMs: number
    readonly signal?: AbortSignal | undefined
  },
): Promise<readonly EndingLock[] | undefined> {
  let isKnowable = true
  const found = await inParallel(
    paths,
    async (path) => {
      const lock = isKnowable ? await askLock(bucket, path) : 'unknown'
      if (lock === 'unknown') isKnowable = false
      return { path, untilMs: typeof lock === 'object' ? lock.untilMs : undefined }
    },
    { signal },
  )
  if (!isKnowable) return undefined
  const endMs = nowMs + withinMs
  return found
    .filter(({ untilMs }) => untilMs === undefined || untilMs < endMs)
    .sort((a, b) => (a.untilMs ?? 0) - (b.untilMs ?? 0))
}

async function askLock(bucket: Bucket, path: string): Promise<S3Lock | undefined | 'unknown'> {
  try {
    const lock = await bucket.calls.getLock(bucket.keyOf(path))
    return lock === 'unsupported' ? 'unknown' : lock
  } catch (error) {
    if (!(error instanceof BackupError) || error.code !== 'TARGET_DENIED') throw error
    return 'unknown'
  }
}
