// Verifying: every byte of exports, or of collections, is read and compared; what was found is told
// and kept as a receipt.
//
// The one procedure behind `backup-restore --verify` and `backup verify`. Writes nothing but
// receipts. Throws what lib/work/verify.ts and verify-local.ts throw.

import { existsSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { BackupError, type ExitCode, worstExitCode } from '../lib/errors.ts'
import { formatSize } from '../lib/model/amount.ts'
import { findExports, pickExports } from '../lib/work/find-exports.ts'
import { describeHidden, findHidden, hiddenError } from '../lib/work/hidden-objects.ts'
import { noteDamage } from '../lib/work/known-damage.ts'
import { listLocal } from '../lib/work/list.ts'
import { receiptOfVerification, writeReceipt } from '../lib/work/receipts.ts'
import { repairAdvice } from '../lib/work/repair.ts'
import type { Repository } from '../lib/work/repository.ts'
import { openSigner } from '../lib/work/signing.ts'
import { targetNamed } from '../lib/work/target-access.ts'
import { digestsFor, verifyCollection } from '../lib/work/verify-local.ts'
import { verifyExports, type VerifyOutcome } from '../lib/work/verify.ts'
import { beforeVerifying, readingOf } from './restore-bucket.ts'
import { loadIdentity } from './restore-options.ts'
import { type RestoreJob, collectionsOf, keysOf, openRepository } from './restore-place.ts'
import { tellVerified, tellVerifiedCollection, warnOfDamaged } from './restore-telling.ts'

/** Exports on a target. */
export async function verifyTarget(job: RestoreJob): Promise<ExitCode> {
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

/** What was deleted or overwritten in a bucket that keeps versions. */
async function tellHidden(
  { context, configuration, words }: RestoreJob,
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
  { context, configuration }: RestoreJob,
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

/** Collections in staging. */
export async function verifyStaging({
  context,
  words,
  configuration,
}: RestoreJob): Promise<ExitCode> {
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
