// Restores paths of one collection from staging: verify, plan, rsync, look at the result.
//
// What verify-local.ts finds damaged is named and left out; the rest is planned path by path, so
// that a dry run counts what a real one does, and rsync gets exactly the paths to make. It copies,
// never links, and never in place (invariant 6). What is there afterwards decides the outcome, not
// what rsync says (invariant 10). restore.ts does the same from a repository. Throws NOTHING_FOUND,
// CATALOG_DAMAGED, STAGING_FAILED, USAGE, PROGRAM_ABSENT, PROGRAM_FAILED, INTERRUPTED.

import { Buffer } from 'node:buffer'
import {
  type BigIntStats,
  closeSync,
  constants,
  lstatSync,
  openSync,
  readSync,
  readlinkSync,
  realpathSync,
  statSync,
} from 'node:fs'
import { setImmediate } from 'node:timers/promises'
import { BackupError, type ErrorCode, systemCode } from '../errors.ts'
import { applyFlags, applyMetadata } from '../machine/metadata.ts'
import { getXattr, listXattrs } from '../machine/posix.ts'
import { decodeName } from '../machine/rsync.ts'
import { runProgram } from '../machine/shell.ts'
import { type Entry, dataBytes } from '../model/entry.ts'
import {
  type RawPath,
  baseOf,
  comparePaths,
  displayPath,
  displayText,
  isWithin,
  parentOf,
  rawPathFromText,
  rawPathToBytes,
} from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import type { RestoreFailure, RestoreOutcome } from './restore.ts'
import {
  type Collection,
  type CollectionPlace,
  collectionDirectory,
  readCollection,
} from './staging.ts'
import {
  type CollectionProblem,
  checkCollection,
  digestsFor,
  lockIfFree,
  selectCollected,
} from './verify-local.ts'

export interface RestoreLocalOptions extends CollectionPlace {
  /** Without leading slashes; none for everything. */
  readonly paths: readonly RawPath[]
  /**
   * An existing directory (in a dry run it need not be), without a trailing slash; empty for the
   * root.
   */
  readonly into: RawPath
  readonly overwrite: boolean
  readonly dryRun: boolean
  readonly report: Report
  readonly signal: AbortSignal
}

export interface RestoreLocalOutcome extends RestoreOutcome {
  /** The collection itself misses something that it names. */
  readonly incomplete: boolean
  /** Whether every file's content was compared with a digest before it was restored. */
  readonly contentChecked: boolean
}

/** A restore of a large disk takes days; one that takes a fortnight hangs. */
const RSYNC_TIMEOUT_MS = 14 * 24 * 60 * 60 * 1000

/**
 * So many paths, or bytes, are compared before the event loop gets a turn, to hear that it is to
 * stop.
 */
const PATHS_PER_TURN = 256
const BYTES_PER_TURN = 64 * 1024 * 1024

/** How much of two files is compared at a time. */
const COMPARED_BYTES = 1024 * 1024

const NODE_TYPE = 0o170000n
const PERMISSIONS = 0o7777n

/**
 * Restores the paths below `into`; a dry run changes nothing and returns what a real one would.
 * @throws BackupError NOTHING_FOUND when there is no such collection or path, USAGE when `into` is
 * in staging
 */
export async function restoreLocal(options: RestoreLocalOptions): Promise<RestoreLocalOutcome> {
  refuseStaging(options)
  const { set, stamp, report } = options
  const lock = lockIfFree({ ...options, description: `restoring ${set} ${stamp}` })
  try {
    const collection = readCollection(options)
    const digests = await digestsFor(options)
    const { problems, contentChecked } = await checkCollection(collection, { ...options, digests })
    if (!contentChecked) {
      const why = 'no export tells the digests of all files, so only their metadata was checked'
      const message = `${set} ${stamp}: ${why}`
      report({ kind: 'notice', level: 'info', code: 'CONTENT_NOT_CHECKED', message })
    }
    report({ kind: 'phase', name: 'restoring' })
    const restore = new Restore(options, { collection, problems, lockFd: lock?.fd })
    return { ...(await restore.run()), incomplete: !collection.header.complete, contentChecked }
  } finally {
    lock?.release()
  }
}

