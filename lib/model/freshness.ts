// How fresh a machine's exports are: the small signed record that says so beside machine.json, and
// what is made of it for `backup status --fleet` (docs/fleet.md, docs/format.md §2).
//
// encodeFreshness and parseFreshness are inverses. lib/work/freshness.ts writes, signs and reads
// records; lib/work/fleet.ts lists machines and has judgeMachine() compare each record with what is
// listed. A record names sets and no file, for it is not encrypted. What a listing shows is no
// proof; only what is signed counts as fresh. Pure; parseFreshness throws TARGET_FORMAT for a newer
// format, SIGNATURE_WRONG for what is none of ours.

import { Buffer } from 'node:buffer'
import { BackupError } from '../errors.ts'
import { isValidName } from './names.ts'
import { formatAge } from './period.ts'
import type { Receipt } from './receipt.ts'
import { addPeriods, type Frequency } from './schedule.ts'
import { formatStamp, isAhead, parseStamp, type Stamp } from './stamp.ts'

export interface Freshness {
  readonly machine: string
  /** The repository's id. */
  readonly repository: string
  /** When; also its name. */
  readonly written: Stamp
  /** When the next record is due by the schedule; undefined where no clock decides. */
  readonly nextExpected: Stamp | undefined
  /** Every set that has an export, by name. */
  readonly sets: ReadonlyMap<string, SetFreshness>
}

export interface SetFreshness {
  /** Of the newest export. */
  readonly stamp: Stamp
  /** Undefined where the machine does not know any more. */
  readonly complete: boolean | undefined
  readonly exports: number
  /** What all of the set's files take there. */
  readonly bytes: number
  /** When an export with a later stamp is due; undefined where no clock decides. */
  readonly nextExpected: Stamp | undefined
  /** The last verification that looked at the set. */
  readonly verified: VerifiedSet | undefined
}

export interface VerifiedSet {
  readonly stamp: Stamp
  readonly how: Receipt['how']
  readonly result: Receipt['result']
}

/** One line of JSON. */
export function encodeFreshness(record: Freshness): Buffer {
  const { machine, repository, written, nextExpected } = record
  const sets = [...record.sets].sort(([one], [other]) => (one < other ? -1 : 1))
  const json = {
    format: 1,
    machine,
    repository,
    written,
    next_expected: nextExpected,
    sets: Object.fromEntries(
      sets.map(([name, { stamp, complete, exports, bytes, nextExpected: next, verified }]) => {
        return [name, { stamp, complete, exports, bytes, next_expected: next, verified }]
      }),
    ),
  }
  return Buffer.from(`${JSON.stringify(json)}\n`)
}

/**
 * A record whose signature was checked. Properties that a later version added are passed over.
 * @throws BackupError TARGET_FORMAT, SIGNATURE_WRONG
 */
export function parseFreshness(bytes: Buffer): Freshness {
  const object = parseObject(bytes)
  const format = object['format']
  if (typeof format === 'number' && format > 1) {
    throw new BackupError('TARGET_FORMAT', `a freshness record is written in format ${format}`, {
      hint: 'install a newer version of this program here; nothing was changed',
    })
  }
  const { machine, repository } = object
  const isOurs =
    format === 1
    && isText(machine)
    && isValidName(machine)
    && isText(repository)
    && /^[0-9a-f]{32}$/.test(repository)
  if (!isOurs) throw malformed('it is of no machine')
  const sets = Object.entries(objectOf(object['sets'])).map(([name, value]) => {
    if (!isValidName(name)) throw malformed('a set has no name')
    return [name, parseSet(objectOf(value))] as const
  })
  return {
    machine,
    repository,
    written: stampOf(object['written']),
    nextExpected: optional(object['next_expected'], stampOf),
    sets: new Map(sets),
  }
}

