// Sending files to a bucket, so that nothing is sent twice and nothing unproven is believed.
//
// s3.ts calls sendBytes for small files and sendFile for those of the spool. Large ones go in equal
// parts; `<file>.upload` beside the spooled file remembers the upload, so that after a crash only
// what is missing is sent. Each object is proven (invariant 2): by a checksum of the whole that the
// probe showed enforced, else by reading it back. Throws TARGET_FAILED for a taken name, READ_BACK
// for bytes that changed, and what the calls throw.

import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import { constants, readFileSync, rmSync } from 'node:fs'
import { type FileHandle, open, readdir, stat } from 'node:fs/promises'
import { crc32 } from 'node:zlib'
import { isCold } from '../model/storage-class.ts'
import { BackupError, systemCode } from '../errors.ts'
import { syncDirectory, writeDurably } from '../machine/durable-file.ts'
import {
  displayPath,
  parentOf,
  pathFacts,
  type RawPath,
  rawPathToBytes,
} from '../model/raw-path.ts'
import type { Capabilities } from './bucket.ts'
import type { S3Calls, S3Head, S3Lock, S3Part } from './s3-calls.ts'
import type { Transfers } from './transfers.ts'

/** What a file of up to this size costs to send again is less than what parts cost. */
export const PART_BYTES = 8 * 2 ** 20
const MAX_PARTS = 10_000

/** What an upload that nobody goes on with may stay. Its parts are paid for. */
const ABANDONED_MS = 24 * 3600_000

const RECORD_SUFFIX = '.upload'

/** What all that is sent to one bucket shares. */
export interface Sending {
  readonly calls: S3Calls
  readonly transfers: Transfers
  /** Asked for at the first use: it may mean a probe. */
  readonly capabilities: () => Promise<Capabilities>
  /** For what is sent now; undefined where nothing is locked. */
  readonly lock: () => Promise<S3Lock | undefined>
  /** Part buffers that are free; as many as there are streams come to be. */
  readonly buffers: Buffer[]
}

/** Bytes that are to be at a key. */
interface Content {
  readonly sizeBytes: number
  /** Hex. */
  readonly sha256: string
  /** Gives what is at a place of it, into a buffer or not. */
  readAt(offset: number, into: Buffer): Promise<Buffer>
}

interface SendOptions {
  readonly key: string
  readonly storageClass: string
  /** Puts it over what is there. */
  readonly replace?: boolean
}

/** Sends a small file. @throws BackupError TARGET_FAILED where other bytes have that key */
export async function sendBytes(
  sending: Sending,
  { body, ...options }: SendOptions & { readonly body: Buffer },
): Promise<void> {
  const content: Content = {
    sizeBytes: body.length,
    sha256: createHash('sha256').update(body).digest('hex'),
    readAt: async (offset, into) => body.subarray(offset, offset + into.length),
  }
  await sendWhole(sending, { ...options, body, content })
}

/**
 * Sends a file of the spool, goes on where an earlier attempt was, and removes it from the spool
 * once it is proven there.
 * @throws BackupError READ_BACK where the file changed since it was sent first
 */
export async function sendFile(
  sending: Sending,
  of: {
    readonly key: string
    readonly file: RawPath
    /** By its size. */
    readonly storageClassFor: (sizeBytes: number) => string
    /** What the file has to be, in hex. */
    readonly sha256?: string | undefined
  },
): Promise<void> {
  const { key, file } = of
  const { O_RDONLY, O_NOFOLLOW } = constants
  const handle = await open(rawPathToBytes(file), O_RDONLY | O_NOFOLLOW)
  try {
    const local = await digestFile(handle, file)
    if (of.sha256 !== undefined && of.sha256 !== local.sha256) throw changed(file)
    const options = { key, storageClass: of.storageClassFor(local.sizeBytes) }
    if (local.sizeBytes <= PART_BYTES) {
      const body = await local.readAt(0, Buffer.alloc(local.sizeBytes))
      await sendWhole(sending, { ...options, body, content: local })
    } else {
      await sendParts(sending, { ...options, local })
    }
  } finally {
    await handle.close()
  }
  // The file first: a record without a file is swept, a file without one would be sent again.
  rmSync(rawPathToBytes(file), { force: true })
  rmSync(rawPathToBytes(`${file}${RECORD_SUFFIX}`), { force: true })
  syncDirectory(parentOf(file))
}

