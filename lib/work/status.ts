// How every set, target and drive stands: what `backup status` shows, and the file for Prometheus.
//
// readStatus reads what this machine knows and touches no target; gatherStatus makes one plain
// value of it (lib/model/status-document.ts), status-problems.ts says what is wrong and what to do,
// writeMetricsFile writes it as numbers. due.ts, rotation.ts and proofs.ts judge. Throws
// STAGING_FAILED where staging cannot be read, and WRITE_FAILED.

import {
  closeSync,
  constants,
  existsSync,
  fchmodSync,
  fsyncSync,
  openSync,
  readdirSync,
  rmSync,
  statfsSync,
  statSync,
} from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { BackupError, systemCode } from '../errors.ts'
import { publish, writeAll } from '../machine/durable-file.ts'
import type {
  AmountFree,
  Configuration,
  DriveTargetConfiguration,
  SetConfiguration,
  TargetConfiguration,
} from '../machine/config.ts'
import { placeOf } from '../machine/config-targets.ts'
import type { CollectionHeader } from '../model/collection.ts'
import { encodeMetrics } from '../model/metrics.ts'
import { driveOf, lastOfEachKind, lastOfSet, receiptsOf, standingDamage } from '../model/proofs.ts'
import { rawPathFromText } from '../model/raw-path.ts'
import type { Receipt } from '../model/receipt.ts'
import type { Report } from '../model/report.ts'
import { isOverdue, nextDrive, type RotatedDrive } from '../model/rotation.ts'
import { parseStamp, type Stamp } from '../model/stamp.ts'
import type {
  CollectionStatus,
  DriveStatus,
  ExportStatus,
  GoodRun,
  PhaseStatus,
  Problem,
  ProofStatus,
  RunStatus,
  SetStatus,
  ScoreStatus,
  StagingStatus,
  StatusDocument,
  TargetStatus,
} from '../model/status-document.ts'
import { type NotifierFailure, readNotifierFailures } from './announce.ts'
import { type KnownDrive, readDrives } from './drive-register.ts'
import { everyMsOf, rotatedDrives } from './drive-history.ts'
import { type Decision, judgeStanding, type Known, planDue, readKnown } from './due.ts'
import { outcomeOf, type RunRecord } from './history.ts'
import { readReceipts, receiptName } from './receipts.ts'
import { type Media, readMedia, readScoreMemory, scoreOf } from './score.ts'
import { trustedKeys } from './signing.ts'
import { listStamps, listTreesWithoutCatalog, stagingError } from './staging.ts'
import { knownExports, stateDirectory } from './state.ts'
import { findProblems } from './status-problems.ts'

/** What this machine knows, before anything is made of it. */
export interface StatusFacts {
  readonly configuration: Configuration
  /** Those that are shown. */
  readonly sets: readonly SetConfiguration[]
  readonly nowMs: number
  readonly known: Known
  /** Believed ones, newest last. */
  readonly receipts: readonly Receipt[]
  /** Names of those whose signature does not verify. */
  readonly unbelievedReceipts: readonly string[]
  readonly notifierFailures: readonly NotifierFailure[]
  readonly drives: readonly KnownDrive[]
  /** Of staging; undefined where it is not there yet. */
  readonly space: Space | undefined
  /** By set: stamps of collections whose catalog is damaged or gone. */
  readonly damagedCatalogs: ReadonlyMap<string, readonly Stamp[]>
  /** By repository id: `<set>/<stamp>` of the exports it had when it was exported to last. */
  readonly exportsThere: ReadonlyMap<string, readonly string[]>
  readonly media: Media
  /** Which places counted for the 3-2-1 score before. */
  readonly remembered: readonly string[]
}

export interface Space {
  readonly freeBytes: number
  readonly totalBytes: number
}

/** How many of the last runs, and of the last that were not good, are shown. */
const RUNS_SHOWN = 5

/** Nobody writes a small file for so long: what a killed run left. */
const STALE_PARTIAL_MS = 3_600_000

/**
 * How everything stands, from staging alone. Changes nothing.
 * @throws BackupError STAGING_FAILED
 */
