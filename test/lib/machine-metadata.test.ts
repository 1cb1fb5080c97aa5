import { execFileSync, spawnSync } from 'node:child_process'
import { lstatSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import { applyFlags, applyMetadata } from '../../lib/machine/metadata.ts'
import { statSource } from '../../lib/machine/statx.ts'
import type { EntryMetadata } from '../../lib/model/entry.ts'
import * as assert from '../helpers/assert.ts'
import { driveImage } from '../helpers/drive-image.ts'
import { loopDevice } from '../helpers/loop-device.ts'
import { canRunAsRoot } from '../helpers/needs.ts'
import { tempDirectory } from '../helpers/temp-dir.ts'

const test = suite('machine/metadata')
const directory = tempDirectory()
const [uid, gid] = [process.getuid!(), process.getgid!()]
const BASIC = { path: 'f', type: 'file', mode: 0o640, uid, gid, mtimeNs: -1_500_000_000n } as const

const bytes = (text: string): Buffer => Buffer.from(text)

/** What getfattr says, ACLs included; nothing where there is nothing. */
function attributesOf(path: string): string {
  const words = ['-h', '-d', '-m', '-', '--absolute-names', path]
  return spawnSync('getfattr', words, { encoding: 'utf8' })
    .stdout.replace(/^# file.*\n/, '')
    .trim()
}

test('what the backup does not have is taken away', () => {
  const path = `${directory}/replaced`
  writeFileSync(path, 'x')
  execFileSync('setfattr', ['-n', 'user.old', '-v', 'old', path])
  execFileSync('setfattr', ['-n', 'user.both', '-v', 'old', path])
  const metadata: EntryMetadata = { ...BASIC, xattrs: new Map([['user.both', bytes('new')]]) }
  assert.equal(applyMetadata(path, metadata), [])
  assert.is(attributesOf(path), 'user.both="new"')
  const { mode, mtimeNs } = lstatSync(path, { bigint: true })
  assert.equal([mode & 0o7777n, mtimeNs], [0o640n, BASIC.mtimeNs])
})

test('an ACL that a directory passes on is not the backup’s', () => {
  const parent = `${directory}/passes-on`
  mkdirSync(parent)
  execFileSync('setfacl', ['-d', '-m', 'u:12345:rwx', parent])
  writeFileSync(`${parent}/f`, 'x')
  mkdirSync(`${parent}/d`)
  assert.match(attributesOf(`${parent}/f`), 'posix_acl_access')
  assert.match(attributesOf(`${parent}/d`), 'posix_acl_default')
  assert.equal(applyMetadata(`${parent}/f`, BASIC, { uid, gid }), [])
  assert.equal(applyMetadata(`${parent}/d`, { ...BASIC, type: 'directory', mode: 0o750 }), [])
  assert.is(attributesOf(`${parent}/f`), '')
  assert.is(attributesOf(`${parent}/d`), '')
  assert.is(lstatSync(`${parent}/f`).mode & 0o7777, 0o640)
})

test('an attribute of another system is lost, and nothing else', () => {
  if (process.platform !== 'linux') return
  const path = `${directory}/foreign`
  writeFileSync(path, 'x')
  const xattrs = new Map([
    ['com.apple.quarantine', bytes('0081')],
    ['user.kept', bytes('kept')],
  ])
  assert.equal(applyMetadata(path, { ...BASIC, xattrs }), ['xattr com.apple.quarantine'])
  assert.is(attributesOf(path), 'user.kept="kept"')
  assert.is(lstatSync(path).mode & 0o7777, 0o640)
})

test('a link is not followed', () => {
  const victim = `${directory}/victim`
  writeFileSync(victim, 'x', { mode: 0o600 })
  symlinkSync(victim, `${directory}/link`)
  const before = lstatSync(victim, { bigint: true })
  assert.equal(applyMetadata(`${directory}/link`, { ...BASIC, type: 'symlink', mode: 0o777 }), [])
  const after = lstatSync(victim, { bigint: true })
  assert.equal([after.mode, after.mtimeNs], [before.mode, before.mtimeNs])
  assert.is(lstatSync(`${directory}/link`, { bigint: true }).mtimeNs, BASIC.mtimeNs)
})

if (canRunAsRoot('metadata on other filesystems')) {
  test('an attribute that is too large for its block is lost, and nothing else', () => {
    const path = `${directory}/large`
    writeFileSync(path, 'x')
    const xattrs = new Map([
      ['user.kept', bytes('kept')],
      ['user.large', Buffer.alloc(60_000)],
    ])
    const { path: ext4 } = loopDevice({ sizeMib: 8 })
    writeFileSync(`${ext4}/f`, 'x')
    assert.equal(applyMetadata(`${ext4}/f`, { ...BASIC, xattrs }), ['xattr user.large'])
    assert.is(attributesOf(`${ext4}/f`), 'user.kept="kept"')
  })

  test('what a filesystem takes and does not keep is lost', () => {
    const { device } = driveImage({ type: 'exfat', label: 'LOST' })
    const at = `${directory}/exfat`
    mkdirSync(at)
    execFileSync('mount.exfat-fuse', [device, at], { stdio: 'ignore' })
    try {
      writeFileSync(`${at}/f`, 'x')
      const acl = 'user::rw-\nuser:12345:r--\ngroup::r--\nmask::r--\nother::---\n'
      const metadata: EntryMetadata = {
        ...BASIC,
        uid: 12345,
        mtimeNs: 1_700_000_001_123_456_789n,
        acl,
        xattrs: new Map([['user.x', bytes('x')]]),
      }
      const lost = applyMetadata(`${at}/f`, metadata)
      assert.equal([...lost].sort(), ['acl', 'mode', 'owner', 'time', 'xattr user.x'])
      const flags = ['immutable', 'nodump'] as const
      assert.equal(applyFlags(`${at}/f`, { ...BASIC, flags }), ['flag immutable', 'flag nodump'])
    } finally {
      spawnSync('umount', [at])
    }
  })

  test('each flag that can be set is set', () => {
    const { path: xfs } = loopDevice({ sizeMib: 320, type: 'xfs' })
    writeFileSync(`${xfs}/f`, 'x')
    const flags = ['compressed', 'immutable', 'nodump'] as const
    assert.equal(applyFlags(`${xfs}/f`, { ...BASIC, flags }), ['flag compressed'])
    assert.equal(statSource(`${xfs}/f`).flags, ['immutable', 'nodump'])
    execFileSync('chattr', ['-i', `${xfs}/f`])
  })
}

test.run()
