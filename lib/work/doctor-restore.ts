// `backup doctor --restore-to`: what would survive being restored into a directory, by this user on
// this machine.
//
// A tree of everything is restored there and compared (self-test.ts), in directories of our own
// that are gone at the end. doctor-target.ts asks the same of a target. Throws INTERRUPTED and
// bugs; all else is a check.

import { mkdirSync, mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { BackupError, systemCode } from '../errors.ts'
import { asFailure, type Check, failure, ok, quoted, warning } from '../model/check.ts'
import { rawPathFromText, rawPathToBytes } from '../model/raw-path.ts'
import { withProbeDirectory } from './capacity.ts'
import { refuseStaging } from './restore-local.ts'
import { type SelfTestResult, selfTestRestore } from './self-test.ts'
import { stagingError, stateRoot } from './staging.ts'

export interface RestorePlaceOptions {
  /** Absolute. */
  readonly into: string
  /** Where what is restored comes from; undefined without a configuration. */
  readonly staging: string | undefined
  readonly uid: number
  /** Writes nothing. */
  readonly dryRun: boolean
  readonly signal: AbortSignal
  readonly onCheck: (check: Check) => void
}

/** Makes every check. @throws BackupError INTERRUPTED */
export async function examineRestorePlace(options: RestorePlaceOptions): Promise<void> {
  const { into, staging, onCheck } = options
  const name = 'restoring'
  try {
    if (staging !== undefined) refuseStaging({ staging, into: rawPathFromText(into) })
    const problem = placeProblem(into)
    for (const check of problem === undefined ? await checkSurvivors(options) : [problem]) {
      onCheck(check)
    }
  } catch (error) {
    const code = error instanceof BackupError ? undefined : systemCode(error)
    const message = `nothing can be restored into ${quoted(into)} (${code})`
    const fix = 'name a directory that you may write, with room in it'
    onCheck(code === undefined ? asFailure(name, error) : failure(name, message, fix))
  }
}

function placeProblem(into: string): Check | undefined {
  const stat = statSync(into, { throwIfNoEntry: false })
  if (stat?.isDirectory() === true) return undefined
  const what = stat === undefined ? 'is not there' : 'is no directory'
  return failure('restoring', `${quoted(into)} ${what}`, 'make the directory, or name another')
}

async function checkSurvivors(options: RestorePlaceOptions): Promise<Check[]> {
  const { into, staging, uid, dryRun, signal } = options
  const name = 'restoring'
  if (dryRun) return [ok(name, 'not tried: a dry run writes nothing')]
  const isRoot = uid === 0
  const results = await withScratch({ staging }, async (scratch) => {
    return await withProbeDirectory(into, async (probe) => {
      return await selfTestRestore({
        directory: rawPathFromText(`${scratch}/source`),
        bundle: rawPathFromText(`${scratch}/bundle`),
        ...{ into: rawPathFromText(probe), isRoot, signal },
      })
    })
  })
  return describeSurvivors(results, {
    name,
    kept: `survive in ${quoted(into)}`,
    fix: 'restore to ext4, XFS, btrfs, ZFS or APFS',
    isRoot,
  })
}

/**
 * Gives `action` a directory of its own on the filesystem of staging, or where there is no staging,
 * among the temporary files. What a killed run leaves in staging, doctor.ts sweeps.
 */
export async function withScratch<Value>(
  { staging }: { readonly staging: string | undefined },
  action: (scratch: string) => Promise<Value>,
): Promise<Value> {
  const scratch = makeScratch(staging)
  try {
    return await action(scratch)
  } finally {
    rmSync(rawPathToBytes(rawPathFromText(scratch)), { recursive: true, force: true })
  }
}

function makeScratch(staging: string | undefined): string {
  const isThere = staging !== undefined && statSync(staging, { throwIfNoEntry: false })
  if (staging === undefined || isThere === undefined)
    return mkdtempSync(`${tmpdir()}/backup-doctor-`)
  const scratch = `${stateRoot(staging)}/doctor-${process.pid}`
  try {
    mkdirSync(stateRoot(staging), { recursive: true, mode: 0o700 })
    // What a killed run left that had our number.
    rmSync(rawPathToBytes(rawPathFromText(scratch)), { recursive: true, force: true })
    mkdirSync(scratch, { mode: 0o700 })
  } catch (error) {
    throw stagingError({ error, staging, doing: 'written' })
  }
  return scratch
}

const BIRTH = 'times of birth stay in the catalog, for no system lets them be set'

/** What survives in one line, and what does not in one each: paths lost are failures. */
export function describeSurvivors(
  results: readonly SelfTestResult[],
  {
    name,
    kept,
    fix,
    isRoot,
  }: {
    readonly name: string
    /** Before the list of what does. */
    readonly kept: string
    readonly fix: string
    readonly isRoot: boolean
  },
): Check[] {
  const survivors = results.filter(({ why }) => why === undefined).map(({ feature }) => feature)
  const lost = results.flatMap(({ feature, why, isTried, isContent }): Check[] => {
    if (why === undefined) return []
    if (!isTried) return [ok(name, `${feature} could not be tried: ${why}`)]
    const message = `${feature} are lost: ${why}`
    return [isContent ? failure(name, message, fix) : warning(name, message, fix)]
  })
  const asUser = 'without root, owners, devices and system attributes are not restored'
  return [
    ...(survivors.length === 0 ? [] : [ok(name, `${kept}: ${survivors.join(', ')}; ${BIRTH}`)]),
    ...lost,
    ...(isRoot ? [] : [warning(name, asUser, 'restore as root where that matters')]),
  ]
}
