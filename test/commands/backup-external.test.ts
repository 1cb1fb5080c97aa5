import { spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statfsSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import {
  type Scenario,
  assertNoLeftovers,
  assertSameTree,
  assertWhole,
  configure,
  exportStamps,
  exportedBy,
  inventory,
  jsonLines,
  makeScenario,
  namesIn,
  setDirectory,
  script,
} from '../helpers/scenario.ts'
import { planFault } from '../helpers/system-faults.ts'

const external = suite('backup-external')
const MIB = 1024 * 1024

/** What a repository holds besides one export of the set `data`. */
const REPOSITORY_FILES = ['RECOVER.txt', 'recover.sh', 'repository.json']

external(
  'the first export has exactly the files of the format, and stock programs accept them',
  async () => {
    const scenario = await makeScenario()
    writeFileSync(`${scenario.source}/letter`, 'dear drive')
    assert.is((await scenario.collect()).status, 0)
    const { status, stdout, stderr } = await scenario.external()
    assert.is(status, 0, stderr)
    assert.match(
      stdout,
      /^data → drive: \S+ exported: \d+ entries, 10 B; new on the target: .*; read back /,
    )
    const [stamp = ''] = exportStamps(scenario)
    const directory = `machines/tester/data/${stamp}`
    assert.equal(
      [...inventory(scenario.target).keys()].filter((path) => !/freshness\//.test(path)).sort(),
      [
        ...REPOSITORY_FILES,
        'machines/tester/freshness',
        'machines',
        'machines/tester',
        'machines/tester/machine.json',
        'machines/tester/machine.json.minisig',
        'machines/tester/data',
        'machines/tester/data/latest',
        directory,
        ...[
          'data-0001.tar.zst.age',
          'catalog-0001.tar.zst.age',
          'manifest.tar.zst.age',
          'verification.sha256',
          'verification.sha256.minisig',
        ].map((name) => `${directory}/${name}`),
      ].sort(),
    )
    assert.is(readFileSync(`${setDirectory(scenario)}/latest`, 'utf8'), `${stamp}\n`)
    const key = `${scenario.home}/.config/backup/signing.pub`
    script(
      'cd "$1"; sha256sum -c --quiet verification.sha256; minisign -Vqm verification.sha256 -p "$2"',
      `${scenario.target}/${directory}`,
      key,
    )
    const letter = script(
      'age -d -i "$1" "$2" | zstd -dcq | tar -xO "$3"',
      scenario.identity,
      `${scenario.target}/${directory}/data-0001.tar.zst.age`,
      `${scenario.source.slice(1)}/letter`,
    )
    assert.is(letter, 'dear drive')
  },
)

external(
  'says so when nothing was collected, and when the newest collection is there already',
  async () => {
    const scenario = await makeScenario()
    writeFileSync(`${scenario.source}/letter`, 'x')
    const early = await scenario.external()
    assert.is(early.status, 1)
    assert.match(early.stdout, 'nothing collected yet: run backup-collect first')
    await scenario.generation()
    const before = inventory(scenario.target)
    const again = await scenario.external()
    assert.is(again.status, 0)
    assert.match(again.stdout, 'is there already')
    assert.equal(inventory(scenario.target), before)
  },
)

external('a dry run writes nothing, neither on the target nor in staging', async () => {
  const scenario = await makeScenario()
  writeFileSync(`${scenario.source}/letter`, 'x')
  await scenario.collect()
  const staging = inventory(scenario.staging)
  const { status, stdout } = await scenario.external('--dry-run')
  assert.is(status, 0)
  assert.match(stdout, /data → drive: would export \S+, \d+ entries/)
  assert.equal(readdirSync(scenario.target), [])
  assert.equal(inventory(scenario.staging), staging)
})

external(
  'a set or target that is not configured is refused before anything is written',
  async () => {
    const scenario = await makeScenario()
    for (const words of [
      ['--target', 'drvie'],
      ['--set', 'date'],
    ]) {
      const { status, stderr } = await scenario.external(...words)
      assert.is(status, 2)
      assert.match(stderr, `there is no ${words[0]?.slice(2)} ${words[1]}`)
    }
    assert.equal(readdirSync(scenario.target), [])
  },
)

external(
  'retention keeps the newest by their manifests, and every bundle that they need',
  async () => {
    const scenario = await makeScenario()
    configure(scenario, (c) => {
      c['retention'] = { local: 7, external: 2 }
    })
    writeFileSync(`${scenario.source}/base`, randomBytes(200_000))
    writeFileSync(`${scenario.source}/day`, randomBytes(100_000))
    const stamps: string[] = []
    for (let day = 0; day < 4; day++) {
      if (day > 0) writeFileSync(`${scenario.source}/day`, randomBytes(100_000))
      const { stamp, pruned } = await scenario.generation()
      stamps.push(stamp)
      assert.equal(pruned.removedExports, day < 2 ? [] : [`tester/data/${stamps[day - 2]}`])
    }
    assert.equal(exportStamps(scenario), stamps.slice(2))
    const bundles = namesIn(setDirectory(scenario), /data-0001/)
    assert.equal(
      bundles,
      [stamps[0], stamps[2], stamps[3]].map((stamp) => `${stamp}/data-0001.tar.zst.age`),
    )
    assert.equal(
      readdirSync(`${setDirectory(scenario)}/${stamps[0]}`).filter(
        (name) => !/^(data|catalog)-/.test(name),
      ),
      [],
    )
    await assertWhole(scenario)
  },
)

external('$BACKUP_RETENTION goes before retention.external', async () => {
  const scenario = await makeScenario()
  writeFileSync(`${scenario.source}/letter`, 'x')
  configure(scenario, (c) => {
    c['retention'] = { external: 5 }
  })
  scenario.environment['BACKUP_RETENTION'] = '1'
  await scenario.generation()
  const { stamp } = await scenario.generation()
  assert.equal(exportStamps(scenario), [stamp])
  await assertWhole(scenario)
})

external(
  'a bundle less than half needed is written anew, and goes with the exports that need it',
  async () => {
    const scenario = await makeScenario()
    configure(scenario, (c) => {
      c['retention'] = { external: 2 }
      c['backup_sets'][0].suspect_loss = 1
    })
    for (let i = 0; i < 10; i++) writeFileSync(`${scenario.source}/${i}`, randomBytes(50_000))
    const first = await scenario.generation()
    for (let i = 0; i < 7; i++) rmSync(`${scenario.source}/${i}`)
    const later = [
      await scenario.generation(),
      await scenario.generation(),
      await scenario.generation(),
    ]
    const anew = later.filter(({ dataBytes }) => dataBytes > 10_000)
    assert.is(anew.length, 1, 'once')
    assert.ok(
      (anew[0]?.dataBytes ?? 0) > 150_000 && (anew[0]?.dataBytes ?? 0) < 300_000,
      `${anew[0]?.dataBytes} bytes`,
    )
    assert.not.ok(
      existsSync(`${setDirectory(scenario)}/${first.stamp}`),
      'the first one is gone with its bundle',
    )
    await assertWhole(scenario)
  },
)

external(
  'retention is frozen, with a warning, when an export that stays cannot be checked',
  async () => {
    const scenario = await makeScenario()
    writeFileSync(`${scenario.source}/letter`, 'x')
    configure(scenario, (c) => {
      c['retention'] = { external: 2 }
    })
    const first = await scenario.generation()
    const second = await scenario.generation()
    writeFileSync(`${setDirectory(scenario)}/${second.stamp}/verification.sha256`, 'nonsense\n')
    await scenario.collect()
    const { status, stderr } = await scenario.external()
    assert.is(status, 0, stderr)
    assert.match(stderr, 'nothing is removed from drive')
    assert.ok(existsSync(`${setDirectory(scenario)}/${first.stamp}/manifest.tar.zst.age`))
  },
)

external('a small bundle size gives many bundles, and a file larger than a bundle', async () => {
  const scenario = await makeScenario()
  configure(scenario, (c) => {
    c['targets'][0].bundle_size = '1 MiB'
  })
  for (let i = 0; i < 20; i++) writeFileSync(`${scenario.source}/${i}`, randomBytes(300_000))
  writeFileSync(`${scenario.source}/large`, randomBytes(6 * MIB))
  const { stamp } = await scenario.generation()
  const directory = `${setDirectory(scenario)}/${stamp}`
  const bundles = readdirSync(directory).filter((name) => name.startsWith('data-'))
  // A bundle ends at the first zstd frame that fills it, and a frame holds up to 4 MiB.
  assert.ok(bundles.length >= 4, `${bundles.length} bundles`)
  for (const name of bundles) assert.ok(statSync(`${directory}/${name}`).size < 5.5 * MIB, name)
  const into = `${scenario.directory}/into`
  assert.is((await scenario.restore('--into', into)).status, 0)
  assertSameTree(into + scenario.source, scenario.source)
  await assertWhole(scenario)
})

external(
  'an incomplete collection is exported as incomplete, is never latest, and freezes retention',
  async () => {
    const scenario = await makeScenario()
    writeFileSync(`${scenario.source}/letter`, 'x')
    configure(scenario, (c) => {
      c['retention'] = { external: 1 }
    })
    const whole = await scenario.generation()
    configure(scenario, (c) => {
      c['backup_sets'][0].sources.push('/no/such/thing')
    })
    assert.is((await scenario.collect()).status, 3)
    const { status, stdout, stderr } = await scenario.external()
    assert.is(status, 3)
    assert.match(stdout, 'exported as INCOMPLETE')
    assert.match(stderr, 'missing: no/such/thing: no such file or directory')
    assert.is(exportStamps(scenario).length, 2, 'the complete one stays')
    assert.is(readFileSync(`${setDirectory(scenario)}/latest`, 'utf8'), `${whole.stamp}\n`)
    const verified = await scenario.restore('--verify', '--date', 'latest')
    assert.is(verified.status, 3)
    assert.match(verified.stdout, 'whole, but INCOMPLETE')
  },
)

external('a file that vanishes from staging makes the export incomplete and is named', async () => {
  const scenario = await makeScenario()
  for (const name of ['kept', 'lost']) writeFileSync(`${scenario.source}/${name}`, name)
  await scenario.collect()
  const [lost = ''] = namesIn(`${scenario.staging}/data`, /^\d.*\/lost$/)
  rmSync(`${scenario.staging}/data/${lost}`)
  const { status, stderr } = await scenario.external()
  assert.is(status, 3)
  assert.match(stderr, /missing: .*\/lost: /)
  const into = `${scenario.directory}/into`
  assert.is((await scenario.restore('--into', into)).status, 3)
  assert.equal(readdirSync(into + scenario.source), ['kept'])
})

external('without recipients nothing is exported', async () => {
  const scenario = await makeScenario()
  await scenario.collect()
  configure(scenario, (c) => {
    c['recipients'] = []
  })
  const { status, stderr } = await scenario.external()
  assert.is(status, 2)
  assert.match(stderr, 'no recipients are configured')
  assert.equal(readdirSync(scenario.target), [])
})

external('two exports at the same time: the second one is told', async () => {
  const scenario = await makeScenario()
  writeFileSync(`${scenario.source}/letter`, 'x')
  await scenario.collect()
  mkdirSync(`${scenario.staging}/.state`, { recursive: true })
  const waiting = 'flock "$1" "${@:2}"'
  const run = spawnSync(
    'bash',
    [
      '-c',
      waiting,
      'bash',
      `${scenario.staging}/.state/.run.lock`,
      process.execPath,
      new URL('../../commands/main.js', import.meta.url).pathname,
      'external',
    ],
    { env: { ...scenario.environment, PATH: process.env['PATH'] }, encoding: 'utf8' },
  )
  assert.is(run.status, 11, run.stderr)
  assert.match(run.stderr, 'another run is under way')
  assert.equal(readdirSync(scenario.target), [])
})

// Targets that are not what they should be.

/** Runs an export that has to fail, and asserts that the target's directory is as it was. */
async function refused(
  scenario: Scenario,
  expected: { readonly status: number; readonly code: string; readonly message: string | RegExp },
): Promise<void> {
  const before = inventory(scenario.target)
  const { status, stderr } = await scenario.external()
  assert.is(status, expected.status, stderr)
  assert.match(stderr, expected.message)
  assert.equal(inventory(scenario.target), before, 'nothing was written')
  const told = jsonLines(await scenario.external('--json'), 'result')
  assert.equal(
    told.map(({ code, exitCode }) => [code, exitCode]),
    [[expected.code, expected.status]],
  )
}

external('a target directory that is missing is said, and not made', async () => {
  const scenario = await makeScenario()
  await scenario.collect()
  rmSync(scenario.target, { recursive: true })
  await refused(scenario, {
    status: 10,
    code: 'TARGET_ABSENT',
    message: `target drive: ${scenario.target} is not there`,
  })
  assert.not.ok(existsSync(scenario.target))
})

external('a bare mount point is not written to', async () => {
  const scenario = await makeScenario()
  configure(scenario, (c) => {
    c['targets'][0].must_be_mounted = true
  })
  await scenario.collect()
  const isTmpMounted = statSync('/tmp').dev !== statSync('/').dev
  if (isTmpMounted) return
  await refused(scenario, {
    status: 10,
    code: 'TARGET_ABSENT',
    message: 'it is a bare mount point',
  })
  assert.equal(readdirSync(scenario.target), [])
})

external('one target that is absent does not keep the export from another', async () => {
  const scenario = await makeScenario()
  writeFileSync(`${scenario.source}/letter`, 'x')
  configure(scenario, (c) => {
    c['targets'].unshift({ name: 'gone', kind: 'directory', path: `${scenario.directory}/gone` })
  })
  await scenario.collect()
  const { status, stderr } = await scenario.external()
  assert.is(status, 10)
  assert.match(stderr, 'target gone:')
  assert.is(exportStamps(scenario).length, 1)
})

external('a foreign directory is not written to', async () => {
  const scenario = await makeScenario()
  await scenario.collect()
  writeFileSync(`${scenario.target}/holiday.jpg`, 'x')
  await refused(scenario, {
    status: 1,
    code: 'TARGET_FOREIGN',
    message: 'holds something else, and no repository',
  })
  assert.equal(readdirSync(scenario.target), ['holiday.jpg'])
})

external('a repository of a newer format is neither written nor read', async () => {
  const scenario = await makeScenario()
  writeFileSync(`${scenario.source}/letter`, 'x')
  await scenario.generation()
  const file = `${scenario.target}/repository.json`
  writeFileSync(file, readFileSync(file, 'utf8').replace('"format":1', '"format":2'))
  await scenario.collect()
  await refused(scenario, { status: 1, code: 'TARGET_FORMAT', message: /format/ })
  const read = await scenario.restore('--into', `${scenario.directory}/into`)
  assert.is(read.status, 1)
  assert.match(read.stderr, /format/)
  assert.not.ok(existsSync(`${scenario.directory}/into`))
})

external(
  'another machine of the same name, with another key, is not mixed with this one',
  async () => {
    const first = await makeScenario()
    writeFileSync(`${first.source}/letter`, 'x')
    await first.generation()
    const second = await makeScenario({ target: first.target })
    writeFileSync(`${second.source}/letter`, 'x')
    await second.collect()
    await refused(second, {
      status: 13,
      code: 'SIGNER_UNKNOWN',
      message: 'already has a machine named tester, with another key',
    })
  },
)

external('two machines share a drive without touching one another', async () => {
  const first = await makeScenario()
  writeFileSync(`${first.source}/a`, 'first')
  await first.generation()
  const before = inventory(first.target)
  const second = await makeScenario({ target: first.target, machine: 'other' })
  writeFileSync(`${second.source}/a`, 'second')
  await second.generation()
  const after = inventory(first.target)
  for (const [path, what] of before) assert.is(after.get(path), what, path)
  await assertWhole(first)
})

external(
  'a target whose repository has vanished, or is another one, is not written to',
  async () => {
    const scenario = await makeScenario()
    writeFileSync(`${scenario.source}/letter`, 'x')
    await scenario.generation()
    const away = `${scenario.directory}/away`
    renameSync(scenario.target, away)
    mkdirSync(scenario.target)
    await scenario.collect()
    await refused(scenario, {
      status: 10,
      code: 'TARGET_ABSENT',
      message: 'its repository is not at',
    })
    cpSync(away, scenario.target, { recursive: true })
    const file = `${scenario.target}/repository.json`
    writeFileSync(
      file,
      readFileSync(file, 'utf8').replace(
        /"id":"./,
        (text) => `${text.slice(0, -1)}${text.endsWith('0') ? '1' : '0'}`,
      ),
    )
    await refused(scenario, {
      status: 1,
      code: 'TARGET_FOREIGN',
      message: 'another repository is at',
    })
    copyFileSync(`${away}/repository.json`, file)
    assert.is((await scenario.external()).status, 0)
  },
)

external('a link where a directory of the repository should be is not followed', async () => {
  const scenario = await makeScenario()
  await scenario.collect()
  const elsewhere = `${scenario.directory}/elsewhere`
  await scenario.external()
  renameSync(`${scenario.target}/machines`, elsewhere)
  script('ln -s "$1" "$2"', elsewhere, `${scenario.target}/machines`)
  await scenario.collect()
  const before = inventory(elsewhere)
  const { status, stderr } = await scenario.external()
  assert.is(status, 1, stderr)
  assert.match(stderr, 'is in the way')
  assert.equal(inventory(elsewhere), before)
})

if (canRunAsRoot('targets on loop devices')) {
  external('a target mounted read-only is said to be so', async () => {
    const device = loopDevice({ sizeMib: 24 })
    const scenario = await makeScenario({ target: device.path })
    writeFileSync(`${scenario.source}/letter`, 'x')
    configure(scenario, (c) => {
      c['targets'][0].must_be_mounted = true
    })
    await scenario.generation()
    device.unmount()
    await scenario.collect()
    await refused(scenario, { status: 10, code: 'TARGET_ABSENT', message: 'bare mount point' })
    device.mount('ro')
    await refused(scenario, { status: 1, code: 'TARGET_READ_ONLY', message: 'mounted read-only' })
    device.unmount()
    device.mount()
    assert.is((await scenario.external()).status, 0)
    await assertWhole(scenario)
    device.unmount()
  })

  external(
    'a target that is full in the middle keeps its exports, and takes the next when there is room',
    async () => {
      const device = loopDevice({ sizeMib: 40 })
      const scenario = await makeScenario({ target: device.path })
      configure(scenario, (c) => {
        c['targets'][0].bundle_size = '4 MiB'
        c['backup_sets'][0].suspect_loss = 1
      })
      writeFileSync(`${scenario.source}/small`, 'x')
      const { stamp } = await scenario.generation()
      // A little more than there is room for: by estimate it may do, and so it is tried.
      const { bavail, bsize } = statfsSync(device.path)
      const bytes = Math.floor((bavail * bsize) / 16 / 0.975)
      for (let i = 0; i < 16; i++) writeFileSync(`${scenario.source}/${i}`, randomBytes(bytes))
      await scenario.collect()
      const { status, stderr } = await scenario.external()
      assert.is(status, 1, stderr)
      assert.match(stderr, 'the target is full')
      assert.match(stderr, 'are missing, by estimate')
      assert.equal(exportStamps(scenario), [stamp], 'no manifest')
      assert.is(readFileSync(`${setDirectory(scenario)}/latest`, 'utf8'), `${stamp}\n`)
      await assertWhole(scenario)
      // Still full: the same again, nothing piles up.
      assert.is((await scenario.external()).status, 1)
      for (let i = 4; i < 16; i++) rmSync(`${scenario.source}/${i}`)
      await scenario.collect()
      const later = await scenario.external()
      assert.is(later.status, 0, later.stderr)
      assertNoLeftovers(scenario.target, scenario.staging)
      assert.is(exportStamps(scenario).length, 2)
      const stamps = readdirSync(setDirectory(scenario)).filter((name) => name !== 'latest')
      assert.equal(stamps, exportStamps(scenario), 'what the full run left is swept')
      await assertWhole(scenario)
      device.unmount()
    },
  )

  for (const name of [
    'data-0001.tar.zst.age',
    'catalog-0001.tar.zst.age',
    'manifest.tar.zst.age',
    'verification.sha256',
  ]) {
    external(
      `blocks of ${name} that change on the medium after the write are found by the read-back`,
      async () => {
        const device = loopDevice({ sizeMib: 24 })
        const scenario = await makeScenario({ target: device.path })
        writeFileSync(`${scenario.source}/letter`, randomBytes(50_000))
        const before = await scenario.generation()
        writeFileSync(`${scenario.source}/second`, randomBytes(50_000))
        await scenario.collect()
        // As soon as the bundle is synced, one byte of its first block is another one in the image
        // behind the mount.
        const plan = planFault({
          match: new RegExp(`^fsyncSync .*/${name.replace(/\./g, '\\.')}(\\.partial)?$`),
          at: 1,
          action: {
            command: `block=$(filefrag -v -b4096 "$1" | sed -nE 's/^ *0: +[0-9]+\\.\\. *[0-9]+: +([0-9]+)\\.\\..*/\\1/p')
            [ -n "$block" ]
            printf '\\x00\\xff\\x00\\xff' |
              dd of='${device.image}' bs=1 seek=$((block * 4096 + 32)) conv=notrunc status=none`,
          },
        })
        Object.assign(scenario.environment, plan.environment)
        const { status, stderr } = await scenario.external()
        for (const variable of Object.keys(plan.environment)) delete scenario.environment[variable]
        assert.is(plan.count() > 0, true, 'the fault came true')
        assert.is(status, 13, stderr)
        assert.match(
          stderr,
          `the medium does not hold what was written to ${setDirectory(scenario)}`,
        )
        assert.equal(exportStamps(scenario), [before.stamp], 'no manifest')
        assertNoLeftovers(`${scenario.staging}/.state`)
        const again = await scenario.external('--json')
        assert.is(again.status, 0, again.stderr)
        assert.not.ok(exportedBy(again).full, 'what is known of the repository is still known')
        assertNoLeftovers(scenario.target)
        await assertWhole(scenario)
        device.unmount()
      },
    )
  }
}

external.run()
