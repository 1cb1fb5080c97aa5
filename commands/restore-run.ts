// One restore: the generations that are meant, from the first source that has them; the plan, the
// question, the work; and from further sources what the first one had damaged.
//
// Called by backup-restore.ts. The decision is the plan's alone: nothing is written before
// somebody who has to be asked has answered. Throws NOTHING_FOUND, NOT_CONFIRMED, and what sources
// throw.

import { randomUUID } from 'node:crypto'
import { createReadStream, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { BackupError, ERRORS, type ExitCode, systemCode, worstExitCode } from '../lib/errors.ts'
import type { Configuration } from '../lib/machine/config.ts'
import {
  type RawPath,
  displayPath,
  rawPathFromText,
  rawPathToBytes,
} from '../lib/model/raw-path.ts'
import { formatStamp } from '../lib/model/stamp.ts'
import { Aside } from '../lib/work/aside.ts'
import { pickExports } from '../lib/work/find-exports.ts'
import type { ExportPlace } from '../lib/work/repository.ts'
import {
  type PlanOptions,
  type PlannedEntry,
  type RestorePlan,
  countPlan,
  withAnswers,
} from '../lib/work/restore-plan.ts'
import { type RestoreOutcome, restoreSelection } from '../lib/work/restore.ts'
import type { Wanted } from '../lib/work/selection.ts'
import { inspectSources, ownPlaces } from '../lib/work/sources.ts'
import { ruleReader } from '../lib/work/why.ts'
import { movingOf } from './restore-moving.ts'
import type { RestoreJob } from './restore-place.ts'
import {
  type RestoreSource,
  type Selected,
  isElsewhere,
  openSource,
  sourcesOf,
} from './restore-source.ts'
import { planLines, tellRestored } from './restore-telling.ts'

/** One generation that was restored, as far as it went. */
interface Restored {
  readonly place: ExportPlace
  readonly outcome: RestoreOutcome
  readonly complete: boolean
}

/** Restores what the words say, and tells it. */
export async function restoreWords(job: RestoreJob): Promise<ExitCode> {
  const { words, context, configuration } = job
  const names = sourcesOf(job)
  if (words.into !== undefined) refuseOurOwn(words.into, configuration)
  let restored: readonly Restored[] | undefined
  let last: BackupError | undefined
  const codes: ExitCode[] = []
  for (const [index, name] of names.entries()) {
    const isLast = index === names.length - 1
    let source: RestoreSource
    try {
      source = await openSource(job, name)
      if (restored === undefined) pickPlaces(job, source)
    } catch (error) {
      if (!isElsewhere(error)) throw error
      last ??= error
      if (error.code !== 'NOTHING_FOUND' || last.code === 'NOTHING_FOUND') last = error
      if (!isLast) tellPassedOver(job, error)
      continue
    }
    if (names.length > 1) tellSource(job, source)
    restored =
      restored === undefined
        ? await restoreFrom(job, source)
        : await restoreDamaged(job, { source, restored })
    source.tellAfterwards()
    if (!restored.some(({ outcome }) => damagedPaths(outcome).length > 0)) break
  }
  if (restored === undefined) throw last ?? noSource()
  const { reporter } = context
  const { dryRun } = words
  for (const { place, outcome, complete } of restored) {
    codes.push(tellRestored({ ...outcome, complete }, { place, dryRun, reporter }))
  }
  return worstExitCode(codes)
}

function noSource(): BackupError {
  return new BackupError('CONFIG_INVALID', 'no targets are configured', {
    hint: 'add one under `targets`',
  })
}

function tellPassedOver({ context }: RestoreJob, error: BackupError): void {
  const { code, message } = error
  context.reporter.report({ kind: 'notice', level: 'info', code, message })
}

function tellSource({ context }: RestoreJob, { description }: RestoreSource): void {
  const message = `from ${description}`
  context.reporter.report({ kind: 'notice', level: 'info', code: 'SOURCE', message })
}

/** @throws BackupError NOTHING_FOUND, USAGE for an ambiguous date */
function pickPlaces(
  { words, context }: RestoreJob,
  { places }: RestoreSource,
): readonly ExportPlace[] {
  if (words.last) {
    return places.toSorted((a, b) => (a.stamp < b.stamp ? 1 : a.stamp > b.stamp ? -1 : 0))
  }
  return pickExports(places, words.date, { nowMs: context.now() })
}

/**
 * Each set's generation; one that does not have the paths is passed over if another has. With
 * `--last` the newest generation that has them.
 */
async function restoreFrom(job: RestoreJob, source: RestoreSource): Promise<readonly Restored[]> {
  const { words } = job
  const wanted: Wanted = { paths: words.paths, patterns: words.patterns }
  const restored: Restored[] = []
  let nothing: BackupError | undefined
  for (const place of pickPlaces(job, source)) {
    try {
      restored.push(await restorePlace(job, { source, place, wanted }))
      if (words.last) break
    } catch (error) {
      if (!(error instanceof BackupError) || error.code !== 'NOTHING_FOUND') throw error
      nothing = error
    }
  }
  if (restored.length === 0 && nothing !== undefined) throw nothing
  return restored
}

/** What was damaged in one source, from another one that has the same generation. */
async function restoreDamaged(
  job: RestoreJob,
  { source, restored }: { readonly source: RestoreSource; readonly restored: readonly Restored[] },
): Promise<readonly Restored[]> {
  const again: Restored[] = []
  for (const one of restored) {
    const paths = damagedPaths(one.outcome)
    const { set, stamp } = one.place
    const place = source.places.find((other) => other.set === set && other.stamp === stamp)
    if (paths.length === 0 || place === undefined || job.words.dryRun) {
      again.push(one)
      continue
    }
    try {
      const isConfirmed = { ...job, words: { ...job.words, yes: true, deleteIn: false } }
      const other = await restorePlace(isConfirmed, { source, place, wanted: { paths } })
      again.push({ ...one, outcome: merge(one.outcome, other.outcome) })
    } catch (error) {
      if (!isElsewhere(error)) throw error
      again.push(one)
    }
  }
  return again
}

function damagedPaths({ failures }: RestoreOutcome): readonly RawPath[] {
  return failures
    .filter(({ code }) => ERRORS[code][0] === 13 && code !== 'UNSAFE_PATH')
    .map(({ path }) => path)
}

/** Of two restores of one generation the second one had only what the first one failed at. */
function merge(first: RestoreOutcome, second: RestoreOutcome): RestoreOutcome {
  const damaged = new Set(damagedPaths(first))
  return {
    written: first.written + second.written,
    same: first.same + second.same,
    bytes: first.bytes + second.bytes,
    deleted: first.deleted,
    kept: [...first.kept, ...second.kept],
    failures: [...first.failures.filter(({ path }) => !damaged.has(path)), ...second.failures],
    lost: [...first.lost, ...second.lost],
    aside: [...first.aside, ...second.aside],
  }
}

async function restorePlace(
  job: RestoreJob,
  of: { readonly source: RestoreSource; readonly place: ExportPlace; readonly wanted: Wanted },
): Promise<Restored> {
  const { source, place, wanted } = of
  const { words } = job
  const selected = await source.select(place, wanted)
  try {
    if (words.deletes && !selected.complete) throw incomplete(place)
    const outcome =
      words.into === undefined || words.dryRun
        ? await restoreInto(job, { ...of, selected, into: placeOf(words.into) })
        : await restoreInto(job, { ...of, selected, into: makeDirectory(words.into) })
    const failures = [...selected.damaged, ...outcome.failures]
    return { place, outcome: { ...outcome, failures }, complete: selected.complete }
  } finally {
    selected.close()
  }
}

function incomplete({ set, stamp }: ExportPlace): BackupError {
  const message = `${set} ${stamp} is incomplete: what it lacks would be deleted`
  return new BackupError('USAGE', message, {
    hint: 'leave --delete out, or name a complete generation with --date; nothing was changed',
  })
}

async function restoreInto(
  job: RestoreJob,
  of: {
    readonly source: RestoreSource
    readonly place: ExportPlace
    readonly selected: Selected
    readonly into: RawPath
  },
): Promise<RestoreOutcome> {
  const { context, words } = job
  const { source, place, selected, into } = of
  const roots = words.paths.length === 0 ? selected.sources : words.paths
  const stamp = formatStamp(context.now())
  const { selection } = selected
  return await restoreSelection(selection, {
    into,
    moving: movingOf(job, { selection, into }),
    identities: source.identities,
    overwrite: words.overwrite === 'ask' && !context.hasTerminal ? 'never' : words.overwrite,
    deleteIn: words.deletes ? words.paths : [],
    isLeftOut: leftOut(job, place),
    dryRun: words.dryRun,
    checksRoom: !words.ignoresSpace,
    cores: availableParallelism(),
    aside: words.discards ? undefined : new Aside({ into, roots, stamp }),
    decide: async (plan) => await decide(job, { plan, place }),
    report: context.reporter.report,
    signal: context.signal,
  })
}

/**
 * In the original place, what the set leaves out now: that a generation does not have it says
 * nothing.
 */
function leftOut(
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
async function decide(
  { context, words }: RestoreJob,
  { plan, place }: { readonly plan: RestorePlan; readonly place: ExportPlace },
): Promise<RestorePlan> {
  const { reporter } = context
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

/** What differs, at a terminal: none, older, newer, all, or each for itself. */
async function askEach(context: RestoreJob['context'], plan: RestorePlan): Promise<RestorePlan> {
  const differing = plan.items.filter(({ verdict }) => verdict === 'keep')
  if (differing.length === 0 || !context.hasTerminal) return plan
  const older = differing.filter(({ age }) => age === 'older').length
  const newer = differing.filter(({ age }) => age === 'newer').length
  const answer = await context.ask(
    `${differing.length} are there and differ (${older} older, ${newer} newer). `
      + 'Replace [n]one, [o]lder, ne[w]er, [a]ll, or ask for [e]ach?',
  )
  const byAge = (wanted: string) => (item: PlannedEntry) => item.age === wanted
  switch (answer.trim().toLowerCase()[0]) {
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

function placeOf(into: string | undefined): RawPath {
  return into === undefined || into === '/' ? '' : rawPathFromText(into)
}

/** @throws BackupError USAGE below staging or a target, where nothing may be changed */
function refuseOurOwn(into: string, { staging, targets }: Configuration): void {
  const directories = targets.flatMap((one) => (one.kind === 'directory' ? [one.path] : []))
  const ours = [staging, ...directories]
  const place = ours.find((one) => into === one || into.startsWith(`${one}/`))
  if (place === undefined) return
  throw new BackupError('USAGE', `${into} is in ${place}, where nothing may be changed`, {
    hint: 'restore into a directory elsewhere; nothing was made',
  })
}

/** One by one: Node's recursive mkdir never returns below /proc. */
function makeEach(path: string): void {
  if (existsSync(path)) return
  makeEach(dirname(path))
  mkdirSync(path)
}

function makeDirectory(path: string): RawPath {
  try {
    makeEach(path)
    readdirSync(path)
    return placeOf(path)
  } catch (cause) {
    const code = systemCode(cause)
    if (code === undefined) throw cause
    throw new BackupError('RESTORE_FAILED', `${path} cannot be a directory to restore into`, {
      hint: 'name a directory that you may write, or that does not exist yet; nothing was restored',
      cause,
    })
  }
}

/**
 * One file to standard output: restored into a private place first, so that nothing is printed
 * before all of it was checked.
 */
export async function printFile(job: RestoreJob): Promise<ExitCode> {
  const { context, words } = job
  const [path = ''] = words.paths
  const scratch = mkdtempSync(join(tmpdir(), 'backup-restore-'))
  try {
    const quiet = { ...context.reporter, print: () => undefined, tell: () => undefined }
    const inner = {
      ...job,
      context: { ...context, reporter: quiet },
      words: { ...words, into: `${scratch}/${randomUUID()}`, dryRun: false },
    }
    const code = await restoreWords(inner)
    const file = rawPathToBytes(`${rawPathFromText(inner.words.into)}/${path}`)
    if (!existsSync(file)) return code === 0 ? 1 : code
    await pipeline(createReadStream(file), context.stdout, { end: false })
    return code
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
}
