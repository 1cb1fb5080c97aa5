// `backup doctor --target`: can this target be trusted with exports? One check after the other, as
// in doctor.ts.
//
// Looks whether it is there and can be written, what its filesystem lacks, whose repository it has,
// whether everything fits, whether the drive holds what it says (capacity.ts), and what SMART
// knows. What it writes is gone at the end; what a killed one left is swept. Throws only
// INTERRUPTED and bugs.

import { asFailure, type Check, failure, ok, quoted, warning } from '../model/check.ts'
import { Buffer } from 'node:buffer'
import { randomBytes } from 'node:crypto'
import { accessSync, constants, existsSync, mkdirSync, statfsSync } from 'node:fs'
import { BackupError } from '../errors.ts'
import type { Configuration, TargetConfiguration } from '../machine/config.ts'
import { readBack, writeDurably } from '../machine/durable-file.ts'
import { runProgram } from '../machine/shell.ts'
import { describeSmart, readSmart } from '../machine/smart.ts'
import { listMounts, type Mount, mountOf } from '../machine/source-snapshot/mounts.ts'
import { formatSize } from '../model/amount.ts'
import { rawPathFromText, rawPathToBytes, rawPathToText } from '../model/raw-path.ts'
import type { Report } from '../model/report.ts'
import { targetError } from '../target/target-error.ts'
import type { Target } from '../target/target.ts'
import { type Capacity, probeCapacity, withProbeDirectory } from './capacity.ts'
import { describeSurvivors, withScratch } from './doctor-restore.ts'
import {
  exportsOf,
  findRepository,
  listMachines,
  listStamps,
  type Repository,
} from './repository.ts'
import { selfTestRestore } from './self-test.ts'
import { realPath } from './sources.ts'
import { surveyCollections } from './staging.ts'
import { stateDirectory } from './state.ts'
import { openSigner } from './signing.ts'
import { openTarget, repositoryToWrite } from './target-access.ts'

export interface TargetDoctorOptions {
  readonly configuration: Configuration
  readonly target: TargetConfiguration
  /** Writes nothing: what takes writing is left out. */
  readonly dryRun: boolean
  /** Whether the whole of the free space is looked at. */
  readonly withCapacity: boolean
  readonly report: Report
  readonly signal: AbortSignal
  /** Each check as soon as it is made. */
  readonly onCheck: (check: Check) => void
}

/** A file as small as a manifest, whose every byte counts. */
const SAMPLE_BYTES = 64 * 1024

/** blkid reads a few blocks; a drive that does not answer must not hold us up. */
const BLKID_TIMEOUT_MS = 10_000

const NO_JOURNAL = 'it has no journal: eject it before you unplug it, always'

/** What a filesystem lacks that matters here; by the names of the kernel and of blkid. */
const FILESYSTEMS: Readonly<Record<string, string>> = {
  exfat: `exports need none of the owners and links that it lacks; ${NO_JOURNAL}`,
  vfat: `files are at most 4 GiB, which bundles are not; ${NO_JOURNAL}`,
  msdos: `files are at most 4 GiB, which bundles are not; ${NO_JOURNAL}`,
  ext2: NO_JOURNAL,
  ntfs: 'exports need none of the owners and links that it lacks',
  ntfs3: 'exports need none of the owners and links that it lacks',
}

/** Makes every check. @throws BackupError INTERRUPTED */
export async function examineTarget(options: TargetDoctorOptions): Promise<void> {
  const { target: targetConfiguration, onCheck } = options
  let examination: Examination
  try {
    const target = await openAsOurs(options)
    const isRemote = target.access === 'network'
    const mounts = isRemote ? NO_MOUNTS : await findMounts(options, target)
    examination = { ...options, opened: target, ...mounts }
  } catch (error) {
    onCheck(asFailure('target', error))
    return
  }
  onCheck(ok('target', `${targetConfiguration.name} is at ${quoted(examination.opened.place)}`))
  let canWrite = true
  const isRemote = examination.opened.access === 'network'
  for (const [name, check, writes] of isRemote ? REMOTE_CHECKS : CHECKS) {
    if (options.signal.aborted) throw new BackupError('INTERRUPTED', 'interrupted')
    if (writes && !canWrite) continue
    try {
      for (const found of await check(examination)) onCheck(found)
    } catch (error) {
      // Read-only, or full. A drive that took it and lost it is looked at all the more.
      if (name === 'writing') canWrite = false
      const path = rawPathFromText(examination.opened.place)
      onCheck(asFailure(name, targetError({ error, path })))
    }
  }
}

