// Which generations stay and which go (design invariants 4 and 5). Pure: no clock, no names but the
// stamps' order.
//
// Used for collections in staging and exports in a repository alike, only after a run is proven.
// The newest complete generation always stays; an incomplete one goes only when it is older than
// everything kept that is complete.

import assert from 'node:assert/strict'
import type { Stamp } from './stamp.ts'

export interface Generation {
  readonly stamp: Stamp
  readonly complete: boolean
}

/** How many periods of a kind keep their newest generation; `all` is for ever. */
export type KeepCount = number | 'all'

/** Which generations stay besides the newest so many. */
export interface KeepRules {
  readonly last?: KeepCount
  readonly hourly?: KeepCount
  readonly daily?: KeepCount
  readonly weekly?: KeepCount
  readonly monthly?: KeepCount
  readonly yearly?: KeepCount
  /** Counted back from the newest complete generation, never from the clock. */
  readonly withinMs?: number
}

export interface RetentionPlan {
  /** Oldest first, both. */
  readonly keep: readonly Stamp[]
  readonly remove: readonly Stamp[]
}

/**
 * Keeps the `keep` newest complete generations and every incomplete one that is not older than all
 * of them.
 */
export function planRetention({
  items,
  keep,
}: {
  items: readonly Generation[]
  keep: number
}): RetentionPlan {
  assert(Number.isInteger(keep) && keep >= 1, 'at least one generation is kept')
  const sorted = [...items].sort((a, b) => (a.stamp < b.stamp ? -1 : a.stamp > b.stamp ? 1 : 0))
  const complete = sorted.filter((item) => item.complete)
  const oldestKept = complete.length < keep ? undefined : complete[complete.length - keep]?.stamp
  const stays = ({ stamp }: Generation): boolean => oldestKept === undefined || stamp >= oldestKept
  const plan = {
    keep: sorted.filter((item) => stays(item)).map(({ stamp }) => stamp),
    remove: sorted.filter((item) => !stays(item)).map(({ stamp }) => stamp),
  }
  const newest = complete.at(-1)?.stamp
  assert(newest === undefined || plan.keep.includes(newest), 'the newest complete generation stays')
  return plan
}
