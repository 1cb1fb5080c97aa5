// Costs in words: short texts for reports, messages and notifications.
//
// cost.ts computes them. What is not known is said, with what is missing. No text ends in a period.
// Pure; throws nothing.

import {
  type Cost,
  isNothingKnown,
  type MonthlyCost,
  type PruneCost,
  type RestoreOffer,
} from './cost.ts'
import type { RegionPrices } from './prices.ts'

/** `$0.012`, `at least $0.012 (unknown: egress)`, `unknown (no price for egress)`. */
export function describeCost(cost: Cost): string {
  const money = formatMoney(cost.micros, cost.currency)
  if (cost.known) return money
  const missing = cost.unknown.join(', ')
  if (isNothingKnown(cost)) return `unknown (no price for ${missing})`
  return `at least ${money} (unknown: ${missing})`
}

/** `$0.23 a month (data $0.22, metadata $0.01)`. */
export function describeMonthly({ total, data, metadata }: MonthlyCost): string {
  if (!total.known) return `${describeCost(total)} a month`
  const parts = [`data ${describeCost(data)}`, `metadata ${describeCost(metadata)}`]
  const base = total.micros - data.micros - metadata.micros
  if (base > 0) parts.push(`base price ${formatMoney(base, total.currency)}`)
  return `${describeCost(total)} a month (${parts.join(', ')})`
}

/** `$0.012 to upload, $0.23 a month (data $0.22, metadata $0.01)`. */
export function describeUpload(upload: Cost, monthly: MonthlyCost): string {
  return `${describeCost(upload)} to upload, ${describeMonthly(monthly)}`
}

/** `Bulk: $1.20, of it $0.90 egress, within 48 h`. */
export function describeRestore({ tier, hours, cost, egress }: RestoreOffer): string {
  const out =
    egress.known && egress.micros > 0
      ? `, of it ${formatMoney(egress.micros, egress.currency)} egress`
      : ''
  if (tier === undefined) return `${describeCost(cost)}${out}`
  const wait = hours === undefined ? 'after an unknown time' : `within ${formatHours(hours)}`
  return `${tier}: ${describeCost(cost)}${out}, ${wait}`
}

/** `saves $0.20 a month; deleting 3 objects early costs $0.05, in 34 days nothing`. */
export function describePrune(prune: PruneCost): string {
  const saves = `saves ${describeCost(prune.savesMonthly)} a month`
  if (prune.earlyObjects === 0) return saves
  const objects = prune.earlyObjects === 1 ? '1 object' : `${prune.earlyObjects} objects`
  const fee = `deleting ${objects} early costs ${describeCost(prune.earlyDeletion)}`
  if (prune.freeInDays === undefined) return `${saves}; ${fee}`
  const days = prune.freeInDays === 1 ? '1 day' : `${prune.freeInDays} days`
  return `${saves}; ${fee}, in ${days} nothing`
}

/** `prices of 2026-05`, `prices of 2025-10 to 2026-09`, `no prices for this service`. */
export function describePrices({ provider, oldest, newest }: RegionPrices): string {
  if (oldest === undefined || newest === undefined) return `no prices for ${provider}`
  const [from, to] = [oldest.slice(0, 7), newest.slice(0, 7)]
  return from === to ? `prices of ${from}` : `prices of ${from} to ${to}`
}

const SYMBOLS: Readonly<Record<string, string>> = { USD: '$', EUR: '€', GBP: '£' }

/**
 * `$12.34`; below ten cents two digits that count: `$0.012`, `$0.0051`; `CHF 3.10`. Rounded half
 * up.
 */
export function formatMoney(micros: number, currency: string): string {
  const symbol = SYMBOLS[currency] ?? (currency === '' ? '' : `${currency} `)
  if (micros === 0) return `${symbol}0`
  let step = 10_000
  let decimals = 2
  for (; step > 1 && micros < step * 10; decimals++) step /= 10
  const rounded = Math.floor((micros + step / 2) / step) * step
  const whole = Math.floor(rounded / 1e6)
  const fraction = String(rounded % 1e6)
    .padStart(6, '0')
    .slice(0, decimals)
  return `${symbol}${whole}.${fraction.replace(/0+$/, '').padEnd(2, '0')}`
}

function formatHours(hours: number): string {
  return hours < 1 ? `${Math.round(hours * 60)} min` : `${Math.round(hours)} h`
}
