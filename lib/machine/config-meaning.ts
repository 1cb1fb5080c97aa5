// What a configuration means once the schema has let it through: expanded paths, sizes in bytes,
// names checked.
//
// config.ts reads and checks the file and calls this. Paths are text as written in the file, not
// RawPaths: sources stay as they were written but for `~` and variables, all other paths are
// normalized; all are absolute. Throws only through the FailAt it is given, and CONFIG_INVALID for
// a wrong `$BACKUP_RETENTION`.

import { dirname, join } from 'node:path'
import { BackupError } from '../errors.ts'
import { parseDuration, parseSize } from '../model/amount.ts'
import { isValidName, machineName } from '../model/names.ts'
import type { KeepRules } from '../model/retention.ts'
import type { Frequency } from '../model/schedule.ts'
import type { ScoreNumbers } from '../model/score.ts'
import type { ConfigPath, ConfigProblem } from './config-errors.ts'
import { expandPath, expandPattern, normalizePath } from './config-expand.ts'
import { type BuiltinSet, readBuiltinSet } from './config-system.ts'
import type { Fail, Surroundings } from './config-expand.ts'
import {
  type AmountFree,
  type NotifyConfiguration,
  type RawNotify,
  readAmountFree,
  readNotify,
} from './config-notify.ts'
import { type RawTarget, readTarget, type TargetConfiguration } from './config-targets.ts'

export interface Configuration {
  /** The file it came from, absolute. */
  readonly path: string
  readonly machine: string
  readonly staging: string
  readonly backupSets: readonly SetConfiguration[]
  readonly targets: readonly TargetConfiguration[]
  readonly recipients: readonly string[]
  readonly identity: string | undefined
  readonly signingKey: string
  readonly trustedSigningKeys: readonly TrustedSigningKey[]
  /** How much of staging's filesystem stays free. */
  readonly minFree: AmountFree | undefined
  /** Which targets get the exports. */
  readonly exportTo: 'all' | 'first'
  readonly notify: NotifyConfiguration
  /** A file for Prometheus. */
  readonly metrics: string | undefined
  readonly score: ScoreConfiguration
}

export interface ScoreConfiguration {
  /** What the 3-2-1 score has to reach. */
  readonly wanted: ScoreNumbers
  /** Whether somebody asked for it: then a lower score is a problem. */
  readonly isConfigured: boolean
  /** How long ago the last good proof of a copy may be. */
  readonly provenWithinMs: number
}

export interface SetConfiguration {
  readonly name: string
  /** Absolute, otherwise as written: a trailing slash or a symbolic link is still there. */
  readonly sources: readonly string[]
  /**
   * Of the built-in set: where this machine is described before each collection, which is one of
   * the sources.
   */
  readonly records: string | undefined
  readonly method: 'rsync'
  /** rsync patterns: the set's own first, then those of every set. */
  readonly exclusions: readonly string[]
  readonly filters: FilterConfiguration
  readonly snapshot: 'auto' | 'required' | 'none'
  /** Whether the last source snapshot stays until the next run. */
  readonly keepSnapshot: boolean
  /** Above 0, up to 1. */
  readonly suspectLoss: number
  readonly bandwidthBytesPerSecond: number | undefined
  readonly nice: number
  readonly ionice: 'normal' | 'low' | 'idle'
  readonly hooks: { readonly collect: HookConfiguration; readonly export: HookConfiguration }
  /** The set's own over that of all. */
  readonly schedule: ScheduleConfiguration
  readonly retention: RetentionConfiguration
}

export interface FilterConfiguration {
  readonly globs: readonly string[]
  readonly regexes: readonly string[]
  readonly ignoreFiles: readonly string[]
  readonly skipCaches: boolean
  readonly skipMarkers: readonly string[]
  readonly maxSizeBytes: number | undefined
  readonly oneFilesystem: boolean
}

/** Programs with their arguments. */
export interface HookConfiguration {
  readonly before: readonly string[] | undefined
  readonly after: readonly string[] | undefined
  readonly onFailure: readonly string[] | undefined
  readonly timeoutMs: number
}

