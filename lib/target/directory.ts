// A target that is a directory: a mounted drive or a plain folder.
//
// Implements target.ts. openDirectoryTarget decides whether the directory is really there: an empty
// mount point whose drive is not mounted must never be written to (X.13). Links are never followed
// below the directory. Throws TARGET_ABSENT, and what target-error.ts makes of system errors.

import { Buffer } from 'node:buffer'
import {
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  readSync,
  readdirSync,
  rmdirSync,
  statSync,
  statfsSync,
  unlinkSync,
} from 'node:fs'
import { BackupError, systemCode } from '../errors.ts'
import { publish, readBack, syncDirectory, writeDurably } from '../machine/durable-file.ts'
import {
  type RawPath,
  displayPath,
  parentOf,
  rawPathFromText,
  rawPathToBytes,
} from '../model/raw-path.ts'
import { bareMountPoint } from '../machine/mounted.ts'
import { targetError } from './target-error.ts'
import { type ByteRange, type Target, type TargetFile, asideName } from './target.ts'

export interface DirectoryTargetOptions {
  readonly name: string
  /** Of the kind `drive`: which of the target's drives it is. */
  readonly drive?: string
  readonly path: string
  /** Whether a file system has to be mounted there; undefined: decided by the place. */
  readonly mustBeMounted: boolean | undefined
}

/**
 * The target, where its directory is there and mounted if it has to be.
 * @throws BackupError TARGET_ABSENT
 */
export function openDirectoryTarget(options: DirectoryTargetOptions): Target {
  const { name, drive, path } = options
  const what = whatIsAt(path)
  if (what !== 'directory') throw absent(options, `${path} is ${what}`)
  const bare = bareMountPoint(options)
  if (bare !== undefined)
    throw absent(options, `nothing is mounted at ${bare}: it is a bare mount point`)
  return new DirectoryTarget({ name, drive, path })
}

function whatIsAt(path: string): 'directory' | 'no directory' | 'not there' {
  try {
    return statSync(path).isDirectory() ? 'directory' : 'no directory'
  } catch (error) {
    const code = systemCode(error)
    if (code === 'ENOENT') return 'not there'
    if (code === 'ENOTDIR' || code === 'ELOOP') return 'no directory'
    throw targetError({ error, path: rawPathFromText(path) })
  }
}

function absent({ name, path }: DirectoryTargetOptions, message: string): BackupError {
  return new BackupError('TARGET_ABSENT', `target ${name}: ${message}`, {
    hint:
      `plug in and mount the drive, or make the directory (mkdir "${path}"); `
      + 'collections are unharmed',
    facts: { target: name, path },
    retry: 'later',
  })
}

class DirectoryTarget implements Target {
  readonly name: string
  readonly drive: string | undefined
  readonly place: string
  readonly access = 'files'
  readonly bucket = undefined
  readonly #root: RawPath

  constructor({ name, drive, path }: { name: string; drive: string | undefined; path: string }) {
    this.name = name
    this.drive = drive
    this.place = path
    this.#root = rawPathFromText(path)
  }

