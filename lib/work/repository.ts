// What we keep on one target: repository.json, this machine's place in it, and the exports there
// (docs/format.md §2).
//
// openRepository finds or makes the repository; listExports tells which exports exist, by their
// manifests alone (invariant 1); readVerification and readManifest read what they say, signatures
// first. Throws TARGET_FOREIGN, TARGET_FORMAT, TARGET_ABSENT, SIGNATURE_WRONG, SIGNER_UNKNOWN,
// MANIFEST_DAMAGED, BUNDLE_DAMAGED.

import { Buffer } from 'node:buffer'
import { createHash, randomBytes } from 'node:crypto'
import { BackupError } from '../errors.ts'
import { parseHeader, tarPadding } from '../format/tar.ts'
import {
  MAX_MANIFEST_BYTES,
  type Manifest,
  checkFormat,
  exportName,
  parseManifest,
} from '../model/manifest.ts'
import { isValidName } from '../model/names.ts'
import { formatStamp, parseStamp } from '../model/stamp.ts'
import {
  MANIFEST,
  VERIFICATION,
  VERIFICATION_SIGNATURE,
  type Verification,
  parseVerification,
} from '../model/verification.ts'
import type { Target } from '../target/target.ts'
import { BundleReader } from './bundle-reader.ts'
import { MemorySource } from './bundle-source.ts'
import { RECOVERY_FILES } from './recovery-files.ts'
import { type Signer, verifySigned } from './signing.ts'

const REPOSITORY = 'repository.json'
/** repository.json, machine.json and signatures are a few hundred bytes. */
const MAX_SMALL_FILE_BYTES = 64 * 1024
/** A million bundles, named with long paths. */
const MAX_VERIFICATION_BYTES = 256 * 1024 * 1024

export interface Repository {
  readonly target: Target
  readonly id: string
  readonly created: string
}

/** One export, named. */
export interface ExportPlace {
  readonly machine: string
  readonly set: string
  readonly stamp: string
}

/** What lies in a stamp's directory: an export, or what is left of one. */
export interface StampDirectory extends ExportPlace {
  readonly exists: boolean
  /** Sizes of the files that are ours, by name. */
  readonly files: ReadonlyMap<string, number>
}

/**
 * The repository on a target.
 * @returns undefined where there is none and the directory is empty
 * @throws BackupError TARGET_FOREIGN where something else lies there, TARGET_FORMAT for a newer
 * format
 */
export async function findRepository(target: Target): Promise<Repository | undefined> {
  const bytes = await target.read(REPOSITORY, MAX_SMALL_FILE_BYTES)
  if (bytes !== undefined) return parseRepository(target, bytes)
  const files = await target.list('')
  const strangers = (files ?? []).filter(({ name }) => !IGNORED.has(name) && !isUnfinished(name))
  if (strangers.length === 0) return undefined
  throw new BackupError(
    'TARGET_FOREIGN',
    `${target.place} holds something else, and no repository`,
    {
      hint: `name an empty directory in it, say ${target.place}/backups; nothing was written`,
      facts: { found: strangers.slice(0, 5).map(({ name }) => name) },
    },
  )
}

/** What file systems and systems put on an empty drive by themselves. */
const IGNORED: ReadonlySet<string> = new Set([
  'lost+found',
  '.Trashes',
  '.Spotlight-V100',
  '.fseventsd',
  'System Volume Information',
  // What a probe of a bucket could not remove.
  '.probe',
])

/** What a run that was killed while it made the repository leaves. */
function isUnfinished(name: string): boolean {
  return (
    RECOVERY_FILES.some(({ name: ours }) => name === ours)
    || name === `${REPOSITORY}.partial`
    // Of a probe of the drive's capacity that was killed.
    || /^\.backup-capacity-\d+$/.test(name)
    || RECOVERY_FILES.some(({ name: ours }) => name === `${ours}.partial`)
  )
}

