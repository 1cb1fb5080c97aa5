// How the events of lib/model/report.ts reach people and programs.
//
// On a terminal one repainted line, elsewhere a line now and then, with --json one object a line on
// standard output and nothing else there. Warnings go to standard error. Each command has one
// Reporter, made by main.ts, which also calls finish() before it prints an error. Throws nothing.

import { formatDuration, formatSize } from '../lib/model/amount.ts'
import { displayPath, pathFacts } from '../lib/model/raw-path.ts'
import type {
  NoticeEvent,
  PhaseEvent,
  ProgressEvent,
  Report,
  ReportEvent,
} from '../lib/model/report.ts'
import { jsonLine, safeText } from './voice.ts'

export interface Reporter {
  readonly report: Report
  /** A line that was asked for (a list, a plan, a key), on standard output; not with --json. */
  readonly print: (line: string) => void
  /** The same for the outcome of a run: silent with -q. */
  readonly tell: (line: string) => void
  /** Clears the painted line: for whoever writes to the terminal next. */
  readonly finish: () => void
}

export interface ReporterOptions {
  readonly name: string
  readonly json: boolean
  readonly quiet: boolean
  readonly verbose: boolean
  readonly now: () => number
  readonly writeOut: (text: string) => void
  readonly writeError: (text: string) => void
  /** Of the terminal behind standard error; undefined where there is none. */
  readonly columns: (() => number) | undefined
}

/** More often than ten times a second nobody reads, and it costs time. */
const REPAINT_MS = 100

/** Off a terminal: often enough to see that it lives, seldom enough for a log. */
const LOG_INTERVAL_MS = 30_000

/** The speed is that of about the last ten seconds. */
const SPEED_WINDOW_MS = 10_000

export function createReporter(options: ReporterOptions): Reporter {
  if (options.json) return createJsonReporter(options)
  return createTextReporter(options)
}

function createJsonReporter({ now, writeOut, writeError, name }: ReporterOptions): Reporter {
  const speed = createSpeed()
  let reportedAtMs = -Infinity
  const report = (event: ReportEvent): void => {
    if (event.kind === 'progress') {
      speed.add(now(), event.bytesDone)
      if (now() - reportedAtMs < 1000) return
      reportedAtMs = now()
    }
    if (event.kind === 'notice' && event.level === 'warning') writeError(warningLine(name, event))
    writeOut(`${jsonLine(eventForJson(event, speed.bytesPerSecond()))}\n`)
  }
  return { report, print: () => {}, tell: () => {}, finish: () => {} }
}

function eventForJson(event: ReportEvent, bytesPerSecond: number): object {
  if (event.kind !== 'progress') return event
  const { current, ...rest } = event
  const speed = { bytesPerSecond: Math.round(bytesPerSecond) }
  if (current === undefined) return { ...rest, ...speed }
  return { ...rest, ...speed, ...pathFacts(current, 'current') }
}

function createTextReporter(options: ReporterOptions): Reporter {
  const { name, quiet, verbose, now, writeOut, writeError, columns } = options
  const line = createPaintedLine(writeError)
  let speed = createSpeed()
  let phaseName = ''
  let shownAtMs = -Infinity

  const beginPhase = ({ name: phase }: PhaseEvent): void => {
    if (phase === phaseName) return
    phaseName = phase
    speed = createSpeed()
    shownAtMs = columns === undefined ? now() : -Infinity
    if (quiet) return
    if (columns === undefined || verbose) line.above(`${name}: ${safeText(phase)}\n`)
    else line.paint(safeText(phase), columns())
  }
  const showProgress = (event: ProgressEvent): void => {
    if (event.phase !== phaseName) beginPhase({ kind: 'phase', name: event.phase })
    speed.add(now(), event.bytesDone)
    if (quiet || now() - shownAtMs < (columns === undefined ? LOG_INTERVAL_MS : REPAINT_MS)) return
    shownAtMs = now()
    const text = progressText(event, speed.bytesPerSecond())
    if (columns === undefined) writeError(`${name}: ${text}\n`)
    else line.paint(withCurrent({ text, event, columns: columns() }), columns())
  }
  const report = (event: ReportEvent): void => {
    switch (event.kind) {
      case 'phase':
        return beginPhase(event)
      case 'progress':
        return showProgress(event)
      case 'notice': {
        if (event.code === 'HOOK_OUTPUT' && !verbose) return
        // What somebody else is told, the command has said already.
        if (event.code === 'ANNOUNCED') return
        if (event.level === 'warning') return line.above(warningLine(name, event))
        return quiet ? undefined : line.above(`${name}: ${safeText(event.message)}\n`)
      }
      // A command says its result to people itself, with print.
      case 'damage':
      case 'result':
        return line.clear()
    }
  }
  /** What a command found or did: silent with -q, unlike what was asked for. */
  const tell = (text: string): void => {
    if (!options.quiet) print(text)
  }
  const print = (text: string): void => {
    line.clear()
    writeOut(`${text}\n`)
  }
  return { report, print, tell, finish: line.clear }
}

