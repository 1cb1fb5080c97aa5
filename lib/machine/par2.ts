// par2: redundancy beside a file, so that the file can be mended when its medium damages it.
//
// createParity makes one volume for one file, repairByParity mends by it, judgeParity says whether
// that would do; lib/work/parity.ts and repair.ts call them. What par2 means by its exit codes is
// said here and nowhere else. readParity walks the packets of a volume itself, for par2 tells
// nothing of a volume that is damaged beside a whole file. Throws PROGRAM_ABSENT, PROGRAM_TIMEOUT,
// PROGRAM_FAILED, INTERRUPTED, and Node's system errors from readParity.

import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import { constants, readdirSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { BackupError } from '../errors.ts'
import { type RawPath, baseOf, parentOf, rawPathToBytes } from '../model/raw-path.ts'
import { type ProgramResult, runProgram } from './shell.ts'

/** How a file is cut, and how many blocks of redundancy it gets. */
export interface ParityShape {
  /** A multiple of 4, as par2 wants it. */
  readonly blockBytes: number
  readonly dataBlocks: number
  /** As many damaged blocks can be mended. */
  readonly recoveryBlocks: number
}

/** Whether a file can be mended. */
export type ParityVerdict =
  | { readonly kind: 'whole' }
  | {
      readonly kind: 'repairable' | 'too damaged'
      readonly dataBlocks: number
      readonly usableBlocks: number
      readonly recoveryBlocks: number
      /** How many more would be needed; 0 where it is repairable. */
      readonly missingBlocks: number
    }
  /** Nothing in the parity file can be used. */
  | { readonly kind: 'parity damaged' }

/** What a whole parity file says of the file it belongs to. */
export interface ParityFacts {
  readonly sizeBytes: number
  /** MD5 in hex: of what par2 read when it made the parity. */
  readonly md5: string
  readonly recoveryBlocks: number
}

/** A sector of today's drives: what is lost at once. */
const SECTOR_BYTES = 4096

/** Up to here, blocks are smaller than a sector, for there would be too few of them. */
const SMALL_FILE_BYTES = 256 * 1024
const SMALL_BLOCK_BYTES = 1024

/**
 * par2 needs time in proportion to the blocks of redundancy, and a spot of damage costs a block:
 * this many are quick enough, and enough for scattered damage.
 */
const MOST_BLOCKS = 1000

/** So much redundancy is made in one go; beyond it par2 reads the file again. */
const MEMORY_MIB = 512

/** A bundle is below 4 GiB, and the slowest machine does a few MiB a second. */
const TIME_LIMIT_MS = 6 * 3_600_000

/** The shape for a file: at least one bad sector can be mended, in the smallest file, too. */
export function parityShape({
  sizeBytes,
  percent,
}: {
  readonly sizeBytes: number
  readonly percent: number
}): ParityShape {
  const share = Math.ceil(sizeBytes / MOST_BLOCKS / SECTOR_BYTES)
  const blockBytes =
    sizeBytes <= SMALL_FILE_BYTES ? SMALL_BLOCK_BYTES : Math.max(1, share) * SECTOR_BYTES
  const dataBlocks = Math.max(1, Math.ceil(sizeBytes / blockBytes))
  const sector = Math.ceil(SECTOR_BYTES / blockBytes) + 1
  const recoveryBlocks = Math.max(sector, Math.ceil((dataBlocks * percent) / 100))
  return { blockBytes, dataBlocks, recoveryBlocks }
}

/** What a volume takes at most: every block with its header, and the tables several times. */
export function parityBytes({ blockBytes, dataBlocks, recoveryBlocks }: ParityShape): number {
  const copies = Math.floor(Math.log2(recoveryBlocks)) + 2
  return recoveryBlocks * (blockBytes + 68) + copies * (dataBlocks * 20 + 512)
}

/**
 * Makes the parity of `source` in the empty directory `scratch`, and gives the path of its one
 * volume: it needs no other file.
 * @throws BackupError PROGRAM_FAILED where the volume cannot be made
 */
export async function createParity({
  source,
  scratch,
  shape,
  signal,
}: {
  readonly source: RawPath
  readonly scratch: RawPath
  readonly shape: ParityShape
  readonly signal: AbortSignal
}): Promise<RawPath> {
  const index = `${scratch}/${baseOf(source)}.par2`
  const result = await run(
    [
      'create',
      '-q',
      '-q',
      `-s${shape.blockBytes}`,
      `-c${shape.recoveryBlocks}`,
      '-n1',
      `-m${MEMORY_MIB}`,
      `-B${parentOf(source)}`,
      '--',
      index,
      source,
    ],
    { changes: true, signal },
  )
  if (result.exitCode !== 0) throw failed('create', result)
  const volume = readdirSync(rawPathToBytes(scratch), 'latin1').find((name) =>
    name.startsWith(`${baseOf(source)}.vol`),
  )
  if (volume === undefined) throw failed('create', result)
  return `${scratch}/${volume}`
}

/** Whether the file beside `parity` (its name without `.par2`) is whole or can be mended. */
export async function judgeParity(of: {
  readonly parity: RawPath
  /** Files in the same directory that may hold blocks of it. */
  readonly besides: readonly RawPath[]
  readonly signal: AbortSignal
}): Promise<ParityVerdict> {
  const { parity, besides, signal } = of
  const result = await run(['verify', `-m${MEMORY_MIB}`, '--', parity, ...besides], {
    changes: false,
    signal,
  })
  return verdictOf('verify', result)
}

/**
 * Mends the file beside `parity`, in place: `whole` when par2 has done it and read it again. par2
 * leaves the damaged one beside it, under another name.
 */
export async function repairByParity(of: {
  readonly parity: RawPath
  readonly besides: readonly RawPath[]
  readonly signal: AbortSignal
}): Promise<ParityVerdict> {
  const { parity, besides, signal } = of
  const result = await run(['repair', `-m${MEMORY_MIB}`, '--', parity, ...besides], {
    changes: true,
    signal,
  })
  return verdictOf('repair', result)
}

async function run(
  args: readonly string[],
  { changes, signal }: { readonly changes: boolean; readonly signal: AbortSignal },
): Promise<ProgramResult> {
  return await runProgram({
    program: 'par2',
    args: args.map(rawPathToBytes),
    changes,
    timeoutMs: TIME_LIMIT_MS,
    signal,
  })
}

/** par2's exit codes that are an answer; the others are failures. */
const WHOLE = 0
const REPAIRABLE = 1
const TOO_DAMAGED = 2
const CRITICAL_DATA_MISSING = 4

function verdictOf(doing: 'verify' | 'repair', result: ProgramResult): ParityVerdict {
  const { exitCode, stdout } = result
  if (exitCode === WHOLE) return { kind: 'whole' }
  if (exitCode === CRITICAL_DATA_MISSING) return { kind: 'parity damaged' }
  const isRepairable = exitCode === REPAIRABLE && doing === 'verify'
  if (!isRepairable && exitCode !== TOO_DAMAGED) throw failed(doing, result)
  const numberIn = (pattern: RegExp): number => Number(pattern.exec(stdout)?.[1] ?? 0)
  return {
    kind: isRepairable ? 'repairable' : 'too damaged',
    dataBlocks: numberIn(/ out of (\d+) data blocks available/),
    usableBlocks: numberIn(/You have (\d+) out of \d+ data blocks/),
    recoveryBlocks: numberIn(/You have (\d+) recovery blocks? available/),
    missingBlocks: numberIn(/You need (\d+) more recovery blocks?/),
  }
}

/** The other exit codes, in words. */
const FAILURES: Readonly<Record<number, readonly [message: string, hint: string]>> = {
  3: ['par2 does not understand how it was called', 'install par2cmdline 0.8 or newer'],
  5: ['par2 mended the file, and what came out is not whole', 'check the memory of this machine'],
  6: ['par2 could not read or write', 'check the free space of staging, and the drive'],
  7: ['par2 failed by a fault of its own', 'install another version of par2'],
  8: ['par2 ran out of memory', 'close other programs, and start it again'],
}

function failed(doing: string, { exitCode, stderr }: ProgramResult): BackupError {
  const [message, hint] = FAILURES[exitCode] ?? [
    `par2 ${doing} ended with exit code ${exitCode}`,
    'see what it said with --json',
  ]
  const said = stderr.trim().split('\n').at(-1) ?? ''
  return new BackupError('PROGRAM_FAILED', message, {
    hint: `${hint}; no bundle was changed`,
    facts: { program: 'par2', doing, exitCode, said },
  })
}

/** The head of every packet: magic, length, MD5 of the rest, id of the set, type. */
const HEAD_BYTES = 64
const MAGIC = 'PAR2\0PKT'
const AT = { length: 8, md5: 16, setId: 32, type: 48 } as const

/** A block of the largest bundle, and more than any table. */
const MAX_PACKET_BYTES = 32 * 1024 * 1024

/**
 * What a volume says, once every byte of it was compared with its packets' own checksums.
 * @returns undefined where any of it is damaged, or its end is missing
 */
export async function readParity(
  path: RawPath,
  { signal }: { readonly signal: AbortSignal },
): Promise<ParityFacts | undefined> {
  const handle = await open(
    rawPathToBytes(path),
    constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK,
  )
  try {
    return await readPackets(handle, signal)
  } finally {
    await handle.close()
  }
}

async function readPackets(
  handle: FileHandle,
  signal: AbortSignal,
): Promise<ParityFacts | undefined> {
  const { size } = await handle.stat()
  const head = Buffer.alloc(HEAD_BYTES)
  const description = { sizeBytes: -1, md5: '' }
  let recoveryBlocks = 0
  let last = ''
  for (let offset = 0; offset < size;) {
    if (signal.aborted) throw new BackupError('INTERRUPTED', 'interrupted')
    if (!(await fill(handle, head, offset))) return undefined
    const length = Number(head.readBigUInt64LE(AT.length))
    const isPacket = head.toString('latin1', 0, AT.length) === MAGIC
    if (!isPacket || length < HEAD_BYTES || length > MAX_PACKET_BYTES) return undefined
    const body = Buffer.alloc(length - HEAD_BYTES)
    if (!(await fill(handle, body, offset + HEAD_BYTES))) return undefined
    const md5 = createHash('md5').update(head.subarray(AT.setId)).update(body).digest()
    if (!md5.equals(head.subarray(AT.md5, AT.setId))) return undefined
    last = head.toString('latin1', AT.type).replace(/\0+$/, '')
    if (last === 'PAR 2.0\0RecvSlic') recoveryBlocks += 1
    if (last === 'PAR 2.0\0FileDesc') {
      description.md5 = body.toString('hex', 16, 32)
      description.sizeBytes = Number(body.readBigUInt64LE(48))
    }
    offset += length
  }
  // par2 writes this one at the end of a volume: without it, the rest was cut off.
  if (last !== 'PAR 2.0\0Creator' || description.sizeBytes < 0) return undefined
  return { ...description, recoveryBlocks }
}

/** Fills the buffer; false where the file ends before. */
async function fill(handle: FileHandle, buffer: Buffer, offset: number): Promise<boolean> {
  for (let done = 0; done < buffer.length;) {
    const { bytesRead } = await handle.read(buffer, done, buffer.length - done, offset + done)
    if (bytesRead === 0) return false
    done += bytesRead
  }
  return true
}
