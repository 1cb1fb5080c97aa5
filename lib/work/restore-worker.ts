// The worker thread of a restore: ranged read | age | zstd | digest check | temporary name |
// metadata | final name.
//
// restore.ts sends batches of files, whose directories are there, and gets an outcome for each. No
// file gets its final name before its last byte was compared with the signed catalog's digest
// (invariant 9); a damaged one is named and the rest goes on.

import { Buffer } from 'node:buffer'
import {
  closeSync,
  constants,
  ftruncateSync,
  fstatSync,
  lstatSync,
  openSync,
  renameSync,
  unlinkSync,
  writeSync,
} from 'node:fs'
import { parentPort, threadId, workerData } from 'node:worker_threads'
import { BackupError, type PlainError, packError, systemCode } from '../errors.ts'
import { digestBytes } from '../format/chunker.ts'
import { applyMetadata } from '../machine/metadata.ts'
import { type Entry, type FrameRange, dataBytes } from '../model/entry.ts'
import { type RawPath, displayPath, parentOf, rawPathToBytes } from '../model/raw-path.ts'
import type { BundleAddress } from './bundle-address.ts'
import { OpenBundles } from './open-bundles.ts'
import { StagedFile, StagedFileChanged } from './staged-file.ts'

export interface RestoreSettings {
  readonly identities: readonly string[]
  /** What the pieces of entries name by number. */
  readonly bundles: readonly {
    readonly path: BundleAddress
    readonly frames: readonly FrameRange[]
  }[]
  readonly overwrite: boolean
}

/** One file. */
export interface RestoreItem {
  readonly index: number
  /** Where it goes; its directory exists. */
  readonly path: RawPath
  readonly entry: Entry
  /** The directory was made by this restore, so nothing can be there. */
  readonly isFresh: boolean
}

export type FileOutcome =
  | { readonly kind: 'written'; readonly lost: readonly string[] }
  | { readonly kind: 'same'; readonly lost: readonly string[] }
  /** Something else is there, and may not be overwritten. */
  | { readonly kind: 'kept' }
  | { readonly kind: 'failed'; readonly error: PlainError }

export interface RestoreReply {
  readonly outcomes: readonly { readonly index: number; readonly outcome: FileOutcome }[]
  readonly bytes: number
}

const PARTIAL_PREFIX = '.backup-restore-'

/** The temporary name in a directory; a later restore finds and removes what a killed one left. */
export function partialName(worker: number): string {
  return `${PARTIAL_PREFIX}${worker}.partial`
}

export function isPartialName(name: RawPath): boolean {
  return /^\.backup-restore-\d+\.partial$/.test(name)
}

class Restorer {
  readonly #settings: RestoreSettings
  readonly #bundles: OpenBundles

  constructor(settings: RestoreSettings) {
    this.#settings = settings
    this.#bundles = new OpenBundles(settings.identities)
  }

  restoreBatch(items: readonly RestoreItem[]): RestoreReply {
    let bytes = 0
    const outcomes = items.map((item) => {
      const outcome = this.#attempt(item)
      if (outcome.kind === 'written') bytes += dataBytes(item.entry)
      return { index: item.index, outcome }
    })
    return { outcomes, bytes }
  }

  #attempt(item: RestoreItem): FileOutcome {
    try {
      return this.#restore(item)
    } catch (error) {
      return { kind: 'failed', error: packError(asFailure(item, error)) }
    }
  }

  #restore({ path, entry, isFresh }: RestoreItem): FileOutcome {
    const there = isFresh
      ? undefined
      : lstatSync(rawPathToBytes(path), { throwIfNoEntry: false, bigint: true })
    if (there !== undefined) {
      if (there.isFile() && isSameFile(path, entry)) {
        return { kind: 'same', lost: this.#settings.overwrite ? applyMetadata(path, entry) : [] }
      }
      if (there.isDirectory() || !this.#settings.overwrite) return { kind: 'kept' }
    }
    const partial = `${parentOf(path)}/${partialName(threadId)}`
    const fd = openExclusive(partial)
    let owner: { readonly uid: number; readonly gid: number }
    try {
      try {
        this.#writeContent(fd, entry)
        owner = fstatSync(fd)
      } finally {
        closeSync(fd)
      }
      const lost = applyMetadata(partial, entry, owner)
      renameSync(rawPathToBytes(partial), rawPathToBytes(path))
      return { kind: 'written', lost }
    } catch (error) {
      unlinkSync(rawPathToBytes(partial))
      throw error
    }
  }

  #writeContent(fd: number, entry: Entry): void {
    const out = new DataWriter(fd, entry)
    for (const [id, bundle, offset, length] of entry.pieces ?? []) {
      const { path, frames } = this.#settings.bundles[bundle]!
      const bytes = this.#bundles.reader(path).readTar(frames, { offset, length })
      if (digestBytes(bytes).toString('hex') !== id) {
        throw new BackupError('BUNDLE_DAMAGED', 'its content is not what the signed catalog says')
      }
      out.write(bytes)
    }
    out.end()
  }
}