export async function readStatus({
  configuration,
  sets,
  nowMs,
}: Pick<StatusFacts, 'configuration' | 'sets' | 'nowMs'>): Promise<StatusDocument> {
  const { staging } = configuration
  const known = readKnown({ staging, sets })
  const { receipts, unbelieved } = await readReceipts(staging, await ownKeys(configuration))
  const drives = readDrives(staging)
  return gatherStatus({
    configuration,
    sets,
    nowMs,
    known,
    receipts,
    unbelievedReceipts: unbelieved,
    notifierFailures: readNotifierFailures(staging),
    drives,
    space: spaceOf(staging),
    damagedCatalogs: findDamagedCatalogs(staging, known),
    exportsThere: readExportsThere(staging, [...receipts, ...drives]),
    media: await readMedia(configuration),
    remembered: readScoreMemory(staging),
  })
}

interface AfterRun {
  readonly configuration: Configuration
  readonly report: Report
}

/**
 * How everything stands after a run; that it cannot be read is said, and is no failure of the run
 * that it follows.
 */
export async function readRunStatus({
  configuration,
  nowMs,
  report,
}: AfterRun & { readonly nowMs: number }): Promise<StatusDocument | undefined> {
  try {
    return await readStatus({ configuration, sets: configuration.backupSets, nowMs })
  } catch (error) {
    tellFailure(error, report)
    return undefined
  }
}

/** Writes the file that `metrics` of the configuration names, where it names one; as before. */
export function writeMetrics({
  configuration: { metrics },
  document,
  report,
}: AfterRun & { readonly document: StatusDocument }): void {
  try {
    if (metrics !== undefined) writeMetricsFile(metrics, document)
  } catch (error) {
    tellFailure(error, report)
  }
}

function tellFailure(error: unknown, report: Report): void {
  if (!(error instanceof BackupError)) throw error
  const { code, message } = error
  report({ kind: 'notice', level: 'warning', code, message })
}

/**
 * Writes the numbers of a status to a file that Prometheus' node exporter reads: as a whole or not
 * at all, readable for everybody.
 * @throws BackupError WRITE_FAILED; the file that was there is unharmed
 */
export function writeMetricsFile(path: string, document: StatusDocument): void {
  const partial = `${path}.${process.pid}.partial`
  try {
    removeStalePartials(path, Date.parse(document.time))
    writeWhole(partial, Buffer.from(encodeMetrics(document)))
    publish({ partial: rawPathFromText(partial), path: rawPathFromText(path), replace: true })
  } catch (error) {
    if (existsSync(partial)) rmSync(partial)
    const code = systemCode(error)
    if (code === undefined) throw error
    throw new BackupError('WRITE_FAILED', `the metrics cannot be written to "${path}" (${code})`, {
      hint: 'make its directory, writable for this user; a file that was there is as it was',
      cause: error,
    })
  }
}

/** Two runs at once have a name each, so neither publishes the other's half. */
function writeWhole(path: string, bytes: Buffer): void {
  rmSync(path, { force: true })
  const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = constants
  const fd = openSync(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o644)
  try {
    writeAll(fd, bytes)
    // A service's umask would keep the exporter out.
    fchmodSync(fd, 0o644)
    fsyncSync(fd)
  } finally {
    closeSync(fd)
  }
}

function removeStalePartials(path: string, nowMs: number): void {
  const directory = dirname(path)
  for (const name of readdirSync(directory)) {
    const middle = name.slice(basename(path).length)
    if (!name.startsWith(basename(path)) || !/^\.[0-9]+\.partial$/.test(middle)) continue
    const stat = statSync(join(directory, name), { throwIfNoEntry: false })
    if (stat !== undefined && nowMs - stat.mtimeMs > STALE_PARTIAL_MS) {
      rmSync(join(directory, name), { force: true })
    }
  }
}

/** Without a key of ours no receipt is believed, and the status says so. */
export async function ownKeys(configuration: Configuration): Promise<readonly string[]> {
  try {
    return await trustedKeys(configuration, { machine: configuration.machine, fromIdentity: [] })
  } catch (error) {
    if (error instanceof BackupError || systemCode(error) !== undefined) return []
    throw error
  }
}

/** Undefined where there is no staging directory. */
function spaceOf(staging: string): Space | undefined {
  try {
    const { bavail, blocks, bsize } = statfsSync(staging)
    return { freeBytes: bavail * bsize, totalBytes: blocks * bsize }
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return undefined
    throw stagingError({ error, staging, doing: 'read' })
  }
}

