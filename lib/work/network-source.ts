// Bundles that a worker thread reads over the network: it asks the main thread, which has the
// connection, and waits.
//
// So the loops of the workers stay synchronous (design §6): a request goes over a message port, the
// answer comes in shared memory, which is also the window that later reads are served from. The
// main thread serves as many workers at once as there are (serveNetwork, used by worker-pool.ts).
// Throws BUNDLE_MISSING, and what the target throws.

import { Buffer } from 'node:buffer'
import assert from 'node:assert/strict'
import { MessageChannel, type MessagePort, workerData } from 'node:worker_threads'
import { type PlainError, packError, unpackError } from '../errors.ts'
import type { Target } from '../target/target.ts'
import { missing } from './bundle-address.ts'

/** What a worker needs, in its workerData under `network`. */
export interface NetworkLink {
  readonly port: MessagePort
  readonly memory: SharedArrayBuffer
}

interface NetworkRequest {
  readonly path: string
  /** Undefined: how long the file is. */
  readonly range: { readonly offset: number; readonly length: number } | undefined
}

/** Words at the beginning of the memory: what came of the request, and how many bytes. */
const STATUS = 0
const LENGTH = 1
const HEAD_BYTES = 16
const WAITING = 0
const DONE = 1
const ABSENT = 2
const FAILED = 3

/** The most that is fetched at once: the window of a worker. */
const WINDOW_BYTES = 8 * 1024 * 1024
/** The least, for a request takes as long as so many bytes. */
const MIN_FETCH_BYTES = 64 * 1024

/** The link of this worker, made at its first read. */
let link:
  { readonly port: MessagePort; readonly words: Int32Array; readonly data: Buffer } | undefined
/** What the window holds: the run of a file that was fetched last. */
const window = { path: '', offset: 0, length: 0 }

/** A bundle on the network; for worker threads only. */
export class NetworkSource {
  readonly sizeBytes: number
  readonly #path: string
  #ahead = MIN_FETCH_BYTES

  constructor(path: string) {
    this.#path = path
    this.sizeBytes = askSize(path)
  }

  read(out: Buffer, position: number): number {
    const length = Math.min(out.length, this.sizeBytes - position)
    if (length <= 0) return 0
    if (!isInWindow(this.#path, position)) this.#fetch(position, length)
    return takeFromWindow(out.subarray(0, length), position)
  }

  /** The next bytes from `position`, as many as come at once; good until the next read. */
  block(position: number): Buffer {
    const length = Math.min(WINDOW_BYTES, this.sizeBytes - position)
    fetchWindow(this.#path, { offset: position, length })
    return linkOf().data.subarray(0, window.length)
  }

  close(): void {}

  /** Reading on where the window ended fetches more at a time, anything else only what is asked. */
  #fetch(position: number, length: number): void {
    const goesOn = window.path === this.#path && position === window.offset + window.length
    this.#ahead = goesOn ? Math.min(this.#ahead * 2, WINDOW_BYTES) : MIN_FETCH_BYTES
    const wanted = Math.min(Math.max(length, this.#ahead), WINDOW_BYTES)
    const offset = position
    fetchWindow(this.#path, { offset, length: Math.min(wanted, this.sizeBytes - offset) })
  }
}

function isInWindow(path: string, position: number): boolean {
  if (window.path !== path) return false
  return position >= window.offset && position < window.offset + window.length
}

function takeFromWindow(out: Buffer, position: number): number {
  const start = position - window.offset
  return linkOf().data.copy(out, 0, start, Math.min(start + out.length, window.length))
}

function askSize(path: string): number {
  ask({ path, range: undefined })
  window.path = ''
  return linkOf().data.readDoubleLE(0)
}

function fetchWindow(path: string, range: { offset: number; length: number }): void {
  window.path = ''
  const length = ask({ path, range })
  Object.assign(window, { path, offset: range.offset, length })
}

/** @returns how many bytes came. */
function ask(request: NetworkRequest): number {
  const { port, words, data } = linkOf()
  Atomics.store(words, STATUS, WAITING)
  port.postMessage(request)
  Atomics.wait(words, STATUS, WAITING)
  const length = Atomics.load(words, LENGTH)
  const status = Atomics.load(words, STATUS)
  if (status === DONE) return length
  if (status === ABSENT) throw missing(request.path)
  throw unpackError(JSON.parse(data.subarray(0, length).toString()) as PlainError)
}

function linkOf(): NonNullable<typeof link> {
  if (link !== undefined) return link
  const given = (workerData as { readonly network?: NetworkLink } | null)?.network
  assert(given !== undefined, 'a thread without a link reads over the network')
  const { port, memory } = given
  const data = Buffer.from(memory, HEAD_BYTES)
  return (link = { port, words: new Int32Array(memory, 0, 2), data })
}

/**
 * For the main thread: a link for one worker, served until the worker ends.
 * @param sizes what is known of the lengths of files, by their paths in the repository
 */
export function serveNetwork(
  target: Target,
  sizes: ReadonlyMap<string, number> = new Map(),
): { readonly network: NetworkLink; readonly transfer: readonly MessagePort[]; close(): void } {
  const memory = new SharedArrayBuffer(HEAD_BYTES + WINDOW_BYTES)
  const { port1: ours, port2: theirs } = new MessageChannel()
  const words = new Int32Array(memory, 0, 2)
  const data = Buffer.from(memory, HEAD_BYTES)
  const answer = (status: number, length: number): void => {
    Atomics.store(words, LENGTH, length)
    Atomics.store(words, STATUS, status)
    Atomics.notify(words, STATUS)
  }
  ours.on('message', async (request: NetworkRequest) => {
    try {
      const length = await serve(target, { request, sizes, data })
      answer(length === undefined ? ABSENT : DONE, length ?? 0)
    } catch (error) {
      answer(FAILED, data.write(JSON.stringify(packError(error))))
    }
  })
  // The worker keeps the program alive, not this.
  ours.unref()
  return { network: { port: theirs, memory }, transfer: [theirs], close: () => ours.close() }
}

/** Writes the answer into the memory. @returns its length, undefined where there is no such file */
async function serve(
  target: Target,
  of: {
    readonly request: NetworkRequest
    readonly sizes: ReadonlyMap<string, number>
    readonly data: Buffer
  },
): Promise<number | undefined> {
  const { request, sizes, data } = of
  const { path, range } = request
  if (range === undefined) {
    const size = sizes.get(path) ?? (await target.fileSize(path))
    return size === undefined ? undefined : data.writeDoubleLE(size, 0)
  }
  const bytes = await target.readRange(path, range)
  return bytes?.copy(data, 0)
}
