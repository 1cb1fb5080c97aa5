// Which function does what: the operations of the stand-in S3 server by the API's names.
//
// s3-server.ts calls them once it knows who asks, and answers NotImplemented for what is not here.
// They throw S3Failure for what they refuse.

import type { Answer } from './answer.ts'
import { restoreObject } from './archive.ts'
import * as settings from './bucket-settings.ts'
import type { Call } from './call.ts'
import { listBuckets, listObjects, listVersions } from './listings.ts'
import { getObjectRetention, putObjectRetention } from './locks.ts'
import { getObject, headObject } from './read-object.ts'
import type { World } from './store.ts'
import {
  abortUpload,
  completeUpload,
  createUpload,
  listParts,
  listUploads,
  uploadPart,
} from './uploads.ts'
import { copyObject, deleteObject, putObject } from './write-object.ts'

export const OPERATIONS: Readonly<
  Record<string, ((world: World, call: Call) => Answer) | undefined>
> = {
  PutObject: putObject,
  GetObject: getObject,
  HeadObject: headObject,
  CopyObject: copyObject,
  DeleteObject: deleteObject,
  ListObjectsV2: listObjects,
  ListObjectVersions: listVersions,
  ListBuckets: listBuckets,
  CreateMultipartUpload: createUpload,
  UploadPart: uploadPart,
  ListParts: listParts,
  CompleteMultipartUpload: completeUpload,
  AbortMultipartUpload: abortUpload,
  ListMultipartUploads: listUploads,
  RestoreObject: restoreObject,
  GetObjectRetention: getObjectRetention,
  PutObjectRetention: putObjectRetention,
  HeadBucket: settings.headBucket,
  GetBucketLocation: settings.getLocation,
  GetBucketVersioning: settings.getVersioning,
  PutBucketVersioning: settings.putVersioning,
  GetObjectLockConfiguration: settings.getObjectLock,
  PutObjectLockConfiguration: settings.putObjectLock,
  GetBucketLifecycleConfiguration: settings.getLifecycle,
  PutBucketLifecycleConfiguration: settings.putLifecycle,
  DeleteBucketLifecycle: settings.deleteLifecycle,
  GetBucketEncryption: settings.getEncryption,
  GetPublicAccessBlock: settings.getPublicAccessBlock,
  GetBucketPolicyStatus: settings.getPolicyStatus,
  GetBucketPolicy: settings.getPolicy,
  GetBucketAcl: settings.getAcl,
  GetBucketOwnershipControls: settings.getOwnership,
}
