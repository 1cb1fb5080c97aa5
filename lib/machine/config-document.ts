// The text of a configuration as a YAML document: parsed, with a line and column for every value,
// and changed so that comments and order stay.
//
// config.ts parses and checks by it, `drives add` adds a drive by it; withoutSecrets is what
// exports keep of it, withPlace and withProperties what `init --from` changes in that. JSON is YAML
// too. Throws CONFIG_INVALID with file, line and column.

import {
  isAlias,
  isMap,
  isNode,
  isScalar,
  isSeq,
  Lexer,
  LineCounter,
  parseDocument,
  visit,
  YAMLMap,
} from 'yaml'
import type { Document, Node } from 'yaml'
import { BackupError } from '../errors.ts'
import { displayText } from '../model/raw-path.ts'
import type { ConfigPath } from './config-errors.ts'

/** A parsed text, and where its lines begin. */
export interface Place {
  readonly document: Document
  readonly lines: LineCounter
  readonly path: string
}

export interface Position {
  readonly line: number
  readonly column: number
}

/** Parses the text of the file at `path`. @throws BackupError CONFIG_INVALID */
export function parseText({ path, text }: { path: string; text: string }): Place {
  const lines = new LineCounter()
  return { document: parseYaml({ path, text, lines }), lines, path }
}

/** A drive for the configuration. */
export interface NewDrive {
  readonly target: string
  /** Of a pool: the drive's name in it. */
  readonly drive: string | undefined
  readonly uuid: string | undefined
  readonly label: string | undefined
}

/**
 * The text with a drive added: a new target, or one more drive of a pool that is there.
 * @throws BackupError CONFIG_INVALID where the text is no mapping of properties
 */
export function withDrive(
  { path, text }: { path: string; text: string },
  { target, drive, uuid, label }: NewDrive,
): string {
  const { document } = parseText({ path, text })
  const by = uuid === undefined ? { label } : { uuid }
  const targets = document.get('targets', true)
  const there = isSeq(targets)
    ? targets.items.findIndex((item) => isMap(item) && item.get('name') === target)
    : -1
  if (there >= 0 && drive !== undefined) {
    document.addIn(['targets', there, 'pool'], document.createNode({ name: drive, ...by }))
  } else {
    const own = drive === undefined ? by : { pool: [{ name: drive, ...by }] }
    const node = document.createNode({ name: target, kind: 'drive', ...own })
    if (isSeq(targets)) {
      // `targets: []` begins a list, not a line of braces.
      if (targets.items.length === 0) targets.flow = false
      targets.add(node)
    } else document.set('targets', document.createNode([node]))
  }
  return document.toString({ lineWidth: 0 })
}

/** Stands where an address was that may be a secret: using it fails, and is told. */
export const REMOVED_ADDRESS = 'https://removed.invalid/'

/** Stands where any other secret was. */
const REMOVED = '(removed)'

const SECRET_WORDS = 'passw(?:or)?d|passphrase|secret|token|credential|api_?key|access_key(?:_id)?'

/** Properties whose values may be secrets; the path of a file that holds one is none. */
const SECRET_NAME = new RegExp(`(?:^|_)(?:${SECRET_WORDS})s?(?:$|_)`, 'i')
const FILE_NAME = /_(file|path)$/i

/** The same in comments, where somebody took a line out for a while: all the rest of the line. */
const SECRET_COMMENT = new RegExp(`((?:url|${SECRET_WORDS})s?["']?\\s*[:=]\\s*).+`, 'i')

/**
 * The text as it is, comments and all, but with what may be a secret replaced: addresses of
 * webhooks and pings, values whose names look like secrets, names and passwords in addresses,
 * identities.
 * @throws BackupError CONFIG_INVALID where the text is no YAML
 */