export interface RetentionConfiguration {
  readonly local: number
  readonly external: number
  /** What stays besides the counts. */
  readonly keep: KeepRules
}

export interface TrustedSigningKey {
  readonly machine: string
  readonly key: string
}

export interface ScheduleConfiguration {
  readonly incremental: Frequency
  readonly full: Frequency
  readonly external: Frequency
  readonly onBattery: 'run' | 'skip'
  readonly onMetered: 'run' | 'skip'
}

/** Throws the problem as an error that names file, line and column. */
export type FailAt = (problem: ConfigProblem) => never

/** What the schema lets through, its defaults filled in. */
export interface RawConfiguration {
  readonly machine?: string
  readonly staging?: string
  readonly backup_sets: readonly RawSet[]
  readonly exclusions: readonly string[]
  readonly targets: readonly RawTarget[]
  readonly export_to: 'all' | 'first'
  readonly notify: RawNotify
  readonly metrics?: string
  readonly score?: RawScore
  readonly recipients: readonly string[]
  readonly identity?: string
  readonly signing_key?: string
  readonly trusted_signing_keys: readonly TrustedSigningKey[]
  readonly schedule: RawSchedule
  readonly retention: RawRetention & {
    readonly local: number
    readonly external: number
    readonly min_free?: string
  }
}

interface RawScore {
  readonly copies: number
  readonly media: number
  readonly off_site: number
  readonly proven_within: string
}

interface RawSet {
  readonly name: string
  readonly builtin?: 'system'
  readonly records?: string
  readonly sources?: readonly string[]
  readonly method: 'rsync'
  readonly exclusions: readonly string[]
  readonly filters: {
    readonly globs: readonly string[]
    readonly regexes: readonly string[]
    readonly ignore_files: readonly string[]
    readonly skip_caches: boolean
    readonly skip_markers: readonly string[]
    readonly max_size?: string | number
    readonly one_filesystem: boolean
  }
  readonly snapshot: 'auto' | 'required' | 'none'
  readonly keep_snapshot: boolean
  readonly suspect_loss: number
  readonly bandwidth_limit?: string | number
  readonly nice: number
  readonly ionice: 'normal' | 'low' | 'idle'
  readonly hooks: { readonly collect?: RawHooks; readonly export?: RawHooks }
  readonly schedule: Partial<RawSchedule>
  readonly retention: Partial<RawRetention>
}

interface RawHooks {
  readonly before?: readonly string[]
  readonly after?: readonly string[]
  readonly on_failure?: readonly string[]
  readonly timeout: string
}

interface RawSchedule {
  readonly incremental: Frequency
  readonly full: Frequency
  readonly external: Frequency
  readonly on_battery: 'run' | 'skip'
  readonly on_metered: 'run' | 'skip'
}

interface RawRetention {
  readonly local?: number
  readonly external?: number
  readonly keep?: Omit<KeepRules, 'withinMs'> & { readonly within?: string }
}

/** As the schema has it, for a phase whose hooks are not configured. */
const DEFAULT_HOOK_TIMEOUT_MS = 10 * 60_000

/** As the schema has it, for who asks for nothing. */
const DEFAULT_SCORE: RawScore = { copies: 3, media: 2, off_site: 1, proven_within: '90d' }

/**
 * The configuration that `raw` means.
 * @throws through `fail`, with the place in the file; CONFIG_INVALID where `$BACKUP_RETENTION` is
 * wrong
 */
