// `backup prune`: which generations stay and which go, why, and on confirmation lets them go.
//
// Plan, show, carry out: lib/work/prune-local.ts does it in staging and lib/work/prune.ts on
// targets, the same code as after a good run. Only what was shown is removed; what else the rules
// would let go by then waits for the next run. Each set in each place has an outcome of its own.
// Throws USAGE, NOT_CONFIRMED and what loading the configuration throws.

import { BackupError, type ExitCode, worstExitCode } from '../lib/errors.ts'
import type { Configuration, SetConfiguration, TargetConfiguration } from '../lib/machine/config.ts'
import { formatSize } from '../lib/model/amount.ts'
import type { Generation, RetentionPlan } from '../lib/model/retention.ts'
import { formatStamp, isAhead, type Stamp } from '../lib/model/stamp.ts'
import { readMarks } from '../lib/work/marks.ts'
import { planLocalPruning, pruneLocal } from '../lib/work/prune-local.ts'
import { planPruning, pruneExports } from '../lib/work/prune.ts'
import { removeOldFreshness } from '../lib/work/freshness.ts'
import { priceOfPruning } from '../lib/work/bucket-money.ts'
import { recordPrune } from '../lib/work/prune-records.ts'
import { type ExportPlace, exportsOf, listStamps } from '../lib/work/repository.ts'
import { openSigner } from '../lib/work/signing.ts'
import { acquireRunLock, acquireSetLock } from '../lib/work/staging.ts'
import { loadState, stateDirectory } from '../lib/work/state.ts'
import { openTarget, repositoryToRead } from '../lib/work/target-access.ts'
import { chosenSets, chosenTargets } from './chosen.ts'
import { type Command, type CommandContext, isGiven, textOptions } from './command.ts'

/** One set in one place: what would go there, and how it is done. */
interface Job {
  readonly set: string
  /** `staging`, or a target. */
  readonly place: string
  readonly items: readonly Generation[]
  readonly plan: RetentionPlan
  /** Of a collection as `ls` shows it, of an export what lies in its own directory. */
  readonly sizes: ReadonlyMap<Stamp, number>
  /** Undefined in staging, where collections share their files. */
  readonly freesBytes: number | undefined
  /** Of a bucket, where there are prices: what it saves, and what it costs. */
  readonly saves: string | undefined
  readonly carryOut: (only: ReadonlySet<Stamp>) => Promise<Done>
}

interface Done {
  readonly removed: readonly Stamp[]
  readonly freedBytes: number | undefined
}

const NOTHING: Done = { removed: [], freedBytes: undefined }

export const command: Command = {
  name: 'backup prune',
  summary: 'show what retention keeps and why, and remove the rest',
  usage: `Usage: backup prune [--set NAME…] [--local | --target NAME…] [--unknown]
                    [--dry-run] [--yes]

Lists every generation in staging and on the targets with the reason why it stays or goes, asks,
and removes those that go. The rules are retention of the configuration; the newest complete one
and locked ones always stay. The same happens without asking after every good run, which lets no
export go of which this machine does not know whether it is complete.

  --set NAME      only this set (again for more; default: all)
  --local         only collections in staging
  --target NAME   only exports on this target (again for more; default: all that are here)
  --unknown       take such exports for complete ones, so that they may go as well
  --dry-run       only the list
  --yes           do not ask; needed where nobody can answer
`,
  options: {
    set: { type: 'string', multiple: true },
    target: { type: 'string', multiple: true },
    local: { type: 'boolean' },
    unknown: { type: 'boolean' },
    yes: { type: 'boolean' },
  },
  run: async (context) => {
    const { values } = context
    const configuration = await context.loadConfiguration()
    const sets = chosenSets(configuration, textOptions(values, 'set'))
    const named = textOptions(values, 'target')
    const isLocal = isGiven(values, 'local')
    if (isLocal && named.length > 0) {
      throw new BackupError('USAGE', '--local and --target do not go together')
    }
    const { tags } = readMarks(configuration.staging)
    const codes: ExitCode[] = []
    const jobs: Job[] = []
    const plan = { context, configuration, sets, codes, jobs }
    if (named.length === 0) await planStaging(plan)
    for (const target of isLocal ? [] : chosenTargets(configuration, named)) {
      await planTarget(plan, { target, isNamed: named.length > 0 })
    }
    const tagsOf = (set: string, stamp: Stamp) => {
      return tags.filter((tag) => tag.set === set && tag.stamp === stamp).map(({ name }) => name)
    }
    for (const job of jobs) codes.push(showPlan(context, job, tagsOf))
    const held = jobs.filter(({ items }) =>
      items.some(({ stamp }) => isAhead(stamp, context.now())),
    )
    for (const job of held) {
      const { set, place } = job
      const message =
        `${set} in ${place}: nothing goes, for one is dated later than this machine's clock: `
        + 'check the clock, and remove that generation if it was wrong'
      const code = 'RETENTION_FROZEN'
      context.reporter.report({ kind: 'notice', level: 'warning', code, message })
      tellResult(context, job, { outcome: 'planned', done: NOTHING, tagsOf })
      codes.push(3)
    }
    const free = jobs.filter((job) => !held.includes(job))
    codes.push(await carryOut(context, free, tagsOf))
    return worstExitCode(codes)
  },
}

