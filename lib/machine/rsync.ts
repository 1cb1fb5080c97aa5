// rsync: one call that copies sources into an empty directory, linking what earlier collections
// have already, or into a writable snapshot of the last one; and which rsync this is.
//
// The directory is new and empty, or a snapshot that shares no inode with its origin, so nothing is
// ever written through into an earlier collection (design invariant 6). What rsync says on standard
// error becomes missing and vanished paths; its exit code becomes an outcome. The environment is
// LC_ALL=C, in which rsync prints every byte that is not ASCII as `\#ooo`. Throws PROGRAM_FAILED
// with the code's meaning, PROGRAM_ABSENT for the wrong rsync, and what runProgram throws; a full
// disk is a value of the result.

import assert from 'node:assert/strict'
import { Buffer } from 'node:buffer'
import { existsSync, lstatSync, readdirSync } from 'node:fs'
import { BackupError } from '../errors.ts'
import type { MissingPath } from '../model/collection.ts'
import {
  displayText,
  isWithin,
  parentOf,
  type RawPath,
  rawPathFromText,
  rawPathToBytes,
} from '../model/raw-path.ts'
import {
  type LeftOutRule,
  leftOutRules,
  leftOutTest,
  literalPattern,
} from '../model/rsync-pattern.ts'
import { findProgram, runProgram } from './shell.ts'

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
  /**
   * What other rules leave out, as absolute paths: after the sources, which nothing leaves out, and
   * before the user's patterns.
   */
  readonly leftOutPaths?: readonly LeftOutRule[]
  /**
   * With `intoExisting`: only these, as a catalog has them, instead of everything below the
   * sources, whose roots must then be one. What is gone is deleted in the target, a directory is
   * not descended into, and what is outside the sources is passed over. The list names all that has
   * changed: also what was left out the last time and is not now, and every name of a file that has
   * several.
   */
  readonly filesFrom?: readonly RawPath[]
  /** Absolute directories whose unchanged files are linked, best first. */
  readonly linkDestinations: readonly RawPath[]
  /** Absolute, empty (but see `intoExisting`) or, in a dry run, not there. */
  readonly target: RawPath
  /**
   * The target is a writable snapshot of an earlier collection: what is not in the sources any more
   * is deleted below them, and only there. Missing and vanished files stay as they were before.
   */
  readonly intoExisting?: boolean
  /** Reads every file on both sides, instead of believing sizes and times. */
  readonly compareContent?: boolean
  readonly bandwidthBytesPerSecond?: number | undefined
  /** 0 to 19. */
  readonly nice?: number
  readonly ionice?: 'normal' | 'low' | 'idle'
  /** Copies what symbolic links point to: only for sources that are links to files. */
  readonly followLinks: boolean
  /** Whether the target keeps nanoseconds: without them no file would ever look unchanged. */
  readonly exactTimes: boolean
  readonly dryRun: boolean
  readonly onItem: (item: RsyncItem) => void
  /** What was asked for and cannot be had here, for people: a reason to say so, not to fail. */
  readonly onNote?: (note: string) => void
  readonly signal?: AbortSignal | undefined
  /** The open lock file, which rsync keeps open while it runs. */
  readonly inherit?: number
}

export interface RsyncItem {
  readonly path: RawPath
  readonly isFile: boolean
  readonly sizeBytes: number
  /** False for a file that was linked to an earlier collection or another path, or was there. */
  readonly copied: boolean
  /** Size and time are the same and the bytes are not; known with `compareContent` only. */
  readonly contentDiffers: boolean
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

/**
 * An attribute that staging does not take: `fsetxattr("/.f.Ab12Cd","user.name") failed: …`, with
 * the name that a file has while it is written. ext4 says that it has no space for one that is
 * larger than its block, however empty it is.
 */
const ATTRIBUTE_REFUSED = /\b[fl]?setxattr\("(.+)","([^"]*)"\) failed: (.+) \(\d+\)\s*$/s

