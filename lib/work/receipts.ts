// Receipts in the state: `.state/receipts/<stamp of its end>-<target>[-<drive>]-<kind>.json`, each
// with its minisign signature beside it (docs/receipts.md).
//
// writeReceipt and readReceipts are inverses. Drills and verifications (proof.ts) write them,
// `status` names them. A receipt is there if and only if its `.json` is: the signature is written
// first. One that does not verify, or was not written by encodeReceipt, is not believed, and never
// removed. Throws STAGING_FULL, STAGING_FAILED, LOCKED.

import { Buffer } from 'node:buffer'
import { existsSync, lstatSync, mkdirSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { BackupError, systemCode } from '../errors.ts'
import type { Configuration } from '../machine/config.ts'
import { PARTIAL_SUFFIX, writeDurably } from '../machine/durable-file.ts'
import { acquireLock } from '../machine/lock.ts'
import { exportName } from '../model/manifest.ts'
import { isValidName } from '../model/names.ts'
import { displayPath, rawPathFromText } from '../model/raw-path.ts'
import { wasReadAfter } from '../model/proofs.ts'
import type { Receipt } from '../model/receipt.ts'
import { formatStamp, parseStamp } from '../model/stamp.ts'
import type { Repository } from './repository.ts'
import { type Signer, verifySigned } from './signing.ts'
import { stagingError, stateRoot } from './staging.ts'
import type { VerifyOutcome } from './verify.ts'

/** Years of drills; besides them the last of each kind, target, drive and result stays. */
const KEPT_RECEIPTS = 200

/** How much damage a receipt names: enough to see where it is. */
export const DAMAGED_NAMED = 100

/** A receipt that names ten thousand exports has a tenth of it. */
const MAX_RECEIPT_BYTES = 8 * 2 ** 20

/** Whoever holds the lock writes two small files. */
const LOCK_WAIT_MS = 3_000

const SECOND_MS = 1000

const OUR_NAME = /^\d{4}-\d\d-\d\dT\d{6}Z-[a-z0-9_-]+-(drill|verification|partial)$/

/** The name of a receipt, as `status` gives it: its file is `<name>.json`. */
export function receiptName({ end, target, drive, kind }: Receipt): string {
  const place = drive === undefined ? target : `${target}-${drive}`
  return `${formatStamp(Date.parse(end))}-${place}-${kind}`
}

/** What a receipt says of the drive: which one of a pool it is; undefined for any other target. */
export function poolDrive({
  configuration,
  targetName,
  drive,
}: {
  readonly configuration: Pick<Configuration, 'targets'>
  readonly targetName: string
  readonly drive: string | undefined
}): string | undefined {
  const target = configuration.targets.find(({ name }) => name === targetName)
  return target?.kind === 'drive' && target.isPool ? drive : undefined
}

/**
 * Signs and writes a receipt, and lets the oldest go. Staging itself is never made.
 * @returns it as it was written: a second later where its name was taken
 * @throws BackupError STAGING_FULL, STAGING_FAILED, LOCKED
 */
export async function writeReceipt({
  staging,
  receipt,
  signer,
}: {
  readonly staging: string
  readonly receipt: Receipt
  readonly signer: Signer
}): Promise<Receipt> {
  const directory = receiptsDirectory(staging)
  try {
    for (const path of [stateRoot(staging), directory]) makeDirectory(path)
    const path = rawPathFromText(`${stateRoot(staging)}/.receipts.lock`)
    const lock = acquireLock({ path, description: 'writing a receipt', waitMs: LOCK_WAIT_MS })
    try {
      const free = withFreeName(receipt, new Set(readdirSync(directory)))
      const bytes = encodeReceipt(free)
      const signature = await signer.sign(bytes, signedAs(free))
      // What a killed run left under this name.
      rmSync(`${directory}/${receiptName(free)}.json.minisig`, { force: true })
      write(directory, { name: `${receiptName(free)}.json.minisig`, bytes: Buffer.from(signature) })
      write(directory, { name: `${receiptName(free)}.json`, bytes })
      compact(directory)
      return free
    } finally {
      lock.release()
    }
  } catch (error) {
    throw stagingError({ error, staging, doing: 'written' })
  }
}

/**
 * The receipts that one of `publicKeys` signed, the newest last, and the names of those that are
 * not to be believed. Reads only.
 * @throws BackupError STAGING_FAILED when there is something that cannot be read
 */
export async function readReceipts(
  staging: string,
  publicKeys: readonly string[],
): Promise<{ readonly receipts: readonly Receipt[]; readonly unbelieved: readonly string[] }> {
  const receipts: Receipt[] = []
  const unbelieved: string[] = []
  const directory = receiptsDirectory(staging)
  try {
    for (const name of namesIn(directory)) {
      const receipt = await readSigned({ directory, name, publicKeys })
      if (receipt !== undefined) receipts.push(receipt)
      // What was let go just now was never false.
      else if (existsSync(`${directory}/${name}.json`)) unbelieved.push(name)
    }
  } catch (error) {
    throw stagingError({ error, staging, doing: 'read' })
  }
  return { receipts: receipts.sort(byEnd), unbelieved }
}

/** What was last proven of a target, and what was last found damaged. */
export interface Proof {
  /** Good ones. */
  readonly verification: Receipt | undefined
  readonly drill: Receipt | undefined
  /** Unless a good verification of all its sets followed: a good drill read other bytes. */
  readonly damaged: Receipt | undefined
}

/** What receipts, the newest last, say of a target, of one drive of it, of a set or an export. */
export function lastProof(
  receipts: readonly Receipt[],
  about: {
    readonly target: string
    readonly drive?: string | undefined
    /** A repository that was made anew has proven nothing yet. */
    readonly repository?: string | undefined
    /** `<machine>/<set>/<stamp>`, or `<machine>/<set>` for any of the set's. */
    readonly export?: string | undefined
  },
): Proof {
  const { target, drive, repository, export: wanted } = about
  const found = receipts.filter(
    (receipt) =>
      receipt.target === target
      && (drive === undefined || receipt.drive === drive)
      && (repository === undefined || receipt.repository === repository)
      && (wanted === undefined
        || receipt.exports.some((name) => name === wanted || setOf(name) === wanted)),
  )
  const lastGood = (kind: Receipt['kind']) =>
    found.findLast((receipt) => receipt.kind === kind && receipt.result === 'good')
  const damaged = found.findLast((receipt) => receipt.result === 'damaged')
  const later = damaged === undefined ? [] : receipts.slice(receipts.indexOf(damaged) + 1)
  const isCleared = damaged !== undefined && later.some((receipt) => clears(receipt, damaged))
  return {
    verification: lastGood('verification'),
    drill: lastGood('drill'),
    damaged: isCleared ? undefined : damaged,
  }
}

/** Whether a later receipt says that what was damaged is no more. */
function clears(later: Receipt, damaged: Receipt): boolean {
  const isCovered = (name: string) =>
    later.exports.some((other) => setOf(other) === setOf(name) && other >= name)
  return (
    later.kind === 'verification'
    && later.result === 'good'
    && later.repository === damaged.repository
    && (later.how === 'restored' || damaged.how === 'checksums')
    && wasReadAfter(later, damaged)
    && damaged.exports.every(isCovered)
  )
}

function setOf(name: string): string {
  return name.slice(0, name.lastIndexOf('/'))
}

/**
 * The receipt of what verifyExports found: of a verification, unless only a part was read.
 * @param options.sinceMs of a verification that was done in several runs: when the first of it was
 */
export function receiptOfVerification({
  outcome,
  configuration,
  repository,
  startMs,
  endMs,
  sinceMs,
  part,
}: {
  readonly outcome: Pick<VerifyOutcome, 'exports' | 'bundles' | 'bytesRead' | 'deep'>
  /** Of this machine, whose key signs. */
  readonly configuration: Pick<Configuration, 'machine' | 'targets'>
  readonly repository: Repository
  readonly startMs: number
  readonly endMs: number
  readonly sinceMs?: number | undefined
  /** What there was to be read, and what the part was drawn by. */
  readonly part?: { readonly totalBytes: number; readonly seed: string | undefined }
}): Receipt {
  const { name: targetName, drive } = repository.target
  const damaged = outcome.exports.flatMap((one) => {
    const texts =
      one.damaged.length > 0
        ? one.damaged.map(displayPath)
        : one.problems.map(({ message }) => message)
    return texts.map((text) => `${exportName(one)}: ${text}`)
  })
  return {
    format: 1,
    kind: part === undefined ? 'verification' : 'partial',
    machine: configuration.machine,
    target: targetName,
    drive: poolDrive({ configuration, targetName, drive }),
    repository: repository.id,
    exports: outcome.exports.map(exportName),
    start: new Date(startMs).toISOString(),
    end: new Date(endMs).toISOString(),
    ...(sinceMs === undefined ? {} : { since: new Date(sinceMs).toISOString() }),
    how: outcome.deep ? 'restored' : 'checksums',
    bundles: outcome.bundles,
    // Of a part nobody counts which files lie in it.
    files:
      part === undefined ? outcome.exports.reduce((sum, { files }) => sum + (files ?? 0), 0) : 0,
    bytes: outcome.bytesRead,
    totalBytes: part?.totalBytes ?? outcome.bytesRead,
    seed: part?.seed,
    result: damaged.length === 0 ? 'good' : 'damaged',
    damaged: damaged.slice(0, DAMAGED_NAMED),
  }
}

/** One line of JSON. */
export function encodeReceipt(receipt: Receipt): Buffer {
  const { format, kind, machine, target, drive, repository, exports, start, end } = receipt
  const { since, how, bundles, files, bytes, totalBytes, seed, result, damaged } = receipt
  const of = { format, kind, machine, target, drive, repository, exports, start, end }
  const read = { since, how, bundles, files, bytes, totalBytes, seed, result, damaged }
  return Buffer.from(`${JSON.stringify({ ...of, ...read })}\n`)
}

/** The inverse of encodeReceipt; undefined for any bytes that it would not have written. */
export function parseReceipt(bytes: Buffer): Receipt | undefined {
  let value: unknown
  try {
    value = JSON.parse(bytes.toString())
  } catch {
    return undefined
  }
  if (typeof value !== 'object' || value === null) return undefined
  const object = value as Readonly<Record<string, unknown>>
  if (!Object.entries(PROPERTIES).every(([name, isFine]) => isFine(object[name]))) return undefined
  const receipt = object as unknown as Receipt
  // Nothing else is in it, nothing twice, and in our order.
  if (!encodeReceipt(receipt).equals(bytes)) return undefined
  if ((receipt.result === 'damaged') !== receipt.damaged.length > 0) return undefined
  if (receipt.since !== undefined && receipt.kind !== 'verification') return undefined
  return { ...receipt, drive: receipt.drive, seed: receipt.seed }
}

const isText = (value: unknown): value is string => typeof value === 'string'
const isName = (value: unknown): boolean => isText(value) && isValidName(value)
const isCount = (value: unknown): boolean => Number.isSafeInteger(value) && Number(value) >= 0
const isTime = (value: unknown): boolean => {
  const timeMs = isText(value) ? Date.parse(value) : NaN
  return Number.isFinite(timeMs) && new Date(timeMs).toISOString() === value
}
const isOneOf =
  (...words: readonly unknown[]) =>
  (value: unknown): boolean =>
    words.includes(value)
const isExport = (value: unknown): boolean => {
  const [machine, set, stamp, ...rest] = isText(value) ? value.split('/') : []
  return isName(machine) && isName(set) && isStamp(stamp) && rest.length === 0
}
const isStamp = (value: unknown): boolean => isText(value) && parseStamp(value) !== undefined

const PROPERTIES: Readonly<Record<keyof Receipt, (value: unknown) => boolean>> = {
  format: isOneOf(1),
  kind: isOneOf('drill', 'verification', 'partial'),
  machine: isName,
  target: isName,
  drive: (value) => value === undefined || isName(value),
  repository: (value) => isText(value) && /^[0-9a-f]{32}$/.test(value),
  exports: (value) => Array.isArray(value) && value.length > 0 && value.every(isExport),
  start: isTime,
  end: isTime,
  since: (value) => value === undefined || isTime(value),
  how: isOneOf('restored', 'checksums'),
  bundles: isCount,
  files: isCount,
  bytes: isCount,
  totalBytes: isCount,
  seed: (value) => value === undefined || isText(value),
  result: isOneOf('good', 'damaged'),
  damaged: (value) => Array.isArray(value) && value.length <= DAMAGED_NAMED && value.every(isText),
}

function receiptsDirectory(staging: string): string {
  return `${stateRoot(staging)}/receipts`
}

function makeDirectory(path: string): void {
  try {
    mkdirSync(path, { mode: 0o700 })
  } catch (error) {
    if (systemCode(error) !== 'EEXIST') throw error
  }
}

/** Two of one target within a second are dated a second each, as stamps are. */
function withFreeName(receipt: Receipt, taken: ReadonlySet<string>): Receipt {
  if (!taken.has(`${receiptName(receipt)}.json`)) return receipt
  const end = new Date(Date.parse(receipt.end) + SECOND_MS).toISOString()
  return withFreeName({ ...receipt, end }, taken)
}

/** What the trusted comment of the signature names, so that no receipt passes for another. */
function signedAs(receipt: Receipt): { readonly file: string; readonly repository: string } {
  const file = `${receipt.machine}/receipts/${receiptName(receipt)}.json`
  return { file, repository: receipt.repository }
}

function write(directory: string, { name, bytes }: { name: string; bytes: Buffer }): void {
  writeDurably({ path: rawPathFromText(`${directory}/${name}`), bytes, mode: 0o600 })
}

/** The names of all receipts that are there, believed or not; the order is that of their ends. */
function namesIn(directory: string): readonly string[] {
  try {
    return readdirSync(directory)
      .filter((file) => file.endsWith('.json') && OUR_NAME.test(file.slice(0, -'.json'.length)))
      .map((file) => file.slice(0, -'.json'.length))
      .sort()
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return []
    throw error
  }
}

/** Undefined where it is not a receipt of this name. */
function readOne(directory: string, name: string): { bytes: Buffer; receipt: Receipt } | undefined {
  const bytes = readSmall(`${directory}/${name}.json`)
  const receipt = bytes === undefined ? undefined : parseReceipt(bytes)
  if (bytes === undefined || receipt === undefined || receiptName(receipt) !== name) return
  return { bytes, receipt }
}

async function readSigned({
  directory,
  name,
  publicKeys,
}: {
  readonly directory: string
  readonly name: string
  readonly publicKeys: readonly string[]
}): Promise<Receipt | undefined> {
  const one = readOne(directory, name)
  const signature = readSmall(`${directory}/${name}.json.minisig`)
  if (one === undefined || signature === undefined) return undefined
  const { bytes, receipt } = one
  try {
    await verifySigned({ bytes, signature: signature.toString(), publicKeys, ...signedAs(receipt) })
    return receipt
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    return undefined
  }
}

/** Undefined where there is no such file, and for what no receipt can be. */
function readSmall(path: string): Buffer | undefined {
  const stat = lstatSync(path, { throwIfNoEntry: false })
  if (stat?.isFile() !== true || stat.size > MAX_RECEIPT_BYTES) return undefined
  return readFileSync(path)
}

/**
 * Lets the oldest go: the newest stay, and the last of each kind of each place with each result.
 * What is no receipt is not touched, but for halves of files and signatures of nothing.
 */
function compact(directory: string): void {
  const names = namesIn(directory)
  if (names.length > KEPT_RECEIPTS) {
    const read = names.flatMap((name) => readOne(directory, name)?.receipt ?? [])
    const receipts = read.sort(byEnd)
    const last = new Map(
      receipts.map((receipt) => {
        const { kind, target, drive = '', result } = receipt
        return [[kind, target, drive, result].join('/'), receipt]
      }),
    )
    const kept = new Set([...last.values(), ...receipts.slice(-KEPT_RECEIPTS)])
    for (const receipt of receipts) {
      if (kept.has(receipt)) continue
      rmSync(`${directory}/${receiptName(receipt)}.json`)
    }
  }
  const there = new Set(namesIn(directory))
  for (const file of readdirSync(directory)) {
    const [name = '', rest = ''] = file.split(/(?=\.json)/, 2)
    const isSignatureOfNothing = rest === '.json.minisig' && !there.has(name)
    if (OUR_NAME.test(name) && (isSignatureOfNothing || rest.endsWith(PARTIAL_SUFFIX)))
      rmSync(`${directory}/${file}`)
  }
}

function byEnd(one: Receipt, other: Receipt): number {
  return Date.parse(one.end) - Date.parse(other.end)
}
