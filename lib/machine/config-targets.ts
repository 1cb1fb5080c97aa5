// What the targets of a configuration mean: expanded paths, sizes in bytes, a drive or a pool of
// them.
//
// config-meaning.ts calls readTarget for each. What the schema cannot say is said here: which
// properties belong to which kind of target. Throws only through the Fail it is given.

import { parseDuration, parseSize } from '../model/amount.ts'
import { isValidName } from '../model/names.ts'
import type { ConfigPath } from './config-errors.ts'
import { expandPath, type Fail, normalizePath, type Surroundings } from './config-expand.ts'

export type TargetConfiguration =
  | DirectoryTargetConfiguration
  | DriveTargetConfiguration
  | S3TargetConfiguration
  | SftpTargetConfiguration

interface AnyTargetConfiguration {
  readonly name: string
  readonly bundleSizeBytes: number
  readonly compressionLevel: number
  /** Lowest first, where only the first that is there gets the exports. */
  readonly priority: number
  /** How much par2 adds, in percent of a bundle; 0 for nothing. */
  readonly parityPercent: number
  readonly drill: 'auto' | 'always' | 'never'
  /** What is read again after an export; undefined: nothing. */
  readonly verify?: VerifyConfiguration | undefined
  /** As configured: lib/model/score.ts knows what holds where nothing is said. */
  readonly offSite?: boolean
}

/** How old a proof may become, and how much one run may spend on newer ones. */
export interface VerifyConfiguration {
  readonly olderThanMs: number
  readonly timeMs: number
  readonly limitBytes: number | undefined
}

export interface DirectoryTargetConfiguration extends AnyTargetConfiguration {
  readonly kind: 'directory'
  readonly path: string
  /** Undefined: decide by where the path lies. */
  readonly mustBeMounted: boolean | undefined
}

export interface DriveTargetConfiguration extends AnyTargetConfiguration {
  readonly kind: 'drive'
  /** Relative to the top of the drive's filesystem; empty for the top itself. */
  readonly path: string
  /** At least one; a target that is no pool has one of its own name. */
  readonly drives: readonly DriveConfiguration[]
  readonly isPool: boolean
  /** How old a drive's last good export may become; undefined: by the schedule. */
  readonly everyMs: number | undefined
  readonly afterwards: 'as_found' | 'unmount' | 'power_off'
}

/** What all targets have in common that are reached over a network. */
interface RemoteTargetConfiguration extends AnyTargetConfiguration {
  /** How many transfers run at a time. */
  readonly streams: number
  /** The most that is sent in a second. */
  readonly bandwidthLimitBytes: number | undefined
  /** How much may wait in staging to be sent. */
  readonly spoolLimitBytes: number
}

export interface S3TargetConfiguration extends RemoteTargetConfiguration {
  readonly kind: 's3'
  readonly bucket: string
  /** Of all keys, without a slash at either end; empty for none. */
  readonly path: string
  readonly region: string | undefined
  /** Undefined for Amazon's own. */
  readonly endpoint: string | undefined
  readonly isPathStyle: boolean
  /** Profiles of ~/.aws; undefined for whatever the environment offers. */
  readonly profile: string | undefined
  readonly adminProfile: string | undefined
  /** Of data bundles. */
  readonly storageClass: string
  readonly hotBelowBytes: number
  /** How long an export's bundles are locked. */
  readonly lockMs: number | undefined
  /** In the currency of the price list. */
  readonly costLimit: number | undefined
  /** A price list of the user's own. */
  readonly pricesPath: string | undefined
}

export interface SftpTargetConfiguration extends RemoteTargetConfiguration {
  readonly kind: 'sftp'
  readonly host: string
  readonly port: number
  readonly user: string | undefined
  /** The directory there; relative to where the user arrives. */
  readonly path: string
  /** `SHA256:…` without padding; undefined: none is pinned yet, and none is accepted. */
  readonly hostKey: string | undefined
  /** The private key; undefined: the agent's. */
  readonly keyPath: string | undefined
}

/** One drive, known by its label, its UUID, or both. */
export interface DriveConfiguration {
  readonly name: string
  readonly label: string | undefined
  readonly uuid: string | undefined
  /** As configured; without it, the target's. */
  readonly offSite?: boolean
}

/** What the schema lets through, its defaults filled in. */
export interface RawTarget {
  readonly name: string
  readonly kind: TargetConfiguration['kind']
  readonly path?: string
  readonly label?: string
  readonly uuid?: string
  readonly pool?: readonly Pick<RawTarget, 'name' | 'label' | 'uuid' | 'off_site'>[]
  readonly every?: string
  readonly afterwards: 'as_found' | 'unmount' | 'power_off'
  readonly priority: number
  readonly parity: string
  readonly drill: 'auto' | 'always' | 'never'
  readonly verify?: RawVerify
  readonly off_site?: boolean
  readonly bundle_size: string | number
  readonly compression_level: number
  readonly must_be_mounted?: boolean
  readonly bucket?: string
  readonly region?: string
  readonly endpoint?: string
  readonly path_style: boolean
  readonly profile?: string
  readonly admin_profile?: string
  readonly storage_class: string
  readonly hot_below: string | number
  readonly lock?: string
  readonly cost_limit?: number
  readonly prices?: string
  readonly host?: string
  readonly port: number
  readonly user?: string
  readonly host_key?: string
  readonly ssh_key?: string
  readonly streams: number
  readonly bandwidth_limit?: string | number
  readonly spool_limit: string | number
}

