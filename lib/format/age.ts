// age v1 (C2SP age.md, docs/format.md §3.1) on node:crypto alone, synchronous, for worker threads.
//
// createAgeHead and sealChunk write a bundle, openAgeHead and openChunk read it at any chunk;
// encryptAge/decryptAge and the passphrase pair do whole small files. *Head* is everything before
// the first chunk: the header and the payload's 16-byte nonce.
//
// Every head has a fresh file key, so no (key, nonce) pair is ever used for two plaintexts. Readers
// refuse what the specification forbids, and check the header's MAC before they give out a key.
// Throws AGE_HEADER, AGE_PAYLOAD, IDENTITY_WRONG, PASSPHRASE_WRONG, CONFIG_INVALID.

import assert from 'node:assert/strict'
import {
  type KeyObject,
  createCipheriv,
  createDecipheriv,
  createHmac,
  diffieHellman,
  generateKeyPairSync,
  hkdfSync,
  randomBytes,
  scryptSync,
  timingSafeEqual,
} from 'node:crypto'
import { BackupError } from '../errors.ts'
import {
  parseIdentity,
  parseRecipient,
  privateKeyObject,
  publicBytes,
  publicKeyObject,
} from './age-keys.ts'

/** Plaintext bytes in every chunk but the last; fixed by the specification. */
export const CHUNK_BYTES = 65536

/** What authentication adds to each chunk. */
export const TAG_BYTES = 16

/**
 * A head that is longer is refused: room for some 600 recipients, and little enough to hold in
 * memory for each bundle.
 */
export const MAX_HEAD_BYTES = 65536

/**
 * The work factor that age's own reader stops at: 4 GiB and some 20 seconds. A hostile file could
 * ask for more.
 */
export const MAX_LOG_N = 22

const SEALED_BYTES = CHUNK_BYTES + TAG_BYTES
const FILE_KEY_BYTES = 16
const WRAPPED_BYTES = FILE_KEY_BYTES + TAG_BYTES
const NONCE_BYTES = 16
const SALT_BYTES = 16
const POINT_BYTES = 32
const MAC_BYTES = 32

/** The counter has 11 bytes; 2^48 chunks are 2^64 bytes, and a number holds them exactly. */
const MAX_CHUNKS = 2 ** 48

/** Base64 characters in every line of a stanza's body but the last. */
const LINE_CHARACTERS = 64

const SCRYPT_BLOCKS = 8
/** What scryptSync needs over its 128 * N * r, with room. */
const SCRYPT_SLACK_BYTES = 1 << 20

const VERSION_LINE = 'age-encryption.org/v1'
const X25519_LABEL = 'age-encryption.org/v1/X25519'
const SCRYPT_LABEL = 'age-encryption.org/v1/scrypt'

const CIPHER = 'chacha20-poly1305'
const CIPHER_OPTIONS = { authTagLength: TAG_BYTES } as const
const ZERO_NONCE = Buffer.alloc(12)
const EMPTY = Buffer.alloc(0)

interface Stanza {
  readonly type: string
  /** The arguments after the type. */
  readonly arguments: readonly string[]
  readonly body: Buffer
}

interface Header {
  readonly stanzas: readonly Stanza[]
  /** The bytes that the MAC covers: up to and including `---`. */
  readonly authenticated: Uint8Array
  readonly mac: Buffer
  readonly nonce: Buffer
  readonly headBytes: number
}

/**
 * A new head for these recipients, and the key to seal its chunks with. The file key is fresh: call
 * this once for each file, also for one that is written again. Throws CONFIG_INVALID for a bad
 * recipient.
 */
export function createAgeHead(recipients: readonly string[]): { head: Buffer; payloadKey: Buffer } {
  assert.ok(recipients.length > 0, 'an age file needs a recipient')
  const fileKey = randomBytes(FILE_KEY_BYTES)
  const stanzas = recipients.map((recipient) => wrapX25519(fileKey, recipient))
  return buildHead({ fileKey, stanzas })
}