export function withoutSecrets(text: string): string {
  const path = 'configuration.yaml'
  const { document } = parseText({ path, text })
  const removals = new Map<Node, string>()
  visit(document, {
    Pair: (_, { key, value }, ancestors) => {
      const name = isScalar(key) ? String(key.value) : ''
      if (!isNode(value)) return undefined
      const isAddress = name === 'url' && isInNotify(document, ancestors)
      const isSecret = SECRET_NAME.test(name) && !FILE_NAME.test(name)
      if (!isAddress && !isSecret) return undefined
      for (const scalar of scalarsOf(value, document)) {
        removals.set(scalar, isAddress ? REMOVED_ADDRESS : REMOVED)
      }
      return undefined
    },
  })
  let out = text
  const ranges = [...removals].map(([{ range }, by]) => ({ range, by }))
  for (const { range, by } of ranges.sort((a, b) => (b.range?.[0] ?? 0) - (a.range?.[0] ?? 0))) {
    const [start, end] = range ?? [0, 0]
    // A block of text owns the newline at its end.
    const newline = text.slice(start, end).endsWith('\n') ? '\n' : ''
    out = out.slice(0, start) + JSON.stringify(by) + newline + out.slice(end)
  }
  const removed = withoutSecretComments(out)
    .replace(/AGE-SECRET-KEY-1[A-Z0-9]*/gi, `AGE-SECRET-KEY-1${REMOVED}`)
    .replace(/(https?:\/\/)[^/@\s"'\\]+@/gi, '$1removed@')
    .replace(/(:\/\/[^/@:\s"'\\]+:)[^/@\s"'\\]+@/g, '$1removed@')
  parseText({ path, text: removed })
  return removed
}

function isInNotify(document: Document, ancestors: readonly unknown[]): boolean {
  const notify = document.get('notify', true)
  return (
    ancestors.includes(notify) || (isAlias(notify) && ancestors.includes(notify.resolve(document)))
  )
}

/** All texts and numbers of a value, where they really stand. */
function scalarsOf(value: Node, document: Document): readonly Node[] {
  const found: Node[] = []
  visit(value, {
    Scalar: (role, scalar) => {
      if (role !== 'key') found.push(scalar)
    },
    Alias: (_, alias) => {
      const resolved = alias.resolve(document)
      if (resolved !== undefined) found.push(...scalarsOf(resolved, document))
    },
  })
  return found
}

function withoutSecretComments(text: string): string {
  let out = ''
  let isContent = false
  for (const token of new Lexer().lex(text)) {
    const isComment = token.startsWith('#') && !isContent
    // Marks of the lexer's own: before the content of a scalar, a document, after a wrong one.
    isContent = token === '\x1f'
    if (token === '\x02' || token === '\x18' || token === '\x1f') continue
    out += isComment ? token.replace(SECRET_COMMENT, `$1${REMOVED}`) : token
  }
  return out
}

/** Where a target was found: some of the properties of a target, as the file has them. */
export interface FoundPlace {
  readonly kind: string
  /** Undefined: the target has no such property. */
  readonly [property: string]: string | number | boolean | undefined
}

/**
 * The text with its target of that place: the one that names it already, else the only one of its
 * kind, else a new one. Properties that the place does not name stay as they are.
 * @returns the text, and the target's name
 * @throws BackupError CONFIG_INVALID where the text is no mapping of properties
 */
export function withPlace(
  { path, text }: { path: string; text: string },
  { place, sameBy }: { readonly place: FoundPlace; readonly sameBy: readonly string[] },
): { readonly text: string; readonly target: string } {
  const { document } = parseText({ path, text })
  const targets = document.get('targets', true)
  const items = isSeq(targets) ? targets.items.filter((item) => isMap(item)) : []
  const sameKind = items.filter((item) => item.get('kind') === place.kind)
  const same = sameKind.find((item) => sameBy.every((name) => item.get(name) === place[name]))
  const found = same ?? (sameKind.length === 1 ? sameKind[0] : undefined)
  if (found !== undefined) {
    const target = String(found.get('name'))
    const changes = Object.entries(place).filter(([name, value]) => found.get(name) !== value)
    for (const [name, value] of changes) {
      if (value === undefined) found.delete(name)
      else found.set(name, value)
    }
    return { text: changes.length === 0 ? text : document.toString({ lineWidth: 0 }), target }
  }
  const names = items.map((item) => item.get('name'))
  let target = 'found'
  for (let number = 2; names.includes(target); number++) target = `found-${number}`
  const node = document.createNode({ name: target, ...place })
  if (isSeq(targets)) {
    if (targets.items.length === 0) targets.flow = false
    targets.add(node)
  } else document.set('targets', document.createNode([node]))
  return { text: document.toString({ lineWidth: 0 }), target }
}

/**
 * The text with other values of some properties at its top, and with keys to trust added.
 * @throws BackupError CONFIG_INVALID
 */
export function withProperties(
  { path, text }: { path: string; text: string },
  {
    properties,
    trusted,
  }: {
    readonly properties: Readonly<Record<string, string>>
    readonly trusted: readonly { readonly machine: string; readonly key: string }[]
  },
): string {
  const { document } = parseText({ path, text })
  let isChanged = false
  for (const [name, value] of Object.entries(properties)) {
    if (document.get(name) === value) continue
    document.set(name, value)
    isChanged = true
  }
  for (const { machine, key } of trusted) {
    const there = document.get('trusted_signing_keys', true)
    if (isSeq(there) && there.items.some((item) => isMap(item) && item.get('key') === key)) continue
    const node = document.createNode({ machine, key })
    if (isSeq(there)) there.add(node)
    else document.set('trusted_signing_keys', document.createNode([node]))
    isChanged = true
  }
  return isChanged ? document.toString({ lineWidth: 0 }) : text
}

function parseYaml({
  path,
  text,
  lines,
}: {
  readonly path: string
  readonly text: string
  readonly lines: LineCounter
}): Document {
  const document = parseDocument(text, {
    version: '1.2',
    schema: 'core',
    strict: true,
    uniqueKeys: true,
    merge: false,
    prettyErrors: false,
    logLevel: 'error',
    lineCounter: lines,
  })
  const wrong = document.errors[0] ?? document.warnings[0]
  if (wrong !== undefined) {
    const { line, col } = lines.linePos(wrong.pos[0])
    const several = wrong.code === 'MULTIPLE_DOCS'
    const message = several ? 'expected one document, found several' : lowerFirst(wrong.message)
    throw invalid({ path, line, column: col, message })
  }
  return document
}

/** Plain data; the limit is the YAML package's against "billion laughs". */
export function resolveAliases(document: Document, path: string): unknown {
  try {
    return document.toJS({ maxAliasCount: 100 })
  } catch (error) {
    const message = error instanceof Error ? lowerFirst(error.message) : 'an alias is wrong'
    throw invalid({ path, line: 1, column: 1, message })
  }
}

/**
 * Line and column (from 1) of the value at `path`, of its key where it has one, or of what is
 * nearest around it.
 */
export function positionOf(path: ConfigPath, { document, lines }: Place): Position {
  for (let length = path.length; length > 0; length--) {
    const offset = offsetOf(path.slice(0, length), document)
    if (offset === undefined) continue
    const { line, col } = lines.linePos(offset)
    return { line, column: col }
  }
  return { line: 1, column: 1 }
}

function offsetOf(path: ConfigPath, document: Document): number | undefined {
  const parent = path.length === 1 ? document.contents : document.getIn(path.slice(0, -1), true)
  if (parent instanceof YAMLMap) {
    const pair = parent.items.find(({ key }) => isScalar(key) && String(key.value) === path.at(-1))
    return isNode(pair?.key) ? pair.key.range?.[0] : undefined
  }
  const node = document.getIn(path, true)
  return isNode(node) ? node.range?.[0] : undefined
}

/** A CONFIG_INVALID that begins with file, line and column. */
export function invalid({
  path,
  line,
  column,
  message,
  hint,
  facts,
}: {
  readonly path: string
  readonly line: number
  readonly column: number
  readonly message: string
  readonly hint?: string
  readonly facts?: Readonly<Record<string, unknown>>
}): BackupError {
  return new BackupError('CONFIG_INVALID', `${displayText(path)}:${line}:${column}: ${message}`, {
    ...(hint === undefined ? {} : { hint }),
    facts: { file: path, line, column, ...facts },
  })
}

function lowerFirst(text: string): string {
  return text.slice(0, 1).toLowerCase() + text.slice(1)
}
