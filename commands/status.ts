// `backup status`: how every set, target and drive stands, what is wrong, and what to do about it.
//
// lib/work/status.ts knows; status-text.ts words it. Touches no target and changes nothing but the
// file of --prometheus. With --json one object, described by config/status.schema.json. Exit 0 when
// all is well, 13 when what was exported is damaged, 3 for everything else that needs somebody.
// Throws what loading the configuration throws, STAGING_FAILED, WRITE_FAILED and USAGE.

import { resolve } from 'node:path'
import { BackupError, type ExitCode } from '../lib/errors.ts'
import type { ProblemCode, StatusDocument } from '../lib/model/status-document.ts'
import { readStatus, writeMetricsFile } from '../lib/work/status.ts'
import { chosenSets } from './chosen.ts'
import { type Command, type CommandContext, isGiven, textOption, textOptions } from './command.ts'
import { tellFleet } from './status-fleet.ts'
import { scoreLines, standingLines, verdictLines } from './status-text.ts'

const SCORE_PROBLEMS: readonly ProblemCode[] = ['SCORE_LOW', 'SCORE_DROPPED']

export const command: Command = {
  name: 'backup status',
  summary: 'how every set and target stands, what is wrong and what to do',
  usage: `Usage: backup status [--set NAME…] [--json]
       backup status --score [--json]
       backup status --prometheus FILE
       backup status --fleet [--target NAME] [--identity FILE [--passphrase-file FILE]]

Shows what is wrong and what to do about it; then for each set its newest collection, and for each
target and drive the exports and proofs: when each was last good, when it is due next; then the
last runs. Reads staging only: no target has to be there. Every proof names its receipt. With -q
only what is wrong, so that cron mails nothing when all is well.

  --score         only the 3-2-1 score: how many copies, media and off-site copies there are by the
                  evidence of exports and receipts, and what would raise it. Exit code 3 where it
                  is lower than \`score\` of the configuration, or without one, than it was before
  --fleet         instead, every machine that exports to the same targets, by the signed records
                  that they leave there; this does reach out to the targets
  --target NAME   of --fleet: only this target
  --identity FILE of --fleet: the identity, which names the signing keys to trust
  --set NAME      only this set (again for more; default: all)
  --prometheus FILE  also write it as numbers, for the textfile collector of Prometheus
  --json          one object, described by config/status.schema.json

Exit code 0: all is well. 3: a last run was not good, a good one is late by more than two
periods, a set that has a schedule was never collected, a drive was away for too long, space is
low, a receipt is not ours, nobody can be told, or the 3-2-1 score is too low. 13: a drill or
verification found damage, and no verification has been good since.
`,
  options: {
    set: { type: 'string', multiple: true },
    prometheus: { type: 'string' },
    score: { type: 'boolean' },
    fleet: { type: 'boolean' },
    target: { type: 'string' },
    identity: { type: 'string' },
    'passphrase-file': { type: 'string' },
  },
  run: async (context) => {
    const { values, reporter } = context
    if (isGiven(values, 'fleet')) return await tellFleet(context)
    for (const name of ['target', 'identity', 'passphrase-file']) {
      if (textOption(values, name) === undefined) continue
      throw new BackupError('USAGE', `--${name} goes with --fleet`)
    }
    const configuration = await context.loadConfiguration()
    const names = textOptions(values, 'set')
    const file = textOption(values, 'prometheus')
    if (file !== undefined && names.length > 0) {
      throw new BackupError('USAGE', '--prometheus and --set do not go together', {
        hint: 'the file would lack the other sets, and alarms on them would go quiet',
      })
    }
    if (isGiven(values, 'score') && (names.length > 0 || file !== undefined)) {
      throw new BackupError('USAGE', '--score goes with neither --set nor --prometheus', {
        hint: 'it is of everything that is configured, and the file has it already',
      })
    }
    const sets = chosenSets(configuration, names)
    const document = await readStatus({ configuration, sets, nowMs: context.now() })
    if (isGiven(values, 'score')) return tellScore(context, document)
    // For -q, which is for cron, there is only something to say when something is wrong.
    const say = document.verdict === 'good' ? reporter.tell : reporter.print
    for (const line of verdictLines(document)) say(line)
    for (const line of standingLines(document)) reporter.tell(line)
    reporter.report({ kind: 'result', command: command.name, ...document })
    if (file !== undefined && !isGiven(values, 'dry-run')) {
      writeMetricsFile(resolve(file), document)
    }
    return document.exitCode
  },
}

function tellScore({ reporter }: CommandContext, document: StatusDocument): ExitCode {
  const isLow = document.problems.some(({ code }) => SCORE_PROBLEMS.includes(code))
  const say = isLow ? reporter.print : reporter.tell
  for (const line of scoreLines(document)) say(line)
  const exitCode = isLow ? 3 : 0
  const { score } = document
  reporter.report({ kind: 'result', command: command.name, exitCode, score })
  return exitCode
}
