// The 3-2-1 score of a configuration: what is known of each place, and which places counted before.
//
// lib/work/status.ts calls scoreOf and readScoreMemory, commands/run-telling.ts remembers after
// each run. What counted lies in `.state/score.json`, which is a cache: lost, nothing was reached
// yet. lib/model/score.ts judges. No target is touched: media are told by the table of mounts.
// Throws nothing but bugs.

import { Buffer } from 'node:buffer'
import { existsSync, readFileSync } from 'node:fs'
import { BackupError, systemCode } from '../errors.ts'
import type { Configuration, SetConfiguration, TargetConfiguration } from '../machine/config.ts'
import { disksOf } from '../machine/disks.ts'
import { writeDurably } from '../machine/durable-file.ts'
import { shouldBeMounted } from '../machine/mounted.ts'
import { listMounts, type Mount, mountOf } from '../machine/source-snapshot/mounts.ts'
import { lastProvenMs } from '../model/proofs.ts'
import { rawPathFromText } from '../model/raw-path.ts'
import type { Receipt } from '../model/receipt.ts'
import { isOverdue } from '../model/rotation.ts'
import {
  isNearbyHost,
  judgeScore,
  placeName,
  type Score,
  type ScorePlace,
  type ScoreSet,
} from '../model/score.ts'
import type { ScoreStatus } from '../model/status-document.ts'
import { judgeStanding, type Known } from './due.ts'
import { everyMsOf } from './drive-history.ts'
import { stateRoot } from './staging.ts'

/** Names of the disks of the sources, and of each target that is a directory; by its name. */
export interface Media {
  readonly sources: readonly string[]
  /** None for one whose disk is not there now. */
  readonly directories: ReadonlyMap<string, readonly string[]>
}

interface ScoreOptions {
  readonly configuration: Configuration
  /** Of every set that is configured. */
  readonly known: Known
  readonly media: Media
  /** Believed receipts of a place, oldest first. */
  readonly receiptsAt: (
    target: TargetConfiguration,
    drive: string | undefined,
  ) => readonly Receipt[]
  readonly isDamaged: (target: string, drive: string | undefined) => boolean
  readonly remembered: readonly string[]
  readonly nowMs: number
}

/** Where nobody mounts a disk of his own: a path that is seen through these is not mounted. */
const NO_DISK_OF_ITS_OWN = ['/', '/run', '/run/media', '/media', '/mnt', '/Volumes']

/** The score of all sets and targets of a configuration. */
export function scoreOf(options: ScoreOptions): Score {
  const { configuration, remembered, nowMs } = options
  const { wanted, provenWithinMs } = configuration.score
  const places = configuration.targets.flatMap((target) => {
    const drives = target.kind === 'drive' ? target.drives.map(({ name }) => name) : [undefined]
    return drives.map((drive) => placeOn(options, { target, drive }))
  })
  const isOneEnough = configuration.exportTo === 'first'
  return judgeScore({ places, wanted, provenWithinMs, remembered, isOneEnough, nowMs })
}

interface Place {
  readonly target: TargetConfiguration
  readonly drive: string | undefined
}

function placeOn(options: ScoreOptions, { target, drive }: Place): ScorePlace {
  const { configuration, isDamaged, media, receiptsAt } = options
  const receipts = receiptsAt(target, drive)
  // Who never exports a set wants no copy of it.
  const exported = configuration.backupSets.filter(({ schedule }) => schedule.external !== 'never')
  return {
    target: target.name,
    drive,
    kind: target.kind,
    medium: mediumOf({ target, drive }, media),
    isOffSite: isOffSite({ target, drive }),
    isDamaged: isDamaged(target.name, drive),
    sets: exported.map((set) => setOn(options, { target, drive, set, receipts })),
  }
}

