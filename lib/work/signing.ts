// The machine's signing key and the keys it trusts: what makes a file on a drive ours
// (docs/format.md §11).
//
// openSigner reads the key once for a run; verifySigned checks any of our signed files. Throws
// CONFIG_ABSENT without a key, SIGNATURE_WRONG and SIGNER_UNKNOWN.

import type { Buffer } from 'node:buffer'
import { readFileSync } from 'node:fs'
import { BackupError, systemCode } from '../errors.ts'
import {
  type SigningKey,
  parseSigningKey,
  publicKeyText,
  sign,
  verify,
} from '../format/minisign.ts'
import type { Configuration } from '../machine/config.ts'

export interface Signer {
  /** `RW…` */
  readonly publicKey: string
  /** The text of a `.minisig` file for the file that its trusted comment is to name. */
  sign(
    bytes: Uint8Array,
    of: { readonly file: string; readonly repository: string },
  ): Promise<string>
}

/** @throws BackupError CONFIG_ABSENT when there is no signing key that this user may read */
export async function openSigner(configuration: Configuration): Promise<Signer> {
  const key = await readKey(configuration.signingKey)
  return {
    publicKey: publicKeyText(key),
    sign: async (bytes, { file, repository }) => await sign({ bytes, key, file, repository }),
  }
}

async function readKey(path: string): Promise<SigningKey> {
  try {
    return await parseSigningKey(readFileSync(path, 'utf8'))
  } catch (cause) {
    const code = systemCode(cause)
    if (code === 'EACCES') {
      const message = `the signing key at ${path} may not be read by this user`
      throw new BackupError('CONFIG_ABSENT', message, {
        hint: 'run as the user whose key it is; nothing was changed',
        cause,
      })
    }
    if (code !== 'ENOENT') throw cause
    throw new BackupError('CONFIG_ABSENT', `there is no signing key at ${path}`, {
      hint: '`backup init` makes one; exports are signed, so none can be written without it',
      cause,
    })
  }
}

/**
 * The public keys that a file of `machine` may be signed with: this machine's own, and what the
 * user trusts.
 */
export async function trustedKeys(
  configuration: Configuration,
  {
    machine,
    fromIdentity,
  }: {
    readonly machine: string
    readonly fromIdentity: readonly { readonly machine: string; readonly publicKey: string }[]
  },
): Promise<readonly string[]> {
  const keys = new Set<string>()
  if (machine === configuration.machine) {
    try {
      keys.add((await openSigner(configuration)).publicKey)
    } catch (error) {
      // Who only restores has no signing key, or may not read it: the other sources count.
      if (!(error instanceof BackupError) || error.code !== 'CONFIG_ABSENT') throw error
    }
  }
  for (const trusted of configuration.trustedSigningKeys) {
    if (trusted.machine === machine) keys.add(trusted.key)
  }
  for (const trusted of fromIdentity) if (trusted.machine === machine) keys.add(trusted.publicKey)
  return [...keys]
}

/** @throws BackupError SIGNATURE_WRONG or SIGNER_UNKNOWN */
export async function verifySigned(options: {
  readonly bytes: Buffer
  readonly signature: string
  readonly publicKeys: readonly string[]
  readonly file: string
  readonly repository: string
}): Promise<void> {
  await verify(options)
}
