// How failures are said: `name: error: …` and `name: hint: …` for people, one object for programs.
//
// main.ts is the only printer and calls this. Whatever text comes in, what goes out is safe for a
// terminal and has no credentials of a URL, no identity, no passphrase in it (design invariant 11).
// Throws nothing.

import { BackupError } from '../lib/errors.ts'
import type { ExitCode } from '../lib/errors.ts'
import { displayText } from '../lib/model/raw-path.ts'

/** The lines for standard error, without newlines at their ends. */
export function errorLines({ name, error }: { name: string; error: unknown }): string[] {
  if (!(error instanceof BackupError)) return bugLines(name, error)
  const lines = [`${name}: error: ${safeText(error.message)}`]
  if (error.hint !== undefined) lines.push(`${name}: hint: ${safeText(error.hint)}`)
  return lines
}

/** The object for `--json`. */
export function errorJson(error: unknown): string {
  if (error instanceof BackupError) {
    const { code, message, hint, facts, exitCode } = error
    return jsonLine({ kind: 'error', code, message, hint, facts, exitCode })
  }
  const message = error instanceof Error ? error.message : String(error)
  return jsonLine({ kind: 'error', code: 'BUG', message, exitCode: 70 })
}

/** Of config/output.schema.json: another one when what is there goes or changes its meaning. */
const SCHEMA = 1

/** What `--json` prints: one object on one line, without the newline at its end. */
export function jsonLine(object: object): string {
  return jsonText({ schema: SCHEMA, ...object })
}

export function exitCodeOf(error: unknown): ExitCode {
  return error instanceof BackupError ? error.exitCode : 70
}

/**
 * One line of JSON, safe for a terminal too: JSON itself escapes only what is below a space.
 * Reading it gives the same text.
 */
function jsonText(object: object): string {
  return redact(JSON.stringify(object)).replace(
    UNSAFE_IN_JSON,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  )
}

/** As displayText has them: control characters, and those that change direction. */
const UNSAFE_IN_JSON = /[\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g

/** One line of text from anywhere, safe to print. */
export function safeText(text: string): string {
  return displayText(redact(text))
}

/** Without the credentials of URLs and without secret keys. */
export function redact(text: string): string {
  return text
    .replace(/:\/\/[^/@\s"\\]+@/g, '://***@')
    .replace(/AGE-SECRET-KEY-1[A-Z0-9]*/gi, 'AGE-SECRET-KEY-1***')
}

function bugLines(name: string, error: unknown): string[] {
  const stack = error instanceof Error ? (error.stack ?? error.message) : String(error)
  const lines = stack.split('\n').map(safeText)
  return [`${name}: error: this is a bug: ${lines[0]}`, ...lines.slice(1)]
}
