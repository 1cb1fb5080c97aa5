// The restore drill: reads a random sample of a target's newest exports from the medium and
// compares it with what was signed (docs/receipts.md).
//
// planDrill draws the sample, drillTarget carries it out: runs of file content are restored into a
// scratch place in the state and compared with the signed catalog's digests, or, without an
// identity, whole bundles with the signed verification file. Staging's collections are never read.
// Damage is what the receipt says; receipts.ts writes it. Throws NOTHING_FOUND, IDENTITY_WRONG,
// INTERRUPTED, STAGING_FULL, STAGING_FAILED, and TARGET_* where the target went away.

import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import {
  closeSync,
  constants,
  fstatSync,
  mkdirSync,
  openSync,
  readSync,
  readdirSync,
  rmSync,
} from 'node:fs'
import { availableParallelism } from 'node:os'
import { setImmediate } from 'node:timers/promises'
import { BackupError, type PlainError, systemCode, unpackError } from '../errors.ts'
import { DIGEST_BYTES } from '../format/chunker.ts'
import type { Configuration } from '../machine/config.ts'
import { dropPageCache } from '../machine/posix.ts'
import {
  DRILL_BUDGET_BYTES,
  DRILL_BUDGET_FILES,
  LEAST_FILES,
  chooseSample,
  cutRuns,
  drillSeed,
  sampleShare,
} from '../model/drill.ts'
import type { Entry, FrameRange, Piece } from '../model/entry.ts'
import { exportName } from '../model/manifest.ts'
import { displayPath, type RawPath, rawPathFromText, rawPathToBytes } from '../model/raw-path.ts'
import { provenMsOf, type Receipt } from '../model/receipt.ts'
import type { Report } from '../model/report.ts'
import { type BundlePlace, type ShardPlace, framesOf } from '../model/shard.ts'
import {
  MANIFEST,
  VERIFICATION,
  VERIFICATION_SIGNATURE,
  bundlePath,
} from '../model/verification.ts'
import { ExportReader } from './export-reader.ts'
import { findExports, pickExports } from './find-exports.ts'
import { DAMAGED_NAMED, lastProof, poolDrive, readReceipts } from './receipts.ts'
import {
  type ExportPlace,
  type Repository,
  type StampDirectory,
  directoryOf,
  findRepository,
  listStamps,
  readManifest,
  readVerification,
} from './repository.ts'
import type { RestoreItem, RestoreReply, RestoreSettings } from './restore-worker.ts'
import type { NumberedBundles } from './selection.ts'
import type { Signer } from './signing.ts'
import { stagingError, stateRoot } from './staging.ts'
import type { VerifyReply, VerifyRequest } from './verify-worker.ts'
import { runWorkers } from './worker-pool.ts'

export interface DrillOptions {
  readonly configuration: Configuration
  readonly repository: Repository
  readonly targetName: string
  /** Of the kind `drive`: which of the target's drives it is. */
  readonly drive: string | undefined
  /** This machine's: it signed what is there. */
  readonly signer: Pick<Signer, 'publicKey'>
  /** Whose signatures count besides. */
  readonly publicKeys?: readonly string[]
  /** Secrets. None: checksums only. */
  readonly identities?: readonly string[]
  /** None: every set of this machine that has an export there. */
  readonly sets?: readonly string[]
  /** From 0 to 1, and no limit but this; undefined: by the age of the last full verification. */
  readonly share?: number | undefined
  readonly cores?: number
  /** Of the drill's own beginning. */
  readonly nowMs: number
  readonly report: Report
  readonly signal: AbortSignal
}

/** A run of a file's content. */
interface FileRun {
  readonly key: string
  readonly bytes: number
  /** `<export>: <path>`, for people. */
  readonly name: string
  /** `<machine>/<set>/<stamp>` */
  readonly export: string
  readonly path: RawPath
  readonly machine: string
  readonly pieces: readonly Piece[]
  /** What the pieces name by number. */
  readonly bundles: readonly BundlePlace[]
}