/**
 * The length of the head that `start` begins with, and the key to open the chunks after it. `start`
 * holds the whole head or at least MAX_HEAD_BYTES. Throws AGE_HEADER when it is malformed,
 * IDENTITY_WRONG when no identity fits.
 */
export function openAgeHead(
  start: Uint8Array,
  identities: readonly string[],
): { headBytes: number; payloadKey: Buffer } {
  const header = parseHeader(start)
  const fileKey = unwrapX25519(header, identities)
  if (fileKey !== undefined) return finishHead(header, fileKey)
  const hint = header.stanzas.some(({ type }) => type === 'scrypt')
    ? 'this file is protected with a passphrase'
    : 'it was made for other recipients; give the identity that belongs to one of them'
  throw new BackupError('IDENTITY_WRONG', 'no identity opens this age file', { hint })
}

/**
 * Writes chunk `index` of the payload, ciphertext and tag, to `out` at `outOffset`; returns how
 * many bytes that is. Each index is sealed once under one key. A chunk that is not the last is
 * full; the last is empty only when it is first.
 */
export function sealChunk({
  payloadKey,
  index,
  last,
  plaintext,
  out,
  outOffset,
}: {
  payloadKey: Uint8Array
  index: number
  last: boolean
  plaintext: Uint8Array
  out: Uint8Array
  outOffset: number
}): number {
  assert.ok(isChunkLength({ index, last, length: plaintext.length }), 'chunk length')
  const tagOffset = outOffset + plaintext.length
  assert.ok(tagOffset + TAG_BYTES <= out.length, 'no room for the chunk')
  const cipher = createCipheriv(CIPHER, payloadKey, chunkNonce(index, last), CIPHER_OPTIONS)
  // update() allocates what it returns; a copy costs 3 % and is the least that node:crypto allows.
  if (plaintext.length > 0) out.set(cipher.update(plaintext), outOffset)
  cipher.final()
  out.set(cipher.getAuthTag(), tagOffset)
  return plaintext.length + TAG_BYTES
}

/** The plaintext of a chunk with its tag; the inverse of sealChunk. Throws AGE_PAYLOAD. */
export function openChunk({
  payloadKey,
  index,
  last,
  ciphertext,
}: {
  payloadKey: Uint8Array
  index: number
  last: boolean
  ciphertext: Uint8Array
}): Buffer {
  const length = ciphertext.length - TAG_BYTES
  const facts = { chunk: index }
  if (!isChunkLength({ index, last, length })) {
    throw damagedPayload('a chunk has an impossible length', facts)
  }
  const nonce = chunkNonce(index, last)
  const plaintext = openSealed({ key: payloadKey, nonce, sealed: ciphertext })
  if (plaintext === undefined) throw damagedPayload('a chunk does not authenticate', facts)
  return plaintext
}

/**
 * What a chunk decrypts to, authenticated by nothing: good for guessing where a chunk ends whose
 * length is not known, and for nothing else. `ciphertext` may go on behind it.
 */
export function peekChunk({
  payloadKey,
  index,
  last,
  ciphertext,
}: {
  payloadKey: Uint8Array
  index: number
  last: boolean
  ciphertext: Uint8Array
}): Buffer {
  return createDecipheriv(CIPHER, payloadKey, chunkNonce(index, last), CIPHER_OPTIONS).update(
    ciphertext,
  )
}

/** A whole age file for these recipients. Throws CONFIG_INVALID. */
export function encryptAge(plaintext: Uint8Array, recipients: readonly string[]): Buffer {
  return sealPayload(createAgeHead(recipients), plaintext)
}

/** The content of a whole age file. Throws AGE_HEADER, IDENTITY_WRONG, AGE_PAYLOAD. */
export function decryptAge(ciphertext: Uint8Array, identities: readonly string[]): Buffer {
  return openPayload(openAgeHead(ciphertext, identities), ciphertext)
}

