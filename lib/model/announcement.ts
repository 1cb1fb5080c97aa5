// What the person is told besides what a command prints: plain data for desktop, mail, log and
// whatever else.
//
// The procedures and commands make announcements; lib/work/announce.ts decides which are told now
// and hands them to the channels. Pure; throws nothing.

export type AnnouncementKind =
  /** A run, or one set or target of it, failed. */
  | 'failed'
  /** It ended, but incomplete or suspect. */
  | 'doubtful'
  | 'succeeded'
  /** A target that is due is not there. */
  | 'missing'
  /** A drive was not exported to for too long. */
  | 'overdue'
  | 'low space'
  | 'safe to unplug'

export interface Announcement {
  readonly kind: AnnouncementKind
  /**
   * What it is about: `export home t9`. The same kind about the same subject is not told again
   * within `notify.repeat`.
   */
  readonly subject: string
  /** A few words: `Backup to t9 failed`. */
  readonly title: string
  /** One to three sentences: what happened, what to do. Never a secret. */
  readonly body: string
  /** Only for log, journal and JSON: people get a summary of it. */
  readonly isRecord?: boolean
  /** Plain data for JSON and the journal; never a secret. */
  readonly facts: Readonly<Record<string, string | number | boolean | undefined>>
}

/** How loud it is. */
export function urgencyOf({ kind }: Announcement): 'low' | 'normal' | 'critical' {
  if (kind === 'failed') return 'critical'
  return kind === 'succeeded' || kind === 'safe to unplug' ? 'low' : 'normal'
}