interface WholeBundle {
  /** Its path in the repository. */
  readonly key: string
  readonly bytes: number
  readonly sha256: string
}

/** The damaged bundles that a receipt names; a drill that restores names files instead. */
export function bundlesIn({ damaged }: Pick<Receipt, 'damaged'>): readonly string[] {
  return damaged.filter((name) => /^machines\/\S+\.tar\.zst\.age$/.test(name))
}

/** What a drill would read. */
export interface DrillPlan {
  readonly exports: readonly string[]
  readonly seed: string
  /** Of all bytes, what it aims at. */
  readonly share: number
  readonly runs: readonly FileRun[]
  readonly bundles: readonly WholeBundle[]
  /** Of the sample, and of all that it was drawn from. */
  readonly bytes: number
  readonly totalBytes: number
  readonly how: Receipt['how']
  /** What is found damaged before anything is read, with the reason why. */
  readonly damaged: ReadonlyMap<string, string>
}

/** A million-file export has ten times as many shards; these alone have 130,000 entries. */
const SHARDS_READ = 256

/** Small bundles, such as those of catalogs, cost a seek each. */
const BUDGET_BUNDLES = 1000

/** A worker's request: files that lie in the scratch place at the same time, for each of them. */
const BATCH_BYTES = 16 * 2 ** 20
const BATCH_RUNS = 64

const SCRATCH_NAME = /^drill-\d+$/

/**
 * Draws the sample. Reads signatures, manifests and some of the catalogs from the target; writes
 * nothing. @throws BackupError as the header says
 */
export async function planDrill(options: DrillOptions): Promise<DrillPlan> {
  const { repository, configuration, identities = [], nowMs } = options
  const places = await newestExports(options)
  const seed = drillSeed({ repository: repository.id, nowMs })
  const share = options.share ?? (await shareByAge(options, places))
  const plan: Planning = { options, seed, share, damaged: new Map() }
  const sizes = sizesOf(await listStamps(repository, configuration.machine))
  options.report({ kind: 'phase', name: 'drawing a sample' })
  const of =
    identities.length > 0
      ? { how: 'restored' as const, ...(await drawFiles(plan, { places, sizes })), bundles: [] }
      : { how: 'checksums' as const, ...(await drawBundles(plan, { places, sizes })), runs: [] }
  const bytes = [...of.runs, ...of.bundles].reduce((sum, item) => sum + item.bytes, 0)
  const { damaged } = plan
  if (damaged.size > 0) await mustBeThere(repository)
  return { exports: places.map(exportName), seed, share, bytes, damaged, ...of }
}

/**
 * Carries a drill out. Whoever calls it holds the run lock: scratch places that are there were left
 * by drills that were killed.
 * @returns the receipt, which says what was damaged; writeReceipt signs it
 * @throws BackupError as the header says; then nothing is known
 */
export async function drillTarget(options: DrillOptions): Promise<Receipt> {
  const beganMs = performance.now()
  const plan = await planDrill(options)
  const damaged = new Map(plan.damaged)
  const read =
    plan.how === 'restored'
      ? await restoreRuns(options, { plan, damaged })
      : await readBundles(options, { plan, damaged })
  if (damaged.size > 0) await mustBeThere(options.repository)
  const { configuration, repository, targetName, nowMs, report } = options
  const names = [...damaged.keys()].sort()
  for (const name of names.slice(0, DAMAGED_NAMED)) {
    const message = `${targetName}: ${name}: ${damaged.get(name)}`
    report({ kind: 'notice', level: 'warning', code: 'DRILL_DAMAGED', message })
  }
  return {
    format: 1,
    kind: 'drill',
    machine: configuration.machine,
    target: targetName,
    drive: poolDrive(options),
    repository: repository.id,
    exports: plan.exports,
    start: new Date(nowMs).toISOString(),
    end: new Date(nowMs + performance.now() - beganMs).toISOString(),
    how: plan.how,
    ...read,
    totalBytes: plan.totalBytes,
    seed: plan.seed,
    result: names.length === 0 ? 'good' : 'damaged',
    damaged: names.slice(0, DAMAGED_NAMED),
  }
}

