// How the outcomes of exports are told: one line each, and one exit code for all (style rule 18).
//
// Shared by backup-external.ts and backup.ts. Speaks only through the reporter.

import { type ExitCode, worstExitCode } from '../lib/errors.ts'
import { formatSize } from '../lib/model/amount.ts'
import { displayPath } from '../lib/model/raw-path.ts'
import type { Doubt } from '../lib/model/sanity.ts'
import type { ExternalOutcome } from '../lib/work/external.ts'
import type { Reporter } from './reporter.ts'

/** How many missing paths are named on a terminal; `--json` and the manifest name all. */
const MISSING_SHOWN = 20

/** Reports every outcome. @returns the worst exit code */
export function tellOutcomes(
  outcomes: readonly ExternalOutcome[],
  { reporter, command, absentCode }: { reporter: Reporter; command: string; absentCode: 10 | 75 },
): ExitCode {
  for (const outcome of outcomes) tellOutcome(outcome, { reporter, command })
  return worstExitCode(outcomes.map(({ exitCode }) => (exitCode === 10 ? absentCode : exitCode)))
}

function tellOutcome(
  { target, set, exitCode, outcome, error }: ExternalOutcome,
  { reporter, command }: { reporter: Reporter; command: string },
): void {
  const where = set === undefined ? target : `${set} → ${target}`
  if (error !== undefined) {
    const hint = error.hint === undefined ? '' : ` (${error.hint})`
    const message = `${where}: ${error.message}${hint}`
    reporter.report({
      kind: 'notice',
      level: 'warning',
      code: error.code,
      message,
      facts: error.facts,
    })
    reporter.report({
      kind: 'result',
      command,
      target,
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
  const { kind, ...facts } = outcome!
  reporter.report({ kind: 'result', command, target, set, outcome: kind, exitCode, ...facts })
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
  const way = readBack === 'direct' ? 'past the page cache' : 'after dropping the page cache'
  return (
    `${stamp} ${complete ? 'exported' : 'exported as INCOMPLETE'}: ${statistics.entries} entries, `
    + `${formatSize(statistics.bytes)}; new on the target: ${added}; read back ${way}${gone}`
  )
}
