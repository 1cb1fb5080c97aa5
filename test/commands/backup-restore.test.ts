import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import {
  appendFileSync,
  chmodSync,
  existsSync,
  lstatSync,
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
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { MAIN, type Outcome, runCli } from '../helpers/run-cli.ts'
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
} from '../helpers/scenario.ts'

const restore = suite('backup-restore')

/** A scenario that is collected and exported, with a few files. */
async function exported(plant: (source: string) => void = plantLetters): Promise<Scenario> {
  const scenario = await makeScenario()
  plant(scenario.source)
  await scenario.generation()
  return scenario
}

let letters: Promise<Scenario> | undefined
let places = 0

/** One scenario for all tests that change nothing in it, and a new place to restore to. */
async function shared(): Promise<{ readonly scenario: Scenario; readonly into: string }> {
  const scenario = await (letters ??= exported())
  return { scenario, into: `${scenario.directory}/into-${++places}` }
}

function plantLetters(source: string): void {
  mkdirSync(`${source}/pro`)
  mkdirSync(`${source}/projects`)
  writeFileSync(`${source}/pro/mine`, 'mine')
  writeFileSync(`${source}/projects/theirs`, 'theirs')
  writeFileSync(`${source}/letter`, 'dear drive')
}

/** From staging and from the target alike. */
const SOURCES = ['local', 'external'] as const

async function from(
  scenario: Scenario,
  source: 'local' | 'external',
  ...words: string[]
): Promise<Outcome> {
  if (source === 'external') return await scenario.restore(...words)
  return await scenario.run('restore', '--source', 'local', ...words)
}

// What there is.

restore(
  '--list tells stamp, set, files, size, cost and whether it is complete, of staging and of the target',
  async () => {
    const { scenario } = await shared()
    const [stamp = ''] = exportStamps(scenario)
    const { status, stdout } = await scenario.run(
      'restore',
      '--list',
      '--identity',
      scenario.identity,
    )
    assert.is(status, 0)
    const [staging = '', drive = ''] = stdout.split(/^drive:$/m)
    assert.match(staging, new RegExp(`^staging:\\n  ${stamp}  data  3 files  20 B  .*complete`))
    assert.match(drive, new RegExp(`^\\n  ${stamp}  data  3 files  20 B  costs .*  complete`))
  },
)

restore('--list without the identity still lists every export', async () => {
  const scenario = await exported()
  rmSync(`${scenario.staging}/.state`, { recursive: true })
  renameSync(scenario.identity, `${scenario.directory}/kept elsewhere`)
  const { status, stdout } = await scenario.run('restore', '--list', '--source', 'external')
  assert.is(status, 0)
  assert.match(stdout, `  ${exportStamps(scenario)[0]}  data  encrypted`)
})

restore('--list of an absent target still lists staging', async () => {
  const scenario = await exported()
  rmSync(scenario.target, { recursive: true })
  const { status, stdout, stderr } = await scenario.run('restore', '--list')
  assert.is(status, 10)
  assert.match(stdout, /^staging:\n  \d{4}-/)
  assert.match(stderr, 'target drive')
})

restore('words that do not go together, or say nothing, are refused', async () => {
  const { scenario } = await shared()
  for (const [words, message] of [
    [['--verify'], 'what is to be verified'],
    [['--verify', '--source', 'both'], '--source is local or external'],
    [['--source', 'both', '--into', '/nowhere'], 'there is no target both'],
    [['--source', 'local,', '--into', '/nowhere'], 'empty name'],
    [['--overwrite', 'sometimes', '--into', '/nowhere'], '--overwrite is one of never, older'],
    [['--delete', '--into', '/nowhere'], '--delete needs --path'],
    [['--last', '--into', '/nowhere'], '--last needs --path'],
    [['--stdout', '--path', '/x', '--path', '/y'], '--stdout needs one --path'],
    [['--stdout', '--path', '/x', '--json'], 'prints the file and nothing else'],
    [['--list', '--verify', '--source', 'local'], 'do not go together'],
    [['--list', '--date', '2025'], '--date does not go with --list'],
    [['--list', '--path', '/x'], '--path does not go with --list'],
    [['--source', 'local', '--target', 'drive'], '--target goes with --source external'],
    [
      ['--source', 'external', '--target', 'drvie', '--into', '/nowhere'],
      'there is no target drvie',
    ],
  ] as const) {
    const { status, stderr } = await scenario.run('restore', ...words)
    assert.is(status, 2, stderr)
    assert.match(stderr, message)
  }
  assert.not.ok(existsSync('/nowhere'))
})