/** @throws BackupError USAGE */
function refuseStaging({ staging, into }: RestoreLocalOptions): void {
  if (
    into === ''
    || !isWithin({ path: realPath(into), directory: realPath(rawPathFromText(staging)) })
  ) {
    return
  }
  const message = `"${displayPath(into)}" is in staging, where nothing may be changed`
  throw new BackupError('USAGE', message, { hint: 'restore into another directory' })
}

/** What is not there yet is taken for what it says. */
function realPath(path: RawPath): RawPath {
  try {
    return realpathSync(rawPathToBytes(path), { encoding: 'latin1' })
  } catch {
    return path
  }
}

/** What a directory's place holds: the link is one to a directory, in the original place. */
type DirectoryState = 'there' | 'link' | 'absent' | 'blocked'

type Verdict = 'same' | 'kept' | 'write'

interface Planned {
  readonly entry: Entry
  verdict: Verdict
  /** What was there before. */
  readonly before: BigIntStats | undefined
}

class Restore {
  readonly #options: RestoreLocalOptions
  readonly #collection: Collection
  readonly #lockFd: number | undefined
  readonly #tree: RawPath
  readonly #problems: ReadonlyMap<RawPath, CollectionProblem>
  readonly #entries: ReadonlyMap<RawPath, Entry>
  readonly #states = new Map<RawPath, DirectoryState>([['', 'there']])
  /** Directories to make, or whose metadata is to be restored. */
  readonly #directories = new Set<RawPath>()
  /** By the path that stands for all hard links of a file; whatever is no file is alone. */
  readonly #groups = new Map<RawPath, Planned[]>()
  readonly #failures: RestoreFailure[] = []
  readonly #lost: { path: RawPath; what: readonly string[] }[] = []
  /** What rsync complained about, by path. */
  readonly #complaints = new Map<RawPath, string>()
  #lastComplaint = 'rsync did not make it'

  constructor(
    options: RestoreLocalOptions,
    {
      collection,
      problems,
      lockFd,
    }: {
      readonly collection: Collection
      readonly problems: readonly CollectionProblem[]
      readonly lockFd: number | undefined
    },
  ) {
    this.#options = options
    this.#collection = collection
    this.#lockFd = lockFd
    this.#tree = rawPathFromText(collectionDirectory(options))
    this.#problems = new Map(problems.map((problem) => [problem.path, problem]))
    this.#entries = new Map(collection.entries.map((entry) => [entry.path, entry]))
  }

  async run(): Promise<RestoreOutcome> {
    await this.#plan()
    this.#judgeLinks()
    if (!this.#options.dryRun) {
      await this.#copy()
      this.#finishDirectories()
      this.#applyFlags()
    }
    return this.#outcome()
  }

