// What `backup-restore` says: lists, verifications, restorations, for people and as `--json`.
//
// backup-restore.ts does the work and calls these. What is not restored is named and has its exit
// code (invariant 10). Speaks only through the reporter; throws nothing.

import { ERRORS, type ExitCode, worstExitCode } from '../lib/errors.ts'
import { formatSize } from '../lib/model/amount.ts'
import { displayPath, pathFacts } from '../lib/model/raw-path.ts'
import type { ListedExport } from '../lib/work/list.ts'
import {
  type RestoreFailure,
  type RestorePlan,
  bytesToWrite,
  countPlan,
} from '../lib/work/restore-plan.ts'
import type { RestoreOutcome } from '../lib/work/restore.ts'
import type { UndoOutcome } from '../lib/work/undo-restore.ts'
import type { CollectionVerification } from '../lib/work/verify-local.ts'
import type { Reporter } from './reporter.ts'

const COMMAND = 'backup-restore'

/** Paths named on a terminal; --json names all. */
const PATHS_SHOWN = 50

interface Place {
  readonly set: string
  readonly stamp: string
}

export function tellList(place: string, items: readonly ListedExport[], reporter: Reporter): void {
  reporter.print(`${place}:`)
  if (items.length === 0) reporter.print('  nothing yet')
  for (const { set, stamp, files, bytes, costBytes, complete, isSuspect } of items) {
    const size = bytes === undefined ? 'encrypted' : `${files} files  ${formatSize(bytes)}`
    const cost = costBytes === undefined ? '' : `  costs ${formatSize(costBytes)}`
    const state =
      complete === undefined ? 'not known whether complete' : complete ? 'complete' : 'INCOMPLETE'
    reporter.print(`  ${stamp}  ${set}  ${size}${cost}  ${state}${isSuspect ? ', SUSPECT' : ''}`)
    reporter.report({
      kind: 'result',
      command: COMMAND,
      place,
      set,
      stamp,
      files,
      bytes,
      costBytes,
      complete,
      suspect: isSuspect,
    })
  }
}

/** @returns 13 where a collection's catalog cannot be read, else 0 */
export function warnOfDamaged(damaged: readonly string[], reporter: Reporter): ExitCode {
  for (const name of damaged) {
    const message = `the catalog of ${name} in staging is damaged: its tree is there, unlisted`
    reporter.report({ kind: 'notice', level: 'warning', code: 'CATALOG_DAMAGED', message })
  }
  return damaged.length > 0 ? 13 : 0
}

export function tellVerifiedCollection(
  { set, stamp }: Place,
  {
    verified,
    command,
    reporter,
  }: { verified: CollectionVerification; command: string; reporter: Reporter },
): void {
  const { problems, files, bytes, contentChecked } = verified
  const state = contentChecked ? 'whole' : 'as collected, as far as metadata tell'
  const how = contentChecked ? 'content and metadata' : 'metadata only: no export tells its digests'
  reporter.print(
    `${set} ${stamp}: ${problems.length > 0 ? 'DAMAGED' : state} (${how}): `
      + `${files} files, ${formatSize(bytes)}`,
  )
  for (const { path, why } of problems.slice(0, PATHS_SHOWN))
    reporter.print(`  ${displayPath(path)}: ${why}`)
  reporter.report({
    kind: 'result',
    command,
    set,
    stamp,
    files,
    bytes,
    contentChecked,
    problems: problems.map(({ path, why }) => ({ ...pathFacts(path), why })),
  })
}

/** What a plan would do: for a dry run, and before the question. */
export function planLines(plan: RestorePlan, { set, stamp }: Place): readonly string[] {
  const counts = countPlan(plan)
  const { replacedOlder: older, replacedNewer: newer, replacedEven: even } = counts
  const place = plan.into === '' ? 'the original place' : displayPath(plan.into)
  return [
    `${set} ${stamp} to ${place}:`,
    `  new        ${counts.new}`,
    `  same       ${counts.same}`,
    `  overwrite  ${older + newer + even} (${older} older, ${newer} newer, ${even} of one time)`,
    `  keep       ${counts.kept}`,
    `  delete     ${counts.deleted}`,
    ...plan.deletions.slice(0, PATHS_SHOWN).map(({ path, paths }) => {
      return `    ${displayPath(path)}${paths === 1 ? '' : ` and ${paths - 1} in it`}`
    }),
    `  write      ${formatSize(bytesToWrite(plan))}`,
  ]
}

