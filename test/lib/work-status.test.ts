import { mkdirSync, readdirSync, readFileSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { Ajv } from 'ajv'
import { suite } from 'uvu'
import { standingLines, verdictLines } from '../../commands/status-text.ts'
import type { Configuration, TargetConfiguration } from '../../lib/machine/config.ts'
import type { CollectionHeader } from '../../lib/model/collection.ts'
import type { Receipt } from '../../lib/model/receipt.ts'
import type { ReportEvent } from '../../lib/model/report.ts'
import type { ProblemCode, StatusDocument } from '../../lib/model/status-document.ts'
import { parseStamp } from '../../lib/model/stamp.ts'
import type { KnownDrive } from '../../lib/work/drive-register.ts'
import type { RunRecord } from '../../lib/work/history.ts'
import { announcementsOf } from '../../lib/work/announcements.ts'
import { everyMsOf, rotatedDrives } from '../../lib/work/drive-history.ts'
import { readScoreMemory, rememberScore } from '../../lib/work/score.ts'
import {
  gatherStatus,
  readRunStatus,
  type StatusFacts,
  writeMetrics,
  writeMetricsFile,
} from '../../lib/work/status.ts'
import * as assert from '../helpers/assert.ts'
import { NOTIFY_NOBODY, configurationOf, setConfiguration } from '../helpers/configuration.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

process.env['TZ'] = 'UTC'

const NOW_MS = Date.parse('2026-05-20T02:00:00Z')
const DAY_MS = 86_400_000
const FRESH = '2026-05-19T020000Z'

const schemaFile = new URL('../../../config/status.schema.json', import.meta.url)
const validate = new Ajv({ strict: true, allErrors: true }).compile(
  JSON.parse(readFileSync(schemaFile, 'utf8')) as object,
)

function ran(change: Partial<RunRecord> = {}): RunRecord {
  const stamp = change.stamp ?? FRESH
  const startMs = parseStamp(stamp) ?? 0
  return {
    phase: 'collect',
    set: 'home',
    target: undefined,
    drive: undefined,
    startMs,
    endMs: startMs + 60_000,
    stamp,
    outcome: 'good',
    exitCode: 0,
    errorCode: undefined,
    message: undefined,
    bytes: 1000,
    writtenBytes: 10,
    ...change,
  }
}

function exported(drive: string | undefined, change: Partial<RunRecord> = {}): RunRecord {
  return ran({ phase: 'export', target: 't9', drive, ...change })
}

function failed(change: Partial<RunRecord>): RunRecord {
  const error = { errorCode: 'TARGET_FULL', message: 'the target is full', exitCode: 1 }
  return { ...ran(), outcome: 'failed', stamp: undefined, ...error, ...change }
}

function collection(change: Partial<CollectionHeader> = {}): CollectionHeader {
  return {
    set: 'home',
    stamp: FRESH,
    complete: true,
    missing: [],
    sources: [],
    suspect: [],
    entries: 12,
    files: 3,
    bytes: 1000,
    ...change,
  }
}

const ANY = {
  name: 't9',
  bundleSizeBytes: 1,
  compressionLevel: 3,
  priority: 0,
  parityPercent: 0,
  drill: 'auto',
} as const

const directory: TargetConfiguration = {
  ...ANY,
  kind: 'directory',
  path: '/media/t9',
  mustBeMounted: undefined,
}

const pool: TargetConfiguration = {
  ...ANY,
  kind: 'drive',
  path: 'backup',
  drives: ['red', 'blue'].map((name) => ({ name, label: name.toUpperCase(), uuid: undefined })),
  isPool: true,
  everyMs: undefined,
  afterwards: 'unmount',
}

function seen(drive: string, change: Partial<KnownDrive> = {}): KnownDrive {
  return {
    target: 't9',
    drive,
    repository: `of ${drive}`,
    uuid: '1234-abcd',
    label: drive.toUpperCase(),
    filesystem: 'ext4',
    model: undefined,
    serial: undefined,
    sizeBytes: 1000,
    lastSeenMs: NOW_MS - DAY_MS,
    freeBytes: 500,
    ...change,
  }
}

function receipt(change: Partial<Receipt> = {}): Receipt {
  return {
    format: 1,
    kind: 'drill',
    machine: 'test',
    target: 't9',
    drive: undefined,
    repository: 'r',
    exports: [`test/home/${FRESH}`],
    start: '2026-05-19T03:00:00.000Z',
    end: '2026-05-19T03:10:00.000Z',
    how: 'restored',
    bundles: 1,
    files: 10,
    bytes: 100,
    totalBytes: 1000,
    seed: 'seed',
    result: 'good',
    damaged: [],
    ...change,
  }
}

interface Change extends Partial<Omit<StatusFacts, 'known' | 'configuration'>> {
  readonly configuration?: Partial<Configuration>
  readonly history?: readonly RunRecord[]
  readonly collections?: readonly CollectionHeader[]
}

/** A collection, exported to one target yesterday, all well but for what `change` says. */
function gather({ history, collections, configuration, ...change }: Change = {}): StatusDocument {
  const set = setConfiguration()
  const document = gatherStatus({
    configuration: configurationOf(set, {
      staging: '/staging',
      targets: [directory],
      ...configuration,
    }),
    sets: [set],
    nowMs: NOW_MS,
    known: {
      history: history ?? [ran({ phase: 'full' }), exported(undefined)],
      collections: new Map([['home', collections ?? [collection()]]]),
    },
    receipts: [],
    unbelievedReceipts: [],
    notifierFailures: [],
    drives: [],
    space: { freeBytes: 500, totalBytes: 1000 },
    damagedCatalogs: new Map(),
    exportsThere: new Map(),
    media: { sources: ['sda'], directories: new Map() },
    remembered: [],
    ...change,
  })
  assertValid(document)
  for (const line of [...verdictLines(document), ...standingLines(document)]) {
    assert.ok(line.length <= 100, line)
  }
  return document
}

/** As --json prints it. */
function assertValid(document: StatusDocument): void {
  const printed = { schema: 1, kind: 'result', command: 'backup status', ...document }
  const isValid = validate(JSON.parse(JSON.stringify(printed)))
  assert.ok(isValid, JSON.stringify(validate.errors, undefined, 1))
}

function codes({ problems }: StatusDocument): readonly ProblemCode[] {
  return problems.map(({ code }) => code)
}

/** The one problem that there is. */
function onlyProblem(document: StatusDocument) {
  assert.is(document.problems.length, 1, JSON.stringify(document.problems, undefined, 1))
  const [problem] = document.problems
  assert.ok(problem !== undefined)
  assert.ok(problem.what.length > 0 && problem.fix.length > 0, 'each problem says what to do')
  return problem
}

const status = suite('status')

status('all is well after a good collection and export', () => {
  const document = gather()
  assert.equal(codes(document), [])
  assert.is(document.verdict, 'good')
  assert.is(document.exitCode, 0)
  assert.is(verdictLines(document)[0], 'all is well')
  const [set] = document.sets
  assert.is(set?.newest?.entries, 12)
  assert.equal(
    set?.phases.map(({ phase }) => phase),
    ['collect', 'full'],
  )
  const [target] = document.targets
  assert.equal(target?.drives, [])
  assert.equal(target?.proofs, [])
  const [toDirectory] = target?.exports ?? []
  assert.equal(toDirectory?.lastGood, {
    time: '2026-05-19T02:00:00.000Z',
    ageSeconds: 86_400,
    stamp: FRESH,
  })
  assert.is(toDirectory?.writtenBytes, 10)
  assert.is(toDirectory?.next, '2026-05-26T00:30:00.000Z')
  assert.match(standingLines(document).join('\n'), /^ {2}proven +never$/m)
})

status('a failed run names its error, and the command that tries again', () => {
  const startMs = NOW_MS - 3_600_000
  const error = { errorCode: 'SOURCE_ABSENT', message: 'no source\n\x1b[31mcan be read' }
  const document = gather({
    history: [ran({ phase: 'full' }), exported(undefined), failed({ startMs, ...error })],
  })
  const { code, what, fix, set, target } = onlyProblem(document)
  assert.is(code, 'RUN_FAILED')
  assert.match(what, 'home: the last collection, of 2026-05-20 01:00, failed: SOURCE_ABSENT: no')
  assert.not.match(what, /[\n\x1b]/, 'the message is safe to print')
  assert.match(fix, 'see SOURCE_ABSENT in docs/errors.md, then `backup-collect --set home`')
  assert.equal([set, target], ['home', undefined])
  assert.equal(document.sets[0]?.problems, document.problems)
  assert.is(document.exitCode, 3)
  assert.is(document.verdict, 'attention')
})

status('a failed export is of its target', () => {
  const of = { phase: 'export', target: 't9', startMs: NOW_MS } as const
  const document = gather({ history: [ran({ phase: 'full' }), exported(undefined), failed(of)] })
  const problem = onlyProblem(document)
  assert.equal([problem.code, problem.set, problem.target], ['RUN_FAILED', 'home', 't9'])
  assert.match(problem.fix, '`backup-external --set home --target t9`')
})

status('a full run that failed is one problem, though it was collecting as well', () => {
  const of = { phase: 'full', startMs: NOW_MS } as const
  const both = gather({ history: [ran({ phase: 'full' }), exported(undefined), failed(of)] })
  assert.equal(codes(both), ['RUN_FAILED'])
  const again = ran({ startMs: NOW_MS })
  const history = [ran({ phase: 'full' }), exported(undefined), failed(of), again]
  assert.match(onlyProblem(gather({ history })).fix, '`backup-collect --full --set home`')
})

status('a suspect collection is one problem, though its export waits as well', () => {
  const path = 'home/me' as CollectionHeader['suspect'][number]['path']
  const suspect = [{ path, why: 'it is empty' }]
  const document = gather({
    history: [
      ran({ phase: 'full', outcome: 'suspect' }),
      exported(undefined, { outcome: 'suspect' }),
    ],
    collections: [collection({ stamp: '2026-05-18T020000Z' }), collection({ suspect })],
  })
  const { code, what, fix } = onlyProblem(document)
  assert.is(code, 'SUSPECT')
  assert.is(what, `home: ${FRESH} is suspect: /home/me: it is empty`)
  assert.match(fix, '`backup accept home`')
})

status('an incomplete collection names what is missing', () => {
  const path = 'home/me/x' as CollectionHeader['missing'][number]['path']
  const missing = [{ path, why: 'permission denied' }]
  const document = gather({
    history: [ran({ phase: 'full', outcome: 'incomplete' }), exported(undefined)],
    collections: [collection({ complete: false, missing })],
  })
  const { code, what } = onlyProblem(document)
  assert.is(code, 'INCOMPLETE')
  assert.match(what, 'incomplete: 1 path, as /home/me/x: permission denied')
})

status('never collected, late, and never exported are each said', () => {
  const never = gather({ history: [], collections: [] })
  assert.is(onlyProblem(never).code, 'NEVER_GOOD')
  const stamp = '2026-04-01T020000Z'
  const old = [ran({ phase: 'full', stamp }), exported(undefined, { stamp })]
  const collections = [collection({ stamp })]
  const late = gather({ history: old, collections })
  assert.equal(codes(late), ['LATE', 'LATE'], 'comparing content was part of the same run')
  assert.match(late.problems[1]?.fix ?? '', 'see that /media/t9 is mounted, then `backup-external')
  assert.match(late.problems[0]?.what ?? '', 'is of 2026-04-01 02:00, 49 days ago')
  const unexported = gather({ history: [ran({ phase: 'full', stamp })], collections })
  assert.match(unexported.problems[1]?.what ?? '', 'the last good export never was')
})

status('a clock that was set back is one problem', () => {
  const stamp = '2026-06-19T020000Z'
  const startMs = parseStamp(stamp) ?? 0
  const document = gather({
    history: [ran({ phase: 'full', stamp, startMs }), exported(undefined, { stamp, startMs })],
    collections: [collection({ stamp })],
  })
  assert.is(onlyProblem(document).code, 'CLOCK_SET_BACK')
  assert.match(standingLines(document).join('\n'), 'in the future')
})

status('a damaged catalog, low space, false receipts and mute notifiers are each said', () => {
  const document = gather({
    damagedCatalogs: new Map([['home', ['2026-05-01T020000Z']]]),
    configuration: { notify: { ...NOTIFY_NOBODY, lowSpace: { share: 0.6 } } },
    unbelievedReceipts: ['2026-05-01T020000Z-t9-drill', 'another'],
    notifierFailures: [{ channel: 'mail', message: 'refused', atMs: NOW_MS - DAY_MS }],
  })
  assert.equal(codes(document), [
    'CATALOG_DAMAGED',
    'LOW_SPACE',
    'RECEIPT_UNBELIEVED',
    'NOTIFIER_FAILING',
  ])
  assert.is(document.exitCode, 3)
  const [catalog, space, receipts, notifier] = document.problems
  assert.match(catalog?.what ?? '', '2026-05-01T020000Z')
  assert.match(space?.what ?? '', 'staging /staging: only 500 B of 1000 B are free')
  assert.match(receipts?.what ?? '', '2 receipts not signed by this machine, as 2026-05-01T02')
  assert.is(receipts?.receipt, '2026-05-01T020000Z-t9-drill')
  assert.match(notifier?.what ?? '', 'nobody can be told by mail since 2026-05-19 02:00: refused')
  assert.match(notifier?.fix ?? '', 'notify.mail')
  assert.is(verdictLines(document)[0], '4 things need you')
})

status('staging is low below retention.min_free as well; none where there is no staging', () => {
  const low = gather({ configuration: { minFree: { bytes: 501 } } })
  assert.is(onlyProblem(low).code, 'LOW_SPACE')
  assert.equal(codes(gather({ configuration: { minFree: { bytes: 500 } } })), [])
  assert.equal(codes(gather({ space: undefined, configuration: { minFree: { bytes: 1 } } })), [])
})

status('every proof names its date and its receipt', () => {
  const document = gather({ receipts: [receipt()] })
  assert.is(document.exitCode, 0)
  const [target] = document.targets
  const [proof] = target?.proofs ?? []
  assert.is(proof?.receipt, '2026-05-19T031000Z-t9-drill')
  assert.is(proof?.time, '2026-05-19T03:10:00.000Z')
  assert.equal(target?.exports[0]?.proof, proof)
  const text = standingLines(document).join('\n')
  assert.match(text, /^ {2}drill +2026-05-19 03:10 \(22 hours ago\): good, 10 files restored/m)
  assert.match(text, 'receipt 2026-05-19T031000Z-t9-drill')
  assert.match(text, /^ {2}verification +never$/m)
})

status('damage is bad and 13, with its receipt, until a verification is good', () => {
  const damaged = receipt({ result: 'damaged', damaged: ['data-0001.tar.zst.age'] })
  const document = gather({ receipts: [damaged] })
  const problem = onlyProblem(document)
  assert.equal([problem.code, problem.severity], ['PROOF_DAMAGED', 'bad'])
  assert.is(problem.receipt, '2026-05-19T031000Z-t9-drill')
  assert.match(problem.what, '1 name, such as data-0001.tar.zst.age')
  assert.match(problem.fix, '`backup-restore --source external --target t9 --verify`')
  assert.is(document.verdict, 'bad')
  assert.is(document.exitCode, 13)
  assert.match(verdictLines(document).join('\n'), /^ {2}BAD /m)
  const end = '2026-05-20T01:00:00.000Z'
  const drilled = gather({ receipts: [damaged, receipt({ end })] })
  assert.is(drilled.exitCode, 13, 'a sample refutes nothing')
  const verified = gather({ receipts: [damaged, receipt({ end, kind: 'verification' })] })
  assert.is(verified.exitCode, 0)
  const parity = { ...directory, parityPercent: 10 }
  const mendable = gather({ receipts: [damaged], configuration: { targets: [parity] } })
  assert.match(onlyProblem(mendable).fix, '`backup repair --target t9`')
})

status('damage comes first, however many other problems there are', () => {
  const document = gather({
    receipts: [receipt({ result: 'damaged', damaged: ['x'] })],
    damagedCatalogs: new Map([['home', ['2026-05-01T020000Z']]]),
  })
  assert.equal(codes(document), ['PROOF_DAMAGED', 'CATALOG_DAMAGED'])
  assert.is(document.exitCode, 13)
})

status('of a pool, the drive that waits longest is next', () => {
  const history = [
    ran({ phase: 'full' }),
    exported('blue', { stamp: '2026-05-10T020000Z', startMs: NOW_MS - 10 * DAY_MS }),
    exported('red'),
  ]
  const document = gather({
    history,
    configuration: { targets: [pool] },
    drives: [seen('red'), seen('blue', { freeBytes: undefined })],
    exportsThere: new Map([['of red', [`home/${FRESH}`, 'home/2026-01-01T020000Z']]]),
  })
  assert.equal(codes(document), [])
  const [target] = document.targets
  assert.equal(target?.next, { drive: 'blue', due: '2026-05-24T02:00:00.000Z', isDue: false })
  const [red, blue] = target?.drives ?? []
  assert.is(red?.lastGoodExport?.stamp, FRESH)
  assert.is(red?.lastSeen, '2026-05-19T02:00:00.000Z')
  assert.is(red?.freeBytes, 500)
  assert.equal(red?.oldestExport, { set: 'home', stamp: '2026-01-01T020000Z' })
  assert.is(blue?.lastGoodExport?.stamp, '2026-05-10T020000Z')
  assert.is(blue?.freeBytes, undefined)
  assert.is(blue?.oldestExport, undefined)
  assert.match(standingLines(document).join('\n'), /^ {2}next +blue, from 2026-05-24 02:00$/m)
})

status('a drive that was away too long is overdue: plug it in', () => {
  const history = [
    ran({ phase: 'full' }),
    exported('blue', { stamp: '2026-05-01T020000Z', startMs: NOW_MS - 19 * DAY_MS }),
    exported('red'),
  ]
  const document = gather({ history, configuration: { targets: [pool] } })
  const problem = onlyProblem(document)
  assert.equal([problem.code, problem.drive], ['DRIVE_OVERDUE', 'blue'])
  assert.match(problem.what, 't9 (blue): the last good export is of 2026-05-01 02:00, 19 days ago')
  assert.match(problem.fix, 'plug in blue')
  assert.is(document.exitCode, 3)
  const [target] = document.targets
  assert.equal(
    target?.drives.map(({ isOverdue }) => isOverdue),
    [false, true],
  )
  assert.match(standingLines(document).join('\n'), /plug in blue: due since 2026-05-15 02:00$/m)
  const patient: TargetConfiguration = { ...pool, everyMs: 30 * DAY_MS }
  assert.equal(codes(gather({ history, configuration: { targets: [patient] } })), [])
})

status('a drive that never had an export is late counting from the first run that is known', () => {
  const history = [ran({ phase: 'full' }), exported('red')]
  const fresh = gather({ history, configuration: { targets: [pool] } })
  assert.equal(codes(fresh), [])
  assert.match(standingLines(fresh).join('\n'), /plug in blue: never exported to$/m)
  const first = ran({ startMs: NOW_MS - 15 * DAY_MS })
  const late = gather({ history: [first, ...history], configuration: { targets: [pool] } })
  assert.match(onlyProblem(late).what, 't9 (blue): the last good export never was')
})

status('with no drive in time the drives are said, and not the sets as well', () => {
  const startMs = NOW_MS - 40 * DAY_MS
  const history = [
    ran({ phase: 'full' }),
    exported('red', { startMs }),
    exported('blue', { startMs }),
  ]
  const document = gather({ history, configuration: { targets: [pool] } })
  assert.equal(codes(document), ['DRIVE_OVERDUE', 'DRIVE_OVERDUE'])
  assert.is(document.targets[0]?.exports[0]?.healthy, false)
})

status('a set that is gone, or exported by hand, makes no drive wait', () => {
  const startMs = NOW_MS - 99 * DAY_MS
  const history = [exported('red', { set: 'gone', startMs }), exported('red'), exported('blue')]
  const both = setConfiguration()
  const manual = { ...both.schedule, external: 'manual' as const }
  const byHand = setConfiguration({ name: 'gone', schedule: manual })
  for (const sets of [[both], [both, byHand]]) {
    const [red] = rotatedDrives(pool, { sets, history })
    assert.is(red?.lastGoodMs, parseStamp(FRESH))
  }
  const counted = setConfiguration({ name: 'gone' })
  const [red] = rotatedDrives(pool, { sets: [both, counted], history })
  assert.is(red?.lastGoodMs, startMs)
  const [only] = rotatedDrives(pool, { sets: [byHand], history })
  assert.is(only?.lastGoodMs, startMs)
  assert.is(everyMsOf(pool, [byHand]), undefined)
  assert.is(everyMsOf(pool, [both, byHand]), 14 * DAY_MS)
})

status('what one drive of a pool proves, or shows to be damaged, is of that drive', () => {
  const history = [ran({ phase: 'full' }), exported('red'), exported('blue')]
  const document = gather({
    history,
    configuration: { targets: [pool] },
    receipts: [
      receipt({ drive: 'blue', repository: 'b', result: 'damaged', damaged: ['x'] }),
      receipt({ drive: 'red', kind: 'verification', end: '2026-05-19T04:00:00.000Z' }),
    ],
  })
  const problem = onlyProblem(document)
  assert.equal([problem.code, problem.drive], ['PROOF_DAMAGED', 'blue'])
  assert.match(problem.what, 't9 (blue): the drill of 2026-05-19 03:10 found damage')
  const [red, blue] = document.targets[0]?.drives ?? []
  assert.equal(
    red?.proofs.map(({ kind }) => kind),
    ['verification'],
  )
  assert.equal(
    blue?.proofs.map(({ kind }) => kind),
    ['drill'],
  )
  assert.is(document.targets[0]?.proofs.length, 2)
})

status('a drive that was made anew has proven nothing yet', () => {
  const damaged = receipt({
    drive: 'blue',
    repository: 'before',
    result: 'damaged',
    damaged: ['x'],
  })
  const history = [ran({ phase: 'full' }), exported('red'), exported('blue')]
  const options = { history, receipts: [damaged], configuration: { targets: [pool] } }
  assert.is(gather(options).exitCode, 13)
  const anew = gather({ ...options, drives: [seen('blue')] })
  assert.is(anew.exitCode, 0)
  assert.equal(anew.targets[0]?.proofs, [])
})

status('a drive that is nearly full is said', () => {
  const history = [ran({ phase: 'full' }), exported('red'), exported('blue')]
  const notify = { ...NOTIFY_NOBODY, lowSpace: { share: 0.05 } }
  const configuration = { targets: [pool], notify }
  const drives = [seen('red', { freeBytes: 50 }), seen('blue', { freeBytes: 49 })]
  const problem = onlyProblem(gather({ history, configuration, drives }))
  assert.equal([problem.code, problem.drive], ['LOW_SPACE', 'blue'])
})

status('where only the first target gets exports, the others are not late', () => {
  const second = { ...directory, name: 'second', path: '/media/second' }
  const stamp = '2026-03-01T020000Z'
  const old = { stamp, startMs: parseStamp(stamp) ?? 0 }
  const history = [
    exported(undefined, { target: 'second', ...old }),
    ran({ phase: 'full' }),
    exported(undefined),
  ]
  const targets = [directory, second]
  const all = gather({ history, configuration: { targets } })
  assert.is(onlyProblem(all).target, 'second')
  const first = gather({ history, configuration: { targets, exportTo: 'first' } })
  assert.equal(codes(first), [])
  const broken = failed({ phase: 'export', target: 'second', startMs: NOW_MS })
  const failing = gather({
    history: [...history, broken],
    configuration: { targets, exportTo: 'first' },
  })
  assert.is(onlyProblem(failing).code, 'RUN_FAILED')
})

status('where only the first target gets exports, a drive is not missed meanwhile', () => {
  const nas = { ...directory, name: 'nas' }
  const away = { startMs: NOW_MS - 30 * DAY_MS }
  const toDrives = [exported('red', away), exported('blue', away), ran({ phase: 'full' })]
  const gathered = (exportTo: 'all' | 'first', history: readonly RunRecord[]) => {
    return codes(gather({ history, configuration: { targets: [nas, pool], exportTo } }))
  }
  const history = [...toDrives, exported(undefined, { target: 'nas' })]
  assert.equal(gathered('all', history), ['DRIVE_OVERDUE', 'DRIVE_OVERDUE'])
  assert.equal(gathered('first', history), [])
  assert.equal(gathered('first', toDrives).includes('DRIVE_OVERDUE'), true)
})

status('metrics are written whole, readable for everybody, and leave nothing beside', () => {
  const place = tempDirectory()
  const path = `${place}/backup.prom`
  writeFileSync(path, 'old', { mode: 0o600 })
  // What killed runs left long ago, of this file and of another one.
  for (const name of ['backup.prom.1.partial', 'other.prom.1.partial']) {
    writeFileSync(`${place}/${name}`, '')
    utimesSync(`${place}/${name}`, 1, 1)
  }
  const mask = process.umask(0o077)
  try {
    writeMetricsFile(path, gather())
  } finally {
    process.umask(mask)
  }
  assert.is(statSync(path).mode & 0o777, 0o644)
  assert.match(readFileSync(path, 'utf8'), 'backup_problems{severity="bad"} 0\n')
  assert.equal(readdirSync(place).sort(), ['backup.prom', 'other.prom.1.partial'])
})

status('metrics that cannot be written leave the old ones, and nothing half', () => {
  const place = tempDirectory()
  const path = `${place}/backup.prom`
  mkdirSync(path)
  assert.throws(() => writeMetricsFile(path, gather()), /cannot be written to/)
  assert.equal(readdirSync(place), ['backup.prom'])
  assert.throws(
    () => writeMetricsFile(`${place}/no/such/backup.prom`, gather()),
    (error: { code: string }) => error.code === 'WRITE_FAILED',
  )
})

status(
  'after a run metrics are written where they are configured, and a failure is said',
  async () => {
    const staging = tempDirectory()
    const events: ReportEvent[] = []
    const report = (event: ReportEvent): void => void events.push(event)
    const write = async (metrics: string | undefined): Promise<void> => {
      const set = setConfiguration()
      const configuration = configurationOf(set, { staging, metrics })
      const document = await readRunStatus({ configuration, nowMs: NOW_MS, report })
      assert.ok(document !== undefined)
      writeMetrics({ configuration, document, report })
    }
    await write(undefined)
    assert.equal(readdirSync(staging), [])
    const path = `${tempDirectory()}/backup.prom`
    await write(path)
    assert.match(
      readFileSync(path, 'utf8'),
      'backup_healthy{set="home",target="",phase="collect"} 0',
    )
    assert.equal(events, [])
    await write(`${path}/no`)
    assert.is(events.length, 1)
    assert.match(JSON.stringify(events), 'WRITE_FAILED')
    assert.equal(readdirSync(staging), [], 'nothing is made in staging')
  },
)

const ON_TWO_DISKS = { sources: ['sda'], directories: new Map([['t9', ['sdb']]]) }

function scoreOf(document: StatusDocument): string {
  assert.ok(document.score !== undefined)
  const { copies, media, offSite } = document.score
  return `${copies}-${media}-${offSite}`
}

function whyOf({ score }: StatusDocument, place = 0): string | undefined {
  return score?.places[place]?.what
}

const WANTED = {
  wanted: { copies: 3, media: 2, offSite: 1 },
  isConfigured: true,
  provenWithinMs: 90 * DAY_MS,
}

status('a copy counts with a good export in time and a good receipt, and not without one', () => {
  const good = gather({ receipts: [receipt()], media: ON_TWO_DISKS })
  assert.is(scoreOf(good), '2-2-0')
  assert.is(whyOf(good), 'last good export 24 hours ago, proven 22 hours ago')
  assert.equal(codes(good), [], 'who asked for no score is not told of it')
  const shown = standingLines(good).join('\n')
  assert.match(shown, '3-2-1: 2 copies, 2 media, 0 off-site; 3 copies, 2 media, 1 off-site would')
  assert.match(shown, /^ {2}t9 {2}counts: last good export 24 hours ago/m)
  assert.match(shown, '→ add a target: a bucket, or a drive that is kept elsewhere')

  const unproven = gather({ media: ON_TWO_DISKS })
  assert.is(scoreOf(unproven), '1-1-0')
  assert.is(whyOf(unproven), 'home was never proven')
  assert.is(unproven.score?.next, '`backup drill --target t9`')
  // Of another set, of another machine, and of another repository that was there before.
  for (const change of [
    { exports: ['test/mail/2026-05-19T020000Z'] },
    { exports: ['other/home/2026-05-19T020000Z'] },
  ]) {
    assert.is(scoreOf(gather({ receipts: [receipt(change)] })), '1-1-0')
  }
})

status('a proof counts for as long as it is said, and one of a time to come not at all', () => {
  const end = (ms: number): string => new Date(ms).toISOString()
  const at = (ms: number): string => scoreOf(gather({ receipts: [receipt({ end: end(ms) })] }))
  assert.is(at(NOW_MS - 90 * DAY_MS), '2-2-0')
  assert.is(at(NOW_MS - 90 * DAY_MS - 1), '1-1-0')
  assert.is(at(NOW_MS + 1), '1-1-0')
  // A verification that read nothing now proves what was read then.
  const read = receipt({ kind: 'verification', since: end(NOW_MS - 90 * DAY_MS - 1) })
  assert.is(scoreOf(gather({ receipts: [read] })), '1-1-0')
  assert.is(scoreOf(gather({ receipts: [receipt({ kind: 'partial' })] })), '2-2-0')
})

status('an export that is late counts no more, one that failed since still does', () => {
  const receipts = [receipt()]
  const late = [ran({ phase: 'full' }), exported(undefined, { stamp: '2026-04-20T020000Z' })]
  const document = gather({ receipts, history: late })
  assert.is(scoreOf(document), '1-1-0')
  assert.is(whyOf(document), 'the last good export of home was 30 days ago')
  assert.is(document.score?.next, '`backup-external --target t9`')
  const failure = failed({ phase: 'export', target: 't9', startMs: NOW_MS - 1000 })
  const history = [ran({ phase: 'full' }), exported(undefined), failure]
  assert.is(scoreOf(gather({ receipts, history })), '2-2-0')
  assert.is(scoreOf(gather({ receipts, history: [] })), '1-1-0')
})

status('damage that stands takes a copy away, though it was proven before', () => {
  const damage = receipt({ result: 'damaged', damaged: ['x'], end: '2026-05-19T04:00:00.000Z' })
  const document = gather({ receipts: [receipt(), damage] })
  assert.is(scoreOf(document), '1-1-0')
  assert.is(whyOf(document), 'what was exported is damaged')
})

status('a directory on the disk of the sources is a copy, but no other medium', () => {
  const receipts = [receipt()]
  const on = (...disks: string[]) => ({ sources: ['sda'], directories: new Map([['t9', disks]]) })
  assert.is(scoreOf(gather({ receipts, media: on('sda') })), '2-1-0')
  assert.is(scoreOf(gather({ receipts, media: on('sdb', 'sda') })), '2-1-0')
  assert.is(scoreOf(gather({ receipts, media: on('sdb') })), '2-2-0')
  // What is not there now is no disk of the sources.
  assert.is(scoreOf(gather({ receipts, media: on() })), '2-2-0')
})

/** Two drives, exported to a day ago and proven. */
const TWO_DRIVES: Change = {
  configuration: { targets: [pool] },
  drives: [seen('red'), seen('blue')],
  history: [ran({ phase: 'full' }), exported('red'), exported('blue')],
  receipts: ['red', 'blue'].map((drive) => receipt({ drive, repository: `of ${drive}` })),
}

status('each drive of a pool is a copy and a medium, and is off-site when it is said', () => {
  const home = gather(TWO_DRIVES)
  assert.is(scoreOf(home), '3-3-0')
  assert.is(home.score?.next, 'take blue elsewhere, and give it `off_site: true`')
  const drives = pool.drives.map((drive) => ({ ...drive, offSite: drive.name === 'blue' }))
  const away = gather({ ...TWO_DRIVES, configuration: { targets: [{ ...pool, drives }] } })
  assert.is(scoreOf(away), '3-3-1')
  assert.is(away.score?.next, undefined)
  assert.match(standingLines(away).join('\n'), /3-2-1: 3 copies, 3 media, 1 off-site\n/)
  const both = gather({ ...TWO_DRIVES, configuration: { targets: [{ ...pool, offSite: true }] } })
  assert.is(scoreOf(both), '3-3-2')
})

status('a drive that is away too long, or was made anew, is said with what to do', () => {
  const history = [
    ran({ phase: 'full' }),
    exported('red', { stamp: '2026-05-01T020000Z' }),
    exported('blue'),
  ]
  const document = gather({ ...TWO_DRIVES, history })
  assert.is(scoreOf(document), '2-2-0')
  assert.is(
    document.score?.next,
    'plug in red, then `backup-external --target t9`, and take it elsewhere (`off_site: true`)',
  )
  const anew = gather({ ...TWO_DRIVES, drives: [seen('red', { repository: 'x' }), seen('blue')] })
  assert.is(scoreOf(anew), '2-2-0')
  assert.is(whyOf(anew), 'home was never proven')
})

status('buckets and hosts are off-site, unless they are evidently near or it is said', () => {
  const remote = { ...ANY, streams: 1, bandwidthLimitBytes: undefined, spoolLimitBytes: 1 }
  const sftp = (host: string): TargetConfiguration => ({
    ...{ ...remote, kind: 'sftp', host, port: 22, user: undefined, path: 'b' },
    ...{ hostKey: undefined, keyPath: undefined },
  })
  const s3 = (endpoint: string | undefined): TargetConfiguration => ({
    ...{ ...remote, kind: 's3', bucket: 'b', path: '', region: undefined, endpoint },
    ...{
      isPathStyle: false,
      profile: undefined,
      adminProfile: undefined,
      storageClass: 'STANDARD',
    },
    ...{ hotBelowBytes: 0, lockMs: undefined, costLimit: undefined, pricesPath: undefined },
  })
  const score = (target: TargetConfiguration): string => {
    return scoreOf(gather({ configuration: { targets: [target] }, receipts: [receipt()] }))
  }
  for (const host of [
    'nas',
    'nas.local',
    'NAS.home',
    '192.168.1.2',
    '127.0.0.1',
    '172.31.0.1',
    '::1',
  ])
    assert.is(score(sftp(host)), '2-2-0', host)
  for (const host of ['backup.example.org', '172.32.0.1', '11.0.0.1', '2001:db8::1'])
    assert.is(score(sftp(host)), '2-2-1', host)
  assert.is(score({ ...sftp('nas'), offSite: true }), '2-2-1')
  assert.is(score({ ...sftp('backup.example.org'), offSite: false }), '2-2-0')
  assert.is(score(s3(undefined)), '2-2-1')
  assert.is(score(s3('https://s3.example.org')), '2-2-1')
  assert.is(score(s3('http://127.0.0.1:9000')), '2-2-0')
  assert.is(score(s3('http://[::1]:9000')), '2-2-0')
  const unproven = gather({ configuration: { targets: [s3(undefined)] } })
  assert.is(unproven.score?.next, '`backup-restore --source external --target t9 --verify`')
})

status('a score that was asked for and is not reached is 3, and its own problem', () => {
  const configuration = { targets: [pool], score: WANTED }
  const { code, what, fix } = onlyProblem(gather({ ...TWO_DRIVES, configuration }))
  assert.is(code, 'SCORE_LOW')
  assert.is(what, '3-2-1: 3 copies, 3 media, 0 off-site; wanted are 3 copies, 2 media, 1 off-site')
  assert.is(fix, 'take blue elsewhere, and give it `off_site: true`')
  const reached = { ...WANTED, wanted: { copies: 3, media: 3, offSite: 0 } }
  const enough = gather({ ...TWO_DRIVES, configuration: { targets: [pool], score: reached } })
  assert.equal(codes(enough), [])
})

status('without one that was asked for, only what counted before and does not now is 3', () => {
  const lost = { remembered: ['t9'] }
  const document = gather(lost)
  const { code, what, fix, target } = onlyProblem(document)
  assert.is(code, 'SCORE_DROPPED')
  assert.is(
    what,
    '3-2-1: 1 copy, 1 medium, 0 off-site: t9 counts no more: ' + 'home was never proven',
  )
  assert.is(fix, '`backup drill --target t9`')
  assert.is(target, 't9')
  assert.is(document.exitCode, 3)
  assert.equal(codes(gather({ ...lost, receipts: [receipt()] })), [])
  // What nobody configures any more cannot be lost.
  assert.equal(codes(gather({ remembered: ['other', 't9 (red)'] })), [])
})

status('with enough of what was asked for, what counts no more is told, and is no problem', () => {
  const score = { ...WANTED, wanted: { copies: 2, media: 2, offSite: 0 } }
  const document = gather({
    ...TWO_DRIVES,
    receipts: TWO_DRIVES.receipts?.slice(0, 1) ?? [],
    configuration: { targets: [pool], score },
    remembered: ['t9 (red)', 't9 (blue)'],
  })
  assert.equal(codes(document), [])
  assert.equal(
    document.score?.places.map(({ isLost }) => isLost),
    [false, true],
  )
  const [announcement, ...more] = announced(document.score)
  assert.equal(more, [])
  assert.is(announcement?.kind, 'doubtful')
  assert.is(announcement?.title, 'Backup: only 2 copies, 2 media, 0 off-site')
  assert.match(
    announcement?.body ?? '',
    /^T9 \(blue\) counts no more: home was never proven\. Plug in/,
  )
})

status('a score that never was higher is announced to nobody', () => {
  assert.equal(announced(gather().score), [])
  const configuration = { targets: [directory], score: WANTED }
  assert.equal(announced(gather({ configuration }).score), [])
})

function announced(score: StatusDocument['score']) {
  const configuration = configurationOf(setConfiguration(), { staging: '/none' })
  const none = { runs: [], absent: [], ends: [], history: [], error: undefined }
  const work = { configuration, ...none, nowMs: NOW_MS, isGood: true, score }
  return announcementsOf(work).filter(({ subject }) => subject === 'score')
}

status('where only the first target gets exports, one that counts is enough', () => {
  const disk: TargetConfiguration = { ...directory, name: 'disk' }
  const configuration = { targets: [disk, directory], exportTo: 'first' } as const
  const remembered = ['disk', 't9']
  assert.equal(codes(gather({ configuration, receipts: [receipt()], remembered })), [])
  assert.equal(codes(gather({ configuration, remembered })), ['SCORE_DROPPED'])
})

status('of some sets there is no score', () => {
  const backupSets = [setConfiguration(), setConfiguration({ name: 'mail' })]
  assert.is(gather({ configuration: { targets: [directory], backupSets } }).score, undefined)
})

status('a set that is never exported takes nothing away, one without an export does', () => {
  const { schedule } = setConfiguration()
  const mail = setConfiguration({ name: 'mail', schedule: { ...schedule, external: 'never' } })
  const of = (set: typeof mail): StatusDocument => {
    const backupSets = [setConfiguration(), set]
    const configuration = { targets: [directory], backupSets }
    return gather({ configuration, sets: backupSets, receipts: [receipt()] })
  }
  assert.is(scoreOf(of(mail)), '2-2-0')
  const exportedToo = of(setConfiguration({ name: 'mail' }))
  assert.is(scoreOf(exportedToo), '1-1-0')
  assert.is(whyOf(exportedToo), 'no good export of mail yet')
})

status('what counts is remembered until it is configured no more', () => {
  const staging = tempDirectory()
  const remember = (change: Change): readonly string[] => {
    const { score } = gather(change)
    assert.ok(score !== undefined)
    rememberScore(staging, score)
    return readScoreMemory(staging)
  }
  assert.equal(remember({ receipts: [receipt()] }), [], 'nothing is made where no staging is')
  mkdirSync(`${staging}/.state`)
  assert.equal(remember({}), [])
  assert.equal(remember({ receipts: [receipt()] }), ['t9'])
  assert.equal(remember({}), ['t9'])
  assert.equal(remember({ configuration: { targets: [] } }), [])
  writeFileSync(`${staging}/.state/score.json`, '{"counted": 5')
  assert.equal(readScoreMemory(staging), [])
  assert.equal(remember({ receipts: [receipt()] }), ['t9'])
})

status('no property of the document is without its description', () => {
  const walk = (schema: unknown, path: string): void => {
    if (typeof schema !== 'object' || schema === null) return
    const { properties } = schema as Record<string, unknown>
    for (const [name, value] of Object.entries(properties ?? {})) {
      const { $ref, const: fixed, description: text } = value as Record<string, unknown>
      assert.ok(
        [$ref, fixed, text].some((one) => one !== undefined),
        `${path}.${name}`,
      )
    }
    for (const [name, value] of Object.entries(schema)) walk(value, `${path}.${name}`)
  }
  walk(JSON.parse(readFileSync(schemaFile, 'utf8')), '')
})

status.run()
