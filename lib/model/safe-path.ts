// Paths that come from a backup are hostile until checked (invariant 9): none may leave the
// directory it is restored to.
//
// Pure. Links as parents are restore's affair: it makes every directory itself and follows none.

import { BackupError } from '../errors.ts'
import { MAX_PATH_BYTES } from './entry.ts'
import { type RawPath, displayPath } from './raw-path.ts'

/** Linux's NAME_MAX. */
const MAX_NAME_BYTES = 255

/**
 * @throws BackupError UNSAFE_PATH for an absolute path, `.`, `..`, an empty or overlong component,
 * or a NUL
 */
export function checkSafePath(path: RawPath): void {
  const isSafe =
    path.length > 0
    && path.length <= MAX_PATH_BYTES
    && !path.includes('\0')
    && path
      .split('/')
      .every(
        (name) => name !== '' && name !== '.' && name !== '..' && name.length <= MAX_NAME_BYTES,
      )
  if (isSafe) return
  throw new BackupError(
    'UNSAFE_PATH',
    `the backup holds an unsafe path: ${displayPath(path.slice(0, 200))}`,
    { hint: 'it was not restored: a backup of ours never has such a path, so distrust this one' },
  )
}
