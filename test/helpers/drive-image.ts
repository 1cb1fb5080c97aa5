// A drive that is plugged in and not mounted: a loop device with a labelled filesystem.
//
// Whatever mounted it, it is unmounted and detached when the test process ends, before its scratch
// directories are removed. Needs root; loop-device.ts is the one that is mounted.

import { spawnSync } from 'node:child_process'
import { closeSync, copyFileSync, ftruncateSync, openSync, readFileSync } from 'node:fs'
import { basename } from 'node:path'
import * as assert from './assert.ts'
import { makeLoopNode } from './loop-device.ts'
import { tempDirectory } from './temp-dir.ts'

export interface DriveImage {
  /** `/dev/loop7`. */
  readonly device: string
  readonly image: string
  readonly label: string
  /** In lower case. */
  readonly uuid: string
  /** Pulls it out, mounted or not. */
  readonly detach: () => void
}

export type DriveType = 'ext4' | 'xfs' | 'btrfs' | 'exfat' | 'vfat' | 'ntfs'

const MIB = 1024 * 1024

/** How each mkfs takes a label, and the least that it makes a filesystem of. */
const MAKERS: Readonly<Record<DriveType, { flags: readonly string[]; sizeMib: number }>> = {
  ext4: { flags: ['-q', '-F', '-m', '0', '-L'], sizeMib: 16 },
  xfs: { flags: ['-q', '-L'], sizeMib: 320 },
  btrfs: { flags: ['-q', '-L'], sizeMib: 128 },
  exfat: { flags: ['-L'], sizeMib: 16 },
  vfat: { flags: ['-n'], sizeMib: 16 },
  ntfs: { flags: ['-q', '-F', '-Q', '-L'], sizeMib: 16 },
}

const attached = new Set<string>()

/** A drive of that type and label; at least `sizeMib` large. */
export function driveImage({
  type = 'ext4',
  label,
  sizeMib = 0,
}: {
  type?: DriveType
  label: string
  sizeMib?: number
}): DriveImage {
  const image = `${tempDirectory()}/image`
  const maker = MAKERS[type]
  const fd = openSync(image, 'wx')
  ftruncateSync(fd, Math.max(sizeMib, maker.sizeMib) * MIB)
  closeSync(fd)
  run(`mkfs.${type}`, [...maker.flags, label, image])
  return attach(image, label)
}

/** The same drive as another device: what is plugged in again while the old one is mounted. */
export function cloneDrive({ image, label }: DriveImage): DriveImage {
  const copy = `${tempDirectory()}/image`
  copyFileSync(image, copy)
  return attach(copy, label)
}

/** A drive that was pulled out, plugged in again. */
export function attachDrive({ image, label }: DriveImage): DriveImage {
  return attach(image, label)
}

function attach(image: string, label: string): DriveImage {
  releaseAtExit()
  makeLoopNode()
  const device = run('losetup', ['--find', '--show', image]).trim()
  attached.add(device)
  const uuid = run('blkid', ['-p', '-o', 'value', '-s', 'UUID', device]).trim().toLowerCase()
  return { device, image, label, uuid, detach: () => detach(device) }
}

function detach(device: string): void {
  if (!attached.delete(device)) return
  for (const point of mountsOf(device).reverse()) spawnSync('umount', ['--lazy', point])
  spawnSync('losetup', ['--detach', device])
}

/** By number, under whatever name it was mounted; by name on btrfs, which has its own numbers. */
function mountsOf(device: string): string[] {
  const number = readFileSync(`/sys/block/${basename(device)}/dev`, 'utf8').trim()
  const lines = readFileSync('/proc/self/mountinfo', 'utf8').split('\n')
  return lines.flatMap((line) => {
    const words = line.split(' ')
    if (words[2] !== number && !words.includes(device)) return []
    return (words[4] ?? '').replace(/\\([0-7]{3})/g, (_all, digits: string) =>
      String.fromCharCode(Number.parseInt(digits, 8)),
    )
  })
}

/** Pulls out every drive that a test left plugged in. */
export function detachAll(): void {
  for (const device of [...attached]) detach(device)
}

let prepared = false

/** Before the handlers of tempDirectory(), as loop-device.ts does it. */
function releaseAtExit(): void {
  if (prepared) return
  prepared = true
  process.prependListener('exit', () => {
    for (const device of attached) detach(device)
  })
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => process.exit(1))
}

function run(program: string, words: readonly string[]): string {
  const { status, stdout, stderr, error } = spawnSync(program, words, { encoding: 'utf8' })
  assert.is(status, 0, `${program} ${words.join(' ')}: ${error?.message ?? stderr}`)
  return stdout
}
