// Which announcements reach whom, and when again. The channels are real but for sendmail, which
// keeps a line for each mail; each test says which there are.

import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { suite } from 'uvu'
import type { NotifyConfiguration } from '../../lib/machine/config.ts'
import type { Announcement, AnnouncementKind } from '../../lib/model/announcement.ts'
import type { NoticeEvent, ReportEvent } from '../../lib/model/report.ts'
import { announce, ping, readNotifierFailures } from '../../lib/work/announce.ts'
import * as assert from '../helpers/assert.ts'
import { withPrograms } from '../helpers/stand-in.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const NOW_MS = Date.UTC(2025, 3, 1)
const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS

const SILENT: NotifyConfiguration = {
  desktop: false,
  onSuccess: false,
  onMissing: true,
  repeatMs: DAY_MS,
  lowSpace: { share: 0.05 },
  log: undefined,
  syslog: false,
  mail: undefined,
  webhook: undefined,
  ping: undefined,
}

function say(kind: AnnouncementKind, subject = 'export home t9'): Announcement {
  return { kind, subject, title: kind, body: 'text', facts: { set: 'home' } }
}

interface World {
  readonly staging: string
  readonly notify: NotifyConfiguration
  /** The subjects of the mails that were sent since it was last asked. */
  readonly mails: () => readonly string[]
  /** What the log got since, as `LEVEL kind`. */
  readonly logged: () => readonly string[]
  /** What programs were told since: codes, and kinds of what was announced. */
  readonly noticed: () => readonly string[]
  readonly warnings: () => readonly string[]
  readonly break: (isBroken: boolean) => void
  readonly tell: (
    announcements: readonly Announcement[],
    given?: Partial<Parameters<typeof announce>[0]>,
  ) => Promise<void>
}

/** Mail and a log, unless the test says otherwise. */
function newWorld(given: Partial<NotifyConfiguration> = {}): World {
  const directory = tempDirectory()
  const staging = `${directory}/staging`
  mkdirSync(`${staging}/.state`, { recursive: true })
  const sendmail = `${directory}/sendmail`
  const script = `#!/bin/sh
[ ! -e ${directory}/broken ] || { echo 'no route' >&2; exit 75; }
sed -n 's/^Subject: //p' >>${directory}/mails\n`
  writeFileSync(sendmail, script, { mode: 0o755 })
  const notify = {
    ...SILENT,
    log: { path: `${directory}/log`, maxBytes: 100_000, keep: 1 },
    mail: { to: ['me'], from: undefined, sendmail },
    ...given,
  }
  const take = (name: string): readonly string[] => {
    if (!existsSync(`${directory}/${name}`)) return []
    const lines = readFileSync(`${directory}/${name}`, 'utf8').split('\n').slice(0, -1)
    rmSync(`${directory}/${name}`)
    return lines
  }
  const notices: NoticeEvent[] = []
  const report = (event: ReportEvent): void => {
    if (event.kind === 'notice') notices.push(event)
  }
  return {
    staging,
    notify,
    mails: () => take('mails').map((subject) => subject.replace('[m] ', '')),
    logged: () => take('log').map((line) => line.replace(/^\S+ (.*) export home.*/, '$1')),
    noticed: () => {
      return notices.splice(0).map(({ code, facts }) => {
        return code === 'ANNOUNCED' ? String(facts?.['kind']) : code
      })
    },
    warnings: () =>
      notices.filter(({ level }) => level === 'warning').map(({ message }) => message),
    break: (isBroken) => {
      if (isBroken) writeFileSync(`${directory}/broken`, '')
      else rmSync(`${directory}/broken`)
    },
    tell: async (announcements, rest = {}) => {
      const world = { staging, notify, nowMs: NOW_MS, machine: 'm', report, environment: {} }
      await announce({ ...world, announcements, ...rest })
    },
  }
}

const KINDS = [
  'failed',
  'doubtful',
  'succeeded',
  'missing',
  'overdue',
  'low space',
  'safe to unplug',
] as const

const test = suite('announce')

for (const [name, given, silent] of [
  ['by default all but successes', {}, ['succeeded']],
  ['successes, where that is wanted', { onSuccess: true }, []],
  ['not what is missing, where that is not', { onMissing: false }, ['succeeded', 'missing']],
] as const) {
  test(`people are told ${name}; log and JSON get everything`, async () => {
    const world = newWorld(given)
    await world.tell(KINDS.map((kind) => say(kind, `export home ${kind}`)))
    const told = KINDS.filter((kind) => !(silent as readonly string[]).includes(kind))
    assert.equal(world.mails(), told)
    const levels = ['ERROR', 'WARN', 'INFO', 'WARN', 'WARN', 'WARN', 'INFO']
    assert.equal(
      world.logged(),
      KINDS.map((kind, index) => `${levels[index]} ${kind}`),
    )
    assert.equal(world.noticed(), KINDS)
  })
}

