// What each credential can do to a bucket, as trials on a probe showed: findings.
//
// Called by bucket-findings.ts; lib/work/doctor-bucket.ts tries. That backups can destroy is unsafe
// where the configuration says that they are not to: it names an admin profile, or locks. Pure;
// throws nothing.

import {
  bad,
  type BucketFacts,
  type Finding,
  isVersioned,
  isVersionless,
  policyCall,
  safe,
  type Trials,
} from './bucket-facts.ts'
import { formatPeriod } from './period.ts'

/** Amazon refuses requests when clocks are a quarter of an hour apart. */
const CLOCK_UNSAFE_MS = 5 * 60_000
const CLOCK_WARNING_MS = 60_000

/** Of a dry run, that nothing was tried. */
export function findPermissions(facts: BucketFacts): Finding[] {
  const { trials } = facts
  if (trials === undefined) return [safe('permissions', 'not tried in a dry run')]
  const all = { facts, trials }
  if (trials.create !== 'allowed') {
    const message = `the credentials of backups cannot create objects`
    const fix = `${policyCall(facts, 'backup')} prints the policy that they need`
    const verdict = trials.create === 'refused' ? 'unsafe' : 'unknown'
    return [bad(verdict, 'create', { message, fix })]
  }
  return [
    safe('create', 'allowed'),
    findOverwriting(all),
    findDeletion(all),
    ...findOldVersions(all),
    ...findLockChange(all),
    findSettingsChange(facts),
    ...findAdmin(all),
    ...findStorageClass(all),
    ...findClock(all),
  ]
}

interface Tried {
  readonly facts: BucketFacts
  readonly trials: Trials
}

/** Whoever names an admin profile, or locks, wants backups that cannot destroy. */
function destructive({ hasAdminProfile, lockMs }: BucketFacts): 'unsafe' | 'warning' {
  return hasAdminProfile || lockMs !== undefined ? 'unsafe' : 'warning'
}

const TAKEN_OVER = 'whoever takes this machine over'

function appendOnly(facts: BucketFacts): string {
  const admin = facts.hasAdminProfile ? '' : ', and name an admin_profile for prune'
  return `give them what ${policyCall(facts, 'backup')} prints${admin}`
}

function findOverwriting({ facts, trials: { overwrite } }: Tried): Finding {
  const name = 'overwrite'
  const fix = appendOnly(facts)
  if (overwrite === 'refused') return safe(name, 'refused to the credentials of backups')
  if (overwrite === 'unknown')
    return bad('unknown', name, { message: 'it could not be tried', fix })
  if (isVersioned(facts)) {
    const message = `allowed: ${TAKEN_OVER} can hide exports under others, and not destroy them so`
    return bad('warning', name, { message, fix })
  }
  const message = `allowed: ${TAKEN_OVER} can destroy all exports`
  return bad(destructive(facts), name, { message, fix })
}

function findDeletion({ facts, trials: { remove, destroy } }: Tried): Finding {
  const name = 'delete'
  const fix = appendOnly(facts)
  if (destroy === 'allowed' || (remove === 'allowed' && !isVersioned(facts))) {
    const message = `allowed: ${TAKEN_OVER} can destroy all exports that are not locked`
    return bad(destructive(facts), name, { message, fix })
  }
  // On a bucket without versions there is nothing else to delete.
  const isTried = remove !== 'unknown' && (destroy !== 'unknown' || isVersionless(facts))
  if (!isTried) return bad('unknown', name, { message: 'it could not be tried', fix })
  if (remove === 'allowed') {
    const message = `allowed, old versions stay: ${TAKEN_OVER} can hide exports, not destroy them`
    return bad('warning', name, { message, fix })
  }
  return safe(name, 'refused to the credentials of backups')
}

/** Without them nobody brings back what was hidden. */
function findOldVersions({ facts, trials: { listVersions, readOldVersion } }: Tried): Finding[] {
  if (!isVersioned(facts)) return []
  const name = 'old versions'
  if (listVersions === 'allowed' && readOldVersion === 'allowed') {
    return [safe(name, 'can be listed and read')]
  }
  const isRefused = listVersions === 'refused' || readOldVersion === 'refused'
  const message = isRefused
    ? 'cannot be listed and read: what was hidden is not found, and does not come back'
    : 'it could not be tried whether they can be listed and read'
  const fix = `give the admin profile what ${policyCall(facts, 'admin')} prints`
  return [bad(isRefused ? 'warning' : 'unknown', name, { message, fix })]
}

function findLockChange({ facts, trials: { lengthenLock, shortenLock } }: Tried): Finding[] {
  const { objectLock, lockMs } = facts
  if (objectLock.kind !== 'known' || objectLock.value === 'off') return []
  const name = 'change of locks'
  const fix = appendOnly(facts)
  if (shortenLock === 'allowed') {
    const message = `${TAKEN_OVER} can shorten locks, and then delete`
    return [bad(destructive(facts), name, { message, fix })]
  }
  if (lengthenLock === 'refused' && lockMs !== undefined) {
    const message = 'locks cannot be lengthened: what newer exports still need would become free'
    return [bad('unsafe', name, { message, fix })]
  }
  if (shortenLock === 'unknown') {
    return [bad('unknown', name, { message: 'it could not be tried', fix })]
  }
  return [safe(name, 'the credentials of backups cannot shorten any')]
}

