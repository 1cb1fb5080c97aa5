// Runs a command in this process at a time that the test says: what the built program cannot be
// told.

import type { ExitCode } from '../../lib/errors.ts'
import { loadConfiguration } from '../../lib/machine/config.ts'
import type { Command, CommandContext, Values } from '../../commands/command.ts'
import { createReporter } from '../../commands/reporter.ts'
import type { Scenario } from './scenario.ts'

export interface CommandOutcome {
  readonly status: ExitCode
  readonly stdout: string
  readonly stderr: string
}

/** `values` are the options: `{ force: true }`. Every call of the clock is a second later. */
export async function runCommand(
  command: Command,
  {
    scenario: { home, configuration },
    values = {},
    nowMs,
    talk = {},
  }: {
    readonly scenario: Scenario
    readonly values?: Values
    readonly nowMs: number
    /** Somebody at a terminal. */
    readonly talk?: Partial<Pick<CommandContext, 'hasTerminal' | 'confirm' | 'ask'>>
  },
): Promise<CommandOutcome> {
  let stdout = ''
  let stderr = ''
  let atMs = nowMs - 1000
  const now = (): number => (atMs += 1000)
  const reporter = createReporter({
    name: command.name,
    json: values['json'] === true,
    quiet: values['quiet'] === true,
    verbose: values['verbose'] === true,
    now: () => atMs,
    writeOut: (text) => {
      stdout += text
    },
    writeError: (text) => {
      stderr += text
    },
    columns: undefined,
  })
  const context: CommandContext = {
    values,
    positionals: [],
    environment: { HOME: home },
    home,
    hostName: 'tester',
    reporter,
    loadConfiguration: async () => {
      const environment = { HOME: home }
      return await loadConfiguration({ path: configuration, environment, home, hostName: 'tester' })
    },
    now,
    stdin: process.stdin,
    stdout: process.stdout,
    hasTerminal: false,
    confirm: async () => await Promise.resolve(false),
    ask: async () => await Promise.resolve(''),
    askSecret: async () => await Promise.reject(new Error('nobody is there to be asked')),
    signal: new AbortController().signal,
    ...talk,
  }
  const status = await command.run(context)
  return { status, stdout, stderr }
}
