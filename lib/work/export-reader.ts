// Reads the catalog of one export from its repository: manifest → index → shards → entries
// (docs/format.md §5–§9).
//
// Used by verify.ts and restore.ts. Every shard is compared with the digest that the signed
// manifest leads to before it is parsed. Keeps few shards in memory. Throws CATALOG_DAMAGED,
// BUNDLE_*, AGE_*, ZSTD_DAMAGED, IDENTITY_WRONG.

import type { Manifest } from '../model/manifest.ts'
import { type RawPath, comparePaths } from '../model/raw-path.ts'
import {
  type Shard,
  type ShardPlace,
  checkShardPlace,
  parseIndex,
  parseShard,
} from '../model/shard.ts'
import { bundleFile, bundlePath } from '../model/verification.ts'
import type { Target } from '../target/target.ts'
import { type BundleAddress, addressOf } from './bundle-address.ts'
import { CatalogParts } from './catalog-parts.ts'
import type { Repository } from './repository.ts'

/** Shards that are fetched together over a network: about 8 MiB. */
const SHARDS_AHEAD = 256

export class ExportReader {
  readonly manifest: Manifest
  /** Where the machine's sets lie. */
  readonly machineDirectory: BundleAddress
  readonly target: Target
  readonly #parts: CatalogParts
  #index: readonly ShardPlace[] | undefined
  /** What follows each place of the index. */
  readonly #next = new Map<ShardPlace, ShardPlace | undefined>()

  constructor({
    repository,
    manifest,
    identities,
    signal,
  }: {
    repository: Repository
    manifest: Manifest
    identities: readonly string[]
    /** Ends what is waited for over a network. */
    signal?: AbortSignal
  }) {
    const { target } = repository
    this.manifest = manifest
    this.target = target
    this.machineDirectory = addressOf(target, `machines/${manifest.machine}`)
    const sizes = new Map(manifest.bundles.map(({ name, sizeBytes }) => [name, sizeBytes]))
    this.#parts = new CatalogParts({
      machineDirectory: this.machineDirectory,
      identities,
      network:
        target.access === 'network'
          ? { target, sizeOf: (name) => sizes.get(name), signal }
          : undefined,
    })
  }

  /** All shards, in catalog order. */
  async index(): Promise<readonly ShardPlace[]> {
    if (this.#index !== undefined) return this.#index
    const index = parseIndex(await this.#parts.read(this.manifest.index))
    for (const [i, place] of index.entries()) this.#next.set(place, index[i + 1])
    this.#index = index
    return index
  }

  async shard(place: ShardPlace): Promise<Shard> {
    const shard = parseShard(await this.#parts.read(place))
    checkShardPlace(shard, { place, next: this.#next.get(place) })
    return shard
  }

  /** The same for many, a few in memory at a time. */
  async *shards(
    places: readonly ShardPlace[],
  ): AsyncGenerator<{ readonly place: ShardPlace; readonly shard: Shard }> {
    for (let at = 0; at < places.length; at += SHARDS_AHEAD) {
      const together = places.slice(at, at + SHARDS_AHEAD)
      await this.#parts.prepare(together)
      for (const place of together) yield { place, shard: await this.shard(place) }
    }
  }

  /** The shards that may hold `path` or something below it. */
  async shardsOf(path: RawPath): Promise<readonly ShardPlace[]> {
    const index = await this.index()
    return index.filter(({ first }, i) => {
      const next = index[i + 1]?.first
      const beginsAfter =
        comparePaths(first, path) > 0 && path !== '' && !first.startsWith(`${path}/`)
      const endsBefore = next !== undefined && comparePaths(next, path) <= 0
      return !beginsAfter && !endsBefore
    })
  }

  /** Where a bundle is read from, by its name. */
  bundleAddress(name: string): BundleAddress {
    return `${this.machineDirectory}/${bundleFile(name)}`
  }

  /** The lengths of all bundles, by path in the repository. */
  bundleSizes(): ReadonlyMap<string, number> {
    const { machine, bundles } = this.manifest
    return new Map(bundles.map(({ name, sizeBytes }) => [bundlePath(machine, name), sizeBytes]))
  }

  close(): void {
    this.#parts.close()
  }
}
