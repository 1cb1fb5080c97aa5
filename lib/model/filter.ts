// What leaves a path out of a collection besides rsync's own patterns: globs and regular
// expressions, and why anything was left out, as data and in words.
//
// Pure decisions over text: whoever has a RawPath gives filterText of it, so that `é` is one
// character. filter-walk.ts asks for every path of the sources, and reads what lies in the files
// that ignore-file.ts and hasCacheSignature judge. Throws nothing: config-meaning.ts has tried
// every regular expression before.

import { displayPath, type RawPath, rawPathToText } from './raw-path.ts'
import { parseWildcards, quoted, type Wildcard } from './wildcard.ts'

export interface FilterReason {
  readonly kind:
    | 'exclusion'
    | 'glob'
    | 'regex'
    | 'ignore-file'
    | 'cache'
    | 'marker'
    | 'size'
    | 'filesystem'
    | 'own-place'
    | 'source'
  /** As it was written, or what it is: text. */
  readonly rule: string
  /** The ignore file that holds it; its lines count from 1. */
  readonly file?: { readonly path: RawPath; readonly line: number }
}

/** `path`: a path as filterText makes it, absolute. */
export type PathFilter = (path: string, isDirectory: boolean) => FilterReason | undefined

export const CACHE_TAG = 'CACHEDIR.TAG'

/** What the tag of a cache directory begins with (https://bford.info/cachedir/). */
export const CACHE_SIGNATURE = 'Signature: 8a477f597d28d172789f06886806bc55'

/**
 * Text to match: each name is decoded alone, so that one that is no UTF-8 spoils no other; its
 * bytes then count as the characters of Latin-1.
 */
export function filterText(path: RawPath): string {
  return path
    .split('/')
    .map((name) => rawPathToText(name) ?? name)
    .join('/')
}

/** The first glob, else the first regular expression that fits. */
export function compilePathFilters({
  globs,
  regexes,
}: {
  readonly globs: readonly string[]
  readonly regexes: readonly string[]
}): PathFilter {
  const filters = [
    ...globs.map((rule) => ({ kind: 'glob' as const, rule, fits: compileGlob(rule) })),
    ...regexes.map((rule) => ({ kind: 'regex' as const, rule, fits: compileRegex(rule) })),
  ]
  return (path, isDirectory) => {
    const found = filters.find(({ fits }) => fits(path, isDirectory))
    return found === undefined ? undefined : { kind: found.kind, rule: found.rule }
  }
}

/**
 * Globs that rsync understands as we do, as rules for it: nobody need walk for them, nor name what
 * they leave out. They have no slash but at the end, no wildcard but single stars, and no
 * character that is more than a byte.
 */
export function rsyncExclusions(globs: readonly string[]): string[] {
  return globs.filter(isForRsync).map((glob) => `- ${glob}`)
}

/** Whether rsyncExclusions has a rule for it. */
export function isForRsync(glob: string): boolean {
  return /^[ -~]+$/.test(glob) && /^[^/?[\\{]+\/?$/.test(glob) && !glob.includes('**')
}

type Fits = (path: string, isDirectory: boolean) => boolean

/** A directory has a slash at its end, so that a rule can be about directories only. */
function compileRegex(text: string): Fits {
  const expression = new RegExp(text, 'u')
  return (path, isDirectory) => expression.test(isDirectory ? `${path}/` : path)
}

/**
 * A glob as a predicate: one without a slash fits the name, one with a slash the whole path; where
 * that does not begin with a slash, it fits below any directory, as after a star-star and a slash.
 */
export function compileGlob(glob: string): Fits {
  const directoriesOnly = glob.endsWith('/')
  const pattern = glob.replace(/\/+$/, '')
  const wildcards = parseWildcards(pattern, { lenient: true }) ?? []
  // Behind any slash, or where a choice such as `{*.iso,/data/x}` brings its own.
  const start = pattern.startsWith('/') ? '^' : '(?:/|^(?=/))'
  const expression = new RegExp(`${start}(?:${globSource(wildcards)})$`, 'u')
  const hasSlash = pattern.includes('/')
  return (path, isDirectory) => {
    if (directoriesOnly && !isDirectory) return false
    return expression.test(hasSlash ? path : path.slice(path.lastIndexOf('/')))
  }
}

function globSource(wildcards: readonly Wildcard[]): string {
  const braces = pairedBraces(wildcards)
  return wildcards.map((_, index) => sourceAt({ wildcards, braces, index })).join('')
}

function sourceAt({
  wildcards,
  braces,
  index,
}: {
  readonly wildcards: readonly Wildcard[]
  readonly braces: ReadonlyMap<number, string>
  readonly index: number
}): string {
  const wildcard = wildcards[index]
  switch (wildcard?.kind) {
    case undefined:
      return ''
    case 'one':
      return '[^/]'
    case 'class':
      return wildcard.source
    case 'literal':
      return isAfterDirectories(wildcards, index)
        ? ''
        : (braces.get(index) ?? quoted(wildcard.character))
    case 'stars':
      if (wildcard.count === 1) return '[^/]*'
      return isAfterDirectories(wildcards, index + 1) ? '(?:[^]*/)?' : '[^]*'
  }
}

/** Whether this is the slash of a whole `**` and slash, which may stand for no directory at all. */
function isAfterDirectories(wildcards: readonly Wildcard[], index: number): boolean {
  const isSlash = (at: number): boolean => {
    const wildcard = wildcards[at]
    return wildcard?.kind === 'literal' && wildcard.character === '/'
  }
  const stars = wildcards[index - 1]
  const isStars = stars?.kind === 'stars' && stars.count > 1
  return isStars && isSlash(index) && (index === 1 || isSlash(index - 2))
}

/** By index: what `{`, `,` and `}` mean where they choose; alone they stand for themselves. */
function pairedBraces(wildcards: readonly Wildcard[]): ReadonlyMap<number, string> {
  const sources = new Map<number, string>()
  const open: { readonly start: number; readonly commas: number[] }[] = []
  for (const [index, wildcard] of wildcards.entries()) {
    if (wildcard.kind !== 'literal' || wildcard.escaped) continue
    if (wildcard.character === '{') open.push({ start: index, commas: [] })
    if (wildcard.character === ',') open.at(-1)?.commas.push(index)
    if (wildcard.character !== '}') continue
    const group = open.pop()
    if (group === undefined || group.commas.length === 0) continue
    sources.set(group.start, '(?:').set(index, ')')
    for (const comma of group.commas) sources.set(comma, '|')
  }
  return sources
}

/** Whether the first bytes of a CACHEDIR.TAG, one character a byte, make it a valid one. */
export function hasCacheSignature(content: RawPath): boolean {
  return content.startsWith(CACHE_SIGNATURE)
}

/** Why, for people: `the glob "*.iso"`. */
export function reasonText({ kind, rule, file }: FilterReason): string {
  switch (kind) {
    case 'exclusion':
      return `the exclusion "${rule}"`
    case 'glob':
      return `the glob "${rule}"`
    case 'regex':
      return `the regular expression "${rule}"`
    case 'ignore-file': {
      const place = file === undefined ? '' : ` in ${displayPath(file.path)}, line ${file.line}`
      return `the rule "${rule}"${place}`
    }
    case 'cache':
      return `skip_caches: there is a valid ${rule}`
    case 'marker':
      return `skip_markers: there is a ${rule}`
    case 'size':
      return `max_size: it is larger than ${rule}`
    case 'filesystem':
      return `one_filesystem: ${rule} is mounted there`
    case 'own-place':
      return rule
    case 'source':
      return `it is in the source ${rule}`
  }
}
