// A directory that behaves like a target over a network: read by ranges only, written by way of a
// spool. For tests of what is above targets; the real ones are s3.ts and sftp.ts.

import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs'
import { setImmediate } from 'node:timers/promises'
import { BackupError } from '../../lib/errors.ts'
import { openDirectoryTarget } from '../../lib/target/directory.ts'
import type { Target } from '../../lib/target/target.ts'

export interface NetworkTarget extends Target {
  /** What was asked for, in order: `readRange machines/…`. */
  readonly calls: string[]
  /** Called before each; what it throws the call throws. */
  onCall: (call: string) => void
}

export function networkTarget(of: {
  readonly path: string
  readonly spool: string
}): NetworkTarget {
  const files = openDirectoryTarget({ name: 'drive', path: of.path, mustBeMounted: false })
  const calls: string[] = []
  const proxy: NetworkTarget = {
    calls,
    onCall: () => {},
    name: 'drive',
    drive: undefined,
    place: of.path,
    access: 'network',
    bucket: undefined,
    list: async (path) => await through('list', path, () => files.list(path)),
    listTree: async (path) => await through('listTree', path, () => files.listTree(path)),
    read: async (path, max) => await through('read', path, () => files.read(path, max)),
    readRange: async (path, range) =>
      await through('readRange', path, () => files.readRange(path, range)),
    fileSize: async (path) => await through('fileSize', path, () => files.fileSize(path)),
    write: async (path, bytes) =>
      await through('write', path, async () => {
        if ((await files.read(path, 2 ** 20))?.equals(bytes) !== true)
          await files.write(path, bytes)
      }),
    replace: async (path, bytes) =>
      await through('replace', path, () => files.replace(path, bytes)),
    workDirectory: async (path) => {
      mkdirSync(`${of.spool}/${path}`, { recursive: true })
      return `${of.spool}/${path}`
    },
    publish: async (path, sha256) =>
      await through('publish', path, async () => {
        const spooled = `${of.spool}/${path}.partial`
        const bytes = readFileSync(spooled)
        const found = createHash('sha256').update(bytes).digest('hex')
        if (sha256 !== undefined && sha256 !== found) throw changed()
        if ((await files.read(path, 2 ** 30))?.equals(bytes) !== true) {
          await files.write(path, bytes)
        }
        rmSync(spooled)
      }),
    localPath: () => {
      throw new Error('there are no local files')
    },
    setAside: async (path) => await files.setAside(path),
    remove: async (path) => await through('remove', path, () => files.remove(path)),
    removeDirectory: async (path) => await files.removeDirectory(path),
    freeBytes: async () => undefined,
    sentBytes: () => 0,
    close: async () => {},
  }
  const through = async <T>(call: string, path: string, action: () => Promise<T>): Promise<T> => {
    calls.push(`${call} ${path}`)
    proxy.onCall(`${call} ${path}`)
    await setImmediate()
    return await action()
  }
  return proxy
}

/** As targets tell of a spooled file that is not what was written. */
function changed(): BackupError {
  return new BackupError('READ_BACK', 'what waits to be sent has changed')
}

/** As a dropped connection is told. */
export function dropped(): BackupError {
  return new BackupError('TARGET_ABSENT', 'the connection was dropped', { retry: 'later' })
}

/** Whether anything waits in a spool. */
export function isSpoolEmpty(spool: string): boolean {
  return !existsSync(`${spool}/machines/tester/data`)
}
