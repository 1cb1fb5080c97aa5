// What is mounted where: from /proc/self/mountinfo (proc(5)), and on macOS from mount(8).
//
// Paths are RawPath with their leading slash: the file escapes only space, tab, newline and
// backslash, so any name comes back. What macOS prints is unverified: transcribed from its manual,
// never run there. Throws Node's system errors when the file is there but cannot be read, and what
// runProgram throws.

import { readFileSync } from 'node:fs'
import { systemCode } from '../../errors.ts'
import { isWithin, type RawPath } from '../../model/raw-path.ts'
import { runProgram } from '../shell.ts'

export interface Mount {
  /** The path inside the mounted filesystem that is visible at `point`. */
  readonly root: RawPath
  readonly point: RawPath
  readonly type: string
  /** What was mounted: `/dev/sda1`. */
  readonly device: RawPath
}

/** mount(8) only prints a table; a dead network server can make it hang. */
const LIST_TIMEOUT_MS = 30_000

/** readMounts, or the table of mount(8) where the system has no such file. */
export async function listMounts(): Promise<Mount[]> {
  if (process.platform !== 'darwin') return readMounts()
  const lines: string[] = []
  const call = { program: 'mount', args: [], changes: false, timeoutMs: LIST_TIMEOUT_MS }
  await runProgram({
    ...call,
    onLine: (line, stream) => void (stream === 'stdout' && lines.push(line.toString('latin1'))),
  })
  return parseMountLines(lines)
}

/** `/dev/disk3s5 on /System/Volumes/Data (apfs, local, journaled)`; other lines are passed over. */
export function parseMountLines(lines: readonly string[]): Mount[] {
  return lines.flatMap((line) => {
    const [, device, point, type] = /^(.+?) on (\/.*) \(([^(),]+)[^()]*\)$/.exec(line) ?? []
    if (device === undefined || point === undefined || type === undefined) return []
    return [{ root: '/', point, type, device }]
  })
}

/**
 * From /proc/self/mountinfo; empty where there is no such file. In the order of mounting: of two
 * mounts at one point the later one is seen.
 */
export function readMounts(): Mount[] {
  try {
    return parseMountInfo(readFileSync('/proc/self/mountinfo', 'latin1'))
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return []
    throw error
  }
}

export function parseMountInfo(text: string): Mount[] {
  const mounts: Mount[] = []
  for (const line of text.split('\n')) {
    const [before = '', after = ''] = line.split(' - ')
    const [, , , root, point] = before.split(' ')
    const [type, device] = after.split(' ')
    if (root === undefined || point === undefined || type === undefined || device === undefined)
      continue
    mounts.push({ root: unescape(root), point: unescape(point), type, device: unescape(device) })
  }
  return mounts
}

/** The mount that a real path (no symbolic links) is seen through. */
export function mountOf(path: RawPath, mounts: readonly Mount[]): Mount | undefined {
  let found: Mount | undefined
  for (const mount of mounts) {
    const holds = isBelow({ path, directory: mount.point })
    if (holds && (found === undefined || mount.point.length >= found.point.length)) found = mount
  }
  return found
}

/** Mounts at points strictly below a real path, outermost first. */
export function mountsBelow(path: RawPath, mounts: readonly Mount[]): Mount[] {
  const points = new Map<RawPath, Mount>()
  for (const mount of mounts) {
    if (mount.point !== path && isBelow({ path: mount.point, directory: path }))
      points.set(mount.point, mount)
  }
  return [...points.values()].sort((a, b) => a.point.length - b.point.length)
}

/** isWithin for absolute paths, of which one may be `/`. */
export function isBelow({ path, directory }: { path: RawPath; directory: RawPath }): boolean {
  return isWithin({ path: path.replace(/^\/+/, ''), directory: directory.replace(/^\/+/, '') })
}

function unescape(field: string): RawPath {
  return field.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  )
}
