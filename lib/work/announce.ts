// Telling the person: which announcements are told now, by which channels, and what is remembered.
//
// The commands call announce with what a run has to say, and ping around it. What was told lies in
// `.state/announcements.json`, so that a trouble that lasts is not told at every run; it is a
// cache: lost, things are told again. That a channel fails is a notice NOTIFY_FAILED and is
// remembered for `status`; what reached nobody is told again by the next run. Nothing that the
// world does to a channel or to the memory is thrown.

import { Buffer } from 'node:buffer'
import { existsSync, readFileSync } from 'node:fs'
import { BackupError } from '../errors.ts'
import type { NotifyConfiguration } from '../machine/config.ts'
import { writeDurably } from '../machine/durable-file.ts'
import { showOnDesktop } from '../machine/notify/desktop.ts'
import { sendToJournal } from '../machine/notify/journal.ts'
import { logAnnouncement } from '../machine/notify/log-file.ts'
import { sendMail } from '../machine/notify/mail.ts'
import { type PingPhase, postToWebhook, sendPing } from '../machine/notify/web.ts'
import type { Announcement } from '../model/announcement.ts'
import { rawPathFromText } from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import { stagingError, stateRoot } from './staging.ts'

export interface AnnounceOptions {
  readonly staging: string
  readonly notify: NotifyConfiguration
  readonly announcements: readonly Announcement[]
  readonly nowMs: number
  /** What this machine is called. */
  readonly machine: string
  /** Gets a notice ANNOUNCED for each, for programs, and NOTIFY_FAILED. */
  readonly report: Report
  readonly signal?: AbortSignal | undefined
  /** Ours: it leads to the desktop. */
  readonly environment: Readonly<Record<string, string | undefined>>
  /** How long one announcement may take on one channel; ten seconds when nothing is said. */
  readonly timeoutMs?: number
}

export type ChannelName = 'log' | 'syslog' | 'desktop' | 'mail' | 'webhook' | 'ping'

/** The last failure of a channel that has not worked since. */
export interface NotifierFailure {
  readonly channel: ChannelName
  readonly message: string
  readonly atMs: number
}

/** The end of a run must not wait long for a dead service. */
const CHANNEL_TIMEOUT_MS = 10_000

/** What a success of the same subject puts an end to. */
const TROUBLE = ['failed', 'doubtful', 'missing', 'overdue'] as const

/** Each is news by itself. */
const NEVER_REPEATS: readonly Announcement['kind'][] = ['succeeded', 'safe to unplug']

/**
 * Tells what is due to be told. Records (log, syslog, JSON) get everything,
 * people what the configuration wants and they were not told of late.
 */
export async function announce(options: AnnounceOptions): Promise<void> {
  const { announcements, notify, staging } = options
  const memory = readMemory(staging)
  const told = announcements.reduce(withoutEnded, memory.told)
  const due = { ...options, told }
  // A log tells of every run; only people are spared what they know.
  const forRecords = announcements
  const forPeople = withoutRepeats(due)
    .filter(({ isRecord }) => isRecord !== true)
    .filter((one) => isWanted(one, notify))
  for (const announcement of forRecords) reportAnnounced(options, announcement)

  const channels = openChannels(options)
  const outcomes = await Promise.all(
    channels.map(async (channel) => {
      const due = channel.audience === 'people' ? forPeople : forRecords
      return await sendAll(channel, due, options)
    }),
  )
  const heard = outcomes.filter(({ channel }) => channel.audience === 'people')
  const recent = told.filter((one) => isWithinRepeat(one, options))
  const added = forPeople
    .filter((one) => heard.some(({ delivered }) => delivered.has(one)))
    .filter(({ kind }) => !NEVER_REPEATS.includes(kind))
    .map(({ kind, subject }) => ({ kind, subject, atMs: options.nowMs }))
  let failures: readonly NotifierFailure[] = memory.failures.filter(({ channel }) => {
    // What is configured no more can neither fail nor recover.
    const isPing = channel === 'ping' && notify.ping !== undefined
    return isPing || channels.some(({ name }) => name === channel)
  })
  for (const { channel, failure, hasWorked } of outcomes) {
    failures = withOutcome(failures, { name: channel.name, failure, hasWorked }, options)
  }
  remember(options, { before: memory, after: { told: [...recent, ...added], failures } })
}

/**
 * Tells the monitor behind `notify.ping` that a run begins, or how it ended; nothing happens where
 * none is configured. `text` is what the monitor shows: a summary of the run, never a secret.
 */
