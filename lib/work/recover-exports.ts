// The exports that bundles of unknown names make up: by a signed manifest, by an index without one,
// by shards that no index names, or by nothing but what the data bundles hold.
//
// findExports lists them, entriesOf reads one, surveyExports says what of each can come back. A
// shard or an index is only used when it has the digest that leads to it; what nothing signed leads
// to is told apart everywhere. Called by recover.ts. Throws INTERRUPTED.

import { Buffer } from 'node:buffer'
import { setImmediate } from 'node:timers/promises'
import { BackupError } from '../errors.ts'
import { digestBytes, digestOf } from '../format/chunker.ts'
import type { MachineKey } from '../machine/identity.ts'
import { type Entry, dataBytes } from '../model/entry.ts'
import { type Manifest, exportName, parseManifest } from '../model/manifest.ts'
import { isValidName } from '../model/names.ts'
import type { RawPath } from '../model/raw-path.ts'
import { type Shard, type ShardPlace, parseIndex, parseShard, rangesOf } from '../model/shard.ts'
import { parseStamp } from '../model/stamp.ts'
import { shownPath } from './bundle-address.ts'
import { entryHeader } from './entry-header.ts'
import { OpenBundles } from './open-bundles.ts'
import { type FoundBundles, NOWHERE, type Proof } from './recover-bundles.ts'
import type { FoundContents, FoundFile, FoundMember } from './recover-scan.ts'
import { verifySigned } from './signing.ts'

/** How well it is known that an export is one of ours: best first. */
export const EVIDENCE = ['signed', 'catalog', 'shards', 'members'] as const

export type Evidence = (typeof EVIDENCE)[number]

/** One export, or what is left of some. */
export interface FoundExport {
  /** `<machine>/<set>/<stamp>` where that is signed; else it begins `unsigned:`. */
  readonly name: string
  readonly evidence: Evidence
  /** Of a signed one. */
  readonly machine: string | undefined
  /** Undefined where entries of several sets may be together. */
  readonly set: string | undefined
  /** When; without a signed manifest as new as the newest bundle it names. */
  readonly stamp: string | undefined
  /** False where it was incomplete when it was made, as its manifest says. */
  readonly complete: boolean | undefined
  /** Its catalog in order; empty for members. */
  readonly shards: readonly FoundShard[]
  readonly members: readonly FoundMembers[]
}

/** A shard that an index names, or one that none does. */
export interface FoundShard {
  readonly digest: string
  /** How many entries its index says there are, and the first path of them. */
  readonly entries: number | undefined
  readonly first: RawPath | undefined
  /** Of one without an index: that of its newest bundle. */
  readonly stamp: string | undefined
}

/** What one data bundle holds, and when it was made where its place still says that. */
export interface FoundMembers {
  readonly stamp: string | undefined
  readonly members: readonly FoundMember[]
}

/** An entry, its pieces by the number of a found bundle or NOWHERE. */
export interface FoundEntry {
  readonly entry: Entry
  /** How new it is, where that is known. */
  readonly stamp: string | undefined
  /** What its catalog calls the bundles that are nowhere; `''` where there is no catalog. */
  readonly absent: readonly string[]
  /** Some of its content could not be read where it was found, and cannot be known elsewhere. */
  readonly isDamaged: boolean
}

/** The catalog bundles that were found, read by digest. */
export class FoundCatalogs {
  readonly #open: OpenBundles
  readonly #parts = new Map<
    string,
    { readonly file: FoundFile; readonly tar: readonly [number, number] }
  >()
  readonly #indexes: string[] = []
  readonly #shards: string[] = []
  readonly #numbers = new Map<string, readonly number[]>()

  constructor(found: readonly FoundFile[], identities: readonly string[]) {
    this.#open = new OpenBundles(identities)
    for (const file of found) {
      for (const { kind, digest, tar } of file.parts) {
        const there = this.#parts.get(digest)
        if (there !== undefined) continue
        this.#parts.set(digest, { file, tar })
        if (kind === 'index') this.#indexes.push(digest)
        else this.#shards.push(digest)
      }
    }
  }

  get indexes(): readonly string[] {
    return this.#indexes
  }

  get shards(): readonly string[] {
    return this.#shards
  }

  /** An index that is there and whole; undefined for any other. */
  index(digest: string): readonly ShardPlace[] | undefined {
    return this.#parsed(digest, parseIndex)
  }

