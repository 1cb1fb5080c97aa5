// Which exports somebody means: `--set`, `--date` and the machine, resolved against what a
// repository has.
//
// Used by the commands that read repositories. Throws NOTHING_FOUND where nothing matches, USAGE
// where a date is ambiguous.

import { BackupError } from '../errors.ts'
import { matchStamps } from '../model/stamp.ts'
import {
  type ExportPlace,
  type Repository,
  type StampDirectory,
  exportsOf,
  listMachines,
  listStamps,
} from './repository.ts'

export interface ExportQuery {
  readonly machine: string
  /** Undefined: every set. */
  readonly set: string | undefined
  /** A prefix of a stamp, `latest`, or undefined. */
  readonly date: string | undefined
}

/**
 * The exports of a machine, oldest first in each set. @throws BackupError NOTHING_FOUND when it has
 * none here
 */
export async function findExports(
  repository: Repository,
  { machine, set }: Pick<ExportQuery, 'machine' | 'set'>,
): Promise<readonly StampDirectory[]> {
  const all = exportsOf(await listStamps(repository, machine))
  const found = all.filter((place) => set === undefined || place.set === set)
  if (found.length > 0) return found
  const machines = await listMachines(repository)
  const hint =
    all.length > 0
      ? `sets there: ${[...new Set(all.map((place) => place.set))].join(', ')}`
      : machines.length === 0
        ? 'it is empty so far: backup-external writes exports'
        : `machines there: ${machines.join(', ')} (--machine NAME)`
  const what = set === undefined ? `of ${machine}` : `of set ${set} of ${machine}`
  throw new BackupError('NOTHING_FOUND', `${repository.target.place} has no export ${what}`, {
    hint,
  })
}

/** What a date can mean: an export, or a collection. */
export interface Generation {
  readonly set: string
  readonly stamp: string
  /** Distrusted: it is never what `latest` means as long as there is another. */
  readonly isSuspect?: boolean
}

/**
 * One export a set: the newest for `latest` or no date, else the one that the date names.
 * @throws BackupError USAGE when a date fits several exports of a set, NOTHING_FOUND when it fits
 * none
 */
export function pickExports<T extends Generation>(
  places: readonly T[],
  date: string | undefined,
): readonly T[] {
  const sets = [...new Set(places.map(({ set }) => set))]
  const picked = sets.flatMap((set) =>
    pickOne(
      places.filter((place) => place.set === set),
      date,
    ),
  )
  if (picked.length > 0) return picked
  const stamps = places.map(({ set, stamp }) => `${set} ${stamp}`)
  throw new BackupError('NOTHING_FOUND', `there is nothing of ${date}`, {
    hint: `there are: ${stamps.slice(-8).join(', ')}`,
  })
}

function pickOne<T extends Generation>(
  places: readonly T[],
  date: string | undefined,
): readonly T[] {
  if (date === undefined || date === 'latest') {
    const trusted = places.filter(({ isSuspect }) => isSuspect !== true)
    return (trusted.length > 0 ? trusted : places).slice(-1)
  }
  const stamps = matchStamps({ prefix: date, stamps: places.map(({ stamp }) => stamp) })
  if (stamps.length > 1) {
    throw new BackupError(
      'USAGE',
      `${date} fits ${stamps.length} generations of ${places[0]!.set}`,
      { hint: `give more of it: ${stamps.join(', ')}` },
    )
  }
  return places.filter(({ stamp }) => stamp === stamps[0])
}

export function describePlace({ set, stamp }: ExportPlace): string {
  return `${set} ${stamp}`
}
