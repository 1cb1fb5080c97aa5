// Reading what lies in cold storage: planned, shown, asked for, waited for; never by accident.
//
// `backup-restore` calls thawOrSay, which does the first two steps, and the others when it is told
// to; verify calls coldBundles and reads around what is cold. Only the bundles that are needed are
// asked for, of a hidden one the version that is still there. Asking costs money: nothing is asked
// for before `approve` returned. Throws COLD_STORAGE, THAWING, USAGE, INTERRUPTED, and what a
// Target throws.

import { isAlwaysHot } from '../model/storage-class.ts'
import { setTimeout as sleep } from 'node:timers/promises'
import { BackupError } from '../errors.ts'
import { formatSize } from '../model/amount.ts'
import type { Tier } from '../model/prices.ts'
import type { Report } from '../model/report.ts'
import {
  daysToFetch,
  describeThawPlan,
  estimateFetchMs,
  isExpiringSoon,
  isReadable,
  itemsToRequest,
  latestThawMs,
  makeThawPlan,
  type PriceOfThaw,
  type ThawItem,
  type ThawPlan,
  type ThawState,
} from '../model/thaw-plan.ts'

import type { Bucket } from '../target/bucket.ts'
import type { S3Head, S3Object } from '../target/s3-calls.ts'
import type { Target } from '../target/target.ts'
import { readableVersion } from './hidden-objects.ts'
import { inParallel } from './in-parallel.ts'

/** How long thawed copies are kept where nobody says. */
export const DEFAULT_THAW_DAYS = 7

const HOUR_MS = 3_600_000
/** The first look, and the longest pause between two: thawing takes minutes to days. */
const FIRST_PAUSE_MS = 60_000
const LONGEST_PAUSE_MS = 10 * 60_000
const PAUSE_GROWTH = 1.5
/** How many objects a look asks about: what was requested together is ready together. */
const LOOKED_AT = 4
/** Twice the slowest tier that any service documents. */
const LONGEST_WAIT_MS = 96 * HOUR_MS
/** A copy that goes a third time before it can be read was kept for too few days. */
const MOST_REQUESTS = 3

/** A bundle that is needed: its path in the repository, and its size as the manifest has it. */
export interface NeededBundle {
  readonly path: string
  readonly sizeBytes: number
}

export interface PlanOptions {
  readonly bundles: readonly NeededBundle[]
  /** How long thawed copies are to be kept; prices depend on it. */
  readonly days?: number | undefined
  readonly priceOf?: PriceOfThaw | undefined
  readonly signal?: AbortSignal | undefined
}

/**
 * What of the bundles can be read, and what the rest takes. One listing; hot objects cost nothing
 * more. On a target that is no bucket everything is hot.
 */
export async function planThaw(target: Target, options: PlanOptions): Promise<ThawPlan> {
  const { bundles, days = DEFAULT_THAW_DAYS, priceOf, signal } = options
  const { bucket } = target
  if (bucket === undefined) {
    const items = bundles.map((bundle) => itemOf(bundle, { storageClass: 'STANDARD', state: HOT }))
    return makeThawPlan({ items, days, priceOf })
  }
  const objects = await objectsOf(bucket, bundles)
  const found = await inParallel(
    bundles,
    async (bundle) => await examine(bucket, bundle, objects.get(bundle.path)),
    { signal },
  )
  const items = found.filter((item) => item !== undefined)
  const missing = bundles.filter((_, index) => found[index] === undefined).map(({ path }) => path)
  return makeThawPlan({ items, missing, days, priceOf })
}

const HOT: ThawState = { kind: 'hot' }

function itemOf(
  { path, sizeBytes }: NeededBundle,
  {
    storageClass,
    state,
    versionId,
  }: Omit<ThawItem, 'path' | 'sizeBytes' | 'versionId'> & {
    readonly versionId?: string | undefined
  },
): ThawItem {
  return { path, sizeBytes, storageClass, state, versionId }
}

/** What the bucket lists of the bundles, by path. */
async function objectsOf(
  bucket: Bucket,
  bundles: readonly NeededBundle[],
): Promise<ReadonlyMap<string, S3Object>> {
  if (bundles.length === 0) return new Map()
  const directory = commonDirectory(bundles.map(({ path }) => path))
  const listed = await bucket.calls.list(bucket.keyOf(directory))
  return new Map(listed.map((object) => [bucket.pathOf(object.key) ?? '', object]))
}

