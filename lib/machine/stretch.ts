// Stretches a passphrase with argon2id in a thread of its own.
//
// It takes 256 MiB, which WebAssembly never gives back while its thread lives: this way the memory
// is free again before the work begins (docs/format.md §11). stretch-worker.ts does it; the
// passphrase reaches it in memory only. Throws what libsodium throws.

import { Buffer } from 'node:buffer'
import { Worker } from 'node:worker_threads'
import { endWorkers } from './threads.ts'

export interface Stretch {
  readonly passphrase: string
  /** 16 bytes. */
  readonly salt: Uint8Array
}

/** 32 bytes; takes about a second. */
export async function argon2idApart(of: Stretch): Promise<Buffer> {
  const worker = new Worker(new URL('./stretch-worker.js', import.meta.url), { workerData: of })
  try {
    return await new Promise<Buffer>((resolve, reject) => {
      worker.once('message', (key: Uint8Array) => resolve(Buffer.from(key)))
      worker.once('error', reject)
    })
  } finally {
    await endWorkers([worker])
  }
}
