import { execFileSync, spawnSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import type { Check } from '../../lib/model/check.ts'
import { examineRestorePlace, type RestorePlaceOptions } from '../../lib/work/doctor-restore.ts'
import * as assert from '../helpers/assert.ts'
import { driveImage } from '../helpers/drive-image.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const doctor = suite('work/doctor-restore')

const { signal: never } = new AbortController()

/** Looks at `into` from a staging of its own, and sees that nothing stays behind in either. */
async function look(
  into: string,
  change: Partial<RestorePlaceOptions> = {},
): Promise<readonly Check[]> {
  const staging = tempDirectory()
  const checks: Check[] = []
  const listed = (): readonly string[] => {
    return statSync(into, { throwIfNoEntry: false })?.isDirectory() ? readdirSync(into) : []
  }
  const before = listed()
  await examineRestorePlace({
    into,
    staging,
    uid: process.getuid?.() ?? 0,
    dryRun: false,
    signal: never,
    onCheck: (check) => checks.push(check),
    ...change,
  })
  assert.equal(listed(), before)
  assert.equal(existsSync(`${staging}/.state`) ? readdirSync(`${staging}/.state`) : [], [])
  return checks
}

function survivors(checks: readonly Check[]): readonly string[] {
  const [, list = ''] = /survive in ".*?": (.*);/.exec(checks[0]?.message ?? '') ?? []
  return list.split(', ')
}

function lost(checks: readonly Check[], verdict: Check['verdict']): readonly string[] {
  return checks.filter((check) => check.verdict === verdict).map(({ message }) => message)
}

doctor('a dry run writes nothing, and a place that is none is said to be so', async () => {
  const into = tempDirectory()
  const dry = await look(into, { dryRun: true })
  assert.equal(
    dry.map(({ message }) => message),
    ['not tried: a dry run writes nothing'],
  )
  writeFileSync(`${into}/file`, '')
  assert.match(lost(await look(`${into}/no`), 'failure')[0] ?? '', /no" is not there$/)
  assert.match(lost(await look(`${into}/file`), 'failure')[0] ?? '', /file" is no directory$/)
})

doctor('staging is no place to restore to, nor to try it', async () => {
  const staging = tempDirectory()
  mkdirSync(`${staging}/data`)
  const [check] = await look(`${staging}/data`, { staging })
  assert.is(check?.verdict, 'failure')
  assert.match(check?.message ?? '', /is in staging, where nothing may be changed$/)
  assert.equal(readdirSync(staging), ['data'])
})

doctor('what a killed one left does not hinder, nor is staging taken for the place', async () => {
  const [into, staging] = [tempDirectory(), tempDirectory()]
  mkdirSync(`${staging}/.state/doctor-${process.pid}/source`, { recursive: true })
  const [check] = await look(into, { staging })
  assert.is(check?.verdict, 'ok', check?.message)
  assert.equal(readdirSync(`${staging}/.state`), [])
  const full = tempDirectory()
  writeFileSync(`${full}/.state`, 'in the way')
  const [failure] = await look(into, { staging: full })
  assert.match(failure?.message ?? '', `staging "${full}" cannot be written`)
})

doctor('what is interrupted leaves nothing behind', async () => {
  const into = tempDirectory()
  try {
    await look(into, { signal: AbortSignal.abort() })
    assert.unreachable()
  } catch (error) {
    assert.is((error as { code?: unknown }).code, 'INTERRUPTED')
  }
  assert.equal(readdirSync(into), [])
})

if (canRunAsRoot('what survives where is only known with every kind of entry')) {
  doctor('on ext4 everything survives, and without a configuration as well', async () => {
    const { path, unmount } = loopDevice({ sizeMib: 32 })
    try {
      for (const checks of [await look(path), await look(path, { staging: undefined })]) {
        assert.is(checks.length, 1, JSON.stringify(checks))
        const all = survivors(checks)
        assert.is(all.length, 17)
        for (const feature of ['capabilities', 'inode flags', 'devices', 'sparse files', 'ACLs']) {
          assert.ok(all.includes(feature), feature)
        }
      }
    } finally {
      unmount()
    }
  })

  doctor('without attributes they are named one by one, and all else survives', async () => {
    const at = `${tempDirectory()}/ramfs`
    mkdirSync(at)
    execFileSync('mount', ['-t', 'ramfs', 'none', at])
    try {
      const checks = await look(at)
      assert.equal(lost(checks, 'failure'), [])
      assert.equal(
        lost(checks, 'warning').map((message) => message.replace(/ are lost:.*/, '')),
        ['extended attributes', 'ACLs', 'system attributes', 'capabilities', 'inode flags'],
      )
      assert.match(lost(checks, 'warning')[0] ?? '', /cannot be set there \(xattr user\.backup\)$/)
    } finally {
      execFileSync('umount', ['--lazy', at])
    }
  })

  doctor('on exFAT the paths that would be missing are failures', async () => {
    const { device, detach } = driveImage({ type: 'exfat', label: 'STICK' })
    const at = `${tempDirectory()}/stick`
    mkdirSync(at)
    execFileSync('mount.exfat-fuse', [device, at], { stdio: 'ignore' })
    try {
      const checks = await look(at)
      const failures = lost(checks, 'failure').join('\n')
      for (const feature of [
        'names that differ in case only',
        'symbolic links',
        'FIFOs',
        'devices',
      ])
        assert.match(failures, new RegExp(`^${feature} are lost: `, 'm'))
      assert.ok(survivors(checks).includes('content'))
      assert.match(lost(checks, 'warning').join('\n'), /^owners are lost/m)
    } finally {
      execFileSync('umount', [at])
      detach()
    }
  })

  doctor('without root, what only root restores is said not to be', async () => {
    const [into, staging] = [tempDirectory(), tempDirectory()]
    for (const directory of [into, staging]) chmodSync(directory, 0o777)
    const script = `${tempDirectory()}/look.mjs`
    chmodSync(script.slice(0, script.lastIndexOf('/')), 0o755)
    const module = new URL('../../lib/work/doctor-restore.js', import.meta.url).href
    writeFileSync(
      script,
      `const { examineRestorePlace } = await import(${JSON.stringify(module)})
      const checks = []
      const onCheck = (check) => checks.push(check)
      const { signal } = new AbortController()
      const [into, staging] = ${JSON.stringify([into, staging])}
      process.setgid(1000)
      process.setuid(1000)
      await examineRestorePlace({ into, staging, uid: 1000, dryRun: false, signal, onCheck })
      console.log(JSON.stringify(checks))`,
    )
    const run = spawnSync(process.execPath, [script], { encoding: 'utf8' })
    assert.is(run.status, 0, run.stderr)
    const checks = JSON.parse(run.stdout) as Check[]
    assert.equal(lost(checks, 'failure'), [])
    assert.equal(lost(checks, 'warning'), [
      'without root, owners, devices and system attributes are not restored',
    ])
    assert.not.ok(survivors(checks).includes('owners'))
    assert.ok(survivors(checks).includes('inode flags'))
    assert.equal(readdirSync(into), [])
    assert.equal(readdirSync(`${staging}/.state`), [])
  })
}

doctor.run()
