// One view of everything a set reads, composed of snapshots of all the filesystems it lies on.
//
// The table of mounts says which provider (btrfs.ts, …) takes which part: a source, or a mount
// below one. What they took is mounted at the sources' own paths, outermost first (view.ts); mounts
// that nobody takes are shown as they are. Given back in reverse, and swept by the next run where
// one was killed (design invariants 4 and 7). A snapshot that cannot be taken is an outcome, with
// its reason: whether it matters is collect.ts's decision. Release and sweep throw SNAPSHOT_FAILED.

import { mkdirSync } from 'node:fs'
import { BackupError } from '../../errors.ts'
import type { SnapshotKind } from '../../model/collection.ts'
import { displayText, parentOf, type RawPath, rawPathToBytes } from '../../model/raw-path.ts'
import { apfsProvider } from './apfs.ts'
import { btrfsProvider } from './btrfs.ts'
import { whyOf } from './leftovers.ts'
import { lvmProvider } from './lvm.ts'
import { isBelow, listMounts, type Mount, mountOf, mountsBelow } from './mounts.ts'
import { bindReadOnly, copyParents, exists, makePlace, removeView, sameInode } from './view.ts'
import { zfsProvider } from './zfs.ts'

import type { ChangeList } from './btrfs-changes.ts'

export type { SnapshotKind }

/** A source as it was given, and the real path behind its symbolic links; both absolute. */
export interface SnapshotSource {
  readonly given: RawPath
  readonly real: RawPath
}

export interface SnapshotRequest {
  /** Staging's `.state`, a real path: views, private mounts and records live here. */
  readonly state: RawPath
  readonly set: string
  readonly stamp: string
  readonly sources: readonly SnapshotSource[]
}

/** A source, or a mount below one, on a filesystem that the provider can take a snapshot of. */
export interface Part extends SnapshotSource {
  readonly mount: Mount
}

export interface ProviderRequest {
  readonly state: RawPath
  readonly set: string
  readonly stamp: string
  /** Outermost first. */
  readonly parts: readonly Part[]
  /** Milliseconds since 1970. */
  readonly now: () => number
  readonly since?: KeptSnapshot | undefined
}

/** The source snapshot of an earlier run that was kept, so that this one can tell what changed. */
export interface KeptSnapshot {
  readonly stamp: string
  /** What the run read and left out, as a text that is compared: only the same rules fit. */
  readonly rules: string
}

export interface ShownSnapshot {
  readonly given: RawPath
  /** A readable directory or file. */
  readonly what: RawPath
  /** Where it differs from that of all. */
  readonly timeMs?: number
}

export interface TakenSnapshots {
  /**
   * What to show in the view at which given path: each part's own content, and what is nested below
   * it without a mount of its own, as far as nothing else is mounted over that.
   */
  readonly shown: readonly ShownSnapshot[]
  /** What no snapshot could be taken of, and why. */
  readonly refused: readonly { readonly given: RawPath; readonly why: string }[]
  /** For the record: subvolume, or dataset@snapshot. */
  readonly names: readonly string[]
  readonly timeMs: number
  /** Real paths of snapshots of ours that lie in the sources themselves; they are left out. */
  readonly ownPlaces?: readonly RawPath[]
  /** Asked after reading: why what was read may not all be of the snapshots. */
  readonly check?: () => Promise<string | undefined>
  /** What changed since the kept snapshot, in given paths without their slash; see `keep`. */
  readonly changes?: ((signal?: AbortSignal) => Promise<ChangeList | undefined>) | undefined
  /** Says that release() keeps the snapshot, and lets go the one that was kept before. */
  readonly keep?: ((rules: string) => void) | undefined
  readonly release: () => Promise<void>
}

export interface SnapshotProvider {
  readonly kind: SnapshotKind
  readonly takes: (mount: Mount) => boolean
  /** @throws BackupError SNAPSHOT_FAILED, with nothing left behind */
  readonly take: (request: ProviderRequest) => Promise<TakenSnapshots>
  /** Removes what a killed run of this set left, by the names it wrote down; nobody else's. */
  readonly sweep: (of: SnapshotOwner) => Promise<void>
}

export type SnapshotOwner = Pick<SnapshotRequest, 'state' | 'set'> & {
  /** The one that stays, where a sweep finds it. */
  readonly since?: KeptSnapshot | undefined
}

export interface CoveredSource {
  readonly kind: SnapshotKind
  /** What stands before `/./`. */
  readonly root: RawPath
  readonly timeMs: number
}

export interface SourceSnapshot {
  /** By given path: the sources that are read from a snapshot. */
  readonly covered: ReadonlyMap<RawPath, CoveredSource>
  /** Other sources; and mounts and nested subvolumes below covered ones. Given paths. */
  readonly notCovered: readonly Reason[]
  /** Mounts of other filesystems below sources that could not be shown in the view. */
  readonly unseen: readonly Reason[]
  /** Real paths of snapshots that lie in the sources themselves. */
  readonly ownPlaces: readonly RawPath[]
  /**
   * What changed in the sources since the kept snapshot: paths as a collection has them. Undefined
   * where nobody can tell, or not of all sources.
   */
  readonly changes: (signal?: AbortSignal) => Promise<ChangeList | undefined>
  /** Says that release() keeps this snapshot for the next run, where that could use it. */
  readonly keep: (rules: string) => void
  /** To be called when all is read. @throws BackupError SNAPSHOT_FAILED: it is not of one moment */
  readonly check: () => Promise<void>
  /**
   * Unmounts and deletes everything. @throws BackupError SNAPSHOT_FAILED; the next run tries again
   */
  readonly release: () => Promise<void>
}

