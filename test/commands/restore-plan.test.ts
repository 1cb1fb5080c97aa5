import { spawn } from 'node:child_process'
import {
  appendFileSync,
  chmodSync,
  existsSync,
  linkSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
  renameSync,
} from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { suite } from 'uvu'
import { command as collectCommand } from '../../commands/backup-collect.ts'
import { command as restoreCommand } from '../../commands/backup-restore.ts'
import type { Values } from '../../commands/command.ts'
import { setTimes } from '../../lib/machine/posix.ts'
import * as assert from '../helpers/assert.ts'
import { MAIN, type Outcome } from '../helpers/run-cli.ts'
import { runCommand } from '../helpers/run-command.ts'
import {
  type Scenario,
  assertNoLeftovers,
  assertSameTree,
  configure,
  exportStamps,
  inventory,
  jsonLines,
  makeScenario,
  namesIn,
  script,
  setDirectory,
} from '../helpers/scenario.ts'

const restore = suite('restore-plan')
const NOW_MS = Date.parse('2026-05-20T12:00:00Z')
const DAY_MS = 86_400_000

let shared: Promise<Scenario> | undefined
let places = 0

/** Two generations on staging and the target; nobody changes them. */
async function letters(): Promise<Scenario> {
  return await (shared ??= (async () => {
    const scenario = await makeScenario()
    const { source } = scenario
    mkdirSync(`${source}/sub/raw`, { recursive: true })
    for (const name of ['a.jpg', 'b.txt', 'sub/c.jpg', 'sub/raw/d.jpg', 'gone']) {
      writeFileSync(`${source}/${name}`, `backup ${name}`)
    }
    writeFileSync(Buffer.from(`${source}/\xff.jpg`, 'latin1'), 'bytes')
    writeFileSync(`${source}/empty`, '')
    linkSync(`${source}/a.jpg`, `${source}/sub/link.jpg`)
    symlinkSync('/etc/hostname', `${source}/symbolic`)
    script(
      'truncate -s 3M "$1"; printf end | dd of="$1" bs=1 seek=2000000 conv=notrunc status=none',
      `${source}/sparse`,
    )
    chmodSync(`${source}/sub`, 0o700)
    await scenario.generation()
    rmSync(`${source}/gone`)
    writeFileSync(`${source}/b.txt`, 'newer text')
    await setTimeout(1100)
    await scenario.generation()
    return scenario
  })())
}

function newPlace({ directory }: Scenario): string {
  return `${directory}/into-${++places}`
}

async function from(scenario: Scenario, source: string, ...words: string[]): Promise<Outcome> {
  return await scenario.run('restore', '--source', source, ...words)
}

/** All that is there but the times of directories. */
function look(directory: string): string {
  const format = '%P %y %m %s %T@ %l\\n'
  return script(
    `cd "$1"; find . ! -type d -printf '${format}' -o -printf '%P %m\\n' | sort`,
    directory,
  )
}

/** Flips one bit in the middle of every data bundle, and nothing in what describes them. */
function damageTarget(scenario: Scenario): void {
  const set = setDirectory(scenario)
  const bundles = namesIn(set, /data-\d+.*\.age$/)
  assert.ok(bundles.length > 0)
  for (const name of bundles) {
    const bytes = readFileSync(`${set}/${name}`)
    bytes[bytes.length >> 1]! ^= 1
    chmodSync(`${set}/${name}`, 0o600)
    writeFileSync(`${set}/${name}`, bytes)
  }
}

