// What rsync cannot carry, added to the entries of a sealed tree: time of birth and inode flags of
// the sources (docs/format.md §5).
//
// One synchronous pass in catalog order, after seal.ts and before the catalog is written; nothing
// is opened. What the source says is believed only where it is still the file that was copied, so
// that an unchanged file gives the same line in every run. Throws nothing for a source that is
// gone, changed or closed to us: its entry stays as it is.

import { realpathSync } from 'node:fs'
import { systemCode } from '../errors.ts'
import { type SourceStat, statSource } from '../machine/statx.ts'
import type { Entry, EntryType } from '../model/entry.ts'
import { parentOf, type RawPath, rawPathToBytes } from '../model/raw-path.ts'

const TYPE_BITS: Readonly<Record<EntryType, number>> = {
  file: 0o100000,
  link: 0o100000,
  directory: 0o040000,
  symlink: 0o120000,
  fifo: 0o010000,
  char: 0o020000,
  block: 0o060000,
  socket: 0o140000,
}
const TYPE_MASK = 0o170000
const BILLION = 1_000_000_000n

/**
 * The entries with `birthNs` and `flags` as their sources have them. `rootOf` gives what stands
 * before `/<path>` where an entry was read: the directory of a view, or nothing for the live path.
 */
export function readSourceMetadata({
  entries,
  rootOf,
  only,
}: {
  readonly entries: readonly Entry[]
  readonly rootOf: (path: RawPath) => RawPath
  /** Where the others are known already. */
  readonly only?: ReadonlySet<RawPath>
}): Entry[] {
  const sizes = new Map<RawPath, number>()
  return entries.map((entry) => {
    const { path, size } = entry
    // A further link of a file: its size is that of the first path.
    if (entry.type === 'file' && size !== undefined) sizes.set(path, size)
    if (only?.has(path) === false) return entry
    const wanted = entry.type === 'link' ? sizes.get(entry.target!) : size
    const source = statOrNothing(`${rootOf(path)}/${path}`, entry.type)
    if (source === undefined || !isWhatWasCopied(entry, wanted, source)) return entry
    const { birthNs, flags } = source
    const canHaveFlags = wanted !== undefined || entry.type === 'directory'
    return {
      ...entry,
      ...(birthNs === undefined ? {} : { birthNs }),
      ...(canHaveFlags && flags.length > 0 ? { flags } : {}),
    }
  })
}

/**
 * `rootOf` for a source snapshot: `covered` has its sources, absolute, each with what stands before
 * it. What lies above them is in the view too, but made by us: its births are those of the live
 * directories.
 */
export function snapshotRoots(
  covered: ReadonlyMap<RawPath, { readonly root: RawPath }>,
): (path: RawPath) => RawPath {
  const rootAt = (path: RawPath): RawPath =>
    covered.get(`/${path}`)?.root ?? (path === '' ? '' : rootAt(parentOf(path)))
  let [parent, rootOfParent]: [RawPath, RawPath] = ['', rootAt('')]
  return (path) => {
    // Neighbours come one after the other.
    if (parentOf(path) !== parent) {
      parent = parentOf(path)
      rootOfParent = rootAt(parent)
    }
    return covered.get(`/${path}`)?.root ?? rootOfParent
  }
}

/** A source that is a link to a file or directory was followed, and so it is here. */
function statOrNothing(path: RawPath, type: EntryType): SourceStat | undefined {
  try {
    const stat = statSource(path)
    const isFollowed = type !== 'symlink' && (stat.mode & TYPE_MASK) === TYPE_BITS.symlink
    if (!isFollowed) return stat
    return statSource(realpathSync.native(rawPathToBytes(path), { encoding: 'latin1' }))
  } catch (error) {
    if (systemCode(error) === undefined) throw error
    return undefined
  }
}

/**
 * A directory's time says what changed in it, not whether it is the same one. A staging filesystem
 * may keep whole seconds only.
 */
function isWhatWasCopied(
  { type, mtimeNs }: Entry,
  size: number | undefined,
  source: SourceStat,
): boolean {
  if ((source.mode & TYPE_MASK) !== TYPE_BITS[type]) return false
  if (type === 'directory') return true
  if (size !== undefined && source.size !== size) return false
  const difference = source.mtimeNs - mtimeNs
  return difference === 0n || (mtimeNs % BILLION === 0n && difference > 0n && difference < BILLION)
}