  async list(directory: string): Promise<readonly TargetFile[] | undefined> {
    const path = directory === '' ? this.#root : this.localPath(directory)
    return this.#guard(path, () => {
      this.#followNothing(path)
      const stat = lstatSync(rawPathToBytes(path), { throwIfNoEntry: false })
      if (stat === undefined) return undefined
      if (!stat.isDirectory()) throw inTheWay(path)
      return readdirSync(rawPathToBytes(path))
        .sort()
        .map((name) => {
          const entry = lstatSync(rawPathToBytes(`${path}/${rawPathFromText(name)}`))
          const kind = entry.isFile() ? 'file' : entry.isDirectory() ? 'directory' : 'other'
          return { name, kind, sizeBytes: entry.size } as const
        })
    })
  }

  async listTree(directory: string): Promise<readonly TargetFile[]> {
    const found: TargetFile[] = []
    const walk = async (below: string): Promise<number> => {
      const path = [directory, below].filter((part) => part !== '').join('/')
      const files = (await this.list(path)) ?? []
      for (const file of files) {
        const name = below === '' ? file.name : `${below}/${file.name}`
        const isEmpty = file.kind === 'directory' && (await walk(name)) === 0
        if (file.kind !== 'directory' || isEmpty) found.push({ ...file, name })
      }
      return files.length
    }
    await walk('')
    return found.sort((one, other) => (one.name < other.name ? -1 : 1))
  }

  async readRange(path: string, { offset, length }: ByteRange): Promise<Buffer | undefined> {
    const full = this.localPath(path)
    return this.#guard(full, () => {
      const fd = this.#open(full)
      if (fd === undefined) return undefined
      try {
        return readSome(fd, { offset, length })
      } finally {
        closeSync(fd)
      }
    })
  }

  async fileSize(path: string): Promise<number | undefined> {
    const full = this.localPath(path)
    return this.#guard(full, () => {
      this.#followNothing(full)
      const stat = lstatSync(rawPathToBytes(full), { throwIfNoEntry: false })
      return stat?.isFile() === true ? stat.size : undefined
    })
  }

  sentBytes(): undefined {
    return undefined
  }

  async close(): Promise<void> {}

  async read(path: string, maxBytes: number): Promise<Buffer | undefined> {
    const full = this.localPath(path)
    return this.#guard(full, () => {
      const fd = this.#open(full)
      if (fd === undefined) return undefined
      try {
        return readWhole(fd, { path: full, maxBytes })
      } finally {
        closeSync(fd)
      }
    })
  }

  async write(path: string, bytes: Uint8Array): Promise<void> {
    const full = this.localPath(path)
    this.#guard(full, () => {
      this.#makeDirectory(parentOf(full))
      refuseTaken(full)
      writeDurably({ path: full, bytes, mode: 0o600 })
      try {
        prove(full, bytes)
      } catch (error) {
        unlinkSync(rawPathToBytes(full))
        throw error
      }
    })
  }

  async replace(path: string, bytes: Uint8Array): Promise<void> {
    const full = this.localPath(path)
    this.#guard(full, () => {
      this.#followNothing(full)
      writeDurably({ path: full, bytes, mode: 0o600, replace: true })
    })
  }

  async workDirectory(directory: string): Promise<RawPath> {
    const path = this.localPath(directory)
    this.#guard(path, () => this.#makeDirectory(path))
    return path
  }

  async publish(path: string): Promise<void> {
    const full = this.localPath(path)
    this.#guard(full, () => {
      this.#followNothing(full)
      refuseTaken(full)
      publish({ partial: `${full}.partial`, path: full })
    })
  }

  async setAside(path: string): Promise<string> {
    const full = this.localPath(path)
    return this.#guard(full, () => {
      this.#followNothing(full)
      let number = 1
      const isTaken = (name: string): boolean =>
        lstatSync(rawPathToBytes(this.localPath(name)), { throwIfNoEntry: false }) !== undefined
      while (isTaken(asideName(path, number))) number += 1
      const aside = asideName(path, number)
      publish({ partial: full, path: this.localPath(aside) })
      return aside
    })
  }

  localPath(path: string): RawPath {
    return `${this.#root}/${path}`
  }

  async remove(path: string): Promise<void> {
    const full = this.localPath(path)
    this.#guard(full, () => {
      this.#followNothing(full)
      try {
        unlinkSync(rawPathToBytes(full))
      } catch (error) {
        if (systemCode(error) === 'ENOENT') return
        throw error
      }
      syncDirectory(parentOf(full))
    })
  }

  async removeDirectory(path: string): Promise<void> {
    const full = this.localPath(path)
    this.#guard(full, () => {
      this.#followNothing(full)
      try {
        rmdirSync(rawPathToBytes(full))
      } catch (error) {
        if (['ENOENT', 'ENOTEMPTY', 'EEXIST'].includes(systemCode(error) ?? '')) return
        throw error
      }
    })
  }

  async freeBytes(): Promise<number | undefined> {
    return this.#guard(this.#root, () => {
      const { bavail, bsize } = statfsSync(this.place)
      return bavail * bsize
    })
  }

  /** For reading; undefined where there is nothing. */
  #open(path: RawPath): number | undefined {
    this.#followNothing(path)
    const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = constants
    try {
      // Not blocking: what lies there may be a pipe.
      return openSync(rawPathToBytes(path), O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
    } catch (error) {
      if (systemCode(error) === 'ENOENT' || systemCode(error) === 'ENOTDIR') return undefined
      throw error
    }
  }

  /** Makes the directories that are missing, one by one, so that each is synced into its parent. */
  #makeDirectory(path: RawPath): void {
    if (path === this.#root) return
    this.#makeDirectory(parentOf(path))
    const stat = lstatSync(rawPathToBytes(path), { throwIfNoEntry: false })
    if (stat?.isDirectory() === true) return
    if (stat !== undefined) throw inTheWay(path)
    mkdirSync(rawPathToBytes(path), { mode: 0o700 })
    syncDirectory(parentOf(path))
  }

  /** No directory above a path, below the target, is a link. */
  #followNothing(path: RawPath): void {
    if (path === this.#root) return
    const parent = parentOf(path)
    this.#followNothing(parent)
    let stat
    try {
      stat = lstatSync(rawPathToBytes(parent))
    } catch (error) {
      if (systemCode(error) === 'ENOENT' || systemCode(error) === 'ENOTDIR') return
      throw error
    }
    if (stat.isSymbolicLink() && parent !== this.#root) throw inTheWay(parent)
  }

  #guard<T>(path: RawPath, action: () => T): T {
    try {
      return action()
    } catch (error) {
      throw targetError({ error, path })
    }
  }
}