  #place(path: RawPath): RawPath {
    return `${this.#options.into}/${path}`
  }

  #staged(path: RawPath): RawPath {
    return `${this.#tree}/${path}`
  }

  async #plan(): Promise<void> {
    const { paths, signal } = this.#options
    let bytes = 0
    let done = 0
    for (const entry of selectCollected(this.#collection, paths)) {
      this.#guard(entry, () => {
        bytes += this.#planEntry(entry)
      })
      done += 1
      if (done % PATHS_PER_TURN > 0 && bytes < BYTES_PER_TURN) continue
      bytes = 0
      await setImmediate()
      if (signal.aborted) {
        throw new BackupError('INTERRUPTED', 'interrupted', { hint: 'nothing was restored yet' })
      }
    }
  }

  /** Runs an action for one entry; a failure is that entry's alone. */
  #guard({ path }: Entry, action: () => void): void {
    try {
      action()
    } catch (error) {
      const code = systemCode(error)
      if (error instanceof BackupError) this.#fail(path, error.message, error.code)
      else if (code === undefined) throw error
      else this.#fail(path, `it cannot be made (${code})`)
    }
  }

  #fail(path: RawPath, why: string, code: ErrorCode = 'RESTORE_FAILED'): void {
    this.#failures.push({ path, code, why })
  }

  /** Decides about one entry; returns how many bytes were read for it. */
  #planEntry(entry: Entry): number {
    const { path } = entry
    const problem = this.#problems.get(path)
    if (problem !== undefined && !this.#isCured(entry, problem)) {
      this.#fail(path, problem.why, 'STAGING_DAMAGED')
      return 0
    }
    const isDirectory = entry.type === 'directory'
    const state = this.#stateOf(isDirectory ? path : parentOf(path))
    if (state === 'blocked') {
      throw new BackupError(
        'UNSAFE_PATH',
        'what should be a directory here is none; it was left alone',
      )
    }
    if (isDirectory) {
      if (state === 'absent') this.#needDirectory(path)
      else if (state === 'there' && this.#options.overwrite) this.#directories.add(path)
      return 0
    }
    const place = rawPathToBytes(this.#place(path))
    const before =
      state === 'absent' ? undefined : lstatSync(place, { throwIfNoEntry: false, bigint: true })
    const { verdict, bytes } = this.#judge(entry, before)
    const key = entry.type === 'link' ? entry.target! : path
    const group = this.#groups.get(key)
    if (group === undefined) this.#groups.set(key, [{ entry, verdict, before }])
    else group.push({ entry, verdict, before })
    return bytes
  }

  /**
   * A directory gets its metadata from the catalog in the end, whatever was done to it in staging.
   */
  #isCured({ type, path }: Entry, { kind }: CollectionProblem): boolean {
    return (
      kind === 'changed'
      && type === 'directory'
      && lstatSync(rawPathToBytes(this.#staged(path))).isDirectory()
    )
  }

  #judge(
    { path }: Entry,
    there: BigIntStats | undefined,
  ): { readonly verdict: Verdict; readonly bytes: number } {
    if (there === undefined) return { verdict: 'write', bytes: 0 }
    if (there.isDirectory()) return { verdict: 'kept', bytes: 0 }
    const [staged, place] = [this.#staged(path), this.#place(path)]
    const isCandidate = differences(staged, place).filter(matters(there)).length === 0
    const isSame = isCandidate && (!there.isFile() || hasSameBytes(staged, place))
    const bytes = isCandidate && there.isFile() ? Number(there.size) : 0
    return { verdict: isSame ? 'same' : this.#options.overwrite ? 'write' : 'kept', bytes }
  }

  #stateOf(path: RawPath): DirectoryState {
    const known = this.#states.get(path)
    if (known !== undefined) return known
    const parent = this.#stateOf(parentOf(path))
    const state = parent === 'absent' || parent === 'blocked' ? parent : this.#lookAt(path)
    this.#states.set(path, state)
    return state
  }

  #lookAt(path: RawPath): DirectoryState {
    const place = rawPathToBytes(this.#place(path))
    const there = lstatSync(place, { throwIfNoEntry: false })
    if (there === undefined) return 'absent'
    if (there.isDirectory()) return 'there'
    // In the original place the machine's own links to directories (~/data → /data) stay.
    const isLink =
      this.#options.into === ''
      && there.isSymbolicLink()
      && statSync(place, { throwIfNoEntry: false })?.isDirectory() === true
    return isLink ? 'link' : 'blocked'
  }

  /**
   * Parents that are not there get the collection's metadata; those that are there keep their own.
   */
  #needDirectory(path: RawPath): void {
    let at = path
    while (!this.#directories.has(at) && this.#stateOf(at) === 'absent') {
      this.#directories.add(at)
      at = parentOf(at)
    }
  }

  /** Files that are the same, but not linked to each other as they should be, are not the same. */
  #judgeLinks(): void {
    for (const group of this.#groups.values()) {
      const [first, ...others] = group.filter(({ verdict }) => verdict === 'same')
      for (const other of others) {
        if (other.before?.ino === first?.before?.ino && other.before?.dev === first?.before?.dev) {
          continue
        }
        other.verdict = this.#options.overwrite ? 'write' : 'kept'
      }
      for (const { entry, verdict } of group) {
        if (verdict === 'write') this.#needDirectory(parentOf(entry.path))
      }
    }
  }

  async #copy(): Promise<void> {
    const planned = this.#planned('write')
    const batches = new Map<RawPath, RawPath[]>()
    const add = (path: RawPath) => {
      const root = this.#rootOf(path)
      const batch = batches.get(root)
      if (batch === undefined) batches.set(root, [path])
      else batch.push(path)
    }
    for (const path of this.#directories) add(path)
    for (const group of this.#groups.values()) {
      // With one link of a file that has to be made, rsync has to see those that are there.
      const isNeeded = group.some(({ verdict }) => verdict === 'write')
      for (const { entry, verdict } of group) if (isNeeded && verdict !== 'kept') add(entry.path)
    }
    const progress = this.#progress(planned)
    let exitCode = 0
    for (const [root, paths] of batches) {
      exitCode = (await this.#runRsync({ root, paths, progress })) || exitCode
    }
    for (const { entry, before } of planned) {
      this.#guard(entry, () => this.#lookAtResult(entry, before))
    }
    if (exitCode === 0 || this.#failures.length + this.#lost.length > 0) return
    if (exitCode !== 23 && exitCode !== 24) {
      const said = `rsync failed with exit code ${exitCode}: ${this.#lastComplaint}`
      throw new BackupError('PROGRAM_FAILED', said, { facts: { program: 'rsync', exitCode } })
    }
    const message = `rsync said ${this.#lastComplaint}; every path is there all the same`
    this.#options.report({ kind: 'notice', level: 'warning', code: 'PROGRAM_SAID', message })
  }

  /**
   * rsync 3.5 follows no link on its way to a file, so what lies behind one is copied from there.
   */
  #rootOf(path: RawPath): RawPath {
    for (let at = parentOf(path); at !== ''; at = parentOf(at)) {
      if (this.#stateOf(at) === 'link') return at
    }
    return ''
  }

  async #runRsync({
    root,
    paths,
    progress,
  }: {
    readonly root: RawPath
    readonly paths: readonly RawPath[]
    readonly progress: (path: RawPath) => void
  }): Promise<number> {
    const within = (path: RawPath) => (root === '' ? path : path.slice(root.length + 1))
    const full = (path: RawPath) => (root === '' ? path : `${root}/${path}`)
    const [source, target] =
      root === ''
        ? [`${this.#tree}/`, `${this.#options.into}/`]
        : [`${this.#staged(root)}/`, `${this.#place(root)}/`]
    const { exitCode } = await runProgram({
      program: 'rsync',
      args: [
        // Whatever is listed is written anew: the plan has compared more than sizes and times.
        '-aHAXS',
        '--numeric-ids',
        '--relative',
        '--ignore-times',
        // Only what is listed: directories without what is in them, and no parents.
        '--no-recursive',
        '--dirs',
        '--no-implied-dirs',
        '--from0',
        '--files-from=-',
        '-ii',
        '--out-format=%i %n',
        '--',
        rawPathToBytes(source),
        rawPathToBytes(target),
      ],
      changes: true,
      dryRun: this.#options.dryRun,
      timeoutMs: RSYNC_TIMEOUT_MS,
      // With `./`, for a line that begins with `#` or `;` is a comment.
      input: rawPathToBytes(paths.map((path) => `./${within(path)}\0`).join('')),
      onLine: (line, stream) => {
        const text = line.toString('latin1')
        if (stream === 'stderr') this.#hear(text, target)
        else if (/^[>ch]/.test(text)) progress(full(decodeName(text.slice(12))))
      },
      signal: this.#options.signal,
      ...(this.#lockFd === undefined ? {} : { inherit: this.#lockFd }),
    })
    return exitCode
  }

  /** Keeps why rsync could not do something, for the paths that turn out not to be there. */
  #hear(line: string, target: RawPath): void {
    if (line.trim() === '') return
    // The last line only sums up.
    if (!line.startsWith('rsync error: some files')) this.#lastComplaint = displayText(line)
    const match = /"(.+)"[^"]*: ([^:"]+) \(\d+\)$/s.exec(line)
    if (match === null) return
    const printed = decodeName(match[1] ?? '')
    const root = [target, `${this.#tree}/`].find((prefix) => printed.startsWith(prefix))
    if (root === undefined) return
    const path = this.#collectionPath(printed, root)
    // rsync's own name for `f` while it is being written is `.f.Ab12Cd`.
    const temporary = /^\.(.+)\.[A-Za-z0-9]{6}$/s.exec(baseOf(path))
    const parent = parentOf(path)
    const owner = temporary === null ? path : `${parent === '' ? '' : `${parent}/`}${temporary[1]}`
    const why = displayText(match[2] ?? '').toLowerCase()
    for (const one of [path, owner]) if (!this.#complaints.has(one)) this.#complaints.set(one, why)
  }

  #collectionPath(printed: RawPath, root: RawPath): RawPath {
    const start = root.startsWith(`${this.#tree}/`) ? this.#tree : this.#options.into
    return printed.slice(start.length).replace(/^\/(\.\/)?/, '')
  }

  #progress(planned: readonly Planned[]): (path: RawPath) => void {
    const { report } = this.#options
    const bytesTotal = planned.reduce((sum, { entry }) => sum + dataBytes(entry), 0)
    let [filesDone, bytesDone] = [0, 0]
    return (path) => {
      const entry = this.#entries.get(path)
      if (entry === undefined || entry.type === 'directory') return
      filesDone += 1
      bytesDone += dataBytes(entry)
      report({
        kind: 'progress',
        phase: 'restoring',
        filesDone,
        filesTotal: planned.length,
        bytesDone,
        bytesTotal,
        current: path,
      })
    }
  }

  #lookAtResult(entry: Entry, before: BigIntStats | undefined): void {
    const { path } = entry
    const place = this.#place(path)
    const there = lstatSync(rawPathToBytes(place), { throwIfNoEntry: false, bigint: true })
    const complaint = this.#complaints.get(path) ?? this.#lastComplaint
    // rsync never writes in place: the inode that was there before is the old file.
    const isOld =
      there?.isFile() === true
      && before?.isFile() === true
      && there.ino === before.ino
      && there.dev === before.dev
    if (there === undefined || isOld) return this.#fail(path, complaint)
    const what = differences(this.#staged(path), place)
    if (what.some((name) => CONTENTS.has(name))) return this.#fail(path, complaint)
    if (what.length === 0) return
    // rsync leaves the nanoseconds of a FIFO or device that it makes within the second of its time.
    applyMetadata(place, entry)
    const lost = differences(this.#staged(path), place)
    if (lost.length > 0) this.#lost.push({ path, what: lost })
  }

  /** From the catalog: the directory in staging may have been touched since. */
  #finishDirectories(): void {
    for (const path of [...this.#directories].sort(comparePaths).reverse()) {
      const entry = this.#entries.get(path)
      if (entry === undefined) continue
      const place = rawPathToBytes(this.#place(path))
      if (lstatSync(place, { throwIfNoEntry: false })?.isDirectory() !== true) {
        this.#fail(path, this.#complaints.get(path) ?? this.#lastComplaint)
        continue
      }
      this.#guard(entry, () => {
        const what = applyMetadata(this.#place(path), entry)
        if (what.length > 0) this.#lost.push({ path, what })
      })
    }
  }

  /** Last: nothing more can be done to an immutable file. Files in staging have no flags. */
  #applyFlags(): void {
    const failed = new Set(this.#failures.map(({ path }) => path))
    const written = this.#planned('write').map(({ entry }) => entry)
    const directories = [...this.#directories].map((path) => this.#entries.get(path))
    for (const entry of [...written, ...directories]) {
      if (entry?.flags === undefined || failed.has(entry.path)) continue
      this.#guard(entry, () => {
        const what = applyFlags(this.#place(entry.path), entry)
        if (what.length > 0) this.#lost.push({ path: entry.path, what })
      })
    }
  }

  #planned(verdict: Verdict): Planned[] {
    return [...this.#groups.values()].flat().filter((planned) => planned.verdict === verdict)
  }

  #outcome(): RestoreOutcome {
    const failed = new Set(this.#failures.map(({ path }) => path))
    let bytes = 0
    for (const [key, group] of this.#groups) {
      const isCopied = group.some(
        ({ entry, verdict }) => verdict === 'write' && !failed.has(entry.path),
      )
      const isLinked = group.some(({ verdict }) => verdict === 'same')
      const carrier = this.#entries.get(key)
      if (isCopied && !isLinked && carrier !== undefined) bytes += dataBytes(carrier)
    }
    const byPath = (a: { readonly path: RawPath }, b: { readonly path: RawPath }) =>
      comparePaths(a.path, b.path)
    return {
      written: this.#planned('write').filter(({ entry }) => !failed.has(entry.path)).length,
      same: this.#planned('same').length,
      bytes,
      kept: this.#planned('kept')
        .map(({ entry }) => entry.path)
        .sort(comparePaths),
      failures: this.#failures.sort(byPath),
      lost: this.#lost.sort(byPath),
    }
  }
}

