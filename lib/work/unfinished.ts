// The bundles of exports that did not come to their manifests: what a remote target has, or is
// about to have, of them.
//
// Under `.state/unfinished/<repository>/<set>/`, two files a bundle: its pieces and its facts. They
// are written before the bundle is sent, so that an export that was killed is not sent again from
// its beginning: the next one finishes sending what waits in the spool, and refers to what is there
// (export.ts). A cache: what is missing or damaged is packed again. Throws STAGING_FULL,
// STAGING_FAILED.

import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { DIGEST_BYTES } from '../format/chunker.ts'
import { writeDurably } from '../machine/durable-file.ts'
import { rawPathFromText } from '../model/raw-path.ts'
import { stagingError } from './staging.ts'
import { EMPTY_STATE, PIECE_RECORD_BYTES, type State, type StateBundle } from './state.ts'

export interface UnfinishedPlace {
  readonly staging: string
  /** The repository's. */
  readonly id: string
  readonly set: string
}

/** A bundle that no manifest names yet. */
export interface UnfinishedBundle extends StateBundle {
  /** As State.pieces, whatever bundle number they carry. */
  readonly pieces: Buffer
}

interface Facts extends StateBundle {
  readonly piecesSha256: string
}

/** Remembers a bundle that is about to be sent. @throws BackupError STAGING_FAILED, STAGING_FULL */
export function noteUnfinished(
  place: UnfinishedPlace,
  { pieces, ...bundle }: UnfinishedBundle,
): void {
  const directory = directoryOf(place)
  const base = join(directory, bundle.name.replaceAll('/', '~'))
  const facts: Facts = { ...bundle, piecesSha256: sha256(pieces) }
  try {
    mkdirSync(directory, { recursive: true, mode: 0o700 })
    const write = (path: string, bytes: Buffer): void => {
      writeDurably({ path: rawPathFromText(path), bytes, mode: 0o600, replace: true })
    }
    write(`${base}.pieces`, pieces)
    write(`${base}.json`, Buffer.from(JSON.stringify(facts)))
  } catch (error) {
    throw stagingError({ error, staging: place.staging, doing: 'written' })
  }
}

/** What was remembered, in order of names; damaged records are passed over. */
export function readUnfinished(place: UnfinishedPlace): readonly UnfinishedBundle[] {
  const directory = directoryOf(place)
  let names: readonly string[]
  try {
    names = readdirSync(directory)
  } catch {
    return []
  }
  return names
    .filter((name) => name.endsWith('.json'))
    .sort()
    .flatMap((name) => {
      try {
        const facts = JSON.parse(readFileSync(join(directory, name), 'utf8')) as Facts
        const { piecesSha256, ...bundle } = facts
        const pieces = readFileSync(join(directory, name.replace(/json$/, 'pieces')))
        const isWhole = sha256(pieces) === piecesSha256 && pieces.length % PIECE_RECORD_BYTES === 0
        return isWhole && bundle.name.startsWith(`${place.set}/`) ? [{ ...bundle, pieces }] : []
      } catch {
        return []
      }
    })
}

/** An export of the set exists: whatever of these it needs, the state knows now. */
export function forgetUnfinished(place: UnfinishedPlace): void {
  rmSync(directoryOf(place), { recursive: true, force: true })
}

/** One that cannot be gone on with. */
export function forgetBundle(place: UnfinishedPlace, name: string): void {
  const base = join(directoryOf(place), name.replaceAll('/', '~'))
  for (const file of [`${base}.json`, `${base}.pieces`]) rmSync(file, { force: true })
}

/** A state that knows these bundles besides. */
export function withUnfinished(
  state: State | undefined,
  unfinished: readonly UnfinishedBundle[],
): State | undefined {
  if (unfinished.length === 0) return state
  const { bundles, pieces, ...rest } = state ?? EMPTY_STATE
  const renumbered = unfinished.map((bundle, i) => numbered(bundle.pieces, bundles.length + i))
  return {
    ...rest,
    bundles: [...bundles, ...unfinished.map(({ pieces: _pieces, ...bundle }) => bundle)],
    pieces: Buffer.concat([pieces, ...renumbered]),
  }
}

function numbered(pieces: Buffer, bundle: number): Buffer {
  const out = Buffer.from(pieces)
  for (let at = 0; at < out.length; at += PIECE_RECORD_BYTES) {
    out.writeUInt32LE(bundle, at + DIGEST_BYTES)
  }
  return out
}

function directoryOf({ staging, id, set }: UnfinishedPlace): string {
  return join(staging, '.state', 'unfinished', id, set)
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}