function parseRepository(target: Target, bytes: Buffer): Repository {
  const object = parseJson(bytes, REPOSITORY)
  checkFormat(object['format'])
  const { id, created } = object
  if (typeof id !== 'string' || !/^[0-9a-f]{32}$/.test(id) || typeof created !== 'string') {
    throw new BackupError('TARGET_FOREIGN', `${target.place}/${REPOSITORY} is not ours`, {
      hint: 'restore it from another copy, or use another directory; nothing was written',
    })
  }
  return { target, id, created }
}

/** Makes a new repository: the recovery files first, repository.json last. */
export async function createRepository(
  target: Target,
  { nowMs }: { nowMs: number },
): Promise<Repository> {
  for (const { name, bytes } of RECOVERY_FILES) {
    if (target.access === 'files') await target.remove(`${name}.partial`)
    const there = await target.read(name, MAX_SMALL_FILE_BYTES)
    if (there === undefined) await target.write(name, bytes)
  }
  if (target.access === 'files') await target.remove(`${REPOSITORY}.partial`)
  const id = randomBytes(16).toString('hex')
  const created = formatStamp(nowMs)
  const bytes = Buffer.from(`${JSON.stringify({ format: 1, id, created })}\n`)
  try {
    await target.write(REPOSITORY, bytes)
  } catch (error) {
    // Another machine may have made it at the same time: then it is one for both.
    const there = await findRepository(target).catch(() => undefined)
    if (there === undefined) throw error
    return there
  }
  // Nor is it certain that a name is taken only once: the last one counts.
  return (await findRepository(target)) ?? { target, id, created }
}

/**
 * Makes sure that the machine's signing key is known in the repository.
 * @throws BackupError SIGNER_UNKNOWN when another machine of the same name is there
 */
export async function enterMachine(
  { target, id }: Repository,
  { machine, signer }: { machine: string; signer: Signer },
): Promise<void> {
  const path = `machines/${machine}/machine.json`
  const there = await target.read(path, MAX_SMALL_FILE_BYTES)
  if (there === undefined) {
    const json = { format: 1, machine, repository: id, signing_keys: [signer.publicKey] }
    const bytes = Buffer.from(`${JSON.stringify(json)}\n`)
    // One that was signed before, by a run that was killed then, will do.
    const before = await target.read(`${path}.minisig`, MAX_SMALL_FILE_BYTES)
    const isSigned =
      before !== undefined
      && (await signs(before, { bytes, machine, id, publicKey: signer.publicKey }))
    const signature = isSigned
      ? before.toString()
      : await signer.sign(bytes, { file: `${machine}/machine.json`, repository: id })
    const isLocal = target.access === 'files'
    for (const name of isLocal
      ? [`${path}.partial`, `${path}.minisig.partial`, `${path}.minisig`]
      : []) {
      await target.remove(name)
    }
    await target.write(`${path}.minisig`, Buffer.from(signature))
    await target.write(path, bytes)
    return
  }
  const keys = parseJson(there, path)['signing_keys']
  if (Array.isArray(keys) && keys.includes(signer.publicKey)) return
  throw new BackupError(
    'SIGNER_UNKNOWN',
    `${target.place} already has a machine named ${machine}, with another key`,
    { hint: 'configure another `machine`, or put back the signing key; nothing was written' },
  )
}

/** Whether a signature is this machine's of its machine.json. */
async function signs(
  signature: Buffer,
  of: { bytes: Buffer; machine: string; id: string; publicKey: string },
): Promise<boolean> {
  const { bytes, machine, id, publicKey } = of
  const file = `${machine}/machine.json`
  const publicKeys = [publicKey]
  try {
    const text = signature.toString()
    await verifySigned({ bytes, signature: text, publicKeys, file, repository: id })
    return true
  } catch (error) {
    if (error instanceof BackupError) return false
    throw error
  }
}

