// Stock programs, run as a user would run them: what they said, and how they ended. None of our
// code runs in them.

import { spawnSync } from 'node:child_process'
import { mkdirSync, symlinkSync } from 'node:fs'
import type { Outcome } from './run-cli.ts'

/** Enough for every listing that a test asks for. */
const MAX_OUTPUT_BYTES = 64 * 1024 * 1024

export interface StockOptions {
  readonly input?: string
  readonly workingDirectory?: string
  /** Besides PATH, and instead of it. */
  readonly environment?: Readonly<Record<string, string>>
}

/** Runs a program without a terminal of its own. */
export function runStock(
  program: string,
  words: readonly string[],
  options: StockOptions = {},
): Outcome {
  const { input = '', workingDirectory, environment = {} } = options
  const { status, stdout, stderr, error } = spawnSync(program, words, {
    input,
    encoding: 'utf8',
    maxBuffer: MAX_OUTPUT_BYTES,
    env: { PATH: process.env['PATH'] ?? '', ...environment },
    ...(workingDirectory === undefined ? {} : { cwd: workingDirectory }),
  })
  if (error !== undefined) throw error
  return { status, stdout, stderr }
}

/** What it printed. Throws with what it complained about when it failed. */
export function stock(
  program: string,
  words: readonly string[],
  options: StockOptions = {},
): string {
  const { status, stdout, stderr } = runStock(program, words, options)
  if (status === 0) return stdout
  throw new Error(`${program} ${words.join(' ')} ended with ${status}: ${stderr}`)
}

/** Makes a directory that holds only these programs: a PATH for a machine that lacks all others. */
export function onlyPrograms(directory: string, names: readonly string[]): string {
  mkdirSync(directory)
  for (const name of names) {
    symlinkSync(stock('sh', ['-c', 'command -v "$1"', 'sh', name]).trim(), `${directory}/${name}`)
  }
  return directory
}