interface Planning {
  readonly context: CommandContext
  readonly configuration: Configuration
  readonly sets: readonly SetConfiguration[]
  readonly codes: ExitCode[]
  readonly jobs: Job[]
}

async function planStaging({ context, configuration, sets, codes, jobs }: Planning): Promise<void> {
  const { staging } = configuration
  const { report } = context.reporter
  for (const set of sets) {
    await orTell({ context, codes, what: `${set.name} in staging` }, async () => {
      const { collections, damaged, items, plan } = planLocalPruning({ staging, set })
      for (const stamp of damaged) {
        const message = `${set.name}: ${stamp} stays: its catalog cannot be read`
        report({ kind: 'notice', level: 'warning', code: 'CATALOG_DAMAGED', message })
      }
      const sizes = new Map(collections.map(({ stamp, bytes }) => [stamp, bytes]))
      const carryOut = async (only: ReadonlySet<Stamp>): Promise<Done> => {
        const place = { staging, set: set.name }
        const lock = acquireSetLock({ ...place, description: 'backup prune', waitMs: 0 })
        try {
          return { removed: pruneLocal({ staging, set, report, only }), freedBytes: undefined }
        } finally {
          lock.release()
        }
      }
      const place = 'staging'
      const unknown = { freesBytes: undefined, saves: undefined }
      jobs.push({ set: set.name, place, items, plan, sizes, ...unknown, carryOut })
    })
  }
}

