// Identity files (docs/format.md §11): the age identity that a person keeps off the machine.
//
// createIdentityFile and readIdentityFile are inverses. Comments in the file hold each machine's
// public signing key, so that whoever restores trusts those and not what a drive says. Under a
// passphrase it is an age file whose own passphrase is argon2id of it; the salt and the recipe for
// stock `argon2` and `age` lie beside it in `<file>.salt`.
//
// Nothing is overwritten, modes are 0600, the salt is written before what needs it, and no error
// holds a secret. Throws ALREADY_THERE, WRITE_FAILED, USAGE (writing), IDENTITY_ABSENT,
// IDENTITY_WRONG, PASSPHRASE_WRONG, and AGE_HEADER or AGE_PAYLOAD when the file is damaged.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, open, rm } from 'node:fs/promises'
import { BackupError, systemCode } from '../errors.ts'
import { decryptWithPassphrase, encryptWithPassphrase } from '../format/age.ts'
import { parseIdentity, recipientOf } from '../format/age-keys.ts'
import { parsePublicKey } from '../format/minisign.ts'
import { isValidName } from '../model/names.ts'
import { type RawPath, displayPath, parentOf, rawPathToBytes } from '../model/raw-path.ts'
import { argon2idApart } from './stretch.ts'
import { syncDirectory } from './durable-file.ts'

/** Room for thousands of machines; what is longer is another file. */
export const MAX_IDENTITY_FILE_BYTES = 1 << 20

/** The `argon2` program takes 127 bytes; a longer passphrase could not be recovered without us. */
export const MAX_PASSPHRASE_BYTES = 127

/**
 * argon2id has done the stretching; this is what a stock reader still has to spend: 32 MiB, a tenth
 * of a second.
 */
const PROTECTED_LOG_N = 15

/** Lower case and digits without `l`, `o`, `0`, `1`: 32 characters, five bits each. */
const ALPHABET = 'abcdefghijkmnpqrstuvwxyz23456789'
const PASSPHRASE_GROUPS = 5
const GROUP_CHARACTERS = 5
const SALT_CHARACTERS = 16

const AGE_MAGIC = 'age-encryption.org/v1\n'
const ARMOR_MAGIC = '-----BEGIN AGE ENCRYPTED FILE-----'
const SIGNING_KEY_LINE = /^# signing key of ([^ :]+): (\S+)$/
const SALT_LINE = /argon2 ([\x21-\x7e]{16}) -id -t 3 -m 18 -p 1 -l 32 -r(?:$|\s)/m

export interface MachineKey {
  readonly machine: string
  /** `RW…`, minisign's public key. */
  readonly publicKey: string
}

export interface IdentityFile {
  /** Secrets: `AGE-SECRET-KEY-1…`, at least one. */
  readonly identities: string[]
  readonly signingKeys: MachineKey[]
}

/**
 * A new passphrase of 125 bits from the operating system's generator: five groups of five
 * characters.
 */
export function generatePassphrase(): string {
  const groups = Array.from({ length: PASSPHRASE_GROUPS }, () => randomCharacters(GROUP_CHARACTERS))
  return groups.join('-')
}

/**
 * Writes an identity file, and `<path>.salt` when there is a passphrase. `created` is the text of a
 * date.
 * Throws ALREADY_THERE when either file exists, USAGE for a passphrase that the recipe could not
 * take.
 */
export async function createIdentityFile({
  path,
  identity,
  signingKeys,
  passphrase,
  created,
}: {
  path: RawPath
  identity: string
  signingKeys: readonly MachineKey[]
  passphrase?: string | undefined
  created: string
}): Promise<void> {
  const text = encodeIdentity({ identity, signingKeys, created })
  if (passphrase === undefined) return writeNew(path, Buffer.from(text))

  checkPassphrase(passphrase)
  const saltPath = `${path}.salt`
  const salt = randomCharacters(SALT_CHARACTERS)
  const stretched = await stretch({ passphrase, salt })
  const sealed = encryptWithPassphrase(Buffer.from(text), stretched, { logN: PROTECTED_LOG_N })
  await writeNew(saltPath, Buffer.from(recipe(salt)))
  try {
    await writeNew(path, sealed)
  } catch (error) {
    await rm(rawPathToBytes(saltPath), { force: true })
    throw error
  }
}