/** Whether the machine's entry in the repository was signed with this key, for this repository. */
export async function isSignedBy(
  { target, id }: Repository,
  { machine, publicKey }: { machine: string; publicKey: string },
): Promise<boolean> {
  const path = `machines/${machine}/machine.json`
  const bytes = await target.read(path, MAX_SMALL_FILE_BYTES)
  const signature = await target.read(`${path}.minisig`, MAX_SMALL_FILE_BYTES)
  if (bytes === undefined || signature === undefined) return false
  return await signs(signature, { bytes, machine, id, publicKey })
}

/** The machines that have exports here. */
export async function listMachines({ target }: Repository): Promise<readonly string[]> {
  const files = (await target.list('machines')) ?? []
  return files
    .filter(({ name, kind }) => kind === 'directory' && isValidName(name))
    .map(({ name }) => name)
}

/**
 * Every stamp's directory of a machine, oldest first within each set. Names that are not ours are
 * passed over.
 */
export async function listStamps(
  { target }: Repository,
  machine: string,
): Promise<readonly StampDirectory[]> {
  const stamps = new Map<string, { place: ExportPlace; files: Map<string, number> }>()
  for (const file of await target.listTree(`machines/${machine}`)) {
    const [set = '', stamp = '', name = '', ...below] = file.name.split('/')
    if (!isValidName(set) || parseStamp(stamp) === undefined || below.length > 0) continue
    if (name === '' && file.kind !== 'directory') continue
    const found = stamps.get(`${set}/${stamp}`) ?? {
      place: { machine, set, stamp },
      files: new Map<string, number>(),
    }
    stamps.set(`${set}/${stamp}`, found)
    if (file.kind === 'file' && OUR_FILE.test(name)) found.files.set(name, file.sizeBytes)
  }
  return [...stamps.values()].map(({ place, files }) => {
    return { ...place, exists: files.has(MANIFEST), files }
  })
}

const BUNDLE_OR_MANIFEST = String.raw`((data|catalog)-\d{4,9}|manifest)\.tar\.zst\.age`
const OUR_FILE = new RegExp(
  String.raw`^(${BUNDLE_OR_MANIFEST}(\.par2)?|verification\.sha256(\.minisig)?)(\.partial)?$`,
)

/** Of those, the exports: what has a manifest (invariant 1). */
export function exportsOf(stamps: readonly StampDirectory[]): readonly StampDirectory[] {
  return stamps.filter(({ exists }) => exists)
}

export function directoryOf({ machine, set, stamp }: ExportPlace): string {
  return `machines/${machine}/${set}/${stamp}`
}

/**
 * An export's verification file, its signature checked.
 * @throws BackupError SIGNATURE_WRONG, SIGNER_UNKNOWN, BUNDLE_DAMAGED when it is missing or
 * malformed
 */
export async function readVerification(
  { target, id }: Repository,
  place: ExportPlace,
  publicKeys: readonly string[],
): Promise<Verification> {
  const path = `${directoryOf(place)}/${VERIFICATION}`
  const bytes = await required(target, { path, maxBytes: MAX_VERIFICATION_BYTES })
  const signature = await required(target, {
    path: `${directoryOf(place)}/${VERIFICATION_SIGNATURE}`,
    maxBytes: MAX_SMALL_FILE_BYTES,
  })
  const file = `${exportName(place)}/${VERIFICATION}`
  await verifySigned({ bytes, signature: signature.toString(), publicKeys, file, repository: id })
  return parseVerification(bytes.toString(), place)
}

/** Reads an export's manifest: checksum and both signatures first. */
export async function readManifest(
  repository: Repository,
  place: ExportPlace,
  keys: ReadingKeys,
): Promise<Manifest> {
  const members = await readManifestMembers(repository, place, keys)
  return parseManifest(members.get(MANIFEST_JSON)!)
}

/** What reading takes: whose signatures count, and what decrypts. */
export interface ReadingKeys {
  readonly publicKeys: readonly string[]
  readonly identities: readonly string[]
}

const MANIFEST_JSON = 'manifest.json'

