// `backup drives`: what is plugged in and what this machine makes of it; preparing a drive,
// ejecting one, forgetting one.
//
// Parses and tells; lib/work/drives.ts looks and prepares. Preparing shows first what is on the
// drive, and never formats or deletes. Throws USAGE, NOT_CONFIRMED, TARGET_* and what loading the
// configuration throws.

import { realpathSync, statSync } from 'node:fs'
import { BackupError, type ExitCode } from '../lib/errors.ts'
import { type BlockFilesystem, matchesDrive } from '../lib/machine/block-devices.ts'
import {
  type Configuration,
  type DriveConfiguration,
  type DriveTargetConfiguration,
  parseConfiguration,
  readConfigurationText,
} from '../lib/machine/config.ts'
import { withDrive } from '../lib/machine/config-document.ts'
import { mustBeUnmounted, powerOff, unmountDrive } from '../lib/machine/drive-mount.ts'
import { writeDurably } from '../lib/machine/durable-file.ts'
import { formatSize } from '../lib/model/amount.ts'
import { isValidName } from '../lib/model/names.ts'
import { displayText, rawPathFromText } from '../lib/model/raw-path.ts'
import { formatLocalTime } from '../lib/model/schedule.ts'
import {
  type DriveContents,
  filesystemFor,
  lookAtDrive,
  prepareDrive,
  surveyDrives,
} from '../lib/work/drives.ts'
import { forgetDrive, type KnownDrive, readDrives } from '../lib/work/drive-register.ts'
import { currentHistory, lastGoodExports } from '../lib/work/drive-history.ts'
import { openSigner } from '../lib/work/signing.ts'
import { type Command, type CommandContext, isGiven, textOption } from './command.ts'
import { withRunLock } from './run-lock.ts'

export const command: Command = {
  name: 'backup drives',
  summary: 'list the drives that are plugged in; prepare, eject or forget one',
  usage: `Usage: backup drives
       backup drives add TARGET[/DRIVE] [--device DEVICE] [--again] [--dry-run] [--yes]
       backup drives eject TARGET[/DRIVE] [--off]
       backup drives forget TARGET[/DRIVE]

Without words lists what is plugged in, known or not, and the configured drives that are not.

add prepares a drive for exports: shows what is on it, makes a directory with a repository, and
remembers the drive, so that a copy or a stranger of the same label is refused. It never formats
and never deletes. A target or a pool's drive that is not in the configuration yet is added there,
by its UUID. eject unmounts a drive so that it can be unplugged. forget lets another drive take
its place; what is on it stays.

  --device DEVICE  the drive's device or mount point; needed for one that is not configured
  --again          this is the right drive, although it is not the one that is remembered
  --off            switch it off besides
  --dry-run        only show what is on it
  --yes            do not ask; needed where nobody can answer
`,
  positionals: true,
  options: {
    device: { type: 'string' },
    again: { type: 'boolean' },
    off: { type: 'boolean' },
    yes: { type: 'boolean' },
  },
  run: async (context) => {
    const [verb, name, ...rest] = context.positionals
    const isList = verb === undefined || (verb === 'list' && name === undefined)
    if (isList) return await list(context)
    if (name === undefined || rest.length > 0) throw wrongWords()
    if (verb === 'add') return await add(context, name)
    if (verb === 'eject') return await eject(context, name)
    if (verb === 'forget') return await forget(context, name)
    throw wrongWords()
  },
}

function wrongWords(): BackupError {
  return new BackupError('USAGE', 'drives takes add, eject or forget with a target, or no word', {
    hint: 'see `backup drives --help`',
  })
}

