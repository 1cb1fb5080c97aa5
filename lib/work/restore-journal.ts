// Which directories a restore made, until they have their metadata: what a killed one made is known
// by it, and finished.
//
// `.backup-restore.journal` in the nearest directory that is there above what is restored: paths
// below `into`, each ended by a zero byte, written before the directory is made. restore.ts asks.
// A place that cannot be written has none. Throws the system's errors for broken disks.

import {
  closeSync,
  constants,
  lstatSync,
  openSync,
  readFileSync,
  unlinkSync,
  writeSync,
} from 'node:fs'
import { systemCode } from '../errors.ts'
import { type RawPath, parentOf, rawPathToBytes } from '../model/raw-path.ts'
import { JOURNAL } from './restore-names.ts'

export class RestoreJournal {
  readonly #path: RawPath
  readonly #found: readonly RawPath[]
  /** Made by a restore that was killed. */
  readonly #known: ReadonlySet<RawPath>
  #fd: number | undefined
  #isRefused = false

  /** @param of.roots what is restored, below `into` */
  constructor({ into, roots }: { readonly into: RawPath; readonly roots: readonly RawPath[] }) {
    const directories = new Set(['', ...roots.flatMap(withParents)])
    const journals = [...directories].map((directory) => {
      return `${directory === '' ? into : `${into}/${directory}`}/${JOURNAL}`
    })
    this.#found = journals.filter(isOrdinaryFile)
    this.#known = new Set(this.#found.flatMap(readPaths))
    const [first = ''] = roots
    let above = first
    while (above !== '' && !isDirectory(`${into}/${above}`)) above = parentOf(above)
    const top = into === '' ? above : ''
    this.#path = `${top === '' ? into : `${into}/${top}`}/${JOURNAL}`
  }

  has(path: RawPath): boolean {
    return this.#known.has(path)
  }

  /** Before the directory is made. */
  add(path: RawPath): void {
    if (this.#isRefused) return
    try {
      this.#fd ??= openJournal(this.#path)
      writeSync(this.#fd, rawPathToBytes(`${path}\0`))
    } catch (error) {
      if (!REFUSALS.includes(systemCode(error) ?? '')) throw error
      this.#isRefused = true
    }
  }

  /** Every directory has its metadata. */
  finish(): void {
    this.close()
    for (const path of new Set([...this.#found, this.#path])) {
      if (isOrdinaryFile(path)) unlinkSync(rawPathToBytes(path))
    }
  }

  /** What is not finished stays for the next restore. */
  close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd)
    this.#fd = undefined
  }
}

const REFUSALS: readonly string[] = [
  'EACCES',
  'EPERM',
  'EROFS',
  'ENOENT',
  'ENOSPC',
  'EDQUOT',
  'ELOOP',
]

function openJournal(path: RawPath): number {
  const { O_WRONLY, O_CREAT, O_APPEND, O_NOFOLLOW } = constants
  return openSync(rawPathToBytes(path), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW, 0o600)
}

function readPaths(path: RawPath): RawPath[] {
  // A last one that was cut short was not made.
  return readFileSync(rawPathToBytes(path)).toString('latin1').split('\0').slice(0, -1)
}

function withParents(path: RawPath): RawPath[] {
  const paths: RawPath[] = []
  for (let above = path; above !== ''; above = parentOf(above)) paths.push(above)
  return paths
}

function isDirectory(path: RawPath): boolean {
  return lstatSync(rawPathToBytes(path), { throwIfNoEntry: false })?.isDirectory() === true
}

/** Of our own: what somebody else planted is not followed. */
function isOrdinaryFile(path: RawPath): boolean {
  try {
    const stat = lstatSync(rawPathToBytes(path), { throwIfNoEntry: false })
    return stat?.isFile() === true && stat.uid === (process.geteuid?.() ?? stat.uid)
  } catch (error) {
    // Below what is no directory, or may not be looked into, there is none.
    if (systemCode(error) === undefined) throw error
    return false
  }
}
