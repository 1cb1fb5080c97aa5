// Connections to an SFTP host: the only file that knows the ssh2 package.
//
// createConnector checks the host's key before anything is sent, logs in with a key (never a
// password), and gives the calls of SFTP as promises. A call throws SftpFailure, always, also when
// the connection breaks before the answer. Connecting throws HOST_KEY_WRONG, TARGET_DENIED,
// TARGET_ABSENT, TARGET_FAILED. Paths are those of the host. Used by sftp.ts.

import { Buffer } from 'node:buffer'
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { userInfo } from 'node:os'
import ssh2 from 'ssh2'
import type { ConnectConfig, FileEntryWithStats, ServerHostKeyAlgorithm, SFTPWrapper } from 'ssh2'
import { BackupError, systemCode } from '../errors.ts'
import { placeOf, type SftpTargetConfiguration } from '../machine/config-targets.ts'
import { displayText } from '../model/raw-path.ts'
import { type RemoteSpace, SftpFailure } from './sftp-errors.ts'

export interface SftpLimits {
  /** From the first packet to the login. */
  readonly connectMs: number
  /** A connection is dead when this many questions, this far apart, had no answer. */
  readonly keepAliveMs: number
  readonly keepAliveCount: number
  /** For one answer; an fsync of a large file on a slow disk takes its time. */
  readonly answerMs: number
  /** How often a call is made until the host is given up, counted from the last progress. */
  readonly tries: number
  /** Before the second try; doubled for each further one. */
  readonly firstPauseMs: number
}

export const SFTP_LIMITS: SftpLimits = {
  connectMs: 30_000,
  keepAliveMs: 20_000,
  keepAliveCount: 6,
  answerMs: 10 * 60_000,
  tries: 5,
  firstPauseMs: 1000,
}

export interface RemoteStat {
  readonly kind: 'file' | 'directory' | 'link' | 'other'
  readonly sizeBytes: number
}

export interface RemoteEntry extends RemoteStat {
  readonly name: string
}

/** An open file there. */
export type RemoteFile = Buffer

/** One connection with one channel. What is not there is undefined. */
export interface SftpConnection {
  /** The most that one read or write carries. */
  readonly blockBytes: number
  isOpen(): boolean
  /** Follows no link. */
  lstat(path: string): Promise<RemoteStat | undefined>
  stat(path: string): Promise<RemoteStat | undefined>
  list(path: string): Promise<readonly RemoteEntry[] | undefined>
  /** `create` fails where the name is taken. */
  open(path: string, how: 'read' | 'create' | 'update'): Promise<RemoteFile>
  close(file: RemoteFile): Promise<void>
  /** Fills `into` as far as the file goes; says how far. At most blockBytes. */
  read(file: RemoteFile, into: Buffer, offset: number): Promise<number>
  /** At most blockBytes, which must not change before the answer. */
  write(file: RemoteFile, bytes: Buffer, offset: number): Promise<void>
  /** To the medium, where the host offers that. */
  sync(file: RemoteFile): Promise<void>
  /** Fails where the name is taken. */
  rename(from: string, to: string): Promise<void>
  /** Overwrites. */
  replace(from: string, to: string): Promise<void>
  remove(path: string): Promise<void>
  makeDirectory(path: string): Promise<void>
  removeDirectory(path: string): Promise<void>
  /** Undefined where the host does not tell. */
  space(path: string): Promise<RemoteSpace | undefined>
  /** Ends it; what waits for an answer fails. */
  end(): void
}

/** Gives one new connection a call. Remembers which of the host's keys is the pinned one. */
export function createConnector(
  configuration: SftpTargetConfiguration,
  limits: SftpLimits,
): () => Promise<SftpConnection> {
  let algorithms: readonly ServerHostKeyAlgorithm[] | undefined
  return async () => {
    const login = readLogin(configuration)
    const connected = await connectToPinned({ configuration, limits, login, algorithms })
    algorithms = connected.algorithms
    return await openChannel(connected.client, { configuration, limits })
  }
}

/** A host has one key of each family; ssh-rsa itself is left out, for its SHA-1. */
const KEY_FAMILIES: readonly (readonly ServerHostKeyAlgorithm[])[] = [
  ['ssh-ed25519'],
  ['ecdsa-sha2-nistp256'],
  ['ecdsa-sha2-nistp384'],
  ['ecdsa-sha2-nistp521'],
  ['rsa-sha2-512', 'rsa-sha2-256'],
]

interface Connecting {
  readonly configuration: SftpTargetConfiguration
  readonly limits: SftpLimits
  readonly login: Login
  readonly algorithms: readonly ServerHostKeyAlgorithm[] | undefined
}

