// What the facts about a bucket mean: findings, each safe, a warning, unsafe, or unknown, with what
// mends it.
//
// lib/work/doctor-bucket.ts gathers the facts and tells the findings as checks. What a service does
// not answer, or does not let us ask, is unknown and never safe. Commands name the bucket and are
// for its owner: neither of our credentials may change it. Pure; throws nothing.

import { isCold } from './storage-class.ts'
import {
  bad,
  type BucketFacts,
  type Fact,
  type Finding,
  policyCall,
  type PublicAccessBlock,
  s3api,
  safe,
  unknown,
} from './bucket-facts.ts'
import { findLifecycle } from './bucket-lifecycle.ts'
import { findPermissions } from './bucket-permissions.ts'
import { keyPrefix } from './bucket-policy.ts'
import { type Check, failure, ok, warning } from './check.ts'
import { counted, formatPeriod } from './period.ts'

const DAY_MS = 86_400_000

/** All findings, in the order in which people want to read them. */
export function bucketFindings(facts: BucketFacts): Finding[] {
  return [
    findTransport(facts),
    ...findRegion(facts),
    ...findPublicAccess(facts),
    findPolicyStatus(facts),
    findGrants(facts),
    findOwnership(facts),
    findEncryption(facts),
    findVersioning(facts),
    ...findLock(facts),
    ...findLifecycle(facts),
    ...findCapabilities(facts),
    ...findPermissions(facts),
  ]
}

/** As `backup doctor` tells it: unknown is a warning that says so. */
export function findingCheck({ name, verdict, message, fix = '' }: Finding): Check {
  if (verdict === 'safe') return ok(name, message)
  if (verdict === 'unsafe') return failure(name, message, fix)
  return warning(name, verdict === 'unknown' ? `unknown: ${message}` : message, fix)
}

function findTransport({ endpoint }: BucketFacts): Finding {
  const name = 'transport'
  if (endpoint === undefined) return safe(name, 'encrypted (https)')
  const { protocol, hostname } = parseEndpoint(endpoint)
  if (protocol === 'https:') return safe(name, 'encrypted (https)')
  if (isLoopback(hostname)) return safe(name, 'not encrypted, and does not leave this machine')
  const message = `requests to ${hostname} are not encrypted: whoever listens sees names and sizes`
  const fix = `write endpoint: ${endpoint.replace(/^http:/, 'https:')}`
  return bad('unsafe', name, { message, fix })
}