  shard(digest: string): Shard | undefined {
    return this.#parsed(digest, parseShard)
  }

  close(): void {
    this.#open.close()
  }

  /** The numbers of the found bundles that a shard's entries name. */
  numbersOf(digest: string, shard: Shard, bundles: FoundBundles): readonly number[] {
    const known = this.#numbers.get(digest)
    if (known !== undefined && !known.includes(NOWHERE)) return known
    const proofs = new Map<number, Proof>()
    for (const entry of shard.entries) {
      for (const [id, bundle, offset, length] of entry.pieces ?? []) {
        if (!proofs.has(bundle)) proofs.set(bundle, { offset, length, digest: id })
      }
    }
    for (const entry of shard.entries) {
      const [header] = rangesOf(entry)
      if (entry.header === undefined || header === undefined || proofs.has(header[0])) continue
      const bytes = entryHeader({ metadata: entry, chunk: entry.chunk })
      proofs.set(header[0], { offset: header[1], length: header[2], digest: digestOf(bytes) })
    }
    const numbers = shard.bundles.map((place, index) => {
      const proof = proofs.get(index)
      return proof === undefined ? NOWHERE : bundles.match(place, proof)
    })
    this.#numbers.set(digest, numbers)
    return numbers
  }

  #parsed<Part>(digest: string, parse: (bytes: Buffer) => Part): Part | undefined {
    const part = this.#parts.get(digest)
    if (part === undefined) return undefined
    const [offset, length] = part.tar
    try {
      const bytes = this.#open.reader(part.file.path).readTar(part.file.frames, { offset, length })
      return digestBytes(bytes).toString('hex') === digest ? parse(bytes) : undefined
    } catch (error) {
      // It was whole a moment ago, or it is no catalog of ours.
      if (!(error instanceof BackupError)) throw error
      return undefined
    }
  }
}

/** Why a manifest that is there does not count. */
export interface DistrustedManifest {
  readonly path: RawPath
  /** As it says itself. */
  readonly name: string
  readonly why: string
}

export interface FoundExports {
  /** Newest first within each kind, the best kind first. */
  readonly exports: readonly FoundExport[]
  readonly distrusted: readonly DistrustedManifest[]
}

/** @param options.keys whose signatures count, by machine */
export async function findExports(
  found: readonly FoundFile[],
  {
    catalogs,
    keys,
    signal,
  }: {
    readonly catalogs: FoundCatalogs
    readonly keys: readonly MachineKey[]
    readonly signal: AbortSignal
  },
): Promise<FoundExports> {
  const distrusted: DistrustedManifest[] = []
  const exports: FoundExport[] = []
  const vouched = new Set<string>()
  const seen = new Set<string>()
  for (const file of found) {
    if (file.kind !== 'manifest' || seen.has(file.head)) continue
    seen.add(file.head)
    const read = await readFoundManifest(file, keys)
    if ('why' in read) {
      if (read.name !== undefined)
        distrusted.push({ path: file.path, name: read.name, why: read.why })
      continue
    }
    const { digest } = read.manifest.index
    vouched.add(digest)
    exports.push(signedExport(read.manifest, catalogs.index(digest)))
  }
  const led = new Set(exports.flatMap(({ shards }) => shards.map(({ digest }) => digest)))
  for (const digest of catalogs.indexes) {
    await turn(signal)
    const places = vouched.has(digest) ? undefined : catalogs.index(digest)
    if (places === undefined) continue
    for (const place of places) led.add(place.digest)
    exports.push(unsignedExport(places))
  }
  const loose = looseShards(catalogs, led)
  if (loose.length > 0) {
    const unknown = { machine: undefined, set: undefined, complete: undefined, members: [] }
    const stamp = newestOf(loose)
    exports.push({ name: 'unsigned:shards', evidence: 'shards', stamp, shards: loose, ...unknown })
  }
  return { exports: withOwnNames(exports.sort(byWorth)), distrusted }
}

function byWorth(a: FoundExport, b: FoundExport): number {
  const kind = EVIDENCE.indexOf(a.evidence) - EVIDENCE.indexOf(b.evidence)
  if (kind !== 0) return kind
  if (a.stamp !== b.stamp) return (a.stamp ?? '') < (b.stamp ?? '') ? 1 : -1
  return a.name < b.name ? -1 : 1
}