/** The newest export of each set. @throws BackupError NOTHING_FOUND */
async function newestExports({
  repository,
  configuration: { machine },
  sets = [],
}: DrillOptions): Promise<readonly ExportPlace[]> {
  if (sets.length === 0) {
    return pickExports(await findExports(repository, { machine, set: undefined }), undefined)
  }
  const places: ExportPlace[] = []
  for (const set of sets) {
    places.push(...pickExports(await findExports(repository, { machine, set }), undefined))
  }
  return places
}

/** By the set whose last full verification is the oldest. */
async function shareByAge(options: DrillOptions, places: readonly ExportPlace[]): Promise<number> {
  const { configuration, repository, targetName: target, nowMs } = options
  const { receipts } = await readReceipts(configuration.staging, keysOf(options))
  const drive = poolDrive(options)
  const shares = places.map(({ machine, set }) => {
    const about = { target, drive, repository: repository.id, export: `${machine}/${set}` }
    const last = lastProof(receipts, about).verification
    const lastFullMs = last === undefined ? undefined : provenMsOf(last)
    return sampleShare({ nowMs, lastFullMs })
  })
  return Math.max(...shares)
}

function keysOf({ signer, publicKeys = [] }: DrillOptions): readonly string[] {
  return [signer.publicKey, ...publicKeys]
}

interface Planning {
  readonly options: DrillOptions
  readonly seed: string
  readonly share: number
  readonly damaged: Map<string, string>
}

interface Candidates {
  readonly places: readonly ExportPlace[]
  /** Of all bundles that are there, by path in the repository. */
  readonly sizes: ReadonlyMap<string, number>
}

function sizesOf(stamps: readonly StampDirectory[]): ReadonlyMap<string, number> {
  return new Map(
    stamps.flatMap((place) =>
      [...place.files].map(([file, bytes]) => [`${directoryOf(place)}/${file}`, bytes]),
    ),
  )
}

/** The manifest is read with the bundles, and counts as none. */
function isManifest({ key }: WholeBundle): boolean {
  return key.endsWith(`/${MANIFEST}`)
}

/** How many bytes of so many may be read. */
function limitOf({ options, share }: Planning, totalBytes: number): number {
  const limitBytes = share >= 1 ? Infinity : share * totalBytes
  return options.share === undefined ? Math.min(limitBytes, DRILL_BUDGET_BYTES) : limitBytes
}

/** Without an identity: bundles of all exports together, which share most of them. */
async function drawBundles(
  plan: Planning,
  { places, sizes }: Candidates,
): Promise<{ readonly bundles: readonly WholeBundle[]; readonly totalBytes: number }> {
  const { repository, share } = plan.options
  const bundles = new Map<string, WholeBundle>()
  for (const place of places) {
    await orDamaged(plan, place, async () => {
      forgetRecords(repository, place)
      const verification = await readVerification(repository, place, keysOf(plan.options))
      const named = new Map(
        [...verification.bundles].map(([name, sha256]) => [
          bundlePath(place.machine, name),
          sha256,
        ]),
      )
      // Always read: without it there is no export.
      named.set(`${directoryOf(place)}/${MANIFEST}`, verification.manifestSha256)
      for (const [key, sha256] of named) {
        const bytes = sizes.get(key)
        if (bytes === undefined) plan.damaged.set(key, 'it is missing')
        else bundles.set(key, { key, bytes, sha256 })
      }
    })
  }
  const all = [...bundles.values()]
  const totalBytes = all.reduce((sum, { bytes }) => sum + bytes, 0)
  const sample = chooseSample(
    all.filter((bundle) => !isManifest(bundle)),
    {
      seed: plan.seed,
      limitBytes: limitOf(plan, totalBytes),
      minItems: 1,
      maxItems: share === undefined ? BUDGET_BUNDLES : Infinity,
    },
  )
  return { bundles: [...all.filter(isManifest), ...sample], totalBytes }
}