async function sendWhole(
  sending: Sending,
  of: SendOptions & { readonly body: Buffer; readonly content: Content },
): Promise<void> {
  const { key, storageClass, body, content, replace = false } = of
  const { calls, transfers } = sending
  const { checksum, conditionalPut } = await sending.capabilities()
  const isProven = checksum !== 'none'
  refuseUnprovable({ key, storageClass, isProven })
  const sent = { key, content, isProven }
  if (!replace && !conditionalPut && (await isThere(sending, sent))) return
  const lock = await sending.lock()
  const answer = await transfers.run(async () => {
    return await calls.put({
      ...{ key, body, storageClass, metadata: { sha256: content.sha256 } },
      ...(checksum === 'crc32' ? { crc32: crcText(crc32(body)) } : { md5: md5Of(body) }),
      ...(conditionalPut && !replace ? { ifAbsent: true } : {}),
      ...(lock === undefined ? {} : { lock }),
    })
  })
  if (answer === 'taken') {
    // By us, where the answer to an earlier attempt got lost.
    if (await isThere(sending, sent)) return
    throw taken(key)
  }
  if (!isProven) await proveBack(sending, sent)
}

/** A file of the spool, digested. */
interface Local extends Content {
  readonly file: RawPath
  readonly crc32: number
  readonly partBytes: number
  /** CRC-32 of each part, so that a part that changed since is noticed. */
  readonly partCrcs: readonly number[]
  /** Of the file, not of its name: another file in its place has another one. */
  readonly born: string
}

async function digestFile(handle: FileHandle, file: RawPath): Promise<Local> {
  const { size: sizeBytes, ino, birthtimeNs } = await handle.stat({ bigint: true })
  const size = Number(sizeBytes)
  const partBytes = partSizeOf(size)
  const sha256 = createHash('sha256')
  const partCrcs: number[] = []
  const buffer = Buffer.allocUnsafe(Math.min(partBytes, size))
  let whole = 0
  for (let offset = 0; offset < size; offset += partBytes) {
    const part = buffer.subarray(0, Math.min(partBytes, size - offset))
    await fill(handle, { offset, into: part, file })
    sha256.update(part)
    whole = crc32(part, whole)
    partCrcs.push(crc32(part))
  }
  return {
    ...{ file, sizeBytes: size, sha256: sha256.digest('hex'), crc32: whole, partBytes, partCrcs },
    born: `${ino}-${birthtimeNs}`,
    async readAt(offset, into) {
      await fill(handle, { offset, into, file })
      const expected = into.length > 0 ? partCrcs[offset / partBytes] : undefined
      if (expected !== undefined && crc32(into) !== expected) throw changed(file)
      return into
    },
  }
}

/** Equal for all parts of a file but the last, as some services want it. */
export function partSizeOf(sizeBytes: number): number {
  const least = Math.ceil(sizeBytes / MAX_PARTS / 2 ** 20) * 2 ** 20
  return Math.max(PART_BYTES, least)
}

async function fill(
  handle: FileHandle,
  {
    offset,
    into,
    file,
  }: { readonly offset: number; readonly into: Buffer; readonly file: RawPath },
): Promise<void> {
  let done = 0
  while (done < into.length) {
    const { bytesRead } = await handle.read(into, done, into.length - done, offset + done)
    if (bytesRead === 0) throw changed(file)
    done += bytesRead
  }
}

/** What is remembered of an upload under way. */
interface UploadRecord {
  readonly format: 1
  readonly key: string
  readonly uploadId: string
  readonly partBytes: number
  readonly sizeBytes: number
  readonly sha256: string
  readonly born: string
  readonly withCrc32: boolean
}

async function sendParts(
  sending: Sending,
  of: SendOptions & { readonly local: Local },
): Promise<void> {
  const { key, storageClass, local } = of
  const { multipartChecksum, conditionalComplete } = await sending.capabilities()
  const isProven = multipartChecksum === 'crc32'
  refuseUnprovable({ key, storageClass, isProven })
  const sent = { key, content: local, isProven }
  let known = await knownUpload(sending, { key, local })
  // Where one was begun it may have been completed, too.
  if (known !== undefined || !conditionalComplete) {
    const isDone = await isThere(sending, sent).catch((error: unknown) => {
      // Whoever may only create cannot look, and need not where the service does it.
      if (conditionalComplete && isDenied(error)) return false
      throw error
    })
    if (isDone) {
      if (known !== undefined) await abort(sending, known)
      return await lockAfterwards(sending, key)
    }
  }
  for (let times = 0; times < 2; times += 1) {
    const isResumed = known !== undefined
    const upload: UploadRecord = known ?? (await beginUpload(sending, of))
    const answer = await finish(sending, { local, upload, isResumed })
    if (answer === 'written') {
      if (!isProven) await proveBack(sending, sent)
      return await lockAfterwards(sending, key)
    }
    await forget(sending, { upload, local })
    // By us, where the answer to an earlier attempt got lost.
    if (await isThere(sending, sent)) return await lockAfterwards(sending, key)
    if (answer === 'taken') throw taken(key)
    // The service forgot it, or something of it: once more from the beginning.
    known = undefined
  }
  throw new BackupError('TARGET_FAILED', `the service loses uploads under way: ${key}`, {
    hint: 'a lifecycle rule may end them too soon; earlier exports are unharmed',
    retry: 'later',
  })
}