restore('--stdout to a reader that leaves, or to a full disk, is no bug', async () => {
  const scenario = await exported((source) => {
    writeFileSync(`${source}/long`, randomBytes(1_000_000))
  })
  const words = ['--source', 'local', '--path', `${scenario.source}/long`, '--stdout']
  const piped = async (where: string): Promise<Outcome> => {
    const line = `{ "$@"; echo "status $?" >&2; } ${where}`
    const program = ['bash', '-c', line, '-', process.execPath, MAIN, 'restore']
    const environment = { HOME: scenario.home, TMPDIR: scenario.directory }
    return await runCli(words, { environment, program })
  }
  const left = await piped('| head -c 10')
  assert.match(left.stderr, /^status 0$/m)
  assert.not.match(left.stderr, 'bug')
  const full = await piped('>/dev/full')
  assert.match(full.stderr, /^status 1$/m)
  assert.not.match(full.stderr, 'bug')
  const names = readdirSync(scenario.directory)
  assert.not.ok(
    names.some((name) => name.startsWith('backup-restore-')),
    names.join(' '),
  )
})

restore('two restores into one directory at once are refused, and nothing is written', async () => {
  const { scenario, into } = await shared()
  mkdirSync(into)
  const holding = spawn('flock', [into, 'sleep', '60'], { stdio: 'ignore', detached: true })
  try {
    while (spawnSync('flock', ['-n', into, 'true']).status === 0) await sleep(20)
    for (const source of SOURCES) {
      const { status, stderr } = await from(scenario, source, '--into', into)
      assert.is(status, 11, stderr)
      assert.match(stderr, /another run is writing into .*\n.*nothing was changed/)
    }
    assert.equal(readdirSync(into), [])
  } finally {
    process.kill(-holding.pid!, 'SIGKILL')
  }
  assert.is((await from(scenario, 'local', '--into', into)).status, 0)
  assertSameTree(into + scenario.source, scenario.source)
})

restore('two restores to the original place at once never mix their content', async () => {
  const names = Array.from({ length: 40 }, (_, i) => `file-${i}`)
  const contents = new Map(names.map((name) => [name, randomBytes(300_000)]))
  const scenario = await exported((source) => {
    for (const [name, bytes] of contents) writeFileSync(`${source}/${name}`, bytes)
  })
  for (const name of names) rmSync(`${scenario.source}/${name}`)
  const words = ['restore', '--source', 'local', '--yes']
  await Promise.all([scenario.run(...words), scenario.run(...words)])
  for (const [name, bytes] of contents) {
    const path = `${scenario.source}/${name}`
    assert.ok(!existsSync(path) || readFileSync(path).equals(bytes), name)
  }
  assert.is((await scenario.run(...words)).status, 0)
  assertNoLeftovers(scenario.source)
  for (const [name, bytes] of contents) {
    assert.ok(readFileSync(`${scenario.source}/${name}`).equals(bytes), name)
  }
})

restore('a place for temporary files that is not there is told, and is no bug', async () => {
  const { scenario } = await shared()
  const words = ['restore', '--path', `${scenario.source}/letter`, '--stdout']
  const environment = { HOME: scenario.home, TMPDIR: `${scenario.directory}/nowhere` }
  const { status, stderr } = await runCli(words, { environment })
  assert.is(status, 1, stderr)
  assert.match(stderr, /no directory can be made in .*nowhere \(ENOENT\)\n.*TMPDIR/)
})

