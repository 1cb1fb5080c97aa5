// What a procedure says while it works, as plain data: phases, progress, notices, and the result at
// the end.
//
// Procedures in lib/work take a Report and never print; commands/reporter.ts turns the events into
// a repainted line, lines of a log, or one JSON object a line. Throws nothing.

import type { RawPath } from './raw-path.ts'

export interface PhaseEvent {
  readonly kind: 'phase'
  /** A verb in its -ing form: `collecting`, `reading back`. */
  readonly name: string
}

export interface ProgressEvent {
  readonly kind: 'progress'
  readonly phase: string
  readonly filesDone: number
  readonly filesTotal?: number
  /** Bytes dealt with so far, whether they had to be written or not. */
  readonly bytesDone: number
  readonly bytesTotal?: number
  /** Of these, what was already there. */
  readonly bytesSkipped?: number
  /** What reached the medium. */
  readonly bytesWritten?: number
  readonly current?: RawPath
}

export interface NoticeEvent {
  readonly kind: 'notice'
  readonly level: 'info' | 'warning'
  /** Stable, upper case, for programs: `NOT_ATOMIC`. */
  readonly code: string
  /** For people: lower-case start, no final period, paths already through displayPath. */
  readonly message: string
  readonly facts?: Readonly<Record<string, unknown>>
}

/** The last event of a command; the other properties are the command's own. Never a secret. */
export interface ResultEvent {
  readonly kind: 'result'
  readonly command: string
  readonly [fact: string]: unknown
}

/** One for each damaged bundle: which exports need it, and what of them is lost with it. */
export interface DamageEvent {
  readonly kind: 'damage'
  /** Its path in the repository. */
  readonly bundle: string
  readonly problems: readonly { readonly code: string | undefined; readonly message: string }[]
  readonly exports: readonly {
    readonly machine: string
    readonly set: string
    readonly stamp: string
    /** Undefined: without the identity, or the catalog, nobody knows. */
    readonly files: readonly Readonly<Record<string, string>>[] | undefined
    /** Whether parts of the catalog are lost in it, and with them files that are not named. */
    readonly isCatalogHit: boolean
  }[]
}

export type ReportEvent = PhaseEvent | ProgressEvent | NoticeEvent | ResultEvent | DamageEvent

export type Report = (event: ReportEvent) => void