export async function ping(
  options: Pick<
    AnnounceOptions,
    'notify' | 'staging' | 'nowMs' | 'report' | 'signal' | 'timeoutMs'
  > & { readonly phase: PingPhase; readonly text: string },
): Promise<void> {
  const { notify, phase, text, report, signal, timeoutMs = CHANNEL_TIMEOUT_MS } = options
  const address = notify.ping
  if (address === undefined) return
  const failure = await failureOf(async () => {
    await sendPing({ address, phase, text, report, signal, timeoutMs })
  })
  if (failure?.code === 'INTERRUPTED') return
  const memory = readMemory(options.staging)
  const outcome = { name: 'ping' as const, failure, hasWorked: true }
  const failures = withOutcome(memory.failures, outcome, options)
  remember(options, { before: memory, after: { ...memory, failures } })
}

/** The channels that failed when they were last used, for `status`. */
export function readNotifierFailures(staging: string): readonly NotifierFailure[] {
  return readMemory(staging).failures
}

type Audience = 'people' | 'records'

interface Channel {
  readonly name: ChannelName
  readonly audience: Audience
  /** @returns whether it reached anyone */
  readonly send: (announcement: Announcement) => Promise<boolean>
}

/** What the configuration has of them. */
function openChannels(options: AnnounceOptions): readonly Channel[] {
  const { notify, nowMs, machine, report, environment } = options
  const { log, mail, webhook } = notify
  const limits = { timeoutMs: options.timeoutMs ?? CHANNEL_TIMEOUT_MS, signal: options.signal }
  const channels: Channel[] = []
  const add = (
    name: ChannelName,
    audience: Audience,
    send: (announcement: Announcement) => Promise<boolean | void> | void,
  ): void => {
    channels.push({ name, audience, send: async (one) => (await send(one)) ?? true })
  }
  if (log !== undefined) {
    add('log', 'records', (announcement) => logAnnouncement({ log, announcement, nowMs }))
  }
  if (notify.syslog) {
    add('syslog', 'records', (announcement) => sendToJournal({ announcement, ...limits }))
  }
  if (notify.desktop) {
    add('desktop', 'people', (announcement) => {
      return showOnDesktop({ announcement, environment, ...limits })
    })
  }
  if (mail !== undefined) {
    add('mail', 'people', (announcement) => {
      return sendMail({ announcement, mail, machine, nowMs, ...limits })
    })
  }
  if (webhook !== undefined) {
    const address = webhook
    add('webhook', 'people', (announcement) => {
      return postToWebhook({ announcement, address, machine, nowMs, report, ...limits })
    })
  }
  return channels
}

interface Outcome {
  readonly channel: Channel
  readonly delivered: ReadonlySet<Announcement>
  readonly failure: BackupError | undefined
  /** Whether it reached anyone, so that an older failure is over. */
  readonly hasWorked: boolean
}

/** One after the other; what takes too long once would take too long again. */
async function sendAll(
  channel: Channel,
  announcements: readonly Announcement[],
  { signal }: AnnounceOptions,
): Promise<Outcome> {
  const delivered = new Set<Announcement>()
  let failure: BackupError | undefined
  for (const announcement of announcements) {
    // The log is ours and takes no time: what was interrupted is in it all the same.
    if (signal?.aborted === true && channel.name !== 'log') break
    const failed = await failureOf(async () => {
      if (await channel.send(announcement)) delivered.add(announcement)
    })
    if (failed?.code === 'INTERRUPTED') break
    failure ??= failed
    if (failed?.code === 'PROGRAM_TIMEOUT') break
  }
  return { channel, delivered, failure, hasWorked: delivered.size > 0 }
}

/** Undefined when it went well. Anything but a failure of the world is ours, and thrown. */
async function failureOf(action: () => Promise<void>): Promise<BackupError | undefined> {
  try {
    await action()
    return undefined
  } catch (error) {
    if (error instanceof BackupError) return error
    throw error
  }
}

function isWanted({ kind }: Announcement, notify: NotifyConfiguration): boolean {
  if (kind === 'succeeded') return notify.onSuccess
  return kind === 'missing' ? notify.onMissing : true
}

/** Each kind about each subject once, and none that people were told of late. */
function withoutRepeats(
  options: AnnounceOptions & { readonly told: readonly Told[] },
): readonly Announcement[] {
  const told = options.told.filter((one) => isWithinRepeat(one, options))
  const seen = new Set(told.map(keyOf))
  return options.announcements.filter((announcement) => {
    if (NEVER_REPEATS.includes(announcement.kind)) return true
    const isNew = !seen.has(keyOf(announcement))
    seen.add(keyOf(announcement))
    return isNew
  })
}

