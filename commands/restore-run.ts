// One restore: the generations that are meant, from the first source that has them; the plan, the
// question, the work; and from further sources what the first one had damaged.
//
// Called by backup-restore.ts. The decision is the plan's alone: nothing is written before
// somebody who has to be asked has answered. Throws NOTHING_FOUND, NOT_CONFIRMED, and what sources
// throw.

import { availableParallelism } from 'node:os'
import { BackupError, type ExitCode, worstExitCode } from '../lib/errors.ts'
import { displayPath, isWithin, type RawPath } from '../lib/model/raw-path.ts'
import { formatStamp } from '../lib/model/stamp.ts'
import { Aside } from '../lib/work/aside.ts'
import { pickExports } from '../lib/work/find-exports.ts'
import type { ExportPlace } from '../lib/work/repository.ts'
import { type RestoreOutcome, restoreSelection } from '../lib/work/restore.ts'
import type { Wanted } from '../lib/work/selection.ts'
import { decide, leftOut } from './restore-decision.ts'
import { damagedFiles, type Restored, restoreDamaged } from './restore-fallback.ts'
import { makeDirectory, refuseOurOwn, removeEmpty, placeOf } from './restore-into.ts'
import { movingOf } from './restore-moving.ts'
import type { RestoreJob } from './restore-place.ts'
import {
  isElsewhere,
  openSource,
  type RestoreSource,
  type Selected,
  sourcesOf,
} from './restore-source.ts'
import { tellRestored } from './restore-telling.ts'

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
      if (restored === undefined) restored = await restoreFrom(job, { source, paths: words.paths })
      else {
        restored = await restoreDamaged(job, { source, restored, restorePlace })
        restored = [...restored, ...(await restoreLacking(job, { source, restored }))]
      }
    } catch (error) {
      // What came from the sources before is told in any case.
      if (!isLacking(error) || (isLast && restored === undefined)) throw error
      last = error
      tellPassedOver(job, error)
      continue
    }
    source.tellAfterwards()
    const isDamaged = restored.some(({ outcome }) => damagedFiles(outcome).length > 0)
    const lacking = [...lackingSets(job, restored), ...lackingPaths(job, restored)]
    if (!isDamaged && lacking.length === 0) break
  }
  if (restored === undefined) throw last ?? noSource()
  const { reporter } = context
  const { dryRun } = words
  for (const { place, outcome, complete } of restored) {
    codes.push(tellRestored({ ...outcome, complete }, { place, dryRun, reporter }))
  }
  for (const path of lackingPaths(job, restored)) {
    const name = displayPath(`/${path}`)
    const message = `there is no ${name} in what was looked at; --last looks in older ones, too`
    reporter.report({ kind: 'notice', level: 'warning', code: 'NOTHING_FOUND', message })
    codes.push(last !== undefined && last.exitCode === 13 ? 13 : 1)
  }
  for (const set of lackingSets(job, restored)) {
    // That it is nowhere can only be said of the sources that were looked at.
    const message = `nothing of the set ${set} was found`
    reporter.report({ kind: 'notice', level: 'warning', code: 'SET_LACKING', message })
    if (last === undefined || last.code === 'NOTHING_FOUND') continue
    codes.push(last.exitCode === 13 ? 13 : 3)
  }
  return worstExitCode(codes)
}

/** The sets that everything is to be restored of, and of which no source had anything so far. */
function lackingSets(
  { words, configuration }: RestoreJob,
  restored: readonly Restored[],
): readonly string[] {
  const isAll = words.set === undefined && words.paths.length === 0 && words.patterns === undefined
  const isNewest = words.date === undefined || words.date === 'latest'
  const isOwn = words.machine === undefined || words.machine === configuration.machine
  if (!isAll || !isNewest || !isOwn) return []
  const found = new Set(restored.map(({ place }) => place.set))
  return configuration.backupSets.map(({ name }) => name).filter((name) => !found.has(name))
}

/** The paths that no source had so far. */
function lackingPaths({ words }: RestoreJob, restored: readonly Restored[]): readonly RawPath[] {
  const met = new Set(restored.flatMap((one) => one.met))
  return words.paths.filter((path) => !met.has(path))
}

/** Paths and sets that the sources before had nothing of. */
async function restoreLacking(
  job: RestoreJob,
  { source, restored }: { readonly source: RestoreSource; readonly restored: readonly Restored[] },
): Promise<readonly Restored[]> {
  const paths = lackingPaths(job, restored)
  if (paths.length > 0) return await restoreFrom(job, { source, paths })
  const sets = lackingSets(job, restored)
  const places = source.places.filter(({ set }) => sets.includes(set))
  if (places.length === 0) return []
  return await restoreFrom(job, { source: { ...source, places }, paths })
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
 * Each set's generation, as far as it has the paths; one that has none is passed over if another
 * has. With `--last` each path's newest generation.
 */
async function restoreFrom(
  job: RestoreJob,
  { source, paths }: { readonly source: RestoreSource; readonly paths: readonly RawPath[] },
): Promise<readonly Restored[]> {
  const { words } = job
  const restored: Restored[] = []
  let left = paths
  let nothing: BackupError | undefined
  for (const place of pickPlaces(job, source)) {
    const wanted: Wanted = { paths: left, patterns: words.patterns, isPartial: true }
    try {
      const one = await restorePlace(job, { source, place, wanted })
      restored.push(one)
      if (!words.last) continue
      left = left.filter((path) => !one.met.includes(path))
      if (left.length === 0) break
    } catch (error) {
      if (!(error instanceof BackupError) || error.code !== 'NOTHING_FOUND') throw error
      nothing = error
    }
  }
  if (restored.length === 0 && nothing !== undefined) throw nothing
  return restored
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
    const { met = wanted.paths } = selected.selection
    return { place, outcome: { ...outcome, failures }, complete: selected.complete, met }
  } catch (error) {
    removeEmpty(made)
    throw error
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
  const { met: paths = words.paths } = selected.selection
  const roots = paths.length === 0 ? selected.sources : paths
  const damaged = new Set(selected.damaged.map(({ path }) => path))
  const isLeftOut = leftOut(job, place)
  const stamp = formatStamp(context.now())
  const { selection } = selected
  return await restoreSelection(selection, {
    into,
    moving: movingOf(job, { selection, into }),
    identities: source.identities,
    overwrite: words.overwrite === 'ask' && !context.hasTerminal ? 'never' : words.overwrite,
    deleteIn: words.deletes ? within(paths, selected.sources) : [],
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
