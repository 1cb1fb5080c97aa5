// What differs between two generations of a set, or between one and the sources as they are now.
//
// `backup diff` tells it, path after path as they are found. Generations are compared by the
// version index: no catalog is read. The sources are walked as the set's rules say; a path that is
// new is shown only where a collection would take it. What could not be collected or cannot be
// read now is not called removed: it is unseen. Throws CATALOG_DAMAGED, INTERRUPTED.

import { lstatSync, readdirSync, readlinkSync, statSync, type BigIntStats } from 'node:fs'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { BackupError, systemCode } from '../errors.ts'
import type { Configuration, SetConfiguration } from '../machine/config.ts'
import { deviceParts } from '../machine/posix.ts'
import type { MissingPath } from '../model/collection.ts'
import type { EntryMetadata } from '../model/entry.ts'
import { comparePaths, isWithin, type RawPath, rawPathToBytes } from '../model/raw-path.ts'
import type { Stamp } from '../model/stamp.ts'
import {
  type Change,
  changesBetween,
  generationNumber,
  isSameIn,
  parseVersion,
  reasonMissing,
  type Version,
  versionAt,
  versionOf,
  type VersionText,
} from '../model/version-index.ts'
import { typeOf } from './seal.ts'
import { inspectSources, ownPlaces, type Source } from './sources.ts'
import type { Versions } from './versions.ts'
import { ruleReader } from './why.ts'

export interface Difference {
  readonly kind: 'added' | 'removed' | 'changed'
  /** Absolute. */
  readonly path: RawPath
  readonly before: Version | undefined
  readonly after: Version | undefined
  /** Of what is changed. */
  readonly changes: readonly Change[]
}

export interface Comparison {
  readonly added: number
  readonly removed: number
  readonly changed: number
  readonly same: number
  /** Paths of one side of which the other side does not know whether it has them. */
  readonly unseen: number
  /** Why: the topmost paths, without leading slashes. */
  readonly unseenPlaces: readonly MissingPath[]
}

interface Compared {
  readonly versions: Versions
  /** Only this path and what is below; without a leading slash; empty for everything. */
  readonly path: RawPath
  readonly onDifference: (difference: Difference) => void
}

/** Two generations of the index. */
export function compareGenerations(
  { versions, path: only, onDifference }: Compared,
  { before, after }: { readonly before: Stamp; readonly after: Stamp },
): Comparison {
  const tally = new Tally(onDifference)
  const numbers = { one: generationNumber(before), other: generationNumber(after) }
  const missingBefore = missingIn(versions, before)
  const missingAfter = missingIn(versions, after)
  for (const { paths, lines: read } of versions.blocks()) {
    if (isOutside(paths, only)) continue
    for (const [i, line] of read().entries()) {
      const path = paths[i]!
      if (!isWithin({ path: path.slice(1), directory: only })) continue
      const sameness = isSameIn(line, numbers)
      if (sameness === 'absent') continue
      if (sameness === 'same') {
        tally.same += 1
        continue
      }
      const [old, now] = [versionAt(line, numbers.one), versionAt(line, numbers.other)]
      const lacking = old === undefined ? missingBefore : now === undefined ? missingAfter : NOTHING
      if (reasonMissing(lacking, path.slice(1)) !== undefined) tally.unseen += 1
      else tally.add({ path, before: old, after: now })
    }
  }
  const places = [...missingBefore, ...missingAfter].map(([path, why]) => ({ path, why }))
  return tally.comparison(places.filter(({ path }) => isWithin({ path, directory: only })))
}

const NOTHING: ReadonlyMap<RawPath, string> = new Map()

function missingIn({ generations }: Versions, stamp: Stamp): ReadonlyMap<RawPath, string> {
  const generation = generations.find((one) => one.stamp === stamp)
  return new Map(generation?.missing.map(({ path, why }) => [path, why]))
}

/** Whether no path of a block can lie within one. */
function isOutside(paths: readonly RawPath[], only: RawPath): boolean {
  const last = paths.at(-1)?.slice(1) ?? ''
  const first = paths[0]?.slice(1) ?? ''
  const isBefore = comparePaths(last, only) < 0
  return isBefore || (comparePaths(first, only) > 0 && !isWithin({ path: first, directory: only }))
}

/** Counts, and takes versions apart only where they differ. */
class Tally {
  same = 0
  unseen = 0
  readonly #counts = { added: 0, removed: 0, changed: 0 }
  readonly #onDifference: Compared['onDifference']

  constructor(onDifference: Compared['onDifference']) {
    this.#onDifference = onDifference
  }

  add({
    path,
    before,
    after,
    changesOf = changesBetween,
  }: {
    readonly path: RawPath
    readonly before: VersionText | undefined
    readonly after: VersionText | undefined
    readonly changesOf?: (before: Version, after: Version) => readonly Change[]
  }): void {
    const [old, now] = [before, after].map((one) => {
      return one === undefined ? undefined : parseVersion(one)
    })
    const kind = old === undefined ? 'added' : now === undefined ? 'removed' : 'changed'
    const changes = old !== undefined && now !== undefined ? changesOf(old, now) : []
    if (kind === 'changed' && changes.length === 0) {
      this.same += 1
      return
    }
    this.#counts[kind] += 1
    this.#onDifference({ kind, path, before: old, after: now, changes })
  }

