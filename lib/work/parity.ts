// Parity of what is on a target: a file of par2 beside every bundle and manifest, by which
// repair.ts mends a damaged one without any key.
//
// addParity makes what is missing, after an export or a repair; a killed run's next one completes
// it. No parity is made of a file that does not have its signed SHA-256. The rest is what repair.ts
// shares: which files are protected, reading one, bringing one onto the target. Throws
// TARGET_*, READ_BACK, STAGING_*, PROGRAM_*, INTERRUPTED; the exports themselves are unharmed then.

import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import {
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  rmSync,
  unlinkSync,
} from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import { crc32 } from 'node:zlib'
import { BackupError, systemCode, unpackError } from '../errors.ts'
import { isRunning } from '../machine/processes.ts'
import { writeAll } from '../machine/durable-file.ts'
import { createParity, parityBytes, parityShape, readParity } from '../machine/par2.ts'
import { dropPageCache } from '../machine/posix.ts'
import { exportName } from '../model/manifest.ts'
import {
  type RawPath,
  baseOf,
  displayPath,
  parentOf,
  rawPathFromText,
  rawPathToBytes,
} from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import { MANIFEST, bundlePath } from '../model/verification.ts'
import { targetError } from '../target/target-error.ts'
import type { Target } from '../target/target.ts'
import type { ProveReply, ProveRequest } from './prove-worker.ts'
import { BLOCK_BYTES, type WrittenFile } from './prove.ts'
import {
  type Repository,
  directoryOf,
  exportsOf,
  listStamps,
  readVerification,
} from './repository.ts'
import { stagingError } from './staging.ts'
import { WORKER_LIMITS } from './worker-pool.ts'
import { endWorkers } from '../machine/threads.ts'

/** The parity file of `<bundle>` is `<bundle>.par2` (docs/format.md §2). */
export const PARITY_SUFFIX = '.par2'

export interface ParityOptions {
  readonly machine: string
  /** How much redundancy, in percent of each file; 0 makes none. */
  readonly percent: number
  /** Whose signatures count. */
  readonly publicKeys: readonly string[]
  /** par2 works in a directory there. */
  readonly staging: string
  readonly report: Report
  readonly signal: AbortSignal
}

export interface ParityOutcome {
  /** Parity files made, and their sizes. */
  readonly files: number
  readonly bytes: number
  /** Files that are not what was signed: no parity was made of them. */
  readonly damaged: readonly string[]
  /** How many files have none because the target has no room. */
  readonly withoutRoom: number
}

/** A bundle or manifest that an export needs. */
export interface ProtectedFile {
  /** On the target: `machines/…`. */
  readonly path: string
  /** Undefined where it is missing. */
  readonly sizeBytes: number | undefined
  /** As signed. */
  readonly sha256: string
  /** The exports that need it: `<machine>/<set>/<stamp>`, oldest first. */
  readonly neededBy: readonly string[]
  readonly hasParity: boolean
}

/**
 * Makes the parity that is missing beside the bundles and manifests of this machine's exports. A
 * full target and damaged files are told as warnings: the exports exist without parity. The caller
 * holds the run's lock.
 * @throws BackupError as the header says
 */
export async function addParity(
  repository: Repository,
  options: ParityOptions,
): Promise<ParityOutcome> {
  const nothing = { files: 0, bytes: 0, damaged: [], withoutRoom: 0 }
  if (options.percent === 0) return nothing
  sweepScratch(options.staging)
  const { files } = await protectedFiles(repository, options)
  const todo = files.filter(({ sizeBytes, hasParity }) => sizeBytes !== undefined && !hasParity)
  if (todo.length === 0) return nothing
  options.report({ kind: 'phase', name: 'adding parity' })
  return await withScratch(options.staging, async (scratch) => {
    return await addEach(repository.target, todo, { ...options, scratch })
  })
}

type AddOptions = ParityOptions & { readonly scratch: RawPath }