/** With an identity: runs of files, of each export by itself, so that no set is forgotten. */
async function drawFiles(
  plan: Planning,
  { places, sizes }: Candidates,
): Promise<{ readonly runs: readonly FileRun[]; readonly totalBytes: number }> {
  const { repository, identities = [] } = plan.options
  const publicKeys = keysOf(plan.options)
  const readers: ExportReader[] = []
  try {
    for (const place of places) {
      await orDamaged(plan, place, async () => {
        forgetRecords(repository, place)
        const manifest = await readManifest(repository, place, { publicKeys, identities })
        for (const { name, sizeBytes } of manifest.bundles) {
          const path = bundlePath(place.machine, name)
          const there = sizes.get(path)
          if (there === undefined) plan.damaged.set(path, 'it is missing')
          else if (there !== sizeBytes) plan.damaged.set(path, 'it has another size')
          forget(repository, path)
        }
        readers.push(new ExportReader({ repository, manifest, identities }))
      })
    }
    const totalBytes = readers.reduce((sum, { manifest }) => sum + manifest.statistics.bytes, 0)
    const runs: FileRun[] = []
    for (const reader of readers) runs.push(...(await drawRuns(plan, { reader, totalBytes })))
    return { runs, totalBytes }
  } finally {
    for (const reader of readers) reader.close()
  }
}

/** The sample of one export: some of its shards, and of them some runs. */
async function drawRuns(
  plan: Planning,
  { reader, totalBytes }: { readonly reader: ExportReader; readonly totalBytes: number },
): Promise<readonly FileRun[]> {
  const { seed, options } = plan
  const { manifest } = reader
  const isLimited = options.share === undefined
  const ofTotal = totalBytes === 0 ? 0 : manifest.statistics.bytes / totalBytes
  const limits = {
    seed,
    limitBytes: ofTotal === 0 ? 0 : limitOf(plan, totalBytes) * ofTotal,
    minItems: LEAST_FILES,
    maxItems: isLimited ? Math.max(LEAST_FILES, DRILL_BUDGET_FILES * ofTotal) : Infinity,
  }
  const shards = (await shardsOf(plan, reader)).map((place) => {
    return { place, key: `${exportName(manifest)}: ${place.digest}`, bytes: place.entries }
  })
  const maxItems = isLimited ? SHARDS_READ : Infinity
  let runs: readonly FileRun[] = []
  for (const { place } of chooseSample(shards, {
    seed,
    limitBytes: Infinity,
    minItems: 1,
    maxItems,
  })) {
    // A sample of samples is the sample of all, and memory holds no more than one shard besides.
    runs = chooseSample([...runs, ...(await runsOf(plan, { reader, place }))], limits)
    // Reading is synchronous: whoever wants to interrupt it has to be heard.
    await setImmediate()
    if (options.signal.aborted) throw interrupted()
  }
  return runs
}

async function shardsOf(plan: Planning, reader: ExportReader): Promise<readonly ShardPlace[]> {
  const { machine, index } = reader.manifest
  return await orDamagedPart(plan, {
    path: bundlePath(machine, index.bundle),
    read: async () => await reader.index(),
  })
}

async function runsOf(
  plan: Planning,
  { reader, place }: { readonly reader: ExportReader; readonly place: ShardPlace },
): Promise<readonly FileRun[]> {
  const { manifest } = reader
  const path = bundlePath(manifest.machine, place.bundle)
  const read = async () => {
    const { bundles, entries } = await reader.shard(place)
    const files = entries.filter(({ type }) => type === 'file')
    return files.flatMap((entry) => runsOfFile({ manifest, entry, bundles }))
  }
  return await orDamagedPart(plan, { path, read })
}

