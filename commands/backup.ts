// `backup`: what is due by the schedule, collecting first, then exporting; made to be called every
// few minutes. Each set and target has its own outcome, and the exit code is the worst of them.
//
// lib/work/due.ts plans. An absent target is said and is no failure of the collection (exit 75: try
// later). What fails in the first phase does not keep the second from exporting what there is. With
// nothing due it is silent, because cron mails every line. Throws what loading the configuration
// throws, and USAGE.

import { type ExitCode, worstExitCode } from '../lib/errors.ts'
import type { Configuration, SetConfiguration, TargetConfiguration } from '../lib/machine/config.ts'
import { type Power, readPower } from '../lib/machine/power.ts'
import { isFrozen } from '../lib/model/collection.ts'
import { displayText } from '../lib/model/raw-path.ts'
import { formatLocalTime } from '../lib/model/schedule.ts'
import { type Decision, planCollects, planDue, planExports, readKnown } from '../lib/work/due.ts'
import { checkRecipients } from '../lib/work/external.ts'
import { drivesAt, pluggedDrives, type PluggedTarget } from '../lib/work/presence.ts'
import { surveyCollections } from '../lib/work/staging.ts'
import { collectSets } from './backup-collect.ts'
import { exportSets } from './backup-external.ts'
import { chosenSets, chosenTargets } from './chosen.ts'
import { tellDoubts } from './outcomes.ts'
import { withRunLock } from './run-lock.ts'
import { type Command, type CommandContext, isGiven, textOption, textOptions } from './command.ts'
import { emptyLedger, type RunLedger } from './run-history.ts'
import { withTelling } from './run-telling.ts'

export const command: Command = {
  name: 'backup',
  summary: 'what is due by the schedule: collect, then export',
  usage: `Usage: backup [--set NAME…] [--target NAME…] [--force] [--dry-run]
       backup --plugged-in DEVICE
       backup COMMAND …

Does what is due by each set's schedule, counted from its last good run: collects into staging,
then exports the newest collections to the targets that are there. Call it as often as you like,
from cron or a timer; with nothing due it says nothing. A target that is not there is said, and
is no failure of the collection (exit 75).

  --set NAME      only this set (again for more; default: all)
  --target NAME   only this target (again for more; default: all)
  --force         collect and export now, whatever the schedule says
  --plugged-in DEVICE
                  a drive was just plugged in: collect what is due, then export to it what it
                  does not have; waits for a run that is under way. DEVICE is its device, or any
                  for whichever drives are there. Of a drive that is not configured: nothing
  --dry-run       what is due and why, when the rest will be, and what rsync would copy

backup help lists the commands.
`,
  options: {
    set: { type: 'string', multiple: true },
    target: { type: 'string', multiple: true },
    force: { type: 'boolean' },
    'plugged-in': { type: 'string' },
  },
  run: async (context) => {
    const configuration = await context.loadConfiguration()
    const sets = chosenSets(configuration, textOptions(context.values, 'set'))
    const named = textOptions(context.values, 'target')
    const chosen = chosenTargets(configuration, named)
    const device = textOption(context.values, 'plugged-in')
    const pluggedIn = await pluggedInAt(context, { device, configuration })
    if (pluggedIn?.length === 0) return tellNotOurs(context, device ?? '')
    const names = pluggedIn?.map(({ target }) => target.name)
    const targets = chosen.filter(({ name }) => names === undefined || names.includes(name))
    if (targets.length > 0) checkRecipients(configuration)
    const ledger = emptyLedger()
    const isFirst = configuration.exportTo === 'first' && named.length === 0
    const onlyFirst = isFirst && pluggedIn === undefined
    const nowMs = context.now()
    const work = { configuration, sets, targets, pluggedIn, onlyFirst, nowMs, ledger }
    if (isGiven(context.values, 'dry-run')) return await preview(context, work)
    const run = { configuration, command: command.name, isPatient: pluggedIn !== undefined }
    return await withTelling(context, { ...run, ledger }, async () => {
      return await withRunLock(context, run, async () => await runDue(context, work))
    })
  },
}