function keyOf({ kind, subject }: { readonly kind: string; readonly subject: string }): string {
  return `${kind} ${subject}`
}

/** A time to come is that of a clock that was wrong. */
function isWithinRepeat({ atMs }: Told, { notify, nowMs }: AnnounceOptions): boolean {
  return atMs <= nowMs && nowMs - atMs < notify.repeatMs
}

/** What stays told after this announcement. */
function withoutEnded(told: readonly Told[], { kind, subject }: Announcement): readonly Told[] {
  if (kind !== 'succeeded') return told
  return told.filter((one) => one.subject !== subject || !TROUBLE.some((kind) => kind === one.kind))
}

function reportAnnounced({ report }: AnnounceOptions, announcement: Announcement): void {
  const { kind, subject, title, body, facts } = announcement
  report({
    kind: 'notice',
    level: 'info',
    code: 'ANNOUNCED',
    message: `${title}: ${body}`,
    facts: { ...facts, kind, subject },
  })
}

/** The failures that are known after a channel was used; a new one is reported. */
function withOutcome(
  known: readonly NotifierFailure[],
  {
    name,
    failure,
    hasWorked,
  }: {
    readonly name: ChannelName
    readonly failure: BackupError | undefined
    readonly hasWorked: boolean
  },
  { report, nowMs }: Pick<AnnounceOptions, 'report' | 'nowMs'>,
): readonly NotifierFailure[] {
  if (failure === undefined && !hasWorked) return known
  const others = known.filter(({ channel }) => channel !== name)
  if (failure === undefined) return others
  const { message, hint } = failure
  reportFailure(report, { message: `${name}: ${message}`, hint, channel: name })
  return [...others, { channel: name, message, atMs: nowMs }]
}

function reportFailure(
  report: Report,
  {
    message,
    hint,
    channel,
  }: { readonly message: string; readonly hint: string | undefined; readonly channel: string },
): void {
  const text = `telling you failed: ${message}${hint === undefined ? '' : ` (${hint})`}`
  const facts = { channel }
  report({ kind: 'notice', level: 'warning', code: 'NOTIFY_FAILED', message: text, facts })
}

interface Told {
  readonly kind: string
  readonly subject: string
  readonly atMs: number
}

interface Memory {
  readonly told: readonly Told[]
  readonly failures: readonly NotifierFailure[]
}

/** Damaged or not there, nothing was told. */
function readMemory(staging: string): Memory {
  try {
    const value: unknown = JSON.parse(readFileSync(memoryFile(staging), 'utf8'))
    const { told, failures } = value as Readonly<Record<string, unknown>>
    return { told: listOf(told, isTold), failures: listOf(failures, isNotifierFailure) }
  } catch {
    return { told: [], failures: [] }
  }
}

function listOf<Value>(value: unknown, is: (one: unknown) => one is Value): readonly Value[] {
  return Array.isArray(value) ? value.filter(is) : []
}

function isTold(value: unknown): value is Told {
  return hasTexts(value, ['kind', 'subject'])
}

function isNotifierFailure(value: unknown): value is NotifierFailure {
  return hasTexts(value, ['channel', 'message'])
}

function hasTexts(value: unknown, names: readonly string[]): boolean {
  if (typeof value !== 'object' || value === null) return false
  const object = value as Readonly<Record<string, unknown>>
  return names.every((name) => typeof object[name] === 'string') && Number.isFinite(object['atMs'])
}

/** Where there is no staging directory nothing is made. */
function remember(
  { staging, report }: Pick<AnnounceOptions, 'staging' | 'report'>,
  { before, after }: { readonly before: Memory; readonly after: Memory },
): void {
  const text = `${JSON.stringify(after)}\n`
  // What is not staging yet, or is a bare mount point, is not begun by this.
  if (text === `${JSON.stringify(before)}\n` || !existsSync(stateRoot(staging))) return
  try {
    const path = rawPathFromText(memoryFile(staging))
    writeDurably({ path, bytes: Buffer.from(text), mode: 0o600, replace: true })
  } catch (error) {
    const failure = stagingError({ error, staging, doing: 'written' })
    if (!(failure instanceof BackupError)) throw failure
    const message = `what was told cannot be remembered, and is told again: ${failure.message}`
    reportFailure(report, { message, hint: failure.hint, channel: 'memory' })
  }
}

function memoryFile(staging: string): string {
  return `${stateRoot(staging)}/announcements.json`
}
