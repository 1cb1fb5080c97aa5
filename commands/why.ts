// `backup why PATH`: the rule that takes or leaves out a path, whether it is there now, all its
// versions, and what each target has of it.
//
// Parses and tells; lib/work/why.ts finds out the rule and the versions, coverage.ts what targets
// have. Nothing on a target is read. Throws USAGE, NOTHING_FOUND for a path that no set takes and
// no generation holds, and what loading the configuration throws.

import { BackupError } from '../lib/errors.ts'
import type { ExitCode } from '../lib/errors.ts'
import type { Configuration, SetConfiguration } from '../lib/machine/config.ts'
import { formatSize } from '../lib/model/amount.ts'
import { reasonText } from '../lib/model/filter.ts'
import { displayPath, pathFacts, type RawPath } from '../lib/model/raw-path.ts'
import { counted, formatAge } from '../lib/model/period.ts'
import type { Receipt } from '../lib/model/receipt.ts'
import { formatStamp } from '../lib/model/stamp.ts'
import { type Coverage, coverageOf, type Holder, readHolders } from '../lib/work/coverage.ts'
import { currentHistory } from '../lib/work/drive-history.ts'
import type { Explanation } from '../lib/work/filter-walk.ts'
import type { RunRecord } from '../lib/work/history.ts'
import { readReceipts } from '../lib/work/receipts.ts'
import { ownKeys } from '../lib/work/status.ts'
import type { VersionRun } from '../lib/work/version-runs.ts'
import { openVersions } from '../lib/work/versions.ts'
import { explainInSet, nearestSource, type PathFacts, type WhyAnswer } from '../lib/work/why.ts'
import { chosenSets } from './chosen.ts'
import { argumentPath } from './argument-path.ts'
import { type Command, type CommandContext, isGiven, textOptions } from './command.ts'
import { holderReader, holdersText, holderText, runFacts, runText } from './version-text.ts'
import { warnOfUnknown } from './versions-source.ts'

export const command: Command = {
  name: 'backup why',
  summary: 'say which rule takes or leaves out a path, its versions, and who has them',
  usage: `Usage: backup why PATH [--set NAME…] [-v]

Says of each set whether PATH is in one of its sources (also through a symbolic link), which rule
takes it or leaves it or a directory above it out, whether it is there now, which version of it is
in which collections and exports, newest first, and what each target has of it, since when, and
when that was last proven. Targets need not be there. A slash at the end makes a PATH that is not
there a directory.

  --set NAME      only this set (again for more; default: all)
  -v, --verbose   also the bundles that hold it, of each target's newest export
`,
  positionals: true,
  options: { set: { type: 'string', multiple: true } },
  run,
}

/** What is known of one set. */
interface Answer extends WhyAnswer {
  readonly holders: readonly Holder[]
  readonly coverage: readonly Coverage[]
}

async function run(context: CommandContext): Promise<ExitCode> {
  const [word, ...others] = context.positionals
  if (word === undefined || word === '' || others.length > 0) {
    throw new BackupError('USAGE', 'expected one path', { hint: 'see `backup why --help`' })
  }
  const configuration = await context.loadConfiguration()
  const sets = chosenSets(configuration, textOptions(context.values, 'set'))
  const path = argumentPath(word, process.cwd())
  const isDirectory = word.endsWith('/')
  const facts = await gatherFacts(context, configuration)
  const answers: Answer[] = []
  for (const set of sets) {
    const answer = await answerOf(context, { configuration, set, path, isDirectory, facts })
    if (answer.source !== undefined || answer.runs.some(isHeld)) answers.push(answer)
  }
  if (answers.length === 0) throw notFound(path, nearestSource(sets, path))
  tell(context, path, answers)
  return 0
}

/** What is the same for all sets. */
interface Facts {
  readonly holders: readonly Holder[]
  readonly receipts: readonly Receipt[]
  readonly history: readonly RunRecord[]
}

async function gatherFacts(
  { signal }: CommandContext,
  configuration: Configuration,
): Promise<Facts> {
  const { staging } = configuration
  const { receipts } = await readReceipts(staging, await ownKeys(configuration))
  const holders = await readHolders(configuration, { signal })
  return { holders, receipts, history: currentHistory(staging) }
}

async function answerOf(
  context: CommandContext,
  {
    configuration,
    set,
    path,
    isDirectory,
    facts,
  }: {
    readonly configuration: Configuration
    readonly set: SetConfiguration
    readonly path: RawPath
    readonly isDirectory: boolean
    readonly facts: Facts
  },
): Promise<Answer> {
  const { staging } = configuration
  const { reporter, signal, values } = context
  const place = { staging, set: set.name }
  const versions = await openVersions(place, { report: reporter.report, signal })
  try {
    const answer = explainInSet({ configuration, set, path, isDirectory, versions })
    if (answer.runs.some(isHeld)) warnOfUnknown({ context, configuration }, versions)
    const coverage = coverageOf({
      ...facts,
      configuration,
      set: set.name,
      path: answer.collectedAs.slice(1),
      runs: answer.runs,
      withBundles: isGiven(values, 'verbose'),
    })
    return { ...answer, holders: facts.holders, coverage }
  } finally {
    versions.close()
  }
}

function isHeld({ state }: VersionRun): boolean {
  return state === 'held'
}

