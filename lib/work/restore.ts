// Restores paths of one export into a directory: plan, directories, files by worker threads, links,
// metadata.
//
// Upholds invariants 9 and 10: every path is checked, no link is followed below the directory,
// files get their final names only when their bytes are proven, and whatever is not restored is
// named. Throws TARGET and catalog errors, NOTHING_FOUND.

import {
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readlinkSync,
  renameSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs'
import { BackupError, type ErrorCode, systemCode, unpackError } from '../errors.ts'
import { applyFlags, applyMetadata } from '../machine/metadata.ts'
import { makeNode } from '../machine/posix.ts'
import { type Entry, type FrameRange, dataBytes } from '../model/entry.ts'
import {
  type RawPath,
  baseOf,
  comparePaths,
  displayPath,
  isWithin,
  parentOf,
  rawPathToBytes,
} from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import { checkSafePath } from '../model/safe-path.ts'
import type { ShardPlace } from '../model/shard.ts'
import type { ExportReader } from './export-reader.ts'
import {
  type FileOutcome,
  type RestoreItem,
  type RestoreReply,
  type RestoreSettings,
  isPartialName,
  partialName,
} from './restore-worker.ts'
import { runWorkers } from './worker-pool.ts'

export interface RestoreOptions {
  readonly reader: ExportReader
  readonly identities: readonly string[]
  /** An existing directory, without a trailing slash; empty for the root. */
  readonly into: RawPath
  readonly overwrite: boolean
  readonly dryRun: boolean
  readonly cores: number
  readonly report: Report
  readonly signal: AbortSignal
}

export interface RestoreFailure {
  readonly path: RawPath
  readonly code: ErrorCode
  readonly why: string
}

export interface RestoreOutcome {
  readonly written: number
  readonly same: number
  readonly bytes: number
  /** Something else is there and was left alone. */
  readonly kept: readonly RawPath[]
  readonly failures: readonly RestoreFailure[]
  /** Metadata that could not be set here. */
  readonly lost: readonly { readonly path: RawPath; readonly what: readonly string[] }[]
}

/** What is to be restored. */
export interface Selection {
  /** In catalog order. */
  readonly entries: readonly Entry[]
  /**
   * The directories above them, which are made as they were where they are missing, and else left
   * alone.
   */
  readonly parents: readonly Entry[]
  readonly bundles: RestoreSettings['bundles']
}

/** What would be restored. @throws BackupError NOTHING_FOUND when a path matches nothing */
export async function selectEntries(
  reader: ExportReader,
  paths: readonly RawPath[],
): Promise<Selection> {
  const table = new BundleNumbers(reader)
  const wanted = paths.length === 0 ? [''] : paths
  const candidates = new Set<ShardPlace>()
  for (const path of wanted) {
    for (const place of await reader.shardsOf(path)) candidates.add(place)
  }
  const places = (await reader.index()).filter((place) => candidates.has(place))
  const entries: Entry[] = []
  const parents = await findParents(reader, paths)
  for await (const { shard } of reader.shards(places)) {
    for (const entry of shard.entries) {
      const isWanted = wanted.some((directory) => isWithin({ path: entry.path, directory }))
      if (isWanted) entries.push(table.renumber(entry, shard.bundles))
    }
  }
  for (const path of paths) {
    if (entries.some((entry) => isWithin({ path: entry.path, directory: path }))) continue
    throw new BackupError('NOTHING_FOUND', `there is no ${displayPath(path)} in this export`, {
      hint: 'paths are those of the source: --path /home/you/letters; --list shows the exports',
    })
  }
  const selected = new Set(entries.map(({ path }) => path))
  const standIns = new Map<RawPath, RawPath>()
  const resolved: Entry[] = []
  for (const entry of entries) {
    const isWhole = entry.type !== 'link' || selected.has(entry.target!)
    const context = { standIns, reader, table }
    resolved.push(isWhole ? entry : await resolveLink(entry, context))
  }
  return { entries: resolved, parents, bundles: table.bundles() }
}

async function findParents(
  reader: ExportReader,
  paths: readonly RawPath[],
): Promise<readonly Entry[]> {
  const wanted = new Set<RawPath>()
  for (const path of paths) {
    for (let parent = parentOf(path); parent !== ''; parent = parentOf(parent)) wanted.add(parent)
  }
  const parents: Entry[] = []
  for (const path of [...wanted].sort(comparePaths)) {
    const [place] = await reader.shardsOf(path)
    if (place === undefined) continue
    const entry = (await reader.shard(place)).entries.find((one) => one.path === path)
    if (entry?.type === 'directory') parents.push(entry)
  }
  return parents
}

/** Bundles of several shards under one numbering. */
class BundleNumbers {
  readonly #reader: ExportReader
  readonly #numbers = new Map<string, number>()
  readonly #frames: Map<number, FrameRange>[] = []

  constructor(reader: ExportReader) {
    this.#reader = reader
  }

  renumber(
    entry: Entry,
    places: readonly { readonly name: string; readonly frames: readonly FrameRange[] }[],
  ): Entry {
    const { header: _header, pieces, ...rest } = entry
    if (pieces === undefined) return rest
    const map = (bundle: number) => this.#numberOf(places[bundle]!)
    return {
      ...rest,
      pieces: pieces.map(([id, bundle, offset, length]) => [id, map(bundle), offset, length]),
    }
  }

  bundles(): RestoreSettings['bundles'] {
    return [...this.#numbers].map(([name, number]) => ({
      path: this.#reader.bundleAddress(name),
      frames: [...this.#frames[number]!.values()].sort((a, b) => a[0] - b[0]),
    }))
  }

  #seen = new WeakMap<object, number>()

  #numberOf(place: { readonly name: string; readonly frames: readonly FrameRange[] }): number {
    const seen = this.#seen.get(place)
    if (seen !== undefined) return seen
    let number = this.#numbers.get(place.name)
    if (number === undefined) {
      this.#numbers.set(place.name, (number = this.#numbers.size))
      this.#frames.push(new Map())
    }
    for (const frame of place.frames) this.#frames[number]!.set(frame[0], frame)
    this.#seen.set(place, number)
    return number
  }
}

