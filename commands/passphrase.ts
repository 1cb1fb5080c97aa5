// A passphrase from where the user keeps it: a file, or the terminal. Never from an argument, which
// everybody can see in the list of processes (design invariant 11).
//
// Used by init.ts, keys.ts and whatever reads an identity file. Throws USAGE for a file without one
// and for two entries that differ.

import { readFile, stat } from 'node:fs/promises'
import { BackupError, systemCode } from '../lib/errors.ts'

/** A passphrase is a line of text; a larger file is some other file. */
const MAX_PASSPHRASE_FILE_BYTES = 4096

/** Enough for two slips of the finger. */
const MAX_ENTRIES = 3

/** The first line of the file. */
export async function passphraseFromFile(path: string): Promise<string> {
  const text = await readPassphraseFile(path)
  const [line = ''] = text.split(/\r?\n/)
  if (line !== '') return line
  throw new BackupError('USAGE', `the passphrase file "${path}" begins with an empty line`, {
    hint: 'its first line is the passphrase',
  })
}

/** A new passphrase, asked for twice. */
export async function askNewPassphrase(
  askSecret: (prompt: string) => Promise<string>,
): Promise<string> {
  for (let entry = 1; entry <= MAX_ENTRIES; entry++) {
    const first = await askSecret('Passphrase for the identity: ')
    if (first === '') continue
    if ((await askSecret('The same again: ')) === first) return first
  }
  throw new BackupError('USAGE', 'the passphrase was empty or not the same twice', {
    hint: 'start again, or give it with --passphrase-file FILE',
  })
}

async function readPassphraseFile(path: string): Promise<string> {
  try {
    const { size } = await stat(path)
    if (size <= MAX_PASSPHRASE_FILE_BYTES) return await readFile(path, 'utf8')
  } catch (error) {
    const message = `the passphrase file "${path}" cannot be read (${systemCode(error)})`
    throw new BackupError('USAGE', message, { cause: error })
  }
  throw new BackupError('USAGE', `the passphrase file "${path}" is larger than 4 KiB`)
}
