// What the person is told of a run that has ended: the outcomes of sets and targets, drives that
// are overdue, space that runs low.
//
// commands/run-telling.ts calls announcementsOf once at the end of a run, and announce.ts decides
// what of it is told and how. What is told of failures repeats the error and its hint. Pure but for
// the space that is looked up; throws nothing.

import { statfsSync } from 'node:fs'
import type { BackupError } from '../errors.ts'
import type { AmountFree, Configuration, DriveTargetConfiguration } from '../machine/config.ts'
import { formatSize } from '../model/amount.ts'
import type { Announcement } from '../model/announcement.ts'
import { nextDrive } from '../model/rotation.ts'
import { placeName, scoreText } from '../model/score.ts'
import type { ScoreStatus } from '../model/status-document.ts'
import { everyMsOf, rotatedDrives } from './drive-history.ts'
import { describeDrive } from './drive-target.ts'
import type { ExternalOutcome } from './external.ts'
import type { RunRecord } from './history.ts'
import type { ProofOutcome } from './proof.ts'
import type { TargetEnd } from './target-end.ts'

export interface EndedWork {
  readonly configuration: Configuration
  readonly runs: readonly RunRecord[]
  readonly absent: readonly ExternalOutcome[]
  readonly ends: readonly TargetEnd[]
  /** What ended the whole run, where something did. */
  readonly error: BackupError | undefined
  readonly history: readonly RunRecord[]
  readonly nowMs: number
  /** Whether the whole run was good. */
  readonly isGood: boolean
  /** As it stands after the run; undefined where that is not known. */
  readonly score?: ScoreStatus | undefined
}

/** Everything there is to tell, repeats included. */
export function announcementsOf(work: EndedWork): readonly Announcement[] {
  const { error, configuration } = work
  return [
    ...(error === undefined ? [] : [failedRun(error)]),
    ...(work.isGood ? summary(work) : []),
    ...work.runs.flatMap(ofRun),
    ...work.absent.map((outcome) => ofAbsent(outcome, work)),
    ...work.ends.flatMap((end) => ofEnd(end, configuration.notify.lowSpace)),
    ...overdue(work),
    ...lowStaging(configuration),
    ...droppedScore(work),
  ]
}

function failedRun({ code, message, hint }: BackupError): Announcement {
  return {
    kind: 'failed',
    subject: 'run',
    title: 'Backup failed',
    body: sentences([message, hint]),
    facts: { code },
  }
}

/** For people: everything that went well, in one. */
function summary({ runs }: EndedWork): readonly Announcement[] {
  const good = runs.filter(({ outcome }) => outcome === 'good')
  if (good.length === 0) return []
  const collected = good.filter(({ phase }) => phase !== 'export').map(({ set }) => set)
  const exported = good.flatMap(({ phase, set, drive, target }) => {
    return phase === 'export' ? [`${set} to ${drive ?? target}`] : []
  })
  const body = sentences([
    collected.length === 0 ? undefined : `collected ${collected.join(', ')}`,
    exported.length === 0 ? undefined : `exported ${exported.join(', ')}`,
  ])
  const facts = { runs: good.length }
  return [{ kind: 'succeeded', subject: 'run', title: 'Backup done', body, facts }]
}

function ofRun(run: RunRecord): readonly Announcement[] {
  const { phase, set, target, outcome, stamp, errorCode, message, bytes, writtenBytes } = run
  const isExport = phase === 'export'
  const where = target === undefined ? '' : ` to ${run.drive ?? target}`
  const what = isExport ? `export of ${set}${where}` : `collection of ${set}`
  const facts = { set, target, drive: run.drive, phase, stamp, outcome, bytes, writtenBytes }
  const subject = isExport ? `export ${set} ${target}` : `collect ${set}`
  const of = { subject, facts: { ...facts, code: errorCode } }
  if (outcome === 'good') {
    const size = `${formatSize(bytes)}, ${formatSize(writtenBytes)} of it new`
    const title = `Backup: ${what} done`
    return [{ ...of, kind: 'succeeded', isRecord: true, title, body: `${stamp}: ${size}.` }]
  }
  if (outcome === 'failed') {
    const body = sentences([message, run.hint ?? 'see `backup status`'])
    return [{ ...of, kind: 'failed', title: `Backup: ${what} failed`, body }]
  }
  const why = outcome === 'suspect' ? 'its sources are not what they were' : 'something is missing'
  const todo = outcome === 'suspect' ? `look, then \`backup accept ${set}\`` : 'see `backup status`'
  const title = `Backup: ${what} is ${outcome}`
  return [{ ...of, kind: 'doubtful', title, body: sentences([`${stamp}: ${why}`, todo]) }]
}

