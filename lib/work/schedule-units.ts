// The files that let the service manager start `backup`: systemd's units, launchd's property lists
// or a line for cron, as one configuration wants them.
//
// Rendered from the templates in systemd/, which people read, too. Nothing is written here:
// schedule-files.ts compares, writes and removes. All paths are text, without the `--root` below
// which they may be written. Throws USAGE for paths that no unit can name, and for labels that are
// too long for one.

import { readFileSync } from 'node:fs'
import { dirname, join, normalize } from 'node:path'
import { BackupError } from '../errors.ts'
import type { Configuration, DriveConfiguration } from '../machine/config.ts'
import type { ServiceScope } from '../machine/service-manager.ts'
import { displayText } from '../model/raw-path.ts'
import {
  driveInstances,
  encodeUdevName,
  escapeCronCommand,
  escapeXml,
  quoteShellWord,
  quoteUnitWord,
  udevUuids,
} from '../model/unit-escape.ts'

/** How a file of ours begins, after what its format puts before a comment. */
export const OURS = 'Written by `backup schedule install` for '

/** Where an administrator's units lie. */
export const SYSTEM_UNITS = '/etc/systemd/system'

export const UDEV_RULES = '/etc/udev/rules.d/90-backup-drive.rules'

export interface ScheduleRequest {
  readonly configuration: Configuration
  /** The text of its file: says which variables it refers to. */
  readonly text: string
  readonly scope: ServiceScope
  /** Absolute: node, and the program it runs. */
  readonly program: { readonly node: string; readonly main: string }
  readonly environment: Readonly<Record<string, string | undefined>>
  readonly home: string
  /** Whether udev is told to keep the desktop off the drives. */
  readonly withUdev: boolean
}

export interface ScheduleFile {
  readonly path: string
  readonly text: string
}

/** A symbolic link. */
export interface ScheduleLink {
  readonly path: string
  readonly target: string
}

export interface Schedule {
  readonly directory: string
  readonly files: readonly ScheduleFile[]
  readonly links: readonly ScheduleLink[]
  /** Variables that the configuration refers to and that look like secrets: not written. */
  readonly withheld: readonly string[]
  /** Directories of the log and the metrics: a unit may write only into what is there. */
  readonly needed: readonly string[]
}

/** From dist/lib/work/ to the project's own directory. */
const TEMPLATES = new URL('../../../systemd/', import.meta.url)

const TEMPORARY = ['/tmp', '/var/tmp']

/** Where LVM keeps its locks and what it was before a snapshot. */
const LVM_PATHS = ['/etc/lvm', '/run/lock', '/run/lvm']

/** Where sendmail puts what it could not deliver at once, and says so. */
const MAIL_PATHS = ['/var/spool', '/var/log']

const HOUR_SECONDS = 3600
const QUARTER_SECONDS = 900

/** Where units lie, or property lists. */
export function unitDirectory({
  scope,
  home,
  environment,
}: Pick<ScheduleRequest, 'scope' | 'home' | 'environment'>): string {
  if (scope === 'system') return SYSTEM_UNITS
  return join(environment['XDG_CONFIG_HOME'] || join(home, '.config'), 'systemd/user')
}

/** Where launchd looks: daemons of the machine, or agents of one user. */
export function launchdDirectory({ scope, home }: Pick<ScheduleRequest, 'scope' | 'home'>): string {
  return scope === 'system' ? '/Library/LaunchDaemons' : join(home, 'Library/LaunchAgents')
}