for (const source of SOURCES) {
  restore(`${source}: everything comes back exactly`, async () => {
    const { scenario, into } = await shared()
    const { status, stdout, stderr } = await from(scenario, source, '--into', into)
    assert.is(status, 0, stderr)
    assert.match(stdout, /^data \S+: 3 restored \(20 B\), 0 the same already$/m)
    assertSameTree(into + scenario.source, scenario.source)
    assertNoLeftovers(into)
    const again = await from(scenario, source, '--into', into)
    assert.is(again.status, 0)
    assert.match(again.stdout, '0 restored (0 B), 3 the same already')
  })

  restore(`${source}: one file, and a path is not a prefix of a name`, async () => {
    const { scenario } = await shared()
    const one = `${scenario.directory}/one-${source}`
    assert.is(
      (await from(scenario, source, '--path', `${scenario.source}/letter`, '--into', one)).status,
      0,
    )
    assert.equal(readdirSync(one + scenario.source), ['letter'])
    assert.is(readFileSync(`${one}${scenario.source}/letter`, 'utf8'), 'dear drive')
    const directory = `${scenario.directory}/directory-${source}`
    assert.is(
      (await from(scenario, source, '--path', `${scenario.source}/pro`, '--into', directory))
        .status,
      0,
    )
    assert.equal(readdirSync(directory + scenario.source), ['pro'])
    assertSameTree(`${directory}${scenario.source}/pro`, `${scenario.source}/pro`)
    const nothing = `${scenario.directory}/nothing-${source}`
    const { status, stderr } = await from(
      scenario,
      source,
      '--path',
      `${scenario.source}/lett`,
      '--into',
      nothing,
    )
    assert.is(status, 1)
    assert.match(stderr, /there is no .*\/data\/lett in/)
    assert.equal(inventory(nothing).size, 0)
  })

  restore(`${source}: a dry run counts what a real one does, and writes nothing`, async () => {
    const { scenario, into } = await shared()
    const { status, stdout } = await from(scenario, source, '--dry-run', '--into', into)
    assert.is(status, 0)
    assert.match(stdout, '3 would be restored (20 B), 0 the same already')
    assert.not.ok(existsSync(into))
    const original = inventory(scenario.source)
    assert.is(
      (await from(scenario, source, '--dry-run')).status,
      0,
      'a dry run needs no confirmation',
    )
    assert.equal(inventory(scenario.source), original)
  })

  restore(
    `${source}: a different file is kept, named, and replaced only with --overwrite`,
    async () => {
      const { scenario, into } = await shared()
      await from(scenario, source, '--into', into)
      const letter = `${into}${scenario.source}/letter`
      writeFileSync(letter, 'changed since')
      const dry = await from(scenario, source, '--dry-run', '--into', into)
      assert.is(dry.status, 3)
      const kept = await from(scenario, source, '--into', into)
      assert.is(kept.status, 3)
      assert.match(
        kept.stderr,
        /\/letter: something else is there and was kept \(--overwrite always replaces it\)/,
      )
      assert.is(readFileSync(letter, 'utf8'), 'changed since')
      const replaced = await from(scenario, source, '--overwrite', 'always', '--into', into)
      assert.is(replaced.status, 0, replaced.stderr)
      assertSameTree(into + scenario.source, scenario.source)
      assertNoLeftovers(into)
    },
  )

  restore(
    `${source}: the same length and time with other content is different, and replaced`,
    async () => {
      const { scenario, into } = await shared()
      await from(scenario, source, '--into', into)
      const letter = `${into}${scenario.source}/letter`
      writeFileSync(letter, 'evil drive')
      script('touch -r "$1" "$2"', `${scenario.source}/letter`, letter)
      assert.is((await from(scenario, source, '--into', into)).status, 3)
      assert.is((await from(scenario, source, '--overwrite', 'always', '--into', into)).status, 0)
      assert.is(readFileSync(letter, 'utf8'), 'dear drive')
    },
  )

  restore(
    `${source}: the same content with another mode gets its mode back with --overwrite`,
    async () => {
      const { scenario, into } = await shared()
      await from(scenario, source, '--into', into)
      chmodSync(`${into}${scenario.source}/letter`, 0o777)
      assert.is((await from(scenario, source, '--overwrite', 'always', '--into', into)).status, 0)
      assertSameTree(into + scenario.source, scenario.source)
    },
  )

  restore(`${source}: the original place needs --yes`, async () => {
    const scenario = await exported()
    script('cp -a "$1" "$2"', scenario.source, `${scenario.directory}/before`)
    rmSync(`${scenario.source}/letter`)
    const refused = await from(scenario, source)
    assert.is(refused.status, 4)
    assert.match(refused.stderr, 'restoring to the original place has to be confirmed')
    assert.not.ok(existsSync(`${scenario.source}/letter`))
    const { status, stderr } = await from(
      scenario,
      source,
      '--yes',
      '--path',
      `${scenario.source}/letter`,
    )
    assert.is(status, 0, stderr)
    assert.is(readFileSync(`${scenario.source}/letter`, 'utf8'), 'dear drive')
    assert.is(
      lstatSync(`${scenario.source}/letter`).mtimeMs,
      lstatSync(`${scenario.directory}/before/letter`).mtimeMs,
    )
  })

  restore(`${source}: a link in the destination is not followed`, async () => {
    const { scenario, into } = await shared()
    const elsewhere = `${into}-elsewhere`
    mkdirSync(into + scenario.source, { recursive: true })
    mkdirSync(elsewhere)
    writeFileSync(`${elsewhere}/mine`, 'precious')
    symlinkSync(elsewhere, `${into}${scenario.source}/pro`)
    symlinkSync(`${elsewhere}/mine`, `${into}${scenario.source}/letter`)
    for (const words of [[], ['--overwrite', 'always']]) {
      const { status, stderr } = await from(scenario, source, '--into', into, ...words)
      assert.not.equal(status, 0)
      assert.match(stderr, /data\/pro/)
      assert.equal(
        [...inventory(elsewhere)],
        [...inventory(elsewhere)].filter(([path]) => path === 'mine'),
      )
      assert.is(readFileSync(`${elsewhere}/mine`, 'utf8'), 'precious')
      assert.is(
        readFileSync(`${into}${scenario.source}/projects/theirs`, 'utf8'),
        'theirs',
        'the rest is restored',
      )
    }
    assert.ok(
      lstatSync(`${into}${scenario.source}/letter`).isFile(),
      '--overwrite replaces a link itself',
    )
    assertNoLeftovers(into, elsewhere)
  })

  restore(
    `${source}: an older generation by its date, and an ambiguous date is refused`,
    async () => {
      const scenario = await exported()
      const [first = ''] = exportStamps(scenario)
      appendFileSync(`${scenario.source}/letter`, ', goodbye')
      await scenario.generation()
      const into = `${scenario.directory}/into`
      assert.is((await from(scenario, source, '--date', first, '--into', into)).status, 0)
      assert.is(readFileSync(`${into}${scenario.source}/letter`, 'utf8'), 'dear drive')
      const ambiguous = await from(
        scenario,
        source,
        '--date',
        first.slice(0, 4),
        '--into',
        `${into}2`,
      )
      assert.is(ambiguous.status, 2)
      assert.match(ambiguous.stderr, 'fits 2 generations of data')
      const none = await from(scenario, source, '--date', '1999', '--into', `${into}2`)
      assert.is(none.status, 1)
      assert.match(none.stderr, 'there is nothing as old as 1999')
      assert.not.ok(existsSync(`${into}2${scenario.source}`))
    },
  )

  restore(
    `${source}: links of a partial selection are links to one another, and files in themselves`,
    async () => {
      const scenario = await exported((directory) => {
        for (const name of ['a', 'b']) mkdirSync(`${directory}/${name}`)
        script('cd "$1"; printf one >a/1; ln a/1 b/2; ln a/1 b/3; ln -s ../a/1 b/sym', directory)
      })
      const into = `${scenario.directory}/into`
      const { status, stderr } = await from(
        scenario,
        source,
        '--path',
        `${scenario.source}/b`,
        '--into',
        into,
      )
      assert.is(status, 0, stderr)
      const directory = `${into}${scenario.source}/b`
      assert.equal(readdirSync(into + scenario.source), ['b'])
      assert.is(readFileSync(`${directory}/2`, 'utf8'), 'one')
      assert.is(statSync(`${directory}/2`).ino, statSync(`${directory}/3`).ino)
      assert.is(statSync(`${directory}/2`).nlink, 2)
      assert.is(statSync(`${directory}/2`).mtimeMs, statSync(`${scenario.source}/a/1`).mtimeMs)
    },
  )

  restore(`${source}: --verify reads everything and writes a receipt only`, async () => {
    const { scenario } = await shared()
    const before = [inventory(scenario.staging), inventory(scenario.target)]
    const { status, stdout, stderr } = await from(scenario, source, '--verify')
    assert.is(status, 0, stderr)
    assert.match(stdout, /^data \S+: whole/m)
    assert.match(stdout, '3 files, 20 B')
    const isKept = (path: string): boolean => {
      return !/\.lock$|^\.state\/(receipts(\/|$)|repositories\/\w+\/proofs\.json$)/.test(path)
    }
    const kept = (map: Map<string, string>) => [...map].filter(([path]) => isKept(path))
    assert.equal(kept(inventory(scenario.staging)), kept(before[0]!))
    const receipts = [...inventory(`${scenario.staging}/.state/receipts`).keys()]
    const isVerified = receipts.some((name) => name.endsWith('-drive-verification.json'))
    assert.is(isVerified, source === 'external')
    assert.equal(inventory(scenario.target), before[1])
  })
}

