import { spawn, spawnSync } from 'node:child_process'
import {
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'
import { MAIN, type Outcome, runCli } from '../helpers/run-cli.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const collect = suite('backup-collect')
const root = tempDirectory()
let scenes = 0

interface Scene {
  readonly home: string
  readonly staging: string
  readonly environment: Readonly<Record<string, string>>
  readonly run: (...words: string[]) => Promise<Outcome>
}

/** The user's own example of a configuration, with homes of our own. */
function scene(sets?: readonly object[]): Scene {
  const directory = `${root}/${++scenes}`
  const home = `${directory}/home`
  const staging = `${directory}/staging`
  mkdirSync(`${home}/.config/backup`, { recursive: true })
  mkdirSync(`${home}/.config/Code/Cache`, { recursive: true })
  mkdirSync(`${directory}/data`)
  symlinkSync(`${directory}/data`, `${home}/data`)
  writeFileSync(`${directory}/data/file`, 'in data')
  writeFileSync(`${home}/.config/Code/Cache/blob`, 'cached')
  writeFileSync(`${home}/.config/settings`, 'kept')
  writeFileSync(`${home}/env.sh`, 'export A=1')
  const backup_sets = sets ?? [
    { name: 'data', sources: ['~/data'], method: 'rsync', exclusions: ['*.tmp'], snapshot: 'none' },
    {
      name: 'config',
      sources: ['~/.config', '~/env.sh'],
      exclusions: ['~/.config/Code/Cache/*'],
      snapshot: 'none',
    },
  ]
  writeFileSync(`${home}/.config/backup/config.yaml`, JSON.stringify({ backup_sets }))
  const environment = { HOME: home, DBACKUP: staging }
  return {
    home,
    staging,
    environment,
    run: async (...words) => await runCli(['collect', ...words], { environment }),
  }
}

const lines = (text: string): Record<string, unknown>[] =>
  text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
const noPartial = (directory: string): void =>
  assert.equal(
    readdirSync(directory).filter((name) => name.includes('.partial')),
    [],
  )

collect(
  'collects every set, following a linked source and leaving out what is excluded',
  async () => {
    const { home, staging, run } = scene()
    const { status, stdout, stderr } = await run()
    assert.is(status, 0, stderr)
    assert.match(stdout, /^data: \d{4}-\d\d-\d\dT\d{6}Z collected: /m)
    assert.match(stdout, /^config: .* 4 files copied/m)
    const latest = (set: string): string =>
      `${staging}/${set}/${readlinkSync(`${staging}/${set}/latest`)}`
    assert.is(readFileSync(`${latest('data')}${home}/data/file`, 'utf8'), 'in data')
    assert.is(readFileSync(`${latest('config')}${home}/.config/settings`, 'utf8'), 'kept')
    assert.ok(existsSync(`${latest('config')}${home}/env.sh`))
    assert.not.ok(existsSync(`${latest('config')}${home}/.config/Code/Cache/blob`))
  },
)

collect('one set that fails does not stop the others, and the exit code is the worst', async () => {
  const { home, staging, run } = scene([
    { name: 'gone', sources: ['/no/such/thing'], snapshot: 'none' },
    { name: 'half', sources: ['~/env.sh', '/no/such/thing'], snapshot: 'none' },
    { name: 'whole', sources: ['~/env.sh'], snapshot: 'none' },
  ])
  const { status, stderr, stdout } = await run('--json')
  assert.is(status, 1)
  const results = lines(stdout).filter(({ kind }) => kind === 'result')
  assert.equal(
    results.map(({ set, exitCode }) => [set, exitCode]),
    [
      ['gone', 1],
      ['half', 3],
      ['whole', 0],
    ],
  )
  assert.equal(results[1]?.['missing'], [
    { path: 'no/such/thing', why: 'no such file or directory' },
  ])
  assert.match(
    stderr,
    'gone: no source of gone can be read: /no/such/thing (no such file or directory)',
  )
  assert.match(stderr, 'half: missing: /no/such/thing: no such file or directory')
  assert.not.ok(existsSync(`${staging}/gone`))
  assert.not.ok(existsSync(`${staging}/half/latest`))
  const half = await run('--set', 'half')
  assert.is(half.status, 3)
  assert.match(half.stdout, 'collected as INCOMPLETE, 1 missing')
  assert.ok(existsSync(`${home}/env.sh`))
})

collect('a dry run says what would be copied and makes nothing', async () => {
  const { staging, run } = scene()
  const { status, stdout } = await run('--dry-run', '--set', 'data')
  assert.is(status, 0)
  assert.match(stdout, /data: would collect .*: 1 files copied \(7 B/)
  assert.not.ok(existsSync(staging))
})

collect('refuses a set that is not configured', async () => {
  const { status, stderr } = await scene().run('--set', 'date')
  assert.is(status, 2)
  assert.match(stderr, 'there is no set date')
  assert.match(stderr, 'configured are: data, config')
})

collect('a second run at the same time is told who holds the lock', async () => {
  const { staging, run } = scene()
  assert.is((await run('--set', 'data')).status, 0)
  const before = readdirSync(`${staging}/data`)
  const holder = spawn('flock', [`${staging}/.state/data.lock`, 'sleep', '60'], {
    stdio: 'ignore',
    detached: true,
  })
  await sleep(200)
  const { status, stderr } = await run()
  process.kill(-(holder.pid ?? 0), 'SIGKILL')
  assert.is(status, 11)
  assert.match(stderr, 'another run is under way')
  assert.equal(readdirSync(`${staging}/data`), before)
})

for (const [signal, expected] of [
  ['SIGKILL', null],
  ['SIGTERM', 130],
] as const) {
  collect(`after ${signal} while rsync runs, the next run needs no help`, async () => {
    const { home, staging, environment, run } = scene([
      { name: 'big', sources: ['~/big'], snapshot: 'none' },
    ])
    mkdirSync(`${home}/big`)
    for (let i = 0; i < 40; i++)
      writeFileSync(`${home}/big/${String(i).padStart(2, '0')}`, Buffer.alloc(4_000_000, i))
    const child = spawn(process.execPath, [MAIN, 'collect'], {
      env: { PATH: process.env['PATH'], ...environment },
      stdio: 'ignore',
    })
    const copied = (): string[] => {
      const name = existsSync(`${staging}/big`)
        ? readdirSync(`${staging}/big`).find((one) => one.endsWith('.partial'))
        : undefined
      const tree = `${staging}/big/${name}${home}/big`
      return name !== undefined && existsSync(tree) ? readdirSync(tree) : []
    }
    while (copied().length < 5) await sleep(1)
    child.kill(signal)
    const status = await new Promise((resolve) => child.once('exit', resolve))
    assert.is(status, expected)
    const running = (): string => spawnSync('pgrep', ['-f', `rsync.*${staging}`]).stdout.toString()
    // rsync takes almost half a second to end when it is told to.
    for (let tries = 0; tries < 30 && running() !== ''; tries++) await sleep(100)
    assert.is(running(), '', 'rsync has ended, too')
    const before = copied().filter((name) => !name.startsWith('.'))
    assert.ok(before.length < 40)
    assert.not.ok(existsSync(`${staging}/big/latest`))
    const second = await run('--json')
    assert.is(second.status, 0, second.stderr)
    const result = lines(second.stdout).find(({ kind }) => kind === 'result')
    assert.is(Number(result?.['copiedFiles']) + before.length, 40)
    noPartial(`${staging}/big`)
    const tree = `${staging}/big/latest/${home}/big`
    for (let i = 0; i < 40; i++) {
      assert.ok(
        readFileSync(`${tree}/${String(i).padStart(2, '0')}`).equals(Buffer.alloc(4_000_000, i)),
      )
    }
    rmSync(`${home}/big`, { recursive: true })
    rmSync(staging, { recursive: true })
  })
}

collect.run()
