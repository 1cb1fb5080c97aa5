// Whether the machine is on battery, and whether its network connection is metered: what a schedule
// may wait for (on_battery, on_metered).
//
// Linux: /sys/class/power_supply (Documentation/ABI/testing/sysfs-class-power) and NetworkManager's
// property Metered by busctl. macOS: pmset, not verified on a Mac; there no connection counts as
// metered. What cannot be found out counts as neither: a backup that waits for ever is worse than
// one on battery. Throws only INTERRUPTED.

import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { BackupError } from '../errors.ts'
import { runProgram } from './shell.ts'

export interface Power {
  readonly onBattery: boolean
  readonly metered: boolean
}

/** Both answer at once or not at all. */
const ANSWER_TIMEOUT_MS = 5_000

/** NM_METERED_YES and NM_METERED_GUESS_YES (NetworkManager, nm-dbus-interface.h). */
const METERED = ['1', '3']

/**
 * @param options.platform as `process.platform` says
 * @param options.sysfs where sysfs is mounted: `/sys`
 */
export async function readPower({
  platform,
  sysfs,
  signal,
}: {
  readonly platform: string
  readonly sysfs: string
  readonly signal?: AbortSignal
}): Promise<Power> {
  if (platform === 'darwin') {
    const text = await ask({ program: 'pmset', args: ['-g', 'batt'], signal })
    return { onBattery: /Now drawing from .Battery Power./.test(text), metered: false }
  }
  const manager = '/org/freedesktop/NetworkManager'
  const name = 'org.freedesktop.NetworkManager'
  const args = ['--system', '--auto-start=no', 'get-property', name, manager, name, 'Metered']
  const text = await ask({ program: 'busctl', args, signal })
  const [type, value = ''] = text.trim().split(' ')
  return { onBattery: isOnBattery(sysfs), metered: type === 'u' && METERED.includes(value) }
}

/** A battery of the machine itself that is not being charged, and nothing else is online. */
function isOnBattery(sysfs: string): boolean {
  const root = join(sysfs, 'class/power_supply')
  const supplies = names(root).map((name) => {
    const property = (file: string): string => read(join(root, name, file))
    return {
      isBattery: property('type') === 'Battery',
      // A mouse has a battery, too.
      isOfDevice: property('scope') === 'Device',
      isCharged: ['Charging', 'Full'].includes(property('status')),
      isOnline: /^[12]$/.test(property('online')),
    }
  })
  if (supplies.some(({ isBattery, isOnline }) => !isBattery && isOnline)) return false
  return supplies.some((supply) => supply.isBattery && !supply.isOfDevice && !supply.isCharged)
}

function names(directory: string): string[] {
  try {
    return readdirSync(directory)
  } catch {
    // No sysfs, as in many containers.
    return []
  }
}

function read(file: string): string {
  try {
    return readFileSync(file, 'utf8').trim()
  } catch {
    // Not every supply has every property.
    return ''
  }
}

/** What a program prints; nothing where it is not installed or fails. */
async function ask({
  program,
  args,
  signal,
}: {
  readonly program: string
  readonly args: readonly string[]
  readonly signal: AbortSignal | undefined
}): Promise<string> {
  try {
    const call = { program, args, changes: false, timeoutMs: ANSWER_TIMEOUT_MS, signal }
    const { exitCode, stdout } = await runProgram(call)
    return exitCode === 0 ? stdout : ''
  } catch (error) {
    if (!(error instanceof BackupError) || error.code === 'INTERRUPTED') throw error
    return ''
  }
}