/** The deepest directory that holds all paths, with its slash; empty for the top. */
function commonDirectory(paths: readonly string[]): string {
  const [first = '', ...others] = paths
  const parts = first.split('/').slice(0, -1)
  const holds = (length: number) => {
    const start = parts
      .slice(0, length)
      .map((name) => `${name}/`)
      .join('')
    return others.every((path) => path.startsWith(start))
  }
  let length = parts.length
  while (!holds(length)) length -= 1
  return parts
    .slice(0, length)
    .map((name) => `${name}/`)
    .join('')
}

/** Undefined where the bucket has it in no version. */
async function examine(
  bucket: Bucket,
  bundle: NeededBundle,
  object: S3Object | undefined,
): Promise<ThawItem | undefined> {
  if (object !== undefined) {
    const { storageClass } = object
    if (isAlwaysHot(storageClass)) return itemOf(bundle, { storageClass, state: HOT })
    const state = await bucket.warmthOf(bundle.path)
    if (state !== undefined) return itemOf(bundle, { storageClass, state })
  }
  const versionId = await readableVersion(bucket, bundle.path)
  if (versionId === undefined) return undefined
  const head = await bucket.calls.head(bucket.keyOf(bundle.path), versionId)
  if (head === undefined) return undefined
  const { storageClass } = head
  return itemOf(bundle, { storageClass, state: warmthOfHead(head), versionId })
}

function warmthOfHead({ storageClass, restore }: S3Head): ThawState {
  if (isAlwaysHot(storageClass)) return HOT
  if (restore?.isOngoing === true) return { kind: 'thawing' }
  const untilMs = restore?.expiryMs
  return untilMs === undefined ? { kind: 'cold' } : { kind: 'thawed', untilMs }
}

/**
 * Which of these cannot be read now: what verify skips and names. Asks for nothing to be thawed.
 */
export async function coldBundles(
  target: Target,
  paths: readonly string[],
  { signal }: { readonly signal?: AbortSignal | undefined } = {},
): Promise<ReadonlySet<string>> {
  const bundles = paths.map((path) => ({ path, sizeBytes: 0 }))
  const { items } = await planThaw(target, { bundles, signal })
  return new Set(items.filter(({ state }) => !isReadable(state)).map(({ path }) => path))
}

export interface RequestOptions {
  readonly tier: Tier
  readonly days: number
  readonly report: Report
  readonly signal?: AbortSignal | undefined
}

/** What became of the requests. */
export interface RequestOutcome {
  readonly requested: number
  /** Somebody asked for them before. */
  readonly ongoing: number
  /** Their copies are kept for longer now. */
  readonly extended: number
  readonly failed: readonly { readonly path: string; readonly error: BackupError }[]
}

/** Asks for these to be thawed, and for nothing else. What failed does not keep the others back. */
export async function requestThaw(
  target: Target,
  items: readonly ThawItem[],
  { tier, days, report, signal }: RequestOptions,
): Promise<RequestOutcome> {
  const answers = await inParallel(
    items,
    async (item) => ({ path: item.path, answer: await request(target, item, { tier, days }) }),
    { signal },
  )
  const failed = answers.flatMap(({ path, answer }) => {
    return answer instanceof BackupError ? [{ path, error: answer }] : []
  })
  for (const { path, error } of failed) {
    const message = `${path} is not being thawed: ${error.message}`
    report({ kind: 'notice', level: 'warning', code: 'NOT_THAWED', message, facts: { path } })
  }
  const count = (kind: string) => answers.filter(({ answer }) => answer === kind).length
  return {
    ...{ requested: count('requested'), ongoing: count('ongoing'), extended: count('extended') },
    failed,
  }
}

async function request(
  target: Target,
  { path, versionId }: ThawItem,
  { tier, days }: { readonly tier: Tier; readonly days: number },
): Promise<'requested' | 'ongoing' | 'extended' | BackupError> {
  const { bucket } = target
  if (bucket === undefined) return unsupported(target)
  try {
    const key = bucket.keyOf(path)
    const version = versionId === undefined ? {} : { versionId }
    const answer = await bucket.calls.thaw({ key, ...version, tier, days })
    return answer === 'unsupported' ? unsupported(target) : answer
  } catch (error) {
    if (!(error instanceof BackupError) || error.code === 'INTERRUPTED') throw error
    if (error.code !== 'TARGET_DENIED') return error
    return new BackupError('TARGET_DENIED', error.message, {
      hint: 'allow s3:RestoreObject, for hidden objects s3:GetObjectVersion too',
      facts: error.facts,
      cause: error,
    })
  }
}