/** Everything that systemd needs for this configuration. @throws BackupError USAGE */
export function systemdSchedule(request: ScheduleRequest): Schedule {
  const directory = unitDirectory(request)
  const drives = drivesOf(request.configuration)
  const instances = drives.flatMap(instancesOf)
  const render = (template: string) => renderUnit(template, { request, directory })
  const names = ['backup.service', 'backup.timer', 'backup-failed@.service', 'backup-failed.sh']
  if (drives.length > 0) names.push('backup-drive@.service')
  const files = names.map((name) => ({ path: join(directory, name), text: render(name) }))
  if (request.withUdev && request.scope === 'system' && drives.length > 0) {
    files.push({ path: UDEV_RULES, text: render('90-backup-drive.rules') })
  }
  const timer = join(directory, 'backup.timer')
  const drive = join(directory, 'backup-drive@.service')
  return {
    directory,
    files,
    links: [
      { path: join(directory, 'timers.target.wants/backup.timer'), target: timer },
      ...instances.map((instance) => {
        const wants = join(directory, `${instance}.device.wants`)
        return { path: join(wants, `backup-drive@${instance}.service`), target: drive }
      }),
    ],
    withheld: variablesOf(request).withheld,
    needed: filesDirectories(request.configuration),
  }
}

/** The same for launchd. @throws BackupError USAGE */
export function launchdSchedule(request: ScheduleRequest): Schedule {
  const directory = launchdDirectory(request)
  const names = ['local.backup.run.plist']
  if (drivesOf(request.configuration).length > 0) names.push('local.backup.drive.plist')
  return {
    directory,
    files: names.map((name) => {
      return { path: join(directory, name), text: renderPropertyList(name, request) }
    }),
    links: [],
    withheld: variablesOf(request).withheld,
    needed: filesDirectories(request.configuration),
  }
}

/** The line of a crontab that does the same for the timer; drives start nothing there. */
export function cronLine(request: ScheduleRequest): string {
  const { node, main } = request.program
  const words = ['nice', '-n', '10', node, main, '--config', request.configuration.path]
  const assignments = variablesOf(request).given.map(([name, value]) => {
    return `${name}=${quoteShellWord(value)}`
  })
  const command = [...assignments, ...words.map(quoteShellWord)].join(' ')
  const escaped = escapeCronCommand(command) ?? refuse(command, 'a crontab')
  return `${isHourly(request.configuration) ? '*/15' : '17'} * * * *  ${escaped}`
}

/** What a file of ours for this configuration says first; another one's is not touched. */
export function markerText(configurationPath: string): string {
  const name = displayText(JSON.stringify(configurationPath))
  return `${OURS}${name}; what is changed here is lost at the next time.`
}

/** The drives of all targets, each with the name by which people know it. */
export function drivesOf({ targets }: Configuration): readonly DriveConfiguration[] {
  return targets.flatMap((target) => (target.kind === 'drive' ? target.drives : []))
}

function instancesOf(drive: DriveConfiguration): readonly string[] {
  const instances = driveInstances(drive)
  if (instances !== undefined) return instances
  throw new BackupError('USAGE', `the label of drive ${drive.name} is too long for a unit's name`, {
    hint: 'give the drive its uuid in the configuration; `backup drives` shows it',
  })
}

interface Rendering {
  readonly request: ScheduleRequest
  readonly directory: string
}

function renderUnit(template: string, { request, directory }: Rendering): string {
  const { configuration, program, scope } = request
  const word = (text: string): string => quoteUnitWord(text) ?? refuse(text, 'a unit')
  const variables = variablesOf(request).given
  const values: Record<string, () => string> = {
    MARKER: () => `# ${markerText(configuration.path)}`,
    NODE: () => programWord(program.node),
    MAIN: () => word(program.main),
    CONFIG: () => word(configuration.path),
    FAILED_SCRIPT: () => word(join(directory, 'backup-failed.sh')),
    ENVIRONMENT: () => {
      return variables.map(([name, value]) => `Environment=${word(`${name}=${value}`)}`).join('\n')
    },
    CALENDAR: () => (isHourly(configuration) ? '*:0/15' : 'hourly'),
    RANDOM_DELAY: () => (isHourly(configuration) ? '1min' : '15min'),
    SANDBOX: () => fill(readTemplate(`sandbox/run-${scope}.conf`), values).trimEnd(),
    SANDBOX_FAILED: () => fill(readTemplate(`sandbox/failed-${scope}.conf`), values).trimEnd(),
    RULES: () => drivesOf(configuration).map(udevRule).join('\n'),
    ...protections(configuration, word),
  }
  return fill(readTemplate(template), values)
}

