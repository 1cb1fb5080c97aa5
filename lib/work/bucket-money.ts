// What work on a bucket costs: the estimate before it, the limit, and the bill after it.
//
// external.ts asks before an export, target-end.ts tells after it; restore and prune ask through
// their commands. lib/model/cost.ts computes, from the price list of the target. Throws COST_LIMIT,
// CONFIG_INVALID for a price list that is wrong, and what the bucket throws.

import type { S3TargetConfiguration } from '../machine/config-targets.ts'
import { loadPriceList } from '../machine/price-list.ts'
import {
  type Cost,
  type MonthlyCost,
  type ObjectGroup,
  type PricedObject,
  addCosts,
  groupObjects,
  monthlyCost,
  paysToRewrite,
  pruneCost,
  runCost,
  uploadCost,
  verifyCost,
} from '../model/cost.ts'
import { refuseOverLimit } from '../model/cost-limit.ts'
import { describePrices, describePrune, describeUpload } from '../model/cost-text.ts'
import { NO_PRICES, type RegionPrices, pricesFor } from '../model/prices.ts'
import { type BundleJoin, bundlesToJoin, joiningPays } from '../model/join-bundles.ts'
import type { Report } from '../model/report.ts'
import { parseStamp } from '../model/stamp.ts'
import type { Bucket, BucketUsage } from '../target/bucket.ts'
import { MANIFEST } from '../model/verification.ts'
import { PART_BYTES } from '../target/s3-upload.ts'
import type { BundleUse, Compaction } from './bundle-table.ts'
import type { PrunePlan } from './prune.ts'
import { directoryOf } from './repository.ts'

/** Catalog, verification file, its signature, manifest. */
const SMALL_OBJECTS = 4

/** What a run on a bucket did cost, and what the bucket costs a month. */
export interface BucketBill {
  readonly spent: Cost
  readonly monthly: MonthlyCost
  readonly prices: RegionPrices
}

/** The prices of a target's service and region. @throws BackupError CONFIG_INVALID */
export async function pricesOf(
  target: S3TargetConfiguration,
  bucket: Bucket,
): Promise<RegionPrices> {
  const list = await loadPriceList(
    target.pricesPath === undefined ? {} : { path: target.pricesPath },
  )
  const { endpoint, region } = target
  const known = pricesFor(list, { endpoint, region })
  if (known !== undefined || region !== undefined) return known ?? NO_PRICES
  const location = await bucket.calls.getLocation().catch(() => undefined)
  if (location === undefined || location === 'unsupported') return NO_PRICES
  return pricesFor(list, { endpoint, region: location }) ?? NO_PRICES
}

/** Money on a bucket during a run. */
export class BucketMoney {
  readonly #target: S3TargetConfiguration
  readonly #bucket: Bucket
  readonly #prices: RegionPrices
  readonly #before: BucketUsage

  private constructor(of: {
    readonly target: S3TargetConfiguration
    readonly bucket: Bucket
    readonly prices: RegionPrices
  }) {
    this.#target = of.target
    this.#bucket = of.bucket
    this.#prices = of.prices
    this.#before = of.bucket.usage()
  }

  /** From now on. @throws BackupError CONFIG_INVALID */
  static async open(target: S3TargetConfiguration, bucket: Bucket): Promise<BucketMoney> {
    return new BucketMoney({ target, bucket, prices: await pricesOf(target, bucket) })
  }

