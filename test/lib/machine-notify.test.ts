// The channels: what they hand over is read back by other programs. The desktop is a real session
// bus with a small notification service, the journal and the syslog are sockets in a namespace of
// their own, to which the real logger speaks.

import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { createServer, type IncomingMessage, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import type { LogConfiguration } from '../../lib/machine/config.ts'
import { showOnDesktop } from '../../lib/machine/notify/desktop.ts'
import { sendToJournal } from '../../lib/machine/notify/journal.ts'
import { logAnnouncement, logLine } from '../../lib/machine/notify/log-file.ts'
import { sendMail } from '../../lib/machine/notify/mail.ts'
import { postToWebhook, sendPing } from '../../lib/machine/notify/web.ts'
import type { Announcement } from '../../lib/model/announcement.ts'
import type { ReportEvent } from '../../lib/model/report.ts'
import * as assert from '../helpers/assert.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { withPrograms } from '../helpers/stand-in.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const NOW_MS = Date.UTC(2025, 3, 1, 2, 3, 4)

const FAILED: Announcement = {
  kind: 'failed',
  subject: 'export home t9',
  title: 'Backup to t9 failed',
  body: 'the target is full: "/media/t9"',
  facts: { set: 'home', exitCode: 1, complete: false, target: undefined },
}

const LIMIT = { timeoutMs: 8000 }

/** The system's own: its modules are Debian packages. */
const PYTHON = '/usr/bin/python3'

async function failure(promise: Promise<unknown>): Promise<BackupError> {
  try {
    await promise
  } catch (error) {
    if (error instanceof BackupError) return error
    throw error
  }
  throw new Error('it did not fail')
}

function failureNow(action: () => void): BackupError {
  try {
    action()
  } catch (error) {
    if (error instanceof BackupError) return error
    throw error
  }
  throw new Error('it did not fail')
}

const started: ChildProcess[] = []

/** A program that runs for the time of the test file; resolves at its first line. */
async function start(
  program: string,
  args: readonly string[],
  { uid = 0, environment = {} }: { uid?: number; environment?: NodeJS.ProcessEnv } = {},
): Promise<{ output: () => string }> {
  const child = spawn(program, [...args], {
    stdio: ['ignore', 'pipe', 'ignore'],
    env: { PATH: process.env['PATH'], ...environment },
    cwd: '/',
    ...(uid === 0 ? {} : { uid, gid: uid }),
  })
  started.push(child)
  let text = ''
  child.stdout.setEncoding('utf8').on('data', (part: string) => (text += part))
  await Promise.race([once(child.stdout, 'data'), once(child, 'exit')])
  assert.is(child.exitCode, null, `${program} ended: ${text}`)
  return { output: () => text }
}

async function until(isTrue: () => boolean): Promise<void> {
  for (let moment = 0; !isTrue() && moment < 400; moment++) await sleep(20)
  assert.ok(isTrue(), 'it did not happen within eight seconds')
}

// The log file

const log = suite('log file')

function newLog(given: Partial<LogConfiguration> = {}): LogConfiguration {
  return { path: `${tempDirectory()}/a/b/backup.log`, maxBytes: 4096, keep: 2, ...given }
}

const run = { nowMs: NOW_MS, level: 'INFO', kind: 'run', subject: 'home' } as const

log('an event is one line, whatever it holds, in a file of our own', () => {
  const here = newLog()
  const body = 'first\nsecond\r\u001b[31mred\u0000'
  logAnnouncement({ log: here, announcement: { ...FAILED, body }, nowMs: NOW_MS })
  logAnnouncement({ log: here, announcement: { ...FAILED, kind: 'overdue' }, nowMs: NOW_MS })
  logLine(here, { ...run, text: 'collected' })
  const said = 'export home t9: Backup to t9 failed:'
  assert.equal(readFileSync(here.path, 'utf8').split('\n'), [
    `2025-04-01T02:03:04.000Z ERROR failed ${said} first\\x0asecond\\x0d\\x1b[31mred\\x00`,
    `2025-04-01T02:03:04.000Z WARN overdue ${said} the target is full: "/media/t9"`,
    '2025-04-01T02:03:04.000Z INFO run home: collected',
    '',
  ])
  assert.is(statSync(here.path).mode & 0o777, 0o600)
  assert.is(statSync(here.path.replace('/backup.log', '')).mode & 0o777, 0o700)
})

log('it is put aside when a line would make it larger than its limit, and not before', () => {
  const line = '2025-04-01T02:03:04.000Z INFO run home: x\n'
  for (const [spare, files] of [
    [0, ['backup.log']],
    [-1, ['backup.log', 'backup.log.1']],
  ] as const) {
    const here = newLog({ maxBytes: 2 * line.length + spare })
    logLine(here, { ...run, text: 'x' })
    logLine(here, { ...run, text: 'x' })
    assert.equal(readdirSync(here.path.replace('/backup.log', '')).sort(), files)
  }
})

log('so many that were put aside stay, the newest in .1', () => {
  for (const keep of [0, 1, 2]) {
    const here = newLog({ maxBytes: 10, keep })
    for (const text of ['one', 'two', 'three', 'four']) logLine(here, { ...run, text })
    const names = readdirSync(here.path.replace('/backup.log', '')).sort()
    const texts = names.map((name) => {
      return readFileSync(here.path.replace('backup.log', name), 'utf8').trim().split(' ').at(-1)
    })
    assert.equal(texts, ['four', 'three', 'two'].slice(0, keep + 1))
  }
})

log('a line that was torn does not swallow the next', () => {
  const here = newLog()
  logLine(here, { ...run, text: 'x' })
  writeFileSync(here.path, 'torn')
  logLine(here, { ...run, text: 'x' })
  assert.is(readFileSync(here.path, 'utf8'), 'torn\n2025-04-01T02:03:04.000Z INFO run home: x\n')
})

log('a link is not followed, and a pipe does not hold it up', () => {
  const directory = tempDirectory()
  writeFileSync(`${directory}/precious`, 'untouched')
  symlinkSync('precious', `${directory}/link`)
  spawnSync('mkfifo', [`${directory}/pipe`])
  for (const [name, why] of [
    ['link', /is a symbolic link/],
    ['pipe', /is no file/],
  ] as const) {
    const error = failureNow(() =>
      logLine(newLog({ path: `${directory}/${name}` }), { ...run, text: 'x' }),
    )
    assert.is(error.code, 'WRITE_FAILED')
    assert.match(error.message, why)
  }
  assert.is(readFileSync(`${directory}/precious`, 'utf8'), 'untouched')
})

log('several processes at once lose no line while the log is put aside', async () => {
  const here = newLog({ maxBytes: 4096, keep: 100 })
  const module = new URL('../../lib/machine/notify/log-file.js', import.meta.url).href
  const script = `
    const { logLine } = await import(${JSON.stringify(module)})
    const log = ${JSON.stringify(here)}
    for (let number = 0; number < 300; number++) {
      logLine(log, { ...${JSON.stringify(run)}, text: process.argv[1] + '-' + number })
    }`
  const exits = ['a', 'b', 'c', 'd'].map(async (name) => {
    const args = ['--input-type=module', '-e', script, name]
    const child = spawn(process.execPath, args, { stdio: 'inherit' })
    assert.is((await once(child, 'exit'))[0], 0)
  })
  await Promise.all(exits)
  const directory = here.path.replace('/backup.log', '')
  const names = readdirSync(directory)
  const lines = names.flatMap((name) =>
    readFileSync(`${directory}/${name}`, 'utf8').trim().split('\n'),
  )
  assert.ok(names.length > 10, 'it was put aside many times')
  const sizes = names.map((name) => statSync(`${directory}/${name}`).size)
  assert.ok(sizes.every((size) => size <= 4096))
  assert.is(sizes.filter((size) => size < 4000).length, 1, 'only a full one is put aside')
  assert.is(new Set(lines).size, 1200)
  assert.is(lines.length, 1200)
})

log.run()

// The journal and the syslog

const journal = suite('journal')

/** Prints each datagram as a line of JSON. */
const LISTENER = `
import json, os, socket, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o666)
print('ready', flush=True)
while True: print(json.dumps(listener.recv(1 << 20).decode()), flush=True)
`

/** The real logger, which finds this socket where the journal's, or the syslog's, lies. */
async function withSocket(
  place: 'journal' | 'syslog',
  action: (socket: string) => Promise<void>,
): Promise<string[]> {
  const socket = `${tempDirectory()}/socket`
  const { output } = await start(PYTHON, ['-c', LISTENER, socket])
  const ofJournal = '/run/systemd/journal'
  const link = `ln -s ${socket}`
  const lay = {
    journal: `mount -t tmpfs none /run && mkdir -p ${ofJournal} && ${link} ${ofJournal}/socket`,
    syslog: `mount -t tmpfs none /dev && ${link} /dev/log`,
  }[place]
  const logger = `exec unshare -m sh -c '${lay} && exec /usr/bin/logger "$@"' sh "$@"`
  const got = (): string[] => output().split('\n').slice(1, -1)
  await withPrograms({ logger }, async () => await action(socket))
  await until(() => got().length > 0)
  return got().map((line) => JSON.parse(line) as string)
}

if (canRunAsRoot('the journal and the syslog by the real logger')) {
  journal('the journal gets fields, and no value makes one of its own', async () => {
    const facts = { ...FAILED.facts, 'odd näme': 'a\nPRIORITY=0', kind: 'other' }
    const announcement = { ...FAILED, body: 'one\nBACKUP_KIND=succeeded', facts }
    const [entry = '', ...more] = await withSocket('journal', async (journalSocket) => {
      await sendToJournal({ announcement, ...LIMIT, journalSocket })
    })
    const fields = entry.split('\n').filter((line) => !line.startsWith('SYSLOG_TIMESTAMP'))
    assert.equal(fields, [
      'MESSAGE=Backup to t9 failed: one\\x0aBACKUP_KIND=succeeded',
      'PRIORITY=3',
      'SYSLOG_IDENTIFIER=backup',
      'BACKUP_KIND=failed',
      'BACKUP_SUBJECT=export home t9',
      'BACKUP_SET=home',
      'BACKUP_EXIT_CODE=1',
      'BACKUP_COMPLETE=false',
      'BACKUP_ODD_N_ME=a\\x0aPRIORITY=0',
      '',
    ])
    assert.is(more.length, 0)
  })

  journal('without a journal the syslog gets a line of the right level', async () => {
    const announcement = {
      ...FAILED,
      title: '--help',
      kind: 'low space',
      body: 'ä'.repeat(900),
    } as const
    const [line = '', ...more] = await withSocket('syslog', async (syslogSocket) => {
      await sendToJournal({ announcement, ...LIMIT, journalSocket: '/nonexistent', syslogSocket })
    })
    assert.match(line, /^<12>.* backup: --help: ä+…$/)
    assert.is(more.length, 0)
  })
}

journal('without either it fails and says so', async () => {
  if (process.platform !== 'linux') return
  const nowhere = { journalSocket: '/nonexistent', syslogSocket: '/nonexistent' }
  const error = await failure(sendToJournal({ announcement: FAILED, ...LIMIT, ...nowhere }))
  assert.match(error.message, /neither a journal nor a syslog/)
})

journal('a logger that fails is a failure', async () => {
  await withPrograms({ logger: 'cat >/dev/null; echo no such thing >&2; exit 3' }, async () => {
    const error = await failure(
      sendToJournal({ announcement: FAILED, ...LIMIT, journalSocket: '/' }),
    )
    assert.is(error.message, 'logger ended with exit code 3: no such thing')
  })
})

journal.run()

// Mail

const mail = suite('mail')

/** A sendmail that keeps what it gets. */
function newSendmail(status = 0): { path: string; args: () => string; message: () => string } {
  const directory = tempDirectory()
  const path = `${directory}/sendmail`
  const script = `#!/bin/sh
printf '%s\\n' "$@" >${directory}/args
cat >${directory}/message
echo 'queue is full' >&2
exit ${status}\n`
  writeFileSync(path, script, { mode: 0o755 })
  const read = (name: string) => (): string => readFileSync(`${directory}/${name}`, 'utf8')
  return { path, args: read('args'), message: read('message') }
}

/** What Python's mail library makes of a message. */
function parseMail(message: string): { headers: [string, string][]; body: string } {
  const script = `
import email, email.policy, json, sys
message = email.message_from_bytes(sys.stdin.buffer.read(), policy=email.policy.default)
assert not message.defects, message.defects
headers = [[name, str(value)] for name, value in message.items()]
print(json.dumps({'headers': headers, 'body': message.get_content()}))`
  const { stdout, stderr } = spawnSync(PYTHON, ['-c', script], { input: message, encoding: 'utf8' })
  assert.is(stderr, '')
  return JSON.parse(stdout) as { headers: [string, string][]; body: string }
}

mail('another program reads what was sent, and it says that no one should answer', async () => {
  const sendmail = newSendmail()
  const to = ['me@example.org', 'root']
  const body = `zażółć\n.\nFrom me = you\ntrailing space \n${'long ä '.repeat(40)}end`
  const announcement = {
    ...FAILED,
    title: 'Sicherung fällt aus: 日本語のファイル名がとても長い場合',
    body,
  }
  const configuration = { to, from: 'b@example.org', sendmail: sendmail.path }
  const call = { machine: 'büro', nowMs: NOW_MS, ...LIMIT }
  await sendMail({ announcement, mail: configuration, ...call })
  assert.is(sendmail.args(), '-oi\n-f\nb@example.org\n--\nme@example.org\nroot\n')
  const { headers, body: text } = parseMail(sendmail.message())
  const header = Object.fromEntries(headers)
  assert.is(header['Subject'], `[büro] ${announcement.title}`)
  assert.is(header['From'], 'b@example.org')
  assert.is(header['To'], 'me@example.org, root')
  assert.is(header['Date'], 'Tue, 01 Apr 2025 02:03:04 +0000')
  assert.is(header['Auto-Submitted'], 'auto-generated')
  assert.match(header['Message-ID'] ?? '', /^<[^@\s]+@[^@\s]+>$/)
  assert.ok(text.startsWith(`${body}\n\nmachine: büro\nkind: failed\n`), text)
  assert.ok(text.includes('\nexitCode: 1\n'), text)
  const lines = sendmail.message().split('\n')
  assert.ok(lines.every((line) => line.length <= 76 && /^[\x20-\x7e]*$/.test(line)))
})

mail('no value adds a header', async () => {
  const sendmail = newSendmail()
  const title = 'hello\r\nBcc: all@example.org\r\n\r\nbody'
  const subject = 'x\nX-Evil: 1'
  const configuration = { to: ['root'], from: undefined, sendmail: sendmail.path }
  const machine = 'm\nX-Evil: 2'
  const announcement = { ...FAILED, title, subject }
  await sendMail({ announcement, mail: configuration, machine, nowMs: NOW_MS, ...LIMIT })
  const { headers } = parseMail(sendmail.message())
  const wanted = '[m\\x0aX-Evil: 2] hello\\x0d\\x0aBcc: all@example.org\\x0d\\x0a\\x0d\\x0abody'
  assert.is(Object.fromEntries(headers)['Subject'], wanted)
  const names = headers.map(([name]) => name).filter((name) => /bcc|evil/i.test(name))
  assert.equal(names, [])
  assert.ok(headers.some(([name, value]) => name === 'From' && /^[\w.-]+@[\w.-]+$/.test(value)))
})

mail('a sendmail that fails, and an address that is an option, are failures', async () => {
  const sendmail = newSendmail(75)
  const call = { announcement: FAILED, machine: 'm', nowMs: NOW_MS, ...LIMIT }
  const of = (to: string) => ({ to: [to], from: undefined, sendmail: sendmail.path })
  const refused = await failure(sendMail({ ...call, mail: of('-bs') }))
  assert.match(refused.message, /begins with "-"/)
  assert.not(existsSync(sendmail.path.replace(/sendmail$/, 'args')), 'nothing was started')
  const error = await failure(sendMail({ ...call, mail: of('root') }))
  assert.is(error.message, 'sendmail ended with exit code 75: queue is full')
  const absent = { to: ['root'], from: undefined, sendmail: '/nonexistent/sendmail' }
  assert.is((await failure(sendMail({ ...call, mail: absent }))).code, 'PROGRAM_ABSENT')
})

mail.run()

// The web

const web = suite('web')

interface Got {
  readonly method: string
  readonly url: string
  readonly headers: IncomingMessage['headers']
  readonly body: string
}

const servers: Server[] = []

/** Answers with this status, and keeps what it got. Without one it does not answer. */
async function serve(status: number | undefined): Promise<{ got: Got[]; port: number }> {
  const got: Got[] = []
  const server = createServer((incoming, response) => {
    const parts: Buffer[] = []
    incoming.on('data', (part: Buffer) => parts.push(part))
    incoming.on('end', () => {
      const { method = '', url = '', headers } = incoming
      got.push({ method, url, headers, body: Buffer.concat(parts).toString() })
      if (status === undefined) return
      response.writeHead(status, { location: `http://127.0.0.1:${port}/elsewhere` })
      response.end('thanks')
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  servers.push(server)
  const { port } = server.address() as AddressInfo
  return { got, port }
}

const quiet = (): void => {}

web('the webhook gets all of it as JSON', async () => {
  const { got, port } = await serve(204)
  const address = { url: `http://us%40er:p%C3%A4ss@127.0.0.1:${port}/hook?key=1` }
  const call = { announcement: FAILED, machine: 'm', nowMs: NOW_MS, report: quiet, ...LIMIT }
  await postToWebhook({ ...call, address })
  assert.is(got.length, 1)
  assert.is(`${got[0]?.method} ${got[0]?.url}`, 'POST /hook?key=1')
  assert.is(got[0]?.headers['content-type'], 'application/json')
  const basic = `Basic ${Buffer.from('us@er:päss').toString('base64')}`
  assert.is(got[0]?.headers.authorization, basic)
  const { kind, subject, title, body } = FAILED
  assert.equal(JSON.parse(got[0]?.body ?? ''), {
    ...{ machine: 'm', kind, subject, title, body, time: '2025-04-01T02:03:04.000Z' },
    facts: { set: 'home', exitCode: 1, complete: false },
  })
})

web(
  'an answer that is no, none, or a redirect is a failure that does not name the address',
  async () => {
    const call = { announcement: FAILED, machine: 'm', nowMs: NOW_MS, report: quiet }
    for (const [status, timeoutMs, message] of [
      [500, 5000, 'the webhook answered 500'],
      [307, 5000, 'the webhook answered 307'],
      [302, 5000, 'the webhook answered 302'],
      [undefined, 900, 'the webhook did not answer within 1 seconds'],
    ] as const) {
      const { got, port } = await serve(status)
      const address = { url: `http://127.0.0.1:${port}/s3cret` }
      const error = await failure(postToWebhook({ ...call, address, timeoutMs }))
      assert.is(error.message, message)
      assert.is(got.length, 1, 'no redirect is followed')
      assertNoSecret(error)
    }
    // Nothing listens on a port that was closed.
    const { port } = await serve(200)
    servers.at(-1)?.close()
    for (const url of [
      `http://127.0.0.1:${port}/s3cret`,
      'http://s3cret:%ZZ@127.0.0.1/s3cret',
      'http://[s3cret',
      'file:///s3cret',
    ]) {
      assertNoSecret(await failure(postToWebhook({ ...call, address: { url }, timeoutMs: 5000 })))
    }
  },
)

function assertNoSecret(error: BackupError): void {
  const { message, hint, facts, stack, cause } = error
  assert.not.match(JSON.stringify([message, hint, facts, stack, String(cause)]), /s3cret|127\.0/)
}

web('an interruption ends it at once', async () => {
  const { port } = await serve(undefined)
  const address = { url: `http://127.0.0.1:${port}/` }
  const signal = AbortSignal.timeout(100)
  const call = { announcement: FAILED, machine: 'm', nowMs: NOW_MS, report: quiet, ...LIMIT }
  assert.is((await failure(postToWebhook({ ...call, address, signal }))).code, 'INTERRUPTED')
})

web('the address is the first line of its file; that everyone can read it is said', async () => {
  const { got, port } = await serve(200)
  const file = `${tempDirectory()}/hook.url`
  writeFileSync(file, `http://127.0.0.1:${port}/s3cret \nnot this\n`, { mode: 0o600 })
  const events: ReportEvent[] = []
  const call = {
    ...{ announcement: FAILED, machine: 'm', nowMs: NOW_MS, ...LIMIT },
    report: (event: ReportEvent) => events.push(event),
    address: { urlFile: file },
  }
  await postToWebhook(call)
  assert.is(got[0]?.url, '/s3cret')
  assert.is(events.length, 0)
  chmodSync(file, 0o644)
  await postToWebhook(call)
  assert.is(events.length, 1)
  assert.match(JSON.stringify(events), /ADDRESS_OPEN/)
  assert.not.match(JSON.stringify(events), /s3cret/)
  const absent = await failure(postToWebhook({ ...call, address: { urlFile: `${file}.no` } }))
  assert.match(absent.message, /cannot be read \(ENOENT\)/)
})

web('pings go to the address, /start and /fail, before its query, with at most 10 KB', async () => {
  const { got, port } = await serve(200)
  const address = { url: `http://127.0.0.1:${port}/uuid/?create=1` }
  const call = { address, report: quiet, ...LIMIT }
  await sendPing({ ...call, phase: 'start', text: '' })
  await sendPing({ ...call, phase: 'success', text: `x${'ä'.repeat(6000)}` })
  await sendPing({ ...call, phase: 'fail', text: 'home: the target is full' })
  assert.equal(
    got.map(({ method, url }) => `${method} ${url}`),
    ['POST /uuid/start?create=1', 'POST /uuid/?create=1', 'POST /uuid/fail?create=1'],
  )
  assert.is(got[1]?.body, `x${'ä'.repeat(4999)}`)
  assert.is(got[2]?.body, 'home: the target is full')
})

web.after(() => {
  for (const server of servers) {
    server.close()
    server.closeAllConnections()
  }
})

web.run()

// The desktop

const desktop = suite('desktop')

/** A notification service that prints what it is to show. */
const SERVICE = `
import dbus, dbus.service, json
from dbus.mainloop.glib import DBusGMainLoop
from gi.repository import GLib
NAME = 'org.freedesktop.Notifications'
class Service(dbus.service.Object):
    @dbus.service.method(NAME, in_signature='', out_signature='ssss')
    def GetServerInformation(self): return ('test', 'test', '1', '1.2')
    @dbus.service.method(NAME, in_signature='', out_signature='as')
    def GetCapabilities(self): return ['body', 'body-markup']
    @dbus.service.method(NAME, in_signature='susssasa{sv}i', out_signature='u')
    def Notify(self, app, _id, icon, title, body, _actions, hints, _time):
        shown = {'app': app, 'icon': icon, 'title': title, 'body': body}
        print(json.dumps({**shown, 'urgency': int(hints['urgency'])}), flush=True)
        return 1
DBusGMainLoop(set_as_default=True)
bus = dbus.SessionBus()
name = dbus.service.BusName(NAME, bus)
service = Service(bus, '/org/freedesktop/Notifications')
print('ready', flush=True)
GLib.MainLoop().run()
`

/** A user that every system has. */
const NOBODY = Number(spawnSync('id', ['-u', 'nobody'], { encoding: 'utf8' }).stdout)

function canShow(): boolean {
  const test = spawnSync(PYTHON, ['-c', 'import dbus, gi'])
  if (test.status === 0) return canRunAsRoot('notifications on a real session bus')
  if (process.env['CI'] === 'true') throw new Error('python3-dbus and python3-gi are needed')
  process.stdout.write('SKIP notifications: need python3-dbus and python3-gi\n')
  return false
}

/** What was shown, once there are so many. */
type Shown = (count: number) => Promise<unknown[]>

/** The session bus of `user`, at its place below `runtime`; gives what is shown there. */
async function openSession(runtime: string, user: 'root' | 'nobody'): Promise<Shown> {
  const uid = user === 'root' ? 0 : NOBODY
  const address = `unix:path=${runtime}/${uid}/bus`
  mkdirSync(`${runtime}/${uid}`, { mode: 0o700 })
  chownSync(`${runtime}/${uid}`, uid, uid)
  const bus = ['--session', `--address=${address}`, '--nofork', '--nopidfile', '--print-address']
  await start('dbus-daemon', bus, { uid })
  const environment = { DBUS_SESSION_BUS_ADDRESS: address }
  const { output } = await start(PYTHON, ['-c', SERVICE], { uid, environment })
  const lines = (): string[] => output().split('\n').slice(1, -1)
  return async (count) => {
    await until(() => lines().length >= count)
    return lines().map((line) => JSON.parse(line) as unknown)
  }
}

/** A place for session buses that any user can pass through. */
function newRuntime(): string {
  const runtime = tempDirectory()
  chmodSync(runtime, 0o711)
  return runtime
}

interface Session {
  readonly name: string
  readonly uid: number
  readonly type?: string
  readonly state?: string
  readonly class?: string
}

/** A loginctl with these sessions. */
function loginctl(sessions: readonly Session[]): Readonly<Record<string, string>> {
  const list = sessions.map(({ uid, name }, index) => `  c${index} ${uid} ${name} seat0 tty2`)
  const shown = sessions.map(
    ({ name, uid, type = 'wayland', state = 'active', ...rest }, index) => {
      const facts = [`Name=${name}`, `User=${uid}`, `Type=${type}`, `State=${state}`]
      return `c${index}) cat <<'END'\n${facts.join('\n')}\nClass=${rest.class ?? 'user'}\nEND\n;;`
    },
  )
  const script = `case $1 in
list-sessions) [ "$2" = --no-legend ] || exit 1; cat <<'END'
${list.join('\n')}
END
;;
show-session) case $2 in
${shown.join('\n')}
esac ;;
esac`
  return { loginctl: script }
}

/** What showOnDesktop gives, or throws, where this program is none; nobody else sees that. */
async function showWithout(program: string, told: object): Promise<string> {
  const module = new URL('../../lib/machine/notify/desktop.js', import.meta.url).href
  const script = `const { showOnDesktop } = await import(${JSON.stringify(module)})
const wrong = ({ code, message, hint }) => code + ' ' + message + ' ' + hint
console.log(await showOnDesktop(${JSON.stringify(told)}).catch(wrong))`
  const hide = `mount --bind /dev/null "$(command -v ${program})" && exec "$@"`
  const node = [process.execPath, '--input-type=module', '-e', script]
  const child = spawn('unshare', ['-m', 'sh', '-c', hide, 'sh', ...node], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let said = ''
  child.stdout.on('data', (part: Buffer) => (said += part.toString()))
  await once(child, 'close')
  return said.trim()
}

const HOSTILE: Announcement = {
  ...FAILED,
  title: "--help 'ä' $(touch /tmp/x) \\n",
  body: 'a <b>file</b> &amp; C:\\new\nsecond line; `id`\u0007',
}

const SHOWN = {
  app: 'backup',
  icon: 'dialog-error',
  title: HOSTILE.title,
  body: 'a &lt;b&gt;file&lt;/b&gt; &amp;amp; C:\\new\nsecond line; `id`\\x07',
  urgency: 2,
}

const call = { environment: {}, platform: 'linux', ...LIMIT } as const

if (process.platform === 'linux' && canShow()) {
  desktop('from root, each user with a graphical session is told, as that user, once', async () => {
    const runtimeDirectory = newRuntime()
    const shown = await openSession(runtimeDirectory, 'nobody')
    const shownToRoot = await openSession(runtimeDirectory, 'root')
    const sessions = [
      { name: 'nobody', uid: NOBODY },
      { name: 'nobody', uid: NOBODY, type: 'x11', state: 'online' },
      { name: 'root', uid: 0, type: 'x11' },
    ]
    await withPrograms(loginctl(sessions), async () => {
      const announcement = HOSTILE
      assert.is(await showOnDesktop({ ...call, announcement, uid: 0, runtimeDirectory }), true)
    })
    assert.equal(await shown(1), [SHOWN])
    assert.equal(await shownToRoot(1), [SHOWN])
  })

  desktop('text consoles, login screens and sessions that end are nobody', async () => {
    const runtimeDirectory = newRuntime()
    const shown = await openSession(runtimeDirectory, 'nobody')
    const nobody = { name: 'nobody', uid: NOBODY }
    const sessions = [
      { ...nobody, type: 'tty' },
      { ...nobody, type: 'unspecified' },
      { ...nobody, state: 'closing' },
      { ...nobody, class: 'greeter' },
    ]
    for (const each of [sessions, []]) {
      await withPrograms(loginctl(each), async () => {
        const told = { ...call, announcement: FAILED, runtimeDirectory }
        assert.is(await showOnDesktop({ ...told, uid: 0 }), false)
        assert.is(await showOnDesktop({ ...told, uid: NOBODY }), false)
      })
    }
    assert.equal(await shown(0), [])
  })

  desktop('without loginctl, whoever has a session bus is told', async () => {
    const runtimeDirectory = newRuntime()
    const shown = await openSession(runtimeDirectory, 'nobody')
    mkdirSync(`${runtimeDirectory}/1234567`)
    const told = { ...call, announcement: FAILED, uid: 0, runtimeDirectory }
    assert.is(await showWithout('loginctl', told), 'true')
    assert.is((await shown(1)).length, 1)
  })

  desktop('without notify-send the package answers, and it is said what to install', async () => {
    const environment = { DISPLAY: ':7', DBUS_SESSION_BUS_ADDRESS: 'unix:path=/nonexistent' }
    const told = { ...call, announcement: HOSTILE, uid: 1000, environment }
    const said = await showWithout('notify-send', told)
    assert.match(said, /^PROGRAM_FAILED .*not found: notify-send.* apt install libnotify-bin/)
  })

  desktop('one of two who can be told is enough; none is a failure', async () => {
    const runtimeDirectory = newRuntime()
    const shown = await openSession(runtimeDirectory, 'nobody')
    const told = { ...call, announcement: FAILED, uid: 0, runtimeDirectory }
    const busless = { name: 'root', uid: 0 }
    const strange = { name: '--command=true', uid: 77 }
    await withPrograms(loginctl([busless, { name: 'nobody', uid: NOBODY }]), async () => {
      assert.is(await showOnDesktop(told), true)
    })
    assert.is((await shown(1)).length, 1)
    await withPrograms(loginctl([busless, strange]), async () => {
      const error = await failure(showOnDesktop(told))
      assert.is(error.code, 'PROGRAM_FAILED')
      assert.match(error.message, /the desktop shows no notification: ./)
    })
    await withPrograms(loginctl([strange]), async () => {
      assert.match((await failure(showOnDesktop(told))).message, /user --command=true/)
    })
  })

  desktop(
    'not root, our own session is told, by the environment or by its usual place',
    async () => {
      const runtimeDirectory = newRuntime()
      const shown = await openSession(runtimeDirectory, 'root')
      const told = { ...call, announcement: HOSTILE, uid: 1000 }
      const bus = `unix:path=${runtimeDirectory}/0/bus`
      const environment = { DISPLAY: ':7', DBUS_SESSION_BUS_ADDRESS: bus, SECRET: 'x' }
      assert.is(await showOnDesktop({ ...told, environment }), true)
      // As from cron, which knows of no session.
      symlinkSync('0', `${runtimeDirectory}/1000`)
      await withPrograms(loginctl([{ name: 'me', uid: 1000 }]), async () => {
        assert.is(await showOnDesktop({ ...told, runtimeDirectory }), true)
      })
      assert.equal(await shown(2), [SHOWN, SHOWN])
    },
  )

  desktop(
    'a desktop without a notification service is a failure that says what to do',
    async () => {
      const runtimeDirectory = newRuntime()
      mkdirSync(`${runtimeDirectory}/0`)
      const address = `unix:path=${runtimeDirectory}/0/bus`
      await start('dbus-daemon', [
        '--session',
        `--address=${address}`,
        '--nofork',
        '--print-address',
      ])
      const environment = { DISPLAY: ':7', DBUS_SESSION_BUS_ADDRESS: address }
      const error = await failure(
        showOnDesktop({ ...call, announcement: FAILED, uid: 1000, environment }),
      )
      assert.match(error.message, /org\.freedesktop\.Notifications/)
      assert.match(error.hint ?? '', /notify\.desktop/)
    },
  )
}

desktop('a notification that hangs is ended', async () => {
  const programs = { ...loginctl([{ name: 'me', uid: 1000 }]), 'notify-send': 'exec sleep 60' }
  await withPrograms(programs, async () => {
    const told = { ...call, announcement: FAILED, uid: 1000, timeoutMs: 200 }
    assert.is((await failure(showOnDesktop(told))).code, 'PROGRAM_TIMEOUT')
  })
})

desktop(
  'on macOS the text is data to osascript, as the user at the console from root',
  async () => {
    const words = `${tempDirectory()}/words`
    const record = (name: string): string => `printf '%s\\n' ${name} "$@" >${words}`
    const told = { ...call, announcement: { ...HOSTILE, body: '-e' }, platform: 'darwin' } as const
    await withPrograms({ osascript: record('osascript') }, async () => {
      assert.is(await showOnDesktop({ ...told, uid: 501 }), true)
    })
    const script = [
      'on run argv',
      'display notification (item 3 of argv) with title (item 2 of argv)',
      'end run',
    ]
    const said = [
      'osascript',
      ...script.flatMap((line) => ['-e', line]),
      'backup',
      HOSTILE.title,
      '-e',
    ]
    assert.equal(readFileSync(words, 'utf8').split('\n').slice(0, -1), said)
    for (const [user, isThere] of [
      ['me 501', true],
      ['root 0', false],
      ['_mbsetupuser 248', false],
    ] as const) {
      writeFileSync(words, '')
      await withPrograms({ stat: `echo '${user}'`, launchctl: record('launchctl') }, async () => {
        assert.is(await showOnDesktop({ ...told, uid: 0 }), isThere)
      })
      const expected = ['launchctl', 'asuser', '501', 'sudo', '-u', 'me', '--', ...said]
      const got = readFileSync(words, 'utf8').split('\n').slice(0, -1)
      assert.equal(got, isThere ? expected : [])
    }
  },
)

desktop.after(async () => {
  const ended = started.filter((child) => child.exitCode === null && child.signalCode === null)
  await Promise.all(
    ended.map(async (child) => {
      child.kill()
      await once(child, 'exit')
    }),
  )
})

desktop.run()
