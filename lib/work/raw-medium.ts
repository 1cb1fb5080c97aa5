// A medium whose filesystem is gone, or an image of one: its bytes, and where age files begin on
// it.
//
// recover-medium.ts asks for the beginnings, raw-extents.ts for the rest of each file. Only reads.
// What cannot be read counts as zeros and is named. Throws NOTHING_FOUND for what cannot be opened.

import { Buffer } from 'node:buffer'
import { closeSync, constants, openSync, readSync } from 'node:fs'
import { setImmediate } from 'node:timers/promises'
import { BackupError, systemCode } from '../errors.ts'
import { endOffset } from '../machine/posix.ts'
import { type RawPath, displayPath, rawPathToBytes } from '../model/raw-path.ts'
import type { Extent } from './bundle-address.ts'

/** The smallest run that is read by itself where reading fails: a page. */
const PAGE_BYTES = 4096
const WINDOW_BYTES = 8 * 1024 * 1024
/** As every file of ours begins; text about the format goes on differently. */
const BEGINNING = Buffer.from('age-encryption.org/v1\n-> X25519 ')

/** A medium with more is none of ours, and they are held in memory. */
const MAX_BEGINNINGS = 5_000_000

export class Medium {
  readonly path: RawPath
  readonly sizeBytes: number
  /** What could not be read, as far as anybody asked for it. */
  readonly unreadable: Extent[] = []
  readonly #fd: number

  /** @throws BackupError NOTHING_FOUND */
  constructor(path: RawPath) {
    this.path = path
    let fd: number | undefined
    try {
      fd = openSync(rawPathToBytes(path), constants.O_RDONLY | constants.O_NONBLOCK)
      this.sizeBytes = endOffset(fd)
    } catch (cause) {
      if (fd !== undefined) closeSync(fd)
      const code = systemCode(cause)
      if (code === undefined) throw cause
      throw new BackupError('NOTHING_FOUND', `${displayPath(path)} cannot be read (${code})`, {
        hint: 'a drive is read by root alone: sudo, or an image of it that is yours',
        cause,
      })
    }
    this.#fd = fd
  }

  /** As much as there is before the end; what cannot be read is zeros. */
  read(out: Buffer, offset: number): Buffer {
    const steps = this.readSteps(out, offset)
    for (;;) {
      const { done, value } = steps.next()
      if (done === true) return value
    }
  }

  /** The same, with a step for each failure: a drive may take its time for every one of them. */
  *readSteps(out: Buffer, offset: number): Generator<undefined, Buffer> {
    const bytes = out.subarray(0, Math.max(0, Math.min(out.length, this.sizeBytes - offset)))
    // The first is the last of the list.
    const parts: (readonly [start: number, end: number])[] = [[0, bytes.length]]
    for (let part = parts.pop(); part !== undefined; part = parts.pop()) {
      const [start, end] = part
      const failed = start + this.#readPart(bytes.subarray(start, end), offset + start)
      if (failed === end) continue
      yield undefined
      // Pages of the medium: what is read may begin anywhere in one.
      const page = PAGE_BYTES * (Math.floor((offset + failed) / PAGE_BYTES) + 1) - offset
      if (page >= end) {
        bytes.fill(0, failed, end)
        this.#note({ offset: offset + failed, length: end - failed })
        continue
      }
      const half = page + PAGE_BYTES * Math.floor((end - page) / PAGE_BYTES / 2)
      if (half < end) parts.push([half, end])
      if (page < half) parts.push([page, half])
      parts.push([failed, page])
    }
    return bytes
  }

  /** @returns how much could be read; zeros where a file has become shorter */
  #readPart(out: Buffer, offset: number): number {
    let done = 0
    try {
      while (done < out.length) {
        const count = readSync(this.#fd, out, done, out.length - done, offset + done)
        if (count === 0) out.fill(0, done)
        done = count === 0 ? out.length : done + count
      }
    } catch (error) {
      if (systemCode(error) === undefined) throw error
    }
    return done
  }

  /** Neighbours as one; windows overlap. */
  #note({ offset, length }: Extent): void {
    const last = this.unreadable.at(-1)
    if (last === undefined || offset < last.offset || offset > last.offset + last.length) {
      this.unreadable.push({ offset, length })
      return
    }
    const end = Math.max(last.offset + last.length, offset + length)
    this.unreadable[this.unreadable.length - 1] = { ...last, length: end - last.offset }
  }

  close(): void {
    closeSync(this.#fd)
  }
}

/**
 * Where age files for a recipient's key begin, in order; reads everything.
 * @throws BackupError INTERRUPTED, NOTHING_FOUND where there are too many
 */
export async function findBeginnings(
  medium: Medium,
  { signal, onWindow }: { readonly signal: AbortSignal; readonly onWindow: (done: number) => void },
): Promise<readonly number[]> {
  const found: number[] = []
  const window = Buffer.allocUnsafeSlow(WINDOW_BYTES)
  const overlap = BEGINNING.length - 1
  for (let offset = 0; offset < medium.sizeBytes; offset += WINDOW_BYTES - overlap) {
    const steps = medium.readSteps(window, offset)
    let step: IteratorResult<undefined, Buffer>
    do {
      await setImmediate()
      if (signal.aborted) {
        throw new BackupError('INTERRUPTED', 'interrupted', { hint: 'nothing was changed there' })
      }
      step = steps.next()
    } while (step.done !== true)
    const bytes = step.value
    for (let at = bytes.indexOf(BEGINNING); at !== -1; at = bytes.indexOf(BEGINNING, at + 1)) {
      found.push(offset + at)
    }
    if (found.length > MAX_BEGINNINGS) {
      throw new BackupError('NOTHING_FOUND', `more than ${MAX_BEGINNINGS} bundles begin there`, {
        hint: 'give a part of it, such as an image of one partition; nothing was changed',
      })
    }
    onWindow(Math.min(medium.sizeBytes, offset + WINDOW_BYTES))
  }
  return found
}
