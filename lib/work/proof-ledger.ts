// When each bundle of a repository was last read whole and found to be what was signed, and how.
//
// Kept in `.state/repositories/<id>/proofs.json`, beside what known-damage.ts knows, and fed by
// every verification. What was found damaged is taken out: it was never proven. A proof is of the
// bytes that a SHA-256 names; under the same path others are another bundle. A cache: lost, nothing
// counts as proven. Throws STAGING_FULL, STAGING_FAILED, LOCKED; a damaged file counts as lost.

import type { Receipt } from '../model/receipt.ts'
import { changeRecord, readRecord, type RecordPlace } from './repository-record.ts'

const FILE = 'proofs.json'

export interface BundleProof {
  readonly sha256: string
  readonly bytes: number
  /** When the bytes were last compared with the checksum, in milliseconds since 1970. */
  readonly checkedMs: number
  /** When the content was last decrypted and compared, too; undefined: never. */
  readonly restoredMs: number | undefined
}

/** By path in the repository, `machines/…`. */
export type ProofLedger = ReadonlyMap<string, BundleProof>

/** A bundle that was read whole, and is what was signed. */
export interface ReadWhole {
  readonly path: string
  readonly sha256: string
  readonly bytes: number
  readonly atMs: number
  readonly how: Receipt['how']
}

/** What is known to be proven. */
export function readProofs(place: RecordPlace): ProofLedger {
  const value = readRecord(place, FILE)
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return new Map()
  const proofs = Object.entries(value).flatMap(([path, proof]) => {
    const parsed = parseProof(proof)
    return parsed === undefined ? [] : [[path, parsed] as const]
  })
  return new Map(proofs)
}

function parseProof(value: unknown): BundleProof | undefined {
  if (!Array.isArray(value)) return undefined
  const [sha256, bytes, checkedMs, restoredMs, ...rest] = value as readonly unknown[]
  const isText = typeof sha256 === 'string' && /^[0-9a-f]{64}$/.test(sha256)
  if (!isText || !isCount(bytes) || !isCount(checkedMs) || rest.length > 0) return undefined
  if (restoredMs === undefined) return { sha256, bytes, checkedMs, restoredMs }
  return isCount(restoredMs) ? { sha256, bytes, checkedMs, restoredMs } : undefined
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && Number(value) >= 0
}

/**
 * When a bundle was last proven as closely as `how` says; undefined: never, or other bytes were.
 */
export function provenMs(
  ledger: ProofLedger,
  {
    path,
    sha256,
    how,
  }: { readonly path: string; readonly sha256: string; readonly how: Receipt['how'] },
): number | undefined {
  const proof = ledger.get(path)
  if (proof?.sha256 !== sha256) return undefined
  return how === 'restored' ? proof.restoredMs : proof.checkedMs
}

/**
 * Adds what was read whole, and takes away what was found damaged.
 * @param change.isKept whether a bundle is still worth a line; all are where nothing is said
 * @throws BackupError STAGING_FULL, STAGING_FAILED, LOCKED
 */
export function noteProofs(
  place: RecordPlace,
  change: {
    readonly whole: readonly ReadWhole[]
    readonly damaged: Iterable<string>
    readonly isKept?: (path: string) => boolean
  },
): void {
  const { whole, damaged, isKept = () => true } = change
  changeRecord(place, FILE, () => {
    const before = readProofs(place)
    const after = new Map(before)
    for (const read of whole) after.set(read.path, withReading(before.get(read.path), read))
    for (const path of damaged) after.delete(path)
    for (const path of before.keys()) if (!isKept(path)) after.delete(path)
    return { before: encode(before), after: encode(after) }
  })
}

function withReading(
  before: BundleProof | undefined,
  { sha256, bytes, atMs, how }: ReadWhole,
): BundleProof {
  const known = before?.sha256 === sha256 ? before.restoredMs : undefined
  const restoredMs = how === 'restored' ? atMs : known
  return { sha256, bytes, checkedMs: atMs, restoredMs }
}

function encode(ledger: ProofLedger): string {
  const lines = [...ledger]
    .sort(([one], [other]) => (one < other ? -1 : 1))
    .map(([path, { sha256, bytes, checkedMs, restoredMs }]) => {
      const proof = [sha256, bytes, checkedMs, ...(restoredMs === undefined ? [] : [restoredMs])]
      return [path, proof]
    })
  return JSON.stringify(Object.fromEntries(lines))
}