function findDamagedCatalogs(
  staging: string,
  { collections }: Known,
): ReadonlyMap<string, readonly Stamp[]> {
  const damaged = [...collections].map(([set, headers]) => {
    const whole = new Set(headers.map(({ stamp }) => stamp))
    const unreadable = listStamps({ staging, set }).filter((stamp) => !whole.has(stamp))
    return [set, [...unreadable, ...listTreesWithoutCatalog({ staging, set })].sort()] as const
  })
  return new Map(damaged)
}

/** What state.ts knows of repositories, of which this needs the names only. */
function readExportsThere(
  staging: string,
  of: readonly { readonly repository: string }[],
): ReadonlyMap<string, readonly string[]> {
  const ids = [...new Set(of.map(({ repository }) => repository))]
  return new Map(
    ids.flatMap((id) => {
      const exports = knownExports(stateDirectory({ staging, id }))
      return exports === undefined || exports.size === 0 ? [] : [[id, [...exports.keys()]] as const]
    }),
  )
}

/** One plain value of all that is known. */
export function gatherStatus(facts: StatusFacts): StatusDocument {
  const { configuration, sets, nowMs, known, notifierFailures } = facts
  const power = { onBattery: false, metered: false }
  const { targets, exportTo } = configuration
  const anyTarget = exportTo === 'first'
  const due = { sets, targets, known, nowMs, power, anyTarget, force: false }
  const view: View = { ...facts, decisions: planDue(due) }
  const damage = damageOf(view)
  const parts = {
    sets: sets.map((set) => ({ ...setStatus(view, set), problems: [] as readonly Problem[] })),
    targets: targets.map((target) => targetStatus(view, target)),
    staging: stagingStatus(view),
    // Of some sets it would be another score.
    score: sets.length < configuration.backupSets.length ? undefined : scoreStatus(view, damage),
  }
  const problems = findProblems({ facts, decisions: view.decisions, parts, damage })
  const isBad = problems.some(({ severity }) => severity === 'bad')
  const verdict = isBad ? 'bad' : problems.length > 0 ? 'attention' : 'good'
  const shown = known.history.filter(({ set }) => sets.some(({ name }) => name === set))
  const failures = shown.filter(({ outcome }) => outcome !== 'good')
  return {
    format: 1,
    machine: configuration.machine,
    time: isoTime(nowMs),
    verdict,
    exitCode: isBad ? 13 : verdict === 'good' ? 0 : 3,
    problems,
    ...parts,
    sets: parts.sets.map((set) => {
      return { ...set, problems: problems.filter((problem) => problem.set === set.name) }
    }),
    notifiers: notifierFailures.map(({ channel, message, atMs }) => {
      return { channel, message, time: isoTime(atMs) }
    }),
    lastRuns: shown.slice(-RUNS_SHOWN).map(runStatus),
    lastFailures: failures.slice(-RUNS_SHOWN).map(runStatus),
  }
}

interface View extends StatusFacts {
  readonly decisions: readonly Decision[]
}

function setStatus(view: View, set: SetConfiguration): Omit<SetStatus, 'problems'> {
  const { known, decisions } = view
  const { name, snapshot, retention } = set
  const collections = known.collections.get(name) ?? []
  const newest = collections.at(-1)
  const its = decisions.filter((one) => one.set === name && one.target === undefined)
  return {
    name,
    snapshot,
    newest: newest === undefined ? undefined : collectionStatus(newest),
    collections: collections.length,
    phases: its.map((decision) => phaseStatus(view, { set, decision })),
    retention,
  }
}

function collectionStatus(header: CollectionHeader): CollectionStatus {
  const { stamp, entries, bytes, sources } = header
  const snapshots = [...new Set(sources.map(({ snapshot }) => snapshot))]
  const isAtomic = !snapshots.includes('none')
  return { stamp, outcome: outcomeOf(header), entries, bytes, isAtomic, snapshots }
}

