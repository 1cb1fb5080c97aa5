// `backup lock`: keeps a generation from going, in staging and on every target.
//
// lib/work/marks.ts keeps the locks, and retention asks it; `backup tag` names generations and
// protects nothing. Throws USAGE, NOTHING_FOUND, MARKS_DAMAGED, LOCKED and what loading the
// configuration throws.

import { BackupError } from '../lib/errors.ts'
import type { ExitCode } from '../lib/errors.ts'
import { pickExports } from '../lib/work/find-exports.ts'
import {
  changeMarks,
  findGeneration,
  type LockMark,
  readMarks,
  withLock,
  withoutLock,
} from '../lib/work/marks.ts'
import { chosenSets } from './chosen.ts'
import { type Command, type CommandContext, isGiven, textOption } from './command.ts'

/** A line for people, not a document. */
const MAX_REASON_LENGTH = 1000

export const command: Command = {
  name: 'backup lock',
  summary: 'keep a generation from going, or list what is kept so',
  usage: `Usage: backup lock
       backup lock SET STAMP [--reason TEXT]
       backup lock SET STAMP --off

Without words lists the locks. With a set and a stamp locks that generation: the collection in
staging and its exports on every target stay, whatever the rules say, until the lock is off.
STAMP is latest, or as much of the stamp as fits only one generation: 2025-04-01.

  --reason TEXT   why, for whoever reads the list
  --off           take the lock away; nothing is removed before the next run
`,
  positionals: true,
  options: { reason: { type: 'string' }, off: { type: 'boolean' } },
  run: async (context) => {
    const { positionals, values } = context
    const [set, date, ...rest] = positionals
    const isOff = isGiven(values, 'off')
    if (set === undefined && !isOff) return await listLocks(context)
    if (set === undefined || date === undefined || rest.length > 0) {
      throw new BackupError('USAGE', 'lock takes a set and a stamp, or no word at all', {
        hint: 'see `backup lock --help`',
      })
    }
    return isOff ? await unlock(context, { set, date }) : await lock(context, { set, date })
  },
}

async function listLocks({ loadConfiguration, reporter }: CommandContext): Promise<ExitCode> {
  const { locks } = readMarks((await loadConfiguration()).staging)
  if (locks.length === 0) reporter.print('nothing is locked')
  for (const { set, stamp, reason } of locks) {
    reporter.print(`${set}  ${stamp}${reason === undefined ? '' : `  ${reason}`}`)
  }
  reporter.report({ kind: 'result', command: command.name, outcome: 'listed', locks })
  return 0
}

async function lock(
  { values, loadConfiguration, reporter }: CommandContext,
  named: { readonly set: string; readonly date: string },
): Promise<ExitCode> {
  const reason = textOption(values, 'reason')
  checkReason(reason)
  const dryRun = isGiven(values, 'dry-run')
  const configuration = await loadConfiguration()
  chosenSets(configuration, [named.set])
  const { set, stamp } = await findGeneration(configuration, named)
  const mark: LockMark = { set, stamp, reason }
  if (!dryRun) changeMarks(configuration.staging, (marks) => withLock(marks, mark))
  // Only now: a run may have let it go while it was looked for.
  const { places } = await findGeneration(configuration, { set, date: stamp })
  if (places.length === 0) {
    const message = `${set} ${stamp} is neither in staging nor on a target that is here now`
    reporter.report({ kind: 'notice', level: 'warning', code: 'NOT_SEEN', message })
  }
  const where = places.length === 0 ? '' : ` (now in: ${places.join(', ')})`
  const done = dryRun ? 'would be locked' : 'is locked'
  reporter.tell(`${set} ${stamp} ${done}: it stays in staging and on every target${where}`)
  const facts = { outcome: 'locked', dryRun, ...mark, places }
  reporter.report({ kind: 'result', command: command.name, ...facts })
  return 0
}

async function unlock(
  { values, loadConfiguration, reporter }: CommandContext,
  { set, date }: { readonly set: string; readonly date: string },
): Promise<ExitCode> {
  if (textOption(values, 'reason') !== undefined) {
    throw new BackupError('USAGE', '--reason and --off do not go together')
  }
  const dryRun = isGiven(values, 'dry-run')
  const configuration = await loadConfiguration()
  const { staging } = configuration
  const locks = readMarks(staging).locks.filter((mark) => mark.set === set)
  if (locks.length === 0) throw new BackupError('NOTHING_FOUND', `nothing of ${set} is locked`)
  // `latest` is the newest there is, locked or not.
  const meant =
    date === 'latest' ? (await findGeneration(configuration, { set, date })).stamp : date
  const found = locks.filter(({ stamp }) => date !== 'latest' || stamp === meant)
  if (found.length === 0) throw new BackupError('NOTHING_FOUND', `${set} ${meant} is not locked`)
  for (const mark of pickExports(found, meant)) {
    if (!dryRun) changeMarks(staging, (marks) => withoutLock(marks, mark))
    const done = dryRun ? 'would not be locked any more' : 'is not locked any more'
    reporter.tell(`${set} ${mark.stamp} ${done}: it goes when the rules let it go`)
    const facts = { outcome: 'unlocked', dryRun, set, stamp: mark.stamp }
    reporter.report({ kind: 'result', command: command.name, ...facts })
  }
  return 0
}

function checkReason(reason = ''): void {
  if (reason.length <= MAX_REASON_LENGTH && !/[\u0000-\u001f\u007f]/.test(reason)) return
  throw new BackupError('USAGE', `a reason is one line of at most ${MAX_REASON_LENGTH} characters`)
}