restore('a sparse file of 5 GB goes through every phase as the few bytes that it is', async () => {
  const scenario = await makeScenario()
  script(
    `cd "$1"; truncate -s 5G sparse; printf begin | dd of=sparse conv=notrunc status=none
    printf end | dd of=sparse bs=1M seek=4000 conv=notrunc status=none`,
    scenario.source,
  )
  const { dataBytes } = await scenario.generation()
  assert.ok(dataBytes < 100_000, `${dataBytes} bytes`)
  for (const source of SOURCES) {
    const into = `${scenario.directory}/${source}`
    const { status, stderr } = await from(scenario, source, '--into', into)
    assert.is(status, 0, stderr)
    const file = statSync(`${into}${scenario.source}/sparse`)
    assert.is(file.size, 5 * 1024 ** 3)
    assert.ok(file.blocks * 512 < 1024 * 1024, `${file.blocks} blocks`)
    const text = script(
      'head -c 5 "$1"; dd if="$1" bs=1 skip=$((4000 << 20)) count=3 status=none',
      `${into}${scenario.source}/sparse`,
    )
    assert.is(text, 'beginend')
  }
})

restore(
  'local: --verify finds a file that was changed in staging, and restore leaves it out',
  async () => {
    const scenario = await exported()
    const [letter = ''] = namesIn(`${scenario.staging}/data`, /^\d.*\/letter$/)
    const path = `${scenario.staging}/data/${letter}`
    const { atime, mtime } = statSync(path)
    chmodSync(path, 0o600)
    writeFileSync(path, 'evil drive')
    utimesSync(path, atime, mtime)
    const verified = await from(scenario, 'local', '--verify')
    assert.is(verified.status, 13)
    assert.match(verified.stdout, /data\/letter: /)
    const into = `${scenario.directory}/into`
    const restored = await from(scenario, 'local', '--into', into)
    assert.is(restored.status, 13)
    assert.equal(readdirSync(into + scenario.source).sort(), ['pro', 'projects'])
  },
)

