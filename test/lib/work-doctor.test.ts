import { execFileSync, spawnSync } from 'node:child_process'
import { chmodSync, chownSync, existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import type { Configuration, SetConfiguration } from '../../lib/machine/config.ts'
import { rawPathFromText } from '../../lib/model/raw-path.ts'
import type { Check } from '../../lib/model/check.ts'
import { examineMachine } from '../../lib/work/doctor.ts'
import { fidelityLosses, probeStaging } from '../../lib/work/fidelity.ts'
import { LINK_DEST, selfTest } from '../../lib/work/self-test.ts'
import * as assert from '../helpers/assert.ts'
import { configurationOf, setConfiguration } from '../helpers/configuration.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const doctor = suite('work/doctor')
const nowMs = Date.UTC(2026, 0, 2, 3, 4, 5)
const realRsync = execFileSync('bash', ['-c', 'command -v rsync'], { encoding: 'utf8' }).trim()

interface Scene {
  readonly directory: string
  readonly staging: string
  readonly check: (change?: Change) => Promise<Check[]>
}

interface Change {
  readonly set?: Partial<SetConfiguration>
  readonly configuration?: Partial<Configuration>
  readonly nowMs?: number
  readonly dryRun?: boolean
}

/** A machine with nothing wrong. */
function scene(staging?: string): Scene {
  const directory = tempDirectory()
  const place = staging ?? `${directory}/staging`
  mkdirSync(place, { recursive: true, mode: 0o700 })
  mkdirSync(`${directory}/data`)
  writeFileSync(`${directory}/config.yaml`, '', { mode: 0o644 })
  writeFileSync(`${directory}/signing.key`, '', { mode: 0o600 })
  return {
    directory,
    staging: place,
    check: async (change = {}) => {
      const sources = [`${directory}/data`]
      const set = setConfiguration({ sources, snapshot: 'none', ...change.set })
      const checks: Check[] = []
      await examineMachine({
        configuration: configurationOf(set, {
          staging: place,
          path: `${directory}/config.yaml`,
          signingKey: `${directory}/signing.key`,
          ...change.configuration,
        }),
        uid: process.getuid?.() ?? 0,
        home: directory,
        nowMs: change.nowMs ?? nowMs,
        pid: process.pid,
        dryRun: change.dryRun ?? true,
        signal: new AbortController().signal,
        onCheck: (check) => void checks.push(check),
      })
      return checks
    },
  }
}

const wrong = (checks: readonly Check[]) => checks.filter(({ verdict }) => verdict !== 'ok')

/** The only finding, which has to say how to put it right. */
function only(checks: readonly Check[]): Check {
  const [found, ...others] = wrong(checks)
  assert.equal(others, [])
  assert.ok(found?.fix, 'a finding has a fix')
  return found
}

/** Something else than rsync, first in PATH. */
async function withRsync(text: string, work: () => Promise<void>): Promise<void> {
  const directory = tempDirectory()
  writeFileSync(`${directory}/rsync`, `#!/bin/bash\n${text}\n`, { mode: 0o755 })
  const path = process.env['PATH']
  process.env['PATH'] = `${directory}:${path}`
  try {
    await work()
  } finally {
    process.env['PATH'] = path
  }
}

doctor('a machine with nothing wrong is said to be so, and nothing stays behind', async () => {
  const { check, staging } = scene()
  const checks = await check({ dryRun: false })
  assert.equal(
    wrong(checks).filter(({ message }) => !message.startsWith('without root')),
    [],
  )
  const survivors = checks.find(({ name }) => name === 'self-test')?.message ?? ''
  for (const feature of ['hard links', 'sparse files', 'ACLs', 'extended attributes', LINK_DEST]) {
    assert.ok(survivors.includes(feature), feature)
  }
  assert.equal(readdirSync(`${staging}/.state`), [])
})

doctor('a dry run makes nothing', async () => {
  const { check, staging } = scene()
  assert.equal(wrong(await check({ dryRun: true })), [])
  assert.equal(readdirSync(staging), [])
})

doctor('what a killed doctor left is removed, what a living one has is not', async () => {
  const { check, staging } = scene()
  const gone = spawnSync('true').pid
  // In a container every process may have the same number.
  for (const name of [`doctor-${gone}`, `doctor-${process.pid}`, 'doctor-1', 'doctor-x']) {
    mkdirSync(`${staging}/.state/${name}/source`, { recursive: true, mode: 0o700 })
  }
  const checks = await check({ dryRun: false })
  assert.ok(checks.some(({ message }) => message.startsWith('survive here')))
  assert.equal(readdirSync(`${staging}/.state`).sort(), ['doctor-1', 'doctor-x'])
})

doctor("another program than rsync under rsync's name fails", async () => {
  const { check } = scene()
  const printed = 'openrsync: protocol version 29\nrsync version 2.6.9 compatible'
  await withRsync(`echo '${printed}'`, async () => {
    const found = only(await check())
    assert.is(found.verdict, 'failure')
    assert.match(found.message, /openrsync/)
  })
})

doctor('an rsync that fails, copies again or loses attributes is found out', async () => {
  const { check } = scene()
  const without = (option: string) => {
    const words = `for word; do [[ $word == ${option} ]] || words+=("$word"); done`
    return `${words}; exec ${realRsync} "\${words[@]}"`
  }
  const selfTests = async () => {
    const found = wrong(await check({ dryRun: false }))
    return found.filter(({ name, message }) => {
      return name === 'self-test' && !message.startsWith('without root')
    })
  }
  await withRsync(without('--link-dest=*'), async () => {
    const found = only(await selfTests())
    assert.is(found.verdict, 'failure')
    assert.match(found.message, /link-dest.*copied again/)
  })
  await withRsync(`set -- "\${@/-aHAXS/-aHAS}"; exec ${realRsync} "$@"`, async () => {
    const found = await selfTests()
    assert.ok(found.length > 0)
    for (const one of found) {
      assert.is(one.verdict, 'warning')
      assert.match(one.message, /^(.* attributes|capabilities) are lost/)
    }
  })
  const broken = `[[ $1 == --version ]] && exec ${realRsync} "$@"; exit 12`
  await withRsync(broken, async () => {
    const found = only(await selfTests())
    assert.is(found.verdict, 'failure')
    assert.match(found.message, /exit code 12/)
  })
})

doctor('staging that is open, absent, or no directory is found', async () => {
  const { check, staging, directory } = scene()
  chmodSync(staging, 0o750)
  const open = only(await check())
  assert.is(open.verdict, 'failure')
  assert.is(open.fix, `chmod 700 "${staging}"`)
  const absent = only(await check({ configuration: { staging: `${directory}/none` } }))
  assert.is(absent.verdict, 'warning')
  assert.match(absent.message, /is not there/)
  const file = only(await check({ configuration: { staging: `${directory}/config.yaml` } }))
  assert.is(file.verdict, 'failure')
})

doctor('less free space than min_free is a warning', async () => {
  const { check } = scene()
  const found = only(await check({ configuration: { minFree: { bytes: 2 ** 60 } } }))
  assert.is(found.verdict, 'warning')
  assert.match(found.message, /less than min_free/)
  assert.is(only(await check({ configuration: { minFree: { share: 1 } } })).name, 'space')
  assert.equal(wrong(await check({ configuration: { minFree: { bytes: 1 } } })), [])
})

doctor('a clock before this program, or before a collection, fails', async () => {
  const { check, staging } = scene()
  assert.match(only(await check({ nowMs: 0 })).message, /1970-01-01/)
  mkdirSync(`${staging}/home/2026-01-02T030406Z`, { recursive: true })
  writeFileSync(`${staging}/home/2026-01-02T030406Z.catalog.zst`, '')
  const found = wrong(await check())
  assert.equal(
    found.map(({ name }) => name),
    ['collections', 'clock'],
  )
  assert.match(found[0]?.message ?? '', /catalogs of home 2026-01-02T030406Z cannot be read/)
  assert.match(found[1]?.message ?? '', /home 2026-01-02T030406Z/)
  const later = wrong(await check({ nowMs: nowMs + 1000 }))
  assert.equal(
    later.map(({ name }) => name),
    ['collections'],
  )
})

doctor('a configuration, key or hook that others can write or read fails', async () => {
  const { check, directory } = scene()
  chmodSync(`${directory}/config.yaml`, 0o666)
  assert.is(only(await check()).fix, `chmod o-w "${directory}/config.yaml"`)
  chmodSync(`${directory}/config.yaml`, 0o644)

  const targets = [{ name: 'drive' }] as unknown as Configuration['targets']
  assert.equal(wrong(await check({ configuration: { targets } })), [])
  chmodSync(`${directory}/signing.key`, 0o640)
  assert.is(
    only(await check({ configuration: { targets } })).fix,
    `chmod 600 "${directory}/signing.key"`,
  )
  assert.equal(wrong(await check()), [], 'without targets there is nothing to sign')

  const hook = `${directory}/hook`
  const hooks = setConfiguration().hooks
  const set = { hooks: { ...hooks, export: { ...hooks.export, onFailure: [hook, 'word'] } } }
  assert.match(only(await check({ set })).message, /is no program/)
  writeFileSync(hook, '#!/bin/sh\n')
  chmodSync(hook, 0o757)
  assert.is(only(await check({ set })).fix, `chmod o-w "${hook}"`)
  chmodSync(hook, 0o755)
  assert.equal(wrong(await check({ set })), [])
})

doctor('a source that is not there fails, and one without a snapshot is told', async () => {
  const { check, directory } = scene()
  const gone = only(await check({ set: { sources: [`${directory}/data`, '/no/such'] } }))
  assert.is(gone.verdict, 'failure')
  assert.match(gone.message, /"\/no\/such": no such file/)
  const auto = only(await check({ set: { sources: ['/proc/self/net'], snapshot: 'auto' } }))
  assert.is(auto.verdict, 'warning')
  assert.match(auto.message, /proc has no snapshots/)
  const required = only(await check({ set: { sources: ['/proc/self/net'], snapshot: 'required' } }))
  assert.is(required.verdict, 'failure')
})

doctor('programs are asked for only where this configuration needs them', async () => {
  const { check } = scene()
  const programs = async (set: Partial<SetConfiguration>) =>
    (await check({ set })).find(({ name }) => name === 'programs')?.message
  assert.is(await programs({}), 'bash')
  assert.is(await programs({ nice: 5, ionice: 'idle' }), 'bash, nice, ionice')
})

doctor('losses are said with what to do, and nothing is said where nothing is lost', () => {
  const all = {
    owners: true,
    devices: true,
    userXattrs: true,
    systemXattrs: true,
    acls: true,
    exactTimes: true,
  }
  assert.equal(fidelityLosses({ uid: 0, probe: all }), [])
  const user = { ...all, owners: false, devices: false, systemXattrs: false }
  const losses = fidelityLosses({ uid: 1000, probe: user })
  assert.is(losses.length, 3)
  for (const loss of losses) assert.match(loss, /: run as root$/)
  assert.match(fidelityLosses({ uid: 0, probe: { ...all, owners: false } })[0]!, /put staging on/)
})

if (canRunAsRoot('ramfs, btrfs, foreign owners')) {
  doctor('a source on btrfs is read from a snapshot, and its programs are asked for', async () => {
    const { path } = loopDevice({ sizeMib: 128, type: 'btrfs' })
    const { check } = scene()
    const checks = await check({ set: { sources: [path], snapshot: 'required' } })
    assert.equal(wrong(checks), [])
    const message = (name: string) => checks.find((one) => one.name === name)?.message
    assert.is(message('sources of home'), `"${path}", read from a btrfs snapshot`)
    assert.is(message('programs'), 'bash, btrfs, mount, umount')
  })

  doctor('files of another user are not trusted', async () => {
    const { check, directory } = scene()
    chownSync(`${directory}/config.yaml`, 1234, 1234)
    assert.is(only(await check()).fix, `chown 0 "${directory}/config.yaml"`)
  })

  doctor('a filesystem without attributes is warned of, and all else survives', async () => {
    const directory = tempDirectory()
    const at = `${directory}/ramfs`
    mkdirSync(at)
    execFileSync('mount', ['-t', 'ramfs', 'none', at])
    try {
      const { check } = scene(`${at}/staging`)
      const checks = wrong(await check({ dryRun: false }))
      assert.ok(checks.length > 0)
      for (const { name, verdict, message } of checks) {
        assert.is(name, 'self-test')
        assert.is(verdict, 'warning')
        assert.match(message, /^(\w+ attributes|ACLs|capabilities) are lost: .*ENOTSUP/)
      }
      const probe = probeStaging({ path: rawPathFromText(`${at}/probe`) })
      assert.equal(probe, {
        owners: true,
        devices: true,
        userXattrs: false,
        systemXattrs: false,
        acls: false,
        exactTimes: true,
      })
      assert.not.ok(existsSync(`${at}/probe`))
      assert.not.ok(existsSync(`${at}/probe.device`))
    } finally {
      execFileSync('umount', ['--lazy', at])
    }
  })

  doctor('without root, what root alone could keep is not promised', () => {
    const directory = tempDirectory()
    chmodSync(directory, 0o777)
    const lib = ['fidelity', 'self-test'].map((name) => {
      return new URL(`../../lib/work/${name}.js`, import.meta.url).href
    })
    const script = `
      process.setgid(1000)
      process.setuid(1000)
      const [, fidelity, test] = process.argv
      const { probeStaging } = await import(fidelity)
      const { selfTest } = await import(test)
      const { signal } = new AbortController()
      const results = await selfTest({ directory: '${directory}/t', isRoot: false, signal })
      console.log(JSON.stringify([probeStaging({ path: '${directory}/p' }), results]))`
    const run = spawnSync(process.execPath, ['--input-type=module', '-e', script, ...lib], {
      encoding: 'utf8',
    })
    assert.is(run.status, 0, run.stderr)
    const [probe, results] = JSON.parse(run.stdout) as [object, { why?: string }[]]
    assert.equal(probe, {
      owners: false,
      devices: false,
      userXattrs: true,
      systemXattrs: false,
      acls: true,
      exactTimes: true,
    })
    assert.equal(
      results.filter(({ why }) => why !== undefined),
      [],
    )
    assert.equal(readdirSync(directory), [])
  })
}

doctor('a self-test that is interrupted removes what it made', async () => {
  const directory = tempDirectory()
  const signal = AbortSignal.abort()
  let code: unknown
  try {
    await selfTest({ directory: `${directory}/t`, isRoot: false, signal })
  } catch (error) {
    code = (error as { code?: unknown }).code
  }
  assert.is(code, 'INTERRUPTED')
  assert.equal(readdirSync(directory), [])
})

doctor.run()
