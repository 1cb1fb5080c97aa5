// Undoes a restore by the list that it left in its `.backup-replaced-<stamp>` directory (aside.ts).
//
// What was replaced or deleted comes back, what was made goes. Only what is still as the restore
// left it is touched; the rest stays, and is named, and then the list keeps what is left to do.
// Throws NOTHING_FOUND where there is no list, CATALOG_DAMAGED for one that no restore wrote,
// system errors.

import type { Buffer } from 'node:buffer'
import {
  lstatSync,
  readFileSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmdirSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs'
import { BackupError, systemCode } from '../errors.ts'
import { parseObject, parseTime, takePath } from '../model/entry.ts'
import {
  type RawPath,
  baseOf,
  displayPath,
  isWithin,
  parentOf,
  rawPathToBytes,
} from '../model/raw-path.ts'
import { checkSafePath } from '../model/safe-path.ts'
import { UNDO_LIST, type UndoStep, removeAside } from './aside.ts'
import { JOURNAL, isPartialName, isReplacedName } from './restore-names.ts'
import { type RestoreFailure, asFailure } from './restore-plan.ts'

export interface UndoOutcome {
  /** Brought back: what had been replaced or deleted. */
  readonly back: number
  /** Removed: what the restore had made. */
  readonly removed: number
  /** Changed since, or in the way: left as it is. */
  readonly left: readonly RestoreFailure[]
}

interface UndoList {
  readonly directory: RawPath
  /** What the paths are below. */
  readonly into: RawPath
  readonly steps: readonly UndoStep[]
  /** The lines of the list: the first says what it is, the others a step each. */
  readonly header: string
  readonly lines: ReadonlyMap<RawPath, string>
}

/** What a step came to; `gone`: there is nothing to be done about it any more. */
type StepOutcome = 'back' | 'removed' | 'gone' | { readonly why: string }

/**
 * Undoes what the list in `directory` says, the last thing first; a dry run only counts.
 * @throws BackupError NOTHING_FOUND, CATALOG_DAMAGED
 */
export function undoRestore(
  directory: RawPath,
  { dryRun }: { readonly dryRun: boolean },
): UndoOutcome {
  const undo = readUndoList(directory)
  const left: RestoreFailure[] = []
  const gone = new Set<RawPath>()
  let [back, removed] = [0, 0]
  for (const step of undo.steps.toReversed()) {
    try {
      const outcome = undoStep(undo, { step, dryRun, removed: gone })
      if (outcome === 'removed') gone.add(step.path)
      if (outcome === 'removed') removed += 1
      else if (outcome === 'back') back += 1
      else if (outcome !== 'gone') {
        left.push({ path: step.path, code: 'RESTORE_FAILED', why: outcome.why })
      }
    } catch (error) {
      left.push(asFailure(step.path, error))
    }
  }
  if (dryRun) return { back, removed, left }
  if (left.length === 0) removeWhole(directory)
  else keepSteps(undo, new Set(left.map(({ path }) => path)))
  return { back, removed, left }
}

function undoStep(
  { directory, into }: UndoList,
  {
    step,
    dryRun,
    removed,
  }: {
    readonly step: UndoStep
    readonly dryRun: boolean
    /** So far; in a dry run they are still there. */
    readonly removed: ReadonlySet<RawPath>
  },
): StepOutcome {
  const path = `${into}/${step.path}`
  const place = rawPathToBytes(path)
  if (step.did !== 'nothing' && isElsewhere(parentOf(path), into)) {
    return { why: 'a link leads elsewhere now' }
  }
  const there = lstatSync(place, { throwIfNoEntry: false, bigint: true })
  if (step.did === 'nothing') return 'gone'
  if (step.did === 'made') {
    if (there === undefined) return 'gone'
    if (step.isDirectory && there.isDirectory()) {
      if (!dryRun) return removeDirectory(place)
      const names = readdirSync(place, { encoding: 'latin1' })
      const goes = (name: RawPath): boolean =>
        isHalfMade(name) || removed.has(`${step.path}/${name}`)
      return names.every(goes) ? 'removed' : OCCUPIED
    }
    if (there.isDirectory() || there.mtimeNs !== step.mtimeNs)
      return { why: 'it was changed since' }
    if (!dryRun) unlinkSync(place)
    return 'removed'
  }
  const aside = rawPathToBytes(`${directory}/${step.path}`)
  const kept = lstatSync(aside, { throwIfNoEntry: false, bigint: true })
  const isOurs =
    step.did === 'replaced' && there?.mtimeNs === step.mtimeNs && there?.isDirectory() === false
  if (kept === undefined) {
    // Something else than what was restored: it is back, or was never replaced.
    if (there !== undefined && !isOurs) return 'gone'
    return { why: 'it is no longer kept aside' }
  }
  // Killed between its second name and its replacement.
  const isStillThere = there?.ino === kept.ino && there.dev === kept.dev
  if (there !== undefined && !isOurs && !isStillThere) return { why: 'something else is there now' }
  if (dryRun) return isStillThere ? 'gone' : 'back'
  // Two names of one file are renamed to each other by doing nothing.
  if (isStillThere) unlinkSync(aside)
  else renameSync(aside, place)
  return isStillThere ? 'gone' : 'back'
}

/**
 * Whether a link that is below `into` now leads somewhere else; in the original place (no `into`)
 * the machine's own links are where they were.
 */
function isElsewhere(directory: RawPath, into: RawPath): boolean {
  if (into === '' || directory.length <= into.length) return false
  const there = lstatSync(rawPathToBytes(directory), { throwIfNoEntry: false })
  return there?.isSymbolicLink() === true || isElsewhere(parentOf(directory), into)
}

const OCCUPIED: StepOutcome = { why: 'something is in it now' }

/** What a restore that was killed left. */
function isHalfMade(name: RawPath): boolean {
  return isPartialName(name) || name === JOURNAL
}

/** With what is half-made in it. */
function removeDirectory(place: Buffer): StepOutcome {
  try {
    const names = readdirSync(place, { encoding: 'latin1' })
    if (!names.every(isHalfMade)) return OCCUPIED
    const directory = place.toString('latin1')
    for (const name of names) unlinkSync(rawPathToBytes(`${directory}/${name}`))
    rmdirSync(place)
    return 'removed'
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return 'gone'
    if (systemCode(error) === 'ENOTEMPTY') return OCCUPIED
    throw error
  }
}

/** Everything went back: what somebody put beside the list stays. */
function removeWhole(directory: RawPath): void {
  try {
    removeAside(directory)
  } catch (error) {
    if (!['ENOTDIR', 'ENOTEMPTY'].includes(systemCode(error) ?? '')) throw error
  }
}

/** The list of what is left to do, so that undoing again does not ask for what is done. */
function keepSteps({ directory, header, lines }: UndoList, left: ReadonlySet<RawPath>): void {
  const kept = [...lines].flatMap(([path, line]) => (left.has(path) ? [line] : []))
  const list = `${directory}/${UNDO_LIST}`
  writeFileSync(rawPathToBytes(`${list}.partial`), `${[header, ...kept].join('\n')}\n`, {
    mode: 0o600,
  })
  renameSync(rawPathToBytes(`${list}.partial`), rawPathToBytes(list))
}

function readUndoList(directory: RawPath): UndoList {
  const file = `${directory}/${UNDO_LIST}`
  let text: string
  try {
    text = readFileSync(rawPathToBytes(file), 'utf8')
  } catch (cause) {
    if (systemCode(cause) === undefined) throw cause
    throw new BackupError('NOTHING_FOUND', `there is no undo list ${displayPath(file)}`, {
      hint: 'a restore that replaces or deletes says where it keeps what was there',
      cause,
    })
  }
  if (!isReplacedName(baseOf(directory))) throw notOurs(file, 'its directory has another name')
  // The last line of a run that was killed may be cut short.
  const lines = text.split('\n').slice(0, -1)
  const [header = '{}', ...steps] = lines
  const object = parseObject(header)
  if (object['format'] !== 1) throw notOurs(file, 'its format is not known')
  const into = takePath(object, 'into') ?? ''
  if (!isWithin({ path: realPath(directory), directory: realPath(into) })) {
    throw notOurs(file, `it is not below ${displayPath(into)}, of which it tells`)
  }
  // The last line about a path holds, in the place of the first one.
  const parsed = new Map<RawPath, UndoStep>()
  const byPath = new Map<RawPath, string>()
  for (const line of steps) {
    const step = parseStep(line, file)
    parsed.set(step.path, step)
    byPath.set(step.path, line)
  }
  return { directory, into, steps: [...parsed.values()], header, lines: byPath }
}

function realPath(path: RawPath): RawPath {
  if (path === '') return ''
  try {
    return realpathSync(rawPathToBytes(path), { encoding: 'latin1' })
  } catch {
    return path
  }
}

function parseStep(line: string, file: RawPath): UndoStep {
  const object = parseObject(line)
  const path = takePath(object, 'path')
  const { did, mtime, directory } = object
  if (path === undefined || !isDeed(did)) throw notOurs(file, 'a line of it is malformed')
  checkSafePath(path)
  const mtimeNs = mtime === undefined ? undefined : parseTime(mtime)
  return { did, path, isDirectory: directory === true, mtimeNs }
}

const DEEDS: readonly unknown[] = ['made', 'replaced', 'deleted', 'nothing']

function isDeed(did: unknown): did is UndoStep['did'] {
  return DEEDS.includes(did)
}

function notOurs(file: RawPath, why: string): BackupError {
  return new BackupError('CATALOG_DAMAGED', `${displayPath(file)} is no undo list: ${why}`, {
    hint: 'what was kept aside lies beside it under its own paths; nothing was changed',
  })
}