interface Reason {
  readonly path: RawPath
  readonly why: string
}

type Request = SnapshotRequest & {
  readonly now: () => number
  readonly oneFilesystem: boolean
  readonly since?: KeptSnapshot | undefined
}

/** All we have; the first that takes a mount gets it. */
const PROVIDERS: readonly SnapshotProvider[] = [
  btrfsProvider,
  zfsProvider,
  apfsProvider,
  lvmProvider,
]

/**
 * Takes snapshots of all sources that can have one. What goes wrong is an outcome, not thrown: a
 * source without a snapshot is in `notCovered`. The caller releases, whatever the outcome.
 */
export async function takeSourceSnapshots(request: Request): Promise<SourceSnapshot> {
  const composition = new Composition(request, await listMounts())
  try {
    await composition.take()
    await composition.show()
  } catch (error) {
    composition.giveUp(whyOf(error))
  }
  return composition.result()
}

/** Removes what a killed run of this set left. @throws BackupError SNAPSHOT_FAILED, at the end */
export async function sweepSourceSnapshots(of: SnapshotOwner): Promise<void> {
  await inTurn([
    () => removeView(viewPath(of)),
    ...PROVIDERS.map((provider) => () => provider.sweep(of)),
  ])
}

/** Runs all of them, and then throws what the first failed one threw. */
async function inTurn(steps: readonly (() => Promise<void>)[]): Promise<void> {
  const failures: unknown[] = []
  for (const step of steps) await step().catch((error: unknown) => failures.push(error))
  if (failures.length === 0) return
  const message = `a snapshot could not be removed: ${whyOf(failures[0])}`
  const hint = 'the next run tries again'
  throw new BackupError('SNAPSHOT_FAILED', message, { hint, cause: failures[0] })
}

/** The snapshots and the view of one run. */
class Composition {
  readonly #request: Request
  readonly #view: RawPath
  readonly #mounts: readonly Mount[]
  readonly #parts = new Map<RawPath, Part>()
  /** Mounts of other filesystems below sources, where only one filesystem is wanted. */
  readonly #leftOut = new Set<RawPath>()
  readonly #shown = new Map<RawPath, Shown>()
  readonly #covered = new Map<RawPath, CoveredSource>()
  readonly #notCovered = new Map<RawPath, string>()
  readonly #unseen = new Map<RawPath, string>()
  readonly #taken: TakenSnapshots[] = []

  constructor(request: Request, mounts: readonly Mount[]) {
    this.#request = request
    this.#view = viewPath(request)
    // What is mounted at or below staging is never collected.
    const staging = parentOf(request.state)
    this.#mounts = mounts.filter(({ point }) => !isBelow({ path: point, directory: staging }))
    for (const source of request.sources) this.#divide(source)
  }

