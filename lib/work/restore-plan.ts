// What a restore would do: each entry of a selection laid beside what is at its place.
//
// planRestore only looks, at types, sizes, times, modes and owners; content is compared when it is
// really restored. A dry run and the question before a restore show the counts, restore.ts carries
// the plan out. Every path is checked, and no link below the directory is followed (invariant 9).
// Throws INTERRUPTED.

import {
  type BigIntStats,
  type Stats,
  existsSync,
  lstatSync,
  readdirSync,
  readlinkSync,
  statSync,
} from 'node:fs'
import { setImmediate } from 'node:timers/promises'
import { BackupError, type ErrorCode, systemCode } from '../errors.ts'
import { deviceParts } from '../machine/posix.ts'
import { type Entry, asFile, dataBytes } from '../model/entry.ts'
import { type Move, moveEntries, moveEntry } from '../model/moving.ts'
import { type Age, type OverwritePolicy, ageOf, mayReplace } from '../model/overwrite.ts'
import type { PlaceNames } from '../model/place-names.ts'
import { type RawPath, displayPath, parentOf, rawPathToBytes } from '../model/raw-path.ts'
import { checkSafePath } from '../model/safe-path.ts'
import { hasLeftoverName, isOurName } from './restore-names.ts'
import type { ContentSource, Selection } from './selection.ts'

/** A path that is not restored, and why. */
export interface RestoreFailure {
  readonly path: RawPath
  readonly code: ErrorCode
  readonly why: string
  /** Where what is whole of it was left: the whole path. */
  readonly corrupt?: RawPath
  /** Its path in the generation, where its name was changed. */
  readonly from?: RawPath
}

/**
 * `make`: nothing is there. `same`: what is there looks the same. `replace` and `keep`: something
 * else is there, and goes or stays. `blocked`: a directory is there, which stays.
 */
export type Verdict = 'make' | 'same' | 'replace' | 'keep' | 'blocked'

/** Anything but a directory. */
export interface PlannedEntry {
  /** As it is made: under the name and owner that it gets here. */
  readonly entry: Entry
  /** Its path in the generation. */
  readonly from: RawPath
  readonly verdict: Verdict
  /** How old what is there is; undefined where nothing is. */
  readonly age: Age | undefined
}

/** What is there, and not in the generation. */
export interface Deletion {
  readonly path: RawPath
  /** How many paths it is: a directory counts with everything in it. */
  readonly paths: number
}

export interface PlanCounts {
  /** Nothing is there. */
  readonly new: number
  readonly same: number
  /** What is replaced, by how old it is beside what is restored. */
  readonly replacedOlder: number
  readonly replacedNewer: number
  readonly replacedEven: number
  readonly kept: number
  readonly deleted: number
}

export interface RestorePlan {
  readonly into: RawPath
  /** In catalog order. */
  readonly items: readonly PlannedEntry[]
  /** The directories of the selection that can be made or are there. */
  readonly directories: readonly Entry[]
  readonly parents: readonly Entry[]
  readonly deletions: readonly Deletion[]
  readonly failures: readonly RestoreFailure[]
  /** What hard links of the selection may be links to. */
  readonly files: ReadonlyMap<RawPath, Entry>
  readonly content: ContentSource
  readonly policy: OverwritePolicy
}

export interface PlanOptions {
  /**
   * An existing directory, or one that will be made, without a trailing slash; empty for the root.
   */
  readonly into: RawPath
  readonly overwrite: OverwritePolicy
  /** Directories of the generation out of which goes what it does not have; none mostly. */
  readonly deleteIn: readonly RawPath[]
  /** What is not to be deleted though the generation does not have it: what the set leaves out. */
  readonly isLeftOut?: ((path: RawPath, isDirectory: boolean) => boolean) | undefined
  /** Under which owners and names entries are made here; undefined: under their own. */
  readonly moving?: { readonly move: Move; readonly place: PlaceNames } | undefined
  readonly signal: AbortSignal
}

/** So many paths are looked at before the event loop gets a turn, to hear that it is to stop. */
const PATHS_PER_TURN = 1024

