// From a plan to entries that know where everything is: the piece index before packing, its answers
// after it.
//
// Neighbours: export-plan.ts before, pack-pool.ts between the two functions, export-catalog.ts
// after. A file that could not be read is missing, never an entry without content (invariant 10).

import { Buffer } from 'node:buffer'
import assert from 'node:assert/strict'
import type { MissingPath } from '../model/collection.ts'
import { type Entry, dataBytes } from '../model/entry.ts'
import type { BundleTable } from './bundle-table.ts'
import type { PlannedEntry } from './export-plan.ts'
import type { Packed } from './pack-pool.ts'
import { NOT_HERE, type PackItem } from './pack-worker.ts'
import { PieceIndex } from './piece-index.ts'
import { PIECE_RECORD_BYTES, type State, loadPieces } from './state.ts'

/** An index of all usable pieces, with room for what the plan may add. */
export function pieceIndexFor(
  plan: readonly PlannedEntry[],
  { state, bundles }: { state: State; bundles: BundleTable },
): PieceIndex {
  const added = plan.reduce(
    (sum, { item }) => sum + (item?.kind === 'file' ? expectedPieces(item) : 0),
    0,
  )
  const index = PieceIndex.forPieces(state.pieces.length / PIECE_RECORD_BYTES + added)
  loadPieces(index, { pieces: state.pieces, isUsable: (bundle) => bundles.isUsable(bundle) })
  return index
}

/** Twice the average, for cuts that fall early; more is harmless (PieceIndex tells 'untracked'). */
function expectedPieces({ metadata, chunk }: PackItem & { kind: 'file' }): number {
  return chunk === undefined ? 1 : Math.ceil(dataBytes(metadata) / 2 ** (chunk - 1)) + 1
}

/**
 * Every entry with its header and pieces; what could not be read, and links to it, are missing
 * instead.
 */
export function finishEntries(
  plan: readonly PlannedEntry[],
  { packed, index }: { packed: Packed; index: PieceIndex },
): { readonly finished: readonly Entry[]; readonly missing: readonly MissingPath[] } {
  const results = new Map(packed.entries.map((entry) => [entry.index, entry]))
  const failures = new Map(packed.failures.map(({ index: i, why }) => [i, why]))
  const missing: MissingPath[] = []
  const lost = new Set<string>()
  const finished = plan.flatMap((planned, i): Entry[] => {
    const { entry, chunk, item, kept } = planned
    const why =
      failures.get(i)
      ?? (entry.type === 'link' && lost.has(entry.target!)
        ? 'the file that it is a link to is missing'
        : undefined)
    if (why !== undefined) {
      missing.push({ path: entry.path, why })
      lost.add(entry.path)
      return []
    }
    const result = results.get(i)
    assert(item === undefined || result !== undefined, 'an item was not packed')
    const header = result?.header ?? kept?.header
    const pieces =
      item?.kind === 'file'
        ? result!.pieces.map((piece) => resolvePiece(piece, index))
        : (kept?.pieces ?? [])
    return [
      {
        ...entry,
        ...(chunk === undefined ? {} : { chunk }),
        ...(header === undefined ? {} : { header }),
        ...(pieces.length === 0 ? {} : { pieces }),
      },
    ]
  })
  return { finished, missing }
}

function resolvePiece(
  [id, bundle, offset, length]: readonly [string, number, number, number],
  index: PieceIndex,
): readonly [string, number, number, number] {
  if (bundle !== NOT_HERE) return [id, bundle, offset, length]
  const location = index.lookup(Buffer.from(id, 'hex'))
  assert(location !== undefined && location.length === length, 'a piece that is known has no place')
  return [id, location.bundle, location.offset, length]
}
