// The drives of this machine: what is plugged in, which of it is a target's, and preparing one.
//
// `backup drives` calls surveyDrives, `backup drives add` lookAtDrive and prepareDrive. Preparing
// never formats and never deletes: it makes a directory and a repository in it, or recognises the
// one that is there. Throws TARGET_FOREIGN with the reason, TARGET_ABSENT, and what mounting and
// making a repository throw.

import { lstatSync, mkdirSync, readdirSync, realpathSync, statfsSync } from 'node:fs'
import { BackupError } from '../errors.ts'
import {
  type BlockFilesystem,
  listBlockFilesystems,
  matchesDrive,
} from '../machine/block-devices.ts'
import type { Configuration, DriveTargetConfiguration } from '../machine/config.ts'
import { syncDirectory } from '../machine/durable-file.ts'
import { mountDrive } from '../machine/drive-mount.ts'
import { displayText, parentOf, rawPathFromText } from '../model/raw-path.ts'
import { openDirectoryTarget } from '../target/directory.ts'
import { type KnownDrive, readDrives } from './drive-register.ts'
import { checkPath, type PluggedDrive, recogniseDrive } from './drive-target.ts'
import {
  createRepository,
  enterMachine,
  findRepository,
  isSignedBy,
  listMachines,
  type Repository,
} from './repository.ts'
import { type Signer, trustedKeys } from './signing.ts'

/** A filesystem that is plugged in, and what this machine makes of it. */
export interface SurveyedDrive {
  readonly filesystem: BlockFilesystem
  /** The configured drives that it could be. */
  readonly matches: readonly { readonly target: string; readonly drive: string }[]
  /** What the register knows of it. */
  readonly known: KnownDrive | undefined
}

export interface DriveSurvey {
  readonly plugged: readonly SurveyedDrive[]
  /** Drives that are configured and not there, with what is known of each. */
  readonly absent: readonly {
    readonly target: string
    readonly drive: string
    readonly known: KnownDrive | undefined
  }[]
}

/** Removable filesystems, and those that are configured. Touches nothing on them. */
export async function surveyDrives(
  { targets, staging }: Configuration,
  { signal }: { readonly signal?: AbortSignal | undefined } = {},
): Promise<DriveSurvey> {
  const filesystems = await listBlockFilesystems({ signal })
  const register = readDrives(staging)
  const configured = targets.flatMap((target) => {
    return target.kind === 'drive' ? target.drives.map((drive) => ({ target, drive })) : []
  })
  const surveyed = filesystems.map((filesystem): SurveyedDrive => {
    const matches = configured
      .filter(({ drive }) => matchesDrive(filesystem, drive))
      .map(({ target, drive }) => ({ target: target.name, drive: drive.name }))
    const known = register.find((one) => {
      const isMatch = matches.some(({ target, drive }) => {
        return target === one.target && drive === one.drive
      })
      return isMatch || (one.uuid !== undefined && one.uuid === filesystem.uuid)
    })
    return { filesystem, matches, known }
  })
  const plugged = surveyed.filter(({ filesystem, matches, known }) => {
    return filesystem.isRemovable || matches.length > 0 || known !== undefined
  })
  const absent = configured.flatMap(({ target, drive }) => {
    const isThere = plugged.some(({ matches }) => {
      return matches.some((one) => one.target === target.name && one.drive === drive.name)
    })
    if (isThere) return []
    const known = register.find((one) => one.target === target.name && one.drive === drive.name)
    return [{ target: target.name, drive: drive.name, known }]
  })
  return { plugged, absent }
}

/**
 * The filesystem at a device, or the one that a configured drive matches.
 * @throws BackupError TARGET_ABSENT, TARGET_FOREIGN where several match
 */
export async function filesystemFor(
  {
    device,
    drive,
  }: {
    readonly device: string | undefined
    readonly drive: { readonly label: string | undefined; readonly uuid: string | undefined }
  },
  { signal }: { readonly signal?: AbortSignal | undefined } = {},
): Promise<BlockFilesystem> {
  const filesystems = await listBlockFilesystems({ signal })
  const isAsked = (one: BlockFilesystem): boolean => {
    return device === undefined ? matchesDrive(one, drive) : isAt(one, device)
  }
  const [found, ...others] = filesystems.filter(isAsked)
  const by = drive.uuid === undefined ? `label ${drive.label}` : `UUID ${drive.uuid}`
  const what = displayText(device ?? `the ${by}`)
  if (found === undefined && device === undefined) {
    throw new BackupError('TARGET_ABSENT', `the drive with ${what} is not plugged in`, {
      hint: '`backup drives` lists what is plugged in',
    })
  }
  if (found === undefined) {
    throw new BackupError('TARGET_ABSENT', `there is no filesystem at ${what}`, {
      hint: '`backup drives` lists what is plugged in; nothing was changed',
    })
  }
  if (others.length === 0) return found
  const devices = [found, ...others].map((one) => one.device).join(', ')
  throw new BackupError('TARGET_FOREIGN', `several filesystems have ${what}: ${devices}`, {
    hint: 'name one with --device',
  })
}

/** By its device, or by where it is mounted. */
function isAt({ device, mountPoints }: BlockFilesystem, path: string): boolean {
  try {
    const real = realpathSync(path)
    return real === realpathSync(device) || mountPoints.includes(real)
  } catch {
    return false
  }
}

