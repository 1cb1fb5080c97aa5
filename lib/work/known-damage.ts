// Which files of a repository were found damaged: what a verification, a drill or parity saw, until
// it is repaired or seen whole again.
//
// Kept in `.state/repositories/<id>/damaged.json`. export.ts does not refer to such bundles: what
// is needed of them is packed anew from staging. A cache: lost, the next verification finds it
// again. Throws STAGING_FAILED; a damaged file counts as lost.

import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { writeDurably } from '../machine/durable-file.ts'
import { rawPathFromText } from '../model/raw-path.ts'
import { stagingError } from './staging.ts'
import { stateDirectory } from './state.ts'

/** Paths in the repository, `machines/…`. */
export type KnownDamage = ReadonlySet<string>

interface Place {
  readonly staging: string
  /** The repository's. */
  readonly id: string
}

/** What is known to be damaged. */
export function readKnownDamage(place: Place): KnownDamage {
  try {
    const value: unknown = JSON.parse(readFileSync(fileOf(place), 'utf8'))
    const paths = Array.isArray(value) ? value : []
    return new Set(paths.filter((path): path is string => typeof path === 'string'))
  } catch {
    return new Set()
  }
}

/**
 * Adds what was found, takes away what was seen whole. Nothing is made where nothing is known of
 * the repository: no export refers to it then.
 * @throws BackupError STAGING_FAILED
 */
export function noteDamage(
  place: Place,
  { damaged, whole }: { readonly damaged: Iterable<string>; readonly whole: Iterable<string> },
): void {
  if (!existsSync(stateDirectory(place))) return
  const before = readKnownDamage(place)
  const after = new Set(before)
  for (const path of whole) after.delete(path)
  for (const path of damaged) after.add(path)
  const text = JSON.stringify([...after].sort())
  if (text === JSON.stringify([...before].sort())) return
  try {
    const path = rawPathFromText(fileOf(place))
    writeDurably({ path, bytes: Buffer.from(`${text}\n`), mode: 0o600, replace: true })
  } catch (error) {
    throw stagingError({ error, staging: place.staging, doing: 'written' })
  }
}

function fileOf(place: Place): string {
  return join(stateDirectory(place), 'damaged.json')
}