/**
 * A host shows the key that is asked for: where the first is not the pinned one, the others are
 * asked for in turn.
 */
async function connectToPinned({ algorithms = KEY_FAMILIES.flat(), ...rest }: Connecting) {
  const shown: HostKey[] = []
  const first = await connectOnce({ ...rest, algorithms })
  if (first.kind === 'connected') return { client: first.client, algorithms }
  if (first.kind === 'other key') shown.push(first.key)
  const isPinned = rest.configuration.hostKey !== undefined
  for (const family of isPinned ? KEY_FAMILIES : []) {
    if (shown.some((key) => familyOf(key) === family)) continue
    const next = await connectOnce({ ...rest, algorithms: family })
    if (next.kind === 'connected') return { client: next.client, algorithms: family }
    if (next.kind === 'other key') shown.push(next.key)
  }
  throw hostKeyError(rest.configuration, shown)
}

interface HostKey {
  /** As in `ssh-ed25519`. */
  readonly type: string
  /** `SHA256:…` without padding. */
  readonly fingerprint: string
}

function hostKeyOf(key: Buffer): HostKey {
  const type = key.subarray(4, 4 + key.readUInt32BE(0)).toString('latin1')
  const digest = createHash('sha256').update(key).digest('base64').replace(/=+$/, '')
  return { type, fingerprint: `SHA256:${digest}` }
}

function familyOf({ type }: HostKey): readonly ServerHostKeyAlgorithm[] | undefined {
  const algorithm = type === 'ssh-rsa' ? 'rsa-sha2-512' : type
  return KEY_FAMILIES.find((family) => (family as readonly string[]).includes(algorithm))
}

function hostKeyError(
  configuration: SftpTargetConfiguration,
  shown: readonly HostKey[],
): BackupError {
  const { name, host, hostKey } = configuration
  const facts = { target: name, host, pinned: hostKey, shown }
  const [key] = shown
  if (key === undefined) {
    return new BackupError('HOST_KEY_WRONG', `target ${name}: ${host} has no key that we know`, {
      hint: 'give it an Ed25519 key: ssh-keygen -A; nothing was sent',
      facts,
    })
  }
  if (hostKey === undefined) {
    const file = `/etc/ssh/ssh_host_${displayText(key.type).replace(/^ssh-|-.*$/g, '')}_key.pub`
    return new BackupError('HOST_KEY_WRONG', `target ${name}: no key of ${host} is pinned`, {
      hint:
        `compare with what \`ssh-keygen -lf ${file}\` prints on the host itself; if it is the `
        + `same, write \`host_key: ${key.fingerprint}\` into the target (for init --from: `
        + '--host-key); nothing was sent',
      facts,
    })
  }
  const found = shown.map((one) => `${one.fingerprint} (${displayText(one.type)})`).join(', ')
  return new BackupError(
    'HOST_KEY_WRONG',
    `target ${name}: ${host} has not the key that is pinned, but ${found}`,
    {
      hint:
        'either the host was installed anew, or another one answers in its place, perhaps to '
        + 'take what you send: ask whoever runs it before you change host_key; nothing was sent',
      facts,
    },
  )
}

type Login = Pick<ConnectConfig, 'username' | 'privateKey' | 'agent' | 'authHandler'>

/** With which key; never a password. @throws BackupError TARGET_DENIED */
function readLogin({ name, user, keyPath }: SftpTargetConfiguration): Login {
  const username = user ?? userInfo().username
  if (keyPath === undefined) {
    const agent = process.env['SSH_AUTH_SOCK']
    if (agent !== undefined && agent !== '') return { username, agent, authHandler: ['agent'] }
    throw new BackupError('TARGET_DENIED', `target ${name}: there is no key to log in with`, {
      hint: 'set ssh_key in the target, or run an agent (SSH_AUTH_SOCK); nothing was sent',
    })
  }
  const privateKey = readKeyFile({ name, keyPath })
  const parsed = ssh2.utils.parseKey(privateKey)
  if (!(parsed instanceof Error)) return { username, privateKey, authHandler: ['publickey'] }
  const isEncrypted = /encrypted|passphrase/i.test(parsed.message)
  const what = isEncrypted ? 'has a passphrase' : 'is no private key that we can read'
  throw new BackupError('TARGET_DENIED', `target ${name}: ${keyPath} ${what}`, {
    hint: isEncrypted
      ? 'leave ssh_key out and let the agent have it (ssh-add), or make a key of its own without '
        + 'a passphrase, which may do nothing else there; nothing was sent'
      : 'make one with: ssh-keygen -t ed25519 -f FILE; nothing was sent',
  })
}

