// The documents that make a bucket safe to back up to: policies of two credentials and of the
// bucket, and a lifecycle rule.
//
// `backup doctor --target NAME --policy KIND` prints them; docs/buckets.md says what each is for.
// In Amazon's language, which Ceph reads in part. Append-only for real: whoever backs up can create
// and lock, and can neither delete, nor overwrite, nor change the bucket. Pure; throws nothing.

/** `backup` and `admin` are for credentials, `bucket` and `lifecycle` for the bucket itself. */
export const POLICY_KINDS = ['backup', 'admin', 'lifecycle', 'bucket'] as const

export type PolicyKind = (typeof POLICY_KINDS)[number]

export interface PolicyScope {
  readonly bucket: string
  /** Of all keys, without a slash at either end; empty for none. */
  readonly path: string
  /** Who backs up with the credential. */
  readonly machine: string
  /** Undefined where nobody said: one of Amazon's usual ones. */
  readonly region: string | undefined
  /** Whether the service is Amazon: only there conditions of every kind are understood. */
  readonly isAmazon: boolean
  /** How long exports are locked; undefined for no locks. */
  readonly lockMs: number | undefined
}

export interface Statement {
  readonly Sid: string
  readonly Effect: 'Allow' | 'Deny'
  readonly Principal?: '*'
  readonly Action: readonly string[]
  readonly Resource: readonly string[]
  readonly Condition?: Readonly<
    Record<string, Readonly<Record<string, string | number | readonly string[]>>>
  >
}

export interface Policy {
  readonly Version: '2012-10-17'
  readonly Statement: readonly Statement[]
}

export interface Lifecycle {
  readonly Rules: readonly Readonly<Record<string, unknown>>[]
}

/**
 * How long an upload may lie unfinished: a laptop that was shut for a week goes on where it was.
 */
export const ABANDONED_DAYS = 7

/**
 * IAM users below this path may only back up. A policy of the bucket knows them by it, whatever
 * account they are in.
 */
export const BACKUP_USERS = '/backup/'

/** What is written once at the top of a repository, and the probes. */
const TOP_FILES = ['repository.json', 'RECOVER.txt', 'recover.sh', '.probe/*']

const DAY_MS = 86_400_000

/**
 * A lock is extended by so much more than is asked for, at most, that the exports of a month need
 * not ask about it again: each time is a request for each bundle.
 */
const LONGEST_SLACK_MS = 30 * DAY_MS
/** Nobody wants a lock of a week to be one of five. */
const SLACK_SHARE = 1 / 3

/** What `backup doctor` looks at; each only reads how the bucket is set up. */
const LOOKING = [
  's3:GetBucketAcl',
  's3:GetBucketLocation',
  's3:GetBucketObjectLockConfiguration',
  's3:GetBucketOwnershipControls',
  's3:GetBucketPolicy',
  's3:GetBucketPolicyStatus',
  's3:GetBucketPublicAccessBlock',
  's3:GetBucketVersioning',
  's3:GetEncryptionConfiguration',
  's3:GetLifecycleConfiguration',
  's3:ListBucketMultipartUploads',
]

const LISTING = ['s3:ListBucket', 's3:ListBucketVersions']

/** A write without If-None-Match; the parts of a large upload have none, only their completion. */
const OVERWRITING = {
  Null: { 's3:if-none-match': 'true' },
  Bool: { 's3:ObjectCreationOperation': 'true' },
}

/** What changes or empties a bucket. */
const CHANGING = [
  's3:BypassGovernanceRetention',
  's3:DeleteBucket',
  's3:DeleteBucketPolicy',
  's3:DeleteObject',
  's3:DeleteObjectVersion',
  's3:PutBucketAcl',
  's3:PutBucketObjectLockConfiguration',
  's3:PutBucketOwnershipControls',
  's3:PutBucketPolicy',
  's3:PutBucketPublicAccessBlock',
  's3:PutBucketVersioning',
  's3:PutLifecycleConfiguration',
  's3:PutObjectAcl',
]

/** The document of that kind, ready for the aws program. */
export function policyDocument(kind: PolicyKind, scope: PolicyScope): Policy | Lifecycle {
  if (kind === 'lifecycle') return lifecycleDocument(scope)
  const statements = { backup, admin, bucket }[kind](scope)
  return { Version: '2012-10-17', Statement: statements }
}