/** @throws BackupError INTERRUPTED */
export async function planRestore(
  { entries, parents, content }: Selection,
  options: PlanOptions,
): Promise<RestorePlan> {
  const { into, overwrite, moving, signal } = options
  const place = new Place(into)
  const { moved, failures: refused } = moveAll(entries, moving)
  const failures: RestoreFailure[] = [...refused]
  const items: PlannedEntry[] = []
  const verdicts = new Map<RawPath, Verdict>()
  const directories: Entry[] = []
  const files = new Map(
    moved.flatMap(({ entry }) => (entry.type === 'file' ? [[entry.path, entry] as const] : [])),
  )
  let looked = 0
  for (const { entry, from } of moved) {
    looked += 1
    if (looked % PATHS_PER_TURN === 0) {
      await setImmediate()
      if (signal.aborted) {
        throw new BackupError('INTERRUPTED', 'interrupted', { hint: 'nothing was restored yet' })
      }
    }
    try {
      checkSafePath(entry.path)
      if (hasLeftoverName(entry.path)) throw ourName(entry.path)
      const isDirectory = entry.type === 'directory'
      const state = place.stateOf(isDirectory ? entry.path : parentOf(entry.path))
      if (state === 'blocked') throw notADirectory(entry.path)
      if (entry.type === 'link' && !files.has(entry.target!)) throw notAFile(entry)
      if (isDirectory) directories.push(entry)
      else {
        const item = judge(entry, { place, from, overwrite, verdicts })
        if (entry.type === 'file') verdicts.set(entry.path, item.verdict)
        items.push(item)
      }
    } catch (error) {
      failures.push(asFailure(entry.path, error))
    }
  }
  const above = moving === undefined ? parents : parents.map((one) => moveEntry(one, moving.move))
  const taken = new Set([...moved.map(({ entry }) => entry.path), ...above.map(({ path }) => path)])
  const deletions = options.deleteIn.flatMap((directory) => {
    return findDeletions(directory, { into, taken, isLeftOut: options.isLeftOut })
  })
  const policy = overwrite
  const parts = { items, directories, parents: above, deletions, failures, files }
  return { into, ...parts, content, policy }
}

/**
 * Once it is decided what is replaced: of the hard links of a file whose first path keeps what is
 * there, the first that is made is the file itself, and the others are linked to that one.
 */
export function withStandIns(plan: RestorePlan): RestorePlan {
  return { ...plan, items: linkToStandIns(plan) }
}

function linkToStandIns({ items, failures, files }: RestorePlan): readonly PlannedEntry[] {
  const isMade = (verdict: Verdict) => verdict === 'make' || verdict === 'replace'
  const lost = new Set(failures.map(({ path }) => path))
  for (const { entry, verdict } of items) {
    if (verdict === 'keep' || verdict === 'blocked') lost.add(entry.path)
  }
  if (!items.some(({ entry }) => entry.type === 'link' && lost.has(entry.target!))) return items
  const standIns = new Map<RawPath, RawPath>()
  return items.map((item) => {
    const { entry, verdict } = item
    const file = entry.type === 'link' ? files.get(entry.target!) : undefined
    if (file === undefined || !lost.has(file.path) || !isMade(verdict)) return item
    const standIn = standIns.get(file.path)
    if (standIn !== undefined) return { ...item, entry: { ...entry, target: standIn } }
    standIns.set(file.path, entry.path)
    return { ...item, entry: asFile(entry, file) }
  })
}

function moveAll(
  entries: readonly Entry[],
  moving: PlanOptions['moving'],
): ReturnType<typeof moveEntries> {
  if (moving !== undefined) return moveEntries(entries, moving)
  return { moved: entries.map((entry) => ({ entry, from: entry.path })), failures: [] }
}

/** The answers to `ask`: which of what is kept is replaced after all. */
export function withAnswers(
  plan: RestorePlan,
  replaces: (item: PlannedEntry) => boolean,
): RestorePlan {
  const items = plan.items.map((item) => {
    return item.verdict === 'keep' && replaces(item)
      ? { ...item, verdict: 'replace' as const }
      : item
  })
  return { ...plan, items }
}

export function countPlan({ items, deletions }: RestorePlan): PlanCounts {
  const count = (verdicts: readonly Verdict[], age?: Age) =>
    items.filter((item) => {
      return verdicts.includes(item.verdict) && (age === undefined || item.age === age)
    }).length
  return {
    new: count(['make']),
    same: count(['same']),
    replacedOlder: count(['replace'], 'older'),
    replacedNewer: count(['replace'], 'newer'),
    replacedEven: count(['replace'], 'even'),
    kept: count(['keep', 'blocked']),
    deleted: deletions.reduce((sum, { paths }) => sum + paths, 0),
  }
}

