// What damage on a target costs: it is found, named, and costs only the files with pieces in it
// (invariants 8, 9, 10).

import { randomBytes } from 'node:crypto'
import {
  copyFileSync,
  cpSync,
  existsSync,
  openSync,
  closeSync,
  readFileSync,
  readSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
  mkdirSync,
} from 'node:fs'
import { suite } from 'uvu'
import * as assert from './helpers/assert.ts'
import {
  type Scenario,
  assertNoLeftovers,
  configure,
  exportStamps,
  jsonLines,
  makeScenario,
  namesIn,
  script,
  setDirectory,
} from './helpers/scenario.ts'

const damage = suite('damage')
const FILES = 8

let whole: Promise<{ readonly scenario: Scenario; readonly copy: string }> | undefined
let places = 0

/**
 * An export of several bundles, freshly put back: every file of 1 MiB is whole in one of them. The
 * repository lies where it always does, so that one export serves all tests.
 */
async function freshExport(): Promise<{
  scenario: Scenario
  directory: string
  bundles: string[]
  into: string
}> {
  whole ??= (async () => {
    const scenario = await makeScenario()
    configure(scenario, (c) => {
      c['targets'][0].bundle_size = '1 MiB'
    })
    for (let i = 0; i < FILES; i++)
      writeFileSync(`${scenario.source}/${i}`, randomBytes(1024 * 1024))
    await scenario.generation()
    const copy = `${scenario.directory}/copy`
    cpSync(scenario.target, copy, { recursive: true, preserveTimestamps: true })
    return { scenario, copy }
  })()
  const { scenario, copy } = await whole
  rmSync(scenario.target, { recursive: true })
  cpSync(copy, scenario.target, { recursive: true, preserveTimestamps: true })
  const directory = `${setDirectory(scenario)}/${exportStamps(scenario)[0]}`
  const bundles = readdirSync(directory).filter((name) => name.startsWith('data-'))
  assert.ok(bundles.length >= 3, `${bundles.length} bundles`)
  return { scenario, directory, bundles, into: `${scenario.directory}/into-${++places}` }
}

/** Flips one bit. */
function flip(path: string, position: number): void {
  const fd = openSync(path, 'r+')
  const byte = Buffer.alloc(1)
  readSync(fd, byte, 0, 1, position)
  byte[0] = (byte[0] ?? 0) ^ 0x10
  writeSync(fd, byte, 0, 1, position)
  closeSync(fd)
}

/**
 * Verify and restore both end with 13 and name the same files (of a truncated bundle verify may
 * name more); what is named is not restored, everything else is whole, nothing half-made is left.
 */
async function assertCosts(
  { scenario, into }: { scenario: Scenario; into: string },
  { minimum, maximum, exact = true }: { minimum: number; maximum: number; exact?: boolean },
): Promise<void> {
  const verified = await scenario.restore('--verify', '--json')
  assert.is(verified.status, 13, verified.stderr)
  const [told] = jsonLines(verified, 'result')
  const isFile = (path: string): boolean => /\/data\/\d$/.test(path)
  const damaged = (told?.['damaged'] as { path: string }[])
    .map(({ path }) => path)
    .filter(isFile)
    .map((path) => path.slice(-1))
    .sort()
  assert.ok(told?.['problems'].length > 0)
  const restored = await scenario.restore('--into', into, '--json')
  assert.is(restored.status, 13, restored.stderr)
  const [result] = jsonLines(restored, 'result')
  const failed = (result?.['failures'] as { path: string }[])
    .map(({ path }) => path)
    .filter(isFile)
    .map((path) => path.slice(-1))
    .sort()
  if (exact) assert.equal(failed, damaged, 'verify and restore agree')
  else
    assert.equal(
      failed.filter((name) => !damaged.includes(name)),
      [],
      'verify named whatever is lost',
    )
  for (const name of failed) assert.match(restored.stderr, `data/${name}: not restored: `)
  assert.ok(failed.length >= minimum && failed.length <= maximum, `${failed.length} files lost`)
  const there = readdirSync(into + scenario.source)
  assert.equal(
    [...there, ...failed].sort(),
    Array.from({ length: FILES }, (_, i) => String(i)),
  )
  for (const name of there) {
    assert.ok(
      readFileSync(`${into}${scenario.source}/${name}`).equals(
        readFileSync(`${scenario.source}/${name}`),
      ),
    )
  }
  assertNoLeftovers(into)
}

damage(
  'one flipped byte in the middle of a data bundle costs the files whose pieces are there',
  async () => {
    const at = await freshExport()
    const path = `${at.directory}/${at.bundles[1]}`
    flip(path, statSync(path).size >> 1)
    await assertCosts(at, { minimum: 1, maximum: 2 })
  },
)

damage('a flipped byte in the age header costs the files of that bundle', async () => {
  const at = await freshExport()
  flip(`${at.directory}/${at.bundles[1]}`, 100)
  await assertCosts(at, { minimum: 1, maximum: FILES - 1 })
})

damage('a truncated data bundle costs at most the files in it', async () => {
  const at = await freshExport()
  const path = `${at.directory}/${at.bundles[0]}`
  truncateSync(path, statSync(path).size - 100_000)
  await assertCosts(at, { minimum: 0, maximum: FILES - 1, exact: false })
})

damage('a missing data bundle costs the files in it', async () => {
  const at = await freshExport()
  rmSync(`${at.directory}/${at.bundles[2]}`)
  await assertCosts(at, { minimum: 1, maximum: FILES - 1 })
})