interface RawVerify {
  readonly older_than: string
  readonly time: string
  readonly bytes?: string | number
}

/** For messages: where a target of a fixed place is. */
export function placeOf(target: Exclude<TargetConfiguration, DriveTargetConfiguration>): string {
  if (target.kind === 'directory') return target.path
  if (target.kind === 's3') {
    const { endpoint, bucket, path } = target
    const at = endpoint === undefined ? '' : ` at ${endpoint}`
    return `s3://${bucket}${path === '' ? '' : `/${path}`}${at}`
  }
  const { host, port, path } = target
  return `sftp://${host}${port === 22 ? '' : `:${port}`}/${path}`
}

/** The bounds of docs/format.md: small enough to fit any drive, large enough to be few. */
const MIN_BUNDLE_BYTES = 2 ** 20
const MAX_BUNDLE_BYTES = 2 ** 30

/** Where on a drive the repository is when nothing is said. */
const DEFAULT_DRIVE_PATH = 'backup'

/**
 * Which properties belong to some kinds only. Those with a default are left out: they are there.
 */
const OWN_PROPERTIES = {
  must_be_mounted: ['directory'],
  label: ['drive'],
  uuid: ['drive'],
  pool: ['drive'],
  every: ['drive'],
  bucket: ['s3'],
  region: ['s3'],
  endpoint: ['s3'],
  profile: ['s3'],
  admin_profile: ['s3'],
  lock: ['s3'],
  cost_limit: ['s3'],
  prices: ['s3'],
  host: ['sftp'],
  user: ['sftp'],
  host_key: ['sftp'],
  ssh_key: ['sftp'],
  bandwidth_limit: ['s3', 'sftp'],
} as const satisfies Partial<Record<keyof RawTarget, readonly TargetConfiguration['kind'][]>>

interface Reading {
  readonly options: Surroundings
  readonly here: (...rest: ConfigPath) => Fail
}

/** The target that `raw` means. */
export function readTarget(raw: RawTarget, reading: Reading): TargetConfiguration {
  const { options, here } = reading
  for (const [property, kinds] of Object.entries(OWN_PROPERTIES)) {
    const isOurs = (kinds as readonly string[]).includes(raw.kind)
    if (isOurs || raw[property as keyof RawTarget] === undefined) continue
    const whose = kinds.join(' and ')
    here(property)(`a target of kind ${raw.kind} has no ${property}`, `it belongs to kind ${whose}`)
  }
  const parity = raw.parity === 'none' ? 0 : Number(raw.parity.slice(0, -1))
  const { name, compression_level: compressionLevel, priority, drill } = raw
  const bundleSizeBytes = readBundleSize(raw.bundle_size, here('bundle_size'))
  const said = { name, bundleSizeBytes, compressionLevel, priority, parityPercent: parity, drill }
  const any = { ...said, ...offSiteOf(raw), ...verifyOf(raw, here) }
  if (raw.kind === 'drive') return { ...any, ...readDrive(raw, { here }) }
  if (raw.kind === 's3' || raw.kind === 'sftp') {
    refuseOnRemote(raw, here)
    const remote = { ...any, ...readRemote(raw, here) }
    return raw.kind === 's3'
      ? { ...remote, ...readS3(raw, reading) }
      : { ...remote, ...readSftp(raw, reading) }
  }
  if (raw.path === undefined) return here()('path is missing', 'name the directory for exports')
  const path = normalizePath(expandPath(raw.path, options, here('path')))
  return { ...any, kind: 'directory', path, mustBeMounted: raw.must_be_mounted }
}

function offSiteOf({ off_site: offSite }: Pick<RawTarget, 'off_site'>): { offSite?: boolean } {
  return offSite === undefined ? {} : { offSite }
}

function verifyOf(
  { verify: raw }: Pick<RawTarget, 'verify'>,
  here: Reading['here'],
): { verify?: VerifyConfiguration } {
  if (raw === undefined) return {}
  const { older_than: olderThan, time, bytes } = raw
  const durationAt = (text: string, property: string): number => {
    return parseDuration(text) ?? here('verify', property)(`no time: ${text}`)
  }
  const noSize = (): never => here('verify', 'bytes')(`no size: ${bytes}`)
  const limitBytes = bytes === undefined ? undefined : (parseSize(bytes) ?? noSize())
  const olderThanMs = durationAt(olderThan, 'older_than')
  return { verify: { olderThanMs, timeMs: durationAt(time, 'time'), limitBytes } }
}

