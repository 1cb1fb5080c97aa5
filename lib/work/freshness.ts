// Freshness records on a target: `machines/<machine>/freshness/<stamp>.json`, each with its
// minisign signature beside it (lib/model/freshness.ts, docs/fleet.md).
//
// writeFreshness and readFreshness are inverses; recordFreshness gathers what a machine knows and
// writes it after the exports of a run. A record is there if and only if its `.json` is: the
// signature is written first and removed last. None is ever overwritten; what is dated ahead of the
// clock is passed over, so that a clock that was wrong once does not hide what comes after it.
// Throws what the target throws, and STAGING_FAILED.

import { Buffer } from 'node:buffer'
import { BackupError } from '../errors.ts'
import type { Configuration, TargetConfiguration } from '../machine/config.ts'
import {
  encodeFreshness,
  type FleetMachine,
  type FleetProblem,
  type Freshness,
  type ListedSet,
  nextExportMs,
  parseFreshness,
  type SetFreshness,
  type VerifiedSet,
} from '../model/freshness.ts'
import { provenMsOf } from '../model/receipt.ts'
import { formatStamp, isAhead, nextStamp, parseStamp, type Stamp } from '../model/stamp.ts'
import { readHistory } from './history.ts'
import { lastProof, readReceipts } from './receipts.ts'
import { exportsOf, listStamps, type Repository } from './repository.ts'
import { type Signer, verifySigned } from './signing.ts'

/** A record of a thousand sets has a fifth of it. */
const MAX_FRESHNESS_BYTES = 2 ** 20
const MAX_SMALL_FILE_BYTES = 64 * 1024

/** The last ones, so that one that is damaged is not the only one. */
const KEPT_RECORDS = 3

const RECORD = /^(.*)\.json$/
const RECORD_OR_SIGNATURE = /^(.*)\.json(\.minisig)?$/

function directoryOf(machine: string): string {
  return `machines/${machine}/freshness`
}

/** What the signature binds a record to, besides the repository. */
function signedName({ machine, stamp }: { machine: string; stamp: Stamp }): string {
  return `${machine}/freshness/${stamp}.json`
}

/** What of a machine's exports is listed, by set. */
export async function listedSets(
  repository: Repository,
  machine: string,
): Promise<ReadonlyMap<string, ListedSet>> {
  const stamps = await listStamps(repository, machine)
  const sets = [...new Set(exportsOf(stamps).map(({ set }) => set))].sort()
  return new Map(
    sets.map((set) => {
      const ours = stamps.filter((place) => place.set === set)
      const sizes = ours.flatMap(({ files }) => [...files.values()])
      const bytes = sizes.reduce((sum, size) => sum + size, 0)
      return [
        set,
        {
          stamps: exportsOf(ours)
            .map(({ stamp }) => stamp)
            .sort(),
          bytes,
        },
      ]
    }),
  )
}

/**
 * Writes a new record, dated now, or a second after the newest.
 * @returns its stamp
 */
export async function writeFreshness(
  repository: Repository,
  {
    machine,
    signer,
    sets,
    nextExpected,
    nowMs,
  }: {
    readonly machine: string
    readonly signer: Signer
    readonly sets: ReadonlyMap<string, SetFreshness>
    readonly nextExpected: Stamp | undefined
    readonly nowMs: number
  },
): Promise<Stamp> {
  const { target, id } = repository
  const directory = directoryOf(machine)
  const files = (await target.list(directory)) ?? []
  // What a run that was killed left; over a network each target sees to its own.
  for (const { name } of target.access === 'files' ? files : []) {
    if (name.endsWith('.partial')) await target.remove(`${directory}/${name}`)
  }
  const there = stampsIn(files, RECORD_OR_SIGNATURE)
  const newest = there.findLast((stamp) => !isAhead(stamp, nowMs))
  const stamp = nextStamp({ nowMs, newest })
  const record = { machine, repository: id, written: stamp, nextExpected, sets }
  const bytes = encodeFreshness(record)
  const signature = await signer.sign(bytes, {
    file: signedName({ machine, stamp }),
    repository: id,
  })
  await target.write(`${directory}/${stamp}.json.minisig`, Buffer.from(signature))
  await target.write(`${directory}/${stamp}.json`, bytes)
  return stamp
}

/** The stamps of files of that form, each once, oldest first. */
function stampsIn(files: readonly { readonly name: string }[], form: RegExp): readonly Stamp[] {
  const stamps = files
    .map(({ name }) => form.exec(name)?.[1])
    .filter((stamp) => stamp !== undefined && parseStamp(stamp) !== undefined)
  return [...new Set(stamps as Stamp[])].sort()
}

/**
 * Lets all but the newest records of a machine go. What is dated ahead of the clock stays, and does
 * not count.
 * @returns how many went
 */
