// What a failed call of an S3 service means to its user, and whether to try it again.
//
// One place for all calls of s3-client.ts. Knows no SDK: it reads the name, the status and the
// headers that every error of it carries. The service's own text is not passed on, for it may hold
// parts of what was signed; its code is, as facts.s3. Returns the error to throw, throws nothing.

import { BackupError, type ErrorCode, type ErrorDetails, systemCode } from '../errors.ts'

/** Of one call. */
export interface S3Circumstances {
  /** The right that it needs, as in a policy: `s3:PutObject`. */
  readonly action: string
  readonly bucket: string
  readonly key?: string | undefined
  readonly endpoint: string | undefined
  readonly region: string | undefined
  readonly profile: string | undefined
  readonly nowMs: number
}

/** A body that ended before its length did. Tried again like a reset connection. */
export class TruncatedBody extends Error {
  constructor(of: { readonly expected: number; readonly received: number }) {
    super(`the answer ended after ${of.received} of ${of.expected} bytes`)
    this.name = 'TruncatedBody'
  }
}

const UNHARMED = 'earlier exports are unharmed'

/** Amazon refuses requests that are further off than this. */
const ALLOWED_SKEW_MS = 15 * 60_000

const CONNECTION_CODES = new Set([
  ...['ECONNRESET', 'ECONNREFUSED', 'ECONNABORTED', 'EPIPE', 'ETIMEDOUT', 'EHOSTUNREACH'],
  ...['ENETUNREACH', 'ENETDOWN', 'EHOSTDOWN', 'ENOTFOUND', 'EAI_AGAIN', 'EAI_FAIL', 'EAI_NODATA'],
  ...['ERR_SOCKET_CONNECTION_TIMEOUT', 'ERR_STREAM_PREMATURE_CLOSE', 'UND_ERR_SOCKET', 'EPROTO'],
])

const THROTTLING_CODES = new Set([
  ...['SlowDown', 'SlowDownRead', 'SlowDownWrite', 'Throttling', 'ThrottlingException'],
  ...['ThrottledException', 'RequestThrottled', 'RequestThrottledException', 'TooManyRequests'],
  ...['TooManyRequestsException', 'RequestLimitExceeded', 'BandwidthLimitExceeded'],
])

/** Refusals with a status of 4xx that are a matter of the moment. */
const PASSING_CODES = new Set([
  ...['RequestTimeout', 'RequestTimeoutException', 'OperationAborted', 'IncompleteBody'],
  ...['ConditionalRequestConflict', 'PriorRequestNotComplete'],
])

const FULL_CODES = new Set([
  ...['QuotaExceeded', 'StorageFull', 'XMinioStorageFull', 'InsufficientStorage', 'NoSpace'],
  ...['XMinioAdminBucketQuotaExceeded', 'StorageQuotaExceeded'],
])

const EXPIRED_CODES = new Set(['ExpiredToken', 'ExpiredTokenException', 'TokenRefreshRequired'])

/** What the chain of credential providers of the SDK throws. */
const CHAIN_NAMES = new Set(['CredentialsProviderError', 'TokenProviderError', 'ProviderError'])

const SKEW_CODES = new Set(['RequestTimeTooSkewed', 'RequestInTheFuture', 'RequestExpired'])

const REGION_CODES = new Set([
  ...['PermanentRedirect', 'TemporaryRedirect', 'AuthorizationHeaderMalformed'],
  ...['IllegalLocationConstraintException', 'IncorrectEndpoint'],
])

const DIGEST_CODES = new Set(['BadDigest', 'InvalidDigest', 'XAmzContentSHA256Mismatch'])

/** What an answer without a body (to a HEAD) says by its status alone. */
const BY_STATUS: Readonly<Record<number, string>> = {
  301: 'PermanentRedirect',
  307: 'TemporaryRedirect',
  400: 'BadRequest',
  403: 'AccessDenied',
  404: 'NotFound',
  405: 'MethodNotAllowed',
  409: 'Conflict',
  412: 'PreconditionFailed',
  416: 'InvalidRange',
  429: 'TooManyRequests',
  500: 'InternalError',
  501: 'NotImplemented',
  503: 'ServiceUnavailable',
  507: 'InsufficientStorage',
}

