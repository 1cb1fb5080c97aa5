// The directory that is restored into: where it may be, and making it.
//
// Called by restore-run.ts and restore-fallback.ts. Throws USAGE in staging or on a target,
// RESTORE_FAILED where it cannot be made.

import { existsSync, mkdirSync, readdirSync, rmdirSync } from 'node:fs'
import { dirname } from 'node:path'
import { BackupError, systemCode } from '../lib/errors.ts'
import type { Configuration } from '../lib/machine/config.ts'
import { type RawPath, rawPathFromText } from '../lib/model/raw-path.ts'

/** As plans have it: without a trailing slash; empty for the original place. */
export function placeOf(into: string | undefined): RawPath {
  return into === undefined || into === '/' ? '' : rawPathFromText(into)
}

/** @throws BackupError USAGE below staging or a target, where nothing may be changed */
export function refuseOurOwn(into: string, { staging, targets }: Configuration): void {
  const directories = targets.flatMap((one) => (one.kind === 'directory' ? [one.path] : []))
  const ours = [staging, ...directories]
  const place = ours.find((one) => into === one || into.startsWith(`${one}/`))
  if (place === undefined) return
  throw new BackupError('USAGE', `${into} is in ${place}, where nothing may be changed`, {
    hint: 'restore into a directory elsewhere; nothing was made',
  })
}

/** One by one: Node's recursive mkdir never returns below /proc. */
function makeEach(path: string, made: string[]): void {
  if (existsSync(path)) return
  makeEach(dirname(path), made)
  mkdirSync(path)
  made.push(path)
}

/** @param made gets what had to be made */
export function makeDirectory(path: string, made: string[]): RawPath {
  try {
    makeEach(path, made)
    readdirSync(path)
    return placeOf(path)
  } catch (cause) {
    const code = systemCode(cause)
    if (code === undefined) throw cause
    throw new BackupError('RESTORE_FAILED', `${path} cannot be a directory to restore into`, {
      hint: 'name a directory that you may write, or that does not exist yet; nothing was restored',
      cause,
    })
  }
}

/** Directories that nothing came into. */
export function removeEmpty(made: readonly string[]): void {
  for (const path of made.toReversed()) {
    try {
      rmdirSync(path)
    } catch (error) {
      if (systemCode(error) === undefined) throw error
    }
  }
}
