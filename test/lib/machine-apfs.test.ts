// No Mac is here: tmutil, mount_apfs and umount are stand-ins. What they print and take was seen in:
//   https://github.com/brechtm/thriftybackup/issues/1     mount_apfs and its refusal
//   https://gist.github.com/maximko/c78c43ad5cf79b96ab8f2fa6c6ce1d96   the whole sequence
//   https://github.com/duplicati/duplicati/issues/6409    names of snapshots
//   https://github.com/kimono-koans/httm/issues/126       a mounted snapshot in `mount`
//   https://github.com/ahl/apfs/issues/2                  why it has to be tmutil
//   https://github.com/vimalloc/apfs-auto-snapshot/issues/1   snapshots that vanish

import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { suite } from 'uvu'
import { BackupError } from '../../lib/errors.ts'
import {
  apfsProviderOn,
  FULL_DISK_ACCESS_FIX,
  fullDiskAccess,
} from '../../lib/machine/source-snapshot/apfs.ts'
import { type Mount, parseMountLines } from '../../lib/machine/source-snapshot/mounts.ts'
import type { ProviderRequest } from '../../lib/machine/source-snapshot/source-snapshot.ts'
import * as assert from '../helpers/assert.ts'
import { withPrograms } from '../helpers/stand-in.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const apfs = suite('machine/source-snapshot/apfs')
const root = tempDirectory()
const home = `${root}/home`
const state = `${root}/state`
const data = `${root}/data`
const dates = `${root}/dates`
const mounts = `${root}/mounts`
const place = `${state}/apfs-home/0`
const date = '2025-04-01-020000'
const foreign = '2025-03-31-230000'
const name = `com.apple.TimeMachine.${date}.local`
const provider = apfsProviderOn({
  dataVolume: data,
  listMounts: async () => parseMountLines(readFileSync(mounts, 'latin1').split('\n')),
})
const volumes =
  '/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)\n'
  + 'devfs on /dev (devfs, local, nobrowse)\n'
  + `/dev/disk3s5 on ${data} (apfs, local, journaled, nobrowse, protect)\n`
  + 'map auto_home on /System/Volumes/Data/home (autofs, automounted, nobrowse)\n'

/** What the programs print and do, with a file each for the snapshots and the mounts there are. */
const tmutil = `
  case $1 in
    localsnapshot) echo ${date} >> ${dates}; cp -a ${home} ${root}/taken
      echo 'NOTE: local snapshots are considered purgeable and may be removed at any time by deleted(8).'
      echo 'Created local snapshot with date: ${date}';;
    listlocalsnapshotdates) echo 'Snapshot dates for all disks:'; cat ${dates};;
    deletelocalsnapshots) grep -qx "$2" ${dates} || exit 1
      grep -vx "$2" ${dates} > ${dates}.new; mv ${dates}.new ${dates}
      rm -rf ${root}/taken; echo "Deleted local snapshot '$2'";;
    *) exit 64;;
  esac`
const programs = {
  tmutil,
  mount_apfs: `
    [ "$1 $2 $3 $4 $5" = "-s ${name} -o ro,nobrowse ${data}" ] || exit 64
    mkdir -p "$6${root}" && cp -a ${root}/taken "$6${home}"
    echo "${name}@/dev/disk3s5 on $6 (apfs, local, read-only, journaled, nobrowse)" >> ${mounts}`,
  umount: `
    rm -rf "$1"/*; grep -v " on $1 " ${mounts} > ${mounts}.new; mv ${mounts}.new ${mounts}`,
}