function runsOfFile({
  manifest,
  entry,
  bundles,
}: {
  readonly manifest: ExportReader['manifest']
  readonly entry: Entry
  readonly bundles: readonly BundlePlace[]
}): readonly FileRun[] {
  const { machine } = manifest
  const { path } = entry
  const of = exportName(manifest)
  const all = entry.pieces ?? []
  return cutRuns(all).map(([start, end]) => {
    const pieces = all.slice(start, end)
    const bytes = pieces.reduce((sum, [, , , length]) => sum + length, 0)
    const key = `${of}: ${path}${start === 0 ? '' : `#${start}`}`
    const name = `${of}: ${displayPath(path)}`
    return { key, bytes, name, export: of, path, machine, pieces, bundles }
  })
}

/** Notes as damage what keeps an export from being looked into. */
async function orDamaged(
  { damaged }: Planning,
  place: ExportPlace,
  action: () => Promise<void>,
): Promise<void> {
  try {
    await action()
  } catch (error) {
    if (!isDamage(error)) throw error
    const isSigned = ['SIGNATURE_WRONG', 'SIGNER_UNKNOWN', 'BUNDLE_DAMAGED', 'BUNDLE_MISSING']
    const file = isSigned.includes(error.code) ? VERIFICATION : MANIFEST
    damaged.set(`${directoryOf(place)}/${file}`, error.message)
  }
}

/** Notes as damage that a part of a catalog cannot be read. */
async function orDamagedPart<Item>(
  { damaged }: Planning,
  { path, read }: { readonly path: string; readonly read: () => Promise<readonly Item[]> },
): Promise<readonly Item[]> {
  try {
    return await read()
  } catch (error) {
    if (!isDamage(error)) throw error
    damaged.set(path, error.message)
    return []
  }
}

/** A target that fails is damaged where it still is there: see mustBeThere. */
function isDamage(error: unknown): error is BackupError {
  return error instanceof BackupError && (error.exitCode === 13 || error.code === 'TARGET_FAILED')
}

/**
 * A drive that is pulled out fails in every read, which says nothing of what is on it.
 * @throws BackupError TARGET_ABSENT, and what reading throws
 */
async function mustBeThere(repository: Repository): Promise<void> {
  forget(repository, 'repository.json')
  const there = await findRepository(repository.target)
  if (there?.id === repository.id) return
  const { name, place } = repository.target
  throw new BackupError('TARGET_ABSENT', `target ${name}: ${place} went away during the drill`, {
    hint: 'plug it in and start the drill again; it wrote nothing there',
    retry: 'later',
  })
}

/** What the receipt says of the reading. */
type Read = Pick<Receipt, 'bundles' | 'files' | 'bytes'>

interface Carrying {
  readonly plan: DrillPlan
  /** What is found is added to it. */
  readonly damaged: Map<string, string>
}

/** Reads whole bundles past the page cache and compares them with their signed SHA-256. */
async function readBundles(
  { repository, cores = availableParallelism(), signal, report }: DrillOptions,
  { plan, damaged }: Carrying,
): Promise<Read> {
  let filesDone = 0
  let bytes = 0
  await runWorkers<VerifyRequest, VerifyReply>({
    script: './verify-worker.js',
    ahead: 1,
    workerData: { identities: [] },
    workers: cores,
    signal,
    requests: plan.bundles.map(({ key, bytes: sizeBytes, sha256 }) => {
      const path = repository.target.localPath(key)
      return { key, name: key, path, sizeBytes, sha256, ranges: undefined }
    }),
    interruptedHint: UNHARMED,
    onReply: ({ key, bytesRead, problems }) => {
      filesDone += 1
      bytes += bytesRead
      const [problem] = problems
      if (problem !== undefined) damaged.set(key, problem.message)
      const done = { filesDone, bytesDone: bytes, bytesTotal: plan.bytes }
      report({ kind: 'progress', phase: 'drilling', filesTotal: plan.bundles.length, ...done })
    },
  })
  return { bundles: plan.bundles.filter((one) => !isManifest(one)).length, files: 0, bytes }
}

