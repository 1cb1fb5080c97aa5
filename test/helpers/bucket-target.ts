// A target on the stand-in server, with nothing between the client and the test: what is above
// targets is tried against it without spools and multipart uploads. The real one is s3.ts.

import { createHash } from 'node:crypto'
import { isAlwaysHot } from '../../lib/model/storage-class.ts'
import type { Bucket } from '../../lib/target/bucket.ts'
import { createS3Calls } from '../../lib/target/s3-client.ts'
import type { S3Calls } from '../../lib/target/s3-calls.ts'
import type { Target } from '../../lib/target/target.ts'
import type { S3Server } from './s3-server.ts'

export interface BucketTarget extends Target {
  readonly bucket: Bucket
}

/** Profiles are those of S3Server.writeProfiles; the environment has to lead to them. */
export function bucketTarget({
  server,
  profile,
  adminProfile = profile,
  storageClass = 'STANDARD',
}: {
  readonly server: S3Server
  readonly profile: string
  readonly adminProfile?: string
  /** Of data bundles. */
  readonly storageClass?: string
}): BucketTarget {
  const callsAs = (name: string): S3Calls =>
    createS3Calls({
      ...{ bucket: 'bucket', region: 'us-east-1', endpoint: server.endpoint, isPathStyle: true },
      ...{ profile: name, firstDelayMs: 1 },
    })
  const calls = callsAs(profile)
  const prefix = 'backups/'
  const keyOf = (path: string): string => `${prefix}${path}`
  const storageClassFor = (path: string): string =>
    path.includes('/data-') ? storageClass : 'STANDARD'
  const none = (): never => {
    throw new Error('not in this stand-in')
  }
  const bucket: Bucket = {
    calls,
    adminCalls: adminProfile === profile ? calls : callsAs(adminProfile),
    keyOf,
    pathOf: (key) => (key.startsWith(prefix) ? key.slice(prefix.length) : undefined),
    storageClassFor,
    capabilities: () => Promise.reject(new Error('nothing is probed')),
    warmthOf: async (path) => {
      const head = await calls.head(keyOf(path))
      if (head === undefined) return undefined
      if (isAlwaysHot(head.storageClass)) return { kind: 'hot' }
      if (head.restore?.isOngoing === true) return { kind: 'thawing' }
      const untilMs = head.restore?.expiryMs
      return untilMs === undefined ? { kind: 'cold' } : { kind: 'thawed', untilMs }
    },
    preferVersion: none,
    usage: () => calls.usage(),
    olderReads: () => [],
  }
  return {
    ...{ name: 'cloud', drive: undefined, place: 's3://bucket/backups', access: 'network', bucket },
    list: async (directory) => {
      const { objects, folders } = await calls.listFolder(keyOf(`${directory}/`))
      return [
        ...folders.map((name) => ({ name, kind: 'directory', sizeBytes: 0 }) as const),
        ...objects.map(({ key, sizeBytes }) => {
          return { name: key.slice(key.lastIndexOf('/') + 1), kind: 'file', sizeBytes } as const
        }),
      ]
    },
    listTree: none,
    read: async (path) => await calls.get(keyOf(path)),
    readRange: none,
    fileSize: none,
    write: async (path, body) => {
      const bytes = Buffer.from(body)
      const metadata = { sha256: createHash('sha256').update(bytes).digest('hex') }
      const put = { key: keyOf(path), body: bytes, storageClass: storageClassFor(path) }
      await calls.put({ ...put, metadata })
    },
    replace: none,
    workDirectory: none,
    publish: none,
    localPath: none,
    setAside: none,
    remove: async (path) => await bucket.adminCalls.remove(keyOf(path)),
    removeDirectory: none,
    freeBytes: none,
    sentBytes: () => bucket.usage().bytesSent,
    close: async () => {
      calls.close()
      bucket.adminCalls.close()
    },
  }
}
