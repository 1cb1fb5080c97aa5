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

export class Medium {
  readonly path: RawPath
  readonly sizeBytes: number
  /** What could not be read, as far as anybody asked for it. */
  readonly unreadable: Extent[] = []
  readonly #fd: number

  /** @throws BackupError NOTHING_FOUND */
  constructor(path: RawPath) {
    this.path = path
    try {
      this.#fd = openSync(rawPathToBytes(path), constants.O_RDONLY | constants.O_NONBLOCK)
    } catch (cause) {
      const code = systemCode(cause)
      if (code === undefined) throw cause
      throw new BackupError('NOTHING_FOUND', `${displayPath(path)} cannot be read (${code})`, {
        hint: 'a drive is read by root alone: sudo, or an image of it that is yours',
        cause,
      })
    }
    this.sizeBytes = endOffset(this.#fd)
  }

  /** As much as there is before the end; what cannot be read is zeros. */
  read(out: Buffer, offset: number): Buffer {
    const bytes = out.subarray(0, Math.max(0, Math.min(out.length, this.sizeBytes - offset)))
    this.#readPart(bytes, offset)
    return bytes
  }

  #readPart(out: Buffer, offset: number): void {
    try {
      for (let done = 0; done < out.length;) {
        const count = readSync(this.#fd, out, done, out.length - done, offset + done)
        if (count === 0) break
        done += count
      }
    } catch (error) {
      if (systemCode(error) === undefined) throw error
      if (out.length > PAGE_BYTES) {
        const half = PAGE_BYTES * Math.ceil(out.length / PAGE_BYTES / 2)
        this.#readPart(out.subarray(0, half), offset)
        this.#readPart(out.subarray(half), offset + half)
        return
      }
      out.fill(0)
      const last = this.unreadable.at(-1)
      if (last !== undefined && last.offset + last.length === offset) {
        this.unreadable[this.unreadable.length - 1] = {
          offset: last.offset,
          length: last.length + out.length,
        }
      } else this.unreadable.push({ offset, length: out.length })
    }
  }

  close(): void {
    closeSync(this.#fd)
  }
}

/**
 * Where age files for a recipient's key begin, in order; reads everything.
 * @throws BackupError INTERRUPTED
 */
export async function findBeginnings(
  medium: Medium,
  { signal, onWindow }: { readonly signal: AbortSignal; readonly onWindow: (done: number) => void },
): Promise<readonly number[]> {
  const found: number[] = []
  const window = Buffer.allocUnsafeSlow(WINDOW_BYTES)
  const overlap = BEGINNING.length - 1
  for (let offset = 0; offset < medium.sizeBytes; offset += WINDOW_BYTES - overlap) {
    await setImmediate()
    if (signal.aborted) {
      throw new BackupError('INTERRUPTED', 'interrupted', { hint: 'nothing was changed there' })
    }
    const bytes = medium.read(window, offset)
    for (let at = bytes.indexOf(BEGINNING); at !== -1; at = bytes.indexOf(BEGINNING, at + 1)) {
      found.push(offset + at)
    }
    onWindow(Math.min(medium.sizeBytes, offset + WINDOW_BYTES))
  }
  return found
}
