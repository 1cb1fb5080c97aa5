// One run at a time: an exclusive flock on a file, which the kernel drops when its holder dies.
//
// The file's text says who holds it, for the message only; it is never trusted. The file stays when
// the lock is released, because removing it would let two runs hold locks on two files of one name.
// A program that inherits the lock's file (machine/shell.ts) holds it, too. Throws BackupError
// LOCKED.

import { Buffer } from 'node:buffer'
import {
  closeSync,
  constants,
  ftruncateSync,
  openSync,
  readFileSync,
  readSync,
  writeSync,
} from 'node:fs'
import { hostname } from 'node:os'
import { BackupError, systemCode } from '../errors.ts'
import { displayPath, displayText, type RawPath, rawPathToBytes } from '../model/raw-path.ts'
import { tryLock } from './posix.ts'

export interface Lock {
  /** The open file that carries the lock, for programs that have to hold it as long as they run. */
  readonly fd: number
  /** Who held it and died without letting go: what it wrote of itself; undefined in good order. */
  readonly takenOverFrom: string | undefined
  /** Lets go; a second call does nothing. */
  readonly release: () => void
}

/** What is read of a lock file: our own text is shorter. */
const MAX_TEXT_BYTES = 1024

/** How long to wait between two tries. */
const PAUSE_MS = 50

/**
 * Takes the lock, or fails after `waitMs`. `description` is what the other run is told: what runs,
 * and since when.
 * @throws BackupError LOCKED, naming the holder
 */
export function acquireLock({
  path,
  description,
  waitMs = 0,
}: {
  path: RawPath
  description: string
  waitMs?: number
}): Lock {
  const { O_RDWR, O_CREAT, O_NOFOLLOW } = constants
  const fd = openSync(rawPathToBytes(path), O_RDWR | O_CREAT | O_NOFOLLOW, 0o600)
  try {
    for (let waitedMs = 0; !tryLock(fd); waitedMs += PAUSE_MS) {
      if (waitedMs >= waitMs) throw locked(fd)
      sleep(PAUSE_MS)
    }
    const { description: dead, holder: deadHolder } = readHolder(fd)
    writeHolder(fd, description)
    let held = true
    const release = (): void => {
      if (!held) return
      held = false
      // An empty file says that the last run ended in good order.
      try {
        ftruncateSync(fd, 0)
      } finally {
        closeSync(fd)
      }
    }
    return { fd, takenOverFrom: dead === '' ? undefined : `${dead} (${deadHolder})`, release }
  } catch (error) {
    closeSync(fd)
    throw error
  }
}

/**
 * Holds a directory itself, so that no file of ours is left in it; not where its filesystem has no
 * locks.
 * @returns what lets go
 * @throws BackupError LOCKED
 */
export function lockDirectory(path: RawPath): () => void {
  const fd = openSync(rawPathToBytes(path), constants.O_RDONLY | constants.O_DIRECTORY)
  const release = (): void => closeSync(fd)
  try {
    if (tryLock(fd)) return release
  } catch (error) {
    if (systemCode(error) !== undefined) return release
    release()
    throw error
  }
  release()
  throw new BackupError('LOCKED', `another run is writing into ${displayPath(path)}`, {
    hint: 'wait until it has finished, or choose another directory; nothing was changed',
    retry: 'later',
  })
}

/** A full disk is no reason not to hold the lock: it is the kernel's, and the text for people. */
function writeHolder(fd: number, description: string): void {
  try {
    ftruncateSync(fd, 0)
    writeSync(fd, `${description}\nprocess ${process.pid} on ${hostname()}\nboot ${bootId()}\n`, 0)
  } catch (error) {
    if (!['ENOSPC', 'EDQUOT'].includes(systemCode(error) ?? '')) throw error
  }
}

/** What the file says of who holds or held the lock. */
function readHolder(fd: number): { readonly description: string; readonly holder: string } {
  const text = Buffer.alloc(MAX_TEXT_BYTES)
  const [description = '', holder = ''] = text
    .toString('utf8', 0, readSync(fd, text, 0, text.length, 0))
    .split('\n')
  return { description: displayText(description), holder: displayText(holder) }
}

function locked(fd: number): BackupError {
  const { description, holder } = readHolder(fd)
  const who = description === '' ? '' : `: ${description} (${holder})`
  const hint = 'wait until it has finished, or end that process'
  return new BackupError('LOCKED', `another run is under way${who}`, {
    hint,
    retry: 'later',
    facts: { holder },
  })
}

/** A different text after each start of the machine; `unknown` where there is none. */
export function bootId(): string {
  try {
    return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
  } catch {
    return 'unknown'
  }
}

function sleep(durationMs: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, durationMs)
}
