// SFTP against a real OpenSSH server: whose key it shows, who is let in, what its refusals mean,
// and what is there after the connection was cut, stalled or garbled on the way. The contract of
// all targets is in target-conformance.test.ts.

import { Buffer } from 'node:buffer'
import { execFileSync } from 'node:child_process'
import { chmodSync, chownSync, closeSync, existsSync, mkdirSync, mkdtempSync } from 'node:fs'
import { openSync, statSync, writeSync } from 'node:fs'
import { readdirSync, readFileSync, rmSync, symlinkSync } from 'node:fs'
import { truncateSync, writeFileSync } from 'node:fs'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import type { SftpTargetConfiguration } from '../../lib/machine/config-targets.ts'
import { openSftpTarget } from '../../lib/target/sftp.ts'
import type { Target } from '../../lib/target/target.ts'
import * as assert from '../helpers/assert.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { randomFrom } from '../helpers/random.ts'
import { freePort, type Sshd, type SshdOptions, startSshd } from '../helpers/sshd.ts'
import { failureOf, MIB, spool } from '../helpers/target-conformance.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const sftp = suite('target/sftp')
const scratch = tempDirectory()
// For users who are not root.
chmodSync(scratch, 0o755)
let made = 0
const newPath = (): string => `${scratch}/${++made}`

const QUICK = {
  ...{ connectMs: 1500, keepAliveMs: 60, keepAliveCount: 4, answerMs: 5000 },
  ...{ tries: 3, firstPauseMs: 10 },
}

type Change = Partial<SftpTargetConfiguration> & { readonly spoolDirectory?: string }

async function openAt(server: Sshd, change: Change = {}): Promise<Target> {
  const { spoolDirectory = tempDirectory(), ...rest } = change
  const configuration: SftpTargetConfiguration = {
    ...{ kind: 'sftp', name: 'nas', host: '127.0.0.1', port: server.port, user: 'root' },
    ...{ path: newPath(), hostKey: server.fingerprints.ed25519, keyPath: server.keyPath },
    ...{ streams: 2, bandwidthLimitBytes: undefined, spoolLimitBytes: 2 ** 30 },
    ...{ bundleSizeBytes: MIB, compressionLevel: 3, priority: 0, parityPercent: 0 },
    ...{ drill: 'never' },
    ...rest,
  }
  return await openSftpTarget({ configuration, spool: spoolDirectory, limits: QUICK })
}

async function backupError(action: () => Promise<unknown>): Promise<BackupError> {
  const failure = await failureOf(action)
  assert.instance(failure, BackupError, String(failure))
  return failure as BackupError
}

async function withServer(
  options: SshdOptions,
  action: (server: Sshd) => Promise<void>,
): Promise<void> {
  const server = await startSshd(options)
  try {
    await action(server)
  } finally {
    server.stop()
  }
}

async function withTarget(opened: Promise<Target>, action: (target: Target) => Promise<void>) {
  const target = await opened
  try {
    await action(target)
  } finally {
    await target.close()
  }
}

const some = Buffer.from('some bytes')

function hostKeyTests(shared: Sshd): void {
  sftp('without a pinned key nothing is sent, and the line to pin it is shown', async () => {
    await withServer({}, async (server) => {
      const found = await backupError(async () => await openAt(server, { hostKey: undefined }))
      assert.is(found.code, 'HOST_KEY_WRONG')
      assert.match(found.hint ?? '', `host_key: ${server.fingerprints.ed25519}`)
      assert.match(found.hint ?? '', 'ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub')
      await sleep(100)
      assert.not.match(server.log(), /publickey|Accepted|user root/)
    })
  })

  sftp('another key than the pinned one is refused before anything is sent', async () => {
    await withServer({ hostKeys: ['rsa', 'ecdsa'] }, async (server) => {
      const found = await backupError(async () => await openAt(server))
      assert.is(found.code, 'HOST_KEY_WRONG')
      assert.match(found.message, server.fingerprints.rsa)
      assert.match(found.message, server.fingerprints.ecdsa)
      assert.match(found.hint ?? '', 'nothing was sent')
      await sleep(100)
      assert.not.match(server.log(), /publickey|Accepted|user root/)
    })
  })

  for (const type of ['ed25519', 'ecdsa', 'rsa'] as const) {
    sftp(`the pinned key may be the ${type} one of several`, async () => {
      const hostKey = shared.fingerprints[type]
      await withTarget(openAt(shared, { hostKey }), async (target) => {
        await target.write('a', some)
        assert.equal(await target.read('a', 100), some)
      })
    })
  }

  sftp('a key that changes while a run goes on ends it', async () => {
    const first = await startSshd()
    const path = newPath()
    const target = await openAt(first, { path })
    await target.write('a', some)
    first.stop()
    const settings = [`ListenAddress 127.0.0.1:${first.port}`]
    await withServer({ hostKeys: ['rsa'], settings }, async () => {
      const found = await backupError(async () => await target.write('b', some))
      assert.is(found.code, 'HOST_KEY_WRONG')
      assert.not(existsSync(`${path}/b`))
    })
    await target.close()
  })
}