const UNHARMED = 'a drill only reads the target; start it again'

/** Restores runs of files into the scratch place, reads them again there, and removes them. */
async function restoreRuns(options: DrillOptions, { plan, damaged }: Carrying): Promise<Read> {
  const { repository, signal, report } = options
  const { staging } = options.configuration
  const { identities = [], cores = availableParallelism() } = options
  const { bundles, runs } = numberBundles(repository, plan.runs)
  for (const { path } of bundles) forgetPages(path)
  let bytes = 0
  let filesDone = 0
  await withScratch(staging, async (scratch) => {
    const content = { kind: 'bundles' as const, bundles }
    const settings: RestoreSettings = { identities, content, keepsCorrupt: false }
    await runWorkers<readonly RestoreItem[], RestoreReply>({
      script: './restore-worker.js',
      ahead: 1,
      workerData: settings,
      workers: cores,
      signal,
      requests: batchesOf(runs, scratch),
      interruptedHint: UNHARMED,
      onReply: ({ outcomes }) => {
        for (const { index, outcome } of outcomes) {
          const { run, pieces } = runs[index]!
          filesDone += 1
          bytes += run.bytes
          if (outcome.kind === 'failed') damaged.set(run.name, reasonOf(outcome.error, options))
          else if (!isAsSigned({ staging, path: `${scratch}/${index}`, pieces })) {
            damaged.set(run.name, 'what was restored differs from the signed catalog')
          }
          rmSync(`${scratch}/${index}`, { force: true })
        }
        const done = { filesDone, bytesDone: bytes, bytesTotal: plan.bytes }
        report({ kind: 'progress', phase: 'drilling', filesTotal: runs.length, ...done })
      },
    })
  })
  const files = new Set(runs.map(({ run }) => run.name)).size
  return { bundles: bundles.length, files, bytes }
}

interface NumberedRun {
  readonly run: FileRun
  /** Bundles of all runs under one numbering. */
  readonly pieces: readonly Piece[]
}

/** In the order in which they lie on the target. */
function numberBundles(
  { target }: Repository,
  runs: readonly FileRun[],
): { readonly bundles: NumberedBundles; readonly runs: readonly NumberedRun[] } {
  const numbers = new Map<string, number>()
  const frames: Map<number, FrameRange>[] = []
  const numberOf = (path: string): number => {
    const number = numbers.get(path) ?? numbers.size
    if (number === numbers.size) frames.push(new Map())
    numbers.set(path, number)
    return number
  }
  const numbered = runs.map((run) => {
    const pieces = run.pieces.map(([id, bundle, offset, length]): Piece => {
      const place = run.bundles[bundle]!
      const number = numberOf(bundlePath(run.machine, place.name))
      for (const frame of framesOf(place.frames, { offset, length })) {
        frames[number]!.set(frame[0], frame)
      }
      return [id, number, offset, length]
    })
    return { run, pieces }
  })
  const bundles = [...numbers].map(([path, number]) => ({
    path: target.localPath(path),
    frames: [...frames[number]!.values()].sort((a, b) => a[0] - b[0]),
  }))
  return { bundles, runs: numbered.sort(byPlace) }
}

function byPlace({ pieces: [one] }: NumberedRun, { pieces: [other] }: NumberedRun): number {
  if (one === undefined || other === undefined) return 0
  return one[1] - other[1] || one[2] - other[2]
}

/**
 * Under numbers instead of their paths, and without metadata: nothing of the backup has a say in
 * what the scratch place looks like, and nothing there resists removal.
 */
