// Which files of a repository were found damaged: what a verification, a drill or parity saw, until
// it is repaired or seen whole again.
//
// Kept in `.state/repositories/<id>/damaged.json`. export.ts does not refer to such bundles: what
// is needed of them is packed anew from staging. A cache: lost, the next verification finds it
// again. Throws STAGING_FULL, STAGING_FAILED, LOCKED; a damaged file counts as lost.

import { changeRecord, readRecord, type RecordPlace } from './repository-record.ts'

const FILE = 'damaged.json'

/** Paths in the repository, `machines/…`. */
export type KnownDamage = ReadonlySet<string>

/** What is known to be damaged. */
export function readKnownDamage(place: RecordPlace): KnownDamage {
  const value = readRecord(place, FILE)
  const paths: readonly unknown[] = Array.isArray(value) ? value : []
  return new Set(paths.filter((path): path is string => typeof path === 'string'))
}

/**
 * Adds what was found, takes away what was seen whole. Nothing is made where nothing is known of
 * the repository: no export refers to it then.
 * @throws BackupError STAGING_FULL, STAGING_FAILED, LOCKED
 */
export function noteDamage(
  place: RecordPlace,
  { damaged, whole }: { readonly damaged: Iterable<string>; readonly whole: Iterable<string> },
): void {
  changeRecord(place, FILE, () => {
    const before = readKnownDamage(place)
    const after = new Set(before)
    for (const path of whole) after.delete(path)
    for (const path of damaged) after.add(path)
    return { before: encode(before), after: encode(after) }
  })
}

function encode(paths: KnownDamage): string {
  return JSON.stringify([...paths].sort())
}