function ofAbsent(
  { target: name, error }: ExternalOutcome,
  { configuration, history, nowMs }: EndedWork,
): Announcement {
  const target = configuration.targets.find((one) => one.name === name)
  const next =
    target?.kind === 'drive' ? drivesDue(target, { configuration, history, nowMs })[0] : undefined
  const title = next === undefined ? `Backup: ${name} is not there` : `Plug in ${next.label}`
  const body = sentences([error?.message, error?.hint])
  return { kind: 'missing', subject: `target ${name}`, title, body, facts: { target: name } }
}

function ofEnd(end: TargetEnd, lowSpace: AmountFree): readonly Announcement[] {
  const { name, drive, target, drill, proof, unplug, problems, freeBytes, totalBytes } = end
  const facts = { target, drive }
  // These end what was told of a target that was not there, and of a drive that was overdue.
  const isHere = [`target ${target}`, ...(drive === undefined ? [] : [`drive ${name}`])]
  const seen = isHere.map((subject): Announcement => {
    const title = `Backup: ${name} is there`
    return {
      kind: 'succeeded',
      isRecord: true,
      subject,
      title,
      body: 'It was exported to, or looked at.',
      facts,
    }
  })
  const told: Announcement[] = problems.map(({ code, message, hint }) => {
    const subject = `after ${target} ${code}`
    const body = sentences([message, hint])
    return { kind: 'doubtful', subject, title: `Backup: a problem with ${name}`, body, facts }
  })
  if (drill !== undefined) {
    const isGood = drill.result === 'good'
    const title = `Backup: drill of ${name} ${isGood ? 'passed' : 'found damage'}`
    const kind = isGood ? 'succeeded' : 'failed'
    const body = isGood
      ? `${drill.files} files, ${drill.bundles} bundles: as they should be.`
      : sentences([`damaged: ${drill.damaged.slice(0, 3).join(', ')}`, REPAIR_HINT])
    told.push({ kind, isRecord: isGood, subject: `drill ${name}`, title, body, facts })
  }
  if (proof !== undefined) told.push(ofProof(proof, { name, facts }))
  if (isLow({ freeBytes, totalBytes }, lowSpace)) told.push(low(name, freeBytes ?? 0))
  if (unplug === 'safe' || unplug === 'off') {
    const body = unplug === 'off' ? 'It is switched off.' : 'It is unmounted.'
    told.push({
      kind: 'safe to unplug',
      subject: `unplug ${name}`,
      title: `${name}: safe to unplug`,
      body,
      facts,
    })
  } else if (unplug === 'gone') {
    const body = 'The exports are whole. Verify what is on it when it is plugged in again.'
    const title = `${name}: pulled before the run had ended`
    told.push({ kind: 'doubtful', subject: `unplug ${name}`, title, body, facts })
  } else if (unplug === 'still mounted' && drive !== undefined) {
    const body = 'Eject it before you unplug it.'
    const title = `${name}: done, still mounted`
    told.push({ kind: 'succeeded', subject: `unplug ${name}`, title, body, facts })
  }
  return [...seen, ...told]
}

/** Of the verification that ends an export. */
function ofProof(
  { exports, bundles, bytesRead, damagedFiles }: ProofOutcome,
  { name, facts }: { readonly name: string; readonly facts: Announcement['facts'] },
): Announcement {
  const problems = exports.flatMap((one) => one.problems)
  const isGood = problems.length === 0
  const title = `Backup: verification of ${name} ${isGood ? 'passed' : 'found damage'}`
  const subject = `verification ${name}`
  const read = `${bundles} bundles, ${formatSize(bytesRead)}: as they should be.`
  const named = damagedFiles.length > 0 ? damagedFiles : problems.map(({ message }) => message)
  const body = isGood ? read : sentences([`damaged: ${named.slice(0, 3).join(', ')}`, REPAIR_HINT])
  return { kind: isGood ? 'succeeded' : 'failed', isRecord: isGood, subject, title, body, facts }
}

