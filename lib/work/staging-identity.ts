// Whether staging is the directory that it was: where its disk is not mounted, an empty one lies in
// its place, and a backup begun anew there fills the disk below and knows no history.
//
// A random id lies in staging (`.id`) and beside the configuration (`<configuration>.staging`), as
// a repository has one. Where the configuration's directory cannot be written nothing is
// remembered. Throws STAGING_FAILED, and what prepareStaging throws.

import { Buffer } from 'node:buffer'
import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { BackupError, systemCode } from '../errors.ts'
import { writeDurably } from '../machine/durable-file.ts'
import { rawPathFromText } from '../model/raw-path.ts'
import { prepareStaging, stagingError } from './staging.ts'

interface KnownStaging {
  readonly path: string
  readonly id: string
}

/**
 * Makes staging where it was never used with this configuration, and refuses another one in its
 * place. `configuration` is the file's path.
 * @throws BackupError STAGING_FAILED, with nothing written
 */
export function claimStaging({
  configuration,
  staging,
}: {
  configuration: string
  staging: string
}): void {
  const file = `${configuration}.staging`
  const known = readKnown(file)
  const found = readText(`${staging}/.id`)
  if (known?.path === staging && known.id !== found) {
    const what = found === undefined ? 'empty or not there' : 'another one'
    const message = `staging "${staging}" is not the one that was used before: it is ${what}`
    throw new BackupError('STAGING_FAILED', message, {
      hint: `mount the disk that holds it; to begin anew, remove "${file}"`,
      retry: 'later',
    })
  }
  prepareStaging(staging)
  const id = found ?? randomUUID()
  if (found === undefined) {
    try {
      write(`${staging}/.id`, id)
    } catch (error) {
      throw stagingError({ error, staging, doing: 'written' })
    }
  }
  if (known?.path === staging) return
  try {
    write(file, JSON.stringify({ path: staging, id }))
  } catch (error) {
    // A configuration that we may only read is no reason not to back up.
    if (systemCode(error) === undefined) throw error
  }
}

function readKnown(file: string): KnownStaging | undefined {
  try {
    const known = JSON.parse(readText(file) ?? 'null') as Partial<KnownStaging> | null
    const { path, id } = known ?? {}
    return typeof path === 'string' && typeof id === 'string' ? { path, id } : undefined
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
}

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trim()
  } catch (error) {
    if (systemCode(error) === undefined) throw error
    return undefined
  }
}

function write(path: string, text: string): void {
  const bytes = Buffer.from(`${text}\n`)
  writeDurably({ path: rawPathFromText(path), bytes, mode: 0o600, replace: true })
}
