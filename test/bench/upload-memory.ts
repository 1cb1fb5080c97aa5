// How memory goes while much is sent to a bucket: called by upload.sh with a directory and gigabytes.
//
// Sends one bundle of 256 MiB again and again, under ever new names, to a server in a process of its
// own that answers as a bucket would and throws the bytes away.

import { randomBytes } from 'node:crypto'
import { linkSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Worker, isMainThread, parentPort } from 'node:worker_threads'
import { openS3Target } from '../../lib/target/s3.ts'
import { s3Configuration } from '../helpers/s3-configuration.ts'

const MIB = 2 ** 20
const BUNDLE_BYTES = 256 * MIB

if (isMainThread) await send(process.argv[2] ?? '/nowhere', Number(process.argv[3] ?? '20'))
else serve()

async function send(directory: string, gigabytes: number): Promise<void> {
  const server = new Worker(new URL(import.meta.url))
  const port = await new Promise<number>((resolve) => server.once('message', resolve))
  const endpoint = `http://127.0.0.1:${port}`
  Object.assign(process.env, { AWS_ACCESS_KEY_ID: 'a', AWS_SECRET_ACCESS_KEY: 'b' })
  const place = { bucket: 'sink', path: 'b', region: 'us-east-1', endpoint }
  const configuration = s3Configuration({ ...place, streams: 4, bundleSizeBytes: BUNDLE_BYTES })
  mkdirSync(directory, { recursive: true })
  const capabilitiesFile = `${directory}/capabilities.json`
  const known = { checksum: 'crc32', multipartChecksum: 'crc32' }
  const conditional = { conditionalPut: true, conditionalComplete: true }
  writeFileSync(
    capabilitiesFile,
    JSON.stringify({ place: `${endpoint} sink`, probedMs: Date.now(), ...known, ...conditional }),
  )
  const spool = `${directory}/spool`
  const target = await openS3Target({ configuration, spool, capabilitiesFile })
  const stamp = 'machines/bench/data/2026-05-01T020000Z'
  const work = await target.workDirectory(stamp)
  const original = `${directory}/bundle`
  writeFileSync(original, '')
  for (let done = 0; done < BUNDLE_BYTES; done += 16 * MIB) {
    writeFileSync(original, randomBytes(16 * MIB), { flag: 'a' })
  }
  const count = Math.ceil((gigabytes * 1e9) / BUNDLE_BYTES)
  const startMs = performance.now()
  let peak = 0
  for (let sent = 0; sent < count; sent++) {
    const name = `data-${String(sent + 1).padStart(4, '0')}.tar.zst.age`
    linkSync(original, `${work}/${name}.partial`)
    await target.publish(`${stamp}/${name}`)
    const { rss } = process.memoryUsage()
    peak = Math.max(peak, rss)
    if ((sent + 1) % Math.max(1, Math.floor(count / 8)) !== 0) continue
    const bytes = (sent + 1) * BUNDLE_BYTES
    const speed = bytes / 1e6 / ((performance.now() - startMs) / 1000)
    const [gb, mb] = [(bytes / 1e9).toFixed(1), Math.round(rss / 1e6)]
    console.log(`${gb.padStart(6)} GB sent   ${speed.toFixed(0)} MB/s   memory ${mb} MB`)
  }
  console.log(`peak memory ${Math.round(peak / 1e6)} MB, the server included`)
  await target.close()
  await server.terminate()
  rmSync(directory, { recursive: true, force: true })
}

/** Answers as a bucket would; keeps the length of what was put together, and nothing else. */
function serve(): void {
  const lengths = new Map<string, number>()
  const uploads = new Map<string, number>()
  const server = createServer((request, answer) => {
    const { pathname, searchParams } = new URL(request.url ?? '/', 'http://localhost')
    const md5 = String(request.headers['content-md5'] ?? '')
    let bytes = 0
    request.on('data', (block: Buffer) => {
      bytes += block.length
    })
    request.on('end', () => {
      const key = pathname.replace('/sink/', '')
      const id = searchParams.get('uploadId') ?? key
      const xml = (text: string): void => {
        answer.writeHead(200, { 'content-type': 'application/xml' })
        answer.end(`<?xml version="1.0"?>${text}`)
      }
      if (request.method === 'PUT') {
        uploads.set(id, (uploads.get(id) ?? 0) + bytes)
        if (!searchParams.has('partNumber')) lengths.set(key, bytes)
        const etag = `"${Buffer.from(md5, 'base64').toString('hex')}"`
        answer.writeHead(200, { etag }).end()
      } else if (request.method === 'POST' && searchParams.has('uploads')) {
        xml(
          '<InitiateMultipartUploadResult><UploadId>'
            + `${encodeURIComponent(key)}</UploadId></InitiateMultipartUploadResult>`,
        )
      } else if (request.method === 'POST') {
        lengths.set(key, uploads.get(id) ?? 0)
        uploads.delete(id)
        xml('<CompleteMultipartUploadResult><ETag>"0"</ETag></CompleteMultipartUploadResult>')
      } else if (request.method === 'HEAD' && key !== '/sink' && key !== '') {
        const length = lengths.get(key)
        if (length === undefined) answer.writeHead(404).end()
        else answer.writeHead(200, { 'content-length': length, etag: '"0"' }).end()
      } else if (searchParams.has('uploadId')) xml('<ListPartsResult></ListPartsResult>')
      else if (searchParams.has('uploads')) xml('<ListMultipartUploadsResult/>')
      else xml('<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>')
    })
  })
  server.listen(0, '127.0.0.1', () => {
    parentPort!.postMessage((server.address() as AddressInfo).port)
  })
}
