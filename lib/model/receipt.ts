// A receipt: the signed record of what was read back from a target, when, and with what result.
//
// Every claim of `backup status` about proof names one. lib/work/receipts.ts writes, signs and
// reads them; docs/receipts.md is the normative text. Pure; throws nothing.

export interface Receipt {
  readonly format: 1
  /**
   * A drill restores a sample; a verification checks all of the exports it names, and `partial`
   * only some of their bundles.
   */
  readonly kind: 'drill' | 'verification' | 'partial'
  readonly machine: string
  readonly target: string
  /** Of a pool: which drive. */
  readonly drive: string | undefined
  /** The repository's id. */
  readonly repository: string
  /** `<machine>/<set>/<stamp>` of each export that was looked at. */
  readonly exports: readonly string[]
  /** ISO 8601, UTC. */
  readonly start: string
  readonly end: string
  /**
   * Of a verification that was done in several runs: when the first of its bundles was read. What
   * was read is counted from then on.
   */
  readonly since?: string | undefined
  /**
   * Restored: content was decrypted and compared with the digests of the signed catalog. Checksums:
   * bundles were compared with the signed verification file, which takes no identity.
   */
  readonly how: 'restored' | 'checksums'
  /** What was read, and what there was of it. */
  readonly bundles: number
  readonly files: number
  readonly bytes: number
  readonly totalBytes: number
  /** What the sample was drawn by: docs/receipts.md says how; undefined where all was read. */
  readonly seed: string | undefined
  readonly result: 'good' | 'damaged'
  /** What was damaged, at most a hundred: paths of bundles, or `<export>: <path>` of files. */
  readonly damaged: readonly string[]
}

/** Since when everything that a receipt claims was read, in milliseconds since 1970. */
export function provenMsOf({ since, end }: Pick<Receipt, 'since' | 'end'>): number {
  return Date.parse(since ?? end)
}

/** What a kind is called in messages. */
export function describeKind(kind: Receipt['kind']): string {
  return kind === 'partial' ? 'partial verification' : kind
}
