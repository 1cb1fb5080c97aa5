// minisign's keys and prehashed signatures (docs/format.md §11), as text.
//
// sign and verify are inverses, as are encodeSigningKey and parseSigningKey, encodePublicKey and
// parsePublicKey. The trusted comment of ours names the signed file and its repository, so a file
// moved to another place does not verify.
//
// Throws SIGNATURE_WRONG, SIGNER_UNKNOWN (its key is not among those trusted), CONFIG_INVALID for a
// text that is no key. No error repeats a key file's text.

import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { BackupError } from '../errors.ts'
import { ed25519FromSeed, ed25519Generate, ed25519Sign, ed25519Verify } from './sodium.ts'

const UNTRUSTED = 'untrusted comment: '
const TRUSTED = 'trusted comment: '

const KEY_ID_BYTES = 8
const SEED_BYTES = 32
const PUBLIC_KEY_BYTES = 32
const SECRET_KEY_BYTES = 64
const SIGNATURE_BYTES = 64

/** `Ed` + key id + public key. */
const PUBLIC_BLOB_BYTES = 2 + KEY_ID_BYTES + PUBLIC_KEY_BYTES
/** `ED` + key id + signature. */
const SIGNATURE_BLOB_BYTES = 2 + KEY_ID_BYTES + SIGNATURE_BYTES
/**
 * `Ed`, no derivation, `B2`; then salt and limits and, last, the checksum of the derivation, all
 * zero without one.
 */
const SECRET_HEAD = Buffer.from('45640000' + '4232', 'hex')
const SECRET_KEY_ID_OFFSET = SECRET_HEAD.length + 32 + 8 + 8
const SECRET_KEY_OFFSET = SECRET_KEY_ID_OFFSET + KEY_ID_BYTES
const SECRET_BLOB_BYTES = SECRET_KEY_OFFSET + SECRET_KEY_BYTES + 32

/** minisign itself writes comments of up to 1 and 8 KiB; a longer text is no signature. */
const MAX_SIGNATURE_CHARACTERS = 10_240

export interface PublicKey {
  readonly keyId: Buffer
  readonly publicKey: Buffer
}

export interface SigningKey extends PublicKey {
  /** A secret: seed and public key. */
  readonly secretKey: Buffer
}

/** A new key pair with a random key id. */
export async function generateSigningKey(): Promise<SigningKey> {
  return { keyId: randomBytes(KEY_ID_BYTES), ...(await ed25519Generate()) }
}

/** minisign's unencrypted secret key file. The text is a secret. */
export function encodeSigningKey({ keyId, secretKey }: SigningKey): string {
  const blob = Buffer.alloc(SECRET_BLOB_BYTES)
  SECRET_HEAD.copy(blob)
  keyId.copy(blob, SECRET_KEY_ID_OFFSET)
  secretKey.copy(blob, SECRET_KEY_OFFSET)
  return `${UNTRUSTED}minisign secret key ${keyIdText(keyId)}\n${blob.toString('base64')}\n`
}

/** The inverse of encodeSigningKey. Throws CONFIG_INVALID. */
export async function parseSigningKey(text: string): Promise<SigningKey> {
  const [comment, encoded, ...rest] = text.split('\n')
  const blob = decodeBase64(encoded ?? '')
  const isWhole = comment?.startsWith(UNTRUSTED) === true && rest.join('') === ''
  if (!isWhole || blob?.length !== SECRET_BLOB_BYTES || blob.toString('latin1', 0, 2) !== 'Ed') {
    throw new BackupError('CONFIG_INVALID', 'the signing key is not a secret key file of minisign')
  }
  if (!blob.subarray(0, SECRET_HEAD.length).equals(SECRET_HEAD)) {
    const message = 'the signing key is protected with a password'
    const hint = 'take its password off with: minisign -C -W -s FILE'
    throw new BackupError('CONFIG_INVALID', message, { hint })
  }
  const keyId = blob.subarray(SECRET_KEY_ID_OFFSET, SECRET_KEY_OFFSET)
  const secretKey = blob.subarray(SECRET_KEY_OFFSET, SECRET_KEY_OFFSET + SECRET_KEY_BYTES)
  // The file has no checksum, but its second half follows from its first.
  const pair = await ed25519FromSeed(secretKey.subarray(0, SEED_BYTES))
  if (!pair.secretKey.equals(secretKey)) {
    throw new BackupError('CONFIG_INVALID', 'the signing key is damaged')
  }
  return { keyId, ...pair }
}

/** minisign's public key file. */
export function encodePublicKey(key: PublicKey): string {
  return `${UNTRUSTED}minisign public key ${keyIdText(key.keyId)}\n${publicKeyText(key)}\n`
}

/** A public key in one line, `RW…`, as `minisign -P` takes it. */
export function publicKeyText({ keyId, publicKey }: PublicKey): string {
  return Buffer.concat([Buffer.from('Ed', 'latin1'), keyId, publicKey]).toString('base64')
}

/**
 * The inverse of publicKeyText and of encodePublicKey: takes the one line or the file. Throws
 * CONFIG_INVALID.
 */
export function parsePublicKey(text: string): PublicKey {
  const lines = text.split('\n').filter((line) => line !== '' && !line.startsWith(UNTRUSTED))
  const blob = lines.length === 1 ? decodeBase64(lines[0] ?? '') : undefined
  if (blob?.length !== PUBLIC_BLOB_BYTES || blob.toString('latin1', 0, 2) !== 'Ed') {
    const hint = 'a public key of minisign begins RW and has 56 characters'
    throw new BackupError('CONFIG_INVALID', 'not a public signing key', { hint })
  }
  const publicKey = blob.subarray(2 + KEY_ID_BYTES)
  return { keyId: blob.subarray(2, 2 + KEY_ID_BYTES), publicKey }
}

