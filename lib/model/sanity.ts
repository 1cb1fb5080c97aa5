// Whether a source still is what it was: the gate that keeps an empty mount point from becoming the
// newest backup (design invariant 5).
//
// Pure: collect.ts counts the source's entries and bytes and finds out its filesystem, and compares
// them with those of the last collection that was trusted. A doubt makes the collection suspect; it
// is kept all the same, and `backup accept` ends the doubt. Throws nothing.

import { formatSize } from './amount.ts'
import { listedPaths, type RawPath } from './raw-path.ts'

/** What is remembered of a source from one collection to the next. */
export interface SourceFacts {
  /** Without the leading slash. */
  readonly path: RawPath
  readonly isDirectory: boolean
  /**
   * What tells one filesystem from another, whatever its device is called today: `ext4 UUID`,
   * `btrfs UUID /@home`, without the UUID where it could not be found out.
   */
  readonly filesystem: string
  /** At and below the path, as collected: the source itself is one. */
  readonly entries: number
  readonly bytes: number
  /** Below it: where something else was mounted that held anything. */
  readonly mounts: readonly RawPath[]
}

export interface Doubt {
  readonly path: RawPath
  /** For people: `empty; it had 1,200 entries`. */
  readonly why: string
}

/**
 * What is to be distrusted about sources.
 * @param options.before the sources of the last trusted collection; undefined where there is none
 * @param options.maxLoss the share of entries or bytes that may go, above 0, up to 1
 */
export function doubtsAbout({
  now,
  before,
  maxLoss,
}: {
  now: readonly SourceFacts[]
  before: readonly SourceFacts[] | undefined
  maxLoss: number
}): readonly Doubt[] {
  return now.flatMap((facts) => {
    const known = before?.find(({ path }) => path === facts.path)
    const why = reasonsFor(facts, { known, maxLoss })
    return why.length === 0 ? [] : [{ path: facts.path, why: why.join('; ') }]
  })
}

function reasonsFor(
  facts: SourceFacts,
  { known, maxLoss }: { known: SourceFacts | undefined; maxLoss: number },
): readonly string[] {
  const reasons: string[] = []
  if (isEmpty(facts) && (known === undefined ? facts.isDirectory : !isEmpty(known))) {
    reasons.push(known === undefined ? 'empty' : `empty; it had ${amount(known)}`)
  } else if (known !== undefined && facts.isDirectory && known.isDirectory) {
    const lost = {
      entries: loss(known.entries, facts.entries),
      bytes: loss(known.bytes, facts.bytes),
    }
    if (lost.entries > maxLoss || lost.bytes > maxLoss) {
      reasons.push(`it shrank from ${amount(known)} to ${amount(facts)}`)
    }
  }
  if (known !== undefined && !isSameFilesystem(known.filesystem, facts.filesystem)) {
    reasons.push(`on another filesystem: ${facts.filesystem}, before ${known.filesystem}`)
  }
  const unmounted = known?.mounts.filter((path) => !facts.mounts.includes(path)) ?? []
  if (unmounted.length > 0) {
    reasons.push(`nothing is mounted there any more, or it is empty: ${listedPaths(unmounted)}`)
  }
  return reasons
}

/**
 * A UUID that one run could not find out, and another could, is no doubt by itself: type and
 * subvolume are compared. Two UUIDs have to be equal.
 */
function isSameFilesystem(a: string, b: string): boolean {
  return a === b || withoutUuid(a) === b || a === withoutUuid(b)
}

/** A UUID is the second word, and holds no slash: so `zfs tank/home` and `btrfs /@home` stay. */
function withoutUuid(filesystem: string): string {
  return filesystem.replace(/^(\S+) [^\s/]+(?= |$)/, '$1')
}

function isEmpty({ isDirectory, entries, bytes }: SourceFacts): boolean {
  return isDirectory ? entries <= 1 : bytes === 0
}

/** The share that is gone: 0 where nothing is, and where there was nothing. */
function loss(before: number, now: number): number {
  return before === 0 ? 0 : Math.max(0, 1 - now / before)
}

function amount({ entries, bytes }: SourceFacts): string {
  return `${entries} ${entries === 1 ? 'entry' : 'entries'} (${formatSize(bytes)})`
}