async function list(context: CommandContext): Promise<ExitCode> {
  const { reporter, signal } = context
  const configuration = await context.loadConfiguration()
  const { plugged, absent } = await surveyDrives(configuration, { signal })
  const history = currentHistory(configuration.staging)
  const lastOf = ({ target, drive }: { target: string; drive: string }): string => {
    const lastMs = lastGoodExports(history, target).get(drive)
    return lastMs === undefined ? 'no good export yet' : `last export ${formatLocalTime(lastMs)}`
  }
  if (plugged.length === 0) reporter.print('no drive is plugged in')
  for (const { filesystem, matches, known } of plugged) {
    reporter.print(describe(filesystem))
    for (const match of matches) {
      const other = isOther(filesystem, readDrives(configuration.staging), match)
      if (other) {
        const name = nameOf(match)
        reporter.print(
          `  has the label of ${name}, but is not that drive: nothing is exported to it`,
        )
        continue
      }
      const isKnown = known?.target === match.target && known.drive === match.drive
      const name = nameOf(match)
      const todo = isKnown ? '' : `; not prepared yet: backup drives add ${name}`
      reporter.print(`  target ${name}: ${lastOf(match)}${todo}`)
    }
    if (matches.length === 0) reporter.print(`  ${strangerSentence(filesystem, known)}`)
  }
  for (const { known, ...match } of absent) {
    const seen =
      known === undefined ? 'never seen' : `last seen ${formatLocalTime(known.lastSeenMs)}`
    reporter.print(`not plugged in: target ${nameOf(match)}: ${seen}, ${lastOf(match)}`)
  }
  reporter.report({ kind: 'result', command: command.name, outcome: 'listed', plugged, absent })
  return 0
}

/** Whether the drive that is known by that name is another filesystem. */
function isOther(
  { uuid }: BlockFilesystem,
  register: readonly KnownDrive[],
  { target, drive }: { readonly target: string; readonly drive: string },
): boolean {
  const known = register.find((one) => one.target === target && one.drive === drive)
  return known?.uuid !== undefined && known.uuid !== uuid
}

function strangerSentence({ device }: BlockFilesystem, known: KnownDrive | undefined): string {
  if (known !== undefined) return `once ${nameOf(known)}; no longer configured`
  return `not configured: backup drives add NAME --device ${device} would make it a target`
}

function nameOf({ target, drive }: { readonly target: string; readonly drive: string }): string {
  return target === drive ? target : `${target}/${drive}`
}

/** `/dev/sdb1 "T9" exfat 1.8 TiB, Samsung PSSD T9, mounted at /media/me/T9`. */
function describe(filesystem: BlockFilesystem): string {
  const { device, label, uuid, sizeBytes, model, mountPoints, readOnly } = filesystem
  const name = label === undefined ? 'no label' : `"${displayText(label)}"`
  const what = `${name} ${filesystem.filesystem ?? 'unknown'} ${formatSize(sizeBytes)}`
  const where = mountPoints[0] === undefined ? 'not mounted' : `at ${displayText(mountPoints[0])}`
  const parts = [`${device} ${what}`, `UUID ${uuid ?? 'none'}`, ...(model ? [model] : []), where]
  return `${parts.join(', ')}${readOnly ? ', read-only' : ''}`
}

/** The words `t9` or `t9/blue`. */
function parseName(text: string): { readonly target: string; readonly drive: string | undefined } {
  const [target = '', drive, ...rest] = text.split('/')
  const names = [target, ...(drive === undefined ? [] : [drive])]
  if (rest.length === 0 && names.every(isValidName)) return { target, drive }
  throw new BackupError('USAGE', `"${displayText(text)}" is no name of a target or drive`, {
    hint: 'a-z, 0-9, _ and -, such as t9, or t9/blue for a drive of a pool',
  })
}

interface Chosen {
  readonly target: DriveTargetConfiguration
  readonly drive: DriveConfiguration
}

