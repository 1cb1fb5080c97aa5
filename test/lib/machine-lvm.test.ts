// No device-mapper is here: lvs, vgs, lvcreate, lvremove, mount and umount are stand-ins, written
// from lvs(8), lvmthin(7), lvmreport(7) and, for the JSON, from
// https://github.com/amazonlinux/amazon-linux-2023/issues/698. What is mounted is a copy, bound.

import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import { lvmProvider } from '../../lib/machine/source-snapshot/lvm.ts'
import type { ProviderRequest } from '../../lib/machine/source-snapshot/source-snapshot.ts'
import * as assert from '../helpers/assert.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { withPrograms } from '../helpers/stand-in.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const lvm = suite('machine/source-snapshot/lvm')
const root = tempDirectory()
const home = `${root}/home`
const state = `${root}/state`
const volumes = `${root}/volumes`
const calls = `${root}/calls`
const own = 'backup-home-2025-04-01T020000Z'
const listed = 'vg thin V pool \nvg thick - - \nvg backup-home-2024-01-01T000000Z V pool thin\n'

/** A line a volume: group, name, first letter of its attributes, pool, origin. */
const row = `{"vg_name":"%s","lv_name":"%s","lv_attr":"%swi-aotz--","pool_lv":"%s","origin":"%s"}`
const programs = {
  lvs: `
    [ "$1 $2 $3 $4" = "--reportformat json -o vg_name,lv_name,lv_attr,pool_lv,origin" ] || exit 3
    [ -e ${root}/deaf ] && { echo "Giving up waiting for lock" >&2; exit 5; }
    name=$(echo "$5" | sed 's,^/dev/mapper/vg-,,; s,^/dev/vg/,,; s,^vg/,,; s,^vg$,[^ ]*,')
    grep "^vg $name " ${volumes} > ${volumes}.found ||
      { echo "Failed to find logical volume" >&2; exit 5; }
    comma=; printf '{"report": [{"lv": ['
    while read -r group name attributes pool origin; do
      [ "$pool" = - ] && pool= origin=
      printf "$comma"'${row}' "$group" "$name" "$attributes" "$pool" "$origin"; comma=,
    done < ${volumes}.found
    echo ']}]}'`,
  vgs: `[ "$1" = vg ] && [ ! -e ${root}/away ]`,
  lvcreate: `
    echo "lvcreate $*" >> ${calls}
    echo "vg $4 V pool thin" >> ${volumes}; cp -a ${home} ${root}/taken`,
  lvremove: `
    echo "lvremove $*" >> ${calls}
    grep -v "^vg \${2#vg/} " ${volumes} > ${volumes}.new; mv ${volumes}.new ${volumes}
    rm -rf ${root}/taken`,
  mount: `echo "mount $*" >> ${calls}; PATH=/usr/bin:/bin mount --bind ${root}/taken "$7"`,
}

function request(device: string, type: string): ProviderRequest {
  const mount = { root: '/', point: home, type, device }
  const parts = [{ given: `${home}/me`, real: `${home}/me`, mount }]
  return { state, set: 'home', stamp: '2025-04-01T020000Z', parts, now: () => 1 }
}

async function failure(action: Promise<unknown>): Promise<BackupError> {
  const error = await action.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  assert.ok(error instanceof BackupError, String(error))
  return error
}

mkdirSync(`${home}/me`, { recursive: true })
mkdirSync(state)

const test = (title: string, action: () => Promise<void>, changed: Partial<typeof programs> = {}) =>
  lvm(title, async () => {
    writeFileSync(`${home}/me/file`, 'at that moment')
    writeFileSync(volumes, listed)
    writeFileSync(calls, '')
    await withPrograms({ ...programs, ...changed }, action)
    assert.is(readFileSync(volumes, 'utf8'), listed)
    assert.equal(readdirSync(state), [])
  })

lvm('takes what can be a logical volume with a filesystem it knows how to mount', () => {
  const takes = (device: string, type: string): boolean =>
    lvmProvider.takes({ root: '/', point: '/', device, type })
  assert.ok(takes('/dev/mapper/vg-root', 'ext4'))
  assert.ok(takes('/dev/vg/root', 'xfs'))
  assert.not(takes('/dev/sda1', 'ext4'))
  assert.not(takes('/dev/mapper/vg-root', 'btrfs'))
  assert.not(takes('/dev/mapper/vg-root', 'toString'))
})

test('refuses a device that is no thin volume', async () => {
  for (const device of ['/dev/mapper/vg-thick', '/dev/mapper/luks']) {
    const error = await failure(lvmProvider.take(request(device, 'ext4')))
    assert.is(error.code, 'SNAPSHOT_FAILED')
    assert.match(error.message, `${device} is no LVM thin volume`)
  }
  assert.is(readFileSync(calls, 'utf8'), '')
})

