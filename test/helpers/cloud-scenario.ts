// A scenario whose target `cloud` is a bucket of the stand-in server (s3-server.ts).

import type { BucketOptions, Quirks, S3Server, User } from './s3-server.ts'
import { startS3Server } from './s3-server.ts'
import { configure, makeScenario, type Properties, type Scenario } from './scenario.ts'

export interface CloudScenario extends Scenario {
  readonly server: S3Server
}

export interface CloudOptions {
  readonly bucket?: BucketOptions
  readonly quirks?: Quirks
  readonly users?: Readonly<Record<string, User>>
  /** More properties of the target. */
  readonly target?: Properties
  readonly nowMs?: () => number
}

/** The server has to be closed. */
export async function makeCloud(options: CloudOptions = {}): Promise<CloudScenario> {
  const scenario = await makeScenario()
  const server = await startS3Server({
    buckets: { bucket: options.bucket ?? {} },
    ...(options.quirks === undefined ? {} : { quirks: options.quirks }),
    ...(options.users === undefined ? {} : { users: options.users }),
    ...(options.nowMs === undefined ? {} : { nowMs: options.nowMs }),
  })
  configure(scenario, (c) => {
    c['targets'] = [
      {
        ...{ name: 'cloud', kind: 's3', bucket: 'bucket', path: 'backups', region: 'us-east-1' },
        ...{ endpoint: server.endpoint, path_style: true, bundle_size: '1 MiB' },
        ...options.target,
      },
    ]
  })
  Object.assign(scenario.environment, server.environment())
  return { ...scenario, server }
}
