// `backup status` for people: the verdict first, then each problem with what to do about it, then
// sets, targets, drives and the last runs, in aligned lines of at most a hundred columns.
//
// commands/status.ts prints it. Made from the document alone (lib/model/status-document.ts), so it
// says what --json says. Times are local. Throws nothing.

import { formatSize } from '../lib/model/amount.ts'
import { counted, formatAge, formatPeriod } from '../lib/model/period.ts'
import { formatLocalTime } from '../lib/model/schedule.ts'
import { placeName, scoreText } from '../lib/model/score.ts'
import type {
  CollectionStatus,
  DriveStatus,
  ExportStatus,
  PhaseStatus,
  Problem,
  ProofStatus,
  RunStatus,
  SetStatus,
  StatusDocument,
  TargetStatus,
} from '../lib/model/status-document.ts'
import { safeText } from './voice.ts'

/** What a terminal shows without breaking lines for us. */
const COLUMNS = 100

/** A label that is longer pushes its own line only. */
const MAX_LABEL = 20

/** The verdict and what is wrong. Lines have no newlines at their ends. */
export function verdictLines({ verdict, problems }: StatusDocument): readonly string[] {
  const first = verdict === 'good' ? 'all is well' : verdictText(problems.length)
  return [first, ...problems.flatMap(problemLines)]
}

/** How everything stands, in the same form. */
export function standingLines(document: StatusDocument): readonly string[] {
  const { sets, targets, staging, lastRuns, lastFailures } = document
  const { freeBytes, totalBytes, path, lowSpace } = staging
  const free = `${formatSize(freeBytes ?? 0)} free of ${formatSize(totalBytes ?? 0)}`
  const space = freeBytes === undefined ? 'not there yet' : free
  return [
    ...sets.flatMap(setLines),
    ...targets.flatMap(targetLines),
    ...(targets.length === 0 ? ['no targets: staging is the only copy'] : []),
    ...scoreLines(document),
    ...wrapped(`staging ${safeText(path)}: ${space}${lowSpace ? ', LOW' : ''}`, 2),
    ...runLines('last runs', lastRuns),
    ...runLines('last runs that were not good', lastFailures),
  ]
}

function verdictText(count: number): string {
  return count === 1 ? '1 thing needs you' : `${count} things need you`
}

function problemLines({ severity, what, fix, receipt }: Problem): readonly string[] {
  const proof = receipt === undefined ? [] : wrapped(`      receipt ${safeText(receipt)}`, 8)
  return [
    ...wrapped(`  ${severity === 'bad' ? 'BAD' : '!  '} ${safeText(what)}`, 6),
    ...wrapped(`      → ${safeText(fix)}`, 8),
    ...proof,
  ]
}

function setLines(set: SetStatus): readonly string[] {
  const { name, newest, phases, snapshot } = set
  return [
    `set ${name}`,
    ...table([
      ['newest', newest === undefined ? 'none yet' : collectionText(newest, snapshot)],
      ...phases.map((phase) => [phase.phase, ...phaseCells(phase)]),
      ['keeps', retentionText(set)],
    ]),
  ]
}

/** `2025-04-01T020000Z complete, 12 entries, 1.5 KiB; from a snapshot (btrfs)`. */
function collectionText(newest: CollectionStatus, policy: SetStatus['snapshot']): string {
  const { stamp, outcome, entries, bytes, isAtomic, snapshots } = newest
  const word = outcome === 'good' ? 'complete' : outcome.toUpperCase()
  const atomic = `from a snapshot (${snapshots.join(', ')})`
  // Whoever chose to have no snapshot need not be told.
  const notAtomic = policy === 'none' ? 'no snapshot' : 'not atomic: read without a snapshot'
  const what = `${stamp} ${word}, ${entries} entries, ${formatSize(bytes)}`
  return `${what}; ${isAtomic ? atomic : notAtomic}`
}

