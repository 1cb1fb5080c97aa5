// Reads shards and indexes out of catalog bundles, and lets none through that is not the signed
// one.
//
// Every part is compared with the digest that leads to it from the signed manifest, before anybody
// parses it (docs/format.md §6, §7). Used by export-reader.ts and expect-worker.ts. Throws
// CATALOG_DAMAGED, BUNDLE_*, AGE_*, ZSTD_DAMAGED.

import type { Buffer } from 'node:buffer'
import { BackupError } from '../errors.ts'
import { digestOf } from '../format/chunker.ts'
import type { FrameRange } from '../model/entry.ts'
import type { RawPath } from '../model/raw-path.ts'
import { bundleFile } from '../model/verification.ts'
import { OpenBundles } from './open-bundles.ts'

/** An index of five million entries is 6 MB, a shard 100 KB. */
const MAX_CATALOG_PART_BYTES = 2 ** 30

/** Where a shard or an index is, and what it has to be. */
export interface CatalogPlace {
  readonly digest: string
  readonly bundle: string
  readonly tar: readonly [offset: number, length: number]
  readonly frames: readonly FrameRange[]
}

export class CatalogParts {
  readonly #machineDirectory: RawPath
  readonly #bundles: OpenBundles

  constructor(of: { readonly machineDirectory: RawPath; readonly identities: readonly string[] }) {
    this.#machineDirectory = of.machineDirectory
    this.#bundles = new OpenBundles(of.identities)
  }

  /** The bytes of one part, which have its digest; good until the next call. */
  read(place: CatalogPlace): Buffer {
    const [offset, length] = place.tar
    if (length > MAX_CATALOG_PART_BYTES) throw damaged(`a part of ${length} bytes`)
    const bytes = this.#bundles
      .reader(this.#path(place.bundle))
      .readTar(place.frames, { offset, length })
    if (digestOf(bytes) !== place.digest) throw damaged('a part that is not the signed one')
    return bytes
  }

  #path(bundle: string): RawPath {
    return `${this.#machineDirectory}/${bundleFile(bundle)}`
  }

  close(): void {
    this.#bundles.close()
  }
}

function damaged(what: string): BackupError {
  return new BackupError('CATALOG_DAMAGED', `the catalog has ${what}`, {
    hint: 'another export, or another target, may still have what you need',
  })
}
