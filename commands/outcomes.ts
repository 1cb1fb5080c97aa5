// How the outcomes of exports are told: one line each, and one exit code for all (style rule 18).
//
// Shared by backup-external.ts and backup.ts. Speaks only through the reporter.

import { type ExitCode, worstExitCode } from '../lib/errors.ts'
import { formatSize } from '../lib/model/amount.ts'
import { describeCost, describeMonthly } from '../lib/model/cost-text.ts'
import { displayPath, pathFacts } from '../lib/model/raw-path.ts'
import type { Receipt } from '../lib/model/receipt.ts'
import type { Doubt } from '../lib/model/sanity.ts'
import type { ExternalOutcome } from '../lib/work/external.ts'
import type { TargetEnd } from '../lib/work/target-end.ts'
import type { Reporter } from './reporter.ts'
import { proofFacts, tellProof } from './verify-telling.ts'

/** How many missing paths are named on a terminal; `--json` and the manifest name all. */
const MISSING_SHOWN = 20

/** Reports every outcome. @returns the worst exit code */
export function tellOutcomes(
  outcomes: readonly ExternalOutcome[],
  {
    reporter,
    command,
    absentCode,
    isQuiet,
  }: {
    reporter: Reporter
    command: string
    absentCode: 10 | 75
    /** Whether nobody wants to read at every run that a drive is not plugged in. */
    isQuiet: boolean
  },
): ExitCode {
  for (const outcome of outcomes) tellOutcome(outcome, { reporter, command, isQuiet })
  return worstExitCode(outcomes.map(({ exitCode }) => (exitCode === 10 ? absentCode : exitCode)))
}

function tellOutcome(
  { target, drive, set, exitCode, outcome, error }: ExternalOutcome,
  { reporter, command, isQuiet }: { reporter: Reporter; command: string; isQuiet: boolean },
): void {
  const where = set === undefined ? target : `${set} → ${target}`
  if (error !== undefined) {
    const hint = error.hint === undefined ? '' : ` (${error.hint})`
    const message = `${where}: ${error.message}${hint}`
    // The schedule asks for a drive again and again; the person is told once a day.
    const isUnplugged = isQuiet && error.code === 'TARGET_ABSENT' && 'drives' in error.facts
    const { code, facts } = error
    const level = isUnplugged ? 'info' : 'warning'
    reporter.report({ kind: 'notice', level, code, message, facts })
    reporter.report({
      kind: 'result',
      command,
      target,
      drive,
      set,
      outcome: 'failed',
      code: error.code,
      exitCode,
    })
    return
  }
  reporter.tell(`${where}: ${sentence(outcome!)}`)
  if (outcome?.kind === 'exported') {
    for (const { path, why } of outcome.missing.slice(0, MISSING_SHOWN)) {
      const message = `${where}: missing: ${displayPath(path)}: ${why}`
      reporter.report({ kind: 'notice', level: 'warning', code: 'MISSING', message })
    }
    const more = outcome.missing.length - MISSING_SHOWN
    if (more > 0) {
      reporter.report({
        kind: 'notice',
        level: 'warning',
        code: 'MISSING',
        message: `${where}: and ${more} more paths (--json names all)`,
      })
    }
  }
  if (outcome?.kind === 'suspect') tellDoubts(outcome, { where, reporter, set: set! })
  const of = { target, drive, set }
  reporter.report({ kind: 'result', command, ...of, exitCode, ...outcomeFacts(outcome!) })
}

/** For `--json`. */
function outcomeFacts({ kind, ...facts }: NonNullable<ExternalOutcome['outcome']>) {
  const named = (items: readonly Doubt[]) => {
    return items.map(({ path, why }) => ({ ...pathFacts(path), why }))
  }
  return {
    outcome: kind,
    ...facts,
    ...('missing' in facts ? { missing: named(facts.missing) } : {}),
    ...('doubts' in facts ? { doubts: named(facts.doubts) } : {}),
  }
}

/** Why nothing was exported, and what ends that. */
export function tellDoubts(
  { stamp, doubts }: { stamp: string; doubts: readonly Doubt[] },
  { where, set, reporter }: { where: string; set: string; reporter: Reporter },
): void {
  for (const { path, why } of doubts) {
    const message =
      `${where}: suspect: /${displayPath(path)}: ${why} (nothing of ${set} is exported or let go; `
      + `is it right? backup accept ${set} ${stamp})`
    reporter.report({ kind: 'notice', level: 'warning', code: 'SUSPECT', message })
  }
}

