// `backup diff A [B] [PATH]`: what differs between two generations, or between one and the sources
// as they are now.
//
// Parses and tells; lib/work/differences.ts compares, unified-text.ts shows the text of one file.
// Throws USAGE, NOTHING_FOUND, and what reading exports and showing a text throws.

import assert from 'node:assert/strict'
import { BackupError } from '../lib/errors.ts'
import type { ExitCode } from '../lib/errors.ts'
import type { Configuration } from '../lib/machine/config.ts'
import { formatSize } from '../lib/model/amount.ts'
import { displayPath, displayText, pathFacts, type RawPath } from '../lib/model/raw-path.ts'
import { formatStamp } from '../lib/model/stamp.ts'
import type { Change, Version } from '../lib/model/version-index.ts'
import {
  compareGenerations,
  compareWithLive,
  type Comparison,
  type Difference,
} from '../lib/work/differences.ts'
import { pickExports } from '../lib/work/find-exports.ts'
import { readMarks } from '../lib/work/marks.ts'
import { argumentPath } from './argument-path.ts'
import { type Command, type CommandContext, isGiven } from './command.ts'
import { LIVE, type Side, showUnified } from './unified-text.ts'
import { versionFacts, versionText } from './version-text.ts'
import { eachSet, type OpenSet, VERSION_OPTIONS } from './versions-source.ts'

export const command: Command = {
  name: 'backup diff',
  summary: 'compare two generations, or one with what is there now',
  usage: `Usage: backup diff A [B] [PATH] [--set NAME…] [--list] [-u]

Says what was added, removed and changed from A to B, each of which is a generation in staging
or on a target: as much of its stamp as is unambiguous, latest, a tag, or a date such as
"3 days ago"; or live: the sources as they are now, which is also what B is by default. Only
what a collection would take counts as added. Files are compared by size and time, not byte by
byte.

  PATH                only this file or directory; where B is left out, with a slash: ./notes
  --set NAME          only this set (again for more; default: all)
  --list              only the paths
  -u, --unified       the text of one file, as diff -u shows it: both versions have to be in
                      staging, or live
  --target NAME       read the catalogs of the exports on this target instead, which needs the
                      identity
  --machine NAME      with --target: of this machine
  --identity FILE     with --target: the identity
  --passphrase-file FILE  its passphrase, instead of asking
`,
  positionals: true,
  options: {
    ...VERSION_OPTIONS,
    list: { type: 'boolean' },
    unified: { type: 'boolean', short: 'u' },
  },
  run,
}

const MARKS = { added: '+', removed: '-', changed: '~' } as const

/** Unseen places that are named; --json names all. */
const PLACES_SHOWN = 20

/** The words of the command line. */
interface Words {
  readonly before: string
  readonly after: string
  /** Without a leading slash; empty for everything. */
  readonly path: RawPath
}

/** Two moments of a set. */
interface Sides {
  readonly before: Side
  readonly after: Side
}

interface Job {
  readonly context: CommandContext
  readonly configuration: Configuration
  readonly words: Words
}

async function run(context: CommandContext): Promise<ExitCode> {
  const words = readWords(context)
  const configuration = await context.loadConfiguration()
  const job = { context, configuration, words }
  let isPartial = false
  let nothing: BackupError | undefined
  let compared = 0
  let held = 0
  await eachSet({ context, configuration }, async (open) => {
    const sides = sidesOf(job, open)
    if (sides instanceof BackupError) {
      nothing ??= sides
      return
    }
    const { path } = words
    const isUnified = isGiven(context.values, 'unified')
    if (isUnified && open.versions.lineOf(path) === '') {
      const message = `no generation holds ${displayPath(`/${path}`)}`
      nothing ??= new BackupError('NOTHING_FOUND', message)
      return
    }
    compared += 1
    const { staging } = configuration
    if (isUnified) await showUnified(context, { staging, set: open.versions.set, sides, path })
    else {
      const { added, removed, changed, same, unseen } = await compare(job, { open, sides })
      if (unseen > 0) isPartial = true
      held += added + removed + changed + same + unseen
    }
  })
  if (compared === 0 && nothing !== undefined) throw nothing
  if (held === 0 && words.path !== '' && !isGiven(context.values, 'unified')) {
    throw new BackupError('NOTHING_FOUND', `neither side holds ${displayPath(`/${words.path}`)}`, {
      hint: 'paths are those of the source; `backup find` looks in all generations',
    })
  }
  return isPartial ? 3 : 0
}

