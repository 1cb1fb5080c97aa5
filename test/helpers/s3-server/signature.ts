// Signature Version 4 in the Authorization header, verified as S3 does it: the canonical request is
// made again from what arrived, and signed again with the secret that the server knows.
//
// Throws S3Failure: InvalidAccessKeyId, SignatureDoesNotMatch, RequestTimeTooSkewed, AccessDenied
// for a request without a signature. The body is compared with what was signed in checkPayload.

import type { Buffer } from 'node:buffer'
import { createHash, createHmac } from 'node:crypto'
import type { IncomingHttpHeaders } from 'node:http'
import { S3Failure, refuse } from './answer.ts'

export interface SignedRequest {
  readonly method: string
  /** As sent, with the query. */
  readonly url: string
  readonly headers: IncomingHttpHeaders
}

/** Amazon refuses requests whose time is further off than this. */
const MAX_SKEW_MS = 15 * 60_000

/** The access key, and the region that the client signed for. */
export function verifySignature(
  request: SignedRequest,
  secretOf: (accessKey: string) => string | undefined,
): { accessKey: string; region: string } {
  const { headers } = request
  const pattern =
    /^AWS4-HMAC-SHA256 Credential=([^/]+)\/(\d{8})\/([^/]+)\/([^/]+)\/aws4_request, ?SignedHeaders=([^,]+), ?Signature=([0-9a-f]{64})$/
  const match = pattern.exec(headers.authorization ?? '')
  if (match === null) return refuse(403, 'AccessDenied', 'Access Denied')
  const [, accessKey, day, region, service, names, signature] = match as unknown as string[]
  const secret = secretOf(accessKey!)
  if (secret === undefined) {
    const message = 'The AWS Access Key Id you provided does not exist in our records.'
    return refuse(403, 'InvalidAccessKeyId', message)
  }
  const time = String(headers['x-amz-date'] ?? '')
  // The wall clock and not the server's: advance() is about objects, not about clients.
  if (!(Math.abs(timeMs(time) - Date.now()) <= MAX_SKEW_MS)) throw skewed()
  const scope = `${day}/${region}/${service}/aws4_request`
  const canonical = digest(canonicalRequest(request, names!.split(';')))
  const text = ['AWS4-HMAC-SHA256', time, scope, canonical].join('\n')
  const key = [day!, region!, service!, 'aws4_request'].reduce<string | Buffer>(
    (previous, part) => createHmac('sha256', previous).update(part).digest(),
    `AWS4${secret}`,
  )
  if (createHmac('sha256', key).update(text).digest('hex') !== signature) {
    const message =
      'The request signature we calculated does not match the signature you provided.'
      + ' Check your key and signing method.'
    return refuse(403, 'SignatureDoesNotMatch', message)
  }
  return { accessKey: accessKey!, region: region! }
}

/** Compares the body with the digest that was signed. */
export function checkPayload(headers: IncomingHttpHeaders, body: Buffer): void {
  const signed = headers['x-amz-content-sha256']
  if (signed === undefined) {
    refuse(400, 'InvalidRequest', 'Missing required header for this request: x-amz-content-sha256')
  }
  if (signed === 'UNSIGNED-PAYLOAD') return
  if (createHash('sha256').update(body).digest('hex') !== signed) {
    const message = "The provided 'x-amz-content-sha256' header does not match what was computed."
    refuse(400, 'XAmzContentSHA256Mismatch', message)
  }
}

export function skewed(): S3Failure {
  const message = 'The difference between the request time and the current time is too large.'
  const elements = {
    ServerTime: new Date().toISOString(),
    MaxAllowedSkewMilliseconds: String(MAX_SKEW_MS),
  }
  return new S3Failure({ status: 403, code: 'RequestTimeTooSkewed', message, elements })
}

function canonicalRequest(request: SignedRequest, names: readonly string[]): string {
  const [path = '', query = ''] = splitOnce(request.url, '?')
  const parameters = query
    .split('&')
    .filter((pair) => pair !== '')
    .map((pair) => {
      const [name = '', value = ''] = splitOnce(pair, '=')
      return `${encoded(decodeURIComponent(name))}=${encoded(decodeURIComponent(value))}`
    })
    .sort()
  const headers = names.map((name) => {
    const value = String(request.headers[name] ?? '')
    return `${name}:${value.trim().replace(/ +/g, ' ')}\n`
  })
  return [
    request.method,
    path
      .split('/')
      .map((part) => encoded(decodeURIComponent(part)))
      .join('/'),
    parameters.join('&'),
    headers.join(''),
    names.join(';'),
    String(request.headers['x-amz-content-sha256'] ?? ''),
  ].join('\n')
}

function splitOnce(text: string, separator: string): [string, string] {
  const at = text.indexOf(separator)
  return at === -1 ? [text, ''] : [text.slice(0, at), text.slice(at + 1)]
}

function encoded(text: string): string {
  return encodeURIComponent(text).replace(
    /[!'()*]/g,
    (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`,
  )
}

function digest(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}

/** `20261121T152543Z` */
function timeMs(text: string): number {
  return Date.parse(text.replace(/^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/, '$1-$2-$3T$4:$5:$6Z'))
}
