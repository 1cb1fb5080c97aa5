// What a bucket costs: to upload, to keep, to restore, to prune; and what pays.
//
// Called by the procedures of lib/work that upload, read or delete, with the prices that pricesFor
// (prices.ts) gives, or NO_PRICES. cost-text.ts words the results, cost-limit.ts refuses. Money is
// in millionths of the currency's unit (`micros`), whole numbers; each item is computed exactly and
// rounded once. What has no price is named in `unknown` and never counts as nothing. Estimates:
// without tax, from list prices. Pure; throws nothing.

import type { ClassPrices, RegionPrices, Tier } from './prices.ts'
import { TIERS } from './prices.ts'

/** One line of a bill. */
export interface CostItem {
  /** `storage in DEEP_ARCHIVE`, `egress`. */
  readonly what: string
  /** Undefined: there is no price for it. */
  readonly micros: number | undefined
}

export interface Cost {
  /** `USD`; empty where no price is known at all. */
  readonly currency: string
  /** All that is known of it. */
  readonly micros: number
  /** Whether that is everything. */
  readonly known: boolean
  /** What is missing. */
  readonly unknown: readonly string[]
  readonly items: readonly CostItem[]
}

/** What an object is for: the content of files, or everything else. */
export type ObjectKind = 'data' | 'metadata'

export interface PricedObject {
  readonly storageClass: string
  readonly kind: ObjectKind
  readonly sizeBytes: number
}

/** Objects of one class and kind; groupObjects makes them. */
export interface ObjectGroup {
  readonly storageClass: string
  readonly kind: ObjectKind
  readonly objects: number
  readonly bytes: number
  /**
   * With small objects as large as they are charged for; at least `objects` times that if absent.
   */
  readonly billedBytes?: number
  /** How many are charged for monitoring; all of them if absent. */
  readonly monitored?: number
  /** How many go up in parts, and in how many; none if absent. */
  readonly multipart?: { readonly objects: number; readonly parts: number }
}

/** What is read of a class. */
export interface ReadGroup {
  readonly storageClass: string
  /** GET and HEAD. */
  readonly requests: number
  readonly bytes: number
}

/** What has to be requested from cold storage first. */
export interface ColdGroup {
  readonly storageClass: string
  readonly objects: number
  /** Of the whole objects: they are thawed whole. */
  readonly bytes: number
  /** What is read of them then, where that is not everything, each with one request. */
  readonly reads?: number
  readonly readBytes?: number
}

/** What a run sent and received, as a bucket counts it. */
export interface RequestUsage {
  readonly writes: number
  readonly lists: number
  readonly reads: number
  readonly bytesSent: number
  readonly bytesReceived: number
}

/** What decides how much of what goes out is free. */
export interface EgressOptions {
  /** What went out this month already; nothing if absent. */
  readonly usedBytes?: number
  /** What is stored; what is read now if absent, which is never more. */
  readonly storedBytes?: number
}

/** Groups objects by class and kind; those above `partBytes` go up in parts of that size. */
export function groupObjects(
  objects: Iterable<PricedObject>,
  { prices, partBytes }: { readonly prices: RegionPrices; readonly partBytes: number },
): ObjectGroup[] {
  const groups = new Map<string, Required<ObjectGroup>>()
  for (const { storageClass, kind, sizeBytes } of objects) {
    const key = `${kind} ${storageClass}`
    const { minimumBytes = 0, monitoredFromBytes = 0 } = prices.classes.get(storageClass) ?? {}
    const isLarge = sizeBytes > partBytes
    const none = { objects: 0, bytes: 0, billedBytes: 0, monitored: 0 }
    const before = groups.get(key) ?? { ...none, multipart: { objects: 0, parts: 0 } }
    groups.set(key, {
      storageClass,
      kind,
      objects: before.objects + 1,
      bytes: before.bytes + sizeBytes,
      billedBytes: before.billedBytes + Math.max(sizeBytes, minimumBytes),
      monitored: before.monitored + (sizeBytes >= monitoredFromBytes ? 1 : 0),
      multipart: {
        objects: before.multipart.objects + (isLarge ? 1 : 0),
        parts: before.multipart.parts + (isLarge ? Math.ceil(sizeBytes / partBytes) : 0),
      },
    })
  }
  return [...groups.values()]
}