const PROOFS: Readonly<Record<string, string>> = {
  direct: 'read back past the page cache',
  advised: 'read back after dropping the page cache',
  sent: 'sent and proven there',
}

function sentence(outcome: NonNullable<ExternalOutcome['outcome']>): string {
  if (outcome.kind === 'nothing collected') return 'nothing collected yet: run backup-collect first'
  if (outcome.kind === 'already there') return `${outcome.stamp} is there already`
  if (outcome.kind === 'suspect') return `${outcome.stamp} is SUSPECT: not exported`
  const { stamp, statistics, dataBytes, catalogBytes, pruned, complete, readBack } = outcome
  const added = `${formatSize(dataBytes)} data, ${formatSize(catalogBytes)} catalog`
  const gone =
    pruned.removedExports.length === 0
      ? ''
      : `; ${pruned.removedExports.length} old removed, ${formatSize(pruned.freedBytes)} freed`
  const way = PROOFS[readBack] ?? readBack
  return (
    `${stamp} ${complete ? 'exported' : 'exported as INCOMPLETE'}: ${statistics.entries} entries, `
    + `${formatSize(statistics.bytes)}; new on the target: ${added}; ${way}${gone}`
  )
}

/** What was done with a target after the exports. @returns 13 for damage, 3 for less */
export function tellEnd(
  end: TargetEnd,
  { reporter, command }: { reporter: Reporter; command: string },
): ExitCode {
  const { name, target, drive, drill, proof, unplug, freeBytes, problems, bill } = end
  const codes: ExitCode[] = [0]
  for (const { code, message, hint, exitCode } of problems) {
    const text = `${name}: ${message}${hint === undefined ? '' : ` (${hint})`}`
    reporter.report({ kind: 'notice', level: 'warning', code, message: text })
    // What came on the target is there; only damage is worse than something missing.
    codes.push(exitCode === 13 ? 13 : 3)
  }
  if (drill !== undefined) codes.push(tellDrill(drill, { name, reporter }))
  if (proof !== undefined) codes.push(tellProof(proof, { name, reporter }))
  if (unplug === 'safe') reporter.tell(`${name}: unmounted; it is safe to unplug it`)
  if (unplug === 'still mounted') {
    reporter.tell(`${name}: still mounted; before you unplug it: backup drives eject ${name}`)
  }
  if (unplug === 'off') reporter.tell(`${name}: unmounted and switched off; unplug it`)
  if (bill !== undefined) {
    const spent = `this run cost ${describeCost(bill.spent)}`
    reporter.tell(`${name}: ${spent}; what is there costs ${describeMonthly(bill.monthly)}`)
  }
  const exitCode = worstExitCode(codes)
  const isNothing = drill === undefined && unplug === undefined && bill === undefined
  if (isNothing && proof === undefined && problems.length === 0) return exitCode
  reporter.report({
    kind: 'result',
    command,
    target,
    drive,
    outcome: 'ended',
    unplug,
    freeBytes,
    drill,
    ...(proof === undefined ? {} : { verification: proofFacts(proof) }),
    ...(bill === undefined ? {} : { cost: costFacts(bill) }),
    exitCode,
  })
  return exitCode
}

/** In millionths of the currency's unit. */
function costFacts({ spent, monthly }: NonNullable<TargetEnd['bill']>) {
  const { currency, micros, known } = spent
  return {
    currency,
    spentMicros: micros,
    known: known && monthly.total.known,
    monthlyMicros: monthly.total.micros,
    monthlyDataMicros: monthly.data.micros,
    monthlyMetadataMicros: monthly.metadata.micros,
  }
}

function tellDrill(
  { how, files, bundles, bytes, result, damaged }: Receipt,
  { name, reporter }: { name: string; reporter: Reporter },
): ExitCode {
  const what = how === 'restored' ? `${files} files restored` : `${bundles} bundles checked`
  if (result === 'good') {
    reporter.tell(`${name}: drill: ${what} and compared, ${formatSize(bytes)}: good`)
    return 0
  }
  const names = damaged.slice(0, MISSING_SHOWN).join(', ')
  const message =
    `${name}: drill: DAMAGED: ${names} (earlier exports may be whole; `
    + '`backup-restore --source external --verify` reads everything)'
  reporter.report({ kind: 'notice', level: 'warning', code: 'DRILL_DAMAGED', message })
  return 13
}