/** A drive has to be the one that exports would go to: nothing is tried on a stranger's. */
async function openAsOurs({ configuration, target, signal }: TargetDoctorOptions): Promise<Target> {
  if (target.kind !== 'drive') return await openTarget(target, configuration)
  const { publicKey } = await openSigner(configuration)
  const look = { configuration, publicKey, nowMs: 0, isLook: true, signal }
  return (await repositoryToWrite(target, look)).repository.target
}

interface Examination extends TargetDoctorOptions {
  readonly opened: Target
  readonly mount: Mount | undefined
  /** Of the mount, where it is a device; as text. */
  readonly device: string | undefined
  /** Whether the system or staging lies on the same filesystem. */
  readonly isShared: boolean
}

const CHECKS: readonly (readonly [
  name: string,
  check: (examination: Examination) => Check[] | Promise<Check[]>,
  writes: boolean,
])[] = [
  ['filesystem', checkFilesystem, false],
  ['writing', checkWriting, false],
  ['repository', checkRepository, false],
  ['space', checkSpace, false],
  ['metadata', checkMetadata, true],
  ['SMART', checkSmart, false],
  ['capacity', checkCapacity, true],
]

const NO_MOUNTS = { mount: undefined, device: undefined, isShared: false } as const

/** What can be known of a target over a network. */
const REMOTE_CHECKS: typeof CHECKS = [
  ['writing', checkWritingThere, false],
  ['repository', checkRepository, false],
  ['space', checkSpace, false],
]

async function findMounts(
  { configuration: { staging } }: TargetDoctorOptions,
  { place }: Target,
): Promise<Pick<Examination, 'mount' | 'device' | 'isShared'>> {
  const mounts = await listMounts()
  const mountAt = (path: string): Mount | undefined => {
    return existsSync(path) ? mountOf(realPath(rawPathFromText(path)), mounts) : undefined
  }
  const mount = mountAt(place)
  const device = mount?.device.startsWith('/dev/') ? rawPathToText(mount.device) : undefined
  const others = [mountAt('/'), mountAt(staging)].flatMap((other) => other?.device ?? [])
  return { mount, device, isShared: others.some((other) => other === mount?.device) }
}

async function checkFilesystem(examination: Examination): Promise<Check[]> {
  const name = 'filesystem'
  const { mount, isShared, opened } = examination
  const type = await filesystemType(examination)
  if (type === 'tmpfs') {
    const message = `${quoted(opened.place)} is memory: it is empty after the next boot`
    return [warning(name, message, 'name a directory on a drive')]
  }
  if (isShared) {
    const message = `${quoted(opened.place)} is on the disk of the system or of staging`
    return [warning(name, message, 'when that disk fails both are gone: name one on another disk')]
  }
  const where = mount === undefined ? '' : ` at ${quoted(rawPathToText(mount.point) ?? '')}`
  const lacks = FILESYSTEMS[type]
  return [ok(name, `${type}${where}${lacks === undefined ? '' : `; ${lacks}`}`)]
}

/** FUSE hides which filesystem it is; blkid looks at the device itself. */
async function filesystemType({ mount, device, signal }: Examination): Promise<string> {
  const type = mount?.type ?? 'an unknown filesystem'
  if (type !== 'fuseblk' || device === undefined) return type
  try {
    const args = ['-p', '-o', 'value', '-s', 'TYPE', '--', device]
    const call = { program: 'blkid', args, changes: false, timeoutMs: BLKID_TIMEOUT_MS, signal }
    const { exitCode, stdout } = await runProgram(call)
    return exitCode === 0 && stdout.trim() !== '' ? stdout.trim() : type
  } catch (error) {
    if (!(error instanceof BackupError) || error.code === 'INTERRUPTED') throw error
    return type
  }
}

