// The read-only view of all backups at one place: `/<set>/<stamp>/…`, and `/<set>/latest`.
//
// Puts the trees of generations (browse-export.ts, browse-staging.ts) under their sets and stamps;
// each is opened when somebody looks into it, and a few stay open. fuse-view.ts and webdav.ts show
// it. Nothing of it can be changed. Throws what opening and reading a generation throws.

import { Buffer } from 'node:buffer'
import type { EntryMetadata, TimeNs } from '../model/entry.ts'
import type { RawPath } from '../model/raw-path.ts'
import { parseStamp } from '../model/stamp.ts'
import { pickExports } from './find-exports.ts'
import {
  type ListPart,
  type ViewFile,
  type ViewNode,
  type ViewTree,
  impliedDirectory,
  owner,
} from './view-node.ts'

/** The name beside the stamps of a set that leads to the newest good one. */
export const LATEST = 'latest'

/** Generations that stay open: each keeps the index of its catalog. */
const OPEN_TREES = 4

/** What stands under a set and a stamp. */
export interface ViewGeneration {
  readonly machine: string
  readonly set: string
  readonly stamp: string
  /** Distrusted: `latest` passes it by. */
  readonly isSuspect?: boolean
}

export class View implements ViewTree {
  readonly #generations: readonly ViewGeneration[]
  readonly #openTree: (generation: ViewGeneration) => Promise<ViewTree>
  readonly #trees = new Map<ViewGeneration, Promise<ViewTree>>()

  /** @param of.generations oldest first in each set */
  constructor(of: {
    readonly generations: readonly ViewGeneration[]
    readonly openTree: (generation: ViewGeneration) => Promise<ViewTree>
  }) {
    this.#generations = of.generations
    this.#openTree = of.openTree
  }

  /** The stamp that `latest` of a set leads to. */
  latest(set: string): string | undefined {
    const ofSet = this.#generations.filter((one) => one.set === set)
    return ofSet.length === 0 ? undefined : pickExports(ofSet, LATEST)[0]!.stamp
  }

  async lookup(path: RawPath): Promise<ViewNode | undefined> {
    const { generation, below } = this.#place(path)
    if (generation === undefined) return this.#top(path)
    if (below === '') return this.#root(generation)
    const node = await (await this.#tree(generation)).lookup(below)
    return node === undefined ? undefined : placed(node, generation)
  }

  async list(directory: RawPath, part: ListPart): Promise<readonly ViewNode[]> {
    const { generation, below } = this.#place(directory)
    if (generation === undefined) return this.#listTop(directory, part)
    const nodes = await (await this.#tree(generation)).list(below, part)
    return nodes.map((node) => placed(node, generation))
  }

  async open(path: RawPath): Promise<ViewFile | undefined> {
    const { generation, below } = this.#place(path)
    return generation === undefined ? undefined : (await this.#tree(generation)).open(below)
  }

  close(): void {
    for (const tree of this.#trees.values()) closeWhenOpen(tree)
    this.#trees.clear()
  }

  #place(path: RawPath): {
    readonly generation: ViewGeneration | undefined
    readonly below: RawPath
  } {
    const [set, stamp, ...names] = path.split('/')
    const generation = this.#generations.find((one) => one.set === set && one.stamp === stamp)
    return { generation, below: names.join('/') }
  }

  async #tree(generation: ViewGeneration): Promise<ViewTree> {
    const there = this.#trees.get(generation)
    if (there !== undefined) {
      this.#trees.delete(generation)
      this.#trees.set(generation, there)
      return await there
    }
    const opening = this.#openTree(generation)
    this.#trees.set(generation, opening)
    for (const [oldest, tree] of this.#trees) {
      if (this.#trees.size <= OPEN_TREES) break
      this.#trees.delete(oldest)
      closeWhenOpen(tree)
    }
    try {
      return await opening
    } catch (error) {
      this.#trees.delete(generation)
      throw error
    }
  }

  #top(path: RawPath): ViewNode | undefined {
    if (path === '') return impliedDirectory({ path, mtimeNs: newestTime(this.#generations) })
    const [set = '', name, ...further] = path.split('/')
    const ofSet = this.#generations.filter((one) => one.set === set)
    if (ofSet.length === 0 || further.length > 0) return undefined
    if (name === undefined) return impliedDirectory({ path, mtimeNs: newestTime(ofSet) })
    const stamp = this.latest(set)
    if (name !== LATEST || stamp === undefined) return undefined
    const metadata: EntryMetadata = {
      ...{ path, type: 'symlink', mode: 0o777, ...owner() },
      ...{ mtimeNs: timeOf(stamp), target: stamp },
    }
    return { path, file: path, metadata, xattrs: () => new Map() }
  }

  #root(generation: ViewGeneration): ViewNode {
    const { machine, set, stamp } = generation
    const xattrs = new Map([
      ['user.backup.machine', Buffer.from(machine)],
      ['user.backup.set', Buffer.from(set)],
      ['user.backup.stamp', Buffer.from(stamp)],
    ])
    return impliedDirectory({ path: `${set}/${stamp}`, mtimeNs: timeOf(stamp), xattrs })
  }

  #listTop(directory: RawPath, { after, limit }: ListPart): readonly ViewNode[] {
    const ofSet = this.#generations.filter(({ set }) => set === directory)
    const paths =
      directory === ''
        ? [...new Set(this.#generations.map(({ set }) => set))]
        : ofSet.length === 0
          ? []
          : [...ofSet.map(({ set, stamp }) => `${set}/${stamp}`), `${directory}/${LATEST}`]
    const from = directory === '' ? 0 : directory.length + 1
    const rest = paths.filter((path) => after === undefined || path.slice(from) > after).sort()
    return rest.slice(0, limit).map((path) => {
      const { generation } = this.#place(path)
      return generation === undefined ? this.#top(path)! : this.#root(generation)
    })
  }
}

function placed(node: ViewNode, { set, stamp }: ViewGeneration): ViewNode {
  const root = `${set}/${stamp}`
  return { ...node, path: `${root}/${node.path}`, file: `${root}/${node.file}` }
}

function closeWhenOpen(tree: Promise<ViewTree>): void {
  tree.then(
    (open) => open.close(),
    () => undefined,
  )
}

/** When it was begun. */
function timeOf(stamp: string): TimeNs {
  return BigInt(parseStamp(stamp) ?? 0) * 1_000_000n
}

function newestTime(generations: readonly ViewGeneration[]): TimeNs {
  const stamps = generations.map(({ stamp }) => stamp).sort()
  return timeOf(stamps.at(-1) ?? '')
}