/** Empty where it is no address; the schema lets none of those through. */
function parseEndpoint(endpoint: string): { protocol: string; hostname: string } {
  const parts = /^(https?:)\/\/(?:[^/@]*@)?(\[[^\]]*\]|[^/:?#]*)/i.exec(endpoint)
  return { protocol: (parts?.[1] ?? '').toLowerCase(), hostname: (parts?.[2] ?? '').toLowerCase() }
}

function isLoopback(hostname: string): boolean {
  return hostname === 'localhost' || hostname === '[::1]' || /^127(\.\d{1,3}){3}$/.test(hostname)
}

/** Other services call their regions as they like. */
function findRegion({ endpoint, region, location }: BucketFacts): Finding[] {
  if (endpoint !== undefined || region === undefined || location.kind !== 'known') return []
  const name = 'region'
  const there = location.value === 'EU' ? 'eu-west-1' : location.value || 'us-east-1'
  if (there === region) return [safe(name, region)]
  const message = `the bucket is in ${there}, and the configuration says ${region}`
  return [bad('unsafe', name, { message, fix: `write region: ${there}` })]
}

/** The account's block covers each of its buckets. */
function findPublicAccess(facts: BucketFacts): Finding[] {
  const { publicAccessBlock: ofBucket, accountPublicAccessBlock: ofAccount } = facts
  const all =
    'BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true'
  const name = 'public access block'
  const fix = s3api(facts, 'put-public-access-block', `--public-access-block-configuration ${all}`)
  const findings: Finding[] = []
  if (isComplete(ofBucket)) {
    findings.push(safe(name, 'the bucket blocks all public access'))
  } else if (isComplete(ofAccount)) {
    findings.push(safe(name, 'the account blocks all public access'))
  } else if (ofBucket.kind === 'known') {
    const message = `${missing(ofBucket.value)}: one wrong policy, and everybody reads it`
    findings.push(bad('unsafe', name, { message, fix }))
  } else {
    const wanted = 'all public access blocked'
    const look = s3api(facts, 'get-public-access-block')
    const action = 's3:GetBucketPublicAccessBlock'
    findings.push(unknown(ofBucket, { facts, name, action, look, wanted }))
  }
  if (facts.endpoint !== undefined) return findings
  const account = '--account-id "$(aws sts get-caller-identity --query Account --output text)"'
  const ofAll = 'public access block of the account'
  if (ofAccount.kind !== 'known') {
    const look = `aws s3control get-public-access-block ${account}`
    const action = 's3:GetAccountPublicAccessBlock'
    const wanted = 'all four true'
    findings.push(unknown(ofAccount, { facts, name: ofAll, action, look, wanted }))
  } else if (isComplete(ofAccount)) {
    findings.push(safe(ofAll, 'blocks all public access'))
  } else {
    const message = `${missing(ofAccount.value)}: the bucket has to take care of itself`
    const put = `aws s3control put-public-access-block ${account}`
    const block = `--public-access-block-configuration ${all}`
    const mend = `${put} ${block} (for all buckets of the account)`
    findings.push(bad('warning', ofAll, { message, fix: mend }))
  }
  return findings
}

function isComplete(fact: Fact<PublicAccessBlock | undefined>): boolean {
  return fact.kind === 'known' && fact.value !== undefined && lacking(fact.value).length === 0
}

function missing(block: PublicAccessBlock | undefined): string {
  return block === undefined ? 'there is none' : `${lacking(block).join(', ')} not set`
}

function lacking(block: PublicAccessBlock): string[] {
  const { blocksAcls, ignoresAcls, blocksPolicy, restrictsBuckets } = block
  return [
    ...(blocksAcls ? [] : ['BlockPublicAcls']),
    ...(ignoresAcls ? [] : ['IgnorePublicAcls']),
    ...(blocksPolicy ? [] : ['BlockPublicPolicy']),
    ...(restrictsBuckets ? [] : ['RestrictPublicBuckets']),
  ]
}

function findPolicyStatus(facts: BucketFacts): Finding {
  const name = 'policy status'
  const { isPolicyPublic: fact } = facts
  const look = s3api(facts, 'get-bucket-policy', '--query Policy --output text')
  if (fact.kind !== 'known') {
    const wanted = 'no statement that allows something to everybody'
    const action = 's3:GetBucketPolicyStatus'
    return unknown(fact, { facts, name, action, look, wanted })
  }
  if (fact.value === undefined) return safe(name, 'the bucket has no policy')
  if (!fact.value) return safe(name, "the bucket's policy lets in nobody from outside")
  const message = "the bucket's policy is public: it lets in everybody"
  const good = `put what ${policyCall(facts, 'bucket')} prints`
  const fix = `${look}: take out what allows something to "*", and ${good}`
  return bad('unsafe', name, { message, fix })
}

function findGrants(facts: BucketFacts): Finding {
  const name = 'grants'
  const { publicGrants: fact } = facts
  if (fact.kind !== 'known') {
    const look = s3api(facts, 'get-bucket-acl')
    const wanted = 'no grant to AllUsers or AuthenticatedUsers'
    return unknown(fact, { facts, name, action: 's3:GetBucketAcl', look, wanted })
  }
  if (fact.value.length === 0) return safe(name, 'none to strangers')
  const message = `strangers are granted ${fact.value.join(', ')}`
  return bad('unsafe', name, { message, fix: s3api(facts, 'put-bucket-acl', '--acl private') })
}

function findOwnership(facts: BucketFacts): Finding {
  const name = 'ownership'
  const { ownership: fact } = facts
  if (fact.kind !== 'known') {
    const look = s3api(facts, 'get-bucket-ownership-controls')
    const wanted = 'BucketOwnerEnforced, which is: access lists are disabled'
    return unknown(fact, { facts, name, action: 's3:GetBucketOwnershipControls', look, wanted })
  }
  if (fact.value === 'BucketOwnerEnforced') return safe(name, 'access lists are disabled')
  const which = fact.value ?? 'ObjectWriter'
  const message = `access lists are in force (${which}): a single object can be public`
  const rule = "--ownership-controls 'Rules=[{ObjectOwnership=BucketOwnerEnforced}]'"
  const fix = s3api(facts, 'put-bucket-ownership-controls', rule)
  return bad('warning', name, { message, fix })
}

/** Said for whoever asks: what lies there was encrypted before it was sent. */
function findEncryption({ encryption: fact }: BucketFacts): Finding {
  const ours = 'everything was encrypted before it was sent'
  const theirs =
    fact.kind === 'known' && fact.value !== undefined ? `, and ${fact.value} there` : ''
  return safe('encryption', `${ours}${theirs}`)
}

function findVersioning(facts: BucketFacts): Finding {
  const name = 'versioning'
  const { versioning: fact, lockMs } = facts
  const gone = 'what is deleted or overwritten is gone'
  if (fact.kind !== 'known') {
    const look = s3api(facts, 'get-bucket-versioning')
    const wanted = `versioning is on; without it ${gone}`
    return unknown(fact, { facts, name, action: 's3:GetBucketVersioning', look, wanted })
  }
  if (fact.value === 'on') return safe(name, 'on: a deletion hides, and can be undone')
  const rest = '--versioning-configuration Status=Enabled'
  const message = `${fact.value}: ${gone}`
  const verdict = lockMs === undefined ? 'warning' : 'unsafe'
  return bad(verdict, name, { message, fix: s3api(facts, 'put-bucket-versioning', rest) })
}

function findLock(facts: BucketFacts): Finding[] {
  const name = 'object lock'
  const { objectLock: fact, lockMs } = facts
  if (fact.kind !== 'known') {
    const look = s3api(facts, 'get-object-lock-configuration')
    const isWanted = lockMs !== undefined
    const wanted = isWanted ? 'it is enabled, as `lock` needs' : 'no default retention by mistake'
    const action = 's3:GetBucketObjectLockConfiguration'
    return [unknown(fact, { facts, name, action, look, wanted })]
  }
  const put = 'put-object-lock-configuration'
  if (fact.value === 'off') {
    if (lockMs === undefined) return [safe(name, 'off, and none is configured')]
    const rest = '--object-lock-configuration ObjectLockEnabled=Enabled'
    const message = `off, and the configuration says lock: ${formatPeriod(lockMs)}`
    const elsewhere = 'other services: only when a bucket is made'
    const fix = `${s3api(facts, put, rest)} (${elsewhere}), or remove lock`
    return [bad('unsafe', name, { message, fix })]
  }
  const { mode, days } = fact.value
  const findings: Finding[] = []
  const off = s3api(facts, put, '--object-lock-configuration ObjectLockEnabled=Enabled')
  const fix = `without a default retention only what an export needs is locked: ${off}`
  if (days !== undefined && mode === 'COMPLIANCE') {
    const what = 'everything that is put here, probes too'
    const message = `${what}, can be removed by nobody for ${counted(days, 'day')}`
    findings.push(bad('warning', name, { message, fix }))
  } else if (days !== undefined && days * DAY_MS > (lockMs ?? 0)) {
    const length = counted(days, 'day')
    const message = `the bucket locks everything for ${length}, longer than \`lock\` says`
    findings.push(bad('warning', name, { message, fix }))
  } else {
    const retention =
      days === undefined ? 'no default retention' : `${counted(days, 'day')} by default`
    findings.push(safe(name, `on, ${retention}`))
  }
  return [...findings, ...(lockMs === undefined ? [] : findLockLength({ ...facts, lockMs }))]
}

/** Long enough to last until the next export renews it, and no longer than retention keeps. */
function findLockLength({
  lockMs,
  twoPeriodsMs,
  keptMs,
}: BucketFacts & { readonly lockMs: number }): Finding[] {
  const name = 'lock'
  const lock = formatPeriod(lockMs)
  if (twoPeriodsMs !== undefined && lockMs < twoPeriodsMs) {
    const isGap = lockMs < twoPeriodsMs / 2
    const message = isGap
      ? `${lock} are over before the next export: nothing is locked meanwhile`
      : `${lock} are over when one export does not come: nothing is locked then`
    const fix = `write lock: ${Math.ceil(twoPeriodsMs / DAY_MS)}d or more`
    return [bad(isGap ? 'unsafe' : 'warning', name, { message, fix })]
  }
  if (keptMs !== undefined && lockMs > keptMs) {
    const kept = `retention keeps an export (${formatPeriod(keptMs)})`
    const message = `${lock} are longer than ${kept}: it is paid for until then`
    const fix = `write lock: ${Math.floor(keptMs / DAY_MS)}d, or keep more exports`
    return [bad('warning', name, { message, fix })]
  }
  return [safe(name, `${lock}, renewed with every export`)]
}

function findCapabilities(facts: BucketFacts): Finding[] {
  const { capabilities: fact, storageClass } = facts
  const name = 'proof of uploads'
  if (fact === undefined) return []
  if (fact.kind !== 'known') {
    const message = fact.kind === 'failed' ? fact.message : 'it could not be probed'
    const where = `below "${keyPrefix(facts.path)}.probe/"`
    const fix = `let the credentials write and read ${where}: ${policyCall(facts, 'backup')}`
    return [bad('unknown', name, { message, fix })]
  }
  const { checksum, multipartChecksum, conditionalPut, conditionalComplete } = fact.value
  const findings: Finding[] = []
  if (checksum === 'crc32' && multipartChecksum === 'crc32') {
    findings.push(safe(name, 'the service refuses what does not fit its CRC-32'))
  } else {
    const what = checksum === 'none' ? 'nothing that is sent' : 'no large upload as a whole'
    const read = `the service checks ${what}: each is read back to prove it`
    if (!isCold(storageClass)) {
      findings.push(safe(name, read))
    } else {
      const fix = 'write storage_class: STANDARD: what is cold cannot be read back'
      findings.push(bad('unsafe', name, { message: `${read}, and ${storageClass} is cold`, fix }))
    }
  }
  const whole = 'conditional writes'
  if (conditionalPut && conditionalComplete) {
    findings.push(safe(whole, 'the service refuses to overwrite where it is asked to'))
  } else {
    const part = conditionalPut ? 'for large uploads' : 'at all'
    const message = `If-None-Match is not honoured ${part}: names are looked for before instead`
    if (facts.versioning.kind === 'known' && facts.versioning.value === 'on') {
      findings.push(safe(whole, `${message}, and versioning keeps what is overwritten`))
    } else {
      const fix = 'turn on versioning, which keeps what two writers overwrite'
      findings.push(bad('warning', whole, { message, fix }))
    }
  }
  return findings
}