  comparison(unseenPlaces: readonly MissingPath[]): Comparison {
    return { ...this.#counts, same: this.same, unseen: this.unseen, unseenPlaces }
  }
}

/**
 * A generation, and the sources as they are now. The differences are those since the generation.
 */
export async function compareWithLive(compared: Compared, of: LiveOptions): Promise<Comparison> {
  return await new LiveComparison(compared, of).run()
}

export interface LiveOptions {
  readonly configuration: Configuration
  readonly set: SetConfiguration
  readonly stamp: Stamp
  readonly signal: AbortSignal
}

const NO_SOURCE = 'the set has no source there any more'

/** Directories between two looks at what else there is to do. */
const DIRECTORIES_A_TURN = 256

/** One walk over the sources, beside the paths of a generation in the same order. */
class LiveComparison {
  readonly #only: RawPath
  readonly #signal: AbortSignal
  readonly #sources: readonly Source[]
  readonly #takes: (path: RawPath, isDirectory: boolean) => boolean
  readonly #collected: Iterator<CollectedPath, void, undefined>
  /** What a path of the generation that is not there now is, unless it is removed. */
  readonly #unseen = new Map<RawPath, string>()
  /** Sources that the set had then and has not now. */
  readonly #without = new Map<RawPath, string>()
  readonly #formerSources: readonly RawPath[]
  /** Every source, that of now and of then. */
  readonly #tops: readonly RawPath[]
  readonly #missing: ReadonlyMap<RawPath, string>
  readonly #tally: Tally
  #next: CollectedPath | undefined
  #walked = 0

  constructor(
    { versions, path, onDifference }: Compared,
    { configuration, set, stamp, signal }: LiveOptions,
  ) {
    const places = ownPlaces(configuration)
    const sources = inspectSources({ texts: set.sources, staging: places[0] ?? '' })
    this.#only = path
    this.#signal = signal
    this.#sources = sources.readable
    this.#takes = ruleReader(set, { sources, places })
    for (const one of sources.missing) this.#unseen.set(one.path, one.why)
    const given = sources.readable.map((one) => one.given.slice(1))
    const generation = versions.generations.find((one) => one.stamp === stamp)
    this.#formerSources = generation?.sources ?? []
    this.#tops = [...given, ...this.#unseen.keys(), ...this.#formerSources]
    this.#missing = missingIn(versions, stamp)
    this.#tally = new Tally(onDifference)
    this.#collected = collectedPaths(versions, { only: path, stamp })
    this.#advance()
  }

