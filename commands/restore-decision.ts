// The decision before a restore: the plan is shown, what differs is asked about, and restoring to
// the original place or deleting is confirmed.
//
// Called by restore-run.ts with each plan. Throws NOT_CONFIRMED, USAGE for what cannot be printed.

import { BackupError } from '../lib/errors.ts'
import { displayPath } from '../lib/model/raw-path.ts'
import type { ExportPlace } from '../lib/work/repository.ts'
import {
  countPlan,
  type PlannedEntry,
  type PlanOptions,
  type RestorePlan,
  withAnswers,
} from '../lib/work/restore-plan.ts'
import { inspectSources, ownPlaces } from '../lib/work/sources.ts'
import { ruleReader } from '../lib/work/why.ts'
import type { RestoreJob } from './restore-place.ts'
import { planLines } from './restore-telling.ts'

/**
 * In the original place, what the set leaves out now: that a generation does not have it says
 * nothing.
 */
export function leftOut(
  { words, configuration }: RestoreJob,
  place: ExportPlace,
): PlanOptions['isLeftOut'] {
  const set = configuration.backupSets.find(({ name }) => name === place.set)
  const isOwn = words.machine === undefined || words.machine === configuration.machine
  if (!words.deletes || words.into !== undefined || set === undefined || !isOwn) return undefined
  const places = ownPlaces(configuration)
  const sources = inspectSources({ texts: set.sources, staging: places[0] ?? '' })
  const takes = ruleReader(set, { sources, places })
  return (path, isDirectory) => !takes(`/${path}`, isDirectory)
}

/** @throws BackupError NOT_CONFIRMED */
export async function decide(
  { context, words }: RestoreJob,
  { plan, place }: { readonly plan: RestorePlan; readonly place: ExportPlace },
): Promise<RestorePlan> {
  const { reporter } = context
  if (words.prints) checkPrintable(plan)
  const answered = words.overwrite === 'ask' ? await askEach(context, plan) : plan
  const lines = planLines(answered, place)
  if (words.dryRun) {
    for (const line of lines) reporter.print(line)
    return answered
  }
  const { deleted } = countPlan(answered)
  if (words.yes || (words.into !== undefined && deleted === 0)) return answered
  for (const line of lines) reporter.tell(line)
  const where = words.into === undefined ? 'to the original place' : `into ${words.into}`
  const question = deleted > 0 ? `Restore ${where}, and delete ${deleted}?` : `Restore ${where}?`
  if (await context.confirm(question)) return answered
  const what = deleted > 0 ? 'deleting' : 'restoring to the original place'
  throw new BackupError('NOT_CONFIRMED', `${what} has to be confirmed`, {
    hint: 'give --yes, or --into DIR to restore elsewhere; nothing was changed',
  })
}

/** @throws BackupError USAGE for what is not one file */
function checkPrintable({ items, directories }: RestorePlan): void {
  const [entry] = directories.length > 0 ? directories : items.map((item) => item.entry)
  if (entry === undefined || entry.type === 'file') return
  const what = entry.type === 'symlink' ? 'a symbolic link' : `a ${entry.type}`
  throw new BackupError('USAGE', `${displayPath(entry.path)} is ${what}, and no file`, {
    hint: '--stdout prints one file; restore the rest with --into DIR; nothing was restored',
  })
}

/** How often somebody is asked who answers something else. */
const TRIES = 3

/** What differs, at a terminal: none, older, newer, all, or each for itself. */
async function askEach(context: RestoreJob['context'], plan: RestorePlan): Promise<RestorePlan> {
  const differing = plan.items.filter(({ verdict }) => verdict === 'keep')
  if (differing.length === 0 || !context.hasTerminal) return plan
  const older = differing.filter(({ age }) => age === 'older').length
  const newer = differing.filter(({ age }) => age === 'newer').length
  const question =
    `${differing.length} are there and differ (${older} older, ${newer} newer). `
    + 'Replace [n]one, [o]lder, ne[w]er, [a]ll, or ask for [e]ach?'
  let answer = ''
  for (let tries = 0; tries < TRIES; tries++) {
    answer = (await context.ask(question)).trim().toLowerCase().slice(0, 1)
    if ('nowae'.includes(answer)) break
  }
  const byAge = (wanted: string) => (item: PlannedEntry) => item.age === wanted
  switch (answer) {
    case 'o':
      return withAnswers(plan, byAge('older'))
    case 'w':
      return withAnswers(plan, byAge('newer'))
    case 'a':
      return withAnswers(plan, () => true)
    case 'e': {
      const replaced = new Set<PlannedEntry>()
      for (const item of differing) {
        const age = item.age === 'even' ? 'of the same time' : item.age
        const path = displayPath(item.entry.path)
        if (await context.confirm(`Replace /${path}, which is ${age}?`)) replaced.add(item)
      }
      return withAnswers(plan, (item) => replaced.has(item))
    }
    default:
      return plan
  }
}