function readKeyFile({ name, keyPath }: { name: string; keyPath: string }): Buffer {
  try {
    return readFileSync(keyPath)
  } catch (error) {
    const code = systemCode(error)
    throw new BackupError('TARGET_DENIED', `target ${name}: ${keyPath} cannot be read (${code})`, {
      hint: 'ssh_key names the file with your private key; nothing was sent',
      cause: error,
    })
  }
}

type Connected =
  | { readonly kind: 'connected'; readonly client: ssh2.Client }
  | { readonly kind: 'other key'; readonly key: HostKey }
  | { readonly kind: 'no such key' }

async function connectOnce({ configuration, limits, login, algorithms }: Connecting) {
  const { host, port, hostKey } = configuration
  const client = new ssh2.Client()
  let other: HostKey | undefined
  return await new Promise<Connected>((resolve, reject) => {
    const fail = (error: Error | undefined): void => {
      client.destroy()
      if (other !== undefined) resolve({ kind: 'other key', key: other })
      else if (error !== undefined && /no matching host key/.test(error.message)) {
        resolve({ kind: 'no such key' })
      } else reject(connectError(error, configuration))
    }
    client.once('ready', () => resolve({ kind: 'connected', client }))
    // Stays for good: an error that nobody listens to would end the program.
    client.on('error', fail)
    client.once('close', () => fail(undefined))
    client.connect({
      ...{ host, port, ...login },
      readyTimeout: limits.connectMs,
      keepaliveInterval: limits.keepAliveMs,
      keepaliveCountMax: limits.keepAliveCount,
      algorithms: { serverHostKey: [...(algorithms ?? [])] },
      hostVerifier: (key: Buffer) => {
        const found = hostKeyOf(key)
        if (found.fingerprint === hostKey) return true
        other = found
        return false
      },
    })
  })
}

function connectError(
  error: (Error & { level?: string }) | undefined,
  configuration: SftpTargetConfiguration,
): BackupError {
  const { name, host, user, keyPath } = configuration
  const place = placeOf(configuration)
  const said = displayText(error?.message ?? 'it closed the connection')
  const facts = { target: name, place, ssh: said }
  if (error?.level === 'client-authentication' || error?.level === 'agent') {
    const key = keyPath ?? 'the keys of the agent'
    return new BackupError('TARGET_DENIED', `target ${name}: ${host} does not accept ${key}`, {
      hint:
        `let ${user ?? 'the user'} in with it: ssh-copy-id -i KEY.pub; sshd's log on the host `
        + 'says why it refused; nothing was sent',
      facts,
      cause: error,
    })
  }
  if (error?.level === 'handshake' && /no matching/.test(said)) {
    return new BackupError('TARGET_FAILED', `target ${name}: ${host} is too old: ${said}`, {
      hint: 'update its SSH server; nothing was sent',
      facts,
      cause: error,
    })
  }
  return new BackupError('TARGET_ABSENT', `target ${name}: ${place} does not answer: ${said}`, {
    hint:
      said === HUNG_UP
        ? "sshd's log on the host says why: a ChrootDirectory that is not root's alone, say"
        : 'check that the host is up, and its name and port; collections are unharmed',
    facts,
    retry: 'later',
    cause: error,
  })
}

interface ChannelOptions {
  readonly configuration: SftpTargetConfiguration
  readonly limits: SftpLimits
}

async function openChannel(
  client: ssh2.Client,
  { configuration, limits }: ChannelOptions,
): Promise<SftpConnection> {
  const { name, host } = configuration
  let isOpen = true
  client.once('close', () => (isOpen = false))
  try {
    const sftp = await startSftp(client, limits.connectMs)
    return createConnection({ client, sftp, limits })
  } catch (error) {
    // A host that hung up may be back in a moment; one that only said no will say it again.
    const isRefusal = isOpen && !(error instanceof SftpFailure)
    client.destroy()
    if (!isRefusal) throw connectError(error instanceof Error ? error : undefined, configuration)
    throw new BackupError('TARGET_DENIED', `target ${name}: ${host} offers this user no SFTP`, {
      hint: 'sshd_config there needs `Subsystem sftp internal-sftp`, and no other ForceCommand',
      facts: { target: name, ssh: displayText(String(error)) },
      cause: error,
    })
  }
}

const HUNG_UP = 'it hung up after the login'

