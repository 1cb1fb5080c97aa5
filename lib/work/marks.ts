// Marks on generations: locks, which keep one from going, and tags, which name one and protect
// nothing.
//
// A mark is of a set and a stamp, so it holds for the collection and its exports on every target.
// All are in `$DBACKUP/.state/marks.json`, written durably under a lock file. Whoever removes a
// generation asks lockedStamps() first (prune-local.ts, prune.ts). A file that cannot be read is
// never taken for "no locks" (invariant 4). Throws MARKS_DAMAGED for that, LOCKED, STAGING_FAILED
// and STAGING_FULL, NOTHING_FOUND and USAGE for a stamp that leads nowhere.

import { Buffer } from 'node:buffer'
import { mkdirSync, readFileSync } from 'node:fs'
import { BackupError, systemCode } from '../errors.ts'
import type { Configuration, TargetConfiguration } from '../machine/config.ts'
import { writeDurably } from '../machine/durable-file.ts'
import { acquireLock } from '../machine/lock.ts'
import { isValidName } from '../model/names.ts'
import { rawPathFromText } from '../model/raw-path.ts'
import { type Stamp, parseStamp } from '../model/stamp.ts'
import { pickExports } from './find-exports.ts'
import { exportsOf, findRepository, listStamps as listExportStamps } from './repository.ts'
import { type SetPlace, listStamps, stagingError, stateRoot } from './staging.ts'
import { openTarget } from './target-access.ts'

/** One generation, wherever it is. */
export interface Marked {
  readonly set: string
  readonly stamp: Stamp
}

export interface LockMark extends Marked {
  readonly reason: string | undefined
}

export interface TagMark extends Marked {
  readonly name: string
}

export interface Marks {
  readonly locks: readonly LockMark[]
  readonly tags: readonly TagMark[]
}

const FORMAT = 1

/** Changing marks takes moments. */
const WAIT_MS = 5_000

/** Every mark; none where there is no file. @throws BackupError MARKS_DAMAGED, STAGING_FAILED */
export function readMarks(staging: string): Marks {
  const path = marksFile(staging)
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return { locks: [], tags: [] }
    throw stagingError({ error, staging, doing: 'read' })
  }
  const marks = parseMarks(text)
  if (marks !== undefined) return marks
  throw new BackupError('MARKS_DAMAGED', `the file of locks and tags is damaged: "${path}"`, {
    hint: 'nothing is removed meanwhile; repair it, or remove it and set locks and tags again',
    facts: { path },
  })
}

/**
 * Writes what `change` makes of the marks. @returns the new ones
 * @throws BackupError LOCKED, and as readMarks
 */
export function changeMarks(staging: string, change: (marks: Marks) => Marks): Marks {
  try {
    mkdirSync(stateRoot(staging), { recursive: true, mode: 0o700 })
    // Not marks.lock: that would be the lock of a set named marks.
    const lockPath = rawPathFromText(`${marksFile(staging)}.lock`)
    const lock = acquireLock({ path: lockPath, description: 'changing marks', waitMs: WAIT_MS })
    try {
      const { locks, tags } = change(readMarks(staging))
      const bytes = Buffer.from(`${JSON.stringify({ format: FORMAT, locks, tags }, null, 2)}\n`)
      const path = rawPathFromText(marksFile(staging))
      writeDurably({ path, bytes, mode: 0o600, replace: true })
      return { locks, tags }
    } finally {
      lock.release()
    }
  } catch (error) {
    throw stagingError({ error, staging, doing: 'written' })
  }
}

/** The stamps of a set that are locked now. @throws BackupError as readMarks */
export function lockedStamps({ staging, set }: SetPlace): ReadonlySet<Stamp> {
  const locks = readMarks(staging).locks.filter((lock) => lock.set === set)
  return new Set(locks.map(({ stamp }) => stamp))
}

/** Locks one generation, or changes why. */
export function withLock(marks: Marks, lock: LockMark): Marks {
  return { ...marks, locks: [...withoutLock(marks, lock).locks, lock].sort(byPlace) }
}

export function withoutLock(marks: Marks, marked: Marked): Marks {
  return { ...marks, locks: marks.locks.filter((lock) => !isSame(lock, marked)) }
}

/** Gives a tag its one generation: a tag of that name moves. */
export function withTag(marks: Marks, tag: TagMark): Marks {
  const tags = [...withoutTag(marks, tag.name).tags, tag]
  return { ...marks, tags: tags.sort((a, b) => (a.name < b.name ? -1 : 1)) }
}