function loginTests(shared: Sshd): void {
  sftp('a key that the host does not know is denied', async () => {
    const { strangeKeyPath: keyPath } = shared
    const found = await backupError(async () => await openAt(shared, { keyPath }))
    assert.is(found.code, 'TARGET_DENIED')
    assert.match(found.message, keyPath)
  })

  sftp('a key with a passphrase is left to the agent', async () => {
    const { lockedKeyPath: keyPath } = shared
    const found = await backupError(async () => await openAt(shared, { keyPath }))
    assert.is(found.code, 'TARGET_DENIED')
    assert.match(found.message, 'has a passphrase')
    assert.match(found.hint ?? '', 'ssh-add')
  })

  sftp('a key file that is none, or not there, is told', async () => {
    const keyPath = newPath()
    const absent = await backupError(async () => await openAt(shared, { keyPath }))
    assert.is(absent.code, 'TARGET_DENIED')
    assert.match(absent.message, 'ENOENT')
    writeFileSync(keyPath, 'ssh key? never heard of it')
    const wrong = await backupError(async () => await openAt(shared, { keyPath }))
    assert.match(wrong.message, 'is no private key')
    assert.not.match(`${wrong.message}${wrong.hint}${JSON.stringify(wrong.facts)}`, 'never heard')
  })

  sftp('the agent’s keys are used where no file is named', async () => {
    const before = process.env['SSH_AUTH_SOCK']
    const socket = `${tempDirectory()}/agent`
    const output = execFileSync('ssh-agent', ['-a', socket], { encoding: 'utf8' })
    const pid = Number(/SSH_AGENT_PID=(\d+)/.exec(output)?.[1])
    try {
      process.env['SSH_AUTH_SOCK'] = socket
      const none = await backupError(async () => await openAt(shared, { keyPath: undefined }))
      assert.is(none.code, 'TARGET_DENIED')
      execFileSync('ssh-add', ['-q', shared.keyPath], { stdio: 'ignore' })
      await withTarget(openAt(shared, { keyPath: undefined }), async (target) => {
        await target.write('a', some)
      })
    } finally {
      process.kill(pid)
      delete process.env['SSH_AUTH_SOCK']
      const gone = await backupError(async () => await openAt(shared, { keyPath: undefined }))
      assert.match(gone.hint ?? '', 'ssh_key')
      if (before !== undefined) process.env['SSH_AUTH_SOCK'] = before
    }
  })

  sftp('a host that is not there is absent', async () => {
    const port = await freePort()
    const refused = await backupError(async () => await openAt(shared, { port }))
    assert.is(refused.code, 'TARGET_ABSENT')
    assert.is(refused.retry, 'later')
    const host = 'no-such-host.invalid'
    const unknown = await backupError(async () => await openAt(shared, { host }))
    assert.is(unknown.code, 'TARGET_ABSENT')
    assert.match(unknown.message, host)
  })

  sftp('a host without SFTP is told from one that is away', async () => {
    await withServer({ sftp: 'none' }, async (server) => {
      const found = await backupError(async () => await openAt(server))
      assert.is(found.code, 'TARGET_DENIED')
      assert.match(found.hint ?? '', 'Subsystem sftp')
    })
    await withServer({ settings: ['ForceCommand echo hello, this is no SFTP'] }, async (server) => {
      const found = await backupError(async () => await openAt(server))
      assert.is(found.code, 'TARGET_DENIED')
    })
  })
}

