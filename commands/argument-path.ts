// A path of the command line as the bytes that were typed.
//
// Node decodes arguments as UTF-8, and what is none comes out as U+FFFD; the system still has the
// bytes. Elsewhere than on Linux such a path cannot be named. Throws nothing.

import { Buffer } from 'node:buffer'
import { readFileSync } from 'node:fs'
import { posix } from 'node:path'
import { type RawPath, rawPathFromText } from '../lib/model/raw-path.ts'

/** Absolute: an argument, beside the working directory where it is relative. */
export function argumentPath(text: string, workingDirectory: string): RawPath {
  return posix.resolve(rawPathFromText(workingDirectory), argumentBytes(text))
}

/** The bytes of an argument, or of what stands behind its `=`. */
export function argumentBytes(text: string): RawPath {
  if (!text.includes('\uFFFD')) return rawPathFromText(text)
  return (rawArguments ??= readRawArguments()).get(text) ?? rawPathFromText(text)
}

let rawArguments: ReadonlyMap<string, RawPath> | undefined

/** By what Node makes of them; two that look alike cannot be told apart, and count as text. */
function readRawArguments(): ReadonlyMap<string, RawPath> {
  const found = new Map<string, RawPath>()
  const doubtful = new Set<string>()
  for (const argument of readCommandLine().split('\0')) {
    for (const raw of [argument, argument.slice(argument.indexOf('=') + 1)]) {
      const text = Buffer.from(raw, 'latin1').toString('utf8')
      const known = found.get(text)
      if (known !== undefined && known !== raw) doubtful.add(text)
      found.set(text, raw)
    }
  }
  for (const text of doubtful) found.delete(text)
  return found
}

function readCommandLine(): RawPath {
  try {
    return readFileSync('/proc/self/cmdline', 'latin1')
  } catch {
    return ''
  }
}
