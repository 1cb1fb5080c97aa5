// Mends damaged bundles and manifests on a target by their parity, without any key.
//
// planRepair reads everything that this machine's exports need and says what par2 can do about what
// is damaged; repairFiles does it, and parity.ts makes new parity where the old is damaged. A
// damaged file is copied into staging and mended there; only what has its signed SHA-256 comes back
// to the target, read back from the medium. The damaged one is kept beside it. Killed at any
// moment, the next repair needs no help. Throws what parity.ts does.

import { Buffer } from 'node:buffer'
import { closeSync, existsSync, openSync, readFileSync } from 'node:fs'
import type { FileHandle } from 'node:fs/promises'
import { BackupError, systemCode } from '../errors.ts'
import { writeAll } from '../machine/durable-file.ts'
import { type ParityVerdict, judgeParity, readParity, repairByParity } from '../machine/par2.ts'
import { type RawPath, baseOf, parentOf, rawPathToBytes } from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import { MANIFEST } from '../model/verification.ts'
import { targetError } from '../target/target-error.ts'
import { type Target, asideName } from '../target/target.ts'
import {
  type MeasuredFile,
  PARITY_SUFFIX,
  type ProtectedFile,
  deliver,
  emptyDirectory,
  isUnreadable,
  measureFile,
  notAsSigned,
  openToRead,
  protectedFiles,
  sweepScratch,
  withScratch,
} from './parity.ts'
import type { Repository } from './repository.ts'

export interface RepairOptions {
  readonly machine: string
  readonly publicKeys: readonly string[]
  /** Only exports of these sets; undefined: of all. */
  readonly sets?: ReadonlySet<string>
  /** Damaged files are copied there and mended. */
  readonly staging: string
  readonly report: Report
  readonly signal: AbortSignal
}

export interface DamagedFile extends ProtectedFile {
  readonly state: 'damaged' | 'missing' | 'unreadable'
  readonly verdict: ParityVerdict | { readonly kind: 'no parity' }
}

export interface RepairPlan {
  readonly files: number
  readonly bytes: number
  readonly damaged: readonly DamagedFile[]
  /** Parity files that are damaged themselves, beside what is whole. */
  readonly badParity: readonly string[]
  /** Whole files that have none. */
  readonly withoutParity: readonly string[]
  /** Exports whose verification file cannot be trusted: what only they need was not looked at. */
  readonly problems: readonly BackupError[]
}

export interface RepairedFile {
  readonly path: string
  /** What the damaged one is called now; undefined where there was none. */
  readonly aside: string | undefined
}

export interface RepairOutcome {
  readonly repaired: readonly RepairedFile[]
  readonly failed: readonly { readonly path: string; readonly error: BackupError }[]
}

/** Whether par2 can mend it. A copy may read well where the first look did not. */
export function isRepairable({ verdict }: Pick<DamagedFile, 'verdict'>): boolean {
  return verdict.kind === 'repairable' || verdict.kind === 'whole'
}

/** What can be done about a damaged file, in words. */
export function describeVerdict(verdict: DamagedFile['verdict']): string {
  if (verdict.kind === 'no parity') return 'there is no parity to mend it by'
  if (verdict.kind === 'parity damaged') return 'its parity is damaged, too'
  if (verdict.kind === 'whole') return 'it can be mended: a second look found it whole'
  const { dataBlocks, usableBlocks, recoveryBlocks, missingBlocks } = verdict
  const lost = dataBlocks - usableBlocks
  if (verdict.kind === 'repairable') {
    return `it can be mended: ${lost} of ${dataBlocks} blocks are lost, ${recoveryBlocks} are spare`
  }
  return `${lost} of ${dataBlocks} blocks are lost: ${missingBlocks} more spare ones are needed`
}

/**
 * Reads all that this machine's exports need, and their parity. Changes nothing on the target.
 * @throws BackupError as the header says
 */
export async function planRepair(
  { target, ...rest }: Repository,
  options: RepairOptions,
): Promise<RepairPlan> {
  const { report, signal, staging } = options
  sweepScratch(staging)
  const { files, problems } = await protectedFiles({ target, ...rest }, options)
  const bytesTotal = files.reduce((sum, { sizeBytes = 0 }) => sum + sizeBytes, 0)
  const damaged: DamagedFile[] = []
  const badParity: string[] = []
  const withoutParity: string[] = []
  let bytesDone = 0
  report({ kind: 'phase', name: 'checking' })
  for (const [index, file] of files.entries()) {
    const measured = await measureFile(target.localPath(file.path), { signal })
    if (typeof measured === 'string' || measured.sha256 !== file.sha256) {
      const state = typeof measured === 'string' ? measured : 'damaged'
      const verdict = await assessFile(target, { file, staging, signal })
      damaged.push({ ...file, state, verdict })
    } else if (!file.hasParity) withoutParity.push(file.path)
    else if (!(await isParityOf(target, { file, measured, signal }))) {
      badParity.push(`${file.path}${PARITY_SUFFIX}`)
    }
    bytesDone += file.sizeBytes ?? 0
    const counts = { filesDone: index + 1, filesTotal: files.length, bytesDone, bytesTotal }
    report({ kind: 'progress', phase: 'checking', ...counts })
  }
  const counts = { files: files.length, bytes: bytesDone }
  return { ...counts, damaged, badParity, withoutParity, problems }
}