function unsupported(target: Target): BackupError {
  return new BackupError('TARGET_FAILED', `${target.place} cannot thaw objects`, {
    hint: 'have the provider bring them to a hot storage class, and try again',
  })
}

export interface WaitOptions extends Omit<RequestOptions, 'tier'> {
  /** For what goes cold again meanwhile; undefined: nothing is asked for. */
  readonly tier: Tier | undefined
  /** Milliseconds since 1970. */
  readonly now: () => number
  /** How long everything takes to fetch once it is readable. */
  readonly fetchMs: number
  /** Before the second look; a minute where nothing is said. */
  readonly pollMs?: number | undefined
}

/**
 * Returns the plan anew once everything in it can be read, and stays readable for as long as the
 * fetch takes. A copy that expired meanwhile is asked for again, and named.
 * @throws BackupError INTERRUPTED: what was requested goes on; THAWING after four days;
 * COLD_STORAGE where copies expire faster than they can be used
 */
export async function waitForThaw(
  target: Target,
  plan: ThawPlan,
  options: WaitOptions,
): Promise<ThawPlan> {
  try {
    return await wait(target, plan, options)
  } catch (cause) {
    if (options.signal?.aborted !== true) throw cause
    throw new BackupError('INTERRUPTED', `interrupted while ${target.place} was thawing`, {
      hint: `what was asked for goes on being thawed; ${COME_BACK}`,
      cause,
    })
  }
}

async function wait(target: Target, plan: ThawPlan, options: WaitOptions): Promise<ThawPlan> {
  const { now, fetchMs, report, signal, days, pollMs = FIRST_PAUSE_MS } = options
  const endMs = now() + LONGEST_WAIT_MS
  const items = new Map(plan.items.map((item) => [item.path, item]))
  const waiting = { target, items, asked: new Map<string, number>(), options }
  // What would go too soon was asked for just now: until when it is kept is not known yet.
  const isWanted = ({ state }: ThawItem): boolean => {
    return !isReadable(state) || isExpiringSoon(state, { nowMs: now(), fetchMs })
  }
  let pending = plan.items.filter(isWanted).map(({ path }) => path)
  let pauseMs = pollMs
  report({ kind: 'phase', name: 'thawing' })
  for (;;) {
    const before = pending.length
    pending = await look(waiting, pending)
    reportProgress(report, { items, pending })
    if (pending.length === 0) pending = await renew(waiting)
    if (pending.length === 0) {
      return makeThawPlan({ items: [...items.values()], missing: plan.missing, days })
    }
    if (now() > endMs) throw stillThawing(target, pending.length)
    const isMoving = pending.length !== before
    pauseMs = isMoving ? pollMs : Math.min(pauseMs * PAUSE_GROWTH, LONGEST_PAUSE_MS)
    await sleep(pauseMs, undefined, signal === undefined ? {} : { signal })
  }
}

interface Waiting {
  readonly target: Target
  readonly items: Map<string, ThawItem>
  /** How often each was asked for while we waited. */
  readonly asked: Map<string, number>
  readonly options: WaitOptions
}

/** Asks about a few, and about more while those are ready. @returns what is still not readable */
async function look(waiting: Waiting, pending: readonly string[]): Promise<string[]> {
  let rest = [...pending]
  while (rest.length > 0) {
    const some = rest.slice(0, LOOKED_AT)
    const fresh = await inParallel(some, async (path) => await refresh(waiting, path), {
      signal: waiting.options.signal,
    })
    const late = some.filter((_, index) => !isReadable(fresh[index]!.state))
    // Others come first the next time.
    rest = [...rest.slice(LOOKED_AT), ...late]
    if (late.length > 0) return rest
  }
  return rest
}

/** An object as it is now. What is cold, or cold again, is asked for. */
async function refresh(waiting: Waiting, path: string): Promise<ThawItem> {
  const { target, items, options } = waiting
  const item = items.get(path)!
  const state = await stateNow(target, item)
  if (state === undefined) {
    throw new BackupError('BUNDLE_MISSING', `a bundle is gone from ${target.place}: ${path}`, {
      hint: '`backup-restore --verify` tells what that means; nothing was written',
      facts: { path },
    })
  }
  const fresh = { ...item, state }
  items.set(path, fresh)
  if (state.kind === 'cold') await askAgain(waiting, fresh, options)
  return fresh
}

