// Runs test files, each in a process of its own, and adds up what they say.
//
// usage: node dist/test/run.js [--limit SECONDS] [WORD…]
// A WORD chooses the test files whose path contains it, or is itself the path of one source file.
//
// uvu is green when a suite is never run, and when a `before` hook throws; so a file passes only
// if it says how many tests it has, has some, and all of them passed. The files are those of the
// source tree, not of dist/: what is left there of a deleted source never runs.

import { spawn } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** Long enough for a loop device and a few hundred megabytes, short enough to notice a hang. */
const LIMIT_MS = 10 * 60 * 1000

/** Time for the exit handlers of a test file that was told to stop. */
const GRACE_MS = 5000

/** Two: the machines that run this have two cores or more, and tests measure no time. */
const AT_ONCE = Math.min(2, availableParallelism())

/** Output that is kept of one test file: more than anyone reads, less than memory. */
const OUTPUT_CHARACTERS = 4 * 1024 * 1024

interface Result {
  readonly file: string
  readonly seconds: number
  readonly passed: number
  readonly failed: number
  readonly skips: readonly string[]
  /** Why it failed, when the output does not say so itself. */
  readonly why: string | undefined
  readonly output: string
}

interface Ended {
  readonly output: string
  readonly status: number | string
  readonly late: boolean
}

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..')
const running = new Set<number>()

async function main(): Promise<number> {
  const words = process.argv.slice(2)
  let limitMs = LIMIT_MS
  if (words[0] === '--limit') limitMs = 1000 * Number(words.splice(0, 2)[1])
  const files = testFiles(words)
  const results: Result[] = []
  const queue = [...files]
  const lane = async (): Promise<void> => {
    for (let file = queue.shift(); file !== undefined; file = queue.shift()) {
      const result = await runFile(file, limitMs)
      results.push(result)
      report(result)
    }
  }
  await Promise.all(Array.from({ length: AT_ONCE }, lane))
  return summary(results)
}

/** Paths of sources, relative to the root, in order. */
function testFiles(words: readonly string[]): string[] {
  if (words.length > 0 && words.every((word) => existsSync(join(root, word)))) return [...words]
  const names = readdirSync(join(root, 'test'), { recursive: true, encoding: 'utf8' })
  const files = names.filter((name) => name.endsWith('.test.ts')).map((name) => `test/${name}`)
  const chosen = files.filter((file) => words.every((word) => file.includes(word)))
  return chosen.sort()
}

async function runFile(file: string, limitMs: number): Promise<Result> {
  const startMs = performance.now()
  const { output, status, late } = await runProcess(file, limitMs)
  const seconds = (performance.now() - startMs) / 1000
  const count = (word: string): number =>
    Number(new RegExp(`^ {2}${word}: +([0-9]+)$`, 'm').exec(output)?.[1] ?? NaN)
  const total = count('Total')
  const passed = count('Passed') || 0
  const skips = output
    .split('\n')
    .filter((line) => line.startsWith('SKIP '))
    .map((l) => l.slice(5))
  const quiet = count('Skipped') || 0
  if (quiet > 0) skips.push(`${file}: ${quiet} tests marked skip, or not marked only`)
  let why: string | undefined
  if (late) why = `ran longer than ${limitMs / 1000} s and was stopped`
  else if (Number.isNaN(total)) why = 'ran no suite: no "Total:" line (is .run() called?)'
  else if (total === 0 && skips.length === 0) why = 'ran no test'
  else if (passed < total) why = `only ${passed} of ${total} tests passed`
  else if (status !== 0) why = `every test passed, but the process ended with ${status}`
  const failed = why === undefined ? 0 : Math.max(1, (total || 0) - passed)
  return { file, seconds, passed, failed, skips, why, output }
}

function runProcess(file: string, limitMs: number): Promise<Ended> {
  const script = join(root, 'dist', file.replace(/\.ts$/, '.js'))
  // A process group of its own, so that whatever a hanging test has started is stopped with it.
  const child = spawn(process.execPath, [script], {
    cwd: root,
    env: environment(),
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const group = child.pid
  if (group !== undefined) running.add(group)
  let output = ''
  let late = false
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8')
    stream.on('data', (text: string) => {
      if (output.length < OUTPUT_CHARACTERS) output += text
    })
  }
  const timer = setTimeout(() => {
    late = true
    signalGroup(group, 'SIGTERM')
    setTimeout(() => signalGroup(group, 'SIGKILL'), GRACE_MS).unref()
  }, limitMs)
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('exit', (status, signal) => {
      clearTimeout(timer)
      if (group !== undefined) running.delete(group)
      // What a test left running would keep the pipes open for ever.
      signalGroup(group, 'SIGKILL')
      setTimeout(() => child.stdout.destroy(), GRACE_MS).unref()
      setTimeout(() => child.stderr.destroy(), GRACE_MS).unref()
      child.once('close', () => resolve({ output, status: status ?? signal ?? 'nothing', late }))
    })
  })
}

/** Without colours, and without what would make the user's own configuration part of a test. */
function environment(): NodeJS.ProcessEnv {
  const kept = Object.entries(process.env).filter(
    ([name]) => !/^(BACKUP_|DBACKUP$|DDATA$|ZX_|FORCE_COLOR$|NODE_OPTIONS$)/.test(name),
  )
  return { ...Object.fromEntries(kept), NO_COLOR: '1' }
}

function signalGroup(group: number | undefined, signal: NodeJS.Signals): void {
  if (group === undefined) return
  try {
    process.kill(-group, signal)
  } catch {
    // It has ended already.
  }
}

function report(result: Result): void {
  const word = result.why === undefined ? 'ok  ' : 'FAIL'
  const seconds = result.seconds.toFixed(1).padStart(6)
  const passed = String(result.passed).padStart(4)
  const skipped = result.skips.length === 0 ? '' : `, ${result.skips.length} skipped`
  process.stdout.write(`${word} ${seconds} s ${passed} passed${skipped}  ${result.file}\n`)
  if (result.why === undefined) return
  process.stdout.write(`${result.output.trimEnd()}\n${result.file}: ${result.why}\n\n`)
}

function summary(results: readonly Result[]): number {
  const sum = (of: (result: Result) => number): number =>
    results.reduce((total, result) => total + of(result), 0)
  const bad = results.filter((result) => result.why !== undefined)
  const skips = results.flatMap((result) => result.skips)
  const strict = process.env['CI'] === 'true'
  process.stdout.write('\n')
  for (const skip of skips) process.stdout.write(`skipped: ${skip}\n`)
  for (const result of bad) process.stdout.write(`failed: ${result.file}: ${result.why}\n`)
  if (strict && skips.length > 0) process.stdout.write('in CI nothing may be skipped\n')
  if (results.length === 0) process.stdout.write('no test file matches\n')
  const none = results.length === 0 ? 1 : 0
  const failed = sum((result) => result.failed) + none + (strict ? skips.length : 0)
  const skipped = strict || skips.length === 0 ? '' : `, ${skips.length} skipped`
  process.stdout.write(`${sum((result) => result.passed)} passed, ${failed} failed${skipped}\n`)
  return failed === 0 ? 0 : 1
}

for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    for (const group of running) signalGroup(group, 'SIGTERM')
    process.exit(130)
  })
}
process.exitCode = await main()
