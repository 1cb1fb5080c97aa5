// One restore: the generations that are meant, from the first source that has them; the plan, the
// question, the work; and from further sources what the first one had damaged.
//
// Called by backup-restore.ts. The decision is the plan's alone: nothing is written before
// somebody who has to be asked has answered. Throws NOTHING_FOUND, NOT_CONFIRMED, and what sources
// throw.

import type { Buffer } from 'node:buffer'
import { randomUUID } from 'node:crypto'
import {
  createReadStream,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  rmSync,
  rmdirSync,
} from 'node:fs'
import { availableParallelism } from 'node:os'
import { dirname } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { BackupError, ERRORS, type ExitCode, systemCode, worstExitCode } from '../lib/errors.ts'
import type { Configuration } from '../lib/machine/config.ts'
import { setTimes } from '../lib/machine/posix.ts'
import {
  type RawPath,
  displayPath,
  isWithin,
  parentOf,
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
import type { RestoreWords } from './restore-options.ts'
import type { RestoreJob } from './restore-place.ts'
import {
  type RestoreSource,
  type Selected,
  isElsewhere,
  openSource,
  sourcesOf,
} from './restore-source.ts'
import { planLines, tellRestored } from './restore-telling.ts'
import { makeScratch } from './scratch.ts'

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
      // An identity that is not at hand is no reason to hide what came from elsewhere.
      const isLocked = error instanceof BackupError && error.exitCode === 12
      const isFirst = restored === undefined && last === undefined
      if (!isElsewhere(error) && (!isLocked || isFirst)) throw error
      last ??= error
      if (!isLocked && error.code !== 'NOTHING_FOUND') last = error
      if (!isLast || isLocked) tellPassedOver(job, error)
      continue
    }
    if (names.length > 1) tellSource(job, source)
    try {
      restored =
        restored === undefined
          ? await restoreFrom(job, source)
          : await restoreDamaged(job, { source, restored })
    } catch (error) {
      if (!isLacking(error) || isLast) throw error
      last = error
      tellPassedOver(job, error)
      continue
    }
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

/** The source does not have it, is damaged, or is not reached any more. */
function isLacking(error: unknown): error is BackupError {
  if (!(error instanceof BackupError) || error.code === 'UNSAFE_PATH') return false
  return error.code === 'NOTHING_FOUND' || error.exitCode === 10 || error.exitCode === 13
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
      // What was to be deleted is.
      const words: RestoreWords = { ...job.words, yes: true, deletes: false }
      const wanted = { paths, patterns: words.patterns }
      const directories = paths.map((path) => `${placeOf(words.into)}/${parentOf(path)}`)
      const other = await keepingTimes(directories, async () => {
        const restored = await restorePlace({ ...job, words }, { source, place, wanted })
        removeSalvage(one.outcome, restored.outcome)
        return restored
      })
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

/** What could be saved of files that came whole from elsewhere. */
function removeSalvage(first: RestoreOutcome, second: RestoreOutcome): void {
  const lacking = new Set([...second.kept, ...second.failures.map(({ path }) => path)])
  for (const { path, corrupt } of first.failures) {
    if (corrupt !== undefined && !lacking.has(path)) rmSync(rawPathToBytes(corrupt))
  }
}

/** Directories that were finished already, and get more files. */
async function keepingTimes<T>(
  directories: readonly RawPath[],
  action: () => Promise<T>,
): Promise<T> {
  const times = [...new Set(directories)].map((path) => {
    return { path, stat: lstatSync(rawPathToBytes(path), { throwIfNoEntry: false, bigint: true }) }
  })
  const result = await action()
  for (const { path, stat } of times) {
    if (stat?.isDirectory() === true) setTimesOfOurs(path, stat)
  }
  return result
}

/** Somebody else's directory has its time from whoever wrote there last. */
function setTimesOfOurs(path: RawPath, times: { readonly mtimeNs: bigint }): void {
  try {
    setTimes(path, times)
  } catch (error) {
    if (systemCode(error) === undefined) throw error
  }
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
  const made: string[] = []
  try {
    if (words.deletes && !selected.complete) throw incomplete(place)
    const outcome =
      words.into === undefined || words.dryRun
        ? await restoreInto(job, { ...of, selected, into: placeOf(words.into) })
        : await restoreInto(job, { ...of, selected, into: makeDirectory(words.into, made) })
    const failures = [...selected.damaged, ...outcome.failures]
    return { place, outcome: { ...outcome, failures }, complete: selected.complete }
  } catch (error) {
    removeEmpty(made)
    throw error
  } finally {
    selected.close()
  }
}

/** Directories that nothing came into. */
function removeEmpty(made: readonly string[]): void {
  for (const path of made.toReversed()) {
    try {
      rmdirSync(path)
    } catch (error) {
      if (systemCode(error) === undefined) throw error
    }
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
  const damaged = new Set(selected.damaged.map(({ path }) => path))
  const isLeftOut = leftOut(job, place)
  const stamp = formatStamp(context.now())
  const { selection } = selected
  return await restoreSelection(selection, {
    into,
    moving: movingOf(job, { selection, into }),
    identities: source.identities,
    overwrite: words.overwrite === 'ask' && !context.hasTerminal ? 'never' : words.overwrite,
    deleteIn: words.deletes ? within(words.paths, selected.sources) : [],
    // What cannot be restored is no reason to delete what is there.
    isLeftOut: (path, isDirectory) => damaged.has(path) || isLeftOut?.(path, isDirectory) === true,
    dryRun: words.dryRun,
    checksRoom: !words.ignoresSpace,
    cores: availableParallelism(),
    aside: words.discards ? undefined : new Aside({ into, roots, stamp }),
    keepsCorrupt: !words.prints,
    decide: async (plan) => await decide(job, { plan, place }),
    report: context.reporter.report,
    signal: context.signal,
  })
}

/** The paths as far as they are of the sources: of what lies above, the set knows nothing. */
function within(paths: readonly RawPath[], sources: readonly RawPath[]): readonly RawPath[] {
  return paths.flatMap((path) => {
    if (sources.some((directory) => isWithin({ path, directory }))) return [path]
    return sources.filter((source) => isWithin({ path: source, directory: path }))
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
function makeEach(path: string, made: string[]): void {
  if (existsSync(path)) return
  makeEach(dirname(path), made)
  mkdirSync(path)
  made.push(path)
}

/** @param made gets what had to be made */
function makeDirectory(path: string, made: string[]): RawPath {
  try {
    makeEach(path, made)
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
  const scratch = makeScratch('restore')
  try {
    const quiet = { ...context.reporter, print: () => undefined, tell: () => undefined }
    const inner = {
      ...job,
      context: { ...context, reporter: quiet },
      words: { ...words, into: `${scratch}/${randomUUID()}`, dryRun: false },
    }
    const code = await restoreWords(inner)
    const file = rawPathToBytes(`${rawPathFromText(inner.words.into)}/${path}`)
    if (lstatSync(file, { throwIfNoEntry: false })?.isFile() !== true) return code === 0 ? 1 : code
    await writeOut(file, context.stdout)
    return code
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
}

/** A reader that has left, or a disk that is full, is no bug: main.ts sees it, too. */
async function writeOut(file: Buffer, stdout: NodeJS.WriteStream): Promise<void> {
  let isLost = false
  stdout.once('error', () => {
    isLost = true
  })
  try {
    await pipeline(createReadStream(file), stdout, { end: false })
  } catch (error) {
    if (!isLost) throw error
  }
}
