// What the version index says of one path, as runs: neighbouring generations of which the same is
// true.
//
// find.ts and why.ts tell it. A generation that could not collect a path does not lack it, and one
// whose catalog is damaged is not known. Throws CATALOG_DAMAGED for a line that the index would not
// have written.

import type { RawPath } from '../model/raw-path.ts'
import type { Stamp } from '../model/stamp.ts'
import { reasonMissing, spansOf, type VersionText } from '../model/version-index.ts'
import type { Versions } from './versions.ts'

/** Neighbouring generations of which the same is true. */
export interface VersionRun {
  readonly state: 'held' | 'absent' | 'missing' | 'damaged'
  readonly newest: Stamp
  readonly oldest: Stamp
  readonly count: number
  /** Oldest first. */
  readonly stamps: readonly Stamp[]
  /** What the path is in them, where it is held: parseVersion takes it apart. */
  readonly version: VersionText | undefined
  /** Why it could not be collected, where it is missing. */
  readonly why: string | undefined
}

/** What makes runs of lines, for the generations of an index or some of them. */
export type RunReader = (path: RawPath, line: string) => VersionRun[]

interface Finding {
  readonly state: VersionRun['state']
  readonly version: VersionText | undefined
  readonly why: string | undefined
}

const ABSENT: Finding = { state: 'absent', version: undefined, why: undefined }
const DAMAGED: Finding = { state: 'damaged', version: undefined, why: undefined }

/** The runs of a path, newest first. */
export function runReader({
  generations,
  numbers,
  damaged,
}: Pick<Versions, 'generations' | 'numbers' | 'damaged'>): RunReader {
  const stamps = generations.map(({ stamp }) => stamp)
  const missing = generations.map((one) => new Map(one.missing.map(({ path, why }) => [path, why])))
  const isPlain = damaged.length === 0 && missing.every(({ size }) => size === 0)
  const found = (version: VersionText | undefined): Finding => {
    return version === undefined ? ABSENT : { state: 'held', version, why: undefined }
  }
  if (isPlain) {
    return (_path, line) => {
      const spans = spansOf(line, numbers).toReversed()
      return spans.map(({ first, last, version }) => {
        return runOf(found(version), stamps.slice(first, last + 1))
      })
    }
  }
  return (path, line) => {
    const findings = new Map<Stamp, Finding>(damaged.map((stamp) => [stamp, DAMAGED]))
    for (const { first, last, version } of spansOf(line, numbers)) {
      for (let at = first; at <= last; at++) {
        const why = version === undefined ? reasonMissing(missing[at]!, path) : undefined
        const finding: Finding = { state: 'missing', version: undefined, why }
        findings.set(stamps[at]!, why === undefined ? found(version) : finding)
      }
    }
    return joined(findings)
  }
}

function joined(findings: ReadonlyMap<Stamp, Finding>): VersionRun[] {
  const runs: { readonly finding: Finding; readonly stamps: Stamp[] }[] = []
  for (const stamp of [...findings.keys()].sort()) {
    const finding = findings.get(stamp)!
    const last = runs.at(-1)
    const isSame =
      last?.finding.state === finding.state
      && last.finding.version === finding.version
      && last.finding.why === finding.why
    if (isSame) last.stamps.push(stamp)
    else runs.push({ finding, stamps: [stamp] })
  }
  return runs.toReversed().map(({ finding, stamps }) => runOf(finding, stamps))
}

function runOf({ state, version, why }: Finding, stamps: readonly Stamp[]): VersionRun {
  return {
    state,
    newest: stamps.at(-1)!,
    oldest: stamps[0]!,
    count: stamps.length,
    stamps,
    version,
    why,
  }
}
