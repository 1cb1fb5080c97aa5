// All bundles below a directory, whatever their files are called: which are copies of each other,
// which one a catalog means, and where a piece can be read.
//
// scanDirectory finds and looks at files in worker threads (recover-worker.ts), recover-medium.ts
// does where there is no directory; FoundBundles is asked by recover-exports.ts and recover.ts.
// What catalogs call a bundle is matched by its frames and the digest of a piece: a name proves
// nothing. Throws NOTHING_FOUND, IDENTITY_WRONG, INTERRUPTED.

import { closeSync, constants, openSync, readSync, readdirSync } from 'node:fs'
import type { Dirent } from 'node:fs'
import { setImmediate } from 'node:timers/promises'
import { BackupError, systemCode, unpackError } from '../errors.ts'
import { digestOf } from '../format/chunker.ts'
import type { FrameRange } from '../model/entry.ts'
import { type RawPath, displayPath, rawPathToBytes } from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import { type BundlePlace, framesOf } from '../model/shard.ts'
import { bundleFile } from '../model/verification.ts'
import { type BundleAddress, shownPath } from './bundle-address.ts'
import { OpenBundles } from './open-bundles.ts'
import { type FoundContents, type FoundFile, type UnreadFile, isFound } from './recover-scan.ts'
import type { RecoverReply, RecoverRequest, RecoverSettings } from './recover-worker.ts'
import { runWorkers } from './worker-pool.ts'

/** What reading takes. */
export interface ScanOptions {
  readonly identities: readonly string[]
  readonly cores: number
  readonly report: Report
  readonly signal: AbortSignal
}

/** What lies below a directory. */
export interface Scan {
  readonly found: readonly FoundFile[]
  /** They begin as age files do, and that is all there is to say. */
  readonly unread: readonly UnreadFile[]
  /** Files that are something else. */
  readonly others: number
  /** Directories and files that the system does not let us read. */
  readonly denied: readonly { readonly path: RawPath; readonly why: string }[]
}

/** A tree of more files is no backup of ours, and their paths are held in memory. */
const MAX_FILES = 5_000_000
const AGE_MAGIC = 'age-encryption.org/v1\n'
const UNHARMED = 'nothing was changed there; the same command begins again'

/** @throws BackupError NOTHING_FOUND, IDENTITY_WRONG where the identity opens none, INTERRUPTED */
export async function scanDirectory(directory: RawPath, options: ScanOptions): Promise<Scan> {
  options.report({ kind: 'phase', name: 'looking for bundles' })
  const walk = await findAgeFiles(directory, options.signal)
  const { found, unread } = await lookAtFiles(walk.paths, options)
  if (found.length === 0) throw nothingFound(directory, unread)
  return { ...walk, found: inOrder(found), unread: inOrder(unread) }
}

/** What each of them is, in no order. */
export async function lookAtFiles(
  paths: readonly BundleAddress[],
  options: ScanOptions,
): Promise<Pick<Scan, 'found' | 'unread'>> {
  const found: FoundFile[] = []
  const unread: UnreadFile[] = []
  await runRecoverWorkers(
    paths.map((path) => ({ kind: 'look', path }) as const),
    { ...options, ahead: 2 },
    (reply) => {
      if (reply.kind !== 'look') return
      const { look } = reply
      if (isFound(look)) found.push(look)
      else unread.push(look)
      const filesDone = found.length + unread.length
      const filesTotal = paths.length
      const current = shownPath(look.path)
      const phase = 'looking at bundles'
      options.report({ kind: 'progress', phase, filesDone, filesTotal, bytesDone: 0, current })
    },
  )
  return { found, unread }
}

export function inOrder<File extends { readonly path: RawPath }>(
  files: readonly File[],
): readonly File[] {
  return files.toSorted((a, b) => (a.path < b.path ? -1 : 1))
}

export function nothingFound(directory: RawPath, unread: readonly UnreadFile[]): BackupError {
  const [first] = unread
  if (first === undefined) {
    return new BackupError('NOTHING_FOUND', `no bundle lies below ${displayPath(directory)}`, {
      hint: 'is the drive mounted there? bundles begin with "age-encryption.org/v1"',
    })
  }
  const locked = unread.every(({ error }) => error.code === 'IDENTITY_WRONG')
  if (!locked) {
    const { message, hint } = unpackError(first.error) as BackupError
    return new BackupError(
      'BUNDLE_DAMAGED',
      `no bundle of ${unread.length} can be read: ${message}`,
      { hint: hint ?? 'copy the drive first, and work on the copy; nothing was changed' },
    )
  }
  return new BackupError(
    'IDENTITY_WRONG',
    `the identity opens none of ${unread.length} files below ${displayPath(directory)}`,
    { hint: 'they were made for another recipient; try the other identities that you keep' },
  )
}

interface FileWalk {
  readonly paths: readonly RawPath[]
  readonly others: number
  readonly denied: readonly { readonly path: RawPath; readonly why: string }[]
}