// Keys.

restore(
  'without an identity nothing can be restored, and --verify says what it could not check',
  async () => {
    const scenario = await exported()
    const into = `${scenario.directory}/into`
    renameSync(scenario.identity, `${scenario.directory}/kept elsewhere`)
    const { status, stderr } = await scenario.run('restore', '--source', 'external', '--into', into)
    assert.is(status, 12)
    assert.match(stderr, 'there is no identity here')
    assert.not.ok(existsSync(into))
    const verified = await scenario.run('restore', '--source', 'external', '--verify')
    assert.is(verified.status, 0)
    assert.match(verified.stdout, 'only checksums and signatures were checked')
  },
)

restore(
  'bug: a protected identity beside the configuration stopped --list and --verify in cron',
  async () => {
    const scenario = await makeScenario({ passphrase: 'correct horse' })
    plantLetters(scenario.source)
    await scenario.generation()
    const listed = await scenario.run('restore', '--list')
    assert.is(listed.status, 0, listed.stderr)
    assert.match(listed.stdout, 'complete')
    const verified = await scenario.run('restore', '--source', 'external', '--verify')
    assert.is(verified.status, 0, verified.stderr)
    assert.match(verified.stdout, 'only checksums and signatures were checked')
  },
)

restore(
  'bug: --into something that can be no directory was called a bug of the program',
  async () => {
    const { scenario } = await shared()
    for (const into of ['/dev/null', '/dev/null/below', '/proc/nowhere/at/all']) {
      const { status, stderr } = await from(scenario, 'local', '--into', into)
      assert.is(status, 1, into)
      assert.match(stderr, 'cannot be a directory to restore into')
    }
  },
)