/** What it costs to send objects. Bytes go in without charge; requests do not. */
export function uploadCost({
  prices,
  groups,
  lists = 0,
  reads = 0,
}: {
  readonly prices: RegionPrices
  readonly groups: readonly ObjectGroup[]
  readonly lists?: number
  readonly reads?: number
}): Cost {
  const lines = groups.flatMap((group) => writeLines(prices, group))
  return costOf(prices, [...lines, ...otherRequestLines(prices, { lists, reads })])
}

export interface MonthlyCost {
  readonly total: Cost
  readonly data: Cost
  readonly metadata: Cost
}

/**
 * What objects cost a month, data apart from metadata. With `besides` (what the account has
 * already) it is what they add; without, it is the whole bill, base price included.
 */
export function monthlyCost({
  prices,
  stored,
  besides,
}: {
  readonly prices: RegionPrices
  readonly stored: readonly ObjectGroup[]
  readonly besides?: readonly Pick<ObjectGroup, 'storageClass' | 'bytes'>[] | undefined
}): MonthlyCost {
  const left = allowances(prices, besides ?? [])
  const of = (kind: ObjectKind): Line[] => {
    const groups = stored.filter((group) => group.kind === kind)
    return groups.flatMap((group) => monthLines(prices, group, left))
  }
  const [data, metadata] = [of('data'), of('metadata')]
  const hasBase = besides === undefined && prices.baseMonthNano > 0
  const base = {
    what: 'base price',
    quantity: hasBase ? 1n : 0n,
    nano: prices.baseMonthNano,
    per: 1n,
  }
  return {
    total: costOf(prices, [...data, ...metadata, base]),
    data: costOf(prices, data),
    metadata: costOf(prices, metadata),
  }
}

/** One way to get everything back. */
export interface RestoreOffer {
  /** Undefined: nothing is cold. */
  readonly tier: Tier | undefined
  /** After which time at the latest everything can be read; undefined: unknown. */
  readonly hours: number | undefined
  readonly cost: Cost
  /** The part of it for thawing: retrieval, its requests, the copies for some days. */
  readonly thaw: Cost
  /** The part of it for what goes out. */
  readonly egress: Cost
}

/**
 * What it costs to read objects back, for each tier that all their classes offer, cheapest first;
 * for one tier where it is given, and then for none if a class lacks it.
 */
export function restoreCost({
  prices,
  cold,
  hot,
  days,
  tier,
  lists = 0,
  egress = {},
}: {
  readonly prices: RegionPrices
  readonly cold: readonly ColdGroup[]
  readonly hot: readonly ReadGroup[]
  /** How long the thawed copies are kept. */
  readonly days: number
  readonly tier?: Tier | undefined
  readonly lists?: number
  readonly egress?: EgressOptions
}): RestoreOffer[] {
  const frozen = cold.filter(({ objects }) => objects > 0)
  const thawed = frozen.map(({ storageClass, objects, bytes, reads, readBytes }) => {
    return { storageClass, requests: reads ?? objects, bytes: readBytes ?? bytes }
  })
  const outBytes = [...thawed, ...hot].reduce((sum, { bytes }) => sum + bytes, 0)
  const outLines = egressLines(prices, outBytes, egress)
  const readLines = [
    ...thawed.map((group) => getLine(prices, group)),
    ...hot.flatMap((group) => [getLine(prices, group), readLine(prices, group)]),
    ...otherRequestLines(prices, { lists, reads: 0 }),
  ]
  const offer = (by: Tier | undefined): RestoreOffer => {
    const thawLines =
      by === undefined
        ? []
        : frozen.flatMap((group) => {
            return tierLines(prices, { group, tier: by, days })
          })
    return {
      tier: by,
      hours: by === undefined ? 0 : hoursOf(prices, frozen, by),
      cost: costOf(prices, [...thawLines, ...readLines, ...outLines]),
      thaw: costOf(prices, thawLines),
      egress: costOf(prices, outLines),
    }
  }
  if (frozen.length === 0) return [offer(undefined)]
  const asked = TIERS.filter((one) => tier === undefined || one === tier)
  const offered = asked.filter((one) => {
    return frozen.every(({ storageClass }) => {
      const tiers = prices.classes.get(storageClass)?.tiers
      return tiers === undefined || tiers.size === 0 || tiers.has(one)
    })
  })
  return offered.map(offer)
}

