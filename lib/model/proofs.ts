// What receipts prove of a target: the last proof of each kind, and damage that still stands.
//
// lib/work/receipts.ts reads receipts and believes the signed ones; lib/work/status.ts asks here.
// Damage stands until a verification was good: a drill and a partial verification read a sample,
// and may have missed what was damaged. Pure; throws nothing.

import { provenMsOf, type Receipt } from './receipt.ts'

/**
 * The receipts of a target, or of one of its drives, oldest first as they came: those of the
 * repository that is there now. Without `repository` that is the one of the newest receipt.
 */
export function receiptsOf(
  receipts: readonly Receipt[],
  {
    target,
    drive,
    repository,
  }: {
    readonly target: string
    readonly drive: string | undefined
    readonly repository: string | undefined
  },
): readonly Receipt[] {
  const its = receipts.filter((receipt) => {
    return receipt.target === target && (drive === undefined || driveOf(receipt) === drive)
  })
  const present = repository ?? its.at(-1)?.repository
  return its.filter((receipt) => receipt.repository === present)
}

/** The last of each kind, newest first. */
export function lastOfEachKind(receipts: readonly Receipt[]): readonly Receipt[] {
  const newestFirst = receipts.toReversed()
  return newestFirst.filter(({ kind }, index) => {
    return newestFirst.findIndex((receipt) => receipt.kind === kind) === index
  })
}

/** The newest receipt that looked at an export of a set. */
export function lastOfSet(
  receipts: readonly Receipt[],
  { machine, set }: { readonly machine: string; readonly set: string },
): Receipt | undefined {
  return ofSet(receipts, `${machine}/${set}`).at(-1)
}

/** When a set was last read and found good: what earlier runs read is as old as they are. */
export function lastProvenMs(
  receipts: readonly Receipt[],
  { machine, set }: { readonly machine: string; readonly set: string },
): number | undefined {
  const good = ofSet(receipts, `${machine}/${set}`).filter(({ result }) => result === 'good')
  return good.length === 0 ? undefined : Math.max(...good.map(provenMsOf))
}

/** Those that looked at an export of `<machine>/<set>`. */
function ofSet(receipts: readonly Receipt[], wanted: string): readonly Receipt[] {
  return receipts.filter(({ exports }) => exports.some((name) => setOf(name) === wanted))
}

/**
 * The newest receipt of damage that still stands: later good verifications have to name every
 * export that was looked at then, and to look as closely: matching checksums do not refute what
 * decrypting found. For an export that is gone by now a newer one of its set will do.
 * @param isGone whether an export is known not to be in the repository any more
 */
export function standingDamage(
  receipts: readonly Receipt[],
  isGone: (repository: string, exportName: string) => boolean,
): Receipt | undefined {
  return receipts.findLast((receipt, index) => {
    if (receipt.result !== 'damaged') return false
    const proven = receipts
      .slice(index + 1)
      .filter(({ kind, result }) => kind === 'verification' && result === 'good')
      .filter(({ how }) => how === 'restored' || receipt.how === 'checksums')
      .filter((later) => wasReadAfter(later, receipt))
      .flatMap(({ exports }) => exports)
    const isMended = (name: string): boolean => {
      if (proven.includes(name)) return true
      const isReplaced = proven.some((other) => setOf(other) === setOf(name) && other > name)
      return isReplaced && isGone(receipt.repository, name)
    }
    return !receipt.exports.every(isMended)
  })
}

/** Whether all that a verification says was read after the damage was found. */
export function wasReadAfter(
  { since }: Pick<Receipt, 'since'>,
  { end }: Pick<Receipt, 'end'>,
): boolean {
  return since === undefined || Date.parse(since) >= Date.parse(end)
}

/** A target that is no pool has one drive, of its own name. */
export function driveOf({ drive, target }: Pick<Receipt, 'drive' | 'target'>): string {
  return drive ?? target
}

/** `<machine>/<set>` of `<machine>/<set>/<stamp>`. */
function setOf(exportName: string): string {
  return exportName.slice(0, exportName.lastIndexOf('/'))
}
