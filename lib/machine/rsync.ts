// rsync: one call that copies sources into an empty directory, linking what earlier collections
// have already.
//
// The directory is new and empty, so nothing is ever written through into an earlier collection
// (design invariant 6) and there is nothing to delete in it. What rsync says on standard error
// becomes missing and vanished paths; its exit code becomes an outcome. The environment is
// LC_ALL=C, in which rsync prints every byte that is not ASCII as `\#ooo`. Throws PROGRAM_FAILED
// with the code's meaning, and what runProgram throws; a full disk is a value of the result.

import { Buffer } from 'node:buffer'
import { BackupError } from '../errors.ts'
import type { MissingPath } from '../model/collection.ts'
import { displayText, type RawPath, rawPathFromText, rawPathToBytes } from '../model/raw-path.ts'
import { runProgram } from './shell.ts'

export interface RsyncSource {
  /** What stands before `/./`: empty for the filesystem's own root, else a view's directory. */
  readonly root: RawPath
  /** Absolute. */
  readonly path: RawPath
  /** A link to a directory counts as one, and is followed. */
  readonly isDirectory: boolean
}

export interface RsyncCall {
  readonly sources: readonly RsyncSource[]
  /** Patterns as the user wrote them, text. */
  readonly exclusions: readonly string[]
  /**
   * Directories, as paths from the root of the transfer, that are left out whatever the user says.
   */
  readonly leftOut: readonly RawPath[]
  /** Absolute directories whose unchanged files are linked, best first. */
  readonly linkDestinations: readonly RawPath[]
  /** Absolute, empty or, in a dry run, not there. */
  readonly target: RawPath
  /** Copies what symbolic links point to: only for sources that are links to files. */
  readonly followLinks: boolean
  /** Whether the target keeps nanoseconds: without them no file would ever look unchanged. */
  readonly exactTimes: boolean
  readonly dryRun: boolean
  readonly onItem: (item: RsyncItem) => void
  readonly signal?: AbortSignal | undefined
  /** The open lock file, which rsync keeps open while it runs. */
  readonly inherit?: number
}

export interface RsyncItem {
  readonly path: RawPath
  readonly isFile: boolean
  readonly sizeBytes: number
  /** False for a file that was linked to an earlier collection, or to another path of this one. */
  readonly copied: boolean
}

export interface RsyncOutcome {
  /** Named or found, and not copied. Paths have no leading slash. */
  readonly missing: readonly MissingPath[]
  /** Gone between listing and reading; a live tree's normal life. */
  readonly vanished: readonly RawPath[]
  readonly targetFull: boolean
}

/** A first copy of a large disk takes days; one that takes a fortnight hangs. */
const RSYNC_TIMEOUT_MS = 14 * 24 * 60 * 60 * 1000

/** rsync takes at most this many. */
export const MAX_LINK_DESTINATIONS = 20

const NO_SPACE = /\((28|122)\)\s*$/

/** From rsync(1), EXIT VALUES. 23 and 24 are outcomes. */
const MEANINGS: Readonly<Record<number, string>> = {
  1: 'it did not understand its options: is it older than 3.2?',
  2: 'protocol incompatibility',
  3: 'files or directories could not be selected',
  4: 'it was built without something that is needed',
  5: 'it could not start its own protocol',
  10: 'socket error',
  11: 'a file could not be read or written',
  12: 'its own processes lost each other',
  13: 'diagnostics failed',
  14: 'its processes could not talk',
  20: 'it was told to stop',
  21: 'a process of it failed',
  22: 'it ran out of memory',
  30: 'it waited too long for data',
}

/** Runs rsync once. @throws BackupError PROGRAM_FAILED for anything but an outcome */
export async function runRsync(call: RsyncCall): Promise<RsyncOutcome> {
  const heard = new Heard(call)
  const result = await runProgram({
    program: 'rsync',
    args: rsyncArguments(call),
    // A dry run of rsync itself changes nothing.
    changes: !call.dryRun,
    timeoutMs: RSYNC_TIMEOUT_MS,
    input: filterRules(call),
    onLine: (line, stream) => (stream === 'stdout' ? hearItem(call, line) : heard.take(line)),
    signal: call.signal,
    ...(call.inherit === undefined ? {} : { inherit: call.inherit }),
  })
  const outcome = heard.outcome(result.exitCode)
  if (outcome.targetFull || [0, 23, 24].includes(result.exitCode)) return outcome
  const meaning = MEANINGS[result.exitCode] ?? 'an unknown failure'
  const said = displayText(heard.lastLine)
  throw new BackupError(
    'PROGRAM_FAILED',
    `rsync failed with exit code ${result.exitCode}, ${meaning}: ${said}`,
    {
      hint: 'what was copied is kept, and the next run need not copy it again',
      facts: { program: 'rsync', exitCode: result.exitCode },
    },
  )
}

