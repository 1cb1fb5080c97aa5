// `backup status`: how every set and target stands, from staging and the history of runs alone.
//
// Touches no target and changes nothing; lib/work/due.ts judges. Exit 0, or 3 when something is not
// as it should be: the last run of a phase was not good, a good one is late by more than two
// periods, or a set that has a schedule has no good collection. Throws what loading the
// configuration throws, STAGING_FAILED, and USAGE.

import { statfsSync } from 'node:fs'
import { type ExitCode, systemCode, worstExitCode } from '../lib/errors.ts'
import type { Configuration, SetConfiguration, TargetConfiguration } from '../lib/machine/config.ts'
import { formatSize } from '../lib/model/amount.ts'
import type { CollectionHeader } from '../lib/model/collection.ts'
import { formatLocalTime } from '../lib/model/schedule.ts'
import {
  type Decision,
  judgeStanding,
  type Known,
  planDue,
  readKnown,
  type Standing,
} from '../lib/work/due.ts'
import { outcomeOf, type RunRecord } from '../lib/work/history.ts'
import { stagingError } from '../lib/work/staging.ts'
import { chosenSets } from './chosen.ts'
import { type Command, type CommandContext, textOptions } from './command.ts'
import { safeText } from './voice.ts'

/** How many of the last runs, and of the last that were not good, are shown. */
const RUNS_SHOWN = 5

const HOUR_MS = 3_600_000

export const command: Command = {
  name: 'backup status',
  summary: 'how every set and target stands, and what is due next',
  usage: `Usage: backup status [--set NAME…]

Shows the newest collection of each set, when each phase was last good and is due next, the free
space of staging, and the last runs. Reads staging only: no target has to be there. Exit code 3
when the last run of a phase was not good, when a good one is late by more than two periods, or
when a set that has a schedule has no good collection.

  --set NAME      only this set (again for more; default: all)
`,
  options: { set: { type: 'string', multiple: true } },
  run: async (context) => {
    const configuration = await context.loadConfiguration()
    const sets = chosenSets(configuration, textOptions(context.values, 'set'))
    const { staging, targets } = configuration
    const known = readKnown({ staging, sets })
    const nowMs = context.now()
    const power = { onBattery: false, metered: false }
    const decisions = planDue({ sets, targets, known, nowMs, power, force: false })
    const view = { context, known, nowMs, decisions }
    const codes = sets.map((set) => tellSet(view, { set }))
    codes.push(...targets.map((target) => tellTarget(view, { target, sets })))
    tellStaging(context, configuration)
    const shown = known.history.filter(({ set }) => sets.some(({ name }) => name === set))
    tellRuns(context, { title: 'last runs', runs: shown })
    const failures = shown.filter(({ outcome }) => outcome !== 'good')
    tellRuns(context, { title: 'last runs that were not good', runs: failures })
    const exitCode = worstExitCode(codes)
    context.reporter.report({
      kind: 'result',
      command: command.name,
      staging: { path: staging, ...spaceOf(staging) },
      lastRuns: shown.slice(-RUNS_SHOWN).map(runFacts),
      lastFailures: failures.slice(-RUNS_SHOWN).map(runFacts),
      exitCode,
    })
    return exitCode
  },
}

interface View {
  readonly context: CommandContext
  readonly known: Known
  readonly nowMs: number
  readonly decisions: readonly Decision[]
}

function tellSet(view: View, { set }: { readonly set: SetConfiguration }): ExitCode {
  const { context, known, decisions } = view
  const collections = known.collections.get(set.name) ?? []
  const newest = collections.at(-1)
  const phases = decisions
    .filter((decision) => decision.set === set.name && decision.target === undefined)
    .map((decision) => ({ decision, standing: standingOf(view, { set, decision }) }))
  context.reporter.print(`set ${set.name}`)
  context.reporter.print(`  newest: ${newest === undefined ? 'none yet' : describe(newest, set)}`)
  for (const { decision, standing } of phases) {
    context.reporter.print(`  ${decision.phase}: ${sentence(view, { decision, standing })}`)
  }
  context.reporter.print(`  keeps: ${retentionSentence(set, collections.length)}`)
  const exitCode = exitCodeOf(phases.map(({ standing }) => standing))
  context.reporter.report({
    kind: 'result',
    command: command.name,
    set: set.name,
    newest: newest === undefined ? undefined : collectionFacts(newest),
    collections: collections.length,
    phases: phases.map(standingFacts),
    retention: set.retention,
    exitCode,
  })
  return exitCode
}

function tellTarget(
  view: View,
  {
    target: { name },
    sets,
  }: { readonly target: TargetConfiguration; readonly sets: readonly SetConfiguration[] },
): ExitCode {
  const { context, decisions } = view
  context.reporter.print(`target ${name}`)
  const exports = sets.flatMap((set) => {
    const decision = decisions.find((item) => item.set === set.name && item.target === name)
    if (decision === undefined) return []
    const standing = standingOf(view, { set, decision })
    context.reporter.print(`  ${set.name}: ${sentence(view, { decision, standing })}`)
    return [{ decision, standing }]
  })
  const exitCode = exitCodeOf(exports.map(({ standing }) => standing))
  context.reporter.report({
    kind: 'result',
    command: command.name,
    target: name,
    exports: exports.map((item) => ({ set: item.decision.set, ...standingFacts(item) })),
    exitCode,
  })
  return exitCode
}