async function startSftp(client: ssh2.Client, timeMs: number): Promise<SFTPWrapper> {
  return await new Promise<SFTPWrapper>((resolve, reject) => {
    const lose = (): void => reject(new SftpFailure('lost', HUNG_UP))
    const timer = setTimeout(lose, timeMs)
    client.once('close', lose)
    client.sftp((error, sftp) => {
      clearTimeout(timer)
      client.off('close', lose)
      if (error instanceof Error) reject(error)
      else resolve(sftp)
    })
  })
}

type Done<T> = (error: Error | null | undefined, value: T) => void

/** What every host takes, the packet's own words included. */
const SMALL_BLOCK_BYTES = 31 * 1024
/** Larger ones gain nothing. */
const LARGE_BLOCK_BYTES = 240 * 1024

/** Flags of SFTP version 3: READ 1, WRITE 2, CREAT 8, EXCL 32. Nothing is ever truncated. */
const OPEN_FLAGS = { read: 1, create: 1 | 2 | 8 | 32, update: 1 | 2 } as const

/** Only the owner reads a backup, encrypted as it is. */
const FILE_MODE = 0o600
const DIRECTORY_MODE = 0o700

/** More are in no directory of ours. */
const MAX_ENTRIES = 1_000_000

interface ConnectionOptions {
  readonly client: ssh2.Client
  readonly sftp: SFTPWrapper
  readonly limits: SftpLimits
}

function createConnection({ client, sftp, limits }: ConnectionOptions): SftpConnection {
  // The package forgets callbacks of a channel that is closed already, so they are kept here.
  const waiting = new Set<(failure: SftpFailure) => void>()
  let lost: SftpFailure | undefined
  const lose = (message: string): void => {
    lost ??= new SftpFailure('lost', message)
    client.destroy()
    for (const reject of [...waiting]) reject(lost)
  }
  client.on('error', (error: Error) => lose(error.message))
  client.on('close', () => lose('the host closed the connection'))
  sftp.on('error', (error: Error) => lose(error.message))
  sftp.on('close', () => lose('the host closed the channel'))

  const ask = async <T>(start: (done: Done<T>) => void): Promise<T> => {
    return await new Promise<T>((resolve, reject) => {
      if (lost !== undefined) return reject(lost)
      const timer = setTimeout(() => lose('no answer in time'), limits.answerMs)
      const end = (): void => {
        clearTimeout(timer)
        waiting.delete(giveUp)
      }
      const giveUp = (failure: SftpFailure): void => {
        end()
        reject(failure)
      }
      waiting.add(giveUp)
      try {
        start((error, value) => {
          end()
          if (error instanceof Error) reject(failureOf(error))
          else resolve(value)
        })
      } catch (error) {
        // It throws at once for what the host does not offer.
        giveUp(new SftpFailure('unsupported', String(error), error))
      }
    })
  }
  const tell = async (start: (done: (error?: Error | null) => void) => void): Promise<void> => {
    await ask<unknown>((done) => start((error) => done(error, undefined)))
  }
  const statBy = async (call: 'stat' | 'lstat', path: string): Promise<RemoteStat | undefined> => {
    return await unlessAbsent(async () => {
      return statOf(await ask<ssh2.Stats>((done) => sftp[call](path, done)))
    })
  }
  const rename = async (from: string, to: string): Promise<void> => {
    await tell((done) => sftp.rename(from, to, done))
  }
  const remove = async (path: string): Promise<void> => {
    await tell((done) => sftp.unlink(path, done))
  }
  const close = async (file: RemoteFile): Promise<void> => {
    await tell((done) => sftp.close(file, done))
  }
  const listAll = async (directory: RemoteFile): Promise<FileEntryWithStats[]> => {
    const found: FileEntryWithStats[] = []
    for (;;) {
      const some = await unlessEnd(
        ask<FileEntryWithStats[]>((done) => sftp.readdir(directory, done)),
      )
      if (some === undefined) return found
      found.push(...some)
      if (found.length > MAX_ENTRIES) throw new SftpFailure('failure', 'too many files')
    }
  }

  return {
    blockBytes: blockBytesOf(sftp),
    isOpen: () => lost === undefined,
    lstat: async (path) => await statBy('lstat', path),
    stat: async (path) => await statBy('stat', path),
    list: async (path) => {
      const directory = await unlessAbsent(async () => {
        return await ask<Buffer>((done) => sftp.opendir(path, done))
      })
      if (directory === undefined) return undefined
      const found = await listAll(directory)
      await close(directory)
      return found.map(({ filename, attrs }) => {
        if (/[/\0]/.test(filename)) throw new SftpFailure('failure', 'a name with a slash')
        return { name: filename, ...statOf(attrs) }
      })
    },
    open: async (path, how) => {
      const flags = OPEN_FLAGS[how]
      const mode = { mode: FILE_MODE }
      return await ask<Buffer>((done) => sftp.open(path, flags, mode, done))
    },
    close,
    read: async (file, into, offset) => {
      for (let done = 0; ;) {
        const count = await ask<number>((answer) => {
          const rest = into.length - done
          sftp.read(file, into, done, rest, offset + done, (error, bytesRead) => {
            answer(error, bytesRead)
          })
        })
        done += count
        // An answer may be shorter than the file.
        if (count === 0 || done === into.length) return done
      }
    },
    write: async (file, bytes, offset) => {
      await tell((done) => sftp.write(file, bytes, 0, bytes.length, offset, done))
    },
    sync: async (file) => {
      try {
        await tell((done) => sftp.ext_openssh_fsync(file, done))
      } catch (error) {
        if (!(error instanceof SftpFailure && error.trouble === 'unsupported')) throw error
      }
    },
    rename,
    replace: async (from, to) => {
      try {
        await tell((done) => sftp.ext_openssh_rename(from, to, done))
      } catch (error) {
        if (!(error instanceof SftpFailure && error.trouble === 'unsupported')) throw error
        await unlessAbsent(async () => await remove(to))
        await rename(from, to)
      }
    },
    remove,
    makeDirectory: async (path) => {
      await tell((done) => sftp.mkdir(path, { mode: DIRECTORY_MODE }, done))
    },
    removeDirectory: async (path) => await tell((done) => sftp.rmdir(path, done)),
    space: async (path) => {
      try {
        return spaceOf(await ask<unknown>((done) => sftp.ext_openssh_statvfs(path, done)))
      } catch (error) {
        if (error instanceof SftpFailure && error.trouble !== 'lost') return undefined
        throw error
      }
    },
    end: () => {
      lost ??= new SftpFailure('lost', 'the connection was ended')
      client.end()
      lose('the connection was ended')
    },
  }
}

