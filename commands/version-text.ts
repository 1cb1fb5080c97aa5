// How versions are said: runs of generations, where they can be had, what a path was.
//
// Shared by find.ts, why.ts and diff.ts, for people and as `--json`. Throws nothing.

import { formatSize } from '../lib/model/amount.ts'
import type { EntryType } from '../lib/model/entry.ts'
import { displayText } from '../lib/model/raw-path.ts'
import { formatStamp } from '../lib/model/stamp.ts'
import { parseVersion, type Version } from '../lib/model/version-index.ts'
import { type Holder, holdersOf } from '../lib/work/coverage.ts'
import type { VersionRun } from '../lib/work/version-runs.ts'

const TYPE_NAMES: Readonly<Record<EntryType, string>> = {
  file: 'file',
  directory: 'directory',
  symlink: 'symlink',
  link: 'hard link',
  fifo: 'special file',
  char: 'special file',
  block: 'special file',
  socket: 'special file',
}

/** `file, 12 KiB, changed 2026-03-01T091500Z`. */
export function versionText({ type, sizeBytes, mtimeNs }: Version): string {
  const size = sizeBytes === undefined ? '' : `, ${formatSize(sizeBytes)}`
  return `${TYPE_NAMES[type]}${size}, changed ${formatStamp(Number(mtimeNs / 1_000_000n))}`
}

/** `same in 2026-03-01T020000Z–2026-03-03T020000Z (3): file, 12 KiB, changed …`. */
export function runText({ state, newest, oldest, count, version, why }: VersionRun): string {
  const where = count === 1 ? newest : `${oldest}–${newest} (${count})`
  switch (state) {
    case 'held': {
      const text = version === undefined ? '' : `: ${versionText(parseVersion(version))}`
      return `${count === 1 ? 'in' : 'same in'} ${where}${text}`
    }
    case 'absent':
      return `not in ${where}`
    case 'missing':
      return `missing in ${where}: ${displayText(why ?? '')}`
    case 'damaged':
      return `not known of ${where}: the catalog is damaged`
  }
}

/** `staging, blue (not there now), bucket`. */
export function holdersText(holders: readonly Holder[]): string {
  return holders.map(holderText).join(', ')
}

export function holderText({ name, isThere, target }: Holder): string {
  if (isThere !== false) return name
  const isOurs = target !== undefined || name === 'staging'
  return `${name} (${isOurs ? 'not there now' : 'no target has it any more'})`
}

/** Of runs: where each can be had, as text; the same places come again and again. */
export function holderReader(
  holders: readonly Holder[],
  set: string,
): (run: VersionRun) => readonly Holder[] {
  const known = new Map<string, readonly Holder[]>()
  return ({ stamps, oldest, newest, count }) => {
    const key = `${oldest}/${newest}/${count}`
    const found = known.get(key) ?? holdersOf(holders, { set, stamps })
    known.set(key, found)
    return found
  }
}

/** A run for `--json`. */
export function runFacts(run: VersionRun, holders: readonly Holder[]): object {
  const { state, newest, oldest, count, version, why } = run
  const at = holders.map(({ name, isThere }) => ({ name, there: isThere }))
  const facts = { state, newest, oldest, count, why }
  return version === undefined ? facts : { ...facts, ...versionFacts(parseVersion(version)), at }
}

/** A version for `--json`. */
export function versionFacts({ type, sizeBytes, mtimeNs, mode, uid, gid }: Version): object {
  return { type, sizeBytes, mtimeMs: Number(mtimeNs / 1_000_000n), mode, uid, gid }
}