/** What it costs to read what is not cold, such as for a verification. */
export function verifyCost({
  prices,
  read,
  lists = 0,
  egress = {},
}: {
  readonly prices: RegionPrices
  readonly read: readonly ReadGroup[]
  readonly lists?: number
  readonly egress?: EgressOptions
}): Cost {
  const bytes = read.reduce((sum, group) => sum + group.bytes, 0)
  return costOf(prices, [
    ...read.flatMap((group) => [getLine(prices, group), readLine(prices, group)]),
    ...otherRequestLines(prices, { lists, reads: 0 }),
    ...egressLines(prices, bytes, egress),
  ])
}

/** An object that may be deleted. */
export interface AgedObject {
  readonly storageClass: string
  readonly sizeBytes: number
  readonly ageDays: number
}

export interface PruneCost {
  readonly savesMonthly: Cost
  /** What deleting now costs for the rest of the least time. */
  readonly earlyDeletion: Cost
  /** How many objects that is for. */
  readonly earlyObjects: number
  /** After so many days it costs nothing; undefined: unknown. */
  readonly freeInDays: number | undefined
}

/**
 * What deleting objects saves a month, and costs at once. `remaining` is what stays in the account:
 * where some storage is in the base price, less than that saves nothing.
 */
export function pruneCost({
  prices,
  objects,
  remaining = [],
}: {
  readonly prices: RegionPrices
  readonly objects: readonly AgedObject[]
  readonly remaining?: readonly Pick<ObjectGroup, 'storageClass' | 'bytes'>[]
}): PruneCost {
  const priced = objects.map(({ storageClass, sizeBytes }) => {
    return { storageClass, sizeBytes, kind: 'data' } as const
  })
  const stored = groupObjects(priced, { prices, partBytes: Infinity })
  const fees = objects.map((object) => earlyLine(prices, object))
  const daysLeft = objects.map((object) => remainingDays(prices, object))
  const knownDays = daysLeft.filter((days) => days !== undefined)
  return {
    savesMonthly: monthlyCost({ prices, stored, besides: remaining }).total,
    earlyDeletion: costOf(prices, fees),
    earlyObjects: daysLeft.filter((days) => days === undefined || days > 0).length,
    freeInDays:
      knownDays.length < daysLeft.length
        ? undefined
        : knownDays.reduce((most, days) => Math.max(most, days), 0),
  }
}

export interface RunCost {
  /** Requests, and what was received. */
  readonly spent: Cost
  /** What the new objects add to each month. */
  readonly addsMonthly: MonthlyCost
}

/**
 * What a run did cost. `uploaded` is what it stored: the requests for that are priced by its
 * classes, all others as those of STANDARD.
 */
