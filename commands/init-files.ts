// The files that `backup init` makes, all or none.
//
// The configuration comes last: once it is there, all it names is there too. Whatever a failure
// leaves half-made is taken away again, directories included, and nothing else is touched. Called
// by init.ts, which has checked that none of the files exists. Throws ALREADY_THERE where one came
// up meanwhile, WRITE_FAILED where one cannot be made.

import { Buffer } from 'node:buffer'
import { mkdir, rm, rmdir } from 'node:fs/promises'
import { dirname } from 'node:path'
import { BackupError, systemCode } from '../lib/errors.ts'
import { encodePublicKey, encodeSigningKey, publicKeyText } from '../lib/format/minisign.ts'
import type { SigningKey } from '../lib/format/minisign.ts'
import { writeDurably } from '../lib/machine/durable-file.ts'
import { createIdentityFile } from '../lib/machine/identity.ts'
import { rawPathFromText } from '../lib/model/raw-path.ts'

export interface Paths {
  readonly config: string
  readonly signingKey: string
  readonly signingPublicKey: string
  readonly identity: string
}

export interface Keys {
  /** A secret. */
  readonly identity: string
  /** A secret. */
  readonly signingKey: SigningKey
}

export async function makeFiles({
  paths,
  keys,
  content,
  passphrase,
  created,
}: {
  readonly paths: Paths
  readonly keys: Keys
  readonly content: { readonly machine: string; readonly text: string }
  readonly passphrase: string | undefined
  readonly created: string
}): Promise<void> {
  const { identity, signingKey } = keys
  const undo: (() => Promise<void>)[] = []
  const write = async (path: string, text: string, mode: number) => {
    await makeDirectory(dirname(path), undo)
    writeNew({ path, text, mode })
    undo.push(() => rm(path, { force: true }))
  }
  try {
    await write(paths.signingKey, encodeSigningKey(signingKey), 0o600)
    await write(paths.signingPublicKey, encodePublicKey(signingKey), 0o644)
    await makeDirectory(dirname(paths.identity), undo)
    const signingKeys = [{ machine: content.machine, publicKey: publicKeyText(signingKey) }]
    const path = rawPathFromText(paths.identity)
    await createIdentityFile({ path, identity, signingKeys, passphrase, created })
    undo.push(() => rm(paths.identity, { force: true }))
    if (passphrase !== undefined) undo.push(() => rm(`${paths.identity}.salt`, { force: true }))
    await write(paths.config, content.text, 0o600)
  } catch (error) {
    // What cannot be undone is no reason to hide why it had to be.
    for (const step of undo.reverse()) await step().catch(() => {})
    throw error
  }
}

export function cannotMake(path: string, cause: unknown): BackupError {
  const why = systemCode(cause) ?? 'unknown'
  return new BackupError('WRITE_FAILED', `"${path}" cannot be made (${why})`, {
    hint: 'nothing was changed; check the directory and its permissions',
    cause,
  })
}

/** Makes the directories that are missing, for their owner alone. */
async function makeDirectory(directory: string, undo: (() => Promise<void>)[]): Promise<void> {
  let first: string | undefined
  try {
    first = await mkdir(directory, { recursive: true, mode: 0o700 })
  } catch (error) {
    throw cannotMake(directory, error)
  }
  if (first === undefined) return
  undo.push(async () => {
    for (let path = directory; path.startsWith(first); path = dirname(path)) await rmdir(path)
  })
}

function writeNew({ path, text, mode }: { path: string; text: string; mode: number }): void {
  try {
    writeDurably({ path: rawPathFromText(path), bytes: Buffer.from(text), mode })
  } catch (error) {
    throw error instanceof BackupError ? error : cannotMake(path, error)
  }
}