export function readConfiguration(
  raw: RawConfiguration,
  options: { readonly path: string; readonly hostName: string } & Surroundings,
  fail: FailAt,
): Configuration {
  const { path } = options
  const at =
    (place: ConfigPath): Fail =>
    (message, hint) => {
      return fail({ path: place, message, ...(hint === undefined ? {} : { hint }) })
    }
  const pathAt = (text: string, ...place: ConfigPath) => {
    return normalizePath(expandPath(text, options, at(place)))
  }

  checkNames(raw.backup_sets, 'backup_sets', at)
  checkNames(raw.targets, 'targets', at)
  const signingKey =
    raw.signing_key === undefined
      ? join(dirname(path), 'signing.key')
      : pathAt(raw.signing_key, 'signing_key')

  return {
    path,
    machine: readMachine(raw.machine, options.hostName, at),
    staging: readStaging(raw.staging, options, at),
    backupSets: raw.backup_sets.map((set, index) => readSet({ set, index, raw, options, at })),
    targets: raw.targets.map((target, index) => {
      return readTarget(target, { options, here: (...rest) => at(['targets', index, ...rest]) })
    }),
    exportTo: raw.export_to,
    notify: readNotify(raw.notify, { options, here: (...rest) => at(['notify', ...rest]) }),
    metrics: raw.metrics === undefined ? undefined : pathAt(raw.metrics, 'metrics'),
    recipients: raw.recipients,
    identity: raw.identity === undefined ? undefined : pathAt(raw.identity, 'identity'),
    signingKey,
    trustedSigningKeys: raw.trusted_signing_keys.map(({ machine, key }) => ({ machine, key })),
    minFree: readAmountFree(raw.retention.min_free, at(['retention', 'min_free'])),
    score: readScore(raw.score),
  }
}

function readScore(score: RawScore | undefined): ScoreConfiguration {
  const { copies, media, off_site: offSite, proven_within: within } = score ?? DEFAULT_SCORE
  return {
    wanted: { copies, media, offSite },
    isConfigured: score !== undefined,
    provenWithinMs: parseDuration(within) ?? 0,
  }
}

function readSet({
  set,
  index,
  raw,
  options,
  at,
}: {
  readonly set: RawSet
  readonly index: number
  readonly raw: RawConfiguration
  readonly options: Surroundings
  readonly at: At
}): SetConfiguration {
  const here = (...place: ConfigPath): Fail => at(['backup_sets', index, ...place])
  const size = (text: string | number | undefined, ...place: ConfigPath) => {
    return text === undefined ? undefined : (parseSize(text) ?? here(...place)(`no size: ${text}`))
  }
  const { filters, hooks } = set
  const builtin = readBuiltin({ set, raw, options, here, at })
  const own = (set.sources ?? []).map((source, position) => {
    return expandPath(source, options, here('sources', position))
  })
  return {
    name: set.name,
    sources: [...(builtin?.sources ?? []), ...own],
    records: builtin?.records,
    method: set.method,
    exclusions: [
      ...set.exclusions.map((pattern, position) => {
        return expandPattern(pattern, options, here('exclusions', position))
      }),
      ...raw.exclusions.map((pattern, position) => {
        return expandPattern(pattern, options, at(['exclusions', position]))
      }),
      ...(builtin?.exclusions ?? []),
    ],
    filters: {
      globs: filters.globs.map((glob, position) => {
        return expandPattern(glob, options, here('filters', 'globs', position))
      }),
      regexes: filters.regexes.map((regex, position) => {
        return checkRegex(regex, here('filters', 'regexes', position))
      }),
      ignoreFiles: filters.ignore_files,
      skipCaches: filters.skip_caches,
      skipMarkers: filters.skip_markers,
      maxSizeBytes: size(filters.max_size, 'filters', 'max_size'),
      oneFilesystem: filters.one_filesystem,
    },
    snapshot: set.snapshot,
    keepSnapshot: set.keep_snapshot,
    suspectLoss: set.suspect_loss,
    bandwidthBytesPerSecond: size(set.bandwidth_limit, 'bandwidth_limit'),
    nice: set.nice,
    ionice: set.ionice,
    hooks: { collect: readHooks(hooks.collect), export: readHooks(hooks.export) },
    schedule: readSchedule({ ...raw.schedule, ...set.schedule }),
    retention: readSetRetention(set.retention, { raw, environment: options.environment }),
  }
}

