// Proves exports: every byte they need is read from the medium and compared with what was signed.
// Writes nothing.
//
// Signatures and manifests first, then catalogs, then every bundle once in worker threads, whatever
// exports share it; or those that a plan chooses, for proof.ts can read a little at a time. Without
// an identity only signatures and checksums can be checked, and the result says so. Damage is named
// by bundle and by path (invariants 8, 10). Throws IDENTITY_WRONG, INTERRUPTED, TARGET errors.

import { Buffer } from 'node:buffer'
import { BackupError, type PlainError, packError, unpackError } from '../errors.ts'
import { DIGEST_BYTES } from '../format/chunker.ts'
import type { Range } from '../model/entry.ts'
import { exportName } from '../model/manifest.ts'
import type { RawPath } from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import type { ShardPlace } from '../model/shard.ts'
import { MANIFEST, bundleFile, bundlePath } from '../model/verification.ts'
import type { ExpectReply, ExpectSettings } from './expect-worker.ts'
import { addressOf } from './bundle-address.ts'
import { ExportReader } from './export-reader.ts'
import {
  type ExportPlace,
  type Repository,
  directoryOf,
  readManifest,
  readVerification,
  sha256OfFile,
} from './repository.ts'
import type { ExpectedRanges, VerifyReply, VerifyRequest } from './verify-worker.ts'
import { runWorkers } from './worker-pool.ts'

export interface VerifyOptions {
  readonly repository: Repository
  readonly places: readonly ExportPlace[]
  readonly publicKeys: (machine: string) => Promise<readonly string[]>
  /** Empty: checksums and signatures only. */
  readonly identities: readonly string[]
  readonly cores: number
  /**
   * Asked before bundles are read: which of them, in which order. Throws to prevent that any are.
   * Undefined: all, the largest first.
   */
  readonly plan?: ((bundles: readonly KnownBundle[]) => Promise<ReadingPlan>) | undefined
  /** Whether no more bundles are to be begun; every worker reads at least one. */
  readonly isEnough?: (() => boolean) | undefined
  /** Told of each bundle as soon as it was read. */
  readonly onRead?: ((bundle: ReadBundle) => void) | undefined
  readonly report: Report
  readonly signal: AbortSignal
}

/** A bundle that exports need and the target has. */
export interface KnownBundle {
  /** In the repository. */
  readonly path: string
  readonly sha256: string
  /** As it lies there. */
  readonly bytes: number
  /** Whether that is not what was signed. */
  readonly isSuspect: boolean
}

export interface ReadingPlan {
  /** Paths of bundles. What is missing is found out besides. */
  readonly toRead: readonly string[]
  /** What lies in cold storage, and so cannot be read now. */
  readonly cold: ReadonlySet<string>
}

export interface ReadBundle {
  readonly path: string
  readonly sha256: string
  readonly bytes: number
  readonly result: 'whole' | 'damaged' | 'missing'
}

/** What is lost with one bundle. */
export interface BundleDamage {
  /** Its path in the repository. */
  readonly bundle: string
  readonly problems: readonly PlainError[]
  /** Every export that needs it. */
  readonly exports: readonly {
    readonly place: ExportPlace
    /** Paths that have content or metadata in what is damaged; undefined: not known. */
    readonly files: readonly RawPath[] | undefined
    /** Whether parts of the export's catalog are lost in it: what they list is not in `files`. */
    readonly isCatalogHit: boolean
  }[]
}

export interface VerifiedExport extends ExportPlace {
  readonly complete: boolean | undefined
  readonly files: number | undefined
  readonly bytes: number | undefined
  readonly problems: readonly PlainError[]
  /** How many of its bundles were not read, because they are in cold storage. */
  readonly unread: number
  /** How many the plan left for another time. */
  readonly left: number
  /** Paths of the bundles that it needs. */
  readonly needs: readonly string[]
  /** Paths whose bytes or metadata are damaged or gone. */
  readonly damaged: readonly RawPath[]
}

