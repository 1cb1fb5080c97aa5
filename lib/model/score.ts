// The 3-2-1 score from evidence: how many copies there are, on how many media, how many off-site.
//
// lib/work/score.ts brings what is known of each place, lib/work/status.ts shows the score, and
// lib/work/announcements.ts tells when it dropped. The sources are one copy on one medium. A place
// counts when it holds a good export of every set that is exported at all, none of them late, when
// a proof of each was good not too long ago, and when no damage stands. Staging never counts:
// nothing proves it, and it is lost with the machine. Pure; throws nothing.

import { formatAge } from './period.ts'

export interface ScoreNumbers {
  /** The sources included, as in `media`. */
  readonly copies: number
  readonly media: number
  readonly offSite: number
}

/** What is known of one place: a target, or one drive of a pool. */
export interface ScorePlace {
  readonly target: string
  /** Of the kind `drive`. */
  readonly drive: string | undefined
  readonly kind: 'directory' | 'drive' | 's3' | 'sftp'
  /** Two places with the same medium are lost together; undefined: that of the sources. */
  readonly medium: string | undefined
  readonly isOffSite: boolean
  readonly isDamaged: boolean
  /** Every set that is exported. */
  readonly sets: readonly ScoreSet[]
}

export interface ScoreSet {
  readonly name: string
  /** When the newest good export began. */
  readonly lastGoodMs: number | undefined
  readonly isLate: boolean
  /** When any of its exports was last read and found good. */
  readonly provenMs: number | undefined
}

/** Why a place does not count. */
export type ScoreDoubt = 'damaged' | 'no export' | 'late' | 'unproven'

export interface JudgedPlace extends Omit<ScorePlace, 'sets' | 'isDamaged'> {
  readonly doubt: ScoreDoubt | undefined
  /** What the doubt is, for people; when it was exported to and proven where there is none. */
  readonly words: string
  /** Of the set that waits longest. */
  readonly lastGoodMs: number | undefined
  readonly provenMs: number | undefined
}

export interface Score extends ScoreNumbers {
  readonly wanted: ScoreNumbers
  readonly isReached: boolean
  readonly places: readonly JudgedPlace[]
  /** Places that counted before, are configured still, and count no more. */
  readonly lost: readonly JudgedPlace[]
  /** The one thing that would mend most, for people; undefined where all is reached. */
  readonly next: string | undefined
}

export interface ScoreFacts {
  readonly places: readonly ScorePlace[]
  readonly wanted: ScoreNumbers
  readonly provenWithinMs: number
  /** placeName of those that counted when it was last looked. */
  readonly remembered: readonly string[]
  /** Whether one place that counts is enough, because each export goes to one only. */
  readonly isOneEnough: boolean
  readonly nowMs: number
}

/** How a place is called: `vault (red)`, and `t9` where the drive has the target's name. */
export function placeName({ target, drive }: Pick<ScorePlace, 'target' | 'drive'>): string {
  return drive === undefined || drive === target ? target : `${target} (${drive})`
}

/** The score, and what would raise it. */
export function judgeScore(facts: ScoreFacts): Score {
  const { wanted, remembered, isOneEnough } = facts
  const places = facts.places.map((place) => judgePlace(place, facts))
  const counting = places.filter(({ doubt }) => doubt === undefined)
  const numbers = countPlaces(counting)
  const isEnough = isOneEnough && counting.length > 0
  const lost = places.filter((place) => {
    return place.doubt !== undefined && remembered.includes(placeName(place)) && !isEnough
  })
  const isReached = shortOf(numbers, wanted) === 0
  const score = { ...numbers, wanted, isReached, places, lost }
  return { ...score, next: nextThing(score) }
}

/** `3 copies, 2 media, 1 off-site`. */
export function scoreText({ copies, media, offSite }: ScoreNumbers): string {
  const words = [copies === 1 ? 'copy' : 'copies', media === 1 ? 'medium' : 'media']
  return `${copies} ${words[0]}, ${media} ${words[1]}, ${offSite} off-site`
}

/** Those that count. */
export function countPlaces(places: readonly Pick<ScorePlace, 'medium' | 'isOffSite'>[]) {
  const media = new Set(places.map(({ medium }) => medium)).add(undefined)
  const offSite = places.filter(({ isOffSite }) => isOffSite).length
  return { copies: 1 + places.length, media: media.size, offSite }
}

/**
 * Whether a host is evidently at hand, by its name alone: this machine, a private or link-local
 * address, a name without a dot, or one of the domains that homes use.
 */
export function isNearbyHost(host: string): boolean {
  const name = host.toLowerCase().replace(/^\[|\]$|\.$/g, '')
  if (/^[\d.]+$/.test(name)) {
    return /^(127|10|192\.168|169\.254|172\.(1[6-9]|2\d|3[01]))\./.test(name)
  }
  if (name.includes(':')) return /^(::1$|f[cd]|fe[89ab])/.test(name)
  return !name.includes('.') || /\.(local|localhost|lan|home|internal|home\.arpa)$/.test(name)
}

