// Which targets are there right now, without opening their repositories.
//
// `backup` asks before it plans: of a pool, the drive that is plugged in decides what is due.
// Throws what listing the drives of the machine throws; a target that cannot be judged is left to
// its export to explain.

import { realpathSync } from 'node:fs'
import { BackupError } from '../errors.ts'
import type {
  Configuration,
  DriveTargetConfiguration,
  TargetConfiguration,
} from '../machine/config.ts'
import { findDrives, type PluggedDrive } from './drive-target.ts'

/** A target of which a drive is plugged in, and the drive's name. */
export interface PluggedTarget {
  readonly target: TargetConfiguration
  readonly drive: string
}

/** The drive that an export would go to, of each target of kind `drive` that has one plugged in. */
export async function pluggedDrives(
  targets: readonly TargetConfiguration[],
  configuration: Pick<Configuration, 'staging' | 'backupSets'>,
): Promise<ReadonlyMap<string, string>> {
  const plugged = new Map<string, string>()
  for (const target of targets) {
    if (target.kind !== 'drive') continue
    const [first] = await drivesOf(target, configuration)
    if (first !== undefined) plugged.set(target.name, first.drive.name)
  }
  return plugged
}

/**
 * The configured drives at a device.
 * @param device a path such as `/dev/disk/by-label/T9`, or `any` for every drive that is there
 * @throws BackupError TARGET_FOREIGN where only drives are there that cannot be told apart
 */
export async function drivesAt(
  device: string,
  { configuration }: { readonly configuration: Configuration },
): Promise<readonly PluggedTarget[]> {
  const path = device === 'any' ? undefined : realPath(device)
  const found: PluggedTarget[] = []
  const unclear: unknown[] = []
  for (const target of configuration.targets) {
    if (target.kind !== 'drive') continue
    const drives = await findDrives(target, configuration).catch((error: unknown) => {
      unclear.push(error)
      return []
    })
    const drive = drives.find(({ filesystem }) => {
      return path === undefined || realPath(filesystem.device) === path
    })
    if (drive !== undefined) found.push({ target, drive: drive.drive.name })
  }
  if (found.length === 0 && unclear.length > 0) throw unclear[0]
  return found
}

/** None where one cannot be told from another: opening the target says why. */
async function drivesOf(
  target: DriveTargetConfiguration,
  configuration: Pick<Configuration, 'staging' | 'backupSets'>,
): Promise<readonly PluggedDrive[]> {
  try {
    return await findDrives(target, configuration)
  } catch (error) {
    if (error instanceof BackupError && error.code === 'TARGET_FOREIGN') return []
    throw error
  }
}

function realPath(path: string): string {
  try {
    return realpathSync(path)
  } catch {
    return path
  }
}
