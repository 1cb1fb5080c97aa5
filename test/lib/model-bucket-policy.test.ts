import { suite } from 'uvu'
import {
  type Policy,
  POLICY_KINDS,
  policyCommands,
  policyDocument,
  type PolicyKind,
  type PolicyScope,
} from '../../lib/model/bucket-policy.ts'
import * as assert from '../helpers/assert.ts'
import { isAllowed } from '../helpers/iam.ts'

const policies = suite('model/bucket-policy')

const SCOPE: PolicyScope = {
  bucket: 'my-backups',
  path: 'home',
  machine: 'laptop',
  region: undefined,
  isAmazon: true,
  lockMs: 90 * 86_400_000,
}
const STAMP = '2026-01-02T030405Z'
const ARN = 'arn:aws:s3:::my-backups'
const NEW = { 's3:if-none-match': '*', 's3:ObjectCreationOperation': 'true' }
const PART = { 's3:ObjectCreationOperation': 'false' }
const UNCONDITIONAL = { 's3:ObjectCreationOperation': 'true' }
/** As an IAM user that docs/buckets.md has made. */
const BACKUP_USER = { 'aws:PrincipalArn': 'arn:aws:iam::123456789012:user/backup/backup-laptop' }
const ADMIN_USER = { 'aws:PrincipalArn': 'arn:aws:iam::123456789012:user/backup-admin' }
const TLS = { 'aws:SecureTransport': 'true' }

function document(kind: PolicyKind, change: Partial<PolicyScope> = {}): Policy {
  return policyDocument(kind, { ...SCOPE, ...change }) as Policy
}

/** Whether the policy of that kind lets `action` be done to a key, or to the bucket for ''. */
function may(
  kind: PolicyKind,
  [action, key, context = {}]: readonly [string, string, Readonly<Record<string, string>>?],
  change: Partial<PolicyScope> = {},
): boolean {
  const resource = key === '' ? ARN : `${ARN}/${key}`
  return isAllowed([document(kind, change)], { action: `s3:${action}`, resource, context })
}

const OWN = `home/machines/laptop/docs/${STAMP}`

/** What an export does, call by call. */
const EXPORT: readonly (readonly [string, string, Readonly<Record<string, string>>?])[] = [
  ['GetObject', 'home/repository.json'],
  ['ListBucket', '', { 's3:prefix': 'home/repository.json' }],
  ['ListBucket', '', { 's3:prefix': 'home/', 's3:delimiter': '/' }],
  ['PutObject', 'home/RECOVER.txt', NEW],
  ['PutObject', 'home/recover.sh', NEW],
  ['PutObject', 'home/repository.json', NEW],
  ['PutObject', 'home/.probe/0123', NEW],
  ['GetObject', 'home/.probe/0123'],
  ['GetObject', 'home/machines/laptop/machine.json'],
  ['GetObject', 'home/machines/laptop/machine.json.minisig'],
  ['ListBucket', '', { 's3:prefix': 'home/machines/', 's3:delimiter': '/' }],
  ['ListBucket', '', { 's3:prefix': 'home/machines/laptop/', 's3:delimiter': '/' }],
  ['ListBucket', '', { 's3:prefix': 'home/machines/laptop/docs/' }],
  ['PutObject', 'home/machines/laptop/machine.json', NEW],
  ['PutObject', `${OWN}/catalog-0001.tar.zst.age`, NEW],
  ['PutObject', `${OWN}/data-0001.tar.zst.age`, PART],
  ['ListMultipartUploadParts', `${OWN}/data-0001.tar.zst.age`],
  ['PutObject', `${OWN}/data-0001.tar.zst.age`, NEW],
  ['AbortMultipartUpload', `${OWN}/data-0001.tar.zst.age`],
  ['ListBucketMultipartUploads', '', { 's3:prefix': 'home/' }],
  ['PutObject', `${OWN}/verification.sha256`, NEW],
  ['GetObject', `${OWN}/verification.sha256.minisig`],
  ['PutObject', `${OWN}/manifest.tar.zst.age`, NEW],
  ['GetObject', `${OWN}/manifest.tar.zst.age`],
  ['PutObject', `home/machines/laptop/freshness/${STAMP}.json`, NEW],
  ['GetObject', `home/machines/desktop/freshness/${STAMP}.json.minisig`],
]

