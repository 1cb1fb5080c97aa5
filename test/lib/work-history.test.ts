import { appendFileSync, existsSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import {
  isRun,
  outcomeOf,
  readHistory,
  recordRuns,
  type RunRecord,
} from '../../lib/work/history.ts'
import * as assert from '../helpers/assert.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const good: RunRecord = {
  phase: 'collect',
  set: 'home',
  target: undefined,
  startMs: Date.parse('2026-05-01T02:00:00.123Z'),
  endMs: Date.parse('2026-05-01T02:03:00Z'),
  stamp: '2026-05-01T020000Z',
  outcome: 'good',
  exitCode: 0,
  errorCode: undefined,
  message: undefined,
  bytes: 1234,
  writtenBytes: 12,
}

const failed: RunRecord = {
  ...good,
  phase: 'export',
  target: 'drive',
  stamp: undefined,
  outcome: 'failed',
  exitCode: 1,
  errorCode: 'TARGET_FULL',
  message: 'the target is full: "/media/é\nx"',
}

function fileOf(staging: string): string {
  return `${staging}/.state/history.jsonl`
}

const history = suite('history')

history('what is recorded is read again, in order', () => {
  const staging = tempDirectory()
  assert.equal(readHistory(staging), [])
  recordRuns({ staging, runs: [good] })
  recordRuns({ staging, runs: [failed, { ...good, phase: 'full' }] })
  assert.equal(readHistory(staging), [good, failed, { ...good, phase: 'full' }])
  assert.is(statSync(fileOf(staging)).mode & 0o777, 0o600)
  assert.is(readFileSync(fileOf(staging), 'utf8').split('\n').length, 4, 'a line for each')
})

history('a damaged line costs only itself', () => {
  const staging = tempDirectory()
  recordRuns({ staging, runs: [good] })
  appendFileSync(
    fileOf(staging),
    [
      '\0\0\0',
      '[]',
      'null',
      '{"phase":"collect","set":"home"}',
      '{"phase":"dance","set":"home","start":"2026-05-01T02:00:00Z","end":"2026-05-01T02:00:00Z"}',
      readFileSync(fileOf(staging), 'utf8').slice(0, 90),
    ].join('\n'),
  )
  recordRuns({ staging, runs: [failed] })
  assert.equal(readHistory(staging), [good, failed], 'the torn line did not swallow the next')
})

history('a file past its limit is cut to the newest runs and the last good of each', () => {
  const staging = tempDirectory()
  const weekly = { ...good, phase: 'full' as const }
  const exported = { ...good, phase: 'export' as const, target: 'drive' }
  const many = Array.from({ length: 2500 }, (_, i) => ({ ...failed, startMs: i, endMs: i }))
  recordRuns({ staging, runs: [good, exported, weekly, good] })
  recordRuns({ staging, runs: many })
  assert.is(readHistory(staging).length, 2504)
  const long = many.map((run) => ({ ...run, message: 'x'.repeat(2000) }))
  recordRuns({ staging, runs: long })
  const kept = readHistory(staging)
  assert.is(kept.length, 1003)
  assert.equal(kept.slice(0, 3), [exported, weekly, good])
  assert.is(kept.at(-1)?.startMs, 2499)
  assert.is(kept.at(-1)?.message?.length, 500)
  assert.ok(statSync(fileOf(staging)).size < 2 ** 20)
  assert.not.ok(existsSync(`${fileOf(staging)}.partial`))
})

history('a staging directory that is not there is not made for it', () => {
  const staging = `${tempDirectory()}/gone`
  recordRuns({ staging, runs: [good] })
  assert.not.ok(existsSync(staging))
})

history('a history that cannot be written is a failure of staging', () => {
  const staging = tempDirectory()
  recordRuns({ staging, runs: [good] })
  rmSync(fileOf(staging))
  writeFileSync(`${staging}/elsewhere`, '')
  rmSync(`${staging}/.state`, { recursive: true })
  writeFileSync(`${staging}/.state`, 'a file')
  try {
    recordRuns({ staging, runs: [good] })
    assert.unreachable()
  } catch (error) {
    assert.is((error as BackupError).code, 'STAGING_FAILED')
  }
  assert.equal(readHistory(staging), [])
})

history('a run that did nothing is no run', () => {
  for (const code of ['LOCKED', 'TARGET_ABSENT', 'INTERRUPTED'] as const) {
    assert.not.ok(isRun(new BackupError(code, 'x')))
  }
  assert.ok(isRun(new BackupError('SOURCE_ABSENT', 'x')))
})

history('only what is complete and trusted, or accepted, is good', () => {
  const doubt = [{ path: 'data', why: 'empty' }]
  assert.is(outcomeOf({ complete: true }), 'good')
  assert.is(outcomeOf({ complete: true, suspect: [] }), 'good')
  assert.is(outcomeOf({ complete: false, suspect: [] }), 'incomplete')
  assert.is(outcomeOf({ complete: true, suspect: doubt }), 'suspect')
  assert.is(outcomeOf({ complete: false, suspect: doubt }), 'suspect')
  const accepted = '2026-05-01T020000Z'
  assert.is(outcomeOf({ complete: false, suspect: doubt, accepted }), 'good')
})

history.run()
