import { suite } from 'uvu'
import type {
  BucketFacts,
  Fact,
  Finding,
  LifecycleRule,
  Trials,
} from '../../lib/model/bucket-facts.ts'
import { bucketFindings, findingCheck } from '../../lib/model/bucket-findings.ts'
import { reach } from '../../lib/model/bucket-lifecycle.ts'
import { deniesLifecycle } from '../../lib/model/bucket-permissions.ts'
import { policyDocument } from '../../lib/model/bucket-policy.ts'
import * as assert from '../helpers/assert.ts'

const findings = suite('model/bucket-findings')
const DAY_MS = 86_400_000

const BLOCKED = { blocksAcls: true, ignoresAcls: true, blocksPolicy: true, restrictsBuckets: true }

const RULE: LifecycleRule = {
  id: 'ours',
  isEnabled: true,
  prefix: '',
  isFiltered: false,
  expiresAfterDays: undefined,
  expiresOldVersionsAfterDays: undefined,
  abortsUploadsAfterDays: undefined,
  transitions: [],
}

const ABORTING: LifecycleRule = { ...RULE, id: 'abort', abortsUploadsAfterDays: 7 }

const TRIALS: Trials = {
  create: 'allowed',
  overwrite: 'refused',
  remove: 'refused',
  destroy: 'refused',
  listVersions: 'allowed',
  readOldVersion: 'allowed',
  lengthenLock: 'allowed',
  shortenLock: 'refused',
  adminDestroy: 'allowed',
  storageClass: { kind: 'known', value: 'GLACIER_IR' },
  clockAheadMs: 0,
}

/** As docs/buckets.md has it made, at Amazon. */
const GOOD: BucketFacts = {
  target: 'cloud',
  bucket: 'my-backups',
  path: 'home',
  endpoint: undefined,
  region: 'eu-central-1',
  storageClass: 'GLACIER_IR',
  lockMs: 30 * DAY_MS,
  hasAdminProfile: true,
  twoPeriodsMs: 14 * DAY_MS,
  keptMs: 35 * DAY_MS,
  location: known('eu-central-1'),
  publicAccessBlock: known(BLOCKED),
  accountPublicAccessBlock: known(BLOCKED),
  isPolicyPublic: known(false),
  publicGrants: known([]),
  ownership: known('BucketOwnerEnforced'),
  versioning: known('on'),
  objectLock: known({ mode: undefined, days: undefined }),
  lifecycle: known([ABORTING]),
  encryption: known('AES256'),
  policy: known(JSON.stringify(denyAll())),
  capabilities: known({
    checksum: 'crc32',
    multipartChecksum: 'crc32',
    conditionalPut: true,
    conditionalComplete: true,
  }),
  trials: TRIALS,
}

function denyAll(): unknown {
  const action = 's3:PutLifecycleConfiguration'
  return { Statement: [{ Effect: 'Deny', Principal: '*', Action: action, Resource: '*' }] }
}

function known<T>(value: T): Fact<T> {
  return { kind: 'known', value }
}

/** The findings of that name. */
function named(name: string, change: Partial<BucketFacts>): readonly Finding[] {
  return bucketFindings({ ...GOOD, ...change }).filter((finding) => finding.name === name)
}

/** The only finding of that name. */
function one(name: string, change: Partial<BucketFacts>): Finding {
  const found = named(name, change)
  assert.is(found.length, 1, name)
  return found[0] as Finding
}

function tried(name: string, trials: Partial<Trials>, change: Partial<BucketFacts> = {}): Finding {
  return one(name, { ...change, trials: { ...TRIALS, ...trials } })
}

const lifecycle = (change: Partial<LifecycleRule>) => ({
  lifecycle: known([ABORTING, { ...RULE, ...change }]),
})

findings('a bucket that is as the manual has it is safe, all through', () => {
  const all = bucketFindings(GOOD)
  assert.equal(
    all.filter(({ verdict }) => verdict !== 'safe'),
    [],
  )
  assert.ok(all.length > 20)
  assert.equal(
    all.map(findingCheck).filter(({ verdict }) => verdict !== 'ok'),
    [],
  )
})

