// A scratch directory of a test file's own, removed when the process ends.

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** A new empty directory, absolute, without symbolic links in its path. */
export function tempDirectory(): string {
  const directory = mkdtempSync(join(tmpdir(), 'backup-test-'))
  process.once('exit', () => rmSync(directory, { recursive: true, force: true }))
  return directory
}
