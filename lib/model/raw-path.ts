// Paths as the bytes they are. Linux names are bytes, not text; a JavaScript string cannot hold
// every one of them.
//
// A RawPath is a string with one character (0–255) for each byte: Buffer.from(path, 'latin1') is
// the name to open. Everything inside lib/ speaks RawPath; text appears only where people or JSON
// read it (docs/format.md §1).

import { Buffer, isUtf8 } from 'node:buffer'

/** One character per byte ('latin1'). Without a leading slash wherever it names an entry. */
export type RawPath = string

export function rawPathFromBytes(bytes: Uint8Array): RawPath {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1')
}

export function rawPathToBytes(path: RawPath): Buffer {
  return Buffer.from(path, 'latin1')
}

export function rawPathFromText(text: string): RawPath {
  return Buffer.from(text, 'utf8').toString('latin1')
}

/** The text of a path, or undefined where its bytes are not UTF-8. */
export function rawPathToText(path: RawPath): string | undefined {
  if (isAscii(path)) return path
  const bytes = rawPathToBytes(path)
  return isUtf8(bytes) ? bytes.toString('utf8') : undefined
}

/** For JSON: `name`, or `name64` with the bytes as base64 where they are not UTF-8. */
export function pathFacts(path: RawPath, name = 'path'): Readonly<Record<string, string>> {
  const text = rawPathToText(path)
  if (text === undefined) return { [`${name}64`]: rawPathToBytes(path).toString('base64') }
  return { [name]: text }
}

/** For people: text, with control characters and bytes that are no text as `\xNN`. */
export function displayPath(path: RawPath): string {
  const text = rawPathToText(path) ?? path.replace(/[^\x20-\x7e]/g, escapeCharacter)
  return displayText(text)
}

/**
 * Text from outside, made safe for a terminal: control and direction-changing characters as `\xNN`
 * or `\u{…}`.
 */
export function displayText(text: string): string {
  return text.replace(
    /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g,
    escapeCharacter,
  )
}

function escapeCharacter(character: string): string {
  const code = character.codePointAt(0) ?? 0
  return code < 256 ? `\\x${code.toString(16).padStart(2, '0')}` : `\\u{${code.toString(16)}}`
}

function isAscii(path: RawPath): boolean {
  for (let i = 0; i < path.length; i++) if (path.charCodeAt(i) > 127) return false
  return true
}

/** Catalog order: by components, so `/` sorts below every other byte (docs/format.md §1). */
export function comparePaths(a: RawPath, b: RawPath): number {
  const length = Math.min(a.length, b.length)
  for (let i = 0; i < length; i++) {
    const left = a.charCodeAt(i)
    const right = b.charCodeAt(i)
    if (left !== right) return (left === 47 ? -1 : left) - (right === 47 ? -1 : right)
  }
  return a.length - b.length
}

/**
 * Whether `path` is `directory` or lies below it, by components: `data/pro` does not hold
 * `data/projects`.
 */
export function isWithin({ path, directory }: { path: RawPath; directory: RawPath }): boolean {
  if (directory === '') return true
  return path === directory || path.startsWith(`${directory}/`)
}

/** The directory part, without a trailing slash; empty at the top. */
export function parentOf(path: RawPath): RawPath {
  return path.slice(0, Math.max(0, path.lastIndexOf('/')))
}

/** The last component. */
export function baseOf(path: RawPath): RawPath {
  return path.slice(path.lastIndexOf('/') + 1)
}

/** How many paths listedPaths names. */
const LISTED_PATHS = 5

/** The first few of some paths as text, and how many more there are. */
export function listedPaths(paths: readonly RawPath[]): string {
  const shown = paths.slice(0, LISTED_PATHS).map(displayPath).join(', ')
  const more = paths.length - LISTED_PATHS
  return more > 0 ? `${shown} and ${more} more` : shown
}