test('the same about the same is not told again until the time is over', async () => {
  const world = newWorld()
  const all = [say('failed'), say('missing'), say('safe to unplug'), say('failed')]
  await world.tell(all)
  assert.equal(world.mails(), ['failed', 'missing', 'safe to unplug'])
  await world.tell(all, { nowMs: NOW_MS + DAY_MS - 1 })
  assert.equal(world.mails(), ['safe to unplug'])
  assert.equal(world.logged().length, 2 * all.length, 'a log tells of every run')
  assert.equal(world.noticed().length, 2 * all.length)
  await world.tell([say('failed', 'export home t10'), say('doubtful')], { nowMs: NOW_MS + 1 })
  assert.equal(world.mails(), ['failed', 'doubtful'])
  await world.tell(all, { nowMs: NOW_MS + DAY_MS })
  assert.equal(world.mails(), ['failed', 'missing', 'safe to unplug'])
})

test('what was told by a clock that was ahead is told again', async () => {
  const world = newWorld()
  await world.tell([say('failed')], { nowMs: NOW_MS + 1000 * DAY_MS })
  await world.tell([say('failed')])
  assert.equal(world.mails(), ['failed', 'failed'])
})

test('once it went well, the next failure is told at once', async () => {
  const world = newWorld()
  const troubles = [say('failed'), say('doubtful'), say('missing'), say('overdue')]
  const other = say('failed', 'export home t10')
  await world.tell([...troubles, say('low space'), other])
  world.mails()
  await world.tell([say('succeeded')], { nowMs: NOW_MS + HOUR_MS })
  assert.equal(world.mails(), [])
  await world.tell([...troubles, say('low space'), other], { nowMs: NOW_MS + 2 * HOUR_MS })
  assert.equal(world.mails(), ['failed', 'doubtful', 'missing', 'overdue'])
})

test('what reached nobody is told again by the next run', async () => {
  const world = newWorld()
  world.break(true)
  await world.tell([say('failed')])
  assert.equal(world.mails(), [])
  assert.equal(world.noticed(), ['failed', 'NOTIFY_FAILED'])
  await world.tell([say('failed')], { nowMs: NOW_MS + HOUR_MS })
  assert.equal(world.noticed(), ['failed', 'NOTIFY_FAILED'])
  world.break(false)
  await world.tell([say('failed')], { nowMs: NOW_MS + 2 * HOUR_MS })
  assert.equal(world.mails(), ['failed'])
  assert.equal(world.logged(), ['ERROR failed', 'ERROR failed', 'ERROR failed'])
})

