// A webhook that gets what is told as JSON, and the pings of a monitor such as healthchecks.
//
// lib/work/announce.ts calls both. The address is a secret, as whoever knows it can speak for us:
// no error, log or notice quotes it, and no redirect is followed, which would hand what is told to
// somebody else or in the clear. Throws CONFIG_INVALID for an address that cannot be used,
// PROGRAM_FAILED for an answer that is no, PROGRAM_TIMEOUT and INTERRUPTED.

import { Buffer } from 'node:buffer'
import { readFileSync, statSync } from 'node:fs'
import { BackupError, systemCode } from '../../errors.ts'
import type { Announcement } from '../../model/announcement.ts'
import { displayText } from '../../model/raw-path.ts'
import type { Report } from '../../model/report.ts'
import type { AddressConfiguration } from '../config.ts'

export type PingPhase = 'start' | 'success' | 'fail'

interface WebCall {
  readonly address: AddressConfiguration
  readonly timeoutMs: number
  readonly signal?: AbortSignal | undefined
  /** Gets a warning ADDRESS_OPEN where others can read the file with the address. */
  readonly report: Report
}

/** No address is as long. */
const MAX_ADDRESS_BYTES = 8192

/** What monitors keep of a body. */
const MAX_PING_BYTES = 10_000

/** Posts the announcement. @throws BackupError as the header says */
export async function postToWebhook(
  call: WebCall & {
    readonly announcement: Announcement
    readonly machine: string
    readonly nowMs: number
  },
): Promise<void> {
  const { machine, nowMs } = call
  const { kind, subject, title, body, facts } = call.announcement
  const time = new Date(nowMs).toISOString()
  await request(call, {
    name: 'webhook',
    url: readAddress(call, 'webhook'),
    type: 'application/json',
    body: JSON.stringify({ machine, kind, subject, title, body, facts, time }),
  })
}

/**
 * Tells the monitor that a run begins, or how it ended; `text` is what it shows, cut to what
 * monitors keep.
 * @throws BackupError as the header says
 */
export async function sendPing(
  call: WebCall & { readonly phase: PingPhase; readonly text: string },
): Promise<void> {
  const url = readAddress(call, 'ping')
  if (call.phase !== 'success') url.pathname = `${url.pathname.replace(/\/+$/, '')}/${call.phase}`
  const bytes = Buffer.from(call.text)
  const body = bytes.toString('utf8', 0, MAX_PING_BYTES).replace(/\ufffd+$/, '')
  await request(call, { name: 'ping', url, type: 'text/plain; charset=utf-8', body })
}

interface WebRequest {
  readonly name: 'webhook' | 'ping'
  readonly url: URL
  readonly type: string
  readonly body: string
}

async function request(call: WebCall, { name, url, type, body }: WebRequest): Promise<void> {
  const { timeoutMs, signal } = call
  const headers = { 'content-type': type, 'user-agent': 'backup', ...credentials(url, name) }
  const limit = AbortSignal.timeout(timeoutMs)
  let response: Response
  try {
    response = await fetch(url, {
      method: 'POST',
      headers,
      body,
      redirect: 'manual',
      signal: signal === undefined ? limit : AbortSignal.any([limit, signal]),
    })
  } catch (error) {
    if (signal?.aborted === true) throw new BackupError('INTERRUPTED', 'interrupted')
    throw limit.aborted ? tookTooLong(name, timeoutMs) : unreachable(name, error)
  }
  // What it says does not matter; unread, it would keep the connection.
  await response.body?.cancel().catch(() => {})
  if (response.ok) return
  const { status } = response
  const isRedirect = status >= 300 && status < 400
  const moved = 'it redirects: write the address that it redirects to'
  throw new BackupError('PROGRAM_FAILED', `the ${name} answered ${status}`, {
    hint: isRedirect ? moved : `check the address of notify.${name}, and the service behind it`,
    facts: { status },
    retry: 'later',
  })
}

/** fetch refuses addresses with a name and password in them, and would quote them. */
function credentials(url: URL, name: string): Readonly<Record<string, string>> {
  if (url.username === '' && url.password === '') return {}
  try {
    const pair = `${decodeURIComponent(url.username)}:${decodeURIComponent(url.password)}`
    url.username = ''
    url.password = ''
    return { authorization: `Basic ${Buffer.from(pair).toString('base64')}` }
  } catch {
    throw wrongAddress(name, 'has a user or password that is not well-formed')
  }
}

/** The address, from the configuration or the first line of its file. */
function readAddress({ address, report }: WebCall, name: 'webhook' | 'ping'): URL {
  const text = 'url' in address ? address.url : readAddressFile(address.urlFile, { name, report })
  let url: URL
  try {
    url = new URL(text)
  } catch {
    // Its message and cause hold the address.
    throw wrongAddress(name, 'is none')
  }
  if (['https:', 'http:'].includes(url.protocol)) return url
  throw wrongAddress(name, 'is neither https nor http')
}

function readAddressFile(
  path: string,
  { name, report }: { readonly name: string; readonly report: Report },
): string {
  const shown = `"${displayText(path)}"`
  try {
    const { mode, size } = statSync(path)
    if (size > MAX_ADDRESS_BYTES) throw wrongAddress(name, `in ${shown} is longer than 8 KiB`)
    if ((mode & 0o004) !== 0) {
      const message = `everyone can read ${shown}, the address of the ${name}: chmod it to 600`
      report({ kind: 'notice', level: 'warning', code: 'ADDRESS_OPEN', message })
    }
    const [line = ''] = readFileSync(path, 'utf8').split('\n')
    return line.trim()
  } catch (error) {
    const code = systemCode(error)
    if (error instanceof BackupError && error.code === 'CONFIG_INVALID') throw error
    if (code === undefined) throw error
    throw wrongAddress(name, `in ${shown} cannot be read (${code})`)
  }
}

function wrongAddress(name: string, what: string): BackupError {
  return new BackupError('CONFIG_INVALID', `the address of the ${name} ${what}`, {
    hint: `correct notify.${name}: url, or a url_file with the address in its first line`,
  })
}

function tookTooLong(name: string, timeoutMs: number): BackupError {
  const message = `the ${name} did not answer within ${Math.round(timeoutMs / 1000)} seconds`
  return new BackupError('PROGRAM_TIMEOUT', message, {
    hint: 'check the network, and the service behind it',
    retry: 'later',
  })
}

/**
 * Only the code: messages of the network hold names and addresses. No cause, for the same reason.
 */
function unreachable(name: string, error: unknown): BackupError {
  const cause = error instanceof Error ? error.cause : undefined
  const code = systemCode(cause) ?? 'no connection'
  return new BackupError('PROGRAM_FAILED', `the ${name} could not be reached (${code})`, {
    hint: 'check the network, and the service behind it',
    retry: 'later',
  })
}
