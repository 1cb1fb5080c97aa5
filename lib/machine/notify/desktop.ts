// A notification on the desktop of whoever sits there.
//
// lib/work/announce.ts calls it. `notify-send` and `osascript` are called as programs with
// arguments, because node-notifier hands notify-send its text through a shell, and brings a program
// that Apple's own processors do not run; it serves what has neither (Windows beneath Linux,
// Growl). From root, each user with a graphical session is told as that user: a session bus refuses
// root. That nobody is there is no failure, and nobody is told. Throws PROGRAM_ABSENT,
// PROGRAM_FAILED, PROGRAM_TIMEOUT, INTERRUPTED. What is done on macOS is by the manual; it was not
// tried there.

import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { BackupError } from '../../errors.ts'
import { urgencyOf, type Announcement } from '../../model/announcement.ts'
import { displayText } from '../../model/raw-path.ts'
import { findProgram, runProgram } from '../shell.ts'

export interface DesktopCall {
  readonly announcement: Announcement
  readonly timeoutMs: number
  readonly signal?: AbortSignal | undefined
  /** Ours: where the session is. */
  readonly environment: Readonly<Record<string, string | undefined>>
  /** For tests; what they are when nothing is said. */
  readonly platform?: NodeJS.Platform
  readonly uid?: number
  readonly runtimeDirectory?: string
}

interface Person {
  readonly name: string
  readonly uid: number
}

/** A notification is glanced at. */
const MAX_BODY_CHARACTERS = 600

/** Where users' session buses lie. */
const RUNTIME_DIRECTORY = '/run/user'

/** What leads to the session: passed on to notify-send when it runs as ourselves. */
const SESSION_VARIABLES = [
  'DBUS_SESSION_BUS_ADDRESS',
  'DISPLAY',
  'WAYLAND_DISPLAY',
  'XAUTHORITY',
  'XDG_RUNTIME_DIR',
]

/**
 * node-notifier answers at once when it cannot, and on Windows only when the person has closed the
 * notification when it can.
 */
const NO_COMPLAINT_MS = 3000

/**
 * Shows it to whoever is there.
 * @returns whether anyone was
 * @throws BackupError as the header says, when none of those who are there could be told
 */
export async function showOnDesktop(call: DesktopCall): Promise<boolean> {
  const { platform = process.platform, uid = process.getuid?.() } = call
  const isRoot = uid === 0
  if (platform === 'darwin') return await showOnMac(call, isRoot)
  if (isRoot) return await showToOthers(call)
  return await showToOurselves(call, uid)
}

async function showToOurselves(call: DesktopCall, uid: number | undefined): Promise<boolean> {
  const { environment } = call
  const bus = join(call.runtimeDirectory ?? RUNTIME_DIRECTORY, `${uid}`, 'bus')
  const hasDisplay = [environment['DISPLAY'], environment['WAYLAND_DISPLAY']].some(Boolean)
  // From cron or a login without a desktop: a session may be open all the same, or there is none.
  if (!hasDisplay && !(await findPeople(call)).some((person) => person.uid === uid)) return false
  if (findProgram('notify-send') === undefined) return await showByPackage(call.announcement)
  const given = SESSION_VARIABLES.flatMap((name) => {
    const value = environment[name]
    return value === undefined ? [] : [[name, value] as const]
  })
  const session = {
    ...(existsSync(bus) ? { DBUS_SESSION_BUS_ADDRESS: `unix:path=${bus}` } : {}),
    ...Object.fromEntries(given),
    ...UTF8,
  }
  await runNotifier(call, {
    program: 'notify-send',
    args: notifySendArguments(call.announcement),
    environment: session,
  })
  return true
}

async function showToOthers(call: DesktopCall): Promise<boolean> {
  const people = await findPeople(call)
  if (people.length === 0) return false
  const notifySend = findProgram('notify-send')
  if (notifySend === undefined) {
    throw new BackupError('PROGRAM_ABSENT', 'notify-send is not installed', { hint: INSTALL })
  }
  const results = await Promise.allSettled(
    people.map(async ({ name, uid }) => {
      const runtime = join(call.runtimeDirectory ?? RUNTIME_DIRECTORY, `${uid}`)
      const session = [`DBUS_SESSION_BUS_ADDRESS=unix:path=${runtime}/bus`]
      await runNotifier(call, {
        program: 'runuser',
        // The name is within its option's word, so it is never an option itself.
        args: [
          ...[`--user=${name}`, '--', 'env', ...session, `XDG_RUNTIME_DIR=${runtime}`],
          ...[notifySend, ...notifySendArguments(call.announcement)],
        ],
        environment: UTF8,
      })
    }),
  )
  if (results.some(({ status }) => status === 'fulfilled')) return true
  throw results.find((result) => result.status === 'rejected')?.reason
}

/** In plain English, yet with text of any language. */
const UTF8 = { LC_ALL: 'C.UTF-8', LANG: 'C.UTF-8' }

const INSTALL = 'install it: apt install libnotify-bin; or set notify.desktop to false'

const ICONS = { low: 'dialog-information', normal: 'dialog-warning', critical: 'dialog-error' }

function notifySendArguments(announcement: Announcement): string[] {
  const urgency = urgencyOf(announcement)
  const { title, body } = textOf(announcement)
  // Desktops take the body for markup, and notify-send undoes backslashes in it; neither in titles.
  const escaped = body
    .replaceAll('\\', '\\\\')
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
  return [
    ...['--app-name=backup', `--urgency=${urgency}`, `--icon=${ICONS[urgency]}`],
    ...['--', title, escaped],
  ]
}

