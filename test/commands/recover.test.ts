// `backup recover`: three generations come back though manifests, repository.json, names and
// catalogs are gone one after another, and damage costs what it has to and is named (promises 8, 9,
// 10).

import { createHash, randomBytes } from 'node:crypto'
import {
  chmodSync,
  copyFileSync,
  cpSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  closeSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { basename, join } from 'node:path'
import { suite } from 'uvu'
import { encryptAge } from '../../lib/format/age.ts'
import { generateIdentity, recipientOf } from '../../lib/format/age-keys.ts'
import { END_OF_ARCHIVE, encodeHeader } from '../../lib/format/tar.ts'
import { compressFrame, encodeTrailer, frameChecksum } from '../../lib/format/zstd-frames.ts'
import * as assert from '../helpers/assert.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { MAIN, type Outcome, runCli } from '../helpers/run-cli.ts'
import {
  type Properties,
  type Scenario,
  assertNoLeftovers,
  assertSameTree,
  configure,
  exportStamps,
  jsonLines,
  makeScenario,
  namesIn,
  script,
  setDirectory,
} from '../helpers/scenario.ts'

const recover = suite('commands/recover')
const asRoot = canRunAsRoot('a recovery onto a full disk') ? recover : recover.skip
const MIB = 1024 * 1024

/** Three generations: files are edited, renamed and removed between them. */
const made = (async () => {
  const scenario = await makeScenario()
  const { source } = scenario
  configure(scenario, (c) => {
    c['targets'][0].bundle_size = '4 MiB'
  })
  const big = randomBytes(9 * MIB)
  writeFileSync(`${source}/big`, big)
  for (const name of ['one', 'two', 'three']) writeFileSync(`${source}/${name}`, randomBytes(MIB))
  linkSync(`${source}/one`, `${source}/one-too`)
  writeFileSync(Buffer.from(`${source}/caf\xe9`, 'latin1'), 'not UTF-8')
  script(
    'truncate -s 3M "$1"; printf data | dd of="$1" bs=1M seek=2 conv=notrunc',
    `${source}/holes`,
  )
  mkdirSync(`${source}/letters`)
  writeFileSync(`${source}/letters/a`, 'first')
  writeFileSync(`${source}/letters/old`, 'same all the time')
  symlinkSync('a', `${source}/letters/b`)
  chmodSync(`${source}/letters`, 0o750)
  const first = Buffer.from(big)
  age(source)
  await scenario.generation()
  big.fill(7, 5_000_000, 5_000_100)
  writeFileSync(`${source}/big`, big)
  writeFileSync(`${source}/letters/a`, 'second')
  await nextSecond()
  await scenario.generation()
  renameSync(`${source}/letters/old`, `${source}/letters/new`)
  writeFileSync(`${source}/letters/a`, 'third')
  await nextSecond()
  await scenario.generation()
  const stamps = exportStamps(scenario)
  assert.is(stamps.length, 3)
  return { scenario, first, stamps }
})()
let variants = 0

/** What was there from the beginning is older than what comes later. */
function age(source: string): void {
  for (const path of namesIn(source, /./)) {
    const place = Buffer.from(`${source}/${path}`, 'latin1')
    if (!lstatSync(place).isSymbolicLink()) utimesSync(place, 1.5e9, 1.5e9)
  }
}

async function nextSecond(): Promise<void> {
  const { setTimeout: sleep } = await import('node:timers/promises')
  await sleep(1000 - (Date.now() % 1000))
}

interface Variant {
  readonly scenario: Scenario
  readonly directory: string
  /** What bundles lie below. */
  readonly from: string
  readonly out: string
  /** Where the source is in it. */
  readonly tree: string
  readonly run: (...words: string[]) => Promise<Outcome>
  readonly into: (...words: string[]) => Promise<Outcome>
}

/** A copy of the drive, to be changed. */
async function variant(change: (from: string) => void = () => {}): Promise<Variant> {
  const { scenario } = await made
  const directory = `${scenario.directory}/variant-${++variants}`
  const from = `${directory}/drive`
  mkdirSync(directory)
  cpSync(scenario.target, from, { recursive: true, preserveTimestamps: true })
  change(from)
  const out = `${directory}/out`
  const run = async (...words: string[]): Promise<Outcome> =>
    await scenario.run('recover', '--from', from, '--identity', scenario.identity, ...words)
  const into = async (...words: string[]): Promise<Outcome> => {
    const before = state(from)
    const outcome = await run('--into', out, ...words)
    assert.is(state(from), before, 'where the bundles lie nothing was changed')
    assertNoLeftovers(out, from)
    assert.equal(namesIn(directory, /^[^/]+$/), existsSync(out) ? ['drive', 'out'] : ['drive'])
    return outcome
  }
  return { scenario, directory, from, out, tree: `${out}${scenario.source}`, run, into }
}

function state(directory: string): string {
  return script('cd "$1"; find . -printf "%P %s %T@ %m\\n" | sort', directory)
}

function withoutManifests(from: string): void {
  script('find "$1" -name "manifest.*" -delete -o -name "verification*" -delete', from)
  rmSync(`${from}/repository.json`)
}

function withoutCatalogs(from: string): void {
  withoutManifests(from)
  script('find "$1" -name "catalog-*" -delete', from)
}

/** All bundles in one directory under names that say nothing, among other files. */
function scramble(from: string): void {
  const paths = namesIn(from, /\.age$/).sort()
  mkdirSync(`${from}/x/deep`, { recursive: true })
  paths.forEach((path, i) => {
    const name = createHash('sha256').update(path).digest('hex').slice(0, 8)
    renameSync(`${from}/${path}`, `${from}/x/${i % 2 === 0 ? 'deep/' : ''}${name}`)
  })
  rmSync(`${from}/machines`, { recursive: true })
  writeFileSync(`${from}/x/holiday.jpg`, randomBytes(1000))
  writeFileSync(`${from}/x/empty`, '')
  writeFileSync(`${from}/x/age.txt`, 'age-encryption.org/v1\nnot really')
  symlinkSync('/', `${from}/x/link`)
}

/** Every path below a directory, in any bytes, with what it is. */
function listing(directory: string): Map<string, string> {
  const records = script(
    'cd "$1"; find . -mindepth 1 ! -type f -printf "%y %l  ./%P\\0"; '
      + 'find . -type f -print0 | xargs -0r sha256sum -z',
    directory,
  )
  const found = records
    .split('\0')
    .slice(0, -1)
    .map((record): [string, string] => {
      const at = record.indexOf('  ./')
      return [record.slice(at + 4), record.slice(0, at)]
    })
  return new Map(found.sort(([a], [b]) => (a < b ? -1 : 1)))
}

function results(outcome: Outcome, what: string): Properties[] {
  return jsonLines(outcome, 'result').filter((result) => result['what'] === what)
}

function flip(path: string, position: number): void {
  const fd = openSync(path, 'r+')
  const byte = Buffer.alloc(1)
  readSync(fd, byte, 0, 1, position)
  byte[0] = (byte[0] ?? 0) ^ 0x10
  writeSync(fd, byte, 0, 1, position)
  closeSync(fd)
}

/** The data bundles of a generation below `from`, largest first. */
async function dataBundles(from: string, generation: number): Promise<string[]> {
  const { scenario, stamps } = await made
  const directory = setDirectory(scenario).replace(scenario.target, from)
  return namesIn(`${directory}/${stamps[generation]}`, /^data-.*age$/)
    .map((name) => `${directory}/${stamps[generation]}/${name}`)
    .sort((a, b) => statSync(b).size - statSync(a).size)
}

/**
 * Of the files of the newest generation some are lost and named; all others are as they were, and
 * nothing is under the names of those that are lost.
 */
function assertCosts(outcome: Outcome, { scenario, tree }: Variant): string[] {
  const [restored] = results(outcome, 'restored')
  const lost = (restored?.['lost'] as { path: string }[]).map(({ path }) => {
    return path.slice(scenario.source.length)
  })
  const actual = listing(tree)
  const expected = listing(scenario.source)
  for (const path of lost) {
    assert.ok(expected.has(path), `${path} is one of the source`)
    assert.not.ok(actual.has(path), `${path} has no file`)
    expected.delete(path)
  }
  for (const path of [...actual.keys()]) if (path.endsWith('.corrupt')) actual.delete(path)
  assert.equal([...actual], [...expected])
  return lost
}

recover('a whole repository comes back as signed, without a configuration', async () => {
  const at = await variant()
  const { scenario, stamps } = await made
  const listed = await at.run('--list', '--json')
  assert.is(listed.status, 0, listed.stderr)
  const names = results(listed, 'export').map(({ name, evidence }) => `${name} ${evidence}`)
  assert.equal(
    names,
    stamps.toReversed().map((stamp) => `tester/data/${stamp} signed`),
  )
  renameSync(scenario.configuration, `${scenario.configuration}.away`)
  const outcome = await at.into('--json')
  renameSync(`${scenario.configuration}.away`, scenario.configuration)
  assert.is(outcome.status, 0, outcome.stderr)
  assertSameTree(at.tree, scenario.source)
})

recover('an older export comes back by its name', async () => {
  const at = await variant()
  const { first, stamps } = await made
  const outcome = await at.into('--export', `tester/data/${stamps[0]}`)
  assert.is(outcome.status, 0, outcome.stderr)
  assert.ok(readFileSync(`${at.tree}/big`).equals(first))
  assert.is(readFileSync(`${at.tree}/letters/a`, 'utf8'), 'first')
})

recover('one name of a hard-linked file comes back alone, and nothing else', async () => {
  const at = await variant()
  const path = `${at.scenario.source}/one-too`
  const outcome = await at.into('--path', path)
  assert.is(outcome.status, 0, outcome.stderr)
  assert.equal([...listing(at.tree).keys()], ['one-too'])
  assert.ok(readFileSync(`${at.out}${path}`).equals(readFileSync(path)))
  const none = await at.run('--into', `${at.directory}/none`, '--path', '/no/such')
  assert.is(none.status, 1, none.stderr)
})

recover(
  'without manifests, repository.json and names all comes back, and is told as unsigned',
  async () => {
    const at = await variant((from) => {
      withoutManifests(from)
      scramble(from)
      const [first = ''] = namesIn(`${from}/x`, /^[0-9a-f]{8}$/)
      copyFileSync(`${from}/x/${first}`, `${from}/half of a copy`)
      truncateSync(`${from}/half of a copy`, Math.floor(statSync(`${from}/x/${first}`).size / 2))
    })
    const outcome = await at.into('--json')
    assert.is(outcome.status, 13, outcome.stderr)
    assert.match(outcome.stderr, /no signature vouches for/)
    const [restored] = results(outcome, 'restored')
    assert.is(restored?.['evidence'], 'catalog')
    assert.equal(restored?.['lost'], [])
    assertSameTree(at.tree, at.scenario.source)
    assert.is(lstatSync(at.out).mode & 0o777, 0o700, 'nobody else looks into it')
  },
)

for (const { how, isScrambled } of [
  { how: 'in their places', isScrambled: false },
  { how: 'under names that say nothing', isScrambled: true },
]) {
  recover(
    `data bundles alone ${how} give the newest of each path, and older versions`,
    async () => {
      const at = await variant((from) => {
        withoutCatalogs(from)
        if (isScrambled) scramble(from)
      })
      const { first } = await made
      const outcome = await at.into('--json')
      assert.is(outcome.status, 13, outcome.stderr)
      const [restored] = results(outcome, 'restored')
      assert.is(restored?.['evidence'], 'members')
      assert.equal(restored?.['lost'], [])
      const actual = listing(at.tree)
      assert.ok(actual.delete('letters/old'), 'no catalog says that it is gone')
      assert.equal([...actual], [...listing(at.scenario.source)])
      const versions = `${at.out}/.versions`
      assert.ok(readFileSync(`${versions}/1${at.scenario.source}/big`).equals(first))
      const letters = [1, 2].map((n) => {
        return readFileSync(`${versions}/${n}${at.scenario.source}/letters/a`, 'utf8')
      })
      assert.equal(letters, ['second', 'first'])
      assert.equal(namesIn(versions, /\/big$|letters\/a$/).length, 3)
      const [one, too] = ['one', 'one-too'].map((name) => lstatSync(join(at.tree, name)).ino)
      assert.is(one, too, 'hard links are')
      assert.ok(lstatSync(`${at.tree}/holes`).blocks * 512 < 2 * MIB, 'holes are')
      assert.ok(existsSync(Buffer.from(`${at.tree}/caf\xe9`, 'latin1')))
    },
  )
}

recover('a bundle that is nowhere costs the files with pieces in it, which are named', async () => {
  const at = await variant()
  const [largest = ''] = await dataBundles(at.from, 0)
  rmSync(largest)
  const listed = await at.run('--list', '--json')
  assert.is(listed.status, 13)
  const [damage] = results(listed, 'damage')
  assert.match(String(damage?.['bundle']), basename(largest).slice(0, 9))
  const outcome = await at.into('--json')
  assert.is(outcome.status, 13, outcome.stderr)
  const lost = assertCosts(outcome, at)
  assert.ok(lost.length >= 1 && lost.length <= 4, lost.join())
  const costs = new Set((damage?.['costs'] as { path: string }[]).map(({ path }) => basename(path)))
  assert.equal([...costs].sort(), lost.map((path) => basename(path)).sort())
})

recover(
  'a flipped bit costs the files of its frame, found by a dry run that writes nothing',
  async () => {
    const at = await variant()
    const [largest = ''] = await dataBundles(at.from, 0)
    flip(largest, 1_000_000)
    const dry = await at.into('--dry-run', '--json')
    assert.is(dry.status, 13, dry.stderr)
    assert.not.ok(existsSync(at.out))
    const outcome = await at.into('--json')
    assert.is(outcome.status, 13, outcome.stderr)
    const lost = assertCosts(outcome, at)
    assert.ok(lost.length >= 1 && lost.length <= 3, lost.join())
    assert.equal(results(dry, 'restored')[0]?.['lost'], results(outcome, 'restored')[0]?.['lost'])
    assert.is(results(outcome, 'damage')[0]?.['bundle'], largest)
  },
)

recover('a good copy of a damaged bundle anywhere below makes it good', async () => {
  const at = await variant()
  const [largest = ''] = await dataBundles(at.from, 0)
  copyFileSync(largest, `${at.from}/zzz`)
  flip(largest, 1_000_000)
  mkdirSync(at.out)
  writeFileSync(`${at.out}/mine`, 'what is there already changes nothing')
  const outcome = await at.into('--json')
  assert.is(outcome.status, 0, outcome.stderr)
  assertSameTree(at.tree, at.scenario.source)
})

recover('where a file of its own is kept, its other names get what was backed up', async () => {
  const at = await variant()
  mkdirSync(at.tree, { recursive: true })
  writeFileSync(`${at.tree}/one`, 'mine')
  const outcome = await at.into()
  assert.is(outcome.status, 3, outcome.stderr)
  assert.is(readFileSync(`${at.tree}/one`, 'utf8'), 'mine')
  const { source } = at.scenario
  assert.ok(readFileSync(`${at.tree}/one-too`).equals(readFileSync(`${source}/one-too`)))
})

recover('without the catalog of one generation the others come back as signed', async () => {
  const { stamps } = await made
  const at = await variant((from) => {
    script('rm "$1"/machines/tester/data/"$2"/catalog-*', from, stamps[2]!)
  })
  const older = await at.run(
    '--into',
    `${at.directory}/older`,
    '--export',
    `tester/data/${stamps[1]}`,
  )
  assert.is(older.status, 0, older.stderr)
  rmSync(`${at.directory}/older`, { recursive: true })
  const newest = await at.into('--json')
  assert.is(newest.status, 13, newest.stderr)
  assert.match(
    newest.stderr,
    /perhaps newer: \S+, 0 files, signed, the catalog of \d+ entries LOST/,
  )
  assert.equal(results(newest, 'restored')[0]?.['exports'], [`tester/data/${stamps[1]}`])
  // What no catalog leads to any more is in the bundles.
  rmSync(at.out, { recursive: true, force: true })
  const members = await at.into('--export', 'unsigned:members', '--json')
  assert.is(members.status, 13, members.stderr)
  const actual = listing(at.tree)
  actual.delete('letters/old')
  assert.equal([...actual], [...listing(at.scenario.source)])
})

recover('where signed exports lead to nothing any more, what bundles say comes back', async () => {
  const at = await variant((from) => {
    script('find "$1" -name "catalog-*" -delete', from)
  })
  const { status, stderr, stdout } = await at.into('--json')
  assert.is(status, 13, stderr)
  const [told] = results({ status, stderr, stdout }, 'restored')
  assert.equal(told?.['evidence'], 'members', stdout)
  const actual = listing(at.tree)
  actual.delete('letters/old')
  assert.equal([...actual], [...listing(at.scenario.source)])
})

recover('a manifest counts only with a key that the identity file names', async () => {
  const at = await variant()
  const stripped = `${at.directory}/identity`
  const text = readFileSync(at.scenario.identity, 'utf8')
  writeFileSync(stripped, text.replace(/^# signing key of.*\n/gm, ''))
  const words = ['recover', '--from', at.from, '--identity', stripped]
  const unsigned = await at.scenario.run(...words, '--list', '--json')
  assert.is(unsigned.status, 13)
  assert.match(unsigned.stderr, /a manifest does not count: .*not trusted/)
  for (const { evidence } of results(unsigned, 'export')) assert.is(evidence, 'catalog')
  const key = /signing key of tester: (RW\S+)/.exec(text)?.[1] ?? ''
  const signed = await at.scenario.run(...words, '--list', '--signing-key', `tester:${key}`)
  assert.is(signed.status, 0, signed.stderr)
})

recover(
  'what is unsigned is not restored among other files, nor anything below --from',
  async () => {
    const at = await variant(withoutManifests)
    mkdirSync(at.out)
    writeFileSync(`${at.out}/mine`, 'x')
    const refused = await at.into()
    assert.is(refused.status, 2, refused.stderr)
    assert.match(refused.stderr, /not empty/)
    assert.equal([...listing(at.out).keys()], ['mine'])
    rmSync(at.out, { recursive: true })
    const inside = await at.run('--into', `${at.from}/new`)
    assert.is(inside.status, 2, inside.stderr)
    symlinkSync(at.from, `${at.directory}/way round`)
    const around = await at.run('--into', `${at.directory}/way round/new`)
    assert.is(around.status, 2, around.stderr)
    assert.not.ok(existsSync(`${at.from}/new`))
  },
)

recover(
  'newer data that no manifest names is told, and does not mix with what is signed',
  async () => {
    const { stamps } = await made
    const at = await variant((from) =>
      rmSync(`${from}/machines/tester/data/${stamps[2]}/manifest.tar.zst.age`),
    )
    const outcome = await at.into('--json')
    assert.is(outcome.status, 3, outcome.stderr)
    assert.match(outcome.stderr, /perhaps newer: unsigned:data/)
    assert.is(readFileSync(`${at.tree}/letters/a`, 'utf8'), 'second')
    const mixed = await at.run(
      '--into',
      `${at.directory}/m`,
      '--export',
      'tester',
      '--export',
      'unsigned',
    )
    assert.is(mixed.status, 2, mixed.stderr)
    assert.not.ok(existsSync(`${at.directory}/m`))
    const newer = await at.run(
      '--into',
      `${at.directory}/n`,
      '--export',
      `unsigned:data/${stamps[2]}`,
    )
    assert.is(newer.status, 13, newer.stderr)
    assert.is(readFileSync(`${at.directory}/n${at.scenario.source}/letters/a`, 'utf8'), 'third')
  },
)

recover('one path comes back by its bytes; one that is nowhere leaves no directory', async () => {
  const { scenario, from, out, directory } = await variant()
  const words = ['recover', '--from', from, '--identity', scenario.identity, '--into']
  const nowhere = await scenario.run(...words, `${directory}/nowhere`, '--path', '/nowhere')
  assert.is(nowhere.status, 1, nowhere.stderr)
  assert.not.ok(existsSync(`${directory}/nowhere`))
  mkdirSync(`${directory}/there`)
  await scenario.run(...words, `${directory}/there`, '--path', '/nowhere')
  assert.ok(existsSync(`${directory}/there`), 'it was there before')
  const program = ['bash', '-c', `exec "$@" --path "$0"/$'caf\\xe9'`, scenario.source]
  const environment = { HOME: `${directory}/home` }
  const found = await runCli(words.concat(out), {
    environment,
    program: [...program, process.execPath, MAIN],
  })
  assert.is(found.status, 0, found.stderr)
  assert.equal(namesIn(out + scenario.source, /./), ['caf\xe9'])
})

asRoot('a recovery asks for room first, unless it is told not to', async () => {
  const { scenario, from, directory } = await variant()
  mkdirSync(`${directory}/small`)
  script('mount -t tmpfs -o size=1m none "$1"', `${directory}/small`)
  try {
    const words = ['--from', from, '--identity', scenario.identity, '--into']
    const asked = await scenario.run('recover', ...words, `${directory}/small/out`)
    assert.is(asked.status, 1)
    assert.match(asked.stderr, /has room for .*\n.*--ignore-space/)
    assert.not.ok(existsSync(`${directory}/small/out`))
    const told = [`${directory}/small/out`, '--ignore-space']
    const partial = await scenario.run('recover', ...words, ...told)
    assert.match(partial.stderr, 'no space left')
    assert.ok(existsSync(`${directory}/small/out${scenario.source}/letters/a`))
    assertNoLeftovers(`${directory}/small/out`)
  } finally {
    script('umount "$1"', `${directory}/small`)
  }
})

recover('a wrong identity and an empty directory are told as such', async () => {
  const at = await variant()
  const wrong = `${at.directory}/wrong`
  writeFileSync(wrong, `${generateIdentity()}\n`)
  const { scenario, from, directory } = at
  const locked = await scenario.run('recover', '--from', from, '--identity', wrong, '--list')
  assert.is(locked.status, 12, locked.stderr)
  mkdirSync(`${directory}/empty`)
  const words = ['--from', `${directory}/empty`, '--identity', scenario.identity, '--list']
  assert.is((await scenario.run('recover', ...words)).status, 1)
})

recover('hostile members stay inside, and their names do not reach the terminal', async () => {
  const { scenario } = await made
  const directory = `${scenario.directory}/hostile`
  mkdirSync(`${directory}/drive`, { recursive: true })
  writeFileSync(`${directory}/victim`, 'unharmed')
  const common = { mode: 0o644, uid: 0, gid: 0, mtimeNs: 10n ** 18n }
  const file = (path: string): Buffer =>
    Buffer.concat([
      encodeHeader({ ...common, path, type: 'file', size: 4 }),
      Buffer.from('evil'.padEnd(512, '\0')),
    ])
  const tar = Buffer.concat([
    file('../victim'),
    file(`${directory}/victim`),
    file('a/../../victim'),
    encodeHeader({ ...common, path: 'way', type: 'symlink', target: '..' }),
    file('way/victim'),
    encodeHeader({ ...common, path: 'hard', type: 'link', target: '../victim' }),
    file('red \x1b[31m'),
    file('good'),
    END_OF_ARCHIVE,
  ])
  const frame = compressFrame(tar, 1)
  const entry = {
    compressedBytes: frame.length,
    tarBytes: tar.length,
    checksum: frameChecksum(frame),
  }
  const identity = generateIdentity()
  const payload = Buffer.concat([frame, encodeTrailer([entry])])
  writeFileSync(`${directory}/drive/x`, encryptAge(payload, [recipientOf(identity)]))
  writeFileSync(`${directory}/identity`, `${identity}\n`)
  const words = ['--from', `${directory}/drive`, '--identity', `${directory}/identity`]
  for (const json of [[], ['--json']]) {
    const out = `${directory}/out`
    const outcome = await scenario.run('recover', ...words, '--into', out, ...json)
    assert.is(outcome.status, 13, outcome.stderr)
    assert.not.match(outcome.stdout + outcome.stderr, '\x1b')
    assert.is(readFileSync(`${directory}/victim`, 'utf8'), 'unharmed')
    assert.is(lstatSync(`${directory}/victim`).nlink, 1)
    assert.is(readFileSync(`${out}/good`, 'utf8'), 'evil')
    assert.not.ok(existsSync(`${out}/hard`))
    assert.equal(
      namesIn(directory, /victim$/).filter((path) => !path.startsWith('out/')),
      ['victim'],
    )
    rmSync(out, { recursive: true })
  }
})

recover.run()