function warningLine(name: string, { message }: NoticeEvent): string {
  return `${name}: warning: ${safeText(message)}\n`
}

/**
 * `packing 12/340 files, 1.2 GiB of 3.4 GiB, 1 GiB already there, 200 MiB written, 85 MiB/s, 0:27
 * left`.
 */
export function progressText(event: ProgressEvent, bytesPerSecond: number): string {
  const { filesDone, filesTotal, bytesDone, bytesTotal, bytesSkipped, bytesWritten } = event
  const files = filesTotal === undefined ? `${filesDone} files` : `${filesDone}/${filesTotal} files`
  const ofTotal = bytesTotal === undefined ? '' : ` of ${formatSize(bytesTotal)}`
  const parts = [`${safeText(event.phase)} ${files}`, formatSize(bytesDone) + ofTotal]
  if (bytesSkipped !== undefined) parts.push(`${formatSize(bytesSkipped)} already there`)
  if (bytesWritten !== undefined) parts.push(`${formatSize(bytesWritten)} written`)
  if (bytesPerSecond > 0) parts.push(`${formatSize(bytesPerSecond)}/s`)
  if (bytesPerSecond > 0 && bytesTotal !== undefined && bytesTotal > bytesDone) {
    parts.push(`${formatDuration(((bytesTotal - bytesDone) * 1000) / bytesPerSecond)} left`)
  }
  return parts.join(', ')
}

/** The text and as much of the end of the current path as fits. */
function withCurrent({
  text,
  event,
  columns,
}: {
  readonly text: string
  readonly event: ProgressEvent
  readonly columns: number
}): string {
  if (event.current === undefined) return text
  const path = displayPath(event.current)
  const room = columns - 1 - text.length - 2
  if (path.length <= room) return `${text}  ${path}`
  return room < 10 ? text : `${text}  …${path.slice(path.length - room + 1)}`
}

interface PaintedLine {
  readonly paint: (text: string, columns: number) => void
  /** Writes a whole line; what was painted is gone until it is painted again. */
  readonly above: (line: string) => void
  readonly clear: () => void
}

function createPaintedLine(write: (text: string) => void): PaintedLine {
  let painted = false
  const clear = (): void => {
    if (painted) write('\r\x1b[K')
    painted = false
  }
  const paint = (text: string, columns: number): void => {
    write(`\r\x1b[K${text.slice(0, Math.max(0, columns - 1))}`)
    painted = true
  }
  const above = (line: string): void => {
    clear()
    write(line)
  }
  return { paint, above, clear }
}

interface Speed {
  readonly add: (nowMs: number, bytesDone: number) => void
  readonly bytesPerSecond: () => number
}

/** Keeps about one sample a second of the last ten. */
function createSpeed(): Speed {
  const samples: { readonly atMs: number; readonly bytes: number }[] = []
  let last: { readonly atMs: number; readonly bytes: number } | undefined
  const add = (atMs: number, bytes: number): void => {
    last = { atMs, bytes }
    const newest = samples.at(-1)
    if (newest === undefined || atMs - newest.atMs >= 1000) samples.push(last)
    const isOld = (sample = last) => sample !== undefined && atMs - sample.atMs > SPEED_WINDOW_MS
    while (isOld(samples[0])) samples.shift()
  }
  const bytesPerSecond = (): number => {
    const first = samples[0]
    if (first === undefined || last === undefined || last.atMs - first.atMs < 500) return 0
    return Math.max(0, ((last.bytes - first.bytes) * 1000) / (last.atMs - first.atMs))
  }
  return { add, bytesPerSecond }
}
