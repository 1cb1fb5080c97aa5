// libsodium's Ed25519 and argon2id, behind functions that wait until the library is ready.
//
// The only importer of libsodium-wrappers-sumo, which is loaded at the first call, so that commands
// that neither sign nor stretch start fast. Signatures are minisign.ts's, passphrases
// lib/machine/identity.ts's (docs/format.md §11).
// Throws nothing but libsodium's own errors for arguments of a wrong length, which are our bugs.

import type Sodium from 'libsodium-wrappers-sumo'

/**
 * argon2id as docs/format.md §11 has it: version 1.3, t = 3, m = 256 MiB, p = 1 (libsodium knows no
 * other), 32 bytes.
 */
const ARGON2_PASSES = 3
const ARGON2_MEMORY_BYTES = 256 * 1024 * 1024
const ARGON2_KEY_BYTES = 32

export interface Ed25519Pair {
  readonly publicKey: Buffer
  /** A secret. Seed and public key, 64 bytes, as libsodium and minisign keep it. */
  readonly secretKey: Buffer
}

/** A new key pair from the operating system's generator. */
export async function ed25519Generate(): Promise<Ed25519Pair> {
  const sodium = await sodiumReady()
  return pairOf(sodium.crypto_sign_keypair())
}

/** The key pair that grows from a 32-byte seed. */
export async function ed25519FromSeed(seed: Uint8Array): Promise<Ed25519Pair> {
  const sodium = await sodiumReady()
  return pairOf(sodium.crypto_sign_seed_keypair(seed))
}

/** The 64-byte signature over `message`. */
export async function ed25519Sign({
  message,
  secretKey,
}: {
  message: Uint8Array
  secretKey: Uint8Array
}): Promise<Buffer> {
  const sodium = await sodiumReady()
  return Buffer.from(sodium.crypto_sign_detached(message, secretKey))
}

/** Whether the signature over `message` verifies. */
export async function ed25519Verify({
  message,
  signature,
  publicKey,
}: {
  message: Uint8Array
  signature: Uint8Array
  publicKey: Uint8Array
}): Promise<boolean> {
  const sodium = await sodiumReady()
  return sodium.crypto_sign_verify_detached(signature, message, publicKey)
}

/** 32 bytes from a passphrase and 16 bytes of salt; takes about a second and 256 MiB. */
export async function argon2id({
  passphrase,
  salt,
}: {
  passphrase: string
  salt: Uint8Array
}): Promise<Buffer> {
  const sodium = await sodiumReady()
  return Buffer.from(
    sodium.crypto_pwhash(
      ARGON2_KEY_BYTES,
      Buffer.from(passphrase, 'utf8'),
      salt,
      ARGON2_PASSES,
      ARGON2_MEMORY_BYTES,
      sodium.crypto_pwhash_ALG_ARGON2ID13,
    ),
  )
}

async function sodiumReady(): Promise<typeof Sodium> {
  const { default: sodium } = await import('libsodium-wrappers-sumo')
  await sodium.ready
  return sodium
}

function pairOf({
  publicKey,
  privateKey,
}: {
  publicKey: Uint8Array
  privateKey: Uint8Array
}): Ed25519Pair {
  return { publicKey: Buffer.from(publicKey), secretKey: Buffer.from(privateKey) }
}
