// How runs of `backup`, `backup-collect` and `backup-external` are added to the history.
//
// lib/work/history.ts keeps it; the commands know when they began and what each outcome was. That
// the history cannot be written is said, and is no failure of the run: it is a cache. Throws
// nothing of the world's.

import { BackupError } from '../lib/errors.ts'
import { type EndedRun, recordRuns, type RunRecord } from '../lib/work/history.ts'
import type { Reporter } from './reporter.ts'

/** What the history keeps of a failure. */
export function failedRun({ code, exitCode, message }: BackupError): EndedRun {
  const none = { stamp: undefined, bytes: 0, writtenBytes: 0 }
  return { ...none, outcome: 'failed', exitCode, errorCode: code, message }
}

/** Adds runs to the history. */
export function keepHistory(
  { reporter }: { readonly reporter: Reporter },
  options: { readonly staging: string; readonly runs: readonly RunRecord[] },
): void {
  try {
    recordRuns(options)
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    const message = `the history of runs was not written: ${error.message}`
    reporter.report({ kind: 'notice', level: 'warning', code: error.code, message })
  }
}
