// What `backup status` knows, as one plain value: what --json prints, what the text is made of, and
// what lib/model/metrics.ts counts.
//
// lib/work/status.ts makes it, config/status.schema.json describes it, and docs/status.md is the
// manual. Times are ISO 8601 in UTC, sizes bytes; what is not known is absent. Pure; throws
// nothing.

import type { Receipt } from './receipt.ts'
import type { KeepRules } from './retention.ts'
import type { RunOutcome } from './schedule.ts'
import type { ScoreNumbers } from './score.ts'
import type { Stamp } from './stamp.ts'

export interface StatusDocument {
  readonly format: 1
  readonly machine: string
  readonly time: string
  readonly verdict: 'good' | 'attention' | 'bad'
  readonly exitCode: 0 | 3 | 13
  /** The worst first. */
  readonly problems: readonly Problem[]
  readonly sets: readonly SetStatus[]
  readonly targets: readonly TargetStatus[]
  readonly staging: StagingStatus
  /** Of everything that is configured; absent where only some sets were asked for. */
  readonly score: ScoreStatus | undefined
  /** Ways of telling the person that did not work when they were used last. */
  readonly notifiers: readonly NotifierStatus[]
  /** Oldest first, both. */
  readonly lastRuns: readonly RunStatus[]
  readonly lastFailures: readonly RunStatus[]
}

/** What a problem is, for programs. */
export type ProblemCode =
  | 'PROOF_DAMAGED'
  | 'RUN_FAILED'
  | 'INCOMPLETE'
  | 'SUSPECT'
  | 'NEVER_GOOD'
  | 'LATE'
  | 'CLOCK_SET_BACK'
  | 'CATALOG_DAMAGED'
  | 'DRIVE_OVERDUE'
  | 'LOW_SPACE'
  | 'RECEIPT_UNBELIEVED'
  | 'NOTIFIER_FAILING'
  | 'SCORE_LOW'
  | 'SCORE_DROPPED'

export interface Problem {
  readonly code: ProblemCode
  /** Bad: what was exported is damaged. Attention: something is missing or late. */
  readonly severity: 'attention' | 'bad'
  /** For people: lower-case start, no final period. */
  readonly what: string
  /** What to do next, in the same form. */
  readonly fix: string
  readonly set: string | undefined
  readonly target: string | undefined
  readonly drive: string | undefined
  /** The name of the receipt that says so. */
  readonly receipt: string | undefined
}

export interface SetStatus {
  readonly name: string
  /** Its policy, as configured. */
  readonly snapshot: 'auto' | 'required' | 'none'
  readonly newest: CollectionStatus | undefined
  /** How many are in staging. */
  readonly collections: number
  /** `collect` and `full`. */
  readonly phases: readonly PhaseStatus[]
  readonly retention: {
    readonly local: number
    readonly external: number
    readonly keep: KeepRules
  }
  /** Those of StatusDocument.problems that are this set's. */
  readonly problems: readonly Problem[]
}

export interface CollectionStatus {
  readonly stamp: Stamp
  readonly outcome: Exclude<RunOutcome, 'failed'>
  readonly entries: number
  readonly bytes: number
  readonly isAtomic: boolean
  /** Which kinds of source snapshots it was read from; `none` for sources without. */
  readonly snapshots: readonly string[]
}

export interface PhaseStatus {
  readonly phase: 'collect' | 'full' | 'export'
  readonly lastGood: GoodRun | undefined
  readonly lastRun: { readonly time: string; readonly outcome: RunOutcome } | undefined
  readonly healthy: boolean
  readonly due: boolean
  /** Why it is due, or not. */
  readonly reason: string
  readonly next: string | undefined
}

export interface GoodRun {
  /** When the command began. */
  readonly time: string
  /** Below zero where the clock was set back. */
  readonly ageSeconds: number
  readonly stamp: Stamp | undefined
}

