// What is due now, of which set and for which target, and how each stands: the plan of `backup` and
// what `backup status` shows.
//
// readKnown looks at the history and at staging; planCollects, planExports and judgeStanding are
// pure. They apply lib/model/schedule.ts: a collection is due by its set alone, an export by its
// set and target, and only when there is a collection that the target does not have yet. Throws
// STAGING_FAILED where staging cannot be read.

import type { SetConfiguration } from '../machine/config.ts'
import type { Power } from '../machine/power.ts'
import type { CollectionHeader } from '../model/collection.ts'
import {
  addPeriods,
  type Frequency,
  judgeDue,
  type PastRun,
  type RunOutcome,
  type Verdict,
} from '../model/schedule.ts'
import { parseStamp } from '../model/stamp.ts'
import { currentHistory } from './drive-history.ts'
import { outcomeOf, type Phase, type RunRecord } from './history.ts'
import { surveyCollections } from './staging.ts'

export interface Known {
  readonly history: readonly RunRecord[]
  /** Oldest first, by set. */
  readonly collections: ReadonlyMap<string, readonly CollectionHeader[]>
}

export interface Decision extends Verdict {
  readonly phase: Phase
  readonly set: string
  /** Of an export. */
  readonly target: string | undefined
}

export interface PlanOptions {
  readonly sets: readonly SetConfiguration[]
  readonly targets: readonly { readonly name: string }[]
  /** Of the targets of kind `drive` whose drive is plugged in: which one, by target. */
  readonly plugged?: ReadonlyMap<string, string>
  /** Whether a drive was just plugged in: it gets what it does not have, whatever the schedule. */
  readonly isPluggedIn?: boolean
  /** Whether an export to any target counts for all: only the first that is there gets them. */
  readonly anyTarget?: boolean
  readonly known: Known
  /** When the command began: see RunRecord.startMs. */
  readonly nowMs: number
  readonly power: Power
  /** Collects and exports whatever the schedule says; contents are compared when that is due. */
  readonly force: boolean
}

/** How one phase of a set, to one target where it is an export, stands. */
export interface Standing {
  readonly phase: Phase
  readonly set: string
  readonly target: string | undefined
  readonly lastGood: PastRun | undefined
  /** Undefined when nothing of it ever ended. */
  readonly lastOutcome: RunOutcome | undefined
  /** Good, or too young to be missed. */
  readonly healthy: boolean
}

/** How many periods something may be late before that is worth an alarm. */
const PERIODS_LATE = 2

/** What is known without touching a target. Reads only. */
export function readKnown({
  staging,
  sets,
}: {
  readonly staging: string
  readonly sets: readonly { readonly name: string }[]
}): Known {
  const collections = sets.map(({ name }) => {
    return [name, surveyCollections({ staging, set: name }).collections] as const
  })
  return { history: currentHistory(staging), collections: new Map(collections) }
}

/** Everything that is due, as if the collections that are due had been made already. */
export function planDue(options: PlanOptions): readonly Decision[] {
  const collects = planCollects(options)
  const collecting = new Set(collects.filter(({ due }) => due).map(({ set }) => set))
  return [...collects, ...planExports({ ...options, collecting })]
}

/** For each set: whether to collect it, and whether to compare content when it is collected. */
export function planCollects(options: PlanOptions): readonly Decision[] {
  return options.sets.flatMap((set) => {
    const { incremental, full } = set.schedule
    const isFirst = newestGood(options.known, set.name) === undefined
    const byForce = options.force ? forced() : undefined
    const collect =
      byForce ?? judgeDue({ frequency: incremental, ...runsOf(options, { set, phase: 'collect' }) })
    const compare = isFirst
      ? notDue('the first collection has nothing to compare with')
      : judgeDue({ frequency: full, ...runsOf(options, { set, phase: 'full' }) })
    return [
      { ...unlessWaiting(collect, { options, set }), ...of({ phase: 'collect', set }) },
      { ...unlessWaiting(compare, { options, set }), ...of({ phase: 'full', set }) },
    ]
  })
}

/**
 * For each set and target: whether to export.
 * @param options.collecting sets of which there will be a new collection by then
 */
export function planExports(
  options: PlanOptions & { readonly collecting: ReadonlySet<string> },
): readonly Decision[] {
  return options.targets.flatMap(({ name: target }) => {
    return options.sets.map((set) => {
      const verdict = options.force ? forced() : judgeExport(options, { set, target })
      const waiting = unlessWaiting(verdict, { options, set, isExport: true })
      return { ...waiting, ...of({ phase: 'export', set, target }) }
    })
  })
}

function judgeExport(
  options: PlanOptions & { readonly collecting: ReadonlySet<string> },
  { set, target }: { readonly set: SetConfiguration; readonly target: string },
): Verdict {
  const frequency = set.schedule.external
  const drive = options.plugged?.get(target)
  const { anyTarget = false } = options
  const runs = runsOf(options, { set, target, drive, anyTarget, phase: 'export' })
  const isAsked = options.isPluggedIn === true && frequency !== 'manual' && frequency !== 'never'
  const verdict = isAsked ? justPluggedIn() : judgeDue({ frequency, ...runs })
  if (!verdict.due || options.collecting.has(set.name)) return verdict
  const newest = options.known.collections.get(set.name)?.at(-1)
  if (newest === undefined) return notDue('nothing is collected yet')
  if (outcomeOf(newest) === 'suspect') {
    return notDue(`the newest collection is suspect: see \`backup accept ${set.name}\``)
  }
  const there = runs.runs.findLast(({ stamp }) => stamp !== undefined)?.stamp
  if (there !== undefined && there >= newest.stamp) {
    return notDue(`${there} is there, and nothing newer is collected`)
  }
  return verdict
}

