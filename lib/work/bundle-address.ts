// What names a bundle for whoever reads it, in any thread, and how failures about it are worded.
//
// bundle-source.ts opens what an address names. Paths in a repository become addresses in the main
// thread, and addresses are handed to workers as text. Throws nothing.

import { BackupError } from '../errors.ts'
import { type RawPath, displayPath, pathFacts } from '../model/raw-path.ts'
import type { Target } from '../target/target.ts'

/**
 * What names a bundle for a reader, in any thread: an absolute path of this machine, `network:` and
 * its path in the repository, or `raw:` and where it lies on a medium without a filesystem.
 */
export type BundleAddress = RawPath

const NETWORK = 'network:'
const RAW = 'raw:'

/** A run of bytes of a medium. */
export interface Extent {
  readonly offset: number
  readonly length: number
}

/** The address of a bundle in pieces on a medium, by the medium's path. */
export function rawAddress(medium: RawPath, extents: readonly Extent[]): BundleAddress {
  const runs = extents.map(({ offset, length }) => `${offset}+${length}`)
  return `${RAW}${medium}@${runs.join(',')}`
}

/** The inverse; undefined for an address of another kind. */
export function rawPlace(
  address: BundleAddress,
): { readonly medium: RawPath; readonly extents: readonly Extent[] } | undefined {
  if (!address.startsWith(RAW)) return undefined
  const at = address.lastIndexOf('@')
  const extents = address
    .slice(at + 1)
    .split(',')
    .map((run) => {
      const [offset = 0, length = 0] = run.split('+').map(Number)
      return { offset, length }
    })
  return { medium: address.slice(RAW.length, at), extents }
}

/** What a person is shown: a path, or a medium and the byte where the bundle begins. */
export function shownPath(address: BundleAddress): RawPath {
  const raw = rawPlace(address)
  if (raw !== undefined) return `${raw.medium}@${raw.extents[0]?.offset ?? 0}`
  return networkPath(address) ?? address
}

/** The address of a file, or of a directory that addresses are made of by appending `/name`. */
export function addressOf(target: Target, path: string): BundleAddress {
  return target.access === 'files' ? target.localPath(path) : `${NETWORK}${path}`
}

/** The path in the repository of an address over the network; undefined for one of a file. */
export function networkPath(address: BundleAddress): string | undefined {
  return address.startsWith(NETWORK) ? address.slice(NETWORK.length) : undefined
}

/** For messages. */
export function displayAddress(address: BundleAddress): string {
  return displayPath(shownPath(address))
}

/** A bundle that is not there. */
export function missing(path: RawPath, cause?: unknown): BackupError {
  return new BackupError('BUNDLE_MISSING', `a bundle is missing: ${displayPath(path)}`, {
    hint: 'files with content in it cannot be read from this target; use another target',
    cause,
    facts: pathFacts(path),
  })
}

/** A bundle that is not what it should be. */
export function damaged(address: BundleAddress, what: string): BackupError {
  const message = `a bundle ${what}: ${displayAddress(address)}`
  const facts = pathFacts(shownPath(address))
  return new BackupError('BUNDLE_DAMAGED', message, { facts })
}