/**
 * What an identity file holds. `askPassphrase` is called once, and only for a protected file. A
 * passphrase that stock `age -p` was given works too: without `<path>.salt` it is used as it is.
 * Throws IDENTITY_ABSENT, IDENTITY_WRONG, PASSPHRASE_WRONG; AGE_HEADER or AGE_PAYLOAD when the file
 * is damaged.
 */
export async function readIdentityFile({
  path,
  askPassphrase,
}: {
  path: RawPath
  askPassphrase: () => Promise<string> | string
}): Promise<IdentityFile> {
  const bytes = await readSmall(path)
  if (bytes === undefined) {
    const message = `there is no identity file ${displayPath(path)}`
    const hint = 'give the path of the identity file, or copy it from where you keep it'
    throw new BackupError('IDENTITY_ABSENT', message, { hint })
  }
  const start = bytes.toString('latin1', 0, ARMOR_MAGIC.length)
  if (start === ARMOR_MAGIC) {
    const hint = 'armored files are not read; decrypt it first: age -d -o PLAIN FILE'
    throw new BackupError('IDENTITY_WRONG', `${displayPath(path)} is armored`, { hint })
  }
  if (!start.startsWith(AGE_MAGIC)) return parseIdentityText(path, bytes.toString('utf8'))
  const saltText = await readSmall(`${path}.salt`)
  const passphrase = await askPassphrase()
  const opened = await openProtected({ path, bytes, saltText, passphrase })
  return parseIdentityText(path, opened.toString('utf8'))
}

function encodeIdentity({
  identity,
  signingKeys,
  created,
}: {
  identity: string
  signingKeys: readonly MachineKey[]
  created: string
}): string {
  assert.match(created, /^[\x20-\x7e]+$/, 'a date')
  const lines = [`# created: ${created}`, `# public key: ${recipientOf(identity)}`]
  for (const { machine, publicKey } of signingKeys) {
    assert.ok(isValidName(machine), 'a machine name')
    parsePublicKey(publicKey)
    lines.push(`# signing key of ${machine}: ${publicKey}`)
  }
  return [...lines, identity, ''].join('\n')
}

function parseIdentityText(path: RawPath, text: string): IdentityFile {
  const identities: string[] = []
  const signingKeys: MachineKey[] = []
  for (const [index, rawLine] of text.split('\n').entries()) {
    const line = rawLine.trim()
    if (line === '') continue
    if (line.startsWith('#')) {
      const [, machine, publicKey] = SIGNING_KEY_LINE.exec(line) ?? []
      if (machine === undefined || publicKey === undefined) continue
      checkLine(path, index, () => parsePublicKey(publicKey))
      signingKeys.push({ machine, publicKey })
      continue
    }
    checkLine(path, index, () => parseIdentity(line))
    identities.push(line)
  }
  if (identities.length > 0) return { identities, signingKeys }
  const hint = 'it should have a line that begins AGE-SECRET-KEY-1'
  throw new BackupError('IDENTITY_ABSENT', `${displayPath(path)} holds no identity`, { hint })
}

/** Says which line of the file a parser refused, and why; never what the line holds. */
function checkLine(path: RawPath, index: number, parse: () => unknown): void {
  try {
    parse()
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    const message = `${displayPath(path)}, line ${index + 1}: ${error.message}`
    const details = error.hint === undefined ? {} : { hint: error.hint }
    throw new BackupError('IDENTITY_WRONG', message, details)
  }
}

async function openProtected({
  path,
  bytes,
  saltText,
  passphrase,
}: {
  path: RawPath
  bytes: Buffer
  saltText: Buffer | undefined
  passphrase: string
}): Promise<Buffer> {
  const name = displayPath(path)
  const salt = SALT_LINE.exec(saltText?.toString('latin1') ?? '')?.[1]
  if (saltText !== undefined && salt === undefined) {
    const hint = 'it should hold a line with the argon2 command; take it from another copy'
    throw new BackupError('IDENTITY_WRONG', `${name}.salt holds no salt`, { hint })
  }
  const stretched = salt === undefined ? passphrase : await stretch({ passphrase, salt })
  try {
    return decryptWithPassphrase(bytes, stretched)
  } catch (error) {
    if (!(error instanceof BackupError) || error.code !== 'PASSPHRASE_WRONG') throw error
    const hint =
      salt === undefined
        ? `${name}.salt is not there: put it beside the file, for the passphrase may need it`
        : 'mind the dashes; it was shown once, when the identity was made'
    throw new BackupError('PASSPHRASE_WRONG', `the passphrase does not open ${name}`, { hint })
  }
}