export async function removeOldFreshness(
  { target }: Repository,
  { machine, nowMs }: { readonly machine: string; readonly nowMs: number },
): Promise<number> {
  const directory = directoryOf(machine)
  const files = (await target.list(directory)) ?? []
  const records = stampsIn(files, RECORD).filter((stamp) => !isAhead(stamp, nowMs))
  const oldestKept = records.at(-KEPT_RECORDS)
  if (oldestKept === undefined) return 0
  // A signature whose record is gone, or was never written, goes too.
  const old = stampsIn(files, RECORD_OR_SIGNATURE).filter((stamp) => stamp < oldestKept)
  for (const stamp of old) {
    await target.remove(`${directory}/${stamp}.json`)
    await target.remove(`${directory}/${stamp}.json.minisig`)
  }
  return old.length
}

export interface FoundFreshness {
  /** The newest that is believed; one that is dated ahead only where there is no other. */
  readonly record: Freshness | undefined
  readonly key: FleetMachine['key']
  /** What is wrong with those that are not believed. */
  readonly problems: readonly FleetProblem[]
}

/**
 * A machine's newest record. Without keys to trust, the key that the machine's own entry in the
 * repository names counts, and is told to be untrusted.
 */
export async function readFreshness(
  repository: Repository,
  {
    machine,
    publicKeys,
    nowMs,
  }: { readonly machine: string; readonly publicKeys: readonly string[]; readonly nowMs: number },
): Promise<FoundFreshness> {
  const files = (await repository.target.list(directoryOf(machine))) ?? []
  const all = stampsIn(files, RECORD)
  const inTime = all.filter((stamp) => !isAhead(stamp, nowMs))
  const newestFirst = (inTime.length > 0 ? inTime : all).slice(-KEPT_RECORDS).toReversed()
  const problems: FleetProblem[] = []
  const key = publicKeys.length > 0 ? 'trusted' : 'untrusted'
  const keys = publicKeys.length > 0 ? publicKeys : undefined
  for (const stamp of newestFirst) {
    try {
      const trusted = keys ?? (await keysOfEntry(repository, machine))
      const record = await readSigned(repository, { machine, stamp, publicKeys: trusted })
      if (record !== undefined) return { record, key, problems }
    } catch (error) {
      const problem = unbelieved(error, stamp)
      if (!problems.some(({ what }) => what === problem.what)) problems.push(problem)
    }
  }
  return { record: undefined, key: undefined, problems }
}

/** Undefined where it was let go just now. */
async function readSigned(
  { target, id }: Repository,
  of: { readonly machine: string; readonly stamp: Stamp; readonly publicKeys: readonly string[] },
): Promise<Freshness | undefined> {
  const { machine, stamp, publicKeys } = of
  const path = `${directoryOf(machine)}/${stamp}.json`
  const bytes = await target.read(path, MAX_FRESHNESS_BYTES)
  if (bytes === undefined) return undefined
  const signature = await target.read(`${path}.minisig`, MAX_SMALL_FILE_BYTES)
  if (signature === undefined) {
    throw new BackupError('SIGNATURE_WRONG', `${signedName(of)} has no signature`)
  }
  const file = signedName(of)
  await verifySigned({ bytes, signature: signature.toString(), publicKeys, file, repository: id })
  const record = parseFreshness(bytes)
  if (record.machine === machine && record.repository === id && record.written === stamp) {
    return record
  }
  throw new BackupError('SIGNATURE_WRONG', `${file} is the record of something else`)
}

/** The keys that machine.json names, where one of them signed it. */
async function keysOfEntry(
  { target, id }: Repository,
  machine: string,
): Promise<readonly string[]> {
  const path = `machines/${machine}/machine.json`
  const bytes = await target.read(path, MAX_SMALL_FILE_BYTES)
  const signature = await target.read(`${path}.minisig`, MAX_SMALL_FILE_BYTES)
  if (bytes === undefined || signature === undefined) {
    throw new BackupError('SIGNER_UNKNOWN', `${path} is not there, or has no signature`)
  }
  const publicKeys = signingKeysIn(bytes)
  const file = `${machine}/machine.json`
  await verifySigned({ bytes, signature: signature.toString(), publicKeys, file, repository: id })
  return publicKeys
}

function signingKeysIn(bytes: Buffer): readonly string[] {
  try {
    const { signing_keys: keys } = JSON.parse(bytes.toString()) as { signing_keys?: unknown }
    if (Array.isArray(keys)) return keys.filter((key) => typeof key === 'string')
  } catch {
    // Without keys nothing verifies.
  }
  return []
}

/** @throws what is no failure of the record alone */
function unbelieved(error: unknown, stamp: Stamp): FleetProblem {
  if (!(error instanceof BackupError)) throw error
  const { code, message, hint } = error
  if (code === 'INTERRUPTED' || code === 'TARGET_ABSENT') throw error
  const isSignature = ['SIGNATURE_WRONG', 'SIGNER_UNKNOWN', 'CONFIG_INVALID'].includes(code)
  const fix = isSignature
    ? 'find out who wrote it, and whether the machine was set up anew with another key'
    : hint
  return {
    code: isSignature ? (code === 'SIGNATURE_WRONG' ? code : 'SIGNER_UNKNOWN') : 'UNREADABLE',
    severity: isSignature ? 'bad' : 'attention',
    what: `the record of ${stamp} is not believed: ${message}`,
    fix,
    set: undefined,
  }
}

