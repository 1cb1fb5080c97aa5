// lib/format/age.ts and age-keys.ts against the specification's vectors, stock age, typage and
// libsodium.

import { spawnSync } from 'node:child_process'
import { createCipheriv, createHash, randomBytes } from 'node:crypto'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { inflateSync } from 'node:zlib'
import { bech32 } from '@scure/base'
import { Decrypter, Encrypter } from 'age-encryption'
import * as vectors from 'cctv-age'
import sodium from 'libsodium-wrappers-sumo'
import { suite } from 'uvu'
import { BackupError, type ErrorCode } from '../../lib/errors.ts'
import {
  CHUNK_BYTES,
  MAX_HEAD_BYTES,
  TAG_BYTES,
  ageLengths,
  createAgeHead,
  decryptAge,
  decryptWithPassphrase,
  encryptAge,
  encryptWithPassphrase,
  openAgeHead,
  openChunk,
  sealChunk,
} from '../../lib/format/age.ts'
import {
  generateIdentity,
  parseIdentity,
  parseRecipient,
  recipientOf,
} from '../../lib/format/age-keys.ts'
import * as assert from '../helpers/assert.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const SIZES = [0, 1, 65535, 65536, 65537, 131071, 131072, 131073]

/** Scrypt cheap enough for a test. */
const LOG_N = 4

const identity = generateIdentity()
const recipient = recipientOf(identity)

function codeOf(run: () => unknown): ErrorCode | 'none' {
  try {
    run()
  } catch (error) {
    if (error instanceof BackupError) return error.code
    throw error
  }
  return 'none'
}

function run(program: string, programArguments: readonly string[], input?: Uint8Array): Buffer {
  const result = spawnSync(program, programArguments, input === undefined ? {} : { input })
  if (result.error !== undefined) throw result.error
  assert.is(result.status, 0, `${program}: ${result.stderr.toString()}`)
  return result.stdout
}

// ------------------------------------------------------------------------------------------------

const vector = suite('age vectors')

interface Vector {
  readonly fields: ReadonlyMap<string, readonly string[]>
  readonly file: Buffer
}

function parseVector(bytes: Uint8Array): Vector {
  const all = Buffer.from(bytes)
  const end = all.indexOf('\n\n')
  const fields = new Map<string, string[]>()
  for (const line of all.toString('utf8', 0, end).split('\n')) {
    const [key = '', value = ''] = line.split(': ')
    fields.set(key, [...(fields.get(key) ?? []), value])
  }
  const body = all.subarray(end + 2)
  return { fields, file: fields.has('compressed') ? inflateSync(body) : body }
}

const EXPECTED = new Map<string, ErrorCode | 'none'>([
  ['success', 'none'],
  ['header failure', 'AGE_HEADER'],
  ['HMAC failure', 'AGE_HEADER'],
  ['payload failure', 'AGE_PAYLOAD'],
])

/** Files whose stanza has another type name have no stanza that a passphrase is for. */
const NO_MATCH = new Map<string, ErrorCode>([['scrypt_uppercase', 'IDENTITY_WRONG']])

let vectorsRun = 0

for (const [name, bytes] of Object.entries(vectors as unknown as Record<string, Uint8Array>)) {
  if (!(bytes instanceof Uint8Array)) continue
  const { fields, file } = parseVector(bytes)
  const identities = fields.get('identity') ?? []
  const passphrase = fields.get('passphrase')?.[0]
  const isPostQuantum = identities.some((text) => text.startsWith('AGE-SECRET-KEY-PQ-'))
  if (fields.has('armored') || isPostQuantum) continue

  const expect = fields.get('expect')?.[0] ?? ''
  const noMatch = passphrase === undefined ? 'IDENTITY_WRONG' : 'PASSPHRASE_WRONG'
  const expected = EXPECTED.get(expect) ?? NO_MATCH.get(name) ?? noMatch

  vector(`${name}: ${expect}`, () => {
    vectorsRun++
    let plaintext: Buffer | undefined
    const code = codeOf(() => {
      plaintext =
        passphrase === undefined
          ? decryptAge(file, identities)
          : decryptWithPassphrase(file, passphrase)
    })
    assert.is(code, expected)
    if (plaintext === undefined) return
    assert.is(createHash('sha256').update(plaintext).digest('hex'), fields.get('payload')?.[0])
  })
}

