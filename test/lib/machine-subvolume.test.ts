import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { systemCode } from '../../lib/errors.ts'
import {
  createSubvolume,
  deleteSubvolume,
  filesystemUuid,
  isOnBtrfs,
  isReadOnly,
  isSubvolume,
  setReadOnly,
  snapshotSubvolume,
} from '../../lib/machine/subvolume.ts'
import { rawPathFromText } from '../../lib/model/raw-path.ts'
import * as assert from '../helpers/assert.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const subvolume = suite('machine/subvolume')

function codeOf(work: () => void): string | undefined {
  try {
    work()
  } catch (error) {
    return systemCode(error)
  }
  return 'nothing'
}

subvolume('says ENOTTY where the filesystem is not btrfs, and makes nothing', () => {
  const path = `${tempDirectory()}/new`
  assert.is(isOnBtrfs(path.slice(0, -4)), false)
  assert.is(
    codeOf(() => createSubvolume(path)),
    'ENOTTY',
  )
  assert.not(existsSync(path))
  assert.not(isSubvolume(path))
})

if (canRunAsRoot('btrfs loop mount')) {
  const place = loopDevice({ sizeMib: 256, type: 'btrfs' }).path

  subvolume('tells the filesystem by the id that is on its device', () => {
    const { image, path, unmount } = loopDevice({ sizeMib: 128, type: 'btrfs' })
    const uuid = execFileSync('blkid', ['-p', '-o', 'value', '-s', 'UUID', image])
    assert.is(filesystemUuid(path), uuid.toString().trim())
    unmount()
  })

  subvolume('makes what the btrfs program calls a subvolume, whatever its name', () => {
    const name = 'é new\n"one"'
    createSubvolume(rawPathFromText(`${place}/${name}`))
    assert.ok(isOnBtrfs(place))
    assert.ok(isSubvolume(rawPathFromText(`${place}/${name}`)))
    const shown = execFileSync('btrfs', ['subvolume', 'show', `${place}/${name}`])
    assert.match(shown.toString(), /Flags:\s+-\n/)
    mkdirSync(`${place}/plain`)
    assert.not(isSubvolume(`${place}/plain`))
    assert.is(
      codeOf(() => createSubvolume(`${place}/plain`)),
      'EEXIST',
    )
  })

  subvolume('snapshots a read-only subvolume into one that can be written', () => {
    createSubvolume(`${place}/first`)
    writeFileSync(`${place}/first/file`, 'one')
    setReadOnly(`${place}/first`, true)
    assert.ok(isReadOnly(`${place}/first`))
    assert.is(
      codeOf(() => writeFileSync(`${place}/first/file`, 'two')),
      'EROFS',
    )
    snapshotSubvolume({ source: `${place}/first`, target: `${place}/second` })
    assert.not(isReadOnly(`${place}/second`))
    writeFileSync(`${place}/second/file`, 'two')
    assert.is(readFileSync(`${place}/first/file`, 'utf8'), 'one')
    setReadOnly(`${place}/first`, false)
    assert.not(isReadOnly(`${place}/first`))
  })

  subvolume('gives a read-only subvolume another name, and deletes it', () => {
    createSubvolume(`${place}/a.partial`)
    writeFileSync(`${place}/a.partial/file`, 'one')
    setReadOnly(`${place}/a.partial`, true)
    renameSync(`${place}/a.partial`, `${place}/a`)
    assert.ok(isReadOnly(`${place}/a`))
    deleteSubvolume(`${place}/a`)
    assert.not(existsSync(`${place}/a`))
  })

  subvolume('does not delete a directory that is no subvolume', () => {
    mkdirSync(`${place}/directory`)
    assert.is(
      codeOf(() => deleteSubvolume(`${place}/directory`)),
      'EINVAL',
    )
    assert.ok(existsSync(`${place}/directory`))
  })

  subvolume('refuses a name that does not fit, and one that is not there', () => {
    assert.throws(() => createSubvolume(`${place}/${'n'.repeat(4088)}`), /longer/)
    assert.is(
      codeOf(() => deleteSubvolume(`${place}/absent`)),
      'ENOENT',
    )
  })
}

subvolume.run()
