// age's X25519 keys: an identity (`AGE-SECRET-KEY-1…`, secret) and its recipient (`age1…`, public),
// as text and as bytes.
//
// Bech32 (BIP 173) around 32 bytes, upper case for identities and lower case for recipients, as in
// C2SP age.md. The only importer of @scure/base. Used by age.ts, which wraps file keys with them
// (docs/format.md §3.1).
//
// Throws CONFIG_INVALID for a text that is no recipient, IDENTITY_WRONG for one that is no
// identity. No error repeats the text: people paste the wrong one of the two.

import { type KeyObject, createPrivateKey, createPublicKey, randomBytes } from 'node:crypto'
import { bech32 } from '@scure/base'
import { BackupError } from '../errors.ts'

const IDENTITY_PREFIX = 'age-secret-key-'
const RECIPIENT_PREFIX = 'age'
const KEY_BYTES = 32

/**
 * What stands before the 32 bytes of an X25519 key in DER (RFC 8410), the only form node:crypto
 * takes on every version.
 */
const PRIVATE_DER_PREFIX = Buffer.from('302e020100300506032b656e04220420', 'hex')
const PUBLIC_DER_PREFIX = Buffer.from('302a300506032b656e032100', 'hex')

/** A new identity, `AGE-SECRET-KEY-1…`, from the operating system's generator. */
export function generateIdentity(): string {
  return encode(IDENTITY_PREFIX, randomBytes(KEY_BYTES)).toUpperCase()
}

/** The recipient, `age1…`, of an identity. Throws IDENTITY_WRONG. */
export function recipientOf(identity: string): string {
  return encode(RECIPIENT_PREFIX, publicBytes(privateKeyObject(parseIdentity(identity))))
}

/** The 32 bytes of an `age1…` recipient. Throws CONFIG_INVALID. */
export function parseRecipient(text: string): Buffer {
  const bytes = text === text.toLowerCase() ? decode(text, RECIPIENT_PREFIX) : undefined
  if (bytes !== undefined) return bytes
  throw new BackupError('CONFIG_INVALID', 'not an age recipient', { hint: recipientHint(text) })
}

/** The 32 bytes, a secret, of an `AGE-SECRET-KEY-1…` identity. Throws IDENTITY_WRONG. */
export function parseIdentity(text: string): Buffer {
  const bytes = text === text.toUpperCase() ? decode(text, IDENTITY_PREFIX) : undefined
  if (bytes !== undefined) return bytes
  throw new BackupError('IDENTITY_WRONG', 'not an age identity', { hint: identityHint(text) })
}

/** A private key for `diffieHellman` from its 32 bytes. */
export function privateKeyObject(bytes: Uint8Array): KeyObject {
  const key = Buffer.concat([PRIVATE_DER_PREFIX, bytes])
  return createPrivateKey({ key, format: 'der', type: 'pkcs8' })
}

/** A public key for `diffieHellman` from its 32 bytes. */
export function publicKeyObject(bytes: Uint8Array): KeyObject {
  const key = Buffer.concat([PUBLIC_DER_PREFIX, bytes])
  return createPublicKey({ key, format: 'der', type: 'spki' })
}

/** The 32 public bytes of a private key. */
export function publicBytes(privateKey: KeyObject): Buffer {
  const der = createPublicKey(privateKey).export({ format: 'der', type: 'spki' })
  return der.subarray(PUBLIC_DER_PREFIX.length)
}

function encode(prefix: string, bytes: Uint8Array): string {
  return bech32.encode(prefix, bech32.toWords(bytes))
}

function decode(text: string, prefix: string): Buffer | undefined {
  const decoded = bech32.decodeUnsafe(text)
  if (decoded === undefined || decoded.prefix !== prefix) return undefined
  const bytes = bech32.fromWordsUnsafe(decoded.words)
  if (bytes === undefined || bytes.length !== KEY_BYTES) return undefined
  return Buffer.from(bytes)
}

function recipientHint(text: string): string {
  if (/^age-secret-key-/i.test(text)) {
    return 'this is a secret identity; give its recipient, which begins age1'
  }
  if (text.startsWith('age1pq1')) return 'post-quantum recipients are not supported'
  if (/^ssh-/.test(text)) return 'SSH keys are not supported; make an identity with age-keygen'
  return 'a recipient begins age1 and has 62 characters; one of them may be mistyped'
}

function identityHint(text: string): string {
  if (/^age1/i.test(text)) {
    return 'this is a recipient, which only encrypts; the identity begins AGE-SECRET-KEY-1'
  }
  if (/^AGE-SECRET-KEY-PQ-/i.test(text)) return 'post-quantum identities are not supported'
  if (/^AGE-PLUGIN-/i.test(text)) return 'identities of age plugins are not supported'
  return 'an identity begins AGE-SECRET-KEY-1 and has 74 characters; one of them may be mistyped'
}
