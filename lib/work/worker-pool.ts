// Runs requests on worker threads, one answer each: what verify.ts and restore.ts share.
//
// A worker has one request at hand, and one waiting where they are short. Throws what a worker
// throws, or INTERRUPTED; all workers have ended by then. (An export's workers answer more than
// once: pack-pool.ts.)

import { Worker } from 'node:worker_threads'
import { endWorkers } from '../machine/threads.ts'
import type { Target } from '../target/target.ts'
import { unlessAborted } from './interruption.ts'
import { serveNetwork } from './network-source.ts'

/**
 * Workers live on reused buffers; a small young generation makes what garbage there is go early.
 */
export const WORKER_LIMITS = { maxYoungGenerationSizeMb: 4 } as const

/** They mostly wait, each for a request of its own. */
const NETWORK_WORKERS = 6

/**
 * Sends every request to some worker and hands every reply to `onReply`, in the order they come.
 * @param options.script file name beside this one
 */
export async function runWorkers<Request, Reply>(options: {
  readonly script: string
  readonly workerData: object
  /** What workers read from, where that is over the network. */
  readonly target?: Target | undefined
  /** What is known of the lengths of files there, by path in the repository. */
  readonly sizes?: ReadonlyMap<string, number>
  readonly requests: readonly Request[]
  readonly workers: number
  /** How many requests a worker has at hand: 1 for long ones, so that all workers end together. */
  readonly ahead: 1 | 2
  /** What this thread does before a request is sent; what it returns is sent. */
  readonly prepare?: ((request: Request) => Request) | undefined
  /** Whether no more requests are to be sent; every worker gets its first. */
  readonly isEnough?: (() => boolean) | undefined
  readonly onReply: (reply: Reply) => void
  readonly signal: AbortSignal
  /** What is unharmed when it is interrupted. */
  readonly interruptedHint: string
}): Promise<void> {
  const { script, workerData, requests, signal, interruptedHint } = options
  const { isEnough = () => false, prepare = (request) => request } = options
  const isRemote = options.target?.access === 'network'
  const wanted = isRemote ? Math.max(options.workers, NETWORK_WORKERS) : options.workers
  const count = Math.min(wanted, requests.length)
  const links = Array.from({ length: isRemote ? count : 0 }, () => {
    return serveNetwork(options.target!, options.sizes)
  })
  const workers = Array.from({ length: count }, (_, i) => {
    const link = links[i]
    return new Worker(new URL(script, import.meta.url), {
      workerData: link === undefined ? workerData : { ...workerData, network: link.network },
      transferList: [...(link?.transfer ?? [])],
      resourceLimits: WORKER_LIMITS,
    })
  })
  let next = 0
  let done = 0
  try {
    const answered = new Promise<void>((resolve, reject) => {
      if (count === 0) resolve()
      for (const worker of workers) {
        const deal = () => {
          if (next < requests.length) worker.postMessage(prepare(requests[next++]!))
        }
        worker.on('error', reject)
        worker.on('message', (reply: Reply) => {
          try {
            if (!isEnough()) deal()
            options.onReply(reply)
          } catch (error) {
            reject(error)
          }
          done += 1
          // One that was not dealt while others are at hand never will be.
          if (done === next) resolve()
        })
        for (let ahead = 0; ahead < options.ahead; ahead++) deal()
      }
    })
    await unlessAborted(signal, answered, interruptedHint)
  } finally {
    await endWorkers(workers)
    for (const link of links) link.close()
  }
}