function refusalTests(shared: Sshd): void {
  sftp('a read-only server can be read and not written', async () => {
    await withServer({ sftp: '-R' }, async (server) => {
      const path = newPath()
      mkdirSync(path)
      writeFileSync(`${path}/a`, some)
      await withTarget(openAt(server, { path }), async (target) => {
        assert.equal(await target.read('a', 100), some)
        const found = await backupError(async () => await target.write('b', some))
        assert.is(found.code, 'TARGET_READ_ONLY')
        await spool(target, 'm/c', some)
        const sent = await backupError(async () => await target.publish('m/c'))
        assert.is(sent.code, 'TARGET_READ_ONLY')
        assert.equal(readdirSync(path), ['a'])
      })
    })
  })

  sftp('what another user may not do is told', async () => {
    const path = newPath()
    mkdirSync(`${path}/closed`, { recursive: true })
    chmodSync(path, 0o755)
    chmodSync(`${path}/closed`, 0o700)
    await withTarget(openAt(shared, { path, user: 'nobody' }), async (target) => {
      assert.is(
        (await backupError(async () => await target.write('a', some))).code,
        'TARGET_READ_ONLY',
      )
      assert.is((await backupError(async () => await target.list('closed'))).code, 'TARGET_DENIED')
      assert.is(
        (await backupError(async () => await target.read('closed/a', 9))).code,
        'TARGET_DENIED',
      )
    })
    const closed = `${path}/closed/deep`
    const found = await backupError(async () => {
      return await openAt(shared, { path: closed, user: 'nobody' })
    })
    assert.is(found.code, 'TARGET_DENIED')
  })

  sftp('a user who is confined to a directory sees it as the top', async () => {
    // Nobody but root may write to any directory above it.
    const jail = mkdtempSync('/run/backup-test-')
    process.once('exit', () => rmSync(jail, { recursive: true }))
    mkdirSync(`${jail}/upload`)
    chmodSync(jail, 0o755)
    chownSync(`${jail}/upload`, 65534, 65534)
    const settings = [`ChrootDirectory ${jail}`, 'ForceCommand internal-sftp']
    await withServer({ settings }, async (server) => {
      const at = { user: 'nobody', path: '/upload/repository' }
      await withTarget(openAt(server, at), async (target) => {
        await target.write('m/a', some)
        assert.equal(readFileSync(`${jail}/upload/repository/m/a`), some)
      })
      await withTarget(openAt(server, { user: 'nobody', path: '/repository' }), async (target) => {
        const found = await backupError(async () => await target.write('m/a', some))
        assert.is(found.code, 'TARGET_READ_ONLY')
      })
      chmodSync(jail, 0o777)
      const found = await backupError(async () => await openAt(server, at))
      assert.is(found.code, 'TARGET_ABSENT')
      assert.match(found.hint ?? '', 'ChrootDirectory')
    })
  })

  sftp('the directory above the repository has to be there', async () => {
    const path = `${newPath()}/repository`
    await withTarget(openAt(shared, { path }), async (target) => {
      assert.is(await target.list(''), undefined)
      const found = await backupError(async () => await target.write('a', some))
      assert.is(found.code, 'TARGET_ABSENT')
      assert.not(existsSync(path))
    })
  })

  sftp('the repository may be behind a link, but is no file', async () => {
    const path = newPath()
    const real = newPath()
    mkdirSync(real)
    symlinkSync(real, path)
    await withTarget(openAt(shared, { path }), async (target) => {
      await target.write('m/a', some)
      assert.equal(readFileSync(`${real}/m/a`), some)
      assert.equal(
        (await target.list(''))?.map((file) => file.name),
        ['m'],
      )
    })
    const file = newPath()
    writeFileSync(file, some)
    const found = await backupError(async () => await openAt(shared, { path: file }))
    assert.is(found.code, 'TARGET_FOREIGN')
  })

  sftp('a full disk and a read-only one are told, and no name is given', async () => {
    const disk = loopDevice({ sizeMib: 24 })
    try {
      await withTarget(openAt(shared, { path: `${disk.path}/repository` }), async (target) => {
        await target.write('m/a', some)
        await spool(target, 'm/s/data-0001', randomFrom('full').bytes(30 * MIB))
        const full = await backupError(async () => await target.publish('m/s/data-0001'))
        assert.is(full.code, 'TARGET_FULL')
        assert.not(existsSync(`${disk.path}/repository/m/s/data-0001`))
        assert.ok((await target.freeBytes())! < MIB)
        await target.remove('m/s/data-0001.partial')
        assert.ok((await target.freeBytes())! > 10 * MIB)
        execFileSync('mount', ['-o', 'remount,ro', disk.path])
        const closed = await backupError(async () => await target.write('m/b', some))
        assert.is(closed.code, 'TARGET_READ_ONLY')
        assert.equal(await target.read('m/a', 100), some)
      })
    } finally {
      await shared.idle()
      disk.unmount()
    }
  })
}

