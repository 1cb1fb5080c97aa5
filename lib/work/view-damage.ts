// What cannot be shown of a view: said once for each file, and never instead of its bytes.
//
// fuse-view.ts and webdav.ts turn every failure into an error of their protocol, and have it told
// here, for there only its number arrives. Throws what is no failure of the world, but a bug.

import { BackupError, systemCode } from '../errors.ts'
import { type RawPath, displayPath, pathFacts } from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'

/** Of so many different failures at most each is said. */
const MAX_TOLD = 10_000

/** Tells a failure to show a path. @throws the error itself where it is a bug */
export type TellDamage = (path: RawPath, error: unknown) => void

export function damageTeller(report: Report): TellDamage {
  const told = new Set<string>()
  return (path, error) => {
    const code = error instanceof BackupError ? error.code : systemCode(error)
    if (code === undefined) throw error
    if (code === 'INTERRUPTED' || told.size > MAX_TOLD) return
    const shown = displayPath(path)
    const why = error instanceof BackupError ? error.message : `it cannot be read (${code})`
    const hint = error instanceof BackupError && error.hint !== undefined ? ` (${error.hint})` : ''
    const message = `${shown}: ${why}${hint}; nothing of it is shown`
    if (told.has(message)) return
    told.add(message)
    report({ kind: 'notice', level: 'warning', code, message, facts: pathFacts(path) })
  }
}
