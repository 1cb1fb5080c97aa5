#!/usr/bin/env node
// The program: picks the command, parses its options, runs it, and exits.
//
// The only catch, the only printer of errors (worded by voice.ts), the only exit code. The name it
// was started by picks the command (`backup-collect`), or the first word after `backup` (`backup
// collect`). Commands are loaded only when they are asked for.

import { readFileSync } from 'node:fs'
import { homedir, hostname } from 'node:os'
import { basename, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { BackupError, systemCode, worstExitCode } from '../lib/errors.ts'
import type { ExitCode } from '../lib/errors.ts'
import {
  findConfiguration,
  loadConfiguration,
  SYSTEM_CONFIGURATION,
} from '../lib/machine/config.ts'
import { refusesInterruption, runEndings } from '../lib/machine/endings.ts'
import { nearestWord } from '../lib/model/nearest.ts'
import { COMMON_OPTIONS, COMMON_USAGE, isGiven, textOption } from './command.ts'
import type { Command, CommandContext, Options, Values } from './command.ts'
import { createReporter } from './reporter.ts'
import type { Reporter } from './reporter.ts'
import { askSecret, askText, confirm, isInteractive } from './terminal.ts'
import { errorJson, errorLines, exitCodeOf, jsonLine, safeText } from './voice.ts'

/** A verb, and how its file is loaded. The empty verb is `backup` alone. */
const COMMANDS: Readonly<Record<string, () => Promise<{ readonly command: Command }>>> = {
  '': () => import('./backup.ts'),
  collect: () => import('./backup-collect.ts'),
  external: () => import('./backup-external.ts'),
  restore: () => import('./backup-restore.ts'),
  verify: () => import('./verify.ts'),
  mount: () => import('./mount.ts'),
  status: () => import('./status.ts'),
  why: () => import('./why.ts'),
  find: () => import('./find.ts'),
  diff: () => import('./diff.ts'),
  accept: () => import('./accept.ts'),
  prune: () => import('./prune.ts'),
  lock: () => import('./lock.ts'),
  tag: () => import('./tag.ts'),
  drives: () => import('./drives.ts'),
  drill: () => import('./drill.ts'),
  repair: () => import('./repair.ts'),
  recover: () => import('./recover.ts'),
  schedule: () => import('./schedule.ts'),
  doctor: () => import('./doctor.ts'),
  init: () => import('./init.ts'),
  keys: () => import('./keys.ts'),
}

/** `backup-collect` is `backup collect`: these verbs are programs of their own too. */
const PROGRAM_VERBS = ['collect', 'external', 'restore']

/** `backup help VERB` */
const HELP: CommandLine = { name: 'backup', options: {}, positionals: true }

const [, programPath = '', ...programArguments] = process.argv
const interruption = new AbortController()
let outputLost = false

for (const stream of [process.stdout, process.stderr]) {
  // A reader that has seen enough (`| head`) is no reason to stop a backup, nor to complain.
  // A full disk under a log is none either, but the exit code has to tell.
  stream.on('error', (error) => {
    if (systemCode(error) === 'EPIPE') return
    if (systemCode(error) === undefined) throw error
    outputLost = true
  })
}
for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  // The second time nobody wants to wait for a tidy end; what is left the next run sweeps.
  process.on(name, () => {
    if (refusesInterruption()) return
    if (interruption.signal.aborted) process.exit(130)
    interruption.abort()
  })
}
const exitCode = await main(programPath, programArguments)
for (const error of await runEndings()) {
  for (const line of errorLines({ name: 'backup', error })) process.stderr.write(`${line}\n`)
}
for (const stream of [process.stdout, process.stderr]) await allWritten(stream)
process.exit(outputLost ? worstExitCode([exitCode, 1]) : exitCode)

/** What waits for the reader of a pipe would be lost by exiting. */
async function allWritten(stream: NodeJS.WriteStream): Promise<void> {
  if (stream.writableLength === 0 || stream.destroyed) return
  await new Promise<void>((resolve) => {
    stream.once('close', resolve)
    stream.write('', () => resolve())
  })
}

