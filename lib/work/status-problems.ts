// What is wrong, and what to do about it: every problem that `backup status` shows, the worst
// first.
//
// lib/work/status.ts calls it with the parts of the document that it has made. One trouble is one
// problem: an export that could not be good because its collection was not is not said again. Pure;
// throws nothing.

import { formatSize } from '../model/amount.ts'
import { counted, formatAge } from '../model/period.ts'
import { driveOf } from '../model/proofs.ts'
import { displayPath, displayText } from '../model/raw-path.ts'
import { describeKind, type Receipt } from '../model/receipt.ts'
import { formatLocalTime } from '../model/schedule.ts'
import { placeName, scoreText } from '../model/score.ts'
import type {
  DriveStatus,
  ExportStatus,
  GoodRun,
  PhaseStatus,
  Problem,
  StatusDocument,
  TargetStatus,
} from '../model/status-document.ts'
import type { Decision } from './due.ts'
import type { RunRecord } from './history.ts'
import type { StatusFacts } from './status.ts'

interface ProblemFacts {
  readonly facts: StatusFacts
  readonly decisions: readonly Decision[]
  readonly parts: Pick<StatusDocument, 'sets' | 'targets' | 'staging' | 'score'>
  /** Receipts of damage that still stands, with their names. */
  readonly damage: readonly { readonly receipt: Receipt; readonly name: string }[]
}

/** All problems, the worst first. */
export function findProblems(options: ProblemFacts): readonly Problem[] {
  const { parts } = options
  return [
    ...damageProblems(options),
    ...clockProblems(options),
    ...parts.sets.flatMap(({ name }) => setProblems(options, name)),
    ...parts.targets.flatMap((target) => targetProblems(options, target)),
    ...stagingProblems(options),
    ...receiptProblems(options),
    ...notifierProblems(options),
    ...scoreProblems(options),
  ]
}

type Words = Pick<Problem, 'code' | 'what' | 'fix'> & Partial<Problem>

function problem(words: Words): Problem {
  const nowhere = { set: undefined, target: undefined, drive: undefined, receipt: undefined }
  return { ...nowhere, severity: 'attention', ...words }
}

function damageProblems({ damage, facts }: ProblemFacts): readonly Problem[] {
  return damage.map(({ receipt, name }) => {
    const { target, kind, end, damaged } = receipt
    const configured = facts.configuration.targets.find((one) => one.name === target)
    const isPool = configured?.kind === 'drive' && configured.isPool
    const where = isPool ? `${target} (${driveOf(receipt)})` : target
    const [first] = damaged
    const example = first === undefined ? '' : `, such as ${displayText(first)}`
    const what = `the ${describeKind(kind)} of ${formatLocalTime(Date.parse(end))} found damage`
    const mend =
      (configured?.parityPercent ?? 0) > 0
        ? `\`backup repair --target ${target}\` mends what parity can; then `
        : 'see BUNDLE_DAMAGED in docs/errors.md; then '
    return problem({
      code: 'PROOF_DAMAGED',
      severity: 'bad',
      what: `${where}: ${what}: ${counted(damaged.length, 'name')}${example}`,
      fix: `${mend}\`backup-restore --source external --target ${target} --verify\``,
      target,
      drive: receipt.drive,
      receipt: name,
    })
  })
}

/** Once, however much is dated ahead. */
function clockProblems({ decisions }: ProblemFacts): readonly Problem[] {
  const ahead = decisions.find(({ clockSetBack }) => clockSetBack)
  if (ahead === undefined) return []
  const fix = 'set the clock; what is dated ahead is neither let go nor counted as late'
  const { set, target, reason } = ahead
  const where = target === undefined ? set : `${set} → ${target}`
  return [problem({ code: 'CLOCK_SET_BACK', what: `${where}: ${reason}`, fix, set, target })]
}

function setProblems({ facts, parts }: ProblemFacts, set: string): readonly Problem[] {
  const phases = parts.sets.find(({ name }) => name === set)?.phases ?? []
  const [collect, full] = ['collect', 'full'].map((name) => {
    return phases.find(({ phase, healthy }) => phase === name && !healthy)
  })
  // The last run may have been both.
  const isSame = full?.lastRun !== undefined && full.lastRun.time === collect?.lastRun?.time
  const damaged = facts.damagedCatalogs.get(set) ?? []
  return [
    ...(collect === undefined ? [] : [collectProblem(facts, { set, phase: collect })]),
    ...(full === undefined || isSame ? [] : [collectProblem(facts, { set, phase: full })]),
    ...damaged.map((stamp) => {
      const what = `${set}: the catalog of ${stamp} is damaged or gone, so it does not count`
      const fix = 'see CATALOG_DAMAGED in docs/errors.md; its tree is as it was, and stays'
      return problem({ code: 'CATALOG_DAMAGED', what, fix, set })
    }),
  ]
}