async function planTarget(
  { context, configuration, sets, codes, jobs }: Planning,
  { target, isNamed }: { readonly target: TargetConfiguration; readonly isNamed: boolean },
): Promise<void> {
  const { staging, machine } = configuration
  const { report } = context.reporter
  const isOptional = !isNamed
  await orTell({ context, codes, what: target.name, isOptional }, async () => {
    const opened = await openTarget(target, configuration, { as: 'admin' })
    const repository = await repositoryToRead(opened)
    const signer = await openSigner(configuration)
    const { publicKey } = signer
    const { bucket } = opened
    const spareSince = bucket === undefined ? undefined : formatStamp(context.now() - UNFINISHED_MS)
    // Only a run that writes adopts what is pending: until then that export is not known.
    const directory = stateDirectory({ staging, id: repository.id })
    const state = await loadState(directory, 'unasked')
    const places = exportsOf(await listStamps(repository, machine))
    for (const { name: set, retention } of sets) {
      const options = {
        staging,
        machine,
        set,
        keep: retention.external,
        rules: retention.keep,
        publicKeys: [publicKey],
        isComplete: (stamp: Stamp) => state?.exports.get(`${set}/${stamp}`)?.complete,
        takeUnknown: isGiven(context.values, 'unknown'),
        spareSince,
      }
      await orTell({ context, codes, what: `${set} on ${target.name}` }, async () => {
        const planned = await planPruning(repository, options)
        const { items, plan, freesBytes } = planned
        const money =
          bucket === undefined || target.kind !== 's3'
            ? undefined
            : await priceOfPruning({ bucket, target, planned, nowMs: context.now() })
        const sizes = new Map(
          places
            .filter((place) => place.set === set)
            .map(({ stamp, files }) => [stamp, sum([...files.values()])]),
        )
        const carryOut = async (only: ReadonlySet<Stamp>): Promise<Done> => {
          const lock = acquireRunLock({ staging, description: 'backup prune', waitMs: 0 })
          try {
            const beforeRemoving = async (exports: readonly ExportPlace[]): Promise<void> => {
              money?.refuse()
              if (bucket === undefined) return
              const nowMs = context.now()
              await recordPrune(repository, { machine, exports, signer, nowMs })
            }
            const removing = { ...options, report, only, beforeRemoving }
            const done = await pruneExports(repository, removing).catch((error: unknown) => {
              throw withoutAdmin(error, target)
            })
            if (bucket !== undefined) {
              await removeOldFreshness(repository, { machine, nowMs: context.now() })
            }
            const removed = done.removedExports.map((name) => name.split('/').at(-1) ?? name)
            return { removed, freedBytes: done.freedBytes }
          } finally {
            lock.release()
          }
        }
        const saves = money?.text
        jobs.push({ set, place: target.name, items, plan, sizes, freesBytes, saves, carryOut })
      })
    }
  })
}

/** Whoever may only add is told who may do more. */
function withoutAdmin(error: unknown, target: TargetConfiguration): unknown {
  const isDenied = error instanceof BackupError && error.code === 'TARGET_DENIED'
  if (!isDenied || target.kind !== 's3' || target.adminProfile !== undefined) return error
  return new BackupError('TARGET_DENIED', error.message, {
    hint:
      'pruning takes credentials that may delete: name their profile as admin_profile of '
      + target.name,
    facts: error.facts,
    cause: error,
  })
}

/** So long an export may take from its first bundle to its manifest. */
const UNFINISHED_MS = 30 * 86_400_000

type TagsOf = (set: string, stamp: Stamp) => readonly string[]

/** @returns 3 for a set that is frozen, for somebody has to look at it */
function showPlan({ reporter, values }: CommandContext, job: Job, tagsOf: TagsOf): ExitCode {
  const { set, place, plan, freesBytes } = job
  const frees = freesBytes === undefined ? '' : `, which frees ${formatSize(freesBytes)}`
  const saves = job.saves === undefined ? '' : `; it ${job.saves}`
  const counts = `${plan.keep.length} stay, ${plan.remove.length} go${frees}${saves}`
  reporter.print(`${set} in ${place}: ${counts}`)
  const going = new Set(plan.remove)
  for (const { stamp } of job.items) {
    const size = formatSize(job.sizes.get(stamp) ?? 0).padStart(8)
    const tags = tagsOf(set, stamp)
    const named = tags.length === 0 ? '' : `  [${tags.join(', ')}]`
    const why = plan.reasons.get(stamp)?.join(', ') ?? ''
    reporter.print(`  ${stamp}  ${size}  ${going.has(stamp) ? 'goes ' : 'stays'}  ${why}${named}`)
  }
  const unknown = job.items.filter(({ complete }) => complete === undefined).length
  if (unknown > 0 && !isGiven(values, 'unknown')) {
    reporter.print(`  Nobody knows whether ${unknown} of them are complete: see --unknown.`)
  }
  if (plan.frozenBy === undefined) return 0
  const message = `${set} in ${place}: nothing goes, for ${plan.frozenBy} is suspect`
  reporter.report({ kind: 'notice', level: 'warning', code: 'RETENTION_FROZEN', message })
  return 3
}

