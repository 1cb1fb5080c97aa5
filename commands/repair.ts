// `backup repair`: what is damaged on a target, what of it parity can mend, and on confirmation
// mends it.
//
// Plan, show, carry out: lib/work/repair.ts does it, and lib/work/parity.ts makes the parity that
// is missing or damaged itself. Needs no key. Ends with 13 as long as something is damaged. Throws
// USAGE, NOT_CONFIRMED, PROGRAM_ABSENT and what opening a target throws.

import { BackupError, type ExitCode, worstExitCode } from '../lib/errors.ts'
import type { Configuration, TargetConfiguration } from '../lib/machine/config.ts'
import { formatSize } from '../lib/model/amount.ts'
import { noteDamage } from '../lib/work/known-damage.ts'
import { type ParityOutcome, addParity } from '../lib/work/parity.ts'
import {
  type DamagedFile,
  type RepairOutcome,
  type RepairPlan,
  describeVerdict,
  isRepairable,
  planRepair,
  repairFiles,
} from '../lib/work/repair.ts'
import type { Repository } from '../lib/work/repository.ts'
import { trustedKeys } from '../lib/work/signing.ts'
import { openTarget, repositoryToRead, targetNamed } from '../lib/work/target-access.ts'
import { chosenSets } from './chosen.ts'
import { type Command, type CommandContext, isGiven, textOption, textOptions } from './command.ts'
import { repairBucket } from './repair-bucket.ts'
import { withRunLock } from './run-lock.ts'

/** The parity that is made for files that have none, or a damaged one. */
const NO_PARITY: ParityOutcome = { files: 0, bytes: 0, damaged: [], withoutRoom: 0 }
const NOTHING_DONE = { repaired: [], failed: [] } satisfies RepairOutcome

export const command: Command = {
  name: 'backup repair',
  summary: 'mend what is damaged on a target, by its parity',
  usage: `Usage: backup repair --target NAME [--set NAME…] [--dry-run] [--yes]

Reads every bundle and manifest that this machine's exports on the target need, compares it with
what was signed, and lists what is damaged and whether the parity beside it (\`parity\` of the
target) can mend it. Asks, mends, and compares again; what was damaged is kept beside it as
….damaged. Makes the parity that is missing, too. Needs par2, and no key.

Of a bucket that keeps versions it lists what was deleted or overwritten although exports need it,
and brings the older versions back.

Ends with 0 when all is whole, and with 13 as long as something is damaged.

  --target NAME   the target
  --set NAME      only what exports of this set need (again for more; default: all)
  --dry-run       only the list
  -y, --yes       do not ask; needed where nobody can answer
`,
  options: {
    target: { type: 'string' },
    set: { type: 'string', multiple: true },
    yes: { type: 'boolean', short: 'y' },
  },
  run: async (context) => {
    const configuration = await context.loadConfiguration()
    const name = textOption(context.values, 'target')
    if (name === undefined) {
      const names = configuration.targets.map((target) => target.name).join(', ')
      const hint = `configured are: ${names}`
      throw new BackupError('USAGE', 'name the target: --target NAME', { hint })
    }
    const target = targetNamed(configuration, name)
    const names = textOptions(context.values, 'set')
    const sets = new Set(chosenSets(configuration, names).map((set) => set.name))
    const of = { configuration, command: command.name }
    return await withRunLock(context, of, async () => {
      const opened = await openTarget(target, configuration, { as: 'admin' })
      const repository = await repositoryToRead(opened)
      const publicKeys = await trustedKeys(configuration, {
        machine: configuration.machine,
        fromIdentity: [],
      })
      if (opened.bucket !== undefined) {
        const { machine } = configuration
        const { bucket } = opened
        return await repairBucket(context, { bucket, repository, machine, publicKeys })
      }
      if (opened.access === 'network') {
        throw new BackupError('USAGE', `target ${name} has no parity to repair by`, {
          hint: '`backup-restore --verify` tells what is damaged; another target may be whole',
        })
      }
      const job = { context, configuration, target, repository, publicKeys }
      return await repair(job, names.length === 0 ? undefined : sets)
    })
  },
}

interface Job {
  readonly context: CommandContext
  readonly configuration: Configuration
  readonly target: TargetConfiguration
  readonly repository: Repository
  readonly publicKeys: readonly string[]
}

async function repair(job: Job, sets: ReadonlySet<string> | undefined): Promise<ExitCode> {
  const { context, configuration, repository, publicKeys } = job
  const { machine, staging } = configuration
  const { signal } = context
  const { report } = context.reporter
  const of = {
    machine,
    publicKeys,
    staging,
    report,
    signal,
    ...(sets === undefined ? {} : { sets }),
  }
  const plan = await planRepair(repository, of)
  showPlan(job, plan)
  if (!hasWork(job, plan)) return tell(job, plan, NOTHING_DONE, NO_PARITY)
  if (isGiven(context.values, 'dry-run')) return tell(job, plan, NOTHING_DONE, NO_PARITY)
  await ask(job, plan)
  const done = await repairFiles(repository, plan, { staging, report, signal })
  const whole = done.repaired.map(({ path }) => path)
  noteDamage({ staging, id: repository.id }, { damaged: [], whole })
  const parity = await renewParity(job, plan)
  return tell(job, plan, done, parity)
}

