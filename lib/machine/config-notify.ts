// What the configuration says about telling the person: which ways, what, and how often.
//
// config-meaning.ts calls readNotify. Addresses of webhooks and pings may be secrets: they are
// never quoted in an error. Throws only through the Fail it is given.

import { parseDuration, parseSize } from '../model/amount.ts'
import type { ConfigPath } from './config-errors.ts'
import { expandPath, type Fail, normalizePath, type Surroundings } from './config-expand.ts'

/** How much of a filesystem is, or stays, free. */
export type AmountFree = { readonly bytes: number } | { readonly share: number }

export interface NotifyConfiguration {
  readonly desktop: boolean
  readonly onSuccess: boolean
  readonly onMissing: boolean
  /** How long the same thing is not told again. */
  readonly repeatMs: number
  readonly lowSpace: AmountFree
  readonly log: LogConfiguration | undefined
  readonly syslog: boolean
  readonly mail: MailConfiguration | undefined
  readonly webhook: AddressConfiguration | undefined
  readonly ping: AddressConfiguration | undefined
}

export interface LogConfiguration {
  readonly path: string
  readonly maxBytes: number
  /** How many that were put aside stay. */
  readonly keep: number
}

export interface MailConfiguration {
  readonly to: readonly string[]
  readonly from: string | undefined
  readonly sendmail: string
}

/** The address itself, or the file that holds it: one of the two. */
export type AddressConfiguration = { readonly url: string } | { readonly urlFile: string }

/** What the schema lets through, its defaults filled in. */
export interface RawNotify {
  readonly desktop: boolean
  readonly on_success: boolean
  readonly on_missing: boolean
  readonly repeat: string
  readonly low_space: string
  readonly log?: string
  readonly log_size: string | number
  readonly log_keep: number
  readonly syslog: boolean
  readonly mail?: {
    readonly to: readonly string[]
    readonly from?: string
    readonly sendmail: string
  }
  readonly webhook?: RawAddress
  readonly ping?: RawAddress
}

interface RawAddress {
  readonly url?: string
  readonly url_file?: string
}

const DAY_MS = 86_400_000

/** What `raw` means. */
export function readNotify(
  raw: RawNotify,
  { options, here }: { options: Surroundings; here: (...rest: ConfigPath) => Fail },
): NotifyConfiguration {
  const pathAt = (text: string, ...place: ConfigPath): string => {
    return normalizePath(expandPath(text, options, here(...place)))
  }
  const address = (given: RawAddress | undefined, name: string) => {
    if (given === undefined) return undefined
    const { url, url_file: file } = given
    if (url !== undefined && file === undefined) return { url }
    if (file !== undefined && url === undefined) return { urlFile: pathAt(file, name, 'url_file') }
    return here(name)('expected one of url and url_file')
  }
  const { mail, log } = raw
  const maxBytes = parseSize(raw.log_size) ?? here('log_size')(`no size: ${raw.log_size}`)
  const lowSpace = readAmountFree(raw.low_space, here('low_space'))
  return {
    desktop: raw.desktop,
    onSuccess: raw.on_success,
    onMissing: raw.on_missing,
    repeatMs: parseDuration(raw.repeat) ?? DAY_MS,
    lowSpace: lowSpace ?? { bytes: 0 },
    log: log === undefined ? undefined : { path: pathAt(log, 'log'), maxBytes, keep: raw.log_keep },
    syslog: raw.syslog,
    mail:
      mail === undefined
        ? undefined
        : { to: mail.to, from: mail.from, sendmail: pathAt(mail.sendmail, 'mail', 'sendmail') },
    webhook: address(raw.webhook, 'webhook'),
    ping: address(raw.ping, 'ping'),
  }
}

/** A size, or a share such as `5%`. */
export function readAmountFree(text: string | undefined, fail: Fail): AmountFree | undefined {
  if (text === undefined) return undefined
  if (text.endsWith('%')) return { share: Number(text.slice(0, -1)) / 100 }
  const bytes = parseSize(text)
  return bytes === undefined ? fail(`no size: ${text}`) : { bytes }
}