vector('at least 90 of them ran', () => {
  assert.ok(vectorsRun >= 90, `${vectorsRun} ran`)
})

vector.run()

// ------------------------------------------------------------------------------------------------

const whole = suite('age files')
const directory = tempDirectory()
const identityPath = join(directory, 'identity.txt')
writeFileSync(identityPath, `${identity}\n`, { mode: 0o600 })

for (const size of SIZES) {
  whole(`stock age opens ${size} bytes of ours, and we open its`, () => {
    const plaintext = randomBytes(size)
    const ours = encryptAge(plaintext, [recipient])
    assert.is(run('age', ['-d', '-i', identityPath], ours).compare(plaintext), 0)
    const theirs = run('age', ['-r', recipient], plaintext)
    assert.is(decryptAge(theirs, [identity]).compare(plaintext), 0)
    assert.is(theirs.length, ours.length)
  })

  whole(`typage opens ${size} bytes of ours, and we open its`, async () => {
    const plaintext = randomBytes(size)
    const decrypter = new Decrypter()
    decrypter.addIdentity(identity)
    const opened = await decrypter.decrypt(encryptAge(plaintext, [recipient]))
    assert.is(Buffer.from(opened).compare(plaintext), 0)

    const encrypter = new Encrypter()
    encrypter.addRecipient(recipient)
    const theirs = await encrypter.encrypt(plaintext)
    assert.is(decryptAge(theirs, [identity]).compare(plaintext), 0)
  })

  whole(`lengths of ${size} bytes are inverses of each other`, () => {
    const { head } = createAgeHead([recipient])
    const headBytes = head.length
    const ciphertextBytes = ageLengths.ciphertextBytes({ headBytes, plaintextBytes: size })
    assert.is(ciphertextBytes, encryptAge(randomBytes(size), [recipient]).length)
    assert.is(ageLengths.plaintextBytes({ headBytes, ciphertextBytes }), size)
  })
}

whole('an empty file for one recipient has 200 bytes', () => {
  assert.is(encryptAge(Buffer.alloc(0), [recipient]).length, 200)
})

whole('lengths that no age file has are refused', () => {
  const sealed = CHUNK_BYTES + TAG_BYTES
  for (const body of [-1, 0, 1, 15, sealed + 1, sealed + 15, sealed + 16, 2 * sealed + 16]) {
    const sizes = { headBytes: 184, ciphertextBytes: 184 + body }
    assert.is(
      codeOf(() => ageLengths.plaintextBytes(sizes)),
      'AGE_PAYLOAD',
      `${body} bytes`,
    )
  }
})

whole('each of several recipients opens the file, and a stranger does not', () => {
  const second = generateIdentity()
  const file = encryptAge(Buffer.from('for both'), [recipient, recipientOf(second)])
  for (const key of [identity, second]) assert.is(decryptAge(file, [key]).toString(), 'for both')
  assert.is(decryptAge(file, [generateIdentity(), second]).toString(), 'for both')
  assert.is(
    codeOf(() => decryptAge(file, [generateIdentity()])),
    'IDENTITY_WRONG',
  )
  assert.is(
    codeOf(() => decryptAge(file, [])),
    'IDENTITY_WRONG',
  )
})

whole('two files of the same bytes share neither key nor ephemeral share', () => {
  const [one, two] = [createAgeHead([recipient]), createAgeHead([recipient])]
  assert.not.ok(one.payloadKey.equals(two.payloadKey))
  assert.not.ok(one.head.subarray(0, 80).equals(two.head.subarray(0, 80)))
})

