// Runs the built program as a user would: its exit status and what it wrote.

import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

export const MAIN = fileURLToPath(new URL('../../commands/main.js', import.meta.url))

export interface Outcome {
  readonly status: number | null
  readonly stdout: string
  readonly stderr: string
}

export interface RunOptions {
  /** All of the child's environment besides PATH. HOME should be a scratch directory. */
  readonly environment: Readonly<Record<string, string>>
  readonly workingDirectory?: string
  readonly input?: string
  /** Another program than node on MAIN, such as a link to it. */
  readonly program?: readonly string[]
  /** What is written, as it comes. */
  readonly heard?: (text: string) => void
}

export async function runCli(words: readonly string[], options: RunOptions): Promise<Outcome> {
  const [file = '', ...first] = options.program ?? [process.execPath, MAIN]
  const child = spawn(file, [...first, ...words], {
    env: { PATH: process.env['PATH'] ?? '', ...options.environment },
    ...(options.workingDirectory === undefined ? {} : { cwd: options.workingDirectory }),
    stdio: ['pipe', 'pipe', 'pipe'],
  })
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text
    options.heard?.(text)
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text
    options.heard?.(text)
  })
  child.stdin.on('error', () => {})
  child.stdin.end(options.input ?? '')
  return await new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (status) => resolve({ status, stdout, stderr }))
  })
}
