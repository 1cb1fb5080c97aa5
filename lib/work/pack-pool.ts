// Runs the pack workers of one export: deals out batches, publishes finished bundles, gathers where
// everything is.
//
// Neighbour of pack-worker.ts, called by export.ts. Throws what a worker failed with, or
// INTERRUPTED; then all workers have ended and no bundle of theirs is half written under a final
// name.

import { Worker } from 'node:worker_threads'
import { unpackError } from '../errors.ts'
import { dataBytes } from '../model/entry.ts'
import type { RawPath } from '../model/raw-path.ts'
import type { BundleFacts } from './bundle-writer.ts'
import type {
  PackFailure,
  PackItem,
  PackReply,
  PackRequest,
  PackSettings,
  PackedBundle,
  PackedEntry,
} from './pack-worker.ts'
import type { ReadBack } from './prove.ts'
import type { ProveReply, ProveRequest } from './prove-worker.ts'
import { unlessAborted } from './interruption.ts'
import { WORKER_LIMITS } from './worker-pool.ts'
import { endWorkers } from '../machine/threads.ts'

/**
 * Small enough to end together, large enough that neighbours in the catalog stay neighbours in a
 * bundle.
 */
const BATCH_BYTES = 16 * 1024 * 1024
const BATCH_ITEMS = 512
/** Batches a worker has at hand, so that it never waits for the main thread. */
const BATCHES_AHEAD = 2
/** While bundles are sent, and nothing is packed any more. */
const TELLING_MS = 1000
/** Below this, one more worker would only make one more small bundle. */
const MIN_BYTES_PER_WORKER = 4 * 1024 * 1024

export interface PackProgress {
  readonly filesDone: number
  readonly bytesDone: number
  readonly bytesWritten: number
  /** Everything is packed, and bundles are still being published. */
  readonly isPublishing: boolean
  readonly current: RawPath | undefined
}

export interface Packed {
  readonly entries: readonly PackedEntry[]
  readonly failures: readonly PackFailure[]
  readonly bundles: readonly ProvenBundle[]
}

/** A bundle that was read back from the medium. */
export interface ProvenBundle extends BundleFacts {
  readonly bundle: number
  /** As the state keeps them; empty where they were not asked for. */
  readonly pieces: Uint8Array
  readonly readBack: ReadBack
}

/**
 * Packs all items.
 * @param options.unpublishedLimitBytes packing waits while more than this is being published
 * @param options.publish gives a proven bundle its name on the target; it is awaited before this
 * returns
 */
export async function packAll(options: {
  readonly items: readonly PackItem[]
  readonly settings: PackSettings
  readonly cores: number
  readonly unpublishedLimitBytes: number
  readonly publish: (bundle: ProvenBundle) => Promise<void>
  readonly onProgress: (progress: PackProgress) => void
  readonly signal: AbortSignal
}): Promise<Packed> {
  const batches = makeBatches(options.items)
  if (batches.length === 0) return { entries: [], failures: [], bundles: [] }
  const workers = startWorkers(workerCount(options), options.settings)
  const prover = startProver()
  try {
    return await new Pool(options, { batches, workers, prover }).run()
  } finally {
    await endWorkers([...workers, prover])
  }
}

function workerCount({ items, cores }: { items: readonly PackItem[]; cores: number }): number {
  const bytes = items.reduce((sum, item) => sum + itemBytes(item), 0)
  return Math.max(1, Math.min(cores, Math.ceil(bytes / MIN_BYTES_PER_WORKER)))
}

function startWorkers(workers: number, settings: PackSettings): Worker[] {
  return Array.from(
    { length: workers },
    () =>
      new Worker(new URL('./pack-worker.js', import.meta.url), {
        workerData: settings,
        resourceLimits: WORKER_LIMITS,
        // The prover closes what a pack worker opened, maybe after that one has ended.
        trackUnmanagedFds: false,
      }),
  )
}

function startProver(): Worker {
  return new Worker(new URL('./prove-worker.js', import.meta.url), {
    resourceLimits: WORKER_LIMITS,
    trackUnmanagedFds: false,
  })
}

/**
 * Large files first and alone, so that all workers end at about the same time; then the rest in
 * catalog order.
 */
function makeBatches(items: readonly PackItem[]): (readonly PackItem[])[] {
  const large = items
    .filter((item) => itemBytes(item) > BATCH_BYTES)
    .sort((a, b) => itemBytes(b) - itemBytes(a))
    .map((item) => [item])
  const batches: PackItem[][] = []
  let bytes = Infinity
  for (const item of items) {
    const itemSize = itemBytes(item)
    if (itemSize > BATCH_BYTES) continue
    if (bytes + itemSize > BATCH_BYTES || batches[batches.length - 1]!.length >= BATCH_ITEMS) {
      batches.push([])
      bytes = 0
    }
    batches[batches.length - 1]!.push(item)
    bytes += itemSize
  }
  return [...large, ...batches]
}