/** `7 collections (5 are there), 5 exports; and by rule: daily 7, monthly all`. */
function retentionText({ retention, collections }: SetStatus): string {
  const { local, external, keep } = retention
  const { withinMs, ...counts } = keep
  const rules = Object.entries(counts).map(([rule, value]) => `${rule} ${value}`)
  if (withinMs !== undefined) rules.push(`within ${formatPeriod(withinMs)}`)
  const more = rules.length === 0 ? '' : `; and by rule: ${rules.join(', ')}`
  const there = collections === 1 ? '1 is there' : `${collections} are there`
  return `${local} collections (${there}), ${external} exports${more}`
}

/** When it was last good, and when it is due. */
function phaseCells({ lastGood, lastRun, healthy, due, reason, next, phase }: PhaseStatus) {
  const good = lastGood === undefined ? 'never good yet' : `last good ${momentText(lastGood)}`
  const isGood = lastRun === undefined || lastRun.outcome === 'good'
  const last = isGood ? '' : `, then ${lastRun.outcome}`
  const isNew = lastGood === undefined && phase === 'collect'
  const late = !healthy && isGood && !isNew ? ', LATE' : ''
  // A moment that has passed does not say why it is not due.
  const isAhead = next !== undefined && (lastGood === undefined || next > lastGood.time)
  const when = !due && isAhead ? `due ${localTime(next)}` : reason
  return [`${good}${last}${late}`, due ? 'due now' : when]
}

function targetLines(target: TargetStatus): readonly string[] {
  const { name, kind, path, isPool, exports, proofs, drives, next } = target
  const place = path === undefined ? 'drive' : `${kind} ${safeText(path)}`
  const isVerified = proofs.some((proof) => proof.kind === 'verification')
  const what = isPool ? `pool of ${counted(drives.length, 'drive')}` : place
  return [
    ...wrapped(`target ${name}: ${what}`, 2),
    ...table([
      ...exports.map((status) => [status.set, ...exportCells(status)]),
      ...proofs.flatMap(proofRows),
      ...(isVerified ? [] : [[proofs.length === 0 ? 'proven' : 'verification', 'never']]),
      ...drives.map((drive) => [`${isPool ? 'drive ' : ''}${drive.name}`, driveText(drive)]),
      ...(isPool && next !== undefined ? [['next', nextText(next)]] : []),
    ]),
  ]
}

function exportCells(status: ExportStatus): readonly string[] {
  const { writtenBytes, bytes } = status
  if (writtenBytes === undefined || bytes === undefined) return phaseCells(status)
  const size = `${formatSize(bytes)}, wrote ${formatSize(writtenBytes)}`
  return [...phaseCells(status), size]
}

/** Every claim of proof names its date and its receipt. */
function proofRows(proof: ProofStatus): readonly (readonly string[])[] {
  const { kind, how, result, since, files, bytes, totalBytes, drive, damaged, receipt } = proof
  const where = drive === undefined ? '' : ` on ${drive}`
  const of = totalBytes > bytes ? ` of ${formatSize(totalBytes)}` : ''
  const restored = kind === 'partial' ? 'content compared' : `${counted(files, 'file')} restored`
  const what = how === 'restored' ? restored : 'checksums compared'
  const outcome = result === 'good' ? 'good' : `DAMAGED (${damaged})`
  const read = since === undefined ? '' : `, read since ${localTime(since)}`
  const amount = `${what}, ${formatSize(bytes)}${of}${read}`
  return [
    [kind === 'partial' ? 'in part' : kind, `${momentText(proof)}${where}: ${outcome}, ${amount}`],
    ['', `receipt ${safeText(receipt)}`],
  ]
}