damage('two bundles that are swapped cost their files, and nothing wrong is restored', async () => {
  const at = await freshExport()
  const [a, b] = [`${at.directory}/${at.bundles[0]}`, `${at.directory}/${at.bundles[1]}`]
  renameSync(a, `${a}.away`)
  renameSync(b, a)
  renameSync(`${a}.away`, b)
  await assertCosts(at, { minimum: 2, maximum: FILES - 1 })
})

damage('without the identity --verify still finds a flipped byte by its checksum', async () => {
  const { scenario, directory, bundles } = await freshExport()
  flip(`${directory}/${bundles[0]}`, 70_000)
  const elsewhere = `${scenario.directory}/kept elsewhere`
  renameSync(scenario.identity, elsewhere)
  const { status, stdout } = await scenario.run('restore', '--source', 'external', '--verify')
  renameSync(elsewhere, scenario.identity)
  assert.is(status, 13)
  assert.match(stdout, `${bundles[0]}`.replace(/\.tar.*$/, ''))
  assert.match(stdout, 'only checksums and signatures were checked')
})

/** The export as a whole cannot be believed: nothing of it is restored. */
async function assertRefused(
  { scenario, into }: { scenario: Scenario; into: string },
  { message }: { message: RegExp },
): Promise<void> {
  const verified = await scenario.restore('--verify')
  assert.is(verified.status, 13, verified.stdout)
  assert.match(verified.stdout, message)
  const restored = await scenario.restore('--into', into)
  assert.is(restored.status, 13, restored.stderr)
  assert.match(restored.stderr, message)
  assert.equal(namesIn(into, /./), [])
}

damage('a damaged catalog bundle is told as such', async () => {
  const at = await freshExport()
  const path = `${at.directory}/catalog-0001.tar.zst.age`
  flip(path, statSync(path).size - 200)
  const verified = await at.scenario.restore('--verify')
  assert.is(verified.status, 13)
  flip(path, 100)
  await assertRefused(at, { message: /catalog|age|header/ })
})

damage('a missing catalog bundle is told as such', async () => {
  const at = await freshExport()
  rmSync(`${at.directory}/catalog-0001.tar.zst.age`)
  await assertRefused(at, { message: /a bundle is missing: .*catalog-0001/ })
})

damage('a verification file that was altered is not believed', async () => {
  const at = await freshExport()
  const path = `${at.directory}/verification.sha256`
  writeFileSync(
    path,
    readFileSync(path, 'utf8').replace(/[0-9a-f]/, (digit) => (digit === '0' ? '1' : '0')),
  )
  await assertRefused(at, { message: /signature/ })
})

damage('a verification file without its signature is not believed', async () => {
  const at = await freshExport()
  rmSync(`${at.directory}/verification.sha256.minisig`)
  await assertRefused(at, { message: /verification\.sha256\.minisig/ })
})

damage('a damaged or foreign manifest is not believed', async () => {
  const at = await freshExport()
  flip(`${at.directory}/manifest.tar.zst.age`, 500)
  await assertRefused(at, { message: /manifest .*does not have/ })
})

damage(
  'an export signed by another key is not believed, though all its signatures fit',
  async () => {
    const at = await freshExport()
    const other = await makeScenario({ machine: 'tester' })
    // Somebody who knows the recipient makes an export of their own, and puts it in place of ours.
    configure(other, (c) => {
      c['recipients'] = [/age1[0-9a-z]{58}/.exec(readFileSync(at.scenario.identity, 'utf8'))?.[0]]
    })
    writeFileSync(`${other.source}/evil`, 'x')
    mkdirSync(other.target, { recursive: true })
    copyFileSync(`${at.scenario.target}/repository.json`, `${other.target}/repository.json`)
    await other.generation()
    rmSync(`${at.scenario.target}/machines`, { recursive: true })
    cpSync(`${other.target}/machines`, `${at.scenario.target}/machines`, { recursive: true })
    await assertRefused(at, { message: /trusted|signed/ })
  },
)

damage('a verification file signed anew with a foreign minisign key is not believed', async () => {
  const at = await freshExport()
  const path = `${at.directory}/verification.sha256`
  const comment =
    readFileSync(`${path}.minisig`, 'utf8').split('\n')[2]?.replace('trusted comment: ', '') ?? ''
  script(
    `cd "$1"; minisign -GfW -p key.pub -s key.sec >/dev/null; minisign -Sm "$2" -s key.sec -x "$2.minisig" -t "$3" </dev/null >/dev/null`,
    at.scenario.directory,
    path,
    comment,
  )
  await assertRefused(at, { message: /trusted|signed|key/ })
})

damage('an export moved to the place of another is not believed', async () => {
  const at = await freshExport()
  const moved = at.directory.replace(/\d{4}-\d\d-/, '2001-01-')
  renameSync(at.directory, moved)
  await assertRefused(at, { message: /signature|verification|file:/ })
  assert.ok(existsSync(moved))
})

damage(
  'one export that is damaged does not keep another from being verified and restored',
  async () => {
    const { scenario, directory, into } = await freshExport()
    writeFileSync(`${scenario.source}/late`, 'x')
    await scenario.collect()
    const { status, stderr } = await scenario.external()
    assert.is(status, 0, stderr)
    const [first = '', second = ''] = exportStamps(scenario)
    writeFileSync(`${directory}/manifest.tar.zst.age`, 'nonsense')
    const verified = await scenario.restore('--verify')
    assert.is(verified.status, 13)
    assert.match(verified.stdout, `data ${first}: DAMAGED`)
    assert.match(verified.stdout, `data ${second}: whole`)
    assert.is((await scenario.restore('--into', into)).status, 0)
    rmSync(`${scenario.source}/late`)
  },
)

damage.run()
