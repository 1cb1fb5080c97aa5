// What a second export costs, and that it restores exactly: real programs on real trees.

import { randomBytes } from 'node:crypto'
import {
  appendFileSync,
  chmodSync,
  copyFileSync,
  linkSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { suite } from 'uvu'
import * as assert from './helpers/assert.ts'
import { canRunAsRoot } from './helpers/needs.ts'
import {
  type Exported,
  type Scenario,
  assertNoLeftovers,
  assertSameTree,
  assertWhole,
  configure,
  exportStamps,
  inventory,
  jsonLines,
  makeScenario,
  setDirectory,
  script,
} from './helpers/scenario.ts'

const incremental = suite('incremental exports')
const KB = 1000

/** Restores an export into a new directory, and gives where its copy of the source is. */
async function restored(scenario: Scenario, ...words: string[]): Promise<string> {
  const into = `${scenario.directory}/into-${readdirSync(scenario.directory).length}`
  const { status, stdout, stderr } = await scenario.restore('--into', into, ...words)
  assert.is(status, 0, stdout + stderr)
  assertNoLeftovers(into)
  return into + scenario.source
}

/**
 * A generation during which nothing above the source changed either: the directories above it are
 * entries too, and other tests make and remove theirs beside ours.
 */
async function generationOfQuietTime(scenario: Scenario): Promise<Exported> {
  const above = (): string => script('stat -c %y "$1" "$2"', tmpdir(), scenario.directory)
  for (let tries = 0; tries < 10; tries++) {
    const before = above()
    await scenario.generation()
    const exported = await scenario.generation()
    if (above() === before) return exported
  }
  throw new Error('something changes the directory of temporary files all the time')
}

/** A tree with a bit of everything that does not need root. */
function plant(source: string): void {
  mkdirSync(`${source}/letters/old`, { recursive: true })
  mkdirSync(`${source}/empty`)
  for (let i = 0; i < 200; i++)
    writeFileSync(`${source}/letters/${i}`, `letter ${i}\n`.repeat(i + 1))
  writeFileSync(`${source}/letters/old/photo`, randomBytes(300_000))
  writeFileSync(`${source}/image`, randomBytes(9_000_000))
  writeFileSync(`${source}/nothing`, '')
  symlinkSync('letters/1', `${source}/link`)
  symlinkSync('/no/such/place', `${source}/dangling`)
  linkSync(`${source}/letters/7`, `${source}/seven`)
  linkSync(`${source}/letters/8`, `${source}/eight`)
  utimesSync(`${source}/letters/9`, 1_700_000_000.123, -86_400.5)
}

incremental(
  'an export after no change has no data bundle, no catalog bundle, and a manifest of a few KB',
  async () => {
    const scenario = await makeScenario()
    plant(scenario.source)
    const first = await scenario.generation()
    assert.ok(first.full)
    const second = await generationOfQuietTime(scenario)
    assert.is(second.full, false)
    assert.is(second.dataBytes, 0)
    assert.is(second.catalogBytes, 0)
    assert.ok(second.manifestBytes < 5 * KB, `${second.manifestBytes} bytes`)
    const names = readdirSync(`${setDirectory(scenario)}/${second.stamp}`).sort()
    assert.equal(names, [
      'manifest.tar.zst.age',
      'verification.sha256',
      'verification.sha256.minisig',
    ])
    assertSameTree(await restored(scenario), scenario.source)
    await assertWhole(scenario)
  },
)

incremental(
  'after edits, renames, modes and links both the new and the old export restore exactly',
  async () => {
    const scenario = await makeScenario()
    const { source } = scenario
    plant(source)
    const before = `${scenario.directory}/before`
    script('cp -a "$1" "$2"', source, before)
    const { stamp } = await scenario.generation()
    appendFileSync(`${source}/letters/3`, 'a line more\n')
    writeFileSync(`${source}/letters/new`, 'new')
    unlinkSync(`${source}/letters/4`)
    renameSync(`${source}/letters/5`, `${source}/letters/five`)
    renameSync(`${source}/letters/old`, `${source}/older`)
    chmodSync(`${source}/letters/6`, 0o4711)
    chmodSync(`${source}/empty`, 0o1777)
    utimesSync(`${source}/letters/10`, 1, 2.5)
    // Links: one is cut, one moves, one is new, and the first path of a group goes.
    copyFileSync(`${source}/seven`, `${source}/seven-copy`)
    unlinkSync(`${source}/seven`)
    renameSync(`${source}/seven-copy`, `${source}/seven`)
    unlinkSync(`${source}/letters/8`)
    linkSync(`${source}/letters/11`, `${source}/eleven`)
    unlinkSync(`${source}/link`)
    symlinkSync('letters/2', `${source}/link`)
    // A file becomes a directory, and a directory a file.
    unlinkSync(`${source}/nothing`)
    mkdirSync(`${source}/nothing`)
    rmSync(`${source}/dangling`)
    writeFileSync(`${source}/dangling`, '')
    const second = await scenario.generation()
    assert.ok(second.dataBytes < 20 * KB, `${second.dataBytes} bytes for a few small changes`)
    assertSameTree(await restored(scenario), source)
    assertSameTree(await restored(scenario, '--date', stamp), before)
    await assertWhole(scenario)
  },
)

incremental('moved and copied files add no data', async () => {
  const scenario = await makeScenario()
  const { source } = scenario
  for (let i = 0; i < 5; i++) writeFileSync(`${source}/photo-${i}`, randomBytes(400_000))
  writeFileSync(`${source}/image`, randomBytes(9_000_000))
  await scenario.generation()
  mkdirSync(`${source}/album`)
  for (let i = 0; i < 3; i++) renameSync(`${source}/photo-${i}`, `${source}/album/${i}`)
  copyFileSync(`${source}/photo-4`, `${source}/album/copy`)
  copyFileSync(`${source}/image`, `${source}/image-copy`)
  renameSync(`${source}/image`, `${source}/album/image`)
  const { dataBytes } = await scenario.generation()
  assert.ok(dataBytes < 30 * KB, `${dataBytes} bytes, which is headers`)
  assertSameTree(await restored(scenario), source)
  await assertWhole(scenario)
})

incremental('a file of 9 MB edited in its middle adds less than 1 MB', async () => {
  const scenario = await makeScenario()
  const file = `${scenario.source}/image`
  const content = randomBytes(9_000_000)
  writeFileSync(file, content)
  await scenario.generation()
  content.write('edited', 4_500_000)
  writeFileSync(file, content)
  const edited = await scenario.generation()
  assert.ok(edited.dataBytes > 0 && edited.dataBytes < 1000 * KB, `${edited.dataBytes} bytes`)
  assertSameTree(await restored(scenario), scenario.source)
  // Bytes that move everything after them.
  writeFileSync(
    file,
    Buffer.concat([
      content.subarray(0, 3_000_000),
      Buffer.from('inserted'),
      content.subarray(3_000_000),
    ]),
  )
  const inserted = await scenario.generation()
  assert.ok(inserted.dataBytes > 0 && inserted.dataBytes < 1000 * KB, `${inserted.dataBytes} bytes`)
  assertSameTree(await restored(scenario), scenario.source)
  await assertWhole(scenario)
})

incremental('content that two sets have is stored once', async () => {
  const scenario = await makeScenario()
  const other = `${scenario.home}/other`
  mkdirSync(other)
  const photo = randomBytes(500_000)
  writeFileSync(`${scenario.source}/photo`, photo)
  writeFileSync(`${other}/the-same-photo`, photo)
  configure(scenario, (c) => {
    c['backup_sets'].push({ name: 'other', sources: [other] })
  })
  assert.is((await scenario.collect()).status, 0)
  const results = jsonLines(await scenario.external('--json'), 'result') as unknown as Exported[]
  assert.is(results.length, 2)
  const stored = results.reduce((sum, { dataBytes }) => sum + dataBytes, 0)
  assert.ok(stored > 500_000 && stored < 600_000, `${stored} bytes for both`)
  const verification = readFileSync(
    `${setDirectory(scenario, 'other')}/${exportStamps(scenario, 'other')[0]}/verification.sha256`,
    'utf8',
  )
  assert.match(verification, /  \.\.\/\.\.\/data\/.*\/data-0001\.tar\.zst\.age\n/)
  // The bundle stays as long as either needs it.
  configure(scenario, (c) => {
    c['retention'] = { external: 1 }
  })
  rmSync(`${scenario.source}/photo`)
  writeFileSync(`${scenario.source}/film`, randomBytes(500_000))
  assert.is((await scenario.collect('--set', 'data')).status, 0)
  assert.is((await scenario.external('--set', 'data')).status, 0)
  const into = `${scenario.directory}/into`
  assert.is((await scenario.restore('--set', 'other', '--into', into)).status, 0)
  assertSameTree(into + other, other)
  await assertWhole(scenario)
})

incremental('a new set name for the same files costs no data', async () => {
  const scenario = await makeScenario()
  plant(scenario.source)
  await scenario.generation()
  configure(scenario, (c) => {
    c['backup_sets'][0].name = 'renamed'
  })
  assert.is((await scenario.collect()).status, 0)
  const [result] = jsonLines(await scenario.external('--json'), 'result') as unknown as Exported[]
  assert.ok((result?.dataBytes ?? Infinity) < 100 * KB, `${result?.dataBytes} bytes of headers`)
})

incremental(
  'after .state is lost the next export is full, correct, and says so; the old ones stay',
  async () => {
    const scenario = await makeScenario()
    plant(scenario.source)
    const before = `${scenario.directory}/before`
    script('cp -a "$1" "$2"', scenario.source, before)
    const first = await scenario.generation()
    const old = inventory(setDirectory(scenario))
    rmSync(`${scenario.staging}/.state`, { recursive: true })
    const away = `${scenario.directory}/identity`
    renameSync(scenario.identity, away)
    writeFileSync(`${scenario.source}/letters/new`, 'new')
    await scenario.collect()
    const run = await scenario.external('--json')
    assert.is(run.status, 0, run.stderr)
    assert.match(run.stderr, 'what was known of drive is lost: this export is a full one')
    const notices = jsonLines(run, 'notice').map(({ code }) => code as string)
    assert.ok(notices.includes('STATE_LOST'))
    renameSync(away, scenario.identity)
    const [second] = jsonLines(run, 'result') as unknown as Exported[]
    assert.is(second?.full, true)
    for (const [path, what] of old)
      if (path !== 'latest') assert.is(inventory(setDirectory(scenario)).get(path), what, path)
    const verification = readFileSync(
      `${setDirectory(scenario)}/${second?.stamp}/verification.sha256`,
      'utf8',
    )
    assert.not.match(verification, first.stamp)
    assertSameTree(await restored(scenario), scenario.source)
    assertSameTree(await restored(scenario, '--date', first.stamp), before)
    await assertWhole(scenario)
    assert.ok(
      (await scenario.generation()).dataBytes < 2 * KB,
      'and from then on incremental again',
    )
  },
)

for (const [what, spoil] of [
  ['damaged', (path: string) => writeFileSync(path, 'nonsense')],
  ['missing', (path: string) => rmSync(path)],
] as const) {
  incremental(
    `one file of the state that is ${what} makes the next export full, not wrong`,
    async () => {
      const scenario = await makeScenario()
      writeFileSync(`${scenario.source}/photo`, randomBytes(100_000))
      await scenario.generation()
      const [id = ''] = readdirSync(`${scenario.staging}/.state/repositories`)
      const directory = `${scenario.staging}/.state/repositories/${id}`
      const [pieces = ''] = readdirSync(directory).filter((name) => name.startsWith('pieces'))
      spoil(`${directory}/${pieces}`)
      const { full } = await scenario.generation()
      assert.ok(full)
      assertSameTree(await restored(scenario), scenario.source)
      await assertWhole(scenario)
    },
  )
}

incremental(
  'a bundle that is gone or has another size is not referred to: its content is written anew',
  async () => {
    const scenario = await makeScenario()
    writeFileSync(`${scenario.source}/photo`, randomBytes(100_000))
    const first = await scenario.generation()
    writeFileSync(`${scenario.source}/second`, randomBytes(100_000))
    const second = await scenario.generation()
    appendFileSync(`${setDirectory(scenario)}/${first.stamp}/data-0001.tar.zst.age`, 'x')
    rmSync(`${setDirectory(scenario)}/${second.stamp}/data-0001.tar.zst.age`)
    const third = await scenario.generation()
    assert.ok(third.dataBytes > 200_000, `${third.dataBytes} bytes`)
    assertSameTree(await restored(scenario), scenario.source)
    const verified = await scenario.restore('--verify', '--date', third.stamp)
    assert.is(verified.status, 0, verified.stdout)
  },
)

if (canRunAsRoot('owners, devices, capabilities and ACLs in an export')) {
  incremental(
    'owners, devices, xattrs, capabilities, ACLs and odd names survive an incremental export',
    async () => {
      const scenario = await makeScenario()
      script(
        `cd "$1"
      printf x >$'new\\nline'; printf x >$'\\xff\\xfe not text'; printf x >'-rf'; printf x >'quote"and'"'"'s'
      printf x >"$(printf 'n%.0s' {1..255})"; printf x >' '; mkdir -p $'dir\\xe9/-x'; printf x >$'dir\\xe9/-x/*'
      mkfifo fifo; mknod null c 1 3; mknod disk b 7 200
      printf x >owned; chown 300000:4000000 owned; ln -s owned sym; chown -h 12:34 sym
      printf x >setuid; chmod 6755 setuid
      printf x >capable; setcap cap_net_raw+ep capable
      printf x >noted; setfattr -n user.note -v 0x00ff0a noted; setfattr -n user.odd=name -v '' noted
      mkdir shared; setfacl -m u:1234:rwx,g:5678:r-x,d:u:1234:rwx,d:o::--- shared
      printf x >shared/inside
      setfacl -m u:1234:r noted
      truncate -s 5M sparse
      printf middle | dd of=sparse bs=1 seek=3000000 conv=notrunc status=none
      truncate -s 1M hole; touch -d '1901-12-13 20:45:51.123456789 UTC' ancient; touch -d '2500-01-01 00:00:00.000000001 UTC' future
      mkdir .pieces .entries; printf x >.pieces/mine; printf x >.entries/1`,
        scenario.source,
      )
      await scenario.generation()
      assertSameTree(await restored(scenario), scenario.source)
      script(
        `cd "$1"
      chown 5:6 owned; setfattr -n user.note -v new noted; setfacl -b shared; setcap -r capable
      printf y | dd of=sparse bs=1 seek=1000000 conv=notrunc status=none; chmod 0 setuid; mv $'new\\nline' $'newer\\nline'`,
        scenario.source,
      )
      const { dataBytes } = await scenario.generation()
      assert.ok(dataBytes < 100 * KB, `${dataBytes} bytes`)
      assertSameTree(await restored(scenario), scenario.source)
      await assertWhole(scenario)
    },
  )
}

incremental.run()
