// From a configured target to its repository: opens the target, recognises the repository,
// remembers which one it was.
//
// Guards X.13: a target that had a repository and now shows an empty directory, or another
// repository, is not written to. Drives are found and judged by drive-target.ts; a repository is
// made on one by `backup drives add` only. Throws TARGET_ABSENT, TARGET_FOREIGN, TARGET_FORMAT and
// what opening throws.

import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { BackupError } from '../errors.ts'
import type { Configuration, TargetConfiguration } from '../machine/config.ts'
import type { S3TargetConfiguration, SftpTargetConfiguration } from '../machine/config-targets.ts'
import { writeDurably } from '../machine/durable-file.ts'
import { rawPathFromText } from '../model/raw-path.ts'
import { openDirectoryTarget } from '../target/directory.ts'
import type { Target } from '../target/target.ts'
import { describeDrive, type DriveTarget, openDrive, recogniseDrive } from './drive-target.ts'
import { readDrives } from './drive-register.ts'
import { createRepository, findRepository, isSignedBy, type Repository } from './repository.ts'

/**
 * The target as configured, present and mounted. A drive that had to be mounted stays so until
 * releaseDrives() (lib/machine/drive-mount.ts), which ends every command.
 * @throws BackupError TARGET_ABSENT, TARGET_FOREIGN; CONFIG_INVALID for one inside staging
 */
export async function openTarget(
  configuration: TargetConfiguration,
  { staging, backupSets }: Pick<Configuration, 'staging' | 'backupSets'>,
  { as = 'backup' }: { readonly as?: 'backup' | 'admin' } = {},
): Promise<Target> {
  if (configuration.kind === 'drive') {
    return (await openDrive(configuration, { staging, backupSets })).target
  }
  if (configuration.kind === 's3' || configuration.kind === 'sftp') {
    return await openRemote(configuration, { staging, as })
  }
  const { name, path, mustBeMounted } = configuration
  if (path === staging || path.startsWith(`${staging}/`)) {
    throw new BackupError('CONFIG_INVALID', `target ${name} lies in staging: ${path}`, {
      hint: 'a copy beside the original is no backup: name a directory on another disk',
    })
  }
  return openDirectoryTarget({ name, path, mustBeMounted })
}

/**
 * What waits to be sent lies in staging, so that an interrupted upload goes on where it was. As
 * `admin` a bucket is spoken to with the credentials of whoever may delete. Whoever has neither
 * kind of target does not wait for what they need to be loaded.
 */
async function openRemote(
  configuration: S3TargetConfiguration | SftpTargetConfiguration,
  { staging, as }: { readonly staging: string; readonly as: 'backup' | 'admin' },
): Promise<Target> {
  const spool = rawPathFromText(spoolDirectory({ staging, target: configuration.name }))
  if (configuration.kind === 'sftp') {
    const { openSftpTarget } = await import('../target/sftp.ts')
    return await openSftpTarget({ configuration, spool })
  }
  const { openS3Target } = await import('../target/s3.ts')
  const capabilitiesFile = rawPathFromText(
    join(staging, '.state', 'capabilities', `${configuration.name}.json`),
  )
  return await openS3Target({ configuration, spool, capabilitiesFile, as })
}

/** Where files wait to be sent to a remote target. */
export function spoolDirectory(of: { readonly staging: string; readonly target: string }): string {
  return join(of.staging, '.state', 'spool', of.target)
}

/** The configured target of that name. @throws BackupError USAGE */
export function targetNamed(configuration: Configuration, name: string): TargetConfiguration {
  const found = configuration.targets.find((target) => target.name === name)
  if (found !== undefined) return found
  const names = configuration.targets.map((target) => target.name).join(', ')
  throw new BackupError('USAGE', `there is no target ${name}`, {
    hint: names === '' ? 'the configuration has no targets' : `configured are: ${names}`,
  })
}

/** The repository to read from. @throws BackupError TARGET_ABSENT when there is none */
export async function repositoryToRead(target: Target): Promise<Repository> {
  const repository = await findRepository(target)
  if (repository !== undefined) return repository
  throw new BackupError(
    'TARGET_ABSENT',
    `target ${target.name}: there is no repository at ${target.place}`,
    {
      hint:
        target.access === 'files'
          ? 'check that the right drive is mounted; the first export makes a repository'
          : 'check the place of the target; the first export makes a repository',
    },
  )
}

/** A repository to export to. */
export interface WritableRepository {
  readonly repository: Repository
  /** Where the target is of kind `drive`. */
  readonly drive: DriveTarget | undefined
  /** Whether it was made now. */
  readonly isNew: boolean
}