findings('what was not answered is unknown, whatever it was, and never safe', () => {
  const names: Readonly<Record<string, string>> = {
    publicAccessBlock: 'public access block',
    accountPublicAccessBlock: 'public access block of the account',
    isPolicyPublic: 'policy status',
    publicGrants: 'grants',
    ownership: 'ownership',
    versioning: 'versioning',
    objectLock: 'object lock',
    lifecycle: 'lifecycle',
    capabilities: 'proof of uploads',
  }
  const answers = [{ kind: 'unsupported' }, { kind: 'denied' }, { kind: 'failed', message: 'x' }]
  for (const [fact, name] of Object.entries(names)) {
    for (const answer of answers) {
      const change = { accountPublicAccessBlock: known(undefined), [fact]: answer }
      const finding = one(name, change as Partial<BucketFacts>)
      assert.is(finding.verdict, 'unknown', `${fact} ${answer.kind}`)
      assert.ok(finding.fix, fact)
      const check = findingCheck(finding)
      assert.is(check.verdict, 'warning')
      assert.match(check.message, /^unknown: /)
    }
  }
  assert.match(one('grants', { publicGrants: { kind: 'denied' } }).fix ?? '', /s3:GetBucketAcl/)
  const nothing = Object.fromEntries(Object.keys(names).map((fact) => [fact, answers[0]]))
  const trials = { ...TRIALS, create: 'unknown' } as const
  const all = bucketFindings({ ...GOOD, ...nothing, endpoint: 'https://s3.example', trials })
  const isSafe = all.filter(({ verdict }) => verdict === 'safe').map(({ name }) => name)
  assert.equal(isSafe, ['transport', 'encryption'])
})

