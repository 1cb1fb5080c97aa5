// Ending worker threads without bringing down the program.
//
// Whoever ends workers does it here: the gate of lib/format/native.ts is closed first, and native
// code that is under way is waited for. Throws nothing.

import { setTimeout as sleep } from 'node:timers/promises'
import type { Worker } from 'node:worker_threads'
import { ENDING, gate, RUNNING } from '../format/native.ts'

const MOMENT_MS = 5

/** Ends workers, whatever they are at. */
export async function endWorkers(workers: readonly Worker[]): Promise<void> {
  Atomics.add(gate, ENDING, 1)
  try {
    while (Atomics.load(gate, RUNNING) > 0) await sleep(MOMENT_MS)
    await Promise.all(workers.map((worker) => worker.terminate()))
  } finally {
    Atomics.sub(gate, ENDING, 1)
    Atomics.notify(gate, ENDING)
  }
}
