// All bundles on a medium whose filesystem is gone, or on an image of one: a scan that needs no
// directory.
//
// Beginnings are found here (raw-medium.ts), the rest of each file by worker threads
// (raw-extents.ts); each becomes an address that reads like a file (bundle-address.ts). What was
// deleted and not yet overwritten comes up as well. Throws NOTHING_FOUND, IDENTITY_WRONG,
// BUNDLE_DAMAGED, INTERRUPTED.

import { lstatSync } from 'node:fs'
import { BackupError } from '../errors.ts'
import { type RawPath, displayPath, rawPathToBytes } from '../model/raw-path.ts'
import { rawAddress, shownPath } from './bundle-address.ts'
import {
  type Scan,
  type ScanOptions,
  inOrder,
  lookAtFiles,
  nothingFound,
  runRecoverWorkers,
} from './recover-bundles.ts'
import type { UnreadFile } from './recover-scan.ts'
import { type RawFile, blockBytesOf, gapsOf } from './raw-extents.ts'
import { Medium, findBeginnings } from './raw-medium.ts'

export interface MediumOptions extends ScanOptions {
  /** How much is looked through for how a file goes on, each time it breaks off. */
  readonly searchBytes: number
}

/** Whether it is a drive, a partition or an image, and no directory. */
export function isMedium(path: RawPath): boolean {
  const stat = lstatSync(rawPathToBytes(path))
  return stat.isBlockDevice() || stat.isFile()
}

/** @throws BackupError NOTHING_FOUND, IDENTITY_WRONG where the identity opens none, INTERRUPTED */
export async function scanMedium(path: RawPath, options: MediumOptions): Promise<Scan> {
  const medium = new Medium(path)
  try {
    const beginnings = await readBeginnings(medium, options)
    const { files, unread, others } = await mapFiles(medium, { ...options, beginnings })
    await followFiles(medium, { ...options, files })
    const addresses = [...files.values()].map(({ extents }) => rawAddress(path, extents))
    const looks = await lookAtFiles(addresses, options)
    const denied = medium.unreadable.map(({ offset, length }) => {
      return { path: rawAddress(path, [{ offset, length }]), why: 'EIO' }
    })
    const shown = [...unread, ...looks.unread].map((one) => {
      return { ...one, path: shownPath(one.path) }
    })
    if (looks.found.length === 0)
      throw shown.length === 0 ? nothingOn(path) : nothingFound(path, shown)
    return {
      found: inOrder(looks.found),
      unread: inOrder(shown),
      others,
      denied: denied.map((one) => ({ ...one, path: shownPath(one.path) })),
    }
  } finally {
    medium.close()
  }
}

function nothingOn(path: RawPath): BackupError {
  return new BackupError('NOTHING_FOUND', `no bundle lies on ${displayPath(path)}`, {
    hint: 'if it was encrypted below the filesystem (LUKS), open that, and give what was opened',
  })
}

async function readBeginnings(
  medium: Medium,
  { report, signal }: MediumOptions,
): Promise<readonly number[]> {
  const phase = 'looking for bundles'
  report({ kind: 'phase', name: phase })
  const bytesTotal = medium.sizeBytes
  return await findBeginnings(medium, {
    signal,
    onWindow: (bytesDone) => {
      report({ kind: 'progress', phase, filesDone: 0, bytesDone, bytesTotal })
    },
  })
}

interface Mapped {
  /** By where they begin. */
  readonly files: Map<number, RawFile>
  /** Of another identity, as far as can be told. */
  readonly unread: UnreadFile[]
  readonly others: number
}

async function mapFiles(
  { path }: Medium,
  options: MediumOptions & { readonly beginnings: readonly number[] },
): Promise<Mapped> {
  const { beginnings, report } = options
  const phase = 'looking where bundles end'
  if (beginnings.length > 0) report({ kind: 'phase', name: phase })
  const files = new Map<number, RawFile>()
  const unread: UnreadFile[] = []
  let others = 0
  let filesDone = 0
  const filesTotal = beginnings.length
  const requests = beginnings.map((offset) => ({ kind: 'map', path, offset }) as const)
  await runRecoverWorkers(requests, { ...options, ahead: 2 }, (reply) => {
    if (reply.kind !== 'map') return
    const { offset, file, error } = reply
    if (file !== undefined) files.set(offset, file)
    else if (error?.code !== 'IDENTITY_WRONG') others += 1
    else unread.push({ path: rawAddress(path, [{ offset, length: 0 }]), sizeBytes: 0, error })
    filesDone += 1
    report({ kind: 'progress', phase, filesDone, filesTotal, bytesDone: 0 })
  })
  return { files, unread, others }
}

/** Round by round: what one file is found to have is no longer looked through for others. */
async function followFiles(
  medium: Medium,
  options: MediumOptions & { readonly files: Map<number, RawFile> },
): Promise<void> {
  const { files, searchBytes, report } = options
  const phase = 'looking for parts of bundles'
  let broken = [...files.values()].filter(({ next }) => next !== undefined)
  if (broken.length === 0 || searchBytes === 0) return
  report({ kind: 'phase', name: phase })
  let filesDone = 0
  const filesTotal = broken.length
  const blockBytes = blockBytesOf([...files.keys()])
  while (broken.length > 0) {
    const gaps = gapsOf(medium.sizeBytes, [...files.values()])
    const further: RawFile[] = []
    const requests = broken.map((file) => {
      return { kind: 'follow', path: medium.path, file, gaps, searchBytes, blockBytes } as const
    })
    await runRecoverWorkers(requests, { ...options, ahead: 1 }, (reply) => {
      if (reply.kind !== 'map') return
      const { offset, file } = reply
      if (file !== undefined) files.set(offset, file)
      if (file?.next !== undefined) further.push(file)
      else filesDone += 1
      report({ kind: 'progress', phase, filesDone, filesTotal, bytesDone: 0 })
    })
    broken = further
  }
}
