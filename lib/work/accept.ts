// `backup accept`: somebody looks at what a suspect or incomplete collection lacks, and takes it as
// it is.
//
// inspectDoubtful says what is gone since the last good collection; acceptDoubtful writes down that
// it was accepted, after which exports and retention of the set go on (design invariant 5). Neither
// deletes anything. Throws NOTHING_FOUND where there is nothing to accept, CATALOG_DAMAGED, LOCKED
// and STAGING_….

import { BackupError } from '../errors.ts'
import { type CollectionHeader, isGood } from '../model/collection.ts'
import type { RawPath } from '../model/raw-path.ts'
import type { Stamp } from '../model/stamp.ts'
import { acceptCollection, acquireSetLock, readCollection, surveyCollections } from './staging.ts'

export interface Doubtful {
  readonly header: CollectionHeader
  /** The last good collection before it, which it is compared with. */
  readonly reference: Stamp | undefined
  /** Files of the reference that are not there any more. */
  readonly gone: {
    readonly files: number
    readonly bytes: number
    readonly paths: readonly RawPath[]
  }
}

interface SetPlace {
  readonly staging: string
  readonly set: string
}

/** What a collection is doubted for: the newest of the set, unless `stamp` names another. */
export function inspectDoubtful({
  staging,
  set,
  stamp,
}: SetPlace & { stamp: Stamp | undefined }): Doubtful {
  const { collections } = surveyCollections({ staging, set })
  const header =
    stamp === undefined ? collections.at(-1) : collections.find((item) => item.stamp === stamp)
  if (header === undefined) {
    const what = stamp === undefined ? 'no collection' : `no collection ${stamp}`
    throw new BackupError('NOTHING_FOUND', `there is ${what} of ${set}`, {
      hint: 'backup-restore --list --source local shows what there is',
    })
  }
  if (isGood(header)) {
    throw new BackupError('NOTHING_FOUND', `${set} ${header.stamp} is good: nothing to accept`)
  }
  const reference = collections
    .filter((item) => item.stamp < header.stamp && isGood(item))
    .at(-1)?.stamp
  return { header, reference, gone: goneSince({ staging, set, header, reference }) }
}

function goneSince({
  staging,
  set,
  header,
  reference,
}: SetPlace & Pick<Doubtful, 'header' | 'reference'>): Doubtful['gone'] {
  if (reference === undefined) return { files: 0, bytes: 0, paths: [] }
  const now = new Set(
    readCollection({ staging, set, stamp: header.stamp }).entries.map(({ path }) => path),
  )
  const gone = readCollection({ staging, set, stamp: reference }).entries.filter(
    ({ path, type }) => type !== 'directory' && !now.has(path),
  )
  const bytes = gone.reduce((sum, { size = 0 }) => sum + size, 0)
  return { files: gone.length, bytes, paths: gone.map(({ path }) => path) }
}

/** Takes a collection as it is. `accepted` is the moment, as a stamp. */
export function acceptDoubtful({
  staging,
  set,
  stamp,
  accepted,
}: SetPlace & { stamp: Stamp; accepted: Stamp }): void {
  const lock = acquireSetLock({ staging, set, description: `accepting ${set}`, waitMs: 0 })
  try {
    const newest = surveyCollections({ staging, set }).collections.at(-1)?.stamp
    acceptCollection({ staging, set, stamp }, { accepted, isNewest: newest === stamp })
  } finally {
    lock.release()
  }
}