export interface VerifyOutcome {
  readonly exports: readonly VerifiedExport[]
  readonly bundles: number
  readonly bytesRead: number
  /** Whether content was checked, or only checksums and signatures. */
  readonly deep: boolean
  /** Bundles and manifests that are not what was signed: their paths in the repository. */
  readonly damagedFiles: readonly string[]
  /** Bundles that are: theirs. */
  readonly wholeFiles: readonly string[]
  /** By bundle. */
  readonly damage: readonly BundleDamage[]
}

/** @throws BackupError IDENTITY_WRONG when the identity opens nothing, INTERRUPTED */
export async function verifyExports(options: VerifyOptions): Promise<VerifyOutcome> {
  const deep = options.identities.length > 0
  const expectations = new Map<string, BundleExpectation>()
  const examined: Examined[] = []
  options.report({ kind: 'phase', name: 'reading catalogs' })
  for (const place of options.places) {
    examined.push(
      deep
        ? await examineDeep(options, { place, expectations })
        : await examineShallow(options, { place, expectations }),
    )
  }
  const { toRead, cold } = await toBeRead(options, { expectations, examined })
  const replies = await verifyBundles(options, toRead)
  const present = await withoutGone(options, { examined, replies })
  const found = { expectations, replies, cold, options }
  const exports: VerifiedExport[] = []
  const losses: Loss[] = []
  for (const one of present) exports.push(await judge(one, { ...found, losses }))
  const bytesRead = [...replies.values()].reduce((sum, reply) => sum + reply.bytesRead, 0)
  const damage = damageOf({ losses, replies })
  const damagedFiles = [
    ...damage.map(({ bundle }) => bundle),
    ...present
      .filter(({ problems }) => problems.some(({ code }) => code === 'MANIFEST_DAMAGED'))
      .map(({ place }) => `${directoryOf(place)}/${MANIFEST}`),
  ]
  const wholeFiles = [...replies].flatMap(([key, reply]) => (isBad(reply) ? [] : [pathOfKey(key)]))
  const bundles = replies.size
  return { exports, bundles, bytesRead, deep, damagedFiles, wholeFiles, damage }
}

function pathOfKey(key: string): string {
  return `machines/${bundleFile(key)}`
}

/**
 * Without the exports that retention let go of while they were verified: that their bundles are
 * gone is no damage.
 */
async function withoutGone(
  { repository, report }: VerifyOptions,
  {
    examined,
    replies,
  }: { readonly examined: readonly Examined[]; readonly replies: ReadonlyMap<string, VerifyReply> },
): Promise<readonly Examined[]> {
  const present: Examined[] = []
  for (const one of examined) {
    const { place } = one
    const own = one.bundles.map((name) => replies.get(keyOf(place.machine, name)))
    const problems = [...one.problems, ...own.flatMap((reply) => reply?.problems ?? [])]
    const isGone =
      problems.some(({ code }) => code === 'BUNDLE_MISSING')
      && !(await hasManifest(repository, place))
    if (!isGone) present.push(one)
    else {
      one.reader?.close()
      const message = `${exportName(place)} was let go meanwhile, and is not judged`
      report({ kind: 'notice', level: 'info', code: 'EXPORT_GONE', message })
    }
  }
  return present
}

async function hasManifest({ target }: Repository, place: ExportPlace): Promise<boolean> {
  const files = (await target.list(directoryOf(place))) ?? []
  return files.some(({ name }) => name === MANIFEST)
}

/**
 * What cannot be reached, or may not be read, says nothing of what is there: it ends the
 * verification, and nothing is called damaged.
 */
function isOfTarget({ code }: Pick<PlainError, 'code'>): boolean {
  return code === 'INTERRUPTED' || NO_DAMAGE.includes(code ?? '')
}

const NO_DAMAGE: readonly string[] = ['TARGET_ABSENT', 'TARGET_DENIED', 'COLD_STORAGE']