async function addEach(
  target: Target,
  todo: readonly ProtectedFile[],
  options: AddOptions,
): Promise<ParityOutcome> {
  const { report, percent } = options
  const bytesTotal = todo.reduce((sum, { sizeBytes = 0 }) => sum + sizeBytes, 0)
  const damaged: string[] = []
  let [files, bytes, bytesDone] = [0, 0, 0]
  for (const [index, file] of todo.entries()) {
    const sizeBytes = file.sizeBytes ?? 0
    const made = await unlessFull(target, parityBytes(parityShape({ sizeBytes, percent })), () =>
      addOne(target, file, options),
    )
    if (made === 'full') {
      const withoutRoom = todo.length - index
      tellFull(target, { report, withoutRoom })
      return { files, bytes, damaged, withoutRoom }
    }
    if (made === 'damaged') damaged.push(file.path)
    else [files, bytes] = [files + 1, bytes + made]
    bytesDone += sizeBytes
    const counts = { filesDone: index + 1, filesTotal: todo.length, bytesDone, bytesTotal }
    report({ kind: 'progress', phase: 'adding parity', ...counts, bytesWritten: bytes })
  }
  return { files, bytes, damaged, withoutRoom: 0 }
}

async function unlessFull<T>(
  target: Target,
  needBytes: number,
  work: () => Promise<T>,
): Promise<T | 'full'> {
  const freeBytes = await target.freeBytes()
  if (freeBytes !== undefined && freeBytes < needBytes) return 'full'
  try {
    return await work()
  } catch (error) {
    if (error instanceof BackupError && error.code === 'TARGET_FULL') return 'full'
    throw error
  }
}

function tellFull(
  target: Target,
  { report, withoutRoom }: { readonly report: Report; readonly withoutRoom: number },
): void {
  const files = withoutRoom === 1 ? '1 file' : `${withoutRoom} files`
  report({
    kind: 'notice',
    level: 'warning',
    code: 'PARITY_MISSING',
    message:
      `${target.name} has no room for the parity of ${files}: the exports are whole without it, `
      + 'and the next run tries again',
    facts: { target: target.name, withoutRoom },
  })
}

/** @returns the size of the parity file, or that the file is not what was signed */
async function addOne(
  target: Target,
  file: ProtectedFile,
  { percent, report, signal, scratch }: AddOptions,
): Promise<number | 'damaged'> {
  const source = target.localPath(file.path)
  const measured = await measureFile(source, { signal })
  if (typeof measured === 'string' || measured.sha256 !== file.sha256) {
    tellDamaged(target, { file, report })
    return 'damaged'
  }
  const shape = parityShape({ sizeBytes: measured.sizeBytes, percent })
  emptyDirectory(scratch)
  const volume = await createParity({ source, scratch, shape, signal })
  // par2 has read the file again, and a worn medium need not give the same twice: the checksum
  // that par2 took has to be the one taken together with the signed one.
  const facts = await readParity(volume, { signal })
  if (facts?.md5 !== measured.md5 || facts.sizeBytes !== measured.sizeBytes) {
    throw new BackupError('READ_BACK', `${displayPath(source)} read differently the second time`, {
      hint: 'no parity was made of it, the exports are as they were; check the drive and its cable',
      facts: { path: file.path },
    })
  }
  const path = `${file.path}${PARITY_SUFFIX}`
  const { sizeBytes } = await deliver(target, { from: volume, path, signal })
  await target.publish(path)
  emptyDirectory(scratch)
  return sizeBytes
}

function tellDamaged(
  target: Target,
  { file, report }: { readonly file: ProtectedFile; readonly report: Report },
): void {
  const { path, neededBy } = file
  report({
    kind: 'notice',
    level: 'warning',
    code: 'BUNDLE_DAMAGED',
    message:
      `${path} on ${target.name} is damaged, so no parity was made of it: `
      + '`backup-restore --verify` tells what that costs',
    facts: { target: target.name, path, neededBy },
  })
}

/**
 * Every bundle and manifest that this machine's exports need, by the signed verification files; of
 * exports whose file cannot be trusted, why.
 */
