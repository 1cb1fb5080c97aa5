// What was found out about a bucket, and what a finding about it is.
//
// lib/work/doctor-bucket.ts gathers the facts; bucket-findings.ts, with bucket-lifecycle.ts and
// bucket-permissions.ts, judges them by the words that are here. What a service does not answer, or
// does not let us ask, is unknown and never safe. Pure; throws nothing.

import { shellWord } from './bucket-policy.ts'

/** What a service answered: something, that it does not know the question, or that we may not. */
export type Fact<T> =
  | { readonly kind: 'known'; readonly value: T }
  | { readonly kind: 'unsupported' }
  | { readonly kind: 'denied' }
  | { readonly kind: 'failed'; readonly message: string }

/** What came of trying something on a probe of ours. */
export type Trial = 'allowed' | 'refused' | 'unknown'

export interface PublicAccessBlock {
  readonly blocksAcls: boolean
  readonly ignoresAcls: boolean
  readonly blocksPolicy: boolean
  readonly restrictsBuckets: boolean
}

export interface LifecycleRule {
  readonly id: string | undefined
  readonly isEnabled: boolean
  readonly prefix: string
  readonly isFiltered: boolean
  readonly expiresAfterDays: number | undefined
  readonly expiresOldVersionsAfterDays: number | undefined
  readonly abortsUploadsAfterDays: number | undefined
  readonly transitions: readonly { readonly afterDays: number; readonly storageClass: string }[]
}

export type ObjectLock =
  | 'off'
  | {
      readonly mode: 'GOVERNANCE' | 'COMPLIANCE' | undefined
      /** Of the default retention; undefined where there is none. */
      readonly days: number | undefined
    }

/** What the credential of backups can do to a probe of its own, and the admin's to the same. */
export interface Trials {
  readonly create: Trial
  readonly overwrite: Trial
  /** A deletion without a version, which only hides where the bucket is versioned. */
  readonly remove: Trial
  /** The deletion of a version, for good. */
  readonly destroy: Trial
  readonly listVersions: Trial
  readonly readOldVersion: Trial
  readonly lengthenLock: Trial
  readonly shortenLock: Trial
  /** The deletion of a version by the admin profile; unknown where none is configured. */
  readonly adminDestroy: Trial
  /** What the probe's class was, where one other than STANDARD was asked for. */
  readonly storageClass: Fact<string> | undefined
  /** How far this clock is ahead of the service's. */
  readonly clockAheadMs: number | undefined
}

export interface BucketFacts {
  /** The name of the target, for `backup doctor --target`. */
  readonly target: string
  readonly bucket: string
  readonly path: string
  /** Undefined for Amazon's own. */
  readonly endpoint: string | undefined
  /** As configured. */
  readonly region: string | undefined
  readonly storageClass: string
  readonly lockMs: number | undefined
  /** Says that backups are not to delete. */
  readonly hasAdminProfile: boolean
  /** Two of the longest period of exports; undefined where they are made by hand only. */
  readonly twoPeriodsMs: number | undefined
  /** How long retention keeps an export; undefined where rules decide. */
  readonly keptMs: number | undefined
  readonly location: Fact<string | undefined>
  readonly publicAccessBlock: Fact<PublicAccessBlock | undefined>
  readonly accountPublicAccessBlock: Fact<PublicAccessBlock | undefined>
  readonly isPolicyPublic: Fact<boolean | undefined>
  readonly publicGrants: Fact<readonly string[]>
  readonly ownership: Fact<string | undefined>
  readonly versioning: Fact<'on' | 'suspended' | 'off'>
  readonly objectLock: Fact<ObjectLock>
  readonly lifecycle: Fact<readonly LifecycleRule[]>
  readonly encryption: Fact<string | undefined>
  readonly policy: Fact<string | undefined>
  /** Undefined in a dry run, as are the trials. */
  readonly capabilities:
    | Fact<{
        readonly checksum: 'crc32' | 'md5' | 'none'
        readonly multipartChecksum: 'crc32' | 'none'
        readonly conditionalPut: boolean
        readonly conditionalComplete: boolean
      }>
    | undefined
  readonly trials: Trials | undefined
}

export interface Finding {
  readonly name: string
  readonly verdict: 'safe' | 'warning' | 'unsafe' | 'unknown'
  readonly message: string
  /** There with every verdict but safe. */
  readonly fix?: string
}

/** All is well. */
export function safe(name: string, message: string): Finding {
  return { name, verdict: 'safe', message }
}

export function bad(
  verdict: 'warning' | 'unsafe' | 'unknown',
  name: string,
  { message, fix }: { readonly message: string; readonly fix: string },
): Finding {
  return { name, verdict, message, fix }
}

/** Of a call that gave no answer. `wanted` is what to look for by other means. */
export function unknown(
  fact: Exclude<Fact<unknown>, { readonly kind: 'known' }>,
  {
    facts,
    name,
    action,
    look,
    wanted,
  }: {
    readonly facts: BucketFacts
    readonly name: string
    /** What Amazon's policies call it. */
    readonly action: string
    readonly look: string
    readonly wanted: string
  },
): Finding {
  if (fact.kind === 'unsupported') {
    const fix = `look among your provider's settings of the bucket: ${wanted}`
    return bad('unknown', name, { message: 'this service does not tell', fix })
  }
  const yourself = `look yourself: ${look}: ${wanted}`
  const fix = `allow ${action} (${policyCall(facts, 'backup')}), or ${yourself}`
  if (fact.kind === 'denied') {
    return bad('unknown', name, { message: 'these credentials may not ask', fix })
  }
  return bad('unknown', name, { message: fact.message, fix: yourself })
}

/** How the policy of that kind is printed. */
export function policyCall({ target }: BucketFacts, kind: string): string {
  return `backup doctor --target ${target} --policy ${kind}`
}

/** `aws s3api VERB --bucket 'NAME' REST`, at the endpoint that is configured. */
export function s3api({ bucket, endpoint }: BucketFacts, verb: string, rest = ''): string {
  const at = endpoint === undefined ? '' : ` --endpoint-url ${shellWord(endpoint)}`
  return `aws s3api ${verb} --bucket ${shellWord(bucket)}${at}${rest === '' ? '' : ` ${rest}`}`
}

/** Whether old versions stay, for certain. */
export function isVersioned({ versioning }: BucketFacts): boolean {
  return versioning.kind === 'known' && versioning.value === 'on'
}

/** Whether there are none, for certain. */
export function isVersionless({ versioning }: BucketFacts): boolean {
  return versioning.kind === 'known' && versioning.value === 'off'
}
