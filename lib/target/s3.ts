// A target that is a bucket: see target.ts for the contract, bucket.ts for what is more.
//
// Throws TARGET_ABSENT, TARGET_DENIED, TARGET_FAILED.

import { BackupError } from '../errors.ts'
import type { S3TargetConfiguration } from '../machine/config-targets.ts'
import type { RawPath } from '../model/raw-path.ts'
import type { Target } from './target.ts'

export interface S3TargetOptions {
  readonly configuration: S3TargetConfiguration
  /** A local directory for what waits to be sent, made when it is needed. */
  readonly spool: RawPath
  /** A local file, which remembers what a probe showed. */
  readonly capabilitiesFile: RawPath
  /** With which credentials; `backup` where nothing is said. */
  readonly as?: 'backup' | 'admin'
}

/** The target, where the bucket answers. */
export async function openS3Target({ configuration }: S3TargetOptions): Promise<Target> {
  throw new BackupError('TARGET_ABSENT', `target ${configuration.name} is not built yet`)
}