  async take(): Promise<void> {
    const { state, set, stamp, now, since } = this.#request
    for (const provider of PROVIDERS) {
      const parts = [...this.#parts.values()].filter(({ mount }) => providerOf(mount) === provider)
      if (parts.length === 0) continue
      try {
        const request = { state, set, stamp, now, since, parts: parts.sort(outermostFirst) }
        this.#keep(provider.kind, await provider.take(request))
      } catch (error) {
        for (const { given } of parts) this.#notCovered.set(given, whyOf(error))
      }
    }
  }

  /** Mounts everything into the view. @throws where the view itself cannot be made */
  async show(): Promise<void> {
    const items = [...this.#shown.values(), ...this.#live()].filter((item) => this.#isSeen(item))
    if (items.some(needsView)) mkdirSync(rawPathToBytes(this.#view), { mode: 0o700 })
    for (const item of items.sort(outermostFirst)) {
      try {
        const root = needsView(item) ? await this.#mount(item) : rootWithoutView(item)
        const { kind, timeMs } = item
        if (kind !== undefined && this.#isSource(item.given))
          this.#covered.set(item.given, { kind, root, timeMs })
      } catch (error) {
        const why = `the filesystem there cannot be shown: ${whyOf(error)}`
        const reasons = this.#isSource(item.given) ? this.#notCovered : this.#unseen
        reasons.set(item.given, why)
      }
    }
    for (const [path, { root }] of this.#covered)
      if (root === this.#view) copyParents({ view: this.#view, path })
  }

  giveUp(why: string): void {
    this.#covered.clear()
    for (const { given } of this.#request.sources)
      if (!this.#notCovered.has(given)) this.#notCovered.set(given, why)
  }

  result(): SourceSnapshot {
    return {
      covered: this.#covered,
      notCovered: reasons(this.#notCovered),
      unseen: reasons(this.#unseen),
      ownPlaces: this.#taken.flatMap(({ ownPlaces = [] }) => ownPlaces),
      changes: async (signal) => await this.#whole()?.changes?.(signal),
      keep: (rules) => this.#whole()?.keep?.(rules),
      check: async () => {
        for (const { check } of this.#taken) {
          const why = await check?.()
          if (why !== undefined) throw new BackupError('SNAPSHOT_FAILED', why)
        }
      },
      release: () =>
        inTurn([
          () => removeView(this.#view),
          ...[...this.#taken].reverse().map((taken) => taken.release),
        ]),
    }
  }

  /** The one provider that shows all sources, and nothing else. */
  #whole(): TakenSnapshots | undefined {
    const { sources } = this.#request
    const isWhole =
      this.#taken.length === 1
      && this.#covered.size === sources.length
      && this.#shown.size === sources.length
      && this.#parts.size === sources.length
      && this.#notCovered.size + this.#unseen.size + this.#leftOut.size === 0
    return isWhole ? this.#taken[0] : undefined
  }

  #divide(source: SnapshotSource): void {
    const own = mountOf(source.real, this.#mounts)
    if (own === undefined || providerOf(own) === undefined) {
      this.#notCovered.set(source.given, withoutProvider(own))
      return
    }
    this.#parts.set(source.given, { ...source, mount: own })
    for (const mount of mountsBelow(source.real, this.#mounts)) {
      const given = givenPath({ source, real: mount.point })
      const isOther = mount.device !== own.device
      if (isOther && this.#request.oneFilesystem) this.#leftOut.add(given)
      else this.#parts.set(given, { given, real: mount.point, mount })
    }
  }

  #keep(kind: SnapshotKind, taken: TakenSnapshots): void {
    this.#taken.push(taken)
    for (const { given, why } of taken.refused) this.#notCovered.set(given, why)
    for (const item of taken.shown)
      this.#shown.set(item.given, { timeMs: taken.timeMs, ...item, kind })
  }

  /** Mounts below sources that are read as they are. */
  #live(): Shown[] {
    const parts = [...this.#parts.values()].filter(({ given }) => {
      return !this.#shown.has(given) && !this.#isSource(given)
    })
    for (const { given, mount } of parts)
      if (!this.#notCovered.has(given)) this.#notCovered.set(given, withoutProvider(mount))
    return parts.map(({ given, real }) => ({ given, what: real, kind: undefined, timeMs: 0 }))
  }

  /** Whether it is in what a source with a snapshot holds. */
  #isSeen({ given }: Shown): boolean {
    const { sources } = this.#request
    const shown = sources.filter((source) => this.#shown.has(source.given))
    const source = innermost(shown, given)
    if (source === undefined) return false
    for (const place of this.#leftOut) {
      const isInner = place.length > source.given.length
      if (isInner && isBelow({ path: given, directory: place })) return false
    }
    return true
  }

  #isSource(given: RawPath): boolean {
    return this.#request.sources.some((source) => source.given === given)
  }

  /** Returns what stands before `/./`. */
  async #mount({ given, what }: Shown): Promise<RawPath> {
    const place = `${this.#view}${given}`
    // What a source above it shows already needs no mount of its own.
    if (exists(place) && sameInode(place, what)) return this.#view
    makePlace({ view: this.#view, path: given, like: what })
    await bindReadOnly({ what, at: place })
    return this.#view
  }
}

interface Shown extends ShownSnapshot {
  /** Undefined for what is read as it is. */
  readonly kind: SnapshotKind | undefined
  readonly timeMs: number
}

/** macOS has no bind mounts: there rsync reads the mount of the snapshot itself. */
function needsView({ kind }: Shown): boolean {
  return kind !== 'apfs'
}

function rootWithoutView({ given, what }: Shown): RawPath {
  if (what.endsWith(given)) return what.slice(0, what.length - given.length)
  throw new Error('it is reached through a symbolic link: name its real path as the source')
}

function providerOf(mount: Mount): SnapshotProvider | undefined {
  return PROVIDERS.find((provider) => provider.takes(mount))
}

function withoutProvider(mount: Mount | undefined): string {
  if (mount === undefined) return 'its filesystem is not known'
  return `on ${displayText(mount.type)}, which has no snapshots`
}

/** The path of something below a source as it is given, from its real path. */
function givenPath({ source, real }: { source: SnapshotSource; real: RawPath }): RawPath {
  const below = real.slice(source.real === '/' ? 0 : source.real.length)
  return `${source.given === '/' ? '' : source.given}${below}`
}

function innermost<T extends SnapshotSource>(items: readonly T[], path: RawPath): T | undefined {
  return items
    .filter(({ given }) => isBelow({ path, directory: given }))
    .sort(outermostFirst)
    .at(-1)
}

function outermostFirst(a: { given: RawPath }, b: { given: RawPath }): number {
  return a.given.length - b.given.length
}

function reasons(map: ReadonlyMap<RawPath, string>): Reason[] {
  return [...map].map(([path, why]) => ({ path, why }))
}

function viewPath({ state, set }: SnapshotOwner): RawPath {
  return `${state}/view-${set}`
}
