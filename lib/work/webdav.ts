// The view of backups as a read-only WebDAV server of this machine alone: for file managers,
// browsers, and systems without FUSE.
//
// Listens on loopback, below a path that nobody can guess; other names in Host are refused, so that
// no web page can reach it under a name of its own. Links to files of the same generation are shown
// as those files; other links, devices, FIFOs and sockets are left out. What is damaged is 500, or
// a transfer that breaks off: never wrong bytes. Throws MOUNT_FAILED.

import { Buffer } from 'node:buffer'
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto'
import { type IncomingMessage, type ServerResponse, createServer } from 'node:http'
import { once } from 'node:events'
import { posix } from 'node:path'
import type { AddressInfo } from 'node:net'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { BackupError, systemCode } from '../errors.ts'
import {
  type RawPath,
  baseOf,
  displayPath,
  parentOf,
  rawPathFromText,
  rawPathToBytes,
} from '../model/raw-path.ts'
import { LATEST, type View } from './browse.ts'
import type { TellDamage } from './view-damage.ts'
import { type ViewFile, type ViewNode, listAll } from './view-node.ts'

const LOOPBACK = '127.0.0.1'
const LOCAL_NAMES: ReadonlySet<string> = new Set(['127.0.0.1', 'localhost', '[::1]'])
const TOKEN_BYTES = 16
/** What is read of a file at a time. */
const BLOCK_BYTES = 1024 * 1024
/** What clients send with PROPFIND is a few hundred bytes. */
const MAX_BODY_BYTES = 64 * 1024
/** A client that asks half a question does not keep others waiting. */
const REQUEST_MS = 60_000
/** A link to a link to a link: a cycle ends here. */
const MAX_LINKS = 16
const CONTENT_POLICY = "default-src 'none'; sandbox allow-downloads"
const ALLOWED = 'OPTIONS, GET, HEAD, PROPFIND'

export interface WebdavServer {
  /** With the token: whoever has it sees everything. */
  readonly url: string
  /** Ends transfers, too. */
  readonly close: () => Promise<void>
  /** Rejects with what is a bug. */
  readonly failed: Promise<never>
}

/** @param of.port 0: any that is free. @throws BackupError MOUNT_FAILED where it is taken */
export async function startWebdav(of: {
  readonly view: View
  readonly port: number
  readonly tell: TellDamage
}): Promise<WebdavServer> {
  const token = randomBytes(TOKEN_BYTES).toString('hex')
  let fail: (error: unknown) => void = () => undefined
  const failed = new Promise<never>((_, reject) => (fail = reject))
  // Nobody may be waiting for it.
  failed.catch(() => undefined)
  const server = createServer({ requestTimeout: REQUEST_MS }, (request, response) => {
    new Exchange({ ...of, token, request, response }).run().catch((error: unknown) => {
      response.destroy()
      fail(error)
    })
  })
  server.listen(of.port, LOOPBACK)
  try {
    await once(server, 'listening')
  } catch (cause) {
    const message = `port ${of.port} cannot be listened on (${systemCode(cause) ?? 'unknown'})`
    throw new BackupError('MOUNT_FAILED', message, {
      hint: 'choose another with --port, or none; nothing was changed',
      cause,
    })
  }
  const { port } = server.address() as AddressInfo
  return {
    url: `http://${LOOPBACK}:${port}/${token}/`,
    failed,
    close: async () => {
      const closed = once(server, 'close')
      server.close()
      server.closeAllConnections()
      await closed
    },
  }
}

/** What was asked for, as far as it is there. */
interface Asked {
  /** As the client wrote it, decoded: `data/latest/home`, without slashes at its ends. */
  readonly path: RawPath
  readonly node: ViewNode
}

class Exchange {
  readonly #view: View
  readonly #tell: TellDamage
  readonly #token: string
  readonly #request: IncomingMessage
  readonly #response: ServerResponse

  constructor(of: {
    readonly view: View
    readonly tell: TellDamage
    readonly token: string
    readonly request: IncomingMessage
    readonly response: ServerResponse
  }) {
    this.#view = of.view
    this.#tell = of.tell
    this.#token = of.token
    this.#request = of.request
    this.#response = of.response
  }

