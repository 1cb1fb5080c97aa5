// A target that is a bucket: see target.ts for the contract, bucket.ts for what is more.
//
// Names are keys below the configured prefix; directories are not there, only what is in them.
// Sending and proving is done by s3-upload.ts, what the service can do is found by s3-probe.ts, and
// the calls are s3-client.ts's. Throws TARGET_ABSENT, TARGET_DENIED, TARGET_FAILED, TARGET_FULL,
// COLD_STORAGE, and READ_BACK where the bucket does not hold what was sent.

import { Buffer } from 'node:buffer'
import { mkdirSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { isCold } from '../model/storage-class.ts'
import { BackupError } from '../errors.ts'
import { placeOf, type S3TargetConfiguration } from '../machine/config-targets.ts'
import { rawPathFromText, type RawPath, rawPathToBytes } from '../model/raw-path.ts'
import type { Bucket, BucketUsage, Capabilities, Warmth } from './bucket.ts'
import type { S3Calls, S3Lock, S3Version } from './s3-calls.ts'
import type { Pacing } from './s3-client.ts'
import { PROBE_FOLDER, readCapabilities } from './s3-probe.ts'
import { abandonUploads, type Sending, sendBytes, sendFile } from './s3-upload.ts'
import { asideName, type ByteRange, type Target, type TargetFile } from './target.ts'
import { targetError } from './target-error.ts'
import { createTransfers, type Transfers } from './transfers.ts'

/** Written once; what is in it names the repository. */
const REPOSITORY_FILE = 'repository.json'

export interface S3TargetOptions {
  readonly configuration: S3TargetConfiguration
  /** A local directory for what waits to be sent, made when it is needed. */
  readonly spool: RawPath
  /** A local file, which remembers what a probe showed. */
  readonly capabilitiesFile: RawPath
  /** With which credentials; `backup` where nothing is said. */
  readonly as?: 'backup' | 'admin'
  /** See s3-client.ts. */
  readonly firstDelayMs?: number
}

/** What is left is tidied up by a later run. */
const CLOSE_MS = 5000

/** What a class is chosen for; everything else is read too often. */
const DATA_BUNDLE = /(^|\/)data-[^/]*\.tar\.zst\.age$/

/**
 * The target, where the bucket answers.
 * @throws BackupError TARGET_ABSENT, TARGET_DENIED, TARGET_FAILED (such as the wrong region)
 */
export async function openS3Target(options: S3TargetOptions): Promise<Target> {
  const { bucket, region, endpoint, isPathStyle, profile, adminProfile } = options.configuration
  const { firstDelayMs } = options
  // The SDK is large, and most runs have no bucket.
  const { createS3Calls } = await import('./s3-client.ts')
  const place = { bucket, region, endpoint, isPathStyle }
  const patience = firstDelayMs === undefined ? {} : { firstDelayMs }
  const transfers = createTransfers(options.configuration)
  const pacing = pacingOf(options.configuration, transfers)
  const calls = createS3Calls({ ...place, ...patience, profile, pacing })
  const adminCalls =
    adminProfile === undefined
      ? calls
      : createS3Calls({ ...place, ...patience, profile: adminProfile, pacing })
  const target = new S3Target({ ...options, calls, adminCalls, transfers })
  try {
    await refuseAbsent(options, options.as === 'admin' ? adminCalls : calls)
    return target
  } catch (error) {
    await target.close()
    throw error
  }
}

/** Undefined where there is no limit. */
function pacingOf(
  { bandwidthLimitBytes }: S3TargetConfiguration,
  { pace }: Transfers,
): Pacing | undefined {
  if (bandwidthLimitBytes === undefined) return undefined
  // A fiftieth of a second each: short enough for whoever shares the line, long for a timer.
  const [least, most] = [16 * 2 ** 10, 2 ** 20]
  const sliceBytes = Math.min(most, Math.max(least, Math.round(bandwidthLimitBytes / 50)))
  return { sliceBytes, pace }
}

async function refuseAbsent({ configuration }: S3TargetOptions, calls: S3Calls): Promise<void> {
  try {
    if (await calls.bucketExists()) return
  } catch (error) {
    // Whoever may only create cannot list, and will be told where that is missed.
    if (error instanceof BackupError && error.facts['s3'] === 'AccessDenied') return
    throw error
  }
  const { name, bucket } = configuration
  throw new BackupError('TARGET_ABSENT', `target ${name}: there is no bucket ${bucket}`, {
    hint: 'make it, or correct bucket, region and endpoint of the target; nothing was written',
    facts: { target: name, bucket, s3: 'NoSuchBucket' },
  })
}

class S3Target implements Target {
  readonly name: string
  readonly drive = undefined
  readonly place: string
  readonly access = 'network'
  readonly bucket: Bucket
  readonly #configuration: S3TargetConfiguration
  readonly #spool: RawPath
  readonly #calls: S3Calls
  readonly #close: () => void
  readonly #prefix: string
  readonly #sending: Sending
  readonly #isAdmin: boolean
  /** Of what is deleted or overwritten: the version that is read instead. */
  readonly #older = new Map<string, Pick<S3Version, 'versionId' | 'sizeBytes'>>()
  #abandoning: Promise<unknown> | undefined

  constructor(
    of: S3TargetOptions & {
      readonly calls: S3Calls
      readonly adminCalls: S3Calls
      readonly transfers: Transfers
    },
  ) {
    const { configuration, spool, calls, adminCalls, transfers } = of
    this.name = configuration.name
    this.place = placeOf(configuration)
    this.#configuration = configuration
    this.#spool = spool
    this.#calls = of.as === 'admin' ? adminCalls : calls
    this.#isAdmin = of.as === 'admin'
    this.#prefix = configuration.path === '' ? '' : `${configuration.path}/`
    this.#close = () => {
      calls.close()
      adminCalls.close()
    }
    const capabilities = once(() => this.#probe(of.capabilitiesFile))
    const hasLock = once(() => this.#hasLock())
    this.#sending = {
      calls: this.#calls,
      transfers,
      capabilities,
      lock: async () => ((await hasLock()) ? lockFrom(configuration, Date.now()) : undefined),
      buffers: [],
    }
    this.bucket = {
      calls,
      adminCalls,
      keyOf: (path) => this.#keyOf(path),
      pathOf: (key) => this.#pathOf(key),
      storageClassFor: (path, sizeBytes) => storageClassFor(configuration, { path, sizeBytes }),
      capabilities,
      warmthOf: (path) => this.#warmthOf(path),
      preferVersion: (path, version) => void this.#older.set(this.#keyOf(path), version),
      olderReads: () => [...this.#older.keys()].flatMap((key) => this.#pathOf(key) ?? []),
      usage: () => (calls === adminCalls ? calls.usage() : sum(calls.usage(), adminCalls.usage())),
    }
  }

  async list(directory: string): Promise<readonly TargetFile[] | undefined> {
    const { objects, folders } = await this.#calls.listFolder(this.#below(directory))
    const skipped = this.#below(directory).length
    const files = objects.map(({ key, sizeBytes }) => {
      return { name: key.slice(skipped), kind: 'file', sizeBytes } as const
    })
    const isOurs = (name: string): boolean => directory !== '' || name !== PROBE_FOLDER
    const directories = folders.filter(isOurs).map((name) => {
      return { name, kind: 'directory', sizeBytes: 0 } as const
    })
    const found = [...files, ...directories].sort(byName)
    // The top is there even while it is empty.
    return found.length === 0 && directory !== '' ? undefined : found
  }

  async listTree(directory: string): Promise<readonly TargetFile[]> {
    const below = this.#below(directory)
    const probes = `${this.#prefix}${PROBE_FOLDER}/`
    return (await this.#calls.list(below))
      .filter(({ key }) => !key.startsWith(probes) && !key.endsWith('/'))
      .map(({ key, sizeBytes }) => ({ name: key.slice(below.length), kind: 'file', sizeBytes }))
  }

  async read(path: string, maxBytes: number): Promise<Buffer | undefined> {
    // One byte more than allowed tells whether it is larger.
    const key = this.#keyOf(path)
    const bytes = await this.#unlessAbsent(key, () =>
      this.#calls.get(key, { length: maxBytes + 1 }),
    )
    if (bytes === undefined && path === REPOSITORY_FILE) return await this.#readOlder(key, maxBytes)
    if (bytes === undefined || bytes.length <= maxBytes) return bytes
    throw new BackupError('TARGET_FAILED', `${path} is larger than it can be`, {
      hint: 'it was not written by this program; nothing was changed',
    })
  }

  async readRange(path: string, { offset, length }: ByteRange): Promise<Buffer | undefined> {
    const key = this.#keyOf(path)
    const known = this.#older.get(key)
    if (known !== undefined) {
      return await this.#calls.get(key, { offset, length, versionId: known.versionId })
    }
    const bytes = await this.#unlessAbsent(key, () => this.#calls.get(key, { offset, length }))
    if (bytes !== undefined) return bytes
    const older = await this.#olderVersion(key)
    if (older === undefined) return undefined
    return await this.#calls.get(key, { offset, length, versionId: older.versionId })
  }

  async fileSize(path: string): Promise<number | undefined> {
    const key = this.#keyOf(path)
    const known = this.#older.get(key)
    if (known !== undefined) return known.sizeBytes
    const head = await this.#unlessAbsent(key, () => this.#calls.head(key))
    return head?.sizeBytes ?? (await this.#olderVersion(key))?.sizeBytes
  }

  /**
   * Whoever may list a part of the bucket only is refused what is not there, as if it was. Then the
   * list tells.
   */
  async #unlessAbsent<T>(key: string, ask: () => Promise<T>): Promise<T | undefined> {
    try {
      return await ask()
    } catch (error) {
      if (!(error instanceof BackupError) || error.facts['s3'] !== 'AccessDenied') throw error
      const listed = await this.#calls.list(key).catch(() => undefined)
      if (listed === undefined || listed.some((one) => one.key === key)) throw error
      return undefined
    }
  }

  /**
   * What somebody deleted in a bucket that keeps versions is still there, and whoever reads
   * compares it with what was signed. Asked for only where a bundle is missing.
   */
  async #olderVersion(
    key: string,
  ): Promise<Pick<S3Version, 'versionId' | 'sizeBytes'> | undefined> {
    const known = this.#older.get(key)
    if (known !== undefined) return known
    const versions = await this.#calls.listVersions(key).catch((error: unknown) => {
      if (error instanceof BackupError && error.code === 'TARGET_DENIED') return []
      throw error
    })
    if (versions === 'unsupported') return undefined
    const found = versions.find((one) => one.key === key && !one.isDeleteMarker)
    if (found !== undefined) this.#older.set(key, found)
    return found
  }

  /** Without its first file a repository that somebody hid would be none, and begun anew. */
  async #readOlder(key: string, maxBytes: number): Promise<Buffer | undefined> {
    const older = await this.#olderVersion(key)
    if (older === undefined) return undefined
    const { versionId } = older
    return await this.#calls.get(key, { length: maxBytes, versionId })
  }

  async write(path: string, bytes: Uint8Array): Promise<void> {
    const body = asBuffer(bytes)
    const storageClass = this.bucket.storageClassFor(path, body.length)
    await sendBytes(this.#sending, { key: this.#keyOf(path), storageClass, body })
  }

  async replace(path: string, bytes: Uint8Array): Promise<void> {
    // Buckets have none: a name that changes cannot be locked, and the newest stamp is listed.
    if (path === 'latest' || path.endsWith('/latest')) return
    const body = asBuffer(bytes)
    const storageClass = this.bucket.storageClassFor(path, body.length)
    const replace = true
    await sendBytes(this.#sending, { key: this.#keyOf(path), storageClass, body, replace })
  }

  async workDirectory(directory: string): Promise<RawPath> {
    const path = `${this.#spool}/${rawPathFromText(directory)}`
    mkdirSync(rawPathToBytes(path), { recursive: true, mode: 0o700 })
    return path
  }

  async publish(path: string, sha256?: string): Promise<void> {
    this.#abandoning ??= this.#abandon(path)
    const file = `${this.#spool}/${rawPathFromText(path)}.partial`
    try {
      const key = this.#keyOf(path)
      const storageClassFor = (size: number) => this.bucket.storageClassFor(path, size)
      await sendFile(this.#sending, { key, file, storageClassFor, sha256 })
    } catch (error) {
      throw targetError({ error, path: file })
    }
  }

  /** In the spool: nothing of a bucket is local. */
  localPath(path: string): RawPath {
    return `${this.#spool}/${rawPathFromText(path)}`
  }

  async setAside(path: string): Promise<string> {
    let number = 1
    while ((await this.fileSize(asideName(path, number))) !== undefined) number += 1
    const aside = asideName(path, number)
    await this.#calls.copy({ from: this.#keyOf(path), to: this.#keyOf(aside) })
    await this.#calls.remove(this.#keyOf(path))
    return aside
  }

  /** As `admin` every version goes: else a bucket that keeps versions would keep it all. */
  async remove(path: string): Promise<void> {
    const key = this.#keyOf(path)
    const all = this.#isAdmin ? await this.#calls.listVersions(key) : 'unsupported'
    const versions = all === 'unsupported' ? [] : all.filter((one) => one.key === key)
    for (const { versionId } of versions) await this.#calls.remove(key, versionId)
    if (versions.length === 0) await this.#calls.remove(key)
  }

  /** There are none. */
  async removeDirectory(): Promise<void> {}

  async freeBytes(): Promise<number | undefined> {
    return undefined
  }

  sentBytes(): number {
    return this.bucket.usage().bytesSent
  }

  async close(): Promise<void> {
    // Tidying up is no reason to wait for a service that does not answer.
    await Promise.race([this.#abandoning, sleep(CLOSE_MS, undefined, { ref: false })])
    this.#close()
  }

  #keyOf(path: string): string {
    return `${this.#prefix}${path}`
  }

  #pathOf(key: string): string | undefined {
    const path = key.startsWith(this.#prefix) ? key.slice(this.#prefix.length) : ''
    return path === '' || path.startsWith(`${PROBE_FOLDER}/`) ? undefined : path
  }

  #below(directory: string): string {
    return directory === '' ? this.#prefix : `${this.#keyOf(directory)}/`
  }

  async #probe(file: RawPath): Promise<Capabilities> {
    const { bucket, endpoint = 'amazon' } = this.#configuration
    const place = `${endpoint} ${bucket}`
    const { calls } = this.bucket
    return await readCapabilities({ calls, prefix: this.#prefix, place, file, nowMs: Date.now() })
  }

  async #hasLock(): Promise<boolean> {
    if (this.#configuration.lockMs === undefined) return false
    try {
      const lock = await this.#calls.getObjectLock()
      return lock !== 'off' && lock !== 'unsupported'
    } catch (error) {
      // Whoever asks for locks and may not see whether there are any gets a refusal rather than
      // none.
      if (error instanceof BackupError && error.code === 'TARGET_DENIED') return true
      throw error
    }
  }

  async #warmthOf(path: string): Promise<Warmth | undefined> {
    const head = await this.#calls.head(this.#keyOf(path))
    if (head === undefined) return undefined
    if (!isCold(head.storageClass)) return { kind: 'hot' }
    if (head.restore === undefined) return { kind: 'cold' }
    const { isOngoing, expiryMs } = head.restore
    if (isOngoing) return { kind: 'thawing' }
    return expiryMs === undefined ? { kind: 'cold' } : { kind: 'thawed', untilMs: expiryMs }
  }

  /** Of the machine that publishes: those of others may go on with theirs. */
  async #abandon(path: string): Promise<void> {
    const machine = /^machines\/[^/]+\//.exec(path)?.[0] ?? path
    for (const folder of [machine, `${PROBE_FOLDER}/`]) {
      const below = { prefix: this.#keyOf(folder), spool: this.#spool, nowMs: Date.now() }
      // Whoever may not list or end them leaves that to the lifecycle rule.
      await abandonUploads({ calls: this.#calls, ...below }).catch(() => undefined)
    }
  }
}

function storageClassFor(
  { storageClass, hotBelowBytes }: S3TargetConfiguration,
  { path, sizeBytes }: { readonly path: string; readonly sizeBytes: number },
): string {
  return DATA_BUNDLE.test(path) && sizeBytes >= hotBelowBytes ? storageClass : 'STANDARD'
}

function lockFrom({ lockMs }: S3TargetConfiguration, nowMs: number): S3Lock | undefined {
  return lockMs === undefined ? undefined : { mode: 'GOVERNANCE', untilMs: nowMs + lockMs }
}

/** Asks only once, also when several ask at a time; a failure is not remembered. */
function once<T>(ask: () => Promise<T>): () => Promise<T> {
  let asked: Promise<T> | undefined
  return async () => {
    asked ??= ask().catch((error: unknown) => {
      asked = undefined
      throw error
    })
    return await asked
  }
}

function sum(one: BucketUsage, other: BucketUsage): BucketUsage {
  return {
    writes: one.writes + other.writes,
    lists: one.lists + other.lists,
    reads: one.reads + other.reads,
    bytesSent: one.bytesSent + other.bytesSent,
    bytesReceived: one.bytesReceived + other.bytesReceived,
  }
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

function byName(one: TargetFile, other: TargetFile): number {
  if (one.name === other.name) return 0
  return one.name < other.name ? -1 : 1
}