/** What needs the target's files at hand. */
function refuseOnRemote({ kind, parity, drill }: RawTarget, here: Reading['here']): void {
  if (parity !== 'none') {
    here('parity')(`a target of kind ${kind} has no parity`, 'it belongs to drives and directories')
  }
  if (drill === 'always') {
    here('drill')(
      `a target of kind ${kind} has no drills`,
      'backup-restore --verify reads back what is there',
    )
  }
}

function readRemote(raw: RawTarget, here: Reading['here']) {
  const limit = raw.bandwidth_limit
  const bandwidthLimitBytes =
    limit === undefined ? undefined : sizeAt(limit, here, 'bandwidth_limit')
  if (bandwidthLimitBytes === 0) here('bandwidth_limit')('expected more than nothing')
  const spoolLimitBytes = sizeAt(raw.spool_limit, here, 'spool_limit')
  return { streams: raw.streams, bandwidthLimitBytes, spoolLimitBytes }
}

function sizeAt(size: string | number, here: Reading['here'], property: string): number {
  return parseSize(size) ?? here(property)(`no size: ${size}`)
}

function readS3(raw: RawTarget, { options, here }: Reading) {
  if (raw.bucket === undefined) return here()('bucket is missing', 'name the bucket for exports')
  const path = normalizePath(`/${raw.path ?? ''}`).slice(1)
  if (/^(\/|~|\$)/.test(raw.path ?? '')) {
    here('path')('the path in a bucket is a prefix', 'write `path: backups`, say')
  }
  const lockMs = raw.lock === undefined ? undefined : parseDuration(raw.lock)
  const pricesPath =
    raw.prices === undefined ? undefined : expandPath(raw.prices, options, here('prices'))
  return {
    kind: 's3',
    ...{ bucket: raw.bucket, path, region: raw.region, endpoint: raw.endpoint },
    ...{ isPathStyle: raw.path_style, profile: raw.profile, adminProfile: raw.admin_profile },
    storageClass: raw.storage_class,
    hotBelowBytes: sizeAt(raw.hot_below, here, 'hot_below'),
    ...{ lockMs, costLimit: raw.cost_limit, pricesPath },
  } as const
}

function readSftp(raw: RawTarget, { options, here }: Reading) {
  const { host, port, user, path } = raw
  if (host === undefined) return here()('host is missing', 'name the host for exports')
  if (path === undefined) return here()('path is missing', 'name the directory on the host')
  const hostKey = raw.host_key?.replace(/=$/, '')
  const keyPath =
    raw.ssh_key === undefined ? undefined : expandPath(raw.ssh_key, options, here('ssh_key'))
  return { kind: 'sftp', host, port, user, path, hostKey, keyPath } as const
}

function readDrive(raw: RawTarget, { here }: { here: (...rest: ConfigPath) => Fail }) {
  const { name, label, uuid, pool, afterwards } = raw
  const everyMs = raw.every === undefined ? undefined : parseDuration(raw.every)
  const path = normalizePath(`/${raw.path ?? DEFAULT_DRIVE_PATH}`).slice(1)
  if (/^(\/|~|\$)/.test(raw.path ?? '')) {
    here('path')('the path of a drive is relative to its top', 'write `path: backup`, say')
  }
  const isPool = pool !== undefined
  const own =
    label === undefined && uuid === undefined ? [] : [{ name, label, uuid: uuid?.toLowerCase() }]
  if (isPool === own.length > 0) {
    here()('a drive has a label, a uuid, or a pool', '`backup drives` shows what is plugged in')
  }
  const named = pool?.map((drive) => {
    const { name: called, label: of, uuid: id } = drive
    return { name: called, label: of, uuid: id?.toLowerCase(), ...offSiteOf(drive) }
  })
  const drives: readonly DriveConfiguration[] = named ?? own
  for (const [index, drive] of drives.entries()) {
    const fail = here('pool', index, 'name')
    if (!isValidName(drive.name)) fail(`the name ${drive.name} is a device on Windows`)
    if (drives.findIndex((one) => one.name === drive.name) < index) {
      fail(`another drive of the pool has the name ${drive.name}`)
    }
    if (drive.label === undefined && drive.uuid === undefined) {
      here('pool', index)('a drive has a label or a uuid', '`backup drives` shows them')
    }
  }
  return { kind: 'drive', path, drives, isPool, everyMs, afterwards } as const
}

function readBundleSize(size: string | number, fail: Fail): number {
  const sizeBytes = parseSize(size)
  const isAllowed = (bytes: number) => bytes >= MIN_BUNDLE_BYTES && bytes <= MAX_BUNDLE_BYTES
  if (sizeBytes !== undefined && isAllowed(sizeBytes)) return sizeBytes
  return fail(`expected a size from 1 MiB to 1 GiB, such as "256 MiB", found ${size}`)
}