test(
  'leaves nothing where the snapshot cannot be made',
  async () => {
    const error = await failure(lvmProvider.take(request('/dev/mapper/vg-thin', 'ext4')))
    assert.match(error.message, 'pool is full')
  },
  { lvcreate: 'echo "  thin pool is full" >&2; exit 5' },
)

/** A snapshot of the same volume under the name of this run, which another staging has made. */
const foreign = `vg ${own} V pool thin\n`

test(
  'removes no snapshot that somebody makes before it does, under its name',
  async () => {
    const error = await failure(lvmProvider.take(request('/dev/mapper/vg-thin', 'ext4')))
    assert.match(error.message, 'already exists')
    assert.is(readFileSync(volumes, 'utf8'), `${listed}${foreign}`)
    writeFileSync(volumes, listed)
  },
  {
    lvcreate: `
      echo "vg $4 V pool thin" >> ${volumes}
      echo "  Logical Volume already exists in volume group" >&2; exit 5`,
  },
)

test(
  'removes a snapshot whose command was killed when it had made it',
  async () => {
    const error = await failure(lvmProvider.take(request('/dev/mapper/vg-thin', 'ext4')))
    assert.match(error.message, 'killed')
    assert.is(readFileSync(calls, 'utf8'), `lvremove -f vg/${own}\n`)
  },
  { lvcreate: `echo "vg $4 V pool thin" >> ${volumes}; kill -9 $$` },
)

test('keeps the record of a snapshot while lvs fails', async () => {
  writeFileSync(volumes, `${listed}${foreign}`)
  const record = { group: 'vg', volume: 'thin', name: own }
  writeFileSync(`${state}/lvm-home.json`, JSON.stringify([record]))
  writeFileSync(`${root}/deaf`, '')
  const error = await failure(lvmProvider.sweep({ state, set: 'home' })).finally(() =>
    rmSync(`${root}/deaf`),
  )
  assert.match(error.message, 'Giving up')
  assert.equal(readdirSync(state), ['lvm-home.json'])
  await lvmProvider.sweep({ state, set: 'home' })
})

if (canRunAsRoot('stand-in mounts for LVM')) {
  for (const [type, options] of [
    ['ext4', 'ro,noload,nosuid,nodev,noexec'],
    ['xfs', 'ro,nouuid,norecovery,nosuid,nodev,noexec'],
  ] as const) {
    test(`shows a thin volume with ${type} as it was, and removes its snapshot`, async () => {
      const taken = await lvmProvider.take(request('/dev/mapper/vg-thin', type))
      writeFileSync(`${home}/me/file`, 'later')
      const place = `${state}/lvm-home/0`
      assert.equal(taken.shown, [{ given: `${home}/me`, what: `${place}/me`, timeMs: 1 }])
      assert.is(readFileSync(`${place}/me/file`, 'utf8'), 'at that moment')
      assert.equal(taken.names, [`vg/${own}`])
      await taken.release()
      assert.equal(readFileSync(calls, 'utf8').split('\n'), [
        `lvcreate -s vg/thin -n ${own} -kn -ay`,
        `mount -t ${type} -o ${options} -- /dev/vg/${own} ${place}`,
        `lvremove -f vg/${own}`,
        '',
      ])
    })
  }

  test('takes the next name where somebody has its name, and removes its own only', async () => {
    writeFileSync(volumes, `${listed}${foreign}`)
    const taken = await lvmProvider.take(request('/dev/mapper/vg-thin', 'ext4'))
    assert.equal(taken.names, [`vg/${own}-2`])
    await taken.release()
    assert.is(readFileSync(volumes, 'utf8'), `${listed}${foreign}`)
    writeFileSync(volumes, listed)
  })

  test('sweeps what a killed run left, and keeps the record of a group that is away', async () => {
    await lvmProvider.take(request('/dev/vg/thin', 'ext4'))
    writeFileSync(`${root}/away`, '')
    await lvmProvider.sweep({ state, set: 'home' })
    assert.equal(readdirSync(state), ['lvm-home.json'])
    rmSync(`${root}/away`)
    await lvmProvider.sweep({ state, set: 'home' })
  })

  test('removes no volume of a recorded name that is no snapshot of the volume', async () => {
    const record = { group: 'vg', volume: 'thick', name: 'backup-home-2024-01-01T000000Z' }
    writeFileSync(`${state}/lvm-home.json`, JSON.stringify([record]))
    await lvmProvider.sweep({ state, set: 'home' })
    assert.is(readFileSync(calls, 'utf8'), '')
  })
}

lvm.run()