export async function protectedFiles(
  repository: Repository,
  of: {
    readonly machine: string
    readonly publicKeys: readonly string[]
    /** Only exports of these sets; undefined: of all. */
    readonly sets?: ReadonlySet<string>
  },
): Promise<{
  readonly files: readonly ProtectedFile[]
  readonly problems: readonly BackupError[]
}> {
  const { machine, publicKeys, sets } = of
  const stamps = await listStamps(repository, machine)
  const sizes = new Map<string, number>(
    stamps.flatMap((place) =>
      [...place.files].map(([name, size]) => [`${directoryOf(place)}/${name}`, size] as const),
    ),
  )
  const needed = new Map<string, { readonly sha256: string; readonly neededBy: string[] }>()
  const problems: BackupError[] = []
  // Oldest first: what the newest export says of a bundle counts.
  const exports = exportsOf(stamps)
    .filter(({ set }) => sets?.has(set) ?? true)
    .sort((a, b) => (a.stamp < b.stamp ? -1 : 1))
  for (const place of exports) {
    try {
      const signed = await readVerification(repository, place, publicKeys)
      const manifest = `${directoryOf(place)}/${MANIFEST}`
      const files = new Map<string, string>([[manifest, signed.manifestSha256]])
      for (const [bundle, sha256] of signed.bundles) {
        files.set(bundlePath(machine, bundle), sha256)
      }
      for (const [path, sha256] of files) {
        const neededBy = [...(needed.get(path)?.neededBy ?? []), exportName(place)]
        needed.set(path, { sha256, neededBy })
      }
    } catch (error) {
      if (!(error instanceof BackupError)) throw error
      problems.push(error)
    }
  }
  const files = [...needed].map(([path, { sha256, neededBy }]) => {
    const hasParity = sizes.has(`${path}${PARITY_SUFFIX}`)
    return { path, sizeBytes: sizes.get(path), sha256, neededBy, hasParity }
  })
  return { files, problems }
}

export interface MeasuredFile {
  readonly sizeBytes: number
  readonly sha256: string
  readonly md5: string
}

/**
 * Both digests of a file in one pass, from the medium and not from the page cache.
 * @returns `missing` where there is none, `unreadable` where the medium does not give it
 */
export async function measureFile(
  path: RawPath,
  { signal }: { readonly signal: AbortSignal },
): Promise<MeasuredFile | 'missing' | 'unreadable'> {
  const sha256 = createHash('sha256')
  const md5 = createHash('md5')
  let sizeBytes = 0
  try {
    const handle = await openToRead(path)
    try {
      await handle.sync()
      dropPageCache(handle.fd)
      for await (const bytes of readBlocks(handle, { signal })) {
        sha256.update(bytes)
        md5.update(bytes)
        sizeBytes += bytes.length
      }
    } finally {
      await handle.close()
    }
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return 'missing'
    if (isUnreadable(error)) return 'unreadable'
    throw targetError({ error, path })
  }
  return { sizeBytes, sha256: sha256.digest('hex'), md5: md5.digest('hex') }
}

/** Whether the medium cannot give some bytes of a file. */
export function isUnreadable(error: unknown): boolean {
  return ['EIO', 'EBADMSG', 'EUCLEAN'].includes(systemCode(error) ?? '')
}