function phaseStatus(
  view: View,
  { set, decision }: { readonly set: SetConfiguration; readonly decision: Decision },
): PhaseStatus {
  const { known, nowMs } = view
  const { phase, target, due, reason, nextMs } = decision
  const standing = judgeStanding({ set, phase, target, known, nowMs })
  const { lastGood, lastOutcome } = standing
  const isLateOnly = lastOutcome === undefined || lastOutcome === 'good'
  const healthy = standing.healthy || (isLateOnly && isElsewhere(view, { set, decision }))
  const last = lastRunOf(view, decision)
  const lastMs = last?.startMs ?? lastGood?.startMs ?? 0
  return {
    phase,
    lastGood:
      lastGood === undefined
        ? undefined
        : goodRun(view, { ...lastGood, stamp: stampOf(view, { decision, ...lastGood }) }),
    lastRun:
      lastOutcome === undefined ? undefined : { time: isoTime(lastMs), outcome: lastOutcome },
    healthy,
    due,
    reason,
    next: nextMs === undefined ? undefined : isoTime(nextMs),
  }
}

/** Where only one target gets each export, the others are not late while one is in time. */
function isElsewhere(
  { configuration: { exportTo, targets }, known, nowMs }: View,
  { set, decision: { phase, target } }: { set: SetConfiguration; decision: Decision },
): boolean {
  if (exportTo !== 'first' || target === undefined) return false
  return targets.some(({ name }) => {
    const { healthy, lastGood } = judgeStanding({ set, phase, target: name, known, nowMs })
    return healthy && lastGood !== undefined
  })
}

/** Comparing content is collecting as well. */
function isOf({ phase, set, target }: Decision, run: RunRecord): boolean {
  const isPhase = run.phase === phase || (phase === 'collect' && run.phase === 'full')
  return isPhase && run.set === set && run.target === target
}

function lastRunOf({ known: { history } }: View, decision: Decision): RunRecord | undefined {
  return history.findLast((run) => isOf(decision, run))
}

/** Of the run that began then; without a history, of the collection that was made then. */
function stampOf(
  { known }: View,
  { decision, startMs }: { readonly decision: Decision; readonly startMs: number },
): Stamp | undefined {
  const run = known.history.findLast((one) => one.startMs === startMs && isOf(decision, one))
  if (run !== undefined || decision.target !== undefined) return run?.stamp
  const collections = known.collections.get(decision.set) ?? []
  return collections.find(({ stamp }) => parseStamp(stamp) === startMs)?.stamp
}

function goodRun(
  { nowMs }: { readonly nowMs: number },
  { startMs, stamp }: { readonly startMs: number; readonly stamp: Stamp | undefined },
): GoodRun {
  return { time: isoTime(startMs), ageSeconds: secondsOf(nowMs - startMs), stamp }
}

function targetStatus(view: View, target: TargetConfiguration): TargetStatus {
  const { sets, decisions } = view
  const { name, kind } = target
  const isDrive = target.kind === 'drive'
  const receipts = targetReceipts(view, target)
  const exports = sets.flatMap((set): readonly ExportStatus[] => {
    const decision = decisions.find((one) => one.set === set.name && one.target === name)
    return decision === undefined ? [] : [exportStatus(view, { set, decision, receipts })]
  })
  return {
    name,
    kind,
    path: isDrive ? undefined : placeOf(target),
    isPool: isDrive && target.isPool,
    exports,
    proofs: lastOfEachKind(receipts).map((receipt) => proofStatus(view, receipt)),
    ...(isDrive ? rotationStatus(view, target) : { drives: [], next: undefined }),
  }
}

/** Of all its drives, oldest first. */
function targetReceipts(view: View, target: TargetConfiguration): readonly Receipt[] {
  if (target.kind !== 'drive') {
    const place = { target: target.name, drive: undefined, repository: undefined }
    return receiptsOf(view.receipts, place)
  }
  const its = new Set(target.drives.flatMap(({ name }) => driveReceipts(view, { target, name })))
  return view.receipts.filter((receipt) => its.has(receipt))
}

interface DrivePlace {
  readonly target: DriveTargetConfiguration
  /** Of the drive. */
  readonly name: string
}

function driveReceipts(view: View, { target, name }: DrivePlace): readonly Receipt[] {
  const { repository } = knownDrive(view, { target, name }) ?? {}
  return receiptsOf(view.receipts, { target: target.name, drive: name, repository })
}

