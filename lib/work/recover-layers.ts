// Many versions of many paths as one tree, and trees beside it for what does not fit in it.
//
// Recovered entries may come from several exports, or from none: the first of each path gets the
// name, the others go below `.versions/1`, `.versions/2` and so on. No tree has a path twice, or
// anything below what is no directory; links lead to files of their own tree. Pure. Called by
// recover.ts; throws nothing.

import { type Entry, asFile } from '../model/entry.ts'
import { type RawPath, comparePaths, isWithin, parentOf } from '../model/raw-path.ts'

/** Where older versions go, below the directory that is restored into. */
export const VERSIONS = '.versions'

/** What is laid out, and how new it is. */
export interface Layable {
  readonly entry: Entry
  readonly stamp: string | undefined
}

/** An entry at its place: its path begins with VERSIONS where it is not the first of its path. */
export interface Laid {
  readonly entry: Entry
  /** Its own path. */
  readonly from: RawPath
  /** 0 for what gets its own name. */
  readonly version: number
}

/**
 * Newest first: by stamp where all have one, else by the files' own times.
 */
export function newestFirst<One extends Layable>(found: readonly One[]): readonly One[] {
  const areStamped = found.every(({ stamp }) => stamp !== undefined)
  return found.toSorted((a, b) => {
    if (areStamped && a.stamp !== b.stamp) return a.stamp! < b.stamp! ? 1 : -1
    const [one, other] = [a.entry.mtimeNs, b.entry.mtimeNs]
    return one === other ? comparePaths(a.entry.path, b.entry.path) : one < other ? 1 : -1
  })
}

/** One tree: what is at a path; `above` for directories that only lie above others. */
type Tree = Map<RawPath, Entry | 'above'>

/**
 * Lays entries out, the first of each path in its own place. One that has the content of another of
 * its path is left out, and so are older directories and further links.
 * @returns in catalog order of the places
 */
export function layOut(found: readonly Layable[]): readonly Laid[] {
  const trees: Tree[] = []
  const laid: Laid[] = []
  for (const { entry } of found) {
    const { path, type } = entry
    if (trees.some((tree) => isSame(tree.get(path), entry))) continue
    // A path of that name would meet the versions of others.
    const first = isWithin({ path, directory: VERSIONS }) ? 1 : 0
    let version = trees.findIndex((tree, number) => number >= first && fits(tree, entry))
    // A further link has the content of its first path, which has versions of its own.
    if (version > 0 && type === 'link') continue
    if (version === -1) {
      if (trees.length > 0 && type === 'link') continue
      version = Math.max(first, trees.length)
      while (trees.length <= version) trees.push(new Map())
    }
    put(trees[version]!, entry)
    laid.push({ entry: placed(entry, version), from: path, version })
  }
  return laid.sort((a, b) => comparePaths(a.entry.path, b.entry.path))
}

function isSame(there: Entry | 'above' | undefined, entry: Entry): boolean {
  if (there === undefined || there === 'above' || there.type !== entry.type) return false
  if (entry.type === 'symlink' || entry.type === 'link') return there.target === entry.target
  if (entry.type === 'char' || entry.type === 'block') {
    return String(there.device) === String(entry.device)
  }
  if (entry.type !== 'file') return true
  const ids = ({ pieces = [] }: Entry): string => pieces.map(([id]) => id).join()
  const holes = ({ sparse }: Entry): string => String(sparse)
  return there.size === entry.size && holes(there) === holes(entry) && ids(there) === ids(entry)
}

function fits(tree: Tree, { path, type }: Entry): boolean {
  const there = tree.get(path)
  if (there !== undefined && !(there === 'above' && type === 'directory')) return false
  for (let above = parentOf(path); above !== ''; above = parentOf(above)) {
    const parent = tree.get(above)
    if (parent === undefined) continue
    // What lies above a directory was looked at when that one came.
    return parent === 'above' || parent.type === 'directory'
  }
  return true
}

function put(tree: Tree, entry: Entry): void {
  tree.set(entry.path, entry)
  for (let above = parentOf(entry.path); above !== ''; above = parentOf(above)) {
    if (tree.has(above)) return
    tree.set(above, 'above')
  }
}

function placed(entry: Entry, version: number): Entry {
  return version === 0 ? entry : { ...entry, path: `${VERSIONS}/${version}/${entry.path}` }
}

/**
 * Of what is laid out, what is taken: links whose first path is not become files themselves.
 * @returns also the links that lead to no file at all
 */
export function takeLaid(
  laid: readonly Laid[],
  isTaken: (one: Laid) => boolean,
): { readonly taken: readonly Laid[]; readonly astray: readonly RawPath[] } {
  const files = new Map(
    laid.flatMap(({ entry }) => (entry.type === 'file' ? [[entry.path, entry] as const] : [])),
  )
  const chosen = laid.filter(isTaken)
  const paths = new Set(chosen.map(({ entry }) => entry.path))
  const standIns = new Map<RawPath, RawPath>()
  const astray: RawPath[] = []
  const taken = chosen.flatMap((one): readonly Laid[] => {
    const { entry } = one
    if (entry.type !== 'link') return [one]
    const target = entry.target ?? ''
    const file = files.get(target)
    if (file === undefined) {
      astray.push(entry.path)
      return []
    }
    if (paths.has(target)) return [one]
    const standIn = standIns.get(target)
    if (standIn !== undefined) return [{ ...one, entry: { ...entry, target: standIn } }]
    standIns.set(target, entry.path)
    return [{ ...one, entry: asFile(entry, file) }]
  })
  return { taken, astray }
}