async function stateNow({ bucket }: Target, item: ThawItem): Promise<ThawState | undefined> {
  if (bucket === undefined) return HOT
  const { path, versionId } = item
  if (versionId === undefined) return await bucket.warmthOf(path)
  const head = await bucket.calls.head(bucket.keyOf(path), versionId)
  return head === undefined ? undefined : warmthOfHead(head)
}

/** Copies that would go before they are fetched are kept longer. @returns what is gone already */
async function renew(waiting: Waiting): Promise<string[]> {
  const { items, asked, options } = waiting
  const { now, fetchMs, tier } = options
  const gone: string[] = []
  for (const item of [...items.values()]) {
    if (!isExpiringSoon(item.state, { nowMs: now(), fetchMs }) || tier === undefined) continue
    // One that was kept as long as was asked for will not be kept longer by asking again.
    if (asked.has(item.path)) continue
    await askAgain(waiting, item, options)
    if (!isReadable((await refresh(waiting, item.path)).state)) gone.push(item.path)
  }
  return gone
}

async function askAgain(
  { target, asked }: Waiting,
  { path, ...item }: ThawItem,
  options: WaitOptions,
): Promise<void> {
  const { report, days, tier } = options
  const times = asked.get(path) ?? 0
  if (tier === undefined) {
    throw new BackupError('COLD_STORAGE', `${path} is in cold storage again`, {
      hint: 'say how to have it thawed: --thaw bulk, for one; nothing was asked for',
      facts: { path },
    })
  }
  if (times >= MOST_REQUESTS) {
    throw new BackupError('COLD_STORAGE', `the thawed copy of ${path} goes too soon`, {
      hint: `ask for copies that are kept for more than ${days} days`,
      facts: { path },
    })
  }
  asked.set(path, times + 1)
  const isGone = item.state.kind === 'cold'
  const message = isGone
    ? `${path} is cold: it is asked for again`
    : `the thawed copy of ${path} would go before it is fetched: it is kept longer`
  const code = isGone ? 'THAWED_AGAIN' : 'THAW_EXTENDED'
  report({ kind: 'notice', level: 'warning', code, message, facts: { path } })
  const { failed } = await requestThaw(target, [{ path, ...item }], { ...options, tier })
  if (failed[0] !== undefined) throw failed[0].error
}

function reportProgress(
  report: Report,
  {
    items,
    pending,
  }: { readonly items: ReadonlyMap<string, ThawItem>; readonly pending: readonly string[] },
): void {
  const all = [...items.values()]
  const late = new Set(pending)
  const ready = all.filter(({ path }) => !late.has(path))
  const files = { filesDone: ready.length, filesTotal: all.length }
  const sizes = { bytesDone: bytesOf(ready), bytesTotal: bytesOf(all) }
  report({ kind: 'progress', phase: 'thawing', ...files, ...sizes })
}

function bytesOf(items: readonly Pick<ThawItem, 'sizeBytes'>[]): number {
  return items.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
}

const COME_BACK = 'come back with the same command and --resume'

function stillThawing(target: Target, count: number): BackupError {
  return new BackupError('THAWING', `${target.place}: ${count} bundles are still being thawed`, {
    hint: `nothing is lost; ${COME_BACK}`,
    retry: 'later',
  })
}

/** What thawOrSay found, and did. */
export type ThawAnswer =
  /** Everything can be read. */
  | { readonly kind: 'ready'; readonly plan: ThawPlan }
  /** Nothing was asked for: `lines` are the plan for people, `error` is how the command ends. */
  | {
      readonly kind: 'cold'
      readonly plan: ThawPlan
      readonly lines: readonly string[]
      readonly error: BackupError
    }
  /** It is under way: when it is ready at the latest, and how the command ends. */
  | {
      readonly kind: 'requested'
      readonly plan: ThawPlan
      readonly outcome: RequestOutcome
      readonly readyByMs: number
      readonly error: BackupError
    }

export interface ThawOptions extends PlanOptions {
  /** `--thaw`: undefined asks for nothing. */
  readonly tier: Tier | undefined
  /** `--wait` */
  readonly isWaiting: boolean
  readonly now: () => number
  /** What the line can do, for the estimate of how long copies are needed. */
  readonly bytesPerSecond?: number | undefined
  /** Has the last word before anything is spent: throws COST_LIMIT. */
  readonly approve?: ((plan: ThawPlan, tier: Tier) => void | Promise<void>) | undefined
  readonly report: Report
  readonly pollMs?: number | undefined
}

/**
 * Whether a restore can go on; asks for what is cold where the user said how, and waits where the
 * user said so. Calling it again is how a restore is resumed.
 * @throws BackupError USAGE for a tier that a storage class does not have, and what `approve`
 * throws: then nothing was asked for
 */
