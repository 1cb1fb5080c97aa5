// Waiting that an interruption ends.
//
// Workers are ended by whoever started them. What a remote target keeps us waiting for cannot
// always be told to stop: it is left alone then, and ends with the program. Throws INTERRUPTED, and
// what the work throws.

import { BackupError } from '../errors.ts'

/**
 * What the work gives, unless the signal comes first.
 * @param hint what is unharmed then
 * @throws BackupError INTERRUPTED
 */
export async function unlessAborted<Value>(
  signal: AbortSignal | undefined,
  work: Promise<Value>,
  hint = 'what was sent is not sent again; the next run goes on from there',
): Promise<Value> {
  if (signal === undefined) return await work
  let abort = (): void => {}
  const aborted = new Promise<never>((_, reject) => {
    abort = () => reject(new BackupError('INTERRUPTED', 'interrupted', { hint }))
  })
  signal.addEventListener('abort', abort, { once: true })
  if (signal.aborted) abort()
  try {
    return await Promise.race([work, aborted])
  } finally {
    signal.removeEventListener('abort', abort)
    // Nobody waits for it any more.
    work.catch(() => undefined)
  }
}
