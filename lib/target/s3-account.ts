// The public access block of a whole Amazon account: the only file that knows client-s3-control and
// client-sts.
//
// s3-client.ts calls it for getAccountPublicAccessBlock(), which the doctor asks. Gives the SDK's
// errors as they are: the caller gives them their meaning.

import { GetPublicAccessBlockCommand, S3ControlClient } from '@aws-sdk/client-s3-control'
import { GetCallerIdentityCommand, STSClient } from '@aws-sdk/client-sts'
import type { PublicAccessBlock } from '../model/bucket-facts.ts'

export interface AccountOptions {
  readonly region: string
  /** Of ~/.aws; undefined for whatever the environment offers. */
  readonly profile: string | undefined
  readonly connectTimeoutMs: number
  readonly idleTimeoutMs: number
}

/** Of the account that the credentials belong to. */
export async function accountPublicAccessBlock(of: AccountOptions): Promise<PublicAccessBlock> {
  const { region, profile, connectTimeoutMs, idleTimeoutMs } = of
  const options = {
    region,
    maxAttempts: 2,
    requestHandler: { connectionTimeout: connectTimeoutMs, socketTimeout: idleTimeoutMs },
    ...(profile === undefined ? {} : { profile }),
  }
  const sts = new STSClient(options)
  const control = new S3ControlClient(options)
  try {
    const { Account: account } = await sts.send(new GetCallerIdentityCommand({}))
    const command = new GetPublicAccessBlockCommand({ AccountId: account })
    const { PublicAccessBlockConfiguration: block } = await control.send(command)
    return {
      blocksAcls: block?.BlockPublicAcls === true,
      ignoresAcls: block?.IgnorePublicAcls === true,
      blocksPolicy: block?.BlockPublicPolicy === true,
      restrictsBuckets: block?.RestrictPublicBuckets === true,
    }
  } finally {
    sts.destroy()
    control.destroy()
  }
}
