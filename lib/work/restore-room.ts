// Whether there is room for what a plan would write.
//
// Asked once before a restore, of each filesystem concerned. recover.ts asks as well. Throws
// RESTORE_FULL.

import { existsSync, statfsSync, statSync } from 'node:fs'
import { BackupError } from '../errors.ts'
import { formatSize } from '../model/amount.ts'
import { dataBytes } from '../model/entry.ts'
import {
  displayPath,
  parentOf,
  type RawPath,
  rawPathToBytes,
  pathFacts,
} from '../model/raw-path.ts'
import type { RestorePlan } from './restore-plan.ts'

/**
 * Whether there is room for all of it, by what the filesystems say now.
 * @throws BackupError RESTORE_FULL
 */
export function checkRoom(plan: RestorePlan): void {
  const needed = new Map<number, { readonly place: RawPath; bytes: number }>()
  const tops = new Map<RawPath, { readonly place: RawPath; readonly device: number }>()
  const topOf = (path: RawPath): { readonly place: RawPath; readonly device: number } => {
    const known = tops.get(path)
    if (known !== undefined) return known
    const place = path === '' ? plan.into || '/' : `${plan.into}/${path}`
    const there = statSync(rawPathToBytes(place), { throwIfNoEntry: false })
    const top =
      there?.isDirectory() === true
        ? { place, device: there.dev }
        : path === ''
          ? nearestPlace(place)
          : topOf(parentOf(path))
    tops.set(path, top)
    return top
  }
  for (const { entry, verdict } of plan.items) {
    if (verdict !== 'make' && verdict !== 'replace') continue
    const { place, device } = topOf(parentOf(entry.path))
    const bytes = Math.ceil(dataBytes(entry) / BLOCK_BYTES) * BLOCK_BYTES
    const sum = needed.get(device) ?? { place, bytes: 0 }
    needed.set(device, { ...sum, bytes: sum.bytes + bytes })
  }
  for (const { place, bytes } of needed.values()) {
    const { bavail, bsize } = statfsSync(rawPathToBytes(place))
    if (bytes <= bavail * bsize) continue
    const message =
      `${displayPath(place)} has room for ${formatSize(bavail * bsize)}, and `
      + `${formatSize(bytes)} would be written`
    throw new BackupError('RESTORE_FULL', message, {
      hint:
        'choose another place with --into, restore less, or say --ignore-space where the '
        + 'filesystem compresses; nothing was restored',
      facts: { ...pathFacts(place, 'place'), freeBytes: bavail * bsize, neededBytes: bytes },
    })
  }
}

/** What most filesystems allocate in. */
const BLOCK_BYTES = 4096

function nearestPlace(place: RawPath): { readonly place: RawPath; readonly device: number } {
  let at = place
  while (at !== '' && !existsSync(rawPathToBytes(at))) at = parentOf(at)
  return { place: at || '/', device: statSync(rawPathToBytes(at || '/')).dev }
}
