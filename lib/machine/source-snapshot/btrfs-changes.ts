// What changed between two read-only btrfs snapshots of one subvolume, from `btrfs send --no-data`.
//
// The stream tells the receiving side what to do to make the newer tree of the older one: names
// come and go by way of temporary ones, so its commands are followed in a sparse model of the tree,
// and at the end every name is looked up in both snapshots. The binary stream is read, not
// `btrfs receive --dump`: its format is the kernel's (fs/btrfs/send.h) and needs no escapes, while
// the dump prints attributes' values as they are, newlines included. Whatever is not understood
// gives undefined: the whole tree is compared then, which is always right (design invariant 7).
// Only INTERRUPTED is thrown.

import { Buffer } from 'node:buffer'
import { type Stats, lstatSync, readdirSync } from 'node:fs'
import { BackupError, systemCode } from '../../errors.ts'
import {
  baseOf,
  comparePaths,
  parentOf,
  type RawPath,
  rawPathToBytes,
} from '../../model/raw-path.ts'
import { runProgram } from '../shell.ts'

/** Paths from the top of the snapshots, without a leading slash, in catalog order. */
export interface ChangeList {
  /**
   * In the newer snapshot: new or changed. All names of an inode with several are here, or none;
   * so is everything in a directory that is new at its path, and the directory of whatever is named
   * here or below, whose time a copy disturbs. The top itself is ''.
   */
  readonly present: readonly RawPath[]
  /** In the older one only. A directory stands for all that was in it. */
  readonly gone: readonly RawPath[]
}

export interface ChangeRequest {
  /** Both absolute, read-only, of one filesystem. */
  readonly older: RawPath
  readonly newer: RawPath
  readonly signal?: AbortSignal
}

/** Without data the stream is short; only a hanging disk takes longer. */
const SEND_TIMEOUT_MS = 60 * 60_000

/** Past this many paths, comparing the whole tree costs no more. */
const MAX_PATHS = 500_000

/** How many inodes with names elsewhere are asked for one by one; each takes a call. */
const MAX_RESOLVED_INODES = 200

const RESOLVE_TIMEOUT_MS = 60_000

/** The changes, or undefined when they cannot be told for sure. @throws BackupError INTERRUPTED */
export async function changedPaths(request: ChangeRequest): Promise<ChangeList | undefined> {
  try {
    const touched = touchedPaths({ ...request, tree: await followStream(request) })
    await addOtherNames({ ...request, touched })
    return sortOut(request, touched)
  } catch (error) {
    if (error instanceof BackupError && error.code !== 'INTERRUPTED') return undefined
    if (error instanceof NotUnderstood || systemCode(error) !== undefined) return undefined
    throw error
  }
}

class NotUnderstood extends Error {}

/** Runs `btrfs send` and gives the model of the tree after its last command. */
async function followStream({ older, newer, signal }: ChangeRequest): Promise<TreeNode> {
  const model = treeModel()
  const reader = streamReader(model.apply)
  let failure: unknown
  const args = ['send', '--no-data', '-q', '-p', rawPathToBytes(older), '--', rawPathToBytes(newer)]
  const { exitCode } = await runProgram({
    program: 'btrfs',
    args,
    changes: false,
    timeoutMs: SEND_TIMEOUT_MS,
    signal,
    // "Lines" of a binary stream: put together again, byte by byte what was printed. What is thrown
    // here would end the process.
    onLine: (line, stream) => {
      if (stream === 'stderr' || failure !== undefined) return
      try {
        reader.takeLine(line)
      } catch (error) {
        failure = error
      }
    },
  })
  if (failure !== undefined) throw failure
  if (exitCode !== 0 || !reader.ended()) throw new NotUnderstood('the stream has no end')
  return model.top
}

const STREAM_MAGIC = Buffer.from('btrfs-stream\0')
const STREAM_VERSION = 1

/** Length, command, checksum. */
const COMMAND_HEADER_BYTES = 10

/** Type and length of an attribute. */
const ATTRIBUTE_HEADER_BYTES = 4

/** Without data a command holds two paths or an extended attribute: 64 KiB each at most. */
const MAX_COMMAND_BYTES = 256 * 1024

/** The commands of version 1; what `write` (15) would carry is left out by --no-data. */
const COMMANDS: Readonly<Record<number, Command['kind']>> = {
  2: 'snapshot',
  3: 'make',
  4: 'make',
  5: 'make',
  6: 'make',
  7: 'make',
  8: 'make',
  9: 'rename',
  10: 'make',
  11: 'remove',
  12: 'remove',
  13: 'change',
  14: 'change',
  16: 'change',
  17: 'change',
  18: 'change',
  19: 'change',
  20: 'change',
  21: 'end',
  22: 'change',
}

const PATH = 15
const PATH_TO = 16

interface Command {
  readonly kind: 'snapshot' | 'make' | 'rename' | 'remove' | 'change' | 'end'
  readonly path: RawPath
  /** Of a rename only. */
  readonly to: RawPath
}