function standingOf(
  { known, nowMs }: View,
  { set, decision }: { readonly set: SetConfiguration; readonly decision: Decision },
): Standing {
  const { phase, target } = decision
  return judgeStanding({ set, phase, target, known, nowMs })
}

function exitCodeOf(standings: readonly Standing[]): ExitCode {
  return standings.every(({ healthy }) => healthy) ? 0 : 3
}

/** `2025-04-01T020000Z complete, 12 entries, 1.5 KiB; from a snapshot (btrfs)`. */
function describe(header: CollectionHeader, set: SetConfiguration): string {
  const { stamp, entries, bytes, sources } = header
  const outcome = outcomeOf(header)
  const word = outcome === 'good' ? 'complete' : outcome.toUpperCase()
  const kinds = [...new Set(sources.map(({ snapshot }) => snapshot))]
  const isAtomic = !kinds.includes('none')
  const atomic = `from a snapshot (${kinds.join(', ')})`
  // Whoever chose to have no snapshot need not be told.
  const notAtomic = set.snapshot === 'none' ? 'no snapshot' : 'not atomic: read without a snapshot'
  const what = `${stamp} ${word}, ${entries} entries, ${formatSize(bytes)}`
  return `${what}; ${isAtomic ? atomic : notAtomic}`
}

/** `7 collections (5 are there), 5 exports; and by rule: daily 7, monthly all`. */
function retentionSentence({ retention }: SetConfiguration, count: number): string {
  const { local, external, keep } = retention
  const { withinMs, ...counts } = keep
  const rules = Object.entries(counts).map(([rule, value]) => `${rule} ${value}`)
  if (withinMs !== undefined) rules.push(`within ${Math.round(withinMs / HOUR_MS)} hours`)
  const more = rules.length === 0 ? '' : `; and by rule: ${rules.join(', ')}`
  return `${local} collections (${count} are there), ${external} exports${more}`
}

function sentence(
  { nowMs }: View,
  { decision, standing }: { readonly decision: Decision; readonly standing: Standing },
): string {
  const { due, reason, nextMs } = decision
  const { lastGood, lastOutcome, healthy } = standing
  const good =
    lastGood === undefined
      ? 'never good yet'
      : `last good ${formatLocalTime(lastGood.startMs)} (${age(nowMs - lastGood.startMs)})`
  const last = lastOutcome === undefined || lastOutcome === 'good' ? '' : `, then ${lastOutcome}`
  const isNew = lastGood === undefined && decision.phase === 'collect'
  const isLate = !healthy && last === '' && !isNew ? ', LATE' : ''
  if (due) return `${good}${last}${isLate}; due now`
  const next = nextMs === undefined || nextMs <= nowMs ? reason : `due ${formatLocalTime(nextMs)}`
  return `${good}${last}${isLate}; ${next}`
}

/** `in the future`, `3 minutes ago`, `5 hours ago`, `12 days ago`. */
function age(durationMs: number): string {
  if (durationMs < 0) return 'in the future'
  const minutes = Math.floor(durationMs / 60_000)
  if (minutes < 120) return `${minutes} minutes ago`
  const hours = Math.floor(minutes / 60)
  return hours < 48 ? `${hours} hours ago` : `${Math.floor(hours / 24)} days ago`
}

function tellStaging({ reporter }: CommandContext, { staging }: Configuration): void {
  const space = spaceOf(staging)
  const text =
    space === undefined
      ? 'not there yet'
      : `${formatSize(space.freeBytes)} free of ${formatSize(space.totalBytes)}`
  reporter.print(`staging ${staging}: ${text}`)
}

/** Undefined where there is no staging directory. */
function spaceOf(
  staging: string,
): { readonly freeBytes: number; readonly totalBytes: number } | undefined {
  try {
    const { bavail, blocks, bsize } = statfsSync(staging)
    return { freeBytes: bavail * bsize, totalBytes: blocks * bsize }
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return undefined
    throw stagingError({ error, staging, doing: 'read' })
  }
}

function tellRuns(
  { reporter }: CommandContext,
  { title, runs }: { readonly title: string; readonly runs: readonly RunRecord[] },
): void {
  if (runs.length === 0) return
  reporter.print(title)
  for (const { phase, set, target, startMs, outcome, errorCode, message } of runs
    .slice(-RUNS_SHOWN)
    .reverse()) {
    const what = target === undefined ? `${set}: ${phase}` : `${set} → ${target}: ${phase}`
    const why = errorCode === undefined ? '' : `: ${errorCode}: ${safeText(message ?? '')}`
    reporter.print(`  ${formatLocalTime(startMs)} ${what} ${outcome}${why}`)
  }
}

function collectionFacts(header: CollectionHeader) {
  const { stamp, complete, entries, bytes, sources } = header
  const isAtomic = sources.every(({ snapshot }) => snapshot !== 'none')
  return { stamp, complete, outcome: outcomeOf(header), entries, bytes, isAtomic }
}

function standingFacts({
  decision: { phase, due, reason, nextMs },
  standing: { lastGood, lastOutcome, healthy },
}: {
  readonly decision: Decision
  readonly standing: Standing
}) {
  const lastGoodTime = isoTime(lastGood?.startMs)
  return { phase, lastGood: lastGoodTime, lastOutcome, healthy, due, reason, next: isoTime(nextMs) }
}

function runFacts({ startMs, endMs, ...run }: RunRecord) {
  return { ...run, start: isoTime(startMs), end: isoTime(endMs) }
}

function isoTime(epochMs: number | undefined): string | undefined {
  return epochMs === undefined ? undefined : new Date(epochMs).toISOString()
}
