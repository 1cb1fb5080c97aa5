// Proves a collection in staging: its tree is walked again and compared with its catalog, entry by
// entry (docs/format.md §8).
//
// Where an export of the very same collection left digests in .state, worker threads (the end of
// this file) read every file, too; else the result says that content was not checked (invariant
// 10). Writes nothing but the set's lock. restore-local.ts asks here first. Throws NOTHING_FOUND,
// CATALOG_DAMAGED, STAGING_FAILED, INTERRUPTED; damage is a value.

import { Buffer } from 'node:buffer'
import { lstatSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { isDeepStrictEqual } from 'node:util'
import { parentPort, workerData } from 'node:worker_threads'
import { BackupError, systemCode } from '../errors.ts'
import { digestOf } from '../format/chunker.ts'
import type { Lock } from '../machine/lock.ts'
import { type Entry, type EntryMetadata, asFile, dataBytes } from '../model/entry.ts'
import {
  type RawPath,
  comparePaths,
  displayPath,
  isWithin,
  rawPathFromText,
  rawPathToBytes,
} from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import type { Stamp } from '../model/stamp.ts'
import type { PieceLength } from './pack-worker.ts'
import { sealTree } from './seal.ts'
import { StagedFile, StagedFileChanged } from './staged-file.ts'
import {
  type Collection,
  type CollectionPlace,
  acquireSetLock,
  collectionDirectory,
  readCollection,
  stagingError,
} from './staging.ts'
import { knownRepositoryIds, loadState, stateDirectory } from './state.ts'
import { runWorkers } from './worker-pool.ts'

/** The pieces of each file's data, in order, by the path that carries them in an export. */
export type FileDigests = ReadonlyMap<RawPath, readonly PieceLength[]>

export interface CollectionProblem {
  readonly path: RawPath
  readonly kind: 'missing' | 'extra' | 'changed'
  /** For people: lower-case start, no final period. */
  readonly why: string
}

export interface CollectionVerification {
  /** In catalog order. */
  readonly problems: readonly CollectionProblem[]
  readonly files: number
  readonly bytes: number
  /** Whether every file's bytes were compared with a digest. */
  readonly contentChecked: boolean
}

interface CheckOptions extends CollectionPlace {
  /** Without leading slashes; none for everything. */
  readonly paths: readonly RawPath[]
  /** Undefined where no export tells them: see digestsFor. */
  readonly digests: FileDigests | undefined
  readonly report: Report
  readonly signal: AbortSignal
}

/**
 * Compares a collection, or the given paths of it, with its catalog.
 * @throws BackupError NOTHING_FOUND when there is no such collection or path, CATALOG_DAMAGED,
 * STAGING_FAILED
 */
export async function verifyCollection(options: CheckOptions): Promise<CollectionVerification> {
  const lock = lockIfFree({ ...options, description: `verifying ${options.set} ${options.stamp}` })
  try {
    return await checkCollection(readCollection(options), options)
  } finally {
    lock?.release()
  }
}

/**
 * Keeps the collection from being removed while it is read. When another run has the lock, we go on
 * without: nobody should have to wait for a restore, and what is removed meanwhile is noticed and
 * named.
 */
export function lockIfFree({
  staging,
  set,
  description,
}: CollectionPlace & { readonly description: string }): Lock | undefined {
  try {
    return acquireSetLock({ staging, set, description, waitMs: 0 })
  } catch (error) {
    if (error instanceof BackupError && error.code === 'LOCKED') return undefined
    // A staging that cannot be written can be read all the same.
    if (['ENOENT', 'EACCES', 'EPERM', 'EROFS', 'ENOSPC'].includes(systemCode(error) ?? '')) {
      return undefined
    }
    throw error
  }
}

/**
 * The digests of a collection's files, from what is known of a repository whose last export of the
 * set is this very collection; undefined where there is none. A damaged state counts as none.
 */
export async function digestsFor(place: CollectionPlace): Promise<FileDigests | undefined> {
  const exported = await lastExported(place)
  return exported.find(({ stamp }) => stamp === place.stamp)?.digests()
}

/** The last exports of a set that are known here, and the digests of their files. */
export async function lastExported({
  staging,
  set,
}: Pick<CollectionPlace, 'staging' | 'set'>): Promise<
  readonly { readonly stamp: Stamp; readonly digests: () => FileDigests }[]
> {
  const found: { stamp: Stamp; digests: () => FileDigests }[] = []
  for (const id of knownRepositoryIds(staging)) {
    try {
      // A state that is still pending is not ours to adopt: that takes the target.
      const state = await loadState(stateDirectory({ staging, id }), 'unasked')
      const last = state?.sets.get(set)
      if (last !== undefined)
        found.push({ stamp: last.stamp, digests: () => digestsOf(last.entries) })
    } catch {
      // As if it were not there.
    }
  }
  return found
}

function digestsOf(entries: readonly Entry[]): FileDigests {
  const files = entries.filter(({ type, pieces }) => type === 'file' && pieces !== undefined)
  return new Map(
    files.map(({ path, pieces = [] }) => [
      path,
      pieces.map(([id, , , length]) => [id, length] as const),
    ]),
  )
}

/**
 * The entries that the paths name, in catalog order.
 * @throws BackupError NOTHING_FOUND, naming a path that has none
 */
export function selectCollected(
  { header, entries }: Collection,
  paths: readonly RawPath[],
): readonly Entry[] {
  for (const path of paths) {
    if (entries.some((entry) => isWithin({ path: entry.path, directory: path }))) continue
    const message = `there is no ${displayPath(path)} in ${header.set} ${header.stamp}`
    throw new BackupError('NOTHING_FOUND', message, {
      hint: 'paths are those of the source, for example --path /home/you/letters',
    })
  }
  return entries.filter(({ path }) => isSelected(path, paths))
}

function isSelected(path: RawPath, paths: readonly RawPath[]): boolean {
  return paths.length === 0 || paths.some((directory) => isWithin({ path, directory }))
}

/** verifyCollection for a catalog that is read, under a lock that is held. */
export async function checkCollection(
  collection: Collection,
  options: CheckOptions,
): Promise<CollectionVerification> {
  const { staging, paths, digests, report } = options
  const selected = selectCollected(collection, paths)
  const directory = rawPathFromText(collectionDirectory(options))
  report({ kind: 'phase', name: 'verifying' })
  const there = walkTree({ directory, staging })
  const structure = compareStructure({ directory, collection, selected, there, digests })
  const content = await checkContent({ ...options, directory, files: structure.readable })
  const extra = [...there.values()].filter(
    ({ path }) => isSelected(path, paths) && !structure.known.has(path),
  )
  const problems: CollectionProblem[] = [
    ...structure.problems,
    ...content.flatMap(({ paths: same, why }) =>
      same.map((path) => ({ path, kind: 'changed' as const, why })),
    ),
    ...extra.map(({ path }) => ({
      path,
      kind: 'extra' as const,
      why: 'it is not in the catalog: somebody put it there',
    })),
  ]
  const files = selected.filter(({ type }) => type === 'file')
  return {
    problems: problems.sort((a, b) => comparePaths(a.path, b.path)),
    files: files.length,
    bytes: files.reduce((sum, { size = 0 }) => sum + size, 0),
    contentChecked: digests !== undefined && structure.unread === 0,
  }
}

function walkTree({
  directory,
  staging,
}: {
  directory: RawPath
  staging: string
}): ReadonlyMap<RawPath, Entry> {
  try {
    const entries = sealTree({ directory, names: { users: new Map(), groups: new Map() } })
    return new Map(entries.map((entry) => [entry.path, entry]))
  } catch (error) {
    throw stagingError({ error, staging, doing: 'read' })
  }
}

interface Structure {
  readonly problems: readonly CollectionProblem[]
  /** Every path of the catalog. */
  readonly known: ReadonlySet<RawPath>
  /** Files without a problem so far whose digests are known. */
  readonly readable: readonly ReadableFile[]
  /** How many files have content and no digests. */
  readonly unread: number
}

interface ReadableFile {
  /** The hard links of one file, of which the first is read. */
  readonly paths: RawPath[]
  readonly metadata: EntryMetadata
  readonly pieces: readonly PieceLength[]
  /** Whether its holes are elsewhere than they were: then what were holes has to be zeros. */
  readonly holesMoved: boolean
}

function compareStructure({
  directory,
  collection,
  selected,
  there,
  digests,
}: {
  readonly directory: RawPath
  readonly collection: Collection
  readonly selected: readonly Entry[]
  readonly there: ReadonlyMap<RawPath, Entry>
  readonly digests: FileDigests | undefined
}): Structure {
  const known = new Map(collection.entries.map((entry) => [entry.path, entry]))
  const firsts = firstsThere(collection.entries, there)
  const problems: CollectionProblem[] = []
  const readable = new Map<RawPath, ReadableFile>()
  const isMoved = wasMoved(collection.entries, there)
  let unread = 0
  for (const entry of selected) {
    const { path } = entry
    const actual = there.get(path)
    if (actual === undefined) {
      problems.push({ path, kind: 'missing', why: whyMissing(`${directory}/${path}`) })
      continue
    }
    const carrier = entry.type === 'link' ? known.get(entry.target ?? '') : entry
    const expected = unlinked(entry, carrier)
    const current = unlinked(
      actual,
      actual.type === 'link' ? there.get(actual.target ?? '') : actual,
    )
    const what = differences(expected, current)
    if (expected.type === 'file' && linkOf(actual) !== firsts.get(linkOf(entry))) {
      what.push('hard links')
    }
    const size = dataBytes(expected)
    const told = size === 0 ? [] : digests?.get(linkOf(entry))
    const pieces = told !== undefined && lengthOf(told) === size ? told : undefined
    const holesMoved = !isDeepStrictEqual(expected.sparse, current.sparse)
    if (pieces === undefined) {
      unread += 1
      if (holesMoved) what.push('holes')
      if (!isMoved && !isSameInode(entry, actual)) what.push('inode')
    }
    if (what.length > 0) {
      problems.push({
        path,
        kind: 'changed',
        why: `somebody changed it in staging: ${what.join(', ')}`,
      })
    } else if (expected.type === 'file' && pieces !== undefined && (size > 0 || holesMoved)) {
      const file = readable.get(linkOf(entry))
      if (file !== undefined) file.paths.push(path)
      else readable.set(linkOf(entry), { paths: [path], metadata: expected, pieces, holesMoved })
    }
  }
  return { problems, known: new Set(known.keys()), readable: [...readable.values()], unread }
}

/** A directory that may not be read looks empty. */
function whyMissing(path: RawPath): string {
  try {
    lstatSync(rawPathToBytes(path))
    return 'its directory cannot be read'
  } catch (error) {
    const code = systemCode(error)
    if (code === undefined) throw error
    const isGone = code === 'ENOENT' || code === 'ENOTDIR'
    return isGone ? 'it is no longer in staging' : `it cannot be read (${code})`
  }
}

/** The path that stands for all hard links of a file. */
function linkOf({ type, path, target }: Entry): RawPath {
  return type === 'link' ? (target ?? '') : path
}

/**
 * By the catalog's name for a group of hard links: the first of them that is there, as a walk names
 * the group.
 */
function firstsThere(
  entries: readonly Entry[],
  there: ReadonlyMap<RawPath, Entry>,
): ReadonlyMap<RawPath, RawPath> {
  const firsts = new Map<RawPath, RawPath>()
  for (const entry of entries) {
    if (!firsts.has(linkOf(entry)) && there.has(entry.path)) firsts.set(linkOf(entry), entry.path)
  }
  return firsts
}

/** A hard link as the file that it is; where its file is not there, without content. */
function unlinked(entry: Entry, carrier: Entry | undefined): Entry {
  return entry.type === 'link' ? asFile(entry, carrier ?? entry) : entry
}

/**
 * What differs, in words; holes, hard links and inodes apart. Names of owners are the machine's
 * affair, not the tree's.
 */
function differences(expected: Entry, actual: Entry): string[] {
  if (expected.type !== actual.type) return [`it was a ${expected.type} and is a ${actual.type}`]
  const same: Readonly<Record<string, boolean>> = {
    size: expected.size === actual.size,
    time: expected.mtimeNs === actual.mtimeNs,
    mode: expected.mode === actual.mode,
    owner: expected.uid === actual.uid && expected.gid === actual.gid,
    'link target': expected.target === actual.target,
    device: isDeepStrictEqual(expected.device, actual.device),
    'extended attributes': isDeepStrictEqual(expected.xattrs, actual.xattrs),
    ACL: expected.acl === actual.acl && expected.defaultAcl === actual.defaultAcl,
  }
  return Object.keys(same).filter((name) => same[name] === false)
}

function isSameInode(expected: Entry, actual: Entry): boolean {
  if (expected.inode === undefined) return true
  return expected.inode === actual.inode && expected.bornNs === actual.bornNs
}

/**
 * Staging was copied to another disk: no inode is what it was, and that says nothing about a file.
 */
function wasMoved(entries: readonly Entry[], there: ReadonlyMap<RawPath, Entry>): boolean {
  return !entries.some((entry) => {
    const actual = there.get(entry.path)
    return actual !== undefined && isSameInode(entry, actual)
  })
}

interface ContentSlice {
  readonly file: number
  /** Absolute. */
  readonly path: RawPath
  readonly metadata: EntryMetadata
  readonly offset: number
  readonly pieces: readonly PieceLength[]
  readonly checkHoles: boolean
  readonly isLast: boolean
}

interface ContentReply {
  readonly bytes: number
  /** Files whose last slice was read. */
  readonly files: number
  readonly problems: readonly { readonly file: number; readonly why: string }[]
}

/**
 * Enough for a worker to be busy; large files are cut, so that all workers help and the user sees
 * it go on.
 */
const BATCH_BYTES = 64 * 1024 * 1024
const BATCH_SLICES = 256

/** Marks our workers, for other workers may import this file, too. */
const WORKER_ROLE = 'verify-local'

async function checkContent({
  directory,
  files,
  report,
  signal,
}: {
  readonly directory: RawPath
  readonly files: readonly ReadableFile[]
  readonly report: Report
  readonly signal: AbortSignal
}): Promise<readonly { readonly paths: readonly RawPath[]; readonly why: string }[]> {
  const bytesTotal = files.reduce((sum, { metadata }) => sum + dataBytes(metadata), 0)
  const whys = new Map<number, string>()
  let bytesDone = 0
  let filesDone = 0
  const requests = batches(files, directory)
  await runWorkers<readonly ContentSlice[], ContentReply>({
    script: './verify-local.js',
    ahead: 2,
    workerData: { role: WORKER_ROLE },
    workers: availableParallelism(),
    requests,
    signal,
    interruptedHint: 'nothing was changed; start it again',
    onReply: (reply) => {
      for (const { file, why } of reply.problems) whys.set(file, why)
      bytesDone += reply.bytes
      filesDone += reply.files
      report({
        kind: 'progress',
        phase: 'verifying',
        filesDone,
        filesTotal: files.length,
        bytesDone,
        bytesTotal,
      })
    },
  })
  return [...whys].map(([file, why]) => ({ paths: files[file]!.paths, why }))
}

function batches(files: readonly ReadableFile[], directory: RawPath): (readonly ContentSlice[])[] {
  const all: ContentSlice[][] = []
  let bytes = Infinity
  for (const slice of slices(files, directory)) {
    if (bytes >= BATCH_BYTES || all.at(-1)!.length >= BATCH_SLICES) {
      all.push([])
      bytes = 0
    }
    all.at(-1)!.push(slice)
    bytes += lengthOf(slice.pieces)
  }
  return all
}

function* slices(files: readonly ReadableFile[], directory: RawPath): Generator<ContentSlice> {
  for (const [file, { paths, metadata, pieces, holesMoved }] of files.entries()) {
    const common = { file, path: `${directory}/${paths[0]}`, metadata }
    let offset = 0
    let from = 0
    do {
      let [to, length] = [from, 0]
      for (; to < pieces.length && length < BATCH_BYTES; to++) length += pieces[to]![1]
      const checkHoles = holesMoved && from === 0
      yield {
        ...common,
        offset,
        pieces: pieces.slice(from, to),
        checkHoles,
        isLast: to === pieces.length,
      }
      offset += length
      from = to
    } while (from < pieces.length)
  }
}

function lengthOf(pieces: readonly PieceLength[]): number {
  return pieces.reduce((sum, [, length]) => sum + length, 0)
}

function checkSlices(items: readonly ContentSlice[]): ContentReply {
  const problems = items.flatMap((item) => {
    const why = problemOf(item)
    return why === undefined ? [] : [{ file: item.file, why }]
  })
  const bytes = items.reduce((sum, { pieces }) => sum + lengthOf(pieces), 0)
  return { bytes, files: items.filter(({ isLast }) => isLast).length, problems }
}

function problemOf(item: ContentSlice): string | undefined {
  try {
    return readSlice(item)
  } catch (error) {
    if (error instanceof StagedFileChanged) return error.message
    const code = systemCode(error)
    if (code === undefined) throw error
    return `it cannot be read (${code})`
  }
}

function readSlice({
  path,
  metadata,
  offset,
  pieces,
  checkHoles,
}: ContentSlice): string | undefined {
  if (checkHoles && !holesAreZeros(path, metadata)) {
    return 'it has content where its catalog has a hole'
  }
  if (pieces.length === 0) return undefined
  const staged = new StagedFile({ path, metadata })
  try {
    let position = offset
    for (const [id, length] of pieces) {
      const bytes = Buffer.allocUnsafe(length)
      staged.read(bytes, position)
      if (digestOf(bytes) !== id) {
        return 'its content is not what was exported: bytes changed in staging'
      }
      position += length
    }
    return undefined
  } finally {
    staged.close()
  }
}

const ZEROS = Buffer.alloc(1024 * 1024)

function holesAreZeros(path: RawPath, metadata: EntryMetadata): boolean {
  const holes: (readonly [number, number])[] = []
  let end = 0
  const size = metadata.size ?? 0
  for (const [start, length] of [
    ...(metadata.sparse ?? [[0, size] as const]),
    [size, 0] as const,
  ]) {
    if (start > end) holes.push([end, start - end])
    end = start + length
  }
  // The holes, read as if they were the data.
  const staged = new StagedFile({ path, metadata: { ...metadata, sparse: holes } })
  try {
    const bytes = Buffer.allocUnsafe(ZEROS.length)
    for (let position = 0; position < staged.dataBytes; position += bytes.length) {
      const part = bytes.subarray(0, Math.min(bytes.length, staged.dataBytes - position))
      staged.read(part, position)
      if (!part.equals(ZEROS.subarray(0, part.length))) return false
    }
    return true
  } finally {
    staged.close()
  }
}

// Last, for constants are not hoisted.
if (parentPort !== null && (workerData as { role?: unknown } | null)?.role === WORKER_ROLE) {
  const port = parentPort
  port.on('message', (items: readonly ContentSlice[]) => port.postMessage(checkSlices(items)))
}