function batchesOf(
  runs: readonly NumberedRun[],
  scratch: string,
): readonly (readonly RestoreItem[])[] {
  const batches: RestoreItem[][] = []
  let bytes = Infinity
  for (const [index, { run, pieces }] of runs.entries()) {
    if (bytes >= BATCH_BYTES || batches.at(-1)!.length >= BATCH_RUNS) {
      batches.push([])
      bytes = 0
    }
    const path = rawPathFromText(`${scratch}/${index}`)
    const owner = { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 }
    const metadata = { path: String(index), type: 'file', mode: 0o600, mtimeNs: 0n } as const
    const entry: Entry = { ...metadata, ...owner, size: run.bytes, pieces }
    const nothing = { isFresh: true, mayReplace: false, looksSame: false, aside: undefined }
    batches.at(-1)!.push({ index, path, entry, from: entry.path, ...nothing })
    bytes += run.bytes
  }
  return batches
}

/** Why a run is damaged. @throws BackupError when it is this machine that could not write it */
function reasonOf(plain: PlainError, { configuration: { staging } }: DrillOptions): string {
  const error = unpackError(plain)
  if (isDamage(error)) return error.message
  const system = plain.facts['system']
  if (plain.code !== 'RESTORE_FAILED' || typeof system !== 'string') throw error
  const cause = Object.assign(new Error(plain.message), { code: system })
  throw stagingError({ error: cause, staging, doing: 'written' })
}

/**
 * Whether a file has exactly the content that the signed catalog names. The worker that restored it
 * has compared it already; this reads it anew and counts for itself.
 */
function isAsSigned({
  staging,
  path,
  pieces,
}: {
  readonly staging: string
  readonly path: string
  readonly pieces: readonly Piece[]
}): boolean {
  try {
    const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW)
    try {
      return hasPieces(fd, pieces)
    } finally {
      closeSync(fd)
    }
  } catch (error) {
    throw stagingError({ error, staging, doing: 'read' })
  }
}

function hasPieces(fd: number, pieces: readonly Piece[]): boolean {
  const bytes = pieces.reduce((sum, [, , , length]) => sum + length, 0)
  if (fstatSync(fd).size !== bytes) return false
  let position = 0
  return pieces.every(([id, , , length]) => {
    const piece = Buffer.alloc(length)
    for (let done = 0; done < length;) {
      const read = readSync(fd, piece, done, length - done, position + done)
      if (read === 0) return false
      done += read
    }
    position += length
    const digest = createHash('blake2b512').update(piece).digest()
    return digest.subarray(0, DIGEST_BYTES).toString('hex') === id
  })
}

/** Runs `action` with a new directory in the state, which is gone afterwards however it ends. */
async function withScratch(
  staging: string,
  action: (scratch: string) => Promise<void>,
): Promise<void> {
  const scratch = `${stateRoot(staging)}/drill-${process.pid}`
  const remove = (path: string) => rmSync(path, { recursive: true, force: true })
  try {
    for (const name of readdirSync(stateRoot(staging))) {
      if (SCRATCH_NAME.test(name)) remove(`${stateRoot(staging)}/${name}`)
    }
    mkdirSync(scratch, { mode: 0o700 })
  } catch (error) {
    throw stagingError({ error, staging, doing: 'written' })
  }
  try {
    await action(scratch)
  } finally {
    remove(scratch)
  }
}

function forgetRecords(repository: Repository, place: ExportPlace): void {
  for (const file of [MANIFEST, VERIFICATION, VERIFICATION_SIGNATURE]) {
    forget(repository, `${directoryOf(place)}/${file}`)
  }
}

/** Has the next read of a file come from the medium. */
function forget({ target }: Repository, path: string): void {
  forgetPages(target.localPath(path))
}

function forgetPages(path: string): void {
  try {
    const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK
    const fd = openSync(rawPathToBytes(path), flags)
    try {
      dropPageCache(fd)
    } finally {
      closeSync(fd)
    }
  } catch (error) {
    // Whoever reads it next is told the same.
    if (systemCode(error) === undefined) throw error
  }
}

function interrupted(): BackupError {
  return new BackupError('INTERRUPTED', 'interrupted', { hint: UNHARMED })
}
