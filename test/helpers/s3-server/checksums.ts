// The checksums of S3: which there are, what they are of some bytes, and the check of those that a
// request brings. A wrong one is BadDigest, one that is no checksum at all InvalidDigest or
// InvalidRequest, as Amazon documents.

import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import type { IncomingHttpHeaders } from 'node:http'
import { crc32 } from 'node:zlib'
import { refuse } from './answer.ts'

export type Algorithm = 'crc32' | 'crc32c' | 'crc64nvme' | 'sha1' | 'sha256'

/** By algorithm, base64. */
export type Checksums = Partial<Record<Algorithm, string>>

const LENGTHS = { crc32: 4, crc32c: 4, crc64nvme: 8, sha1: 20, sha256: 32 } as const

export const ALGORITHMS = Object.keys(LENGTHS) as Algorithm[]

/** The raw checksum, big-endian. */
export function checksumOf(algorithm: Algorithm, bytes: Buffer): Buffer {
  if (algorithm === 'sha1' || algorithm === 'sha256') {
    return createHash(algorithm).update(bytes).digest()
  }
  if (algorithm === 'crc64nvme') return crc64nvme(bytes)
  const result = Buffer.alloc(4)
  result.writeUInt32BE(algorithm === 'crc32' ? crc32(bytes) : crc32c(bytes))
  return result
}

export function md5Of(bytes: Buffer): Buffer {
  return createHash('md5').update(bytes).digest()
}

/** Compares Content-MD5 with the body. */
export function checkMd5(headers: IncomingHttpHeaders, body: Buffer): void {
  const given = headers['content-md5']
  if (given === undefined) return
  const expected = Buffer.from(String(given), 'base64')
  if (expected.length !== 16) {
    refuse(400, 'InvalidDigest', 'The Content-MD5 you specified was invalid.')
  }
  if (!expected.equals(md5Of(body))) {
    refuse(400, 'BadDigest', 'The Content-MD5 you specified did not match what we received.')
  }
}

/** Compares the x-amz-checksum-… headers with the body, and gives them. */
export function checkChecksums(headers: IncomingHttpHeaders, body: Buffer): Checksums {
  const given = givenChecksums(headers)
  for (const [algorithm, value] of Object.entries(given) as [Algorithm, string][]) {
    if (Buffer.from(value, 'base64').length !== LENGTHS[algorithm]) {
      refuse(400, 'InvalidRequest', `Value for x-amz-checksum-${algorithm} header is invalid.`)
    }
    if (checksumOf(algorithm, body).toString('base64') !== value) badChecksum(algorithm)
  }
  return given
}

/** What a request says about checksums, unchecked. */
export function givenChecksums(headers: IncomingHttpHeaders): Checksums {
  const given: Checksums = {}
  for (const algorithm of ALGORITHMS) {
    const value = headers[`x-amz-checksum-${algorithm}`]
    if (value !== undefined) given[algorithm] = String(value)
  }
  return given
}

export function badChecksum(algorithm: Algorithm): never {
  const name = algorithm.toUpperCase()
  return refuse(400, 'BadDigest', `The ${name} you specified did not match what we received.`)
}

const CRC32C_TABLE = Uint32Array.from({ length: 256 }, (_, index) => {
  let value = index
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0x82f63b78 : value >>> 1
  return value >>> 0
})

function crc32c(bytes: Buffer): number {
  let value = 0xffffffff
  for (const byte of bytes) value = CRC32C_TABLE[(value ^ byte) & 255]! ^ (value >>> 8)
  return (value ^ 0xffffffff) >>> 0
}

/** Reflected polynomial of CRC-64/NVME. */
const CRC64_POLYNOMIAL = 0x9a6c9329ac4bc9b5n
const CRC64_TABLE = Array.from({ length: 256 }, (_, index) => {
  let value = BigInt(index)
  for (let bit = 0; bit < 8; bit++) {
    value = value & 1n ? (value >> 1n) ^ CRC64_POLYNOMIAL : value >> 1n
  }
  return value
})
const CRC64_HIGH = Uint32Array.from(CRC64_TABLE, (value) => Number(value >> 32n))
const CRC64_LOW = Uint32Array.from(CRC64_TABLE, (value) => Number(value & 0xffffffffn))

/** In two halves: BigInt would take seconds for a bundle. */
function crc64nvme(bytes: Buffer): Buffer {
  let high = 0xffffffff
  let low = 0xffffffff
  for (const byte of bytes) {
    const index = (low ^ byte) & 255
    low = ((low >>> 8) | (high << 24)) ^ CRC64_LOW[index]!
    high = (high >>> 8) ^ CRC64_HIGH[index]!
  }
  const result = Buffer.alloc(8)
  result.writeUInt32BE(~high >>> 0, 0)
  result.writeUInt32BE(~low >>> 0, 4)
  return result
}
