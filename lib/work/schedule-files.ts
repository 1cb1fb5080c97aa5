// The schedule's files on disk: compared with what the configuration wants, written, removed.
//
// schedule-units.ts says what they hold. Only what begins with our own words is replaced or
// removed; a file of the same name that somebody else wrote is refused before anything is written.
// Files come before the links that make them count, and go after them. `root` is a directory that
// stands for `/`, or empty. Throws ALREADY_THERE and WRITE_FAILED.

import {
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmdirSync,
  rmSync,
  symlinkSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import { BackupError, systemCode } from '../errors.ts'
import { writeDurably } from '../machine/durable-file.ts'
import { displayText, rawPathFromText } from '../model/raw-path.ts'
import { OURS, type Schedule, SYSTEM_UNITS, UDEV_RULES } from './schedule-units.ts'

export type FileState =
  /** As it should be. */
  | 'same'
  | 'absent'
  /** Ours, and to be written anew. */
  | 'different'
  /** Ours, and not wanted any more. */
  | 'stale'
  /** Ours, for another configuration. */
  | 'of another configuration'
  | 'foreign'

export interface Finding {
  readonly path: string
  readonly kind: 'file' | 'link'
  readonly state: FileState
}

/** What a file may be called that is ours. */
const NAMES = [
  'backup.service',
  'backup.timer',
  'backup-drive@.service',
  'backup-failed@.service',
  'backup-failed.sh',
  'local.backup.run.plist',
  'local.backup.drive.plist',
]

/** Our words come within the first lines. */
const HEAD_CHARACTERS = 8192

/** Only root's and the user's own programs write there, so nothing else is looked at. */
const MODE = 0o644

interface Place {
  readonly root: string
  readonly directory: string
}

/** What is there of a schedule, and what of ours besides it. */
export function compareSchedule(schedule: Schedule, root: string): readonly Finding[] {
  const files = schedule.files.map(({ path, text }): Finding => {
    return { path, kind: 'file', state: fileState({ path: join(root, path), text }) }
  })
  const links = schedule.links.map(({ path, target }): Finding => {
    return { path, kind: 'link', state: linkState({ path: join(root, path), target }) }
  })
  const wanted = new Set([...files, ...links].map(({ path }) => path))
  const others = findOurs({ root, directory: schedule.directory })
  return [
    ...files,
    ...links,
    ...others.flatMap(({ path, kind }): Finding[] => {
      return wanted.has(path) ? [] : [{ path, kind, state: 'stale' }]
    }),
  ]
}

/** Everything of ours that is there, whatever configuration it was for: links first. */
export function findOurs({ root, directory }: Place): readonly Pick<Finding, 'path' | 'kind'>[] {
  const at = join(root, directory)
  const wants = names(at).filter((name) => /\.device\.wants$|^timers\.target\.wants$/.test(name))
  const links = wants.flatMap((wanted) => {
    return names(join(at, wanted))
      .map((name) => join(wanted, name))
      .filter((name) => isOurLink(join(at, name), directory))
  })
  const files = NAMES.filter((name) => isOurs(readText(join(at, name))))
  // The machine's, which only its own schedule has.
  const places = directory === SYSTEM_UNITS ? [UDEV_RULES] : []
  const rules = places.filter((path) => isOurs(readText(join(root, path))))
  return [
    ...links.map((name) => ({ path: join(directory, name), kind: 'link' as const })),
    ...files.map((name) => ({ path: join(directory, name), kind: 'file' as const })),
    ...rules.map((path) => ({ path, kind: 'file' as const })),
  ]
}

/**
 * Writes what is absent or different, removes what is stale. @returns what was changed
 * @throws BackupError ALREADY_THERE, with nothing changed; WRITE_FAILED
 */
export function writeSchedule(schedule: Schedule, root: string): readonly Finding[] {
  const findings = compareSchedule(schedule, root)
  for (const finding of findings) refuseOthers(finding)
  const changed = findings.filter(({ state }) => state !== 'same')
  const isNew = ({ path }: { path: string }): boolean => {
    return changed.some((finding) => finding.path === path && finding.state !== 'stale')
  }
  for (const { path, text } of schedule.files.filter(isNew)) {
    attempt(path, () => {
      makeParent(join(root, path))
      const bytes = Buffer.from(text)
      const place = rawPathFromText(join(root, path))
      writeDurably({ path: place, bytes, mode: MODE, replace: true })
    })
  }
  for (const { path, target } of schedule.links.filter(isNew)) {
    attempt(path, () => {
      makeParent(join(root, path))
      rmSync(join(root, path), { force: true })
      symlinkSync(target, join(root, path))
    })
  }
  removeFindings(
    changed.filter(({ state }) => state === 'stale'),
    root,
  )
  return changed
}

/** Removes these, and directories of links that are empty then. @throws BackupError WRITE_FAILED */
export function removeFindings(
  findings: readonly Pick<Finding, 'path' | 'kind'>[],
  root: string,
): void {
  const links = findings.filter(({ kind }) => kind === 'link')
  for (const { path } of [...links, ...findings.filter(({ kind }) => kind === 'file')]) {
    attempt(path, () => rmSync(join(root, path), { force: true }))
  }
  for (const { path } of links) {
    const directory = join(root, dirname(path))
    if (directory.endsWith('.device.wants') && names(directory).length === 0) {
      attempt(path, () => rmdirSync(directory))
    }
  }
}

function refuseOthers({ path, state }: Finding): void {
  const what = displayText(path)
  if (state === 'foreign') {
    throw new BackupError('ALREADY_THERE', `"${what}" was not written by backup schedule install`, {
      hint: 'move it away, if it is not needed; nothing was changed',
    })
  }
  if (state === 'of another configuration') {
    throw new BackupError('ALREADY_THERE', `"${what}" is there for another configuration`, {
      hint: 'its first line says which; `backup schedule remove` removes it; nothing was changed',
    })
  }
}

function fileState({ path, text }: { path: string; text: string }): FileState {
  const found = readText(path)
  if (found === undefined) return exists(path) ? 'foreign' : 'absent'
  if (found === text) return 'same'
  if (!isOurs(found)) return 'foreign'
  return ownerOf(found) === ownerOf(text) ? 'different' : 'of another configuration'
}

function linkState({ path, target }: { path: string; target: string }): FileState {
  const found = linkTarget(path)
  if (found === undefined) return exists(path) ? 'foreign' : 'absent'
  return found === target ? 'same' : 'foreign'
}

function isOurLink(path: string, directory: string): boolean {
  const target = linkTarget(path)
  const units = ['backup.timer', 'backup-drive@.service'].map((name) => join(directory, name))
  return target !== undefined && units.includes(target)
}

function isOurs(text: string | undefined): boolean {
  return text !== undefined && ownerOf(text) !== undefined
}

/** For which configuration it says that it is, in its first line or after that of XML. */
function ownerOf(text: string): string | undefined {
  const lines = text.slice(0, HEAD_CHARACTERS).split('\n', 2)
  const line = lines.find((one) => /^(# |<!-- )/.test(one) && one.includes(OURS)) ?? ''
  return /^"(?:[^"\\]|\\.)*"/.exec(line.slice(line.indexOf(OURS) + OURS.length))?.[0]
}

function readText(path: string): string | undefined {
  try {
    return lstatSync(path).isFile() ? readFileSync(path, 'utf8') : undefined
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes(systemCode(error) ?? '')) return undefined
    throw failed(path, error)
  }
}

function linkTarget(path: string): string | undefined {
  try {
    return readlinkSync(path)
  } catch (error) {
    if (['ENOENT', 'ENOTDIR', 'EINVAL'].includes(systemCode(error) ?? '')) return undefined
    throw failed(path, error)
  }
}

function exists(path: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false }) !== undefined
}

function names(directory: string): readonly string[] {
  try {
    return readdirSync(directory).sort()
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes(systemCode(error) ?? '')) return []
    throw failed(directory, error)
  }
}

function makeParent(path: string): void {
  mkdirSync(dirname(path), { recursive: true, mode: 0o755 })
}

function attempt(path: string, action: () => void): void {
  try {
    action()
  } catch (error) {
    throw failed(path, error)
  }
}

function failed(path: string, error: unknown): unknown {
  const code = systemCode(error)
  if (code === undefined || error instanceof BackupError) return error
  const message = `"${displayText(path)}" cannot be read or changed (${code})`
  const isDenied = code === 'EACCES' || code === 'EPERM'
  return new BackupError('WRITE_FAILED', message, {
    hint: isDenied
      ? 'use sudo for --system, or install with --user; what is there already works as before'
      : 'say the same again once that is mended: it finishes what was begun',
    cause: error,
  })
}