/** Some services (Ceph 16) forget the lock that a multipart upload was begun with. */
async function lockAfterwards({ calls, lock }: Sending, key: string): Promise<void> {
  const wanted = await lock()
  if (wanted === undefined) return
  const found = await calls.head(key).catch((error: unknown) => {
    if (isDenied(error)) return undefined
    throw error
  })
  if (found?.lock === undefined) await calls.setLock({ key, lock: wanted })
}

/** The upload of this very file that was begun; one of another file of that name is ended. */
async function knownUpload(
  sending: Sending,
  { key, local }: { readonly key: string; readonly local: Local },
): Promise<UploadRecord | undefined> {
  const record = readRecord(`${local.file}${RECORD_SUFFIX}`)
  if (record === undefined) return undefined
  const { sha256, sizeBytes, partBytes, born } = local
  if (record.born === born && record.sha256 !== sha256) throw changed(local.file)
  const isSame = record.sha256 === sha256 && record.sizeBytes === sizeBytes && record.key === key
  if (isSame && record.partBytes === partBytes) return record
  await forget(sending, { upload: record, local })
  return undefined
}

async function beginUpload(
  sending: Sending,
  { key, storageClass, local }: SendOptions & { readonly local: Local },
): Promise<UploadRecord> {
  const { sha256, sizeBytes, partBytes, born, file } = local
  const lock = await sending.lock()
  const withCrc32 = (await sending.capabilities()).multipartChecksum === 'crc32'
  const uploadId = await sending.calls.createUpload({
    ...{ key, storageClass, metadata: { sha256 }, withCrc32 },
    ...(lock === undefined ? {} : { lock }),
  })
  const of = { key, uploadId, partBytes, sizeBytes, sha256, born, withCrc32 }
  const record: UploadRecord = { format: 1, ...of }
  const bytes = Buffer.from(`${JSON.stringify(record)}\n`)
  writeDurably({ path: `${file}${RECORD_SUFFIX}`, bytes, mode: 0o600, replace: true })
  return record
}

/** Sends the parts that are missing, and puts them together. */
async function finish(
  sending: Sending,
  of: {
    readonly local: Local
    readonly upload: UploadRecord
    /** Whether it was begun by an earlier run, which may have sent some of it. */
    readonly isResumed: boolean
  },
): Promise<'written' | 'taken' | 'gone'> {
  const { calls, transfers } = sending
  const { local, upload, isResumed } = of
  const { key, uploadId, withCrc32 } = upload
  try {
    const there = isResumed ? await partsThere(calls, upload) : []
    if (there === undefined) return 'gone'
    const parts = await settle(
      local.partCrcs.map((_, index) => async () => {
        const old = there.find(({ number }) => number === index + 1)
        return await sendPart(sending, { local, upload, number: index + 1, old })
      }),
      transfers,
    )
    const { conditionalComplete } = await sending.capabilities()
    return await calls.completeUpload({
      ...{ key, uploadId, parts },
      ...(withCrc32 ? { crc32: crcText(local.crc32) } : {}),
      ...(conditionalComplete ? { ifAbsent: true } : {}),
    })
  } catch (error) {
    if (isGone(error)) return 'gone'
    throw error
  }
}

/** Undefined where the service knows nothing of it. */
async function partsThere(
  calls: S3Calls,
  { key, uploadId }: UploadRecord,
): Promise<readonly S3Part[] | undefined> {
  try {
    return await calls.listParts(key, uploadId)
  } catch (error) {
    // Whoever may not look sends all of them again, into the same upload.
    if (isDenied(error)) return []
    throw error
  }
}

