// RECOVER.txt and recover.sh: what lies beside every repository so that it opens without this
// program.
//
// Their sources are config/RECOVER.txt and config/recover.sh: generic, without secrets, written
// once per repository.

import type { Buffer } from 'node:buffer'
import { readFileSync } from 'node:fs'

export interface RecoveryFile {
  readonly name: string
  readonly bytes: Buffer
}

/** In the order they are written. */
export const RECOVERY_FILES: readonly RecoveryFile[] = ['RECOVER.txt', 'recover.sh'].map(
  (name) => ({
    name,
    // From dist/lib/work/ to the project's own directory.
    bytes: readFileSync(new URL(`../../../config/${name}`, import.meta.url)),
  }),
)
