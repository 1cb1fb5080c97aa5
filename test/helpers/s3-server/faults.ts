// What goes wrong on purpose: the rules of S3Server.fault, which of them meets a request, and what
// it does to the request or to the answer. s3-server.ts asks before it reads a body; it breaks the
// connections itself, errors and flipped bits are made here.

import { Buffer } from 'node:buffer'
import { S3Failure } from './answer.ts'
import type { Answer } from './answer.ts'
import { skewed } from './signature.ts'

/** Which requests, and which of those. */
export interface FaultMatch {
  /** The API's name, such as `PutObject`. */
  readonly action?: string | RegExp
  readonly key?: RegExp
  /** How many that match go well first. */
  readonly after?: number
  /** How many then go wrong; all where nothing is said. */
  readonly times?: number
}

export type FaultKind =
  /** Answered with this error and nothing done; status 200 is an error in a good answer's place. */
  | { readonly kind: 'error'; readonly status: number; readonly code: string }
  /** 503 SlowDown. */
  | { readonly kind: 'slowdown' }
  /** The connection goes before anything is read or done. */
  | { readonly kind: 'reset' }
  /** All is done, and the answer is lost. */
  | { readonly kind: 'reset-after' }
  /** Half of the answer's body, then the connection goes. */
  | { readonly kind: 'truncate' }
  /** One bit of what is uploaded changes on its way, or of the answer where nothing is. */
  | { readonly kind: 'corrupt' }
  /** The answer comes later. */
  | { readonly kind: 'slow'; readonly ms: number }
  /** No answer until the server is closed. */
  | { readonly kind: 'stall' }
  /** RequestTimeTooSkewed. */
  | { readonly kind: 'skew' }
  /** ExpiredToken. */
  | { readonly kind: 'expired' }
  /** 301 PermanentRedirect, with the region where the bucket is said to be. */
  | { readonly kind: 'wrong-region'; readonly region?: string }

export type FaultRule = FaultMatch & FaultKind

export interface ActiveFault {
  readonly rule: FaultRule
  seen: number
}

/** The first rule that meets this request; counts for all that match. */
export function faultFor(
  faults: Iterable<ActiveFault>,
  request: { readonly action: string; readonly key: string },
): FaultRule | undefined {
  let found: FaultRule | undefined
  for (const fault of faults) {
    const { action, key, after = 0, times = Infinity } = fault.rule
    const isAction =
      action === undefined
      || (typeof action === 'string' ? action === request.action : action.test(request.action))
    if (!isAction || key?.test(request.key) === false || found !== undefined) continue
    const index = fault.seen++
    if (index >= after && index < after + times) found = fault.rule
  }
  return found
}

/** The refusal that some kinds are. */
export function failureOf(rule: FaultRule): S3Failure | undefined {
  switch (rule.kind) {
    case 'error':
      return new S3Failure({ status: rule.status, code: rule.code, message: 'On purpose.' })
    case 'slowdown':
      return new S3Failure({
        status: 503,
        code: 'SlowDown',
        message: 'Please reduce your request rate.',
      })
    case 'skew':
      return skewed()
    case 'expired':
      return new S3Failure({
        status: 400,
        code: 'ExpiredToken',
        message: 'The provided token has expired.',
      })
    case 'wrong-region':
      return new S3Failure({
        status: 301,
        code: 'PermanentRedirect',
        message:
          'The bucket you are attempting to access must be addressed using the specified endpoint. '
          + 'Please send all future requests to this endpoint.',
        headers: { 'x-amz-bucket-region': rule.region ?? 'eu-central-1' },
        elements: { Endpoint: 'bucket.s3.eu-central-1.amazonaws.com', Bucket: 'bucket' },
      })
    default:
      return undefined
  }
}

/** The same bytes but for one bit in the middle; the original is not touched. */
export function flipped(bytes: Buffer): Buffer {
  const copy = Buffer.from(bytes)
  const middle = copy.length >> 1
  if (copy.length > 0) copy[middle] = copy[middle]! ^ 1
  return copy
}

export function flippedAnswer(answer: Answer): Answer {
  return { ...answer, body: flipped(answer.body) }
}
