// How much is sent at a time, and how fast: what all uploads to one remote target share.
//
// s3.ts and sftp.ts make one for each target. run() lets so many pieces of work through at once, in
// the order they came; pace() makes bytes wait for their turn, so that no more than the limit is
// sent in a second, taken over all streams. Throws what the work throws, and an ended signal's
// reason.

import { setTimeout as sleep } from 'node:timers/promises'

export interface Transfers {
  /** Does the work once a stream is free, and frees it afterwards, whatever happens. */
  run<T>(work: () => Promise<T>): Promise<T>
  /** Returns when that many bytes may be sent. @throws the reason of a signal that ends */
  pace(bytes: number, signal?: AbortSignal): Promise<void>
  /** How many bytes were let through so far. */
  sentBytes(): number
}

export interface TransfersOptions {
  /** How many pieces of work run at once, at least 1. */
  readonly streams: number
  /** The most that is sent in a second; undefined for no limit. */
  readonly bandwidthLimitBytes: number | undefined
}

export function createTransfers({ streams, bandwidthLimitBytes }: TransfersOptions): Transfers {
  let busy = 0
  const waiting: (() => void)[] = []
  // When everything that was let through is sent, at the limit's pace.
  let sentAtMs = 0
  let sentBytes = 0

  return {
    async run(work) {
      // Whoever ends hands its stream to the next in line: nobody can slip in between.
      if (busy < streams) busy += 1
      else await new Promise<void>((resolve) => waiting.push(resolve))
      try {
        return await work()
      } finally {
        const next = waiting.shift()
        if (next === undefined) busy -= 1
        else next()
      }
    },
    async pace(bytes, signal) {
      signal?.throwIfAborted()
      sentBytes += bytes
      if (bandwidthLimitBytes === undefined) return
      const nowMs = performance.now()
      const startMs = Math.max(nowMs, sentAtMs)
      sentAtMs = startMs + (bytes / bandwidthLimitBytes) * 1000
      if (startMs === nowMs) return
      await sleep(startMs - nowMs, undefined, signal === undefined ? {} : { signal })
    },
    sentBytes: () => sentBytes,
  }
}
