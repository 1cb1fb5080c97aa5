// What there is to restore: the collections in staging, the exports on a target, with what is known
// of each.
//
// Without an identity manifests cannot be read: then the state tells, where this machine made the
// export, or nobody.

import type { Configuration } from '../machine/config.ts'
import { BackupError } from '../errors.ts'
import { isFrozen } from '../model/collection.ts'
import {
  type ExportPlace,
  type Repository,
  exportsOf,
  listStamps,
  readManifest,
} from './repository.ts'
import { listStagedSets, surveyCollections } from './staging.ts'
import { loadState, stateDirectory } from './state.ts'

export interface ListedExport {
  readonly set: string
  readonly stamp: string
  readonly files: number | undefined
  readonly bytes: number | undefined
  /** What its own bundles take in the repository; undefined for staging. */
  readonly costBytes: number | undefined
  /** Undefined where nobody knows. */
  readonly complete: boolean | undefined
  readonly isSuspect: boolean
}

export function listLocal(
  { staging }: Configuration,
  set: string | undefined,
): {
  readonly listed: readonly ListedExport[]
  /** `<set> <stamp>` of collections whose catalog cannot be read. */
  readonly damaged: readonly string[]
} {
  const sets = set === undefined ? listStagedSets(staging) : [set]
  const surveys = sets.map((name) => ({ name, ...surveyCollections({ staging, set: name }) }))
  return {
    listed: surveys.flatMap(({ name, collections }) =>
      collections.map((header) => ({
        set: name,
        stamp: header.stamp,
        files: header.files,
        bytes: header.bytes,
        costBytes: undefined,
        complete: header.complete,
        isSuspect: isFrozen(header),
      })),
    ),
    damaged: surveys.flatMap(({ name, damaged }) => damaged.map((stamp) => `${name} ${stamp}`)),
  }
}

/** @throws BackupError TARGET_* */
export async function listExternal({
  configuration,
  repository,
  machine,
  set,
  identities,
  publicKeys,
}: {
  readonly configuration: Configuration
  readonly repository: Repository
  readonly machine: string
  readonly set: string | undefined
  readonly identities: readonly string[]
  readonly publicKeys: readonly string[]
}): Promise<ListedExport[]> {
  const directory = stateDirectory({ staging: configuration.staging, id: repository.id })
  const state =
    machine === configuration.machine ? await loadState(directory, 'unasked') : undefined
  const listed: ListedExport[] = []
  for (const place of exportsOf(await listStamps(repository, machine))) {
    if (set !== undefined && place.set !== set) continue
    const known =
      state?.exports.get(`${place.set}/${place.stamp}`)
      ?? (await fromManifest(repository, place, { identities, publicKeys }))
    listed.push({
      set: place.set,
      stamp: place.stamp,
      files: known?.statistics.files,
      bytes: known?.statistics.bytes,
      costBytes: [...place.files.values()].reduce((sum, size) => sum + size, 0),
      complete: known?.complete,
      isSuspect: false,
    })
  }
  return listed
}

async function fromManifest(
  repository: Repository,
  place: ExportPlace,
  keys: { readonly identities: readonly string[]; readonly publicKeys: readonly string[] },
) {
  if (keys.identities.length === 0) return undefined
  try {
    return await readManifest(repository, place, keys)
  } catch (error) {
    // A list is no verification: what cannot be read is shown as not known.
    if (error instanceof BackupError) return undefined
    throw error
  }
}
