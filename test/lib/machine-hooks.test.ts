import { chmodSync, existsSync, readFileSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import type { HookConfiguration } from '../../lib/machine/config-meaning.ts'
import { type HookFacts, runHook, withHooks } from '../../lib/machine/hooks.ts'
import type { NoticeEvent, ReportEvent } from '../../lib/model/report.ts'
import * as assert from '../helpers/assert.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const hooks = suite('machine/hooks')
const directory = tempDirectory()
const facts: HookFacts = {
  set: 'photos',
  phase: 'collect',
  configuration: '/etc/backup/config.yaml',
  staging: '/var/backup',
}
const environment = { LANG: 'de_DE.UTF-8', BACKUP_PASSPHRASE: 'secret', NODE_OPTIONS: '--inspect' }

function configure(own: Partial<HookConfiguration>): HookConfiguration {
  return { before: undefined, after: undefined, onFailure: undefined, timeoutMs: 20_000, ...own }
}

function shellHook(script: string): readonly string[] {
  return ['sh', '-c', script]
}

/** Every hook appends its moment and what it was told to a file. */
function traced(name: string, own: Partial<HookConfiguration> = {}) {
  const file = `${directory}/${name}`
  writeFileSync(file, '')
  const trace = shellHook(
    `echo "$BACKUP_MOMENT $BACKUP_OUTCOME $BACKUP_EXIT_CODE $BACKUP_STAMP" >> ${file}`,
  )
  const hook = configure({ before: trace, after: trace, onFailure: trace, ...own })
  const lines = (): string[] => {
    const text = readFileSync(file, 'utf8').trimEnd()
    return text === '' ? [] : text.split('\n').map((line) => line.replace(/ +/g, ' ').trimEnd())
  }
  return { hook, lines }
}

function listen() {
  const notices: NoticeEvent[] = []
  const report = (event: ReportEvent): void => {
    if (event.kind === 'notice') notices.push(event)
  }
  return { notices, report }
}

async function failureOf(promise: Promise<unknown>): Promise<BackupError> {
  try {
    await promise
  } catch (error) {
    if (error instanceof BackupError) return error
    throw error
  }
  throw new Error('it did not fail')
}

/** Where nobody reaps orphans one stays as a zombie, state Z. */
function isGone(pidFile: string): boolean {
  const stat = `/proc/${readFileSync(pidFile, 'utf8').trim()}/stat`
  return !existsSync(stat) || /\) Z /.test(readFileSync(stat, 'utf8'))
}

const stamp = '2025-04-01T020000Z'

hooks('a hook gets its facts, an empty standard input, and nothing of ours', async () => {
  const file = `${directory}/environment`
  const hook = configure({ before: shellHook(`cat; env > ${file}`) })
  const { report } = listen()
  const told = { ...facts, phase: 'export', target: 'drive', stamp } as const
  await runHook({ hook, moment: 'before', facts: told, report, environment })
  const lines = readFileSync(file, 'utf8').trimEnd().split('\n')
  const own = lines.filter((line) => !/^(_|PWD|SHLVL|OLDPWD|PATH|HOME)=/.test(line)).sort()
  assert.equal(own, [
    'BACKUP_CONFIG=/etc/backup/config.yaml',
    'BACKUP_MOMENT=before',
    'BACKUP_PHASE=export',
    'BACKUP_SET=photos',
    `BACKUP_STAMP=${stamp}`,
    'BACKUP_TARGET=drive',
    'DBACKUP=/var/backup',
    'LANG=de_DE.UTF-8',
  ])
})

hooks('good work has before and after around it, and no on_failure', async () => {
  const { hook, lines } = traced('good')
  const { report, notices } = listen()
  const value = await withHooks({ hooks: hook, facts, report, environment }, async () => {
    assert.equal(lines(), ['before'])
    return { outcome: 'good', value: 42, stamp }
  })
  assert.is(value, 42)
  assert.equal(lines(), ['before', `after good 0 ${stamp}`])
  assert.equal(notices, [])
})

hooks('work that is not good has on_failure before after, and its value all the same', async () => {
  for (const outcome of ['incomplete', 'suspect'] as const) {
    const { hook, lines } = traced(outcome)
    const call = { hooks: hook, facts, report: listen().report, environment }
    assert.is(await withHooks(call, async () => ({ outcome, value: 1 })), 1)
    assert.equal(lines(), ['before', `on_failure ${outcome} 3`, `after ${outcome} 3`])
  }
})

hooks('work that throws has both, with its exit code, and its own error comes out', async () => {
  for (const [error, exitCode] of [
    [new BackupError('TARGET_ABSENT', 'gone'), 10],
    [new TypeError('a bug'), 70],
  ] as const) {
    const { hook, lines } = traced('throws')
    const call = { hooks: hook, facts, report: listen().report, environment }
    const thrown = await withHooks(call, () => Promise.reject(error)).catch((it: unknown) => it)
    assert.is(thrown, error)
    assert.equal(lines(), ['before', `on_failure failed ${exitCode}`, `after failed ${exitCode}`])
  }
})