/** The bytes that would be written. */
export function bytesToWrite({ items }: RestorePlan): number {
  return items.reduce((sum, { entry, verdict }) => {
    return verdict === 'make' || verdict === 'replace' ? sum + dataBytes(entry) : sum
  }, 0)
}

/** What a directory's place holds. */
export type DirectoryState = 'there' | 'absent' | 'blocked'

/** The directories below `into`, looked at once. */
export class Place {
  readonly into: RawPath
  readonly #states = new Map<RawPath, DirectoryState>([['', 'there']])

  constructor(into: RawPath) {
    this.into = into
    if (into !== '' && !existsSync(rawPathToBytes(into))) this.#states.set('', 'absent')
  }

  at(path: RawPath): RawPath {
    return `${this.into}/${path}`
  }

  stateOf(path: RawPath): DirectoryState {
    const known = this.#states.get(path)
    if (known !== undefined) return known
    const above = this.stateOf(parentOf(path))
    const state = above === 'there' ? this.#look(path) : above
    this.#states.set(path, state)
    return state
  }

  #look(path: RawPath): DirectoryState {
    const there = lookAtDirectory(this, path)
    if (there === undefined) return 'absent'
    return there.isDirectory() ? 'there' : 'blocked'
  }
}

/**
 * In the original place the machine's own links to directories (~/data → /data) are where they
 * were; elsewhere none is followed.
 */
export function lookAtDirectory({ into }: Pick<Place, 'into'>, path: RawPath): Stats | undefined {
  const bytes = rawPathToBytes(`${into}/${path}`)
  const own = lstatSync(bytes, { throwIfNoEntry: false })
  if (into !== '' || own?.isSymbolicLink() !== true) return own
  return statSync(bytes, { throwIfNoEntry: false }) ?? own
}

function notAFile({ target }: Entry): BackupError {
  const message = `it is a link to ${displayPath(target ?? '')}, which is no file of the catalog`
  return new BackupError('CATALOG_DAMAGED', message)
}

function ourName(path: RawPath): BackupError {
  return new BackupError('UNSAFE_PATH', `${displayPath(path)} has a name that restoring uses`, {
    hint: 'a restore that was killed may have left it; it was not restored',
  })
}

export function notADirectory(path: RawPath): BackupError {
  return new BackupError('UNSAFE_PATH', `${displayPath(path)} is no directory here`, {
    hint: 'it was left alone, and nothing was restored below it',
  })
}

const SYSTEM_WORDS: Readonly<Record<string, string>> = {
  EACCES: 'permission denied',
  EPERM: 'permission denied',
  ENOSPC: 'no space left',
  EDQUOT: 'the quota is used up',
  EROFS: 'the filesystem is read-only',
  ENAMETOOLONG: 'the name is too long here',
  EILSEQ: 'the filesystem refuses the name',
  EINVAL: 'the filesystem refuses it',
}

/** For people: what the system said. */
export function systemWords(code: string): string {
  const words = SYSTEM_WORDS[code]
  return words === undefined ? code : `${words} (${code})`
}

/** What could not be done for one path. @throws what is no failure of the world */
export function asFailure(path: RawPath, error: unknown): RestoreFailure {
  if (error instanceof BackupError) {
    const { code, message, facts } = error
    const corrupt = facts?.['corrupt']
    return { path, code, why: message, ...(typeof corrupt === 'string' ? { corrupt } : {}) }
  }
  const code = systemCode(error)
  if (code === undefined) throw error
  return { path, code: 'RESTORE_FAILED', why: `it cannot be made: ${systemWords(code)}` }
}

function judge(
  entry: Entry,
  {
    place,
    from,
    overwrite,
    verdicts,
  }: {
    readonly place: Place
    readonly from: RawPath
    readonly overwrite: OverwritePolicy
    /** Of the files before it. */
    readonly verdicts: ReadonlyMap<RawPath, Verdict>
  },
): PlannedEntry {
  const there =
    place.stateOf(parentOf(entry.path)) === 'absent'
      ? undefined
      : lstatSync(rawPathToBytes(place.at(entry.path)), { throwIfNoEntry: false, bigint: true })
  if (there === undefined) return { entry, from, verdict: 'make', age: undefined }
  const age = ageOf({ there: there.mtimeNs, restored: entry.mtimeNs })
  if (there.isDirectory()) return { entry, from, verdict: 'blocked', age }
  // A link to what is not the same is the same as little.
  const first = entry.type === 'link' ? (verdicts.get(entry.target!) ?? 'same') : 'same'
  if (first === 'same' && looksSame(entry, { place, there })) {
    return { entry, from, verdict: 'same', age: 'even' }
  }
  return { entry, from, verdict: mayReplace(overwrite, age) ? 'replace' : 'keep', age }
}

