// What reading from cold storage needs: which bundles can be read, which have to be asked for, how
// long that takes, and what it costs.
//
// lib/work/thaw.ts gathers the facts and carries it out. Pure. The hours are those that the service
// documents (docs/cold-storage.md); prices come in
// as a function, which priceOfThaw makes of a price list. Throws
// nothing.

import { formatSize } from './amount.ts'
import { type EgressOptions, restoreCost } from './cost.ts'
import { formatMoney } from './cost-text.ts'
import { type RegionPrices, type Tier, TIERS } from './prices.ts'

/** How an object can be read: Warmth of lib/target/bucket.ts. */
export type ThawState =
  | { readonly kind: 'hot' }
  | { readonly kind: 'cold' }
  | { readonly kind: 'thawing' }
  | { readonly kind: 'thawed'; readonly untilMs: number }

/** One bundle that is needed. */
export interface ThawItem {
  /** In the repository, `machines/…`. */
  readonly path: string
  readonly sizeBytes: number
  readonly storageClass: string
  /** The version to thaw and read, where the bundle is hidden by a deletion. */
  readonly versionId: string | undefined
  readonly state: ThawState
}

export interface Amount {
  readonly count: number
  readonly bytes: number
}

export interface ClassAmount extends Amount {
  readonly storageClass: string
}

export interface Price {
  /** In millionths of the currency's unit. */
  readonly micros: number
  /** Whether that is everything. */
  readonly isWhole: boolean
  /** With the currency, for people. */
  readonly text: string
}

/** What a restore costs that thaws some objects; undefined where no price is known. */
export type PriceOfThaw = (request: {
  readonly tier: Tier
  /** How long the copies are kept. */
  readonly days: number
  readonly cold: readonly ClassAmount[]
  /** What is fetched besides. */
  readonly readable: readonly ClassAmount[]
}) => Price | undefined

/** By a price list: requests, retrieval, the copies, and what goes out over the network. */
export function priceOfThaw(prices: RegionPrices, egress: EgressOptions = {}): PriceOfThaw {
  return ({ tier, days, cold, readable }) => {
    const groups = cold.map(({ storageClass, count, bytes }) => {
      return { storageClass, objects: count, bytes }
    })
    const hot = readable.map(({ storageClass, count, bytes }) => {
      return { storageClass, requests: count, bytes }
    })
    const [offer] = restoreCost({ prices, cold: groups, hot, days, tier, egress })
    if (offer === undefined || offer.cost.items.every(({ micros }) => micros === undefined)) {
      return undefined
    }
    const { micros, currency, known } = offer.cost
    const text = formatMoney(micros, currency)
    return { micros, isWhole: known, text: known ? text : `at least ${text}` }
  }
}

/** One way to have what is cold thawed. */
export interface ThawOffer {
  readonly tier: Tier
  /** 0 where only the latest time is documented. */
  readonly minMs: number
  readonly maxMs: number
  readonly price: Price | undefined
}

export interface ThawPlan {
  readonly items: readonly ThawItem[]
  /** What the bucket does not have, in any version. */
  readonly missing: readonly string[]
  readonly hot: Amount
  readonly thawed: Amount
  /** When the first of the thawed copies goes. */
  readonly firstUntilMs: number | undefined
  readonly thawing: Amount
  readonly cold: Amount
  readonly coldByClass: readonly ClassAmount[]
  /** How the cold ones can be had: only what every class among them offers. */
  readonly offers: readonly ThawOffer[]
}

const MINUTE_MS = 60_000
const HOUR_MS = 60 * MINUTE_MS

type Span = readonly [minMs: number, maxMs: number]

const DEEP_ARCHIVE: Partial<Record<Tier, Span>> = {
  Bulk: [0, 48 * HOUR_MS],
  Standard: [0, 12 * HOUR_MS],
}

