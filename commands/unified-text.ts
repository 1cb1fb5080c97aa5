// The text of one file in two generations, or in one and as it is now, as `diff -u` shows it.
//
// diff.ts says which. Only what lies here as files can be shown: collections in staging, and the
// sources. Throws NOTHING_FOUND where a side has no such file here, PROGRAM_ABSENT, PROGRAM_FAILED.

import { lstatSync } from 'node:fs'
import { BackupError } from '../lib/errors.ts'
import { runProgram } from '../lib/machine/shell.ts'
import {
  displayPath,
  displayText,
  type RawPath,
  rawPathFromText,
  rawPathToBytes,
} from '../lib/model/raw-path.ts'
import type { Stamp } from '../lib/model/stamp.ts'
import { collectionDirectory } from '../lib/work/staging.ts'
import type { CommandContext } from './command.ts'

/** The sources as they are now. */
export const LIVE = 'live'

/** A generation, or what is there now. */
export type Side = Stamp | typeof LIVE

export interface UnifiedRequest {
  readonly staging: string
  readonly set: string
  readonly sides: { readonly before: Side; readonly after: Side }
  /** Without a leading slash. */
  readonly path: RawPath
}

const DIFF_TIMEOUT_MS = 600_000

/** By the program that everybody knows. */
export async function showUnified(
  { stdout, signal }: Pick<CommandContext, 'stdout' | 'signal'>,
  request: UnifiedRequest,
): Promise<void> {
  const { before, after } = request.sides
  const files = [before, after].map((side) => fileOf(request, side))
  const labels = files.flatMap(({ label }) => ['--label', label])
  const { exitCode, stderr } = await runProgram({
    program: 'diff',
    args: ['-u', ...labels, '--', ...files.map(({ file }) => rawPathToBytes(file))],
    changes: false,
    timeoutMs: DIFF_TIMEOUT_MS,
    signal,
    onLine: (line, stream) => {
      if (stream === 'stdout')
        stdout.write(stdout.isTTY ? safeLine(line) : Buffer.concat([line, END]))
    },
  })
  if (exitCode > 1) {
    throw new BackupError('PROGRAM_FAILED', `diff failed: ${displayText(stderr.trim())}`, {
      hint: 'both files are as they were',
    })
  }
}

const END = Buffer.from('\n')

/** What is in a file must not command the terminal. */
function safeLine(line: Buffer): string {
  return `${line.toString('utf8').split('\t').map(displayText).join('\t')}\n`
}

/** @throws BackupError NOTHING_FOUND */
function fileOf(
  { staging, set, path }: UnifiedRequest,
  side: Side,
): { readonly file: RawPath; readonly label: string } {
  const tree =
    side === LIVE ? '' : rawPathFromText(collectionDirectory({ staging, set, stamp: side }))
  const file = `${tree}/${path}`
  const name = displayPath(`/${path}`)
  const isFile = lstatSync(rawPathToBytes(file), { throwIfNoEntry: false })?.isFile() === true
  if (isFile) return { file, label: `${name}\t${side}` }
  if (side === LIVE) throw new BackupError('NOTHING_FOUND', `${name} is no file now`)
  throw new BackupError('NOTHING_FOUND', `staging has no file ${name} of ${set} ${side}`, {
    hint:
      `bring it back with \`backup-restore --source external --set ${set} --date ${side} `
      + `--path ${name} --into DIR\`, and compare the two yourself`,
  })
}