/** Cuts the stream into commands; nothing is taken for granted but its order of bytes. */
function streamReader(onCommand: (command: Command) => void): {
  readonly takeLine: (line: Buffer) => void
  readonly ended: () => boolean
} {
  const start = STREAM_MAGIC.length + 4
  let pending: Buffer = Buffer.alloc(0)
  let commands = 0
  let isStarted = false
  let isFirstLine = true
  let hasEnded = false
  const takeLine = (line: Buffer): void => {
    pending = Buffer.concat(isFirstLine ? [line] : [pending, Buffer.from('\n'), line])
    isFirstLine = false
    if (!isStarted) {
      if (pending.length < start) return
      const isKnown =
        pending.subarray(0, STREAM_MAGIC.length).equals(STREAM_MAGIC)
        && pending.readUInt32LE(STREAM_MAGIC.length) === STREAM_VERSION
      if (!isKnown) throw new NotUnderstood('not a stream of version 1')
      isStarted = true
      pending = pending.subarray(start)
    }
    for (;;) {
      if (pending.length < COMMAND_HEADER_BYTES) return
      const length = pending.readUInt32LE(0)
      if (length > MAX_COMMAND_BYTES) throw new NotUnderstood('a command is too long')
      const end = COMMAND_HEADER_BYTES + length
      if (pending.length < end) return
      const command = parseCommand(pending.readUInt16LE(4), pending.subarray(10, end))
      if (hasEnded || (commands === 0) !== (command.kind === 'snapshot'))
        throw new NotUnderstood('a command stands where it cannot')
      commands += 1
      hasEnded = command.kind === 'end'
      onCommand(command)
      pending = pending.subarray(end)
    }
  }
  return { takeLine, ended: () => hasEnded && pending.length === 0 }
}

function parseCommand(number: number, attributes: Buffer): Command {
  const kind = COMMANDS[number]
  if (kind === undefined) throw new NotUnderstood(`command ${number}`)
  const values = new Map<number, RawPath>()
  for (let at = 0; at < attributes.length;) {
    const begin = at + ATTRIBUTE_HEADER_BYTES
    if (begin > attributes.length) throw new NotUnderstood('half an attribute')
    const type = attributes.readUInt16LE(at)
    at = begin + attributes.readUInt16LE(at + 2)
    if (at > attributes.length || values.has(type)) throw new NotUnderstood('a wrong attribute')
    values.set(type, attributes.toString('latin1', begin, at))
  }
  const path = values.get(PATH)
  const to = values.get(PATH_TO)
  if ((path === undefined && kind !== 'end') || (to === undefined && kind === 'rename'))
    throw new NotUnderstood('a command without its path')
  return { kind, path: path ?? '', to: to ?? '' }
}

/** A name in the tree as it is after the commands so far. Only names they lead to are here. */
interface TreeNode {
  /** Where it was in the older snapshot; undefined for what is new. */
  readonly origin: RawPath | undefined
  isChanged: boolean
  /** `undefined` as a value: the name is taken away. */
  readonly children: Map<RawPath, TreeNode | undefined>
}

function treeModel(): { readonly top: TreeNode; readonly apply: (command: Command) => void } {
  const top = newNode('')
  const apply = ({ kind, path, to }: Command): void => {
    switch (kind) {
      case 'snapshot':
      case 'end':
        return
      case 'make':
        nodeAt(top, parentOf(path)).children.set(nameOf(path), newNode(undefined))
        return
      case 'remove':
        nodeAt(top, path)
        nodeAt(top, parentOf(path)).children.set(nameOf(path), undefined)
        return
      case 'rename': {
        const node = nodeAt(top, path)
        nodeAt(top, parentOf(path)).children.set(nameOf(path), undefined)
        nodeAt(top, parentOf(to)).children.set(nameOf(to), node)
        return
      }
      case 'change':
        nodeAt(top, path).isChanged = true
    }
  }
  return { top, apply }
}

function newNode(origin: RawPath | undefined): TreeNode {
  return { origin, isChanged: false, children: new Map() }
}

function nameOf(path: RawPath): RawPath {
  const name = baseOf(path)
  if (name === '' || name === '.' || name === '..') throw new NotUnderstood('a wrong name')
  return name
}

function nodeAt(top: TreeNode, path: RawPath): TreeNode {
  let node = top
  for (const name of path === '' ? [] : path.split('/')) {
    const known = node.children.get(nameOf(name))
    const isOld = !node.children.has(name) && node.origin !== undefined
    if (known === undefined && !isOld) throw new NotUnderstood('a path that is not there')
    const next = known ?? newNode(below(node.origin ?? '', name))
    node.children.set(name, next)
    node = next
  }
  return node
}

interface Snapshots {
  readonly older: RawPath
  readonly newer: RawPath
}

