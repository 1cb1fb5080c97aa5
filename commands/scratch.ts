// A private directory among the temporary files, for what a command needs while it runs.
//
// Whoever makes one removes it in `finally`. Beside lib/work/doctor-restore.ts, which makes its own
// in staging where there is one. Throws WRITE_FAILED where nothing can be made there.

import { mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { BackupError, systemCode } from '../lib/errors.ts'

/** Only its owner can look into it. @throws BackupError WRITE_FAILED */
export function makeScratch(name: string): string {
  const place = tmpdir()
  try {
    return mkdtempSync(join(place, `backup-${name}-`))
  } catch (cause) {
    const code = systemCode(cause)
    if (code === undefined) throw cause
    throw new BackupError('WRITE_FAILED', `no directory can be made in ${place} (${code})`, {
      hint: 'name another place for temporary files with TMPDIR; nothing was changed',
      cause,
    })
  }
}