/** What can be read off an error of the SDK. */
interface Trouble {
  readonly code: string
  readonly status: number | undefined
  readonly headers: Readonly<Record<string, string>>
  readonly text: string
  /** The bucket's, where a refusal names it. */
  readonly rightRegion: string | undefined
}

/** Whether the same call may well succeed in a moment. */
export function isWorthRetrying(error: unknown): boolean {
  if (error instanceof TruncatedBody || isConnectionTrouble(error)) return true
  const { code, status } = read(error)
  if (THROTTLING_CODES.has(code) || PASSING_CODES.has(code) || status === 429) return true
  if (status === undefined) return false
  // An answer that cannot be read: what was sent was cut short, or is a proxy's page.
  if (status < 300) return true
  return status >= 500 && status !== 501 && status !== 507 && !FULL_CODES.has(code)
}

/** Whether the service was not reached, or went away in the middle. */
export function isConnectionTrouble(error: unknown): boolean {
  if (!(error instanceof Error)) return false
  if (error.name === 'TimeoutError' || error.message === 'aborted') return true
  const code = systemCode(error)
  if (code !== undefined && (CONNECTION_CODES.has(code) || isCertificateCode(code))) return true
  if (error instanceof AggregateError) return error.errors.some(isConnectionTrouble)
  return read(error).status === undefined && error.message === 'socket hang up'
}

/** A BackupError for a failed call; a bug of ours comes back as it is. */
export function s3Error(error: unknown, of: S3Circumstances): Error {
  if (error instanceof BackupError) return error
  const trouble = read(error)
  const [code, message, details] = meaning(error, { ...of, ...trouble })
  if (code === undefined) return error instanceof Error ? error : new Error(String(error))
  const { action, bucket, key } = of
  const { status } = trouble
  const facts = { s3: trouble.code, status, action, bucket, ...(key === undefined ? {} : { key }) }
  return new BackupError(code, message, { ...details, facts: { ...facts, ...details.facts } })
}

type Meaning = readonly [ErrorCode | undefined, string, ErrorDetails]

function meaning(error: unknown, of: S3Circumstances & Trouble): Meaning {
  const { code, status, bucket, key, text } = of
  const what = key === undefined ? `s3://${bucket}` : `s3://${bucket}/${key}`
  if (isConnectionTrouble(error)) return connectionMeaning(error, of)
  if (error instanceof TruncatedBody) {
    return ['TARGET_FAILED', `answers of ${what} are cut short: ${error.message}`, LATER]
  }
  if (SKEW_CODES.has(code) || isSkewed(of)) return skewMeaning(of)
  if (REGION_CODES.has(code)) return regionMeaning(of)
  if (/Region is missing/.test(text)) {
    return [
      'CONFIG_INVALID',
      `bucket ${bucket}: no region is known`,
      { hint: 'write `region:` into the target or the profile in ~/.aws/config (init: --region)' },
    ]
  }
  const denied = credentialsMeaning(of)
  if (denied !== undefined) return denied
  if (FULL_CODES.has(code) || status === 507 || /cap exceeded|quota/i.test(text)) {
    return [
      'TARGET_FULL',
      `bucket ${bucket} takes no more (${code})`,
      { hint: `raise the quota or the plan, or lower retention.external; ${UNHARMED}` },
    ]
  }
  if (code === 'NoSuchBucket') {
    return [
      'TARGET_ABSENT',
      `there is no bucket ${bucket}`,
      {
        hint: 'make it, or correct bucket, region and endpoint of the target; nothing was written',
      },
    ]
  }
  if (code === 'InvalidObjectState') {
    return [
      'COLD_STORAGE',
      `${what} is in cold storage`,
      { hint: 'it has to be thawed before it can be read: backup restore shows price and hours' },
    ]
  }
  if (THROTTLING_CODES.has(code) || status === 429) {
    return [
      'TARGET_FAILED',
      `the service keeps slowing us down (${code}): ${what}`,
      { hint: `lower streams of the target, or try again later; ${UNHARMED}`, retry: 'later' },
    ]
  }
  if (DIGEST_CODES.has(code)) {
    return [
      'TARGET_FAILED',
      `other bytes arrived than were sent (${code}): ${what}`,
      {
        hint: `run it again; if it stays, suspect memory or network of this machine; ${UNHARMED}`,
        retry: 'later',
      },
    ]
  }
  if (status === undefined) return [undefined, '', {}]
  const hint = `see what the service's status page says, and try again; ${UNHARMED}`
  if (status >= 500 && status !== 501) {
    return [
      'TARGET_FAILED',
      `the service fails (${code}, ${status}): ${what}`,
      { hint, retry: 'later' },
    ]
  }
  if (status < 300) {
    return [
      'TARGET_FAILED',
      `an answer of the service cannot be read: ${what}`,
      {
        hint: 'check that endpoint is that of an S3 service, and that no proxy answers for it',
        retry: 'later',
      },
    ]
  }
  return [
    'TARGET_FAILED',
    `${of.action} was refused (${code}, ${status}): ${what}`,
    { hint: `backup doctor --target shows what the bucket can do; ${UNHARMED}` },
  ]
}

