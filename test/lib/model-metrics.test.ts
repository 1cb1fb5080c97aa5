import { suite } from 'uvu'
import { encodeMetrics } from '../../lib/model/metrics.ts'
import type {
  ExportStatus,
  PhaseStatus,
  ProofStatus,
  StatusDocument,
} from '../../lib/model/status-document.ts'
import * as assert from '../helpers/assert.ts'

const GOOD_AT = '2026-05-19T02:00:00.000Z'
const DUE_AT = '2026-05-20T00:30:00.000Z'

const PHASE: PhaseStatus = {
  phase: 'collect',
  lastGood: { time: GOOD_AT, ageSeconds: 60, stamp: '2026-05-19T020000Z' },
  lastRun: { time: GOOD_AT, outcome: 'good' },
  healthy: true,
  due: false,
  reason: 'daily',
  next: DUE_AT,
}

const PROOF: ProofStatus = {
  kind: 'drill',
  how: 'restored',
  result: 'good',
  time: GOOD_AT,
  ageSeconds: 60,
  receipt: '2026-05-19T020000Z-t9-blue-drill',
  drive: 'blue',
  files: 1,
  bytes: 1,
  totalBytes: 1,
  damaged: 0,
}

const EXPORT: ExportStatus = {
  ...PHASE,
  phase: 'export',
  set: 'home',
  healthy: false,
  bytes: 1000,
  writtenBytes: 300,
  proof: undefined,
}

function status(change: Partial<StatusDocument> = {}): StatusDocument {
  return {
    format: 1,
    machine: 'test',
    time: '2026-05-19T03:00:00.500Z',
    verdict: 'good',
    exitCode: 0,
    problems: [],
    sets: [],
    targets: [],
    staging: { path: '/s', freeBytes: 5, totalBytes: 10, lowSpace: false },
    score: undefined,
    notifiers: [],
    lastRuns: [],
    lastFailures: [],
    ...change,
  }
}

const whole = status({
  sets: [
    {
      name: 'home',
      snapshot: 'auto',
      newest: {
        stamp: '2026-05-19T020000Z',
        outcome: 'good',
        entries: 12,
        bytes: 1000,
        isAtomic: true,
        snapshots: ['btrfs'],
      },
      collections: 1,
      phases: [PHASE],
      retention: { local: 7, external: 5, keep: {} },
      problems: [],
    },
  ],
  targets: [
    {
      name: 't9',
      kind: 'drive',
      path: undefined,
      isPool: true,
      exports: [EXPORT],
      proofs: [PROOF],
      next: undefined,
      drives: [
        {
          name: 'blue',
          label: 'BLUE',
          uuid: undefined,
          lastSeen: GOOD_AT,
          lastGoodExport: undefined,
          waitsSince: undefined,
          oldestExport: undefined,
          sizeBytes: 100,
          freeBytes: 40,
          lowSpace: false,
          isOverdue: true,
          proofs: [{ ...PROOF, result: 'damaged' }],
        },
      ],
    },
  ],
})

const metrics = suite('metrics')

metrics('each number has its labels', () => {
  const lines = encodeMetrics(whole).split('\n')
  for (const line of [
    'backup_last_success_timestamp_seconds{set="home",target="",phase="collect"} 1779156000',
    'backup_last_success_timestamp_seconds{set="home",target="t9",phase="export"} 1779156000',
    'backup_last_run_timestamp_seconds{set="home",target="t9",phase="export"} 1779156000',
    'backup_healthy{set="home",target="",phase="collect"} 1',
    'backup_healthy{set="home",target="t9",phase="export"} 0',
    'backup_due_timestamp_seconds{set="home",target="",phase="collect"} 1779237000',
    'backup_collection_bytes{set="home"} 1000',
    'backup_collection_entries{set="home"} 12',
    'backup_export_written_bytes{set="home",target="t9"} 300',
    'backup_staging_free_bytes 5',
    'backup_target_free_bytes{target="t9",drive="blue"} 40',
    'backup_drive_overdue{target="t9",drive="blue"} 1',
    'backup_last_proof_timestamp_seconds{target="t9",drive="blue",kind="drill"} 1779156000',
    'backup_last_proof_good{target="t9",drive="blue",kind="drill"} 0',
    'backup_problems{severity="attention"} 0',
    'backup_problems{severity="bad"} 0',
    'backup_status_timestamp_seconds 1779159600.5',
  ]) {
    assert.ok(lines.includes(line), `${line}\nis missing in\n${lines.join('\n')}`)
  }
})