/**
 * A lifecycle rule deletes as well as any deletion, a day later. To try it would be to change the
 * bucket; what a credential's own policy says cannot be asked with it.
 */
function findSettingsChange(facts: BucketFacts): Finding {
  const name = 'change of rules'
  const { policy } = facts
  const denial = policy.kind === 'known' ? deniesLifecycle(policy.value) : 'no'
  if (denial === 'all') return safe(name, "the bucket's policy denies it to everybody")
  const message =
    denial === 'some'
      ? "the bucket's policy denies it to some; whether to these credentials cannot be asked"
      : 'whether these credentials can change lifecycle rules, which delete too, is not tried'
  const good = policyCall(facts, 'backup')
  const fix = `see that their policy is what ${good} prints; docs/buckets.md says how`
  return bad('unknown', name, { message, fix })
}

/** Whether a bucket's policy denies changes of lifecycle rules: always, on conditions, or not. */
export function deniesLifecycle(policy: string | undefined): 'all' | 'some' | 'no' {
  const statements = statementsOf(policy).filter(({ Effect, Action }) => {
    const actions = (Array.isArray(Action) ? Action : [Action]) as unknown[]
    return Effect === 'Deny' && actions.some(isLifecycleAction)
  })
  if (statements.length === 0) return 'no'
  const isForAll = ({ Principal, Condition }: Readonly<Record<string, unknown>>): boolean => {
    const everybody = JSON.stringify(Principal)
    return Condition === undefined && (everybody === '"*"' || everybody === '{"AWS":"*"}')
  }
  return statements.some(isForAll) ? 'all' : 'some'
}

function isLifecycleAction(action: unknown): boolean {
  if (typeof action !== 'string') return false
  const pattern = action.toLowerCase().replace(/[.+^${}()|[\]\\]/g, '\\$&')
  const matches = new RegExp(`^${pattern.replaceAll('*', '.*').replaceAll('?', '.')}$`)
  return matches.test('s3:putlifecycleconfiguration')
}

function statementsOf(policy: string | undefined): Readonly<Record<string, unknown>>[] {
  try {
    const { Statement } = JSON.parse(policy ?? '{}') as { readonly Statement?: unknown }
    const all = Array.isArray(Statement) ? (Statement as unknown[]) : [Statement]
    return all.filter((one): one is Readonly<Record<string, unknown>> => {
      return typeof one === 'object' && one !== null
    })
  } catch {
    return []
  }
}

function findAdmin({ facts, trials: { adminDestroy, destroy } }: Tried): Finding[] {
  const name = 'admin profile'
  if (!facts.hasAdminProfile) {
    if (destroy !== 'refused') return []
    const message = 'none is configured, and backups cannot delete: old exports stay for ever'
    const fix = `name one that has what ${policyCall(facts, 'admin')} prints`
    return [bad('warning', name, { message, fix })]
  }
  if (adminDestroy === 'allowed') return [safe(name, 'can delete')]
  const message =
    adminDestroy === 'refused'
      ? 'cannot delete: neither can prune (a default retention of the bucket does that, too)'
      : 'whether it can delete could not be tried'
  const fix = `give it what ${policyCall(facts, 'admin')} prints`
  return [bad(adminDestroy === 'refused' ? 'warning' : 'unknown', name, { message, fix })]
}

function findStorageClass({ facts, trials: { storageClass: fact } }: Tried): Finding[] {
  if (fact === undefined) return []
  const name = 'storage class'
  const { storageClass } = facts
  const fix = 'write storage_class: STANDARD, or one that the service has'
  if (fact.kind === 'known' && fact.value === storageClass) return [safe(name, storageClass)]
  if (fact.kind === 'known') {
    const message = `${storageClass} was asked for, and ${fact.value} was given`
    return [bad('warning', name, { message, fix })]
  }
  if (fact.kind === 'unsupported') {
    const message = `the service has no ${storageClass}: no bundle could be sent`
    return [bad('unsafe', name, { message, fix })]
  }
  const message = fact.kind === 'failed' ? fact.message : `${storageClass} could not be tried`
  return [bad('unknown', name, { message, fix })]
}

function findClock({ trials: { clockAheadMs } }: Tried): Finding[] {
  if (clockAheadMs === undefined) return []
  const name = 'clock'
  const apartMs = Math.abs(clockAheadMs)
  if (apartMs < CLOCK_WARNING_MS) return [safe(name, "agrees with the service's")]
  const where = clockAheadMs > 0 ? 'ahead of' : 'behind'
  const apart = `${formatPeriod(apartMs)} ${where} the service's`
  const message = `this clock is ${apart}; at 15 minutes it refuses`
  const fix = 'set the clock: timedatectl set-ntp true'
  return [bad(apartMs >= CLOCK_UNSAFE_MS ? 'unsafe' : 'warning', name, { message, fix })]
}