/** Follows no link. */
async function findAgeFiles(directory: RawPath, signal: AbortSignal): Promise<FileWalk> {
  const paths: RawPath[] = []
  const denied: { path: RawPath; why: string }[] = []
  let others = 0
  const pending = [directory]
  for (let at = pending.pop(); at !== undefined; at = pending.pop()) {
    await setImmediate()
    if (signal.aborted) throw new BackupError('INTERRUPTED', 'interrupted', { hint: UNHARMED })
    for (const one of readDirectory(at, denied)) {
      const path = `${at}/${one.name}`
      if (one.isDirectory()) pending.push(path)
      if (!one.isFile()) continue
      const isAge = beginsAsAge(path, denied)
      if (isAge === true) paths.push(path)
      if (isAge === false) others += 1
      if (paths.length + others > MAX_FILES) {
        throw new BackupError('NOTHING_FOUND', `there are more than ${MAX_FILES} files`, {
          hint: 'give the directory that holds the backups; nothing was changed',
        })
      }
    }
  }
  return { paths, others, denied }
}

function readDirectory(path: RawPath, denied: { path: RawPath; why: string }[]): readonly Dirent[] {
  try {
    return readdirSync(rawPathToBytes(path), { encoding: 'latin1', withFileTypes: true })
  } catch (error) {
    const why = systemCode(error)
    if (why === undefined) throw error
    denied.push({ path, why })
    return []
  }
}

