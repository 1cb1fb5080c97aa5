// Exports the newest collection of a set to a repository: plan, pack, catalog, verification,
// manifest, retention.
//
// The order is that of docs/format.md §12 and upholds invariants 1–3, 5 and 7: the manifest is
// published last, after every byte it names was read back, and only then may old exports go
// (prune.ts). What a killed run left of this very export is swept first. Throws TARGET_*,
// READ_BACK, STAGING_FAILED, SIGNER_UNKNOWN, INTERRUPTED; nothing exists then that did not before.

import { Buffer } from 'node:buffer'
import { availableParallelism } from 'node:os'
import { BackupError } from '../errors.ts'
import { encodePlainHeader, tarPadding } from '../format/tar.ts'
import type { Configuration, TargetConfiguration } from '../machine/config.ts'
import { writeDurably } from '../machine/durable-file.ts'
import { type CollectionHeader, isFrozen, type MissingPath } from '../model/collection.ts'
import type { Entry } from '../model/entry.ts'
import {
  type ExportStatistics,
  type Manifest,
  encodeManifest,
  exportName,
} from '../model/manifest.ts'
import { type RawPath, baseOf, rawPathFromText } from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import type { Doubt } from '../model/sanity.ts'
import { isAhead } from '../model/stamp.ts'
import {
  MANIFEST,
  VERIFICATION,
  VERIFICATION_SIGNATURE,
  bundleFile,
  bundlePath,
  encodeVerification,
} from '../model/verification.ts'
import type { Target } from '../target/target.ts'
import { BundleTable, type Compaction } from './bundle-table.ts'
import { BundleWriter } from './bundle-writer.ts'
import { type WrittenCatalog, writeCatalog } from './export-catalog.ts'
import { type PlannedEntry, planExport, usageOf } from './export-plan.ts'
import { CONFIGURATION_MEMBER, configurationMember } from './configuration-member.ts'
import { checkSpace, estimateExport } from './export-space.ts'
import { type Packed, packAll } from './pack-pool.ts'
import { dataBundleFile } from './pack-worker.ts'
import { readKnownDamage } from './known-damage.ts'
import { finishEntries, pieceIndexFor } from './packed-entries.ts'
import type { PieceIndex } from './piece-index.ts'
import { prove } from './prove.ts'
import { type PruneOutcome, pruneExports, sweepUnfinished } from './prune.ts'
import {
  type ExportPlace,
  type Repository,
  type StampDirectory,
  directoryOf,
  exportsOf,
  listStamps,
  sha256OfFile,
} from './repository.ts'
import type { Signer } from './signing.ts'
import {
  type Collection,
  collectionDirectory,
  readCollection,
  stagingError,
  surveyCollections,
} from './staging.ts'
import {
  EMPTY_STATE,
  type State,
  type StateBundle,
  adoptPending,
  encodePieces,
  loadState,
  stateDirectory,
  writePending,
} from './state.ts'
import { finishCommit, finishSending, forgetSent, refuseTaken } from './resume-export.ts'
import { type UnfinishedBundle, noteUnfinished, withUnfinished } from './unfinished.ts'

export interface ExportOptions {
  readonly configuration: Configuration
  readonly targetConfiguration: TargetConfiguration
  readonly repository: Repository
  readonly set: string
  readonly signer: Signer
  /** Milliseconds since 1970. */
  readonly nowMs: number
  /** Asked before anything is written, where writing costs money; throws to prevent it. */
  readonly approve?: ((estimate: { set: string; bytes: number }) => Promise<void>) | undefined
  /** Where space costs money. */
  readonly compaction?: Compaction | undefined
  readonly report: Report
  readonly signal: AbortSignal
}

export type ExportOutcome =
  | { readonly kind: 'nothing collected' }
  | { readonly kind: 'already there'; readonly stamp: string }
  /** The newest collection is distrusted: nothing is exported or let go until it is accepted. */
  | { readonly kind: 'suspect'; readonly stamp: string; readonly doubts: readonly Doubt[] }
  | {
      readonly kind: 'exported'
      readonly stamp: string
      readonly complete: boolean
      readonly missing: readonly MissingPath[]
      readonly statistics: ExportStatistics
      readonly dataBytes: number
      readonly catalogBytes: number
      readonly manifestBytes: number
      readonly full: boolean
      readonly readBack: string
      readonly pruned: PruneOutcome
    }

