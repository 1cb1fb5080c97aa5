import { execFileSync, spawnSync } from 'node:child_process'
import {
  chmodSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:net'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import type { SetConfiguration } from '../../lib/machine/config.ts'
import { setTimes, setXattr } from '../../lib/machine/posix.ts'
import type { Entry } from '../../lib/model/entry.ts'
import type { NoticeEvent, ReportEvent } from '../../lib/model/report.ts'
import { type CollectOutcome, collectSet } from '../../lib/work/collect.ts'
import { listCollections, readCollection } from '../../lib/work/staging.ts'
import * as assert from '../helpers/assert.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { configurationOf, setConfiguration } from '../helpers/configuration.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const collect = suite('work/collect')
const root = tempDirectory()
let scenes = 0
const dayMs = 86_400_000
const startMs = Date.UTC(2025, 3, 1, 2)

interface Scene {
  readonly directory: string
  readonly home: string
  readonly staging: string
  readonly notices: NoticeEvent[]
  readonly run: (
    change?: Partial<SetConfiguration> & { day?: number; keep?: number; dryRun?: boolean },
  ) => Promise<CollectOutcome>
  readonly tree: (stamp: string) => string
  readonly entries: (stamp: string) => readonly Entry[]
}

/** A home in a scratch directory and a set `home` of it. */
function scene(at: string = `${root}/${++scenes}`): Scene {
  const directory = at
  const home = `${directory}/home`
  const staging = `${directory}/staging`
  mkdirSync(home, { recursive: true })
  const notices: NoticeEvent[] = []
  const report = (event: ReportEvent): void => void (event.kind === 'notice' && notices.push(event))
  return {
    directory,
    home,
    staging,
    notices,
    run: async ({ day = 0, keep = 7, dryRun = false, ...change } = {}) => {
      const retention = { local: keep, external: 5, keep: {} }
      const set = setConfiguration({ sources: [home], retention, ...change })
      const configuration = configurationOf(set, { staging })
      return await collectSet({ configuration, set, report, nowMs: startMs + day * dayMs, dryRun })
    },
    tree: (stamp) => `${staging}/home/${stamp}${home}`,
    entries: (stamp) => readCollection({ staging, set: 'home', stamp }).entries,
  }
}

async function failureOf(promise: Promise<unknown>): Promise<BackupError> {
  try {
    await promise
  } catch (error) {
    if (error instanceof BackupError) return error
    throw error
  }
  throw new Error('it did not fail')
}

const inode = (path: string): number => lstatSync(path).ino
const paths = (entries: readonly Entry[]): string[] => entries.map(({ path }) => path)
const differences = (a: string, b: string): string =>
  execFileSync('rsync', ['-aHAXSnic', '--numeric-ids', '--delete', `${a}/`, `${b}/`], {
    encoding: 'utf8',
  })

collect('keeps paths whole, and everything that a file has', async () => {
  const { home, run, tree, entries, staging, directory } = scene()
  mkdirSync(`${home}/a/b`, { recursive: true })
  const weird = [
    'new\nline',
    'quo\'te"s',
    '-dash',
    '-rf',
    '$(id)',
    '*?[x]',
    '\\#012',
    'x'.repeat(255),
    ' ',
    '#hash',
    'caf\xc3\xa9',
    '\xff\xfe\x80',
  ]
  for (const name of weird) writeFileSync(Buffer.from(`${home}/a/${name}`, 'latin1'), name)
  linkSync(`${home}/a/-dash`, `${home}/a/b/second`)
  symlinkSync('/nowhere/\n', `${home}/link`)
  execFileSync('mkfifo', [`${home}/fifo`])
  const socket = createServer().listen(`${home}/socket`)
  await new Promise((resolve) => socket.once('listening', resolve))
  setXattr(`${home}/a/-rf`, 'user.x', Buffer.from([0, 255]))
  const hasAcl = spawnSync('setfacl', ['-m', 'u:12345:rw', `${home}/a/-rf`]).status === 0
  execFileSync('touch', ['-d', '1969-12-31T23:59:55.000000123Z', `${home}/a/ `])
  const { stamp, complete, missing } = await run({ snapshot: 'none' })
  socket.close()

  assert.equal(missing, [])
  assert.ok(complete)
  rmSync(`${home}/socket`, { force: true })
  assert.is(
    differences(home, tree(stamp))
      .replace('*deleting   socket\n', '')
      .replace(/^\.d.*\.\/\n/m, ''),
    '',
  )
  const all = entries(stamp)
  const prefix = home.slice(1)
  const entry = (name: string): Entry | undefined =>
    all.find(({ path }) => path === `${prefix}/${name}`)
  assert.equal(paths(all).filter((path) => path.includes('/a/')).length, weird.length + 2)
  assert.is(entry('a/-dash')?.type, 'file')
  assert.equal(
    [entry('a/b/second')?.type, entry('a/b/second')?.target],
    ['link', `${prefix}/a/-dash`],
  )
  assert.equal([entry('link')?.type, entry('link')?.target], ['symlink', '/nowhere/\n'])
  assert.equal([entry('fifo')?.type, entry('socket')?.type], ['fifo', 'socket'])
  assert.is(entry('a/ ')?.mtimeNs, -4_999_999_877n)
  assert.equal(entry('a/-rf')?.xattrs, new Map([['user.x', Buffer.from([0, 255])]]))
  if (hasAcl) assert.match(entry('a/-rf')?.acl ?? '', 'user:12345:rw-\n')
  assert.is(entry('a')?.user, execFileSync('id', ['-un']).toString().trim())
  assert.is(entry('fifo')?.inode, inode(`${tree(stamp)}/fifo`))
  assert.is(readlinkSync(`${staging}/home/latest`), stamp)
  assert.equal(readdirSync(`${staging}/home`).sort(), [stamp, `${stamp}.catalog.zst`, 'latest'])
  assert.is(statSync(staging).mode & 0o777, 0o700)
  assert.ok(directory)
})

collect('writes the catalog in the order of paths by components', async () => {
  const { home, run, entries } = scene()
  for (const name of ['can/x', 'can.h', 'can-d/y', 'b']) {
    mkdirSync(`${home}/${name}`.replace(/\/[^/]*$/, ''), { recursive: true })
    writeFileSync(`${home}/${name}`, '')
  }
  const { stamp } = await run({ snapshot: 'none' })
  const names = paths(entries(stamp))
    .filter((path) => `/${path}`.startsWith(`${home}/`))
    .map((path) => path.slice(home.length))
  assert.equal(names, ['b', 'can', 'can/x', 'can-d', 'can-d/y', 'can.h'])
})

collect('links what did not change, and copies what did', async () => {
  const { home, run, tree } = scene()
  writeFileSync(`${home}/same`, 'same')
  writeFileSync(`${home}/changed`, 'old')
  writeFileSync(`${home}/mode`, 'mode')
  writeFileSync(`${home}/gone`, 'gone')
  const first = await run()
  writeFileSync(`${home}/changed`, 'newer')
  chmodSync(`${home}/mode`, 0o600)
  rmSync(`${home}/gone`)
  const second = await run({ day: 1 })
  assert.is(inode(`${tree(first.stamp)}/same`), inode(`${tree(second.stamp)}/same`))
  assert.is.not(inode(`${tree(first.stamp)}/mode`), inode(`${tree(second.stamp)}/mode`))
  assert.is(readFileSync(`${tree(first.stamp)}/changed`, 'utf8'), 'old')
  assert.is(readFileSync(`${tree(second.stamp)}/changed`, 'utf8'), 'newer')
  assert.is(statSync(`${tree(first.stamp)}/mode`).mode & 0o777, 0o644)
  assert.not.ok(existsSync(`${tree(second.stamp)}/gone`))
  assert.is(second.linkedFiles, 1)
  assert.is(second.copiedBytes, 'newer'.length + 'mode'.length)
})

collect('notices a change within the same second that left the size as it was', async () => {
  const { home, run, tree } = scene()
  writeFileSync(`${home}/file`, 'one')
  setTimes(`${home}/file`, { mtimeNs: 1_700_000_000_000_000_001n })
  await run()
  writeFileSync(`${home}/file`, 'two')
  setTimes(`${home}/file`, { mtimeNs: 1_700_000_000_000_000_002n })
  const { stamp } = await run({ day: 1 })
  assert.is(readFileSync(`${tree(stamp)}/file`, 'utf8'), 'two')
  assert.is(lstatSync(`${tree(stamp)}/file`, { bigint: true }).mtimeNs, 1_700_000_000_000_000_002n)
})

collect('links on a filesystem that keeps whole seconds', async () => {
  if (!canRunAsRoot('a small filesystem')) return
  const { directory, home, run, staging } = scene()
  execFileSync('truncate', ['-s', '24M', `${directory}/image`])
  execFileSync('mkfs.ext4', ['-q', '-I', '128', `${directory}/image`], { stdio: 'ignore' })
  mkdirSync(staging)
  execFileSync('mount', ['-o', 'loop', `${directory}/image`, staging])
  try {
    writeFileSync(`${home}/file`, 'x')
    await run()
    assert.is((await run({ day: 1 })).linkedFiles, 1)
  } finally {
    execFileSync('umount', [staging])
  }
})

collect(
  'never names a collection older than one that is there, whatever the clock says',
  async () => {
    const { run } = scene()
    const first = await run({ day: 1 })
    const second = await run({ day: 0 })
    assert.ok(second.stamp > first.stamp)
  },
)

collect(
  'collects single files, links to directories and links to files under the paths that were given',
  async () => {
    const { directory, home, run, staging } = scene()
    mkdirSync(`${directory}/data/inner`, { recursive: true })
    writeFileSync(`${directory}/data/inner/file`, 'in data')
    symlinkSync('inner/file', `${directory}/data/kept-as-link`)
    symlinkSync(`${directory}/data`, `${home}/data`)
    writeFileSync(`${home}/env.sh`, 'single')
    writeFileSync(`${home}/not-named`, '')
    symlinkSync('../data/inner/file', `${home}/linked-file`)
    const sources = [`${home}/data`, `${home}/env.sh`, `${home}/linked-file`, `${home}/data/`]
    const { stamp, complete } = await run({ sources, snapshot: 'none' })
    const tree = `${staging}/home/${stamp}${home}`
    assert.ok(complete)
    assert.is(readFileSync(`${tree}/data/inner/file`, 'utf8'), 'in data')
    assert.ok(lstatSync(`${tree}/data`).isDirectory())
    assert.is(readlinkSync(`${tree}/data/kept-as-link`), 'inner/file')
    assert.is(readFileSync(`${tree}/env.sh`, 'utf8'), 'single')
    assert.ok(lstatSync(`${tree}/linked-file`).isFile())
    assert.not.ok(existsSync(`${tree}/not-named`))
    assert.not.ok(existsSync(`${staging}/home/${stamp}${directory}/data`))
  },
)

collect('leaves out what the exclusions say, and staging and lost+found always', async () => {
  const { directory, home, run, staging } = scene()
  const files = [
    '.config/Code/Cache/big',
    '.config/Code/keep',
    'tmp/x',
    'deep/tmp/x',
    'a.log',
    'deep/b.log',
    '#x#',
    '!',
    'lost+found/y',
    'keep',
  ]
  for (const file of files) {
    mkdirSync(`${home}/${file}`.replace(/\/[^/]*$/, ''), { recursive: true })
    writeFileSync(`${home}/${file}`, '')
  }
  const exclusions = [`${home}/.config/Code/Cache/*`, 'tmp/*', '*.log', '#x#', '!']
  const { stamp } = await run({ sources: [directory], exclusions, snapshot: 'none' })
  const tree = `${staging}/home/${stamp}${home}`
  const found = execFileSync('find', ['.', '-type', 'f'], { cwd: tree, encoding: 'utf8' })
    .trim()
    .split('\n')
    .sort()
  assert.equal(found, ['./.config/Code/keep', './keep'])
  assert.ok(existsSync(`${tree}/.config/Code/Cache`))
  assert.not.ok(existsSync(`${staging}/home/${stamp}${staging}`))
  assert.not.ok(existsSync(`${tree}/lost+found`))
})

collect('never leaves out a source itself, nor what is above it', async () => {
  const { directory, home, run, tree } = scene()
  writeFileSync(`${home}/file`, '')
  writeFileSync(`${directory}/single`, '')
  const parts = directory.split('/').filter((part) => part !== '')
  const { stamp, complete } = await run({
    sources: [home, `${directory}/single`],
    exclusions: ['home', '*/home', 'single', ...parts, `${directory}/*`],
    snapshot: 'none',
  })
  assert.ok(complete)
  assert.ok(existsSync(`${tree(stamp)}/file`))
  assert.ok(existsSync(`${tree(stamp)}/../single`))
})

collect('leaves out staging whose path has wildcards in it, and nothing else', async () => {
  const { directory } = scene()
  const { run, staging } = scene(`${directory}/we[ir]d *\\`)
  mkdirSync(`${directory}/weird x`)
  writeFileSync(`${directory}/weird x/kept`, '')
  const { stamp } = await run({ sources: [directory], snapshot: 'none' })
  assert.ok(existsSync(`${staging}/home/${stamp}${directory}/weird x/kept`))
  assert.not.ok(existsSync(`${staging}/home/${stamp}${staging}`))
})

collect('names a missing source, and keeps what there is as incomplete', async () => {
  const { home, run, staging, tree } = scene()
  writeFileSync(`${home}/file`, '')
  const first = await run({ snapshot: 'none' })
  const newer = await run({ day: 0, snapshot: 'none' })
  const second = await run({
    day: 1,
    sources: [home, `${home}/none`, '/no/such'],
    snapshot: 'none',
    keep: 1,
  })
  assert.not.ok(second.complete)
  assert.equal(second.missing, [
    { path: `${home}/none`.slice(1), why: 'no such file or directory' },
    { path: 'no/such', why: 'no such file or directory' },
  ])
  assert.is(readlinkSync(`${staging}/home/latest`), newer.stamp)
  assert.equal(
    listCollections({ staging, set: 'home' }).map(({ complete }) => complete),
    [true, true, false],
  )
  assert.ok(existsSync(tree(first.stamp)))
  assert.equal(second.removed, [])
})

collect('fails and leaves nothing behind when no source is there', async () => {
  const { run, staging } = scene()
  const error = await failureOf(run({ sources: ['/no/such', '/nor/this'] }))
  assert.is(error.code, 'SOURCE_ABSENT')
  assert.match(error.message, '/no/such (no such file or directory)')
  assert.not.ok(existsSync(staging))
})

collect('a dry run counts and changes nothing', async () => {
  const { home, run, staging } = scene()
  writeFileSync(`${home}/one`, '12345')
  const preview = await run({ dryRun: true })
  assert.equal([preview.copiedFiles, preview.copiedBytes, preview.complete], [1, 5, true])
  assert.not.ok(existsSync(staging))
  const { stamp } = await run()
  writeFileSync(`${home}/two`, '1')
  const before = execFileSync('find', [staging, '-printf', '%p %i %C@\n']).toString()
  const second = await run({ day: 1, dryRun: true })
  assert.equal([second.copiedFiles, second.linkedFiles], [1, 1])
  assert.is(execFileSync('find', [staging, '-printf', '%p %i %C@\n']).toString(), before)
  assert.ok(stamp)
})

collect('keeps as many complete collections as configured, of this set alone', async () => {
  const { run, home, staging } = scene()
  writeFileSync(`${home}/file`, 'x')
  const stamps: string[] = []
  for (let day = 0; day < 5; day++) stamps.push((await run({ day, keep: 9 })).stamp)
  mkdirSync(`${staging}/home/2001-01-01T000000Z-mine`)
  mkdirSync(`${staging}/home-2/2001-01-01T000000Z`, { recursive: true })
  writeFileSync(`${staging}/home/2001-01-01T000000Z.catalog.zst.mine`, '')
  const { removed, stamp } = await run({ day: 5, keep: 2 })
  assert.equal(removed, stamps.slice(0, 4))
  assert.equal(readdirSync(`${staging}/home`).sort(), [
    '2001-01-01T000000Z-mine',
    '2001-01-01T000000Z.catalog.zst.mine',
    stamps[4],
    `${stamps[4]}.catalog.zst`,
    stamp,
    `${stamp}.catalog.zst`,
    'latest',
  ])
  assert.ok(existsSync(`${staging}/home-2/2001-01-01T000000Z`))
})

collect('puts right what a killed run left, from wherever it was killed', async () => {
  const { run, staging, home } = scene()
  writeFileSync(`${home}/file`, 'x')
  const first = await run()
  const second = await run({ day: 1 })
  const directory = `${staging}/home`
  const [third, fourth, fifth] = ['2025-04-03T020000Z', '2025-04-04T020000Z', '2025-04-05T020000Z']
  writeFileSync(`${directory}/${third}.catalog.zst`, 'the tree was not renamed yet')
  mkdirSync(`${directory}/${third}.partial/x`, { recursive: true })
  writeFileSync(`${directory}/${fourth}.catalog.zst.partial`, 'half')
  mkdirSync(`${directory}/${fifth}/x`, { recursive: true })
  symlinkSync('half', `${directory}/latest.partial`)
  assert.equal(
    listCollections({ staging, set: 'home' }).map(({ stamp }) => stamp),
    [first.stamp, second.stamp],
  )
  const next = await run({ day: 10 })
  assert.equal(readdirSync(directory).sort(), [
    first.stamp,
    `${first.stamp}.catalog.zst`,
    second.stamp,
    `${second.stamp}.catalog.zst`,
    fifth,
    next.stamp,
    `${next.stamp}.catalog.zst`,
    'latest',
  ])
  assert.ok(existsSync(`${directory}/${fifth}/x`), 'a tree that lost its catalog stays')
})

collect('links from an interrupted run of this boot, and never writes into it', async () => {
  const { run, staging, home, tree } = scene()
  writeFileSync(`${home}/old`, 'old')
  utimesSync(`${home}/old`, 1000, 1000)
  const first = await run()
  // What a killed run leaves: a link to the first collection, and a file of its own.
  const partial = `${staging}/home/2025-04-02T020000Z.partial`
  writeFileSync(`${home}/new`, 'new')
  utimesSync(`${home}/new`, 2000, 2000)
  mkdirSync(`${partial}${home}`, { recursive: true })
  linkSync(`${tree(first.stamp)}/old`, `${partial}${home}/old`)
  execFileSync('cp', ['-p', `${home}/new`, `${partial}${home}/new`])
  const copied = inode(`${partial}${home}/new`)
  chmodSync(`${home}/old`, 0o600)
  const second = await run({ day: 2 })
  assert.is(inode(`${tree(second.stamp)}/new`), copied)
  assert.is(statSync(`${tree(first.stamp)}/old`).mode & 0o777, 0o644)
  assert.is(statSync(`${tree(second.stamp)}/old`).mode & 0o777, 0o600)
  assert.not.ok(existsSync(partial))
})

collect(
  'does not trust what an interrupted run copied before the machine was restarted',
  async () => {
    const { run, staging, home, tree } = scene()
    writeFileSync(`${home}/file`, 'right')
    utimesSync(`${home}/file`, 1000, 1000)
    await run()
    writeFileSync(`${home}/file`, 'RIGHT')
    utimesSync(`${home}/file`, 2000, 2000)
    const partial = `${staging}/home/2025-04-02T020000Z.partial${home}`
    mkdirSync(partial, { recursive: true })
    writeFileSync(`${partial}/file`, '\0\0\0\0\0')
    utimesSync(`${partial}/file`, 2000, 2000)
    writeFileSync(`${staging}/.state/home.boot`, 'another boot')
    const { stamp } = await run({ day: 2 })
    assert.is(readFileSync(`${tree(stamp)}/file`, 'utf8'), 'RIGHT')
  },
)

collect('keeps a sparse file of 5 GB sparse', async () => {
  const { home, run, tree, entries } = scene()
  writeFileSync(`${home}/disk`, 'begin')
  truncateSync(`${home}/disk`, 5 * 1024 ** 3)
  const { stamp, bytes } = await run({ snapshot: 'none' })
  assert.is(bytes, 5 * 1024 ** 3)
  assert.ok(statSync(`${tree(stamp)}/disk`).blocks * 512 < 1024 * 1024)
  const sparse = entries(stamp).find(({ path }) => path.endsWith('/disk'))?.sparse
  assert.is(sparse?.length, 1)
  assert.is(sparse?.[0]?.[0], 0)
})

collect('says that a file vanished, and is complete', async () => {
  const { home, run, notices } = scene()
  for (let i = 0; i < 3000; i++) writeFileSync(`${home}/file-${String(i).padStart(4, '0')}`, `${i}`)
  const away = process.env['PATH']
  // A wrapper that removes a file after rsync listed it cannot be timed; one that says so as rsync
  // does can.
  const { directory } = scene()
  writeFileSync(
    `${directory}/rsync`,
    `#!/bin/sh\n/usr/bin/env -i PATH=/usr/local/bin:/usr/bin:/bin LC_ALL=C rsync "$@" || exit
echo 'file has vanished: "${home}/odd\\#012name"' >&2; exit 24\n`,
    { mode: 0o755 },
  )
  process.env['PATH'] = `${directory}:${away}`
  const outcome = await run({ snapshot: 'none' }).finally(() => {
    process.env['PATH'] = away
  })
  assert.ok(outcome.complete)
  assert.match(notices.find(({ code }) => code === 'VANISHED')?.message ?? '', 'odd\\x0aname')
})

collect('gives every other exit code of rsync its meaning', async () => {
  const { directory, run, staging } = scene()
  const away = process.env['PATH']
  writeFileSync(
    `${directory}/rsync`,
    '#!/bin/sh\necho "rsync: [sender] no memory" >&2; exit 22\n',
    { mode: 0o755 },
  )
  process.env['PATH'] = `${directory}:${away}`
  const error = await failureOf(
    run({ snapshot: 'none' }).finally(() => {
      process.env['PATH'] = away
    }),
  )
  assert.is(error.code, 'PROGRAM_FAILED')
  assert.match(error.message, 'exit code 22, it ran out of memory')
  assert.equal(readdirSync(`${staging}/home`), [])
})

collect(
  'says that it was not atomic where there is no snapshot, unless none was wanted',
  async () => {
    const { run, notices, home } = scene()
    await run({ snapshot: 'none' })
    assert.equal(notices, [])
    await run({ day: 1 })
    assert.equal(
      notices.map(({ code }) => code),
      ['NOT_ATOMIC'],
    )
    const error = await failureOf(run({ day: 2, snapshot: 'required' }))
    assert.is(error.code, 'SNAPSHOT_FAILED')
    assert.match(error.message, home)
  },
)

collect(
  'names what cannot be read among what can, and what is in a source that cannot be entered',
  async () => {
    if (!canRunAsRoot('running as another user')) return
    const { directory, home } = scene()
    chmodSync(root, 0o755)
    for (const path of [directory, home]) chmodSync(path, 0o777)
    writeFileSync(`${home}/readable`, 'x')
    writeFileSync(Buffer.from(`${home}/no"t\n\xff\\#100`, 'latin1'), 'x', { mode: 0 })
    mkdirSync(`${home}/closed`, { mode: 0o700 })
    writeFileSync(`${home}/closed/inner`, 'x')
    mkdirSync(`${home}/secret`, { mode: 0 })
    const module = new URL('../../lib/work/collect.js', import.meta.url).href
    const set = setConfiguration({ sources: [home, `${home}/secret`], snapshot: 'none' })
    const script = `
    import { collectSet } from ${JSON.stringify(module)}
    const set = ${JSON.stringify(set)}
    const configuration = ${JSON.stringify(configurationOf(set, { staging: `${directory}/staging` }))}
    const report = () => {}
    const run = (day) => collectSet({
      configuration, set, report, nowMs: ${startMs} + day * 86400000,
    })
    await run(0)
    const { stamp, complete, missing } = await run(1)
    console.log(JSON.stringify({ stamp, complete, missing }))`
    const as = [
      '--reuid',
      '65534',
      '--regid',
      '65534',
      '--clear-groups',
      process.execPath,
      '--input-type=module',
      '-e',
      script,
    ]
    const { stdout, stderr, status } = spawnSync('setpriv', as, {
      encoding: 'utf8',
      env: { PATH: process.env['PATH'], HOME: '/' },
    })
    assert.is(status, 0, stderr)
    const { complete, missing } = JSON.parse(stdout) as CollectOutcome
    assert.not.ok(complete)
    const why = 'permission denied'
    const found = [...missing].sort((a, b) => (a.path < b.path ? -1 : 1))
    assert.equal(found, [
      { path: `${home}/closed`.slice(1), why },
      { path: `${home}/no"t\n\xff\\#100`.slice(1), why },
      { path: `${home}/secret`.slice(1), why },
    ])
  },
)

collect(
  'says when staging is full, leaves what was there, and goes on when there is space',
  async () => {
    if (!canRunAsRoot('a small filesystem')) return
    const { directory, home, run, tree, staging } = scene()
    execFileSync('truncate', ['-s', '24M', `${directory}/image`])
    execFileSync('mkfs.ext4', ['-q', '-m', '0', `${directory}/image`])
    mkdirSync(staging)
    execFileSync('mount', ['-o', 'loop', `${directory}/image`, staging])
    try {
      writeFileSync(`${home}/a-first`, Buffer.alloc(4 * 1024 * 1024, 1))
      const first = await run({ snapshot: 'none' })
      writeFileSync(`${home}/b-second`, Buffer.alloc(4 * 1024 * 1024, 2))
      writeFileSync(`${home}/z-big`, Buffer.alloc(20 * 1024 * 1024, 3))
      const error = await failureOf(run({ day: 1, snapshot: 'none' }))
      assert.is(error.code, 'STAGING_FULL')
      assert.match(error.message, /MiB free in .*; the 1 collections of home there are unharmed/)
      assert.equal(
        listCollections({ staging, set: 'home' }).map(({ stamp }) => stamp),
        [first.stamp],
      )
      assert.is(readFileSync(`${tree(first.stamp)}/a-first`).length, 4 * 1024 * 1024)
      const copied = inode(`${staging}/home/2025-04-02T020000Z.partial${home}/b-second`)
      rmSync(`${home}/z-big`)
      const third = await run({ day: 2, snapshot: 'none' })
      assert.ok(third.complete)
      assert.is(inode(`${tree(third.stamp)}/b-second`), copied)
      assert.equal(
        readdirSync(`${staging}/home`).filter((name) => name.includes('partial')),
        [],
      )
    } finally {
      execFileSync('umount', [staging])
    }
  },
)

collect.run()
