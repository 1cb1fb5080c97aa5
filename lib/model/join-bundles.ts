// Which short bundles of earlier exports are worth writing anew as one: the rule for compaction.
//
// The last data bundle of an export is short. Below `hot_below` it stays in the hot class, because
// cold storage charges for small objects and early deletion. Once short ones together fill a bundle
// that is large enough for the cold class, the next export packs what is still needed of them anew,
// from staging, and they go with the exports that name them. Deferred until it pays. Pure.

import { monthlyCost, type ObjectGroup, uploadCost } from './cost.ts'
import type { RegionPrices } from './prices.ts'

/** A data bundle of an earlier export that the next one still needs. */
export interface ShortBundle {
  /** `<set>/<stamp>/data-NNNN` */
  readonly name: string
  /** As it is stored. */
  readonly sizeBytes: number
  /** What is still needed of it, in stored bytes: its share of the size. */
  readonly neededBytes: number
  readonly stamp: string
}

export interface JoinRules {
  /** Bundles below this stay hot. */
  readonly hotBelowBytes: number
  /** No bundle becomes larger. */
  readonly bundleSizeBytes: number
  /** Whether writing these anew costs less than it saves (docs/cold-storage.md). */
  readonly pays: (join: BundleJoin) => boolean
}

export interface BundleJoin {
  /** Oldest first. */
  readonly bundles: readonly ShortBundle[]
  /** What the joined bundle will take. */
  readonly bytes: number
}

/**
 * Packed anew, the same content compresses a little differently. Without this much to spare the
 * joined bundle could fall short itself, and would be joined again and again.
 */
const MARGIN = 1.05

/**
 * The short bundles to join now; undefined: not yet, or not at all. The oldest come first: what has
 * been needed for long will be needed for long.
 */
export function bundlesToJoin(
  bundles: readonly ShortBundle[],
  { hotBelowBytes, bundleSizeBytes, pays }: JoinRules,
): BundleJoin | undefined {
  const goalBytes = hotBelowBytes * MARGIN
  // Then no bundle is ever large enough for the cold class.
  if (goalBytes > bundleSizeBytes) return undefined
  const short = bundles
    .filter(({ sizeBytes, neededBytes }) => sizeBytes < hotBelowBytes && neededBytes > 0)
    .sort((a, b) => (a.stamp + a.name < b.stamp + b.name ? -1 : 1))
  const joined: ShortBundle[] = []
  let bytes = 0
  for (const bundle of short) {
    if (bytes + bundle.neededBytes > bundleSizeBytes) continue
    joined.push(bundle)
    bytes += bundle.neededBytes
  }
  if (bytes < goalBytes) return undefined
  const join = { bundles: joined, bytes }
  return pays(join) ? join : undefined
}

/** So far it looks ahead, as a rewrite does: backups are kept for years, prices are not. */
const HORIZON_MONTHS = 12

/**
 * Whether a year in the cold class costs less, the upload included, than leaving the short ones
 * where they are. Where a price is missing it does not: nothing is lost by waiting. The hot class
 * has no fee for deleting early.
 */
export function joiningPays(
  { bundles, bytes }: BundleJoin,
  { prices, storageClass }: { readonly prices: RegionPrices; readonly storageClass: string },
): boolean {
  const group = (of: Omit<ObjectGroup, 'kind'>): readonly [ObjectGroup] => [{ kind: 'data', ...of }]
  const shortBytes = bundles.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
  const hot = group({ storageClass: 'STANDARD', objects: bundles.length, bytes: shortBytes })
  const joined = group({ storageClass, objects: 1, bytes: Math.ceil(bytes) })
  const before = monthlyCost({ prices, stored: hot, besides: [] }).total
  const after = monthlyCost({ prices, stored: joined, besides: [] }).total
  const upload = uploadCost({ prices, groups: joined })
  if (!(before.known && after.known && upload.known)) return false
  return upload.micros < (before.micros - after.micros) * HORIZON_MONTHS
}
