// Reads the catalog of one export from its repository: manifest → index → shards → entries
// (docs/format.md §5–§9).
//
// Used by verify.ts and restore.ts. Every shard is compared with the digest that the signed
// manifest leads to before it is parsed. Keeps few shards in memory. Throws CATALOG_DAMAGED,
// BUNDLE_*, AGE_*, ZSTD_DAMAGED, IDENTITY_WRONG.

import type { Buffer } from 'node:buffer'
import { BackupError } from '../errors.ts'
import { digestOf } from '../format/chunker.ts'
import type { FrameRange } from '../model/entry.ts'
import type { Manifest } from '../model/manifest.ts'
import { type RawPath, comparePaths } from '../model/raw-path.ts'
import { type Shard, type ShardPlace, parseIndex, parseShard } from '../model/shard.ts'
import { bundleFile } from '../model/verification.ts'
import { type BundleReader, openBundle } from './bundle-reader.ts'
import type { Repository } from './repository.ts'

/** Catalog bundles open at a time; an old export may have shards in many. */
const OPEN_BUNDLES = 8
/** An index of five million entries is 6 MB, a shard 100 KB. */
const MAX_CATALOG_PART_BYTES = 2 ** 30

export class ExportReader {
  readonly manifest: Manifest
  readonly #repository: Repository
  readonly #identities: readonly string[]
  readonly #open = new Map<string, BundleReader>()
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
    this.#repository = repository
    this.manifest = manifest
    this.#identities = identities
  }

  /** All shards, in catalog order. */
  index(): readonly ShardPlace[] {
    return (this.#index ??= parseIndex(this.#read(this.manifest.index)))
  }

  shard(place: ShardPlace): Shard {
    return parseShard(this.#read(place))
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
    return this.#repository.target.localPath(
      `machines/${this.manifest.machine}/${bundleFile(name)}`,
    )
  }

  close(): void {
    for (const reader of this.#open.values()) reader.close()
    this.#open.clear()
  }

  #read(place: {
    readonly digest: string
    readonly bundle: string
    readonly tar: readonly [number, number]
    readonly frames: readonly FrameRange[]
  }): Buffer {
    const [offset, length] = place.tar
    if (length > MAX_CATALOG_PART_BYTES) throw damaged(`a part of ${length} bytes`)
    const bytes = this.#reader(place.bundle).readTar(place.frames, { offset, length })
    if (digestOf(bytes) !== place.digest) throw damaged('a part that is not the signed one')
    return bytes
  }

  #reader(bundle: string): BundleReader {
    const open = this.#open.get(bundle)
    if (open !== undefined) return open
    if (this.#open.size >= OPEN_BUNDLES) {
      const [oldest, reader] = this.#open.entries().next().value!
      reader.close()
      this.#open.delete(oldest)
    }
    const reader = openBundle({ path: this.bundlePath(bundle), identities: this.#identities })
    this.#open.set(bundle, reader)
    return reader
  }
}

function damaged(what: string): BackupError {
  return new BackupError('CATALOG_DAMAGED', `the catalog has ${what}`, {
    hint: 'another export, or another target, may still have what you need',
  })
}