function readWords({ values, positionals }: CommandContext): Words {
  const [before, second = LIVE, third, ...others] = positionals
  // No generation has a slash in its name.
  const isPath = third === undefined && second.includes('/')
  const [after, path] = isPath ? [LIVE, second] : [second, third]
  if (before === undefined || before === '' || others.length > 0) {
    throw new BackupError('USAGE', 'expected one or two generations, and perhaps a path', {
      hint: 'see `backup diff --help`',
    })
  }
  if (before === LIVE && after === LIVE) {
    throw new BackupError('USAGE', 'live is what it is compared with', {
      hint: 'name a generation: `backup diff latest live`',
    })
  }
  if (before === LIVE || after === LIVE) {
    const name = ['target', 'machine'].find((one) => values[one] !== undefined)
    if (name !== undefined) {
      throw new BackupError('USAGE', `--${name} and live do not go together`, {
        hint: 'compare two exports, or a generation that is known here with live',
      })
    }
  }
  if (isGiven(values, 'unified') && isGiven(values, 'json')) {
    throw new BackupError('USAGE', '--unified and --json do not go together')
  }
  if (isGiven(values, 'unified') && path === undefined) {
    throw new BackupError('USAGE', '--unified shows one file: name it')
  }
  const directory = path === undefined ? '' : argumentPath(path, process.cwd()).replace(/^\/+/, '')
  return { before, after, path: directory }
}

/** The generations that are meant, of this set; an error where it has none of that name. */
function sidesOf(job: Job, open: OpenSet): Sides | BackupError {
  try {
    return {
      before: stampOf(job, { open, word: job.words.before }),
      after: stampOf(job, { open, word: job.words.after }),
    }
  } catch (error) {
    if (error instanceof BackupError && error.code === 'NOTHING_FOUND') return error
    throw error
  }
}

function stampOf(
  { context, configuration }: Job,
  { open, word }: { readonly open: OpenSet; readonly word: string },
): Side {
  const { set, generations } = open.versions
  if (word === LIVE) return LIVE
  const tag = readMarks(configuration.staging).tags.find(({ name }) => name === word)
  if (tag !== undefined && tag.set !== set) {
    throw new BackupError('NOTHING_FOUND', `${word} is a generation of ${tag.set}, not of ${set}`)
  }
  const places = generations.map(({ stamp, isSuspect }) => ({ set, stamp, isSuspect }))
  const date = tag?.stamp ?? word
  const [picked] = pickExports(places, date, { nowMs: context.now() })
  assert(picked !== undefined, 'where nothing can be picked, that is thrown')
  return picked.stamp
}

async function compare(
  job: Job,
  { open, sides }: { readonly open: OpenSet; readonly sides: Sides },
): Promise<Comparison> {
  const { context, configuration, words } = job
  const { reporter, signal, values } = context
  const { versions, isOnly } = open
  const { set } = versions
  const isList = isGiven(values, 'list')
  const isTurned = sides.before === LIVE
  const onDifference = (found: Difference): void => {
    const difference = isTurned ? turned(found) : found
    const name = displayPath(difference.path)
    reporter.print(isList ? name : differenceLine(difference))
    reporter.report(resultOf(set, difference))
  }
  if (!isOnly && !isList) reporter.print(`${set}: ${sides.before} → ${sides.after}`)
  const compared = { versions, path: words.path, onDifference }
  const stamp = isTurned ? sides.after : sides.before
  const isLive = isTurned || sides.after === LIVE
  const comparison = isLive
    ? await compareWithLive(compared, { configuration, set: setOf(job, set), stamp, signal })
    : compareGenerations(compared, { before: stamp, after: sides.after })
  tellComparison(job, { set, sides, comparison, isTurned })
  return comparison
}