function rsyncArguments(call: RsyncCall): (string | Buffer)[] {
  const sources = call.sources.map(({ root, path, isDirectory }) => {
    return rawPathToBytes(`${root}/.${path}${isDirectory && !path.endsWith('/') ? '/' : ''}`)
  })
  return [
    '-aHAXS',
    '--numeric-ids',
    '--relative',
    '-ii',
    '--out-format=%i %l %n',
    // Otherwise rsync compares whole seconds, and neither sees nor sets a time that differs by
    // less.
    ...(call.exactTimes ? ['--modify-window=-1'] : []),
    ...(call.dryRun ? ['--dry-run'] : []),
    ...(call.followLinks ? ['--copy-links'] : []),
    '--from0',
    '--exclude-from=-',
    ...call.linkDestinations
      .slice(0, MAX_LINK_DESTINATIONS)
      .map((path) => rawPathToBytes(`--link-dest=${path}`)),
    '--',
    ...sources,
    rawPathToBytes(`${call.target}/`),
  ]
}

/**
 * The rules, first match first: ours, then a source itself, which no pattern that happens to fit it
 * leaves out (`tmp/*` and the source `/tmp/mine`), then the user's. Each pattern is a rule of its
 * own, so that `#` and `!` are not taken for comments and commands.
 */
function filterRules({ leftOut, sources, exclusions }: RsyncCall): Buffer {
  const below = sources.filter(({ path }) => path !== '/')
  const rules = [
    '- lost+found/',
    ...leftOut.map((path) => `- ${literalPattern(path)}/`),
    ...below.map(({ path, isDirectory }) => `+ ${literalPattern(path)}${isDirectory ? '/' : ''}`),
    ...exclusions
      .map(rawPathFromText)
      .map((pattern) => (/^[-+] /.test(pattern) ? pattern : `- ${pattern}`)),
  ]
  return rawPathToBytes(rules.map((rule) => `${rule}\0`).join(''))
}

/** A backslash escapes a wildcard, but only in a pattern that has one (see rsync(1)). */
function literalPattern(path: RawPath): RawPath {
  return /[*?[]/.test(path) ? path.replace(/[\\*?[]/g, '\\$&') : path
}

function hearItem({ onItem }: RsyncCall, line: Buffer): void {
  const match = /^([<>ch.])([fdLDS])(.{9}) (\d+) (.*)$/s.exec(line.toString('latin1'))
  if (match === null) return
  const [, update, kind, , length, name = ''] = match
  const isFile = kind === 'f'
  const path = decodeName(name).replace(/\/$/, '')
  onItem({ path, isFile, sizeBytes: isFile ? Number(length) : 0, copied: isFile && update !== 'h' })
}

/** What rsync says on standard error. */
class Heard {
  readonly #call: RsyncCall
  readonly #missing = new Map<RawPath, string>()
  readonly #vanished = new Set<RawPath>()
  #targetFull = false
  lastLine = ''

  constructor(call: RsyncCall) {
    this.#call = call
  }

  take(bytes: Buffer): void {
    const line = bytes.toString('latin1').trimEnd()
    if (line === '' || line.startsWith('IO error encountered') || line.startsWith('*** Skipping'))
      return
    if (NO_SPACE.test(line)) this.#targetFull = true
    const said = /^rsync (error|warning): .* \(code \d+\)/.test(line)
    if (!said || this.lastLine === '') this.lastLine = line
    if (said) return
    const vanished = /^(?:file|directory|symlink) has vanished: "(.*)"/s.exec(line)
    if (vanished !== null) {
      this.#vanished.add(this.#ownPath(vanished[1] ?? ''))
      return
    }
    // In a dry run there is no target, and the receiving side complains about that.
    if (this.#call.dryRun && !line.includes('[sender]')) return
    const failed = /"(.+)"[^"]*: ([^:"]+) \(\d+\)$/s.exec(line)
    if (failed !== null)
      this.#addMissing(this.#ownPath(failed[1]?.replace(/","[^"]*$/s, '') ?? ''), failed[2] ?? '')
  }

  outcome(exitCode: number): RsyncOutcome {
    if (exitCode === 23 && !this.#call.dryRun && this.#missing.size === 0) {
      this.#addMissing(this.#call.sources[0]?.path.replace(/^\/+/, '') ?? '', this.lastLine)
    }
    const missing = [...this.#missing].map(([path, why]) => ({ path, why }))
    return { missing, vanished: [...this.#vanished], targetFull: this.#targetFull }
  }

  #addMissing(path: RawPath, why: string): void {
    const text = displayText(why.slice(0, 1).toLowerCase() + why.slice(1))
    if (!this.#missing.has(path)) this.#missing.set(path, text)
  }

  /** A path as the user knows it: without the view, the target, and the leading slash. */
  #ownPath(printed: string): RawPath {
    const path = decodeName(printed)
    for (const root of [this.#call.target, ...this.#call.sources.map((source) => source.root)]) {
      if (root !== '' && path.startsWith(`${root}/`))
        return path.slice(root.length).replace(/^\/(\.\/)?/, '')
    }
    return path.replace(/^\/(\.\/)?/, '')
  }
}

/**
 * rsync's escapes undone: `\#ooo` is a byte; a backslash that would look like one is escaped
 * itself.
 */
export function decodeName(printed: string): RawPath {
  return printed.replace(/\\#([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  )
}