function setOn(
  { configuration, known, nowMs }: ScoreOptions,
  {
    target,
    drive,
    set,
    receipts,
  }: Place & { readonly set: SetConfiguration; readonly receipts: readonly Receipt[] },
): ScoreSet {
  const { name } = set
  const { machine, backupSets } = configuration
  const provenMs = lastProvenMs(receipts, { machine, set: name })
  // A last run that failed takes nothing from the export before it.
  const history = known.history.filter((run) => {
    return run.outcome === 'good' && (drive === undefined || run.drive === drive)
  })
  const place = { set, phase: 'export', target: target.name, nowMs } as const
  const { lastGood, healthy } = judgeStanding({ ...place, known: { ...known, history } })
  const lastGoodMs = lastGood?.startMs
  if (target.kind !== 'drive') return { name, lastGoodMs, isLate: !healthy, provenMs }
  const everyMs = everyMsOf(target, backupSets)
  const isLate = isOverdue({ lastGoodMs, everyMs, nowMs, sinceMs: undefined })
  return { name, lastGoodMs, isLate, provenMs }
}

function isOffSite({ target, drive }: Place): boolean {
  switch (target.kind) {
    case 'directory':
      return target.offSite ?? false
    case 'drive':
      return target.drives.find(({ name }) => name === drive)?.offSite ?? target.offSite ?? false
    case 'sftp':
      return target.offSite ?? !isNearbyHost(target.host)
    case 's3': {
      const { endpoint } = target
      return target.offSite ?? (endpoint === undefined || !isNearbyHost(new URL(endpoint).hostname))
    }
  }
}

/** Undefined for that of the sources. */
function mediumOf({ target, drive }: Place, { sources, directories }: Media): string | undefined {
  switch (target.kind) {
    case 'directory': {
      const disks = directories.get(target.name) ?? []
      if (disks.some((disk) => sources.includes(disk))) return undefined
      return disks.length === 0 ? `target ${target.name}` : `disk ${disks.join(' ')}`
    }
    case 'drive':
      return `drive ${target.name}/${drive}`
    case 's3':
      return `bucket ${target.endpoint ?? ''} ${target.bucket}`
    case 'sftp':
      return `host ${target.host}`
  }
}

/** By the table of mounts alone: a directory on a dead server is not waited for. */
export async function readMedia(configuration: Configuration): Promise<Media> {
  const mounts = await mountsOrNone()
  const disksAt = (path: string): readonly string[] => {
    const mount = mountOf(rawPathFromText(path), mounts)
    return mount === undefined ? [] : disksOf(mount)
  }
  const sources = configuration.backupSets.flatMap((set) => set.sources.flatMap(disksAt))
  const directories = configuration.targets.flatMap((target) => {
    if (target.kind !== 'directory') return []
    const point = mountOf(rawPathFromText(target.path), mounts)?.point ?? '/'
    const isAbsent = shouldBeMounted(target) && NO_DISK_OF_ITS_OWN.includes(point)
    return [[target.name, isAbsent ? [] : disksAt(target.path)] as const]
  })
  return { sources: [...new Set(sources)], directories: new Map(directories) }
}

async function mountsOrNone(): Promise<readonly Mount[]> {
  try {
    return await listMounts()
  } catch {
    // Then every target is a medium of its own.
    return []
  }
}

/** Which places counted when it was last looked: see placeName. Damaged or not there, none. */
export function readScoreMemory(staging: string): readonly string[] {
  try {
    const value: unknown = JSON.parse(readFileSync(memoryFile(staging), 'utf8'))
    const { counted } = value as { readonly counted?: unknown }
    const isName = (one: unknown): one is string => typeof one === 'string'
    return Array.isArray(counted) ? counted.filter(isName) : []
  } catch {
    return []
  }
}

/**
 * Remembers which places count. Those that counted before stay remembered while they are
 * configured: taking a target out of the configuration ends what is said of it.
 */
export function rememberScore(staging: string, { places }: Pick<ScoreStatus, 'places'>): void {
  if (!existsSync(stateRoot(staging))) return
  const before = readScoreMemory(staging)
  const counted = places
    .filter((place) => place.counts || before.includes(placeName(place)))
    .map(placeName)
  if (counted.join('\n') === before.join('\n')) return
  try {
    const path = rawPathFromText(memoryFile(staging))
    const bytes = Buffer.from(JSON.stringify({ format: 1, counted }))
    writeDurably({ path, bytes, mode: 0o600, replace: true })
  } catch (error) {
    // Where staging cannot be written the run has said so.
    if (!(error instanceof BackupError) && systemCode(error) === undefined) throw error
  }
}

function memoryFile(staging: string): string {
  return `${stateRoot(staging)}/score.json`
}