/**
 * A hard link whose first path is not restored becomes the file itself, and the first of those that
 * follow.
 */
async function resolveLink(
  entry: Entry,
  context: {
    /** By the path that is not restored: which one is the file instead. */
    readonly standIns: Map<RawPath, RawPath>
    readonly reader: ExportReader
    readonly table: BundleNumbers
  },
): Promise<Entry> {
  const { standIns, reader, table } = context
  const target = entry.target!
  const standIn = standIns.get(target)
  if (standIn !== undefined) return { ...entry, target: standIn }
  for (const place of await reader.shardsOf(target)) {
    const shard = await reader.shard(place)
    const file = shard.entries.find(({ path }) => path === target)
    if (file === undefined) continue
    standIns.set(target, entry.path)
    const { pieces, size, sparse, chunk } = table.renumber(file, shard.bundles)
    const { target: _target, ...rest } = entry
    return {
      ...rest,
      type: 'file',
      ...(size === undefined ? {} : { size }),
      ...(sparse === undefined ? {} : { sparse }),
      ...(pieces === undefined ? {} : { pieces }),
      ...(chunk === undefined ? {} : { chunk }),
    }
  }
  throw new BackupError(
    'CATALOG_DAMAGED',
    `${displayPath(entry.path)} is a link to a file that is not there`,
  )
}

/** Restores what selectEntries() found. */
export async function restoreEntries(
  options: RestoreOptions,
  selection: Selection,
): Promise<RestoreOutcome> {
  if (options.dryRun) return previewRestore(options, selection.entries)
  return await new Restore(options).run(selection)
}

/**
 * What restoring would do, told from sizes and times alone: content is compared only when it is
 * really restored.
 */
