// `~` and variables in a configuration's text: `$NAME`, `${NAME}`, and `$$` for a dollar sign.
//
// Called by config.ts for every path and pattern. The environment and the home directory come in as
// arguments. A variable that is not set is an error, never empty: an empty one would turn
// `$DATA/old` into `/old`.

import { normalize } from 'node:path'
import { isAbsolute } from 'node:path'

export interface Surroundings {
  readonly environment: Readonly<Record<string, string | undefined>>
  /** The home directory, absolute. */
  readonly home: string
}

/** Reports what is wrong with the text at hand; throws. */
export type Fail = (message: string, hint?: string) => never

/** A pattern with `~` and variables expanded. */
export function expandPattern(text: string, surroundings: Surroundings, fail: Fail): string {
  const { environment, home } = surroundings
  const expanded = expandVariables(expandHome(text, home), environment, fail)
  if (expanded.includes('\0')) fail('expected text without a NUL character')
  return expanded
}

/**
 * A path with `~` and variables expanded; it has to be absolute then. Nothing else about it is
 * changed.
 */
export function expandPath(text: string, surroundings: Surroundings, fail: Fail): string {
  const path = expandPattern(text, surroundings, fail)
  if (isAbsolute(path)) return path
  return fail('expected an absolute path', 'begin it with /, ~/ or a variable that does')
}

/**
 * What has to stand in the file for this very text: the inverse of expandPattern, for absolute
 * paths.
 */
export function escapeVariables(text: string): string {
  return text.replaceAll('$', '$$$$')
}

/** The home directory's own `$` is doubled, since variables are expanded after it. */
function expandHome(text: string, home: string): string {
  if (text !== '~' && !text.startsWith('~/')) return text
  return escapeVariables(home === '/' ? '' : home) + text.slice(1) || '/'
}

type Environment = Surroundings['environment']

function expandVariables(text: string, environment: Environment, fail: Fail): string {
  return text.replace(/\$(?:\$|\{([^}]*)\}|([A-Za-z_][A-Za-z0-9_]*))/g, (whole, braced, plain) => {
    if (whole === '$$') return '$'
    const name: string = braced ?? plain
    const value = environment[name]
    if (value !== undefined && value !== '') return value
    return fail(`the variable ${name} is not set`, `set ${name}, or write $$ for a dollar sign`)
  })
}

/** Without `..`, doubled or trailing slashes. */
export function normalizePath(path: string): string {
  const normal = normalize(path)
  return normal.length > 1 && normal.endsWith('/') ? normal.slice(0, -1) : normal
}
