// Writes the catalog of an export: entries → shards → a catalog bundle with only those that are new
// (docs/format.md §6, §7).
//
// Called by export.ts when every entry's place is known. Shards and the index that the repository
// has already are referred to, unless less than half of their bundle would still be needed: then
// they are written anew and the old bundle can go.

import { Buffer } from 'node:buffer'
import { digestOf } from '../format/chunker.ts'
import { encodePlainHeader, tarPadding } from '../format/tar.ts'
import type { Entry } from '../model/entry.ts'
import type { IndexPlace } from '../model/manifest.ts'
import { type RawPath, rawPathFromText } from '../model/raw-path.ts'
import {
  type BundlePlace,
  type ShardPlace,
  cutShards,
  encodeIndex,
  encodeShard,
  framesOf,
} from '../model/shard.ts'
import type { BundleFacts, BundleWriter } from './bundle-writer.ts'
import { prove } from './prove.ts'

/** A catalog as it was last written: what can be referred to. */
export interface LastCatalog {
  readonly index: IndexPlace
  readonly shards: readonly ShardPlace[]
}

export interface WrittenCatalog {
  readonly index: IndexPlace
  readonly shards: readonly ShardPlace[]
  /** What each shard holds: the state keeps it. */
  readonly shardBytes: readonly Buffer[]
  /**
   * The new catalog bundle, still under its partial name; undefined when nothing had to be written.
   */
  readonly bundle: BundleFacts | undefined
}

export interface CatalogOptions {
  readonly entries: readonly Entry[]
  readonly placeOf: (bundle: number) => BundlePlace
  readonly last: LastCatalog | undefined
  /** Whether a catalog bundle, by name, is on the target and whole; its tar's length then. */
  readonly usableTarBytes: (bundle: string) => number | undefined
  readonly writer: BundleWriter
  /** Where a catalog bundle is written, and its bundle name. */
  readonly bundle: { readonly partial: RawPath; readonly name: string }
}

/**
 * The bundle is proven on the medium. @throws what BundleWriter and prove() throw; the partial file
 * is gone then
 */
export function writeCatalog(options: CatalogOptions): WrittenCatalog {
  const runs = cutShards(options.entries).map(([start, end]) => {
    const entries = options.entries.slice(start, end)
    const bytes = encodeShard(entries, options.placeOf)
    return { bytes, digest: digestOf(bytes), entries: entries.length, first: entries[0]!.path }
  })
  const reusable = reusableShards(options, new Set(runs.map(({ digest }) => digest)))
  const member = new MemberWriter(options)
  try {
    const shards = runs.map(
      ({ bytes, digest, entries, first }): ShardPlace =>
        reusable.get(digest) ?? {
          digest,
          ...member.write(`shards/${digest}.jsonl`, bytes),
          entries,
          first,
        },
    )
    const indexBytes = encodeIndex(shards)
    const digest = digestOf(indexBytes)
    const { last } = options
    const kept = last?.index.digest === digest && isUsable(options, last.index.bundle)
    const index = kept
      ? last.index
      : { digest, ...member.write(`index/${digest}.jsonl`, indexBytes), shards: shards.length }
    const shardBytes = runs.map(({ bytes }) => bytes)
    if (!options.writer.isOpen) return { shards, shardBytes, index, bundle: undefined }
    const { file, ...bundle } = options.writer.finish()
    prove(file)
    return { shards, shardBytes, index, bundle }
  } catch (error) {
    options.writer.abort()
    throw error
  }
}

/**
 * The shards that can be referred to: wanted again, in a bundle that stays at least half needed.
 */
function reusableShards(
  options: CatalogOptions,
  wanted: ReadonlySet<string>,
): ReadonlyMap<string, ShardPlace> {
  const candidates = (options.last?.shards ?? []).filter(
    ({ digest, bundle }) => wanted.has(digest) && isUsable(options, bundle),
  )
  const needed = new Map<string, number>()
  for (const {
    bundle,
    tar: [, length],
  } of candidates) {
    needed.set(bundle, (needed.get(bundle) ?? 0) + length)
  }
  const index = options.last?.index
  if (index !== undefined && needed.has(index.bundle)) {
    needed.set(index.bundle, needed.get(index.bundle)! + index.tar[1])
  }
  return new Map(
    candidates
      .filter(
        ({ bundle }) => needed.get(bundle)! * 2 >= (options.usableTarBytes(bundle) ?? Infinity),
      )
      .map((shard) => [shard.digest, shard]),
  )
}

function isUsable({ usableTarBytes }: CatalogOptions, bundle: string): boolean {
  return usableTarBytes(bundle) !== undefined
}

type Place = Pick<ShardPlace, 'bundle' | 'tar' | 'frames'>

/**
 * Appends members to the catalog bundle, which it opens with the first one; a frame or more for
 * each.
 */
class MemberWriter {
  readonly #options: CatalogOptions

  constructor(options: CatalogOptions) {
    this.#options = options
  }

  write(path: string, bytes: Buffer): Place {
    const { writer, bundle } = this.#options
    if (!writer.isOpen) writer.open(bundle.partial)
    writer.append(encodePlainHeader({ path: rawPathFromText(path), sizeBytes: bytes.length }))
    const offset = writer.tarBytes
    writer.append(bytes)
    writer.append(Buffer.alloc(tarPadding(bytes.length)))
    writer.endFrame()
    const frames = framesOf(writer.frames, { offset, length: bytes.length })
    return { bundle: bundle.name, tar: [offset, bytes.length], frames }
  }
}
