// The worker thread of a recovery: looks at one file after another, reads bundles whole, or puts
// files together that lie on a medium without a filesystem.
//
// recover-bundles.ts and recover-medium.ts send requests and get answers; recover-scan.ts and
// raw-extents.ts do the reading. Damage is part of the answer. Writes nothing.

import { parentPort, workerData } from 'node:worker_threads'
import { BackupError, type PlainError, packError } from '../errors.ts'
import type { RawPath } from '../model/raw-path.ts'
import { type RawFile, type RawSearch, followRawFile, mapRawFile } from './raw-extents.ts'
import { Medium } from './raw-medium.ts'
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
  | { readonly kind: 'map'; readonly path: RawPath; readonly offset: number }
  | ({ readonly kind: 'follow'; readonly path: RawPath } & RawSearch)

export type RecoverReply =
  | { readonly kind: 'look'; readonly look: Look }
  | { readonly kind: 'read'; readonly contents: FoundContents }
  | ({ readonly kind: 'map' } & MappedFile)

/** A file on a medium without a filesystem. */
interface MappedFile {
  readonly offset: number
  /** Undefined where none begins there that opens, and where nothing more was found of one. */
  readonly file: RawFile | undefined
  readonly error: PlainError | undefined
}

function answer(request: RecoverRequest, { identities }: RecoverSettings): RecoverReply {
  switch (request.kind) {
    case 'look':
      return { kind: 'look', look: lookAtFile(request.path, identities) }
    case 'read': {
      const { file, withMembers } = request
      return { kind: 'read', contents: readContents(file, { identities, withMembers }) }
    }
    case 'map': {
      const { path, offset } = request
      const map = (medium: Medium) => mapRawFile(medium, { offset, identities })
      return { kind: 'map', offset, ...onMedium(path, map) }
    }
    case 'follow': {
      const follow = (medium: Medium) => followRawFile(medium, { ...request, identities })
      return { kind: 'map', offset: request.file.offset, ...onMedium(request.path, follow) }
    }
  }
}

function onMedium(
  path: RawPath,
  action: (medium: Medium) => RawFile | undefined,
): Omit<MappedFile, 'offset'> {
  const medium = new Medium(path)
  try {
    return { file: action(medium), error: undefined }
  } catch (error) {
    if (!(error instanceof BackupError)) throw error
    return { file: undefined, error: packError(error) }
  } finally {
    medium.close()
  }
}

// Imported for its types alone, this file starts nothing.
if (parentPort !== null) {
  const port = parentPort
  const settings = workerData as RecoverSettings
  port.on('message', (request: RecoverRequest) => port.postMessage(answer(request, settings)))
}
