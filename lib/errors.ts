// Every failure that a user can meet, in one registry: stable code, exit code, title.
//
// Throw sites make a BackupError; commands/main.ts is the only place that prints one and turns it
// into an exit status. docs/errors.md has a heading for each code, and test/tidy.test.ts compares
// the two, both ways.

/**
 * Exit codes, in the order of design: each outranks the ones before it when outcomes meet in one
 * run.
 */
export const EXIT_CODES = [0, 75, 4, 3, 10, 11, 1, 2, 12, 13, 70, 130] as const

export type ExitCode = (typeof EXIT_CODES)[number]

/** `code → [exit code, title]`. */
export const ERRORS = {
  USAGE: [2, 'the command line is wrong'],
  CONFIG_INVALID: [2, 'the configuration is wrong'],
  CONFIG_ABSENT: [2, 'there is no configuration'],
  PROGRAM_ABSENT: [2, 'a program that is needed is not installed'],
  ALREADY_THERE: [2, 'something that would be overwritten is already there'],
  NOT_CONFIRMED: [4, 'the change was not confirmed'],
  COST_LIMIT: [4, 'it would cost more than the limit'],
  COLD_STORAGE: [4, 'what is needed is in cold storage'],
  THAWING: [75, 'cold storage is still being read'],
  INCOMPLETE: [3, 'finished, but something is missing'],
  TARGET_ABSENT: [10, 'the target is not there'],
  LOCKED: [11, 'another run is under way'],
  NOTHING_FOUND: [1, 'nothing matches what was asked for'],
  SOURCE_ABSENT: [1, 'no source could be read'],
  STAGING_FAILED: [1, 'staging cannot be written'],
  STAGING_FULL: [1, 'staging is full'],
  WRITE_FAILED: [1, 'a file cannot be made'],
  TARGET_FOREIGN: [1, 'the directory holds something else'],
  TARGET_FORMAT: [1, 'the repository has a newer format'],
  TARGET_FULL: [1, 'the target is full'],
  TARGET_READ_ONLY: [1, 'the target cannot be written'],
  TARGET_FAILED: [1, 'the target failed'],
  TARGET_DENIED: [1, 'the target refuses the credentials'],
  HOST_KEY_WRONG: [1, 'the host key is not the one that is pinned'],
  RESTORE_FAILED: [1, 'something could not be restored'],
  RESTORE_FULL: [1, 'there is no room for what would be restored'],
  MOUNT_FAILED: [1, 'the backups cannot be shown as a directory'],
  PROGRAM_FAILED: [1, 'a program failed'],
  PROGRAM_TIMEOUT: [1, 'a program took too long'],
  SNAPSHOT_FAILED: [1, 'the source snapshot failed'],
  PASSPHRASE_WRONG: [12, 'the passphrase is wrong'],
  IDENTITY_ABSENT: [12, 'no identity to decrypt with'],
  IDENTITY_WRONG: [12, 'the identity does not fit'],
  SIGNATURE_WRONG: [13, 'a signature does not verify'],
  UNSIGNED: [13, 'nothing signed vouches for it'],
  SIGNER_UNKNOWN: [13, 'signed by a key that is not trusted'],
  AGE_HEADER: [13, 'the age header is malformed'],
  AGE_PAYLOAD: [13, 'the age payload is damaged'],
  ZSTD_DAMAGED: [13, 'the compressed data is damaged'],
  TAR_DAMAGED: [13, 'the tar stream is damaged'],
  CATALOG_DAMAGED: [13, 'the catalog is damaged'],
  MANIFEST_DAMAGED: [13, 'the manifest is damaged'],
  BUNDLE_DAMAGED: [13, 'a bundle is damaged'],
  BUNDLE_MISSING: [13, 'a bundle is missing'],
  OBJECT_HIDDEN: [13, 'an object was deleted or overwritten'],
  MARKS_DAMAGED: [13, 'the file of locks and tags is damaged'],
  STAGING_DAMAGED: [13, 'what is in staging is not what was collected'],
  READ_BACK: [13, 'what was read back differs from what was written'],
  UNSAFE_PATH: [13, 'a path in the backup is unsafe'],
  INTERRUPTED: [130, 'interrupted'],
} as const satisfies Record<string, readonly [ExitCode, string]>

export type ErrorCode = keyof typeof ERRORS

export interface ErrorDetails {
  /** What the user can do next: one sentence, lower-case start. */
  readonly hint?: string
  /** Plain data for `--json`. Never a secret. */
  readonly facts?: Readonly<Record<string, unknown>>
  /** Whether the same call may succeed later without anyone doing anything. */
  readonly retry?: 'never' | 'later'
  readonly cause?: unknown
}

/** A failure of the world (never of our own logic: that is a failed assertion). */
export class BackupError extends Error {
  readonly code: ErrorCode
  readonly hint: string | undefined
  readonly facts: Readonly<Record<string, unknown>>
  readonly retry: 'never' | 'later'

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? {} : { cause: details.cause })
    this.name = 'BackupError'
    this.code = code
    this.hint = details.hint
    this.facts = details.facts ?? {}
    this.retry = details.retry ?? 'never'
  }

  get exitCode(): ExitCode {
    return ERRORS[this.code][0]
  }
}

/** The exit code that outranks the others; 0 for none. */
export function worstExitCode(codes: readonly ExitCode[]): ExitCode {
  let worst = 0
  for (const code of codes) worst = Math.max(worst, EXIT_CODES.indexOf(code))
  return EXIT_CODES[worst] ?? 70
}

/** The `code` of a Node system error such as `ENOENT`; undefined for anything else. */
export function systemCode(error: unknown): string | undefined {
  if (error instanceof Error && 'code' in error && typeof error.code === 'string') return error.code
  return undefined
}

/**
 * What a worker thread can send to the main thread, and its inverse: errors lose their class when
 * they are cloned.
 */
export interface PlainError {
  readonly code: ErrorCode | undefined
  readonly message: string
  readonly hint: string | undefined
  readonly facts: Readonly<Record<string, unknown>>
  readonly stack: string | undefined
}

export function packError(error: unknown): PlainError {
  if (error instanceof BackupError) {
    const { code, message, hint, facts, stack } = error
    return { code, message, hint, facts, stack }
  }
  const stack = error instanceof Error ? error.stack : undefined
  const message = error instanceof Error ? error.message : String(error)
  return { code: undefined, message, hint: undefined, facts: {}, stack }
}

export function unpackError(plain: PlainError): Error {
  if (plain.code === undefined) {
    const error = new Error(plain.message)
    if (plain.stack !== undefined) error.stack = plain.stack
    return error
  }
  const details = plain.hint === undefined ? {} : { hint: plain.hint }
  return new BackupError(plain.code, plain.message, { ...details, facts: plain.facts })
}