/** A header's worth at the least. */
function itemBytes(item: PackItem): number {
  return 1024 + (item.kind === 'file' ? dataBytes(item.metadata) : 0)
}

class Pool {
  readonly #options: Parameters<typeof packAll>[0]
  readonly #batches: (readonly PackItem[])[]
  readonly #workers: readonly Worker[]
  readonly #entries: PackedEntry[] = []
  readonly #failures: PackFailure[] = []
  readonly #prover: Worker
  readonly #written = new Map<number, PackedBundle>()
  readonly #bundles: ProvenBundle[] = []
  readonly #publishing: Promise<void>[] = []
  /** Workers that get nothing more before something is published. */
  readonly #waiting: Worker[] = []
  #unpublishedBytes = 0
  #next = 0
  #finished = 0
  #filesDone = 0
  #bytesDone = 0
  #bytesWritten = 0

  constructor(
    options: Parameters<typeof packAll>[0],
    {
      batches,
      workers,
      prover,
    }: { batches: (readonly PackItem[])[]; workers: readonly Worker[]; prover: Worker },
  ) {
    this.#options = options
    this.#batches = batches
    this.#workers = workers
    this.#prover = prover
  }

  async run(): Promise<Packed> {
    const { signal } = this.#options
    const packing = new Promise<void>((resolve, reject) => {
      this.#prover.on('error', reject)
      this.#prover.on('message', (reply: ProveReply) => {
        if (reply.kind === 'failed') return reject(unpackError(reply.error))
        this.#takeProof(reply, reject)
        if (this.#isDone()) resolve()
      })
      for (const worker of this.#workers) {
        worker.on('error', reject)
        worker.on('message', (reply: PackReply) => {
          if (reply.kind === 'failed') return reject(unpackError(reply.error))
          this.#take(worker, reply)
          if (this.#isDone()) resolve()
        })
        for (let ahead = 0; ahead < BATCHES_AHEAD; ahead++) this.#deal(worker)
      }
    })
    const hint = 'earlier exports are unharmed; the next run starts this one again'
    await unlessAborted(signal, packing, hint)
    const telling = setInterval(() => this.#tell(), TELLING_MS)
    try {
      await unlessAborted(signal, Promise.all(this.#publishing))
    } finally {
      clearInterval(telling)
    }
    return { entries: this.#entries, failures: this.#failures, bundles: this.#bundles }
  }

  #isDone(): boolean {
    return this.#finished === this.#workers.length && this.#written.size === 0
  }

  #take(worker: Worker, reply: Exclude<PackReply, { kind: 'failed' }>): void {
    if (reply.kind === 'packed') {
      this.#entries.push(...reply.entries)
      this.#failures.push(...reply.failures)
      this.#filesDone += reply.entries.length
      this.#bytesDone += reply.bytesRead
      this.#deal(worker)
    } else if (reply.kind === 'bundle') {
      const { bundle, file } = reply.bundle
      this.#written.set(bundle, reply.bundle)
      const isSpooled = this.#options.settings.withPieces
      this.#prover.postMessage({ bundle, file, isSpooled } satisfies ProveRequest)
    } else if (reply.kind === 'finished') {
      this.#finished += 1
    }
    this.#tell()
  }

  #takeProof(
    { bundle, readBack }: ProveReply & { kind: 'proven' },
    reject: (error: unknown) => void,
  ): void {
    const { file: _file, ...facts } = this.#written.get(bundle)!
    const proven = { ...facts, readBack }
    this.#written.delete(bundle)
    this.#bundles.push(proven)
    this.#bytesWritten += proven.sizeBytes
    this.#unpublishedBytes += proven.sizeBytes
    const publishing = this.#options.publish(proven).then(() => {
      this.#unpublishedBytes -= proven.sizeBytes
      while (this.#waiting.length > 0 && !this.#isFull()) this.#deal(this.#waiting.shift()!)
    })
    publishing.catch(reject)
    this.#publishing.push(publishing)
    this.#tell()
  }

  #tell(): void {
    this.#options.onProgress({
      filesDone: this.#filesDone,
      bytesDone: this.#bytesDone,
      bytesWritten: this.#bytesWritten,
      isPublishing: this.#isDone(),
      current: this.#batches[this.#next]?.[0]?.metadata.path,
    })
  }

  #isFull(): boolean {
    return this.#unpublishedBytes > this.#options.unpublishedLimitBytes
  }

  #deal(worker: Worker): void {
    if (this.#isFull()) {
      this.#waiting.push(worker)
      return
    }
    const batch = this.#batches[this.#next++]
    const request: PackRequest =
      batch === undefined ? { kind: 'finish' } : { kind: 'batch', items: batch }
    worker.postMessage(request)
  }
}