/** Sends a part, unless what is there of it is right. */
async function sendPart(
  { calls, buffers }: Sending,
  of: {
    readonly local: Local
    readonly upload: UploadRecord
    readonly number: number
    readonly old: S3Part | undefined
  },
): Promise<S3Part> {
  const { local, number, old } = of
  const { key, uploadId, partBytes, withCrc32 } = of.upload
  const offset = (number - 1) * partBytes
  const length = Math.min(partBytes, local.sizeBytes - offset)
  const buffer = takeBuffer(buffers, partBytes)
  try {
    const body = await local.readAt(offset, buffer.subarray(0, length))
    // readAt() has just seen that it is this.
    const crc = crcText(local.partCrcs[number - 1]!)
    // Where the service compares the one, hashing for the other is work for nothing.
    const md5 = withCrc32 && old === undefined ? undefined : md5Of(body)
    const isMd5 = md5 !== undefined && old?.etag === Buffer.from(md5, 'base64').toString('hex')
    const isRight = old?.sizeBytes === length && (isMd5 || old.crc32 === crc)
    if (isRight) return { ...old, crc32: crc }
    const checksum = { ...(md5 === undefined ? {} : { md5 }), ...(withCrc32 ? { crc32: crc } : {}) }
    const part = await calls.putPart({ key, uploadId, number, body, ...checksum })
    return { ...part, crc32: crc }
  } finally {
    buffers.push(buffer)
  }
}

/**
 * Whether the very same bytes have that key already.
 * @throws BackupError TARGET_FAILED where other bytes have it; TARGET_DENIED where that cannot be
 * known
 */
async function isThere(sending: Sending, of: Sent): Promise<boolean> {
  const { key, content, isProven } = of
  const head: S3Head | undefined = await sending.calls.head(key)
  if (head === undefined) return false
  const claimed = head.metadata['sha256']
  if (head.sizeBytes !== content.sizeBytes) throw taken(key)
  if (claimed !== undefined && claimed !== content.sha256) throw taken(key)
  // What the service checked when it came needs no second look.
  if (claimed !== undefined && isProven) return true
  if (await holds(sending, of)) return true
  if (claimed === undefined) throw taken(key)
  throw new BackupError('READ_BACK', `what the bucket holds of ${key} is damaged`, {
    hint: 'it was sent before and is not what was sent; verify the target; nothing was overwritten',
    facts: { key },
  })
}

interface Sent {
  readonly key: string
  readonly content: Content
  /** Whether the service checked it as a whole. */
  readonly isProven: boolean
}

/** @throws BackupError READ_BACK where the bucket holds other bytes than were sent */
async function proveBack(sending: Sending, of: Sent): Promise<void> {
  if (await holds(sending, of)) return
  await sending.calls.remove(of.key).catch(() => undefined)
  throw new BackupError('READ_BACK', `the bucket does not hold what was written to ${of.key}`, {
    hint: 'the export was not made, earlier exports are unharmed; tell whoever runs the service',
  })
}

/** Reads an object back and compares it with ours, byte for byte. */
async function holds(sending: Sending, { key, content }: Sent): Promise<boolean> {
  const { calls, transfers, buffers } = sending
  const offsets: number[] = []
  const step = partSizeOf(content.sizeBytes)
  for (let offset = 0; offset < content.sizeBytes; offset += step) offsets.push(offset)
  const size = (await calls.head(key))?.sizeBytes
  if (size !== content.sizeBytes) return false
  const compare = async (offset: number): Promise<boolean> => {
    const buffer = takeBuffer(buffers, step)
    try {
      const length = Math.min(step, content.sizeBytes - offset)
      const ours = await content.readAt(offset, buffer.subarray(0, length))
      return (await calls.get(key, { offset, length }))?.equals(ours) === true
    } finally {
      buffers.push(buffer)
    }
  }
  const same = await settle(
    offsets.map((offset) => async () => await compare(offset)),
    transfers,
  )
  return same.every(Boolean)
}

/** Does all, as many at a time as there are streams; after a failure begins no more of them. */
async function settle<T>(
  work: readonly (() => Promise<T>)[],
  transfers: Transfers,
): Promise<readonly T[]> {
  let hasFailed = false
  const results = await Promise.allSettled(
    work.map((one) =>
      transfers.run(async () => {
        if (hasFailed) throw new Error('another one failed')
        try {
          return await one()
        } catch (error) {
          hasFailed = true
          throw error
        }
      }),
    ),
  )
  const done: T[] = []
  // The first that failed comes first only in time, so the one that is no echo is looked for.
  for (const result of results) {
    if (result.status === 'fulfilled') done.push(result.value)
    else if (!isEcho(result.reason)) throw result.reason
  }
  return done
}

function isEcho(error: unknown): boolean {
  return error instanceof Error && error.message === 'another one failed'
}

/** Ends an upload and forgets it. */
async function forget(
  sending: Sending,
  { upload, local }: { readonly upload: UploadRecord; readonly local: Local },
): Promise<void> {
  await abort(sending, upload)
  rmSync(rawPathToBytes(`${local.file}${RECORD_SUFFIX}`), { force: true })
}

