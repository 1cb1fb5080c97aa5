// Questions on the terminal: a confirmation, a secret that is not echoed.
//
// Used by main.ts for CommandContext. Questions are written to standard error, so that standard
// output stays what was asked for. Throws USAGE where a secret is needed and nobody is there to
// type it, INTERRUPTED on ^C and ^D.

import { createInterface } from 'node:readline'
import { Writable } from 'node:stream'
import { BackupError } from '../lib/errors.ts'

export interface Terminal {
  readonly stdin: NodeJS.ReadStream
  readonly stderr: NodeJS.WriteStream
  readonly signal: AbortSignal
}

/** Whether there is somebody to ask. */
export function isInteractive({ stdin, stderr }: Terminal): boolean {
  return stdin.isTTY === true && stderr.isTTY === true
}

/** Whether the answer is y or yes; false without a terminal, and for everything else. */
export async function confirm(question: string, terminal: Terminal): Promise<boolean> {
  if (!isInteractive(terminal)) return false
  const answer = await ask({ prompt: `${question} [y/N] `, echo: true, terminal })
  return /^y(es)?$/i.test(answer.trim())
}

/** What is typed in answer to a question; empty without a terminal. */
export async function askText(question: string, terminal: Terminal): Promise<string> {
  if (!isInteractive(terminal)) return ''
  return await ask({ prompt: `${question} `, echo: true, terminal })
}

/** What is typed, without echo. */
export async function askSecret(prompt: string, terminal: Terminal): Promise<string> {
  if (isInteractive(terminal)) return await ask({ prompt, echo: false, terminal })
  throw new BackupError('USAGE', 'a passphrase is needed, and there is no terminal to ask on', {
    hint: 'give it with --passphrase-file FILE',
  })
}

async function ask({
  prompt,
  echo,
  terminal,
}: {
  readonly prompt: string
  readonly echo: boolean
  readonly terminal: Terminal
}): Promise<string> {
  const { stdin, stderr, signal } = terminal
  const silent = new Writable({ write: (_chunk, _encoding, done) => done() })
  // terminal: true even for the silent one: it switches off the echo of the terminal itself.
  const output = echo ? stderr : silent
  const lines = createInterface({ input: stdin, output, terminal: true, historySize: 0 })
  if (!echo) stderr.write(prompt)
  try {
    return await new Promise<string>((resolve, reject) => {
      const interrupt = () => reject(new BackupError('INTERRUPTED', 'interrupted'))
      lines.once('SIGINT', interrupt)
      lines.once('close', interrupt)
      signal.addEventListener('abort', interrupt, { once: true })
      lines.question(echo ? prompt : '', resolve)
    })
  } finally {
    lines.close()
    if (!echo) stderr.write('\n')
  }
}
