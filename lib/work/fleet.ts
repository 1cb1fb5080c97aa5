// All machines of a store: what each one's signed record says, beside what is listed there, for
// `backup status --fleet`.
//
// readFleet looks at one repository, gatherFleet at all targets. Only reads, and small files only:
// no manifest is opened, so no identity is needed. What is wrong with one machine, or one target,
// hides nothing of the others. Records are judged by lib/model/freshness.ts. Throws what the target
// throws, CONFIG_INVALID and INTERRUPTED.

import { BackupError, type ExitCode, worstExitCode } from '../errors.ts'
import type { Configuration, TargetConfiguration } from '../machine/config.ts'
import { placeOf } from '../machine/config-targets.ts'
import type { MachineKey } from '../machine/identity.ts'
import {
  fleetExitCode,
  type FleetMachine,
  type FleetProblem,
  judgeMachine,
} from '../model/freshness.ts'
import { listedSets, readFreshness } from './freshness.ts'
import { listMachines, type Repository } from './repository.ts'
import { trustedKeys } from './signing.ts'
import { openTarget, repositoryToRead } from './target-access.ts'

/** How many machines are asked about at a time: each takes a few small requests. */
const AT_A_TIME = 8

export interface FleetOptions {
  /** The public keys that count for a machine; none: what its entry in the repository says. */
  readonly trustedKeys: (machine: string) => Promise<readonly string[]>
  readonly nowMs: number
  readonly signal?: AbortSignal | undefined
}

/** How every machine of a repository stands, sorted by name. */
export async function readFleet(
  repository: Repository,
  options: FleetOptions,
): Promise<readonly FleetMachine[]> {
  const names = [...(await listMachines(repository))].sort()
  const machines: FleetMachine[] = []
  while (machines.length < names.length) {
    options.signal?.throwIfAborted()
    const some = names.slice(machines.length, machines.length + AT_A_TIME)
    const read = some.map(async (machine) => await readMachine(repository, machine, options))
    machines.push(...(await Promise.all(read)))
  }
  return machines
}

async function readMachine(
  repository: Repository,
  machine: string,
  { trustedKeys: keysOf, nowMs }: FleetOptions,
): Promise<FleetMachine> {
  const publicKeys = await keysOf(machine)
  try {
    // The record first: an export that comes between the two is newer, and nothing is missing.
    const found = await readFreshness(repository, { machine, publicKeys, nowMs })
    const listed = await listedSets(repository, machine)
    return judgeMachine({ machine, ...found, listed, nowMs })
  } catch (error) {
    const isOfAll = !(error instanceof BackupError) || OF_THE_TARGET.has(error.code)
    if (isOfAll) throw error
    const problems = [unreadable(error)]
    const none = { record: undefined, key: undefined, listed: new Map() }
    return judgeMachine({ machine, ...none, problems, nowMs })
  }
}

/** What is no machine's own. */
const OF_THE_TARGET: ReadonlySet<string> = new Set(['INTERRUPTED', 'TARGET_ABSENT'])

/** As where this machine's credentials do not reach what belongs to another. */
function unreadable({ message, hint }: BackupError): FleetProblem {
  const what = `cannot be looked at: ${message}`
  return { code: 'UNREADABLE', severity: 'attention', what, fix: hint, set: undefined }
}

/** One target, and who keeps exports there. */
export interface FleetTarget {
  readonly target: string
  readonly place: string
  /** The repository's id; undefined where the target could not be had. */
  readonly repository: string | undefined
  readonly machines: readonly FleetMachine[]
  /** Why the target could not be had. */
  readonly error:
    { readonly code: string; readonly message: string; readonly hint?: string } | undefined
}

/** What config/fleet.schema.json describes. */
export interface FleetDocument {
  readonly format: 1
  /** Who asks. */
  readonly machine: string
  /** ISO 8601, UTC. */
  readonly time: string
  readonly exitCode: ExitCode
  readonly fleet: readonly FleetTarget[]
}

/** How all machines on the targets stand. Drives are left out: they go from place to place. */
export async function gatherFleet({
  configuration,
  targets,
  fromIdentity,
  nowMs,
  signal,
}: {
  readonly configuration: Configuration
  readonly targets: readonly TargetConfiguration[]
  /** The signing keys of an identity file. */
  readonly fromIdentity: readonly MachineKey[]
  readonly nowMs: number
  readonly signal?: AbortSignal | undefined
}): Promise<FleetDocument> {
  const codes: ExitCode[] = []
  const fleet: FleetTarget[] = []
  for (const target of targets) {
    if (target.kind === 'drive') continue
    const of = { target: target.name, place: placeOf(target) }
    try {
      const opened = await openTarget(target, configuration)
      try {
        const repository = await repositoryToRead(opened)
        const machines = await readFleet(repository, {
          trustedKeys: async (machine) => {
            return await trustedKeys(configuration, { machine, fromIdentity })
          },
          nowMs,
          signal,
        })
        codes.push(fleetExitCode(machines))
        fleet.push({ ...of, repository: repository.id, machines, error: undefined })
      } finally {
        await opened.close()
      }
    } catch (error) {
      if (!(error instanceof BackupError) || error.code === 'INTERRUPTED') throw error
      const { code, message, hint, exitCode } = error
      const told = { code, message, ...(hint === undefined ? {} : { hint }) }
      codes.push(exitCode)
      fleet.push({ ...of, repository: undefined, machines: [], error: told })
    }
  }
  const { machine } = configuration
  const time = new Date(nowMs).toISOString()
  return { format: 1, machine, time, exitCode: worstExitCode(codes), fleet }
}