export async function openToRead(path: RawPath): Promise<FileHandle> {
  // Not blocking: what lies there may be a pipe.
  const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = constants
  const handle = await open(rawPathToBytes(path), O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
  if ((await handle.stat()).isFile()) return handle
  await handle.close()
  throw new BackupError('TARGET_FOREIGN', `${displayPath(path)} is no file`, {
    hint: 'move it away: it is not what this program writes there; nothing was changed',
  })
}

/** The file's bytes in the blocks of prove.ts, the last one shorter; valid until the next. */
async function* readBlocks(
  handle: FileHandle,
  { signal }: { readonly signal: AbortSignal },
): AsyncGenerator<Buffer> {
  const block = Buffer.allocUnsafe(BLOCK_BYTES)
  for (let offset = 0; ; offset += BLOCK_BYTES) {
    let length = 0
    for (let read = -1; length < BLOCK_BYTES && read !== 0; length += read) {
      if (signal.aborted) throw interrupted()
      read = (await handle.read(block, length, BLOCK_BYTES - length, offset + length)).bytesRead
    }
    if (length > 0) yield block.subarray(0, length)
    if (length < BLOCK_BYTES) return
  }
}

function interrupted(): BackupError {
  const hint = 'the exports are as they were; start it again'
  return new BackupError('INTERRUPTED', 'interrupted', { hint })
}

/**
 * Brings a file from scratch onto the target as `<path>.partial`, proven on the medium: publish()
 * gives it its name.
 * @throws BackupError READ_BACK, TARGET_*; nothing is left of it then
 */
export async function deliver(
  target: Target,
  of: {
    readonly from: RawPath
    readonly path: string
    /** What it has to be. */
    readonly sha256?: string
    readonly signal: AbortSignal
  },
): Promise<MeasuredFile> {
  const { from, path, signal } = of
  const partial = `${await target.workDirectory(parentOf(path))}/${baseOf(path)}.partial`
  await target.remove(`${path}.partial`)
  const sha256 = createHash('sha256')
  const md5 = createHash('md5')
  const sums: number[] = []
  let sizeBytes = 0
  const source = await openToRead(from)
  try {
    const fd = create(partial)
    try {
      for await (const bytes of readBlocks(source, { signal })) {
        write(fd, { bytes, partial })
        sha256.update(bytes)
        md5.update(bytes)
        sums.push(crc32(bytes))
        sizeBytes += bytes.length
      }
    } catch (error) {
      closeSync(fd)
      throw error
    }
    const measured = { sizeBytes, sha256: sha256.digest('hex'), md5: md5.digest('hex') }
    if (of.sha256 !== undefined && of.sha256 !== measured.sha256) {
      closeSync(fd)
      throw notAsSigned(path)
    }
    await proveInThread({ path: partial, fd, lengthBytes: sizeBytes, sums }, signal)
    return measured
  } catch (error) {
    removeQuietly(partial)
    throw error
  } finally {
    await source.close()
  }
}

export function notAsSigned(path: string): BackupError {
  return new BackupError('BUNDLE_DAMAGED', `par2 did not bring back what was signed: ${path}`, {
    hint: 'the damaged file is as it was; restore what it holds from another target',
    facts: { path },
  })
}

function create(partial: RawPath): number {
  const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = constants
  try {
    return openSync(rawPathToBytes(partial), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600)
  } catch (error) {
    throw targetError({ error, path: partial })
  }
}

function write(fd: number, { bytes, partial }: { bytes: Buffer; partial: RawPath }): void {
  try {
    writeAll(fd, bytes)
  } catch (error) {
    throw targetError({ error, path: partial })
  }
}

/** Waiting for the medium would hold up the signals: as in an export, a thread does. */
async function proveInThread(file: WrittenFile, signal: AbortSignal): Promise<void> {
  const worker = new Worker(new URL('./prove-worker.js', import.meta.url), {
    resourceLimits: WORKER_LIMITS,
    // It closes what was opened here.
    trackUnmanagedFds: false,
  })
  try {
    worker.postMessage({ bundle: 0, file, isSpooled: false } satisfies ProveRequest)
    const [reply] = (await once(worker, 'message', { signal })) as [ProveReply]
    if (reply.kind === 'failed') throw asOurs(unpackError(reply.error))
  } catch (error) {
    throw signal.aborted ? interrupted() : error
  } finally {
    await endWorkers([worker])
  }
}

/** An export's words for it would say that there is none. */
function asOurs(error: Error): Error {
  if (!(error instanceof BackupError) || error.code !== 'READ_BACK') return error
  return new BackupError('READ_BACK', error.message, {
    hint: 'the exports are as they were; check the drive and its cable',
    facts: error.facts,
    cause: error,
  })
}

function removeQuietly(path: RawPath): void {
  try {
    unlinkSync(rawPathToBytes(path))
  } catch {
    // The failure that led here is the one to report; a partial name is swept by the next run.
  }
}

/**
 * A directory of this process in staging for par2, gone afterwards. The target's system errors are
 * wrapped where they are met, so one that comes out of `work` is staging's.
 * @throws BackupError STAGING_FULL, STAGING_FAILED
 */
export async function withScratch<T>(
  staging: string,
  work: (scratch: RawPath) => Promise<T>,
): Promise<T> {
  const above = `${staging}/.state`
  const scratch = rawPathFromText(`${above}/${SCRATCH}${process.pid}`)
  try {
    mkdirSync(above, { recursive: true, mode: 0o700 })
    emptyDirectory(scratch)
    return await work(scratch)
  } catch (error) {
    throw stagingError({ error, staging, doing: 'written' })
  } finally {
    rmSync(rawPathToBytes(scratch), { recursive: true, force: true })
  }
}

/** Removes the directories of processes that were killed. */
export function sweepScratch(staging: string): void {
  const above = `${staging}/.state`
  try {
    for (const name of existsSync(above) ? readdirSync(above) : []) {
      const pid = /^parity-([1-9]\d*)$/.exec(name)?.[1]
      const isDead = pid !== undefined && !isRunning(Number(pid))
      if (isDead) rmSync(`${above}/${name}`, { recursive: true, force: true })
    }
  } catch (error) {
    throw stagingError({ error, staging, doing: 'written' })
  }
}

const SCRATCH = 'parity-'

/** Makes it if need be. */
export function emptyDirectory(path: RawPath): void {
  rmSync(rawPathToBytes(path), { recursive: true, force: true })
  mkdirSync(rawPathToBytes(path), { mode: 0o700 })
}
