// What a run of `backup`, `backup-collect` or `backup-external` leaves to be known: in the history,
// and for whoever is told when it has ended.
//
// lib/work/history.ts keeps the history; the commands know when they began and what each outcome
// was. That the history cannot be written is said, and is no failure of the run: it is a cache.
// run-telling.ts makes announcements of the ledger. Throws nothing of the world's.

import { BackupError } from '../lib/errors.ts'
import { type EndedRun, recordRuns, type RunRecord } from '../lib/work/history.ts'
import type { ExternalOutcome } from '../lib/work/external.ts'
import type { TargetEnd } from '../lib/work/target-end.ts'
import type { Reporter } from './reporter.ts'

/** All that one command did, in the order in which it ended. */
export interface RunLedger {
  readonly runs: RunRecord[]
  /** Targets that are due and were not there. */
  readonly absent: ExternalOutcome[]
  readonly ends: TargetEnd[]
}

export function emptyLedger(): RunLedger {
  return { runs: [], absent: [], ends: [] }
}

/** What the history keeps of a failure. */
export function failedRun({ code, exitCode, message, hint }: BackupError): EndedRun {
  const none = { stamp: undefined, bytes: 0, writtenBytes: 0 }
  return { ...none, outcome: 'failed', exitCode, errorCode: code, message, hint }
}

/** Adds runs to the history and to the ledger. */
export function keepHistory(
  { reporter }: { readonly reporter: Reporter },
  {
    ledger,
    ...options
  }: { readonly staging: string; readonly runs: readonly RunRecord[]; readonly ledger: RunLedger },
): void {
  ledger.runs.push(...options.runs)
  try {
    recordRuns(options)
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    const message = `the history of runs was not written: ${error.message}`
    reporter.report({ kind: 'notice', level: 'warning', code: error.code, message })
  }
}