/** Escaped, a byte takes four, and shell.ts allows 120 KiB for all arguments. */
const MAX_RULES_IN_ARGUMENTS_BYTES = 16 * 1024

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

/**
 * Copies. rsync runs once, and with `filesFrom` once before to ask about directories.
 * @throws BackupError PROGRAM_FAILED for anything but an outcome
 */
export async function runRsync(call: RsyncCall): Promise<RsyncOutcome> {
  const { filesFrom, ...walk } = call
  assert(call.intoExisting !== true || call.linkDestinations.length === 0)
  assert(call.intoExisting === true || filesFrom === undefined)
  const runBy = launchers(call)
  if (filesFrom === undefined || needsWalk(call)) return await runOnce(walk, { runBy })
  const reached = await reachedPaths(call, { runBy, paths: filesFrom })
  if (reached.length === 0) return { missing: [], vanished: [], targetFull: false }
  return await runOnce({ ...call, filesFrom: reached }, { runBy })
}

interface RunOptions {
  readonly runBy: readonly string[]
  readonly options?: readonly string[]
}

async function runOnce(
  call: RsyncCall,
  { runBy, options = [] }: RunOptions,
): Promise<RsyncOutcome> {
  const heard = new Heard(call)
  const result = await runProgram({
    program: 'rsync',
    args: [...options, ...lists(call), ...rsyncArguments(call)],
    runBy,
    // A dry run of rsync itself changes nothing.
    changes: !call.dryRun,
    timeoutMs: RSYNC_TIMEOUT_MS,
    input: zeroTerminated(call.filesFrom ?? filterRules(call)),
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

/** The programs that run rsync so that it gives way to others. */
function launchers({ nice = 0, ionice = 'normal', onNote }: RsyncCall): string[] {
  const words = nice === 0 ? [] : ['nice', '-n', String(nice)]
  if (ionice === 'normal') return words
  if (findProgram('ionice') === undefined) {
    onNote?.('ionice is not installed: the disk is shared as usual')
    return words
  }
  // -t: where the system does not let us, rsync runs all the same.
  return [...words, 'ionice', '-t', '-c', ...(ionice === 'idle' ? ['3'] : ['2', '-n', '7'])]
}

/**
 * Whether the list does not do: a path is left out now that the last collection has, which only a
 * walk deletes, or the rules are too many.
 */
function needsWalk(call: RsyncCall): boolean {
  const bytes = filterRules({ ...call, leftOutPaths: [] }).join().length
  if (bytes > MAX_RULES_IN_ARGUMENTS_BYTES) return true
  return (call.leftOutPaths ?? []).some(({ path, kept }) => {
    const place = rawPathToBytes(`${call.target}${path}`)
    if (lstatSync(place, { throwIfNoEntry: false }) === undefined) return false
    return (
      kept === undefined
      || readdirSync(place, { encoding: 'latin1' }).some((name) => !kept.includes(name))
    )
  })
}

/**
 * The listed paths that a walk through the sources would come to. rsync applies its rules to a
 * listed path alone and not to the directories above it, so it is asked about those first.
 */
async function reachedPaths(
  call: RsyncCall,
  { runBy, paths }: { runBy: readonly string[]; paths: readonly RawPath[] },
): Promise<RawPath[]> {
  const root = call.sources[0]?.root ?? ''
  assert(
    call.sources.every((source) => source.root === root),
    'the sources have several roots',
  )
  const sources = call.sources.map(({ path }) => path.replace(/^\/+|\/+$/g, ''))
  const routes = paths.map((path) => ({ path, routes: routesTo(path, sources) }))
  const directories = [...new Set(routes.flatMap((path) => path.routes.flat()))]
  const isThere = (path: RawPath): boolean => existsSync(rawPathToBytes(`${root}/${path}`))
  const there = directories.filter(isThere)
  const gone = new Set(directories.filter((path) => !isThere(path)))
  const leftOut = new Set(there)
  if (there.length > 0) {
    const onItem = ({ path }: RsyncItem): unknown => leftOut.delete(path)
    const asked = { ...call, dryRun: true, filesFrom: there, leftOutPaths: [], onItem }
    await runOnce(asked, { runBy, options: ['--no-implied-dirs'] })
  }
  const isLeftOut = leftOutTest(
    (call.leftOutPaths ?? []).map((rule) => ({ ...rule, path: rule.path.replace(/^\/+/, '') })),
  )
  const reached = routes
    .filter(({ path }) => !leftOut.has(path) && !isLeftOut(path))
    .filter((path) => path.routes.some((route) => !route.some((above) => leftOut.has(above))))
    // Below a directory that is gone there is nothing to ask for: the directory goes.
    .map((path) => path.routes.flat().findLast((above) => gone.has(above)) ?? path.path)
  return [...new Set(reached)]
}

/** For each source that holds the path: the directories from that source down to the path. */
function routesTo(path: RawPath, sources: readonly RawPath[]): RawPath[][] {
  const holding = sources.filter((directory) => isWithin({ path, directory }))
  return holding.map((source) => {
    const route: RawPath[] = []
    let above = parentOf(path)
    for (; above !== '' && isWithin({ path: above, directory: source }); above = parentOf(above)) {
      route.push(above)
    }
    return route
  })
}

/** rsync reads one list from standard input; where there are two, the rules are arguments. */
function lists(call: RsyncCall): (string | Buffer)[] {
  // First, for rsync reads a list when it comes to it.
  if (call.filesFrom === undefined) return ['--from0', '--exclude-from=-']
  const rules = filterRules(call).map((rule) => rawPathToBytes(`--exclude=${rule}`))
  return ['--from0', ...rules, '--files-from=-', '--force', '--delete-missing-args']
}

function zeroTerminated(lines: readonly RawPath[]): Buffer {
  return rawPathToBytes(lines.map((line) => `${line}\0`).join(''))
}

function rsyncArguments(call: RsyncCall): (string | Buffer)[] {
  const { bandwidthBytesPerSecond: bandwidth } = call
  return [
    '-aHAXS',
    '--numeric-ids',
    '--relative',
    // Into a snapshot what is unchanged costs nothing, and naming it would be most of the work.
    call.intoExisting === true && !call.dryRun ? '-i' : '-ii',
    '--out-format=%i %l %n',
    // Otherwise rsync compares whole seconds, and neither sees nor sets a time that differs by
    // less.
    ...(call.exactTimes ? ['--modify-window=-1'] : []),
    ...(call.dryRun ? ['--dry-run'] : []),
    ...(call.followLinks ? ['--copy-links'] : []),
    ...(call.compareContent === true ? ['--checksum'] : []),
    // In KiB, which every version understands.
    ...(bandwidth === undefined ? [] : [`--bwlimit=${Math.max(1, Math.round(bandwidth / 1024))}`]),
    ...deletion(call),
    ...call.linkDestinations
      .slice(0, MAX_LINK_DESTINATIONS)
      .map((path) => rawPathToBytes(`--link-dest=${path}`)),
    '--',
    ...sourceArguments(call),
    rawPathToBytes(`${call.target}/`),
  ]
}

/** What cannot be read is missing, as it would be in an empty directory: not a reason to keep. */
function deletion({ intoExisting, filesFrom }: RsyncCall): string[] {
  if (intoExisting !== true || filesFrom !== undefined) return []
  return ['--delete', '--delete-excluded', '--ignore-errors']
}

function sourceArguments({ sources, filesFrom }: RsyncCall): Buffer[] {
  if (filesFrom !== undefined) return [rawPathToBytes(`${sources[0]?.root ?? ''}/`)]
  return sources.map(({ root, path, isDirectory }) => {
    return rawPathToBytes(`${root}/.${path}${isDirectory && !path.endsWith('/') ? '/' : ''}`)
  })
}

/**
 * The rules, first match first: ours, then a source itself, which no pattern that happens to fit it
 * leaves out (`tmp/*` and the source `/tmp/mine`), then other paths left out, then the user's. Each
 * pattern is a rule of its own, so that `#` and `!` are not taken for comments and commands.
 */
function filterRules({ leftOut, leftOutPaths = [], sources, exclusions }: RsyncCall): RawPath[] {
  const below = sources.filter(({ path }) => path !== '/')
  return [
    '- lost+found/',
    ...leftOut.map((path) => `- ${literalPattern(path)}/`),
    ...below.map(({ path, isDirectory }) => `+ ${literalPattern(path)}${isDirectory ? '/' : ''}`),
    ...leftOutRules(leftOutPaths),
    ...exclusions
      .map(rawPathFromText)
      .map((pattern) => (/^[-+] /.test(pattern) ? pattern : `- ${pattern}`)),
  ]
}

function hearItem({ onItem }: RsyncCall, line: Buffer): void {
  const match = /^([<>ch.])([fdLDS])(.{9}) (\d+) (.*)$/s.exec(line.toString('latin1'))
  if (match === null) return
  const [, update, kind, attributes = '', length, name = ''] = match
  const isFile = kind === 'f'
  onItem({
    path: decodeName(name).replace(/\/$/, ''),
    isFile,
    sizeBytes: isFile ? Number(length) : 0,
    // `h` is linked, `.` is there already, with other attributes at most.
    copied: isFile && (update === '>' || update === 'c'),
    contentDiffers: isFile && update === '>' && attributes.startsWith('c..'),
  })
}

/** What rsync says on standard error. */
class Heard {
  readonly #call: RsyncCall
  readonly #missing = new Map<RawPath, string>()
  readonly #vanished = new Set<RawPath>()
  #targetFull = false
  #baseFailed = false
  lastLine = ''

  constructor(call: RsyncCall) {
    this.#call = call
  }

  take(bytes: Buffer): void {
    const line = bytes.toString('latin1').trimEnd()
    if (line === '' || line.startsWith('IO error encountered') || line.startsWith('*** Skipping'))
      return
    const refused = ATTRIBUTE_REFUSED.exec(line)
    if (refused === null && NO_SPACE.test(line)) this.#targetFull = true
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
    if (this.#isOfBase(line)) {
      this.#baseFailed = true
      return
    }
    if (refused !== null) {
      const [, printed = '', name = '', why = ''] = refused
      const path = printed.replace(/\/\.([^/]+)\.[A-Za-z0-9]{6}$/, '/$1')
      const attribute = `its attribute ${decodeName(name)} cannot be kept in staging`
      this.#addMissing(this.#ownPath(path), `${attribute}: ${why.toLowerCase()}`)
      return
    }
    const failed = /"(.+)"[^"]*: ([^:"]+) \(\d+\)$/s.exec(line)
    if (failed !== null)
      this.#addMissing(this.#ownPath(failed[1]?.replace(/","[^"]*$/s, '') ?? ''), failed[2] ?? '')
  }

  outcome(exitCode: number): RsyncOutcome {
    const isTold = this.#missing.size > 0 || this.#baseFailed
    if (exitCode === 23 && !this.#call.dryRun && !isTold) {
      this.#addMissing(this.#call.sources[0]?.path.replace(/^\/+/, '') ?? '', this.lastLine)
    }
    const missing = [...this.#missing].map(([path, why]) => ({ path, why }))
    return { missing, vanished: [...this.#vanished], targetFull: this.#targetFull }
  }

  /** A file of an earlier collection that could not be read: then today's is copied, not linked. */
  #isOfBase(line: string): boolean {
    const path = decodeName(/"(.+)"/s.exec(line)?.[1] ?? '')
    return this.#call.linkDestinations.some((base) => path.startsWith(`${base}/`))
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

export interface RsyncVersion {
  /** openrsync is what macOS calls `rsync`; it lacks most of what we ask for. */
  readonly kind: 'rsync' | 'openrsync' | 'unknown'
  /** Empty where it is unknown. */
  readonly version: string
  readonly capabilities: RsyncCapabilities
}

export interface RsyncCapabilities {
  readonly hardLinks: boolean
  readonly xattrs: boolean
  readonly acls: boolean
  /** Birth times. */
  readonly crtimes: boolean
  /** Times of symbolic links. */
  readonly symtimes: boolean
}

/** `--modify-window=-1` came with 3.1.3; the series after that one is the oldest we ask for. */
const OLDEST_VERSION = [3, 2] as const

/** It prints a few lines. */
const VERSION_TIMEOUT_MS = 10_000

/** Which rsync is installed. @throws BackupError PROGRAM_ABSENT, and what runProgram throws */
export async function rsyncVersion(): Promise<RsyncVersion> {
  // Said twice, new ones answer in JSON, and the others as if it were said once.
  const args = ['--version', '--version']
  const call = { program: 'rsync', args, changes: false, timeoutMs: VERSION_TIMEOUT_MS }
  return parseRsyncVersion((await runProgram(call)).stdout)
}

/**
 * Which rsync is installed, one that collecting can rely on.
 * @throws BackupError PROGRAM_ABSENT with what to install, also where it is the wrong one
 */
export async function checkRsync(): Promise<RsyncVersion> {
  const found = await rsyncVersion()
  const lack = whatIsWrong(found)
  if (lack === undefined) return found
  throw new BackupError('PROGRAM_ABSENT', `the rsync that is installed ${lack}`, {
    hint:
      'install rsync 3.2 or newer, first on PATH: '
      + 'brew install rsync (macOS), apt install rsync (Debian, Ubuntu)',
    facts: { program: 'rsync', ...found },
  })
}

function whatIsWrong({ kind, version, capabilities }: RsyncVersion): string | undefined {
  if (kind === 'openrsync') return 'is openrsync, which cannot make collections'
  const [major = 0, minor = 0] = version.split('.').map((part) => Number.parseInt(part, 10))
  if (kind === 'unknown' || Number.isNaN(major + minor)) return 'does not say its version'
  const [oldestMajor, oldestMinor] = OLDEST_VERSION
  if (major < oldestMajor || (major === oldestMajor && minor < oldestMinor)) {
    return `is version ${displayText(version)}, and 3.2 is the oldest that will do`
  }
  const { hardLinks, xattrs, acls } = capabilities
  return hardLinks && xattrs && acls
    ? undefined
    : 'was built without hard links, extended attributes or ACLs'
}

/** What `rsync --version` prints, as text or as JSON. */
export function parseRsyncVersion(printed: string): RsyncVersion {
  const [kind, version, names] = printed.startsWith('{') ? fromJson(printed) : fromText(printed)
  return {
    kind,
    version,
    capabilities: {
      hardLinks: names.includes('hardlinks'),
      xattrs: names.includes('xattrs'),
      acls: names.includes('ACLs'),
      crtimes: names.includes('crtimes'),
      symtimes: names.includes('symtimes'),
    },
  }
}

type Printed = readonly [kind: RsyncVersion['kind'], version: string, names: readonly string[]]

function fromJson(printed: string): Printed {
  try {
    const { program, version, capabilities } = JSON.parse(printed) as Record<string, unknown>
    const names = Object.entries(capabilities ?? {}).filter(([, value]) => value === true)
    return [program === 'rsync' ? 'rsync' : 'unknown', String(version), names.map(([name]) => name)]
  } catch {
    return ['unknown', '', []]
  }
}

function fromText(printed: string): Printed {
  const [, version = ''] = /^rsync\s+version\s+v?(\S+)/m.exec(printed) ?? []
  const kind = /^openrsync\b/m.test(printed) ? 'openrsync' : version === '' ? 'unknown' : 'rsync'
  const [, list = ''] = /^Capabilities:\n((?:[ \t].*\n)*)/m.exec(printed) ?? []
  return [kind, version, list.split(',').map((name) => name.trim())]
}