function parseSet(object: Properties): SetFreshness {
  return {
    stamp: stampOf(object['stamp']),
    complete: optional(object['complete'], (value) => value === true),
    exports: countOf(object['exports']),
    bytes: countOf(object['bytes']),
    nextExpected: optional(object['next_expected'], stampOf),
    verified: optional(object['verified'], (value) => {
      const { stamp, how, result } = objectOf(value)
      if (how !== 'restored' && how !== 'checksums') throw malformed('how it was verified')
      if (result !== 'good' && result !== 'damaged') throw malformed('what verifying showed')
      return { stamp: stampOf(stamp), how, result }
    }),
  }
}

type Properties = Readonly<Record<string, unknown>>

function parseObject(bytes: Buffer): Properties {
  try {
    return objectOf(JSON.parse(bytes.toString()))
  } catch {
    throw malformed('it is no JSON object')
  }
}

function objectOf(value: unknown): Properties {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw malformed('something in it is no object')
  }
  return value as Properties
}

function isText(value: unknown): value is string {
  return typeof value === 'string'
}

function stampOf(value: unknown): Stamp {
  if (isText(value) && parseStamp(value) !== undefined) return value
  throw malformed('a stamp is none')
}

function countOf(value: unknown): number {
  if (Number.isSafeInteger(value) && Number(value) >= 0) return Number(value)
  throw malformed('a number is none')
}

function optional<Value>(value: unknown, read: (value: unknown) => Value): Value | undefined {
  return value === undefined ? undefined : read(value)
}

function malformed(why: string): BackupError {
  return new BackupError('SIGNATURE_WRONG', `a freshness record is malformed: ${why}`, {
    hint: 'it says nothing; the exports themselves are unharmed',
  })
}

/**
 * When an export later than one of `startMs` is due: collections and exports each have a
 * frequency, and the slower one counts. Undefined where no clock decides.
 */
export function nextExportMs({
  schedule: { incremental, external },
  startMs,
}: {
  readonly schedule: { readonly incremental: Frequency; readonly external: Frequency }
  readonly startMs: number
}): number | undefined {
  const both = [incremental, external]
  if (both.some((frequency) => frequency === 'manual' || frequency === 'never')) return undefined
  const due = both.map((frequency) => addPeriods({ frequency, startMs, count: 1 }))
  const known = due.filter((timeMs) => timeMs !== undefined)
  return known.length === 0 ? undefined : Math.max(...known)
}

/** As everywhere: a good run may be late by so many periods before that is worth an alarm. */
const PERIODS_LATE = 2

function isLate(of: { since: Stamp; next: Stamp | undefined; nowMs: number }): boolean {
  const sinceMs = parseStamp(of.since)
  const nextMs = parseStamp(of.next ?? '')
  if (sinceMs === undefined || nextMs === undefined) return false
  return of.nowMs > nextMs + PERIODS_LATE * (nextMs - sinceMs)
}

/** What a listing shows of a set: no proof of anything, for whoever can write can make it. */
export interface ListedSet {
  /** Of what has a manifest, the oldest first; at least one. */
  readonly stamps: readonly Stamp[]
  readonly bytes: number
}

/** What is wrong with a machine, for programs. */
export type FleetProblemCode =
  | 'CLAIM_WRONG'
  | 'SIGNATURE_WRONG'
  | 'SIGNER_UNKNOWN'
  | 'PROOF_DAMAGED'
  | 'UNREADABLE'
  | 'RECORD_MISSING'
  | 'RECORD_AHEAD'
  | 'SILENT'
  | 'LATE'
  | 'INCOMPLETE'
  | 'KEY_UNTRUSTED'
  | 'NEWER_EXPORT'
  | 'FEWER_EXPORTS'

export interface FleetProblem {
  readonly code: FleetProblemCode
  /** Bad: something is not what was signed. Attention: late or unknown. Notice: good to know. */
  readonly severity: 'bad' | 'attention' | 'notice'
  /** For people: lower-case start, no final period. */
  readonly what: string
  /** What to do next, in the same form; undefined where nothing is to be done. */
  readonly fix: string | undefined
  readonly set: string | undefined
}