/** How the document is put in place: shell commands, for people. */
export function policyCommands(kind: PolicyKind, scope: PolicyScope): readonly string[] {
  const bucketName = shellWord(scope.bucket)
  if (kind === 'lifecycle') {
    return [
      `aws s3api put-bucket-lifecycle-configuration --bucket ${bucketName}`
        + ' --lifecycle-configuration file://lifecycle.json',
    ]
  }
  if (kind === 'bucket') {
    return [`aws s3api put-bucket-policy --bucket ${bucketName} --policy file://bucket.json`]
  }
  const user = kind === 'backup' ? `backup-${scope.machine}` : 'backup-admin'
  const path = kind === 'backup' ? ` --path ${BACKUP_USERS}` : ''
  return [
    `aws iam create-user${path} --user-name ${user}`,
    `policy=$(aws iam create-policy --policy-name ${user} --policy-document file://${kind}.json`
      + ' --query Policy.Arn --output text)',
    `aws iam attach-user-policy --user-name ${user} --policy-arn "$policy"`,
  ]
}

/** The lifecycle rule that we ask for, and no other. */
export function lifecycleDocument({ path }: Pick<PolicyScope, 'path'>): Lifecycle {
  const rule = {
    ID: 'backup-abandoned-uploads',
    Status: 'Enabled',
    Filter: { Prefix: keyPrefix(path) },
    AbortIncompleteMultipartUpload: { DaysAfterInitiation: ABANDONED_DAYS },
  }
  return { Rules: [rule] }
}

/** What all our keys begin with: empty, or ending in a slash. */
export function keyPrefix(path: string): string {
  return path === '' ? '' : `${path}/`
}