/** A whole age file under a passphrase, with scrypt's N = 2^logN. */
export function encryptWithPassphrase(
  plaintext: Uint8Array,
  passphrase: string,
  { logN }: { logN: number },
): Buffer {
  assert.ok(logN >= 1 && logN <= MAX_LOG_N, 'scrypt work factor')
  const fileKey = randomBytes(FILE_KEY_BYTES)
  const salt = randomBytes(SALT_BYTES)
  const body = wrapFileKey(scryptKey({ passphrase, salt, logN }), fileKey)
  const stanza = { type: 'scrypt', arguments: [encodeBase64(salt), String(logN)], body }
  return sealPayload(buildHead({ fileKey, stanzas: [stanza] }), plaintext)
}

/**
 * The content of an age file under a passphrase; the inverse of encryptWithPassphrase. Throws
 * AGE_HEADER, AGE_PAYLOAD, PASSPHRASE_WRONG, and IDENTITY_WRONG for a file that no passphrase
 * opens.
 */
export function decryptWithPassphrase(ciphertext: Uint8Array, passphrase: string): Buffer {
  const header = parseHeader(ciphertext)
  const stanza = header.stanzas.find(({ type }) => type === 'scrypt')
  if (stanza === undefined) {
    const message = 'this age file is not protected with a passphrase'
    const hint = 'it was made for recipients; give an identity'
    throw new BackupError('IDENTITY_WRONG', message, { hint })
  }
  const { salt, logN } = parseScrypt(stanza)
  const fileKey = unwrapFileKey(scryptKey({ passphrase, salt, logN }), stanza.body)
  if (fileKey === undefined) {
    const hint = 'try again'
    throw new BackupError('PASSPHRASE_WRONG', 'the passphrase does not open this file', { hint })
  }
  return openPayload(finishHead(header, fileKey), ciphertext)
}

/** Lengths and places in an age file, from the length of its head. */
export const ageLengths = {
  /** How long the file is that holds so many bytes. */
  ciphertextBytes({
    headBytes,
    plaintextBytes,
  }: {
    headBytes: number
    plaintextBytes: number
  }): number {
    const chunks = Math.max(1, Math.ceil(plaintextBytes / CHUNK_BYTES))
    return headBytes + plaintextBytes + chunks * TAG_BYTES
  },

  /**
   * How many bytes a file of this length holds; the inverse of ciphertextBytes. Throws AGE_PAYLOAD.
   */
  plaintextBytes({
    headBytes,
    ciphertextBytes,
  }: {
    headBytes: number
    ciphertextBytes: number
  }): number {
    const payloadBytes = ciphertextBytes - headBytes
    const fullChunks = Math.max(0, Math.ceil(payloadBytes / SEALED_BYTES) - 1)
    const lastBytes = payloadBytes - fullChunks * SEALED_BYTES
    if (lastBytes < TAG_BYTES || (lastBytes === TAG_BYTES && fullChunks > 0)) {
      throw damagedPayload('no age file has this length', { ciphertextBytes })
    }
    return payloadBytes - (fullChunks + 1) * TAG_BYTES
  },

  /** Where in the file chunk `index` begins. */
  chunkOffset({ headBytes, index }: { headBytes: number; index: number }): number {
    return headBytes + index * SEALED_BYTES
  },
} as const

function sealPayload(
  { head, payloadKey }: { head: Buffer; payloadKey: Buffer },
  plaintext: Uint8Array,
): Buffer {
  const sizes = { headBytes: head.length, plaintextBytes: plaintext.length }
  const out = Buffer.allocUnsafe(ageLengths.ciphertextBytes(sizes))
  let outOffset = head.copy(out)
  for (let index = 0; outOffset < out.length; index++) {
    const begin = index * CHUNK_BYTES
    const end = Math.min(begin + CHUNK_BYTES, plaintext.length)
    outOffset += sealChunk({
      payloadKey,
      index,
      last: end === plaintext.length,
      plaintext: plaintext.subarray(begin, end),
      out,
      outOffset,
    })
  }
  assert.equal(outOffset, out.length)
  return out
}