function previewRestore(
  { into, overwrite }: RestoreOptions,
  entries: readonly Entry[],
): RestoreOutcome {
  let written = 0
  let same = 0
  let bytes = 0
  const kept: RawPath[] = []
  for (const entry of entries) {
    if (entry.type === 'directory') continue
    checkSafePath(entry.path)
    const there = lstatSync(rawPathToBytes(`${into}/${entry.path}`), {
      throwIfNoEntry: false,
      bigint: true,
    })
    const isSame =
      there !== undefined
      && there.mtimeNs === entry.mtimeNs
      && (entry.type !== 'file' || there.size === BigInt(entry.size ?? 0))
    if (isSame) same += 1
    else if (there !== undefined && !overwrite) kept.push(entry.path)
    else {
      written += 1
      bytes += dataBytes(entry)
    }
  }
  return { written, same, bytes, kept, failures: [], lost: [] }
}

/** The target is not reached any more, or may not be read. */
const ENDING: readonly string[] = ['TARGET_ABSENT', 'TARGET_DENIED', 'COLD_STORAGE']

class Restore {
  readonly #options: RestoreOptions
  /**
   * Real directories below `into`: made now, made by a restore that was killed, or there before.
   */
  readonly #directories = new Map<RawPath, 'made' | 'resumed' | 'there'>([['', 'there']])
  readonly #kept: RawPath[] = []
  readonly #failures: RestoreFailure[] = []
  readonly #lost: { path: RawPath; what: readonly string[] }[] = []
  /** Finished but for their inode flags, which come last. */
  readonly #flagged: Entry[] = []
  #written = 0
  #same = 0
  #bytes = 0

  constructor(options: RestoreOptions) {
    this.#options = options
  }

  async run({ entries, parents, bundles }: Selection): Promise<RestoreOutcome> {
    const safe = entries.filter((entry) => this.#guard(entry, () => checkSafePath(entry.path)))
    const ready = safe.filter((entry) =>
      this.#guard(entry, () =>
        this.#makeDirectory(entry.type === 'directory' ? entry.path : parentOf(entry.path)),
      ),
    )
    await this.#restoreFiles(
      ready.filter(({ type }) => type === 'file'),
      bundles,
    )
    for (const entry of ready) {
      if (entry.type !== 'file' && entry.type !== 'directory')
        this.#guard(entry, () => this.#makeOther(entry))
    }
    for (const [path, how] of this.#directories) {
      if (how !== 'there') unlinkSync(rawPathToBytes(this.#marker(path)))
    }
    this.#finishDirectories(ready, { overwrite: this.#options.overwrite })
    this.#finishDirectories(parents, { overwrite: false })
    for (const entry of this.#flagged) this.#guard(entry, () => this.#applyFlags(entry))
    return {
      written: this.#written,
      same: this.#same,
      bytes: this.#bytes,
      kept: this.#kept.sort(comparePaths),
      failures: this.#failures,
      lost: this.#lost,
    }
  }

  #place(path: RawPath): RawPath {
    return `${this.#options.into}/${path}`
  }

  /** Runs an action for one entry; a failure is that entry's alone. */
  #guard(entry: Entry, action: () => void): boolean {
    try {
      action()
      return true
    } catch (error) {
      const code = systemCode(error)
      if (!(error instanceof BackupError) && code === undefined) throw error
      const failure =
        error instanceof BackupError
          ? { code: error.code, why: error.message }
          : { code: 'RESTORE_FAILED' as const, why: `it cannot be made (${code})` }
      this.#failures.push({ path: entry.path, ...failure })
      return false
    }
  }

