// What a place does to names: which it takes for the same, and which it refuses. exFAT, FAT and
// macOS take `A` for `a`; macOS takes both spellings of `é` for one; FAT drops dots at the end.
//
// Pure. lib/machine/place-names.ts finds it out by trying; moving.ts keeps a restore from writing
// one file over another there. Throws nothing.

import { type RawPath, baseOf, displayText, rawPathFromText, rawPathToText } from './raw-path.ts'

export interface PlaceNames {
  /** `A` and `a` are one file. */
  readonly foldsCase: boolean
  /** `é` in one character and in two are one file. */
  readonly normalizes: boolean
  /** `a.` is kept as `a`. */
  readonly dropsDots: boolean
  /** Characters that no name may have. */
  readonly refused: string
}

/** Every name is what its bytes are, as on Linux's own filesystems. */
export const PLAIN_NAMES: PlaceNames = {
  foldsCase: false,
  normalizes: false,
  dropsDots: false,
  refused: '',
}

/** What Windows and its filesystems refuse; the control characters stand for all others. */
export const OFTEN_REFUSED = '"*:<>?\\|\u0001\u001f'

/** What a place is tried by: a directory in it, of one process. */
export function probeName(pid: number): string {
  return `.backup-names-${pid}`
}

/** Whose such a directory is; undefined for any other name. */
export function probeOwner(name: RawPath): number | undefined {
  const [, pid] = /^\.backup-names-(\d{1,10})$/.exec(name) ?? []
  return pid === undefined ? undefined : Number(pid)
}

/** Linux's NAME_MAX, and everybody else's. */
const MAX_NAME_BYTES = 255

/**
 * Equal for two names that are one file in this place. It may be equal for a few that are not
 * (`ß` and `ss`): one of these is then named instead of written, and nothing is lost unnoticed.
 */
export function sameName(name: RawPath, place: PlaceNames): string {
  const { foldsCase, normalizes, dropsDots } = place
  if (!foldsCase && !normalizes && !dropsDots) return name
  const text = rawPathToText(name)
  const kept = dropsDots ? (text ?? name).replace(/(?<=[^.])\.+$/, '') : (text ?? name)
  // Bytes that are no text have no other spelling, and case in ASCII only.
  if (text === undefined) {
    return foldsCase ? kept.replace(/[A-Z]/g, (letter) => letter.toLowerCase()) : kept
  }
  const folded = foldsCase ? kept.toUpperCase().toLowerCase() : kept
  // rawPathFromText keeps it apart from names that are no text.
  return rawPathFromText(normalizes ? folded.normalize('NFC') : folded)
}

/** Why a path's last name cannot be had here, as a clause; undefined where it can. */
export function refusalOf(path: RawPath, { refused }: PlaceNames): string | undefined {
  const name = baseOf(path)
  if (name.length > MAX_NAME_BYTES) return `its name would be longer than ${MAX_NAME_BYTES} bytes`
  const isControl = (character: string): boolean => character < ' '
  const hasControls = [...refused].some(isControl)
  const found = [...name].find((one) => refused.includes(one) || (hasControls && isControl(one)))
  return found === undefined
    ? undefined
    : `the filesystem here takes no "${displayText(found)}" in names`
}
