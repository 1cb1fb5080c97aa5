// Which bundles a verification reads now, and since when everything was proven.
//
// lib/work/proof.ts gives it what a target has and what the ledger says of it
// (lib/work/proof-ledger.ts). The oldest proof comes first, and before it what was never proven; so
// whatever budget there is, in the end everything has its turn. Pure; throws nothing.

import { chooseSample } from './drill.ts'

export type ProofChoice =
  /** Whatever the limits leave, oldest proof first. */
  | { readonly kind: 'all' }
  /** Only what was last proven longer ago than this, or never. */
  | { readonly kind: 'older'; readonly olderThanMs: number }
  /** So much of all bytes, from 0 to 1, drawn by the seed. */
  | { readonly kind: 'sample'; readonly share: number; readonly seed: string }

export interface ProvenBundle {
  /** In the repository. */
  readonly path: string
  readonly bytes: number
  /** When it was last read and found whole; undefined: never. */
  readonly provenMs: number | undefined
  /** Whether it is not as long as was signed, so that it is looked at whatever the choice. */
  readonly isSuspect: boolean
}

export interface ProofLimits {
  /** Bundles are taken as long as they fit; the first one always. */
  readonly limitBytes: number | undefined
  readonly nowMs: number
}

/** The bundles to be read, in this order. */
export function planProof<Bundle extends ProvenBundle>(
  bundles: readonly Bundle[],
  { choice, limitBytes = Infinity, nowMs }: ProofLimits & { readonly choice: ProofChoice },
): readonly Bundle[] {
  const suspect = bundles.filter(({ isSuspect }) => isSuspect)
  const others = bundles.filter(({ isSuspect }) => !isSuspect)
  const planned: Bundle[] = []
  let bytes = 0
  for (const bundle of [...suspect, ...chosen(others, { choice, nowMs })]) {
    // Nothing overtakes what does not fit: it would never have its turn.
    if (planned.length > 0 && bytes + bundle.bytes > limitBytes) break
    planned.push(bundle)
    bytes += bundle.bytes
  }
  return planned
}

function chosen<Bundle extends ProvenBundle>(
  bundles: readonly Bundle[],
  { choice, nowMs }: { readonly choice: ProofChoice; readonly nowMs: number },
): readonly Bundle[] {
  if (choice.kind === 'sample') {
    const totalBytes = bundles.reduce((sum, bundle) => sum + bundle.bytes, 0)
    const limitBytes = totalBytes * choice.share
    const items = bundles.map((bundle) => ({ bundle, key: bundle.path, bytes: bundle.bytes }))
    const limits = { seed: choice.seed, limitBytes, minItems: 1, maxItems: Infinity }
    return chooseSample(items, limits).map(({ bundle }) => bundle)
  }
  const before = choice.kind === 'all' ? Infinity : nowMs - choice.olderThanMs
  const timeOf = (bundle: Bundle): number => believed(bundle.provenMs, nowMs) ?? -Infinity
  return bundles
    .filter((bundle) => timeOf(bundle) < before)
    .sort((one, other) => {
      const [a, b] = [timeOf(one), timeOf(other)]
      return a === b ? (one.path < other.path ? -1 : 1) : a - b
    })
}

/**
 * Since when all of some bundles were proven: the oldest of their proofs. Undefined where one was
 * never proven.
 */
export function provenSince(
  provenMs: readonly (number | undefined)[],
  nowMs: number,
): number | undefined {
  let since = nowMs
  for (const timeMs of provenMs) {
    const believedMs = believed(timeMs, nowMs)
    if (believedMs === undefined) return undefined
    since = Math.min(since, believedMs)
  }
  return since
}

/** A proof that is dated ahead was dated by a wrong clock: nobody knows how old it is. */
function believed(timeMs: number | undefined, nowMs: number): number | undefined {
  return timeMs === undefined || timeMs > nowMs ? undefined : timeMs
}
