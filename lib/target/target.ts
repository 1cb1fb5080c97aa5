// What a target can do: the one interface between the procedures and wherever exports go.
//
// Paths are relative to the repository, joined by `/`, made of the characters of docs/format.md §2
// only. The contract:
// - nothing is overwritten but by replace(); write() and publish() throw TARGET_FAILED where a name
// is taken;
// - when write() or publish() returns, the bytes were proven on the medium (invariant 2) and will
// survive a power cut;
// - "not there" is undefined, "broken" is a throw (TARGET_ABSENT, TARGET_FULL, TARGET_READ_ONLY,
// TARGET_FAILED). Implemented by directory.ts. Bundles are written by worker threads into
// workDirectory() and then published.

import type { Buffer } from 'node:buffer'
import type { RawPath } from '../model/raw-path.ts'

export interface TargetFile {
  readonly name: string
  readonly kind: 'file' | 'directory' | 'other'
  readonly sizeBytes: number
}

export interface Target {
  readonly name: string
  /** Of the kind `drive`: which of the target's drives this is. */
  readonly drive: string | undefined
  /** For messages: where it is. */
  readonly place: string
  /** What is in a directory, sorted by name; undefined where it does not exist. */
  list(directory: string): Promise<readonly TargetFile[] | undefined>
  /** A small file, whole. @throws BackupError TARGET_FAILED when it is larger than `maxBytes` */
  read(path: string, maxBytes: number): Promise<Buffer | undefined>
  /** A small new file. */
  write(path: string, bytes: Uint8Array): Promise<void>
  /** A small file that may be there already: `latest`, and a manifest that is damaged. */
  replace(path: string, bytes: Uint8Array): Promise<void>
  /** A local directory for the bundles of `directory`, made if need be. */
  workDirectory(directory: string): Promise<RawPath>
  /** Gives a proven file of workDirectory(), `<name>.partial`, its place and name on the target. */
  publish(path: string): Promise<void>
  /** A local path to read a bundle from. */
  localPath(path: string): RawPath
  /**
   * Moves a damaged file out of the way, to a free name beside it (asideName), and gives that name.
   */
  setAside(path: string): Promise<string>
  /** Removes one file; nothing happens when it is not there. */
  remove(path: string): Promise<void>
  /** Removes a directory if it is empty. */
  removeDirectory(path: string): Promise<void>
  /** Bytes that can still be written; undefined where nobody knows. */
  freeBytes(): Promise<number | undefined>
}

/** What a damaged file is called once it was moved out of the way: the first, second, … of it. */
export function asideName(path: string, number: number): string {
  return number === 1 ? `${path}.damaged` : `${path}.damaged-${number}`
}
