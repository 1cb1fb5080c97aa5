// Makes the program under test fail or die at a chosen system call, exactly and repeatably.
//
// A script that Node loads before the program, in its workers too, wraps the calls of node:fs that
// change anything. It counts them over all threads; at the chosen one it kills the process, throws
// a system error, or runs a command (to alter a disk's blocks, say). The program itself knows
// nothing of it. What rsync does is not counted.

import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { tempDirectory } from './temp-dir.ts'

export interface FaultRule {
  /** Calls that count: `name path`, such as `renameSync /…/manifest.tar.zst.age`. Default: all. */
  readonly match?: RegExp
  /** Which of them, from 1. Default: every one. */
  readonly at?: number
  /**
   * `kill` before the call; an error code such as ENOSPC instead of it; or a shell command after
   * it, `$1` the path.
   */
  readonly action: 'count' | 'kill' | { readonly error: string } | { readonly command: string }
}

export interface FaultPlan {
  /** For the child's environment. */
  readonly environment: Readonly<Record<string, string>>
  /** How many calls matched so far. */
  readonly count: () => number
  /** The calls that matched, in order. */
  readonly calls: () => string[]
}

const HOOK = `
const fs = require('node:fs')
const { spawnSync } = require('node:child_process')
const { syncBuiltinESMExports } = require('node:module')
const rule = JSON.parse(process.env.TEST_FAULT_RULE)
const match = new RegExp(rule.match)
const { openSync, writeSync, fstatSync, readlinkSync, renameSync } = fs
const log = openSync(rule.counter, 'a')
const names = openSync(rule.counter + '.names', 'a')
const text = (path) => typeof path === 'number' ? readlinkSync('/proc/self/fd/' + path)
  : Buffer.isBuffer(path) ? path.toString() : String(path)
const { O_CREAT } = fs.constants
function wrap(name, pathOf, isChange = () => true) {
  const real = fs[name]
  fs[name] = (...words) => {
    if (!isChange(...words)) return real(...words)
    const call = name + ' ' + text(pathOf(...words))
    if (!match.test(call)) return real(...words)
    writeSync(log, '.')
    const number = fstatSync(log).size
    writeSync(names, call + '\\n')
    if (rule.action === 'count' || (rule.at !== undefined && rule.at !== number)) return real(...words)
    if (rule.action === 'kill') {
      process.kill(process.pid, 'SIGKILL')
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)
    }
    if (rule.action.error !== undefined) {
      const { error: code } = rule.action
      throw Object.assign(new Error(code + ': made to fail, ' + call), { code, syscall: name })
    }
    const result = real(...words)
    const run = spawnSync('bash', ['-euo', 'pipefail', '-c', rule.action.command, 'bash', call.slice(name.length + 1)])
    if (run.status !== 0) throw new Error('the command of the test failed: ' + run.stderr)
    return result
  }
}
wrap('openSync', (path) => path, (_path, flags) => typeof flags === 'number' && (flags & O_CREAT) !== 0)
wrap('writeSync', (fd) => fd, (fd) => fd > 2)
wrap('fsyncSync', (fd) => fd)
wrap('renameSync', (_from, to) => to)
for (const name of ['mkdirSync', 'rmdirSync', 'unlinkSync', 'linkSync', 'symlinkSync', 'rmSync', 'ftruncateSync']) {
  wrap(name, name === 'linkSync' || name === 'symlinkSync' ? (_to, path) => path : (path) => path)
}
syncBuiltinESMExports()
`

let directory: string | undefined
let plans = 0

export function planFault({ match = /./, at, action }: FaultRule): FaultPlan {
  directory ??= tempDirectory()
  const hook = `${directory}/hook.cjs`
  writeFileSync(hook, HOOK)
  const counter = `${directory}/${++plans}`
  const rule = { match: match.source, at, action, counter }
  return {
    environment: { NODE_OPTIONS: `--require=${hook}`, TEST_FAULT_RULE: JSON.stringify(rule) },
    count: () => (existsSync(counter) ? statSync(counter).size : 0),
    calls: () => readFileSync(`${counter}.names`, 'utf8').split('\n').slice(0, -1),
  }
}