policies('an export can do all that it does', () => {
  for (const call of EXPORT) assert.ok(may('backup', call), call.join(' '))
  const bare = { path: '' }
  assert.ok(may('backup', ['ListBucket', '', { 's3:prefix': '', 's3:delimiter': '/' }], bare))
  assert.ok(may('backup', ['PutObject', 'repository.json', NEW], bare))
  assert.ok(may('backup', ['PutObject', `${OWN.slice(5)}/data-0001.tar.zst.age`, NEW], bare))
})

policies('a backup cannot delete, overwrite, touch others, or change the bucket', () => {
  const data = `${OWN}/data-0001.tar.zst.age`
  const refused: readonly (readonly [string, string, Readonly<Record<string, string>>?])[] = [
    ['DeleteObject', data],
    ['DeleteObjectVersion', data],
    ['DeleteObject', 'home/.probe/0123'],
    ['PutObject', data, UNCONDITIONAL],
    ['PutObject', 'home/repository.json', UNCONDITIONAL],
    ['PutObject', `home/machines/desktop/docs/${STAMP}/data-0001.tar.zst.age`, NEW],
    ['PutObject', 'home/machines/laptop2/machine.json', NEW],
    ['PutObject', `home/machines/laptop/pruned/${STAMP}.json`, NEW],
    ['AbortMultipartUpload', `home/machines/desktop/docs/${STAMP}/data-0001.tar.zst.age`],
    ['PutObject', 'elsewhere', NEW],
    ['GetObject', data],
    ['GetObjectVersion', data],
    ['GetObject', `home/machines/desktop/docs/${STAMP}/manifest.tar.zst.age`],
    ['GetObject', 'elsewhere'],
    ['ListBucket', '', { 's3:prefix': 'home/machines/desktop/' }],
    ['ListBucket', '', { 's3:prefix': 'home/' }],
    ['ListBucket', ''],
    ['ListBucketVersions', '', { 's3:prefix': 'home/machines/desktop/' }],
    ['BypassGovernanceRetention', data],
    ['PutLifecycleConfiguration', ''],
    ['PutBucketVersioning', ''],
    ['PutBucketPolicy', ''],
    ['DeleteBucketPolicy', ''],
    ['PutBucketObjectLockConfiguration', ''],
    ['PutBucketPublicAccessBlock', ''],
    ['PutObjectAcl', data],
    ['PutBucketAcl', ''],
    ['DeleteBucket', ''],
  ]
  for (const call of refused) assert.not(may('backup', call), call.join(' '))
  for (const { Effect, Action } of document('backup').Statement) {
    if (Effect !== 'Allow') continue
    for (const action of Action) {
      assert.not.match(action, /\*|:Delete|:PutLifecycle|:PutBucket|:Bypass/)
    }
  }
})

policies('a backup locks only where that is configured, and for no longer', () => {
  const data = `${OWN}/data-0001.tar.zst.age`
  const lock = (days: number, mode = 'GOVERNANCE') => {
    const days_ = 's3:object-lock-remaining-retention-days'
    return { 's3:object-lock-mode': mode, [days_]: String(days) }
  }
  assert.ok(may('backup', ['PutObjectRetention', data, lock(90)]))
  // Where it is extended, by a third more, and a day for clocks.
  assert.ok(may('backup', ['PutObjectRetention', data, lock(121)]))
  assert.not(may('backup', ['PutObjectRetention', data, lock(122)]))
  assert.not(may('backup', ['PutObjectRetention', data, lock(1, 'COMPLIANCE')]))
  assert.ok(may('backup', ['GetObjectRetention', data]))
  assert.not(may('backup', ['PutObjectRetention', data, lock(1)], { lockMs: undefined }))
  assert.not(may('admin', ['BypassGovernanceRetention', data], { lockMs: undefined }))
})

policies('where the service checks no checksums, bundles can be read back', () => {
  const data = `${OWN}/data-0001.tar.zst.age`
  assert.ok(may('backup', ['GetObject', data], { isAmazon: false }))
  const others = `home/machines/desktop/docs/${STAMP}/data-0001.tar.zst.age`
  assert.not(may('backup', ['GetObject', others], { isAmazon: false }))
  assert.not(may('backup', ['DeleteObject', data], { isAmazon: false }))
  // Conditions that a service does not know would deny everything, or nothing.
  assert.not.match(
    JSON.stringify(document('backup', { isAmazon: false })),
    /ObjectCreation|Account/,
  )
})