/** @throws BackupError TARGET_FAILED for a name that is taken, by anything */
function refuseTaken(path: RawPath): void {
  if (lstatSync(rawPathToBytes(path), { throwIfNoEntry: false }) === undefined) return
  throw new BackupError('TARGET_FAILED', `${displayPath(path)} is there already`, {
    hint: 'nothing is ever overwritten there; move it away if it is not ours',
  })
}

function readWhole(fd: number, { path, maxBytes }: { path: RawPath; maxBytes: number }): Buffer {
  const stat = fstatSync(fd)
  const { size } = stat
  if (!stat.isFile()) throw new BackupError('TARGET_FAILED', `${displayPath(path)} is no file`)
  if (size > maxBytes) {
    throw new BackupError(
      'TARGET_FAILED',
      `${displayPath(path)} is larger than it can be: ${size} bytes`,
      { hint: 'it was not written by this program; nothing was changed' },
    )
  }
  return readSome(fd, { offset: 0, length: size })
}

/** Fewer bytes where the file ends. */
function readSome(fd: number, { offset, length }: ByteRange): Buffer {
  const out = Buffer.allocUnsafe(length)
  let done = 0
  while (done < length) {
    const read = readSync(fd, out, done, length - done, offset + done)
    if (read === 0) break
    done += read
  }
  return out.subarray(0, done)
}

/** @throws BackupError READ_BACK when the medium does not hold the bytes */
function prove(path: RawPath, bytes: Uint8Array): void {
  const parts: Buffer[] = []
  readBack({ path, onBlock: (block) => parts.push(Buffer.from(block)) })
  if (Buffer.concat(parts).equals(bytes)) return
  throw new BackupError(
    'READ_BACK',
    `the medium does not hold what was written to ${displayPath(path)}`,
    {
      hint: 'the export was not made, earlier exports are unharmed; check the drive and its cable',
    },
  )
}

function inTheWay(path: RawPath): BackupError {
  return new BackupError('TARGET_FOREIGN', `${displayPath(path)} is in the way`, {
    hint: 'it is not what this program writes there; move it away; nothing was changed',
  })
}