/** The configured drive of that name; undefined where there is none yet. */
function configuredDrive(configuration: Configuration, name: string): Chosen | undefined {
  const words = parseName(name)
  const target = configuration.targets.find((one) => one.name === words.target)
  if (target === undefined) return undefined
  if (target.kind !== 'drive') {
    throw new BackupError('USAGE', `target ${target.name} is of kind ${target.kind}, not a drive`, {
      hint: 'give the drive another name, or change the kind of the target',
    })
  }
  if (target.isPool && words.drive === undefined && target.drives.length > 1) {
    const names = target.drives.map((one) => `${target.name}/${one.name}`).join(', ')
    throw new BackupError('USAGE', `${target.name} is a pool: which drive?`, { hint: names })
  }
  if (!target.isPool && words.drive !== undefined && words.drive !== target.name) {
    throw new BackupError('USAGE', `target ${target.name} is one drive, no pool`, {
      hint: `make it one in the configuration: pool: [{name: ${words.drive}, label: …}]`,
    })
  }
  const wanted = words.drive ?? target.drives[0]?.name
  const drive = target.drives.find((one) => one.name === wanted)
  return drive === undefined ? undefined : { target, drive }
}

async function add(context: CommandContext, name: string): Promise<ExitCode> {
  const { values, signal, reporter } = context
  const device = textOption(values, 'device')
  const configuration = await context.loadConfiguration()
  const there = configuredDrive(configuration, name)
  if (there === undefined && device === undefined) {
    throw new BackupError('USAGE', `no drive ${name} is configured`, {
      hint: `plug it in and name it: backup drives add ${name} --device /dev/…`,
    })
  }
  const drive = there?.drive ?? { label: undefined, uuid: undefined }
  const filesystem = await filesystemFor({ device, drive }, { signal })
  if (there !== undefined && !matchesDrive(filesystem, there.drive)) {
    throw new BackupError(
      'TARGET_FOREIGN',
      `${filesystem.device} is not the drive that is configured as ${name}`,
      { hint: 'change its label or uuid in the configuration first; nothing was written' },
    )
  }
  const change =
    there === undefined
      ? await changedText(context, { configuration, name, filesystem })
      : undefined
  const changed = change?.configuration ?? configuration
  const chosen = there ?? configuredDrive(changed, name)
  if (chosen === undefined) throw new Error(`${name} is not in the changed configuration`)
  const signer = await openSigner(changed)
  const { target } = chosen
  const contents = await lookAtDrive(changed, { target, filesystem, signer, signal })
  show(context, { name, contents, target, change: change?.text })
  if (isGiven(values, 'dry-run')) return tellAdded(context, { name, outcome: 'planned' })
  if (!isGiven(values, 'yes') && !(await context.confirm(`Prepare it as ${name}?`))) {
    throw new BackupError('NOT_CONFIRMED', `${name} was not prepared`, {
      hint: 'give --yes where nobody can answer; nothing was changed',
    })
  }
  return await withRunLock(context, { configuration, command: command.name }, async () => {
    const again = isGiven(values, 'again')
    const plugged = { drive: chosen.drive, filesystem }
    const nowMs = context.now()
    const all = { target, plugged, contents, signer, nowMs, again }
    const repository = await prepareDrive(changed, all)
    if (change !== undefined) saveConfiguration(configuration.path, change.text)
    reporter.tell(`${name} is ready; export to it: backup external --target ${target.name}`)
    return tellAdded(context, { name, outcome: 'prepared', repository: repository.id })
  })
}

/** The configuration with the drive in it, checked; not written yet. */
async function changedText(
  { environment, home, hostName }: CommandContext,
  {
    configuration: { path },
    name,
    filesystem: { uuid, label },
  }: {
    readonly configuration: Configuration
    readonly name: string
    readonly filesystem: BlockFilesystem
  },
): Promise<{ readonly text: string; readonly configuration: Configuration }> {
  const before = await readConfigurationText(path)
  const text = withDrive({ path, text: before }, { ...parseName(name), uuid, label })
  const configuration = await parseConfiguration({ path, text, environment, home, hostName })
  return { text, configuration }
}

