// A filesystem of our own: mounted, its requests answered, unmounted (fuse-protocol.ts has the
// bytes).
//
// Root mounts by mount(2), everybody else by fusermount3, which hands the descriptor over. Waiting
// for requests holds up neither other work nor the end. Whoever is killed leaves a mount point that
// says ENOTCONN; the next mount there removes it. Throws MOUNT_FAILED; what `answer` throws is a
// bug and ends the session.

import { Buffer } from 'node:buffer'
import {
  closeSync,
  constants,
  openSync,
  opendirSync,
  readSync,
  readdirSync,
  writeSync,
} from 'node:fs'
import { constants as system } from 'node:os'
import { BackupError, systemCode } from '../errors.ts'
import { type RawPath, displayPath, rawPathToBytes, rawPathToText } from '../model/raw-path.ts'
import { type FuseRequest, OP, encodeInit, encodeReply, parseRequest } from './fuse-protocol.ts'
import {
  mountFilesystem,
  receiveDescriptor,
  setNonblocking,
  socketPair,
  unmountFilesystem,
  waitReadable,
} from './posix.ts'
import { findProgram, runProgram } from './shell.ts'

const FUSE_DEVICE = '/dev/fuse'
/** The kernel wants room for the longest request: an extended attribute that cannot be set. */
const REQUEST_BYTES = 128 * 1024
/** The end of a session is noticed so late at the most. */
const WAIT_MS = 500
const PROGRAM_MS = 30_000
/** Several runs may have been killed at one mount point. */
const MAX_STALE = 8

const [MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOATIME] = [1, 2, 4, 1024]
const [MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW] = [1, 2, 8]

/** Bytes for the kernel, a number of errno, or nothing at all where it waits for nothing. */
export type FuseAnswer = Buffer | number | undefined

export interface FuseMount {
  /**
   * Answers requests until it is unmounted, by us or by anybody.
   * @throws what `answer` throws
   */
  readonly serve: (answer: (request: FuseRequest) => Promise<FuseAnswer>) => Promise<void>
  /** Gone for everybody, even where somebody stands in it; does nothing a second time. */
  readonly unmount: () => Promise<void>
}

/** @throws BackupError MOUNT_FAILED; nothing is mounted then */
export async function mountFuse(directory: RawPath): Promise<FuseMount> {
  if (process.platform !== 'linux') throw failed('this system has no FUSE that we can speak to')
  await removeStale(directory)
  checkEmpty(directory)
  const isRoot = process.getuid?.() === 0
  const fd = isRoot ? mountAsRoot(directory) : await mountAsUser(directory)
  return new Mounted({ fd, directory, isRoot })
}

class Mounted implements FuseMount {
  readonly #fd: number
  readonly #directory: RawPath
  readonly #isRoot: boolean
  #isMounted = true
  #bug: { readonly error: unknown } | undefined

  constructor(of: { readonly fd: number; readonly directory: RawPath; readonly isRoot: boolean }) {
    this.#fd = of.fd
    this.#directory = of.directory
    this.#isRoot = of.isRoot
  }

