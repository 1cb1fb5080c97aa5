// Where a restore or a verification reads from: the repository, the collections, the keys that are
// trusted.
//
// Shared by backup-restore.ts and restore-verify.ts. Throws TARGET and CONFIG errors,
// NOTHING_FOUND.

import { BackupError } from '../lib/errors.ts'
import type { Configuration, TargetConfiguration } from '../lib/machine/config.ts'
import { isFrozen } from '../lib/model/collection.ts'
import type { Target } from '../lib/target/target.ts'
import { readMarks } from '../lib/work/marks.ts'
import type { ExportPlace, Repository } from '../lib/work/repository.ts'
import { trustedKeys } from '../lib/work/signing.ts'
import { surveyCollections } from '../lib/work/staging.ts'
import { openTarget, repositoryToRead, targetNamed } from '../lib/work/target-access.ts'
import type { CommandContext } from './command.ts'
import type { RestoreWords } from './restore-options.ts'

/** What a command that reads backups has at hand. */
export interface RestoreJob {
  readonly context: CommandContext
  readonly words: RestoreWords
  readonly configuration: Configuration
}

/** The same as far as some of the words go: other commands read backups, too. */
interface Placed<Word extends keyof RestoreWords> extends Pick<RestoreJob, 'configuration'> {
  readonly words: Pick<RestoreWords, Word>
}

/** A tag stands where a date does: it names a set's generation. */
export function withTag(words: RestoreWords, { staging }: Configuration): RestoreWords {
  if (words.date === undefined || !/^[a-z]/.test(words.date)) return words
  const tag = readMarks(staging).tags.find(({ name }) => name === words.date)
  return tag === undefined ? words : { ...words, set: tag.set, date: tag.stamp }
}

/** The keys of the machine whose exports are meant. */
export async function keysOf(
  { configuration, words }: Placed<'machine'>,
  fromIdentity: readonly { readonly machine: string; readonly publicKey: string }[],
): Promise<readonly string[]> {
  const machine = words.machine ?? configuration.machine
  return await trustedKeys(configuration, { machine, fromIdentity })
}

/** The repository of one target, to read from. */
export async function openRepositoryOn(
  { configuration }: Pick<RestoreJob, 'configuration'>,
  target: TargetConfiguration,
): Promise<Repository> {
  // Backups need not be allowed to read back what they wrote; whoever restores has to be.
  const as = target.kind === 's3' && target.adminProfile !== undefined ? 'admin' : 'backup'
  return await repositoryToRead(await openTarget(target, configuration, { as }))
}

/** The first configured target that is there, or the one that was named. */
export async function openRepository(
  job: Placed<'target'> & Pick<RestoreJob, 'context'>,
): Promise<Repository> {
  const { words, configuration, context } = job
  if (words.target !== undefined) {
    return await openRepositoryOn(job, targetNamed(configuration, words.target))
  }
  let last: BackupError | undefined
  for (const target of configuration.targets) {
    try {
      const repository = await openRepositoryOn(job, target)
      context.reporter.report({
        kind: 'notice',
        level: 'info',
        code: 'TARGET',
        message: `from ${describeTarget(repository.target)}`,
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

/** For people: its name and where it is. */
export function describeTarget({ name, place }: Target): string {
  return `${name} (${place})`
}

/** @throws BackupError NOTHING_FOUND when there is no collection */
export function collectionsOf({ words, configuration }: Placed<'set'>): readonly ExportPlace[] {
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
