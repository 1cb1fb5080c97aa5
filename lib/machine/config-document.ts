// The text of a configuration as a YAML document: parsed, with a line and column for every value,
// and changed so that comments and order stay.
//
// config.ts parses and checks by it, `drives add` adds a drive by it. JSON is YAML too. Throws
// CONFIG_INVALID with file, line and column.

import { isMap, isNode, isScalar, isSeq, LineCounter, parseDocument, YAMLMap } from 'yaml'
import type { Document } from 'yaml'
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