function renderPropertyList(template: string, request: ScheduleRequest): string {
  const { configuration, program } = request
  const text = (value: string): string => {
    return quoteUnitWord(value) === undefined ? refuse(value, 'a property list') : escapeXml(value)
  }
  return fill(readTemplate(`launchd/${template}`), {
    // Two hyphens would end the comment.
    MARKER_TEXT: () => markerText(configuration.path).replaceAll('--', '&#45;&#45;'),
    NODE: () => text(program.node),
    MAIN: () => text(program.main),
    CONFIG: () => text(configuration.path),
    INTERVAL: () => String(isHourly(configuration) ? QUARTER_SECONDS : HOUR_SECONDS),
    ENVIRONMENT: () => {
      return variablesOf(request)
        .given.map(([name, value]) => {
          return `    <key>${name}</key>\n    <string>${text(value)}</string>`
        })
        .join('\n')
    },
  })
}

/**
 * What differs between configurations in systemd/sandbox/, and the reason that is written there.
 */
function protections(
  configuration: Configuration,
  word: (text: string) => string,
): Record<string, () => string> {
  const writes = writesOf(configuration)
  const mail = configuration.notify.mail === undefined ? [] : MAIL_PATHS
  const hooks = hasHooks(configuration)
  const inside = sourcesOf(configuration).find((source) => {
    return writes.some((place) => isWithin(source, place) || isWithin(place, source))
  })
  const isOpen = hooks || inside !== undefined
  const why = hooks
    ? 'Hooks\n# are your programs and write where they must: so only /usr and /boot are.'
    : 'A source\n# is where backup writes, and has to look as outside: so only /usr and /boot are.'
  const writable = [...writes, ...mail, ...LVM_PATHS].filter((path) => {
    return !isOpen || ['/usr', '/boot', '/efi'].some((closed) => isWithin(path, closed))
  })
  const own = [...sourcesOf(configuration), ...writes]
  const usesTemporary = own.some((path) => {
    return TEMPORARY.some((place) => isWithin(path, place) || isWithin(place, path))
  })
  const powersOff = configuration.targets.some((target) => {
    return target.kind === 'drive' && target.afterwards === 'power_off'
  })
  const isWhole = !hooks && mail.length === 0
  return {
    WHY_PROTECT_SYSTEM: () => (isOpen ? why : "The last\n# three are LVM's."),
    PROTECT_SYSTEM: () => (isOpen ? 'yes' : 'strict'),
    PROTECT_HOME: () => (isOpen ? 'no' : 'read-only'),
    READ_WRITE_PATHS: () => writable.map((path) => word(`-${path}`)).join(' '),
    WHY_PRIVATE_TMP: () => {
      return usesTemporary
        ? 'A source, staging or a target is in /tmp or /var/tmp, or has them below it:'
        : 'Nothing of the backup is in /tmp or /var/tmp:'
    },
    PRIVATE_TMP: () => (usesTemporary ? 'no' : 'yes'),
    WHY_KERNEL_TUNABLES: () => {
      return powersOff
        ? '`afterwards: power_off` without udisks writes into /sys:'
        : 'No drive is powered off by a file in /sys:'
    },
    PROTECT_KERNEL_TUNABLES: () => (powersOff ? 'no' : 'yes'),
    WHY_NO_NEW_PRIVILEGES: () => {
      return isWhole
        ? 'No set-user-id program helps it.'
        : 'sendmail, or a hook,\n# may be a set-user-id program, so nothing here forbids those.'
    },
    NO_NEW_PRIVILEGES: () => (isWhole ? 'yes' : 'no'),
    SYSTEM_CALLS: () => (isWhole ? '@system-service' : ''),
    ARCHITECTURES: () => (isWhole ? 'native' : ''),
    ADDRESS_FAMILIES: () => (isWhole ? 'AF_UNIX AF_INET AF_INET6 AF_NETLINK' : ''),
  }
}

/** What a run writes into. A drive that is mounted during the run need not be named. */
function writesOf(configuration: Configuration): readonly string[] {
  const { staging, path, targets, backupSets } = configuration
  const directories = targets.flatMap((target) => {
    return target.kind === 'directory' ? [target.path] : []
  })
  const records = backupSets.flatMap((set) => set.records ?? [])
  const own = [staging, dirname(path), ...records]
  const all = [...own, ...directories, ...filesDirectories(configuration)]
  return [...new Set(all)]
}