hooks('a before that fails stops the work, says why, and is thawed by after', async () => {
  const { hook, lines } = traced('stops', {
    before: shellHook('echo one; echo "no space left" >&2; exit 7'),
  })
  const { report, notices } = listen()
  let worked = false
  const error = await failureOf(
    withHooks({ hooks: hook, facts, report, environment }, async () => {
      worked = true
      return { outcome: 'good', value: 0 }
    }),
  )
  assert.not.ok(worked)
  assert.is(error.code, 'PROGRAM_FAILED')
  assert.match(error.message, /^hooks\.collect\.before: sh ended with exit code 7: /)
  assert.match(error.message, /no space left/)
  assert.equal(lines(), ['on_failure failed 1', 'after failed 1'])
  const output = notices.filter(({ code }) => code === 'HOOK_OUTPUT').map(({ message }) => message)
  assert.ok(output.includes('photos: hooks.collect.before: no space left'))
})

hooks('a program that is not there is named, and after does not run', async () => {
  const notExecutable = `${directory}/text`
  writeFileSync(notExecutable, '#!/bin/sh\n')
  chmodSync(notExecutable, 0o644)
  for (const [program, hint] of [
    ['~/bin/dump', /~ means nothing/],
    ['bin/dump', /absolute/],
    ['/no/such/program', /absolute/],
    [notExecutable, /executable/],
    ['no-such-program', /PATH/],
  ] as const) {
    const { hook, lines } = traced('absent', { before: [program] })
    const call = { hooks: hook, facts, report: listen().report, environment }
    const work = () => assert.unreachable() as never
    const error = await failureOf(withHooks(call, work))
    assert.is(error.code, 'PROGRAM_ABSENT')
    assert.ok(error.message.includes(`hooks.collect.before: "${program}" is not there`))
    assert.match(error.hint ?? '', hint)
    assert.equal(lines(), ['on_failure failed 2'])
  }
})

hooks('a failing after or on_failure is a warning and changes nothing', async () => {
  const failing = shellHook('echo broken; exit 1')
  const hook = configure({ after: failing, onFailure: ['/no/such/program'] })
  const { report, notices } = listen()
  const call = { hooks: hook, facts, report, environment }
  assert.is(await withHooks(call, async () => ({ outcome: 'suspect', value: 5 })), 5)
  const warnings = notices.filter(({ level }) => level === 'warning')
  assert.equal(
    warnings.map(({ code, message }) => `${code} ${message}`),
    [
      'HOOK_FAILED photos: hooks.collect.on_failure: "/no/such/program" is not there,'
        + ' or is not a program',
      'HOOK_FAILED photos: hooks.collect.after: sh ended with exit code 1: broken',
    ],
  )
})

/** Starts a grandchild that sleeps, and waits. */
function lingering(name: string): { readonly hook: readonly string[]; readonly pids: string[] } {
  const pids = [`${directory}/${name}.child`, `${directory}/${name}.grandchild`]
  const grandchild = `echo $$ > ${pids[1]}; exec sleep 60`
  return { pids, hook: shellHook(`echo $$ > ${pids[0]}; sh -c '${grandchild}' & wait`) }
}

hooks('a before that takes too long is ended with all that it started', async () => {
  const { hook: before, pids } = lingering('slow')
  const { hook, lines } = traced('slow-trace', { before })
  const call = { hooks: { ...hook, timeoutMs: 500 }, facts, report: listen().report, environment }
  const error = await failureOf(withHooks(call, () => assert.unreachable() as never))
  assert.is(error.code, 'PROGRAM_TIMEOUT')
  assert.match(error.message, /hooks\.collect\.before/)
  await sleep(100)
  for (const pid of pids) assert.ok(isGone(pid))
  assert.equal(lines(), ['on_failure failed 1', 'after failed 1'])
})

hooks('an interruption ends before with all that it started, and after still runs', async () => {
  const { hook: before, pids } = lingering('interrupted')
  const { hook, lines } = traced('interrupted-trace', { before })
  const controller = new AbortController()
  const call = { hooks: hook, facts, report: listen().report, environment }
  const running = failureOf(
    withHooks({ ...call, signal: controller.signal }, () => assert.unreachable() as never),
  )
  while (!pids.every((pid) => existsSync(pid) && readFileSync(pid, 'utf8') !== '')) await sleep(20)
  controller.abort()
  assert.is((await running).code, 'INTERRUPTED')
  await sleep(100)
  for (const pid of pids) assert.ok(isGone(pid))
  assert.equal(lines(), ['on_failure failed 130', 'after failed 130'])
  const again = await failureOf(
    withHooks({ ...call, signal: controller.signal }, () => assert.unreachable() as never),
  )
  assert.is(again.code, 'INTERRUPTED')
  assert.is(lines().length, 2)
})

hooks('what a hook prints cannot flood the report or reach the terminal raw', async () => {
  const hook = configure({ after: shellHook("printf '\\033[31mred\\n'; yes | head -n 5000") })
  const { report, notices } = listen()
  assert.is(await runHook({ hook, moment: 'after', facts, report, environment }), undefined)
  assert.is(notices.length, 200)
  assert.is(notices[0]?.message, 'photos: hooks.collect.after: \\x1b[31mred')
})

hooks.run()