  /** @throws what is a bug */
  async run(): Promise<void> {
    let path: RawPath | undefined
    try {
      path = this.#askedPath()
      if (path === undefined) return
      if (!(await this.#hasSmallBody())) return this.#end(413)
      const node = await this.#shown(this.#truePath(path))
      if (node === undefined) return this.#end(404)
      await this.#answer({ path, node })
    } catch (error) {
      if (isGone(error)) return
      this.#tell(path ?? '', error)
      // With the head sent, only a break can say that what came is not all.
      if (this.#response.headersSent) this.#response.destroy()
      else this.#end(500)
    }
  }

  /** Undefined where the answer is given already. */
  #askedPath(): RawPath | undefined {
    const { method = '', url = '', headers } = this.#request
    this.#response.setHeader('X-Content-Type-Options', 'nosniff')
    this.#response.setHeader('Referrer-Policy', 'no-referrer')
    this.#response.setHeader('Cache-Control', 'private, no-cache')
    // What a browser shows may run nothing and ask for nothing: names and files are anybody's.
    this.#response.setHeader('Content-Security-Policy', CONTENT_POLICY)
    if (!LOCAL_NAMES.has((headers.host ?? '').toLowerCase().replace(/:\d+$/, '')))
      return this.#end(403)
    const names = decodePath(url)
    if (names === undefined) return this.#end(400)
    const [token = '', ...below] = names
    if (!isSame(token, this.#token)) return this.#end(404)
    if (!ALLOWED.split(', ').includes(method)) {
      this.#response.setHeader('Allow', ALLOWED)
      return this.#end(405)
    }
    return below.join('/')
  }

  /** `latest` is a directory here: links are not known to WebDAV. */
  #truePath(path: RawPath): RawPath {
    const [set = '', name, ...below] = path.split('/')
    const stamp = name === LATEST ? this.#view.latest(set) : undefined
    return stamp === undefined ? path : [set, stamp, ...below].join('/')
  }

  async #answer({ path, node }: Asked): Promise<void> {
    const { method } = this.#request
    const isDirectory = node.metadata.type === 'directory'
    if (method === 'OPTIONS') {
      this.#response.setHeader('Allow', ALLOWED)
      this.#response.setHeader('DAV', '1')
      this.#response.setHeader('MS-Author-Via', 'DAV')
      return this.#end(200)
    }
    if (method === 'PROPFIND') return await this.#propfind({ path, node })
    if (isDirectory) return await this.#page({ path, node })
    await this.#file(node)
  }

  async #propfind({ path, node }: Asked): Promise<void> {
    const depth = this.#request.headers['depth'] ?? 'infinity'
    if (depth !== '0' && depth !== '1') return this.#end(403)
    this.#head(207, 'application/xml; charset=utf-8')
    const chunks = async function* (exchange: Exchange): AsyncGenerator<string> {
      yield '<?xml version="1.0" encoding="utf-8"?>\n<D:multistatus xmlns:D="DAV:">\n'
      yield exchange.#properties({ path, node })
      if (depth === '1' && node.metadata.type === 'directory') {
        for await (const child of exchange.#children({ path, node })) {
          yield exchange.#properties(child)
        }
      }
      yield '</D:multistatus>\n'
    }
    await pipeline(Readable.from(chunks(this)), this.#response)
  }

  /** What of a directory is shown. */
  async *#children({ path, node }: Asked): AsyncGenerator<Asked> {
    for await (const child of listAll(this.#view, node.path)) {
      const name = baseOf(child.path)
      const isLatest = name === LATEST && child.metadata.type === 'symlink' && !path.includes('/')
      const shown = isLatest
        ? await this.#view.lookup(`${parentOf(child.path)}/${child.metadata.target}`)
        : await this.#resolved(child)
      if (shown !== undefined) yield { path: path === '' ? name : `${path}/${name}`, node: shown }
    }
  }

  async #shown(path: RawPath): Promise<ViewNode | undefined> {
    const node = await this.#view.lookup(path)
    return node === undefined ? undefined : await this.#resolved(node)
  }

  /**
   * Files and directories as they are, links as the file they lead to. A link to a directory could
   * lead in a circle.
   */
  async #resolved(node: ViewNode): Promise<ViewNode | undefined> {
    if (node.metadata.type === 'file' || node.metadata.type === 'directory') return node
    const [set, stamp] = node.path.split('/')
    const root = `${set}/${stamp}`
    let at: ViewNode | undefined = node
    for (let count = 0; count < MAX_LINKS && at?.metadata.type === 'symlink'; count++) {
      // The trees hold the paths of the source: what is absolute begins at their root.
      const from = `/${parentOf(at.path).slice(root.length + 1)}`
      const to = posix.resolve(from, at.metadata.target ?? '')
      at = to === '/' ? undefined : await this.#view.lookup(`${root}${to}`)
    }
    return at?.metadata.type === 'file' ? at : undefined
  }