/** What the plan chooses, in its order, and before it what is missing. */
async function toBeRead(
  { plan, repository }: VerifyOptions,
  { expectations, examined }: { expectations: Expectations; examined: readonly Examined[] },
): Promise<{ readonly toRead: Expectations; readonly cold: ReadonlySet<string> }> {
  if (plan === undefined) return { toRead: largestFirst(expectations), cold: new Set() }
  const sizes = new Map<string, number>()
  for (const machine of new Set(examined.map(({ place }) => place.machine))) {
    const files = await repository.target.listTree(`machines/${machine}`)
    for (const { name, sizeBytes } of files) sizes.set(`machines/${machine}/${name}`, sizeBytes)
  }
  const byPath = new Map([...expectations].map((pair) => [pathOf(pair[1]), pair] as const))
  const known = [...byPath].flatMap(([path, [, { sha256, sizeBytes }]]): KnownBundle[] => {
    const bytes = sizes.get(path)
    if (bytes === undefined) return []
    return [{ path, sha256, bytes, isSuspect: sizeBytes !== undefined && sizeBytes !== bytes }]
  })
  const { toRead, cold } = await plan(known)
  const missing = [...byPath.keys()].filter((path) => !sizes.has(path))
  return { toRead: new Map([...missing, ...toRead].map((path) => byPath.get(path)!)), cold }
}

function largestFirst(expectations: Expectations): Expectations {
  return new Map([...expectations].sort(([, a], [, b]) => (b.sizeBytes ?? 0) - (a.sizeBytes ?? 0)))
}

function pathOf({ machine, name }: Pick<BundleExpectation, 'machine' | 'name'>): string {
  return bundlePath(machine, name)
}

/** What all exports together expect of one bundle. */
interface BundleExpectation {
  readonly name: string
  readonly machine: string
  readonly sha256: string
  readonly sizeBytes: number | undefined
  /** By offset; what several exports name is there once. */
  readonly ranges: Map<number, { readonly length: number; readonly digest: Buffer }> | undefined
}

interface Examined {
  readonly place: ExportPlace
  readonly reader: ExportReader | undefined
  readonly bundles: readonly string[]
  readonly problems: PlainError[]
  readonly complete: boolean | undefined
  readonly files: number | undefined
  readonly bytes: number | undefined
}

type Expectations = Map<string, BundleExpectation>

function keyOf(machine: string, bundle: string): string {
  return `${machine}/${bundle}`
}

async function examineShallow(
  options: VerifyOptions,
  { place, expectations }: { place: ExportPlace; expectations: Expectations },
): Promise<Examined> {
  const none = { place, reader: undefined, complete: undefined, files: undefined, bytes: undefined }
  try {
    const { repository } = options
    const verification = await readVerification(
      repository,
      place,
      await options.publicKeys(place.machine),
    )
    for (const [name, sha256] of verification.bundles) {
      expect(expectations, {
        machine: place.machine,
        name,
        sha256,
        sizeBytes: undefined,
        deep: false,
      })
    }
    const sha256 = await sha256OfFile(repository.target, `${directoryOf(place)}/${MANIFEST}`)
    const problems =
      sha256 === verification.manifestSha256
        ? []
        : [
            packError(
              new BackupError(
                'MANIFEST_DAMAGED',
                `the manifest of ${exportName(place)} does not have its signed checksum`,
              ),
            ),
          ]
    return { ...none, bundles: [...verification.bundles.keys()], problems }
  } catch (error) {
    if (!(error instanceof BackupError) || isOfTarget(error)) throw error
    return { ...none, bundles: [], problems: [packError(error)] }
  }
}

async function examineDeep(
  options: VerifyOptions,
  { place, expectations }: { place: ExportPlace; expectations: Expectations },
): Promise<Examined> {
  const { repository, identities } = options
  let reader: ExportReader | undefined
  const problems: PlainError[] = []
  try {
    const publicKeys = await options.publicKeys(place.machine)
    const manifest = await readManifest(repository, place, { publicKeys, identities })
    reader = new ExportReader({ repository, manifest, identities, signal: options.signal })
    for (const { name, sizeBytes, sha256 } of manifest.bundles) {
      expect(expectations, { machine: place.machine, name, sha256, sizeBytes, deep: true })
    }
    const {
      complete,
      statistics: { files, bytes },
    } = manifest
    await expectCatalog(options, { reader, expectations, problems })
    const bundles = manifest.bundles.map(({ name }) => name)
    return { place, reader, bundles, problems, complete, files, bytes }
  } catch (error) {
    if (!(error instanceof BackupError) || error.code === 'IDENTITY_WRONG') throw error
    if (isOfTarget(error)) throw error
    const bundles = reader?.manifest.bundles.map(({ name }) => name) ?? []
    problems.push(packError(error))
    return {
      place,
      reader: undefined,
      bundles,
      problems,
      complete: undefined,
      files: undefined,
      bytes: undefined,
    }
  }
}

