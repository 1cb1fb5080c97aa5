// What the words of backup-restore mean: sources, paths, directory, policies, identity. Checked
// before anything is opened.
//
// Throws USAGE for words that do not go together.

import { existsSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { BackupError } from '../lib/errors.ts'
import { readAccountNumbers } from '../lib/machine/accounts.ts'
import type { Configuration } from '../lib/machine/config.ts'
import type { Tier } from '../lib/model/prices.ts'
import {
  type AccountMap,
  type NameRule,
  type OwnerRule,
  parseNameRule,
  parseOwnerRule,
  parseAccountMap,
} from '../lib/model/moving.ts'
import { OVERWRITE_POLICIES, type OverwritePolicy, parseOverwrite } from '../lib/model/overwrite.ts'
import { type PathPatterns, compilePatterns } from '../lib/model/path-patterns.ts'
import { parseTier } from '../lib/model/thaw-plan.ts'
import { type IdentityFile, readIdentityFile } from '../lib/machine/identity.ts'
import { type RawPath, rawPathFromText } from '../lib/model/raw-path.ts'
import { argumentPath } from './argument-path.ts'
import {
  type CommandContext,
  type Options,
  type Values,
  isGiven,
  textOption,
  textOptions,
} from './command.ts'
import { passphraseFromFile } from './passphrase.ts'

/** Where generations are read from, whose they are, and what opens them. */
export const SOURCE_OPTIONS = {
  source: { type: 'string' },
  target: { type: 'string' },
  machine: { type: 'string' },
  set: { type: 'string' },
  identity: { type: 'string' },
  'passphrase-file': { type: 'string' },
} as const satisfies Options

export interface RestoreWords {
  readonly action: 'list' | 'verify' | 'restore' | 'undo'
  /** Of a list or a verification; undefined: both, for a list. */
  readonly source: 'local' | 'external' | undefined
  /** Of a restore: `local`, `external` and names of targets, in this order; none: nearest first. */
  readonly sources: readonly string[]
  readonly target: string | undefined
  readonly machine: string | undefined
  readonly set: string | undefined
  readonly date: string | undefined
  /** Without leading slash; none: everything. */
  readonly paths: readonly RawPath[]
  readonly patterns: PathPatterns | undefined
  /** The newest generation that has the paths, even if newer ones do not. */
  readonly last: boolean
  /** To standard output. */
  readonly prints: boolean
  /** A directory of what a restore replaced, which is undone. */
  readonly undo: string | undefined
  /** Undefined: the original place. */
  readonly into: string | undefined
  /** How what is in cold storage is asked for; undefined: not at all. */
  readonly thaw: Tier | undefined
  readonly overwrite: OverwritePolicy
  /** Undefined: by number, or by name where another machine's exports are restored. */
  readonly owner: OwnerRule | undefined
  /** By their names or numbers in the backup. */
  readonly users: AccountMap
  readonly groups: AccountMap
  readonly names: NameRule
  /** What a directory has and the generation has not goes. */
  readonly deletes: boolean
  /** What is replaced or deleted is not kept. */
  readonly discards: boolean
  readonly ignoresSpace: boolean
  readonly yes: boolean
  readonly dryRun: boolean
}

/** @throws BackupError USAGE */
export function readWords(values: Values, workingDirectory: string): RestoreWords {
  const target = textOption(values, 'target')
  const action = readAction(values)
  const into = textOption(values, 'into')
  const source = readSource(values, { action, target })
  const paths = textOptions(values, 'path').map((path) => toEntryPath(path, workingDirectory))
  const undo = textOption(values, 'undo')
  if (action === 'list') refuseRestoring(values)
  if (action === 'restore') checkTogether(values, { paths, into })
  return {
    action,
    source: source === 'local' || source === 'external' ? source : undefined,
    sources: source === undefined || action !== 'restore' ? [] : source.split(','),
    patterns: compilePatterns({
      include: textOptions(values, 'include'),
      exclude: textOptions(values, 'exclude'),
    }),
    last: isGiven(values, 'last'),
    prints: isGiven(values, 'stdout'),
    undo: undo === undefined ? undefined : resolve(workingDirectory, undo),
    thaw: readTier(values, { action, source }),
    target,
    machine: textOption(values, 'machine'),
    set: textOption(values, 'set'),
    date: textOption(values, 'date'),
    paths,
    into: into === undefined ? undefined : resolve(workingDirectory, into),
    overwrite: readOverwrite(values),
    ...readMoving(values),
    deletes: isGiven(values, 'delete'),
    discards: isGiven(values, 'discard'),
    ignoresSpace: isGiven(values, 'ignore-space'),
    yes: isGiven(values, 'yes'),
    dryRun: isGiven(values, 'dry-run'),
  }
}

function readAction(values: Values): RestoreWords['action'] {
  const actions = (['list', 'verify', 'undo'] as const).filter((name) => values[name] !== undefined)
  if (actions.length > 1) {
    throw new BackupError('USAGE', `--${actions[0]} and --${actions[1]} do not go together`)
  }
  return actions[0] ?? 'restore'
}

function readMoving(values: Values): Pick<RestoreWords, 'owner' | 'users' | 'groups' | 'names'> {
  const owner = textOption(values, 'owner')
  const [users, groups] = [textOptions(values, 'map-user'), textOptions(values, 'map-group')]
  const accounts = readAccountNumbers()
  return {
    owner: owner === undefined ? undefined : parseOwnerRule(owner),
    users: parseAccountMap(users, { option: '--map-user', here: accounts.users }),
    groups: parseAccountMap(groups, { option: '--map-group', here: accounts.groups }),
    names: parseNameRule(textOption(values, 'names') ?? 'as-is'),
  }
}

/** At a terminal somebody is asked; else nothing is replaced. */
function readOverwrite(values: Values): OverwritePolicy {
  const text = textOption(values, 'overwrite')
  if (text === undefined) return 'ask'
  const policy = parseOverwrite(text)
  if (policy !== undefined) return policy
  const policies = OVERWRITE_POLICIES.join(', ')
  throw new BackupError('USAGE', `--overwrite is one of ${policies}, not ${text}`)
}

/** What a list would pass over in silence. @throws BackupError USAGE */
function refuseRestoring(values: Values): void {
  const names = ['date', 'path', 'last', 'include', 'exclude', 'into', 'overwrite', 'delete']
  const name = names.find((one) => values[one] !== undefined)
  if (name === undefined) return
  throw new BackupError('USAGE', `--${name} does not go with --list`, {
    hint: 'all generations are listed; `backup find PATTERN` says which ones have a path',
  })
}

/** @throws BackupError USAGE */
function checkTogether(
  values: Values,
  { paths, into }: { readonly paths: readonly RawPath[]; readonly into: string | undefined },
): void {
  const isGivenAny = (...names: readonly string[]) =>
    names.some((name) => values[name] !== undefined)
  const refuse = (message: string, hint: string): never => {
    throw new BackupError('USAGE', message, { hint })
  }
  if (isGiven(values, 'delete')) {
    if (paths.length === 0) refuse('--delete needs --path', 'name the directory that is meant')
    if (isGivenAny('include', 'exclude')) {
      refuse('--delete and patterns do not go together', 'what is left out would be deleted')
    }
  }
  if (isGiven(values, 'last')) {
    if (paths.length === 0) refuse('--last needs --path', 'name what is looked for')
    if (isGivenAny('date')) refuse('--last and --date do not go together', 'give one of them')
  }
  if (!isGiven(values, 'stdout')) return
  if (paths.length !== 1) refuse('--stdout needs one --path', 'name the file that is printed')
  if (into !== undefined) refuse('--stdout and --into do not go together', 'give one of them')
  if (isGivenAny('json', 'dry-run')) {
    refuse('--stdout prints the file and nothing else', 'leave --json and --dry-run out')
  }
}

/** Cold storage is a matter of restoring from a bucket. */
function readTier(
  values: Values,
  { action, source }: { readonly action: string; readonly source: string | undefined },
): Tier | undefined {
  for (const name of ['thaw', 'wait', 'resume']) {
    if (values[name] === undefined || (action === 'restore' && source !== 'local')) continue
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
): string | undefined {
  const source = textOption(values, 'source')
  if (source !== undefined && source !== 'external' && target !== undefined) {
    throw new BackupError('USAGE', '--target goes with --source external')
  }
  if (source === 'local' || source === 'external') return source
  if (source !== undefined && action !== 'restore') {
    throw new BackupError('USAGE', `--source is local or external, not ${source}`)
  }
  if (source?.split(',').includes('') === true) {
    throw new BackupError('USAGE', `--source has an empty name: ${source}`, {
      hint: 'it is a list of local, external and names of targets: --source local,t9',
    })
  }
  if (source !== undefined) return source
  if (target !== undefined) return 'external'
  if (action !== 'verify') return undefined
  throw new BackupError('USAGE', 'what is to be verified?', {
    hint: 'give --source local (staging) or --source external (a target)',
  })
}

/** A path as people write it → as entries have it. */
function toEntryPath(path: string, workingDirectory: string): RawPath {
  return argumentPath(path, workingDirectory).replace(/^\/+/, '')
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
  const there = identityBeside(configuration)
  const what = there === undefined ? 'there is no identity here' : 'nobody is here to open it'
  const of = there === undefined ? '' : `: ${there}`
  throw new BackupError('IDENTITY_ABSENT', `exports are encrypted, and ${what}${of}`, {
    hint: 'name the identity file with --identity FILE, and its passphrase with --passphrase-file',
  })
}
