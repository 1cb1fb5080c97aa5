// `backup-restore`: lists, verifies and restores, from staging or from a target.
//
// Parses; lib/work does it, restore-telling.ts tells it. Into the original place only with --yes or
// a confirmation, existing different files only with --overwrite; what is not restored is named and
// has its exit code (invariant 10).

import { existsSync, mkdirSync, readdirSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { dirname } from 'node:path'
import { BackupError, type ExitCode, systemCode, worstExitCode } from '../lib/errors.ts'
import type { Configuration } from '../lib/machine/config.ts'
import { type RawPath, rawPathFromText } from '../lib/model/raw-path.ts'
import { bundlePath } from '../lib/model/verification.ts'
import type { Target } from '../lib/target/target.ts'
import { ExportReader } from '../lib/work/export-reader.ts'
import { findExports, pickExports } from '../lib/work/find-exports.ts'
import { olderReadsError, preferSigned } from '../lib/work/hidden-objects.ts'
import { listExternal, listLocal } from '../lib/work/list.ts'
import { type ExportPlace, readManifest } from '../lib/work/repository.ts'
import { restoreLocal } from '../lib/work/restore-local.ts'
import { restoreEntries, type RestoreOutcome, selectEntries } from '../lib/work/restore.ts'
import { openTarget, repositoryToRead, targetNamed } from '../lib/work/target-access.ts'
import type { Command, CommandContext } from './command.ts'
import { makeReadable, readingOf, tellReadable } from './restore-bucket.ts'
import { loadIdentity, readWords, requireIdentity } from './restore-options.ts'
import { type RestoreJob, collectionsOf, keysOf, openRepository, withTag } from './restore-place.ts'
import { tellList, tellRestored, warnOfDamaged } from './restore-telling.ts'
import { verifyStaging, verifyTarget } from './restore-verify.ts'

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
  --date D            latest (default), as much of a stamp as is unambiguous: 2025-04-01,
                      or a tag
  --path P            this file or directory, by its original path (again for more)
  --into DIR          restore below this directory (made if need be); without it
                      everything goes to its original place, after a confirmation
  --thaw TIER         ask for what is in cold storage: bulk, standard or expedited; without
                      it a plan says what that costs and how long it takes
  --wait              wait until it can be read (hours)
  --resume            the same restore again, once it can
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
    thaw: { type: 'string' },
    wait: { type: 'boolean' },
    resume: { type: 'boolean' },
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
  const job = { context, words: withTag(words, configuration), configuration }
  if (words.action === 'list') return await list(job)
  if (words.action === 'verify') {
    return words.source === 'local' ? await verifyStaging(job) : await verifyTarget(job)
  }
  return words.source === 'local' ? await restoreFromStaging(job) : await restoreFromTarget(job)
}

async function list({ context, words, configuration }: RestoreJob): Promise<ExitCode> {
  const { reporter } = context
  const codes: ExitCode[] = [0]
  if (words.source !== 'external') {
    const { listed, damaged } = listLocal(configuration, words.set)
    tellList('staging', listed, reporter)
    codes.push(warnOfDamaged(damaged, reporter))
  }
  if (words.source === 'local') return worstExitCode(codes)
  const identity = await loadIdentity(context, configuration)
  for (const target of words.target === undefined
    ? configuration.targets
    : [targetNamed(configuration, words.target)]) {
    try {
      const repository = await repositoryToRead(await openTarget(target, configuration))
      const exports = await listExternal({
        configuration,
        repository,
        machine: words.machine ?? configuration.machine,
        set: words.set,
        identities: identity?.identities ?? [],
        publicKeys: await keysOf({ configuration, words }, identity?.signingKeys ?? []),
      })
      tellList(target.name, exports, reporter)
    } catch (error) {
      if (!(error instanceof BackupError)) throw error
      codes.push(error.exitCode)
      const message = `${error.message}${error.hint === undefined ? '' : ` (${error.hint})`}`
      reporter.report({ kind: 'notice', level: 'warning', code: error.code, message })
    }
  }
  return worstExitCode(codes)
}

/** What was restored is what was signed; that somebody hid it has to be known all the same. */
function tellOlder({ reporter }: CommandContext, target: Target): void {
  const error = olderReadsError(target)
  if (error === undefined) return
  const { code, message, hint } = error
  reporter.report({ kind: 'notice', level: 'warning', code, message: `${message} (${hint})` })
}

async function restoreFromStaging(job: RestoreJob): Promise<ExitCode> {
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

async function restoreFromTarget(job: RestoreJob): Promise<ExitCode> {
  const { context, words, configuration } = job
  const repository = await openRepository(job)
  const identity = await requireIdentity(context, configuration)
  const { identities } = identity
  const machine = words.machine ?? configuration.machine
  const found = await findExports(repository, { machine, set: words.set })
  const publicKeys = await keysOf(job, identity.signingKeys)
  const into = await directoryFor(job)
  const { target } = repository
  const reading = readingOf(context, {
    target,
    configuration: targetNamed(configuration, target.name),
  })
  const code = await restoreEach(job, pickExports(found, words.date), async (place) => {
    const manifest = await readManifest(repository, place, { publicKeys, identities })
    if (target.bucket !== undefined) {
      const bundles = new Map(
        manifest.bundles.map(({ name, sha256 }) => {
          return [bundlePath(place.machine, name), sha256]
        }),
      )
      await preferSigned(target.bucket, { directory: `machines/${place.machine}`, bundles })
    }
    const { signal } = context
    const reader = new ExportReader({ repository, manifest, identities, signal })
    try {
      const selected = await selectEntries(reader, words.paths)
      if (reading !== undefined) {
        const needs = { reader, selection: selected, tier: words.thaw }
        await (words.dryRun ? tellReadable : makeReadable)(reading, needs)
      }
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
  tellOlder(context, target)
  return code
}

/**
 * Restores each set's generation; one that does not have the paths is passed over if another has.
 */
async function restoreEach(
  job: RestoreJob,
  places: readonly ExportPlace[],
  restore: (place: ExportPlace) => Promise<RestoreOutcome & { readonly incomplete?: boolean }>,
): Promise<ExitCode> {
  const codes: ExitCode[] = []
  let nothing: BackupError | undefined
  for (const place of places) {
    try {
      const { reporter } = job.context
      const { dryRun } = job.words
      codes.push(tellRestored(await restore(place), { place, dryRun, reporter }))
    } catch (error) {
      if (!(error instanceof BackupError) || error.code !== 'NOTHING_FOUND') throw error
      nothing = error
    }
  }
  if (codes.length === 0 && nothing !== undefined) throw nothing
  return worstExitCode(codes)
}

/**
 * The directory to restore below, made if need be; '' for the original place, which has to be
 * confirmed.
 */
async function directoryFor({ context, words, configuration }: RestoreJob): Promise<RawPath> {
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
