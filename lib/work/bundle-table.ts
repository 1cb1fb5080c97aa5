// The bundles that the entries of an export can name, by number: those of the state, then those it
// makes itself.
//
// Knows which are on the target with the right size (only those are referred to), and which are so
// little needed that their content is better written anew (design §3, space). Used by export.ts.

import assert from 'node:assert/strict'
import type { State, StateBundle } from './state.ts'

/**
 * Less than this is not worth a new bundle: what a small bundle spends on headers of its own would
 * count as waste.
 */
const MIN_WASTE_BYTES = 64 * 1024

/** The bundles that entries can name, by number: those of the state, then those of this export. */
export class BundleTable {
  /** The number of this export's data-0001. */
  readonly first: number
  readonly #bundles: (StateBundle | undefined)[]
  readonly #present: boolean[]
  readonly #usable: boolean[]

  constructor(state: State | undefined, sizes: ReadonlyMap<string, number>) {
    this.#bundles = [...(state?.bundles ?? [])]
    // Only what was just listed with the right size is referred to.
    this.#present = this.#bundles.map(
      (bundle) => bundle !== undefined && sizes.get(bundle.name) === bundle.sizeBytes,
    )
    this.#usable = [...this.#present]
    this.first = this.#bundles.length
  }

  /** The number of the next bundle. */
  get next(): number {
    return this.#bundles.length
  }

  /** For the state: what is no longer on the target leaves a gap, so that numbers stay. */
  get present(): readonly (StateBundle | undefined)[] {
    return this.#bundles.map((bundle, number) =>
      this.#present[number] === true ? bundle : undefined,
    )
  }

  isUsable(bundle: number): boolean {
    return this.#usable[bundle] === true
  }

  get(bundle: number): StateBundle {
    const found = this.#bundles[bundle]
    assert(found !== undefined, 'an entry names a bundle that is not there')
    return found
  }

  byName(name: string): StateBundle {
    const found = this.#bundles.findLast((bundle) => bundle?.name === name)
    assert(found !== undefined, 'a catalog names a bundle that is not there')
    return found
  }

  add(number: number, bundle: StateBundle): void {
    this.#bundles[number] = bundle
    this.#present[number] = true
    this.#usable[number] = true
  }

  usableTarBytes(name: string): number | undefined {
    const number = this.#bundles.findLastIndex((bundle) => bundle?.name === name)
    return this.#usable[number] === true ? this.#bundles[number]?.tarBytes : undefined
  }

  /**
   * Takes data bundles out of use of which the last exports of all sets (`usages`, bytes of tar by
   * bundle name) together need less than half: so that they can go with the exports that need them
   * (design §3). Where space costs money, `compaction` has a say.
   * @param of.fresh of an export that was not finished: no export can need them yet
   */
  retireLittleNeeded(
    usages: readonly Readonly<Record<string, number>>[],
    of: { readonly fresh?: ReadonlySet<string>; readonly compaction?: Compaction | undefined } = {},
  ): void {
    const { fresh = new Set(), compaction } = of
    const uses: (BundleUse & { readonly number: number })[] = []
    for (const [number, bundle] of this.#bundles.entries()) {
      if (bundle === undefined || !bundle.name.includes('/data-')) continue
      if (fresh.has(bundle.name) || !this.isUsable(number)) continue
      const { name, sizeBytes, tarBytes } = bundle
      const needed = usages.reduce((sum, usage) => sum + (usage[name] ?? 0), 0)
      const neededBytes = tarBytes === 0 ? 0 : Math.ceil((sizeBytes * needed) / tarBytes)
      const isWaste = tarBytes - needed > MIN_WASTE_BYTES
      const use = { name, sizeBytes, neededBytes }
      const isLittle = isWaste && needed * 2 < tarBytes
      if (isLittle && compaction?.pays(use) !== false) this.#usable[number] = false
      else uses.push({ ...use, number })
    }
    const joined = new Set(compaction?.join(uses))
    for (const { name, number } of uses) if (joined.has(name)) this.#usable[number] = false
  }
}

/** A data bundle that is there, in stored bytes. */
export interface BundleUse {
  /** `<set>/<stamp>/data-NNNN` */
  readonly name: string
  readonly sizeBytes: number
  /** What the last exports need of it. */
  readonly neededBytes: number
}

/** What has a say in which bundles are written anew, where that costs or saves money. */
export interface Compaction {
  /** Whether to give up a bundle that is little needed. */
  readonly pays: (use: BundleUse) => boolean
  /** The names of those that are better one bundle. */
  readonly join: (uses: readonly BundleUse[]) => readonly string[]
}
