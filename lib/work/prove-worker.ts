// The thread that waits for the medium while the pack workers go on: syncs and reads back one
// bundle after another.
//
// pack-pool.ts sends it what pack-worker.ts wrote; prove.ts does it.

import { parentPort } from 'node:worker_threads'
import { type PlainError, packError } from '../errors.ts'
import { type ReadBack, type WrittenFile, prove } from './prove.ts'

export interface ProveRequest {
  /** Comes back with the reply. */
  readonly bundle: number
  readonly file: WrittenFile
  /** Whether it waits to be sent elsewhere. */
  readonly isSpooled: boolean
}

export type ProveReply =
  | { readonly kind: 'proven'; readonly bundle: number; readonly readBack: ReadBack }
  | { readonly kind: 'failed'; readonly error: PlainError }

function answer({ bundle, file, isSpooled }: ProveRequest): ProveReply {
  try {
    return { kind: 'proven', bundle, readBack: prove(file, { isSpooled }) }
  } catch (error) {
    return { kind: 'failed', error: packError(error) }
  }
}

if (parentPort !== null) {
  const port = parentPort
  port.on('message', (request: ProveRequest) => port.postMessage(answer(request)))
}