restore('somebody at a terminal answers none, older, newer, all, or for each', async () => {
  const scenario = await letters()
  const { source } = scenario
  const names = ['a.jpg', 'b.txt', 'empty']
  const asked = async (answer: string, each: readonly string[] = []) => {
    const answers = answer.split(' ')
    const into = newPlace(scenario)
    mkdirSync(into + source, { recursive: true })
    for (const [i, name] of names.entries()) {
      writeFileSync(`${into}${source}/${name}`, 'mine')
      const { mtimeNs } = statSync(`${source}/${name}`, { bigint: true })
      const apartNs = BigInt(i - 1) * 100_000_000_000n
      setTimes(`${into}${source}/${name}`, { mtimeNs: mtimeNs + apartNs })
    }
    let questions = 0
    const { status } = await runCommand(restoreCommand, {
      ...{ scenario, nowMs: NOW_MS, values: { source: 'local', into } },
      talk: {
        hasTerminal: true,
        ask: async (question) => {
          assert.match(question, '3 are there and differ')
          const [first = '', ...more] = answers
          if (more.length > 0) answers.shift()
          return await Promise.resolve(first)
        },
        confirm: async (question) => {
          questions += 1
          return await Promise.resolve(each.some((name) => question.includes(`/${name},`)))
        },
      },
    })
    const replaced = names.filter(
      (name) => readFileSync(`${into}${source}/${name}`, 'utf8') !== 'mine',
    )
    assert.is(status, replaced.length === 3 ? 0 : 3, answer)
    return { replaced, questions }
  }
  assert.equal(await asked('n'), { replaced: [], questions: 0 })
  assert.equal(await asked(''), { replaced: [], questions: 0 })
  assert.equal(await asked('o'), { replaced: ['a.jpg'], questions: 0 })
  assert.equal(await asked('w'), { replaced: ['empty'], questions: 0 })
  assert.equal(await asked('All'), { replaced: names, questions: 0 })
  assert.equal(await asked('y a'), { replaced: names, questions: 0 })
  assert.equal(await asked('y'), { replaced: [], questions: 0 })
  assert.equal(await asked('e', ['b.txt']), { replaced: ['b.txt'], questions: 3 })
})

restore('--delete asks, refuses patterns, and stays within the sources', async () => {
  const scenario = await letters()
  const { source } = scenario
  const into = newPlace(scenario)
  assert.is((await from(scenario, 'local', '--into', into)).status, 0)
  mkdirSync(`${into}${source}/sub/added`)
  writeFileSync(`${into}${source}/sub/added/mine`, 'mine')
  writeFileSync(`${into}${scenario.home}/of another set`, 'not ours to judge')
  const before = look(into)
  const words = ['--into', into, '--delete', '--path', scenario.home]
  const refused = await from(scenario, 'local', ...words)
  assert.is(refused.status, 4)
  assert.match(refused.stderr, 'deleting has to be confirmed')
  const dry = await from(scenario, 'local', ...words, '--dry-run')
  assert.match(dry.stdout, /delete +2$/m)
  const patterned = await from(scenario, 'local', ...words, '--exclude', '*.jpg')
  assert.is(patterned.status, 2)
  assert.equal(look(into), before)
  const done = await from(scenario, 'local', ...words, '--yes')
  assert.is(done.status, 0, done.stderr)
  assert.not.ok(existsSync(`${into}${source}/sub/added`))
  assert.ok(existsSync(`${into}${scenario.home}/of another set`))
  const [kept = ''] = namesIn(into, /^\.backup-replaced-[^/]*$/)
  const undone = await scenario.run('restore', '--undo', `${into}/${kept}`, '--yes')
  assert.is(undone.status, 0, undone.stderr)
  assert.equal(look(into), before)
  const again = await scenario.run('restore', '--undo', `${into}/${kept}`, '--yes')
  assert.is(again.status, 1)
})

