// `backup drill`: reads a sample of what is on the targets that are there, compares it with what
// was signed, and writes a signed receipt for each (docs/receipts.md).
//
// lib/work/drill.ts does it; an export to a drive ends with the same (lib/work/target-end.ts). Each
// target has an outcome of its own; damage is exit 13. Throws USAGE, LOCKED and what loading the
// configuration, the identity and the signing key throws.

import { BackupError, type ExitCode, worstExitCode } from '../lib/errors.ts'
import type { Configuration, TargetConfiguration } from '../lib/machine/config.ts'
import type { IdentityFile } from '../lib/machine/identity.ts'
import { formatSize } from '../lib/model/amount.ts'
import { pathFacts } from '../lib/model/raw-path.ts'
import type { Receipt } from '../lib/model/receipt.ts'
import {
  bundlesIn,
  type DrillOptions,
  type DrillPlan,
  drillTarget,
  planDrill,
} from '../lib/work/drill.ts'
import { noteDamage } from '../lib/work/known-damage.ts'
import { poolDrive, receiptName, writeReceipt } from '../lib/work/receipts.ts'
import type { Repository } from '../lib/work/repository.ts'
import { type Signer, openSigner, trustedKeys } from '../lib/work/signing.ts'
import { openTarget, repositoryToRead } from '../lib/work/target-access.ts'
import { chosenSets, chosenTargets } from './chosen.ts'
import { type Command, type CommandContext, isGiven, textOption, textOptions } from './command.ts'
import type { Reporter } from './reporter.ts'
import { loadIdentity } from './restore-options.ts'
import { withRunLock } from './run-lock.ts'

/** How many names a dry run shows; `--json` has all. */
const NAMES_SHOWN = 20

export const command: Command = {
  name: 'backup drill',
  summary: 'read a sample of what is on a target, compare it, sign a receipt',
  usage: `Usage: backup drill [--target NAME…] [--set NAME…] [--share 5%]
                    [--identity FILE] [--passphrase-file FILE] [--dry-run]

Restores a random sample of each set's newest export into a scratch place and compares it with the
signed catalog; without an identity that can be opened here, whole bundles are compared with their
signed checksums instead. What was read and found is signed and kept as a receipt. Exit code 13
where something is damaged, 75 where no target is there.

  --target NAME   only this target (again for more; default: all that are there)
  --set NAME      only this set (again for more; default: all that have exports)
  --share 5%      how much to read, however long it takes (default: from 1% to 25%, the more the
                  longer ago everything was verified, and at most about 1 GiB)
  --identity FILE the identity (default: as configured, or beside the configuration)
  --passphrase-file FILE  its passphrase, instead of asking
  --dry-run       say what would be read
`,
  options: {
    target: { type: 'string', multiple: true },
    set: { type: 'string', multiple: true },
    share: { type: 'string' },
    identity: { type: 'string' },
    'passphrase-file': { type: 'string' },
  },
  run: async (context) => {
    const { values } = context
    const share = shareOf(values)
    const configuration = await context.loadConfiguration()
    const named = textOptions(values, 'target')
    const targets = chosenTargets(configuration, named)
    if (targets.length === 0) {
      throw new BackupError('CONFIG_INVALID', 'no targets are configured', {
        hint: 'add one under `targets`',
      })
    }
    const names = textOptions(values, 'set')
    const sets = names.length === 0 ? [] : chosenSets(configuration, names).map(({ name }) => name)
    return await withRunLock(context, { configuration, command: command.name }, async () => {
      const job = { context, configuration, sets, share }
      return await drillAll(job, { targets, isNamed: named.length > 0 })
    })
  },
}

interface Job {
  readonly context: CommandContext
  readonly configuration: Configuration
  readonly sets: readonly string[]
  readonly share: number | undefined
}

/** From 0 to 1. @throws BackupError USAGE */
function shareOf(values: CommandContext['values']): number | undefined {
  const text = textOption(values, 'share')
  if (text === undefined) return undefined
  const percent = /^\d{1,3}(\.\d{1,3})?%$/.test(text) ? Number(text.slice(0, -1)) : NaN
  if (percent > 0 && percent <= 100) return percent / 100
  throw new BackupError('USAGE', `--share is a percentage up to 100%, not ${text}`, {
    hint: 'write --share 5%, say',
  })
}

async function drillAll(
  job: Job,
  {
    targets,
    isNamed,
  }: { readonly targets: readonly TargetConfiguration[]; readonly isNamed: boolean },
): Promise<ExitCode> {
  const { context, configuration } = job
  const codes: ExitCode[] = []
  const there: Repository[] = []
  for (const target of targets) {
    await orTell({ context, codes, target: target.name, isOptional: !isNamed }, async () => {
      there.push(await repositoryToRead(await openTarget(target, configuration)))
    })
  }
  if (there.length === 0) return codes.length === 0 ? 75 : worstExitCode(codes)
  const identity = await identityFor(context, configuration)
  const { machine } = configuration
  const fromIdentity = identity?.signingKeys ?? []
  const publicKeys = await trustedKeys(configuration, { machine, fromIdentity })
  const signer = await openSigner(configuration)
  for (const repository of there) {
    const { name: targetName, drive } = repository.target
    await orTell({ context, codes, target: targetName, isOptional: false }, async () => {
      const options = {
        configuration,
        repository,
        targetName,
        drive,
        signer,
        publicKeys,
        identities: identity?.identities ?? [],
        sets: job.sets,
        share: job.share,
        nowMs: context.now(),
        report: context.reporter.report,
        signal: context.signal,
      }
      codes.push(await drillOne(context, options))
    })
  }
  return worstExitCode(codes)
}