function knownDrive({ drives }: View, { target, name }: DrivePlace): KnownDrive | undefined {
  return drives.find((one) => one.target === target.name && one.drive === name)
}

function exportStatus(
  view: View,
  {
    set,
    decision,
    receipts,
  }: {
    readonly set: SetConfiguration
    readonly decision: Decision
    readonly receipts: readonly Receipt[]
  },
): ExportStatus {
  const { known, configuration } = view
  const good = known.history.findLast((run) => isOf(decision, run) && run.outcome === 'good')
  const proof = lastOfSet(receipts, { machine: configuration.machine, set: set.name })
  return {
    set: set.name,
    ...phaseStatus(view, { set, decision }),
    bytes: good?.bytes,
    writtenBytes: good?.writtenBytes,
    proof: proof === undefined ? undefined : proofStatus(view, proof),
  }
}

function proofStatus({ nowMs }: View, receipt: Receipt): ProofStatus {
  const { kind, how, result, end, since, drive, files, bytes, totalBytes, damaged } = receipt
  return {
    kind,
    how,
    result,
    time: end,
    ageSeconds: secondsOf(nowMs - Date.parse(end)),
    ...(since === undefined ? {} : { since }),
    receipt: receiptName(receipt),
    drive,
    files,
    bytes,
    totalBytes,
    damaged: damaged.length,
  }
}

function rotationStatus(
  view: View,
  target: DriveTargetConfiguration,
): Pick<TargetStatus, 'drives' | 'next'> {
  const { nowMs, configuration, known } = view
  const { backupSets: sets } = configuration
  const everyMs = everyMsOf(target, sets)
  const drives = rotatedDrives(target, { sets, history: known.history })
  const { name, dueMs, isDue } = nextDrive({ drives, everyMs, nowMs })
  const due = dueMs === undefined ? undefined : isoTime(dueMs)
  return {
    drives: drives.map((drive) => driveStatus(view, { target, ...drive, everyMs })),
    next: { drive: name, due, isDue },
  }
}

function driveStatus(
  view: View,
  {
    target,
    name,
    lastGoodMs,
    everyMs,
  }: DrivePlace & RotatedDrive & { readonly everyMs: number | undefined },
): DriveStatus {
  const { configuration, nowMs } = view
  const known = knownDrive(view, { target, name })
  const configured = target.drives.find((drive) => drive.name === name)
  const good = lastGoodExport(view, { target, name })
  const sinceMs = exportableSince(view)
  const waitsMs = configuration.exportTo === 'first' ? lastExportMs(view) : lastGoodMs
  const freeBytes = known?.freeBytes
  const wanted = wantedBytes(configuration.notify.lowSpace, known?.sizeBytes ?? 0)
  return {
    name,
    label: known?.label ?? configured?.label,
    uuid: known?.uuid ?? configured?.uuid,
    lastSeen: known === undefined ? undefined : isoTime(known.lastSeenMs),
    lastGoodExport: good === undefined ? undefined : { set: good.set, ...goodRun(view, good) },
    waitsSince: lastGoodMs === undefined ? undefined : isoTime(lastGoodMs),
    oldestExport: oldestExport(view, known?.repository),
    sizeBytes: known?.sizeBytes,
    freeBytes,
    lowSpace: freeBytes !== undefined && freeBytes < wanted,
    isOverdue: isOverdue({ lastGoodMs: waitsMs, everyMs, nowMs, sinceMs }),
    proofs: lastOfEachKind(driveReceipts(view, { target, name })).map((receipt) => {
      return proofStatus(view, receipt)
    }),
  }
}

function lastGoodExport(
  { known: { history } }: View,
  { target, name }: DrivePlace,
): RunRecord | undefined {
  return history.findLast(({ phase, target: to, drive, outcome }) => {
    return phase === 'export' && to === target.name && drive === name && outcome === 'good'
  })
}

/**
 * To whichever target: where only one gets each export, no drive is missed while one of them does.
 */
function lastExportMs({ known: { history } }: View): number | undefined {
  const isGood = ({ phase, outcome }: RunRecord): boolean =>
    phase === 'export' && outcome === 'good'
  return history.findLast(isGood)?.startMs
}