whole('every flipped bit of a small file is detected', () => {
  const file = encryptAge(Buffer.from('a small file'), [recipient])
  const allowed: readonly (ErrorCode | 'none')[] = ['AGE_HEADER', 'IDENTITY_WRONG', 'AGE_PAYLOAD']
  for (let bit = 0; bit < file.length * 8; bit++) {
    const damaged = Buffer.from(file)
    damaged[bit >> 3] = (damaged[bit >> 3] ?? 0) ^ (1 << (bit & 7))
    const code = codeOf(() => decryptAge(damaged, [identity]))
    assert.ok(allowed.includes(code), `bit ${bit}: ${code}`)
  }
})

whole('every truncation of a small file is detected, and so is anything after it', () => {
  const file = encryptAge(Buffer.from('a small file'), [recipient])
  for (let length = 0; length < file.length; length++) {
    const code = codeOf(() => decryptAge(file.subarray(0, length), [identity]))
    assert.not.equal(code, 'none', `${length} bytes`)
  }
  for (const extra of [1, 16, 17]) {
    const longer = Buffer.concat([file, Buffer.alloc(extra)])
    assert.is(
      codeOf(() => decryptAge(longer, [identity])),
      'AGE_PAYLOAD',
    )
  }
})

whole('a file cut after a full chunk is refused', () => {
  const plaintext = randomBytes(2 * CHUNK_BYTES)
  const file = encryptAge(plaintext, [recipient])
  const shorter = file.subarray(0, -CHUNK_BYTES - TAG_BYTES)
  assert.is(
    codeOf(() => decryptAge(shorter, [identity])),
    'AGE_PAYLOAD',
  )
})

whole('a header above the limit is refused, one just below it is read', () => {
  const long = Buffer.from(`age-encryption.org/v1\n${'-> x\n\n'.repeat(MAX_HEAD_BYTES / 6)}`)
  assert.ok(long.length > MAX_HEAD_BYTES)
  assert.throws(() => openAgeHead(long, [identity]), /too long/)
  const { head } = createAgeHead(Array.from({ length: 600 }, () => recipient))
  assert.ok(head.length > 50_000 && head.length <= MAX_HEAD_BYTES)
  assert.is(openAgeHead(head, [identity]).headBytes, head.length)
})

whole('a recipient whose shared secret would be zero is refused', () => {
  const zero = bech32.encode('age', bech32.toWords(Buffer.alloc(32)))
  assert.is(parseRecipient(zero).length, 32)
  assert.is(
    codeOf(() => createAgeHead([zero])),
    'CONFIG_INVALID',
  )
})

whole.run()

// ------------------------------------------------------------------------------------------------

const chunks = suite('age chunks')

chunks('a file made chunk by chunk opens, whole and at any chunk', () => {
  const plaintext = randomBytes((5 * CHUNK_BYTES) / 2)
  const { head, payloadKey } = createAgeHead([recipient])
  const sizes = { headBytes: head.length, plaintextBytes: plaintext.length }
  const file = Buffer.alloc(ageLengths.ciphertextBytes(sizes))
  head.copy(file)
  // Out of order, as random access is.
  for (const index of [2, 0, 1]) {
    const written = sealChunk({
      payloadKey,
      index,
      last: index === 2,
      out: file,
      plaintext: plaintext.subarray(index * CHUNK_BYTES, (index + 1) * CHUNK_BYTES),
      outOffset: ageLengths.chunkOffset({ headBytes: head.length, index }),
    })
    assert.is(written, Math.min(CHUNK_BYTES, plaintext.length - index * CHUNK_BYTES) + TAG_BYTES)
  }
  assert.is(run('age', ['-d', '-i', identityPath], file).compare(plaintext), 0)

  const opened = openAgeHead(file, [identity])
  assert.is(opened.headBytes, head.length)
  const begin = ageLengths.chunkOffset({ headBytes: opened.headBytes, index: 1 })
  const middle = openChunk({
    payloadKey: opened.payloadKey,
    index: 1,
    last: false,
    ciphertext: file.subarray(begin, begin + CHUNK_BYTES + TAG_BYTES),
  })
  assert.is(middle.compare(plaintext, CHUNK_BYTES, 2 * CHUNK_BYTES), 0)
})