/**
 * All members of an export's manifest, by name: its `manifest.json` is signed, and is this
 * export's.
 */
export async function readManifestMembers(
  repository: Repository,
  place: ExportPlace,
  { publicKeys, identities }: ReadingKeys,
): Promise<ReadonlyMap<string, Buffer>> {
  const { target, id } = repository
  const { manifestSha256 } = await readVerification(repository, place, publicKeys)
  const path = `${directoryOf(place)}/${MANIFEST}`
  const bytes = await required(target, { path, maxBytes: MAX_MANIFEST_BYTES })
  const sha256 = createHash('sha256').update(bytes).digest('hex')
  if (sha256 !== manifestSha256) throw manifestDamaged(place, 'does not have the signed checksum')
  const members = readMembers(bytes, { path, identities })
  const json = members.get(MANIFEST_JSON)
  const signature = members.get(`${MANIFEST_JSON}.minisig`)
  if (json === undefined || signature === undefined) throw manifestDamaged(place, 'lacks a member')
  await verifySigned({
    bytes: json,
    signature: signature.toString(),
    publicKeys,
    file: `${exportName(place)}/${MANIFEST_JSON}`,
    repository: id,
  })
  const manifest = parseManifest(json)
  if (manifest.repository !== id || exportName(manifest) !== exportName(place)) {
    throw manifestDamaged(place, 'belongs to another export')
  }
  return members
}

/** SHA-256 of a small file on the target, in hex. */
export async function sha256OfFile(target: Target, path: string): Promise<string> {
  const bytes = await required(target, { path, maxBytes: MAX_MANIFEST_BYTES })
  return createHash('sha256').update(bytes).digest('hex')
}

function readMembers(
  bytes: Buffer,
  { path, identities }: { readonly path: string; readonly identities: readonly string[] },
): ReadonlyMap<string, Buffer> {
  const reader = new BundleReader({ path, identities, source: new MemorySource(bytes) })
  try {
    const frames = reader.readFrames()
    const tarBytes = frames.reduce((sum, [, length]) => sum + length, 0)
    if (tarBytes > MAX_MANIFEST_BYTES)
      throw new BackupError('MANIFEST_DAMAGED', 'a manifest is too large')
    const tar = reader.readTar(frames, { offset: 0, length: tarBytes })
    const members = new Map<string, Buffer>()
    for (let offset = 0; ;) {
      const header = parseHeader(tar, offset)
      if (header === 'end' || header === 'short') return members
      const start = offset + header.headerBytes
      members.set(header.metadata.path, tar.subarray(start, start + header.dataBytes))
      offset = start + header.dataBytes + tarPadding(header.dataBytes)
    }
  } finally {
    reader.close()
  }
}

async function required(
  target: Target,
  { path, maxBytes }: { path: string; maxBytes: number },
): Promise<Buffer> {
  const bytes = await target.read(path, maxBytes)
  if (bytes !== undefined) return bytes
  throw new BackupError('BUNDLE_MISSING', `a file of an export is missing: ${path}`, {
    hint: 'the export is damaged; `backup-restore --verify` tells what that means',
    facts: { path },
  })
}

function parseJson(bytes: Buffer, what: string): Readonly<Record<string, unknown>> {
  try {
    const value: unknown = JSON.parse(bytes.toString())
    if (typeof value === 'object' && value !== null)
      return value as Readonly<Record<string, unknown>>
  } catch {
    // Told below, as for any other JSON that is no object.
  }
  throw new BackupError('TARGET_FOREIGN', `${what} on the target is not ours`, {
    hint: 'it is damaged or from another program; nothing was written',
  })
}

function manifestDamaged(place: ExportPlace, what: string): BackupError {
  return new BackupError('MANIFEST_DAMAGED', `the manifest of ${exportName(place)} ${what}`, {
    hint: 'use another export or another target; `recover.sh` explains what can still be had',
    facts: { ...place },
  })
}
