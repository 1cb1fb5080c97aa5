// Proves exports: every byte they need is read from the medium and compared with what was signed.
// Writes nothing.
//
// Signatures and manifests first, then catalogs, then every bundle once in worker threads, whatever
// exports share it. Without an identity only signatures and checksums can be checked, and the
// result says so. Damage is named by path (invariants 8, 10).

import { Buffer } from 'node:buffer'
import { BackupError, type PlainError, packError, unpackError } from '../errors.ts'
import { DIGEST_BYTES } from '../format/chunker.ts'
import type { Range } from '../model/entry.ts'
import { exportName } from '../model/manifest.ts'
import type { RawPath } from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import type { ShardPlace } from '../model/shard.ts'
import { MANIFEST, bundlePath } from '../model/verification.ts'
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
   * Asked before bundles are read, with their paths and sizes, where that costs money: which of
   * them are not to be read; throws to prevent the rest as well.
   */
  readonly beforeReading?:
    ((bundles: ReadonlyMap<string, number>) => Promise<ReadonlySet<string>>) | undefined
  readonly report: Report
  readonly signal: AbortSignal
}

export interface VerifiedExport extends ExportPlace {
  readonly complete: boolean | undefined
  readonly files: number | undefined
  readonly bytes: number | undefined
  readonly problems: readonly PlainError[]
  /** How many of its bundles were not read, because they are in cold storage. */
  readonly unread: number
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
  const toRead = await toBeRead(options, { expectations, examined })
  const replies = await verifyBundles(options, toRead)
  const exports: VerifiedExport[] = []
  for (const one of examined) exports.push(await judge(one, { expectations, replies, options }))
  const bytesRead = [...replies.values()].reduce((sum, reply) => sum + reply.bytesRead, 0)
  const damagedFiles = [
    ...[...replies].flatMap(([key, { problems }]) => {
      return problems.length > 0 ? [`machines/${key}.tar.zst.age`] : []
    }),
    ...examined
      .filter(({ problems }) => problems.some(({ code }) => code === 'MANIFEST_DAMAGED'))
      .map(({ place }) => `${directoryOf(place)}/${MANIFEST}`),
  ]
  const wholeFiles = [...replies].flatMap(([key, { problems }]) => {
    return problems.length === 0 ? [`machines/${key}.tar.zst.age`] : []
  })
  return { exports, bundles: replies.size, bytesRead, deep, damagedFiles, wholeFiles }
}

/**
 * What cannot be reached, or may not be read, says nothing of what is there: it ends the
 * verification, and nothing is called damaged.
 */
function isOfTarget({ code }: Pick<PlainError, 'code'>): boolean {
  return code === 'INTERRUPTED' || NO_DAMAGE.includes(code ?? '')
}

const NO_DAMAGE: readonly string[] = ['TARGET_ABSENT', 'TARGET_DENIED', 'COLD_STORAGE']

/** Everything but what is in cold storage. */
async function toBeRead(
  { beforeReading, repository }: VerifyOptions,
  { expectations, examined }: { expectations: Expectations; examined: readonly Examined[] },
): Promise<Expectations> {
  if (beforeReading === undefined) return expectations
  const sizes = new Map<string, number>()
  for (const machine of new Set(examined.map(({ place }) => place.machine))) {
    const files = await repository.target.listTree(`machines/${machine}`)
    for (const { name, sizeBytes } of files) sizes.set(`machines/${machine}/${name}`, sizeBytes)
  }
  const paths = [...expectations.values()].map(pathOf)
  const skipped = await beforeReading(
    new Map(paths.flatMap((path) => (sizes.has(path) ? [[path, sizes.get(path)!]] : []))),
  )
  return new Map([...expectations].filter(([, expectation]) => !skipped.has(pathOf(expectation))))
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
  const queue = [...expectations].sort(([, a], [, b]) => (b.sizeBytes ?? 0) - (a.sizeBytes ?? 0))
  const replies = new Map<string, VerifyReply>()
  const { identities, report, signal, cores } = options
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
    interruptedHint: 'nothing was changed; start it again',
    onReply: (reply) => {
      const failure = reply.problems.find(isOfTarget)
      if (failure !== undefined) throw unpackError(failure)
      replies.set(reply.key, reply)
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

/**
 * What the replies mean for one export: problems of its bundles, and the paths that lie in damaged
 * ranges.
 */
async function judge(
  examined: Examined,
  {
    expectations,
    replies,
    options,
  }: {
    expectations: Expectations
    replies: ReadonlyMap<string, VerifyReply>
    options: VerifyOptions
  },
): Promise<VerifiedExport> {
  const { place, reader, bundles, complete, files, bytes } = examined
  const own = bundles.map((name) => keyOf(place.machine, name))
  const problems = [...examined.problems, ...own.flatMap((key) => replies.get(key)?.problems ?? [])]
  const unread = own.filter((key) => !replies.has(key)).length
  const damagedRanges = new Set(own.flatMap((key) => damagedOf(key, { expectations, replies })))
  const damaged =
    reader === undefined || damagedRanges.size === 0
      ? []
      : await damagedPaths(reader, damagedRanges)
  reader?.close()
  if (damaged.length > 0 && problems.length === 0) {
    problems.push(
      packError(
        new BackupError('BUNDLE_DAMAGED', `${damaged.length} paths differ from the signed catalog`),
      ),
    )
  }
  const isWhole = problems.length === 0
  const part = unread === 0 ? 'whole' : `whole as far as it was read, ${unread} bundles were not`
  const lost = reader === undefined ? 'which paths is not known' : `${damaged.length} paths`
  const state = isWhole ? part : `damaged, ${lost}`
  options.report({
    kind: 'notice',
    level: isWhole ? 'info' : 'warning',
    code: 'VERIFIED',
    message: `${exportName(place)}: ${state}`,
  })
  return { ...place, complete, files, bytes, problems, unread, damaged }
}

function damagedOf(
  key: string,
  {
    expectations,
    replies,
  }: { expectations: Expectations; replies: ReadonlyMap<string, VerifyReply> },
): string[] {
  const damaged = replies.get(key)?.damaged ?? []
  if (damaged.length === 0) return []
  const offsets = [...(expectations.get(key)?.ranges?.keys() ?? [])].sort((a, b) => a - b)
  const name = expectations.get(key)!.name
  return damaged.map((i) => `${name}:${offsets[i]}`)
}

async function damagedPaths(
  reader: ExportReader,
  damagedRanges: ReadonlySet<string>,
): Promise<RawPath[]> {
  const paths: RawPath[] = []
  for (const place of await reader.index()) {
    let shard
    try {
      shard = await reader.shard(place)
    } catch (error) {
      // Told as a problem of the export already: its paths cannot be named, only where they begin.
      if (!(error instanceof BackupError)) throw error
      continue
    }
    const isDamaged = ([bundle, offset]: Range) =>
      damagedRanges.has(`${shard.bundles[bundle]!.name}:${offset}`)
    for (const entry of shard.entries) {
      const pieces = (entry.pieces ?? []).some(([, bundle, offset, length]) =>
        isDamaged([bundle, offset, length]),
      )
      if (pieces || (entry.header !== undefined && isDamaged(entry.header))) paths.push(entry.path)
    }
  }
  return paths
}
