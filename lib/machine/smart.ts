// What a drive says of its own health: SMART, read by smartctl of smartmontools.
//
// `doctor --target` asks (lib/work/doctor-target.ts). smartctl's exit status is eight flags
// (smartctl(8)): the first three say that it could not ask, the others what it heard. A USB bridge
// that smartctl does not know is asked once more by the standard's own way of passing commands on.
// A drive that nobody can ask is no failure: the finding says why. Throws INTERRUPTED only.

import { existsSync, readdirSync, realpathSync } from 'node:fs'
import { basename, dirname } from 'node:path'
import { BackupError, systemCode } from '../errors.ts'
import { runProgram } from './shell.ts'

export interface SmartHealth {
  /** The drive's own verdict. */
  readonly health: 'passed' | 'failed' | 'unknown'
  /** Why nothing at all is known: lower-case start, no period. */
  readonly why: string | undefined
  readonly model: string | undefined
  readonly temperatureCelsius: number | undefined
  /** Sectors that were replaced, wait to be, or cannot be read any more. */
  readonly reallocatedSectors: number | undefined
  readonly pendingSectors: number | undefined
  readonly uncorrectableSectors: number | undefined
  /** Of NVMe: how much of its rated life is used (may be above 100), and reads that failed. */
  readonly percentageUsed: number | undefined
  readonly mediaErrors: number | undefined
  readonly powerOnHours: number | undefined
  /** What else smartctl's exit status says. */
  readonly isPrefailBelowThreshold: boolean
  readonly hasLoggedErrors: boolean
  readonly hasFailedSelfTest: boolean
}

export interface SmartFinding {
  readonly verdict: 'ok' | 'warning' | 'failure'
  /** Lower-case start, no final period. */
  readonly message: string
  readonly fix?: string
}

/** A drive that sleeps takes ten seconds to wake; a bridge that hangs takes for ever. */
const SMARTCTL_TIMEOUT_MS = 30_000

/** Partition on LUKS on LVM on RAID: nobody stacks more. */
const MAX_LAYERS = 8

/** Bits of smartctl's exit status. */
const STATUS = {
  commandLine: 1,
  openFailed: 2,
  commandFailed: 4,
  failing: 8,
  prefail: 16,
  errorLog: 64,
  selfTestLog: 128,
} as const

/** Attributes of ATA drives, by number: what their raw values count is the same everywhere. */
const ATTRIBUTES = { reallocated: 5, pending: 197, uncorrectable: 198 } as const

const HOT_CELSIUS = 60
const WORN_PERCENT = 90

const SYS_BLOCK = '/sys/class/block'

/** What smartctl can say of a disk or a partition of it (`/dev/sdb1`), which it only asks. */
export async function readSmart(
  device: string,
  { signal, program = 'smartctl' }: { readonly signal: AbortSignal; readonly program?: string },
): Promise<SmartHealth> {
  try {
    const disk = diskOf(device)
    const first = await askSmartctl(disk, { program, type: [], signal })
    if (!isUnknownBridge(first)) return readAnswer(first)
    const second = await askSmartctl(disk, { program, type: ['-d', 'sat'], signal })
    const answer = readAnswer(second)
    if (answer.health !== 'unknown') return answer
    return unknown('its USB bridge does not pass SMART on')
  } catch (error) {
    if (!(error instanceof BackupError) || error.code === 'INTERRUPTED') throw error
    if (error.code === 'PROGRAM_ABSENT') return unknown('install smartmontools')
    return unknown(error.message)
  }
}

/** The findings, the worst first; always at least one. */
export function describeSmart(smart: SmartHealth): readonly SmartFinding[] {
  if (smart.why !== undefined) {
    return [{ verdict: 'ok', message: `not looked at: ${smart.why}` }]
  }
  const findings = [...failuresOf(smart), ...warningsOf(smart)]
  return findings.length > 0 ? findings : [{ verdict: 'ok', message: summaryOf(smart) }]
}

/** The disk that a partition, or what is stacked on one, lies on; else the device itself. */
export function diskOf(device: string): string {
  let name: string
  try {
    name = basename(realpathSync(device))
    for (let layer = 0; layer < MAX_LAYERS; layer++) {
      const below = layerBelow(name)
      if (below === undefined) break
      name = below
    }
  } catch (error) {
    // No such device, or no /sys here: smartctl will say what it thinks of it.
    if (systemCode(error) === undefined) throw error
    return device
  }
  return `/dev/${name.replaceAll('!', '/')}`
}

function layerBelow(name: string): string | undefined {
  const place = `${SYS_BLOCK}/${name}`
  if (existsSync(`${place}/partition`)) return basename(dirname(realpathSync(place)))
  return existsSync(`${place}/slaves`) ? readdirSync(`${place}/slaves`)[0] : undefined
}

interface Answer {
  readonly status: number
  readonly json: Json
}

async function askSmartctl(
  disk: string,
  {
    program,
    type,
    signal,
  }: { readonly program: string; readonly type: readonly string[]; readonly signal: AbortSignal },
): Promise<Answer> {
  const { exitCode, stdout } = await runProgram({
    program,
    args: ['--json', '-a', ...type, '--', disk],
    changes: false,
    timeoutMs: SMARTCTL_TIMEOUT_MS,
    signal,
  })
  return { status: exitCode, json: parseJson(stdout) }
}

/** Data of another program: anything may be missing, or be something else. */
type Json = Readonly<Record<string, unknown>>

function parseJson(text: string): Json {
  try {
    return asObject(JSON.parse(text))
  } catch {
    return {}
  }
}

function asObject(value: unknown): Json {
  return typeof value === 'object' && value !== null ? (value as Json) : {}
}

function asArray(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : []
}

