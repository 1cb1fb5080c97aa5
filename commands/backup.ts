// `backup`: collect, then export; each set and target with its own outcome, the exit code the worst
// of them.
//
// An absent target is said and is no failure of the collection (exit 75: try later). What fails in
// the first phase does not keep the second from exporting what there is.

import { worstExitCode } from '../lib/errors.ts'
import { checkRecipients } from '../lib/work/external.ts'
import { collectSets } from './backup-collect.ts'
import { exportSets } from './backup-external.ts'
import { chosenSets, chosenTargets } from './chosen.ts'
import { type Command, textOptions } from './command.ts'

export const command: Command = {
  name: 'backup',
  summary: 'both phases: collect, then export',
  usage: `Usage: backup [--set NAME…] [--target NAME…] [--dry-run]
       backup COMMAND …

Collects every set into staging, then exports the newest collections to every target that is
there. A target that is not there is said, and is no failure of the collection (exit 75).

  --set NAME      only this set (again for more; default: all)
  --target NAME   only this target (again for more; default: all)
  --dry-run       what would be collected and exported

backup help lists the commands.
`,
  options: { set: { type: 'string', multiple: true }, target: { type: 'string', multiple: true } },
  run: async (context) => {
    const configuration = await context.loadConfiguration()
    const sets = chosenSets(configuration, textOptions(context.values, 'set'))
    const targets = chosenTargets(configuration, textOptions(context.values, 'target'))
    if (targets.length > 0) checkRecipients(configuration)
    const collected = await collectSets(context, { configuration, sets, command: command.name })
    if (targets.length === 0) {
      context.reporter.report({
        kind: 'notice',
        level: 'warning',
        code: 'NO_TARGETS',
        message: 'no targets are configured: nothing was exported, staging is the only copy',
      })
      return collected
    }
    const exported = await exportSets(context, {
      configuration,
      targets,
      sets,
      command: command.name,
      absentCode: 75,
    })
    return worstExitCode([collected, exported])
  },
}