function collectProblem(
  facts: StatusFacts,
  { set, phase }: { readonly set: string; readonly phase: PhaseStatus },
): Problem {
  const { lastRun, lastGood } = phase
  const isFull = phase.phase === 'full'
  const noun = isFull ? 'full collection' : 'collection'
  const command = `\`backup-collect${isFull ? ' --full' : ''} --set ${set}\``
  const newest = facts.known.collections.get(set)?.at(-1)
  switch (lastRun?.outcome) {
    case 'failed': {
      const run = lastFailure(facts, { phase, set, target: undefined })
      return failedProblem({ what: `${set}: the last ${noun}`, command, run, set })
    }
    case 'suspect': {
      const [doubt] = newest?.suspect ?? []
      const why = doubt === undefined ? '' : `: /${displayPath(doubt.path)}: ${doubt.why}`
      return problem({
        code: 'SUSPECT',
        what: `${set}: ${newest?.stamp ?? 'the last collection'} is suspect${why}`,
        fix: `is it right? \`backup accept ${set}\`; else put the source right, then ${command}`,
        set,
      })
    }
    case 'incomplete': {
      const missing = newest?.missing ?? []
      const [first] = missing
      const names =
        first === undefined
          ? ''
          : `: ${counted(missing.length, 'path')}, as /${displayPath(first.path)}: ${first.why}`
      return problem({
        code: 'INCOMPLETE',
        what: `${set}: the last ${noun} is incomplete${names}`,
        fix: `make it readable, or leave it out (docs/filters.md), then ${command}`,
        set,
      })
    }
    case 'good':
    case undefined: {
      if (lastGood === undefined && !isFull) {
        const what = `${set}: nothing good is collected yet`
        return problem({ code: 'NEVER_GOOD', what, fix: command, set })
      }
      const what = `${set}: the last good ${noun} ${lastGoodText(lastGood, facts)}`
      const fix = `${command}; \`backup\` does it when it is called: see docs/schedule.md`
      return problem({ code: 'LATE', what, fix, set })
    }
  }
}

function targetProblems(options: ProblemFacts, target: TargetStatus): readonly Problem[] {
  const { name, drives, exports, isPool } = target
  const overdue = drives.filter((drive) => drive.isOverdue)
  return [
    ...exports
      .filter(({ healthy }) => !healthy)
      .flatMap((status) => exportProblems(options, { target, status })),
    ...overdue.map((drive) => overdueProblem(target, { drive, nowMs: options.facts.nowMs })),
    ...drives
      .filter(({ lowSpace }) => lowSpace)
      .map((drive) => {
        const free = formatSize(drive.freeBytes ?? 0)
        const of = formatSize(drive.sizeBytes ?? 0)
        return problem({
          code: 'LOW_SPACE',
          what: `${isPool ? `${name} (${drive.name})` : name}: ${free} of ${of} were free last`,
          fix: 'keep fewer exports (`retention.external`), or change it for a larger drive',
          target: name,
          drive: drive.name,
        })
      }),
  ]
}

function overdueProblem(
  { name, isPool }: TargetStatus,
  { drive, nowMs }: { readonly drive: DriveStatus; readonly nowMs: number },
): Problem {
  const { waitsSince: time } = drive
  const sinceMs = time === undefined ? undefined : Date.parse(time)
  const age = sinceMs === undefined ? 'never was' : agoText(sinceMs, nowMs)
  return problem({
    code: 'DRIVE_OVERDUE',
    what: `${isPool ? `${name} (${drive.name})` : name}: the last good export ${age}`,
    fix: `plug in ${drive.name}, then \`backup-external --target ${name}\` where nothing starts it`,
    target: name,
    drive: drive.name,
  })
}

function exportProblems(
  { facts, parts }: ProblemFacts,
  { target, status }: { readonly target: TargetStatus; readonly status: ExportStatus },
): readonly Problem[] {
  const { set, lastRun, lastGood } = status
  const { name, kind, path, drives, next } = target
  const command = `\`backup-external --set ${set} --target ${name}\``
  const what = `${set} → ${name}: the last`
  if (lastRun?.outcome === 'failed') {
    const run = lastFailure(facts, { phase: status, set, target: name })
    const drive = run?.drive === undefined ? {} : { drive: run.drive }
    return [failedProblem({ what: `${what} export`, command, run, set, target: name, ...drive })]
  }
  const collect = parts.sets.find((one) => one.name === set)?.phases[0]
  if (lastRun?.outcome === 'suspect' || lastRun?.outcome === 'incomplete') {
    // What is wrong with the collection is said already.
    if (collect?.lastRun?.outcome === lastRun.outcome) return []
    const code = lastRun.outcome === 'suspect' ? 'SUSPECT' : 'INCOMPLETE'
    return [
      problem({
        code,
        what: `${what} export was ${lastRun.outcome}`,
        fix: command,
        set,
        target: name,
      }),
    ]
  }
  // Which drive is missing says more.
  if (drives.some((drive) => drive.isOverdue)) return []
  const place = kind === 'directory' ? `see that ${displayText(path ?? '')} is mounted` : undefined
  return [
    problem({
      code: 'LATE',
      what: `${what} good export ${lastGoodText(lastGood, facts)}`,
      fix: `${place ?? `plug in ${next?.drive ?? name}`}, then ${command}`,
      set,
      target: name,
    }),
  ]
}