function of({
  phase,
  set,
  target,
}: {
  readonly phase: Phase
  readonly set: SetConfiguration
  readonly target?: string
}): Pick<Decision, 'phase' | 'set' | 'target'> {
  return { phase, set: set.name, target }
}

function forced(): Verdict {
  return { due: true, reason: 'asked for by --force', nextMs: undefined, clockSetBack: false }
}

function justPluggedIn(): Verdict {
  const reason = 'the drive was just plugged in'
  return { due: true, reason, nextMs: undefined, clockSetBack: false }
}

function notDue(reason: string): Verdict {
  return { due: false, reason, nextMs: undefined, clockSetBack: false }
}

/** Scheduled work may wait for power and network; what is forced does not. */
function unlessWaiting(
  verdict: Verdict,
  {
    options: { power, force },
    set,
    isExport = false,
  }: { readonly options: PlanOptions; readonly set: SetConfiguration; readonly isExport?: boolean },
): Verdict {
  if (!verdict.due || force) return verdict
  const { onBattery, onMetered } = set.schedule
  if (power.onBattery && onBattery === 'skip') return notDue('waits while on battery')
  if (isExport && power.metered && onMetered === 'skip') {
    return notDue('waits while the network is metered')
  }
  return verdict
}

interface PhaseOf {
  readonly set: { readonly name: string }
  readonly phase: Phase
  readonly target?: string | undefined
  /** Only the exports to that drive count. */
  readonly drive?: string | undefined
  readonly anyTarget?: boolean
}

/**
 * The runs that count for a phase. Comparing content is collecting as well. Staging knows better
 * than the history: what it holds may have been accepted since; what it holds is good, even when
 * the history is lost; and when it holds nothing good any more, no run of the past was.
 */
function runsOf(
  { known, nowMs }: { readonly known: Known; readonly nowMs: number },
  { set, phase, target, drive, anyTarget = false }: PhaseOf,
): { readonly runs: readonly (PastRun & Partial<RunRecord>)[]; readonly nowMs: number } {
  const runs = known.history.filter((run) => {
    const isPhase = run.phase === phase || (phase === 'collect' && run.phase === 'full')
    const isTarget = anyTarget ? run.target !== undefined : run.target === target
    const isDrive = drive === undefined || anyTarget || run.drive === drive
    return isPhase && run.set === set.name && isTarget && isDrive
  })
  if (phase === 'export') return { runs, nowMs }
  const collections = known.collections.get(set.name) ?? []
  const current = runs.map((run) => {
    const made = collections.find(({ stamp }) => stamp === run.stamp)
    return made === undefined ? run : { ...run, outcome: outcomeOf(made) }
  })
  const newest = newestGood(known, set.name)
  if (newest === undefined) return { runs: current.filter(isNotGood), nowMs }
  if (phase === 'full' || !current.every(isNotGood)) return { runs: current, nowMs }
  const startMs = parseStamp(newest.stamp) ?? 0
  return { runs: [{ startMs, outcome: 'good' }, ...current], nowMs }
}

function isNotGood({ outcome }: PastRun): boolean {
  return outcome !== 'good'
}

function newestGood({ collections }: Known, set: string): CollectionHeader | undefined {
  return collections.get(set)?.findLast((collection) => outcomeOf(collection) === 'good')
}

/**
 * How a phase stands: not healthy where its last run was not good, where a good one is late by more
 * than two periods, and where a set that has a schedule has no good collection at all.
 */
export function judgeStanding({
  set,
  phase,
  target,
  known,
  nowMs,
}: {
  readonly set: SetConfiguration
  readonly phase: Phase
  readonly target?: string | undefined
  readonly known: Known
  readonly nowMs: number
}): Standing {
  const { runs } = runsOf({ known, nowMs }, { set, phase, target })
  const lastGood = runs.findLast(({ outcome }) => outcome === 'good')
  const lastOutcome = runs.at(-1)?.outcome
  const standing = { phase, set: set.name, target, lastGood, lastOutcome }
  if (lastOutcome !== undefined && lastOutcome !== 'good') return { ...standing, healthy: false }
  const frequency = frequencyOf(set, phase)
  if (frequency === 'manual' || frequency === 'never') return { ...standing, healthy: true }
  if (phase === 'collect' && lastGood === undefined) return { ...standing, healthy: false }
  // What was never exported or compared is late since the oldest collection that it could be.
  const oldest = parseStamp(known.collections.get(set.name)?.[0]?.stamp ?? '')
  const startMs = lastGood?.startMs ?? oldest
  if (startMs === undefined) return { ...standing, healthy: true }
  const lateMs = addPeriods({ frequency, startMs, count: PERIODS_LATE + 1 })
  return { ...standing, healthy: lateMs === undefined || nowMs <= lateMs }
}

function frequencyOf({ schedule }: SetConfiguration, phase: Phase): Frequency {
  switch (phase) {
    case 'collect':
      return schedule.incremental
    case 'full':
      return schedule.full
    case 'export':
      return schedule.external
  }
}
