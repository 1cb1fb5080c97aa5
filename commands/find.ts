// `backup find PATTERN…`: every path that any known generation held, its versions, and where each
// can be had.
//
// Parses and tells; lib/work/find.ts looks it up in the version index, versions-source.ts opens
// that. Throws USAGE, NOTHING_FOUND where nothing fits, and what reading exports throws.

import { setImmediate as nextTurn } from 'node:timers/promises'
import { BackupError } from '../lib/errors.ts'
import type { ExitCode } from '../lib/errors.ts'
import { parseSize } from '../lib/model/amount.ts'
import { filterText } from '../lib/model/filter.ts'
import { displayPath, pathFacts, type RawPath, rawPathToBytes } from '../lib/model/raw-path.ts'
import type { Holder } from '../lib/work/coverage.ts'
import {
  findPaths,
  type FoundPath,
  narrowed,
  parseDateRange,
  type Search,
} from '../lib/work/find.ts'
import type { Versions } from '../lib/work/versions.ts'
import { argumentBytes } from './argument-path.ts'
import { type Command, type CommandContext, isGiven, textOption } from './command.ts'
import { holderReader, holdersText, runFacts, runText } from './version-text.ts'
import { eachSet, VERSION_OPTIONS } from './versions-source.ts'

export const command: Command = {
  name: 'backup find',
  summary: 'find paths in all collections and exports, deleted ones too',
  usage: `Usage: backup find PATTERN… [--set NAME…] [-i] [--date-range FROM..TO] [--deleted]
                   [--type f|d|l] [--larger SIZE] [--smaller SIZE] [--print0]

Looks through everything that was ever collected and is still in staging or on a target, also
on one that is not plugged in: it is all known here. Prints each path, in which generations it
was the same, and where these can be had.

A PATTERN is a glob for the whole name, as in find -name: report.odt, *.iso, *invoice*. With a
slash it is one for the whole path, or the end of it: /home/*/mail/**, src/*.c. Quote it.

  --set NAME          only this set (again for more; default: all)
  -i, --ignore-case   capital and small letters are the same
  --date-range A..B   only generations of these dates: 2025-03..2025-04-15, 2025-03.., ..2025-04
  --type T            f: files, d: directories, l: symbolic links
  --larger SIZE       only files larger than this in some generation: 100MiB
  --smaller SIZE      … or smaller
  --deleted           only what the newest generation does not have
  --print0            only the paths, each ended by a zero byte, for xargs -0
  --target NAME       read the catalogs of the exports on this target instead, which needs the
                      identity: on a new machine, or for exports of another one
  --machine NAME      with --target: of this machine
  --identity FILE     with --target: the identity
  --passphrase-file FILE  its passphrase, instead of asking
`,
  positionals: true,
  options: {
    ...VERSION_OPTIONS,
    'ignore-case': { type: 'boolean', short: 'i' },
    'date-range': { type: 'string' },
    type: { type: 'string' },
    larger: { type: 'string' },
    smaller: { type: 'string' },
    deleted: { type: 'boolean' },
    print0: { type: 'boolean' },
  },
  run,
}

/** Paths are written together: one by one, a hundred thousand take seconds. */
const PATHS_TOGETHER = 512

async function run(context: CommandContext): Promise<ExitCode> {
  const { values, positionals, reporter } = context
  const search = readSearch(context)
  const dates = textOption(values, 'date-range')
  const range = dates === undefined ? undefined : parseDateRange(dates)
  if (isGiven(values, 'print0') && isGiven(values, 'json')) {
    throw new BackupError('USAGE', '--print0 and --json do not go together')
  }
  const configuration = await context.loadConfiguration()
  const isRead = readerOf(context)
  let found = 0
  await eachSet({ context, configuration }, async ({ versions, holders, isOnly }) => {
    const searched = range === undefined ? versions : narrowed(versions, range)
    const tell = isGiven(values, 'print0')
      ? printZero(context)
      : tellPaths(context, { versions, holders, isOnly })
    for (const path of findPaths(searched, search)) {
      found += 1
      tell.path(path)
      if (found % PATHS_TOGETHER !== 0) continue
      tell.end()
      // Whoever reads it has seen enough.
      if (!(await isRead())) return
    }
    tell.end()
  })
  reporter.report({ kind: 'result', command: command.name, found, exitCode: found > 0 ? 0 : 1 })
  if (found > 0) return 0
  const sought = positionals.map((pattern) => displayPath(argumentBytes(pattern))).join(' ')
  throw new BackupError('NOTHING_FOUND', `nothing fits ${sought}`, {
    hint:
      'a pattern fits the whole name: *word* finds names with a word in them; `backup find '
      + '--target NAME` reads what only a target knows',
  })
}