/** Exports the newest collection of one set, unless the repository has it or a newer one. */
export async function exportSet(options: ExportOptions): Promise<ExportOutcome> {
  const { configuration, repository, set, signer, report, signal } = options
  const { staging, machine } = configuration
  const newest = surveyCollections({ staging, set }).collections.at(-1)
  if (newest === undefined) return { kind: 'nothing collected' }
  if (isFrozen(newest)) return { kind: 'suspect', stamp: newest.stamp, doubts: newest.suspect }
  await finishCommit(repository, { staging, machine, publicKey: signer.publicKey, report })
  const listed = await listStamps(repository, machine)
  const lastThere = exportsOf(listed)
    .filter((place) => place.set === set)
    .at(-1)
  if (lastThere !== undefined && lastThere.stamp >= newest.stamp) {
    await repairLatest(options, { stamp: lastThere.stamp })
    tellDamage(options)
    return { kind: 'already there', stamp: lastThere.stamp }
  }
  refuseTaken(
    repository,
    listed.find((place) => place.set === set && place.stamp === newest.stamp),
  )
  const unfinished = await finishSending(repository, {
    ...{ staging, machine, set, stamps: listed, report, signal },
  })
  // What was sent just now is there, too, or it would be packed again.
  const stamps = unfinished.length === 0 ? listed : await listStamps(repository, machine)
  const spare = new Set(unfinished.map(({ name }) => bundlePath(machine, name)))
  const publicKeys = [signer.publicKey]
  const sweep = { stamps, set, after: lastThere?.stamp, spare, publicKeys, report }
  const left = await sweepUnfinished(repository, sweep)
  return await new Export(options, {
    ...{ stamp: newest.stamp, stamps: left, previous: lastThere, unfinished },
  }).run()
}

/** Moves `latest` where a run that was killed after its manifest could not. */
async function repairLatest(
  { configuration, repository, set }: ExportOptions,
  { stamp }: { stamp: string },
): Promise<void> {
  const { machine, staging } = configuration
  // In a bucket there is none.
  if (repository.target.bucket !== undefined) return
  const path = `machines/${machine}/${set}/latest`
  const bytes = Buffer.from(`${stamp}\n`)
  if ((await repository.target.read(path, MAX_LATEST_BYTES))?.equals(bytes) === true) return
  const directory = stateDirectory({ staging, id: repository.id })
  const places = exportsOf(await listStamps(repository, machine))
  const state = await loadState(directory, async (of) => {
    const place = places.find((one) => one.set === of.set && one.stamp === of.stamp)
    if (place === undefined) return undefined
    return await sha256OfFile(repository.target, `${directoryOf(place)}/${MANIFEST}`)
  })
  if (state?.exports.get(`${set}/${stamp}`)?.complete !== true) return
  await repository.target.replace(path, bytes)
}

/** A stamp and a newline, and some. */
const MAX_LATEST_BYTES = 64

/** What is there already is not written again, damaged or not. */
function tellDamage({ configuration: { staging }, repository, report }: ExportOptions): void {
  const { size } = readKnownDamage({ staging, id: repository.id })
  if (size === 0) return
  const what = size === 1 ? 'a bundle there is' : `${size} bundles there are`
  const message =
    `${what} known to be damaged: content that staging still has is written again with the next `
    + 'collection that is exported, and `backup repair` mends with parity'
  report({ kind: 'notice', level: 'warning', code: 'BUNDLE_DAMAGED', message })
}

/** One export under way: owns nothing but what run() passes along. */
class Export {
  readonly #options: ExportOptions
  readonly #place: ExportPlace
  readonly #stamps: readonly StampDirectory[]
  readonly #previous: StampDirectory | undefined
  readonly #unfinished: readonly UnfinishedBundle[]
  /** The numbers in names that its first bundles get: others of its stamp may be there. */
  readonly #firstFile: { readonly data: number; readonly catalog: number }

