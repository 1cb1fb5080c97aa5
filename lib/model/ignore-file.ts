// Per-directory ignore files, read as git reads .gitignore (gitignore(5)).
//
// Rules hold for the directory the file lies in and all below; the last one that fits decides, and
// a file in a deeper directory goes before one above. Patterns are matched byte by byte, as in
// git. What lies in a directory that is left out cannot be taken again: filter-walk.ts does not
// descend there. Compared with a real git in the tests. Throws nothing: a malformed line fits no
// path.

import { baseOf, type RawPath } from './raw-path.ts'
import { assemble, parseWildcards, quoted, type Step, type Wildcard } from './wildcard.ts'

export interface IgnoreRule {
  /** As it was written, without trailing spaces. */
  readonly text: RawPath
  /** From 1. */
  readonly line: number
  /** `!`: takes again what an earlier rule left out. */
  readonly takes: boolean
  /** `path` is relative to the directory of the file. */
  readonly fits: (path: RawPath, isDirectory: boolean) => boolean
}

/** One ignore file: where it lies, and its rules. */
export interface IgnoreFile {
  readonly path: RawPath
  /** Absolute; empty for the root. */
  readonly directory: RawPath
  readonly rules: readonly IgnoreRule[]
}

/** The rules of a file, given one character a byte. */
export function parseIgnoreFile(content: RawPath): IgnoreRule[] {
  const withoutMark = content.startsWith('\xef\xbb\xbf') ? content.slice(3) : content
  return withoutMark.split('\n').flatMap((line, index) => {
    const text = withoutTrailingSpaces(line.replace(/\r$/, ''))
    return text === '' || text.startsWith('#') ? [] : [parseRule(text, index + 1)]
  })
}

/**
 * The rule that decides, of files in the order of their directories, outermost first; undefined
 * where none fits.
 */
export function decidingIgnoreRule(
  files: readonly IgnoreFile[],
  path: RawPath,
  isDirectory: boolean,
): { readonly file: IgnoreFile; readonly rule: IgnoreRule } | undefined {
  for (let index = files.length - 1; index >= 0; index--) {
    const file = files[index]
    if (file === undefined) continue
    const below = path.slice(file.directory.length + 1)
    const rule = file.rules.findLast(({ fits }) => fits(below, isDirectory))
    if (rule !== undefined) return { file, rule }
  }
  return undefined
}

/** A space stays when a backslash is before it. */
function withoutTrailingSpaces(line: RawPath): RawPath {
  let end = line.length
  while (end > 0 && line[end - 1] === ' ') end -= 1
  const backslashes = /\\*$/.exec(line.slice(0, end))?.[0].length ?? 0
  return line.slice(0, backslashes % 2 === 1 ? Math.min(end + 1, line.length) : end)
}

function parseRule(text: RawPath, line: number): IgnoreRule {
  const takes = text.startsWith('!')
  const written = takes ? text.slice(1) : text
  const directoriesOnly = written.endsWith('/')
  const pattern = directoriesOnly ? written.slice(0, -1) : written
  const hasSlash = pattern.includes('/')
  const wildcards = parseWildcards(pattern.replace(/^\//, ''), { lenient: false })
  const expression = wildcards === undefined ? undefined : assemble(wildcards.map(stepOf))
  const fits = (path: RawPath, isDirectory: boolean): boolean => {
    if (directoriesOnly && !isDirectory) return false
    return expression?.test(hasSlash ? path : baseOf(path)) === true
  }
  return { text, line, takes, fits }
}

function stepOf(wildcard: Wildcard, index: number, all: readonly Wildcard[]): Step {
  switch (wildcard.kind) {
    case 'literal':
      // The slash behind stars that cross went with them.
      return crossesAt(index - 1, all) && !wildcard.escaped
        ? { kind: 'fixed', source: '' }
        : { kind: 'fixed', source: quoted(wildcard.character) }
    case 'one':
      return { kind: 'fixed', source: '[^/]' }
    case 'class':
      return { kind: 'fixed', source: wildcard.source }
    case 'stars':
      return starsStep(index, all)
  }
}

/** No directory at all is one of the cases, so that the slash behind the stars goes with them. */
function starsStep(index: number, all: readonly Wildcard[]): Step {
  if (!crossesAt(index, all)) return { kind: 'stars', source: '[^/]*?', crossesSlashes: false }
  const next = all[index + 1]
  const withSlash = next?.kind === 'literal' && !next.escaped
  return { kind: 'stars', source: withSlash ? '(?:[^]*?/)??' : '[^]*?', crossesSlashes: true }
}

/**
 * Two stars or more cross slashes where a slash or an end is on both sides; else they are like one.
 * git takes plain text before the first wildcard for an end, too.
 */
function crossesAt(index: number, all: readonly Wildcard[]): boolean {
  const stars = all[index]
  if (stars?.kind !== 'stars' || stars.count === 1) return false
  const isEnd = (wildcard: Wildcard | undefined): boolean => {
    return wildcard === undefined || (wildcard.kind === 'literal' && wildcard.character === '/')
  }
  const isPlain = (wildcard: Wildcard): boolean => wildcard.kind === 'literal' && !wildcard.escaped
  return isEnd(all[index + 1]) && (isEnd(all[index - 1]) || all.slice(0, index).every(isPlain))
}