/** The same export from several repositories, or sets of the same name of several machines. */
function withOwnNames(exports: readonly FoundExport[]): readonly FoundExport[] {
  const counts = new Map<string, number>()
  return exports.map((one) => {
    const count = (counts.get(one.name) ?? 0) + 1
    counts.set(one.name, count)
    return count === 1 ? one : { ...one, name: `${one.name}#${count}` }
  })
}

type ReadManifest =
  { readonly manifest: Manifest } | { readonly why: string; readonly name: string | undefined }

async function readFoundManifest(
  file: FoundFile,
  keys: readonly MachineKey[],
): Promise<ReadManifest> {
  let name: string | undefined
  try {
    const json = Buffer.from(file.manifest!.json)
    const manifest = parseManifest(json)
    const { machine, set, stamp, repository } = manifest
    const isOurs = isValidName(machine) && isValidName(set) && parseStamp(stamp) !== undefined
    if (!isOurs || !/^[0-9a-f]{32}$/.test(repository)) return { why: 'is malformed', name }
    name = exportName(manifest)
    const signature = Buffer.from(file.manifest!.signature).toString()
    const publicKeys = keys.filter((one) => one.machine === machine).map((one) => one.publicKey)
    const signed = `${name}/manifest.json`
    await verifySigned({ bytes: json, signature, publicKeys, file: signed, repository })
    return { manifest }
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    return { why: error.message, name }
  }
}

function signedExport(manifest: Manifest, places: readonly ShardPlace[] | undefined): FoundExport {
  const { machine, set, stamp, complete, statistics } = manifest
  // Without its index nothing but its size is known of it.
  const unknown = { digest: manifest.index.digest, first: undefined, stamp: undefined }
  const shards =
    places === undefined
      ? [{ ...unknown, entries: statistics.entries }]
      : places.map((place) => ({ ...place, stamp: undefined }))
  const evidence = 'signed'
  const name = exportName(manifest)
  return { name, evidence, machine, set, stamp, complete, shards, members: [] }
}

/** The set and stamp of the newest bundle it names: roughly the export that it was. */
function unsignedExport(places: readonly ShardPlace[]): FoundExport {
  const newest = places
    .map(({ bundle }) => bundle.split('/'))
    .reduce<readonly string[]>((a, b) => ((a[1] ?? '') < (b[1] ?? '') ? b : a), [])
  const [set, stamp] = newest
  const shards = places.map((place) => ({ ...place, stamp: undefined }))
  const name = `unsigned:${set ?? 'empty'}/${stamp ?? ''}`
  const known = { machine: undefined, complete: undefined, members: [] }
  return { name, evidence: 'catalog', set, stamp, shards, ...known }
}

function looseShards(catalogs: FoundCatalogs, led: ReadonlySet<string>): readonly FoundShard[] {
  return catalogs.shards
    .filter((digest) => !led.has(digest))
    .flatMap((digest) => {
      const shard = catalogs.shard(digest)
      if (shard === undefined) return []
      const stamps = shard.bundles.map(({ name }) => name.split('/')[1] ?? '')
      const stamp = stamps.toSorted().at(-1)
      const { path } = shard.entries[0] ?? {}
      return [{ digest, entries: shard.entries.length, first: path, stamp }]
    })
}

/** What data bundles hold that no catalog names, as one export. */
export function membersExport(
  contents: readonly FoundContents[],
  bundles: FoundBundles,
): FoundExport | undefined {
  const members = contents.flatMap(({ path, members: ofBundle }) => {
    if (ofBundle.length === 0) return []
    const { copies } = bundles.all[bundles.numberOf(path)]!
    const stamp = copies.map((copy) => stampOfPath(copy.path)).find((one) => one !== undefined)
    return [{ stamp, members: ofBundle }]
  })
  if (members.length === 0) return undefined
  const stamp = newestOf(members)
  const unknown = { machine: undefined, set: undefined, complete: undefined }
  return { name: 'unsigned:members', evidence: 'members', stamp, shards: [], members, ...unknown }
}

/** Undefined where that of one is not known: it may be the newest. */
function newestOf(parts: readonly { readonly stamp: string | undefined }[]): string | undefined {
  const stamps = parts.flatMap(({ stamp }) => (stamp === undefined ? [] : [stamp]))
  return stamps.length < parts.length ? undefined : stamps.toSorted().at(-1)
}