function request(...sources: string[]): ProviderRequest {
  const mount = parseMountLines(volumes.split('\n'))[0] as Mount
  const parts = sources.map((given) => ({ given, real: given, mount }))
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

function setUp(): void {
  mkdirSync(`${home}/me`, { recursive: true })
  mkdirSync(state, { recursive: true })
  // As a firmlink does: the path from the Data volume's top is the path from `/`.
  mkdirSync(data)
  symlinkSync(`/${root.split('/')[1]}`, `${data}/${root.split('/')[1]}`)
}

const test = (title: string, action: () => Promise<void>, changed: Partial<typeof programs> = {}) =>
  apfs(title, async () => {
    writeFileSync(`${home}/me/file`, 'at that moment')
    writeFileSync(dates, `${foreign}\n`)
    writeFileSync(mounts, volumes)
    await withPrograms({ ...programs, ...changed }, action)
    assert.is(readFileSync(dates, 'utf8'), `${foreign}\n`)
    assert.is(readFileSync(mounts, 'utf8'), volumes)
    assert.equal(readdirSync(state), [])
  })

setUp()

apfs('takes mounted volumes, and no mounted snapshot', () => {
  const lines = [...volumes.split('\n'), `${name}@/dev/disk3s5 on /Volumes/x (apfs, local)`]
  const listed = parseMountLines(lines)
  assert.equal(
    listed.filter((mount) => provider.takes(mount)).map(({ point }) => point),
    ['/', data],
  )
})

test('shows the Data volume as it was, under the paths that / shows', async () => {
  const taken = await provider.take(request(`${home}/me`))
  writeFileSync(`${home}/me/file`, 'later')
  assert.equal(taken.shown, [{ given: `${home}/me`, what: `${place}${home}/me` }])
  assert.is(readFileSync(`${place}${home}/me/file`, 'utf8'), 'at that moment')
  assert.equal(taken.names, [name])
  assert.is(await taken.check(), undefined)
  await taken.release()
})

test('refuses what lies on the sealed system volume', async () => {
  const taken = await provider.take(request(`${home}/me`, '/dev'))
  assert.match(taken.refused[0]?.why ?? '', 'sealed')
  await taken.release()
})

test('says when macOS deleted the snapshot, or unmounted it, while it was read', async () => {
  const taken = await provider.take(request(`${home}/me`))
  const listed = readFileSync(mounts, 'utf8')
  writeFileSync(mounts, volumes)
  assert.match((await taken.check()) ?? '', 'not mounted any more')
  writeFileSync(mounts, listed)
  writeFileSync(dates, `${foreign}\n`)
  assert.match((await taken.check()) ?? '', 'macOS deleted')
  await taken.release()
})

test('sweeps what a killed run left, by the date it wrote down', async () => {
  await provider.take(request(`${home}/me`))
  await provider.sweep({ state, set: 'other' })
  assert.ok(existsSync(`${place}${home}`))
  await provider.sweep({ state, set: 'home' })
})

test(
  'names the way to full disk access where macOS does not let it mount',
  async () => {
    const error = await failure(provider.take(request(`${home}/me`)))
    assert.is(error.code, 'SNAPSHOT_FAILED')
    assert.ok(error.message.endsWith(FULL_DISK_ACCESS_FIX))
  },
  {
    mount_apfs:
      'echo "mount_apfs: volume could not be mounted: Operation not permitted" >&2; exit 77',
  },
)

test(
  'fails where tmutil does not name a snapshot',
  async () => {
    const error = await failure(provider.take(request(`${home}/me`)))
    assert.match(error.message, 'did not say which')
  },
  { tmutil: tmutil.replace(`localsnapshot) echo`, 'localsnapshot) echo Created; exit 0; echo') },
)

apfs('tells full disk access from what the protected directories answer', () => {
  const answer = (codes: readonly (string | undefined)[]): string => {
    const rest = [...codes]
    return fullDiskAccess('/Users/me', () => {
      const code = rest.shift()
      if (code !== undefined) throw Object.assign(new Error(code), { code })
    })
  }
  assert.is(answer(['ENOENT', undefined]), 'granted')
  assert.is(answer(['ENOENT', 'EPERM']), 'denied')
  assert.is(answer(['ENOENT', 'EACCES', 'ENOENT']), 'unknown')
  assert.is(fullDiskAccess(root), 'unknown')
})

apfs.run()
