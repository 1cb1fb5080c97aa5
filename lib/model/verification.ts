// verification.sha256: which files an export needs, and their SHA-256 (docs/format.md §10).
// `sha256sum -c` reads it.
//
// encodeVerification and parseVerification are inverses. Reference counting needs nothing but these
// files, so a line that is not strictly ours makes the whole file damaged: nothing may be deleted
// on its account.

import { BackupError } from '../errors.ts'
import { parseBundleName } from './shard.ts'

export const VERIFICATION = 'verification.sha256'
export const VERIFICATION_SIGNATURE = 'verification.sha256.minisig'
export const MANIFEST = 'manifest.tar.zst.age'
const BUNDLE_SUFFIX = '.tar.zst.age'

export interface Verification {
  /** SHA-256 of every bundle the export needs, by bundle name. */
  readonly bundles: ReadonlyMap<string, string>
  readonly manifestSha256: string
}

interface Place {
  readonly set: string
  readonly stamp: string
}

/** The file of a bundle, relative to `machines/<machine>/`. */
export function bundleFile(name: string): string {
  return `${name}${BUNDLE_SUFFIX}`
}

/** Where a machine's bundle is in the repository, by bundle name. */
export function bundlePath(machine: string, name: string): string {
  return `machines/${machine}/${bundleFile(name)}`
}

export function encodeVerification(verification: Verification, { set, stamp }: Place): string {
  const lines = [...verification.bundles]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, sha256]) => `${sha256}  ${relativeName(name, { set, stamp })}${BUNDLE_SUFFIX}\n`)
  return `${lines.join('')}${verification.manifestSha256}  ${MANIFEST}\n`
}

function relativeName(name: string, { set, stamp }: Place): string {
  const [ofSet, ofStamp, file] = name.split('/')
  if (ofSet !== set) return `../../${name}`
  return ofStamp === stamp ? file! : `../${ofStamp}/${file}`
}

/** @throws BackupError BUNDLE_DAMAGED when anything in it is not ours */
export function parseVerification(text: string, { set, stamp }: Place): Verification {
  const bundles = new Map<string, string>()
  let manifestSha256: string | undefined
  if (!text.endsWith('\n')) throw damaged('is cut short')
  for (const line of text.slice(0, -1).split('\n')) {
    const match = /^([0-9a-f]{64}) {2}(\S+)$/.exec(line)
    if (match === null) throw damaged('has a line that is not ours')
    const [, sha256, path] = match
    if (manifestSha256 !== undefined) throw damaged('goes on after the manifest')
    if (path === MANIFEST) {
      manifestSha256 = sha256!
      continue
    }
    const name = absoluteName(path!, { set, stamp })
    if (bundles.has(name)) throw damaged('names a bundle twice')
    bundles.set(name, sha256!)
  }
  if (manifestSha256 === undefined) throw damaged('names no manifest')
  return { bundles, manifestSha256 }
}

function absoluteName(relative: string, { set, stamp }: Place): string {
  if (!relative.endsWith(BUNDLE_SUFFIX)) throw damaged('names a file that is no bundle')
  const name = relative.slice(0, -BUNDLE_SUFFIX.length)
  const absolute = name.startsWith('../../')
    ? name.slice(6)
    : name.startsWith('../')
      ? `${set}/${name.slice(3)}`
      : `${set}/${stamp}/${name}`
  if (relativeName(absolute, { set, stamp }) !== name)
    throw damaged('names a bundle by a way round')
  try {
    return parseBundleName(absolute)
  } catch (cause) {
    throw new BackupError('BUNDLE_DAMAGED', `${VERIFICATION} names a file that is no bundle`, {
      cause,
    })
  }
}

function damaged(what: string): BackupError {
  return new BackupError('BUNDLE_DAMAGED', `${VERIFICATION} ${what}`)
}