  async run(): Promise<Comparison> {
    await this.#walk('')
    this.#passTo(undefined)
    const places = [...this.#unseen, ...this.#without, ...this.#missing].map(([path, why]) => ({
      path,
      why,
    }))
    const only = this.#only
    return this.#tally.comparison(places.filter(({ path }) => isWithin({ path, directory: only })))
  }

  /** `directory` without a leading slash; above the sources only what leads to one is looked at. */
  async #walk(directory: RawPath): Promise<void> {
    if (++this.#walked % DIRECTORIES_A_TURN === 0) await nextTurn()
    if (this.#signal.aborted) throw new BackupError('INTERRUPTED', 'interrupted')
    const names = this.#isInSource(directory) ? namesIn(directory) : this.#namesAbove(directory)
    if (typeof names === 'string') {
      this.#unseen.set(directory, names)
      return
    }
    for (const name of names) {
      const path = directory === '' ? name : `${directory}/${name}`
      if (!this.#concerns(path)) continue
      if (this.#visit(path)) await this.#walk(path)
    }
  }

  /** Whether to go on below. */
  #visit(path: RawPath): boolean {
    if (!this.#isInSource(path)) return true
    const stat = this.#statOf(path)
    if (stat === undefined) return false
    this.#passTo(path)
    const isKnown = this.#next?.path === path
    const isDirectory = stat.isDirectory()
    const leads = isDirectory && this.#leadsToSource(path)
    if (!isKnown && !this.#takes(`/${path}`, isDirectory)) return leads
    if (isWithin({ path, directory: this.#only })) this.#compare(path, stat)
    return isDirectory
  }

  #compare(path: RawPath, stat: BigIntStats): void {
    const collected = this.#next?.path === path ? this.#next.version : undefined
    if (collected !== undefined) this.#advance()
    const now = liveVersion(path, stat)
    // A link may have been read or gone meanwhile.
    if (now === undefined) return
    if (collected !== undefined && collected.startsWith(now)) {
      this.#tally.same += 1
    } else if (collected === undefined && reasonMissing(this.#missing, path) !== undefined) {
      this.#tally.unseen += 1
    } else {
      const side = { path: `/${path}`, before: collected, after: now }
      this.#tally.add({ ...side, changesOf: changesSince })
    }
  }

  /** What the generation has before a path is not there any more. */
  #passTo(path: RawPath | undefined): void {
    while (this.#next !== undefined) {
      const { path: collected, version } = this.#next
      if (path !== undefined && comparePaths(collected, path) >= 0) return
      this.#advance()
      // Directories above the sources only hold them.
      if (!this.#isInSource(collected) && this.#leadsToSource(collected)) continue
      if (this.#whyUnseen(collected) !== undefined) this.#tally.unseen += 1
      else this.#tally.add({ path: `/${collected}`, before: version, after: undefined })
    }
  }

  #whyUnseen(path: RawPath): string | undefined {
    if (this.#isInSource(path)) return reasonMissing(this.#unseen, path)
    const missing = reasonMissing(this.#unseen, path)
    if (missing !== undefined) return missing
    const source = this.#formerSources.find((one) => isWithin({ path, directory: one }))
    if (source !== undefined) this.#without.set(source, NO_SOURCE)
    return NO_SOURCE
  }

  #advance(): void {
    this.#next = this.#collected.next().value ?? undefined
  }

  #statOf(path: RawPath): BigIntStats | undefined {
    const bytes = rawPathToBytes(`/${path}`)
    try {
      // A source that is a link is followed, at the top only.
      const isSource = this.#sources.some(({ given }) => given === `/${path}`)
      return isSource ? statSync(bytes, { bigint: true }) : lstatSync(bytes, { bigint: true })
    } catch (error) {
      const code = systemCode(error)
      if (code === undefined) throw error
      if (code !== 'ENOENT') this.#unseen.set(path, `cannot be read (${code})`)
      return undefined
    }
  }

  #isInSource(path: RawPath): boolean {
    return this.#sources.some(({ given }) => isWithin({ path, directory: given.slice(1) }))
  }

  #leadsToSource(path: RawPath): boolean {
    return this.#tops.some((top) => top.startsWith(`${path}/`))
  }

  #namesAbove(directory: RawPath): RawPath[] {
    const start = directory === '' ? 0 : directory.length + 1
    const below = this.#sources
      .map(({ given }) => given.slice(1))
      .filter((path) => {
        return directory === '' || path.startsWith(`${directory}/`)
      })
    return [...new Set(below.map((path) => path.slice(start).split('/', 1)[0] ?? ''))].sort()
  }

  #concerns(path: RawPath): boolean {
    const only = this.#only
    return isWithin({ path, directory: only }) || isWithin({ path: only, directory: path })
  }
}

interface CollectedPath {
  readonly path: RawPath
  readonly version: VersionText
}

function* collectedPaths(
  versions: Versions,
  { only, stamp }: { readonly only: RawPath; readonly stamp: Stamp },
): Generator<CollectedPath, void, undefined> {
  const number = generationNumber(stamp)
  for (const { paths, lines: read } of versions.blocks()) {
    if (isOutside(paths, only)) continue
    for (const [i, line] of read().entries()) {
      const path = paths[i]!.slice(1)
      const version = versionAt(line, number)
      if (version !== undefined && isWithin({ path, directory: only })) yield { path, version }
    }
  }
}

/** In catalog order; why not, where they cannot be listed. */
function namesIn(directory: RawPath): RawPath[] | string {
  try {
    return readdirSync(rawPathToBytes(`/${directory}`), { encoding: 'latin1' }).sort()
  } catch (error) {
    const code = systemCode(error)
    if (code === undefined) throw error
    return code === 'ENOENT' || code === 'ENOTDIR' ? [] : `cannot be read (${code})`
  }
}

/** As versionOf has it, without attributes: they would have to be read of every file. */
function liveVersion(path: RawPath, stat: BigIntStats): VersionText | undefined {
  const metadata: EntryMetadata = {
    path,
    type: typeOf(stat),
    mode: Number(stat.mode & 0o7777n),
    uid: Number(stat.uid),
    gid: Number(stat.gid),
    mtimeNs: stat.mtimeNs,
  }
  if (stat.isFile()) return versionOf({ ...metadata, size: Number(stat.size) })
  if (stat.isCharacterDevice() || stat.isBlockDevice()) {
    return versionOf({ ...metadata, device: deviceParts(stat.rdev) })
  }
  if (!stat.isSymbolicLink()) return versionOf(metadata)
  try {
    const target = readlinkSync(rawPathToBytes(`/${path}`), { encoding: 'latin1' })
    return versionOf({ ...metadata, target })
  } catch (error) {
    if (systemCode(error) === undefined) throw error
    return undefined
  }
}

const BILLION = 1_000_000_000n

/**
 * Of a source against its copy: a further link of a file is a file, a filesystem of staging may
 * keep whole seconds only, and attributes were not read.
 */
function changesSince(before: Version, after: Version): readonly Change[] {
  const isLink = before.type === 'link' && after.type === 'file'
  const { type, sizeBytes, content } = after
  const old = isLink ? { ...before, type, sizeBytes, content } : before
  const lateNs = after.mtimeNs - before.mtimeNs
  const isRounded = before.mtimeNs % BILLION === 0n && lateNs > 0n && lateNs < BILLION
  return changesBetween(
    { ...old, attributes: '' },
    { ...after, attributes: '', mtimeNs: isRounded ? before.mtimeNs : after.mtimeNs },
  )
}
