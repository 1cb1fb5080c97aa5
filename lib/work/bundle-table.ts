// The bundles that the entries of an export can name, by number: those of the state, then those it makes itself.
//
// Knows which are on the target with the right size (only those are referred to), and which are so little needed that their
// content is better written anew (design §3, space). Used by export.ts.

import assert from 'node:assert/strict'
import type { State, StateBundle } from './state.ts'

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
    this.#present = this.#bundles.map((bundle) =>
      bundle !== undefined && sizes.get(bundle.name) === bundle.sizeBytes)
    this.#usable = [...this.#present]
    this.first = this.#bundles.length
  }

  /** The number of the next bundle. */
  get next(): number {
    return this.#bundles.length
  }

  /** For the state: what is no longer on the target leaves a gap, so that numbers stay. */
  get present(): readonly (StateBundle | undefined)[] {
    return this.#bundles.map((bundle, number) => this.#present[number] === true ? bundle : undefined)
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

  retire(bundle: number): void {
    this.#usable[bundle] = false
  }

  usableTarBytes(name: string): number | undefined {
    const number = this.#bundles.findLastIndex((bundle) => bundle?.name === name)
    return this.#usable[number] === true ? this.#bundles[number]?.tarBytes : undefined
  }

  /** Data bundles of which this export and the other sets' last ones need less than half. */
  lessThanHalfNeeded(usage: ReadonlyMap<number, number>, others: ReadonlyMap<string, number>): number[] {
    return this.#bundles.flatMap((bundle, number) => {
      if (bundle === undefined || !this.isUsable(number) || !bundle.name.includes('/data-')) return []
      const needed = (usage.get(number) ?? 0) + (others.get(bundle.name) ?? 0)
      return needed > 0 && needed * 2 < bundle.tarBytes ? [number] : []
    })
  }
}