/** Differences that make it another file; the others are metadata. */
const CONTENTS: ReadonlySet<string> = new Set(['type', 'size', 'link target', 'device'])

/**
 * Which differences make a path that is there another one than what would be restored. Who is not
 * root cannot own what another does; links and special files are what they point to, whenever they
 * were made.
 */
function matters(there: BigIntStats): (what: string) => boolean {
  const isRoot = process.geteuid?.() === 0
  return (what) => {
    if (what === 'owner') return isRoot
    if (what === 'time') return there.isFile()
    return isRoot || !what.startsWith('xattr ') || what.startsWith('xattr user.')
  }
}

/** What differs between a staged path and its copy, content apart. */
function differences(staged: RawPath, copy: RawPath): string[] {
  const a = lstatSync(rawPathToBytes(staged), { bigint: true })
  const b = lstatSync(rawPathToBytes(copy), { bigint: true })
  if ((a.mode & NODE_TYPE) !== (b.mode & NODE_TYPE)) return ['type']
  const what: string[] = []
  if (a.isFile() && a.size !== b.size) what.push('size')
  if (a.isSymbolicLink() && targetOf(staged) !== targetOf(copy)) what.push('link target')
  if ((a.isCharacterDevice() || a.isBlockDevice()) && a.rdev !== b.rdev) what.push('device')
  if (a.mtimeNs !== b.mtimeNs) what.push('time')
  if ((a.mode & PERMISSIONS) !== (b.mode & PERMISSIONS)) what.push('mode')
  if (a.uid !== b.uid || a.gid !== b.gid) what.push('owner')
  return [...what, ...attributeDifferences(staged, copy)]
}