async function drillOne(
  context: CommandContext,
  options: DrillOptions & { readonly signer: Signer },
): Promise<ExitCode> {
  const { reporter, values } = context
  if (isGiven(values, 'dry-run')) return tellPlan(await planDrill(options), { options, reporter })
  const { configuration, signer } = options
  const drilled = await drillTarget(options)
  const { staging } = configuration
  const damaged = bundlesIn(drilled)
  noteDamage({ staging, id: drilled.repository }, { damaged, whole: [] })
  const receipt = await writeReceipt({ staging, receipt: drilled, signer })
  return tellDrill(receipt, reporter)
}

/** One line for people and one result. @returns 13 where something is damaged */
function tellDrill(receipt: Receipt, reporter: Reporter): ExitCode {
  const { target, drive, how, bundles, files, bytes, totalBytes, result, damaged } = receipt
  const isGood = result === 'good'
  const what = how === 'restored' ? `${files} files restored` : `${bundles} bundles read`
  const state = isGood ? 'good' : `DAMAGED (${damaged.length} named above)`
  reporter.tell(
    `${placeOf({ target, drive })}: ${state}: ${what} and compared, ${formatSize(bytes)} of `
      + `${formatSize(totalBytes)}; receipt ${receiptName(receipt)}`,
  )
  const exitCode = isGood ? 0 : 13
  reporter.report({
    kind: 'result',
    command: command.name,
    target,
    drive,
    outcome: result,
    receiptName: receiptName(receipt),
    receipt,
    exitCode,
  })
  return exitCode
}

function tellPlan(
  plan: DrillPlan,
  { options, reporter }: { readonly options: DrillOptions; readonly reporter: Reporter },
): ExitCode {
  const { targetName: target } = options
  const drive = poolDrive(options)
  const { how, bytes, totalBytes, exports, seed, share, damaged } = plan
  const items = new Map(
    how === 'restored' ? plan.runs.map(runFacts) : plan.bundles.map(bundleFacts),
  )
  const names = [...items.keys()].sort()
  const what =
    how === 'restored' ? 'files would be restored' : 'bundles and manifests would be read'
  reporter.print(
    `${placeOf({ target, drive })}: ${names.length} ${what} and compared, ${formatSize(bytes)} of `
      + formatSize(totalBytes),
  )
  for (const name of names.slice(0, NAMES_SHOWN)) reporter.print(`  ${name}`)
  const more = names.length - NAMES_SHOWN
  if (more > 0) reporter.print(`  and ${more} more (--json names all)`)
  for (const [name, why] of damaged) {
    const message = `${target}: ${name}: ${why}`
    reporter.report({ kind: 'notice', level: 'warning', code: 'DRILL_DAMAGED', message })
  }
  const exitCode = damaged.size === 0 ? 0 : 13
  reporter.report({
    kind: 'result',
    command: command.name,
    dryRun: true,
    target,
    drive,
    outcome: 'planned',
    how,
    exports,
    seed,
    share,
    names: names.map((name) => items.get(name)),
    bytes,
    totalBytes,
    damaged: [...damaged.keys()],
    exitCode,
  })
  return exitCode
}

/** What a file is called for people, and for `--json`. */
function runFacts(run: DrillPlan['runs'][number]): readonly [string, object] {
  return [run.name, { export: run.export, ...pathFacts(run.path) }]
}

function bundleFacts({ key }: { readonly key: string }): readonly [string, object] {
  return [key, { path: key }]
}

function placeOf({ target, drive }: Pick<Receipt, 'target' | 'drive'>): string {
  return drive === undefined ? target : `${target} (${drive})`
}

/**
 * The identity, where it can be opened without anybody asked who is not there. One that the command
 * line names has to be opened.
 */
async function identityFor(
  context: CommandContext,
  configuration: Configuration,
): Promise<IdentityFile | undefined> {
  let why = 'there is none here, or it is protected and nobody can be asked'
  try {
    const identity = await loadIdentity(context, configuration)
    if (identity !== undefined) return identity
  } catch (error) {
    const isNamed = textOption(context.values, 'identity') !== undefined
    const isForNobody =
      !context.hasTerminal && textOption(context.values, 'passphrase-file') === undefined
    const isClosed = error instanceof BackupError && error.code === 'USAGE' && isForNobody
    const isAway = error instanceof BackupError && error.code === 'IDENTITY_ABSENT'
    if (isNamed || !(isClosed || isAway)) throw error
    why = error.message
  }
  const message = `without an identity only checksums are compared (${why})`
  context.reporter.report({ kind: 'notice', level: 'info', code: 'NO_IDENTITY', message })
  return undefined
}

/** What one target cannot do never hides the others. Interruption ends all. */
async function orTell(
  {
    context: { reporter, signal },
    codes,
    target,
    isOptional,
  }: {
    readonly context: CommandContext
    readonly codes: ExitCode[]
    readonly target: string
    /** Nobody asked for it by name, so it need not be there. */
    readonly isOptional: boolean
  },
  work: () => Promise<void>,
): Promise<void> {
  if (signal.aborted) throw new BackupError('INTERRUPTED', 'interrupted')
  try {
    await work()
  } catch (error) {
    if (!(error instanceof BackupError) || error.code === 'INTERRUPTED') throw error
    const { code, facts, hint } = error
    const isAbsent = isOptional && code === 'TARGET_ABSENT'
    const message = `${target}: ${error.message}${hint === undefined ? '' : ` (${hint})`}`
    const level = isAbsent ? 'info' : 'warning'
    reporter.report({ kind: 'notice', level, code, message, facts })
    const exitCode = isAbsent ? 0 : error.exitCode
    const outcome = isAbsent ? 'absent' : 'failed'
    reporter.report({ kind: 'result', command: command.name, target, outcome, code, exitCode })
    if (!isAbsent) codes.push(exitCode)
  }
}
