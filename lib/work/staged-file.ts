// The data bytes of a staged file (docs/format.md §4): all of it, or a sparse file's data segments
// one after another.
//
// Used by pack-worker.ts. Opens without following links and checks that the file still is what the
// collection's catalog says; throws StagedFileChanged when it is not, or the system's error when it
// cannot be read.

import type { Buffer } from 'node:buffer'
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs'
import { dataSegments } from '../machine/posix.ts'
import { type EntryMetadata, dataBytes } from '../model/entry.ts'
import { rawPathToBytes } from '../model/raw-path.ts'

/** The file is not what the catalog of its collection says: somebody wrote in staging. */
export class StagedFileChanged extends Error {}

export class StagedFile {
  readonly dataBytes: number
  readonly #fd: number
  readonly #metadata: EntryMetadata
  readonly #segments: readonly (readonly [number, number])[]

  constructor({ path, metadata }: { path: string; metadata: EntryMetadata }) {
    this.#metadata = metadata
    this.dataBytes = dataBytes(metadata)
    this.#segments = metadata.sparse ?? [[0, this.dataBytes]]
    this.#fd = openSync(rawPathToBytes(path), constants.O_RDONLY | constants.O_NOFOLLOW)
    try {
      this.check()
    } catch (error) {
      this.close()
      throw error
    }
  }

  /** Fills `out` with the data bytes from `offset` on. */
  read(out: Buffer, offset: number): void {
    let skip = offset
    let done = 0
    for (const [start, length] of this.#segments) {
      if (done === out.length) break
      if (skip >= length) {
        skip -= length
        continue
      }
      const wanted = Math.min(length - skip, out.length - done)
      this.#readFully(out.subarray(done, done + wanted), start + skip)
      done += wanted
      skip = 0
    }
    if (done !== out.length) throw new StagedFileChanged('it is shorter than its catalog says')
  }

  /** Whether the file is sparse in the same places; always, where the entry is not sparse. */
  hasHolesOf({ sparse, size }: EntryMetadata): boolean {
    if (sparse === undefined) return true
    const segments = dataSegments(this.#fd, size ?? 0)
    return (
      segments.length === sparse.length
      && segments.every(([start, length], i) => start === sparse[i]![0] && length === sparse[i]![1])
    )
  }

  /** @throws StagedFileChanged when size or time are not the catalog's. */
  check(): void {
    const { size, mtimeNs } = fstatSync(this.#fd, { bigint: true })
    if (size === BigInt(this.#metadata.size ?? 0) && mtimeNs === this.#metadata.mtimeNs) return
    throw new StagedFileChanged('it was changed in staging after it was collected')
  }

  close(): void {
    closeSync(this.#fd)
  }

  #readFully(out: Buffer, position: number): void {
    let done = 0
    while (done < out.length) {
      const read = readSync(this.#fd, out, done, out.length - done, position + done)
      if (read === 0) throw new StagedFileChanged('it is shorter than its catalog says')
      done += read
    }
  }
}