export interface FleetSet {
  readonly name: string
  /** The newest export: as signed, or as listed where no record is believed. */
  readonly newest: Stamp
  /** Below zero where it is dated ahead. */
  readonly ageSeconds: number
  readonly complete: boolean | undefined
  readonly exports: number
  readonly bytes: number
  readonly nextExpected: Stamp | undefined
  readonly isLate: boolean
  readonly verified: VerifiedSet | undefined
}

export interface FleetMachine {
  readonly machine: string
  /**
   * Late: it reports, but exports of a set are missing. Silent: it does not report any more.
   * Unknown: there is no record that can be believed.
   */
  readonly standing: 'fresh' | 'late' | 'silent' | 'unknown'
  /** When it reported last. */
  readonly written: Stamp | undefined
  /** Whether its key is one that we were told to trust, or only what the repository itself says. */
  readonly key: 'trusted' | 'untrusted' | undefined
  readonly sets: readonly FleetSet[]
  /** The worst first. */
  readonly problems: readonly FleetProblem[]
}

export interface MachineFacts {
  readonly machine: string
  /** The newest record that is believed. */
  readonly record: Freshness | undefined
  readonly key: FleetMachine['key']
  readonly listed: ReadonlyMap<string, ListedSet>
  /** What was wrong with records that are not believed. */
  readonly problems: readonly FleetProblem[]
  readonly nowMs: number
}

/** How a machine stands. */
export function judgeMachine(facts: MachineFacts): FleetMachine {
  const { machine, record, key, listed, nowMs } = facts
  const problems = [...facts.problems]
  if (record === undefined) {
    if (problems.length === 0) problems.push(missing())
    const sets = [...listed].map((entry) => setAsListed(entry, nowMs))
    return { machine, standing: 'unknown', written: undefined, key, sets, problems: sort(problems) }
  }
  const { written, nextExpected } = record
  if (key === 'untrusted') problems.push(untrusted(machine))
  const sets = [...record.sets].map(([name, set]) => setAsSigned({ name, set, nowMs }))
  const isAheadOfUs = isAhead(written, nowMs)
  if (isAheadOfUs) problems.push(ahead(written))
  const isSilent = isLate({ since: written, next: nextExpected, nowMs })
  if (isSilent) problems.push(silent({ machine, written, nowMs }))
  problems.push(...compareWithListing(record, listed))
  problems.push(...sets.flatMap((set) => problemsOf(set)))
  const standing = isAheadOfUs
    ? 'unknown'
    : isSilent
      ? 'silent'
      : sets.some((set) => set.isLate)
        ? 'late'
        : 'fresh'
  return { machine, standing, written, key, sets, problems: sort(problems) }
}

function setAsListed([name, { stamps, bytes }]: [string, ListedSet], nowMs: number): FleetSet {
  const newest = stamps.at(-1) ?? formatStamp(0)
  return {
    name,
    newest,
    ageSeconds: ageSeconds(newest, nowMs),
    complete: undefined,
    exports: stamps.length,
    bytes,
    nextExpected: undefined,
    isLate: false,
    verified: undefined,
  }
}

function setAsSigned(of: { name: string; set: SetFreshness; nowMs: number }): FleetSet {
  const { name, set, nowMs } = of
  const { stamp, complete, exports, bytes, nextExpected, verified } = set
  const late = isLate({ since: stamp, next: nextExpected, nowMs })
  const amounts = { complete, exports, bytes, nextExpected, isLate: late, verified }
  return { name, newest: stamp, ageSeconds: ageSeconds(stamp, nowMs), ...amounts }
}

function ageSeconds(stamp: Stamp, nowMs: number): number {
  return Math.floor((nowMs - (parseStamp(stamp) ?? 0)) / 1000)
}

/** What is signed and what is there. */
function compareWithListing(
  { sets }: Freshness,
  listed: ReadonlyMap<string, ListedSet>,
): readonly FleetProblem[] {
  const signed = [...sets].flatMap(([name, { stamp, exports }]): FleetProblem[] => {
    const stamps = listed.get(name)?.stamps ?? []
    if (!stamps.includes(stamp)) return [claimWrong(name, stamp)]
    const newer = stamps.filter((other) => other > stamp)
    const older = stamps.length - newer.length
    return [
      ...(newer.length > 0 ? [newerExport(name, newer.at(-1)!)] : []),
      ...(older < exports ? [fewerExports(name, { exports, there: older })] : []),
    ]
  })
  const unknown = [...listed].filter(([name]) => !sets.has(name))
  return [...signed, ...unknown.map(([name, { stamps }]) => newerExport(name, stamps.at(-1) ?? ''))]
}

