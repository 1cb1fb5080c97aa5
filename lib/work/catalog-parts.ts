// Reads shards and indexes out of catalog bundles, and lets none through that is not the signed
// one.
//
// Every part is compared with the digest that leads to it from the signed manifest, before anybody
// parses it (docs/format.md §6, §7). Used by export-reader.ts and expect-worker.ts. Throws
// CATALOG_DAMAGED, BUNDLE_*, AGE_*, ZSTD_DAMAGED.

import { type Buffer, constants } from 'node:buffer'
import { BackupError } from '../errors.ts'
import { digestOf } from '../format/chunker.ts'
import type { FrameRange } from '../model/entry.ts'
import { bundleFile } from '../model/verification.ts'
import type { Target } from '../target/target.ts'
import { type BundleReader, openBundle } from './bundle-reader.ts'
import { type BundleAddress, networkPath } from './bundle-address.ts'
import { FetchedSource } from './bundle-source.ts'
import { unlessAborted } from './interruption.ts'
import { OpenBundles } from './open-bundles.ts'

/** An index of five million entries is 6 MB, a shard 100 KB. It becomes text, which has a limit. */
const MAX_CATALOG_PART_BYTES = constants.MAX_STRING_LENGTH

/** Where a shard or an index is, and what it has to be. */
export interface CatalogPlace {
  readonly digest: string
  readonly bundle: string
  readonly tar: readonly [offset: number, length: number]
  readonly frames: readonly FrameRange[]
}

/** Bundles that the main thread reads over the network. */
export interface CatalogNetwork {
  readonly target: Target
  /** What is known of the lengths of bundles, by name. */
  readonly sizeOf: (bundle: string) => number | undefined
  readonly signal?: AbortSignal | undefined
}

interface FetchedBundle {
  readonly source: FetchedSource
  readonly reader: BundleReader
}

export class CatalogParts {
  readonly #machineDirectory: BundleAddress
  readonly #identities: readonly string[]
  readonly #bundles: OpenBundles
  readonly #network: CatalogNetwork | undefined
  readonly #fetched = new Map<string, FetchedBundle>()

  /** @param of.network given by the main thread, which must not wait for itself */
  constructor(of: {
    readonly machineDirectory: BundleAddress
    readonly identities: readonly string[]
    readonly network?: CatalogNetwork | undefined
  }) {
    this.#machineDirectory = of.machineDirectory
    this.#identities = of.identities
    this.#bundles = new OpenBundles(of.identities)
    this.#network = of.network
  }

  /** Brings many parts at once, where they come over the network: read() then finds them there. */
  async prepare(places: readonly CatalogPlace[]): Promise<void> {
    if (this.#network === undefined) return
    await unlessAborted(this.#network.signal, this.#fetch(places, this.#network))
  }

  async #fetch(places: readonly CatalogPlace[], network: CatalogNetwork): Promise<void> {
    const byBundle = new Map<string, CatalogPlace[]>()
    for (const place of places) {
      const there = byBundle.get(place.bundle)
      if (there === undefined) byBundle.set(place.bundle, [place])
      else there.push(place)
    }
    for (const [bundle, ofBundle] of byBundle) {
      const { source, reader } = await this.#fetchedBundle(bundle, network)
      const frames = ofBundle.flatMap((place) => place.frames)
      await source.fetch(frames.map((frame) => reader.bytesOf(frame)))
    }
  }

  /** The bytes of one part, which have its digest; good until the next call. */
  async read(place: CatalogPlace): Promise<Buffer> {
    if (this.#network === undefined) return this.readSync(place)
    await this.prepare([place])
    const { reader } = await this.#fetchedBundle(place.bundle, this.#network)
    return readPart(reader, place)
  }

  /** The same, where the bundles are files, or this is a worker. */
  readSync(place: CatalogPlace): Buffer {
    return readPart(this.#bundles.reader(this.#address(place.bundle)), place)
  }

  async #fetchedBundle(bundle: string, network: CatalogNetwork): Promise<FetchedBundle> {
    const there = this.#fetched.get(bundle)
    if (there !== undefined) return there
    const address = this.#address(bundle)
    const path = networkPath(address)!
    const sizeBytes = network.sizeOf(bundle)
    const source = await FetchedSource.open(network.target, { path, sizeBytes })
    const reader = openBundle({ path: address, identities: this.#identities, source })
    const made = { source, reader }
    this.#fetched.set(bundle, made)
    return made
  }

  #address(bundle: string): BundleAddress {
    return `${this.#machineDirectory}/${bundleFile(bundle)}`
  }

  close(): void {
    this.#bundles.close()
    this.#fetched.clear()
  }
}

function readPart(reader: BundleReader, place: CatalogPlace): Buffer {
  const [offset, length] = place.tar
  if (length > MAX_CATALOG_PART_BYTES) throw damaged(`a part of ${length} bytes`)
  const bytes = reader.readTar(place.frames, { offset, length })
  if (digestOf(bytes) !== place.digest) throw damaged('a part that is not the signed one')
  return bytes
}

function damaged(what: string): BackupError {
  return new BackupError('CATALOG_DAMAGED', `the catalog has ${what}`, {
    hint: 'another export, or another target, may still have what you need',
  })
}