function failedProblem({
  what,
  command,
  run,
  ...where
}: {
  readonly what: string
  readonly command: string
  readonly run: RunRecord | undefined
  readonly set: string
  readonly target?: string
  readonly drive?: string
}): Problem {
  const { startMs, errorCode, message } = run ?? {}
  const time = startMs === undefined ? '' : `, of ${formatLocalTime(startMs)},`
  const why = errorCode === undefined ? '' : `: ${errorCode}: ${displayText(message ?? '')}`
  const look = errorCode === undefined ? '' : `see ${errorCode} in docs/errors.md, then `
  const [code, fix] = ['RUN_FAILED' as const, `${look}${command}`]
  return problem({ code, what: `${what}${time} failed${why}`, fix, ...where })
}

function lastFailure(
  { known }: StatusFacts,
  {
    phase: { phase },
    set,
    target,
  }: { readonly phase: PhaseStatus; readonly set: string; readonly target: string | undefined },
): RunRecord | undefined {
  return known.history.findLast((run) => {
    const isPhase = run.phase === phase || (phase === 'collect' && run.phase === 'full')
    return isPhase && run.set === set && run.target === target && run.outcome === 'failed'
  })
}

function stagingProblems({ parts: { staging } }: ProblemFacts): readonly Problem[] {
  const { lowSpace, freeBytes = 0, totalBytes = 0, path } = staging
  if (!lowSpace) return []
  const free = `${formatSize(freeBytes)} of ${formatSize(totalBytes)} are free`
  return [
    problem({
      code: 'LOW_SPACE',
      what: `staging ${displayText(path)}: only ${free}`,
      fix: 'free some, or keep fewer collections (`retention.local`) and `backup prune`',
    }),
  ]
}

function receiptProblems({ facts: { unbelievedReceipts } }: ProblemFacts): readonly Problem[] {
  const [first] = unbelievedReceipts
  if (first === undefined) return []
  const count = counted(unbelievedReceipts.length, 'receipt')
  return [
    problem({
      code: 'RECEIPT_UNBELIEVED',
      what: `${count} not signed by this machine, as ${displayText(first)}: they prove nothing`,
      fix: 'find out who wrote them; remove them from `.state/receipts` in staging; `backup drill`',
      receipt: first,
    }),
  ]
}

function notifierProblems({ facts: { notifierFailures } }: ProblemFacts): readonly Problem[] {
  return notifierFailures.map(({ channel, message, atMs }) => {
    const time = formatLocalTime(atMs)
    return problem({
      code: 'NOTIFIER_FAILING',
      what: `nobody can be told by ${channel} since ${time}: ${displayText(message)}`,
      fix: `put \`notify.${channel}\` right, or take it out: see docs/notifications.md`,
    })
  })
}

/** Who said what the score has to reach is told of less; who did not, of what was lost. */
function scoreProblems({ parts: { score } }: ProblemFacts): readonly Problem[] {
  if (score === undefined) return []
  const { isConfigured, isReached, wanted, places, next } = score
  const is = `3-2-1: ${scoreText(score)}`
  const fix = next ?? 'see docs/status.md'
  if (isConfigured) {
    const what = `${is}; wanted are ${scoreText(wanted)}`
    return isReached ? [] : [problem({ code: 'SCORE_LOW', what, fix })]
  }
  const [first] = places.filter(({ isLost }) => isLost)
  if (first === undefined) return []
  const { target, drive } = first
  const what = `${is}: ${placeName(first)} counts no more: ${first.what}`
  const where = drive === undefined ? { target } : { target, drive }
  return [problem({ code: 'SCORE_DROPPED', what, fix, ...where })]
}

function lastGoodText(lastGood: GoodRun | undefined, { nowMs }: StatusFacts): string {
  return lastGood === undefined ? 'never was' : agoText(Date.parse(lastGood.time), nowMs)
}

function agoText(startMs: number, nowMs: number): string {
  return `is of ${formatLocalTime(startMs)}, ${formatAge(nowMs - startMs)}`
}
