// The patterns of `--include` and `--exclude`: which paths of a generation are wanted.
//
// The globs are those of filters in the configuration (filter.ts): without a slash they fit names,
// with one whole paths; a directory that fits stands for everything in it. Pure; throws nothing.

import { compileGlob, filterText } from './filter.ts'
import { type RawPath, parentOf } from './raw-path.ts'

export interface PathPatterns {
  /** Whether a path is wanted. */
  readonly takes: (path: RawPath, isDirectory: boolean) => boolean
}

/** Undefined where there are none: everything is wanted. */
export function compilePatterns({
  include,
  exclude,
}: {
  readonly include: readonly string[]
  readonly exclude: readonly string[]
}): PathPatterns | undefined {
  if (include.length + exclude.length === 0) return undefined
  const included = fitsAny(include)
  const excluded = fitsAny(exclude)
  return {
    takes: (path, isDirectory) => {
      if (excluded(path, isDirectory)) return false
      return include.length === 0 || included(path, isDirectory)
    },
  }
}

/** Whether a path, or a directory above it, fits one of the globs. */
function fitsAny(globs: readonly string[]): (path: RawPath, isDirectory: boolean) => boolean {
  const filters = globs.map(compileGlob)
  const known = new Map<RawPath, boolean>([['', false]])
  const fits = (path: RawPath, isDirectory: boolean): boolean => {
    const text = `/${filterText(path)}`
    return filters.some((filter) => filter(text, isDirectory)) || isBelow(parentOf(path))
  }
  const isBelow = (directory: RawPath): boolean => {
    const answer = known.get(directory) ?? fits(directory, true)
    known.set(directory, answer)
    return answer
  }
  return (path, isDirectory) => (isDirectory ? isBelow(path) : fits(path, false))
}