/** A word for the shell, in quotes. */
export function shellWord(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`
}

/** How much longer than asked for a lock may be, where it is extended. */
export function lockSlackMs(lockMs: number): number {
  return Math.min(LONGEST_SLACK_MS, Math.max(0, lockMs) * SLACK_SHARE)
}

function backup(scope: PolicyScope): Statement[] {
  const { machine, path, isAmazon, lockMs } = scope
  const prefix = keyPrefix(path)
  const own = `machines/${machine}/*`
  // A service that checks no checksums has to be asked for what it got.
  const bundles = isAmazon
    ? [`machines/${machine}/*/verification.sha256*`, `machines/${machine}/*/manifest.tar.zst.age*`]
    : [own]
  const overwriting: Statement = {
    Sid: 'NeverOverwrite',
    Effect: 'Deny',
    Action: ['s3:PutObject'],
    Resource: objects(scope, ['*']),
    Condition: OVERWRITING,
  }
  return [
    {
      Sid: 'Create',
      Effect: 'Allow',
      Action: [
        's3:AbortMultipartUpload',
        ...(lockMs === undefined ? [] : ['s3:GetObjectRetention']),
        's3:ListMultipartUploadParts',
        's3:PutObject',
      ],
      Resource: objects(scope, [own, ...TOP_FILES]),
    },
    ...(isAmazon ? [overwriting] : []),
    {
      // A stolen key must not be able to say that what it hid was pruned.
      Sid: 'NeverSayPruned',
      Effect: 'Deny',
      Action: ['s3:PutObject'],
      Resource: objects(scope, [`machines/${machine}/pruned/*`]),
    },
    {
      Sid: 'ReadWhatIsSmall',
      Effect: 'Allow',
      // Old versions too: what was hidden is told by what signed verification files name.
      Action: ['s3:GetObject', 's3:GetObjectVersion'],
      // Whose repository it is, which keys sign, how fresh others are: `.json` and signatures.
      Resource: objects(scope, [...TOP_FILES, 'machines/*.json*', ...bundles]),
    },
    {
      Sid: 'ListOwn',
      Effect: 'Allow',
      Action: LISTING,
      Resource: [bucketArn(scope)],
      Condition: {
        StringLike: { 's3:prefix': [own, ...TOP_FILES].map((key) => `${prefix}${key}`) },
      },
    },
    {
      Sid: 'ListMachines',
      Effect: 'Allow',
      Action: ['s3:ListBucket'],
      Resource: [bucketArn(scope)],
      Condition: {
        StringEquals: { 's3:delimiter': '/' },
        StringLike: {
          's3:prefix': [prefix, `${prefix}machines/`, `${prefix}machines/*/freshness/`],
        },
      },
    },
    { Sid: 'Look', Effect: 'Allow', Action: LOOKING, Resource: [bucketArn(scope)] },
    ...(isAmazon ? [accountStatement()] : []),
    ...(lockMs === undefined ? [] : [lockStatement(scope, { lockMs, own })]),
  ]
}

/** Locks can be made and lengthened, to no more than exports lock, and not bypassed. */
function lockStatement(
  scope: PolicyScope,
  { lockMs, own }: { readonly lockMs: number; readonly own: string },
): Statement {
  const longest = {
    StringEquals: { 's3:object-lock-mode': 'GOVERNANCE' },
    // A day more, for clocks and rounding.
    NumericLessThanEquals: {
      's3:object-lock-remaining-retention-days': String(
        Math.ceil((lockMs + lockSlackMs(lockMs)) / DAY_MS) + 1,
      ),
    },
  }
  return {
    Sid: 'Lock',
    Effect: 'Allow',
    Action: ['s3:PutObjectRetention'],
    Resource: objects(scope, [own, ...TOP_FILES]),
    ...(scope.isAmazon ? { Condition: longest } : {}),
  }
}

function admin(scope: PolicyScope): Statement[] {
  const locks =
    scope.lockMs === undefined
      ? []
      : ['s3:BypassGovernanceRetention', 's3:GetObjectRetention', 's3:PutObjectRetention']
  const actions = [
    's3:AbortMultipartUpload',
    's3:DeleteObject',
    's3:DeleteObjectVersion',
    's3:GetObject',
    's3:GetObjectVersion',
    's3:ListMultipartUploadParts',
    's3:PutObject',
    's3:RestoreObject',
    ...locks,
  ]
  return [
    { Sid: 'Keys', Effect: 'Allow', Action: actions, Resource: objects(scope, ['*']) },
    { Sid: 'List', Effect: 'Allow', Action: LISTING, Resource: [bucketArn(scope)] },
    { Sid: 'Look', Effect: 'Allow', Action: LOOKING, Resource: [bucketArn(scope)] },
    ...(scope.isAmazon ? [accountStatement()] : []),
  ]
}

function bucket(scope: PolicyScope): Statement[] {
  const everything = [bucketArn(scope), `${bucketArn(scope)}/*`]
  const users = {
    ArnLike: { 'aws:PrincipalArn': `arn:${partition(scope)}:iam::*:user${BACKUP_USERS}*` },
  }
  const deny = { Effect: 'Deny', Principal: '*' } as const
  return [
    {
      Sid: 'OnlyEncrypted',
      ...deny,
      Action: ['s3:*'],
      Resource: everything,
      Condition: { Bool: { 'aws:SecureTransport': 'false' } },
    },
    {
      Sid: 'BackupsNeverOverwrite',
      ...deny,
      Action: ['s3:PutObject'],
      Resource: objects(scope, ['*']),
      Condition: { ...users, ...OVERWRITING },
    },
    {
      Sid: 'BackupsNeverSayPruned',
      ...deny,
      Action: ['s3:PutObject'],
      Resource: objects(scope, ['machines/*/pruned/*']),
      Condition: users,
    },
    {
      Sid: 'BackupsNeverDelete',
      ...deny,
      Action: CHANGING,
      Resource: everything,
      Condition: users,
    },
  ]
}

function accountStatement(): Statement {
  return {
    Sid: 'LookAtAccount',
    Effect: 'Allow',
    Action: ['s3:GetAccountPublicAccessBlock'],
    Resource: ['*'],
  }
}

function objects(scope: PolicyScope, keys: readonly string[]): string[] {
  return keys.map((key) => `${bucketArn(scope)}/${keyPrefix(scope.path)}${key}`)
}

function bucketArn(scope: PolicyScope): string {
  return `arn:${partition(scope)}:s3:::${scope.bucket}`
}

/** China and the government's regions are worlds of their own. */
function partition({ region }: PolicyScope): string {
  if (region?.startsWith('cn-') === true) return 'aws-cn'
  return region?.startsWith('us-gov-') === true ? 'aws-us-gov' : 'aws'
}