metrics('each metric has HELP and TYPE once, before its numbers, and the text ends a line', () => {
  const text = encodeMetrics(whole)
  assert.match(text, /[^\n]\n$/)
  let name = ''
  const seen = new Set<string>()
  const lines = text.trimEnd().split('\n')
  for (const [index, line] of lines.entries()) {
    const [, keyword, of = ''] = /^# (HELP|TYPE) (\w+) /.exec(line) ?? []
    if (keyword === 'HELP') {
      assert.not.ok(seen.has(of), `${of} comes twice`)
      seen.add(of)
      name = of
      assert.is(lines[index + 1], `# TYPE ${name} gauge`)
    } else if (keyword === undefined) {
      assert.match(line, new RegExp(`^${name}(\\{[^}]*\\})? -?[0-9.]+$`))
    }
  }
  assert.is(new Set(lines).size, lines.length, 'no number comes twice')
})

metrics('what is not known has no line', () => {
  const text = encodeMetrics(
    status({
      staging: { path: '/s', freeBytes: undefined, totalBytes: undefined, lowSpace: false },
    }),
  )
  assert.not.match(text, 'staging_free')
  assert.not.match(text, 'undefined')
  assert.not.match(text, 'NaN')
  const never = { ...PHASE, lastGood: undefined, lastRun: undefined, next: undefined }
  const [set] = whole.sets
  assert.ok(set !== undefined)
  const empty = encodeMetrics(status({ sets: [{ ...set, newest: undefined, phases: [never] }] }))
  assert.not.match(empty, /last_success|last_run|due_timestamp|collection_/)
  assert.match(empty, 'backup_healthy{set="home",target="",phase="collect"} 1')
})

metrics('the score is three numbers, and what it has to reach three more', () => {
  const wanted = { copies: 3, media: 2, offSite: 1 }
  const place = {
    ...{ target: 't9', drive: undefined, counts: false, isLost: true, isOtherMedium: true },
    ...{ isOffSite: false, what: 'late', lastGood: undefined, proven: undefined },
  }
  const score = {
    ...{ copies: 2, media: 1, offSite: 0, wanted, isConfigured: true, isReached: false },
    ...{ provenWithinSeconds: 1, places: [place], next: undefined },
  }
  const text = encodeMetrics(status({ score }))
  assert.match(text, 'backup_score{of="copies"} 2\nbackup_score{of="media"} 1\n')
  assert.match(text, 'backup_score_wanted{of="off_site"} 1\n')
  assert.match(text, 'backup_score_lost 1\n')
})

metrics('labels are escaped', () => {
  const [set] = whole.sets
  assert.ok(set !== undefined)
  const text = encodeMetrics(status({ sets: [{ ...set, name: 'a"b\\c\nd' }] }))
  assert.match(text, 'backup_collection_entries{set="a\\"b\\\\c\\nd"} 12\n')
})

metrics('problems are counted by severity', () => {
  const problem = {
    code: 'LATE' as const,
    severity: 'attention' as const,
    what: 'what',
    fix: 'fix',
    set: undefined,
    target: undefined,
    drive: undefined,
    receipt: undefined,
  }
  const bad = { ...problem, severity: 'bad' as const }
  const text = encodeMetrics(status({ problems: [bad, problem, problem] }))
  assert.match(text, 'backup_problems{severity="attention"} 2\nbackup_problems{severity="bad"} 1\n')
})

metrics.run()
