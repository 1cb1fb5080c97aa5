// Many small requests at a time, but not all of them at once.
//
// thaw.ts, hidden-objects.ts and bucket-locks.ts ask a bucket about one object after another this
// way. The first failure is thrown once those under way have ended; nothing new begins after it, or
// after the signal. Throws INTERRUPTED and what `work` throws.

import { BackupError } from '../errors.ts'

/**
 * Small requests wait for the network, not for us; more would only be slowed down by the service.
 */
const REQUESTS_AT_A_TIME = 8

/** What `work` gives for each item, in the order of the items. */
export async function inParallel<Item, Result>(
  items: readonly Item[],
  work: (item: Item) => Promise<Result>,
  { signal }: { readonly signal?: AbortSignal | undefined } = {},
): Promise<readonly Result[]> {
  const results = new Array<Result>(items.length)
  let next = 0
  let failure: { readonly error: unknown } | undefined
  const run = async (): Promise<void> => {
    while (next < items.length && failure === undefined) {
      const index = next++
      try {
        if (signal?.aborted === true) throw new BackupError('INTERRUPTED', 'interrupted')
        results[index] = await work(items[index]!)
      } catch (error) {
        failure ??= { error }
      }
    }
  }
  await Promise.all(Array.from({ length: Math.min(REQUESTS_AT_A_TIME, items.length) }, run))
  if (failure !== undefined) throw failure.error
  return results
}