restore(
  '--include and --exclude take names, paths and directories, with their parents',
  async () => {
    const scenario = await letters()
    const { source } = scenario
    const names = async (where: string, ...words: string[]): Promise<string[]> => {
      const into = newPlace(scenario)
      const { status, stderr } = await from(scenario, where, '--into', into, ...words)
      assert.is(status, 0, stderr)
      assert.is(statSync(into + source).mode, statSync(source).mode)
      if (existsSync(`${into}${source}/sub`)) {
        assert.is(statSync(`${into}${source}/sub`).mode & 0o777, 0o700)
      }
      return namesIn(into + source, /./).filter((name) => {
        return !statSync(Buffer.from(`${into}${source}/${name}`, 'latin1')).isDirectory()
      })
    }
    for (const where of ['local', 'external']) {
      assert.equal(
        await names(where, '--include', '*.jpg', '--exclude', 'raw', '--exclude', 'a.jpg'),
        ['sub/c.jpg', 'sub/link.jpg', '\xff.jpg'],
      )
      assert.equal(await names(where, '--include', `${source}/**/raw`), ['sub/raw/d.jpg'])
    }
    const none = await from(scenario, 'local', '--into', newPlace(scenario), '--include', 'nothing')
    assert.is(none.status, 1)
    assert.match(none.stderr, 'fits --include')
  },
)

restore('--last brings back what was deleted since, from wherever it still is', async () => {
  const scenario = await letters()
  const path = `${scenario.source}/gone`
  for (const source of ['local', 'external']) {
    const into = newPlace(scenario)
    const { status, stderr } = await from(
      scenario,
      source,
      '--last',
      '--path',
      path,
      '--into',
      into,
    )
    assert.is(status, 0, stderr)
    assert.is(readFileSync(into + path, 'utf8'), 'backup gone')
  }
})

restore('bug: what staging no longer had was not looked for on the targets', async () => {
  const scenario = await makeScenario()
  const path = `${scenario.source}/gone`
  writeFileSync(path, 'backup gone')
  writeFileSync(`${scenario.source}/stays`, 'all that is needed')
  await scenario.generation()
  const [first = ''] = exportStamps(scenario)
  rmSync(path)
  writeFileSync(`${scenario.source}/other`, '')
  await setTimeout(1100)
  await scenario.generation()
  rmSync(`${scenario.staging}/data/${first}`, { recursive: true })
  rmSync(`${scenario.staging}/data/${first}.catalog.zst`)
  const into = newPlace(scenario)
  const words = ['restore', '--last', '--path', path, '--into', into]
  const { status, stderr } = await scenario.run(...words)
  assert.is(status, 0, stderr)
  assert.is(readFileSync(into + path, 'utf8'), 'backup gone')
  const never = await scenario.run('restore', '--path', `${path}-never`, '--into', `${into}-2`)
  assert.is(never.status, 1)
  assert.match(never.stderr, 'there is no ')
  assert.not.ok(existsSync(`${into}-2`))
})

restore('--stdout prints a file byte for byte, and nothing for what is none', async () => {
  const scenario = await letters()
  const { source } = scenario
  const temporary = `${scenario.directory}/tmp`
  mkdirSync(temporary)
  scenario.environment['TMPDIR'] = temporary
  try {
    for (const where of ['local', 'external']) {
      for (const name of ['b.txt', 'empty', 'sparse', 'sub/link.jpg']) {
        const words = ['--path', `${source}/${name}`, '--stdout']
        const { status, stdout, stderr } = await from(scenario, where, ...words)
        assert.is(status, 0, stderr)
        assert.ok(stdout === readFileSync(`${source}/${name}`, 'utf8'), name)
      }
      for (const name of ['symbolic', 'sub', '']) {
        const words = ['--path', `${source}/${name}`, '--stdout']
        const { status, stdout, stderr } = await from(scenario, where, ...words)
        assert.is(status, 2, stderr)
        assert.match(stderr, /is a (symbolic link|directory), and no file/)
        assert.is(stdout, '')
      }
    }
    assert.equal(readdirSync(temporary), [])
  } finally {
    delete scenario.environment['TMPDIR']
  }
})

