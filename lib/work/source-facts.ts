// What the sources of a collection are, for the sanity gate (model/sanity.ts): their filesystems,
// and how much was collected of each.
//
// collect.ts calls this after sealing; the facts go into the collection's header, where the next
// collection finds them. Throws CATALOG_… by way of staging.ts.

import { filesystemId } from '../machine/filesystem-id.ts'
import { readMounts } from '../machine/source-snapshot/mounts.ts'
import { isGood, sourceFacts } from '../model/collection.ts'
import type { Entry } from '../model/entry.ts'
import { isWithin, type RawPath } from '../model/raw-path.ts'
import type { SourceFacts } from '../model/sanity.ts'
import type { Source } from './sources.ts'
import { type SetPlace, surveyCollections } from './staging.ts'

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
    facts.push({ path, isDirectory, filesystem, ...amountBelow(entries, path) })
  }
  return facts
}

/** The sources of the last collection that was trusted; undefined where there is none. */
export function trustedFacts(place: SetPlace): readonly SourceFacts[] | undefined {
  const good = surveyCollections(place).collections.filter(isGood).at(-1)
  return good === undefined ? undefined : sourceFacts(good)
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
