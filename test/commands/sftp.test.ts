// SFTP end to end: the built program and a real sshd. What single calls do is in
// test/lib/target-sftp.test.ts.

import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { randomFrom } from '../helpers/random.ts'
import { MAIN } from '../helpers/run-cli.ts'
import {
  assertNoLeftovers,
  configure,
  inventory,
  makeScenario,
  namesIn,
  type Properties,
  type Scenario,
} from '../helpers/scenario.ts'
import { type Sshd, startSshd } from '../helpers/sshd.ts'

const sftp = suite('commands/sftp')
const random = randomFrom('commands/sftp')

interface Nas extends Scenario {
  readonly server: Sshd
  /** The repository's directory, as the host sees it. */
  readonly there: string
}

/** The server has to be stopped. */
async function makeNas(target: Properties = {}): Promise<Nas> {
  const scenario = await makeScenario()
  const server = await startSshd()
  const there = `${scenario.directory}/nas`
  configure(scenario, (c) => {
    c['targets'] = [
      {
        ...{ name: 'nas', kind: 'sftp', host: '127.0.0.1', port: server.port, user: 'root' },
        ...{ path: there, ssh_key: server.keyPath, host_key: server.fingerprints.ed25519 },
        ...{ bundle_size: '1 MiB', ...target },
      },
    ]
  })
  return { ...scenario, server, there }
}

async function withNas(test: (nas: Nas) => Promise<void>, target: Properties = {}): Promise<void> {
  const nas = await makeNas(target)
  try {
    await test(nas)
  } finally {
    nas.server.stop()
  }
}

function fill({ source }: Scenario): void {
  mkdirSync(`${source}/deep`)
  for (let i = 0; i < 20; i += 1) writeFileSync(`${source}/${i}`, random.bytes(100_000))
  for (let i = 0; i < 60; i += 1) writeFileSync(`${source}/deep/${i}`, `${i}\n`)
  writeFileSync(`${source}/long`, random.bytes(5_000_000))
}

function stampsThere({ there }: Nas): string[] {
  return namesIn(`${there}/machines/tester/data`, /\/manifest\.tar\.zst\.age$/).map(
    (path) => path.split('/')[0]!,
  )
}

async function assertRestores(nas: Nas, name: string): Promise<void> {
  const into = `${nas.directory}/${name}`
  const restored = await nas.restore('--into', into)
  assert.is(restored.status, 0, restored.stderr)
  assert.equal(inventory(`${into}${nas.source}`), inventory(nas.source))
  const verified = await nas.restore('--verify')
  assert.is(verified.status, 0, verified.stderr + verified.stdout)
}

/** A stamp has seconds. */
async function nextSecond(): Promise<void> {
  await sleep(1001 - (Date.now() % 1000))
}

const test = canRunAsRoot('SFTP end to end') ? sftp : sftp.skip

test('exports day after day, verifies, lists, restores one file and all', async () => {
  await withNas(async (nas) => {
    fill(nas)
    const first = await nas.generation()
    assert.ok(first.full)
    await nextSecond()
    writeFileSync(`${nas.source}/one-more`, 'new')
    const second = await nas.generation()
    assert.not.ok(second.full)
    assert.ok(second.dataBytes < 10_000, `${second.dataBytes} bytes are new`)
    assert.equal(stampsThere(nas), [first.stamp, second.stamp])
    assert.is(readFileSync(`${nas.there}/machines/tester/data/latest`, 'utf8'), `${second.stamp}\n`)
    assertNoLeftovers(nas.there)
    assert.equal(namesIn(`${nas.staging}/.state/spool`, /\.age|\.partial|\.sha256/), [])
    assert.not.ok(namesIn(`${nas.staging}/.state/unfinished`, /\./).length > 0)
    const list = await nas.restore('--list')
    assert.is(list.status, 0, list.stderr)
    for (const stamp of [first.stamp, second.stamp]) assert.ok(list.stdout.includes(stamp))
    const one = `${nas.directory}/one`
    const restored = await nas.restore('--path', `${nas.source}/deep/7`, '--into', one)
    assert.is(restored.status, 0, restored.stderr)
    const files = [...inventory(one)].filter(([, what]) => what !== 'directory')
    assert.is(files.length, 1)
    assert.is(readFileSync(`${one}${nas.source}/deep/7`, 'utf8'), '7\n')
    await assertRestores(nas, 'back')
    const doctor = await nas.run('doctor', '--target', 'nas')
    assert.is(doctor.status, 0, doctor.stdout + doctor.stderr)
    assert.not.match(doctor.stdout, /^FAIL/m)
    assert.match(doctor.stdout, /ok +target: nas/)
    assertNoLeftovers(nas.there)
    await nas.server.idle()
  })
})