  /**
   * Before an export of about so many bytes.
   * @throws BackupError COST_LIMIT: nothing was spent
   */
  async approveUpload(
    { set, bytes }: { set: string; bytes: number },
    report: Report,
  ): Promise<void> {
    const { bundleSizeBytes, name, costLimit } = this.#target
    // A service of one's own: there is nothing to say.
    if (this.#prices === NO_PRICES && costLimit === undefined) return
    const bundles = Math.max(1, Math.ceil(bytes / bundleSizeBytes))
    const sizeBytes = Math.ceil(bytes / bundles)
    const data = Array.from({ length: bundles }, (): PricedObject => {
      return { ...this.#classed('machines/m/s/t/data-0001.tar.zst.age', sizeBytes), kind: 'data' }
    })
    const small = Array.from({ length: SMALL_OBJECTS }, (): PricedObject => {
      return { storageClass: 'STANDARD', kind: 'metadata', sizeBytes: 1024 }
    })
    const groups = this.#group([...data, ...small])
    const prices = this.#prices
    const sending = uploadCost({ prices, groups })
    // What the service does not check is read back, and that is paid for.
    const { multipartChecksum } = await this.#bucket.capabilities()
    const requests = Math.ceil(bytes / PART_BYTES) + bundles
    const back = [{ storageClass: 'STANDARD', requests, bytes }]
    const upload =
      multipartChecksum === 'crc32'
        ? sending
        : addCosts([sending, verifyCost({ prices, read: back })])
    const monthly = monthlyCost({ prices: this.#prices, stored: groups, besides: [] })
    const message =
      `${set} → ${name}: about ${describeUpload(upload, monthly)} more; `
      + describePrices(this.#prices)
    const facts = { micros: upload.micros, monthlyMicros: monthly.total.micros, bytes }
    report({ kind: 'notice', level: 'info', code: 'COST_ESTIMATE', message, facts })
    refuseOverLimit(upload, { what: 'the upload', target: name, limit: costLimit })
  }

  /** Which bundles are worth writing anew: docs/cold-storage.md. */
  compaction(nowMs: number): Compaction {
    const { storageClass, hotBelowBytes, bundleSizeBytes } = this.#target
    const prices = this.#prices
    const pays = ({ name, sizeBytes, neededBytes }: BundleUse): boolean => {
      const classed = this.#classed(`machines/m/${name}.tar.zst.age`, sizeBytes)
      const ageDays = Math.max(0, (nowMs - (parseStamp(stampOf(name)) ?? nowMs)) / DAY_MS)
      // Where a price is missing the rule of all targets holds.
      return paysToRewrite({ prices, ...classed, ageDays, neededBytes }).pays !== false
    }
    const join = (uses: readonly BundleUse[]): readonly string[] => {
      if (storageClass === 'STANDARD') return []
      const short = uses.map((use) => ({ ...use, stamp: stampOf(use.name) }))
      const joinPays = (one: BundleJoin) => joiningPays(one, { prices, storageClass })
      const found = bundlesToJoin(short, { hotBelowBytes, bundleSizeBytes, pays: joinPays })
      return found?.bundles.map(({ name }) => name) ?? []
    }
    return { pays, join }
  }

  /**
   * After a run: what it spent, and what all that is there costs a month.
   * Undefined where no price list knows the service.
   * @param exported directories of the exports that it made, `machines/…`
   */
  async bill(exported: readonly string[]): Promise<BucketBill | undefined> {
    const prices = this.#prices
    if (prices === NO_PRICES) return undefined
    const below = exported.map((directory) => this.#bucket.keyOf(`${directory}/`))
    const objects = (await this.#bucket.calls.list(this.#bucket.keyOf(''))).map(
      ({ key, sizeBytes, storageClass }) => {
        const kind: PricedObject['kind'] = /\/data-[^/]+$/.test(key) ? 'data' : 'metadata'
        return { key, storageClass, sizeBytes, kind }
      },
    )
    const ours = objects.filter(({ key }) => below.some((prefix) => key.startsWith(prefix)))
    const usage = difference(this.#bucket.usage(), this.#before)
    const { spent } = runCost({ prices, usage, uploaded: this.#group(ours) })
    const monthly = monthlyCost({ prices, stored: this.#group(objects) })
    return { spent, monthly, prices }
  }

  #classed(
    path: string,
    sizeBytes: number,
  ): { readonly storageClass: string; readonly sizeBytes: number } {
    return { storageClass: this.#bucket.storageClassFor(path, sizeBytes), sizeBytes }
  }

  #group(objects: readonly PricedObject[]): readonly ObjectGroup[] {
    return groupObjects(objects, { prices: this.#prices, partBytes: PART_BYTES })
  }
}

/**
 * What a pruning saves and costs.
 * @returns undefined where no price list knows the service; `refuse` throws COST_LIMIT
 */
export async function priceOfPruning(of: {
  readonly bucket: Bucket
  readonly target: S3TargetConfiguration
  readonly planned: PrunePlan
  readonly nowMs: number
}): Promise<{ readonly text: string; readonly refuse: () => void } | undefined> {
  const { bucket, target, planned, nowMs } = of
  const prices = await pricesOf(target, bucket)
  if (prices === NO_PRICES && target.costLimit === undefined) return undefined
  const paths = [
    ...planned.exports.map((place) => `${directoryOf(place)}/${MANIFEST}`),
    ...planned.leftovers.flatMap(({ directory, names }) => {
      return names.map((name) => `${directory}/${name}`)
    }),
  ]
  const going = new Set(paths.map((path) => bucket.keyOf(path)))
  const all = going.size === 0 ? [] : await bucket.adminCalls.list(bucket.keyOf('machines/'))
  const objects = all.flatMap(({ key, storageClass, sizeBytes, lastModifiedMs }) => {
    const ageDays = Math.max(0, (nowMs - lastModifiedMs) / DAY_MS)
    return going.has(key) ? [{ storageClass, sizeBytes, ageDays }] : []
  })
  const cost = pruneCost({ prices, objects })
  const { name, costLimit: limit } = target
  return {
    text: `${describePrune(cost)} (${describePrices(prices)})`,
    refuse: () => refuseOverLimit(cost.earlyDeletion, { what: 'the pruning', target: name, limit }),
  }
}

const DAY_MS = 86_400_000

/** Of a bundle name. */
function stampOf(name: string): string {
  return name.split('/')[1] ?? ''
}

function difference(now: BucketUsage, before: BucketUsage): BucketUsage {
  return {
    writes: now.writes - before.writes,
    lists: now.lists - before.lists,
    reads: now.reads - before.reads,
    bytesSent: now.bytesSent - before.bytesSent,
    bytesReceived: now.bytesReceived - before.bytesReceived,
  }
}
