// Whether a drive holds as much as it says: fake ones report more than they have, and drop what is
// written beyond, or write it over what is there.
//
// doctor-target.ts calls it. Nearly all free space is reserved by files of our own, blocks that no
// other place has are written all over it, and read back from the medium when all are written. Only
// new files are written, in one directory, which the next probe sweeps if this one is killed; they
// lose their names once they are open. Throws INTERRUPTED; everything else is a verdict.

import { Buffer } from 'node:buffer'
import { createCipheriv, createHash, randomBytes } from 'node:crypto'
import { closeSync, constants, mkdirSync, openSync, readdirSync, rmSync, statfsSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { BackupError, systemCode } from '../errors.ts'
import { isRunning } from '../machine/processes.ts'
import { dropPageCache, ioctl } from '../machine/posix.ts'
import { runProgram } from '../machine/shell.ts'
import { formatSize } from '../model/amount.ts'
import { rawPathFromText, rawPathToBytes } from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'

export interface CapacityOptions {
  /** A directory on the drive, absolute. */
  readonly directory: string
  readonly freeBytes: number
  /** Of the filesystem, as it reports it. */
  readonly totalBytes: number
  /** The filesystem's device, whose page cache is dropped as well: drivers in user space use it. */
  readonly device?: string | undefined
  readonly report: Report
  readonly signal: AbortSignal
  /** Reserves no more than this. */
  readonly maxBytes?: number
}

export interface Capacity {
  /** `unknown`: the filesystem does not set space aside, so that nothing can be said. */
  readonly verdict: 'good' | 'fake' | 'failed' | 'not enough room' | 'unknown'
  /** Of a fake: how much it really holds, as far as the probe can tell. */
  readonly goodBytes?: number
  /** Lower-case start, no final period. */
  readonly message: string
}

/** Unique content is written in blocks of this size: larger than any erase block matters. */
const BLOCK_BYTES = 2 ** 20
/** So many blocks evenly, and as many more at distances that are powers of two. */
const EVEN_BLOCKS = 32
/** Stays free for whoever writes meanwhile. */
const LEFT_FREE = 0.05
const LEFT_FREE_BYTES = 64 * 2 ** 20
/** With less there is nothing to tell apart. */
const MIN_RESERVED_BYTES = 64 * 2 ** 20
/**
 * When the filesystem keeps more for itself than it says, so many times a bit less is asked for.
 */
const RESERVE_TRIES = 4
/** Below what FAT allows a file. */
const MAX_PART_BYTES = 2 ** 31
/** Some filesystems fill what they reserve with zeros: then the probe goes only as far as this. */
const RESERVE_LIMIT_MS = 10 * 60_000
/** Allocated, but for a little that rounding makes. */
const ALLOCATED = 0.9

/** statfs(2): filesystems that limit files to 4 GiB, or fill gaps with zeros when written to. */
const FAT_MAGICS: ReadonlySet<number> = new Set([0x4d44, 0x2011bab0])

/** FS_IOC_FIEMAP of linux/fiemap.h: the header, then one structure an extent. */
const FIEMAP = 0xc020660b
const FIEMAP_HEAD_BYTES = 32
const FIEMAP_EXTENT_BYTES = 56
const FIEMAP_EXTENTS = 512
const FIEMAP_LAST = 1
/** The place is unknown, not decided yet, or not one of its own. */
const FIEMAP_NO_PLACE = 0x2 | 0x4 | 0x8 | 0x200

const DIRECTORY_NAME = /^\.backup-capacity-(\d+)$/

/**
 * Runs `action` in a new directory on a target, which is removed however it ends, after sweeping
 * what killed runs left.
 * @throws system errors when not even a directory can be made
 */
export async function withProbeDirectory<Value>(
  parent: string,
  action: (directory: string) => Promise<Value>,
): Promise<Value> {
  sweepProbes(parent)
  const directory = `${parent}/.backup-capacity-${process.pid}`
  mkdirSync(rawPathToBytes(rawPathFromText(directory)), { mode: 0o700 })
  try {
    return await action(directory)
  } finally {
    removeTree(directory)
  }
}

/** Removes what killed probes left; one that still runs keeps its own. */
function sweepProbes(parent: string): void {
  for (const name of readdirSync(parent)) {
    const pid = DIRECTORY_NAME.exec(name)?.[1]
    if (pid === undefined || (Number(pid) !== process.pid && isRunning(Number(pid)))) continue
    removeTree(`${parent}/${name}`)
  }
}

function removeTree(directory: string): void {
  rmSync(rawPathToBytes(rawPathFromText(directory)), { recursive: true, force: true })
}

/** @throws BackupError INTERRUPTED */
export async function probeCapacity(options: CapacityOptions): Promise<Capacity> {
  const { freeBytes, maxBytes = Infinity } = options
  const room = freeBytes - Math.max(freeBytes * LEFT_FREE, LEFT_FREE_BYTES)
  const wanted = Math.floor(Math.min(room, maxBytes) / BLOCK_BYTES) * BLOCK_BYTES
  if (wanted < MIN_RESERVED_BYTES) {
    const message = `only ${formatSize(freeBytes)} are free: too little to look at`
    return { verdict: 'not enough room', message }
  }
  try {
    return await withProbeDirectory(options.directory, async (directory) => {
      const probe = new Probe(options, directory)
      try {
        return await probe.run(wanted)
      } finally {
        await probe.close()
      }
    })
  } catch (error) {
    if (error instanceof BackupError && error.code === 'INTERRUPTED') throw error
    return { verdict: 'failed', message: whyFailed(error) }
  }
}

function whyFailed(error: unknown): string {
  const code = systemCode(error)
  if (code === undefined && !(error instanceof BackupError)) throw error
  if (code === undefined) return String((error as BackupError).message)
  return `the drive failed while it was written and read (${code})`
}

/** One file of ours without a name: `write` goes through the page cache, `read` past it. */
interface Part {
  readonly write: FileHandle
  readonly read: FileHandle
  readonly sizeBytes: number
}

/** A run of a part, and where it lies on the device as far as one can know. */
interface Segment {
  readonly part: Part
  readonly offset: number
  readonly physical: number
  readonly lengthBytes: number
}

/** Where a block goes. */
interface Spot {
  readonly part: Part
  readonly offset: number
  readonly physical: number
}

type Allocation = 'done' | 'full' | 'refused'

/** Owns the open files. */
class Probe {
  readonly #options: CapacityOptions
  readonly #directory: string
  readonly #key = randomBytes(32)
  readonly #parts: Part[] = []

  constructor(options: CapacityOptions, directory: string) {
    this.#options = options
    this.#directory = directory
  }

  async run(wanted: number): Promise<Capacity> {
    this.#options.report({ kind: 'phase', name: 'reserving free space' })
    const segments = await this.#reserve(wanted)
    const reserved = this.#parts.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
    if (!(await this.#isAllocated(reserved))) {
      const message =
        'the filesystem does not set space aside: only a first full export and its verification '
        + 'show whether the drive holds what it says'
      return { verdict: 'unknown', message }
    }
    const spots = chooseSpots(segments)
    // Ascending, so that what wraps around is overwritten by what comes later.
    spots.sort((a, b) => a.physical - b.physical)
    for (const [index, spot] of spots.entries()) await this.#write(spot, { index, spots })
    this.#dropCaches()
    const found: Buffer[] = []
    for (const [index, spot] of spots.entries()) {
      found.push(await this.#digestAt(spot, { index, spots }))
    }
    const expected = spots.map((_, index) => digest(this.#block(index)))
    return judge({ spots, expected, found, reserved, totalBytes: this.#options.totalBytes })
  }

  async close(): Promise<void> {
    // Each is closed, whatever becomes of the others: a drive that failed fails here again.
    const handles = this.#parts.flatMap(({ write, read }) => [write, read])
    await Promise.allSettled(handles.map(async (handle) => await handle.close()))
  }

  /** One large file, where the filesystem can; else many, written at their beginnings only. */
  async #reserve(wanted: number): Promise<Segment[]> {
    const isFat = FAT_MAGICS.has(statfsSync(this.#directory).type)
    const sizeBytes = isFat ? undefined : await this.#reserveOne(wanted)
    if (sizeBytes === undefined) return await this.#reserveMany(wanted)
    const part = this.#parts[0]!
    return mapFile(part) ?? [{ part, offset: 0, physical: 0, lengthBytes: sizeBytes }]
  }

  /** How much could be reserved; undefined where files cannot be made large that way. */
  async #reserveOne(wanted: number): Promise<number | undefined> {
    const path = `${this.#directory}/reserved`
    for (let tries = 0, size = wanted; tries < RESERVE_TRIES; tries++) {
      const outcome: Allocation = await this.#allocate(path, size)
      if (outcome === 'done') {
        await this.#addPart(path, size)
        return size
      }
      removeTree(path)
      if (outcome === 'refused') return undefined
      size = Math.floor((size * 0.9) / BLOCK_BYTES) * BLOCK_BYTES
    }
    return undefined
  }

  /**
   * The files grow without being written (a file's size stays 0), or FAT would fill them with
   * zeros.
   */
  async #allocate(path: string, sizeBytes: number): Promise<Allocation> {
    closeSync(openSync(path, 'wx', 0o600))
    try {
      const { exitCode, stderr } = await runProgram({
        program: 'fallocate',
        args: ['--keep-size', '--length', String(sizeBytes), '--', path],
        changes: true,
        timeoutMs: RESERVE_LIMIT_MS,
        signal: this.#options.signal,
      })
      if (exitCode === 0) return 'done'
      return /No space left|quota exceeded/i.test(stderr) ? 'full' : 'refused'
    } catch (error) {
      const isOurs = error instanceof BackupError && error.code !== 'INTERRUPTED'
      if (!isOurs) throw error
      return 'refused'
    }
  }

  async #reserveMany(wanted: number): Promise<Segment[]> {
    const partBytes = Math.min(MAX_PART_BYTES, 2 ** Math.floor(Math.log2(wanted / EVEN_BLOCKS / 2)))
    const startMs = performance.now()
    const segments: Segment[] = []
    let canAllocate = true
    for (let done = 0; done + partBytes <= wanted; done += partBytes) {
      this.#stopIfAborted()
      if (performance.now() - startMs > RESERVE_LIMIT_MS) break
      const path = `${this.#directory}/${segments.length}`
      const outcome: Allocation = canAllocate ? await this.#allocate(path, partBytes) : 'refused'
      if (outcome === 'full') break
      canAllocate = outcome === 'done'
      const part = await this.#addPart(path, partBytes)
      // Only the beginning of each is written: a filesystem may fill the gap before a later place.
      if (!canAllocate) await part.write.truncate(partBytes)
      const physical = mapFile(part)?.[0]?.physical ?? done
      segments.push({ part, offset: 0, physical, lengthBytes: BLOCK_BYTES })
    }
    return segments
  }

  /** Opens a file for both, and takes its name: what is killed from here on leaves nothing. */
  async #addPart(path: string, sizeBytes: number): Promise<Part> {
    const { O_RDONLY, O_RDWR, O_CREAT, O_NOFOLLOW, O_DIRECT } = constants
    const write = await open(path, O_RDWR | O_CREAT | O_NOFOLLOW, 0o600)
    const read = await openDirect(path, { plain: O_RDONLY | O_NOFOLLOW, direct: O_DIRECT })
    const part = { write, read, sizeBytes }
    this.#parts.push(part)
    removeTree(path)
    return part
  }

  async #isAllocated(reserved: number): Promise<boolean> {
    let allocated = 0
    for (const { write } of this.#parts) allocated += (await write.stat()).blocks * 512
    return allocated >= reserved * ALLOCATED
  }

  /** Content that no other place and no other run has. */
  #block(index: number): Buffer {
    const start = Buffer.alloc(16)
    // The counter of a block never reaches that of the next.
    start.writeUInt32BE(index, 0)
    const cipher = createCipheriv('aes-256-ctr', this.#key, start)
    return cipher.update(Buffer.alloc(BLOCK_BYTES))
  }

  async #write({ part, offset }: Spot, progress: Progress): Promise<void> {
    this.#tell('writing blocks all over the drive', progress)
    const block = this.#block(progress.index)
    for (let done = 0; done < block.length;) {
      const rest = block.length - done
      done += (await part.write.write(block, done, rest, offset + done)).bytesWritten
    }
    await part.write.datasync()
  }

  /** SHA-256 of the block that is at a place now. */
  async #digestAt({ part, offset }: Spot, progress: Progress): Promise<Buffer> {
    this.#tell('reading them back', progress)
    const block = alignedBlock()
    for (let done = 0; done < block.length;) {
      const rest = block.length - done
      const { bytesRead } = await part.read.read(block, done, rest, offset + done)
      if (bytesRead === 0) break
      done += bytesRead
    }
    return digest(block)
  }

  /** What is read from now on comes from the drive, or at least not from our memory. */
  #dropCaches(): void {
    for (const { write } of this.#parts) dropPageCache(write.fd)
    const { device } = this.#options
    if (device === undefined) return
    try {
      const fd = openSync(device, constants.O_RDONLY)
      try {
        dropPageCache(fd)
      } finally {
        closeSync(fd)
      }
    } catch (error) {
      // Only root may open it; then what drivers in user space keep is not dropped.
      if (systemCode(error) === undefined) throw error
    }
  }

  #tell(phase: string, { index, spots }: Progress): void {
    this.#stopIfAborted()
    const [filesDone, filesTotal] = [index, spots.length]
    const [bytesDone, bytesTotal] = [index * BLOCK_BYTES, spots.length * BLOCK_BYTES]
    this.#options.report({ kind: 'progress', phase, filesDone, filesTotal, bytesDone, bytesTotal })
  }

  #stopIfAborted(): void {
    if (!this.#options.signal.aborted) return
    throw new BackupError('INTERRUPTED', 'interrupted', {
      hint: 'what was written to look at the drive is gone again; its own data was left alone',
    })
  }
}

interface Progress {
  readonly index: number
  readonly spots: readonly Spot[]
}

/** Node has it, though the type libraries for servers do not say so. */
declare const WebAssembly: {
  readonly Memory: new (pages: { readonly initial: number }) => { readonly buffer: ArrayBuffer }
}

/** Direct reads demand memory at a page's beginning; WebAssembly's is, in pages of 64 KiB. */
let aligned: Buffer | undefined

/** Full of zeros: what is not read must not look like what was read before. */
function alignedBlock(): Buffer {
  aligned ??= Buffer.from(new WebAssembly.Memory({ initial: BLOCK_BYTES / 2 ** 16 }).buffer)
  return aligned.fill(0)
}

async function openDirect(
  path: string,
  { plain, direct }: { readonly plain: number; readonly direct: number | undefined },
): Promise<FileHandle> {
  try {
    return await open(path, plain | (direct ?? 0))
  } catch (error) {
    if (!['EINVAL', 'ENOTSUP', 'EOPNOTSUPP'].includes(systemCode(error) ?? '')) throw error
    return await open(path, plain)
  }
}

function digest(bytes: Buffer): Buffer {
  return createHash('sha256').update(bytes).digest()
}

/** Where a file's bytes lie on the device; undefined where the filesystem does not tell. */
function mapFile(part: Part): Segment[] | undefined {
  const segments: Segment[] = []
  for (let start = 0n; ;) {
    const request = Buffer.alloc(FIEMAP_HEAD_BYTES + FIEMAP_EXTENTS * FIEMAP_EXTENT_BYTES)
    request.writeBigUInt64LE(start, 0)
    request.writeBigUInt64LE(2n ** 64n - 1n - start, 8)
    request.writeUInt32LE(FIEMAP_EXTENTS, 24)
    try {
      ioctl(part.write.fd, FIEMAP, request)
    } catch (error) {
      if (systemCode(error) === undefined) throw error
      return undefined
    }
    const count = request.readUInt32LE(20)
    let isLast = count === 0
    for (let i = 0; i < count; i++) {
      const at = FIEMAP_HEAD_BYTES + i * FIEMAP_EXTENT_BYTES
      const flags = request.readUInt32LE(at + 40)
      const [offset, physical, lengthBytes] = [0, 8, 16].map((field) => {
        return Number(request.readBigUInt64LE(at + field))
      }) as [number, number, number]
      if ((flags & FIEMAP_NO_PLACE) === 0) segments.push({ part, offset, physical, lengthBytes })
      start = BigInt(offset + lengthBytes)
      isLast ||= (flags & FIEMAP_LAST) !== 0
    }
    if (isLast) return segments.length === 0 ? undefined : segments
  }
}

/**
 * Evenly from the first place to the last; and pairs whose distance is a power of two, for a drive
 * that wraps around drops the upper bits of an address.
 */
function chooseSpots(segments: readonly Segment[]): Spot[] {
  const sorted = segments.flatMap(toGrid).sort((a, b) => a.physical - b.physical)
  const even = evenSpots(sorted)
  const last = even.at(-1)
  const spots = new Map(even.map((spot) => [spot.physical, spot]))
  const span = last === undefined ? 0 : last.physical - even[0]!.physical
  for (let distance = BLOCK_BYTES; distance <= span; distance *= 2) {
    const partners = even.map(({ physical }) => spotAt(sorted, physical + distance))
    const partner = partners.find((spot) => spot !== undefined && isApart(spot, spots))
    if (partner !== undefined) spots.set(partner.physical, partner)
  }
  return [...spots.values()]
}

/** Blocks that share a place on the drive have to share all of it, to be recognised. */
function toGrid(segment: Segment): Segment[] {
  const { offset, physical, lengthBytes } = segment
  if (lengthBytes === BLOCK_BYTES) return [segment]
  const skip = Math.ceil(physical / BLOCK_BYTES) * BLOCK_BYTES - physical
  if (lengthBytes - skip < BLOCK_BYTES) return []
  return [
    {
      ...segment,
      offset: offset + skip,
      physical: physical + skip,
      lengthBytes: lengthBytes - skip,
    },
  ]
}

function evenSpots(sorted: readonly Segment[]): Spot[] {
  const slots = sorted.map(({ lengthBytes }) => Math.floor(lengthBytes / BLOCK_BYTES))
  const total = slots.reduce((sum, count) => sum + count, 0)
  const count = Math.min(EVEN_BLOCKS, total)
  const chosen = Array.from({ length: count }, (_, i) => {
    return count === 1 ? 0 : Math.round((i * (total - 1)) / (count - 1))
  })
  const spots: Spot[] = []
  let passed = 0
  for (const [i, { part, offset, physical }] of sorted.entries()) {
    while (spots.length < count && chosen[spots.length]! < passed + slots[i]!) {
      const skip = (chosen[spots.length]! - passed) * BLOCK_BYTES
      spots.push({ part, offset: offset + skip, physical: physical + skip })
    }
    passed += slots[i]!
  }
  return spots
}

function spotAt(sorted: readonly Segment[], physical: number): Spot | undefined {
  const segment = sorted.find((one) => {
    return one.physical <= physical && physical + BLOCK_BYTES <= one.physical + one.lengthBytes
  })
  if (segment === undefined) return undefined
  const { part, offset } = segment
  return { part, offset: offset + physical - segment.physical, physical }
}

/** Blocks must not overlap each other. */
function isApart({ physical }: Spot, spots: ReadonlyMap<number, Spot>): boolean {
  return [...spots.keys()].every((other) => Math.abs(other - physical) >= BLOCK_BYTES)
}

interface Evidence {
  /** Ascending. */
  readonly spots: readonly Spot[]
  readonly expected: readonly Buffer[]
  readonly found: readonly Buffer[]
  readonly reserved: number
  readonly totalBytes: number
}

function judge(evidence: Evidence): Capacity {
  const { spots, expected, found, reserved, totalBytes } = evidence
  const bad = spots.flatMap((_, i) => (found[i]!.equals(expected[i]!) ? [] : [i]))
  const [firstBad] = bad
  if (firstBad === undefined) {
    const where = `all over ${formatSize(reserved)} of free space`
    const message = `${spots.length} blocks ${where} read back as they were written`
    return { verdict: 'good', message }
  }
  const wrapsAt = wrapLength(evidence, bad)
  if (wrapsAt !== undefined) {
    const message =
      `it is a fake: it says ${formatSize(totalBytes)}, and what is written beyond about `
      + `${formatSize(wrapsAt)} overwrites what is there`
    return { verdict: 'fake', goodBytes: wrapsAt, message }
  }
  const isAllBeyond = bad.length === spots.length - firstBad
  if (!isAllBeyond) {
    const message = `${bad.length} of ${spots.length} blocks do not read back as they were written`
    return { verdict: 'failed', message }
  }
  const before = spots[firstBad - 1]
  if (before === undefined) {
    return { verdict: 'fake', goodBytes: 0, message: 'nothing of what was written is there' }
  }
  const goodBytes = before.physical + BLOCK_BYTES
  const lostBytes = spots[firstBad]!.physical
  const message =
    `it is a fake: it says ${formatSize(totalBytes)}, what is written below `
    + `${formatSize(goodBytes)} is there, and beyond ${formatSize(lostBytes)} it is lost`
  return { verdict: 'fake', goodBytes, message }
}

/** The greatest common divisor of the distances of places that share their content. */
function wrapLength(
  { spots, expected, found }: Evidence,
  bad: readonly number[],
): number | undefined {
  const written = new Map(expected.map((bytes, i) => [bytes.toString('hex'), spots[i]!]))
  let length = 0
  for (const i of bad) {
    const other = written.get(found[i]!.toString('hex'))
    if (other === undefined) continue
    length = greatestCommonDivisor(length, Math.abs(other.physical - spots[i]!.physical))
  }
  return length === 0 ? undefined : length
}

function greatestCommonDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestCommonDivisor(b, a % b)
}
