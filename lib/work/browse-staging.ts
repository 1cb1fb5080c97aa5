// The tree of one collection, as something to walk about in: what lies in staging, as it lies
// there.
//
// The other kind is browse-export.ts. Content is not compared with anything: `backup restore
// --verify --source local` does that. Follows no link. Throws system errors other than that
// something is not there.

import { Buffer } from 'node:buffer'
import {
  type BigIntStats,
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  openSync,
  readSync,
  readdirSync,
  readlinkSync,
} from 'node:fs'
import { systemCode } from '../errors.ts'
import { deviceParts, getXattr, listXattrs } from '../machine/posix.ts'
import type { EntryMetadata } from '../model/entry.ts'
import { type RawPath, parentOf, rawPathToBytes } from '../model/raw-path.ts'
import { typeOf } from './seal.ts'
import type { ListPart, ViewFile, ViewNode, ViewTree } from './view-node.ts'

export class StagedTree implements ViewTree {
  /** Of the collection, absolute. */
  readonly #root: RawPath
  /** The names of the directory that was listed last: a collection does not change. */
  #listed: { readonly directory: RawPath; readonly names: readonly RawPath[] } | undefined

  constructor(root: RawPath) {
    this.#root = root
  }

  async lookup(path: RawPath): Promise<ViewNode | undefined> {
    return await Promise.resolve(this.#isReached(path) ? this.#node(path) : undefined)
  }

  async list(directory: RawPath, { after, limit }: ListPart): Promise<readonly ViewNode[]> {
    const isDirectory = this.#isReached(directory) && this.#stat(directory)?.isDirectory() === true
    if (!isDirectory) return []
    const nodes: ViewNode[] = []
    for (const name of this.#namesIn(directory)) {
      if (after !== undefined && name <= after) continue
      const node = this.#node(directory === '' ? name : `${directory}/${name}`)
      if (node !== undefined) nodes.push(node)
      if (nodes.length === limit) break
    }
    return await Promise.resolve(nodes)
  }

  async open(path: RawPath): Promise<ViewFile | undefined> {
    if (!this.#isReached(path)) return undefined
    const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK
    const fd = openSync(rawPathToBytes(this.#place(path)), flags)
    const stat = fstatSync(fd)
    if (!stat.isFile()) {
      closeSync(fd)
      return undefined
    }
    return await Promise.resolve(stagedFile(fd, stat.size))
  }

  close(): void {
    this.#listed = undefined
  }

  #place(path: RawPath): RawPath {
    return path === '' ? this.#root : `${this.#root}/${path}`
  }

  /** Whether everything above it is a directory and no link leads out of the collection. */
  #isReached(path: RawPath): boolean {
    for (let above = path; above !== '';) {
      above = parentOf(above)
      if (this.#stat(above)?.isDirectory() !== true) return false
    }
    return true
  }

  #stat(path: RawPath): BigIntStats | undefined {
    const place = rawPathToBytes(this.#place(path))
    return lstatSync(place, { bigint: true, throwIfNoEntry: false })
  }

  #node(path: RawPath): ViewNode | undefined {
    const stat = this.#stat(path)
    if (stat === undefined) return undefined
    const place = this.#place(path)
    const type = typeOf(stat)
    const isLinked = type === 'file' && stat.nlink > 1n
    const metadata: EntryMetadata = {
      path,
      type,
      mode: Number(stat.mode & 0o7777n),
      uid: Number(stat.uid),
      gid: Number(stat.gid),
      mtimeNs: stat.mtimeNs,
      ...(type === 'file' ? { size: Number(stat.size) } : {}),
      ...(type === 'symlink' ? { target: readlinkSync(rawPathToBytes(place), 'latin1') } : {}),
      ...(type === 'char' || type === 'block' ? { device: deviceParts(stat.rdev) } : {}),
    }
    // No path begins with a slash, so no other file has this name.
    return { path, file: isLinked ? `/${stat.ino}` : path, metadata, xattrs: () => xattrsOf(place) }
  }

  #namesIn(directory: RawPath): readonly RawPath[] {
    if (this.#listed?.directory === directory) return this.#listed.names
    const names = readNames(rawPathToBytes(this.#place(directory))).sort()
    this.#listed = { directory, names }
    return names
  }
}

function readNames(directory: Buffer): RawPath[] {
  try {
    return readdirSync(directory, { encoding: 'latin1' })
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes(systemCode(error) ?? '')) return []
    throw error
  }
}

function xattrsOf(place: RawPath): ReadonlyMap<string, Buffer> {
  const out = new Map<string, Buffer>()
  for (const name of listXattrs(place)) {
    const value = getXattr(place, name)
    if (value !== undefined) out.set(name, value)
  }
  return out
}

function stagedFile(fd: number, sizeBytes: number): ViewFile {
  return {
    sizeBytes,
    read: async (offset, length) => {
      const out = Buffer.allocUnsafe(Math.max(0, Math.min(length, sizeBytes - offset)))
      let done = 0
      while (done < out.length) {
        const count = readSync(fd, out, done, out.length - done, offset + done)
        if (count === 0) break
        done += count
      }
      return await Promise.resolve(out.subarray(0, done))
    },
    close: () => closeSync(fd),
  }
}
