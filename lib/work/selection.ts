// What is to be restored of one generation: its entries, the directories above them, and where
// their bytes are.
//
// selectEntries reads it from an export, selectStaged from a collection; restore-plan.ts lays it
// beside what is there, restore.ts makes it. A hard link whose first path is not selected becomes
// the file itself. Throws NOTHING_FOUND where a path matches nothing, catalog errors.

import { BackupError } from '../errors.ts'
import { type Entry, type FrameRange, asFile } from '../model/entry.ts'
import type { PathPatterns } from '../model/path-patterns.ts'
import { type RawPath, comparePaths, displayPath, isWithin, parentOf } from '../model/raw-path.ts'
import type { ShardPlace } from '../model/shard.ts'
import type { Target } from '../target/target.ts'
import type { BundleAddress } from './bundle-address.ts'
import type { ExportReader } from './export-reader.ts'
import type { Collection } from './staging.ts'

/** What the pieces of entries name by number. */
export type NumberedBundles = readonly {
  readonly path: BundleAddress
  readonly frames: readonly FrameRange[]
}[]

/** Where content comes from: bundles, or the tree of a collection. */
export type ContentSource =
  | {
      readonly kind: 'bundles'
      readonly bundles: NumberedBundles
      /** What they lie on, where that is over a network; and how long they are there. */
      readonly target?: Target
      readonly sizes?: ReadonlyMap<string, number>
    }
  | { readonly kind: 'staged'; readonly tree: RawPath }

/** What is to be restored. */
export interface Selection {
  /** In catalog order. */
  readonly entries: readonly Entry[]
  /**
   * The directories above them, which are made as they were where they are missing, and else left
   * alone.
   */
  readonly parents: readonly Entry[]
  readonly content: ContentSource
  /** Of the paths that were wanted those that match something. */
  readonly met?: readonly RawPath[]
}

/** What of a generation is wanted. */
export interface Wanted {
  /** Without leading slashes; none for everything. */
  readonly paths: readonly RawPath[]
  readonly patterns?: PathPatterns | undefined
  /** Where some of the paths match something, others need not. */
  readonly isPartial?: boolean
}

/** What would be restored. @throws BackupError NOTHING_FOUND when a path matches nothing */
export async function selectEntries(reader: ExportReader, wantedHere: Wanted): Promise<Selection> {
  const { paths } = wantedHere
  const table = new BundleNumbers(reader)
  const wanted = paths.length === 0 ? [''] : paths
  const candidates = new Set<ShardPlace>()
  for (const path of wanted) {
    for (const place of await reader.shardsOf(path)) candidates.add(place)
  }
  const places = (await reader.index()).filter((place) => candidates.has(place))
  const found: Entry[] = []
  const directories: Entry[] = []
  const sources = reader.manifest.sources.map(({ path }) => path)
  const picker = new Picker({ ...wantedHere, sources })
  for await (const { shard } of reader.shards(places)) {
    for (const entry of shard.entries) {
      if (picker.takes(entry)) found.push(table.renumber(entry, shard.bundles))
      else if (entry.type === 'directory') directories.push(entry)
    }
  }
  const met = picker.check('this export')
  const above = await findParents(reader, paths)
  const parents = parentsOf(found, [...directories, ...above])
  const selected = new Set(found.map(({ path }) => path))
  const standIns = new Map<RawPath, RawPath>()
  const entries: Entry[] = []
  for (const entry of found) {
    const isWhole = entry.type !== 'link' || selected.has(entry.target!)
    const context = { standIns, reader, table }
    entries.push(isWhole ? entry : await resolveLink(entry, context))
  }
  const content: ContentSource = {
    kind: 'bundles',
    bundles: table.bundles(),
    target: reader.target,
    sizes: reader.bundleSizes(),
  }
  return { entries, parents, content, met }
}

/**
 * The same of a collection.
 * @param of.without paths that are not to be restored: what is damaged
 */