  /** Makes a directory and its parents, following no link (invariant 9). */
  #makeDirectory(path: RawPath): void {
    if (this.#directories.has(path)) return
    this.#makeDirectory(parentOf(path))
    const place = rawPathToBytes(this.#place(path))
    // In the original place the machine's own links to directories (~/data → /data) are where they
    // were.
    const look = this.#options.into === '' ? statSync : lstatSync
    const there = look(place, { throwIfNoEntry: false })
    if (there !== undefined && !there.isDirectory()) {
      throw new BackupError('UNSAFE_PATH', `${displayPath(path)} is no directory here`, {
        hint: 'it was left alone, and nothing was restored below it',
      })
    }
    const how = there === undefined ? 'made' : this.#sweep(path) ? 'resumed' : 'there'
    if (how === 'made') mkdirSync(place, { mode: 0o700 })
    if (how !== 'there') {
      writeFileSync(rawPathToBytes(this.#marker(path)), '', { flag: 'wx', mode: 0o600 })
    }
    this.#directories.set(path, how)
  }

  /**
   * Lies in a directory that a restore made until the directory has its metadata: what a killed one
   * made is known by it, and finished.
   */
  #marker(path: RawPath): RawPath {
    return `${this.#place(path)}/${partialName(0)}`
  }

  /** Removes what a killed restore left in a directory. @returns whether that restore made it */
  #sweep(path: RawPath): boolean {
    const isMarked = existsSync(rawPathToBytes(this.#marker(path)))
    for (const name of readdirSync(rawPathToBytes(this.#place(path)), { encoding: 'latin1' })) {
      if (isPartialName(name)) unlinkSync(rawPathToBytes(`${this.#place(path)}/${name}`))
    }
    return isMarked
  }

  async #restoreFiles(files: readonly Entry[], bundles: RestoreSettings['bundles']): Promise<void> {
    const items = files.map((entry, index): RestoreItem => ({
      index,
      path: this.#place(entry.path),
      entry,
      isFresh: this.#directories.get(parentOf(entry.path)) === 'made',
    }))
    const bytesTotal = files.reduce((sum, entry) => sum + dataBytes(entry), 0)
    const { reader, identities, overwrite, cores, report, signal } = this.#options
    const settings: RestoreSettings = { identities, bundles, overwrite }
    await runWorkers<readonly RestoreItem[], RestoreReply>({
      script: './restore-worker.js',
      ahead: 2,
      workerData: settings,
      target: reader.target,
      sizes: reader.bundleSizes(),
      requests: makeBatches(items),
      workers: cores,
      signal,
      interruptedHint: 'files restored so far are whole; the same command goes on from there',
      onReply: ({ outcomes, bytes }) => {
        for (const { index, outcome } of outcomes) {
          // Whatever else was tried would fail as well.
          if (outcome.kind === 'failed' && ENDING.includes(outcome.error.code ?? '')) {
            throw unpackError(outcome.error)
          }
          this.#takeOutcome(files[index]!, outcome)
        }
        this.#bytes += bytes
        report({
          kind: 'progress',
          phase: 'restoring',
          filesDone: this.#written + this.#same,
          filesTotal: files.length,
          bytesDone: this.#bytes,
          bytesTotal,
          ...(outcomes[0] === undefined ? {} : { current: files[outcomes[0].index]!.path }),
        })
      },
    })
  }

  #takeOutcome(entry: Entry, outcome: FileOutcome): void {
    const isOurs =
      outcome.kind === 'written' || (outcome.kind === 'same' && this.#options.overwrite)
    if (isOurs && entry.flags !== undefined) this.#flagged.push(entry)
    if (outcome.kind === 'written') {
      this.#written += 1
      if (outcome.lost.length > 0) this.#lost.push({ path: entry.path, what: outcome.lost })
    } else if (outcome.kind === 'same') {
      this.#same += 1
      if (outcome.lost.length > 0) this.#lost.push({ path: entry.path, what: outcome.lost })
    } else if (outcome.kind === 'kept') this.#kept.push(entry.path)
    else
      this.#guard(entry, () => {
        throw unpackError(outcome.error)
      })
  }

  #makeOther(entry: Entry): void {
    const path = this.#place(entry.path)
    const there = lstatSync(rawPathToBytes(path), { throwIfNoEntry: false })
    if (there !== undefined) {
      if (this.#isSame(entry, path)) {
        this.#same += 1
        return
      }
      if (there.isDirectory() || !this.#options.overwrite) {
        this.#kept.push(entry.path)
        return
      }
    }
    if (entry.type === 'socket') {
      this.#lost.push({ path: entry.path, what: ['socket: its program makes it again'] })
      return
    }
    const partial = `${parentOf(path)}/${partialName(1)}`
    makeSpecial(entry, {
      path: partial,
      linkTarget: entry.target === undefined ? '' : this.#place(entry.target),
    })
    try {
      const lost = entry.type === 'link' ? [] : applyMetadata(partial, entry)
      renameSync(rawPathToBytes(partial), rawPathToBytes(path))
      this.#written += 1
      if (lost.length > 0) this.#lost.push({ path: entry.path, what: lost })
    } catch (error) {
      unlinkSync(rawPathToBytes(partial))
      throw error
    }
  }

  #isSame(entry: Entry, path: RawPath): boolean {
    const there = lstatSync(rawPathToBytes(path), { bigint: true })
    if (entry.type === 'symlink') {
      return (
        there.isSymbolicLink()
        && readlinkSync(rawPathToBytes(path), { encoding: 'latin1' }) === entry.target
      )
    }
    if (entry.type === 'link') {
      const target = lstatSync(rawPathToBytes(this.#place(entry.target!)), {
        throwIfNoEntry: false,
        bigint: true,
      })
      return target !== undefined && target.ino === there.ino && target.dev === there.dev
    }
    return (
      (entry.type === 'fifo' && there.isFIFO()) || (entry.type === 'socket' && there.isSocket())
    )
  }

