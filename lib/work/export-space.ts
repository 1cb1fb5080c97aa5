// Whether an export fits on its target, asked before anything of it is written.
//
// export.ts calls it with the plan. Where the new data would fit uncompressed nothing is looked at;
// else a sample of it is compressed, and compared with what the repository has, to know how much
// will really be written. It refuses only what clearly does not fit: an estimate must not keep a
// backup from being made. Throws TARGET_FULL; nothing was written then.

import { Buffer } from 'node:buffer'
import { BackupError, systemCode } from '../errors.ts'
import { SEGMENT_BYTES, cutPieces, digestBytes } from '../format/chunker.ts'
import { FrameCompressor, compressedBound } from '../format/zstd-frames.ts'
import { formatSize } from '../model/amount.ts'
import { dataBytes } from '../model/entry.ts'
import type { RawPath } from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import { cutShards } from '../model/shard.ts'
import type { Target } from '../target/target.ts'
import type { PlannedEntry } from './export-plan.ts'
import type { PackItem } from './pack-worker.ts'
import type { PieceIndex } from './piece-index.ts'
import { StagedFile, StagedFileChanged } from './staged-file.ts'

export interface SpaceOptions {
  readonly target: Pick<Target, 'name' | 'freeBytes'>
  readonly set: string
  readonly stamp: string
  readonly plan: readonly PlannedEntry[]
  /** The collection's tree in staging. */
  readonly tree: RawPath
  /** The zstd level of the target. */
  readonly level: number
  /** What par2 adds, in percent of a bundle. */
  readonly parityPercent: number
  /** The pieces that the repository has, and whether it has any. */
  readonly index: PieceIndex
  readonly knowsPieces: boolean
  readonly report: Report
}

/** For padding, checksums, and what the sample did not see. */
const MARGIN = 1.05

/**
 * Of an entry, compressed: its tar header, and its line in the catalog, of which 32 bytes are a
 * digest. 35 and 65 were measured with 20,000 small files.
 */
const HEADER_BYTES = 40
const CATALOG_BYTES = 72
/** Manifest, checksums, signatures and a block of the filesystem for each. */
const FIXED_BYTES = 64 * 1024

/** Runs of this length, this many of them, spread evenly over the bytes that are new. */
const RUN_BYTES = 128 * 1024
const RUNS = 64
/** What comparing with the repository may read besides: pieces are up to 4 MiB. */
const MAX_COMPARED_BYTES = 64 * 1024 * 1024
/** Higher levels take seconds for the sample and save 5 % more. */
const MAX_SAMPLE_LEVEL = 9
/** Frames are longer than runs, and compress by this much better (0.88 to 0.93 was measured). */
const LONG_FRAME_GAIN = 0.92
/** What hardly compresses gains nothing by longer frames. */
const COMPRESSIBLE = 0.97
/** What does not compress grows by the headers of age and zstd. */
const MAX_RATIO = 1.01
/** Small files are compressed together: so many of them at most make up a run. */
const MAX_RUN_FILES = 64
/** So many files of one size are compared, to know whether they are copies. */
const MAX_TWINS = 3

/** Less than this share of the estimate is clearly too little; between, it is tried. */
const CLEARLY_SHORT = 0.9
/** The estimate is right within this many standard errors, 19 times of 20. */
const ERRORS = 2

/** @throws BackupError TARGET_FULL when the target is clearly too small */
export async function checkSpace(options: SpaceOptions): Promise<void> {
  const { target, set, stamp, plan, report } = options
  const freeBytes = await target.freeBytes()
  if (freeBytes === undefined) return
  const items = plan.flatMap(({ item }) => (item?.kind === 'file' ? [item] : []))
  const newBytes = items.reduce((sum, { metadata }) => sum + dataBytes(metadata), 0)
  const changed = plan.reduce((count, { item }) => count + (item === undefined ? 0 : 1), 0)
  const most = withMargin(options, newBytes * MAX_RATIO + catalogBytes(plan.length, changed))
  if (freeBytes >= most) return
  const { share, leastShare } = sampleShare(options, { items, newBytes })
  const rest = catalogBytes(rewrittenEntries(plan), changed)
  const neededBytes = withMargin(options, newBytes * share + rest)
  if (freeBytes >= neededBytes) return
  const facts = { neededBytes, freeBytes, missingBytes: neededBytes - freeBytes }
  const message =
    `target ${target.name}: ${formatSize(neededBytes)} are needed for ${set} ${stamp}, `
    + `${formatSize(freeBytes)} are free: ${formatSize(facts.missingBytes)} are missing`
  // Without parity, which is made of exports that exist already: it never keeps one from being
  // made.
  const leastBytes = newBytes * leastShare + rest
  if (freeBytes >= Math.min(neededBytes * CLEARLY_SHORT, leastBytes)) {
    const code = 'SPACE_MAY_NOT_DO'
    report({ kind: 'notice', level: 'warning', code, message: `${message}, by estimate`, facts })
    return
  }
  throw new BackupError('TARGET_FULL', message, {
    hint:
      `make room: \`backup prune --target ${target.name}\` shows what retention lets go, fewer `
      + 'exports in retention.external keep less; or use a larger drive; nothing was written, '
      + 'earlier exports are unharmed',
    facts,
  })
}