/** In place of the old text, with its mode; where it is a link, what that leads to. */
function saveConfiguration(path: string, text: string): void {
  const real = realpathSync(path)
  const mode = statSync(real).mode & 0o777
  writeDurably({ path: rawPathFromText(real), bytes: Buffer.from(text), mode, replace: true })
}

function show(
  { reporter }: CommandContext,
  {
    name,
    contents,
    target,
    change,
  }: {
    readonly name: string
    readonly contents: DriveContents
    readonly target: DriveTargetConfiguration
    readonly change: string | undefined
  },
): void {
  const { filesystem, freeBytes, names, count, repository, machines } = contents
  reporter.print(`${describe(filesystem)}, ${formatSize(freeBytes)} free`)
  const more = count > names.length ? `, and ${count - names.length} more` : ''
  const listed = names.map((name) => displayText(name)).join(', ')
  reporter.print(count === 0 ? '  it is empty' : `  on it: ${listed}${more}`)
  const place = target.path === '' ? 'its top' : `the directory ${displayText(target.path)}`
  const exists =
    machines.length === 0 ? 'an empty repository' : `the repository of ${machines.join(', ')}`
  reporter.print(
    repository === undefined
      ? `  would make a repository in ${place}; nothing is formatted or deleted`
      : `  ${place} has ${exists}: it is used as it is`,
  )
  if (change !== undefined) reporter.print(`  would add ${name} to the configuration`)
}

function tellAdded(
  { reporter }: CommandContext,
  facts: { readonly name: string; readonly outcome: string; readonly repository?: string },
): ExitCode {
  reporter.report({ kind: 'result', command: command.name, ...facts, exitCode: 0 })
  return 0
}

async function eject(context: CommandContext, name: string): Promise<ExitCode> {
  const { reporter, signal, values } = context
  const configuration = await context.loadConfiguration()
  const chosen = required(configuration, name)
  const filesystem = await filesystemFor({ device: undefined, drive: chosen.drive }, { signal })
  return await withRunLock(context, { configuration, command: command.name }, async () => {
    if (isGiven(values, 'dry-run')) {
      const where = filesystem.mountPoints.map((path) => displayText(path)).join(', ')
      reporter.tell(where === '' ? `${name} is not mounted` : `${name}: would unmount ${where}`)
      return tellAdded(context, { name, outcome: 'planned' })
    }
    for (const path of filesystem.mountPoints) await unmountDrive(path, { signal })
    await mustBeUnmounted(filesystem, { signal })
    const isOff = isGiven(values, 'off') && (await powerOff(filesystem, { signal })) === 'off'
    reporter.tell(`${name}: ${isOff ? 'switched off' : 'unmounted'}; it is safe to unplug it`)
    return tellAdded(context, { name, outcome: isOff ? 'off' : 'unmounted' })
  })
}

async function forget(context: CommandContext, name: string): Promise<ExitCode> {
  const configuration = await context.loadConfiguration()
  const { target, drive } = parseName(name)
  const { staging } = configuration
  const known = readDrives(staging).find((one) => {
    return one.target === target && one.drive === (drive ?? target)
  })
  if (known === undefined) {
    throw new BackupError('NOTHING_FOUND', `no drive ${name} is remembered`, {
      hint: '`backup drives` lists those that are',
    })
  }
  return await withRunLock(context, { configuration, command: command.name }, async () => {
    if (isGiven(context.values, 'dry-run')) {
      context.reporter.tell(`would forget ${name}; what is on the drive stays`)
      return tellAdded(context, { name, outcome: 'planned' })
    }
    forgetDrive(staging, known)
    context.reporter.tell(`${name} is forgotten; what is on the drive stays`)
    return tellAdded(context, { name, outcome: 'forgotten' })
  })
}

/** @throws BackupError USAGE */
function required(configuration: Configuration, name: string): Chosen {
  const chosen = configuredDrive(configuration, name)
  if (chosen !== undefined) return chosen
  throw new BackupError('USAGE', `no drive ${name} is configured`, {
    hint: '`backup drives` lists what is configured and plugged in',
  })
}
