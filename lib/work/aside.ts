// What a restore replaced or deleted, kept aside, and the list by which it can be undone.
//
// `.backup-replaced-<stamp>/` at the top of the filesystem concerned, within what is restored: the
// old files under their own paths, so that moving them takes one rename, and `undo.jsonl`, a line
// for each thing that was done (docs/restoring.md). undo-restore.ts reads it. Throws system errors.

import {
  accessSync,
  appendFileSync,
  constants,
  linkSync,
  lstatSync,
  mkdirSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs'
import { systemCode } from '../errors.ts'
import { encodeTime, putPath, type TimeNs } from '../model/entry.ts'
import { type RawPath, isWithin, parentOf, rawPathToBytes } from '../model/raw-path.ts'
import type { Stamp } from '../model/stamp.ts'
import { replacedName } from './restore-names.ts'

export const UNDO_LIST = 'undo.jsonl'

/** One thing that a restore did. `path` is below the place that was restored to. */
export interface UndoStep {
  readonly did: 'made' | 'replaced' | 'deleted'
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
  noted: number
}

export class Aside {
  readonly #into: RawPath
  readonly #roots: readonly RawPath[]
  readonly #stamp: Stamp
  /** By device. */
  readonly #directories = new Map<number, AsideDirectory>()
  readonly #made = new Set<RawPath>()

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

  note(step: UndoStep): void {
    const directory = this.#directoryOf(step.path)
    const out: Record<string, unknown> = { did: step.did }
    putPath(out, { name: 'path', path: step.path })
    if (step.isDirectory) out['directory'] = true
    if (step.mtimeNs !== undefined) out['mtime'] = encodeTime(step.mtimeNs)
    directory.noted += 1
    directory.steps.push(JSON.stringify(out))
    if (directory.steps.length >= STEPS_AT_ONCE) flush(directory)
  }

  /** The directories that were made. */
  directories(): RawPath[] {
    return [...this.#directories.values()].map(({ path }) => path)
  }

  /** Writes what is left; a directory that nothing came into goes again. */
  finish(): void {
    for (const [device, directory] of this.#directories) {
      if (directory.noted > 0) flush(directory)
      else {
        this.#directories.delete(device)
        rmSync(rawPathToBytes(directory.path), { recursive: true })
      }
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
      noted: 0,
    }
    const header = { format: 1, restored: this.#stamp }
    const into: Record<string, unknown> = { ...header }
    if (this.#into !== '') putPath(into, { name: 'into', path: this.#into })
    made.steps.push(JSON.stringify(into))
    this.#directories.set(device, made)
    return made
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

function flush({ path, steps }: AsideDirectory): void {
  if (steps.length === 0) return
  const text = `${steps.splice(0).join('\n')}\n`
  appendFileSync(rawPathToBytes(`${path}/${UNDO_LIST}`), text, { mode: 0o600 })
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
