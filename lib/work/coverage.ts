// Where the generations of this machine can be had: staging, and every target that is known to have
// them, plugged in or not.
//
// `backup find`, `why` and `diff` say it. What is known is what the states say of each repository
// (state.ts), the drive register and targets.json; nothing on a target is read, so what somebody
// removed there by hand is still counted. Throws STAGING_FAILED, and what listing drives throws.

import { existsSync } from 'node:fs'
import { BackupError, systemCode } from '../errors.ts'
import type { Configuration } from '../machine/config.ts'
import type { TargetConfiguration } from '../machine/config-targets.ts'
import { bareMountPoint } from '../machine/mounted.ts'
import { comparePaths, type RawPath } from '../model/raw-path.ts'
import { provenMsOf, type Receipt } from '../model/receipt.ts'
import { rangesOf, type Shard } from '../model/shard.ts'
import { parseStamp, type Stamp } from '../model/stamp.ts'
import { readDrives } from './drive-register.ts'
import { describeDrive } from './drive-target.ts'
import { surveyDrives } from './drives.ts'
import type { RunRecord } from './history.ts'
import { lastProof, receiptName } from './receipts.ts'
import { listStagedSets, listStamps } from './staging.ts'
import {
  knownExports,
  knownRepositoryIds,
  lastExportShards,
  lastExportStamp,
  stateDirectory,
} from './state.ts'
import { knownRepositories } from './target-access.ts'
import type { VersionRun } from './version-runs.ts'

/** Staging, a target, or one drive of a target. */
export interface Holder {
  /** `staging`, `blue`, `pool/red`; of a repository that no target has any more, its id. */
  readonly name: string
  /** Undefined for staging, and where no target has the repository. */
  readonly target: string | undefined
  /** Which one, where the target is a pool. */
  readonly drive: string | undefined
  /** Undefined: nothing was ever exported there. */
  readonly repository: string | undefined
  /** Undefined over a network: nobody asked. */
  readonly isThere: boolean | undefined
  /** The generations of each set. */
  readonly stamps: ReadonlyMap<string, ReadonlySet<Stamp>>
}

/** Staging first, then targets as they are configured, then what no target has any more. */
export async function readHolders(
  configuration: Configuration,
  { signal }: { readonly signal: AbortSignal },
): Promise<readonly Holder[]> {
  const { staging, targets } = configuration
  const sets = listStagedSets(staging)
  const staged = new Map(sets.map((set) => [set, new Set(listStamps({ staging, set }))]))
  const drives = await pluggedDrives(configuration, signal)
  const held = targets.flatMap((target) => targetHolders(target, { configuration, drives }))
  const named = new Set(held.map(({ repository }) => repository))
  const others = knownRepositoryIds(staging).flatMap((repository): Holder[] => {
    const stamps = exportsIn(staging, repository)
    if (named.has(repository) || stamps.size === 0) return []
    const name = `repository ${repository.slice(0, 8)}`
    return [{ ...NOWHERE, name, repository, isThere: false, stamps }]
  })
  return [{ ...NOWHERE, name: 'staging', isThere: true, stamps: staged }, ...held, ...others]
}

const NOWHERE = { target: undefined, drive: undefined, repository: undefined }

/** `<target>/<drive>` of the drives that are plugged in; undefined where nobody can tell. */
async function pluggedDrives(
  configuration: Configuration,
  signal: AbortSignal,
): Promise<ReadonlySet<string> | undefined> {
  if (!configuration.targets.some(({ kind }) => kind === 'drive')) return new Set()
  try {
    const { plugged } = await surveyDrives(configuration, { signal })
    const matches = plugged.flatMap((one) => one.matches)
    return new Set(matches.map(({ target, drive }) => `${target}/${drive}`))
  } catch (error) {
    if (error instanceof BackupError && error.code !== 'INTERRUPTED') return undefined
    throw error
  }
}

function targetHolders(
  target: TargetConfiguration,
  {
    configuration: { staging },
    drives,
  }: { readonly configuration: Configuration; readonly drives: ReadonlySet<string> | undefined },
): Holder[] {
  const { name } = target
  if (target.kind !== 'drive') {
    const repository = knownRepositories(staging)[name]
    const isThere = target.kind === 'directory' ? isDirectoryThere(target) : undefined
    const stamps = repository === undefined ? NO_STAMPS : exportsIn(staging, repository)
    return [{ name, target: name, drive: undefined, repository, isThere, stamps }]
  }
  const register = readDrives(staging).filter((known) => known.target === name)
  return target.drives.map(({ name: drive }) => {
    const repository = register.find((known) => known.drive === drive)?.repository
    return {
      name: describeDrive(target, drive),
      target: name,
      drive: target.isPool ? drive : undefined,
      repository,
      isThere: drives?.has(`${name}/${drive}`),
      stamps: repository === undefined ? NO_STAMPS : exportsIn(staging, repository),
    }
  })
}

const NO_STAMPS: Holder['stamps'] = new Map()

function isDirectoryThere({
  path,
  mustBeMounted,
}: Extract<TargetConfiguration, { readonly kind: 'directory' }>): boolean {
  try {
    return (
      existsSync(`${path}/repository.json`) && bareMountPoint({ path, mustBeMounted }) === undefined
    )
  } catch (error) {
    if (systemCode(error) === undefined) throw error
    return false
  }
}

function exportsIn(staging: string, id: string): Holder['stamps'] {
  const stamps = new Map<string, Set<Stamp>>()
  for (const name of knownExports(stateDirectory({ staging, id }))?.keys() ?? []) {
    const [set = '', stamp = ''] = name.split('/')
    stamps.set(set, (stamps.get(set) ?? new Set<Stamp>()).add(stamp))
  }
  return stamps
}