export function runCost({
  prices,
  usage,
  uploaded,
  besides = [],
  egress = {},
}: {
  readonly prices: RegionPrices
  readonly usage: RequestUsage
  readonly uploaded: readonly ObjectGroup[]
  readonly besides?: readonly Pick<ObjectGroup, 'storageClass' | 'bytes'>[]
  readonly egress?: EgressOptions
}): RunCost {
  const explained = uploaded.reduce((sum, group) => sum + writesOf(group), 0)
  // An upload that was begun by a run before had fewer requests in this one.
  const other = Math.max(0, usage.writes - explained)
  const { putNano } = prices.classes.get('STANDARD') ?? {}
  const otherWrites = requestLine('other writing', other, putNano)
  return {
    spent: costOf(prices, [
      ...uploaded.flatMap((group) => writeLines(prices, group)),
      otherWrites,
      ...otherRequestLines(prices, usage),
      ...egressLines(prices, usage.bytesReceived, egress),
    ]),
    addsMonthly: monthlyCost({ prices, stored: uploaded, besides }),
  }
}

export interface RewriteCost {
  /** Undefined where a price is missing: whoever asks has a rule of their own then. */
  readonly pays: boolean | undefined
  /** What storage costs less over the time. */
  readonly saves: Cost
  /** The fee for deleting early, and the requests. */
  readonly costs: Cost
}

/** So far a rewrite looks ahead: backups are kept for years, prices are not. */
const REWRITE_HORIZON_DAYS = 365

/**
 * Whether it pays to write the part of a bundle that is still needed anew and delete the bundle.
 * The content comes from staging: nothing is read from the bucket. Only money: what sending it
 * again costs in time is for whoever asks.
 */
export function paysToRewrite({
  prices,
  storageClass,
  sizeBytes,
  ageDays,
  neededBytes,
}: {
  readonly prices: RegionPrices
  readonly storageClass: string
  readonly sizeBytes: number
  readonly ageDays: number
  readonly neededBytes: number
}): RewriteCost {
  const found = prices.classes.get(storageClass)
  const over = (bytes: number): Line => {
    const quantity = BigInt(billed(found, bytes)) * BigInt(REWRITE_HORIZON_DAYS)
    return storageLine(prices, { what: `storage in ${storageClass}`, quantity, of: found })
  }
  const { currency } = prices
  const [old, rest] = [over(sizeBytes), over(neededBytes)]
  const isSmaller = rest.quantity < old.quantity
  const saved = { ...old, quantity: isSmaller ? old.quantity - rest.quantity : 0n }
  const group = {
    storageClass,
    kind: 'data',
    objects: neededBytes > 0 ? 1 : 0,
    bytes: neededBytes,
  } as const
  const saves = costOf({ currency }, [saved])
  const costs = costOf({ currency }, [
    ...writeLines(prices, group),
    earlyLine(prices, { storageClass, sizeBytes, ageDays }),
  ])
  const pays = saves.known && costs.known ? costs.micros < saves.micros : undefined
  return { pays, saves, costs }
}

/** Whether not one item of a cost has a price. */
export function isNothingKnown({ known, items }: Cost): boolean {
  return !known && items.every(({ micros }) => micros === undefined)
}

/** Several costs as one. */
export function addCosts(costs: readonly Cost[]): Cost {
  const items = costs.flatMap((cost) => cost.items)
  return summed(costs.find(({ currency }) => currency !== '')?.currency ?? '', items)
}

/** A quantity and its price: `quantity × nano / per`. */
interface Line {
  readonly what: string
  readonly quantity: bigint
  readonly nano: number | undefined
  readonly per: bigint
}

function costOf({ currency }: Pick<RegionPrices, 'currency'>, lines: readonly Line[]): Cost {
  const byName = new Map<string, Line[]>()
  for (const line of lines) {
    if (line.quantity === 0n) continue
    const same = byName.get(line.what)
    if (same === undefined) byName.set(line.what, [line])
    else same.push(line)
  }
  const items = [...byName].map(([what, parts]) => ({ what, micros: microsOf(parts) }))
  return summed(currency, items)
}

function summed(currency: string, items: readonly CostItem[]): Cost {
  const missing = items.filter(({ micros }) => micros === undefined).map(({ what }) => what)
  const unknown = [...new Set(missing)]
  const micros = items.reduce((sum, item) => sum + (item.micros ?? 0), 0)
  return { currency, micros, known: unknown.length === 0, unknown, items }
}