/** Puts data bytes where they belong: one after another, or into the segments of a sparse file. */
class DataWriter {
  readonly #fd: number
  readonly #sizeBytes: number
  readonly #dataBytes: number
  readonly #segments: readonly (readonly [number, number])[]
  #segment = 0
  #within = 0
  #written = 0

  constructor(fd: number, entry: Entry) {
    this.#fd = fd
    this.#sizeBytes = entry.size ?? 0
    this.#dataBytes = dataBytes(entry)
    this.#segments = entry.sparse ?? [[0, this.#dataBytes]]
  }

  write(bytes: Buffer): void {
    for (let done = 0; done < bytes.length;) {
      const segment = this.#segments[this.#segment]
      if (segment === undefined)
        throw new BackupError('CATALOG_DAMAGED', 'it has more content than its size')
      const [start, length] = segment
      const room = Math.min(length - this.#within, bytes.length - done)
      writeFully(this.#fd, bytes.subarray(done, done + room), start + this.#within)
      done += room
      this.#within += room
      this.#written += room
      if (this.#within === length) {
        this.#segment += 1
        this.#within = 0
      }
    }
  }

  end(): void {
    if (this.#written !== this.#dataBytes) {
      throw new BackupError('CATALOG_DAMAGED', 'its pieces do not add up to its size')
    }
    if (fstatSync(this.#fd).size !== this.#sizeBytes) ftruncateSync(this.#fd, this.#sizeBytes)
  }
}

function writeFully(fd: number, bytes: Buffer, position: number): void {
  for (let done = 0; done < bytes.length;) {
    done += writeSync(fd, bytes, done, bytes.length - done, position + done)
  }
}

function openExclusive(path: RawPath): number {
  const { O_CREAT, O_EXCL, O_NOFOLLOW, O_WRONLY } = constants
  const open = () => openSync(rawPathToBytes(path), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600)
  try {
    return open()
  } catch (error) {
    if (systemCode(error) !== 'EEXIST') throw error
    // What a killed restore left here: the name is ours alone.
    unlinkSync(rawPathToBytes(path))
    return open()
  }
}

/**
 * Whether the file there has the very content, holes and time of the entry: content is read, not
 * believed.
 */
function isSameFile(path: RawPath, entry: Entry): boolean {
  let file: StagedFile
  try {
    file = new StagedFile({ path, metadata: entry })
  } catch (error) {
    if (error instanceof StagedFileChanged) return false
    throw error
  }
  try {
    if (!file.hasHolesOf(entry)) return false
    let offset = 0
    for (const [id, , , length] of entry.pieces ?? []) {
      const bytes = Buffer.allocUnsafe(length)
      file.read(bytes, offset)
      if (digestBytes(bytes).toString('hex') !== id) return false
      offset += length
    }
    return true
  } catch (error) {
    if (error instanceof StagedFileChanged) return false
    throw error
  } finally {
    file.close()
  }
}

function asFailure({ path }: RestoreItem, cause: unknown): BackupError {
  if (cause instanceof BackupError) return cause
  const code = systemCode(cause)
  if (code === undefined) throw cause
  return new BackupError('RESTORE_FAILED', `it cannot be written (${code})`, {
    facts: { path: displayPath(path), system: code },
    cause,
  })
}

// Last, for classes are not hoisted. Imported for its types alone, this file starts nothing.
if (parentPort !== null) {
  const port = parentPort
  const restorer = new Restorer(workerData as RestoreSettings)
  port.on('message', (items: readonly RestoreItem[]) =>
    port.postMessage(restorer.restoreBatch(items)),
  )
}