const SPANS: Readonly<Record<string, Partial<Record<Tier, Span>>>> = {
  GLACIER: {
    Bulk: [5 * HOUR_MS, 12 * HOUR_MS],
    Standard: [3 * HOUR_MS, 5 * HOUR_MS],
    Expedited: [MINUTE_MS, 5 * MINUTE_MS],
  },
  DEEP_ARCHIVE,
  // Either of its two archive tiers; which one does not show in a listing.
  INTELLIGENT_TIERING: { Bulk: [5 * HOUR_MS, 48 * HOUR_MS], Standard: [3 * HOUR_MS, 12 * HOUR_MS] },
}

export function isReadable({ kind }: ThawState): boolean {
  return kind === 'hot' || kind === 'thawed'
}

/** `bulk`, `standard`, `expedited`, as the command line has them. */
export function parseTier(text: string): Tier | undefined {
  return TIERS.find((tier) => tier.toLowerCase() === text.toLowerCase())
}

/** The plan for what was found. `days`: how long thawed copies are to be kept. */
export function makeThawPlan({
  items,
  missing = [],
  days,
  priceOf,
}: {
  readonly items: readonly ThawItem[]
  readonly missing?: readonly string[]
  readonly days: number
  readonly priceOf?: PriceOfThaw | undefined
}): ThawPlan {
  const of = (kind: ThawState['kind']) => items.filter(({ state }) => state.kind === kind)
  const ends = items.flatMap(({ state }) => (state.kind === 'thawed' ? [state.untilMs] : []))
  const coldByClass = byClass(of('cold'))
  const readable = byClass(items.filter(({ state }) => isReadable(state)))
  return {
    items,
    missing,
    hot: amountOf(of('hot')),
    thawed: amountOf(of('thawed')),
    firstUntilMs: ends.length === 0 ? undefined : Math.min(...ends),
    thawing: amountOf(of('thawing')),
    cold: amountOf(of('cold')),
    coldByClass,
    offers: offersFor(coldByClass, { readable, days, priceOf }),
  }
}

function amountOf(items: readonly ThawItem[]): Amount {
  return { count: items.length, bytes: items.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0) }
}

/** Objects and bytes by storage class, sorted by class. */
export function byClass(items: readonly ThawItem[]): readonly ClassAmount[] {
  const classes = [...new Set(items.map(({ storageClass }) => storageClass))].sort()
  return classes.map((storageClass) => {
    return { storageClass, ...amountOf(items.filter((item) => item.storageClass === storageClass)) }
  })
}

function offersFor(
  cold: readonly ClassAmount[],
  {
    readable,
    days,
    priceOf,
  }: {
    readonly readable: readonly ClassAmount[]
    readonly days: number
    readonly priceOf: PriceOfThaw | undefined
  },
): readonly ThawOffer[] {
  if (cold.length === 0) return []
  return TIERS.flatMap((tier) => {
    const spans = cold.map(({ storageClass }) => spanOf(storageClass, tier))
    if (spans.includes(undefined)) return []
    const known = spans as readonly Span[]
    const minMs = Math.max(...known.map(([min]) => min))
    const maxMs = Math.max(...known.map(([, max]) => max))
    return [{ tier, minMs, maxMs, price: priceOf?.({ tier, days, cold, readable }) }]
  })
}

/** A class that nobody told us of is taken for the slowest. */
function spanOf(storageClass: string, tier: Tier): Span | undefined {
  return (SPANS[storageClass] ?? DEEP_ARCHIVE)[tier]
}

/** How long whatever is being thawed can still take, whoever asked for it by whichever tier. */
export function latestThawMs(plan: ThawPlan): number {
  const thawing = plan.items.filter(({ state }) => state.kind === 'thawing')
  const spans = byClass(thawing).map(({ storageClass }) => spanOf(storageClass, 'Bulk')?.[1] ?? 0)
  return Math.max(0, ...spans)
}