/** Where a file still lies as it did in its repository. */
function stampOfPath(path: RawPath): string | undefined {
  const [, stamp = ''] = /\/([^/]+)\/data-\d{4,9}\.tar\.zst\.age[^/]*$/.exec(path) ?? []
  return parseStamp(stamp) === undefined ? undefined : stamp
}

/** What is read together. */
export interface Recovery {
  readonly bundles: FoundBundles
  readonly catalogs: FoundCatalogs
  readonly signal: AbortSignal
}

/** All entries of an export, and the shards of it that are nowhere. */
export async function* entriesOf(
  one: FoundExport,
  recovery: Recovery,
): AsyncGenerator<FoundEntry | { readonly lostShard: FoundShard }> {
  const { bundles, catalogs, signal } = recovery
  for (const place of one.shards) {
    await turn(signal)
    const shard = catalogs.shard(place.digest)
    if (shard === undefined) {
      yield { lostShard: place }
      continue
    }
    const numbers = catalogs.numbersOf(place.digest, shard, bundles)
    const names = shard.bundles.map(({ name }) => name)
    for (const entry of shard.entries) yield numbered(entry, { numbers, names, stamp: place.stamp })
  }
  for (const { stamp, members } of one.members) {
    await turn(signal)
    for (const member of members) yield ofMember(member, stamp)
  }
}

function numbered(
  entry: Entry,
  {
    numbers,
    names,
    stamp,
  }: {
    readonly numbers: readonly number[]
    readonly names: readonly string[]
    readonly stamp: string | undefined
  },
): FoundEntry {
  const { header: _header, pieces, ...rest } = entry
  if (pieces === undefined) return { entry: rest, stamp, absent: [], isDamaged: false }
  const absent = pieces.flatMap(([, bundle]) => {
    return numbers[bundle] === NOWHERE ? [names[bundle]!] : []
  })
  const mapped = pieces.map(([id, bundle, offset, length]) => {
    return [id, numbers[bundle]!, offset, length] as const
  })
  return { entry: { ...rest, pieces: mapped }, stamp, absent, isDamaged: false }
}

function ofMember(
  { metadata, chunk, pieces, isDamaged }: FoundMember,
  stamp: string | undefined,
): FoundEntry {
  // Where they lie is known by id alone: FoundBundles.addPlace() has been told.
  const mapped = pieces.map(([id, length]) => [id, NOWHERE, 0, length] as const)
  const entry: Entry = {
    ...metadata,
    ...(chunk === undefined ? {} : { chunk }),
    ...(mapped.length === 0 ? {} : { pieces: mapped }),
  }
  return { entry, stamp, absent: [], isDamaged }
}

/** The event loop gets a turn, to hear that it is to stop. @throws BackupError INTERRUPTED */
async function turn(signal: AbortSignal): Promise<void> {
  await setImmediate()
  if (!signal.aborted) return
  throw new BackupError('INTERRUPTED', 'interrupted', {
    hint: 'what was found was only read; the same command begins again',
  })
}

/** A path that cannot come back, and why. */
export interface LostPath {
  readonly path: RawPath
  readonly why: string
  /** What costs it: the name of a bundle that is nowhere, or the path of one that is damaged. */
  readonly bundle: string | undefined
}

/** What of an export can come back. */
export interface SurveyedExport extends FoundExport {
  readonly entries: number
  readonly files: number
  readonly bytes: number
  readonly lost: readonly LostPath[]
  /** Entries of shards that are nowhere, as far as their number is known. */
  readonly lostShards: readonly FoundShard[]
}

/** How many entries there are in shards, as far as that is known. */
export function entriesIn(shards: readonly FoundShard[]): number {
  return shards.reduce((sum, { entries = 0 }) => sum + entries, 0)
}

/** What can be said of an entry's content. @returns undefined where all of it can be read */
export function lossOf(
  { entry, absent, isDamaged }: FoundEntry,
  bundles: FoundBundles,
): LostPath | undefined {
  const { path, pieces = [] } = entry
  const lost = pieces.filter(([id, bundle, offset, length]) => {
    return bundles.placeOf(id, { bundle, offset, length }) === undefined
  })
  if (isDamaged) {
    return {
      path,
      why: 'some of its content cannot be read, and no catalog says what it was',
      bundle: undefined,
    }
  }
  const [first] = lost
  if (first === undefined) return undefined
  const of = `${lost.length} of ${pieces.length} ${pieces.length === 1 ? 'piece' : 'pieces'}`
  const [, bundle] = first
  if (bundle !== NOWHERE) {
    const { path: address } = bundles.all[bundle]!.copies[0]!
    return { path, why: `${of}: ${bundles.whyDamaged(bundle)}`, bundle: shownPath(address) }
  }
  const [name] = absent
  return name === undefined
    ? { path, why: `${of}: in no bundle that is here`, bundle: undefined }
    : { path, why: `${of}: their bundle is not here, or does not open`, bundle: name }
}

