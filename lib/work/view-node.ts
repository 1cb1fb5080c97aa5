// What the read-only view of backups is made of: nodes, files that can be read, and the tree of one
// generation.
//
// browse.ts puts trees together under sets and stamps; browse-export.ts and browse-staging.ts are
// the two kinds of trees; fuse-view.ts and webdav.ts show what they give. Throws nothing.

import type { Buffer } from 'node:buffer'
import type { EntryMetadata, TimeNs } from '../model/entry.ts'
import type { RawPath } from '../model/raw-path.ts'

/** One path of a tree. Its names have no `/` and are never `.` or `..`. */
export interface ViewNode {
  /** Relative to the root of the tree that gave it; '' for the root itself. */
  readonly path: RawPath
  /** One for all names of one file: what inode numbers are made of. */
  readonly file: RawPath
  /** As the path has it; its type is never `link`. */
  readonly metadata: EntryMetadata
  /** Names and values, ACLs among them as the kernel has them. */
  readonly xattrs: () => ReadonlyMap<string, Buffer>
}

/** A file that is open for reading. */
export interface ViewFile {
  readonly sizeBytes: number
  /**
   * Bytes from `offset` on: fewer only where the file ends.
   * @throws BackupError where not every byte of them is what it has to be
   */
  readonly read: (offset: number, length: number) => Promise<Buffer>
  readonly close: () => void
}

/** Where a list goes on, and how long it may be. */
export interface ListPart {
  /** The name, not the path, of the last one before. */
  readonly after: RawPath | undefined
  readonly limit: number
}

/** Read-only: one generation, or all of them under their sets and stamps. */
export interface ViewTree {
  /** Undefined where there is no such path. */
  readonly lookup: (path: RawPath) => Promise<ViewNode | undefined>
  /** What lies in a directory, in the order of its names; empty after the last one. */
  readonly list: (directory: RawPath, part: ListPart) => Promise<readonly ViewNode[]>
  /** Undefined where there is no file at that path. */
  readonly open: (path: RawPath) => Promise<ViewFile | undefined>
  readonly close: () => void
}

/** A directory that no catalog has: the levels above generations, and what only paths imply. */
export function impliedDirectory({
  path,
  mtimeNs,
  xattrs = new Map(),
}: {
  readonly path: RawPath
  readonly mtimeNs: TimeNs
  readonly xattrs?: ReadonlyMap<string, Buffer>
}): ViewNode {
  const metadata: EntryMetadata = { path, type: 'directory', mode: 0o755, ...owner(), mtimeNs }
  return { path, file: path, metadata, xattrs: () => xattrs }
}

/** Whoever shows the view owns what only the view has. */
export function owner(): { readonly uid: number; readonly gid: number } {
  return { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 }
}

/** Everything in a directory, a part at a time. */
export async function* listAll(
  tree: Pick<ViewTree, 'list'>,
  directory: RawPath,
): AsyncGenerator<ViewNode> {
  let after: RawPath | undefined
  for (;;) {
    const part = await tree.list(directory, { after, limit: PART_LENGTH })
    yield* part
    const last = part.at(-1)
    if (last === undefined) return
    after = last.path.slice(last.path.lastIndexOf('/') + 1)
  }
}

/** So many at a time: about a shard. */
export const PART_LENGTH = 256
