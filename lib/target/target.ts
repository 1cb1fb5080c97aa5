// What a target can do: the one interface between the procedures and wherever exports go.
//
// Paths are relative to the repository, joined by `/`, made of the characters of docs/format.md §2
// only. The contract:
// - nothing is overwritten but by replace(); write() and publish() throw TARGET_FAILED where a name
// is taken;
// - when write() or publish() returns, the bytes were proven on the medium (invariant 2) and will
// survive a power cut;
// - "not there" is undefined, "broken" is a throw (TARGET_ABSENT, TARGET_FULL, TARGET_READ_ONLY,
// TARGET_DENIED, TARGET_FAILED). Implemented by directory.ts, s3.ts, sftp.ts. Bundles are written
// by worker threads into workDirectory() and then published; on remote targets that is the spool.

import type { Buffer } from 'node:buffer'
import type { RawPath } from '../model/raw-path.ts'
import type { Bucket } from './bucket.ts'

export interface TargetFile {
  readonly name: string
  readonly kind: 'file' | 'directory' | 'other'
  readonly sizeBytes: number
}

/** A run of a file's bytes. */
export interface ByteRange {
  readonly offset: number
  readonly length: number
}

export interface Target {
  readonly name: string
  /** Of the kind `drive`: which of the target's drives this is. */
  readonly drive: string | undefined
  /** For messages: where it is. */
  readonly place: string
  /**
   * Where bundles are read from: `files` of this machine, at localPath(); or over the network, by
   * readRange() and fileSize().
   */
  readonly access: 'files' | 'network'
  /** What only a bucket can do; undefined everywhere else. */
  readonly bucket: Bucket | undefined
  /** What is in a directory, sorted by name; undefined where it does not exist. */
  list(directory: string): Promise<readonly TargetFile[] | undefined>
  /**
   * Every file below a directory, and every directory that has nothing in it, by its path relative
   * to the first, sorted by that; links are `other` and not followed. Empty where there is none.
   */
  listTree(directory: string): Promise<readonly TargetFile[]>
  /** A small file, whole. @throws BackupError TARGET_FAILED when it is larger than `maxBytes` */
  read(path: string, maxBytes: number): Promise<Buffer | undefined>
  /** Some bytes of a file: fewer where it ends, undefined where it is not there. */
  readRange(path: string, range: ByteRange): Promise<Buffer | undefined>
  /** How long a file is; undefined where it is not there. */
  fileSize(path: string): Promise<number | undefined>
  /**
   * A small new file. On a remote target, one that is there already with the same bytes is fine.
   */
  write(path: string, bytes: Uint8Array): Promise<void>
  /** A small file that may be there already: `latest`, and a manifest that is damaged. */
  replace(path: string, bytes: Uint8Array): Promise<void>
  /** A local directory for the bundles of `directory`, made if need be. */
  workDirectory(directory: string): Promise<RawPath>
  /**
   * Gives a proven file of workDirectory(), `<name>.partial`, its place and name on the target. On
   * a remote target it is sent, proven there, and then removed from the spool; what was sent before
   * an interruption is not sent again.
   * @param sha256 what it has to be, in hex: what waited in a spool may have changed meanwhile
   * @throws BackupError READ_BACK where it is something else: then nothing is sent
   */
  publish(path: string, sha256?: string): Promise<void>
  /** Where access is `files`: a local path to read a bundle from. */
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
  /** Over a network: what was sent so far, for people who wait; undefined where nothing is. */
  sentBytes(): number | undefined
  /** Ends connections and timers, so that nothing keeps the program alive. */
  close(): Promise<void>
}

/** What a damaged file is called once it was moved out of the way: the first, second, … of it. */
export function asideName(path: string, number: number): string {
  return number === 1 ? `${path}.damaged` : `${path}.damaged-${number}`
}
