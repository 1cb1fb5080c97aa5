// Reads the catalog of one export from its repository: manifest → index → shards → entries
// (docs/format.md §5–§9).
//
// Used by verify.ts and restore.ts. Every shard is compared with the digest that the signed
// manifest leads to before it is parsed. Keeps few shards in memory. Throws CATALOG_DAMAGED,
// BUNDLE_*, AGE_*, ZSTD_DAMAGED, IDENTITY_WRONG.

import type { Manifest } from '../model/manifest.ts'
import { type RawPath, comparePaths } from '../model/raw-path.ts'
import { type Shard, type ShardPlace, parseIndex, parseShard } from '../model/shard.ts'
import { bundleFile } from '../model/verification.ts'
import { CatalogParts } from './catalog-parts.ts'
import type { Repository } from './repository.ts'

export class ExportReader {
  readonly manifest: Manifest
  /** Where the machine's sets lie. */
  readonly machineDirectory: RawPath
  readonly #parts: CatalogParts
  #index: readonly ShardPlace[] | undefined

  constructor({
    repository,
    manifest,
    identities,
  }: {
    repository: Repository
    manifest: Manifest
    identities: readonly string[]
  }) {
    this.manifest = manifest
    this.machineDirectory = repository.target.localPath(`machines/${manifest.machine}`)
    this.#parts = new CatalogParts({ machineDirectory: this.machineDirectory, identities })
  }

  /** All shards, in catalog order. */
  index(): readonly ShardPlace[] {
    return (this.#index ??= parseIndex(this.#parts.read(this.manifest.index)))
  }

  shard(place: ShardPlace): Shard {
    return parseShard(this.#parts.read(place))
  }

  /** The shards that may hold `path` or something below it. */
  shardsOf(path: RawPath): readonly ShardPlace[] {
    const index = this.index()
    return index.filter(({ first }, i) => {
      const next = index[i + 1]?.first
      const beginsAfter =
        comparePaths(first, path) > 0 && path !== '' && !first.startsWith(`${path}/`)
      const endsBefore = next !== undefined && comparePaths(next, path) <= 0
      return !beginsAfter && !endsBefore
    })
  }

  /** A local path to read a bundle from, by bundle name. */
  bundlePath(name: string): RawPath {
    return `${this.machineDirectory}/${bundleFile(name)}`
  }

  close(): void {
    this.#parts.close()
  }
}
