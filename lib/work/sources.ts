// The sources of a set, looked at before anything is done: what they are, and which are not there.
//
// Paths stay as the user gave them, only without `.`, `..` and trailing slashes, because that is
// how they appear in a collection; the real path tells where they lie. Used by collect.ts. Throws
// nothing for a source that cannot be read: that is an outcome.

import { accessSync, constants, lstatSync, realpathSync, statSync } from 'node:fs'
import { posix } from 'node:path'
import { systemCode } from '../errors.ts'
import type { Configuration } from '../machine/config.ts'
import { isBelow } from '../machine/source-snapshot/mounts.ts'
import type { MissingPath } from '../model/collection.ts'
import { type RawPath, rawPathFromText, rawPathToBytes } from '../model/raw-path.ts'
import { stagingError } from './staging.ts'

export interface Source {
  /** Absolute, without a trailing slash; `/` for the root. */
  readonly given: RawPath
  /** The same behind its symbolic links. */
  readonly real: RawPath
  readonly isDirectory: boolean
  /**
   * A link to something that is no directory: its target's content is collected under the link's
   * path.
   */
  readonly isLinkToFile: boolean
}

export interface Sources {
  readonly readable: readonly Source[]
  readonly missing: readonly MissingPath[]
}

const REASONS: Readonly<Record<string, string>> = {
  ENOENT: 'no such file or directory',
  ENOTDIR: 'no such file or directory',
  EACCES: 'permission denied',
  EPERM: 'permission denied',
  ELOOP: 'too many levels of symbolic links',
  EIO: 'input/output error',
}

/** `staging` is the real path of staging: nothing in it is a source. */
export function inspectSources({
  texts,
  staging,
}: {
  texts: readonly string[]
  staging: RawPath
}): Sources {
  const readable: Source[] = []
  const missing: MissingPath[] = []
  const paths = new Set(
    texts.map((text) => posix.normalize(rawPathFromText(text)).replace(/(?<=.)\/+$/, '')),
  )
  for (const given of paths) {
    const source = inspect(given, staging)
    if (typeof source === 'string') missing.push({ path: given.replace(/^\/+/, ''), why: source })
    else readable.push(source)
  }
  return { readable, missing }
}

/** Why not, where it cannot be read. */
function inspect(given: RawPath, staging: RawPath): Source | string {
  const bytes = rawPathToBytes(given)
  try {
    const isLink = lstatSync(bytes).isSymbolicLink()
    const isDirectory = statSync(bytes).isDirectory()
    accessSync(bytes, constants.R_OK | (isDirectory ? constants.X_OK : 0))
    const real = realPath(given)
    if (isBelow({ path: real, directory: staging })) return 'it lies in staging'
    return { given, real, isDirectory, isLinkToFile: isLink && !isDirectory }
  } catch (error) {
    const code = systemCode(error)
    if (code === undefined) throw error
    return REASONS[code] ?? code
  }
}

export function realPath(path: RawPath): RawPath {
  return realpathSync.native(rawPathToBytes(path), { encoding: 'latin1' })
}

/** Our own places (staging, targets) as a collection would have them, where a source holds them. */
export function placesWithin({
  sources,
  places,
}: {
  sources: readonly Source[]
  places: readonly RawPath[]
}): RawPath[] {
  return places.flatMap((place) =>
    sources
      .filter(({ real }) => isBelow({ path: place, directory: real }))
      .map(({ given, real }) => {
        const below = place.slice(real === '/' ? 0 : real.length)
        return `${given === '/' ? '' : given}${below}`
      }),
  )
}

/** Staging and targets: what this program writes is never collected, wherever a source holds it. */
export function ownPlaces({ staging, targets }: Configuration): readonly RawPath[] {
  return [realStaging(staging), ...targets.map(({ path }) => realOrGiven(path))]
}

function realOrGiven(path: string): RawPath {
  try {
    return realPath(rawPathFromText(path))
  } catch {
    // Not there, so there is nothing of it to leave out.
    return rawPathFromText(path)
  }
}

/** Staging's real path, or the configured one as long as it is not there. */
export function realStaging(staging: string): RawPath {
  try {
    return realPath(rawPathFromText(staging))
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return rawPathFromText(staging)
    throw stagingError({ error, staging, doing: 'read' })
  }
}