export function tellRestored(
  outcome: RestoreOutcome & { readonly complete: boolean },
  { place, dryRun, reporter }: { place: Place; dryRun: boolean; reporter: Reporter },
): ExitCode {
  const { written, same, bytes, deleted, kept, failures, lost, aside } = outcome
  const incomplete = !outcome.complete
  const verb = dryRun ? 'would be restored' : 'restored'
  const gone = deleted === 0 ? '' : `, ${deleted} ${dryRun ? 'would be deleted' : 'deleted'}`
  reporter.tell(
    `${place.set} ${place.stamp}: ${written} ${verb} (${formatSize(bytes)}), `
      + `${same} the same already${gone}`,
  )
  for (const directory of aside) {
    const path = displayPath(directory)
    reporter.tell(`what was there is in ${path}; \`backup-restore --undo ${path}\` undoes it`)
  }
  const warn = (code: string, paths: readonly string[]) => {
    for (const message of paths.slice(0, PATHS_SHOWN))
      reporter.report({ kind: 'notice', level: 'warning', code, message })
    const more = paths.length - PATHS_SHOWN
    if (more > 0)
      reporter.report({
        kind: 'notice',
        level: 'warning',
        code,
        message: `and ${more} more (--json names all)`,
      })
  }
  warn(
    'KEPT',
    kept.map(
      (path) =>
        `${displayPath(path)}: something else is there and was kept `
        + '(--overwrite always replaces it)',
    ),
  )
  warn(
    'NOT_RESTORED',
    failures.map(({ path, why }) => `${displayPath(path)}: not restored: ${why}`),
  )
  warn(
    'METADATA_LOST',
    lost.map(
      ({ path, what }) =>
        `${displayPath(path)}: restored without ${what.map(displayPath).join(', ')}`,
    ),
  )
  if (incomplete) {
    warn('INCOMPLETE', [`${place.set} ${place.stamp} was incomplete when it was collected`])
  }
  const codes = failures.map(({ code }) => ERRORS[code][0])
  const exitCode = worstExitCode([...codes, kept.length + lost.length > 0 || incomplete ? 3 : 0])
  reporter.report({
    kind: 'result',
    command: COMMAND,
    set: place.set,
    stamp: place.stamp,
    exitCode,
    written,
    same,
    bytes,
    deleted,
    aside: aside.map((path) => pathFacts(path)),
    kept: kept.map((path) => pathFacts(path)),
    failures: failures.map(failureFacts),
    lost: lost.map(({ path, what }) => ({ ...pathFacts(path), what: what.map(displayPath) })),
  })
  return exitCode
}

export function tellUndone(
  { back, removed, left }: UndoOutcome,
  { dryRun, reporter }: { readonly dryRun: boolean; readonly reporter: Reporter },
): ExitCode {
  const verb = dryRun ? 'would be ' : ''
  reporter.tell(`${back} ${verb}brought back, ${removed} ${verb}removed`)
  for (const { path, why } of left) {
    const message = `${displayPath(path)}: left as it is: ${why}`
    reporter.report({ kind: 'notice', level: 'warning', code: 'LEFT', message })
  }
  const exitCode = left.length > 0 ? 3 : 0
  const named = left.map(failureFacts)
  reporter.report({ kind: 'result', command: COMMAND, exitCode, back, removed, left: named })
  return exitCode
}

/** For `--json`. */
function failureFacts({ path, code, why, corrupt }: RestoreFailure) {
  const kept = corrupt === undefined ? {} : pathFacts(corrupt, 'corrupt')
  return { ...pathFacts(path), code, why, ...kept }
}