/** Rounded half up; undefined where one of the lines has no price. All are of one unit. */
function microsOf(lines: readonly Line[]): number | undefined {
  let nanos = 0n
  for (const { quantity, nano } of lines) {
    if (nano === undefined) return undefined
    nanos += quantity * BigInt(nano)
  }
  const divisor = (lines[0]?.per ?? 1n) * 1000n
  return Number((nanos + divisor / 2n) / divisor)
}

function requestLine(what: string, requests: number, nano: number | undefined): Line {
  return { what, quantity: BigInt(requests), nano, per: 1000n }
}

function writesOf({ objects, multipart }: ObjectGroup): number {
  return objects + (multipart === undefined ? 0 : multipart.objects + multipart.parts)
}

/** One request an object, and for those in parts one to begin and one a part. */
function writeLines({ classes }: RegionPrices, group: ObjectGroup): Line[] {
  const { storageClass, objects } = group
  const found = classes.get(storageClass)
  const begun = writesOf(group) - objects
  const partsAs = found?.partsAs === undefined ? found : classes.get(found.partsAs)
  const what = `writing to ${storageClass}`
  return [
    requestLine(what, objects, found?.putNano),
    requestLine(`${what} in parts`, begun, partsAs?.putNano),
  ]
}

function otherRequestLines(
  { listNano, classes }: RegionPrices,
  { lists, reads }: { readonly lists: number; readonly reads: number },
): Line[] {
  const { getNano } = classes.get('STANDARD') ?? {}
  return [requestLine('listing', lists, listNano), requestLine('reading', reads, getNano)]
}

/** How many bytes of each class cost nothing more, beside what is there already. */
function allowances(
  { classes, gbBytes }: RegionPrices,
  besides: readonly Pick<ObjectGroup, 'storageClass' | 'bytes'>[],
): Map<string, number> {
  const left = new Map<string, number>()
  for (const [name, { includedGb }] of classes) left.set(name, includedGb * gbBytes)
  for (const { storageClass, bytes } of besides) {
    left.set(storageClass, Math.max(0, (left.get(storageClass) ?? 0) - bytes))
  }
  return left
}

function monthLines(prices: RegionPrices, group: ObjectGroup, left: Map<string, number>): Line[] {
  const { storageClass, objects } = group
  const found = prices.classes.get(storageClass)
  const least = objects * (found?.minimumBytes ?? 0)
  const bytes =
    (group.billedBytes ?? Math.max(group.bytes, least)) + objects * (found?.ownOverheadBytes ?? 0)
  const free = Math.min(bytes, left.get(storageClass) ?? 0)
  left.set(storageClass, (left.get(storageClass) ?? 0) - free)
  const month = BigInt(DAYS_OF_MONTH)
  const what = `storage in ${storageClass}`
  const overhead = BigInt(objects * (found?.standardOverheadBytes ?? 0))
  const standard = prices.classes.get('STANDARD')
  const hasMonitoring = found?.monitoredFromBytes !== undefined
  const monitored = hasMonitoring ? (group.monitored ?? objects) : 0
  return [
    storageLine(prices, { what, quantity: BigInt(bytes - free) * month, of: found }),
    storageLine(prices, { what, quantity: overhead * month, of: standard }),
    requestLine(`monitoring in ${storageClass}`, monitored, found?.monitoringNano),
  ]
}

/** A month of the price lists. */
const DAYS_OF_MONTH = 30

/** `quantity` in bytes times days. */
function storageLine(
  { gbBytes }: RegionPrices,
  of: { readonly what: string; readonly quantity: bigint; readonly of: ClassPrices | undefined },
): Line {
  const per = BigInt(gbBytes) * BigInt(DAYS_OF_MONTH)
  return { what: of.what, quantity: of.quantity, nano: of.of?.storageNano, per }
}

