// What the sources of a collection are, for the sanity gate (model/sanity.ts): their filesystems,
// and how much was collected of each.
//
// collect.ts calls this after sealing; the facts go into the collection's header, where the next
// collection finds them. Throws CATALOG_… by way of staging.ts.

import { filesystemId } from '../machine/filesystem-id.ts'
import { mountsBelow, readMounts } from '../machine/source-snapshot/mounts.ts'
import { isFrozen, isGood, sourceFacts } from '../model/collection.ts'
import type { Entry } from '../model/entry.ts'
import { isWithin, type RawPath } from '../model/raw-path.ts'
import type { SourceFacts } from '../model/sanity.ts'
import type { Source } from './sources.ts'
import { type CollectionInfo, type SetPlace, surveyCollections } from './staging.ts'

/** What each source is now, as the next collection will want to know. */
export async function readSourceFacts({
  sources,
  entries,
}: {
  sources: readonly Source[]
  entries: readonly Entry[]
}): Promise<readonly SourceFacts[]> {
  const mounts = readMounts()
  const facts: SourceFacts[] = []
  for (const { given, real, isDirectory } of sources) {
    const path = given.replace(/^\/+/, '')
    const filesystem = await filesystemId(real, mounts)
    const held = mountsBelow(real, mounts)
      .map(({ point }) =>
        `${path}${point.slice(real === '/' ? 0 : real.length)}`.replace(/^\/+/, ''),
      )
      .filter((point) => amountBelow(entries, point).entries > 1)
    facts.push({ path, isDirectory, filesystem, ...amountBelow(entries, path), mounts: held })
  }
  return facts
}

/**
 * What each source was in the last collection that can be believed: a good one where there is one
 * that has the source, else any that is not suspect. A set that was never complete is guarded, too.
 */
export function trustedFacts(place: SetPlace): readonly SourceFacts[] {
  const { collections } = surveyCollections(place)
  const known = new Map<RawPath, SourceFacts>()
  for (const believed of [isGood, (header: CollectionInfo) => !isFrozen(header)]) {
    for (const header of collections.filter(believed).reverse()) {
      for (const facts of sourceFacts(header))
        if (!known.has(facts.path)) known.set(facts.path, facts)
    }
  }
  return [...known.values()]
}

/** Entries at and below a path, and the bytes of the files among them. */
function amountBelow(
  entries: readonly Entry[],
  path: RawPath,
): { readonly entries: number; readonly bytes: number } {
  let count = 0
  let bytes = 0
  for (const entry of entries) {
    if (path !== '' && !isWithin({ path: entry.path, directory: path })) continue
    count += 1
    if (entry.type === 'file') bytes += entry.size ?? 0
  }
  return { entries: count, bytes }
}