export function withoutTag(marks: Marks, name: string): Marks {
  return { ...marks, tags: marks.tags.filter((tag) => tag.name !== name) }
}

/** Tags stand where dates do, so they begin with a letter, and `latest` is taken. */
export function isTagName(name: string): boolean {
  return isValidName(name) && /^[a-z]/.test(name) && name !== 'latest'
}

export interface FoundGeneration extends Marked {
  /** `staging`, and the names of the targets that have it; none where it was not found. */
  readonly places: readonly string[]
}

/**
 * The generation of a set that `date` means: `latest`, or a stamp that may be cut short. A whole
 * stamp that is nowhere to be seen is taken as it is: its drive may be in a drawer.
 * @throws BackupError NOTHING_FOUND, USAGE when several fit, STAGING_FAILED
 */
export async function findGeneration(
  configuration: Configuration,
  { set, date }: { readonly set: string; readonly date: string },
): Promise<FoundGeneration> {
  if (!isValidName(set)) throw new BackupError('USAGE', `"${set}" is no name of a set`)
  const places = await placesOf(configuration, set)
  const whole = date.replaceAll(':', '')
  if (parseStamp(whole) !== undefined) {
    return { set, stamp: whole, places: places.get(whole) ?? [] }
  }
  const seen = [...places.keys()].sort().map((stamp) => ({ set, stamp }))
  const [{ stamp } = { stamp: whole }] = pickExports(seen, date)
  return { set, stamp, places: places.get(stamp) ?? [] }
}

/** Every stamp of a set that can be seen now, with the places that have it. */
async function placesOf(
  configuration: Configuration,
  set: string,
): Promise<ReadonlyMap<Stamp, readonly string[]>> {
  const { staging, targets } = configuration
  const places = new Map<Stamp, string[]>()
  const add = (stamp: Stamp, place: string) => {
    places.set(stamp, [...(places.get(stamp) ?? []), place])
  }
  for (const stamp of listStamps({ staging, set })) add(stamp, 'staging')
  for (const target of targets) {
    for (const stamp of await stampsOn(target, { configuration, set })) add(stamp, target.name)
  }
  return places
}

/** None where the target is not there, or is no repository: a mark needs none. */
async function stampsOn(
  target: TargetConfiguration,
  { configuration, set }: { readonly configuration: Configuration; readonly set: string },
): Promise<readonly Stamp[]> {
  try {
    const repository = await findRepository(await openTarget(target, configuration))
    if (repository === undefined) return []
    const exports = exportsOf(await listExportStamps(repository, configuration.machine))
    return exports.filter((place) => place.set === set).map(({ stamp }) => stamp)
  } catch (error) {
    if (error instanceof BackupError) return []
    throw error
  }
}

function marksFile(staging: string): string {
  return `${stateRoot(staging)}/marks.json`
}

/** Undefined for anything that changeMarks would not have written. */
function parseMarks(text: string): Marks | undefined {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    return undefined
  }
  if (!isObject(value) || value['format'] !== FORMAT) return undefined
  const { locks, tags } = value
  if (!Array.isArray(locks) || !Array.isArray(tags)) return undefined
  if (!locks.every(isLock) || !tags.every(isTag)) return undefined
  return {
    locks: locks.map(({ set, stamp, reason }) => ({ set, stamp, reason })),
    tags: tags.map(({ name, set, stamp }) => ({ name, set, stamp })),
  }
}

function isLock(value: unknown): value is LockMark {
  return isMarked(value) && ['string', 'undefined'].includes(typeof value['reason'])
}

function isTag(value: unknown): value is TagMark {
  return isMarked(value) && typeof value['name'] === 'string' && isTagName(value['name'])
}

function isMarked(value: unknown): value is Record<string, unknown> {
  if (!isObject(value)) return false
  const { set, stamp } = value
  return (
    typeof set === 'string'
    && isValidName(set)
    && typeof stamp === 'string'
    && parseStamp(stamp) !== undefined
  )
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function isSame(a: Marked, b: Marked): boolean {
  return a.set === b.set && a.stamp === b.stamp
}

function byPlace(a: Marked, b: Marked): number {
  return `${a.set} ${a.stamp}` < `${b.set} ${b.stamp}` ? -1 : 1
}