/** How many bytes an export will write, by a sample of what is new in it. */
export function estimateExport(options: SpaceOptions): number {
  const { plan } = options
  const items = plan.flatMap(({ item }) => (item?.kind === 'file' ? [item] : []))
  const newBytes = items.reduce((sum, { metadata }) => sum + dataBytes(metadata), 0)
  const changed = plan.reduce((count, { item }) => count + (item === undefined ? 0 : 1), 0)
  const { share } = sampleShare(options, { items, newBytes })
  return withMargin(options, newBytes * share + catalogBytes(rewrittenEntries(plan), changed))
}

function withMargin({ parityPercent }: SpaceOptions, bytes: number): number {
  return Math.ceil(bytes * MARGIN * (1 + parityPercent / 100))
}

function catalogBytes(rewritten: number, changed: number): number {
  return FIXED_BYTES + rewritten * CATALOG_BYTES + changed * HEADER_BYTES
}

/** The entries of the shards that have to be written anew, because one of them changed. */
function rewrittenEntries(plan: readonly PlannedEntry[]): number {
  return cutShards(plan.map(({ entry }) => entry)).reduce((sum, [start, end]) => {
    const isChanged = plan.slice(start, end).some(({ item }) => item !== undefined)
    return sum + (isChanged ? end - start : 0)
  }, 0)
}

type FileItem = PackItem & { readonly kind: 'file' }

interface Share {
  /** What will be written of each new byte: the mean of the sample. */
  readonly share: number
  /** Less than this it hardly is. */
  readonly leastShare: number
}

/** Always the same for the same files: the places depend on their sizes alone. */
function sampleShare(
  options: SpaceOptions,
  { items, newBytes }: { items: readonly FileItem[]; newBytes: number },
): Share {
  if (newBytes === 0) return { share: 0, leastShare: 0 }
  const sampler = new Sampler(options, items)
  const shares = samplePlaces(items, newBytes).flatMap((place) => sampler.shareAt(place) ?? [])
  // Nothing can be read: packing will say so.
  if (shares.length === 0) return { share: MAX_RATIO, leastShare: 0 }
  const share = shares.reduce((sum, one) => sum + one, 0) / shares.length
  const variance = shares.reduce((sum, one) => sum + (one - share) ** 2, 0) / shares.length
  const error = Math.sqrt(variance / shares.length)
  return { share, leastShare: Math.max(0, share - ERRORS * error) }
}

interface Place {
  /** Its place among the new files. */
  readonly position: number
  readonly item: FileItem
  /** Of its data bytes. */
  readonly offset: number
}

/** Evenly spread, the distant ones first, so that a sample that is cut short is spread as well. */
function samplePlaces(items: readonly FileItem[], newBytes: number): Place[] {
  const at = Array.from({ length: RUNS }, (_, i) => Math.floor(((i + 0.5) / RUNS) * newBytes))
  const places: Place[] = []
  let passed = 0
  for (const [position, item] of items.entries()) {
    const end = passed + dataBytes(item.metadata)
    while (places.length < RUNS && at[places.length]! < end) {
      places.push({ position, item, offset: at[places.length]! - passed })
    }
    passed = end
  }
  return places.map((_, i) => places[reversedBits(i)]!)
}

/** The bits of a number below RUNS in opposite order: 0, 32, 16, 48, 8 … */
function reversedBits(number: number): number {
  let reversed = 0
  for (let bit = 1; bit < RUNS; bit *= 2) reversed = reversed * 2 + (number & bit ? 1 : 0)
  return reversed
}

/** Owns its buffers. */
class Sampler {
  readonly #options: SpaceOptions
  readonly #items: readonly FileItem[]
  readonly #compressor: FrameCompressor
  readonly #out = Buffer.allocUnsafe(compressedBound(RUN_BYTES))
  readonly #bySize: ReadonlyMap<number, readonly FileItem[]>
  readonly #done = new Map<string, number | undefined>()
  #comparedBytes = 0

