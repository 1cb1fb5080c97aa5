// What the built-in set `system` means: which parts of this machine are its sources, and where the
// records lie that are made anew before each collection of it.
//
// config-meaning.ts calls readBuiltinSet. The records are never in staging, for nothing in staging
// is a source. What a plain user could not read whole is no source of theirs: every collection
// would come out incomplete. Throws only through the Fail it is given.

import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import type { ConfigPath } from './config-errors.ts'
import { expandPath, type Fail, normalizePath, type Surroundings } from './config-expand.ts'
import { isBelow } from './source-snapshot/mounts.ts'

/** Where root's records lie. Staging may well be `/var/lib/backup`, so not below that. */
export const SYSTEM_RECORDS = '/var/lib/backup-system'

const CRONTABS = '/var/spool/cron'

/** What makes a machine this machine and no package brings back; data belongs into other sets. */
const ROOT_SOURCES: Readonly<Record<string, readonly string[]>> = {
  linux: ['/etc', '/root', '/usr/local', CRONTABS],
  darwin: ['/etc', '/Library/LaunchAgents', '/Library/LaunchDaemons', '/usr/local'],
}

/** Of root's home: what programs make anew. */
const ROOT_EXCLUSIONS = ['/root/.cache/*']

export interface BuiltinSet {
  /** Absolute. */
  readonly records: string
  readonly sources: readonly string[]
  readonly exclusions: readonly string[]
}

/** What the built-in set adds to a set's own sources and exclusions. */
export function readBuiltinSet(
  records: string | undefined,
  {
    options,
    staging,
    here,
    uid = process.getuid?.() ?? 0,
    isThere = isUsed,
  }: {
    readonly options: Surroundings
    readonly staging: string
    readonly here: (...place: ConfigPath) => Fail
    readonly uid?: number
    readonly isThere?: (path: string) => boolean
  },
): BuiltinSet {
  const path =
    records === undefined
      ? defaultRecords(options, uid)
      : normalizePath(expandPath(records, options, here('records')))
  if (isBelow({ path, directory: staging })) {
    const message = `the records of this machine would lie in staging: ${path}`
    here('records')(message, 'set records to a directory outside staging')
  }
  const own = uid === 0 ? (ROOT_SOURCES[process.platform] ?? ['/etc']) : []
  return {
    records: path,
    sources: [...own.filter((source) => source === '/etc' || isThere(source)), path],
    exclusions: uid === 0 ? ROOT_EXCLUSIONS : [],
  }
}

/** A machine without crontabs has no directory of them, or an empty one, and lacks nothing. */
function isUsed(path: string): boolean {
  if (path !== CRONTABS) return existsSync(path)
  return existsSync(path) && readdirSync(path).length > 0
}

function defaultRecords({ environment, home }: Surroundings, uid: number): string {
  if (uid === 0) return SYSTEM_RECORDS
  return join(environment['XDG_STATE_HOME'] || join(home, '.local/state'), 'backup-system')
}