export function selectStaged(
  { header, entries: all }: Collection,
  {
    paths,
    patterns,
    isPartial,
    tree,
    without,
  }: Wanted & { readonly tree: RawPath; readonly without: ReadonlySet<RawPath> },
): Selection {
  const sources = header.sources.map(({ path }) => path)
  const picker = new Picker({ paths, patterns, isPartial: isPartial === true, sources })
  const found = all.filter((entry) => picker.takes(entry))
  const met = picker.check(`${header.set} ${header.stamp}`)
  const taken = found.filter(({ path }) => !without.has(path))
  const selected = new Set(taken.map(({ path }) => path))
  const carriers = new Map(
    all.flatMap((entry) => (entry.type === 'file' ? [[entry.path, entry]] : [])),
  )
  const standIns = new Map<RawPath, RawPath>()
  const entries = taken.map((entry): Entry => {
    if (entry.type !== 'link' || selected.has(entry.target!)) return entry
    const standIn = standIns.get(entry.target!)
    if (standIn !== undefined) return { ...entry, target: standIn }
    standIns.set(entry.target!, entry.path)
    const carrier = carriers.get(entry.target!)
    return carrier === undefined ? entry : asFile(entry, carrier)
  })
  const directories = all.filter(({ type, path }) => type === 'directory' && !selected.has(path))
  const parents = parentsOf(entries, directories)
  return { entries, parents, content: { kind: 'staged', tree }, met }
}

/** Which entries are wanted, and whether every path that was named has some. */
class Picker {
  readonly #paths: readonly RawPath[]
  readonly #sources: readonly RawPath[]
  readonly #patterns: PathPatterns | undefined
  readonly #isPartial: boolean
  readonly #met = new Set<RawPath>()
  #count = 0

  constructor({
    paths,
    patterns,
    isPartial = false,
    sources,
  }: Wanted & { readonly sources: readonly RawPath[] }) {
    this.#isPartial = isPartial
    this.#sources = sources
    this.#paths = paths
    this.#patterns = patterns
  }

  takes({ path, type }: Entry): boolean {
    // The directories above the sources are there for the way, and are nobody's to change.
    const isAbove = type === 'directory' && this.#sources.some((one) => one.startsWith(`${path}/`))
    if (isAbove && !this.#sources.some((one) => isWithin({ path, directory: one }))) return false
    if (this.#paths.length > 0) {
      const directory = this.#paths.find((one) => isWithin({ path, directory: one }))
      if (directory === undefined) return false
      this.#met.add(directory)
      // A path below another one that was named is met as well.
      for (const one of this.#paths) if (isWithin({ path, directory: one })) this.#met.add(one)
    }
    const patterns = this.#patterns
    if (patterns?.takes(path, type === 'directory') === false) return false
    this.#count += 1
    return true
  }

  /** @returns the paths that match something @throws BackupError NOTHING_FOUND */
  check(where: string): readonly RawPath[] {
    const met = this.#paths.filter((path) => this.#met.has(path))
    for (const path of this.#paths) {
      if (this.#met.has(path) || (this.#isPartial && met.length > 0)) continue
      throw new BackupError('NOTHING_FOUND', `there is no ${displayPath(path)} in ${where}`, {
        hint:
          'paths are those of the source: --path /home/you/letters; `backup find` looks in all '
          + 'generations, and --last takes the newest that has it',
      })
    }
    if (this.#count > 0 || this.#patterns === undefined) return met
    throw new BackupError('NOTHING_FOUND', `nothing in ${where} fits --include and --exclude`, {
      hint: 'patterns are those of `backup find`: *.jpg, /home/you/**/drafts',
    })
  }
}

/** Of some directories those above the entries, in catalog order. */
function parentsOf(entries: readonly Entry[], directories: readonly Entry[]): readonly Entry[] {
  const above = new Set<RawPath>()
  for (const { path } of entries) {
    for (let at = parentOf(path); at !== '' && !above.has(at); at = parentOf(at)) above.add(at)
  }
  const selected = new Set(entries.map(({ path }) => path))
  const parents = new Map(directories.map((entry) => [entry.path, entry]))
  return [...parents.values()]
    .filter(({ path }) => above.has(path) && !selected.has(path))
    .sort((a, b) => comparePaths(a.path, b.path))
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

  bundles(): NumberedBundles {
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
    // The plan names a link to what is no file: one bad entry does not stop the others.
    if (file?.type !== 'file') continue
    standIns.set(target, entry.path)
    return asFile(entry, table.renumber(file, shard.bundles))
  }
  return entry
}