function openPayload(
  { headBytes, payloadKey }: { headBytes: number; payloadKey: Buffer },
  ciphertext: Uint8Array,
): Buffer {
  const sizes = { headBytes, ciphertextBytes: ciphertext.length }
  const out = Buffer.allocUnsafe(ageLengths.plaintextBytes(sizes))
  let offset = headBytes
  for (let index = 0; offset < ciphertext.length; index++) {
    const end = Math.min(offset + SEALED_BYTES, ciphertext.length)
    const sealed = ciphertext.subarray(offset, end)
    const last = end === ciphertext.length
    out.set(openChunk({ payloadKey, index, last, ciphertext: sealed }), index * CHUNK_BYTES)
    offset = end
  }
  return out
}

/** Whether a chunk may hold so many bytes of plaintext. */
function isChunkLength({
  index,
  last,
  length,
}: {
  index: number
  last: boolean
  length: number
}): boolean {
  if (!last) return length === CHUNK_BYTES
  return length >= (index === 0 ? 0 : 1) && length <= CHUNK_BYTES
}

function chunkNonce(index: number, last: boolean): Buffer {
  assert.ok(index < MAX_CHUNKS)
  const nonce = Buffer.alloc(12)
  nonce.writeUIntBE(index, 5, 6)
  nonce[11] = last ? 1 : 0
  return nonce
}

/** The plaintext of what ChaCha20-Poly1305 sealed; undefined when it does not authenticate. */
function openSealed({
  key,
  nonce,
  sealed,
}: {
  key: Uint8Array
  nonce: Uint8Array
  sealed: Uint8Array
}): Buffer | undefined {
  const length = sealed.length - TAG_BYTES
  const decipher = createDecipheriv(CIPHER, key, nonce, CIPHER_OPTIONS)
  decipher.setAuthTag(sealed.subarray(length))
  const plaintext = length > 0 ? decipher.update(sealed.subarray(0, length)) : EMPTY
  try {
    decipher.final()
  } catch {
    return undefined
  }
  return plaintext
}

function buildHead({ fileKey, stanzas }: { fileKey: Buffer; stanzas: readonly Stanza[] }): {
  head: Buffer
  payloadKey: Buffer
} {
  const text = `${VERSION_LINE}\n${stanzas.map(encodeStanza).join('')}---`
  const authenticated = Buffer.from(text, 'latin1')
  const mac = encodeBase64(headerMac({ fileKey, authenticated }))
  const nonce = randomBytes(NONCE_BYTES)
  const head = Buffer.concat([authenticated, Buffer.from(` ${mac}\n`, 'latin1'), nonce])
  assert.ok(head.length <= MAX_HEAD_BYTES, 'too many recipients')
  return { head, payloadKey: payloadKeyOf({ fileKey, nonce }) }
}

function encodeStanza({ type, arguments: rest, body }: Stanza): string {
  const text = encodeBase64(body)
  let lines = ''
  // A body whose last line is full is followed by an empty one, so that every body ends with a
  // short line.
  for (let i = 0; i <= text.length; i += LINE_CHARACTERS) {
    lines += `${text.slice(i, i + LINE_CHARACTERS)}\n`
  }
  return `-> ${[type, ...rest].join(' ')}\n${lines}`
}

/** Checks the MAC, and only then derives the payload key. */
function finishHead(header: Header, fileKey: Buffer): { headBytes: number; payloadKey: Buffer } {
  const mac = headerMac({ fileKey, authenticated: header.authenticated })
  if (!timingSafeEqual(mac, header.mac)) {
    throw malformedHeader('its authentication code does not match')
  }
  return { headBytes: header.headBytes, payloadKey: payloadKeyOf({ fileKey, nonce: header.nonce }) }
}

function headerMac({
  fileKey,
  authenticated,
}: {
  fileKey: Buffer
  authenticated: Uint8Array
}): Buffer {
  const key = hkdf({ secret: fileKey, salt: EMPTY, info: 'header' })
  return createHmac('sha256', key).update(authenticated).digest()
}

function payloadKeyOf({ fileKey, nonce }: { fileKey: Buffer; nonce: Buffer }): Buffer {
  return hkdf({ secret: fileKey, salt: nonce, info: 'payload' })
}

