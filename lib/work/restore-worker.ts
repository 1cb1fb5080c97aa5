// The worker thread of a restore: ranged read | age | zstd | digest check | temporary name |
// metadata | final name.
//
// restore.ts sends batches of files, whose directories are there, and gets an outcome for each. No
// file gets its final name before its last byte was compared with the signed catalog's digest, or
// copied from a staging that was verified (invariant 9); a damaged one is named and the rest goes
// on. staged-copy.ts knows how to copy and to compare.

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
import { type Entry, dataBytes } from '../model/entry.ts'
import {
  type RawPath,
  baseOf,
  displayPath,
  parentOf,
  pathFacts,
  rawPathToBytes,
} from '../model/raw-path.ts'
import { keepAside } from './aside.ts'
import { OpenBundles } from './open-bundles.ts'
import { corruptName, partialName } from './restore-names.ts'
import { systemWords } from './restore-plan.ts'
import type { NumberedBundles } from './selection.ts'
import { hasContentOf, isCopyOf, readStaged } from './staged-copy.ts'

export interface RestoreSettings {
  readonly identities: readonly string[]
  readonly content:
    | { readonly kind: 'bundles'; readonly bundles: NumberedBundles }
    | { readonly kind: 'staged'; readonly tree: RawPath }
  /** Whether what is whole of a damaged file is kept beside its place. */
  readonly keepsCorrupt: boolean
}

/** One file. */
export interface RestoreItem {
  readonly index: number
  /** Where it goes; its directory exists. */
  readonly path: RawPath
  readonly entry: Entry
  /** Its path in the generation: where it lies in staging. */
  readonly from: RawPath
  /** The directory was made by this restore, so nothing can be there. */
  readonly isFresh: boolean
  readonly mayReplace: boolean
  /** What is there has its size and time: where it differs all the same, that is the answer. */
  readonly looksSame: boolean
  /** Where what is there is kept; undefined: it is not. */
  readonly aside: RawPath | undefined
}

export type FileOutcome =
  | { readonly kind: 'written'; readonly lost: readonly string[] }
  | { readonly kind: 'same'; readonly lost: readonly string[] }
  /** Something else is there, and may not be replaced. */
  | { readonly kind: 'kept' }
  /** It looked the same and is not; it may be replaced. */
  | { readonly kind: 'different' }
  | { readonly kind: 'failed'; readonly error: PlainError }

export interface RestoreReply {
  readonly outcomes: readonly { readonly index: number; readonly outcome: FileOutcome }[]
  readonly bytes: number
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

