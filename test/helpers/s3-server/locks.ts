// Object lock: what a version is locked by when it is made, whether it may be removed, and
// GetObjectRetention and PutObjectRetention.
//
// A lock of mode COMPLIANCE gives way to nobody, one of mode GOVERNANCE to whoever may
// s3:BypassGovernanceRetention and says so. Longer is always allowed.

import { answer, answerXml, refuse } from './answer.ts'
import type { Answer } from './answer.ts'
import { allow, header } from './call.ts'
import type { Call } from './call.ts'
import { readableVersion } from './read-object.ts'
import { bucketOf } from './store.ts'
import type { Lock, StoredBucket, Version, World } from './store.ts'
import { xmlText } from './xml.ts'

const DAY_MS = 86_400_000

/** What the headers of a request ask for. */
export function lockOfHeaders(world: World, call: Call): Lock | undefined {
  const mode = header(call, 'x-amz-object-lock-mode')
  const until = header(call, 'x-amz-object-lock-retain-until-date')
  if (mode === undefined && until === undefined) return undefined
  if (mode === undefined || until === undefined) {
    const message =
      'x-amz-object-lock-retain-until-date and x-amz-object-lock-mode must both be supplied'
    return refuse(400, 'InvalidArgument', message)
  }
  requireLockBucket(bucketOf(world, call.bucket))
  allow(call, 's3:PutObjectRetention')
  return validLock(world, mode, until)
}

/** The lock of a new version: the one asked for, or the bucket's default. */
export function lockOfNew(
  world: World,
  bucket: StoredBucket,
  asked: Lock | undefined,
): Lock | undefined {
  const { objectLock } = bucket.settings
  if (asked !== undefined || typeof objectLock !== 'object') return asked
  return { mode: objectLock.mode, untilMs: world.nowMs() + objectLock.days * DAY_MS }
}

/** Refuses where the version's lock still holds. */
export function requireRemovable(world: World, call: Call, version: Version): void {
  const { lock } = version
  if (lock === undefined || lock.untilMs <= world.nowMs()) return
  if (lock.mode === 'GOVERNANCE' && isBypass(call)) return
  protectedByLock()
}

export function getObjectRetention(world: World, call: Call): Answer {
  allow(call, 's3:GetObjectRetention')
  const bucket = bucketOf(world, call.bucket)
  requireLockBucket(bucket)
  const { lock } = readableVersion(bucket, call)
  if (lock === undefined) {
    const message = 'The specified object does not have a ObjectLock configuration'
    return refuse(404, 'NoSuchObjectLockConfiguration', message)
  }
  const RetainUntilDate = new Date(lock.untilMs).toISOString()
  return answerXml('Retention', { Mode: lock.mode, RetainUntilDate })
}

export function putObjectRetention(world: World, call: Call): Answer {
  allow(call, 's3:PutObjectRetention')
  const bucket = bucketOf(world, call.bucket)
  requireLockBucket(bucket)
  const version = readableVersion(bucket, call)
  const xml = call.body.toString()
  const mode = xmlText(xml, 'Mode')
  const until = xmlText(xml, 'RetainUntilDate')
  const lock =
    mode === undefined && until === undefined
      ? undefined
      : validLock(world, mode ?? '', until ?? '')
  const old = version.lock
  if (old !== undefined && old.untilMs > world.nowMs()) {
    const isWeaker = lock === undefined || lock.untilMs < old.untilMs || lock.mode !== old.mode
    if (isWeaker && !(old.mode === 'GOVERNANCE' && isBypass(call))) protectedByLock()
  }
  version.lock = lock
  return answer(200)
}

/** Whether the request asks to pass a GOVERNANCE lock; refuses where that is not allowed. */
function isBypass(call: Call): boolean {
  if (header(call, 'x-amz-bypass-governance-retention')?.toLowerCase() !== 'true') return false
  allow(call, 's3:BypassGovernanceRetention')
  return true
}

function protectedByLock(): never {
  return refuse(403, 'AccessDenied', 'Access Denied because object protected by object lock.')
}

function requireLockBucket(bucket: StoredBucket): void {
  if (bucket.settings.objectLock) return
  refuse(400, 'InvalidRequest', 'Bucket is missing Object Lock Configuration')
}

function validLock(world: World, mode: string, until: string): Lock {
  if (mode !== 'GOVERNANCE' && mode !== 'COMPLIANCE') {
    return refuse(400, 'InvalidArgument', 'Unknown wormMode directive.')
  }
  const untilMs = Date.parse(until)
  if (Number.isNaN(untilMs)) {
    return refuse(
      400,
      'InvalidArgument',
      'The retain until date must be provided in ISO 8601 format',
    )
  }
  if (untilMs <= world.nowMs()) {
    return refuse(400, 'InvalidArgument', 'The retain until date must be in the future!')
  }
  return { mode, untilMs }
}
