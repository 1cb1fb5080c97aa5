import { spawnSync } from 'node:child_process'
import { lstatSync, mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { suite } from 'uvu'
import { statSource } from '../../lib/machine/statx.ts'
import { takePath } from '../../lib/model/entry.ts'
import { isWithin, type RawPath, rawPathFromText } from '../../lib/model/raw-path.ts'
import { readCollection } from '../../lib/work/staging.ts'
import * as assert from '../helpers/assert.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { randomOfRun } from '../helpers/random.ts'
import { MAIN, type Outcome, runCli } from '../helpers/run-cli.ts'
import {
  type Properties,
  type Scenario,
  configure,
  jsonLines,
  makeScenario,
  script,
} from '../helpers/scenario.ts'
import { plantTorture, releaseTree, treeDifferences } from '../helpers/torture-tree.ts'

const fidelity = suite('fidelity')
const FLAGGED = ['kept/file', 'kept/dir', 'kept/append']

if (canRunAsRoot('chattr')) {
  fidelity('flags come back from both sources, and births are in the catalog', async () => {
    const scenario = await makeScenario()
    const { source, staging, directory } = scenario
    mkdirSync(`${source}/kept/dir`, { recursive: true })
    for (const name of ['file', 'append', 'plain', 'dir/inside']) {
      writeFileSync(`${source}/kept/${name}`, name)
    }
    const chattr = (root: string, sign: '+' | '-') => {
      const paths = FLAGGED.map((name) => `${root}/${name}`)
      // Nothing else can be set while a file is immutable.
      spawnSync('chattr', [sign === '+' ? '+di' : '-di', paths[0]!])
      spawnSync('chattr', [`${sign}i`, paths[1]!])
      spawnSync('chattr', [`${sign}a`, paths[2]!])
    }
    const expected: Record<string, readonly string[]> = {
      'kept/file': ['immutable', 'nodump'],
      'kept/dir': ['immutable'],
      'kept/append': ['append'],
      'kept/plain': [],
      'kept/dir/inside': [],
    }
    const roots = [source, `${directory}/one${source}`, `${directory}/two${source}`]
    chattr(source, '+')
    try {
      const { stamp } = await scenario.generation()
      const { entries } = readCollection({ staging, set: 'data', stamp })
      for (const [name, flags] of Object.entries(expected)) {
        const path = `${source}/${name}`
        const entry = entries.find((one) => one.path === rawPathFromText(path.slice(1)))!
        assert.is(entry.birthNs, lstatSync(path, { bigint: true }).birthtimeNs, name)
        assert.equal(entry.flags ?? [], flags, name)
      }
      for (const [into, from] of [
        ['one', 'local'],
        ['two', 'external'],
      ] as const) {
        mkdirSync(`${directory}/${into}`)
        const words = ['--source', from, '--into', `${directory}/${into}`]
        const identity = from === 'external' ? ['--identity', scenario.identity] : []
        const restored = await scenario.run('restore', ...words, ...identity)
        assert.is(restored.status, 0, restored.stderr)
        for (const [name, flags] of Object.entries(expected)) {
          const path = rawPathFromText(`${directory}/${into}${source}/${name}`)
          assert.equal(statSource(path).flags, flags, `${from} ${name}`)
        }
      }
      const verified = await scenario.restore('--verify')
      assert.is(verified.status, 0, verified.stderr)
    } finally {
      for (const root of roots) chattr(root, '-')
    }
  })

  fidelity('a flag that turns up later is a new header, and no content', async () => {
    const scenario = await makeScenario()
    writeFileSync(`${scenario.source}/f`, randomOfRun('content').bytes(1_000_000))
    await scenario.generation()
    spawnSync('chattr', ['+d', `${scenario.source}/f`])
    const exported = await scenario.generation()
    assert.ok(exported.dataBytes > 0)
    assert.ok(exported.dataBytes < 100_000, String(exported.dataBytes))
  })
}

/** What a restore said of each path below the source: the words of treeDifferences. */
function listedBy(outcome: Outcome, source: string): Map<RawPath, readonly string[]> {
  const [result] = jsonLines(outcome, 'result')
  const top = rawPathFromText(source.slice(1))
  const listed = new Map<RawPath, readonly string[]>()
  const list = (named: Properties, what: readonly string[]): void => {
    const path = takePath(named, 'path') ?? ''
    // The directories above the source are made too, and are root's.
    if (path !== top && isWithin({ path: top, directory: path })) return
    listed.set(path.slice(top.length + 1), [
      ...(listed.get(path.slice(top.length + 1)) ?? []),
      ...what,
    ])
  }
  for (const one of result!['failures']) list(one, ['missing'])
  for (const one of result!['lost'] as (Properties & { what: string[] })[]) {
    list(one, one.what[0]!.startsWith('socket') ? ['missing'] : one.what)
  }
  return listed
}

/** Nothing is lost without a word, and nothing is said to be lost that is there. */
function assertListed(
  outcome: Outcome,
  { source, restored }: { readonly source: string; readonly restored: string },
): void {
  const found = [...treeDifferences(source, restored)].map(([path, what]) => [path, what])
  const listed = [...listedBy(outcome, source)].map(([path, what]) => [path, [...what].sort()])
  const sorted = (pairs: unknown[][]): string[] => pairs.map((pair) => JSON.stringify(pair)).sort()
  assert.equal(sorted(found), sorted(listed), outcome.stderr)
}

/** Paths that restoring as root may leave out: it says so. */
const LEFT_OUT = /^kinds\/socket$|\/\.backup-restore-[\d-]+\.partial$/

async function runAsNobody(home: string, ...words: string[]): Promise<Outcome> {
  // runuser gives its child nobody's own home.
  const program = ['runuser', '-u', 'nobody', '--', 'env', `HOME=${home}`, process.execPath, MAIN]
  return await runCli(words, { environment: {}, program, workingDirectory: '/' })
}

function letNobodyIn({ directory }: Scenario): void {
  script('chmod a+x "$1" "$2"', dirname(directory), directory)
}

if (canRunAsRoot('the torture tree')) {
  let planted: Promise<Scenario> | undefined

  /** One for the tests that only read its export. */
  async function torture(): Promise<Scenario> {
    return await (planted ??= (async () => {
      const scenario = await makeScenario()
      process.prependListener('exit', () => releaseTree(scenario.directory))
      plantTorture(scenario.source, { asRoot: true })
      await scenario.generation()
      return scenario
    })())
  }

  for (const from of ['local', 'external'] as const) {
    fidelity(`${from}: root gets the torture tree back, and stock programs see it`, async () => {
      const { source, directory, identity, run } = await torture()
      const into = `${directory}/${from}`
      mkdirSync(into)
      const words = ['--source', from, '--into', into, '--identity', identity, '--json']
      const outcome = await run('restore', ...words)
      const restored = into + source
      assertListed(outcome, { source, restored })
      const listed = [...listedBy(outcome, source).keys()]
      assert.equal(
        listed.filter((path) => !LEFT_OUT.test(path)),
        [],
      )
      // Flags hinder rsync from looking closely, and it does not know them.
      releaseTree(restored)
      const seen = script('rsync -aHAXSnic --delete "$1/" "$2/"', source, restored)
      const missed = seen.split('\n').filter((line) => line !== '' && !line.startsWith('.d..t'))
      assert.equal(
        missed.filter((line) => !LEFT_OUT.test(line.slice(12))),
        [],
      )
      const others = "find . ! -name socket ! -name '.backup-restore-*' -print0 | sort -z"
      for (const program of ['getfacl -P -n', 'getcap']) {
        const [a, b] = [source, restored].map((at) => {
          return script(`cd "$1"; ${others} | xargs -0 ${program}`, at)
        })
        assert.is(b, a, program)
      }
    })
  }

  fidelity('a plain user gets what may be had of it, and each loss is listed', async () => {
    const scenario = await torture()
    const { source, directory, configuration, identity, staging, target } = scenario
    letNobodyIn(scenario)
    const home = `${directory}/nobody`
    const own = `${home}/.config/backup`
    mkdirSync(own, { recursive: true })
    const text = readFileSync(configuration, 'utf8').replace(staging, `${home}/staging`)
    writeFileSync(`${own}/config.yaml`, text)
    writeFileSync(`${own}/identity.txt`, readFileSync(identity), { mode: 0o600 })
    const into = `${directory}/for-nobody`
    mkdirSync(into)
    script('chmod -R a+rX "$1"; chown -R nobody "$2" "$3"', target, home, into)
    const words = ['--source', 'external', '--into', into, '--json']
    const outcome = await runAsNobody(home, 'restore', ...words)
    assertListed(outcome, { source, restored: into + source })
    const listed = listedBy(outcome, source)
    assert.equal(listed.get('modes/f0640'), ['owner', 'group'])
    // Nobody becomes somebody else by a file that never was theirs.
    assert.equal(listed.get('modes/f4755'), ['owner', 'group', 'mode'])
    assert.is(statSync(`${into}${source}/modes/f6711`).mode & 0o7777, 0o711)
    assert.equal(listed.get('kinds/char'), ['missing'])
    assert.ok(listed.get('attributes/some')?.includes('xattr trusted.secret'))
    assert.not.ok(listed.get('attributes/read-only')?.includes('xattr user.kept'))
    assert.not.ok(listed.get('flags/d')?.includes('flag nodump'))
  })

  fidelity('what is a plain user’s own comes back whole, collected by that user', async () => {
    const scenario = await makeScenario()
    const { source, directory, home, identity } = scenario
    plantTorture(source, { asRoot: false })
    letNobodyIn(scenario)
    script('chown -hR nobody:nogroup "$1"', directory)
    // Changing the owner took these bits away.
    script('cd "$1/modes"; for m in 2755 4755 6711 7777; do chmod $m f$m d$m; done', source)
    for (const phase of ['collect', 'external']) {
      const { status, stderr } = await runAsNobody(home, phase)
      assert.is(status, 0, stderr)
    }
    for (const from of ['local', 'external']) {
      const into = `${directory}/${from}`
      mkdirSync(into)
      script('chown nobody "$1"', into)
      const words = ['--source', from, '--into', into, '--identity', identity, '--json']
      const outcome = await runAsNobody(home, 'restore', ...words)
      assertListed(outcome, { source, restored: into + source })
      assert.equal(
        [...listedBy(outcome, source).keys()].filter((path) => !LEFT_OUT.test(path)),
        [],
      )
    }
  })

  fidelity(
    'an attribute that a filesystem cannot hold costs only itself, and is named',
    async () => {
      const { path: drive } = loopDevice({ sizeMib: 320, type: 'xfs' })
      const scenario = await makeScenario()
      const { directory, identity, run } = scenario
      const source = `${drive}/source`
      mkdirSync(source)
      script(
        `cd "$1"; printf x >f; printf y >g; setfattr -n user.small -v kept f
      setfattr -n user.large -v "0x$(printf '%0120000d' 7)" f; touch -d @9000000000.5 f`,
        source,
      )
      const use = (staging: string): void =>
        configure(scenario, (properties) => {
          properties['backup_sets'][0]['sources'] = [source]
          properties['staging'] = staging
        })
      // ext4 says that it is full; staging is not.
      use(scenario.staging)
      const collected = await scenario.collect('--json')
      assert.is(collected.status, 3, collected.stderr)
      const [result] = jsonLines(collected, 'result')
      const missing = {
        path: `${source.slice(1)}/f`,
        why: 'its attribute user.large cannot be kept in staging: no space left on device',
      }
      assert.equal(result!['missing'], [missing])
      use(`${drive}/staging`)
      await scenario.generation()
      for (const from of ['local', 'external']) {
        for (const [at, lost] of [
          [drive, []],
          [directory, [['f', ['xattr user.large']]]],
        ] as const) {
          const into = `${at}/${from}`
          mkdirSync(into)
          const words = ['--source', from, '--into', into, '--identity', identity, '--json']
          const outcome = await run('restore', ...words)
          assert.equal([...listedBy(outcome, source)], lost, outcome.stderr)
          assertListed(outcome, { source, restored: into + source })
        }
      }
    },
  )
}

fidelity(
  'hard links of a partial selection are links to one another wherever they lie',
  async () => {
    const scenario = await makeScenario()
    const { source, directory, identity, run } = scenario
    script(
      `cd "$1"; mkdir a b c; printf one >a/1; ln a/1 b/2; ln a/1 b/3; ln a/1 c/4
    printf two >a/x; ln a/x c/y; ln a/x c/z`,
      source,
    )
    await scenario.generation()
    const choose = async (into: string, from: string, ...paths: string[]): Promise<string> => {
      mkdirSync(into)
      const words = paths.flatMap((path) => ['--path', `${source}/${path}`])
      const all = ['--source', from, '--into', into, '--identity', identity, ...words]
      const { status, stderr } = await run('restore', ...all)
      assert.is(status, 0, stderr)
      return into + source
    }
    for (const from of ['local', 'external']) {
      const several = await choose(`${directory}/several-${from}`, from, 'b', 'c')
      assert.equal(readdirSync(several), ['b', 'c'])
      const inodes = ['b/2', 'b/3', 'c/4', 'c/y', 'c/z'].map(
        (path) => statSync(`${several}/${path}`).ino,
      )
      assert.is(new Set(inodes).size, 2)
      assert.is(statSync(`${several}/c/4`).nlink, 3)
      assert.is(readFileSync(`${several}/c/4`, 'utf8'), 'one')
      assert.is(readFileSync(`${several}/c/z`, 'utf8'), 'two')
      // The second of three alone, and then the third with the first: each a file in itself.
      const into = `${directory}/single-${from}`
      const single = await choose(into, from, 'b/3', 'b/3')
      assert.equal(readdirSync(single), ['b'])
      assert.equal(readdirSync(`${single}/b`), ['3'])
      assert.is(statSync(`${single}/b/3`).nlink, 1)
      assert.is(readFileSync(`${single}/b/3`, 'utf8'), 'one')
    }
  },
)

fidelity.run()