function beginsAsAge(path: RawPath, denied: { path: RawPath; why: string }[]): boolean | undefined {
  const start = Buffer.alloc(AGE_MAGIC.length)
  try {
    const { O_NOFOLLOW, O_NONBLOCK, O_RDONLY } = constants
    const fd = openSync(rawPathToBytes(path), O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
    try {
      readSync(fd, start)
    } finally {
      closeSync(fd)
    }
  } catch (error) {
    const why = systemCode(error)
    if (why === undefined) throw error
    denied.push({ path, why })
    return undefined
  }
  return start.toString('latin1') === AGE_MAGIC
}

export async function runRecoverWorkers(
  requests: readonly RecoverRequest[],
  { identities, cores, signal, ahead }: ScanOptions & { readonly ahead: 1 | 2 },
  onReply: (reply: RecoverReply) => void,
): Promise<void> {
  const workerData: RecoverSettings = { identities }
  await runWorkers<RecoverRequest, RecoverReply>({
    script: './recover-worker.js',
    workerData,
    requests,
    workers: cores,
    ahead,
    onReply,
    signal,
    interruptedHint: UNHARMED,
  })
}

/** One bundle, in as many files as there are copies of it. */
export interface FoundBundle {
  /** The best first. */
  readonly copies: readonly FoundFile[]
  readonly frames: readonly FrameRange[]
  readonly isCut: boolean
}

/** A run of a bundle's tar, by the bundle's number. */
export interface BundleRange {
  readonly bundle: number
  readonly offset: number
  readonly length: number
}

/** What a run of a bundle has to be, to be sure that it is the bundle that is meant. */
export interface Proof {
  readonly offset: number
  readonly length: number
  /** docs/format.md §1 */
  readonly digest: string
}

/** No bundle that is here. */
export const NOWHERE = -1

export class FoundBundles {
  readonly all: readonly FoundBundle[]
  readonly #options: ScanOptions
  readonly #open: OpenBundles
  readonly #byFrame = new Map<string, number[]>()
  /** What catalogs call them; one name may be that of several, from several repositories. */
  readonly #names = new Map<string, Set<number>>()
  readonly #numbers = new Map<RawPath, number>()
  readonly #named = new Map<number, string>()
  /** By path of a copy: where frames begin that cannot be read. */
  readonly #bad = new Map<RawPath, ReadonlySet<number>>()
  /** Further places of pieces, by id. */
  readonly #elsewhere = new Map<string, BundleRange[]>()

  constructor(found: readonly FoundFile[], options: ScanOptions) {
    this.#options = options
    this.#open = new OpenBundles(options.identities)
    const heads = new Map<string, FoundFile[]>()
    for (const file of found) {
      if (file.kind !== 'data') continue
      const copies = heads.get(file.head)
      if (copies === undefined) heads.set(file.head, [file])
      else copies.push(file)
    }
    this.all = [...heads.values()].map((files) => {
      const copies = files.toSorted((a, b) => worth(b) - worth(a))
      const { frames, isCut } = copies[0]!
      return { copies, frames, isCut }
    })
    for (const [number, { copies, frames }] of this.all.entries()) {
      for (const { path } of copies) this.#numbers.set(path, number)
      for (const frame of frames) {
        const key = frame.join(' ')
        const there = this.#byFrame.get(key)
        if (there === undefined) this.#byFrame.set(key, [number])
        else there.push(number)
      }
    }
  }

  close(): void {
    this.#open.close()
  }

  /** The bundle that a catalog means, or NOWHERE. */
  match(place: BundlePlace, proof: Proof): number {
    const candidates = this.#candidates(place)
    const known = this.#names.get(place.name)
    for (const number of candidates) {
      const isSure = candidates.length === 1 && known?.has(number) === true
      if (!isSure && !this.#proves(number, proof)) continue
      if (known === undefined) this.#names.set(place.name, new Set([number]))
      else known.add(number)
      this.#named.set(number, place.name)
      return number
    }
    return NOWHERE
  }

  /** The number of the bundle that a file is a copy of. */
  numberOf(path: RawPath): number {
    return this.#numbers.get(path) ?? NOWHERE
  }

  /** What a catalog calls a bundle; undefined where none does. */
  nameOf(bundle: number): string | undefined {
    return this.#named.get(bundle)
  }

  /** Bundles that have all frames that are asked for, as far as they go; by name the first. */
  #candidates({ name, frames }: BundlePlace): readonly number[] {
    const numbers = new Set(frames.flatMap((frame) => this.#byFrame.get(frame.join(' ')) ?? []))
    // A bundle that was cut off before all of these frames is known by its name alone.
    for (const number of this.#names.get(name) ?? []) numbers.add(number)
    return [...numbers]
      .filter((number) => frames.every((frame) => this.#mayHave(this.all[number]!, frame)))
      .sort((a, b) => Number(this.#isCalled(b, name)) - Number(this.#isCalled(a, name)))
  }

  #mayHave({ frames, isCut }: FoundBundle, frame: FrameRange): boolean {
    const [tarOffset, , offset] = frame
    const [there] = framesOf(frames, { offset: tarOffset, length: 1 })
    if (there !== undefined) return frame.every((value, i) => value === there[i])
    const [, , lastOffset, lastLength] = frames.at(-1) ?? [0, 0, 0, 0]
    return isCut && offset >= lastOffset + lastLength
  }

  #isCalled(number: number, name: string): boolean {
    return this.all[number]!.copies.some(({ path }) => path.endsWith(`/${bundleFile(name)}`))
  }

  /** Damage disproves nothing: what was read instead would. */
  #proves(number: number, { offset, length, digest }: Proof): boolean {
    const { copies, frames } = this.all[number]!
    for (const { path } of copies) {
      try {
        const bytes = this.#open.reader(path).readTar(frames, { offset, length })
        return digestOf(bytes) === digest
      } catch (error) {
        if (!(error instanceof BackupError)) throw error
      }
    }
    return true
  }

  /** A copy that this run can be read from, as far as is known. */
  copyWith({ bundle, offset, length }: BundleRange): FoundFile | undefined {
    return this.all[bundle]?.copies.find((file) => {
      const frames = framesOf(file.frames, { offset, length })
      const [last] = frames.slice(-1)
      if (length > 0 && (last === undefined || last[0] + last[1] < offset + length)) return false
      const bad = this.#bad.get(file.path)
      return bad === undefined || !frames.some(([tarOffset]) => bad.has(tarOffset))
    })
  }

  /** Where a piece can be read: where its catalog says, or anywhere else. */
  placeOf(
    id: string,
    range: BundleRange,
  ): { readonly file: FoundFile; readonly offset: number } | undefined {
    const { length } = range
    for (const place of [range, ...(this.#elsewhere.get(id) ?? [])]) {
      const file = place.length === length ? this.copyWith(place) : undefined
      if (file !== undefined) return { file, offset: place.offset }
    }
    return undefined
  }

  /** One more place of a piece. */
  addPlace(id: string, range: BundleRange): void {
    const places = this.#elsewhere.get(id)
    if (places === undefined) this.#elsewhere.set(id, [range])
    else if (
      !places.some(({ bundle, offset }) => bundle === range.bundle && offset === range.offset)
    )
      places.push(range)
  }

  /** Whether a file was read whole. */
  isRead(file: FoundFile): boolean {
    return this.#bad.has(file.path)
  }

  /** Why a bundle that is here lacks something: what was wrong with its first damaged copy. */
  whyDamaged(bundle: number): string {
    const { isCut } = this.all[bundle]!
    return isCut ? 'the bundle is cut short' : 'the bundle is damaged there'
  }

  /**
   * Reads files whole, and remembers what cannot be read.
   * @returns what they hold, in no order
   */
  async read(
    files: readonly FoundFile[],
    { phase, withMembers }: { readonly phase: string; readonly withMembers: boolean },
  ): Promise<readonly FoundContents[]> {
    const { report } = this.#options
    const sizes = new Map(files.map(({ path, sizeBytes }) => [path, sizeBytes]))
    const bytesTotal = files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
    const read: FoundContents[] = []
    let bytesDone = 0
    report({ kind: 'phase', name: phase })
    await runRecoverWorkers(
      files.map((file) => ({ kind: 'read', file, withMembers }) as const),
      { ...this.#options, ahead: 1 },
      (reply) => {
        if (reply.kind !== 'read') return
        const { path, bad } = reply.contents
        this.#bad.set(path, new Set(bad))
        read.push(reply.contents)
        bytesDone += sizes.get(path) ?? 0
        const filesDone = read.length
        const filesTotal = files.length
        const counts = { bytesDone, bytesTotal, filesDone, filesTotal }
        report({ kind: 'progress', phase, ...counts, current: shownPath(path) })
      },
    )
    return read
  }
}

/** What is whole is worth more than what is long. */
function worth({ isCut, frames }: FoundFile): number {
  return (isCut ? 0 : 1e9) + frames.length
}
