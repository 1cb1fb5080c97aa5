// Answers the kernel's questions about the view of backups (browse.ts): numbers for nodes, handles
// for what is open.
//
// lib/machine/fuse.ts mounts it and brings the requests. The number of a node comes from its path,
// so that it is the same after every mount, and one for all names of a file. What changes something
// is EROFS, what is damaged EIO and a warning. Throws what is a bug.

import { Buffer } from 'node:buffer'
import { constants } from 'node:os'
import { systemCode } from '../errors.ts'
import { digestBytes } from '../format/chunker.ts'
import type { FuseAnswer } from '../machine/fuse.ts'
import {
  CHANGES,
  type FuseRequest,
  NO_ENTRY,
  OP,
  encodeAttributes,
  encodeDirent,
  encodeEntry,
  encodeOpen,
  encodeStatfs,
  encodeValue,
  forgottenIn,
  handleIn,
  nameIn,
  readIn,
  valueSizeIn,
} from '../machine/fuse-protocol.ts'
import { type RawPath, baseOf, parentOf, rawPathToBytes } from '../model/raw-path.ts'
import type { TellDamage } from './view-damage.ts'
import { type ViewFile, type ViewNode, type ViewTree, listAll } from './view-node.ts'

const { errno } = constants

const ROOT = 1
/** Numbers are 48 bits of a digest; the first ones have a meaning. */
const NUMBER_BYTES = 6
const FIRST_NUMBER = 16

/** A node that the kernel knows. */
interface Known {
  readonly path: RawPath
  readonly file: RawPath
  lookups: number
}

interface OpenFile {
  readonly path: RawPath
  readonly file: ViewFile
}

interface OpenDirectory {
  readonly path: RawPath
  items: AsyncGenerator<Item>
  /** How many of them were given; the kernel says where to go on. */
  position: number
  /** Was taken from the items and did not fit any more. */
  kept: Item | undefined
}

/** `.` and `..` have no node. */
interface Item {
  readonly name: RawPath
  readonly number: number
  readonly node: ViewNode | undefined
}

export class FuseView {
  readonly #view: ViewTree
  readonly #tell: TellDamage
  readonly #known = new Map<number, Known>([[ROOT, { path: '', file: '', lookups: 1 }]])
  readonly #files = new Map<number, OpenFile>()
  readonly #directories = new Map<number, OpenDirectory>()
  #nextHandle = 1

  constructor({ view, tell }: { view: ViewTree; tell: TellDamage }) {
    this.#view = view
    this.#tell = tell
  }

  /** For FuseMount.serve(). */
  async answer(request: FuseRequest): Promise<FuseAnswer> {
    if (request.opcode === OP.forget || request.opcode === OP.batchForget) {
      for (const [node, count] of forgottenIn(request)) this.#forget(node, count)
      return undefined
    }
    if (CHANGES.has(request.opcode)) return errno.EROFS
    try {
      return await this.#answer(request)
    } catch (error) {
      this.#tell(this.#known.get(request.node)?.path ?? '', error)
      return systemCode(error) === 'ENOENT' ? errno.ENOENT : errno.EIO
    }
  }