function textOf({ title, body }: Announcement): { readonly title: string; readonly body: string } {
  const text = body.split('\n').map(displayText).join('\n')
  const characters = [...text]
  const isLong = characters.length > MAX_BODY_CHARACTERS
  const short = isLong ? `${characters.slice(0, MAX_BODY_CHARACTERS).join('')}…` : text
  return { title: displayText(title), body: short }
}

/** Who has a graphical session, each once. */
async function findPeople(call: DesktopCall): Promise<readonly Person[]> {
  const found = findProgram('loginctl') === undefined ? peopleWithBus : peopleWithSession
  const people = await found(call)
  return [...new Map(people.map((person) => [person.uid, person])).values()]
}

async function peopleWithSession(call: DesktopCall): Promise<readonly Person[]> {
  const { stdout } = await ask(call, {
    program: 'loginctl',
    args: ['list-sessions', '--no-legend'],
  })
  const ids = stdout.split('\n').map((line) => line.trim().split(/\s+/)[0] ?? '')
  const sessions = ids.filter((id) => /^[A-Za-z0-9_]+$/.test(id))
  const people = await Promise.all(sessions.map(async (id) => await personOf(call, id)))
  return people.filter((person) => person !== undefined)
}

/** Undefined for a text console, a login screen, and a session that is ending. */
async function personOf(call: DesktopCall, id: string): Promise<Person | undefined> {
  const asked = ['Name', 'User', 'Type', 'State', 'Class'].flatMap((name) => ['-p', name])
  const { stdout } = await ask(call, { program: 'loginctl', args: ['show-session', id, ...asked] })
  const facts = new Map(
    stdout.split('\n').map((line) => {
      const at = line.indexOf('=')
      return [line.slice(0, at), line.slice(at + 1)]
    }),
  )
  const { Name: name, User: uid, Type: type, State: state } = Object.fromEntries(facts)
  const isGraphical = ['x11', 'wayland', 'mir'].includes(type ?? '')
  const isThere = ['active', 'online'].includes(state ?? '')
  const isPerson = (facts.get('Class') ?? 'user').startsWith('user')
  if (!isGraphical || !isThere || !isPerson) return undefined
  if (name === undefined || name === '' || !/^[0-9]+$/.test(uid ?? '')) return undefined
  return { name, uid: Number(uid) }
}

/** Without loginctl: who has a session bus at its usual place; root has one for services. */
async function peopleWithBus(call: DesktopCall): Promise<readonly Person[]> {
  const root = call.runtimeDirectory ?? RUNTIME_DIRECTORY
  const names = existsSync(root) ? readdirSync(root) : []
  const uids = names.filter((name) => /^[1-9][0-9]*$/.test(name))
  const people: Person[] = []
  for (const uid of uids.filter((name) => existsSync(join(root, name, 'bus')))) {
    const { stdout } = await ask(call, { program: 'id', args: ['-nu', '--', uid] })
    const name = stdout.trim()
    if (name !== '') people.push({ name, uid: Number(uid) })
  }
  return people
}

async function showOnMac(call: DesktopCall, isRoot: boolean): Promise<boolean> {
  const { title, body } = textOf(call.announcement)
  const script = [
    'on run argv',
    'display notification (item 3 of argv) with title (item 2 of argv)',
    'end run',
  ]
  // The first word after the script ends the options, whatever the text begins with.
  const args = [...script.flatMap((line) => ['-e', line]), 'backup', title, body]
  if (!isRoot) {
    await runNotifier(call, { program: 'osascript', args })
    return true
  }
  const atConsole = { program: 'stat', args: ['-f', '%Su %u', '/dev/console'] }
  const [name = '', uid = ''] = (await ask(call, atConsole)).stdout.trim().split(' ')
  // At the login screen it is root's, and on a new machine a user's whose name begins so.
  if (name === '' || uid === '0' || name.startsWith('_')) return false
  const asUser = ['asuser', uid, 'sudo', '-u', name, '--', 'osascript', ...args]
  await runNotifier(call, { program: 'launchctl', args: asUser })
  return true
}

interface NotifierProgram {
  readonly program: string
  readonly args: readonly string[]
  readonly environment?: Readonly<Record<string, string>>
}

async function runNotifier(call: DesktopCall, what: NotifierProgram): Promise<void> {
  const { timeoutMs, signal } = call
  const { exitCode, stderr } = await runProgram({ ...what, changes: true, timeoutMs, signal })
  if (exitCode === 0) return
  const said = displayText(stderr.trim().split('\n')[0] ?? '').slice(0, 200)
  throw new BackupError('PROGRAM_FAILED', `the desktop shows no notification: ${said}`, {
    hint: 'see whether its notification service runs, or set notify.desktop to false',
  })
}

async function ask(call: DesktopCall, what: NotifierProgram): Promise<{ readonly stdout: string }> {
  const { timeoutMs, signal } = call
  const { exitCode, stdout } = await runProgram({ ...what, changes: false, timeoutMs, signal })
  // A session that ended meanwhile, or no service to ask: nobody.
  return { stdout: exitCode === 0 ? stdout : '' }
}

async function showByPackage(announcement: Announcement): Promise<boolean> {
  const { title, body } = textOf(announcement)
  const { default: notifier } = await import('node-notifier')
  await new Promise<void>((resolve, reject) => {
    const timer = setTimeout(resolve, NO_COMPLAINT_MS)
    notifier.notify({ title, message: body }, (error) => {
      clearTimeout(timer)
      if (!error) return resolve()
      const said = displayText(String(error)).slice(0, 200)
      const message = `the desktop shows no notification: ${said}`
      reject(new BackupError('PROGRAM_FAILED', message, { hint: INSTALL }))
    })
  })
  return true
}