const REPAIR_HINT =
  'run `backup-restore --source external --verify`; `backup repair` mends what has parity'

interface DueDrive {
  readonly name: string
  /** `t9`, `t9/blue`. */
  readonly label: string
  readonly lastGoodMs: number | undefined
  readonly isDue: boolean
}

/** The drives of a target, the one that waits longest first. */
function drivesDue(
  target: DriveTargetConfiguration,
  { configuration, history, nowMs }: Pick<EndedWork, 'configuration' | 'history' | 'nowMs'>,
): readonly DueDrive[] {
  const sets = configuration.backupSets
  const rotated = rotatedDrives(target, { sets, history })
  const last = new Map(rotated.map((drive) => [drive.name, drive.lastGoodMs]))
  const everyMs = everyMsOf(target, configuration.backupSets)
  if (everyMs === undefined) return []
  return target.drives
    .map(({ name }) => {
      const drives = [{ name, lastGoodMs: last.get(name) }]
      const { isDue } = nextDrive({ drives, everyMs, nowMs })
      return { name, label: describeDrive(target, name), lastGoodMs: last.get(name), isDue }
    })
    .sort((one, other) => (one.lastGoodMs ?? 0) - (other.lastGoodMs ?? 0))
}

/** A drive that never had an export is told as missing, not as overdue. */
function overdue(work: EndedWork): readonly Announcement[] {
  const { configuration, ends } = work
  // With `first`, one target that gets its exports is enough.
  if (configuration.exportTo === 'first') return []
  return configuration.targets.flatMap((target) => {
    if (target.kind !== 'drive') return []
    return drivesDue(target, work).flatMap(({ name, label, lastGoodMs, isDue }) => {
      const isHere = ends.some((end) => end.target === target.name && end.drive === name)
      if (!isDue || isHere || lastGoodMs === undefined) return []
      const since = new Date(lastGoodMs).toISOString().slice(0, 10)
      const body = `Its last good export is of ${since}. Plug it in.`
      const facts = { target: target.name, drive: name }
      const title = `Backup: ${label} is overdue`
      return [{ kind: 'overdue' as const, subject: `drive ${label}`, title, body, facts }]
    })
  })
}

function lowStaging({ staging, notify }: Configuration): readonly Announcement[] {
  try {
    const { bavail, blocks, bsize } = statfsSync(staging)
    const freeBytes = bavail * bsize
    if (!isLow({ freeBytes, totalBytes: blocks * bsize }, notify.lowSpace)) return []
    return [low('staging', freeBytes)]
  } catch {
    return []
  }
}

/** What is wanted and was never reached is no news; `backup status` says it. */
function droppedScore({ score }: EndedWork): readonly Announcement[] {
  if (score === undefined) return []
  const { copies, media, offSite, places, next } = score
  const lost = places.filter(({ isLost }) => isLost)
  if (lost.length === 0) return []
  const title = `Backup: only ${scoreText(score)}`
  const why = lost.map((place) => `${placeName(place)} counts no more: ${place.what}`)
  const facts = { copies, media, offSite }
  return [{ kind: 'doubtful', subject: 'score', title, body: sentences([...why, next]), facts }]
}

function low(name: string, freeBytes: number): Announcement {
  const title = `Backup: ${name} is nearly full`
  const todo = 'Make room, or let `backup prune` show what may go.'
  const body = `${formatSize(freeBytes)} are free. ${todo}`
  return { kind: 'low space', subject: `space ${name}`, title, body, facts: { freeBytes } }
}

function isLow(
  { freeBytes, totalBytes }: { freeBytes: number | undefined; totalBytes: number | undefined },
  lowSpace: AmountFree,
): boolean {
  if (freeBytes === undefined) return false
  if ('bytes' in lowSpace) return freeBytes < lowSpace.bytes
  return totalBytes !== undefined && freeBytes < totalBytes * lowSpace.share
}

/** Lower-case messages without full stops, as sentences. */
function sentences(texts: readonly (string | undefined)[]): string {
  return texts
    .filter((text) => text !== undefined && text !== '')
    .map((text) => `${text?.slice(0, 1).toUpperCase()}${text?.slice(1)}.`)
    .join(' ')
}