export interface WriteOptions {
  readonly configuration: Configuration
  /** Of this machine's signing key. */
  readonly publicKey: string
  readonly nowMs: number
  /** Only looks: nothing is remembered of a drive. */
  readonly isLook?: boolean
  /** Of a pool: this drive and no other. */
  readonly onlyDrive?: string | undefined
  readonly signal?: AbortSignal | undefined
}

/**
 * The repository to export to: in a directory made with the first export, on a drive the one that
 * was prepared there.
 */
export async function repositoryToWrite(
  target: TargetConfiguration,
  options: WriteOptions,
): Promise<WritableRepository> {
  if (target.kind === 'drive') return await repositoryOnDrive(target, options)
  const opened = await openTarget(target, options.configuration)
  return { ...(await repositoryInDirectory(opened, options)), drive: undefined }
}

async function repositoryOnDrive(
  target: TargetConfiguration & { readonly kind: 'drive' },
  { configuration, publicKey, nowMs, onlyDrive, isLook = false, signal }: WriteOptions,
): Promise<WritableRepository> {
  const { staging, backupSets, machine } = configuration
  const drive = await openDrive(target, { staging, backupSets, only: onlyDrive, signal })
  const { plugged } = drive
  const repository = await findRepository(drive.target)
  const name = describeDrive(target, plugged.drive.name)
  const isKnown = readDrives(staging).some((known) => {
    return known.target === target.name && known.drive === plugged.drive.name
  })
  const add = `backup drives add ${name}`
  if (repository === undefined) {
    throw new BackupError(
      'TARGET_FOREIGN',
      `target ${name}: ${plugged.filesystem.device} has no repository`,
      { hint: `if it is the right drive, prepare it: ${add}; nothing was written` },
    )
  }
  if (!isKnown && !(await isSignedBy(repository, { machine, publicKey }))) {
    throw new BackupError(
      'TARGET_FOREIGN',
      `target ${name}: ${plugged.filesystem.device} has a repository that is not this machine's`,
      { hint: `a label is no proof; if the drive is yours: ${add}; nothing was written` },
    )
  }
  const freeBytes = await drive.target.freeBytes()
  recogniseDrive(target, { staging, plugged, repository, freeBytes, nowMs, isLook })
  return { repository, drive, isNew: false }
}

async function repositoryInDirectory(
  target: Target,
  { configuration: { staging }, nowMs }: WriteOptions,
): Promise<Pick<WritableRepository, 'repository' | 'isNew'>> {
  const known = knownRepositories(staging)
  const knownId = known[target.name]
  const found = await findRepository(target)
  if (found === undefined && knownId !== undefined && target.access === 'network') {
    throw new BackupError('TARGET_FAILED', `the repository at ${target.place} is gone`, {
      hint:
        'correct the place of the target if that changed; if not, somebody emptied it: `backup '
        + `repair --target ${target.name}\` brings back what a bucket with versions still has; to `
        + 'begin anew, give the target another name; nothing was written',
      facts: { target: target.name, repository: knownId },
    })
  }
  if (found === undefined && knownId !== undefined) {
    throw new BackupError(
      'TARGET_ABSENT',
      `target ${target.name}: its repository is not at ${target.place}`,
      {
        hint: 'mount the drive that has it; to begin anew, give the target another name',
        retry: 'later',
      },
    )
  }
  if (found !== undefined && knownId !== undefined && found.id !== knownId) {
    throw new BackupError(
      'TARGET_FOREIGN',
      `target ${target.name}: another repository is at ${target.place}`,
      {
        hint:
          'plug in the drive of this target, or configure this one under another name; '
          + 'nothing was written',
      },
    )
  }
  const repository = found ?? (await createRepository(target, { nowMs }))
  if (knownId === undefined) remember(staging, { ...known, [target.name]: repository.id })
  return { repository, isNew: found === undefined }
}

function knownFile(staging: string): string {
  return join(staging, '.state', 'targets.json')
}

/** Repository ids by target name; empty where nothing is known (or the state is lost). */
export function knownRepositories(staging: string): Readonly<Record<string, string>> {
  try {
    return JSON.parse(readFileSync(knownFile(staging), 'utf8')) as Readonly<Record<string, string>>
  } catch {
    return {}
  }
}

function remember(staging: string, known: Readonly<Record<string, string>>): void {
  mkdirSync(join(staging, '.state'), { recursive: true, mode: 0o700 })
  const bytes = Buffer.from(`${JSON.stringify(known)}\n`)
  writeDurably({ path: rawPathFromText(knownFile(staging)), bytes, mode: 0o600, replace: true })
}
