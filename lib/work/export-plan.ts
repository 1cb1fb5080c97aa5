// What an export has to pack: a collection's entries beside the last export's, path by path. Pure,
// and so testable.
//
// Content is known when the staging inode is the one that was exported (same inode, birth, size and
// time: link-dest made it so, docs/architecture.md), and every bundle that holds it is usable. What
// is not known is read and hashed by the workers.

import type { Entry, EntryMetadata } from '../model/entry.ts'
import { dataBytes } from '../model/entry.ts'
import { type RawPath, comparePaths, isWithin } from '../model/raw-path.ts'
import { rangesOf } from '../model/shard.ts'
import { chunkParameter } from '../format/chunker.ts'
import type { PackItem } from './pack-worker.ts'

export interface PlannedEntry {
  readonly entry: Entry
  /** The parameter of its content, kept from export to export. */
  readonly chunk: number | undefined
  /** Undefined when nothing has to be packed: `kept` says where everything is. */
  readonly item: PackItem | undefined
  readonly kept: Entry | undefined
}

/** Plans every entry of a collection; `last` is the set's last export, in catalog order too. */
export function planExport({
  collected,
  sources,
  last,
  isUsable,
}: {
  readonly collected: readonly Entry[]
  /** The paths of the set's sources: directories above them only hold them. */
  readonly sources: readonly RawPath[]
  readonly last: readonly Entry[]
  readonly isUsable: (bundle: number) => boolean
}): PlannedEntry[] {
  const byInode = new Map<number, Entry>()
  for (const entry of last) {
    if (entry.inode !== undefined && entry.type === 'file') byInode.set(entry.inode, entry)
  }
  let at = 0
  return collected.map((entry, index) => {
    while (at < last.length && comparePaths(last[at]!.path, entry.path) < 0) at++
    const before = last[at]?.path === entry.path ? last[at] : undefined
    const settled = settleParent(entry, { sources, before })
    return planEntry({ entry: settled, index, before, byInode, isUsable })
  })
}

/**
 * The directories above the sources change their times whenever anything beside the sources does:
 * they keep the time they were first exported with, so that a day without changes costs nothing.
 */
function settleParent(
  entry: Entry,
  { sources, before }: { sources: readonly RawPath[]; before: Entry | undefined },
): Entry {
  if (entry.type !== 'directory' || before === undefined) return entry
  const isAbove = sources.some((source) => source.startsWith(`${entry.path}/`))
  const isWithinOne = sources.some((source) => isWithin({ path: entry.path, directory: source }))
  return isAbove && !isWithinOne ? { ...entry, mtimeNs: before.mtimeNs } : entry
}

function planEntry({
  entry,
  index,
  before,
  byInode,
  isUsable,
}: {
  readonly entry: Entry
  readonly index: number
  readonly before: Entry | undefined
  readonly byInode: ReadonlyMap<number, Entry>
  readonly isUsable: (bundle: number) => boolean
}): PlannedEntry {
  const sizeBytes = dataBytes(entry)
  const chunk =
    chunkParameter(sizeBytes) === undefined
      ? undefined
      : (before?.chunk ?? chunkParameter(sizeBytes))
  if (entry.type === 'socket') return { entry, chunk, item: undefined, kept: entry }
  const metadata: EntryMetadata = metadataOf(entry)
  const usableHeader =
    before?.header !== undefined
    && isUsable(before.header[0])
    && before.chunk === chunk
    && sameMetadata(entry, before)
      ? before.header
      : undefined
  if (sizeBytes === 0) {
    if (usableHeader !== undefined) return { entry, chunk, item: undefined, kept: before }
    return { entry, chunk, item: { kind: 'member', index, metadata }, kept: undefined }
  }
  const known = knownContent({ entry, chunk, before, byInode, isUsable })
  if (known === undefined) {
    return { entry, chunk, item: { kind: 'file', index, metadata, chunk }, kept: undefined }
  }
  if (usableHeader !== undefined && known === before) {
    return { entry, chunk, item: undefined, kept: before }
  }
  const pieces = (known.pieces ?? []).map(([id, , , length]) => [id, length] as const)
  return { entry, chunk, item: { kind: 'header', index, metadata, chunk, pieces }, kept: known }
}

/** The entry of the last export whose content this one surely has. */
function knownContent({
  entry,
  chunk,
  before,
  byInode,
  isUsable,
}: {
  readonly entry: Entry
  readonly chunk: number | undefined
  readonly before: Entry | undefined
  readonly byInode: ReadonlyMap<number, Entry>
  readonly isUsable: (bundle: number) => boolean
}): Entry | undefined {
  const twin = entry.inode === undefined ? undefined : byInode.get(entry.inode)
  for (const candidate of [before, twin]) {
    if (candidate === undefined || candidate.type !== 'file') continue
    const same =
      candidate.inode === entry.inode
      && candidate.bornNs === entry.bornNs
      && candidate.size === entry.size
      && candidate.mtimeNs === entry.mtimeNs
      && candidate.chunk === chunk
      && sameSegments(candidate, entry)
    const { pieces } = candidate
    if (same && pieces !== undefined && pieces.every(([, bundle]) => isUsable(bundle)))
      return candidate
  }
  return undefined
}

function metadataOf(entry: Entry): EntryMetadata {
  const {
    chunk: _chunk,
    header: _header,
    pieces: _pieces,
    inode: _inode,
    bornNs: _born,
    ...metadata
  } = entry
  return metadata
}

/** Whether two entries would have the same header, which does not tell the birth. */
export function sameMetadata(a: EntryMetadata, b: EntryMetadata): boolean {
  return (
    a.path === b.path
    && a.type === b.type
    && a.mode === b.mode
    && a.uid === b.uid
    && a.gid === b.gid
    && a.user === b.user
    && a.group === b.group
    && a.mtimeNs === b.mtimeNs
    && a.size === b.size
    && a.target === b.target
    && a.acl === b.acl
    && a.defaultAcl === b.defaultAcl
    && a.device?.[0] === b.device?.[0]
    && a.device?.[1] === b.device?.[1]
    && a.flags?.join() === b.flags?.join()
    && sameXattrs(a, b)
    && sameSegments(a, b)
  )
}

function sameXattrs({ xattrs: a }: EntryMetadata, { xattrs: b }: EntryMetadata): boolean {
  if (a === undefined || b === undefined) return a === b
  if (a.size !== b.size) return false
  for (const [name, value] of a) if (b.get(name)?.equals(value) !== true) return false
  return true
}

function sameSegments({ sparse: a }: EntryMetadata, { sparse: b }: EntryMetadata): boolean {
  if (a === undefined || b === undefined) return a === b
  return (
    a.length === b.length
    && a.every(([offset, length], i) => offset === b[i]![0] && length === b[i]![1])
  )
}

/**
 * How many bytes of each bundle's tar some entries need; what several of them share counts once.
 */
export function usageOf(entries: readonly Entry[]): Map<number, number> {
  const seen = new Map<number, Set<number>>()
  const usage = new Map<number, number>()
  for (const entry of entries) {
    for (const [bundle, offset, length] of rangesOf(entry)) {
      let offsets = seen.get(bundle)
      if (offsets === undefined) seen.set(bundle, (offsets = new Set()))
      if (offsets.has(offset)) continue
      offsets.add(offset)
      usage.set(bundle, (usage.get(bundle) ?? 0) + length)
    }
  }
  return usage
}
