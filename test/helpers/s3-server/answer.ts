// What the stand-in S3 server answers: a status, headers, a body; and the refusals, which are
// thrown as S3Failure wherever they are met and become the XML that Amazon documents for errors.
//
// Called by every operation of the server and by s3-server.ts, which sends it.

import { Buffer } from 'node:buffer'
import { xmlDocument } from './xml.ts'
import type { Xml } from './xml.ts'

export interface Answer {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: Buffer
}

/** What more a refusal tells: headers, and elements beside Code and Message. */
export interface FailureDetails {
  readonly headers?: Readonly<Record<string, string>>
  readonly elements?: Readonly<Record<string, string>>
}

/** A refusal, by the status and the code that Amazon documents. */
export class S3Failure extends Error {
  readonly status: number
  readonly code: string
  readonly details: FailureDetails

  constructor(of: { status: number; code: string; message?: string } & FailureDetails) {
    super(of.message ?? of.code)
    this.status = of.status
    this.code = of.code
    this.details = of
  }
}

/** The short way to say `throw new S3Failure(…)`. */
export function refuse(status: number, code: string, message = code): never {
  throw new S3Failure({ status, code, message })
}

export function answer(
  status: number,
  headers: Readonly<Record<string, string | undefined>> = {},
  body: Buffer = Buffer.alloc(0),
): Answer {
  const given = Object.entries(headers).filter((pair): pair is [string, string] => {
    return pair[1] !== undefined
  })
  return { status, headers: Object.fromEntries(given), body }
}

/** 200 with one XML element. */
export function answerXml(
  name: string,
  content: Xml,
  headers: Readonly<Record<string, string | undefined>> = {},
): Answer {
  const body = Buffer.from(xmlDocument(name, content))
  return answer(200, { 'content-type': 'application/xml', ...headers }, body)
}

/** The answer that a refusal becomes. */
export function failureAnswer(failure: S3Failure, resource: string): Answer {
  const content = {
    Code: failure.code,
    Message: failure.message,
    ...failure.details.elements,
    Resource: resource,
    RequestId: 'stand-in',
  }
  const body = Buffer.from(xmlDocument('Error', content))
  const headers = { 'content-type': 'application/xml', ...failure.details.headers }
  return answer(failure.status, headers, body)
}
