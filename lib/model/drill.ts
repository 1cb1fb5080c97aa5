// What a drill reads: how large its sample is, and which items are in it.
//
// lib/work/drill.ts applies it to runs of file content, or to bundles where nothing can be
// decrypted; docs/receipts.md is the normative text. The same items, seed and limits give the same
// sample on every machine, so that a receipt can be checked. Pure; throws nothing.

import { createHash } from 'node:crypto'

const DAY_MS = 86_400_000

/** Right after everything was verified there is little to doubt … */
const LEAST_SHARE = 0.01
/** … each day since then adds so much … */
const SHARE_A_DAY = 0.01
/** … up to this, which is also for what was never verified. */
const MOST_SHARE = 0.25

/** A drill runs while somebody waits to unplug the drive. */
export const DRILL_BUDGET_BYTES = 2 ** 30

/** Each small file costs a seek and a frame of up to 4 MiB, however few bytes it has. */
export const DRILL_BUDGET_FILES = 2000

/** So many at least, of each set, or it says nothing. */
export const LEAST_FILES = 10

/** Of a longer file runs of about this length are drawn, each for itself. */
export const RUN_BYTES = 16 * 2 ** 20

export interface SampleItem {
  /** Unlike that of all other items. */
  readonly key: string
  readonly bytes: number
}

export interface SampleLimits {
  /** Once the sample has as many bytes as this, nothing more is taken. */
  readonly limitBytes: number
  /** Taken whatever they weigh. */
  readonly minItems: number
  readonly maxItems: number
}

/**
 * The share of all bytes that a drill reads: 1 % right after a full verification, 1 % more for each
 * day since, at most 25 %, which is also that of what was never verified.
 */
export function sampleShare({
  nowMs,
  lastFullMs,
}: {
  readonly nowMs: number
  /** When everything was last verified and found good; undefined: never. */
  readonly lastFullMs: number | undefined
}): number {
  if (lastFullMs === undefined) return MOST_SHARE
  const days = Math.max(0, nowMs - lastFullMs) / DAY_MS
  return Math.min(MOST_SHARE, LEAST_SHARE + days * SHARE_A_DAY)
}

/** What a drill's sample is drawn by: the same all day (UTC), another one tomorrow. */
export function drillSeed({
  repository,
  nowMs,
}: {
  readonly repository: string
  readonly nowMs: number
}): string {
  return `${repository}/${new Date(nowMs).toISOString().slice(0, 10)}`
}

/**
 * The first items in the order of SHA-256 of `<seed>/<key>`, until the limits are reached: no item
 * is likelier than another, however large it is. A sample of samples is the sample of all, so a
 * long list can be gone through in parts.
 */
export function chooseSample<Item extends SampleItem>(
  items: readonly Item[],
  { seed, limitBytes, minItems, maxItems }: SampleLimits & { readonly seed: string },
): readonly Item[] {
  const ranked = items
    .map((item) => ({ item, rank: sha256(`${seed}/${item.key}`) }))
    .sort((a, b) => (a.rank < b.rank ? -1 : a.rank > b.rank ? 1 : 0))
  const sample: Item[] = []
  let bytes = 0
  for (const { item } of ranked) {
    const isEnough = bytes >= limitBytes && sample.length >= minItems
    if (isEnough || sample.length >= maxItems) break
    sample.push(item)
    bytes += item.bytes
  }
  return sample
}

function sha256(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}

/**
 * Cuts pieces into runs of about RUN_BYTES: `[start, end)` indexes. What is not longer is one run.
 */
export function cutRuns(
  pieces: readonly (readonly [id: string, bundle: number, offset: number, length: number])[],
): (readonly [start: number, end: number])[] {
  const runs: (readonly [number, number])[] = []
  let start = 0
  let bytes = 0
  for (const [i, [, , , length]] of pieces.entries()) {
    bytes += length
    if (bytes < RUN_BYTES && i < pieces.length - 1) continue
    runs.push([start, i + 1])
    start = i + 1
    bytes = 0
  }
  return runs
}