function notFound(path: RawPath, nearest: ReturnType<typeof nearestSource>): BackupError {
  const message = `no set takes ${displayPath(path)}, and no generation holds it`
  if (nearest === undefined) return new BackupError('NOTHING_FOUND', message)
  const { set, source } = nearest
  const hint = `the nearest source is ${displayPath(source) || '/'}, of the set ${set}`
  return new BackupError('NOTHING_FOUND', message, {
    hint,
    facts: { set, ...pathFacts(source || '/', 'source') },
  })
}

function tell(
  { reporter, now: clock }: CommandContext,
  path: RawPath,
  answers: readonly Answer[],
): void {
  const now = answers[0]?.now
  const there = now === undefined ? 'not there now' : `there now: ${factsText(now)}`
  reporter.print(`${displayPath(path)}: ${there}`)
  for (const answer of answers) {
    for (const line of answerLines(answer, path, clock())) reporter.print(line)
  }
  reporter.report({
    kind: 'result',
    command: command.name,
    ...pathFacts(path),
    now,
    sets: answers.map(answerFacts),
    exitCode: 0,
  })
}

function answerLines(answer: Answer, path: RawPath, nowMs: number): string[] {
  const { set, collectedAs, runs, generations, holders, coverage } = answer
  const link = collectedAs === path ? '' : `, collected as ${displayPath(collectedAs)}`
  const lines = [`${set}: ${ruleText(answer)}${link}`]
  if (generations === 0 && runs.length === 0) return [...lines, '  no collection yet']
  const holdersAt = holderReader(holders, set)
  lines.push(`  in ${counted(generations, 'generation')}:`)
  for (const run of runs) {
    const at = isHeld(run) ? `; ${holdersText(holdersAt(run))}` : ''
    lines.push(`    ${runText(run)}${at}`)
  }
  if (!runs.some(isHeld)) return lines
  return [...lines, ...coverage.flatMap((one) => coverageLines(one, nowMs))]
}

function coverageLines(one: Coverage, nowMs: number): string[] {
  const { holder, state, stamp, exportedMs, proven, damaged, bundles } = one
  const name = holderText(holder)
  if (state === 'none') return [`  not known to be on ${name}`]
  const what = state === 'newest' ? 'this version' : `an older version, of ${stamp}`
  const age = exportedMs === undefined ? '' : `, exported ${formatAge(nowMs - exportedMs)}`
  const proof =
    damaged !== undefined
      ? `DAMAGED, found ${formatAge(nowMs - damaged.atMs)} (receipt ${damaged.receipt})`
      : proven === undefined
        ? 'never proven'
        : `last proven ${formatAge(nowMs - proven.atMs)} (receipt ${proven.receipt})`
  const lines = [`  on ${name}: ${what}${age}; ${proof}`]
  return bundles === undefined ? lines : [...lines, ...bundles.map((bundle) => `    in ${bundle}`)]
}

function ruleText({ source, unreadable, collectedAs, rule }: WhyAnswer): string {
  if (source === undefined) return 'in none of its sources now'
  if (rule === undefined) {
    return `in the source ${displayPath(source)}, which cannot be read now: ${unreadable}`
  }
  const reason = reasonText(rule.reason)
  if (rule.taken) {
    return rule.reason.kind === 'source'
      ? `taken: ${reason}, and no rule leaves it out`
      : `taken by ${reason}, in the source ${displayPath(source)}`
  }
  const above = rule.at === collectedAs ? '' : ` with ${displayPath(rule.at)}`
  return `left out${above}: ${reason}`
}

function factsText({ type, sizeBytes, mtimeMs }: PathFacts): string {
  const size = sizeBytes === undefined ? '' : `, ${formatSize(sizeBytes)}`
  return `${type}${size}, changed ${formatStamp(mtimeMs)}`
}

function answerFacts(answer: Answer): Readonly<Record<string, unknown>> {
  const { set, source, unreadable, collectedAs, rule, runs, generations, unknown } = answer
  const holdersAt = holderReader(answer.holders, set)
  return {
    set,
    ...(source === undefined ? {} : pathFacts(source, 'source')),
    unreadable,
    ...pathFacts(collectedAs, 'collectedAs'),
    taken: rule?.taken ?? false,
    rule: rule === undefined ? undefined : ruleFacts(rule),
    generations,
    unknown,
    runs: runs.map((run) => runFacts(run, isHeld(run) ? holdersAt(run) : [])),
    targets: answer.coverage.map(coverageFacts),
  }
}

function coverageFacts({ holder, exportedMs, proven, damaged, ...facts }: Coverage): object {
  const exported = exportedMs === undefined ? undefined : new Date(exportedMs).toISOString()
  return {
    name: holder.name,
    there: holder.isThere,
    ...facts,
    exported,
    proven: proofFacts(proven),
    damaged: proofFacts(damaged),
  }
}

function proofFacts(proof: Coverage['proven']): object | undefined {
  if (proof === undefined) return undefined
  return { time: new Date(proof.atMs).toISOString(), receipt: proof.receipt }
}

function ruleFacts({ at, reason }: Explanation): Readonly<Record<string, unknown>> {
  const { kind, rule, file } = reason
  const place = file === undefined ? {} : { ...pathFacts(file.path, 'file'), line: file.line }
  return { ...pathFacts(at, 'at'), kind, rule, ...place }
}