export async function thawOrSay(target: Target, options: ThawOptions): Promise<ThawAnswer> {
  const { tier, isWaiting, now, report, signal, approve, pollMs, bundles } = options
  const { bytesPerSecond } = options
  const fetchMs = estimateFetchMs({ bytes: bytesOf(bundles), bytesPerSecond })
  const days = options.days ?? Math.max(DEFAULT_THAW_DAYS, daysToFetch(fetchMs))
  const plan = await planThaw(target, { ...options, days })
  const { cold, thawing } = plan
  if (cold.count > 0 && tier === undefined) {
    return { kind: 'cold', plan, lines: describeThawPlan(plan), error: isCold(target, plan) }
  }
  const wanted = tier === undefined ? [] : itemsToRequest(plan, { nowMs: now(), fetchMs })
  if (wanted.length === 0 && thawing.count === 0) return { kind: 'ready', plan }
  let outcome: RequestOutcome = { requested: 0, ongoing: 0, extended: 0, failed: [] }
  if (tier !== undefined && wanted.length > 0) {
    refuseUnknownTier(plan, tier)
    await approve?.(plan, tier)
    outcome = await requestThaw(target, wanted, { tier, days, report, signal })
  }
  // Waiting for what was refused would be waiting for nothing.
  const [failure] = outcome.failed
  const isNothingAsked = outcome.failed.length === wanted.length
  if (failure !== undefined && (isWaiting || isNothingAsked)) throw failure.error
  if (isWaiting) {
    const waiting = { tier, days, report, signal, now, fetchMs, pollMs }
    return { kind: 'ready', plan: await waitForThaw(target, plan, waiting) }
  }
  if (cold.count === 0 && thawing.count === 0) return { kind: 'ready', plan }
  const offer = cold.count === 0 ? undefined : plan.offers.find((one) => one.tier === tier)
  const readyByMs = now() + Math.max(offer?.maxMs ?? 0, latestThawMs(plan))
  const error = isThawing(target, { plan, outcome, readyByMs })
  return { kind: 'requested', plan, outcome, readyByMs, error }
}

function refuseUnknownTier(plan: ThawPlan, tier: Tier): void {
  if (plan.cold.count === 0 || plan.offers.some((offer) => offer.tier === tier)) return
  const classes = plan.coldByClass.map(({ storageClass }) => storageClass).join(' and ')
  const tiers = plan.offers.map((offer) => offer.tier.toLowerCase()).join(' or ')
  throw new BackupError('USAGE', `${classes} cannot be thawed by --thaw ${tier.toLowerCase()}`, {
    hint: `use --thaw ${tiers}; nothing was asked for`,
  })
}

function isCold(target: Target, { cold, coldByClass, offers }: ThawPlan): BackupError {
  const classes = coldByClass.map(({ storageClass }) => storageClass).join(', ')
  const what = `${cold.count} of the bundles that are needed (${formatSize(cold.bytes)})`
  const tiers = offers.map(({ tier }) => tier.toLowerCase()).join('|')
  const message = `${what} are in cold storage at ${target.place} (${classes})`
  return new BackupError('COLD_STORAGE', message, {
    hint: `--thaw ${tiers} asks for them, with --wait it waits; nothing was asked for or written`,
    facts: {
      cold: cold.count,
      coldBytes: cold.bytes,
      offers: offers.map(({ tier, maxMs, price }) => {
        return { tier: tier.toLowerCase(), hours: maxMs / HOUR_MS, priceMicros: price?.micros }
      }),
    },
  })
}

function isThawing(
  target: Target,
  {
    plan,
    outcome,
    readyByMs,
  }: { readonly plan: ThawPlan; readonly outcome: RequestOutcome; readonly readyByMs: number },
): BackupError {
  const { requested, ongoing, extended, failed } = outcome
  const readyBy = new Date(readyByMs).toISOString()
  const count = plan.thawing.count + requested + ongoing
  const not = failed.length === 0 ? '' : `; ${failed.length} could not be asked for`
  const message = `${count} bundles are being thawed at ${target.place}${not}`
  const at = readyBy.slice(0, 16).replace('T', ' ')
  return new BackupError('THAWING', message, {
    hint: `they are ready by ${at} UTC; ${COME_BACK}`,
    facts: { requested, ongoing, extended, failed: failed.map(({ path }) => path), readyBy },
    retry: 'later',
  })
}
