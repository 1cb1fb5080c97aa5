// The connections to one SFTP host: made when they are needed, used again, made anew when they
// break.
//
// sftp.ts does every call through use(). A call whose connection broke is made again, so it must
// look what is there first. Throws what the call and connecting throw, and TARGET_ABSENT where the
// host is given up.

import { setTimeout as sleep } from 'node:timers/promises'
import { BackupError } from '../errors.ts'
import type { SftpConnection, SftpLimits } from './sftp-client.ts'
import { SftpFailure } from './sftp-errors.ts'
import type { Transfers } from './transfers.ts'

export interface Connections {
  /**
   * Does the work with a connection that nobody else has meanwhile. `progress` counts what was
   * achieved for good: as long as it grows, the host is not given up.
   */
  use<T>(
    work: (connection: SftpConnection) => Promise<T>,
    options?: { readonly gate?: Transfers; readonly progress?: () => number },
  ): Promise<T>
  /** Ends all of them, and whatever is under way. */
  close(): void
}

export interface ConnectionsOptions {
  readonly connect: () => Promise<SftpConnection>
  readonly limits: Pick<SftpLimits, 'tries' | 'firstPauseMs'>
  /** How many calls are under way at once, where use() is given no other gate. */
  readonly gate: Transfers
  /** One that is there already. */
  readonly first: SftpConnection
}

/** Nobody waits longer than this before one more try. */
const LONGEST_PAUSE_MS = 30_000

export function createConnections(options: ConnectionsOptions): Connections {
  const { connect, limits, gate: usualGate, first } = options
  const idle = [first]
  const all = new Set(idle)
  let isClosed = false

  const takeOne = async (): Promise<SftpConnection> => {
    for (let free = idle.pop(); free !== undefined; free = idle.pop()) {
      if (free.isOpen()) return free
      all.delete(free)
    }
    const made = await connect()
    all.add(made)
    if (isClosed) made.end()
    return made
  }
  const useOnce = async <T>(work: (connection: SftpConnection) => Promise<T>): Promise<T> => {
    const connection = await takeOne()
    try {
      return await work(connection)
    } finally {
      if (connection.isOpen()) idle.push(connection)
      else all.delete(connection)
    }
  }

  return {
    async use(work, { gate = usualGate, progress = () => 0 } = {}) {
      let best = progress()
      for (let tried = 1; ; tried += 1) {
        try {
          return await gate.run(async () => await useOnce(work))
        } catch (error) {
          if (!isLoss(error) || isClosed) throw error
          if (progress() > best) tried = 1
          best = progress()
          if (tried >= limits.tries) throw error
          await sleep(pauseMs(tried, limits))
        }
      }
    },
    close() {
      isClosed = true
      for (const connection of all) connection.end()
      all.clear()
    },
  }
}

/** Whether another try may succeed. */
function isLoss(error: unknown): boolean {
  if (error instanceof SftpFailure) return error.trouble === 'lost'
  return error instanceof BackupError && error.code === 'TARGET_ABSENT' && error.retry === 'later'
}

/** Not all at once, when a host comes back: from half of it to all of it. */
function pauseMs(tried: number, { firstPauseMs }: Pick<SftpLimits, 'firstPauseMs'>): number {
  const longest = Math.min(firstPauseMs * 2 ** (tried - 1), LONGEST_PAUSE_MS)
  return longest * (0.5 + Math.random() / 2)
}
