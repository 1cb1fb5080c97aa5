// What a restore replaced or deleted, kept aside, and the list by which it can be undone.
//
// `.backup-replaced-<stamp>/` at the top of the filesystem concerned, within what is restored: the
// old files under their own paths, so that moving them takes one rename, and `undo.jsonl`, a line
// for each thing that is done (docs/restoring.md), written before it is done: a restore that is
// killed can be undone as well. undo-restore.ts reads it. Throws system errors, RESTORE_FAILED.

import { Buffer } from 'node:buffer'
import {
  accessSync,
  appendFileSync,
  constants,
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  renameSync,
  rmSync,
  rmdirSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { BackupError, systemCode } from '../errors.ts'
import { encodeTime, putPath, type TimeNs } from '../model/entry.ts'
import { type RawPath, displayPath, isWithin, parentOf, rawPathToBytes } from '../model/raw-path.ts'
import type { Stamp } from '../model/stamp.ts'
import { replacedName } from './restore-names.ts'

export const UNDO_LIST = 'undo.jsonl'

/**
 * One thing that a restore does. `path` is below the place that is restored to; the last line about
 * it holds. `nothing`: it was not done after all.
 */
export interface UndoStep {
  readonly did: 'made' | 'replaced' | 'deleted' | 'nothing'
  readonly path: RawPath
  readonly isDirectory: boolean
  /** Of what was made: by it undoing knows that nobody has changed it since. */
  readonly mtimeNs: TimeNs | undefined
}

/** Steps are written so many at a time. */
const STEPS_AT_ONCE = 512

interface AsideDirectory {
  readonly path: RawPath
  readonly steps: string[]
  /** The length of the list so far. */
  bytes: number
  /** What was replaced or deleted. */
  kept: number
}

export class Aside {
  readonly #into: RawPath
  readonly #roots: readonly RawPath[]
  readonly #stamp: Stamp
  /** By device. */
  readonly #directories = new Map<number, AsideDirectory>()
  readonly #made = new Set<RawPath>()
  /** Announced and not done yet. */
  readonly #open = new Map<RawPath, UndoStep>()

  /** @param of.roots what is restored, below `into`: nothing is made above it */
  constructor(of: {
    readonly into: RawPath
    readonly roots: readonly RawPath[]
    readonly stamp: Stamp
  }) {
    this.#into = of.into
    this.#roots = of.roots
    this.#stamp = of.stamp
  }

  /** Where what is at `path` is to go; the directories above are there. */
  placeFor(path: RawPath): RawPath {
    const { path: top } = this.#directoryOf(path)
    const place = `${top}/${path}`
    this.#makeAbove(parentOf(place), top)
    return place
  }

  /** What is going to be done; flush() before it is. */
  announce(step: UndoStep): void {
    this.#note(step)
    this.#open.set(step.path, step)
  }

  /** @throws BackupError RESTORE_FAILED where the list cannot be written */
  flush(): void {
    for (const directory of this.#directories.values()) flush(directory)
  }

  /** @param of.mtimeNs as the filesystem keeps it */
  done({ path, mtimeNs }: Pick<UndoStep, 'path' | 'mtimeNs'>): void {
    const step = this.#open.get(path)
    if (step === undefined) return
    this.#open.delete(path)
    if (step.did !== 'made') this.#directoryOf(path).kept += 1
    if (step.mtimeNs !== mtimeNs) this.#note({ ...step, mtimeNs })
  }

  #note(step: UndoStep): void {
    const directory = this.#directoryOf(step.path)
    const out: Record<string, unknown> = { did: step.did }
    putPath(out, { name: 'path', path: step.path })
    if (step.isDirectory) out['directory'] = true
    if (step.mtimeNs !== undefined) out['mtime'] = encodeTime(step.mtimeNs)
    directory.steps.push(JSON.stringify(out))
    if (directory.steps.length >= STEPS_AT_ONCE) flush(directory)
  }

  /** The directories that were made. */
  directories(): RawPath[] {
    return [...this.#directories.values()].map(({ path }) => path)
  }

  /**
   * Directories that nothing came into go again.
   * @param of.isWhole the restore came to its end: what was announced and not done never will be
   */
  finish({ isWhole }: { readonly isWhole: boolean }): void {
    if (isWhole) {
      for (const step of this.#open.values()) this.#note({ ...step, did: 'nothing' })
    }
    const directories = [...this.#directories]
    const isUnused = directories.every(([, one]) => one.kept === 0 && holdsNothing(one.path))
    for (const [device, directory] of directories) {
      if (isUnused) {
        this.#directories.delete(device)
        removeAside(directory.path)
      } else flush(directory)
    }
  }

  #directoryOf(path: RawPath): AsideDirectory {
    const above = this.#nearestThere(parentOf(path))
    const device = deviceOf(this.#at(above))
    const known = this.#directories.get(device)
    if (known !== undefined) return known
    const made: AsideDirectory = {
      path: this.#make(this.#topOf(above, device)),
      steps: [],
      bytes: 0,
      kept: 0,
    }
    made.bytes = statSync(rawPathToBytes(`${made.path}/${UNDO_LIST}`)).size
    this.#directories.set(device, made)
    return made
  }

  /** A filesystem that has no room for the list is found out at once. */
  #begin(path: RawPath): void {
    const header: Record<string, unknown> = { format: 1, restored: this.#stamp }
    if (this.#into !== '') putPath(header, { name: 'into', path: this.#into })
    const list = rawPathToBytes(`${path}/${UNDO_LIST}`)
    try {
      writeFileSync(list, `${JSON.stringify(header)}\n`, { flag: 'wx', mode: 0o600 })
    } catch (error) {
      rmSync(rawPathToBytes(path), { recursive: true, force: true })
      throw error
    }
  }

  #nearestThere(path: RawPath): RawPath {
    let at = path
    while (
      at !== ''
      && lstatSync(rawPathToBytes(this.#at(at)), { throwIfNoEntry: false }) === undefined
    ) {
      at = parentOf(at)
    }
    return at
  }

  /** As far up as the filesystem, our rights, and what is restored go. */
  #topOf(path: RawPath, device: number): RawPath {
    let top = path
    while (top !== '') {
      const above = parentOf(top)
      const isOutside =
        this.#into === '' && !this.#roots.some((root) => isWithin({ path: above, directory: root }))
      if (isOutside || deviceOf(this.#at(above)) !== device || !isWritable(this.#at(above))) break
      top = above
    }
    return top
  }

  #make(top: RawPath): RawPath {
    for (let attempt = 0; ; attempt++) {
      const above = top === '' ? this.#into : this.#at(top)
      const path = `${above}/${replacedName(this.#stamp, attempt)}`
      try {
        mkdirSync(rawPathToBytes(path), { mode: 0o700 })
        this.#begin(path)
        return path
      } catch (error) {
        if (systemCode(error) !== 'EEXIST') throw error
      }
    }
  }

  #makeAbove(directory: RawPath, top: RawPath): void {
    if (directory === top || this.#made.has(directory)) return
    this.#makeAbove(parentOf(directory), top)
    try {
      mkdirSync(rawPathToBytes(directory), { mode: 0o700 })
    } catch (error) {
      if (systemCode(error) !== 'EEXIST') throw error
    }
    this.#made.add(directory)
  }

  #at(path: RawPath): RawPath {
    return `${this.#into}/${path}`
  }
}

/**
 * Gives what is at `path` a second name aside: whatever then replaces it does so in one step. Where
 * there are no hard links it is moved.
 */
export function keepAside(path: RawPath, aside: RawPath): void {
  try {
    linkSync(rawPathToBytes(path), rawPathToBytes(aside))
  } catch (error) {
    if (!NO_LINKS.includes(systemCode(error) ?? '')) throw error
    renameSync(rawPathToBytes(path), rawPathToBytes(aside))
  }
}

const NO_LINKS: readonly string[] = ['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'EMLINK', 'ENOSYS']

function flush(directory: AsideDirectory): void {
  const { path, steps, bytes } = directory
  if (steps.length === 0) return
  const text = `${steps.splice(0).join('\n')}\n`
  const list = rawPathToBytes(`${path}/${UNDO_LIST}`)
  try {
    appendFileSync(list, text, { mode: 0o600 })
    directory.bytes += Buffer.byteLength(text)
  } catch (cause) {
    const code = systemCode(cause)
    if (code === undefined) throw cause
    // Never half a line.
    if (lstatSync(list, { throwIfNoEntry: false }) !== undefined) truncateSync(list, bytes)
    const message = `${displayPath(path)}/${UNDO_LIST} cannot be written: ${code}`
    throw new BackupError('RESTORE_FAILED', message, {
      hint: 'make room; with --discard nothing is kept aside, and no list is needed',
      cause,
    })
  }
}

/** Whether there is nothing but the list, and directories without anything in them. */
function holdsNothing(directory: RawPath): boolean {
  return namesIn(directory).every((name) => {
    const path = `${directory}/${name}`
    return lstatSync(rawPathToBytes(path)).isDirectory() ? holdsNothing(path) : name === UNDO_LIST
  })
}

/** The list, and directories without anything in them: whatever else is there stays. */
export function removeAside(directory: RawPath): void {
  rmSync(rawPathToBytes(`${directory}/${UNDO_LIST}`), { force: true })
  const remove = (at: RawPath): void => {
    for (const name of namesIn(at)) remove(`${at}/${name}`)
    rmdirSync(rawPathToBytes(at))
  }
  remove(directory)
}

function namesIn(directory: RawPath): RawPath[] {
  return readdirSync(rawPathToBytes(directory), { encoding: 'latin1' })
}

function deviceOf(path: RawPath): number {
  return statSync(rawPathToBytes(path === '' ? '/' : path)).dev
}

function isWritable(path: RawPath): boolean {
  try {
    accessSync(rawPathToBytes(path === '' ? '/' : path), constants.W_OK)
    return true
  } catch {
    return false
  }
}
