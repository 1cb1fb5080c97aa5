// Exports the newest collection of a set to a repository: plan, pack, catalog, verification,
// manifest, retention.
//
// The order is that of docs/format.md §12 and upholds invariants 1–3, 5 and 7: the manifest is
// published last, after every byte it names was read back, and only then may old exports go
// (prune.ts). What a killed run left of this very export is swept first. Throws TARGET_*,
// READ_BACK, STAGING_FAILED, SIGNER_UNKNOWN, INTERRUPTED; nothing exists then that did not before.

import { Buffer } from 'node:buffer'
import { availableParallelism } from 'node:os'
import { encodePlainHeader, tarPadding } from '../format/tar.ts'
import type { Configuration, TargetConfiguration } from '../machine/config.ts'
import { type CollectionHeader, isFrozen, type MissingPath } from '../model/collection.ts'
import type { Entry } from '../model/entry.ts'
import {
  type ExportStatistics,
  type Manifest,
  encodeManifest,
  exportName,
} from '../model/manifest.ts'
import { type RawPath, rawPathFromText } from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import type { Doubt } from '../model/sanity.ts'
import { isAhead } from '../model/stamp.ts'
import {
  MANIFEST,
  VERIFICATION,
  VERIFICATION_SIGNATURE,
  encodeVerification,
} from '../model/verification.ts'
import { BundleTable } from './bundle-table.ts'
import { BundleWriter } from './bundle-writer.ts'
import { type WrittenCatalog, writeCatalog } from './export-catalog.ts'
import { type PlannedEntry, planExport, usageOf } from './export-plan.ts'
import { checkSpace } from './export-space.ts'
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

export interface ExportOptions {
  readonly configuration: Configuration
  readonly targetConfiguration: TargetConfiguration
  readonly repository: Repository
  readonly set: string
  readonly signer: Signer
  /** Milliseconds since 1970. */
  readonly nowMs: number
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
  const { configuration, repository, set } = options
  const { staging, machine } = configuration
  const newest = surveyCollections({ staging, set }).collections.at(-1)
  if (newest === undefined) return { kind: 'nothing collected' }
  if (isFrozen(newest)) return { kind: 'suspect', stamp: newest.stamp, doubts: newest.suspect }
  const stamps = await listStamps(repository, machine)
  const lastThere = exportsOf(stamps)
    .filter((place) => place.set === set)
    .at(-1)
  if (lastThere !== undefined && lastThere.stamp >= newest.stamp) {
    await repairLatest(options, { stamp: lastThere.stamp })
    return { kind: 'already there', stamp: lastThere.stamp }
  }
  await sweepUnfinished(repository, { stamps, set, after: lastThere?.stamp })
  return await new Export(options, { stamp: newest.stamp, stamps, previous: lastThere }).run()
}

/** Moves `latest` where a run that was killed after its manifest could not. */
async function repairLatest(
  { configuration, repository, set }: ExportOptions,
  { stamp }: { stamp: string },
): Promise<void> {
  const { machine, staging } = configuration
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

/** One export under way: owns nothing but what run() passes along. */
class Export {
  readonly #options: ExportOptions
  readonly #place: ExportPlace
  readonly #stamps: readonly StampDirectory[]
  readonly #previous: StampDirectory | undefined

  constructor(
    options: ExportOptions,
    {
      stamp,
      stamps,
      previous,
    }: { stamp: string; stamps: readonly StampDirectory[]; previous: StampDirectory | undefined },
  ) {
    this.#options = options
    this.#place = { machine: options.configuration.machine, set: options.set, stamp }
    this.#stamps = stamps
    this.#previous = previous
  }

  async run(): Promise<ExportOutcome & { kind: 'exported' }> {
    const { configuration, set, report } = this.#options
    const { staging } = configuration
    const { header, entries } = readCollection({ staging, set, stamp: this.#place.stamp })
    const state = await this.#loadState()
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
    bundles.retireLittleNeeded([...state.sets.values()].map(({ usage }) => usage))
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
    await checkSpace({
      target: repository.target,
      ...{ set, stamp, plan, level, parityPercent, index, knowsPieces, report },
      tree: this.#tree,
    })
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
      },
      publish: (bundle) =>
        repository.target.publish(
          `${this.#directory}/${dataBundleFile(bundle.bundle - bundles.first + 1)}`,
        ),
      onProgress: ({ filesDone, bytesDone, bytesWritten, current }) =>
        report({
          kind: 'progress',
          phase: `exporting ${set}`,
          filesDone,
          filesTotal: items.length,
          bytesDone,
          bytesTotal,
          bytesSkipped,
          bytesWritten,
          ...(current === undefined ? {} : { current }),
        }),
    })
  }

  #bundleOf(number: number, bundles: BundleTable, facts: Omit<StateBundle, 'name'>): StateBundle {
    const { sizeBytes, sha256, tarBytes, frames } = facts
    const file = dataBundleFile(number - bundles.first + 1).replace(/\.tar\.zst\.age$/, '')
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
    const name = `${this.#place.set}/${this.#place.stamp}/catalog-0001`
    const directory = await repository.target.workDirectory(this.#directory)
    const catalog = writeCatalog({
      entries,
      placeOf: (bundle) => bundles.get(bundle),
      last: state?.sets.get(this.#place.set),
      usableTarBytes: (bundle) => bundles.usableTarBytes(bundle),
      writer: this.#writer(),
      bundle: { name, partial: `${directory}/catalog-0001.tar.zst.age.partial` },
    })
    if (catalog.bundle !== undefined) {
      await repository.target.publish(`${this.#directory}/catalog-0001.tar.zst.age`)
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
    await target.write(`${this.#directory}/${VERIFICATION}`, verification)
    await target.write(`${this.#directory}/${VERIFICATION_SIGNATURE}`, Buffer.from(signature))
    await this.#commitState(done, { manifestSha256: written.sha256, complete, statistics })
    if (complete) await this.#moveLatest()
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
      readBack: done.newBundles.some(({ readBack }) => readBack === 'advised')
        ? 'advised'
        : written.readBack,
      pruned,
    }
  }

  /** Prepares the manifest under its partial name: publish() makes the export exist. */
  async #writeManifest(
    manifest: Manifest,
  ): Promise<{ sha256: string; sizeBytes: number; readBack: string }> {
    const { repository, signer } = this.#options
    const json = encodeManifest(manifest)
    const file = `${exportName(this.#place)}/manifest.json`
    const signature = await signer.sign(json, { file, repository: repository.id })
    const directory = await repository.target.workDirectory(this.#directory)
    const writer = this.#writer()
    try {
      writer.open(`${directory}/${MANIFEST}.partial`)
      for (const [name, bytes] of [
        ['manifest.json', json],
        ['manifest.json.minisig', Buffer.from(signature)],
      ] as const) {
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
   * The state is pending, the manifest makes the export exist, the state is adopted: in this order.
   */
  async #commitState(
    done: FinishedExport,
    {
      manifestSha256,
      complete,
      statistics,
    }: { manifestSha256: string; complete: boolean; statistics: ExportStatistics },
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
    await repository.target.publish(`${this.#directory}/${MANIFEST}`)
    adoptPending(directory)
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
    if (!complete || isAhead(this.#place.stamp, this.#options.nowMs))
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