/** Whether the parity file is whole, and made of the file as it is. */
async function isParityOf(
  target: Target,
  of: {
    readonly file: ProtectedFile
    readonly measured: MeasuredFile
    readonly signal: AbortSignal
  },
): Promise<boolean> {
  const { file, measured, signal } = of
  const path = target.localPath(`${file.path}${PARITY_SUFFIX}`)
  try {
    const facts = await readParity(path, { signal })
    return facts?.md5 === measured.md5 && facts.sizeBytes === measured.sizeBytes
  } catch (error) {
    if (isUnreadable(error)) return false
    throw targetError({ error, path })
  }
}

/**
 * What par2 can do about a damaged or missing file, found on a copy: verify tells it, too.
 * @throws BackupError STAGING_*, PROGRAM_*, TARGET_*
 */
export async function assessFile(
  target: Target,
  of: {
    readonly file: Pick<ProtectedFile, 'path' | 'hasParity'>
    readonly staging: string
    readonly signal: AbortSignal
  },
): Promise<DamagedFile['verdict']> {
  const { file, staging, signal } = of
  if (!file.hasParity) return { kind: 'no parity' }
  return await withScratch(staging, async (scratch) => {
    const copies = await copyIntoScratch(target, { path: file.path, scratch, signal })
    return await judgeParity({ ...copies, signal })
  })
}

/**
 * What `backup repair` can do about damaged bundles and manifests, in words, one line each; nothing
 * of those without parity.
 * @param of.paths on the target: `machines/…`
 */
export async function repairAdvice(
  target: Target,
  of: { readonly paths: readonly string[]; readonly staging: string; readonly signal: AbortSignal },
): Promise<readonly string[]> {
  const { paths, staging, signal } = of
  const advice: string[] = []
  for (const path of paths) {
    const files = (await target.list(parentOf(path))) ?? []
    const hasParity = files.some(({ name }) => name === `${baseOf(path)}${PARITY_SUFFIX}`)
    if (!hasParity) continue
    try {
      const verdict = await assessFile(target, { file: { path, hasParity }, staging, signal })
      const isMendable = isRepairable({ verdict })
      const next = isMendable ? `: \`backup repair --target ${target.name}\`` : ''
      advice.push(`${path}: ${describeVerdict(verdict)}${next}`)
    } catch (error) {
      if (!(error instanceof BackupError) || error.code === 'INTERRUPTED') throw error
      advice.push(`${path}: there is parity, but ${error.message}`)
    }
  }
  return advice
}

/**
 * Mends those of the plan that can be mended. One that fails does not hold up the others. The
 * caller holds the run's lock.
 * @throws BackupError INTERRUPTED
 */
export async function repairFiles(
  { target }: Repository,
  plan: Pick<RepairPlan, 'damaged'>,
  { staging, report, signal }: Pick<RepairOptions, 'staging' | 'report' | 'signal'>,
): Promise<RepairOutcome> {
  const repaired: RepairedFile[] = []
  const failed: { readonly path: string; readonly error: BackupError }[] = []
  const todo = plan.damaged.filter(isRepairable)
  if (todo.length > 0) report({ kind: 'phase', name: 'repairing' })
  for (const file of todo) {
    try {
      repaired.push(
        await withScratch(staging, async (scratch) => {
          return await repairOne(target, { file, scratch, signal })
        }),
      )
    } catch (error) {
      if (!(error instanceof BackupError) || error.code === 'INTERRUPTED') throw error
      failed.push({ path: file.path, error })
    }
    const filesDone = repaired.length + failed.length
    const counts = { filesDone, filesTotal: todo.length, bytesDone: 0 }
    report({ kind: 'progress', phase: 'repairing', ...counts })
  }
  return { repaired, failed }
}

async function repairOne(
  target: Target,
  of: { readonly file: DamagedFile; readonly scratch: RawPath; readonly signal: AbortSignal },
): Promise<RepairedFile> {
  const { file, signal, scratch } = of
  const { path, sha256 } = file
  const copies = await copyIntoScratch(target, { ...of, path })
  const from = `${scratch}/${baseOf(path)}`
  const isManifest = baseOf(path) === MANIFEST
  const damaged = isManifest ? readFileSync(rawPathToBytes(from)) : undefined
  const verdict = await repairByParity({ ...copies, signal })
  if (verdict.kind !== 'whole') {
    throw new BackupError('BUNDLE_DAMAGED', `${path}: ${describeVerdict(verdict)}`, {
      hint: 'it is as it was; restore what it holds from another target',
      facts: { path },
    })
  }
  if (damaged !== undefined) return await replaceManifest(target, { ...of, damaged, from })
  await deliver(target, { from, path, sha256, signal })
  // A kill here leaves the name missing and the damaged one beside it: copyIntoScratch takes that.
  const aside = file.state === 'missing' ? undefined : await target.setAside(path)
  await target.publish(path)
  return { path, aside }
}