  /** Deepest first, so that nothing done inside changes a time that is already set. */
  #finishDirectories(entries: readonly Entry[], { overwrite }: { overwrite: boolean }): void {
    for (const entry of entries.filter(({ type }) => type === 'directory').reverse()) {
      const how = this.#directories.get(entry.path)
      const isOurs = how === 'made' || how === 'resumed'
      if (!isOurs && !overwrite) continue
      this.#guard(entry, () => {
        const lost = applyMetadata(this.#place(entry.path), entry)
        if (lost.length > 0) this.#lost.push({ path: entry.path, what: lost })
        if (entry.flags !== undefined) this.#flagged.push(entry)
      })
    }
  }

  #applyFlags(entry: Entry): void {
    const lost = applyFlags(this.#place(entry.path), entry)
    if (lost.length > 0) this.#lost.push({ path: entry.path, what: lost })
  }
}

function makeSpecial(
  entry: Entry,
  { path, linkTarget }: { path: RawPath; linkTarget: RawPath },
): void {
  const bytes = rawPathToBytes(path)
  switch (entry.type) {
    case 'symlink':
      return symlinkSync(rawPathToBytes(entry.target!), bytes)
    case 'link':
      return linkSync(rawPathToBytes(linkTarget), bytes)
    case 'fifo':
      return makeNode(path, { type: 'fifo', mode: entry.mode, device: [0, 0] })
    case 'char':
    case 'block':
      return makeNode(path, { type: entry.type, mode: entry.mode, device: entry.device! })
    default:
      throw new BackupError(
        'CATALOG_DAMAGED',
        `${displayPath(baseOf(entry.path))} has no known type`,
      )
  }
}

/** Enough for a worker to be busy, few enough that all end at about the same time. */
const BATCH_BYTES = 16 * 1024 * 1024
const BATCH_ITEMS = 256

/**
 * Runs of neighbours, which mostly lie in the same frames; the largest files first, so that all
 * workers end together.
 */
function makeBatches(items: readonly RestoreItem[]): (readonly RestoreItem[])[] {
  const isLarge = ({ entry }: RestoreItem) => dataBytes(entry) > BATCH_BYTES
  const large = items
    .filter(isLarge)
    .sort((a, b) => dataBytes(b.entry) - dataBytes(a.entry))
    .map((item) => [item])
  const batches: RestoreItem[][] = []
  let bytes = Infinity
  for (const item of items) {
    if (isLarge(item)) continue
    if (bytes >= BATCH_BYTES || batches.at(-1)!.length >= BATCH_ITEMS) {
      batches.push([])
      bytes = 0
    }
    batches.at(-1)!.push(item)
    bytes += dataBytes(item.entry)
  }
  return [...large, ...batches]
}
