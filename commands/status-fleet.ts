// `backup status --fleet`: every machine that keeps exports on a target, how fresh they are, and
// what is wrong.
//
// status.ts calls tellFleet; lib/work/fleet.ts knows. With --json one object, described by
// config/fleet.schema.json. What machines write is shown only through safeText. Throws USAGE,
// CONFIG_INVALID, INTERRUPTED, and what opening an identity throws.

import { resolve } from 'node:path'
import { BackupError, type ExitCode } from '../lib/errors.ts'
import { type MachineKey, readIdentityFile } from '../lib/machine/identity.ts'
import { formatSize } from '../lib/model/amount.ts'
import type { FleetMachine, FleetProblem, FleetSet } from '../lib/model/freshness.ts'
import { counted, formatAge } from '../lib/model/period.ts'
import { rawPathFromText } from '../lib/model/raw-path.ts'
import { type FleetDocument, type FleetTarget, gatherFleet } from '../lib/work/fleet.ts'
import { targetNamed } from '../lib/work/target-access.ts'
import { type CommandContext, textOption, textOptions } from './command.ts'
import { passphraseFromFile } from './passphrase.ts'
import { safeText } from './voice.ts'

/** The whole of it. @throws BackupError USAGE where there is no target to look at */
export async function tellFleet(context: CommandContext): Promise<ExitCode> {
  const { values, reporter, signal } = context
  if (textOptions(values, 'set').length > 0 || textOption(values, 'prometheus') !== undefined) {
    throw new BackupError('USAGE', '--fleet goes with --target only', {
      hint: '--set and --prometheus are about this machine',
    })
  }
  const configuration = await context.loadConfiguration()
  const named = textOption(values, 'target')
  const targets = named === undefined ? configuration.targets : [targetNamed(configuration, named)]
  if (targets.every(({ kind }) => kind === 'drive')) {
    throw new BackupError('USAGE', 'there is no target that several machines could share', {
      hint: '--fleet looks at buckets, SFTP hosts and directories; drives go from place to place',
    })
  }
  const fromIdentity = await keysOfIdentity(context)
  const nowMs = context.now()
  const document = await gatherFleet({ configuration, targets, fromIdentity, nowMs, signal })
  const lines = fleetLines(document)
  const say = document.exitCode === 0 ? reporter.tell : reporter.print
  for (const line of lines) say(line)
  reporter.report({ kind: 'result', command: 'backup status', ...document })
  return document.exitCode
}

/** Only where it is named: looking is no reason to ask for a passphrase. */
async function keysOfIdentity(context: CommandContext): Promise<readonly MachineKey[]> {
  const { values, askSecret } = context
  const path = textOption(values, 'identity')
  if (path === undefined) return []
  const file = textOption(values, 'passphrase-file')
  const { signingKeys } = await readIdentityFile({
    path: rawPathFromText(resolve(path)),
    askPassphrase: async () => {
      if (file !== undefined) return await passphraseFromFile(file)
      return await askSecret(`Passphrase of ${path}: `)
    },
  })
  return signingKeys
}

/** For people; lines have no newlines at their ends. */
export function fleetLines({ fleet, time }: FleetDocument): readonly string[] {
  return fleet.flatMap((target) => targetLines(target, Date.parse(time)))
}

function targetLines({ target, place, machines, error }: FleetTarget, nowMs: number): string[] {
  const title = `target ${target}: ${safeText(place)}`
  if (error !== undefined) {
    const hint = error.hint === undefined ? [] : [`      → ${safeText(error.hint)}`]
    return [title, `  !   ${safeText(error.message)}`, ...hint]
  }
  if (machines.length === 0) return [title, '  no machine keeps exports there yet']
  const header = ['machine', 'set', 'newest export', 'age', 'complete', 'exports', 'size']
  const rows = machines.flatMap((machine) => machineRows(machine, nowMs))
  return [
    `${title}, ${counted(machines.length, 'machine')}`,
    ...columns([[...header, 'verified', 'standing'], ...rows]),
    ...machines.flatMap(({ machine, problems }) => {
      return problems.flatMap((problem) => problemLines(machine, problem))
    }),
  ]
}

/** The machine's name and standing stand in its first row only. */
function machineRows(
  { machine, sets, standing, problems }: FleetMachine,
  nowMs: number,
): string[][] {
  const isWrong = problems.some(({ severity }) => severity === 'bad')
  const word = isWrong ? 'WRONG' : standing === 'fresh' ? 'fresh' : standing.toUpperCase()
  const rows = sets.map((set) => setCells(set, nowMs))
  if (rows.length === 0) rows.push(['', 'no export', '', '', '', '', ''])
  return rows.map((cells, index) => {
    return index === 0 ? [machine, ...cells, word] : ['', ...cells, '']
  })
}

function setCells(set: FleetSet, nowMs: number): string[] {
  const { name, newest, ageSeconds, complete, exports, bytes, verified } = set
  const when = verified && formatAge(nowMs - dateOf(verified.stamp))
  return [
    name,
    newest,
    formatAge(ageSeconds * 1000),
    complete === undefined ? '?' : complete ? 'yes' : 'NO',
    String(exports),
    formatSize(bytes),
    verified === undefined ? 'never' : verified.result === 'damaged' ? `DAMAGED ${when}` : when!,
  ]
}

function dateOf(stamp: string): number {
  return Date.parse(stamp.replace(/T(\d\d)(\d\d)/, 'T$1:$2:'))
}

const MARKS = { bad: 'BAD', attention: '!  ', notice: '-  ' } as const

function problemLines(machine: string, { severity, what, fix }: FleetProblem): string[] {
  const line = `  ${MARKS[severity]} ${machine}: ${safeText(what)}`
  return fix === undefined ? [line] : [line, `      → ${safeText(fix)}`]
}

/** Rows of cells below each other. */
function columns(rows: readonly (readonly string[])[]): string[] {
  const widths = (rows[0] ?? []).map((_, column) => {
    return Math.max(...rows.map((row) => (row[column] ?? '').length))
  })
  return rows.map((row) => {
    const cells = row.map((cell, column) => cell.padEnd(widths[column] ?? 0))
    return `  ${cells.join('  ')}`.trimEnd()
  })
}