/** What a built-in set is; undefined of any other, which needs sources of its own. */
function readBuiltin({
  set,
  raw,
  options,
  here,
  at,
}: {
  readonly set: RawSet
  readonly raw: RawConfiguration
  readonly options: Surroundings
  readonly here: (...place: ConfigPath) => Fail
  readonly at: At
}): BuiltinSet | undefined {
  if (set.builtin !== undefined) {
    const staging = readStaging(raw.staging, options, at)
    return readBuiltinSet(set.records, { options, staging, here })
  }
  if (set.records !== undefined) here('records')('only a set with `builtin: system` has records')
  if (set.sources === undefined) {
    here()('expected a set with a name and sources, but sources is missing')
  }
  return undefined
}

function checkRegex(regex: string, fail: Fail): string {
  try {
    new RegExp(regex, 'u')
    return regex
  } catch (error) {
    return fail(error instanceof Error ? error.message : 'no regular expression')
  }
}

function readHooks(hooks: RawHooks | undefined): HookConfiguration {
  return {
    before: hooks?.before,
    after: hooks?.after,
    onFailure: hooks?.on_failure,
    timeoutMs: parseDuration(hooks?.timeout ?? '') ?? DEFAULT_HOOK_TIMEOUT_MS,
  }
}

function readSchedule(schedule: RawSchedule): ScheduleConfiguration {
  const { incremental, full, external, on_battery: onBattery, on_metered: onMetered } = schedule
  return { incremental, full, external, onBattery, onMetered }
}

/**
 * `$BACKUP_RETENTION` goes before what is configured for all, and a set's own number before that.
 */
function readSetRetention(
  own: Partial<RawRetention>,
  { raw, environment }: { raw: RawConfiguration; environment: Surroundings['environment'] },
): RetentionConfiguration {
  const { within, ...counts } = own.keep ?? raw.retention.keep ?? {}
  const withinMs = within === undefined ? undefined : parseDuration(within)
  return {
    local: own.local ?? raw.retention.local,
    external: own.external ?? readRetention(environment) ?? raw.retention.external,
    keep: { ...counts, ...(withinMs === undefined ? {} : { withinMs }) },
  }
}

type At = (place: ConfigPath) => Fail

function checkNames(list: readonly { readonly name: string }[], property: string, at: At): void {
  const places = new Map<string, number>()
  for (const [index, { name }] of list.entries()) {
    const place = [property, index, 'name']
    const earlier = places.get(name)
    if (earlier !== undefined) {
      at(place)(`the name ${name} is already that of ${property}[${earlier}]`)
    }
    checkDevice(name, at(place))
    places.set(name, index)
  }
}

/** The schema has let its characters through, so this is what can still be wrong. */
function checkDevice(name: string, fail: Fail): void {
  if (!isValidName(name)) fail(`the name ${name} cannot be used: it is a device on Windows`)
}

function readMachine(machine: string | undefined, hostName: string, at: At): string {
  if (machine !== undefined) {
    checkDevice(machine, at(['machine']))
    return machine
  }
  const name = machineName(hostName)
  if (name !== undefined) return name
  return at([])('the host name makes no machine name', 'set machine to a name of a-z, 0-9, _ and -')
}

function readStaging(staging: string | undefined, surroundings: Surroundings, at: At): string {
  const hint = 'set staging to a directory, or the variable DBACKUP'
  if (staging === undefined && !surroundings.environment['DBACKUP']) {
    return at([])('there is no staging directory: staging is missing, and DBACKUP is not set', hint)
  }
  const fail = at(staging === undefined ? [] : ['staging'])
  return normalizePath(expandPath(staging ?? '$DBACKUP', surroundings, fail))
}

/** `$BACKUP_RETENTION`, checked as retention.external is; undefined where it is not set. */
function readRetention(environment: Surroundings['environment']): number | undefined {
  const text = environment['BACKUP_RETENTION'] ?? ''
  if (text === '') return undefined
  const count = /^[0-9]{1,6}$/.test(text) ? Number(text) : 0
  if (count >= 1 && count <= 100_000) return count
  const message = 'BACKUP_RETENTION: expected a whole number from 1 to 100000'
  throw new BackupError('CONFIG_INVALID', message, {
    hint: 'it says how many exports to keep on each target, and goes before retention.external',
  })
}