chunks('a chunk opens only under its own index, place and key', () => {
  const payloadKey = randomBytes(32)
  const out = Buffer.alloc(CHUNK_BYTES + TAG_BYTES)
  const plaintext = randomBytes(CHUNK_BYTES)
  sealChunk({ payloadKey, index: 7, last: true, plaintext, out, outOffset: 0 })
  const right = { payloadKey, index: 7, last: true, ciphertext: out }
  assert.is(
    codeOf(() => openChunk(right)),
    'none',
  )
  assert.is(
    codeOf(() => openChunk({ ...right, index: 8 })),
    'AGE_PAYLOAD',
  )
  assert.is(
    codeOf(() => openChunk({ ...right, last: false })),
    'AGE_PAYLOAD',
  )
  assert.is(
    codeOf(() => openChunk({ ...right, payloadKey: randomBytes(32) })),
    'AGE_PAYLOAD',
  )
  assert.is(
    codeOf(() => openChunk({ ...right, ciphertext: out.subarray(1) })),
    'AGE_PAYLOAD',
  )
  assert.is(
    codeOf(() => openChunk({ ...right, ciphertext: out.subarray(0, 8) })),
    'AGE_PAYLOAD',
  )
})

chunks('an empty last chunk is refused after others', () => {
  const payloadKey = randomBytes(32)
  const out = Buffer.alloc(TAG_BYTES)
  const empty = { payloadKey, last: true, plaintext: Buffer.alloc(0), out, outOffset: 0 }
  assert.throws(() => sealChunk({ ...empty, index: 1 }))
  sealChunk({ ...empty, index: 0 })
  assert.is(openChunk({ payloadKey, index: 0, last: true, ciphertext: out }).length, 0)
  const nonce = Buffer.from('000000000000000000000101', 'hex')
  const tagged = { authTagLength: TAG_BYTES }
  const cipher = createCipheriv('chacha20-poly1305', payloadKey, nonce, tagged)
  const forged = Buffer.concat([cipher.final(), cipher.getAuthTag()])
  const opening = { payloadKey, index: 1, last: true, ciphertext: forged }
  assert.is(
    codeOf(() => openChunk(opening)),
    'AGE_PAYLOAD',
  )
})

chunks('libsodium seals and opens the same bytes, with a counter of many digits', async () => {
  await sodium.ready
  const payloadKey = randomBytes(32)
  const indexes: readonly [number, string][] = [
    [0, '000000000000000000000001'],
    [255, '00000000000000000000ff01'],
    [256, '000000000000000000010001'],
    [2 ** 32 + 5, '000000000000010000000501'],
    [2 ** 40 + 9, '000000000001000000000901'],
  ]
  for (const [index, nonceHex] of indexes) {
    for (const size of [1, 15, 16, 17, 64, 4095, CHUNK_BYTES]) {
      const plaintext = randomBytes(size)
      const ours = Buffer.alloc(size + TAG_BYTES)
      sealChunk({ payloadKey, index, last: true, plaintext, out: ours, outOffset: 0 })
      const nonce = Buffer.from(nonceHex, 'hex')
      const theirs = sodium.crypto_aead_chacha20poly1305_ietf_encrypt(
        plaintext,
        null,
        null,
        nonce,
        payloadKey,
      )
      assert.is(ours.compare(theirs), 0, `chunk ${index}, ${size} bytes`)
      const opened = openChunk({ payloadKey, index, last: true, ciphertext: theirs })
      assert.is(opened.compare(plaintext), 0)
    }
  }
})

chunks.run()

// ------------------------------------------------------------------------------------------------

const passphrases = suite('age passphrases')