function parseHeader(start: Uint8Array): Header {
  const bytes = Buffer.from(start.buffer, start.byteOffset, Math.min(start.length, MAX_HEAD_BYTES))
  const lines = headerLines(bytes)
  if (lines.next() !== VERSION_LINE) {
    throw malformedHeader('it does not begin as age version 1 does')
  }
  const stanzas: Stanza[] = []
  for (;;) {
    const lineOffset = lines.offset()
    const line = lines.next()
    if (!line.startsWith('---')) {
      stanzas.push(parseStanza(line, lines.next))
      continue
    }
    const mac = line.startsWith('--- ') ? decodeBase64(line.slice(4)) : undefined
    if (mac?.length !== MAC_BYTES) throw malformedHeader('its last line is malformed')
    const headBytes = lines.offset() + NONCE_BYTES
    if (headBytes > bytes.length) throw malformedHeader('its nonce is incomplete')
    checkStanzas(stanzas)
    const nonce = bytes.subarray(lines.offset(), headBytes)
    return { stanzas, authenticated: bytes.subarray(0, lineOffset + 3), mac, nonce, headBytes }
  }
}

function headerLines(bytes: Buffer): { next: () => string; offset: () => number } {
  let offset = 0
  const next = (): string => {
    const end = bytes.indexOf(10, offset)
    const why = bytes.length < MAX_HEAD_BYTES ? 'it ends early' : 'it is too long'
    if (end < 0) throw malformedHeader(why)
    const line = bytes.toString('latin1', offset, end)
    offset = end + 1
    return line
  }
  return { next, offset: () => offset }
}

function parseStanza(first: string, nextLine: () => string): Stanza {
  const [arrow, type, ...rest] = first.split(' ')
  const isVisible = (text: string): boolean => /^[\x21-\x7e]+$/.test(text)
  if (arrow !== '->' || type === undefined || ![type, ...rest].every(isVisible)) {
    throw malformedHeader('a stanza does not begin as one does')
  }
  const bodyLines: string[] = []
  for (;;) {
    const line = nextLine()
    bodyLines.push(line)
    if (line.length > LINE_CHARACTERS) throw malformedHeader('a stanza has a line that is too long')
    if (line.length < LINE_CHARACTERS) break
  }
  const body = decodeBase64(bodyLines.join(''))
  if (body === undefined) throw malformedHeader('a stanza is not canonical base64')
  return { type, arguments: rest, body }
}

/**
 * Stanzas of the kinds we know have to be right before one is tried; others are passed over, as the
 * specification asks.
 */
function checkStanzas(stanzas: readonly Stanza[]): void {
  if (stanzas.length === 0) throw malformedHeader('it has no stanza')
  for (const stanza of stanzas) {
    if (stanza.type === 'X25519') parseShare(stanza)
    if (stanza.type !== 'scrypt') continue
    parseScrypt(stanza)
    if (stanzas.length > 1) throw malformedHeader('a scrypt stanza is not alone')
  }
}

function parseShare(stanza: Stanza): Buffer {
  const share = stanza.arguments.length === 1 ? decodeBase64(stanza.arguments[0] ?? '') : undefined
  // The body's length comes first: a longer one could be made to open under several keys.
  if (share?.length !== POINT_BYTES || stanza.body.length !== WRAPPED_BYTES) {
    throw malformedHeader('an X25519 stanza is malformed')
  }
  return share
}

function parseScrypt(stanza: Stanza): { salt: Buffer; logN: number } {
  const [saltText = '', logText = ''] = stanza.arguments
  const salt = decodeBase64(saltText)
  const isShaped = stanza.arguments.length === 2 && stanza.body.length === WRAPPED_BYTES
  if (!isShaped || salt?.length !== SALT_BYTES || !/^[1-9][0-9]*$/.test(logText)) {
    throw malformedHeader('a scrypt stanza is malformed')
  }
  const logN = Number(logText)
  if (logN > MAX_LOG_N) throw malformedHeader(`its scrypt work factor is above ${MAX_LOG_N}`)
  return { salt, logN }
}