test('retention lets old exports go after a good run, and what only they needed', async () => {
  await withNas(async (nas) => {
    configure(nas, (c) => {
      c['backup_sets'][0].retention = { external: 1 }
    })
    fill(nas)
    const first = await nas.generation()
    await nextSecond()
    writeFileSync(`${nas.source}/long`, random.bytes(3_000_000))
    const second = await nas.generation()
    assert.equal(second.pruned.removedExports, [`tester/data/${first.stamp}`])
    assert.equal(stampsThere(nas), [second.stamp])
    const left = namesIn(`${nas.there}/machines/tester/data/${first.stamp}`, /verification|manif/)
    assert.equal(left, [])
    await assertRestores(nas, 'back')
  })
})

test('killed in the middle, the next run finishes by itself and sends nothing twice', async () => {
  await withNas(
    async (nas) => {
      fill(nas)
      assert.is((await nas.collect()).status, 0)
      const isBundle = /\/data-\d+\.tar\.zst\.age$/
      const bundles = (): string[] => namesIn(`${nas.there}/machines/tester/data`, isBundle)
      const child = spawn(process.execPath, [MAIN, 'external'], {
        env: { PATH: process.env['PATH'], ...nas.environment },
        stdio: 'ignore',
      })
      const ended = new Promise((resolve) => child.once('close', resolve))
      for (let tries = 0; tries < 2000 && bundles().length < 2; tries += 1) await sleep(10)
      process.kill(child.pid!, 'SIGKILL')
      await ended
      const before = bundles()
      assert.ok(before.length >= 2, 'some was sent')
      assert.equal(stampsThere(nas), [], 'and no export exists')
      const whole = inventory(nas.there)
      configure(nas, (c) => {
        delete c['targets'][0].bandwidth_limit
      })
      const finished = await nas.external('--json')
      assert.is(finished.status, 0, finished.stderr)
      assert.is(stampsThere(nas).length, 1)
      const after = inventory(nas.there)
      for (const [path, what] of whole) {
        if (isBundle.test(path)) assert.is(after.get(path), what, path)
      }
      // Ciphertexts differ each time, so it is the sum that tells: 7 MB of content, all random.
      const stored = bundles()
        .map((name) => statSync(`${nas.there}/machines/tester/data/${name}`).size)
        .reduce((sum, size) => sum + size, 0)
      assert.ok(stored < 7_500_000, `${stored} bytes: nothing is there twice`)
      assertNoLeftovers(nas.there)
      assert.equal(namesIn(`${nas.staging}/.state/spool`, /\.age|\.partial|\.sha256/), [])
      await assertRestores(nas, 'back')
    },
    { bandwidth_limit: '1 MiB', streams: 1 },
  )
})

test('without a pinned key nothing is sent, and the hint has the right line', async () => {
  await withNas(async (nas) => {
    fill(nas)
    assert.is((await nas.collect()).status, 0)
    configure(nas, (c) => {
      delete c['targets'][0].host_key
    })
    const unpinned = await nas.external()
    assert.is.not(unpinned.status, 0)
    assert.match(unpinned.stderr, /no key of 127\.0\.0\.1 is pinned/)
    assert.not.match(nas.server.log(), /Accepted publickey/)
    assert.not.ok(existsSync(nas.there))
    const line = /`host_key: (SHA256:\S+)`/.exec(unpinned.stderr)
    assert.ok(line, unpinned.stderr)
    assert.ok(Object.values(nas.server.fingerprints).includes(line[1]!))
    configure(nas, (c) => {
      c['targets'][0].host_key = line[1]
    })
    assert.is((await nas.external()).status, 0)
    assert.is(stampsThere(nas).length, 1)
    configure(nas, (c) => {
      c['targets'][0].host_key = `SHA256:${'A'.repeat(43)}`
    })
    const before = inventory(nas.there)
    for (const words of [['external'], ['doctor', '--target', 'nas']]) {
      const wrong = await nas.run(...words)
      assert.is.not(wrong.status, 0, words.join(' '))
      assert.match(
        wrong.stdout + wrong.stderr,
        /127\.0\.0\.1 has not the key that is pinned/,
        words.join(' '),
      )
    }
    assert.equal(inventory(nas.there), before)
  })
})

test('a host that is away is no failure of a scheduled run, and named otherwise', async () => {
  await withNas(async (nas) => {
    fill(nas)
    await nas.generation()
    const before = inventory(nas.there)
    nas.server.stop()
    const named = await nas.external('--target', 'nas')
    assert.is(named.status, 10, named.stderr)
    assert.match(named.stderr, /nas|127\.0\.0\.1/)
    const whole = await nas.external()
    assert.ok([10, 75].includes(whole.status ?? 0), `${whole.status} ${whole.stderr}`)
    const restore = await nas.restore('--list')
    assert.is(restore.status, 10, restore.stderr)
    assert.equal(inventory(nas.there), before)
    const doctor = await nas.run('doctor', '--target', 'nas')
    assert.is(doctor.status, 1, doctor.stdout)
    assert.match(doctor.stdout, /FAIL +target/)
  })
})

sftp.run()
