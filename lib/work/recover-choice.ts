// Which of the exports that recovery found are meant: by the words of --export, or the newest of
// each set.
//
// recover.ts finds and restores them; recover-exports.ts says what of each can come back. What is
// signed is never chosen together with what is not, nor are exports of several machines. Pure.
// Throws NOTHING_FOUND, USAGE.

import { BackupError } from '../errors.ts'
import { EVIDENCE, type SurveyedExport, entriesIn } from './recover-exports.ts'

/**
 * The exports that are meant. Without a word: the newest of each set of which anything can come
 * back, with the best evidence there is, so that what is signed stays apart.
 * @param words names, or beginnings of names up to a `/`, a `:` or a `#`
 * @throws BackupError NOTHING_FOUND, USAGE
 */
export function chooseExports(
  exports: readonly SurveyedExport[],
  words: readonly string[],
): readonly SurveyedExport[] {
  if (exports.length === 0) {
    throw new BackupError('NOTHING_FOUND', 'what is there are pieces of files, without any path', {
      hint: 'other bundles may say of which; docs/restore-without-us.md shows how to take them out',
    })
  }
  const some = exports.filter((one) => !isGone(one))
  const usable = some.length > 0 ? some : exports
  const best = EVIDENCE.find((kind) => usable.some(({ evidence }) => evidence === kind))
  const chosen =
    words.length === 0
      ? newestOfEach(usable.filter(({ evidence }) => evidence === best))
      : [...new Set(words.flatMap((word) => meantBy(word, exports)))]
  const machines = new Set(chosen.map(({ machine }) => machine))
  const isMixed = new Set(chosen.map(({ evidence }) => evidence === 'signed')).size > 1
  if (isMixed || machines.size > 1) {
    const what = isMixed ? 'signed and unsigned exports' : 'exports of several machines'
    throw new BackupError('USAGE', `${what} do not go into one directory`, {
      hint: `choose with --export: ${[...new Set(chosen.map(({ name }) => name))].join(', ')}`,
    })
  }
  return exports.filter((one) => chosen.includes(one))
}

function meantBy(word: string, exports: readonly SurveyedExport[]): readonly SurveyedExport[] {
  const exact = exports.filter(({ name }) => name === word)
  if (exact.length > 0) return exact
  const meant = exports.filter(({ name }) => {
    return name.startsWith(word) && /^[/:#]/.test(name.slice(word.replace(/[/:]$/, '').length))
  })
  if (meant.length > 0) return newestOfEach(meant)
  throw new BackupError('NOTHING_FOUND', `there is no export ${word}`, {
    hint: '--list shows their names; the beginning of one will do: laptop/home',
  })
}

/** They are in order: of one stamp what lacks least is taken. */
function newestOfEach(exports: readonly SurveyedExport[]): readonly SurveyedExport[] {
  const newest = new Map<string, SurveyedExport>()
  for (const one of exports) {
    const { evidence, machine, set, stamp } = one
    const key = [evidence, machine, set].join(' ')
    const there = newest.get(key)
    const isBetter =
      there === undefined || (stamp === there.stamp && lackingOf(one) < lackingOf(there))
    if (isBetter) newest.set(key, one)
  }
  return [...newest.values()]
}

/** Whether nothing of it can come back. */
function isGone(one: SurveyedExport): boolean {
  return one.files <= one.lost.length && lackingOf(one) > 0
}

/** How many entries cannot come back. */
export function lackingOf({ lost, lostShards }: SurveyedExport): number {
  return lost.length + entriesIn(lostShards)
}

/** What is there besides, and may be newer than all that was chosen of its set. */
export function newerThan(
  chosen: readonly SurveyedExport[],
  exports: readonly SurveyedExport[],
): readonly SurveyedExport[] {
  return exports.filter((one) => {
    if (chosen.includes(one)) return false
    const { stamp, set, machine } = one
    if (stamp === undefined) return true
    const same = chosen.filter((other) => {
      const isSet = set === undefined || other.set === undefined || set === other.set
      return isSet && (machine === undefined || machine === other.machine)
    })
    return same.every((other) => other.stamp === undefined || other.stamp < stamp)
  })
}