  constructor(
    options: ExportOptions,
    {
      stamp,
      stamps,
      previous,
      unfinished,
    }: {
      stamp: string
      stamps: readonly StampDirectory[]
      previous: StampDirectory | undefined
      unfinished: readonly UnfinishedBundle[]
    },
  ) {
    this.#unfinished = unfinished
    this.#options = options
    this.#place = { machine: options.configuration.machine, set: options.set, stamp }
    this.#stamps = stamps
    this.#previous = previous
    this.#firstFile = { data: this.#freeNumber('data'), catalog: this.#freeNumber('catalog') }
  }

  /** What killed runs left may stay, or be of use. */
  #freeNumber(kind: 'data' | 'catalog'): number {
    const { set, stamp } = this.#place
    const there = this.#stamps.find((place) => place.set === set && place.stamp === stamp)
    const names = [
      ...(there?.files.keys() ?? []),
      ...this.#unfinished.map(({ name }) => baseOf(name)),
    ]
    const numbers = names.map((name) => Number(name.match(/^([a-z]+)-(\d+)/)?.[2] ?? 0))
    const own = numbers.filter((_, i) => names[i]!.startsWith(`${kind}-`))
    return Math.max(0, ...own) + 1
  }

  get #target(): Target {
    return this.#options.repository.target
  }

  async run(): Promise<ExportOutcome & { kind: 'exported' }> {
    try {
      return await this.#run()
    } catch (error) {
      throw this.#asSpoolFailure(error)
    }
  }

  /** The spool lies in staging: what cannot be written there is not the target's failure. */
  #asSpoolFailure(error: unknown): unknown {
    if (this.#target.access === 'files' || !(error instanceof BackupError)) return error
    const { staging } = this.#options.configuration
    const { path, system } = error.facts
    if (typeof path !== 'string' || typeof system !== 'string') return error
    if (!path.startsWith(staging)) return error
    const code = error.code === 'TARGET_FULL' ? 'STAGING_FULL' : 'STAGING_FAILED'
    return new BackupError(code, `what waits to be sent cannot be written (${system}): ${path}`, {
      hint: 'free some space there, or lower spool_limit; what was sent is not sent again',
      facts: error.facts,
      cause: error,
    })
  }

  async #run(): Promise<ExportOutcome & { kind: 'exported' }> {
    const { configuration, set, report } = this.#options
    const { staging } = configuration
    const { header, entries } = readCollection({ staging, set, stamp: this.#place.stamp })
    const state = withUnfinished(await this.#loadState(), this.#unfinished)
    const bundles = new BundleTable(state, this.#sizes())
    report({ kind: 'phase', name: `exporting ${set}` })
    const packed = await this.#packEntries(
      { header, entries },
      { state: state ?? EMPTY_STATE, bundles },
    )
    const catalog = await this.#writeCatalog(packed.finished, { state, bundles })
    return await this.#commit({
      header,
      ...packed,
      catalog,
      state,
      bundles,
      usage: usageOf(packed.finished),
    })
  }

  /**
   * Packs what is new. What only that needs (plan, answers of the workers) is gone when it returns.
   */
  async #packEntries(
    collected: Collection,
    { state, bundles }: { state: State; bundles: BundleTable },
  ): Promise<PackedEntries> {
    const plan = this.#plan(collected, { state, bundles })
    const index = pieceIndexFor(plan, { state, bundles })
    await this.#checkSpace(plan, { index, knowsPieces: state.pieces.length > 0 })
    const packed = await this.#pack(plan, { index, bundles })
    for (const bundle of packed.bundles)
      bundles.add(bundle.bundle, this.#bundleOf(bundle.bundle, bundles, bundle))
    return { ...finishEntries(plan, { packed, index }), newBundles: packed.bundles, index }
  }

  get #directory(): string {
    return directoryOf(this.#place)
  }

  /** Sizes on the target of every bundle of ours that is not known to be damaged, by name. */
  #sizes(): ReadonlyMap<string, number> {
    const sizes = new Map<string, number>()
    const { configuration, repository } = this.#options
    const damaged = readKnownDamage({ staging: configuration.staging, id: repository.id })
    for (const place of this.#stamps) {
      const { set, stamp, files } = place
      for (const [name, sizeBytes] of files) {
        if (damaged.has(`${directoryOf(place)}/${name}`)) continue
        if (/^(data|catalog)-\d+\.tar\.zst\.age$/.test(name)) {
          sizes.set(`${set}/${stamp}/${name.replace(/\.tar\.zst\.age$/, '')}`, sizeBytes)
        }
      }
    }
    return sizes
  }

  async #loadState(): Promise<State | undefined> {
    const { repository, configuration, report } = this.#options
    const { machine, staging } = configuration
    const isThere = new Set(exportsOf(this.#stamps).map(({ set, stamp }) => `${set}/${stamp}`))
    const state = await loadState(stateDirectory({ staging, id: repository.id }), async (of) =>
      isThere.has(`${of.set}/${of.stamp}`)
        ? await sha256OfFile(repository.target, `${directoryOf({ machine, ...of })}/${MANIFEST}`)
        : undefined,
    )
    if (state === undefined && isThere.size > 0) {
      report({
        kind: 'notice',
        level: 'warning',
        code: 'STATE_LOST',
        message: `what was known of ${repository.target.name} is lost: this export is a full one`,
      })
    }
    return state
  }

  /**
   * Bundles that the last exports need less than half of are not referred to: what is needed of
   * them is packed anew.
   */
  #plan(
    { header, entries }: Collection,
    { state, bundles }: { state: State; bundles: BundleTable },
  ): PlannedEntry[] {
    const fresh = new Set(this.#unfinished.map(({ name }) => name))
    const usages = [...state.sets.values()].map(({ usage }) => usage)
    const { compaction } = this.#options
    bundles.retireLittleNeeded(usages, { fresh, compaction })
    const last = state.sets.get(this.#options.set)?.entries ?? []
    return planExport({
      collected: entries,
      sources: header.sources.map(({ path }) => path),
      last,
      isUsable: (bundle) => bundles.isUsable(bundle),
    })
  }

  async #checkSpace(
    plan: readonly PlannedEntry[],
    { index, knowsPieces }: { index: PieceIndex; knowsPieces: boolean },
  ): Promise<void> {
    const { targetConfiguration, repository, set, report } = this.#options
    const { compressionLevel: level, parityPercent } = targetConfiguration
    const { stamp } = this.#place
    const space = {
      target: repository.target,
      ...{ set, stamp, plan, level, parityPercent, index, knowsPieces, report },
      tree: this.#tree,
    }
    await checkSpace(space)
    await this.#options.approve?.({ set, bytes: estimateExport(space) })
  }

  get #tree(): RawPath {
    const { staging } = this.#options.configuration
    const { set, stamp } = this.#place
    return rawPathFromText(collectionDirectory({ staging, set, stamp }))
  }

  async #pack(
    plan: readonly PlannedEntry[],
    { index, bundles }: { index: PieceIndex; bundles: BundleTable },
  ): Promise<Packed> {
    const { configuration, targetConfiguration, repository, set, report, signal } = this.#options
    const items = plan.flatMap(({ item }) => item ?? [])
    const bytesTotal = items.reduce(
      (sum, item) => sum + (item.kind === 'file' ? (item.metadata.size ?? 0) : 0),
      0,
    )
    const bytesSkipped = plan.reduce((sum, { entry }) => sum + (entry.size ?? 0), 0) - bytesTotal
    const sentBefore = this.#target.sentBytes() ?? 0
    return await packAll({
      items,
      signal,
      cores: availableParallelism(),
      settings: {
        recipients: configuration.recipients,
        level: targetConfiguration.compressionLevel,
        bundleBytes: targetConfiguration.bundleSizeBytes,
        tree: this.#tree,
        outputDirectory: await repository.target.workDirectory(this.#directory),
        pieceIndex: index.memory,
        bundlesBegun: new SharedArrayBuffer(4),
        firstBundle: bundles.first,
        firstFile: this.#firstFile.data,
        withPieces: this.#target.access === 'network',
      },
      unpublishedLimitBytes:
        'spoolLimitBytes' in targetConfiguration ? targetConfiguration.spoolLimitBytes : Infinity,
      publish: async (bundle) => {
        const facts = this.#bundleOf(bundle.bundle, bundles, bundle)
        if (this.#target.access === 'network') {
          const { staging } = configuration
          const pieces = Buffer.from(bundle.pieces)
          noteUnfinished({ staging, id: repository.id, set }, { ...facts, pieces })
        }
        await this.#target.publish(bundlePath(configuration.machine, facts.name), facts.sha256)
      },
      onProgress: ({ filesDone, bytesDone, bytesWritten, isPublishing, current }) => {
        const files = { filesDone, filesTotal: items.length }
        const sent = (this.#target.sentBytes() ?? 0) - sentBefore
        if (isPublishing && this.#target.access === 'network') {
          const sending = { bytesDone: Math.min(sent, bytesWritten), bytesTotal: bytesWritten }
          report({ kind: 'progress', phase: `sending ${set}`, ...files, ...sending })
          return
        }
        report({
          kind: 'progress',
          phase: `exporting ${set}`,
          ...files,
          bytesDone,
          bytesTotal,
          bytesSkipped,
          bytesWritten: this.#target.access === 'network' ? sent : bytesWritten,
          ...(current === undefined ? {} : { current }),
        })
      },
    })
  }

  #bundleOf(number: number, bundles: BundleTable, facts: Omit<StateBundle, 'name'>): StateBundle {
    const { sizeBytes, sha256, tarBytes, frames } = facts
    const fileNumber = number - bundles.first + this.#firstFile.data
    const file = dataBundleFile(fileNumber).replace(/\.tar\.zst\.age$/, '')
    return {
      name: `${this.#place.set}/${this.#place.stamp}/${file}`,
      sizeBytes,
      sha256,
      tarBytes,
      frames,
    }
  }

  #writer(): BundleWriter {
    const { configuration, targetConfiguration } = this.#options
    return new BundleWriter({
      recipients: configuration.recipients,
      level: targetConfiguration.compressionLevel,
    })
  }

  async #writeCatalog(
    entries: readonly Entry[],
    { state, bundles }: { state: State | undefined; bundles: BundleTable },
  ): Promise<WrittenCatalog> {
    const { repository } = this.#options
    const file = `catalog-${String(this.#firstFile.catalog).padStart(4, '0')}`
    const name = `${this.#place.set}/${this.#place.stamp}/${file}`
    const directory = await repository.target.workDirectory(this.#directory)
    const catalog = writeCatalog({
      entries,
      placeOf: (bundle) => bundles.get(bundle),
      last: state?.sets.get(this.#place.set),
      usableTarBytes: (bundle) => bundles.usableTarBytes(bundle),
      writer: this.#writer(),
      bundle: { name, partial: `${directory}/${file}.tar.zst.age.partial` },
    })
    if (catalog.bundle !== undefined) {
      const { sha256 } = catalog.bundle
      await repository.target.publish(`${this.#directory}/${file}.tar.zst.age`, sha256)
      bundles.add(bundles.next, { name, ...catalog.bundle })
    }
    return catalog
  }

  async #commit(done: FinishedExport): Promise<ExportOutcome & { kind: 'exported' }> {
    const { repository, signer } = this.#options
    const { target, id } = repository
    const needed = neededBundles(done)
    const statistics = statisticsOf(done)
    const complete = done.header.complete && done.missing.length === 0
    const missing = [...done.header.missing, ...done.missing]
    const manifest: Manifest = {
      repository: id,
      ...this.#place,
      previous: await this.#previousManifest(),
      complete,
      missing,
      sources: done.header.sources,
      index: done.catalog.index,
      bundles: needed.map(({ name, sizeBytes, sha256 }) => ({ name, sizeBytes, sha256 })),
      statistics,
    }
    const written = await this.#writeManifest(manifest)
    const verification = Buffer.from(
      encodeVerification(
        {
          bundles: new Map(needed.map(({ name, sha256 }) => [name, sha256])),
          manifestSha256: written.sha256,
        },
        this.#place,
      ),
    )
    const file = `${exportName(this.#place)}/${VERIFICATION}`
    const signature = await signer.sign(verification, { file, repository: id })
    const signed = [
      [VERIFICATION, verification],
      [VERIFICATION_SIGNATURE, Buffer.from(signature)],
    ] as const
    // So that an export which is killed now lacks nothing that it could not send (finishCommit).
    if (target.access === 'network') {
      const spool = await target.workDirectory(this.#directory)
      for (const [name, bytes] of signed) {
        writeDurably({ path: `${spool}/${name}`, bytes, mode: 0o600, replace: true })
      }
    }
    const sendSigned = async (): Promise<void> => {
      for (const [name, bytes] of signed) await target.write(`${this.#directory}/${name}`, bytes)
    }
    const facts = { manifestSha256: written.sha256, complete, statistics, sendSigned }
    await this.#commitState(done, facts)
    if (complete && target.bucket === undefined) await this.#moveLatest()
    const pruned = await this.#prune(done, complete)
    const ours = (kind: string) =>
      needed
        .filter(({ name }) => name.startsWith(`${this.#place.set}/${this.#place.stamp}/${kind}`))
        .reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
    return {
      kind: 'exported',
      stamp: this.#place.stamp,
      complete,
      missing,
      statistics,
      dataBytes: ours('data-'),
      catalogBytes: ours('catalog-'),
      manifestBytes: written.sizeBytes,
      full: done.state === undefined,
      readBack:
        target.access === 'network'
          ? 'sent'
          : done.newBundles.some(({ readBack }) => readBack === 'advised')
            ? 'advised'
            : written.readBack,
      pruned,
    }
  }

  /** Prepares the manifest under its partial name: publish() makes the export exist. */
  async #writeManifest(
    manifest: Manifest,
  ): Promise<{ sha256: string; sizeBytes: number; readBack: string }> {
    const { repository, signer, configuration, report } = this.#options
    const json = encodeManifest(manifest)
    const file = `${exportName(this.#place)}/manifest.json`
    const signature = await signer.sign(json, { file, repository: repository.id })
    const directory = await repository.target.workDirectory(this.#directory)
    const writer = this.#writer()
    try {
      writer.open(`${directory}/${MANIFEST}.partial`)
      const kept = await configurationMember(configuration.path, report)
      const members: [name: string, bytes: Buffer][] = [
        ['manifest.json', json],
        ['manifest.json.minisig', Buffer.from(signature)],
      ]
      if (kept !== undefined) members.push([CONFIGURATION_MEMBER, kept])
      for (const [name, bytes] of members) {
        writer.append(encodePlainHeader({ path: rawPathFromText(name), sizeBytes: bytes.length }))
        writer.append(bytes)
        writer.append(Buffer.alloc(tarPadding(bytes.length)))
      }
      const { file: written, ...facts } = writer.finish()
      return { ...facts, readBack: prove(written) }
    } catch (error) {
      writer.abort()
      throw error
    }
  }

  async #previousManifest(): Promise<Manifest['previous']> {
    if (this.#previous === undefined) return null
    const path = `${directoryOf(this.#previous)}/${MANIFEST}`
    return {
      stamp: this.#previous.stamp,
      sha256: await sha256OfFile(this.#options.repository.target, path),
    }
  }

  /**
   * The state is pending, what is signed is there, the manifest makes the export exist, the state
   * is adopted: in this order.
   */
  async #commitState(
    done: FinishedExport,
    {
      manifestSha256,
      complete,
      statistics,
      sendSigned,
    }: {
      manifestSha256: string
      complete: boolean
      statistics: ExportStatistics
      /** Writes the verification file and its signature. */
      sendSigned: () => Promise<void>
    },
  ): Promise<void> {
    const { configuration, repository } = this.#options
    const { set, stamp } = this.#place
    const { state, bundles, catalog, finished, index } = done
    const usage = Object.fromEntries(
      [...done.usage].map(([bundle, bytes]) => [bundles.get(bundle).name, bytes]),
    )
    const { index: indexPlace, shards } = catalog
    const sets = new Map(state?.sets ?? [])
    sets.set(set, { stamp, manifestSha256, entries: finished, index: indexPlace, shards, usage })
    const there = new Set(exportsOf(this.#stamps).map((place) => `${place.set}/${place.stamp}`))
    const exports = new Map([...(state?.exports ?? [])].filter(([name]) => there.has(name)))
    exports.set(`${set}/${stamp}`, { complete, statistics })
    const next: State = { bundles: bundles.present, sets, pieces: encodePieces(index), exports }
    const directory = stateDirectory({ staging: configuration.staging, id: repository.id })
    try {
      const commit = { set, stamp, sha256: manifestSha256 }
      writePending(directory, next, { commit, shardBytes: catalog.shardBytes })
    } catch (error) {
      throw stagingError({ error, staging: configuration.staging, doing: 'written' })
    }
    await this.#mustBeThere(done)
    await sendSigned()
    await repository.target.publish(`${this.#directory}/${MANIFEST}`, manifestSha256)
    adoptPending(directory)
    await forgetSent(repository, { staging: configuration.staging, ...this.#place })
  }

  /** Over a network an export takes long, and others may have deleted something meanwhile. */
  async #mustBeThere(done: FinishedExport): Promise<void> {
    if (this.#target.access === 'files') return
    const { machine } = this.#place
    const files = await this.#target.listTree(`machines/${machine}`)
    const there = new Map(files.map(({ name, sizeBytes }) => [name, sizeBytes]))
    const gone = neededBundles(done).find(({ name, sizeBytes }) => {
      return there.get(bundleFile(name)) !== sizeBytes
    })
    if (gone === undefined) return
    throw new BackupError('BUNDLE_MISSING', `${gone.name} was deleted during the export`, {
      hint: 'the export was not made; the next run packs anew what is missing',
      facts: { bundle: gone.name },
    })
  }

  async #moveLatest(): Promise<void> {
    const { machine, set, stamp } = this.#place
    await this.#options.repository.target.replace(
      `machines/${machine}/${set}/latest`,
      Buffer.from(`${stamp}\n`),
    )
  }

  /** Retention belongs to a proven, complete run; an incomplete one freezes it (invariant 5). */
  async #prune({ state }: FinishedExport, complete: boolean): Promise<PruneOutcome> {
    const { configuration, repository, set, signer, report } = this.#options
    // In a bucket nothing is deleted but by `backup prune`, with the credentials that may.
    const isAppendOnly = repository.target.bucket !== undefined
    if (isAppendOnly || !complete || isAhead(this.#place.stamp, this.#options.nowMs))
      return { removedExports: [], removedBundles: 0, freedBytes: 0 }
    const retention = configuration.backupSets.find(({ name }) => name === set)?.retention
    if (retention === undefined) throw new Error('only configured sets are exported')
    return await pruneExports(repository, {
      staging: configuration.staging,
      machine: configuration.machine,
      set,
      keep: retention.external,
      rules: retention.keep,
      publicKeys: [signer.publicKey],
      report,
      isComplete: (stamp) =>
        stamp === this.#place.stamp || state?.exports.get(`${set}/${stamp}`)?.complete,
    })
  }
}

interface PackedEntries {
  readonly finished: readonly Entry[]
  readonly missing: readonly MissingPath[]
  readonly newBundles: Packed['bundles']
  readonly index: PieceIndex
}

interface FinishedExport extends PackedEntries {
  readonly header: CollectionHeader
  readonly catalog: WrittenCatalog
  readonly state: State | undefined
  readonly bundles: BundleTable
  /** How much of each bundle's tar the export needs. */
  readonly usage: ReadonlyMap<number, number>
}

/** Every bundle the export needs, sorted by name. */
function neededBundles({ usage, catalog, bundles }: FinishedExport): StateBundle[] {
  const names = new Set([...usage.keys()].map((bundle) => bundles.get(bundle).name))
  names.add(catalog.index.bundle)
  for (const { bundle } of catalog.shards) names.add(bundle)
  return [...names].sort().map((name) => bundles.byName(name))
}

function statisticsOf({ finished, newBundles, catalog }: FinishedExport): ExportStatistics {
  const files = finished.filter(({ type }) => type === 'file')
  const storedBytes = [
    ...newBundles,
    ...(catalog.bundle === undefined ? [] : [catalog.bundle]),
  ].reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
  const newBytes = newBundles.reduce((sum, { tarBytes }) => sum + tarBytes, 0)
  const bytes = files.reduce((sum, { size }) => sum + (size ?? 0), 0)
  return { entries: finished.length, files: files.length, bytes, newBytes, storedBytes }
}