async function checkWriting({ opened: { place }, dryRun }: Examination): Promise<Check[]> {
  const name = 'writing'
  if (dryRun) {
    accessSync(place, constants.W_OK)
    return [ok(name, 'allowed; a dry run writes nothing')]
  }
  const bytes = randomBytes(SAMPLE_BYTES)
  const how = await withProbeDirectory(place, async (directory) => {
    const path = rawPathFromText(`${directory}/sample`)
    writeDurably({ path, bytes, mode: 0o600 })
    const parts: Buffer[] = []
    const way = readBack({ path, onBlock: (block) => parts.push(Buffer.from(block)) })
    return await Promise.resolve(Buffer.concat(parts).equals(bytes) ? way : undefined)
  })
  if (how === undefined) {
    const message = 'what was written does not read back the same'
    return [failure(name, message, 'check the cable and the port, then the drive; trust it not')]
  }
  const past = how === 'direct' ? 'past the page cache' : 'with the page cache dropped before'
  return [ok(name, `a file of ${formatSize(SAMPLE_BYTES)} was written and read back, ${past}`)]
}

async function checkWritingThere({ opened, dryRun }: Examination): Promise<Check[]> {
  const name = 'writing'
  if (dryRun) return [ok(name, 'a dry run writes nothing')]
  const path = `.probe/${randomBytes(8).toString('hex')}`
  const startMs = performance.now()
  try {
    // Read back and compared by the target.
    await opened.write(path, randomBytes(SAMPLE_BYTES))
  } finally {
    await opened.remove(path)
    await opened.removeDirectory('.probe')
  }
  const tookMs = Math.round(performance.now() - startMs)
  const size = formatSize(SAMPLE_BYTES)
  return [ok(name, `a file of ${size} was written, read back and removed in ${tookMs} ms`)]
}

async function checkRepository({
  opened,
  target: { kind },
  configuration,
}: Examination): Promise<Check[]> {
  const name = 'repository'
  const { machine, staging } = configuration
  const repository = await findRepository(opened)
  if (repository === undefined) {
    const maker = kind === 'drive' ? '`backup drives add`' : 'the first export'
    return [ok(name, `none yet: ${maker} makes one`)]
  }
  const machines = await listMachines(repository)
  const count = exportsOf(await listStamps(repository, machine)).length
  const others = machines.filter((one) => one !== machine)
  const beside = others.length === 0 ? '' : `, beside ${others.join(', ')}`
  if (existsSync(stateDirectory({ staging, id: repository.id }))) {
    return [ok(name, `known here, ${count} exports of ${machine}${beside}`)]
  }
  if (!machines.includes(machine)) {
    const message = `it belongs to ${others.join(', ') || 'nobody yet'}, and has none of ${machine}`
    return [warning(name, message, 'is it the right drive? an export would join the others there')]
  }
  const message = `${count} exports of ${machine}${beside}, but nothing is known of it here`
  return [warning(name, message, 'is it the right drive? the next export to it is a full one')]
}

/** What has no export there yet has to fit as it is: how well it compresses shows only then. */
async function checkSpace({ opened, configuration }: Examination): Promise<Check[]> {
  const name = 'space'
  const { machine, staging, backupSets } = configuration
  const freeBytes = await opened.freeBytes()
  if (freeBytes === undefined) return [ok(name, 'not known')]
  const there = await setsThere(opened, machine)
  const first = backupSets.flatMap(({ name: set }) => {
    const newest = surveyCollections({ staging, set }).collections.at(-1)
    return newest === undefined || there.has(set) ? [] : [newest]
  })
  const neededBytes = first.reduce((sum, { bytes }) => sum + bytes, 0)
  const sets = first.map(({ set }) => set).join(', ')
  const free = `${formatSize(freeBytes)} are free`
  if (freeBytes === 0) return [failure(name, 'it is full', pruneFix(opened))]
  if (neededBytes > freeBytes) {
    const message = `${free}, and ${sets} has ${formatSize(neededBytes)} before compression`
    return [warning(name, message, `use a larger drive, or ${pruneFix(opened)}`)]
  }
  const sizes = sets === '' ? '' : `, ${sets} has ${formatSize(neededBytes)} before compression`
  return [ok(name, `${free}${sizes}`)]
}

