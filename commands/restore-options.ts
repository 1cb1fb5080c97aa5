// What the words of backup-restore mean: source, paths, directory, identity. Checked before
// anything is opened.
//
// Throws USAGE for words that do not go together.

import { existsSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { BackupError } from '../lib/errors.ts'
import type { Configuration } from '../lib/machine/config.ts'
import type { Tier } from '../lib/model/prices.ts'
import { parseTier } from '../lib/model/thaw-plan.ts'
import { type IdentityFile, readIdentityFile } from '../lib/machine/identity.ts'
import { type RawPath, rawPathFromText } from '../lib/model/raw-path.ts'
import { type CommandContext, type Values, isGiven, textOption, textOptions } from './command.ts'
import { passphraseFromFile } from './passphrase.ts'

export interface RestoreWords {
  readonly action: 'list' | 'verify' | 'restore'
  /** Undefined: both, for a list. */
  readonly source: 'local' | 'external' | undefined
  readonly target: string | undefined
  readonly machine: string | undefined
  readonly set: string | undefined
  readonly date: string | undefined
  /** Without leading slash; none: everything. */
  readonly paths: readonly RawPath[]
  /** Undefined: the original place. */
  readonly into: string | undefined
  /** How what is in cold storage is asked for; undefined: not at all. */
  readonly thaw: Tier | undefined
  readonly overwrite: boolean
  readonly yes: boolean
  readonly dryRun: boolean
}

/** @throws BackupError USAGE */
export function readWords(values: Values, workingDirectory: string): RestoreWords {
  const target = textOption(values, 'target')
  const action = isGiven(values, 'list') ? 'list' : isGiven(values, 'verify') ? 'verify' : 'restore'
  if (isGiven(values, 'list') && isGiven(values, 'verify')) {
    throw new BackupError('USAGE', '--list and --verify do not go together')
  }
  const into = textOption(values, 'into')
  const source = readSource(values, { action, target })
  return {
    action,
    source,
    thaw: readTier(values, { action, source }),
    target,
    machine: textOption(values, 'machine'),
    set: textOption(values, 'set'),
    date: textOption(values, 'date'),
    paths: textOptions(values, 'path').map((path) => toEntryPath(path, workingDirectory)),
    into: into === undefined ? undefined : resolve(workingDirectory, into),
    overwrite: isGiven(values, 'overwrite'),
    yes: isGiven(values, 'yes'),
    dryRun: isGiven(values, 'dry-run'),
  }
}

/** Cold storage is a matter of restoring from a bucket. */
function readTier(
  values: Values,
  { action, source }: Pick<RestoreWords, 'action' | 'source'>,
): Tier | undefined {
  for (const name of ['thaw', 'wait', 'resume']) {
    if (values[name] === undefined || (action === 'restore' && source === 'external')) continue
    throw new BackupError('USAGE', `--${name} goes with restoring from a target`)
  }
  const text = textOption(values, 'thaw')
  if (text === undefined) return undefined
  const tier = parseTier(text)
  if (tier !== undefined) return tier
  throw new BackupError('USAGE', `--thaw is bulk, standard or expedited, not ${text}`)
}

function readSource(
  values: Values,
  { action, target }: { action: string; target: string | undefined },
): RestoreWords['source'] {
  const source = textOption(values, 'source')
  if (source === 'local' && target !== undefined) {
    throw new BackupError('USAGE', '--target goes with --source external')
  }
  if (source === 'local' || source === 'external') return source
  if (source !== undefined) {
    throw new BackupError('USAGE', `--source is local or external, not ${source}`)
  }
  if (target !== undefined) return 'external'
  if (action === 'list') return undefined
  throw new BackupError('USAGE', 'where from?', {
    hint: 'give --source local (staging) or --source external (a target)',
  })
}

/** A path as people write it → as entries have it. */
function toEntryPath(path: string, workingDirectory: string): RawPath {
  return rawPathFromText(resolve(workingDirectory, path).replace(/^\/+/, ''))
}

/**
 * Where the identity is looked for when nothing is said: beside the configuration, as `backup init`
 * leaves it.
 */
const IDENTITY_FILE = 'identity.age'

/** The same without protection, as `--no-passphrase` leaves it. */
const PLAIN_IDENTITY_FILE = 'identity.txt'

/**
 * The identity, from `--identity`, the configuration, or beside the configuration; undefined where
 * there is none.
 * @throws BackupError IDENTITY_ABSENT for one that was named and is not there, PASSPHRASE_WRONG
 */
export async function loadIdentity(
  context: CommandContext,
  configuration: Configuration,
): Promise<IdentityFile | undefined> {
  const named = textOption(context.values, 'identity') ?? configuration.identity
  const path = named ?? identityBeside(configuration)
  if (path === undefined) return undefined
  const file = textOption(context.values, 'passphrase-file')
  let isUnopened = false
  try {
    return await readIdentityFile({
      path: rawPathFromText(resolve(path)),
      askPassphrase: async () => {
        if (file !== undefined) return await passphraseFromFile(file)
        isUnopened = !context.hasTerminal
        return await context.askSecret(`Passphrase of ${path}: `)
      },
    })
  } catch (error) {
    // Nobody asked for this identity and nobody is there to open it: cron lists and verifies too.
    if (named !== undefined || !isUnopened || !(error instanceof BackupError)) throw error
    return undefined
  }
}

function identityBeside({ path }: Configuration): string | undefined {
  return [IDENTITY_FILE, PLAIN_IDENTITY_FILE]
    .map((name) => join(path, '..', name))
    .find((file) => existsSync(file))
}

/** The same, where nothing can be done without. @throws BackupError IDENTITY_ABSENT */
export async function requireIdentity(
  context: CommandContext,
  configuration: Configuration,
): Promise<IdentityFile> {
  const identity = await loadIdentity(context, configuration)
  if (identity !== undefined) return identity
  throw new BackupError('IDENTITY_ABSENT', 'exports are encrypted, and there is no identity here', {
    hint: 'name the identity file with --identity FILE, and its passphrase with --passphrase-file',
  })
}