function expect(
  expectations: Expectations,
  {
    machine,
    name,
    sha256,
    sizeBytes,
    deep,
  }: {
    machine: string
    name: string
    sha256: string
    sizeBytes: number | undefined
    deep: boolean
  },
): void {
  const key = keyOf(machine, name)
  if (expectations.has(key)) return
  expectations.set(key, { name, machine, sha256, sizeBytes, ranges: deep ? new Map() : undefined })
}

/** Adds what an export's catalog says of each bundle; workers read the shards. */
async function expectCatalog(
  options: VerifyOptions,
  {
    reader,
    expectations,
    problems,
  }: { reader: ExportReader; expectations: Expectations; problems: PlainError[] },
): Promise<void> {
  const { machine, index } = reader.manifest
  const rangesOf = (bundle: string) => {
    const expectation = expectations.get(keyOf(machine, bundle))
    if (expectation?.ranges !== undefined) return expectation.ranges
    throw new BackupError(
      'CATALOG_DAMAGED',
      `the catalog names ${bundle}, which the manifest does not`,
    )
  }
  const [offset, length] = index.tar
  rangesOf(index.bundle).set(offset, { length, digest: Buffer.from(index.digest, 'hex') })
  const shards = await reader.index()
  const settings: ExpectSettings = {
    machineDirectory: reader.machineDirectory,
    identities: options.identities,
  }
  await runWorkers<readonly ShardPlace[], ExpectReply>({
    script: './expect-worker.js',
    ahead: 2,
    workerData: settings,
    workers: options.cores,
    signal: options.signal,
    target: options.repository.target,
    sizes: reader.bundleSizes(),
    requests: Array.from({ length: Math.ceil(shards.length / SHARDS_A_REQUEST) }, (_, i) =>
      shards.slice(i * SHARDS_A_REQUEST, (i + 1) * SHARDS_A_REQUEST),
    ),
    interruptedHint: 'nothing was changed; start it again',
    onReply: (reply) => {
      problems.push(...reply.problems)
      for (const [bundle, ranges] of reply.ranges) mergeRanges(rangesOf(bundle), ranges)
    },
  })
}

/** Few enough that all workers end together. */
const SHARDS_A_REQUEST = 24

function mergeRanges(into: NonNullable<BundleExpectation['ranges']>, from: ExpectedRanges): void {
  const digests = Buffer.from(from.digests.buffer, from.digests.byteOffset, from.digests.length)
  for (const [i, offset] of from.offsets.entries()) {
    const digest = digests.subarray(i * DIGEST_BYTES, (i + 1) * DIGEST_BYTES)
    into.set(offset, { length: from.lengths[i]!, digest })
  }
}

async function verifyBundles(
  options: VerifyOptions,
  expectations: Expectations,
): Promise<ReadonlyMap<string, VerifyReply>> {
  const queue = [...expectations]
  const replies = new Map<string, VerifyReply>()
  const { identities, report, signal, cores, isEnough, onRead } = options
  const bytesTotal = queue.reduce((sum, [, { sizeBytes }]) => sum + (sizeBytes ?? 0), 0)
  let bytesDone = 0
  await runWorkers<VerifyRequest, VerifyReply>({
    script: './verify-worker.js',
    ahead: 1,
    workerData: { identities },
    workers: cores,
    target: options.repository.target,
    sizes: sizesOf(expectations),
    signal,
    requests: queue.map(([key, expectation]) =>
      requestFor(options.repository, { key, expectation }),
    ),
    isEnough,
    interruptedHint: 'nothing was changed; start it again',
    onReply: (reply) => {
      const failure = reply.problems.find(isOfTarget)
      if (failure !== undefined) throw unpackError(failure)
      replies.set(reply.key, reply)
      onRead?.(readingOf(reply, expectations))
      bytesDone += reply.bytesRead
      report({
        kind: 'progress',
        phase: 'verifying',
        filesDone: replies.size,
        filesTotal: queue.length,
        bytesDone,
        ...(bytesTotal === 0 ? {} : { bytesTotal }),
      })
    },
  })
  return replies
}