/** The bytes of one object that its class is charged for. */
function billed(found: ClassPrices | undefined, sizeBytes: number): number {
  if (sizeBytes === 0) return 0
  return Math.max(sizeBytes, found?.minimumBytes ?? 0) + (found?.ownOverheadBytes ?? 0)
}

/** Whole days that are still charged for, rather too many; undefined for an unknown class. */
function remainingDays({ classes }: RegionPrices, object: AgedObject): number | undefined {
  const minimumDays = classes.get(object.storageClass)?.minimumDays
  if (minimumDays === undefined) return undefined
  return Math.max(0, minimumDays - Math.floor(object.ageDays))
}

function earlyLine(prices: RegionPrices, object: AgedObject): Line {
  const { storageClass, sizeBytes } = object
  const found = prices.classes.get(storageClass)
  const what = `early deletion from ${storageClass}`
  const days = remainingDays(prices, object)
  // Of a class that is not in the list one day stands for a time that nobody knows.
  const quantity = BigInt(billed(found, sizeBytes)) * BigInt(days ?? 1)
  return storageLine(prices, { what, quantity, of: found })
}

function getLine({ classes }: RegionPrices, { storageClass, requests }: ReadGroup): Line {
  const { getNano } = classes.get(storageClass) ?? {}
  return requestLine(`requests to ${storageClass}`, requests, getNano)
}

function readLine({ classes, gbBytes }: RegionPrices, { storageClass, bytes }: ReadGroup): Line {
  const { readNano } = classes.get(storageClass) ?? {}
  const what = `reading from ${storageClass}`
  return { what, quantity: BigInt(bytes), nano: readNano, per: BigInt(gbBytes) }
}

function tierLines(
  prices: RegionPrices,
  of: { readonly group: ColdGroup; readonly tier: Tier; readonly days: number },
): Line[] {
  const { storageClass, objects, bytes } = of.group
  const found = prices.classes.get(storageClass)?.tiers.get(of.tier)
  const what = `retrieval from ${storageClass}`
  const standard = prices.classes.get('STANDARD')
  const copies = BigInt(bytes) * BigInt(Math.ceil(of.days))
  return [
    requestLine(`${what}, requests`, objects, found?.requestsNano),
    { what, quantity: BigInt(bytes), nano: found?.nano, per: BigInt(prices.gbBytes) },
    storageLine(prices, { what: 'copies of what was cold', quantity: copies, of: standard }),
  ]
}

function hoursOf(
  { classes }: RegionPrices,
  groups: readonly ColdGroup[],
  tier: Tier,
): number | undefined {
  let most = 0
  for (const { storageClass } of groups) {
    const hours = classes.get(storageClass)?.tiers.get(tier)?.hours
    if (hours === undefined) return undefined
    most = Math.max(most, hours)
  }
  return most
}

/** What goes out, by the bands of a month in which `usedBytes` went out before. */
function egressLines(
  { egress, gbBytes }: RegionPrices,
  bytes: number,
  { usedBytes = 0, storedBytes = bytes }: EgressOptions,
): Line[] {
  const per = BigInt(gbBytes)
  const what = 'egress'
  if (egress === undefined) return [{ what, quantity: BigInt(bytes), nano: undefined, per }]
  const free = Math.max(egress.freeGb * gbBytes, egress.freeTimesStored * storedBytes)
  let at = Math.max(usedBytes, free)
  const end = Math.max(usedBytes + bytes, free)
  const lines: Line[] = []
  for (const { upToGb, nano } of egress.bands) {
    const to = Math.min(end, upToGb === undefined ? Infinity : upToGb * gbBytes)
    if (to <= at) continue
    lines.push({ what, quantity: BigInt(to - at), nano, per })
    at = to
  }
  if (at < end) {
    const from = egress.bands.at(-1)?.upToGb ?? 0
    const beyond = { what: `egress beyond ${from} GB`, quantity: BigInt(end - at) }
    lines.push({ ...beyond, nano: undefined, per })
  }
  return lines
}