/** Links and special files are what they point to, whenever they were made. */
function looksSame(
  entry: Entry,
  { place, there }: { readonly place: Place; readonly there: BigIntStats },
): boolean {
  const path = rawPathToBytes(place.at(entry.path))
  switch (entry.type) {
    case 'file':
      return (
        there.isFile()
        && there.size === BigInt(entry.size ?? 0)
        && there.mtimeNs === entry.mtimeNs
        && hasModeOf(entry, there)
      )
    case 'symlink':
      return there.isSymbolicLink() && readlinkSync(path, { encoding: 'latin1' }) === entry.target
    case 'link': {
      const first = rawPathToBytes(place.at(entry.target!))
      const target = lstatSync(first, { throwIfNoEntry: false, bigint: true })
      return target !== undefined && target.ino === there.ino && target.dev === there.dev
    }
    case 'fifo':
      return there.isFIFO()
    case 'socket':
      return there.isSocket()
    case 'char':
    case 'block': {
      const isKind = entry.type === 'char' ? there.isCharacterDevice() : there.isBlockDevice()
      const [major, minor] = deviceParts(there.rdev)
      return isKind && major === entry.device?.[0] && minor === entry.device[1]
    }
    default:
      return false
  }
}

/** Who is not root cannot own what another does. */
function hasModeOf({ mode, uid, gid }: Entry, there: BigIntStats): boolean {
  if (Number(there.mode & 0o7777n) !== mode) return false
  return process.geteuid?.() !== 0 || (Number(there.uid) === uid && Number(there.gid) === gid)
}

/**
 * What lies in a directory and is not in the generation. What is mounted below is never touched,
 * nor what the set leaves out.
 */
function findDeletions(
  directory: RawPath,
  of: {
    readonly into: RawPath
    readonly taken: ReadonlySet<RawPath>
    readonly isLeftOut: PlanOptions['isLeftOut']
  },
): Deletion[] {
  const { into, taken, isLeftOut } = of
  const top = lookAtDirectory(of, directory)
  if (top === undefined || !top.isDirectory()) return []
  const deletions: Deletion[] = []
  const visit = (path: RawPath): void => {
    for (const name of namesIn(`${into}/${path}`)) {
      if (isOurName(name)) continue
      const child = path === '' ? name : `${path}/${name}`
      const stat = lstatSync(rawPathToBytes(`${into}/${child}`), { throwIfNoEntry: false })
      if (stat === undefined || stat.dev !== top.dev) continue
      if (taken.has(child)) {
        if (stat.isDirectory()) visit(child)
        continue
      }
      if (isLeftOut?.(child, stat.isDirectory()) === true) continue
      if (!stat.isDirectory()) deletions.push({ path: child, paths: 1 })
      else if (hasKept(child)) visit(child)
      else deletions.push({ path: child, paths: 1 + countBelow(`${into}/${child}`, top.dev) })
    }
  }
  /** Whether something in a directory has to stay: then it goes piece by piece. */
  const hasKept = (path: RawPath): boolean =>
    namesIn(`${into}/${path}`).some((name) => {
      const child = `${path}/${name}`
      const stat = lstatSync(rawPathToBytes(`${into}/${child}`), { throwIfNoEntry: false })
      if (stat === undefined) return false
      if (stat.dev !== top.dev || isOurName(name)) return true
      if (isLeftOut?.(child, stat.isDirectory()) === true) return true
      return stat.isDirectory() && hasKept(child)
    })
  visit(directory)
  return deletions
}

function countBelow(place: RawPath, device: number): number {
  return namesIn(place).reduce((sum, name) => {
    const stat = lstatSync(rawPathToBytes(`${place}/${name}`), { throwIfNoEntry: false })
    if (stat?.isDirectory() !== true || stat.dev !== device) return sum + 1
    return sum + 1 + countBelow(`${place}/${name}`, device)
  }, 0)
}

function namesIn(place: RawPath): RawPath[] {
  return readdirSync(rawPathToBytes(place), { encoding: 'latin1' }).sort()
}
