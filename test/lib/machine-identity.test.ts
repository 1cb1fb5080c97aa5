// lib/machine/identity.ts: what it writes is opened by stock age and argon2; nothing is overwritten
// or given away.

import { spawnSync } from 'node:child_process'
import {
  mkdtempSync,
  readFileSync,
  readdirSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { encryptAge, encryptWithPassphrase } from '../../lib/format/age.ts'
import { generateIdentity, recipientOf } from '../../lib/format/age-keys.ts'
import { generateSigningKey, publicKeyText } from '../../lib/format/minisign.ts'
import {
  createIdentityFile,
  generatePassphrase,
  readIdentityFile,
} from '../../lib/machine/identity.ts'
import * as assert from '../helpers/assert.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const CREATED = '2025-03-01T02:00:00Z'
const PASSPHRASE = 'abcde-fghij-kmnpq'

const identity = generateIdentity()
const signingKeys = [
  { machine: 'den', publicKey: publicKeyText(await generateSigningKey()) },
  { machine: 'study-2', publicKey: publicKeyText(await generateSigningKey()) },
]
const made = { identity, signingKeys, created: CREATED }

const root = tempDirectory()
const guardedPath = join(newDirectory(), 'identity.age')
await createIdentityFile({ path: guardedPath, ...made, passphrase: PASSPHRASE })

function newDirectory(): string {
  return mkdtempSync(join(root, 'x'))
}

async function failureOf(promise: Promise<unknown>): Promise<BackupError> {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  if (!(error instanceof BackupError)) throw error ?? new Error('it did not fail')
  const { message, hint, facts, stack, cause } = error
  const said = JSON.stringify([message, hint, facts, stack, String(cause)])
  for (const secret of [identity.slice(16, 40), PASSPHRASE]) {
    assert.not.ok(said.includes(secret), message)
  }
  return error
}

function never(): string {
  throw new Error('it asked for a passphrase')
}

function shell(script: string, input?: string): string {
  const result = spawnSync('sh', ['-euc', script], { encoding: 'utf8', input: input ?? '' })
  if (result.error !== undefined) throw result.error
  assert.is(result.status, 0, `${result.stdout}${result.stderr}`)
  return result.stdout
}

/** What stock age gives. It reads a passphrase from a terminal only: `script` makes one. */
function ageOpens({ path, passphrase }: { path: string; passphrase: string }): string {
  const out = join(newDirectory(), 'out')
  const typescript = join(newDirectory(), 'typescript')
  const command = `script -qec "age -d -o '${out}' '${path}'" '${typescript}'`
  shell(`${command} > '${typescript}.out'`, `${passphrase}\n`)
  return readFileSync(out, 'utf8')
}

const plain = suite('plain identity files')

plain('what is written is read again, and no passphrase is asked for', async () => {
  const path = join(newDirectory(), 'identity.txt')
  await createIdentityFile({ path, ...made })
  const read = await readIdentityFile({ path, askPassphrase: never })
  assert.equal(read, { identities: [identity], signingKeys })
  assert.is(statSync(path).mode & 0o777, 0o600)
  assert.is(readFileSync(path, 'utf8').split('\n')[1], `# public key: ${recipientOf(identity)}`)
})

plain('stock age takes the file as its identity', async () => {
  const path = join(newDirectory(), 'identity.txt')
  await createIdentityFile({ path, ...made })
  writeFileSync(`${path}.age`, encryptAge(Buffer.from('opened'), [recipientOf(identity)]))
  assert.is(shell(`age -d -i '${path}' '${path}.age'`), 'opened')
})

plain('a file of age-keygen is read', async () => {
  const path = join(newDirectory(), 'identity.txt')
  shell(`age-keygen -o '${path}' 2>&1`)
  const read = await readIdentityFile({ path, askPassphrase: never })
  assert.is(read.identities.length, 1)
  assert.equal(read.signingKeys, [])
})

plain('nothing is overwritten, a dangling link included, and nothing is left behind', async () => {
  const directory = newDirectory()
  const path = join(directory, 'identity.txt')
  const link = join(directory, 'link')
  writeFileSync(path, 'mine')
  writeFileSync(join(directory, 'other.salt'), 'mine')
  symlinkSync(join(directory, 'nowhere'), link)
  for (const taken of [path, link]) {
    assert.is((await failureOf(createIdentityFile({ path: taken, ...made }))).code, 'ALREADY_THERE')
    const asProtected = createIdentityFile({ path: taken, ...made, passphrase: PASSPHRASE })
    assert.is((await failureOf(asProtected)).code, 'ALREADY_THERE')
  }
  const other = join(directory, 'other')
  const salted = createIdentityFile({ path: other, ...made, passphrase: PASSPHRASE })
  assert.is((await failureOf(salted)).code, 'ALREADY_THERE')
  assert.is(readFileSync(path, 'utf8'), 'mine')
  assert.equal(readdirSync(directory).sort(), ['identity.txt', 'link', 'other.salt'])
})

plain('a file in a directory that is not there is refused', async () => {
  const path = join(newDirectory(), 'absent', 'identity.txt')
  assert.is((await failureOf(createIdentityFile({ path, ...made }))).code, 'WRITE_FAILED')
})

plain('what holds no identity is refused, by kind and with a hint', async () => {
  const directory = newDirectory()
  const files: readonly (readonly [string | Buffer, string])[] = [
    ['', 'IDENTITY_ABSENT'],
    ['# only a comment\n\n', 'IDENTITY_ABSENT'],
    [`${identity}\n${identity.slice(0, -1)}\n`, 'IDENTITY_WRONG'],
    [`${identity}x\n`, 'IDENTITY_WRONG'],
    [`${recipientOf(identity)}\n`, 'IDENTITY_WRONG'],
    [`# signing key of den: RWnonsense\n${identity}\n`, 'IDENTITY_WRONG'],
    ['-----BEGIN AGE ENCRYPTED FILE-----\n', 'IDENTITY_WRONG'],
    [Buffer.alloc((1 << 20) + 1, 10), 'IDENTITY_WRONG'],
  ]
  for (const [index, [content, code]] of files.entries()) {
    const path = join(directory, String(index))
    writeFileSync(path, content)
    const error = await failureOf(readIdentityFile({ path, askPassphrase: never }))
    assert.is(error.code, code, `file ${index}`)
  }
  for (const path of [join(directory, 'absent'), directory]) {
    const error = await failureOf(readIdentityFile({ path, askPassphrase: never }))
    assert.is(error.code, 'IDENTITY_ABSENT')
    assert.ok(error.hint !== undefined)
  }
})

plain('a line that is refused is named by its number', async () => {
  const path = join(newDirectory(), 'identity.txt')
  writeFileSync(path, `# c\n${identity}\r\n\nrubbish\n`)
  const error = await failureOf(readIdentityFile({ path, askPassphrase: never }))
  assert.match(error.message, /line 4: /)
})

plain.run()

const guarded = suite('protected identity files')

guarded('the passphrase opens it, and neither file holds a secret in clear', async () => {
  const askPassphrase = (): Promise<string> => Promise.resolve(PASSPHRASE)
  const read = await readIdentityFile({ path: guardedPath, askPassphrase })
  assert.equal(read, { identities: [identity], signingKeys })
  for (const path of [guardedPath, `${guardedPath}.salt`]) {
    assert.is(statSync(path).mode & 0o777, 0o600)
    const text = readFileSync(path, 'latin1')
    for (const secret of [identity, PASSPHRASE, recipientOf(identity)]) {
      assert.not.ok(text.includes(secret))
    }
  }
})

guarded('stock argon2 and age open it, by the recipe in its salt file', () => {
  const recipe = readFileSync(`${guardedPath}.salt`, 'utf8')
  const command = /^printf %s "\$PASSPHRASE" \| argon2 .*$/m.exec(recipe)?.[0] ?? ''
  const stretched = shell(`IFS= read -r PASSPHRASE; ${command}`, `${PASSPHRASE}\n`).trim()
  assert.match(stretched, /^[0-9a-f]{64}$/)
  assert.match(ageOpens({ path: guardedPath, passphrase: stretched }), identity)
  // Every line is a comment or a command.
  shell(`sh -n '${guardedPath}.salt'`)
})

guarded('a wrong passphrase is told from a damaged file', async () => {
  const wrong = readIdentityFile({ path: guardedPath, askPassphrase: () => 'abcde-fghij-kmnpr' })
  assert.is((await failureOf(wrong)).code, 'PASSPHRASE_WRONG')
  const path = join(newDirectory(), 'identity.age')
  const bytes = readFileSync(guardedPath)
  bytes[bytes.length - 1] = (bytes.at(-1) ?? 0) ^ 1
  writeFileSync(path, bytes)
  writeFileSync(`${path}.salt`, readFileSync(`${guardedPath}.salt`))
  const damaged = readIdentityFile({ path, askPassphrase: () => PASSPHRASE })
  assert.is((await failureOf(damaged)).code, 'AGE_PAYLOAD')
})

guarded('without the salt the error says so, and with a damaged one too', async () => {
  const path = join(newDirectory(), 'identity.age')
  writeFileSync(path, readFileSync(guardedPath))
  const absent = await failureOf(readIdentityFile({ path, askPassphrase: () => PASSPHRASE }))
  assert.is(absent.code, 'PASSPHRASE_WRONG')
  assert.match(absent.hint ?? '', /\.salt is not there/)
  writeFileSync(`${path}.salt`, 'argon2 short -id -t 3 -m 18 -p 1 -l 32 -r')
  const damaged = readIdentityFile({ path, askPassphrase: () => PASSPHRASE })
  assert.is((await failureOf(damaged)).code, 'IDENTITY_WRONG')
})

guarded('a file that age itself protected opens with its passphrase', async () => {
  const path = join(newDirectory(), 'identity.age')
  writeFileSync(path, encryptWithPassphrase(Buffer.from(`${identity}\n`), PASSPHRASE, { logN: 4 }))
  const read = await readIdentityFile({ path, askPassphrase: () => PASSPHRASE })
  assert.equal(read.identities, [identity])
})

guarded('a file that was encrypted for a recipient is not asked to be an identity', async () => {
  const path = join(newDirectory(), 'identity.age')
  writeFileSync(path, encryptAge(Buffer.from(identity), [recipientOf(identity)]))
  const read = readIdentityFile({ path, askPassphrase: () => PASSPHRASE })
  assert.is((await failureOf(read)).code, 'IDENTITY_WRONG')
})

guarded('the longest passphrase that argon2 takes works, and others are refused', async () => {
  const directory = newDirectory()
  const path = join(directory, 'identity.age')
  for (const passphrase of ['', 'a\nb', 'a\0b', 'x'.repeat(128), 'é'.repeat(64)]) {
    assert.is((await failureOf(createIdentityFile({ path, ...made, passphrase }))).code, 'USAGE')
  }
  assert.equal(readdirSync(directory), [])
  const passphrase = `${'é'.repeat(63)}x`
  await createIdentityFile({ path, ...made, passphrase })
  const salt = /argon2 (\S+)/.exec(readFileSync(`${path}.salt`, 'utf8'))?.[1] ?? ''
  const stretched = shell(`argon2 ${salt} -id -t 3 -m 18 -p 1 -l 32 -r`, passphrase).trim()
  const bytes = readFileSync(path)
  const copy = join(directory, 'without-salt')
  writeFileSync(copy, bytes)
  const read = await readIdentityFile({ path: copy, askPassphrase: () => stretched })
  assert.equal(read.identities, [identity])
})

guarded('generated passphrases have 125 bits of characters that cannot be confused', () => {
  const seen = new Set<string>()
  const characters = new Set<string>()
  for (let i = 0; i < 500; i++) {
    const passphrase = generatePassphrase()
    assert.match(passphrase, /^[a-z2-9]{5}(-[a-z2-9]{5}){4}$/)
    seen.add(passphrase)
    for (const character of passphrase) characters.add(character)
  }
  assert.is(seen.size, 500)
  assert.is(characters.size, 33)
  for (const character of 'lo01') assert.not.ok(characters.has(character))
})

guarded.run()