  /** What is still open is closed. */
  close(): void {
    for (const { file } of this.#files.values()) file.close()
    this.#files.clear()
    this.#directories.clear()
  }

  async #answer(request: FuseRequest): Promise<FuseAnswer> {
    switch (request.opcode) {
      case OP.lookup:
        return await this.#lookup(request)
      case OP.getattr:
        return await this.#withNode(request, ({ metadata }) => {
          return encodeAttributes(request.node, metadata)
        })
      case OP.readlink:
        return await this.#withNode(request, ({ metadata }) => {
          return metadata.target === undefined ? errno.EINVAL : rawPathToBytes(metadata.target)
        })
      case OP.getxattr:
        return await this.#withNode(request, (node) => {
          const value = node.xattrs().get(nameIn(request, 8))
          return value === undefined ? errno.ENODATA : sized(value, request)
        })
      case OP.listxattr:
        return await this.#withNode(request, (node) => {
          const names = [...node.xattrs().keys()].map((name) => `${name}\0`).join('')
          return sized(Buffer.from(names, 'latin1'), request)
        })
      case OP.open:
        return await this.#open(request)
      case OP.read:
        return await this.#read(request)
      case OP.release: {
        this.#files.get(handleIn(request))?.file.close()
        this.#files.delete(handleIn(request))
        return 0
      }
      case OP.opendir:
        return this.#openDirectory(request)
      case OP.readdir:
        return await this.#readDirectory(request, false)
      case OP.readdirplus:
        return await this.#readDirectory(request, true)
      case OP.releasedir:
        this.#directories.delete(handleIn(request))
        return 0
      case OP.statfs:
        return encodeStatfs()
      case OP.flush:
      case OP.destroy:
        return 0
      default:
        return errno.ENOSYS
    }
  }

  async #lookup(request: FuseRequest): Promise<FuseAnswer> {
    const parent = this.#known.get(request.node)
    if (parent === undefined) return errno.ESTALE
    const name = nameIn(request)
    const path = parent.path === '' ? name : `${parent.path}/${name}`
    const node = await this.#view.lookup(path)
    if (node === undefined) return encodeEntry(0, undefined)
    return encodeEntry(this.#remember(node), node.metadata)
  }

  async #withNode(request: FuseRequest, give: (node: ViewNode) => FuseAnswer): Promise<FuseAnswer> {
    const known = this.#known.get(request.node)
    const node = known === undefined ? undefined : await this.#view.lookup(known.path)
    return node === undefined ? errno.ESTALE : give(node)
  }

  async #open(request: FuseRequest): Promise<FuseAnswer> {
    const path = this.#known.get(request.node)?.path
    const file = path === undefined ? undefined : await this.#view.open(path)
    if (path === undefined || file === undefined) return errno.ESTALE
    this.#files.set(this.#nextHandle, { path, file })
    return encodeOpen(this.#nextHandle++)
  }

  async #read(request: FuseRequest): Promise<FuseAnswer> {
    const { handle, offset, sizeBytes } = readIn(request)
    const open = this.#files.get(handle)
    return open === undefined ? errno.EBADF : await open.file.read(offset, sizeBytes)
  }

  #openDirectory(request: FuseRequest): FuseAnswer {
    const path = this.#known.get(request.node)?.path
    if (path === undefined) return errno.ESTALE
    const items = this.#items(path)
    this.#directories.set(this.#nextHandle, { path, items, position: 0, kept: undefined })
    return encodeOpen(this.#nextHandle++)
  }

  /** As many names as fit, from where the kernel wants them. */
  async #readDirectory(request: FuseRequest, isPlus: boolean): Promise<FuseAnswer> {
    const { handle, offset, sizeBytes } = readIn(request)
    const directory = this.#directories.get(handle)
    if (directory === undefined) return errno.EBADF
    await this.#goTo(directory, offset)
    const parts: Buffer[] = []
    for (let room = sizeBytes; ;) {
      const item = await this.#nextItem(directory, parts.length > 0)
      if (item === undefined) break
      const part = this.#dirent(item, { next: directory.position + 1, isPlus })
      if (part.length > room) {
        directory.kept = item
        break
      }
      if (isPlus && item.node !== undefined) this.#remember(item.node)
      directory.position += 1
      room -= part.length
      parts.push(part)
    }
    return Buffer.concat(parts)
  }

  async #goTo(directory: OpenDirectory, position: number): Promise<void> {
    if (directory.position === position) return
    directory.items = this.#items(directory.path)
    directory.kept = undefined
    directory.position = 0
    while (directory.position < position && (await directory.items.next()).done !== true) {
      directory.position += 1
    }
  }

  /** A failure is told when there is nothing else to give: what came before it counts. */
  async #nextItem(directory: OpenDirectory, hasSome: boolean): Promise<Item | undefined> {
    const { kept, items, path } = directory
    directory.kept = undefined
    if (kept !== undefined) return kept
    try {
      const { value } = await items.next()
      return value as Item | undefined
    } catch (error) {
      this.#tell(path, error)
      // The generator has ended with it: the next request begins again, and meets it first.
      directory.position = -1
      if (!hasSome) throw error
      return undefined
    }
  }

  #dirent(item: Item, { next, isPlus }: { next: number; isPlus: boolean }): Buffer {
    const { name, number, node } = item
    const type = node?.metadata.type ?? 'directory'
    const entry = node === undefined ? NO_ENTRY : encodeEntry(number, node.metadata)
    return encodeDirent({ name, node: number, type, next }, isPlus ? entry : undefined)
  }

  async *#items(path: RawPath): AsyncGenerator<Item> {
    yield { name: '.', number: this.#numberOf(path), node: undefined }
    yield { name: '..', number: this.#numberOf(parentOf(path)), node: undefined }
    for await (const node of listAll(this.#view, path)) {
      yield { name: baseOf(node.path), number: this.#numberOf(node.file), node }
    }
  }

  #remember({ path, file }: ViewNode): number {
    const number = this.#numberOf(file)
    const known = this.#known.get(number)
    if (known === undefined) this.#known.set(number, { path, file, lookups: 1 })
    else known.lookups += 1
    return number
  }

  #forget(node: number, count: number): void {
    const known = this.#known.get(node)
    if (known === undefined || node === ROOT) return
    known.lookups -= count
    if (known.lookups <= 0) this.#known.delete(node)
  }

  /** Where two files would have one number, the later one gets the next that is free. */
  #numberOf(file: RawPath): number {
    if (file === '') return ROOT
    let number = FIRST_NUMBER + digestBytes(rawPathToBytes(file)).readUIntLE(0, NUMBER_BYTES)
    while ((this.#known.get(number)?.file ?? file) !== file) number += 1
    return number
  }
}

function sized(value: Buffer, request: FuseRequest): FuseAnswer {
  const sizeBytes = valueSizeIn(request)
  if (sizeBytes > 0 && value.length > sizeBytes) return errno.ERANGE
  return encodeValue(value, sizeBytes)
}