/** Nobody watches what a service prints: that a drive cannot be told from another is told, too. */
async function pluggedInAt(
  context: CommandContext,
  {
    device,
    configuration,
  }: { readonly device: string | undefined; readonly configuration: Configuration },
): Promise<readonly PluggedTarget[] | undefined> {
  if (device === undefined) return undefined
  try {
    return await drivesAt(device, { configuration })
  } catch (error) {
    await withTelling(context, { configuration, command: command.name }, async () => {
      throw error
    })
    throw error
  }
}

/** A drive that is none of ours: whoever plugged it in did not mean us. */
function tellNotOurs({ reporter }: CommandContext, device: string): ExitCode {
  if (device !== 'any') {
    const message = `${displayText(device)} is no drive of the configuration (see backup drives)`
    reporter.report({ kind: 'notice', level: 'info', code: 'NOT_OURS', message })
  }
  reporter.report({ kind: 'result', command: command.name, outcome: 'nothing due', exitCode: 75 })
  return 75
}

async function runDue(context: CommandContext, work: Work): Promise<ExitCode> {
  const collects = planCollects(await planOptions(context, work)).filter(({ due }) => due)
  const codes = [await collectDue(context, { ...work, collects })]
  // By now there may be new collections, and the power cable may be out.
  const { targets, ...options } = await planOptions(context, work)
  const exports = planExports({ ...options, targets, collecting: new Set() })
  const due = exports.filter((decision) => decision.due)
  codes.push(...(await exportDue(context, { ...work, exports: due })))
  if (collects.length === 0 && due.length === 0) tellNothingDue(context, exports)
  codes.push(tellFrozen(context, work, { told: collects.map(({ set }) => set) }))
  return worstExitCode(codes)
}

/** A suspect collection is said at every run until somebody looked at it. */
function tellFrozen(
  { reporter }: CommandContext,
  { configuration: { staging }, sets }: Work,
  { told }: { told: readonly string[] },
): ExitCode {
  const codes: ExitCode[] = [0]
  for (const { name: set } of sets.filter(({ name }) => !told.includes(name))) {
    const newest = surveyCollections({ staging, set }).collections.at(-1)
    if (newest === undefined || !isFrozen(newest)) continue
    tellDoubts({ stamp: newest.stamp, doubts: newest.suspect }, { where: set, set, reporter })
    codes.push(3)
  }
  return worstExitCode(codes)
}

interface Work {
  readonly configuration: Configuration
  readonly sets: readonly SetConfiguration[]
  readonly targets: readonly TargetConfiguration[]
  /** Where a drive was just plugged in: which. */
  readonly pluggedIn: readonly PluggedTarget[] | undefined
  /** Whether only the first target that is there gets the exports. */
  readonly onlyFirst: boolean
  /** When the command began: what all that is done now is dated with. */
  readonly nowMs: number
  readonly ledger: RunLedger
}

async function planOptions(context: CommandContext, work: Work) {
  const { configuration, pluggedIn, onlyFirst, ...options } = work
  const { staging } = configuration
  return {
    ...options,
    plugged: new Map([
      ...(await pluggedDrives(work.targets, configuration)),
      ...(pluggedIn ?? []).map(({ target, drive }) => [target.name, drive] as const),
    ]),
    isPluggedIn: pluggedIn !== undefined,
    anyTarget: onlyFirst,
    known: readKnown({ staging, sets: work.sets }),
    power: await powerFor(work.sets, context.signal),
    force: isGiven(context.values, 'force'),
  }
}

/** Asked only where the answer counts. */
async function powerFor(sets: readonly SetConfiguration[], signal: AbortSignal): Promise<Power> {
  const counts = sets.some(({ schedule }) => {
    return schedule.onBattery === 'skip' || schedule.onMetered === 'skip'
  })
  if (!counts) return { onBattery: false, metered: false }
  return await readPower({ platform: process.platform, sysfs: '/sys', signal })
}

