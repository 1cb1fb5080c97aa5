// lib/format/minisign.ts against stock minisign, both ways, and against whoever moves or changes
// what was signed.

import { spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import { BackupError, type ErrorCode } from '../../lib/errors.ts'
import {
  encodePublicKey,
  encodeSigningKey,
  generateSigningKey,
  parsePublicKey,
  parseSigningKey,
  publicKeyText,
  sign,
  verify,
} from '../../lib/format/minisign.ts'
import * as assert from '../helpers/assert.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const FILE = 'den/home/2025-03-01T020000Z/verification.sha256'
const REPOSITORY = '0123456789abcdef0123456789abcdef'
const COMMENT = `file:${FILE}\trepository:${REPOSITORY}`

const directory = tempDirectory()
const key = await generateSigningKey()
const keyText = publicKeyText(key)
const keyPath = join(directory, 'signing.key')
writeFileSync(keyPath, encodeSigningKey(key), { mode: 0o600 })

const bytes = Buffer.from('what was signed')
const good = { bytes, publicKeys: [keyText], file: FILE, repository: REPOSITORY }
const signature = await sign({ bytes, key, file: FILE, repository: REPOSITORY })

async function failureOf(promise: Promise<unknown>): Promise<BackupError> {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  if (error instanceof BackupError) return error
  throw error ?? new Error('it did not fail')
}

async function codeOf(promise: Promise<unknown>): Promise<ErrorCode> {
  return (await failureOf(promise)).code
}

function minisign(...programArguments: readonly string[]): { status: number | null; text: string } {
  const result = spawnSync('minisign', programArguments, { input: '' })
  if (result.error !== undefined) throw result.error
  return { status: result.status, text: `${result.stdout.toString()}${result.stderr.toString()}` }
}

/** A text with the character at `index` replaced by another one of its alphabet. */
function changed(text: string, index: number): string {
  return text.slice(0, index) + (text[index] === 'A' ? 'B' : 'A') + text.slice(index + 1)
}

const stock = suite('minisign and we')

stock('minisign verifies what we sign, by key text and by key file', async () => {
  const path = join(directory, 'ours')
  const publicPath = join(directory, 'signing.pub')
  writeFileSync(publicPath, encodePublicKey(key))
  for (const content of [Buffer.alloc(0), Buffer.from('x\n'), randomBytes(100_000)]) {
    writeFileSync(path, content)
    const text = await sign({ bytes: content, key, file: FILE, repository: REPOSITORY })
    writeFileSync(`${path}.minisig`, text)
    const byText = minisign('-H', '-Vm', path, '-P', keyText)
    assert.is(byText.status, 0, byText.text)
    assert.ok(byText.text.includes(COMMENT))
    assert.is(minisign('-Vm', path, '-p', publicPath).status, 0)
  }
  writeFileSync(path, 'changed')
  assert.is(minisign('-Vm', path, '-P', keyText).status, 1)
})

stock('minisign signs with our secret key file, and we verify it', async () => {
  const path = join(directory, 'theirs')
  writeFileSync(path, bytes)
  const made = minisign('-S', '-W', '-s', keyPath, '-m', path, '-t', COMMENT)
  assert.is(made.status, 0, made.text)
  const theirs = readFileSync(`${path}.minisig`, 'utf8')
  assert.is(await verify({ ...good, signature: theirs }), keyText)
})

stock('minisign derives our public key file from our secret key file', () => {
  const path = join(directory, 'derived.pub')
  const made = minisign('-R', '-s', keyPath, '-p', path)
  assert.is(made.status, 0, made.text)
  assert.is(readFileSync(path, 'utf8'), encodePublicKey(key))
})

stock('we read the keys that minisign makes', async () => {
  const [secretPath, publicPath] = [join(directory, 'made.key'), join(directory, 'made.pub')]
  assert.is(minisign('-G', '-W', '-s', secretPath, '-p', publicPath).status, 0)
  const theirs = await parseSigningKey(readFileSync(secretPath, 'utf8'))
  const publicFile = readFileSync(publicPath, 'utf8')
  assert.is(encodePublicKey(theirs), publicFile)
  assert.is(publicKeyText(parsePublicKey(publicFile)), publicFile.split('\n')[1])
})

stock("minisign's older kind of signature is refused", async () => {
  const path = join(directory, 'legacy')
  writeFileSync(path, bytes)
  assert.is(minisign('-S', '-l', '-W', '-s', keyPath, '-m', path, '-t', COMMENT).status, 0)
  const legacy = readFileSync(`${path}.minisig`, 'utf8')
  assert.is(await codeOf(verify({ ...good, signature: legacy })), 'SIGNATURE_WRONG')
})

stock.run()

const refusals = suite('minisign refusals')

refusals('the key that signed is named, among several', async () => {
  const other = publicKeyText(await generateSigningKey())
  assert.is(await verify({ ...good, signature, publicKeys: [other, keyText] }), keyText)
})

refusals('a key that is not trusted is told from a signature that is wrong', async () => {
  const other = publicKeyText(await generateSigningKey())
  for (const publicKeys of [[], [other]]) {
    const error = await failureOf(verify({ ...good, signature, publicKeys }))
    assert.is(error.code, 'SIGNER_UNKNOWN')
    assert.is(error.facts['file'], FILE)
  }
})

refusals('another key with the same key id does not verify', async () => {
  const forged = { ...(await generateSigningKey()), keyId: key.keyId }
  const forgery = await sign({ bytes, key: forged, file: FILE, repository: REPOSITORY })
  assert.is(await codeOf(verify({ ...good, signature: forgery })), 'SIGNATURE_WRONG')
  const both = [publicKeyText(forged), keyText]
  assert.is(await verify({ ...good, signature, publicKeys: both }), keyText)
})

refusals('a changed file does not verify', async () => {
  const error = await failureOf(verify({ ...good, signature, bytes: Buffer.from('what was not') }))
  assert.is(error.code, 'SIGNATURE_WRONG')
  assert.is(error.facts['file'], FILE)
})

refusals('a file moved to another name or repository does not verify', async () => {
  const moved = { ...good, signature, file: FILE.replace('2025', '2026') }
  assert.is(await codeOf(verify(moved)), 'SIGNATURE_WRONG')
  const foreign = { ...good, signature, repository: REPOSITORY.replace('0', '1') }
  assert.is(await codeOf(verify(foreign)), 'SIGNATURE_WRONG')
  const shorter = { ...good, signature, repository: REPOSITORY.slice(0, -1) }
  assert.is(await codeOf(verify(shorter)), 'SIGNATURE_WRONG')
})

refusals('a tampered trusted comment does not verify, though it names the right file', async () => {
  const file = FILE.replace('2025', '2026')
  const elsewhere = await sign({ bytes, key, file, repository: REPOSITORY })
  const tampered = elsewhere.replace('2026', '2025')
  assert.ok(tampered.includes(COMMENT))
  assert.is(await codeOf(verify({ ...good, signature: tampered })), 'SIGNATURE_WRONG')
})

refusals('every change to a signature is detected, but for its untrusted comment', async () => {
  const begin = signature.indexOf('\n') + 1
  for (let index = begin; index < signature.length; index++) {
    const code = await codeOf(verify({ ...good, signature: changed(signature, index) }))
    const isDetected = code === 'SIGNATURE_WRONG' || code === 'SIGNER_UNKNOWN'
    assert.ok(isDetected, `character ${index}: ${code}`)
  }
  const untrusted = changed(signature, 'untrusted comment: '.length)
  assert.is(await verify({ ...good, signature: untrusted }), keyText)
})

refusals('what is no signature is refused', async () => {
  const lines = signature.split('\n')
  const texts = [
    '',
    '\n\n\n',
    lines.slice(0, 3).join('\n'),
    `${signature}\n`,
    `${signature}more`,
    `\n${signature}`,
    signature.replaceAll('\n', '\r\n'),
    signature.padEnd(20_000, '\n'),
    signature.replace('trusted', 'Trusted'),
  ]
  for (const text of texts) {
    assert.is(await codeOf(verify({ ...good, signature: text })), 'SIGNATURE_WRONG')
  }
})

refusals('a name that could break the trusted comment is never signed', async () => {
  for (const file of ['', 'a\tb', 'a\nb', 'a b']) {
    const signing = sign({ bytes, key, file, repository: REPOSITORY })
    assert.match(String(await signing.catch(String)), 'AssertionError')
  }
})

refusals('a secret key file comes back as it was; a damaged one is refused, untold', async () => {
  const text = encodeSigningKey(key)
  assert.equal(await parseSigningKey(text), key)
  const secret = text.split('\n')[1] ?? ''
  const blob = Buffer.from(secret, 'base64')
  const damage = (offset: number): string => {
    const copy = Buffer.from(blob)
    copy[offset] = (copy[offset] ?? 0) ^ 1
    return `untrusted comment: x\n${copy.toString('base64')}\n`
  }
  const texts = [
    '',
    'x',
    secret,
    damage(0),
    damage(2),
    damage(4),
    damage(62),
    damage(100),
    `${text}${secret}`,
  ]
  for (const wrong of texts) {
    const error = await failureOf(parseSigningKey(wrong))
    assert.is(error.code, 'CONFIG_INVALID')
    const said = [error.message, error.hint, error.stack, JSON.stringify(error.facts)].join()
    assert.not.ok(said.includes(secret.slice(90, 120)))
  }
})

refusals('what is no public key is refused', () => {
  const texts = [
    '',
    'RW',
    keyText.slice(0, -1),
    `${keyText}\n${keyText}`,
    changed(keyText, 0),
    ` ${keyText}`,
  ]
  for (const text of texts) {
    assert.throws(
      () => parsePublicKey(text),
      (error: unknown) => {
        return error instanceof BackupError && error.code === 'CONFIG_INVALID'
      },
      JSON.stringify(text),
    )
  }
})

refusals.run()