async function main(path: string, words: readonly string[]): Promise<ExitCode> {
  const run: Run = { name: 'backup', reporter: undefined }
  try {
    const code = await runCommand({ ...pickVerb(path, words), run })
    run.reporter?.finish()
    return interruption.signal.aborted ? worstExitCode([code, 130]) : code
  } catch (error) {
    run.reporter?.finish()
    return printError(interruption.signal.aborted ? asInterruption(error) : error, run.name, words)
  }
}

/** What is known of the run when it fails. */
interface Run {
  name: string
  reporter: Reporter | undefined
}

/** What a command throws because it was told to stop is no failure of its own. */
function asInterruption(error: unknown): BackupError {
  if (error instanceof BackupError && error.code === 'INTERRUPTED') return error
  return new BackupError('INTERRUPTED', 'interrupted', { cause: error })
}

function printError(error: unknown, name: string, words: readonly string[]): ExitCode {
  if (words.includes('--json')) process.stdout.write(`${errorJson(error)}\n`)
  for (const line of errorLines({ name, error })) process.stderr.write(`${line}\n`)
  return exitCodeOf(error)
}

/**
 * The verb by the program's name, else by the first word that belongs to no option of every
 * command, and the words that are left.
 */
function pickVerb(
  path: string,
  words: readonly string[],
): { readonly verb: string; readonly rest: readonly string[] } {
  const program = basename(path).replace(/^backup-/, '')
  if (PROGRAM_VERBS.includes(program)) return { verb: program, rest: words }
  const at = verbIndex(words)
  const verb = words[at] ?? ''
  return { verb, rest: at === -1 ? words : words.toSpliced(at, 1) }
}

/** -1 where an option of `backup` alone comes first, or no word at all. */
function verbIndex(words: readonly string[]): number {
  const { tokens } = parseArgs({
    args: [...words],
    options: COMMON_OPTIONS,
    strict: false,
    tokens: true,
  })
  const first = tokens.find((token) => {
    return token.kind !== 'option' || !Object.hasOwn(COMMON_OPTIONS, token.name)
  })
  return first?.kind === 'positional' ? first.index : -1
}

async function runCommand({
  verb,
  rest,
  run,
}: {
  readonly verb: string
  readonly rest: readonly string[]
  readonly run: Run
}): Promise<ExitCode> {
  if (verb === 'help') {
    const { values, positionals } = parseCommandLine(rest, HELP)
    return await printHelp(positionals[0] ?? '', values)
  }
  const command = await loadCommand(verb)
  run.name = command.name
  const { values, positionals } = parseCommandLine(rest, command)
  if (isGiven(values, 'help')) return await printHelp(verb, values)
  if (isGiven(values, 'version')) return printVersion(values)

  run.reporter = makeReporter(command.name, values)
  return await command.run(makeContext({ values, positionals, reporter: run.reporter }))
}

/** What parsing needs to know of a command. */
type CommandLine = Pick<Command, 'name' | 'options' | 'positionals'>

async function loadCommand(verb: string): Promise<Command> {
  const load = Object.hasOwn(COMMANDS, verb) ? COMMANDS[verb] : undefined
  if (load !== undefined) return (await load()).command
  const meant = nearestWord({ word: verb, known: [...verbs(), 'help'] })
  throw new BackupError('USAGE', `unknown command "${verb}"`, {
    hint: meant === undefined ? 'see `backup help`' : `did you mean \`backup ${meant}\`?`,
  })
}

function verbs(): string[] {
  return Object.keys(COMMANDS).filter((verb) => verb !== '')
}

/**
 * @throws USAGE for what the command does not know; only names of options are quoted, never their
 * values
 */