/** One set on one target. */
export interface ExportStatus extends PhaseStatus {
  readonly set: string
  /** Of the last good export as a whole, and what of it had to be written. */
  readonly bytes: number | undefined
  readonly writtenBytes: number | undefined
  /** The newest proof that looked at an export of this set. */
  readonly proof: ProofStatus | undefined
}

export interface TargetStatus {
  readonly name: string
  readonly kind: 'directory' | 'drive' | 's3' | 'sftp'
  /** Of a directory. */
  readonly path: string | undefined
  readonly isPool: boolean
  readonly exports: readonly ExportStatus[]
  /** The last proof of each kind; none means never proven. */
  readonly proofs: readonly ProofStatus[]
  /** Of the kind `drive`. */
  readonly drives: readonly DriveStatus[]
  /** Of the kind `drive`: which to plug in. */
  readonly next: NextDriveStatus | undefined
}

export interface ProofStatus {
  readonly kind: Receipt['kind']
  readonly how: Receipt['how']
  readonly result: Receipt['result']
  readonly time: string
  readonly ageSeconds: number
  /** Of a verification in several runs: when the first of what it proves was read. */
  readonly since?: string | undefined
  /** Its name in `.state/receipts`. */
  readonly receipt: string
  readonly drive: string | undefined
  readonly files: number
  readonly bytes: number
  readonly totalBytes: number
  /** How many files or bundles were damaged. */
  readonly damaged: number
}

export interface DriveStatus {
  readonly name: string
  readonly label: string | undefined
  readonly uuid: string | undefined
  readonly lastSeen: string | undefined
  readonly lastGoodExport: (GoodRun & { readonly set: string }) | undefined
  /** The same of the set that waits longest: what the rotation goes by. */
  readonly waitsSince: string | undefined
  /** The oldest export that was on it when it was exported to last. */
  readonly oldestExport: { readonly set: string; readonly stamp: Stamp } | undefined
  readonly sizeBytes: number | undefined
  /** When it was last seen. */
  readonly freeBytes: number | undefined
  readonly lowSpace: boolean
  readonly isOverdue: boolean
  readonly proofs: readonly ProofStatus[]
}

export interface NextDriveStatus {
  readonly drive: string
  /** Since when, or from when on; absent where it was never exported to, or nothing is due. */
  readonly due: string | undefined
  readonly isDue: boolean
}

export interface StagingStatus {
  readonly path: string
  /** Absent where there is no staging yet. */
  readonly freeBytes: number | undefined
  readonly totalBytes: number | undefined
  readonly lowSpace: boolean
}

/** The 3-2-1 score: see lib/model/score.ts. */
export interface ScoreStatus extends ScoreNumbers {
  readonly wanted: ScoreNumbers
  /** Whether the configuration asks for it: then less is a problem. */
  readonly isConfigured: boolean
  readonly isReached: boolean
  readonly provenWithinSeconds: number
  readonly places: readonly ScorePlaceStatus[]
  /** The one thing that would raise it most. */
  readonly next: string | undefined
}

/** A target, or one drive of it. */
export interface ScorePlaceStatus {
  readonly target: string
  readonly drive: string | undefined
  readonly counts: boolean
  /** Whether it counted before and does not now. */
  readonly isLost: boolean
  /** Whether it is a medium other than that of the sources. */
  readonly isOtherMedium: boolean
  readonly isOffSite: boolean
  /** Why it does not count; when it was exported to and proven where it does. */
  readonly what: string
  /** Of the set that waits longest. */
  readonly lastGood: string | undefined
  readonly proven: string | undefined
}

export interface NotifierStatus {
  readonly channel: string
  readonly message: string
  readonly time: string
}

export interface RunStatus {
  readonly phase: 'collect' | 'full' | 'export'
  readonly set: string
  readonly target: string | undefined
  readonly drive: string | undefined
  readonly start: string
  readonly end: string
  readonly stamp: Stamp | undefined
  readonly outcome: RunOutcome
  readonly exitCode: number
  readonly errorCode: string | undefined
  readonly message: string | undefined
  readonly bytes: number
  readonly writtenBytes: number
}
