// Carries out a plan: directories, files by worker threads, links, deletions, metadata.
//
// From a repository and from staging alike (selection.ts). Upholds invariants 9 and 10: files get
// their final names only when their bytes are proven, what is replaced or deleted is kept aside
// (aside.ts), and whatever is not restored is named. Throws TARGET errors, INTERRUPTED,
// RESTORE_FULL.

import {
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  unlinkSync,
} from 'node:fs'
import { BackupError, unpackError } from '../errors.ts'
import { lockDirectory } from '../machine/lock.ts'
import { applyFlags, applyMetadata } from '../machine/metadata.ts'
import { makeNode } from '../machine/posix.ts'
import { dataBytes, type Entry, type TimeNs } from '../model/entry.ts'
import {
  baseOf,
  comparePaths,
  displayPath,
  parentOf,
  type RawPath,
  rawPathToBytes,
} from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import { checkSafePath } from '../model/safe-path.ts'
import { type Aside, keepAside } from './aside.ts'
import { RestoreJournal } from './restore-journal.ts'
import { isPartialName, partialName } from './restore-names.ts'
import {
  asFailure,
  bytesToWrite,
  lookAtDirectory,
  notADirectory,
  type PlannedEntry,
  type PlanOptions,
  planRestore,
  type RestoreFailure,
  type RestorePlan,
  withStandIns,
} from './restore-plan.ts'
import { checkRoom } from './restore-room.ts'
import type { FileOutcome, RestoreItem, RestoreReply, RestoreSettings } from './restore-worker.ts'
import type { Selection } from './selection.ts'
import { runWorkers } from './worker-pool.ts'

export interface RestoreOptions {
  readonly identities: readonly string[]
  readonly cores: number
  /** Keeps what is replaced or deleted; undefined: it is gone. */
  readonly aside: Aside | undefined
  /** Whether what is whole of a damaged file is kept beside its place; by default it is. */
  readonly keepsCorrupt?: boolean
  readonly report: Report
  readonly signal: AbortSignal
}

export interface RestoreOutcome {
  readonly written: number
  readonly same: number
  readonly bytes: number
  readonly deleted: number
  /** Something else is there and was left alone. */
  readonly kept: readonly RawPath[]
  readonly failures: readonly RestoreFailure[]
  /** Metadata that could not be set here. */
  readonly lost: readonly { readonly path: RawPath; readonly what: readonly string[] }[]
  /** Where what was replaced or deleted is kept. */
  readonly aside: readonly RawPath[]
}

/** What a dry run tells: nothing was changed. */
export function previewRestore(plan: RestorePlan): RestoreOutcome {
  const count = (...verdicts: readonly string[]): number =>
    plan.items.filter(({ verdict }) => verdicts.includes(verdict)).length
  return {
    written: count('make', 'replace'),
    same: count('same'),
    bytes: bytesToWrite(plan),
    deleted: plan.deletions.reduce((sum, { paths }) => sum + paths, 0),
    kept: keptOf(plan),
    failures: plan.failures,
    lost: [],
    aside: [],
  }
}

/**
 * Plans and restores a selection; a dry run only tells.
 * @param options.decide sees the plan before anything is done: it may change it, or throw
 */
export async function restoreSelection(
  selection: Selection,
  options: PlanOptions
    & RestoreOptions & {
      readonly dryRun: boolean
      /** Whether the filesystem is asked for room; it does not know what it will compress. */
      readonly checksRoom: boolean
      readonly decide?: (plan: RestorePlan) => Promise<RestorePlan>
    },
): Promise<RestoreOutcome> {
  const planned = await planRestore(selection, options)
  const plan = withStandIns((await options.decide?.(planned)) ?? planned)
  if (options.dryRun) return previewRestore(plan)
  if (options.checksRoom) checkRoom(plan)
  return await carryOut(plan, options)
}

/**
 * Carries out a plan that is decided (withStandIns).
 * @throws BackupError INTERRUPTED, and what ends the target
 */
export async function carryOut(
  plan: RestorePlan,
  options: RestoreOptions,
): Promise<RestoreOutcome> {
  return await new Restore(plan, options).run()
}