function spoolTests(shared: Sshd): void {
  sftp('what is sent is read back: a host that keeps other bytes is found out', async () => {
    const path = newPath()
    const bytes = randomFrom('read back').bytes(2 * MIB)
    const at = { path, bandwidthLimitBytes: 4 * MIB }
    await withTarget(openAt(shared, at), async (target) => {
      const spooled = await spool(target, 'm/data-0001', bytes)
      const publishing = failureOf(async () => await target.publish('m/data-0001'))
      // The disk loses a bit of what it had already, while the rest is still sent.
      const partial = `${path}/m/data-0001.partial`
      await until(() => existsSync(partial) && statSync(partial).size > MIB / 2)
      const fd = openSync(partial, 'r+')
      writeSync(fd, Buffer.from([bytes[1000]! ^ 1]), 0, 1, 1000)
      closeSync(fd)
      const found = await publishing
      assert.is(found instanceof BackupError ? found.code : found, 'READ_BACK')
      assert.equal(readdirSync(`${path}/m`), [])
      assert.ok(existsSync(spooled))
      await target.publish('m/data-0001')
      assert.ok(readFileSync(`${path}/m/data-0001`).equals(bytes))
    })
  })

  sftp('what a run sent before it was killed is sent no more', async () => {
    const path = newPath()
    const bytes = randomFrom('again').bytes(2 * MIB)
    mkdirSync(`${path}/m`, { recursive: true })
    await withTarget(openAt(shared, { path }), async (target) => {
      // Whole and under its name, only the spool was not cleared.
      writeFileSync(`${path}/m/data-0001`, bytes)
      const spooled = await spool(target, 'm/data-0001', bytes)
      await target.publish('m/data-0001')
      assert.not(existsSync(spooled))
      // Longer than it can be: garbage.
      writeFileSync(`${path}/m/data-0002.partial`, Buffer.concat([bytes, bytes]))
      await spool(target, 'm/data-0002', bytes)
      await target.publish('m/data-0002')
      assert.ok(readFileSync(`${path}/m/data-0002`).equals(bytes))
      assert.equal(readdirSync(`${path}/m`), ['data-0001', 'data-0002'])
    })
  })

  sftp('a spool that was cut off is not published', async () => {
    const path = newPath()
    const spoolDirectory = tempDirectory()
    const at = { path, spoolDirectory, bandwidthLimitBytes: 8 * MIB }
    await withTarget(openAt(shared, at), async (target) => {
      const spooled = await spool(target, 'm/data-0001', randomFrom('cut').bytes(4 * MIB))
      const publishing = failureOf(async () => await target.publish('m/data-0001'))
      await sleep(50)
      truncateSync(spooled, MIB)
      const found = await publishing
      assert.is(found instanceof BackupError ? found.code : found, 'STAGING_FAILED')
      assert.not(existsSync(`${path}/m/data-0001`))
    })
  })

  sftp('no more than the limit is sent in a second', async () => {
    const path = newPath()
    await withTarget(openAt(shared, { path, bandwidthLimitBytes: 4 * MIB }), async (target) => {
      await spool(target, 'm/a', Buffer.alloc(2 * MIB))
      const startMs = performance.now()
      await target.publish('m/a')
      const tookMs = performance.now() - startMs
      assert.ok(tookMs > 400 && tookMs < 3000, `${tookMs} ms`)
    })
  })
}

async function until(isSo: () => boolean): Promise<void> {
  for (let tries = 0; tries < 2000 && !isSo(); tries += 1) await sleep(2)
  assert.ok(isSo(), 'it did not come so far')
}

/** What happens to a connection on its way. */
interface Trouble {
  /** After so many bytes. */
  readonly after: number
  readonly to: 'host' | 'us'
  readonly what: 'cut' | 'reset' | 'stall' | 'garble'
  /** How many connections meet it; then all is well. */
  readonly times: number
}