restore(
  'bug: --into staging or a target was refused only after the directory was made',
  async () => {
    const { scenario } = await shared()
    for (const place of [scenario.staging, scenario.target]) {
      const { status, stderr } = await from(scenario, 'local', '--into', `${place}/new/below`)
      assert.is(status, 2)
      assert.match(stderr, 'where nothing may be changed')
      assert.not.ok(existsSync(`${place}/new`))
    }
  },
)

restore('bug: a sparse file restored twice was something else the second time', async () => {
  const scenario = await exported((source) => {
    execFileSync('truncate', ['-s', '5M', `${source}/sparse`])
    execFileSync(
      'sh',
      ['-c', `printf middle | dd of=${source}/sparse bs=1 seek=3000000 conv=notrunc`],
      { stdio: 'ignore' },
    )
  })
  const into = `${scenario.directory}/into`
  for (const _time of [1, 2]) {
    const { status, stderr } = await from(scenario, 'external', '--into', into)
    assert.is(status, 0, stderr)
  }
})

restore(
  'bug: one damaged catalog in staging kept everything else from being exported and listed',
  async () => {
    const scenario = await exported()
    const [stamp] = exportStamps(scenario)
    writeFileSync(`${scenario.staging}/data/${stamp}.catalog.zst`, 'rubbish')
    writeFileSync(`${scenario.source}/new`, 'new')
    await scenario.collect()
    const run = await scenario.run('external')
    assert.is(run.status, 0, run.stderr)
    assert.is(exportStamps(scenario).length, 2)
    const listed = await scenario.run('restore', '--list', '--source', 'local')
    assert.is(listed.status, 13)
    assert.match(listed.stdout, 'complete')
    assert.match(listed.stderr, `${stamp} in staging is damaged`)
  },
)

restore('another identity opens nothing', async () => {
  const { scenario, into } = await shared()
  const other = await makeScenario()
  for (const words of [['--into', into], ['--verify']]) {
    const { status, stderr } = await scenario.run(
      'restore',
      '--source',
      'external',
      '--identity',
      other.identity,
      ...words,
    )
    assert.is(status, 12, stderr)
  }
  assert.equal(namesIn(into, /./), [])
})

restore('a wrong passphrase opens nothing, the right one does', async () => {
  const scenario = await makeScenario({ passphrase: 'correct horse battery staple' })
  writeFileSync(`${scenario.source}/letter`, 'x')
  await scenario.generation()
  const wrong = `${scenario.directory}/wrong`
  writeFileSync(wrong, 'correct horse battery stable\n')
  const into = `${scenario.directory}/into`
  const refused = await scenario.restore('--into', into, '--passphrase-file', wrong)
  assert.is(refused.status, 12)
  assert.match(refused.stderr, /passphrase/)
  assert.not.match(refused.stderr, 'stable')
  assert.not.ok(existsSync(into))
  const asked = await scenario.restore('--into', into)
  assert.is(asked.status, 2, 'nobody is there to type it')
  const right = await scenario.run(
    'restore',
    '--source',
    'external',
    '--passphrase-file',
    `${scenario.directory}/passphrase`,
    '--into',
    into,
  )
  assert.is(right.status, 0, right.stderr)
  assertSameTree(into + scenario.source, scenario.source)
})