/**
 * Without its manifest an export does not exist, and what it needs would be swept. So a manifest's
 * name is never missing: the damaged one is copied aside, and replaced at once.
 */
async function replaceManifest(
  target: Target,
  of: {
    readonly file: DamagedFile
    readonly damaged: Buffer
    readonly from: RawPath
    readonly signal: AbortSignal
  },
): Promise<RepairedFile> {
  const { file, damaged, from, signal } = of
  const { path, sha256 } = file
  let number = 1
  while (existsSync(rawPathToBytes(target.localPath(asideName(path, number))))) number += 1
  const aside = asideName(path, number)
  const mended = await measureFile(from, { signal })
  if (typeof mended === 'string' || mended.sha256 !== sha256) throw notAsSigned(path)
  await target.write(aside, damaged)
  await target.replace(path, readFileSync(rawPathToBytes(from)))
  const measured = await measureFile(target.localPath(path), { signal })
  if (typeof measured === 'object' && measured.sha256 === sha256) return { path, aside }
  throw new BackupError('READ_BACK', `the medium does not hold what was written to ${path}`, {
    hint: 'the manifest is still damaged, its parity is whole; check the drive and its cable',
    facts: { path },
  })
}

/**
 * Copies a damaged file and its parity into scratch, under their own names. Where the file is
 * missing, what an earlier repair moved aside is taken instead.
 */
async function copyIntoScratch(
  target: Target,
  of: { readonly path: string; readonly scratch: RawPath; readonly signal: AbortSignal },
): Promise<{ readonly parity: RawPath; readonly besides: readonly RawPath[] }> {
  const { path, scratch, signal } = of
  emptyDirectory(scratch)
  const name = baseOf(path)
  const copy = async (from: string, to: RawPath): Promise<boolean> => {
    return await salvage({ from: target.localPath(from), to, signal })
  }
  const parity = `${scratch}/${name}${PARITY_SUFFIX}`
  await copy(`${path}${PARITY_SUFFIX}`, parity)
  if (await copy(path, `${scratch}/${name}`)) return { parity, besides: [] }
  const files = (await target.list(parentOf(path))) ?? []
  const asides = files.filter((file) => file.name.startsWith(`${name}.damaged`))
  const besides: RawPath[] = []
  for (const aside of asides.filter(({ kind }) => kind === 'file')) {
    const to = `${scratch}/${aside.name}`
    if (await copy(`${parentOf(path)}/${aside.name}`, to)) besides.push(to)
  }
  return { parity, besides }
}

/** Read at once; where that fails, in the sectors of a drive. */
const CHUNK_BYTES = 1024 * 1024
const SECTOR_BYTES = 4096

/** Reads `length` bytes at `offset` into the buffer; gives how many there were. */
type Read = (buffer: Buffer, length: number, offset: number) => Promise<number>

/**
 * Copies what the medium still gives of a file, with zeros for what it does not.
 * @returns false where there is no such file
 */
export async function salvage(of: {
  readonly from: RawPath
  readonly to: RawPath
  readonly signal: AbortSignal
  /** How a file is read, for media that fail as a test wants. */
  readonly reader?: (handle: FileHandle) => Read
}): Promise<boolean> {
  const { from, to, signal, reader = plainReader } = of
  let handle: FileHandle
  try {
    handle = await openToRead(from)
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return false
    throw targetError({ error, path: from })
  }
  try {
    const { size } = await handle.stat()
    const fd = openSync(rawPathToBytes(to), 'wx', 0o600)
    try {
      const read = reader(handle)
      const chunk = Buffer.allocUnsafe(CHUNK_BYTES)
      for (let offset = 0; offset < size; offset += CHUNK_BYTES) {
        if (signal.aborted) throw new BackupError('INTERRUPTED', 'interrupted')
        const length = Math.min(CHUNK_BYTES, size - offset)
        await readChunk({ read, chunk, length, offset, from })
        writeAll(fd, chunk.subarray(0, length))
      }
    } finally {
      closeSync(fd)
    }
  } finally {
    await handle.close()
  }
  return true
}

function plainReader(handle: FileHandle): Read {
  return async (buffer, length, offset) => (await handle.read(buffer, 0, length, offset)).bytesRead
}

async function readChunk(of: {
  readonly read: Read
  readonly chunk: Buffer
  readonly length: number
  readonly offset: number
  readonly from: RawPath
}): Promise<void> {
  const { read, chunk, length, offset, from } = of
  chunk.fill(0, 0, length)
  const readFully = async (start: number, end: number): Promise<void> => {
    for (let done = start; done < end;) {
      const count = await read(chunk.subarray(done), end - done, offset + done)
      if (count === 0) return
      done += count
    }
  }
  try {
    await readFully(0, length)
  } catch (error) {
    if (!isUnreadable(error)) throw targetError({ error, path: from })
    for (let start = 0; start < length; start += SECTOR_BYTES) {
      const end = Math.min(start + SECTOR_BYTES, length)
      try {
        await readFully(start, end)
      } catch (again) {
        if (!isUnreadable(again)) throw targetError({ error: again, path: from })
        chunk.fill(0, start, end)
      }
    }
  }
}
