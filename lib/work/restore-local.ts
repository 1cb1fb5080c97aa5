// What is to be restored of a collection in staging: verified first, what is damaged named and left
// out.
//
// restore-plan.ts and restore.ts do the rest, as for an export. Copies, never links, and never in
// place (invariant 6). Throws NOTHING_FOUND, CATALOG_DAMAGED, STAGING_FAILED, USAGE, INTERRUPTED.

import { lstatSync, realpathSync } from 'node:fs'
import { BackupError } from '../errors.ts'
import {
  type RawPath,
  displayPath,
  isWithin,
  rawPathFromText,
  rawPathToBytes,
} from '../model/raw-path.ts'
import type { CollectionHeader } from '../model/collection.ts'
import type { Report } from '../model/report.ts'
import type { RestoreFailure } from './restore-plan.ts'
import { type Selection, type Wanted, selectStaged } from './selection.ts'
import {
  type Collection,
  type CollectionPlace,
  collectionDirectory,
  readCollection,
} from './staging.ts'
import { type FileDigests, checkCollection, digestsFor, lastExported } from './verify-local.ts'

export interface SelectLocalOptions extends CollectionPlace, Wanted {
  readonly report: Report
  readonly signal: AbortSignal
}

export interface LocalSelection {
  readonly selection: Selection
  /** What was damaged in staging: it is not in the selection. */
  readonly damaged: readonly RestoreFailure[]
  readonly header: CollectionHeader
  /** Whether every file's content was compared with a digest. */
  readonly contentChecked: boolean
}

/**
 * Verifies the paths and selects what is whole. Whoever restores it holds the set's lock
 * (lockIfFree).
 * @throws BackupError NOTHING_FOUND when there is no such collection or path
 */
export async function selectLocal(options: SelectLocalOptions): Promise<LocalSelection> {
  const { set, stamp, report, patterns } = options
  const collection = readCollection(options)
  const paths = options.isPartial === true ? metPaths(collection, options.paths) : options.paths
  const tree = rawPathFromText(collectionDirectory(options))
  const digests = (await digestsFor(options)) ?? (await linkedDigests(collection, options))
  const { problems, contentChecked } = await checkCollection(collection, {
    ...options,
    paths,
    digests,
  })
  if (!contentChecked) {
    const message =
      `${set} ${stamp}: of files whose digests no export tells that is known here, only size, time `
      + 'and metadata were checked (--source external compares all of them)'
    report({ kind: 'notice', level: 'warning', code: 'CONTENT_NOT_CHECKED', message })
  }
  const types = new Map(collection.entries.map(({ path, type }) => [path, type]))
  // A directory gets its metadata from the catalog, whatever was done to it in staging.
  const isCured = (path: RawPath): boolean =>
    types.get(path) === 'directory' && lstatSync(rawPathToBytes(`${tree}/${path}`)).isDirectory()
  const damaged = problems
    .filter(({ kind }) => kind !== 'extra')
    .filter(({ path, kind }) => kind !== 'changed' || !isCured(path))
    .filter(({ path }) => patterns?.takes(path, types.get(path) === 'directory') !== false)
    .map(({ path, why }): RestoreFailure => ({ path, code: 'STAGING_DAMAGED', why }))
  const without = new Set(damaged.map(({ path }) => path))
  const selection = selectStaged(collection, { paths, patterns, tree, without })
  return { selection, damaged, header: collection.header, contentChecked }
}

/**
 * The digests of files that are one with those of a later collection, which was exported: where
 * nothing changed, collections share them.
 */
async function linkedDigests(
  { entries }: Collection,
  { staging, set, stamp }: CollectionPlace,
): Promise<FileDigests | undefined> {
  const exported = await lastExported({ staging, set })
  const [newest] = exported.toSorted((a, b) => (a.stamp < b.stamp ? 1 : -1))
  if (newest === undefined) return undefined
  const [here, there] = [stamp, newest.stamp].map((one) => {
    return rawPathFromText(collectionDirectory({ staging, set, stamp: one }))
  })
  const digests = newest.digests()
  const shared = entries.flatMap(({ path, type }) => {
    const known = type === 'file' ? digests.get(path) : undefined
    return known !== undefined && isOne(`${here}/${path}`, `${there}/${path}`)
      ? [[path, known] as const]
      : []
  })
  return new Map(shared)
}

/** Whether two names are of one file. */
function isOne(...paths: readonly [RawPath, RawPath]): boolean {
  const [one, other] = paths.map((path) => {
    return lstatSync(rawPathToBytes(path), { throwIfNoEntry: false, bigint: true })
  })
  return one !== undefined && one.ino === other?.ino && one.dev === other.dev
}

/** Those that the collection has something of; where it has nothing of any, all. */
function metPaths({ entries }: Collection, paths: readonly RawPath[]): readonly RawPath[] {
  const met = paths.filter((directory) => entries.some(({ path }) => isWithin({ path, directory })))
  return met.length === 0 ? paths : met
}

/** @throws BackupError USAGE for a place in staging, where nothing may be changed */
export function refuseStaging({
  staging,
  into,
}: {
  readonly staging: string
  readonly into: RawPath
}): void {
  const directory = realPath(rawPathFromText(staging))
  if (into === '' || !isWithin({ path: realPath(into), directory })) return
  const message = `"${displayPath(into)}" is in staging, where nothing may be changed`
  throw new BackupError('USAGE', message, { hint: 'restore into another directory' })
}

/** What is not there yet is taken for what it says. */
function realPath(path: RawPath): RawPath {
  try {
    return realpathSync(rawPathToBytes(path), { encoding: 'latin1' })
  } catch {
    return path
  }
}