interface Proxy {
  readonly port: number
  /** What went which way so far. */
  readonly seenBytes: Readonly<Record<Trouble['to'], number>>
  readonly connections: () => number
  readonly close: () => Promise<void>
}

async function startProxy(port: number, trouble: Trouble): Promise<Proxy> {
  const sockets = new Set<Socket>()
  let number = 0
  const seenBytes = { host: 0, us: 0 }
  const server: Server = createServer({ noDelay: true }, (ours) => {
    const hasTrouble = ++number <= trouble.times
    const theirs = connect({ port, host: '127.0.0.1', noDelay: true })
    const end = (): void => {
      for (const socket of [ours, theirs]) {
        if (trouble.what === 'reset') socket.resetAndDestroy()
        else socket.destroy()
        sockets.delete(socket)
      }
    }
    const pass = (from: Socket, into: Socket, isAfflicted: boolean): void => {
      let seen = 0
      sockets.add(from)
      from.on('data', (bytes: Buffer) => {
        const left = trouble.after - seen
        seen += bytes.length
        seenBytes[into === theirs ? 'host' : 'us'] += bytes.length
        if (!isAfflicted || left >= bytes.length) return void into.write(bytes)
        if (trouble.what === 'garble') {
          const at = Math.max(0, left)
          if (left >= 0) bytes[at]! ^= 0x40
          return void into.write(bytes)
        }
        if (left > 0) into.write(bytes.subarray(0, left))
        if (trouble.what !== 'stall') end()
      })
      from.on('error', end)
      from.on('close', end)
    }
    pass(ours, theirs, hasTrouble && trouble.to === 'host')
    pass(theirs, ours, hasTrouble && trouble.to === 'us')
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const address = server.address()
  return {
    port: typeof address === 'object' && address !== null ? address.port : 0,
    seenBytes,
    connections: () => number,
    close: async () => {
      for (const socket of sockets) socket.destroy()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}

function faultTests(shared: Sshd): void {
  const bytes = randomFrom('faults').bytes(MIB)

  interface Outcome {
    /** `open done`, `write TARGET_ABSENT` and so on. */
    readonly outcomes: readonly string[]
    /** What lies there under a name. */
    readonly peek: (name: string) => Buffer | undefined
    readonly proxy: Proxy
    /** What opening took, each way. */
    readonly openBytes: Proxy['seenBytes']
  }

  /** Does one call after the other through the trouble; gives what came of it. */
  const through = async (trouble: Trouble): Promise<Outcome> => {
    const proxy = await startProxy(shared.port, trouble)
    const path = newPath()
    const outcomes: string[] = []
    const attempt = async (name: string, action: () => Promise<unknown>): Promise<void> => {
      const failure = await failureOf(action)
      if (failure !== undefined && !(failure instanceof BackupError)) throw failure
      outcomes.push(`${name} ${failure?.code ?? 'done'}`)
    }
    let target: Target | undefined
    await attempt('open', async () => {
      target = await openAt(shared, { port: proxy.port, path })
    })
    const openBytes = { ...proxy.seenBytes }
    const opened = target as Target | undefined
    if (opened !== undefined) {
      await spool(opened, 'm/data-0001', bytes)
      await attempt('write', async () => await opened.write('m/a', some))
      await attempt('publish', async () => await opened.publish('m/data-0001'))
      await attempt('setAside', async () => await opened.setAside('m/a'))
      await attempt('remove', async () => await opened.remove('m/a.damaged'))
      await opened.close()
    }
    await proxy.close()
    const peek = (name: string): Buffer | undefined => {
      return existsSync(`${path}/m/${name}`) ? readFileSync(`${path}/m/${name}`) : undefined
    }
    return { outcomes, peek, proxy, openBytes }
  }

  const ALL = ['open', 'write', 'publish', 'setAside', 'remove'].map((call) => `${call} done`)
  let measured: Promise<Outcome> | undefined
  /** What opening takes, and everything. */
  const measure = async (to: Trouble['to']): Promise<{ open: number; all: number }> => {
    measured ??= through({ after: 0, to, what: 'cut', times: 0 })
    const { outcomes, openBytes, proxy } = await measured
    assert.equal(outcomes, ALL)
    return { open: openBytes[to], all: proxy.seenBytes[to] }
  }

  for (const what of ['cut', 'reset', 'garble', 'stall'] as const) {
    for (const to of ['host', 'us'] as const) {
      sftp(`one connection with ${what} on the way to ${to}: all is done, once`, async () => {
        const { open, all } = await measure(to)
        // In write(), where publish() begins, in its middle, at its end, and after it.
        const afters = [open + 300, open + 1700, (open + all) / 2, all - 1500, all - 300]
        for (const after of what === 'stall' ? afters.slice(1, 3) : afters) {
          const trouble = { after: Math.floor(after), to, what, times: 1 }
          const { outcomes, peek, proxy } = await through(trouble)
          assert.equal(outcomes, ALL, `after ${after}`)
          assert.ok(peek('data-0001')?.equals(bytes), `after ${after}`)
          for (const name of ['a', 'a.partial', 'a.damaged', 'data-0001.partial']) {
            assert.is(peek(name), undefined, `${name} after ${after}`)
          }
          assert.ok(proxy.connections() <= 2)
        }
      })

      sftp(`every connection with ${what} on the way to ${to}: told, no wrong bytes`, async () => {
        const { open, all } = await measure(to)
        for (const after of what === 'cut' ? [open + 300, (open + all) / 2] : [open + 1700]) {
          const trouble = { after: Math.floor(after), to, what, times: Infinity }
          const { outcomes, peek } = await through(trouble)
          for (const outcome of outcomes) assert.match(outcome, /(done|TARGET_ABSENT)$/)
          for (const [name, right] of [
            ['data-0001', bytes],
            ['a', some],
          ] as const) {
            const found = peek(name)
            assert.ok(found === undefined || found.equals(right), `${name} after ${after}`)
          }
          if (!outcomes.includes('publish done')) assert.is(peek('data-0001'), undefined)
          else assert.ok(peek('data-0001') !== undefined)
        }
      })

      sftp(`a host that answers with ${what} on the way to ${to} is not there`, async () => {
        const { open } = await measure(to)
        const after = Math.floor(open / 2)
        const { outcomes, proxy } = await through({ after, to, what, times: 1 })
        assert.equal(outcomes, ['open TARGET_ABSENT'])
        assert.is(proxy.connections(), 1)
      })
    }
  }

  sftp(
    'as long as something arrives a host is not given up, and nothing is sent twice',
    async () => {
      const proxy = await startProxy(shared.port, {
        ...{ after: 3 * MIB, to: 'host', what: 'cut', times: Infinity },
      })
      const large = randomFrom('progress').bytes(24 * MIB)
      const path = newPath()
      await withTarget(openAt(shared, { port: proxy.port, path }), async (target) => {
        await spool(target, 'm/data-0001', large)
        await target.publish('m/data-0001')
      })
      await proxy.close()
      assert.ok(readFileSync(`${path}/m/data-0001`).equals(large))
      assert.ok(proxy.connections() > QUICK.tries, `${proxy.connections()} connections`)
      const ratio = proxy.seenBytes.host / large.length
      // Each break costs at most what was under way.
      assert.ok(ratio < 3, `${ratio} times its size was sent`)
    },
  )

  sftp('a host whose sessions are killed again and again is asked again', async () => {
    await withServer({}, async (server) => {
      await withTarget(openAt(server), async (target) => {
        for (let i = 0; i < 5; i += 1) {
          await target.write(`m/${i}`, Buffer.from(String(i)))
          server.endSessions()
        }
        const tree = await target.listTree('')
        assert.equal(
          tree.map((file) => file.name),
          ['m/0', 'm/1', 'm/2', 'm/3', 'm/4'],
        )
      })
    })
  })

  sftp('close() ends what is under way, and nothing goes on', async () => {
    const path = newPath()
    const target = await openAt(shared, { path, bandwidthLimitBytes: MIB })
    await spool(target, 'm/data-0001', bytes)
    const publishing = failureOf(async () => await target.publish('m/data-0001'))
    await sleep(150)
    await target.close()
    assert.instance(await publishing, BackupError)
    assert.not(existsSync(`${path}/m/data-0001`))
  })
}

if (canRunAsRoot('SFTP against a real server')) {
  const shared = await startSshd()
  hostKeyTests(shared)
  loginTests(shared)
  refusalTests(shared)
  spoolTests(shared)
  faultTests(shared)
  sftp.after(() => shared.stop())
}
sftp.run()
