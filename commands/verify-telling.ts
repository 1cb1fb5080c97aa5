// What a verification of a target says: each export, what is lost with each damaged bundle, and how
// much of the target is proven, for people and as `--json`.
//
// restore-verify.ts and outcomes.ts call these. Speaks only through the reporter; throws nothing.

import { type ExitCode, worstExitCode } from '../lib/errors.ts'
import { formatSize } from '../lib/model/amount.ts'
import { counted } from '../lib/model/period.ts'
import { displayPath, pathFacts } from '../lib/model/raw-path.ts'
import { formatLocalTime } from '../lib/model/schedule.ts'
import type { ProofOutcome } from '../lib/work/proof.ts'
import { receiptName } from '../lib/work/receipts.ts'
import type { BundleDamage, VerifiedExport } from '../lib/work/verify.ts'
import type { Reporter } from './reporter.ts'

/** Paths named on a terminal; --json names all. */
const PATHS_SHOWN = 50

/** Of what is damaged, in the line of a run that nobody watches. */
const BUNDLES_SHOWN = 5

/** One export: a line, what is wrong with it, and its result. */
export function tellVerified(
  one: VerifiedExport,
  { command, reporter }: { readonly command: string; readonly reporter: Reporter },
): void {
  const { set, stamp, complete, files, bytes, problems, unread, left, needs, damaged } = one
  const read = needs.length - unread - left
  const isPart = left > 0 && unread === 0
  const would = isPart ? '' : ' would be restored'
  const size = bytes === undefined ? '' : `: ${files} files, ${formatSize(bytes)}${would}`
  const word = read === 0 ? 'not read' : 'whole as far as it was read'
  const part = isPart
    ? `${word}, ${read} of ${counted(needs.length, 'bundle')}`
    : unread === 0
      ? 'whole'
      : `${unread} bundles NOT READ, the others whole`
  const state =
    problems.length > 0 ? 'DAMAGED' : complete === false ? `${part}, but INCOMPLETE` : part
  reporter.print(`${set} ${stamp}: ${state}${size}`)
  for (const { message } of problems.slice(0, PATHS_SHOWN)) reporter.print(`  ${message}`)
  for (const path of damaged.slice(0, PATHS_SHOWN))
    reporter.print(`  damaged: ${displayPath(path)}`)
  if (damaged.length > PATHS_SHOWN)
    reporter.print(`  and ${damaged.length - PATHS_SHOWN} more (--json names all)`)
  reporter.report({
    kind: 'result',
    command,
    set,
    stamp,
    complete,
    files,
    bytes,
    unread,
    left,
    bundles: needs.length,
    damaged: damaged.map((path) => pathFacts(path)),
    problems: problems.map(({ code, message }) => ({ code, message })),
  })
}

/** What is lost with each damaged bundle. */
export function tellDamage(damage: readonly BundleDamage[], reporter: Reporter): void {
  for (const { bundle, problems, exports } of damage) {
    reporter.print(`${bundle}: DAMAGED; needed by ${counted(exports.length, 'export')}`)
    for (const { place, files, isCatalogHit } of exports) {
      const { set, stamp } = place
      const some = files === undefined ? 'which files is not known' : counted(files.length, 'file')
      const catalog = isCatalogHit ? ', and parts of its catalog' : ''
      reporter.print(`  ${set} ${stamp}: ${some}${catalog}`)
      for (const path of files?.slice(0, PATHS_SHOWN) ?? []) {
        reporter.print(`    ${displayPath(path)}`)
      }
      const more = (files?.length ?? 0) - PATHS_SHOWN
      if (more > 0) reporter.print(`    and ${more} more (--json names all)`)
    }
    reporter.report({
      kind: 'damage',
      bundle,
      problems: problems.map(({ code, message }) => ({ code, message })),
      exports: exports.map(({ place: { machine, set, stamp }, files, isCatalogHit }) => {
        return { machine, set, stamp, files: files?.map((path) => pathFacts(path)), isCatalogHit }
      }),
    })
  }
}

/** `3 of 10 bundles were read; …`: how much is proven now, and since when. */
export function proofText({ bundles, bundlesTotal, sinceMs, neverProven }: ProofOutcome): string {
  const read = `${bundles} of ${counted(bundlesTotal, 'bundle')} read`
  if (sinceMs !== undefined) {
    return `${read}; everything was proven since ${formatLocalTime(sinceMs)}`
  }
  return `${read}; ${neverProven} ${neverProven === 1 ? 'was' : 'were'} never proven`
}

/** The same for programs. */
export function proofFacts(outcome: ProofOutcome) {
  const { bundles, bytesRead, bundlesTotal, bytesTotal, sinceMs, neverProven, deep } = outcome
  return {
    how: deep ? 'restored' : 'checksums',
    bundles,
    bytesRead,
    bundlesTotal,
    bytesTotal,
    provenSince: sinceMs === undefined ? undefined : new Date(sinceMs).toISOString(),
    neverProven,
    damaged: outcome.damagedFiles,
    receipts: outcome.receipts.map(receiptName),
  }
}

/** The verification that ended an export. @returns 13 where something is damaged, else 0 */
export function tellProof(
  outcome: ProofOutcome,
  { name, reporter }: { readonly name: string; readonly reporter: Reporter },
): ExitCode {
  const { exports, bytesRead, damagedFiles, damage } = outcome
  reporter.tell(`${name}: verification: ${proofText(outcome)}, ${formatSize(bytesRead)}`)
  tellDamage(damage, reporter)
  const problems = exports.flatMap((one) => one.problems)
  if (problems.length === 0) return 0
  const named = damagedFiles.length > 0 ? damagedFiles : problems.map(({ message }) => message)
  const message =
    `${name}: verification: DAMAGED: ${named.slice(0, BUNDLES_SHOWN).join(', ')} (earlier exports `
    + 'may be whole; `backup verify --all` reads everything, `backup repair` mends what has parity)'
  reporter.report({ kind: 'notice', level: 'warning', code: 'BUNDLE_DAMAGED', message })
  return 13
}

/** 13 for damage; 3 for what is incomplete, or lies in cold storage though all was to be read. */
export function exitCodeOfVerified(
  exports: readonly VerifiedExport[],
  { isWhole }: { readonly isWhole: boolean },
): ExitCode {
  const codes = exports.map(({ problems, complete, unread }): ExitCode => {
    if (problems.length > 0) return 13
    return complete === false || (isWhole && unread > 0) ? 3 : 0
  })
  return worstExitCode([0, ...codes])
}
