// A small file system of its own in an image file, mounted by loop device: full drives, read-only
// drives, damaged media.
//
// Unmounted when the test process ends, however it ends, and before its scratch directories are
// removed. Needs root.

import { spawnSync } from 'node:child_process'
import { closeSync, existsSync, mkdirSync, openSync, ftruncateSync } from 'node:fs'
import * as assert from './assert.ts'
import { tempDirectory } from './temp-dir.ts'

export interface LoopDevice {
  readonly image: string
  /** Where it is mounted. */
  readonly path: string
  readonly mount: (...options: string[]) => void
  readonly unmount: () => void
}

const MIB = 1024 * 1024
const mounted = new Set<string>()

/** A mounted file system of that size. `type` is what mkfs calls it. */
export function loopDevice({
  sizeMib,
  type = 'ext4',
}: {
  sizeMib: number
  type?: string
}): LoopDevice {
  releaseAtExit()
  const directory = tempDirectory()
  const image = `${directory}/image`
  const path = `${directory}/mount`
  const fd = openSync(image, 'wx')
  ftruncateSync(fd, sizeMib * MIB)
  closeSync(fd)
  mkdirSync(path)
  // Small ones get small blocks otherwise, and no place for root's reserve.
  const options = type.startsWith('ext') ? ['-q', '-F', '-m', '0', '-b', '4096'] : []
  runProgram(`mkfs.${type}`, [...options, image])
  const mount = (...flags: string[]): void => {
    makeLoopNode()
    runProgram('mount', ['-o', ['loop', ...flags].join(','), image, path])
    mounted.add(path)
  }
  const unmount = (): void => {
    if (mounted.delete(path)) runProgram('umount', [path])
  }
  mount()
  return { image, path, mount, unmount }
}

/** Makes the node of the next loop device, where the system does not make it by itself. */
export function makeLoopNode(): void {
  const node = spawnSync('losetup', ['--find'], { encoding: 'utf8' }).stdout.trim()
  const number = /^\/dev\/loop(\d+)$/.exec(node)?.[1]
  if (number === undefined || existsSync(node)) return
  spawnSync('mknod', ['-m', '660', node, 'b', '7', number])
}

let prepared = false

/**
 * Before the handlers of tempDirectory(), or they would empty the mounted file system and fail at
 * the mount point.
 */
function releaseAtExit(): void {
  if (prepared) return
  prepared = true
  process.prependListener('exit', () => {
    for (const path of mounted) spawnSync('umount', ['--lazy', path])
  })
  // The runner stops a test that hangs with SIGTERM, which by itself runs no handlers.
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => process.exit(1))
}

function runProgram(program: string, words: readonly string[]): void {
  const { status, stderr, error } = spawnSync(program, words, { encoding: 'utf8' })
  assert.is(status, 0, `${program} ${words.join(' ')}: ${error?.message ?? stderr}`)
}