function targetOf(link: RawPath): RawPath {
  return readlinkSync(rawPathToBytes(link), { encoding: 'latin1' })
}

function attributeDifferences(staged: RawPath, copy: RawPath): string[] {
  const names = new Set([...listXattrs(staged), ...listXattrs(copy)])
  const what = new Set<string>()
  for (const name of names) {
    const isAcl = name.startsWith('system.posix_acl_')
    if (name.startsWith('system.') && !isAcl) continue
    const [a, b] = [getXattr(staged, name), getXattr(copy, name)]
    if (a === undefined || b === undefined ? a !== b : !a.equals(b)) {
      what.add(isAcl ? 'acl' : `xattr ${name}`)
    }
  }
  return [...what]
}

/** Two files of one size. */
function hasSameBytes(staged: RawPath, copy: RawPath): boolean {
  const files = [staged, copy].map((path) =>
    openSync(rawPathToBytes(path), constants.O_RDONLY | constants.O_NOFOLLOW),
  )
  try {
    const buffers = files.map(() => Buffer.allocUnsafe(COMPARED_BYTES))
    for (;;) {
      const [a, b] = files.map((fd, index) => readBlock(fd, buffers[index]!)) as [Buffer, Buffer]
      if (!a.equals(b)) return false
      if (a.length < COMPARED_BYTES) return true
    }
  } finally {
    files.forEach((fd) => closeSync(fd))
  }
}

/** As much as fits, or as there is left. */
function readBlock(fd: number, buffer: Buffer): Buffer {
  let done = 0
  for (let read = -1; read !== 0 && done < buffer.length; done += read) {
    read = readSync(fd, buffer, done, buffer.length - done, null)
  }
  return buffer.subarray(0, done)
}