function filesDirectories({ notify, metrics }: Configuration): readonly string[] {
  return [notify.log?.path, metrics].flatMap((path) => (path === undefined ? [] : [dirname(path)]))
}

function sourcesOf({ backupSets }: Configuration): readonly string[] {
  return backupSets.flatMap(({ sources }) => sources.map(normalize))
}

function hasHooks({ backupSets }: Configuration): boolean {
  return backupSets.some(({ hooks }) => {
    return [hooks.collect, hooks.export].some(({ before, after, onFailure }) => {
      return [before, after, onFailure].some((program) => program !== undefined)
    })
  })
}

function isHourly({ backupSets }: Configuration): boolean {
  return backupSets.some(({ schedule: { incremental, full, external } }) => {
    return [incremental, full, external].includes('hourly')
  })
}

function isWithin(path: string, directory: string): boolean {
  const below = directory.endsWith('/') ? directory : `${directory}/`
  return path === directory || `${path}/`.startsWith(below)
}

function udevRule({ label, uuid }: DriveConfiguration): string {
  const what =
    uuid === undefined
      ? `ENV{ID_FS_LABEL_ENC}=="${encodeUdevName(label ?? '')}"`
      : `ENV{ID_FS_UUID_ENC}=="${udevUuids(uuid).map(encodeUdevName).join('|')}"`
  return `ACTION=="add|change", SUBSYSTEM=="block", ${what}, ENV{UDISKS_AUTO}="0"`
}

/**
 * HOME, because `~` has to mean what it means now, and what else of the environment the
 * configuration refers to. What looks like a secret is not written: anyone may read a unit.
 */
function variablesOf({ configuration, text, environment, home }: ScheduleRequest): {
  readonly given: readonly (readonly [string, string])[]
  readonly withheld: readonly string[]
} {
  const names = new Set<string>()
  const withoutComments = text.replace(/^\s*#.*$/gm, '')
  for (const found of withoutComments.matchAll(/\$(?:\$|\{([^}]*)\}|([A-Za-z_][A-Za-z0-9_]*))/g)) {
    const name = found[1] ?? found[2]
    if (name !== undefined && /^[A-Za-z_][A-Za-z0-9_]*$/.test(name)) names.add(name)
  }
  // These count without being named.
  if (normalize(environment['DBACKUP'] ?? '') === configuration.staging) names.add('DBACKUP')
  names.add('BACKUP_RETENTION')
  names.delete('HOME')
  const set = [...names].sort().flatMap((name) => {
    const value = environment[name] ?? ''
    return value === '' ? [] : [[name, value] as const]
  })
  const isSecret = ([name]: readonly [string, string]): boolean => {
    return /PASS|SECRET|TOKEN|CREDENTIAL/i.test(name)
  }
  return {
    given: [['HOME', home], ...set.filter((one) => !isSecret(one))],
    withheld: set.filter(isSecret).map(([name]) => name),
  }
}

function programWord(path: string): string {
  // systemd takes no other signs in the path of a program.
  return /["'\\]/.test(path)
    ? refuse(path, 'a unit')
    : (quoteUnitWord(path) ?? refuse(path, 'a unit'))
}

function refuse(text: string, where: string): never {
  throw new BackupError(
    'USAGE',
    `${displayText(JSON.stringify(text))} cannot be named in ${where}`,
    { hint: 'rename it without control characters (and a program without quotes or backslashes)' },
  )
}

function readTemplate(name: string): string {
  return readFileSync(new URL(name, TEMPLATES), 'utf8')
}

/** Each `@NAME@` once: what is put in is not looked at again. */
function fill(template: string, values: Readonly<Record<string, () => string>>): string {
  return template.replace(/@([A-Z_]+)@/g, (whole, name: string) => {
    const value = values[name]
    if (value === undefined) throw new Error(`no value for ${whole} of a template`)
    return value()
  })
}
