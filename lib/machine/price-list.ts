// Reads a price list: config/prices.yaml, or the user's own in the same form.
//
// lib/model/prices.ts says what the form is and computes nothing; this file knows the lines. Called
// once by every command that estimates. Throws CONFIG_INVALID with file, line and column.

import { readFile, stat } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { BackupError, systemCode } from '../errors.ts'
import { parsePrices, type PriceList } from '../model/prices.ts'
import { displayText } from '../model/raw-path.ts'
import { invalid, parseText, positionOf, resolveAliases } from './config-document.ts'
import { formatConfigPath } from './config-errors.ts'

/** From dist/lib/machine/ to the project's own directory. */
const PRICES_FILE = fileURLToPath(new URL('../../../config/prices.yaml', import.meta.url))

/** Ours is a hundredth of it; more is some other file. */
const MAX_PRICES_BYTES = 1024 * 1024

const HINT = 'docs/costs.md shows the form; nothing was sent'

/**
 * The list at `path` (absolute), which replaces ours; ours where there is no path.
 * @throws BackupError CONFIG_INVALID
 */
export async function loadPriceList({
  path = PRICES_FILE,
}: { readonly path?: string | undefined } = {}): Promise<PriceList> {
  return parsePriceList({ path, text: await readText(path) })
}

/** The list in `text`, which is the content of the file at `path`. */
export function parsePriceList({ path, text }: { path: string; text: string }): PriceList {
  const place = parseText({ path, text })
  return parsePrices(resolveAliases(place.document, path), (problem) => {
    const where = formatConfigPath(problem.path)
    const message = where === '' ? problem.message : `${where}: ${problem.message}`
    throw invalid({ path, ...positionOf(problem.path, place), message, hint: HINT })
  })
}

async function readText(path: string): Promise<string> {
  const bytes = await readBytes(path)
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch (error) {
    throw new BackupError('CONFIG_INVALID', `the price list "${displayText(path)}" is not UTF-8`, {
      hint: HINT,
      cause: error,
    })
  }
}

async function readBytes(path: string): Promise<Uint8Array> {
  const name = displayText(path)
  try {
    const { size } = await stat(path)
    if (size <= MAX_PRICES_BYTES) return await readFile(path)
  } catch (error) {
    const message = `the price list "${name}" cannot be read (${systemCode(error)})`
    throw new BackupError('CONFIG_INVALID', message, {
      hint: 'correct or remove `prices` of the target; nothing was sent',
      cause: error,
    })
  }
  throw new BackupError('CONFIG_INVALID', `the price list "${name}" is larger than 1 MiB`, {
    hint: HINT,
  })
}