/** The ids of an entry's pieces that cannot be read anywhere, as far as is known. */
export function lackingIds({ entry }: FoundEntry, bundles: FoundBundles): readonly string[] {
  return (entry.pieces ?? []).flatMap(([id, bundle, offset, length]) => {
    return bundles.placeOf(id, { bundle, offset, length }) === undefined ? [id] : []
  })
}

/** What can come back of each export. Shards that exports share are read once. */
export async function surveyExports(
  exports: readonly FoundExport[],
  recovery: Recovery,
): Promise<readonly SurveyedExport[]> {
  const summaries = new Map<string, Summary>()
  const surveyed: SurveyedExport[] = []
  for (const one of exports) {
    const parts: Summary[] = [await summarize({ ...one, shards: [] }, recovery)]
    for (const place of one.shards) {
      const known = summaries.get(place.digest)
      const summary = known ?? (await summarize({ ...one, shards: [place], members: [] }, recovery))
      summaries.set(place.digest, summary)
      parts.push(summary)
    }
    const sum = (of: (part: Summary) => number) =>
      parts.reduce((total, part) => total + of(part), 0)
    const lost = parts.flatMap((part) => part.lost)
    const links = parts.flatMap((part) => part.links)
    surveyed.push({
      ...one,
      entries: sum((part) => part.entries),
      files: sum((part) => part.files),
      bytes: sum((part) => part.bytes),
      lost: [...lost, ...lostLinks(links, lost)],
      lostShards: parts.flatMap((part) => part.lostShards),
    })
  }
  return surveyed
}

interface Summary {
  readonly entries: number
  readonly files: number
  readonly bytes: number
  readonly lost: readonly LostPath[]
  readonly lostShards: readonly FoundShard[]
  /** Further names of files. */
  readonly links: readonly Pick<Entry, 'path' | 'target'>[]
}

async function summarize(one: FoundExport, recovery: Recovery): Promise<Summary> {
  let entries = 0
  let files = 0
  let bytes = 0
  const lost: LostPath[] = []
  const lostShards: FoundShard[] = []
  const links: Pick<Entry, 'path' | 'target'>[] = []
  for await (const found of entriesOf(one, recovery)) {
    if ('lostShard' in found) {
      lostShards.push(found.lostShard)
      continue
    }
    const { path, type, target } = found.entry
    entries += 1
    if (type === 'link' && target !== undefined) links.push({ path, target })
    if (type !== 'file') continue
    files += 1
    bytes += dataBytes(found.entry)
    const loss = lossOf(found, recovery.bundles)
    if (loss !== undefined) lost.push(loss)
  }
  return { entries, files, bytes, lost, lostShards, links }
}

/** Further names of files that are lost. */
function lostLinks(links: Summary['links'], lost: readonly LostPath[]): readonly LostPath[] {
  const losses = new Map(lost.map((loss) => [loss.path, loss]))
  return links.flatMap(({ path, target }) => {
    const loss = losses.get(target ?? '')
    return loss === undefined ? [] : [{ ...loss, path }]
  })
}

/** Remembers every place, in any export's catalog, of pieces that are wanted. */
export async function findPieces(
  wanted: ReadonlySet<string>,
  exports: readonly FoundExport[],
  recovery: Recovery,
): Promise<void> {
  const seen = new Set<string>()
  for (const { shards, ...one } of exports) {
    const unread = shards.filter(({ digest }) => !seen.has(digest))
    for (const { digest } of unread) seen.add(digest)
    for await (const found of entriesOf({ ...one, shards: unread, members: [] }, recovery)) {
      if ('lostShard' in found) continue
      for (const [id, bundle, offset, length] of found.entry.pieces ?? []) {
        if (bundle === NOWHERE || !wanted.has(id)) continue
        recovery.bundles.addPlace(id, { bundle, offset, length })
      }
    }
  }
}
