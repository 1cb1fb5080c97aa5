// `backup why PATH`: the rule that takes or leaves out a path, whether it is there now, and which
// collections hold it.
//
// Parses and tells; lib/work/why.ts finds out. Changes nothing. Exports are not looked at, and that
// is said. Throws USAGE, NOTHING_FOUND for a path that no set takes and no collection holds, and
// what loading the configuration throws.

import { resolve } from 'node:path'
import { BackupError } from '../lib/errors.ts'
import { formatSize } from '../lib/model/amount.ts'
import { reasonText } from '../lib/model/filter.ts'
import { displayPath, displayText, type RawPath, rawPathFromText } from '../lib/model/raw-path.ts'
import { formatStamp } from '../lib/model/stamp.ts'
import type { Explanation } from '../lib/work/filter-walk.ts'
import {
  type CollectionRun,
  explainInSet,
  nearestSource,
  type PathFacts,
  type WhyAnswer,
} from '../lib/work/why.ts'
import { chosenSets } from './chosen.ts'
import { type Command, type CommandContext, isGiven, textOptions } from './command.ts'

/** Each is a catalog to read, which for a large set takes seconds. */
const COLLECTIONS_READ = 10

export const command: Command = {
  name: 'backup why',
  summary: 'say which rule takes or leaves out a path, and which collections hold it',
  usage: `Usage: backup why PATH [--set NAME…] [--all]

Says of each set whether PATH is in one of its sources (also through a symbolic link), which rule
takes it or leaves it or a directory above it out, whether it is there now, and which collections
in staging hold it, newest first. Exports on targets are not looked at. A slash at the end makes a
PATH that is not there a directory.

  --set NAME      only this set (again for more; default: all)
  --all           read the catalogs of all collections, not only of the newest ${COLLECTIONS_READ}
`,
  positionals: true,
  options: { set: { type: 'string', multiple: true }, all: { type: 'boolean' } },
  run: async (context) => {
    const [word, ...others] = context.positionals
    if (word === undefined || word === '' || others.length > 0) {
      throw new BackupError('USAGE', 'expected one path', { hint: 'see `backup why --help`' })
    }
    const configuration = await context.loadConfiguration()
    const sets = chosenSets(configuration, textOptions(context.values, 'set'))
    const path = rawPathFromText(resolve(word))
    const collections = isGiven(context.values, 'all') ? undefined : COLLECTIONS_READ
    const answers = sets
      .map((set) => {
        const isDirectory = word.endsWith('/')
        return explainInSet({ configuration, set, path, isDirectory, collections })
      })
      .filter(({ source, runs }) => source !== undefined || runs.some(isHeld))
    if (answers.length === 0) throw notFound(path, nearestSource(sets, path))
    tell(context, path, answers)
    return 0
  },
}

function isHeld({ state }: CollectionRun): boolean {
  return state === 'held'
}

function notFound(path: RawPath, nearest: ReturnType<typeof nearestSource>): BackupError {
  const message = `no set takes ${displayPath(path)}, and no collection holds it`
  if (nearest === undefined) return new BackupError('NOTHING_FOUND', message)
  const { set, source } = nearest
  const hint = `the nearest source is ${displayPath(source) || '/'}, of the set ${set}`
  return new BackupError('NOTHING_FOUND', message, {
    hint,
    facts: { set, source: displayPath(source) || '/' },
  })
}

function tell({ reporter }: CommandContext, path: RawPath, answers: readonly WhyAnswer[]): void {
  const now = answers[0]?.now
  const there = now === undefined ? 'not there now' : `there now: ${factsText(now)}`
  reporter.print(`${displayPath(path)}: ${there}`)
  for (const answer of answers) {
    for (const line of answerLines(answer, path)) reporter.print(line)
  }
  reporter.report({
    kind: 'result',
    command: command.name,
    path: displayPath(path),
    now,
    sets: answers.map(answerFacts),
    exitCode: 0,
  })
}

function answerLines(answer: WhyAnswer, path: RawPath): string[] {
  const { set, collectedAs, runs, collectionsRead, collectionsThere } = answer
  const link = collectedAs === path ? '' : `, collected as ${displayPath(collectedAs)}`
  const lines = [`${set}: ${ruleText(answer)}${link}`]
  if (collectionsThere === 0) return [...lines, '  no collection in staging yet']
  const count =
    collectionsRead < collectionsThere
      ? `the newest ${collectionsRead} of ${collectionsThere} collections (--all reads every one)`
      : `all ${collectionsThere} collections`
  return [...lines, `  in ${count}; exports are not looked at:`, ...runs.map(runLine)]
}

function ruleText({ source, unreadable, collectedAs, rule }: WhyAnswer): string {
  if (source === undefined) return 'in none of its sources now'
  if (rule === undefined) {
    return `in the source ${displayPath(source)}, which cannot be read now: ${unreadable}`
  }
  const reason = reasonText(rule.reason)
  if (rule.taken) {
    return rule.reason.kind === 'source'
      ? `taken: ${reason}, and no rule leaves it out`
      : `taken by ${reason}, in the source ${displayPath(source)}`
  }
  const above = rule.at === collectedAs ? '' : ` with ${displayPath(rule.at)}`
  return `left out${above}: ${reason}`
}

function runLine({ state, newest, oldest, count, facts, why }: CollectionRun): string {
  const where = count === 1 ? newest : `${oldest}–${newest} (${count})`
  switch (state) {
    case 'held': {
      const text = facts === undefined ? '' : `: ${factsText(facts)}`
      return `    ${count === 1 ? 'in' : 'same in'} ${where}${text}`
    }
    case 'absent':
      return `    not in ${where}`
    case 'missing':
      return `    missing in ${where}: ${displayText(why ?? '')}`
    case 'damaged':
      return `    not known of ${where}: the catalog is damaged`
  }
}

function factsText({ type, sizeBytes, mtimeMs }: PathFacts): string {
  const size = sizeBytes === undefined ? '' : `, ${formatSize(sizeBytes)}`
  return `${type}${size}, changed ${formatStamp(mtimeMs)}`
}

function answerFacts(answer: WhyAnswer): Readonly<Record<string, unknown>> {
  const { now, source, collectedAs, rule, ...facts } = answer
  return {
    ...facts,
    source: source === undefined ? undefined : displayPath(source),
    collectedAs: displayPath(collectedAs),
    taken: rule?.taken ?? false,
    rule: rule === undefined ? undefined : ruleFacts(rule),
  }
}

function ruleFacts({ at, reason }: Explanation): Readonly<Record<string, unknown>> {
  const { kind, rule, file } = reason
  const place = file === undefined ? {} : { file: displayPath(file.path), line: file.line }
  return { at: displayPath(at), kind, rule, ...place }
}
