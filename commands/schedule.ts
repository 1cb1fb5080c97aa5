// `backup schedule`: lets the service manager call `backup` often, and at once when a drive is
// plugged in.
//
// lib/work/schedule-units.ts says which files that takes, schedule-files.ts writes them, and
// lib/machine/service-manager.ts makes systemd or launchd read them. What is not ours is not
// touched. Throws USAGE, ALREADY_THERE, WRITE_FAILED, STAGING_FAILED, PROGRAM_ABSENT,
// PROGRAM_FAILED and what loading the configuration throws.

import { existsSync, readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { BackupError } from '../lib/errors.ts'
import type { ExitCode } from '../lib/errors.ts'
import {
  isSystemdRunning,
  loadAgent,
  reloadSystemd,
  reloadUdev,
  type ServiceManager,
  serviceManagerOf,
  type ServiceScope,
  stopUnit,
  unitProperties,
  unloadAgent,
} from '../lib/machine/service-manager.ts'
import {
  compareSchedule,
  type Finding,
  findOurs,
  removeFindings,
  writeSchedule,
} from '../lib/work/schedule-files.ts'
import {
  cronLine,
  drivesOf,
  launchdDirectory,
  launchdSchedule,
  type Schedule,
  type ScheduleRequest,
  systemdSchedule,
  UDEV_RULES,
  unitDirectory,
} from '../lib/work/schedule-units.ts'
import { claimStaging } from '../lib/work/staging-identity.ts'
import { type Command, type CommandContext, isGiven, textOption } from './command.ts'

export const command: Command = {
  name: 'backup schedule',
  summary: 'run backup by systemd or launchd: often, and when a drive is plugged in',
  usage: `Usage: backup schedule install [--system | --user] [--udev] [--root DIR] [--dry-run]
       backup schedule status [--system | --user] [--root DIR]
       backup schedule remove [--system | --user] [--root DIR] [--dry-run]

install writes the units for this configuration and enables them: a timer that starts \`backup\`
often, which does what is due, and for each drive a link that starts it when that drive is plugged
in. Said again, it brings them up to date, and changes nothing where they are. A file of somebody
else is never touched. Where there is no service manager it prints a line for cron and fails.
status compares what is installed with the configuration, and says when the timer runs next; exit
code 3 where something is missing or out of date. remove takes away what install wrote.

  --system     for the machine, run as root (the default for root)
  --user       for you, run with your rights while you are logged in (else the default)
  --udev       with --system: keep the desktop from mounting the drives itself
  --root DIR   write below DIR and talk to no service manager: for images and packages
  --dry-run    print the files and the line for cron
`,
  positionals: true,
  options: {
    system: { type: 'boolean' },
    user: { type: 'boolean' },
    udev: { type: 'boolean' },
    root: { type: 'string' },
  },
  run: async (context) => {
    const [verb, ...rest] = context.positionals
    const action = Object.hasOwn(ACTIONS, verb ?? '') ? ACTIONS[verb ?? ''] : undefined
    if (action === undefined || rest.length > 0) {
      throw new BackupError('USAGE', 'schedule takes one word: install, status or remove', {
        hint: 'see `backup schedule --help`',
      })
    }
    return await action(context, readPlace(context))
  },
}

/** Which service manager, and below which directory. */
interface Place {
  readonly scope: ServiceScope
  readonly kind: 'systemd' | 'launchd' | undefined
  /** Empty for the machine itself. */
  readonly root: string
}

const ACTIONS: Readonly<
  Record<string, (context: CommandContext, place: Place) => Promise<ExitCode>>
> = { install, status, remove }

/** From dist/commands/. */
const MAIN = fileURLToPath(new URL('./main.js', import.meta.url))

function readPlace({ values }: CommandContext): Place {
  const isSystem = isGiven(values, 'system')
  const isUser = isGiven(values, 'user')
  if (isSystem && isUser) throw new BackupError('USAGE', '--system and --user do not go together')
  const isRoot = process.getuid?.() === 0
  const root = textOption(values, 'root')
  const scope = isSystem || (isRoot && !isUser) ? 'system' : 'user'
  if (isGiven(values, 'udev') && scope === 'user') {
    throw new BackupError('USAGE', "--udev goes with --system: rules of udev are the machine's")
  }
  // For an image of another system the files are what counts, not what this one has.
  const kind = serviceManagerOf(process.platform) ?? (root === undefined ? undefined : 'systemd')
  return { scope, kind, root: root === undefined ? '' : resolve(root) }
}

async function install(context: CommandContext, place: Place): Promise<ExitCode> {
  const { values, reporter } = context
  const request = await readRequest(context, place)
  if (isGiven(values, 'dry-run') || place.kind === undefined) {
    return preview(context, { place, request })
  }
  const schedule = scheduleOf(request, place.kind)
  if (place.root === '') {
    warn(context, schedule)
    makeStaging(request)
  }
  const changed = writeSchedule(schedule, place.root)
  for (const { path, state } of changed) {
    reporter.tell(`${state === 'stale' ? 'removed' : 'wrote'} ${place.root}${path}`)
  }
  const isRunning = await load({ context, place, schedule, changed })
  const outcome = changed.length === 0 ? 'already installed' : 'installed'
  reporter.tell(changed.length === 0 ? `already installed in ${schedule.directory}` : 'installed')
  for (const line of advice({ request, place, isRunning })) reporter.tell(line)
  const facts = { outcome, scope: place.scope, manager: place.kind, isRunning }
  reporter.report({ kind: 'result', command: command.name, ...facts, changed })
  return 0
}

async function readRequest(context: CommandContext, place: Place): Promise<ScheduleRequest> {
  const configuration = await context.loadConfiguration()
  const isThere = findOurs({ root: place.root, directory: directoryOf(context, place) }).some(
    ({ path }) => path === UDEV_RULES,
  )
  return {
    configuration,
    text: readFileSync(configuration.path, 'utf8'),
    scope: place.scope,
    program: { node: process.execPath, main: MAIN },
    environment: context.environment,
    home: context.home,
    withUdev: isThere || isGiven(context.values, 'udev'),
  }
}

function scheduleOf(request: ScheduleRequest, kind: 'systemd' | 'launchd'): Schedule {
  return kind === 'systemd' ? systemdSchedule(request) : launchdSchedule(request)
}

function directoryOf(context: CommandContext, { kind, scope }: Place): string {
  const request = { scope, home: context.home, environment: context.environment }
  return kind === 'launchd' ? launchdDirectory(request) : unitDirectory(request)
}

/** Prints everything; without a service manager only what cron needs, and fails. */
function preview(
  { reporter }: CommandContext,
  { place: { kind, root }, request }: { place: Place; request: ScheduleRequest },
): ExitCode {
  const line = cronLine(request)
  const schedule = kind === undefined ? undefined : scheduleOf(request, kind)
  for (const { path, text } of schedule?.files ?? []) reporter.print(`==> ${path}\n${text}`)
  for (const { path, target } of schedule?.links ?? []) reporter.print(`==> ${path} -> ${target}`)
  const findings = schedule === undefined ? [] : compareSchedule(schedule, root)
  for (const { path, state } of findings) reporter.print(`${path}: ${state}`)
  reporter.print(`${schedule === undefined ? 'with' : 'or with'} cron: ${line}`)
  const facts = { outcome: 'nothing installed', dryRun: true, findings, cron: line }
  reporter.report({ kind: 'result', command: command.name, ...facts })
  if (kind !== undefined) return 0
  throw new BackupError('PROGRAM_ABSENT', 'there is neither systemd nor launchd here', {
    hint: 'nothing was installed; add the line for cron above with `crontab -e`',
    facts: { cron: line },
  })
}

/** The first run could not: above staging everything is read-only to it. */
function makeStaging({ configuration: { path, staging } }: ScheduleRequest): void {
  if (!existsSync(staging)) claimStaging({ configuration: path, staging })
}

/** What the units cannot say. */
function warn({ reporter }: CommandContext, { withheld, needed }: Schedule): void {
  const warning = (code: string, message: string): void => {
    reporter.report({ kind: 'notice', level: 'warning', code, message })
  }
  for (const name of withheld) {
    const message = `the variable ${name} looks like a secret and is not written into a unit`
    warning('SECRET_WITHHELD', `${message}: name a file in the configuration instead`)
  }
  for (const directory of needed.filter((path) => !existsSync(path))) {
    warning('NOT_THERE', `"${directory}" is not there: a unit may write only into what is there`)
  }
}

/** Has the manager take what was written. @returns whether one runs */
async function load({
  context,
  place,
  schedule,
  changed,
}: {
  readonly context: CommandContext
  readonly place: Place
  readonly schedule: Schedule
  readonly changed: readonly Finding[]
}): Promise<boolean> {
  const manager = managerOf(context, place)
  if (place.root !== '') return false
  if (place.kind === 'launchd') {
    for (const { path } of schedule.files.filter((file) => isOneOf(file, changed))) {
      await loadAgent(manager, { file: path, label: labelOf(path) })
    }
    return true
  }
  if (!(await isSystemdRunning(manager))) return false
  const timer = await unitProperties(manager, { unit: TIMER, names: ['ActiveState'] })
  const isActive = timer.get('ActiveState') === 'active'
  if (changed.length > 0 || !isActive) await reloadSystemd(manager, { restart: [TIMER] })
  if (changed.some(({ path }) => path === UDEV_RULES)) await reloadUdev(context.signal)
  return true
}

const TIMER = 'backup.timer'

function managerOf({ environment, signal }: CommandContext, { scope }: Place): ServiceManager {
  return { scope, environment, signal }
}

function isOneOf({ path }: { path: string }, findings: readonly Finding[]): boolean {
  return findings.some((finding) => finding.path === path && finding.state !== 'stale')
}

function labelOf(path: string): string {
  return path.replace(/^.*\//, '').replace(/\.plist$/, '')
}

function advice({
  request,
  place,
  isRunning,
}: {
  readonly request: ScheduleRequest
  readonly place: Place
  readonly isRunning: boolean
}): readonly string[] {
  const lines: string[] = []
  if (!isRunning && place.root === '') {
    lines.push('systemd does not run here now, or cannot be reached: it counts at its next start')
  }
  if (drivesOf(request.configuration).length > 0) {
    lines.push('a drive that is plugged in already starts nothing until it is plugged in again')
  }
  if (place.scope === 'user' && place.kind === 'systemd') {
    lines.push('it runs while you are logged in; always: `loginctl enable-linger`')
  }
  return lines
}

async function status(context: CommandContext, place: Place): Promise<ExitCode> {
  const { reporter } = context
  const { kind, root, scope } = place
  const request = await readRequest(context, place)
  if (kind === undefined) {
    reporter.print('there is neither systemd nor launchd here; cron needs this line:')
    reporter.print(cronLine(request))
    return 0
  }
  const schedule = scheduleOf(request, kind)
  const findings = compareSchedule(schedule, root)
  const isWhole = findings.every(({ state }) => state === 'same')
  const isAbsent = findings.every(({ state }) => state === 'absent')
  const inside = `${schedule.directory}/`
  const where = `${scope} units in ${schedule.directory}`
  if (isAbsent) reporter.print(`${where}: not installed; \`backup schedule install\` does it`)
  else reporter.print(`${where}, for ${request.configuration.path}`)
  for (const { path, state } of isAbsent ? [] : findings) {
    const name = path.startsWith(inside) ? path.slice(inside.length) : path
    reporter.print(`  ${name}: ${STATES[state]}`)
  }
  const runs = root === '' && kind === 'systemd' ? await readRuns(context, place) : []
  for (const line of runs) reporter.print(line)
  const outcome = isWhole ? 'installed' : isAbsent ? 'not installed' : 'out of date'
  if (outcome === 'out of date') {
    reporter.print('`backup schedule install` brings it up to date')
  }
  const facts = { outcome, scope, manager: kind, findings, runs, exitCode: isWhole ? 0 : 3 }
  reporter.report({ kind: 'result', command: command.name, ...facts })
  return isWhole ? 0 : 3
}

const STATES: Readonly<Record<Finding['state'], string>> = {
  same: 'as the configuration wants it',
  absent: 'missing',
  different: 'out of date',
  stale: 'not wanted any more',
  'of another configuration': 'of another configuration',
  foreign: 'not ours',
}

/** When the timer runs next, and how the last run ended, as systemd tells. */
async function readRuns(context: CommandContext, place: Place): Promise<readonly string[]> {
  const manager = managerOf(context, place)
  if (!(await isSystemdRunning(manager))) return ['systemd does not run here, or is not reached']
  const next = 'NextElapseUSecRealtime'
  const timer = await unitProperties(manager, { unit: TIMER, names: ['ActiveState', next] })
  const names = ['Result', 'ExecMainStatus', 'ExecMainExitTimestamp']
  const service = await unitProperties(manager, { unit: 'backup.service', names })
  const ended = service.get('ExecMainExitTimestamp') ?? ''
  const lines = [
    timer.get('ActiveState') === 'active'
      ? `the timer runs; next: ${timer.get(next) || 'at once'}`
      : 'the timer does not run',
  ]
  if (ended !== '') {
    const code = service.get('ExecMainStatus') ?? ''
    lines.push(`last run: ${service.get('Result') ?? ''} (exit code ${code}), ended ${ended}`)
  }
  return lines
}

async function remove(context: CommandContext, place: Place): Promise<ExitCode> {
  const { values, reporter } = context
  const dryRun = isGiven(values, 'dry-run')
  const found = findOurs({ root: place.root, directory: directoryOf(context, place) })
  const manager = managerOf(context, place)
  const talks = place.root === '' && !dryRun && found.length > 0
  const isRunning = talks && place.kind === 'systemd' && (await isSystemdRunning(manager))
  if (isRunning) await stopUnit(manager, TIMER)
  if (talks && place.kind === 'launchd') {
    for (const { path } of found) await unloadAgent(manager, labelOf(path))
  }
  if (!dryRun) removeFindings(found, place.root)
  for (const { path } of found) {
    reporter.tell(`${dryRun ? 'would remove' : 'removed'} ${place.root}${path}`)
  }
  if (isRunning) await reloadSystemd(manager, { restart: [] })
  if (isRunning && found.some(({ path }) => path === UDEV_RULES)) await reloadUdev(context.signal)
  if (found.length === 0) reporter.tell('nothing of ours is installed')
  const outcome = found.length === 0 ? 'nothing installed' : 'removed'
  const facts = { outcome, dryRun, scope: place.scope, removed: found }
  reporter.report({ kind: 'result', command: command.name, ...facts })
  return 0
}