function judgePlace(place: ScorePlace, { provenWithinMs, nowMs }: ScoreFacts): JudgedPlace {
  const { sets, isDamaged, ...rest } = place
  const oldest = (times: readonly (number | undefined)[]): number | undefined => {
    const known = times.filter((time) => time !== undefined)
    return known.length < times.length || known.length === 0 ? undefined : Math.min(...known)
  }
  const lastGoodMs = oldest(sets.map((set) => set.lastGoodMs))
  const provenMs = oldest(sets.map((set) => set.provenMs))
  const judged = { ...rest, lastGoodMs, provenMs }
  const age = (timeMs: number | undefined): string => {
    return timeMs === undefined ? 'never' : formatAge(nowMs - timeMs)
  }
  if (isDamaged) return { ...judged, doubt: 'damaged', words: 'what was exported is damaged' }
  const missing = sets.find((set) => set.lastGoodMs === undefined)
  if (missing !== undefined || sets.length === 0) {
    const of = missing === undefined ? '' : ` of ${missing.name}`
    return { ...judged, doubt: 'no export', words: `no good export${of} yet` }
  }
  const late = sets.find(({ isLate }) => isLate)
  if (late !== undefined) {
    const words = `the last good export of ${late.name} was ${age(late.lastGoodMs)}`
    return { ...judged, doubt: 'late', words }
  }
  // A proof of a time to come is that of a clock that was wrong.
  const unproven = sets.find(({ provenMs: atMs = -Infinity }) => {
    return atMs > nowMs || nowMs - atMs > provenWithinMs
  })
  if (unproven !== undefined) {
    const { name, provenMs: atMs } = unproven
    const words =
      atMs === undefined
        ? `${name} was never proven`
        : `the last good proof of ${name} was ${age(atMs)}`
    return { ...judged, doubt: 'unproven', words }
  }
  const words = `last good export ${age(lastGoodMs)}, proven ${age(provenMs)}`
  return { ...judged, doubt: undefined, words }
}

/** How much is lacking, of all three together. */
function shortOf(numbers: ScoreNumbers, wanted: ScoreNumbers): number {
  const names = ['copies', 'media', 'offSite'] as const
  return names.reduce((sum, name) => sum + Math.max(0, wanted[name] - numbers[name]), 0)
}

/** Least trouble first. */
const EASE: readonly ScoreDoubt[] = ['unproven', 'late', 'no export', 'damaged']

/** What the person can do that raises the score most; what was lost comes first. */
function nextThing(score: Omit<Score, 'next'>): string | undefined {
  const { places, wanted, isReached, lost } = score
  if (isReached && lost.length === 0) return undefined
  const counting = places.filter(({ doubt }) => doubt === undefined)
  const candidates = places.flatMap((place) => {
    if (place.doubt === undefined) return []
    const shortAfter = shortOf(countPlaces([...counting, place]), wanted)
    const isLost = lost.includes(place)
    const ranks = [isLost ? 0 : 1, shortAfter, EASE.indexOf(place.doubt)]
    return isLost || shortAfter < shortOf(score, wanted) ? [{ place, ranks }] : []
  })
  const [best] = candidates.toSorted((one, other) => {
    const rank = one.ranks.findIndex((value, index) => value !== other.ranks[index])
    return rank === -1 ? 0 : one.ranks[rank]! - other.ranks[rank]!
  })
  const lacksOffSite = score.offSite < wanted.offSite
  if (best !== undefined) {
    // Who has to plug it in can take it along as well.
    const { kind, isOffSite } = best.place
    const isMovable = lacksOffSite && kind === 'drive' && !isOffSite
    const isOnly = !candidates.some(({ place }) => place.isOffSite)
    const away = isMovable && isOnly ? ', and take it elsewhere (`off_site: true`)' : ''
    return `${mend(best.place)}${away}`
  }
  const drive = counting.findLast(({ kind, isOffSite }) => kind === 'drive' && !isOffSite)
  const isOnlyOffSite = score.copies >= wanted.copies && score.media >= wanted.media
  if (isOnlyOffSite && drive !== undefined) {
    return `take ${drive.drive ?? drive.target} elsewhere, and give it \`off_site: true\``
  }
  const what = lacksOffSite ? 'a bucket, or a drive that is kept elsewhere' : 'another drive, say'
  return `add a target: ${what} (docs/status.md)`
}

/** How a place comes to count. */
function mend({ target, drive, kind, doubt }: JudgedPlace): string {
  const plug = drive === undefined ? '' : `plug in ${drive}, then `
  if (doubt === 'late' || doubt === 'no export') {
    return `${plug}\`backup-external --target ${target}\``
  }
  const isSampled = doubt === 'unproven' && (kind === 'drive' || kind === 'directory')
  if (isSampled) return `${plug}\`backup drill --target ${target}\``
  return `${plug}\`backup-restore --source external --target ${target} --verify\``
}
