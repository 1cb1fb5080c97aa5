// What names a bundle for whoever reads it, in any thread, and how failures about it are worded.
//
// bundle-source.ts opens what an address names. Paths in a repository become addresses in the main
// thread, and addresses are handed to workers as text. Throws nothing.

import { BackupError } from '../errors.ts'
import { type RawPath, displayPath, pathFacts } from '../model/raw-path.ts'
import type { Target } from '../target/target.ts'

/**
 * What names a bundle for a reader, in any thread: an absolute path of this machine, or `network:`
 * and its path in the repository.
 */
export type BundleAddress = RawPath

const NETWORK = 'network:'

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
  return displayPath(networkPath(address) ?? address)
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
  const facts = pathFacts(networkPath(address) ?? address)
  return new BackupError('BUNDLE_DAMAGED', message, { facts })
}
