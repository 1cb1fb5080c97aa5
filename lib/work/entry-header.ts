// The header range that an entry has in every export: what pack-worker.ts writes and verify.ts
// expects to find.
//
// One function for both, so that the two cannot drift apart (docs/format.md §3.3).

import type { Buffer } from 'node:buffer'
import { encodeHeader } from '../format/tar.ts'
import type { EntryMetadata } from '../model/entry.ts'

/** PAX blocks, ustar block and sparse map of an entry; `chunk` as in its catalog entry. */
export function entryHeader({
  metadata,
  chunk,
}: {
  readonly metadata: EntryMetadata
  readonly chunk?: number | undefined
}): Buffer {
  return encodeHeader(metadata, chunk === undefined ? {} : { comment: `chunk=${chunk}` })
}
