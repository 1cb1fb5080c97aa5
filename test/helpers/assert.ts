// uvu's assertions, with the text shown that did not match: of a failure on another machine the
// report is all there is.

import * as uvu from 'uvu/assert'

export * from 'uvu/assert'

/** More of it tells nobody anything. */
const CHARACTERS = 4000

type Match = (actual: string, expects: string | RegExp, message?: uvu.Message) => void

function telling(match: Match): Match {
  return (actual, expects, message) => {
    try {
      match(actual, expects, message)
    } catch (error) {
      if (error instanceof uvu.Assertion) error.message += `, which is:\n${shown(actual)}`
      throw error
    }
  }
}

function shown(actual: unknown): string {
  const text = String(actual)
  return text.length > CHARACTERS ? `${text.slice(0, CHARACTERS)}…` : text
}

export const match: Match = telling(uvu.match)

export const not: typeof uvu.not = Object.assign(
  (actual: unknown, message?: uvu.Message) => uvu.not(actual, message),
  uvu.not,
  { match: telling(uvu.not.match) },
)
