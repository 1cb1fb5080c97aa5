// `backup init`: a commented configuration, an identity, this machine's signing key, and what to
// keep where.
//
// Everything is checked before anything is written, nothing is ever overwritten, and what a failure
// leaves half-made is taken away again. init-text.ts has the configuration's text, init-files.ts
// writes it all, qr.ts draws the identity. The identity and the passphrase are only ever shown to
// whoever sits at the terminal that asked for them. Throws ALREADY_THERE, USAGE, WRITE_FAILED.

import { lstat } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { BackupError, systemCode } from '../lib/errors.ts'
import { generateIdentity, recipientOf } from '../lib/format/age-keys.ts'
import { generateSigningKey, publicKeyText } from '../lib/format/minisign.ts'
import { defaultConfigurationPath, parseConfiguration } from '../lib/machine/config.ts'
import { generatePassphrase } from '../lib/machine/identity.ts'
import { cleanName, isValidName, machineName } from '../lib/model/names.ts'
import { isGiven, textOption, textOptions } from './command.ts'
import type { Command, CommandContext } from './command.ts'
import { cannotMake, makeFiles } from './init-files.ts'
import type { Keys, Paths } from './init-files.ts'
import { FROM_OPTIONS, FROM_USAGE, initFrom, refuseWithoutFrom } from './init-from.ts'
import { configurationText } from './init-text.ts'
import { askNewPassphrase, passphraseFromFile } from './passphrase.ts'
import { qrLines } from './qr.ts'
import type { Reporter } from './reporter.ts'

const USAGE = `Usage: backup init [options]

Writes a configuration with comments, makes the identity that reads your backups
and this machine's signing key, and says what to keep where. Overwrites nothing.

  --source PATH            what to back up; may be repeated (else your home)
  --staging DIR            where collections are kept (else $DBACKUP)
  --target DIR             where exports go, a drive's directory (else none yet)
  --system                 also this machine itself, to set it up again from it
  --machine NAME           this machine's name (else from the host name)
  --config FILE            the configuration to write
                           (else $BACKUP_CONFIG, ~/.config/backup/config.yaml)
  --identity FILE          the identity to write (else beside the configuration)
  --passphrase-file FILE   its first line protects the identity file
  --no-passphrase          the identity file is not protected

Without either, the passphrase is asked for twice; without a terminal one is made
and printed once.

${FROM_USAGE}`

export const command: Command = {
  name: 'backup init',
  summary: 'write a configuration and make the keys',
  usage: USAGE,
  options: {
    source: { type: 'string', multiple: true },
    staging: { type: 'string' },
    target: { type: 'string' },
    system: { type: 'boolean' },
    machine: { type: 'string' },
    identity: { type: 'string' },
    'passphrase-file': { type: 'string' },
    'no-passphrase': { type: 'boolean' },
    ...FROM_OPTIONS,
  },
  run: async (context) => {
    if (textOption(context.values, 'from') !== undefined) return await initFrom(context)
    refuseWithoutFrom(context.values)
    const paths = choosePaths(context)
    await refuseExisting(paths)
    const keys: Keys = { identity: generateIdentity(), signingKey: await generateSigningKey() }
    const content = await describeConfiguration(context, paths, keys)
    const protection = await chooseProtection(context)
    const files = filesOf(paths, protection)
    if (isGiven(context.values, 'dry-run')) {
      sayPlan(context.reporter, files)
      return 0
    }
    context.signal.throwIfAborted()
    const created = new Date(context.now()).toISOString()
    await makeFiles({ paths, keys, content, passphrase: protection.passphrase, created })
    say({ context, files, paths, keys, machine: content.machine, protection })
    return 0
  },
}

interface Content {
  readonly machine: string
  readonly text: string
}

interface Protection {
  /** A secret; undefined: the identity file is not protected. */
  readonly passphrase: string | undefined
  /** Made here, so the user has not seen it yet. */
  readonly isGenerated: boolean
}

interface MadeFile {
  readonly path: string
  readonly what: string
}

function choosePaths(context: CommandContext): Paths {
  const { values, environment, home } = context
  const named = pathOption(context, 'config') ?? environment['BACKUP_CONFIG']
  const config = resolve(named || defaultConfigurationPath(home))
  const directory = dirname(config)
  const identityName = isGiven(values, 'no-passphrase') ? 'identity.txt' : 'identity.age'
  return {
    config,
    signingKey: join(directory, 'signing.key'),
    signingPublicKey: join(directory, 'signing.pub'),
    identity: pathOption(context, 'identity') ?? join(directory, identityName),
  }
}

/** @throws ALREADY_THERE with every one of our files that exists */
async function refuseExisting(paths: Paths): Promise<void> {
  const there: string[] = []
  for (const path of [...Object.values(paths), `${paths.identity}.salt`]) {
    if (await isThere(path)) there.push(path)
  }
  if (there.length === 0) return
  const named = there.map((path) => `"${path}"`).join(', ')
  throw new BackupError('ALREADY_THERE', `already there: ${named}`, {
    hint: 'nothing was changed; name other files with --config and --identity, or move these away',
    facts: { files: there },
  })
}

async function isThere(path: string): Promise<boolean> {
  try {
    await lstat(path)
    return true
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes(systemCode(error) ?? '')) return false
    throw cannotMake(path, error)
  }
}