/** What cannot be ended is ended later: by abandonUploads, or a lifecycle rule. */
async function abort({ calls }: Sending, { key, uploadId }: UploadRecord): Promise<void> {
  await calls.abortUpload(key, uploadId).catch(() => undefined)
}

/**
 * Ends uploads below a prefix that nothing in the spool remembers, and that are a day old: their
 * parts cost money and are listed nowhere. Gives how many it ended.
 */
export async function abandonUploads(of: {
  readonly calls: S3Calls
  readonly prefix: string
  readonly spool: RawPath
  readonly nowMs: number
}): Promise<number> {
  const { calls, prefix, spool, nowMs } = of
  const known = new Set((await recordsBelow(spool)).map(({ uploadId }) => uploadId))
  let ended = 0
  for (const { key, uploadId, begunMs } of await calls.listUploads(prefix)) {
    if (known.has(uploadId) || nowMs - begunMs < ABANDONED_MS) continue
    await calls.abortUpload(key, uploadId)
    ended += 1
  }
  return ended
}

/** The records of uploads whose files are there; the others are removed. */
async function recordsBelow(directory: RawPath): Promise<readonly UploadRecord[]> {
  const records: UploadRecord[] = []
  const names = await readdir(rawPathToBytes(directory), {
    encoding: 'latin1',
    withFileTypes: true,
  }).catch((error: unknown) => {
    if (systemCode(error) === 'ENOENT') return []
    throw error
  })
  for (const entry of names) {
    const path = `${directory}/${entry.name}`
    if (entry.isDirectory()) records.push(...(await recordsBelow(path)))
    if (!entry.isFile() || !entry.name.endsWith(`.partial${RECORD_SUFFIX}`)) continue
    const file = path.slice(0, -RECORD_SUFFIX.length)
    const record = readRecord(path)
    const isNeeded = await stat(rawPathToBytes(file)).then(
      () => true,
      (error: unknown) => systemCode(error) !== 'ENOENT',
    )
    if (record !== undefined && isNeeded) records.push(record)
    else rmSync(rawPathToBytes(path), { force: true })
  }
  return records
}

/** Undefined where there is none, or what is there is no record: the upload begins anew. */
function readRecord(path: RawPath): UploadRecord | undefined {
  try {
    const record = JSON.parse(readFileSync(rawPathToBytes(path), 'utf8')) as UploadRecord
    return record.format === 1 && typeof record.uploadId === 'string' ? record : undefined
  } catch {
    return undefined
  }
}

function takeBuffer(buffers: Buffer[], sizeBytes: number): Buffer {
  const free = buffers.pop()
  return free !== undefined && free.length >= sizeBytes ? free : Buffer.allocUnsafeSlow(sizeBytes)
}

/** @throws BackupError TARGET_FAILED where what is sent could neither be checked nor read back */
function refuseUnprovable(of: {
  readonly key: string
  readonly storageClass: string
  readonly isProven: boolean
}): void {
  if (of.isProven || !isCold(of.storageClass)) return
  throw new BackupError(
    'TARGET_FAILED',
    `${of.key} could not be proven in storage class ${of.storageClass}`,
    {
      hint:
        'this service checks no whole checksums, and cold objects cannot be read back: choose a '
        + 'storage_class that can be read at once; nothing was sent',
    },
  )
}

/** Whether an upload is not there any more, or has not got the parts that it had. */
function isGone(error: unknown): boolean {
  const codes: unknown[] = ['NoSuchUpload', 'InvalidPart', 'InvalidPartOrder', 'EntityTooSmall']
  const passing = ['ConditionalRequestConflict', 'NotFound']
  return error instanceof BackupError && [...codes, ...passing].includes(error.facts['s3'])
}

function isDenied(error: unknown): boolean {
  return error instanceof BackupError && error.code === 'TARGET_DENIED'
}

function taken(key: string): BackupError {
  return new BackupError('TARGET_FAILED', `${key} is there already, with other content`, {
    hint: 'nothing is ever overwritten there; move it away if it is not ours',
    facts: { key },
  })
}

function changed(file: RawPath): BackupError {
  return new BackupError('READ_BACK', `what waits to be sent has changed: ${displayPath(file)}`, {
    hint: 'suspect the disk of staging; remove that file, and the next run makes it anew',
    facts: pathFacts(file),
  })
}

function crcText(crc: number): string {
  const out = Buffer.alloc(4)
  out.writeUInt32BE(crc)
  return out.toString('base64')
}

function md5Of(bytes: Buffer): string {
  return createHash('md5').update(bytes).digest('base64')
}