/** Without parity in the configuration there is nothing to make it by: it stays as it is. */
async function renewParity(job: Job, plan: RepairPlan): Promise<ParityOutcome> {
  const { context, configuration, repository, publicKeys, target } = job
  if (target.parityPercent === 0) return NO_PARITY
  for (const path of plan.badParity) await repository.target.remove(path)
  const { machine, staging } = configuration
  const { signal, reporter } = context
  const of = { machine, publicKeys, staging, report: reporter.report, signal }
  return await addParity(repository, { ...of, percent: target.parityPercent })
}

function hasWork({ target }: Job, { damaged, badParity, withoutParity }: RepairPlan): boolean {
  const lacksParity = badParity.length + withoutParity.length > 0
  return damaged.some(isRepairable) || (lacksParity && target.parityPercent > 0)
}

function showPlan({ context, target }: Job, plan: RepairPlan): void {
  const { reporter } = context
  const { files, bytes, damaged, badParity, withoutParity, problems } = plan
  const state = damaged.length === 0 ? 'all whole' : `${damaged.length} damaged`
  reporter.print(`${target.name}: ${count(files)} (${formatSize(bytes)}) looked at, ${state}`)
  for (const file of damaged) {
    reporter.print(`  ${file.state.padEnd(10)}  ${file.path}: ${describeVerdict(file.verdict)}`)
    reporter.print(`              needed by ${listed(file.neededBy)}`)
  }
  const isMade = target.parityPercent > 0
  for (const path of badParity) {
    const what = isMade ? 'is made anew' : 'stays, for the target has no `parity` configured'
    reporter.print(`  parity      ${path}: damaged itself; ${what}`)
  }
  if (isMade && withoutParity.length > 0) {
    reporter.print(`  parity      ${count(withoutParity.length)} without any: it is made`)
  }
  for (const { code, message, facts } of problems) {
    reporter.report({ kind: 'notice', level: 'warning', code, message, facts })
  }
}

/** @throws BackupError NOT_CONFIRMED */
async function ask({ context, target }: Job, { damaged }: RepairPlan): Promise<void> {
  const repairable = damaged.filter(isRepairable).length
  const what = repairable === 0 ? 'Make the parity' : `Mend ${count(repairable)}`
  const isAgreed =
    isGiven(context.values, 'yes') || (await context.confirm(`${what} on ${target.name}?`))
  if (isAgreed) return
  throw new BackupError('NOT_CONFIRMED', `changing ${target.name} has to be confirmed`, {
    hint: 'give --yes; nothing was changed',
  })
}

/** @returns 13 as long as something is damaged, by that of `problems` at least */
function tell(
  { context, target }: Job,
  plan: RepairPlan,
  { repaired, failed }: RepairOutcome,
  parity: ParityOutcome,
): ExitCode {
  const { reporter, values } = context
  const dryRun = isGiven(values, 'dry-run')
  for (const { path, aside } of repaired) {
    const kept = aside === undefined ? '' : `; the damaged one is kept as ${aside}`
    reporter.tell(`mended: ${path}${kept}`)
  }
  for (const { error } of failed) {
    const { code, message, facts } = error
    reporter.report({ kind: 'notice', level: 'warning', code, message, facts })
  }
  if (parity.files > 0) {
    reporter.tell(`parity made for ${count(parity.files)}: ${formatSize(parity.bytes)}`)
  }
  const mended = new Set(repaired.map(({ path }) => path))
  const left = plan.damaged.filter(({ path }) => !mended.has(path))
  if (left.length > 0 && !dryRun) {
    const message =
      `${count(left.length)} on ${target.name} ${left.length === 1 ? 'is' : 'are'} still damaged: `
      + 'restore what they hold from another target'
    const code = 'BUNDLE_DAMAGED'
    reporter.report({ kind: 'notice', level: 'warning', code, message })
  }
  const damage: ExitCode[] = left.length > 0 ? [13] : []
  const codes = [...plan.problems, ...failed.map(({ error }) => error)].map((one) => one.exitCode)
  const exitCode = worstExitCode([...damage, ...codes, parity.withoutRoom > 0 ? 3 : 0])
  reporter.report({
    kind: 'result',
    command: command.name,
    dryRun,
    target: target.name,
    files: plan.files,
    bytes: plan.bytes,
    damaged: plan.damaged.map(plain),
    repaired,
    left: left.map(({ path }) => path),
    badParity: plan.badParity,
    withoutParity: plan.withoutParity.length,
    parity,
    exitCode,
  })
  return exitCode
}

function plain({ path, state, verdict, neededBy }: DamagedFile) {
  return { path, state, verdict, neededBy }
}

/** How many exports are named. */
const LISTED = 3

function listed(names: readonly string[]): string {
  const more = names.length > LISTED ? ` and ${names.length - LISTED} more` : ''
  return `${names.slice(-LISTED).join(', ')}${more}`
}

function count(files: number): string {
  return files === 1 ? '1 file' : `${files} files`
}
