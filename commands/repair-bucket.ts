// `backup repair` for a bucket that keeps versions: brings back what was deleted or overwritten.
//
// Plan, show, carry out: lib/work/hidden-objects.ts does it, with the credentials of whoever may
// delete. Ends with 13 as long as something is hidden. Throws NOT_CONFIRMED, TARGET_FAILED where
// the bucket keeps no versions, and what the bucket throws.

import { BackupError, type ExitCode } from '../lib/errors.ts'
import type { Bucket } from '../lib/target/bucket.ts'
import { describeHidden, findHidden, restoreHidden } from '../lib/work/hidden-objects.ts'
import type { Repository } from '../lib/work/repository.ts'
import { type CommandContext, isGiven } from './command.ts'

export async function repairBucket(
  context: CommandContext,
  of: {
    readonly bucket: Bucket
    readonly repository: Repository
    readonly machine: string
    readonly publicKeys: readonly string[]
  },
): Promise<ExitCode> {
  const { bucket, repository, machine, publicKeys } = of
  const { values, reporter, signal } = context
  const { name } = repository.target
  const findings = await findHidden(repository, { machine, publicKeys, signal })
  if (!findings.isKnowable) {
    throw new BackupError('TARGET_FAILED', `target ${name}: ${findings.why}`, {
      hint: 'versions have to be on in the bucket, and allowed to be listed; nothing was changed',
    })
  }
  const { hidden } = findings
  for (const one of hidden) reporter.print(`  ${describeHidden(one)}`)
  for (const one of findings.unjudged) {
    const message = `what ${one} needs is not known: its signed list is gone in every version`
    reporter.report({ kind: 'notice', level: 'warning', code: 'OBJECT_HIDDEN', message })
  }
  const result = { kind: 'result', command: 'backup repair', target: name } as const
  const isDryRun = isGiven(values, 'dry-run')
  const left: ExitCode = findings.unjudged.length > 0 ? 13 : 0
  if (hidden.length === 0) {
    reporter.print(`${name}: nothing is hidden`)
    reporter.report({ ...result, dryRun: isDryRun, hidden: [], restored: 0, exitCode: left })
    return left
  }
  if (isDryRun) {
    reporter.print(`${name}: ${hidden.length} would be brought back`)
    reporter.report({ ...result, dryRun: true, hidden, restored: 0, exitCode: 13 })
    return 13
  }
  const isAgreed =
    isGiven(values, 'yes') || (await context.confirm(`Bring back ${hidden.length} objects?`))
  if (!isAgreed) {
    throw new BackupError('NOT_CONFIRMED', 'bringing them back has to be confirmed', {
      hint: 'give --yes; nothing was changed',
    })
  }
  const { report } = reporter
  const done = await restoreHidden(bucket, hidden, { isDryRun: false, report, signal })
  for (const { error } of done.failed) {
    const hint = error.hint === undefined ? '' : ` (${error.hint})`
    report({ kind: 'notice', level: 'warning', code: error.code, message: error.message + hint })
  }
  reporter.print(`${name}: ${done.restored.length} brought back, ${done.failed.length} not`)
  const exitCode: ExitCode = done.failed.length > 0 ? 13 : left
  reporter.report({ ...result, dryRun: false, hidden, restored: done.restored.length, exitCode })
  return exitCode
}
