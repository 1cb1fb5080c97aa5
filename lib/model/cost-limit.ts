// The limit of a target's costs: what would cost more is refused before anything is spent.
//
// Called before an upload, a restore, a thaw or a prune begins, with a cost of cost.ts and the
// `cost_limit` of the configuration. Pure; refuseOverLimit throws COST_LIMIT.

import { BackupError } from '../errors.ts'
import { type Cost, isNothingKnown } from './cost.ts'
import { describeCost, formatMoney } from './cost-text.ts'

/**
 * Whether a cost is over a limit in the currency's unit. What is known decides: at the limit is not
 * over it. What is unknown counts as over only where nothing else is known, because a limit that
 * cannot be judged must not be passed by, and one gap in a list must not stop every backup.
 */
export function isOverLimit(cost: Cost, limit: number | undefined): boolean {
  if (limit === undefined) return false
  if (cost.micros > Math.round(limit * 1e6)) return true
  return isNothingKnown(cost)
}

/**
 * Refuses what costs more than a limit, before anything is spent.
 * @throws BackupError COST_LIMIT
 */
export function refuseOverLimit(
  cost: Cost,
  of: {
    /** `the upload`, `reading it back (Bulk)`. */
    readonly what: string
    readonly target: string
    readonly limit: number | undefined
  },
): void {
  const { what, target, limit } = of
  if (limit === undefined || !isOverLimit(cost, limit)) return
  const most = formatMoney(Math.round(limit * 1e6), cost.currency)
  const isKnown = cost.micros > 0
  const message = isKnown
    ? `target ${target}: ${what} would cost ${describeCost(cost)}, the limit is ${most}`
    : `target ${target}: what ${what} would cost is ${describeCost(cost)}, the limit is ${most}`
  const remedy = isKnown ? 'raise' : 'name a price list with `prices`, or raise or remove'
  throw new BackupError('COST_LIMIT', message, {
    hint: `${remedy} the target's \`cost_limit\`; nothing was spent, and everything is as it was`,
    facts: { target, micros: cost.micros, currency: cost.currency, unknown: cost.unknown, limit },
  })
}
