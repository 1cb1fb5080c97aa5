// What prune let go, on record: `machines/<machine>/pruned/<stamp>.json` and its signature.
//
// recordPrune and readPruneRecords are inverses. In a bucket with versions a deletion only hides.
// Whoever looks for hidden objects (hidden-objects.ts) tells a prune from an attack by these
// records: prune writes one before it removes the first manifest, so a prune that is killed leaves
// no false alarm. The signature is written first. Throws what a Target throws.

import { Buffer } from 'node:buffer'
import { BackupError } from '../errors.ts'
import { parseStamp, nextStamp, type Stamp } from '../model/stamp.ts'
import { type ExportPlace, type Repository } from './repository.ts'
import { type Signer, verifySigned } from './signing.ts'

/** A record of ten thousand exports has half of it. */
export const MAX_PRUNE_RECORD_BYTES = 2 ** 20

const FORMAT = 1

/** One prune: the exports that it was to let go. */
export interface PruneRecord {
  readonly stamp: Stamp
  /** `<set>/<stamp>` */
  readonly exports: readonly string[]
}

/** Where a machine's records are, in the repository. */
export function pruneRecordDirectory(machine: string): string {
  return `machines/${machine}/pruned`
}

/**
 * Writes down what is about to be removed; to be called before anything is. The target is opened
 * with the credentials of whoever may delete: those of backups need not be able to write here.
 * @returns the record's path; undefined where nothing goes
 */
export async function recordPrune(
  { target, id }: Repository,
  {
    machine,
    exports,
    signer,
    nowMs,
  }: {
    readonly machine: string
    readonly exports: readonly Pick<ExportPlace, 'set' | 'stamp'>[]
    readonly signer: Signer
    readonly nowMs: number
  },
): Promise<string | undefined> {
  if (exports.length === 0) return undefined
  const directory = pruneRecordDirectory(machine)
  const taken = ((await target.list(directory)) ?? []).flatMap(({ name }) => {
    const stamp = name.replace(/\.json(\.minisig)?$/, '')
    return parseStamp(stamp) === undefined ? [] : [stamp]
  })
  const stamp = nextStamp({ nowMs, newest: taken.sort().at(-1) })
  const names = exports.map((place) => `${place.set}/${place.stamp}`)
  const json = { format: FORMAT, repository: id, machine, pruned: stamp, exports: names }
  const bytes = Buffer.from(`${JSON.stringify(json)}\n`)
  const path = `${directory}/${stamp}.json`
  const file = signedName({ machine, stamp })
  const signature = await signer.sign(bytes, { file, repository: id })
  await target.write(`${path}.minisig`, Buffer.from(signature))
  await target.write(path, bytes)
  return path
}

/**
 * The records that one of `publicKeys` signed, the oldest first. One that does not verify is
 * passed over: what it names then counts as removed by somebody else.
 */
export async function readPruneRecords(
  { target, id }: Repository,
  { machine, publicKeys }: { readonly machine: string; readonly publicKeys: readonly string[] },
): Promise<readonly PruneRecord[]> {
  const directory = pruneRecordDirectory(machine)
  const records: PruneRecord[] = []
  for (const { name } of (await target.list(directory)) ?? []) {
    const stamp = name.replace(/\.json$/, '')
    if (parseStamp(stamp) === undefined) continue
    const bytes = await target.read(`${directory}/${name}`, MAX_PRUNE_RECORD_BYTES)
    const signature = await target.read(`${directory}/${name}.minisig`, MAX_PRUNE_RECORD_BYTES)
    if (bytes === undefined || signature === undefined) continue
    const of = { machine, stamp, repository: id, publicKeys }
    const record = await parsePruneRecord(bytes, { ...of, signature: signature.toString() })
    if (record !== undefined) records.push(record)
  }
  return records
}

/** Undefined where it is not signed by one of the keys, for this place. */
export async function parsePruneRecord(
  bytes: Buffer,
  {
    machine,
    stamp,
    repository,
    publicKeys,
    signature,
  }: {
    readonly machine: string
    readonly stamp: Stamp
    /** The repository's id. */
    readonly repository: string
    readonly publicKeys: readonly string[]
    readonly signature: string
  },
): Promise<PruneRecord | undefined> {
  try {
    const file = signedName({ machine, stamp })
    await verifySigned({ bytes, signature, publicKeys, file, repository })
  } catch (error) {
    if (error instanceof BackupError) return undefined
    throw error
  }
  const value = JSON.parse(bytes.toString()) as { readonly exports?: unknown }
  const exports = Array.isArray(value.exports) ? value.exports : []
  return { stamp, exports: exports.filter((name): name is string => typeof name === 'string') }
}

function signedName({ machine, stamp }: { machine: string; stamp: Stamp }): string {
  return `${machine}/pruned/${stamp}.json`
}
