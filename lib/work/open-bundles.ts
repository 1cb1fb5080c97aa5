// The bundles that one thread has open for reading: a few at a time, the one opened longest ago
// goes.
//
// Used by catalog-parts.ts, restore-worker.ts, browse-pieces.ts and recovery, which read here and
// there in many bundles. A bundle that the identities do not open is damaged (bundle-reader.ts,
// openBundle). Throws what that throws.

import { type BundleReader, openBundle } from './bundle-reader.ts'
import type { BundleAddress } from './bundle-address.ts'

/** Each keeps two frames of at most 4 MiB decompressed. */
const OPEN_BUNDLES = 4

export class OpenBundles {
  readonly #identities: readonly string[]
  readonly #open = new Map<BundleAddress, BundleReader>()

  constructor(identities: readonly string[]) {
    this.#identities = identities
  }

  reader(path: BundleAddress): BundleReader {
    const open = this.#open.get(path)
    if (open !== undefined) return open
    if (this.#open.size >= OPEN_BUNDLES) {
      const [oldest, reader] = this.#open.entries().next().value!
      reader.close()
      this.#open.delete(oldest)
    }
    const reader = openBundle({ path, identities: this.#identities })
    this.#open.set(path, reader)
    return reader
  }

  close(): void {
    for (const reader of this.#open.values()) reader.close()
    this.#open.clear()
  }
}