findings('everything that is not safe says what mends it, with the bucket in quotes', () => {
  const bad: Partial<BucketFacts> = {
    endpoint: undefined,
    publicAccessBlock: known({ ...BLOCKED, blocksPolicy: false }),
    accountPublicAccessBlock: known(undefined),
    isPolicyPublic: known(true),
    publicGrants: known(['AllUsers READ']),
    ownership: known('ObjectWriter'),
    versioning: known('off'),
    objectLock: known('off'),
    lifecycle: known([]),
  }
  const all = bucketFindings({ ...GOOD, ...bad }).filter(({ verdict }) => verdict !== 'safe')
  assert.ok(all.length >= 8)
  for (const { name, fix = '' } of all) assert.match(fix, /aws s3|backup doctor/, name)
  assert.equal(
    one('public access block', bad).fix,
    "aws s3api put-public-access-block --bucket 'my-backups' --public-access-block-configuration"
      + ' BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,'
      + 'RestrictPublicBuckets=true',
  )
  assert.match(one('public access block', bad).message, /BlockPublicPolicy not set/)
  const rule = one('abandoned uploads', bad).fix ?? ''
  assert.match(rule, /--lifecycle-configuration '\{"Rules":\[\{.*"Prefix":"home\/"/)
  const elsewhere = { ...bad, endpoint: 'https://s3.example' }
  assert.match(one('versioning', elsewhere).fix ?? '', /--endpoint-url 'https:\/\/s3.example'/)
})

findings('the account covers a bucket that does not block public access itself', () => {
  const open = { publicAccessBlock: known(undefined) }
  assert.is(one('public access block', open).verdict, 'safe')
  const both = { ...open, accountPublicAccessBlock: known(undefined) }
  assert.is(one('public access block', both).verdict, 'unsafe')
  assert.is(one('public access block of the account', both).verdict, 'warning')
  const half = { ...open, accountPublicAccessBlock: known({ ...BLOCKED, ignoresAcls: false }) }
  assert.is(one('public access block', half).verdict, 'unsafe')
  // Only Amazon has one.
  assert.equal(named('public access block of the account', { endpoint: 'https://a.example' }), [])
})

findings('strangers who are let in make it unsafe', () => {
  assert.is(one('policy status', { isPolicyPublic: known(true) }).verdict, 'unsafe')
  assert.is(one('policy status', { isPolicyPublic: known(undefined) }).verdict, 'safe')
  assert.is(one('grants', { publicGrants: known(['AllUsers READ']) }).verdict, 'unsafe')
  assert.is(one('ownership', { ownership: known(undefined) }).verdict, 'warning')
})

findings('plain http is fine to this machine only', () => {
  const verdict = (endpoint: string) => one('transport', { endpoint }).verdict
  assert.is(verdict('http://127.0.0.1:9000'), 'safe')
  assert.is(verdict('http://localhost:9000'), 'safe')
  assert.is(verdict('http://[::1]:9000'), 'safe')
  assert.is(verdict('https://s3.example'), 'safe')
  assert.is(verdict('HTTPS://s3.example'), 'safe')
  assert.is(verdict('http://192.168.1.2:9000'), 'unsafe')
  assert.is(verdict('http://127.0.0.1.example'), 'unsafe')
  assert.is(verdict('http://127.0.0.1@evil.example'), 'unsafe')
  assert.is(verdict('http://localhost.example/127.0.0.1'), 'unsafe')
})

findings('the region is the one where the bucket is', () => {
  assert.is(one('region', { location: known('us-west-2') }).verdict, 'unsafe')
  assert.is(one('region', { location: known(undefined), region: 'us-east-1' }).verdict, 'safe')
  assert.is(one('region', { location: known('EU'), region: 'eu-west-1' }).verdict, 'safe')
  assert.equal(named('region', { endpoint: 'https://a.example', location: known('x') }), [])
})

findings('without versioning what is deleted is gone; with a lock that is unsafe', () => {
  assert.is(one('versioning', { versioning: known('off') }).verdict, 'unsafe')
  assert.is(one('versioning', { versioning: known('suspended') }).verdict, 'unsafe')
  assert.is(one('versioning', { versioning: known('off'), lockMs: undefined }).verdict, 'warning')
})

findings('a lock is possible, lasts until it is renewed, and not longer than retention', () => {
  const lock = (days: number) => one('lock', { lockMs: days * DAY_MS }).verdict
  assert.is(one('object lock', { objectLock: known('off') }).verdict, 'unsafe')
  assert.is(one('object lock', { objectLock: known('off'), lockMs: undefined }).verdict, 'safe')
  assert.is(lock(6), 'unsafe')
  assert.is(lock(7), 'warning')
  assert.is(lock(13), 'warning')
  assert.is(lock(14), 'safe')
  assert.is(lock(35), 'safe')
  assert.is(lock(36), 'warning')
  assert.is(one('lock', { lockMs: 999 * DAY_MS, keptMs: undefined }).verdict, 'safe')
  assert.is(one('lock', { lockMs: DAY_MS, twoPeriodsMs: undefined }).verdict, 'safe')
  assert.equal(named('lock', { lockMs: undefined }), [])
  assert.equal(named('lock', { objectLock: known('off') }), [])
})

findings('a default retention binds prune too', () => {
  const retention = (mode: 'GOVERNANCE' | 'COMPLIANCE', days: number) =>
    one('object lock', { objectLock: known({ mode, days }) }).verdict
  assert.is(retention('GOVERNANCE', 30), 'safe')
  assert.is(retention('GOVERNANCE', 31), 'warning')
  assert.is(retention('COMPLIANCE', 1), 'warning')
})

findings('a rule that deletes or freezes what we keep is unsafe', () => {
  const verdict = (change: Partial<LifecycleRule>) => one('lifecycle', lifecycle(change)).verdict
  const to = (storageClass: string) => ({ transitions: [{ afterDays: 30, storageClass }] })
  const bundles = { prefix: 'home/machines/laptop/docs/2026-01-02T030405Z/data-' }
  assert.is(verdict({ expiresAfterDays: 365 }), 'unsafe')
  assert.is(verdict({ expiresAfterDays: 365, prefix: 'home/machines/laptop/' }), 'unsafe')
  assert.is(verdict({ expiresAfterDays: 365, prefix: 'ho' }), 'unsafe')
  assert.is(verdict({ ...bundles, expiresAfterDays: 365 }), 'unsafe')
  assert.is(verdict({ expiresAfterDays: 365, isEnabled: false }), 'safe')
  assert.is(verdict({ expiresAfterDays: 365, prefix: 'logs/' }), 'safe')
  assert.is(verdict({ expiresAfterDays: 365, prefix: 'home2' }), 'safe')
  assert.is(verdict({ expiresAfterDays: 1, prefix: 'home/.probe/' }), 'safe')
  assert.is(verdict({ expiresAfterDays: 365, isFiltered: true }), 'unknown')
  assert.is(verdict(to('GLACIER')), 'unsafe')
  assert.is(verdict(to('DEEP_ARCHIVE')), 'unsafe')
  assert.is(verdict(to('NEVER_HEARD_OF')), 'unsafe')
  assert.is(verdict(to('STANDARD_IA')), 'warning')
  assert.is(verdict(to('GLACIER_IR')), 'warning')
  assert.is(verdict({ ...bundles, ...to('GLACIER') }), 'warning')
  assert.match(one('lifecycle', lifecycle(to('GLACIER'))).fix ?? '', /--bucket 'my-backups'/)
})

findings('old versions stay as long as the lock and the days for bringing them back', () => {
  const verdict = (days: number, change: Partial<BucketFacts> = {}) => {
    const rule = lifecycle({ expiresOldVersionsAfterDays: days })
    return one('lifecycle', { ...change, ...rule }).verdict
  }
  assert.is(verdict(29), 'unsafe')
  assert.is(verdict(30), 'safe')
  assert.is(verdict(89, { lockMs: 90 * DAY_MS }), 'unsafe')
  assert.is(verdict(90, { lockMs: 90 * DAY_MS }), 'safe')
  assert.is(verdict(1, { versioning: known('off') }), 'safe')
  assert.is(verdict(1, { versioning: { kind: 'unsupported' } }), 'unsafe')
})

findings('abandoned uploads are aborted, and not too soon', () => {
  const rules = (...all: LifecycleRule[]) =>
    one('abandoned uploads', { lifecycle: known(all) }).verdict
  assert.is(rules(), 'warning')
  assert.is(rules(ABORTING), 'safe')
  assert.is(rules({ ...ABORTING, abortsUploadsAfterDays: 6 }), 'warning')
  assert.is(rules({ ...ABORTING, prefix: 'home/' }), 'safe')
  assert.is(rules({ ...ABORTING, prefix: 'home/machines/laptop/' }), 'warning')
  assert.is(rules({ ...ABORTING, isEnabled: false }), 'warning')
  assert.is(rules({ ...ABORTING, prefix: 'logs/' }), 'warning')
  assert.is(rules(ABORTING, { ...ABORTING, prefix: 'logs/', abortsUploadsAfterDays: 1 }), 'safe')
})

findings('a prefix reaches what it takes in', () => {
  assert.is(reach('', ''), 'everything')
  assert.is(reach('machines/', ''), 'everything')
  assert.is(reach('mach', ''), 'everything')
  assert.is(reach('rec', ''), 'everything')
  assert.is(reach('photos/', ''), 'nothing')
  assert.is(reach('home/', 'home'), 'everything')
  assert.is(reach('home/photos/', 'home'), 'nothing')
  assert.is(reach('home/machines/a/docs/s/data-0', 'home'), 'data')
  assert.is(reach('home/machines/a/docs/s/d', 'home'), 'everything')
})

findings('backups that can destroy are unsafe where the configuration wants them not to', () => {
  const careless = { hasAdminProfile: false, lockMs: undefined }
  const unversioned = { versioning: known('off' as const), lockMs: undefined }
  assert.is(tried('delete', { destroy: 'allowed' }).verdict, 'unsafe')
  assert.is(tried('delete', { destroy: 'allowed' }, careless).verdict, 'warning')
  assert.is(tried('delete', { remove: 'allowed' }).verdict, 'warning')
  assert.is(
    tried('delete', { remove: 'allowed', destroy: 'unknown' }, unversioned).verdict,
    'unsafe',
  )
  assert.is(tried('delete', { destroy: 'unknown' }, unversioned).verdict, 'safe')
  assert.is(tried('delete', { destroy: 'unknown' }).verdict, 'unknown')
  assert.is(tried('delete', { remove: 'unknown' }).verdict, 'unknown')
  assert.is(tried('overwrite', { overwrite: 'allowed' }).verdict, 'warning')
  assert.is(tried('overwrite', { overwrite: 'allowed' }, unversioned).verdict, 'unsafe')
  assert.is(tried('overwrite', { overwrite: 'unknown' }).verdict, 'unknown')
  assert.match(tried('delete', { destroy: 'allowed' }).fix ?? '', /--target cloud --policy backup/)
  assert.match(tried('delete', { destroy: 'allowed' }, careless).fix ?? '', /admin_profile/)
})

findings('locks can be lengthened and not shortened', () => {
  assert.is(tried('change of locks', { shortenLock: 'allowed' }).verdict, 'unsafe')
  assert.is(tried('change of locks', { lengthenLock: 'refused' }).verdict, 'unsafe')
  assert.is(
    tried('change of locks', { lengthenLock: 'refused' }, { lockMs: undefined }).verdict,
    'safe',
  )
  assert.is(tried('change of locks', { shortenLock: 'unknown' }).verdict, 'unknown')
  assert.equal(named('change of locks', { objectLock: known('off') }), [])
})

findings('old versions have to be found and read for anything to come back', () => {
  assert.is(tried('old versions', { listVersions: 'refused' }).verdict, 'warning')
  assert.is(tried('old versions', { readOldVersion: 'refused' }).verdict, 'warning')
  assert.is(tried('old versions', { readOldVersion: 'unknown' }).verdict, 'unknown')
  assert.equal(named('old versions', { versioning: known('off') }), [])
})

findings('the admin profile deletes, or nothing ever goes', () => {
  assert.is(tried('admin profile', { adminDestroy: 'refused' }).verdict, 'warning')
  assert.is(tried('admin profile', { adminDestroy: 'unknown' }).verdict, 'unknown')
  const none = { hasAdminProfile: false }
  assert.is(tried('admin profile', {}, none).verdict, 'warning')
  const all = { ...none, trials: { ...TRIALS, destroy: 'allowed' } as const }
  assert.equal(named('admin profile', all), [])
})

findings('who may change the rules is known only where the bucket denies it to all', () => {
  const scope = { bucket: 'b', path: '', machine: 'm', region: undefined } as const
  const ours = policyDocument('bucket', { ...scope, isAmazon: true, lockMs: undefined })
  assert.is(deniesLifecycle(JSON.stringify(ours)), 'some')
  assert.is(deniesLifecycle(JSON.stringify(denyAll())), 'all')
  assert.is(deniesLifecycle(JSON.stringify(denyAll()).replace('Deny', 'Allow')), 'no')
  assert.is(deniesLifecycle(JSON.stringify(denyAll()).replace(/s3:Put\w+/, 's3:PutB*')), 'no')
  assert.is(deniesLifecycle(JSON.stringify(denyAll()).replace(/s3:Put\w+/, 's3:Put*')), 'all')
  assert.is(deniesLifecycle('{'), 'no')
  assert.is(deniesLifecycle(undefined), 'no')
  assert.is(one('change of rules', { policy: known(JSON.stringify(ours)) }).verdict, 'unknown')
  assert.is(one('change of rules', { policy: known(undefined) }).verdict, 'unknown')
  assert.is(one('change of rules', { policy: { kind: 'denied' } }).verdict, 'unknown')
})

findings('a class that the service does not have is unsafe', () => {
  assert.is(tried('storage class', { storageClass: { kind: 'unsupported' } }).verdict, 'unsafe')
  assert.is(tried('storage class', { storageClass: known('STANDARD') }).verdict, 'warning')
  assert.is(tried('storage class', { storageClass: { kind: 'denied' } }).verdict, 'unknown')
  assert.equal(named('storage class', { trials: { ...TRIALS, storageClass: undefined } }), [])
})

findings('clocks that are apart are told before the service refuses', () => {
  const verdict = (clockAheadMs: number) => tried('clock', { clockAheadMs }).verdict
  assert.is(verdict(59_999), 'safe')
  assert.is(verdict(60_000), 'warning')
  assert.is(verdict(-299_999), 'warning')
  assert.is(verdict(-300_000), 'unsafe')
  assert.match(tried('clock', { clockAheadMs: -300_000 }).message, /5 minutes behind/)
})

findings('what is sent has to be proven by a checksum, or read back', () => {
  const none = {
    checksum: 'md5',
    multipartChecksum: 'none',
    conditionalPut: true,
    conditionalComplete: false,
  } as const
  assert.is(one('proof of uploads', { capabilities: known(none) }).verdict, 'safe')
  const cold = { capabilities: known(none), storageClass: 'DEEP_ARCHIVE' }
  assert.is(one('proof of uploads', cold).verdict, 'unsafe')
  assert.is(one('conditional writes', { capabilities: known(none) }).verdict, 'safe')
  const bare = { capabilities: known(none), versioning: known('off' as const) }
  assert.is(one('conditional writes', bare).verdict, 'warning')
})

findings(
  'a dry run tries nothing and says so; without the right to create nothing else is said',
  () => {
    assert.is(one('permissions', { trials: undefined, capabilities: undefined }).verdict, 'safe')
    assert.equal(named('delete', { trials: undefined }), [])
    assert.equal(named('proof of uploads', { capabilities: undefined }), [])
    assert.is(tried('create', { create: 'refused' }).verdict, 'unsafe')
    assert.equal(named('delete', { trials: { ...TRIALS, create: 'refused' } }), [])
  },
)

findings.run()