  async serve(answer: (request: FuseRequest) => Promise<FuseAnswer>): Promise<void> {
    const buffer = Buffer.allocUnsafeSlow(REQUEST_BYTES)
    try {
      while (this.#isMounted && this.#bug === undefined) {
        if (!(await waitReadable(this.#fd, WAIT_MS))) continue
        for (;;) {
          const request = this.#next(buffer)
          if (request === undefined) break
          void this.#handle(request, answer)
        }
      }
    } finally {
      await this.unmount()
      closeSync(this.#fd)
    }
    if (this.#bug !== undefined) throw this.#bug.error
  }

  async unmount(): Promise<void> {
    if (!this.#isMounted) return
    this.#isMounted = false
    await unmountNow(this.#directory, this.#isRoot)
  }

  /** Undefined where there is none at the moment, or none any more. */
  #next(buffer: Buffer): FuseRequest | undefined {
    for (;;) {
      try {
        return parseRequest(buffer.subarray(0, readSync(this.#fd, buffer, 0, buffer.length, null)))
      } catch (error) {
        const code = systemCode(error)
        // Somebody else has unmounted it.
        if (code === 'ENODEV') this.#isMounted = false
        if (code === 'ENODEV' || code === 'EAGAIN') return undefined
        // A request that was taken back while it was read.
        if (code !== 'ENOENT' && code !== 'EINTR') throw error
      }
    }
  }

  async #handle(
    request: FuseRequest,
    answer: (request: FuseRequest) => Promise<FuseAnswer>,
  ): Promise<void> {
    try {
      const isInit = request.opcode === OP.init
      const answered = isInit
        ? encodeInit(request, { checksAcl: this.#isRoot })
        : await answer(request)
      if (answered === undefined) return
      const error = typeof answered === 'number' ? answered : 0
      const body = typeof answered === 'number' ? Buffer.alloc(0) : answered
      this.#reply(encodeReply(request, { error, body }))
    } catch (error) {
      this.#bug ??= { error }
      this.#reply(encodeReply(request, { error: system.errno.EIO, body: Buffer.alloc(0) }))
    }
  }

  #reply(bytes: Buffer): void {
    if (!this.#isMounted) return
    try {
      writeSync(this.#fd, bytes)
    } catch (error) {
      // Whoever asked does not wait any more, or it is unmounted.
      if (!['ENOENT', 'ENODEV'].includes(systemCode(error) ?? '')) throw error
    }
  }
}

function mountAsRoot(directory: RawPath): number {
  const fd = openDevice()
  try {
    // Whoever may read a file may read its copy, and nobody else.
    const options = `fd=${fd},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other`
    const flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOATIME
    const [source, type] = ['backup', 'fuse.backup']
    mountFilesystem({ source, path: directory, type, flags, options })
    return fd
  } catch (cause) {
    closeSync(fd)
    throw failed(`it cannot be mounted (${systemCode(cause) ?? 'unknown'})`, cause)
  }
}

function openDevice(): number {
  try {
    return openSync(FUSE_DEVICE, constants.O_RDWR | constants.O_NONBLOCK)
  } catch (cause) {
    throw failed(`${FUSE_DEVICE} cannot be opened (${systemCode(cause) ?? 'unknown'})`, cause)
  }
}

/**
 * Only who mounted it can look into it then, and sees everything: the owners of the files are
 * mostly others, and what is backed up is theirs to restore.
 */
async function mountAsUser(directory: RawPath): Promise<number> {
  const [ours, theirs] = socketPair()
  try {
    const options = 'ro,nosuid,nodev,noatime,fsname=backup,subtype=backup'
    await fusermount(['-o', options, '--', textOf(directory)], theirs)
    const fd = receiveDescriptor(ours)
    if (fd === undefined) throw failed('fusermount3 did not hand over a descriptor')
    setNonblocking(fd)
    return fd
  } finally {
    closeSync(ours)
    closeSync(theirs)
  }
}

async function fusermount(args: readonly string[], inherit?: number): Promise<void> {
  if (findProgram('fusermount3') === undefined) {
    throw failed('fusermount3 is not installed; Debian has it in fuse3')
  }
  const result = await runProgram({
    ...{ program: 'fusermount3', args, changes: true, timeoutMs: PROGRAM_MS },
    ...(inherit === undefined ? {} : { inherit }),
    // Where it finds the socket: what a program inherits is the first after standard error.
    environment: { LC_ALL: 'C', _FUSE_COMMFD: '3' },
  })
  if (result.exitCode === 0) return
  throw failed(result.stderr.trim().split('\n').at(-1) ?? `fusermount3: ${result.exitCode}`)
}

async function unmountNow(directory: RawPath, isRoot: boolean): Promise<void> {
  if (!isRoot) {
    await fusermount(['-u', '-z', '--', textOf(directory)])
    return
  }
  try {
    // With force requests under way fail; detached, it does not matter who stands in it.
    unmountFilesystem(directory, MNT_FORCE | MNT_DETACH | UMOUNT_NOFOLLOW)
  } catch (cause) {
    throw failed(`it cannot be unmounted (${systemCode(cause) ?? 'unknown'})`, cause)
  }
}

/** What was mounted there by somebody who was killed. */
async function removeStale(directory: RawPath): Promise<void> {
  for (let count = 0; count < MAX_STALE; count++) {
    try {
      // The kernel may know the answer of stat by heart; for this it has to ask.
      opendirSync(rawPathToBytes(directory)).closeSync()
      return
    } catch (error) {
      if (systemCode(error) !== 'ENOTCONN') return
      await unmountNow(directory, process.getuid?.() === 0)
    }
  }
}

function checkEmpty(directory: RawPath): void {
  let names: readonly unknown[]
  try {
    names = readdirSync(rawPathToBytes(directory))
  } catch (cause) {
    const code = systemCode(cause) ?? 'unknown'
    if (code === 'ENOENT') {
      throw new BackupError('MOUNT_FAILED', `there is no directory "${displayPath(directory)}"`, {
        hint: 'make it first, empty; nothing was mounted',
        cause,
      })
    }
    throw failed(`"${displayPath(directory)}" is no directory that can be read (${code})`, cause)
  }
  if (names.length === 0) return
  throw new BackupError('MOUNT_FAILED', `"${displayPath(directory)}" is not empty`, {
    hint: 'name an empty directory; what is in this one would be hidden; nothing was mounted',
  })
}

function textOf(directory: RawPath): string {
  return rawPathToText(directory) ?? directory
}

function failed(message: string, cause?: unknown): BackupError {
  return new BackupError('MOUNT_FAILED', message, {
    hint: '`backup mount --webdav` needs neither FUSE nor root; nothing was mounted or changed',
    cause,
  })
}
