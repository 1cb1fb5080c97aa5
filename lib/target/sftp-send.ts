// Bytes to and from an open file of an SFTP host, with several requests under way at once.
//
// sendFile, its proof countMatching, and readInto. Used by sftp.ts. Throws SftpFailure, and
// Node's errors for the local file.

import { Buffer } from 'node:buffer'
import type { FileHandle } from 'node:fs/promises'
import type { RemoteFile, SftpConnection } from './sftp-client.ts'

/** As much as the window of an SSH channel holds: more would only wait in memory. */
const IN_FLIGHT_BYTES = 2 * 1024 * 1024
/** Some hosts take no more. */
const MAX_IN_FLIGHT = 64

interface Transfer {
  readonly connection: SftpConnection
  readonly file: RemoteFile
}

interface LocalTransfer extends Transfer {
  readonly local: FileHandle
  readonly from: number
  /** Where to end. */
  readonly sizeBytes: number
}

/** How many blocks are under way. */
function depthOf({ blockBytes }: SftpConnection): number {
  return Math.min(MAX_IN_FLIGHT, Math.ceil(IN_FLIGHT_BYTES / blockBytes))
}

/**
 * Writes the bytes of `local` to the same place of the remote file. `onSent` is told up to where
 * the host has acknowledged all of them, `pace` may hold back each block. False where `local` is
 * shorter than was said.
 */
export async function sendFile(
  options: LocalTransfer & {
    readonly pace: (bytes: number) => Promise<void>
    readonly onSent: (end: number) => void
  },
): Promise<boolean> {
  const { connection, file, local, from, sizeBytes, pace, onSent } = options
  const depth = depthOf(connection)
  const buffers = Array.from({ length: depth }, () => Buffer.allocUnsafe(connection.blockBytes))
  const underWay: { readonly written: Promise<void>; readonly end: number }[] = []
  const awaitFirst = async (): Promise<void> => {
    const first = underWay.shift()
    await first?.written
    if (first !== undefined) onSent(first.end)
  }
  for (let offset = from, count = 0; offset < sizeBytes; count += 1) {
    if (underWay.length === depth) await awaitFirst()
    const bytes = await readLocal(local, {
      into: buffers[count % depth]!.subarray(0, sizeBytes - offset),
      offset,
    })
    if (bytes.length === 0) return false
    await pace(bytes.length)
    const written = connection.write(file, bytes, offset)
    // When one fails, nobody awaits the others.
    written.catch(() => {})
    offset += bytes.length
    underWay.push({ written, end: offset })
  }
  while (underWay.length > 0) await awaitFirst()
  return true
}

/**
 * Reads the remote file and compares it with `local`: up to where they are the same, to the block.
 * At most `sizeBytes`. `onSame` is told on the way.
 */
export async function countMatching(
  options: LocalTransfer & { readonly onSame?: (end: number) => void },
): Promise<number> {
  const { connection, file, local, from, sizeBytes, onSame } = options
  const ours = Buffer.allocUnsafe(connection.blockBytes)
  let same = from
  await readBlocks({ connection, file, from, sizeBytes }, async (theirs) => {
    const bytes = await readLocal(local, { into: ours.subarray(0, theirs.length), offset: same })
    if (!bytes.equals(theirs)) return false
    same += theirs.length
    onSame?.(same)
    return true
  })
  return same
}

/** Bytes of the remote file: fewer where it ends. */
export async function readInto(
  { connection, file }: Transfer,
  { offset, length }: { readonly offset: number; readonly length: number },
): Promise<Buffer> {
  const out = Buffer.allocUnsafe(length)
  let done = 0
  await readBlocks(
    { connection, file, from: offset, sizeBytes: offset + length },
    async (bytes) => {
      bytes.copy(out, done)
      done += bytes.length
      return true
    },
  )
  return out.subarray(0, done)
}

/**
 * Reads ahead, and hands on the blocks in order until the file ends or `onBlock` says that it has
 * enough. A block is valid during the call only.
 */
async function readBlocks(
  options: Transfer & { readonly from: number; readonly sizeBytes: number },
  onBlock: (bytes: Buffer) => Promise<boolean>,
): Promise<void> {
  const { connection, file, from, sizeBytes } = options
  const { blockBytes } = connection
  const depth = Math.min(depthOf(connection), Math.ceil((sizeBytes - from) / blockBytes))
  const buffers = Array.from({ length: depth }, () => Buffer.allocUnsafe(blockBytes))
  const underWay: { readonly count: Promise<number>; readonly into: Buffer }[] = []
  let asked = from
  let number = 0
  const askOne = (): void => {
    if (asked >= sizeBytes) return
    const into = buffers[number % depth]!.subarray(0, sizeBytes - asked)
    const count = connection.read(file, into, asked)
    count.catch(() => {})
    underWay.push({ count, into })
    asked += into.length
    number += 1
  }
  for (let i = 0; i < depth; i += 1) askOne()
  for (let first = underWay.shift(); first !== undefined; first = underWay.shift()) {
    const count = await first.count
    const goesOn = count === 0 || (await onBlock(first.into.subarray(0, count)))
    if (!goesOn || count < first.into.length) break
    askOne()
  }
  // Nobody may write into the buffers any more, and the file is closed next.
  await Promise.allSettled(underWay.map(async (one) => await one.count))
}

async function readLocal(
  local: FileHandle,
  { into, offset }: { readonly into: Buffer; readonly offset: number },
): Promise<Buffer> {
  let done = 0
  while (done < into.length) {
    const { bytesRead } = await local.read(into, done, into.length - done, offset + done)
    if (bytesRead === 0) break
    done += bytesRead
  }
  return into.subarray(0, done)
}