  #properties({ path, node }: Asked): string {
    const { type, mtimeNs, size = 0 } = node.metadata
    const isDirectory = type === 'directory'
    const content = isDirectory
      ? '<D:resourcetype><D:collection/></D:resourcetype>'
      : '<D:resourcetype/><D:getcontenttype>application/octet-stream</D:getcontenttype>'
        + `<D:getcontentlength>${size}</D:getcontentlength>`
        + `<D:getetag>${escapeXml(etagOf(node))}</D:getetag>`
    return (
      `<D:response><D:href>${this.#href(path, isDirectory)}</D:href><D:propstat><D:prop>`
      + `<D:displayname>${escapeXml(displayPath(baseOf(path)))}</D:displayname>${content}`
      + `<D:getlastmodified>${httpDate(mtimeNs)}</D:getlastmodified><D:supportedlock/>`
      + '</D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>\n'
    )
  }

  #href(path: RawPath, isDirectory: boolean): string {
    const names = path === '' ? [] : path.split('/')
    return `/${[this.#token, ...names.map(encodeName)].join('/')}${isDirectory ? '/' : ''}`
  }

  /** For browsers: a page of links. */
  async #page(asked: Asked): Promise<void> {
    this.#head(200, 'text/html; charset=utf-8')
    if (this.#request.method === 'HEAD') return void this.#response.end()
    const title = escapeXml(`/${displayPath(asked.path)}`)
    const chunks = async function* (exchange: Exchange): AsyncGenerator<string> {
      yield `<!doctype html><meta charset="utf-8"><title>${title}</title><h1>${title}</h1><ul>\n`
      if (asked.path !== '') {
        yield `<li><a href="${exchange.#href(parentOf(asked.path), true)}">..</a>\n`
      }
      for await (const { path, node } of exchange.#children(asked)) {
        const isDirectory = node.metadata.type === 'directory'
        const name = escapeXml(displayPath(baseOf(path)))
        yield `<li><a href="${exchange.#href(path, isDirectory)}">${name}</a>`
        yield isDirectory ? '/\n' : ` ${node.metadata.size ?? 0} bytes\n`
      }
      yield '</ul>\n'
    }
    await pipeline(Readable.from(chunks(this)), this.#response)
  }

  async #file(node: ViewNode): Promise<void> {
    const { headers, method } = this.#request
    const etag = etagOf(node)
    this.#response.setHeader('ETag', etag)
    this.#response.setHeader('Last-Modified', httpDate(node.metadata.mtimeNs))
    this.#response.setHeader('Accept-Ranges', 'bytes')
    this.#response.setHeader('Content-Disposition', 'attachment')
    if (isMatch(headers['if-none-match'], etag)) return this.#end(304)
    const sizeBytes = node.metadata.size ?? 0
    const ifRange = headers['if-range']
    const wanted = ifRange === undefined || ifRange === etag ? headers.range : undefined
    const range = parseRange(wanted, sizeBytes)
    if (range === 'none') {
      this.#response.setHeader('Content-Range', `bytes */${sizeBytes}`)
      return this.#end(416)
    }
    const { from, to } = range ?? { from: 0, to: sizeBytes }
    this.#response.setHeader('Content-Length', to - from)
    if (range !== undefined) {
      this.#response.setHeader('Content-Range', `bytes ${from}-${to - 1}/${sizeBytes}`)
    }
    const status = range === undefined ? 200 : 206
    const type = 'application/octet-stream'
    if (method === 'HEAD') {
      this.#head(status, type)
      return void this.#response.end()
    }
    await this.#send(node, { from, to, onFirst: () => this.#head(status, type) })
  }

  async #send(
    node: ViewNode,
    { from, to, onFirst }: { from: number; to: number; onFirst: () => void },
  ): Promise<void> {
    const file = await this.#view.open(node.path)
    if (file === undefined) return this.#end(404)
    try {
      const blocks = blocksOf(file, { from, to })
      // Read before the head is sent: what is damaged at its beginning is a plain 500.
      const first = await blocks.next()
      onFirst()
      if (first.done === true) return void this.#response.end()
      const all = async function* (): AsyncGenerator<Buffer> {
        yield first.value
        yield* blocks
      }
      await pipeline(Readable.from(all()), this.#response)
    } finally {
      file.close()
    }
  }

  #head(status: number, contentType: string): void {
    this.#response.statusCode = status
    this.#response.setHeader('Content-Type', contentType)
  }

  /** An answer without a body. */
  #end(status: number): undefined {
    this.#response.removeHeader('Content-Length')
    this.#response.statusCode = status
    this.#response.end()
    return undefined
  }

  /** What PROPFIND asks for is not looked at: all properties are given, there are few. */
  async #hasSmallBody(): Promise<boolean> {
    let bytes = 0
    for await (const part of this.#request) {
      bytes += (part as Buffer).length
      if (bytes > MAX_BODY_BYTES) return false
    }
    return true
  }
}

