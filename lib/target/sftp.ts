// A target that is a directory on an SFTP host: see target.ts for the contract.
//
// Throws TARGET_ABSENT, TARGET_DENIED, HOST_KEY_WRONG, TARGET_FAILED.

import { BackupError } from '../errors.ts'
import type { SftpTargetConfiguration } from '../machine/config-targets.ts'
import type { RawPath } from '../model/raw-path.ts'
import type { Target } from './target.ts'

export interface SftpTargetOptions {
  readonly configuration: SftpTargetConfiguration
  /** A local directory for what waits to be sent, made when it is needed. */
  readonly spool: RawPath
}

/** The target, where the host answers and is the one that is pinned. */
export async function openSftpTarget({ configuration }: SftpTargetOptions): Promise<Target> {
  throw new BackupError('TARGET_ABSENT', `target ${configuration.name} is not built yet`)
}
