// A real OpenSSH server on a free port of 127.0.0.1, with keys of its own, for SFTP and nothing
// else. Needs root. Stopped by its process id, with the sessions it started.

import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  writeFileSync,
} from 'node:fs'
import { connect, createServer } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import * as assert from './assert.ts'
import { tempDirectory } from './temp-dir.ts'

export type HostKeyType = 'ed25519' | 'ecdsa' | 'rsa'

export interface SshdOptions {
  /** Which host keys it has. Default: all. */
  readonly hostKeys?: readonly HostKeyType[]
  /** Words after `internal-sftp`, such as `-R` for read-only; `none`: no SFTP at all. */
  readonly sftp?: string
  /** Further lines of sshd_config. */
  readonly settings?: readonly string[]
}

export interface Sshd {
  readonly port: number
  /** `SHA256:…` by type. */
  readonly fingerprints: Readonly<Record<HostKeyType, string>>
  /** A private key that is let in, for every user. */
  readonly keyPath: string
  /** The same with a passphrase. */
  readonly lockedKeyPath: string
  /** One that nobody knows. */
  readonly strangeKeyPath: string
  readonly log: () => string
  /** Ends the sessions, as a crash of the host would. */
  readonly endSessions: () => void
  /** Until nobody is connected any more: a session ends a moment after its client. */
  readonly idle: () => Promise<void>
  readonly stop: () => void
}

const TYPES = ['ed25519', 'ecdsa', 'rsa'] as const

/** Keys take their time, an RSA one above all: once a process. */
let keys: string | undefined

export async function startSshd(options: SshdOptions = {}): Promise<Sshd> {
  const { hostKeys = TYPES, sftp = '', settings = [] } = options
  keys ??= makeKeys()
  const directory = tempDirectory()
  // sshd's unprivileged half runs as another user.
  chmodSync(directory, 0o755)
  mkdirSync('/run/sshd', { recursive: true, mode: 0o755 })
  copyFileSync(`${keys}/client.pub`, `${directory}/authorized_keys`)
  chmodSync(`${directory}/authorized_keys`, 0o644)
  const port = await freePort()
  const lines = [
    `Port ${port}`,
    'ListenAddress 127.0.0.1',
    `PidFile ${directory}/pid`,
    `AuthorizedKeysFile ${directory}/authorized_keys`,
    ...hostKeys.map((type) => `HostKey ${keys}/host_${type}`),
    ...['StrictModes no', 'UsePAM no', 'PasswordAuthentication no', 'LogLevel VERBOSE'],
    ...['KbdInteractiveAuthentication no', 'PermitRootLogin prohibit-password', 'UseDNS no'],
    'MaxStartups 100',
    ...(sftp === 'none' ? [] : [`Subsystem sftp internal-sftp ${sftp}`]),
    ...settings,
  ]
  writeFileSync(`${directory}/config`, `${lines.join('\n')}\n`)
  const log = `${directory}/log`
  const child = spawn('/usr/sbin/sshd', ['-D', '-E', log, '-f', `${directory}/config`], {
    stdio: 'ignore',
  })
  const stop = (): void => {
    for (const pid of [...descendants(child.pid), child.pid]) end(pid)
    process.off('exit', stop)
  }
  process.on('exit', stop)
  await untilListening({ port, child, log })
  return {
    port,
    fingerprints: fingerprintsOf(keys),
    keyPath: `${keys}/client`,
    lockedKeyPath: `${keys}/locked`,
    strangeKeyPath: `${keys}/strange`,
    log: () => readFileSync(log, 'utf8'),
    endSessions: () => {
      for (const pid of descendants(child.pid)) end(pid)
    },
    idle: async () => {
      for (let tries = 0; tries < 100 && descendants(child.pid).length > 0; tries += 1) {
        await sleep(20)
      }
    },
    stop,
  }
}

function makeKeys(): string {
  const directory = tempDirectory()
  const make = (name: string, type: string, passphrase = ''): void => {
    const words = ['-q', '-t', type, '-N', passphrase, '-f', `${directory}/${name}`]
    execFileSync('ssh-keygen', type === 'rsa' ? [...words, '-b', '2048'] : words)
  }
  for (const type of TYPES) make(`host_${type}`, type)
  make('client', 'ed25519')
  make('locked', 'ed25519', 'open sesame')
  make('strange', 'ed25519')
  return directory
}

function fingerprintsOf(directory: string): Record<HostKeyType, string> {
  const of = (type: HostKeyType): string => {
    const file = `${directory}/host_${type}.pub`
    return execFileSync('ssh-keygen', ['-lf', file], { encoding: 'utf8' }).split(' ')[1]!
  }
  return { ed25519: of('ed25519'), ecdsa: of('ecdsa'), rsa: of('rsa') }
}

/** A port that nobody listens on, for now. */
export async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const address = server.address()
  await new Promise((resolve) => server.close(resolve))
  return typeof address === 'object' && address !== null ? address.port : 0
}

async function untilListening(of: { port: number; child: ChildProcess; log: string }) {
  for (let tries = 0; tries < 100; tries += 1) {
    const isListening = await new Promise<boolean>((resolve) => {
      const socket = connect(of.port, '127.0.0.1')
      socket.once('error', () => resolve(false))
      socket.once('data', () => {
        socket.destroy()
        resolve(true)
      })
    })
    if (isListening) return
    if (of.child.exitCode !== null) break
    await sleep(50)
  }
  assert.unreachable(`sshd did not start: ${readFileSync(of.log, 'utf8')}`)
}

function end(pid: number | undefined): void {
  try {
    if (pid !== undefined) process.kill(pid, 'SIGKILL')
  } catch {
    // It ended by itself.
  }
}

/** Each session has a process or two of its own. */
function descendants(ancestor: number | undefined): number[] {
  const parents = new Map<number, number>()
  for (const name of readdirSync('/proc').filter((one) => /^\d+$/.test(one))) {
    try {
      const stat = readFileSync(`/proc/${name}/stat`, 'utf8')
      const parent = / \(.*\) \S (\d+)/s.exec(` ${stat.slice(stat.indexOf(' ') + 1)}`)?.[1]
      parents.set(Number(name), Number(parent))
    } catch {
      // It ended meanwhile.
    }
  }
  const found: number[] = []
  const gather = (pid: number): void => {
    for (const [child, parent] of parents) {
      if (parent !== pid) continue
      gather(child)
      found.push(child)
    }
  }
  if (ancestor !== undefined) gather(ancestor)
  return found
}