/** Asks, and removes what was shown. @throws BackupError NOT_CONFIRMED */
async function carryOut(
  context: CommandContext,
  jobs: readonly Job[],
  tagsOf: TagsOf,
): Promise<ExitCode> {
  const { values, reporter } = context
  const count = sum(jobs.map(({ plan }) => plan.remove.length))
  const goes = jobs.some(hasWork)
  const dryRun = isGiven(values, 'dry-run')
  const isAgreed = !dryRun && goes && (isGiven(values, 'yes') || (await asks(context, count)))
  if (!isAgreed) {
    for (const job of jobs) tellResult(context, job, { outcome: 'planned', done: NOTHING, tagsOf })
    if (!goes) reporter.tell('there is nothing to remove')
    if (!goes || dryRun) return 0
    throw new BackupError('NOT_CONFIRMED', `removing ${generations(count)} has to be confirmed`, {
      hint: 'give --yes; nothing was removed',
    })
  }
  const codes: ExitCode[] = []
  for (const job of jobs) {
    const what = `${job.set} in ${job.place}`
    await orTell({ context, codes, what }, async () => {
      const done = hasWork(job) ? await job.carryOut(new Set(job.plan.remove)) : NOTHING
      const { removed, freedBytes } = done
      const freed = freedBytes === undefined ? '' : `, ${formatSize(freedBytes)} freed`
      if (hasWork(job)) reporter.tell(`${what}: ${generations(removed.length)} removed${freed}`)
      tellResult(context, job, { outcome: 'pruned', done, tagsOf })
    })
  }
  return worstExitCode(codes)
}

async function asks({ confirm }: CommandContext, count: number): Promise<boolean> {
  const what = count === 0 ? 'what no export needs any more' : `${generations(count)} for ever`
  return await confirm(`Remove ${what}?`)
}

function hasWork({ plan, freesBytes = 0 }: Job): boolean {
  return plan.remove.length > 0 || freesBytes > 0
}

function tellResult(
  { reporter, values }: CommandContext,
  { set, place, items, plan, sizes, freesBytes, saves }: Job,
  {
    outcome,
    done,
    tagsOf,
  }: { readonly outcome: 'planned' | 'pruned'; readonly done: Done; readonly tagsOf: TagsOf },
): void {
  const going = new Set(plan.remove)
  reporter.report({
    kind: 'result',
    command: command.name,
    dryRun: isGiven(values, 'dry-run'),
    set,
    place,
    outcome,
    frozenBy: plan.frozenBy,
    generations: items.map((item) => ({
      ...item,
      stays: !going.has(item.stamp),
      reasons: plan.reasons.get(item.stamp),
      tags: tagsOf(set, item.stamp),
      bytes: sizes.get(item.stamp),
    })),
    freesBytes,
    ...(saves === undefined ? {} : { saves }),
    ...done,
    exitCode: plan.frozenBy === undefined ? 0 : 3,
  })
}

/** What one place cannot do never hides the others. Interruption ends all. */
async function orTell(
  {
    context: { reporter, signal },
    codes,
    what,
    isOptional = false,
  }: {
    readonly context: CommandContext
    readonly codes: ExitCode[]
    readonly what: string
    /** Nobody asked for it by name, so it need not be there. */
    readonly isOptional?: boolean
  },
  work: () => Promise<void>,
): Promise<void> {
  if (signal.aborted) throw new BackupError('INTERRUPTED', 'interrupted')
  try {
    await work()
  } catch (error) {
    if (!(error instanceof BackupError) || error.code === 'INTERRUPTED') throw error
    const { code, facts, hint } = error
    const message = `${what}: ${error.message}${hint === undefined ? '' : ` (${hint})`}`
    reporter.report({ kind: 'notice', level: 'warning', code, message, facts })
    const exitCode = isOptional && code === 'TARGET_ABSENT' ? 0 : error.exitCode
    const outcome = { outcome: 'failed', code, exitCode }
    reporter.report({ kind: 'result', command: command.name, what, ...outcome })
    codes.push(exitCode)
  }
}

function generations(count: number): string {
  return count === 1 ? '1 generation' : `${count} generations`
}

function sum(amounts: readonly number[]): number {
  return amounts.reduce((total, amount) => total + amount, 0)
}
