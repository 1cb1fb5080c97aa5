// What reading from a bucket takes before the first byte: the estimate and the limit, and cold
// storage (docs/costs.md, docs/cold-storage.md).
//
// Called by backup-restore.ts with what is to be read; a verification asks
// lib/work/verify-bucket.ts. Prints a plan where something is cold.
// Throws COST_LIMIT, COLD_STORAGE and THAWING, which end the command before anything is written.

import type { S3TargetConfiguration } from '../lib/machine/config-targets.ts'
import { type RestoreOffer, restoreCost } from '../lib/model/cost.ts'
import { refuseOverLimit } from '../lib/model/cost-limit.ts'
import { describeRestore } from '../lib/model/cost-text.ts'
import { NO_PRICES, type RegionPrices, type Tier } from '../lib/model/prices.ts'
import { describeThawPlan, priceOfThaw } from '../lib/model/thaw-plan.ts'
import { dataBytes } from '../lib/model/entry.ts'
import type { Bucket } from '../lib/target/bucket.ts'
import type { Target } from '../lib/target/target.ts'
import { pricesOf } from '../lib/work/bucket-money.ts'
import { networkPath } from '../lib/work/bundle-address.ts'
import type { ExportReader } from '../lib/work/export-reader.ts'
import type { Selection } from '../lib/work/selection.ts'
import { DEFAULT_THAW_DAYS, type NeededBundle, planThaw, thawOrSay } from '../lib/work/thaw.ts'
import { type CommandContext, isGiven } from './command.ts'

interface Reading {
  readonly context: CommandContext
  readonly configuration: S3TargetConfiguration
  readonly target: Target
  readonly bucket: Bucket
}

/** A bucket that is read from, or undefined for any other target. */
export function readingOf(
  context: CommandContext,
  of: { readonly target: Target; readonly configuration: { readonly kind: string } },
): Reading | undefined {
  const { target, configuration } = of
  const { bucket } = target
  if (bucket === undefined || configuration.kind !== 's3') return undefined
  return { context, target, bucket, configuration: configuration as S3TargetConfiguration }
}

/**
 * Before a restore: everything that it needs can be read when this returns.
 * @throws BackupError COST_LIMIT, COLD_STORAGE, THAWING
 */
export async function makeReadable(
  reading: Reading,
  {
    reader,
    selection,
    tier,
  }: {
    readonly reader: ExportReader
    readonly selection: Selection
    /** `--thaw` */
    readonly tier: Tier | undefined
  },
): Promise<void> {
  const { context, target, bucket, configuration } = reading
  const { values, reporter, signal, now } = context
  const bundles = neededBundles({ reader, selection })
  if (bundles.length === 0) return
  const prices = await pricesOf(configuration, bucket)
  const offerOf = (plan: Parameters<typeof hotBytes>[0], by: Tier | undefined): RestoreOffer[] => {
    const cold = plan.coldByClass.map(({ storageClass, count, bytes }) => {
      return { storageClass, objects: count, bytes }
    })
    const bytes = Math.min(hotBytes(plan), wantedBytes(selection))
    const hot = [{ storageClass: 'STANDARD', requests: bundles.length * 2, bytes }]
    return restoreCost({ prices, cold, hot, days: DEFAULT_THAW_DAYS, tier: by })
  }
  const refuse = (offer: RestoreOffer | undefined): void => {
    if (offer === undefined) return
    const limit = configuration.costLimit
    refuseOverLimit(offer.cost, { what: 'the restore', target: target.name, limit })
  }
  const answer = await thawOrSay(target, {
    ...{ bundles, tier, isWaiting: isGiven(values, 'wait'), now, signal },
    report: reporter.report,
    priceOf: priceOfThaw(prices),
    approve: (plan, by) => refuse(offerOf(plan, by)[0]),
  })
  if (answer.kind === 'cold') for (const line of answer.lines) reporter.print(line)
  if (answer.kind !== 'ready') throw answer.error
  const [offer] = offerOf({ ...answer.plan, coldByClass: [] }, undefined)
  refuse(offer)
  if (offer !== undefined) tellEstimate(reading, { what: describeRestore(offer), prices })
}

function neededBundles({
  reader,
  selection,
}: {
  readonly reader: ExportReader
  readonly selection: Selection
}): readonly NeededBundle[] {
  const sizes = reader.bundleSizes()
  const { content } = selection
  const bundles = content.kind === 'bundles' ? content.bundles : []
  return bundles.flatMap(({ path: address }) => {
    const path = networkPath(address)
    return path === undefined ? [] : [{ path, sizeBytes: sizes.get(path) ?? 0 }]
  })
}

/** In a dry run: what would have to be thawed. Asks for nothing, and refuses nothing. */
export async function tellReadable(
  { context, target, bucket, configuration }: Reading,
  of: { readonly reader: ExportReader; readonly selection: Selection },
): Promise<void> {
  const bundles = neededBundles(of)
  const priceOf = priceOfThaw(await pricesOf(configuration, bucket))
  const plan = await planThaw(target, { bundles, priceOf, signal: context.signal })
  if (plan.cold.count + plan.thawing.count === 0) return
  for (const line of describeThawPlan(plan)) context.reporter.print(line)
}

interface Plan {
  readonly coldByClass: readonly {
    readonly storageClass: string
    readonly count: number
    readonly bytes: number
  }[]
  readonly hot: { readonly bytes: number }
  readonly thawed: { readonly bytes: number }
}

function hotBytes({ hot, thawed }: Plan): number {
  return hot.bytes + thawed.bytes
}

/** Only the frames that hold what is wanted are read: hardly more than that. */
function wantedBytes({ entries }: Selection): number {
  const bytes = entries.reduce((sum, entry) => sum + dataBytes(entry), 0)
  return Math.ceil(bytes * 1.1) + 2 ** 20
}

function tellEstimate(
  { context, target }: Reading,
  { what, prices }: { readonly what: string; readonly prices: RegionPrices },
): void {
  if (prices === NO_PRICES) return
  const message = `reading it from ${target.name} costs about ${what}`
  context.reporter.report({ kind: 'notice', level: 'info', code: 'COST_ESTIMATE', message })
}
