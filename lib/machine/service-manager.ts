// The service manager of the machine: systemd through systemctl, launchd through launchctl.
//
// lib/work/schedule-files.ts writes the files it reads; commands/schedule.ts tells it of them.
// Where no manager runs (a chroot, an image, a container) the files count at its next start.
// launchd's part is not tried on a Mac yet. Throws PROGRAM_FAILED, and what running a program
// throws.

import { BackupError } from '../errors.ts'
import { displayText } from '../model/raw-path.ts'
import { findProgram, type ProgramResult, runProgram } from './shell.ts'

/** Of the machine, or of one user. */
export type ServiceScope = 'system' | 'user'

export interface ServiceManager {
  readonly scope: ServiceScope
  /** For the way to the user's manager. */
  readonly environment: Readonly<Record<string, string | undefined>>
  readonly signal?: AbortSignal | undefined
}

/** It only talks to a manager; one that hangs must not hang us. */
const TIMEOUT_MS = 30_000

/** What systemctl says of a manager that answers. */
const RUNNING = ['initializing', 'starting', 'running', 'degraded', 'maintenance', 'stopping']

/** Which manager this system has; undefined for neither. */
export function serviceManagerOf(platform: NodeJS.Platform): 'systemd' | 'launchd' | undefined {
  if (platform === 'darwin') return 'launchd'
  return findProgram('systemctl') === undefined ? undefined : 'systemd'
}

/** Whether systemd runs and can be reached. */
export async function isSystemdRunning(manager: ServiceManager): Promise<boolean> {
  const { stdout } = await systemctl(manager, { words: ['is-system-running'], changes: false })
  return RUNNING.includes(stdout.trim())
}

/**
 * Makes systemd read its units again, and starts those named. @throws BackupError PROGRAM_FAILED
 */
export async function reloadSystemd(
  manager: ServiceManager,
  { restart }: { readonly restart: readonly string[] },
): Promise<void> {
  succeeded(await systemctl(manager, { words: ['daemon-reload'], changes: true }), 'daemon-reload')
  if (restart.length === 0) return
  const words = ['restart', '--', ...restart]
  succeeded(await systemctl(manager, { words, changes: true }), `restart ${restart.join(' ')}`)
}

/** Stops a unit; one that is not there is stopped. */
export async function stopUnit(manager: ServiceManager, unit: string): Promise<void> {
  await systemctl(manager, { words: ['stop', '--', unit], changes: true })
}

/** Properties of a unit, by name; none of one that is not known. */
export async function unitProperties(
  manager: ServiceManager,
  { unit, names }: { readonly unit: string; readonly names: readonly string[] },
): Promise<ReadonlyMap<string, string>> {
  const words = ['show', ...names.map((name) => `--property=${name}`), '--', unit]
  const { stdout } = await systemctl(manager, { words, changes: false })
  return new Map(
    stdout.split('\n').flatMap((line) => {
      const [name = '', ...value] = line.split('=')
      return value.length === 0 ? [] : [[name, value.join('=')] as const]
    }),
  )
}

/** Has udev read its rules again, and look at the drives that are there. */
export async function reloadUdev(signal: AbortSignal | undefined): Promise<void> {
  if (findProgram('udevadm') === undefined) return
  const call = { program: 'udevadm', changes: true, timeoutMs: TIMEOUT_MS, signal }
  succeeded(await runProgram({ ...call, args: ['control', '--reload'] }), 'udevadm control')
}

/**
 * Has launchd take a property list, in place of an older one. @throws BackupError PROGRAM_FAILED
 */
export async function loadAgent(
  manager: ServiceManager,
  { file, label }: { readonly file: string; readonly label: string },
): Promise<void> {
  await unloadAgent(manager, label)
  succeeded(await launchctl(manager, ['bootstrap', domain(manager), file]), `bootstrap ${label}`)
}

/** Has launchd forget a property list; one that it does not know is forgotten. */
export async function unloadAgent(manager: ServiceManager, label: string): Promise<void> {
  await launchctl(manager, ['bootout', `${domain(manager)}/${label}`])
}

function domain({ scope }: ServiceManager): string {
  return scope === 'system' ? 'system' : `gui/${process.getuid?.() ?? 0}`
}

async function launchctl({ signal }: ServiceManager, args: readonly string[]) {
  const call = { program: 'launchctl', changes: true, timeoutMs: TIMEOUT_MS, signal }
  return await runProgram({ ...call, args })
}

async function systemctl(
  { scope, environment, signal }: ServiceManager,
  { words, changes }: { readonly words: readonly string[]; readonly changes: boolean },
): Promise<ProgramResult> {
  const way = ['XDG_RUNTIME_DIR', 'DBUS_SESSION_BUS_ADDRESS'].flatMap((name) => {
    const value = environment[name]
    return scope === 'system' || value === undefined ? [] : [[name, value] as const]
  })
  return await runProgram({
    program: 'systemctl',
    args: [...(scope === 'user' ? ['--user'] : []), '--no-pager', ...words],
    changes,
    timeoutMs: TIMEOUT_MS,
    environment: { LC_ALL: 'C', LANG: 'C', ...Object.fromEntries(way) },
    signal,
  })
}

function succeeded({ exitCode, stderr }: ProgramResult, what: string): void {
  if (exitCode === 0) return
  const said = displayText(stderr.trim().split('\n').at(-1) ?? '')
  throw new BackupError('PROGRAM_FAILED', `${what} failed: ${said || `exit code ${exitCode}`}`, {
    hint: 'the files are written and count at the next start; say the same again to try at once',
    facts: { exitCode },
  })
}