/** What is on a drive, before anything is done to it. */
export interface DriveContents {
  readonly filesystem: BlockFilesystem
  readonly mountPoint: string
  readonly freeBytes: number
  /** What lies at its top, at most 20 names; and how many there are. */
  readonly names: readonly string[]
  readonly count: number
  /** The repository that is there already. */
  readonly repository: Repository | undefined
  /** Whether this machine, or one that it trusts, made it. */
  readonly isTrusted: boolean
  readonly machines: readonly string[]
}

const NAMES_SHOWN = 20

/**
 * Mounts a drive and looks at it. Changes nothing on it.
 * @throws BackupError TARGET_FOREIGN where the directory holds something else
 */
export async function lookAtDrive(
  configuration: Configuration,
  {
    target,
    filesystem,
    signer,
    signal,
  }: {
    readonly target: DriveTargetConfiguration
    readonly filesystem: BlockFilesystem
    readonly signer: Signer
    readonly signal?: AbortSignal | undefined
  },
): Promise<DriveContents> {
  const { path: mountPoint } = await mountDrive(filesystem, { signal })
  checkPath(mountPoint, target.path)
  const { bavail, bsize } = statfsSync(mountPoint)
  const all = readdirSync(mountPoint).sort()
  const root = pathOn(mountPoint, target)
  const isThere = lstatSync(root, { throwIfNoEntry: false }) !== undefined
  const repository = isThere ? await findRepository(open(target, root)) : undefined
  const machines = repository === undefined ? [] : await listMachines(repository)
  const isTrusted =
    repository === undefined
    || (await isMadeByOurs(configuration, { repository, machines, signer }))
  return {
    filesystem,
    mountPoint,
    freeBytes: bavail * bsize,
    names: all.slice(0, NAMES_SHOWN),
    count: all.length,
    repository,
    isTrusted,
    machines,
  }
}

async function isMadeByOurs(
  configuration: Configuration,
  {
    repository,
    machines,
    signer,
  }: { repository: Repository; machines: readonly string[]; signer: Signer },
): Promise<boolean> {
  if (machines.length === 0) return true
  for (const machine of machines) {
    const keys = await trustedKeys(configuration, { machine, fromIdentity: [] })
    const own = machine === configuration.machine ? [signer.publicKey] : []
    for (const publicKey of [...own, ...keys]) {
      if (await isSignedBy(repository, { machine, publicKey })) return true
    }
  }
  return false
}

/**
 * Makes the repository where there is none, enters this machine into it, and remembers the drive.
 * @param options.again whether the drive may differ from the one that is remembered
 * @throws BackupError TARGET_FOREIGN for a stranger's repository, and for a copy of another drive's
 */
export async function prepareDrive(
  configuration: Configuration,
  {
    target,
    plugged,
    contents,
    signer,
    nowMs,
    again,
  }: {
    readonly target: DriveTargetConfiguration
    readonly plugged: PluggedDrive
    readonly contents: DriveContents
    readonly signer: Signer
    readonly nowMs: number
    readonly again: boolean
  },
): Promise<Repository> {
  const { staging, machine } = configuration
  const { mountPoint, isTrusted, machines, filesystem } = contents
  if (!isTrusted) {
    throw new BackupError(
      'TARGET_FOREIGN',
      `${filesystem.device} has a stranger's repository, of ${machines.join(', ')}`,
      {
        hint:
          'to share the drive with that machine, put its key under trusted_signing_keys; else name '
          + 'another path for the target; nothing was written',
      },
    )
  }
  const root = pathOn(mountPoint, target)
  makeDirectories(mountPoint, target.path)
  const opened = open(target, root)
  const found = await findRepository(opened)
  const known = readDrives(staging).find((one) => {
    return one.target === target.name && one.drive === plugged.drive.name
  })
  if (found === undefined && known !== undefined && !again) {
    throw new BackupError(
      'TARGET_FOREIGN',
      `${filesystem.device} is empty, but ${target.name} had a repository on its drive`,
      {
        hint:
          'plug in the drive that has it; to begin anew on this one, give --again; nothing was '
          + 'written but an empty directory',
      },
    )
  }
  // Before anything is made: a copy of another drive's repository is refused.
  const freeBytes = await opened.freeBytes()
  const recognise = (repository: Repository): void => {
    recogniseDrive(target, { staging, plugged, repository, freeBytes, nowMs, again })
  }
  if (found !== undefined) recognise(found)
  const repository = found ?? (await createRepository(opened, { nowMs }))
  await enterMachine(repository, { machine, signer })
  if (found === undefined) recognise(repository)
  return repository
}

function pathOn(mountPoint: string, { path }: DriveTargetConfiguration): string {
  return path === '' ? mountPoint : `${mountPoint}/${path}`
}

function open(target: DriveTargetConfiguration, path: string) {
  return openDirectoryTarget({ name: target.name, path, mustBeMounted: false })
}

function makeDirectories(mountPoint: string, path: string): void {
  let at = mountPoint
  for (const part of path.split('/').filter((one) => one !== '')) {
    at = `${at}/${part}`
    if (lstatSync(at, { throwIfNoEntry: false }) !== undefined) continue
    mkdirSync(at, { mode: 0o700 })
    syncDirectory(parentOf(rawPathFromText(at)))
  }
}