function wrapX25519(fileKey: Buffer, recipient: string): Stanza {
  const point = parseRecipient(recipient)
  const ephemeral = generateKeyPairSync('x25519').privateKey
  const share = publicBytes(ephemeral)
  const key = x25519Key({ privateKey: ephemeral, peer: point, share, recipient: point })
  if (key === undefined) throw new BackupError('CONFIG_INVALID', 'not a usable age recipient')
  return { type: 'X25519', arguments: [encodeBase64(share)], body: wrapFileKey(key, fileKey) }
}

function unwrapX25519(header: Header, identities: readonly string[]): Buffer | undefined {
  const stanzas = header.stanzas.filter(({ type }) => type === 'X25519')
  for (const identity of identities) {
    const privateKey = privateKeyObject(parseIdentity(identity))
    const recipient = publicBytes(privateKey)
    for (const stanza of stanzas) {
      const share = parseShare(stanza)
      const key = x25519Key({ privateKey, peer: share, share, recipient })
      if (key === undefined) throw malformedHeader('an X25519 stanza has a share of low order')
      const fileKey = unwrapFileKey(key, stanza.body)
      if (fileKey !== undefined) return fileKey
    }
  }
  return undefined
}

/** The key that wraps the file key; undefined for a peer whose shared secret would be all zeros. */
function x25519Key({
  privateKey,
  peer,
  share,
  recipient,
}: {
  privateKey: KeyObject
  peer: Buffer
  share: Buffer
  recipient: Buffer
}): Buffer | undefined {
  let secret: Buffer
  try {
    secret = diffieHellman({ privateKey, publicKey: publicKeyObject(peer) })
  } catch {
    return undefined
  }
  if (secret.every((byte) => byte === 0)) return undefined
  return hkdf({ secret, salt: Buffer.concat([share, recipient]), info: X25519_LABEL })
}

function scryptKey({
  passphrase,
  salt,
  logN,
}: {
  passphrase: string
  salt: Buffer
  logN: number
}): Buffer {
  const N = 2 ** logN
  const maxmem = 128 * N * SCRYPT_BLOCKS + SCRYPT_SLACK_BYTES
  const labelled = Buffer.concat([Buffer.from(SCRYPT_LABEL, 'latin1'), salt])
  const cost = { N, r: SCRYPT_BLOCKS, p: 1, maxmem }
  return scryptSync(Buffer.from(passphrase, 'utf8'), labelled, 32, cost)
}

/** The nonce may be zero: each wrapping key is used once. */
function wrapFileKey(key: Buffer, fileKey: Buffer): Buffer {
  const cipher = createCipheriv(CIPHER, key, ZERO_NONCE, CIPHER_OPTIONS)
  return Buffer.concat([cipher.update(fileKey), cipher.final(), cipher.getAuthTag()])
}

function unwrapFileKey(key: Buffer, sealed: Buffer): Buffer | undefined {
  return openSealed({ key, nonce: ZERO_NONCE, sealed })
}

function hkdf({ secret, salt, info }: { secret: Buffer; salt: Buffer; info: string }): Buffer {
  return Buffer.from(hkdfSync('sha256', secret, salt, info, 32))
}

function encodeBase64(bytes: Buffer): string {
  return bytes.toString('base64').replace(/=+$/, '')
}

/** Undefined unless it is what encodeBase64 gives: no padding, no line breaks, no stray bits. */
function decodeBase64(text: string): Buffer | undefined {
  const bytes = Buffer.from(text, 'base64')
  return encodeBase64(bytes) === text ? bytes : undefined
}

function malformedHeader(why: string): BackupError {
  return new BackupError('AGE_HEADER', `the age header is malformed: ${why}`)
}

function damagedPayload(why: string, facts: Readonly<Record<string, unknown>>): BackupError {
  return new BackupError('AGE_PAYLOAD', `the age payload is damaged: ${why}`, { facts })
}