  #restore(item: RestoreItem): FileOutcome {
    const { path, entry, isFresh, mayReplace, looksSame, aside } = item
    const there = isFresh
      ? undefined
      : lstatSync(rawPathToBytes(path), { throwIfNoEntry: false, bigint: true })
    if (there !== undefined) {
      if (there.isFile() && this.#isSame(item)) {
        return { kind: 'same', lost: mayReplace ? applyMetadata(path, entry) : [] }
      }
      if (there.isDirectory() || !mayReplace) return { kind: 'kept' }
      if (looksSame) return { kind: 'different' }
    }
    const name = partialName({ process: process.pid, worker: threadId })
    const partial = `${parentOf(path)}/${name}`
    const fd = openExclusive(partial)
    let owner: { readonly uid: number; readonly gid: number }
    try {
      try {
        this.#writeContent(fd, item)
        owner = fstatSync(fd)
      } finally {
        closeSync(fd)
      }
      const lost = applyMetadata(partial, entry, owner)
      if (there !== undefined && aside !== undefined) keepAside(path, aside)
      renameSync(rawPathToBytes(partial), rawPathToBytes(path))
      return { kind: 'written', lost }
    } catch (error) {
      if (error instanceof PartlyDamaged && this.#settings.keepsCorrupt) {
        throw keepCorrupt(error, { partial, path })
      }
      unlinkSync(rawPathToBytes(partial))
      throw error instanceof PartlyDamaged ? error.first : error
    }
  }

  /** Content, holes and time: content is read, not believed. */
  #isSame({ path, entry, from }: RestoreItem): boolean {
    const { content } = this.#settings
    if (content.kind === 'bundles') return hasContentOf(path, entry)
    return isCopyOf(path, { entry, staged: `${content.tree}/${from}` })
  }

  #writeContent(fd: number, { entry, from }: RestoreItem): void {
    const { content } = this.#settings
    const out = new DataWriter(fd, entry)
    if (content.kind === 'bundles') this.#writePieces(out, { entry, bundles: content.bundles })
    else readStaged(`${content.tree}/${from}`, { entry, visit: (part) => out.write(part) })
    out.end()
  }

  /** A damaged piece is left out, and the others are written all the same. */
  #writePieces(
    out: DataWriter,
    { entry, bundles }: { readonly entry: Entry; readonly bundles: NumberedBundles },
  ): void {
    const damaged: (readonly [offset: number, length: number])[] = []
    let first: BackupError | undefined
    let offset = 0
    for (const [id, bundle, tarOffset, length] of entry.pieces ?? []) {
      try {
        const { path, frames } = bundles[bundle]!
        const bytes = this.#bundles.reader(path).readTar(frames, { offset: tarOffset, length })
        if (digestBytes(bytes).toString('hex') !== id) {
          throw new BackupError('BUNDLE_DAMAGED', 'its content is not what the signed catalog says')
        }
        out.write(bytes)
      } catch (error) {
        if (!(error instanceof BackupError) || error.exitCode !== 13) throw error
        first ??= error
        damaged.push([offset, length])
        out.skip(length)
      }
      offset += length
    }
    if (first === undefined) return
    if (damaged.length === entry.pieces?.length) throw first
    out.end()
    throw new PartlyDamaged(first, damaged)
  }
}

/** Some pieces of a file are damaged, others are whole: those were written. */
class PartlyDamaged extends Error {
  readonly first: BackupError
  /** Runs of data bytes, that are zeros now. */
  readonly damaged: readonly (readonly [offset: number, length: number])[]

  constructor(first: BackupError, damaged: PartlyDamaged['damaged']) {
    super(first.message)
    this.first = first
    this.damaged = damaged
  }
}

/** Somebody who restores a damaged file more often than this has what there is. */
const MAX_CORRUPT = 100

/** What could be saved gets a name beside the final one. */
function keepCorrupt(
  { first, damaged }: PartlyDamaged,
  { partial, path }: { readonly partial: RawPath; readonly path: RawPath },
): BackupError {
  const bytes = damaged.reduce((sum, [, length]) => sum + length, 0)
  try {
    for (let attempt = 0; attempt < MAX_CORRUPT; attempt++) {
      const kept = corruptName(path, attempt)
      if (lstatSync(rawPathToBytes(kept), { throwIfNoEntry: false }) !== undefined) continue
      renameSync(rawPathToBytes(partial), rawPathToBytes(kept))
      const name = displayPath(baseOf(kept))
      const message = `${first.message}; the rest is in ${name}, with zeros for ${bytes} bytes`
      const facts = { corrupt: kept, damaged }
      return new BackupError(first.code, message, { facts })
    }
  } catch (error) {
    if (systemCode(error) === undefined) throw error
  }
  unlinkSync(rawPathToBytes(partial))
  return first
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

  /** Goes on so many data bytes later: what is not written is zeros. */
  skip(length: number): void {
    for (let left = length; left > 0;) {
      const segment = this.#segments[this.#segment]
      if (segment === undefined) return
      const step = Math.min(segment[1] - this.#within, left)
      left -= step
      this.#within += step
      this.#written += step
      if (this.#within === segment[1]) {
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

function asFailure({ path }: RestoreItem, cause: unknown): BackupError {
  if (cause instanceof BackupError) return cause
  const code = systemCode(cause)
  if (code === undefined) throw cause
  return new BackupError('RESTORE_FAILED', `it cannot be written: ${systemWords(code)}`, {
    facts: { ...pathFacts(path), system: code },
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
