// `backup-restore`: lists, verifies and restores, from staging or from a target.
//
// Parses; lib/work does it, restore-telling.ts tells it. Into the original place only with --yes or
// a confirmation, existing different files only with --overwrite; what is not restored is named and
// has its exit code (invariant 10).

import { existsSync, mkdirSync, readdirSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { dirname } from 'node:path'
import { BackupError, type ExitCode, systemCode, worstExitCode } from '../lib/errors.ts'
import type { Configuration, TargetConfiguration } from '../lib/machine/config.ts'
import type { Target } from '../lib/target/target.ts'
import { formatSize } from '../lib/model/amount.ts'
import { isFrozen } from '../lib/model/collection.ts'
import { type RawPath, rawPathFromText } from '../lib/model/raw-path.ts'
import { bundlePath } from '../lib/model/verification.ts'
import { ExportReader } from '../lib/work/export-reader.ts'
import { findExports, pickExports } from '../lib/work/find-exports.ts'
import {
  describeHidden,
  findHidden,
  hiddenError,
  olderReadsError,
  preferSigned,
} from '../lib/work/hidden-objects.ts'
import { noteDamage } from '../lib/work/known-damage.ts'
import { listExternal, listLocal } from '../lib/work/list.ts'
import { readMarks } from '../lib/work/marks.ts'
import { type ExportPlace, type Repository, readManifest } from '../lib/work/repository.ts'
import { repairAdvice } from '../lib/work/repair.ts'
import { restoreLocal } from '../lib/work/restore-local.ts'
import { receiptOfVerification, writeReceipt } from '../lib/work/receipts.ts'
import { type RestoreOutcome, restoreEntries, selectEntries } from '../lib/work/restore.ts'
import { openSigner, trustedKeys } from '../lib/work/signing.ts'
import { surveyCollections } from '../lib/work/staging.ts'
import { openTarget, repositoryToRead, targetNamed } from '../lib/work/target-access.ts'
import { digestsFor, verifyCollection } from '../lib/work/verify-local.ts'
import { type VerifyOutcome, verifyExports } from '../lib/work/verify.ts'
import { type Command, type CommandContext } from './command.ts'
import {
  tellList,
  tellRestored,
  tellVerified,
  tellVerifiedCollection,
  warnOfDamaged,
} from './restore-telling.ts'
import { beforeVerifying, makeReadable, readingOf, tellReadable } from './restore-bucket.ts'
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

/** A tag stands where a date does: it names a set's generation. */
function withTag(words: RestoreWords, { staging }: Configuration): RestoreWords {
  if (words.date === undefined || !/^[a-z]/.test(words.date)) return words
  const tag = readMarks(staging).tags.find(({ name }) => name === words.date)
  return tag === undefined ? words : { ...words, set: tag.set, date: tag.stamp }
}

interface Job {
  readonly context: CommandContext
  readonly words: RestoreWords
  readonly configuration: Configuration
}

async function list({ context, words, configuration }: Job): Promise<ExitCode> {
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

async function keysOf(
  { configuration, words }: Pick<Job, 'configuration' | 'words'>,
  fromIdentity: readonly { readonly machine: string; readonly publicKey: string }[],
): Promise<readonly string[]> {
  const machine = words.machine ?? configuration.machine
  return await trustedKeys(configuration, { machine, fromIdentity })
}

/** The first configured target that is there, or the one that was named. */
async function openRepository({ words, configuration, context }: Job): Promise<Repository> {
  const open = async (target: TargetConfiguration): Promise<Target> => {
    // Backups need not be allowed to read back what they wrote; whoever restores has to be.
    const as = target.kind === 's3' && target.adminProfile !== undefined ? 'admin' : 'backup'
    return await openTarget(target, configuration, { as })
  }
  if (words.target !== undefined) {
    return await repositoryToRead(await open(targetNamed(configuration, words.target)))
  }
  let last: BackupError | undefined
  for (const target of configuration.targets) {
    try {
      const opened = await open(target)
      const repository = await repositoryToRead(opened)
      context.reporter.report({
        kind: 'notice',
        level: 'info',
        code: 'TARGET',
        message: `from ${describe(opened)}`,
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

function describe({ name, place }: Target): string {
  return `${name} (${place})`
}

async function verifyTarget(job: Job): Promise<ExitCode> {
  const { context, words, configuration } = job
  const repository = await openRepository(job)
  const identity = await loadIdentity(context, configuration)
  const machine = words.machine ?? configuration.machine
  const publicKeys = await keysOf(job, identity?.signingKeys ?? [])
  let found: Awaited<ReturnType<typeof findExports>>
  try {
    found = await findExports(repository, { machine, set: words.set })
  } catch (error) {
    if (!(error instanceof BackupError) || error.code !== 'NOTHING_FOUND') throw error
    // That somebody hid all of them is worse than that there is none.
    const { bucket } = repository.target
    if (bucket !== undefined && (await tellHidden(job, { repository, publicKeys }))) return 13
    throw error
  }
  const places = words.date === undefined ? found : pickExports(found, words.date)
  const startMs = context.now()
  const { target } = repository
  const reading = readingOf(context, {
    target,
    configuration: targetNamed(configuration, target.name),
  })
  const outcome = await verifyExports({
    repository,
    places,
    publicKeys: async () => publicKeys,
    identities: identity?.identities ?? [],
    cores: availableParallelism(),
    beforeReading:
      reading === undefined ? undefined : async (all) => await beforeVerifying(reading, all),
    report: context.reporter.report,
    signal: context.signal,
  })
  const { exports, bundles, bytesRead, deep } = outcome
  for (const one of exports) tellVerified(one, context.reporter)
  const { reporter } = context
  const paths = outcome.damagedFiles
  const advise = { paths, staging: configuration.staging, signal: context.signal }
  const isUntrusted = exports.some(({ problems }) => {
    return problems.some(({ code }) => code === 'SIGNER_UNKNOWN')
  })
  if (isUntrusted) {
    const message = `the keys of ${machine} are not trusted here: see trusted_signing_keys`
    reporter.report({ kind: 'notice', level: 'warning', code: 'SIGNER_UNKNOWN', message })
  }
  // Without its keys nobody can say what it needs.
  const isHidden =
    reading !== undefined && !isUntrusted && (await tellHidden(job, { repository, publicKeys }))
  if (existsSync(configuration.staging) && target.access === 'files') {
    for (const line of await repairAdvice(target, advise)) reporter.print(line)
  }
  await keepReceipt(job, { outcome, repository, startMs })
  reporter.print(
    `${bundles} bundles, ${formatSize(bytesRead)} read from ${repository.target.place}`,
  )
  if (!deep)
    reporter.print(
      'only checksums and signatures were checked: without the identity nothing can be decrypted',
    )
  const codes = exports.map(({ problems, complete, unread }): ExitCode => {
    return problems.length > 0 ? 13 : complete === false || unread > 0 ? 3 : 0
  })
  return worstExitCode([...codes, isHidden ? 13 : 0])
}

/** What was restored is what was signed; that somebody hid it has to be known all the same. */
function tellOlder({ reporter }: CommandContext, target: Target): void {
  const error = olderReadsError(target)
  if (error === undefined) return
  const { code, message, hint } = error
  reporter.report({ kind: 'notice', level: 'warning', code, message: `${message} (${hint})` })
}

/** What was deleted or overwritten in a bucket that keeps versions. */
async function tellHidden(
  { context, configuration, words }: Job,
  {
    repository,
    publicKeys,
  }: { readonly repository: Repository; readonly publicKeys: readonly string[] },
): Promise<boolean> {
  const machine = words.machine ?? configuration.machine
  const { signal, reporter } = context
  const findings = await findHidden(repository, { machine, publicKeys, signal })
  if (!findings.isKnowable) {
    const message = `whether anything was deleted or overwritten cannot be known: ${findings.why}`
    reporter.report({ kind: 'notice', level: 'info', code: 'VERSIONS_UNKNOWN', message })
  }
  const error = hiddenError(repository, findings)
  if (error === undefined) return false
  const { code, message, hint } = error
  for (const one of findings.hidden) reporter.print(describeHidden(one))
  const text = `${message}${hint === undefined ? '' : ` (${hint})`}`
  reporter.report({ kind: 'notice', level: 'warning', code, message: text })
  return true
}

/** What `status` calls proven. A machine that has no key or staging of its own keeps none. */
async function keepReceipt(
  { context, configuration }: Job,
  of: {
    readonly outcome: VerifyOutcome
    readonly repository: Repository
    readonly startMs: number
  },
): Promise<void> {
  const { staging } = configuration
  if (of.outcome.exports.length === 0 || !existsSync(staging)) return
  // How another machine's exports are is that machine's affair.
  if (of.outcome.exports.some(({ machine }) => machine !== configuration.machine)) return
  // What was not read is not proven.
  if (of.outcome.exports.some(({ unread }) => unread > 0)) return
  try {
    const receipt = receiptOfVerification({ ...of, configuration, endMs: context.now() })
    await writeReceipt({ staging, receipt, signer: await openSigner(configuration) })
    // The next export does not refer to what is damaged.
    const { damagedFiles: damaged, wholeFiles: whole } = of.outcome
    noteDamage({ staging, id: of.repository.id }, { damaged, whole })
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    const message = `no receipt was written: ${error.message}`
    context.reporter.report({ kind: 'notice', level: 'info', code: error.code, message })
  }
}

async function verifyStaging({ context, words, configuration }: Job): Promise<ExitCode> {
  const { staging } = configuration
  const { reporter, signal } = context
  const found = collectionsOf({ words, configuration })
  const places = words.date === undefined ? found : pickExports(found, words.date)
  const codes: ExitCode[] = [warnOfDamaged(listLocal(configuration, words.set).damaged, reporter)]
  for (const { set, stamp } of places) {
    const verified = await verifyCollection({
      staging,
      set,
      stamp,
      paths: words.paths,
      digests: await digestsFor({ staging, set, stamp }),
      report: reporter.report,
      signal,
    })
    tellVerifiedCollection({ set, stamp }, { verified, reporter })
    codes.push(verified.problems.length > 0 ? 13 : 0)
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
    surveyCollections({ staging, set }).collections.map((header) => {
      return { machine, set, stamp: header.stamp, isSuspect: isFrozen(header) }
    }),
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
  job: Job,
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
