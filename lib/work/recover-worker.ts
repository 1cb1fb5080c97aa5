// The worker thread of a recovery: looks at one file after another, or reads bundles whole.
//
// recover-bundles.ts sends paths and gets answers; recover-scan.ts does the reading. Damage is part
// of the answer. Writes nothing.

import { parentPort, workerData } from 'node:worker_threads'
import type { RawPath } from '../model/raw-path.ts'
import {
  type FoundContents,
  type FoundFile,
  type Look,
  lookAtFile,
  readContents,
} from './recover-scan.ts'

export interface RecoverSettings {
  readonly identities: readonly string[]
}

export type RecoverRequest =
  | { readonly kind: 'look'; readonly path: RawPath }
  | { readonly kind: 'read'; readonly file: FoundFile; readonly withMembers: boolean }

export type RecoverReply =
  | { readonly kind: 'look'; readonly look: Look }
  | { readonly kind: 'read'; readonly contents: FoundContents }

// Imported for its types alone, this file starts nothing.
if (parentPort !== null) {
  const port = parentPort
  const { identities } = workerData as RecoverSettings
  port.on('message', (request: RecoverRequest) => {
    const reply: RecoverReply =
      request.kind === 'look'
        ? { kind: 'look', look: lookAtFile(request.path, identities) }
        : {
            kind: 'read',
            contents: readContents(request.file, { identities, withMembers: request.withMembers }),
          }
    port.postMessage(reply)
  })
}