/** Those that have one of these generations at least. */
export function holdersOf(
  holders: readonly Holder[],
  { set, stamps }: { readonly set: string; readonly stamps: readonly Stamp[] },
): readonly Holder[] {
  return holders.filter((holder) => {
    const there = holder.stamps.get(set)
    return there !== undefined && stamps.some((stamp) => there.has(stamp))
  })
}

/** What one target has of a path. */
export interface Coverage {
  readonly holder: Holder
  /** The newest version that any generation has, an older one, or none. */
  readonly state: 'newest' | 'older' | 'none'
  /** The newest export that has it, and when that was made. Milliseconds since 1970. */
  readonly stamp: Stamp | undefined
  readonly exportedMs: number | undefined
  /** When an export with this version was last read and found good, and the receipt of it. */
  readonly proven: { readonly atMs: number; readonly receipt: string } | undefined
  /** A receipt of damage to such an export that still stands. */
  readonly damaged: { readonly atMs: number; readonly receipt: string } | undefined
  /** Names of the bundles with its bytes, where they were asked for and are known. */
  readonly bundles: readonly string[] | undefined
}

/** What each target has of a path whose runs are given, newest first. Staging is not one. */
export function coverageOf({
  configuration: { machine, staging },
  holders,
  set,
  path,
  runs,
  receipts,
  history,
  withBundles,
}: {
  readonly configuration: Pick<Configuration, 'machine' | 'staging'>
  readonly holders: readonly Holder[]
  readonly set: string
  /** Without a leading slash. */
  readonly path: RawPath
  readonly runs: readonly VersionRun[]
  readonly receipts: readonly Receipt[]
  readonly history: readonly RunRecord[]
  readonly withBundles: boolean
}): Coverage[] {
  const held = runs.filter(({ state }) => state === 'held')
  const targets = holders.filter(({ name }) => name !== 'staging')
  return targets.map((holder): Coverage => {
    const there = holder.stamps.get(set) ?? new Set<Stamp>()
    const run = held.find(({ stamps }) => stamps.some((stamp) => there.has(stamp)))
    const stamps = run?.stamps.filter((stamp) => there.has(stamp)) ?? []
    const stamp = stamps.at(-1)
    if (run === undefined || stamp === undefined) return { ...NOTHING, holder }
    const proofs = stamps.map((one) => {
      return proofOf(receipts, { holder, exportName: `${machine}/${set}/${one}` })
    })
    return {
      holder,
      state: run === held[0] ? 'newest' : 'older',
      stamp,
      exportedMs: exportedMs(history, { holder, set, stamp }),
      proven: latest(proofs.map(({ verification }) => verification)),
      damaged: latest(proofs.map(({ damaged }) => damaged)),
      bundles: withBundles ? bundlesOf({ staging, holder, set, path, stamps }) : undefined,
    }
  })
}

const NOTHING = {
  state: 'none',
  stamp: undefined,
  exportedMs: undefined,
  proven: undefined,
  damaged: undefined,
  bundles: undefined,
} as const

function proofOf(
  receipts: readonly Receipt[],
  { holder, exportName }: { readonly holder: Holder; readonly exportName: string },
): ReturnType<typeof lastProof> {
  const { target = '', drive, repository } = holder
  return lastProof(receipts, { target, drive, repository, export: exportName })
}

function latest(receipts: readonly (Receipt | undefined)[]): Coverage['proven'] {
  const found = receipts.filter((receipt) => receipt !== undefined)
  const last = found.sort((a, b) => provenMsOf(a) - provenMsOf(b)).at(-1)
  if (last === undefined) return undefined
  return { atMs: provenMsOf(last), receipt: receiptName(last) }
}

/** When the run that made it ended; without a history, when it was collected. */
function exportedMs(
  history: readonly RunRecord[],
  { holder, set, stamp }: { readonly holder: Holder; readonly set: string; readonly stamp: Stamp },
): number | undefined {
  const run = history.find((one) => {
    const isThere = one.target === holder.target && one.phase === 'export'
    const isDrive = holder.drive === undefined || one.drive === holder.drive
    return isThere && isDrive && one.set === set && one.stamp === stamp
  })
  return run?.endMs ?? parseStamp(stamp)
}

/** Only the last export's catalog is here; undefined where that does not have this version. */
function bundlesOf({
  staging,
  holder: { repository: id = '' },
  set,
  path,
  stamps,
}: {
  readonly staging: string
  readonly holder: Holder
  readonly set: string
  readonly path: RawPath
  readonly stamps: readonly Stamp[]
}): readonly string[] | undefined {
  const directory = stateDirectory({ staging, id })
  try {
    const last = lastExportStamp(directory, set)
    if (last === undefined || !stamps.includes(last)) return undefined
    let read: (() => Shard) | undefined
    for (const { place, shard } of lastExportShards(directory, set)) {
      if (comparePaths(place.first, path) > 0) break
      read = shard
    }
    return read === undefined ? undefined : bundlesIn(read(), path)
  } catch (error) {
    // A cache that cannot be read is one that is not there.
    if (error instanceof BackupError) return undefined
    throw error
  }
}

function bundlesIn({ entries, bundles }: Shard, path: RawPath): readonly string[] | undefined {
  const entry = entries.find((one) => one.path === path)
  if (entry === undefined) return undefined
  const numbers = new Set(rangesOf(entry).map(([bundle]) => bundle))
  return [...numbers].map((number) => bundles[number]!.name).sort()
}
