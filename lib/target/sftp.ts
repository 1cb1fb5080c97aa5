// A target that is a directory on an SFTP host: see target.ts for the contract.
//
// Bundles wait in a local spool and are sent by publish(). A connection that breaks is made anew
// and the call done again: so each first looks what is there already (invariant 7). No link below
// the directory is followed; nothing is overwritten but by replace(). Throws TARGET_ABSENT,
// TARGET_DENIED, HOST_KEY_WRONG, TARGET_FOREIGN, TARGET_FULL, TARGET_READ_ONLY, TARGET_FAILED,
// READ_BACK; and STAGING_FAILED, STAGING_FULL for the spool.

import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import { constants, mkdirSync, rmdirSync, unlinkSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { BackupError, systemCode } from '../errors.ts'
import { placeOf, type SftpTargetConfiguration } from '../machine/config-targets.ts'
import { PARTIAL_SUFFIX } from '../machine/durable-file.ts'
import {
  type RawPath,
  displayPath,
  displayText,
  parentOf,
  pathFacts,
  rawPathToBytes,
} from '../model/raw-path.ts'
import {
  createConnector,
  type RemoteFile,
  type RemoteStat,
  SFTP_LIMITS,
  type SftpConnection,
  type SftpLimits,
  unlessAbsent,
} from './sftp-client.ts'
import { type Connections, createConnections } from './sftp-connections.ts'
import { inTheWayError, readBackError, sftpError, SftpFailure, takenError } from './sftp-errors.ts'
import { countMatching, readInto, sendFile } from './sftp-send.ts'
import { type ByteRange, type Target, type TargetFile, asideName } from './target.ts'
import { createTransfers, type Transfers } from './transfers.ts'

export interface SftpTargetOptions {
  readonly configuration: SftpTargetConfiguration
  /** A local directory for what waits to be sent, made when it is needed. */
  readonly spool: RawPath
  /** Where others than SFTP_LIMITS are wanted. */
  readonly limits?: Partial<SftpLimits>
}

/** How many directories are listed at once: each costs three round trips. */
const LISTINGS_AT_ONCE = 16

/** A host that never stops naming files must not fill the memory. */
const MAX_TREE = 10_000_000

/** Only its owner reads the spool. */
const SPOOL_MODE = 0o700

/** The target, where the host answers and is the one that is pinned. */
export async function openSftpTarget(options: SftpTargetOptions): Promise<Target> {
  const { configuration, spool } = options
  const limits = { ...SFTP_LIMITS, ...options.limits }
  const { streams, bandwidthLimitBytes } = configuration
  // Small calls do not wait behind what is sent.
  const gate = createTransfers({ streams, bandwidthLimitBytes: undefined })
  const transfers = createTransfers({ streams, bandwidthLimitBytes })
  const connect = createConnector(configuration, limits)
  // A host that does not answer at all is not asked again: the next run comes soon enough.
  const first = await connect()
  const connections = createConnections({ connect, limits, gate, first })
  const target = new SftpTarget({ configuration, spool, connections, transfers })
  try {
    await target.lookAtRoot()
    return target
  } catch (error) {
    await target.close()
    throw error
  }
}

interface SftpParts {
  readonly configuration: SftpTargetConfiguration
  readonly spool: RawPath
  readonly connections: Connections
  readonly transfers: Transfers
}

interface Call {
  readonly path: string
  readonly access: 'read' | 'write'
  /** How much is still to be written. */
  readonly wantedBytes?: () => number
  /** For what is sent: waits for a stream. */
  readonly gate?: Transfers
  readonly progress?: () => number
}

/** What is known of a file that is being sent, over all tries. */
interface Sending {
  readonly local: FileHandle
  readonly sizeBytes: number
  /** Up to where the host acknowledged what we wrote; undefined: nobody has looked yet. */
  sentBytes: number | undefined
  /** Up to where it was read back. */
  provenBytes: number
}

class SftpTarget implements Target {
  readonly name: string
  readonly drive = undefined
  readonly place: string
  readonly access = 'network'
  readonly bucket = undefined
  readonly #root: string
  readonly #spool: RawPath
  readonly #connections: Connections
  readonly #transfers: Transfers
  /** Directories and files below the root that were seen to be no links. */
  readonly #plain = new Set<string>()

  constructor({ configuration, spool, connections, transfers }: SftpParts) {
    this.name = configuration.name
    this.place = placeOf(configuration)
    this.#root = configuration.path.replace(/(?<=.)\/+$/, '')
    this.#spool = spool
    this.#connections = connections
    this.#transfers = transfers
  }

  /** @throws BackupError TARGET_FOREIGN for something else than a directory */
  async lookAtRoot(): Promise<void> {
    await this.#call({ path: '', access: 'read' }, async (connection) => {
      const root = await connection.stat(this.#root)
      if (root !== undefined && root.kind !== 'directory') throw this.#inTheWay('')
    })
  }

  async list(directory: string): Promise<readonly TargetFile[] | undefined> {
    return await this.#call({ path: directory, access: 'read' }, async (connection) => {
      return await this.#list(connection, directory)
    })
  }

  async listTree(directory: string): Promise<readonly TargetFile[]> {
    return await this.#call({ path: directory, access: 'read' }, async (connection) => {
      const found: TargetFile[] = []
      const pending = ['']
      const listOne = async (below: string): Promise<void> => {
        const path = [directory, below].filter((part) => part !== '').join('/')
        const files = (await this.#list(connection, path)) ?? []
        if (files.length === 0 && below !== '') {
          found.push({ name: below, kind: 'directory', sizeBytes: 0 })
        }
        for (const file of files) {
          const name = below === '' ? file.name : `${below}/${file.name}`
          if (file.kind === 'directory') pending.push(name)
          else found.push({ ...file, name })
        }
        if (found.length + pending.length > MAX_TREE) throw tooMany(this.#display(directory))
      }
      while (pending.length > 0) {
        await Promise.all(pending.splice(0, LISTINGS_AT_ONCE).map(listOne))
      }
      return found.sort((one, other) => (one.name < other.name ? -1 : 1))
    })
  }

  async read(path: string, maxBytes: number): Promise<Buffer | undefined> {
    return await this.#call({ path, access: 'read' }, async (connection) => {
      const stat = await this.#statFile(connection, path)
      if (stat === undefined) return undefined
      const { sizeBytes } = stat
      if (sizeBytes > maxBytes) {
        throw new BackupError(
          'TARGET_FAILED',
          `${this.#display(path)} is larger than it can be: ${sizeBytes} bytes`,
          { hint: 'it was not written by this program; nothing was changed' },
        )
      }
      return await this.#readSome(connection, { path, offset: 0, length: sizeBytes })
    })
  }

  async readRange(path: string, range: ByteRange): Promise<Buffer | undefined> {
    return await this.#call({ path, access: 'read' }, async (connection) => {
      const isKnown = this.#plain.has(path)
      if (!isKnown && (await this.#statFile(connection, path)) === undefined) return undefined
      return await this.#readSome(connection, { path, ...range })
    })
  }

  async fileSize(path: string): Promise<number | undefined> {
    return await this.#call({ path, access: 'read' }, async (connection) => {
      if (!(await this.#isThere(connection, parentOf(path)))) return undefined
      const stat = await connection.lstat(this.#full(path))
      return stat?.kind === 'file' ? stat.sizeBytes : undefined
    })
  }

  async write(path: string, bytes: Uint8Array): Promise<void> {
    const wantedBytes = (): number => bytes.length
    await this.#call({ path, access: 'write', wantedBytes }, async (connection) => {
      await this.#makeDirectory(connection, parentOf(path))
      const there = await connection.lstat(this.#full(path))
      if (there === undefined) {
        await this.#writePartial(connection, { path, bytes })
        await this.#rename(connection, { from: `${path}${PARTIAL_SUFFIX}`, to: path })
      } else if (!(await this.#holds(connection, { path, there, bytes }))) {
        throw takenError(this.#display(path))
      }
      await this.#syncDirectory(connection, parentOf(path))
    })
  }

  async replace(path: string, bytes: Uint8Array): Promise<void> {
    const wantedBytes = (): number => bytes.length
    await this.#call({ path, access: 'write', wantedBytes }, async (connection) => {
      await this.#makeDirectory(connection, parentOf(path))
      await this.#writePartial(connection, { path, bytes })
      await connection.replace(this.#full(`${path}${PARTIAL_SUFFIX}`), this.#full(path))
      await this.#syncDirectory(connection, parentOf(path))
    })
  }

  async workDirectory(directory: string): Promise<RawPath> {
    const path = this.localPath(directory)
    try {
      mkdirSync(rawPathToBytes(path), { recursive: true, mode: SPOOL_MODE })
    } catch (error) {
      throw spoolError({ error, path })
    }
    return path
  }

  async publish(path: string, sha256?: string): Promise<void> {
    const spooled = this.localPath(`${path}${PARTIAL_SUFFIX}`)
    const local = await openSpooled(spooled)
    try {
      if (sha256 !== undefined) await refuseChanged(local, { path: spooled, sha256 })
      const { size: sizeBytes } = await local.stat()
      const sending: Sending = { local, sizeBytes, sentBytes: undefined, provenBytes: 0 }
      const call: Call = {
        ...{ path, access: 'write', gate: this.#transfers },
        wantedBytes: () => sizeBytes - (sending.sentBytes ?? 0),
        progress: () => (sending.sentBytes ?? 0) + sending.provenBytes,
      }
      await this.#call(call, async (connection) => {
        await this.#makeDirectory(connection, parentOf(path))
        await this.#send(connection, path, sending)
        await this.#syncDirectory(connection, parentOf(path))
      })
    } finally {
      await local.close()
    }
    try {
      unlinkSync(rawPathToBytes(spooled))
    } catch (error) {
      throw spoolError({ error, path: spooled })
    }
  }

  localPath(path: string): RawPath {
    return `${this.#spool}/${path}`
  }

  async setAside(path: string): Promise<string> {
    let tried: string | undefined
    return await this.#call({ path, access: 'write' }, async (connection) => {
      await this.#isThere(connection, parentOf(path))
      const isTaken = async (name: string): Promise<boolean> => {
        return (await connection.lstat(this.#full(name))) !== undefined
      }
      // The connection may have broken after the host did it.
      const isDone = tried !== undefined && !(await isTaken(path)) && (await isTaken(tried))
      if (tried !== undefined && isDone) return tried
      let number = 1
      while (await isTaken(asideName(path, number))) number += 1
      tried = asideName(path, number)
      await this.#rename(connection, { from: path, to: tried })
      await this.#syncDirectory(connection, parentOf(path))
      return tried
    })
  }

  async remove(path: string): Promise<void> {
    await this.#call({ path, access: 'write' }, async (connection) => {
      if (!(await this.#isThere(connection, parentOf(path)))) return
      this.#plain.delete(path)
      await unlessAbsent(async () => await connection.remove(this.#full(path)))
      await this.#syncDirectory(connection, parentOf(path))
    })
  }

  async removeDirectory(path: string): Promise<void> {
    await this.#call({ path, access: 'write' }, async (connection) => {
      if (!(await this.#isThere(connection, parentOf(path)))) return
      this.#plain.clear()
      try {
        await unlessAbsent(async () => await connection.removeDirectory(this.#full(path)))
      } catch (error) {
        // A directory with something in it is a failure like any other.
        if (!isTrouble(error, 'failure')) throw error
        if (((await connection.list(this.#full(path))) ?? []).length === 0) throw error
      }
    })
    try {
      rmdirSync(rawPathToBytes(this.localPath(path)))
    } catch {
      // Not there, or something waits in it: it is no more than the spool's twin.
    }
  }

  async freeBytes(): Promise<number | undefined> {
    return await this.#call({ path: '', access: 'read' }, async (connection) => {
      const space = await connection.space(this.#root)
      // Before the first export only the directory above it is there.
      return (space ?? (await connection.space(parentOf(this.#root) || '.')))?.freeBytes
    })
  }

  sentBytes(): number {
    return this.#transfers.sentBytes()
  }

  async close(): Promise<void> {
    this.#connections.close()
  }

  /** With a connection, and again when it breaks. */
  async #call<T>(call: Call, work: (connection: SftpConnection) => Promise<T>): Promise<T> {
    const { path, access, wantedBytes = () => 0 } = call
    const about = { name: this.name, path: this.#display(path), access }
    const workOrTell = async (connection: SftpConnection): Promise<T> => {
      try {
        return await this.#workAfresh(connection, work)
      } catch (error) {
        if (!(error instanceof SftpFailure) || error.trouble === 'lost') throw error
        const space = access === 'write' ? await connection.space(this.#root) : undefined
        throw sftpError(error, { ...about, space, wantedBytes: wantedBytes() })
      }
    }
    try {
      return await this.#connections.use(workOrTell, call)
    } catch (error) {
      throw error instanceof SftpFailure ? sftpError(error, about) : error
    }
  }

  /** Once more without what is remembered, where something is not there any more. */
  async #workAfresh<T>(
    connection: SftpConnection,
    work: (connection: SftpConnection) => Promise<T>,
  ): Promise<T> {
    const remembered = this.#plain.size
    try {
      return await work(connection)
    } catch (error) {
      if (!isTrouble(error, 'absent') || remembered === 0) throw error
      this.#plain.clear()
      return await work(connection)
    }
  }

  async #list(
    connection: SftpConnection,
    directory: string,
  ): Promise<readonly TargetFile[] | undefined> {
    if (directory !== '' && !this.#plain.has(directory)) {
      if (!(await this.#isThere(connection, parentOf(directory)))) return undefined
      const stat = await connection.lstat(this.#full(directory))
      if (stat === undefined) return undefined
      if (stat.kind !== 'directory') throw this.#inTheWay(directory)
    }
    const entries = await connection.list(this.#full(directory))
    return entries
      ?.map(({ name, kind, sizeBytes }) => {
        if (kind === 'directory') this.#plain.add(directory === '' ? name : `${directory}/${name}`)
        return { name, kind: kind === 'link' ? ('other' as const) : kind, sizeBytes }
      })
      .sort((one, other) => (one.name < other.name ? -1 : 1))
  }

  /** @throws BackupError TARGET_FOREIGN for a link, TARGET_FAILED for what is no file */
  async #statFile(connection: SftpConnection, path: string): Promise<RemoteStat | undefined> {
    if (!(await this.#isThere(connection, parentOf(path)))) return undefined
    const stat = await connection.lstat(this.#full(path))
    if (stat === undefined) return undefined
    if (stat.kind === 'link') throw this.#inTheWay(path)
    if (stat.kind !== 'file') {
      throw new BackupError('TARGET_FAILED', `${this.#display(path)} is no file`)
    }
    this.#plain.add(path)
    return stat
  }

  async #readSome(
    connection: SftpConnection,
    { path, offset, length }: ByteRange & { readonly path: string },
  ): Promise<Buffer> {
    const file = await connection.open(this.#full(path), 'read')
    return await withFile({ connection, file }, async () => {
      return await readInto({ connection, file }, { offset, length })
    })
  }

  /** Whether a directory is there. @throws BackupError TARGET_FOREIGN for a link in the way */
  async #isThere(connection: SftpConnection, directory: string): Promise<boolean> {
    if (directory === '' || this.#plain.has(directory)) return true
    if (!(await this.#isThere(connection, parentOf(directory)))) return false
    const stat = await connection.lstat(this.#full(directory))
    if (stat?.kind === 'link') throw this.#inTheWay(directory)
    if (stat?.kind !== 'directory') return false
    this.#plain.add(directory)
    return true
  }

  /** Makes the directories that are missing, the root too, but not what is above that. */
  async #makeDirectory(connection: SftpConnection, directory: string): Promise<void> {
    if (this.#plain.has(directory)) return
    if (directory !== '') await this.#makeDirectory(connection, parentOf(directory))
    const path = this.#full(directory)
    const look = async (): Promise<RemoteStat | undefined> => {
      return directory === '' ? await connection.stat(path) : await connection.lstat(path)
    }
    if ((await look()) === undefined) {
      try {
        await connection.makeDirectory(path)
      } catch (error) {
        if (directory === '' && isTrouble(error, 'absent')) throw this.#noParent()
        // Somebody else may have made it a moment ago.
        if (!isTrouble(error, 'failure') || (await look()) === undefined) throw error
      }
      if (directory !== '') await this.#syncDirectory(connection, parentOf(directory))
    }
    if ((await look())?.kind !== 'directory') throw this.#inTheWay(directory)
    this.#plain.add(directory)
  }

  /** A new file under its temporary name, on the medium and proven; an old one goes. */
  async #writePartial(
    connection: SftpConnection,
    { path, bytes }: { readonly path: string; readonly bytes: Uint8Array },
  ): Promise<void> {
    const partial = this.#full(`${path}${PARTIAL_SUFFIX}`)
    await unlessAbsent(async () => await connection.remove(partial))
    const file = await connection.open(partial, 'create')
    try {
      const isGood = await withFile({ connection, file }, async () => {
        await writeBytes({ connection, file }, Buffer.from(bytes))
        await connection.sync(file)
        // One more than there should be: it may have become longer, too.
        const back = await readInto({ connection, file }, { offset: 0, length: bytes.length + 1 })
        return back.equals(bytes)
      })
      if (!isGood) throw readBackError(this.#display(path))
    } catch (error) {
      await connection.remove(partial).catch(() => {})
      throw error
    }
  }

  async #holds(
    connection: SftpConnection,
    what: { readonly path: string; readonly there: RemoteStat; readonly bytes: Uint8Array },
  ): Promise<boolean> {
    const { path, there, bytes } = what
    if (there.kind !== 'file' || there.sizeBytes !== bytes.length) return false
    const found = await this.#readSome(connection, { path, offset: 0, length: bytes.length })
    return found.equals(bytes)
  }

  /** Sends what is not there yet, proves all of it, and gives it its name. */
  async #send(connection: SftpConnection, path: string, sending: Sending): Promise<void> {
    const { local, sizeBytes } = sending
    if (await this.#isSent(connection, path, sending)) return
    const partial = `${path}${PARTIAL_SUFFIX}`
    const file = await this.#openPartial(connection, partial, sending)
    const isGood = await withFile({ connection, file }, async () => {
      const isWhole = await sendFile({
        ...{ connection, file, local, sizeBytes },
        from: sending.sentBytes ?? 0,
        pace: async (bytes) => await this.#transfers.pace(bytes),
        onSent: (end) => (sending.sentBytes = end),
      })
      if (!isWhole) {
        throw new BackupError('STAGING_FAILED', `the spool of ${path} has become shorter`, {
          hint: 'nothing was given its name on the host; the next run makes it again',
        })
      }
      await connection.sync(file)
      await countMatching({
        ...{ connection, file, local, sizeBytes, from: sending.provenBytes },
        onSame: (end) => (sending.provenBytes = end),
      })
      return sending.provenBytes === sizeBytes
    })
    const there = await connection.lstat(this.#full(partial))
    if (!isGood || there?.sizeBytes !== sizeBytes) {
      await connection.remove(this.#full(partial))
      throw readBackError(this.#display(path))
    }
    await this.#rename(connection, { from: partial, to: path })
  }

  /**
   * Whether it is there already, from a run that ended before it could clear the spool.
   * @throws BackupError TARGET_FAILED where the name is taken by something else
   */
  async #isSent(connection: SftpConnection, path: string, sending: Sending): Promise<boolean> {
    const { local, sizeBytes } = sending
    const there = await connection.lstat(this.#full(path))
    if (there === undefined) return false
    if (there.kind === 'file' && there.sizeBytes === sizeBytes) {
      const file = await connection.open(this.#full(path), 'read')
      const same = await withFile({ connection, file }, async () => {
        return await countMatching({ connection, file, local, sizeBytes, from: 0 })
      })
      if (same === sizeBytes) return true
    }
    throw takenError(this.#display(path))
  }

  /**
   * What an earlier run sent is kept as far as it is right. Of what this one sent, the host
   * acknowledged it, and the proof comes anyway.
   */
  async #openPartial(
    connection: SftpConnection,
    partial: string,
    sending: Sending,
  ): Promise<RemoteFile> {
    const path = this.#full(partial)
    const { local, sizeBytes, sentBytes } = sending
    const there = await connection.lstat(path)
    if (there !== undefined && there.kind !== 'file') throw this.#inTheWay(partial)
    const isLonger = (there?.sizeBytes ?? 0) > sizeBytes
    if (isLonger) await connection.remove(path)
    if (there === undefined || isLonger) {
      sending.sentBytes = 0
      sending.provenBytes = 0
      return await connection.open(path, 'create')
    }
    const file = await connection.open(path, 'update')
    if (sentBytes === undefined || there.sizeBytes < sentBytes) {
      sending.provenBytes = 0
      const part = { connection, file, local, sizeBytes: there.sizeBytes, from: 0 }
      sending.sentBytes = await countMatching(part)
    }
    return file
  }

  /** Without overwriting. */
  async #rename(
    connection: SftpConnection,
    { from, to }: { readonly from: string; readonly to: string },
  ): Promise<void> {
    try {
      await connection.rename(this.#full(from), this.#full(to))
    } catch (error) {
      if (!isTrouble(error, 'failure')) throw error
      // The protocol has no word for a name that is taken.
      if ((await connection.lstat(this.#full(to))) === undefined) throw error
      throw takenError(this.#display(to))
    }
  }

  /** Names survive a power cut. Hosts that cannot do it refuse in many ways. */
  async #syncDirectory(connection: SftpConnection, directory: string): Promise<void> {
    try {
      const file = await connection.open(this.#full(directory), 'read')
      await withFile({ connection, file }, async () => await connection.sync(file))
    } catch (error) {
      if (!(error instanceof SftpFailure) || error.trouble === 'lost') throw error
    }
  }

  #full(path: string): string {
    if (path === '') return this.#root
    return this.#root === '/' ? `/${path}` : `${this.#root}/${path}`
  }

  /** For messages. */
  #display(path: string): string {
    return displayText(path === '' ? this.place : `${this.place}/${path}`)
  }

  #inTheWay(path: string): BackupError {
    return inTheWayError(this.#display(path))
  }

  #noParent(): BackupError {
    return new BackupError(
      'TARGET_ABSENT',
      `target ${this.name}: the directory above ${this.place} is not there`,
      { hint: 'mount the disk that has it, or make it there; nothing was written' },
    )
  }
}

function isTrouble(error: unknown, trouble: SftpFailure['trouble']): boolean {
  return error instanceof SftpFailure && error.trouble === trouble
}

interface OpenFile {
  readonly connection: SftpConnection
  readonly file: RemoteFile
}

/** Closes the file afterwards, and does not wait for that: the next call comes behind it anyway. */
async function withFile<T>({ connection, file }: OpenFile, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } finally {
    connection.close(file).catch(() => {})
  }
}

async function writeBytes({ connection, file }: OpenFile, bytes: Buffer): Promise<void> {
  for (let offset = 0; offset < bytes.length; offset += connection.blockBytes) {
    const block = bytes.subarray(offset, offset + connection.blockBytes)
    await connection.write(file, block, offset)
  }
}

async function openSpooled(path: RawPath): Promise<FileHandle> {
  try {
    return await open(rawPathToBytes(path), constants.O_RDONLY | constants.O_NOFOLLOW)
  } catch (error) {
    throw spoolError({ error, path })
  }
}

/** @throws BackupError READ_BACK where a spooled file is not what was written */
async function refuseChanged(
  local: FileHandle,
  { path, sha256 }: { readonly path: RawPath; readonly sha256: string },
): Promise<void> {
  const hash = createHash('sha256')
  const buffer = Buffer.allocUnsafe(HASHED_BYTES)
  for (let position = 0; ;) {
    const { bytesRead } = await local.read(buffer, 0, buffer.length, position)
    if (bytesRead === 0) break
    hash.update(buffer.subarray(0, bytesRead))
    position += bytesRead
  }
  if (hash.digest('hex') === sha256) return
  throw new BackupError('READ_BACK', `what waits to be sent has changed: ${displayPath(path)}`, {
    hint: 'suspect the disk of staging; the next run makes it anew; nothing was sent',
  })
}

/** Read at once to hash a file. */
const HASHED_BYTES = 4 * 2 ** 20

function spoolError({ error, path }: { error: unknown; path: RawPath }): Error {
  const code = systemCode(error)
  if (code === undefined) return error instanceof Error ? error : new Error(String(error))
  const isFull = code === 'ENOSPC' || code === 'EDQUOT'
  return new BackupError(
    isFull ? 'STAGING_FULL' : 'STAGING_FAILED',
    `the spool failed (${code}): ${displayPath(path)}`,
    {
      hint: 'what waits to be sent lies in staging; what is on the host is unharmed',
      facts: { ...pathFacts(path), system: code },
      cause: error,
    },
  )
}

function tooMany(path: string): BackupError {
  return new BackupError('TARGET_FAILED', `too many files in ${path}`, {
    hint: `a repository has fewer than ${MAX_TREE}; nothing was changed`,
  })
}
