// What is wrong with a configuration, in words: where in the file, what was expected, what was
// meant.
//
// config.ts finds the problems (schema, then meaning) and knows the lines; this file turns one
// problem of the schema into text. A value is only ever quoted where it cannot be a secret. Throws
// nothing.

import { cleanName } from '../model/names.ts'
import { nearestWord } from '../model/nearest.ts'

/** The way to a value in the file: `['backup_sets', 1, 'sources']`. */
export type ConfigPath = readonly (string | number)[]

export interface ConfigProblem {
  readonly path: ConfigPath
  /** Lower-case start, no final period. */
  readonly message: string
  readonly hint?: string
}

/** The part that is used of what a schema validator reports, with `verbose` details. */
export interface SchemaError {
  readonly keyword: string
  readonly instancePath: string
  readonly params: Readonly<Record<string, unknown>>
  readonly data?: unknown
  readonly parentSchema?: Readonly<Record<string, unknown>>
}

/** `backup_sets[1].sources`; empty at the top. */
export function formatConfigPath(path: ConfigPath): string {
  let text = ''
  for (const part of path) {
    if (typeof part === 'number') text += `[${part}]`
    else text += text === '' ? part : `.${part}`
  }
  return text
}

/**
 * One problem for each error that is one of its own: a property that was misspelled is not missing
 * too.
 */
export function describeSchemaErrors(errors: readonly SchemaError[]): ConfigProblem[] {
  const misspelled = new Set<string>()
  for (const error of errors) {
    if (error.keyword !== 'additionalProperties') continue
    misspelled.add(`${error.instancePath}/${meantProperty(error)}`)
  }
  const own = errors.filter(({ keyword, instancePath, params }) => {
    return keyword !== 'required' || !misspelled.has(`${instancePath}/${params['missingProperty']}`)
  })
  return own.map(describeSchemaError)
}

function describeSchemaError(error: SchemaError): ConfigProblem {
  const path = pathFromPointer(error.instancePath)
  switch (error.keyword) {
    case 'additionalProperties':
      return describeUnknownProperty(error, path)
    case 'required': {
      const missing = String(error.params['missingProperty'])
      return { path, message: `expected ${expectedOf(error)}, but ${missing} is missing` }
    }
    case 'enum':
      return describeChoice(error, path)
    default: {
      const message = `expected ${expectedOf(error)}, found ${describeValue(error)}`
      return { path, message, ...hintFor(error, path) }
    }
  }
}

function describeUnknownProperty(error: SchemaError, path: ConfigPath): ConfigProblem {
  const property = String(error.params['additionalProperty'])
  const meant = meantProperty(error)
  const hint =
    meant === undefined
      ? `properties here are ${knownProperties(error).join(', ')}`
      : `did you mean ${meant}?`
  return { path: [...path, property], message: 'unknown property', hint }
}

function describeChoice(error: SchemaError, path: ConfigPath): ConfigProblem {
  const choices = (error.params['allowedValues'] as readonly unknown[]).map(String)
  const expected = choices.length === 1 ? choices.join() : `one of ${choices.join(', ')}`
  const word = typeof error.data === 'string' ? error.data : ''
  const meant = nearestWord({ word, known: choices })
  const found = typeof error.data === 'string' ? JSON.stringify(error.data) : describeValue(error)
  const message = `expected ${expected}, found ${found}`
  return meant === undefined ? { path, message } : { path, message, hint: `did you mean ${meant}?` }
}

function expectedOf(error: SchemaError): string {
  if (error.keyword === 'type' && Array.isArray(error.parentSchema?.['enum'])) {
    return `one of ${error.parentSchema['enum'].join(', ')}`
  }
  return String(error.parentSchema?.['$comment'] ?? 'something else')
}

function hintFor(error: SchemaError, path: ConfigPath): { hint?: string } {
  if (typeof error.data !== 'string') return {}
  if (/^age-secret-key-/i.test(error.data)) {
    const hint =
      'that is the secret identity: take it out of this file, '
      + 'and put its public key (age1…) here'
    return { hint }
  }
  const property = path.at(-1)
  if (property !== 'name' && property !== 'machine') return {}
  const name = cleanName(error.data)
  return name === undefined ? {} : { hint: `did you mean ${name}?` }
}

/** What was found: its sort; its value only where that is a number. */
function describeValue({ data, keyword }: SchemaError): string {
  if (data === null || data === undefined) return 'nothing'
  if (typeof data === 'number') return String(data)
  if (typeof data === 'boolean') return String(data)
  if (Array.isArray(data)) return describeList(data, keyword)
  if (typeof data === 'object') return 'a mapping'
  if (data === '') return 'empty text'
  return keyword === 'type' ? 'text' : 'other text'
}

function describeList(list: readonly unknown[], keyword: string): string {
  if (list.length === 0) return 'an empty list'
  return keyword === 'maxItems' ? `${list.length} of them` : 'a list'
}

function meantProperty(error: SchemaError): string | undefined {
  const word = String(error.params['additionalProperty'])
  return nearestWord({ word, known: knownProperties(error) })
}

function knownProperties(error: SchemaError): string[] {
  return Object.keys(error.parentSchema?.['properties'] ?? {})
}

/** `/backup_sets/1/sources`, a JSON pointer; no property of ours is a number. */
function pathFromPointer(pointer: string): ConfigPath {
  const parts = pointer.split('/').slice(1)
  return parts.map((part) => {
    if (/^[0-9]+$/.test(part)) return Number(part)
    return part.replaceAll('~1', '/').replaceAll('~0', '~')
  })
}