restore(
  'a new machine restores with the identity alone, without configuration of the old one',
  async () => {
    const scenario = await exported()
    const other = await makeScenario({ target: scenario.target, machine: 'new-one' })
    const keys = `${scenario.directory}/carried.txt`
    writeFileSync(keys, readFileSync(scenario.identity))
    const into = `${other.directory}/into`
    const { status, stderr } = await other.run(
      'restore',
      '--source',
      'external',
      '--machine',
      'tester',
      '--identity',
      keys,
      '--into',
      into,
    )
    assert.is(status, 0, stderr)
    assertSameTree(into + scenario.source, scenario.source)
    // The signing key is what makes the difference: without it, nothing on the drive is believed.
    writeFileSync(keys, readFileSync(keys, 'utf8').replace(/^# signing key of .*$/m, ''))
    const untrusted = await other.run(
      'restore',
      '--source',
      'external',
      '--machine',
      'tester',
      '--identity',
      keys,
      '--into',
      `${into}2`,
    )
    assert.is(untrusted.status, 13)
    assert.equal(namesIn(`${into}2`, /./), [])
  },
)

restore('an incomplete generation is restored as such: exit 3', async () => {
  const scenario = await makeScenario()
  writeFileSync(`${scenario.source}/letter`, 'x')
  configure(scenario, (c) => {
    c['backup_sets'][0].sources.push('/no/such/thing')
  })
  assert.is((await scenario.collect()).status, 3)
  assert.is((await scenario.external()).status, 3)
  for (const source of SOURCES) {
    const into = `${scenario.directory}/${source}`
    const { status, stderr } = await from(scenario, source, '--into', into)
    assert.is(status, 3, stderr)
    assert.match(stderr, 'was incomplete when it was collected')
    assert.is(readFileSync(`${into}${scenario.source}/letter`, 'utf8'), 'x')
  }
})

if (canRunAsRoot('owners, devices and capabilities in a restore')) {
  for (const source of SOURCES) {
    restore(
      `${source}: FIFOs, devices, set-user-id, capabilities, and every sort of name`,
      async () => {
        const scenario = await exported((directory) => {
          script(
            `cd "$1"; mkfifo fifo; mknod null c 1 3
              printf x >setuid; chown 1234:5678 setuid; chmod 6755 setuid
          printf x >capable; setcap cap_net_raw+ep capable; printf x >$'new\\nline'; printf x >$'\\xff\\xfe'; printf x >-rf
          printf x >"$(printf 'n%.0s' {1..255})"; printf x >'a*?[b]\\c"'; printf x >.hidden; mkdir ' '; printf x >' /x'
          setfacl -m u:7:rw .hidden; setfattr -n user.x -v y fifo 2>/dev/null || true`,
            directory,
          )
        })
        const into = `${scenario.directory}/into`
        const { status, stderr } = await from(scenario, source, '--into', into)
        assert.is(status, 0, stderr)
        assertSameTree(into + scenario.source, scenario.source)
        // One by one, as somebody would ask for it.
        for (const name of ['new\nline', '-rf', 'n'.repeat(255), 'a*?[b]\\c"', ' ']) {
          const one = `${scenario.directory}/one`
          const alone = await from(
            scenario,
            source,
            '--path',
            `${scenario.source}/${name}`,
            '--into',
            one,
          )
          assert.is(alone.status, 0, alone.stderr)
          assert.equal(readdirSync(one + scenario.source), [name])
          rmSync(one, { recursive: true })
        }
      },
    )
  }
}

for (const source of SOURCES) {
  restore(`${source}: a socket is collected and told of, but not made again`, async () => {
    const scenario = await exported((directory) => {
      script(
        'cd "$1"; perl -MIO::Socket::UNIX -e \'IO::Socket::UNIX->new(Type => SOCK_STREAM, Local => "socket", Listen => 1) or die\'',
        directory,
      )
      writeFileSync(`${directory}/letter`, randomBytes(10))
    })
    const into = `${scenario.directory}/into`
    const run = await from(scenario, source, '--json', '--into', into)
    const [result] = jsonLines(run, 'result')
    const isThere = existsSync(`${into}${scenario.source}/socket`)
    if (source === 'external' || !isThere) {
      assert.is(run.status, 3, run.stderr)
      assert.match(run.stderr, /data\/socket: restored without socket/)
      assert.is(result?.['lost'].length, 1)
    }
    assert.ok(existsSync(`${into}${scenario.source}/letter`))
  })
}

restore.run()
