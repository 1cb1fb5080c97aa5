// From a configured drive to a target: finds it among what is plugged in, mounts it, and makes sure
// that it is the drive it should be.
//
// target-access.ts calls openDrive; `drives` shows and prepares drives with the same judgement. A
// label or a UUID only says where to look: anybody can give a stick the label T9. What counts is
// the repository on it, whose machine.json our key signed, and what the register knows of the
// drive. Throws TARGET_ABSENT where it is not plugged in, TARGET_FOREIGN where it is another, and
// what mounting throws.

import { lstatSync } from 'node:fs'
import { BackupError } from '../errors.ts'
import {
  type BlockFilesystem,
  listBlockFilesystems,
  matchesDrive,
} from '../machine/block-devices.ts'
import type {
  Configuration,
  DriveConfiguration,
  DriveTargetConfiguration,
} from '../machine/config.ts'
import { isAnswering, mountDrive } from '../machine/drive-mount.ts'
import { displayText } from '../model/raw-path.ts'
import { formatStamp } from '../model/stamp.ts'
import { openDirectoryTarget } from '../target/directory.ts'
import type { Target } from '../target/target.ts'
import { currentHistory, rotatedDrives } from './drive-history.ts'
import { type KnownDrive, readDrives, rememberDrive } from './drive-register.ts'
import type { Repository } from './repository.ts'

/** A mount that does not answer within this time counts as absent. */
const ANSWER_MS = 10_000

/** A drive that is plugged in, and which of the configured ones it is. */
export interface PluggedDrive {
  readonly drive: DriveConfiguration
  readonly filesystem: BlockFilesystem
}

interface FindOptions extends Pick<Configuration, 'staging' | 'backupSets'> {
  readonly signal?: AbortSignal | undefined
}

/** A target on a drive, mounted. */
export interface DriveTarget {
  readonly target: Target
  readonly plugged: PluggedDrive
  readonly mountPoint: string
  /** Whether it was mounted for this run. */
  readonly isOurs: boolean
  /** What the driver said although it mounted: that it was unplugged without unmounting. */
  readonly warning: string | undefined
}

/** `t9`, or `pool t9: blue`. */
export function describeDrive({ name, isPool }: DriveTargetConfiguration, drive: string): string {
  return isPool ? `${name}/${drive}` : name
}

/**
 * Which drives of a target are plugged in, the one that waits longest for an export first.
 * @throws BackupError TARGET_FOREIGN where one cannot be told from another
 */
export async function findDrives(
  configuration: DriveTargetConfiguration,
  { staging, backupSets, signal }: FindOptions,
): Promise<readonly PluggedDrive[]> {
  const filesystems = await listBlockFilesystems({ signal })
  const known = readDrives(staging).filter(({ target }) => target === configuration.name)
  const plugged = configuration.drives.flatMap((drive) => {
    const register = known.find((one) => one.drive === drive.name)
    const matching = filesystems.filter((filesystem) => matchesDrive(filesystem, drive))
    const filesystem = theOne(matching, { register, configuration, drive })
    return filesystem === undefined ? [] : [{ drive, filesystem }]
  })
  if (plugged.length < 2) return plugged
  const rotated = rotatedDrives(configuration, {
    sets: backupSets,
    history: currentHistory(staging),
  })
  const lastMs = new Map(rotated.map(({ name, lastGoodMs }) => [name, lastGoodMs]))
  const waiting = ({ drive }: PluggedDrive): number => lastMs.get(drive.name) ?? -Infinity
  return [...plugged].sort((one, other) => (waiting(one) < waiting(other) ? -1 : 1))
}