function readSearch({ values, positionals }: CommandContext): Search {
  if (positionals.length === 0 || positionals.includes('')) {
    throw new BackupError('USAGE', 'expected a pattern', { hint: 'see `backup find --help`' })
  }
  const type = textOption(values, 'type')
  if (type !== undefined && type !== 'f' && type !== 'd' && type !== 'l') {
    throw new BackupError('USAGE', `--type is f, d or l, not ${type}`)
  }
  return {
    patterns: positionals.map((pattern) => filterText(argumentBytes(pattern))),
    ignoreCase: isGiven(values, 'ignore-case'),
    type,
    largerBytes: readSize(textOption(values, 'larger'), '--larger'),
    smallerBytes: readSize(textOption(values, 'smaller'), '--smaller'),
    deleted: isGiven(values, 'deleted'),
  }
}

function readSize(text: string | undefined, option: string): number | undefined {
  if (text === undefined) return undefined
  const sizeBytes = parseSize(text)
  if (sizeBytes !== undefined) return sizeBytes
  throw new BackupError('USAGE', `${option}: ${text} is no size`, {
    hint: 'such as 500KiB, 1.5 GB',
  })
}

interface Teller {
  readonly path: (found: FoundPath) => void
  readonly end: () => void
}

/** Waits for the reader of a pipe, so that not everything waits in memory; false once it left. */
function readerOf({ stdout, signal }: CommandContext): () => Promise<boolean> {
  let hasLeft = false
  stdout.on('error', () => {
    hasLeft = true
  })
  return async () => {
    if (stdout.writableNeedDrain && !hasLeft) {
      await new Promise<void>((resolve) => {
        const done = (): void => {
          for (const event of TAKEN) stdout.off(event, done)
          signal.removeEventListener('abort', done)
          resolve()
        }
        for (const event of TAKEN) stdout.on(event, done)
        signal.addEventListener('abort', done)
      })
    } else await nextTurn()
    if (signal.aborted) throw new BackupError('INTERRUPTED', 'interrupted')
    return !hasLeft
  }
}

/** What ends waiting for a reader. */
const TAKEN = ['drain', 'close', 'error']

function printZero({ stdout }: CommandContext): Teller {
  let paths: RawPath[] = []
  return {
    path: ({ path }) => void paths.push(`${path}\0`),
    end: () => {
      stdout.write(rawPathToBytes(paths.join('')))
      paths = []
    },
  }
}

function tellPaths(
  { reporter }: CommandContext,
  {
    versions: { set },
    holders,
    isOnly,
  }: { readonly versions: Versions; readonly holders: readonly Holder[]; readonly isOnly: boolean },
): Teller {
  const holdersAt = holderReader(holders, set)
  const lines: string[] = []
  const end = (): void => {
    if (lines.length > 0) reporter.print(lines.join('\n'))
    lines.length = 0
  }
  const path = ({ path, runs }: FoundPath): void => {
    const told = runs.map((run) => ({ run, at: run.version === undefined ? [] : holdersAt(run) }))
    const name = displayPath(path)
    lines.push(isOnly ? name : `${name}  (${set})`)
    for (const { run, at } of told) {
      lines.push(`    ${runText(run)}${at.length === 0 ? '' : `; ${holdersText(at)}`}`)
    }
    const facts = { ...pathFacts(path), runs: told.map(({ run, at }) => runFacts(run, at)) }
    reporter.report({ kind: 'result', command: command.name, set, ...facts })
  }
  return { path, end }
}