/** Every path, old or new, that is not the same in both. May name some that are in neither. */
function touchedPaths({ tree, ...snapshots }: Snapshots & { tree: TreeNode }): Set<RawPath> {
  const touched = new Set<RawPath>()
  const touch = (path: RawPath): void => {
    touched.add(path)
    if (touched.size > MAX_PATHS) throw new NotUnderstood('too many changes')
  }
  /** Another thing at this path than before, so all that is below it is another, too. */
  const touchAll = (path: RawPath): void => {
    touch(path)
    const [old, now] = [namesIn(snapshots.older, path), namesIn(snapshots.newer, path)]
    for (const name of old) if (!now.has(name)) touch(below(path, name))
    for (const name of now) touchAll(below(path, name))
  }
  const visit = (node: TreeNode, path: RawPath): void => {
    if (node.origin !== path) return touchAll(path)
    if (node.isChanged) {
      touch(path)
      // Subvolumes that came or went are not in the stream, but their directory's time is.
      const [old, now] = [namesIn(snapshots.older, path), namesIn(snapshots.newer, path)]
      for (const name of old) if (!now.has(name)) touch(below(path, name))
      for (const name of now)
        if (!old.has(name) && !node.children.has(name)) touchAll(below(path, name))
    }
    for (const [name, child] of node.children) {
      if (child === undefined) touch(below(path, name))
      else visit(child, below(path, name))
    }
  }
  visit(tree, '')
  return touched
}

/**
 * The stream changes an inode by one of its names; whoever copies it has to know all of them, or
 * they come apart.
 */
async function addOtherNames({
  newer,
  touched,
  signal,
}: ChangeRequest & { touched: Set<RawPath> }): Promise<void> {
  const links = new Map<number, { names: number; readonly linkCount: number }>()
  for (const path of touched) {
    const stat = statAt(newer, path)
    if (stat === undefined || stat.isDirectory() || stat.nlink < 2) continue
    const known = links.get(stat.ino) ?? { names: 0, linkCount: stat.nlink }
    known.names += 1
    links.set(stat.ino, known)
  }
  const open = [...links].filter(([, { names, linkCount }]) => names < linkCount)
  if (open.length > MAX_RESOLVED_INODES) throw new NotUnderstood('too many hard links')
  for (const [inode, { linkCount }] of open) {
    const names = await namesOfInode({ newer, inode, signal })
    if (names.size !== linkCount) throw new NotUnderstood('a hard link is not to be found')
    for (const name of names) touched.add(name)
  }
}

/** A name with a newline is printed as it is, and so not found; the caller sees that one lacks. */
async function namesOfInode({
  newer,
  inode,
  signal,
}: {
  newer: RawPath
  inode: number
  signal: AbortSignal | undefined
}): Promise<Set<RawPath>> {
  const names = new Set<RawPath>()
  await runProgram({
    program: 'btrfs',
    args: ['inspect-internal', 'inode-resolve', String(inode), rawPathToBytes(newer)],
    changes: false,
    timeoutMs: RESOLVE_TIMEOUT_MS,
    signal,
    onLine: (line, stream) => {
      const path = line.toString('latin1')
      if (stream === 'stderr' || !path.startsWith(`${newer}/`)) return
      const name = path.slice(newer.length).replace(/^\/+/, '')
      if (statOrNothing(newer, name)?.ino === inode) names.add(name)
    },
  })
  return names
}

function sortOut({ older, newer }: Snapshots, touched: ReadonlySet<RawPath>): ChangeList {
  const present: RawPath[] = []
  const gone: RawPath[] = []
  const paths = new Set([...touched].flatMap((path) => [parentOf(path), path]))
  for (const path of [...paths].sort(comparePaths)) {
    if (statAt(newer, path) !== undefined) present.push(path)
    else if (statAt(newer, parentOf(path))?.isDirectory() !== true) continue
    else if (statAt(older, path) !== undefined) gone.push(path)
  }
  return { present, gone }
}

/** None where there is no directory. */
function namesIn(snapshot: RawPath, path: RawPath): Set<RawPath> {
  if (statAt(snapshot, path)?.isDirectory() !== true) return new Set()
  return new Set(
    readdirSync(rawPathToBytes(below(snapshot, path)), { encoding: 'latin1' }) as RawPath[],
  )
}

function statAt(snapshot: RawPath, path: RawPath): Stats | undefined {
  try {
    return lstatSync(rawPathToBytes(below(snapshot, path)))
  } catch (error) {
    if (systemCode(error) === 'ENOENT' || systemCode(error) === 'ENOTDIR') return undefined
    throw error
  }
}

/** For a callback, where throwing would end the process. */
function statOrNothing(snapshot: RawPath, path: RawPath): Stats | undefined {
  try {
    return statAt(snapshot, path)
  } catch {
    return undefined
  }
}

function below(directory: RawPath, name: RawPath): RawPath {
  return directory === '' || name === '' ? directory + name : `${directory}/${name}`
}
