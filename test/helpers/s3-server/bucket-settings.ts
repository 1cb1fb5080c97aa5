// What a bucket is set to: versioning, lock, lifecycle, encryption, and who can see it.
//
// The settings come from startS3Server's options; where they say nothing they are those of a new
// bucket at Amazon: blocked for the public, encrypted, ACLs off, no versions.

import { Buffer } from 'node:buffer'
import type { BucketOptions } from '../s3-server.ts'
import { answer, answerXml, refuse } from './answer.ts'
import type { Answer } from './answer.ts'
import { allow } from './call.ts'
import type { Call } from './call.ts'
import { bucketOf } from './store.ts'
import type { StoredBucket, World } from './store.ts'
import { xmlText } from './xml.ts'

type Operation = (world: World, call: Call) => Answer

export const headBucket: Operation = (world, call) => {
  allow(call, 's3:ListBucket')
  const { settings } = bucketOf(world, call.bucket)
  const region = settings.region ?? world.quirks.region ?? 'us-east-1'
  return answer(200, { 'x-amz-bucket-region': region })
}

export const getLocation = reading('s3:GetBucketLocation', (bucket, world) => {
  const region = bucket.settings.region ?? world.quirks.region ?? 'us-east-1'
  return answerXml('LocationConstraint', region === 'us-east-1' ? '' : region)
})

export const getVersioning = reading('s3:GetBucketVersioning', ({ versioning }) => {
  const Status = { on: 'Enabled', suspended: 'Suspended', off: undefined }[versioning]
  return answerXml('VersioningConfiguration', { Status })
})

export const putVersioning: Operation = (world, call) => {
  allow(call, 's3:PutBucketVersioning')
  const bucket = bucketOf(world, call.bucket)
  const status = xmlText(call.body.toString(), 'Status')
  if (status === 'Suspended' && bucket.settings.objectLock) {
    const message =
      'An Object Lock configuration is present on this bucket, so the versioning state cannot be '
      + 'changed.'
    return refuse(409, 'InvalidBucketState', message)
  }
  if (status !== 'Enabled' && status !== 'Suspended') {
    return refuse(400, 'IllegalVersioningConfigurationException')
  }
  bucket.versioning = status === 'Enabled' ? 'on' : 'suspended'
  return answer(200)
}

export const getObjectLock = reading(
  's3:GetBucketObjectLockConfiguration',
  ({ settings: { objectLock } }) => {
    if (!objectLock) {
      const message = 'Object Lock configuration does not exist for this bucket'
      return refuse(404, 'ObjectLockConfigurationNotFoundError', message)
    }
    const Rule =
      typeof objectLock === 'object'
        ? { DefaultRetention: { Mode: objectLock.mode, Days: objectLock.days } }
        : undefined
    return answerXml('ObjectLockConfiguration', { ObjectLockEnabled: 'Enabled', Rule })
  },
)

export const putObjectLock: Operation = (world, call) => {
  allow(call, 's3:PutBucketObjectLockConfiguration')
  const bucket = bucketOf(world, call.bucket)
  if (bucket.versioning !== 'on') {
    const message =
      "Versioning must be 'Enabled' on the bucket to apply a Object Lock configuration"
    return refuse(409, 'InvalidBucketState', message)
  }
  const xml = call.body.toString()
  const mode = xmlText(xml, 'Mode')
  const days = xmlText(xml, 'Days')
  const objectLock: BucketOptions['objectLock'] =
    (mode === 'GOVERNANCE' || mode === 'COMPLIANCE') && days !== undefined
      ? { mode, days: Number(days) }
      : true
  bucket.settings = { ...bucket.settings, objectLock }
  return answer(200)
}

export const getLifecycle = reading('s3:GetLifecycleConfiguration', ({ lifecycleXml }) => {
  if (lifecycleXml === undefined) {
    const message = 'The lifecycle configuration does not exist'
    return refuse(404, 'NoSuchLifecycleConfiguration', message)
  }
  return answer(200, { 'content-type': 'application/xml' }, Buffer.from(lifecycleXml))
})