/** Of several filesystems with the label, the one that is known; none of ours is no choice. */
function theOne(
  matching: readonly BlockFilesystem[],
  {
    register,
    configuration,
    drive,
  }: {
    readonly register: KnownDrive | undefined
    readonly configuration: DriveTargetConfiguration
    readonly drive: DriveConfiguration
  },
): BlockFilesystem | undefined {
  if (matching.length < 2) return matching[0]
  const ours = matching.filter(({ uuid }) => uuid !== undefined && uuid === register?.uuid)
  const [one, ...others] = ours
  if (one !== undefined && others.length === 0) return one
  const devices = matching.map(({ device }) => device).join(', ')
  const by = drive.uuid === undefined ? `label ${drive.label}` : `UUID ${drive.uuid}`
  const name = describeDrive(configuration, drive.name)
  throw foreign(`target ${name}: several filesystems have the ${displayText(by)}: ${devices}`, {
    hint: 'unplug all but the right one; one may be a copy of the other',
  })
}

/**
 * The drive of a target that is plugged in, mounted and answering; of several, the one that waits
 * longest.
 * @param only of a pool: this drive and no other
 */
export async function openDrive(
  configuration: DriveTargetConfiguration,
  options: FindOptions & { readonly only?: string | undefined },
): Promise<DriveTarget> {
  const { staging, only, signal } = options
  const found = await findDrives(configuration, options)
  const plugged = found.find(({ drive }) => only === undefined || drive.name === only)
  if (plugged === undefined) throw notPlugged(configuration, { staging, only })
  return await mountTarget(configuration, { plugged, signal })
}

/** Mounts a drive that is plugged in. @throws BackupError TARGET_ABSENT, TARGET_FOREIGN */
export async function mountTarget(
  configuration: DriveTargetConfiguration,
  {
    plugged,
    signal,
  }: { readonly plugged: PluggedDrive; readonly signal?: AbortSignal | undefined },
): Promise<DriveTarget> {
  const { drive, filesystem } = plugged
  const name = describeDrive(configuration, drive.name)
  const { path: mountPoint, ours: isOurs, warning } = await mountDrive(filesystem, { signal })
  if (!(await isAnswering(mountPoint, { timeoutMs: ANSWER_MS }))) {
    throw new BackupError('TARGET_ABSENT', `target ${name}: ${mountPoint} does not answer`, {
      hint: 'unplug the drive and plug it in again; nothing was written',
      retry: 'later',
    })
  }
  checkPath(mountPoint, configuration.path)
  const path = configuration.path === '' ? mountPoint : `${mountPoint}/${configuration.path}`
  const options = { name: configuration.name, drive: drive.name, mustBeMounted: false }
  if (lstatSync(path, { throwIfNoEntry: false })?.isDirectory() !== true) {
    throw unprepared(name, { device: filesystem.device, path: configuration.path })
  }
  return { target: openDirectoryTarget({ ...options, path }), plugged, mountPoint, isOurs, warning }
}

/** No part of the path on the drive may lead away from it: whoever wrote the drive made it. */
export function checkPath(mountPoint: string, path: string): void {
  const { dev } = lstatSync(mountPoint)
  let at = mountPoint
  for (const part of path.split('/').filter((one) => one !== '')) {
    at = `${at}/${part}`
    const stat = lstatSync(at, { throwIfNoEntry: false })
    if (stat === undefined) return
    if (stat.isDirectory() && stat.dev === dev) continue
    throw foreign(`"${displayText(at)}" is no directory of the drive itself`, {
      hint: 'a link or another mount is there; look at what is on the drive; nothing was written',
    })
  }
}

function notPlugged(
  configuration: DriveTargetConfiguration,
  { staging, only }: { readonly staging: string; readonly only: string | undefined },
): BackupError {
  const { name, drives } = configuration
  const known = readDrives(staging).filter(({ target }) => target === name)
  const wanted = drives.filter((drive) => only === undefined || drive.name === only)
  const seen = wanted.map((drive) => {
    const last = known.find((one) => one.drive === drive.name)?.lastSeenMs
    const when = last === undefined ? 'never seen' : `last seen ${formatStamp(last)}`
    return `${describeDrive(configuration, drive.name)} ${when}`
  })
  return new BackupError('TARGET_ABSENT', `target ${name}: no drive is plugged in`, {
    hint: `plug in one of: ${seen.join('; ')}; collections are unharmed`,
    facts: { target: name, drives: wanted.map((drive) => drive.name) },
    retry: 'later',
  })
}