function readingOf(reply: VerifyReply, expectations: Expectations): ReadBundle {
  const { key, bytesRead: bytes, problems } = reply
  const isMissing = problems.some(({ code }) => code === 'BUNDLE_MISSING')
  const result = !isBad(reply) ? 'whole' : isMissing ? 'missing' : 'damaged'
  return { path: pathOfKey(key), sha256: expectations.get(key)!.sha256, bytes, result }
}

/** What manifests say of the lengths of bundles, by path in the repository. */
function sizesOf(expectations: Expectations): ReadonlyMap<string, number> {
  return new Map(
    [...expectations.values()].flatMap(({ machine, name, sizeBytes }) =>
      sizeBytes === undefined ? [] : [[pathOf({ machine, name }), sizeBytes]],
    ),
  )
}

function requestFor(
  { target }: Repository,
  { key, expectation }: { key: string; expectation: BundleExpectation },
): VerifyRequest {
  const { name, machine, sizeBytes, sha256, ranges } = expectation
  const path = addressOf(target, pathOf({ machine, name }))
  return {
    key,
    name,
    path,
    sizeBytes,
    sha256,
    ranges: ranges === undefined ? undefined : packRanges(ranges),
  }
}

function packRanges(ranges: NonNullable<BundleExpectation['ranges']>): VerifyRequest['ranges'] {
  const sorted = [...ranges].sort(([a], [b]) => a - b)
  const digests = Buffer.alloc(sorted.length * DIGEST_BYTES)
  sorted.forEach(([, { digest }], i) => digest.copy(digests, i * DIGEST_BYTES))
  return {
    offsets: Float64Array.from(sorted, ([offset]) => offset),
    lengths: Float64Array.from(sorted, ([, { length }]) => length),
    digests,
  }
}

/** What of one export is lost with one bundle. */
interface Loss {
  readonly key: string
  readonly place: ExportPlace
  readonly files: readonly RawPath[] | undefined
  readonly isCatalogHit: boolean
}

/**
 * What the replies mean for one export: problems of its bundles, and the paths that lie in damaged
 * ranges. Adds to `losses` what that means for each damaged bundle.
 */
async function judge(
  examined: Examined,
  {
    expectations,
    replies,
    cold,
    options,
    losses,
  }: {
    expectations: Expectations
    replies: ReadonlyMap<string, VerifyReply>
    cold: ReadonlySet<string>
    options: VerifyOptions
    losses: Loss[]
  },
): Promise<VerifiedExport> {
  const { place, reader, bundles, complete, files, bytes } = examined
  const own = bundles.map((name) => keyOf(place.machine, name))
  const problems = [...examined.problems, ...own.flatMap((key) => replies.get(key)?.problems ?? [])]
  const needs = own.map(pathOfKey)
  const notRead = own.filter((key) => !replies.has(key)).map(pathOfKey)
  const unread = notRead.filter((path) => cold.has(path)).length
  const left = notRead.length - unread
  const bad = own.filter((key) => isBad(replies.get(key)))
  const ranges = new Map(bad.map((key) => [key, damagedOf(key, { expectations, replies })]))
  const hit =
    reader === undefined || bad.length === 0 ? undefined : await damagedIn(reader, { ranges })
  reader?.close()
  const damaged = hit === undefined ? [] : hit.paths
  if (damaged.length > 0 && problems.length === 0) {
    problems.push(
      packError(
        new BackupError('BUNDLE_DAMAGED', `${damaged.length} paths differ from the signed catalog`),
      ),
    )
  }
  for (const key of bad) {
    const isCatalogHit = hit?.catalogs.has(key) ?? false
    const lost = hit === undefined ? undefined : (hit.byKey.get(key) ?? [])
    losses.push({ key, place, files: lost, isCatalogHit })
  }
  const isWhole = problems.length === 0
  const notReadText = `whole as far as it was read, ${notRead.length} bundles were not`
  const part = notRead.length === 0 ? 'whole' : notReadText
  const lost = reader === undefined ? 'which paths is not known' : `${damaged.length} paths`
  const state = isWhole ? part : `damaged, ${lost}`
  options.report({
    kind: 'notice',
    level: isWhole ? 'info' : 'warning',
    code: 'VERIFIED',
    message: `${exportName(place)}: ${state}`,
  })
  return { ...place, complete, files, bytes, problems, unread, left, needs, damaged }
}