passphrases('typage opens ours, and we open its', async () => {
  const ours = encryptWithPassphrase(Buffer.from('secret'), 'correct horse é', { logN: LOG_N })
  assert.is(decryptWithPassphrase(ours, 'correct horse é').toString(), 'secret')
  const decrypter = new Decrypter()
  decrypter.addPassphrase('correct horse é')
  assert.is(Buffer.from(await decrypter.decrypt(ours)).toString(), 'secret')

  const encrypter = new Encrypter()
  encrypter.setPassphrase('battery staple')
  encrypter.setScryptWorkFactor(LOG_N)
  const theirs = await encrypter.encrypt('staple')
  assert.is(decryptWithPassphrase(theirs, 'battery staple').toString(), 'staple')
})

passphrases("a work factor beyond scrypt's default memory works", () => {
  const file = encryptWithPassphrase(Buffer.from('x'), 'p', { logN: 16 })
  assert.is(decryptWithPassphrase(file, 'p').toString(), 'x')
})

passphrases('a wrong passphrase is told from damage and from a file for recipients', () => {
  const file = encryptWithPassphrase(Buffer.from('secret'), 'right', { logN: LOG_N })
  assert.is(
    codeOf(() => decryptWithPassphrase(file, 'wrong')),
    'PASSPHRASE_WRONG',
  )
  const damaged = Buffer.from(file)
  damaged[damaged.length - 1] = (damaged.at(-1) ?? 0) ^ 1
  assert.is(
    codeOf(() => decryptWithPassphrase(damaged, 'right')),
    'AGE_PAYLOAD',
  )
  const forRecipient = encryptAge(Buffer.from('x'), [recipient])
  assert.is(
    codeOf(() => decryptWithPassphrase(forRecipient, 'right')),
    'IDENTITY_WRONG',
  )
  assert.is(
    codeOf(() => decryptAge(file, [identity])),
    'IDENTITY_WRONG',
  )
})

passphrases.run()

// ------------------------------------------------------------------------------------------------

const keys = suite('age keys')

keys('age-keygen agrees on the recipient, of its identity and of ours', () => {
  const folder = join(directory, 'keys')
  mkdirSync(folder)
  const path = join(folder, 'key.txt')
  run('age-keygen', ['-o', path])
  const theirs = /^AGE-SECRET-KEY-1.*$/m.exec(readFileSync(path, 'utf8'))?.[0] ?? ''
  assert.is(recipientOf(theirs), run('age-keygen', ['-y', path]).toString().trim())
  assert.is(recipient, run('age-keygen', ['-y', identityPath]).toString().trim())
})

keys('what is no key is refused, and never repeated', () => {
  const swapped = (text: string): string => text.slice(0, -1) + (text.endsWith('Q') ? 'P' : 'Q')
  const notIdentities = [
    '',
    'AGE-SECRET-KEY-1',
    identity.toLowerCase(),
    ` ${identity}`,
    `${identity}\n`,
    swapped(identity),
    recipient,
    identity.slice(0, -1),
    'AGE-PLUGIN-YUBIKEY-1QQ',
  ]
  for (const sizeBytes of [31, 33]) {
    const words = bech32.toWords(randomBytes(sizeBytes))
    notIdentities.push(bech32.encode('age-secret-key-', words).toUpperCase())
  }
  const notRecipients = [
    '',
    'age1',
    recipient.toUpperCase(),
    `${recipient} `,
    identity,
    recipient.slice(0, -1),
    'ssh-ed25519 AAAA',
    'age1pq1',
  ]
  for (const [texts, parse, code] of [
    [notIdentities, parseIdentity, 'IDENTITY_WRONG'],
    [notRecipients, parseRecipient, 'CONFIG_INVALID'],
  ] as const) {
    for (const text of texts) {
      try {
        parse(text)
        assert.unreachable(`${texts.indexOf(text)} was taken`)
      } catch (error) {
        if (!(error instanceof BackupError)) throw error
        assert.is(error.code, code)
        assert.ok(error.hint !== undefined)
        const { message, hint, facts, stack, cause } = error
        const said = JSON.stringify([message, hint, facts, stack, String(cause)])
        if (text.length > 20) assert.not.ok(said.includes(text.slice(16, 40)))
      }
    }
  }
  assert.is(parseIdentity(identity).length, 32)
  assert.is(parseRecipient(recipient).length, 32)
})

keys.run()
