// `backup tag`: a name for a generation. Each tag names one, and can be moved to another.
//
// lib/work/marks.ts keeps the tags. They protect nothing, and the output says so: `backup lock`
// does. Throws USAGE, NOTHING_FOUND, MARKS_DAMAGED, LOCKED and what loading the configuration
// throws.

import { BackupError } from '../lib/errors.ts'
import type { ExitCode } from '../lib/errors.ts'
import { MAX_NAME_LENGTH } from '../lib/model/names.ts'
import {
  changeMarks,
  findGeneration,
  isTagName,
  readMarks,
  withTag,
  withoutTag,
} from '../lib/work/marks.ts'
import { type Command, type CommandContext, isGiven } from './command.ts'

const NO_PROTECTION = 'a tag protects nothing: `backup lock` does'

export const command: Command = {
  name: 'backup tag',
  summary: 'name a generation, move a name, or list them',
  usage: `Usage: backup tag
       backup tag NAME SET STAMP
       backup tag NAME --remove

Without words lists the tags. With a name, a set and a stamp gives that generation the name; a tag
that names another one moves. STAMP is latest, or as much of the stamp as fits only one
generation: 2025-04-01. A tag protects nothing: backup lock does.

  --remove   take the name away; the generation stays
`,
  positionals: true,
  options: { remove: { type: 'boolean' } },
  run: async (context) => {
    const [name, set, date, ...rest] = context.positionals
    const isRemoval = isGiven(context.values, 'remove')
    if (name === undefined && !isRemoval) return await listTags(context)
    if (name !== undefined && isRemoval && set === undefined) return await removeTag(context, name)
    const isWhole = set !== undefined && date !== undefined && rest.length === 0
    if (name === undefined || isRemoval || !isWhole) {
      throw new BackupError('USAGE', 'tag takes NAME SET STAMP, NAME --remove, or no word at all', {
        hint: 'see `backup tag --help`',
      })
    }
    return await setTag(context, { name, set, date })
  },
}

async function listTags({ loadConfiguration, reporter }: CommandContext): Promise<ExitCode> {
  const { tags } = readMarks((await loadConfiguration()).staging)
  if (tags.length === 0) reporter.print('there are no tags')
  for (const { name, set, stamp } of tags) reporter.print(`${name}  ${set} ${stamp}`)
  if (tags.length > 0) reporter.tell(NO_PROTECTION)
  reporter.report({ kind: 'result', command: command.name, outcome: 'listed', tags })
  return 0
}

async function setTag(
  { values, loadConfiguration, reporter }: CommandContext,
  { name, ...named }: { readonly name: string; readonly set: string; readonly date: string },
): Promise<ExitCode> {
  if (!isTagName(name)) {
    throw new BackupError('USAGE', `"${name}" cannot be a tag`, {
      hint:
        `a tag is a letter, then letters, digits, _ and -, ${MAX_NAME_LENGTH} at most, all small, `
        + 'and not latest',
    })
  }
  const dryRun = isGiven(values, 'dry-run')
  const configuration = await loadConfiguration()
  const { staging } = configuration
  const { set, stamp, places } = await findGeneration(configuration, named)
  if (places.length === 0) {
    const message = `${set} ${stamp} is neither in staging nor on a target that is here now`
    reporter.report({ kind: 'notice', level: 'warning', code: 'NOT_SEEN', message })
  }
  const before = readMarks(staging).tags.find((tag) => tag.name === name)
  if (!dryRun) changeMarks(staging, (marks) => withTag(marks, { name, set, stamp }))
  const moved = before === undefined ? '' : `, and no longer ${before.set} ${before.stamp}`
  reporter.tell(`${name} ${dryRun ? 'would name' : 'names'} ${set} ${stamp}${moved}`)
  reporter.tell(NO_PROTECTION)
  const facts = { outcome: 'tagged', dryRun, name, set, stamp, before, places, protects: false }
  reporter.report({ kind: 'result', command: command.name, ...facts })
  return 0
}

async function removeTag(
  { values, loadConfiguration, reporter }: CommandContext,
  name: string,
): Promise<ExitCode> {
  const dryRun = isGiven(values, 'dry-run')
  const { staging } = await loadConfiguration()
  const tag = readMarks(staging).tags.find((other) => other.name === name)
  if (tag === undefined) throw new BackupError('NOTHING_FOUND', `there is no tag ${name}`)
  if (!dryRun) changeMarks(staging, (marks) => withoutTag(marks, name))
  const done = dryRun ? 'would name nothing' : 'names nothing'
  reporter.tell(`${name} ${done} any more; ${tag.set} ${tag.stamp} is not touched`)
  reporter.report({ kind: 'result', command: command.name, outcome: 'untagged', dryRun, ...tag })
  return 0
}