function setOf({ configuration }: Job, name: string) {
  const set = configuration.backupSets.find((one) => one.name === name)
  if (set !== undefined) return set
  throw new BackupError('NOTHING_FOUND', `the set ${name} is not configured any more`, {
    hint: 'compare two of its generations with each other',
  })
}

/** The other way round: what is new on one side is gone on the other. */
function turned({ kind, path, before, after, changes }: Difference): Difference {
  const opposite = kind === 'added' ? 'removed' : kind === 'removed' ? 'added' : kind
  return { kind: opposite, path, before: after, after: before, changes }
}

function differenceLine({ kind, path, before, after, changes }: Difference): string {
  const start = `${MARKS[kind]} ${displayPath(path)}`
  if (before === undefined || after === undefined) {
    const version = before ?? after
    return version === undefined ? start : `${start}: ${versionText(version)}`
  }
  return `${start}: ${changes.map((change) => changeText(change, { before, after })).join(', ')}`
}

function changeText(
  change: Change,
  { before, after }: { readonly before: Version; readonly after: Version },
): string {
  switch (change) {
    case 'type':
      return `${before.type} → ${after.type}`
    case 'size':
      return `size ${formatSize(before.sizeBytes ?? 0)} → ${formatSize(after.sizeBytes ?? 0)}`
    case 'time':
      return `time ${timeText(before)} → ${timeText(after)}`
    case 'mode':
      return `mode ${before.mode.toString(8)} → ${after.mode.toString(8)}`
    case 'owner':
      return `owner ${before.uid}:${before.gid} → ${after.uid}:${after.gid}`
    case 'target':
      return 'leads elsewhere'
    case 'attributes':
      return 'attributes, ACLs, flags or time of birth'
  }
}

function timeText({ mtimeNs }: Version): string {
  return formatStamp(Number(mtimeNs / 1_000_000n))
}

function resultOf(set: string, { kind, path, before, after, changes }: Difference) {
  return {
    kind: 'result' as const,
    command: command.name,
    set,
    difference: kind,
    ...pathFacts(path),
    changes: kind === 'changed' ? changes : undefined,
    before: before === undefined ? undefined : versionFacts(before),
    after: after === undefined ? undefined : versionFacts(after),
  }
}

function tellComparison(
  { context: { reporter, values } }: Job,
  {
    set,
    sides,
    comparison,
    isTurned,
  }: {
    readonly set: string
    readonly sides: Sides
    readonly comparison: Comparison
    readonly isTurned: boolean
  },
): void {
  const { changed, same, unseen, unseenPlaces } = comparison
  const [added, removed] = isTurned
    ? [comparison.removed, comparison.added]
    : [comparison.added, comparison.removed]
  if (unseen > 0) {
    const places = unseenPlaces.map(({ path, why }) => `/${displayPath(path)}: ${displayText(why)}`)
    const shown = places.slice(0, PLACES_SHOWN).join('; ')
    const more = places.length > PLACES_SHOWN ? ` and ${places.length - PLACES_SHOWN} more` : ''
    const message = `${set}: ${unseen} paths are known of one side only: ${shown}${more}`
    reporter.report({ kind: 'notice', level: 'warning', code: 'UNSEEN', message })
  }
  if (!isGiven(values, 'list')) {
    const not = unseen === 0 ? '' : `, ${unseen} not known of one side`
    reporter.tell(`${added} added, ${removed} removed, ${changed} changed, ${same} the same${not}`)
  }
  const counts = { added, removed, changed, same, unseen }
  const places = unseenPlaces.map(({ path, why }) => ({ ...pathFacts(`/${path}`), why }))
  const exitCode = unseen > 0 ? 3 : 0
  const facts = { set, ...sides, ...counts, unseenPlaces: places, exitCode }
  reporter.report({ kind: 'result', command: command.name, ...facts })
}