restore('--date takes natural dates', async () => {
  const scenario = await makeScenario()
  const file = `${scenario.source}/file`
  for (const days of [10, 5, 1]) {
    writeFileSync(file, `${days} days ago`)
    const nowMs = NOW_MS - days * DAY_MS
    const { status, stderr } = await runCommand(collectCommand, { scenario, nowMs })
    assert.is(status, 0, stderr)
  }
  const at = async (date: string): Promise<string> => {
    const into = newPlace(scenario)
    const values: Values = { source: 'local', into, date }
    const { status, stderr } = await runCommand(restoreCommand, { scenario, nowMs: NOW_MS, values })
    return status === 0 ? readFileSync(into + file, 'utf8') : stderr
  }
  assert.is(await at('3 days ago'), '5 days ago')
  assert.is(await at('yesterday'), '1 days ago')
  assert.is(await at('2026-05-12 09:00'), '10 days ago')
  assert.is(await at('2026-05-15'), '5 days ago')
})

restore('of an older generation what a later export tells the digest of is compared', async () => {
  const scenario = await makeScenario()
  const { source, staging } = scenario
  writeFileSync(`${source}/photo`, 'the same all the time')
  writeFileSync(`${source}/letter`, 'first')
  assert.is((await scenario.collect()).status, 0)
  writeFileSync(`${source}/letter`, 'second')
  await scenario.generation()
  const [first = ''] = readdirSync(`${staging}/data`).sort()
  const path = `${staging}/data/${first}${source}/photo`
  const { mtimeNs } = statSync(path, { bigint: true })
  chmodSync(path, 0o644)
  const { mode } = statSync(`${source}/photo`)
  writeFileSync(path, 'the same all tge time')
  setTimes(path, { mtimeNs })
  chmodSync(path, mode)
  const into = newPlace(scenario)
  const { status, stderr } = await from(scenario, 'local', '--date', first, '--into', into, '-q')
  assert.is(status, 13, stderr)
  assert.match(stderr, /photo/)
  assert.match(stderr, /of files whose digests no export tells/)
  assert.equal(namesIn(into + source, /./), ['letter'])
})

restore('each path comes from the newest that has it, whatever the others lack', async () => {
  const scenario = await makeScenario()
  const { source, target, staging } = scenario
  const other = `${scenario.directory}/other`
  mkdirSync(other)
  configure(scenario, (c) => {
    c['targets'].push({ name: 'old', kind: 'directory', path: `${scenario.directory}/old` })
    c['backup_sets'].push({ name: 'other', sources: [other] })
  })
  mkdirSync(`${scenario.directory}/old`)
  writeFileSync(`${source}/edited`, 'first')
  writeFileSync(`${source}/deleted`, 'gone since')
  // One of many is no suspect loss.
  for (let i = 0; i < 20; i++) writeFileSync(`${source}/more-${i}`, 'filler')
  writeFileSync(`${other}/else`, 'else')
  const both = async (...words: string[]): Promise<void> => {
    const collected = await scenario.collect()
    assert.is(collected.status, 0, collected.stderr)
    const { status, stderr } = await scenario.external(...words)
    assert.is(status, 0, stderr)
  }
  await both()
  writeFileSync(`${source}/edited`, 'second')
  rmSync(`${source}/deleted`)
  await both('--target', 'drive')
  const words = ['edited', 'deleted'].flatMap((name) => ['--path', `${source}/${name}`])
  const into = newPlace(scenario)
  const found = await scenario.run('restore', ...words, '--path', `${other}/else`, '--into', into)
  assert.is(found.status, 0, found.stderr)
  assert.is(readFileSync(`${into}${source}/edited`, 'utf8'), 'second')
  assert.is(readFileSync(`${into}${source}/deleted`, 'utf8'), 'gone since')
  assert.is(readFileSync(`${into}${other}/else`, 'utf8'), 'else')

  const last = newPlace(scenario)
  const newest = await from(scenario, 'local', ...words, '--last', '--into', last)
  assert.is(newest.status, 0, newest.stderr)
  assert.is(readFileSync(`${last}${source}/edited`, 'utf8'), 'second')
  assert.is(readFileSync(`${last}${source}/deleted`, 'utf8'), 'gone since')

  const some = newPlace(scenario)
  const lacking = await from(scenario, 'local', ...words, '--into', some)
  assert.is(lacking.status, 1, lacking.stderr)
  assert.match(lacking.stderr, `there is no ${source}/deleted in what was looked at`)
  assert.equal(namesIn(some + source, /./), ['edited'])
  const none = await from(
    scenario,
    'local',
    '--path',
    `${source}/nope`,
    '--into',
    newPlace(scenario),
  )
  assert.is(none.status, 1, none.stderr)
  assert.ok(existsSync(target) && existsSync(staging))
})