function pruneFix({ name }: Target): string {
  return `make room: \`backup prune --target ${name}\` shows what retention lets go`
}

async function setsThere(target: Target, machine: string): Promise<ReadonlySet<string>> {
  const repository = await repositoryOf(target)
  const stamps = repository === undefined ? [] : await listStamps(repository, machine)
  return new Set(exportsOf(stamps).map(({ set }) => set))
}

/** Undefined where there is none, or what is there is not ours: its own check says so. */
async function repositoryOf(target: Target): Promise<Repository | undefined> {
  try {
    return await findRepository(target)
  } catch (error) {
    if (error instanceof BackupError && error.code !== 'INTERRUPTED') return undefined
    throw error
  }
}

/** Bundles are files like any other: what is in them has to survive on every filesystem. */
async function checkMetadata(examination: Examination): Promise<Check[]> {
  const { configuration, opened, dryRun, signal } = examination
  const name = 'metadata'
  if (dryRun) return [ok(name, 'not looked at: a dry run writes nothing')]
  const isRoot = process.getuid?.() === 0
  const results = await withScratch(configuration, async (scratch) => {
    return await withProbeDirectory(opened.place, async (probe) => {
      const into = rawPathFromText(`${scratch}/restored`)
      mkdirSync(rawPathToBytes(into), { mode: 0o700 })
      return await selfTestRestore({
        directory: rawPathFromText(`${scratch}/source`),
        bundle: rawPathFromText(`${probe}/bundle`),
        ...{ into, isRoot, signal },
      })
    })
  })
  return describeSurvivors(results, {
    name,
    kept: 'survive an export to it and a restore',
    fix: 'see `backup doctor`, which looks at staging',
    isRoot,
  })
}

async function checkSmart({ device, mount, signal }: Examination): Promise<Check[]> {
  const name = 'SMART'
  if (device === undefined) return [ok(name, `not looked at: ${noDrive(mount)}`)]
  return describeSmart(await readSmart(device, { signal })).map((finding) => ({ name, ...finding }))
}

async function checkCapacity(examination: Examination): Promise<Check[]> {
  const name = 'capacity'
  const { opened, dryRun, withCapacity, device, mount, isShared, report, signal } = examination
  const why = dryRun
    ? 'a dry run writes nothing'
    : !withCapacity
      ? '--no-capacity'
      : device === undefined
        ? noDrive(mount)
        : isShared
          ? 'it is on the disk of the system or of staging'
          : undefined
  if (why !== undefined) return [ok(name, `not looked at: ${why}`)]
  const { place: directory } = opened
  const { bavail, bsize, blocks } = statfsSync(directory)
  const sizes = { freeBytes: bavail * bsize, totalBytes: blocks * bsize }
  const capacity = await probeCapacity({ directory, ...sizes, device, report, signal })
  return [await describeCapacity(examination, capacity)]
}

async function describeCapacity(
  { opened }: Examination,
  { verdict, message }: Capacity,
): Promise<Check> {
  const name = 'capacity'
  if (verdict === 'good') return ok(name, message)
  if (verdict === 'unknown' || verdict === 'not enough room') {
    return ok(name, `not looked at: ${message}`)
  }
  const isThere = (await repositoryOf(opened)) !== undefined
  const exports = '`backup-restore --verify` says which exports on it are whole'
  const then = isThere ? `; ${exports}` : ''
  const fix = verdict === 'fake' ? 'put nothing on it, return it' : 'try another cable and port'
  return failure(name, message, `${fix}${then}`)
}

function noDrive(mount: Mount | undefined): string {
  return `${mount?.type ?? 'it'} lies on no drive of its own`
}
