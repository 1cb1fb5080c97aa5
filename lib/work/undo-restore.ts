// Undoes a restore by the list that it left in its `.backup-replaced-<stamp>` directory (aside.ts).
//
// What was replaced or deleted comes back, what was made goes. Only what is still as the restore
// left it is touched; the rest stays, and is named. Throws NOTHING_FOUND where there is no list,
// CATALOG_DAMAGED for one that no restore wrote, system errors.

import type { Buffer } from 'node:buffer'
import {
  lstatSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  rmdirSync,
  unlinkSync,
} from 'node:fs'
import { BackupError, systemCode } from '../errors.ts'
import { parseObject, parseTime, takePath } from '../model/entry.ts'
import { type RawPath, baseOf, displayPath, rawPathToBytes } from '../model/raw-path.ts'
import { checkSafePath } from '../model/safe-path.ts'
import { UNDO_LIST, type UndoStep } from './aside.ts'
import { isReplacedName } from './restore-names.ts'
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
}

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
  let [back, removed] = [0, 0]
  for (const step of undo.steps.toReversed()) {
    try {
      const why = undoStep(undo, { step, dryRun })
      if (why !== undefined) left.push({ path: step.path, code: 'RESTORE_FAILED', why })
      else if (step.did === 'made') removed += 1
      else back += 1
    } catch (error) {
      left.push(asFailure(step.path, error))
    }
  }
  if (!dryRun && left.length === 0) removeEmpty(directory)
  return { back, removed, left }
}

/** @returns why it was not done */
function undoStep(
  { directory, into }: UndoList,
  { step, dryRun }: { readonly step: UndoStep; readonly dryRun: boolean },
): string | undefined {
  const place = rawPathToBytes(`${into}/${step.path}`)
  const there = lstatSync(place, { throwIfNoEntry: false, bigint: true })
  if (step.did === 'made') {
    if (there === undefined) return undefined
    if (!step.isDirectory) {
      if (there.isDirectory() || there.mtimeNs !== step.mtimeNs) return 'it was changed since'
      if (!dryRun) unlinkSync(place)
      return undefined
    }
    return dryRun ? undefined : removeDirectory(place)
  }
  const aside = rawPathToBytes(`${directory}/${step.path}`)
  if (lstatSync(aside, { throwIfNoEntry: false }) === undefined) return 'it is no longer kept aside'
  if (there !== undefined) {
    const isOurs = step.did === 'replaced' && there.mtimeNs === step.mtimeNs && !there.isDirectory()
    if (!isOurs) return 'something else is there now'
  }
  if (!dryRun) renameSync(aside, place)
  return undefined
}

function removeDirectory(place: Buffer): string | undefined {
  try {
    rmdirSync(place)
    return undefined
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return undefined
    if (systemCode(error) === 'ENOTEMPTY') return 'something is in it now'
    throw error
  }
}

/** Everything went back: what is left is the list, and directories without anything in them. */
function removeEmpty(directory: RawPath): void {
  rmSync(rawPathToBytes(`${directory}/${UNDO_LIST}`))
  const remove = (at: RawPath): void => {
    for (const name of readdirSync(rawPathToBytes(at), { encoding: 'latin1' })) {
      remove(`${at}/${name}`)
    }
    rmdirSync(rawPathToBytes(at))
  }
  remove(directory)
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
  const into = takePath(object, 'into')
  return { directory, into: into ?? '', steps: steps.map((line) => parseStep(line, file)) }
}

function parseStep(line: string, file: RawPath): UndoStep {
  const object = parseObject(line)
  const path = takePath(object, 'path')
  const { did, mtime, directory } = object
  if (path === undefined || (did !== 'made' && did !== 'replaced' && did !== 'deleted')) {
    throw notOurs(file, 'a line of it is malformed')
  }
  checkSafePath(path)
  const mtimeNs = mtime === undefined ? undefined : parseTime(mtime)
  return { did, path, isDirectory: directory === true, mtimeNs }
}

function notOurs(file: RawPath, why: string): BackupError {
  return new BackupError('CATALOG_DAMAGED', `${displayPath(file)} is no undo list: ${why}`, {
    hint: 'what was kept aside lies beside it under its own paths; nothing was changed',
  })
}
