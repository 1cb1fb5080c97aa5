// `backup init --from TARGET`: on a machine that has nothing yet, the configuration that came with
// the newest export there.
//
// init.ts calls initFrom; lib/work/init-from.ts finds and words it. The identity and the signing
// public key in its file have to be brought along. Overwrites nothing; with --dry-run it prints
// what it would write. Throws ALREADY_THERE, USAGE, WRITE_FAILED, IDENTITY_ABSENT,
// PASSPHRASE_WRONG, and what init-from.ts throws.

import { Buffer } from 'node:buffer'
import { existsSync, mkdirSync, rmSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { BackupError, type ExitCode } from '../lib/errors.ts'
import {
  encodePublicKey,
  encodeSigningKey,
  generateSigningKey,
  parsePublicKey,
  publicKeyText,
  type SigningKey,
} from '../lib/format/minisign.ts'
import { defaultConfigurationPath } from '../lib/machine/config.ts'
import { writeDurably } from '../lib/machine/durable-file.ts'
import { type IdentityFile, readIdentityFile } from '../lib/machine/identity.ts'
import { exportName } from '../lib/model/manifest.ts'
import { isValidName } from '../lib/model/names.ts'
import { rawPathFromText } from '../lib/model/raw-path.ts'
import {
  chooseMachine,
  findHome,
  type FoundConfiguration,
  newestConfiguration,
  placeOfText,
  textFor,
  type TextForMachine,
} from '../lib/work/init-from.ts'
import { type CommandContext, isGiven, textOption, textOptions, type Values } from './command.ts'
import { cannotMake } from './init-files.ts'
import { passphraseFromFile } from './passphrase.ts'
import { makeScratch } from './scratch.ts'

/** The options that belong to --from; init.ts adds them to its own. */
export const FROM_OPTIONS = {
  from: { type: 'string' },
  as: { type: 'string' },
  'signing-key': { type: 'string', multiple: true },
  endpoint: { type: 'string' },
  region: { type: 'string' },
  profile: { type: 'string' },
  'path-style': { type: 'boolean' },
  'host-key': { type: 'string' },
  'ssh-key': { type: 'string' },
} as const

/** For the usage of `backup init`. */
export const FROM_USAGE = `Usage: backup init --from TARGET --identity FILE [options]

Where everything else is lost: brings back the configuration that came with the
newest export on a target, and says how to go on. Overwrites nothing.

  --from TARGET            a directory, s3://BUCKET/PREFIX, sftp://USER@HOST:PORT/PATH
  --identity FILE          the identity, from where you keep it
  --machine NAME           the machine that was, where several keep exports there
  --as NAME                another name for this one, with a signing key of its own
  --signing-key RW…        the machine's signing public key, where the identity file
                           does not name it; may be repeated
  --endpoint URL, --region NAME, --profile NAME, --path-style
                           of a bucket; credentials come from ~/.aws or the environment
  --host-key SHA256:…, --ssh-key FILE
                           of an SFTP host: the key to expect, and the one to show
`

/** What only means something with --from. @throws BackupError USAGE */
export function refuseWithoutFrom(values: Values): void {
  for (const name of Object.keys(FROM_OPTIONS)) {
    if (name === 'from' || values[name] === undefined) continue
    throw new BackupError('USAGE', `--${name} goes with --from`)
  }
}

/** What belongs to a beginning without --from. */
const NOT_WITH_FROM = ['staging', 'target'] as const

/** The whole of it. */
export async function initFrom(context: CommandContext): Promise<ExitCode> {
  const { values, environment, home, hostName, reporter } = context
  refuseOthers(context)
  const named = textOption(values, 'config') ?? environment['BACKUP_CONFIG']
  const path = resolve(named || defaultConfigurationPath(home))
  const key = await keyForNewName(context, path)
  if (!isGiven(values, 'dry-run')) {
    refuseExisting([path, ...(key === undefined ? [] : [key.path, key.publicPath])])
  }
  const place = placeOfText(textOption(values, 'from') ?? '', {
    endpoint: textOption(values, 'endpoint'),
    region: textOption(values, 'region'),
    profile: textOption(values, 'profile'),
    isPathStyle: isGiven(values, 'path-style'),
    hostKey: textOption(values, 'host-key'),
    sshKey: textOption(values, 'ssh-key'),
  })
  const identity = await openIdentity(context)
  const here = { environment, home, hostName }
  // Opening a target may want to keep something; none of it is of use afterwards.
  const staging = makeScratch('init')
  try {
    const repository = await findHome(place, { staging, ...here })
    try {
      const machine = await chooseMachine(repository, textOption(values, 'machine'))
      refuseSameName(key, machine)
      const given = textOptions(values, 'signing-key').map((text) =>
        publicKeyText(parsePublicKey(text)),
      )
      const ofIdentity = identity.file.signingKeys.filter((one) => one.machine === machine)
      const publicKeys = [...new Set([...ofIdentity.map((one) => one.publicKey), ...given])]
      const found = await newestConfiguration(repository, {
        ...{ machine, publicKeys, identities: identity.file.identities },
        report: reporter.report,
      })
      // Under another name the keys of the one that was are nobody's own any more.
      const trusted = key === undefined ? given : publicKeys
      const as = key && { machine: key.machine, signingKey: key.path }
      const made = await textFor({ found, place, path, as, trusted, ...here })
      if (!isGiven(values, 'dry-run')) write({ path, text: made.text, key })
      tell(context, { path, found, made, key, identity: identity.path })
      return 0
    } finally {
      await repository.target.close()
    }
  } finally {
    rmSync(staging, { recursive: true, force: true })
  }
}

function refuseOthers({ values }: CommandContext): void {
  for (const name of NOT_WITH_FROM) {
    if (textOption(values, name) === undefined) continue
    throw new BackupError('USAGE', `--${name} and --from do not go together`, {
      hint: 'the configuration that comes back says it; change it there afterwards',
    })
  }
  const isNew = ['system', 'no-passphrase'].some((name) => isGiven(values, name))
  if (textOptions(values, 'source').length > 0 || isNew) {
    throw new BackupError('USAGE', '--from goes without --source, --system, --no-passphrase', {
      hint: 'the configuration that comes back names sources; the identity is the one you have',
    })
  }
}

/** A signing key that does not exist yet, for a name that is new. */
interface NewKey {
  readonly machine: string
  readonly path: string
  readonly publicPath: string
  /** A secret. */
  readonly key: SigningKey
}

async function keyForNewName(
  { values }: CommandContext,
  configurationPath: string,
): Promise<NewKey | undefined> {
  const machine = textOption(values, 'as')
  if (machine === undefined) return undefined
  if (!isValidName(machine)) {
    throw new BackupError('USAGE', `"${machine}" cannot be a machine's name`, {
      hint: 'a name has only a-z, 0-9, _ and -',
    })
  }
  const directory = dirname(configurationPath)
  const paths = { path: join(directory, 'signing.key'), publicPath: join(directory, 'signing.pub') }
  return { machine, ...paths, key: await generateSigningKey() }
}

function refuseSameName(key: NewKey | undefined, machine: string): void {
  if (key === undefined || key.machine !== machine) return
  throw new BackupError('USAGE', `${machine} is the name that it had`, {
    hint: 'without --as it keeps its name, and needs its signing key back; nothing was written',
  })
}

function refuseExisting(paths: readonly string[]): void {
  const there = paths.filter((path) => existsSync(path))
  if (there.length === 0) return
  const named = there.map((path) => `"${path}"`).join(', ')
  throw new BackupError('ALREADY_THERE', `already there: ${named}`, {
    hint: 'nothing was changed; name another file with --config, or move these away',
    facts: { files: there },
  })
}

async function openIdentity(
  context: CommandContext,
): Promise<{ readonly path: string; readonly file: IdentityFile }> {
  const { values, askSecret } = context
  const path = textOption(values, 'identity')
  if (path === undefined) {
    throw new BackupError('IDENTITY_ABSENT', 'exports are encrypted: --from needs the identity', {
      hint: 'give --identity FILE; typed from paper, a file with its one line will do',
    })
  }
  const file = textOption(values, 'passphrase-file')
  const opened = await readIdentityFile({
    path: rawPathFromText(resolve(path)),
    askPassphrase: async () => {
      if (file !== undefined) return await passphraseFromFile(file)
      return await askSecret(`Passphrase of ${path}: `)
    },
  })
  return { path: resolve(path), file: opened }
}

/** The key first: once the configuration is there, all it names is. */
function write({ path, text, key }: { path: string; text: string; key: NewKey | undefined }): void {
  const made: string[] = []
  const writeOne = (file: string, content: string, mode: number): void => {
    try {
      writeDurably({ path: rawPathFromText(file), bytes: Buffer.from(content), mode })
    } catch (error) {
      throw error instanceof BackupError ? error : cannotMake(file, error)
    }
    made.push(file)
  }
  try {
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
  } catch (error) {
    throw cannotMake(dirname(path), error)
  }
  try {
    if (key !== undefined) {
      writeOne(key.path, encodeSigningKey(key.key), 0o600)
      writeOne(key.publicPath, encodePublicKey(key.key), 0o644)
    }
    writeOne(path, text, 0o600)
  } catch (error) {
    for (const file of made) rmSync(file, { force: true })
    throw error
  }
}

interface Outcome {
  readonly path: string
  readonly found: FoundConfiguration
  readonly made: TextForMachine
  readonly key: NewKey | undefined
  /** The identity file. */
  readonly identity: string
}

function tell(context: CommandContext, outcome: Outcome): void {
  const { reporter, values } = context
  const { path, found, made, key } = outcome
  const dryRun = isGiven(values, 'dry-run')
  const { text, target, machine, lacksAddresses, configuration } = made
  if (dryRun) {
    reporter.tell(`would write ${path}, found in ${exportName(found.place)}:`)
    for (const line of text.replace(/\n$/, '').split('\n')) reporter.print(line)
  } else for (const line of nextSteps(outcome)) reporter.print(line)
  const problem = configuration instanceof BackupError ? configuration.message : undefined
  reporter.report({
    kind: 'result',
    command: 'init',
    dryRun,
    files: [...(key === undefined ? [] : [key.path, key.publicPath]), path],
    from: exportName(found.place),
    ...{ machine, target, sets: found.sets, lacksAddresses, problem },
    ...(dryRun ? { configuration: text } : {}),
  })
}

function nextSteps(outcome: Outcome): readonly string[] {
  const { path, found, made, key, identity } = outcome
  const { target, lacksAddresses, configuration } = made
  const was = found.place.machine
  const words = `--source external --target ${target} --identity ${quoted(identity)}`
  const restore = `backup-restore ${words}`
  const of = key === undefined ? '' : ` --machine ${was}`
  const isWrong = configuration instanceof BackupError
  return [
    `Made ${path}, as it came with ${exportName(found.place)}.`,
    `Target ${target} is where it was found. Look the file over: other targets and paths may have`,
    'changed with the machine.',
    ...(isWrong ? [`It cannot be used yet: ${configuration.message}`] : []),
    ...(lacksAddresses
      ? ['Addresses of webhooks and pings are not in exports: put them in again.']
      : []),
    '',
    'Restoring works now, and needs nothing more:',
    `  ${restore}${of} --list`,
    ...found.sets.map((set) => `  ${restore}${of} --set ${set} --into DIRECTORY`),
    '',
    ...signingSteps(outcome, restore),
    '',
    `Keep the identity away from this machine again: ${identity}`,
  ]
}

/** How to go on backing up: who signs as this machine has to be this machine. */
function signingSteps({ made, found, key }: Outcome, restore: string): readonly string[] {
  const { configuration, machine } = made
  if (key !== undefined) {
    return [
      `This machine is ${machine} from now on, with a key of its own. Keep its public key with the`,
      'identity; what it had under the old name stays, and can be restored from:',
      `  ${publicKeyText(key.key)}`,
      'Its first export is a full one.',
    ]
  }
  if (configuration instanceof BackupError) {
    return [`Backing up as ${machine} takes its signing key, where the configuration says.`]
  }
  const { signingKey, backupSets } = configuration
  if (existsSync(signingKey)) return [`Its signing key is there: ${signingKey}`]
  const set = backupSets.find(({ name, sources }) => {
    return found.sets.includes(name) && sources.some((source) => isBelow(signingKey, source))
  })
  return [
    `Backing up as ${machine} takes its signing key: ${signingKey}`,
    ...(set === undefined
      ? ['Put it back from where you keep it.']
      : [
          'It was among what is backed up. Bring it back before the first run:',
          `  ${restore} --set ${set.name} --path ${quoted(signingKey)}`,
        ]),
    'Where it is lost for good, begin under another name: move the configuration away, and run',
    'this again with --as NAME. The first export is a full one.',
  ]
}

function isBelow(path: string, source: string): boolean {
  const directory = source.replace(/\/+$/, '')
  return path === directory || path.startsWith(`${directory}/`)
}

/** For a shell. */
function quoted(path: string): string {
  return /^[\w@%+=:,./-]+$/.test(path) ? path : `'${path.replaceAll("'", String.raw`'\''`)}'`
}