/** A transfer is seldom as even as its estimate, and a copy that went costs another day. */
const FETCH_SLACK = 2
const EXPIRY_MARGIN_MS = HOUR_MS

/** Whether a thawed copy may be gone before everything that is needed was fetched. */
export function isExpiringSoon(
  state: ThawState,
  { nowMs, fetchMs }: { readonly nowMs: number; readonly fetchMs: number },
): boolean {
  if (state.kind !== 'thawed') return false
  return state.untilMs - nowMs < fetchMs * FETCH_SLACK + EXPIRY_MARGIN_MS
}

/** A slow line: 16 Mbit/s. An estimate that is too long asks for a few more days at worst. */
const SLOW_BYTES_PER_SECOND = 2 * 2 ** 20

/** How long fetching takes, by what was measured or allowed, or by a slow line. */
export function estimateFetchMs({
  bytes,
  bytesPerSecond = SLOW_BYTES_PER_SECOND,
}: {
  readonly bytes: number
  readonly bytesPerSecond?: number | undefined
}): number {
  return Math.ceil((bytes / bytesPerSecond) * 1000)
}

const DAY_MS = 24 * HOUR_MS

/** For how many days copies have to be kept so that none goes during the fetch. */
export function daysToFetch(fetchMs: number): number {
  return Math.ceil((fetchMs * FETCH_SLACK + EXPIRY_MARGIN_MS) / DAY_MS)
}

/** What the plan asks for now: what is cold, and copies that would go before they are fetched. */
export function itemsToRequest(
  plan: ThawPlan,
  when: { readonly nowMs: number; readonly fetchMs: number },
): readonly ThawItem[] {
  return plan.items.filter(({ state }) => state.kind === 'cold' || isExpiringSoon(state, when))
}

/** The plan for people, a line each: what is where, and then each way to have it. */
export function describeThawPlan(plan: ThawPlan): readonly string[] {
  const { items, hot, thawed, thawing, cold, coldByClass } = plan
  const total = amountOf(items)
  const parts = [
    part({ count: hot.count + thawed.count, bytes: hot.bytes + thawed.bytes }, 'can be read now'),
    part(thawing, 'are being thawed'),
    ...coldByClass.map((amount) => part(amount, `are in cold storage (${amount.storageClass})`)),
    plan.missing.length > 0 ? `${plan.missing.length} are missing` : '',
  ]
  const lines = [`${describeAmount(total)}: ${parts.filter((text) => text !== '').join(', ')}`]
  if (cold.count === 0) return lines
  const rows = plan.offers.map((offer) => [
    `--thaw ${offer.tier.toLowerCase()}`,
    describeSpan(offer),
    offer.price?.text ?? 'price not known',
  ])
  const widths = [0, 1].map((column) => Math.max(...rows.map((row) => row[column]!.length)))
  for (const [flag, span, price] of rows) {
    lines.push(`  ${flag!.padEnd(widths[0]!)}  ${span!.padEnd(widths[1]!)}  ${price}`)
  }
  return lines
}

function part(amount: Amount, what: string): string {
  return amount.count === 0 ? '' : `${amount.count} (${formatSize(amount.bytes)}) ${what}`
}

function describeAmount({ count, bytes }: Amount): string {
  return `${count} ${count === 1 ? 'bundle is' : 'bundles are'} needed (${formatSize(bytes)})`
}

/** `3 to 5 hours`, `within 48 hours`, `1 to 5 minutes`. */
export function describeSpan({ minMs, maxMs }: Pick<ThawOffer, 'minMs' | 'maxMs'>): string {
  const [unit, unitMs] = maxMs < HOUR_MS ? ['minutes', MINUTE_MS] : ['hours', HOUR_MS]
  const max = `${Math.ceil(maxMs / unitMs)} ${unit}`
  return minMs === 0 ? `within ${max}` : `${Math.floor(minMs / unitMs)} to ${max}`
}