  constructor(options: SpaceOptions, items: readonly FileItem[]) {
    this.#options = options
    this.#items = items
    this.#compressor = new FrameCompressor(Math.min(options.level, MAX_SAMPLE_LEVEL))
    const bySize = new Map<number, FileItem[]>()
    for (const item of items) {
      const size = dataBytes(item.metadata)
      const same = bySize.get(size)
      if (same === undefined) bySize.set(size, [item])
      else same.push(item)
    }
    this.#bySize = bySize
  }

  /** What will be written of a byte at this place; undefined where nobody can tell. */
  shareAt(place: Place): number | undefined {
    const start = Math.floor(place.offset / RUN_BYTES) * RUN_BYTES
    const key = `${place.position} ${start}`
    if (!this.#done.has(key)) {
      if (this.#comparedBytes >= MAX_COMPARED_BYTES) return undefined
      // A file that cannot be read is named when it is packed.
      this.#done.set(
        key,
        readable(() => this.#look(place, start)),
      )
    }
    return this.#done.get(key)
  }

  #look(place: Place, start: number): number {
    const file = this.#open(place.item)
    try {
      const run = readRun(file, { start, length: Math.min(RUN_BYTES, file.dataBytes - start) })
      if (this.#options.knowsPieces && this.#isKnown(file, place)) return 0
      return this.#ratio(this.#fill(run, place)) / this.#copies(place.item, { start, run })
    } finally {
      file.close()
    }
  }

  /** A run that is short, with the files that follow in the same frame. */
  #fill(run: Buffer, { position }: Place): Buffer {
    const parts = [run]
    let missing = RUN_BYTES - run.length
    for (const item of this.#items.slice(position + 1, position + MAX_RUN_FILES)) {
      if (missing <= 0) break
      const length = Math.min(missing, dataBytes(item.metadata))
      const next = readable(() => this.#readRunOf(item, { start: 0, length }))
      if (next !== undefined) parts.push(next)
      missing -= length
    }
    return Buffer.concat(parts)
  }

  #readRunOf(item: FileItem, { start, length }: { start: number; length: number }): Buffer {
    const file = this.#open(item)
    try {
      return readRun(file, { start, length })
    } finally {
      file.close()
    }
  }

  #open({ metadata }: FileItem): StagedFile {
    return new StagedFile({ path: `${this.#options.tree}/${metadata.path}`, metadata })
  }

  #ratio(run: Buffer): number {
    const ratio = this.#compressor.compress({ bytes: run, out: this.#out }) / run.length
    return Math.min(MAX_RATIO, ratio < COMPRESSIBLE ? ratio * LONG_FRAME_GAIN : ratio)
  }

  /** Whether the repository has the piece already: of large files, the first one of a segment. */
  #isKnown(file: StagedFile, { item, offset }: Pick<Place, 'item' | 'offset'>): boolean {
    const { chunk } = item
    const start = chunk === undefined ? 0 : Math.floor(offset / SEGMENT_BYTES) * SEGMENT_BYTES
    const most = chunk === undefined ? file.dataBytes : Math.min(SEGMENT_BYTES, 4 * 2 ** chunk)
    const bytes = readRun(file, { start, length: Math.min(most, file.dataBytes - start) })
    this.#comparedBytes += bytes.length
    const piece =
      chunk === undefined ? bytes : bytes.subarray(0, cutPieces(bytes, chunk)[0] ?? bytes.length)
    return this.#options.index.lookup(digestBytes(piece)) !== undefined
  }

  /** How many files of the export have this content, as far as some of them tell. */
  #copies(item: FileItem, { start, run }: { start: number; run: Buffer }): number {
    const size = dataBytes(item.metadata)
    const others = (this.#bySize.get(size) ?? []).filter((one) => one !== item)
    const looked = size < RUN_BYTES ? [] : others.slice(0, MAX_TWINS)
    if (looked.length === 0) return 1
    const length = run.length
    const same = looked.filter((other) => {
      return readable(() => this.#readRunOf(other, { start, length }))?.equals(run) === true
    }).length
    return 1 + (others.length * same) / looked.length
  }
}

/** Undefined where a file is not what it was, or not there. */
function readable<Value>(read: () => Value): Value | undefined {
  try {
    return read()
  } catch (error) {
    if (error instanceof StagedFileChanged || systemCode(error) !== undefined) return undefined
    throw error
  }
}

function readRun(file: StagedFile, { start, length }: { start: number; length: number }): Buffer {
  const bytes = Buffer.allocUnsafe(length)
  file.read(bytes, start)
  return bytes
}
