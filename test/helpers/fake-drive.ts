// A drive that lies about its size, as cheap ones do: what is written beyond what it really has is
// dropped, or lands on what is there. An image file served by FUSE, mounted by loop device.
//
// python3-fusepy serves it. Its ext4 keeps all of its metadata in front, so that it survives being
// lied to as long as a test takes. Needs root.

import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import * as assert from './assert.ts'
import { tempDirectory } from './temp-dir.ts'

const MIB = 1024 * 1024

const SERVER = `
import errno, stat, sys
from fusepy import FUSE, FuseOSError, Operations
place, size, real, kind = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
flash = bytearray(real)
class Drive(Operations):
    def getattr(self, path, fh=None):
        if path == '/': return dict(st_mode=stat.S_IFDIR | 0o755, st_nlink=2)
        if path != '/image': raise FuseOSError(errno.ENOENT)
        return dict(st_mode=stat.S_IFREG | 0o600, st_nlink=1, st_size=size)
    def readdir(self, path, fh): return ['.', '..', 'image']
    def runs(self, offset, length):
        while length > 0:
            at = offset % real
            run = min(length, real - at)
            yield at, run, kind == 'wraps' or offset < real
            offset, length = offset + run, length - run
    def read(self, path, length, offset, fh):
        parts = []
        for at, run, isThere in self.runs(offset, max(0, min(length, size - offset))):
            parts.append(bytes(flash[at:at + run]) if isThere else bytes(run))
        return b''.join(parts)
    def write(self, path, data, offset, fh):
        done = 0
        for at, run, isThere in self.runs(offset, len(data)):
            if isThere: flash[at:at + run] = data[done:done + run]
            done += run
        return len(data)
FUSE(Drive(), place, foreground=True, nothreads=True, direct_io=True, big_writes=True)
`

export interface FakeDrive {
  /** Where its filesystem is mounted. */
  readonly path: string
  /** What it says, and what it has. */
  readonly sizeBytes: number
  readonly realBytes: number
  /** Ends all of it; also done when the test process ends. */
  readonly release: () => void
}

/** A mounted ext4 on a drive that says `sizeMib` and holds `realMib`. */
export async function fakeDrive({
  sizeMib,
  realMib,
  kind,
}: {
  readonly sizeMib: number
  readonly realMib: number
  /** What happens to what is written beyond what is there. */
  readonly kind: 'drops' | 'wraps'
}): Promise<FakeDrive> {
  const directory = tempDirectory()
  const [served, path] = [`${directory}/served`, `${directory}/mount`]
  mkdirSync(served)
  mkdirSync(path)
  const [sizeBytes, realBytes] = [sizeMib * MIB, realMib * MIB]
  const words = ['-c', SERVER, served, String(sizeBytes), String(realBytes), kind]
  const server = spawn('/usr/bin/python3', words, { stdio: ['ignore', 'ignore', 'inherit'] })
  const release = (): void => {
    spawnSync('umount', [path])
    spawnSync('umount', ['--lazy', served])
    server.kill('SIGKILL')
  }
  // Before the handlers of tempDirectory(), or they would empty the drive first.
  process.prependListener('exit', release)
  const image = `${served}/image`
  for (let moment = 0; moment < 250 && !existsSync(image); moment++) await sleep(20)
  assert.ok(existsSync(image), 'the drive is served: python3-fusepy')
  // No journal, no copies of the superblock, no inode tables further back.
  const features = 'sparse_super2,^has_journal,^resize_inode,flex_bg'
  const options = ['-q', '-F', '-m', '0', '-b', '4096', '-O', features, '-G', '4096', '-N', '64']
  run('mkfs.ext4', [...options, '-E', 'num_backup_sb=0,nodiscard,lazy_itable_init=0', image])
  run('mount', ['-o', 'loop', image, path])
  return { path, sizeBytes, realBytes, release }
}

function run(program: string, words: readonly string[]): void {
  const { status, stderr, error } = spawnSync(program, words, { encoding: 'utf8' })
  assert.is(status, 0, `${program} ${words.join(' ')}: ${error?.message ?? stderr}`)
}
