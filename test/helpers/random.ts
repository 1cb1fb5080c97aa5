// Random input that can be had again: a failing run prints SEED=…, and SEED in the environment
// brings the same bytes back.
//
// The stream is the AES-256-CTR key stream under the SHA-256 of a seed, so `randomFrom` is the
// same everywhere and may
// stand behind fixed vectors.

import { Buffer } from 'node:buffer'
import { createCipheriv, createHash, randomBytes } from 'node:crypto'

export interface Random {
  bytes(length: number): Buffer
  /** From 0 up to, and without, `limit` (at most 2^48). */
  integer(limit: number): number
  pick<T>(items: readonly T[]): T
}

/** Always the same for the same seed. */
export function randomFrom(seed: string): Random {
  const key = createHash('sha256').update(seed).digest()
  const cipher = createCipheriv('aes-256-ctr', key, Buffer.alloc(16))
  const bytes = (length: number): Buffer => cipher.update(Buffer.alloc(length))
  const integer = (limit: number): number => bytes(6).readUIntLE(0, 6) % limit
  return { bytes, integer, pick: (items) => items[integer(items.length)]! }
}

let runSeed: string | undefined

/** Another one in every run, unless SEED says which; `name` keeps the tests of a file apart. */
export function randomOfRun(name: string): Random {
  runSeed ??= announced(process.env['SEED'] ?? randomBytes(6).toString('hex'))
  return randomFrom(`${runSeed} ${name}`)
}

function announced(seed: string): string {
  process.once('exit', (code) => {
    if (code !== 0) process.stdout.write(`SEED=${seed}\n`)
  })
  return seed
}