function driveText(drive: DriveStatus): string {
  const { lastGoodExport, lastSeen, freeBytes, oldestExport, isOverdue, lowSpace } = drive
  const exported = lastGoodExport === undefined ? 'never' : momentText(lastGoodExport)
  const parts = [
    `last good export ${exported}${isOverdue ? ', OVERDUE' : ''}`,
    lastSeen === undefined ? 'never seen' : `last seen ${localTime(lastSeen)}`,
  ]
  if (freeBytes !== undefined) {
    parts.push(`${formatSize(freeBytes)} free then${lowSpace ? ', LOW' : ''}`)
  }
  if (oldestExport !== undefined) parts.push(`oldest export ${oldestExport.stamp}`)
  return parts.join('; ')
}

function nextText({ drive, due, isDue }: NonNullable<TargetStatus['next']>): string {
  if (due === undefined) return isDue ? `plug in ${drive}: never exported to` : `${drive}, by hand`
  return isDue
    ? `plug in ${drive}: due since ${localTime(due)}`
    : `${drive}, from ${localTime(due)}`
}

/** The score, why each place counts or does not, and what would raise it. */
export function scoreLines({ score }: StatusDocument): readonly string[] {
  if (score === undefined) return []
  const { wanted, isReached, places, next } = score
  const lacks = isReached ? '' : `; ${scoreText(wanted)} would be well`
  const rows = places.map((place) => {
    const where = place.isOffSite ? ', off-site' : ''
    const medium = place.isOtherMedium ? '' : ', on the medium of the sources'
    const counts = `${place.counts ? 'counts' : 'does not count'}${where}${medium}`
    return [placeName(place), `${counts}: ${place.what}`]
  })
  const first = wrapped(`3-2-1: ${scoreText(score)}${lacks}`, 2)
  return [...first, ...table(rows), ...(next === undefined ? [] : wrapped(`  → ${next}`, 4))]
}

function runLines(title: string, runs: readonly RunStatus[]): readonly string[] {
  if (runs.length === 0) return []
  const rows = runs.toReversed().map((run) => {
    const { phase, set, target, drive, start, outcome, errorCode, message } = run
    const place = drive === undefined || drive === target ? target : `${target} (${drive})`
    const what = target === undefined ? set : `${set} → ${place}`
    const why = errorCode === undefined ? '' : `: ${errorCode}: ${safeText(message ?? '')}`
    return [localTime(start), `${what}: ${phase} ${outcome}${why}`]
  })
  return [title, ...table(rows)]
}

/** `2025-04-01 02:00 (7 hours ago)`. */
function momentText({ time, ageSeconds }: { time: string; ageSeconds: number }): string {
  return `${localTime(time)} (${formatAge(ageSeconds * 1000)})`
}

function localTime(time: string): string {
  return formatLocalTime(Date.parse(time))
}

/** Rows of cells below each other; the last cell of a row takes what it needs. */
function table(rows: readonly (readonly string[])[]): readonly string[] {
  const widthOf = (column: number): number => {
    const cells = rows.filter((row) => column < row.length - 1).map((row) => row[column] ?? '')
    const widths = cells.map(({ length }) => length)
    return Math.max(0, ...(column === 0 ? widths.filter((width) => width <= MAX_LABEL) : widths))
  }
  const first = widthOf(0)
  return rows.flatMap((row) => {
    const cells = row.map((cell, column) => {
      return column === row.length - 1 ? cell : cell.padEnd(widthOf(column))
    })
    return wrapped(`  ${cells.join('  ')}`, first + 4)
  })
}

/** A line, and what does not fit into it on lines that begin with `indent` spaces. */
function wrapped(text: string, indent: number): readonly string[] {
  const lines: string[] = []
  let rest = text
  while (rest.length > COLUMNS) {
    const space = rest.lastIndexOf(' ', COLUMNS)
    // A word of its own length is longer than a line: it is not cut.
    const end = space > indent ? space : rest.indexOf(' ', COLUMNS)
    if (end === -1) break
    lines.push(rest.slice(0, end).trimEnd())
    rest = `${' '.repeat(indent)}${rest.slice(end).trimStart()}`
  }
  return [...lines, rest]
}
