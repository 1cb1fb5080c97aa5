// What a command is, and what it gets: the table entry that main.ts runs.
//
// Each file of a verb exports `command: Command`; main.ts parses its options, builds the
// CommandContext, and turns what `run` returns or throws into the exit status. A command prints
// only through the reporter.

import type { ParseArgsConfig } from 'node:util'
import { BackupError } from '../lib/errors.ts'
import type { ExitCode } from '../lib/errors.ts'
import type { Configuration } from '../lib/machine/config.ts'
import type { Reporter } from './reporter.ts'

export type Options = NonNullable<ParseArgsConfig['options']>

export type Value = string | boolean | readonly (string | boolean)[] | undefined

export type Values = Readonly<Record<string, Value>>

export interface Command {
  /** As it is invoked: `backup-collect`, `backup keys`. */
  readonly name: string
  /** One line for the list of commands: lower-case start, no final period. */
  readonly summary: string
  /** The whole `--help` text, without the common options. */
  readonly usage: string
  readonly options: Options
  /** Whether words are allowed besides options. */
  readonly positionals?: boolean
  /** @throws BackupError for what the user can meet; anything else is a bug and exits 70 */
  readonly run: (context: CommandContext) => Promise<ExitCode>
}

export interface CommandContext {
  readonly values: Values
  readonly positionals: readonly string[]
  readonly environment: Readonly<Record<string, string | undefined>>
  /** The home directory, absolute. */
  readonly home: string
  readonly hostName: string
  readonly reporter: Reporter
  /** Finds and reads it: `--config`, `$BACKUP_CONFIG`, the user's, the machine's. */
  readonly loadConfiguration: () => Promise<Configuration>
  /** Milliseconds since 1970. */
  readonly now: () => number
  readonly stdin: NodeJS.ReadStream
  readonly stdout: NodeJS.WriteStream
  /** Whether somebody is at a terminal to answer: what confirm and askSecret need. */
  readonly hasTerminal: boolean
  /** False without a terminal: nobody is there to confirm. */
  readonly confirm: (question: string) => Promise<boolean>
  /** What is typed; empty without a terminal. */
  readonly ask: (question: string) => Promise<string>
  /** What is typed, without echo. @throws USAGE without a terminal, INTERRUPTED */
  readonly askSecret: (prompt: string) => Promise<string>
  /**
   * Aborted by SIGINT, SIGTERM and SIGHUP: stop soon, leave nothing that the next run has to be
   * told about.
   */
  readonly signal: AbortSignal
}

/** The options of every command. */
export const COMMON_OPTIONS = {
  config: { type: 'string' },
  json: { type: 'boolean' },
  verbose: { type: 'boolean', short: 'v' },
  quiet: { type: 'boolean', short: 'q' },
  'dry-run': { type: 'boolean' },
  help: { type: 'boolean', short: 'h' },
  version: { type: 'boolean' },
} as const satisfies Options

export const COMMON_USAGE = `Options of every command:
  --config FILE   the configuration (else $BACKUP_CONFIG,
                  ~/.config/backup/config.yaml, /etc/backup/config.yaml)
  --dry-run       say what would be done, change nothing
  --json          one JSON object a line on standard output, nothing else there
  -v, --verbose   say more
  -q, --quiet     only warnings and errors
  -h, --help      this text
  --version       the version

Exit codes: 0 done, 75 try later, 4 not confirmed, 3 incomplete, 10 target not there,
11 locked, 1 failed, 2 usage or configuration, 12 wrong key, 13 integrity, 70 a bug,
130 interrupted; all are in docs/errors.md.
`

/** The text given to an option; undefined where it was not given. */
export function textOption(values: Values, name: string): string | undefined {
  const value = values[name]
  if (value === '') throw new BackupError('USAGE', `--${name} needs a value`)
  return typeof value === 'string' ? value : undefined
}

/** The texts given to an option that may be repeated. */
export function textOptions(values: Values, name: string): readonly string[] {
  const value = values[name]
  if (!Array.isArray(value)) return []
  const texts = value.filter((item) => typeof item === 'string')
  if (texts.includes('')) throw new BackupError('USAGE', `--${name} needs a value`)
  return texts
}

/** Whether an option without a value was given. */
export function isGiven(values: Values, name: string): boolean {
  return values[name] === true
}