/** An export of this run. */
export interface ExportedSet {
  readonly set: string
  readonly stamp: Stamp
  readonly complete: boolean
}

/**
 * Says on the target how fresh this machine's exports there are, and, after an export, lets old
 * records go where this machine's credentials may. Nothing where the target is a drive: there
 * nobody looks from elsewhere.
 */
export async function recordFreshness({
  configuration,
  target,
  repository,
  signer,
  exported,
  nowMs,
}: {
  readonly configuration: Configuration
  readonly target: TargetConfiguration
  readonly repository: Repository
  readonly signer: Signer
  readonly exported: readonly ExportedSet[]
  readonly nowMs: number
}): Promise<void> {
  if (target.kind === 'drive') return
  const { machine, staging, backupSets } = configuration
  const listed = await listedSets(repository, machine)
  const verified = await verifiedSets({ staging, machine, signer, repository })
  const sets = new Map<string, SetFreshness>()
  const dueMs: number[] = []
  for (const [set, { stamps, bytes }] of listed) {
    const stamp = stamps.at(-1)!
    const schedule = backupSets.find(({ name }) => name === set)?.schedule
    const startMs = parseStamp(stamp)!
    const nextMs = schedule && nextExportMs({ schedule, startMs })
    const reportMs = schedule && nextExportMs({ schedule, startMs: nowMs })
    if (reportMs !== undefined) dueMs.push(reportMs)
    sets.set(set, {
      stamp,
      complete: completenessOf({ set, stamp, exported, staging, target: target.name }),
      exports: stamps.length,
      bytes,
      nextExpected: nextMs === undefined ? undefined : formatStamp(nextMs),
      verified: verified(set),
    })
  }
  const nextExpected = dueMs.length === 0 ? undefined : formatStamp(Math.min(...dueMs))
  await writeFreshness(repository, { machine, signer, sets, nextExpected, nowMs })
  // As with exports: nothing is let go by a run that proved nothing.
  if (exported.length === 0 || !mayRemove(target)) return
  await removeWhereAllowed(repository, { machine, nowMs })
}

/**
 * Whether the newest record knows these exports: nothing new is to be said then. It does not where
 * a run was killed between its exports and its record.
 */
export async function isFreshnessCurrent(
  repository: Repository,
  of: {
    readonly machine: string
    readonly publicKeys: readonly string[]
    readonly newest: readonly { readonly set: string; readonly stamp: Stamp }[]
    readonly nowMs: number
  },
): Promise<boolean> {
  if (of.newest.length === 0) return true
  const { record } = await readFreshness(repository, of)
  return of.newest.every(({ set, stamp }) => (record?.sets.get(set)?.stamp ?? '') >= stamp)
}

/** A bucket with an admin profile has backups that only add; `backup prune` removes there. */
function mayRemove(target: TargetConfiguration): boolean {
  return target.kind !== 's3' || target.adminProfile === undefined
}

async function removeWhereAllowed(
  repository: Repository,
  of: { readonly machine: string; readonly nowMs: number },
): Promise<void> {
  try {
    await removeOldFreshness(repository, of)
  } catch (error) {
    // Then whoever may removes them: a few hundred bytes each.
    if (!(error instanceof BackupError) || error.code !== 'TARGET_DENIED') throw error
  }
}

/**
 * As this run made it; else as the first run of the history that did, for later ones only saw it.
 */
function completenessOf(of: {
  readonly set: string
  readonly stamp: Stamp
  readonly exported: readonly ExportedSet[]
  readonly staging: string
  readonly target: string
}): boolean | undefined {
  const { set, stamp, exported, staging, target } = of
  const now = exported.find((one) => one.set === set && one.stamp === stamp)
  if (now !== undefined) return now.complete
  const run = readHistory(staging).find((one) => {
    return one.phase === 'export' && one.target === target && one.set === set && one.stamp === stamp
  })
  return run === undefined || run.outcome === 'failed' ? undefined : run.outcome === 'good'
}

/** What receipts say of each set. */
async function verifiedSets(of: {
  readonly staging: string
  readonly machine: string
  readonly signer: Signer
  readonly repository: Repository
}): Promise<(set: string) => VerifiedSet | undefined> {
  const { staging, machine, signer, repository } = of
  const { receipts } = await readReceipts(staging, [signer.publicKey])
  const { name: target } = repository.target
  return (set) => {
    const about = { target, repository: repository.id, export: `${machine}/${set}` }
    const { verification, damaged } = lastProof(receipts, about)
    const last = damaged ?? verification
    if (last === undefined) return undefined
    const { how, result } = last
    return { stamp: formatStamp(provenMsOf(last)), how, result }
  }
}