function keptOf({ items }: RestorePlan): RawPath[] {
  return items
    .filter(({ verdict }) => verdict === 'keep' || verdict === 'blocked')
    .map(({ entry }) => entry.path)
}

/** The target is not reached any more, or may not be read. */
const ENDING: readonly string[] = ['TARGET_ABSENT', 'TARGET_DENIED', 'COLD_STORAGE']

class Restore {
  readonly #plan: RestorePlan
  readonly #options: RestoreOptions
  /**
   * Real directories below `into`: made now, made by a restore that was killed, or there before.
   */
  readonly #directories = new Map<RawPath, 'made' | 'resumed' | 'there'>()
  readonly #kept: RawPath[]
  readonly #failures: RestoreFailure[]
  readonly #lost: { path: RawPath; what: readonly string[] }[] = []
  /** Finished but for their inode flags, which come last. */
  readonly #flagged: Entry[] = []
  readonly #journal: RestoreJournal
  /** Where what is replaced is kept. */
  readonly #asides = new Map<RawPath, RawPath>()
  /**
   * What is made before anything is replaced or deleted, for then there is no undo list yet:
   * directories and entries, and what the workers have at hand.
   */
  readonly #made: (RawPath | Entry)[] = []
  readonly #atHand = new Map<RawPath, Entry>()
  #isListing = false
  /** What is not there, or is not what links are to be made to. */
  readonly #absent = new Set<RawPath>()
  #written = 0
  #same = 0
  #bytes = 0
  #deleted = 0

  constructor(plan: RestorePlan, options: RestoreOptions) {
    this.#plan = plan
    this.#options = options
    this.#kept = keptOf(plan)
    this.#failures = [...plan.failures]
    for (const path of this.#kept) this.#absent.add(path)
    const roots = [
      ...plan.directories.slice(0, 1),
      ...plan.items.slice(0, 1).map(({ entry }) => entry),
    ]
    this.#journal = new RestoreJournal({ into: plan.into, roots: roots.map(({ path }) => path) })
    this.#directories.set('', 'there')
  }

  async run(): Promise<RestoreOutcome> {
    // The root is everybody's: there the temporary names have to do.
    const unlock = this.#plan.into === '' ? undefined : lockDirectory(this.#plan.into)
    try {
      return await this.#run()
    } finally {
      this.#journal.close()
      unlock?.()
    }
  }

  async #run(): Promise<RestoreOutcome> {
    const { directories, items, deletions, parents, policy } = this.#plan
    const wanted = items.filter(({ verdict }) => verdict !== 'keep' && verdict !== 'blocked')
    let made: readonly Entry[]
    let isWhole = false
    try {
      await this.#restoreFiles(wanted.filter(({ entry }) => entry.type === 'file'))
      made = directories.filter(({ path }) => this.#guard(path, () => this.#makeDirectory(path)))
      const others = wanted.filter(({ entry }) => entry.type !== 'file')
      for (const item of this.#announce(others)) {
        this.#guard(item.entry.path, () => this.#makeOther(item))
      }
      for (const { path, paths } of deletions) {
        this.#guard(path, () => this.#delete(path, paths))
      }
      isWhole = true
    } finally {
      this.#options.aside?.finish({ isWhole })
    }
    const aside = this.#options.aside?.directories() ?? []
    this.#finishDirectories(made, { overwrite: policy === 'always' })
    this.#finishDirectories(parents, { overwrite: false })
    this.#journal.finish()
    for (const entry of this.#flagged) this.#guard(entry.path, () => this.#applyFlags(entry))
    const byPath = (a: { readonly path: RawPath }, b: { readonly path: RawPath }) =>
      comparePaths(a.path, b.path)
    return {
      written: this.#written,
      same: this.#same,
      bytes: this.#bytes,
      deleted: this.#deleted,
      kept: this.#kept.sort(comparePaths),
      failures: this.#withOrigins(this.#failures.sort(byPath)),
      lost: this.#lost.sort(byPath),
      aside,
    }
  }

  #withOrigins(failures: readonly RestoreFailure[]): readonly RestoreFailure[] {
    if (failures.length === 0) return failures
    const changed = this.#plan.items.filter(({ entry, from }) => entry.path !== from)
    const origins = new Map(changed.map(({ entry, from }) => [entry.path, from]))
    return failures.map((failure) => {
      const from = origins.get(failure.path)
      return from === undefined ? failure : { ...failure, from }
    })
  }

  #place(path: RawPath): RawPath {
    return `${this.#plan.into}/${path}`
  }

