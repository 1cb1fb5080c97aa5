// What an S3 service really does with checksums and conditions, found by trying.
//
// Many services take a header and ignore it, and then a damaged upload would pass for a proven one.
// So wrong checksums and taken names are tried on objects of our own below `.probe/`, once a month;
// s3.ts asks, s3-upload.ts relies on the answers. Only what was refused wrong and taken right
// counts. Throws what the calls throw, and TARGET_DENIED where nothing that is sent could be
// proven.

import { Buffer } from 'node:buffer'
import { createHash, randomBytes } from 'node:crypto'
import { mkdirSync, readFileSync } from 'node:fs'
import { crc32 } from 'node:zlib'
import { BackupError } from '../errors.ts'
import { writeDurably } from '../machine/durable-file.ts'
import { parentOf, type RawPath, rawPathToBytes } from '../model/raw-path.ts'
import type { Capabilities } from './bucket.ts'
import type { S3Calls } from './s3-calls.ts'

/** Below the top of the repository; Target.list() does not show it. */
export const PROBE_FOLDER = '.probe'

/** Services change, and buckets get versions. */
const BELIEVED_MS = 30 * 24 * 3600_000

export interface ProbeOptions {
  readonly calls: S3Calls
  /** Of all keys of the repository: empty, or with a slash at its end. */
  readonly prefix: string
  /** Endpoint and bucket: what was found of another place says nothing. */
  readonly place: string
  /** Where the answers are remembered. */
  readonly file: RawPath
  readonly nowMs: number
}

/** As remembered, or by probing now. */
export async function readCapabilities(options: ProbeOptions): Promise<Capabilities> {
  const { place, file, nowMs } = options
  const known = remembered(options)
  if (known !== undefined) return known
  const capabilities = await probeCapabilities(options)
  mkdirSync(rawPathToBytes(parentOf(file)), { recursive: true, mode: 0o700 })
  const bytes = Buffer.from(`${JSON.stringify({ place, ...capabilities, probedMs: nowMs })}\n`)
  writeDurably({ path: file, bytes, mode: 0o600, replace: true })
  return capabilities
}

function remembered({ file, place, nowMs }: ProbeOptions): Capabilities | undefined {
  try {
    const known = JSON.parse(readFileSync(rawPathToBytes(file), 'utf8')) as Capabilities & {
      readonly place: string
    }
    const { probedMs, checksum, multipartChecksum, conditionalPut, conditionalComplete } = known
    const ageMs = nowMs - probedMs
    const isFresh = known.place === place && ageMs >= 0 && ageMs < BELIEVED_MS
    if (!isFresh) return undefined
    return { probedMs, checksum, multipartChecksum, conditionalPut, conditionalComplete }
  } catch {
    // It is not there, or not ours: a cache.
    return undefined
  }
}

/** Tries it all; what it makes is removed again, where that is allowed. */
export async function probeCapabilities(options: ProbeOptions): Promise<Capabilities> {
  const { calls, prefix, nowMs } = options
  const top = `${prefix}${PROBE_FOLDER}/${randomBytes(12).toString('hex')}`
  const keys: string[] = []
  const newKey = (): string => {
    keys.push(`${top}-${keys.length + 1}`)
    return keys.at(-1) ?? top
  }
  try {
    const taken = newKey()
    const conditionalPut = await tryConditionalPut(calls, taken)
    // From here on conditionally where that works: a policy may allow nothing else.
    const checksum = await tryChecksum({ calls, newKey, ifAbsent: conditionalPut })
    const conditionalComplete = await tryConditionalComplete(calls, taken)
    const multipart = { calls, key: newKey(), ifAbsent: conditionalComplete }
    const multipartChecksum = await tryMultipartChecksum(multipart)
    if (checksum === 'none' || multipartChecksum === 'none') await mustBeReadable(calls, taken)
    const found = { checksum, multipartChecksum, conditionalPut, conditionalComplete }
    return { probedMs: nowMs, ...found }
  } finally {
    for (const key of keys) await calls.remove(key).catch(() => undefined)
  }
}

const BODY = Buffer.from('a probe of what this service checks; it can be removed\n')
const OTHER_BODY = Buffer.from('something else\n')

