// Objects of a bucket with versions that somebody deleted or overwrote: found, and brought back.
//
// Without the right to remove versions, an attacker (or a mistake) can only hide: a deletion puts a
// marker on top, an upload a newer version. findHidden compares one listing of all versions with
// what is signed: an object counts as hidden where an export that was not pruned on record
// (prune-records.ts) needs it, or where it is one of our files that are written once. Which version
// is right is decided by what is signed, else the oldest is. restoreHidden uses the credentials of
// whoever may delete, and never removes data. Throws what a Target throws.

import type { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import { BackupError } from '../errors.ts'
import { MAX_MANIFEST_BYTES } from '../model/manifest.ts'
import { isValidName } from '../model/names.ts'
import type { Report } from '../model/report.ts'
import { counted } from '../model/period.ts'
import { parseStamp } from '../model/stamp.ts'
import { isAlwaysHot } from '../model/storage-class.ts'
import {
  bundlePath,
  MANIFEST,
  parseVerification,
  VERIFICATION,
  VERIFICATION_SIGNATURE,
} from '../model/verification.ts'
import type { Bucket } from '../target/bucket.ts'
import type { S3Version } from '../target/s3-calls.ts'
import type { Target } from '../target/target.ts'
import { inParallel } from './in-parallel.ts'
import { parsePruneRecord, pruneRecordDirectory } from './prune-records.ts'
import { RECOVERY_FILES } from './recovery-files.ts'
import type { Repository } from './repository.ts'
import { verifySigned } from './signing.ts'

/** Files at the top that are written once, and never again. */
const TOP_FILES = ['repository.json', ...RECOVERY_FILES.map(({ name }) => name)]

/** How much is read at a time to compare a whole object. */
const READ_BYTES = 16 * 2 ** 20

/** How our uploads name the SHA-256 of what they send. */
const SHA256_METADATA = 'sha256'

export interface HiddenObject {
  /** In the repository. */
  readonly path: string
  readonly how: 'deleted' | 'overwritten'
  /** When it was hidden. */
  readonly atMs: number
  /** The version that is right. */
  readonly good: S3Version
  /** The deletions right above it: without them it is there again. Empty: it has to be copied. */
  readonly markers: readonly string[]
  /** As it is signed; undefined for files that no signature names. */
  readonly sha256: string | undefined
  /** `<set>/<stamp>`: an export that needs it. */
  readonly neededBy: string | undefined
}

export interface HiddenFindings {
  /** Whether the bucket would show it: false without versions, or without the right to see them. */
  readonly isKnowable: boolean
  /** Why it is not, lower-case start, no period. */
  readonly why: string | undefined
  readonly hidden: readonly HiddenObject[]
  /** Exports whose signed list is gone in every version: what they need is not known. */
  readonly unjudged: readonly string[]
}

type Versions = ReadonlyMap<string, readonly S3Version[]>

interface Search {
  readonly bucket: Bucket
  /** The repository's. */
  readonly id: string
  readonly machine: string
  readonly publicKeys: readonly string[]
  /** Newest first, by path. */
  readonly versions: Versions
}

/**
 * What is hidden of a machine's files and of the repository's own. One listing where nothing is;
 * otherwise the signed lists of the machine's exports are read, too.
 */
export async function findHidden(
  { target, id }: Repository,
  {
    machine,
    publicKeys,
    signal,
  }: {
    readonly machine: string
    /** Whose signatures count. */
    readonly publicKeys: readonly string[]
    readonly signal?: AbortSignal | undefined
  },
): Promise<HiddenFindings> {
  const { bucket } = target
  if (bucket === undefined) return unknowable(`${target.place} is no bucket`)
  const versions = await listAll(bucket, machine)
  if (typeof versions === 'string') return unknowable(versions)
  const unversioned = [...versions.values()].filter(([latest]) => latest!.versionId === 'null')
  const isKnowable = unversioned.length === 0
  const why = isKnowable
    ? undefined
    : 'it keeps no versions, or did not when some of what is there was written'
  const suspects = [...versions].filter(([, list]) => isSuspicious(list)).map(([path]) => path)
  if (suspects.length === 0) return { isKnowable, why, hidden: [], unjudged: [] }
  const search = { bucket, id, machine, publicKeys, versions }
  const { expected, unjudged } = await gatherExpected(search)
  const found = await inParallel(
    suspects.filter((path) => expected.has(path)),
    async (path) => await judge(search, path, expected.get(path)!),
    { signal },
  )
  return { isKnowable, why, hidden: found.filter((one) => one !== undefined), unjudged }
}

function unknowable(why: string): HiddenFindings {
  return { isKnowable: false, why, hidden: [], unjudged: [] }
}

/** All versions of what is ours, or why they cannot be had. */
async function listAll(bucket: Bucket, machine: string): Promise<Versions | string> {
  const found = new Map<string, S3Version[]>()
  for (const prefix of [...TOP_FILES, `machines/${machine}/`]) {
    const listed = await listVersions(bucket, prefix)
    if (typeof listed === 'string') return listed
    for (const version of listed) {
      const path = bucket.pathOf(version.key)
      if (path === undefined || !(prefix.endsWith('/') || path === prefix)) continue
      const list = found.get(path)
      if (list === undefined) found.set(path, [version])
      else list.push(version)
    }
  }
  return found
}

async function listVersions(
  bucket: Bucket,
  prefix: string,
): Promise<readonly S3Version[] | string> {
  try {
    const listed = await bucket.calls.listVersions(bucket.keyOf(prefix))
    return listed === 'unsupported' ? 'the service keeps no versions' : listed
  } catch (error) {
    if (!(error instanceof BackupError) || error.code !== 'TARGET_DENIED') throw error
    return 'these credentials may not list versions: allow s3:ListBucketVersions'
  }
}

function isSuspicious([latest, ...older]: readonly S3Version[]): boolean {
  if (latest!.isDeleteMarker) return true
  return older.some((version) => version.isDeleteMarker || !isSame(version, latest!))
}

/** A repeated upload of the same bytes hides nothing. */
function isSame(a: S3Version, b: S3Version): boolean {
  return a.etag === b.etag && a.sizeBytes === b.sizeBytes
}

/** What an object has to be. */
interface Expected {
  readonly sha256: string | undefined
  /** The version that is right, where it is known already. */
  readonly good: S3Version | undefined
  readonly neededBy: string | undefined
}

/** What is signed, and what is written once: by path. */
async function gatherExpected(
  search: Search,
): Promise<{ readonly expected: ReadonlyMap<string, Expected>; readonly unjudged: string[] }> {
  const { machine, versions } = search
  const expected = new Map<string, Expected>()
  const unjudged: string[] = []
  const once = (path: string, good: S3Version | undefined): void => {
    if (good !== undefined) expected.set(path, { sha256: undefined, good, neededBy: undefined })
  }
  for (const path of TOP_FILES) once(path, oldest(versions.get(path)))
  const machineFile = `machines/${machine}/machine.json`
  const entry = await signedPair(search, { path: machineFile, file: `${machine}/machine.json` })
  once(machineFile, entry?.version ?? oldest(versions.get(machineFile)))
  const signatureFile = `${machineFile}.minisig`
  once(signatureFile, entry?.signatureVersion ?? oldest(versions.get(signatureFile)))
  const pruned = new Set<string>()
  for (const record of await recordsOf(search)) {
    once(record.path, record.version)
    once(`${record.path}.minisig`, record.signatureVersion)
    for (const name of record.exports) pruned.add(name)
  }
  for (const place of exportsEver(search)) {
    const { name, directory, isThere } = place
    if (pruned.has(name) && !isThere) continue
    const signed = await signedVerification(search, place)
    if (signed === undefined) {
      unjudged.push(name)
      once(`${directory}/${MANIFEST}`, oldest(versions.get(`${directory}/${MANIFEST}`)))
      continue
    }
    const { bundles, manifestSha256, version, signatureVersion } = signed
    const need = (path: string, what: Partial<Expected>): void => {
      expected.set(path, { sha256: undefined, good: undefined, ...what, neededBy: name })
    }
    need(`${directory}/${VERIFICATION}`, { good: version })
    need(`${directory}/${VERIFICATION_SIGNATURE}`, { good: signatureVersion })
    need(`${directory}/${MANIFEST}`, { sha256: manifestSha256 })
    for (const [bundle, sha256] of bundles) {
      need(bundlePath(machine, bundle), { sha256 })
    }
  }
  return { expected, unjudged }
}

function dataVersions(list: readonly S3Version[] | undefined): readonly S3Version[] {
  return (list ?? []).filter(({ isDeleteMarker }) => !isDeleteMarker)
}

function oldest(list: readonly S3Version[] | undefined): S3Version | undefined {
  return dataVersions(list).at(-1)
}

interface ExportEver {
  /** `<set>/<stamp>` */
  readonly name: string
  readonly set: string
  readonly stamp: string
  readonly directory: string
  /** Whether its manifest is there, and not hidden. */
  readonly isThere: boolean
}

/** Every export that has or had a manifest. */
function exportsEver({ machine, versions }: Search): readonly ExportEver[] {
  return [...versions].flatMap(([path, list]) => {
    const [, , set = '', stamp = '', file = '', ...below] = path.split('/')
    if (file !== MANIFEST || below.length > 0) return []
    if (!isValidName(set) || parseStamp(stamp) === undefined) return []
    if (dataVersions(list).length === 0) return []
    const directory = `machines/${machine}/${set}/${stamp}`
    const isThere = !list[0]!.isDeleteMarker
    return [{ name: `${set}/${stamp}`, set, stamp, directory, isThere }]
  })
}

interface SignedPair {
  readonly bytes: Buffer
  readonly version: S3Version
  readonly signature: string
  readonly signatureVersion: S3Version
}

/** The newest version of a file that has a version of its signature which fits. */
async function signedPair(
  { bucket, id, publicKeys, versions }: Search,
  {
    path,
    file,
    accept = () => true,
  }: {
    readonly path: string
    /** What the signature names. */
    readonly file: string
    readonly accept?: (bytes: Buffer) => boolean | Promise<boolean>
  },
): Promise<SignedPair | undefined> {
  const signatures = await inParallel(
    dataVersions(versions.get(`${path}.minisig`)),
    async (one) => {
      return { signatureVersion: one, signature: (await read(bucket, one))?.toString() ?? '' }
    },
  )
  for (const version of dataVersions(versions.get(path))) {
    const bytes = await read(bucket, version)
    if (bytes === undefined) continue
    for (const { signature, signatureVersion } of signatures) {
      try {
        await verifySigned({ bytes, signature, publicKeys, file, repository: id })
        if (await accept(bytes)) return { bytes, version, signature, signatureVersion }
      } catch (error) {
        if (!(error instanceof BackupError)) throw error
      }
    }
  }
  return undefined
}

/** Undefined for what is larger than any file that is read whole. */
async function read(bucket: Bucket, version: S3Version): Promise<Buffer | undefined> {
  if (version.sizeBytes > MAX_MANIFEST_BYTES) return undefined
  return await bucket.calls.get(version.key, { versionId: version.versionId })
}

async function recordsOf(
  search: Search,
): Promise<
  readonly (SignedPair & { readonly path: string; readonly exports: readonly string[] })[]
> {
  const { id, machine, publicKeys, versions } = search
  const directory = pruneRecordDirectory(machine)
  const paths = [...versions.keys()].filter((path) => {
    return path.startsWith(`${directory}/`) && path.endsWith('.json')
  })
  const found = await inParallel(paths, async (path) => {
    const stamp = path.slice(directory.length + 1, -'.json'.length)
    const pair = await signedPair(search, { path, file: `${machine}/pruned/${stamp}.json` })
    if (pair === undefined) return undefined
    const { bytes, signature } = pair
    const of = { machine, stamp, repository: id, publicKeys, signature }
    const record = await parsePruneRecord(bytes, of)
    return record === undefined ? undefined : { ...pair, path, exports: record.exports }
  })
  return found.filter((one) => one !== undefined)
}

/** An export's signed list: the newest that names one of the manifests there are. */
async function signedVerification(search: Search, { set, stamp, directory }: ExportEver) {
  const { bucket, machine, versions } = search
  const manifests = dataVersions(versions.get(`${directory}/${MANIFEST}`))
  const digests = new Map<S3Version, string>()
  const isOfManifest = async (bytes: Buffer): Promise<boolean> => {
    const { manifestSha256 } = parseVerification(bytes.toString(), { set, stamp })
    // One list alone belongs to the export, whatever became of the manifest.
    if (dataVersions(versions.get(`${directory}/${VERIFICATION}`)).length === 1) return true
    for (const manifest of manifests) {
      const digest = digests.get(manifest) ?? (await sha256Of(bucket, manifest))
      digests.set(manifest, digest)
      if (digest === manifestSha256) return true
    }
    return false
  }
  const path = `${directory}/${VERIFICATION}`
  const file = `${machine}/${set}/${stamp}/${VERIFICATION}`
  const pair = await signedPair(search, { path, file, accept: isOfManifest })
  if (pair === undefined) return undefined
  return { ...pair, ...parseVerification(pair.bytes.toString(), { set, stamp }) }
}

/** Of a version of an object, read whole in pieces. @throws BackupError TARGET_FAILED */
async function sha256Of(
  bucket: Bucket,
  { key, versionId, sizeBytes }: Pick<S3Version, 'key' | 'versionId' | 'sizeBytes'>,
): Promise<string> {
  const hash = createHash('sha256')
  for (let offset = 0; offset < sizeBytes; offset += READ_BYTES) {
    const length = Math.min(READ_BYTES, sizeBytes - offset)
    const bytes = await bucket.calls.get(key, { offset, length, versionId })
    if (bytes?.length !== length) {
      throw new BackupError('TARGET_FAILED', `${key} ended early while it was read`, {
        hint: 'try again; nothing was written',
        retry: 'later',
      })
    }
    hash.update(bytes)
  }
  return hash.digest('hex')
}

/** Undefined where what can be read is what has to be there. */
async function judge(
  { bucket, versions }: Search,
  path: string,
  { sha256, good: known, neededBy }: Expected,
): Promise<HiddenObject | undefined> {
  const list = versions.get(path)!
  const latest = list[0]!
  const good = known ?? (await rightVersion(bucket, list, sha256))
  if (good === undefined) return undefined
  if (!latest.isDeleteMarker) {
    if (isSame(latest, good) || (await hasDigest(bucket, latest, sha256))) return undefined
  }
  const at = list.indexOf(good)
  const above = list.slice(0, at)
  const isOnlyDeleted = above.every(({ isDeleteMarker }) => isDeleteMarker)
  return {
    path,
    how: latest.isDeleteMarker ? 'deleted' : 'overwritten',
    // The oldest of what lies above it.
    atMs: above.at(-1)?.lastModifiedMs ?? latest.lastModifiedMs,
    good,
    markers: isOnlyDeleted ? above.map(({ versionId }) => versionId) : [],
    sha256,
    neededBy,
  }
}

/** Of several the oldest that says it is the signed one; else the oldest: we write once. */
async function rightVersion(
  bucket: Bucket,
  list: readonly S3Version[],
  sha256: string | undefined,
): Promise<S3Version | undefined> {
  const candidates = [...dataVersions(list)].reverse()
  if (candidates.length < 2 || sha256 === undefined) return candidates[0]
  for (const version of candidates) {
    const head = await bucket.calls.head(version.key, version.versionId)
    if (head?.metadata[SHA256_METADATA] === sha256) return version
  }
  return candidates[0]
}

/** Metadata alone proves nothing: whoever overwrote the object wrote that as well. */
async function hasDigest(
  bucket: Bucket,
  version: S3Version,
  sha256: string | undefined,
): Promise<boolean> {
  if (sha256 === undefined || !isAlwaysHot(version.storageClass)) return false
  const head = await bucket.calls.head(version.key, version.versionId)
  if (head?.metadata[SHA256_METADATA] !== sha256) return false
  return (await sha256Of(bucket, version)) === sha256
}

/**
 * The version to read of an object that is deleted, or overwritten where `sha256` is given and the
 * newest version does not claim it; undefined where there is nothing to read but the newest, or
 * nothing at all. The caller compares what it reads with what is signed, as always.
 */
export async function readableVersion(
  bucket: Bucket,
  path: string,
  { sha256 }: { readonly sha256?: string | undefined } = {},
): Promise<string | undefined> {
  const listed = await listVersions(bucket, path)
  if (typeof listed === 'string') return undefined
  const list = listed.filter(({ key }) => key === bucket.keyOf(path))
  const [latest] = list
  if (latest === undefined || (!latest.isDeleteMarker && sha256 === undefined)) return undefined
  const good = await rightVersion(bucket, list, sha256)
  return good?.versionId === latest.versionId ? undefined : good?.versionId
}

/**
 * Has what somebody overwrote read in the version that is signed, for the bundles of an export. One
 * listing where nothing is. Whoever reads compares it with what is signed, as always.
 * @param directory where all of them are
 */
export async function preferSigned(
  bucket: Bucket,
  { directory, bundles }: { directory: string; bundles: ReadonlyMap<string, string> },
): Promise<void> {
  const listed = await listVersions(bucket, `${directory}/`)
  if (typeof listed === 'string') return
  const lists = new Map<string, S3Version[]>()
  for (const version of listed) {
    const path = bucket.pathOf(version.key) ?? ''
    if (bundles.has(path)) lists.set(path, [...(lists.get(path) ?? []), version])
  }
  await inParallel([...lists], async ([path, list]) => {
    const sha256 = bundles.get(path)
    if (list.length < 2) return
    const good = await rightVersion(bucket, list, sha256)
    if (good === undefined || good.versionId === list[0]!.versionId) return
    bucket.preferVersion(path, good)
  })
}

/** One line for people. */
export function describeHidden({ path, how, atMs, neededBy }: HiddenObject): string {
  const at = new Date(atMs).toISOString().slice(0, 16).replace('T', ' ')
  const who = neededBy === undefined ? '' : `, needed by ${neededBy}`
  return `${path} was ${how} at ${at} UTC${who}`
}

/** What was read from an older version, and has to be told; undefined where nothing was. */
export function olderReadsError({ name, bucket }: Target): BackupError | undefined {
  const paths = bucket?.olderReads() ?? []
  if (paths.length === 0) return undefined
  const what = `${counted(paths.length, 'object')} of ${name} ${paths.length === 1 ? 'is' : 'are'}`
  const named = paths.slice(0, 3).join(', ')
  const message = `${what} deleted or overwritten, and read from older versions: ${named}`
  return new BackupError('OBJECT_HIDDEN', message, {
    hint: `\`backup repair --target ${name}\` brings them back; find out who did it`,
    facts: { target: name, paths },
  })
}

/** What a verification ends with; undefined where nothing is hidden. */
export function hiddenError(
  { target }: Repository,
  { hidden, unjudged }: HiddenFindings,
): BackupError | undefined {
  const [first] = hidden
  if (first === undefined && unjudged.length === 0) return undefined
  const what =
    first === undefined
      ? `the signed lists of ${unjudged.join(', ')} are gone in every version`
      : hidden.length === 1
        ? describeHidden(first)
        : `${hidden.length} objects were deleted or overwritten, such as ${first.path}`
  return new BackupError('OBJECT_HIDDEN', `${target.place}: ${what}`, {
    hint:
      'their older versions are there: with admin credentials '
      + `\`backup repair --target ${target.name}\` brings them back; then find out who did it`,
    facts: { hidden: hidden.map(({ path, how, atMs }) => ({ path, how, atMs })), unjudged },
  })
}

export interface RestoreHiddenOutcome {
  /** Paths; in a dry run those that would be brought back. */
  readonly restored: readonly string[]
  readonly failed: readonly { readonly path: string; readonly error: BackupError }[]
}

/**
 * Brings objects back: takes away the deletions above the right version, or copies that on top, and
 * proves that it is what is read now. No data is removed: what somebody wrote on top stays below.
 */
export async function restoreHidden(
  bucket: Bucket,
  hidden: readonly HiddenObject[],
  {
    isDryRun,
    report,
    signal,
  }: {
    readonly isDryRun: boolean
    readonly report: Report
    readonly signal?: AbortSignal | undefined
  },
): Promise<RestoreHiddenOutcome> {
  if (isDryRun) return { restored: hidden.map(({ path }) => path), failed: [] }
  const errors = await inParallel(hidden, async (one) => await bringBack(bucket, one), { signal })
  const restored: string[] = []
  const failed: { path: string; error: BackupError }[] = []
  for (const [index, { path }] of hidden.entries()) {
    const error = errors[index]
    if (error === undefined) restored.push(path)
    else {
      failed.push({ path, error })
      const message = `${path} stays hidden: ${error.message}`
      report({ kind: 'notice', level: 'warning', code: 'STILL_HIDDEN', message, facts: { path } })
    }
  }
  return { restored, failed }
}

async function bringBack(bucket: Bucket, hidden: HiddenObject): Promise<BackupError | undefined> {
  const { good, markers } = hidden
  const { key, versionId, storageClass } = good
  try {
    if (markers.length > 0) {
      for (const marker of markers) await bucket.adminCalls.remove(key, marker)
    } else {
      await bucket.adminCalls.copy({ from: key, versionId, to: key, storageClass })
    }
    if (await isBack(bucket, hidden)) return undefined
    return new BackupError('READ_BACK', `what is read now is not the right version of ${key}`, {
      hint: 'somebody may be writing at the same time: withdraw their credentials, and try again',
    })
  } catch (error) {
    if (!(error instanceof BackupError) || error.code === 'INTERRUPTED') throw error
    if (error.code !== 'TARGET_DENIED') return error
    const needed =
      markers.length > 0 ? 's3:DeleteObjectVersion' : 's3:GetObjectVersion and s3:PutObject'
    return new BackupError('TARGET_DENIED', error.message, {
      hint: `it takes admin_profile with ${needed}; nothing was changed`,
      facts: error.facts,
      cause: error,
    })
  }
}

async function isBack(bucket: Bucket, { good, markers, sha256 }: HiddenObject): Promise<boolean> {
  const { key, sizeBytes } = good
  const now = await bucket.calls.head(key)
  if (now === undefined || now.sizeBytes !== sizeBytes) return false
  // A version never changes: that it is the newest again is all there is to prove.
  if (markers.length > 0) return now.versionId === good.versionId
  if (!isAlwaysHot(good.storageClass)) {
    return sha256 === undefined || now.metadata[SHA256_METADATA] === sha256
  }
  const copied = { key, versionId: now.versionId ?? 'null', sizeBytes }
  return (await sha256Of(bucket, copied)) === (sha256 ?? (await sha256Of(bucket, good)))
}
