// What a failure of an SFTP host means to its user.
//
// sftp-client.ts throws SftpFailure and nothing else for what a host answers; sftp.ts gives it to
// sftpError where it knows what it was about. SFTP has few words: a full disk, a taken name and a
// read-only filesystem are all "failure", so whoever writes asks for the room that is left first.

import { BackupError } from '../errors.ts'

/**
 * What the protocol can say. `lost` is the only one that another try may mend: the connection broke
 * before the answer came.
 */
export type SftpTrouble = 'absent' | 'denied' | 'failure' | 'unsupported' | 'lost'

/** A call that failed; wrapped before it leaves lib/target. */
export class SftpFailure extends Error {
  readonly trouble: SftpTrouble

  constructor(trouble: SftpTrouble, message: string, cause?: unknown) {
    super(message, cause === undefined ? {} : { cause })
    this.name = 'SftpFailure'
    this.trouble = trouble
  }
}

/** The room on a host. */
export interface RemoteSpace {
  readonly freeBytes: number
  /** No file can be made any more, whatever its size. */
  readonly isOutOfFiles: boolean
  readonly isReadOnly: boolean
}

const UNHARMED = 'earlier exports are unharmed, the next run goes on'

/** Filesystems need some for themselves. */
const FULL_BELOW_BYTES = 1024 * 1024

/** The error to throw for a call about `path`; `name` is the target's. */
export function sftpError(
  failure: SftpFailure,
  about: {
    readonly name: string
    readonly path: string
    readonly access: 'read' | 'write'
    /** Where the host tells. */
    readonly space?: RemoteSpace | undefined
    /** How much was to be written. */
    readonly wantedBytes?: number
  },
): BackupError {
  const { name, path, access, space, wantedBytes = 0 } = about
  const error = (...[code, message, hint]: readonly [...Meaning]): BackupError => {
    return new BackupError(code, `target ${name}: ${message}: ${path}`, {
      hint,
      facts: { target: name, path, sftp: failure.message },
      retry: failure.trouble === 'lost' ? 'later' : 'never',
      cause: failure,
    })
  }
  if (failure.trouble === 'lost') return error(...LOST)
  if (access === 'read') return error(...(failure.trouble === 'denied' ? HIDDEN : FAILED))
  if (failure.trouble === 'denied' || space?.isReadOnly === true) return error(...READ_ONLY)
  const isFull =
    space !== undefined && (space.isOutOfFiles || space.freeBytes < wantedBytes + FULL_BELOW_BYTES)
  return error(...(isFull ? FULL : FAILED))
}

type Meaning = [
  'TARGET_ABSENT' | 'TARGET_DENIED' | 'TARGET_READ_ONLY' | 'TARGET_FULL' | 'TARGET_FAILED',
  string,
  string,
]

const LOST: Meaning = [
  'TARGET_ABSENT',
  'the connection broke',
  `check the network and the host; what was sent is kept there; ${UNHARMED}`,
]

const HIDDEN: Meaning = [
  'TARGET_DENIED',
  'the host lets this user not read it',
  'check owner and permissions there, and the directory that the user is confined to',
]

const READ_ONLY: Meaning = [
  'TARGET_READ_ONLY',
  'the host lets this user not write it',
  `check owner, permissions and mount there; ${UNHARMED}`,
]

const FULL: Meaning = [
  'TARGET_FULL',
  'the disk of the host is full',
  `free some space there or lower retention.external; ${UNHARMED}`,
]

const FAILED: Meaning = [
  'TARGET_FAILED',
  'the host failed',
  `look into its log; a quota that is used up looks like this, too; ${UNHARMED}`,
]

/** @see Target: nothing is overwritten */
export function takenError(path: string): BackupError {
  return new BackupError('TARGET_FAILED', `${path} is there already, with other bytes`, {
    hint: 'nothing is ever overwritten there; move it away if it is not ours',
  })
}

export function inTheWayError(path: string): BackupError {
  return new BackupError('TARGET_FOREIGN', `${path} is in the way`, {
    hint: 'it is not what this program writes there; move it away; nothing was changed',
  })
}

export function readBackError(path: string): BackupError {
  return new BackupError('READ_BACK', `the host does not hold what was sent to ${path}`, {
    hint:
      'it was removed there and will be sent again; earlier exports are unharmed; '
      + "check the host's disk and memory",
  })
}