function claimWrong(set: string, stamp: Stamp): FleetProblem {
  return {
    code: 'CLAIM_WRONG',
    severity: 'bad',
    what: `claims ${set} ${stamp}, which is not there`,
    fix: 'find out who removed it; on a versioned bucket `backup-restore --verify` finds it again',
    set,
  }
}

function newerExport(set: string, stamp: Stamp): FleetProblem {
  return {
    code: 'NEWER_EXPORT',
    severity: 'notice',
    what: `${set} ${stamp} is newer than the record, which does not vouch for it yet`,
    fix: undefined,
    set,
  }
}

function fewerExports(set: string, of: { exports: number; there: number }): FleetProblem {
  return {
    code: 'FEWER_EXPORTS',
    severity: 'notice',
    what: `${of.there} exports of ${set} are there, ${of.exports} were when it reported`,
    fix: 'as it should be after a prune; else find out who removed them',
    set,
  }
}

function problemsOf({ name, newest, complete, isLate: late, verified }: FleetSet): FleetProblem[] {
  const attention = { severity: 'attention', set: name } as const
  const problems: FleetProblem[] = []
  if (verified?.result === 'damaged') {
    problems.push({
      ...{ code: 'PROOF_DAMAGED', severity: 'bad', set: name },
      what: `verifying ${name} on ${verified.stamp} found damage`,
      fix: 'look at `backup status` on that machine',
    })
  }
  if (late) {
    const what = `no export of ${name} since ${newest}`
    problems.push({ ...attention, code: 'LATE', what, fix: 'look at `backup status` there' })
  }
  if (complete === false) {
    const what = `the newest export of ${name} is incomplete`
    problems.push({ ...attention, code: 'INCOMPLETE', what, fix: 'look at `backup status` there' })
  }
  return problems
}

function silent(of: { machine: string; written: Stamp; nowMs: number }): FleetProblem {
  const age = formatAge(of.nowMs - (parseStamp(of.written) ?? 0))
  return {
    code: 'SILENT',
    severity: 'attention',
    what: `reported last on ${of.written}, ${age}`,
    fix: `see whether ${of.machine} runs and reaches the target: run \`backup\` there`,
    set: undefined,
  }
}

function missing(): FleetProblem {
  return {
    code: 'RECORD_MISSING',
    severity: 'attention',
    what: 'there is no record of its freshness: what is shown is listed, not signed',
    fix: 'its next export writes one; if it had one before, find out who removed it',
    set: undefined,
  }
}

function ahead(written: Stamp): FleetProblem {
  return {
    code: 'RECORD_AHEAD',
    severity: 'attention',
    what: `reported on ${written}, which is in the future`,
    fix: 'look at the clocks of both machines',
    set: undefined,
  }
}

function untrusted(machine: string): FleetProblem {
  return {
    code: 'KEY_UNTRUSTED',
    severity: 'notice',
    what: 'untrusted key: only the repository itself says that it is this machine',
    fix: `run \`backup keys public\` on ${machine}, put that key into trusted_signing_keys here`,
    set: undefined,
  }
}

const SEVERITIES = ['bad', 'attention', 'notice'] as const

function sort(problems: readonly FleetProblem[]): readonly FleetProblem[] {
  return SEVERITIES.flatMap((severity) => problems.filter((one) => one.severity === severity))
}

/** 13 where something is not what was signed, 3 where something is late or unknown. */
export function fleetExitCode(machines: readonly FleetMachine[]): 0 | 3 | 13 {
  const severities = machines.flatMap(({ problems }) => problems.map(({ severity }) => severity))
  if (severities.includes('bad')) return 13
  return severities.includes('attention') ? 3 : 0
}