export const putLifecycle: Operation = (world, call) => {
  allow(call, 's3:PutLifecycleConfiguration')
  bucketOf(world, call.bucket).lifecycleXml = call.body.toString()
  return answer(200)
}

export const deleteLifecycle: Operation = (world, call) => {
  allow(call, 's3:PutLifecycleConfiguration')
  bucketOf(world, call.bucket).lifecycleXml = undefined
  return answer(204)
}

export const getEncryption = reading(
  's3:GetEncryptionConfiguration',
  ({ settings: { encryption = 'AES256' } }) => {
    if (encryption === 'none') {
      const message = 'The server side encryption configuration was not found'
      return refuse(404, 'ServerSideEncryptionConfigurationNotFoundError', message)
    }
    return answerXml('ServerSideEncryptionConfiguration', {
      Rule: { ApplyServerSideEncryptionByDefault: { SSEAlgorithm: encryption } },
    })
  },
)

export const getPublicAccessBlock = reading('s3:GetBucketPublicAccessBlock', ({ settings }) => {
  const { publicAccessBlock = {} } = settings
  if (publicAccessBlock === false) {
    const message = 'The public access block configuration was not found'
    return refuse(404, 'NoSuchPublicAccessBlockConfiguration', message)
  }
  return answerXml('PublicAccessBlockConfiguration', {
    BlockPublicAcls: publicAccessBlock.blockPublicAcls ?? true,
    IgnorePublicAcls: publicAccessBlock.ignorePublicAcls ?? true,
    BlockPublicPolicy: publicAccessBlock.blockPublicPolicy ?? true,
    RestrictPublicBuckets: publicAccessBlock.restrictPublicBuckets ?? true,
  })
})

export const getPolicyStatus = reading('s3:GetBucketPolicyStatus', ({ settings }) => {
  if (settings.policy === undefined) noPolicy()
  return answerXml('PolicyStatus', { IsPublic: settings.policyIsPublic ?? false })
})

export const getPolicy = reading('s3:GetBucketPolicy', ({ settings: { policy } }) => {
  if (policy === undefined) return noPolicy()
  return answer(200, { 'content-type': 'application/json' }, Buffer.from(policy))
})

export const getAcl = reading('s3:GetBucketAcl', ({ settings: { grants = [] } }) => {
  const schema = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
  const group = `Grantee ${schema} xsi:type="Group"`
  const user = `Grantee ${schema} xsi:type="CanonicalUser"`
  return answerXml('AccessControlPolicy', {
    Owner: { ID: 'owner' },
    AccessControlList: {
      Grant: [
        { [user]: { ID: 'owner' }, Permission: 'FULL_CONTROL' },
        ...grants.map(({ to, permission }) => ({
          ...(to === 'AllUsers' || to === 'AuthenticatedUsers'
            ? { [group]: { URI: groupUri(to) } }
            : { [user]: { ID: to } }),
          Permission: permission,
        })),
      ],
    },
  })
})

export const getOwnership = reading(
  's3:GetBucketOwnershipControls',
  ({ settings: { ownership = 'BucketOwnerEnforced' } }) => {
    if (ownership === 'none') {
      const message = 'The bucket ownership controls were not found'
      return refuse(404, 'OwnershipControlsNotFoundError', message)
    }
    return answerXml('OwnershipControls', { Rule: { ObjectOwnership: ownership } })
  },
)

function reading(action: string, read: (bucket: StoredBucket, world: World) => Answer): Operation {
  return (world, call) => {
    allow(call, action)
    return read(bucketOf(world, call.bucket), world)
  }
}

function noPolicy(): never {
  return refuse(404, 'NoSuchBucketPolicy', 'The bucket policy does not exist')
}

function groupUri(to: string): string {
  return `http://acs.amazonaws.com/groups/global/${to}`
}
