// What a source file has that rsync cannot carry: its time of birth and its inode flags.
//
// statx(2) tells both without opening the file; elsewhere than on Linux lstat tells the birth, and
// flags are not read. lib/work/source-metadata.ts asks, metadata.ts sets flags again
// (docs/format.md §5). Throws system errors; a filesystem that knows no birth is no error.

import { Buffer } from 'node:buffer'
import { lstatSync } from 'node:fs'
import type { InodeFlag, TimeNs } from '../model/entry.ts'
import { type RawPath, rawPathToBytes } from '../model/raw-path.ts'
import { readStatx, STATX_BYTES } from './posix.ts'

export interface SourceStat {
  /** With the type, as in st_mode. */
  readonly mode: number
  readonly size: number
  readonly mtimeNs: TimeNs
  readonly birthNs: TimeNs | undefined
  /** Sorted. */
  readonly flags: readonly InodeFlag[]
}

/** Those of STATX_ATTR_* that chattr(1) can set, by name. */
const ATTRIBUTES: readonly (readonly [name: InodeFlag, bit: number])[] = [
  ['append', 0x20],
  ['compressed', 0x04],
  ['immutable', 0x10],
  ['nodump', 0x40],
]

const STATX_BTIME = 0x800
const [ATTRIBUTES_AT, MODE_AT, SIZE_AT, BIRTH_AT, MTIME_AT] = [8, 28, 40, 80, 112] as const
const NO_FLAGS: readonly InodeFlag[] = []

/** One for all calls: they are synchronous, and there are as many as paths. */
const struct = Buffer.alloc(STATX_BYTES)

/** What lies at a path, itself and not what a symbolic link points to. */
export function statSource(path: RawPath): SourceStat {
  if (process.platform !== 'linux') return statElsewhere(path)
  readStatx(path, struct)
  const bits = struct.readUInt32LE(ATTRIBUTES_AT)
  const hasBirth = (struct.readUInt32LE(0) & STATX_BTIME) !== 0
  const flags = ATTRIBUTES.filter(([, bit]) => (bits & bit) !== 0).map(([name]) => name)
  return {
    mode: struct.readUInt16LE(MODE_AT),
    size: Number(struct.readBigUInt64LE(SIZE_AT)),
    mtimeNs: timeAt(MTIME_AT),
    birthNs: hasBirth ? timeAt(BIRTH_AT) : undefined,
    flags: flags.length === 0 ? NO_FLAGS : flags,
  }
}

/** Seconds and nanoseconds of a struct statx_timestamp. */
function timeAt(offset: number): TimeNs {
  return struct.readBigInt64LE(offset) * 1_000_000_000n + BigInt(struct.readUInt32LE(offset + 8))
}

function statElsewhere(path: RawPath): SourceStat {
  const { mode, size, mtimeNs, birthtimeNs } = lstatSync(rawPathToBytes(path), { bigint: true })
  return {
    mode: Number(mode),
    size: Number(size),
    mtimeNs,
    birthNs: birthtimeNs === 0n ? undefined : birthtimeNs,
    flags: NO_FLAGS,
  }
}
