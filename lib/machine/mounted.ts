// Whether a place lies on the filesystem that should be mounted there, or on a bare mount point.
//
// A drive that is not mounted leaves an empty directory, and what is written there fills the disk
// below it. Asked for targets and for staging. Throws system errors where the path cannot be looked
// at.

import { existsSync, readFileSync, statSync } from 'node:fs'
import { dirname } from 'node:path'

/**
 * Where systems mount removable drives: a directory there that is on no file system of its own is a
 * bare mount point.
 */
const MOUNT_PLACES = ['/media', '/run/media', '/mnt', '/Volumes']

/** The place where a file system has to be mounted and is not; undefined when all is well. */
export function bareMountPoint({
  path,
  mustBeMounted,
}: {
  readonly path: string
  /** Undefined: decided by where the path lies. */
  readonly mustBeMounted?: boolean | undefined
}): string | undefined {
  if (mustBeMounted === false) return undefined
  const named = fstabMount(path)
  if (named !== undefined) return isMountPoint(named) ? undefined : named
  const place = MOUNT_PLACES.find((one) => path.startsWith(`${one}/`))
  if (place === undefined && mustBeMounted === undefined) return undefined
  return isOnMountBelow(path, place ?? '/') ? undefined : path
}

/** Whether a place is for a filesystem that comes and goes. The place itself is not looked at. */
export function shouldBeMounted({
  path,
  mustBeMounted,
}: {
  readonly path: string
  /** Undefined: decided by where the path lies. */
  readonly mustBeMounted: boolean | undefined
}): boolean {
  if (mustBeMounted !== undefined) return mustBeMounted
  if (fstabMount(path) !== undefined) return true
  return MOUNT_PLACES.some((place) => path.startsWith(`${place}/`))
}

/** Where fstab mounts something at or above the path, and nothing is mounted. */
export function unmountedPlace(path: string): string | undefined {
  const named = fstabMount(path)
  return named === undefined || isMountPoint(named) ? undefined : named
}

/**
 * The deepest directory at or above the path (other than the root) that fstab mounts something at.
 */
function fstabMount(path: string): string | undefined {
  if (!existsSync('/etc/fstab')) return undefined
  const mounts = readFileSync('/etc/fstab', 'utf8')
    .split('\n')
    .flatMap((line) => {
      const [, place] = line.trim().startsWith('#') ? [] : line.trim().split(/\s+/)
      const mount = place?.replace(/\\040/g, ' ').replace(/(.)\/+$/, '$1')
      const isAbove =
        mount !== undefined
        && mount !== '/'
        && mount.startsWith('/')
        && (path === mount || path.startsWith(`${mount}/`))
      return isAbove ? [mount] : []
    })
  return mounts.sort((a, b) => b.length - a.length)[0]
}

function isOnMountBelow(path: string, place: string): boolean {
  for (let at = path; at !== place && dirname(at) !== at; at = dirname(at))
    if (isMountPoint(at)) return true
  return false
}

function isMountPoint(path: string): boolean {
  return statSync(path).dev !== statSync(dirname(path)).dev
}
