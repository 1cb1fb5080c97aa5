// What verifying a bucket takes before the first bundle is read: what lies in cold storage, what
// reading the rest costs, and the limit (docs/costs.md, docs/cold-storage.md).
//
// proof.ts asks here; restoring has commands/restore-bucket.ts. Nothing is ever thawed for a
// verification. Throws COST_LIMIT, and what listing the bucket throws.

import type { S3TargetConfiguration } from '../machine/config-targets.ts'
import { verifyCost } from '../model/cost.ts'
import { refuseOverLimit } from '../model/cost-limit.ts'
import { describeCost } from '../model/cost-text.ts'
import { NO_PRICES } from '../model/prices.ts'
import type { Report } from '../model/report.ts'
import type { Target } from '../target/target.ts'
import { pricesOf } from './bucket-money.ts'
import type { KnownBundle } from './verify.ts'

/** Bytes that one ranged request fetches. */
const REQUEST_BYTES = 2 ** 23

/** So many are named in a message; --json names all. */
const BUNDLES_SHOWN = 10

/**
 * Says what reading these costs.
 * @throws BackupError COST_LIMIT where that is more than the target's `cost_limit`
 */
export async function approveVerifying(
  target: Target,
  {
    configuration,
    bundles,
    report,
  }: {
    readonly configuration: S3TargetConfiguration
    readonly bundles: readonly Pick<KnownBundle, 'bytes'>[]
    readonly report: Report
  },
): Promise<void> {
  const { bucket, name } = target
  if (bucket === undefined) return
  const prices = await pricesOf(configuration, bucket)
  const bytes = bundles.reduce((sum, bundle) => sum + bundle.bytes, 0)
  const requests = Math.ceil(bytes / REQUEST_BYTES) + bundles.length
  const cost = verifyCost({ prices, read: [{ storageClass: 'STANDARD', requests, bytes }] })
  const limit = configuration.costLimit
  refuseOverLimit(cost, { what: 'the verification', target: name, limit })
  if (prices === NO_PRICES) return
  const message = `reading it from ${name} costs about ${describeCost(cost)}`
  report({ kind: 'notice', level: 'info', code: 'COST_ESTIMATE', message })
}

/** Names what cannot be read: a warning where all was to be read. */
export function tellCold(
  { name }: Target,
  {
    paths,
    isWarning,
    report,
  }: { readonly paths: readonly string[]; readonly isWarning: boolean; readonly report: Report },
): void {
  if (paths.length === 0) return
  const named = paths.slice(0, BUNDLES_SHOWN).join(', ')
  const more = paths.length - BUNDLES_SHOWN
  const rest = more > 0 ? ` and ${more} more (--json names all)` : ''
  const where = `in cold storage at ${name}`
  const message = `${paths.length} bundles are ${where} and are not read: ${named}${rest}`
  const level = isWarning ? 'warning' : 'info'
  report({ kind: 'notice', level, code: 'COLD_STORAGE', message, facts: { paths } })
}
