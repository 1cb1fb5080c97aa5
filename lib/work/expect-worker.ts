// The worker thread that turns catalogs into expectations: which bytes of which bundle have to have
// which digest.
//
// The first half of a verification: verify.ts sends runs of shards, merges the answers by bundle,
// and hands them to verify-worker.ts. A header range is expected to be what its entry encodes to, a
// piece to have its id. A shard that cannot be read is a problem, not the end.

import { Buffer } from 'node:buffer'
import { parentPort, workerData } from 'node:worker_threads'
import { BackupError, type PlainError, packError } from '../errors.ts'
import { DIGEST_BYTES, digestBytes } from '../format/chunker.ts'
import { type ShardPlace, checkShardPlace, parseShard } from '../model/shard.ts'
import type { BundleAddress } from './bundle-address.ts'
import { CatalogParts } from './catalog-parts.ts'
import { entryHeader } from './entry-header.ts'
import type { ExpectedRanges } from './verify-worker.ts'

export interface ExpectSettings {
  readonly machineDirectory: BundleAddress
  readonly identities: readonly string[]
}

export interface ExpectReply {
  /** By bundle name; in no order, and maybe with repetitions. */
  readonly ranges: readonly (readonly [bundle: string, ranges: ExpectedRanges])[]
  readonly problems: readonly PlainError[]
}

/** Ranges of one bundle, as they come. */
class Gathered {
  readonly #offsets: number[] = []
  readonly #lengths: number[] = []
  readonly #digests: Buffer[] = []

  add([offset, length]: readonly [number, number], digest: Buffer): void {
    this.#offsets.push(offset)
    this.#lengths.push(length)
    this.#digests.push(digest)
  }

  ranges(): ExpectedRanges {
    const digests = Buffer.allocUnsafeSlow(this.#digests.length * DIGEST_BYTES)
    this.#digests.forEach((digest, i) => digest.copy(digests, i * DIGEST_BYTES))
    return {
      offsets: Float64Array.from(this.#offsets),
      lengths: Float64Array.from(this.#lengths),
      digests,
    }
  }
}

function expectShards(places: readonly ShardPlace[], parts: CatalogParts): ExpectReply {
  const gathered = new Map<string, Gathered>()
  const problems: PlainError[] = []
  const of = (bundle: string): Gathered => {
    let found = gathered.get(bundle)
    if (found === undefined) gathered.set(bundle, (found = new Gathered()))
    return found
  }
  for (const [i, place] of places.entries()) {
    try {
      of(place.bundle).add(place.tar, Buffer.from(place.digest, 'hex'))
      const shard = parseShard(parts.readSync(place))
      checkShardPlace(shard, { place, next: places[i + 1] })
      expectShard(shard, of)
    } catch (error) {
      if (!(error instanceof BackupError)) throw error
      problems.push(packError(error))
    }
  }
  return { ranges: [...gathered].map(([bundle, one]) => [bundle, one.ranges()]), problems }
}

function expectShard(
  { bundles, entries }: ReturnType<typeof parseShard>,
  of: (bundle: string) => Gathered,
): void {
  const targets = bundles.map(({ name }) => of(name))
  for (const entry of entries) {
    if (entry.header !== undefined) {
      const [bundle, offset, length] = entry.header
      const header = entryHeader({ metadata: entry, chunk: entry.chunk })
      targets[bundle]!.add([offset, length], digestBytes(header))
    }
    for (const [id, bundle, offset, length] of entry.pieces ?? []) {
      targets[bundle]!.add([offset, length], Buffer.from(id, 'hex'))
    }
  }
}

// Last, for classes are not hoisted. Imported for its types alone, this file starts nothing.
if (parentPort !== null) {
  const port = parentPort
  const parts = new CatalogParts(workerData as ExpectSettings)
  port.on('message', (places: readonly ShardPlace[]) =>
    port.postMessage(expectShards(places, parts)),
  )
}