restore('names that are spelt otherwise here come from the next source, too', async () => {
  const scenario = await makeScenario()
  const { source } = scenario
  writeFileSync(`${source}/caf\u00e9`, script('head -c 9000000 /dev/urandom', ''), 'latin1')
  await scenario.generation()
  damageTarget(scenario)
  const into = newPlace(scenario)
  const words = ['--into', into, '--names', 'nfd']
  const { status, stderr } = await from(scenario, 'external,local', ...words)
  assert.is(status, 0, stderr)
  assert.equal(readdirSync(into + source), ['cafe\u0301'])
  const restored = readFileSync(`${into}${source}/cafe\u0301`)
  assert.ok(restored.equals(readFileSync(`${source}/caf\u00e9`)))
})

restore(
  'what one source has damaged comes from the next, with nothing left of the first',
  async () => {
    const scenario = await makeScenario()
    const { source } = scenario
    writeFileSync(`${source}/large`, script('head -c 9000000 /dev/urandom', ''), 'latin1')
    mkdirSync(`${source}/sub`)
    linkSync(`${source}/large`, `${source}/sub/link`)
    writeFileSync(`${source}/small`, 'small')
    await scenario.generation()
    damageTarget(scenario)
    const [stamp = ''] = exportStamps(scenario)

    const into = newPlace(scenario)
    const alone = await from(scenario, 'external', '--into', into, '--json')
    assert.is(alone.status, 13)
    assert.not.ok(existsSync(`${into}${source}/large`))
    const corrupt = namesIn(into + source, /corrupt/)
    assert.equal(corrupt, ['large.corrupt'])
    const saved = readFileSync(`${into}${source}/large.corrupt`)
    const whole = readFileSync(`${source}/large`)
    assert.is(saved.length, whole.length)
    assert.ok(saved.every((byte, i) => byte === 0 || byte === whole[i]))
    assert.ok(saved.filter((byte, i) => byte === whole[i]).length > 1_000_000)
    // What somebody has may be what they look at: it is not written over.
    assert.is((await from(scenario, 'external', '--into', into)).status, 13)
    assert.equal(namesIn(into + source, /corrupt/), ['large.corrupt', 'large.corrupt-1'])

    const both = newPlace(scenario)
    assert.is((await from(scenario, 'local', '--into', both)).status, 0)
    rmSync(`${both}${source}/large`)
    rmSync(`${both}${source}/sub`, { recursive: true })
    writeFileSync(`${both}${source}/added`, 'goes')
    const words = ['--into', both, '--delete', '--yes', '--path', source]
    const { status, stdout, stderr } = await from(scenario, 'external,local', ...words)
    assert.is(status, 0, stderr)
    assert.match(stdout + stderr, 'from staging')
    rmSync(`${both}${source}/added`, { force: true })
    const kept = namesIn(both, /^\.backup-replaced-[^/]*$/)
    assert.is(kept.length, 1)
    rmSync(`${both}/${kept[0]}`, { recursive: true })
    // Deletions and the file that came later changed only what they had to.
    utimesSync(both + source, statSync(source).atime, statSync(source).mtime)
    assert.equal(inventory(both + source), inventory(source))
    assert.is(statSync(`${both}${source}/large`).ino, statSync(`${both}${source}/sub/link`).ino)
    assert.equal(namesIn(both, /corrupt|\.backup-/), [])

    const fresh = newPlace(scenario)
    assert.is((await from(scenario, 'external,local', '--into', fresh)).status, 0)
    assertSameTree(fresh + source, source)

    // Damaged everywhere: nothing under its name, and what was there is not deleted.
    appendFileSync(`${scenario.staging}/data/${stamp}${source}/large`, 'x')
    const nowhere = newPlace(scenario)
    mkdirSync(nowhere + source, { recursive: true })
    writeFileSync(`${nowhere}${source}/large`, 'what I have')
    const last = await from(
      ...([scenario, 'local,external', '--into', nowhere] as const),
      ...['--delete', '--yes', '--path', source],
    )
    assert.is(last.status, 13, last.stderr)
    assert.is(readFileSync(`${nowhere}${source}/large`, 'utf8'), 'what I have')
    assert.is(readFileSync(`${nowhere}${source}/small`, 'utf8'), 'small')

    const printed = await from(scenario, 'external', '--path', `${source}/large`, '--stdout')
    assert.equal([printed.status, printed.stdout], [13, ''])
    assert.not.match(printed.stderr, 'corrupt')
  },
)

