// `backup-restore`: lists, verifies and restores, from staging or from a target.
//
// Parses and tells; lib/work does it. Into the original place only with --yes or a confirmation,
// existing different files only with --overwrite; what is not restored is named and has its exit
// code (invariant 10).

import { existsSync, mkdirSync, readdirSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { dirname } from 'node:path'
import { BackupError, ERRORS, type ExitCode, systemCode, worstExitCode } from '../lib/errors.ts'
import type { Configuration, TargetConfiguration } from '../lib/machine/config.ts'
import { formatSize } from '../lib/model/amount.ts'
import { type RawPath, displayPath, rawPathFromText } from '../lib/model/raw-path.ts'
import { ExportReader } from '../lib/work/export-reader.ts'
import { findExports, pickExports } from '../lib/work/find-exports.ts'
import { type ListedExport, listExternal, listLocal } from '../lib/work/list.ts'
import { type ExportPlace, type Repository, readManifest } from '../lib/work/repository.ts'
import { restoreLocal } from '../lib/work/restore-local.ts'
import { type RestoreOutcome, restoreEntries, selectEntries } from '../lib/work/restore.ts'
import { trustedKeys } from '../lib/work/signing.ts'
import { surveyCollections } from '../lib/work/staging.ts'
import { openTarget, repositoryToRead, targetNamed } from '../lib/work/target-access.ts'
import { digestsFor, verifyCollection } from '../lib/work/verify-local.ts'
import { type VerifiedExport, verifyExports } from '../lib/work/verify.ts'
import { type Command, type CommandContext } from './command.ts'
import { type RestoreWords, loadIdentity, readWords, requireIdentity } from './restore-options.ts'

export const command: Command = {
  name: 'backup-restore',
  summary: 'list, verify and restore backups, from staging or a target',
  usage: `Usage: backup-restore --list [--source local|external]
       backup-restore --source local|external --verify [--set S] [--date D]
       backup-restore --source local|external [--date D] [--set S] [--path P…]
                      [--into DIR] [--overwrite] [--yes] [--dry-run]

  --source local      from staging: plain files, no identity needed
  --source external   from a target: needs the identity
  --target NAME       this target (default: the first one that is there)
  --machine NAME      another machine's exports (default: this machine's)
  --set NAME          this set (default: every set that has the paths)
  --date D            latest (default), or as much of a stamp as is unambiguous: 2025-04-01
  --path P            this file or directory, by its original path (again for more)
  --into DIR          restore below this directory (made if need be); without it
                      everything goes to its original place, after a confirmation
  --overwrite         replace files that are there and differ
  --yes               do not ask before restoring to the original place
  --list              what there is: stamp, set, files, size, cost on the target
  --verify            read every byte and compare it, write nothing; without the
                      identity only checksums and signatures can be checked
  --identity FILE     the identity (default: as configured, or identity.age beside the
                      configuration)
  --passphrase-file FILE  its passphrase, instead of asking
`,
  options: {
    source: { type: 'string' },
    target: { type: 'string' },
    machine: { type: 'string' },
    set: { type: 'string' },
    date: { type: 'string' },
    path: { type: 'string', multiple: true },
    into: { type: 'string' },
    overwrite: { type: 'boolean' },
    yes: { type: 'boolean' },
    list: { type: 'boolean' },
    verify: { type: 'boolean' },
    identity: { type: 'string' },
    'passphrase-file': { type: 'string' },
  },
  run,
}

async function run(context: CommandContext): Promise<ExitCode> {
  const words = readWords(context.values, process.cwd())
  const configuration = await context.loadConfiguration()
  const job = { context, words, configuration }
  if (words.action === 'list') return await list(job)
  if (words.action === 'verify') {
    return words.source === 'local' ? await verifyStaging(job) : await verifyTarget(job)
  }
  return words.source === 'local' ? await restoreFromStaging(job) : await restoreFromTarget(job)
}

interface Job {
  readonly context: CommandContext
  readonly words: RestoreWords
  readonly configuration: Configuration
}

/** Paths named on a terminal; --json names all. */
const PATHS_SHOWN = 50

async function list({ context, words, configuration }: Job): Promise<ExitCode> {
  const { reporter } = context
  const codes: ExitCode[] = [0]
  if (words.source !== 'external') {
    const { listed, damaged } = listLocal(configuration, words.set)
    tellList('staging', listed, context)
    codes.push(warnOfDamaged(damaged, context))
  }
  if (words.source === 'local') return worstExitCode(codes)
  const identity = await loadIdentity(context, configuration)
  for (const target of words.target === undefined
    ? configuration.targets
    : [targetNamed(configuration, words.target)]) {
    try {
      const repository = await repositoryToRead(openTarget(target, configuration))
      const exports = await listExternal({
        configuration,
        repository,
        machine: words.machine ?? configuration.machine,
        set: words.set,
        identities: identity?.identities ?? [],
        publicKeys: await keysOf({ configuration, words }, identity?.signingKeys ?? []),
      })
      tellList(target.name, exports, context)
    } catch (error) {
      if (!(error instanceof BackupError)) throw error
      codes.push(error.exitCode)
      const message = `${error.message}${error.hint === undefined ? '' : ` (${error.hint})`}`
      reporter.report({ kind: 'notice', level: 'warning', code: error.code, message })
    }
  }
  return worstExitCode(codes)
}

/** @returns 13 where a collection's catalog cannot be read, else 0 */
function warnOfDamaged(damaged: readonly string[], { reporter }: CommandContext): ExitCode {
  for (const name of damaged) {
    const message = `the catalog of ${name} in staging is damaged: its tree is there, unlisted`
    reporter.report({ kind: 'notice', level: 'warning', code: 'CATALOG_DAMAGED', message })
  }
  return damaged.length > 0 ? 13 : 0
}

function tellList(
  place: string,
  items: readonly ListedExport[],
  { reporter }: CommandContext,
): void {
  reporter.print(`${place}:`)
  if (items.length === 0) reporter.print('  nothing yet')
  for (const { set, stamp, files, bytes, costBytes, complete } of items) {
    const size = bytes === undefined ? 'encrypted' : `${files} files  ${formatSize(bytes)}`
    const cost = costBytes === undefined ? '' : `  costs ${formatSize(costBytes)}`
    const state =
      complete === undefined ? 'not known whether complete' : complete ? 'complete' : 'INCOMPLETE'
    reporter.print(`  ${stamp}  ${set}  ${size}${cost}  ${state}`)
    reporter.report({
      kind: 'result',
      command: command.name,
      place,
      set,
      stamp,
      files,
      bytes,
      costBytes,
      complete,
    })
  }
}

async function keysOf(
  { configuration, words }: Pick<Job, 'configuration' | 'words'>,
  fromIdentity: readonly { readonly machine: string; readonly publicKey: string }[],
): Promise<readonly string[]> {
  const machine = words.machine ?? configuration.machine
  return await trustedKeys(configuration, { machine, fromIdentity })
}

/** The first configured target that is there, or the one that was named. */
async function openRepository({ words, configuration, context }: Job): Promise<Repository> {
  if (words.target !== undefined)
    return await repositoryToRead(
      openTarget(targetNamed(configuration, words.target), configuration),
    )
  let last: BackupError | undefined
  for (const target of configuration.targets) {
    try {
      const repository = await repositoryToRead(openTarget(target, configuration))
      context.reporter.report({
        kind: 'notice',
        level: 'info',
        code: 'TARGET',
        message: `from ${describe(target)}`,
      })
      return repository
    } catch (error) {
      if (!(error instanceof BackupError)) throw error
      last = error
    }
  }
  throw (
    last
    ?? new BackupError('CONFIG_INVALID', 'no targets are configured', {
      hint: 'add one under `targets`',
    })
  )
}

function describe({ name, path }: TargetConfiguration): string {
  return `${name} (${path})`
}

async function verifyTarget(job: Job): Promise<ExitCode> {
  const { context, words, configuration } = job
  const repository = await openRepository(job)
  const identity = await loadIdentity(context, configuration)
  const machine = words.machine ?? configuration.machine
  const found = await findExports(repository, { machine, set: words.set })
  const places = words.date === undefined ? found : pickExports(found, words.date)
  const publicKeys = await keysOf(job, identity?.signingKeys ?? [])
  const { exports, bundles, bytesRead, deep } = await verifyExports({
    repository,
    places,
    publicKeys: async () => publicKeys,
    identities: identity?.identities ?? [],
    cores: availableParallelism(),
    report: context.reporter.report,
    signal: context.signal,
  })
  for (const one of exports) tellVerified(one, context)
  const { reporter } = context
  reporter.print(
    `${bundles} bundles, ${formatSize(bytesRead)} read from ${repository.target.place}`,
  )
  if (!deep)
    reporter.print(
      'only checksums and signatures were checked: without the identity nothing can be decrypted',
    )
  return worstExitCode(
    exports.map(({ problems, complete }) =>
      problems.length > 0 ? 13 : complete === false ? 3 : 0,
    ),
  )
}

function tellVerified(
  { set, stamp, complete, files, bytes, problems, damaged }: VerifiedExport,
  { reporter }: CommandContext,
): void {
  const size = bytes === undefined ? '' : `: ${files} files, ${formatSize(bytes)} would be restored`
  const state =
    problems.length > 0 ? 'DAMAGED' : complete === false ? 'whole, but INCOMPLETE' : 'whole'
  reporter.print(`${set} ${stamp}: ${state}${size}`)
  for (const { message } of problems.slice(0, PATHS_SHOWN)) reporter.print(`  ${message}`)
  for (const path of damaged.slice(0, PATHS_SHOWN))
    reporter.print(`  damaged: ${displayPath(path)}`)
  if (damaged.length > PATHS_SHOWN)
    reporter.print(`  and ${damaged.length - PATHS_SHOWN} more (--json names all)`)
  const paths = damaged.map(displayPath)
  reporter.report({
    kind: 'result',
    command: command.name,
    set,
    stamp,
    complete,
    files,
    bytes,
    damaged: paths,
    problems: problems.map(({ code, message }) => ({ code, message })),
  })
}

async function verifyStaging({ context, words, configuration }: Job): Promise<ExitCode> {
  const { staging } = configuration
  const { reporter, signal } = context
  const found = collectionsOf({ words, configuration })
  const places = words.date === undefined ? found : pickExports(found, words.date)
  const codes: ExitCode[] = [warnOfDamaged(listLocal(configuration, words.set).damaged, context)]
  for (const { set, stamp } of places) {
    const { problems, files, bytes, contentChecked } = await verifyCollection({
      staging,
      set,
      stamp,
      paths: words.paths,
      digests: await digestsFor({ staging, set, stamp }),
      report: reporter.report,
      signal,
    })
    const state = contentChecked ? 'whole' : 'as collected, as far as metadata tell'
    const how = contentChecked
      ? 'content and metadata'
      : 'metadata only: no export tells its digests'
    reporter.print(
      `${set} ${stamp}: ${problems.length > 0 ? 'DAMAGED' : state} (${how}): `
        + `${files} files, ${formatSize(bytes)}`,
    )
    for (const { path, why } of problems.slice(0, PATHS_SHOWN))
      reporter.print(`  ${displayPath(path)}: ${why}`)
    reporter.report({
      kind: 'result',
      command: command.name,
      set,
      stamp,
      files,
      bytes,
      contentChecked,
      problems: problems.map(({ path, why }) => ({ path: displayPath(path), why })),
    })
    codes.push(problems.length > 0 ? 13 : 0)
  }
  return worstExitCode(codes)
}

/** @throws BackupError NOTHING_FOUND when there is no collection */
function collectionsOf({
  words,
  configuration,
}: Pick<Job, 'words' | 'configuration'>): readonly ExportPlace[] {
  const { staging, machine, backupSets } = configuration
  const sets = words.set === undefined ? backupSets.map(({ name }) => name) : [words.set]
  const found = sets.flatMap((set) =>
    surveyCollections({ staging, set }).collections.map(({ stamp }) => ({ machine, set, stamp })),
  )
  if (found.length > 0) return found
  throw new BackupError('NOTHING_FOUND', `staging has no collection of ${sets.join(', ')}`, {
    hint: 'backup-collect makes one; `--source external` reads from a target',
  })
}

async function restoreFromStaging(job: Job): Promise<ExitCode> {
  const { context, words, configuration } = job
  const places = pickExports(collectionsOf(job), words.date)
  const into = await directoryFor(job)
  const { reporter, signal } = context
  return await restoreEach(
    job,
    places,
    async ({ set, stamp }) =>
      await restoreLocal({
        staging: configuration.staging,
        set,
        stamp,
        paths: words.paths,
        into,
        overwrite: words.overwrite,
        dryRun: words.dryRun,
        report: reporter.report,
        signal,
      }),
  )
}

async function restoreFromTarget(job: Job): Promise<ExitCode> {
  const { context, words, configuration } = job
  const repository = await openRepository(job)
  const identity = await requireIdentity(context, configuration)
  const { identities } = identity
  const machine = words.machine ?? configuration.machine
  const found = await findExports(repository, { machine, set: words.set })
  const publicKeys = await keysOf(job, identity.signingKeys)
  const into = await directoryFor(job)
  return await restoreEach(job, pickExports(found, words.date), async (place) => {
    const manifest = await readManifest(repository, place, { publicKeys, identities })
    const reader = new ExportReader({ repository, manifest, identities })
    try {
      const selected = selectEntries(reader, words.paths)
      const outcome = await restoreEntries(
        {
          reader,
          identities,
          into,
          overwrite: words.overwrite,
          dryRun: words.dryRun,
          cores: availableParallelism(),
          report: context.reporter.report,
          signal: context.signal,
        },
        selected,
      )
      return { ...outcome, incomplete: !manifest.complete }
    } finally {
      reader.close()
    }
  })
}

/**
 * Restores each set's generation; one that does not have the paths is passed over if another has.
 */
async function restoreEach(
  job: Job,
  places: readonly ExportPlace[],
  restore: (place: ExportPlace) => Promise<RestoreOutcome & { readonly incomplete?: boolean }>,
): Promise<ExitCode> {
  const codes: ExitCode[] = []
  let nothing: BackupError | undefined
  for (const place of places) {
    try {
      codes.push(tellRestored(await restore(place), { place, job }))
    } catch (error) {
      if (!(error instanceof BackupError) || error.code !== 'NOTHING_FOUND') throw error
      nothing = error
    }
  }
  if (codes.length === 0 && nothing !== undefined) throw nothing
  return worstExitCode(codes)
}

function tellRestored(
  outcome: RestoreOutcome & { readonly incomplete?: boolean },
  { place, job }: { place: ExportPlace; job: Job },
): ExitCode {
  const { reporter } = job.context
  const { written, same, bytes, kept, failures, lost, incomplete } = outcome
  const verb = job.words.dryRun ? 'would be restored' : 'restored'
  reporter.tell(
    `${place.set} ${place.stamp}: ${written} ${verb} (${formatSize(bytes)}), `
      + `${same} the same already`,
  )
  const warn = (code: string, paths: readonly string[]) => {
    for (const message of paths.slice(0, PATHS_SHOWN))
      reporter.report({ kind: 'notice', level: 'warning', code, message })
    const more = paths.length - PATHS_SHOWN
    if (more > 0)
      reporter.report({
        kind: 'notice',
        level: 'warning',
        code,
        message: `and ${more} more (--json names all)`,
      })
  }
  warn(
    'KEPT',
    kept.map(
      (path) =>
        `${displayPath(path)}: something else is there and was kept (--overwrite replaces it)`,
    ),
  )
  warn(
    'NOT_RESTORED',
    failures.map(({ path, why }) => `${displayPath(path)}: not restored: ${why}`),
  )
  warn(
    'METADATA_LOST',
    lost.map(
      ({ path, what }) =>
        `${displayPath(path)}: restored without ${what.map(displayPath).join(', ')}`,
    ),
  )
  if (incomplete === true) {
    warn('INCOMPLETE', [`${place.set} ${place.stamp} was incomplete when it was collected`])
  }
  const codes = failures.map(({ code }) => ERRORS[code][0])
  const exitCode = worstExitCode([
    ...codes,
    kept.length + lost.length > 0 || incomplete === true ? 3 : 0,
  ])
  reporter.report({
    kind: 'result',
    command: command.name,
    set: place.set,
    stamp: place.stamp,
    exitCode,
    written,
    same,
    bytes,
    kept: kept.map(displayPath),
    failures: failures.map((failure) => ({ ...failure, path: displayPath(failure.path) })),
    lost: lost.map(({ path, what }) => ({ path: displayPath(path), what })),
  })
  return exitCode
}

/**
 * The directory to restore below, made if need be; '' for the original place, which has to be
 * confirmed.
 */
async function directoryFor({ context, words, configuration }: Job): Promise<RawPath> {
  const { into, dryRun } = words
  if (into === undefined) {
    if (dryRun || words.yes || (await context.confirm('Restore to the original place?'))) return ''
    throw new BackupError('NOT_CONFIRMED', 'restoring to the original place has to be confirmed', {
      hint: 'give --yes, or --into DIR to restore elsewhere; nothing was changed',
    })
  }
  refuseOurOwn(into, configuration)
  if (!dryRun) makeDirectory(into)
  return into === '/' ? '' : rawPathFromText(into)
}

/** @throws BackupError USAGE below staging or a target, where nothing may be changed */
function refuseOurOwn(into: string, { staging, targets }: Configuration): void {
  const ours = [staging, ...targets.map(({ path }) => path)]
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

function makeDirectory(path: string): void {
  try {
    makeEach(path)
    readdirSync(path)
  } catch (cause) {
    const code = systemCode(cause)
    if (code === undefined) throw cause
    throw new BackupError('RESTORE_FAILED', `${path} cannot be a directory to restore into`, {
      hint: 'name a directory that you may write, or that does not exist yet; nothing was restored',
      cause,
    })
  }
}