async function* blocksOf(
  file: ViewFile,
  { from, to }: { from: number; to: number },
): AsyncGenerator<Buffer> {
  for (let at = from; at < to;) {
    const block = await file.read(at, Math.min(BLOCK_BYTES, to - at))
    if (block.length === 0) {
      throw new BackupError('STAGING_DAMAGED', 'it is shorter than it was a moment ago')
    }
    yield block
    at += block.length
  }
}

/** The names of a request's path, one character a byte; undefined where it is no clean path. */
function decodePath(url: string): RawPath[] | undefined {
  const [path = ''] = url.split(/[?#]/, 1)
  if (!path.startsWith('/') || /%(?![0-9a-f]{2})/i.test(path)) return undefined
  const names = path.slice(1).replace(/\/$/, '').split('/').map(decodeName)
  const isClean = names.every((name) => !/[/\0]/.test(name) && name !== '.' && name !== '..')
  return isClean && (names.length === 1 || !names.includes('')) ? names : undefined
}

function decodeName(name: string): RawPath {
  return rawPathFromText(name).replace(/%([0-9a-f]{2})/gi, (_, hex: string) => {
    return String.fromCharCode(Number.parseInt(hex, 16))
  })
}

function encodeName(name: RawPath): string {
  return name.replace(/[^A-Za-z0-9._~-]/g, (character) => {
    return `%${character.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`
  })
}

/** Also for attributes in double quotes. */
function escapeXml(text: string): string {
  return text
    .replace(/[\ufffe\uffff]/g, '\ufffd')
    .replace(/[<>&"']/g, (character) => `&#${character.charCodeAt(0)};`)
}

/** What is at a path of a generation never changes: the path, with size and time, names it. */
function etagOf({ path, metadata }: ViewNode): string {
  const hash = createHash('sha256').update(rawPathToBytes(path))
  hash.update(`\0${metadata.size ?? 0}\0${metadata.mtimeNs}`)
  return `"${hash.digest('hex').slice(0, 32)}"`
}

function isMatch(header: string | undefined, etag: string): boolean {
  return header !== undefined && header.split(',').some((one) => one.trim() === etag)
}

/** To the second; dates that HTTP has no form for are told as its first. */
function httpDate(timeNs: bigint): string {
  const date = new Date(Number(timeNs / 1_000_000n))
  const year = date.getUTCFullYear()
  return (year >= 0 && year <= 9999 ? date : new Date(0)).toUTCString()
}

/** One range `[from, to)`; undefined: everything; none: nothing of it is there. */
function parseRange(
  header: string | undefined,
  sizeBytes: number,
): { readonly from: number; readonly to: number } | 'none' | undefined {
  const match = /^bytes=(\d{0,15})-(\d{0,15})$/.exec(header ?? '')
  const [, first = '', last = ''] = match ?? []
  if (match === null || (first === '' && last === '')) return undefined
  const from = first === '' ? Math.max(0, sizeBytes - Number(last)) : Number(first)
  const to = first === '' || last === '' ? sizeBytes : Math.min(Number(last) + 1, sizeBytes)
  if (first !== '' && last !== '' && Number(last) < from) return undefined
  return from < to ? { from, to } : 'none'
}

function isSame(given: string, token: string): boolean {
  const [one, other] = [given, token].map((text) => createHash('sha256').update(text).digest())
  return timingSafeEqual(one!, other!)
}

/** The client has left. */
function isGone(error: unknown): boolean {
  return GONE.includes(systemCode(error) ?? '')
}

const GONE = ['ERR_STREAM_PREMATURE_CLOSE', 'ERR_STREAM_DESTROYED', 'ECONNRESET', 'EPIPE']