restore('an unplugged target is passed over, and a name that is none is refused', async () => {
  const scenario = await letters()
  configure(scenario, (c) => {
    c['targets'].unshift({ name: 't9', kind: 'directory', path: `${scenario.directory}/unplugged` })
  })
  try {
    const into = newPlace(scenario)
    const { status, stdout, stderr } = await from(scenario, 't9,drive', '--into', into)
    assert.is(status, 0, stderr)
    assert.match(stdout + stderr, 'from drive')
    const unknown = await from(scenario, 'drive,nobody', '--into', `${into}-2`)
    assert.is(unknown.status, 2)
    assert.not.ok(existsSync(`${into}-2`))
  } finally {
    configure(scenario, (c) => {
      c['targets'].shift()
    })
  }
})

restore('in the original place directories above the sources stay as they are', async () => {
  const scenario = await makeScenario()
  const { source, home } = scenario
  writeFileSync(`${source}/file`, 'backup')
  await scenario.generation()
  chmodSync(home, 0o711)
  utimesSync(home, 1_600_000_000, 1_600_000_000)
  const top = statSync('/', { bigint: true }).mtimeNs
  for (const where of ['local', 'external']) {
    writeFileSync(`${source}/file`, 'mine')
    const words = ['--yes', '--overwrite', 'always', '--discard']
    const { status, stderr } = await from(scenario, where, ...words)
    assert.is(status, 0, stderr)
    assert.is(readFileSync(`${source}/file`, 'utf8'), 'backup')
    assert.equal([statSync(home).mode & 0o777, statSync(home).mtimeMs], [0o711, 1_600_000_000_000])
    assert.is(statSync('/', { bigint: true }).mtimeNs, top)
  }
})