function parseCommandLine(
  words: readonly string[],
  command: CommandLine,
): { readonly values: Values; readonly positionals: readonly string[] } {
  const options: Options = { ...COMMON_OPTIONS, ...command.options }
  checkOptionNames(words, options, command)
  try {
    const allowPositionals = command.positionals ?? false
    return parseArgs({ args: [...words], options, strict: true, allowPositionals })
  } catch (error) {
    const code = systemCode(error) ?? ''
    if (!(error instanceof Error) || !code.startsWith('ERR_PARSE_ARGS_')) throw error
    // Its first sentence; a dot in a word ends none.
    const message = error.message.split(/\.(?: |$)|\n/)[0] ?? ''
    const isAlone = command.name === 'backup' && code === 'ERR_PARSE_ARGS_UNEXPECTED_POSITIONAL'
    const verb = isAlone ? words.find((word) => verbs().includes(word)) : undefined
    throw new BackupError('USAGE', message.slice(0, 1).toLowerCase() + message.slice(1), {
      hint:
        verb === undefined ? seeHelp(command) : `\`backup ${verb} …\`: its options come after it`,
      cause: error,
    })
  }
}

function seeHelp({ name }: CommandLine): string {
  return `see \`${name} --help\``
}

function checkOptionNames(words: readonly string[], options: Options, command: CommandLine): void {
  const { tokens } = parseArgs({ args: [...words], options, strict: false, tokens: true })
  const known = Object.keys(options)
  for (const token of tokens) {
    if (token.kind !== 'option' || known.includes(token.name)) continue
    const isLong = token.rawName.startsWith('--')
    const meant = isLong ? nearestWord({ word: token.name, known }) : undefined
    throw new BackupError('USAGE', `unknown option ${token.rawName}`, {
      hint: meant === undefined ? seeHelp(command) : `did you mean --${meant}?`,
    })
  }
}

async function printHelp(verb: string, values: Values): Promise<ExitCode> {
  const { name, usage } = await loadCommand(verb)
  const commands = verb === '' ? `${await listCommands()}\n` : ''
  const text = `${usage.trimEnd()}\n\n${commands}${COMMON_USAGE}`
  const isJson = isGiven(values, 'json')
  process.stdout.write(isJson ? `${jsonLine({ kind: 'help', command: name, text })}\n` : text)
  return 0
}

async function listCommands(): Promise<string> {
  let list = 'Commands:\n'
  for (const verb of verbs()) {
    const { summary } = await loadCommand(verb)
    list += `  backup ${verb.padEnd(10)} ${summary}\n`
  }
  return `${list}  backup ${'help'.padEnd(10)} this text, or that of a command\n`
}

function printVersion(values: Values): ExitCode {
  const file = readFileSync(new URL('../../package.json', import.meta.url), 'utf8')
  const { version } = JSON.parse(file) as { version: string }
  const isJson = isGiven(values, 'json')
  process.stdout.write(`${isJson ? jsonLine({ kind: 'version', version }) : `backup ${version}`}\n`)
  return 0
}

function makeReporter(name: string, values: Values): Reporter {
  const { stdout, stderr } = process
  return createReporter({
    name,
    json: isGiven(values, 'json'),
    quiet: isGiven(values, 'quiet'),
    verbose: isGiven(values, 'verbose'),
    now: Date.now,
    writeOut: (text) => void stdout.write(text),
    writeError: (text) => void stderr.write(text),
    columns: stderr.isTTY ? () => stderr.columns || 80 : undefined,
  })
}

function makeContext({
  values,
  positionals,
  reporter,
}: {
  readonly values: Values
  readonly positionals: readonly string[]
  readonly reporter: Reporter
}): CommandContext {
  const { stdin, stdout, stderr } = process
  const environment = { ...process.env }
  const home = homedir()
  const hostName = hostname()
  const terminal = { stdin, stderr, signal: interruption.signal }
  const load = async () => {
    const option = textOption(values, 'config')
    const system = SYSTEM_CONFIGURATION
    const path = resolve(await findConfiguration({ option, environment, home, system }))
    return await loadConfiguration({ path, environment, home, hostName })
  }
  return {
    values,
    positionals,
    environment,
    home,
    hostName,
    reporter,
    loadConfiguration: load,
    now: Date.now,
    stdin,
    stdout,
    hasTerminal: isInteractive(terminal),
    confirm: async (question) => {
      reporter.finish()
      return await confirm(safeText(question), terminal)
    },
    ask: async (question) => {
      reporter.finish()
      return await askText(safeText(question), terminal)
    },
    askSecret: async (prompt) => {
      reporter.finish()
      return await askSecret(safeText(prompt), terminal)
    },
    signal: interruption.signal,
  }
}
