// Staging on btrfs, end to end: generations are read-only subvolumes, exports stay incremental, and
// what comes back is what was collected (invariant 6).

import { spawnSync } from 'node:child_process'
import {
  appendFileSync,
  chmodSync,
  linkSync,
  mkdirSync,
  readdirSync,
  renameSync,
  rmSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs'
import { suite } from 'uvu'
import * as assert from '../helpers/assert.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { randomBytes } from 'node:crypto'
import {
  type Exported,
  type Scenario,
  assertNoLeftovers,
  assertWhole,
  configure,
  exportedBy,
  inventory,
  makeScenario,
} from '../helpers/scenario.ts'

const staging = suite('staging on btrfs')

const differences = (a: string, b: string): string =>
  spawnSync('rsync', ['-aHAXSnic', '--delete', `${a}/`, `${b}/`], { encoding: 'utf8' }).stdout

const isReadOnly = (path: string): boolean =>
  spawnSync('btrfs', ['property', 'get', path, 'ro'], { encoding: 'utf8' }).stdout === 'ro=true\n'

async function generation(scenario: Scenario): Promise<Exported> {
  const collected = await scenario.collect()
  assert.is(collected.status, 0, collected.stderr)
  const exported = await scenario.external('--json')
  assert.is(exported.status, 0, exported.stderr + exported.stdout)
  return exportedBy(exported)
}

if (canRunAsRoot('staging on a btrfs loop mount')) {
  staging(
    'a day of edits is collected exactly, older generations stay, and little is exported',
    async () => {
      const device = loopDevice({ sizeMib: 512, type: 'btrfs' })
      const scenario = await makeScenario()
      const { source } = scenario
      const place = `${device.path}/staging`
      mkdirSync(place)
      configure(scenario, (c) => {
        c['staging'] = place
        c['retention'] = { local: 3 }
      })
      mkdirSync(`${source}/deep/er`, { recursive: true })
      for (let i = 0; i < 30; i++) writeFileSync(`${source}/deep/${i}`, randomBytes(20_000))
      writeFileSync(`${source}/twin`, 'twin')
      linkSync(`${source}/twin`, `${source}/deep/twin`)
      const first = await generation(scenario)
      const tree = (stamp: string) => `${place}/data/${stamp}`
      assert.ok(isReadOnly(tree(first.stamp)))
      const before = inventory(tree(first.stamp))

      renameSync(`${source}/deep/3`, `${source}/moved`)
      unlinkSync(`${source}/deep/4`)
      chmodSync(`${source}/deep/5`, 0o600)
      appendFileSync(`${source}/deep/6`, 'more')
      // A hard link less, and the other name changes: rsync alone would change both.
      unlinkSync(`${source}/deep/twin`)
      writeFileSync(`${source}/deep/twin`, 'twin')
      chmodSync(`${source}/deep/twin`, 0o640)
      const second = await generation(scenario)
      assert.is(differences(`${source}`, `${tree(second.stamp)}${source}`), '')
      assert.equal(inventory(tree(first.stamp)), before, 'the first one is as it was')
      assert.ok(second.dataBytes < 30_000, `${second.dataBytes} bytes for one edited file`)

      const third = await generation(scenario)
      assert.is(third.dataBytes, 0, 'nothing changed, nothing is exported')
      await scenario.collect()
      await scenario.collect()
      const left = readdirSync(`${place}/data`).filter((name) => name.endsWith('Z'))
      assert.is(left.length, 3, 'retention lets subvolumes go')
      assertNoLeftovers(`${place}/data`)
      await assertWhole(scenario)
      const into = `${scenario.directory}/into`
      assert.is((await scenario.restore('--into', into)).status, 0)
      assert.is(differences(source, `${into}${source}`), '')
      device.unmount()
    },
  )

  staging(
    'an exclusion and a source that are gone from the configuration are gone from the next one',
    async () => {
      const device = loopDevice({ sizeMib: 256, type: 'btrfs' })
      const scenario = await makeScenario()
      const { source } = scenario
      const place = `${device.path}/staging`
      mkdirSync(place)
      const other = `${scenario.home}/other`
      mkdirSync(other)
      writeFileSync(`${other}/file`, 'x')
      for (const name of ['keep', 'log.txt']) writeFileSync(`${source}/${name}`, name)
      configure(scenario, (c) => {
        c['staging'] = place
        c['backup_sets'][0].sources.push(other)
        c['backup_sets'][0].suspect_loss = 1
      })
      assert.is((await scenario.collect()).status, 0)
      configure(scenario, (c) => {
        c['backup_sets'][0].sources.pop()
        c['backup_sets'][0].exclusions = ['log.*']
      })
      assert.is((await scenario.collect()).status, 0)
      const paths = [...inventory(`${place}/data/latest/`).keys()]
      assert.ok(paths.some((path) => path.endsWith('/keep')))
      assert.not.ok(
        paths.some((path) => /log\.txt|other/.test(path)),
        paths.join('\n'),
      )
      device.unmount()
    },
  )

  staging('a file that became a directory is one in the next collection', async () => {
    const device = loopDevice({ sizeMib: 256, type: 'btrfs' })
    const scenario = await makeScenario()
    const { source } = scenario
    const place = `${device.path}/staging`
    mkdirSync(place)
    configure(scenario, (c) => (c['staging'] = place))
    writeFileSync(`${source}/a`, 'a')
    writeFileSync(`${source}/b`, 'b')
    assert.is((await scenario.collect()).status, 0)
    rmSync(`${source}/b`)
    mkdirSync(`${source}/b`)
    writeFileSync(`${source}/b/inside`, 'now a directory')
    assert.is((await scenario.collect()).status, 0)
    assert.is(differences(source, `${place}/data/latest${source}`), '')
    device.unmount()
  })
}

staging.run()