restore('a restore killed at any moment can be undone, and gone on with', async () => {
  const scenario = await makeScenario()
  const { source } = scenario
  for (let i = 0; i < 40; i++) {
    mkdirSync(`${source}/${i}`)
    for (let j = 0; j < 50; j++) writeFileSync(`${source}/${i}/${j}`, `backup ${i} ${j}`)
  }
  assert.is((await scenario.collect()).status, 0)
  for (const signal of ['SIGKILL', 'SIGINT'] as const) {
    const into = newPlace(scenario)
    mkdirSync(into + source, { recursive: true })
    for (let i = 0; i < 20; i++) {
      mkdirSync(`${into}${source}/${i}`)
      for (let j = 0; j < 50; j++) writeFileSync(`${into}${source}/${i}/${j}`, 'mine')
    }
    const before = inventory(into)
    const words = ['--source', 'local', '--into', into, '--overwrite', 'always']
    const env = { PATH: process.env['PATH'] ?? '', HOME: scenario.home }
    const child = spawn(process.execPath, [MAIN, 'restore', ...words], { env, stdio: 'ignore' })
    const ended = new Promise((resolve) => child.once('close', resolve))
    const isBegun = (): boolean =>
      readFileSync(`${into}${source}/0/0`, 'utf8') !== 'mine' || child.exitCode !== null
    while (!isBegun()) await setTimeout(1)
    child.kill(signal)
    await ended
    const [kept = ''] = namesIn(into, /^\.backup-replaced-[^/]*$/)
    const undone = await scenario.run('restore', '--undo', `${into}/${kept}`, '--yes')
    assert.is(undone.status, 0, undone.stderr)
    script('find "$1" -name ".backup-restore*" -delete', into)
    const after = inventory(into)
    for (const [path, what] of before) assert.is(after.get(path), what, path)
    const extra = [...after].filter(([path]) => !before.has(path))
    assert.equal(
      extra.filter(([, what]) => what !== 'directory'),
      [],
      signal,
    )

    const again = await scenario.run('restore', ...words)
    assert.is(again.status, 0, again.stderr)
    for (const name of namesIn(into, /^\.backup-replaced-[^/]*$/)) {
      rmSync(`${into}/${name}`, { recursive: true })
    }
    assertNoLeftovers(into)
    assert.equal(inventory(into + source), inventory(source))
  }
})

restore('--json names where what is whole of a damaged file lies', async () => {
  const scenario = await makeScenario()
  const bytes = script('head -c 9000000 /dev/urandom', '')
  writeFileSync(`${scenario.source}/large`, bytes, 'latin1')
  await scenario.generation()
  damageTarget(scenario)
  const into = newPlace(scenario)
  const run = await from(scenario, 'external', '--into', into, '--json')
  const [result] = jsonLines(run, 'result')
  assert.is(result?.['failures'][0].corrupt, `${into}${scenario.source}/large.corrupt`)
})

restore(
  'a set that staging has nothing of comes from the target, without being asked for',
  async () => {
    const scenario = await makeScenario()
    const other = `${scenario.home}/other`
    mkdirSync(other)
    writeFileSync(`${other}/photo`, 'sea')
    writeFileSync(`${scenario.source}/letter`, 'dear')
    configure(scenario, (c) => {
      c['backup_sets'].push({ name: 'photos', sources: [other] })
    })
    assert.is((await scenario.collect()).status, 0)
    assert.is((await scenario.external()).status, 0)
    rmSync(`${scenario.staging}/photos`, { recursive: true })
    const into = newPlace(scenario)
    const words = ['restore', '--into', into, '--identity', scenario.identity]
    const both = await scenario.run(...words)
    assert.is(both.status, 0, both.stderr)
    assert.is(readFileSync(`${into}${other}/photo`, 'utf8'), 'sea')
    assert.is(readFileSync(`${into}${scenario.source}/letter`, 'utf8'), 'dear')
    const [stamp = ''] = exportStamps(scenario, 'photos')
    const manifest = `${setDirectory(scenario, 'photos')}/${stamp}/manifest.tar.zst.age`
    writeFileSync(manifest, readFileSync(manifest).subarray(0, -1))
    const damaged = await scenario.run(...words.with(2, newPlace(scenario)))
    assert.is(damaged.status, 13, damaged.stderr)
    assert.match(damaged.stdout, /^data \S+: \d+ restored/m)
    assert.match(damaged.stderr, 'nothing of the set photos was found')
    const absent = `${scenario.target}-away`
    renameSync(scenario.target, absent)
    const half = await scenario.run('restore', '--into', newPlace(scenario))
    assert.is(half.status, 3, half.stderr)
    assert.match(half.stderr, 'nothing of the set photos was found')
  },
)

restore.run()
