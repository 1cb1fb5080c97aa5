// Native code in worker threads: behind a gate that all threads of the program share.
//
// A thread that is ended while a native package is being loaded in it, or while koffi makes a call,
// aborts the whole process. zstd-frames.ts and lib/machine/posix.ts go through here, and
// lib/machine/threads.ts closes the gate before it ends workers. Throws what the native code does.

import { getEnvironmentData, isMainThread, setEnvironmentData } from 'node:worker_threads'

const KEY = 'two-phase-backup/native'

/** How many threads run native code, and how many times somebody is ending workers. */
export const RUNNING = 0
export const ENDING = 1

const MOMENT_MS = 5

/** Two counters that all threads share. */
export const gate = sharedGate()

/** The main thread makes it; workers inherit it. */
function sharedGate(): Int32Array {
  const there: unknown = getEnvironmentData(KEY)
  if (there instanceof SharedArrayBuffer) return new Int32Array(there)
  const made = new SharedArrayBuffer(2 * Int32Array.BYTES_PER_ELEMENT)
  // The type libraries do not know that what threads share can be handed on.
  setEnvironmentData(KEY, made as unknown as Parameters<typeof setEnvironmentData>[1])
  return new Int32Array(made)
}

/**
 * Runs native code that must not be cut short: loading a package, and what calls back into the
 * engine. In a worker it waits while workers are being ended, for this may be one of them.
 */
export function undisturbed<Value>(run: () => Value): Value {
  // Nobody ends the main thread, and it must not wait for itself.
  if (isMainThread) return run()
  for (;;) {
    // Ended between adding and subtracting, a thread would count as running for ever: so while
    // threads are being ended none adds.
    if (Atomics.load(gate, ENDING) === 0) {
      Atomics.add(gate, RUNNING, 1)
      if (Atomics.load(gate, ENDING) === 0) break
      Atomics.sub(gate, RUNNING, 1)
    }
    Atomics.wait(gate, ENDING, Atomics.load(gate, ENDING), MOMENT_MS)
  }
  try {
    return run()
  } finally {
    Atomics.sub(gate, RUNNING, 1)
  }
}