function isBad(reply: VerifyReply | undefined): boolean {
  return reply !== undefined && (reply.problems.length > 0 || reply.damaged.length > 0)
}

/** The offsets of what is damaged in a bundle. */
function damagedOf(
  key: string,
  {
    expectations,
    replies,
  }: { expectations: Expectations; replies: ReadonlyMap<string, VerifyReply> },
): ReadonlySet<number> {
  const damaged = replies.get(key)?.damaged ?? []
  if (damaged.length === 0) return new Set()
  const offsets = [...(expectations.get(key)?.ranges?.keys() ?? [])].sort((a, b) => a - b)
  return new Set(damaged.map((i) => offsets[i]!))
}

interface Hit {
  /** All of them, in catalog order. */
  readonly paths: readonly RawPath[]
  readonly byKey: ReadonlyMap<string, readonly RawPath[]>
  /** The bundles that hold parts of the catalog which cannot be read. */
  readonly catalogs: ReadonlySet<string>
}

/** Which paths of an export have something in the damaged ranges of its bundles. */
async function damagedIn(
  reader: ExportReader,
  { ranges }: { readonly ranges: ReadonlyMap<string, ReadonlySet<number>> },
): Promise<Hit> {
  const { machine } = reader.manifest
  const paths: RawPath[] = []
  const byKey = new Map<string, RawPath[]>()
  const catalogs = new Set<string>()
  for (const place of await reader.index()) {
    let shard
    try {
      shard = await reader.shard(place)
    } catch (error) {
      // Told as a problem of the export already: its paths cannot be named, only where they begin.
      if (!(error instanceof BackupError)) throw error
      catalogs.add(keyOf(machine, place.bundle))
      continue
    }
    const keys = shard.bundles.map(({ name }) => keyOf(machine, name))
    const isDamaged = ([bundle, offset]: Range): boolean => {
      return ranges.get(keys[bundle]!)?.has(offset) ?? false
    }
    for (const entry of shard.entries) {
      const where: Range[] = (entry.pieces ?? []).map(([, ...range]) => range)
      if (entry.header !== undefined) where.push(entry.header)
      const hit = new Set(where.filter(isDamaged).map(([bundle]) => keys[bundle]!))
      if (hit.size > 0) paths.push(entry.path)
      for (const key of hit) {
        const own = byKey.get(key) ?? []
        own.push(entry.path)
        byKey.set(key, own)
      }
    }
  }
  return { paths, byKey, catalogs }
}

/** Grouped by bundle, as they lie in the repository. */
function damageOf({
  losses,
  replies,
}: {
  readonly losses: readonly Loss[]
  readonly replies: ReadonlyMap<string, VerifyReply>
}): readonly BundleDamage[] {
  const keys = [...new Set(losses.map(({ key }) => key))].sort()
  return keys.map((key) => {
    const own = losses.filter((loss) => loss.key === key)
    return {
      bundle: pathOfKey(key),
      problems: replies.get(key)?.problems ?? [],
      exports: own.map(({ place, files, isCatalogHit }) => ({ place, files, isCatalogHit })),
    }
  })
}
