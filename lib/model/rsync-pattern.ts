// rsync's own rules, as rsync reads them: which one takes or leaves out a path.
//
// rsync itself applies the exclusions of a set (lib/machine/rsync.ts hands them over); this says
// beforehand what it will do, so that filter-walk.ts does not descend into what it leaves out and
// `backup why` can name the rule. From rsync(1), PATTERN MATCHING RULES, and compared with a real
// rsync in the tests. leftOutRules is the way back: paths as rules that fit only them. Paths are
// RawPaths and absolute. Throws nothing.

import { baseOf, parentOf, type RawPath } from './raw-path.ts'
import { assemble, parseWildcards, quoted, type Step, type Wildcard } from './wildcard.ts'

export interface RsyncRule {
  /** As it was written. */
  readonly text: RawPath
  /** A rule that takes (`+ `) ends the search as one that leaves out does. */
  readonly takes: boolean
  readonly fits: (path: RawPath, isDirectory: boolean) => boolean
}

/** A pattern that is not anchored fits below any directory. */
const ANYWHERE: readonly Step[] = [
  { kind: 'stars', source: '[^]*?', crossesSlashes: true },
  { kind: 'fixed', source: '/' },
]

/** A rule in the manner of `--exclude-from`: a pattern, or one after `- ` or `+ `. */
export function parseRsyncRule(text: RawPath): RsyncRule {
  const takes = text.startsWith('+ ')
  const pattern = /^[-+] /.test(text) ? text.slice(2) : text
  const directoriesOnly = pattern.length > 1 && pattern.endsWith('/')
  const matches = compile(directoriesOnly ? pattern.slice(0, -1) : pattern)
  const fits = (path: RawPath, isDirectory: boolean): boolean => {
    return (isDirectory || !directoriesOnly) && matches(path, isDirectory)
  }
  return { text, takes, fits }
}

/** The first rule that fits decides; undefined: none fits, and rsync takes the path. */
export function decidingRule(
  rules: readonly RsyncRule[],
  path: RawPath,
  isDirectory: boolean,
): RsyncRule | undefined {
  return rules.find(({ fits }) => fits(path, isDirectory))
}

function compile(pattern: RawPath): RsyncRule['fits'] {
  const isAnchored = pattern.startsWith('/')
  if (!/[*?[]/.test(pattern)) {
    return (path) => (isAnchored ? path === pattern : path.endsWith(`/${pattern}`))
  }
  const wildcards = parseWildcards(pattern, { lenient: false })
  if (wildcards === undefined) return () => false
  const steps = wildcards.map(stepOf)
  const isWhole = isAnchored || pattern.startsWith('**')
  // rsync counts the slashes of such a pattern and tries as many names: one in a class is too many.
  const isCounted = !isWhole && !pattern.includes('**')
  if (isCounted && slashes(pattern) !== wildcards.filter(isSlash).length) return () => false
  const expression = assemble(isWhole ? steps : [...ANYWHERE, ...steps])
  // `dir/***` fits `dir/`, too, and everything in it.
  const withSlash = pattern.endsWith('***')
  return (path, isDirectory) => expression.test(withSlash && isDirectory ? `${path}/` : path)
}

function slashes(pattern: RawPath): number {
  return pattern.split('/').length - 1
}

function isSlash(wildcard: Wildcard): boolean {
  return wildcard.kind === 'literal' && wildcard.character === '/'
}

function stepOf(wildcard: Wildcard): Step {
  switch (wildcard.kind) {
    case 'literal':
      return { kind: 'fixed', source: quoted(wildcard.character) }
    case 'one':
      return { kind: 'fixed', source: '[^/]' }
    case 'class':
      return { kind: 'fixed', source: wildcard.source }
    case 'stars': {
      const crossesSlashes = wildcard.count > 1
      return { kind: 'stars', source: crossesSlashes ? '[^]*?' : '[^/]*?', crossesSlashes }
    }
  }
}

/** What is left out: a path, or all in a directory but some names. */
export interface LeftOutRule {
  /** Absolute. */
  readonly path: RawPath
  readonly isDirectory: boolean
  /** The directory stays, and these names in it; undefined: the path itself goes. */
  readonly kept?: readonly RawPath[] | undefined
}

/** Rules, `- ` and `+ ` included, that fit exactly what is left out. */
export function leftOutRules(leftOut: readonly LeftOutRule[]): RawPath[] {
  return leftOut.flatMap(({ path, isDirectory, kept }) => {
    if (kept === undefined) return [`- ${literalPattern(path)}${isDirectory ? '/' : ''}`]
    const directory = path === '/' ? '' : path
    const stay = kept.map((name) => `+ ${literalPattern(`${directory}/${name}`)}`)
    return [...stay, `- ${escapeWildcards(directory)}/*`]
  })
}

/**
 * The same as a test, for paths that rsync is given one by one: whether a path is left out, by
 * itself or with a directory above it. All paths here are as a catalog has them, without the slash
 * before them.
 */
export function leftOutTest(leftOut: readonly LeftOutRule[]): (path: RawPath) => boolean {
  const rules = new Map(leftOut.map((rule) => [rule.path, rule]))
  return (path) => {
    for (let above = path, name = ''; ; name = baseOf(above), above = parentOf(above)) {
      const rule = rules.get(above)
      if (rule !== undefined && rule.kept === undefined) return true
      if (rule !== undefined && above !== path && !rule.kept?.includes(name)) return true
      if (above === '') return false
    }
  }
}

/** A backslash escapes a wildcard, but only in a pattern that has one (see rsync(1)). */
export function literalPattern(path: RawPath): RawPath {
  return /[*?[]/.test(path) ? escapeWildcards(path) : path
}

function escapeWildcards(path: RawPath): RawPath {
  return path.replace(/[\\*?[]/g, '\\$&')
}