const LATER: ErrorDetails = {
  hint: `check the network, and try again later; ${UNHARMED}`,
  retry: 'later',
}

function connectionMeaning(error: unknown, { bucket, endpoint }: S3Circumstances): Meaning {
  const code = deepSystemCode(error) ?? 'timeout'
  const at = endpoint ?? 'the S3 service'
  const facts = { system: code }
  if (isCertificateCode(code)) {
    return [
      'TARGET_ABSENT',
      `bucket ${bucket}: the certificate of ${at} is wrong (${code})`,
      {
        hint: `check endpoint and clock; for an authority of your own set NODE_EXTRA_CA_CERTS`,
        ...{ facts, retry: 'later' },
      },
    ]
  }
  const isName = code === 'ENOTFOUND' || code.startsWith('EAI_')
  const what = isName ? `the name of ${at} is not known` : `${at} does not answer`
  return [
    'TARGET_ABSENT',
    `bucket ${bucket}: ${what} (${code})`,
    {
      hint: `check network and endpoint; what was sent is kept, the next run goes on; ${UNHARMED}`,
      ...{ facts, retry: 'later' },
    },
  ]
}

function skewMeaning({ bucket, headers, nowMs }: S3Circumstances & Trouble): Meaning {
  const skewMs = skewOf(headers, nowMs)
  const off =
    skewMs === undefined
      ? 'is too far off'
      : `is ${Math.round(Math.abs(skewMs) / 60_000)} minutes ${skewMs > 0 ? 'fast' : 'slow'}`
  return [
    'TARGET_DENIED',
    `bucket ${bucket}: the clock of this machine ${off}`,
    {
      hint: 'set it right (timedatectl set-ntp true) and run again; nothing was written',
      facts: { s3: 'RequestTimeTooSkewed', ...(skewMs === undefined ? {} : { skewMs }) },
      retry: 'later',
    },
  ]
}

function regionMeaning({ bucket, region, rightRegion }: S3Circumstances & Trouble): Meaning {
  const asked = region === undefined ? 'the one that was asked' : region
  if (rightRegion === undefined || rightRegion === region) {
    return [
      'TARGET_FAILED',
      `bucket ${bucket} is in another region than ${asked}`,
      { hint: 'correct region and endpoint of the target; nothing was written' },
    ]
  }
  return [
    'TARGET_FAILED',
    `bucket ${bucket} is in region ${rightRegion}, not ${asked}`,
    {
      hint: `write \`region: ${rightRegion}\` into the target (init: --region); nothing written`,
      facts: { region: rightRegion },
    },
  ]
}

