// Where find, why and diff have their versions from: this machine's index, or the catalogs of
// exports on a target.
//
// Sets come one after another, each closed before the next. What is not known is said before
// anything is told. Throws USAGE, NOTHING_FOUND, and what opening a target and reading its exports
// throws.

import { BackupError } from '../lib/errors.ts'
import type { Configuration } from '../lib/machine/config.ts'
import type { Stamp } from '../lib/model/stamp.ts'
import { type Holder, readHolders } from '../lib/work/coverage.ts'
import { ExportReader } from '../lib/work/export-reader.ts'
import { findExports } from '../lib/work/find-exports.ts'
import { type ExportPlace, readManifest, type Repository } from '../lib/work/repository.ts'
import { listStagedSets } from '../lib/work/staging.ts'
import { openVersions, type Versions, versionsOfExports } from '../lib/work/versions.ts'
import { type CommandContext, type Options, textOption, textOptions } from './command.ts'
import { requireIdentity } from './restore-options.ts'
import { keysOf, openRepository } from './restore-place.ts'

/** The options that openers of versions understand. */
export const VERSION_OPTIONS = {
  set: { type: 'string', multiple: true },
  target: { type: 'string' },
  machine: { type: 'string' },
  identity: { type: 'string' },
  'passphrase-file': { type: 'string' },
} as const satisfies Options

/** One set's versions, for as long as it is looked at. */
export interface OpenSet {
  readonly versions: Versions
  readonly holders: readonly Holder[]
  /** Whether no other set is looked at. */
  readonly isOnly: boolean
}

interface Job {
  readonly context: CommandContext
  readonly configuration: Configuration
}

/** Opens one set after another; without names all that are configured, collected, or exported. */
export async function eachSet(
  job: Job,
  look: (open: OpenSet) => void | Promise<void>,
): Promise<void> {
  const { values } = job.context
  const names = textOptions(values, 'set')
  const target = textOption(values, 'target')
  if (target !== undefined) {
    await eachExportedSet(job, { target, names, look })
    return
  }
  if (textOption(values, 'machine') !== undefined) {
    throw new BackupError('USAGE', '--machine goes with --target')
  }
  const { staging, backupSets } = job.configuration
  const known = [...new Set([...backupSets.map(({ name }) => name), ...listStagedSets(staging)])]
  const unknown = names.find((name) => !known.includes(name))
  if (unknown !== undefined) {
    throw new BackupError('USAGE', `there is no set ${unknown}`, {
      hint: `there are: ${known.join(', ')}`,
    })
  }
  const { reporter, signal } = job.context
  const holders = await readHolders(job.configuration, { signal })
  const sets = names.length === 0 ? known : names
  for (const set of sets) {
    const versions = await openVersions({ staging, set }, { report: reporter.report, signal })
    try {
      warnOfUnknown(job, versions)
      await look({ versions, holders, isOnly: sets.length === 1 })
    } finally {
      versions.close()
    }
  }
}

/** What is not looked through is named: a partial answer must not look like a whole one. */
export function warnOfUnknown({ context: { reporter } }: Job, versions: Versions): void {
  const { set, unknown, damaged } = versions
  if (unknown.length > 0) {
    const message =
      `${set}: what is in ${named(unknown)} is known on its target only: `
      + 'give --target NAME and the identity'
    reporter.report({ kind: 'notice', level: 'warning', code: 'NOT_INDEXED', message })
  }
  if (damaged.length > 0) {
    const message = `${set}: the catalog of ${named(damaged)} in staging is damaged`
    reporter.report({ kind: 'notice', level: 'warning', code: 'CATALOG_DAMAGED', message })
  }
}

function named(stamps: readonly Stamp[]): string {
  const shown = stamps.slice(-3).join(', ')
  return stamps.length > 3 ? `${stamps.length} exports, such as ${shown}` : shown
}

async function eachExportedSet(
  { context, configuration }: Job,
  {
    target,
    names,
    look,
  }: {
    readonly target: string
    readonly names: readonly string[]
    readonly look: (open: OpenSet) => void | Promise<void>
  },
): Promise<void> {
  const machine = textOption(context.values, 'machine') ?? configuration.machine
  const words = { target, machine }
  const repository = await openRepository({ context, configuration, words })
  const identity = await requireIdentity(context, configuration)
  const places = await findExports(repository, { machine, set: undefined })
  const publicKeys = await keysOf({ configuration, words }, identity.signingKeys)
  const keys = { publicKeys, identities: identity.identities }
  const all = [...new Set(places.map(({ set }) => set))]
  const sets = names.length === 0 ? all : names
  for (const set of sets) {
    const its = places.filter((place) => place.set === set)
    if (its.length === 0) await findExports(repository, { machine, set })
    context.reporter.report({ kind: 'phase', name: `reading the catalogs of ${set}` })
    const readers = readersOf(repository, { places: its, keys, signal: context.signal })
    const versions = await versionsOfExports(set, readers)
    const stamps = new Map([[set, new Set(its.map(({ stamp }) => stamp))]])
    const place = { name: target, target, drive: undefined, repository: repository.id }
    const holders = [{ ...place, isThere: true, stamps }]
    await look({ versions, holders, isOnly: sets.length === 1 })
  }
}

/** Each is closed before the next is opened. */
async function* readersOf(
  repository: Repository,
  {
    places,
    keys,
    signal,
  }: {
    readonly places: readonly ExportPlace[]
    readonly keys: {
      readonly publicKeys: readonly string[]
      readonly identities: readonly string[]
    }
    readonly signal: AbortSignal
  },
): AsyncGenerator<ExportReader, void, undefined> {
  for (const place of places) {
    if (signal.aborted) throw new BackupError('INTERRUPTED', 'interrupted')
    const manifest = await readManifest(repository, place, keys)
    const reader = new ExportReader({ repository, manifest, identities: keys.identities, signal })
    try {
      yield reader
    } finally {
      reader.close()
    }
  }
}