/** Status codes of SFTP version 3. */
const STATUS: Readonly<Record<number, SftpFailure['trouble']>> = {
  2: 'absent',
  3: 'denied',
  6: 'lost',
  7: 'lost',
  8: 'unsupported',
}
const STATUS_END = 1

/** An error without a status is the package's own: what came was no answer. */
function failureOf(error: Error & { code?: unknown }): SftpFailure {
  const { code, message } = error
  const trouble = typeof code === 'number' ? (STATUS[code] ?? 'failure') : 'lost'
  return new SftpFailure(trouble, displayText(message), error)
}

/** What an action gives, undefined where what it is about is not there. */
export async function unlessAbsent<T>(action: () => Promise<T>): Promise<T | undefined> {
  try {
    return await action()
  } catch (error) {
    if (error instanceof SftpFailure && error.trouble === 'absent') return undefined
    throw error
  }
}

async function unlessEnd<T>(answer: Promise<T>): Promise<T | undefined> {
  try {
    return await answer
  } catch (error) {
    const cause = error instanceof SftpFailure ? error.cause : undefined
    if (cause instanceof Error && 'code' in cause && cause.code === STATUS_END) return undefined
    throw error
  }
}

const KIND_BITS = 0o170000
const KINDS: Readonly<Record<number, RemoteStat['kind']>> = {
  0o040000: 'directory',
  0o100000: 'file',
  0o120000: 'link',
}

function statOf({ mode, size }: ssh2.Attributes): RemoteStat {
  return { kind: KINDS[mode & KIND_BITS] ?? 'other', sizeBytes: size }
}

const READ_ONLY_FLAG = 1

/** The answer of statvfs@openssh.com, which the package's types do not describe. */
function spaceOf(answer: unknown): RemoteSpace {
  const { f_frsize, f_bavail, f_favail, f_files, f_flag } = answer as Record<string, number>
  return {
    freeBytes: (f_bavail ?? 0) * (f_frsize ?? 0),
    // Filesystems without a table of files say 0 of 0.
    isOutOfFiles: (f_files ?? 0) > 0 && f_favail === 0,
    isReadOnly: ((f_flag ?? 0) & READ_ONLY_FLAG) !== 0,
  }
}

/**
 * The package learned from the host how much one packet may carry, but tells only itself. It would
 * cut larger ones in two and wait between them.
 */
function blockBytesOf(sftp: SFTPWrapper): number {
  const { _maxReadLen: read, _maxWriteLen: write } = sftp as unknown as Record<string, unknown>
  if (typeof read !== 'number' || typeof write !== 'number') return SMALL_BLOCK_BYTES
  return Math.max(1, Math.min(read, write, LARGE_BLOCK_BYTES))
}