/** Undefined where it is about something else. */
function credentialsMeaning(of: S3Circumstances & Trouble): Meaning | undefined {
  const { code, status, bucket, key, action, profile, text } = of
  const whose = profile === undefined ? 'the credentials' : `profile ${profile}`
  const login =
    profile === undefined ? 'get new ones' : `log in again: aws sso login --profile ${profile}`
  const isSession = /expired|sso/i.test(text)
  if (EXPIRED_CODES.has(code) || (CHAIN_NAMES.has(code) && isSession)) {
    return [
      'TARGET_DENIED',
      `bucket ${bucket}: ${whose} expired`,
      { hint: `${login}; nothing was written` },
    ]
  }
  if (CHAIN_NAMES.has(code) || code === 'MissingSecurityHeader') {
    return [
      'TARGET_DENIED',
      `bucket ${bucket}: no credentials were found for it`,
      {
        hint:
          profile === undefined
            ? 'name a profile of ~/.aws/credentials in the target; nothing was written'
            : `add [${profile}] to ~/.aws/credentials of this user; nothing was written`,
      },
    ]
  }
  if (code === 'InvalidAccessKeyId' || code === 'InvalidToken' || code === 'InvalidClientTokenId') {
    return [
      'TARGET_DENIED',
      `bucket ${bucket}: the service does not know the key of ${whose}`,
      { hint: 'check that key and endpoint belong together, and that it was not deleted' },
    ]
  }
  if (code === 'SignatureDoesNotMatch') {
    return [
      'TARGET_DENIED',
      `bucket ${bucket}: the secret of ${whose} is wrong`,
      { hint: 'enter key id and secret again, without spaces; nothing was written' },
    ]
  }
  if (status !== 403 && status !== 401) return undefined
  if (code === 'InvalidObjectState' || FULL_CODES.has(code)) return undefined
  if (/cap exceeded|quota/i.test(text)) return undefined
  const on = key === undefined ? `arn:aws:s3:::${bucket}` : `arn:aws:s3:::${bucket}/${key}`
  if (action === 's3:DeleteObjectVersion' && /object lock/i.test(text)) {
    return [
      'TARGET_DENIED',
      `${key ?? 'an object'} in bucket ${bucket} is locked and cannot be removed yet`,
      { hint: `object lock holds it; try again once the lock is over; ${UNHARMED}` },
    ]
  }
  return [
    'TARGET_DENIED',
    `${whose} may not do ${action} in bucket ${bucket}`,
    { hint: `allow ${action} on ${on}, or find what denies it; ${UNHARMED}` },
  ]
}

/** How much our clock is fast; undefined where the answer has no date. */
function skewOf(headers: Trouble['headers'], nowMs: number): number | undefined {
  const serverMs = Date.parse(headers['date'] ?? '')
  return Number.isNaN(serverMs) ? undefined : nowMs - serverMs
}

/** An answer to a HEAD has no body to say so. */
function isSkewed({ status, headers, nowMs }: S3Circumstances & Trouble): boolean {
  const skewMs = skewOf(headers, nowMs) ?? 0
  return status === 403 && Math.abs(skewMs) > ALLOWED_SKEW_MS
}

function read(error: unknown): Trouble {
  const all = asRecord(error)
  const response = asRecord(all['$response'])
  const metadata = asRecord(all['$metadata'])
  const status = asNumber(metadata['httpStatusCode']) ?? asNumber(response['statusCode'])
  const headers: Record<string, string> = {}
  for (const [name, value] of Object.entries(asRecord(response['headers']))) {
    headers[name.toLowerCase()] = String(value)
  }
  const text = error instanceof Error ? error.message : ''
  const named = asText(all['Code']) ?? asText(all['name']) ?? 'Unknown'
  // Without a body the SDK makes a name up, or takes the status for one.
  const isMadeUp = /^(\d+|Error|Unknown|UnknownError|SyntaxError|BadRequest|Forbidden)$/.test(named)
  const code = (isMadeUp && status !== undefined ? BY_STATUS[status] : undefined) ?? named
  const rightRegion =
    headers['x-amz-bucket-region']
    ?? asText(all['Region'])
    ?? /expecting '([a-z0-9-]+)'/.exec(text)?.[1]
  return { code, status, headers, text, rightRegion }
}

/** The first code of a system error among an error, its parts and its causes. */
function deepSystemCode(error: unknown, depth = 0): string | undefined {
  if (!(error instanceof Error) || depth > 4) return undefined
  const parts = error instanceof AggregateError ? error.errors : []
  for (const part of parts) {
    const code = deepSystemCode(part, depth + 1)
    if (code !== undefined) return code
  }
  return systemCode(error) ?? deepSystemCode(error.cause, depth + 1)
}

function isCertificateCode(code: string): boolean {
  return /CERT|ERR_TLS|ERR_SSL|UNABLE_TO_VERIFY|SELF_SIGNED/.test(code)
}

function asRecord(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {}
}

function asText(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined
}

function asNumber(value: unknown): number | undefined {
  return typeof value === 'number' ? value : undefined
}