/** The first that is known of: retention lets old collections go, but history remembers longer. */
function exportableSince({ known: { history, collections } }: View): number | undefined {
  const oldest = [...collections.values()].flatMap(
    ([first]) => parseStamp(first?.stamp ?? '') ?? [],
  )
  const runs = history.filter(({ outcome }) => outcome !== 'failed').map(({ startMs }) => startMs)
  return [...oldest, ...runs].reduce<number | undefined>((first, atMs) => {
    return first === undefined ? atMs : Math.min(first, atMs)
  }, undefined)
}

function oldestExport(
  { exportsThere }: View,
  repository: string | undefined,
): DriveStatus['oldestExport'] {
  const names = repository === undefined ? [] : (exportsThere.get(repository) ?? [])
  return names
    .map((name) => {
      const [set = '', stamp = ''] = name.split('/')
      return { set, stamp }
    })
    .toSorted((one, other) => (one.stamp < other.stamp ? -1 : 1))[0]
}

function stagingStatus({ configuration, space }: View): StagingStatus {
  const { staging, minFree, notify } = configuration
  const wanted = (amount: AmountFree): number => wantedBytes(amount, space?.totalBytes ?? 0)
  const wantedFree = Math.max(wanted(notify.lowSpace), wanted(minFree ?? { bytes: 0 }))
  const lowSpace = space !== undefined && space.freeBytes < wantedFree
  return { path: staging, freeBytes: space?.freeBytes, totalBytes: space?.totalBytes, lowSpace }
}

function scoreStatus(view: View, damage: readonly Damage[]): ScoreStatus {
  const { configuration, known, media, remembered, nowMs } = view
  const { isConfigured, provenWithinMs } = configuration.score
  const score = scoreOf({
    ...{ configuration, known, media, remembered, nowMs },
    receiptsAt: (target, drive) => {
      return target.kind !== 'drive' || drive === undefined
        ? targetReceipts(view, target)
        : driveReceipts(view, { target, name: drive })
    },
    isDamaged: (target, drive) => {
      return damage.some(({ receipt }) => {
        return receipt.target === target && (drive === undefined || driveOf(receipt) === drive)
      })
    },
  })
  const { places, lost, ...rest } = score
  return {
    ...rest,
    isConfigured,
    provenWithinSeconds: secondsOf(provenWithinMs),
    places: places.map((place) => ({
      target: place.target,
      drive: place.drive,
      counts: place.doubt === undefined,
      isLost: lost.includes(place),
      isOtherMedium: place.medium !== undefined,
      isOffSite: place.isOffSite,
      what: place.words,
      lastGood: place.lastGoodMs === undefined ? undefined : isoTime(place.lastGoodMs),
      proven: place.provenMs === undefined ? undefined : isoTime(place.provenMs),
    })),
  }
}

interface Damage {
  readonly receipt: Receipt
  /** Of the receipt. */
  readonly name: string
}

/** By target and drive: the newest damage that was found and stands. */
function damageOf(view: View): readonly Damage[] {
  const { configuration, exportsThere } = view
  const isGone = (repository: string, exportName: string): boolean => {
    const there = exportsThere.get(repository)
    return there !== undefined && !there.includes(withoutMachine(exportName))
  }
  const places = configuration.targets.flatMap((target) => {
    if (target.kind !== 'drive') return [targetReceipts(view, target)]
    return target.drives.map(({ name }) => driveReceipts(view, { target, name }))
  })
  return places.flatMap((receipts) => {
    const receipt = standingDamage(receipts, isGone)
    return receipt === undefined ? [] : [{ receipt, name: receiptName(receipt) }]
  })
}

function withoutMachine(exportName: string): string {
  return exportName.slice(exportName.indexOf('/') + 1)
}

function runStatus({ startMs, endMs, drive, ...run }: RunRecord): RunStatus {
  return { ...run, drive, start: isoTime(startMs), end: isoTime(endMs) }
}

function wantedBytes(amount: AmountFree, totalBytes: number): number {
  return 'bytes' in amount ? amount.bytes : amount.share * totalBytes
}

function secondsOf(durationMs: number): number {
  return Math.floor(durationMs / 1000)
}

function isoTime(epochMs: number): string {
  return new Date(epochMs).toISOString()
}