test('a channel that fails warns once a run, and is remembered until it works', async () => {
  const world = newWorld()
  world.break(true)
  await world.tell([say('failed'), say('missing')])
  const [warning = '', ...more] = world.warnings()
  assert.match(warning, /^telling you failed: mail: sendmail ended with exit code 75: no route \(/)
  assert.is(more.length, 0)
  const message = 'sendmail ended with exit code 75: no route'
  const failure = { channel: 'mail', message, atMs: NOW_MS }
  assert.equal(readNotifierFailures(world.staging), [failure])
  // Nothing to tell is no sign of life.
  await world.tell([])
  assert.equal(readNotifierFailures(world.staging), [failure])
  world.break(false)
  await world.tell([say('overdue')])
  assert.equal(readNotifierFailures(world.staging), [])
})

test('a channel that is configured no more has not failed', async () => {
  const world = newWorld()
  world.break(true)
  await world.tell([say('failed')])
  await world.tell([], { notify: { ...world.notify, mail: undefined } })
  assert.equal(readNotifierFailures(world.staging), [])
})

test('one channel that works is enough, and the one that failed is still said', async () => {
  const world = newWorld()
  const server = createServer((_request, response) => response.writeHead(500).end())
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const notify = { ...world.notify, webhook: { url: `http://127.0.0.1:${port}/s3cret` } }
  try {
    await world.tell([say('failed')], { notify })
    await world.tell([say('failed')], { notify, nowMs: NOW_MS + 1 })
    assert.equal(world.mails(), ['failed'])
    const message = 'the webhook answered 500'
    assert.equal(readNotifierFailures(world.staging), [
      { channel: 'webhook', message, atMs: NOW_MS },
    ])
    assert.not.match(JSON.stringify(world.warnings()), /s3cret/)
  } finally {
    server.close()
    server.closeAllConnections()
  }
})

test('that nobody sits at the desktop is no failure, and nobody was told', async () => {
  if (process.platform !== 'linux') return
  const world = newWorld()
  const notify = { ...world.notify, desktop: true, mail: undefined }
  await withPrograms({ loginctl: 'exit 0' }, async () => {
    await world.tell([say('failed')], { notify })
  })
  assert.equal(world.noticed(), ['failed'])
  assert.equal(readNotifierFailures(world.staging), [])
  await world.tell([say('failed')])
  assert.equal(world.mails(), ['failed'])
})

test('a channel that takes too long is given up, and the others are not held up', async () => {
  const world = newWorld()
  const directory = tempDirectory()
  const hanging = `${directory}/sendmail`
  const script = `#!/bin/sh\necho >>${directory}/calls\nexec sleep 60\n`
  writeFileSync(hanging, script, { mode: 0o755 })
  const notify = { ...world.notify, mail: { to: ['me'], from: undefined, sendmail: hanging } }
  const startMs = performance.now()
  await world.tell([say('failed'), say('missing'), say('overdue')], { notify, timeoutMs: 900 })
  assert.ok(performance.now() - startMs < 10_000)
  assert.is(readFileSync(`${directory}/calls`, 'utf8'), '\n', 'it was tried once')
  assert.equal(world.logged(), ['ERROR failed', 'WARN missing', 'WARN overdue'])
  assert.match(readNotifierFailures(world.staging)[0]?.message ?? '', /was ended after/)
})

test('an interruption ends the telling without a word, but the log has it', async () => {
  const world = newWorld()
  await world.tell([say('failed')], { signal: AbortSignal.abort() })
  assert.equal(world.logged(), ['ERROR failed'])
  assert.equal(world.noticed(), ['failed'])
  assert.equal(readNotifierFailures(world.staging), [])
  await world.tell([say('failed')])
  assert.equal(world.mails(), ['failed'])
})

test('a memory that is lost or damaged means told again, and it is of us alone', async () => {
  const world = newWorld()
  const file = `${world.staging}/.state/announcements.json`
  await world.tell([say('failed')])
  assert.is(statSync(file).mode & 0o777, 0o600)
  for (const text of ['', 'null', '[]', '{"told":{},"failures":[1]}', '{"told":[{"kind":"x"}]}']) {
    writeFileSync(file, text)
    world.mails()
    assert.equal(readNotifierFailures(world.staging), [])
    await world.tell([say('failed')])
    assert.equal(world.mails(), ['failed'])
  }
})

test('without staging nothing is made, and people are told all the same', async () => {
  const world = newWorld()
  rmSync(world.staging, { recursive: true })
  await world.tell([say('failed')])
  await world.tell([say('failed')])
  assert.equal(world.mails(), ['failed', 'failed'])
  assert.not(existsSync(world.staging))
  // A bare mount point is no staging either.
  mkdirSync(world.staging)
  await world.tell([say('failed')])
  assert.equal(readdirSync(world.staging), [])
})

test('a memory that cannot be written is a warning', async () => {
  const world = newWorld()
  mkdirSync(`${world.staging}/.state/announcements.json/in-the-way`, { recursive: true })
  await world.tell([say('failed')])
  assert.equal(world.mails(), ['failed'])
  assert.match(world.warnings()[0] ?? '', /cannot be remembered/)
})

test('what is remembered does not grow for ever', async () => {
  const world = newWorld()
  for (const nowMs of [NOW_MS, NOW_MS + 2 * DAY_MS]) {
    await world.tell([say('failed', `export home ${nowMs}`)], { nowMs })
  }
  const text = readFileSync(`${world.staging}/.state/announcements.json`, 'utf8')
  assert.not.match(text, new RegExp(`export home ${NOW_MS}"`))
  assert.match(text, new RegExp(`export home ${NOW_MS + 2 * DAY_MS}"`))
})

test('a ping that fails is a warning without the address, until one works', async () => {
  let status = 500
  const server = createServer((_request, response) => response.writeHead(status).end())
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const { staging } = newWorld()
  const notify = { ...SILENT, ping: { url: `http://127.0.0.1:${port}/s3cret` } }
  const events: ReportEvent[] = []
  const report = (event: ReportEvent): void => void events.push(event)
  const options = { staging, notify, report, nowMs: NOW_MS, text: 'good' }
  try {
    await ping({ ...options, phase: 'success' })
    assert.is(events.length, 1)
    assert.match(JSON.stringify(events), /NOTIFY_FAILED.*ping: the ping answered 500/)
    assert.not.match(JSON.stringify(events), /s3cret/)
    assert.is(readNotifierFailures(staging)[0]?.channel, 'ping')
    await announce({ ...options, announcements: [], machine: 'm', environment: {} })
    assert.is(readNotifierFailures(staging).length, 1)
    status = 200
    await ping({ ...options, phase: 'start' })
    assert.equal(readNotifierFailures(staging), [])
    assert.is(events.length, 1)
  } finally {
    server.close()
    server.closeAllConnections()
  }
})

test.run()