/** The configuration's text, which reads back without an error. */
async function describeConfiguration(
  context: CommandContext,
  paths: Paths,
  keys: Keys,
): Promise<Content> {
  const { values, environment, home, hostName } = context
  const machine = chooseMachine(context)
  const staging = pathOption(context, 'staging') ?? environment['DBACKUP']
  if (staging === undefined || staging === '') {
    const message = 'there is no staging directory: neither --staging nor $DBACKUP is given'
    throw new BackupError('USAGE', message, {
      hint: 'name the directory where collections are to be kept, as --staging DIR',
    })
  }
  const text = configurationText({
    machine,
    staging: resolve(staging),
    target: pathOption(context, 'target'),
    sources: textOptions(values, 'source').map((source) => fromHome(source, home)),
    recipient: recipientOf(keys.identity),
    signingKey: paths.signingKey,
    withSystem: isGiven(values, 'system'),
  })
  await parseConfiguration({ path: paths.config, text, environment, home, hostName })
  return { machine, text }
}

function chooseMachine({ values, hostName }: CommandContext): string {
  const machine = textOption(values, 'machine') ?? machineName(hostName)
  if (machine !== undefined && isValidName(machine)) return machine
  const name = cleanName(machine ?? '')
  throw new BackupError('USAGE', `"${machine ?? hostName}" cannot be a machine's name`, {
    hint:
      name === undefined
        ? 'give one of a-z, 0-9, _ and - as --machine NAME'
        : `a name has only a-z, 0-9, _ and -: did you mean --machine ${name}?`,
  })
}

async function chooseProtection(context: CommandContext): Promise<Protection> {
  const { values, hasTerminal, askSecret } = context
  const file = textOption(values, 'passphrase-file')
  const isBare = isGiven(values, 'no-passphrase')
  if (file !== undefined && isBare) {
    throw new BackupError('USAGE', '--passphrase-file and --no-passphrase exclude each other')
  }
  if (isBare) return { passphrase: undefined, isGenerated: false }
  if (file !== undefined) return { passphrase: await passphraseFromFile(file), isGenerated: false }
  if (isGiven(values, 'dry-run')) return { passphrase: '', isGenerated: false }
  if (hasTerminal) return { passphrase: await askNewPassphrase(askSecret), isGenerated: false }
  if (!isGiven(values, 'json')) return { passphrase: generatePassphrase(), isGenerated: true }
  throw new BackupError('USAGE', 'a passphrase that is made here could not be shown with --json', {
    hint: 'give one with --passphrase-file FILE',
  })
}

function filesOf(paths: Paths, { passphrase }: Protection): MadeFile[] {
  const how = passphrase === undefined ? 'not protected' : 'under the passphrase'
  const files = [
    { path: paths.config, what: 'the configuration' },
    { path: paths.signingKey, what: "this machine's secret signing key" },
    { path: paths.signingPublicKey, what: 'its public key' },
    { path: paths.identity, what: `the identity, ${how}` },
  ]
  if (passphrase === undefined) return files
  const salt = { path: `${paths.identity}.salt`, what: 'what opens it, besides the passphrase' }
  return [...files, salt]
}

function sayPlan(reporter: Reporter, made: readonly MadeFile[]): void {
  for (const { path, what } of made) reporter.print(`would make ${path}: ${what}`)
  const files = made.map(({ path }) => path)
  reporter.report({ kind: 'result', command: 'init', dryRun: true, files })
}

function say({
  context,
  files,
  paths,
  keys,
  machine,
  protection,
}: {
  readonly context: CommandContext
  readonly files: readonly MadeFile[]
  readonly paths: Paths
  readonly keys: Keys
  readonly machine: string
  readonly protection: Protection
}): void {
  const { reporter } = context
  const signingKey = publicKeyText(keys.signingKey)
  const isProtected = protection.passphrase !== undefined
  const identityFiles = isProtected ? [paths.identity, `${paths.identity}.salt`] : [paths.identity]
  const lines = [
    'Made:',
    ...files.map(({ path, what }) => `  ${path}: ${what}`),
    '',
    'Keep these away from this machine, in two places, before you need them:',
    '',
    '1. The identity, on paper. It reads every backup; without it nobody can.',
    ...identityLines({ context, identity: keys.identity, file: paths.identity }),
    `   Move the file to a drive that you keep elsewhere: ${identityFiles.join(' and ')}`,
    ...passphraseLines(protection),
    `${isProtected ? 3 : 2}. The signing public key of ${machine}. `
      + 'It tells real backups from forged.',
    `     ${signingKey}`,
    '',
    `Now look over ${paths.config}, then run: backup-collect --dry-run`,
  ]
  for (const line of lines) reporter.print(line)
  reporter.report({
    kind: 'result',
    command: 'init',
    files: files.map(({ path }) => path),
    machine,
    recipient: recipientOf(keys.identity),
    signingKey,
  })
}

/** The secret itself only on a terminal: other output ends up in files and logs. */
function identityLines({
  context,
  identity,
  file,
}: {
  readonly context: CommandContext
  readonly identity: string
  readonly file: string
}): string[] {
  if (context.stdout.isTTY !== true) {
    return [`   Print it with: backup keys show --identity ${file}`]
  }
  return [`     ${identity}`, ...qrLines(identity, { colors: true }).map((line) => `     ${line}`)]
}

function passphraseLines({ passphrase, isGenerated }: Protection): string[] {
  if (passphrase === undefined) return []
  if (!isGenerated) return ['2. The passphrase of the identity file, which you chose.']
  return ['2. The passphrase of the identity file, shown only this once:', `     ${passphrase}`]
}

function pathOption({ values, home }: CommandContext, name: string): string | undefined {
  const path = textOption(values, name)
  return path === undefined ? undefined : fromHome(path, home)
}

/** Absolute; shells leave the ~ of `--staging=~/x` as it is. */
function fromHome(path: string, home: string): string {
  return resolve(path.replace(/^~(?=\/|$)/, () => home))
}
