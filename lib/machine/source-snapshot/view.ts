// A view: a private directory where snapshots appear under their sources' own paths, read-only.
//
// rsync reads `<view>/./home/me/data`, so a collection has the same paths whether there was a
// snapshot or not. Parents in the view get the mode, owner, times and attributes of the real ones,
// for rsync copies those too. source-snapshot.ts composes it. removeView undoes everything,
// innermost first, also what a killed run left; it never deletes a file with content, for something
// may still be mounted. Throws what runProgram throws, PROGRAM_FAILED, and system errors.

import {
  chmodSync,
  chownSync,
  closeSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  rmdirSync,
  statSync,
  unlinkSync,
} from 'node:fs'
import { BackupError } from '../../errors.ts'
import { displayText, parentOf, type RawPath, rawPathToBytes } from '../../model/raw-path.ts'
import { getXattr, listXattrs, setTimes, setXattr } from '../posix.ts'
import { type ProgramResult, runProgram } from '../shell.ts'
import { isBelow, readMounts } from './mounts.ts'

/** Mounting and unmounting takes moments; one that hangs must not hang the backup for ever. */
export const MOUNT_TIMEOUT_MS = 60_000

/** Mounts `what` (a directory or file) read-only at a path that is already there. */
export async function bindReadOnly({ what, at }: { what: RawPath; at: RawPath }): Promise<void> {
  const args = ['--bind', '-o', 'ro', '--', rawPathToBytes(what), rawPathToBytes(at)]
  const call = { program: 'mount', args, changes: true, timeoutMs: MOUNT_TIMEOUT_MS }
  succeeded('mount', await runProgram(call))
}

/** Unmounts everything at or below a directory, innermost first. */
export async function unmountBelow(directory: RawPath): Promise<void> {
  const mounts = readMounts().filter((mount) => isBelow({ path: mount.point, directory }))
  for (const { point } of mounts.reverse()) await unmount(point)
}

/** At once where possible, else as soon as nobody uses it any more. */
async function unmount(point: RawPath): Promise<void> {
  const call = { program: 'umount', changes: true, timeoutMs: MOUNT_TIMEOUT_MS }
  const result = await runProgram({ ...call, args: ['--', rawPathToBytes(point)] })
  if (result.exitCode === 0) return
  succeeded('umount', await runProgram({ ...call, args: ['--lazy', '--', rawPathToBytes(point)] }))
}

/**
 * A place for `path` (absolute) in the view, of the same kind as `like`; what is there already
 * stays.
 */
export function makePlace({
  view,
  path,
  like,
}: {
  view: RawPath
  path: RawPath
  like: RawPath
}): void {
  const place = `${view}${path}`
  mkdirSync(rawPathToBytes(parentOf(place)), { recursive: true, mode: 0o700 })
  if (exists(place)) return
  if (statSync(rawPathToBytes(like)).isDirectory())
    mkdirSync(rawPathToBytes(place), { mode: 0o700 })
  else closeSync(openSync(rawPathToBytes(place), 'wx', 0o600))
}

/** Gives every directory above `path` in the view what the real one has, innermost first. */
export function copyParents({ view, path }: { view: RawPath; path: RawPath }): void {
  for (let parent = parentOf(path); parent !== ''; parent = parentOf(parent)) {
    const copy = `${view}${parent}`
    // A parent that is itself inside a snapshot has everything already, and cannot be changed.
    if (deviceOf(copy) !== deviceOf(view)) return
    const { uid, gid, mode, mtimeNs } = statSync(rawPathToBytes(parent), { bigint: true })
    chownSync(rawPathToBytes(copy), Number(uid), Number(gid))
    chmodSync(rawPathToBytes(copy), Number(mode & 0o7777n))
    for (const name of listXattrs(parent)) {
      const value = getXattr(parent, name)
      if (value !== undefined) setXattr(copy, name, value)
    }
    setTimes(copy, { mtimeNs })
  }
}

/** Takes a view away, mounts first. Nothing happens where there is none. */
export async function removeView(view: RawPath): Promise<void> {
  await unmountBelow(view)
  if (exists(view)) removeEmpty(view)
}

/**
 * Removes directories, and files of zero bytes, and stops at anything else: that would be
 * somebody's data.
 */
function removeEmpty(directory: RawPath): void {
  for (const name of readdirSync(rawPathToBytes(directory), { encoding: 'latin1' })) {
    const child = `${directory}/${name}`
    const stat = lstatSync(rawPathToBytes(child))
    if (stat.isDirectory()) removeEmpty(child)
    else if (stat.isFile() && stat.size === 0) unlinkSync(rawPathToBytes(child))
  }
  rmdirSync(rawPathToBytes(directory))
}

function deviceOf(path: RawPath): number {
  return lstatSync(rawPathToBytes(path)).dev
}

export function exists(path: RawPath): boolean {
  return lstatSync(rawPathToBytes(path), { throwIfNoEntry: false }) !== undefined
}

/** Whether two paths lead to one file or directory. */
export function sameInode(a: RawPath, b: RawPath): boolean {
  const [left, right] = [a, b].map((path) => lstatSync(rawPathToBytes(path), { bigint: true }))
  return left?.ino === right?.ino && left?.dev === right?.dev
}

/** @throws BackupError PROGRAM_FAILED with what the program said */
export function succeeded(program: string, { exitCode, stderr }: ProgramResult): void {
  if (exitCode === 0) return
  const said = displayText(stderr.trim().split('\n').at(-1) ?? '')
  throw new BackupError('PROGRAM_FAILED', `${program} failed with exit code ${exitCode}: ${said}`)
}
