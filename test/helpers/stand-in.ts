// Programs that stand in for real ones which this machine does not have: small shell scripts that
// come first in PATH. They get no variables of ours, so what they need is written into them.

import { writeFileSync } from 'node:fs'
import { tempDirectory } from './temp-dir.ts'

/** Puts these programs first in PATH for the time of `action`. */
export async function withPrograms(
  programs: Readonly<Record<string, string>>,
  action: () => Promise<void>,
): Promise<void> {
  const path = process.env['PATH']
  const directory = tempDirectory()
  for (const [name, script] of Object.entries(programs)) {
    writeFileSync(`${directory}/${name}`, `#!/bin/sh\n${script}\n`, { mode: 0o755 })
  }
  process.env['PATH'] = `${directory}:${path}`
  try {
    await action()
  } finally {
    process.env['PATH'] = path
  }
}