function unprepared(
  name: string,
  { device, path }: { readonly device: string; readonly path: string },
): BackupError {
  return foreign(`target ${name}: ${device} has no repository in "${displayText(path)}"`, {
    hint: `if it is the right drive, prepare it: backup drives add ${name}; nothing was written`,
  })
}

/**
 * Makes sure that the repository on a drive is the one that belongs there, and remembers the drive.
 * @param again the person says that it is: only another drive's repository is refused
 * @throws BackupError TARGET_FOREIGN with the reason
 */
export function recogniseDrive(
  configuration: DriveTargetConfiguration,
  options: {
    readonly staging: string
    readonly plugged: PluggedDrive
    readonly repository: Pick<Repository, 'id'>
    readonly freeBytes: number | undefined
    readonly nowMs: number
    readonly again?: boolean
    /** Only looks: nothing is remembered. */
    readonly isLook?: boolean
  },
): void {
  const { staging, plugged, repository, freeBytes, nowMs, again = false } = options
  const { drive, filesystem } = plugged
  const known = readDrives(staging)
  const name = describeDrive(configuration, drive.name)
  const self = known.find((one) => one.target === configuration.name && one.drive === drive.name)
  const other = known.find((one) => one !== self && one.repository === repository.id)
  if (other !== undefined && other.uuid !== undefined && other.uuid === filesystem.uuid) {
    const whose = describeKnown(other)
    throw foreign(`${filesystem.device} is ${whose} already, not ${name}`, {
      hint: `plug in the drive for ${name}, or use this one as ${whose}; nothing was written`,
    })
  }
  if (other !== undefined) {
    const whose = describeKnown(other)
    throw foreign(`target ${name}: ${filesystem.device} has a copy of the repository of ${whose}`, {
      hint:
        'two drives with one repository would both lose exports; if nobody needs this copy, remove '
        + `its repository by hand and prepare it: backup drives add ${name}; nothing was written`,
    })
  }
  const strange = self === undefined || again ? undefined : strangeness(self, options)
  if (strange !== undefined) {
    throw foreign(`target ${name}: ${filesystem.device} ${strange}`, {
      hint:
        'plug in the right drive, or say that this is the one: '
        + `backup drives add ${name} --again; nothing was written`,
    })
  }
  if (options.isLook === true) return
  rememberDrive(staging, {
    target: configuration.name,
    drive: drive.name,
    repository: repository.id,
    uuid: filesystem.uuid,
    label: filesystem.label,
    filesystem: filesystem.filesystem,
    model: filesystem.model,
    serial: filesystem.serial,
    sizeBytes: filesystem.sizeBytes,
    lastSeenMs: nowMs,
    freeBytes,
  })
}

function describeKnown({ target, drive }: KnownDrive): string {
  return drive === target ? target : `${target}/${drive}`
}

/** How a drive differs from what is known of it. */
function strangeness(
  known: KnownDrive,
  {
    plugged: { filesystem },
    repository,
  }: { readonly plugged: PluggedDrive; readonly repository: Pick<Repository, 'id'> },
): string | undefined {
  if (repository.id !== known.repository) return 'has another repository'
  const differs = (one: string | undefined, other: string | undefined): boolean => {
    return one !== undefined && other !== undefined && one !== other
  }
  if (differs(filesystem.uuid, known.uuid)) {
    return `has a copy of the repository: its UUID is ${filesystem.uuid}, not ${known.uuid}`
  }
  if (differs(filesystem.serial, known.serial)) {
    return `may be a copy: the drive's serial number is not ${known.serial}`
  }
  return undefined
}

function foreign(message: string, { hint }: { readonly hint: string }): BackupError {
  return new BackupError('TARGET_FOREIGN', message, { hint })
}
