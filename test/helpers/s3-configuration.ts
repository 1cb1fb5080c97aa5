// A target of kind s3 as a configuration has it, for tests that need no file of it.

import type { S3TargetConfiguration } from '../../lib/machine/config-targets.ts'

/** The bucket `bucket` in path style, with nothing that costs time or money; and what differs. */
export function s3Configuration(
  change: Partial<S3TargetConfiguration> = {},
): S3TargetConfiguration {
  return {
    ...{ name: 'cloud', kind: 's3', bucket: 'bucket', path: 'backups', region: undefined },
    ...{ endpoint: undefined, isPathStyle: true, profile: undefined, adminProfile: undefined },
    ...{ storageClass: 'STANDARD', hotBelowBytes: 0, lockMs: undefined, costLimit: undefined },
    ...{ pricesPath: undefined, streams: 3, bandwidthLimitBytes: undefined },
    ...{ spoolLimitBytes: 2 ** 30, bundleSizeBytes: 2 ** 28, compressionLevel: 3, priority: 0 },
    ...{ parityPercent: 0, drill: 'never' },
    ...change,
  }
}