async function collectDue(
  context: CommandContext,
  {
    configuration,
    sets,
    targets,
    nowMs,
    ledger,
    collects,
  }: Work & { collects: readonly Decision[] },
): Promise<ExitCode> {
  if (collects.length === 0) return 0
  tellDue(context, collects)
  const due = new Set(collects.map(({ set }) => set))
  const exitCode = await collectSets(context, {
    configuration,
    sets: sets.filter(({ name }) => due.has(name)),
    fullSets: collects.filter(({ phase }) => phase === 'full').map(({ set }) => set),
    startMs: nowMs,
    command: command.name,
    ledger,
  })
  if (targets.length === 0) {
    context.reporter.report({
      kind: 'notice',
      level: 'warning',
      code: 'NO_TARGETS',
      message: 'no targets are configured: nothing was exported, staging is the only copy',
    })
  }
  return exitCode
}

async function exportDue(
  context: CommandContext,
  work: Work & { exports: readonly Decision[] },
): Promise<readonly ExitCode[]> {
  const { configuration, sets, targets, pluggedIn, onlyFirst, nowMs, ledger, exports } = work
  tellDue(context, exports)
  const run = { configuration, startMs: nowMs, command: command.name, ledger }
  const exportTo = async (to: readonly TargetConfiguration[]): Promise<ExitCode> => {
    const due = exports.filter(({ target }) => to.some(({ name }) => name === target))
    if (due.length === 0) return 0
    return await exportSets(context, {
      ...run,
      targets: to,
      sets: sets.filter(({ name }) => due.some(({ set }) => set === name)),
      absentCode: 75,
      onlyDrive: pluggedIn?.find(({ target }) => target.name === to[0]?.name)?.drive,
      isPluggedIn: pluggedIn !== undefined,
      isVerifyDue: true,
      isNamed: !onlyFirst,
    })
  }
  if (onlyFirst) return [await exportTo(targets)]
  const codes: ExitCode[] = []
  for (const target of targets) codes.push(await exportTo([target]))
  return codes
}

/** Why things are done, with -v; that the clock was set back always. */
function tellDue(context: CommandContext, decisions: readonly Decision[]): void {
  for (const decision of decisions) {
    const message = `${subject(decision)}: due: ${decision.reason}`
    if (decision.clockSetBack) {
      const code = 'CLOCK_SET_BACK'
      context.reporter.report({ kind: 'notice', level: 'warning', code, message })
    } else if (isGiven(context.values, 'verbose')) context.reporter.tell(message)
  }
}

function tellNothingDue(context: CommandContext, exports: readonly Decision[]): void {
  if (isGiven(context.values, 'verbose')) context.reporter.tell('nothing is due')
  const outcome = 'nothing due'
  const waiting = exports.map(({ set, target, reason }) => ({ set, target, reason }))
  context.reporter.report({ kind: 'result', command: command.name, outcome, waiting, exitCode: 0 })
}

/** Says of everything whether it is due and why, and asks rsync what is due to be collected. */
async function preview(context: CommandContext, work: Work): Promise<ExitCode> {
  const decisions = planDue(await planOptions(context, work))
  for (const decision of decisions) {
    const { phase, set, target, due, reason, nextMs } = decision
    const next = nextMs === undefined || nextMs <= work.nowMs ? undefined : formatLocalTime(nextMs)
    const when = next === undefined ? '' : `; due from ${next}`
    const action = due ? 'would run' : 'not due'
    context.reporter.print(`${subject(decision)}: ${action}: ${reason}${when}`)
    context.reporter.report({
      kind: 'result',
      command: command.name,
      dryRun: true,
      phase,
      set,
      target,
      due,
      reason,
      next: nextMs === undefined ? undefined : new Date(nextMs).toISOString(),
    })
  }
  const collects = decisions.filter(({ phase, due }) => due && phase !== 'export')
  return await collectDue(context, { ...work, collects })
}

function subject({ phase, set, target }: Decision): string {
  return target === undefined ? `${set}: ${phase}` : `${set} → ${target}: ${phase}`
}