function asNumber(value: unknown): number | undefined {
  return typeof value === 'number' && Number.isFinite(value) ? value : undefined
}

function asText(value: unknown): string | undefined {
  return typeof value === 'string' && value !== '' ? value : undefined
}

function messagesOf({ json }: Answer): readonly string[] {
  return asArray(asObject(json['smartctl'])['messages']).flatMap((message) => {
    return asText(asObject(message)['string']) ?? []
  })
}

function isUnknownBridge(answer: Answer): boolean {
  const couldNotAsk = (answer.status & (STATUS.commandLine | STATUS.openFailed)) !== 0
  return couldNotAsk && messagesOf(answer).some((text) => /USB bridge|-d option/i.test(text))
}

function readAnswer(answer: Answer): SmartHealth {
  const { status, json } = answer
  const passed = asObject(json['smart_status'])['passed']
  const failed = passed === false || (status & STATUS.failing) !== 0
  const health = failed ? 'failed' : passed === true ? 'passed' : 'unknown'
  const nvme = asObject(json['nvme_smart_health_information_log'])
  const raw = attributesOf(json)
  const isSilent = health === 'unknown' && raw.size === 0 && Object.keys(nvme).length === 0
  return {
    health,
    why: isSilent ? whyUnknown(answer) : undefined,
    model: asText(json['model_name']),
    temperatureCelsius: asNumber(asObject(json['temperature'])['current']),
    reallocatedSectors: raw.get(ATTRIBUTES.reallocated),
    pendingSectors: raw.get(ATTRIBUTES.pending),
    uncorrectableSectors: raw.get(ATTRIBUTES.uncorrectable),
    percentageUsed: asNumber(nvme['percentage_used']),
    mediaErrors: asNumber(nvme['media_errors']),
    powerOnHours: asNumber(asObject(json['power_on_time'])['hours']),
    isPrefailBelowThreshold: (status & STATUS.prefail) !== 0,
    hasLoggedErrors: (status & STATUS.errorLog) !== 0,
    hasFailedSelfTest: (status & STATUS.selfTestLog) !== 0,
  }
}

/** Raw values by number; temperatures hide more in theirs, but they are not asked for. */
function attributesOf(json: Json): ReadonlyMap<number, number> {
  const table = asArray(asObject(json['ata_smart_attributes'])['table'])
  return new Map(
    table.flatMap((row) => {
      const { id, raw } = asObject(row)
      const value = asNumber(asObject(raw)['value'])
      return typeof id === 'number' && value !== undefined ? [[id, value] as const] : []
    }),
  )
}

function whyUnknown(answer: Answer): string {
  const messages = messagesOf(answer)
  if (messages.some((text) => /permission denied/i.test(text))) return 'smartctl needs root'
  if ((answer.status & STATUS.commandFailed) !== 0) return 'the drive did not answer SMART commands'
  const [first] = messages
  return first === undefined ? 'the drive has no SMART' : `smartctl says: ${first}`
}

function unknown(why: string): SmartHealth {
  return { ...readAnswer({ status: 0, json: {} }), why }
}

function failuresOf(smart: SmartHealth): SmartFinding[] {
  const fix = 'use another drive, and export to it soon: this one may still be read'
  const failures: SmartFinding[] = []
  const say = (message: string): void => void failures.push({ verdict: 'failure', message, fix })
  if (smart.health === 'failed') say('the drive itself says that it is failing')
  if (isSome(smart.pendingSectors)) say(`${smart.pendingSectors} sectors wait to be replaced`)
  if (isSome(smart.uncorrectableSectors)) {
    say(`${smart.uncorrectableSectors} sectors cannot be read any more`)
  }
  if (isSome(smart.mediaErrors)) say(`${smart.mediaErrors} times it could not read its data`)
  return failures
}

function warningsOf(smart: SmartHealth): SmartFinding[] {
  const fix = 'look at it again soon, and keep a second drive'
  const warnings: SmartFinding[] = []
  const say = (message: string, other = fix): void => {
    warnings.push({ verdict: 'warning', message, fix: other })
  }
  const { percentageUsed, temperatureCelsius } = smart
  if (isSome(smart.reallocatedSectors)) say(`${smart.reallocatedSectors} sectors were replaced`)
  if (percentageUsed !== undefined && percentageUsed >= WORN_PERCENT) {
    say(`${percentageUsed} % of its rated life is used`)
  }
  if (smart.health !== 'failed' && smart.isPrefailBelowThreshold) {
    say('an attribute that announces failure is at its limit')
  }
  if (smart.hasFailedSelfTest) say('one of its self-tests failed')
  if (smart.hasLoggedErrors) say('its log holds errors; often of the cable, or of long ago')
  if (temperatureCelsius !== undefined && temperatureCelsius >= HOT_CELSIUS) {
    say(`it is ${temperatureCelsius} °C warm`, 'let it cool, and give it air')
  }
  return warnings
}

function isSome(count: number | undefined): boolean {
  return count !== undefined && count > 0
}

function summaryOf(smart: SmartHealth): string {
  const { model, powerOnHours, temperatureCelsius, percentageUsed, reallocatedSectors } = smart
  return [
    model ?? 'the drive',
    smart.health === 'passed' ? 'says that it is well' : 'says nothing against itself',
    ...(powerOnHours === undefined ? [] : [`${powerOnHours} hours on`]),
    ...(temperatureCelsius === undefined ? [] : [`${temperatureCelsius} °C`]),
    ...(percentageUsed === undefined ? [] : [`${percentageUsed} % of its rated life used`]),
    ...(reallocatedSectors === undefined ? [] : ['no sector replaced']),
  ]
    .join(', ')
    .replace(', says', ' says')
}