/** Leaves an object at the key. */
async function tryConditionalPut(calls: S3Calls, key: string): Promise<boolean> {
  const right = { key, body: BODY, md5: md5Of(BODY) }
  try {
    await calls.put({ ...right, ifAbsent: true })
    return (await calls.put({ ...right, ifAbsent: true })) === 'taken'
  } catch (error) {
    if (!isRefusal(error)) throw error
    await calls.put(right)
    return false
  }
}

async function tryChecksum({
  calls,
  newKey,
  ifAbsent,
}: {
  readonly calls: S3Calls
  readonly newKey: () => string
  readonly ifAbsent: boolean
}): Promise<Capabilities['checksum']> {
  const crc = { key: newKey(), body: BODY, ifAbsent }
  if (await isRefused(calls.put({ ...crc, crc32: crcOf(OTHER_BODY) }))) {
    // Whoever refuses the right one too does not know it.
    if (!(await isRefused(calls.put({ ...crc, crc32: crcOf(BODY) })))) return 'crc32'
  }
  const md5 = { key: newKey(), body: BODY, ifAbsent }
  // The right one was taken before.
  return (await isRefused(calls.put({ ...md5, md5: md5Of(OTHER_BODY) }))) ? 'md5' : 'none'
}

/** On a name that is taken. */
async function tryConditionalComplete(calls: S3Calls, key: string): Promise<boolean> {
  const uploadId = await calls.createUpload({ key })
  let isDone = false
  try {
    const part = await calls.putPart({ key, uploadId, number: 1, body: BODY, md5: md5Of(BODY) })
    const answer = await calls.completeUpload({ key, uploadId, parts: [part], ifAbsent: true })
    isDone = answer === 'written'
    return answer === 'taken'
  } catch (error) {
    if (isRefusal(error)) return false
    throw error
  } finally {
    if (!isDone) await abort({ calls, key, uploadId })
  }
}

async function tryMultipartChecksum({
  calls,
  key,
  ifAbsent,
}: {
  readonly calls: S3Calls
  readonly key: string
  readonly ifAbsent: boolean
}): Promise<Capabilities['multipartChecksum']> {
  let uploadId: string | undefined
  try {
    uploadId = await calls.createUpload({ key, withCrc32: true })
    const crc32 = crcOf(BODY)
    const parts = [await calls.putPart({ key, uploadId, number: 1, body: BODY, crc32 })]
    const upload = { key, uploadId, parts, ifAbsent }
    if (!(await isRefused(calls.completeUpload({ ...upload, crc32: crcOf(OTHER_BODY) })))) {
      uploadId = undefined
      return 'none'
    }
    if (await isRefused(calls.completeUpload({ ...upload, crc32 }))) return 'none'
    uploadId = undefined
    return 'crc32'
  } catch (error) {
    if (isRefusal(error)) return 'none'
    throw error
  } finally {
    if (uploadId !== undefined) await abort({ calls, key, uploadId })
  }
}

/** @throws BackupError TARGET_DENIED where neither the service nor we can check what arrived */
async function mustBeReadable(calls: S3Calls, key: string): Promise<void> {
  try {
    await calls.get(key)
  } catch (error) {
    if (!(error instanceof BackupError) || error.code !== 'TARGET_DENIED') throw error
    throw new BackupError(
      'TARGET_DENIED',
      `bucket ${calls.bucket}: what is sent cannot be proven to have arrived`,
      {
        hint:
          'this service does not check whole checksums, and the credentials may not read: allow '
          + 's3:GetObject; nothing was exported',
        facts: error.facts,
      },
    )
  }
}

async function isRefused(call: Promise<unknown>): Promise<boolean> {
  try {
    await call
    return false
  } catch (error) {
    if (isRefusal(error)) return true
    throw error
  }
}

/** A matter of what was sent; not of who sent it, nor of the moment. */
function isRefusal(error: unknown): boolean {
  if (!(error instanceof BackupError) || error.code === 'TARGET_DENIED') return false
  const status = Number(error.facts['status'])
  return error.facts['s3'] !== 'NoSuchBucket' && ((status >= 400 && status < 500) || status === 501)
}

async function abort(of: {
  readonly calls: S3Calls
  readonly key: string
  readonly uploadId: string
}): Promise<void> {
  await of.calls.abortUpload(of.key, of.uploadId).catch(() => undefined)
}

function crcOf(bytes: Buffer): string {
  const out = Buffer.alloc(4)
  out.writeUInt32BE(crc32(bytes))
  return out.toString('base64')
}

function md5Of(bytes: Buffer): string {
  return createHash('md5').update(bytes).digest('base64')
}
