// One suite of sentences for every kind of target, and what is left where something goes wrong on
// the way.

import { Buffer } from 'node:buffer'
import { spawnSync } from 'node:child_process'
import { lstatSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { suite } from 'uvu'
import type { SftpTargetConfiguration } from '../../lib/machine/config-targets.ts'
import { openDirectoryTarget } from '../../lib/target/directory.ts'
import { openS3Target } from '../../lib/target/s3.ts'
import { openSftpTarget } from '../../lib/target/sftp.ts'
import type { Target } from '../../lib/target/target.ts'
import * as assert from '../helpers/assert.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { randomFrom } from '../helpers/random.ts'
import type { FaultKind } from '../helpers/s3-server/faults.ts'
import { type S3Server, startS3Server } from '../helpers/s3-server.ts'
import { type Sshd, startSshd } from '../helpers/sshd.ts'
import { planFault } from '../helpers/system-faults.ts'
import { codeOf, conformance, MIB, spool, type Subject } from '../helpers/target-conformance.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'
import { s3Configuration } from '../helpers/s3-configuration.ts'

let made = 0

/** The medium of a target that is a directory of this machine in the end. */
function mediumAt(directory: string): Pick<Subject, 'peek' | 'plant' | 'plantLink'> {
  return {
    peek: (path) => {
      const full = join(directory, path)
      const isFile = lstatSync(full, { throwIfNoEntry: false })?.isFile() === true
      return isFile ? readFileSync(full) : undefined
    },
    plant: (path, bytes) => {
      mkdirSync(dirname(join(directory, path)), { recursive: true })
      writeFileSync(join(directory, path), bytes)
    },
    plantLink: (path) => {
      const elsewhere = tempDirectory()
      writeFileSync(`${elsewhere}/precious`, 'precious')
      mkdirSync(dirname(join(directory, path)), { recursive: true })
      symlinkSync(elsewhere, join(directory, path))
      return elsewhere
    },
  }
}

function directoryBelow(parent: string): Subject {
  const path = `${parent}/${++made}`
  mkdirSync(path)
  const target = openDirectoryTarget({ name: 'red', path, mustBeMounted: undefined })
  return { target, ...mediumAt(path), close: async () => {} }
}

const scratch = tempDirectory()
const traits = { hasDirectories: true, knowsFreeBytes: true }

conformance('target-conformance/directory', async () => directoryBelow(scratch), traits)

if (canRunAsRoot('targets on a drive and over SFTP')) {
  const drive = loopDevice({ sizeMib: 100 })
  conformance('target-conformance/drive', async () => directoryBelow(drive.path), traits)

  let server: Promise<Sshd> | undefined
  const openSftp = async (spoolDirectory = tempDirectory(), path = `${scratch}/${++made}`) => {
    const { port, keyPath, fingerprints } = await (server ??= startSshd())
    const configuration: SftpTargetConfiguration = {
      ...{ kind: 'sftp', name: 'nas', host: '127.0.0.1', port, user: 'root', path, keyPath },
      ...{ hostKey: fingerprints.ed25519, streams: 4, bandwidthLimitBytes: undefined },
      ...{ bundleSizeBytes: MIB, compressionLevel: 3, priority: 0, parityPercent: 0 },
      ...{ drill: 'never', spoolLimitBytes: 2 ** 30 },
    }
    const target = await openSftpTarget({ configuration, spool: spoolDirectory })
    return { target, path, ...mediumAt(path), close: async () => {} }
  }
  conformance('target-conformance/sftp', async () => await openSftp(), {
    ...traits,
    resume: async ({ target, plant, peek }, bytes) => {
      // What a process that was killed leaves: a part, and behind it what was never written.
      plant('m/s/data-0001.partial', Buffer.concat([bytes.subarray(0, 16 * MIB), Buffer.alloc(9)]))
      await spool(target, 'm/s/data-0001', bytes)
      await target.publish('m/s/data-0001')
      assert.is(peek('m/s/data-0001.partial'), undefined)
      return bytes.length - 16 * MIB
    },
  })
  const last = suite('target-conformance/sftp end')
  last('the server ends', async () => (await server)?.stop())
  last.run()
}

/** A bucket of its own on a stand-in server. */
const openS3 = async (spoolDirectory = tempDirectory(), running?: S3Server) => {
  const server = running ?? (await startS3Server())
  Object.assign(process.env, server.environment())
  const more = { streams: 4, bundleSizeBytes: MIB }
  const configuration = s3Configuration({ endpoint: server.endpoint, ...more })
  const capabilitiesFile = `${spoolDirectory}/capabilities.json`
  const target = await openS3Target({
    ...{ configuration, capabilitiesFile, spool: spoolDirectory, firstDelayMs: 1 },
  })
  return {
    ...{ target, server, spoolDirectory },
    peek: (path: string) => server.objects().get(`backups/${path}`)?.body,
    plant: (path: string, body: Buffer) => server.put({ key: `backups/${path}`, body }),
    close: async () => await server.close(),
  }
}

let opened: Awaited<ReturnType<typeof openS3>>
conformance('target-conformance/s3', async () => (opened = await openS3()), {
  hasDirectories: false,
  knowsFreeBytes: false,
  resume: async ({ target }, bytes) => {
    const { server, spoolDirectory } = opened
    await spool(target, 'm/s/data-0001', bytes)
    // The probe sends parts, too.
    await target.bucket?.capabilities()
    // A process that got no further than its first part.
    const part = { action: 'UploadPart', after: 1 } as const
    const end = server.fault({ kind: 'error', status: 500, code: 'InternalError', ...part })
    assert.ok((await codeOf(async () => await target.publish('m/s/data-0001'))) !== undefined)
    assert.is(server.objects().get('backups/m/s/data-0001'), undefined)
    end()
    server.resetRequests()
    const next = await openS3(spoolDirectory, server)
    await next.target.publish('m/s/data-0001')
    await next.target.close()
    const sent = server.requests.filter((request) => request.action === 'UploadPart')
    return sent.reduce((sum, { bytesIn }) => sum + bytesIn, 0)
  },
})

const faults = suite('target-conformance/directory with faults')

const MODULE = new URL('../../lib/target/directory.js', import.meta.url).href

/** Runs in a process of its own, whose system calls fail. */
const SCRIPT = `
const [path, call, module] = process.argv.slice(1)
const { openDirectoryTarget } = await import(module)
const target = openDirectoryTarget({ name: 'red', path, mustBeMounted: false })
try {
  if (call === 'publish') await target.publish('m/s/data-0001')
  else await target[call]('m/s/data-0001', Buffer.from('new bytes'))
  console.log('done')
} catch (error) {
  if (error.name !== 'BackupError') throw error
  console.log(error.code)
}
`

for (const call of ['write', 'publish', 'replace', 'setAside', 'remove']) {
  for (const error of ['EIO', 'ENOSPC']) {
    faults(`${call}() with ${error} at each system call`, () => {
      const expected = error === 'EIO' ? 'TARGET_FAILED' : 'TARGET_FULL'
      const isNew = call === 'write' || call === 'publish'
      const old = Buffer.from('old bytes')
      let failed = 0
      for (let at = 1; ; at += 1) {
        const path = `${scratch}/${++made}`
        const { plant, peek } = mediumAt(path)
        mkdirSync(path)
        if (call === 'publish') plant('m/s/data-0001.partial', Buffer.from('new bytes'))
        if (!isNew) plant('m/s/data-0001', old)
        const plan = planFault({ match: new RegExp(path), at, action: { error } })
        const words = ['--input-type=module', '-e', SCRIPT, path, call, MODULE]
        const environment = { ...process.env, ...plan.environment }
        const run = spawnSync(process.execPath, words, { env: environment, encoding: 'utf8' })
        assert.is(run.status, 0, run.stderr)
        const outcome = run.stdout.trim()
        const found = peek('m/s/data-0001')
        if (plan.count() < at) {
          assert.is(outcome, 'done')
          break
        }
        assert.is(outcome, expected, `call ${at}: ${plan.calls().at(-1)}`)
        failed += 1
        const allowed = isNew ? ['new bytes'] : ['old bytes', 'new bytes']
        const isGone = found === undefined && call !== 'replace'
        assert.ok(isGone || allowed.includes(String(found)), `call ${at}: ${found}`)
        if (call === 'setAside' && found === undefined) {
          assert.equal(peek('m/s/data-0001.damaged'), old)
        }
      }
      assert.ok(failed >= 2, `only ${failed} calls failed`)
    })
  }
}
faults.run()

const s3Faults = suite('target-conformance/s3 with faults')

/** Everything that can be asked of a target, each in a repository that has what it needs. */
const ACTIONS: Readonly<Record<string, (target: Target) => Promise<unknown>>> = {
  write: async (target) => await target.write('m/new', NEW),
  replace: async (target) => await target.replace('m/old', NEW),
  publish: async (target) => {
    await spool(target, 'm/new', NEW)
    await target.publish('m/new')
  },
  'publish of parts': async (target) => {
    await spool(target, 'm/new', LARGE)
    await target.publish('m/new')
  },
  read: async (target) => {
    const found = await target.read('m/old', 100)
    assert.ok(found?.length === OLD.length, String(found))
    return found
  },
  readRange: async (target) => {
    const found = await target.readRange('m/old', { offset: 1, length: 3 })
    assert.ok(found?.length === 3, String(found))
    return found
  },
  fileSize: async (target) => assert.is(await target.fileSize('m/old'), OLD.length),
  list: async (target) => assert.is((await target.list('m'))?.length, 1),
  listTree: async (target) => assert.is((await target.listTree('')).length, 1),
  setAside: async (target) => assert.is(await target.setAside('m/old'), 'm/old.damaged'),
  remove: async (target) => await target.remove('m/old'),
}
const OLD = Buffer.from('old bytes')
const NEW = Buffer.from('new bytes')
const LARGE = randomFrom('s3 faults').bytes(10 * MIB)

const KINDS: readonly FaultKind[] = [
  { kind: 'error', status: 500, code: 'InternalError' },
  { kind: 'slowdown' },
  { kind: 'reset' },
  { kind: 'reset-after' },
  { kind: 'truncate' },
  { kind: 'corrupt' },
  { kind: 'slow', ms: 30 },
]

/** What a failed call may say: told apart by others, here only that it says something. */
const TOLD = ['TARGET_ABSENT', 'TARGET_FAILED', 'READ_BACK', 'TARGET_DENIED']

for (const [name, act] of Object.entries(ACTIONS)) {
  for (const times of [1, Infinity]) {
    const often = times === 1 ? 'one call in trouble' : 'every call in trouble'
    s3Faults(`${name}, ${often}`, async () => {
      for (const fault of KINDS) {
        const { target, peek, plant, server, close } = await openS3()
        plant('m/old', OLD)
        await target.bucket?.capabilities()
        const clean = server.requests.length
        server.fault({ ...fault, times })
        let code: string | undefined
        try {
          code = await codeOf(async () => await act(target))
        } finally {
          await target.close()
          await close()
        }
        const what = `${fault.kind}: ${code ?? 'done'}`
        if (code !== undefined) assert.ok(TOLD.includes(code), what)
        // What is worth another try is tried again.
        if (times === 1 && fault.kind !== 'corrupt') assert.is(code, undefined, what)
        assert.ok(server.requests.length - clean < 60, `${server.requests.length} requests`)
        const wanted = name === 'publish of parts' ? LARGE : NEW
        const found = peek('m/new')
        assert.ok(found === undefined || found.equals(wanted), `m/new after ${what}`)
        if (code === undefined && /write|publish/.test(name)) assert.ok(found !== undefined, what)
        const old = peek('m/old')
        const mayChange = /replace|remove|setAside/.test(name)
        if (!mayChange) assert.equal(old, OLD, what)
        if (name === 'setAside') assert.equal(old ?? peek('m/old.damaged'), OLD, what)
        if (name === 'replace') assert.ok(old?.equals(OLD) === true || old?.equals(NEW), what)
      }
    })
  }
}
s3Faults.run()
