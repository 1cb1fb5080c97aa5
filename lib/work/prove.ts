// Proves that a written file is on the medium: fsync, then every byte read back past the page cache
// (invariant 2).
//
// bundle-writer.ts writes and sums; this compares. It waits for the medium, so exports do it in a
// thread of its own (prove-worker.ts) while the others compress. A failed fsync is never tried
// again: the pages may be gone. Throws READ_BACK, TARGET_FULL, TARGET_FAILED; the partial file is
// removed then, if it can be.

import { closeSync, fsyncSync, unlinkSync } from 'node:fs'
import { crc32 } from 'node:zlib'
import { BackupError } from '../errors.ts'
import { readBack } from '../machine/durable-file.ts'
import { type RawPath, displayPath, pathFacts, rawPathToBytes } from '../model/raw-path.ts'
import { targetError } from '../target/target-error.ts'

/** What one sum covers. */
export const BLOCK_BYTES = 1024 * 1024

/** A file that is written but for the fsync. */
export interface WrittenFile {
  readonly path: RawPath
  /** Open; prove() closes it. Threads share file descriptors. */
  readonly fd: number
  readonly lengthBytes: number
  /** CRC-32 of every BLOCK_BYTES: a digest that catches what media do, taken while writing. */
  readonly sums: readonly number[]
}

/** How the read-back got past the page cache; or that there was none. */
export type ReadBack = 'direct' | 'advised' | 'none'

/**
 * Proves a file on a medium. One in the spool only has to survive a crash: what is sent is compared
 * with its SHA-256 then, and proven where it arrives.
 */
export function prove(file: WrittenFile, { isSpooled = false } = {}): ReadBack {
  try {
    try {
      fsyncSync(file.fd)
    } finally {
      closeSync(file.fd)
    }
    return isSpooled ? 'none' : compareWithMedium(file)
  } catch (error) {
    remove(file.path)
    throw targetError({ error, path: file.path })
  }
}

function compareWithMedium({ path, lengthBytes, sums }: WrittenFile): 'direct' | 'advised' {
  const found = new BlockSums()
  const how = readBack({ path, onBlock: (bytes) => found.update(bytes) })
  found.finish()
  const wrong = sums.findIndex((sum, i) => sum !== found.sums[i])
  if (found.lengthBytes === lengthBytes && wrong === -1) return how
  throw new BackupError(
    'READ_BACK',
    `the medium does not hold what was written to ${displayPath(path)}`,
    {
      hint: 'the export was not made, earlier exports are unharmed; check the drive and its cable',
      facts: { ...pathFacts(path), offset: Math.max(0, wrong) * BLOCK_BYTES },
    },
  )
}

function remove(path: RawPath): void {
  try {
    unlinkSync(rawPathToBytes(path))
  } catch {
    // The failure that led here is the one to report; a partial name is swept by the next run.
  }
}

/** CRC-32 of every BLOCK_BYTES of a stream that arrives in pieces of any size. */
class BlockSums {
  readonly sums: number[] = []
  lengthBytes = 0
  #sum = 0

  update(bytes: Uint8Array): void {
    let done = 0
    while (done < bytes.length) {
      const room = BLOCK_BYTES - (this.lengthBytes % BLOCK_BYTES)
      const part = bytes.subarray(done, done + room)
      this.#sum = crc32(part, this.#sum)
      this.lengthBytes += part.length
      done += part.length
      if (this.lengthBytes % BLOCK_BYTES === 0) this.#endBlock()
    }
  }

  finish(): void {
    if (this.lengthBytes % BLOCK_BYTES !== 0) this.#endBlock()
  }

  #endBlock(): void {
    this.sums.push(this.#sum)
    this.#sum = 0
  }
}
