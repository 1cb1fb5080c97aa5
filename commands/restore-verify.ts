// Verifying: exports on a target, or collections in staging, are read and compared; what was found
// is told.
//
// The one procedure behind `backup-restore --verify` and `backup verify`. lib/work/proof.ts does it
// and keeps receipts, verify-telling.ts says it. Throws what lib/work/proof.ts and verify-local.ts
// throw.

import { existsSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { BackupError, type ExitCode, worstExitCode } from '../lib/errors.ts'
import type { TargetConfiguration } from '../lib/machine/config.ts'
import { formatSize } from '../lib/model/amount.ts'
import { findExports, pickExports } from '../lib/work/find-exports.ts'
import { describeHidden, findHidden, hiddenError } from '../lib/work/hidden-objects.ts'
import { listLocal } from '../lib/work/list.ts'
import {
  isWholeReading,
  type ProofOutcome,
  type ProofRequest,
  proveRepository,
} from '../lib/work/proof.ts'
import { repairAdvice } from '../lib/work/repair.ts'
import type { Repository } from '../lib/work/repository.ts'
import { targetNamed } from '../lib/work/target-access.ts'
import { digestsFor, verifyCollection } from '../lib/work/verify-local.ts'
import { isGiven } from './command.ts'
import { loadIdentity } from './restore-options.ts'
import { type RestoreJob, collectionsOf, keysOf, openRepository } from './restore-place.ts'
import { tellVerifiedCollection, warnOfDamaged } from './restore-telling.ts'
import {
  exitCodeOfVerified,
  proofFacts,
  proofText,
  tellDamage,
  tellVerified,
} from './verify-telling.ts'

/** How much a command asks for; `backup-restore --verify` reads everything. */
export interface AskedProof {
  /** As it is invoked. */
  readonly command: string
  /** For this repository: what its target is configured with may count. */
  readonly requestFor: (of: {
    readonly repository: Repository
    readonly target: TargetConfiguration
    readonly nowMs: number
  }) => ProofRequest
}

const EVERYTHING: AskedProof = {
  command: 'backup-restore',
  requestFor: () => ({ choice: { kind: 'all' }, limitBytes: undefined, timeMs: undefined }),
}

/** Exports on a target. */
export async function verifyTarget(
  job: RestoreJob,
  asked: AskedProof = EVERYTHING,
): Promise<ExitCode> {
  const { context, words, configuration } = job
  const { reporter, signal, values } = context
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
  const places =
    words.date === undefined ? found : pickExports(found, words.date, { nowMs: context.now() })
  const nowMs = context.now()
  const target = targetNamed(configuration, repository.target.name)
  const request = asked.requestFor({ repository, target, nowMs })
  const isDryRun = isGiven(values, 'dry-run')
  const outcome = await proveRepository({
    ...{ configuration, target, repository, places, publicKeys, request, isDryRun, nowMs },
    isEveryExport: words.set === undefined && words.date === undefined,
    identities: identity?.identities ?? [],
    cores: availableParallelism(),
    report: reporter.report,
    signal,
  })
  const { exports, bundles, bytesRead, deep, damage } = outcome
  const { command } = asked
  for (const one of exports) tellVerified(one, { command, reporter })
  tellDamage(damage, reporter)
  const isUntrusted = exports.some(({ problems }) => {
    return problems.some(({ code }) => code === 'SIGNER_UNKNOWN')
  })
  if (isUntrusted) {
    const message = `the keys of ${machine} are not trusted here: see trusted_signing_keys`
    reporter.report({ kind: 'notice', level: 'warning', code: 'SIGNER_UNKNOWN', message })
  }
  // Without its keys nobody can say what it needs.
  const mayBeHidden = repository.target.bucket !== undefined && !isUntrusted
  const isHidden = mayBeHidden && (await tellHidden(job, { repository, publicKeys }))
  if (existsSync(configuration.staging) && repository.target.access === 'files') {
    const advise = { paths: outcome.damagedFiles, staging: configuration.staging, signal }
    for (const line of await repairAdvice(repository.target, advise)) reporter.print(line)
  }
  const { place } = repository.target
  reporter.print(
    isDryRun
      ? plannedText(outcome, place)
      : `${bundles} bundles, ${formatSize(bytesRead)} read from ${place}`,
  )
  const isWhole = isWholeReading(request)
  if (!isWhole && !isDryRun) reporter.print(proofText(outcome))
  if (!deep)
    reporter.print(
      'only checksums and signatures were checked: without the identity nothing can be decrypted',
    )
  const exitCode = worstExitCode([exitCodeOfVerified(exports, { isWhole }), isHidden ? 13 : 0])
  if (asked !== EVERYTHING) {
    const { planned } = outcome
    const facts = { target: target.name, ...proofFacts(outcome), planned, dryRun: isDryRun }
    const state = exitCode === 13 ? 'damaged' : isDryRun ? 'planned' : 'good'
    reporter.report({ kind: 'result', command, outcome: state, ...facts, exitCode })
  }
  return exitCode
}

function plannedText({ planned, bundlesTotal, bytesTotal }: ProofOutcome, place: string): string {
  const of = `of ${bundlesTotal} bundles, ${formatSize(bytesTotal)}`
  return `${planned.bundles} ${of}, would be read from ${place}: ${formatSize(planned.bytes)}`
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

/** Collections in staging. */
export async function verifyStaging(
  { context, words, configuration }: RestoreJob,
  { command }: Pick<AskedProof, 'command'> = EVERYTHING,
): Promise<ExitCode> {
  const { staging } = configuration
  const { reporter, signal } = context
  const found = collectionsOf({ words, configuration })
  const places =
    words.date === undefined ? found : pickExports(found, words.date, { nowMs: context.now() })
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
    tellVerifiedCollection({ set, stamp }, { verified, command, reporter })
    codes.push(verified.problems.length > 0 ? 13 : 0)
  }
  return worstExitCode(codes)
}
