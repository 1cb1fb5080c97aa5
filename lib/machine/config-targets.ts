// What the targets of a configuration mean: expanded paths, sizes in bytes, a drive or a pool of
// them.
//
// config-meaning.ts calls readTarget for each. What the schema cannot say is said here: which
// properties belong to which kind of target. Throws only through the Fail it is given.

import { parseDuration, parseSize } from '../model/amount.ts'
import { isValidName } from '../model/names.ts'
import type { ConfigPath } from './config-errors.ts'
import { expandPath, type Fail, normalizePath, type Surroundings } from './config-expand.ts'

export type TargetConfiguration = DirectoryTargetConfiguration | DriveTargetConfiguration

interface AnyTargetConfiguration {
  readonly name: string
  readonly bundleSizeBytes: number
  readonly compressionLevel: number
  /** Lowest first, where only the first that is there gets the exports. */
  readonly priority: number
  /** How much par2 adds, in percent of a bundle; 0 for nothing. */
  readonly parityPercent: number
  readonly drill: 'auto' | 'always' | 'never'
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

/** One drive, known by its label, its UUID, or both. */
export interface DriveConfiguration {
  readonly name: string
  readonly label: string | undefined
  readonly uuid: string | undefined
}

/** What the schema lets through, its defaults filled in. */
export interface RawTarget {
  readonly name: string
  readonly kind: 'directory' | 'drive'
  readonly path?: string
  readonly label?: string
  readonly uuid?: string
  readonly pool?: readonly Pick<RawTarget, 'name' | 'label' | 'uuid'>[]
  readonly every?: string
  readonly afterwards: 'as_found' | 'unmount' | 'power_off'
  readonly priority: number
  readonly parity: string
  readonly drill: 'auto' | 'always' | 'never'
  readonly bundle_size: string | number
  readonly compression_level: number
  readonly must_be_mounted?: boolean
}

/** The bounds of docs/format.md: small enough to fit any drive, large enough to be few. */
const MIN_BUNDLE_BYTES = 2 ** 20
const MAX_BUNDLE_BYTES = 2 ** 30

/** Where on a drive the repository is when nothing is said. */
const DEFAULT_DRIVE_PATH = 'backup'

/** Which properties belong to one kind only. */
const OWN_PROPERTIES = {
  directory: ['must_be_mounted'],
  drive: ['label', 'uuid', 'pool', 'every'],
} as const

/** The target that `raw` means. */
export function readTarget(
  raw: RawTarget,
  { options, here }: { options: Surroundings; here: (...rest: ConfigPath) => Fail },
): TargetConfiguration {
  const other = raw.kind === 'drive' ? 'directory' : 'drive'
  for (const property of OWN_PROPERTIES[other]) {
    if (raw[property] === undefined) continue
    here(property)(`a target of kind ${raw.kind} has no ${property}`, `it belongs to kind ${other}`)
  }
  const parity = raw.parity === 'none' ? 0 : Number(raw.parity.slice(0, -1))
  const { name, compression_level: compressionLevel, priority, drill } = raw
  const bundleSizeBytes = readBundleSize(raw.bundle_size, here('bundle_size'))
  const any = { name, bundleSizeBytes, compressionLevel, priority, parityPercent: parity, drill }
  if (raw.kind === 'drive') return { ...any, ...readDrive(raw, { here }) }
  if (raw.path === undefined) return here()('path is missing', 'name the directory for exports')
  const path = normalizePath(expandPath(raw.path, options, here('path')))
  return { ...any, kind: 'directory', path, mustBeMounted: raw.must_be_mounted }
}

function readDrive(raw: RawTarget, { here }: { here: (...rest: ConfigPath) => Fail }) {
  const { name, label, uuid, pool, afterwards } = raw
  const everyMs = raw.every === undefined ? undefined : parseDuration(raw.every)
  const path = normalizePath(`/${raw.path ?? DEFAULT_DRIVE_PATH}`).slice(1)
  if (/^(\/|~|\$)/.test(raw.path ?? '')) {
    here('path')('the path of a drive is relative to its top', 'write `path: backup`, say')
  }
  const isPool = pool !== undefined
  const own = label === undefined && uuid === undefined ? [] : [{ name, label, uuid }]
  if (isPool === own.length > 0) {
    here()('a drive has a label, a uuid, or a pool', '`backup drives` shows what is plugged in')
  }
  const drives = (pool ?? own).map((drive) => {
    return { name: drive.name, label: drive.label, uuid: drive.uuid?.toLowerCase() }
  })
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