  /** Runs an action for one path; a failure is that path's alone. */
  #guard(path: RawPath, action: () => void): boolean {
    try {
      action()
      return true
    } catch (error) {
      this.#failures.push(asFailure(path, error))
      this.#absent.add(path)
      return false
    }
  }

  /** Makes a directory and its parents, following no link (invariant 9). */
  #makeDirectory(path: RawPath): void {
    if (this.#directories.has(path)) return
    this.#makeDirectory(parentOf(path))
    const there = lookAtDirectory(this.#plan, path)
    if (there !== undefined && !there.isDirectory()) throw notADirectory(path)
    if (there === undefined) {
      this.#journal.add(path)
      mkdirSync(rawPathToBytes(this.#place(path)), { mode: 0o700 })
    } else this.#sweep(path)
    const isResumed = there !== undefined && this.#journal.has(path)
    this.#directories.set(path, there === undefined ? 'made' : isResumed ? 'resumed' : 'there')
    if (there !== undefined && !isResumed) return
    if (this.#isListing) this.#listMade(path)
    else this.#made.push(path)
  }

  /** Removes what a killed restore left in a directory. */
  #sweep(path: RawPath): void {
    for (const name of readdirSync(rawPathToBytes(this.#place(path)), { encoding: 'latin1' })) {
      if (isPartialName(name)) unlinkSync(rawPathToBytes(`${this.#place(path)}/${name}`))
    }
  }

  async #restoreFiles(planned: readonly PlannedEntry[]): Promise<void> {
    const different = await this.#runWorkers(planned)
    // It only looked the same: content is compared by the workers.
    if (different.length > 0) {
      await this.#runWorkers(different.map((item) => ({ ...item, verdict: 'replace' as const })))
    }
  }

  /** @returns what looked the same, is not, and may be replaced */
  async #runWorkers(planned: readonly PlannedEntry[]): Promise<readonly PlannedEntry[]> {
    const different: PlannedEntry[] = []
    const { content, policy } = this.#plan
    const { identities, cores, keepsCorrupt = true, report, signal } = this.#options
    const items = planned.map(({ entry, from, verdict }, index): RestoreItem => {
      return {
        index,
        path: this.#place(entry.path),
        entry,
        from,
        isFresh: false,
        // The same again gets its metadata again, where everything may be replaced.
        mayReplace: verdict === 'replace' || (verdict === 'same' && policy === 'always'),
        looksSame: verdict === 'same',
        aside: undefined,
      }
    })
    const bytesTotal = planned.reduce((sum, { entry }) => sum + dataBytes(entry), 0)
    const settings: RestoreSettings = {
      identities,
      content:
        content.kind === 'staged' ? content : { kind: content.kind, bundles: content.bundles },
      keepsCorrupt,
    }
    const { target, sizes } = content.kind === 'staged' ? {} : content
    await runWorkers<readonly RestoreItem[], RestoreReply>({
      script: './restore-worker.js',
      ahead: 2,
      workerData: settings,
      target,
      ...(sizes === undefined ? {} : { sizes }),
      requests: makeBatches(items),
      // Just before they are needed, so that the workers need not wait for all of them.
      prepare: (batch) => this.#prepare(batch, planned),
      workers: cores,
      signal,
      interruptedHint: 'files restored so far are whole; the same command goes on from there',
      onReply: ({ outcomes, bytes }) => {
        for (const { index, outcome } of outcomes) {
          // Whatever else was tried would fail as well.
          if (outcome.kind === 'failed' && ENDING.includes(outcome.error.code ?? '')) {
            throw unpackError(outcome.error)
          }
          if (outcome.kind === 'different') different.push(planned[index]!)
          else this.#takeOutcome(planned[index]!, outcome)
        }
        this.#bytes += bytes
        report({
          kind: 'progress',
          phase: 'restoring',
          filesDone: this.#written + this.#same,
          filesTotal: planned.length,
          bytesDone: this.#bytes,
          bytesTotal,
          ...(outcomes[0] === undefined ? {} : { current: planned[outcomes[0].index]!.entry.path }),
        })
      },
    })
    return different
  }

  /** Makes the directories of a batch, and drops what cannot be made. */
  #prepare(
    batch: readonly RestoreItem[],
    planned: readonly PlannedEntry[],
  ): readonly RestoreItem[] {
    const ready = this.#announce(batch.map(({ index }) => planned[index]!))
    const paths = new Set(ready.map(({ entry }) => entry.path))
    return batch.flatMap((item): RestoreItem[] => {
      const { path } = item.entry
      if (!paths.has(path)) return []
      const isFresh = this.#directories.get(parentOf(path)) === 'made'
      return [{ ...item, aside: this.#asides.get(path), isFresh }]
    })
  }

  /**
   * Makes the directories of what is to be made or replaced, and writes it into the undo list,
   * before it is done.
   * @returns without what cannot be made there, or cannot be kept aside
   */
  #announce(items: readonly PlannedEntry[]): readonly PlannedEntry[] {
    const { aside } = this.#options
    const ready = items.filter(({ entry, verdict }) => {
      const { path, mtimeNs } = entry
      return this.#guard(path, () => {
        this.#makeDirectory(parentOf(path))
        if (aside === undefined || verdict === 'same') return
        if (verdict === 'replace') {
          this.#asides.set(path, aside.placeFor(path))
          this.#beginList()
          aside.announce({ did: 'replaced', path, isDirectory: false, mtimeNs })
        } else if (this.#isListing) this.#listMade(entry)
        else this.#atHand.set(path, entry)
      })
    })
    aside?.flush()
    return ready
  }

  /** From now on there is something to undo: what is made counts only then. */
  #beginList(): void {
    if (this.#isListing) return
    this.#isListing = true
    for (const one of this.#made.splice(0)) {
      this.#listMade(one)
      if (typeof one !== 'string') this.#options.aside?.done(one)
    }
    for (const entry of this.#atHand.values()) this.#listMade(entry)
    this.#atHand.clear()
  }

  #listMade(one: RawPath | Entry): void {
    const { aside } = this.#options
    if (aside === undefined) return
    if (typeof one === 'string') {
      const directory = { path: one, mtimeNs: undefined }
      aside.announce({ did: 'made', isDirectory: true, ...directory })
      aside.done(directory)
    } else {
      const { path, mtimeNs } = one
      aside.announce({ did: 'made', isDirectory: false, path, mtimeNs })
    }
  }

  #takeOutcome(
    { entry }: PlannedEntry,
    outcome: Exclude<FileOutcome, { kind: 'different' }>,
  ): void {
    const { path } = entry
    switch (outcome.kind) {
      case 'written':
        this.#took(entry, outcome.lost)
        return
      case 'same':
        this.#same += 1
        if (this.#plan.policy === 'always' && entry.flags !== undefined) this.#flagged.push(entry)
        if (outcome.lost.length > 0) this.#lost.push({ path, what: outcome.lost })
        return
      case 'kept':
        this.#kept.push(path)
        this.#absent.add(path)
        return
      case 'failed':
        this.#guard(path, () => {
          throw unpackError(outcome.error)
        })
    }
  }

  #took(entry: Entry, lost: readonly string[]): void {
    const { path, mtimeNs } = entry
    this.#written += 1
    if (lost.length > 0) this.#lost.push({ path, what: lost })
    if (entry.flags !== undefined && entry.type !== 'link') this.#flagged.push(entry)
    const { aside } = this.#options
    if (aside === undefined) return
    // Some filesystems round it.
    const kept = lost.includes('time') ? this.#timeOf(path) : mtimeNs
    if (this.#isListing) aside.done({ path, mtimeNs: kept })
    else {
      this.#atHand.delete(path)
      this.#made.push(kept === mtimeNs ? entry : { ...entry, mtimeNs: kept })
    }
  }

  #timeOf(path: RawPath): TimeNs {
    return lstatSync(rawPathToBytes(this.#place(path)), { bigint: true }).mtimeNs
  }

  #makeOther(item: PlannedEntry): void {
    const { entry } = item
    const path = this.#place(entry.path)
    const isStale = item.verdict === 'same' && this.#isStale(entry)
    if (item.verdict === 'same' && !isStale) {
      this.#same += 1
      return
    }
    if (isStale && this.#absent.has(entry.target!)) {
      this.#kept.push(entry.path)
      return
    }
    const verdict = isStale ? 'replace' : item.verdict
    if (isStale) this.#announce([{ ...item, verdict }])
    if (entry.type === 'socket') {
      this.#lost.push({ path: entry.path, what: ['socket: its program makes it again'] })
      return
    }
    const there = lstatSync(rawPathToBytes(path), { throwIfNoEntry: false })
    // It came after the plan was made.
    if (there !== undefined && (verdict !== 'replace' || there.isDirectory())) {
      this.#kept.push(entry.path)
      return
    }
    if (entry.type === 'link') this.#checkLinked(entry.target!)
    const name = partialName({ process: process.pid, worker: 0 })
    const partial = `${parentOf(path)}/${name}`
    makeSpecial(entry, {
      path: partial,
      linkTarget: entry.target === undefined ? '' : this.#place(entry.target),
    })
    try {
      const lost = entry.type === 'link' ? [] : applyMetadata(partial, entry)
      const aside = this.#asides.get(entry.path)
      if (there !== undefined && aside !== undefined) keepAside(path, aside)
      renameSync(rawPathToBytes(partial), rawPathToBytes(path))
      // Two names of one file are renamed to each other by doing nothing.
      rmSync(rawPathToBytes(partial), { force: true })
      this.#took(entry, lost)
    } catch (error) {
      rmSync(rawPathToBytes(partial), { force: true })
      throw error
    }
  }

  /** Whether a link that was one before the files were restored leads to something else now. */
  #isStale({ type, path, target }: Entry): boolean {
    if (type !== 'link') return false
    if (this.#absent.has(target!)) return true
    const [own, first] = [path, target!].map((one) =>
      lstatSync(rawPathToBytes(this.#place(one)), { throwIfNoEntry: false }),
    )
    return own?.ino !== first?.ino || own?.dev !== first?.dev
  }

  /** A link is only made to what was restored, or was found the same, below `into`. */
  #checkLinked(target: RawPath): void {
    checkSafePath(target)
    if (this.#absent.has(target) || !this.#directories.has(parentOf(target))) {
      const message = `the file that it is a link to, ${displayPath(target)}, was not restored`
      const cause = this.#failures.find(({ path }) => path === target)
      throw new BackupError(cause?.code ?? 'RESTORE_FAILED', message)
    }
  }

  #delete(path: RawPath, paths: number): void {
    const place = rawPathToBytes(this.#place(path))
    const isDirectory = lstatSync(place).isDirectory()
    const { aside } = this.#options
    if (aside === undefined) rmSync(place, { recursive: true })
    else {
      const kept = aside.placeFor(path)
      this.#beginList()
      aside.announce({ did: 'deleted', path, isDirectory, mtimeNs: undefined })
      aside.flush()
      renameSync(place, rawPathToBytes(kept))
      aside.done({ path, mtimeNs: undefined })
    }
    this.#deleted += paths
  }

  /** Deepest first, so that nothing done inside changes a time that is already set. */
  #finishDirectories(entries: readonly Entry[], { overwrite }: { overwrite: boolean }): void {
    for (const entry of entries.toReversed()) {
      const how = this.#directories.get(entry.path)
      const isOurs = how === 'made' || how === 'resumed'
      if (!isOurs && !(overwrite && !this.#isLinked(entry.path))) continue
      this.#guard(entry.path, () => {
        const lost = applyMetadata(this.#place(entry.path), entry)
        if (lost.length > 0) this.#lost.push({ path: entry.path, what: lost })
        if (entry.flags !== undefined) this.#flagged.push(entry)
      })
    }
  }

  /** What the machine's own link leads to is its own affair. */
  #isLinked(path: RawPath): boolean {
    const there = lstatSync(rawPathToBytes(this.#place(path)), { throwIfNoEntry: false })
    return there?.isSymbolicLink() === true
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
