// A second attempt at what a restore failed at, from another place that may have it.
//
// restore-fallback.ts goes on with another source, recover.ts with another copy of the same
// pieces. The two outcomes become one. Throws what the attempt throws; what was restored stays.

import { lstatSync, rmSync } from 'node:fs'
import { systemCode } from '../errors.ts'
import { setTimes } from '../machine/posix.ts'
import { type RawPath, parentOf, rawPathToBytes } from '../model/raw-path.ts'
import type { RestoreOutcome } from './restore.ts'

/**
 * @param of.paths what `first` failed at and `restore` tries again, below `into`
 * @returns both outcomes as one: of these paths what the second attempt says holds
 */
export async function restoreAgain(
  first: RestoreOutcome,
  of: {
    readonly into: RawPath
    readonly paths: readonly RawPath[]
    readonly restore: () => Promise<RestoreOutcome>
  },
): Promise<RestoreOutcome> {
  const directories = of.paths.map((path) => `${of.into}/${parentOf(path)}`)
  const paths = new Set(of.paths)
  const second = await keepingTimes(directories, async () => {
    const outcome = await of.restore()
    removeSalvage(first, { second: outcome, paths })
    return outcome
  })
  return merge(first, { second, paths })
}

interface Attempt {
  readonly second: RestoreOutcome
  /** What it was made for. */
  readonly paths: ReadonlySet<RawPath>
}

/** Directories that were finished already, and get more files. */
async function keepingTimes<T>(
  directories: readonly RawPath[],
  action: () => Promise<T>,
): Promise<T> {
  const times = [...new Set(directories)].map((path) => {
    return { path, stat: lstatSync(rawPathToBytes(path), { throwIfNoEntry: false, bigint: true }) }
  })
  try {
    return await action()
  } finally {
    for (const { path, stat } of times) {
      if (stat?.isDirectory() === true) setTimesOfOurs(path, stat)
    }
  }
}

/** Somebody else's directory has its time from whoever wrote there last. */
function setTimesOfOurs(path: RawPath, times: { readonly mtimeNs: bigint }): void {
  try {
    setTimes(path, times)
  } catch (error) {
    if (systemCode(error) === undefined) throw error
  }
}

/** What could be saved of files that are whole now. */
function removeSalvage(first: RestoreOutcome, { second, paths }: Attempt): void {
  const lacking = new Set([...second.kept, ...second.failures.map(({ path }) => path)])
  for (const { path, corrupt } of first.failures) {
    if (corrupt === undefined || !paths.has(path) || lacking.has(path)) continue
    rmSync(rawPathToBytes(corrupt), { force: true })
  }
}

function merge(first: RestoreOutcome, { second, paths }: Attempt): RestoreOutcome {
  return {
    written: first.written + second.written,
    same: first.same + second.same,
    bytes: first.bytes + second.bytes,
    deleted: first.deleted,
    kept: [...first.kept, ...second.kept],
    failures: [...first.failures.filter(({ path }) => !paths.has(path)), ...second.failures],
    lost: [...first.lost, ...second.lost],
    aside: [...first.aside, ...second.aside],
  }
}