function checkPassphrase(passphrase: string): void {
  const sizeBytes = Buffer.byteLength(passphrase)
  const isTypeable = sizeBytes > 0 && !/[\x00-\x1f\x7f]/.test(passphrase)
  if (isTypeable && sizeBytes <= MAX_PASSPHRASE_BYTES) return
  const hint = `use 1 to ${MAX_PASSPHRASE_BYTES} bytes without control characters`
  throw new BackupError('USAGE', 'this passphrase cannot be used', { hint })
}

async function stretch({
  passphrase,
  salt,
}: {
  passphrase: string
  salt: string
}): Promise<string> {
  const key = await argon2idApart({ passphrase, salt: Buffer.from(salt, 'latin1') })
  return key.toString('hex')
}

function recipe(salt: string): string {
  return [
    '# Keep this beside the identity file: without the salt in it, the passphrase opens nothing.',
    '# It is no secret. To open the identity file with stock tools, first stretch the passphrase:',
    '',
    'printf "passphrase: "; stty -echo; IFS= read -r PASSPHRASE; stty echo; echo',
    `printf %s "$PASSPHRASE" | argon2 ${salt} -id -t 3 -m 18 -p 1 -l 32 -r`,
    '',
    '# This prints 64 hex digits. They are the passphrase that age asks for:',
    '',
    '# age -d -o identity.txt FILE',
    '',
  ].join('\n')
}

/** 32 divides 256, so every character is equally likely. */
function randomCharacters(count: number): string {
  return Array.from(randomBytes(count), (byte) => ALPHABET.charAt(byte % ALPHABET.length)).join('')
}

/**
 * Creates, writes, syncs; takes away what it could not finish. Unlike durable-file.ts it creates
 * the final name exclusively: no other program's file of that name can be lost, at any moment.
 */
async function writeNew(path: RawPath, bytes: Buffer): Promise<void> {
  let file: FileHandle
  try {
    file = await open(rawPathToBytes(path), 'wx', 0o600)
  } catch (error) {
    throw systemCode(error) === 'EEXIST' ? alreadyThere(path) : unwritable(path, error)
  }
  try {
    try {
      // The mode given to open() passes through the umask, which can only take bits away.
      await file.chmod(0o600).catch(() => {})
      await file.writeFile(bytes)
      await file.sync()
    } finally {
      await file.close()
    }
    syncDirectory(parentOf(path) || (path.startsWith('/') ? '/' : '.'))
  } catch (error) {
    await rm(rawPathToBytes(path), { force: true })
    throw unwritable(path, error)
  }
}

/** The whole of a small file; undefined when there is none. */
async function readSmall(path: RawPath): Promise<Buffer | undefined> {
  const flags = constants.O_RDONLY | constants.O_NONBLOCK
  const file = await open(rawPathToBytes(path), flags).catch((error: unknown) => {
    if (systemCode(error) === 'ENOENT') return undefined
    throw unreadable(path, error)
  })
  if (file === undefined) return undefined
  try {
    const { size } = await file.stat()
    if (size > MAX_IDENTITY_FILE_BYTES) {
      const message = `${displayPath(path)} is too long to be an identity file`
      throw new BackupError('IDENTITY_WRONG', message)
    }
    return await file.readFile()
  } catch (error) {
    throw error instanceof BackupError ? error : unreadable(path, error)
  } finally {
    await file.close()
  }
}

function alreadyThere(path: RawPath): BackupError {
  const hint = 'choose another path; an identity is never overwritten'
  return new BackupError('ALREADY_THERE', `${displayPath(path)} is already there`, { hint })
}

function unreadable(path: RawPath, cause: unknown): BackupError {
  const hint = 'check the path and its permissions'
  return new BackupError('IDENTITY_ABSENT', `cannot read ${displayPath(path)}`, { hint, cause })
}

function unwritable(path: RawPath, cause: unknown): BackupError {
  const hint = 'check that the directory is there and can be written'
  return new BackupError('WRITE_FAILED', `cannot write ${displayPath(path)}`, { hint, cause })
}
