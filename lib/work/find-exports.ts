// Which exports somebody means: `--set`, `--date` and the machine, resolved against what a
// repository has.
//
// Used by the commands that read repositories. Throws NOTHING_FOUND where nothing matches, USAGE
// where a date is ambiguous.

import { BackupError } from '../errors.ts'
import { parseMoment } from '../model/natural-date.ts'
import { formatLocalTime } from '../model/schedule.ts'
import { matchStamps, parseStamp } from '../model/stamp.ts'
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
  /** A prefix of a stamp, `latest`, a moment (lib/model/natural-date.ts), or undefined. */
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
 * One generation a set: the newest for `latest` or no date, else the one that the date names. A
 * date that begins a stamp is that stamp, in UTC; only one that begins none is a moment, and means
 * the newest generation that is not after it. Without `nowMs` nothing is a moment.
 * @throws BackupError USAGE when a date begins several stamps of a set, NOTHING_FOUND when it fits
 * none, or when every generation is younger
 */
export function pickExports<T extends Generation>(
  places: readonly T[],
  date: string | undefined,
  { nowMs }: { readonly nowMs?: number } = {},
): readonly T[] {
  const isLatest = date === undefined || date === 'latest'
  const picked = eachSet(places, (its) => (isLatest ? newestTrusted(its) : pickStamp(its, date)))
  if (picked.length > 0) return picked
  if (places.length === 0) {
    throw new BackupError('NOTHING_FOUND', `there is nothing of ${date ?? 'latest'}`, {
      hint: 'there is no generation at all',
    })
  }
  const isMoment = !isLatest && nowMs !== undefined
  const moment = isMoment ? parseMoment(date, { nowMs }) : undefined
  if (isMoment && moment !== undefined) return pickMoment(places, { date, ...moment })
  const stamps = places.map(({ set, stamp }) => `${set} ${stamp}`)
  const forms = nowMs === undefined ? '' : '`latest`, `2025-04-01` and `3 days ago` are dates; '
  throw new BackupError('NOTHING_FOUND', `there is nothing of ${date}`, {
    hint: `${forms}there are: ${stamps.slice(-8).join(', ')}`,
  })
}

function eachSet<T extends Generation>(
  places: readonly T[],
  pick: (its: readonly T[]) => readonly T[],
): readonly T[] {
  const sets = [...new Set(places.map(({ set }) => set))]
  return sets.flatMap((set) => pick(places.filter((place) => place.set === set)))
}

function newestTrusted<T extends Generation>(places: readonly T[]): readonly T[] {
  const trusted = places.filter(({ isSuspect }) => isSuspect !== true)
  return (trusted.length > 0 ? trusted : places).slice(-1)
}

function pickStamp<T extends Generation>(places: readonly T[], date: string): readonly T[] {
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

/** A set that is younger than the moment has nothing of it, as if it did not exist then. */
function pickMoment<T extends Generation>(
  places: readonly T[],
  { date, latestMs }: { readonly date: string; readonly latestMs: number },
): readonly T[] {
  const picked = eachSet(places, (its) => {
    return newestTrusted(its.filter(({ stamp }) => (parseStamp(stamp) ?? Infinity) <= latestMs))
  })
  if (picked.length > 0) return picked
  const [oldest] = places.toSorted((one, other) => (one.stamp < other.stamp ? -1 : 1))
  const until = formatLocalTime(latestMs)
  throw new BackupError('NOTHING_FOUND', `there is nothing as old as ${date} (${until})`, {
    hint: `the oldest is ${oldest!.set} ${oldest!.stamp}`,
  })
}

export function describePlace({ set, stamp }: ExportPlace): string {
  return `${set} ${stamp}`
}