/** The text of the `.minisig` for these bytes, which are `file` in `repository`. */
export async function sign({
  bytes,
  key,
  file,
  repository,
}: {
  bytes: Uint8Array
  key: SigningKey
  file: string
  repository: string
}): Promise<string> {
  const comment = trustedComment({ file, repository })
  const message = prehash(bytes)
  const signature = await ed25519Sign({ message, secretKey: key.secretKey })
  const globalMessage = withComment(signature, comment)
  const globalSignature = await ed25519Sign({ message: globalMessage, secretKey: key.secretKey })
  const blob = Buffer.concat([Buffer.from('ED', 'latin1'), key.keyId, signature])
  return [
    `${UNTRUSTED}signature from minisign secret key`,
    blob.toString('base64'),
    `${TRUSTED}${comment}`,
    globalSignature.toString('base64'),
    '',
  ].join('\n')
}

/**
 * Checks that one of `publicKeys` (`RW…`) signed these bytes as `file` of `repository`; returns the
 * one that did.
 * Throws SIGNER_UNKNOWN, SIGNATURE_WRONG; CONFIG_INVALID when one of `publicKeys` is none.
 */
export async function verify({
  bytes,
  signature: text,
  publicKeys,
  file,
  repository,
}: {
  bytes: Uint8Array
  signature: string
  publicKeys: readonly string[]
  file: string
  repository: string
}): Promise<string> {
  const { keyId, signature, comment, globalSignature } = parseSignature(text, file)
  const trusted = publicKeys.map(parsePublicKey).filter((key) => key.keyId.equals(keyId))
  if (trusted.length === 0) {
    const message = `${file} is signed by a key that is not trusted: ${keyIdText(keyId)}`
    const hint = 'if the machine was set up anew, add its new signing key to those that are trusted'
    const facts = { file, keyId: keyIdText(keyId) }
    throw new BackupError('SIGNER_UNKNOWN', message, { hint, facts })
  }
  const message = prehash(bytes)
  const whole = { message: withComment(signature, comment), signature: globalSignature }
  for (const key of trusted) {
    const { publicKey } = key
    const isSigned = await ed25519Verify({ message, signature, publicKey })
    if (!isSigned) continue
    const isCommentSigned = await ed25519Verify({ ...whole, publicKey })
    if (!isCommentSigned) throw wrongSignature(file, 'its trusted comment was changed')
    const expected = trustedComment({ file, repository })
    if (comment !== expected && !comment.startsWith(`${expected}\t`)) {
      throw wrongSignature(file, 'it was made for another file or repository')
    }
    return publicKeyText(key)
  }
  throw wrongSignature(file, 'the file was changed after it was signed')
}

interface Signature {
  readonly keyId: Buffer
  readonly signature: Buffer
  /** The trusted comment: trusted only after globalSignature verified. */
  readonly comment: string
  readonly globalSignature: Buffer
}

function parseSignature(text: string, file: string): Signature {
  const lines = text.length <= MAX_SIGNATURE_CHARACTERS ? text.split('\n') : []
  const [untrusted, encoded, trusted, encodedGlobal, end] = lines
  const blob = decodeBase64(encoded ?? '')
  const globalSignature = decodeBase64(encodedGlobal ?? '')
  const isEnded = lines.length === 4 || (lines.length === 5 && end === '')
  const isFramed = isEnded && untrusted?.startsWith(UNTRUSTED) === true
  if (
    !isFramed
    || trusted?.startsWith(TRUSTED) !== true
    || blob?.length !== SIGNATURE_BLOB_BYTES
    || globalSignature?.length !== SIGNATURE_BYTES
  ) {
    throw wrongSignature(file, 'it is not a signature of minisign')
  }
  // `Ed` would be minisign's older kind, over the bytes themselves.
  if (blob.toString('latin1', 0, 2) !== 'ED') {
    throw wrongSignature(file, "it is not of minisign's prehashed kind")
  }
  return {
    keyId: blob.subarray(2, 2 + KEY_ID_BYTES),
    signature: blob.subarray(2 + KEY_ID_BYTES),
    comment: trusted.slice(TRUSTED.length),
    globalSignature,
  }
}

function trustedComment({ file, repository }: { file: string; repository: string }): string {
  for (const part of [file, repository]) {
    assert.match(part, /^[\x21-\x7e]+$/, 'a name for a trusted comment')
  }
  return `file:${file}\trepository:${repository}`
}

function withComment(signature: Buffer, comment: string): Buffer {
  return Buffer.concat([signature, Buffer.from(comment, 'utf8')])
}

function prehash(bytes: Uint8Array): Buffer {
  return createHash('blake2b512').update(bytes).digest()
}

/** As minisign shows a key id: one little-endian number, without leading zeros. */
function keyIdText(keyId: Buffer): string {
  return keyId.readBigUInt64LE().toString(16).toUpperCase()
}

/** Undefined unless canonical, padding and all. */
function decodeBase64(text: string): Buffer | undefined {
  const bytes = Buffer.from(text, 'base64')
  return bytes.toString('base64') === text ? bytes : undefined
}

function wrongSignature(file: string, why: string): BackupError {
  const message = `the signature of ${file} does not verify: ${why}`
  return new BackupError('SIGNATURE_WRONG', message, { facts: { file } })
}
