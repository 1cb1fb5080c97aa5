// Finds out what a directory does to names, by trying: whether `A` is `a` there, whether both
// spellings of `é` are one, whether dots at the end stay, and which characters it refuses.
//
// It works in a directory of its own inside, which has what the directory passes on (ext4's
// casefold) and is removed again; nothing else is touched. lib/model/moving.ts uses the answer
// before anything is restored there. Throws the system's error where nothing can be made.

import { lstatSync, mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { systemCode } from '../errors.ts'
import { OFTEN_REFUSED, type PlaceNames, probeName, probeOwner } from '../model/place-names.ts'
import { type RawPath, rawPathFromText, rawPathToBytes } from '../model/raw-path.ts'

const COMPOSED = rawPathFromText('\u00e9')
const DECOMPOSED = rawPathFromText('e\u0301')

/** What an existing directory, without a trailing slash, does to names. */
export function probePlaceNames(directory: RawPath): PlaceNames {
  const place = `${directory}/${probeName(process.pid)}`
  // A killed run may have left one: of this number, or of one that nobody has now.
  for (const name of namesIn(directory)) {
    const owner = probeOwner(name)
    if (owner !== undefined && !isOthers(owner)) remove(`${directory}/${name}`)
  }
  mkdirSync(rawPathToBytes(place), { mode: 0o700 })
  try {
    return {
      foldsCase: isMade(`${place}/a`) && isThere(`${place}/A`),
      normalizes: isMade(`${place}/${COMPOSED}`) && isThere(`${place}/${DECOMPOSED}`),
      dropsDots: isMade(`${place}/dot.`) && !namesIn(place).includes('dot.'),
      refused: [...OFTEN_REFUSED].filter((one) => !isMade(`${place}/x${one}x`)).join(''),
    }
  } finally {
    remove(place)
  }
}

/** Whether another process that lives has this number. */
function isOthers(pid: number): boolean {
  if (pid === process.pid) return false
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return systemCode(error) !== 'ESRCH'
  }
}

function isMade(path: RawPath): boolean {
  try {
    writeFileSync(rawPathToBytes(path), '', { flag: 'wx', mode: 0o600 })
    return true
  } catch (error) {
    if (!REFUSALS.includes(systemCode(error) ?? '')) throw error
    return false
  }
}

/** What filesystems say of a name that they do not take. */
const REFUSALS: readonly string[] = ['EINVAL', 'EILSEQ', 'ENOENT', 'EPERM', 'EACCES', 'EIO']

function isThere(path: RawPath): boolean {
  return lstatSync(rawPathToBytes(path), { throwIfNoEntry: false }) !== undefined
}

function namesIn(directory: RawPath): readonly string[] {
  return readdirSync(rawPathToBytes(directory), { encoding: 'latin1' })
}

function remove(path: RawPath): void {
  rmSync(rawPathToBytes(path), { recursive: true, force: true })
}
