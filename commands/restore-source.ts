// What is restored from: staging or one target, opened once, with the generations that it has.
//
// backup-restore.ts goes through the sources in the order of preference, nearest and cheapest
// first. Throws TARGET and IDENTITY errors, NOTHING_FOUND where it has no generation that was asked
// for.

import { BackupError } from '../lib/errors.ts'
import type { Configuration, TargetConfiguration } from '../lib/machine/config.ts'
import type { RawPath } from '../lib/model/raw-path.ts'
import type { Target } from '../lib/target/target.ts'
import { ExportReader } from '../lib/work/export-reader.ts'
import { findExports } from '../lib/work/find-exports.ts'
import { olderReadsError, preferSigned } from '../lib/work/hidden-objects.ts'
import { type ExportPlace, readManifest } from '../lib/work/repository.ts'
import { refuseStaging, selectLocal } from '../lib/work/restore-local.ts'
import type { RestoreFailure } from '../lib/work/restore-plan.ts'
import { type Selection, type Wanted, selectEntries } from '../lib/work/selection.ts'
import { lockIfFree } from '../lib/work/verify-local.ts'
import { targetNamed } from '../lib/work/target-access.ts'
import { bundlePath } from '../lib/model/verification.ts'
import type { CommandContext } from './command.ts'
import { makeReadable, readingOf, tellReadable } from './restore-bucket.ts'
import { requireIdentity } from './restore-options.ts'
import {
  type RestoreJob,
  collectionsOf,
  describeTarget,
  keysOf,
  openRepositoryOn,
} from './restore-place.ts'

/** Staging, or a configured target. */
export type SourceName =
  { readonly kind: 'staging' } | { readonly kind: 'target'; readonly name: string }

export interface Selected {
  readonly selection: Selection
  /** What is known to be damaged there: it is not in the selection. */
  readonly damaged: readonly RestoreFailure[]
  readonly complete: boolean
  /** What was collected, without leading slashes. */
  readonly sources: readonly RawPath[]
  readonly close: () => void
}

export interface RestoreSource {
  /** For people: `staging`, `t9 (/media/T9)`. */
  readonly description: string
  readonly identities: readonly string[]
  /** Oldest first in each set. */
  readonly places: readonly (ExportPlace & { readonly isSuspect?: boolean })[]
  /** @throws BackupError NOTHING_FOUND where the generation has none of it */
  readonly select: (place: ExportPlace, wanted: Wanted) => Promise<Selected>
  /** What somebody has to know after reading from it. */
  readonly tellAfterwards: () => void
}

/**
 * In the order of preference: as they are named, else nearest and cheapest first: staging, then
 * what is mounted here, then hosts, then buckets.
 * @throws BackupError USAGE for a name that is none
 */
export function sourcesOf({ words, configuration }: RestoreJob): readonly SourceName[] {
  const targets = nearestFirst(configuration).map(({ name }) => ({ kind: 'target' as const, name }))
  const staging = { kind: 'staging' as const }
  if (words.target !== undefined) return [{ kind: 'target', name: words.target }]
  // Staging has no other machine's collections.
  const isOther = words.machine !== undefined && words.machine !== configuration.machine
  if (words.sources.length === 0) return isOther ? targets : [staging, ...targets]
  return words.sources.flatMap((word): SourceName[] => {
    if (word === 'local') return [staging]
    if (word === 'external') return targets
    return [{ kind: 'target', name: targetNamed(configuration, word).name }]
  })
}

const NEARNESS = { directory: 0, drive: 0, sftp: 1, s3: 2 } as const

function nearestFirst({ targets }: Configuration): readonly TargetConfiguration[] {
  return targets.toSorted((a, b) => NEARNESS[a.kind] - NEARNESS[b.kind])
}

/** @throws BackupError NOTHING_FOUND, and what opening it throws */
export async function openSource(job: RestoreJob, name: SourceName): Promise<RestoreSource> {
  return name.kind === 'staging' ? openStaging(job) : await openTargetSource(job, name.name)
}

function openStaging(job: RestoreJob): RestoreSource {
  const { context, words, configuration } = job
  const { staging } = configuration
  const { signal, reporter } = context
  const places = collectionsOf(job)
  if (words.into !== undefined) refuseStaging({ staging, into: words.into })
  return {
    description: 'staging',
    identities: [],
    places,
    select: async ({ set, stamp }, wanted) => {
      const lock = lockIfFree({ staging, set, stamp, description: `restoring ${set} ${stamp}` })
      try {
        const of = { staging, set, stamp, ...wanted, report: reporter.report, signal }
        const { header, ...found } = await selectLocal(of)
        const sources = header.sources.map(({ path }) => path)
        return { ...found, complete: header.complete, sources, close: () => lock?.release() }
      } catch (error) {
        lock?.release()
        throw error
      }
    },
    tellAfterwards: () => undefined,
  }
}

async function openTargetSource(job: RestoreJob, name: string): Promise<RestoreSource> {
  const { context, words, configuration } = job
  const of = targetNamed(configuration, name)
  const repository = await openRepositoryOn(job, of)
  const { target } = repository
  const { identities, signingKeys } = await requireIdentity(context, configuration)
  const machine = words.machine ?? configuration.machine
  const places = await findExports(repository, { machine, set: words.set })
  const publicKeys = await keysOf(job, signingKeys)
  const reading = readingOf(context, { target, configuration: of })
  return {
    description: describeTarget(target),
    identities,
    places,
    select: async (place, wanted) => {
      const manifest = await readManifest(repository, place, { publicKeys, identities })
      if (target.bucket !== undefined) {
        const bundles = new Map(
          manifest.bundles.map((bundle) => [bundlePath(machine, bundle.name), bundle.sha256]),
        )
        await preferSigned(target.bucket, { directory: `machines/${machine}`, bundles })
      }
      const { signal } = context
      const reader = new ExportReader({ repository, manifest, identities, signal })
      const close = () => reader.close()
      try {
        const selection = await selectEntries(reader, wanted)
        if (reading !== undefined) {
          const needs = { reader, selection, tier: words.thaw }
          await (words.dryRun ? tellReadable : makeReadable)(reading, needs)
        }
        const sources = manifest.sources.map(({ path }) => path)
        return { selection, damaged: [], complete: manifest.complete, sources, close }
      } catch (error) {
        close()
        throw error
      }
    },
    tellAfterwards: () => tellOlder(context, target),
  }
}

/** What was restored is what was signed; that somebody hid it has to be known all the same. */
function tellOlder({ reporter }: CommandContext, target: Target): void {
  const error = olderReadsError(target)
  if (error === undefined) return
  const { code, message, hint } = error
  reporter.report({ kind: 'notice', level: 'warning', code, message: `${message} (${hint})` })
}

/** Whether another source may have what this one lacks. */
export function isElsewhere(error: unknown): error is BackupError {
  if (!(error instanceof BackupError)) return false
  return error.code === 'NOTHING_FOUND' || ![2, 12, 70, 130].includes(error.exitCode)
}