policies('an admin prunes, restores and repairs, and changes no settings', () => {
  const data = `${OWN}/data-0001.tar.zst.age`
  for (const action of [
    ...['DeleteObject', 'DeleteObjectVersion', 'GetObject', 'GetObjectVersion', 'PutObject'],
    ...['RestoreObject', 'PutObjectRetention', 'BypassGovernanceRetention', 'GetObjectRetention'],
  ]) {
    assert.ok(may('admin', [action, data]), action)
    assert.not(may('admin', [action, 'elsewhere']), action)
  }
  assert.ok(may('admin', ['ListBucketVersions', '']))
  assert.ok(may('admin', ['ListBucket', '']))
  assert.not(may('admin', ['PutLifecycleConfiguration', '']))
  assert.not(may('admin', ['PutBucketPolicy', '']))
  assert.not(may('admin', ['PutBucketVersioning', '']))
})

policies('the bucket holds backups to it even where their own policy is too wide', () => {
  const wide: Policy = {
    Version: '2012-10-17',
    Statement: [{ Sid: 'All', Effect: 'Allow', Action: ['s3:*'], Resource: ['*'] }],
  }
  const both = (
    action: string,
    key: string,
    context: Readonly<Record<string, string>>,
  ): boolean => {
    const resource = key === '' ? ARN : `${ARN}/${key}`
    return isAllowed([wide, document('bucket')], { action: `s3:${action}`, resource, context })
  }
  const user = { ...BACKUP_USER, ...TLS }
  const admin = { ...ADMIN_USER, ...TLS }
  const data = `${OWN}/data-0001.tar.zst.age`
  assert.ok(both('PutObject', data, { ...user, ...NEW }))
  assert.ok(both('PutObject', data, { ...user, ...PART }))
  assert.ok(both('GetObject', data, user))
  assert.not(both('PutObject', data, { ...user, ...UNCONDITIONAL }))
  assert.not(both('DeleteObject', data, user))
  assert.not(both('DeleteObjectVersion', data, user))
  assert.not(both('BypassGovernanceRetention', data, user))
  assert.not(both('PutLifecycleConfiguration', '', user))
  assert.not(both('PutBucketVersioning', '', user))
  assert.ok(both('PutObject', data, { ...admin, ...UNCONDITIONAL }))
  assert.ok(both('DeleteObjectVersion', data, admin))
  assert.not(both('GetObject', data, { ...admin, 'aws:SecureTransport': 'false' }))
})

policies(
  'the lifecycle rule aborts what was abandoned below our prefix, and does nothing else',
  () => {
    const { Rules } = policyDocument('lifecycle', SCOPE) as { Rules: Record<string, unknown>[] }
    assert.equal(Rules, [
      {
        ID: 'backup-abandoned-uploads',
        Status: 'Enabled',
        Filter: { Prefix: 'home/' },
        AbortIncompleteMultipartUpload: { DaysAfterInitiation: 7 },
      },
    ])
    assert.match(JSON.stringify(policyDocument('lifecycle', { ...SCOPE, path: '' })), /"Prefix":""/)
  },
)

policies('other worlds have other names', () => {
  assert.match(JSON.stringify(document('backup', { region: 'cn-north-1' })), /arn:aws-cn:s3:::my/)
  const government = JSON.stringify(document('bucket', { region: 'us-gov-west-1' }))
  assert.match(government, /arn:aws-us-gov:iam::\*:user\/backup\/\*/)
  assert.not.match(government, /arn:aws:/)
})

policies('each document fits where Amazon puts it', () => {
  const long = { bucket: 'b'.repeat(63), path: 'p'.repeat(40), machine: 'm'.repeat(64) }
  for (const kind of POLICY_KINDS) {
    const length = JSON.stringify(document(kind, long)).length
    assert.ok(length <= (kind === 'bucket' ? 20_480 : 6144), `${kind}: ${length}`)
  }
  const ids = document('backup').Statement.map(({ Sid }) => Sid)
  assert.is(new Set(ids).size, ids.length)
  for (const id of ids) assert.match(id, /^[A-Za-z0-9]+$/)
})

policies('the commands name what is theirs, in quotes', () => {
  const odd = { ...SCOPE, bucket: "it's" }
  assert.match(policyCommands('bucket', odd)[0] ?? '', /--bucket 'it'\\''s' --policy file:/)
  assert.match(
    policyCommands('backup', SCOPE)[0] ?? '',
    /--path \/backup\/ --user-name backup-laptop/,
  )
  assert.not.match(policyCommands('admin', SCOPE)[0] ?? '', /--path/)
})

policies.run()
