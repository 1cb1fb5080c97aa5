import { spawnSync } from 'node:child_process'
import { lstatSync, mkdirSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { statSource } from '../../lib/machine/statx.ts'
import { rawPathFromText } from '../../lib/model/raw-path.ts'
import { readCollection } from '../../lib/work/staging.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { randomOfRun } from '../helpers/random.ts'
import { makeScenario } from '../helpers/scenario.ts'

const fidelity = suite('what rsync cannot carry')
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

fidelity.run()
